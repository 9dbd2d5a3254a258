"""From files to a store: what is done, what is not done again, and what survives any end."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import mutagen
import numpy as np
import pytest
import torch

from myna import prepare as prepare_module
from myna.audio import load
from myna.errors import ConfigError, RunError, StoreError
from myna.mel import FrontEnd, MelSpectrogram
from myna.prepare import prepare
from myna.store import SCHEMA, Store
from myna.track import Track, find_tracks
from sounds import FORMATS, music, tone, write_audio

WAV = f"{list(FORMATS).index('wav')} wav.wav"
# what differs between two runs that did the same: which worker had which file
SAME = [name for name in SCHEMA if name not in ("file", "row")]

PROGRAM = """
import os, sys
from pathlib import Path
from myna.prepare import prepare
from myna.track import find_tracks

if __name__ == "__main__":
    tell = lambda at: print(at.done, flush=True)
    print("new", prepare(find_tracks([sys.argv[1]]), sys.argv[2], workers=2, progress=tell).new, flush=True)
"""


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """A folder with a song in each format, some trouble, and the reasons that are expected of it."""
    folder = tmp_path_factory.mktemp("music é 音") / "my songs"
    folder.mkdir()
    for number, format in enumerate(FORMATS):
        suffix = {"alac": "m4a", "wav24": "wav", "wav32f": "wav", "wav64f": "wav", "wav8": "wav"}.get(format, format)
        write_audio(folder / f"{number} {format}.{suffix}", music(4, 48_000, seed=number), 48_000, format=format)
    cut = write_audio(folder / "cut.mp3", music(20, seed=50))
    os.truncate(cut, cut.stat().st_size // 2)
    write_audio(folder / "eight.wav", tone(4, channels=8))
    (folder / "text.mp3").write_text("no music\n" * 500)
    (folder / "empty.mp3").touch()
    (folder / "gone.mp3").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder)
    write_audio(folder / "short.wav", tone(0.1))
    return folder


BAD = {"text.mp3": "not an audio file|nothing", "empty.mp3": "empty", "gone.mp3": "link", "short.wav": "0.10 s"}


@pytest.fixture(scope="module")
def prepared(songs, tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "s"
    told = []
    return prepare(find_tracks([songs]), out, workers=2, progress=told.append), out, told


@pytest.fixture
def copy(songs, prepared, tmp_path):
    """A store and its music, to be changed: with the same paths, sizes and times as when it was prepared."""
    kept = shutil.copytree(songs, tmp_path / "kept", symlinks=True)
    yield songs, shutil.copytree(prepared[1], tmp_path / "s")
    shutil.rmtree(songs)
    shutil.copytree(kept, songs, symlinks=True)


def manifest(out, names=SAME):
    return Store.open(out).manifest.select(names).to_pylist()


def assert_same(one, other):
    first, second = Store.open(one), Store.open(other)
    assert manifest(one) == manifest(other)
    assert first.hash == second.hash
    for track in range(len(first)):
        np.testing.assert_array_equal(first.mel(track), second.mel(track))
    assert sum(len(file) for file in first.files) == first.frames.sum(), "something is there twice"


def test_every_file_is_used_or_listed(songs, prepared):
    summary, out, told = prepared
    good = len(FORMATS) + 2
    assert (summary.files, summary.new, summary.reused, summary.failed) == (good + 4, good, 0, 4)
    rows = {Path(row["path"]).name: row for row in manifest(out)}
    for name, reason in BAD.items():
        assert rows[name]["status"] == "failed"
        assert any(part in rows[name]["reason"] for part in reason.split("|"))
    assert sorted(rows) == sorted(path.name for path in songs.iterdir() if path.name != "loop")
    assert len(Store.open(out)) == good
    assert rows["eight.wav"]["channels"] == 8
    assert 9 < rows["cut.mp3"]["decoded_s"] < 11
    assert [at.done for at in told] == list(range(1, good + 5))
    assert (told[-1].files, told[-1].failed, told[-1].left_s) == (good + 4, 4, 0)
    assert told[-1].hours == pytest.approx(summary.hours, rel=0.01)  # what is too short was decoded too


def assert_holds_spectrograms(store):
    transform = MelSpectrogram()
    for track, path in enumerate(store.paths):
        true = transform(torch.from_numpy(load(path).samples)[None])[0].numpy()
        np.testing.assert_allclose(store.mel(track), true, rtol=0.003, atol=1e-9 * true.max())


def test_the_store_holds_the_files_spectrograms(prepared):
    assert_holds_spectrograms(Store.open(prepared[1]))


def listing(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_nothing_to_do_touches_nothing(songs, prepared):
    before = listing(prepared[1])
    summary = prepare(find_tracks([songs]), prepared[1])
    assert (summary.new, summary.failed) == (0, 4)
    assert listing(prepared[1]) == before


def test_moved_and_retagged_files_are_not_decoded_again(copy):
    songs, out = copy
    hash_before = Store.open(out).hash
    (songs / "album").mkdir()
    for path in sorted(songs.glob("*.*")):
        if path.suffix in (".mp3", ".flac", ".ogg", ".opus", ".m4a") and path.name not in BAD:
            file = mutagen.File(path, easy=True)
            file["title"] = "Changed"
            file.save()
            path.rename(songs / "album" / f"new {path.name}")
    (songs / "1 flac.flac").symlink_to(songs / "album" / "new 1 flac.flac")
    summary = prepare(find_tracks([songs]), out, workers=1)
    assert (summary.new, summary.reused, summary.failed) == (0, len(FORMATS) + 3, 4)
    assert Store.open(out).hash == hash_before
    rows = {Path(row["path"]).name: row for row in manifest(out)}
    assert dict(rows["new 0 mp3.mp3"]["tags"])["title"] == "Changed"
    assert "0 mp3.mp3" not in rows


def test_only_what_is_new_or_changed_is_decoded(copy):
    songs, out = copy
    changed = [write_audio(songs / "added.wav", music(5, seed=77)), write_audio(songs / WAV, music(5, seed=78))]
    (songs / "empty.mp3").unlink()
    before = {row["path"]: row for row in manifest(out, ["path", "content_hash", "file", "row"])}
    summary = prepare(find_tracks([songs]), out, workers=1)
    assert (summary.new, summary.failed) == (2, 3)
    after = {row["path"]: row for row in manifest(out, ["path", "content_hash", "file", "row"])}
    assert after.keys() == before.keys() - {str(songs / "empty.mp3")} | {str(songs / "added.wav")}
    assert [path for path in after if after[path] != before.get(path)] == sorted(map(str, changed))
    assert_holds_spectrograms(Store.open(out))


def test_extra_columns(songs, tmp_path):
    (tmp_path / "list.csv").write_text(f"path,key\n{songs}/{WAV},C\n{songs}/empty.mp3,\n")
    tracks = find_tracks([tmp_path / "list.csv"])
    prepare(tracks, tmp_path / "s", workers=1)
    assert Store.open(tmp_path / "s").manifest["key"].to_pylist() == ["C", ""]
    changed = [Track(track.path, {"key": "D", "n": 1}, track.key) for track in tracks]
    assert prepare(changed, tmp_path / "s").new == 0
    assert Store.open(tmp_path / "s").manifest["key"].to_pylist() == ["D", "D"]
    with pytest.raises(ConfigError, match="own column status"):
        prepare([Track(tracks[0].path, {"status": 1})], tmp_path / "s")


def test_a_folder_keeps_what_a_manifest_told(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    for seed in range(3):
        write_audio(folder / f"{seed}.wav", tone(4, 300 + seed, 16_000), 16_000)
    (tmp_path / "list.csv").write_text("path,artist\n" + "".join(f"m/{seed}.wav,Anna {seed}\n" for seed in range(3)))
    prepare(find_tracks([tmp_path / "list.csv"]), tmp_path / "s", workers=1)
    before = listing(tmp_path / "s")
    prepare(find_tracks([folder]), tmp_path / "s", workers=1)
    assert listing(tmp_path / "s") == before
    write_audio(folder / "1.wav", tone(5, 310, 16_000), 16_000)
    write_audio(folder / "3.wav", tone(4, 303, 16_000), 16_000)
    prepare(find_tracks([folder]), tmp_path / "s", workers=1)
    assert Store.open(tmp_path / "s").manifest["artist"].to_pylist() == ["Anna 0", "Anna 1", "Anna 2", None]


def test_shards_together_are_the_whole(songs, prepared, tmp_path):
    tracks = find_tracks([songs])
    summaries = [prepare(tracks, tmp_path / "s", shard=(part, 2), workers=1) for part in range(2)]
    assert all(summary.files for summary in summaries)
    assert sum(summary.files for summary in summaries) == len(tracks)
    assert_same(tmp_path / "s", prepared[1])


def test_killed_at_any_moment_it_goes_on(songs, prepared, tmp_path):
    dice, out, done = random.Random(), tmp_path / "s", 0
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, program, songs, out], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        for _ in range(dice.randint(1, 4)):
            process.stdout.readline()
        time.sleep(dice.uniform(0, 0.05))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        with pytest.raises(StoreError, match="unfinished"):
            Store.open(out)
        kept = sum(file.read_bytes().count(b"\n") for file in (out / "journal").iterdir())
        assert kept > done, "what was finished before was done again or lost"
        done = kept
    summary = prepare(find_tracks([songs]), out, workers=2)
    assert summary.new < len(FORMATS)
    assert_same(out, prepared[1])
    assert not list((out / "journal").iterdir())


def test_interrupted_it_says_how_to_go_on(songs, tmp_path):
    def interrupt(_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="same command again"):
        prepare(find_tracks([songs]), tmp_path / "s", workers=1, progress=interrupt)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not multiprocessing.active_children()
    with pytest.raises(StoreError, match="unfinished"):
        Store.open(tmp_path / "s")


def test_two_at_once_are_refused(songs, tmp_path):
    refused = []

    def second(_):
        with pytest.raises(RunError, match="Another `myna prepare`") as caught:
            prepare(find_tracks([songs]), tmp_path / "s")
        refused.append(caught.value)

    prepare([Track(songs / WAV)], tmp_path / "s", workers=1, progress=second)
    assert len(refused) == 1


def die_elsewhere(path, home):
    if os.getpid() != home:
        os.kill(os.getpid(), signal.SIGKILL)
    return Path(path)


class Deadly(type(Path())):
    """The path of a file that kills any process that it is sent to."""

    def __reduce__(self):
        return die_elsewhere, (str(self), os.getpid())


def test_a_worker_that_dies_costs_its_file_only(songs, tmp_path):
    tracks = [Track(Deadly(songs / "0 mp3.mp3")), Track(songs / WAV), Track(songs / "1 flac.flac")]
    summary = prepare(tracks, tmp_path / "s", workers=1)
    assert (summary.new, summary.failed) == (2, 1)
    rows = {Path(row["path"]).name: row for row in manifest(tmp_path / "s")}
    assert "signal 9" in rows["0 mp3.mp3"]["reason"]
    assert "2 times" in rows["0 mp3.mp3"]["reason"]
    summary = prepare([Track(Path(str(track.path))) for track in tracks], tmp_path / "s", workers=1)
    assert (summary.new, summary.reused, summary.failed) == (1, 2, 0), "what ended the worker may have passed"


def test_a_full_disk_is_one_sentence(tmp_path):
    (tmp_path / "m").mkdir()
    for seed in range(3):
        write_audio(tmp_path / "m" / f"{seed}.wav", tone(4, 300 + seed, 16_000), 16_000)
    program = tmp_path / "program.py"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    program.write_text(PROGRAM.replace("import os, sys", limit + "import os, sys"))
    command = [sys.executable, program, tmp_path / "m", tmp_path / "s"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "could not be written" in done.stderr.splitlines()[-1]
    with pytest.raises(StoreError, match="unfinished"):
        Store.open(tmp_path / "s")
    prepare(find_tracks([tmp_path / "m"]), tmp_path / "s", workers=1)
    assert_holds_spectrograms(Store.open(tmp_path / "s"))


MEMORY = """
import resource, sys
from pathlib import Path
from myna.mel import FrontEnd, MelSpectrogram
from myna.prepare import _ingested, _job
from myna.track import Track
from myna.part import Part, Writer
part = Part(Path(sys.argv[2]), FrontEnd())
part.begin([])
row = _ingested(_job(Track(Path(sys.argv[1]))), Writer(part, 0), MelSpectrogram(), 50_000)
print(row["decoded_s"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_long_files_need_no_more_memory(tmp_path):
    minute, used = np.random.default_rng(0).bytes(8000 * 60), []
    for minutes in (3, 20):
        path = tmp_path / f"{minutes}.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 1, 8000, 0, "NONE", ""))
            for _ in range(minutes):
                file.writeframes(minute)
        command = [sys.executable, "-c", MEMORY, path, tmp_path / str(minutes)]
        decoded_s, kilobytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert float(decoded_s) == minutes * 60
        used.append(int(kilobytes) / 1024)
    # the spectrogram of the longer one alone would be 18 MB, its samples 73 MB
    assert used[1] - used[0] < 12


def test_a_new_least_length_is_minded(songs, prepared):
    tracks, known = [Track(songs / "short.wav"), Track(songs / WAV)], Store.open(prepared[1]).manifest.to_pylist()
    looked_into = {
        least: [job.path.name for job in prepare_module._plan(tracks, known, 16_000, least)[1]]
        for least in (1000, 50_000, 100_000)
    }
    assert looked_into == {1000: ["short.wav"], 50_000: [], 100_000: [WAV]}


def die_at_once(*_):
    sys.exit(7)


def test_workers_that_cannot_start_are_no_endless_loop(songs, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_work", die_at_once)
    with pytest.raises(StoreError, match="exit code 7"):
        prepare([Track(songs / WAV)], tmp_path / "s", workers=1)


def test_other_front_ends(songs, tmp_path):
    small = FrontEnd(rate_hz=8000, n_fft=512, hop_samples=128, bands=40, high_hz=4000)
    prepare([Track(songs / WAV)], tmp_path / "s", workers=1, front_end=small, min_samples=20_000)
    store = Store.open(tmp_path / "s")
    assert store.front_end == small
    assert store.mel(0).shape == (1 + 32_000 // 128, 40)
    with pytest.raises(StoreError, match="another folder"):
        prepare([Track(songs / WAV)], tmp_path / "s")


def test_bytes_take_half_the_space(songs, prepared, tmp_path):
    tracks, out = [Track(songs / WAV), Track(songs / "0 mp3.mp3")], tmp_path / "s"
    assert prepare(tracks, out, workers=1, dtype="uint8").new == 2
    store, usual = Store.open(out), Store.open(prepared[1])
    assert {file.suffix for file in (out / "data").iterdir()} == {".u8"}
    assert sum(file.stat().st_size for file in (out / "data").iterdir()) == store.frames.sum() * 128
    for track, name in enumerate(store.content_hashes):
        same, byte = usual.mel(usual.content_hashes.index(name)), store.mel(track)
        heard = (same > 1e-9) & (same < 1e5)
        assert heard.mean() > 0.5
        np.testing.assert_allclose(byte[heard], same[heard], rtol=0.07)  # 6.6 % and 0.2 %
    assert prepare(tracks, out, dtype="uint8").new == 0
    assert_refused_as_it_is(tracks, out)
    assert prepare(tracks[1:], out, workers=1, dtype="uint8").new == 0


def assert_refused_as_it_is(tracks, out):
    before = listing(out)
    with pytest.raises(StoreError, match="made with uint8, not with float16: prepare into another folder"):
        prepare(tracks, out)
    assert listing(out) == before


@pytest.mark.parametrize(
    "wrong", [{"shard": (2, 2)}, {"shard": (-1, 1)}, {"workers": 0}, {"min_samples": 0}, {"dtype": "int8"}]
)
def test_impossible_settings(songs, tmp_path, wrong):
    with pytest.raises(ConfigError):
        prepare([Track(songs / WAV)], tmp_path / "s", **wrong)
    with pytest.raises(ConfigError, match="no tracks"):
        prepare([], tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_names_that_are_no_utf8(songs, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    shutil.copy(songs / WAV, odd)
    assert prepare([Track(odd)], tmp_path / "s", workers=1).new == 1
    assert Store.open(tmp_path / "s").paths == [str(tmp_path) + "/caf\\xe9.wav"]
    assert prepare([Track(odd)], tmp_path / "s", workers=1).new == 0


def test_naming_one_file_keeps_the_others(songs, tmp_path):
    first, second = tmp_path / "a.wav", tmp_path / "b.wav"
    shutil.copy(songs / WAV, first)
    prepare([Track(first, {"mood": "calm"})], tmp_path / "s", workers=1)
    shutil.copy(songs / WAV, second)
    prepare([Track(second)], tmp_path / "s", workers=1)
    store = Store.open(tmp_path / "s")
    assert store.manifest["path"].to_pylist() == [str(first), str(second)]
    assert store.manifest["mood"].to_pylist() == ["calm", None]
    first.unlink()
    prepare([Track(second)], tmp_path / "s", workers=1)
    assert Store.open(tmp_path / "s").manifest["path"].to_pylist() == [str(second)]
