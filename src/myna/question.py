"""Questions about composed songs, answered from few labels: key, style, instruments and tempo.

`tasks` makes benchmarks of them, for the probes of `evaluate`. `ask` is for sweeps over many models: a ridge probe on
standardised vectors, hundreds of times quicker than JukeMIR's search, its strength chosen by leave-one-out on the
labelled songs alone, and scored on songs that neither the probe nor the encoder saw. Repeated over seeds, each with
its own draw of labelled songs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import mir_eval
import numpy as np
from jaxtyping import Float
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from myna.key import KEYS
from myna.report import Score, ScoreTable
from myna.songs import INSTRUMENTS, STYLES, Song
from myna.task.base import Answer, Item, Part, Task

QUESTIONS = ("key", "style", "instruments", "tempo")
METRICS = {"key": "weighted score", "style": "accuracy", "instruments": "macro ROC-AUC", "tempo": "R² of log"}
STRENGTHS = np.logspace(-1, 5, 13)
Labels = list[int] | list[tuple[float, ...]]


def tasks(paths: Sequence[Path], songs: Sequence[Song], *, labelled: int) -> dict[str, Task]:
    """Make a benchmark of each question: the first third of the labelled songs is valid, the rest train, all else test.

    Tempo is its logarithm, scaled by the labelled songs' mean and deviation. Of the instruments, those are asked for
    that some songs of each split play and some do not.
    """
    parts: list[Part] = [
        "valid" if i < labelled // 3 else "train" if i < labelled else "test" for i in range(len(songs))
    ]
    return {question: _task(question, paths, songs, parts) for question in QUESTIONS}


def _task(question: str, paths: Sequence[Path], songs: Sequence[Song], parts: Sequence[Part]) -> Task:
    answer, outputs, labels = _labels(question, songs, np.array(parts))
    each = zip(paths, parts, labels, strict=True)
    items = tuple(Item(path.stem, path, part, label, path.stem) for path, part, label in each)
    return Task(question, 1, answer, outputs, items)


def _labels(question: str, songs: Sequence[Song], parts: np.ndarray) -> tuple[Answer, tuple[str, ...], Labels]:
    if question == "key":
        return "key", KEYS, [KEYS.index(song.key) for song in songs]
    if question == "style":
        return "single", STYLES, [STYLES.index(song.style) for song in songs]
    if question == "instruments":
        plays = np.array([[instrument in song.instruments for instrument in INSTRUMENTS] for song in songs])
        asked = np.all(
            [plays[parts == part].any(0) & ~plays[parts == part].all(0) for part in np.unique(parts)], axis=0
        )
        names = tuple(name for name, yes in zip(INSTRUMENTS, asked, strict=True) if yes)
        return "multi", names, [tuple(map(float, row)) for row in plays[:, asked]]
    tempo = np.log2([song.tempo_bpm for song in songs])
    known = tempo[parts != "test"]
    return "regression", ("tempo",), [(float(value),) for value in (tempo - known.mean()) / known.std()]


def ask(
    vectors: dict[str, Float[np.ndarray, "song dim"]],
    songs: Sequence[Song],
    *,
    labelled: int,
    seeds: int,
    on_seed: Callable[[int], None] | None = None,
) -> ScoreTable:
    """Score every representation on every question; the interval holds the middle 90 % of the seeds."""
    scores: dict[tuple[str, str], list[float]] = {}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(songs))
        train, test = order[:labelled], order[labelled:]
        for row, x in vectors.items():
            scaler = StandardScaler().fit(x[train])
            known, asked = scaler.transform(x[train]), scaler.transform(x[test])
            for question in QUESTIONS:
                score = _ANSWER[question](known, asked, [songs[i] for i in train], [songs[i] for i in test])
                scores.setdefault((row, question), []).append(score)
        if on_seed:
            on_seed(seed + 1)
    return ScoreTable(
        rows=tuple(vectors),
        columns=QUESTIONS,
        scores={
            place: Score(float(np.mean(s)), *(float(q) for q in np.quantile(s, [0.05, 0.95])))
            for place, s in scores.items()
        },
        metric=METRICS,
        chance=chance(songs),
    )


def chance(songs: Sequence[Song]) -> dict[str, float]:
    """Return what each question gives who always answers the same."""
    return {
        "key": _chance_of_key(songs),
        "style": _most_common([s.style for s in songs]),
        "instruments": 0.5,
        "tempo": 0.0,
    }


def _classify(known: np.ndarray, asked: np.ndarray, labels: Sequence[str]) -> list[str]:
    return RidgeClassifierCV(alphas=STRENGTHS).fit(known, labels).predict(asked).tolist()


def _key(known: np.ndarray, asked: np.ndarray, train: Sequence[Song], test: Sequence[Song]) -> float:
    answers = _classify(known, asked, [song.key for song in train])
    return weighted_key_score([song.key for song in test], answers)


def weighted_key_score(reference: Sequence[str], estimated: Sequence[str]) -> float:
    """Return the mean MIREX score: 1 for the key, 0.5 a fifth above, 0.3 relative, 0.2 parallel."""
    pairs = zip(reference, estimated, strict=True)
    return float(np.mean([mir_eval.key.weighted_score(wanted, found) for wanted, found in pairs]))


def _style(known: np.ndarray, asked: np.ndarray, train: Sequence[Song], test: Sequence[Song]) -> float:
    answers = _classify(known, asked, [song.style for song in train])
    return float(accuracy_score([song.style for song in test], answers))


def _instruments(known: np.ndarray, asked: np.ndarray, train: Sequence[Song], test: Sequence[Song]) -> float:
    plays, wanted = (np.array([[i in s.instruments for i in INSTRUMENTS] for s in part]) for part in (train, test))
    probe = RidgeCV(alphas=STRENGTHS, alpha_per_target=True).fit(known, plays.astype(float))
    return float(roc_auc_score(wanted, probe.predict(asked), average="macro"))


def _tempo(known: np.ndarray, asked: np.ndarray, train: Sequence[Song], test: Sequence[Song]) -> float:
    heard, wanted = (np.log2([song.tempo_bpm for song in part]) for part in (train, test))
    return float(r2_score(wanted, RidgeCV(alphas=STRENGTHS).fit(known, heard).predict(asked)))


_ANSWER = {"key": _key, "style": _style, "instruments": _instruments, "tempo": _tempo}


def _most_common(labels: Sequence[str]) -> float:
    return max(np.unique(labels, return_counts=True)[1]) / len(labels)


def _chance_of_key(songs: Sequence[Song]) -> float:
    """Return what always answering the best single key would score."""
    keys = [song.key for song in songs]
    return max(weighted_key_score(keys, [guess] * len(keys)) for guess in sorted(set(keys)))
