"""Weights of the original release (github.com/ghost-signal/myna) become our model: recognised by their keys, strictly.

A file is a plain state dict. Sizes are read off its tensors, every key is accounted for, and only `linear_head.*`, a
projector or classifier whose shape varies, is left aside. The front end is the one they were trained with: raw power
mel. Nothing but tensors is ever read: no pickled code, no remote code.
"""

import pickle
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from myna.checkpoint import Checkpoint, read_tensors, weights_hash
from myna.errors import CheckpointError, first_line
from myna.model import ModelConfig, MynaModel
from myna.patch import Kind, patch_of

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
HEAD_DIM = 64  # of every released size; the tensors tell only heads x head_dim
WRAPPERS = ("state_dict", "model_state_dict", "model")  # names under which training scripts keep a state dict
TOKENIZERS = ("to_patch_embedding", "to_patch_embedding_b")  # of the first and the second patch kind
TOKENIZER = {"1": "norm_in", "2": "linear", "3": "norm_out"}
BLOCK = {
    "0.norm": "attention.norm",
    "0.to_qkv": "attention.to_qkv",
    "0.to_out": "attention.to_out",
    "1.net.0": "feed_forward.norm",
    "1.net.1": "feed_forward.up",
    "1.net.3": "feed_forward.down",
}
FINAL_NORM = "encoder.norm.weight"  # every model of ours has it, and no file of the release
LEFT_ASIDE = "linear_head."
NAMED: dict[Kind, set[str]] = {"square": {"base", "square"}, "vertical": {"vertical"}}  # words in a file's name
KNOWN = re.compile(
    r"(?P<prefix>(.+\.)?)(to_patch_embedding(_b)?\.[123]|transformer\.(norm|layers\.\d+\.(0\.(norm|to_qkv|to_out)|1\.net\.[013])))"
    r"\.(weight|bias)"
)


def open_release(path: str | Path, *, patches: Kind | None = None, name: str | None = None) -> Checkpoint:
    """Open a file of released weights as a model of ours without a projector, which the release does not share.

    Square and vertical weights have the same names and shapes, so of a file with one patch kind `patches` must say
    which it is, or else the `name` (the file's unless given) must hold the word base, square or vertical. A file with
    both kinds is opened whole. Raises CheckpointError if any tensor is missing, extra or misshapen, or if the name says
    another kind than `patches`; ConfigError for a kind that there is not.
    """
    path = Path(path)
    found, aside = read_state(path)
    prefix = _prefix(found, path)
    weights = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    strange = [key for key in found if not key.startswith(prefix)]
    head = [key for key in weights if key.startswith(LEFT_ASIDE)]
    aside = [f"{prefix}{key} {tuple(weights.pop(key).shape)}" for key in head] + aside
    config = _config(weights, _kinds(weights, path, name or path.stem, patches), path)
    tensors = _converted(weights, config, path, prefix, strange)
    about = {"origin": "the original release", "file": path.name, "left_aside": aside}
    return Checkpoint(path, config, weights_hash(config, tensors), about, tensors)


