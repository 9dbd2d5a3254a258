"""What is written is there whole, or as it was before."""

import errno
import os
import stat

import pytest

from myna.disk import write_bytes, write_folder, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_what_was_there(tmp_path):
    write_folder(tmp_path / "f", lambda folder: (folder / "a").write_text("old") and None)

    def fail(folder):
        (folder / "a").write_text("new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "f", fail)
    assert (tmp_path / "f" / "a").read_text() == "old"
    assert names(tmp_path) == ["f"]


def test_a_file_is_there_whole_or_as_it_was(tmp_path, monkeypatch):
    write_text(tmp_path / "t", "whole")
    write_bytes(tmp_path / "t", b"other")
    assert (tmp_path / "t").read_text() == "other"

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(tmp_path / "t", "new")
    assert (tmp_path / "t").read_text() == "other"
    assert names(tmp_path) == ["t"]


@pytest.mark.parametrize("after", [1, 2], ids=["the old is aside", "the new has its name"])
def test_a_stop_while_folders_change_places_leaves_one(tmp_path, monkeypatch, after):
    write_folder(tmp_path / "f", lambda folder: (folder / "a").write_text("old") and None)
    replace, calls = os.replace, []

    def stop(*ends):
        replace(*ends)
        calls.append(ends)
        if len(calls) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "f", lambda folder: (folder / "a").write_text("new") and None)
    assert (tmp_path / "f" / "a").read_text() == ("old" if after == 1 else "new")
    write_folder(tmp_path / "f", lambda folder: (folder / "a").write_text("newer") and None)
    assert names(tmp_path) == ["f"]


def test_a_file_system_that_flushes_no_folders_will_do(tmp_path, monkeypatch):
    flush = os.fsync

    def refuse(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    write_text(tmp_path / "t", "whole")
    assert (tmp_path / "t").read_text() == "whole"


def test_a_folder_does_not_take_a_files_place(tmp_path):
    (tmp_path / "f").write_text("dear")
    with pytest.raises(NotADirectoryError):
        write_folder(tmp_path / "f", lambda folder: (folder / "a").write_text("new") and None)
    assert (tmp_path / "f").read_text() == "dear"
    assert names(tmp_path) == ["f"]
