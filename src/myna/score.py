"""Composes: a key, a style, a tempo and players become notes.

Time is counted in sixteenth steps. A style is rhythms, chord progressions and articulation; keys and
instruments are no part of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from myna.key import TONICS

SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
REGISTERS = {  # lowest and highest MIDI pitch that a family plays
    "piano": (48, 79), "organ": (45, 77), "strings": (45, 82), "brass": (45, 76), "guitar": (43, 74),
    "flute": (60, 88), "bells": (60, 91), "choir": (48, 77),
    "electric bass": (28, 47), "synth bass": (26, 47),
}  # fmt: skip
BASSES = ("electric bass", "synth bass")


@dataclass(frozen=True)
class Style:
    """Habits of a style; patterns have one character a step, and a song varies one of the alternatives."""

    kick: tuple[str, ...]
    snare: tuple[str, ...]
    hat: tuple[str, ...]
    comp: tuple[str, ...]  # when chords are struck
    bass: tuple[str, ...]  # R root, F fifth, T third, O octave, A approach to the next root
    major: tuple[str, ...]  # progressions: scale degrees, one a chord
    minor: tuple[str, ...]
    gate: tuple[float, float]  # sounding part of the time to the next note
    swing: tuple[float, float] = (0.0, 0.1)  # by how much of a step the weak eighths come late
    sevenths: float = 0.2
    density: tuple[float, float] = (0.25, 0.5)  # melody notes a step
    drums: float = 0.75  # how often there are drums
    synth: float = 0.4  # how often the bass is a synthesiser
    favours: tuple[str, ...] = ()  # families that are met more often, but every style knows every family
    harmony: tuple[float, float, float] = (0.65, 0.15, 0.2)  # how it is played, as in `HARMONIES`
    snare_kind: str = "skin"  # the usual one
    lean_db: Mapping[str, float] = field(default_factory=dict)  # how a mix leans: drums, bass, room
    tilt_db: float = 0.0  # brightness, an octave
    steps: int = 16  # a bar


STYLE: dict[str, Style] = {
    "rock": Style(
        kick=("x.......x.x.....", "x.....x.x.......", "x.x.....x.x....."),
        snare=("....x.......x...",),
        hat=("x.x.x.x.x.x.x.x.", "x...x...x...x..."),
        comp=("x.x.x.x.x.x.x.x.", "x.....x.x...x.x.", "x.......x.x....."),
        bass=("R.R.R.R.R.R.R.R.", "R.....R.R.....R.", "R...R...R.R.F.A."),
        major=("1564", "1454", "1645", "1744"),
        minor=("1637", "1676", "1471", "1745"),
        gate=(0.7, 1.0),
        favours=("guitar", "organ", "brass"),
        tilt_db=1.2,
        drums=0.9,
        snare_kind="skin",
        harmony=(0.9, 0.05, 0.05),
        lean_db={"drums": 3.0, "room": -3.0},
    ),
    "techno": Style(
        kick=("x...x...x...x...",),
        snare=("....x.......x...", "............x..x", "................"),
        hat=("..x...x...x...x.", "x.xxx.xxx.xxx.xx", "..x...x...x..xx."),
        comp=("x..x..x...x..x..", "...x..x....x..x.", "x.x..x.x..x.x..x"),
        bass=("..R...R...R...R.", "R.RR.RR.R.RR.RRO", ".RRR.RRR.RRR.RRR"),
        major=("1111", "1144", "1166"),
        minor=("1111", "1177", "1166"),
        gate=(0.25, 0.6),
        drums=0.95,
        synth=0.75,
        favours=("bells", "organ", "choir"),
        tilt_db=1.2,
        snare_kind="clap",
        harmony=(0.4, 0.1, 0.5),
        lean_db={"drums": 6.0, "bass": 3.0},
    ),
    "waltz": Style(
        kick=("x...........",),
        snare=("....x...x...", "........x...", "............"),
        hat=("x...x...x...", "x...x.x.x...", "....x...x..."),
        comp=("....x...x...", "x...x...x...", "....x...x.x."),
        bass=("R...........", "R.......F...", "R...F...T..."),
        major=("1155", "1451", "1625", "1144"),
        minor=("1155", "1451", "1643", "1745"),
        gate=(0.3, 0.65),
        drums=0.35,
        steps=12,
        favours=("strings", "piano", "flute"),
        snare_kind="skin",
        harmony=(0.95, 0.05, 0.0),
        lean_db={"drums": -6.0, "room": 2.0, "melody": 2.0},
        tilt_db=0.0,
        density=(0.15, 0.3),
    ),
    "reggae": Style(
        kick=("........x.......", "x...x...x...x...", "x.......x......."),
        snare=("........x.......", "....x.......x...", "........x.....x."),
        hat=("x.x.x.x.x.x.x.x.", "..x...x...x...x.", "x.xxx.x.x.xxx.x."),
        comp=("..x...x...x...x.", "..xx..xx..xx..xx", "....x.......x..."),
        bass=("R..R..F...R.R...", "..R.R...F.R.....", "R.....T.F...O..."),
        major=("1144", "1545", "1212", "1456"),
        minor=("1144", "1717", "1414", "1765"),
        gate=(0.15, 0.4),
        swing=(0.0, 0.5),
        favours=("organ", "guitar", "brass"),
        tilt_db=-1.3,
        drums=0.8,
        snare_kind="rim",
        harmony=(0.95, 0.05, 0.0),
        lean_db={"bass": 6.0, "melody": -3.0, "room": 2.0},
        density=(0.1, 0.3),
    ),
    "ballad": Style(
        kick=("x.......x.......", "x.........x....."),
        snare=("........x.......", "....x.......x..."),
        hat=("x...x...x...x...", "x.x.x.x.x.x.x.x.", "................"),
        comp=("x...............", "x.......x.......", "x.....x.x......."),
        bass=("R.......F.......", "R...........A...", "R.......R.....T."),
        major=("1564", "1345", "1625", "4536"),
        minor=("1637", "1645", "1467", "6713"),
        gate=(0.85, 1.1),
        density=(0.15, 0.35),
        drums=0.5,
        synth=0.3,
        favours=("piano", "strings", "choir"),
        tilt_db=-0.3,
        snare_kind="skin",
        harmony=(0.4, 0.2, 0.4),
        lean_db={"drums": -4.0, "melody": 3.0, "room": 3.0},
    ),
    "bossa": Style(
        kick=("x..xx..xx..xx..x", "x.....x.x.....x."),
        snare=("x..x..x...x..x..", "..x.x...x..x..x."),
        hat=("x.x.x.x.x.x.x.x.", "xxxxxxxxxxxxxxxx"),
        comp=("x..x..x...x..x..", "..x..x..x.x...x.", "x..x...x..x...x."),
        bass=("R.....FFF.....R.", "R.....F.F.....A.", "R..RF..FR..RF..F"),
        major=("2511", "1625", "1251", "4325"),
        minor=("2511", "1425", "1651", "4251"),
        gate=(0.35, 0.7),
        sevenths=0.85,
        synth=0.25,
        favours=("guitar", "flute", "piano"),
        tilt_db=-0.8,
        drums=0.7,
        snare_kind="rim",
        harmony=(0.9, 0.0, 0.1),
        lean_db={"drums": -6.0, "room": -8.0},
    ),
    "funk": Style(
        kick=("x..x..x...x..x..", "x.x....x..x....."),
        snare=("....x..x.x..x..x", "....x.......x..."),
        hat=("xxxxxxxxxxxxxxxx", "x.xxx.xxx.xxx.xx"),
        comp=("...x..x....x.xx.", "x..x.x....x..x..", ".xx...x..xx...x."),
        bass=("R..O..R.R.O..R.A", "R.R...RO..R..F.A", "RR...R.O..RR.T.F"),
        major=("1111", "1414", "2525", "1144"),
        minor=("1111", "1414", "1747", "1144"),
        gate=(0.15, 0.45),
        sevenths=0.7,
        density=(0.3, 0.6),
        favours=("brass", "guitar", "bells"),
        tilt_db=1.2,
        drums=0.9,
        snare_kind="skin",
        harmony=(0.95, 0.0, 0.05),
        lean_db={"drums": 3.0, "bass": 4.0, "room": -8.0},
    ),
    "ambient": Style(
        kick=("x...............", "................"),
        snare=("................", "............x..."),
        hat=("........x.......", "x.....x.....x..."),
        comp=("x...............", "x.........x....."),
        bass=("R...............", "R.......O......."),
        major=("1144", "1166", "1414", "4141"),
        minor=("1166", "1133", "1717", "6161"),
        gate=(1.0, 1.6),
        density=(0.08, 0.25),
        sevenths=0.5,
        drums=0.2,
        synth=0.55,
        favours=("choir", "strings", "bells"),
        tilt_db=-1.5,
        snare_kind="rim",
        harmony=(0.1, 0.7, 0.2),
        lean_db={"drums": -8.0, "bass": -3.0, "room": 10.0},
    ),
}


@dataclass(frozen=True)
class Note:
    step: int | float
    steps: int | float
    pitch: int  # MIDI; for drums the place in `DRUMS`
    velocity: float


DRUMS = ("kick", "snare", "hat", "perc")


@dataclass(frozen=True)
class Plan:
    """What all the players of a song agree on."""

    style: Style
    bars: int
    gate: float
    scale: tuple[int, ...]  # pitch classes
    chords: tuple[tuple[int, ...], ...]  # pitch classes, root first, one a half bar
    bass_pattern: str
    comp_pattern: str

    def chord(self, step: int) -> tuple[int, ...]:
        return self.chords[min(int(2 * step / self.style.steps), len(self.chords) - 1)]


def plan(key: str, style: str, tempo_bpm: float, bars: int, rng: np.random.Generator) -> Plan:
    """Draw form and harmony."""
    habits = STYLE[style]
    tonic, mode = key.split()
    root = TONICS.index(tonic)
    degrees = [int(d) - 1 for d in rng.choice(getattr(habits, mode))]
    half_bar_s = habits.steps / 2 * 15 / tempo_bpm
    halves = min((1, 2, 4), key=lambda n: abs(np.log(n * half_bar_s / rng.uniform(1.2, 3.5))))
    if habits.steps == 12:
        halves = max(halves, 2)
    turn = int(rng.integers(len(degrees))) if rng.random() < 0.4 else 0  # an excerpt may begin anywhere
    raised = mode == "minor" and rng.random() < 0.6
    count = 2 * bars // halves + 1
    detours = {int(place): int(rng.integers(6)) for place in np.flatnonzero(rng.random(count) < 0.12)}
    colours = rng.random(7)  # a degree keeps its colour through the song
    chords = []
    for half in range(2 * bars):
        degree = detours.get(half // halves, degrees[(half // halves + turn) % len(degrees)])
        tones = [0, 2, 4] + ([6] if colours[degree] < habits.sevenths else [])
        if colours[degree] > 0.93:
            tones[1] = 3  # suspended fourth
        pitches = [SCALES[mode][(degree + t) % 7] for t in tones]
        if half // halves in detours and rng.random() < 0.5 and degree in (1, 5):
            pitches = [pitches[0], pitches[0] + 4, *pitches[2:]]  # a dominant of another degree
        if raised and degree in (4, 6):
            pitches = [11 if p == 10 else p for p in pitches]
        chords.append(tuple((root + p) % 12 for p in pitches))
    return Plan(
        style=habits,
        bars=bars,
        gate=rng.uniform(*habits.gate),
        scale=tuple((root + s) % 12 for s in SCALES[mode]),
        chords=tuple(chords),
        bass_pattern=str(rng.choice(habits.bass)),
        comp_pattern=_vary(str(rng.choice(habits.comp)), rng, 0.08, 0.03),
    )


def _vary(pattern: str, rng: np.random.Generator, drop: float, add: float) -> str:
    """Leave out some hits and add others."""
    chance = rng.random(len(pattern))
    return "".join(
        ("." if c < drop else p) if p != "." else ("x" if c < add else ".")
        for p, c in zip(pattern, chance, strict=True)
    )


def play_drums(plan: Plan, rng: np.random.Generator) -> list[Note]:
    """Play the style's beat on a kit of which some pieces may be missing."""
    habits, notes = plan.style, []
    pieces = {"kick": habits.kick, "snare": habits.snare, "hat": habits.hat}
    for number, piece in enumerate(DRUMS):
        if piece == "perc":
            pattern = "".join("x" if c < rng.uniform(0, 0.5) else "." for c in rng.random(habits.steps))
            present = rng.random() < 0.3
        else:
            pattern = _vary(str(rng.choice(pieces[piece])), rng, 0.06, 0.03)
            present = rng.random() < 0.9
        level = 10 ** (rng.normal({"kick": 0, "snare": -2, "hat": -9, "perc": -8}[piece], 3) / 20)
        if not present:
            continue
        for bar in range(plan.bars):
            fill = rng.random() < 0.12
            for step, mark in enumerate(_vary(pattern, rng, 0.04, 0.3 if fill else 0.01)):
                if mark == "x":
                    accent = (1.0 if step % 4 == 0 else 0.75) * rng.uniform(0.75, 1.0)
                    notes.append(Note(bar * habits.steps + step, 1, number, level * accent))
    return notes or [Note(step, 1, 2, 0.8) for step in range(0, plan.bars * habits.steps, 4)]


