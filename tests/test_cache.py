"""Embeddings are computed once, survive a kill, and are never taken from another model, task, file or setting."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from myna import library
from myna.cache import embed_task
from myna.errors import ConfigError, RunError, StoreError
from myna.peer import Peer
from myna.task.base import Item, Task
from sounds import music, write_audio


class Ear:
    """An embedder whose vectors are its windows' first two samples times `gain`; it counts what it is asked."""

    hash, rate_hz, dim, batch = "ear", 16_000, 2, 2
    representations = {"all": slice(0, 2)}  # noqa: RUF012

    def __init__(self, gain=1.0, window_samples=8000, hash="ear"):
        self.gain, self.window_samples, self.hash, self.asked = gain, window_samples, hash, 0

    @property
    def settings(self):
        return {"gain": self.gain}

    def embed_windows(self, samples):
        self.asked += len(samples)
        return (samples[:, :2] * self.gain).astype(np.float32)


@pytest.fixture
def task(tmp_path):
    parts = ("train", "valid", "test")
    paths = [write_audio(tmp_path / f"{i}.wav", music(2.2, 16_000, seed=i), 16_000) for i in range(6)]
    items = [Item(str(i), path, parts[i % 3], 0, str(i)) for i, path in enumerate(paths)]
    return Task("toy", 1, "single", ("x", "y"), tuple(items))


def same(a, b) -> bool:
    return a.of.keys() == b.of.keys() and all(np.array_equal(a.of[name], b.of[name]) for name in a.of)


def test_the_second_time_nothing_is_computed(task, tmp_path):
    ear = Ear()
    told = []
    first = embed_task(Peer("ear", ear), task, tmp_path / "kept", on_item=lambda *at: told.append(at))
    assert told[-1] == (6, 6, 0)
    asked = ear.asked
    again = embed_task(Peer("ear", ear), task, tmp_path / "kept")
    assert ear.asked == asked == 6 * 4
    assert same(first, again)
    assert first.hash == again.hash
    assert (first.reused, again.reused) == (0, 6)
    assert [path.suffix for path in (tmp_path / "kept").iterdir()] == [".parquet"]
    ((_, direct),) = Peer("ear", ear).embed_items(task.items[:1])
    np.testing.assert_array_equal(first.of["0"], direct.vector[None])


def test_windows_are_kept_when_they_are_wanted(task, tmp_path):
    found = embed_task(Peer("ear", Ear()), task, tmp_path, windows=True)
    means = embed_task(Peer("ear", Ear()), task, tmp_path)
    assert found.of["3"].shape == (4, 2)
    np.testing.assert_array_equal(means.of["3"][0], found.of["3"].mean(axis=0, dtype=np.float64).astype(np.float32))
    assert same(found, embed_task(Peer("ear", Ear()), task, tmp_path, windows=True))


@pytest.mark.parametrize("change", [{"gain": 2.0}, {"window_samples": 4000}, {"hash": "other"}])
def test_another_model_or_setting_is_computed_anew(task, tmp_path, change):
    embed_task(Peer("ear", Ear()), task, tmp_path)
    other = Ear(**change)
    embed_task(Peer("ear", other), task, tmp_path)
    assert other.asked > 0


def test_a_file_in_the_wrong_place_is_not_believed(task, tmp_path):
    """Even under the right name, vectors of another model are not used."""
    kept = tmp_path / "kept"
    embed_task(Peer("ear", Ear(hash="one")), task, kept)
    (wrong,) = kept.iterdir()
    two = Ear(gain=3.0, hash="two")
    right = embed_task(Peer("ear", two), task, tmp_path / "elsewhere")
    (place,) = (tmp_path / "elsewhere").iterdir()
    os.replace(wrong, kept / place.name)
    asked = two.asked
    assert same(embed_task(Peer("ear", two), task, kept), right)
    assert two.asked == 2 * asked


def test_a_changed_file_and_another_stretch_are_embedded_anew(task, tmp_path):
    first = embed_task(Peer("ear", Ear()), task, tmp_path / "kept")
    write_audio(task.items[2].path, music(2.2, 16_000, seed=99), 16_000)
    ear = Ear()
    second = embed_task(Peer("ear", ear), task, tmp_path / "kept")
    assert ear.asked == 4
    assert not np.array_equal(first.of["2"], second.of["2"])
    assert first.hash != second.hash
    moved = [Item(i.id, i.path, i.part, i.label, i.group, 0.5, None) if i.id == "1" else i for i in task.items]
    ear = Ear()
    embed_task(Peer("ear", ear), Task("toy", 1, "single", ("x", "y"), tuple(moved)), tmp_path / "kept")
    assert ear.asked == 3


def test_what_a_changed_file_held_is_dropped(task, tmp_path):
    for _ in range(3):
        embed_task(Peer("ear", Ear()), task, tmp_path / "kept")
        for item in task.items:
            os.utime(item.path, ns=(0, item.path.stat().st_mtime_ns + 1))
    (file,) = (tmp_path / "kept").glob("*.parquet")
    assert pq.read_table(file).num_rows == 6


