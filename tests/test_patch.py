import math

import pytest
import torch
from einops import rearrange

from myna.errors import ConfigError
from myna.patch import PATCHES, Grid, Patch, patch_of, patchify, positions, unpatchify, whole_frames


@pytest.mark.parametrize(("kind", "rows", "columns"), [("square", 8, 6), ("vertical", 1, 48)])
def test_grid_of_a_segment(kind, rows, columns):
    grid = Grid.of(PATCHES[kind], bands=128, frames=96)
    assert (grid.rows, grid.columns, grid.tokens) == (rows, columns, 48)
    assert (grid.bands, grid.frames) == (128, 96)


def test_segment_arithmetic_of_the_paper():
    frames = 1 + 50_000 // 512
    assert frames == 98
    assert whole_frames(frames, ["square"]) == 96
    assert whole_frames(frames, ["vertical"]) == 98
    assert whole_frames(1 + 100_000 // 512, ["vertical"]) == 196
    assert whole_frames(frames, ["square", "vertical"]) == whole_frames(frames, ["vertical", "square"]) == 96
    assert whole_frames(196, ["32x4", "square"]) == 192
    assert whole_frames(196, ["square", "1x3"]) == 192
    with pytest.raises(ConfigError, match=r"98 frames cannot be cut into patches of 16 and 7 frames: .* 112 frames"):
        whole_frames(98, ["square", "128x7"])


@pytest.mark.parametrize(("bands", "frames"), [(120, 96), (128, 95), (8, 96), (128, 0)])
def test_uneven_crops_are_refused(bands, frames):
    with pytest.raises(ConfigError, match="whole multiples"):
        Grid.of(PATCHES["square"], bands=bands, frames=frames)


@pytest.mark.parametrize("kind", ["square", "vertical"])
def test_patchify_equals_einops(kind):
    mel = torch.randn(3, 96, 128)
    patch = PATCHES[kind]
    image = mel.transpose(1, 2)  # (batch, band, frame), as an image with the lowest band in row 0
    wanted = rearrange(image, "b (h p1) (w p2) -> b (h w) (p2 p1)", p1=patch.bands, p2=patch.frames)
    assert torch.equal(patchify(mel, patch), wanted)


@pytest.mark.parametrize("kind", ["square", "vertical", "32x4", "1x96", "128x1"])
def test_unpatchify_lays_everything_back(kind):
    mel = torch.randn(3, 96, 128)
    grid = Grid.of(patch_of(kind), bands=128, frames=96)
    assert torch.equal(unpatchify(patchify(mel, patch_of(kind)), grid), mel)


def test_places_are_columns_and_rows():
    grid = Grid.of(PATCHES["square"], bands=128, frames=96)
    assert grid.places(torch.tensor([[0, 5, 6, 47]])).tolist() == [[[0, 0], [5, 0], [0, 1], [5, 7]]]


def test_any_size_is_a_patch_kind():
    assert patch_of("square") == Patch(16, 16)
    assert patch_of("vertical") == Patch(128, 2)
    assert patch_of("32x4") == Patch(bands=32, frames=4)
    for wrong in ("round", "0x4", "4x", "4x4x4", "-4x4", "4 x 4", ""):
        with pytest.raises(ConfigError, match=r"no patch kind .*bands x frames such as 32x4"):
            patch_of(wrong)


def test_token_and_value_order_by_hand():
    mel = torch.arange(96)[None, :, None] * 1000.0 + torch.arange(128)
    tokens = patchify(mel, PATCHES["square"])[0]
    # token 7 is the second band row's second column: bands 16 to 31, frames 16 to 31
    assert tokens[7, 0] == 16_000 + 16
    assert tokens[7, 1] == 16_000 + 17  # the next value is the next band of the same frame
    assert tokens[7, 16] == 17_000 + 16  # sixteen on is the next frame


@pytest.mark.parametrize(("kind", "frames"), [("square", 96), ("vertical", 98), ("vertical", 196)])
@pytest.mark.parametrize("dim", [64, 384])
def test_positions_equal_the_formula_in_float64(kind, frames, dim):
    grid = Grid.of(PATCHES[kind], bands=128, frames=frames)
    table = positions(grid, dim)
    quarter = dim // 4
    for token in range(grid.tokens):
        y, x = divmod(token, grid.columns)
        omega = [10_000 ** (-k / (quarter - 1)) for k in range(quarter)]
        wanted = [math.sin(x * w) for w in omega] + [math.cos(x * w) for w in omega]
        wanted += [math.sin(y * w) for w in omega] + [math.cos(y * w) for w in omega]
        torch.testing.assert_close(table[token].double(), torch.tensor(wanted).double(), atol=1e-6, rtol=0)


def test_positions_need_a_multiple_of_four():
    with pytest.raises(ConfigError, match="multiple of 4"):
        positions(Grid.of(PATCHES["square"], bands=128, frames=96), 30)
