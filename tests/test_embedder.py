import numpy as np
import pytest
import torch

from myna import Myna
from myna.audio import load
from myna.checkpoint import save_model
from myna.errors import AudioError, CheckpointError, ConfigError
from myna.mel import MelSpectrogram
from myna.model import ModelConfig, MynaModel
from sounds import music, tone, write_audio

SMALL = {"dim": 32, "depth": 2, "heads": 2, "head_dim": 16, "mlp_dim": 64}
RATE = 16_000


def small(*patches, **more) -> MynaModel:
    return MynaModel(ModelConfig(patches=patches or ("square", "vertical"), **SMALL, **more), seed=1)


@pytest.fixture(scope="module")
def myna():
    return Myna(small(), precision="fp32", batch=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("music")
    names = {"a.wav": 11.0, "b.flac": 7.0, "c.mp3": 4.0, "short.wav": 1.0, "d e é.ogg": 13.0}
    paths = []
    for seed, (name, seconds) in enumerate(names.items()):
        write_audio(folder / name, music(seconds, 22_050, seed=seed), 22_050)
        paths.append(folder / name)
    return paths


def test_windows_are_mel_patches_and_means(myna, files):
    """The whole path by hand: whole segments, each with its own spectrogram, mean over them."""
    samples = load(files[0]).samples
    count = len(samples) // 50_000
    segments = torch.from_numpy(samples[: count * 50_000]).view(count, 50_000)
    mel = MelSpectrogram()(segments)[:, :96]
    wanted = myna.model.encode(mel).detach().numpy()
    found = myna.encode(files[0], windows=True)
    np.testing.assert_allclose(found.embeddings, wanted, atol=1e-5)
    np.testing.assert_allclose(found.starts_s, np.arange(count) * 3.125)
    np.testing.assert_allclose(myna.encode(files[0]), wanted.mean(0), atol=1e-5)
    assert found.embeddings.shape == (3, 64)
    assert not found.padded


def test_one_path_a_list_and_an_array(myna, files):
    one, many = myna.encode(files[0]), myna.encode(files)
    assert one.shape == (64,)
    assert many.shape == (5, 64)
    assert many.dtype == np.float32
    samples = load(files[0]).samples
    np.testing.assert_allclose(myna.encode(samples, rate_hz=RATE), one, atol=1e-5)
    stereo = np.stack([samples * 1.5, samples * 0.5])
    np.testing.assert_allclose(myna.encode(stereo, rate_hz=RATE), one, atol=1e-4)
    assert myna.encode([]).shape == (0, 64)


def test_company_in_a_batch_changes_nothing(myna, files):
    together = myna.encode(files)
    for batch in (1, 3, 32):
        model = Myna(myna.model, precision="fp32", batch=batch)
        for number, path in enumerate(files):
            np.testing.assert_allclose(model.encode(path), together[number], atol=1e-5)
        np.testing.assert_allclose(model.encode(files[::-1]), together[::-1], atol=1e-5)


def test_any_rate_is_brought_to_16_khz(myna):
    low, high = (tone(4.0, 440.0, rate)[:, 0] for rate in (16_000, 48_000))
    a, b = myna.encode(low, rate_hz=16_000), myna.encode(high, rate_hz=48_000)
    assert np.abs(a - b).max() < 0.02 * np.abs(a).max()


def test_hop_overlaps_windows(myna, files):
    found = myna.encode(files[0], windows=True, hop_s=1.0)
    np.testing.assert_allclose(found.starts_s, np.arange(len(found.starts_s)))
    samples = load(files[0]).samples
    assert len(found.starts_s) == 1 + (len(samples) - 50_000) // RATE
    alone = myna.encode(samples[2 * RATE : 2 * RATE + 50_000], rate_hz=RATE)
    np.testing.assert_allclose(found.embeddings[2], alone, atol=1e-5)
    sparse = myna.encode(files[0], windows=True, hop_s=5.0)
    np.testing.assert_allclose(sparse.starts_s, [0.0, 5.0])


def test_a_short_file_is_padded_and_flagged(myna, files):
    found = myna.encode(files[3], windows=True)
    assert found.padded
    samples = load(files[3]).samples
    padded = np.pad(samples, (0, 50_000 - len(samples)))
    np.testing.assert_allclose(found.vector, myna.encode(padded, rate_hz=RATE), atol=1e-5)


def test_halves_of_a_hybrid(files):
    model = small()
    both = Myna(model, precision="fp32").encode(files[0])
    np.testing.assert_allclose(Myna(model, patches="square", precision="fp32").encode(files[0]), both[:32], atol=1e-5)
    np.testing.assert_allclose(Myna(model, patches="vertical", precision="fp32").encode(files[0]), both[32:], atol=1e-5)
    with pytest.raises(ConfigError, match="has square patches, not vertical"):
        Myna(small("square"), patches="vertical")


def test_longer_windows(files):
    long = Myna(small("vertical"), window_samples=100_000, precision="fp32").encode(files[0], windows=True)
    assert long.embeddings.shape == (1, 32)
    mel = MelSpectrogram()(torch.from_numpy(load(files[0]).samples[None, :100_000]))
    assert mel.shape[1] == 196
    np.testing.assert_allclose(long.vector, small("vertical").encode(mel)[0].detach().numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match="one patch needs 7680"):
        Myna(small(), window_samples=1000)
    with pytest.raises(ConfigError, match="one patch needs 24064"):  # 48 frames, of 16 and of 6
        Myna(small("128x6", "square"), window_samples=8000)


@pytest.mark.parametrize("positions", ["sincos", "alibi", "rope"])
@pytest.mark.parametrize("patches", [("square",), ("vertical",), ("square", "vertical"), ("32x4", "square")])
def test_a_whole_track_is_one_pass(files, positions, patches):
    model = small(*patches, positions=positions)
    whole = Myna(model, whole=True, precision="fp32")
    together = whole.encode(files, windows=True)
    for path, found in zip(files, together, strict=True):
        samples = load(path).samples
        if len(samples) < 50_000:
            assert found.padded
            samples = np.pad(samples, (0, 50_000 - len(samples)))
        assert found.embeddings.shape == (1, 32 * len(patches))
        wanted = model.encode(MelSpectrogram()(torch.from_numpy(samples[None])))[0].detach().numpy()
        np.testing.assert_allclose(found.vector, wanted, atol=1e-5)


def test_no_part_of_a_track_is_too_short_for_a_patch():
    """Two halves of a track that is a little longer than the shortest window would be."""
    one = Myna(small(), whole=True, window_samples=15 * 512, precision="fp32")
    found = one.encode(music(1, RATE, channels=1)[: 16 * 512, 0], rate_hz=RATE, windows=True)
    assert found.embeddings.shape == (1, one.dim)


def test_whole_tracks_of_patches_one_frame_wide():
    one = Myna(small("128x1"), whole=True, precision="fp32")
    assert one.encode(music(4, RATE, channels=1)[:, 0], rate_hz=RATE, windows=True).embeddings.shape == (1, one.dim)


def test_a_track_beyond_the_limit_is_cut_evenly(files):
    samples = load(files[0]).samples  # 11 s
    found = Myna(small(), whole=True, window_samples=5 * RATE, precision="fp32").encode(files[0], windows=True)
    third = len(samples) // 3
    np.testing.assert_allclose(found.starts_s, np.arange(3) * third / RATE)
    part = Myna(small(), window_samples=third, precision="fp32").encode(samples[third : 2 * third], rate_hz=RATE)
    np.testing.assert_allclose(found.embeddings[1], part, atol=1e-5)
    with pytest.raises(ConfigError, match="no hop"):
        Myna(small(), whole=True).encode(files[0], hop_s=1.0)


@pytest.mark.parametrize("positions", ["sincos", "alibi", "rope"])
def test_three_minutes_in_one_pass(positions):
    """2,808 tokens of each kind; one pass equals the model on the whole spectrogram."""
    sound = np.tile(music(6.0, RATE, seed=3)[:, 0], 30)[: 180 * RATE]
    model = small("square", "vertical", positions=positions)
    myna = Myna(model, window_samples=180 * RATE, precision="fp32")
    assert myna.batch == 1  # as much music as 16 segments is less than a window
    mel = MelSpectrogram()(torch.from_numpy(sound[None].astype(np.float32)))
    assert mel.shape[1] == 5626
    with torch.inference_mode():
        wanted = model.encode(mel)[0].numpy()
    np.testing.assert_allclose(myna.encode(sound, rate_hz=RATE), wanted, atol=1e-5)


def test_a_bad_file_is_named_and_does_not_stop_the_others(myna, files, tmp_path):
    bad = tmp_path / "bad.mp3"
    bad.write_text("no music")
    with pytest.raises(AudioError, match=r"bad\.mp3 cannot be used: not an audio file"):
        myna.encode([files[0], bad])
    results = dict(myna.stream([bad, files[0], tmp_path / "missing.wav", files[1]]))
    assert isinstance(results[0], AudioError)
    assert isinstance(results[2], AudioError)
    np.testing.assert_allclose(results[1].vector, myna.encode(files[0]), atol=1e-5)
    np.testing.assert_allclose(results[3].vector, myna.encode(files[1]), atol=1e-5)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 3, 4), np.float32), "shape"),
        (np.zeros((50_000, 2), np.float32), "shape"),
        (np.zeros(0, np.float32), "at least one sample"),
        (np.full(50_000, np.nan, np.float32), "finite"),
        (np.zeros(50_000, np.int16), "floats"),
    ],
)
def test_bad_arrays_are_refused(myna, samples, message):
    with pytest.raises(AudioError, match=message):
        myna.encode(samples, rate_hz=RATE)


