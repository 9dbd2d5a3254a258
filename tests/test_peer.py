"""Models in one table: stretches of files become vectors, each file decoded once, whatever gives the vectors."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import myna.peer
from myna.audio import AudioStream, load
from myna.baseline import mel_statistics
from myna.embedder import Embedding, Myna
from myna.errors import AudioError, CheckpointError, ConfigError
from myna.mel import MelSpectrogram
from myna.model import ModelConfig, MynaModel
from myna.peer import embed_items, open_peer
from myna.task.base import Item
from sounds import music, write_audio

SMALL = {"dim": 16, "depth": 1, "heads": 2, "head_dim": 8, "mlp_dim": 32}


@pytest.fixture(scope="module")
def song(tmp_path_factory) -> Path:
    return write_audio(tmp_path_factory.mktemp("peer") / "song.flac", music(41.0, 22_050, channels=1), 22_050)


@pytest.fixture(scope="module")
def hybrid() -> Myna:
    return Myna(MynaModel(ModelConfig(patches=("square", "vertical"), **SMALL)), precision="fp32", batch=5)


def item(path, name="a", start_s=0.0, length_s=None) -> Item:
    return Item(name, Path(path), "train", 0, name, start_s, length_s)


class Ear:
    """An embedder that tells what it was given: first sample, last sample, mean."""

    hash, rate_hz, dim, settings = "ear", 16_000, 3, {}
    representations = {"all": slice(0, 3)}  # noqa: RUF012

    def __init__(self, window_samples=None, batch=1):
        self.window_samples, self.batch = window_samples, batch

    def embed_windows(self, samples):
        return np.stack([samples[:, 0], samples[:, -1], samples.mean(axis=1)], axis=1)


def test_a_whole_file_gives_what_myna_encode_gives(song, hybrid):
    ((number, found),) = embed_items(hybrid, [item(song)])
    wanted = hybrid.encode(song, windows=True)
    assert number == 0
    np.testing.assert_array_equal(found.embeddings, wanted.embeddings)
    np.testing.assert_array_equal(found.starts_s, wanted.starts_s)
    assert len(found.embeddings) == int(41.0 * 16_000) // 50_000


def test_stretches_are_sample_exact(song):
    samples = load(song).samples
    places = [(0.0, 30.0), (1.25, 3.0), (15.9, 0.2), (20.0, None), (40.5, 30.0)]
    items = [item(song, str(i), *place) for i, place in enumerate(places)]
    found = dict(embed_items(Ear(), items))
    for i, (start_s, length_s) in enumerate(places):
        stop = None if length_s is None else round((start_s + length_s) * 16_000)
        part = samples[round(start_s * 16_000) : stop]
        np.testing.assert_array_equal(found[i].embeddings[0, :2], [part[0], part[-1]])
        assert found[i].embeddings[0, 2] == pytest.approx(part.mean(), abs=1e-6)
        assert found[i].starts_s.tolist() == [round(start_s * 16_000) / 16_000]


def test_windows_begin_with_the_stretch_and_the_remainder_is_dropped(song):
    samples = load(song).samples
    ((_, found),) = embed_items(Ear(10_000, batch=4), [item(song, "a", 1.0, 3.0)])
    assert found.starts_s.tolist() == [1.0 + i * 0.625 for i in range(4)]  # 48,000 samples hold 4 windows
    np.testing.assert_array_equal(found.embeddings[:, 0], samples[16_000 : 16_000 + 40_000 : 10_000])
    assert not found.padded


def test_what_is_shorter_than_a_window_is_padded_and_said(song):
    ((_, found),) = embed_items(Ear(32_000), [item(song, "a", 40.0, 5.0)])
    assert found.padded
    assert found.embeddings.shape == (1, 3)
    assert found.embeddings[0, 1] == 0.0


def test_a_file_is_decoded_once_for_all_of_its_items_and_no_further_than_they_reach(song, monkeypatch):
    decoded = []

    class Counting(AudioStream):
        def __iter__(self):
            for block in super().__iter__():
                decoded.append(len(block))
                yield block

    monkeypatch.setattr(myna.peer, "AudioStream", Counting)
    items = [item(song, str(i), 4.0 * i, 4.0) for i in range(4)]
    assert len(list(embed_items(Ear(10_000, batch=3), items))) == 4
    assert sum(decoded) <= 17 * 16_000


def test_one_bad_file_does_not_stop_the_rest_and_is_told_for_each_item(song, tmp_path):
    bad = tmp_path / "bad.mp3"
    bad.write_text("no music")
    items = [item(bad, "a", 0.0, 1.0), item(song, "b", 0.0, 1.0), item(bad, "c"), item(song, "d", 60.0, 1.0)]
    found = dict(embed_items(Ear(4000), items))
    assert isinstance(found[1], Embedding)
    assert "not an audio file" in str(found[0])
    assert "not an audio file" in str(found[2])
    assert isinstance(found[3], AudioError)
    assert "the file ends before 60 s" in str(found[3])


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_every_item_comes_exactly_once_whatever_the_batch(tmp_path, batch):
    paths = [write_audio(tmp_path / f"{i}.wav", music(4.0, 16_000, seed=i), 16_000) for i in range(5)]
    items = [item(path, f"{path.stem}-{k}", float(k), 1.0) for path, k in itertools.product(paths, range(3))]
    found = list(embed_items(Ear(3000, batch), items, workers=3))
    assert sorted(number for number, _ in found) == list(range(15))
    assert all(result.embeddings.shape == (5, 3) for _, result in found)


def test_no_workers_are_refused(song):
    for workers in (0, -1):
        with pytest.raises(ConfigError, match=f"{workers} workers were asked for; at least 1"):
            list(embed_items(Ear(), [item(song)], workers=workers))


def test_both_halves_of_a_hybrid_come_from_one_pass(song, hybrid):
    assert hybrid.representations == {"square": slice(0, 16), "vertical": slice(16, 32), "both": slice(0, 32)}
    ((_, both),) = embed_items(hybrid, [item(song, "a", 0.0, 7.0)])
    for kind in ("square", "vertical"):
        half = Myna(hybrid.model, patches=kind, precision="fp32")
        assert list(half.representations) == [kind]
        ((_, alone),) = embed_items(half, [item(song, "a", 0.0, 7.0)])
        np.testing.assert_allclose(both.embeddings[:, hybrid.representations[kind]], alone.embeddings, atol=1e-5)


def test_a_baseline_hears_the_whole_stretch(song):
    ((_, found),) = open_peer("mel-statistics").embed_items([item(song, "a", 2.0, 20.0)])
    part = load(song).samples[32_000:352_000]
    wanted = mel_statistics(MelSpectrogram()(torch.from_numpy(part)[None])[0].numpy())
    np.testing.assert_allclose(found.vector, wanted, atol=1e-4)


def test_an_untrained_recipe_is_a_model_of_its_seed():
    one, again, other = open_peer("untrained:tiny"), open_peer("untrained:tiny"), open_peer("untrained:tiny", seed=1)
    assert one.about() == again.about()
    assert one.about() != other.about()
    assert list(one.representations) == ["square", "vertical", "both"]


def test_what_decides_the_vectors_is_told_apart():
    about = [open_peer("untrained:tiny", **options).about() for options in ({}, {"window_samples": 100_000})]
    about += [open_peer("untrained:tiny", patches=kind).about() for kind in ("square", "vertical")]
    assert len({str(one) for one in about}) == 4


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("untrained:huge", ConfigError, "huge"),
        ("nowhere", CheckpointError, "nowhere"),
        ("", ConfigError, "without a name"),
    ],
)
def test_a_model_that_is_not_there_is_one_sentence(name, error, says):
    with pytest.raises(error, match=says):
        open_peer(name)
