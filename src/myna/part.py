"""One part of a store while it is being written: what is finished, where it lies, and when it is whole.

`store` says what the folder holds. A part is written by one `prepare`, with a writer for each of its processes.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from myna.disk import flush, write_bytes
from myna.errors import StoreError
from myna.mel import FrontEnd
from myna.store import FORMAT, SCHEMA, SUFFIX, VERSION, Row, compress, manifest_name, read_manifest, read_settings

FILE_BYTES = 1 << 30  # a data file beyond this size takes no further track


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
        self.manifest_path = path / manifest_name(part, parts)
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
        return read_manifest(self.manifest_path) if self.manifest_path.exists() else None

    def known(self) -> list[Row]:
        """Return a row for all that is finished: from the manifest, or after a kill from the journal.

        A line of a journal that cannot be read, as power failures leave them, is a file that is not finished. Raises
        StoreError if a manifest is damaged: all that only it knows would be dropped.
        """
        manifest = self.manifest()
        if manifest is not None:
            return manifest.to_pylist()
        old = self.old_manifest_path
        rows = read_manifest(old).to_pylist() if old.exists() else []
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
            whole = self.manifest_path.exists()
            begun = any(self._journals()) or self.old_manifest_path.exists()
            if whole or not begun:  # without either, its manifest was deleted
                for writer, number in (newest[file] for file in over):
                    self.data_file(writer, number + 1).touch()
            else:
                for file in over:
                    os.truncate(file, used[file])
            if whole:
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
