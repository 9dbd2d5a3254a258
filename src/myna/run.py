"""The folder of a run: the settings that decide it, and its metrics."""

import contextlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from myna.checkpoint import sweep
from myna.device import Precision
from myna.disk import write_text
from myna.errors import RunError
from myna.loss import LossConfig
from myna.mask import visible_count
from myna.model import ModelConfig
from myna.patch import Kind
from myna.step import Compile
from myna.store import Store
from myna.view import Place, ViewConfig

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
RUN_FORMAT, RUN_VERSION = "myna-run", 1
# What a resumed run may do differently: how long, how often it speaks and saves. All else decides the result.
FREE_ON_RESUME = {"epochs", "steps", "log_every", "checkpoint_minutes", "keep", "store_on"}
# Resolved when a run starts and kept when it is resumed, unless they are given: results differ by rounding only.
RESOLVED = {"precision": "auto", "micro_batch": "auto", "compile": "auto", "attention": "auto"}


class TrainConfig(BaseModel):
    """How long, how fast, and what is written down."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch: int = Field(4096, ge=2, description="clips in a batch")
    epochs: float = Field(500.0, gt=0, le=1e9, description="passes over the clips of the store")
    steps: int | None = Field(None, ge=1, description="total steps, instead of epochs")
    learning_rate: float = Field(3e-4, gt=0, description="Adam's learning rate")
    weight_decay: float = Field(1e-5, ge=0, description="Adam's coupled weight decay")
    seed: int = Field(0, ge=0, lt=1 << 63, description="decides weights, clips, crops and masks")
    precision: Precision = Field("auto", description="fp32, or bf16 products with fp32 weights; auto measures")
    micro_batch: Literal["auto", "off"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="clips embedded at once; auto: what fits"
    )
    compile: Compile = Field("auto", description="off, or a mode of torch.compile; auto: default on CUDA, else off")
    attention: Literal["auto", "sdpa", "products", "sums"] = Field(
        "auto", description="form of attention; auto measures"
    )
    store_on: Place = Field("auto", description="device or host memory for the store; auto: device if it fits")
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

    def visible(self) -> dict[Kind, int]:
        """Return how many tokens of a view stay visible, for each patch kind."""
        grids, ratio = self.model.grids(), self.view.mask_ratio
        return {kind: visible_count(grid.tokens, ratio) for kind, grid in grids.items()}


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Return how many steps a run takes."""
    return config.steps or max(1, math.ceil(config.epochs * steps_per_epoch))


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


def in_words(row: dict[str, float]) -> str:
    """Say in words what a row of metrics tells of the learning."""
    measures = {"top1": "top-1 retrieval", "explained": "explained variance"}
    found = [f"{what} {row[name]:.1%}" for name, what in measures.items() if name in row]
    return ", ".join([f"loss {row['loss']:.4f}", *found])


def read_metrics(run: str | Path) -> list[dict[str, float]]:
    """Return the logged rows of a run; a last line cut short by a kill is left out."""
    path = Path(run) / METRICS_FILE
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def write_run(run: Path, settings: Settings, store: Store, *, init_from: dict[str, Any] | None) -> None:
    """Make the run's folder, and write down what decides it; `init_from` says whose weights it began from, if any's."""
    run.mkdir(parents=True, exist_ok=True)
    sweep(run)
    record = {
        "format": RUN_FORMAT,
        "version": RUN_VERSION,
        "store": {"path": str(store.path), "hash": store.hash},
        "settings": settings.model_dump(mode="json"),
        "init_from": init_from,
    }
    write_text(run / RUN_FILE, json.dumps(record, indent=2) + "\n")


def read_run(run: str | Path) -> dict[str, Any]:
    """Return what a run folder says of itself: `store` (path, hash), `settings`, `init_from` (None: seed's weights)."""
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


def length_of(old: Settings, new: Settings) -> Settings:
    """Return new settings with what a resumed run may change as the old run had it."""
    free = {name: getattr(old.train, name) for name in FREE_ON_RESUME}
    return new.model_copy(update={"train": new.train.model_copy(update=free)})


def continued(settings: Settings, earlier: dict[str, Any], store: Store) -> Settings:
    """Return the settings to resume with; what would change the result must be as it was."""
    if earlier["store"]["hash"] != store.hash:
        raise RunError(
            f"The music in the store {store.path} is not what the run began with (in {earlier['store']['path']}): "
            "resume with that, or start a new run from its weights with --init-from."
        )
    old: Settings = earlier["settings"]
    free = {name: getattr(settings.train, name) for name in FREE_ON_RESUME}
    resolved = {
        name: getattr(old.train, name) for name, auto in RESOLVED.items() if getattr(settings.train, name) == auto
    }
    free |= {name: getattr(settings.train, name) for name in RESOLVED if name not in resolved and name != "precision"}
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
