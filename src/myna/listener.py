"""Samples become vectors by one `nn.Module`, for frameworks that want one: no files, no threads, any device."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from myna.embedder import Myna
from myna.errors import ConfigError
from myna.mel import MelSpectrogram
from myna.model import MynaModel
from myna.patch import Kind


class Listener(nn.Module):
    """A frozen model with its front end: (batch, samples) at 16 kHz to one vector a window.

    A signal shorter than one window is filled up with silence.
    """

    def __init__(self, model: MynaModel, *, kinds: tuple[Kind, ...], window_samples: int, batch: int = 256) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.mel = MelSpectrogram(model.config.front_end)
        self.kinds, self.window_samples, self.batch = kinds, window_samples, batch

    @classmethod
    def load(cls, source: str | Path, *, patches: Kind | None = None, window_samples: int | None = None) -> "Listener":
        """Load what `Myna.from_pretrained` knows, on the CPU; move it as any module."""
        found = Myna.from_pretrained(
            source, patches=patches, window_samples=window_samples, device="cpu", precision="fp32"
        )
        return cls(found.model, kinds=found.kinds, window_samples=found.window_samples)

    @property
    def rate_hz(self) -> int:
        return self.mel.front_end.rate_hz

    @property
    def dim(self) -> int:
        return self.model.config.dim * len(self.kinds)

    def train(self, mode: bool = True) -> "Listener":
        """Stay as it is: the model is frozen, whatever the framework around it does."""
        del mode
        return super().train(False)

    def forward(
        self, samples: Float[Tensor, "batch samples"], hop_samples: int | None = None
    ) -> Float[Tensor, "batch window dim"]:
        """Embed windows `hop_samples` apart, side by side by default; a last stretch that is shorter is left out."""
        hop = hop_samples or self.window_samples
        if hop < 1 or samples.shape[1] < 1:
            raise ConfigError(f"{samples.shape[1]} samples and a hop of {hop} were given; both must be above 0.")
        short = self.window_samples - samples.shape[1]
        windows = nn.functional.pad(samples.float(), (0, max(0, short))).unfold(1, self.window_samples, hop)
        at_once = windows.split(max(1, self.batch // len(samples)), dim=1)  # a copy of all at once may not fit
        vectors = [self._embed(part.reshape(-1, self.window_samples)).unflatten(0, part.shape[:2]) for part in at_once]
        return torch.cat(vectors, dim=1)

    def _embed(self, windows: Float[Tensor, "window samples"]) -> Float[Tensor, "window dim"]:
        return self.model.encode(self.mel(windows), self.kinds)
