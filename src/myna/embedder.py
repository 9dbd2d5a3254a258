"""The public face: audio in, vectors out.

model = Myna.from_pretrained("runs/a")
model.encode(["a.mp3", "b.flac"])        # (2, dim) float32
"""

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64

from myna.audio import AudioStream, resample
from myna.checkpoint import open_checkpoint
from myna.device import Precision, cores, pick_device, pick_precision
from myna.errors import AudioError, ConfigError
from myna.mel import MelSpectrogram
from myna.model import MynaModel
from myna.patch import PATCHES, Kind
from myna.track import tags_of

Music = str | Path | np.ndarray


@dataclass(frozen=True)
class Embedding:
    """The vectors of one track.

    `embeddings` (window, dim) and `starts_s` (window,) are those of its windows, `vector` their mean. `padded` says
    that the track was shorter than one window and was filled up with silence.
    """

    embeddings: Float32[np.ndarray, "window dim"]
    starts_s: Float64[np.ndarray, " window"]
    padded: bool = False
    duration_s: float | None = None
    decoded_s: float = 0.0
    damaged: int = 0
    content_hash: str = ""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def vector(self) -> Float32[np.ndarray, " dim"]:
        return self.embeddings.mean(axis=0, dtype=np.float64).astype(np.float32)


@dataclass
class _Track:
    """A track whose windows are on their way."""

    number: int
    starts: list[int] = field(default_factory=list)  # in samples
    vectors: list[np.ndarray] = field(default_factory=list)
    padded: bool = False
    facts: dict[str, Any] = field(default_factory=dict)  # what else an Embedding tells
    whole: bool = False  # all of its windows have been cut
    error: AudioError | None = None

    @property
    def done(self) -> bool:
        return self.whole and len(self.vectors) == len(self.starts)

    def result(self, rate_hz: int) -> Embedding | AudioError:
        if self.error is not None:
            return self.error
        return Embedding(np.stack(self.vectors), np.array(self.starts) / rate_hz, self.padded, **self.facts)


Event = tuple[Any, np.ndarray | None]  # whose window it is, and the window; None after its last


