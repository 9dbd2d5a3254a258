"""Sounds for composed music: instrument families drawn anew for every song, drum kits, equalisers, rooms.

A note is a sum of decaying partials. The power z^n of a complex number splits into z^(a*BLOCK) * z^b, so the
sum over partials is one matrix product a pitch: composing becomes hundreds of times faster than listening.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch

BLOCK = 256
TOP_HZ = 9000.0  # partials above are not heard by a model at 16 kHz
Colour = Callable[[np.ndarray], np.ndarray]
Real = int | float


@dataclass(frozen=True)
class Timbre:
    """What distinguishes one player of one song. A family is a range for every field."""

    slope: float = 1.5  # amplitude of harmonic n is n ** -slope
    roughness: float = 0.3  # spread of single harmonics, natural log
    even: float = 1.0  # amplitude of even harmonics: 0 is a square wave
    pluck: float = 0.0  # where the string is struck, fraction of its length; 0 is nowhere
    stretch: float = 0.0  # inharmonicity
    decay_s: float = 60.0  # of the fundamental at middle C
    damping: float = 0.0  # decay of harmonic n is decay_s / n ** damping
    attack_s: float = 0.01
    swell: float = 0.0  # seconds by which the highest harmonics come later
    release_s: float = 0.1
    detune_cents: float = 0.0  # of a second voice; 0 is a single voice
    vibrato_cents: float = 0.0
    tremolo: float = 0.0
    breath: float = 0.0
    body: float = 0.0  # decibels of the resonances
    formant_hz: float = 900.0


FAMILIES: dict[str, dict[str, tuple[float, float]]] = {
    "piano": {
        "slope": (1.0, 2.3), "pluck": (0.1, 0.16), "stretch": (1e-4, 9e-4), "decay_s": (0.5, 3.0),
        "damping": (0.3, 0.9), "attack_s": (0.001, 0.008), "release_s": (0.05, 0.3), "detune_cents": (0.5, 5),
        "body": (0, 5),
    },
    "organ": {
        "slope": (0.3, 1.6), "roughness": (0.6, 1.6), "even": (0.2, 1.0), "attack_s": (0.004, 0.04),
        "release_s": (0.03, 0.15), "detune_cents": (0, 8), "tremolo": (0, 0.35), "vibrato_cents": (0, 12),
    },
    "strings": {
        "slope": (0.8, 1.6), "attack_s": (0.04, 0.25), "release_s": (0.1, 0.5), "detune_cents": (5, 18),
        "vibrato_cents": (0, 30), "body": (4, 14), "formant_hz": (400, 1600), "breath": (0, 0.02),
    },
    "brass": {
        "slope": (0.5, 1.4), "attack_s": (0.015, 0.07), "swell": (0.03, 0.15), "release_s": (0.04, 0.2),
        "detune_cents": (0, 9), "vibrato_cents": (0, 15), "body": (6, 14), "formant_hz": (600, 1400),
    },
    "guitar": {
        "slope": (0.7, 1.8), "pluck": (0.07, 0.4), "stretch": (0, 2e-4), "decay_s": (0.3, 2.0),
        "damping": (0.4, 1.1), "attack_s": (0.001, 0.006), "release_s": (0.03, 0.25), "body": (0, 10),
        "formant_hz": (150, 600),
    },
    "flute": {
        "slope": (1.7, 3.4), "attack_s": (0.02, 0.12), "release_s": (0.04, 0.2), "vibrato_cents": (0, 30),
        "tremolo": (0, 0.3), "breath": (0.01, 0.12),
    },
    "bells": {
        "slope": (0.6, 2.0), "decay_s": (0.5, 3.5), "damping": (0.3, 1.0), "attack_s": (0.0005, 0.004),
        "release_s": (0.1, 0.8), "detune_cents": (0, 3), "tremolo": (0, 0.25),
    },
    "choir": {
        "slope": (0.8, 1.7), "attack_s": (0.06, 0.3), "release_s": (0.1, 0.5), "detune_cents": (8, 24),
        "vibrato_cents": (8, 40), "breath": (0.005, 0.05), "body": (12, 24), "formant_hz": (350, 1000),
    },
    "electric bass": {
        "slope": (1.0, 2.4), "pluck": (0.08, 0.4), "decay_s": (0.4, 2.5), "damping": (0.5, 1.2),
        "attack_s": (0.002, 0.01), "release_s": (0.02, 0.12), "stretch": (0, 1e-4), "body": (0, 6),
    },
    "synth bass": {
        "slope": (0.6, 1.6), "roughness": (0, 0.2), "even": (0, 1), "decay_s": (0.15, 4.0),
        "damping": (0, 1.3), "attack_s": (0.001, 0.02), "release_s": (0.01, 0.1), "detune_cents": (0, 14),
    },
}  # fmt: skip
# partials of a bar, a bell and a tube; the strike note is 1
BELLS = (
    (1, 2.76, 5.4, 8.93, 13.3),
    (0.5, 1, 1.2, 1.5, 2, 2.5, 3.01, 4.1),
    (1, 4, 10.1, 16.5),
    (1, 2, 3, 4.2, 5.4, 6.8),
)


def draw_timbre(family: str, rng: np.random.Generator) -> Timbre:
    """Draw one player of a family."""
    ranges = FAMILIES[family]
    return Timbre(**{f.name: rng.uniform(*ranges[f.name]) for f in fields(Timbre) if f.name in ranges})


def draw_colour(lean_db: Real, rng: np.random.Generator) -> Colour:
    """Draw the equaliser of a song, as different masterings are: frequencies in Hz become amplitudes."""
    tilt_db, bump_db = lean_db + rng.uniform(-3.0, 1.0), rng.normal(0, 3.5)
    bump_hz, width = np.exp(rng.uniform(np.log(150), np.log(5000))), rng.uniform(0.3, 1.2)
    low_hz = np.exp(rng.uniform(np.log(20), np.log(200)))
    high_hz = np.exp(rng.uniform(np.log(2500), np.log(16000)))

    def colour(hz: np.ndarray) -> np.ndarray:
        hz = np.maximum(hz, 1.0)
        octaves = np.log2(hz / 500)
        bump = np.exp(-0.5 * ((octaves - np.log2(bump_hz / 500)) / width) ** 2)
        gain_db = tilt_db * octaves + bump_db * bump
        return 10 ** (gain_db / 20) / np.sqrt((1 + (low_hz / hz) ** 4) * (1 + (hz / high_hz) ** 4))

    return colour


def note_bank(
    family: str,
    timbre: Timbre,
    pitches_hz: np.ndarray,
    seconds: Real,
    rng: np.random.Generator,
    colour: Colour,
    rate_hz: int,
) -> np.ndarray:
    """Play every pitch once: (pitch, sample)."""
    hz, amplitude, decay = _partials(family, timbre, np.asarray(pitches_hz, float), rng, colour)
    samples = int(seconds * rate_hz) + BLOCK
    bank = _ring(hz / rate_hz, amplitude, decay / rate_hz, samples)
    rate = rng.uniform(4.2, 6.8)
    if timbre.vibrato_cents > 4:
        bank = _vibrato(bank, timbre.vibrato_cents, rate, rate_hz)
    if timbre.tremolo > 0.03:
        turns = np.arange(bank.shape[1], dtype=np.float32) * np.float32(2 * np.pi * rate / rate_hz)
        bank *= 1 + np.float32(timbre.tremolo) * np.sin(turns)
    if timbre.breath > 0.003:
        hiss = noise(bank.shape[1] / rate_hz, 700, 5000, rng, colour, rate_hz)
        bank[:, : len(hiss)] += hiss * (timbre.breath * bank.std(axis=1, keepdims=True) / (hiss.std() + 1e-9))
    attack = max(int(timbre.attack_s * rate_hz), 2)
    ramp = np.sin(np.linspace(0, np.pi / 2, attack, dtype=np.float32)) ** 2
    bank[:, :attack] *= ramp[: bank.shape[1]]
    return bank


def _partials(
    family: str, timbre: Timbre, pitches_hz: np.ndarray, rng: np.random.Generator, colour: Colour
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies in Hz, amplitudes, and decay rates in 1/s of the partials, each (pitch, partial)."""
    count = int(np.clip(TOP_HZ / pitches_hz.min(), 4, 22))
    n = np.arange(1, count + 1.0)
    ratio = n * np.sqrt(1 + timbre.stretch * n**2)
    if family == "bells":
        ratio = np.array(BELLS[rng.integers(len(BELLS))])
    n = np.maximum(ratio, 1.0)
    level = n**-timbre.slope * np.exp(timbre.roughness * rng.standard_normal(len(n)))
    if family != "bells":
        level[1::2] *= timbre.even
    if timbre.pluck:
        level *= np.abs(np.sin(np.pi * n * timbre.pluck)) + 0.05
    hz = pitches_hz[:, None] * ratio
    amplitude = level * colour(hz) * _body(timbre, hz, rng) * (hz < TOP_HZ)
    decay = n**timbre.damping / timbre.decay_s * np.sqrt(pitches_hz[:, None] / 261.6)
    if timbre.detune_cents > 1:  # a second voice
        apart = 2 ** (timbre.detune_cents * (1 + 0.2 * rng.standard_normal(hz.shape)) / 1200)
        hz = np.hstack([hz, hz * apart])
        amplitude, decay = np.tile(amplitude, 2), np.tile(decay, 2)
    if timbre.swell:  # high partials come later: 1 - exp(-t / swell) is one more decaying partial, subtracted
        late = np.tile(len(n) / n, hz.shape[1] // len(n)) / timbre.swell
        hz, amplitude = np.tile(hz, 2), np.hstack([amplitude, -amplitude])
        decay = np.hstack([decay, decay + late])
    return hz, amplitude, decay


def _body(timbre: Timbre, hz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The resonances of a corpus or a mouth: amplitude at each frequency."""
    if timbre.body < 0.5:
        return np.ones_like(hz)
    peaks_hz = timbre.formant_hz * np.cumprod([1.0, rng.uniform(1.5, 3.0), rng.uniform(1.6, 2.6)])
    octaves = np.log2(hz[..., None] / peaks_hz)
    peak = (np.exp(-0.5 * (octaves / 0.3) ** 2) * [1.0, 0.7, 0.5]).max(axis=-1)
    return 10 ** (timbre.body * (peak - 1) / 20)


def _ring(cycles: np.ndarray, amplitude: np.ndarray, decay: np.ndarray, samples: int) -> np.ndarray:
    """Sum decaying partials, given in cycles and nepers a sample, each (pitch, partial): (pitch, samples)."""
    blocks = math.ceil(samples / BLOCK)

    def powers(steps: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        turns = np.multiply.outer(cycles, steps)
        angle = ((turns - np.floor(turns)) * (2 * np.pi)).astype(np.float32)
        envelope = np.exp(np.multiply.outer(-decay, steps).astype(np.float32))
        envelope *= np.asarray(level, np.float32)[..., None]
        return envelope * np.cos(angle), envelope * np.sin(angle)

    coarse_cos, coarse_sin = powers(np.arange(blocks) * BLOCK, amplitude)
    fine_cos, fine_sin = powers(np.arange(BLOCK), np.ones_like(amplitude))
    coarse = np.concatenate([coarse_cos, -coarse_sin], axis=1).transpose(0, 2, 1)
    fine = np.concatenate([fine_cos, fine_sin], axis=1)
    # torch's product, because the threads of NumPy's cannot be limited in a worker, and would fight
    both = torch.bmm(torch.from_numpy(coarse), torch.from_numpy(fine)).numpy()
    return both.reshape(len(cycles), blocks * BLOCK)[:, :samples]


def _vibrato(bank: np.ndarray, cents: Real, rate: Real, rate_hz: int) -> np.ndarray:
    """Bend every row's time axis; the vibrato grows in over a quarter of a second."""
    time_s = np.arange(bank.shape[1]) / rate_hz
    depth_s = (2 ** (cents / 1200) - 1) / (2 * np.pi * rate)
    bent = time_s + depth_s * np.minimum(time_s / 0.25, 1) * np.sin(2 * np.pi * rate * time_s)
    left = np.clip(bent * rate_hz, 0, bank.shape[1] - 2).astype(np.int32)
    fraction = np.clip(bent * rate_hz - left, 0, 1).astype(np.float32)
    before = bank[:, left]
    return before + fraction * (bank[:, left + 1] - before)


def noise(
    seconds: Real, low_hz: Real, high_hz: Real, rng: np.random.Generator, colour: Colour, rate_hz: int
) -> np.ndarray:
    """Steady noise of a band with soft edges, of unit standard deviation before colouring."""
    wanted = max(int(seconds * rate_hz), 64)
    samples = 2 ** math.ceil(math.log2(wanted))
    hz = np.fft.rfftfreq(samples, 1 / rate_hz)
    shape = colour(hz) / np.sqrt((1 + (low_hz / np.maximum(hz, 1)) ** 6) * (1 + (hz / high_hz) ** 6))
    spectrum = rng.standard_normal((2, len(hz)), dtype=np.float32)
    steady = np.fft.irfft((spectrum[0] + 1j * spectrum[1]) * shape.astype(np.float32))
    return steady[:wanted].astype(np.float32) * np.float32(math.sqrt(samples / 2))


def draw_kit(snare: str, rng: np.random.Generator, colour: Colour, rate_hz: int) -> dict[str, np.ndarray]:
    """Draw the one-shots of a drum kit, its snare mostly of the wanted sort: skin, rim or clap."""

    def ring(hz: Real, sweep: Real, sweep_s: Real, decay_s: Real) -> np.ndarray:
        time_s = np.arange(int(min(6 * decay_s, 0.8) * rate_hz)) / rate_hz
        turns = hz * (time_s + sweep * sweep_s * (1 - np.exp(-time_s / sweep_s)))
        level = colour(np.array([hz]))[0]
        return (level * np.sin(2 * np.pi * turns) * np.exp(-time_s / decay_s)).astype(np.float32)

    def hiss(low_hz: Real, high_hz: Real, decay_s: Real) -> np.ndarray:
        burst = noise(6 * decay_s, low_hz, high_hz, rng, colour, rate_hz)
        return burst * np.exp(-np.arange(len(burst), dtype=np.float32) / np.float32(decay_s * rate_hz))

    def blend(*sounds: tuple[Real, np.ndarray]) -> np.ndarray:
        out = np.zeros(max(len(sound) for _, sound in sounds), np.float32)
        for level, sound in sounds:
            out[: len(sound)] += np.float32(level) * sound
        return out / (np.abs(out).max() + 1e-9)

    def skin() -> np.ndarray:
        drum = ring(u(150, 260), 0.5, 0.02, u(0.04, 0.12))
        return blend((u(0.3, 1), drum), (1, hiss(u(800, 2500), 8000, u(0.04, 0.14))))

    def rim() -> np.ndarray:
        return blend((1, ring(u(350, 1900), 0.1, 0.01, u(0.01, 0.03))), (u(0.1, 0.5), hiss(1200, 5000, 0.012)))

    def clap() -> np.ndarray:
        return blend((1, hiss(u(600, 1200), u(2500, 6000), u(0.03, 0.1))))

    def tom() -> np.ndarray:
        return blend((1, ring(u(90, 400), 0.3, 0.05, u(0.06, 0.25))))

    def shaker() -> np.ndarray:
        return blend((1, hiss(u(3000, 5000), 9000, u(0.015, 0.05))))

    def cowbell() -> np.ndarray:
        return blend((1, ring(u(500, 900), 0, 0.01, u(0.03, 0.15))), (0.7, ring(u(800, 1400), 0, 0.01, 0.06)))

    u = rng.uniform
    snares = {"skin": skin, "rim": rim, "clap": clap}
    thump = ring(u(40, 75), u(1, 5), u(0.01, 0.05), u(0.06, 0.25))
    return {
        "kick": blend((1, thump), (u(0, 0.15), hiss(1500, 6000, 0.006))),
        "snare": snares[snare if rng.random() < 0.6 else rng.choice(list(snares))](),
        "hat": blend((1, hiss(u(3500, 7500), 11000, np.exp(u(np.log(0.01), np.log(0.15)))))),
        "perc": (tom, shaker, cowbell)[rng.integers(3)](),
    }


def add_room(dry: np.ndarray, rng: np.random.Generator, rate_hz: int) -> np.ndarray:
    """Convolve a mono signal with a newly drawn room: the wet signal, as long as the dry one."""
    decay_s = np.exp(rng.uniform(np.log(0.03), np.log(0.3)))
    tail = noise(4.6 * decay_s, 150, rng.uniform(1500, 8000), rng, np.ones_like, rate_hz)
    tail *= np.exp(-np.arange(len(tail), dtype=np.float32) / np.float32(decay_s * rate_hz))
    tail = np.concatenate([np.zeros(int(rng.uniform(0.002, 0.03) * rate_hz), np.float32), tail])
    return convolve(dry, tail / np.sqrt(np.square(tail).sum()))


def convolve(signal: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolve by pieces that fit a processor's cache, and cut to the signal's length."""
    size = 2 ** max(16, math.ceil(math.log2(2 * len(response))))
    hop = size - len(response) + 1
    spectrum = np.fft.rfft(response, size)
    out = np.zeros(len(signal) + size, np.float32)
    for start in range(0, len(signal), hop):
        piece = np.fft.irfft(np.fft.rfft(signal[start : start + hop], size) * spectrum, size)
        out[start : start + size] += piece
    return out[: len(signal)]
