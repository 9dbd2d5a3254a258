"""Which files are meant, and a hash that outlives names and tags."""

import shutil

import mutagen
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from myna.audio import AudioStream
from myna.errors import AudioError, ConfigError
from myna.track import content_hash, find_tracks, read_tags
from sounds import FORMATS, music, tone, write_audio


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(*paths):
    return [track.path for track in find_tracks(paths)]


def test_folders_are_searched_at_any_depth(tmp_path):
    touch(tmp_path, "b.MP3", "a/ü ñ/c d.flac", "a/cover.jpg", "a/.hidden.mp3", ".trash/x.mp3", "notes.txt", "z.opus")
    tracks = find_tracks([tmp_path])
    assert [track.key for track in tracks] == ["a/ü ñ/c d.flac", "b.MP3", "z.opus"]
    assert [track.path for track in tracks] == [tmp_path / track.key for track in tracks]


def test_a_named_file_is_taken_whatever_its_suffix(tmp_path):
    touch(tmp_path, "song.xyz", ".hidden")
    assert found(tmp_path / "song.xyz", tmp_path / ".hidden") == [tmp_path / ".hidden", tmp_path / "song.xyz"]


def test_no_path_twice(tmp_path, monkeypatch):
    touch(tmp_path, "a/x.mp3", "a/y.mp3")
    monkeypatch.chdir(tmp_path)
    assert found("a", tmp_path / "a" / "x.mp3", "a/../a/y.mp3", ".") == [tmp_path / "a/x.mp3", tmp_path / "a/y.mp3"]


def test_link_loops_end(tmp_path):
    touch(tmp_path, "m/album/x.mp3")
    (tmp_path / "m/album/up").symlink_to(tmp_path / "m")
    (tmp_path / "m/again").symlink_to(tmp_path / "m/album")
    (tmp_path / "m/self").symlink_to(tmp_path / "m/self")
    assert found(tmp_path / "m") == [tmp_path / "m/album/x.mp3"]


def test_linked_folders_are_followed(tmp_path):
    touch(tmp_path, "elsewhere/x.mp3")
    (tmp_path / "m").mkdir()
    (tmp_path / "m/link").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "m") == [tmp_path / "m/link/x.mp3"]


def test_a_dangling_link_is_listed_and_a_folder_named_mp3_is_a_folder(tmp_path):
    touch(tmp_path, "folder.mp3/x.wav")
    (tmp_path / "gone.mp3").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path) == [tmp_path / "folder.mp3/x.wav", tmp_path / "gone.mp3"]


def test_csv_manifest(tmp_path):
    touch(tmp_path, "lists/x.mp3", "y.mp3")
    (tmp_path / "lists/all.csv").write_text(
        f'\ufeffpath,key,note\nx.mp3,001,"a, b"\n../y.mp3,C,\n{tmp_path}/lists/../gone.mp3,,\n', encoding="utf-8"
    )
    tracks = {track.path: track.extra for track in find_tracks([tmp_path / "lists/all.csv"])}
    assert tracks == {
        tmp_path / "gone.mp3": {"key": "", "note": ""},
        tmp_path / "lists/x.mp3": {"key": "001", "note": "a, b"},
        tmp_path / "y.mp3": {"key": "C", "note": ""},
    }


