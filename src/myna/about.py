"""What a store, run, model, weights file or library is, and which of its files failed: facts to print."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from myna.checkpoint import Checkpoint, checkpoints, open_checkpoint
from myna.errors import ConfigError, StoreError
from myna.hub import initial_weights, open_model
from myna.library import read_library
from myna.mae import build_model
from myna.progress import clock
from myna.release import SUFFIXES, open_release
from myna.run import RUN_FILE, in_words, read_metrics, read_run
from myna.store import Store
from myna.vit import parameter_count

Facts = dict[str, str]


def describe(path: str | Path) -> tuple[str, Facts]:
    """Say what is at a path, "store", "run", "model", "release" or "library", and its facts.

    Raises ConfigError if it is none of them.
    """
    place = Path(path)
    if (place / "store.json").is_file():
        return "store", _store(Store.open(place))
    if (place / RUN_FILE).is_file():
        return "run", _run(place)
    if (place / "config.json").is_file():
        return "model", _model(open_model(place))
    if place.suffix in SUFFIXES and place.is_file():
        return "release", _model(open_release(place))
    if place.suffix == ".parquet" and place.is_file():
        return "library", _library(place)
    raise ConfigError(
        f"{place} is none of a store, a run, a model or a library, nor a weights file of the original release: "
        "name one of those."
    )


def failures(path: str | Path) -> list[tuple[str, str]]:
    """Return (path, reason) of every file that a store or a library could not use."""
    place = Path(path)
    if (place / "store.json").is_file():
        return _failed(Store.open(place).manifest)
    if place.suffix == ".parquet":
        return _failed(read_library(place)[0])
    raise ConfigError(f"{place} is neither a store nor a library; only those know of files that failed.")


def _failed(table: pa.Table) -> list[tuple[str, str]]:
    rows = table.select(["path", "status", "reason"]).to_pylist()
    return [(row["path"], row["reason"]) for row in rows if row["status"] == "failed"]


def _counts(statuses: Sequence[str]) -> str:
    return ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))


def _store(store: Store) -> Facts:
    front = store.front_end
    return {
        "files": f"{len(store.manifest)} ({_counts(store.manifest['status'].to_pylist())})",
        "tracks": f"{len(store)} of different content",
        "music": f"{store.hours:.2f} h",
        "size": f"{sum(file.nbytes for file in store.files) / 1e9:.3f} GB in {len(store.files)} data files",
        "front end": f"{front.bands} mel bands, {front.rate_hz} Hz, window {front.n_fft}, hop {front.hop_samples}",
        "damaged": f"{sum(1 for n in store.manifest['damaged'].to_pylist() if n)} files with skipped stretches",
        "hash": store.hash,
    }


def _run(run: Path) -> Facts:
    record = read_run(run)
    settings, rows, kept = record["settings"], read_metrics(run), checkpoints(run)
    facts = {
        "recipe": settings.recipe,
        "store": f"{record['store']['path']} ({record['store']['hash'][:16]})",
        "batch": f"{settings.train.batch} clips, {settings.train.precision}",
        "checkpoints": ", ".join(path.name for path in kept) or "none yet",
    }
    if rows:
        last = rows[-1]
        facts["step"] = f"{last['step']:.0f} (epoch {last['epoch']:.2f})"
        facts["learned"] = f"{in_words(last)}, {last['clips_per_s']:.0f} clips/s"
    return {**facts, **(_model(open_checkpoint(kept[-1])) if kept else {})}


def _model(found: Checkpoint) -> Facts:
    config, model = found.config, build_model(found.config)
    grids = ", ".join(f"{kind} {g.rows}x{g.columns} tokens" for kind, g in config.grids().items())
    return {
        "model": f"{parameter_count(model) / 1e6:.1f} M parameters: width {config.dim}, depth {config.depth}",
        "patches": grids,
        "window": f"{config.segment_samples} samples ({config.segment_samples / config.front_end.rate_hz:.2f} s)",
        "vector": f"{config.dim * len(config.patches)} numbers",
        "amplitude": config.amplitude,
        **_origin(found),
        "model hash": found.hash,
    }


def _origin(found: Checkpoint) -> Facts:
    if "origin" not in found.about:
        initial = initial_weights(found.about)
        return {
            "trained": f"{found.about.get('examples', 0):,} examples, {found.step} steps",
            **({"initial weights": initial} if initial else {}),
        }
    aside = found.about.get("left_aside", [])
    return {
        "origin": f"{found.about['origin']}, {found.about.get('file', 'a file')}; no projector",
        **({"left aside": ", ".join(aside)} if aside else {}),
    }


def learned(found: Checkpoint) -> dict[str, Any]:
    """Return what a model card says of a checkpoint of a run: `metrics` up to it, and `data` if the store is there."""
    places = (found.path, found.path.resolve())
    run = next((p.parent.parent for p in places if p in checkpoints(p.parent.parent)), None)
    if run is None or not (run / RUN_FILE).is_file():
        return {}
    told, facts = read_run(run)["store"], {}
    if rows := [row for row in read_metrics(run) if row["step"] <= found.step]:
        facts["metrics"] = rows[-1]
    with suppress(StoreError):  # it may be gone, or be changing
        store = Store.open(told["path"])
        if store.hash == told["hash"]:
            facts["data"] = f"{store.hours:.1f} h of music in {len(store)} tracks"
    return facts


def _library(path: Path) -> Facts:
    table, told = read_library(path)
    return {
        "rows": f"{len(table)} {told['rows']} ({_counts(table['status'].to_pylist())})",
        "music": clock(sum(s or 0 for s in table["decoded_s"].to_pylist()))
        if told["rows"] == "tracks"
        else "by window",
        "vector": f"{told['dim']} numbers ({' + '.join(told['patches'])})",
        "window": f"{told['window_samples']} samples, hop {told['hop_samples']}",
        "model hash": told["model"],
    }


def as_json(kind: str, facts: Facts) -> dict[str, Any]:
    """Return facts in a form for programs."""
    return {"kind": kind, **{name.replace(" ", "_"): value for name, value in facts.items()}}
