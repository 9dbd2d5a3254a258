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
from myna.checkpoint import export_model
from myna.device import Precision, cores, pick_device, pick_precision
from myna.errors import AudioError, ConfigError
from myna.hub import card, open_model, push
from myna.mel import MelSpectrogram
from myna.model import MynaModel
from myna.patch import Kind, least_frames
from myna.track import tags_of

Music = str | Path | np.ndarray
WHOLE_S = 600.0  # a longer track is cut even where whole tracks are asked for: attention grows with the square of it


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
class Piece:
    """A track, or a stretch of one, whose windows are on their way."""

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


Event = tuple[Piece, np.ndarray | None]  # whose window it is, and the window; None after its last


class Myna:
    """A trained model, ready to embed music.

    `patches` chooses the representation of a hybrid: "square", "vertical", or None for all, side by side.
    `window_samples` is the length of a window at 16 kHz, the segment of the training unless given. With `whole` a track
    goes through in one pass, as one window of its own length; only one of more than `window_samples` (10 minutes unless
    given) is cut into as many equal parts as it takes. Whole tracks go one at a time, whatever `batch` says.
    """

    def __init__(
        self,
        model: MynaModel,
        *,
        patches: Kind | None = None,
        window_samples: int | None = None,
        whole: bool = False,
        device: str | None = None,
        precision: Precision = "auto",
        batch: int | None = None,
        hash: str = "",
        about: dict[str, Any] | None = None,
    ) -> None:
        self.device = pick_device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.kinds = model.config.patches if patches is None else (patches,)
        if not set(self.kinds) <= set(model.config.patches):
            raise ConfigError(f"The model has {' and '.join(model.config.patches)} patches, not {patches}.")
        self.whole, segment = whole, model.config.segment_samples
        usual = round(WHOLE_S * model.config.front_end.rate_hz) if whole else segment
        self.window_samples = window_samples or usual
        if self.window_samples < self._least_samples():
            raise ConfigError(
                f"A window of {self.window_samples} samples was given; one patch needs {self._least_samples()}."
            )
        self.front_end = model.config.front_end
        self.precision = pick_precision(precision, self.device)
        # on a CPU a few windows at a time stay in the cache; a GPU wants many. Long ones: as much music
        self.batch = 1 if whole else batch or self._as_much(16 if self.device.type == "cpu" else 256)
        if self.batch < 1:
            raise ConfigError(f"A batch of {self.batch} windows was asked for; at least 1 is needed.")
        self.hash, self.about = hash, about or {}
        self._mel = MelSpectrogram(self.front_end).to(self.device)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None, **options: Any) -> "Myna":
        """Load a run folder (its newest checkpoint), a model folder, a file of the original release, or a Hub id.

        A Hub id (user/name) is fetched once, at a `revision` (branch, tag or commit) if given, and then served from
        the cache. `options` are those of `Myna`; `patches` also says which kind a release file with one kind has, if
        its name does not.
        """
        found = open_model(source, patches=options.get("patches"), revision=revision)
        return cls(found.model(), hash=found.hash, about=found.about, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder, over an older one if there is one."""
        export_model(self.model, Path(folder), about=self.about)

    def push_to_hub(
        self,
        repo: str,
        *,
        licence: str | None = None,
        data: str | None = None,
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Put the model into a Hub repository (user/name) with a model card; return its address.

        `licence` is the Hub's id of the licence that you give the weights, `data` the training music in words.
        """
        text = card(repo, self.model.config, hash=self.hash, about=self.about, data=data, licence=licence)
        return push(self.model, repo, card=text, about=self.about, private=private, token=token)

    def _as_much(self, segments: int) -> int:
        """Return how many windows hold as many samples as so many segments; at least one."""
        return max(1, min(segments, segments * self.model.config.segment_samples // self.window_samples))

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
        return {"patches": list(self.kinds), "precision": self.precision, "front_end": self.front_end.model_dump()}

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
        pieces = Decoders(enumerate(music), lambda one: self._cut(one, rate_hz, hop), workers, ahead=self._as_much(64))
        yield from embed_pieces(pieces, self.embed_windows, batch=self.batch, rate_hz=self.rate_hz)

    def hop_samples(self, hop_s: float | None) -> int:
        """Return the samples from one window to the next; 0 where whole tracks are windows."""
        if self.whole:
            if hop_s is not None:
                raise ConfigError("Whole tracks have no hop: give a hop, or ask for whole tracks.")
            return 0
        if hop_s is None:
            return self.window_samples
        if not (math.isfinite(hop_s) and round(hop_s * self.rate_hz) >= 1):
            raise ConfigError(f"A hop of {hop_s} s was given; it must be above 0.")
        return round(hop_s * self.rate_hz)

    @torch.inference_mode()
    def embed_windows(self, samples: Float32[np.ndarray, "window samples"]) -> Float32[np.ndarray, "window dim"]:
        """Embed windows of mono samples at the model's rate."""
        mel = self._mel(torch.from_numpy(samples).to(self.device))
        bf16 = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            parts = [self.model.encode(mel, (kind,)) for kind in self.kinds]
        return torch.cat([part.float() for part in parts], dim=1).cpu().numpy()

    def _cut(self, one: tuple[int, Music], rate_hz: int | None, hop: int) -> Iterator[Event]:
        """Decode one track and cut it into windows."""
        number, music = one
        track = Piece(number)
        try:
            if isinstance(music, np.ndarray):
                blocks = _array_blocks(track, music, rate_hz, self.rate_hz)
            else:
                blocks = _file_blocks(track, music, self.rate_hz)
            yield from self._few_windows(track, blocks) if self.whole else self._windows(track, blocks, hop)
        except AudioError as error:
            track.error = error
        yield track, None

    def _windows(self, track: Piece, blocks: Iterator[np.ndarray], hop: int) -> Iterator[Event]:
        """Cut windows of equal length; a last stretch shorter than one is left out."""
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
            yield track, _padded(rest[: self.window_samples], self.window_samples)

    def _few_windows(self, track: Piece, blocks: Iterator[np.ndarray]) -> Iterator[Event]:
        """Cut a whole track into as few equal windows as the limit allows, mostly one. Its samples are held at once."""
        samples = np.concatenate([np.empty(0, np.float32), *blocks])
        segment = min(self.model.config.segment_samples, self.window_samples)
        track.padded = len(samples) < segment
        samples = _padded(samples, max(segment, len(samples)))
        parts = min(math.ceil(len(samples) / self.window_samples), len(samples) // max(1, self._least_samples()))
        length = len(samples) // parts
        for start in range(0, len(samples) - length + 1, length):
            track.starts.append(start)
            yield track, samples[start : start + length]

    def _least_samples(self) -> int:
        """Return the samples of the shortest window that whole patches of every kind fill."""
        return (least_frames(self.model.config.patches) - 1) * self.model.config.front_end.hop_samples


def _padded(samples: Float32[np.ndarray, " samples"], length: int) -> Float32[np.ndarray, " length"]:
    """Copy samples into a window, with silence after them."""
    window = np.zeros(length, np.float32)
    window[: len(samples)] = samples
    return window


def _array_blocks(track: Piece, samples: np.ndarray, rate_hz: int | None, to_hz: int) -> Iterator[np.ndarray]:
    if rate_hz is None:
        raise ConfigError("An array of samples was given without its rate: say encode(samples, rate_hz=44100).")
    if rate_hz < 1:
        raise ConfigError(f"A rate of {rate_hz} Hz was given; it must be above 0.")
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[0] > 64):
        raise AudioError(
            f"its shape is {samples.shape}; (samples,) or (channels, samples), 64 channels at most, was wanted"
        )
    mono = np.asarray(samples if samples.ndim == 1 else samples.mean(axis=0), np.float32)
    if not np.issubdtype(samples.dtype, np.floating) or not len(mono) or not np.isfinite(mono).all():
        raise AudioError("it must hold at least one sample, all of them finite floats in -1 to 1")
    track.facts = {"duration_s": len(mono) / rate_hz, "decoded_s": len(mono) / rate_hz}
    yield resample(mono, rate_hz, to_hz)


def _file_blocks(track: Piece, path: str | Path, rate_hz: int) -> Iterator[np.ndarray]:
    with AudioStream(path, rate_hz=rate_hz) as stream:
        yield from stream
        track.facts = {name: getattr(stream, name) for name in ("duration_s", "decoded_s", "damaged", "content_hash")}
        track.facts["tags"] = tags_of(stream.container, stream.stream)


class Decoders:
    """Threads that each decode a piece of work at a time, never far ahead of whoever iterates.

    `cut` turns a piece into events. There are `workers` of them, one a core and eight at most unless given.
    """

    def __init__(
        self,
        music: Iterable[tuple[int, Any]],
        cut: Callable[[tuple[int, Any]], Iterator[Event]],
        workers: int | None,
        *,
        ahead: int = 64,
    ) -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"{workers} workers were asked for; at least 1 is needed.")
        self.music, self.cut, self.lock = iter(music), cut, threading.Lock()
        self.events: queue.Queue[Event | BaseException | None] = queue.Queue(maxsize=ahead + 1)
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


def embed_pieces(
    decoders: Decoders, embed_windows: Callable[[np.ndarray], np.ndarray], *, batch: int, rate_hz: int
) -> Iterator[tuple[int, Embedding | AudioError]]:
    """Embed what decoders cut, yielding (number of the piece, result) as they are done; pieces share batches."""
    waiting: list[Event] = []

    def flush() -> list[Piece]:
        """Embed the windows that wait, and return the pieces that they belong to."""
        touched = {piece.number: piece for piece, _ in waiting}
        vectors = embed_windows(np.stack([window for _, window in waiting])) if waiting else ()
        for (piece, _), vector in zip(waiting, vectors, strict=True):
            piece.vectors.append(vector)
        waiting.clear()
        return list(touched.values())

    def results(pieces: list[Piece]) -> Iterator[tuple[int, Embedding | AudioError]]:
        return ((piece.number, piece.result(rate_hz)) for piece in pieces if piece.done)

    with decoders as events:
        for piece, window in events:
            if window is None:
                piece.whole = True
                yield from results([piece])
            else:
                waiting.append((piece, window))
                if len(waiting) >= batch:
                    yield from results(flush())
        yield from results(flush())
