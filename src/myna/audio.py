"""A file becomes mono float32 at one rate, block by block; what could not be decoded is counted.

Mono is the mean of the channels. FFmpeg's own down-mix is never used: it weighs the channels by their place
and makes stereo 3 dB louder.
"""

import math
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soxr
import xxhash
from av.container import InputContainer
from jaxtyping import Float32

from myna.errors import AudioError, ConfigError

RATE_HZ = 16_000
BLOCK_S = 16  # of source audio: long enough that the cost of a call does not count, short enough for the cache
LOUDEST = 1e6  # a sample beyond this, 120 dB over full scale, is no sound but garbage read as floating point
SLACK_S = 1.0  # by which a file that was cut to a stretch may be longer than it
DEMUX_ATTEMPTS = 100  # how often in a row a container may fail to give a packet before we take it for its end
# FFmpeg's sample formats, without the p of planar ones: type, full scale, and the value that means silence
SAMPLE_FORMATS = {
    "u8": (np.uint8, 2.0**7, 2.0**7),
    "s16": (np.int16, 2.0**15, 0.0),
    "s32": (np.int32, 2.0**31, 0.0),
    "s64": (np.int64, 2.0**63, 0.0),
    "flt": (np.float32, 1.0, 0.0),
    "dbl": (np.float64, 1.0, 0.0),
}


@dataclass(frozen=True)
class Stretch:
    """A part of a file that is meant, in seconds from the file's beginning. Raises ConfigError if it is empty."""

    start_s: float
    end_s: float

    def __post_init__(self):
        if not 0 <= self.start_s < self.end_s < math.inf:
            raise ConfigError(
                f"A stretch from {self.start_s} to {self.end_s} s was given: it must end after it begins."
            )

    def __str__(self) -> str:
        return f"{self.start_s:.3f},{self.end_s:.3f}"

    def within(self, duration_s: float | None) -> "Stretch | None":
        """Return what to cut out of a file of this length: nothing, if the file is the stretch, cut before.

        A file that does not say how long it is counts as whole.
        """
        cut_before = duration_s is not None and duration_s <= self.end_s - self.start_s + SLACK_S
        return None if cut_before else self


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono samples, nominally from -1 to 1. Raises AudioError if they are not finite float32 in one row."""

    samples: np.ndarray  # (samples,) float32
    rate_hz: int = RATE_HZ

    def __post_init__(self):
        kind, shape = self.samples.dtype, self.samples.shape
        if kind != np.float32 or len(shape) != 1:
            raise AudioError(f"A waveform of {kind} and shape {shape} was given: one row of float32 is wanted.")
        if self.rate_hz <= 0:
            raise AudioError(f"A sample rate of {self.rate_hz} Hz was given: it must be above zero.")
        if not np.isfinite(self.samples).all():
            raise AudioError("A waveform with NaN or infinite samples was given: replace them first.")

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.rate_hz


def load(path: str | Path, rate_hz: int = RATE_HZ) -> Waveform:
    """Decode a whole file. Raises AudioError if nothing in it can be decoded."""
    try:
        with AudioStream(path, rate_hz) as stream:
            return Waveform(np.concatenate(list(stream)), rate_hz)
    except AudioError as error:
        raise AudioError(f"{path} cannot be used: {error}.") from None


FATAL = "decoding it ends the process"
CRASHES = {getattr(signal, name, None) for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")}
CRASHES_OF_WINDOWS = 0xC0000000  # and above: exit codes that no program chooses


def why_fatal(path: str | Path) -> str | None:
    """Decode a file in a process of its own, and say how it ended that process; None if it did not.

    FFmpeg can crash on a rare or damaged file, and takes along whoever called it.
    """
    program = (
        "import sys; sys.path[:] = [path for path in sys.path if path]\n"  # what lies in this folder is no module
        "from myna.audio import AudioStream\n"
        "with AudioStream(sys.argv[1]) as stream: [0 for _ in stream]"
    )
    done = subprocess.run([sys.executable, "-c", program, path], stdin=subprocess.DEVNULL, capture_output=True)
    if -done.returncode in CRASHES or done.returncode >= CRASHES_OF_WINDOWS:  # else somebody may have killed it
        return f"{FATAL} (exit code {done.returncode})"
    return None


def resample(samples: Float32[np.ndarray, " samples"], from_hz: int, to_hz: int) -> Float32[np.ndarray, " out"]:
    """Change the sample rate, as `AudioStream` does."""
    return samples if from_hz == to_hz else soxr.resample(samples, from_hz, to_hz, quality="HQ")


@contextmanager
def open_audio(path: str | Path) -> Iterator[tuple[InputContainer, av.AudioStream]]:
    """Open a file's container and its best audio stream (a cover is a video stream). Raises AudioError."""
    _check_file(Path(path))
    try:
        # "file:" because FFmpeg takes the start of "AC:DC.mp3" for a protocol, and no other protocol because a
        # playlist may call itself .mp3; tags of unknown encoding must not make the music unusable
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except PermissionError:
        raise AudioError("the file may not be read (permission denied)") from None
    except (av.FFmpegError, OSError) as error:
        raise AudioError(f"not an audio file that can be read ({error.strerror})") from None
    with container:
        stream = container.streams.best("audio")
        if stream is None:
            raise AudioError("the file has no audio stream")
        if stream.codec_context is None:
            raise AudioError("the audio is in a codec that is not known")
        yield container, stream


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except PermissionError:
        raise AudioError("the file may not be read (permission denied)") from None
    except OSError:
        raise AudioError("a link to nothing" if path.is_symlink() else "no such file") from None
    if stat.S_ISDIR(status.st_mode):
        raise AudioError("a folder, not a file")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise AudioError("not a regular file")
    if status.st_size == 0:
        raise AudioError("the file is empty")


