"""GiantSteps: the key of electronic dance music, 1763 songs of 2 minutes, in 7035 clips of 30 s.

Sources: the GiantSteps MTG key data set (Faraldo et al.; train and valid) and the GiantSteps key data set (Knees et
al., ISMIR 2015; test). Only annotations are published there; the audio are previews of Beatport, mirrored by the JKU
Linz, with no licence stated. Layout: each repository has md5/<id>.LOFI.md5, which lists its songs, and
annotations/key/<id>.LOFI.key; that of MTG also annotations/annotations.txt (ID, MANUAL KEY, C for confidence) and
annotations/beatport_metadata.txt (ID, ARTIST, ...), with tabs. Audio is <id>.LOFI.mp3, anywhere in the folder. Ids are
numbers: some revisions pad them with zeros.

Rules. All 604 songs of the key data set are test. Of MTG's 1486, those of confidence 2 with one key remain: 1159.
They are split by artist: SHA-1 of the artist's name in lower case, modulo 116, below 100 is train, else valid. Then
twice, over all 1486 rows in the order of the file, every artist who shares a song with a valid one becomes valid.
Clips begin at 0, 30, 60 s, ... as long as 30 s are left of the length that the file states; all clips of a song are
one song and one group.

[?] The mirrors, the terms of the audio and its size could not be verified. Lengths are as this machine's FFmpeg states
them; counts of clips that differ from the known ones are an error.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from myna.errors import ConfigError, TaskError
from myna.key import KEYS, parse_key
from myna.task.base import PARTS, Benchmark, Item, Part, Problem, Reading, Source, Split
from myna.task.files import find, folders, for_each, probe_s, read_table, whole_number, why_unusable

CLIP_S = 30.0
BUCKETS, TRAIN_BUCKETS = 116, 100
PASSES = 2  # collaborators of collaborators
CONFIDENT = "2"
ARCHIVES = ("giantsteps-*.zip",)
_FILE = re.compile(r"(\d+)\.LOFI\.(md5|key|mp3)")


def split_artist(name: str) -> Part:
    """Return the split of an artist alone, by the hash of the name."""
    bucket = int(hashlib.sha1(name.lower().encode()).hexdigest(), 16) % BUCKETS
    return "train" if bucket < TRAIN_BUCKETS else "valid"


def artists_of(written: str) -> list[str]:
    """Part the names of a song's artists."""
    return [name.strip() for name in written.strip().split(",")]


def split_artists(written: Sequence[str], passes: int = PASSES) -> dict[str, Part]:
    """Return the split of every artist, given the artists of all songs, in order.

    A pass goes over the songs once and uses at once what it changed, so the order of the songs matters.
    """
    songs = [artists_of(names) for names in written]
    part = {name: split_artist(name) for names in songs for name in names}
    for _ in range(passes):
        for names in songs:
            if any(part[name] == "valid" for name in names):
                part.update(dict.fromkeys(names, "valid"))
    return part


def keeps(confidence: str, key: str) -> bool:
    """Say whether a song of MTG's stays: the annotator was sure, and it has one key."""
    return confidence.strip() == CONFIDENT and "/" not in key


def clip_starts(length_s: float) -> list[float]:
    """Return where clips begin in a file of this length: end to end, each whole."""
    starts, start = [], 0.0
    while start < length_s and length_s - start >= CLIP_S:
        starts.append(start)
        start += CLIP_S
    return starts


def read(data: Path) -> Reading:
    """Read the benchmark from a folder that holds both annotation repositories and the audio."""
    songs = {**_train_songs(data), **_test_songs(data)}
    audio = {}
    for folder in folders(data):
        audio.update({number: path for number, path in _numbered(folder, "mp3").items() if number not in audio})
    paths = {number: audio.get(number, data / f"{number}.LOFI.mp3") for number in sorted(songs)}
    clips, problems = _clips(paths)
    items = tuple(
        Item(f"{number:07d}-{k}", paths[number], part, key, song, start_s=start, length_s=CLIP_S, song=song)
        for number, (part, key) in sorted(songs.items())
        for song in [f"{number:07d}"]
        for k, start in enumerate(clips.get(number, []))
    )
    ids = {part: tuple(f"{n:07d}" for n, (of, _) in sorted(songs.items()) if of == part) for part in PARTS}
    facts = {}
    if not problems:
        facts = {f"the number of 30 s clips in {part}": sum(item.part == part for item in items) for part in PARTS}
    return Reading(ids, items, KEYS, tuple(problems), facts)


def _clips(paths: dict[int, Path]) -> tuple[dict[int, list[float]], list[Problem]]:
    """Probe every file and cut it; say which cannot be used."""
    clips, problems = {}, []
    lengths = for_each(_length, paths.values())
    for (number, path), (length, why) in zip(paths.items(), lengths, strict=True):
        if why is None and not (starts := clip_starts(length)):
            why = f"{length:.1f} s long, shorter than one clip of {CLIP_S:.0f} s"
        if why is None:
            clips[number] = starts
        else:
            problems.append(Problem(f"{number:07d}", path, why))
    return clips, problems


