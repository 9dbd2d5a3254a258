"""A task of the user's own: a CSV file with one row a file, its label or labels, and its split or a rule for it.

Columns: `path` (relative to the CSV), the labels, and if wanted `split` (train, valid, test), `id`, `start_s` and
`length_s`. The labels are the column named with `columns`; else one named label, labels, tags or key; else every other
column that is no group, provided all of them are numbers or there is only one. Their kind is guessed from the values,
which `Task.notes` tells, or named:

- single: one class a row;
- multi: tags parted by | or ;, or several columns of 0 and 1;
- regression: one or several columns of numbers, scaled by mean and deviation of train and valid together;
- key: as `key.parse_key` reads them, in 24 classes.
"""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from myna.errors import ConfigError, TaskError
from myna.key import KEYS, TONICS, parse_key
from myna.task.base import PARTS, Answer, Item, Label, Part, Problem, Task
from myna.task.files import read_table, why_unusable

VERSION = 1
LABEL_COLUMNS = ("label", "labels", "tags", "key")
OWN_COLUMNS = frozenset(["path", "split", "id", "start_s", "length_s"])
# what people call the splits
SPLIT_NAMES: dict[str, Part] = {
    **dict.fromkeys(["train", "training"], "train"),
    **dict.fromkeys(["valid", "validation", "val", "dev"], "valid"),
    **dict.fromkeys(["test", "testing"], "test"),
}
Row = dict[str, str]


@dataclass(frozen=True)
class Kind:
    """How labels are understood: what kind of answer, in which columns."""

    answer: Answer
    columns: tuple[str, ...]


