"""Numbers become pictures: SVG and PNG as strings, drawn with NumPy and the standard library alone.

The SVG carries class names and no colours, so that the page around it decides them for light, dark and paper.
"""

import base64
import math
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int, UInt8

# Anchors of the magma colour map: lightness rises evenly, so equal steps in dB look equal, also in grey.
MAGMA = ("000004", "1c1044", "4f127b", "812581", "b5367a", "e55064", "fb8761", "fec287", "fcfdbf")
COLOURS = 8  # classes c0..c7 of the page for categories, and q0..q7 for ranges of a number
# Above eight groups the colours come again with another shape.
SHAPES = ("M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z", "M0-6.4L6.4 0 0 6.4-6.4 0z", "M0-6.2L6 4.4H-6z")
WIDTH = 400.0  # of a chart: on a telephone its text is still read, on a desk two stand side by side
MAP_SIDE = 640.0


# ------------------------------------------------------------------------------------------ axes


@dataclass(frozen=True)
class Scale:
    """A straight line from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Give round numbers (1, 2 or 5 times a power of ten apart) that lie within low..high."""
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.7)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def number(value: float) -> str:
    """Print a number as short as its three leading digits allow, with thin spaces in thousands."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "−")
    return text.rstrip("0").rstrip(".") if digits else text


def svg(width: float, height: float, parts: Iterable[str], *, label: str, kind: str) -> str:
    """Wrap parts into an SVG that scales with its column; `label` is what a screen reader says."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{kind}" viewBox="0 0 {width:g} {height:g}" '
        f'role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def segment(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


# ----------------------------------------------------------------------------------------- lines


def smooth(values: Float[np.ndarray, " step"], width: int) -> Float[np.ndarray, " step"]:
    """Take the centred mean over `width` values; at both ends over those that exist."""
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def path(xs: Iterable[float], ys: Iterable[float]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))


