import dataclasses
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from myna import cohort
from myna.device import pick_device, pick_probe_device
from myna.errors import ProbeError
from myna.grid import ProbeConfig
from myna.key import KEYS
from myna.metric import STRATEGIES
from myna.probe import Scaler, search, search_seeds, spread
from myna.problem import Problem, Split
from myna.schedule import schedule

SMALL = tuple(
    ProbeConfig(standardise=s, hidden=h, batch=32, learning_rate=rate, dropout=0.25, l2=1e-4)
    for s, h, rate in [(False, (), 1e-3), (True, (), 3e-2), (True, (16,), 1e-2), (False, (16,), 1e-2)]
)
OUTPUTS = {"single": tuple("abcd"), "multi": tuple("xyz"), "regression": ("arousal", "valence"), "key": KEYS}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(cohort, "PATIENCE", 5)


def problem(answer: str = "single", *, noise: float = 0.3, dim: int = 12, windows: int = 0, rows=(120, 60, 60)):
    """A linear teacher's answers. Of keys, three clips a song; with windows, each is the item with noise of its own."""
    rng = np.random.default_rng(3)
    teacher = rng.standard_normal((dim, len(OUTPUTS[answer])))
    splits = []
    for count in rows:
        song = np.arange(count) // (3 if answer == "key" else 1)
        heard = rng.standard_normal((count, dim))[song]
        score = heard @ teacher
        y = {"multi": (score > 0.6).astype(np.float32), "regression": score.astype(np.float32)}
        item = np.repeat(np.arange(count), windows) if windows else None
        x = heard + noise * rng.standard_normal((count, dim)) if item is None else heard[item]
        if windows:
            x = x + 3 * noise * rng.standard_normal(x.shape)
        splits.append(Split((5 + 2 * x).astype(np.float32), y.get(answer, score.argmax(1)), item=item, song=song))
    return Problem("toy", answer, OUTPUTS[answer], *splits)


def changed(given: Problem, part: str, **what) -> Problem:
    return dataclasses.replace(given, **{part: dataclasses.replace(getattr(given, part), **what)})


@pytest.mark.parametrize(("answer", "floor"), [("single", 0.7), ("multi", 0.9), ("regression", 0.8), ("key", 0.4)])
def test_a_linear_teacher_is_learnt(answer, floor):
    told = problem(answer)
    found = search(told, grid=SMALL, draws=100)
    assert found.test[found.primary] > floor
    assert found.valid[found.primary] == pytest.approx(max(found.valid_scores), abs=1e-6)
    assert found.index == int(np.argmax(found.valid_scores))
    assert found.config == SMALL[found.index]
    for name, (low, high) in found.intervals.items():
        assert low <= found.test[name] <= high
    assert (found.strategy in STRATEGIES) == (answer == "key")


def test_the_probe_answers_what_was_scored():
    for answer, score in (("single", accuracy_score), ("multi", roc_auc_score), ("regression", r2_score)):
        told = problem(answer)
        found = search(told, grid=SMALL[1:2], draws=10)
        answers = found.probe.predict(told.test.x)
        assert answers.shape == told.test.y.shape
        assert found.test[found.primary] == pytest.approx(score(told.test.y, answers), abs=1e-6)


@pytest.mark.parametrize("answer", OUTPUTS)
def test_nothing_of_test_reaches_the_probe_or_the_choice(answer):
    told = problem(answer)
    rng = np.random.default_rng(0)
    order = rng.permutation(20) if answer == "key" else rng.permutation(60)
    y = np.repeat(told.test.y[::3][order], 3, axis=0) if answer == "key" else told.test.y[order]
    shuffled = changed(told, "test", y=y, x=rng.permutation(told.test.x) * 100 + 7)
    one, other = (search(given, grid=SMALL, draws=10) for given in (told, shuffled))
    assert (one.index, one.strategy, one.valid) == (other.index, other.strategy, other.valid)
    assert (one.valid_scores, one.stop_steps) == (other.valid_scores, other.stop_steps)
    assert all(map(torch.equal, one.probe.parameters, other.probe.parameters))
    assert one.probe.scaler is other.probe.scaler is None or np.array_equal(
        one.probe.scaler.mean, other.probe.scaler.mean
    )
    assert one.test != other.test


def test_valid_reaches_neither_the_scaler_nor_the_gradient():
    told = problem("regression")
    moved = changed(told, "valid", x=told.valid.x + 0.1)
    one, other = (search(given, grid=SMALL[1:2], draws=10, max_steps=32) for given in (told, moved))
    assert one.best_steps == other.best_steps == (24,)
    assert np.array_equal(one.probe.scaler.mean, other.probe.scaler.mean)
    assert all(map(torch.equal, one.probe.parameters, other.probe.parameters))
    assert one.valid_scores != other.valid_scores


def test_the_choice_is_the_best_on_valid_and_the_first_of_equals():
    told = problem()
    found = search(told, grid=(SMALL[0], SMALL[1], SMALL[1]), draws=10)
    assert found.valid_scores[1] == found.valid_scores[2] > found.valid_scores[0]
    assert found.index == 1


