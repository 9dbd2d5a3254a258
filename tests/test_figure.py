"""Figures: marks, bands and names lie where the numbers say, and nothing is drawn over another name."""

import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from myna import figure
from myna.figure import Curve, Priced
from myna.quoted import TABLE_1

SVG = "{http://www.w3.org/2000/svg}"


def by_class(picture, *names):
    return [e for e in ET.fromstring(picture).iter() if set(names) <= set(e.get("class", "").split())]


def place(mark):
    return tuple(float(v) for v in re.match(r"translate\((\S+) (\S+)\)", mark.get("transform")).groups())


def line_of(points):
    """Return slope and offset of the straight line through all points, which must be one."""
    values, pixels = np.array(points, float).T
    slope, offset = np.polyfit(values, pixels, 1)
    assert np.abs(pixels - (slope * values + offset)).max() < 0.11, "pixels are no straight line of values"
    return slope, offset


CURVES = [
    Curve("square", (0.25, 0.5, 0.9), (52.0, 57.5, 58.0), (50.0, 57.0, 57.0), (54.0, 58.0, 59.0)),
    Curve("vertical", (0.25, 0.5, 0.9), (55.0, 58.0, 61.0)),
]
LABELS = {"title": "a title", "x_label": "share", "y_label": "score"}


def test_marks_lie_on_straight_axes():
    picture = figure.curves(CURVES, **LABELS, levels={"chroma": 50.5})
    across, up = [], []
    for number, curve in enumerate(CURVES):
        marks = [place(mark) for mark in by_class(picture, f"k{number}", "mark")]
        across += [(x, at[0]) for x, at in zip(curve.x, marks, strict=True)]
        up += [(y, at[1]) for y, at in zip(curve.y, marks, strict=True)]
    assert line_of(across)[0] > 0
    slope, offset = line_of(up)
    assert slope < 0
    (level,) = by_class(picture, "level")
    assert float(level.get("y1")) == pytest.approx(slope * 50.5 + offset, abs=0.11)
    lows_and_highs = [(float(w.get("y1")), float(w.get("y2"))) for w in by_class(picture, "whisker", "k0")]
    expected = [
        (slope * low + offset, slope * high + offset) for low, high in zip(CURVES[0].low, CURVES[0].high, strict=True)
    ]
    np.testing.assert_allclose(lows_and_highs, expected, atol=0.11)
    assert len(by_class(picture, "band")) == 1  # the curve without intervals has none
    assert by_class(picture, "whisker", "k1") == []


def test_a_logarithmic_axis_is_straight_in_the_logarithm():
    curve = Curve("paper", (256.0, 512.0, 1024.0, 4096.0), (65.0, 65.7, 65.9, 67.9), quoted=True)
    picture = figure.curves([curve], **LABELS, log_x=True)
    marks = [place(mark) for mark in by_class(picture, "k0", "mark", "quoted")]
    line_of([(np.log2(x), at[0]) for x, at in zip(curve.x, marks, strict=True)])
    ticks = [e.text for e in by_class(picture, "tick") if e.get("text-anchor") == "middle"]
    assert ticks == ["256", "512", "1\u202f024", "4\u202f096"]
    with pytest.raises(AssertionError, match="begins above zero"):
        figure.curves([Curve("a", (0.0, 1.0), (1.0, 2.0))], **LABELS, log_x=True)


def test_words_can_stand_for_values_and_one_point_is_enough():
    picture = figure.curves([Curve("a", (0.0, 1.0), (3.0, 4.0))], **LABELS, x_names={0.0: "power", 1.0: "log1p"})
    assert {"power", "log1p"} <= {e.text for e in by_class(picture, "tick")}
    alone = figure.curves([Curve("a", (1.0,), (3.0,))], **LABELS)
    assert len(by_class(alone, "mark")) == 1


def test_names_do_not_touch_even_if_lines_end_together():
    many = [Curve(f"model {i}", (1.0, 2.0), (10.0 * i, 5.0 + 0.01 * i)) for i in range(9)]
    picture = figure.curves(many, **LABELS, levels={"chroma": 5.0})
    heights = sorted(float(e.get("y")) for e in by_class(picture, "label") + by_class(picture, "soft"))
    assert len(heights) == 10
    assert np.diff(heights).min() >= 14.9
    assert heights[0] > 46
    assert heights[-1] < figure.HEIGHT - 40


@pytest.mark.parametrize("seed", range(20))
def test_spreading_moves_as_little_as_possible(seed):
    rng = np.random.default_rng(seed)
    wanted = np.sort(rng.uniform(0, 100, 6))
    found = np.array(figure.spread(wanted.tolist(), 10.0, 0.0, 100.0))
    assert np.diff(found).min() > 10 - 1e-9
    assert found.min() >= -1e-9
    assert found.max() <= 100 + 1e-9
    # nothing near it that is allowed is nearer to what was wanted
    best = np.square(found - wanted).sum()
    for _ in range(300):
        other = np.sort(found + rng.normal(0, rng.choice([0.1, 2.0]), 6))
        if np.diff(other).min() >= 10 and other.min() >= 0 and other.max() <= 100:
            assert np.square(other - wanted).sum() >= best - 1e-6
    assert figure.spread([5.0, 50.0], 10.0, 0.0, 100.0) == [5.0, 50.0]


