"""What models are examined on when they are compared: vectors in, scores out, the same for every model.

The composed exam asks the four questions of `question` about songs that no model was trained on.
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
from myna.embedder import Myna
from myna.progress import Bar
from myna.question import METRICS, QUESTIONS, ask
from myna.report import ScoreTable
from myna.songs import Song, song, write_corpus

Baseline = Literal["chroma", "mel statistics"]  # what learns nothing
AVERAGE = "average"
EXAM_SEED_OFFSET = 1_000_000  # so that no song of the exam is one of the training songs
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


def compose(folder: Path, count: int, *, seconds: float, seed: int) -> list[tuple[Path, Song]]:
    """Compose songs into a folder of their own, unless they are there; their labels are written last."""
    songs = [song(seed, index, seconds=seconds) for index in range(count)]
    if (folder / "labels.csv").is_file():
        files = {path.stem: path for path in folder.iterdir() if path.name != "labels.csv"}
        if all(f"{s.index:05d}" in files for s in songs):
            return [(files[f"{s.index:05d}"], s) for s in songs]
    with Bar("compose", "songs") as bar:
        return write_corpus(folder, count, seed=seed, seconds=seconds, progress=bar)
