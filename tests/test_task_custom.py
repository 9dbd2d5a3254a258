"""Tables of the user's own: what kind they are, how they are split, and every mistake in one sentence."""

import random
from collections import defaultdict

import numpy as np
import pytest

from layouts import copies, sound
from myna.errors import ConfigError, TaskError
from myna.key import parse_key
from myna.task import Own, check, load
from myna.task.custom import parse_rule, read, split_groups

PARTS = ["train", "train", "train", "train", "valid", "valid", "test", "test"]


@pytest.fixture(scope="module")
def beep(tmp_path_factory):
    return sound(tmp_path_factory.mktemp("sound") / "beep.wav", 0.2)


@pytest.fixture
def make(tmp_path, beep):
    """Write a table of eight files with these columns; the files are there."""
    copies(beep, [tmp_path / f"music/{n}.wav" for n in range(8)])

    def write(splits=PARTS, paths=None, **columns):
        paths = paths or [f"music/{n}.wav" for n in range(len(next(iter(columns.values()))))]
        columns = {"path": paths, **columns} | ({"split": splits} if splits else {})
        lines = [columns.keys(), *zip(*columns.values(), strict=True)]
        path = tmp_path / "labels.csv"
        path.write_text("\n".join(",".join(map(str, line)) for line in lines) + "\n", encoding="utf-8")
        return path

    return write


def task_of(path, **options):
    return load(str(path), own=Own(**options) if options else None)


# ------------------------------------------------------------------------------------------- kinds


def test_one_class_a_row(make):
    task = task_of(make(genre=["dub", "techno"] * 4))
    assert (task.name, task.answer, task.outputs) == ("labels.csv", "single", ("dub", "techno"))
    assert [item.label for item in task.items] == [0, 1] * 4
    assert task.items[0].path.is_file()
    assert [item.part for item in task.items] == PARTS
    assert task.notes[0].startswith("labels.csv was read as single (guessed; --kind names another), 2 outputs")


@pytest.mark.parametrize("mark", ["|", ";"])
def test_tags_in_one_column(make, mark):
    task = task_of(make(tags=[f"slow{mark} calm", "fast", "", f"fast{mark}calm"] + ["slow|calm", "fast"] * 2))
    assert task.answer == "multi"
    assert task.outputs == ("calm", "fast", "slow")
    assert task.items[0].label == (1.0, 0.0, 1.0)
    assert task.items[2].label == (0.0, 0.0, 0.0)


def test_tags_in_columns_of_zeros_and_ones(make):
    task = task_of(make(slow=[1, 0] * 4, fast=[0, 1] * 4))
    assert (task.answer, task.outputs) == ("multi", ("slow", "fast"))
    assert task.labels("train").tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]


def test_numbers_are_scaled_by_train_and_valid(make):
    values = np.array([1.0, 2, 3, 4, 5, 6, 70, -80])
    task = task_of(make(bpm=values, energy=values[::-1] / 7))
    assert task.answer == "regression"
    known = values[:6]
    np.testing.assert_allclose(
        [item.label[0] for item in task.items], (values - known.mean()) / known.std(), rtol=1e-12
    )
    assert "bpm 3.5 ± 1.708" in task.notes[0]


@pytest.mark.parametrize("column", ["key", "label", "tonality"])
def test_keys_in_any_spelling(make, column):
    keys = ["C# minor", "Db minor", "8A", "F#m", "A minor", "5A", "C#m", "11A"]
    task = task_of(make(**{column: keys}))
    assert task.answer == "key"
    assert len(task.outputs) == 24
    assert [item.label for item in task.items] == [parse_key(key) for key in keys]
    assert task.notes[1] == "No row in train has C minor: no probe can learn it."


def test_letters_alone_are_classes_unless_the_column_says_key(make):
    assert task_of(make(label=["A", "B"] * 4)).answer == "single"
    assert task_of(make(key=["A", "B"] * 4)).answer == "key"


def test_whole_numbers_are_classes_in_a_column_called_label(make):
    assert task_of(make(label=[0, 1] * 4)).answer == "single"
    assert task_of(make(bpm=[120, 130] * 4)).answer == "regression"
    assert task_of(make(label=[0.5, 1] * 4)).answer == "regression"


def test_the_kind_and_the_columns_can_be_named(make):
    path = make(year=[1990, 2000] * 4, title=list("abcdefgh"), mood=["x|z", "y"] * 2 + ["x;z", "y"] * 2)
    with pytest.raises(TaskError, match="labels is not clear: it has path, year, title, mood, split"):
        task_of(path)
    assert task_of(path, columns=("mood",)).answer == "multi"
    task = task_of(path, columns=("year",), kind="single")
    assert task.outputs == ("1990", "2000")
    assert "as told" in task.notes[0]
    assert task_of(path, columns=("year",)).answer == "regression"
    with pytest.raises(ConfigError, match="no column none"):
        task_of(path, columns=("none",))
    with pytest.raises(ConfigError, match="single wants one column"):
        task_of(path, columns=("year", "title"), kind="single")


