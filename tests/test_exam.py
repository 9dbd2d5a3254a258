"""Benchmarks as an exam of sweeps: the scores of `evaluate`, in Table 1's columns."""

from dataclasses import replace

import numpy as np
import pytest

from myna.embedder import Myna
from myna.errors import TaskError
from myna.evaluate import Plan, evaluate
from myna.exam import AVERAGE, BenchmarkExam
from myna.grid import QUICK
from myna.model import ModelConfig, MynaModel
from myna.peer import open_peer
from myna.task.base import Item, Task
from sounds import music, write_audio


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder, parts = tmp_path_factory.mktemp("exam"), ("train", "train", "valid", "test")
    paths = [write_audio(folder / f"{i}.wav", music(3.3, 16_000, seed=i), 16_000) for i in range(16)]
    items = tuple(Item(f"{i:02d}", path, parts[i % 4], i // 4 % 2, str(i)) for i, path in enumerate(paths))
    own = Task("moods", 1, "single", ("x", "y"), items)
    rated = tuple(replace(item, label=(float(i % 5), float(i % 3))) for i, item in enumerate(items))
    return own, Task("emomusic", 1, "regression", ("arousal", "valence"), rated)


def test_scores_are_those_of_evaluate(tasks, tmp_path):
    exam = BenchmarkExam(tasks, tmp_path / "cache", grid=QUICK[:1])
    assert exam.questions == ("Emo A", "Emo V", "moods")
    vectors = exam.vectors("mel statistics")
    assert vectors.shape == (32, 256)
    scores = exam.scores(vectors)
    own, emo = (evaluate(open_peer("mel-statistics"), task, tmp_path / "out", Plan(grid=QUICK[:1])) for task in tasks)
    assert scores["moods"] == pytest.approx(100 * own["test"]["accuracy"]["mean"])
    assert scores["Emo A"] == pytest.approx(100 * emo["test"]["r2_arousal"]["mean"])
    assert scores[AVERAGE] == pytest.approx(np.mean([scores[name] for name in exam.questions]))


def test_items_have_their_class_and_split_and_the_exam_a_name_of_its_own(tasks, tmp_path):
    exam = BenchmarkExam(tasks, tmp_path, grid=QUICK)
    assert exam.classes[:5] == ["x", "x", "x", "x", "y"]
    assert exam.classes[16:] == ["emomusic"] * 16
    assert exam.splits[:4] == ["train", "train", "validation", "test"]
    assert exam.key != BenchmarkExam(tasks[:1], tmp_path, grid=QUICK).key
    assert exam.key != BenchmarkExam(tasks, tmp_path, grid=QUICK[:2]).key


def test_models_without_a_hash_are_told_apart(tasks, tmp_path):
    small = ModelConfig(dim=16, depth=1, heads=1, head_dim=16, mlp_dim=16)
    exam = BenchmarkExam(tasks[:1], tmp_path, grid=QUICK[:1])
    one, other = (exam.vectors(Myna(MynaModel(small, seed=seed), precision="fp32")) for seed in (0, 1))
    assert not np.allclose(one, other)


def test_what_cannot_be_embedded_is_said(tasks, tmp_path):
    gone = replace(tasks[0].items[0], path=tmp_path / "gone.wav")
    exam = BenchmarkExam([replace(tasks[0], items=(gone, *tasks[0].items[1:]))], tmp_path)
    with pytest.raises(TaskError, match="1 of 16 items of moods could not be embedded by chroma"):
        exam.vectors("chroma")
