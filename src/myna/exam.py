"""What models are examined on when they are compared: vectors in, scores out, the same for every model.

The composed exam asks the four questions of `question` about songs that no model was trained on; the other one is the
paper's benchmarks, or any other tasks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32

from myna.audio import load
from myna.baseline import baselines
from myna.board import COLUMNS, average
from myna.cache import Vectors, digest_of, embed_task
from myna.checkpoint import model_hash
from myna.embedder import Myna
from myna.errors import TaskError
from myna.evaluate import Plan, complaint, problems
from myna.grid import GRID, ProbeConfig
from myna.metric import PRIMARY
from myna.peer import Peer
from myna.probe import search
from myna.progress import Bar
from myna.question import METRICS, QUESTIONS, ask
from myna.report import ScoreTable
from myna.songs import LABELS, Song, read_labels, song, write_corpus
from myna.task.base import Item, Task

Baseline = Literal["chroma", "mel statistics"]  # what learns nothing
AVERAGE = "average"
EXAM_SEED_OFFSET = 1_000_000  # so that no song of the exam is one of the training songs
TABLED = frozenset(task for task, _ in COLUMNS.values())  # tasks that have columns in Table 1
SPLITS = (("train", 0.5), ("validation", 0.25), ("test", 0.25))


class Exam(ABC):
    """Items with known answers, and how answers become scores (times 100). `key` tells exams apart."""

    key: str
    questions: tuple[str, ...]
    metrics: dict[str, str]
    classes: Sequence[str]  # of each item, for maps
    splits: Sequence[str]  # of each item

    @abstractmethod
    def vectors(self, model: Myna | Baseline) -> Float32[np.ndarray, "item dim"]:
        """Return a model's vector of each item."""

    @abstractmethod
    def scores(self, vectors: Float32[np.ndarray, "item dim"]) -> dict[str, float]:
        """Return the score of each question, and their mean as `average`."""


class ComposedExam(Exam):
    """Songs composed in a folder, asked for key, style, instruments and tempo with few labels."""

    questions = QUESTIONS
    metrics = METRICS

    def __init__(
        self,
        folder: str | Path,
        *,
        songs: int,
        labelled: int,
        seconds: float,
        draws: int,
        seed: int = 0,
        ask: Callable[..., ScoreTable] = ask,
    ) -> None:
        self.folder, self.labelled, self.draws, self.ask = Path(folder), labelled, draws, ask
        self.count, self.seconds, self.seed = songs, seconds, seed + EXAM_SEED_OFFSET
        self.key = f"composed {songs} songs of {seconds:g} s, {labelled} labelled, {draws} draws, seed {seed}"

    @cached_property
    def written(self) -> list[tuple[Path, Song]]:
        return compose(self.folder, self.count, seconds=self.seconds, seed=self.seed)

    @property
    def classes(self) -> list[str]:
        return [labels.style for _, labels in self.written]

    @property
    def splits(self) -> list[str]:
        ends = np.cumsum([round(share * self.count) for _, share in SPLITS[:-1]])
        return [SPLITS[int(np.searchsorted(ends, i, side="right"))][0] for i in range(self.count)]

    def vectors(self, model: Myna | Baseline) -> Float32[np.ndarray, "item dim"]:
        if isinstance(model, Myna):
            return model.encode([path for path, _ in self.written])
        fixed = baselines()[model.replace(" ", "-")]
        return np.concatenate([fixed.embed_windows(load(path).samples[None]) for path, _ in self.written])

    def scores(self, vectors: Float32[np.ndarray, "item dim"]) -> dict[str, float]:
        songs = [labels for _, labels in self.written]
        table = self.ask({"x": vectors}, songs, labelled=self.labelled, seeds=self.draws)
        found = {question: 100 * table.scores["x", question].mean for question in self.questions}
        return found | {AVERAGE: float(np.mean(list(found.values())))}


