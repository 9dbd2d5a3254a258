"""From vectors and a task to a record: known scores, everything that repeats it, and nothing of test in any choice."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from myna import evaluate as module
from myna.board import choices_sheet, results_sheet
from myna.cli import main
from myna.errors import StoreError, TaskError
from myna.evaluate import HEADS, Plan, evaluate, result_path
from myna.grid import GRID
from myna.key import KEYS
from myna.peer import Peer, open_peer
from myna.precomputed import Precomputed
from myna.task.base import PARTS, Item, Task
from sounds import music, write_audio

# of the 216: linear, standardised, batch 64, learning rate 1e-3, dropout 0.25 and 0.5, no L2
FEW = tuple(
    config
    for config in GRID
    if config.standardise
    and not config.hidden
    and config.batch == 64
    and config.learning_rate == 1e-3
    and not config.l2
)[:2]


def labelled(answer, count=60, seed=0):
    """Return a task whose labels can be read off its vectors, and these vectors by the items' ids."""
    rng = np.random.default_rng(seed)
    outputs = {"single": ("a", "b", "c"), "multi": ("x", "y"), "regression": ("u", "v"), "key": KEYS}[answer]
    x = rng.standard_normal((count, 6)).astype(np.float32)
    if answer in ("single", "key"):
        labels = rng.integers(0, 3, count)
        x[np.arange(count), labels] += 8
        labels = labels.tolist()
    elif answer == "multi":
        labels = [tuple(map(float, row)) for row in (x[:, :2] > 0)]
    else:
        labels = [tuple(map(float, row)) for row in x[:, :2]]
    items = tuple(
        Item(f"{i:03d}", Path(f"/music/{i:03d}.wav"), PARTS[(0, 0, 0, 1, 2)[i % 5]], labels[i], f"{i:03d}")
        for i in range(count)
    )
    return Task(f"toy-{answer}", 1, answer, outputs, items), dict(zip([item.id for item in items], x, strict=True))


def given(path: Path, vectors: dict[str, np.ndarray], name="given") -> Peer:
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(np.concatenate([*vectors.values()])), len(next(iter(vectors.values())))
    )
    pq.write_table(pa.table({"id": pa.array(list(vectors)), "embedding": column}), path)
    return Peer(name, Precomputed.open(path))


def results(out: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]


@pytest.mark.parametrize(("answer", "least"), [("single", 0.99), ("multi", 0.95), ("regression", 0.9), ("key", 0.99)])
def test_what_can_be_read_off_the_vectors_is_found(tmp_path, answer, least):
    task, vectors = labelled(answer)
    record = evaluate(given(tmp_path / "v.parquet", vectors), task, tmp_path / "out", Plan(grid=FEW))
    metric = record["chosen"]["metric"]
    assert record["test"][metric]["mean"] >= least
    assert record["test"][metric]["low"] <= record["test"][metric]["mean"] <= record["test"][metric]["high"]
    assert record["test"][metric]["over"] == "test groups"


def test_nothing_of_test_reaches_a_choice(tmp_path):
    task, vectors = labelled("single")
    rng = np.random.default_rng(1)
    first = evaluate(given(tmp_path / "v.parquet", vectors), task, tmp_path / "one", Plan(grid=FEW))
    shuffled = {item.id: int(rng.integers(0, 3)) for item in task.of("test")}
    items = tuple(replace(item, label=shuffled.get(item.id, item.label)) for item in task.items)
    wild = {name: rng.standard_normal(6).astype(np.float32) if name in shuffled else x for name, x in vectors.items()}
    second = evaluate(given(tmp_path / "w.parquet", wild), replace(task, items=items), tmp_path / "two", Plan(grid=FEW))
    assert second["chosen"] == first["chosen"]
    outcomes = first["outcomes"][0], second["outcomes"][0]
    for name in ("valid_scores", "best_steps", "stop_steps"):
        assert outcomes[0][name] == outcomes[1][name]
    assert second["test"] != first["test"]


def test_a_record_tells_everything_and_is_not_computed_twice(tmp_path, monkeypatch):
    task, vectors = labelled("single")
    peer, plan = given(tmp_path / "v.parquet", vectors), Plan(grid=FEW, seeds=2)
    record = evaluate(peer, task, tmp_path / "out", plan)
    [told] = results(tmp_path / "out")
    assert told == json.loads(json.dumps(record))
    assert [len(told["grid"]), told["seeds"], told["protocol"]] == [2, [0, 1], "jukemir"]
    assert told["task"]["splits"]["test"]["items"] == 12
    assert {"myna", "torch", "scikit-learn", "mir_eval"} <= told["versions"].keys()
    assert told["test"]["accuracy"]["over"] == "seeds"
    monkeypatch.setattr(module, "search_seeds", lambda *_, **__: pytest.fail("computed again"))
    assert evaluate(peer, task, tmp_path / "out", plan) == told


