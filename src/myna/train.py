"""The loop: views → model → loss → step → log → checkpoint (Algorithm 1 of the paper).

A step is a function of (settings, store, step number, weights), so a run that is stopped anywhere and resumed ends
bit for bit where an undisturbed one does.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from myna.checkpoint import checkpoints, model_hash, open_checkpoint, save_model
from myna.device import pick_device, pick_precision
from myna.errors import CheckpointError, ConfigError, RunError
from myna.model import MynaModel
from myna.patch import Kind
from myna.run import RUN_FILE, Metrics, Settings, continued, read_run, total_steps, write_run
from myna.step import forward_backward
from myna.store import Store
from myna.view import VIEWS, Loader, Views
from myna.vit import parameter_count


@dataclass(frozen=True)
class Plan:
    """What a run is going to do, before it does it. Times come from a short measurement."""

    parameters: int
    visible: dict[str, tuple[int, int]]  # kind → (visible, all) tokens of a view
    clips: int
    tracks: int
    hours: float
    steps_per_epoch: int
    steps: int
    device: str
    precision: str
    memory_bytes: int
    seconds_per_step: float

    @property
    def seconds(self) -> float:
        return self.seconds_per_step * self.steps


def memory_estimate(settings: Settings, visible: dict[str, int], *, precision: str, parameters: int) -> int:
    """Estimate the peak bytes of a step: weights, gradients, Adam, and one patch kind's activations."""
    model, size = settings.model, 2 if precision == "bf16" else 4
    kept = 5 * model.dim + 4 * model.heads * model.head_dim + 2 * model.mlp_dim  # numbers a token keeps in a block
    residual = 2 * model.dim * (4 - size)  # the residual stream and norms stay float32
    tokens = settings.train.batch * VIEWS * max(visible.values())
    patches = sum(settings.train.batch * VIEWS * count * 256 * 4 for count in visible.values())
    return 16 * parameters + tokens * model.depth * (kept * size + residual) + 2 * patches