def models():
    quoted = [
        Priced(r.name, r.parameters, r.scores["average"], whose="paper" if r.recipe else "other") for r in TABLE_1
    ]
    return [*quoted, Priced("ours", 9e5, 60.0, 58.0, 62.0)]


def test_cost_and_score_lie_where_they_should_and_names_apart():
    picture = figure.cost_and_score(models(), **LABELS)
    marks = by_class(picture, "other", "mark")[:-1] + by_class(picture, "k1", "mark")[:-1]  # the last explains
    shown = [m for m in models() if m.whose == "other"] + [m for m in models() if m.whose == "paper"]
    line_of([(np.log10(m.cost), place(mark)[0]) for m, mark in zip(shown, marks, strict=True)])
    line_of([(m.score, place(mark)[1]) for m, mark in zip(shown, marks, strict=True)])
    names = {m.name for m in models()}
    boxes = []
    for text in (e for e in ET.fromstring(picture).iter(SVG + "text") if e.text in names):
        wide, x = figure.CHARACTER * len(text.text), float(text.get("x"))
        start = {"start": x, "middle": x - wide / 2, "end": x - wide}[text.get("text-anchor")]
        boxes.append((start, float(text.get("y")) - 9, start + wide, float(text.get("y"))))
    assert len(boxes) == len(names)
    assert all(box[0] >= 0 and box[2] <= figure.WIDTH for box in boxes)
    assert max(figure._overlap(a, b) for a, b in itertools.combinations(boxes, 2)) < 15  # square pixels


@pytest.mark.parametrize(
    ("value", "printed"), [(22e6, "22M"), (5e9, "5B"), (3.4e3, "3.4k"), (2e12, "2T"), (7.0, "7"), (950e3, "950k")]
)
def test_large_numbers_have_letters(value, printed):
    assert figure.short(value) == printed


def test_maps_show_every_point_in_its_panel_with_its_class():
    rng = np.random.default_rng(0)
    labels = {
        split: rng.choice(["rock", "jazz", "folk"], count).tolist() for split, count in (("train", 30), ("test", 9))
    }
    layouts = {
        model: {split: rng.normal(0, scale, (len(labels[split]), 2)) for split in labels}
        for model, scale in (("hybrid", 1.0), ("mae", 50.0))
    }
    picture = figure.maps(layouts, labels, title="t")
    panels = [tuple(float(e.get(n)) for n in ("x", "y", "width")) for e in by_class(picture, "frame")]
    assert len(panels) == 4
    points = [(place(e), e.get("class").split()[1]) for e in by_class(picture, "point")]
    colour = {name: f"k{i}" for i, name in enumerate(sorted({n for names in labels.values() for n in names}))}
    for (x, y, side), (model, split) in zip(panels, itertools.product(layouts, labels), strict=True):
        inside = [(p, c) for p, c in points if x < p[0] < x + side and y < p[1] < y + side]
        assert [c for _, c in inside] == [colour[name] for name in labels[split]]
        shown, drawn = np.array([p for p, _ in inside]), layouts[model][split]
        slope = line_of(list(zip(drawn[:, 0].tolist(), shown[:, 0].tolist(), strict=True)))[0]
        assert line_of(list(zip(drawn[:, 1].tolist(), shown[:, 1].tolist(), strict=True)))[0] == pytest.approx(
            -slope, rel=0.01
        )
    assert {"rock", "jazz", "folk"} <= {e.text for e in by_class(picture, "note")}


def test_colours_are_told_apart_by_the_colour_blind():
    """The first three colours stay apart for protanopes and deuteranopes (Viénot et al. 1999), by simulation."""
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in figure.COLOURS]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    protan = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    deutan = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    for simulate in (np.eye(3), protan, deutan):
        seen = np.clip(linear @ simulate.T, 0, 1) ** (1 / 2.2)
        for a, b in itertools.combinations(range(3), 2):  # what most figures use
            assert np.abs(seen[a] - seen[b]).max() > 0.2


def test_files_are_written_whole_and_can_be_read(tmp_path):
    path = figure.write_figure(tmp_path / "a.svg", figure.curves(CURVES, **LABELS))
    root = ET.parse(path).getroot()
    assert root.tag == SVG + "svg"
    assert root.get("aria-label") == "a title"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.svg"]
    assert "var(" not in path.read_text(encoding="utf-8")  # many viewers know no variables


def test_curves_with_parts_of_different_lengths_are_refused():
    with pytest.raises(AssertionError, match="lengths"):
        Curve("a", (1.0, 2.0), (1.0,))
    with pytest.raises(AssertionError, match="two ends"):
        Curve("a", (1.0,), (1.0,), low=(0.0,))
