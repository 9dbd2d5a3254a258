"""Models and tasks become results: embed, probe, and keep a record from which all of it can be repeated.

A folder of results holds one JSON file for each model, task and protocol, and `embeddings/`, the cache. A pair that is
finished is not computed again; one that was stopped goes on with the embeddings that it has.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from myna import __version__
from myna.cache import Vectors, digest_of, embed_task, item_key, slug
from myna.disk import write_text
from myna.errors import StoreError, TaskError
from myna.grid import GRID, QUICK, WIDE, Head, ProbeConfig, Protocol
from myna.peer import Peer
from myna.probe import Outcome, search_seeds
from myna.problem import Problem, Split
from myna.task.base import PARTS, Item, Part, Task, hash_ids

FORMAT, VERSION = "myna-result", 1
CACHE = "embeddings"
SHOWN = 5  # items named in an error
HEADS: Mapping[Head, tuple[ProbeConfig, ...]] = {"grid": GRID, "quick": QUICK, "mlp-wide": WIDE}
Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How a pair is evaluated. `seeds` probes are trained, with seeds 0, 1, ...; MARBLE's protocol has no grid."""

    protocol: Protocol = "jukemir"
    grid: tuple[ProbeConfig, ...] = GRID
    seeds: int = 1
    device: str = "cpu"
    allow_missing: bool = False

    @property
    def windows(self) -> bool:
        """Say whether probes are trained on windows rather than on one vector an item."""
        return self.protocol == "windows"

    def about(self) -> Record:
        """Return what decides the scores, given the vectors."""
        grid = None if self.protocol == "marble" else [config.model_dump(mode="json") for config in self.grid]
        return {"protocol": self.protocol, "grid": grid, "seeds": list(range(self.seeds))}


@dataclass(frozen=True)
class Told:
    """Whom to tell of the progress: items done, all, failed; steps, probes that have stopped, all."""

    embedded: Callable[[int, int, int], None] | None = None
    probed: Callable[[int, int, int], None] | None = None


def evaluate(
    peer: Peer,
    task: Task,
    out: Path,
    plan: Plan | None = None,
    *,
    cache: Path | None = None,
    workers: int | None = None,
    told: Told | None = None,
) -> Record:
    """Evaluate one model on one task and return the record, which `out` then holds as JSON.

    Raises TaskError for items that cannot be embedded, unless the plan allows them to be missing.
    """
    plan, told = plan or Plan(), told or Told()
    key = digest_of([FORMAT, VERSION, __version__, peer.about(), _about_task(task), _sounds(task), plan.about()])
    if known := _known(result_path(out, peer, task, plan), key):
        return known
    began = time.monotonic()
    folder = cache or out / CACHE
    folder.mkdir(parents=True, exist_ok=True)
    vectors = embed_task(peer, task, folder, windows=plan.windows, workers=workers, on_item=told.embedded)
    if vectors.failed and not plan.allow_missing:
        raise TaskError(complaint(peer, task, vectors))
    path = result_path(out, peer, task, plan, unusable=vectors.failed)
    if known := _known(path, key):
        return known
    embedded = time.monotonic()
    grid = None if plan.protocol == "marble" else plan.grid
    outcomes, spread = search_seeds(
        problems(task, vectors, peer.representations),
        seeds=plan.seeds,
        protocol=plan.protocol,
        grid=grid,
        device=plan.device,
        on_progress=told.probed,
    )
    record = {
        "format": FORMAT,
        "version": VERSION,
        "key": key,
        "model": {"name": peer.name, **peer.about()},
        "task": {**_about_task(task), "unusable": dict(sorted(vectors.failed.items())), "notes": list(task.notes)},
        "embeddings": {
            "sha256": vectors.hash,
            "rows": "windows" if plan.windows else "items",
            "padded": vectors.padded,
            "reused": vectors.reused,
            "representations": {name: columns.stop - columns.start for name, columns in peer.representations.items()},
        },
        **plan.about(),
        "chosen": _chosen(outcomes[0]),
        "test": {name: _score(name, one.mean, (one.low, one.high), outcomes) for name, one in spread.items()},
        "alternatives": _alternatives(outcomes),
        "outcomes": [_without_grid(outcome.record()) for outcome in outcomes],
        "versions": versions(),
        "device": plan.device,
        "threads": torch.get_num_threads(),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": {"embed": round(embedded - began, 3), "probe": round(time.monotonic() - embedded, 3)},
    }
    write_text(path, json.dumps(record, indent=1) + "\n")
    return record


def result_path(out: Path, peer: Peer, task: Task, plan: Plan, *, unusable: Iterable[str] = ()) -> Path:
    """Return the file of a pair; what decides its numbers is also in its name, so no two settings share one.

    Nor do tables of one name that differ in labels or splits, or a result without the `unusable` items and a whole one.
    """
    told = digest_of([peer.about(), _about_task(task), plan.about(), sorted(unusable)])[:8]
    return out / f"{slug(peer.name)}-{slug(task.name)}-{plan.protocol}-{told}.json"


