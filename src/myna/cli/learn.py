"""From music to a trained model: prepare, pretrain, recipe, reconstruct."""

from pathlib import Path
from typing import Literal

from rich.table import Table

from myna import recipe as recipes
from myna.audioset import find_segments
from myna.cli.base import EXIT_STOPPED, Out, app, err, some_failed
from myna.device import pick_device
from myna.disk import write_bytes
from myna.errors import ConfigError
from myna.hub import open_model
from myna.plan import Plan
from myna.plot import tiles
from myna.prepare import prepare as prepare_store
from myna.progress import Bar, clock
from myna.rank import join, local_device
from myna.reconstruction import reconstruct as filled_in
from myna.run import Settings, in_words, length_of, read_run
from myna.store import Store
from myna.track import Track, find_tracks
from myna.train import STAGES_FILE, TRACE_FILE, Trainer


@app.command
def prepare(
    paths: list[str],
    /,
    *,
    out: Out,
    shard: str = "0/1",
    workers: int | None = None,
    dtype: Literal["float16", "uint8"] = "float16",
    audioset_csv: list[Path] | None = None,
    ontology: Path | None = None,
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
    audioset_csv
        A list of AudioSet's segments: of the files, only its music, found by the video's id, is cut out and prepared.
    ontology
        AudioSet's ontology.json: what is labelled with a class below music is music, too.
    """
    tracks = _music_of_audioset(audioset_csv, paths, ontology) if audioset_csv or ontology else find_tracks(paths)
    with Bar("prepare", "files") as bar:
        summary = prepare_store(
            tracks,
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
    return some_failed(summary.failed, out)


@app.command
def pretrain(
    store: Path,
    /,
    *,
    out: Out,
    recipe: str | None = None,
    config: Path | None = None,
    resume: bool = False,
    init_from: str | None = None,
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
        base, vertical, hybrid, mae (the paper's, at full size; base unless given), 85m, 300m or tiny.
    config
        A YAML file of settings, laid over the recipe.
    resume
        Go on with the run in the folder, bit for bit.
    init_from
        Begin a new run with the weights of a run, a model, a file of the original release or a Hub id.
    device
        cuda, mps or cpu; the best there is by default.
    profile
        Steps to profile, after the first few: writes a trace and a table of stages into the run's folder.
    settings
        Any setting of `myna recipe NAME`, laid over recipe and config.
    """
    if profile < 0:
        raise ConfigError(f"{profile} steps were to be profiled; 0 or more can be.")
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
    if trainer.new_projector:
        err.print(f"{init_from} has no projector: a new one was drawn from seed {trainer.settings.train.seed}.")
    if profile and (out / STAGES_FILE).is_file():  # a run that ends sooner has none
        err.print(f"{out / TRACE_FILE} can be opened in Perfetto or chrome://tracing.")
        print((out / STAGES_FILE).read_text(encoding="utf-8"), end="")
    if stopped is not None:
        err.print(
            f"Stopped at step {trainer.step}, which is saved. Go on with: myna pretrain {store} -o {out} --resume"
        )
        return EXIT_STOPPED
    held = f"{trainer.step} steps"
    if trainer.step > trainer.steps:
        held += f" ({trainer.steps} asked for: nothing to do)"
    err.print(f"{out} holds the model after {held}. Use it: myna embed MUSIC -m {out} -o LIBRARY.parquet")
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
def reconstruct(
    model: str,
    store: Path,
    /,
    *,
    out: Out,
    count: int = 4,
    mask_ratio: float | None = None,
    seed: int = 0,
) -> int:
    """Draw what a masked auto-encoder makes of masked crops: from left to right the crop, what was seen, what was made.

    Parameters
    ----------
    model
        A run or model folder of the recipe mae.
    store
        The store to take the crops from.
    out
        The picture to write, a PNG.
    count
        Crops, one a row.
    mask_ratio
        Share of the patches that is hidden; by default as in the training.
    seed
        Decides crops and masks.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder: name the picture that is to be written, such as crops.png.")
    found = open_model(model)
    view = found.about.get("settings", {}).get("view", {"mask_ratio": 0.75})
    settings = recipes.override(Settings(view=view), {} if mask_ratio is None else {"mask_ratio": mask_ratio})
    if count < 1:
        raise ConfigError(f"{count} crops were asked for; at least 1 can be drawn.")
    examples = filled_in(found.model(), Store.open(store), view=settings.view, count=count, seed=seed)
    rows = [(example.original, example.visible, example.reconstruction) for example in examples]
    write_bytes(out, tiles(rows))
    print(out)
    return 0


def _music_of_audioset(lists: list[Path] | None, folders: list[str], ontology: Path | None) -> list[Track]:
    if not lists:
        raise ConfigError("An ontology was given without a list of segments: name one with --audioset-csv.")
    found = find_segments(lists, folders, ontology=ontology)
    err.print(f"AudioSet: {len(found.tracks)} segments of music have a file, {found.missing} have none")
    return found.tracks


def _shard(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise ConfigError(f"The shard {text!r} was given; i/N was wanted, from 0/N to (N-1)/N.")
    return int(part), int(parts)


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
            bar(int(row["step"]), trainer.steps, f"{in_words(row)}, gradient {row['grad_norm']:.2f}, {speed}")

        return trainer.train(on_log=tell, profile=profile)


def _print_plan(plan: Plan, done: int) -> None:
    tokens = ", ".join(f"{seen} of {whole} {kind}" for kind, (seen, whole) in plan.visible.items())
    left = max(0, plan.steps - done) * plan.seconds_per_step
    passes = ", in two passes" if plan.passes == 2 else ""
    rows = {
        "model": f"{plan.parameters / 1e6:.1f} M parameters",
        "visible tokens": tokens,
        "music": f"{plan.tracks} tracks, {plan.clips} clips, {plan.hours:.1f} h",
        "steps": f"{plan.steps}, {plan.steps_per_epoch} an epoch" + (f"; {done} are done" if done else ""),
        "device": f"{plan.device}, {plan.precision}, compile {plan.compile}"
        + (f", {plan.ranks} ranks" if plan.ranks > 1 else ""),
        "memory": f"about {plan.memory_bytes / 1e9:.1f} GB"
        + ("" if plan.micro_batch == "off" else f"; {plan.micro_batch} clips at a time{passes}"),
        "store": f"{plan.store_bytes / 1e9:.2f} GB, in {plan.store_on} memory",
        "time": f"about {clock(left)} ({plan.seconds_per_step:.2f} s a step)",
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    err.print(table)