def test_the_scaler_is_scikit_learn_s():
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32) * 3 + 1000
    x[:, 2] = 0.1  # never varies
    scaler = Scaler.fit(x)
    assert scaler.scale[2] == 1
    assert scaler.scale == pytest.approx(np.where(np.arange(4) == 2, 1, x.astype(np.float64).std(axis=0)))
    wanted = StandardScaler().fit(x.astype(np.float64)).transform(x.astype(np.float64))
    assert scaler(x) == pytest.approx(wanted, abs=1e-6)


def test_the_strategy_is_chosen_on_valid_and_applied_to_test():
    told = problem("key", noise=1.5)
    found = search(told, grid=SMALL[1:2], draws=10)
    song, logits = told.test.songs, found.probe.logits(told.test.x).numpy()
    by_hand = {
        "gmean": [logits[song == one].mean(axis=0).argmax() for one in range(20)],
        "vote": [np.bincount(logits[song == one].argmax(axis=1)).argmax() for one in range(20)],
        "max": [logits[song == one].max(axis=0).argmax() for one in range(20)],
        "mean": [torch.tensor(logits[song == one]).softmax(1).mean(0).argmax() for one in range(20)],
    }
    assert found.test["accuracy"] == accuracy_score(told.test.y[::3], by_hand[found.strategy])


def test_songs_are_answered_alone_and_drawn_with_their_artist():
    told = problem("key", noise=1.0)
    artist = np.arange(60) // 12  # four songs, which differ in their key
    alone, drawn = (search(changed(told, "test", group=group), grid=SMALL[1:2]) for group in (None, artist))
    assert drawn.test == alone.test
    widths = [np.ptp(found.intervals["weighted_score"]) for found in (alone, drawn)]
    assert widths[0] > 0
    assert widths[0] != widths[1]
    again = search(changed(told, "test", group=told.test.song), grid=SMALL[1:2])
    assert again.intervals == alone.intervals


def test_windows_are_trained_singly_and_answered_together():
    told = problem(windows=4)
    found = search(told, protocol="windows", grid=SMALL, draws=10)
    logits = found.probe.logits(told.test.x).numpy().reshape(60, 4, -1).mean(axis=1)
    assert found.test["accuracy"] == accuracy_score(told.test.y, logits.argmax(axis=1)) > 0.7
    assert found.protocol == "windows"


def test_protocols_are_never_mixed():
    windows = problem(windows=3)
    with pytest.raises(ProbeError, match='"jukemir" takes one vector an item'):
        search(windows, grid=SMALL)
    pooled = Problem(
        "toy", "single", OUTPUTS["single"], *(getattr(windows, p).pooled() for p in ("train", "valid", "test"))
    )
    assert pooled.train.x[1] == pytest.approx(windows.train.x[3:6].mean(axis=0), abs=1e-5)
    assert search(pooled, grid=SMALL[:1], draws=10).test
    with pytest.raises(ProbeError, match="leave the grid out"):
        search(pooled, protocol="marble", grid=SMALL)


@pytest.mark.parametrize("answer", OUTPUTS)
def test_marble_trains_its_one_probe(answer):
    told = problem(answer, windows=0 if answer == "key" else 2)
    found = search(told, protocol="marble", draws=10)
    assert found.config == schedule("toy").config
    assert found.config.rates == (0.0, 0.2)
    assert found.probe.scaler is None
    assert found.test[found.primary] > 0.3
    assert 1 <= found.best_steps[0] <= found.stop_steps[0] <= 100
    assert found.strategy == ("gmean" if answer == "key" else None)
    assert search(told, protocol="marble", draws=10).test == found.test
    logits = found.probe.logits(told.test.x)
    if answer == "single":  # mean probabilities
        joined = logits.softmax(1).view(60, 2, -1).mean(1)
        assert found.test["accuracy"] == accuracy_score(told.test.y, joined.argmax(1))


def test_marble_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    search(problem(rows=(40, 20, 20)), protocol="marble", draws=10)
    assert torch.equal(torch.rand(1), wanted)


def test_marble_s_schedules():
    assert schedule("gtzan").learning_rate == 5e-3
    mtt = schedule("magnatagatune")
    assert (mtt.epochs, mtt.patience, mtt.batch, mtt.learning_rate) == (50, 10, 128, 1e-3)
    assert (schedule("giantsteps").epochs, schedule("giantsteps").patience) == (50, 20)
    assert schedule("emomusic") == schedule("labels.csv")


def test_representations_are_chosen_on_valid_and_all_reported():
    good, poor = problem(noise=0.1), problem(noise=0.1)
    rng = np.random.default_rng(0)
    for part in ("train", "valid"):
        poor = changed(poor, part, x=rng.standard_normal(getattr(poor, part).x.shape).astype(np.float32))
    # valid decides, even where the other would win on test
    good = changed(good, "test", x=rng.permutation(good.test.x))
    found = search({"square": poor, "vertical": good, "both": good}, grid=SMALL[:2], draws=10)
    assert found.representation == "vertical"
    assert list(found.alternatives) == ["square", "vertical", "both"]
    assert found.alternatives["vertical"].test == found.test
    told = json.loads(json.dumps(found.record()))
    assert told["alternatives"]["square"]["valid"] == found.alternatives["square"].valid
    with pytest.raises(ProbeError, match="differ in their test labels"):
        search({"a": good, "b": changed(good, "test", y=np.roll(good.test.y, 1))}, grid=SMALL)


