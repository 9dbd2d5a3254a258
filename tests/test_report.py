"""The page: whole, self-contained, safe against any title; its numbers are those that were given."""

import dataclasses
import io
import json
import os
from html.parser import HTMLParser

import av
import numpy as np
import pytest

from myna.report import (
    Clip,
    MaskedView,
    Neighbours,
    Report,
    Score,
    ScoreTable,
    encode_excerpt,
    page,
    verdict,
    write_page,
)

NASTY = """</script><script>alert(1)</script> "Ol' & <b>Älv</b>" 夜 \u2028 \udcff"""


def table() -> ScoreTable:
    scores = {
        ("trained", "style"): Score(0.72, 0.70, 0.745),
        ("untrained", "style"): Score(0.55, 0.52, 0.58),
        ("trained", "tempo"): Score(-0.04, -0.05, -0.03),
        ("untrained", "tempo"): Score(0.12, 0.10, 0.14),
        ("trained", "key"): Score(0.31, 0.29, 0.33),
        ("untrained", "key"): Score(0.30, 0.28, 0.32),
    }
    metric = {"style": "accuracy", "tempo": "R²", "key": "[red]weighted"}
    chance = {"style": 0.125, "tempo": 0.0, "key": 0.04}
    return ScoreTable(("trained", "untrained"), ("style", "tempo", "key"), scores, metric, chance)


def full_report() -> Report:
    rng = np.random.default_rng(0)
    songs = [Clip(f"song {i}", f"A minor · rock · {i}", b"sound %d" % i, similarity=0.9) for i in range(6)]
    songs.append(Clip(NASTY, NASTY, b"nasty", similarity=-0.5))
    views = tuple(
        MaskedView(kind, rng.random((96, 128)).astype(np.float32), patch, np.array([1, 4, 40]))
        for kind, patch in (("square", (16, 16)), ("vertical", (128, 2)), ("square", (16, 16)))
    )
    return Report(
        title=NASTY,
        subtitle=NASTY,
        facts=((NASTY, NASTY),),
        steps=np.arange(50),
        loss=np.linspace(5, 1, 50),
        retrieval=np.linspace(0, 0.9, 50),
        table=table(),
        points=rng.normal(size=(8, 2)),
        point_labels={NASTY: [NASTY, *"abcdefg"], "style": list("aabbccdd")},
        point_titles=["song 0", "song 1", "song 3", "song 3", "song 2", NASTY, "x", "y"],
        views=views,
        neighbours=(Neighbours(songs[0], tuple(songs[1:5])), Neighbours(songs[5], (songs[6], songs[0]))),
        notes=(NASTY,),
        command=NASTY,
    )


