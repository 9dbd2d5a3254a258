"""A waveform becomes a power mel spectrogram. The one owner of FFT size, hop and scale.

Frame-major throughout: axis order is (frame, band), band 0 the lowest. Equal to what nnAudio computes with
its defaults, on which the paper's models were trained, at a small part of the cost.
"""

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

BANDS_AT_ONCE = 16  # neighbouring bands share most of their bins, so a small dense product wastes little
FRAMES_AT_ONCE = 320  # about ten seconds: what a core's cache holds between the steps


class FrontEnd(BaseModel):
    """Settings of the spectrogram; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate_hz: int = Field(16_000, gt=0)
    n_fft: int = Field(2048, ge=4)
    hop_samples: int = Field(512, gt=0)
    bands: int = Field(128, gt=0)
    low_hz: float = Field(0.0, ge=0)
    high_hz: float = Field(8000.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self):
        if self.n_fft % 2:
            raise ValueError(f"n_fft is {self.n_fft}, but it must be even")
        if self.hop_samples >= self.n_fft // 2:
            raise ValueError(f"hop_samples is {self.hop_samples}, but must be below n_fft / 2 = {self.n_fft // 2}")
        if not self.low_hz < self.high_hz <= self.rate_hz / 2:
            raise ValueError(
                f"low_hz {self.low_hz} and high_hz {self.high_hz} must rise and end at rate_hz / 2 at most"
            )
        return self

    @property
    def frame_rate_hz(self) -> float:
        return self.rate_hz / self.hop_samples

    def frames(self, samples: int) -> int:
        """Count the frames of that many samples: one centred on the first, then one a hop."""
        return 1 + samples // self.hop_samples


# Slaney's scale: linear below 1 kHz (15 mels), logarithmic above, 27 mels to a factor of 6.4
HZ_A_MEL, KNEE_HZ, KNEE_MEL, LOG_STEP = 200 / 3, 1000.0, 15.0, np.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    return hz / HZ_A_MEL if hz < KNEE_HZ else KNEE_MEL + np.log(hz / KNEE_HZ) / LOG_STEP


def _mel_to_hz(mel: Float64[np.ndarray, " point"]) -> Float64[np.ndarray, " point"]:
    return np.where(mel < KNEE_MEL, mel * HZ_A_MEL, KNEE_HZ * np.exp(LOG_STEP * (mel - KNEE_MEL)))


def mel_basis(front_end: FrontEnd) -> Float32[np.ndarray, "band bin"]:
    """Compute the triangular filters on Slaney's scale, each of unit area over hertz."""
    points = np.linspace(_hz_to_mel(front_end.low_hz), _hz_to_mel(front_end.high_hz), front_end.bands + 2)
    lower, centre, upper = (edge[:, None] for edge in np.lib.stride_tricks.sliding_window_view(_mel_to_hz(points), 3).T)
    bins_hz = np.arange(front_end.n_fft // 2 + 1) * (front_end.rate_hz / front_end.n_fft)
    rising, falling = (bins_hz - lower) / (centre - lower), (upper - bins_hz) / (upper - centre)
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * (2 / (upper - lower))).astype(np.float32)


