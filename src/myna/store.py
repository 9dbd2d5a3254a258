"""Many mels become one folder, written once and memory-mapped ever after.

    store.json                    format, version, number of parts, front end, dtype of the data
    data/*.f16 or *.u8            rows of `bands` numbers, frame after frame, track after track, companded
    journal/                      only while a part is being written: what is finished so far
    manifest-<i>-of-<N>.parquet   a row a file; written last, so its presence means that part i is whole

A part belongs to one `prepare` at a time (`--shard i/N`); nothing in the folder is written by two parts.
Status "ok" means that `frames` rows from `row` on of data file `file` are this track's; files of equal
content name the same rows. Status "failed" has a `reason` and no frames. Rows that no manifest names any more
stay where they are, since somebody may be reading them, until an update finds the whole file unused.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import xxhash
from jaxtyping import Float16, Float32, UInt8

from myna.errors import StoreError, first_line
from myna.mel import FrontEnd

FORMAT, VERSION = "myna-store", 1
SUFFIX = {"float16": ".f16", "uint8": ".u8"}  # of the data files, for each dtype that a store can have
SCHEMA = {
    "path": pa.string(),
    "content_hash": pa.string(),
    "size_bytes": pa.int64(),
    "mtime_ns": pa.int64(),
    "duration_s": pa.float64(),  # as the file says of itself; null where it does not
    "decoded_s": pa.float64(),
    "damaged": pa.int64(),  # packets that could not be decoded, and stretches of impossible samples
    "frames": pa.int64(),
    "tags": pa.map_(pa.string(), pa.string()),
    "status": pa.string(),  # "ok" or "failed"
    "reason": pa.string(),
    "codec": pa.string(),
    "source_rate_hz": pa.int64(),
    "channels": pa.int64(),
    "file": pa.string(),
    "row": pa.int64(),
}
Row = dict[str, Any]  # one value for each name in SCHEMA, and `extra`: the columns of the user's own manifest
Companded = TypeVar("Companded", np.ndarray, torch.Tensor)


STEP = float(np.log2(1e5 / 1e-9)) / 254  # in log2 of power, from one byte to the next
BELOW = 1e-9 / 2**STEP  # the power that byte 0 would stand for if it did not stand for silence


def compress(
    power: Float32[np.ndarray, "..."], dtype: str = "float16"
) -> Float16[np.ndarray, "..."] | UInt8[np.ndarray, "..."]:
    """Compand power for the store; `expand` takes it back.

    float16 holds the fourth root: 2e-17 to 1e19 come back within 0.2 %, and 0 as 0.
    uint8 holds the logarithm: bytes 1 to 255 are spaced evenly from 1e-9 to 1e5, 0.551 dB apart, so that power between
    comes back within half a step, 0.276 dB or 6.6 %. More becomes 1e5; less than half a step below 1e-9 becomes 0.
    """
    if dtype == "uint8":
        code = np.log2(np.maximum(power, np.finfo(np.float32).tiny))
        code -= np.float32(np.log2(BELOW))
        code *= np.float32(1 / STEP)
        return np.clip(np.rint(code, out=code), 0, 255, out=code).astype(np.uint8)
    root = np.sqrt(np.sqrt(power))
    return np.minimum(root, np.finfo(np.float16).max, out=root).astype(np.float16)


def expand(companded: Companded) -> Companded:
    """Return the power of companded values, in float32; NumPy array or tensor, any shape, either dtype of a store.

    A tensor is expanded on its own device, without waiting for it.
    """
    if isinstance(companded, torch.Tensor):
        value = companded.to(torch.float32, copy=True)
        if companded.dtype == torch.uint8:  # byte 0 becomes exactly 1 under the threshold, every other byte more
            return torch.nn.functional.threshold_(value.mul_(STEP).exp2_(), 1.0, 0.0).mul_(BELOW)
        return value.square_().square_()  # in place: fresh memory costs more than the arithmetic
    value = np.asarray(companded, np.float32)
    if companded.dtype == np.uint8:
        return np.exp2(value * np.float32(STEP)) * np.float32(BELOW) * (companded != 0)
    square = value * value
    return square * square


class Store:
    """A whole store, open for reading: the frames of each piece of music once, however many files hold it.

    Tracks are sorted by content hash, so moving or renaming files changes nothing. Of track i: `frames[i]` rows
    of `files[file_index[i]]` from `row[i]` on; `content_hashes[i]`; and `paths[i]`, the first file with it.
    `manifest` has every file, failed ones too.
    """

    path: Path
    front_end: FrontEnd
    dtype: str  # "float16" or "uint8": how `files` hold power
    manifest: pa.Table
    frames: np.ndarray  # int64 (track,)
    file_index: np.ndarray  # int32 (track,)
    row: np.ndarray  # int64 (track,)
    paths: list[str]
    content_hashes: list[str]
    files: list[np.memmap]  # each (rows, bands) of `dtype`, companded, read-only

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open a store. Raises StoreError if there is none, if a part is missing, or if data is."""
        self = cls()
        self.path = Path(path)
        self.front_end, parts, self.dtype = read_settings(self.path)
        self.manifest = _read_manifests(self.path, parts)
        usable = self.manifest.filter(pc.equal(self.manifest["status"], "ok"))
        usable = usable.sort_by([(name, "ascending") for name in ("content_hash", "file", "row", "path")])
        hashes = usable["content_hash"].to_numpy()
        first = np.ones(len(hashes), bool)
        first[1:] = hashes[1:] != hashes[:-1]
        usable = usable.filter(pa.array(first))
        self.paths, self.content_hashes = usable["path"].to_pylist(), usable["content_hash"].to_pylist()
        self.frames, self.row = usable["frames"].to_numpy(), usable["row"].to_numpy()
        names, owner = np.unique(usable["file"].to_numpy().astype(str), return_inverse=True)
        self.file_index = owner.astype(np.int32)
        ends = [(self.row + self.frames)[owner == i].max() for i in range(len(names))]
        self.files = [
            _map(self.path / "data" / name, (int(rows), self.front_end.bands), self.dtype)
            for name, rows in zip(names, ends, strict=True)
        ]
        return self

    def __reduce__(self):
        return Store.open, (self.path,)  # a worker process maps the files itself instead of receiving their bytes

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def hours(self) -> float:
        return float(self.frames.sum()) / self.front_end.frame_rate_hz / 3600

    @property
    def hash(self) -> str:
        """Identify music and settings, whatever the files are called and wherever their frames lie."""
        told = [FORMAT, VERSION, self.front_end.model_dump(), self.content_hashes, self.frames.tolist()]
        told += [self.dtype] if self.dtype != "float16" else []  # hashes are older than dtypes
        return xxhash.xxh3_128_hexdigest(json.dumps(told).encode())

    def mel(self, track: int) -> Float32[np.ndarray, "frame band"]:
        """Return the power mel spectrogram of a track."""
        start = self.row[track]
        return expand(self.files[self.file_index[track]][start : start + self.frames[track]])

    def first_rows(self) -> np.ndarray:
        """Return where each track begins if all `files` are laid end to end: int64 (track,)."""
        lengths = np.array([0] + [len(file) for file in self.files], np.int64)
        return np.cumsum(lengths)[self.file_index] + self.row