class Myna:
    """A trained model, ready to embed music.

    `patches` chooses the representation of a hybrid: "square", "vertical", or None for all, side by side.
    `window_samples` is the length of a window at 16 kHz, the segment of the training unless given.
    """

    def __init__(
        self,
        model: MynaModel,
        *,
        patches: Kind | None = None,
        window_samples: int | None = None,
        device: str | None = None,
        precision: Precision = "auto",
        batch: int | None = None,
        hash: str = "",
    ) -> None:
        self.device = pick_device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.kinds = model.config.patches if patches is None else (patches,)
        if not set(self.kinds) <= set(model.config.patches):
            raise ConfigError(f"The model has {' and '.join(model.config.patches)} patches, not {patches}.")
        self.window_samples = window_samples or model.config.segment_samples
        if self.window_samples < self._least_samples():
            raise ConfigError(
                f"A window of {self.window_samples} samples was given; one patch needs {self._least_samples()}."
            )
        self.front_end = model.config.front_end
        self.precision = pick_precision(precision, self.device)
        # on a CPU a few windows at a time stay in the cache; a GPU wants many
        self.batch = batch or (16 if self.device.type == "cpu" else 256)
        if self.batch < 1:
            raise ConfigError(f"A batch of {self.batch} windows was asked for; at least 1 is needed.")
        self.hash = hash
        self._mel = MelSpectrogram(self.front_end).to(self.device)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> "Myna":
        """Load a run folder (its newest checkpoint) or a model folder; `options` are those of `Myna`."""
        found = open_checkpoint(source)
        return cls(found.model(), hash=found.hash, **options)

    @property
    def dim(self) -> int:
        return self.model.config.dim * len(self.kinds)

    @property
    def rate_hz(self) -> int:
        return self.front_end.rate_hz

    @property
    def representations(self) -> dict[str, slice]:
        """Name the columns of a vector that can be used by themselves: of a hybrid each half, and both."""
        dim = self.model.config.dim
        found = {kind: slice(i * dim, (i + 1) * dim) for i, kind in enumerate(self.kinds)}
        return found if len(found) == 1 else {**found, "both": slice(0, self.dim)}

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the vectors besides the weights."""
        return {"precision": self.precision, "front_end": self.front_end.model_dump()}

    def encode(
        self,
        music: Music | Sequence[Music],
        *,
        rate_hz: int | None = None,
        windows: bool = False,
        hop_s: float | None = None,
    ) -> np.ndarray | Embedding | list[Embedding]:
        """Embed a file, an array of samples, or a list of them.

        Samples are (samples,) or (channels, samples) in -1 to 1, with their `rate_hz`. Returns (dim,) for one, (n, dim)
        for a list; with `windows`, an `Embedding` or a list of them. `hop_s` is the distance of two windows, their own
        length unless given. Raises AudioError for a file that cannot be used.
        """
        one = isinstance(music, str | Path | np.ndarray)
        found: list[Embedding] = [None] * (1 if one else len(music))  # type: ignore[list-item]
        one_of = [music] if one else music
        for number, result in self.stream(one_of, rate_hz=rate_hz, hop_s=hop_s):
            if isinstance(result, AudioError):
                name = "The array" if isinstance(one_of[number], np.ndarray) else str(one_of[number])
                raise AudioError(f"{name} cannot be used: {result}") from result
            found[number] = result
        if windows:
            return found[0] if one else found
        if one:
            return found[0].vector
        return np.stack([e.vector for e in found]) if found else np.empty((0, self.dim), np.float32)

    def stream(
        self,
        music: Iterable[Music],
        *,
        rate_hz: int | None = None,
        hop_s: float | None = None,
        workers: int | None = None,
    ) -> Iterator[tuple[int, Embedding | AudioError]]:
        """Embed many tracks, yielding (place in `music`, result) as they are done.

        Files are decoded by `workers` threads, a bounded stretch ahead of the encoder; windows of different tracks
        share a batch. A file that cannot be used yields its AudioError, and the rest goes on.
        """
        hop = self.hop_samples(hop_s)
        if workers is not None and workers < 1:
            raise ConfigError(f"{workers} workers were asked for; at least 1 is needed.")
        waiting: list[tuple[_Track, np.ndarray]] = []
        with Decoders(enumerate(music), lambda one: self._cut(one, rate_hz, hop), workers) as events:
            for track, window in events:
                if window is not None:
                    waiting.append((track, window))
                else:
                    track.whole = True
                    if track.done:
                        yield track.number, track.result(self.rate_hz)
                if len(waiting) == self.batch:
                    yield from self._flush(waiting)
            yield from self._flush(waiting)

    def hop_samples(self, hop_s: float | None) -> int:
        """Return the samples from one window to the next."""
        if hop_s is None:
            return self.window_samples
        if not (math.isfinite(hop_s) and round(hop_s * self.rate_hz) >= 1):
            raise ConfigError(f"A hop of {hop_s} s was given; it must be above 0.")
        return round(hop_s * self.rate_hz)

    def _flush(self, waiting: list[tuple[_Track, np.ndarray]]) -> Iterator[tuple[int, Embedding | AudioError]]:
        """Embed the windows that wait, and yield the tracks that are complete by it."""
        if not waiting:
            return
        vectors = self.embed_windows(np.stack([window for _, window in waiting]))
        tracks = {track.number: track for track, _ in waiting}
        for (track, _), vector in zip(waiting, vectors, strict=True):
            track.vectors.append(vector)
        waiting.clear()
        for track in tracks.values():
            if track.done:
                yield track.number, track.result(self.rate_hz)

    @torch.inference_mode()
    def embed_windows(self, samples: Float32[np.ndarray, "window samples"]) -> Float32[np.ndarray, "window dim"]:
        """Embed windows of mono samples at the model's rate."""
        mel = self._mel(torch.from_numpy(samples).to(self.device))
        bf16 = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            parts = [self.model.encode(mel, (kind,)) for kind in self.kinds]
        return torch.cat([part.float() for part in parts], dim=1).cpu().numpy()

    def _cut(self, one: tuple[int, Music], rate_hz: int | None, hop: int) -> Iterator[Event]:
        """Decode one track and cut it into windows; a last stretch shorter than a window is left out."""
        number, music = one
        track = _Track(number)
        try:
            if isinstance(music, np.ndarray):
                blocks = _array_blocks(track, music, rate_hz, self.rate_hz)
            else:
                blocks = _file_blocks(track, music, self.rate_hz)
            rest, start = np.empty(0, np.float32), 0  # samples from `start` on
            for block in blocks:
                rest = np.concatenate([rest, block])
                while len(rest) >= self.window_samples and len(rest) >= hop:
                    track.starts.append(start)
                    yield track, rest[: self.window_samples].copy()
                    rest, start = rest[hop:], start + hop
            if len(rest) >= self.window_samples or not track.starts:
                track.padded = not track.starts and len(rest) < self.window_samples
                track.starts.append(start)
                window = np.zeros(self.window_samples, np.float32)
                window[: len(rest)] = rest[: self.window_samples]
                yield track, window
        except AudioError as error:
            track.error = error
        yield track, None

    def _least_samples(self) -> int:
        """Return the samples of a window that holds one patch of every kind."""
        frames = max(PATCHES[kind].frames for kind in self.model.config.patches)
        return (frames - 1) * self.model.config.front_end.hop_samples


