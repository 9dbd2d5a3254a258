"""The batched training against a plain loop: nn.Linear, autograd, torch.optim.Adam, the same random numbers."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from myna import cohort, noise
from myna.cohort import Block, TrainingRows, initial, quantum, train
from myna.grid import GRID, WIDE, ProbeConfig
from myna.key import KEYS
from myna.metric import Primary

OUTPUTS = {"single": 4, "multi": 3, "regression": 2, "key": 24}
HIDDEN = {"linear": (), "mlp": (16,), "deep": (12, 8)}
LOSSES = {"multi": nn.BCEWithLogitsLoss(), "regression": nn.MSELoss()}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(cohort, "PATIENCE", 3)


def data(answer: str, *, train_rows=90, valid_rows=60, dim=10):
    """A teacher's answers with noise; of keys, three clips a song."""
    rng, outputs = np.random.default_rng(7), OUTPUTS[answer]
    teacher = rng.standard_normal((dim, outputs))
    songs = np.arange(valid_rows) // 3
    parts = []
    for rows in (train_rows, valid_rows):
        x = rng.standard_normal((rows, dim)) + (0.5 if answer != "key" else 0)
        if answer == "key":
            x = np.repeat(x[::3], 3, axis=0) + 0.4 * x
        score = x @ teacher + 0.5 * rng.standard_normal((rows, outputs))
        if answer == "key":
            score = np.repeat(score[::3], 3, axis=0)
        y = {"multi": score > 0.7, "regression": score}.get(answer, score.argmax(axis=1))
        parts.append((torch.from_numpy(x).float(), torch.from_numpy(np.asarray(y))))
    (x, y), (valid_x, valid_y) = parts
    targets = nn.functional.one_hot(y, outputs).float() if answer in ("single", "key") else y.float()
    mean, scale = x.mean(0), x.std(0, unbiased=False)
    rows = TrainingRows({False: x, True: (x - mean) / scale}, targets, answer)
    valid = {False: valid_x, True: (valid_x - mean) / scale}
    truth = valid_y if answer in ("single", "key") else valid_y.float()
    primary = Primary(answer, truth, torch.from_numpy(songs) if answer == "key" else None)
    return rows, valid, primary, (lambda predict, _: primary(predict(valid))), y


def configs(hidden: tuple[int, ...]) -> list[ProbeConfig]:
    """Settings that differ in everything, so that they share inputs, stop at different steps, and fill tiles."""
    return [
        ProbeConfig(standardise=s, hidden=hidden, batch=b, learning_rate=rate, dropout=d, l2=l2, hidden_dropout=h)
        for s, b, rate, d, l2, h in [
            (True, 32, 1e-2, 0.25, 0.0, None),
            (False, 8, 3e-2, 0.5, 1e-3, None),
            (True, 32, 3e-2, 0.25, 1e-1, None),
            (False, 32, 1e-1, 0.75, 1e-2, 0.3),
            (True, 8, 1e-2, 0.0, 1e-2, 0.5),
            (True, 500, 2e-2, 0.25, 0.0, 0.0),
        ]
    ]


