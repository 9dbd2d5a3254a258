import mir_eval
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score

from myna.errors import ProbeError
from myna.key import KEYS
from myna.metric import (
    PRIMARY,
    STRATEGIES,
    Primary,
    answers_of_songs,
    check_truth,
    item_means,
    key_scores,
    measure,
    roc_auc,
)

C, G, F, A_MINOR, C_MINOR = (KEYS.index(key) for key in ("C major", "G major", "F major", "A minor", "C minor"))


def test_keys_stand_in_the_order_of_the_protocol():
    assert len(KEYS) == len(set(KEYS)) == 24
    assert KEYS[:3] == ("C major", "Db major", "D major")
    assert (KEYS[11], KEYS[12], KEYS[23]) == ("B major", "C minor", "B minor")


@pytest.mark.parametrize(
    ("heard", "score"), [(C, 1.0), (G, 0.5), (F, 0.0), (A_MINOR, 0.3), (C_MINOR, 0.2), (KEYS.index("D major"), 0.0)]
)
def test_a_fifth_above_scores_and_a_fifth_below_does_not(heard, score):
    # played in C major
    found = measure("key", KEYS, np.array([C]), np.array([heard]))
    assert found == {"weighted_score": score, "accuracy": float(heard == C)}
    assert key_scores()[C, heard] == score


def test_the_table_of_keys_is_mir_eval_s():
    assert key_scores().tolist() == [[mir_eval.key.weighted_score(a, b) for b in KEYS] for a in KEYS]


def test_golden_values():
    assert measure("single", ("a", "b"), np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])) == {"accuracy": 0.75}
    # positives 0.35 and 0.8 among negatives 0.1 and 0.4: three pairs of four in order; precisions 1 and 2/3
    found = measure("multi", ("a",), np.array([[0], [0], [1], [1]]), np.array([[0.1], [0.4], [0.35], [0.8]]))
    assert found == pytest.approx({"roc_auc": 0.75, "average_precision": 5 / 6}, abs=1e-12)
    # errors 0.25 + 0.25 + 0 + 1 of a spread of 29.1875; the other output is exact
    truth = np.array([[3, 1], [-0.5, 2], [2, 3], [7, 4]])
    found = measure("regression", ("v", "w"), truth, np.array([[2.5, 1], [0, 2], [2, 3], [8, 4]]))
    assert found == pytest.approx({"r2": (1 + 1 - 1.5 / 29.1875) / 2, "r2_v": 1 - 1.5 / 29.1875, "r2_w": 1}, abs=1e-12)


def test_the_primary_metric_comes_first():
    rng = np.random.default_rng(0)
    assert next(iter(measure("key", KEYS, np.array([1]), np.array([1])))) == PRIMARY["key"]
    y = np.array([[0, 1], [1, 0], [1, 1]], np.float32)
    y[2, 0] = 0
    assert next(iter(measure("multi", ("a", "b"), y, rng.random((3, 2))))) == PRIMARY["multi"]
    assert next(iter(measure("regression", ("a", "b"), y, rng.random((3, 2))))) == PRIMARY["regression"]


@pytest.mark.parametrize(("column", "what"), [(0.0, "with the tag choral"), (1.0, "without the tag choral")])
def test_a_tag_without_a_metric_is_named(column, what):
    truth = np.array([[0, column], [1, column]], np.float32)
    with pytest.raises(ProbeError, match=f"valid split has no item {what}"):
        check_truth("multi", ("guitar", "choral"), truth, "valid")


def test_an_output_that_never_varies_is_named():
    with pytest.raises(ProbeError, match="arousal are equal in the test split"):
        check_truth("regression", ("arousal", "valence"), np.array([[1, 2], [1, 3]], np.float32), "test")


