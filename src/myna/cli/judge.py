"""What a model is worth: tasks, evaluate, reproduce, demo."""

from collections import Counter
from pathlib import Path
from typing import Literal

from cyclopts import App
from rich.console import Console

from myna.about import failures
from myna.board import Sheet, choices_sheet, results_sheet
from myna.cli.base import EXIT_SOME_FAILED, EXIT_USER, Out, app, err, extra, some_failed
from myna.device import pick_probe_device
from myna.errors import ConfigError
from myna.grid import Head, Protocol
from myna.huggingface import Pooling
from myna.patch import Kind
from myna.peer import open_peer
from myna.progress import Stages
from myna.task import BENCHMARKS, Own, Report, check, load, unpack
from myna.task.base import Answer

tasks = App(name="tasks", help="List the benchmarks, what to download for each, and check or unpack it.")
app.command(tasks)


@tasks.default
def list_tasks() -> int:
    """List the benchmarks: what they hold, what to download, how large it is, where it goes."""
    for benchmark in BENCHMARKS.values():
        counts = ", ".join(f"{split.count} {part}" for part, split in benchmark.splits.items())
        print(f"{benchmark.name}\n  {benchmark.title}; {counts} {benchmark.unit}")
        for source in benchmark.sources:
            print(f"  {source.what} ({source.size})\n    from {source.url}\n    to   {source.place}")
    print("labels.csv\n  Your own: a table with `path`, labels and `split` (or --split 60/20/20 --group artist)")
    return 0


@tasks.command(name="check")
def check_task(
    name: str,
    /,
    *,
    data: Path | None = None,
    splits: Path | None = None,
    download: bool = False,
    split: str | None = None,
    group: str | None = None,
    kind: Answer | None = None,
    columns: str | None = None,
    seed: int = 0,
) -> int:
    """Verify everything before any work: counts, ids, and the beginning of every file.

    Parameters
    ----------
    name
        magnatagatune, gtzan, giantsteps, emomusic, or a table of your own (.csv).
    data
        The folder that holds the benchmark, unpacked.
    splits
        A folder with GTZAN's split lists, if they are elsewhere.
    download
        Fetch GTZAN's split lists into the folder first; nothing else ever uses the network.
    split
        Of your own table: shares of train, valid and test, as in 60/20/20, if it has no column `split`.
    group
        Of your own table: the column, such as the artist, whose values must not cross splits.
    kind
        Of your own table: what the labels are; guessed unless given.
    columns
        Of your own table: the columns with labels, parted by commas; guessed unless given.
    seed
        Of your own table: another seed for --split.
    """
    own = Own(split, group, kind, _listed(columns), seed) if name.endswith(".csv") else None
    report = check(name, data, splits=splits, download=download, own=own)
    _print_report(report)
    return EXIT_USER if report.wrong else EXIT_SOME_FAILED if report.problems else 0


@tasks.command(name="unpack")
def unpack_task(name: str, /, *, data: Path) -> int:
    """Unpack a benchmark's archives, each into a folder beside it.

    Parameters
    ----------
    name
        magnatagatune, gtzan, giantsteps or emomusic.
    data
        The folder that holds the archives.
    """
    for folder, files in unpack(name, data).items():
        err.print(f"{folder}: {files} files")
    return 0


