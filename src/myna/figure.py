"""The paper's figures from plain numbers: one style, safe for colour-blind eyes, as SVG files that need no page.

What is ours is drawn solid and filled, what is quoted dashed and hollow. Series differ by colour, mark and a name at
their end, so that none of the three is needed.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from myna import plot
from myna.disk import write_text

# The light colours of the report's page: told apart by the colour-blind, and in grey by their marks.
COLOURS = ("#0072b2", "#e08a00", "#009e73", "#d1491b", "#bf5f95", "#45a8e0", "#a89b00", "#777c82")
PAPER, INK, SOFT, LINE = "#ffffff", "#22262b", "#626a73", "#e3e1da"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
STYLE = (
    f"text{{font-family:{FONT};font-size:12px;fill:{INK}}}.title{{font-size:15px;font-weight:600}}"
    f".tick,.axis,.note,.soft{{fill:{SOFT};font-size:11.5px}}.label{{font-weight:600}}"
    f".rule{{stroke:{LINE};stroke-width:1}}.level{{stroke:{SOFT};stroke-width:1.2;stroke-dasharray:2 3}}"
    f".leader{{stroke:{SOFT};stroke-width:.7}}.frame{{fill:none;stroke:{LINE}}}"
    ".curve{fill:none;stroke-width:2.2;stroke-linejoin:round}.band{opacity:.16;stroke:none}.whisker{stroke-width:1.4}"
    f".curve.quoted{{stroke-width:1.6;stroke-dasharray:5 4}}.mark{{stroke:{PAPER};stroke-width:1.2}}"
    + "".join(
        f".k{i}.curve,.k{i}.whisker{{stroke:{c}}}.k{i}.band,.k{i}.mark,text.k{i},.k{i}.point{{fill:{c}}}"
        f".k{i}.mark.quoted{{fill:{PAPER};stroke:{c}}}"
        for i, c in enumerate(COLOURS)
    )
    + f".point{{stroke:{PAPER};stroke-width:.8}}.other.mark{{fill:{PAPER};stroke:{SOFT}}}"
)
WIDTH, HEIGHT = 620.0, 380.0
Across = Callable[[float], float]  # from a value to its pixel
CHARACTER = 7.4  # width of an average one, in the bold of 12 px


@dataclass(frozen=True)
class Curve:
    """Scores over a setting, with intervals where they are known. A quoted one is somebody else's result."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    quoted: bool = False

    def __post_init__(self) -> None:
        lengths = {len(part) for part in (self.x, self.y, self.low, self.high) if part is not None}
        assert len(lengths) == 1, f"the curve {self.name} has parts of lengths {sorted(lengths)}"
        assert (self.low is None) == (self.high is None), "an interval has two ends"


@dataclass(frozen=True)
class Priced:
    """A model at its cost and score."""

    name: str
    cost: float
    score: float
    low: float | None = None
    high: float | None = None
    whose: Literal["ours", "paper", "other"] = "ours"


def write_figure(path: str | Path, picture: str) -> Path:
    """Write a figure as a file, whole or not at all."""
    write_text(Path(path), picture + "\n")
    return Path(path)


# ------------------------------------------------------------------------------------------ curves


def curves(
    series: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    x_names: Mapping[float, str] | None = None,
    levels: Mapping[str, float] | None = None,
) -> str:
    """Draw scores over a setting. `levels` are horizontal lines, such as an untrained encoder's score.

    The measured values are the ticks if they are few or on a logarithmic axis; `x_names` calls them something else.
    """
    levels = dict(levels or {})
    names = [*levels, *(curve.name for curve in series)]
    left, right, top, bottom = 52.0, WIDTH - 22 - CHARACTER * max(map(len, names)), 62.0, HEIGHT - 52
    xs = sorted({x for curve in series for x in curve.x})
    across = _axis(xs[0], xs[-1], left + 14, right - 10, log=log_x)
    heights = [y for c in series for part in (c.y, c.low or (), c.high or ()) for y in part] + list(levels.values())
    pad = 0.07 * (max(heights) - min(heights)) or 1.0
    up = plot.Scale(min(heights) - pad, max(heights) + pad, bottom, top)
    parts = _frame(title, x_label, y_label, left, right, bottom)
    for value in plot.ticks(up.low, up.high):
        parts += [plot.segment(left, up(value), right, up(value), "rule")]
        parts += [plot.text(left - 7, up(value) + 4, plot.number(value), "tick", "end")]
    shown = xs if log_x or x_names or len(xs) <= 6 else plot.ticks(xs[0], xs[-1], 6)
    for value in _apart(shown, across, 30.0):
        name = (x_names or {}).get(value, plot.number(value))
        parts += [plot.segment(across(value), bottom, across(value), bottom + 4, "rule")]
        parts += [plot.text(across(value), bottom + 18, name, "tick", "middle")]
    parts += [plot.segment(left, up(y), right, up(y), "level") for y in levels.values()]
    layers = [_curve(curve, i % len(COLOURS), across, up) for i, curve in enumerate(series)]
    parts += [part for layer in zip(*layers, strict=True) for found in layer for part in found]
    parts += _names(
        [_End(right, up(y), name, "soft") for name, y in levels.items()]
        + [_End(across(c.x[-1]), up(c.y[-1]), c.name, f"label k{i % len(COLOURS)}") for i, c in enumerate(series)],
        right + 12,
        top,
        bottom,
    )
    return _svg(WIDTH, HEIGHT, parts, title)