def logits(kind: str, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(shape, generator=generator)
    if kind == "ties":
        return (drawn * 2).round() / 2
    if kind == "constant":
        return torch.zeros(shape)
    return drawn * (60 if kind == "saturated" else 1)


@pytest.mark.parametrize("kind", ["distinct", "ties", "constant", "saturated"])
def test_tags_of_many_models_at_once(kind):
    truth = (torch.rand(83, 6, generator=torch.Generator().manual_seed(1)) < 0.2).float()
    truth[0], truth[1] = 1, 0
    found = logits(kind, 5, 83, 6)
    wanted = [roc_auc_score(truth, model.sigmoid(), average="macro") for model in found]
    assert Primary("multi", truth)(found).tolist() == pytest.approx(wanted, abs=1e-12)


def test_an_area_is_exact_whichever_tags_have_ties():
    truth = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = torch.tensor([[[0.5, 0.4], [0.5, 0.3], [0.9, 0.2], [0.1, 0.1]]])
    assert roc_auc(truth, found).tolist() == [[0.875, 0.5]]


@pytest.mark.parametrize("kind", ["distinct", "ties", "constant"])
def test_classes_of_many_models_at_once(kind):
    truth, found = torch.arange(70) % 4, logits(kind, 5, 70, 4)
    wanted = [accuracy_score(truth, model.numpy().argmax(axis=1)) for model in found]
    assert Primary("single", truth)(found).tolist() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("kind", ["distinct", "ties", "constant"])
def test_values_of_many_models_at_once(kind):
    truth, found = logits("distinct", 40, 2) * 1.3 + 5, logits(kind, 5, 40, 2) + 5
    wanted = [r2_score(truth.double(), model.double()) for model in found]
    assert Primary("regression", truth)(found).tolist() == pytest.approx(wanted, abs=1e-12)


def plain_answer(strategy: str, clips: np.ndarray) -> int:
    """One song's answer from the logits of its clips (clip, key)."""
    if strategy == "vote":
        return int(np.bincount(clips.argmax(axis=1), minlength=24).argmax())
    if strategy == "max":
        return int(clips.max(axis=0).argmax())
    if strategy == "gmean":
        return int(clips.mean(axis=0).argmax())
    return int((np.exp(clips) / np.exp(clips).sum(axis=1, keepdims=True)).mean(axis=0).argmax())


@pytest.mark.parametrize("kind", ["distinct", "constant"])
def test_keys_of_many_models_at_once_are_those_of_songs(kind):
    rng = np.random.default_rng(0)
    song = np.array([2, 0, 0, 1, 1, 1, 2, 3, 4, 4, 4, 4, 4, 3, 2])  # in any order, of any number of clips
    found, key_of = logits(kind, 5, len(song), 24), rng.integers(0, 24, 5)
    answers = answers_of_songs(found, torch.from_numpy(song), 5)
    for s, strategy in enumerate(STRATEGIES):
        wanted = [[plain_answer(strategy, model[song == one].numpy()) for one in range(5)] for model in found]
        assert answers[s].tolist() == wanted, strategy
    primary = Primary("key", torch.from_numpy(key_of[song]), torch.from_numpy(song))
    scores = np.array(
        [[measure("key", KEYS, key_of, model)["weighted_score"] for model in each] for each in answers.numpy()]
    )
    assert primary.by_strategy(found).numpy() == pytest.approx(scores, abs=1e-12)
    assert primary(found).tolist() == pytest.approx(scores.max(axis=0).tolist(), abs=1e-12)


def test_a_vote_that_ties_goes_to_the_first_key():
    clips = torch.full((1, 4, 24), -9.0)
    for clip, key in enumerate((7, 3, 7, 3)):
        clips[0, clip, key] = 1.0 + clip
    song = torch.zeros(4, dtype=torch.int64)
    # clip 3 has the largest logit, and the sum of its key is the largest
    assert answers_of_songs(clips, song, 1)[:, 0, 0].tolist() == [3, 3, 3, plain_answer("mean", clips[0].numpy())]


def test_means_of_windows():
    rows, item = logits("distinct", 2, 6, 3), torch.tensor([1, 0, 1, 1, 2, 0])
    means = item_means(rows, item, 3)
    assert torch.allclose(means[:, 1], rows[:, [0, 2, 3]].mean(dim=1))
    assert torch.equal(means[:, 2], rows[:, 4])