def packet_hash(stream: av.AudioStream, stretch: Stretch | None = None) -> xxhash.xxh3_128:
    """Begin the hash of what is encoded: codec, rate, channels and stretch here, then each packet's bytes."""
    cut = f"{stretch} " if stretch else ""
    return xxhash.xxh3_128(f"{_codec(stream)} {stream.rate} {stream.channels} {cut}".encode())


def _codec(stream: av.AudioStream) -> str:
    return stream.codec_context.codec.canonical_name


class AudioStream:
    """A file's audio as blocks of mono float32, about 16 s each: `with AudioStream(path) as s: for block in s`.

    Damaged packets are left out and counted in `damaged`, as are blocks with NaN, infinite or absurd samples,
    which become zeros. Entering raises AudioError if the file is no audio; iterating, if nothing could be decoded.
    `decoded_s` and `content_hash` (as `track.content_hash`) are whole when the iteration is.
    Of a file that is longer than the wanted `stretch`, only the stretch is given. It is counted in decoded samples,
    which is exact in every format; what comes after it is read, for the hash, but not decoded.
    """

    def __init__(self, path: str | Path, rate_hz: int = RATE_HZ, *, stretch: Stretch | None = None):
        self.path, self.rate_hz, self.wanted = Path(path), rate_hz, stretch
        self.samples = self.damaged = 0

    def __enter__(self) -> "AudioStream":
        self._opened = open_audio(self.path)
        self.container, self.stream = self._opened.__enter__()
        self.codec, self.source_rate_hz = _codec(self.stream), self.stream.rate
        self.channels = self.stream.channels
        self.duration_s = duration_s(self.container, self.stream)
        self.stretch = self.wanted.within(self.duration_s) if self.wanted else None
        self._past = False  # the stretch has been decoded
        self._hash, self._hashing = packet_hash(self.stream, self.stretch), True
        # files are decoded side by side; threads inside each would only wait
        self.stream.codec_context.thread_count = 1
        return self

    def __exit__(self, *failure) -> None:
        self._opened.__exit__(*failure)

    @property
    def decoded_s(self) -> float:
        return self.samples / self.rate_hz

    @property
    def content_hash(self) -> str:
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[Float32[np.ndarray, " samples"]]:
        for block in self._blocks() if self.stretch is None else self._cut():
            if len(block):
                self.samples += len(block)
                yield block
        if not self.samples and self.stretch is not None and self.stretch.start_s >= (self.duration_s or math.inf):
            raise AudioError(f"it lasts {self.duration_s:.2f} s, but {self.stretch.start_s:.2f} s on was wanted")
        if not self.samples:
            raise AudioError("nothing in the file could be decoded")
        whole = self.stretch is None
        if whole and self.codec == "flac" and not self.damaged and self.decoded_s < (self.duration_s or 0) - 0.01:
            self.damaged += 1  # FFmpeg's parser drops bad frames without a word; the header knows the true length

    def _blocks(self) -> Iterator[Float32[np.ndarray, " samples"]]:
        run = None
        for frame in self._frames():
            if run is None or not run.fits(frame):  # broadcasts change rate and channels midway
                if run is not None:
                    yield run.read(last=True)
                    self.damaged += run.damaged
                run = _Run(frame, self.rate_hz)
            run.write(frame)
            if run.fifo.samples >= BLOCK_S * run.rate_hz:
                yield run.read(last=False)
        if run is not None:
            yield run.read(last=True)
            self.damaged += run.damaged

    def _cut(self) -> Iterator[Float32[np.ndarray, " samples"]]:
        """Give what lies within the stretch."""
        start, end = (round(seconds * self.rate_hz) for seconds in (self.stretch.start_s, self.stretch.end_s))
        at = 0
        for block in self._blocks():
            yield block[max(start - at, 0) : max(end - at, 0)]
            at += len(block)
            self._past = at >= end

    def _frames(self) -> Iterator[av.AudioFrame]:
        for packet in self._packets():
            if self._past:
                continue
            try:
                yield from (frame for frame in self.stream.codec_context.decode(packet) if frame.samples)
            except av.FFmpegError:
                self.damaged += 1

    def _packets(self) -> Iterator[av.Packet | None]:
        """Give every packet that can be had, also after errors, then None, which empties the decoder."""
        failures = 0
        while failures < DEMUX_ATTEMPTS:
            try:
                for packet in self.container.demux(self.stream):
                    failures = 0
                    if packet.size:
                        if self._hashing:
                            self._hash.update(packet)
                        yield packet
                break
            except av.FFmpegError:
                self._hashing = False
                self.damaged += failures == 0
                failures += 1
        yield None


