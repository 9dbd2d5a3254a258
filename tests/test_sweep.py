"""Sweeps: every run once, resumed and shared; means and intervals by formula; every item gives its table and figure."""

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from myna import recipe
from myna.cli import main
from myna.embedder import Myna
from myna.errors import ConfigError
from myna.exam import AVERAGE, ComposedExam, Exam
from myna.quoted import TABLE_1
from myna.reproduce import ITEMS, SIZES, reproduce
from myna.run import read_run
from myna.songs import song
from myna.store import Store
from myna.sweep import Bench, Experiment, Record, Run, by_setting, mean_of
from stores import make_store, random_mels

SMOKE = SIZES["smoke"]


class QuickExam(Exam):
    """Noise instead of songs: the score is a plain function of the vectors, so it tells models apart."""

    key = "noise"
    questions = ("key", "style")

    def __init__(self):
        self.asked, self.metrics = 0, {"key": "weighted score"}
        self.classes, self.splits = ["a", "b", "c"] * 8, ["train"] * 12 + ["validation"] * 6 + ["test"] * 6
        self.sounds = list(0.1 * np.random.default_rng(0).standard_normal((24, 50_000)).astype(np.float32))

    def vectors(self, model):
        self.asked += 1
        if isinstance(model, Myna):
            return model.encode(self.sounds, rate_hz=16_000)
        return np.random.default_rng(len(model)).standard_normal((24, 12)).astype(np.float32)

    def scores(self, vectors):
        found = {"key": float(np.abs(vectors).mean()), "style": float(vectors.std())}
        return found | {AVERAGE: (found["key"] + found["style"]) / 2}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "s"
    make_store(path, random_mels(24, 130))
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("reproduce")


@pytest.fixture
def with_mae(monkeypatch):
    """A version that has the recipe mae, by a stand-in unless it really has."""
    if "mae" not in recipe.RECIPES:
        monkeypatch.setitem(recipe.RECIPES, "mae", lambda: recipe.base().model_copy(update={"recipe": "mae"}))


@pytest.mark.usefixtures("with_mae")
@pytest.mark.parametrize("item", [item for item in ITEMS if item != "key-songs"])
def test_every_item_ends_in_its_table_and_figure(item, store, shared):
    told, exam = [], QuickExam()
    files = reproduce(item, shared, size="smoke", store=store, exam=exam, tell=told.append)
    runs = ITEMS[item](SMOKE).runs
    assert len(told) == len(runs)
    assert [file.suffix for file in files] == [".md", ".svg"]
    picture = ET.parse(files[1]).getroot()
    assert picture.get("class") == "figure"
    table = files[0].read_text(encoding="utf-8")
    assert "exam: noise" in table
    for model in {run.model for run in runs}:
        assert f"| {model} |" in table
    again = QuickExam()
    reproduce(item, shared, size="smoke", store=store, exam=again, tell=told.append)
    assert again.asked == 0, "a finished run was done again"


@pytest.mark.parametrize(
    ("asked", "title"),
    [(("key", "style"), "Key by clips"), (("GiantSteps",), "GiantSteps by clips"), (("style",), "Average by clips")],
)
def test_a_study_of_key_says_what_it_shows_where_the_exam_asks_something_else(tmp_path, asked, title):
    exam, experiment = QuickExam(), ITEMS["key-examples"](SMOKE)
    exam.questions = asked
    records = [Record(run, dict.fromkeys([*asked, AVERAGE], 50.0)) for run in experiment.runs]
    table, picture = experiment.summary(records, exam, tmp_path)
    assert table.read_text(encoding="utf-8").startswith(f"# {title} seen\n")
    assert f"{title} seen" in picture.read_text(encoding="utf-8")


@pytest.mark.usefixtures("with_mae")
def test_the_papers_values_stand_beside_ours(store, shared):
    table, figure1 = reproduce("table1", shared, size="smoke", store=store, exam=QuickExam(), tell=len)
    assert figure1.name == "figure1.svg"
    text = table.read_text(encoding="utf-8")
    for row in TABLE_1:
        assert f"| {row.name} |" in text
    assert "| Myna-Vertical | 22M | 90.1 | 37.4 | 75.9 | 68.6 | 66.5 | 45.9 | 66.1 |" in text
    batches, _ = reproduce("table2", shared, size="smoke", store=store, exam=QuickExam(), tell=len)
    assert "256: 65, 512: 65.7, 1024: 65.9, 2048: 67, 4096: 67.9" in batches.read_text(encoding="utf-8")


def summary(records, _exam, out):
    (out / "told.json").write_text(json.dumps([record.scores for record in records]))
    return [out / "told.json"]


def bench(tmp_path, store, **changes):
    return Bench(tmp_path / "b", dataclasses.replace(SMOKE, **changes), QuickExam(), store=store)