class MelSpectrogram(nn.Module):
    """Compute power mel spectrograms of a batch of clips: centred, reflect-padded, periodic Hann, power 2.

    A clip of n_fft / 2 samples or fewer cannot be reflected, so it is extended with zeros first.
    """

    def __init__(self, front_end: FrontEnd | None = None):
        super().__init__()
        self.front_end = front_end or FrontEnd()
        self.register_buffer("window", torch.hann_window(self.front_end.n_fft), persistent=False)
        self.bins: list[slice] = []  # of each group of bands, the bins that its filters touch
        basis = mel_basis(self.front_end)
        for first in range(0, len(basis), BANDS_AT_ONCE):
            filters = basis[first : first + BANDS_AT_ONCE]
            touched = np.flatnonzero(filters.any(axis=0))
            self.bins.append(slice(touched[0], touched[-1] + 1) if len(touched) else slice(0, 0))
            group = torch.from_numpy(filters[:, self.bins[-1]].T.copy())
            self.register_buffer(f"filters_{len(self.bins) - 1}", group, persistent=False)

    def forward(self, samples: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frame band"]:
        half, length = self.front_end.n_fft // 2, samples.shape[-1]
        if length <= half:
            samples = nn.functional.pad(samples, (0, half + 1 - length))
        return self.of_padded(reflect(samples, half, half))[:, : self.front_end.frames(length)]

    def of_padded(self, padded: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frame band"]:
        """Transform every whole frame of signals that are padded already."""
        framed = padded.unfold(-1, self.front_end.n_fft, self.front_end.hop_samples)
        if padded.device.type != "cpu":
            return self._mel(framed)
        # one clip and ten seconds at a time: three times as fast as all at once, which leaves the cache
        return torch.stack([torch.cat([self._mel(part) for part in clip.split(FRAMES_AT_ONCE)]) for clip in framed])

    def _mel(self, framed: Float[Tensor, "*batch frame sample"]) -> Float[Tensor, "*batch frame band"]:
        real, imaginary = torch.view_as_real(torch.fft.rfft(framed * self.window)).unbind(-1)
        power = real.square().addcmul_(imaginary, imaginary)
        groups = (self.get_buffer(f"filters_{i}") for i in range(len(self.bins)))
        return torch.cat([power[..., bins] @ group for bins, group in zip(self.bins, groups, strict=True)], dim=-1)


def reflect(samples: Float[Tensor, "*batch samples"], before: int, after: int) -> Float[Tensor, "*batch padded"]:
    """Mirror a signal at its first and last sample, neither of them repeated."""
    head, tail = samples[..., 1 : before + 1].flip(-1), samples[..., -after - 1 : -1].flip(-1)
    return torch.cat([head] * (before > 0) + [samples] + [tail] * (after > 0), dim=-1)


class MelStream:
    """Compute one signal's power mel spectrogram block by block, in memory that does not grow with it.

    All frames together equal `MelSpectrogram` of the whole signal, however it is cut.
    """

    def __init__(self, front_end: FrontEnd | None = None, transform: MelSpectrogram | None = None):
        self.transform = transform or MelSpectrogram(front_end)
        self.front_end = self.transform.front_end
        self.samples = 0
        self.mirrored = False  # whether the start of the signal has been reflected into `rest`
        self.rest = torch.zeros(0)  # from the first sample of the next frame on

    @torch.inference_mode()
    def push(self, block: Float32[np.ndarray, " samples"]) -> Float32[np.ndarray, "frame band"]:
        """Take the next samples; return the frames that they complete."""
        self.samples += len(block)
        # torch.tensor copies: the caller may go on to reuse or hold a read-only block
        self.rest = torch.cat([self.rest, torch.tensor(block, dtype=torch.float32)])
        half = self.front_end.n_fft // 2
        if not self.mirrored and len(self.rest) > half:
            self.rest, self.mirrored = reflect(self.rest, half, 0), True
        return self._whole_frames()

    @torch.inference_mode()
    def finish(self) -> Float32[np.ndarray, "frame band"]:
        """Return the frames that lie over the end of the signal."""
        half = self.front_end.n_fft // 2
        if not self.mirrored:
            return self.transform(self.rest[None])[0].numpy()
        self.rest = reflect(self.rest, 0, half)
        return self._whole_frames()

    def _whole_frames(self) -> Float32[np.ndarray, "frame band"]:
        hop = self.front_end.hop_samples
        frames = max(0, (len(self.rest) - self.front_end.n_fft) // hop + 1) if self.mirrored else 0
        if not frames:
            return np.zeros((0, self.front_end.bands), np.float32)
        mel = self.transform.of_padded(self.rest[None])[0].numpy()
        self.rest = self.rest[frames * hop :].clone()
        return mel
