"""The music that we compose: labels that are independent, sounds that really have them, files that come back."""

import csv
import dataclasses
from collections import Counter

import av
import librosa
import mir_eval
import mutagen
import numpy as np
import pytest
import scipy.signal
import scipy.stats

from myna import errors, songs, timbre
from myna.score import REGISTERS, STYLE, plan, play
from myna.songs import INSTRUMENTS, KEYS, STYLES, render, song, stems

RATE_HZ = songs.RATE_HZ


@pytest.fixture(scope="module")
def labels():
    return [song(7, index) for index in range(4000)]


@pytest.fixture(scope="module")
def rendered():
    chosen = [song(21, index, seconds=12) for index in range(48)]
    return [(s, render(s)) for s in chosen]


# --- labels


def test_a_song_is_a_function_of_seed_and_index():
    assert song(1, 2) == song(1, 2)
    assert (
        len({song(1, 2).key + song(1, 2).title, song(1, 3).key + song(1, 3).title, song(2, 2).key + song(2, 2).title})
        == 3
    )
    assert song(1, 2, seconds=5.0) == dataclasses.replace(song(1, 2), seconds=5.0)


def test_labels_are_within_their_ranges(labels):
    assert len(KEYS) == 24
    assert KEYS[3] == "Eb major"
    assert "Eb minor" in KEYS
    for s in labels:
        assert s.key in KEYS
        assert s.style in STYLES
        assert 60 <= s.tempo_bpm <= 180
        assert s.instruments
        assert list(s.instruments) == [name for name in INSTRUMENTS if name in s.instruments]
        assert set(s.instruments) & set(songs.TUNED)


def test_every_label_occurs_about_as_often(labels):
    for kind, expected in (("key", 24), ("style", len(STYLES))):
        counts = Counter(getattr(s, kind) for s in labels)
        assert len(counts) == expected
        assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3
    counts = Counter(name for s in labels for name in s.instruments)
    assert all(0.15 < counts[name] / len(labels) < 0.7 for name in INSTRUMENTS)


def _independence(a, b):
    table = np.zeros((len(set(a)), len(set(b))))
    rows, columns = sorted(set(a)), sorted(set(b))
    for x, y in zip(a, b, strict=True):
        table[rows.index(x), columns.index(y)] += 1
    return scipy.stats.chi2_contingency(table).pvalue


