"""The loop: views → model → loss → step → log → checkpoint (Algorithm 1 of the paper).

A step is a function of (settings, store, step number, weights), so a run that is stopped anywhere and resumed ends
bit for bit where an undisturbed one does.
"""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from myna.checkpoint import checkpoints, model_hash, open_checkpoint, save_model, write_text
from myna.errors import CheckpointError, ConfigError, RunError
from myna.loss import LossConfig, contrastive
from myna.model import ModelConfig, MynaModel
from myna.patch import Kind
from myna.store import Store
from myna.view import VIEWS, Loader, ViewConfig, Views
from myna.vit import parameter_count

Precision = Literal["auto", "fp32", "bf16"]
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
RUN_FORMAT, RUN_VERSION = "myna-run", 1
# What a resumed run may do differently: how long, how often it speaks and saves. All else decides the result.
FREE_ON_RESUME = {"epochs", "steps", "log_every", "checkpoint_minutes", "keep"}


class TrainConfig(BaseModel):
    """How long, how fast, and what is written down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(4096, ge=2, description="clips in a batch")
    epochs: float = Field(500.0, gt=0, description="passes over the clips of the store")
    steps: int | None = Field(None, ge=1, description="total steps, instead of epochs")
    learning_rate: float = Field(3e-4, gt=0, description="Adam's learning rate")
    weight_decay: float = Field(1e-5, ge=0, description="Adam's coupled weight decay")
    seed: int = Field(0, ge=0, description="decides weights, clips, crops and masks")
    precision: Precision = Field("auto", description="fp32, or bf16 products with fp32 weights; auto measures")
    log_every: int = Field(10, ge=1, description="steps between two lines of metrics.jsonl")
    checkpoint_minutes: float = Field(10.0, gt=0, description="time between two checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints that are kept")


class Settings(BaseModel):
    """Everything that decides a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = Field("custom", description="the recipe that the settings began as")
    model: ModelConfig = ModelConfig()
    view: ViewConfig = ViewConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()


def pick_device(name: str | None = None) -> torch.device:
    """Return the device of this name; without one, CUDA, else Apple's MPS, else the CPU."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"The device {name!r} cannot be used here ({str(error).splitlines()[0]}).") from error
    return device


def pick_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Resolve `auto`: bf16 where its matrix products are clearly faster. Measured on CPUs (a few milliseconds)."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type != "cpu":
        return "fp32"
    a, b = torch.randn(512, 384), torch.randn(384, 1536)
    return "bf16" if _product_seconds(a.bfloat16(), b.bfloat16()) * 1.5 < _product_seconds(a, b) else "fp32"


def _product_seconds(a: Tensor, b: Tensor) -> float:
    best = math.inf
    for _ in range(8):
        begin = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - begin)
    return best


def forward_backward(
    model: MynaModel, views: dict[Kind, Views], loss: LossConfig, *, precision: str
) -> dict[str, Tensor]:
    """Add the gradient of one step, each patch kind on its own pass, and return the step's numbers.

    The loss of a hybrid is the mean of its kinds' (section 3.6); going backward after each keeps one graph at a time.
    """
    numbers: dict[str, Tensor] = {}
    for kind, view in views.items():
        device = view.patches.device.type
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            z = model(kind, view.patches.flatten(0, 1), view.tokens.flatten(0, 1)).float()
        value, top1 = contrastive(*z.chunk(VIEWS), form=loss.loss, temperature=loss.temperature)
        (value / len(views)).backward()
        numbers[f"loss_{kind}"], numbers[f"top1_{kind}"] = value.detach(), top1
    for name in ("loss", "top1"):
        numbers[name] = torch.stack([numbers[f"{name}_{kind}"] for kind in views]).mean()
    return numbers


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Return how many steps a run takes."""
    return config.steps or max(1, math.ceil(config.epochs * steps_per_epoch))


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


class Metrics:
    """metrics.jsonl, and TensorBoard's files if it is installed. Values stay on the device until they are logged."""

    def __init__(self, run: Path, *, step: int) -> None:
        self.path = run / METRICS_FILE
        kept = [row for row in read_metrics(run) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.board = _tensorboard(run, step)

    def write(self, row: dict[str, float | int]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in row.items():
                self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def _tensorboard(run: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # an optional extra
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)


def read_metrics(run: str | Path) -> list[dict[str, float]]:
    """Return the logged rows of a run; a last line cut short by a kill is left out."""
    path = Path(run) / METRICS_FILE
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


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
            settings = _continued(settings, earlier, store)
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
        self._write_run()
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

    def _write_run(self) -> None:
        self.run.mkdir(parents=True, exist_ok=True)
        record = {
            "format": RUN_FORMAT,
            "version": RUN_VERSION,
            "store": {"path": str(self.store.path), "hash": self.store.hash},
            "settings": self.settings.model_dump(mode="json"),
        }
        write_text(self.run / RUN_FILE, json.dumps(record, indent=2) + "\n")

    @property
    def hash(self) -> str:
        return model_hash(self.model)


def read_run(run: str | Path) -> dict[str, Any]:
    """Return what a run folder says of itself: `store` (path, hash) and `settings`."""
    path = Path(run) / RUN_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != RUN_FORMAT or record["version"] != RUN_VERSION:
            raise RunError(f"{path} says {record['format']!r} version {record['version']!r}, not a run of this myna.")
        return {**record, "settings": Settings.model_validate(record["settings"])}
    except FileNotFoundError as error:
        raise RunError(f"There is no run in {run}: it has no {RUN_FILE}.") from error
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}: {error}).") from error


def _continued(settings: Settings, earlier: dict[str, Any], store: Store) -> Settings:
    """Return the settings to resume with; what would change the result must be as it was."""
    if earlier["store"]["hash"] != store.hash:
        raise RunError(
            f"The store {store.path} is not the one that the run began with ({earlier['store']['path']}): resume with "
            "that, or start a new run from its weights with --init-from."
        )
    old: Settings = earlier["settings"]
    free = {name: getattr(settings.train, name) for name in FREE_ON_RESUME}
    resolved = {"precision": old.train.precision} if settings.train.precision == "auto" else {}
    wanted = settings.model_copy(update={"train": settings.train.model_copy(update=resolved)})
    expected = old.model_copy(update={"train": old.train.model_copy(update=free)})
    for part in ("model", "view", "loss", "train"):
        ours, theirs = getattr(wanted, part).model_dump(), getattr(expected, part).model_dump()
        for name in ours:
            if ours[name] != theirs[name]:
                raise RunError(
                    f"The run began with {name} {theirs[name]}, and {ours[name]} was given: a resumed run keeps it. "
                    "Start a new run with --init-from to change it."
                )
    return expected
