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
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import xxhash
from jaxtyping import Float16, Float32, UInt8

from myna.disk import flush, write_bytes
from myna.errors import StoreError, first_line
from myna.mel import FrontEnd

FORMAT, VERSION = "myna-store", 1
SUFFIX = {"float16": ".f16", "uint8": ".u8"}  # of the data files, for each dtype that a store can have
FILE_BYTES = 1 << 30  # a data file beyond this size takes no further track
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


def _manifest_name(part: int, parts: int) -> str:
    return f"manifest-{part}-of-{parts}.parquet"


def _read_manifests(path: Path, parts: int) -> pa.Table:
    missing = [part for part in range(parts) if not (path / _manifest_name(part, parts)).exists()]
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
    tables = [_read_manifest(path / _manifest_name(part, parts)) for part in range(parts)]
    kinds: dict[str, set[pa.DataType]] = {}
    for field in (field for table in tables for field in table.schema if field.name not in SCHEMA):
        kinds.setdefault(field.name, set()).add(field.type)
    for name in (name for name, found in kinds.items() if len(found) > 1):  # parts disagree about a user's column
        tables = [_as_text(table, name) if name in table.column_names else table for table in tables]
    return pa.concat_tables(tables, promote_options="default").sort_by("path")


def _read_manifest(path: Path) -> pa.Table:
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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one sentence when a disk is full or refuses to be written."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"The store {path} could not be written ({error.strerror or error}): mend that and run the same "
            "command again; what was finished is kept."
        ) from error


