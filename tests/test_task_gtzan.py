"""GTZAN: lists decide the splits, stems find the files, and what is no sound file is not taken for one."""

from dataclasses import replace

import pytest

from layouts import copies, sound
from myna.errors import ConfigError, TaskError
from myna.task import check_benchmark, load, load_benchmark
from myna.task.base import PARTS, Split, check_counts, hash_ids
from myna.task.gtzan import BENCHMARK, GENRES, SPLITS, download_lists, parse_list, read

# tracks of each genre in train, valid and test, as published
PER_GENRE = {"blues": (46, 23, 31), "classical": (48, 20, 31), "country": (45, 23, 30), "disco": (42, 22, 29),
             "hiphop": (47, 18, 27), "jazz": (43, 17, 27), "metal": (44, 20, 27), "pop": (41, 13, 30),
             "reggae": (43, 17, 26), "rock": (44, 24, 32)}  # fmt: skip
TRACKS = {"train": ["blues.00000", "jazz.00054", "rock.00003"], "valid": ["blues.00001"], "test": ["pop.00007"]}


def small():
    return replace(BENCHMARK, splits={part: Split(len(ids), hash_ids(ids)) for part, ids in TRACKS.items()})


def write_lists(folder, tracks=TRACKS):
    folder.mkdir(parents=True, exist_ok=True)
    for part, stems in tracks.items():
        lines = [f"{stem.split('.')[0]}/{stem}.wav" for stem in stems]
        (folder / f"{part}_filtered.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(params=["genres", "Data/genres_original", "archive/Data/genres_original", "."])
def data(tmp_path, request):
    write_lists(tmp_path)
    root = tmp_path / request.param
    stems = [stem for stems in TRACKS.values() for stem in stems] + ["disco.00000"]
    copies(sound(tmp_path / "sound.wav", 0.5), [root / stem.split(".")[0] / f"{stem}.wav" for stem in stems])
    for genre in GENRES:  # the re-upload has pictures in folders of the same names
        (tmp_path / "Data/images_original" / genre).mkdir(parents=True, exist_ok=True)
        (tmp_path / f"Data/images_original/{genre}/{genre}00000.png").touch()
    return tmp_path


def test_every_layout_gives_the_same_items(data):
    task = load_benchmark(small(), data)
    assert {part: [item.id for item in task.of(part)] for part in PARTS} == TRACKS
    assert [GENRES[item.label] for item in task.items] == [item.id.split(".")[0] for item in task.items]
    assert task.outputs == tuple(sorted(GENRES))
    assert all(item.path.is_file() and item.path.stem == item.id for item in task.items)


def test_au_files_are_found_by_their_stems(tmp_path):
    write_lists(tmp_path)
    for stems in TRACKS.values():
        for stem in stems:
            path = tmp_path / f"genres/{stem.split('.')[0]}/{stem}.au"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b".snd" + (24).to_bytes(4, "big") + (200).to_bytes(4, "big") + (3).to_bytes(4, "big")
                             + (22_050).to_bytes(4, "big") + (1).to_bytes(4, "big") + b"\0" * 200)  # fmt: skip
    report = check_benchmark(small(), tmp_path)
    assert report.well
    assert report.decoded == 5


def test_the_damaged_file_of_the_reupload_is_named_with_advice(data):
    (path,) = data.rglob("jazz.00054.wav")
    path.write_bytes(b"\x00\x01 whatever it is, it is no RIFF file" * 9)
    with pytest.raises(TaskError, match=r"1 files.*jazz\.00054 .*not a RIFF file.*take this file from another copy"):
        load_benchmark(small(), data)
    task = load_benchmark(small(), data, allow_missing=True)
    assert task.missing == ("jazz.00054",)
    assert len(task.items) == 4


def test_many_missing_files_are_counted_and_the_first_are_named(tmp_path):
    tracks = {part: [f"blues.{n:05d}" for n in range(k * 10, k * 10 + 10)] for k, part in enumerate(PARTS)}
    write_lists(tmp_path, tracks)
    sound(tmp_path / "genres/blues/blues.00000.wav", 0.5)
    benchmark = replace(BENCHMARK, splits={part: Split(10, hash_ids(ids)) for part, ids in tracks.items()})
    with pytest.raises(
        TaskError, match=r"29 files cannot be used, 1 items can: blues\.00001 .*blues\.00005.*and 24 more"
    ):
        load_benchmark(benchmark, tmp_path)


def test_check_decodes_what_begins_well_and_is_none(data):
    (path,) = data.rglob("pop.00007.wav")
    path.write_bytes(b"RIFF" + b"\x07" * 400)
    assert len(load_benchmark(small(), data).items) == 5  # at first sight
    report = check_benchmark(small(), data)
    assert [problem.id for problem in report.problems] == ["pop.00007"]
    assert not report.well
    assert report.decoded == 4
    assert [(part.count, part.right) for part in report.parts] == [(3, True), (1, True), (1, True)]


