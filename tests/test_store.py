"""The store's scale, its folder, and what it does when the folder is not whole."""

import json
import os
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from myna.errors import StoreError
from myna.mel import FrontEnd
from myna.part import Part, Writer, manifest_table
from myna.store import SCHEMA, Store, compress, expand

SMALL = FrontEnd(bands=8)
SIZES = [("float16", 2, 0.002), ("uint8", 1, 0.0656)]  # dtype, bytes a number, relative error


def row(path, content_hash, **facts):
    numbers = dict.fromkeys(["size_bytes", "mtime_ns", "damaged", "frames", "source_rate_hz", "channels", "row"], 0)
    texts = {"path": path, "content_hash": content_hash, "status": "ok", "reason": "", "codec": "mp3", "file": ""}
    return numbers | texts | {"duration_s": None, "decoded_s": 1.0, "tags": {"title": "Ünder"}, "extra": {}} | facts


def mel(seed, frames=20, bands=8):
    return np.random.default_rng(seed).gamma(1, 10, (frames, bands)).astype(np.float32)


def write(part, names, slot=0, **settings):
    """Commit a track for each (path, content hash); its mel is that of the hash's last character."""
    part.begin(part.known())
    writer = Writer(part, slot, **settings)
    rows = []
    for path, content in names:
        whole = mel(int(content[-1]))
        writer.append(whole[:7])
        writer.append(whole[7:])
        rows.append(writer.commit({k: v for k, v in row(path, content).items() if k != "extra"}))
    writer.close()
    return [row | {"extra": {}} for row in rows]


def make(path, names, dtype="float16", **settings):
    part = Part(path, SMALL, dtype=dtype)
    part.finish(manifest_table(write(part, names, **settings)))
    return Store.open(path)


def test_power_comes_back():
    power = np.geomspace(2e-17, 1e19, 200_001).astype(np.float32)
    there_and_back = expand(compress(power))
    assert there_and_back.dtype == np.float32
    assert np.abs(there_and_back / power - 1).max() < 0.002
    middle = (power > 1e-7) & (power < 1e5)
    assert np.abs(there_and_back / power - 1)[middle].max() < 0.002


def test_silence_stays_silent_and_nothing_overflows():
    assert expand(compress(np.array([0, 1e-38, 3e38], np.float32))).tolist()[:2] == [0, 0]
    assert np.isfinite(expand(compress(np.array([3e38], np.float32)))).all()


def test_expand_takes_tensors_and_arrays():
    companded = compress(mel(0))
    tensor = expand(torch.from_numpy(companded))
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.numpy(), expand(companded))


def decibels(power):
    return 10 * np.log10(power.astype(np.float64))


def test_bytes_are_spaced_evenly_in_decibels():
    codes = np.arange(256, dtype=np.uint8)
    power = expand(codes)
    assert power.dtype == np.float32
    assert power[0] == 0
    np.testing.assert_allclose(decibels(power[1:]), np.linspace(-90, 50, 255), atol=1e-4)
    np.testing.assert_array_equal(compress(power, "uint8"), codes)


def test_bytes_come_back_within_half_a_step():
    power = np.geomspace(1e-9, 1e5, 1_000_001).astype(np.float32)
    codes = compress(power, "uint8")
    assert (codes.dtype, codes[0], codes[-1]) == (np.uint8, 1, 255)
    half_step_db = 140 / 254 / 2
    error_db = np.abs(decibels(expand(codes)) - decibels(power)).max()
    assert half_step_db - 0.001 < error_db < half_step_db + 1e-4
    assert round(half_step_db, 3) == 0.276, "the documentation says so"
    relative = np.abs(expand(codes) / power - 1).max()
    assert relative == pytest.approx(10 ** (half_step_db / 10) - 1, abs=1e-4)
    assert round(100 * relative, 1) == 6.6, "the documentation says so"


def test_bytes_beyond_the_range():
    edge = 1e-9 * 10 ** (-140 / 254 / 2 / 10)  # half a step below the least power
    power = np.array([0, 1e-45, 1e-38, edge * 0.999, edge * 1.001, 1.1e5, 3e38, np.inf], np.float32)
    assert compress(power, "uint8").tolist() == [0, 0, 0, 0, 1, 255, 255, 255]


def test_bytes_expand_alike_in_tensors_and_arrays():
    codes = np.arange(256, dtype=np.uint8).reshape(2, 8, 16)
    tensor = torch.from_numpy(codes)
    power = expand(tensor)
    assert (power.dtype, power.shape) == (torch.float32, codes.shape)
    np.testing.assert_allclose(power.numpy(), expand(codes), rtol=1e-6, atol=0)
    assert power[0, 0, 0] == 0
    assert tensor.flatten().tolist() == list(range(256)), "the codes are not written over"