@app.command
def evaluate(
    models: list[str],
    /,
    *,
    task: list[str],
    out: Out,
    data: list[Path] | None = None,
    protocol: Protocol = "jukemir",
    head: Head = "grid",
    seeds: int = 1,
    allow_missing: bool = False,
    splits: Path | None = None,
    split: str | None = None,
    group: str | None = None,
    kind: Answer | None = None,
    columns: str | None = None,
    seed: int = 0,
    patches: Kind | None = None,
    window_samples: int | None = None,
    layer: str = "last",
    pooling: Pooling = "mean",
    trust_remote_code: bool = False,
    quoted: bool = True,
    style: Literal["auto", "plain", "csv", "markdown"] = "auto",
    device: str | None = None,
    batch: int | None = None,
    workers: int | None = None,
) -> int:
    """Measure models on benchmarks, and print the table: one row a model, the paper's own numbers beside it.

    Embeddings are computed once and kept in RESULT; what is finished is not computed again, and what was stopped goes
    on. Probes are trained on train, chosen on valid and scored once on test.

    Parameters
    ----------
    models
        Run or model folders; mel-statistics, mfcc, chroma; untrained:RECIPE; hf:ID of a model of the Hugging Face
        Hub; FILE.parquet or npy:FOLDER with vectors that exist.
    task
        magnatagatune, gtzan, giantsteps, emomusic, or a table of your own (.csv); may be given several times.
    out
        The folder of results: a JSON file for each model and task, and the embeddings.
    data
        The folder of a benchmark: one for each --task that is no table, in the same order.
    protocol
        jukemir, as the paper names it; windows: probes on single windows; marble: one probe, MARBLE's rule.
    head
        grid: the 216 configurations; quick: three of them; mlp-wide: the two wide heads of key detection.
    seeds
        Probe seeds: mean and interval over so many searches.
    allow_missing
        Go on without files that are missing or damaged; every result tells which, for ever.
    splits
        A folder with GTZAN's split lists, if they are elsewhere.
    split
        Of your own table: shares of train, valid and test, as in 60/20/20, if it has no column `split`.
    group
        Of your own table: the column, such as the artist, whose values must not cross splits.
    kind
        Of your own table: what the labels are; guessed unless given.
    columns
        Of your own table: the columns with labels, parted by commas; guessed unless given.
    seed
        Of your own table: another seed for --split.
    patches
        Of a hybrid, only this half; by default each half and both, chosen on valid.
    window_samples
        Length of a window at the model's rate; by default the model's own.
    layer
        Of a Hub model: the hidden state, from 0; last; or all, chosen on valid.
    pooling
        Of a Hub model: how its tokens become one vector.
    trust_remote_code
        Let a Hub model run Python code from its repository.
    quoted
        Show the paper's rows.
    style
        auto: a table on a terminal, else aligned lines.
    device
        cuda, mps or cpu; the best there is by default. With mps, probes are trained on the CPU: scores need float64.
    batch
        Windows embedded at once.
    workers
        Threads that decode.
    """
    module = extra("evaluate")
    own = Own(split, group, kind, _listed(columns), seed) if split or group or kind or columns or seed else None
    if splits and "gtzan" not in task:
        raise ConfigError("--splits names a folder with GTZAN's lists: leave it out, or evaluate on --task gtzan.")
    tables = [name for name in task if name.endswith(".csv")]
    loaded = [
        load(
            name,
            folder,
            allow_missing=allow_missing,
            splits=splits if name == "gtzan" else None,
            own=own if name in tables or not tables else None,
        )
        for name, folder in _pairs(task, data or [])
    ]
    for one in loaded:
        for note in one.notes:
            err.print(note)
    plan = module.Plan(
        protocol=protocol,
        grid=module.HEADS[head],
        seeds=seeds,
        device=str(pick_probe_device(device)),
        allow_missing=allow_missing,
    )
    options = {"layer": layer, "pooling": pooling, "trust_remote_code": trust_remote_code, "device": device}
    options |= {"patches": patches, "window_samples": window_samples, "batch": batch}
    peers = [open_peer(name, **options) for name in models]  # all of them first: a misspelt one costs no work
    records = []
    for peer in peers:
        for one in loaded:
            with Stages(f"{peer.name} on {one.name}") as stages:
                told = module.Told(stages.embedded, stages.probed)
                records.append(module.evaluate(peer, one, out, plan, workers=workers, told=told))
    _print_sheet(results_sheet(records, quoted=quoted), style)
    _print_sheet(choices_sheet(records), style)
    err.print(f"{out} holds each result with everything needed to repeat it.")
    return EXIT_SOME_FAILED if any(r["task"]["missing"] or r["task"]["unusable"] for r in records) else 0


