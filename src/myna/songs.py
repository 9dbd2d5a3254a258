"""Composes labelled music from a seed: key, style, tempo and instruments are known by construction."""

import csv
import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch

from myna.device import cores
from myna.errors import ConfigError
from myna.key import KEYS
from myna.score import BASSES, DRUMS, HARMONIES, STYLE, Note, Plan, plan, play
from myna.timbre import Colour, add_room, draw_colour, draw_kit, draw_timbre, noise, note_bank

STYLES = tuple(STYLE)
TUNED = ("piano", "organ", "strings", "brass", "guitar", "flute", "bells", "choir")
INSTRUMENTS = (*TUNED, *BASSES, "drums")
RATE_HZ = 22050  # of what is composed; models hear 16 kHz
SLOWEST_BPM, FASTEST_BPM = 60.0, 180.0
LEVELS_DB = {"chords": -3, "arpeggio": -3, "pad": -5, "melody": -1, "bass": -3, "drums": 1}
LABELS = "labels.csv"
SEED_LABELS, SEED_PLAN, SEED_MIX, SEED_PLAYER = range(4)


@dataclass(frozen=True)
class Song:
    """The labels of a song, which are also all that is needed to render it."""

    index: int
    seed: int
    title: str
    key: str
    style: str
    tempo_bpm: float
    instruments: tuple[str, ...]
    seconds: float

    def generator(self, purpose: int, detail: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.index, purpose, detail])


def song(seed: int, index: int, *, seconds: int | float = 20.0) -> Song:
    """Draw the labels of song number `index`; nothing is rendered yet."""
    rng = np.random.default_rng([seed, index, SEED_LABELS, 0])
    style = str(rng.choice(STYLES))
    key = str(rng.choice(KEYS))
    tempo_bpm = float(np.exp(rng.uniform(np.log(SLOWEST_BPM), np.log(FASTEST_BPM))))
    count = int(rng.choice([1, 2, 3, 4], p=[0.2, 0.4, 0.3, 0.1]))
    weights = np.array([4.0 if family in STYLE[style].favours else 1.0 for family in TUNED])
    players = set(rng.choice(TUNED, size=count, replace=False, p=weights / weights.sum()).tolist())
    if rng.random() < 0.75:
        players.add(BASSES[int(rng.random() < STYLE[style].synth)])
    if rng.random() < STYLE[style].drums:
        players.add("drums")
    return Song(
        index=index,
        seed=seed,
        title=_title(rng),
        key=key,
        style=style,
        tempo_bpm=round(tempo_bpm, 2),
        instruments=tuple(i for i in INSTRUMENTS if i in players),
        seconds=float(seconds),
    )


def _title(rng: np.random.Generator) -> str:
    first = ("Paper", "Copper", "Quiet", "Northern", "Velvet", "Broken", "Salt", "Electric", "Borrowed")
    second = ("Harbour", "Lantern", "Orchard", "Signal", "Winter", "Staircase", "Mynah", "Tide", "Engine")
    return f"{rng.choice(first)} {rng.choice(second)} {rng.integers(1, 1000)}"


@dataclass(frozen=True)
class Take:
    """What all the stems of a song share: its clock, its tuning, its equaliser. Times in samples."""

    rate_hz: int
    samples: int
    step: float
    lead: float  # the excerpt begins somewhere in a bar
    tuning_cents: float
    colour: Colour
    snare: str

    def start(self, note: Note) -> int:
        return round(note.step * self.step - self.lead)


def stems(song: Song, *, rate_hz: int = RATE_HZ) -> dict[str, np.ndarray]:
    """Render each instrument alone, mono, at its level in the mix: float32 (samples,)."""
    habits, mix, draw = STYLE[song.style], song.generator(SEED_MIX), song.generator(SEED_PLAN)
    step_s = 15 / song.tempo_bpm
    take = Take(
        rate_hz=rate_hz,
        samples=round(song.seconds * rate_hz),
        step=step_s * rate_hz,
        lead=draw.uniform(0, habits.steps) * step_s * rate_hz,
        tuning_cents=float(np.clip(mix.normal(0, 18), -45, 45)),
        colour=draw_colour(habits.tilt_db, mix),
        snare=habits.snare_kind,
    )
    bars = int(np.ceil((take.samples + take.lead) / take.step / habits.steps))
    agreed = plan(song.key, song.style, song.tempo_bpm, bars, draw)
    swing = draw.uniform(*habits.swing)
    parts = _share_out(song.instruments, habits.harmony, draw)
    out = {}
    for instrument in song.instruments:
        part = parts.get(instrument, instrument)
        rng = song.generator(SEED_PLAYER, INSTRUMENTS.index(instrument))
        notes = _shape(play(agreed, instrument, part, rng), agreed, swing, rng)
        stem = _render_drums(notes, take, rng) if part == "drums" else _render(instrument, notes, take, rng)
        level_db = habits.lean_db.get(part, 0.0) + rng.normal(LEVELS_DB[part], 2.0)
        out[instrument] = stem * np.float32(10 ** (level_db / 20) / (np.sqrt(np.mean(stem**2)) + 1e-9))
    return out


