import pytest
import torch
import yaml

from myna import recipe
from myna.errors import ConfigError
from myna.model import MynaModel
from myna.vit import parameter_count


@pytest.mark.parametrize(
    ("name", "patches"), [("base", ("square",)), ("vertical", ("vertical",)), ("hybrid", ("square", "vertical"))]
)
def test_recipes_are_the_papers(name, patches):
    s = recipe.get(name)
    assert s.model.patches == patches
    assert (s.model.dim, s.model.depth, s.model.heads, s.model.head_dim, s.model.mlp_dim) == (384, 12, 6, 64, 1536)
    assert (s.view.mask_ratio, s.view.clip_seconds, s.model.segment_samples) == (0.9, 10.0, 50_000)
    assert (s.loss.loss, s.loss.temperature) == ("paper", 0.1)
    assert (s.train.batch, s.train.epochs, s.train.learning_rate, s.train.weight_decay) == (4096, 500, 3e-4, 1e-5)
    assert s.model.amplitude == "power"
    assert s.recipe == name


def test_any_setting_can_be_overridden_by_its_text():
    s = recipe.override(
        recipe.get("base"),
        {
            "batch": "256",
            "mask-ratio": "0.5",
            "patches": "square,vertical",
            "steps": 7,
            "loss": "ntxent",
            "learning_rate": "1e-4",
        },
    )
    assert (s.train.batch, s.view.mask_ratio, s.model.patches) == (256, 0.5, ("square", "vertical"))
    assert (s.train.steps, s.loss.loss, s.train.learning_rate) == (7, "ntxent", 1e-4)
    assert recipe.get("base").train.batch == 4096


@pytest.mark.parametrize(
    ("name", "shape", "millions"),
    [("hybrid", (384, 12, 6, 1536), 21.7), ("85m", (768, 12, 12, 3072), 86), ("300m", (1024, 24, 16, 4096), 304)],
)
def test_recipes_of_every_scale(name, shape, millions):
    s = recipe.get(name)
    assert (s.model.dim, s.model.depth, s.model.heads, s.model.mlp_dim) == shape
    assert s.model.head_dim == 64
    assert s.model.patches == ("square", "vertical")
    dim, depth, _, mlp = shape
    block = 4 * dim * dim + 2 * dim * mlp + mlp + dim + 4 * dim  # attention, feed-forward, its biases, two norms
    tokenizer = 2 * 256 + 256 * dim + dim + 2 * dim
    projector = dim * dim + dim + dim * 128 + 128
    with torch.device("meta"):  # shapes without memory
        found = parameter_count(MynaModel(s.model))
    assert found == depth * block + 2 * dim + 2 * tokenizer + projector
    assert found / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(("wrong", "nearest"), [("btach", "batch"), ("mask_ration", "mask_ratio"), ("lr_rate", None)])
def test_an_unknown_setting_suggests_the_nearest(wrong, nearest):
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}'" if nearest else "no setting"):
        recipe.override(recipe.get("base"), {wrong: 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", "many"),
        ("batch", 1),
        ("mask_ratio", 1.0),
        ("temperature", 0),
        ("loss", "triplet"),
        ("patches", "round"),
        ("patches", "square,square"),
        ("mask_policy", "stripes"),
        ("mask_policy", "complement"),
        ("pair", "song"),
        ("sogclr_individual", True),
        ("micro_batch", 0),
        ("micro_batch", -1),
        ("clip_seconds", "inf"),
        ("clip_seconds", 1e300),
        ("pair_seconds", "inf"),
        ("pair_seconds", 1e300),
        ("mask_sigma", "inf"),
        ("temperature", "inf"),
        ("temperature", "nan"),
        ("sogclr_rate", "inf"),
        ("learning_rate", "inf"),
        ("weight_decay", "inf"),
        ("checkpoint_minutes", "inf"),
        ("epochs", 1e308),
        ("seed", 99999999999999999999),
        ("seed", -1),
    ],
)
def test_an_impossible_value_says_what_was_wrong(name, value):
    with pytest.raises(ConfigError, match=rf"The setting {name}.* cannot be"):
        recipe.override(recipe.get("base"), {name: value})


def test_a_value_of_several_forms_is_told_all_of_them():
    wanted = (
        r"The setting micro_batch cannot be '0': input should be 'auto' or 'off', or .* greater than or equal to 1\."
    )
    with pytest.raises(ConfigError, match=wanted):
        recipe.override(recipe.get("base"), {"micro_batch": "0"})
    assert recipe.override(recipe.get("base"), {"micro_batch": "7"}).train.micro_batch == 7


def test_epochs_end_a_length_in_steps():
    steps = recipe.override(recipe.get("base"), {"steps": 7})
    assert recipe.override(steps, {"epochs": 2}).train.steps is None
    assert recipe.override(steps, {"batch": 8}).train.steps == 7
    assert recipe.override(steps, {"epochs": 2, "steps": 9}).train.steps == 9


def test_the_largest_seed_draws_weights():
    seed = (1 << 63) - 1
    settings = recipe.override(recipe.get("base"), {"seed": seed, "dim": 32, "depth": 1, "heads": 1})
    MynaModel(settings.model, seed=settings.train.seed)


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"'hybird' \(did you mean 'hybrid'\?\); there are base, vertical"):
        recipe.get("hybird")


@pytest.mark.parametrize("name", list(recipe.RECIPES))
def test_yaml_round_trip(name, tmp_path):
    settings = recipe.override(recipe.get(name), {"batch": 12, "temperature": 0.3})
    (tmp_path / "settings.yaml").write_text(recipe.to_yaml(settings))
    assert set(yaml.safe_load(recipe.to_yaml(settings))) == set(recipe.fields())
    assert recipe.override(recipe.get(name), recipe.read_yaml(tmp_path / "settings.yaml")) == settings


def test_bad_yaml_is_said_plainly(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        recipe.read_yaml(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="holds a list"):
        recipe.read_yaml(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        recipe.read_yaml(tmp_path / "broken.yaml")
    (tmp_path / "number.yaml").write_text("256: batch\n")
    with pytest.raises(ConfigError, match="sets 256, which is no name"):
        recipe.read_yaml(tmp_path / "number.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert recipe.read_yaml(tmp_path / "empty.yaml") == {}


def test_setting_names_are_unique_over_all_parts():
    counted = sum(
        len([n for n in part.model_fields if n != "front_end"])
        for part in (recipe.ModelConfig, recipe.ViewConfig, recipe.LossConfig, recipe.TrainConfig)
    )
    assert counted == len(recipe.fields())
