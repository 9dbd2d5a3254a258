"""A folder of music becomes a Parquet table of embeddings that stays up to date.

A row a track, or a row a window. While it is being made, finished tracks are kept in `<name>.parts/`, so a run that
is stopped goes on where it was; the table itself is written last, whole.
"""

import json
import shutil
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float32, Int

from myna.audio import FATAL, why_fatal
from myna.disk import replacing
from myna.embedder import Embedding, Myna
from myna.errors import AudioError, ConfigError, StoreError
from myna.lock import only_writer
from myna.track import Track, content_hash, read_tags, track_name

FORMAT, VERSION = "myna-library", 1
PART_SECONDS = 20.0  # at most so much work is lost to a kill
Result = tuple[Track, Embedding | AudioError]
Key = tuple[str, int, int]  # path, size in bytes, time of last change in ns: what tells that a file is unchanged


@dataclass
class Summary:
    """What an `embed` did."""

    tracks: int
    new: int = 0
    reused: int = 0
    padded: int = 0
    others: int = 0  # tracks of the library that were not among those given
    failed: dict[str, str] = field(default_factory=dict)  # path → reason
    decoded_s: float = 0.0


def schema(dim: int, about: dict[str, Any]) -> pa.Schema:
    """Return the columns of a library; `about` goes into the file's metadata under the key `myna`."""
    columns = {
        "path": pa.string(),
        "content_hash": pa.string(),
        "size_bytes": pa.int64(),
        "mtime_ns": pa.int64(),
        "duration_s": pa.float64(),  # as the file says of itself; null where it does not
        "decoded_s": pa.float64(),
        "damaged": pa.int64(),
        "status": pa.string(),  # ok, padded (shorter than a window, filled up with silence), failed
        "reason": pa.string(),
        "tags": pa.map_(pa.string(), pa.string()),
        "windows": pa.int64(),  # how many the track has
        "start_s": pa.float64(),  # of this row's window; null in a row for the whole track
        "embedding": pa.list_(pa.float32(), dim),
    }
    return pa.schema(list(columns.items()), metadata={"myna": json.dumps(about)})


def about(model: Myna, *, windows: bool, hop_s: float | None) -> dict[str, Any]:
    """Return what decides the vectors of a library: two libraries that differ in it cannot be mixed."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": model.hash,
        "patches": list(model.kinds),
        "dim": model.dim,
        "window_samples": model.window_samples,
        "hop_samples": model.hop_samples(hop_s),  # 0: whole tracks
        "rows": "windows" if windows else "tracks",
        "amplitude": model.model.config.amplitude,
        "front_end": model.front_end.model_dump(),
    }


def embed_library(
    model: Myna,
    tracks: list[Track],
    out: str | Path,
    *,
    windows: bool = False,
    hop_s: float | None = None,
    workers: int | None = None,
    on_track: Callable[[Summary], None] | None = None,
) -> Summary:
    """Embed tracks into a Parquet file, reusing what it or an interrupted run already holds.

    A file that is unchanged, moved or retagged is not embedded again. One that crashed the process is found
    when the same is asked again, and listed as failed until it changes. Rows of files that are not among `tracks` stay
    as long as the file is there. Raises StoreError if `out` was made with another model or other settings, and
    ConfigError for a track that is a stretch of its file.
    """
    path = Path(out)
    if any(track.stretch for track in tracks):
        raise ConfigError("A library holds whole files: cut the stretches out of their files first.")
    parts = path.with_name(path.name + ".parts")
    described = schema(model.dim, about(model, windows=windows, hop_s=hop_s))
    with only_writer("embed", path, lock=path.with_name(f".{path.name}.lock")):
        known = _known(path, parts, described)
        parts.mkdir(parents=True, exist_ok=True)
        with Opened(parts / "opened.txt") as opened:
            kept, todo, fatal, summary = _plan(tracks, known, opened)
            if on_track:
                on_track(summary)
            writer = Parts(parts, described)
            with closing(_results(model, todo, opened, hop_s=hop_s, workers=workers)) as results:
                for track, result in chain(fatal, results):
                    writer.add(_rows(track, result, windows=windows))
                    _count(summary, track, result)
                    if on_track:
                        on_track(summary)
        writer.flush()
        table = pa.concat_tables([kept, *(pq.read_table(file) for file in writer.written)]).sort_by(
            [("path", "ascending"), ("start_s", "ascending")]
        )
        with replacing(path) as temporary:
            pq.write_table(table.replace_schema_metadata(described.metadata), temporary, compression="zstd")
        shutil.rmtree(parts)
    return summary


def read_library(path: str | Path) -> tuple[pa.Table, dict[str, Any]]:
    """Return a library's table and what it says of its model and settings."""
    try:
        table = pq.read_table(path)
        told = json.loads((table.schema.metadata or {})[b"myna"])
        if (told["format"], told["version"]) != (FORMAT, VERSION):
            raise StoreError(f"{path} is {told['format']} version {told['version']}, not a library of this myna.")
    except FileNotFoundError as error:
        raise StoreError(f"There is no library at {path}: make one with `myna embed`.") from error
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path} is not a library that `myna embed` wrote ({error}).") from error
    return table, told