def play_bass(plan: Plan, low: int, rng: np.random.Generator) -> list[Note]:
    """Play roots, fifths, octaves and approaches in the octave above `low`."""
    notes, steps = [], plan.style.steps
    marks = [
        (bar * steps + step, mark)
        for bar in range(plan.bars)
        for step, mark in enumerate(plan.bass_pattern)
        if mark != "." and (step == 0 or rng.random() > 0.04)
    ]
    for (step, mark), (after, _) in zip(marks, [*marks[1:], (plan.bars * steps, "")], strict=True):
        chord = plan.chord(step)
        pitch = low + (chord[{"F": 2, "T": 1}.get(mark, 0)] - low) % 12
        if mark == "O":
            pitch += 12
        if mark == "A":  # from a semitone above or below
            pitch = low + (plan.chord(after)[0] - low) % 12 + int(rng.choice([-1, 1, 2]))
        notes.append(Note(step, (after - step) * min(plan.gate * 1.2, 1.0), pitch, rng.uniform(0.75, 1.0)))
    return notes


def voice(chord: Sequence[int], low: int, spread: bool) -> list[int]:
    """Place every tone in the octave above `low`, so that inversions follow by themselves."""
    pitches = sorted(low + (pc - low) % 12 for pc in chord)
    if spread and len(pitches) > 2:
        pitches[1] += 12
    return sorted(pitches)


