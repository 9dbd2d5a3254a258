"""Files become a mel store: on all cores, in little memory, and resumable after any end.

Each worker process decodes a file at a time into data files of its own; the main process deals out files, and writes
the manifest when all are done. What a worker has journalled is never done again.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash

from myna.audio import AudioStream, Stretch
from myna.device import cores
from myna.errors import AudioError, ConfigError, StoreError
from myna.lock import only_writer
from myna.mel import FrontEnd, MelSpectrogram, MelStream
from myna.part import Part, Writer, manifest_table
from myna.store import SCHEMA, SUFFIX, Row
from myna.track import Track, content_hash, named, read_tags, tags_of

MIN_SAMPLES = 50_000  # one segment of the paper at 16 kHz
ATTEMPTS = 2  # at a file whose decoding kills its worker


@dataclass(frozen=True)
class Summary:
    """What a run did. `hours` is the music of all usable files; `times_real_time` is of what was decoded now."""

    files: int
    new: int
    reused: int
    failed: int
    hours: float
    wall_s: float
    times_real_time: float


@dataclass(frozen=True)
class Standing:
    """How far a run is; `files` are those that had to be looked into, `hours` the music decoded so far."""

    files: int
    done: int
    failed: int
    hours: float
    times_real_time: float
    left_s: float


@dataclass
class _Job:
    """A file to be looked into. Size and time are 0 while it cannot be read, so that it counts as new once it can."""

    path: Path
    name: str
    size_bytes: int
    mtime_ns: int
    stretch: Stretch | None = None
    attempts: int = 0

    @property
    def key(self) -> tuple[str, int, int]:
        return self.name, self.size_bytes, self.mtime_ns

    def row(self, **facts) -> Row:
        nothing = dict.fromkeys(("damaged", "frames", "row", "source_rate_hz", "channels"), 0)
        nothing |= dict.fromkeys(("content_hash", "reason", "codec", "file"), "")
        name = {"path": self.name, "size_bytes": self.size_bytes, "mtime_ns": self.mtime_ns}
        return nothing | name | {"duration_s": None, "decoded_s": 0.0, "tags": {}, "status": "failed"} | facts


def prepare(
    tracks: Sequence[Track],
    out: str | Path,
    *,
    shard: tuple[int, int] = (0, 1),
    workers: int | None = None,
    front_end: FrontEnd | None = None,
    min_samples: int = MIN_SAMPLES,
    dtype: str = "float16",
    progress: Callable[[Standing], None] | None = None,
) -> Summary:
    """Bring a store, or part i of N of it, up to date with the given tracks.

    A file of known size and time is not opened, even if it failed, unless it was its worker that died; one with the
    content of a file that moved or changed is not decoded. Files of the store that are not among the tracks stay in it
    as long as they are there, unchanged. Tracks without `extra` keep what the store has. A file with fewer than
    `min_samples` decodable samples is listed as failed. A track with a stretch is a row of its own, named `Track.name`.
    `dtype` "uint8" takes half the space of "float16", within 6.6 % instead of 0.2 %: see `store.compress`.
    Raises ConfigError and StoreError; KeyboardInterrupt, on SIGTERM too, says how to go on.
    """
    started, front_end = time.monotonic(), front_end or FrontEnd()
    mine = _share(tracks, shard)
    if min_samples < 1 or (workers is not None and workers < 1):
        raise ConfigError(f"min_samples is {min_samples} and workers is {workers}: both must be at least 1.")
    if dtype not in SUFFIX:
        raise ConfigError(f"dtype is {dtype}: a store holds {' or '.join(SUFFIX)}.")
    part = Part(Path(out), front_end, *shard, dtype=dtype)
    with only_writer("prepare", part.path, lock=part.path / f".lock{shard[0]}"):
        known, manifest = part.known(), part.manifest()
        extra = {row["path"]: told for row in known if (told := _extra(row))}
        if extra:
            mine = [track if track.extra else replace(track, extra=extra.get(track.name, {})) for track in mine]
        rows, jobs, gone, others = _plan(mine, known, front_end.rate_hz, min_samples)
        new, decoded_s = 0, 0.0
        if jobs or manifest is None or not manifest.equals(_table(mine, rows, others)):
            with _interruptible(), _Crew(part, workers or cores(), min_samples, gone) as crew:
                part.begin(known)
                for row in _watched(crew.work(jobs), jobs, progress):
                    rows[row["path"]] = row
                    is_new = row["status"] == "ok" and row["content_hash"] not in gone
                    new, decoded_s = new + is_new, decoded_s + row["decoded_s"] * is_new
                manifest = _table(mine, rows, others)
                part.finish(manifest)
    return _summary(manifest, new, decoded_s, time.monotonic() - started)


def _table(tracks: Sequence[Track], rows: dict[str, Row], others: Sequence[Row]) -> pa.Table:
    ours = [rows[track.name] | {"extra": track.extra} for track in tracks]
    return manifest_table([*ours, *(row | {"extra": _extra(row)} for row in others)])


def _extra(row: Row) -> dict[str, Any]:
    """Return the columns of a row that are the user's own."""
    return {name: row[name] for name in row.keys() - SCHEMA.keys()}


