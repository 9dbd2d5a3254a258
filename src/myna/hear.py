"""Our models through the common API of HEAR, the Holistic Evaluation of Audio Representations.

`hear-validator myna.hear --model runs/a`
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from myna.errors import ConfigError
from myna.listener import Listener

HOP_MS = 50.0  # at most so far apart, for tasks of events in time


class HearModel(nn.Module):
    """What HEAR asks of a model: its rate, and the widths of its two kinds of embeddings."""

    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self.listener = listener
        self.sample_rate = listener.rate_hz
        self.scene_embedding_size = self.timestamp_embedding_size = listener.dim

    def train(self, mode: bool = True) -> "HearModel":
        """Stay as it is: the model is frozen."""
        del mode
        return super().train(False)


def load_model(model_file_path: str = "") -> HearModel:
    """Load a run folder, a model folder, or what else `Myna.from_pretrained` knows."""
    if not model_file_path:
        raise ConfigError("No model was named: give a run folder or a model folder as the model's file path.")
    return HearModel(Listener.load(model_file_path))


def get_scene_embeddings(audio: Float[Tensor, "sound samples"], model: HearModel) -> Float[Tensor, "sound dim"]:
    """Return one vector a sound: the mean over its windows."""
    with torch.no_grad():
        return model.listener(audio.to(_device(model))).mean(dim=1)


def get_timestamp_embeddings(
    audio: Float[Tensor, "sound samples"], model: HearModel
) -> tuple[Float[Tensor, "sound time dim"], Float[Tensor, "sound time"]]:
    """Return a vector every 50 ms and its time in ms: that of the window around it, silence beyond the ends."""
    listener = model.listener
    hop = round(HOP_MS / 1000 * listener.rate_hz)
    times = audio.shape[1] // hop + 1
    half = listener.window_samples // 2
    after = (times - 1) * hop + listener.window_samples - half - audio.shape[1]
    padded = nn.functional.pad(audio.to(_device(model)), (half, after))
    with torch.no_grad():
        vectors = listener(padded, hop)
    at_ms = torch.arange(times, device=vectors.device) * (1000 * hop / listener.rate_hz)
    return vectors, at_ms.float().expand(len(audio), times)


def _device(model: HearModel) -> torch.device:
    return next(model.parameters()).device