def _axis(low: float, high: float, start: float, end: float, *, log: bool) -> Across:
    assert not log or low > 0, "a logarithmic axis begins above zero"
    scale = math.log if log else float
    if low == high:
        return lambda _: (start + end) / 2
    straight = plot.Scale(scale(low), scale(high), start, end)
    return lambda value: straight(scale(value))


def _apart(values: Sequence[float], across: Across, least: float) -> list[float]:
    """Leave out ticks that would touch the one before."""
    kept: list[float] = []
    for value in values:
        if not kept or across(value) - across(kept[-1]) >= least:
            kept.append(value)
    return kept


def _frame(title: str, x_label: str, y_label: str, left: float, right: float, bottom: float) -> list[str]:
    return [
        plot.text(16, 26, title, "title"),
        plot.text(16, 46, y_label, "axis"),
        plot.text((left + right) / 2, bottom + 38, x_label, "axis", "middle"),
        plot.segment(left, bottom, right, bottom, "rule"),
    ]


def _curve(curve: Curve, colour: int, across: Across, up: plot.Scale) -> tuple[list[str], ...]:
    """Return a curve's layers, lowest first: its band, its whiskers, its line, its marks."""
    quoted = " quoted" if curve.quoted else ""
    xs, ys = [across(x) for x in curve.x], [up(y) for y in curve.y]
    bands: list[str] = []
    whiskers: list[str] = []
    if curve.low is not None and curve.high is not None:
        lows, highs = [up(y) for y in curve.low], [up(y) for y in curve.high]
        bands = [f'<path class="band k{colour}" d="{plot.path([*xs, *xs[::-1]], [*highs, *lows[::-1]])}z"/>']
        ends = zip(xs, lows, highs, strict=True)
        whiskers = [plot.segment(x, a, x, b, f"whisker k{colour}") for x, a, b in ends]
    lines = [f'<path class="curve k{colour}{quoted}" d="{plot.path(xs, ys)}"/>']
    marks = [_mark(x, y, colour, f"mark k{colour}{quoted}") for x, y in zip(xs, ys, strict=True)]
    return bands, whiskers, lines, marks


def _mark(x: float, y: float, shape: int, kind: str, size: float = 0.95) -> str:
    shape %= len(plot.SHAPES)
    return f'<path class="{kind}" d="{plot.SHAPES[shape]}" transform="translate({x:.1f} {y:.1f}) scale({size:g})"/>'


@dataclass(frozen=True)
class _End:
    """Where a line ends, in pixels, and the name to write there."""

    x: float
    y: float
    name: str
    kind: str


