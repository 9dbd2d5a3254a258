"""The paper's tables and figures, and the study of key, each by name: which runs it takes, and what is made of them.

At full size they train as the paper does on a store of AudioSet's music; `small` does the same in the small on composed
songs, within half an hour an item on two cores. Scores are of this project's own exam, so the paper's values, which
stand beside ours, are of other questions: compare directions, not numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from openTSNE import TSNE

from myna import figure, quoted, recipe
from myna.disk import write_text
from myna.errors import ConfigError
from myna.exam import AVERAGE, ComposedExam, Exam
from myna.figure import Curve, Priced
from myna.sweep import Bench, Experiment, Record, Run, Size, by_setting, console_teller, mean_of

# what makes the recipe tiny small, to be laid over the others
SMALL = ("dim", "depth", "heads", "mlp_dim", "projector_hidden", "decoder_dim", "decoder_heads", "amplitude")
SMALL += ("learning_rate", "clip_seconds")
TINY = {name: getattr(getattr(recipe.tiny(), recipe.fields()[name]), name) for name in SMALL}
SMOKE = TINY | {"dim": 32, "depth": 1, "heads": 1, "mlp_dim": 32, "decoder_dim": 32, "log_every": 1}
SMOKE |= {"precision": "fp32", "attention": "sdpa", "micro_batch": "off"}  # nothing to measure first
SIZES = {
    "full": Size(
        examples=411_000_000,
        sweep=411_000_000,
        dense=102_750_000,
        batch=4096,
        batches=tuple(quoted.TABLE_2),
        ratios=(0.5, 0.75, 0.9, 0.95),
        seeds=1,
        songs=0,
        seconds=0.0,
        exam_songs=2000,
        exam_seconds=12.0,
        labelled=1000,
        draws=20,
    ),
    "small": Size(
        examples=131_072,
        sweep=65_536,
        dense=32_768,
        batch=256,
        batches=(16, 32, 64, 128, 256),
        ratios=(0.5, 0.75, 0.9, 0.95),
        seeds=3,
        songs=512,
        seconds=12.0,
        exam_songs=320,
        exam_seconds=12.0,
        labelled=160,
        draws=10,
        settings=TINY,
    ),
    "smoke": Size(
        examples=32,
        sweep=32,
        dense=8,
        batch=8,
        batches=(4, 8),
        ratios=(0.5, 0.9),
        seeds=2,
        songs=24,
        seconds=4.0,
        exam_songs=48,
        exam_seconds=4.0,
        labelled=32,
        draws=2,
        settings=SMOKE,
    ),
}
KINDS = {"square": "base", "vertical": "vertical"}  # a model's name in the sweeps, and its recipe
AMPLITUDES = ("power", "log1p", "decibel")
DISTANCES_S = (0.0, 1.0, 2.0, 4.0)  # how far apart the two segments of a clip begin at most
KEY = ("key", "GiantSteps")  # what exams call the question of key
MAE = "mae"


def reproduce(
    item: str,
    out: str | Path,
    *,
    size: str = "full",
    store: str | Path | None = None,
    exam: Exam | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[Path]:
    """Do what is left to do of an item in a folder, and return the files made: a table, and a figure if it has one.

    Items in one folder share runs. `store` is the music to train on, needed at full size. Raises ConfigError for an
    item or size that does not exist, or one that the music cannot answer.
    """
    if item not in ITEMS:
        raise ConfigError(f"There is no item {item!r}; there are {', '.join(ITEMS)}.")
    if size not in SIZES:
        raise ConfigError(f"There is no size {size!r}; there are {', '.join(SIZES)}.")
    chosen = SIZES[size]
    if size == "full" and store is None:
        raise ConfigError("At full size a store is needed: prepare AudioSet's music and give it with --store.")
    if item == "key-songs" and store is not None:
        raise ConfigError("key-songs asks how many songs are needed, of composed ones: leave out --store.")
    folder = Path(out) / size
    exam = exam or ComposedExam(
        folder / "exam",
        songs=chosen.exam_songs,
        labelled=chosen.labelled,
        seconds=chosen.exam_seconds,
        draws=chosen.draws,
    )
    bench = Bench(folder, chosen, exam, store=store)
    return bench.carry_out(ITEMS[item](chosen), Path(out), tell=tell or console_teller())


# ------------------------------------------------------------------------------------- the paper's


def table1(size: Size) -> Experiment:
    """Table 1 and Figure 1: every model of the paper's own, and what there is without learning.

    In the small, the masked auto-encoder sees a quarter of the examples: one costs it several times as much.
    """
    runs = [
        Run(row.name, row.recipe, size.dense if row.recipe == MAE and size.songs else size.examples, seed=seed)
        for row in sorted(quoted.BY_RECIPE.values(), key=lambda row: row.recipe == MAE)
        for seed in range(size.seeds)
    ]
    runs += _untrained(size, {"untrained hybrid": "hybrid"})
    return Experiment("table1", (*runs, *BASELINES), _summary_of_table_1)


def table2(size: Size) -> Experiment:
    """Table 2: Myna-Base by batch size, each having seen equally many clips."""
    runs = _runs(size, {"square": "base"}, "batch", size.batches)
    paper = Curve("paper, Table 2", tuple(map(float, quoted.TABLE_2)), tuple(quoted.TABLE_2.values()), quoted=True)
    shown = _Shown("table2", "Score against batch size", "clips in a batch", log_x=True, beside=(paper,))
    return Experiment(shown.name, runs, shown)


def figure4(size: Size) -> Experiment:
    """Figure 4: both patch kinds by masking ratio."""
    shown = _Shown("figure4", "Score against masking ratio", "share of the tokens that is dropped")
    return Experiment(shown.name, _by_ratio(size), shown)


def figure5(size: Size) -> Experiment:
    """Figure 5: where hybrid, masked auto-encoder and a baseline put the classes."""
    names = [quoted.BY_RECIPE[name].name for name in ("hybrid", MAE)]
    trained = [run for run in table1(size).runs if run.model in names and run.seed == 0]
    return Experiment("figure5", (*trained, BASELINES[0]), _summary_of_figure_5)


def appendix_b(size: Size) -> Experiment:
    """Appendix B: the masked auto-encoder, by masking ratio, against Myna-Base."""
    runs = _runs(size, {"MAE": MAE, "Myna-Base": "base"}, "mask_ratio", size.ratios, examples=size.dense)
    shown = _Shown("appendix-b", "The masked auto-encoder and Myna-Base", "share of the tokens that is dropped")
    return Experiment(shown.name, runs, shown)


# ------------------------------------------------------------------------------ the study of key


def key_examples(size: Size) -> Experiment:
    """Key by the clips that were seen."""
    runs = tuple(
        Run(model, name, int(size.examples * part), seed=seed, x=float(int(size.examples * part)))
        for model, name in KINDS.items()
        for seed in range(size.seeds)
        for part in (1 / 16, 1 / 4, 1, 4)  # each goes on from the one before
    )
    return _key("examples", "clips seen", size, runs, log_x=True)


def key_songs(size: Size) -> Experiment:
    """Key by the number of songs trained on, each having seen equally many clips, in batches that fit the fewest."""
    counts = [size.songs // 8, size.songs // 4, size.songs // 2, size.songs]
    runs = tuple(
        Run(model, name, size.sweep, {"batch": min(counts[0], size.batch)}, songs, seed, float(songs))
        for model, name in KINDS.items()
        for songs in counts
        for seed in range(size.seeds)
    )
    return _key("songs", "songs trained on", size, runs, log_x=True)


def key_batch(size: Size) -> Experiment:
    """Key by batch size, each having seen equally many clips."""
    return _key("batch", "clips in a batch", size, _runs(size, KINDS, "batch", size.batches[::2]), log_x=True)


def key_mask(size: Size) -> Experiment:
    """Key by masking ratio: the runs of Figure 4."""
    return _key("mask", "share of the tokens that is dropped", size, _by_ratio(size))


def key_amplitude(size: Size) -> Experiment:
    """Key by the scale of the spectrogram, trained and untrained."""
    runs = _runs(size, KINDS, "amplitude", AMPLITUDES)
    untrained = {f"untrained {model}": name for model, name in KINDS.items()}
    runs += _runs(size, untrained, "amplitude", AMPLITUDES, examples=0)
    x_names = dict(enumerate(AMPLITUDES))
    return _key("amplitude", "scale of the spectrogram", size, runs, levels=False, x_names=x_names)


def key_distance(size: Size) -> Experiment:
    """Key by how far apart the two segments of a clip may begin."""
    runs = _runs(size, KINDS, "pair_seconds", DISTANCES_S, always={"pair": "near"})
    runs += tuple(
        Run(f"{model}, anywhere", name, size.sweep, seed=seed)
        for model, name in KINDS.items()
        for seed in range(size.seeds)
    )
    return _key("distance", "seconds between the starts of a clip's two segments, at most", size, runs)


ITEMS: dict[str, Callable[[Size], Experiment]] = {
    "table1": table1,
    "table2": table2,
    "figure4": figure4,
    "figure5": figure5,
    "appendix-b": appendix_b,
    "key-examples": key_examples,
    "key-songs": key_songs,
    "key-batch": key_batch,
    "key-mask": key_mask,
    "key-amplitude": key_amplitude,
    "key-distance": key_distance,
}
BASELINES = (Run("mel statistics", "mel statistics"), Run("chroma", "chroma"))


def _runs(
    size: Size,
    models: Mapping[str, str],
    setting: str,
    values: Sequence[Any],
    *,
    examples: int | None = None,
    always: Mapping[str, Any] | None = None,
) -> tuple[Run, ...]:
    """Return a run for each model, value of the setting and seed; words are counted instead of drawn at their value."""
    seen = size.sweep if examples is None else examples
    given = dict(always or {})
    return tuple(
        Run(model, name, seen, given | {setting: value}, None, seed, float(i if isinstance(value, str) else value))
        for model, name in models.items()
        for i, value in enumerate(values)
        for seed in range(size.seeds)
    )


def _by_ratio(size: Size) -> tuple[Run, ...]:
    return _runs(size, KINDS, "mask_ratio", size.ratios, examples=size.dense)


def _untrained(size: Size, models: Mapping[str, str]) -> list[Run]:
    return [Run(model, name, seed=seed) for model, name in models.items() for seed in range(size.seeds)]


def _key(what: str, x_label: str, size: Size, runs: tuple[Run, ...], *, levels: bool = True, **options) -> Experiment:
    """Return an experiment on key, held against chroma and untrained encoders."""
    if levels:
        runs += tuple(_untrained(size, {f"untrained {model}": name for model, name in KINDS.items()}))
    shown = _Shown(f"key-{what}", f"{{question}} by {x_label}", x_label, questions=KEY, **options)
    return Experiment(shown.name, (*runs, BASELINES[1]), shown)


# -------------------------------------------------------------------------------------- summaries


@dataclass(frozen=True)
class _Shown:
    """A summary as curves over a setting, and a table of all scores.

    The first of `questions` that the exam asks is drawn, else the average; `{question}` in the title names it.
    """

    name: str
    title: str
    x_label: str
    questions: tuple[str, ...] = ()
    log_x: bool = False
    x_names: Mapping[float, str] | None = None
    beside: tuple[Curve, ...] = ()

    def __call__(self, records: Sequence[Record], exam: Exam, out: Path) -> list[Path]:
        question = next((name for name in self.questions if name in records[0].scores), AVERAGE)
        title = self.title.format(question=question[0].upper() + question[1:])
        means = by_setting(records, question)
        models = list(dict.fromkeys(model for model, x in means if x is not None))
        series = [_curve(name, {x: m for (model, x), m in means.items() if model == name}) for name in models]
        picture = figure.curves(
            [*series, *self.beside],
            title=title,
            x_label=self.x_label,
            y_label=f"{_called(question, exam)}, ×100, with the 95 % interval over seeds",
            log_x=self.log_x,
            x_names=self.x_names,
            levels={model: mean.value for (model, x), mean in means.items() if x is None},
        )
        table = _table(records, exam, self.x_label, self.x_names)
        for curve in self.beside:
            values = ", ".join(f"{x:g}: {y:g}" for x, y in zip(curve.x, curve.y, strict=True))
            table += f"\n{curve.name[0].upper()}{curve.name[1:]} (other questions than ours): {values}.\n"
        return [_write(out / f"{self.name}.md", title, table), _draw(out / f"{self.name}.svg", picture)]


def _curve(name: str, means: Mapping[float, Any]) -> Curve:
    xs = tuple(sorted(means))
    found = [means[x] for x in xs]
    low, high = (tuple(getattr(mean, end) for mean in found) for end in ("low", "high"))
    known = None not in low + high
    return Curve(name, xs, tuple(mean.value for mean in found), low if known else None, high if known else None)


def _summary_of_table_1(records: Sequence[Record], exam: Exam, out: Path) -> list[Path]:
    means = by_setting(records)
    sized = {record.run.model: record.parameters for record in records if record.run.examples}
    models = [
        Priced(
            f"{name} here", float(parameters), means[name, None].value, means[name, None].low, means[name, None].high
        )
        for name, parameters in sized.items()
    ]
    for row in quoted.TABLE_1:
        whose = "paper" if row.recipe else "other"
        models.append(Priced(row.name, row.parameters, row.scores[quoted.AVERAGE], whose=whose))
    picture = figure.cost_and_score(
        models, title="Parameters against score", x_label="parameters", y_label="average of each one's exam, ×100"
    )
    table = _table(records, exam) + "\nAs the paper reports (other questions than ours):\n\n" + paper_table()
    return [_write(out / "table1.md", "Models", table), _draw(out / "figure1.svg", picture)]


def paper_table() -> str:
    """Write the paper's Table 1 in Markdown."""
    columns = (*quoted.BENCHMARKS, quoted.AVERAGE)
    rows = [
        [row.name, figure.short(row.parameters), *(f"{row.scores[c]:.1f}" for c in columns)] for row in quoted.TABLE_1
    ]
    return _markdown(["model", "parameters", *columns], rows)


