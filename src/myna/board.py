"""Results become the table: a row a model, in the columns of the paper's Table 1, and a row for each choice made."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from myna.grid import GRID
from myna.quoted import AVERAGE, BENCHMARKS, TABLE_1

Record = dict[str, Any]
Style = Literal["plain", "csv", "markdown"]
QUOTED = "quoted from the paper"
# a column of Table 1 → the task and its metric
COLUMNS = dict(
    zip(
        BENCHMARKS,
        (
            ("magnatagatune", "roc_auc"),
            ("magnatagatune", "average_precision"),
            ("gtzan", "accuracy"),
            ("giantsteps", "weighted_score"),
            ("emomusic", "r2_arousal"),
            ("emomusic", "r2_valence"),
        ),
        strict=True,
    )
)
SHORT = {"learning_rate": "lr", "hidden_dropout": "hidden dropout"}


@dataclass(frozen=True)
class Sheet:
    """Rows of text under headings; `bold` and `dim` name rows or cells (row, column) by their numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    bold: frozenset[tuple[int, int]] = frozenset()
    dim: frozenset[int] = frozenset()

    def rich(self) -> Table:
        """Lay the sheet out for a terminal."""
        table = Table(title=self.title, caption="\n".join(self.notes), title_justify="left", caption_justify="left")
        for place, heading in enumerate(self.headings):
            table.add_column(Text(heading), justify="right" if place else "left", overflow="fold")
        for number, row in enumerate(self.rows):
            styles = ["bold" if (number, place) in self.bold else "" for place in range(len(row))]
            cells = [
                Text(cell, style="dim" if number in self.dim else style)
                for cell, style in zip(row, styles, strict=True)
            ]
            table.add_row(*cells)
        return table

    def text(self, style: Style = "plain") -> str:
        """Write the sheet as aligned lines, as CSV, or as a table of Markdown."""
        return _WRITERS[style](self)


def results_sheet(records: Sequence[Record], *, quoted: bool = True) -> Sheet:
    """Lay test scores out, times 100; with `quoted`, the paper's rows follow where it has the columns.

    The average stands where all four benchmarks have been run, as the paper forms it.
    """
    columns = _columns(records)
    benchmark = [name for name in columns if name in COLUMNS]
    complete = len(benchmark) == len(COLUMNS)
    names = [*columns, *([AVERAGE] if complete else [])]
    rows, dim = [], set()
    for model in dict.fromkeys(_label(record) for record in records):
        of = [record for record in records if _label(record) == model]
        rows.append((model, *_cells(of, columns, complete, lambda record: record["test"])))
        for half in dict.fromkeys(name for record in of for name in _halves(record)):
            dim.add(len(rows))
            rows.append((f"  {half}", *_cells(of, columns, complete, lambda record, name=half: _half(record, name))))
    best = _best(rows, dim, len(names))
    if quoted and benchmark:
        for row in TABLE_1:
            dim.add(len(rows))
            cells = (f"{row.scores[name]:.1f}" if name in row.scores else "" for name in names)
            rows.append((f"{row.name} ({QUOTED})", *cells))
    return Sheet("Test scores, ×100", ("model", *names), tuple(rows), _notes(records), best, frozenset(dim))


def choices_sheet(records: Sequence[Record]) -> Sheet:
    """Tell what valid has chosen for each model and task, and its score there."""
    rows = []
    for record in records:
        chosen = record["chosen"]
        metric = chosen["metric"]
        config = ", ".join(f"{SHORT.get(n, n)} {_setting(v)}" for n, v in chosen["config"].items() if v is not None)
        joined = f"; songs by {chosen['strategy']}" if chosen["strategy"] else ""
        score = f"{100 * chosen['valid'][metric]:.1f} {metric}"
        rows.append((_label(record), record["task"]["name"], chosen["representation"], score, config + joined))
    return Sheet("Chosen on valid", ("model", "task", "representation", "valid", "configuration"), tuple(rows))


def average(auc: float, ap: float, gtzan: float, giantsteps: float, arousal: float, valence: float) -> float:
    """Return the mean over the four benchmarks, the two numbers of one taken together first."""
    return ((auc + ap) / 2 + gtzan + giantsteps + (arousal + valence) / 2) / 4


