"""The encoder keeps MARBLE's interface: with a stand-in for MARBLE's base class, and without."""

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import myna.marble
from myna.checkpoint import save_model
from myna.embedder import Myna
from myna.errors import ConfigError
from myna.model import ModelConfig, MynaModel
from sounds import music

SMALL = {"dim": 16, "depth": 1, "heads": 2, "head_dim": 8, "mlp_dim": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("marble") / "model"
    save_model(MynaModel(ModelConfig(patches=("square", "vertical"), **SMALL)), path)
    return path


def sounds(seconds=10.0, count=2) -> torch.Tensor:
    return torch.from_numpy(np.stack([music(seconds, 16_000, seed=s)[:, 0] for s in range(count)]))


def test_found_by_its_class_path_with_the_attributes_that_marble_reads():
    module, _, name = "myna.marble.MynaEncoder".rpartition(".")
    encoder = getattr(importlib.import_module(module), name)
    assert issubclass(encoder, nn.Module)
    assert (encoder.SAMPLING_RATE, encoder.NUM_FEATURES, encoder.N_TRANSFORMER_LAYERS) == (16_000, 384, 12)
    assert pytest.approx(0.32) == encoder.TOKEN_RATE


def test_waveforms_of_either_shape_become_a_list_of_hidden_states(folder):
    encoder = myna.marble.MynaEncoder(str(folder))
    waveform = sounds()
    states = encoder(waveform, output_hidden_states=True)
    assert isinstance(states, list)
    assert [state.shape for state in states] == [(2, 3, 32)]
    assert states[0].dtype == torch.float32
    assert not states[0].requires_grad
    torch.testing.assert_close(encoder(waveform[:, None])[0], states[0])
    stereo = torch.stack([waveform * 1.5, waveform * 0.5], dim=1)
    torch.testing.assert_close(encoder(stereo)[0], states[0], rtol=1e-3, atol=1e-4)
    # and what MARBLE does with them: choose layers, stack, mean over tokens
    pooled = torch.stack([states[0]], dim=1).mean(dim=2, keepdim=True)
    assert pooled.shape == (2, 1, 1, encoder.NUM_FEATURES)


def test_the_states_are_the_vectors_of_the_windows(folder):
    encoder, public = myna.marble.MynaEncoder(str(folder)), Myna.from_pretrained(folder, precision="fp32")
    waveform = sounds(8.0, count=1)
    found = public.encode(waveform[0].numpy(), rate_hz=16_000, windows=True)
    np.testing.assert_allclose(encoder(waveform)[0][0].numpy(), found.embeddings, atol=1e-5)


def test_a_half_of_a_hybrid_and_another_window(folder):
    encoder = myna.marble.MynaEncoder(str(folder), patches="vertical", window_samples=100_000, expected_features=16)
    assert encoder.NUM_FEATURES == 16
    assert pytest.approx(0.16) == encoder.TOKEN_RATE
    assert encoder(sounds(13.0))[0].shape == (2, 2, 16)


def test_a_framework_that_says_train_changes_nothing(folder):
    encoder = myna.marble.MynaEncoder(str(folder))
    before = encoder(sounds())[0]
    encoder.train()
    assert not any(module.training for module in encoder.listener.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    torch.testing.assert_close(encoder(sounds())[0], before, rtol=0, atol=0)


def test_where_marble_is_installed_the_encoder_is_one_of_its_own(folder, monkeypatch):
    class BaseEncoder(nn.Module):
        def forward(self, *args, **kwargs):
            raise NotImplementedError

    names = ("marble", "marble.core", "marble.core.base_encoder")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["marble.core.base_encoder"].BaseEncoder = BaseEncoder
    try:
        module = importlib.reload(myna.marble)
        assert issubclass(module.MynaEncoder, BaseEncoder)
        assert module.MynaEncoder(str(folder))(sounds())[0].shape == (2, 3, 32)
    finally:
        monkeypatch.undo()
        importlib.reload(myna.marble)
    assert not issubclass(myna.marble.MynaEncoder, BaseEncoder)


def test_the_configuration_in_the_documentation_is_one_that_marble_can_build(folder):
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    told = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])["model"]["init_args"]
    module, _, name = told["encoder"]["class_path"].rpartition(".")
    options = told["encoder"]["init_args"] | {"pre_trained_folder": str(folder), "expected_features": 32}
    encoder = getattr(importlib.import_module(module), name)(**options)
    assert told["sample_rate"] == encoder.SAMPLING_RATE
    states = encoder(sounds())
    assert [states[i] for i in told["emb_transforms"][0]["init_args"]["layers"]] == states
    assert told["decoders"][0]["init_args"]["in_dim"] == told["encoder"]["init_args"]["expected_features"]


def test_what_does_not_fit_is_one_sentence(folder):
    with pytest.raises(ConfigError, match="only `freeze`"):
        myna.marble.MynaEncoder(str(folder), train_mode="lora")
    with pytest.raises(ConfigError, match="32 features; 384 were expected"):
        myna.marble.MynaEncoder(str(folder), expected_features=384)
    with pytest.raises(ConfigError, match="shape"):
        myna.marble.MynaEncoder(str(folder))(sounds()[0])
