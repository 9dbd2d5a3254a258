import numpy as np
import pytest
import torch
from pydantic import ValidationError

from myna.errors import ConfigError
from myna.model import ModelConfig, MynaModel, scale
from myna.patch import PATCHES, patchify, positions
from myna.vit import parameter_count

SMALL = {"dim": 32, "depth": 2, "heads": 2, "head_dim": 16, "mlp_dim": 64}


def small(*patches, **more) -> MynaModel:
    return MynaModel(ModelConfig(patches=patches, **SMALL, **more))


def test_vit_s_base_is_the_papers_size():
    model = MynaModel(ModelConfig())
    assert 21e6 < parameter_count(model) < 23e6
    assert model.config.segment_frames == 96


@pytest.mark.parametrize(
    ("patches", "frames"),
    [
        (("square",), 96),
        (("vertical",), 98),
        (("square", "vertical"), 96),
        (("vertical", "square"), 96),
        (("32x4", "128x7"), 84),
    ],
)
def test_segment_frames(patches, frames):
    assert ModelConfig(patches=patches).segment_frames == frames


def test_masked_tokens_equal_a_formula_in_float64():
    """Tokens are norm, linear, norm of the patch plus the position of its place in the whole grid."""
    model = small("square").double()
    mel = torch.rand(2, 96, 128, dtype=torch.float64) * 100
    tokens = torch.tensor([[40, 3, 17], [0, 1, 47]])
    patches = torch.stack([patchify(mel, PATCHES["square"])[i, tokens[i]] for i in range(2)])

    w = {name: value.numpy() for name, value in model.tokenizers["square"].state_dict().items()}

    def norm(x, which):
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return y * w[f"{which}.weight"] + w[f"{which}.bias"]

    x = norm(norm(patches.numpy(), "norm_in") @ w["linear.weight"].T + w["linear.bias"], "norm_out")
    x = x + positions(model.config.grids()["square"], 32).double().numpy()[tokens.numpy()]
    wanted = model.encoder(torch.from_numpy(x)).mean(1)
    torch.testing.assert_close(model.embed("square", patches, tokens), wanted)


def test_order_of_visible_tokens_does_not_matter():
    model = small("square")
    patches, tokens = torch.rand(1, 5, 256), torch.tensor([[3, 9, 40, 11, 0]])
    turn = [4, 2, 0, 1, 3]
    torch.testing.assert_close(
        model.embed("square", patches, tokens), model.embed("square", patches[:, turn], tokens[:, turn])
    )


def test_place_of_a_patch_matters():
    model = small("vertical")
    patches = torch.rand(1, 2, 256)
    one, other = torch.tensor([[0, 1]]), torch.tensor([[0, 30]])
    assert (model.embed("vertical", patches, one) - model.embed("vertical", patches, other)).abs().max() > 1e-4


def test_hybrid_is_one_encoder_with_two_tokenizers():
    model = small("square", "vertical")
    mel = torch.rand(3, 96, 128)
    both = model.encode(mel)
    assert both.shape == (3, 64)
    torch.testing.assert_close(both[:, :32], model.encode(mel, ("square",)))
    torch.testing.assert_close(both[:, 32:], model.encode(mel, ("vertical",)))
    names = {name.split(".")[0] for name in model.state_dict()}
    assert names == {"tokenizers", "encoder", "projector"}
    assert parameter_count(model) - parameter_count(small("square")) == parameter_count(model.tokenizers["vertical"])


def test_encode_drops_frames_beyond_whole_patches():
    model = small("square", "vertical")
    mel = torch.rand(2, 98, 128)
    torch.testing.assert_close(model.encode(mel), model.encode(mel[:, :96]))


@pytest.mark.parametrize("frames", [196, 32, 960])
def test_positions_are_a_function_of_the_grid(frames):
    model = small("vertical")
    mel = torch.rand(1, frames, 128)
    tokens = torch.arange(frames // 2)[None]
    table = positions(model.config.grids(512 * (frames - 1))["vertical"], 32)
    x = model.tokenizers["vertical"](patchify(mel, PATCHES["vertical"])) + table[tokens]
    torch.testing.assert_close(model.encode(mel), model.encoder(x).mean(1))


def test_amplitudes():
    power = torch.tensor([0.0, 1e-12, 1.0, 100.0])
    assert torch.equal(scale(power, "power"), power)
    torch.testing.assert_close(scale(power, "log1p"), torch.log(1 + power))
    torch.testing.assert_close(scale(power, "decibel"), torch.tensor([-100.0, -100.0, 0.0, 20.0]))


def test_weights_are_a_function_of_the_seed():
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    one = MynaModel(ModelConfig(**SMALL), seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(321)
    again, other = (MynaModel(ModelConfig(**SMALL), seed=seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["projector.0.weight"], other["projector.0.weight"])


def test_impossible_shapes_are_refused():
    with pytest.raises(ValidationError, match="multiple of 4"):
        ModelConfig(dim=30)
    with pytest.raises(ValidationError, match="named once"):
        ModelConfig(patches=("square", "square"))
    with pytest.raises(ValidationError, match="extra"):
        ModelConfig(width=3)
    with pytest.raises(ConfigError, match="whole multiples"):
        MynaModel(ModelConfig(segment_samples=2048))


def test_flops_count_every_product():
    config = ModelConfig(patches=("square", "vertical"))
    # 2 x 5 tokens forward, three times for forward and backward: 1.285 GFLOP a clip and patch kind
    assert 6 * config.flops("square", tokens=5) == pytest.approx(1.285e9, rel=0.01)
    assert config.flops("vertical", tokens=48) == pytest.approx(2.09e9, rel=0.01)


def test_without_a_projector_the_vectors_themselves_are_compared():
    model = small("square", "vertical", projector_dim=0)
    assert not any("projector" in name for name in model.state_dict())
    patches = {kind: torch.rand(3, 5, 256) for kind in model.config.patches}
    tokens = {kind: torch.arange(5).repeat(3, 1) for kind in patches}
    found = model(patches, tokens)
    for kind in patches:
        torch.testing.assert_close(found[kind], model.embed(kind, patches[kind], tokens[kind]))
    with_one = ModelConfig(**SMALL)
    without = ModelConfig(**SMALL, projector_dim=0)
    assert with_one.flops("square", tokens=5) - without.flops("square", tokens=5) == 2 * (32 * 384 + 384 * 128)