def _columns(records: Sequence[Record]) -> list[str]:
    """Return the paper's columns that have been run, in its order, then those of the user's own tasks."""
    tasks = {record["task"]["name"] for record in records}
    found = [name for name, (task, _) in COLUMNS.items() if task in tasks]
    known = {task for task, _ in COLUMNS.values()}
    for record in records:
        if record["task"]["name"] not in known:  # of the user's own, the metric that chose; the files hold the others
            name = f"{record['task']['name']} {next(iter(record['test']))}"
            if name not in found:
                found.append(name)
    return found


def _cells(
    records: Sequence[Record], columns: Sequence[str], complete: bool, scores: Callable[[Record], Record]
) -> list[str]:
    found: dict[str, Record] = {}
    for record in records:
        task = record["task"]["name"]
        found |= {f"{task} {metric}": score for metric, score in scores(record).items()}
        found |= {
            column: scores(record)[metric]
            for column, (of, metric) in COLUMNS.items()
            if of == task and metric in scores(record)
        }
    cells = [_score(found[column]) if column in found else "" for column in columns]
    if complete:
        every = all(column in found for column in COLUMNS)
        cells.append(f"{100 * average(*(found[column]['mean'] for column in COLUMNS)):.1f}" if every else "")
    return cells


def _score(score: Record) -> str:
    mean, low, high = score["mean"], score.get("low"), score.get("high")
    if low is None or high is None:
        return f"{100 * mean:.1f}"
    return f"{100 * mean:.1f} ±{100 * max(high - mean, mean - low):.1f}"  # the wider side never promises too much


def _label(record: Record) -> str:
    """Name a model, and what probed it where that is not the paper's protocol with all of its grid."""
    protocol, probes = record["protocol"], len(record["grid"] or [])
    told = [] if protocol == "jukemir" else [protocol]
    told += [f"{probes} probes"] if probes not in (0, len(GRID)) else []
    return record["model"]["name"] + (f" [{', '.join(told)}]" if told else "")


def _halves(record: Record) -> list[str]:
    """Name the representations of a hybrid; of a model with more, the result's file tells them."""
    return list(record["alternatives"]) if 1 < len(record["alternatives"]) <= 3 else []


def _half(record: Record, name: str) -> Record:
    scores = record["alternatives"].get(name, {"test": {}})["test"]
    return {metric: {"mean": value} for metric, value in scores.items()}


def _best(rows: Sequence[tuple[str, ...]], dim: set[int], count: int) -> frozenset[tuple[int, int]]:
    """Name the best cells of each column, as printed: equal print is a tie."""
    found = set()
    for place in range(1, count + 1):
        numbers = {
            number: float(row[place].split()[0]) for number, row in enumerate(rows) if number not in dim and row[place]
        }
        found |= {(number, place) for number, value in numbers.items() if value == max(numbers.values())}
    return frozenset(found) if len(rows) - len(dim) > 1 else frozenset()


def _notes(records: Sequence[Record]) -> tuple[str, ...]:
    over = {score["over"] for record in records for score in record["test"].values()}
    notes = []
    if "test groups" in over:
        notes.append("±: 95 % interval over resampled test groups, one probe seed")
    if "seeds" in over:
        notes.append("±: Student's 95 % interval for the mean over probe seeds")
    for record in records:
        task = record["task"]
        gone = len(task["missing"]) + len(task["unusable"])
        if gone:
            notes.append(f"{_label(record)} on {task['name']}: {gone} items are missing, so this is not the benchmark")
    return tuple(notes)


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return "×".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _plain(sheet: Sheet) -> str:
    lines = [sheet.headings, *sheet.rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(sheet.headings))]

    def laid(line: tuple[str, ...]) -> str:
        others = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        return "  ".join([line[0].ljust(widths[0]), *others]).rstrip()

    return "\n".join([sheet.title, *map(laid, lines), *sheet.notes])


def _csv(sheet: Sheet) -> str:
    memory = io.StringIO()
    writer = csv.writer(memory, lineterminator="\n")
    writer.writerows([sheet.headings, *sheet.rows])
    return memory.getvalue().rstrip("\n")


def _markdown(sheet: Sheet) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.strip().replace("|", "\\|") for cell in cells) + " |"

    ruler = "|---|" + "---:|" * (len(sheet.headings) - 1)
    rows = [
        line([f"**{cell}**" if (number, place) in sheet.bold else cell for place, cell in enumerate(row)])
        for number, row in enumerate(sheet.rows)
    ]
    return "\n".join([line(sheet.headings), ruler, *rows, *(f"\n{note}" for note in sheet.notes)])


_WRITERS: dict[Style, Callable[[Sheet], str]] = {"plain": _plain, "csv": _csv, "markdown": _markdown}
