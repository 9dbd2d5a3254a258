"""A part is whole or is not, whenever its writing is stopped, and never changes what somebody reads."""

import numpy as np
import pytest

from myna.errors import StoreError
from myna.part import Part, Writer, manifest_table
from myna.store import Store
from test_store import SIZES, SMALL, make, mel, row, write


@pytest.mark.parametrize(("dtype", "bytes_", "error"), SIZES)
def test_aborted_frames_are_gone(tmp_path, dtype, bytes_, error):
    part = Part(tmp_path / "s", SMALL, dtype=dtype)
    part.begin([])
    writer = Writer(part, 0)
    writer.append(mel(9))
    writer.abort()
    writer.append(mel(1))
    first = writer.commit(row("/a", "h1"))
    writer.append(mel(9))
    writer.close()
    assert (first["row"], first["frames"]) == (0, 20)
    part.finish(manifest_table([first]))
    store = Store.open(tmp_path / "s")
    np.testing.assert_allclose(store.mel(0), mel(1), rtol=error)
    assert (tmp_path / "s" / "data" / first["file"]).stat().st_size == 20 * 8 * bytes_


@pytest.mark.parametrize(("dtype", "bytes_", "error"), SIZES)
def test_what_a_kill_leaves_half_written_is_cut_off(tmp_path, dtype, bytes_, error):
    part = Part(tmp_path / "s", SMALL, dtype=dtype)
    rows = write(part, [("/a", "h1")])
    data, journal = (next((tmp_path / "s" / folder).iterdir()) for folder in ("data", "journal"))
    with open(data, "ab") as file:
        file.write(b"half a track")
    with open(journal, "ab") as file:
        file.write(b'{"path": "/b", "conte')
    with pytest.raises(StoreError, match="unfinished"):
        Store.open(tmp_path / "s")
    known = part.known()
    assert [one["path"] for one in known] == ["/a"]
    rows += write(part, [("/c", "h2")])
    assert [one["path"] for one in part.known()] == ["/a", "/c"]
    part.finish(manifest_table(rows))
    store = Store.open(tmp_path / "s")
    for track, seed in enumerate((1, 2)):
        np.testing.assert_allclose(store.mel(track), mel(seed), rtol=error)
    assert data.stat().st_size == 40 * 8 * bytes_


def test_an_update_never_looks_whole_before_its_end(tmp_path):
    make(tmp_path / "s", [("/a", "h1")])
    part = Part(tmp_path / "s", SMALL)
    rows = [one | {"extra": {}} for one in part.known()]
    rows += write(part, [("/b", "h2")])
    with pytest.raises(StoreError, match="unfinished"):
        Store.open(tmp_path / "s")
    assert sorted(one["path"] for one in part.known()) == ["/a", "/b"]
    part.finish(manifest_table(rows))
    assert Store.open(tmp_path / "s").paths == ["/a", "/b"]


@pytest.mark.parametrize("damage", [b"\0" * 40, b"[]", b'{"path": "/a"}', b"\xff"], ids=range(4))
def test_a_damaged_journal_line_costs_its_file_only(tmp_path, damage):
    part = Part(tmp_path / "s", SMALL)
    write(part, [("/a", "h1"), ("/b", "h2"), ("/c", "h3")])
    (journal,) = (tmp_path / "s" / "journal").iterdir()
    first, _, last = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([first, damage, last, damage]))
    assert [one["path"] for one in part.known()] == ["/a", "/c"]
    write(part, [("/b", "h2")])
    assert sorted(one["path"] for one in part.known()) == ["/a", "/b", "/c"]
    part.finish(manifest_table([one | {"extra": {}} for one in part.known()]))
    store = Store.open(tmp_path / "s")
    for track in range(3):
        np.testing.assert_allclose(store.mel(track), mel(track + 1), rtol=0.002)


def test_unused_data_files_are_deleted(tmp_path):
    make(tmp_path / "s", [("/a", "h1"), ("/b", "h2")], file_bytes=1)
    part = Part(tmp_path / "s", SMALL)
    known = part.known()
    part.begin(known)
    part.finish(manifest_table([one | {"extra": {}} for one in known if one["path"] == "/b"]))
    assert len(list((tmp_path / "s" / "data").iterdir())) == 1
    np.testing.assert_allclose(Store.open(tmp_path / "s").mel(0), mel(2), rtol=0.002)


@pytest.mark.parametrize("killed", [False, True])
def test_an_open_store_keeps_its_music(tmp_path, killed):
    """A track leaves the store, and another comes: not where a run that began before is still reading."""
    reader = make(tmp_path / "s", [("/a", "h1"), ("/b", "h2")])
    part = Part(tmp_path / "s", SMALL)
    part.begin(known := part.known())
    part.finish(manifest_table([one | {"extra": {}} for one in known if one["path"] == "/a"]))
    if killed:
        write(part, [("/d", "h4")])
        write(part, [("/e", "h5")])
    rows = [one | {"extra": {}} for one in part.known()] + write(part, [("/c", "h3")])
    part.finish(manifest_table(rows))
    for store, seeds in ((reader, (1, 2)), (Store.open(tmp_path / "s"), (1, 3, 4, 5) if killed else (1, 3))):
        assert len(store) == len(seeds)
        for track, seed in enumerate(seeds):
            np.testing.assert_allclose(store.mel(track), mel(seed), rtol=0.002)


def test_a_deleted_manifest_takes_no_music_from_who_reads_it(tmp_path):
    """Which is what a damaged one's error tells to do."""
    reader = make(tmp_path / "s", [("/a", "h1"), ("/b", "h2")])
    part = Part(tmp_path / "s", SMALL)
    part.manifest_path.unlink()
    part.begin(part.known())
    part.finish(manifest_table(write(part, [("/c", "h3")])))
    np.testing.assert_allclose(reader.mel(1), mel(2), rtol=0.002)
    np.testing.assert_allclose(Store.open(tmp_path / "s").mel(0), mel(3), rtol=0.002)
