"""The original release's files: equal embeddings through the whole path, and every fault named."""

import json
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from myna import Myna
from myna.checkpoint import open_checkpoint, save_model
from myna.cli import main
from myna.errors import CheckpointError, ConfigError
from myna.model import ModelConfig, MynaModel
from myna.release import open_release
from original import Original
from sounds import music
from stores import make_store, random_mels

SMALL = {"dim": 64, "depth": 2, "heads": 1, "hidden": 96}
NAMES = {"square": "myna-base.pth", "vertical": "myna-vertical.pth", "hybrid": "myna-hybrid.pth"}


def saved(original: Original, path):
    torch.save(original.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def samples():
    return music(7.0, 16_000, seed=3)[:, 0].astype(np.float32)


def windows(samples: np.ndarray, length: int) -> torch.Tensor:
    count = len(samples) // length
    return torch.from_numpy(samples[: count * length]).view(count, length)


@pytest.mark.parametrize("length", [50_000, 100_000])
@pytest.mark.parametrize("kind", list(NAMES))
def test_embeddings_are_the_originals_through_the_whole_path(tmp_path, samples, kind, length):
    """ViT-S in width, from samples to vectors: nnAudio and their network against our encode."""
    original = Original(kind, seed=1)
    myna = Myna.from_pretrained(saved(original, tmp_path / NAMES[kind]), window_samples=length, precision="fp32")
    found = myna.encode(samples, rate_hz=16_000, windows=True)
    wanted = original.of_samples(windows(samples, length)).numpy()
    assert found.embeddings.shape == wanted.shape == (112_000 // length, 768 if kind == "hybrid" else 384)
    assert wanted.std() > 0.1
    np.testing.assert_allclose(found.embeddings, wanted, atol=2e-5)


def test_halves_of_a_hybrid_are_the_originals(tmp_path, samples):
    original = Original("hybrid", **SMALL)
    path = saved(original, tmp_path / "myna-hybrid.pth")
    wanted = original.of_samples(windows(samples, 50_000)).mean(0).numpy()
    for patches, part in (("square", wanted[:64]), ("vertical", wanted[64:])):
        myna = Myna.from_pretrained(path, patches=patches, precision="fp32")
        np.testing.assert_allclose(myna.encode(samples, rate_hz=16_000), part, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "heads"),
    [({"dim": 768, "heads": 12, "hidden": 3072}, 12), ({"dim": 1024, "heads": 16, "hidden": 4096}, 16)],
    ids=["85m", "300m"],
)
def test_larger_sizes(tmp_path, samples, sizes, heads):
    original = Original("hybrid", depth=1, **sizes)
    found = open_release(saved(original, tmp_path / "myna-85m.pth"))
    assert (found.config.heads, found.config.head_dim, found.config.depth) == (heads, 64, 1)
    myna = Myna(found.model(), precision="fp32")
    assert myna.dim == 2 * sizes["dim"]
    wanted = original.of_samples(windows(samples, 50_000)).mean(0).numpy()
    np.testing.assert_allclose(myna.encode(samples, rate_hz=16_000), wanted, atol=2e-5)


@pytest.mark.parametrize(("kind", "frames"), [("square", 96), ("vertical", 98), ("hybrid", 96)])
def test_front_end_is_the_one_they_were_trained_with(tmp_path, kind, frames):
    config = open_release(saved(Original(kind, **SMALL), tmp_path / NAMES[kind])).config
    assert (config.amplitude, config.segment_samples, config.segment_frames) == ("power", 50_000, frames)
    assert config.patches == (("square", "vertical") if kind == "hybrid" else (kind,))
    assert config.front_end == ModelConfig().front_end


def test_there_is_no_projector_and_the_head_is_left_aside(tmp_path):
    found = open_release(saved(Original("hybrid", **SMALL), tmp_path / "myna-hybrid.pth"))
    assert found.about["left_aside"] == ["linear_head.weight (50, 64)", "linear_head.bias (50,)"]
    assert found.about["file"] == "myna-hybrid.pth"
    assert not any("projector" in name for name in found.model().state_dict())
    save_model(found.model(), tmp_path / "m", about=found.about)
    again = open_checkpoint(tmp_path / "m")
    assert (again.hash, again.about, again.config) == (found.hash, found.about, found.config)
    assert again.model().state_dict().keys() == found.model().state_dict().keys()


def test_wrapped_prefixed_and_half_precision_files(tmp_path):
    plain = Original("hybrid", **SMALL).state_dict()
    wanted = open_release(saved(Original("hybrid", **SMALL), tmp_path / "a.pth")).hash
    forms = {
        "b.pth": {"state_dict": plain, "epoch": 3, "optimizer": {"state": {}}},
        "c.ckpt": {"model": OrderedDict((f"module.{key}", value) for key, value in plain.items())},
        "d.bin": {f"model.vit.{key}": value for key, value in plain.items()},
    }
    for name, form in forms.items():
        torch.save(form, tmp_path / name)
        found = open_release(tmp_path / name)
        assert found.hash == wanted
    assert open_release(tmp_path / "b.pth").about["left_aside"][-2:] == ["epoch", "optimizer"]
    save_file({f"model.{key}": value.contiguous() for key, value in plain.items()}, tmp_path / "model.safetensors")
    assert open_release(tmp_path / "model.safetensors").hash == wanted
    torch.save({key: value.half() for key, value in plain.items()}, tmp_path / "half.pth")
    half = open_release(tmp_path / "half.pth").model().state_dict()
    assert {value.dtype for value in half.values()} == {torch.float32}


def test_square_and_vertical_are_told_apart_by_name_or_by_the_user(tmp_path):
    """Their tensors have the same names and shapes: guessing would give wrong vectors without a word."""
    path = saved(Original("vertical", **SMALL), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="say which it is with patches="):
        Myna.from_pretrained(path)
    assert Myna.from_pretrained(path, patches="vertical").model.config.patches == ("vertical",)
    database = saved(Original("vertical", **SMALL), tmp_path / "database.pth")
    with pytest.raises(CheckpointError, match="say which it is"):
        open_release(database)
    named = saved(Original("vertical", **SMALL), tmp_path / "my_vertical-2.pth")
    assert open_release(named).config.patches == ("vertical",)
    for kind in ("square", "8x32"):
        with pytest.raises(CheckpointError, match=f"name of .* says vertical patches, and {kind} was asked for"):
            Myna.from_pretrained(named, patches=kind)
    for kind in ("square", "16x16", "8x32"):  # a name that says nothing leaves it to the user
        assert Myna.from_pretrained(path, patches=kind).model.config.patches == (kind,)
    tokenizers = [
        open_release(path, patches=kind).weights()[f"tokenizers.{kind}.linear.weight"] for kind in ("vertical", "8x32")
    ]
    values = [w.unflatten(-1, (frames, -1)).transpose(-1, -2) for w, frames in zip(tokenizers, (2, 32), strict=True)]
    assert torch.equal(values[0].flatten(-2), values[1].flatten(-2)), "as the file has them, band by band"
    with pytest.raises(CheckpointError, match=r"\(256,\) where \(8,\) belongs"):
        open_release(path, patches="2x4")
    with pytest.raises(ConfigError, match="no patch kind 'banana'"):
        open_release(named, patches="banana")


KEYS = [key for key in Original("hybrid", **SMALL).state_dict() if not key.startswith("linear_head")]


@pytest.mark.parametrize("key", KEYS)
def test_every_missing_or_misshapen_tensor_is_refused_by_name(tmp_path, key):
    whole = Original("hybrid", **SMALL).state_dict()
    torch.save({name: value for name, value in whole.items() if name != key}, tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        open_release(tmp_path / "missing.pth")
    wrong = torch.zeros(*whole[key].shape[:-1], whole[key].shape[-1] + 1)
    torch.save({**whole, key: wrong}, tmp_path / "misshapen.pth")
    with pytest.raises(CheckpointError, match=r"where .* belongs") as told:
        open_release(tmp_path / "misshapen.pth")
    assert f"{key} is {tuple(wrong.shape)} where {tuple(whole[key].shape)} belongs." in str(told.value)
    assert str(told.value).count("belongs") == 1


@pytest.mark.parametrize(
    "extra", ["transformer.extra", "cls_token", "transformer.layers.0.0.to_qkv.bias", "pos_embedding_b"]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_extra_tensor_is_refused_by_name(tmp_path, extra, prefix):
    whole = {f"{prefix}{key}": value for key, value in Original("hybrid", **SMALL).state_dict().items()}
    for name in {extra, f"{prefix}{extra}"}:
        torch.save({**whole, name: torch.zeros(3)}, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match=rf"release: {name} does not belong\.$"):
            open_release(tmp_path / "w.pth")


def test_a_missing_layer_is_not_a_shallower_model(tmp_path):
    whole = Original("hybrid", **{**SMALL, "depth": 3}).state_dict()
    torch.save({k: v for k, v in whole.items() if not k.startswith("transformer.layers.1.")}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"layers\.1\.0\.norm\.bias is missing"):
        open_release(tmp_path / "w.pth")


def test_other_files_are_refused_in_a_sentence(tmp_path):
    whole = Original("hybrid", **SMALL).state_dict()
    forms = {
        "list": ([1, 2], "holds a list; a state dict"),
        "empty": ({}, "holds a dict; a state dict"),
        "other": ({"conv.weight": torch.zeros(3)}, "no weights of the original release.*it has conv.weight"),
        "mixed": ({**whole, "epoch": 3}, "epoch is a int"),
        "two": (
            {f"{p}.{k}": v for p in ("a", "b") for k, v in whole.items()},
            r"several models, under 'a\.' and 'b\.'",
        ),
        "bytes": ({k: v.to(torch.int8) for k, v in whole.items()}, "torch.int8 where floats belong"),
        "heads": (
            {k: v[:180] if "qkv" in k else v[:, :60] if "to_out" in k else v for k, v in whole.items()},
            "60 wide",
        ),
        "wrapped twice": ({"state_dict": whole, "model": whole}, "state_dict is a OrderedDict"),
        "ours": (MynaModel(ModelConfig(dim=32, depth=1)).state_dict(), "name its folder"),
    }
    for name, (form, message) in forms.items():
        torch.save(form, tmp_path / f"{name}.pth")
        with pytest.raises(CheckpointError, match=message):
            open_release(tmp_path / f"{name}.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "nothing.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("no weights")
    cut = saved(Original("hybrid", **SMALL), tmp_path / "cut.pth")
    cut.write_bytes(cut.read_bytes()[:5000])
    for name in ("text.pth", "nothing.pth", "text.safetensors", "cut.pth"):
        with pytest.raises(CheckpointError, match=name):
            open_release(tmp_path / name)


class Malice:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "module"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, form):
    target, path = tmp_path / "made", tmp_path / "myna-hybrid.pth"
    evil = {**Original("hybrid", **SMALL).state_dict(), "x": Malice(target)}
    if form == "pickle":
        path.write_bytes(pickle.dumps({"x": Malice(target)}, protocol=2))
    elif form == "module":
        torch.save(Original("hybrid", **SMALL), path)
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=form == "zip")
        assert zipfile.is_zipfile(path) == (form == "zip")
    with pytest.raises(CheckpointError, match="was refused"):
        Myna.from_pretrained(path)
    assert not target.exists()
    if form != "module":  # the file would do it, if it were let
        torch.load(path, weights_only=False) if form != "pickle" else pickle.loads(path.read_bytes())
        assert target.exists()


def run_cli(arguments, capsys) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    output = capsys.readouterr()
    return end.value.code, output.out, " ".join(output.err.split())


def test_convert_writes_a_model_and_says_what_it_left(tmp_path, capsys):
    path, out = saved(Original("vertical", **SMALL), tmp_path / "weights.pth"), tmp_path / "model"
    status, _, err = run_cli(["convert", path, "-o", out], capsys)
    assert (status, out.exists()) == (1, False)
    assert "--patches" in err
    status, _, err = run_cli(["convert", path, "-o", out, "--patches", "vertical"], capsys)
    assert status == 0
    assert "Left aside, as vectors do not need it: linear_head.weight (50, 64)" in err
    assert "holds the vertical model" in err
    assert Myna.from_pretrained(out).hash == open_release(path, patches="vertical").hash
    status, said, _ = run_cli(["info", out], capsys)
    assert said.startswith("model ")
    assert "the original release, weights.pth; no projector" in said


def test_half_a_hybrid_is_neither_converted_nor_pushed(tmp_path, capsys):
    path = saved(Original("hybrid", **SMALL), tmp_path / "myna-hybrid.pth")
    for arguments in (["convert", path, "-o", tmp_path / "m"], ["push", path, "anna/songs"]):
        status, _, err = run_cli([*arguments, "--patches", "vertical"], capsys)
        assert status == 1
        assert "has square and vertical patches, and is kept whole: leave out --patches" in err
    assert not (tmp_path / "m").exists()


def test_info_describes_a_release_file(tmp_path, capsys):
    path = saved(Original("hybrid", **SMALL), tmp_path / "myna-hybrid.pth")
    status, said, _ = run_cli(["info", path], capsys)
    assert status == 0
    for piece in (
        "release ",
        "width 64, depth 2",
        "square 8x6 tokens, vertical 1x48 tokens",
        "linear_head.bias (50,)",
        "power",
    ):
        assert piece in said
    (tmp_path / "bad.pth").write_text("no weights")
    status, said, err = run_cli(["info", tmp_path / "bad.pth"], capsys)
    assert (status, said) == (1, "")
    assert "bad.pth" in err


def test_from_pretrained_says_which_forms_it_takes(tmp_path):
    with pytest.raises(CheckpointError) as told:
        Myna.from_pretrained(tmp_path / "myna-hybird.pth")
    for form in ("run folder", "model folder", ".pth, .bin or .safetensors", "Hub id such as user/name"):
        assert form in str(told.value)


def test_training_goes_on_from_a_release_file_with_a_new_projector(tmp_path, capsys):
    path = saved(Original("hybrid", **SMALL), tmp_path / "myna-hybrid.pth")
    store = make_store(tmp_path / "store", random_mels(10, 130))
    small = ["--dim", "64", "--depth", "2", "--heads", "1", "--mlp-dim", "96", "--batch", "4", "--precision", "fp32"]
    common = ["--recipe", "hybrid", *small, "--clip-seconds", "0", "--steps", "1"]
    arguments = ["pretrain", store.path, *common, "-o", tmp_path / "run", "--init-from", path]
    status, _, err = run_cli(arguments, capsys)
    assert status == 0
    assert "myna-hybrid.pth has no projector: a new one was drawn from seed 0." in err
    trained, given = open_checkpoint(tmp_path / "run").weights(), open_release(path).weights()
    assert trained.keys() - given.keys() == {f"projector.{n}.{what}" for n in (0, 2) for what in ("weight", "bias")}
    for name, value in given.items():  # one step of Adam at 3e-4 away
        assert (trained[name] - value).abs().max() < 4e-4
    arguments = ["pretrain", store.path, *common, "-o", tmp_path / "second", "--init-from", tmp_path / "run"]
    assert run_cli(arguments, capsys)[0] == 0
    for name, begun in (("run", open_release(path)), ("second", open_checkpoint(tmp_path / "run"))):
        facts = run_cli(["info", tmp_path / name, "--json"], capsys)[1]
        wanted = f"model {begun.hash}, which descends from the original release (myna-hybrid.pth)"
        assert json.loads(facts)["initial_weights"] == wanted
