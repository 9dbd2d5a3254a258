"""Archives are unpacked, split ones without joining them on disk first."""

import io
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from myna.errors import TaskError

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")


class Joined(io.RawIOBase):
    """Files read as one, as if they had been joined end to end."""

    def __init__(self, paths: Sequence[Path]):
        self.files = [open(path, "rb") for path in paths]  # noqa: SIM115 (closed in close)
        self.starts = [0]
        for path in paths:
            self.starts.append(self.starts[-1] + path.stat().st_size)
        self.at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.starts[-1]}[whence] + offset
        return self.at

    def readinto(self, buffer) -> int:
        for file, start, end in zip(self.files, self.starts[:-1], self.starts[1:], strict=True):
            if start <= self.at < end:
                file.seek(self.at - start)
                count = file.readinto(memoryview(buffer)[: end - self.at])
                self.at += count
                return count
        return 0

    def close(self) -> None:
        for file in self.files:
            file.close()
        super().close()


def unpack(parts: Sequence[Path], into: Path) -> int:
    """Unpack one archive, given as its parts in order, into a folder; return how many files it held.

    The folder appears when everything is in it. Links and devices are left out. Raises TaskError if the folder is
    there already, if the archive is damaged, or if it names a place outside of the folder.
    """
    if into.exists():
        raise TaskError(f"{into} is there already: remove it to unpack {parts[0].name} again.")
    building = into.with_name(f".{into.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with io.BufferedReader(Joined(parts), 1 << 20) as file:
            for name, content in _members(parts[0].name, file):
                place = building / _inside(name, parts[0])
                place.parent.mkdir(parents=True, exist_ok=True)
                with content, open(place, "wb") as out:
                    shutil.copyfileobj(content, out, 1 << 20)
                count += 1
        if not count:
            raise TaskError(f"{parts[0]} holds no files: get it again.")
        building.rename(into)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise TaskError(f"{parts[0]} cannot be unpacked ({error}): is it whole, with all its parts?") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return count


def _members(name: str, file: io.BufferedIOBase) -> Iterator[tuple[str, io.BufferedIOBase]]:
    if ".zip" in name:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    yield member.filename, archive.open(member)
        return
    with tarfile.open(fileobj=file) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content


def _inside(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise TaskError(f"{archive} names {name}, outside of the folder it is unpacked into: it is not to be trusted.")
    return path


def plan(found: Sequence[Path]) -> dict[Path, list[Path]]:
    """Say which folder each archive goes into, beside it and named as it; parts .001, .002 are one archive.

    A whole archive wins over its parts.
    """
    jobs: dict[Path, list[Path]] = {}
    for path in sorted(found):
        whole = path.with_suffix("") if path.suffix[1:].isdigit() else path
        suffix = next((end for end in SUFFIXES if whole.name.endswith(end)), whole.suffix)
        into = whole.with_name(whole.name.removesuffix(suffix))
        if whole not in jobs.get(into, []):
            jobs[into] = [path] if path == whole else [*jobs.get(into, []), path]
    return jobs
