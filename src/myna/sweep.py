"""Many runs become one result: each is trained and examined once, its record kept, and the records summed up.

A record is named by everything that decides it, so a sweep that was stopped goes on where it was, runs that several
sweeps share are done once, and a changed setting is a new run. A longer run goes on from a shorter one of the same
settings.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float32
from rich.console import Console
from torch import nn

from myna import recipe
from myna.checkpoint import checkpoints, open_checkpoint
from myna.disk import write_text
from myna.embedder import Myna
from myna.errors import ConfigError
from myna.exam import AVERAGE, Baseline, Exam, compose
from myna.model import MynaModel
from myna.prepare import prepare
from myna.probe import spread
from myna.progress import Bar
from myna.run import FREE_ON_RESUME, Settings, read_metrics
from myna.store import Store
from myna.track import Track
from myna.train import Trainer

BASELINES = get_args(Baseline)


@dataclass(frozen=True)
class Size:
    """How much of everything: `full` is the paper's, `small` fits two cores, `smoke` only shows that it runs."""

    examples: int  # clips seen in a run, epochs or not
    sweep: int  # the same, of a sweep's run
    dense: int  # the same, where runs keep most tokens and cost many times more
    batch: int
    batches: tuple[int, ...]  # of the sweeps over batch sizes
    ratios: tuple[float, ...]  # of the sweeps over masking ratios
    seeds: int
    songs: int  # composed for training, if no store is given
    seconds: float
    exam_songs: int
    exam_seconds: float
    labelled: int
    draws: int  # of labelled songs, in the exam
    settings: dict[str, Any] = field(default_factory=dict)  # laid over every recipe


@dataclass(frozen=True)
class Run:
    """A model to train and examine: a recipe with settings, or a baseline. With 0 examples it stays untrained.

    `model` is the name it gets in tables and figures; `x` is its place on a figure's axis, or None for a level that the
    others are held against.
    """

    model: str
    recipe: str
    examples: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    songs: int | None = None  # trained on only the first so many
    seed: int = 0
    x: float | None = None


@dataclass(frozen=True)
class Record:
    """What a run came to. Costs are of training; 0 where nothing was trained."""

    run: Run
    scores: dict[str, float]
    parameters: int = 0
    gflops_per_clip: float = 0.0
    clips_per_s: float = 0.0
    vectors: Path | None = None

    def read_vectors(self) -> Float32[np.ndarray, "item dim"]:
        return np.load(self.vectors, allow_pickle=False)


Summary = Callable[[Sequence[Record], Exam, Path], list[Path]]


