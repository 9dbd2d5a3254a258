from collections import Counter

import numpy as np
import pytest
import torch

from myna.pair import starts

CLIPS = 40_000


def draw(pair: str, *, places: int, reach: int = 2, count: int = CLIPS) -> torch.Tensor:
    view = torch.arange(2 * count).view(count, 2).T
    return starts(pair, 5, view, places=torch.full((count,), places), reach=reach)


def assert_likely(found: torch.Tensor, chances: dict[tuple[int, int], float]) -> None:
    counts = Counter(map(tuple, found.T.tolist()))
    assert counts.keys() <= chances.keys()
    assert sum(chances.values()) == pytest.approx(1)
    chi_square = sum((counts[what] - CLIPS * p) ** 2 / (CLIPS * p) for what, p in chances.items())
    freedom = len(chances) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_clip_draws_two_places_apart():
    assert_likely(draw("clip", places=5), {(a, b): 1 / 25 for a in range(5) for b in range(5)})


def test_segment_draws_one_place_for_both():
    assert_likely(draw("segment", places=5), {(a, a): 1 / 5 for a in range(5)})


@pytest.mark.parametrize(("places", "reach"), [(5, 1), (7, 2), (3, 9), (6, 0), (1, 4)])
def test_near_draws_the_second_within_reach_of_the_first(places, reach):
    chances = {}
    for first in range(places):
        allowed = [second for second in range(places) if abs(second - first) <= reach]
        chances |= {(first, second): 1 / places / len(allowed) for second in allowed}
    if len(chances) == 1:
        assert not draw("near", places=places, reach=reach).any()
    else:
        assert_likely(draw("near", places=places, reach=reach), chances)


@pytest.mark.parametrize("pair", ["clip", "near", "segment"])
def test_a_clip_has_the_same_places_in_any_company(pair):
    view = torch.arange(200).view(100, 2).T
    places = torch.arange(1, 101)
    whole = starts(pair, 5, view, places=places, reach=10)
    part = starts(pair, 5, view[:, 40:50], places=places[40:50], reach=10)
    assert torch.equal(part, whole[:, 40:50])
    assert (whole >= 0).all()
    assert (whole < places).all()
    assert torch.equal(whole[0], starts("clip", 5, view, places=places, reach=0)[0])


@pytest.mark.parametrize("pair", ["clip", "near", "segment"])
def test_no_pair_makes_the_host_wait_for_a_device(pair):
    view = torch.zeros(2, 8, dtype=torch.long, device="meta")  # it has no values, so to ask for one is an error
    assert starts(pair, 5, view, places=view[0] + 9, reach=2).shape == (2, 8)
