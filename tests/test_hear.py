"""The common API of HEAR, checked as its own validator does, and by value."""

import numpy as np
import pytest
import torch
from torch import nn

from myna import hear
from myna.checkpoint import save_model
from myna.embedder import Myna
from myna.errors import CheckpointError, ConfigError
from myna.model import ModelConfig, MynaModel
from sounds import music


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hear") / "model"
    config = ModelConfig(
        patches=("square", "vertical"), dim=16, depth=1, heads=2, head_dim=8, mlp_dim=32, segment_samples=16_000
    )
    save_model(MynaModel(config), path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return hear.load_model(str(folder))


def noise(count, seconds) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.rand(count, int(seconds * 16_000), generator=generator) - 1


def test_the_model_says_what_hear_asks(model):
    assert isinstance(model, nn.Module)
    assert model.sample_rate == 16_000
    assert type(model.scene_embedding_size) is int
    assert model.scene_embedding_size == model.timestamp_embedding_size == 32
    model.to("cpu").train()
    assert not model.listener.model.training


@pytest.mark.parametrize("seconds", [1.07, 1.98, 4.0])
def test_timestamp_embeddings_cover_the_sound_evenly(model, seconds):
    vectors, at_ms = hear.get_timestamp_embeddings(noise(2, seconds), model)
    assert vectors.dtype == torch.float32
    assert vectors.shape == (2, at_ms.shape[1], 32)
    assert at_ms.shape[0] == 2
    steps = np.diff(at_ms.numpy())
    assert steps.max() <= 50.0
    assert np.abs(steps - steps.mean()).max() < 0.01
    assert at_ms.min() == 0
    assert 1000 * seconds - 50 <= at_ms.max() <= 1000 * seconds


def test_a_timestamp_embedding_is_that_of_the_window_around_it(model, folder):
    sound = music(4.0, 16_000)[:, 0]
    vectors, at_ms = hear.get_timestamp_embeddings(torch.from_numpy(sound)[None], model)
    public = Myna.from_pretrained(folder, precision="fp32")
    for place in (40, 7):  # 2 s, and 0.35 s, whose window begins before the sound
        middle = round(at_ms[0, place].item() * 16)
        window = np.pad(sound, 8000)[middle : middle + 16_000]
        wanted = public.embed_windows(window[None])[0]
        np.testing.assert_allclose(vectors[0, place].numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("seconds", [0.3, 2.74])
def test_scene_embeddings_are_those_of_encode(model, folder, seconds):
    sounds = noise(4, seconds)
    found = hear.get_scene_embeddings(sounds, model)
    assert found.dtype == torch.float32
    assert found.shape == (4, model.scene_embedding_size)
    wanted = Myna.from_pretrained(folder, precision="fp32").encode(list(sounds.numpy()), rate_hz=16_000)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


def test_no_model_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="No model was named"):
        hear.load_model()
    with pytest.raises(CheckpointError):
        hear.load_model(str(tmp_path / "nothing"))