def optimizer_tensors(model: MynaModel, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state with the parameters' names: `exp_avg.encoder.norm.weight` and so on."""
    return {
        f"{what}.{name}": value
        for name, parameter in model.named_parameters()
        for what, value in optimizer.state[parameter].items()
    }


def load_optimizer(model: MynaModel, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned; every parameter's state must be there."""
    for name, parameter in model.named_parameters():
        for what in ("step", "exp_avg", "exp_avg_sq"):
            if f"{what}.{name}" not in tensors:
                raise CheckpointError(f"The optimiser's state has no {what}.{name}: resume from another checkpoint.")
        state = {what: tensors[f"{what}.{name}"] for what in ("exp_avg", "exp_avg_sq")}
        state = {what: tensor.to(parameter) for what, tensor in state.items()}
        # fused Adam keeps its step counters on the parameter's device
        state["step"] = tensors[f"step.{name}"].to(parameter.device)
        optimizer.state[parameter] = state


class Interrupt:
    """Ctrl-C and SIGTERM ask for a stop after the current step, instead of tearing it apart."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "Interrupt":
        self.old = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: object) -> None:
        self.signal = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


class Trainer:
    """One run: its folder, model, optimiser and data."""

    def __init__(
        self,
        store: Store,
        run: str | Path,
        settings: Settings,
        *,
        resume: bool = False,
        init_from: str | Path | None = None,
        device: str | None = None,
    ) -> None:
        self.run, self.store, self.device = Path(run), store, pick_device(device)
        earlier = read_run(self.run) if (self.run / RUN_FILE).is_file() else None
        self._check_start(earlier, resume=resume, init_from=init_from)
        if store.front_end != settings.model.front_end:
            raise ConfigError(
                f"The store {store.path} was prepared with {store.front_end}, the model hears "
                f"{settings.model.front_end}: prepare the music anew with the model's front end."
            )
        if earlier:
            settings = continued(settings, earlier, store)
        precision = pick_precision(settings.train.precision, self.device)
        self.settings = settings.model_copy(
            update={"train": settings.train.model_copy(update={"precision": precision})}
        )
        self.loader = Loader(
            store, settings.view, settings.model.grids(), batch=settings.train.batch, seed=settings.train.seed
        )
        self.steps = total_steps(settings.train, self.loader.steps_per_epoch)
        self.step = 0
        self.model = self._initial_model(init_from).to(self.device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=settings.train.learning_rate,
            weight_decay=settings.train.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        if resume:
            self._load_newest()

    def _check_start(self, earlier: dict[str, Any] | None, *, resume: bool, init_from: str | Path | None) -> None:
        if earlier and not resume:
            raise RunError(
                f"{self.run} already holds a run: continue it with --resume, or start a new one in another folder "
                f"(from its weights, if you like, with --init-from {self.run})."
            )
        if resume and init_from:
            raise RunError("--resume goes on with a run and --init-from starts a new one: give one of them.")
        if resume and not earlier:
            raise RunError(f"There is no run in {self.run} to resume: start it without --resume.")

    def _initial_model(self, init_from: str | Path | None) -> MynaModel:
        if init_from is None:
            return MynaModel(self.settings.model, seed=self.settings.train.seed)
        found = open_checkpoint(init_from)
        if found.config != self.settings.model:
            theirs, ours = found.config.model_dump(), self.settings.model.model_dump()
            differing = sorted(name for name in ours if ours[name] != theirs[name])
            raise ConfigError(
                f"The model in {init_from} differs from this run's in {', '.join(differing)}: "
                "give the settings that it was trained with."
            )
        return found.model()

    def _load_newest(self) -> None:
        found = checkpoints(self.run)
        if not found:
            return  # killed before its first checkpoint: step 0 is where it stands
        checkpoint = open_checkpoint(found[-1])
        self.model.load_state_dict(checkpoint.model().state_dict())
        load_optimizer(self.model, self.optimizer, checkpoint.optimizer())
        self.step = checkpoint.step

    def plan(self) -> Plan:
        """Measure a few small steps and say what the whole run will take."""
        visible = {kind: view.tokens.shape[2] for kind, view in self.loader(0).items()}
        parameters = parameter_count(self.model)
        precision = self.settings.train.precision
        return Plan(
            parameters=parameters,
            visible={kind: (count, self.loader.grids[kind].tokens) for kind, count in visible.items()},
            clips=len(self.loader.clips),
            tracks=self.loader.clips.tracks,
            hours=self.store.hours,
            steps_per_epoch=self.loader.steps_per_epoch,
            steps=self.steps,
            device=str(self.device),
            precision=precision,
            memory_bytes=memory_estimate(self.settings, visible, precision=precision, parameters=parameters),
            seconds_per_step=self._calibrate(),
        )

    def _calibrate(self, clips: int = 64) -> float:
        """Time forward and backward of a few clips, and scale to the batch."""
        views = {
            kind: Views(view.patches[:, :clips], view.tokens[:, :clips])
            for kind, view in self.loader(0, self.device).items()
        }
        seconds = math.inf
        for _ in range(2):
            begin = time.perf_counter()
            forward_backward(self.model, views, self.settings.loss, precision=self.settings.train.precision)
            self.model.zero_grad()
            self._synchronize()
            seconds = min(seconds, time.perf_counter() - begin)
        return seconds * self.settings.train.batch / min(clips, self.settings.train.batch)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def train(self, *, on_log: Callable[[dict[str, float]], None] | None = None) -> int | None:
        """Run to the last step. Return None, or the number of the signal that stopped it earlier.

        Raises RunError when the loss or a gradient is not finite; the last checkpoint stands.
        """
        write_run(self.run, self.settings, self.store)
        metrics = Metrics(self.run, step=self.step)
        config, saved = self.settings.train, time.monotonic()
        window: list[dict[str, Tensor]] = []
        begin, clips = time.monotonic(), 0
        try:
            with Interrupt() as interrupt, contextlib.closing(self._batches()) as batches:
                for views in batches:
                    window.append(self._one_step(views))
                    self.step += 1
                    clips += config.batch
                    last = self.step == self.steps or interrupt.signal is not None
                    due = time.monotonic() - saved > config.checkpoint_minutes * 60
                    if last or due or self.step % config.log_every == 0:
                        row = self._row(window, clips / (time.monotonic() - begin))
                        metrics.write(row)
                        if on_log:
                            on_log(row)
                        window, begin, clips = [], time.monotonic(), 0
                    if last or due:
                        self.save()
                        saved = time.monotonic()
                    if last:
                        return interrupt.signal
        finally:
            metrics.close()
        return None

    def _one_step(self, views: dict[Kind, Views]) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        numbers = forward_backward(self.model, views, self.settings.loss, precision=self.settings.train.precision)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        numbers["grad_norm"] = torch.nn.utils.get_total_norm(gradients)
        self.optimizer.step()
        return numbers

    def _batches(self) -> Iterator[dict[Kind, Views]]:
        """Yield the views of every step that is left, drawn and read one step ahead by a thread."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            coming = None
            for step in range(self.step, self.steps):
                now = coming or pool.submit(self.loader, step, self.device)
                coming = pool.submit(self.loader, step + 1, self.device) if step + 1 < self.steps else None
                yield now.result()

    def _row(self, window: list[dict[str, Tensor]], clips_per_s: float) -> dict[str, float]:
        """Mean of each number over the steps since the last row; the first look at the values themselves."""
        row = {name: torch.stack([step[name] for step in window]).mean().item() for name in window[0]}
        broken = [name for name, value in row.items() if not math.isfinite(value)]
        if broken:
            kept = checkpoints(self.run)
            raise RunError(
                f"{' and '.join(broken)} became non-finite in the {len(window)} steps up to step {self.step}. "
                + (f"The last good checkpoint is {kept[-1]}. " if kept else "No checkpoint was written yet. ")
                + "Try a smaller --learning-rate, --precision fp32, or a higher --temperature."
            )
        epoch = self.step / self.loader.steps_per_epoch
        return {"step": self.step, "epoch": round(epoch, 4), **row, "clips_per_s": round(clips_per_s, 2)}

    def save(self) -> Path:
        """Write a checkpoint of the current step and remove the oldest beyond `keep`."""
        path = self.run / "checkpoints" / f"step-{self.step:09d}"
        about = {
            "step": self.step,
            "examples": self.step * self.settings.train.batch,
            "store": self.store.hash,
            "settings": self.settings.model_dump(mode="json"),
        }
        save_model(self.model, path, about=about, optimizer=optimizer_tensors(self.model, self.optimizer))
        for old in checkpoints(self.run)[: -self.settings.train.keep]:
            # the config first: a folder without it is no checkpoint, whatever else is still there
            (old / "config.json").unlink()
            for file in old.iterdir():
                file.unlink()
            old.rmdir()
        return path

    @property
    def hash(self) -> str:
        return model_hash(self.model)
