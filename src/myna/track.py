"""Paths, folders and manifests become a list of tracks; encoded audio gets a name that outlives its tags."""

import csv
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq

from myna.audio import Stretch, duration_s, open_audio, packet_hash
from myna.errors import AudioError, ConfigError

# fmt: off
SUFFIXES = frozenset([
    ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".ape", ".au", ".caf", ".dff", ".dsf", ".flac", ".m4a", ".m4b",
    ".mka", ".mp2", ".mp3", ".mp4", ".mpc", ".oga", ".ogg", ".opus", ".ra", ".tak", ".tta", ".w64", ".wav", ".webm",
    ".wma", ".wv",
])
# fmt: on
MANIFESTS = frozenset([".csv", ".parquet"])
# what containers say about themselves rather than about the music
TECHNICAL = frozenset(["compatible_brands", "creation_time", "encoder", "encoding", "handler_name", "language"])
TECHNICAL |= {"major_brand", "minor_version", "vendor_id"}
FRAGMENT = re.compile(r"(?P<path>.+)#t=(?P<start>\d+\.\d{3}),(?P<end>\d+\.\d{3})", re.DOTALL)


@dataclass(frozen=True)
class Track:
    """A file to be used: where it is, and what the user's manifest says of it.

    `key` is its path below the folder or manifest that named it: the same on every machine that sees the folder.
    `stretch`, if there is one, is the part of the file that is meant; the whole file is, if it was cut to it before.
    """

    path: Path
    extra: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    stretch: Stretch | None = None

    @property
    def name(self) -> str:
        """The path as a table holds it, with a stretch as a media fragment: `a.mp3#t=30.000,40.000`."""
        name = track_name(self.path)
        return name if self.stretch is None else f"{name}#t={self.stretch}"


def named(name: str) -> Track:
    """Return the track of a `Track.name`. A file that is really called so comes before a stretch of another."""
    match = FRAGMENT.fullmatch(name)
    if match is None or os.path.lexists(name):
        return Track(Path(name))
    return Track(Path(match["path"]), stretch=Stretch(float(match["start"]), float(match["end"])))


def track_name(path: Path) -> str:
    """Write a path so that a table can hold it, also one that is not valid UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def find_tracks(paths: Sequence[str | Path]) -> list[Track]:
    """List the audio files that are meant, sorted by absolute path, none twice.

    A file is taken whatever its suffix; a folder gives its audio files at any depth, but no hidden ones; a .csv
    or .parquet file is a manifest: its column `path`, relative to the manifest, and the others as `extra`.
    Raises AudioError for a path that does not exist and if nothing is found, ConfigError for a bad manifest.
    """
    found: dict[Path, Track] = {}
    for path in map(Path, paths):
        if path.is_dir():
            tracks: Iterable[Track] = _in_folder(path)
        elif path.suffix.lower() in MANIFESTS and path.is_file():
            tracks = _in_manifest(path)
        elif path.exists():
            tracks = [Track(_absolute(path), key=path.name)]
        else:
            raise AudioError(f"There is no file or folder {path}: check the path.")
        for track in tracks:
            known = found.get(track.path)
            if known is None or not known.extra:  # a manifest knows more of a file than its folder does
                found[track.path] = track
    if not found:
        raise AudioError(f"No audio files were found in {', '.join(map(str, paths)) or 'an empty list of paths'}.")
    return [found[path] for path in sorted(found)]


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # links stay as they are: the user knows the file by this name


def _in_folder(root: Path) -> Iterator[Track]:
    """Walk a folder, links to folders last and no folder twice, so that loops end and real places win."""
    root = _absolute(root)
    waiting, seen = deque([root]), set()
    while waiting:
        folder = waiting.popleft()
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:  # a folder that may not be listed, or that went away
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.appendleft(path)
            elif os.path.isdir(path):  # unlike entry.is_dir(), no to a link to itself
                waiting.append(path)
            elif path.suffix.lower() in SUFFIXES:
                yield Track(path, key=path.relative_to(root).as_posix())


def _in_manifest(manifest: Path) -> Iterator[Track]:
    try:
        rows = _read_parquet(manifest) if manifest.suffix.lower() == ".parquet" else _read_csv(manifest)
    except (pa.ArrowInvalid, csv.Error, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"The manifest {manifest} cannot be read: {error}.") from error
    for number, row in enumerate(rows, start=1):
        named = row.pop("path")
        if named is None or named == "":
            raise ConfigError(f"Row {number} of the manifest {manifest} has an empty path: fill it in or drop it.")
        if not isinstance(named, str) or "\0" in named:
            raise ConfigError(
                f"Row {number} of the manifest {manifest} has the path {named!r}: the name of a file was wanted."
            )
        yield Track(_absolute(manifest.parent / named), row, key=named)


def _read_parquet(manifest: Path) -> list[dict[str, Any]]:
    table = pq.read_table(manifest)
    _check_columns(manifest, table.column_names)
    return table.to_pylist()


def _read_csv(manifest: Path) -> list[dict[str, Any]]:
    with open(manifest, newline="", encoding="utf-8-sig") as file:  # spreadsheets begin UTF-8 files with a mark
        reader = csv.DictReader(file, strict=True)
        _check_columns(manifest, reader.fieldnames or [])
        rows = list(reader)
    ragged = next((number for number, row in enumerate(rows, start=2) if None in row), None)
    if ragged:
        raise ConfigError(f"Line {ragged} of the manifest {manifest} has more values than there are columns.")
    return rows


def _check_columns(manifest: Path, names: Sequence[str]) -> None:
    if "path" not in names:
        raise ConfigError(
            f"The manifest {manifest} has the columns {', '.join(names) or '(none)'}: one named `path` is needed."
        )


def content_hash(path: str | Path, stretch: Stretch | None = None) -> str:
    """Hash a file's encoded audio, without decoding it: moving or retagging the file changes nothing.

    Each stretch that is cut out of a file has a hash of its own. Where the container is damaged the hash ends. Raises
    AudioError if the file is no audio.
    """
    with open_audio(path) as (container, stream):
        digest = packet_hash(stream, stretch.within(duration_s(container, stream)) if stretch else None)
        try:
            for packet in container.demux(stream):
                digest.update(packet)
        except av.FFmpegError:
            pass
        return digest.hexdigest()


def read_tags(path: str | Path) -> dict[str, str]:
    """Read title, artist, album, genre and whatever else a file says of its music; keys in lower case."""
    with open_audio(path) as (container, stream):
        return tags_of(container, stream)


def tags_of(container: av.container.InputContainer, stream: av.AudioStream) -> dict[str, str]:
    """Read the tags of an open file; some formats keep them with the stream, others with the container."""
    both = {**stream.metadata, **container.metadata}
    tags = {name.lower(): value.strip() for name, value in both.items()}
    return {name: value for name, value in sorted(tags.items()) if value and name not in TECHNICAL}
