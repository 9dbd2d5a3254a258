"""GiantSteps: artists are never parted, doubtful songs are left out, and clips are whole."""

import hashlib
import random
from dataclasses import replace

import pytest

from layouts import copies, sound, table
from myna.errors import TaskError
from myna.key import name_key
from myna.task import check_benchmark, load_benchmark
from myna.task.base import Split, check_counts, hash_ids
from myna.task.giantsteps import BENCHMARK, clip_starts, keeps, read, split_artist, split_artists


def by_hand(name):
    return int(hashlib.sha1(name.lower().encode("utf-8")).hexdigest(), 16) % 116


def find_names(wanted, count):
    """Invent artists that hash into train or valid."""
    names = (f"Artist {n}" for n in range(10_000))
    return [name for name in names if (by_hand(name) < 100) == (wanted == "train")][:count]


def plain_rule(rows):
    """The rule again, in the plainest words."""
    valid = {}
    for row in rows:
        for name in row.split(","):
            valid[name.strip()] = by_hand(name.strip()) >= 100
    for _ in (1, 2):
        for row in rows:
            names = [name.strip() for name in row.split(",")]
            if [name for name in names if valid[name]]:
                for name in names:
                    valid[name] = True
    return {name: "valid" if is_valid else "train" for name, is_valid in valid.items()}


def test_artists_are_hashed_in_lower_case():
    for name in ("Bonobo", "BONOBO", "Röyksopp", "Ænima & Co."):
        assert split_artist(name) == ("train" if by_hand(name) < 100 else "valid")
    assert split_artist("Bonobo") == split_artist("bonobo")
    assert int(hashlib.sha1(b"abc").hexdigest(), 16) == 0xA9993E364706816ABA3E25717850C26C9CD0D89D  # the standard's
    assert split_artist("ABC") == ("train" if 0xA9993E364706816ABA3E25717850C26C9CD0D89D % 116 < 100 else "valid")
    parts = [split_artist(f"somebody {n}") for n in range(3000)]
    assert parts.count("valid") / 3000 == pytest.approx(16 / 116, abs=0.02)


def test_the_split_is_that_of_a_plain_program_on_random_tables():
    rng = random.Random(0)
    changed = 0
    for _ in range(50):
        names = [f"DJ {rng.randrange(10**6)}" for _ in range(60)]
        rows = [", ".join(rng.sample(names, rng.choice([1, 1, 2, 3]))) for _ in range(120)]
        assert split_artists(rows) == plain_rule(rows)
        changed += split_artists(rows, passes=1) != split_artists(rows)
    assert changed > 10  # the second pass matters, so the tables can tell


def test_two_passes_reach_two_hops_backwards_and_any_number_forwards():
    a, b, c, d = find_names("train", 4)
    (v,) = find_names("valid", 1)
    backwards = [f"{d}, {c}", f"{c}, {b}", f"{b}, {a}", f"{a}, {v}"]
    # each pass carries one hop against the order of the rows
    assert split_artists(backwards, passes=1) == {a: "valid", b: "train", c: "train", d: "train", v: "valid"}
    assert split_artists(backwards) == {a: "valid", b: "valid", c: "train", d: "train", v: "valid"}
    assert set(split_artists(backwards[::-1], passes=1).values()) == {"valid"}


def test_artists_differ_by_case_although_their_hash_does_not():
    train, valid = find_names("train", 1)[0], find_names("valid", 1)[0]
    part = split_artists([f"{train}, {valid}", train.upper()])
    assert part[train] == "valid"
    assert part[train.upper()] == "train"


@pytest.mark.parametrize(
    ("confidence", "key", "kept"),
    [("2", "C minor", True), ("1", "C minor", False), ("0", "-", False), ("2", "C minor / F# minor", False),
     ("2", "G minor/major", False), (" 2 ", "C minor ", True)],
)  # fmt: skip
def test_only_sure_songs_with_one_key_stay(confidence, key, kept):
    assert keeps(confidence, key) == kept


