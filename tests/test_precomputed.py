"""Vectors that exist already: found by item, by file, by window, or refused."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from myna.embedder import Embedding, Myna
from myna.errors import AudioError, StoreError
from myna.library import embed_library
from myna.model import ModelConfig, MynaModel
from myna.peer import embed_items, open_peer
from myna.precomputed import Precomputed
from myna.task.base import Item
from myna.track import find_tracks
from sounds import music, write_audio


def item(path, name="a", start_s=0.0, length_s=None) -> Item:
    return Item(name, Path(path), "train", 0, name, start_s, length_s)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small model, a song, and libraries of it: a row a track, a row a window."""
    folder = tmp_path_factory.mktemp("precomputed")
    config = ModelConfig(dim=16, depth=1, heads=2, head_dim=8, mlp_dim=32)
    model = Myna(MynaModel(config), precision="fp32", hash="x")
    song = write_audio(folder / "song.wav", music(15.0, 16_000), 16_000)
    for windows in (False, True):
        embed_library(model, find_tracks([song]), folder / f"{windows}.parquet", windows=windows)
    return folder, model, song


def test_a_library_gives_the_vectors_of_its_files(place):
    folder, model, song = place
    peer = open_peer(str(folder / "False.parquet"))
    ((number, found),) = peer.embed_items([item(song)])
    assert number == 0
    np.testing.assert_array_equal(found.vector, model.encode(song))


def test_a_file_is_found_however_it_is_spelt(place):
    folder, _, song = place
    ((_, found),) = Precomputed.open(folder / "False.parquet").embed_items([item(folder / "x" / ".." / song.name)])
    assert isinstance(found, Embedding)


def test_a_vector_for_all_of_a_file_is_no_answer_for_a_part_of_it(place):
    folder, _, song = place
    ((_, found),) = Precomputed.open(folder / "False.parquet").embed_items([item(song, "clip", 0.0, 7.0)])
    assert isinstance(found, AudioError)
    assert "is a part of it" in str(found)


def test_windows_inside_a_stretch_answer_for_it(place):
    folder, model, song = place
    given = Precomputed.open(folder / "True.parquet")
    ((_, found),) = given.embed_items([item(song, "a", 3.125, 6.5)])
    ((_, wanted),) = embed_items(model, [item(song, "a", 3.125, 6.5)])
    np.testing.assert_allclose(found.embeddings, wanted.embeddings, atol=1e-6)
    assert found.starts_s.tolist() == [3.125, 6.25]
    ((_, none),) = given.embed_items([item(song, "a", 3.2, 3.2)])
    assert "no whole window" in str(none)


def test_columns_id_and_embedding_are_enough(tmp_path):
    path = tmp_path / "given.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "embedding": [[1.0, 2.0], [3.0, 4.0]]}), path)
    given = Precomputed.open(path)
    found = dict(given.embed_items([item("x.mp3", "b", 5.0, 1.0), item("x.mp3", "c")]))
    assert found[0].vector.tolist() == [3.0, 4.0]
    assert "no vector for the item c" in str(found[1])
    assert given.representations == {"given": slice(0, 2)}


def test_npy_by_item_or_by_file(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1.0, 2.0]))
    (tmp_path / "deep").mkdir()
    np.save(tmp_path / "deep" / "b.npy", np.array([[1.0, 2.0], [3.0, 6.0]]))
    given = open_peer(f"npy:{tmp_path}").source
    items = [item("a.mp3", "other"), item("x.mp3", "deep/b"), item("a.mp3", "part", 3.0, 1.0)]
    found = dict(given.embed_items(items))
    assert found[0].vector.tolist() == [1.0, 2.0]
    assert found[1].vector.tolist() == [2.0, 4.0]
    assert isinstance(found[2], AudioError)


def test_other_numbers_have_another_hash(tmp_path):
    hashes = set()
    for value in (1.0, 2.0):
        path = tmp_path / "given.parquet"
        pq.write_table(pa.table({"id": ["a"], "embedding": [[value, 2.0]]}), path)
        hashes.add(Precomputed.open(path).hash)
        np.save(tmp_path / "a.npy", np.array([value]))
        hashes.add(Precomputed.open(tmp_path).hash)
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"name": ["a"], "embedding": [[1.0]]}, "`id` or `path` are wanted"),
        ({"id": ["a"], "vector": [[1.0]]}, "`embedding` and"),
        ({"id": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]}, "different lengths"),
        ({"id": ["a", "a"], "embedding": [[1.0], [2.0]]}, "several rows for the id a"),
        ({"id": ["a"], "embedding": [[float("nan")]]}, "NaN"),
        ({"id": ["a"], "embedding": [1.0]}, "`embedding` of the type double; lists of numbers are wanted"),
        ({"id": ["a"], "embedding": [["x"]]}, "lists of numbers are wanted"),
        ({"id": ["a", "b"], "embedding": pa.array([[], []], pa.list_(pa.float32()))}, "empty vectors"),
        ({"id": ["a"], "embedding": pa.array([None], pa.list_(pa.float32()))}, "no vectors"),
    ],
)
def test_bad_tables_are_refused(tmp_path, columns, says):
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(StoreError, match=says):
        Precomputed.open(path)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(StoreError, match="There is no file"):
        Precomputed.open(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(StoreError, match="cannot be read"):
        Precomputed.open(tmp_path / "text.parquet")
    with pytest.raises(StoreError, match=r"holds no .npy"):
        Precomputed.open(tmp_path)
    for array, says in ((np.array([{}], object), "cannot be read"), (np.array([1]), "floats"), (np.eye(2), None)):
        np.save(tmp_path / "a.npy", array)
        if says:
            with pytest.raises(StoreError, match=says):
                Precomputed.open(tmp_path)
    np.save(tmp_path / "b.npy", np.eye(3))
    with pytest.raises(StoreError, match="long"):
        Precomputed.open(tmp_path)
