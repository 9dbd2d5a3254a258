import os
import shutil
import signal
import subprocess
import sys

import mutagen
import numpy as np
import pyarrow.parquet as pq
import pytest

from myna import Myna, library
from myna.audio import FATAL, why_fatal
from myna.errors import RunError, StoreError
from myna.library import embed_library, embeddings_of, nearest, read_library
from myna.model import ModelConfig, MynaModel
from myna.track import find_tracks
from sounds import music, write_audio

SMALL = {"dim": 32, "depth": 1, "heads": 2, "head_dim": 16, "mlp_dim": 64}


def model(seed=1, hash="first"):
    return Myna(MynaModel(ModelConfig(**SMALL), seed=seed), precision="fp32", batch=4, hash=hash)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "music").mkdir()
    for seed, name in enumerate(["a.wav", "b.mp3", "short.flac"]):
        seconds = 1.0 if name.startswith("short") else 7.0 + seed
        write_audio(tmp_path / "music" / name, music(seconds, 16_000, seed=seed), 16_000, tags={"title": f"T{seed}"})
    (tmp_path / "music" / "bad.mp3").write_text("no music at all")
    return tmp_path / "music"


def embed(folder, out, myna=None, **options):
    return embed_library(myna or model(), find_tracks([folder]), out, **options)


def test_one_row_a_track_with_everything_known_of_it(folder, tmp_path):
    out = tmp_path / "l.parquet"
    summary = embed(folder, out)
    assert (summary.tracks, summary.new, summary.reused, summary.padded) == (4, 3, 0, 1)
    assert list(summary.failed) == [str(folder / "bad.mp3")]
    table, told = read_library(out)
    rows = {os.path.basename(row["path"]): row for row in table.to_pylist()}
    assert list(rows) == ["a.wav", "b.mp3", "bad.mp3", "short.flac"]
    assert [rows[name]["status"] for name in rows] == ["ok", "ok", "failed", "padded"]
    assert "not an audio file" in rows["bad.mp3"]["reason"]
    assert rows["bad.mp3"]["embedding"] is None
    np.testing.assert_allclose(rows["a.wav"]["embedding"], model().encode(folder / "a.wav"), atol=1e-5)
    assert rows["a.wav"]["windows"] == 2
    assert rows["a.wav"]["decoded_s"] == pytest.approx(7.0)
    assert dict(rows["b.mp3"]["tags"])["title"] == "T1"
    assert len(rows["a.wav"]["content_hash"]) == 32
    assert (told["model"], told["dim"], told["rows"], told["front_end"]["bands"]) == ("first", 32, "tracks", 128)
    assert str(pq.read_schema(out).field("embedding").type) == "fixed_size_list<element: float>[32]"
    assert not (tmp_path / "l.parquet.parts").exists()


def test_two_at_once_are_refused(folder, tmp_path):
    out, refused = tmp_path / "l.parquet", []

    def second(summary):
        if summary.new == 1 and not refused:
            with pytest.raises(RunError, match=r"Another `myna embed` is writing to .*l\.parquet") as caught:
                embed_library(model(), find_tracks([folder]), out)
            refused.append(caught.value)

    embed_library(model(), find_tracks([folder]), out, on_track=second)
    assert len(refused) == 1
    assert sorted(os.listdir(tmp_path)) == ["l.parquet", "music"]
    embed_library(model(), find_tracks([folder]), out)


def test_whole_tracks_and_windows_do_not_mix(folder, tmp_path):
    out, plain = tmp_path / "l.parquet", model().model
    whole = Myna(plain, precision="fp32", whole=True, window_samples=50_000, hash="first")
    embed(folder, out, whole)
    assert read_library(out)[0]["windows"].drop_null().to_pylist() == [3, 3, 1]  # at most 50,000 samples in a pass
    with pytest.raises(StoreError, match="another hop_samples"):
        embed(folder, out)


def test_one_row_a_window(folder, tmp_path):
    embed(folder, tmp_path / "w.parquet", windows=True, hop_s=2.0)
    table, told = read_library(tmp_path / "w.parquet")
    rows = [row for row in table.to_pylist() if row["path"].endswith("a.wav")]
    wanted = model().encode(folder / "a.wav", windows=True, hop_s=2.0)
    np.testing.assert_allclose([row["start_s"] for row in rows], wanted.starts_s)
    np.testing.assert_allclose([row["embedding"] for row in rows], wanted.embeddings, atol=1e-5)
    assert (told["rows"], told["hop_samples"]) == ("windows", 32_000)


def counting(monkeypatch) -> list[str]:
    decoded = []
    inner = Myna.stream

    def stream(self, paths, **options):
        paths = list(paths)
        decoded.extend(path.name for path in paths)
        return inner(self, paths, **options)

    monkeypatch.setattr(Myna, "stream", stream)
    return decoded


