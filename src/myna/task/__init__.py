"""Benchmarks: files as distributed become items with a split and a label. One module a benchmark.

`load` reads one and refuses whatever is not exactly the benchmark; `check` looks at every file and tells; `NAMES` lists
them. A path that ends in .csv is a task of the user's own, see `custom`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from myna.errors import ConfigError, TaskError
from myna.task.archive import plan
from myna.task.archive import unpack as unpack_archive
from myna.task.base import PARTS, Answer, Benchmark, Part, Problem, Reading, Task, check_counts, check_facts, hash_ids
from myna.task.custom import read as read_own
from myna.task.emomusic import BENCHMARK as EMOMUSIC
from myna.task.files import find_archives, for_each, why_undecodable
from myna.task.giantsteps import BENCHMARK as GIANTSTEPS
from myna.task.gtzan import BENCHMARK as GTZAN
from myna.task.magnatagatune import BENCHMARK as MAGNATAGATUNE

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark for benchmark in (MAGNATAGATUNE, GTZAN, GIANTSTEPS, EMOMUSIC)
}
NAMES = tuple(BENCHMARKS)
SHOWN = 5  # files named in an error


@dataclass(frozen=True)
class Own:
    """How a table of the user's own is to be read, as `custom.read` takes it."""

    split: str | None = None
    group: str | None = None
    kind: Answer | None = None
    columns: tuple[str, ...] | None = None
    seed: int = 0


@dataclass(frozen=True)
class PartReport:
    """A split as it was found: how many ids, their hash, whether these are the right ones (None: none are known)."""

    part: Part
    count: int
    wanted: int | None
    sha256: str
    right: bool | None