def duration_s(container: InputContainer, stream: av.AudioStream) -> float | None:
    """Return how long an open file says it is, or None if it does not say."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration is not None else None


class _Run:
    """Frames of one sample format, rate and number of channels, on their way to mono at one rate.

    Frames are short (26 ms in MP3), so FFmpeg's own queue joins them before NumPy and soxr see any.
    """

    def __init__(self, frame: av.AudioFrame, rate_hz: int):
        self.format, self.layout, self.rate_hz = frame.format.name, frame.layout.name, frame.sample_rate
        self.channels, self.planar = frame.layout.nb_channels, frame.format.is_planar
        self.fifo, self.damaged = av.AudioFifo(), 0
        self.dtype, full_scale, silence = SAMPLE_FORMATS[self.format.removesuffix("p")]
        self.wide = np.float64 if self.dtype == np.float64 else np.float32
        self.weight, self.offset = 1 / (self.channels * full_scale), silence / full_scale
        same = self.rate_hz == rate_hz
        self.resampler = None if same else soxr.ResampleStream(self.rate_hz, rate_hz, 1, quality="HQ")

    def fits(self, frame: av.AudioFrame) -> bool:
        described = frame.format.name, frame.layout.name, frame.sample_rate
        return described == (self.format, self.layout, self.rate_hz)

    def write(self, frame: av.AudioFrame) -> None:
        frame.pts = None  # broken timestamps are no reason to stop
        self.fifo.write(frame)

    def read(self, last: bool) -> Float32[np.ndarray, " samples"]:
        """Return what is queued, at the new rate; `last` also empties the resampler."""
        joined = self.fifo.read()
        mono = np.zeros(0, np.float32) if joined is None else self._mono(joined)
        return mono if self.resampler is None else self.resampler.resample_chunk(mono, last=last)

    def _mono(self, frame: av.AudioFrame) -> Float32[np.ndarray, " samples"]:
        length = frame.samples * (1 if self.planar else self.channels)
        planes = [np.frombuffer(plane, self.dtype)[:length] for plane in frame.planes]
        channels = planes if self.planar else planes[0].reshape(-1, self.channels).T
        with np.errstate(over="ignore", invalid="ignore"):
            mono = sum(np.multiply(channel, self.weight, dtype=self.wide) for channel in channels)
            mono = np.asarray(mono - self.offset if self.offset else mono, np.float32)
            if np.issubdtype(self.dtype, np.floating) and not max(mono.max(), -mono.min()) <= LOUDEST:
                self.damaged += 1
                mono = np.where(np.abs(mono) <= LOUDEST, mono, np.float32(0))
        return mono