def _map(path: Path, shape: tuple[int, int], dtype: str) -> np.memmap:
    wanted, found = math.prod(shape) * np.dtype(dtype).itemsize, path.stat().st_size if path.exists() else 0
    if found < wanted:
        raise StoreError(
            f"The data file {path} has {found} bytes, but its manifest needs {wanted}: the store is damaged "
            "or was not copied whole; copy it again, or delete it and prepare it again."
        )
    return np.memmap(path, dtype, "r", shape=shape)


class Settings(NamedTuple):
    front_end: FrontEnd
    parts: int
    dtype: str


def read_settings(path: Path) -> Settings:
    """Read what a store is made with. Raises StoreError if there is no store to read."""
    try:
        settings = json.loads((path / "store.json").read_text())
        if not isinstance(settings, dict):
            raise ValueError(f"it holds a {type(settings).__name__}")
    except FileNotFoundError:
        raise StoreError(f"{path} is no mel store (it has no store.json): make one with `myna prepare`.") from None
    except (OSError, ValueError) as error:
        raise StoreError(
            f"The settings of the store, {path / 'store.json'}, cannot be read ({error}): copy that file again, or "
            "delete the store and prepare it again."
        ) from error
    found = (settings.get("format"), settings.get("version"))
    if found != (FORMAT, VERSION):
        raise StoreError(
            f"{path} has format {found[0]} version {found[1]}, but this program reads {FORMAT} version "
            f"{VERSION}: prepare it again, or use the version of myna that wrote it."
        )
    try:
        dtype = settings.get("dtype", "float16")
        if dtype not in SUFFIX:
            raise ValueError(f"dtype is {dtype}, not {' or '.join(SUFFIX)}")
        return Settings(FrontEnd(**settings["front_end"]), int(settings["parts"]), dtype)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"The settings in {path / 'store.json'} are not those of a mel store: {error}.") from error


def manifest_name(part: int, parts: int) -> str:
    return f"manifest-{part}-of-{parts}.parquet"


def _read_manifests(path: Path, parts: int) -> pa.Table:
    missing = [part for part in range(parts) if not (path / manifest_name(part, parts)).exists()]
    if missing and parts == 1:
        raise StoreError(
            f"The store {path} is unfinished: run the `myna prepare` that makes it again, "
            "and it goes on where it stopped."
        )
    if missing:
        which = ", ".join(f"--shard {part}/{parts}" for part in missing)
        raise StoreError(
            f"The store {path} lacks {len(missing)} of its {parts} parts: run `myna prepare` with {which}."
        )
    tables = [read_manifest(path / manifest_name(part, parts)) for part in range(parts)]
    kinds: dict[str, set[pa.DataType]] = {}
    for field in (field for table in tables for field in table.schema if field.name not in SCHEMA):
        kinds.setdefault(field.name, set()).add(field.type)
    for name in (name for name, found in kinds.items() if len(found) > 1):  # parts disagree about a user's column
        tables = [_as_text(table, name) if name in table.column_names else table for table in tables]
    return pa.concat_tables(tables, promote_options="default").sort_by("path")


def read_manifest(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
        if missing := SCHEMA.keys() - set(table.column_names):
            raise pa.ArrowInvalid(f"it has no column {min(missing)}")
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"The manifest {path} is damaged ({first_line(error)}): copy it again, or delete it, and `myna prepare` "
            "with all the music makes it again."
        ) from error
    return table


def _as_text(table: pa.Table, name: str) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, table[name].cast(pa.string()))