def test_lists_are_looked_for_where_the_user_says(data, tmp_path_factory):
    for name in data.glob("*_filtered.txt"):
        name.unlink()
    with pytest.raises(TaskError, match=r"train_filtered\.txt was looked for .* --download.* --splits"):
        load_benchmark(small(), data)
    lists = write_lists(tmp_path_factory.mktemp("lists"))
    assert len(load_benchmark(small(), data, splits=lists).items) == 5
    with pytest.raises(TaskError, match=r"was looked for in .*none"):
        load_benchmark(small(), data, splits=data / "none")


def test_lists_may_be_stems_or_paths_and_nothing_else():
    assert parse_list("blues/blues.00001.wav\r\n\n jazz.00002\ngenres/pop/pop.00003.au\n") == (
        "blues.00001", "jazz.00002", "pop.00003")  # fmt: skip
    for line in ("<html>", "polka/polka.00001.wav", "blues.wav", "blues"):
        with pytest.raises(TaskError, match="has the line"):
            parse_list(line)


def test_other_lists_are_refused(tmp_path):
    sound(tmp_path / "genres/blues/blues.00000.wav", 0.5)
    write_lists(tmp_path)
    with pytest.raises(TaskError, match="wrong count: the train split has 3 ids, 443 were wanted"):
        load("gtzan", tmp_path)
    counts = {part: [f"{genre}.{k * 300 + n:05d}" for genre in GENRES for n in range(PER_GENRE[genre][k])]
              for k, part in enumerate(PARTS)}  # fmt: skip
    write_lists(tmp_path, counts)
    with pytest.raises(
        TaskError, match=r"other ids: the train split has 443 ids, as wanted.*other ids: the test split"
    ):
        load("gtzan", tmp_path)


def test_no_audio_at_all(tmp_path):
    write_lists(tmp_path)
    with pytest.raises(TaskError, match=r"The audio .a folder with the genres blues to rock. was looked for"):
        read(tmp_path)


def test_lists_are_downloaded_only_if_they_have_the_right_ids(tmp_path, monkeypatch):
    source = write_lists(tmp_path / "source")
    for part, ids in TRACKS.items():
        monkeypatch.setitem(SPLITS, part, Split(len(ids), hash_ids(ids)))
    (tmp_path / "into").mkdir()
    written = download_lists(tmp_path / "into", source.as_uri())
    assert [path.name for path in written] == ["train_filtered.txt", "valid_filtered.txt", "test_filtered.txt"]
    assert all(path.read_bytes() == (source / path.name).read_bytes() for path in written)
    monkeypatch.setitem(SPLITS, "valid", Split(1, hash_ids(["blues.00002"])))
    (tmp_path / "again").mkdir()
    with pytest.raises(TaskError, match=r"other ids: the valid split.*was not kept"):
        download_lists(tmp_path / "again", source.as_uri())
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["train_filtered.txt"]
    (source / "train_filtered.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(TaskError, match="is not text"):
        download_lists(tmp_path / "again", source.as_uri())
    with pytest.raises(TaskError, match="make it first"):
        download_lists(tmp_path / "none", source.as_uri())


def test_check_downloads_only_when_asked(data):
    asked = []
    benchmark = replace(small(), fetch=lambda folder: asked.append(folder) or [])
    check_benchmark(benchmark, data)
    assert asked == []
    check_benchmark(benchmark, data, download=True)
    assert asked == [data]
    with pytest.raises(ConfigError, match="no split lists to download"):
        check_benchmark(replace(small(), fetch=None), data, download=True)


def test_the_published_counts_agree_with_the_classes():
    for k, part in enumerate(PARTS):
        assert SPLITS[part].count == sum(counts[k] for counts in PER_GENRE.values())


# the published validation list, as its author first wrote it: numbers from 1 in the order of genres
VALID = """1-12 51-61 101-111 169-177 201-208 210-219 228 242 243 246 250 301 303-305 307-315 347 349 353 368 369 373
376 391 396 482-499 503-511 526-533 601 602 607-612 617-621 637 638 669 677 678 682 683 711 754 756 759-763 782 784-787
862 863 871 873 875 877-879 886 893-900 939 950-957 972-986"""


def test_the_published_validation_list_has_the_hash():
    numbers = []
    for span in VALID.split():
        first, _, last = span.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    lines = [f"{genre}/{genre}.{n:05d}.wav" for genre, n in ((GENRES[(k - 1) // 100], (k - 1) % 100) for k in numbers)]
    ids = parse_list("\n".join(lines))
    assert [sum(stem.startswith(genre) for stem in ids) for genre in GENRES] == [of[1] for of in PER_GENRE.values()]
    assert check_counts("gtzan", {"valid": ids}, {"valid": SPLITS["valid"]}) == []
    swapped = (*ids[1:], "blues.00099")
    assert "other ids" in check_counts("gtzan", {"valid": swapped}, {"valid": SPLITS["valid"]})[0]
