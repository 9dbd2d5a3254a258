from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch

from myna import mask
from myna.errors import ConfigError


def test_the_papers_arithmetic_keeps_5_of_48():
    assert mask.visible_count(48, 0.9) == 5
    assert mask.visible_count(49, 0.9) == 5
    assert mask.visible_count(48, 0.0) == 48


@pytest.mark.parametrize(("tokens", "ratio", "visible"), [(10, 0.7, 3), (100, 0.29, 71), (50, 0.9, 5), (3, 0.99, 1)])
def test_visible_count_does_not_slip_by_rounding(tokens, ratio, visible):
    assert mask.visible_count(tokens, ratio) == visible


@pytest.mark.parametrize("ratio", [1.0, -0.1, 1.5])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(ConfigError, match="mask ratio"):
        mask.visible_count(48, ratio)


def test_masks_are_sets_of_distinct_tokens():
    drawn = mask.uniform(11, torch.arange(5000), tokens=48, visible=5)
    assert drawn.shape == (5000, 5)
    assert drawn.min() == 0
    assert drawn.max() == 47
    assert all(len(set(row)) == 5 for row in drawn.tolist())


def test_every_set_is_equally_likely():
    drawn = mask.uniform(2, torch.arange(60_000), tokens=7, visible=3).sort(dim=1).values
    sets = dict.fromkeys(combinations(range(7), 3), 0)
    for row in drawn.tolist():
        sets[tuple(row)] += 1
    expected = 60_000 / comb(7, 3)
    chi_square = sum((count - expected) ** 2 / expected for count in sets.values())
    freedom = comb(7, 3) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_order_inside_a_mask_is_random_too():
    first = mask.uniform(2, torch.arange(48_000), tokens=48, visible=5)[:, 0]
    counts = np.bincount(first, minlength=48)
    assert ((counts - 1000) ** 2 / 1000).sum() < 47 + 5 * np.sqrt(2 * 47)


def test_a_view_has_the_same_mask_in_any_company():
    whole = mask.uniform(9, torch.arange(100), tokens=48, visible=5)
    assert torch.equal(mask.uniform(9, torch.tensor([[42], [7]]), tokens=48, visible=5)[:, 0], whole[[42, 7]])


def test_all_tokens_can_stay():
    drawn = mask.uniform(1, torch.arange(10), tokens=48, visible=48)
    assert drawn.sort(dim=1).values.tolist() == [list(range(48))] * 10
