"""One step's gradient: views become projections, projections a loss, the loss a gradient (Algorithm 1).

An `Objective` is what the trainer calls; the contrastive `Step` is the paper's.
"""

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from myna.loss import ContrastiveLoss, LossConfig
from myna.model import MynaModel
from myna.patch import Kind
from myna.rank import SOLO, World
from myna.view import VIEWS, Views

Compile = Literal["auto", "off", "default", "reduce-overhead", "max-autotune"]
Projections = dict[Kind, Tensor]  # (view, batch, dim) of each patch kind


class Objective(ABC):
    """Adds one step's gradient to a model's parameters, and returns the step's numbers, "loss" among them.

    The model's passes are compiled, spread over ranks, and go on uncompiled where there is no compiler. Subclasses say
    what is learned from them. `loss` holds what a loss learns and remembers, for checkpoints.
    """

    passes = 1  # how often micro-batches are sent through the model

    def __init__(
        self,
        model: MynaModel,
        loss: LossConfig,
        *,
        precision: str = "fp32",
        micro_batch: int | None = None,
        together: bool = False,
        clips: int = 0,
        compile: Compile = "off",
        world: World = SOLO,
    ) -> None:
        self.config, self.precision, self.micro_batch, self.world = model.config, precision, micro_batch, world
        self.loss = self._loss_module(loss, clips).to(next(model.parameters()).device)
        self.together = together or world.size > 1  # DistributedDataParallel wants all parameters in each pass
        self.model: nn.Module = model
        if world.size > 1:
            self.model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.why_not_compiled = ""
        self._plain = self.model
        if compile not in ("off", "auto"):
            self.model = torch.compile(self.model, mode=compile, dynamic=False)

    def _loss_module(self, loss: LossConfig, clips: int) -> nn.Module:  # noqa: ARG002 (for those that need it)
        """Return what is learned and remembered beside the model: nothing, unless a subclass says otherwise."""
        return nn.Module()

    @abstractmethod
    def __call__(self, views: dict[Kind, Views]) -> dict[str, Tensor]:
        """Add the gradient of these views, this rank's rows of a batch; return numbers that are still on the device."""

    def _pass(self, views: dict[Kind, Views]) -> dict[Kind, Tensor]:
        """Send views through the model, one after another as (view x batch) rows; returns float32."""
        device = next(iter(views.values())).patches.device.type
        patches = {kind: view.patches.flatten(0, 1) for kind, view in views.items()}
        tokens = {kind: view.tokens.flatten(0, 1) for kind, view in views.items()}
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            found = self._run(patches, tokens)
        return {kind: z.float() for kind, z in found.items()}

    def _run(self, patches: dict[Kind, Tensor], tokens: dict[Kind, Tensor]) -> dict[Kind, Tensor]:
        if self.model is self._plain:
            return self.model(patches, tokens)
        try:
            return self.model(patches, tokens)
        except RuntimeError as error:  # no compiler, no Triton, or a graph that it cannot make
            if isinstance(error, torch.OutOfMemoryError):
                raise
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            self.why_not_compiled = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
            self.model = self._plain
            return self.model(patches, tokens)

    def _alone(self) -> Any:
        """Keep a gradient on this rank: only the last micro-batch's pass adds up over the ranks."""
        return self._plain.no_sync() if isinstance(self._plain, DistributedDataParallel) else nullcontext()


class Step(Objective):
    """The paper's: tell the two views of each clip from those of all others.

    The loss of a hybrid is the mean of its kinds' (section 3.6). With `together`, both kinds go through the encoder in
    one pass; else one after the other, which keeps one kind's activations at a time. `micro_batch` clips are embedded
    at a time, at the cost of a second forward pass (GradCache, arXiv 2101.06983): the loss still compares the whole
    batch and the gradient is that of the undivided one. With several ranks the views are this rank's rows, and the
    gradient is that of the global batch on every rank. `loss` holds what the loss learns and remembers; SogCLR needs
    to know how many `clips` the store has.
    """

    passes = 2  # without a graph for the loss of the whole batch, then with one

    def _loss_module(self, loss: LossConfig, clips: int) -> nn.Module:
        return ContrastiveLoss(loss, self.config.patches, clips=clips, world=self.world)

    def __call__(self, views: dict[Kind, Views]) -> dict[str, Tensor]:
        found: dict[Kind, dict[str, Tensor]] = {}
        for group in [tuple(views)] if self.together else [(kind,) for kind in views]:
            self._add_gradient({kind: views[kind] for kind in group}, len(views), found)
        numbers = {f"{name}_{kind}": value for kind, values in found.items() for name, value in values.items()}
        for name in next(iter(found.values())):
            numbers[name] = torch.stack([values[name] for values in found.values()]).mean()
        return numbers

    def _add_gradient(self, views: dict[Kind, Views], kinds: int, found: dict[Kind, dict[str, Tensor]]) -> None:
        local = len(next(iter(views.values())))
        if self.micro_batch is None or self.micro_batch >= local:
            self._loss(views, self._project(views), kinds, found).backward()
            return
        parts = [slice(start, start + self.micro_batch) for start in range(0, local, self.micro_batch)]
        with torch.no_grad():
            projected = [self._project({kind: view[part] for kind, view in views.items()}) for part in parts]
        whole = {kind: torch.cat([some[kind] for some in projected], dim=1).requires_grad_() for kind in views}
        self._loss(views, whole, kinds, found).backward()
        for part in parts:
            with self._alone() if part != parts[-1] else nullcontext():
                again = self._project({kind: view[part] for kind, view in views.items()})
                torch.autograd.backward(list(again.values()), [whole[kind].grad[:, part] for kind in again])

    def _loss(
        self, views: dict[Kind, Views], projections: Projections, kinds: int, found: dict[Kind, dict[str, Tensor]]
    ) -> Tensor:
        total = torch.zeros((), device=next(iter(projections.values())).device)
        for kind, z in projections.items():
            with record_function("loss"):
                value, found[kind] = self.loss(*z, kind=kind, clips=views[kind].clips)
            total = total + value
        # the ranks' gradients are averaged, but each holds its own part of the whole batch's: they are to be added up
        return total * (self.world.size / kinds)

    def _project(self, views: dict[Kind, Views]) -> Projections:
        return {kind: z.unflatten(0, (VIEWS, -1)) for kind, z in self._pass(views).items()}
