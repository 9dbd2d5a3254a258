"""What a model learned becomes one page to look at: a single HTML file that needs no network."""

import base64
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path

import av
import numpy as np
import soxr
from jaxtyping import Float, Int

from myna import plot
from myna.disk import write_bytes

EXCERPT_RATE_HZ = 24_000
EXCERPT_BIT_RATE = 32_000


# ------------------------------------------------------------------------------- what is reported


@dataclass(frozen=True)
class Score:
    """A score between 0 and 1 and its interval; R² may be below 0. Printed times 100."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        # An interval need not be even; the wider side never promises too much.
        reach = max(self.high - self.mean, self.mean - self.low)
        return f"{100 * self.mean:.1f} ±{100 * reach:.1f}".replace("-", "−")


@dataclass(frozen=True)
class ScoreTable:
    """Representations by questions. The first row is the model that is shown, the second its foil."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    scores: dict[tuple[str, str], Score]  # (row, column)
    metric: dict[str, str]
    chance: dict[str, float]
    protocol: str = "A linear probe on the frozen vectors learns each question from few labelled songs."

    def best(self, column: str) -> set[str]:
        """Name the rows with the highest mean, as printed: equal print is a tie."""
        means = {row: round(self.scores[row, column].mean, 3) for row in self.rows}
        return {row for row, mean in means.items() if mean == max(means.values())}


@dataclass(frozen=True)
class Clip:
    """A song to listen to; " · " parts the labels of its caption, and those of the query are marked."""

    title: str
    caption: str = ""
    audio: bytes | None = None
    mime: str = "audio/mpeg"
    similarity: float | None = None


@dataclass(frozen=True)
class Neighbours:
    query: Clip
    nearest: tuple[Clip, ...]


@dataclass(frozen=True, eq=False)
class MaskedView:
    """One view of a crop: tokens run row by row, lowest bands first, and in a row from left to right."""

    kind: str
    mel: Float[np.ndarray, "frame band"]  # power
    patch: tuple[int, int]  # (bands, frames)
    visible: Int[np.ndarray, " visible"]
    frame_s: float = 0.032