def _array_blocks(track: _Track, samples: np.ndarray, rate_hz: int | None, to_hz: int) -> Iterator[np.ndarray]:
    if rate_hz is None:
        raise ConfigError("An array of samples was given without its rate: say encode(samples, rate_hz=44100).")
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[0] > 64):
        raise AudioError(
            f"its shape is {samples.shape}; (samples,) or (channels, samples), 64 channels at most, was wanted"
        )
    mono = np.asarray(samples if samples.ndim == 1 else samples.mean(axis=0), np.float32)
    if not np.issubdtype(samples.dtype, np.floating) or not len(mono) or not np.isfinite(mono).all():
        raise AudioError("it must hold at least one sample, all of them finite floats in -1 to 1")
    track.facts = {"duration_s": len(mono) / rate_hz, "decoded_s": len(mono) / rate_hz}
    yield resample(mono, rate_hz, to_hz)


def _file_blocks(track: _Track, path: str | Path, rate_hz: int) -> Iterator[np.ndarray]:
    with AudioStream(path, rate_hz=rate_hz) as stream:
        yield from stream
        track.facts = {name: getattr(stream, name) for name in ("duration_s", "decoded_s", "damaged", "content_hash")}
        track.facts["tags"] = tags_of(stream.container, stream.stream)


class Decoders:
    """Threads that each decode a piece of work at a time, never far ahead of whoever iterates.

    `cut` turns a piece into events.
    """

    def __init__(
        self,
        music: Iterable[tuple[int, Any]],
        cut: Callable[[tuple[int, Any]], Iterator[Event]],
        workers: int | None,
    ) -> None:
        self.music, self.cut, self.lock = iter(music), cut, threading.Lock()
        self.events: queue.Queue[Event | BaseException | None] = queue.Queue(maxsize=64)
        self.stop = threading.Event()
        count = workers or min(8, cores())
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def __enter__(self) -> Iterator[Event]:
        for thread in self.threads:
            thread.start()
        return self._events()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _events(self) -> Iterator[Event]:
        running = len(self.threads)
        while running:
            event = self.events.get()
            if event is None:
                running -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                yield event

    def _work(self) -> None:
        try:
            while (one := self._next()) is not None:
                for event in self.cut(one):
                    self._put(event)
                    if self.stop.is_set():
                        return
        except BaseException as error:
            self._put(error)
        self._put(None)

    def _next(self) -> tuple[int, Any] | None:
        with self.lock:
            return next(self.music, None)

    def _put(self, event: Event | BaseException | None) -> None:
        while not self.stop.is_set():
            with suppress(queue.Full):
                self.events.put(event, timeout=0.1)
                return
