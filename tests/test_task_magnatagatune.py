"""MagnaTagATune: folders decide the split, counts decide the tags, and three clips are left out."""

import random
import zipfile
from collections import Counter
from dataclasses import replace

import pytest

from layouts import copies, sound, table
from myna.errors import TaskError
from myna.task import load_benchmark, unpack
from myna.task.base import Split, check_counts, check_facts, hash_ids
from myna.task.magnatagatune import BENCHMARK, read, split_of, top_tags

# how many annotated clips each folder of the real benchmark has, without the three of zero bytes
FOLDERS = {"0": 1108, "1": 1543, "2": 1562, "3": 1238, "4": 2421, "5": 1604, "6": 1787, "7": 1163, "8": 1143, "9": 1772,
           "a": 1417, "b": 1948, "c": 1825, "d": 1677, "e": 1547, "f": 2105}  # fmt: skip
TAGS = [f"tag {n}" for n in range(52)]
CLIPS = [2, 6, 10, 11, 35644, 12, 13, 14]
PLACES = [f"{folder}/some_artist-a_song-{n}.mp3" for folder, n in zip("03bc6def", CLIPS, strict=True)]


def rows_of(clips=CLIPS, places=PLACES):
    """Tag k is on the first 52 - k of 60 clips that exist only in the table's imagination: every count differs."""
    rows = []
    for clip, place in zip(clips, places, strict=True):
        rows.append([clip, *("1" if clip != 2 and k < 3 else "0" for k in range(52)), place])
    return rows


def annotations(folder, extra=60):
    """Real-looking annotations: the eight clips, and many in the corrupt clips' company that only decide the tags."""
    rows = rows_of()
    # these are all the clip of zero bytes in another guise: annotated, counted, and in no split
    for n in range(extra):
        rows.append([(35644, 55753, 57881)[n % 3], *("1" if n < 52 - k else "0" for k in range(52)), f"6/x{n}.mp3"])
    return table(folder / "annotations_final.csv", ["clip_id", *TAGS, "mp3_path"], rows, quoted=True)


@pytest.fixture
def data(tmp_path):
    annotations(tmp_path)
    source = sound(tmp_path / "sound.mp3", 0.5)
    copies(source, [tmp_path / "mp3" / place for place in PLACES if "-35644" not in place])
    (tmp_path / "mp3/6").mkdir()
    (tmp_path / "mp3" / PLACES[4]).touch()  # as published: zero bytes
    return tmp_path


def test_folders_decide_the_split_and_the_clips_of_zero_bytes_are_in_none(data):
    reading = read(data)
    assert reading.ids == {
        "train": ("00002", "00006", "00010"),
        "valid": ("00011",),
        "test": ("00012", "00013", "00014"),
    }
    assert reading.problems == ()
    assert reading.items[0].path == data / "mp3/0/some_artist-a_song-2.mp3"
    assert all(item.group == item.id and item.length_s is None for item in reading.items)


def test_untagged_clips_stay_and_tags_are_counted_over_all_rows(data):
    reading = read(data)
    assert len(reading.outputs) == 50
    assert set(reading.outputs) == set(TAGS[:50])  # the corrupt clips' rows count
    labels = {item.id: item.label for item in reading.items}
    assert labels["00002"] == (0.0,) * 50
    assert [reading.outputs[n] for n, value in enumerate(labels["00014"]) if value] == ["tag 0", "tag 1", "tag 2"]
    assert reading.facts == {"the number of annotated clips": 68, "the number of positives of the 50th tag": 3}


def test_the_tags_are_those_of_a_plain_count_on_random_tables():
    rng = random.Random(0)
    for _ in range(20):
        rows = [{"clip_id": "1", "mp3_path": "1"} | {tag: str(int(rng.random() < n / 60)) for n, tag in enumerate(TAGS)}
                for _ in range(300)]  # fmt: skip
        counted = Counter(tag for row in rows for tag in TAGS if row[tag] == "1")
        ranked = sorted(counted.values(), reverse=True)
        if ranked[49] == ranked[50]:
            with pytest.raises(TaskError, match="equally common"):
                top_tags(rows)
        else:
            assert set(top_tags(rows)) == {tag for tag, count in counted.items() if count >= ranked[49]}


def test_a_tie_below_the_limit_is_no_error_and_at_the_limit_it_is():
    rows = [{"clip_id": "1", "mp3_path": "1", "a": "1", "b": "1", "c": "0"}, {"a": "1", "b": "1", "c": "1"}]
    assert top_tags(rows, 2) == ("a", "b")
    with pytest.raises(TaskError, match="tags a and b are equally common, at the limit of the 1"):
        top_tags(rows, 1)
    with pytest.raises(TaskError, match="3 tags with positives: 4 were wanted"):
        top_tags(rows, 4)