def _share_out(instruments: tuple[str, ...], harmony: Sequence[float], rng: np.random.Generator) -> dict[str, str]:
    """Give every pitched instrument a part; of those above the bass, the first one carries the harmony."""
    order = [TUNED[i] for i in rng.permutation(len(TUNED)) if TUNED[i] in instruments]
    first = str(rng.choice(HARMONIES, p=harmony))
    rest = ["melody", *map(str, rng.permutation([part for part in HARMONIES if part != first]))]
    return dict(zip(order, [first, *rest], strict=False)) | dict.fromkeys(BASSES, "bass")


def _shape(notes: list[Note], agreed: Plan, swing: float, rng: np.random.Generator) -> list[Note]:
    """Play like people: swung, not quite together, louder and softer, and silent for some bars."""
    loudness = np.exp(np.cumsum(rng.normal(0, 0.12, agreed.bars)))
    if agreed.bars >= 6 and rng.random() < 0.3:
        away = agreed.bars // 3
        first = int(rng.integers(3)) * away
        loudness[first : first + away] = 0
    late = rng.normal(0, 0.03, len(notes)) + rng.normal(0, 0.03)
    shaped = []
    for note, delay in zip(notes, late, strict=True):
        velocity = note.velocity * loudness[min(int(note.step / agreed.style.steps), agreed.bars - 1)]
        if velocity > 0:
            step = note.step + delay + (swing if note.step % 4 == 2 else 0)
            shaped.append(Note(step, note.steps, note.pitch, velocity))
    return shaped


def _render(instrument: str, notes: list[Note], take: Take, rng: np.random.Generator) -> np.ndarray:
    """Add up notes, each pitch of which is played once at the greatest length."""
    pitches = sorted({note.pitch for note in notes})
    row = {pitch: place for place, pitch in enumerate(pitches)}
    hz = 440 * 2 ** ((np.array(pitches) - 69 + take.tuning_cents / 100) / 12)
    timbre = draw_timbre(instrument, rng)
    longest_s = min(max(note.steps for note in notes) * take.step / take.rate_hz, 5.0)
    bank = note_bank(instrument, timbre, hz, longest_s + timbre.release_s, rng, take.colour, take.rate_hz)
    fade = np.linspace(1, 0, int(timbre.release_s * take.rate_hz), dtype=np.float32)
    out = np.zeros(take.samples, np.float32)
    for note in notes:
        heard = np.float32(note.velocity) * bank[row[note.pitch], : int(note.steps * take.step) + len(fade)]
        heard[-len(fade) :] *= fade
        _add(out, heard, take.start(note))
    return out


def _render_drums(notes: list[Note], take: Take, rng: np.random.Generator) -> np.ndarray:
    kit = draw_kit(take.snare, rng, take.colour, take.rate_hz)
    out = np.zeros(take.samples, np.float32)
    for note in notes:
        _add(out, np.float32(note.velocity) * kit[DRUMS[note.pitch]], take.start(note))
    return out


def _add(out: np.ndarray, sound: np.ndarray, start: int) -> None:
    """Mix a sound in place; what lies before the beginning or after the end is cut."""
    target = out[max(start, 0) : max(start + len(sound), 0)]
    target += sound[max(-start, 0) :][: len(target)]


