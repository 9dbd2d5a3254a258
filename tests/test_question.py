import numpy as np
import pytest

from myna.question import QUESTIONS, ask, chroma, mel_statistics, weighted_key_score
from myna.songs import INSTRUMENTS, KEYS, song


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


@pytest.mark.parametrize(("midi", "pitch_class"), [(60, 0), (69, 9), (42, 6), (95, 11)])
def test_chroma_hears_the_pitch_class(midi, pitch_class):
    hz = 440 * 2 ** ((midi - 69) / 12)
    found = chroma(np.sin(2 * np.pi * hz * np.arange(32_000) / 16_000).astype(np.float32))
    assert found.argmax() == pitch_class
    assert found.sum() == pytest.approx(1.0, abs=1e-5)


def test_mel_statistics_are_mean_and_deviation_in_decibels():
    mel = np.array([[1.0, 100.0], [10.0, 100.0]], np.float32)
    np.testing.assert_allclose(mel_statistics(mel), [5, 20, 5, 0], atol=1e-4)
