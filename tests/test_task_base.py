"""Counts and ids of splits, files on disk, archives and downloads: what all benchmarks share."""

import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from layouts import sound, table
from myna.errors import TaskError
from myna.task.archive import Joined, plan, unpack
from myna.task.base import Item, Split, Task, check_counts, check_facts, hash_ids
from myna.task.download import download
from myna.task.files import find_file, folders, probe_s, read_table, why_undecodable, why_unusable


def test_the_hash_of_ids_knows_no_order_and_ends_without_a_newline():
    assert hash_ids(["b", "a"]) == hash_ids(["a", "b"]) == hashlib.sha256(b"a\nb").hexdigest()


def test_counts_and_ids_are_told_apart():
    wanted = {"train": Split(2, hash_ids(["a", "b"])), "test": Split(1, hash_ids(["c"]))}
    assert check_counts("x", {"train": ("b", "a"), "test": ("c",)}, wanted) == []
    (count,) = check_counts("x", {"train": ("a",), "test": ("c",)}, wanted)
    assert count == "x: wrong count: the train split has 1 ids, 2 were wanted."
    (other,) = check_counts("x", {"train": ("a", "b"), "test": ("d",)}, wanted)
    assert "other ids: the test split" in other
    assert hash_ids(["c"]) in other
    assert hash_ids(["d"]) in other


def test_numbers_are_compared_to_a_millionth_and_nan_is_wrong():
    assert check_facts("x", {"mean": 1.0000009}, {"mean": 1.0}) == []
    assert check_facts("x", {}, {"mean": 1.0}) == []  # only what could be told is compared
    assert check_facts("x", {"mean": 1.0000011}, {"mean": 1.0}) != []
    assert "nan" in check_facts("x", {"mean": float("nan")}, {"mean": 1.0})[0]


def test_labels_are_integers_for_classes_and_rows_of_floats_else():
    classes = Task("x", 1, "single", ("a", "b"), (Item("1", Path("1"), "train", 1, "1"),))
    assert classes.labels("train").dtype == np.int64
    assert classes.labels("train").tolist() == [1]
    tags = Task("x", 1, "multi", ("a", "b"), (Item("1", Path("1"), "test", (1.0, 0.0), "1"),))
    assert tags.labels("test").dtype == np.float32
    assert tags.labels("test").shape == (1, 2)


# ------------------------------------------------------------------------------------------- files


def test_folders_are_searched_nearest_first_and_three_deep(tmp_path):
    (tmp_path / "b/c/d/e").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    (tmp_path / ".hidden").mkdir()
    names = [str(folder.relative_to(tmp_path)) for folder in folders(tmp_path)]
    assert names == [".", "a", "b", "b/c", "b/c/d"]


def test_a_file_that_is_not_there_is_named_with_where_it_was_looked_for(tmp_path):
    with pytest.raises(TaskError, match=r"songs_info\.csv was looked for in .* 3 deep.*myna tasks"):
        find_file(tmp_path, "songs_info.csv")
    (tmp_path / "annotations.tar.gz").touch()
    with pytest.raises(TaskError, match=r"there is annotations\.tar\.gz, not unpacked: `myna tasks unpack`"):
        find_file(tmp_path, "songs_info.csv", ["annotations.tar.gz"])
    with pytest.raises(TaskError, match="There is no folder"):
        find_file(tmp_path / "none", "songs_info.csv")