def embeddings_of(table: pa.Table) -> Float32[np.ndarray, "row dim"]:
    """Return the vectors of a library's rows (those that have one)."""
    column = table["embedding"].drop_null().combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def nearest(
    vectors: Float32[np.ndarray, "row dim"], queries: Float32[np.ndarray, "query dim"], count: int
) -> tuple[Int[np.ndarray, "query count"], Float32[np.ndarray, "query count"]]:
    """Return the rows most similar to each query by cosine, best first, and their similarity."""
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, vectors))
    similarity = (a @ b.T).astype(np.float32)
    rows = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return rows, np.take_along_axis(similarity, rows, axis=1)


def _known(path: Path, parts: Path, described: pa.Schema) -> pa.Table:
    """Read all rows that an earlier run left, and check that they are of the same model and settings."""
    files = sorted(parts.glob("part-*.parquet"), reverse=True) if parts.is_dir() else []
    files += [path] if path.exists() else []
    tables = [described.empty_table()]
    wanted = json.loads(described.metadata[b"myna"])
    for file in files:  # newest first: what a file holds of a path outweighs what an older one says
        table, told = read_library(file)
        differing = [name for name in wanted if told.get(name) != wanted[name]]
        if differing:
            raise StoreError(
                f"{file} was made with another {' and '.join(differing)} ({told.get(differing[0])} there, "
                f"{wanted[differing[0]]} now): write to another file, or remove it first."
            )
        seen = pa.concat_tables(tables)["path"].combine_chunks()
        tables.append(table.cast(described).filter(pc.invert(pc.is_in(table["path"], value_set=seen))))
    return pa.concat_tables(tables)


def _plan(
    tracks: list[Track], known: pa.Table, opened: "Opened"
) -> tuple[pa.Table, list[Track], list[Result], Summary]:
    """Split tracks into rows that can be kept, tracks to embed, and such as end the process that decodes them.

    Failed files are tried again, but the last kind only if they have changed.
    """
    named = {track_name(track.path) for track in tracks}
    fatal_rows = known.filter(pc.fill_null(pc.starts_with(known["reason"], FATAL), False))
    is_fatal = dict(zip(_keys(fatal_rows), fatal_rows["reason"].to_pylist(), strict=True))
    elsewhere = [path not in named and Path(path).exists() for path in fatal_rows["path"].to_pylist()]
    known = known.filter(pc.not_equal(known["status"], "failed"))
    rows_of: dict[Key, list[int]] = {}
    for row, key in enumerate(_keys(known)):
        rows_of.setdefault(key, []).append(row)
    rows_of_content: dict[str, list[int]] = {}
    for rows in rows_of.values():
        rows_of_content.setdefault(known["content_hash"][rows[0]].as_py(), rows)
    summary, kept, moved, todo, fatal = Summary(len(tracks)), [], [], [], []
    for (path, _, _), rows in rows_of.items():
        if path not in named and Path(path).exists():
            kept += rows
            summary.others += 1
    for track in tracks:
        key = _key(track.path)
        if key in rows_of:
            kept += rows_of[key]
        elif reason := is_fatal.get(key) or (opened.left & {track_name(track.path)} and why_fatal(track.path)):
            fatal.append((track, AudioError(reason)))
            continue
        elif rows_of and (rows := rows_of_content.get(_hash(track.path, opened))):
            moved.append(_renamed(known.take(rows), track.path))
        else:
            todo.append(track)
            continue
        summary.reused += 1
    rows = [known.take(pa.array(kept, pa.int64())), fatal_rows.filter(pa.array(elsewhere, pa.bool_())), *moved]
    return pa.concat_tables(rows), todo, fatal, summary