def test_a_path_outside_of_the_sixteen_folders():
    assert split_of("00001", "") is None
    with pytest.raises(TaskError, match="a folder from 0 to f was wanted"):
        split_of("00001", "g/x.mp3")


def test_missing_and_empty_files_are_told(data):
    (data / "mp3" / PLACES[0]).unlink()
    (data / "mp3" / PLACES[7]).write_bytes(b"")
    problems = {problem.id: problem.why for problem in read(data).problems}
    assert problems == {"00002": "no such file", "00014": "empty, zero bytes"}
    small = replace(
        BENCHMARK,
        splits={part: Split(len(ids), hash_ids(ids)) for part, ids in read(data).ids.items()},
        facts={},
    )
    with pytest.raises(TaskError, match=r"2 files cannot be used, 5 items can: 00002 .*no such file.*--allow-missing"):
        load_benchmark(small, data)
    task = load_benchmark(small, data, allow_missing=True)
    assert task.missing == ("00002", "00014")
    assert [item.id for item in task.items] == ["00006", "00010", "00011", "00012", "00013"]
    assert task.labels("train").shape == (2, 50)


def test_parts_of_the_archive_are_unpacked_and_read(data):
    with zipfile.ZipFile(data / "whole", "w") as archive:
        for path in sorted((data / "mp3").rglob("*.mp3")):
            archive.write(path, path.relative_to(data / "mp3"))
    content = (data / "whole").read_bytes()
    third = len(content) // 3 + 1
    for n in range(3):
        (data / f"mp3.zip.00{n + 1}").write_bytes(content[n * third : (n + 1) * third])
    (data / "mp3").rename(data.parent / "gone")
    with pytest.raises(
        TaskError, match=r"mp3\.zip\.001, mp3\.zip\.002, mp3\.zip\.003, not unpacked: `myna tasks unpack`"
    ):
        read(data)
    assert unpack("magnatagatune", data) == {data / "mp3": 8}
    assert len(read(data).items) == 7
    assert unpack("magnatagatune", data) == {}  # once is enough


def test_a_folder_named_a_elsewhere_is_not_the_audio(data):
    (data / "a").mkdir()
    assert read(data).items[0].path == data / "mp3" / PLACES[0]


def test_the_other_table_must_agree(data):
    header = ["clip_id", "track_number", "title", "mp3_path"]
    rows = [[row[0], "1", 'A "song"', row[-1]] for row in rows_of()] + [[999, "1", "no audio", ""]]
    path = table(data / "clip_info_final.csv", header, rows)
    table(data / "annotations_final.csv", ["clip_id", *TAGS, "mp3_path"], rows_of(), quoted=True)
    with pytest.raises(TaskError, match="tags with positives"):  # past the comparison
        read(data)
    path.write_text(path.read_text().replace("3/some", "4/some"))
    with pytest.raises(TaskError, match="name different files for 1 clips, such as 6"):
        read(data)


def test_the_full_list_is_held_to_its_counts_and_its_hash():
    """Counts as published with invented ids: the counts pass, and the hash tells."""
    ids, clip = {"train": [], "valid": [], "test": []}, 0
    for folder, count in FOLDERS.items():
        for _ in range(count):
            clip += 1
            ids[split_of(f"{clip:05d}", f"{folder}/x.mp3") or "train"].append(f"{clip:05d}")
    assert {part: len(found) for part, found in ids.items()} == {"train": 18706, "valid": 1825, "test": 5329}
    wrong = check_counts("magnatagatune", {part: tuple(found) for part, found in ids.items()}, BENCHMARK.splits)
    assert [sentence.split(":")[1] for sentence in wrong] == [" other ids"] * 3
    ids["test"].pop()
    assert "wrong count: the test split has 5328 ids, 5329 were wanted" in " ".join(
        check_counts("magnatagatune", {part: tuple(found) for part, found in ids.items()}, BENCHMARK.splits)
    )
    assert check_facts("magnatagatune", {"the number of annotated clips": 25862}, BENCHMARK.facts) != []


def test_a_small_copy_is_not_taken_for_the_benchmark(data):
    with pytest.raises(TaskError, match="wrong count: the train split has 3 ids, 18706 were wanted"):
        load_benchmark(BENCHMARK, data, allow_missing=True)
