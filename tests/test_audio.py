"""Every codec, rate and kind of damage against signals that are known."""

import os
import subprocess
import sys
from contextlib import suppress

import av
import numpy as np
import pytest
import soxr

from myna.audio import AudioStream, Waveform, load, resample
from myna.errors import AudioError
from sounds import FORMATS, music, tone, write_audio

# relative error that the codec itself makes of `music`, with room
LOSSY = {"mp3": 0.1, "ogg": 0.1, "opus": 0.1, "m4a": 0.15, "wma": 0.1, "wav8": 0.05}
DELAY = {"wma": 2048 / 44_100}  # FFmpeg's decoder leaves out the first frame
SUFFIX = {"alac": "m4a", "wav24": "wav", "wav32f": "wav", "wav64f": "wav", "wav8": "wav"}


def read(path, rate_hz=16_000):
    with AudioStream(path, rate_hz) as stream:
        return np.concatenate(list(stream)), stream


def peak_hz(samples, rate_hz=16_000):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return spectrum.argmax() * rate_hz / len(samples)


@pytest.mark.parametrize("format", FORMATS)
def test_every_codec(tmp_path, format):
    rate_hz = 48_000 if format == "opus" else 44_100
    whole = music(4, rate_hz)
    path = write_audio(tmp_path / f"song.{SUFFIX.get(format, format)}", whole, rate_hz, format=format)
    samples, stream = read(path)
    mono = whole.astype(np.float64).mean(axis=1)[round(DELAY.get(format, 0) * rate_hz) :]
    true = soxr.resample(mono, rate_hz, 16_000, quality="HQ")
    both = min(len(samples), len(true))
    assert abs(len(samples) - len(true)) < 0.1 * 16_000
    error = np.sqrt(np.mean((samples[:both] - true[:both]) ** 2) / np.mean(true**2))
    assert error < LOSSY.get(format, 2e-3)
    assert samples.dtype == np.float32
    assert (stream.damaged, stream.channels, stream.source_rate_hz) == (0, 2, rate_hz)
    assert stream.duration_s == pytest.approx(4, abs=0.1)
    assert stream.decoded_s == len(samples) / 16_000


