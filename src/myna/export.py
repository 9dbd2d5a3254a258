"""A model becomes an ONNX file, checked against PyTorch before it gets its name."""

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from jaxtyping import Float
from torch import Tensor, nn

from myna.disk import replacing
from myna.errors import CheckpointError, ConfigError
from myna.mae import build_model
from myna.model import MynaModel, scale
from myna.patch import Kind

INPUT, OUTPUT = "mel", "embedding"
TOLERANCE = 1e-4  # of the vectors' spread


class Encode(nn.Module):
    """What the file computes: power mel of windows becomes vectors of the chosen patch kinds, side by side."""

    def __init__(self, model: MynaModel, kinds: Sequence[Kind], *, window_samples: int | None = None) -> None:
        super().__init__()
        self.kinds, self.amplitude = tuple(kinds), model.config.amplitude
        # Positions are kept for the grid of the configured segment: with the window as the segment they are constants.
        # The amplitude is taken here.
        update = {"segment_samples": window_samples or model.config.segment_samples, "amplitude": "power"}
        self.model = build_model(model.config.model_copy(update=update))
        self.model.load_state_dict(model.state_dict())
        self.model.encoder.attend_by("products")
        self.eval().requires_grad_(False)

    def forward(self, mel: Float[Tensor, "batch frame band"]) -> Float[Tensor, "batch dims"]:
        heard = log1p(mel) if self.amplitude == "log1p" else scale(mel, self.amplitude)
        return self.model.encode(heard, self.kinds)


def log1p(x: Tensor) -> Tensor:
    """Take log(1 + x) as exactly as torch.log1p does for x >= 0: ONNX has only log, whose 1 + x loses quiet music."""
    whole = 1 + x
    return torch.where(whole == 1, x, whole.log() * x / (whole - 1))


def export(
    model: MynaModel,
    path: str | Path,
    *,
    patches: Kind | None = None,
    window_samples: int | None = None,
    hash: str = "",
) -> float:
    """Write an ONNX file and return the largest difference from PyTorch, as a part of the vectors' spread.

    Its input `mel` is power (batch, frame, band), any batch, of windows of `window_samples`; its output `embedding` is
    (batch, dim). Settings of front end and model are in its metadata. Raises CheckpointError if onnxruntime computes
    anything else than PyTorch.
    """
    path, config = Path(path), model.config
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: name the file that is to be written, such as model.onnx.")
    kinds = config.patches if patches is None else (patches,)
    if not set(kinds) <= set(config.patches):
        raise ConfigError(f"The model has {' and '.join(config.patches)} patches, not {patches}.")
    encode = Encode(model, kinds, window_samples=window_samples)
    example = torch.rand(2, encode.model.config.segment_frames, config.front_end.bands)
    with _quiet():
        program = torch.onnx.export(
            encode,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            external_data=False,
            verbose=False,
        )
    found = program.model_proto
    facts = {"format": "myna-onnx", "patches": "+".join(kinds), "hash": hash, "input": "mel power (batch, frame, band)"}
    facts |= {"model": config.model_dump_json(), "front_end": json.dumps(config.front_end.model_dump())}
    facts["window_samples"] = str(encode.model.config.segment_samples)
    onnx.helper.set_model_props(found, facts)
    with replacing(path) as temporary:
        temporary.write_bytes(found.SerializeToString())
        difference = _difference(model, kinds, temporary, example.shape)
    return difference


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what PyTorch's exporter says of itself: a deprecation inside it, and that torchvision is not there."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        log.setLevel(before)


def _difference(model: MynaModel, kinds: Sequence[Kind], path: Path, shape: Sequence[int]) -> float:
    """Compare the file with PyTorch on windows from silence to loud, one at a time and several at once."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    level = torch.logspace(-8, 4, 5)[:, None, None]
    mel = torch.randn(5, *shape[1:], generator=generator).square() * level
    with torch.inference_mode():
        wanted = model.encode(mel, kinds).numpy()
    together = session.run([OUTPUT], {INPUT: mel.numpy()})[0]
    alone = np.concatenate([session.run([OUTPUT], {INPUT: one[None]})[0] for one in mel.numpy()])
    difference = float(max(np.abs(together - wanted).max(), np.abs(alone - wanted).max()) / wanted.std())
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"onnxruntime {onnxruntime.__version__} differs from PyTorch by {difference:.1e} of the vectors' spread "
            f"({TOLERANCE:.0e} at most was wanted), so no file was written: try other versions of the two."
        )
    return difference