def problems(task: Task, vectors: Vectors, representations: Mapping[str, slice]) -> dict[str, Problem]:
    """Return a problem for the probe of each representation: the items that have vectors, in the task's order."""
    splits = {part: _split(task, part, vectors) for part in PARTS}
    return {
        name: Problem(
            task.name,
            task.answer,
            task.outputs,
            **{part: replace(split, x=np.ascontiguousarray(split.x[:, columns])) for part, split in splits.items()},
        )
        for name, columns in representations.items()
    }


def versions() -> dict[str, str]:
    """Return the versions of what computes a result."""
    names = ("torch", "numpy", "scipy", "scikit-learn", "mir_eval", "av", "soxr")
    return {"myna": __version__, **{name: version(name) for name in names}}


def _split(task: Task, part: Part, vectors: Vectors) -> Split:
    items = task.of(part)
    here = [number for number, item in enumerate(items) if item.id in vectors.of]
    if not here:
        raise TaskError(f"No item of the {part} split of {task.name} could be embedded: nothing can be measured.")
    found = [vectors.of[items[number].id] for number in here]
    lengths = [len(one) for one in found]
    windowed = vectors.windowed
    return Split(
        x=np.concatenate(found),
        y=task.labels(part)[here],
        group=np.array([items[number].group for number in here]),
        item=np.repeat(np.arange(len(here)), lengths) if windowed else None,
        song=np.array([items[number].song or items[number].id for number in here]),
    )


def _about_task(task: Task) -> Record:
    """Return what identifies a task: its splits and labels by their hashes, and what is missing."""
    return {
        "name": task.name,
        "version": task.version,
        "answer": task.answer,
        "outputs": list(task.outputs),
        "splits": {part: _about_split(task.of(part)) for part in PARTS},
        "missing": list(task.missing),
    }


def _about_split(items: Sequence[Item]) -> Record:
    labels = sorted([item.id, item.group, item.song, item.label] for item in items)
    return {
        "items": len(items),
        "groups": len({item.group for item in items}),
        "ids_sha256": hash_ids(item.id for item in items),
        "labels_sha256": hashlib.sha256(json.dumps(labels).encode()).hexdigest(),
    }


def _sounds(task: Task) -> str:
    return digest_of([item_key(item) for item in task.items])


def _known(path: Path, key: str) -> Record | None:
    if not path.exists():
        return None
    record = _read(path)
    return record if record["key"] == key else None


def _read(path: Path) -> Record:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read as a result ({error}): remove it.") from error
    if not isinstance(record, dict) or (record.get("format"), record.get("version")) != (FORMAT, VERSION):
        raise StoreError(f"{path} is not a result of this myna: keep results in a folder of their own.")
    return record


def complaint(peer: Peer, task: Task, vectors: Vectors) -> str:
    """Say which items could not be embedded, and what to do."""
    shown = "; ".join(f"{name}: {why}" for name, why in sorted(vectors.failed.items())[:SHOWN])
    more = f"; and {len(vectors.failed) - SHOWN} more" if len(vectors.failed) > SHOWN else ""
    return (
        f"{len(vectors.failed)} of {len(task.items)} items of {task.name} could not be embedded by {peer.name} "
        f"({shown}{more}). Mend them and run the same command again, or go on without them with --allow-missing, "
        "which every result will tell."
    )


def _chosen(outcome: Outcome) -> Record:
    """Return what valid has chosen; of several seeds, the first one's."""
    return {
        "representation": outcome.representation,
        "index": outcome.index,
        "config": outcome.config.model_dump(mode="json"),
        "strategy": outcome.strategy,
        "metric": outcome.primary,
        "valid": outcome.valid,
    }


def _score(name: str, mean: float, ends: tuple[float, float], outcomes: Sequence[Outcome]) -> Record:
    """Return a test score and its interval: over probe seeds, or, of one seed, over resampled test groups."""
    over = "seeds" if len(outcomes) > 1 else "test groups"
    low, high = ends if len(outcomes) > 1 else outcomes[0].intervals[name]
    return {"mean": mean, "low": _finite(low), "high": _finite(high), "over": over}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _alternatives(outcomes: Sequence[Outcome]) -> dict[str, Record]:
    """Return every representation's scores, the mean over seeds: valid, which chooses, and test, which does not."""
    found = {}
    for name in outcomes[0].alternatives:
        each = [outcome.alternatives[name] for outcome in outcomes]
        found[name] = {
            part: {metric: float(np.mean([getattr(one, part)[metric] for one in each])) for metric in each[0].test}
            for part in ("valid", "test")
        }
    return found


def _without_grid(record: Record) -> Record:
    """Leave the grid out of an outcome, and of its representations: the result tells it once."""
    kept = {name: value for name, value in record.items() if name != "grid"}
    return kept | {"alternatives": {name: _without_grid(one) for name, one in record["alternatives"].items()}}
