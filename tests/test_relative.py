"""Relative positions: equal to formulas written out in float64, the same wherever the music begins."""

import itertools
import math

import numpy as np
import pytest
import torch

from myna import recipe, relative
from myna.checkpoint import checkpoints, open_checkpoint, save_model
from myna.errors import ConfigError
from myna.model import ModelConfig, MynaModel
from myna.patch import PATCHES, Grid, patchify
from myna.relative import Alibi, Rope
from myna.train import Trainer
from myna.vit import ATTENTION, ViT
from stores import make_store, random_mels

SMALL = {"dim": 32, "depth": 2, "heads": 2, "head_dim": 16, "mlp_dim": 64}
KINDS = ["rope", "alibi"]


def vit(positions: str, **changes) -> ViT:
    torch.manual_seed(0)
    return ViT(**{**SMALL, **changes}, positions=positions).double()


def scattered(batch: int, tokens: int, *, columns: int = 40, rows: int = 8) -> torch.Tensor:
    """Return other places for each sample, none twice: float64 (batch, token, 2)."""
    grid, chance = Grid(PATCHES["square"], rows, columns), torch.Generator().manual_seed(1)
    chosen = torch.stack([torch.randperm(grid.tokens, generator=chance)[:tokens] for _ in range(batch)])
    return grid.places(chosen).double()


def attention_by_hand(module, x: np.ndarray, score) -> np.ndarray:
    """One sample's attention, pair by pair; `score(head, i, j, query, key)` is what two tokens have in common."""
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    h = (x - mean) / np.sqrt(variance + 1e-5) * weights["norm.weight"] + weights["norm.bias"]
    query, key, value = np.split(h @ weights["to_qkv.weight"].T, 3, axis=1)
    parts = []
    for head, (q, k, v) in enumerate(
        zip(*(np.split(p, module.heads, axis=1) for p in (query, key, value)), strict=True)
    ):
        s = np.array([[score(head, i, j, q[i], k[j]) for j in range(len(x))] for i in range(len(x))])
        s = np.exp(s - s.max(1, keepdims=True))
        parts.append(s / s.sum(1, keepdims=True) @ v)
    return np.concatenate(parts, axis=1) @ weights["to_out.weight"].T


def test_alibi_equals_the_formula_in_float64():
    heads, where = 3, scattered(1, 7)
    encoder = vit("alibi", heads=heads)
    attention, x = encoder.blocks[0].attention, torch.randn(1, 7, 32, dtype=torch.float64)

    def score(head, i, j, q, k):
        apart = math.dist(where[0, i].tolist(), where[0, j].tolist())
        return q @ k / 4 - 2 ** (-8 * (head + 1) / heads) * apart

    wanted = attention_by_hand(attention, x[0].numpy(), score)
    found = attention(x, Alibi(heads=heads, head_dim=16).double()(where))[0]
    # slopes are kept in float32
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-6, atol=1e-7)


def test_rope_equals_the_formula_in_float64():
    """A pair of numbers is a complex one; a query and a key meet as the real part of q * conj(k)."""
    where = scattered(1, 7)
    attention, x = vit("rope").blocks[0].attention, torch.randn(1, 7, 32, dtype=torch.float64)

    def score(_, i, j, q, k):
        total = 0.0
        for pair in range(8):
            axis, number = divmod(pair, 4)  # columns first, then rows
            angle = float(where[0, i, axis] - where[0, j, axis]) * 10_000 ** (-number / 4)
            a, b = complex(q[2 * pair], q[2 * pair + 1]), complex(k[2 * pair], k[2 * pair + 1])
            total += (a * b.conjugate() * complex(math.cos(angle), math.sin(angle))).real
        return total / 4

    wanted = attention_by_hand(attention, x[0].numpy(), score)
    found = attention(x, Rope(heads=2, head_dim=16).double()(where))[0]
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("positions", KINDS)
def test_only_offsets_matter(positions):
    encoder, where = vit(positions), scattered(3, 9)
    x = torch.randn(3, 9, 32, dtype=torch.float64)
    still = encoder(x, where)
    for shift in ([5, 0], [0, 3], [1000, -2]):
        torch.testing.assert_close(encoder(x, where + torch.tensor(shift)), still, rtol=1e-9, atol=1e-9)
    stretched = encoder(x, where * torch.tensor([2, 1]))
    assert (stretched - still).abs().max() > 1e-3


