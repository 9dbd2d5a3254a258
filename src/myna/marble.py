"""Our models inside MARBLE v2: an encoder that its configuration names by `class_path: myna.marble.MynaEncoder`.

MARBLE need not be installed; where it is, the encoder is one of its own.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from myna.errors import ConfigError
from myna.listener import Listener
from myna.patch import Kind

try:
    from marble.core.base_encoder import BaseEncoder
except ImportError:  # MARBLE is not here, or lacks something itself
    BaseEncoder = nn.Module


class MynaEncoder(BaseEncoder):
    """Waveforms become the hidden states of one layer: a token a window, about three seconds each.

    The class attributes are the paper's model (one patch kind, 384 numbers); of another model, such as a hybrid
    (768), each object carries its own. `expected_features` makes a wrong width an error here rather than in a decoder.
    """

    NAME = "Myna"
    SAMPLING_RATE = 16_000
    NUM_FEATURES = 384
    TOKEN_RATE = 16_000 / 50_000  # windows a second
    N_TRANSFORMER_LAYERS = 12

    def __init__(
        self,
        pre_trained_folder: str,
        patches: Kind | None = None,
        window_samples: int | None = None,
        train_mode: str = "freeze",
        expected_features: int | None = None,
    ) -> None:
        super().__init__()
        if train_mode != "freeze":
            raise ConfigError(f"train_mode is {train_mode!r}; only `freeze` is known.")
        self.listener = Listener.load(pre_trained_folder, patches=patches, window_samples=window_samples)
        self.NUM_FEATURES = self.listener.dim
        if expected_features not in (None, self.NUM_FEATURES):
            raise ConfigError(f"The model has {self.NUM_FEATURES} features; {expected_features} were expected.")
        self.SAMPLING_RATE = self.sample_rate = self.listener.rate_hz
        self.TOKEN_RATE = self.listener.rate_hz / self.listener.window_samples
        self.N_TRANSFORMER_LAYERS = self.listener.model.config.depth

    def forward(self, waveform: Tensor, *args: object, **kwargs: object) -> Sequence[Float[Tensor, "batch token dim"]]:
        """Take (batch, channels, samples) or (batch, samples) at 16 kHz; return a list of one layer's states."""
        del args, kwargs  # such as output_hidden_states, which other encoders take
        if waveform.ndim == 3:
            waveform = waveform.mean(dim=1)
        if waveform.ndim != 2:
            raise ConfigError(
                f"A waveform of shape {tuple(waveform.shape)} was given; (batch, samples) or "
                "(batch, channels, samples) is wanted."
            )
        with torch.no_grad(), torch.autocast(waveform.device.type, enabled=False):
            return [self.listener(waveform)]
