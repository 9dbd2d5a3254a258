"""EmoMusic: arousal and valence of 744 clips of 45 s.

Source: Soleymani et al., CrowdMM 2013; the music is from the Free Music Archive under Creative Commons licences.
Layout: annotations.tar.gz holds songs_info.csv (song_id, Artist, "Mediaeval 2013 set", ...) and static_annotations.csv
(song_id, mean_arousal, mean_valence, ... from 1 to 9); clips_45sec.tar.gz holds clips_45seconds/<song_id>.mp3. Fields
carry stray white space.

Splits: the set "evaluation" is test (125). The others are split by artist: the name in lower case, ASCII letters and
single spaces only, SHA-1 modulo 10, 0 to 7 train, 8 and 9 valid. The test split is not artist-disjoint.
Targets: (arousal, valence), less the mean and over the standard deviation (N, not N - 1) of train and valid together.

[?] The archives' folders, sizes and host could not be verified, nor the terms of the annotations.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from myna.errors import TaskError
from myna.task.base import Benchmark, Item, Part, Problem, Reading, Source, Split
from myna.task.files import find, find_file, folders, read_table, whole_number, why_unusable

TARGETS = ("arousal", "valence")
SET = "Mediaeval 2013 set"
BUCKETS, TRAIN_BUCKETS = 10, 8
ARCHIVES = ("annotations.tar.gz", "clips_45sec.tar.gz")


def plain_artist(name: str) -> str:
    """Write an artist as the split rule does: lower case, ASCII letters, single spaces."""
    kept = "".join(c for c in name.lower() if c.isascii() and (c.isalpha() or c.isspace()))
    return " ".join(kept.split())


def split_of(artist: str, mediaeval_set: str) -> Part:
    """Return the split of a song."""
    if mediaeval_set == "evaluation":
        return "test"
    bucket = int(hashlib.sha1(plain_artist(artist).encode()).hexdigest(), 16) % BUCKETS
    return "train" if bucket < TRAIN_BUCKETS else "valid"


def scale(
    values: Mapping[str, Sequence[float]], parts: Mapping[str, Part]
) -> tuple[dict[str, tuple[float, ...]], Float64[np.ndarray, "2 target"]]:
    """Return the values of each id on the scale of the development songs, and their mean and standard deviation."""
    development = np.array([values[song] for song in values if parts[song] != "test"], np.float64)
    if len(development) < 2 or not (deviation := development.std(axis=0)).all():
        raise TaskError("EmoMusic's development songs have no two different ratings: are the annotations whole?")
    mean = development.mean(axis=0)
    scaled = {song: tuple(((np.array(value) - mean) / deviation).tolist()) for song, value in values.items()}
    return scaled, np.stack([mean, deviation])


def read(data: Path) -> Reading:
    """Read the benchmark from a folder that holds annotations and clips."""
    # only ASCII letters of the artists count, so a name in another encoding does no harm
    info = _by_song(find_file(data, "songs_info.csv", ARCHIVES), ["Artist", SET], errors="replace")
    rating_file = find_file(data, "static_annotations.csv", ARCHIVES)
    ratings = _by_song(rating_file, [f"mean_{target}" for target in TARGETS])
    if info.keys() != ratings.keys():
        odd = sorted(info.keys() ^ ratings.keys())
        raise TaskError(
            f"{len(odd)} songs, such as {odd[0]}, are only in one of songs_info.csv and static_annotations.csv: are "
            "both whole and of one release?"
        )
    parts = {song: split_of(row["Artist"], row[SET]) for song, row in sorted(info.items())}
    values = {song: [_number(ratings[song][f"mean_{target}"], rating_file) for target in TARGETS] for song in parts}
    labels, (mean, deviation) = scale(values, parts)
    folder = _audio_folder(data, parts)
    items, problems = [], []
    for song, part in parts.items():
        path = folder / f"{int(song)}.mp3"
        why = why_unusable(path)
        if why:
            problems.append(Problem(song, path, why))
        else:
            items.append(Item(song, path, part, labels[song], group=song))
    ids: dict[Part, list[str]] = {"train": [], "valid": [], "test": []}
    for song, part in parts.items():
        ids[part].append(song)
    facts = {f"the mean {target}": float(value) for target, value in zip(TARGETS, mean, strict=True)}
    facts |= {f"the deviation of {target}": float(value) for target, value in zip(TARGETS, deviation, strict=True)}
    return Reading({part: tuple(songs) for part, songs in ids.items()}, tuple(items), TARGETS, tuple(problems), facts)


def _by_song(path: Path, columns: list[str], errors: str = "strict") -> dict[str, dict[str, str]]:
    rows = read_table(path, ["song_id", *columns], errors=errors)
    stripped = [{name: value.strip() for name, value in row.items()} for row in rows]
    return {f"{whole_number(row['song_id'], path):04d}": row for row in stripped}


def _number(text: str, path: Path) -> float:
    try:
        return float(text)
    except ValueError:
        raise TaskError(f"{path} has the rating {text!r}: a number was wanted.") from None


def _audio_folder(data: Path, songs: Mapping[str, Part]) -> Path:
    """Find the folder with most of the clips: a copy of the full songs has files of the same names beside it."""
    names = [f"{int(song)}.mp3" for song in songs]

    def holds(folder: Path) -> int:
        return sum((folder / name).exists() for name in names)

    find(data, "The audio (the folder clips_45seconds with <song_id>.mp3)", lambda folder: holds(folder) > 0, ARCHIVES)
    return max(
        folders(data), key=lambda folder: (holds(folder) > 0 and folder.name == "clips_45seconds", holds(folder))
    )


BENCHMARK = Benchmark(
    name="emomusic",
    title="EmoMusic: arousal and valence",
    version=1,
    answer="regression",
    sources=(
        Source(
            "ratings",
            "http://cvml.unige.ch/databases/emoMusic/annotations.tar.gz",
            "some MB [?]",
            "DIR, then `myna tasks unpack emomusic`",
        ),
        Source("clips", "http://cvml.unige.ch/databases/emoMusic/clips_45sec.tar.gz", "[?]", "DIR, as above"),
    ),
    splits={
        "train": Split(504, "1ff6b1339d4026f8ac19720a40e747450fba9e0b02cfeb98799fa75d53dd99f4"),
        "valid": Split(115, "65eabba45a8c6888c79504a3e099a60eebc79acf6fcd98e4747850b55cb921ec"),
        "test": Split(125, "8d3c2b6b355b636df933f3e84bc21250508d673dd669cf19f864687294fa31a5"),
    },
    read=read,
    archives=ARCHIVES,
    facts={
        "the mean arousal": 4.756063,
        "the deviation of arousal": 1.386010,
        "the mean valence": 4.973865,
        "the deviation of valence": 1.254618,
    },
)
