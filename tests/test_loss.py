import math

import numpy as np
import pytest
import torch

from myna.loss import LossConfig, contrastive


def brute_force(a: np.ndarray, b: np.ndarray, *, form: str, temperature: float) -> tuple[float, float]:
    """Both losses, pair by pair in float64, from the equations: Myna's (1) as printed, and SimCLR's (1)."""

    def similarity(u, v):
        return u @ v / math.sqrt(u @ u) / math.sqrt(v @ v) / temperature

    losses, found = [], 0
    for anchors, others in ((a, b), (b, a)):
        for i in range(len(a)):
            positive = similarity(anchors[i], others[i])
            negatives = [similarity(anchors[i], x[j]) for x in (anchors, others) for j in range(len(a)) if j != i]
            terms = [*negatives, positive] if form == "ntxent" else negatives
            losses.append(-positive + math.log(sum(math.exp(s) for s in terms)))
            found += positive > max(negatives)
    return sum(losses) / len(losses), found / len(losses)


def views(batch=9, dim=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    return a, a + 1.2 * torch.randn(batch, dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("form", ["paper", "ntxent"])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("chunk", [None, 1, 5, 18])
def test_loss_and_retrieval_equal_brute_force(form, temperature, chunk):
    a, b = views()
    wanted, found = brute_force(a.numpy(), b.numpy(), form=form, temperature=temperature)
    loss, top1 = contrastive(a.float(), b.float(), form=form, temperature=temperature, chunk=chunk)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert top1.item() == pytest.approx(found)
    assert 0 < found < 1  # the example must be neither trivial nor hopeless


@pytest.mark.parametrize("form", ["paper", "ntxent"])
@pytest.mark.parametrize("chunk", [None, 4])
def test_gradient_equals_autograd_through_the_full_square_in_float64(form, chunk):
    a, b = (x.requires_grad_() for x in views())
    z = torch.nn.functional.normalize(torch.cat([a, b]), dim=1)
    s = z @ z.T / 0.1
    n = len(a)
    own = torch.eye(2 * n, dtype=torch.bool)
    positive = own.roll(n, 1)
    kept = s.masked_fill(own | positive if form == "paper" else own, -torch.inf)
    (kept.logsumexp(1) - s[positive]).mean().backward()

    a32, b32 = (x.detach().float().requires_grad_() for x in (a, b))
    loss, _ = contrastive(a32, b32, form=form, temperature=0.1, chunk=chunk)
    (2.5 * loss).backward()
    for ours, theirs in ((a32, a), (b32, b)):
        torch.testing.assert_close(ours.grad.double(), 2.5 * theirs.grad, rtol=1e-4, atol=1e-6)


def test_perfect_and_useless_views():
    same = torch.eye(6)
    loss, top1 = contrastive(same, same, temperature=0.1)
    # every negative is at right angles: log of ten exp(0), less 1 / 0.1
    assert loss.item() == pytest.approx(math.log(10) - 10, abs=1e-4)
    assert top1.item() == 1.0
    _, top1 = contrastive(same, same.roll(1, 0), temperature=0.1)
    assert top1.item() == 0.0


def test_a_collapsed_model_retrieves_nothing():
    loss, top1 = contrastive(torch.ones(8, 4), torch.ones(8, 4), temperature=0.1)
    assert top1.item() == 0.0
    assert loss.item() == pytest.approx(math.log(14), abs=1e-4)


def test_sharp_temperatures_do_not_overflow():
    a, b = views()
    loss, _ = contrastive(a.float(), b.float(), temperature=0.001)
    assert math.isfinite(loss.item())


def test_length_of_a_projection_does_not_matter():
    a, b = (x.float() for x in views())
    assert contrastive(a, b)[0].item() == pytest.approx(contrastive(a * 7, b * 0.01)[0].item(), rel=1e-5)


def test_bf16_comes_in_and_float32_goes_out():
    a, b = (x.bfloat16() for x in views())
    loss, _ = contrastive(a, b)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(contrastive(a.float(), b.float())[0].item(), rel=1e-6)


def test_unequal_batches_are_refused():
    with pytest.raises(Exception, match=r"shape|batch"):
        contrastive(torch.randn(4, 8), torch.randn(5, 8))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="greater than 0"):
        LossConfig(temperature=temperature)
