import pickle

import numpy as np
import pytest
import torch

from myna.arrays import Arrays
from myna.errors import ConfigError, StoreError
from myna.model import ModelConfig, MynaModel
from myna.patch import patch_of, patchify
from myna.view import Loader, ViewConfig

SMALL = {"dim": 32, "depth": 2, "heads": 2, "head_dim": 16, "mlp_dim": 64}


def images(count: int = 12, frames: int = 8, bands: int = 8) -> list[np.ndarray]:
    return list(np.random.default_rng(0).random((count, frames, bands)).astype(np.float32) * 16)


def test_arrays_come_back_as_they_were():
    given = [*images(3), *images(2, frames=20)]
    store = Arrays(given)
    assert len(store) == 5
    for number, array in enumerate(given):
        np.testing.assert_allclose(store.mel(number), array, rtol=0.002)
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_allclose(again.mel(4), store.mel(4), rtol=0.002)


def test_equal_arrays_have_equal_hashes():
    assert Arrays(images()).hash == Arrays(images()).hash
    other = images()
    other[3] = other[3] + 1
    assert Arrays(other).hash != Arrays(images()).hash


@pytest.mark.parametrize("kind", ["2x2", "4x4", "8x1", "1x8"])
def test_both_views_are_of_the_same_image(kind):
    given = images()
    config = ModelConfig.of_arrays(bands=8, frames=8, patches=(kind,), **SMALL)
    grid = config.grids()[kind]
    assert (grid.bands, grid.frames) == (8, 8)
    loader = Loader(Arrays(given), ViewConfig(clip_seconds=0, mask_ratio=0.5), config.grids(), batch=12, seed=0)
    views = loader(0)[kind]
    for place, clip in enumerate(loader.clip_numbers(0).tolist()):
        patches = patchify(torch.from_numpy(given[clip][None]), patch_of(kind))[0]
        for view in range(2):
            torch.testing.assert_close(
                views.patches[view, place], patches[views.tokens[view, place]], rtol=0.002, atol=0
            )
    assert not torch.equal(views.tokens[0], views.tokens[1])


def test_a_model_takes_any_two_axes():
    config = ModelConfig.of_arrays(bands=12, frames=6, patches=("4x3", "12x1"), **SMALL)
    model = MynaModel(config)
    array = torch.rand(2, 6, 12)
    assert model.encode(array).shape == (2, 64)
    assert model.encode(torch.rand(2, 18, 12)).shape == (2, 64)  # and any length
    for patches in (("12x1", "4x3"), ("4x3", "12x1")):  # what is beyond whole patches of both is left out
        shape = ModelConfig.of_arrays(bands=12, frames=5, patches=patches, **SMALL)
        assert {grid.frames for grid in shape.grids().values()} == {3}
    with pytest.raises(ConfigError, match="5 frames cannot be cut into patches of 2 and 3 frames"):
        ModelConfig.of_arrays(bands=12, frames=5, patches=("12x2", "4x3"), **SMALL).grids()
    with pytest.raises(ConfigError, match="10 bands x 3 frames cannot be cut"):
        ModelConfig.of_arrays(bands=10, frames=5, patches=("10x1", "4x3"), **SMALL).grids()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([np.zeros((8, 8)), np.zeros((8, 7))], "equally many bands"),
        ([np.zeros(8)], "was wanted"),
        ([], "were given"),
        ([np.full((8, 8), -1.0)], "negative"),
        ([np.full((8, 8), np.nan)], "non-finite"),
    ],
)
def test_arrays_that_cannot_be_kept_are_refused(arrays, message):
    with pytest.raises(StoreError, match=message):
        Arrays(arrays)
