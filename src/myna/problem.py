"""A task seen through one model: embeddings and labels of three splits, checked before anything is trained on them."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from myna.errors import ProbeError
from myna.key import KEYS
from myna.metric import check_truth
from myna.task.base import PARTS, Answer


@dataclass(frozen=True)
class Split:
    """The embeddings and labels of one part.

    `x` (row, dim) is float32; a row is an item, or, if `item` (row,) says which item it belongs to, a window of one.
    `y` is int64 (item,) for classes and keys, float32 (item, output) else. `group` (item,) names what is drawn together
    for an interval, such as the songs of an artist, and `song` (item,) the song that an item is a clip of, whose clips
    are answered together (keys); without them each item stands alone.
    """

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray | None = None
    item: np.ndarray | None = None
    song: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def songs(self) -> Int64[np.ndarray, " item"]:
        """Return the songs numbered from 0 on."""
        if self.song is None:
            return np.arange(len(self))
        return np.unique(self.song, return_inverse=True)[1].astype(np.int64)

    def pooled(self) -> "Split":
        """Return the split with each item's windows replaced by their mean."""
        if self.item is None:
            return self
        total = np.zeros((len(self), self.x.shape[1]))
        np.add.at(total, self.item, self.x)
        means = total / np.bincount(self.item, minlength=len(self))[:, None]
        return replace(self, x=means.astype(np.float32), item=None)


@dataclass(frozen=True)
class Problem:
    """A task with the embeddings of one model; checked on creation (ProbeError)."""

    name: str
    answer: Answer
    outputs: tuple[str, ...]
    train: Split
    valid: Split
    test: Split

    def __post_init__(self) -> None:
        if self.answer == "key" and self.outputs != KEYS:
            raise ProbeError(f"{self.name} names its keys {', '.join(self.outputs[:3])}, ...: give them as key.KEYS.")
        for part in PARTS:
            self._check(part, getattr(self, part))

    def _check(self, part: str, split: Split) -> None:
        where = f"The {part} split of {self.name}"
        if not len(split.y) or not len(split.x):
            raise ProbeError(f"{where} is empty: nothing can be learnt or measured.")
        rows = len(split) if split.item is None else len(split.item)
        if split.x.ndim != 2 or len(split.x) != rows:
            raise ProbeError(f"{where} has embeddings of shape {split.x.shape} for {rows} rows: give one row each.")
        if split.x.shape[1] != self.train.x.shape[1]:
            raise ProbeError(f"{where} has {split.x.shape[1]} values a row, train has {self.train.x.shape[1]}.")
        bad = int((~np.isfinite(split.x)).any(axis=1).sum())
        if bad:
            raise ProbeError(f"{where} has {bad} embeddings with NaN or infinite values: mend or drop these files.")
        if split.item is not None and set(np.unique(split.item)) != set(range(len(split))):
            raise ProbeError(f"{where} has items without a window, or windows of items beyond its {len(split)} labels.")
        for what, names in (("groups", split.group), ("songs", split.song)):
            if names is not None and len(names) != len(split):
                raise ProbeError(f"{where} has {len(names)} {what} for {len(split)} items: give one each.")
        self._check_labels(where, part, split)

    def _check_labels(self, where: str, part: str, split: Split) -> None:
        y = split.y
        if self.answer in ("single", "key"):
            if y.ndim != 1 or y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= len(self.outputs):
                raise ProbeError(f"{where} needs one whole number from 0 to {len(self.outputs) - 1} an item as label.")
            songs = split.songs
            if self.answer == "key" and len(np.unique(songs)) != len(np.unique(np.stack([songs, y]), axis=1).T):
                raise ProbeError(f"{where} has a song whose clips differ in their key: give each song one.")
            return
        if y.ndim != 2 or y.shape[1] != len(self.outputs) or not np.isfinite(y).all():
            raise ProbeError(
                f"{where} has labels of shape {y.shape}: {len(self.outputs)} finite numbers an item wanted."
            )
        if self.answer == "multi" and not np.isin(y, (0, 1)).all():
            raise ProbeError(f"{where} has tags other than 0 and 1.")
        if len(y) < 2:
            raise ProbeError(f"{where} has a single item: its metrics are undefined.")
        check_truth(self.answer, self.outputs, y, part)