@pytest.mark.parametrize("rate_hz", [8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_any_rate_in_16_khz_out(tmp_path, rate_hz):
    samples, _ = read(write_audio(tmp_path / "tone.wav", tone(3, 1000, rate_hz, 0.5), rate_hz, format="wav32f"))
    assert len(samples) == pytest.approx(48_000, abs=1)
    middle = samples[8000:40_000]
    assert peak_hz(middle) == pytest.approx(1000, abs=0.5)
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.5, rel=1e-3)


def test_what_16_khz_cannot_hold_is_filtered_out(tmp_path):
    samples, _ = read(write_audio(tmp_path / "high.wav", tone(2, 12_000), format="wav32f"))
    assert np.abs(samples[4000:-4000]).max() < 1e-4


@pytest.mark.parametrize("format", ["wav", "flac", "m4a"])
def test_mono_is_the_mean_of_the_channels(tmp_path, format):
    left_only = tone(2, 500, 16_000, 0.5, channels=2) * [1, 0]
    path = write_audio(tmp_path / f"left.{format}", left_only, 16_000)
    assert np.sqrt(2 * np.mean(load(path).samples[4000:-4000] ** 2)) == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize(("channels", "format"), [(6, "flac"), (8, "wav"), (8, "flac"), (8, "wav32f")])
def test_many_channels(tmp_path, channels, format):
    shares = np.arange(1, channels + 1) / channels
    path = write_audio(tmp_path / "x", tone(1, 500, 16_000, 0.5, channels) * shares, 16_000, format=format)
    samples, stream = read(path)
    assert stream.channels == channels
    np.testing.assert_allclose(samples, tone(1, 500, 16_000, 0.5 * shares.mean())[:, 0], atol=1e-4)


def test_blocks_are_the_whole(tmp_path):
    path = write_audio(tmp_path / "long.wav", music(50, 22_050, channels=1), 22_050)
    with AudioStream(path) as stream:
        blocks = list(stream)
    assert [10 < len(block) / 16_000 < 30 for block in blocks[:-1]] == [True] * 3
    whole, _ = read(path)
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    with av.open(str(path)) as container:
        decoded = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    np.testing.assert_allclose(whole, resample((decoded / 2**15).astype(np.float32), 22_050, 16_000), atol=1e-5)


def test_a_truncated_mp3_gives_what_it_has(tmp_path):
    path = write_audio(tmp_path / "cut.mp3", music(20))
    whole, _ = read(path)
    os.truncate(path, path.stat().st_size // 2)
    half, stream = read(path)
    assert 9 < len(half) / 16_000 < 11
    np.testing.assert_allclose(half[: 9 * 16_000], whole[: 9 * 16_000], atol=1e-6)
    assert stream.decoded_s == len(half) / 16_000


@pytest.mark.parametrize("format", ["flac", "mka"])  # FFmpeg checks FLAC by itself only outside of other containers
def test_a_flac_with_a_damaged_middle_loses_the_middle_only(tmp_path, format):
    whole = music(20, 16_000, seed=3)
    path = write_audio(tmp_path / f"damaged.{format}", whole, 16_000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(content)
    samples, stream = read(path)
    assert stream.damaged == 1
    assert 19 < stream.decoded_s < 20
    true, sound = whole.mean(axis=1), 9 * 16_000
    np.testing.assert_allclose(samples[:sound], true[:sound], atol=1e-4)
    np.testing.assert_allclose(samples[-sound:], true[-sound:], atol=1e-4)
    assert np.abs(samples).max() < 1.01 * np.abs(true).max(), "damage was decoded, to noise"


def test_impossible_samples_become_silence(tmp_path):
    wave = tone(2, 440, 16_000)
    wave[5000:5010], wave[6000], wave[7000] = np.nan, np.inf, 1e30
    samples, stream = read(write_audio(tmp_path / "x.wav", wave, 16_000, format="wav32f"))
    assert stream.damaged == 1
    assert not samples[[*range(5000, 5010), 6000, 7000]].any()
    np.testing.assert_allclose(samples[:5000], wave[:5000, 0], atol=1e-6)


def test_rate_and_channels_may_change_midway(tmp_path):
    first = write_audio(tmp_path / "a.mp3", tone(4, 500, 44_100, channels=2))
    second = write_audio(tmp_path / "b.mp3", tone(4, 1500, 32_000), 32_000)
    both = tmp_path / "both.mp3"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    samples, stream = read(both)
    assert stream.decoded_s == pytest.approx(8, abs=0.3)
    assert peak_hz(samples[8000:48_000]) == pytest.approx(500, abs=1)
    assert peak_hz(samples[-48_000:-8000]) == pytest.approx(1500, abs=1)


@pytest.mark.parametrize("name", ["a song – Ünïcödé 音楽.mp3", "AC:DC.mp3", "http:%2f%d.mp3", "-i.mp3", "no suffix"])
def test_odd_names(tmp_path, name):
    path = write_audio(tmp_path / name, tone(1), format="mp3")
    assert load(path).duration_s == pytest.approx(1, abs=0.1)


def test_a_cover_is_no_music(tmp_path):
    path = tmp_path / "cover.mkv"
    with av.open(str(path), "w") as container:
        container.add_stream("mjpeg", rate=1, width=32, height=32, pix_fmt="yuvj420p")
        picture = av.VideoFrame.from_ndarray(np.zeros((48, 32), np.uint8), format="yuvj420p")
        container.mux(container.streams[0].encode(picture))
    with pytest.raises(AudioError, match="no audio stream"):
        load(path)


def refused(tmp_path, kind):
    path = tmp_path / "x.mp3"
    if kind == "text":
        path.write_text("Twelve bars and no music at all.\n" * 300)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "gone.mp3")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "header only":
        os.truncate(write_audio(path, tone(1), format="wav"), 44)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(100_000))
    elif kind == "playlist":
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://localhost:9/x.ts\n#EXT-X-ENDLIST\n")
    return path


REASONS = {
    "text": "not an audio file|nothing in the file",
    "empty": "the file is empty",
    "folder": "a folder",
    "link": "a link to nothing",
    "missing": "no such file",
    "pipe": "not a regular file",
    "header only": "nothing in the file could be decoded|not an audio file",
    "playlist": "not an audio file",
}


@pytest.mark.parametrize("kind", REASONS)
def test_what_cannot_be_used_says_why(tmp_path, kind):
    path = refused(tmp_path, kind)
    with pytest.raises(AudioError, match=REASONS[kind]) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_a_file_that_may_not_be_read(tmp_path):
    path = write_audio(tmp_path / "secret.wav", tone(1))
    path.chmod(0)
    for folder in [tmp_path, *tmp_path.parents]:
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    program = (
        "import os, sys; from myna.audio import load; from myna.errors import AudioError\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"  # root may read everything
        "try: load(sys.argv[1])\n"
        "except AudioError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert "may not be read" in done.stdout


def test_noise_named_mp3_makes_no_fuss(tmp_path, capfd):
    path = refused(tmp_path, "noise")
    with suppress(AudioError):  # or by chance some bytes look like frames
        load(path)
    os.truncate(write_audio(path, music(3)), 20_000)
    load(path)
    assert capfd.readouterr() == ("", "")


def test_a_tenth_of_a_second(tmp_path):
    assert load(write_audio(tmp_path / "x.wav", tone(0.1))).duration_s == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize(
    "samples",
    [np.zeros(3), np.zeros((2, 3), np.float32), np.array([0, np.nan], np.float32)],
)
def test_a_waveform_checks_itself(samples):
    with pytest.raises(AudioError):
        Waveform(samples)
    with pytest.raises(AudioError, match="0 Hz"):
        Waveform(np.zeros(3, np.float32), 0)


def test_duration():
    assert Waveform(np.zeros(24_000, np.float32)).duration_s == 1.5
