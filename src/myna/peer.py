"""Models that stand in one table: anything that turns windows of samples into vectors, by one small interface.

An item of a benchmark is a stretch of a file. A file is decoded once for all of its items, each is cut into
non-overlapping windows from its own start on, a last stretch shorter than a window is left out, and an item that is
shorter than one window is filled up with silence.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from myna import recipe
from myna.audio import AudioStream
from myna.baseline import baselines
from myna.checkpoint import model_hash
from myna.embedder import Decoders, Embedding, Event, Myna, Piece, embed_pieces
from myna.errors import AudioError, ConfigError
from myna.huggingface import HuggingFace, Pooling
from myna.model import MynaModel
from myna.patch import Kind
from myna.precomputed import Precomputed
from myna.task.base import Item


@runtime_checkable
class Embedder(Protocol):
    """What turns windows into vectors; `Myna` is one.

    `window_samples` None means that a stretch is not cut: all of it is one window. `representations` names columns of
    the vectors that can be used by themselves, which come from one pass. `hash` changes with any weight, `settings`
    hold what else decides the vectors.
    """

    batch: int
    window_samples: int | None

    @property
    def hash(self) -> str: ...

    @property
    def rate_hz(self) -> int: ...

    @property
    def dim(self) -> int: ...

    @property
    def representations(self) -> dict[str, slice]: ...

    @property
    def settings(self) -> dict[str, Any]: ...

    def embed_windows(self, samples: Float32[np.ndarray, "window samples"]) -> Float32[np.ndarray, "window dim"]: ...


@dataclass(frozen=True)
class Peer:
    """A row of the table: a name, and what gives the vectors."""

    name: str
    source: Embedder | Precomputed

    @property
    def hash(self) -> str:
        return self.source.hash

    @property
    def representations(self) -> dict[str, slice]:
        return self.source.representations

    def about(self) -> dict[str, Any]:
        """Return everything that decides the vectors: two sets that differ in it are never mixed."""
        if isinstance(self.source, Precomputed):
            return {"model": self.hash, "dim": self.source.dim}
        return {
            "model": self.hash,
            "dim": self.source.dim,
            "rate_hz": self.source.rate_hz,
            "window_samples": self.source.window_samples,
            **self.source.settings,
        }

    def embed_items(
        self, items: Sequence[Item], *, workers: int | None = None
    ) -> Iterator[tuple[int, Embedding | AudioError]]:
        """Embed items, yielding (place in `items`, result) as they are done; whatever fails, the rest goes on."""
        if isinstance(self.source, Precomputed):
            return self.source.embed_items(items)
        return embed_items(self.source, items, workers=workers)


def open_peer(
    name: str,
    *,
    patches: Kind | None = None,
    window_samples: int | None = None,
    layer: str = "last",
    pooling: Pooling = "mean",
    trust_remote_code: bool = False,
    device: str | None = None,
    batch: int | None = None,
    seed: int = 0,
) -> Peer:
    """Find a model by its name.

    `mel-statistics`, `mfcc`, `chroma`; `untrained:RECIPE`; `hf:ID` with its layer and pooling; `FILE.parquet` or
    `npy:FOLDER` with vectors that exist; else a run, a model folder, or what else `Myna.from_pretrained` knows.
    Raises ConfigError or CheckpointError for what cannot be found.
    """
    kind, colon, rest = name.partition(":")
    myna_options = {"patches": patches, "window_samples": window_samples, "device": device, "batch": batch}
    if name in (fixed := baselines()):
        return Peer(name, fixed[name])
    if colon and kind == "untrained":
        model = MynaModel(recipe.get(rest).model, seed=seed)
        return Peer(name, Myna(model, hash=model_hash(model), **myna_options))
    if colon and kind == "hf":
        options = {"layer": layer, "pooling": pooling, "trust_remote_code": trust_remote_code}
        return Peer(name, HuggingFace(rest, window_samples=window_samples, device=device, batch=batch, **options))
    if (colon and kind == "npy") or name.endswith(".parquet"):
        return Peer(name, Precomputed.open(rest if kind == "npy" else name))
    if not name:
        raise ConfigError(f"A model without a name was given: a run folder, or one of {', '.join(fixed)}, was wanted.")
    return Peer(name, Myna.from_pretrained(name, **myna_options))


@dataclass(kw_only=True)
class _Stretch(Piece):
    """An item whose windows are on their way: samples `start` to `stop` of its file."""

    start: int
    stop: float  # infinite: to the end of the file
    rest: list[np.ndarray] = field(default_factory=list)  # samples that are in no window yet

    def take(self, block: np.ndarray, at: int, window: int | None) -> Iterator[Event]:
        """Take its share of the block that begins at sample `at`; yield the windows that this completes."""
        end = int(min(self.stop, at + len(block)))
        if len(share := block[max(0, self.start - at) : max(0, end - at)]):
            self.rest.append(share)
        if window is None or sum(map(len, self.rest)) < window:
            return
        rest = np.concatenate(self.rest)
        for first in range(0, len(rest) - window + 1, window):
            yield self._window(rest[first : first + window].copy())
        self.rest = [rest[len(rest) - len(rest) % window :]]

    def finish(self, window: int | None, rate_hz: int) -> Iterator[Event]:
        """Yield the only window of a stretch that is not cut, or that is shorter than one; then None."""
        rest = np.concatenate([np.empty(0, np.float32), *self.rest])
        if not self.starts and not len(rest):
            self.error = AudioError(f"the file ends before {self.start / rate_hz:g} s, where the item begins")
        elif not self.starts:
            self.padded = window is not None
            yield self._window(np.pad(rest, (0, max(0, (window or 0) - len(rest)))))
        self.rest = []
        yield self, None

    def _window(self, samples: np.ndarray) -> Event:
        self.starts.append(self.starts[-1] + len(samples) if self.starts else self.start)
        return self, samples


def embed_items(
    embedder: Embedder, items: Sequence[Item], *, workers: int | None = None
) -> Iterator[tuple[int, Embedding | AudioError]]:
    """Embed stretches of files, yielding (place in `items`, result) as they are done.

    `starts_s` of a result count from the start of the file. A file that cannot be used yields its AudioError for each
    of its items.
    """
    files: dict[Path, list[int]] = {}
    for number, item in enumerate(items):
        files.setdefault(item.path, []).append(number)
    rate_hz, window = embedder.rate_hz, embedder.window_samples

    def cut(one: tuple[int, tuple[Path, list[int]]]) -> Iterator[Event]:
        path, numbers = one[1]
        return _cut(path, [_stretch(number, items[number], rate_hz) for number in numbers], rate_hz, window)

    decoders = Decoders(enumerate(files.items()), cut, workers)
    return embed_pieces(decoders, embedder.embed_windows, batch=embedder.batch, rate_hz=rate_hz)


def _stretch(number: int, item: Item, rate_hz: int) -> _Stretch:
    length = math.inf if item.length_s is None else item.length_s
    stop = math.inf if math.isinf(length) else round((item.start_s + length) * rate_hz)
    return _Stretch(number=number, start=round(item.start_s * rate_hz), stop=stop)


def _cut(path: Path, stretches: list[_Stretch], rate_hz: int, window: int | None) -> Iterator[Event]:
    """Decode a file as far as its stretches reach, and cut them; each is followed by a None."""
    todo, at = list(stretches), 0
    try:
        with AudioStream(path, rate_hz) as stream:
            for block in stream:
                for stretch in todo:
                    yield from stretch.take(block, at, window)
                at += len(block)
                for stretch in [one for one in todo if at >= one.stop]:
                    yield from stretch.finish(window, rate_hz)
                    todo.remove(stretch)
                if not todo:
                    return
        for stretch in todo:
            yield from stretch.finish(window, rate_hz)
    except AudioError as error:
        for stretch in todo:
            stretch.error = error
            yield stretch, None