@pytest.mark.parametrize("change", ["vectors", "labels", "splits", "grid", "seeds"])
def test_whatever_decides_a_score_makes_another_record(tmp_path, change):
    task, vectors = labelled("single", count=30)
    plan = Plan(grid=FEW[:1])
    first = evaluate(given(tmp_path / "v.parquet", vectors), task, tmp_path / "out", plan)
    if change == "vectors":
        vectors = {name: x + 1 for name, x in vectors.items()}
    elif change == "splits":
        swapped = {"train": "train", "valid": "test", "test": "valid"}
        task = replace(task, items=tuple(replace(item, part=swapped[item.part]) for item in task.items))
    elif change == "labels":
        task = replace(task, items=tuple(replace(item, label=(item.label + 1) % 3) for item in task.items))
    else:
        plan = Plan(grid=FEW[1:]) if change == "grid" else Plan(grid=FEW[:1], seeds=2)
    second = evaluate(given(tmp_path / "v.parquet", vectors), task, tmp_path / "out", plan)
    assert second["key"] != first["key"]
    assert len(results(tmp_path / "out")) == 2


def test_what_is_missing_is_refused_or_told_for_ever(tmp_path):
    task, vectors = labelled("single")
    gone = [item.id for item in task.of("test")][:2]
    peer = given(tmp_path / "v.parquet", {name: x for name, x in vectors.items() if name not in gone})
    with pytest.raises(
        TaskError, match=r"2 of 60 items of toy-single could not be embedded by given .*--allow-missing"
    ):
        evaluate(peer, task, tmp_path / "out", Plan(grid=FEW))
    allowed = Plan(grid=FEW, allow_missing=True)
    record = evaluate(peer, task, tmp_path / "out", allowed)
    assert sorted(record["task"]["unusable"]) == gone
    assert evaluate(peer, task, tmp_path / "out", allowed) == record
    assert "2 items are missing, so this is not the benchmark" in results_sheet([record]).text()
    with pytest.raises(TaskError):  # what was allowed once is not allowed for ever
        evaluate(peer, task, tmp_path / "out", Plan(grid=FEW))


