"""Pictures: the PNG decodes to the numbers it was made of, the marks of the SVG lie where the numbers say."""

import base64
import io
import math
import re
import struct
import xml.etree.ElementTree as ET
import zlib

import av
import numpy as np
import pytest
import torch

from myna import plot
from myna.patch import Patch, patchify

KEYS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
SVG = "{http://www.w3.org/2000/svg}"


def by_class(picture: str, name: str) -> list[ET.Element]:
    return [e for e in ET.fromstring(picture).iter() if name in e.get("class", "").split()]


def numbers(path: str) -> list[float]:
    return [float(value) for value in re.findall(r"-?\d+(?:\.\d+)?", path)]


def chunks(image: bytes) -> dict[bytes, bytes]:
    """Split a PNG into its chunks, checking every checksum."""
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    at, found = 8, {}
    while at < len(image):
        (size,) = struct.unpack(">I", image[at : at + 4])
        name, data = image[at + 4 : at + 8], image[at + 8 : at + 8 + size]
        assert struct.unpack(">I", image[at + 8 + size : at + 12 + size]) == (zlib.crc32(name + data),)
        found[name] = data
        at += 12 + size
    return found


def indices(image: bytes) -> np.ndarray:
    found = chunks(image)
    columns, rows = struct.unpack(">II", found[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(found[b"IDAT"]), np.uint8).reshape(rows, columns + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:]


def from_uri(uri: str) -> bytes:
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return base64.b64decode(data, validate=True)


# ---------------------------------------------------------------------------------- spectrograms


def test_png_is_decoded_by_ffmpeg_to_the_same_colours():
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53), dtype=np.uint8)
    image = plot.png(pixels)
    with av.open(io.BytesIO(image), format="png_pipe") as box:
        (frame,) = box.decode(video=0)
    palette = np.frombuffer(chunks(image)[b"PLTE"], np.uint8).reshape(256, 3)
    assert np.array_equal(frame.to_ndarray(format="rgb24"), palette[pixels])


def test_lightness_rises_evenly_over_the_colour_map():
    palette = np.frombuffer(chunks(plot.png(np.zeros((1, 1), np.uint8)))[b"PLTE"], np.uint8).reshape(256, 3)
    srgb = palette / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    lightness = np.where(luminance > 216 / 24389, 116 * np.cbrt(luminance) - 16, luminance * 24389 / 27)
    assert lightness[0] < 1
    assert lightness[-1] > 95
    assert np.diff(lightness).min() >= 0
    assert np.abs(lightness - np.linspace(lightness[0], lightness[-1], 256)).max() < 6.5  # of 100


def test_mel_image_is_decibels_with_the_lowest_band_at_the_bottom():
    mel = 10 ** np.random.default_rng(1).uniform(-12, 3, (30, 128))
    expected = np.zeros((128, 30))
    for frame in range(30):
        for band in range(128):
            level = max(10 * math.log10(mel[frame, band] / mel.max()), -80.0)
            expected[127 - band, frame] = 255 * (1 + level / 80)
    found = indices(from_uri(plot.mel_image(mel.astype(np.float32)))).astype(float)
    assert np.abs(found - expected).max() <= 0.51
    assert found.max() == 255


def test_tiles_stand_in_rows_with_a_scale_each():
    rng = np.random.default_rng(4)
    rows = [[rng.random((6, 8)) * 10 + 5 for _ in range(3)] for _ in range(2)]
    rows[1][1][2:4, 3:5] = np.nan
    found = indices(plot.tiles(rows, zoom=2, gap=3)).astype(float)
    assert found.shape == (3 + 2 * 19, 3 + 3 * 15)
    for row, pictures in enumerate(rows):
        low, top = pictures[0].min(), pictures[0].max()
        for column, picture in enumerate(pictures):
            for frame in range(6):
                for band in range(8):
                    y, x = 3 + row * 19 + (7 - band) * 2, 3 + column * 15 + frame * 2
                    drawn = found[y : y + 2, x : x + 2]
                    if np.isnan(picture[frame, band]):
                        assert set(drawn.ravel()) <= {0.0, 90.0}
                    else:
                        wanted = 255 * min(max((picture[frame, band] - low) / (top - low), 0), 1)
                        assert np.abs(drawn - wanted).max() <= 0.51
    assert (found[:3] == 255).all()
    assert (found[:, :3] == 255).all()
    hidden = found[3 + 19 :, 3 + 15 :][6:10, 4:8]
    assert set(hidden.ravel()) == {0.0, 90.0}


