"""The examples run as they are written; how well they do is told where they are."""

import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str):
    found = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_digits_are_told_apart_better_by_a_trained_encoder(capsys):
    scores = load("digits").main(steps=100, seeds=1)
    assert set(scores) == {"trained", "untrained", "pixels"}
    for classifier in ("5 neighbours", "linear"):
        assert all(0.1 < scores[name][classifier][0] <= 1 for name in scores)  # chance is a tenth
        assert scores["trained"][classifier][0] > scores["untrained"][classifier][0] + 0.02
    assert "training adds" in capsys.readouterr().out