def play_chords(plan: Plan, low: int, rng: np.random.Generator) -> list[Note]:
    """Strike chords in the style's rhythm."""
    notes, steps, spread = [], plan.style.steps, rng.random() < 0.35
    strum = rng.uniform(0, 0.12)
    struck = [step for step, mark in enumerate(plan.comp_pattern) if mark == "x"] or [0]
    hits = [bar * steps + step for bar in range(plan.bars) for step in struck]
    hits = [hit for hit in hits if rng.random() > 0.05] or hits
    for hit, after in zip(hits, [*hits[1:], plan.bars * steps], strict=True):
        velocity = (1.0 if hit % 4 == 0 else 0.8) * rng.uniform(0.7, 1.0)
        for place, pitch in enumerate(voice(plan.chord(hit), low, spread)):
            length = min(after - hit, steps) * plan.gate
            notes.append(Note(hit + place * strum, max(length, 0.7), pitch, velocity))
    return notes


def play_pad(plan: Plan, low: int, rng: np.random.Generator) -> list[Note]:
    """Hold every chord until it changes."""
    notes, half, spread = [], plan.style.steps / 2, rng.random() < 0.5
    start = 0
    for place in range(1, len(plan.chords) + 1):
        if place < len(plan.chords) and plan.chords[place] == plan.chords[start] and place - start < 4:
            continue
        for pitch in voice(plan.chords[start], low, spread):
            notes.append(Note(start * half, (place - start) * half, pitch, rng.uniform(0.8, 1.0)))
        start = place
    return notes