def test_a_store_of_bytes(tmp_path):
    names = [(f"/{i}", f"h{i}") for i in range(5)]
    store = make(tmp_path / "s", names, "uint8", file_bytes=2 * 20 * 8)
    assert store.dtype == "uint8"
    assert [(file.dtype, len(file), file.flags.writeable) for file in store.files] == [
        (np.uint8, rows, False) for rows in (40, 40, 20)
    ]
    assert {path.suffix for path in (tmp_path / "s" / "data").iterdir()} == {".u8"}
    laid_out = np.concatenate(store.files)
    for track, first in enumerate(store.first_rows()):
        np.testing.assert_allclose(store.mel(track), mel(track), rtol=0.0656)
        np.testing.assert_array_equal(expand(laid_out[first : first + 20]), store.mel(track))


def test_bytes_are_another_hash_and_another_folder(tmp_path):
    one, other = (make(tmp_path / dtype, [("/a", "h1")], dtype) for dtype in ("float16", "uint8"))
    assert one.hash != other.hash
    with pytest.raises(StoreError, match="made with float16, not with uint8: prepare into another folder"):
        Part(tmp_path / "float16", SMALL, dtype="uint8")
    with pytest.raises(StoreError, match="made with uint8, not with float16"):
        Part(tmp_path / "uint8", SMALL)


def test_stores_without_a_dtype_are_float16(tmp_path):
    store = make(tmp_path / "s", [("/a", "h1")])
    settings = tmp_path / "s" / "store.json"
    told = json.loads(settings.read_text())
    assert told.pop("dtype") == "float16"
    settings.write_text(json.dumps(told))
    older = Store.open(tmp_path / "s")
    assert (older.dtype, older.hash) == ("float16", store.hash)
    assert older.hash == "162d46ac6e6198c72b8d544fc36f1b2f", "runs remember it"
    np.testing.assert_array_equal(older.mel(0), store.mel(0))
    assert Part(tmp_path / "s", SMALL).known()[0]["path"] == "/a"


def test_round_trip(tmp_path):
    store = make(tmp_path / "s", [("/b", "h2"), ("/a", "h3"), ("/c", "h1")])
    assert store.content_hashes == ["h1", "h2", "h3"]
    assert store.paths == ["/c", "/b", "/a"]
    assert store.frames.tolist() == [20, 20, 20]
    assert (store.frames.dtype, store.row.dtype, store.file_index.dtype) == (np.int64, np.int64, np.int32)
    for track in range(3):
        np.testing.assert_allclose(store.mel(track), mel(track + 1), rtol=0.002)
    assert store.hours == pytest.approx(60 * 512 / 16_000 / 3600)
    assert store.manifest["path"].to_pylist() == ["/a", "/b", "/c"]
    assert dict(store.manifest["tags"][0].as_py()) == {"title": "Ünder"}
    assert all(not file.flags.writeable for file in store.files)
    assert not list((tmp_path / "s" / "journal").iterdir())


def test_first_rows_count_over_all_files(tmp_path):
    store = make(tmp_path / "s", [(f"/{i}", f"h{i}") for i in range(5)], file_bytes=2 * 20 * 8 * 2)
    assert [len(file) for file in store.files] == [40, 40, 20]
    laid_out = np.concatenate(store.files)
    for track, first in enumerate(store.first_rows()):
        np.testing.assert_array_equal(expand(laid_out[first : first + 20]), store.mel(track))


def test_hash_knows_music_and_settings_only(tmp_path):
    names = [("/a", "h1"), ("/b", "h2"), ("/c", "h3")]
    one = make(tmp_path / "one", names)
    moved = make(tmp_path / "two", [("/x" + path, content) for path, content in reversed(names)], file_bytes=1)
    assert one.hash == moved.hash
    assert one.hash != make(tmp_path / "three", names[:2]).hash


def test_equal_content_is_stored_once(tmp_path):
    store = make(tmp_path / "s", [("/z", "h1"), ("/a", "h1"), ("/m", "h2")])
    assert len(store) == 2
    assert store.paths == ["/a", "/m"]
    places = store.manifest.select(["path", "file", "row"]).to_pylist()
    assert (places[0]["file"], places[0]["row"]) == (places[2]["file"], places[2]["row"])


def test_failed_files_are_in_the_manifest_only(tmp_path):
    part = Part(tmp_path / "s", SMALL)
    rows = write(part, [("/a", "h1")])
    part.finish(manifest_table([*rows, row("/bad", "", status="failed", reason="the file is empty")]))
    store = Store.open(tmp_path / "s")
    assert store.paths == ["/a"]
    assert store.manifest["reason"].to_pylist() == ["", "the file is empty"]