def test_silence_is_black():
    assert not indices(from_uri(plot.mel_image(np.zeros((16, 128), np.float32)))).any()


# --------------------------------------------------------------------------------------- patches


@pytest.mark.parametrize("patch", [(16, 16), (128, 2), (32, 8)])
def test_patch_boxes_are_the_cells_that_the_model_cuts(patch):
    frames, bands = 96, 128
    cells = torch.arange(frames * bands, dtype=torch.float32).reshape(1, frames, bands)
    tokens = patchify(cells, Patch(*patch))[0].long()
    boxes = plot.patch_boxes(frames, bands, patch)
    assert len(boxes) == len(tokens)
    for box, token in zip(boxes.tolist(), tokens.tolist(), strict=True):
        frame, band, wide, high = box
        covered = {f * bands + b for f in range(frame, frame + wide) for b in range(band, band + high)}
        assert covered == set(token)


@pytest.mark.parametrize(("patch", "visible"), [((16, 16), [0, 5, 6, 41, 47]), ((128, 2), [0, 3, 47])])
def test_overlay_dims_exactly_the_hidden_patches(patch, visible):
    frames, bands = 96, 128
    mel = np.random.default_rng(2).random((frames, bands)).astype(np.float32)
    picture = plot.mask_overlay(mel, patch, np.array(visible), frame_s=0.032, label="a")
    (image,) = ET.fromstring(picture).iter(SVG + "image")
    x0, y0, wide, high = (float(image.get(name)) for name in ("x", "y", "width", "height"))
    expected = {"seen": [], "hidden": []}
    for row in range(bands // patch[0]):
        for column in range(frames // patch[1]):
            token = row * (frames // patch[1]) + column
            left = x0 + column * patch[1] / frames * wide
            top = y0 + high - (row + 1) * patch[0] / bands * high
            size = patch[1] / frames * wide, patch[0] / bands * high
            expected["seen" if token in visible else "hidden"].append((left, top, *size, -size[0]))
    for kind, boxes in expected.items():
        (element,) = by_class(picture, kind)
        found = np.array(numbers(element.get("d"))).reshape(-1, 5)
        assert np.abs(found - np.array(boxes)).max() < 0.006
    assert np.array_equal(indices(from_uri(image.get("href"))), indices(from_uri(plot.mel_image(mel))))


def test_a_crop_that_is_no_grid_is_refused():
    with pytest.raises(AssertionError, match="98x128 is no grid of 16x16"):
        plot.patch_boxes(98, 128, (16, 16))


# ------------------------------------------------------------------------------------------ axes


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-13.0, 22.0), (4.17, 63.0), (0.001, 0.0042), (1.0, 1e5)])
def test_ticks_are_round_even_and_inside(low, high):
    found = plot.ticks(low, high)
    steps = np.diff(found)
    assert 3 <= len(found) <= 9
    assert low <= found[0]
    assert found[-1] <= high
    assert np.allclose(steps, steps[0], rtol=1e-6)
    assert round(steps[0] / 10 ** math.floor(math.log10(steps[0] * 1.0001)), 6) in (1, 2, 5)


def test_numbers_are_short():
    cases = {0.0: "0", 1.0: "1", 4.1667: "4.17", 12.5: "12.5", 94.93: "94.9", -3.2: "−3.2", 12345.6: "12\u202f346"}
    assert {value: plot.number(value) for value in cases} == cases


# ---------------------------------------------------------------------------------------- curves


def test_smooth_is_the_mean_of_what_is_there():
    values = np.random.default_rng(3).random(20)
    expected = [values[max(0, i - 2) : i + 3].mean() for i in range(20)]
    assert np.allclose(plot.smooth(values, 5), expected, atol=1e-12)


def test_line_chart_is_linear_in_its_values_and_skips_what_is_not_finite():
    x, y = np.arange(1, 11), np.array([5, 4, 3, np.nan, 2, 1.5, 1, 1, np.inf, 0.5])
    picture = plot.line_chart(x, y, x_label="training step", y_label="loss (nats)", label="a < b & c")
    (raw,) = by_class(picture, "raw")
    drawn = np.array(numbers(raw.get("d"))).reshape(-1, 2)
    kept = np.isfinite(y)
    for pixel, value in ((drawn[:, 0], x[kept]), (drawn[:, 1], y[kept])):
        slope, offset = np.polyfit(value, pixel, 1)
        assert np.abs(slope * value + offset - pixel).max() < 0.11
    assert drawn[0, 1] < drawn[-1, 1]  # the larger loss is higher on the page
    assert ET.fromstring(picture).get("aria-label") == "a < b & c: 0.5 at the end"


