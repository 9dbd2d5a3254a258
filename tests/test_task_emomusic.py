"""EmoMusic: plain artist names decide the split, and targets stand on the scale of the development songs."""

import hashlib
import io
import random
import re
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from layouts import copies, sound, table
from myna.errors import TaskError
from myna.task import load_benchmark, unpack
from myna.task.base import Split, check_counts, check_facts, hash_ids
from myna.task.emomusic import BENCHMARK, plain_artist, read, scale, split_of

INFO = ["song_id", "file_name", "Artist", "Song title", "start of the segment (min.sec)",
        "end of the segment (min.sec)", "Genre", "Mediaeval 2013 set"]  # fmt: skip


def by_hand(artist):
    plain = " ".join(re.sub(r"[^a-z\s]", "", artist.lower(), flags=re.ASCII).split())
    return "train" if int(hashlib.sha1(plain.encode()).hexdigest(), 16) % 10 < 8 else "valid"


@pytest.mark.parametrize(
    ("artist", "plain"),
    [("The   Rolling\tStones ", "the rolling stones"), ("Beyoncé", "beyonc"), ("AC/DC 2", "acdc"),
     ("Björk & Co.", "bjrk co"), ("…", ""), ("\tAnamanaguchi\t", "anamanaguchi")],
)  # fmt: skip
def test_artists_are_written_plainly(artist, plain):
    assert plain_artist(artist) == plain


def test_the_split_is_that_of_a_plain_program():
    rng = random.Random(0)
    letters = "abcdefghijKLMNOP  \té2&-."
    parts = []
    for _ in range(2000):
        artist = "".join(rng.choices(letters, k=rng.randrange(1, 20)))
        parts.append(split_of(artist, "development"))
        assert parts[-1] == by_hand(artist)
        assert split_of(artist, "evaluation") == "test"
    assert parts.count("valid") / 2000 == pytest.approx(0.2, abs=0.04)
    # SHA-1 of nothing, as every standard gives it: what an artist without ASCII letters becomes
    assert 0xDA39A3EE5E6B4B0D3255BFEF95601890AFD80709 % 10 == 5
    assert split_of("久石譲", "development") == "train"


def test_the_scale_is_that_of_the_development_songs_alone():
    rng = np.random.default_rng(0)
    parts = {str(n): ["train", "valid", "test"][n % 3] for n in range(30)}
    values = {song: list(rng.normal(5, 1, 2)) for song in parts}
    scaled, (mean, deviation) = scale(values, parts)
    known = np.array([values[song] for song in values if parts[song] != "test"])
    np.testing.assert_allclose(mean, known.sum(0) / 20, atol=1e-12)
    np.testing.assert_allclose(deviation, np.sqrt(((known - known.sum(0) / 20) ** 2).sum(0) / 20), atol=1e-12)
    again = np.array([scaled[song] for song in values if parts[song] != "test"])
    np.testing.assert_allclose([again.mean(0), again.std(0)], [[0, 0], [1, 1]], atol=1e-12)
    moved, _ = scale({song: v if parts[song] != "test" else [9.0, 1.0] for song, v in values.items()}, parts)
    assert all(moved[song] == scaled[song] for song in parts if parts[song] != "test")
    with pytest.raises(TaskError, match="no two different ratings"):
        scale({"1": [1.0, 2.0], "2": [1.0, 3.0]}, {"1": "train", "2": "valid"})


def artists(part, count):
    return [name for name in (f"Band {'x' * n}" for n in range(1, 200)) if by_hand(name) == part][:count]


SONGS = {
    2: (artists("train", 1)[0], "development"),
    3: (artists("train", 2)[1], "development"),
    37: (artists("valid", 1)[0], "development"),
    1000: (artists("train", 1)[0], "evaluation"),  # its artist is in train too: the rule does not care
}


@pytest.fixture
def data(tmp_path):
    rows = [[n, f"{n}.mp3", f"\t{who} ", "A, song", "1.30", "2.15", "Rock\t", f"{which}\t"] for n, (who, which) in
            SONGS.items()]  # fmt: skip
    table(tmp_path / "annotations/songs_info.csv", INFO, rows, delimiter=",", quoted=True)
    header = ["song_id", "mean_arousal", "std_arousal", "mean_valence", "std_valence"]
    ratings = [[n, 1.0 + k, 0.5, 9.0 - 2 * k, 0.5] for k, n in enumerate(SONGS)]
    table(tmp_path / "annotations/static_annotations.csv", header, ratings, delimiter=",")
    copies(sound(tmp_path / "sound.mp3", 0.5), [tmp_path / f"clips_45seconds/{n}.mp3" for n in SONGS])
    return tmp_path


