"""Vectors that somebody else has computed: a Parquet file, or a folder with one .npy a file."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from jaxtyping import Float32

from myna.embedder import Embedding
from myna.errors import AudioError, StoreError
from myna.task.base import Item
from myna.track import track_name

Found = tuple[np.ndarray, np.ndarray]  # windows (window, dim), and where each starts in the file (window,) in s


@dataclass(frozen=True)
class Precomputed:
    """Vectors by the name of an item, or of its file; a file has one row for all of it, or one a window.

    `window_s` is the length of a window, where that is known. A vector for a whole file is no answer for a part of it.
    """

    path: Path
    by_id: Callable[[str], Found | None]
    by_file: Callable[[Path], Found | None]
    dim: int
    hash: str
    window_s: float | None = None

    @property
    def representations(self) -> dict[str, slice]:
        return {"given": slice(0, self.dim)}

    @staticmethod
    def open(path: str | Path) -> "Precomputed":
        """Open a .parquet file or a folder of .npy files. Raises StoreError for what is neither."""
        path = Path(path)
        return _open_folder(path) if path.is_dir() else _open_parquet(path)

    def embed_items(self, items: Sequence[Item]) -> Iterator[tuple[int, Embedding | AudioError]]:
        """Look every item up, yielding (place in `items`, its vectors or why there are none)."""
        for number, item in enumerate(items):
            yield number, self._find(item)

    def _find(self, item: Item) -> Embedding | AudioError:
        if (found := self.by_id(item.id)) is not None:
            return Embedding(*found)
        if (found := self.by_file(item.path)) is None:
            return AudioError(f"{self.path} has no vector for the item {item.id}, nor for its file {item.path.name}")
        vectors, starts_s = found
        part = item.start_s > 0 or item.length_s is not None
        if part and self.window_s is None:
            return AudioError(
                f"{self.path} has one vector for all of {item.path.name}, and the item {item.id} is a part of it: "
                "give vectors by the names of the items, or by windows"
            )
        if part:
            end_s = item.start_s + (np.inf if item.length_s is None else item.length_s)
            inside = (starts_s >= item.start_s - 1e-6) & (starts_s + self.window_s <= end_s + 1e-6)
            vectors, starts_s = vectors[inside], starts_s[inside]
        if not len(vectors):
            return AudioError(f"{self.path} has no whole window inside the item {item.id}")
        return Embedding(vectors, starts_s)


def _open_parquet(path: Path) -> Precomputed:
    """Open a library of `myna embed`, or any table with `embedding` and `id` or `path`."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise StoreError(f"There is no file {path} with vectors: make one with `myna embed`.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise StoreError(f"{path} cannot be read as Parquet ({error}).") from error
    names = [name for name in ("id", "path") if name in table.column_names]
    if "embedding" not in table.column_names or not names:
        raise StoreError(
            f"{path} has the columns {', '.join(table.column_names)}; `embedding` and `id` or `path` are wanted."
        )
    table = table.filter(table["embedding"].is_valid())
    vectors = _matrix(path, table)
    told = json.loads((table.schema.metadata or {}).get(b"myna", b"{}"))
    windowed = told.get("rows") == "windows"
    starts_s = table["start_s"].to_numpy().astype(np.float64) if windowed else np.zeros(len(table))
    rows: dict[str, dict[str, list[int]]] = {name: {} for name in ("id", "path")}
    for name in names:
        for row, value in enumerate(table[name].to_pylist()):
            rows[name].setdefault(str(value), []).append(row)
        twice = [value for value, found in rows[name].items() if len(found) > 1]
        if twice and not windowed:
            raise StoreError(f"{path} has several rows for the {name} {twice[0]}; one each is wanted.")

    def found(name: str, value: str) -> Found | None:
        places = rows[name].get(value)
        return None if places is None else (vectors[places], starts_s[places])

    return Precomputed(
        path,
        by_id=lambda value: found("id", value),
        by_file=lambda file: found("path", track_name(Path(os.path.abspath(file)))),
        dim=vectors.shape[1],
        hash=xxhash.xxh3_128_hexdigest(vectors.tobytes() + json.dumps(rows).encode()),
        window_s=told["window_samples"] / told["front_end"]["rate_hz"] if windowed else None,
    )


def _matrix(path: Path, table: pa.Table) -> Float32[np.ndarray, "row dim"]:
    kind = table["embedding"].type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not listed or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise StoreError(f"{path} has an `embedding` of the type {kind}; lists of numbers are wanted.")
    lists = table["embedding"].to_pylist()
    if not lists:
        raise StoreError(f"{path} has no vectors: every `embedding` is empty.")
    lengths = {len(one) for one in lists}
    if len(lengths) != 1:
        raise StoreError(f"{path} has vectors of {len(lengths)} different lengths; all of one length are wanted.")
    if not lengths.pop():
        raise StoreError(f"{path} has empty vectors; one number at least is wanted in each.")
    vectors = np.array(lists, np.float32)
    if not np.isfinite(vectors).all():
        raise StoreError(f"{path} has vectors with NaN or infinite values: replace them first.")
    return vectors


def _open_folder(folder: Path) -> Precomputed:
    """Open a folder of .npy, each (dim,) or (window, dim), called as the item or as the file without its suffix."""
    files = {str(file.relative_to(folder).with_suffix("")): file for file in sorted(folder.rglob("*.npy"))}
    if not files:
        raise StoreError(f"{folder} holds no .npy files: one an item, or one a file of music, is wanted.")
    digest, dims = xxhash.xxh3_128(), set()
    for name, file in files.items():
        vectors = _read_npy(file)
        digest.update(name.encode() + vectors.tobytes())
        dims.add(vectors.shape[1])
    if len(dims) != 1:
        raise StoreError(f"The vectors in {folder} are {sorted(dims)} long; all of one length are wanted.")

    def found(name: str) -> Found | None:
        if name not in files:
            return None
        vectors = _read_npy(files[name])
        return vectors, np.zeros(len(vectors))

    return Precomputed(
        folder, by_id=found, by_file=lambda file: found(file.stem), dim=dims.pop(), hash=digest.hexdigest()
    )


def _read_npy(file: Path) -> Float32[np.ndarray, "window dim"]:
    try:
        vectors = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{file} cannot be read as an array of numbers ({error}).") from error
    if vectors.ndim not in (1, 2) or not vectors.size or not np.issubdtype(vectors.dtype, np.floating):
        raise StoreError(f"{file} is {vectors.dtype} of shape {vectors.shape}; floats (dim,) or (window, dim) wanted.")
    if not np.isfinite(vectors).all():
        raise StoreError(f"{file} has NaN or infinite values: replace them first.")
    return np.atleast_2d(vectors).astype(np.float32)
