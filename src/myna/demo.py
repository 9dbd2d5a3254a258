"""The whole arrow on songs that it composes itself, or on a folder of the user's: prepare, pretrain, embed, look.

With composed songs the labels are known, so what was learned can be measured on songs that training never saw.
"""

import json
import os
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from openTSNE import TSNE
from rich.console import Console

from myna import recipe
from myna.audio import load
from myna.baseline import baselines
from myna.board import results_sheet
from myna.checkpoint import model_hash
from myna.disk import write_text
from myna.embedder import Myna
from myna.errors import ConfigError
from myna.evaluate import Plan, Record, evaluate
from myna.exam import EXAM_SEED_OFFSET, compose
from myna.grid import QUICK
from myna.library import embed_library, embeddings_of, nearest, read_library
from myna.model import MynaModel
from myna.patch import patch_of
from myna.peer import Peer
from myna.prepare import Standing, prepare
from myna.progress import Bar, clock
from myna.question import METRICS, QUESTIONS, chance, tasks
from myna.report import (
    Clip,
    MaskedView,
    Neighbours,
    Report,
    Score,
    ScoreTable,
    encode_excerpt,
    verdict,
    write_page,
)
from myna.run import RUN_FILE, Settings, read_metrics, read_run
from myna.songs import Song
from myna.store import Store
from myna.track import Track, find_tracks, track_name
from myna.train import Trainer
from myna.vit import parameter_count


@dataclass(frozen=True)
class Size:
    """How much of everything: `full` is the demo, `smoke` only shows that it runs."""

    train_songs: int
    exam_songs: int
    labelled: int
    seconds: float
    steps: int
    overrides: dict[str, Any]


SIZES = {
    "full": Size(800, 480, 240, 15.0, 700, {}),
    "smoke": Size(40, 48, 24, 8.0, 8, {"batch": 16, "depth": 1, "dim": 32, "mlp_dim": 64}),
}
CLAIM = "demo.json"  # says that a folder is a demo's, and which
MADE = ("songs", "exam", "store", "run", "library.parquet", "results", "report.html")


def demo(
    out: str | Path,
    *,
    music: str | Path | None = None,
    size: str = "full",
    seed: int = 0,
    overrides: dict[str, Any] | None = None,
) -> Path:
    """Run the demo in a folder and return its page, `report.html`. `music` takes the user's folder instead.

    The same again goes on where it was. Raises ConfigError for a folder with a demo of other music, or with files
    that no demo made: nothing in it is touched.
    """
    out, began, console = Path(out), time.monotonic(), Console(stderr=True)
    chosen = SIZES[size]
    settings = recipe.override(
        recipe.get("tiny"), {"steps": chosen.steps, "seed": seed, **chosen.overrides, **(overrides or {})}
    )
    _claim(out, music, size, seed)
    if music is None:
        written = compose(out / "songs", chosen.train_songs, seconds=chosen.seconds, seed=seed)
        exam = compose(out / "exam", chosen.exam_songs, seconds=chosen.seconds, seed=seed + EXAM_SEED_OFFSET)
        heard, tracks = (_tracks(path for path, _ in songs) for songs in (written, exam))
    else:
        heard = tracks = find_tracks([music])
    store = _prepare(heard, out / "store")
    if len(store) < 2:
        raise ConfigError(f"{music} holds {len(store)} usable piece of music; at least 2 are needed to compare.")
    settings = recipe.override(settings, {"batch": min(settings.train.batch, len(store))})
    trainer = _pretrain(store, out / "run", settings)
    model = Myna.from_pretrained(out / "run", batch=32)
    vectors, table = _embed(model, tracks, out / "library.parquet")
    known = {track_name(track.path): track.path for track in tracks}
    paths = [known[path] for path in table["path"].to_pylist()]
    scores, songs = None, None
    if music is None:
        labels = dict(exam)
        songs = [labels[path] for path in paths]
        scores = _examine(model, trainer, songs, paths, chosen, out / "results")
        console.print(verdict(scores), highlight=False)
    command = _command(music, size, seed, overrides or {})
    report = _report(
        out, trainer, store, vectors, paths, songs, scores, command=command, seconds=time.monotonic() - began
    )
    write_page(report, out / "report.html")
    console.print(f"{out / 'report.html'} shows what it learned ({clock(time.monotonic() - began)} in all).")
    return out / "report.html"