def test_seeds_are_summed_up_and_choose_anew():
    outcomes, summary = search_seeds(problem(noise=0.8), seeds=3, grid=SMALL, draws=10)
    values = [outcome.test["accuracy"] for outcome in outcomes]
    assert [outcome.seed for outcome in outcomes] == [0, 1, 2]
    assert len({outcome.valid_scores for outcome in outcomes}) == 3
    assert summary["accuracy"].mean == pytest.approx(np.mean(values))
    assert outcomes[2].valid_scores == search(problem(noise=0.8), seed=2, grid=SMALL, draws=10).valid_scores


def test_an_interval_over_seeds_is_student_s():
    # t of 4 degrees of freedom at 97.5 %: 2.776
    found = spread([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445105 * 2.5**0.5 / 5**0.5
    assert (found.mean, found.low, found.high) == pytest.approx((3, 3 - half, 3 + half))
    assert np.isnan(spread([0.5]).low)


def test_a_record_is_json_and_says_how_it_came_about():
    found = search(problem("key"), grid=SMALL[:2], draws=10)
    told = json.loads(json.dumps(found.record(), allow_nan=False))
    assert told["config"]["learning_rate"] == SMALL[found.index].learning_rate
    assert told["grid"][1]["hidden"] == []
    assert told["valid_scores"] == list(found.valid_scores)
    assert len(told["stop_steps"]) == 2
    assert set(told["intervals"]) == {"weighted_score", "accuracy"} == set(told["test"])
    assert told["strategy"] in STRATEGIES


def test_a_class_that_train_lacks_is_allowed():
    told = problem()
    keep = told.train.y != 3
    train = Split(told.train.x[keep], told.train.y[keep])
    found = search(dataclasses.replace(told, train=train), grid=SMALL[1:2], draws=10)
    assert 3 not in found.probe.predict(told.test.x)


@pytest.mark.parametrize(
    ("answer", "part", "what", "message"),
    [
        ("single", "valid", {"x": np.full((60, 12), np.nan, np.float32)}, "60 embeddings with NaN"),
        ("single", "train", {"x": np.zeros((7, 12), np.float32)}, r"shape \(7, 12\) for 120 rows"),
        ("single", "test", {"x": np.zeros((60, 5), np.float32)}, "5 values a row, train has 12"),
        ("single", "test", {"x": np.zeros((0, 12), np.float32), "y": np.zeros(0, np.int64), "group": None}, "is empty"),
        ("single", "train", {"y": np.full(120, 4)}, "from 0 to 3"),
        ("single", "train", {"y": np.zeros(120)}, "whole number"),
        ("single", "valid", {"group": np.zeros(3, np.int64)}, "3 groups for 60 items"),
        ("single", "valid", {"item": np.zeros(60, np.int64)}, "items without a window"),
        ("multi", "valid", {"y": np.zeros((60, 3), np.float32)}, "valid split has no item with the tag x, y, z"),
        ("multi", "train", {"y": np.full((120, 3), 0.5, np.float32)}, "other than 0 and 1"),
        ("multi", "train", {"y": np.zeros((120, 2), np.float32)}, "3 finite numbers"),
        ("regression", "test", {"y": np.ones((60, 2), np.float32)}, "arousal, valence are equal"),
        ("key", "test", {"y": np.arange(60) % 24}, "clips differ in their key"),
    ],
)
def test_bad_input_is_told(answer, part, what, message):
    with pytest.raises(ProbeError, match=message):
        changed(problem(answer), part, **what)


def test_keys_in_another_order_are_refused():
    told = problem("key")
    with pytest.raises(ProbeError, match=r"key\.KEYS"):
        dataclasses.replace(told, outputs=tuple(sorted(KEYS)))


def test_outputs_without_bounds_are_told():
    told = problem("regression")
    huge = changed(told, "train", x=told.train.x * np.float32(1e30))
    with pytest.raises(ProbeError, match=r"NaN or infinite .*learning_rate"):
        search(changed(huge, "valid", x=told.valid.x * np.float32(1e38 / 20)), grid=SMALL[:1], draws=10)


def test_no_grid_no_seed_and_no_representation_are_told():
    for wrong, message in (
        (lambda: search(problem(), grid=()), "grid is empty"),
        (lambda: search({}), "No representation"),
        (lambda: search_seeds(problem(), seeds=0), "No probe seed"),
    ):
        with pytest.raises(ProbeError, match=message):
            wrong()


@pytest.mark.parametrize(("cuda", "embed", "probe"), [(True, "cuda", "cuda"), (False, "mps", "cpu")])
def test_probes_are_trained_where_there_is_float64(monkeypatch, cuda, embed, probe):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device().type == embed
    assert pick_probe_device().type == probe
