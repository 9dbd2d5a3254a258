"""MagnaTagATune: 25,860 clips of 29 s with the 50 commonest of 188 tags.

Source: Law et al., ISMIR 2009; audio of the label Magnatune, tags from the game TagATune. The page of the data set
names CC BY-NC-SA 3.0. Layout: `annotations_final.csv` (tabs; clip_id, 188 tags as 0 or 1, mp3_path),
`clip_info_final.csv` (tabs; not needed, compared if it is there), and mp3.zip in three parts, which joined give sixteen
folders 0 to f of MP3s.

Splits: the folder, 0 to b train, c valid, d to f test. Three annotated clips (35644, 55753, 57881) are published with
zero bytes and belong to no split, also where somebody has mended them. The tags are those with the most positives over
all 25,863 annotated rows, of every split; synonyms stay apart. Clips with none of the 50 tags stay in, as all zeros.

[?] The sizes of the archives and whether today's host serves the same bytes could not be verified.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from myna.errors import TaskError
from myna.task.base import Benchmark, Item, Part, Problem, Reading, Source, Split
from myna.task.files import find, find_file, folders, read_table, whole_number, why_unusable

TAGS = 50
FOLDERS: dict[str, Part] = {
    **dict.fromkeys("0123456789ab", "train"),
    "c": "valid",
    **dict.fromkeys("def", "test"),
}
ZERO_BYTES = frozenset(["35644", "55753", "57881"])
ANNOTATIONS, CLIP_INFO = "annotations_final.csv", "clip_info_final.csv"
ARCHIVES = ("mp3.zip", "mp3.zip.0*")


def top_tags(rows: Iterable[Mapping[str, str]], count: int = TAGS) -> tuple[str, ...]:
    """Name the tags with the most positives, most first. Raises TaskError where a tie makes the set arbitrary."""
    positives: Counter[str] = Counter()
    for row in rows:
        positives.update(tag for tag, value in row.items() if value == "1" and tag not in ("clip_id", "mp3_path"))
    ranked = sorted(positives.items(), key=lambda tag: (-tag[1], tag[0]))
    if len(ranked) < count:
        raise TaskError(f"{ANNOTATIONS} has {len(ranked)} tags with positives: {count} were wanted; is it whole?")
    if len(ranked) > count and ranked[count - 1][1] == ranked[count][1]:
        raise TaskError(
            f"In {ANNOTATIONS} the tags {ranked[count - 1][0]} and {ranked[count][0]} are equally common, at the limit "
            f"of the {count} commonest: this is not the annotation file as published, in which there is no tie."
        )
    return tuple(tag for tag, _ in ranked[:count])


def split_of(clip_id: str, mp3_path: str) -> Part | None:
    """Return a clip's split by its folder; None if it has no audio, or is one of the three of zero bytes."""
    if not mp3_path or clip_id in ZERO_BYTES:
        return None
    folder = mp3_path.split("/")[0]
    if folder not in FOLDERS:
        raise TaskError(f"Clip {clip_id} is said to be in {mp3_path!r}: a folder from 0 to f was wanted.")
    return FOLDERS[folder]


def read(data: Path) -> Reading:
    """Read the benchmark from a folder that holds the annotations and the sixteen folders of MP3s."""
    path = find_file(data, ANNOTATIONS)
    rows = read_table(path, ["clip_id", "mp3_path"], delimiter="\t", exact=True)
    _compare(rows, data)
    tags = top_tags(rows)
    audio = _audio_folder(data)
    ids: dict[Part, list[str]] = {"train": [], "valid": [], "test": []}
    items, problems = [], []
    for row in rows:
        clip, place = f"{whole_number(row['clip_id'], path):05d}", row["mp3_path"].strip()
        part = split_of(clip, place)
        if part is None:
            continue
        ids[part].append(clip)
        why = why_unusable(audio / place)
        if why:
            problems.append(Problem(clip, audio / place, why))
        else:
            label = tuple(float(row[tag] == "1") for tag in tags)
            items.append(Item(clip, audio / place, part, label, group=clip))
    facts = {
        "the number of annotated clips": len(rows),
        "the number of positives of the 50th tag": _count(rows, tags[-1]),
    }
    return Reading({part: tuple(found) for part, found in ids.items()}, tuple(items), tags, tuple(problems), facts)


def _count(rows: Iterable[Mapping[str, str]], tag: str) -> int:
    return sum(row[tag] == "1" for row in rows)


def _audio_folder(data: Path) -> Path:
    """Find the folder that holds most of the sixteen, since a folder named a or 1 may lie anywhere."""
    wanted = f"The audio (the folders 0 to f that {ARCHIVES[0]} holds)"
    find(data, wanted, lambda folder: _sixteen(folder) > 0, ARCHIVES)
    return max(folders(data), key=_sixteen)


def _sixteen(folder: Path) -> int:
    return sum((folder / name).is_dir() for name in FOLDERS)


def _compare(rows: list[dict[str, str]], data: Path) -> None:
    """Compare the paths of both tables, where both are at hand."""
    path = next((folder / CLIP_INFO for folder in folders(data) if (folder / CLIP_INFO).is_file()), None)
    if path is None:
        return
    places = {row["clip_id"]: row["mp3_path"] for row in read_table(path, ["clip_id", "mp3_path"], delimiter="\t")}
    differ = [row["clip_id"] for row in rows if places.get(row["clip_id"]) != row["mp3_path"]]
    if differ:
        raise TaskError(
            f"{path} and {ANNOTATIONS} name different files for {len(differ)} clips, such as {', '.join(differ[:3])}: "
            "are they of the same release?"
        )


BENCHMARK = Benchmark(
    name="magnatagatune",
    title="MagnaTagATune: the 50 commonest tags",
    version=1,
    answer="multi",
    sources=(
        Source(
            "audio, in three parts",
            "https://mirg.city.ac.uk/datasets/magnatagatune/mp3.zip.001 (and .002, .003)",
            "about 3.0 GB",
            "DIR, then `myna tasks unpack magnatagatune`",
        ),
        Source("tags", "https://mirg.city.ac.uk/datasets/magnatagatune/annotations_final.csv", "some 10 MB [?]", "DIR"),
    ),
    splits={
        "train": Split(18706, "0b6249ef61107160e1ed346119dc91177189455ecb63d9190200cde699999660"),
        "valid": Split(1825, "183164067740cd0bcdb748c39b1823070804c1d1f995163c41c243511e943a9a"),
        "test": Split(5329, "ec7702ed4ec243c9ba5fc711a19c6d42a76691ad2d4f1e9cb0004f7ec1c5e67e"),
    },
    read=read,
    archives=ARCHIVES,
    facts={"the number of annotated clips": 25863, "the number of positives of the 50th tag": 490},
)
