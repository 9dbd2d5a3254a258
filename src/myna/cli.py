"""The command line: one verb an arrow. Parse, call, print.

Data goes to stdout, progress and messages to stderr. Exit status: 0 well; 1 the user's error, in one sentence;
3 finished, but some files could not be used; 130 stopped, and can go on.
"""

import importlib
import json
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.table import Table

from myna import __version__, doctor
from myna import recipe as recipes
from myna.about import as_json, describe, failures
from myna.device import Precision, pick_device
from myna.embedder import Myna
from myna.errors import ConfigError, MynaError
from myna.library import embed_library
from myna.patch import Kind
from myna.plan import Plan
from myna.prepare import prepare as prepare_store
from myna.progress import Bar, clock
from myna.rank import join, local_device
from myna.run import length_of, read_run
from myna.store import Store
from myna.task import BENCHMARKS, Own, Report, check, unpack
from myna.task.base import Answer
from myna.track import find_tracks
from myna.train import STAGES_FILE, TRACE_FILE, Trainer

EXIT_USER, EXIT_SOME_FAILED, EXIT_STOPPED = 1, 3, 130

app = App(
    name="myna",
    help="Self-supervised music representations that anyone can train on one machine, and use.",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
Out = Annotated[Path, Parameter(name=["--out", "-o"])]


@app.command
def prepare(
    paths: list[str],
    /,
    *,
    out: Out,
    shard: str = "0/1",
    workers: int | None = None,
    dtype: Literal["float16", "uint8"] = "float16",
) -> int:
    """Turn music into a mel store: every spectrogram computed once.

    Running it again touches only what is new or changed; a run that was stopped goes on where it was.

    Parameters
    ----------
    paths
        Audio files, folders, or manifests (.csv or .parquet with a column `path`; other columns are kept).
    out
        The store to make or to bring up to date.
    shard
        Prepare only part i of N, as in 0/4, for many machines; the store is whole when all parts are there.
    workers
        Processes; all cores by default.
    dtype
        float16 keeps power within 0.2 %; uint8 takes half of the space and keeps it within 0.28 dB (6.6 %).
    """
    with Bar("prepare", "files") as bar:
        summary = prepare_store(
            find_tracks(paths),
            out,
            shard=_shard(shard),
            workers=workers,
            dtype=dtype,
            progress=lambda at: bar(
                at.done,
                at.files,
                f"{at.hours:.1f} h of music, {at.times_real_time:.0f}x real time, {at.failed} failed",
                left_s=at.left_s,
            ),
        )
    err.print(
        f"{out}: {summary.files} files, {summary.hours:.2f} h of music; {summary.new} new, {summary.reused} as they "
        f"were, {summary.failed} failed; {clock(summary.wall_s)}, {summary.times_real_time:.0f}x real time"
    )
    return _some_failed(summary.failed, out)


@app.command
def pretrain(
    store: Path,
    /,
    *,
    out: Out,
    recipe: str | None = None,
    config: Path | None = None,
    resume: bool = False,
    init_from: Path | None = None,
    device: str | None = None,
    profile: int = 0,
    **settings: str,
) -> int:
    """Train a model on a mel store. `myna recipe NAME` lists every setting; each is a flag, as in --batch 512.

    Parameters
    ----------
    store
        The store that `myna prepare` made.
    out
        The folder of the run.
    recipe
        base, vertical, hybrid (the paper's, at full size; base unless given) or tiny.
    config
        A YAML file of settings, laid over the recipe.
    resume
        Go on with the run in the folder, bit for bit.
    init_from
        Begin a new run with the weights of a run or model.
    device
        cuda, mps or cpu; the best there is by default.
    profile
        Steps to profile, after the first few: writes a trace and a table of stages into the run's folder.
    settings
        Any setting of `myna recipe NAME`, laid over recipe and config.
    """
    chosen = recipes.get(recipe or "base")
    if resume:
        chosen = read_run(out)["settings"] if recipe is None else length_of(read_run(out)["settings"], chosen)
    if config:
        chosen = recipes.override(chosen, recipes.read_yaml(config))
    chosen = recipes.override(chosen, settings)
    place = local_device(pick_device(device))
    with join(place) as world:
        trainer = Trainer(Store.open(store), out, chosen, resume=resume, init_from=init_from, device=place, world=world)
        stopped = _train(trainer, profile)
    if not world.is_main:
        return EXIT_STOPPED if stopped is not None else 0
    if trainer.gradient.why_not_compiled:
        err.print(f"The model was not compiled: {trainer.gradient.why_not_compiled}")
    if profile:
        err.print(f"{out / TRACE_FILE} can be opened in Perfetto or chrome://tracing.")
        print((out / STAGES_FILE).read_text(encoding="utf-8"), end="")
    if stopped is not None:
        err.print(
            f"Stopped at step {trainer.step}, which is saved. Go on with: myna pretrain {store} -o {out} --resume"
        )
        return EXIT_STOPPED
    err.print(f"{out} holds the model after {trainer.step} steps. Use it: myna embed MUSIC -m {out} -o LIBRARY.parquet")
    return 0


@app.command
def embed(
    paths: list[str],
    /,
    *,
    model: Annotated[str, Parameter(name=["--model", "-m"])],
    out: Out,
    patches: Kind | None = None,
    windows: bool = False,
    hop: float | None = None,
    window_samples: int | None = None,
    device: str | None = None,
    precision: Precision = "auto",
    batch: int | None = None,
    workers: int | None = None,
) -> int:
    """Turn music into vectors: one row a track in a Parquet file. Files that are unchanged are not embedded again.

    Parameters
    ----------
    paths
        Audio files, folders, or manifests.
    model
        A run folder or a model folder.
    out
        The Parquet file to make or to bring up to date.
    patches
        Of a hybrid, only this half; both side by side by default.
    windows
        One row a window, with its start, instead of one a track.
    hop
        Seconds from one window to the next; by default a window's length.
    window_samples
        Length of a window at 16 kHz; by default the segment that the model was trained on.
    device
        cuda, mps or cpu; the best there is by default.
    precision
        fp32, bf16, or auto: whichever is faster here.
    batch
        Windows embedded at once.
    workers
        Threads that decode.
    """
    tracks = find_tracks(paths)
    myna = Myna.from_pretrained(
        model, patches=patches, window_samples=window_samples, device=device, precision=precision, batch=batch
    )
    with Bar("embed", "tracks") as bar:
        summary = embed_library(
            myna,
            tracks,
            out,
            windows=windows,
            hop_s=hop,
            workers=workers,
            on_track=lambda s: bar(
                s.new + s.reused + len(s.failed), s.tracks, f"{s.decoded_s / 3600:.1f} h, {len(s.failed)} failed"
            ),
        )
    err.print(
        f"{out}: {summary.tracks} tracks of {myna.dim} numbers; {summary.new} new, {summary.reused} as they were, "
        f"{summary.padded} shorter than a window, {len(summary.failed)} failed"
        + (f"; {summary.others} others were in it and stay" if summary.others else "")
    )
    return _some_failed(len(summary.failed), out)


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
    page = _extra("demo").demo(out, music=music, size=size, seed=seed, overrides=settings)
    print(page)
    return _some_failed(len(failures(out / "store")), out / "store")


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
    own = (
        Own(split, group, kind, tuple(columns.split(",")) if columns else None, seed) if name.endswith(".csv") else None
    )
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


@app.command(name="recipe")
def show_recipe(name: str | None = None, /) -> int:
    """Print a recipe's settings as YAML that --config takes; without a name, list the recipes."""
    if name is None:
        for known, make in recipes.RECIPES.items():
            print(f"{known:<10}{(make.__doc__ or '').strip().splitlines()[0]}")
    else:
        print(recipes.to_yaml(recipes.get(name)), end="")
    return 0


@app.command
def info(path: Path, /, *, as_json_: Annotated[bool, Parameter(name="--json", negative="")] = False) -> int:
    """Say what a store, run, model or library is."""
    kind, facts = describe(path)
    if as_json_:
        print(json.dumps(as_json(kind, facts)))
    else:
        _print_facts({kind: str(path), **facts})
    return 0


@app.command
def errors(path: Path, /) -> int:
    """List the files that a store or a library could not use, with the reason: one a line, parted by a tab."""
    found = failures(path)
    for failed, reason in found:
        print(f"{failed}\t{reason}")
    if not found:
        err.print("No file failed.")
    return 0


@app.command(name="doctor")
def show_doctor() -> int:
    """Print versions, devices and codecs, and check the speed of this machine for three seconds."""
    _print_facts(doctor.examine())
    return 0


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill is a Ctrl-C
    try:
        sys.exit(app(arguments, exit_on_error=False, print_error=False) or 0)
    except (MynaError, CycloptsError) as error:
        _complain(str(error))
        sys.exit(EXIT_USER)
    except KeyboardInterrupt as stop:
        _complain(str(stop) or "Stopped. Run the same command again to go on.")
        sys.exit(EXIT_STOPPED)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()  # the reader, such as `head`, has seen enough
            return
        _complain(f"{error.filename or 'A file'} could not be read or written: {error.strerror or error}.")
        sys.exit(EXIT_USER)


def _complain(message: str) -> None:
    err.print(f"myna: {message}")


def _some_failed(count: int, out: Path) -> int:
    if count:
        err.print(f"{count} files could not be used; see why with: myna errors {out}")
    return EXIT_SOME_FAILED if count else 0


def _shard(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise ConfigError(f"The shard {text!r} was given; i/N was wanted, from 0/N to (N-1)/N.")
    return int(part), int(parts)


def _extra(name: str) -> Any:
    try:
        return importlib.import_module(f"myna.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"`myna {name}` needs {error.name}, which is not installed: pip install 'myna-music[{name}]'."
        ) from error


def _train(trainer: Trainer, profile: int) -> int | None:
    """Train with plan and progress, told by the first rank alone; return the signal that stopped it, or None."""
    plan = trainer.plan()
    if not trainer.world.is_main:
        return trainer.train(profile=profile)
    _print_plan(plan, trainer.step)
    with Bar("pretrain", "steps") as bar:
        bar(trainer.step, trainer.steps)

        def tell(row: dict[str, float]) -> None:
            peak = f" ({row['share_of_peak']:.0%} of peak)" if "share_of_peak" in row else ""
            speed = f"{row['clips_per_s']:,.0f} clips/s, {row['tflops']:.2f} TFLOP/s{peak}"
            learned = f"loss {row['loss']:.3f}, top-1 {row['top1']:.1%}, gradient {row['grad_norm']:.2f}"
            bar(int(row["step"]), trainer.steps, f"{learned}, {speed}")

        return trainer.train(on_log=tell, profile=profile)


def _print_facts(facts: dict[str, str]) -> None:
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


def _print_report(report: Report) -> None:
    """Print splits and counts to stdout, and whatever is not well to stderr."""
    for part in report.parts:
        verdict = {True: "as published", False: f"WRONG, {part.wanted} were wanted", None: "your own"}[part.right]
        if part.right is False and part.count == part.wanted:
            verdict = "WRONG, other ids"
        print(f"{part.part:<6}{part.count:>7} {report.unit}  {part.sha256}  {verdict}")
    print(f"{report.items} items; {report.decoded} files begin as sound ({report.wall_s:.1f} s)")
    for note in report.notes:
        err.print(note)
    for problem in report.problems:
        err.print(f"{problem.id}\t{problem.path}\t{problem.why}")
    for sentence in report.wrong:
        err.print(sentence)
    if report.problems:
        err.print(f"{len(report.problems)} files cannot be used.")


def _print_plan(plan: Plan, done: int) -> None:
    tokens = ", ".join(f"{seen} of {whole} {kind}" for kind, (seen, whole) in plan.visible.items())
    left = (plan.steps - done) * plan.seconds_per_step
    rows = {
        "model": f"{plan.parameters / 1e6:.1f} M parameters",
        "visible tokens": tokens,
        "music": f"{plan.tracks} tracks, {plan.clips} clips, {plan.hours:.1f} h",
        "steps": f"{plan.steps}, {plan.steps_per_epoch} an epoch" + (f"; {done} are done" if done else ""),
        "device": f"{plan.device}, {plan.precision}, compile {plan.compile}"
        + (f", {plan.ranks} ranks" if plan.ranks > 1 else ""),
        "memory": f"about {plan.memory_bytes / 1e9:.1f} GB"
        + ("" if plan.micro_batch == "off" else f"; {plan.micro_batch} clips at a time, in two passes"),
        "store": f"{plan.store_bytes / 1e9:.2f} GB, in {plan.store_on} memory",
        "time": f"about {clock(left)} ({plan.seconds_per_step:.2f} s a step)",
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    err.print(table)