class PlainDropout:
    """Dropout with the documented random numbers, in NumPy: the k-th byte or half-word of a line's 64-bit words."""

    def __init__(self, seed: int, step: int, layer: int, rate: float) -> None:
        self.seed, self.step, self.layer, self.rate = seed, step, layer, rate

    def keep(self, lines: int, places: int) -> torch.Tensor:
        each, levels = (8, 256) if self.rate * 256 == int(self.rate * 256) else (4, 65536)
        where = (self.step << 44) + (torch.arange(lines)[:, None] << 22) + torch.arange(-(-places // each))
        words = noise.bits(noise.key(self.seed, 3, self.layer, each), where).numpy()
        numbers = np.stack([(words >> (64 // each * k)) & (levels - 1) for k in range(each)], axis=-1)
        numbers = numbers.reshape(lines, -1)[:, :places]
        if each == 4:
            numbers = (numbers + 32768) % 65536  # read as signed
        dropped = round(self.rate * levels)
        return torch.from_numpy((numbers >= dropped) * (levels / (levels - dropped))).float()


def plain(config: ProbeConfig, rows: TrainingRows, valid, primary, y, *, seed: int):
    """One configuration as one would write it; returns (parameters, score, best step, stop step)."""
    x, valid_x = rows.inputs[config.standardise], valid[config.standardise]
    widths = (x.shape[1], *config.hidden, rows.targets.shape[1])
    linears = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    for layer, linear in enumerate(linears):
        for kind, parameter in ((1, linear.weight), (2, linear.bias)):
            drawn = noise.below(noise.key(seed, kind, layer), torch.arange(parameter.numel()), torch.tensor(1 << 23))
            uniform = (drawn.double() + 0.5) / (1 << 23)
            bound = linear.in_features**-0.5
            parameter.data = ((2 * uniform - 1) * bound).float().view_as(parameter)
    parameters = [p for linear in linears for p in linear.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate, weight_decay=config.l2)
    loss = LOSSES.get(rows.answer, nn.CrossEntropyLoss())
    y = y.float() if rows.answer in LOSSES else y
    kept, best, best_step, stale = [], -np.inf, 0, 0
    for step in itertools.count():
        if step % 8 == 0:
            if stale == cohort.PATIENCE:
                break
            with torch.no_grad():
                out = valid_x
                for layer, linear in enumerate(linears):
                    out = linear(out.relu() if layer else out)
            score = float(primary(out[None])[0])
            stale += 1
            if score > best:
                best, best_step, stale, kept = score, step, 0, [p.detach().clone() for p in parameters]
        batch = min(config.batch, len(rows))
        index = noise.bits(noise.key(seed, 0), (step << 44) + torch.arange(len(rows))).argsort()[:batch]
        out = x[index]
        for layer, linear in enumerate(linears):
            dropout = PlainDropout(seed, step, layer, config.rates[layer])
            mask = dropout.keep(*out.shape) if layer == 0 else dropout.keep(*out.T.shape).T
            out = linear((out.relu() if layer else out) * mask)
        optimizer.zero_grad()
        loss(out, y[index]).backward()
        optimizer.step()
    return kept, best, best_step, step


@pytest.mark.parametrize(
    ("shape", "answer"), [*itertools.product(("linear", "mlp"), OUTPUTS), ("deep", "single"), ("deep", "multi")]
)
def test_together_alone_and_plain_are_the_same(shape, answer, monkeypatch):
    rows, valid, primary, evaluate, y = data(answer)
    grid = configs(HIDDEN[shape])
    together = train(grid, rows, evaluate, seed=11)
    monkeypatch.setattr(cohort, "TILE_BYTES", 1)  # a tile for each model
    apart = train(grid[::-1], rows, evaluate, seed=11)[::-1]
    alone = train(grid[3:4], rows, evaluate, seed=11)
    for number, (config, *both) in enumerate(zip(grid, together, apart, strict=True)):
        kept, best, best_step, stop_step = plain(config, rows, valid, primary, y, seed=11)
        for found in both + (alone if number == 3 else []):
            assert (found.best_step, found.stop_step) == (best_step, stop_step)
            assert found.score == pytest.approx(best, abs=1e-6)
            for parameter, wanted in zip(found.parameters, kept, strict=True):
                assert (parameter - wanted).abs().max() < 1e-5
    assert len({each.stop_step for each in together}) > 2
    assert max(each.score for each in together) > 0.3


def test_the_end_comes_2056_steps_after_the_best_score(monkeypatch):
    monkeypatch.setattr(cohort, "PATIENCE", 256)
    rows, *_ = data("single")
    scores = iter([0.1, 0.2, 0.2, 0.3, *[0.3] * 1000])
    taken = []

    def evaluate(*_):
        taken.append(next(scores))
        return torch.tensor([taken[-1]], dtype=torch.float64)

    [found] = train([GRID[0]], rows, evaluate, seed=0)
    assert (found.score, found.best_step, found.stop_step) == (0.3, 24, 24 + 257 * 8)
    assert len(taken) == 4 + 256


def test_a_limit_ends_what_still_runs_with_its_best_weights():
    rows, _, _, evaluate, _ = data("single")
    [short] = train([configs(())[0]], rows, evaluate, seed=0, max_steps=16)
    assert short.stop_step == 16
    assert short.best_step <= 8


def test_progress_is_told():
    told = []
    rows, _, _, evaluate, _ = data("single")
    train(configs(())[:3], rows, evaluate, seed=0, on_progress=lambda *args: told.append(args))
    assert told[0] == (0, 0, 3)
    assert told[-1][1:] == (3, 3)
    assert [step for step, *_ in told] == list(range(0, 8 * len(told), 8))


def test_drawn_rows_are_distinct_uniform_and_new_each_step():
    rows = data("single", train_rows=50)[0]
    drawn = torch.cat([Block(rows, 3, first, 10).index for first in range(0, 1600, 8)])
    assert all(len(set(step)) == 10 for step in drawn.tolist())
    counts = torch.bincount(drawn.flatten(), minlength=50)
    # hypergeometric: 320 expected, standard deviation 16
    assert ((counts - 320).abs() < 5 * 16).all()
    assert not torch.equal(drawn[0].sort().values, drawn[1].sort().values)
    assert torch.equal(Block(rows, 3, 0, 20).index[:, :10], drawn[:8])


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75, 0.2, 0.99])
def test_dropout_drops_its_share_and_keeps_the_mean(rate):
    rows = data("single", train_rows=300)[0]
    block = Block(rows, 5, 0, 256)
    mask = block.mask(1, 64, rate)
    count = mask.numel()
    assert (mask == 0).float().mean().item() == pytest.approx(rate, abs=5 * (rate * (1 - rate) / count) ** 0.5 + 1e-5)
    assert mask.max().item() == pytest.approx(1 / (1 - rate), rel=1e-3)
    assert quantum(rate)[2] == pytest.approx(1 / (1 - rate), rel=1e-3)
    assert not torch.equal(mask[0], mask[1])
    assert not torch.equal(mask, block.mask(2, 64, rate))


def test_a_larger_rate_drops_what_a_smaller_one_drops():
    block = Block(data("single")[0], 5, 0, 64)
    assert ((block.mask(1, 20, 0.25) == 0) <= (block.mask(1, 20, 0.75) == 0)).all()


def test_weights_begin_as_those_of_a_linear_layer():
    weight, bias = initial(0, 0, 200, 100)
    assert weight.abs().max() <= 0.1
    assert weight.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert abs(weight.mean().item()) < 0.002
    assert bias.abs().max() <= 0.1
    assert not torch.equal(initial(1, 0, 200, 100)[0], weight)
    assert not torch.equal(initial(0, 1, 200, 100)[0], weight)


def test_the_grid_is_that_of_the_protocol():
    assert len(GRID) == len(set(GRID)) == 216
    assert GRID[0] == ProbeConfig(standardise=False, hidden=(), batch=64, learning_rate=1e-5, dropout=0.25, l2=0)
    assert GRID[1].l2 == 1e-4
    assert GRID[3].dropout == 0.5
    assert GRID[215] == ProbeConfig(
        standardise=True, hidden=(512,), batch=256, learning_rate=1e-3, dropout=0.75, l2=1e-3
    )
    assert [config.rates for config in (GRID[0], GRID[215])] == [(0.25,), (0.75, 0.75)]


def test_the_wide_heads_of_keys():
    assert [(config.hidden, config.rates) for config in WIDE] == [
        ((2048,), (0.0, 0.75)),
        ((4096, 4096), (0.0, 0.99, 0.99)),
    ]
    rows, _, _, evaluate, _ = data("key")
    [found] = train(WIDE[:1], rows, evaluate, seed=0, max_steps=8)
    assert found.parameters[2].shape == (len(KEYS), 2048)