def _summary(table: pa.Table, new: int, decoded_s: float, wall_s: float) -> Summary:
    usable = table.filter(pc.equal(table["status"], "ok"))
    return Summary(
        files=len(table),
        new=new,
        reused=len(usable) - new,
        failed=len(table) - len(usable),
        hours=(pc.sum(usable["decoded_s"]).as_py() or 0.0) / 3600,
        wall_s=wall_s,
        times_real_time=decoded_s / wall_s,
    )


def _share(tracks: Sequence[Track], shard: tuple[int, int]) -> list[Track]:
    """Pick a part's tracks, by the hash of where each lies below what the user named: so machines need not agree."""
    part, parts = shard
    if not 0 <= part < parts:
        raise ConfigError(
            f"Shard {part}/{parts} was asked for: parts are counted from 0/{parts} to {parts - 1}/{parts}."
        )
    if not tracks:
        raise ConfigError("There are no tracks to prepare: name files, folders or a manifest.")
    taken = SCHEMA.keys() & {name for track in tracks for name in track.extra}
    if taken:
        raise ConfigError(f"The store has its own column {min(taken)}: rename it in your manifest.")
    keys = (os.fsencode(track.key or track.path.name) for track in tracks)
    return [track for track, key in zip(tracks, keys, strict=True) if xxhash.xxh3_64_intdigest(key) % parts == part]


def _job(track: Track) -> _Job:
    try:
        status = track.path.stat()
        readable = os.access(track.path, os.R_OK)
        size_bytes, mtime_ns = status.st_size * readable, status.st_mtime_ns * readable
    except OSError:
        size_bytes = mtime_ns = 0
    return _Job(track.path, track.name, size_bytes, mtime_ns, track.stretch)


def _plan(
    tracks: Sequence[Track], known: Sequence[Row], rate_hz: int, min_samples: int
) -> tuple[dict[str, Row], list[_Job], dict[str, Row], list[Row]]:
    """Sort out what is settled (by path), what to look into, contents whose file moved or changed (by hash), others.

    The others are files of the store that were not named this time and are still there, unchanged: they stay.
    """
    settled = {
        (row["path"], row["size_bytes"], row["mtime_ns"]): row
        for row in known
        if (row["status"] == "ok") == (round(row["decoded_s"] * rate_hz) >= min_samples)
    }
    jobs = [_job(track) for track in tracks]
    rows = {job.name: settled.pop(job.key) for job in jobs if job.key in settled}
    jobs = [job for job in jobs if job.name not in rows]
    asked = {job.name for job in jobs}
    others = [row for key, row in settled.items() if key[0] not in asked and _job(named(key[0])).key == key]
    there = {row["path"] for row in others}
    gone = {
        row["content_hash"]: {name: row[name] for name in SCHEMA}
        for row in settled.values()
        if row["status"] == "ok" and row["path"] not in there
    }
    return (
        rows,
        sorted(jobs, key=lambda job: -job.size_bytes),
        gone,
        others,
    )  # long ones first, so that all end together