def _names(ends: Sequence[_End], x: float, top: float, bottom: float) -> list[str]:
    """Write each name beside the end of its line: in a column at `x`, moved apart where two would touch.

    A line that ends well before the column has its name at once.
    """
    early = [end for end in ends if end.x < x - 60]
    parts = [plot.text(end.x + 9, end.y + 4, end.name, end.kind) for end in early]
    late = sorted((end for end in ends if end not in early), key=lambda end: end.y)
    for end, place in zip(late, spread([end.y for end in late], 15.0, top + 4, bottom), strict=True):
        if abs(place - end.y) > 4:
            parts.append(plot.segment(end.x + 7, end.y, x - 3, place, "leader"))
        parts.append(plot.text(x, place + 4, end.name, end.kind))
    return parts


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move sorted heights as little as needed to be `gap` apart and within low..high (if there is room)."""
    groups: list[list[float]] = []  # blocks of touching names: the sum of where each wants the first, their count
    for i, height in enumerate(heights):
        groups.append([height, 1])
        assert i == 0 or heights[i - 1] <= height, "heights come sorted"
        while len(groups) > 1 and _first(groups[-2], gap, low, high) + gap * groups[-2][1] > _first(
            groups[-1], gap, low, high
        ):
            total, count = groups.pop()
            groups[-1][0] += total - gap * groups[-1][1] * count
            groups[-1][1] += count
    places: list[float] = []
    for one in groups:
        first = _first(one, gap, low, high)
        places += [first + gap * k for k in range(int(one[1]))]
    return places


def _first(block: Sequence[float], gap: float, low: float, high: float) -> float:
    """Return where a block of names begins: as near to where they belong as the edges allow."""
    total, count = block
    return max(low, min(total / count, high - gap * (count - 1)))


# -------------------------------------------------------------------------------- cost and score


def cost_and_score(models: Sequence[Priced], *, title: str, x_label: str, y_label: str) -> str:
    """Draw what models cost against what they score (Figure 1), cost on a logarithmic axis."""
    left, right, top, bottom = 52.0, WIDTH - 24, 62.0, HEIGHT - 66
    costs, scores = [m.cost for m in models], [s for m in models for s in (m.score, m.low, m.high) if s is not None]
    wide = (max(costs) / min(costs)) ** 0.08 if max(costs) > min(costs) else 2.0
    across = _axis(min(costs) / wide, max(costs) * wide, left, right, log=True)
    pad = 0.09 * (max(scores) - min(scores)) or 1.0
    up = plot.Scale(min(scores) - pad, max(scores) + pad, bottom, top)
    parts = _frame(title, x_label, y_label, left, right, bottom)
    for value in plot.ticks(up.low, up.high):
        parts += [plot.segment(left, up(value), right, up(value), "rule")]
        parts += [plot.text(left - 7, up(value) + 4, plot.number(value), "tick", "end")]
    for value in _powers(min(costs) / wide, max(costs) * wide):
        parts += [plot.segment(across(value), bottom, across(value), bottom + 4, "rule")]
        parts += [plot.text(across(value), bottom + 18, short(value), "tick", "middle")]
    kinds = {"ours": ("mark k0", 0), "paper": ("mark k1 quoted", 1), "other": ("mark other", 2)}
    taken = [(across(m.cost) - 6, up(m.score) - 6, across(m.cost) + 6, up(m.score) + 6) for m in models]
    whiskers = [m for m in models if m.low is not None and m.high is not None]
    taken += [(across(m.cost) - 2, up(m.high), across(m.cost) + 2, up(m.low)) for m in whiskers]
    for model in sorted(models, key=lambda m: ("ours", "paper", "other").index(m.whose)):
        x, y, (kind, shape) = across(model.cost), up(model.score), kinds[model.whose]
        colour = {"ours": "label k0", "paper": "label k1", "other": "note"}[model.whose]
        parts.append(_beside(x, y, model.name, colour, taken, (left, top - 8, right + 16, bottom)))
        if model.low is not None and model.high is not None:
            parts.append(plot.segment(x, up(model.low), x, up(model.high), "whisker k0"))
        parts.append(_mark(x, y, shape, kind))
    legend = {"ours": "ours, measured here", "paper": "the paper's own", "other": "others, as the paper quotes them"}
    at = left
    for whose in (w for w in legend if any(m.whose == w for m in models)):
        kind, shape = kinds[whose]
        parts += [_mark(at + 6, HEIGHT - 14, shape, kind), plot.text(at + 17, HEIGHT - 10, legend[whose], "note")]
        at += 36 + 6.3 * len(legend[whose])
    return _svg(WIDTH, HEIGHT, parts, title)


Box = tuple[float, float, float, float]


def _beside(x: float, y: float, name: str, kind: str, taken: list[Box], inside: Box) -> str:
    """Write a name next to its mark, where it covers least; the place is then taken. A far one gets a leader."""
    wide = CHARACTER * len(name)
    near = [(10, 4, "start"), (-10, 4, "end"), (0, -11, "middle"), (0, 19, "middle")]
    near += [(9, -8, "start"), (9, 15, "start"), (-9, -8, "end"), (-9, 15, "end")]
    far = [
        (side * 26, 4 + dy, "start" if side > 0 else "end") for dy in (-18, 18, -32, 32, -46, 46) for side in (1, -1)
    ]
    far += [(0, dy, "middle") for dy in (-27, 34, -43, 50)]

    def box(dx: float, dy: float, anchor: str) -> Box:
        start = x + dx - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
        return start, y + dy - 10, start + wide, y + dy + 3

    def covered(place: tuple[float, float, str]) -> float:
        here = box(*place)
        outside = (here[2] - here[0]) * (here[3] - here[1]) - _overlap(here, inside)
        return outside + sum(_overlap(here, other) for other in taken) + (40 if place in far else 0)

    dx, dy, anchor = best = min(near + far, key=covered)
    taken.append(box(*best))
    leader = "" if best in near else plot.segment(x, y, x + dx * 0.9, y + (dy - 10 if dy > 0 else dy + 3), "leader")
    return leader + plot.text(x + dx, y + dy, name, kind, anchor)


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _powers(low: float, high: float) -> list[float]:
    """Give 1, 3 and 10 times powers of ten within low..high; only the powers if they are many."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 3) if len(exponents) <= 5 else (1,)
    found = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    return [value for value in found if low <= value <= high]