def read_state(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Read a state dict, wrapped or not; return it with the names of what a wrapper holds beside it."""
    if path.suffix == ".safetensors":
        return read_tensors(path), []
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path} was refused: it is not a state dict of plain tensors, and reading more than that could run code "
            "of its author; save model.state_dict() alone, or a .safetensors file."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"{path} cannot be read as PyTorch weights ({first_line(error)}): fetch it again."
        ) from error
    return _unwrapped(found, path)


def _unwrapped(found: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    aside: list[str] = []
    if isinstance(found, Mapping) and not any(isinstance(value, Tensor) for value in found.values()):
        wrapped = [key for key in WRAPPERS if isinstance(found.get(key), Mapping)]
        if len(wrapped) == 1:
            aside = [str(key) for key in found if key != wrapped[0]]
            found = found[wrapped[0]]
    if not isinstance(found, Mapping) or not found:
        raise CheckpointError(f"{path} holds a {type(found).__name__}; a state dict of tensors was wanted.")
    strange = sorted(f"{key} is a {type(value).__name__}" for key, value in found.items() if not _is_entry(key, value))
    if strange:
        raise CheckpointError(f"{path} holds more than a state dict of tensors: {_some(strange)}.")
    return dict(found), aside


def _is_entry(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


def _some(faults: list[str], most: int = 5) -> str:
    return "; ".join(faults[:most]) + (f"; and {len(faults) - most} more" if len(faults) > most else "")


def _prefix(found: dict[str, Tensor], path: Path) -> str:
    """Return what stands before every key of the release, such as `module.`; there must be one."""
    prefixes = Counter(match["prefix"] for key in found if (match := KNOWN.fullmatch(key)))
    if not prefixes:
        some = ", ".join(sorted(found)[:3]) or "nothing"
        hint = "; it looks like a file of a myna model: name its folder" if FINAL_NORM in found else ""
        raise CheckpointError(
            f"{path} holds no weights of the original release, which have keys such as transformer.norm.weight: "
            f"it has {some}{hint}."
        )
    (prefix, most), *others = prefixes.most_common(2)
    if others and 2 * others[0][1] >= most:  # rather than a stray tensor, which is refused by its name
        names = f"{prefix!r} and {others[0][0]!r}"
        raise CheckpointError(f"{path} holds several models, under {names}: save the one that is meant by itself.")
    return prefix


def _kinds(weights: dict[str, Tensor], path: Path, name: str, patches: Kind | None) -> tuple[Kind, ...]:
    if any(key.startswith(f"{TOKENIZERS[1]}.") for key in weights):
        return ("square", "vertical")
    words = set(re.findall("[a-z]+", name.lower()))
    named: list[Kind] = [kind for kind, says in NAMED.items() if words & says]
    if patches:
        patch_of(patches)  # which refuses what is none
        if len(named) == 1 and patches not in named:
            raise CheckpointError(
                f"The name of {path} says {named[0]} patches, and {patches} was asked for: leave that out, or give the "
                "file another name if this one is wrong."
            )
        named = [patches]
    if len(named) == 1:
        return (named[0],)
    raise CheckpointError(
        f"{path} has one patch kind, and square and vertical weights have the same shapes: say which it is with "
        "patches='square' or patches='vertical' (--patches), or by the word base or vertical in its name."
    )


def _config(weights: dict[str, Tensor], kinds: tuple[Kind, ...], path: Path) -> ModelConfig:
    """Read the sizes off the tensors: each is what most of the tensors that have it say, so one odd one is found."""

    def sizes(pattern: str, axis: int) -> list[int]:
        chosen = [value.shape for key, value in weights.items() if re.fullmatch(pattern, key)]
        return [shape[axis] for shape in chosen if len(shape) > axis]

    dim = _most(sizes(r"transformer\..*norm\.(weight|bias)", 0) + sizes(r"to_patch_embedding(_b)?\.3\..*", 0))
    mlp = _most(sizes(r".*\.1\.net\.1\.(weight|bias)", 0) + sizes(r".*\.1\.net\.3\.weight", 1))
    inner = _most(sizes(r".*\.to_out\.weight", 1) + [rows // 3 for rows in sizes(r".*\.to_qkv\.weight", 0)])
    depth = len({key.split(".")[2] for key in weights if re.match(r"transformer\.layers\.\d+\.", key)})
    if inner % HEAD_DIM:
        raise CheckpointError(
            f"The attention in {path} is {inner} wide; heads of {HEAD_DIM}, as in all of the release, do not fit."
        )
    try:
        return ModelConfig(
            patches=kinds,
            dim=dim,
            depth=depth,
            heads=inner // HEAD_DIM,
            head_dim=HEAD_DIM,
            mlp_dim=mlp,
            projector_dim=0,
            amplitude="power",
        )
    except ValidationError as error:
        fault = error.errors()[0]
        raise CheckpointError(
            f"{path} is no whole model of the release: its {fault['loc'][0]} would be {fault['input']}."
        ) from error


def _most(sizes: Iterable[int]) -> int:
    common = Counter(sizes).most_common(1)
    return common[0][0] if common else 0


def names(config: ModelConfig) -> dict[str, str]:
    """Return the release's name of every module that has weights, with ours."""
    found = {
        f"{theirs}.{number}": f"tokenizers.{kind}.{part}"
        for theirs, kind in zip(TOKENIZERS, config.patches, strict=False)
        for number, part in TOKENIZER.items()
    }
    for layer in range(config.depth):
        found |= {f"transformer.layers.{layer}.{a}": f"encoder.blocks.{layer}.{b}" for a, b in BLOCK.items()}
    return found | {"transformer.norm": "encoder.norm"}


def _converted(
    weights: dict[str, Tensor], config: ModelConfig, path: Path, prefix: str, strange: list[str]
) -> dict[str, Tensor]:
    """Return the weights in float32 by our names; what does not fit is named as the file names it."""
    with torch.device("meta"):
        wanted = MynaModel(config).state_dict()
    theirs = {ours: name for name, ours in names(config).items()}
    pairs = {f"{theirs[module]}.{what}": f"{module}.{what}" for module, _, what in (k.rpartition(".") for k in wanted)}
    faults = [f"{prefix}{key} is missing" for key in pairs.keys() - weights.keys()]
    faults += [f"{prefix}{key} does not belong" for key in weights.keys() - pairs.keys()]
    faults += [f"{key} does not belong" for key in strange]
    for key in pairs.keys() & weights.keys():
        found, right = weights[key], wanted[pairs[key]]
        if found.shape != right.shape:
            faults.append(f"{prefix}{key} is {tuple(found.shape)} where {tuple(right.shape)} belongs")
        elif not found.is_floating_point():
            faults.append(f"{prefix}{key} is {found.dtype} where floats belong")
    if faults:
        raise CheckpointError(f"{path} is no whole model of the release: {_some(sorted(faults))}.")
    tensors = {pairs[key]: value.detach().float() for key, value in weights.items()}
    for kind in config.patches:  # the release's values of a patch run band by band, ours frame by frame
        patch = patch_of(kind)
        for what in ("norm_in.weight", "norm_in.bias", "linear.weight"):
            value = tensors[f"tokenizers.{kind}.{what}"].unflatten(-1, (patch.bands, patch.frames))
            tensors[f"tokenizers.{kind}.{what}"] = value.transpose(-1, -2).flatten(-2)
    return tensors
