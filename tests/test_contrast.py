import math

import numpy as np
import pytest
import torch

from myna.contrast import contrastive, sogclr

# Mild temperatures that are one number form half of the square, the others whole rows.
HALVES = (0.05, 0.1, 0.5, 1.0)
ROWS = (0.03, torch.tensor(0.1), torch.tensor(0.5))


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
@pytest.mark.parametrize("temperature", [*HALVES, *ROWS])
@pytest.mark.parametrize("chunk", [None, 1, 5, 13, 18])
def test_loss_and_retrieval_equal_brute_force(form, temperature, chunk):
    a, b = views()
    wanted, found = brute_force(a.numpy(), b.numpy(), form=form, temperature=float(temperature))
    loss, top1 = contrastive(a.float(), b.float(), form=form, temperature=temperature, chunk=chunk)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    assert top1.item() == pytest.approx(found)
    assert 0 < found < 1  # the example must be neither trivial nor hopeless


@pytest.mark.parametrize("form", ["paper", "ntxent"])
@pytest.mark.parametrize("temperature", [*HALVES, *ROWS])
@pytest.mark.parametrize("chunk", [None, 4, 13])
def test_gradient_equals_autograd_through_the_full_square_in_float64(form, temperature, chunk):
    a, b = (x.requires_grad_() for x in views())
    z = torch.nn.functional.normalize(torch.cat([a, b]), dim=1)
    s = z @ z.T / float(temperature)
    n = len(a)
    own = torch.eye(2 * n, dtype=torch.bool)
    positive = own.roll(n, 1)
    kept = s.masked_fill(own | positive if form == "paper" else own, -torch.inf)
    (kept.logsumexp(1) - s[positive]).mean().backward()

    a32, b32 = (x.detach().float().requires_grad_() for x in (a, b))
    loss, _ = contrastive(a32, b32, form=form, temperature=temperature, chunk=chunk)
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


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_sogclr_at_gamma_1_has_2_tau_times_the_papers_gradient(temperature):
    gradients, losses = [], []
    for log_u in (None, torch.full((9,), 3.0)):
        a, b = (x.float().requires_grad_() for x in views())
        if log_u is None:
            loss, _ = contrastive(a, b, temperature=temperature)
        else:
            loss = sogclr(a, b, log_u=log_u, gamma=1.0, temperature=temperature).loss
        loss.backward()
        gradients.append(torch.cat([a.grad, b.grad]))
        losses.append(loss.item())
    torch.testing.assert_close(gradients[1], 2 * temperature * gradients[0], rtol=1e-4, atol=1e-7)
    assert losses[1] == pytest.approx(2 * temperature * (losses[0] - math.log(16)), rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 18])
def test_sogclr_in_chunks_is_the_same(chunk):
    log_u = torch.linspace(-3, 9, 9).where(torch.arange(9) != 4, torch.tensor(-torch.inf))
    temperature = torch.linspace(0.05, 0.7, 9)
    found = []
    for size in (None, chunk):
        a, b = (x.float().requires_grad_() for x in views())
        one = sogclr(a, b, log_u=log_u, temperature=temperature, chunk=size)
        one.loss.backward()
        found.append((one.loss.detach(), one.top1, one.log_u, one.weighted, a.grad, b.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [None, 1, 5, 13])
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_sogclr_is_the_same_with_one_temperature_and_with_equal_ones(chunk, gamma):
    """One forms half of the square, the other whole rows."""
    log_u = torch.linspace(-3, 9, 9).where(torch.arange(9) != 4, torch.tensor(-torch.inf))
    found = []
    for temperature in (0.1, torch.full((9,), 0.1)):
        a, b = (x.float().requires_grad_() for x in views())
        one = sogclr(a, b, log_u=log_u, gamma=gamma, temperature=temperature, chunk=chunk)
        one.loss.backward()
        found.append((one.loss.detach(), one.top1, one.log_u, a.grad, b.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_sogclr_of_one_clip_is_no_error():
    """A rank's share of a small batch, when a run's speed is measured, can be one clip."""
    found = sogclr(torch.ones(1, 4), torch.ones(1, 4), log_u=torch.tensor([2.0]))
    assert found.log_u.shape == (2, 1)