def _length(path: Path) -> tuple[float, str | None]:
    why = why_unusable(path)
    length = None if why else probe_s(path)
    return length or 0.0, why or (None if length else "no audio file that can be read")


def _train_songs(data: Path) -> dict[int, tuple[Part, int]]:
    """Return split and key of the songs of MTG's repository that stay."""
    repository = find(
        data,
        "The GiantSteps MTG key annotations (md5/ and annotations/beatport_metadata.txt)",
        lambda folder: _is_repository(folder) and (folder / "annotations/beatport_metadata.txt").is_file(),
        ARCHIVES,
    )
    artist_file, key_file = repository / "annotations/beatport_metadata.txt", repository / "annotations/annotations.txt"
    artists = _by_number(artist_file, ["ID", "ARTIST"])
    part = split_artists([row["ARTIST"] for row in artists.values()])
    keys = _by_number(key_file, ["ID", "MANUAL KEY", "C"])
    songs = {}
    for number in _listed(repository, known=(artists, keys)):
        row = keys[number]
        if keeps(row["C"], row["MANUAL KEY"]):
            parts = {part[name] for name in artists_of(artists[number]["ARTIST"])}
            if len(parts) > 1:
                raise TaskError(
                    f"The artists of song {number} ({artists[number]['ARTIST']}) are in both train and valid: "
                    f"{artist_file} is not the one that the rule was made for."
                )
            songs[number] = (parts.pop(), _key(row["MANUAL KEY"], number, key_file))
    return songs


def _test_songs(data: Path) -> dict[int, tuple[Part, int]]:
    repository = find(
        data,
        "The GiantSteps key annotations (md5/ and annotations/key/, without beatport_metadata.txt)",
        lambda folder: _is_repository(folder) and not (folder / "annotations/beatport_metadata.txt").exists(),
        ARCHIVES,
    )
    files = _numbered(repository / "annotations/key", "key")
    songs = _listed(repository, known=(files,))
    return {number: ("test", _key(files[number].read_text("utf-8"), number, files[number])) for number in songs}


def _is_repository(folder: Path) -> bool:
    return (folder / "md5").is_dir() and (folder / "annotations/key").is_dir()


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Return the files <id>.LOFI.<suffix> of a folder by id."""
    if not folder.is_dir():
        return {}
    matches = ((path, _FILE.fullmatch(path.name)) for path in sorted(folder.iterdir()))
    return {int(found[1]): path for path, found in matches if found and found[2] == suffix}


def _by_number(path: Path, columns: list[str]) -> dict[int, dict[str, str]]:
    if not path.is_file():
        raise TaskError(f"There is no {path}: is the repository whole?")
    return {whole_number(row["ID"], path): row for row in read_table(path, columns, delimiter="\t")}


def _listed(repository: Path, known: Iterable[dict]) -> list[int]:
    songs = sorted(_numbered(repository / "md5", "md5"))
    lacking = [number for number in songs if not all(number in table for table in known)]
    if lacking:
        raise TaskError(
            f"{len(lacking)} songs of {repository / 'md5'} have no annotation, such as {lacking[0]}: is the repository "
            "whole?"
        )
    return songs


def _key(text: str, number: int, path: Path) -> int:
    try:
        return parse_key(text)
    except ConfigError as error:
        raise TaskError(f"{path} has the key {text.strip()!r} for song {number}: {error}") from error


BENCHMARK = Benchmark(
    name="giantsteps",
    title="GiantSteps: key of electronic dance music",
    version=1,
    answer="key",
    sources=(
        Source(
            "annotations for train and valid",
            "https://github.com/GiantSteps/giantsteps-mtg-key-dataset (JukeMIR: at commit fd7b8c5)",
            "some MB [?]",
            "DIR, cloned, or as zip and `myna tasks unpack giantsteps`",
        ),
        Source(
            "annotations for test",
            "https://github.com/GiantSteps/giantsteps-key-dataset (JukeMIR: at commit c8cb8aa)",
            "some MB [?]",
            "DIR, as above",
        ),
        Source(
            "audio for train and valid",
            "http://www.cp.jku.at/datasets/giantsteps/mtg_key_backup/<id>.LOFI.mp3",
            "1486 files, 2 to 3 GB [?]",
            "DIR or any folder in it, such as DIR/audio",
        ),
        Source(
            "audio for test",
            "http://www.cp.jku.at/datasets/giantsteps/backup/<id>.LOFI.mp3",
            "604 files, about 1 GB [?]",
            "as above",
        ),
    ),
    splits={
        "train": Split(923, "7145a5cebafac1e6f81fdc2f2057fecedc3c9956da2e3fb44b4b7fbc1a14b1a7"),
        "valid": Split(236, "61ecdc6ec8828fb860bb6b92ad01206ffc3ed431bf89177c4c8a904503bdf436"),
        "test": Split(604, "f70acf05f1f781347426f68f0be478836ffdb8b01948b4e3c802ccc56b9007fc"),
    },
    read=read,
    archives=ARCHIVES,
    facts={
        "the number of 30 s clips in train": 3687,
        "the number of 30 s clips in valid": 942,
        "the number of 30 s clips in test": 2406,
    },
    unit="songs",
)