def read(
    table: Path,
    *,
    split: str | None = None,
    group: str | None = None,
    kind: Answer | None = None,
    columns: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[Task, tuple[Problem, ...]]:
    """Read a table of the user's own; return the task of the files that are there, and the others.

    `split` is a rule such as "60/20/20" for a table without a column `split`; rows with one value in the column `group`
    then stay together. Rows of one group, else of one file, are drawn together for a score's interval, and neither may
    cross splits; rows of one file are a song's clips. Raises TaskError for a table that makes no task, ConfigError for
    options that make no sense.
    """
    rows = read_table(table, ["path"], exact=True)
    rows = [{name: value.strip() for name, value in row.items()} for row in rows]
    _check_rows(table, rows, group)
    understood = guess_kind(table, rows, group=group, kind=kind, columns=columns)
    parts, notes = _split(table, rows, split, group, seed)
    outputs, labels, scaled = _labels(table, rows, understood, parts)
    _check_crossing(table, rows, parts, group)
    _check_parts(table, understood.answer, outputs, labels, parts)
    if understood.answer == "key":
        _check_songs(table, rows, labels)
    guessed = "as told" if kind else "guessed; --kind names another"
    notes = [
        f"{table.name} was read as {understood.answer} ({guessed}), {len(outputs)} outputs, from the column"
        f"{'s' * (len(understood.columns) > 1)} {', '.join(understood.columns)}.{scaled}",
        *notes,
    ]
    if understood.answer == "key" and (unseen := _unseen(outputs, labels, parts)):  # few songs do not fill 24 classes
        notes.append(f"No row in train has {', '.join(unseen)}: no probe can learn it.")
    items, problems = [], []
    for number, (row, part, label) in enumerate(zip(rows, parts, labels, strict=True), start=1):
        start, length = _stretch(table, number, row)
        name = row.get("id") or row["path"] + (f"@{start:g}" if start else "")
        path = table.parent / row["path"]
        why = why_unusable(path)
        if why:
            problems.append(Problem(name, path, why))
        else:
            together = _together(row, group)
            items.append(Item(name, path, part, label, together, start_s=start, length_s=length, song=_file(row)))
    names = Counter([item.id for item in items] + [problem.id for problem in problems])
    if twice := [name for name, times in names.items() if times > 1]:
        raise TaskError(f"{table} has {twice[0]!r} more than once: give each row an `id`, or one row a file.")
    items.sort(key=lambda item: item.id)
    return Task(table.name, VERSION, understood.answer, outputs, tuple(items), notes=tuple(notes)), tuple(problems)


def _check_rows(table: Path, rows: list[Row], group: str | None) -> None:
    if not rows:
        raise TaskError(f"{table} has no rows.")
    empty = next((number for number, row in enumerate(rows, start=1) if not row["path"]), None)
    if empty:
        raise TaskError(f"Row {empty} of {table} has an empty path: fill it in or drop it.")
    if group is not None and group not in rows[0]:
        raise ConfigError(f"{table} has no column {group!r} to group by; it has {', '.join(rows[0])}.")


def _file(row: Row) -> str:
    """Return the one name of a row's file, however it is spelt."""
    return os.path.normpath(row["path"])


def _together(row: Row, group: str | None) -> str:
    """Return what a row has in common with those that must not be parted from it: its group, else its file."""
    return (row[group].casefold() if group else "") or _file(row)


def _stretch(table: Path, number: int, row: Row) -> tuple[float, float | None]:
    """Return start and length of a row's stretch of the file."""
    try:
        start, length = float(row.get("start_s") or 0), float(row["length_s"]) if row.get("length_s") else None
    except ValueError:
        start, length = -1.0, None
    if not (0 <= start < float("inf") and (length is None or 0 < length < float("inf"))):
        raise TaskError(f"Row {number} of {table} has no sensible start_s and length_s: seconds from 0 on are wanted.")
    return start, length


# ------------------------------------------------------------------------------------------ kinds


def guess_kind(
    table: Path,
    rows: Sequence[Row],
    *,
    group: str | None = None,
    kind: Answer | None = None,
    columns: Sequence[str] | None = None,
) -> Kind:
    """Say which columns hold labels and what kind they are, as far as it was not named."""
    chosen = tuple(columns) if columns else _label_columns(table, rows, group)
    lacking = [name for name in chosen if name not in rows[0]]
    if lacking:
        raise ConfigError(f"{table} has no column {', '.join(lacking)}; it has {', '.join(rows[0])}.")
    kind = kind or _guess(chosen, rows)
    if kind in ("single", "key") and len(chosen) > 1:
        raise ConfigError(f"{kind} wants one column of labels, and {table} has {', '.join(chosen)}: name the one.")
    return Kind(kind, chosen)


def _label_columns(table: Path, rows: Sequence[Row], group: str | None) -> tuple[str, ...]:
    named = [name for name in rows[0] if name.lower() in LABEL_COLUMNS]
    others = [name for name in rows[0] if name not in OWN_COLUMNS and name != group]
    if len(named) == 1:
        return (named[0],)
    numeric = [name for name in others if _are_numbers(row[name] for row in rows)]
    if not named and others and (len(others) == 1 or numeric == others):
        return tuple(others)
    raise TaskError(
        f"Which columns of {table} are the labels is not clear: it has {', '.join(rows[0])}. Call one `label`, or name "
        "them with --columns."
    )


def _guess(columns: Sequence[str], rows: Sequence[Row]) -> Answer:
    values = [row[name] for name in columns for row in rows]
    name = columns[0].lower()
    if _are_numbers(values):
        if len(columns) > 1 and set(map(float, values)) <= {0.0, 1.0}:
            return "multi"
        whole = all(float(value).is_integer() for value in values)
        return "single" if whole and name in ("label", "labels") and len(columns) == 1 else "regression"
    if name == "tags" or any(mark in value for value in values for mark in "|;") or len(columns) > 1:
        return "multi"
    bare = all(value.title() in TONICS for value in values)  # classes A, B and C are no keys
    return "key" if name == "key" or (not bare and all(map(_is_key, values))) else "single"


def _are_numbers(values) -> bool:
    try:
        return bool(np.isfinite([float(value) for value in values]).all())
    except ValueError:
        return False


def _is_key(value: str) -> bool:
    try:
        return parse_key(value) >= 0
    except ConfigError:
        return False


# ----------------------------------------------------------------------------------------- labels


def _labels(table: Path, rows: list[Row], kind: Kind, parts: list[Part]) -> tuple[tuple[str, ...], list[Label], str]:
    """Return outputs, labels, and a sentence on their scale."""
    if kind.answer == "key":
        return KEYS, [_key(table, number, row[kind.columns[0]]) for number, row in enumerate(rows, start=1)], ""
    if kind.answer == "single":
        values = [row[kind.columns[0]] for row in rows]
        if "" in values:
            raise TaskError(f"Row {values.index('') + 1} of {table} has no label: fill it in or drop it.")
        classes = tuple(sorted(set(values)))
        return classes, [classes.index(value) for value in values], ""
    if kind.answer == "multi" and len(kind.columns) == 1:
        tags = [{tag.strip() for tag in re.split(r"[|;]", row[kind.columns[0]])} - {""} for row in rows]
        outputs = tuple(sorted(set().union(*tags)))
        return outputs, [tuple(float(tag in of) for tag in outputs) for of in tags], ""
    numbers = np.array([[_number(table, i, row, name) for name in kind.columns] for i, row in enumerate(rows, start=1)])
    if kind.answer == "multi":
        if not np.isin(numbers, (0, 1)).all():
            raise TaskError(f"Columns of tags hold 0 or 1, and those of {table} hold other numbers: is it regression?")
        return kind.columns, [tuple(row) for row in numbers.tolist()], ""
    development = numbers[[part != "test" for part in parts]]
    mean, deviation = development.mean(axis=0), development.std(axis=0)
    if not deviation.all():
        raise TaskError(
            f"{kind.columns[int(np.argmin(deviation))]} of {table} is the same in every row of train and valid."
        )
    told = ", ".join(f"{n} {m:.4g} ± {d:.4g}" for n, m, d in zip(kind.columns, mean, deviation, strict=True))
    scaled = ((numbers - mean) / deviation).tolist()
    return kind.columns, [tuple(row) for row in scaled], f" It is scaled by train and valid: {told}."


def _key(table: Path, number: int, text: str) -> int:
    try:
        return parse_key(text)
    except ConfigError as error:
        raise TaskError(f"Row {number} of {table}: {error}") from error


def _number(table: Path, number: int, row: Row, column: str) -> float:
    if not _are_numbers([row[column]]):
        raise TaskError(f"Row {number} of {table} has {row[column]!r} as {column}: a number was wanted.")
    return float(row[column])


# ----------------------------------------------------------------------------------------- splits


def _split(
    table: Path, rows: list[Row], rule: str | None, group: str | None, seed: int
) -> tuple[list[Part], list[str]]:
    """Return the split of each row and what the user should know of it."""
    if "split" in rows[0]:
        if rule is not None:
            raise ConfigError(f"{table} has a column `split`, and --split {rule} was given too: leave one out.")
        unknown = next((row["split"] for row in rows if row["split"].lower() not in SPLIT_NAMES), None)
        if unknown is not None:
            raise TaskError(f"{table} has the split {unknown!r}: train, valid or test was wanted.")
        parts, notes = [SPLIT_NAMES[row["split"].lower()] for row in rows], []
    elif rule is None:
        raise ConfigError(f"{table} has no column `split`: add one, or give a rule as in --split 60/20/20.")
    else:
        parts = split_groups([_together(row, group) for row in rows], rule, seed)
        alone = sum(not row[group] for row in rows) if group else 0
        by = (
            f"by {group}"
            if group
            else "by path; --group names a column, such as the artist, that must not cross splits"
        )
        counts = ", ".join(f"{parts.count(part)} {part}" for part in PARTS)
        notes = [f"Split {rule} {by}: {counts}." + (f" {alone} rows have no {group} and stand alone." if alone else "")]
    return parts, notes


def _check_crossing(table: Path, rows: list[Row], parts: list[Part], group: str | None) -> None:
    """Raise TaskError for a file, however it is spelt, or a group that is in more than one split."""
    names = {group: [row[group].casefold() for row in rows]} if group else {}
    names["path"] = [os.path.abspath(table.parent / row["path"]) for row in rows]
    for column, of in names.items():
        places = defaultdict(set)
        for name, part in zip(of, parts, strict=True):
            places[name].add(part)
        crossing = [row for row, name in zip(rows, of, strict=True) if name and len(places[name]) > 1]
        if crossing:
            raise TaskError(
                f"{table} has the {column} {crossing[0][column]} in more than one split: put all of its rows into one."
            )


def parse_rule(rule: str) -> tuple[float, float, float]:
    """Read shares as in "60/20/20". Raises ConfigError."""
    shares = rule.split("/")
    if len(shares) != 3 or not _are_numbers(shares) or min(map(float, shares)) <= 0:
        raise ConfigError(f"The split {rule!r} was given: shares of train, valid and test as in 60/20/20 were wanted.")
    train, valid, test = map(float, shares)
    whole = train + valid + test
    return train / whole, valid / whole, test / whole


def split_groups(groups: Sequence[str], rule: str, seed: int = 0) -> list[Part]:
    """Return a split for each row: a function of its group and the seed alone, so that a group is never parted.

    Shares are met on average over groups, not exactly; adding rows moves no other row.
    """
    train, valid, _ = parse_rule(rule)
    parts: list[Part] = []
    for group in groups:
        place = int(hashlib.sha1(f"{seed}/{group.strip().casefold()}".encode()).hexdigest(), 16) / 2**160
        parts.append("train" if place < train else "valid" if place < train + valid else "test")
    return parts


def _check_parts(
    table: Path, answer: Answer, outputs: Sequence[str], labels: Sequence[Label], parts: Sequence[Part]
) -> None:
    """Raise TaskError for an empty split, a class that training never sees, a tag or number that cannot be scored."""
    if not outputs:
        raise TaskError(f"{table} has no tag in any row: fill the tags in, or name another column with --columns.")
    by_part: Mapping[Part, list[Label]] = {
        part: [label for label, of in zip(labels, parts, strict=True) if of == part] for part in PARTS
    }
    for part, held in by_part.items():
        if not held:
            raise TaskError(f"No row of {table} is in {part}: more rows or groups, or another --seed, are needed.")
        if answer in ("multi", "regression"):
            columns = np.array(held, np.float32).T  # as the probes see them
            same = [name for name, values in zip(outputs, columns, strict=True) if np.ptp(values) == 0]
            what, how = ("tags", "on none or on all") if answer == "multi" else ("columns", "the same in all")
            if same:
                raise TaskError(
                    f"{len(same)} {what} of {table}, such as {same[0]!r}, are {how} of the rows in {part}, so that no "
                    "score is defined: drop them, or split otherwise."
                )
    if answer in ("single", "key") and len(set(labels)) < 2:
        raise TaskError(f"{table} has one class only: there is nothing to tell apart.")
    if answer == "single" and (unseen := _unseen(outputs, labels, parts)):
        raise TaskError(f"{table} has no row in train for {', '.join(unseen[:5])}: a probe could not learn it.")


def _check_songs(table: Path, rows: list[Row], labels: Sequence[Label]) -> None:
    """Raise TaskError for a file of several keys: its rows are a song's clips, whose answers become one."""
    keys: dict[str, set[Label]] = defaultdict(set)
    for row, label in zip(rows, labels, strict=True):
        keys[_file(row)].add(label)
    if several := [file for file, of in keys.items() if len(of) > 1]:
        raise TaskError(f"{table} gives {several[0]} several keys: give a file one, or cut it into files.")


def _unseen(outputs: Sequence[str], labels: Sequence[Label], parts: Sequence[Part]) -> list[str]:
    """Name the classes that no row in train has."""
    known = {label for label, part in zip(labels, parts, strict=True) if part == "train"}
    return [outputs[label] for label in sorted(set(labels) - known)]
