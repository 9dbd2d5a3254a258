"""The registry and its commands: what is listed, what is refused, and what a check reports."""

from dataclasses import replace

import pytest

from layouts import copies, sound
from myna import task as tasks
from myna.cli import main
from myna.errors import ConfigError, TaskError
from myna.task import BENCHMARKS, NAMES, Own, check, get, load, unpack
from myna.task.base import PARTS, Split, hash_ids

TOTALS = {"magnatagatune": 25860, "gtzan": 930, "giantsteps": 1763, "emomusic": 744}


def status(arguments) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return end.value.code


@pytest.fixture
def gtzan(tmp_path, monkeypatch):
    """A whole small GTZAN of three tracks, in the registry in place of the real one."""
    ids = {"train": ("blues.00001",), "valid": ("jazz.00002",), "test": ("rock.00003",)}
    for part, (stem,) in ids.items():
        (tmp_path / f"{part}_filtered.txt").write_text(f"{stem.split('.')[0]}/{stem}.wav\n")
        copies(sound(tmp_path / "beep.wav", 0.2), [tmp_path / f"genres/{stem.split('.')[0]}/{stem}.wav"])
    small = replace(get("gtzan"), splits={part: Split(1, hash_ids(of)) for part, of in ids.items()})
    monkeypatch.setitem(tasks.BENCHMARKS, "gtzan", small)
    return tmp_path


def test_the_four_benchmarks_and_their_totals():
    assert set(NAMES) == set(TOTALS)
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert sum(split.count for split in benchmark.splits.values()) == TOTALS[name]
        assert set(benchmark.splits) == set(PARTS)
        assert all(len(bytes.fromhex(split.sha256)) == 32 for split in benchmark.splits.values())
        assert benchmark.version >= 1
        assert benchmark.sources


def test_what_does_not_apply_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no task 'mtt': there are magnatagatune, gtzan"):
        load("mtt", tmp_path)
    with pytest.raises(ConfigError, match="--data DIR"):
        load("gtzan")
    with pytest.raises(ConfigError, match="it takes no lists"):
        load("emomusic", tmp_path, splits=tmp_path)
    with pytest.raises(ConfigError, match=r"options for a \.csv do not apply"):
        load("gtzan", tmp_path, own=Own(seed=1))
    with pytest.raises(ConfigError, match="no split lists to download"):
        check("emomusic", tmp_path, download=True)
    with pytest.raises(TaskError, match="nothing to unpack"):
        unpack("gtzan", tmp_path)
    with pytest.raises(TaskError, match="There is no folder"):
        load("giantsteps", tmp_path / "none")


def test_load_gives_sorted_items_and_the_version(gtzan):
    task = load("gtzan", gtzan)
    assert [item.id for item in task.items] == ["blues.00001", "jazz.00002", "rock.00003"]
    assert (task.name, task.version, task.answer, task.missing) == ("gtzan", 1, "single", ())
    assert load("gtzan", str(gtzan)) == task


def test_the_list_tells_what_to_download_and_where_it_goes(capsys):
    assert status(["tasks"]) == 0
    out = capsys.readouterr().out
    for piece in (
        *NAMES,
        "443 train, 197 valid, 290 test tracks",
        "mp3.zip.001",
        "train_filtered.txt",
        "DIR",
        "labels.csv",
    ):
        assert piece in out


def test_check_reports_and_exits_well(gtzan, capsys):
    assert status(["tasks", "check", "gtzan", "--data", gtzan]) == 0
    out, err = capsys.readouterr()
    assert out.count("as published") == 3
    assert hash_ids(["rock.00003"]) in out
    assert "3 items; 3 files begin as sound" in out
    assert err == ""


def test_check_names_bad_files_and_exits_with_3(gtzan, capsys):
    path = gtzan / "genres/jazz/jazz.00002.wav"
    path.write_text("no sound")
    assert status(["tasks", "check", "gtzan", "--data", gtzan]) == 3
    out, err = capsys.readouterr()
    assert f"jazz.00002\t{path}\tnot a RIFF file" in out
    assert "1 files cannot be used" in err
    assert "2 files begin as sound" in out


def test_check_says_which_split_is_wrong_and_exits_with_1(gtzan, capsys):
    (gtzan / "valid_filtered.txt").write_text("rock/rock.00004.wav\n")
    (gtzan / "test_filtered.txt").write_text("")
    assert status(["tasks", "check", "gtzan", "--data", gtzan]) == 1
    out, err = capsys.readouterr()
    assert "WRONG, other ids" in out
    assert "WRONG, 1 were wanted" in out
    assert "gtzan: other ids: the valid split" in err
    assert "gtzan: wrong count: the test split has 0 ids, 1 were wanted." in err


def test_check_of_a_table_tells_how_it_was_understood(gtzan, capsys):
    rows = [f"genres/{name.split('.')[0]}/{name}.wav,{n + start},{name[0]},{start}" for n, name in
            enumerate(["blues.00001", "jazz.00002", "rock.00003"]) for start in (0, 0.1)]  # fmt: skip
    (gtzan / "own.csv").write_text("path,bpm,who,start_s\n" + "\n".join(rows) + "\n")
    arguments = ["tasks", "check", gtzan / "own.csv", "--group", "who", "--columns", "bpm", "--split", "40/30/30"]
    codes = {seed: status([*arguments, "--seed", seed]) for seed in range(12)}
    assert set(codes.values()) == {0, 1}  # three groups fill three splits only now and then
    capsys.readouterr()
    assert status([*arguments, "--seed", next(seed for seed, code in codes.items() if code == 0)]) == 0
    out, err = capsys.readouterr()
    assert out.count("your own") == 3
    assert "was read as regression (guessed; --kind names another), 1 outputs, from the column bpm" in err
    assert "Split 40/30/30 by who: 2 train, 2 valid, 2 test." in err


def test_unpack_on_the_command_line(gtzan, capsys):
    assert status(["tasks", "unpack", "gtzan", "--data", gtzan]) == 1
    assert "None of genres.tar.gz, archive.zip is in" in capsys.readouterr().err