def test_runs_are_shared_whatever_they_are_called_and_changed_ones_are_new(tmp_path, store):
    one = bench(tmp_path, store)
    first = one.record(Run("a", "base", 16, x=1.0))
    assert one.record(Run("b", "base", 16)).scores == first.scores
    assert one.exam.asked == 1
    for other in (Run("a", "base", 32), Run("a", "vertical", 16), Run("a", "base", 16, {"mask_ratio": 0.5})):
        assert one.record(other).scores != first.scores
    assert one.record(Run("a", "base", 16, seed=1)).scores != first.scores
    assert one.exam.asked == 5
    assert bench(tmp_path, store).record(Run("a", "base", 16)).scores == first.scores


def test_a_longer_run_goes_on_from_a_shorter_one_and_is_the_same_as_at_once(tmp_path, store):
    parts = bench(tmp_path / "parts", store)
    parts.record(Run("a", "base", 16))
    long = parts.record(Run("a", "base", 48))
    assert len(list((tmp_path / "parts" / "b" / "runs").iterdir())) == 1
    whole = bench(tmp_path / "whole", store).record(Run("a", "base", 48))
    assert long.scores == whole.scores
    np.testing.assert_array_equal(long.read_vectors(), whole.read_vectors())


def test_shorter_runs_that_are_wanted_later_leave_a_longer_one_as_it_is(tmp_path, store):
    """They begin anew, go on from each other, and are what they would have been; a longer one goes on from the long."""
    late, runs = bench(tmp_path / "late", store), tmp_path / "late" / "b" / "runs"
    late.record(Run("a", "base", 48))
    (long,) = runs.iterdir()
    before = {path: path.read_bytes() for path in (long / "checkpoints").rglob("*.safetensors")}
    short, longer = late.record(Run("a", "base", 16)), late.record(Run("a", "base", 32))
    assert {path: path.read_bytes() for path in (long / "checkpoints").rglob("*.safetensors")} == before
    assert len(list(runs.iterdir())) == 2
    late.record(Run("a", "base", 64))
    assert len(list(runs.iterdir())) == 2
    assert {path: path.read_bytes() for path in (long / "checkpoints").rglob("*.safetensors")} != before
    fresh = bench(tmp_path / "fresh", store)
    assert [short.scores, longer.scores] == [fresh.record(Run("a", "base", n)).scores for n in (16, 32)]


def test_a_chain_whose_first_run_is_gone_keeps_the_others(tmp_path, store):
    one, runs = bench(tmp_path, store), tmp_path / "b" / "runs"
    one.record(Run("a", "base", 48))
    (first,) = runs.iterdir()
    first.rename(first.with_name(f"{first.name}-1"))
    short = one.record(Run("a", "base", 16))
    assert short.scores == bench(tmp_path / "fresh", store).record(Run("a", "base", 16)).scores
    assert len(list(runs.iterdir())) == 2


def test_a_record_cut_short_is_done_again_and_a_finished_training_is_not(tmp_path, store):
    one = bench(tmp_path, store)
    done = one.record(Run("a", "base", 16))
    (record,) = (tmp_path / "b" / "records").glob("*.json")
    record.unlink()
    steps = {path: path.stat().st_mtime_ns for path in (tmp_path / "b" / "runs").rglob("model.safetensors")}
    assert one.record(Run("a", "base", 16)).scores == done.scores
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "b" / "runs").rglob("model.safetensors")} == steps
    assert one.exam.asked == 2


def test_settings_are_the_recipe_then_the_sizes_then_the_runs(tmp_path, store):
    one = bench(tmp_path, store)
    one.record(Run("a", "vertical", 24, {"batch": 4, "dim": 16}, seed=3))
    (folder,) = (tmp_path / "b" / "runs").iterdir()
    settings = read_run(folder)["settings"]
    assert (settings.recipe, settings.model.patches, settings.model.dim) == ("vertical", ("vertical",), 16)
    assert (settings.train.batch, settings.train.steps, settings.train.seed) == (4, 6, 3)
    assert settings.model.amplitude == "log1p"  # of the size
    assert settings.view.mask_ratio == 0.9  # of the recipe


def test_costs_are_told_of_what_was_trained(tmp_path, store):
    one = bench(tmp_path, store)
    trained, untrained, chroma = (
        one.record(run) for run in (Run("a", "base", 16), Run("b", "base"), Run("c", "chroma"))
    )
    assert trained.clips_per_s > 0
    assert trained.parameters == untrained.parameters > 5000
    assert (untrained.clips_per_s, chroma.parameters) == (0, 0)
    assert trained.scores != untrained.scores