def line_chart(x: np.ndarray, y: np.ndarray, *, x_label: str, y_label: str, label: str) -> str:
    """Draw y over x: the measured values thin, their running mean thick, its last value in numbers."""
    height, left, right, top, bottom = 250.0, 42.0, WIDTH - 16, 26.0, 206.0
    kept = np.isfinite(y)
    x, y = np.asarray(x, float)[kept], np.asarray(y, float)[kept]
    assert len(x) > 1, "a line needs two finite points"
    mean = smooth(y, min(len(y), max(1, len(y) // 25)))
    shown = np.unique(np.linspace(0, len(x) - 1, min(len(x), 500)).astype(int))
    across = Scale(x[0], x[-1], left, right)
    pad = 0.04 * (y.max() - y.min()) or 1.0
    low = 0.0 if y.min() >= 0 else y.min() - pad
    up = Scale(low, y.max() + pad, bottom, top)
    parts = [text(4.0, 14.0, y_label, "axis"), text(right, height - 8, x_label, "axis", "end")]
    for value in ticks(up.low, up.high):
        parts += [segment(left, up(value), right, up(value), "rule")]
        parts += [text(left - 6, up(value) + 4, number(value), "tick", "end")]
    for value in ticks(x[0], x[-1]):
        parts += [text(across(value), bottom + 18, number(value), "tick", "middle")]
    xs = [across(v) for v in x[shown]]
    parts += [f'<path class="raw" d="{path(xs, map(up, y[shown]))}"/>']
    parts += [f'<path class="mean" d="{path(xs, map(up, mean[shown]))}"/>']
    end = up(mean[-1])
    parts += [f'<circle class="end" cx="{right:.1f}" cy="{end:.1f}" r="4"/>']
    # Beside the end of the line, on the side where the line does not come from.
    above = mean[-1] >= mean[len(mean) // 2]
    at = max(end - 12, top - 6) if above else min(max(end - 16, top), bottom - 14)
    parts += [text(right, at, number(float(mean[-1])), "value", "end")]
    return svg(WIDTH, height, parts, label=f"{label}: {number(float(mean[-1]))} at the end", kind="chart")


# ------------------------------------------------------------------------------------------ bars


def bars(
    names: Sequence[str],
    means: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    *,
    chance: float,
    axis_label: str,
    values: Sequence[str],
    best: set[str],
) -> str:
    """Draw a bar a name from chance to its mean, its interval and its value in words.

    The first name is marked as the one that the picture is about, the values of the best are bold.
    """
    left = 14 + 6.6 * max(map(len, names))
    right, top, pitch = WIDTH - 14 - 6.8 * max(map(len, values)), 8.0, 28.0
    bottom = top + pitch * len(names)
    low, high = min(chance, *lows), max(chance, *highs)
    pad = 0.06 * (high - low) or 1.0
    across = Scale(low - (pad if low < chance else 0), high + pad, left, right)
    parts = []
    for value in ticks(across.low, across.high, 4):
        parts += [segment(across(value), top, across(value), bottom, "rule")]
        parts += [text(across(value), bottom + 16, number(value), "tick", "middle")]
    for i, name in enumerate(names):
        y, kind = top + pitch * (i + 0.5), "first" if i == 0 else "other"
        start, stop = sorted((across(chance), across(means[i])))
        parts += [text(left - 8, y + 4, name, f"name {kind}", "end")]
        box = f'x="{start:.1f}" y="{y - 8:.1f}" width="{stop - start:.1f}" height="16" rx="2"'
        parts += [f'<rect class="bar {kind}" {box}/>']
        parts += [segment(across(lows[i]), y, across(highs[i]), y, "whisker")]
        parts += [segment(across(v), y - 4, across(v), y + 4, "whisker") for v in (lows[i], highs[i])]
        parts += [text(WIDTH - 2, y + 4, values[i], "value" if name in best else "soft", "end")]
    parts += [segment(across(chance), top - 4, across(chance), bottom + 4, "chance")]
    parts += [text(left, bottom + 36, f"{axis_label}; bars start at chance, {number(chance)}", "axis")]
    return svg(WIDTH, bottom + 44, parts, label=axis_label, kind="chart")


# --------------------------------------------------------------------------------------- scatter


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which of a few named groups each point belongs to, and how each group is drawn."""

    names: tuple[str, ...]
    colours: tuple[str, ...]
    shapes: tuple[int, ...]
    member: Int[np.ndarray, " point"]


def group(labels: Sequence[str], limit: int = COLOURS * len(SHAPES)) -> Grouping:
    """Sort labels into at most `limit` groups: ranges if all are numbers, else the most frequent names."""
    distinct = Counter(labels)
    if len(distinct) > COLOURS and all(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in distinct):
        return _ranges(np.array([float(name) for name in labels]))
    names = sorted(distinct)
    if len(names) > limit:
        names = [*sorted(name for name, _ in distinct.most_common(limit - 1)), "others"]
    place = {name: i for i, name in enumerate(names)}
    return Grouping(
        names=tuple(names),
        colours=tuple(f"c{i % COLOURS}" for i in range(len(names))),
        shapes=tuple(i // COLOURS for i in range(len(names))),
        member=np.array([place.get(name, len(names) - 1) for name in labels], dtype=np.int64),
    )


def _ranges(values: Float[np.ndarray, " point"]) -> Grouping:
    edges = ticks(values.min(), values.max(), COLOURS)
    edges = [e for e in edges if values.min() < e < values.max()][: COLOURS - 1]
    ends = ["", *map(number, edges), ""]
    names = [f"{a}–{b}" if a and b else (f"under {b}" if b else f"from {a}") for a, b in pairwise(ends)]
    spread = np.linspace(0, COLOURS - 1, len(names)).round().astype(int)
    member = np.searchsorted(np.array(edges), values, side="right")
    return Grouping(tuple(names), tuple(f"q{i}" for i in spread), (0,) * len(names), member.astype(np.int64))


def scatter(points: Float[np.ndarray, "point 2"], grouping: Grouping | None, *, label: str) -> str:
    """Draw a mark a point, in the order of `points`, equal in scale on both axes."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 16.0
    scale = (MAP_SIDE - 2 * margin) / (float((high - low).max()) or 1.0)
    width, height = (high - low) * scale + 2 * margin
    across, up = margin + (points[:, 0] - low[0]) * scale, margin + (high[1] - points[:, 1]) * scale
    size = float(np.clip(1.25 * math.sqrt(400 / len(points)), 0.45, 1.25))
    parts = []
    for i, (x, y) in enumerate(zip(across, up, strict=True)):
        of = 0 if grouping is None else int(grouping.member[i])
        colour, shape = ("c0", 0) if grouping is None else (grouping.colours[of], grouping.shapes[of])
        place = f"translate({x:.1f} {y:.1f}) scale({size:.2f})"
        parts += [f'<path class="point {colour}" d="{SHAPES[shape]}" transform="{place}"/>']
    return svg(width, height, parts, label=label, kind="map")


# ---------------------------------------------------------------------------------- spectrograms


def _palette() -> UInt8[np.ndarray, "256 3"]:
    anchors = np.array([[int(hexes[i : i + 2], 16) for i in (0, 2, 4)] for hexes in MAGMA], float)
    at = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(at, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def png(pixels: UInt8[np.ndarray, "row column"]) -> bytes:
    """Write an image of 256 colours as a PNG; pixel 0 is black, 255 the lightest."""
    rows, columns = pixels.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)  # 8 bits a pixel, indices into a palette
    lines = np.pad(pixels, ((0, 0), (1, 0)))  # each row begins with its filter: 0, none
    body = chunk(b"PLTE", _palette().tobytes()) + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def mel_image(mel: Float[np.ndarray, "frame band"], *, range_db: float = 80.0) -> str:
    """Turn a power mel spectrogram into a data URI: dB below its loudest point, lowest band at the bottom."""
    power = np.asarray(mel, np.float64)
    peak = max(float(power.max()), 1e-30)
    level_db = 10 * np.log10(np.maximum(power / peak, 10 ** (-range_db / 10)))
    pixels = np.round((level_db / range_db + 1) * 255).astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(png(np.ascontiguousarray(pixels.T[::-1]))).decode()


def tiles(rows: Sequence[Sequence[Float[np.ndarray, "frame band"]]], *, zoom: int = 2, gap: int = 6) -> bytes:
    """Draw pictures of equal size in rows and columns as a PNG, lowest band at the bottom.

    The colours of a row run from the least to the greatest value of its first picture; NaN is hatched.
    """
    frames, bands = rows[0][0].shape
    high, wide = bands * zoom + gap, frames * zoom + gap
    hatch = np.where(np.add.outer(np.arange(bands * zoom), np.arange(frames * zoom)) % 6 == 0, 90, 0).astype(np.uint8)
    page = np.full((gap + len(rows) * high, gap + len(rows[0]) * wide), 255, np.uint8)
    for row, pictures in enumerate(rows):
        low, top = float(np.min(pictures[0])), float(np.max(pictures[0]))
        for column, picture in enumerate(pictures):
            upright = np.asarray(picture).T[::-1].repeat(zoom, axis=0).repeat(zoom, axis=1)
            level = np.clip((np.nan_to_num(upright, nan=low) - low) / (top - low or 1.0), 0.0, 1.0)
            pixels = np.where(np.isnan(upright), hatch, np.round(level * 255).astype(np.uint8))
            page[gap + row * high :, gap + column * wide :][: bands * zoom, : frames * zoom] = pixels
    return png(page)


def patch_boxes(frames: int, bands: int, patch: tuple[int, int]) -> Int[np.ndarray, "token 4"]:
    """List each token's first frame, first band, frames and bands; `patch` is (bands, frames).

    Tokens run row by row: the lowest bands first, and in them from left to right.
    """
    high, wide = patch
    assert (bands % high, frames % wide) == (0, 0), f"{frames}x{bands} is no grid of {wide}x{high} patches"
    band, frame = np.meshgrid(np.arange(0, bands, high), np.arange(0, frames, wide), indexing="ij")
    size = np.broadcast_to((wide, high), (band.size, 2))
    return np.concatenate([np.stack([frame.ravel(), band.ravel()], axis=1), size], axis=1)


def mask_overlay(
    mel: Float[np.ndarray, "frame band"],
    patch: tuple[int, int],
    visible: Int[np.ndarray, " visible"],
    *,
    frame_s: float,
    label: str,
) -> str:
    """Draw a spectrogram whose hidden patches are dimmed; `frame_s` is the time from frame to frame."""
    frames, bands = mel.shape
    left, top, wide, high = 34.0, 8.0, WIDTH - 40, 230.0
    boxes = patch_boxes(frames, bands, patch)
    scale = np.array([wide / frames, high / bands])
    hidden: list[str] = []
    seen: list[str] = []
    shown = set(visible.tolist())
    for token, (frame, band, w, h) in enumerate(boxes.tolist()):
        x, y = left + frame * scale[0], top + (bands - band - h) * scale[1]
        box = f"M{x:.2f} {y:.2f}h{w * scale[0]:.2f}v{h * scale[1]:.2f}h{-w * scale[0]:.2f}z"
        (seen if token in shown else hidden).append(box)
    place = f'x="{left:g}" y="{top:g}" width="{wide:g}" height="{high:g}" preserveAspectRatio="none"'
    parts = [f'<image href="{mel_image(mel)}" {place}/>']
    parts += [f'<path class="hidden" d="{"".join(hidden)}"/>', f'<path class="seen" d="{"".join(seen)}"/>']
    up = Scale(0.0, float(bands), top + high, top)
    for band in range(0, bands + 1, max(bands // 4, 1)):
        parts += [text(left - 6, up(float(band)) + 4, str(band), "tick", "end")]
    across = Scale(0.0, frames * frame_s, left, left + wide)
    for value in ticks(0.0, across.high, 4):
        parts += [text(across(value), top + high + 16, number(value), "tick", "middle")]
    parts += [text(left + wide, top + high + 34, "time (s)", "axis", "end")]
    parts += [text(left, top + high + 34, "up: mel band, low to high", "axis")]
    return svg(WIDTH, top + high + 42, parts, label=label, kind="chart mel")