@dataclass(frozen=True)
class Report:
    """What `check` found: splits, sentences on what is not as published, files that cannot be used, notes."""

    name: str
    unit: str
    parts: tuple[PartReport, ...]
    items: int
    decoded: int
    wrong: tuple[str, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    wall_s: float

    @property
    def well(self) -> bool:
        return not self.wrong and not self.problems


def get(name: str) -> Benchmark:
    """Return a benchmark by its name. Raises ConfigError."""
    if name not in BENCHMARKS:
        raise ConfigError(f"There is no task {name!r}: there are {', '.join(NAMES)}, and tables of your own (.csv).")
    return BENCHMARKS[name]


def load(
    name: str,
    data: str | Path | None = None,
    *,
    allow_missing: bool = False,
    splits: str | Path | None = None,
    own: Own | None = None,
) -> Task:
    """Read a benchmark from the folder `data`, or a table of the user's own; items are sorted by id.

    `splits` is a folder with split lists (GTZAN). With `allow_missing` files that are not there or not sound are left
    out and named in `Task.missing`. Raises TaskError for anything that is not exactly the benchmark.
    """
    if name.endswith(".csv"):
        return _settle(*_own(name, own), None, allow_missing)
    if own is not None:
        raise ConfigError(f"{name} has splits and labels of its own: options for a .csv do not apply.")
    return load_benchmark(get(name), data, allow_missing=allow_missing, splits=splits)


def load_benchmark(
    benchmark: Benchmark, data: str | Path | None, *, allow_missing: bool = False, splits: str | Path | None = None
) -> Task:
    """Read a benchmark, as `load` does."""
    reading = _read(benchmark, data, splits)
    wrong = _wrong(benchmark, reading)
    if wrong:
        raise TaskError(" ".join(wrong))
    items = tuple(sorted(reading.items, key=lambda item: item.id))
    task = Task(benchmark.name, benchmark.version, benchmark.answer, reading.outputs, items)
    return _settle(task, reading.problems, benchmark, allow_missing)


def check(
    name: str,
    data: str | Path | None = None,
    *,
    splits: str | Path | None = None,
    download: bool = False,
    own: Own | None = None,
) -> Report:
    """Verify counts and ids, and decode the beginning of every file. `download` fetches split lists first.

    Raises TaskError where nothing can be read at all.
    """
    if name.endswith(".csv"):
        task, problems = _own(name, own)
        parts = {part: tuple(item.id for item in task.of(part)) for part in PARTS}
        return _report(name, "rows", task, parts, problems, (), None)
    return check_benchmark(get(name), data, splits=splits, download=download)


def check_benchmark(
    benchmark: Benchmark, data: str | Path | None, *, splits: str | Path | None = None, download: bool = False
) -> Report:
    """Verify a benchmark, as `check` does."""
    if download:
        if benchmark.fetch is None:
            raise ConfigError(f"{benchmark.name} has no split lists to download: its splits are a rule.")
        benchmark.fetch(_folder(benchmark, data))
    reading = _read(benchmark, data, splits)
    task = Task(benchmark.name, benchmark.version, benchmark.answer, reading.outputs, reading.items)
    wrong = _wrong(benchmark, reading)
    return _report(benchmark.name, benchmark.unit, task, reading.ids, reading.problems, wrong, benchmark)


def unpack(name: str, data: str | Path) -> dict[Path, int]:
    """Unpack the benchmark's archives that lie in a folder, each beside itself; return the folders and their files.

    What is unpacked already is left as it is.
    """
    benchmark, folder = get(name), Path(data)
    jobs = plan(find_archives(folder, benchmark.archives))
    if not jobs:
        raise TaskError(f"None of {', '.join(benchmark.archives)} is in {folder}: there is nothing to unpack.")
    return {into: unpack_archive(parts, into) for into, parts in jobs.items() if not into.exists()}


def _own(name: str, own: Own | None) -> tuple[Task, tuple[Problem, ...]]:
    table, own = Path(name), own or Own()
    if not table.is_file():
        raise TaskError(f"There is no table {table}: check the path.")
    return read_own(table, split=own.split, group=own.group, kind=own.kind, columns=own.columns, seed=own.seed)


def _folder(benchmark: Benchmark, data: str | Path | None) -> Path:
    if data is None:
        raise ConfigError(f"Where {benchmark.name} lies must be told: --data DIR, the folder that holds it.")
    return Path(data)


def _read(benchmark: Benchmark, data: str | Path | None, splits: str | Path | None) -> Reading:
    if splits is not None and benchmark.fetch is None:
        raise ConfigError(f"{benchmark.name}'s splits are a rule: it takes no lists.")
    folder = _folder(benchmark, data)
    return benchmark.read(folder) if splits is None else benchmark.read(folder, Path(splits))


def _wrong(benchmark: Benchmark, reading: Reading) -> tuple[str, ...]:
    return (
        *check_counts(benchmark.name, reading.ids, benchmark.splits),
        *check_facts(benchmark.name, reading.facts, benchmark.facts),
    )


def _settle(task: Task, problems: Sequence[Problem], benchmark: Benchmark | None, allow_missing: bool) -> Task:
    if problems and not allow_missing:
        raise TaskError(complaint(task.name, problems, len(task.items), benchmark))
    return replace(task, missing=tuple(sorted(problem.id for problem in problems)))


def complaint(name: str, problems: Sequence[Problem], usable: int, benchmark: Benchmark | None = None) -> str:
    """Say in one message which files cannot be used and what to do."""
    shown = "; ".join(f"{problem.id} ({problem.path}: {problem.why})" for problem in problems[:SHOWN])
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    known = benchmark.known if benchmark else {}
    advice = "".join(f" {problem.id}: {known[problem.id]}." for problem in problems if problem.id in known)
    return (
        f"{name}: {len(problems)} files cannot be used, {usable} items can: {shown}{more}.{advice} Get them again, "
        "or go on without them with --allow-missing, which every result will tell."
    )


def _report(
    name: str,
    unit: str,
    task: Task,
    ids: dict[Part, tuple[str, ...]],
    problems: Sequence[Problem],
    wrong: Sequence[str],
    benchmark: Benchmark | None,
) -> Report:
    """Decode the beginning of every file and put everything together."""
    started = time.monotonic()
    ids_of = {item.path: item.song or item.id for item in task.items}
    reasons = for_each(why_undecodable, ids_of)
    broken = [Problem(ids_of[path], path, why) for path, why in zip(ids_of, reasons, strict=True) if why is not None]
    parts = []
    for part in PARTS:
        split = benchmark.splits[part] if benchmark else None
        found = hash_ids(ids[part])
        right = None if split is None else (len(ids[part]), found) == (split.count, split.sha256)
        parts.append(PartReport(part, len(ids[part]), split.count if split else None, found, right))
    every = tuple(sorted([*problems, *broken], key=lambda problem: problem.id))
    return Report(
        name, unit, tuple(parts), len(task.items), len(ids_of) - len(broken), tuple(wrong), every, task.notes,
        time.monotonic() - started,
    )  # fmt: skip
