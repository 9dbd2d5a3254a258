"""Features without learning, against the libraries that everybody uses."""

import librosa
import numpy as np
import pytest
import scipy.fft

from myna.baseline import baselines, chroma, mel_statistics, mfcc, slopes
from sounds import music


@pytest.mark.parametrize(("midi", "pitch_class"), [(60, 0), (69, 9), (42, 6), (95, 11)])
def test_chroma_hears_the_pitch_class(midi, pitch_class):
    hz = 440 * 2 ** ((midi - 69) / 12)
    found = chroma(np.sin(2 * np.pi * hz * np.arange(32_000) / 16_000).astype(np.float32))
    assert found.argmax() == pitch_class
    assert found.sum() == pytest.approx(1.0, abs=1e-5)


def test_mel_statistics_are_mean_and_deviation_in_decibels():
    mel = np.array([[1.0, 100.0], [10.0, 100.0]], np.float32)
    np.testing.assert_allclose(mel_statistics(mel), [5, 20, 5, 0], atol=1e-4)


def test_mfcc_are_the_dct_of_the_decibels_and_their_slopes():
    mel = np.random.default_rng(0).gamma(1.0, 10.0, (60, 128)).astype(np.float32)
    decibel = 10 * np.log10(mel.astype(np.float64))
    coefficients = scipy.fft.dct(decibel, type=2, norm="ortho", axis=1)[:, :20]
    delta = librosa.feature.delta(coefficients, width=9, axis=0)[4:-4]
    wanted = np.concatenate([c for x in (coefficients, delta) for c in (x.mean(axis=0), x.std(axis=0))])
    np.testing.assert_allclose(mfcc(mel), wanted, atol=2e-3)


def test_slopes_of_a_line_are_its_slope_and_of_too_little_nothing():
    line = 3.0 * np.arange(20)[:, None]
    np.testing.assert_allclose(slopes(line), 3.0)
    np.testing.assert_array_equal(slopes(line[:8]), [[0.0]])
    assert len(slopes(line[:9])) == 1


def test_every_baseline_keeps_its_word_on_any_length():
    sound = music(2.0, 16_000)[:, 0]
    for name, one in baselines().items():
        for samples in (sound, sound[:300], np.zeros(5000, np.float32)):
            found = one.embed_windows(samples[None])
            assert found.shape == (1, one.dim), name
            assert np.isfinite(found).all(), name
    assert len({one.hash for one in baselines().values()}) == 3
