import numpy as np
import pytest

from myna.bootstrap import intervals, resampled
from myna.key import KEYS
from myna.metric import measure

RNG = np.random.default_rng(5)
SINGLE = (RNG.integers(0, 4, 60), RNG.integers(0, 4, 60))
KEY = (RNG.integers(0, 24, 60), RNG.integers(0, 3, 60))
VALUES = ((RNG.standard_normal((60, 2)) + 4).astype(np.float32), RNG.standard_normal((60, 2)).astype(np.float32) + 4)
# scores rounded, so that there are ties
TAGS = ((RNG.random((60, 3)) < 0.3).astype(np.float32), RNG.random((60, 3)).round(1).astype(np.float32))
CASES = {
    "single": (tuple("abcd"), *SINGLE),
    "key": (KEYS, *KEY),
    "regression": (("arousal", "valence"), *VALUES),
    "multi": (("a", "b", "c"), *TAGS),
}


@pytest.mark.parametrize("answer", CASES)
def test_counts_give_what_repeated_items_give(answer):
    outputs, truth, found = CASES[answer]
    counts = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), 5)
    drawn = resampled(answer, outputs, truth, found, counts.astype(np.float32))
    for draw, count in enumerate(counts):
        again = np.repeat(np.arange(60), count)
        wanted = measure(answer, outputs, truth[again], found[again])
        assert {name: values[draw] for name, values in drawn.items()} == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("answer", CASES)
def test_every_item_once_is_the_score_itself(answer):
    outputs, truth, found = CASES[answer]
    drawn = resampled(answer, outputs, truth, found, np.ones((1, 60), np.float32))
    assert {name: values[0] for name, values in drawn.items()} == pytest.approx(
        measure(answer, outputs, truth, found), abs=1e-6
    )


def test_an_interval_of_an_accuracy_is_the_binomial_s():
    truth, found = np.zeros(400, np.int64), (np.arange(400) % 4 == 0).astype(np.int64)
    low, high = intervals("single", ("a", "b"), truth, found, np.arange(400), draws=4000)["accuracy"]
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.005)


def test_groups_are_drawn_whole():
    # 20 songs of 20 clips that are right or wrong together: as wide as 20 items, not 400
    truth, found = np.zeros(400, np.int64), np.repeat(np.arange(20) % 4 == 0, 20).astype(np.int64)
    low, high = intervals("single", ("a", "b"), truth, found, np.repeat(np.arange(20), 20), draws=4000)["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * (0.75 * 0.25 / 20) ** 0.5, rel=0.1)


def test_one_group_says_nothing_of_others():
    outputs, truth, found = CASES["single"]
    ends = intervals("single", outputs, truth, found, np.zeros(60, np.int64))
    assert np.isnan(ends["accuracy"]).all()
    assert np.isfinite(intervals("single", outputs, truth, found, np.arange(60) // 30)["accuracy"]).all()


def test_the_seed_decides():
    outputs, truth, found = CASES["single"]
    once, again, other = (
        intervals("single", outputs, truth, found, np.arange(60), seed=seed, draws=50) for seed in (1, 1, 2)
    )
    assert once == again != other


def test_a_tag_too_rare_to_be_drawn_has_no_interval():
    truth, found = np.zeros((40, 1), np.float32), np.arange(40, dtype=np.float32)[:, None]
    truth[3] = 1  # 63 % of the draws have it
    group = np.arange(40)
    assert np.isfinite(intervals("multi", ("rare",), truth, found, group)["roc_auc"]).all()
    # in one of two groups, with all negatives in the other: half of the draws have both
    ends = intervals("multi", ("rare",), truth, found, (truth[:, 0] == 0).astype(np.int64), draws=501, seed=3)
    drawn = np.random.default_rng(3).multinomial(2, [0.5, 0.5], 501)
    assert np.isfinite(ends["roc_auc"]).all() == (2 * (drawn == 1).all(axis=1).sum() >= 501)
