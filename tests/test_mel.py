"""The spectrogram against librosa, nnAudio and a float64 formula; the stream against the whole."""

import librosa
import numpy as np
import pytest
import torch
from nnAudio.features.mel import MelSpectrogram as NnAudioMel

from myna.mel import FrontEnd, MelSpectrogram, MelStream, mel_basis, reflect
from sounds import music, tone


def signals():
    rng = np.random.default_rng(0)
    return {
        "noise": rng.standard_normal(40_000).astype(np.float32) * 0.2,
        "tone": tone(2.5, 1234.5, 16_000)[:, 0],
        "music": music(2.5, 16_000, channels=1)[:, 0],
    }


def formula(samples, front_end):
    """The definition, in float64 and without any of our code."""
    n_fft, hop = front_end.n_fft, front_end.hop_samples
    padded = np.pad(samples.astype(np.float64), n_fft // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = [padded[start : start + n_fft] for start in range(0, len(padded) - n_fft + 1, hop)]
    power = np.abs(np.fft.rfft(np.array(frames) * window)) ** 2
    basis = librosa.filters.mel(
        sr=front_end.rate_hz,
        n_fft=n_fft,
        n_mels=front_end.bands,
        fmin=front_end.low_hz,
        fmax=front_end.high_hz,
        dtype=np.float64,
    )
    return power @ basis.T


SETTINGS = [
    FrontEnd(),
    FrontEnd(rate_hz=22_050, n_fft=1024, hop_samples=256, bands=80, low_hz=30, high_hz=11_025),
    FrontEnd(n_fft=512, hop_samples=160, bands=40, low_hz=200, high_hz=7000),
]


@pytest.mark.parametrize("front_end", SETTINGS)
def test_basis_is_librosas(front_end):
    theirs = librosa.filters.mel(
        sr=front_end.rate_hz,
        n_fft=front_end.n_fft,
        n_mels=front_end.bands,
        fmin=front_end.low_hz,
        fmax=front_end.high_hz,
        norm="slaney",
        htk=False,
    )
    np.testing.assert_allclose(mel_basis(front_end), theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["noise", "tone", "music"])
def test_equals_nnaudio(name):
    samples = torch.from_numpy(signals()[name])[None]
    theirs = NnAudioMel(sr=16_000, verbose=False)(samples)[0].T.numpy()
    ours = MelSpectrogram()(samples)[0].numpy()
    # beside a loud tone, both have float32 rounding 95 dB below it, which is no part of the answer
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=3e-10 * theirs.max())


@pytest.mark.parametrize("front_end", SETTINGS)
@pytest.mark.parametrize("name", ["noise", "tone", "music"])
def test_equals_the_definition(front_end, name):
    samples = signals()[name]
    ours, true = MelSpectrogram(front_end)(torch.from_numpy(samples)[None])[0].numpy(), formula(samples, front_end)
    assert ours.shape == true.shape == (front_end.frames(len(samples)), front_end.bands)
    np.testing.assert_allclose(ours, true, rtol=1e-4, atol=3e-10 * true.max())


def test_low_tones_lie_in_low_bands():
    loudest = [MelSpectrogram()(torch.from_numpy(tone(1, hz, 16_000).T))[0, 10].argmax() for hz in (100, 500, 4000)]
    assert loudest == sorted(loudest)
    assert loudest[0] < 6
    assert 80 < loudest[2] < 110


def test_a_clip_is_the_same_in_any_company():
    clips = torch.from_numpy(np.stack([signals()["noise"], signals()["tone"]]))
    together, transform = MelSpectrogram()(clips), MelSpectrogram()
    for clip, mel in zip(clips, together, strict=True):
        assert torch.equal(transform(clip[None])[0], mel)


@pytest.mark.parametrize("samples", [0, 1, 511, 512, 1023, 1024, 1025, 1026, 50_000])
def test_number_of_frames(samples):
    signal = torch.ones(2, samples)
    assert MelSpectrogram()(signal).shape == (2, FrontEnd().frames(samples), 128)
    assert FrontEnd().frames(50_000) == 98


def test_a_short_clip_is_followed_by_silence():
    short = torch.randn(1, 700, generator=torch.Generator().manual_seed(0))
    filled = torch.nn.functional.pad(short, (0, 1025 - 700))
    assert torch.equal(MelSpectrogram()(short), MelSpectrogram()(filled)[:, :2])


def test_reflect_is_numpys():
    signal = np.arange(10.0)
    np.testing.assert_array_equal(reflect(torch.from_numpy(signal), 4, 3), np.pad(signal, (4, 3), mode="reflect"))


@pytest.mark.parametrize("front_end", SETTINGS)
@pytest.mark.parametrize("seed", range(4))
def test_stream_equals_whole(front_end, seed):
    rng = np.random.default_rng(seed)
    samples = music(4, front_end.rate_hz, seed, channels=1)[: rng.integers(50_000, 60_000), 0]
    cuts = np.sort(rng.integers(0, len(samples), rng.integers(0, 40)))
    stream = MelStream(front_end)
    parts = [stream.push(block) for block in np.split(samples, cuts)] + [stream.finish()]
    whole = MelSpectrogram(front_end)(torch.from_numpy(samples)[None])[0].numpy()
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6, atol=1e-12 * whole.max())


@pytest.mark.parametrize("samples", [0, 1, 600, 1024, 1025])
def test_stream_of_a_short_signal(samples):
    signal = np.ones(samples, np.float32)
    stream = MelStream()
    mel = np.concatenate([stream.push(signal), stream.finish()])
    whole = MelSpectrogram()(torch.from_numpy(signal)[None])[0].numpy()
    np.testing.assert_allclose(mel, whole, rtol=1e-6, atol=1e-12 * whole.max())


def test_stream_does_not_keep_what_it_is_lent():
    block = np.full(3000, 0.5, np.float32)
    stream, untouched = MelStream(), MelStream()
    first, other = stream.push(block), untouched.push(block.copy())
    block[:] = 9
    np.testing.assert_array_equal(first, other)
    np.testing.assert_array_equal(stream.finish(), untouched.finish())


@pytest.mark.parametrize(
    "setting", [{"n_fft": 2047}, {"hop_samples": 1024}, {"high_hz": 9000}, {"low_hz": 8000}, {"bands": 0}, {"win": 1}]
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        FrontEnd(**setting)
