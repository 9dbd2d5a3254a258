"""The paper's numbers, checked against each other: its averages are those of its scores."""

import pytest

from myna import recipe
from myna.quoted import BENCHMARKS, BY_RECIPE, TABLE_1, TABLE_2


@pytest.mark.parametrize("row", TABLE_1, ids=lambda row: row.name)
def test_averages_are_over_data_sets(row):
    auc, precision, gtzan, key, arousal, valence = (row.scores[name] for name in BENCHMARKS)
    mean = ((auc + precision) / 2 + gtzan + key + (arousal + valence) / 2) / 4
    assert row.scores["average"] == pytest.approx(mean, abs=0.0751)  # printed scores are rounded to 0.1


def test_tables_agree_and_recipes_are_named_as_ours():
    assert TABLE_2[4096] == BY_RECIPE["base"].scores["average"]
    assert list(TABLE_2.values()) == sorted(TABLE_2.values())
    assert {"base", "vertical", "hybrid"} <= set(BY_RECIPE) & set(recipe.RECIPES)
    assert max(TABLE_1, key=lambda row: row.scores["GiantSteps"]).name == "Myna-Vertical"
