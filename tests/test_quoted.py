"""The quoted table is consistent with itself, so that a slip of the pen shows."""

import pytest

from myna.quoted import COLUMNS, TABLE_1, average


@pytest.mark.parametrize("model", TABLE_1)
def test_the_average_as_printed_is_the_mean_over_four_benchmarks(model):
    *scores, printed = TABLE_1[model]
    assert len(scores) == len(COLUMNS)
    assert average(*scores) == pytest.approx(printed, abs=0.0501)


def test_the_average_by_hand():
    assert average(90, 40, 80, 60, 70, 50) == ((65 + 80 + 60 + 60) / 4)
