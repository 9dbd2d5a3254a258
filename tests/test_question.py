from pathlib import Path

import numpy as np
import pytest

from myna.key import KEYS
from myna.question import QUESTIONS, ask, tasks, weighted_key_score
from myna.songs import INSTRUMENTS, song


@pytest.fixture(scope="module")
def songs():
    return [song(3, index) for index in range(240)]


def told(songs) -> np.ndarray:
    """Vectors that hold every answer, one-hot, among noise."""
    rng = np.random.default_rng(0)
    styles = sorted({s.style for s in songs})
    rows = [
        np.concatenate(
            [
                np.eye(24)[KEYS.index(s.key)],
                np.eye(len(styles))[styles.index(s.style)],
                [i in s.instruments for i in INSTRUMENTS],
                [np.log2(s.tempo_bpm)],
                rng.standard_normal(8),
            ]
        )
        for s in songs
    ]
    return np.array(rows, np.float32)


def test_what_is_in_the_vectors_is_found_and_what_is_not_is_not(songs):
    noise = np.random.default_rng(1).standard_normal((len(songs), 60)).astype(np.float32)
    table = ask({"told": told(songs), "noise": noise}, songs, labelled=160, seeds=3)
    assert table.columns == QUESTIONS
    for question, floor in {"key": 0.95, "style": 0.95, "instruments": 0.99, "tempo": 0.95}.items():
        assert table.scores["told", question].mean > floor
        score = table.scores["noise", question]
        assert score.mean < table.chance[question] + 0.08
        assert score.low <= score.mean <= score.high


def test_key_score_is_the_mirex_one_and_knows_its_direction():
    assert weighted_key_score(["C major"], ["C major"]) == 1.0
    assert weighted_key_score(["C major"], ["G major"]) == 0.5  # a fifth above the reference
    assert weighted_key_score(["G major"], ["C major"]) == 0.0  # a fifth below
    assert weighted_key_score(["C major"], ["A minor"]) == 0.3
    assert weighted_key_score(["C major"], ["C minor"]) == 0.2
    assert weighted_key_score(["C major", "C major"], ["C major", "F# minor"]) == 0.5


def test_questions_become_tasks(songs):
    found = tasks([Path(f"/songs/{i:05d}.mp3") for i in range(240)], songs, labelled=90)
    assert tuple(found) == QUESTIONS
    for question, task in found.items():
        assert [len(task.of(part)) for part in ("train", "valid", "test")] == [60, 30, 150], question
    number = {item.id: i for i, item in enumerate(found["key"].items)}
    assert all(found["key"].outputs[item.label] == songs[number[item.id]].key for item in found["key"].items)
    assert all(found["style"].outputs[item.label] == songs[number[item.id]].style for item in found["style"].items)
    for item in found["instruments"].items:
        plays = {name for name, yes in zip(found["instruments"].outputs, item.label, strict=True) if yes}
        assert plays == set(songs[number[item.id]].instruments) & set(found["instruments"].outputs)


def test_instruments_are_asked_for_where_every_split_can_tell(songs):
    task = tasks([Path(f"{i}.mp3") for i in range(240)], songs, labelled=12)["instruments"]
    assert 0 < len(task.outputs) < len(INSTRUMENTS)
    for part in ("train", "valid", "test"):
        labels = task.labels(part)
        assert ((labels.min(0) == 0) & (labels.max(0) == 1)).all()


def test_tempo_is_scaled_by_the_labelled_songs_alone(songs):
    paths = [Path(f"{i}.mp3") for i in range(240)]
    task = tasks(paths, songs, labelled=90)["tempo"]
    known = np.concatenate([task.labels("train"), task.labels("valid")])
    assert known.mean() == pytest.approx(0, abs=1e-5)
    assert known.std() == pytest.approx(1, abs=1e-5)
    fewer = tasks(paths[:120], songs[:120], labelled=90)["tempo"]
    np.testing.assert_array_equal(fewer.labels("train"), task.labels("train"))