def test_parquet_manifest_keeps_types_and_wins_over_its_folder(tmp_path):
    touch(tmp_path, "x.mp3")
    pq.write_table(pa.table({"path": ["x.mp3"], "bpm": [120.5], "tags": [["a", "b"]]}), tmp_path / "m.parquet")
    for paths in ([tmp_path, tmp_path / "m.parquet"], [tmp_path / "m.parquet", tmp_path]):
        (track,) = find_tracks(paths)
        assert track.extra == {"bpm": 120.5, "tags": ["a", "b"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,key\nx.mp3,C\n", "`path` is needed"),
        ("", "`path` is needed"),
        ("path,key\n,C\n", "Row 1"),
        ("path\nx.mp3,C\n", "Line 2"),
        (b"path\n\xff\xfe\n", "cannot be read"),
        (b"path\nx.mp3\na\0b.mp3\n", r"Row 2 .* has the path 'a\\x00b\.mp3': the name of a file was wanted"),
    ],
)
def test_bad_manifests(tmp_path, content, message):
    (tmp_path / "m.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        find_tracks([tmp_path / "m.csv"])


@pytest.mark.parametrize("path", [7, 0, b"x.mp3"])
def test_paths_that_are_no_text(tmp_path, path):
    pq.write_table(pa.table({"path": [path]}), tmp_path / "m.parquet")
    with pytest.raises(ConfigError, match=f"Row 1 .* has the path {path!r}: the name of a file was wanted"):
        find_tracks([tmp_path / "m.parquet"])


def test_a_parquet_file_that_is_none(tmp_path):
    (tmp_path / "m.parquet").write_text("no")
    with pytest.raises(ConfigError, match="cannot be read"):
        find_tracks([tmp_path / "m.parquet"])


def test_nothing_found(tmp_path):
    with pytest.raises(AudioError, match="No audio files"):
        find_tracks([tmp_path])
    with pytest.raises(AudioError, match="No audio files"):
        find_tracks([])
    with pytest.raises(AudioError, match="no file or folder"):
        find_tracks([tmp_path / "gone"])


@pytest.mark.parametrize("format", FORMATS)
def test_hash_is_the_same_while_decoding(tmp_path, format):
    path = write_audio(tmp_path / "x", music(2, 48_000), 48_000, format=format)
    with AudioStream(path) as stream:
        assert sum(map(len, stream))
    assert stream.content_hash == content_hash(path)


@pytest.mark.parametrize("suffix", ["mp3", "flac", "ogg", "opus", "m4a", "aiff"])
def test_hash_outlives_moving_and_retagging(tmp_path, suffix):
    path = write_audio(tmp_path / f"x.{suffix}", music(3, 48_000), 48_000)
    before = content_hash(path)
    moved = shutil.move(path, tmp_path / f"moved é.{suffix}")
    for tags in ({"title": "Second", "artist": "Someone"}, {"title": "T" * 50_000}, {}):
        file = mutagen.File(moved, easy=suffix != "aiff")
        if suffix == "aiff":
            file.tags or file.add_tags()
            file.tags.clear()
            for name, value in tags.items():
                file.tags.add(getattr(mutagen.id3, {"title": "TIT2", "artist": "TPE1"}[name])(text=value))
        else:
            file.delete() if not tags else file.update(tags)
        file.save()
        assert content_hash(moved) == before
        assert read_tags(moved).get("title") == tags.get("title")


def test_an_id3v1_tag_at_the_end_is_no_content(tmp_path):
    path = write_audio(tmp_path / "x.mp3", music(3))
    before = content_hash(path)
    with open(path, "ab") as file:
        file.write(b"TAG" + b"A title".ljust(125, b"\0"))
    assert content_hash(path) == before


def test_hash_tells_music_apart(tmp_path):
    names = {content_hash(write_audio(tmp_path / f"{seed}.mp3", music(2, seed=seed))) for seed in range(3)}
    names.add(content_hash(write_audio(tmp_path / "0.flac", music(2, seed=0))))
    assert len(names) == 4
    assert all(len(name) == 32 for name in names)


def test_the_same_samples_at_another_rate_are_other_music(tmp_path):
    wave = tone(1, rate_hz=16_000)
    slow, fast = (write_audio(tmp_path / f"{rate}.wav", wave, rate) for rate in (16_000, 32_000))
    assert content_hash(slow) != content_hash(fast)


def test_hash_of_what_is_no_audio(tmp_path):
    (tmp_path / "x.mp3").write_text("no")
    with pytest.raises(AudioError):
        content_hash(tmp_path / "x.mp3")


@pytest.mark.parametrize("suffix", ["mp3", "flac", "ogg", "opus", "m4a", "wma"])
def test_tags(tmp_path, suffix):
    tags = {"title": "Ünder – 音", "artist": "A & B", "album": "C", "genre": "Jazz", "track": "3"}
    path = write_audio(tmp_path / f"x.{suffix}", tone(1, rate_hz=48_000, channels=2), 48_000, tags=tags)
    assert read_tags(path) == tags | read_tags(path)
    assert not read_tags(path).keys() & {"encoder", "major_brand", "language"}
