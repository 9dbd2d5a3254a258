import pytest
import yaml

from myna import recipe
from myna.errors import ConfigError


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
        ("mask_policy", "stripes"),
        ("mask_policy", "complement"),
        ("pair", "song"),
        ("sogclr_individual", True),
    ],
)
def test_an_impossible_value_says_what_was_wrong(name, value):
    with pytest.raises(ConfigError, match=rf"The setting {name}.* cannot be"):
        recipe.override(recipe.get("base"), {name: value})


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
    (tmp_path / "empty.yaml").write_text("")
    assert recipe.read_yaml(tmp_path / "empty.yaml") == {}


def test_setting_names_are_unique_over_all_parts():
    counted = sum(
        len([n for n in part.model_fields if n != "front_end"])
        for part in (recipe.ModelConfig, recipe.ViewConfig, recipe.LossConfig, recipe.TrainConfig)
    )
    assert counted == len(recipe.fields())