@app.command
def reproduce(
    item: str,
    /,
    *,
    out: Out,
    size: Literal["full", "small", "smoke"] = "full",
    small: bool = False,
    store: Path | None = None,
    task: list[str] | None = None,
    data: list[Path] | None = None,
    device: str | None = None,
) -> int:
    """Repeat a table or figure of the paper, or a part of the study of key. What is done already is not done again.

    Parameters
    ----------
    item
        table1, table2, figure4, figure5, appendix-b, or key-examples, key-songs, key-batch, key-mask, key-amplitude,
        key-distance.
    out
        The folder for its runs, table and figure; items in one folder share runs.
    size
        full trains as the paper does; small takes composed songs and half an hour; smoke only shows that it runs.
    small
        The same as --size small.
    store
        The store to train on, of AudioSet's music; needed at full size.
    task
        What the models are examined on, as in `evaluate`: benchmarks or tables of your own. Composed songs, unless
        given.
    data
        The folder of a benchmark: one for each --task that is no table, in the same order.
    device
        Where probes are trained: cuda or cpu (for mps too: scores need float64); the best there is by default.
    """
    module, exam = extra("reproduce", "demo"), None
    if task:
        loaded = [load(name, folder) for name, folder in _pairs(task, data or [])]
        exam = module.BenchmarkExam(loaded, out / "embeddings", device=str(pick_probe_device(device)))
    files = module.reproduce(item, out, size="small" if small else size, store=store, exam=exam)
    print(files[0].read_text(encoding="utf-8"))
    for file in files:
        err.print(f"{file}")
    return 0


@app.command
def demo(
    *,
    out: Out = Path("demo"),
    music: Path | None = None,
    size: Literal["full", "smoke"] = "full",
    seed: int = 0,
    **settings: str,
) -> int:
    """Do everything once, on music composed here, and show what was learned: a table and a page.

    Parameters
    ----------
    out
        The folder for everything that is made.
    music
        A folder of your own music, instead of composed songs.
    size
        full, or smoke: only to see that it runs.
    seed
        Decides the songs and the training.
    settings
        Any setting of `myna recipe tiny`.
    """
    page = extra("demo").demo(out, music=music, size=size, seed=seed, overrides=settings)
    print(page)
    return some_failed(len(failures(out / "store")), out / "store")


def _print_report(report: Report) -> None:
    """Print splits, counts and unusable files; whatever else is to be said goes to stderr."""
    for part in report.parts:
        verdict = {True: "as published", False: f"WRONG, {part.wanted} were wanted", None: "your own"}[part.right]
        if part.right is False and part.count == part.wanted:
            verdict = "WRONG, other ids"
        print(f"{part.part:<6}{part.count:>7} {report.unit}  {part.sha256}  {verdict}")
    print(f"{report.items} items; {report.decoded} files begin as sound ({report.wall_s:.1f} s)")
    for note in report.notes:
        err.print(note)
    for problem in report.problems:
        print(f"{problem.id}\t{problem.path}\t{problem.why}")
    for sentence in report.wrong:
        err.print(sentence)
    if report.problems:
        err.print(f"{len(report.problems)} files cannot be used.")


def _listed(columns: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in columns.split(",")) if columns else None


def _pairs(tasks: list[str], folders: list[Path]) -> list[tuple[str, Path | None]]:
    """Give each benchmark its folder, in order; tables of the user's own have their paths in themselves.

    Raises ConfigError for two tasks of one name, which would be one column of the table.
    """
    for name, times in Counter(Path(name).name for name in tasks).items():
        if times > 1:
            raise ConfigError(f"Two tasks are called {name}: rename one, or take them one at a time.")
    wanting = [name for name in tasks if not name.endswith(".csv")]
    if len(wanting) != len(folders):
        raise ConfigError(
            f"{len(folders)} --data and {len(wanting)} --task that are no tables were given: "
            "one folder each is wanted, in the same order."
        )
    rest = iter(folders)
    return [(name, None if name.endswith(".csv") else next(rest)) for name in tasks]


def _print_sheet(sheet: Sheet, style: Literal["auto", "plain", "csv", "markdown"]) -> None:
    console = Console(highlight=False)
    if style == "auto" and console.is_terminal:
        console.print(sheet.rich())
    else:
        print(sheet.text("plain" if style == "auto" else style), end="\n\n")
