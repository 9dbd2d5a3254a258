import math

import pytest
import torch

from myna.contrast import contrastive
from myna.loss import ContrastiveLoss, LossConfig
from test_contrast import views


class Published:
    """SogCLR and iSogCLR (arXiv 2202.12387, 2305.11965) in float64, anchor by anchor, from their update rules."""

    def __init__(self, clips: int, *, gamma: float, temperature: float, rho: float = 0.3, rate: float = 0.01):
        self.gamma, self.rho, self.rate = gamma, rho, rate
        self.u = torch.zeros(clips, dtype=torch.float64)
        self.seen = [False] * clips
        self.temperature = torch.full((clips,), temperature, dtype=torch.float64)
        self.momentum = torch.zeros(clips, dtype=torch.float64)

    def step(self, a, b, clips, *, individual: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (objective as estimated, surrogate whose gradient is SogCLR's), and remember."""
        z = [torch.nn.functional.normalize(x, dim=1) for x in (a, b)]
        objective, surrogate, moved = 0.0, 0.0, []
        for i, clip in enumerate(clips.tolist()):
            tau, averages, slopes = self.temperature[clip].item(), [], []
            for anchors, others in (z, z[::-1]):
                cosines = torch.stack([anchors[i] @ x[j] for x in z for j in range(len(a)) if j != i])
                positive = anchors[i] @ others[i]
                g = (cosines / tau).exp().mean().detach()
                u = (1 - self.gamma) * self.u[clip] + self.gamma * g if self.seen[clip] else g
                weights = ((cosines / tau).exp() / u).detach()
                surrogate = surrogate + (weights * cosines).mean() - positive
                objective = objective + tau * (u.log() + (self.rho if individual else 0.0)) - positive.detach()
                averages.append(u)
                slopes.append(u.log() + self.rho - (weights * cosines.detach() / tau).mean())
            moved.append((clip, sum(averages) / 2, sum(slopes) / 2))
        for clip, u, slope in moved:
            self.u[clip], self.seen[clip] = u, True
            if individual:
                self.momentum[clip] = 0.1 * self.momentum[clip] + 0.9 * slope
                step = self.temperature[clip] - self.rate * self.momentum[clip]
                self.temperature[clip] = step.clamp(0.05, 0.7)
        return objective / len(a), surrogate / len(a)


@pytest.mark.parametrize("individual", [False, True])
@pytest.mark.parametrize(
    ("gamma", "temperature", "rate"), [(0.9, 0.1, 0.01), (0.5, 0.4, 0.1), (1.0, 0.2, 0.02), (0.8, 0.1, 1.0)]
)
def test_sogclr_follows_its_published_updates_over_several_steps(gamma, temperature, rate, individual):
    config = LossConfig(
        loss="sogclr",
        temperature=temperature,
        sogclr_gamma=gamma,
        sogclr_individual=individual,
        sogclr_rho=0.2,
        sogclr_rate=rate,
    )
    ours = ContrastiveLoss(config, ["square"], clips=11)
    published = Published(11, gamma=gamma, temperature=temperature, rho=0.2, rate=rate)
    mixed = 0  # steps with both new clips and such that were seen
    for step in range(6):
        clips = torch.randperm(11, generator=torch.Generator().manual_seed(step))[:7]
        mixed += len({published.seen[clip] for clip in clips}) == 2
        a, b = (x.requires_grad_() for x in views(7, seed=step))
        wanted, surrogate = published.step(a, b, clips, individual=individual)
        surrogate.backward()
        a32, b32 = (x.detach().float().requires_grad_() for x in (a, b))
        loss, numbers = ours(a32, b32, kind="square", clips=clips)
        (1.5 * loss).backward()
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-5)
        assert numbers["loss"] == loss
        for mine, theirs in ((a32, a), (b32, b)):
            torch.testing.assert_close(mine.grad.double(), 1.5 * theirs.grad, rtol=1e-4, atol=1e-6)
        kept = ours.averages["square"]
        torch.testing.assert_close(kept.log_u.exp().double(), published.u, rtol=1e-5, atol=1e-6)
        if individual:
            torch.testing.assert_close(kept.temperature.double(), published.temperature, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(kept.momentum.double(), published.momentum, rtol=1e-4, atol=1e-5)
    assert mixed
    if individual:
        assert kept.temperature.unique().numel() == 11 or rate == 1.0  # each has moved in its own way
        assert bool((kept.temperature == 0.05).any() or (kept.temperature == 0.7).any()) == (rate == 1.0)


@pytest.mark.parametrize("temperature", [0.001, 0.01])
def test_sogclr_does_not_overflow(temperature):
    ours = ContrastiveLoss(LossConfig(loss="sogclr", temperature=temperature), ["square"], clips=9)
    for step in range(3):
        a, b = (x.float().requires_grad_() for x in views(seed=step))
        loss, _ = ours(a, b, kind="square", clips=torch.arange(9))
        loss.backward()
        assert loss.isfinite()
        assert a.grad.isfinite().all()
    log_u = ours.averages["square"].log_u
    assert log_u.isfinite().all()
    if temperature == 0.001:
        assert log_u.max() > 89  # its exponential is beyond float32


def test_each_kind_keeps_averages_of_its_own_unless_they_are_shared():
    a, b = (x.float() for x in views())
    c, d = (x.float() for x in views(seed=1))
    alone = ContrastiveLoss(LossConfig(loss="sogclr"), ["square", "vertical"], clips=9)
    shared = ContrastiveLoss(LossConfig(loss="sogclr", sogclr_shared=True), ["square", "vertical"], clips=9)
    clips = torch.arange(9)
    for loss in (alone, shared):
        loss(a, b, kind="square", clips=clips)
        loss(c, d, kind="vertical", clips=clips)
    assert sorted(alone.state_dict()) == ["averages.square.log_u", "averages.vertical.log_u"]
    assert sorted(shared.state_dict()) == ["averages.shared.log_u"]
    square, vertical = (alone.averages[kind].log_u.exp() for kind in ("square", "vertical"))
    # each was new to its kind; the shared one was new to the first kind only
    torch.testing.assert_close(shared.averages["shared"].log_u.exp(), 0.1 * square + 0.9 * vertical)


@pytest.mark.parametrize("form", ["paper", "ntxent"])
def test_the_learned_temperatures_gradient_equals_autograd_in_float64(form):
    a, b = views()
    z = torch.nn.functional.normalize(torch.cat([a, b]), dim=1)
    log_temperature = torch.tensor(math.log(0.2), dtype=torch.float64, requires_grad=True)
    s = z @ z.T / log_temperature.exp()
    own = torch.eye(18, dtype=torch.bool)
    positive = own.roll(9, 1)
    kept = s.masked_fill(own | positive if form == "paper" else own, -torch.inf)
    wanted = (kept.logsumexp(1) - s[positive]).mean()
    wanted.backward()

    ours = ContrastiveLoss(LossConfig(loss=form, temperature=0.2, learn_temperature=True), ["square"])
    loss, numbers = ours(a.float(), b.float(), kind="square", clips=torch.arange(9))
    (2.5 * loss).backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-6)
    assert ours.log_temperature.grad.item() == pytest.approx(2.5 * log_temperature.grad.item(), rel=1e-4)
    assert numbers["temperature"].item() == pytest.approx(0.2)


@pytest.mark.parametrize(("given", "kept"), [(5.0, 1.0), (1e-4, 0.01)])
def test_the_learned_temperature_stays_in_its_bounds(given, kept):
    ours = ContrastiveLoss(LossConfig(learn_temperature=True), ["square"])
    ours.log_temperature.data.fill_(math.log(given))
    a, b = (x.float() for x in views())
    loss, numbers = ours(a, b, kind="square", clips=torch.arange(9))
    assert numbers["temperature"].item() == pytest.approx(kept)
    assert loss.item() == pytest.approx(contrastive(a, b, temperature=kept)[0].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss": "sogclr", "learn_temperature": True}, "take sogclr_individual"),
        ({"loss": "ntxent", "sogclr_individual": True}, "needs loss sogclr, not ntxent"),
        ({"sogclr_shared": True}, "needs loss sogclr, not paper"),
        ({"loss": "sogclr", "sogclr_individual": True, "temperature": 0.01}, r"from 0\.05 to 0\.7, not at 0\.01"),
        ({"learn_temperature": True, "temperature": 2.0}, r"from 0\.01 to 1\.0, not at 2\.0"),
        ({"loss": "sogclr", "sogclr_gamma": 0.0}, "greater than 0"),
        ({"loss": "sogclr", "sogclr_gamma": 1.1}, "less than or equal to 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        LossConfig(**settings)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="greater than 0"):
        LossConfig(temperature=temperature)
