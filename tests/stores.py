"""Small stores made from arrays, without any audio."""

from pathlib import Path

import numpy as np

from myna.mel import FrontEnd
from myna.part import Part, Writer, manifest_table
from myna.store import SCHEMA, Store


def make_store(path: Path, mels: list[np.ndarray], *, file_bytes: int = 1 << 30, dtype: str = "float16") -> Store:
    """Write power mels (frame, band) as the tracks of a store, several to a data file."""
    part = Part(path, FrontEnd(bands=mels[0].shape[1] if mels else 128), dtype=dtype)
    part.begin([])
    writer = Writer(part, 0, file_bytes=file_bytes)
    rows = []
    for number, mel in enumerate(mels):
        writer.append(mel.astype(np.float32))
        row = dict.fromkeys(SCHEMA) | {
            "path": f"/music/{number:05d}.wav",
            "content_hash": f"{number:032x}",
            "status": "ok",
            "tags": {},
            "extra": {},
        }
        rows.append(writer.commit(row))
    writer.close()
    part.finish(manifest_table(rows))
    return Store.open(path)


def numbered_mel(frames: int, bands: int = 128, *, first: int = 0) -> np.ndarray:
    """Return a mel whose every value tells where it stands: frame number + band / 1000."""
    frame = np.arange(first, first + frames)[:, None]
    return (frame + np.arange(bands) / 1000.0).astype(np.float32)


def random_mels(count: int, frames: int, *, seed: int = 0) -> list[np.ndarray]:
    """Return tracks that can be told apart: each has a spectrum of its own under noise."""
    rng = np.random.default_rng(seed)
    shapes = rng.gamma(1.0, 1.0, (count, 1, 128)) ** 2
    return [(shape * rng.gamma(2.0, 0.5, (frames, 128))).astype(np.float32) for shape in shapes]
