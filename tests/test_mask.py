from collections import Counter
from collections.abc import Hashable, Iterable
from itertools import combinations, permutations, product
from math import ceil, comb, exp
from typing import get_args

import numpy as np
import pytest
import torch

from myna import mask
from myna.errors import ConfigError
from myna.patch import Grid, Patch


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


POLICIES = get_args(mask.Policy)
DRAWS = 40_000


def grid(rows: int, columns: int) -> Grid:
    return Grid(Patch(16, 16), rows, columns)


def assert_likely(drawn: Iterable[Hashable], chances: dict[Hashable, float]) -> None:
    """Hold by a chi-square that outcomes come as often as they should, and no others."""
    counts = Counter(drawn)
    assert counts.keys() <= chances.keys()
    assert sum(chances.values()) == pytest.approx(1)
    total = counts.total()
    assert min(chances.values()) * total > 5  # else the statistic means nothing
    chi_square = sum((counts[what] - total * p) ** 2 / (total * p) for what, p in chances.items())
    freedom = len(chances) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def sets(drawn: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for row in drawn.sort(dim=-1).values.tolist()]


def evenly(outcomes: Iterable[Hashable]) -> dict[Hashable, float]:
    outcomes = list(outcomes)
    return {what: count / len(outcomes) for what, count in Counter(outcomes).items()}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", [(8, 6), (1, 49), (3, 5)])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.9, 0.97])
def test_every_policy_keeps_exactly_as_many_tokens_as_it_should(policy, shape, ratio):
    where, visible = grid(*shape), mask.visible_count(shape[0] * shape[1], ratio)
    if policy == "frequency" and shape[0] == 1:
        with pytest.raises(ConfigError, match=r"one row only.*--patches square"):
            mask.draw(policy, 1, torch.arange(4), grid=where, visible=visible)
    elif policy == "complement" and 2 * visible > where.tokens:
        with pytest.raises(ConfigError, match=r"share no patch.*0\.5 or more"):
            mask.draw(policy, 1, torch.arange(4), grid=where, visible=visible)
    else:
        drawn = mask.draw(policy, 1, torch.arange(400).view(2, 200), grid=where, visible=visible)
        assert drawn.shape == (2, 200, visible)
        assert drawn.min() >= 0
        assert drawn.max() < where.tokens
        assert all(len(set(row)) == visible for row in drawn.flatten(0, 1).tolist())


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_a_function_of_key_and_view_alone(policy):
    where = grid(8, 6)
    whole = mask.draw(policy, 9, torch.arange(100), grid=where, visible=5)
    again = mask.draw(policy, 9, torch.tensor([[42], [7]]), grid=where, visible=5)
    assert torch.equal(again[:, 0], whole[[42, 7]])
    other = mask.draw(policy, 10, torch.arange(100), grid=where, visible=5)
    assert (other.sort(dim=-1).values != whole.sort(dim=-1).values).any(dim=-1).float().mean() > 0.5


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_makes_the_host_wait_for_a_device(policy):
    view = torch.arange(8, device="meta")  # it has no values, so to ask for one is an error
    assert mask.draw(policy, 1, view, grid=grid(8, 6), visible=5).shape == (8, 5)


def test_the_policy_uniform_is_the_papers_mask():
    view = torch.arange(50)
    wanted = mask.uniform(3, view, tokens=48, visible=5)
    assert torch.equal(mask.draw("uniform", 3, view, grid=grid(8, 6), visible=5), wanted)


@pytest.mark.parametrize("policy", ["time", "frequency"])
def test_bands_are_whole_lines_and_a_part_of_one_more(policy):
    where = grid(3, 4) if policy == "time" else grid(4, 3)
    line = {n: {t for t in range(12) if (t % 4 if policy == "time" else t // 3) == n} for n in range(4)}
    wanted = evenly(
        tuple(sorted(line[whole] | set(part)))
        for whole, other in permutations(range(4), 2)
        for part in combinations(sorted(line[other]), 2)
    )
    assert len(wanted) == 36
    assert_likely(sets(mask.draw(policy, 4, torch.arange(DRAWS), grid=where, visible=5)), wanted)


def test_time_bands_of_vertical_patches_are_the_uniform_mask():
    wanted = evenly(combinations(range(7), 3))
    assert_likely(sets(mask.draw("time", 5, torch.arange(DRAWS), grid=grid(1, 7), visible=3)), wanted)


@pytest.mark.parametrize(("shape", "visible"), [((3, 4), 3), ((2, 3), 5), ((1, 7), 3), ((4, 2), 6)])
def test_blocks_lie_in_rectangles_of_every_height_and_place(shape, visible):
    rows, columns = shape
    chances: Counter = Counter()
    heights = [h for h in range(1, min(rows, visible) + 1) if ceil(visible / h) <= columns]
    for height in heights:
        width = ceil(visible / height)
        places = [*product(range(rows - height + 1), range(columns - width + 1))]
        for top, left in places:
            inside = [r * columns + c for r in range(top, top + height) for c in range(left, left + width)]
            for part in combinations(inside, visible):
                chances[part] += 1 / len(heights) / len(places) / comb(len(inside), visible)
    assert_likely(sets(mask.draw("blocks", 6, torch.arange(DRAWS), grid=grid(*shape), visible=visible)), chances)


@pytest.mark.parametrize("sigma", [0.2, 0.5])
def test_gaussian_draws_one_after_another_by_distance_from_a_random_token(sigma):
    chances: Counter = Counter()
    for centre in range(6):
        weight = [
            exp(-(((t // 3 - centre // 3) / 2) ** 2 + ((t % 3 - centre % 3) / 3) ** 2) / 2 / sigma**2) for t in range(6)
        ]
        for first, second in permutations(range(6), 2):
            chances[first, second] += weight[first] / sum(weight) * weight[second] / (sum(weight) - weight[first]) / 6
    drawn = mask.draw("gaussian", 7, torch.arange(DRAWS), grid=grid(2, 3), visible=2, sigma=sigma)
    assert_likely(map(tuple, drawn.tolist()), chances)


def test_the_two_views_of_complement_share_no_token():
    drawn = mask.draw("complement", 8, torch.arange(2 * DRAWS), grid=grid(1, 5), visible=2)
    both = [(a, b) for a, b in zip(*(sets(drawn[view::2]) for view in range(2)), strict=True)]
    assert_likely(
        both, evenly((a, b) for a in combinations(range(5), 2) for b in combinations(sorted({*range(5)} - {*a}), 2))
    )


def test_complement_at_one_half_shares_the_grid_out():
    drawn = mask.draw("complement", 8, torch.arange(100), grid=grid(8, 6), visible=24)
    assert drawn.view(50, 48).sort(dim=-1).values.tolist() == [list(range(48))] * 50