def _keys(rows: pa.Table) -> Iterable[Key]:
    return zip(*(rows[name].to_pylist() for name in ("path", "size_bytes", "mtime_ns")), strict=True)


def _results(
    model: Myna, tracks: list[Track], opened: "Opened", *, hop_s: float | None, workers: int | None
) -> Generator[Result, None, None]:
    """Embed tracks, yielding each as it is done."""

    def telling() -> Generator[Path, None, None]:
        for track in tracks:
            opened.begin(track.path)
            yield track.path

    for number, result in model.stream(telling(), hop_s=hop_s, workers=workers):
        opened.end(tracks[number].path)
        yield tracks[number], result


def _key(path: Path) -> Key | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return track_name(path), status.st_size, status.st_mtime_ns


def _hash(path: Path, opened: "Opened") -> str | None:
    opened.begin(path)
    try:
        return content_hash(path)
    except AudioError:
        return None
    finally:
        opened.end(path)


def _renamed(rows: pa.Table, path: Path) -> pa.Table:
    """Give the rows of known content the name, times and tags of the file that holds it now."""
    _, size, mtime = _key(path) or (None, None, None)
    news = {"path": track_name(path), "size_bytes": size, "mtime_ns": mtime, "tags": list(read_tags(path).items())}
    for name, value in news.items():
        place = rows.schema.get_field_index(name)
        column = pa.array([value] * len(rows), rows.schema.field(name).type)
        rows = rows.set_column(place, rows.schema.field(name), column)
    return rows


def _count(summary: Summary, track: Track, result: Embedding | AudioError) -> None:
    if isinstance(result, AudioError):
        summary.failed[track_name(track.path)] = str(result)
        return
    summary.new += 1
    summary.padded += result.padded
    summary.decoded_s += result.decoded_s


def _rows(track: Track, result: Embedding | AudioError, *, windows: bool) -> list[dict[str, Any]]:
    path, size, mtime = _key(track.path) or (track_name(track.path), None, None)
    row: dict[str, Any] = {"path": path, "size_bytes": size, "mtime_ns": mtime}
    if isinstance(result, AudioError):
        return [row | {"status": "failed", "reason": str(result), "tags": []}]
    row |= {
        "content_hash": result.content_hash,
        "duration_s": result.duration_s,
        "decoded_s": result.decoded_s,
        "damaged": result.damaged,
        "status": "padded" if result.padded else "ok",
        "tags": list(result.tags.items()),
        "windows": len(result.embeddings),
    }
    if not windows:
        return [row | {"embedding": result.vector}]
    each = zip(result.starts_s, result.embeddings, strict=True)
    return [row | {"start_s": float(start), "embedding": vector} for start, vector in each]


class Parts:
    """Finished rows, written to a file of their own every so often."""

    def __init__(self, folder: Path, described: pa.Schema) -> None:
        self.folder, self.schema = folder, described
        self.first = len(list(folder.glob("part-*.parquet")))
        self.rows: list[dict[str, Any]] = []
        self.written: list[Path] = []
        self.since = time.monotonic()

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        self.rows.extend(rows)
        if time.monotonic() - self.since > PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            path = self.folder / f"part-{self.first + len(self.written):06d}.parquet"
            with replacing(path) as temporary:
                pq.write_table(pa.Table.from_pylist(self.rows, self.schema), temporary, compression="zstd")
            self.written.append(path)
            self.rows = []
        self.since = time.monotonic()


class Opened:
    """The names of files that are being read, on disk: after a crash, one that is `left` may have caused it.

    A name is written when reading begins, and again when it ends, however it ends unless the process dies.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.now, self.left = path, set(), set()
        for line in path.read_bytes().split(b"\0")[:-1] if path.exists() else ():
            name = line[1:].decode(errors="surrogateescape")
            self.left.add(name) if line[:1] == b"+" else self.left.discard(name)

    def __enter__(self) -> "Opened":
        self.file = open(self.path, "ab", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        for path in list(self.now):
            self.end(path)
        self.file.close()

    def begin(self, path: Path) -> None:
        self.now.add(path)
        self._write(b"+", path)

    def end(self, path: Path) -> None:
        self.now.discard(path)
        self._write(b"-", path)

    def _write(self, what: bytes, path: Path) -> None:
        self.file.write(what + track_name(path).encode(errors="surrogateescape") + b"\0")
