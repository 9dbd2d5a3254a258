"""Weights (safetensors) and config (JSON) in a folder: whole or not there at all.

A model folder holds `model.safetensors` and `config.json`. A checkpoint of a run is the same folder with the
optimiser's state beside it, and the loss's if it has any, so every checkpoint is a model that can be used.
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from myna.disk import write_folder
from myna.errors import CheckpointError
from myna.mae import build_model
from myna.model import ModelConfig, MynaModel

FORMAT = "myna-model"
VERSION = 2  # 1 had the values of a patch band by band
MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
OPTIMIZER_FILE = "optimizer.safetensors"
LOSS_FILE = "loss.safetensors"


def model_hash(model: MynaModel) -> str:
    """Return 16 hex digits that change with any weight or setting of the model."""
    return weights_hash(model.config, model.state_dict())


def weights_hash(config: ModelConfig, weights: dict[str, Tensor]) -> str:
    """Return the hash of the model with these settings and weights."""
    digest = hashlib.sha256(config.model_dump_json().encode())
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def save_model(
    model: MynaModel,
    path: Path,
    *,
    about: dict[str, Any] | None = None,
    optimizer: dict[str, Tensor] | None = None,
    loss: dict[str, Tensor] | None = None,
) -> None:
    """Write a model folder. `about` is kept in the config (where it came from, step, data).

    Raises CheckpointError if the disk is full or refuses it; a model that was there is as it was.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    config = {
        "format": FORMAT,
        "version": VERSION,
        "hash": model_hash(model),
        "model": model.config.model_dump(mode="json"),
        "about": about or {},
    }

    def write(folder: Path) -> None:
        save_file(weights, folder / MODEL_FILE)
        for file, state in ((OPTIMIZER_FILE, optimizer), (LOSS_FILE, loss)):
            if state:
                save_file({name: tensor.detach().cpu() for name, tensor in state.items()}, folder / file)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    try:
        write_folder(path, write)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"The model {path} could not be written ({getattr(error, 'strerror', None) or error}): free some space "
            "there or name another folder; what was there is as it was."
        ) from error


def export_model(model: MynaModel, path: Path, *, about: dict[str, Any] | None = None) -> None:
    """Write a model folder where a user wants it: over an older model, but never over anything else."""
    if path.resolve() == Path.cwd():  # a shell that is in a folder would be left in the one put aside
        raise CheckpointError(f"{path.resolve()} is the folder that you are in: name a new folder for the model.")
    if path.exists():
        others = (
            sorted({p.name for p in path.iterdir()} - {MODEL_FILE, CONFIG_FILE}) if path.is_dir() else ["no folder"]
        )
        if others:
            raise CheckpointError(f"{path} is there and is no model ({others[0]}): name a new folder for the model.")
    save_model(model, path, about=about)


LEFTOVER = re.compile(r"\.(run\.json|metrics\.jsonl|stages\.txt|step-\d+)\.\d+\.part")


def sweep(run: Path) -> None:
    """Remove what a killed process left half-written in a run's folder: our own temporary names and nothing else."""
    for folder in (run, run / "checkpoints"):
        for left in folder.iterdir() if folder.is_dir() else ():
            if LEFTOVER.fullmatch(left.name):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


@dataclass(frozen=True)
class Checkpoint:
    """A model that was found whole: a model folder, or a file of other origin with its `tensors`, in our names."""

    path: Path
    config: ModelConfig
    hash: str
    about: dict[str, Any]
    tensors: dict[str, Tensor] | None = field(default=None, repr=False, compare=False)

    @property
    def step(self) -> int:
        return int(self.about.get("step", 0))

    def model(self) -> MynaModel:
        """Build the model and load its weights; every tensor must be there, and no other."""
        model = build_model(self.config)
        load_weights(model, self.weights(), self.path)
        return model

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors as they were found, by our names."""
        return read_tensors(self.path / MODEL_FILE) if self.tensors is None else self.tensors

    def optimizer(self) -> dict[str, Tensor]:
        """Read the optimiser's state, by the names that `save_model` was given."""
        if not (self.path / OPTIMIZER_FILE).is_file():
            raise CheckpointError(
                f"{self.path} holds a model without its optimiser's state, so training cannot be resumed from it: "
                "start a new run from its weights with --init-from."
            )
        return read_tensors(self.path / OPTIMIZER_FILE)

    def loss(self) -> dict[str, Tensor]:
        """Read what the loss had learnt and remembered; most losses have nothing to write."""
        return read_tensors(self.path / LOSS_FILE) if (self.path / LOSS_FILE).is_file() else {}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, saying plainly when it is damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}): take another checkpoint.") from error


def load_weights(module: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Load a model's weights or a loss's state strictly: a missing, extra or misshapen tensor is refused by name."""
    wanted = module.state_dict()
    faults = [f"{name} is missing" for name in wanted.keys() - weights.keys()]
    faults += [f"{name} does not belong" for name in weights.keys() - wanted.keys()]
    faults += [
        f"{name} is {tuple(weights[name].shape)} where {tuple(wanted[name].shape)} belongs"
        for name in wanted.keys() & weights.keys()
        if weights[name].shape != wanted[name].shape
    ]
    if faults:
        raise CheckpointError(f"The weights in {source} do not fit their config: {'; '.join(sorted(faults)[:5])}.")
    module.load_state_dict(weights)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model folder, or the newest checkpoint of a run folder."""
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"There is no model at {folder}: a run folder or a model folder was wanted.")
    if not (folder / CONFIG_FILE).is_file():
        newest = checkpoints(folder)
        if not newest:
            raise CheckpointError(
                f"{folder} is no model folder (it has no {CONFIG_FILE}) and holds no checkpoint of a run: "
                "give a folder that `myna pretrain` wrote."
            )
        folder = newest[-1]
    try:
        found = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if found.get("format") != FORMAT or found.get("version") != VERSION:
            raise CheckpointError(
                f"{folder / CONFIG_FILE} says {found.get('format')!r} version {found.get('version')!r}; "
                f"this myna reads {FORMAT!r} version {VERSION}."
            )
        config = ModelConfig.model_validate(found["model"])
        return Checkpoint(folder, config, str(found["hash"]), dict(found["about"]))
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} is damaged ({type(error).__name__}: {error}): take another copy or checkpoint."
        ) from error


def checkpoints(run: str | Path) -> list[Path]:
    """List the whole checkpoints of a run folder, oldest first."""
    folders = Path(run).joinpath("checkpoints").glob("step-*")
    return sorted(folder for folder in folders if (folder / CONFIG_FILE).is_file())