def test_a_result_with_holes_leaves_the_whole_one_alone(tmp_path):
    parts = ("train", "train", "valid", "test")
    paths = [write_audio(tmp_path / f"{i}.wav", music(1.2, 16_000, seed=i), 16_000) for i in range(16)]
    items = tuple(Item(str(i), path, parts[i % 4], i // 4 % 2, str(i)) for i, path in enumerate(paths))
    task, peer = Task("sounds", 1, "single", ("x", "y"), items), open_peer("chroma")
    whole = evaluate(peer, task, tmp_path / "out", Plan(grid=FEW[:1]))
    paths[3].write_text("no music")
    record = evaluate(peer, task, tmp_path / "out", Plan(grid=FEW[:1], allow_missing=True))
    assert list(record["task"]["unusable"]) == ["3"]
    assert sorted(one["key"] for one in results(tmp_path / "out")) == sorted([whole["key"], record["key"]])


def test_a_hybrids_representations_are_chosen_on_valid_and_all_told(tmp_path):
    task, vectors = labelled("single")
    peer = given(tmp_path / "v.parquet", vectors)
    halves = {"square": slice(3, 6), "vertical": slice(0, 3), "both": slice(0, 6)}  # the labels are in the first half

    class Hybrid(Peer):
        @property
        def representations(self):
            return halves

    record = evaluate(Hybrid("hybrid", peer.source), task, tmp_path / "out", Plan(grid=FEW))
    assert list(record["alternatives"]) == list(halves)
    assert record["chosen"]["representation"] in ("vertical", "both")
    assert record["alternatives"]["square"]["test"]["accuracy"] < 0.8
    valid = {name: one["valid"]["accuracy"] for name, one in record["alternatives"].items()}
    assert record["chosen"]["valid"]["accuracy"] == max(valid.values())
    assert [row[0] for row in results_sheet([record]).rows] == ["hybrid [2 probes]", "  square", "  vertical", "  both"]


def test_songs_of_several_clips_are_answered_together(tmp_path):
    task, vectors = labelled("key")
    items = tuple(
        replace(item, id=f"{item.id}-{clip}", group=f"artist {int(item.id) // 10}", song=item.id)
        for item in task.items
        for clip in range(3)
    )
    rng = np.random.default_rng(0)
    noisy = {item.id: (vectors[item.song] + rng.standard_normal(6)).astype(np.float32) for item in items}
    record = evaluate(
        given(tmp_path / "v.parquet", noisy), replace(task, items=items), tmp_path / "out", Plan(grid=FEW)
    )
    assert record["task"]["splits"]["test"] | {"items": 36, "groups": 6} == record["task"]["splits"]["test"]
    assert 12 * record["test"]["accuracy"]["mean"] == pytest.approx(round(12 * record["test"]["accuracy"]["mean"]))
    assert record["chosen"]["strategy"] in ("vote", "max", "gmean", "mean")
    assert "songs by" in choices_sheet([record]).text()


def test_a_file_that_is_no_result_is_refused(tmp_path):
    task, vectors = labelled("single")
    peer, plan = given(tmp_path / "v.parquet", vectors), Plan(grid=FEW)
    for text, says in (("{}", "not a result of this myna"), ("{", "cannot be read as a result")):
        result_path(tmp_path, peer, task, plan).write_text(text)
        with pytest.raises(StoreError, match=says):
            evaluate(peer, task, tmp_path, plan)


def test_windows_are_a_protocol_of_their_own(tmp_path):
    parts = ("train", "train", "valid", "test")
    paths = [write_audio(tmp_path / f"{i}.wav", music(4.2, 16_000, seed=i), 16_000) for i in range(16)]
    items = tuple(Item(str(i), path, parts[i % 4], i // 4 % 2, str(i)) for i, path in enumerate(paths))
    task = Task("sounds", 1, "single", ("x", "y"), items)
    peer = open_peer("mel-statistics")
    record = evaluate(peer, task, tmp_path / "out", Plan(protocol="windows", grid=FEW[:1]))
    assert record["embeddings"]["rows"] == "windows"
    assert results_sheet([record]).rows[0][0].endswith("[windows, 1 probes]")
    both = [record, evaluate(peer, task, tmp_path / "out", Plan(grid=FEW[:1]))]
    assert len(results(tmp_path / "out")) == 2
    assert len({row[0] for row in results_sheet(both).rows}) == 2  # never mixed in one row


def test_the_command_line_measures_and_prints_the_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(HEADS, "grid", FEW[:1])
    lines = ["path,label,split"]
    for i in range(12):
        write_audio(tmp_path / f"{i}.wav", music(3.5, 16_000, seed=i), 16_000)
        lines.append(f"{i}.wav,{'ab'[i % 2]},{('train', 'train', 'valid', 'test')[i // 2 % 4]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    task = ["--task", str(tmp_path / "labels.csv"), "-o", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "mel-statistics", "chroma", *task])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "mel-statistics" in out
    assert "chroma" in out
    assert "accuracy" in out
    assert len(results(tmp_path / "out")) == 2
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "chroma", "--task", str(tmp_path / "elsewhere" / "labels.csv"), *task])
    assert ended.value.code == 1
    assert "Two tasks are called labels.csv" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "chroma", "--task", "gtzan", "-o", str(tmp_path / "out")])
    assert ended.value.code == 1
    assert "0 --data and 1 --task that are no tables were given" in capsys.readouterr().err


def test_a_table_named_as_a_benchmark_is_none_of_the_papers(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(HEADS, "quick", FEW[:1])
    lines = ["path,label"]
    for i in range(16):
        write_audio(tmp_path / f"{i}.wav", music(3.2, 16_000, seed=i), 16_000)
        lines.append(f"{i}.wav,{'ab'[i % 2]}")
    (tmp_path / "gtzan.csv").write_text("\n".join(lines))
    task = [
        "--task",
        str(tmp_path / "gtzan.csv"),
        "--split",
        "50/25/25",
        "-o",
        str(tmp_path / "out"),
        "--head",
        "quick",
    ]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "chroma", *task, "--seed", "1"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "gtzan.csv accuracy" in out
    assert "quoted" not in out
    with pytest.raises(SystemExit):
        main(["evaluate", "chroma", "no such model", *task])
    assert "There is no model at no such model" in capsys.readouterr().err
