"""What is heard without any learning: mel statistics, MFCC and chroma, each one vector for a stretch of music."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Float32

from myna.mel import MelSpectrogram

FLOOR = 1e-8  # of mel power, before the logarithm: digital silence becomes -80 dB
COEFFICIENTS = 20
DELTA_REACH = 4  # frames to either side over which the slope of a coefficient is fitted


def mel_statistics(mel: Float32[np.ndarray, "frame band"]) -> Float32[np.ndarray, " value"]:
    """Return mean and standard deviation over time of each band in decibels."""
    return _mean_and_deviation(_decibel(mel))


def mfcc(mel: Float32[np.ndarray, "frame band"]) -> Float32[np.ndarray, " value"]:
    """Return mean and standard deviation over time of 20 cepstral coefficients, then of their slopes.

    The coefficients are the orthonormal DCT-II of the bands in decibels; a slope is the least-squares line through
    nine frames, taken where all nine are there (of fewer frames: zeros).
    """
    coefficients = _decibel(mel) @ _dct(mel.shape[1])
    return np.concatenate([_mean_and_deviation(coefficients), _mean_and_deviation(slopes(coefficients))])


def slopes(values: Float[np.ndarray, "frame value"]) -> Float[np.ndarray, "inner value"]:
    """Fit a line through nine frames around each frame that has four on either side; return its slope a frame."""
    span = 2 * DELTA_REACH + 1
    if len(values) < span:
        return np.zeros((1, values.shape[1]), values.dtype)
    steps = np.arange(-DELTA_REACH, DELTA_REACH + 1)
    return np.lib.stride_tricks.sliding_window_view(values, span, axis=0) @ (steps / np.sum(steps**2))


def chroma(samples: Float32[np.ndarray, " samples"], *, rate_hz: int = 16_000) -> Float32[np.ndarray, "12"]:
    """Return the share of each pitch class, C first, in the roots of the magnitudes from 65 to 2000 Hz: for key."""
    n_fft = 8192  # 2 Hz a bin: semitones part from 40 Hz up
    padded = torch.from_numpy(np.pad(samples, (0, max(0, n_fft - len(samples)))))
    frames = padded.unfold(0, n_fft, n_fft // 2) * torch.hann_window(n_fft)
    root = torch.fft.rfft(frames).abs().sqrt().mean(dim=0).numpy()
    hz = np.arange(len(root)) * rate_hz / n_fft
    heard = (hz >= 65) & (hz <= 2000)
    pitch_class = np.round(69 + 12 * np.log2(hz[heard] / 440)).astype(int) % 12
    shares = np.bincount(pitch_class, root[heard], minlength=12) / np.bincount(pitch_class, minlength=12)
    return (shares / max(shares.sum(), 1e-12)).astype(np.float32)


@dataclass(frozen=True)
class Baseline:
    """A fixed recipe as an embedder: a whole stretch, whatever its length, is one window and becomes one vector."""

    name: str
    compute: Callable[[np.ndarray], np.ndarray]
    dim: int
    rate_hz: int = 16_000
    window_samples: int | None = None
    batch: int = 1  # stretches differ in length

    @property
    def hash(self) -> str:
        return f"{self.name}-1"  # to be raised with any change of what it computes

    @property
    def representations(self) -> dict[str, slice]:
        return {self.name: slice(0, self.dim)}

    @property
    def settings(self) -> dict[str, object]:
        return {}

    def embed_windows(self, samples: Float32[np.ndarray, "window samples"]) -> Float32[np.ndarray, "window dim"]:
        return np.stack([self.compute(row) for row in samples])


def baselines() -> dict[str, Baseline]:
    """Return every baseline by its name."""
    mel = MelSpectrogram()
    bands = mel.front_end.bands

    def of_mel(recipe: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda samples: recipe(mel(torch.from_numpy(samples)[None])[0].numpy())

    found = (
        Baseline("mel-statistics", of_mel(mel_statistics), 2 * bands),
        Baseline("mfcc", of_mel(mfcc), 4 * COEFFICIENTS),
        Baseline("chroma", chroma, 12),
    )
    return {one.name: one for one in found}


def _decibel(mel: Float32[np.ndarray, "frame band"]) -> Float32[np.ndarray, "frame band"]:
    return 10 * np.log10(np.maximum(mel, np.float32(FLOOR)))


def _mean_and_deviation(values: Float[np.ndarray, "frame value"]) -> Float32[np.ndarray, " both"]:
    return np.concatenate([values.mean(axis=0), values.std(axis=0)]).astype(np.float32)


@cache
def _dct(bands: int) -> Float32[np.ndarray, "band coefficient"]:
    """Return the columns of the orthonormal DCT-II that belong to the first coefficients."""
    angle = np.pi / bands * (np.arange(bands)[:, None] + 0.5) * np.arange(COEFFICIENTS)
    basis = np.sqrt(2 / bands) * np.cos(angle)
    basis[:, 0] /= np.sqrt(2)
    return basis.astype(np.float32)