def _claim(out: Path, music: str | Path | None, size: str, seed: int) -> None:
    """Make a folder this demo's own, so that nothing of another demo, or of the user's, is ever mixed with it."""
    wanted = {"music": None if music is None else os.path.abspath(music), "size": size, "seed": seed}
    path = out / CLAIM
    if path.is_file():
        try:
            told = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ConfigError(f"{path} is damaged: give another folder with -o, or remove {out}.") from None
        if differing := [name for name in wanted if told.get(name) != wanted[name]]:
            of = ", ".join(f"{name} {'composed' if told.get(name) is None else told[name]}" for name in differing)
            raise ConfigError(f"{out} holds a demo of other things ({of}): give another folder with -o, or remove it.")
        return
    if there := [name for name in MADE if (out / name).exists()]:
        raise ConfigError(
            f"{out} holds {', '.join(there)} and no {CLAIM}, which a demo leaves: give another folder with -o."
        )
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file: name a folder with -o.")
    out.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(wanted) + "\n")


def _command(music: str | Path | None, size: str, seed: int, overrides: dict[str, Any]) -> str:
    given = {"music": music, "size": size if size != "full" else None, "seed": seed or None, **overrides}
    options = [(f"--{name.replace('_', '-')}", str(value)) for name, value in given.items() if value is not None]
    return shlex.join(["myna", "demo", *(word for option in options for word in option)])


def _tracks(paths: Iterable[Path]) -> list[Track]:
    return [Track(path) for path in sorted(paths)]


def _prepare(tracks: list[Track], path: Path) -> Store:
    with Bar("prepare", "files") as bar:

        def tell(at: Standing) -> None:
            bar(at.done, at.files, f"{at.times_real_time:.0f}x real time", left_s=at.left_s)

        prepare(tracks, path, progress=tell)
    return Store.open(path)


def _pretrain(store: Store, run: Path, settings: Settings) -> Trainer:
    there = (run / RUN_FILE).is_file()
    if there and read_run(run)["store"]["hash"] != store.hash:
        raise ConfigError(
            f"The music is not what {run} was trained on: remove {run} to train anew, or give another folder with -o."
        )
    trainer = Trainer(store, run, settings, resume=there)
    with Bar("pretrain", "steps") as bar:
        stopped = trainer.train(
            on_log=lambda row: bar(
                int(row["step"]), trainer.steps, f"loss {row['loss']:.2f}, {row['clips_per_s']:.0f} clips/s"
            )
        )
    if stopped is not None:
        raise KeyboardInterrupt("Stopped; run the same command again to go on.")
    return trainer


def _embed(model: Myna, tracks: list[Track], path: Path) -> tuple[np.ndarray, Any]:
    path.unlink(missing_ok=True)  # it may be of fewer steps of the run
    for part in path.with_name(path.name + ".parts").glob("part-*"):
        part.unlink()
    with Bar("embed", "tracks") as bar:
        embed_library(
            model,
            tracks,
            path,
            on_track=lambda s: bar(s.new + s.reused + len(s.failed), s.tracks, f"{len(s.failed)} failed"),
        )
    table, _ = read_library(path)
    table = table.filter([status != "failed" for status in table["status"].to_pylist()])
    return embeddings_of(table), table


def _examine(model: Myna, trainer: Trainer, songs: list[Song], paths: list[Path], size: Size, out: Path) -> ScoreTable:
    """Evaluate the trained encoder, the same encoder untrained and what learns nothing, and print the table."""
    blank = MynaModel(trainer.settings.model, seed=trainer.settings.train.seed)
    untrained = Myna(blank, batch=32, hash=model_hash(blank))
    peers = [Peer("myna", model), Peer("untrained", untrained)]
    peers += [Peer(name, fixed) for name, fixed in baselines().items()]
    asked = tasks(paths, songs, labelled=size.labelled)
    pairs = [(peer, task) for peer in peers for task in asked.values()]
    records: list[Record] = []
    with Bar("evaluate", "models x tasks") as bar:
        for peer, task in pairs:
            bar(len(records), len(pairs), f"{peer.name} on {task.name}")
            records.append(evaluate(peer, task, out, Plan(grid=QUICK)))
        bar(len(pairs), len(pairs))
    sheet = results_sheet(records)
    console = Console()
    console.print(sheet.rich()) if console.is_terminal else print(sheet.text())
    return ScoreTable(
        rows=tuple(peer.name for peer in peers),
        columns=QUESTIONS,
        scores={(r["model"]["name"], r["task"]["name"]): _score(r["test"][r["chosen"]["metric"]]) for r in records},
        metric=METRICS,
        chance=chance(songs),
        protocol="A linear probe on the frozen vectors learns each question from few labelled songs: JukeMIR's "
        "protocol, three of its 216 settings.",
    )


def _score(told: Record) -> Score:
    ends = (told["mean"] if end is None else end for end in (told["low"], told["high"]))
    return Score(told["mean"], *ends)