def test_a_long_curve_stays_small():
    y = np.random.default_rng(4).random(100_000)
    assert len(plot.line_chart(np.arange(100_000), y, x_label="", y_label="", label="")) < 20_000


def test_a_flat_curve_is_drawn():
    picture = plot.line_chart(np.arange(5), np.full(5, -2.0), x_label="", y_label="", label="flat")
    assert len(by_class(picture, "mean")) == 1


# ------------------------------------------------------------------------------------------ bars


def test_bars_run_from_chance_to_the_mean_and_whiskers_over_the_interval():
    means, lows, highs, chance = [72.0, 55.0, -4.0], [70.0, 50.0, -9.0], [75.0, 58.0, 0.0], 12.5
    picture = plot.bars(
        ["<a>", "b", "c"], means, lows, highs, chance=chance, axis_label="R²", values=["1", "2", "3"], best={"<a>"}
    )
    (line,) = by_class(picture, "chance")
    rects = by_class(picture, "bar")
    whiskers = [e for e in by_class(picture, "whisker") if e.get("y1") == e.get("y2")]
    zero = float(line.get("x1"))
    scale = (float(whiskers[0].get("x2")) - float(whiskers[0].get("x1"))) / (highs[0] - lows[0])
    for i, rect in enumerate(rects):
        ends = float(rect.get("x")), float(rect.get("x")) + float(rect.get("width"))
        expected = sorted((zero, zero + (means[i] - chance) * scale))
        assert ends == pytest.approx(expected, abs=2)  # the scale itself comes from rounded pixels
        found = [float(whiskers[i].get(end)) for end in ("x1", "x2")]
        assert found == pytest.approx([zero + (v - chance) * scale for v in (lows[i], highs[i])], abs=2)
    assert [e.text for e in by_class(picture, "value")] == ["1"]
    assert [e.text for e in by_class(picture, "first") if e.text] == ["<a>"]


# --------------------------------------------------------------------------------------- scatter


def test_scatter_keeps_order_orientation_and_one_scale():
    points = np.random.default_rng(5).normal(size=(40, 2)) * [30, 4]
    places = [numbers(e.get("transform"))[:2] for e in by_class(plot.scatter(points, None, label="x"), "point")]
    drawn = np.array(places)
    (slope_x, _), (slope_y, _) = (np.polyfit(points[:, i], drawn[:, i], 1) for i in (0, 1))
    assert slope_x == pytest.approx(-slope_y, rel=0.01)
    assert slope_x > 0
    assert np.corrcoef(points[:, 0], drawn[:, 0])[0, 1] > 0.9999


def test_equal_points_are_drawn_on_one_spot():
    assert len(by_class(plot.scatter(np.ones((3, 2)), None, label="x"), "point")) == 3


def test_groups_differ_in_colour_or_shape_up_to_24_keys():
    labels = [f"{tonic} {mode}" for tonic in KEYS for mode in ("major", "minor")]
    grouping = plot.group(labels)
    assert len(set(zip(grouping.colours, grouping.shapes, strict=True))) == 24
    assert [grouping.names[i] for i in grouping.member] == labels


def test_rare_groups_become_others():
    labels = [str(chr(65 + i)) for i in range(26) for _ in range(26 - i)]
    grouping = plot.group(labels, limit=4)
    assert grouping.names == ("A", "B", "C", "others")
    assert np.bincount(grouping.member).tolist() == [26, 25, 24, sum(range(1, 24))]


def test_numbers_are_grouped_by_range():
    values = np.random.default_rng(6).uniform(60, 180, 500).round(1)
    grouping = plot.group([f"{value:.1f}" for value in values])
    for value, member in zip(values, grouping.member, strict=True):
        name = grouping.names[member]
        low, high = (numbers(name) if "–" in name else (-np.inf, *numbers(name))[:2], None)[0]
        if name.startswith("from"):
            low, high = high, np.inf
        assert low <= value < high
    assert len(set(grouping.colours)) == len(grouping.names) >= 4
