"""Embeddings of a benchmark's items, computed once and kept: a Parquet file for each model and task.

Its name and its metadata hold what decides the vectors; each row also holds the file's size and time, so a changed
file is embedded anew. A run that is stopped leaves its finished items beside it.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from myna.disk import replacing
from myna.errors import AudioError, StoreError
from myna.library import Parts
from myna.lock import only_writer
from myna.peer import Peer
from myna.task.base import Item, Task

FORMAT, VERSION = "myna-embeddings", 1
Row = tuple[np.ndarray, bool]  # the vectors of an item, and whether it was shorter than a window


@dataclass(frozen=True)
class Vectors:
    """What is known of the items of a task, by their id: (window, dim), one row where windows are not kept."""

    of: dict[str, Float32[np.ndarray, "window dim"]]
    failed: dict[str, str]  # id → reason
    windowed: bool  # whether each window's vector was kept
    padded: int  # items shorter than a window
    reused: int  # items that were known already

    @property
    def hash(self) -> str:
        """Return 16 hex digits that change with any number, item or name."""
        digest = hashlib.sha256()
        for name, vectors in sorted(self.of.items()):
            digest.update(f"{name} {vectors.shape} ".encode() + np.ascontiguousarray(vectors).tobytes())
        return digest.hexdigest()[:16]


def embed_task(
    peer: Peer,
    task: Task,
    folder: Path,
    *,
    windows: bool = False,
    workers: int | None = None,
    on_item: Callable[[int, int, int], None] | None = None,
) -> Vectors:
    """Embed the items of a task, reusing what `folder` holds of them; `on_item` takes done, all and failed.

    With `windows` every window's vector is kept, else their mean. Items that fail are tried again the next time.
    Raises StoreError if a file of the cache is damaged, and RunError while another process writes to it.
    """
    about = {
        "format": FORMAT,
        "version": VERSION,
        "task": task.name,
        "task_version": task.version,
        "rows": "windows" if windows else "items",
        **peer.about(),
    }
    path = folder / f"{slug(peer.name)}-{slug(task.name)}-{digest_of(about)}.parquet"
    parts = path.with_suffix(".parts")
    described = _schema(about)
    items = {item_key(item): item for item in task.items}
    failed: dict[str, str] = {}
    with only_writer("evaluate", path, lock=path.with_name(f".{path.name}.lock")):
        known = _known(path, parts, about)
        sounds = {_sound(key): key for key in items}
        # what the task does not have now stays in the file, but not what a file held before it changed
        known = {key: row for key, row in known.items() if sounds.get(_sound(key), key) == key}
        todo = [key for key in items if key not in known]
        if todo:
            results = peer.embed_items([items[key] for key in todo], workers=workers)
            parts.mkdir(parents=True, exist_ok=True)
            writer = Parts(parts, described)
            for done, (number, result) in enumerate(results, start=len(items) - len(todo) + 1):
                key = todo[number]
                if isinstance(result, AudioError):
                    failed[items[key].id] = str(result)
                else:
                    known[key] = result.embeddings if windows else result.vector[None], result.padded
                    writer.add([{"key": key, "embeddings": list(known[key][0]), "padded": result.padded}])
                if on_item:
                    on_item(done, len(items), len(failed))
            writer.flush()
            _write(known, path, described)
            shutil.rmtree(parts)
    rows = {key: known[key] for key in items if key in known}
    return Vectors(
        {items[key].id: vectors for key, (vectors, _) in rows.items()},
        failed,
        windowed=windows,
        padded=sum(padded for _, padded in rows.values()),
        reused=len(items) - len(todo),
    )


def slug(name: str) -> str:
    """Write a name so that it can be part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[-60:] or "x"


def digest_of(what: Any) -> str:
    """Return 16 hex digits that stand for anything JSON can hold."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def item_key(item: Item) -> str:
    """Return what identifies an item's sound: its id, its stretch, and its file as far as its name, size and time."""
    try:
        status = item.path.stat()
        size, time = status.st_size, status.st_mtime_ns
    except OSError:
        size = time = 0
    return json.dumps([item.id, item.path.name, size, time, item.start_s, item.length_s])


def _sound(key: str) -> tuple[str | float | None, ...]:
    """Return what stays of an item's key when its file changes: id, name and stretch."""
    name, file, _, _, start_s, length_s = json.loads(key)
    return name, file, start_s, length_s


def _schema(about: dict[str, Any]) -> pa.Schema:
    columns = [
        ("key", pa.string()),
        ("padded", pa.bool_()),
        ("embeddings", pa.list_(pa.list_(pa.float32(), about["dim"]))),
    ]
    return pa.schema(columns, metadata={"myna": json.dumps(about)})


def _known(path: Path, parts: Path, about: dict[str, Any]) -> dict[str, Row]:
    """Read what an earlier run left of the same model, settings and task; anything else is not looked at."""
    files = [path] if path.exists() else []
    files += sorted(parts.glob("part-*.parquet")) if parts.is_dir() else []
    found: dict[str, Row] = {}
    for file in files:
        table = _read(file)
        if json.loads((table.schema.metadata or {}).get(b"myna", b"null")) != about:
            continue
        column = table["embeddings"].combine_chunks()
        flat = column.flatten().flatten().to_numpy().reshape(-1, about["dim"])
        ends = np.cumsum(column.value_lengths().to_numpy())
        padded = table["padded"].to_pylist()
        for row, key in enumerate(table["key"].to_pylist()):
            found[key] = flat[ends[row - 1] if row else 0 : ends[row]], padded[row]
    return found


def _read(file: Path) -> pa.Table:
    try:
        return pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{file} is damaged ({error}): remove it, and its items are embedded again.") from error


def _write(rows: dict[str, Row], path: Path, described: pa.Schema) -> None:
    """Write all rows under a temporary name, then give the file its own."""
    vectors = [vectors for vectors, _ in rows.values()]
    ends = np.cumsum([0, *map(len, vectors)])
    width = described.field("embeddings").type.value_type.list_size
    flat = pa.array(np.concatenate(vectors).ravel() if vectors else np.empty(0, np.float32))
    columns = [
        pa.array(list(rows), pa.string()),
        pa.array([padded for _, padded in rows.values()], pa.bool_()),
        pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.FixedSizeListArray.from_arrays(flat, width)),
    ]
    table = pa.table(columns, names=described.names).cast(described)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