def test_stretches_of_files(make):
    task = task_of(make(label=["a", "b"] * 4, start_s=[0, 1.5] * 4, length_s=["", 2] * 4))
    assert [(item.id, item.start_s, item.length_s) for item in task.items[:2]] == [
        ("music/0.wav", 0.0, None), ("music/1.wav@1.5", 1.5, 2.0)]  # fmt: skip
    for bad in ("-1", "nan", "inf", "x"):
        with pytest.raises(TaskError, match=r"Row 1 of .* no sensible start_s"):
            task_of(make(label=["a", "b"] * 4, start_s=[bad] * 8))


# ------------------------------------------------------------------------------------------ splits


def test_groups_never_cross_splits_and_nothing_depends_on_other_rows():
    rng = random.Random(0)
    groups = [f"Artist {rng.randrange(300)}" for _ in range(3000)]
    parts = split_groups(groups, "60/20/20")
    seen = defaultdict(set)
    for group, part in zip(groups, parts, strict=True):
        seen[group].add(part)
    assert all(len(of) == 1 for of in seen.values())
    assert split_groups(groups[:100], "60/20/20") == parts[:100]
    assert split_groups(["ARTIST 7 "], "60/20/20") == split_groups(["artist 7"], "60/20/20")
    assert split_groups(groups, "60/20/20", seed=1) != parts


@pytest.mark.parametrize(("rule", "shares"), [("60/20/20", (0.6, 0.2, 0.2)), ("8/1/1", (0.8, 0.1, 0.1)),
                                              ("70/15/15", (0.7, 0.15, 0.15))])  # fmt: skip
def test_shares_are_met_on_average(rule, shares):
    assert parse_rule(rule) == pytest.approx(shares)
    parts = split_groups([str(n) for n in range(20_000)], rule)
    found = [parts.count(part) / 20_000 for part in ("train", "valid", "test")]
    assert found == pytest.approx(shares, abs=0.012)  # over three deviations of the largest


@pytest.mark.parametrize("rule", ["60/40", "60/20/20/0", "a/b/c", "100/0/0", "60/20/-20", "nan/1/1", ""])
def test_rules_that_are_none(rule):
    with pytest.raises(ConfigError, match="as in 60/20/20"):
        parse_rule(rule)


def test_a_rule_with_a_group_is_told(make):
    artists = [*"aabbccd", ""]
    path = make(splits=None, label=["x", "y"] * 4, artist=artists)
    # so few groups leave a split empty with most seeds
    groups = [artist or f"music/{n}.wav" for n, artist in enumerate(artists)]
    wanted = [{"train"}, {"valid"}, {"test"}]
    seed = next(s for s in range(200) if {frozenset(split_groups(groups, "40/30/30", s)[k : k + 2]) for k in (0, 2, 4)}
                == set(map(frozenset, wanted)))  # fmt: skip
    task = task_of(path, split="40/30/30", group="artist", seed=seed)
    by_artist = defaultdict(set)
    for item, artist in zip(task.items, artists, strict=True):
        by_artist[artist].add(item.part)
    assert all(len(of) == 1 for of in by_artist.values())
    assert "Split 40/30/30 by artist: " in task.notes[1]
    assert "1 rows have no artist" in task.notes[1]
    assert task == task_of(path, split="40/30/30", group="artist", seed=seed)


def test_an_interval_draws_rows_of_one_group_or_else_of_one_file_together(make):
    labels = ["x", "y"] * 4
    artists = [*"abaBccd", ""]
    task = task_of(make(label=labels, artist=artists), group="artist")
    assert [item.group for item in task.items] == [*"ababccd", "music/7.wav"]
    paths = [f"music/{n}.wav" for n in [*range(7), 6]]
    task = task_of(make(label=labels, start_s=[0] * 7 + [0.1], paths=paths), columns=("label",))
    assert {item.id: item.group for item in task.items} == dict(
        zip([*paths[:7], "music/6.wav@0.1"], paths, strict=True)
    )


def test_songs_are_files_whatever_they_are_grouped_by(make):
    keys = ["C", "D", "E", "F"] * 2
    task = task_of(make(key=keys, artist=[*"aabbccdd"]), group="artist")
    assert [item.song for item in task.items] == [f"music/{n}.wav" for n in range(8)]
    paths = ["music/0.wav", "./music/0.wav", *(f"music/{n}.wav" for n in range(2, 8))]
    with pytest.raises(TaskError, match=r"music/0.wav several keys"):
        task_of(make(key=keys, paths=paths))
    task = task_of(make(key=["C", *keys[:7]], paths=paths))
    assert [item.song for item in task.items][:2] == ["music/0.wav"] * 2


