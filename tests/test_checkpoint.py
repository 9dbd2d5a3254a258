import errno
import json
import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from myna import checkpoint
from myna.checkpoint import export_model, model_hash, open_checkpoint, save_model
from myna.errors import CheckpointError
from myna.model import ModelConfig, MynaModel

SMALL = {"dim": 32, "depth": 1, "heads": 2, "head_dim": 16, "mlp_dim": 64}


@pytest.fixture
def model():
    return MynaModel(ModelConfig(patches=("square", "vertical"), **SMALL), seed=3)


def test_round_trip(model, tmp_path):
    save_model(model, tmp_path / "m", about={"step": 7})
    found = open_checkpoint(tmp_path / "m")
    assert found.config == model.config
    assert found.step == 7
    assert found.hash == model_hash(model)
    again = found.model()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert model_hash(again) == found.hash


def test_hash_changes_with_any_weight_and_setting(model):
    before = model_hash(model)
    model.encoder.norm.bias.data[0] += 1e-3
    assert model_hash(model) != before
    other = MynaModel(model.config.model_copy(update={"amplitude": "log1p"}), seed=3)
    assert model_hash(other) != before


@pytest.mark.parametrize("fault", ["missing", "extra", "misshapen"])
def test_a_wrong_tensor_is_refused_by_name(model, tmp_path, fault):
    save_model(model, tmp_path / "m")
    file = tmp_path / "m" / checkpoint.MODEL_FILE
    weights = load_file(file)
    if fault == "missing":
        del weights["encoder.norm.bias"]
    elif fault == "extra":
        weights["encoder.norm.bias2"] = torch.zeros(3)
    else:
        weights["encoder.norm.bias"] = torch.zeros(31)
    save_file(weights, file)
    wanted = {"missing": "bias is missing", "extra": "bias2 does not belong", "misshapen": r"\(31,\) where \(32,\)"}
    with pytest.raises(CheckpointError, match=wanted[fault]):
        open_checkpoint(tmp_path / "m").model()


def test_damage_is_said_plainly(model, tmp_path):
    with pytest.raises(CheckpointError, match="no model at"):
        open_checkpoint(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no model folder"):
        open_checkpoint(tmp_path / "empty")
    save_model(model, tmp_path / "m")
    file = tmp_path / "m" / checkpoint.MODEL_FILE
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        open_checkpoint(tmp_path / "m").model()
    config = tmp_path / "m" / checkpoint.CONFIG_FILE
    whole = json.loads(config.read_text())
    config.write_text(json.dumps(whole | {"version": 99}))
    with pytest.raises(CheckpointError, match="version 99"):
        open_checkpoint(tmp_path / "m")
    for broken in ("{", "[]", json.dumps(whole | {"model": {"dim": "wide"}}), json.dumps(whole | {"about": 3})):
        config.write_text(broken)
        with pytest.raises(CheckpointError, match="damaged"):
            open_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("amplitude", ["power", "log1p", "decibel"])
def test_the_amplitude_is_kept_with_the_weights(amplitude, tmp_path):
    one = MynaModel(ModelConfig(patches=("square",), amplitude=amplitude, **SMALL), seed=3)
    save_model(one, tmp_path / "m")
    again = open_checkpoint(tmp_path / "m").model()
    assert again.config.amplitude == amplitude
    mel = torch.rand(2, 96, 128) * 50
    scaled = {"power": mel, "log1p": (mel + 1).log(), "decibel": 10 * mel.log10()}
    plain = MynaModel(ModelConfig(patches=("square",), amplitude="power", **SMALL), seed=3)
    assert torch.equal(again.encode(mel), one.encode(mel))
    torch.testing.assert_close(again.encode(mel), plain.encode(scaled[amplitude]), rtol=1e-4, atol=1e-5)


def test_the_losss_state_stands_beside_the_model(model, tmp_path):
    state = {"averages.square.log_u": torch.tensor([1.5, -torch.inf])}
    save_model(model, tmp_path / "m", optimizer={"step.x": torch.ones(1)}, loss=state)
    assert torch.equal(open_checkpoint(tmp_path / "m").loss()["averages.square.log_u"], *state.values())
    save_model(model, tmp_path / "n", optimizer={"step.x": torch.ones(1)}, loss={})
    assert not (tmp_path / "n" / checkpoint.LOSS_FILE).exists()
    assert open_checkpoint(tmp_path / "n").loss() == {}


def test_a_model_without_optimizer_cannot_be_resumed(model, tmp_path):
    save_model(model, tmp_path / "m")
    with pytest.raises(CheckpointError, match="--init-from"):
        open_checkpoint(tmp_path / "m").optimizer()


def test_an_export_replaces_a_model_and_nothing_else(model, tmp_path):
    export_model(model, tmp_path / "m")
    export_model(MynaModel(model.config, seed=4), tmp_path / "m")
    assert open_checkpoint(tmp_path / "m").hash != model_hash(model)
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "a.mp3").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for path in (tmp_path / "music", tmp_path / "file"):
        with pytest.raises(CheckpointError, match=r"is no model .* name a new folder"):
            export_model(model, path)
    assert (tmp_path / "music" / "a.mp3").read_text() == (tmp_path / "file").read_text() == "dear"


@pytest.mark.parametrize("end", [0, 1], ids=["putting the old aside", "giving the new its name"])
def test_a_model_that_cannot_be_replaced_stays(model, tmp_path, monkeypatch, end):
    """A mount point can be neither renamed nor replaced."""
    place, replace = tmp_path / "m", os.replace
    export_model(model, place)

    def refuse(*ends):
        if ends[end] == place and not ends[0].name.endswith(".old.part"):  # the old one may come back
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        replace(*ends)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(CheckpointError, match=r"m could not be written \(Device or resource busy\).* is as it was"):
        export_model(MynaModel(model.config, seed=4), place)
    assert model_hash(open_checkpoint(place).model()) == model_hash(model)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_a_kill_left_aside_goes_with_the_next_write(model, tmp_path):
    save_model(model, tmp_path / ".m.old.part")
    export_model(model, tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_link_to_a_model_stays_a_link(model, tmp_path):
    export_model(model, tmp_path / "m")
    (tmp_path / "best").symlink_to(tmp_path / "m")
    other = MynaModel(model.config, seed=4)
    export_model(other, tmp_path / "best")
    assert (tmp_path / "best").is_symlink()
    assert open_checkpoint(tmp_path / "m").hash == model_hash(other)


@pytest.mark.parametrize("error", [SafetensorError("IoError: No space left on device"), OSError(28, "No space left")])
def test_a_full_disk_is_one_sentence(model, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(CheckpointError, match=r"could not be written \(.*No space left.*\): free some space"):
        save_model(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_that_one_is_in_is_refused(model, tmp_path, monkeypatch):
    """It would be replaced under the shell's feet."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="is the folder that you are in: name a new folder"):
        export_model(model, checkpoint.Path("."))
    export_model(model, checkpoint.Path("a/../m"))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
