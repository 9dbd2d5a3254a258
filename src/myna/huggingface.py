"""Any audio model of the Hugging Face Hub, by its id: a layer, or all of them, pooled over time.

The model's own feature extractor says the rate and, where it has one, the length of a window; a model that takes
music of any length gets 5 s at a time, as MERT was trained on.
"""

import hashlib
import json
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from myna.device import pick_device
from myna.errors import ConfigError, first_line

Pooling = Literal["mean", "max", "first"]
WINDOW_S = 5.0


class HuggingFace:
    """A model with hidden states (batch, token, dim): wav2vec 2.0, HuBERT, WavLM, MERT, AST, Whisper's encoder.

    `layer` counts hidden states from 0, what enters the first block, to the last block's; "last" is that one, and
    "all" gives each as a representation of its own, from one pass. `pooling` over tokens: their mean, their maximum,
    or the first (a class token). `trust_remote_code` lets the model's repository run its own Python here.
    """

    def __init__(
        self,
        source: str,
        *,
        layer: str = "last",
        pooling: Pooling = "mean",
        window_samples: int | None = None,
        trust_remote_code: bool = False,
        device: str | None = None,
        batch: int | None = None,
    ) -> None:
        self.source, self.pooling = source, pooling
        self.device = pick_device(device)
        self.extractor, model = _load(source, trust_remote_code)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.batch = batch or (4 if self.device.type == "cpu" else 64)
        if not hasattr(self.extractor, "sampling_rate"):
            raise ConfigError(
                f"{source} is no model of audio: its {type(self.extractor).__name__} has no sampling rate."
            )
        self.rate_hz = int(self.extractor.sampling_rate)
        self.window_samples = window_samples or _window_samples(self.extractor, self.rate_hz)
        states = self._try()
        self.layers = _layers(layer, len(states), source)
        self.widths = [states[i].shape[2] for i in self.layers]

    @property
    def dim(self) -> int:
        return sum(self.widths)

    @cached_property
    def hash(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    @property
    def representations(self) -> dict[str, slice]:
        ends = np.cumsum(self.widths).tolist()
        return {
            f"layer {layer}": slice(end - width, end)
            for layer, width, end in zip(self.layers, self.widths, ends, strict=True)
        }

    @property
    def settings(self) -> dict[str, Any]:
        extractor = json.loads(self.extractor.to_json_string())
        return {"layers": list(self.layers), "pooling": self.pooling, "extractor": extractor}

    def embed_windows(self, samples: Float32[np.ndarray, "window samples"]) -> Float32[np.ndarray, "window dim"]:
        states = self._hidden_states(samples)
        return torch.cat([self._pool(states[layer]) for layer in self.layers], dim=1).float().cpu().numpy()

    @torch.inference_mode()
    def _hidden_states(self, samples: np.ndarray) -> tuple[Tensor, ...]:
        inputs = self.extractor(list(samples), sampling_rate=self.rate_hz, return_tensors="pt")
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        return self.model(**inputs, output_hidden_states=True).hidden_states

    def _try(self) -> tuple[Tensor, ...]:
        """Return the hidden states of a window of silence. Raises ConfigError for a model that gives none."""
        why = ""
        try:
            states = self._hidden_states(np.zeros((1, self.window_samples), np.float32))
        except Exception as error:  # whatever a model of somebody else's, which may want other inputs, runs into
            states, why = (), f" from samples alone ({first_line(error)})"
        if not states or any(state.ndim != 3 for state in states):
            raise ConfigError(
                f"The model {self.source} gives no hidden states of the shape (batch, token, dim){why}: take one that "
                "does, such as wav2vec 2.0, MERT or AST."
            )
        return states

    def _pool(self, state: Tensor) -> Tensor:
        if self.pooling == "first":
            return state[:, 0]
        return state.mean(dim=1) if self.pooling == "mean" else state.amax(dim=1)


def _load(source: str, trust_remote_code: bool) -> tuple[Any, nn.Module]:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"hf:{source} needs {error.name}, which is not installed: pip install 'myna-music[hf]'."
        ) from error
    try:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(source, trust_remote_code=trust_remote_code)
        model = transformers.AutoModel.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        if "trust_remote_code" in str(error) and not trust_remote_code:
            raise ConfigError(
                f"The model {source} runs Python code from its repository: read it, and say --trust-remote-code if "
                "you trust it."
            ) from error
        raise ConfigError(f"The model {source} could not be loaded ({str(error).strip().splitlines()[0]}).") from error
    return extractor, model.get_encoder() if model.config.is_encoder_decoder else model


def _window_samples(extractor: Any, rate_hz: int) -> int:
    told = extractor.to_dict()
    if "n_samples" in told:  # Whisper pads everything to its 30 s
        return int(told["n_samples"])
    if "max_length" in told and "num_mel_bins" in told:  # AST: so many frames, 10 ms apart
        return int(told["max_length"]) * rate_hz // 100
    return round(WINDOW_S * rate_hz)


def _layers(layer: str, count: int, source: str) -> tuple[int, ...]:
    if layer == "all":
        return tuple(range(count))
    if layer == "last":
        return (count - 1,)
    if not (layer.isdigit() and int(layer) < count):
        raise ConfigError(f"The layer {layer!r} was asked for; {source} has 0 to {count - 1}, `last` and `all`.")
    return (int(layer),)
