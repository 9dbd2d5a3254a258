"""The ONNX file, as the command writes it, against the model: in a process without the tests' shape checks."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from myna.checkpoint import model_hash, save_model
from myna.cli import main
from myna.errors import CheckpointError, ConfigError
from myna.export import _difference, export, log1p
from myna.mel import FrontEnd
from myna.model import ModelConfig, MynaModel

SMALL = {"dim": 32, "depth": 2, "heads": 2, "head_dim": 16, "mlp_dim": 64}


@pytest.fixture(scope="module")
def model():
    return MynaModel(ModelConfig(patches=("square", "vertical"), amplitude="log1p", **SMALL), seed=3)


CASES = {
    "whole.onnx": ([], ("square", "vertical"), 96),
    "half.onnx": (["--patches", "vertical", "--window-samples", "100000"], ("vertical",), 192),
}


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """Both files, written by the command in one process."""
    folder = tmp_path_factory.mktemp("onnx")
    save_model(model, folder / "m")
    commands = [["export", str(folder / "m"), "-o", str(folder / name), *more] for name, (more, _, _) in CASES.items()]
    code = f"from myna.cli import app; print([app(c, exit_on_error=False) for c in {commands}])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "[0, 0]\n"), ran.stderr
    told = ran.stderr.splitlines()
    assert [line.split(" is written; ")[0] for line in told] == [str(folder / name) for name in CASES]
    return folder


@pytest.mark.parametrize("name", list(CASES))
def test_onnxruntime_computes_what_the_model_does(model, files, name):
    _, kinds, frames = CASES[name]
    session = onnxruntime.InferenceSession(str(files / name), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 7):
        mel = torch.rand(batch, frames, 128) * 100
        (found,) = session.run(["embedding"], {"mel": mel.numpy()})
        np.testing.assert_allclose(found, model.encode(mel, kinds).detach().numpy(), atol=1e-5)
    facts = {entry.key: entry.value for entry in onnx.load(files / name).metadata_props}
    assert facts["patches"] == "+".join(kinds)
    assert facts["hash"] == model_hash(model)
    assert FrontEnd(**json.loads(facts["front_end"])) == model.config.front_end
    assert json.loads(facts["model"])["amplitude"] == "log1p"
    assert sorted(path.name for path in files.iterdir()) == ["half.onnx", "m", "whole.onnx"]


def test_a_file_that_computes_something_else_is_refused(model, files):
    kinds = model.config.patches
    assert _difference(model, kinds, files / "whole.onnx", (2, 96, 128)) < 1e-5
    with pytest.raises(CheckpointError, match=r"differs from PyTorch by .* no file was written"):
        _difference(MynaModel(model.config, seed=4), kinds, files / "whole.onnx", (2, 96, 128))


def test_log1p_keeps_quiet_music():
    x = torch.cat([torch.zeros(1), torch.logspace(-30, 6, 1000)])
    wanted = x.double().log1p()
    assert ((log1p(x) - wanted).abs() <= 3e-7 * wanted).all()
    assert ((torch.log(1 + x) - wanted).abs() > 0.1 * wanted).any()


def test_bad_input_writes_nothing(model, tmp_path, monkeypatch, capsys):
    square = MynaModel(ModelConfig(**SMALL))
    with pytest.raises(ConfigError, match="has square patches, not vertical"):
        export(square, tmp_path / "a.onnx", patches="vertical")
    with pytest.raises(ConfigError, match="whole multiples"):
        export(square, tmp_path / "a.onnx", window_samples=2000)
    with pytest.raises(ConfigError, match="is a folder: name the file"):
        export(square, ".")
    save_model(model, tmp_path / "m")
    monkeypatch.setitem(sys.modules, "myna.export", None)
    with pytest.raises(SystemExit) as end:
        main(["export", str(tmp_path / "m"), "-o", str(tmp_path / "a.onnx")])
    assert end.value.code == 1
    assert "pip install 'myna-music[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()
