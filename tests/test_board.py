"""The table: the paper's columns and average, its rows marked as quoted, and honest notes."""

import pytest

from myna.board import COLUMNS, QUOTED, average, results_sheet
from myna.quoted import TABLE_1


def record(model, task, scores, *, missing=(), protocol="jukemir", grid=216):
    return {
        "protocol": protocol,
        "grid": [{}] * grid,
        "model": {"name": model},
        "task": {"name": task, "missing": list(missing), "unusable": {}},
        "test": {
            name: {"mean": mean, "low": mean - 0.02, "high": mean + 0.01, "over": "test groups"}
            for name, mean in scores
        },
        "alternatives": {"all": {}},
    }


ALL = [
    record("ours", "magnatagatune", [("roc_auc", 0.9), ("average_precision", 0.4)]),
    record("ours", "gtzan", [("accuracy", 0.8)]),
    record("ours", "giantsteps", [("weighted_score", 0.6), ("accuracy", 0.5)]),
    record("ours", "emomusic", [("r2", 0.6), ("r2_arousal", 0.7), ("r2_valence", 0.5)]),
]


def test_the_columns_are_the_papers_and_the_average_is_its_own():
    sheet = results_sheet(ALL)
    assert sheet.headings == ("model", *COLUMNS, "average")
    # the four benchmarks count the same: 65, 80, 60 and 60, which is 66.25
    assert [cell.split()[0] for cell in sheet.rows[0][1:]] == ["90.0", "40.0", "80.0", "60.0", "70.0", "50.0", "66.3"]
    assert "±2.0" in sheet.rows[0][1]  # the wider side of the interval


@pytest.mark.parametrize("row", TABLE_1, ids=lambda row: row.name)
def test_the_papers_rows_stand_beside_ours_marked_as_quoted(row):
    told = next(cells for cells in results_sheet(ALL).rows if cells[0].startswith(f"{row.name} ("))
    assert QUOTED in told[0]
    assert float(told[-1]) == pytest.approx(average(*(row.scores[name] for name in COLUMNS)), abs=0.0501)


def test_without_all_four_there_is_no_average_and_own_tasks_have_columns():
    sheet = results_sheet(
        [ALL[1], record("ours", "moods", [("accuracy", 0.5)]), record("other", "moods", [("accuracy", 0.7)])]
    )
    assert sheet.headings == ("model", "GTZAN", "moods accuracy")
    assert sheet.rows[0][1:] == ("80.0 ±2.0", "50.0 ±2.0")
    assert sheet.rows[1][1:] == ("", "70.0 ±2.0")
    assert sheet.bold == {(0, 1), (1, 2)}


def test_protocols_are_never_mixed_and_what_is_missing_is_told():
    sheet = results_sheet(
        [ALL[1], record("ours", "gtzan", [("accuracy", 0.9)], missing=["jazz.00054"], protocol="windows")]
    )
    assert [row[0] for row in sheet.rows[:2]] == ["ours", "ours [windows]"]
    few = record("ours", "gtzan", [("accuracy", 0.9)], grid=3)
    assert [row[0] for row in results_sheet([ALL[1], few]).rows[:2]] == ["ours", "ours [3 probes]"]
    assert any("1 items are missing, so this is not the benchmark" in note for note in sheet.notes)


@pytest.mark.parametrize(
    ("style", "mark"), [("plain", "Test scores"), ("csv", "model,MTT AUC"), ("markdown", "|---|---:|")]
)
def test_every_style_holds_every_row(style, mark):
    text = results_sheet(ALL).text(style)
    assert mark in text
    assert all(row.name in text for row in TABLE_1)