@dataclass(frozen=True, eq=False)
class Report:
    """All that the page shows. Whatever is None or empty is left out, heading and all.

    `points` are the songs laid out in the plane; `point_labels` maps a question to one answer a point.
    """

    title: str
    subtitle: str = ""
    facts: tuple[tuple[str, str], ...] = ()  # (label, value)
    steps: np.ndarray = field(default_factory=lambda: np.zeros(0))
    loss: np.ndarray = field(default_factory=lambda: np.zeros(0))
    retrieval: np.ndarray = field(default_factory=lambda: np.zeros(0))  # top-1 within a batch, 0..1
    table: ScoreTable | None = None
    points: Float[np.ndarray, "point 2"] | None = None
    point_labels: dict[str, list[str]] = field(default_factory=dict)
    point_titles: Sequence[str] = ()
    views: tuple[MaskedView, ...] = ()
    neighbours: tuple[Neighbours, ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""

    def __post_init__(self) -> None:
        assert len(self.steps) == len(self.loss) == len(self.retrieval), "one loss and one retrieval a step"
        if self.points is not None:
            lengths = {len(self.points), len(self.point_titles), *map(len, self.point_labels.values())}
            assert len(lengths) == 1, "one title and one of each label a point"


# ------------------------------------------------------------------------------------ the numbers


def verdict(table: ScoreTable) -> str:
    """Say in a sentence where the first row differs from the second by more than their intervals."""
    if len(table.rows) < 2:
        return f"How well {table.rows[0]} answers questions about songs that it never saw"
    ours, theirs = table.rows[:2]
    found: dict[str, list[str]] = {"better": [], "worse": [], "too close to call": []}
    for column in table.columns:
        a, b = table.scores[ours, column], table.scores[theirs, column]
        found["better" if a.low > b.high else "worse" if a.high < b.low else "too close to call"].append(column)
    said = [f"{how} on {_listed(columns)}" for how, columns in found.items() if columns]
    return f"{ours} against {theirs}: {'; '.join(said)}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


# -------------------------------------------------------------------------------------- the sound


def encode_excerpt(samples: np.ndarray, rate_hz: int, seconds: float = 6.0) -> tuple[bytes, str]:
    """Encode the middle of (samples,) or (samples, channels) for a player; returns the bytes and their type.

    MP3, mono, 24 kHz, 32 kbit/s: 4 kB a second. Opus would need half of that, but not every browser in use
    plays it from Ogg. The peak is brought to 0.9, since a page has one volume for all its songs.
    """
    assert len(samples), "an excerpt needs samples"
    mono = np.asarray(samples, np.float32)
    mono = mono.mean(axis=1) if mono.ndim == 2 else mono
    start = max(0, (len(mono) - round(seconds * rate_hz)) // 2)
    mono = mono[start : start + round(seconds * rate_hz)]
    sound = soxr.resample(mono, rate_hz, EXCERPT_RATE_HZ).astype(np.float32)
    sound *= 0.9 / max(float(np.abs(sound).max(initial=0.0)), 1e-6)
    fade = min(EXCERPT_RATE_HZ // 20, len(sound) // 2)  # 50 ms, so that a cut does not click
    ramp = np.linspace(0, 1, fade, dtype=np.float32)
    sound[:fade] *= ramp
    sound[len(sound) - fade :] *= ramp[::-1]
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp3") as box:
        stream = box.add_stream("libmp3lame", rate=EXCERPT_RATE_HZ, layout="mono", bit_rate=EXCERPT_BIT_RATE)
        frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate = EXCERPT_RATE_HZ
        box.mux(stream.encode(frame))
        box.mux(stream.encode(None))
    return memory.getvalue(), "audio/mpeg"


def _key(clip: Clip) -> str:
    return hashlib.blake2b(clip.audio or b"", digest_size=6).hexdigest()


def _clips(report: Report) -> list[Clip]:
    return [clip for row in report.neighbours for clip in (row.query, *row.nearest)]


def _plays(report: Report) -> list[str | None]:
    """Find each point's sound by its title; two songs of one title cannot be told apart, so neither plays."""
    sounds = {clip.title: _key(clip) for clip in _clips(report) if clip.audio}
    count = Counter(report.point_titles)
    return [sounds.get(title) if count[title] == 1 else None for title in report.point_titles]


# --------------------------------------------------------------------------------------- the page


def write_page(report: Report, path: Path | str) -> None:
    """Write the page as one file; a reader never finds half of it."""
    # file names may hold bytes that are no letters; they come out as "?"
    write_bytes(Path(path), page(report).encode("utf-8", errors="replace"))


def page(report: Report) -> str:
    """Build the page's HTML."""
    sections = [
        _scores(report),
        _map(report),
        _neighbours(report),
        _views(report),
        _curves(report),
        _notes(report),
    ]
    files = resources.files("myna")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{escape(report.title)}</title>
<style>
{files.joinpath("page.css").read_text("utf-8")}</style>
</head>
<body>
<main>
{_head(report)}
{"".join(sections)}</main>
<div id="tip" hidden></div>
<script type="application/json" id="data">{_json(_data(report))}</script>
<script>
{files.joinpath("page.js").read_text("utf-8")}</script>
</body>
</html>
"""


def _json(value: object) -> str:
    # Within a script element only "<" could end it early; \u003c is the same letter to JSON.
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _data(report: Report) -> dict[str, object]:
    """Gather what the page's script needs: sounds by key (each once) and the groupings of the map."""
    sounds = {
        _key(clip): f"data:{clip.mime};base64,{base64.b64encode(clip.audio).decode()}"
        for clip in _clips(report)
        if clip.audio
    }
    labels = {}
    for question, answers in report.point_labels.items():
        grouping = plot.group(answers)
        members = np.bincount(grouping.member, minlength=len(grouping.names)).tolist()
        groups = zip(grouping.names, grouping.colours, grouping.shapes, members, strict=True)
        labels[question] = {
            "groups": [dict(zip(("name", "colour", "shape", "count"), one, strict=True)) for one in groups],
            "member": grouping.member.tolist(),
            "answers": list(answers),
        }
    return {
        "sounds": sounds,
        "shapes": plot.SHAPES,
        "titles": list(report.point_titles),
        "plays": _plays(report),
        "labels": labels,
    }


def _section(heading: str, body: str, *, explained: str = "", kind: str = "") -> str:
    lead = f'<p class="lead">{escape(explained)}</p>' if explained else ""
    return f'<section class="{kind}"><h2>{escape(heading)}</h2>{lead}{body}</section>\n'


def _head(report: Report) -> str:
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in report.facts)
    subtitle = f'<p class="subtitle">{escape(report.subtitle)}</p>' if report.subtitle else ""
    return f"<header><h1>{escape(report.title)}</h1>{subtitle}{f'<dl>{facts}</dl>' if facts else ''}</header>"


def _scores(report: Report) -> str:
    table = report.table
    if table is None or not table.rows or not table.columns:
        return ""
    panels = []
    for column in table.columns:
        scores = [table.scores[row, column] for row in table.rows]
        picture = plot.bars(
            table.rows,
            [100 * s.mean for s in scores],
            [100 * s.low for s in scores],
            [100 * s.high for s in scores],
            chance=100 * table.chance[column],
            axis_label=f"{table.metric[column]} × 100",
            values=[str(s) for s in scores],
            best=table.best(column),
        )
        panels.append(f"<figure><h3>{escape(column)}</h3>{picture}</figure>")
    explained = f"{table.protocol} Bold is best; lines are intervals."
    heading = verdict(table)
    return _section(heading[0].upper() + heading[1:], f'<div class="grid">{"".join(panels)}</div>', explained=explained)


def _map(report: Report) -> str:
    if report.points is None or not len(report.points):
        return ""
    questions = list(report.point_labels)
    grouping = plot.group(report.point_labels[questions[0]]) if questions else None
    picture = plot.scatter(report.points, grouping, label="songs laid out by similarity")
    buttons = "".join(
        f'<button type="button" data-label="{escape(q)}" aria-pressed="{str(q == questions[0]).lower()}">'
        f"{escape(q)}</button>"
        for q in questions
    )
    body = f"<figure>{picture}</figure>"
    if questions:
        choice = f'<div class="choice" role="group" aria-label="colour by">{buttons}</div>'
        body += f'<div>{choice}<ul class="legend"></ul></div>'
    explained = (
        f"{len(report.points):,} songs, laid out by t-SNE from their vectors alone; no label was used. "
        "Near means similar; directions and distances across the map mean nothing and have no unit. "
        "Point at a mark for its title."
    )
    if any(_plays(report)):
        explained += " Ringed marks play."
    return _section(
        "Each dot is a song; songs that the model hears as alike lie close together",
        f'<div class="mapbox">{body}</div>',
        explained=explained,
    )


def _card(clip: Clip, shared: set[str]) -> str:
    parts = [part for part in clip.caption.split(" · ") if part]
    marked = "".join(f'<li class="{"shared" if part in shared else ""}">{escape(part)}</li>' for part in parts)
    button = ""
    if clip.audio:
        says = f'data-sound="{_key(clip)}" aria-label="play {escape(clip.title)}"'
        button = f'<button type="button" class="play" {says}></button>'
    near = "" if clip.similarity is None else f'<span class="near">{clip.similarity:.2f}</span>'.replace("-", "−")
    caption = f'<ul class="caption">{marked}</ul>' if parts else ""
    return f'<div class="clip">{button}<div><p class="name">{escape(clip.title)}</p>{caption}</div>{near}</div>'


def _neighbours(report: Report) -> str:
    if not report.neighbours:
        return ""
    rows = []
    for row in report.neighbours:
        shared = set(row.query.caption.split(" · "))
        nearest = "".join(f"<li>{_card(clip, shared)}</li>" for clip in row.nearest)
        rows.append(f'<div class="row"><div class="query">{_card(row.query, set())}</div><ol>{nearest}</ol></div>')
    explained = "Left: a song. Right: those whose vectors are nearest, with their cosine similarity (1 is the same)."
    if any(row.query.caption for row in report.neighbours):
        explained += " Labels that they share are filled in; the model never saw a label."
    return _section("What the model hears as most alike", "".join(rows), explained=explained)


def _views(report: Report) -> str:
    if not report.views:
        return ""
    columns: dict[str, list[str]] = {}
    for view in report.views:
        panels = columns.setdefault(view.kind, [])
        frames, bands = view.mel.shape
        tokens = frames // view.patch[1] * (bands // view.patch[0])
        size = f"{view.patch[0]} bands × {view.patch[1]} frames"
        says = f"View {len(panels) + 1}: {len(view.visible)} of {tokens} patches of {size} are seen"
        picture = plot.mask_overlay(view.mel, view.patch, view.visible, frame_s=view.frame_s, label=says)
        panels.append(f"<figure>{picture}<figcaption>{escape(says)}</figcaption></figure>")
    body = "".join(f"<div><h3>{escape(kind)} patches</h3>{''.join(panels)}</div>" for kind, panels in columns.items())
    explained = (
        "Two moments of one song, nearly all of each hidden. From the bright patches alone the model "
        "has to tell that they belong together, among all other songs of the batch. "
        "Colour is level: 80 dB from black to light."
    )
    return _section(
        "All that the model sees of a song while it learns",
        f'<div class="grid views">{body}</div>',
        explained=explained,
    )


def _curves(report: Report) -> str:
    panels = []
    curves = (
        ("The loss, step by step", report.loss, "contrastive loss (nats)"),
        (
            "How often a view finds its other half in the batch",
            100 * np.asarray(report.retrieval),
            "top-1 retrieval (%)",
        ),
    )
    for heading, values, label in curves:
        if np.isfinite(values).sum() > 1:
            picture = plot.line_chart(report.steps, values, x_label="training step", y_label=label, label=heading)
            panels.append(f"<figure><h3>{escape(heading)}</h3>{picture}</figure>")
    if not panels:
        return ""
    explained = "Thin: as measured on each batch. Thick: running mean."
    return _section(
        "How well the model matched two views of one song, step by step",
        f'<div class="grid">{"".join(panels)}</div>',
        explained=explained,
    )


def _notes(report: Report) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    command = f"<p>Made by</p><pre>{escape(report.command)}</pre>" if report.command else ""
    body = (f"<ul>{notes}</ul>" if notes else "") + command
    return _section("What to know when reading this page", body, kind="notes") if body else ""