def short(value: float) -> str:
    """Print a large number with its letter: 22M, 5B, 3.4k."""
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


# ------------------------------------------------------------------------------------------- maps


def maps(
    layouts: Mapping[str, Mapping[str, Float[np.ndarray, "point 2"]]],
    labels: Mapping[str, Sequence[str]],
    *,
    title: str,
) -> str:
    """Draw layouts of models (rows) on splits (columns), coloured by class (Figure 5).

    `layouts[model][split]` are points, of the classes `labels[split]`. The panels of a row share one scale.
    """
    splits = list(labels)
    groups = plot.group([name for split in splits for name in labels[split]])
    ends = np.cumsum([len(labels[split]) for split in splits])
    member = dict(zip(splits, np.split(groups.member, ends[:-1]), strict=True))
    side, gap, left, top = 190.0, 10.0, 40.0, 66.0
    width, height = left + len(splits) * (side + gap) + 6, top + len(layouts) * (side + gap)
    most = max(len(labels[split]) for split in splits)
    size_of_mark = round(float(np.clip(0.62 * math.sqrt(120 / most), 0.34, 0.62)), 2)
    parts = [plot.text(16, 26, title, "title")]
    for column, split in enumerate(splits):
        x = left + column * (side + gap)
        parts.append(plot.text(x + side / 2, top - 12, f"{split} ({len(labels[split])})", "axis", "middle"))
    for row, (model, panels) in enumerate(layouts.items()):
        y = top + row * (side + gap)
        middle = f"rotate(-90 24 {y + side / 2:.1f})"
        name = plot.text(24, y + side / 2, model, "label", "middle")
        parts.append(name.replace("<text ", f'<text transform="{middle}" ', 1))
        everyone = np.concatenate([panels[split] for split in splits])
        low, size = everyone.min(axis=0), float(np.ptp(everyone, axis=0).max()) or 1.0
        shift = (size - np.ptp(everyone, axis=0)) / 2
        for column, split in enumerate(splits):
            x = left + column * (side + gap)
            parts.append(f'<rect class="frame" x="{x:.1f}" y="{y:.1f}" width="{side:g}" height="{side:g}" rx="4"/>')
            place = (panels[split] - low + shift) / size * (side - 20) + 10
            parts += _dots(x + place[:, 0], y + side - place[:, 1], member[split], groups, size_of_mark)
    parts, height = _legend(parts, groups, left, width, height)
    return _svg(width, height, parts, title)


def _dots(xs: np.ndarray, ys: np.ndarray, member: np.ndarray, groups: plot.Grouping, size: float) -> list[str]:
    points = zip(xs.tolist(), ys.tolist(), member.tolist(), strict=True)
    return [_mark(x, y, groups.shapes[of], f"point {_colour(groups, of)}", size) for x, y, of in points]


def _colour(groups: plot.Grouping, of: int) -> str:
    return f"k{re.sub('[^0-9]', '', groups.colours[of])}"


def _legend(
    parts: list[str], groups: plot.Grouping, left: float, width: float, height: float
) -> tuple[list[str], float]:
    x, y = left, height + 14
    for of, name in enumerate(groups.names):
        wide = 26 + 6.6 * len(name)
        if x + wide > width and x > left:
            x, y = left, y + 20
        parts += [_mark(x + 6, y, groups.shapes[of], f"point {_colour(groups, of)}", 0.9)]
        parts += [plot.text(x + 16, y + 4, name, "note")]
        x += wide
    return parts, y + 18


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    ground = f'<style>{STYLE}</style><rect width="{width:g}" height="{height:g}" fill="{PAPER}"/>'
    return plot.svg(width, height, [ground, *parts], label=title, kind="figure")
