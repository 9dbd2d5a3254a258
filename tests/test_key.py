"""Keys: every way of writing them gives the same number, and Camelot's clock is the circle of fifths."""

import itertools

import mir_eval
import pytest

from myna.errors import ConfigError
from myna.key import KEYS, camelot, name_key, parse_key


def test_the_classes_are_majors_then_minors_from_c_upwards():
    assert len(set(KEYS)) == 24
    assert KEYS[:3] == ("C major", "Db major", "D major")
    assert KEYS[12:15] == ("C minor", "Db minor", "D minor")
    assert [name_key(n) for n in range(24)] == list(KEYS)
    assert [parse_key(key) for key in KEYS] == list(range(24))


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("C# minor", "Db minor"),
        ("c# minor", "Db minor"),
        ("D# minor ", "Eb minor"),  # as in one of the annotation files
        ("F#m", "Gb minor"),
        ("F♯m", "Gb minor"),
        ("f sharp minor", "Gb minor"),
        ("Db", "Db major"),
        ("D♭ Major", "Db major"),
        ("d-flat major", "Db major"),
        ("Bb", "Bb major"),
        ("bb minor", "Bb minor"),
        ("b minor", "B minor"),
        ("bm", "B minor"),
        ("B", "B major"),
        ("AM", "A major"),
        ("Am", "A minor"),
        ("C:maj", "C major"),
        ("G:min", "G minor"),
        ("G dur", "G major"),
        ("e moll", "E minor"),
        ("Cb major", "B major"),
        ("E# minor", "F minor"),
        ("B#", "C major"),
        ("8A", "A minor"),
        ("8B", "C major"),
        ("08a", "A minor"),
        ("12B", "E major"),
        ("1A", "Ab minor"),
        ("11A", "Gb minor"),
    ],
)
def test_spellings(written, key):
    assert name_key(parse_key(written)) == key


@pytest.mark.parametrize(
    "written",
    ["", "-", "H minor", "C minor / F# minor", "A-A# minor", "13A", "0B", "8C", "C dorian", "C##", "minor", "5",
     "A minor major"],
)  # fmt: skip
def test_what_is_no_key(written):
    with pytest.raises(ConfigError, match="is no key"):
        parse_key(written)


def test_names_are_those_of_mir_eval():
    for one, other in itertools.product(KEYS, repeat=2):
        assert (mir_eval.key.weighted_score(one, other) == 1) == (one == other)


def test_camelot_is_a_bijection_and_its_own_inverse():
    assert {camelot(n) for n in range(24)} == {f"{hour}{side}" for hour in range(1, 13) for side in "AB"}
    assert [parse_key(camelot(n)) for n in range(24)] == list(range(24))


def test_an_hour_on_the_clock_is_a_fifth_and_the_other_side_the_relative_key():
    for hour, side in itertools.product(range(1, 13), "AB"):
        here, after = parse_key(f"{hour}{side}"), parse_key(f"{hour % 12 + 1}{side}")
        assert (after - here) % 12 == 7
        assert mir_eval.key.weighted_score(name_key(here), name_key(after)) == 0.5
    for hour in range(1, 13):
        relative = parse_key(f"{hour}A"), parse_key(f"{hour}B")
        assert mir_eval.key.weighted_score(*map(name_key, relative)) == 0.3