class Reader(HTMLParser):
    """Collect elements, text outside of scripts and styles, and the content of each script."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.words, self.scripts, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "path", "line", "circle", "rect", "image"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif "style" not in self.open:
            self.words.append(data)

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.elements if name in attrs]


# --------------------------------------------------------------------------------------- the page


def test_any_text_stays_text():
    read = Reader(page(full_report()))
    assert read.open == []
    assert "b" not in {tag for tag, _ in read.elements}
    assert sum(tag == "script" for tag, _ in read.elements) == 2
    text = "".join(read.words)
    # title, heading, subtitle, fact twice, button of the map, neighbour, its caption, note, command
    assert text.count(NASTY) == 10
    assert f"play {NASTY}" in read.attributes("aria-label")
    data = json.loads(read.scripts[0])
    assert data["titles"][5] == NASTY
    assert list(data["labels"]) == [NASTY, "style"]


def test_the_page_asks_for_nothing_from_outside():
    text = page(full_report())
    read = Reader(text)
    links = [*read.attributes("src"), *read.attributes("href"), *read.attributes("srcset")]
    assert len(links) == 3
    assert all(link.startswith("data:image/png;base64,") for link in links)
    outside = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not any(word in outside for word in ("http:", "https:", "@import", "url(", "fetch(", 'src="//'))
    (policy,) = [a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy


def test_each_sound_is_kept_once_and_found_from_buttons_and_points():
    read = Reader(page(full_report()))
    data = json.loads(read.scripts[0])
    buttons = read.attributes("data-sound")
    assert len(buttons) == 8  # song 0 is a query and a neighbour
    assert len(set(buttons)) == 7
    assert set(buttons) == set(data["sounds"])
    assert data["plays"][0] == buttons[0]
    assert data["plays"][2:4] == [None, None]
    assert data["plays"][5] is not None
    silent = Report("t", neighbours=(Neighbours(Clip("a"), (Clip("b", similarity=0.5),)),))
    assert Reader(page(silent)).attributes("data-sound") == []
    assert ">0.50<" in page(silent)


def test_labels_shared_with_the_query_are_marked():
    read = Reader(page(full_report()))
    marks = [attrs.get("class") for tag, attrs in read.elements if tag == "li" and "class" in attrs]
    assert marks.count("shared") == 4 * 2 + 2  # A minor and rock, in four neighbours, and in song 0 once more


def test_groups_of_the_map_are_the_labels():
    report = full_report()
    data = json.loads(Reader(page(report)).scripts[0])
    for question, answers in report.point_labels.items():
        groups, member = data["labels"][question]["groups"], data["labels"][question]["member"]
        assert [groups[i]["name"] for i in member] == list(answers)
        assert [group["count"] for group in groups] == [member.count(i) for i in range(len(groups))]


def test_what_is_missing_is_left_out():
    text = page(Report("alone"))
    assert "<h1>alone</h1>" in text
    assert not any(tag in text for tag in ("<h2>", "<section", "<svg xmlns", "<dl>"))
    full = full_report()
    sections = page(full).count("<section")
    empty_table = ScoreTable((), (), {}, {}, {})
    for change in (
        {"table": None},
        {"table": empty_table},
        {"points": None},
        {"points": np.zeros((0, 2)), "point_titles": [], "point_labels": {}},
        {"views": ()},
        {"neighbours": ()},
        {"steps": np.zeros(0), "loss": np.zeros(0), "retrieval": np.zeros(0)},
        {"notes": (), "command": ""},
    ):
        assert page(dataclasses.replace(full, **change)).count("<section") == sections - 1


def test_a_map_without_labels_is_drawn():
    text = page(dataclasses.replace(full_report(), point_labels={}))
    assert text.count('class="point c0"') == 8
    assert Reader(text).attributes("data-label") == []


def test_lengths_that_differ_are_refused():
    with pytest.raises(AssertionError, match="one title"):
        Report("t", points=np.zeros((3, 2)), point_titles=["a", "b"])
    with pytest.raises(AssertionError, match="one loss"):
        Report("t", steps=np.arange(3), loss=np.zeros(2), retrieval=np.zeros(3))


def test_a_page_with_thirty_players_is_small(tmp_path):
    noise = np.random.default_rng(0).normal(size=16_000 * 6).astype(np.float32)
    sounds = [encode_excerpt(np.roll(noise, i), 16_000)[0] for i in range(3)]
    clips = [Clip(f"song {i}", audio=sounds[i % 3] + bytes([i])) for i in range(30)]
    rows = tuple(Neighbours(clips[i], tuple(clips[i + 1 : i + 5])) for i in range(0, 30, 5))
    write_page(dataclasses.replace(full_report(), neighbours=rows), tmp_path / "page.html")
    assert 30 * 6 * 4000 < (tmp_path / "page.html").stat().st_size < 1_500_000


# ------------------------------------------------------------------------------------- the file


def test_the_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    write_page(full_report(), path)
    before = path.read_bytes()
    assert before.decode("utf-8").rstrip().endswith("</html>")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]

    def fail(*_):
        raise OSError("disk")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_page(Report("other"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


# ----------------------------------------------------------------------------------- the numbers


def test_intervals_never_promise_too_much():
    assert str(Score(0.713, 0.70, 0.74)) == "71.3 ±2.7"
    assert str(Score(-0.04, -0.05, -0.035)) == "−4.0 ±1.0"


def test_what_prints_equal_is_a_tie():
    scores = {(row, "x"): Score(mean, 0.0, 1.0) for row, mean in (("a", 0.7001), ("b", 0.7004), ("c", 0.69))}
    assert ScoreTable(("a", "b", "c"), ("x",), scores, {"x": "m"}, {"x": 0.0}).best("x") == {"a", "b"}


def test_verdict_claims_only_what_intervals_hold():
    assert verdict(table()) == ("trained against untrained: better on style; worse on tempo; too close to call on key")
    only = dataclasses.replace(table(), columns=("key",))
    assert verdict(only) == "trained against untrained: too close to call on key"
    alone = dataclasses.replace(table(), rows=("trained",))
    assert verdict(alone).startswith("How well trained answers")


# ------------------------------------------------------------------------------------- the sound


def decode(audio: bytes) -> tuple[np.ndarray, int]:
    with av.open(io.BytesIO(audio)) as box:
        frames = [frame.to_ndarray() for frame in box.decode(audio=0)]
        return np.concatenate(frames, axis=1), box.streams.audio[0].rate


@pytest.mark.parametrize("channels", [None, 2])
def test_an_excerpt_is_the_middle_in_mono(channels):
    rate_hz = 44_100
    time_s = np.arange(rate_hz * 10) / rate_hz
    middle = (time_s >= 4) & (time_s < 6)
    tone = np.where(middle, np.sin(2 * np.pi * 440 * time_s), np.sin(2 * np.pi * 3000 * time_s)) * 0.01
    samples = tone if channels is None else np.stack([tone * 2, np.zeros_like(tone)], axis=1)
    audio, mime = encode_excerpt(samples.astype(np.float32), rate_hz, seconds=2.0)
    sound, decoded_hz = decode(audio)
    assert mime == "audio/mpeg"
    assert sound.shape[0] == 1
    assert sound.shape[1] / decoded_hz == pytest.approx(2, abs=0.1)
    spectrum = np.abs(np.fft.rfft(sound[0]))
    hz = np.fft.rfftfreq(sound.shape[1], 1 / decoded_hz)
    assert hz[spectrum.argmax()] == pytest.approx(440, abs=2)
    assert spectrum[np.abs(hz - 3000) < 50].max() < 0.01 * spectrum.max()
    assert np.abs(sound).max() == pytest.approx(0.9, abs=0.05)
    assert len(audio) < 2.3 * 4000


def test_short_and_silent_excerpts_are_encoded():
    short, _ = encode_excerpt(np.ones(1000, np.float32), 16_000)
    assert decode(short)[0].size > 0
    silent, _ = encode_excerpt(np.zeros(16_000, np.float32), 16_000)
    assert np.abs(decode(silent)[0]).max() < 1e-3
