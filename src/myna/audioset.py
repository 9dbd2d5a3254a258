"""AudioSet's segment lists become tracks: the music among them, cut out of whatever files the user has.

AudioSet (CC BY 4.0) is lists of stretches of YouTube videos with labels of an ontology; it has no audio. A list is a
CSV file: lines that begin with #, then `YTID, start_seconds, end_seconds, "label,label"`.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myna.audio import Stretch
from myna.errors import AudioError, ConfigError
from myna.track import Track, find_tracks

MUSIC = "/m/04rlf"
BETWEEN = "|"  # labels in a column of the store
# How downloads are named: YTID, YYTID, YTID_start, YTID_start_end; in seconds or milliseconds. An id has 11 characters.
NAME = re.compile(r"Y?(?P<id>[\w-]{11})(_(?P<start>\d+(\.\d+)?)(_\d+(\.\d+)?)?)?", re.ASCII)


@dataclass(frozen=True)
class Segment:
    """A labelled stretch of a video."""

    video: str
    stretch: Stretch
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """The tracks of the wanted segments that are there, and how many segments have no file."""

    tracks: list[Track]
    missing: int


def find_segments(
    lists: Sequence[str | Path],
    folders: Sequence[str | Path],
    *,
    ontology: str | Path | None = None,
    wanted: str = MUSIC,
) -> Found:
    """Find the files of the segments in AudioSet's lists that are labelled `wanted`.

    With AudioSet's ontology.json, all that lies below `wanted` counts too, such as an instrument or a genre. A file
    that is longer than its segment is cut to it. The labels go into `extra`, parted by "|".
    Raises ConfigError for a list or an ontology that is none, and AudioError if no file at all is there.
    """
    names = read_ontology(ontology) if ontology else {}
    meant = below(wanted, names) if names else {wanted}
    segments = [segment for path in lists for segment in read_segments(path) if meant.intersection(segment.labels)]
    if not segments:
        where = ", ".join(map(str, lists))
        raise ConfigError(f"No segment in {where} is labelled {wanted}{' or below it' if names else ''}.")
    files = _by_video(find_tracks(folders))
    found: dict[str, Track] = {}
    missing = 0
    for segment in segments:
        file = next((track for track, start in files.get(segment.video, []) if _is_start(start, segment.stretch)), None)
        if file is None:
            missing += 1
            continue
        track = Track(file.path, file.extra | _facts(segment, names), file.key, segment.stretch)
        found[track.name] = track
    if not found:
        raise AudioError(
            f"None of {len(segments)} segments has its file in {', '.join(map(str, folders))}: "
            f"files are found by their video's id, such as {segments[0].video}.mp3."
        )
    return Found([found[name] for name in sorted(found)], missing)


def read_segments(path: str | Path) -> Iterator[Segment]:
    """Read a list of segments, such as unbalanced_train_segments.csv."""
    with _reading(path) as file:
        lines = (line if not line.startswith("#") else "" for line in file)
        reader = csv.reader(lines, skipinitialspace=True, strict=True)
        try:
            for row in filter(None, reader):
                video, start, end, labels = row
                yield Segment(video, Stretch(float(start), float(end)), tuple(labels.split(",")))
        except (ValueError, UnicodeDecodeError, csv.Error, ConfigError) as error:
            raise ConfigError(
                f"Line {reader.line_num} of {path} is not `YTID, start_seconds, end_seconds, labels` as in AudioSet's "
                f"lists of segments ({error})."
            ) from error


def read_ontology(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read AudioSet's ontology.json: each class by its id."""
    try:
        with _reading(path) as file:
            found = {entry["id"]: entry for entry in json.load(file)}
        if not all(isinstance(entry["name"], str) and isinstance(entry["child_ids"], list) for entry in found.values()):
            raise TypeError("a name is no text, or child_ids no list")
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not AudioSet's ontology.json: {type(error).__name__}, {error}.") from error


def below(top: str, ontology: dict[str, dict[str, Any]]) -> set[str]:
    """Return a class and all classes that are its children, at any depth."""
    if top not in ontology:
        raise ConfigError(f"The ontology has no class {top}.")
    reached, waiting = set(), [top]
    while waiting:
        one = waiting.pop()
        if one not in reached and one in ontology:
            reached.add(one)
            waiting += ontology[one]["child_ids"]
    return reached


def _reading(path: str | Path):
    try:
        return open(path, encoding="utf-8", newline="")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error


def _by_video(tracks: Sequence[Track]) -> dict[str, list[tuple[Track, float | None]]]:
    """Sort files by the video's id in their name, each with the start that the name tells, if it does."""
    files: dict[str, list[tuple[Track, float | None]]] = {}
    for track in tracks:
        match = NAME.fullmatch(track.path.stem)
        if match:
            start = None if match["start"] is None else float(match["start"])
            files.setdefault(match["id"], []).append((track, start))
    return files


def _is_start(told: float | None, stretch: Stretch) -> bool:
    """Tell whether a file whose name says where it starts, in seconds or milliseconds, holds this stretch."""
    return told is None or any(abs(told - wanted) < 1 for wanted in (stretch.start_s, 1000 * stretch.start_s))


def _facts(segment: Segment, ontology: dict[str, dict[str, Any]]) -> dict[str, Any]:
    facts = {
        "ytid": segment.video,
        "start_s": segment.stretch.start_s,
        "end_s": segment.stretch.end_s,
        "labels": BETWEEN.join(segment.labels),
    }
    if ontology:
        facts["label_names"] = BETWEEN.join(ontology[i]["name"] if i in ontology else i for i in segment.labels)
    return facts