def _report(
    out: Path,
    trainer: Trainer,
    store: Store,
    vectors: Float32[np.ndarray, "song dim"],
    paths: list[Path],
    songs: list[Song] | None,
    scores: ScoreTable | None,
    *,
    command: str,
    seconds: float,
) -> Report:
    metrics = read_metrics(out / "run")
    titles = [song.title for song in songs] if songs else [path.stem for path in paths]
    examples = trainer.step * trainer.settings.train.batch
    kinds = trainer.settings.model.patches
    kind = "hybrid" if len(kinds) > 1 else f"{kinds[0]} patches"
    return Report(
        title="What myna heard",
        subtitle="Trained from nothing on this machine, without a single label.",
        facts=(
            ("training music", f"{len(store)} tracks, {store.hours:.1f} h"),
            ("model", f"{parameter_count(trainer.model) / 1e6:.1f} M parameters, {kind}"),
            ("examples seen", f"{examples:,}"),
            ("time in all", clock(seconds)),
        ),
        steps=np.array([row["step"] for row in metrics], float),
        loss=np.array([row["loss"] for row in metrics], float),
        retrieval=np.array([row["top1"] for row in metrics], float),
        table=scores,
        points=_layout(vectors),
        point_labels=_labels(songs) if songs else {"folder": [path.parent.name for path in paths]},
        point_titles=titles,
        views=_views(trainer, store),
        neighbours=_neighbours(vectors, paths, titles, songs),
        notes=_notes(scores is not None),
        command=command,
    )


def _notes(composed: bool) -> tuple[str, ...]:
    if not composed:
        return ("Neighbours are the tracks whose vectors have the highest cosine similarity.",)
    return (
        "The songs are composed by the program, so their labels are certain; they are no substitute for real music.",
        "Scores are of songs that neither the encoder nor the probe saw. The interval is the 95 % one over resampled "
        "test songs; the encoder is trained once.",
        "Mel statistics, MFCC and chroma learn nothing: they show what is to be had without training.",
    )


def _labels(songs: Sequence[Song]) -> dict[str, list[str]]:
    return {
        "style": [song.style for song in songs],
        "drums": ["drums" if "drums" in song.instruments else "no drums" for song in songs],
        "mode": [song.key.split()[1] for song in songs],
        "tempo": [f"{song.tempo_bpm:.0f}" for song in songs],
    }


def _layout(vectors: Float32[np.ndarray, "song dim"]) -> Float[np.ndarray, "song 2"] | None:
    if len(vectors) < 8:
        return None
    perplexity = min(30, (len(vectors) - 1) // 3)
    embedding = TSNE(perplexity=perplexity, metric="cosine", initialization="pca", random_state=0, n_jobs=-1)
    return np.asarray(embedding.fit(vectors))


def _views(trainer: Trainer, store: Store) -> tuple[MaskedView, ...]:
    """Show what the encoder saw of the first clip of the first step: two views of each kind."""
    drawn = trainer.loader.draw(0)
    views = []
    for kind, grid in trainer.loader.grids.items():
        for view in range(2):
            row = int(drawn.rows[view, 0])
            track = int(np.flatnonzero((store.first_rows() <= row) & (row < store.first_rows() + store.frames))[0])
            start = row - int(store.first_rows()[track])
            patch = patch_of(kind)
            views.append(
                MaskedView(
                    kind=kind,
                    mel=store.mel(track)[start : start + grid.frames],
                    patch=(patch.bands, patch.frames),
                    visible=drawn.tokens[kind][view, 0].numpy(),
                )
            )
    return tuple(views)


def _neighbours(
    vectors: Float32[np.ndarray, "song dim"],
    paths: Sequence[Path],
    titles: Sequence[str],
    songs: Sequence[Song] | None,
    *,
    queries: int = 5,
    count: int = 4,
) -> tuple[Neighbours, ...]:
    queries = min(queries, len(vectors))
    chosen = np.linspace(0, len(vectors) - 1, queries).round().astype(int)
    standard = (vectors - vectors.mean(axis=0)) / (vectors.std(axis=0) + 1e-6)
    rows, similarity = nearest(standard, standard[chosen], count + 1)

    def clip(number: int, near: float | None) -> Clip:
        sound = load(paths[number])
        audio, mime = encode_excerpt(sound.samples, sound.rate_hz)
        return Clip(titles[number], _caption(songs[number]) if songs else "", audio, mime, near)

    found = []
    for query, row, near in zip(chosen, rows, similarity, strict=True):
        others = [(int(i), float(s)) for i, s in zip(row, near, strict=True) if i != query][:count]
        found.append(Neighbours(clip(int(query), None), tuple(clip(i, s) for i, s in others)))
    return tuple(found)


def _caption(song: Song) -> str:
    return " · ".join([song.style, song.key, f"{song.tempo_bpm:.0f} bpm", *song.instruments])
