"""Stores of any size for benchmarks, written in seconds: clips that hold noise, or holes that read as silence."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from myna.mel import FrontEnd
from myna.part import Part, manifest_table
from myna.store import SCHEMA, Store, compress

CLIP_FRAMES = 313
FILE_CLIPS = 10_000  # in one data file: 0.8 GB of float16


def synthetic_store(
    folder: Path, clips: int, *, frames: int = CLIP_FRAMES, dtype: str = "float16", holes: bool = False
) -> Store:
    """Write a whole store of `clips` tracks that can be told apart; with `holes` its files are empty but full-sized."""
    part = Part(folder, FrontEnd(), dtype=dtype)
    part.begin([])
    rng, number = np.random.default_rng(0), np.arange(clips)
    for first in range(0, clips, FILE_CLIPS):
        count = min(FILE_CLIPS, clips - first)
        with open(folder / "data" / _name(part, first), "wb") as file:
            if holes:
                file.truncate(count * frames * part.row_bytes)
            for _ in range(0 if holes else count):
                mel = rng.gamma(1.0, 1.0, (1, 128)) * rng.random((frames, 128), np.float32)
                file.write(compress(mel.astype(np.float32), dtype).tobytes())
    columns = {name: pa.nulls(clips, kind) for name, kind in SCHEMA.items()} | {
        "path": pa.array([f"/{n:07d}" for n in number]),
        "content_hash": pa.array([f"{n:032x}" for n in number]),
        "status": pa.array(["ok"] * clips),
        "frames": pa.array(np.full(clips, frames)),
        "file": pa.array([_name(part, n - n % FILE_CLIPS) for n in number.tolist()]),
        "row": pa.array(number % FILE_CLIPS * frames),
    }
    part.finish(pa.table(columns, schema=manifest_table([]).schema))
    return Store.open(folder)


def _name(part: Part, first: int) -> str:
    return f"{part.prefix}synthetic-{first:07d}{part.suffix}"