@pytest.mark.parametrize("positions", KINDS)
@pytest.mark.parametrize("how", list(ATTENTION))
def test_every_form_of_attention_is_the_same(positions, how):
    encoder, where = vit(positions), scattered(3, 9)
    x, found = torch.randn(3, 9, 32, dtype=torch.float64), []
    for form in ("sdpa", how):
        encoder.attend_by(form)
        encoder.zero_grad()
        out = encoder(x, where)
        out.square().sum().backward()
        found.append([out, *(p.grad.clone() for p in encoder.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_a_bias_in_parts_is_the_whole_bias(monkeypatch):
    encoder, where = vit("alibi"), scattered(2, 50)
    x = torch.randn(2, 50, 32, dtype=torch.float64)
    whole = encoder(x, where)
    for numbers in (2 * 2 * 50 * 7, 1):  # seven queries at a time, and one
        monkeypatch.setattr(relative, "_BIAS_NUMBERS", numbers)
        torch.testing.assert_close(encoder(x, where), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("positions", KINDS)
@pytest.mark.parametrize(("kind", "frames"), [("square", 96), ("vertical", 98), ("square", 320), ("vertical", 400)])
def test_visible_tokens_are_told_by_their_numbers(positions, kind, frames):
    """All tokens in any order are the crop in one piece; a few are a crop of only those, wherever it begins."""
    model = MynaModel(ModelConfig(patches=(kind,), positions=positions, **SMALL)).double()
    mel = torch.rand(2, frames, 128, dtype=torch.float64)
    patches = patchify(mel, PATCHES[kind])
    grid = Grid.of(PATCHES[kind], bands=128, frames=frames)
    order = torch.stack([torch.randperm(grid.tokens) for _ in range(2)])
    shuffled = patches.gather(1, order[..., None].expand_as(patches))
    whole = model.encode(mel)
    torch.testing.assert_close(model.embed(kind, shuffled, order, grid=grid), whole, rtol=1e-9, atol=1e-9)
    middle = torch.arange(grid.tokens).view(grid.rows, grid.columns)[:, 1:4].reshape(1, -1).expand(2, -1)
    part = patches.gather(1, middle[..., None].expand(-1, -1, 256))
    wide = PATCHES[kind].frames
    alone = model.encode(mel[:, wide : 4 * wide])
    torch.testing.assert_close(model.embed(kind, part, middle, grid=grid), alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("positions", KINDS)
def test_a_hybrids_kinds_go_through_side_by_side(positions):
    model = MynaModel(ModelConfig(patches=("square", "vertical"), positions=positions, **SMALL))
    patches = {kind: torch.rand(4, 5, 256) for kind in model.config.patches}
    tokens = {kind: torch.stack([torch.randperm(48)[:5] for _ in range(4)]) for kind in patches}
    together = model(patches, tokens)
    for kind in patches:
        alone = model({kind: patches[kind]}, {kind: tokens[kind]})[kind]
        torch.testing.assert_close(together[kind], alone)


def test_positions_are_a_setting_kept_with_the_weights(tmp_path):
    mel, vectors = torch.rand(1, 96, 128), {}
    for positions in ("sincos", *KINDS):
        model = MynaModel(ModelConfig(positions=positions, **SMALL))
        save_model(model, tmp_path / positions)
        found = open_checkpoint(tmp_path / positions).model()
        assert found.config.positions == positions
        vectors[positions] = found.encode(mel)
        torch.testing.assert_close(vectors[positions], model.encode(mel))
    assert all((vectors[a] - vectors[b]).abs().max() > 1e-4 for a, b in itertools.combinations(vectors, 2))


@pytest.mark.parametrize("positions", KINDS)
def test_a_run_learns_and_resumes_bit_for_bit(positions, tmp_path):
    store = make_store(tmp_path / "store", random_mels(30, 130))

    def settings(steps):
        small = {**SMALL, "depth": 1, "batch": 8, "precision": "fp32", "learning_rate": 3e-3, "log_every": 2}
        return recipe.override(recipe.get("tiny"), {**small, "positions": positions, "steps": steps})

    whole = Trainer(store, tmp_path / "whole", settings(60))
    rows = []
    whole.train(on_log=rows.append)
    Trainer(store, tmp_path / "parts", settings(30)).train()
    Trainer(store, tmp_path / "parts", settings(60), resume=True).train()
    ours, theirs = (checkpoints(tmp_path / name)[-1] / "model.safetensors" for name in ("whole", "parts"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert rows[-1]["top1"] > 0.5  # chance is 1 in 15


def test_bf16_stays_close():
    for positions in KINDS:
        torch.manual_seed(0)
        encoder = ViT(**SMALL, positions=positions)
        x, where = torch.randn(2, 40, 32), scattered(2, 40).float()
        with torch.autocast("cpu", torch.bfloat16):
            low = encoder(x, where)
        torch.testing.assert_close(low.float(), encoder(x, where), rtol=0.05, atol=0.1)


def test_odd_heads_are_refused():
    with pytest.raises(ConfigError, match="multiple of 4 numbers, not 6"):
        ViT(**{**SMALL, "head_dim": 6}, positions="rope")