def test_tables_are_read_with_quotes_marks_and_spaces(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes('\ufeffa, b\r\n"1,5",two\r\n\r\n 3 ,"say ""four"""\r\n'.encode())
    assert read_table(path, ["a", "b"]) == [{"a": "1,5", "b": "two"}, {"a": " 3 ", "b": 'say "four"'}]


def test_tables_that_are_not_whole(tmp_path):
    path = table(tmp_path / "x.csv", ["a", "b", "c"], [["1", "2", "3"], ["4", "5"]], delimiter=",")
    assert len(read_table(path, ["a", "b"])) == 2
    with pytest.raises(TaskError, match=r"Row 2 of .* has 2 values where the header has 3"):
        read_table(path, ["c"])
    with pytest.raises(TaskError, match="Row 2"):
        read_table(path, ["a"], exact=True)
    with pytest.raises(TaskError, match="has no column d; it has a, b, c"):
        read_table(path, ["d"])
    path.write_bytes(b"a,b\ncaf\xe9,2\n")
    with pytest.raises(TaskError, match="UTF-8"):
        read_table(path, ["a"])
    path.write_bytes(b"")
    with pytest.raises(TaskError, match="it has none"):
        read_table(path, ["a"])


def test_why_a_file_cannot_be_used(tmp_path):
    good = sound(tmp_path / "good.wav")
    (tmp_path / "empty.mp3").touch()
    (tmp_path / "text.wav").write_text("no music at all, only words")
    (tmp_path / "half.wav").write_bytes(good.read_bytes()[:30])
    assert why_unusable(good) is None
    assert why_unusable(tmp_path / "none.wav") == "no such file"
    assert why_unusable(tmp_path / "empty.mp3") == "empty, zero bytes"
    assert "not a RIFF file" in why_unusable(tmp_path / "text.wav")
    assert why_undecodable(good) is None
    assert why_unusable(tmp_path / "half.wav") is None  # at first sight
    assert why_undecodable(tmp_path / "half.wav") is not None


def test_the_length_that_a_file_states(tmp_path):
    assert probe_s(sound(tmp_path / "a.wav", 1.5)) == pytest.approx(1.5, abs=1e-3)
    assert probe_s(sound(tmp_path / "a.mp3", 2.0, 44_100)) == pytest.approx(2.0, abs=0.1)
    (tmp_path / "b.mp3").write_text("words")
    assert probe_s(tmp_path / "b.mp3") is None


# ----------------------------------------------------------------------------------------- archives


def test_parts_read_as_one(tmp_path):
    whole = bytes(range(256)) * 3
    paths = []
    for number, (start, end) in enumerate([(0, 100), (100, 101), (101, 768)]):
        paths.append(tmp_path / f"x.{number}")
        paths[-1].write_bytes(whole[start:end])
    with io.BufferedReader(Joined(paths), 16) as file:
        assert file.read() == whole
        file.seek(-10, io.SEEK_END)
        assert file.read() == whole[-10:]
        file.seek(95)
        assert file.read(20) == whole[95:115]


def zipped(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def marked(content: bytes, *, flag: int = 0, method: int = 0) -> bytes:
    """Say of a zip's one member that it is encrypted, or packed by an unknown method."""
    changed = bytearray(content)
    for place in (6, content.index(b"PK\x01\x02") + 8):  # the member's own header, and the list at the end
        changed[place], changed[place + 2] = flag, method
    return bytes(changed)


def test_a_zip_in_three_parts_is_unpacked_without_joining_it(tmp_path):
    content = zipped({"0/a.mp3": b"a" * 500, "f/b.mp3": b"b" * 500})
    for number, start in enumerate(range(0, len(content), 400), start=1):
        (tmp_path / f"mp3.zip.{number:03d}").write_bytes(content[start : start + 400])
    jobs = plan(sorted(tmp_path.iterdir()))
    assert list(jobs) == [tmp_path / "mp3"]
    assert len(jobs[tmp_path / "mp3"]) == 4
    assert unpack(jobs[tmp_path / "mp3"], tmp_path / "mp3") == 2
    assert (tmp_path / "mp3/f/b.mp3").read_bytes() == b"b" * 500
    (tmp_path / "mp3.zip").write_bytes(content)
    assert plan(sorted(tmp_path.glob("mp3.zip*"))) == {tmp_path / "mp3": [tmp_path / "mp3.zip"]}


def test_a_tar_is_unpacked_without_its_links(tmp_path):
    with tarfile.open(tmp_path / "genres.tar.gz", "w:gz") as archive:
        for name in ("genres/blues/blues.00000.wav", "genres/._x"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("genres/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    ((into, parts),) = plan([tmp_path / "genres.tar.gz"]).items()
    assert into == tmp_path / "genres"
    assert unpack(parts, into) == 2
    assert (into / "genres/blues/blues.00000.wav").read_bytes() == b"abc"
    assert not (into / "genres/link").is_symlink()
    with pytest.raises(TaskError, match="is there already"):
        unpack(parts, into)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_an_archive_that_points_outside_leaves_nothing(tmp_path, name):
    (tmp_path / "x.zip").write_bytes(zipped({"fine": b"1", name: b"2"}))
    with pytest.raises(TaskError, match="not to be trusted"):
        unpack([tmp_path / "x.zip"], tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.zip", b"no zip"),
        ("x.zip", zipped({"a": b"a" * 500})[:300]),  # the last part is missing
        ("x.tar.gz", b"no tar"),
        ("x.tar.gz", gzip.compress(b"no tar in it")),
        ("x.zip", zipped({})),
        ("x.zip", marked(zipped({"a": b"a"}), flag=1)),  # encrypted
        ("x.zip", marked(zipped({"a": b"a"}), method=99)),
    ],
    ids=["text.zip", "parts.zip", "text.tar", "no.tar", "empty.zip", "locked.zip", "unknown.zip"],
)
def test_a_damaged_archive_leaves_nothing(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=r"cannot be unpacked|holds no files"):
        unpack([tmp_path / name], tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


# ---------------------------------------------------------------------------------------- downloads


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A web server on this machine; gives its address and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()
        thread.join()


def test_a_download_is_accepted_before_it_is_kept(server, tmp_path):
    url, served = server
    (served / "list.txt").write_text("content")
    seen = []
    assert download(f"{url}/list.txt", tmp_path / "list.txt", seen.append).read_text() == "content"
    assert seen == [b"content"]

    def refuse(_):
        raise TaskError("another file")

    with pytest.raises(TaskError, match="another file"):
        download(f"{url}/list.txt", tmp_path / "other.txt", refuse)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt", "served"]


def test_a_download_from_a_file_address(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    assert download((tmp_path / "a").as_uri(), tmp_path / "b", lambda _: None).read_bytes() == b"x"


def test_no_network_and_no_such_page_are_one_sentence(server, tmp_path):
    url, _ = server
    with pytest.raises(TaskError, match=r"could not be downloaded .*not found"):
        download(f"{url}/none.txt", tmp_path / "a", lambda _: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        port = closed.server_port
    with pytest.raises(TaskError, match=r"is there a network\? Else put it by hand at"):
        download(f"http://127.0.0.1:{port}/a", tmp_path / "a", lambda _: None)
    assert not (tmp_path / "a").exists()


def test_an_answer_that_is_no_http_is_one_sentence(tmp_path):
    class Mumble(BaseHTTPRequestHandler):
        def handle(self):
            self.request.recv(4096)
            self.request.sendall(b"what?\r\n\r\n")

    with ThreadingHTTPServer(("127.0.0.1", 0), Mumble) as running:
        thread = threading.Thread(target=running.handle_request)
        thread.start()
        with pytest.raises(TaskError, match="could not be downloaded"):
            download(f"http://127.0.0.1:{running.server_port}/a", tmp_path / "a", lambda _: None)
        thread.join()