@pytest.mark.parametrize(
    ("length", "starts"),
    [(120.06, [0, 30, 60, 90]), (120.0, [0, 30, 60, 90]), (119.99, [0, 30, 60]), (30.0, [0]), (29.99, []), (0.0, []),
     (89.0, [0, 30])],
)  # fmt: skip
def test_clips_are_whole(length, starts):
    assert clip_starts(length) == starts


# ------------------------------------------------------------------------------------ small folders

MTG = "giantsteps-mtg-key-dataset-fd7b8c584f7bd6d720d170c325a6d42c9bf75a6b"
KEY = "giantsteps-key-dataset-master"


def songs():
    """id → artists, key, confidence"""
    a, b = find_names("train", 2)
    v, w = find_names("valid", 2)
    return {
        5061: (a, "D# minor", "2"),
        14344: (b, "D minor ", "2"),  # a space at the end, as in the real file
        61578: (a, "C minor / F# minor", "2"),
        16484: (v, "A minor", "1"),
        10981: (w, "-", "0"),
        297150: (a, "A-A# minor", "0"),
        299299: (v, "A# major", "2"),
        # a song that is left out still makes b's collaborator valid
        5881: (f"{b}, {w}", "A major", "0"),
    }


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return sound(tmp_path_factory.mktemp("sound") / "long.mp3", 61.0)


@pytest.fixture
def data(tmp_path, long):
    root = tmp_path / MTG
    for number, (_, key, _) in songs().items():
        (root / "md5").mkdir(parents=True, exist_ok=True)
        (root / f"md5/{number}.LOFI.md5").write_text("0" * 32)
        (root / "annotations/key").mkdir(parents=True, exist_ok=True)
        (root / f"annotations/key/{number}.LOFI.key").write_text(f"{key.lower()}\t2\t")
    header = ["ID", "ARTIST", "SONG TITLE", "MIX", "LABEL", "BP GENRE", "BP BPM", "BP KEY"]
    rows = [[number, who, "Title", "Original Mix", "Label", "techno", "128", "C min"] for number, (who, *_) in
            songs().items()]  # fmt: skip
    table(root / "annotations/beatport_metadata.txt", header, rows)
    table(
        root / "annotations/annotations.txt", ["ID", "MANUAL KEY", "C"], [[n, k, c] for n, (_, k, c) in songs().items()]
    )
    for number, key in {10089: "D minor", 846900: "Db major"}.items():
        for place, content in (("md5", "0" * 32), ("annotations/key", f"{key}\n"), ("annotations/genre", "techno")):
            (tmp_path / KEY / place).mkdir(parents=True, exist_ok=True)
            suffix = place.rsplit("/")[-1]
            # some revisions pad the numbers of the key files with zeros
            name = f"{number:07d}" if suffix == "key" else str(number)
            (tmp_path / KEY / place / f"{name}.LOFI.{suffix}").write_text(content)
    copies(long, [root / f"audio/{number}.LOFI.mp3" for number in songs()])
    copies(long, [tmp_path / f"audio/{number}.LOFI.mp3" for number in (10089, 846900)])
    return tmp_path


def test_the_rules_together(data):
    reading = read(data)
    # 14344's artist b is made valid by 5881, which is itself left out for its confidence
    assert reading.ids == {
        "train": ("0005061",),
        "valid": ("0014344", "0299299"),
        "test": ("0010089", "0846900"),
    }
    keys = {item.song: name_key(item.label) for item in reading.items}
    assert keys == {"0005061": "Eb minor", "0014344": "D minor", "0299299": "Bb major", "0010089": "D minor",
                    "0846900": "Db major"}  # fmt: skip
    assert [(item.id, item.start_s, item.length_s) for item in reading.items if item.song == "0005061"] == [
        ("0005061-0", 0.0, 30.0),
        ("0005061-1", 30.0, 30.0),
    ]
    assert reading.facts == {f"the number of 30 s clips in {part}": n for part, n in
                             {"train": 2, "valid": 4, "test": 4}.items()}  # fmt: skip
    assert reading.outputs[:2] == ("C major", "Db major")


