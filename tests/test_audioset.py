"""AudioSet's lists: the right segments, found under every common name, cut out of long files, not out of cut ones."""

import json

import numpy as np
import pytest
import torch

from myna.audio import AudioStream, Stretch
from myna.audioset import Segment, below, find_segments, read_ontology, read_segments
from myna.cli import main
from myna.embedder import Myna
from myna.errors import AudioError, ConfigError
from myna.library import embed_library
from myna.mel import MelSpectrogram
from myna.model import ModelConfig, MynaModel
from myna.prepare import prepare
from myna.store import Store
from myna.track import Track, content_hash, find_tracks, named
from sounds import music, write_audio

LIST = """# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=7, num_segs=7, num_unique_labels=5, num_positive_labels=11
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_"
-0RWZT-miFs, 12.500, 22.500, "/m/03v3yw,/m/04rlf"
_1A2b3C4d5E, 30.000, 40.000, "/m/04rlf"
Y2345678901, 5.000, 15.000, "/m/0mkg"
0abcdefghij, 20.000, 30.000, "/m/04rlf,/t/dd00031"
9zyxwvutsrq, 30.000, 40.000, "/m/04rlf"
kAbsentFile, 30.000, 40.000, "/m/04rlf"
"""
ONTOLOGY = [
    {"id": "/m/04rlf", "name": "Music", "child_ids": ["/m/04szw", "/t/dd00031"]},
    {"id": "/m/04szw", "name": "Musical instrument", "child_ids": ["/m/0mkg"]},
    {"id": "/m/0mkg", "name": "Accordion", "child_ids": ["/m/04szw"]},  # a loop must not hang
    {"id": "/t/dd00031", "name": "Happy music", "child_ids": []},
    {"id": "/m/068hy", "name": "Domestic animals, pets", "child_ids": ["/m/07q6cd_"]},
    {"id": "/m/07q6cd_", "name": "Squeak", "child_ids": []},
]
RATE = 16_000


