"""The 24 major and minor keys: a number for each, and the many ways in which people write them."""

import re
from typing import Literal

from myna.errors import ConfigError

TONICS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
# the order of the classes everywhere: the twelve major keys from C upwards, then the twelve minor keys
KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in TONICS)

_PITCHES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_ACCIDENTALS = {"": 0, "#": 1, "♯": 1, "sharp": 1, "b": -1, "♭": -1, "flat": -1}
_MODES = {"": 0, "maj": 0, "major": 0, "dur": 0, "m": 1, "min": 1, "minor": 1, "moll": 1}
_WRITTEN = re.compile(r"(?P<tonic>[A-Ga-g])(?P<accidental>[#♯b♭]|[\s-]?sharp|[\s-]?flat)?[\s:_-]*(?P<mode>[A-Za-z]*)")
_CAMELOT = re.compile(r"0?(?P<hour>[1-9]|1[0-2])\s*(?P<side>[ABab])")
_A_MINOR_HOUR = 8  # 8A is A minor and 8B is C major; each hour more is a fifth (7 semitones) up


def parse_key(text: str) -> int:
    """Return the number of a key from 0 (C major) to 23 (B minor). Raises ConfigError for what is no key.

    Understood are names ("C# minor", "Db major", "a♭ min", "G sharp minor"), short ones ("F#m", "Bb",
    "C:maj"; without a mode it is major) and Camelot's ("8A", "08B").
    """
    written = " ".join(text.split())
    if found := _CAMELOT.fullmatch(written):
        fifths, minor = int(found["hour"]) - _A_MINOR_HOUR, found["side"] in "Aa"
        return (7 * fifths + (_PITCHES["A"] if minor else 0)) % 12 + 12 * minor
    found = _WRITTEN.fullmatch(written)
    mode = _mode(found["mode"]) if found else None
    if found is None or mode is None:
        raise ConfigError(f"{text!r} is no key: write it as in 'C# minor', 'F#m' or '8A'.")
    accidental = _ACCIDENTALS[(found["accidental"] or "").strip(" -")]
    return (_PITCHES[found["tonic"].upper()] + accidental) % 12 + 12 * mode


def _mode(written: str) -> Literal[0, 1] | None:
    return 0 if written == "M" else _MODES.get(written.lower())  # the only place where case means something


def name_key(number: int) -> str:
    """Name a key, with flats, as in "Db major"."""
    return KEYS[number]


def camelot(number: int) -> str:
    """Write a key as DJs do, from 1A to 12B: neighbours on the clock mix well."""
    minor, pitch = divmod(number, 12)
    fifths = 7 * (pitch - (_PITCHES["A"] if minor else 0))
    return f"{(_A_MINOR_HOUR + fifths - 1) % 12 + 1}{'A' if minor else 'B'}"