def play_arpeggio(plan: Plan, low: int, rng: np.random.Generator) -> list[Note]:
    """Break the chords in a figure of eighths, or of sixteenths."""
    stride = int(rng.choice([2, 2, 4, 1]))
    figure = rng.integers(0, 4, size=8) if rng.random() < 0.5 else np.array([0, 1, 2, 3, 2, 1, 0, 1])
    notes = []
    for count, step in enumerate(range(0, plan.bars * plan.style.steps, stride)):
        pitches = voice(plan.chord(step), low, False)
        pitches.append(pitches[0] + 12)
        if rng.random() > 0.08:
            pitch = pitches[int(figure[count % 8]) % len(pitches)]
            notes.append(Note(step, stride * max(plan.gate, 0.5), pitch, rng.uniform(0.6, 1.0)))
    return notes


def play_melody(plan: Plan, low: int, rng: np.random.Generator) -> list[Note]:
    """Walk through the scale, on strong beats mostly to a tone of the chord; a bar's rhythm returns later."""
    steps, density = plan.style.steps, rng.uniform(*plan.style.density)
    metre = np.where(np.arange(steps) % 4 == 0, 2.0, np.where(np.arange(steps) % 2 == 0, 1.2, 0.4))
    cells = rng.random((2, steps)) < density * metre
    ladder = [p for p in range(low, low + 18) if p % 12 in plan.scale]
    cells[:, 0] |= ~cells.any(axis=1)
    hits = [bar * steps + int(s) for bar in range(plan.bars) for s in np.flatnonzero(cells[bar // 2 % 2])]
    at, notes = int(rng.integers(len(ladder))), []
    for hit, after in zip(hits, [*hits[1:], plan.bars * steps], strict=True):
        at = int(np.clip(at + rng.choice([-3, -2, -1, -1, 0, 1, 1, 2, 3]), 0, len(ladder) - 1))
        if hit % 4 == 0 and rng.random() < 0.75:
            tones = [i for i, p in enumerate(ladder) if p % 12 in plan.chord(hit)]
            at = min(tones, key=lambda i: abs(i - at), default=at)
        if rng.random() > 0.1:
            length = min(after - hit, 8) * min(max(plan.gate, 0.5), 1.0)
            bent = int(rng.choice([-1, 1])) if hit % 4 and rng.random() < 0.08 else 0  # a chromatic neighbour
            notes.append(Note(hit, length, ladder[at] + bent, rng.uniform(0.6, 1.0)))
    return notes


PARTS = {"chords": play_chords, "pad": play_pad, "arpeggio": play_arpeggio, "melody": play_melody}
HARMONIES = ("chords", "pad", "arpeggio")


def play(plan: Plan, instrument: str, part: str, rng: np.random.Generator) -> list[Note]:
    """Play one instrument's part; above the bass, `part` says which of `PARTS`."""
    if instrument == "drums":
        return play_drums(plan, rng)
    low, high = REGISTERS[instrument]
    if instrument in BASSES:
        return play_bass(plan, int(rng.integers(low, low + 8)), rng)
    return PARTS[part](plan, int(rng.integers(low, high - 17)), rng)
