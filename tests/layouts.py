"""Small benchmarks in the layouts of the real ones: files that look the same, with made-up songs and sounds."""

import shutil
from pathlib import Path

from sounds import tone, write_audio


def sound(path, seconds=1.0, rate_hz=16_000):
    """Write a short tone; the suffix decides the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_audio(path, tone(seconds, rate_hz=rate_hz), rate_hz)


def copies(source, paths):
    """Put the same sound at many places, which costs nothing."""
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)


def table(path, header, rows, delimiter="\t", quoted=False):
    """Write a table as published ones are: all fields in quotation marks, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = '"' if quoted else ""
    lines = [delimiter.join(f"{mark}{value}{mark}" for value in row) for row in (header, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