@pytest.mark.parametrize("windows", [False, True])
def test_running_again_embeds_only_what_is_new(folder, tmp_path, monkeypatch, windows):
    out = tmp_path / "l.parquet"
    embed(folder, out, windows=windows)
    before = read_library(out)[0]
    decoded = counting(monkeypatch)
    summary = embed(folder, out, windows=windows)
    assert decoded == ["bad.mp3"]  # a failed file is tried again: it may have been mended
    assert (summary.new, summary.reused) == (0, 3)
    assert read_library(out)[0].equals(before)

    decoded.clear()
    shutil.move(folder / "a.wav", folder / "moved.wav")
    tags = mutagen.File(folder / "b.mp3")
    tags["TIT2"] = mutagen.id3.TIT2(text="New title")
    tags.save()
    write_audio(folder / "new.wav", music(5.0, 16_000, seed=9), 16_000)
    (folder / "short.flac").unlink()
    embed(folder, out, windows=windows)
    assert sorted(decoded) == ["bad.mp3", "new.wav"]
    rows = read_library(out)[0].to_pylist()
    assert sorted({os.path.basename(row["path"]) for row in rows}) == ["b.mp3", "bad.mp3", "moved.wav", "new.wav"]
    assert {dict(row["tags"])["title"] for row in rows if row["path"].endswith("b.mp3")} == {"New title"}
    moved = [row["embedding"] for row in rows if row["path"].endswith("moved.wav")]
    wanted = [row["embedding"] for row in before.to_pylist() if row["path"].endswith("a.wav")]
    assert moved == wanted


def test_naming_one_file_keeps_the_others(folder, tmp_path):
    out = tmp_path / "l.parquet"
    embed(folder, out)
    before = set(read_library(out)[0]["path"].to_pylist())
    write_audio(folder / "new.wav", music(5.0, 16_000, seed=9), 16_000)
    summary = embed(folder / "new.wav", out)
    assert (summary.tracks, summary.new, summary.others) == (1, 1, 3)
    after = set(read_library(out)[0]["path"].to_pylist())
    assert after == (before | {str(folder / "new.wav")}) - {str(folder / "bad.mp3")}


def test_a_name_that_is_no_utf8(folder, tmp_path):
    odd = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.wav")
    shutil.copy(folder / "a.wav", odd)
    for _ in range(2):
        embed(folder, tmp_path / "l.parquet")
    names = [os.path.basename(path) for path in read_library(tmp_path / "l.parquet")[0]["path"].to_pylist()]
    assert "caf\\xe9.wav" in names
    assert len(names) == 5


def test_an_interrupted_run_goes_on(folder, tmp_path, monkeypatch):
    out = tmp_path / "l.parquet"
    monkeypatch.setattr(library, "PART_SECONDS", 0.0)

    class Killed(Exception):
        pass

    def after_two(summary):
        if summary.new == 2:
            raise Killed

    with pytest.raises(Killed):
        embed(folder, out, on_track=after_two)
    assert not out.exists()
    decoded = counting(monkeypatch)
    summary = embed(folder, out)
    assert summary.reused == 2
    assert len([name for name in decoded if name != "bad.mp3"]) == 1
    fresh = tmp_path / "fresh.parquet"
    embed(folder, fresh)
    ours, theirs = (read_library(path)[0].drop_columns(["embedding"]) for path in (out, fresh))
    assert ours.equals(theirs)
    np.testing.assert_allclose(*(embeddings_of(read_library(path)[0]) for path in (out, fresh)), atol=1e-5)


CRASHING = """
import os
import av

def crash(name, *arguments, open=av.open, **options):
    return os.abort() if "deadly" in str(name) else open(name, *arguments, **options)

av.open = crash
"""


def test_files_that_crash_the_decoder_are_found_by_asking_again(folder, tmp_path):
    """Such as AIFF of 8 channels with a layout, over which FFmpeg frees memory twice."""
    for name in ("deadly 1.wav", "deadly 2.wav"):
        write_audio(folder / name, music(4.0, 16_000), 16_000)
    (tmp_path / "sitecustomize.py").write_text(CRASHING)  # which every Python process runs first
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\nimport test_library\nfrom myna.track import find_tracks\n"
        "test_library.embed_library(test_library.model(), find_tracks([sys.argv[1]]), sys.argv[2], workers=1)\n"
    )
    out = tmp_path / "l.parquet"
    command = [sys.executable, program, folder, out]
    paths = os.pathsep.join([str(tmp_path), os.path.dirname(__file__), *sys.path])
    ends = []
    while not ends or ends[-1] < 0:
        assert len(ends) < 5, f"it never ends: {ends}"
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
        ends.append(done.returncode)
    assert ends == [-signal.SIGABRT, -signal.SIGABRT, 0], done.stderr
    table, _ = read_library(out)
    reasons = {os.path.basename(row["path"]): row["reason"] for row in table.to_pylist()}
    assert len(reasons) == 6
    for name in ("deadly 1.wav", "deadly 2.wav"):
        assert reasons[name] == "decoding it ends the process (exit code -6)"
    summary = embed(folder, out)  # they are not tried again, here where nothing crashes, until they change
    assert (summary.new, summary.reused, len(summary.failed)) == (0, 3, 3)
    os.utime(folder / "deadly 1.wav")
    summary = embed(folder, out)
    assert (summary.new, summary.reused, len(summary.failed)) == (1, 3, 2)