def test_splits_go_by_many_names(make):
    names = ["train", "Training", "TRAIN", "train", "val", "dev", "test", "testing"]
    assert [item.part for item in task_of(make(splits=names, label=["a", "b"] * 4)).items] == PARTS


# ---------------------------------------------------------------------------------------- mistakes

LABELS = ["a", "b"] * 4


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({"label": LABELS}, {"split": "60/20/20"}, "a column `split`, and --split 60/20/20 was given too"),
        ({"label": LABELS, "splits": None}, {}, "no column `split`: add one, or give a rule"),
        ({"label": LABELS, "splits": None}, {"split": "60/20/20", "group": "artist"}, "no column 'artist' to group by"),
        ({"label": LABELS, "splits": ["elsewhere"] * 8}, {}, "has the split 'elsewhere'"),
        ({"label": LABELS, "splits": ["train"] * 6 + ["test"] * 2}, {}, "No row of .* is in valid"),
        ({"label": ["a", "b", "", "b"] * 2}, {}, "Row 3 of .* has no label"),
        ({"label": ["a"] * 8}, {}, "one class only"),
        ({"label": [*"abababac"]}, {}, "has no row in train for c"),
        ({"key": ["C", "D", "H", "C"] * 2}, {}, "Row 3 of .*'H' is no key"),
        ({"tags": ["x|y"] * 4 + ["x"] * 4}, {}, "tags of .*, such as 'x', are on none or on all of the rows in train"),
        ({"bpm": [1, 2, 3, "x"] * 2}, {"kind": "regression"}, "Row 4 of .* has 'x' as bpm: a number was wanted"),
        ({"bpm": [1, 2, 3, "nan"] * 2}, {"kind": "regression"}, "Row 4 of .* has 'nan'"),
        ({"bpm": [1] * 6 + [2, 3]}, {}, "bpm of .* is the same in every row of train and valid"),
        ({"a": [0, 1, 2, 1] * 2, "b": [0, 1] * 4}, {"kind": "multi"}, "hold 0 or 1"),
        ({"label": LABELS, "paths": ["music/0.wav"] * 8}, {}, "the path music/0.wav in more than one split"),
        (
            {"label": LABELS, "paths": [f"music/{n}.wav" for n in range(7)] + ["music/../music//0.wav"]},
            {},
            "the path music/0.wav in more than one split",
        ),
        (
            {"label": LABELS, "artist": [*"bbcdefg", "B"]},
            {"group": "artist"},
            "the artist b in more than one split: put all of its rows into one",
        ),
        ({"tags": [""] * 8}, {}, "has no tag in any row"),
        (
            {"bpm": [1, 2, 3, 4, 5, 6, 7, 7]},
            {},
            "columns of .*, such as 'bpm', are the same in all of the rows in test",
        ),
        (
            {"label": LABELS, "paths": ["music/0.wav"] * 2 + [f"music/{n}.wav" for n in range(2, 8)]},
            {},
            "more than once",
        ),
        ({"label": LABELS, "paths": [""] * 8}, {}, "Row 1 of .* has an empty path"),
        ({"splits": PARTS, "paths": [f"music/{n}.wav" for n in range(8)]}, {}, "labels is not clear"),
    ],
)
def test_mistakes_are_one_sentence(make, columns, options, sentence):
    with pytest.raises((TaskError, ConfigError), match=sentence):
        task_of(make(**columns), **options)


def test_tables_that_are_none(tmp_path):
    with pytest.raises(TaskError, match="There is no table"):
        load(str(tmp_path / "none.csv"))
    (tmp_path / "x.csv").write_text("file,label\na.wav,b\n")
    with pytest.raises(TaskError, match="has no column path; it has file, label"):
        load(str(tmp_path / "x.csv"))
    (tmp_path / "x.csv").write_text("path,label\n")
    with pytest.raises(TaskError, match="has no rows"):
        load(str(tmp_path / "x.csv"))
    (tmp_path / "x.csv").write_text("path,label\na.wav,b,c\n")
    with pytest.raises(TaskError, match=r"Row 1 of .* has 3 values"):
        load(str(tmp_path / "x.csv"))


def test_missing_files(make):
    path = make(label=LABELS, paths=[f"music/{n}.wav" for n in range(7)] + ["music/gone.wav"])
    wanted = r"labels\.csv: 1 files cannot be used, 7 items can: music/gone\.wav .*no such file"
    with pytest.raises(TaskError, match=wanted):
        load(str(path))
    task = load(str(path), allow_missing=True)
    assert task.missing == ("music/gone.wav",)
    assert len(task.items) == 7
    assert read(path)[1][0].why == "no such file"
    report = check(str(path))
    assert [(part.count, part.right) for part in report.parts] == [(4, None), (2, None), (1, None)]
    assert (report.decoded, len(report.problems), report.well) == (7, 1, False)
    assert report.notes == task.notes