@pytest.fixture(scope="module")
def song():
    return music(40, 44_100)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Lists, ontology, and files under each common name: one is a whole video, the others are cut."""
    folder = tmp_path_factory.mktemp("audioset")
    (folder / "list.csv").write_text(LIST)
    (folder / "ontology.json").write_text(json.dumps(ONTOLOGY))
    files = folder / "audio"
    (files / "sub" / "deeper").mkdir(parents=True)
    write_audio(files / "--4gqARaEJE.wav", music(10, RATE, seed=0), RATE)
    write_audio(files / "-0RWZT-miFs.flac", music(45, RATE, seed=1), RATE)
    write_audio(files / "sub" / "Y_1A2b3C4d5E.wav", music(10, RATE, seed=2), RATE)
    write_audio(files / "sub" / "Y2345678901_5_15.wav", music(10.04, RATE, seed=3), RATE)
    write_audio(files / "sub" / "deeper" / "0abcdefghij_20000.wav", music(9.9, RATE, seed=4), RATE)
    write_audio(files / "9zyxwvutsrq_50.000_60.000.wav", music(10, RATE, seed=5), RATE)  # another part of the video
    write_audio(files / "something else.wav", music(10, RATE, seed=6), RATE)
    return folder


def ids(found):
    return sorted(track.extra["ytid"] for track in found.tracks)


def test_segments_are_read_as_they_are_listed(place):
    segments = list(read_segments(place / "list.csv"))
    assert len(segments) == 7
    assert segments[1] == Segment("-0RWZT-miFs", Stretch(12.5, 22.5), ("/m/03v3yw", "/m/04rlf"))


def test_without_the_ontology_music_is_what_is_labelled_so(place):
    found = find_segments([place / "list.csv"], [place / "audio"])
    assert ids(found) == ["-0RWZT-miFs", "0abcdefghij", "_1A2b3C4d5E"]
    assert found.missing == 2  # one without a file, and one whose file is of another part
    keys = {track.extra["ytid"]: track.key for track in found.tracks}
    assert keys["_1A2b3C4d5E"] == "sub/Y_1A2b3C4d5E.wav"
    assert keys["0abcdefghij"] == "sub/deeper/0abcdefghij_20000.wav"


def test_with_the_ontology_all_below_music_is_music(place):
    found = find_segments([place / "list.csv"], [place / "audio"], ontology=place / "ontology.json")
    assert ids(found) == ["-0RWZT-miFs", "0abcdefghij", "Y2345678901", "_1A2b3C4d5E"]
    extra = next(track.extra for track in found.tracks if track.extra["ytid"] == "0abcdefghij")
    assert extra == {
        "ytid": "0abcdefghij",
        "start_s": 20.0,
        "end_s": 30.0,
        "labels": "/m/04rlf|/t/dd00031",
        "label_names": "Music|Happy music",
    }
    unknown = next(track.extra for track in found.tracks if track.extra["ytid"] == "-0RWZT-miFs")
    assert unknown["label_names"] == "/m/03v3yw|Music"


def test_another_class_can_be_wanted(place):
    found = find_segments([place / "list.csv"], [place / "audio"], ontology=place / "ontology.json", wanted="/m/068hy")
    assert ids(found) == ["--4gqARaEJE"]


def test_below_reaches_every_depth_and_ends(place):
    ontology = read_ontology(place / "ontology.json")
    assert below("/m/04rlf", ontology) == {"/m/04rlf", "/m/04szw", "/m/0mkg", "/t/dd00031"}
    with pytest.raises(ConfigError, match="no class /m/none"):
        below("/m/none", ontology)


def test_the_store_holds_the_stretch_of_a_whole_video_and_all_of_a_cut_file(place, tmp_path):
    lists, audio = [place / "list.csv"], [place / "audio"]
    summary = prepare(find_segments(lists, audio).tracks, tmp_path / "s", workers=1)
    assert (summary.files, summary.failed) == (3, 0)
    store = Store.open(tmp_path / "s")
    rows = {row["ytid"]: row for row in store.manifest.to_pylist()}
    video, cut = rows["-0RWZT-miFs"], rows["_1A2b3C4d5E"]
    assert video["path"] == f"{place / 'audio' / '-0RWZT-miFs.flac'}#t=12.500,22.500"
    assert (video["duration_s"], video["decoded_s"], video["damaged"]) == (45, 10, 0)
    assert (cut["duration_s"], cut["decoded_s"]) == (10, 10)
    assert rows["0abcdefghij"]["decoded_s"] == pytest.approx(9.9)
    assert video["labels"] == "/m/03v3yw|/m/04rlf"
    with AudioStream(place / "audio" / "-0RWZT-miFs.flac") as stream:
        whole = np.concatenate(list(stream))
    wanted = MelSpectrogram()(torch.from_numpy(whole[200_000:360_000].copy())[None])[0].numpy()
    np.testing.assert_allclose(store.mel(store.paths.index(video["path"])), wanted, rtol=2.5e-3, atol=1e-12)
    again = prepare(find_segments(lists, audio).tracks, tmp_path / "s", workers=1)
    assert (again.new, again.reused) == (0, 3)
    # what is not named again stays as long as its file is there
    alone = prepare(find_tracks([place / "audio" / "--4gqARaEJE.wav"]), tmp_path / "s", workers=1)
    assert (alone.files, alone.new, alone.reused) == (4, 1, 3)


def test_two_stretches_of_a_file_are_two_tracks_and_a_moved_one_is_known(tmp_path):
    path = write_audio(tmp_path / "a.wav", music(40, RATE), RATE)
    tracks = [Track(path, stretch=Stretch(start, start + 10.0)) for start in (0.0, 20.0)] + [Track(path)]
    prepare(tracks, tmp_path / "s", workers=1)
    store = Store.open(tmp_path / "s")
    assert len(store) == len(set(store.content_hashes)) == 3
    assert sorted(store.frames.tolist()) == [313, 313, 1251]
    for track in tracks:
        assert content_hash(path, track.stretch) in store.content_hashes
    moved = path.rename(tmp_path / "b.wav")
    summary = prepare([Track(moved, stretch=track.stretch) for track in tracks], tmp_path / "s", workers=1)
    assert (summary.files, summary.new) == (3, 0)
    assert Store.open(tmp_path / "s").hash == store.hash


@pytest.mark.parametrize("format", ["mp3", "ogg", "m4a", "flac", "wav"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 5.0), (17.25, 27.25), (36.0, 40.0)])
def test_a_stretch_is_the_samples_of_the_whole(tmp_path, song, format, start, end):
    path = write_audio(tmp_path / f"a.{format}", song, 44_100)
    with AudioStream(path) as stream:
        whole = np.concatenate(list(stream))
    stretch = Stretch(start, end)
    with AudioStream(path, stretch=stretch) as stream:
        part = np.concatenate(list(stream))
        assert stream.stretch == stretch
    np.testing.assert_array_equal(part, whole[round(start * RATE) : round(end * RATE)])
    assert stream.decoded_s == pytest.approx(end - start, abs=1e-4)
    assert stream.damaged == 0
    assert stream.content_hash == content_hash(path, stretch) != content_hash(path)


def test_a_file_that_is_the_stretch_has_the_hash_of_a_file(tmp_path):
    path = write_audio(tmp_path / "a.flac", music(10.5, RATE), RATE)
    with AudioStream(path, stretch=Stretch(30.0, 40.0)) as stream:
        assert sum(map(len, stream)) == 168_000
    assert stream.content_hash == content_hash(path, Stretch(30.0, 40.0)) == content_hash(path)


def test_a_file_that_ends_before_its_stretch_says_so(tmp_path):
    path = write_audio(tmp_path / "a.flac", music(12, RATE), RATE)
    with (
        AudioStream(path, stretch=Stretch(30.0, 40.0)) as stream,
        pytest.raises(AudioError, match=r"lasts 12\.00 s, but 30\.00"),
    ):
        list(stream)


@pytest.mark.parametrize(
    ("start", "end"), [(1.0, 1.0), (-1.0, 5.0), (3.0, 2.0), (float("nan"), 3.0), (0.0, float("inf"))]
)
def test_impossible_stretches_are_refused(start, end):
    with pytest.raises(ConfigError, match="it must end after it begins"):
        Stretch(start, end)


def test_names_come_back_as_tracks(tmp_path):
    track = Track(tmp_path / "a.mp3", stretch=Stretch(30.0, 40.5))
    assert named(track.name) == track
    assert named(Track(tmp_path / "b #t=1.mp3").name) == Track(tmp_path / "b #t=1.mp3")
    odd = tmp_path / "c#t=1.000,2.000"
    odd.touch()
    assert named(str(odd)) == Track(odd)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# only\n--4gqARaEJE, 0.000, 10.000\n", "Line 2 .* is not `YTID"),
        ('--4gqARaEJE, 0.000, ten, "/m/04rlf"\n', "Line 1 .*could not convert"),
        ('--4gqARaEJE, 10.000, 0.000, "/m/04rlf"\n', "Line 1 .*must end after"),
        ("path,title\na.mp3,b\n", "Line 1 "),
        ('--4gqARaEJE, 0.000, 10.000, "/m/068hy"\n', "No segment in .* is labelled /m/04rlf"),
        ("", "No segment in"),
    ],
)
def test_what_is_no_list_is_refused(place, tmp_path, text, said):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ConfigError, match=said):
        find_segments([tmp_path / "list.csv"], [place / "audio"])


@pytest.mark.parametrize(
    "text", ["no json", "{}{", '[{"id": "/m/04rlf"}]', '["a"]', '[{"id": "a", "name": 1, "child_ids": []}]']
)
def test_what_is_no_ontology_is_refused(place, tmp_path, text):
    (tmp_path / "ontology.json").write_text(text)
    with pytest.raises(ConfigError, match="not AudioSet's ontology"):
        find_segments([place / "list.csv"], [place / "audio"], ontology=tmp_path / "ontology.json")


def test_missing_lists_and_missing_files_are_said(place, tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        find_segments([tmp_path / "none.csv"], [place / "audio"])
    write_audio(tmp_path / "x.wav", music(4, RATE), RATE)
    with pytest.raises(AudioError, match=r"None of 5 segments has its file .*-0RWZT-miFs\.mp3"):
        find_segments([place / "list.csv"], [tmp_path])


def test_a_library_refuses_stretches(tmp_path):
    model = Myna(MynaModel(ModelConfig(dim=8, depth=1, heads=1, head_dim=8, mlp_dim=8)))
    with pytest.raises(ConfigError, match="holds whole files"):
        embed_library(model, [Track(tmp_path / "a.mp3", stretch=Stretch(0.0, 1.0))], tmp_path / "l.parquet")


def test_the_command_line_takes_lists(place, tmp_path, capsys):
    def status(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        return end.value.code

    lists = ("--audioset-csv", place / "list.csv", "--ontology", place / "ontology.json")
    assert status("prepare", place / "audio", "-o", tmp_path / "s", "--workers", "1", *lists) == 0
    assert "4 segments of music have a file, 2 have none" in capsys.readouterr().err
    assert len(Store.open(tmp_path / "s")) == 4
    assert status("prepare", place / "audio", "-o", tmp_path / "s", *lists[2:]) == 1
    assert "--audioset-csv" in capsys.readouterr().err