@dataclass(frozen=True)
class Experiment:
    """A sweep: its runs, and what their records become (files in a folder)."""

    name: str
    runs: tuple[Run, ...]
    summary: Summary


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and its 95 % interval (Student's t); of one seed there is no interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        reach = "" if self.high is None else f" ±{self.high - self.value:.1f}"
        return f"{self.value:.1f}{reach}".replace("-", "−")


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of a score over seeds, and how far it may be from that of all seeds."""
    found = spread(values)
    return Mean(found.mean) if len(values) < 2 else Mean(found.mean, found.low, found.high)


def by_setting(records: Sequence[Record], question: str = AVERAGE) -> dict[tuple[str, float | None], Mean]:
    """Return the mean over seeds of each (model, x), in the order of the runs."""
    scores: dict[tuple[str, float | None], list[float]] = {}
    for record in records:
        scores.setdefault((record.run.model, record.run.x), []).append(record.scores[question])
    return {place: mean_of(found) for place, found in scores.items()}


class Bench:
    """A folder in which runs are made and their records kept.

    Training songs are composed there unless a store is given.
    """

    def __init__(self, folder: str | Path, size: Size, exam: Exam, *, store: str | Path | None = None) -> None:
        self.folder, self.size, self.exam = Path(folder), size, exam
        self.given = Store.open(store) if store else None
        self._stores: dict[int, Store] = {}

    def carry_out(self, experiment: Experiment, out: Path, *, tell: Callable[[str], None] | None = None) -> list[Path]:
        """Do the runs of an experiment that have no record yet, and return the files that sum all of them up."""
        records = []
        for number, run in enumerate(experiment.runs, start=1):
            records.append(self.record(run))
            if tell:
                about = f"{run.model}{'' if run.x is None else f' at {run.x:g}'}, seed {run.seed}"
                scores = ", ".join(f"{name} {score:.1f}" for name, score in records[-1].scores.items())
                tell(f"{experiment.name} {number}/{len(experiment.runs)}: {about}: {scores}")
        out.mkdir(parents=True, exist_ok=True)
        return experiment.summary(records, self.exam, out)

    def record(self, run: Run) -> Record:
        """Return what is on record of a run, or do it. What it is called and where it is drawn do not decide it."""
        path = self.folder / "records" / f"{run.recipe.replace(' ', '-')}-{self._digest(run)}.json"
        vectors = path.with_suffix(".npy")
        if path.is_file() and vectors.is_file():
            told = json.loads(path.read_text(encoding="utf-8"))
            costs = {name: told[name] for name in ("scores", "parameters", "gflops_per_clip", "clips_per_s")}
            return Record(run, **costs, vectors=vectors)
        if run.recipe in BASELINES:
            return self._keep(Record(run, {}, vectors=vectors), self.exam.vectors(run.recipe), path)
        if not run.examples:
            settings = self.settings(run)
            model = MynaModel(settings.model, seed=settings.train.seed)
            empty = Record(run, {}, _size_of(model), vectors=vectors)
            return self._keep(empty, self.exam.vectors(Myna(model)), path)
        folder = self._train(run)
        model = Myna.from_pretrained(folder)
        rows = read_metrics(folder)
        trained = Record(
            run,
            {},
            parameters=_size_of(model.model),
            gflops_per_clip=_median([1e3 * row["tflops"] / row["clips_per_s"] for row in rows]),
            clips_per_s=_median([row["clips_per_s"] for row in rows]),
            vectors=vectors,
        )
        return self._keep(trained, self.exam.vectors(model), path)

    def settings(self, run: Run) -> Settings:
        """Return all settings of a run: the recipe, with the size's and then the run's own laid over it."""
        given = {"batch": self.size.batch, **self.size.settings, **run.settings, "seed": run.seed}
        steps = max(1, run.examples // int(given["batch"]))
        return recipe.override(recipe.get(run.recipe), {**given, "steps": steps})

    def _digest(self, run: Run, *, length: bool = True) -> str:
        """Name a run by what decides it: 16 hex digits. Without its length, runs that go on from another agree."""
        told: dict[str, Any] = {"recipe": run.recipe}
        if run.recipe not in BASELINES:
            told["settings"] = self.settings(run).model_dump(mode="json")
            for name in FREE_ON_RESUME:
                told["settings"]["train"].pop(name)
            told["examples"] = run.examples if length else None
        if run.examples:
            told["music"] = self.given.hash if self.given else self._music(run)
        told["exam"] = self.exam.key if length else None
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def _keep(self, record: Record, vectors: Float32[np.ndarray, "item dim"], path: Path) -> Record:
        done = dataclasses.replace(record, scores=self.exam.scores(vectors))
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(done.vectors, vectors, allow_pickle=False)
        told = dataclasses.asdict(done) | {"vectors": done.vectors.name, "exam": self.exam.key}
        write_text(path, json.dumps(told, indent=2) + "\n")  # last: its presence means that the vectors are whole
        return done

    # ------------------------------------------------------------------------------------- training

    def _train(self, run: Run) -> Path:
        settings = self.settings(run)
        folder = self._place(run, settings.train.steps)
        resume = bool(checkpoints(folder))
        if folder.is_dir() and not resume:
            shutil.rmtree(folder)  # stopped before its first checkpoint
        trainer = Trainer(self._store(run), folder, settings, resume=resume)
        with Bar(f"{run.model}, seed {run.seed}", "steps") as bar:
            stopped = trainer.train(
                on_log=lambda row: bar(
                    int(row["step"]), trainer.steps, f"loss {row['loss']:.2f}, {row['clips_per_s']:.0f} clips/s"
                )
            )
        if stopped is not None:
            raise KeyboardInterrupt("Stopped; run the same command again to go on.")
        return folder

    def _place(self, run: Run, steps: int) -> Path:
        """Return the folder of the longest run of these settings that is no longer than wanted, or a new one."""
        first = self.folder / "runs" / f"{run.recipe}-{self._digest(run, length=False)}"
        standing = {folder: _steps_done(folder) for folder in first.parent.glob(f"{first.name}*")}
        fitting = [folder for folder, done in standing.items() if done <= steps]
        names = chain([first], (first.with_name(f"{first.name}-{number}") for number in count(1)))
        new = next(folder for folder in names if folder not in standing)
        return max(fitting, key=lambda folder: standing[folder], default=new)

    def _music(self, run: Run) -> dict[str, Any]:
        return {"songs": run.songs or self.size.songs, "composed": self.size.songs, "seconds": self.size.seconds}

    def _store(self, run: Run) -> Store:
        """Return the music of a run: the given store, or the first so many of the composed songs."""
        if self.given is not None:
            if run.songs:
                raise ConfigError("How many songs are needed is asked of composed songs: leave out --store.")
            return self.given
        count = run.songs or self.size.songs
        if count not in self._stores:
            tracks = [Track(path.absolute()) for path in self._songs[:count]]
            place = self.folder / "stores" / f"{count}-of-{self.size.songs}x{self.size.seconds:g}s"
            with Bar("prepare", "files") as bar:
                prepare(tracks, place, progress=lambda at: bar(at.done, at.files))
            self._stores[count] = Store.open(place)
        return self._stores[count]

    @cached_property
    def _songs(self) -> list[Path]:
        folder = self.folder / "songs" / f"{self.size.songs}x{self.size.seconds:g}s"
        return [path for path, _ in compose(folder, self.size.songs, seconds=self.size.seconds, seed=0)]


def _steps_done(run: Path) -> int:
    found = checkpoints(run)
    return open_checkpoint(found[-1]).step if found else 0


def _size_of(model: nn.Module) -> int:
    """Count the parameters that are used after training: all but those of heads such as the projector."""
    used = [part for name, part in model.named_children() if name in ("tokenizers", "encoder")]
    return sum(weights.numel() for part in used for weights in part.parameters())


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 0.0


def console_teller() -> Callable[[str], None]:
    """Return a function that tells a line on the terminal's error stream."""
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    return console.print