def test_another_version_of_the_task_is_computed_anew(task, tmp_path):
    embed_task(Peer("ear", Ear()), task, tmp_path)
    ear = Ear()
    embed_task(Peer("ear", ear), Task("toy", 2, "single", ("x", "y"), task.items), tmp_path)
    assert ear.asked == 24


def test_two_tables_of_one_name_share_what_they_have_in_common(task, tmp_path):
    """Neither takes the other's vectors out of the file."""
    first, second = (Task("toy", 1, "single", ("x", "y"), items) for items in (task.items[:4], task.items[2:]))
    ear = Ear()
    for one in (first, second, first):
        assert len(embed_task(Peer("ear", ear), one, tmp_path / "kept").of) == 4
    assert ear.asked == 6 * 4


def test_failures_are_told_and_tried_again(task, tmp_path):
    path = task.items[4].path
    whole = path.read_bytes()
    path.write_text("no music")
    found = embed_task(Peer("ear", Ear()), task, tmp_path / "kept")
    assert list(found.failed) == ["4"]
    assert "not an audio file" in found.failed["4"]
    assert len(found.of) == 5
    path.write_bytes(whole)
    ear = Ear()
    assert not embed_task(Peer("ear", ear), task, tmp_path / "kept").failed
    assert ear.asked == 4


def test_a_stop_in_the_middle_keeps_what_is_done(task, tmp_path, monkeypatch):
    monkeypatch.setattr(library, "PART_SECONDS", 0.0)

    class Stops(Ear):
        def embed_windows(self, samples):
            if self.asked >= 14:
                raise KeyboardInterrupt
            return super().embed_windows(samples)

    with pytest.raises(KeyboardInterrupt):
        embed_task(Peer("ear", Stops()), task, tmp_path / "kept")
    ear = Ear()
    found = embed_task(Peer("ear", ear), task, tmp_path / "kept")
    assert 0 < ear.asked <= 24 - 8
    assert found.reused >= 2
    assert same(found, embed_task(Peer("ear", Ear()), task, tmp_path / "fresh"))
    assert not list((tmp_path / "kept").glob("*.parts"))


def test_there_is_one_writer_at_a_time(task, tmp_path):
    class Tells(Ear):
        def embed_windows(self, samples):
            with pytest.raises(RunError, match="Another `myna evaluate` is writing"):
                embed_task(Peer("ear", Ear()), task, tmp_path / "kept")
            return super().embed_windows(samples)

    assert len(embed_task(Peer("ear", Tells()), task, tmp_path / "kept").of) == 6
    assert embed_task(Peer("ear", Ear()), task, tmp_path / "kept").reused == 6


def test_what_is_refused_leaves_nothing(task, tmp_path):
    with pytest.raises(ConfigError, match="at least 1"):
        embed_task(Peer("ear", Ear()), task, tmp_path / "kept", workers=-1)
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_kill_in_the_middle_keeps_what_is_done(tmp_path):
    """SIGKILL while a slow model is at work; the next run reuses the parts and ends with the same vectors."""
    code = """
import sys, time, pathlib
from myna import library
from myna.cache import embed_task
from myna.peer import Peer
from test_cache import Ear
from test_cache import toy
library.PART_SECONDS = 0.0
class Slow(Ear):
    def embed_windows(self, samples):
        time.sleep(0.15)
        return super().embed_windows(samples)
print("go", flush=True)
embed_task(Peer("ear", Slow()), toy(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[1]) / "kept")
"""
    for i in range(6):
        write_audio(tmp_path / f"{i}.wav", music(2.2, 16_000, seed=i), 16_000)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"go\n"
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("kept/*.parts/part-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ear = Ear()
    found = embed_task(Peer("ear", ear), toy(tmp_path), tmp_path / "kept")
    assert 0 < ear.asked < 24
    assert same(found, embed_task(Peer("ear", Ear()), toy(tmp_path), tmp_path / "fresh"))


def toy(folder) -> Task:
    return Task("toy", 1, "single", ("x",), tuple(Item(str(i), folder / f"{i}.wav", "train", 0, "") for i in range(6)))


def test_a_damaged_cache_is_named(task, tmp_path):
    embed_task(Peer("ear", Ear()), task, tmp_path / "kept")
    (path,) = (tmp_path / "kept").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoreError, match="remove it"):
        embed_task(Peer("ear", Ear()), task, tmp_path / "kept")


def test_the_file_says_what_it_is(task, tmp_path):
    embed_task(Peer("ear", Ear()), task, tmp_path / "kept")
    (path,) = (tmp_path / "kept").iterdir()
    about = json.loads(pq.read_schema(path).metadata[b"myna"])
    assert about["model"] == "ear"
    assert (about["task"], about["task_version"], about["rows"]) == ("toy", 1, "items")
    assert about["window_samples"] == 8000
