"""What every benchmark becomes: items, each a stretch of a file with a split and a label."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Shaped

Answer = Literal["single", "multi", "regression", "key"]
Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")
Label = int | tuple[float, ...]


@dataclass(frozen=True)
class Item:
    """One example of a benchmark: a stretch of a file, from `start_s` on, `length_s` long (None: to the end).

    `label` is the number of a class (single, key), or one number for each output (multi: 0 or 1; regression). Items
    of one `group` (the clips of a song) are answered together; `id` and `group` are the benchmark's own names.
    """

    id: str
    path: Path
    part: Part
    label: Label
    group: str
    start_s: float = 0.0
    length_s: float | None = None


@dataclass(frozen=True)
class Task:
    """A benchmark, read and checked. `outputs` names the classes, tags or values, in the order of the labels.

    `missing` names the items that were asked for and not found, which every result tells.
    """

    name: str
    version: int
    answer: Answer
    outputs: tuple[str, ...]
    items: tuple[Item, ...]
    missing: tuple[str, ...] = ()

    def of(self, part: Part) -> list[Item]:
        """Return the items of one split, in order."""
        return [item for item in self.items if item.part == part]

    def labels(self, part: Part) -> Shaped[np.ndarray, "item *output"]:
        """Return the labels of a split: int64 (item,) for classes, float32 (item, output) else."""
        kind = np.int64 if self.answer in ("single", "key") else np.float32
        return np.array([item.label for item in self.of(part)], kind)
