"""The command line end to end on small files: exit status, what goes where, and one sentence for each mistake."""

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from myna.cli import main
from myna.progress import Bar, clock
from sounds import music, write_audio

TINY = ["--recipe", "tiny", "--dim", "32", "--depth", "1", "--heads", "2", "--head-dim", "16", "--mlp-dim", "64"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with music, one bad file, a store and a run."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "music").mkdir()
    for seed in range(6):
        write_audio(folder / "music" / f"{seed}.flac", music(5.0, 16_000, seed=seed), 16_000)
    (folder / "music" / "bad.mp3").write_text("no music")
    assert status(["prepare", folder / "music", "-o", folder / "store", "--workers", "1"]) == 3
    arguments = ["pretrain", folder / "store", "-o", folder / "run", *TINY, "--batch", "4", "--steps", "3"]
    assert status(arguments) == 0
    return folder


def status(arguments) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return end.value.code


def said(capsys) -> tuple[str, str]:
    output = capsys.readouterr()
    return output.out, output.err


def test_prepare_tells_of_failed_files_and_exits_with_3(place, capsys):
    assert status(["prepare", place / "music", "-o", place / "store"]) == 3
    out, err = said(capsys)
    assert out == ""
    assert "7 files" in err
    assert "0 new, 6 as they were, 1 failed" in err
    assert f"myna errors {place / 'store'}" in err


def test_errors_lists_path_and_reason(place, capsys):
    assert status(["errors", place / "store"]) == 0
    path, reason = said(capsys)[0].strip().split("\t")
    assert path == str(place / "music" / "bad.mp3")
    assert "not an audio file" in reason


def test_pretrain_prints_its_plan_before_it_starts(place, tmp_path, capsys):
    arguments = [
        "pretrain",
        place / "store",
        "-o",
        tmp_path / "run",
        *TINY,
        "--batch=4",
        "--steps=2",
        "--mask-ratio=0.5",
    ]
    assert status(arguments) == 0
    out, err = said(capsys)
    assert out == ""
    for piece in ("24 of 48 square, 24 of 48 vertical", "6 tracks, 6 clips", "2, 1 an epoch", "GB", "a step"):
        assert piece in err


@pytest.mark.parametrize(("depth", "how"), [(0, "2 clips at a time, in two passes"), (1, "2 clips at a time store")])
def test_the_plan_says_how_often_a_clip_is_embedded(place, tmp_path, capsys, depth, how):
    small = [*TINY, "--batch", "4", "--steps", "1", "--micro-batch", "2", "--decoder-depth", depth]
    assert status(["pretrain", place / "store", "-o", tmp_path / "run", *small]) == 0
    assert how in " ".join(said(capsys)[1].split())


def test_pretrain_resumes_without_being_told_the_recipe_again(place, tmp_path, capsys):
    run = tmp_path / "run"
    assert status(["pretrain", place / "store", "-o", run, *TINY, "--batch", "4", "--steps", "2"]) == 0
    assert status(["pretrain", place / "store", "-o", run, "--resume", "--steps", "4"]) == 0
    assert "2 are done" in said(capsys)[1]
    assert status(["info", run]) == 0
    assert "step-000000004" in said(capsys)[0]


def test_resume_with_the_recipe_named_keeps_the_length(place, tmp_path, capsys):
    run, small = tmp_path / "run", [*TINY, "--batch", "4"]
    assert status(["pretrain", place / "store", "-o", run, *small, "--steps", "2"]) == 0
    assert status(["pretrain", place / "store", "-o", run, *small, "--resume"]) == 0
    assert "2, 1 an epoch; 2 are done" in said(capsys)[1]


def test_resume_with_epochs_lengthens_a_run_begun_with_steps(place, tmp_path, capsys):
    run = tmp_path / "run"
    assert status(["pretrain", place / "store", "-o", run, *TINY, "--batch", "4", "--steps", "2"]) == 0
    assert status(["pretrain", place / "store", "-o", run, "--resume", "--epochs", "3"]) == 0
    assert "holds the model after 3 steps" in said(capsys)[1]


@pytest.mark.parametrize(("steps", "beyond"), [(2, ""), (1, " (1 asked for: nothing to do)")])
def test_a_run_that_is_there_already_is_left_as_it_is(place, tmp_path, capsys, steps, beyond):
    run = tmp_path / "run"
    assert status(["pretrain", place / "store", "-o", run, *TINY, "--batch", "4", "--steps", "2"]) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert status(["pretrain", place / "store", "-o", run, "--resume", "--steps", steps]) == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    err = " ".join(said(capsys)[1].split())
    assert f"holds the model after 2 steps{beyond}." in err
    assert "about 0:00" in err


def test_what_cannot_be_written_is_one_sentence(place, capsys):
    arguments = ["pretrain", place / "store", "-o", "/dev/null/x", *TINY, "--batch", "4", "--steps", "1"]
    assert status(arguments) == 1
    assert "could not be read or written" in said(capsys)[1]


def test_brackets_in_a_path_are_shown_as_they_are(place, tmp_path, capsys):
    out = tmp_path / "st[/x] [b]"
    assert status(["prepare", place / "music", "-o", out, "--workers", "1"]) == 3
    assert f"myna errors {out}" in said(capsys)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_always_told(place, tmp_path, number):
    # where a shell starts this in the background, interrupts are ignored unless a program takes them back
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import myna.cli; "
    code += "print('go', flush=True); myna.cli.main()"
    arguments = ["prepare", str(place / "music"), "-o", str(tmp_path / "store"), "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "go\n"
    time.sleep(0.5)  # its workers are still importing PyTorch
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command again" in err.lower()


def test_a_config_file_is_laid_over_the_recipe_and_flags_over_it(place, tmp_path, capsys):
    (tmp_path / "s.yaml").write_text("batch: 5\nsteps: 2\n")
    arguments = [
        "pretrain",
        place / "store",
        "-o",
        tmp_path / "run",
        *TINY,
        "--config",
        tmp_path / "s.yaml",
        "--steps",
        "1",
    ]
    assert status(arguments) == 0
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["train"]
    assert (settings["batch"], settings["steps"]) == (5, 1)
    said(capsys)


def test_embed_takes_whole_tracks(place, tmp_path):
    out = tmp_path / "whole.parquet"
    assert status(["embed", place / "music", "-m", place / "run", "-o", out, "--whole-track"]) == 3
    assert set(pq.read_table(out)["windows"].drop_null().to_pylist()) == {1}
    assert (
        status(["embed", place / "music", "-m", place / "run", "-o", tmp_path / "b", "--whole-track", "--hop", 1]) == 1
    )


def test_embed_and_info(place, tmp_path, capsys):
    out = tmp_path / "l.parquet"
    assert status(["embed", place / "music", "-m", place / "run", "-o", out, "--patches", "vertical"]) == 3
    assert pq.read_table(out).num_rows == 7
    assert status(["info", out, "--json"]) == 0
    told = json.loads(said(capsys)[0])
    assert told["kind"] == "library"
    assert told["rows"].startswith("7 tracks (1 failed, 6 ok)")
    assert told["vector"] == "32 numbers (vertical)"
    for what, kind in (("store", "store"), ("run", "run")):
        assert status(["info", place / what]) == 0
        assert said(capsys)[0].startswith(kind)
    assert status(["errors", out]) == 0
    assert "bad.mp3\t" in said(capsys)[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pretrain", "{store}", "-o", "{run}"], "already holds a run: continue it with --resume"),
        (["pretrain", "{store}", "-o", "{new}", "--btach", "4"], "no setting 'btach' (did you mean 'batch'?)"),
        (["pretrain", "{store}", "-o", "{new}", "--recipe", "hybird"], "did you mean 'hybrid'?"),
        (["pretrain", "{store}", "-o", "{new}", "--recipe", "tiny", "--batch", "600"], "has only 6 clips in 6 tracks"),
        (["pretrain", "{store}", "-o", "{new}", "--mask-ratio", "1"], "The setting mask_ratio cannot be '1'"),
        (["pretrain", "{music}", "-o", "{new}"], "is no mel store"),
        (["pretrain", "{store}", "-o", "{new}", "--device", "toaster"], "The device 'toaster' cannot be used"),
        (["prepare", "{new}", "-o", "{store}"], "There is no file or folder"),
        (["prepare", "{music}", "-o", "{new}", "--shard", "4/4"], "The shard '4/4' was given"),
        (["embed", "{music}", "-m", "{music}", "-o", "{new}"], "is no model folder"),
        (["info", "{music}"], "is none of a store, a run, a model or a library"),
        (["errors", "{run}"], "is neither a store nor a library"),
        (["pretrane"], 'Did you mean "pretrain"?'),
        (["prepare", "{music}"], "--out"),
        (["recipe", "bass"], "did you mean 'base'?"),
    ],
)
def test_mistakes_get_one_sentence_and_exit_with_1(place, tmp_path, capsys, arguments, sentence):
    names = {name: place / name for name in ("store", "run", "music")} | {"new": tmp_path / "new"}
    assert status([a.format(**names) for a in arguments]) == 1
    out, err = said(capsys)
    assert out == ""
    assert sentence in " ".join(err.split())
    assert "Traceback" not in err
    assert err.count("\n") <= 3
    assert not (tmp_path / "new").exists()


def test_recipe_prints_settings(capsys):
    assert status(["recipe"]) == 0
    assert "hybrid" in said(capsys)[0]
    assert status(["recipe", "hybrid"]) == 0
    assert "batch: 4096 " in said(capsys)[0]


def test_doctor_tells_of_machine_codecs_and_speed(capsys):
    assert status(["doctor"]) == 0
    out, _ = said(capsys)
    for piece in ("torch 2", "MP3 yes", "FLAC yes", "Opus yes", "ALAC yes", "GFLOP/s", "x real time", "windows/s"):
        assert piece in out


def test_the_installed_command_runs():
    command = os.path.join(os.path.dirname(sys.executable), "myna")
    ran = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "0.1.0"
    ran = subprocess.run(
        [sys.executable, "-m", "myna", "info", "/nowhere"], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("myna: /nowhere is none of")


def test_progress_without_a_terminal_is_plain_lines(capsys):
    with Bar("prepare", "files") as bar:
        for done in range(4):
            bar(done, 3, "1 failed")
    assert said(capsys)[1] == "prepare: 3/3 files, 1 failed, 0:00 left\n"


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(7.4, "0:07"), (200, "3:20"), (7500, "2:05:00"), (86_400 * 4 + 3 * 3600, "4 days 3 h")]
)
def test_clock(seconds, wanted):
    assert clock(seconds) == wanted


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--profile", "-1"], "-1 steps were to be profiled"),
        (["--shard", "\u00b2/3"], "i/N was wanted"),
    ],
)
def test_numbers_that_make_no_sense_are_one_sentence(place, tmp_path, capsys, arguments, sentence):
    verb = ["prepare", place / "music"] if "--shard" in arguments else ["pretrain", place / "store", *TINY]
    assert status([*verb, "-o", tmp_path / "out", *arguments]) == 1
    assert sentence in said(capsys)[1]
