"""GTZAN, fault-filtered: 930 tracks of 30 s in 10 genres.

Source: Tzanetakis and Cook, 2002; no licence is stated, the recordings are commercial ones. Layout as distributed:
genres/<genre>/<genre>.NNNNN.wav (or .au); the common re-upload has them in Data/genres_original/. Files are matched by
their stems.

Splits: the three lists of Kereliuk, Sturm and Larsen (2015), which leave out repetitions, distortions and other faults
that Sturm found: 443, 197 and 290 tracks. They follow no rule, so they are read from train_filtered.txt,
valid_filtered.txt and test_filtered.txt, and known by the SHA-256 of their sorted ids. `download_lists` fetches them.

The re-upload's jazz.00054.wav is no sound file, and it belongs to the training split.
[?] Whether old copies hold .au is from memory; both are read.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path, PurePosixPath

from myna.errors import TaskError
from myna.task.base import PARTS, Benchmark, Item, Part, Problem, Reading, Source, Split, check_counts
from myna.task.download import download
from myna.task.files import find, folders, why_unusable

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
SUFFIXES = (".wav", ".au")
LISTS: dict[Part, str] = {part: f"{part}_filtered.txt" for part in PARTS}
# the commit is part of the address, so that what is there cannot change
LISTS_URL = "https://raw.githubusercontent.com/coreyker/dnn-mgr/bdad579ea6cb37b665ea6019fe1026a6ce20cbc7/gtzan"
ARCHIVES = ("genres.tar.gz", "archive.zip")
SPLITS: dict[Part, Split] = {
    "train": Split(443, "82df3d4426e1dc8a15f1dece2ed0d89ce240ecbd9818b6f947488a9f5d581c85"),
    "valid": Split(197, "049e4ab67938aa22901cf0c611958fce0b9b9ff14362f658036bde470a37f71d"),
    "test": Split(290, "54cd6cf4ad283da2fba4c6ab3f4733374983708eeef9ee209d7670a575d8d988"),
}


def parse_list(text: str) -> tuple[str, ...]:
    """Read a split list, one file a line, in any folder and with any suffix; return its stems, as in "jazz.00054"."""
    stems = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name = PurePosixPath(line).name
        stem = name.rsplit(".", 1)[0] if name.lower().endswith(SUFFIXES) else name
        genre, _, number = stem.partition(".")
        if genre not in GENRES or not number.isdigit():
            raise TaskError(
                f"A list of GTZAN's tracks has the line {line!r}: one such as jazz/jazz.00054.wav was wanted."
            )
        stems.append(stem)
    return tuple(stems)


def read(data: Path, lists: Path | None = None) -> Reading:
    """Read the benchmark; the split lists from `lists`, or else from wherever they lie below `data`."""
    ids = {part: parse_list(_find_list(data, lists, name).read_text("utf-8")) for part, name in LISTS.items()}
    root = find(data, f"The audio (a folder with the genres {GENRES[0]} to {GENRES[-1]})", _has_genres, ARCHIVES)
    items, problems = [], []
    for stem, part in ((stem, part) for part, stems in ids.items() for stem in stems):
        genre = stem.split(".")[0]
        path = _audio(root / genre, stem)
        why = why_unusable(path)
        if why:
            problems.append(Problem(stem, path, why))
        else:
            items.append(Item(stem, path, part, GENRES.index(genre), group=stem))
    return Reading(ids, tuple(items), GENRES, tuple(problems))


def _find_list(data: Path, lists: Path | None, name: str) -> Path:
    for folder in folders(data) if lists is None else [lists]:
        if (folder / name).is_file():
            return folder / name
    where = f"{data} and the folders in it" if lists is None else str(lists)
    raise TaskError(
        f"GTZAN's split list {name} was looked for in {where} and is not there: fetch the three lists with "
        f"`myna tasks check gtzan --data {data} --download`, or name their folder with --splits."
    )


def _has_genres(folder: Path) -> bool:
    """Say whether a folder holds audio in folders of genres; the re-upload also has one with pictures in them."""
    return any(next(_audio_files(folder / genre), None) for genre in GENRES)


def _audio_files(folder: Path) -> Iterable[Path]:
    return (path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}"))


def _audio(folder: Path, stem: str) -> Path:
    there = [folder / f"{stem}{suffix}" for suffix in SUFFIXES if (folder / f"{stem}{suffix}").exists()]
    return there[0] if there else folder / f"{stem}{SUFFIXES[0]}"


def download_lists(data: Path, url: str = LISTS_URL) -> list[Path]:
    """Fetch the three lists into a folder. Raises TaskError without a network, and if a list has other ids."""
    if not data.is_dir():
        raise TaskError(f"There is no folder {data} to put GTZAN's split lists in: make it first.")
    return [download(f"{url}/{name}", data / name, partial(_accept, part)) for part, name in LISTS.items()]


def _accept(part: Part, content: bytes) -> None:
    try:
        found = parse_list(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise TaskError(f"What was downloaded as GTZAN's {part} list is not text: it was not kept.") from error
    wrong = check_counts("gtzan", {part: found}, {part: SPLITS[part]})
    if wrong:
        raise TaskError(f"{wrong[0]} What was downloaded was not kept.")


BENCHMARK = Benchmark(
    name="gtzan",
    title="GTZAN, fault-filtered: genre",
    version=1,
    answer="single",
    sources=(
        Source(
            "audio",
            "genres.tar.gz; its host is gone, the Internet Archive and re-uploads have it",
            "about 1.2 GB",
            "DIR, then `myna tasks unpack gtzan`",
        ),
        Source(
            "split lists",
            f"{LISTS_URL}/train_filtered.txt (valid_, test_)",
            "about 20 kB",
            "DIR, or --download does it",
        ),
    ),
    splits=SPLITS,
    read=read,
    fetch=download_lists,
    archives=ARCHIVES,
    known={"jazz.00054": "the common re-upload's jazz.00054.wav is damaged: take this file from another copy"},
    unit="tracks",
)