def test_extra_columns_keep_their_types(tmp_path):
    part = Part(tmp_path / "s", SMALL)
    rows = write(part, [("/a", "h1"), ("/b", "h2"), ("/c", "h3")])
    for one, extra in zip(rows, [{"bpm": 120, "mixed": 1}, {"bpm": 99, "mixed": "one"}, {}], strict=True):
        one["extra"] = extra
    part.finish(manifest_table(rows))
    manifest = Store.open(tmp_path / "s").manifest
    assert manifest["bpm"].to_pylist() == [120, 99, None]
    assert manifest["mixed"].to_pylist() == ["1", "one", None]
    assert manifest.schema.names[: len(SCHEMA)] == list(SCHEMA)


def test_parts_make_a_store_when_all_are_there(tmp_path):
    for number in range(2):
        part = Part(tmp_path / "s", SMALL, number, 2)
        part.finish(manifest_table(write(part, [(f"/{number}", f"h{number}"), (f"/same{number}", "h7")])))
        if number == 0:
            with pytest.raises(StoreError, match="--shard 1/2"):
                Store.open(tmp_path / "s")
    store = Store.open(tmp_path / "s")
    assert store.content_hashes == ["h0", "h1", "h7"]
    assert store.paths == ["/0", "/1", "/same0"]
    assert len(store.manifest) == 4
    with pytest.raises(StoreError, match="2 part"):
        Part(tmp_path / "s", SMALL)
    with pytest.raises(StoreError, match="another folder"):
        Part(tmp_path / "s", FrontEnd(), 0, 2)


@pytest.mark.parametrize(("dtype", "bytes_"), [sizes[:2] for sizes in SIZES])
def test_a_short_data_file_is_noticed(tmp_path, dtype, bytes_):
    store = make(tmp_path / "s", [("/a", "h1")], dtype)
    file = tmp_path / "s" / "data" / store.manifest["file"][0].as_py()
    whole = 20 * 8 * bytes_
    os.truncate(file, whole - 1)
    with pytest.raises(StoreError, match=f"has {whole - 1} bytes, but its manifest needs {whole}:"):
        Store.open(tmp_path / "s")
    file.unlink()
    with pytest.raises(StoreError, match="0 bytes"):
        Store.open(tmp_path / "s")


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no mel store"):
        Store.open(tmp_path)
    (tmp_path / "song.mp3").touch()
    with pytest.raises(StoreError, match="other things"):
        Part(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["song.mp3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99"),
        ({"format": "x"}, "format x"),
        ({"front_end": {"hop": 1}}, "not those of"),
        ({"dtype": "int4"}, "dtype is int4, not float16 or uint8"),
    ],
)
def test_settings_that_cannot_be_read(tmp_path, change, message):
    make(tmp_path / "s", [("/a", "h1")])
    settings = tmp_path / "s" / "store.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | change))
    with pytest.raises(StoreError, match=message):
        Store.open(tmp_path / "s")
    for broken in ("{", "[]", "", "\0" * 50):
        settings.write_text(broken)
        for read in (Store.open, lambda path: Part(path, SMALL)):
            with pytest.raises(StoreError, match=r"store\.json, cannot be read .*delete the store and prepare"):
                read(tmp_path / "s")


@pytest.mark.parametrize("place", ["manifest-0-of-1.parquet", "journal/part0-manifest.parquet"])
@pytest.mark.parametrize("damage", ["cut", "another"])
def test_a_damaged_manifest_says_what_to_delete(tmp_path, place, damage):
    """Making it again by itself would drop the files that are not named this time."""
    make(tmp_path / "s", [("/a", "h1")])
    part = Part(tmp_path / "s", SMALL)
    if place.startswith("journal"):  # as when an update was killed
        part.begin(part.known())
    file = tmp_path / "s" / place
    if damage == "cut":
        os.truncate(file, 1000)
    else:
        pq.write_table(pq.read_table(file).drop(["row"]), file)
    for read in [part.known] + [lambda: Store.open(tmp_path / "s")] * (not place.startswith("journal")):
        with pytest.raises(StoreError, match=f"{place} is damaged .*delete it, and `myna prepare`"):
            read()
    file.unlink()
    assert part.known() == []
    part.finish(manifest_table(write(part, [("/a", "h1")])))
    np.testing.assert_allclose(Store.open(tmp_path / "s").mel(0), mel(1), rtol=0.002)


def test_a_store_travels_to_worker_processes_by_name(tmp_path):
    store = make(tmp_path / "s", [("/a", "h1")])
    sent = pickle.dumps(store)
    assert len(sent) < 300
    np.testing.assert_array_equal(pickle.loads(sent).mel(0), store.mel(0))


def test_the_manifest_can_be_read_by_anyone(tmp_path):
    make(tmp_path / "s", [("/a", "h1")])
    table = pq.read_table(tmp_path / "s" / "manifest-0-of-1.parquet")
    assert table.to_pylist()[0]["path"] == "/a"