def test_a_file_that_crashes_stays_known_when_others_are_named(folder, tmp_path, monkeypatch):
    out = tmp_path / "l.parquet"
    parts = tmp_path / "l.parquet.parts"
    parts.mkdir()
    (parts / "opened.txt").write_bytes(f"+{folder / 'a.wav'}\0".encode())
    monkeypatch.setattr(library, "why_fatal", lambda _: "decoding it ends the process (exit code -6)")
    assert "ends the process" in embed(folder, out).failed[str(folder / "a.wav")]
    embed_library(model(), find_tracks([folder / "b.mp3"]), out)
    monkeypatch.setattr(library, "why_fatal", lambda path: pytest.fail(f"{path} is known"))
    assert "ends the process" in embed(folder, out).failed[str(folder / "a.wav")]


def test_only_a_crash_is_held_against_a_file(folder, tmp_path, monkeypatch):
    (tmp_path / "av.py").write_text("raise SystemExit('a module of the folder that one happens to be in')")
    monkeypatch.chdir(tmp_path)
    kills = "import os, signal, sys; sys.argv[1:] and os.kill(os.getpid(), signal.{})"
    for name, found in (("SIGKILL", None), ("SIGTERM", None), ("SIGSEGV", f"{FATAL} (exit code -11)")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "sitecustomize.py").write_text(kills.format(name))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / name), *filter(None, sys.path)]))
        assert why_fatal(folder / "a.wav") == found
    (tmp_path / "SIGSEGV" / "sitecustomize.py").write_text(CRASHING)
    shutil.copy(folder / "a.wav", folder / "deadly.wav")
    assert why_fatal(folder / "deadly.wav") == f"{FATAL} (exit code -6)"
    assert why_fatal(folder / "a.wav") is None


def test_an_error_leaves_no_file_under_suspicion(folder, tmp_path, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(folder, tmp_path / "l.parquet", on_track=lambda s: s.new and stop(s))
    monkeypatch.setattr(library, "why_fatal", lambda path: pytest.fail(f"{path} was tried by itself"))
    embed(folder, tmp_path / "l.parquet")


def test_parts_of_a_run_killed_at_its_very_end_are_not_doubled(folder, tmp_path):
    out = tmp_path / "l.parquet"
    embed(folder, out)
    parts = tmp_path / "l.parquet.parts"
    parts.mkdir()
    shutil.copy(out, parts / "part-000000.parquet")  # killed between writing the table and removing the parts
    embed(folder, out)
    paths = read_library(out)[0]["path"].to_pylist()
    assert len(paths) == len(set(paths)) == 4


@pytest.mark.parametrize("change", ["model", "hop", "rows"])
def test_other_settings_are_refused(folder, tmp_path, change):
    out = tmp_path / "l.parquet"
    embed(folder, out)
    before = out.read_bytes()
    options = {"model": {"myna": model(hash="second")}, "hop": {"hop_s": 1.0}, "rows": {"windows": True}}[change]
    with pytest.raises(StoreError, match="write to another file, or remove it first"):
        embed(folder, out, **options)
    assert out.read_bytes() == before


def test_what_is_no_library_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no library at"):
        read_library(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(StoreError, match="not a library"):
        read_library(tmp_path / "text.parquet")


def test_nearest_equals_brute_force():
    rng = np.random.default_rng(0)
    vectors, queries = rng.standard_normal((50, 8)), rng.standard_normal((3, 8))
    rows, similarity = nearest(vectors.astype(np.float32), queries.astype(np.float32), 5)
    for q in range(3):
        cosine = [v @ queries[q] / np.linalg.norm(v) / np.linalg.norm(queries[q]) for v in vectors]
        wanted = sorted(range(50), key=lambda i: -cosine[i])[:5]
        assert rows[q].tolist() == wanted
        np.testing.assert_allclose(similarity[q], [cosine[i] for i in wanted], atol=1e-6)