class BenchmarkExam(Exam):
    """Tasks by JukeMIR's protocol, as `evaluate` does it; a hybrid is taken with both halves side by side.

    `cache` is the folder where embeddings are kept. Raises TaskError for items that cannot be embedded.
    """

    def __init__(
        self, tasks: Sequence[Task], cache: str | Path, *, grid: Sequence[ProbeConfig] = GRID, device: str = "cpu"
    ) -> None:
        self.tasks, self.cache, self.plan = tuple(tasks), Path(cache), Plan(grid=tuple(grid), device=device)
        parts = [[item.id, item.part, item.label] for task in self.tasks for item in task.items]
        names = ", ".join(f"{task.name} {task.version}" for task in self.tasks)
        self.key = f"{names}, {len(self.plan.grid)} probes, items {digest_of(parts)}"

    @property
    def metrics(self) -> dict[str, str]:
        """Return the metric of each question: the columns of Table 1, or a task's name and its primary metric."""
        known = {name: metric for name, (task, metric) in COLUMNS.items() if task in {one.name for one in self.tasks}}
        return known | {task.name: PRIMARY[task.answer] for task in self.tasks if task.name not in TABLED}

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(self.metrics)

    @property
    def classes(self) -> list[str]:
        return [_class_of(task, item) for task in self.tasks for item in task.items]

    @property
    def splits(self) -> list[str]:
        told = {"valid": "validation"}
        return [told.get(item.part, item.part) for task in self.tasks for item in task.items]

    def vectors(self, model: Myna | Baseline) -> Float32[np.ndarray, "item dim"]:
        source = model if isinstance(model, Myna) else baselines()[model.replace(" ", "-")]
        if isinstance(model, Myna) and not model.hash:  # an untrained one
            model.hash = model_hash(model.model)
        peer = Peer(model if isinstance(model, str) else "myna", source)
        self.cache.mkdir(parents=True, exist_ok=True)
        found = [embed_task(peer, task, self.cache) for task in self.tasks]
        for task, vectors in zip(self.tasks, found, strict=True):
            if vectors.failed:
                raise TaskError(complaint(peer, task, vectors))
        each = zip(self.tasks, found, strict=True)
        return np.concatenate([vectors.of[item.id] for task, vectors in each for item in task.items])

    def scores(self, vectors: Float32[np.ndarray, "item dim"]) -> dict[str, float]:
        found, first = {}, 0
        for task in self.tasks:
            of = dict(
                zip([item.id for item in task.items], vectors[first : first + len(task.items), None], strict=True)
            )
            first += len(task.items)
            given = Vectors(of, failed={}, windowed=False, padded=0, reused=0)
            posed = problems(task, given, {"both": slice(0, vectors.shape[1])})["both"]
            test = search(posed, grid=self.plan.grid, device=self.plan.device, draws=2).test
            found |= {name: 100 * test[metric] for name, metric in self._columns(task).items()}
        complete = found.keys() >= COLUMNS.keys()
        return found | {
            AVERAGE: average(*(found[name] for name in COLUMNS)) if complete else float(np.mean([*found.values()]))
        }

    def _columns(self, task: Task) -> dict[str, str]:
        if task.name not in TABLED:
            return {task.name: PRIMARY[task.answer]}
        return {name: metric for name, (of, metric) in COLUMNS.items() if of == task.name}


def _class_of(task: Task, item: Item) -> str:
    return task.outputs[item.label] if isinstance(item.label, int) else task.name


def compose(folder: Path, count: int, *, seconds: float, seed: int) -> list[tuple[Path, Song]]:
    """Compose songs into a folder of their own, unless they are there; their labels are written last."""
    folder, songs = folder.absolute(), [song(seed, index, seconds=seconds) for index in range(count)]
    there = read_labels(folder / LABELS) if (folder / LABELS).is_file() else []
    files = [folder / row["path"] for row in there]
    if [row["title"] for row in there] == [one.title for one in songs] and all(file.is_file() for file in files):
        return list(zip(files, songs, strict=True))
    with Bar("compose", "songs") as bar:
        return write_corpus(folder, count, seed=seed, seconds=seconds, progress=bar)
