"""What every benchmark becomes: items, each a stretch of a file with a split and a label."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
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

    `label` is the number of a class (single, key), or one number for each output (multi: 0 or 1; regression). Items of
    one `group` (the songs of an artist) are in one split and are drawn together for a score's interval; those of one
    `song` are its clips, whose answers become one where keys are asked for (None: it has no other clips). `id`, `group`
    and `song` are the benchmark's own names.
    """

    id: str
    path: Path
    part: Part
    label: Label
    group: str
    start_s: float = 0.0
    length_s: float | None = None
    song: str | None = None


@dataclass(frozen=True)
class Task:
    """A benchmark, read and checked. `outputs` names the classes, tags or values, in the order of the labels.

    `missing` names the items (or songs) that were asked for and not found, which every result tells; `notes` are
    sentences that the user should see, such as how the columns of a table of their own were understood.
    """

    name: str
    version: int
    answer: Answer
    outputs: tuple[str, ...]
    items: tuple[Item, ...]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, part: Part) -> list[Item]:
        """Return the items of one split, in order."""
        return [item for item in self.items if item.part == part]

    def labels(self, part: Part) -> Shaped[np.ndarray, "item *output"]:
        """Return the labels of a split: int64 (item,) for classes, float32 (item, output) else."""
        kind = np.int64 if self.answer in ("single", "key") else np.float32
        return np.array([item.label for item in self.of(part)], kind)


@dataclass(frozen=True)
class Source:
    """Something to download: what it is, where it is published, how large it is, where it goes."""

    what: str
    url: str
    size: str
    place: str


@dataclass(frozen=True)
class Split:
    """What a split must hold: how many ids, and the SHA-256 of them, as `hash_ids` makes it."""

    count: int
    sha256: str


@dataclass(frozen=True)
class Problem:
    """A file that cannot be used, the id that asked for it, and why."""

    id: str
    path: Path
    why: str


@dataclass(frozen=True)
class Reading:
    """What a benchmark's files say. `ids` are all that are asked for, also where the audio is missing.

    `facts` are numbers that the whole benchmark is known to give.
    """

    ids: dict[Part, tuple[str, ...]]
    items: tuple[Item, ...]
    outputs: tuple[str, ...]
    problems: tuple[Problem, ...] = ()
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as published: what to download, what must come out, and how it is read.

    `read(data)` reads the folder `data`. A benchmark whose splits are no rule also takes a folder of split lists, as in
    `read(data, lists)`, and can `fetch(data)` them. `archives` are the patterns of the archives' names. `known` are ids
    that are damaged in some copies, with advice. Raise `version` when other items, labels or stretches come out.
    """

    name: str
    title: str
    version: int
    answer: Answer
    sources: tuple[Source, ...]
    splits: dict[Part, Split]
    read: Callable[..., Reading]
    fetch: Callable[[Path], list[Path]] | None = None
    archives: tuple[str, ...] = ()
    facts: dict[str, float] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    unit: str = "clips"


def hash_ids(ids: Iterable[str]) -> str:
    """Return the SHA-256 of the sorted ids, one a line, without a newline at the end."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def check_counts(name: str, ids: Mapping[Part, tuple[str, ...]], splits: Mapping[Part, Split]) -> list[str]:
    """Say in sentences which splits have a wrong count or other ids than wanted; none if all is well."""
    wrong = []
    for part, split in splits.items():
        found = ids.get(part, ())
        if len(found) != split.count:
            wrong.append(f"{name}: wrong count: the {part} split has {len(found)} ids, {split.count} were wanted.")
        elif (digest := hash_ids(found)) != split.sha256:
            wrong.append(
                f"{name}: other ids: the {part} split has {len(found)} ids, as wanted, but not the same ones: "
                f"their SHA-256 is {digest}, {split.sha256} was wanted."
            )
    return wrong


def check_facts(name: str, found: Mapping[str, float], wanted: Mapping[str, float]) -> list[str]:
    """Say in sentences which numbers that were found are further than 1e-6 from those of the whole benchmark."""
    return [
        f"{name}: wrong number: {what} is {found[what]:.10g}, {value:.10g} was wanted."
        for what, value in wanted.items()
        if what in found and not abs(found[what] - value) <= 1e-6
    ]
