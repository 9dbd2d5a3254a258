"""A name becomes a complete, frozen set of settings; single settings can be overridden by name."""

import difflib
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from myna.errors import ConfigError
from myna.loss import LossConfig
from myna.model import ModelConfig
from myna.run import Settings, TrainConfig
from myna.view import ViewConfig


def base() -> Settings:
    """Myna-Base (section 3.4): square patches. `myna pretrain STORE -o RUN --recipe base`."""
    return Settings(recipe="base")


def vertical() -> Settings:
    """Myna-Vertical (section 3.5): patches of all bands x two frames, which keeps pitch exact."""
    return Settings(recipe="vertical", model=ModelConfig(patches=("vertical",)))


def hybrid() -> Settings:
    """Myna-Hybrid (section 3.6): both patch kinds, two tokenizers, one encoder, the mean of two losses."""
    return Settings(recipe="hybrid", model=ModelConfig(patches=("square", "vertical")))


def _shared(dim: int, depth: int, heads: int) -> ModelConfig:
    shape = {"dim": dim, "depth": depth, "heads": heads, "mlp_dim": 4 * dim, "projector_hidden": dim}
    return ModelConfig(patches=("square", "vertical"), **shape)


def vit_b() -> Settings:
    """The hybrid on ViT-B, as the release's largest (section 5.2, scaling): 85 M parameters."""
    return Settings(recipe="85m", model=_shared(768, 12, 12))


def vit_l() -> Settings:
    """The hybrid on ViT-L (section 5.2, scaling): 300 M parameters."""
    return Settings(recipe="300m", model=_shared(1024, 24, 16))


def mae() -> Settings:
    """The masked auto-encoder that the paper compares with (Table 1, Appendix B): 32 M parameters."""
    model = ModelConfig(decoder_depth=4, amplitude="log1p")
    return Settings(recipe="mae", model=model, view=ViewConfig(mask_ratio=0.75))


def tiny() -> Settings:
    """A small hybrid that learns something in two minutes on two cores: for the demo and the tests."""
    return Settings(
        recipe="tiny",
        model=ModelConfig(
            patches=("square", "vertical"),
            dim=128,
            depth=4,
            heads=2,
            mlp_dim=512,
            projector_hidden=256,
            decoder_dim=128,
            decoder_heads=2,
            amplitude="log1p",
        ),
        view=ViewConfig(clip_seconds=0.0),
        loss=LossConfig(),
        train=TrainConfig(batch=256, epochs=100, learning_rate=1e-3, checkpoint_minutes=1.0),
    )


RECIPES = {
    "base": base,
    "vertical": vertical,
    "hybrid": hybrid,
    "85m": vit_b,
    "300m": vit_l,
    "mae": mae,
    "tiny": tiny,
}
_PARTS = ("model", "view", "loss", "train")


def get(name: str) -> Settings:
    """Return the recipe of this name."""
    if name not in RECIPES:
        raise ConfigError(f"There is no recipe {name!r}{_nearest(name, RECIPES)}; there are {', '.join(RECIPES)}.")
    return RECIPES[name]()


def fields() -> dict[str, str]:
    """Return every setting that can be overridden, with the part of the settings that owns it."""
    owners = {part: Settings.model_fields[part].annotation for part in _PARTS}
    return {name: part for part, owner in owners.items() for name in owner.model_fields if name != "front_end"}


def override(settings: Settings, given: dict[str, Any]) -> Settings:
    """Return settings with some of them changed, by flat name: {"batch": 256, "mask_ratio": 0.5}.

    Epochs that are given alone end a length in steps, which would come first.
    Raises ConfigError for an unknown name (with the nearest known one) or an impossible value.
    """
    owner, changes = fields(), {part: {} for part in _PARTS}
    for name, value in given.items():
        plain = name.replace("-", "_")
        if plain not in owner:
            raise ConfigError(f"There is no setting {name!r}{_nearest(plain, owner)}.")
        if plain == "patches" and isinstance(value, str):
            value = tuple(part.strip() for part in value.replace("+", ",").split(","))
        changes[owner[plain]][plain] = value
    if "epochs" in changes["train"]:
        changes["train"].setdefault("steps", None)
    parts = {part: _changed(getattr(settings, part), changes[part]) for part in _PARTS}
    return Settings(recipe=settings.recipe, **parts)


def _changed(config: BaseModel, changes: dict[str, Any]) -> BaseModel:
    try:
        return type(config).model_validate({**config.model_dump(), **changes})
    except ValidationError as error:
        fault = error.errors()[0]
        name, value = fault["loc"][0], fault["input"]
        # a value of several forms, such as a word or a number, fails each of them
        told = [other["msg"] for other in error.errors() if (other["loc"][0], other["input"]) == (name, value)]
        reason = ", or ".join(text.removeprefix("Value error, ").removesuffix(".").lower() for text in told)
        raise ConfigError(f"The setting {name} cannot be {value!r}: {reason}.") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read flat settings (`batch: 256`) from a YAML file."""
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The settings in {path} cannot be read: {error}.") from error
    if not isinstance(found or {}, dict):
        raise ConfigError(f"{path} holds a {type(found).__name__}; lines of `name: value` were wanted.")
    for name in found or {}:
        if not isinstance(name, str):
            raise ConfigError(f"{path} sets {name!r}, which is no name: lines of `name: value` were wanted.")
    return found or {}


def to_yaml(settings: Settings) -> str:
    """Write settings as a YAML file that `--config` takes, with what each one means."""
    lines = [f"# recipe {settings.recipe}"]
    for name, part in fields().items():
        config = getattr(settings, part)
        value = config.model_dump(mode="json")[name]
        text = f"{name}: {json.dumps(value)}"  # JSON is YAML
        lines.append(f"{text:<34}# {type(config).model_fields[name].description}")
    return "\n".join(lines) + "\n"


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