def test_means_and_intervals_over_seeds(tmp_path, store):
    for count in (2, 3, 5, 10):
        values = np.random.default_rng(count).normal(60, 3, count)
        low, high = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
        mean = mean_of(values.tolist())
        assert (mean.value, mean.low, mean.high) == pytest.approx((values.mean(), low, high), rel=1e-3)
    assert mean_of([5.0]).low is None
    assert str(mean_of([5.0])) == "5.0"
    assert str(mean_of([-5.0, -5.0])) == "−5.0 ±0.0"
    records = [bench(tmp_path, store).record(Run("a", "base", 8, seed=seed, x=2.0)) for seed in range(2)]
    (place,) = by_setting(records, "key").items()
    assert place == (("a", 2.0), mean_of([record.scores["key"] for record in records]))


def test_an_experiment_tells_each_run(tmp_path, store):
    told = []
    made = bench(tmp_path, store).carry_out(
        Experiment("e", (Run("a", "base", x=0.5), Run("c", "chroma")), summary), tmp_path / "out", tell=told.append
    )
    assert told[0].startswith("e 1/2: a at 0.5, seed 0: key ")
    assert told[1].startswith("e 2/2: c, seed 0: key ")
    assert len(json.loads(made[0].read_text())) == 2


def test_small_sizes_fit_what_they_compose():
    for name in ("small", "smoke"):
        size = SIZES[name]
        assert max(*size.batches, size.batch) <= size.songs
        assert size.labelled < size.exam_songs
    assert SIZES["small"].seeds >= 3
    assert SIZES["full"].batches == (256, 512, 1024, 2048, 4096)


@pytest.mark.parametrize(
    ("item", "options", "said"),
    [
        ("table9", {"size": "smoke"}, "no item 'table9'; there are table1,"),
        ("table1", {"size": "huge"}, "no size 'huge'"),
        ("table1", {"size": "full"}, "a store is needed"),
        ("key-songs", {"size": "smoke", "store": "s"}, "leave out --store"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, item, options, said):
    with pytest.raises(ConfigError, match=said):
        reproduce(item, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_composed_exam_asks_the_same_of_all(tmp_path):
    exam = ComposedExam(tmp_path / "exam", songs=48, labelled=32, seconds=4.0, draws=2)
    assert exam.splits == ["train"] * 24 + ["validation"] * 12 + ["test"] * 12
    vectors = {name: exam.vectors(name) for name in ("chroma", "mel statistics")}
    assert {name: v.shape for name, v in vectors.items()} == {"chroma": (48, 12), "mel statistics": (48, 256)}
    scores = exam.scores(vectors["chroma"])
    assert scores == exam.scores(vectors["chroma"])
    assert scores["average"] == pytest.approx(np.mean([scores[name] for name in exam.questions]))
    songs = [labels for _, labels in exam.written]
    table = exam.ask({"x": vectors["chroma"]}, songs, labelled=32, seeds=2)
    assert scores["style"] == pytest.approx(100 * table.scores["x", "style"].mean)
    # composed once: the same files again
    times = [path.stat().st_mtime_ns for path, _ in exam.written]
    again = ComposedExam(tmp_path / "exam", songs=48, labelled=32, seconds=4.0, draws=2)
    assert [path.stat().st_mtime_ns for path, _ in again.written] == times
    assert [s for _, s in again.written] == songs


def test_fewer_songs_are_the_first_of_the_composed_ones(tmp_path):
    one = Bench(tmp_path, dataclasses.replace(SMOKE, songs=10), QuickExam())
    one.record(Run("a", "base", 8, {"batch": 4}, songs=6))
    (place,) = (tmp_path / "stores").iterdir()
    assert [Path(path).stem for path in sorted(Store.open(place).paths)] == [f"{i:05d}" for i in range(6)]
    assert len(list((tmp_path / "songs").rglob("labels.csv"))) == 1
    runs = ITEMS["key-songs"](SMOKE).runs
    assert {run.songs for run in runs if run.x is not None} == {3, 6, 12, 24}
    assert all(one.settings(run).train.batch <= (run.songs or SMOKE.songs) for run in runs if run.examples)


def test_the_command_line_composes_trains_and_prints_the_table(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["reproduce", "figure5", "--size", "smoke", "-o", str(tmp_path / "r")])
    assert end.value.code == 0
    output = capsys.readouterr()
    assert "| Myna-Hybrid |" in output.out
    assert "| mel statistics |" in output.out
    assert "figure5.svg" in output.err
    points = [e for e in ET.parse(tmp_path / "r" / "figure5.svg").iter() if "point" in e.get("class", "").split()]
    styles = len({song(1_000_000, i).style for i in range(SMOKE.exam_songs)})
    assert len(points) == SMOKE.exam_songs * output.out.count("| 1 |") + styles  # the legend has one of each