def test_an_array_needs_its_rate(myna):
    with pytest.raises(ConfigError, match="rate_hz=44100"):
        myna.encode(np.zeros(50_000, np.float32))
    for rate_hz in (0, -16_000):
        with pytest.raises(ConfigError, match=f"rate of {rate_hz} Hz was given"):
            myna.encode(np.zeros(50_000, np.float32), rate_hz=rate_hz)


def test_from_pretrained(files, tmp_path):
    model = small()
    save_model(model, tmp_path / "m")
    loaded = Myna.from_pretrained(tmp_path / "m", device="cpu", precision="fp32")
    wanted = Myna(model, precision="fp32").encode(files[0])
    np.testing.assert_allclose(loaded.encode(files[0]), wanted, atol=1e-6)
    assert len(loaded.hash) == 16
    with pytest.raises(CheckpointError, match="no model at"):
        Myna.from_pretrained(tmp_path / "nothing")


def test_leaving_early_stops_the_decoders(myna, files):
    stream = myna.stream(files * 20, workers=3)
    next(stream)
    stream.close()  # would hang here if a decoder waited for a reader


def test_bf16_is_close(files):
    model = small()
    exact, rough = (Myna(model, precision=p).encode(files[0]) for p in ("fp32", "bf16"))
    cosine = exact @ rough / np.linalg.norm(exact) / np.linalg.norm(rough)
    assert 0.999 < cosine < 1
