"""One writer at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from myna.errors import RunError

try:
    import fcntl
except ImportError:  # Windows: two writers at once are not noticed there
    fcntl = None


@contextmanager
def only_writer(verb: str, target: Path, *, lock: Path) -> Iterator[None]:
    """Hold a target against others that ask for the same lock, a file whose folder is made if need be.

    The lock ends with this process, however that ends. Raises RunError, without waiting, if another has it.
    """
    if fcntl is None:
        yield
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(lock, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"Another `myna {verb}` is writing to {target}: wait for it, or stop it.") from None
            if not _is_at(file, lock):  # its holder removed it between our opening and holding it
                continue
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_at(file: BinaryIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