def render(song: Song, *, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Render the mix: float32 (samples, 2) within [-1, 1], the same for the same song."""
    rng = song.generator(SEED_MIX, 1)
    players = stems(song, rate_hz=rate_hz)
    low = np.array([instrument in (*BASSES, "drums") for instrument in players])
    angle = np.pi / 4 * (1 + np.clip(rng.normal(0, np.where(low, 0.1, 0.35)), -0.9, 0.9))
    room_db = rng.uniform(-24, -6) + STYLE[song.style].lean_db.get("room", 0.0)
    send = rng.uniform(0, 1, len(players)) * np.where(low, 0.3, 1) * 10 ** (room_db / 20)
    gains = np.stack([np.cos(angle), np.sin(angle), send]).astype(np.float32)
    mixed = (torch.from_numpy(gains) @ torch.from_numpy(np.stack(list(players.values())))).numpy()
    mix, dry = mixed[:2], mixed[2]
    wet = add_room(dry, rng, rate_hz)
    apart = int(rng.uniform(0.003, 0.02) * rate_hz)  # the room reaches the right ear later
    mix[0] += wet
    mix[1, apart:] += wet[:-apart]
    loudness = np.sqrt(np.square(mix).mean()) + 1e-9
    hiss = noise(1.4, 20, rng.uniform(2000, 12000), rng, np.ones_like, rate_hz)
    mix += np.resize(hiss, mix.shape[1]) * np.float32(loudness * 10 ** (rng.uniform(-75, -28) / 20))
    mix *= np.float32(10 ** (rng.uniform(-38, -11) / 20) / loudness)
    return _limit(mix).T


def _limit(mix: np.ndarray) -> np.ndarray:
    """Bend what exceeds 0.7 so that nothing reaches 1."""
    loud = np.abs(mix) > 0.7
    if loud.any():
        peaks = mix[loud]
        mix[loud] = np.sign(peaks) * (0.7 + 0.28 * np.tanh((np.abs(peaks) - 0.7) / 0.28))
    return mix


@dataclass(frozen=True)
class Encoder:
    name: str
    rate_hz: int
    sample_format: str
    options: dict[str, str]


ENCODERS = {
    "wav": Encoder("pcm_s16le", RATE_HZ, "s16", {}),
    "flac": Encoder("flac", RATE_HZ, "s16", {"compression_level": "5"}),
    "mp3": Encoder("libmp3lame", RATE_HZ, "fltp", {"compression_level": "9", "joint_stereo": "0", "b": "96k"}),
    "ogg": Encoder("vorbis", RATE_HZ, "fltp", {"strict": "-2", "flags": "+qscale", "global_quality": "118"}),
    "opus": Encoder("libopus", 24000, "flt", {"compression_level": "0", "b": "96k"}),
    "m4a": Encoder("aac", RATE_HZ, "fltp", {"aac_coder": "fast", "b": "96k"}),
}
CODECS = tuple(ENCODERS)
# Lossy encoding takes longer than composing, so each of these has only one turn in four, among lossless ones.
SLOW = ("mp3", "opus", "m4a", "ogg", "opus")
TURNS = tuple(codec for slow in SLOW for codec in ("flac", slow, "wav", "flac"))


def write_song(song: Song, folder: str | os.PathLike[str], *, codec: str) -> Path:
    """Render a song into a stereo file with title and artist tags.

    Raises ConfigError for a codec that is not in `CODECS`.
    """
    if codec not in CODECS:
        raise ConfigError(f"There is no codec {codec!r} for composed songs: choose one of {', '.join(CODECS)}.")
    encoder = ENCODERS[codec]
    path = Path(folder) / f"{song.index:05d}.{codec}"
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(render(song, rate_hz=RATE_HZ).T), format="fltp", layout="stereo"
    )
    frame.sample_rate = RATE_HZ
    with av.open(str(path), "w") as container:
        container.metadata.update(title=song.title, artist=f"The {song.style.title()} Machine")
        stream = container.add_stream(encoder.name, rate=encoder.rate_hz, layout="stereo", options=encoder.options)
        stream.codec_context.format = encoder.sample_format
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _write_task(task: tuple[Song, str, str]) -> Path:
    song, folder, codec = task
    return write_song(song, folder, codec=codec)


def write_corpus(
    folder: str | os.PathLike[str],
    count: int,
    *,
    seed: int,
    seconds: int | float = 20.0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Path, Song]]:
    """Write songs in several codecs, and their labels as `labels.csv`, on all cores by default.

    `progress` is called with the number of songs written and their count.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    songs = [song(seed, index, seconds=seconds) for index in range(count)]
    tasks = [(s, str(folder), TURNS[s.index % len(TURNS)]) for s in songs]
    workers = min(workers or cores(), count)
    paths = []
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        for path in pool.imap(_write_task, tasks, chunksize=4):
            paths.append(path)
            if progress is not None:
                progress(len(paths), count)
    written = list(zip(paths, songs, strict=True))
    _write_labels(folder / LABELS, written)
    return written


def read_labels(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Return the rows of a corpus's labels: a song each, its `path` relative to the file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write_labels(path: Path, written: list[tuple[Path, Song]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "title", "key", "style", "tempo_bpm", "instruments"])
        for audio, s in written:
            writer.writerow([audio.name, s.title, s.key, s.style, s.tempo_bpm, "|".join(s.instruments)])