def _summary_of_figure_5(records: Sequence[Record], exam: Exam, out: Path) -> list[Path]:
    splits, classes = np.array(exam.splits), np.array(exam.classes)
    names = list(dict.fromkeys(splits.tolist()))
    layouts = {}
    for record in records:
        points = _layout(record.read_vectors())
        layouts[record.run.model] = {split: points[splits == split] for split in names}
    labels = {split: classes[splits == split].tolist() for split in names}
    picture = figure.maps(layouts, labels, title="Where each representation puts the classes (t-SNE)")
    return [_write(out / "figure5.md", "Classes", _table(records, exam)), _draw(out / "figure5.svg", picture)]


def _layout(vectors: np.ndarray) -> np.ndarray:
    """Lay all items of an exam out at once, so that the splits of a model can be compared."""
    standard = (vectors - vectors.mean(axis=0)) / (vectors.std(axis=0) + 1e-6)
    embedding = TSNE(
        perplexity=min(30, (len(vectors) - 1) // 3), metric="cosine", initialization="pca", random_state=0, n_jobs=1
    )
    return np.asarray(embedding.fit(standard), dtype=np.float64)


def _table(
    records: Sequence[Record], exam: Exam, setting: str | None = None, names: Mapping[float, str] | None = None
) -> str:
    """Write the scores of all models and settings, mean and interval over seeds, and what training cost."""
    columns = [*exam.questions, AVERAGE]
    scores = {column: by_setting(records, column) for column in columns}
    rows = []
    for model, x in scores[AVERAGE]:
        mine = [record for record in records if (record.run.model, record.run.x) == (model, x)]
        place = [] if setting is None else ["" if x is None else (names or {}).get(x, f"{x:g}")]
        cost = mean_of([record.gflops_per_clip for record in mine]).value
        told = [str(scores[column][model, x]) for column in columns]
        rows.append([model, *place, *told, f"{cost:.3g}" if cost else "", str(len(mine))])
    header = ["model", *([] if setting is None else [setting]), *(_called(c, exam) for c in columns)]
    return _markdown([*header, "GFLOP a clip", "seeds"], rows) + f"\nScores ×100, exam: {exam.key}.\n"


def _called(question: str, exam: Exam) -> str:
    return f"{question} ({exam.metrics[question]})" if question in exam.metrics else question


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _write(path: Path, title: str, text: str) -> Path:
    write_text(path, f"# {title}\n\n{text}")
    return path


def _draw(path: Path, picture: str) -> Path:
    return figure.write_figure(path, picture)
