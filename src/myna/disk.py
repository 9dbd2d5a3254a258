"""Files and folders that are there whole, or as they were before, even if the machine stops."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write a file under; without an error it is then flushed and gets its own."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is there whole, or as it was before."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole, or as it was before."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder under a temporary name, flush it to disk, then give it its own name.

    A folder that has this name is put aside first and deleted last: whatever happens, one of the two is there.
    """
    path = path.resolve()  # of a link, what it leads to; "." and ".." have no name of their own
    temporary, old = (path.with_name(f".{path.name}.{kind}.part") for kind in (os.getpid(), "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        for file in temporary.iterdir():
            flush(file)
        flush(temporary)
        _replace_folder(temporary, path, old)
        flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _replace_folder(new: Path, path: Path, old: Path) -> None:
    if not path.is_dir():
        os.replace(new, path)
        return
    shutil.rmtree(old, ignore_errors=True)  # of a process that was killed after its own replacement
    try:
        os.replace(path, old)
        os.replace(new, path)
    except BaseException:  # also Ctrl-C in between
        if not path.exists():
            os.replace(old, path)
        raise


def flush(path: Path) -> None:
    """Make the operating system write a file or folder to disk."""
    if os.name != "posix" and path.is_dir():
        return  # there, folders cannot be opened, and renames are durable by themselves
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some file systems flush files only
            raise
    finally:
        os.close(handle)