def small(data):
    ids = read(data).ids
    return replace(BENCHMARK, splits={part: Split(len(i), hash_ids(i)) for part, i in ids.items()}, facts={})


def test_the_rules_together(data):
    task = load_benchmark(small(data), data)
    assert [(item.id, item.part) for item in task.items] == [
        ("0002", "train"), ("0003", "train"), ("0037", "valid"), ("1000", "test")]  # fmt: skip
    # arousal 1 2 3 | 4 and valence 9 7 5 | 3: mean 2, 7; deviation sqrt(2/3), 2 sqrt(2/3)
    unit = (3 / 2) ** 0.5
    np.testing.assert_allclose(
        [item.label for item in task.items], np.array([[-1, 1], [0, 0], [1, -1], [2, -2]]) * unit
    )
    assert task.labels("train").dtype == np.float32
    assert read(data).facts["the mean arousal"] == 2.0
    assert task.outputs == ("arousal", "valence")


def test_full_songs_beside_the_clips_are_not_taken(data):
    copies(data / "sound.mp3", [data / f"all/{n}.mp3" for n in SONGS])
    assert {item.path.parent.name for item in read(data).items} == {"clips_45seconds"}


def test_a_name_in_another_encoding_does_no_harm(data):
    path = data / "annotations/songs_info.csv"
    before = read(data).ids
    path.write_bytes(path.read_bytes().replace(b"Band x ", b"B\xe9and x ").replace(b"A, song", b"\xc9tude"))
    assert read(data).ids["test"] == before["test"]


def test_missing_clips(data):
    (data / "clips_45seconds/37.mp3").unlink()
    with pytest.raises(TaskError, match="1 files cannot be used, 3 items can: 0037"):
        load_benchmark(small(data), data)
    assert load_benchmark(small(data), data, allow_missing=True).missing == ("0037",)


def test_tables_that_do_not_belong_together(data):
    path = data / "annotations/static_annotations.csv"
    whole = path.read_text()
    path.write_text("\n".join(whole.splitlines()[:-1]))
    with pytest.raises(TaskError, match="1 songs, such as 1000, are only in one of"):
        read(data)
    path.write_text(whole.replace("9.0", "nine"))
    with pytest.raises(TaskError, match="rating 'nine'"):
        read(data)
    path.unlink()
    with pytest.raises(TaskError, match=r"static_annotations\.csv was looked for"):
        read(data)


def test_an_empty_folder_of_the_right_name_hides_no_audio(data):
    wanted = [item.path.name for item in read(data).items]
    (data / "clips_45seconds").rename(data / "music")
    (data / "clips_45seconds").mkdir()
    assert [item.path for item in read(data).items] == [data / "music" / name for name in wanted]


def test_archives_are_unpacked_and_read(data):
    for name, folder in (("annotations.tar.gz", "annotations"), ("clips_45sec.tar.gz", "clips_45seconds")):
        with tarfile.open(data / name, "w:gz") as archive:
            for path in sorted((data / folder).iterdir()):
                content = path.read_bytes()
                member = tarfile.TarInfo(path.name if folder == "annotations" else f"{folder}/{path.name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    wanted = read(data).ids
    for folder in ("annotations", "clips_45seconds"):
        (data / folder).rename(data / f".{folder}")
    with pytest.raises(TaskError, match="not unpacked"):
        read(data)
    assert unpack("emomusic", data) == {data / "annotations": 2, data / "clips_45sec": 4}
    assert read(data).ids == wanted


def test_published_numbers_are_held_to_a_millionth():
    facts = {name: value + 5e-7 for name, value in BENCHMARK.facts.items()}  # what is printed is rounded
    assert check_facts("emomusic", facts, BENCHMARK.facts) == []
    assert check_facts("emomusic", facts | {"the mean arousal": 4.75607}, BENCHMARK.facts) != []
    ids = {part: tuple(f"{n:04d}" for n in range(split.count)) for part, split in BENCHMARK.splits.items()}
    assert len(check_counts("emomusic", ids, BENCHMARK.splits)) == 3