def test_key_tells_nothing_about_style_instruments_or_tempo(labels):
    keys = [s.key for s in labels]
    assert _independence(keys, [s.style for s in labels]) > 1e-3
    assert _independence(keys, [int(s.tempo_bpm // 30) for s in labels]) > 1e-3
    for name in INSTRUMENTS:
        assert _independence(keys, [name in s.instruments for s in labels]) > 1e-4


def test_style_tells_nothing_about_tempo_and_little_about_instruments(labels):
    assert _independence([s.style for s in labels], [int(s.tempo_bpm // 30) for s in labels]) > 1e-3
    for style in STYLES:
        of_style = [s for s in labels if s.style == style]
        for name in songs.TUNED:
            assert 0.08 < np.mean([name in s.instruments for s in of_style]) < 0.75


# --- notes


def test_a_bar_has_the_steps_of_its_patterns():
    for name, style in STYLE.items():
        for patterns in (style.kick, style.snare, style.hat, style.comp, style.bass):
            assert {len(pattern) for pattern in patterns} == {style.steps}, name
        assert set("".join(style.bass)) <= set(".RFTOA"), name
        assert set("".join(style.major + style.minor)) <= set("1234567"), name
        assert sum(style.harmony) == pytest.approx(1), name
        assert set(style.favours) <= set(songs.TUNED), name


@pytest.mark.parametrize("key", KEYS)
def test_notes_are_mostly_of_the_key_and_within_the_register(key):
    tonic, mode = key.split()
    intervals = (0, 2, 4, 5, 7, 9, 11) if mode == "major" else (0, 2, 3, 5, 7, 8, 10)
    root = "C Db D Eb E F Gb G Ab A Bb B".split().index(tonic)  # noqa: SIM905
    inside, total = 0, 0
    for style in STYLES:
        rng = np.random.default_rng(5)
        agreed = plan(key, style, 100.0, 8, rng)
        for instrument, part in (("piano", "chords"), ("flute", "melody"), ("organ", "pad"), ("synth bass", "bass")):
            notes = play(agreed, instrument, part, rng)
            low, high = REGISTERS[instrument]
            assert all(low - 2 <= note.pitch <= high + 14 for note in notes)
            inside += sum((note.pitch - root) % 12 in intervals for note in notes)
            total += len(notes)
    assert inside / total > 0.88


# --- sound


def test_rendering_is_a_pure_function(rendered):
    s, audio = rendered[3]
    np.testing.assert_array_equal(render(s), audio)
    assert not np.array_equal(render(dataclasses.replace(s, seed=s.seed + 1)), audio)


def test_the_mix_is_stereo_finite_and_never_clips(rendered):
    for s, audio in rendered:
        assert audio.shape == (round(s.seconds * RATE_HZ), 2)
        assert audio.dtype == np.float32
        assert np.isfinite(audio).all()
        assert np.abs(audio).max() < 1
    assert np.mean([np.abs(audio[:, 0] - audio[:, 1]).max() > 1e-3 for _, audio in rendered]) > 0.9


def test_loudness_varies_over_more_than_20_db(rendered):
    level_db = [20 * np.log10(np.sqrt(np.mean(audio**2))) for _, audio in rendered]
    assert max(level_db) - min(level_db) > 20
    assert min(level_db) > -45


def test_every_instrument_is_heard():
    for index in range(8):
        s = song(3, index, seconds=8)
        parts = stems(s)
        assert tuple(parts) == s.instruments
        power = {name: np.mean(stem.astype(float) ** 2) for name, stem in parts.items()}
        loudest = max(power.values())
        assert all(10 * np.log10(p / loudest) > -25 for p in power.values())
        whole = render(s)
        for name in s.instruments if len(s.instruments) > 1 else ():
            fewer = dataclasses.replace(s, instruments=tuple(i for i in s.instruments if i != name))
            assert np.abs(render(fewer) - whole).max() > 1e-3


def test_another_key_transposes_the_notes_and_leaves_the_drums():
    s = next(s for s in (song(3, i, seconds=6) for i in range(50)) if {"piano", "drums"} <= set(s.instruments))
    other = dataclasses.replace(s, key=KEYS[(KEYS.index(s.key) + 5) % 24])
    here, there = stems(s), stems(other)
    np.testing.assert_array_equal(here["drums"], there["drums"])
    assert np.abs(here["piano"] - there["piano"]).max() > 0.05


KRUMHANSL = {
    "major": [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],
    "minor": [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17],
}


def _estimated_key(audio):
    chroma = librosa.feature.chroma_stft(y=audio.mean(axis=1), sr=RATE_HZ, n_fft=8192, hop_length=4096).mean(axis=1)
    fit = {k: np.corrcoef(np.roll(KRUMHANSL[k.split()[1]], KEYS.index(k) % 12), chroma)[0, 1] for k in KEYS}
    return max(fit, key=fit.get)


def test_the_labelled_key_is_heard(rendered):
    scores = [mir_eval.key.weighted_score(s.key, _estimated_key(audio)) for s, audio in rendered]
    assert np.mean(scores) > 0.42  # by chance about 0.12
    shuffled = [mir_eval.key.weighted_score(s.key, KEYS[(KEYS.index(s.key) + 11) % 12]) for s, _ in rendered]
    assert np.mean(shuffled) < 0.2


def _periodicity(audio, lag_s):
    """The autocorrelation of the onset strength at a lag."""
    strength = librosa.onset.onset_strength(y=audio.mean(axis=1), sr=RATE_HZ, hop_length=256)
    strength = strength - strength.mean()
    correlation = np.correlate(strength, strength, "full")[len(strength) - 1 :] / np.dot(strength, strength)
    lags = np.arange(len(correlation)) * 256 / RATE_HZ
    return np.interp(lag_s, lags, correlation)


def test_the_labelled_tempo_is_heard(rendered):
    right, wrong = [], []
    for s, audio in rendered:
        if "drums" in s.instruments:
            beat_s = 60 / s.tempo_bpm
            right.append(max(_periodicity(audio, n * beat_s) for n in (2, 4)))
            wrong.append(max(_periodicity(audio, n * beat_s * 1.09) for n in (2, 4)))
    assert len(right) > 15
    assert np.mean(right) > 0.4
    assert np.mean(right) > 3 * np.mean(wrong)


def test_a_bank_is_the_sum_of_its_partials():
    rng = np.random.default_rng(0)
    cycles, amplitude, decay = rng.uniform(0.001, 0.4, (3, 7)), rng.normal(size=(3, 7)), rng.uniform(0, 1e-3, (3, 7))
    got = timbre._ring(cycles, amplitude, decay, 5000)
    time = np.arange(5000.0)
    wanted = amplitude[..., None] * np.exp(-decay[..., None] * time) * np.cos(2 * np.pi * cycles[..., None] * time)
    np.testing.assert_allclose(got, wanted.sum(axis=1), atol=2e-4)


@pytest.mark.parametrize("samples", [1000, 65536, 150_001])
@pytest.mark.parametrize("response", [1, 777, 40_000])
def test_convolving_by_pieces_is_convolving(samples, response):
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(n).astype(np.float32) for n in (samples, response))
    wanted = scipy.signal.fftconvolve(a.astype(float), b.astype(float))[:samples]
    np.testing.assert_allclose(timbre.convolve(a, b), wanted, atol=2e-3)


@pytest.mark.parametrize("family", timbre.FAMILIES)
def test_a_family_plays_the_pitch_it_is_given(family):
    rng, flat = np.random.default_rng(4), np.ones_like
    player = dataclasses.replace(timbre.draw_timbre(family, rng), vibrato_cents=0.0, breath=0.0)
    bank = timbre.note_bank(family, player, np.array([220.0]), 1.5, rng, flat, RATE_HZ)[0]
    power = np.abs(np.fft.rfft(bank * np.hanning(len(bank)))) ** 2
    hz = np.fft.rfftfreq(len(bank), 1 / RATE_HZ)
    near = np.abs(hz[:, None] / (220 * np.array([0.5, *range(1, 40)])) - 1).min(axis=1) < 0.02
    assert power[near].sum() > (0.05 if family == "bells" else 0.9) * power.sum()


# --- files


@pytest.mark.parametrize("codec", songs.CODECS)
def test_a_file_comes_back_in_every_codec(tmp_path, codec):
    s = song(5, 1, seconds=3)
    path = songs.write_song(s, tmp_path, codec=codec)
    assert path.suffix == f".{codec}"
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        rate_hz = stream.rate
        planar = av.AudioResampler(format="fltp", layout="stereo", rate=RATE_HZ)
        pieces = [out.to_ndarray() for frame in container.decode(stream) for out in planar.resample(frame)]
        pieces += [out.to_ndarray() for out in planar.resample(None)]
        assert stream.channels == 2
    assert rate_hz >= RATE_HZ
    audio, wanted = np.concatenate(pieces, axis=1), render(s).T
    assert audio.shape[1] == pytest.approx(wanted.shape[1], abs=3000)  # codecs pad and delay
    a, b = (
        librosa.feature.melspectrogram(y=x.mean(axis=0), sr=RATE_HZ, n_mels=32, fmax=7000).mean(axis=1)
        for x in (audio, wanted)
    )
    loud = b > 1e-3 * b.max()
    assert np.abs(10 * np.log10(a[loud] / b[loud])).mean() < 1.0
    tags = mutagen.File(path, easy=True)
    if codec != "wav":
        assert tags["title"] == [s.title]
        assert tags["artist"][0].startswith("The ")


def test_an_unknown_codec_is_an_error(tmp_path):
    with pytest.raises(errors.ConfigError, match=r"no codec 'wax'.*wav, flac"):
        songs.write_song(song(0, 0), tmp_path, codec="wax")


def test_a_corpus_is_files_and_labels(tmp_path):
    told = []
    written = songs.write_corpus(
        tmp_path / "a", 14, seed=9, seconds=1.5, workers=2, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(n + 1, 14) for n in range(14)]
    assert [s for _, s in written] == [song(9, index, seconds=1.5) for index in range(14)]
    assert all(path.is_file() for path, _ in written)
    assert {path.suffix[1:] for path, _ in written} == set(songs.CODECS)
    with (tmp_path / "a" / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, (path, s) in zip(rows, written, strict=True):
        assert tmp_path / "a" / row["path"] == path
        assert (row["title"], row["key"], row["style"]) == (s.title, s.key, s.style)
        assert float(row["tempo_bpm"]) == s.tempo_bpm
        assert tuple(row["instruments"].split("|")) == s.instruments
    alone = songs.write_song(written[0][1], tmp_path, codec=written[0][0].suffix[1:])
    assert alone.read_bytes() == written[0][0].read_bytes()
