"""The masked auto-encoder's objective: whole crops become reconstructions, their error a gradient."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.profiler import record_function

from myna.errors import ConfigError
from myna.mae import MaskedAutoEncoder, masked, masked_error
from myna.mask import visible_count
from myna.model import ModelConfig, MynaModel, scale
from myna.patch import Kind, unpatchify
from myna.step import Objective, Step
from myna.store import Store, expand
from myna.view import Loader, ViewConfig, Views, gather


@dataclass(frozen=True)
class Crops(Views):
    """Two crops of each clip, for one patch kind: power of all patches in order, and which of them are visible."""

    patches: Float[Tensor, "view batch token value"]
    tokens: Int[Tensor, "view batch visible"]
    clips: Int[Tensor, " batch"]


class CropLoader(Loader):
    """The same crops and masks as the `Loader`'s, with the masked patches too, which are what is to be learned."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        ratio = self.config.mask_ratio
        if any(visible_count(grid.tokens, ratio) == grid.tokens for grid in self.grids.values()):
            raise ConfigError(
                f"A masked auto-encoder learns from what is masked, and a mask ratio of {ratio} masks nothing."
            )

    def __call__(self, step: int, device: torch.device | str = "cpu") -> dict[Kind, Crops]:
        drawn, target = self.draw(step), torch.device(device)
        clips, crops = self._sent(self.clip_numbers(step)[self.slice], target), {}
        for kind, grid in self.grids.items():
            every = torch.arange(grid.tokens, device=drawn.rows.device).expand(*drawn.rows.shape, -1)
            patches = self._sent(gather(self.rows, drawn.rows, every, grid), target)
            crops[kind] = Crops(expand(patches), self._sent(drawn.tokens[kind], target), clips)
        return crops


class Reconstruction(Objective):
    """Say what lies under the mask: the mean squared error on masked patches, in the model's amplitude.

    `explained` is the share of their variance that is found: 0 for whoever knows the mean patch of the batch, 1 for
    whoever knows everything. A sample's error is its own, so micro-batches simply add up.
    """

    def __call__(self, views: dict[Kind, Views]) -> dict[str, Tensor]:
        clips = len(next(iter(views.values())))
        size = min(self.micro_batch or clips, clips)
        parts = [slice(start, start + size) for start in range(0, clips, size)]
        errors = {kind: view.patches.new_zeros(()) for kind, view in views.items()}
        for number, part in enumerate(parts, start=1):
            with self._alone() if number < len(parts) else nullcontext():
                for group in [tuple(views)] if self.together else [(kind,) for kind in views]:
                    self._add_gradient({kind: views[kind][part] for kind in group}, errors, clips=clips)
        numbers: dict[str, Tensor] = {}
        for kind, view in views.items():
            numbers[f"loss_{kind}"] = self.world.sum(errors[kind]) / self.world.size
            numbers[f"explained_{kind}"] = 1 - numbers[f"loss_{kind}"] / self._variance(view)
        for name in ("loss", "explained"):
            numbers[name] = torch.stack([numbers[f"{name}_{kind}"] for kind in views]).mean()
        return numbers

    def _add_gradient(self, part: dict[Kind, Views], errors: dict[Kind, Tensor], *, clips: int) -> None:
        total = torch.zeros((), device=next(iter(part.values())).patches.device)
        for kind, found in self._pass(part).items():
            with record_function("loss"):
                error = masked_error(found, *self._target(part[kind])) * (len(part[kind]) / clips)
            errors[kind] += error.detach()
            total = total + error
        (total / len(errors)).backward()

    def _target(self, view: Views) -> tuple[Tensor, Tensor]:
        """Return what is to be found, and which of it was masked: (view x batch, token, value) and (.., token)."""
        target = scale(view.patches.flatten(0, 1), self.config.amplitude)
        return target, masked(view.tokens.flatten(0, 1), target.shape[1])

    def _variance(self, view: Views) -> Tensor:
        """Return the mean squared error of the batch's mean masked patch."""
        target, hidden = self._target(view)
        count = hidden.sum() * self.world.size
        mean = self.world.sum((target * hidden[..., None]).sum((0, 1))) / count
        return self.world.sum(((target - mean).square().mean(2) * hidden).sum()) / count


@dataclass(frozen=True)
class Example:
    """A crop, what the encoder saw of it (NaN elsewhere), what the decoder made of that; in the model's amplitude."""

    kind: Kind
    original: Float[np.ndarray, "frame band"]
    visible: Float[np.ndarray, "frame band"]
    reconstruction: Float[np.ndarray, "frame band"]


@torch.inference_mode()
def reconstruct(model: MynaModel, store: Store, *, view: ViewConfig, count: int = 4, seed: int = 0) -> list[Example]:
    """Let a masked auto-encoder fill in a crop of `count` clips of a store, for each of its patch kinds.

    Raises ConfigError if the model has no decoder or hears something else, and if the store has fewer clips.
    """
    if not isinstance(model, MaskedAutoEncoder):
        raise ConfigError("The model has no decoder to reconstruct with: train one with --recipe mae.")
    if store.front_end != model.config.front_end:
        raise ConfigError(
            f"The store {store.path} was prepared with {store.front_end}, the model hears {model.config.front_end}."
        )
    clips = len(CropLoader(store, view, model.grids, batch=1, seed=seed).clips)
    if count > clips:
        raise ConfigError(
            f"{count} crops were asked for, but {store.path} has only {clips} clips: take --count {clips} or less."
        )
    examples = []
    for kind, crops in CropLoader(store, view, model.grids, batch=count, seed=seed)(0).items():
        grid, patches, tokens = model.grids[kind], crops.patches[0], crops.tokens[0]
        original = scale(patches, model.config.amplitude)
        visible = original.masked_fill(masked(tokens, grid.tokens)[..., None], torch.nan)
        found = (unpatchify(x, grid).numpy() for x in (original, visible, model.reconstruct(kind, patches, tokens)))
        examples += [Example(kind, *pictures) for pictures in zip(*found, strict=True)]
    return examples


@dataclass(frozen=True)
class Learning:
    """A way to learn: what is read of a clip, and what is made of it."""

    loader: type[Loader]
    objective: type[Objective]


CONTRAST, RECONSTRUCT = Learning(Loader, Step), Learning(CropLoader, Reconstruction)


def learning(config: ModelConfig) -> Learning:
    """Return the way in which a model of this config learns."""
    return RECONSTRUCT if config.decoder_depth else CONTRAST