def test_filtering_before_the_split_would_give_another_one():
    kept = [who for who, key, sure in songs().values() if keeps(sure, key)]
    everybody = [who for who, *_ in songs().values()]
    b = songs()[14344][0]
    assert split_artists(kept)[b] == "train"
    assert split_artists(everybody)[b] == "valid"


def test_missing_short_and_broken_songs_are_told_by_song(data):
    sound(data / f"{MTG}/audio/5061.LOFI.mp3", 20.0)
    (data / "audio/10089.LOFI.mp3").write_text("a page that says that the file has moved")
    (data / "audio/846900.LOFI.mp3").unlink()
    reading = read(data)
    why = {problem.id: problem.why for problem in reading.problems}
    assert why["0005061"].startswith("20.")
    assert "shorter than one clip of 30 s" in why["0005061"]
    assert why["0010089"] == "no audio file that can be read"
    assert why["0846900"] == "no such file"
    assert reading.facts == {}  # counts of clips say something only when all songs are there
    assert len(reading.ids["test"]) == 2
    small = replace(BENCHMARK, splits={part: Split(len(i), hash_ids(i)) for part, i in reading.ids.items()})
    task = load_benchmark(small, data, allow_missing=True)
    assert task.missing == ("0005061", "0010089", "0846900")


def test_check_names_songs_whose_sound_cannot_be_decoded(data):
    path = data / "audio/10089.LOFI.mp3"
    frames = path.read_bytes()
    path.write_bytes(b"\xff\xfb" + bytes(1000))
    reading = read(data)
    small = replace(
        BENCHMARK, splits={part: Split(len(i), hash_ids(i)) for part, i in reading.ids.items()}, facts=reading.facts
    )
    report = check_benchmark(small, data)
    assert [problem.id for problem in report.problems] == ["0010089"]
    assert report.wrong == ()
    path.write_bytes(frames)
    report = check_benchmark(small, data)
    assert report.well
    assert (report.items, report.decoded) == (10, 5)


def test_another_count_of_clips_is_an_error(data):
    reading = read(data)
    small = replace(BENCHMARK, splits={part: Split(len(i), hash_ids(i)) for part, i in reading.ids.items()})
    with pytest.raises(TaskError, match="the number of 30 s clips in train is 2, 3687 was wanted"):
        load_benchmark(small, data)


def test_a_repository_that_is_not_whole(data):
    (data / MTG / "md5/777.LOFI.md5").touch()
    with pytest.raises(TaskError, match=r"1 songs of .* have no annotation, such as 777"):
        read(data)
    (data / MTG / "md5/777.LOFI.md5").unlink()
    (data / KEY / "annotations/key/0010089.LOFI.key").write_text("no key")
    with pytest.raises(TaskError, match="has the key 'no key' for song 10089"):
        read(data)
    (data / MTG / "annotations/annotations.txt").unlink()
    with pytest.raises(TaskError, match="is the repository whole"):
        read(data)
    (data / MTG).rename(data / ".away")
    with pytest.raises(TaskError, match=r"The GiantSteps MTG key annotations .* was looked for"):
        read(data)


def test_a_chain_of_artists_that_the_rule_does_not_reach_is_an_error(data):
    a, b, c = find_names("train", 5)[2:]
    v = songs()[16484][0]
    path = data / MTG / "annotations/beatport_metadata.txt"
    chain = [(5061, f"{c}, {b}"), (14344, f"{b}, {a}"), (61578, f"{a}, {find_names('train', 6)[5]}"),
             (10981, f"{find_names('train', 6)[5]}, {v}")]  # fmt: skip
    table(path, ["ID", "ARTIST"], [*chain, *((n, v) for n in songs() if n not in dict(chain))])
    with pytest.raises(TaskError, match="are in both train and valid"):
        read(data)


def test_published_counts_with_other_ids():
    ids = {part: tuple(f"{n:07d}" for n in range(split.count)) for part, split in BENCHMARK.splits.items()}
    assert [sentence.split(":")[1] for sentence in check_counts("giantsteps", ids, BENCHMARK.splits)] == [
        " other ids"
    ] * 3
