"""Small files are fetched from their public source, only when the user asks for it."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from myna.disk import write_bytes
from myna.errors import TaskError

MOST_BYTES = 10_000_000  # lists are some kilobytes; whatever is much larger is something else


def download(url: str, out: Path, accept: Callable[[bytes], None], *, timeout_s: float = 30.0) -> Path:
    """Fetch a file, hand it to `accept`, which raises if it is another, and only then put it in its place.

    Raises TaskError without a network, and for whatever the server refuses.
    """
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            content = answer.read(MOST_BYTES + 1)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        why = getattr(error, "reason", None) or error
        raise TaskError(
            f"{url} could not be downloaded ({why}): is there a network? Else put it by hand at {out}."
        ) from error
    if len(content) > MOST_BYTES:
        raise TaskError(f"{url} is larger than {MOST_BYTES // 1_000_000} MB: that is not the file that was wanted.")
    accept(content)
    write_bytes(out, content)
    return out
