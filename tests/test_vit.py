import math

import numpy as np
import pytest
import torch
from scipy.special import erf

from myna.vit import ATTENTION, ViT, forward_flops, parameter_count


def layer_norm(x, weight, bias):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def reference(weights: dict[str, np.ndarray], x: np.ndarray, *, depth: int, heads: int) -> np.ndarray:
    """SimpleViT's encoder for one sample (token, dim), sample by sample and head by head, in float64."""
    for i in range(depth):
        get = {name.removeprefix(f"blocks.{i}."): value for name, value in weights.items()}
        h = layer_norm(x, get["attention.norm.weight"], get["attention.norm.bias"])
        query, key, value = np.split(h @ get["attention.to_qkv.weight"].T, 3, axis=1)
        outputs = []
        for q, k, v in zip(*(np.split(part, heads, axis=1) for part in (query, key, value)), strict=True):
            scores = q @ k.T / math.sqrt(q.shape[1])
            weight = np.exp(scores - scores.max(1, keepdims=True))
            outputs.append(weight / weight.sum(1, keepdims=True) @ v)
        x = x + np.concatenate(outputs, axis=1) @ get["attention.to_out.weight"].T
        h = layer_norm(x, get["feed_forward.norm.weight"], get["feed_forward.norm.bias"])
        h = h @ get["feed_forward.up.weight"].T + get["feed_forward.up.bias"]
        h = h * 0.5 * (1 + erf(h / math.sqrt(2)))
        x = x + h @ get["feed_forward.down.weight"].T + get["feed_forward.down.bias"]
    return layer_norm(x, weights["norm.weight"], weights["norm.bias"])


@pytest.mark.parametrize("tokens", [1, 5, 48])
def test_encoder_equals_the_formula_in_float64(tokens):
    torch.manual_seed(0)
    vit = ViT(dim=48, depth=3, heads=4, head_dim=16, mlp_dim=96).double()
    for parameter in vit.parameters():  # norms too must matter
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(2, tokens, 48, dtype=torch.float64)
    weights = {name: value.numpy() for name, value in vit.state_dict().items()}
    wanted = np.stack([reference(weights, sample, depth=3, heads=4) for sample in x.numpy()])
    np.testing.assert_allclose(vit(x).detach().numpy(), wanted, rtol=1e-10, atol=1e-12)


def test_vit_s_has_about_22m_parameters():
    vit = ViT(dim=384, depth=12, heads=6, head_dim=64, mlp_dim=1536)
    a_block = 384 * 3 * 384 + 384 * 384 + 2 * 384 * 1536 + 384 + 1536 + 4 * 384
    assert parameter_count(vit) == 12 * a_block + 2 * 384
    assert 21e6 < parameter_count(vit) < 22e6


def test_flops_of_a_training_clip():
    """1.285 GFLOP a clip for the base model: two views of 5 tokens, forward and backward (3x)."""
    encoder = forward_flops(tokens=5, dim=384, depth=12, heads=6, head_dim=64, mlp_dim=1536)
    tokenizer = 2 * 5 * 256 * 384
    assert 2 * 3 * (encoder + tokenizer) == pytest.approx(1.285e9, rel=0.01)


@pytest.mark.parametrize("how", list(ATTENTION))
@pytest.mark.parametrize("tokens", [1, 5, 48])
def test_every_form_of_attention_equals_sdpa_and_so_does_its_gradient(how, tokens):
    torch.manual_seed(0)
    vit = ViT(dim=32, depth=2, heads=2, head_dim=16, mlp_dim=64).double()
    x = torch.randn(3, tokens, 32, dtype=torch.float64)
    found = []
    for form in ("sdpa", how):
        vit.attend_by(form)
        vit.zero_grad()
        vit(x).square().sum().backward()
        found.append([vit(x), *(p.grad.clone() for p in vit.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_samples_do_not_hear_each_other():
    torch.manual_seed(0)
    vit = ViT(dim=32, depth=2, heads=2, head_dim=16, mlp_dim=64)
    x = torch.randn(4, 5, 32)
    torch.testing.assert_close(vit(x)[2:3], vit(x[2:3]))