@contextmanager
def _interruptible() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, and have both say how to go on."""
    in_main = threading.current_thread() is threading.main_thread()  # others cannot handle signals
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main else None
    try:
        yield
    except KeyboardInterrupt:
        message = "Stopped; what is finished is kept: run the same command again to go on."
        raise KeyboardInterrupt(message) from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _watched(rows: Iterator[Row], jobs: Sequence[_Job], progress: Callable[[Standing], None] | None) -> Iterator[Row]:
    """Pass rows on as files are finished, telling how far the run is."""
    started, sizes = time.monotonic(), {job.name: job.size_bytes + 1 for job in jobs}
    all_bytes, done_bytes, failed, seconds = sum(sizes.values()), 0, 0, 0.0
    for done, row in enumerate(rows, start=1):
        done_bytes, failed = done_bytes + sizes[row["path"]], failed + (row["status"] == "failed")
        elapsed, seconds = time.monotonic() - started, seconds + row["decoded_s"]
        if progress is not None:
            left_s = elapsed * (all_bytes - done_bytes) / done_bytes
            progress(Standing(len(jobs), done, failed, seconds / 3600, seconds / elapsed, left_s))
        yield row


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    started: bool = False
    job: _Job | None = None


@dataclass
class _Crew:
    """Worker processes and the file that each is at. One that dies costs its file at most, after a second try."""

    part: Part
    size: int
    min_samples: int
    gone: dict[str, Row]
    workers: list[_Worker] = field(default_factory=list)
    processes: list[BaseProcess] = field(default_factory=list)

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *failure) -> None:
        for worker in self.workers:
            worker.connection.close()
            worker.process.terminate()  # at any moment: what is not journalled does not count
        for process in self.processes:
            process.join()

    def work(self, jobs: Sequence[_Job]) -> Iterator[Row]:
        """Yield each file's row as it is finished."""
        waiting = deque(jobs)
        while waiting or any(worker.job for worker in self.workers):
            while len(self.workers) < min(self.size, len(waiting)):
                self._hire()
            for connection in wait([worker.connection for worker in self.workers]):
                worker = next(worker for worker in self.workers if worker.connection is connection)
                row = self._hear(worker, waiting)
                if row is not None:
                    yield row

    def _hire(self) -> None:
        context = multiprocessing.get_context("spawn")  # FFmpeg and torch have threads, which a fork would break
        ours, theirs = context.Pipe()
        arguments = (theirs, self.part, len(self.processes), self.min_samples, self.gone)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        theirs.close()  # so that ours ends when the worker does
        self.workers.append(_Worker(process, ours))
        self.processes.append(process)

    def _hear(self, worker: _Worker, waiting: deque[_Job]) -> Row | None:
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionError):
            return self._bury(worker, waiting)
        if isinstance(message, StoreError):
            raise message
        worker.started, worker.job = True, waiting.popleft() if waiting else None
        if worker.job is None:
            self.workers.remove(worker)
            worker.connection.close()  # which ends it
        else:
            with suppress(ConnectionError):  # if it died since, listening to it will tell
                worker.connection.send(worker.job)
        return message

    def _bury(self, worker: _Worker, waiting: deque[_Job]) -> Row | None:
        self.workers.remove(worker)
        worker.process.join()
        job, code = worker.job, worker.process.exitcode
        if not worker.started:
            raise StoreError(
                f"A worker process could not start (exit code {code}): if a script of yours calls prepare(), let it "
                'do so under `if __name__ == "__main__":`; else see the message above.'
            )
        job.attempts += 1
        if job.attempts < ATTEMPTS:
            waiting.append(job)
            return None
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        reason = f"decoding it ended the worker process ({how}), {ATTEMPTS} times"
        return job.row(reason=reason, size_bytes=0, mtime_ns=0)  # counts as new: what killed it may have passed


def _work(connection: Connection, part: Part, slot: int, min_samples: int, gone: dict[str, Row]) -> None:
    """Be a worker: take files and return rows until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches everyone; the main process ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    transform = MelSpectrogram(part.front_end)
    try:
        writer = Writer(part, slot)
        connection.send(None)
        while True:
            job = connection.recv()
            connection.send(writer.commit(_reused(job, gone) or _ingested(job, writer, transform, min_samples)))
    except StoreError as error:
        connection.send(error)
    except EOFError:
        writer.close()


def _end_with_parent() -> None:
    """Stop at once if the main process was killed: its successor must find nobody writing."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _reused(job: _Job, gone: dict[str, Row]) -> Row | None:
    """Return the row of known content under a new name or with new tags, or None."""
    try:
        known = gone.get(content_hash(job.path, job.stretch)) if gone else None
        if known is None:
            return None
        name = {"path": job.name, "size_bytes": job.size_bytes, "mtime_ns": job.mtime_ns}
        return known | name | {"tags": read_tags(job.path)}
    except AudioError:
        return None  # decoding says why


def _ingested(job: _Job, writer: Writer, transform: MelSpectrogram, min_samples: int) -> Row:
    """Decode a file into the store block by block; return its row, with a reason if it cannot be used."""
    row, mel = job.row(), MelStream(transform=transform)
    stream = AudioStream(job.path, transform.front_end.rate_hz, stretch=job.stretch)
    try:
        with stream:
            row |= {name: getattr(stream, name) for name in ("codec", "source_rate_hz", "channels", "duration_s")}
            row |= {"tags": tags_of(stream.container, stream.stream)}
            for block in stream:
                writer.append(mel.push(block))
            row |= {name: getattr(stream, name) for name in ("decoded_s", "damaged", "content_hash")}
        if stream.samples < min_samples:
            needed_s = min_samples / transform.front_end.rate_hz
            raise AudioError(f"too short: {stream.decoded_s:.2f} s could be decoded, {needed_s:.2f} s are needed")
        writer.append(mel.finish())
    except AudioError as error:
        writer.abort()
        return row | {"reason": str(error)}
    return row | {"status": "ok"}
