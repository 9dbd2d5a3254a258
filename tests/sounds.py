"""Test audio: known signals, written in every codec with PyAV."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# suffix or name of a format → container, encoder, sample format; what FFmpeg itself can both write and read
FORMATS = {
    "mp3": ("mp3", "libmp3lame", "fltp"),
    "flac": ("flac", "flac", "s16"),
    "mka": ("matroska", "flac", "s16"),
    "ogg": ("ogg", "vorbis", "fltp"),
    "opus": ("ogg", "libopus", "flt"),
    "m4a": ("ipod", "aac", "fltp"),
    "alac": ("ipod", "alac", "s16p"),
    "wma": ("asf", "wmav2", "fltp"),
    "wav": ("wav", "pcm_s16le", "s16"),
    "wav24": ("wav", "pcm_s24le", "s32"),
    "wav32f": ("wav", "pcm_f32le", "flt"),
    "wav64f": ("wav", "pcm_f64le", "dbl"),
    "wav8": ("wav", "pcm_u8", "u8"),
    "aiff": ("aiff", "pcm_s16be", "s16"),
}
SCALE = {"u8": 2**7, "s16": 2**15, "s32": 2**31, "flt": 1, "dbl": 1}
DTYPE = {"u8": np.uint8, "s16": np.int16, "s32": np.int32, "flt": np.float32, "dbl": np.float64}


def tone(seconds=5.0, hz=440.0, rate_hz=44_100, amplitude=0.5, channels=1):
    """A sine as float32 (samples, channels)."""
    wave = amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def music(seconds=5.0, rate_hz=44_100, seed=0, channels=2):
    """Decaying notes of random pitch over a little noise, float32 (samples, channels)."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * rate_hz)
    at = np.arange(samples) / rate_hz
    mix = 0.01 * rng.standard_normal((samples, channels))
    for start in np.arange(0, seconds, 0.25):
        hz, pan = 110 * 2 ** (rng.integers(0, 36) / 12), rng.uniform(0.2, 1, channels)
        first = round(start * rate_hz)
        age = at[first : first + rate_hz] - start
        note = sum(np.sin(2 * np.pi * hz * part * age) / part for part in (1, 2, 3)) * np.exp(-4 * age)
        mix[first : first + rate_hz] += 0.1 * note[:, None] * pan
    return mix.astype(np.float32)


def _integers(samples, kind):
    if kind in ("flt", "dbl"):
        return samples.astype(DTYPE[kind])
    top = SCALE[kind] - 1
    scaled = np.clip(np.rint(samples.astype(np.float64) * SCALE[kind]), -top - 1, top)
    return (scaled + (SCALE[kind] if kind == "u8" else 0)).astype(DTYPE[kind])


def write_audio(path, samples, rate_hz=44_100, *, format=None, tags=None, bit_rate=192_000, layout=None):
    """Encode float samples, (samples,) or (samples, channels), into `path`; format as its suffix unless named.

    Returns the path.
    """
    path = Path(path)
    samples = samples[:, None] if samples.ndim == 1 else samples
    container_name, encoder, sample_format = FORMATS[format or path.suffix.lstrip(".")]
    channels = samples.shape[1]
    layout = layout or {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[channels]
    whole = _integers(samples, sample_format.removesuffix("p"))
    planar = sample_format.endswith("p")
    with av.open(str(path), "w", format=container_name) as container:
        container.metadata.update(tags or {})
        stream = container.add_stream(encoder, rate=rate_hz, layout=layout, format=sample_format)
        if not encoder.startswith("pcm") and encoder not in ("flac", "alac"):
            stream.bit_rate = bit_rate
        stream.codec_context.options = {"strict": "experimental"}  # what FFmpeg calls its own Vorbis encoder
        stream.codec_context.open()
        step = stream.codec_context.frame_size or 4096
        for start in range(0, len(whole), step):
            part = whole[start : start + step]
            array = np.ascontiguousarray(part.T) if planar else np.ascontiguousarray(part).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(array, format=sample_format, layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
