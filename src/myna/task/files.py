"""Where a benchmark's files lie below the folder that the user named, and what is wrong with them."""

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av

from myna.audio import AudioStream, open_audio
from myna.errors import AudioError, TaskError

DEPTH = 3  # DIR/archive's name/folder in the archive/folder of audio
THREADS = 8  # reading heads of files is waiting, mostly
# what a file begins with, by its suffix: enough to see that a .wav is none, at the cost of one read
SIGNATURES = {".wav": (b"RIFF", b"RIFX", b"RF64"), ".au": (b".snd",)}


def folders(data: Path) -> Iterator[Path]:
    """Give a folder and those below it, nearest first, down to three levels; no hidden ones."""
    if not data.is_dir():
        raise TaskError(f"There is no folder {data}: --data names the folder that holds the benchmark.")
    level = [data]
    for depth in range(DEPTH + 1):
        yield from level
        if depth < DEPTH:
            level = [below for folder in level for below in _subfolders(folder)]


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def find_file(data: Path, name: str, archives: Iterable[str] = ()) -> Path:
    """Find a file by its name. Raises TaskError that says where it was looked for."""
    return find(data, name, lambda folder: (folder / name).is_file(), archives) / name


def find(data: Path, what: str, fits: Callable[[Path], bool], archives: Iterable[str] = ()) -> Path:
    """Find the nearest folder that fits. Raises TaskError that says what was looked for, and of packed archives."""
    for folder in folders(data):
        if fits(folder):
            return folder
    packed = find_archives(data, archives)
    hint = (
        f"there is {', '.join(path.name for path in packed)}, not unpacked: `myna tasks unpack` does it"
        if packed
        else "see what to download with `myna tasks`"
    )
    raise TaskError(f"{what} was looked for in {data} and the folders in it, {DEPTH} deep, and is not there: {hint}.")


def find_archives(data: Path, patterns: Iterable[str]) -> list[Path]:
    """List the archives with such names that lie in the folder itself."""
    return sorted(path for pattern in patterns for path in data.glob(pattern) if path.is_file())


def read_table(
    path: Path, columns: Iterable[str], *, delimiter: str = ",", errors: str = "strict", exact: bool = False
) -> list[dict[str, str]]:
    """Read a table with a header; values as they stand. `exact`: every row must have as many values as the header.

    Raises TaskError without those columns, for a row that lacks one of them, and for other encodings than UTF-8.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors=errors) as file:
            lines = [line for line in csv.reader(file, delimiter=delimiter) if line]
    except (csv.Error, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read as a table in UTF-8: {error}.") from error
    header = [name.strip() for name in lines[0]] if lines else []
    columns = list(columns)
    lacking = [name for name in columns if name not in header]
    if lacking:
        raise TaskError(f"{path} has no column {', '.join(lacking)}; it has {', '.join(header[:12]) or 'none'}.")
    needed = max((header.index(name) + 1 for name in columns), default=0)
    for number, line in enumerate(lines[1:], start=1):
        if len(line) < needed or (exact and len(line) != len(header)):
            raise TaskError(
                f"Row {number} of {path} has {len(line)} values where the header has {len(header)}: is it whole?"
            )
    return [dict(zip(header, line, strict=False)) for line in lines[1:]]


def whole_number(text: str, path: Path) -> int:
    """Read an id. Raises TaskError that names the table."""
    if not text.strip().isdigit():
        raise TaskError(f"{path} has the id {text!r}: a whole number was wanted.")
    return int(text)


def why_unusable(path: Path) -> str | None:
    """Say at first sight why a file cannot be used: it is not there, empty, or no .wav or .au although named so."""
    try:
        size = path.stat().st_size
    except OSError:
        return "no such file"
    if size == 0:
        return "empty, zero bytes"
    signatures = SIGNATURES.get(path.suffix.lower())
    if signatures is None:
        return None
    with open(path, "rb") as file:
        begins = file.read(4)
    if begins in signatures:
        return None
    return f"not a {signatures[0].decode().strip('.')} file, although its name says {path.suffix}"


def why_undecodable(path: Path) -> str | None:
    """Decode the first frame of a file and say why it cannot be done, or None."""
    try:
        with open_audio(path) as (container, stream):
            for frame in container.decode(stream):
                if frame.samples:
                    return None
        return "nothing in the file could be decoded"
    except AudioError as error:
        return str(error)
    except av.FFmpegError as error:
        return f"its beginning cannot be decoded ({error.strerror})"


def probe_s(path: Path) -> float | None:
    """Return the length that the container states, in seconds, as ffprobe's; decoded if it states none.

    None if the file is no audio.
    """
    try:
        with open_audio(path) as (container, _):
            if container.duration is not None:
                return container.duration / av.time_base
        with AudioStream(path) as stream:
            return sum(map(len, stream)) / stream.rate_hz
    except AudioError:
        return None


def for_each(call: Callable, paths: Iterable[Path]) -> list:
    """Call a function on many files at once; the results come in the order of the files."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(call, paths))