def _write_all(file: RawIOBase, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # a disk that fills up takes a part first and refuses the rest
        rest = rest[file.write(rest) :]


class Part:
    """The bookkeeping of one part of a store while `prepare` writes it: begin, many writers, finish.

    A journal that ends in half a line, and data beyond the last journalled track, are what a kill leaves
    behind; `begin` cuts both off.
    """

    def __init__(self, path: Path, front_end: FrontEnd, part: int = 0, parts: int = 1, dtype: str = "float16"):
        self.path, self.front_end, self.dtype = path, front_end, dtype
        self.row_bytes, self.suffix = front_end.bands * np.dtype(dtype).itemsize, SUFFIX[dtype]
        self.prefix = f"part{part}-"
        self.manifest_path = path / _manifest_name(part, parts)
        self.old_manifest_path = path / "journal" / f"{self.prefix}manifest.parquet"
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            if not (path / "store.json").exists():
                if any(not entry.name.startswith(".") for entry in path.iterdir()):
                    raise StoreError(f"{path} is a folder with other things in it: name a new one for the store.")
                settings = {
                    "format": FORMAT,
                    "version": VERSION,
                    "parts": parts,
                    "front_end": front_end.model_dump(),
                    "dtype": dtype,
                }
                write_bytes(path / "store.json", json.dumps(settings, indent=2).encode())
        found = read_settings(path)
        if found.parts != parts:
            raise StoreError(f"{path} is made in {found.parts} part(s), not {parts}: use --shard i/{found.parts}.")
        for name, wanted in (("front_end", front_end), ("dtype", dtype)):
            had = getattr(found, name)
            if had != wanted:
                raise StoreError(f"{path} was made with {had}, not with {wanted}: prepare into another folder.")
        with writing(path):
            for folder in ("data", "journal"):
                (path / folder).mkdir(exist_ok=True)

    def manifest(self) -> pa.Table | None:
        return _read_manifest(self.manifest_path) if self.manifest_path.exists() else None

    def known(self) -> list[Row]:
        """Return a row for all that is finished: from the manifest, or after a kill from the journal.

        A line of a journal that cannot be read, as power failures leave them, is a file that is not finished. Raises
        StoreError if a manifest is damaged: all that only it knows would be dropped.
        """
        manifest = self.manifest()
        if manifest is not None:
            return manifest.to_pylist()
        old = self.old_manifest_path
        rows = _read_manifest(old).to_pylist() if old.exists() else []
        for journal in self._journals():
            whole, _, _ = journal.read_bytes().rpartition(b"\n")
            rows += [row for line in whole.split(b"\n") if (row := _journalled(line))]
        return rows

    def begin(self, known: Iterable[Row]) -> None:
        """Take the store out of use until `finish`, and cut off what a kill left half-written.

        Rows that a manifest named are neither cut off nor written over: a data file that ends in such rows that are no
        longer in use takes no further track.
        """
        with writing(self.path):
            used = self._used_bytes(known)
            newest = {self.data_file(*at): at for at in self.newest().items()}
            over = [file for file in newest if file.stat().st_size > used[file]]
            begun = any(self._journals()) or self.old_manifest_path.exists()
            if self.manifest_path.exists() or not begun:  # without either, its manifest was deleted
                for writer, number in (newest[file] for file in over):
                    self.data_file(writer, number + 1).touch()
            else:
                for file in over:
                    os.truncate(file, used[file])
            if self.manifest_path.exists():
                self._drop_journal()  # of an update that was killed just after its manifest was written
                os.replace(self.manifest_path, self.old_manifest_path)
                flush(self.path)
            for journal in self._journals():
                whole, newline, _ = journal.read_bytes().rpartition(b"\n")
                os.truncate(journal, len(whole) + len(newline))

    def finish(self, manifest: pa.Table) -> None:
        """Write the manifest: from here on, the part is whole."""
        sink = pa.BufferOutputStream()
        pq.write_table(manifest, sink, compression="zstd")
        with writing(self.path):
            write_bytes(self.manifest_path, sink.getvalue().to_pybytes())
            self._drop_journal()
            for file, used in self._used_bytes(manifest.select(["file", "row", "frames"]).to_pylist()).items():
                if not used:  # what lies between used rows stays: someone may be reading this file
                    file.unlink()

    def _journals(self) -> list[Path]:
        return sorted((self.path / "journal").glob(f"{self.prefix}*.jsonl"))

    def _drop_journal(self) -> None:
        for journal in [*self._journals(), self.old_manifest_path]:
            journal.unlink(missing_ok=True)

    def data_file(self, writer: str, number: int) -> Path:
        return self.path / "data" / f"{writer}-{number:04d}{self.suffix}"

    def newest(self) -> dict[str, int]:
        """Return the number of each writer's newest data file, the only one that tracks are added to."""
        found: dict[str, int] = {}
        for file in self._data_files():
            writer, _, number = file.stem.rpartition("-")
            if number.isdecimal():
                found[writer] = max(found.get(writer, 0), int(number))
        return found

    def _data_files(self) -> list[Path]:
        return sorted((self.path / "data").glob(f"{self.prefix}*{self.suffix}"))

    def _used_bytes(self, rows: Iterable[Row]) -> dict[Path, int]:
        """Return each data file of this part and where its last row in use ends."""
        end: dict[str, int] = {}
        for row in rows:
            if row["frames"]:
                end[row["file"]] = max(end.get(row["file"], 0), row["row"] + row["frames"])
        return {file: end.get(file.name, 0) * self.row_bytes for file in self._data_files()}


def _journalled(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and row.keys() >= SCHEMA.keys() else None


def manifest_table(rows: Iterable[Row]) -> pa.Table:
    """Make the manifest of a part: sorted by path, one set of frames for equal content."""
    rows = sorted(rows, key=lambda row: row["path"])
    frames_of: dict[str, Row] = {}
    for row in sorted((row for row in rows if row["frames"]), key=lambda row: (row["file"], row["row"])):
        frames_of.setdefault(row["content_hash"], row)
    rows = [row | _place(frames_of.get(row["content_hash"], row)) if row["frames"] else row for row in rows]
    columns = {}
    for name, kind in SCHEMA.items():
        values = [row[name] for row in rows]
        columns[name] = pa.array([sorted(dict(tags).items()) for tags in values] if name == "tags" else values, kind)
    for name in sorted({name for row in rows for name in row["extra"]}):
        values = [row["extra"].get(name) for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # manifests that disagree about a column's type
            columns[name] = pa.array([None if value is None else str(value) for value in values])
    return pa.table(columns)


def _place(row: Row) -> Row:
    return {name: row[name] for name in ("frames", "file", "row")}


class Writer:
    """Appends tracks to a part, in files that are its own. Any number of writers may work side by side.

    Blocks of frames belong to nobody until `commit` journals their track; `abort` drops them.
    """

    def __init__(self, part: Part, slot: int, file_bytes: int = FILE_BYTES):
        self.part, self.name, self.file_bytes = part, f"{part.prefix}writer{slot}", file_bytes
        with writing(part.path):
            self.journal = open(part.path / "journal" / f"{self.name}.jsonl", "ab", buffering=0)  # noqa: SIM115
        self.data = None
        self.start = self.frames = 0  # of the current track: its first row, its rows so far

    def append(self, mel: Float32[np.ndarray, "frame band"]) -> None:
        """Add frames of power to the current track."""
        with writing(self.part.path):
            if not self.frames:
                self._choose_file()
            _write_all(self.data, compress(mel, self.part.dtype).tobytes())
            self.frames += len(mel)

    def commit(self, row: Row) -> Row:
        """Finish the current track: from here on, its row and its frames outlive any kill."""
        with writing(self.part.path):
            if self.frames:
                os.fsync(self.data.fileno())
                row = row | {"frames": self.frames, "file": Path(self.data.name).name, "row": self.start}
                self.frames = 0
            _write_all(self.journal, json.dumps(row).encode() + b"\n")
            os.fsync(self.journal.fileno())
        return row

    def abort(self) -> None:
        """Forget the current track's frames."""
        if self.frames:
            with writing(self.part.path):
                self.data.truncate(self.start * self.part.row_bytes)
                self.data.seek(0, os.SEEK_END)  # where the next track begins is read from here
                self.frames = 0

    def close(self) -> None:
        self.abort()
        for file in (self.data, self.journal):
            if file is not None:
                file.close()

    def _choose_file(self) -> None:
        """Go on with our newest data file, or begin another if that is full."""
        if self.data is None or self.data.tell() >= self.file_bytes:
            newest = self.part.newest().get(self.name, 0)
            path = self.part.data_file(self.name, newest)
            if path.exists() and path.stat().st_size >= self.file_bytes:
                path = self.part.data_file(self.name, newest + 1)
            if self.data is not None:
                self.data.close()
            self.data = open(path, "ab", buffering=0)  # noqa: SIM115
        self.start = self.data.tell() // self.part.row_bytes
