"""Questions asked of vectors, answered from few labels: what a representation knows of key, style, instruments, tempo.

A ridge probe on standardised vectors, its strength chosen by leave-one-out on the labelled songs alone, and scored on
songs that neither the probe nor the encoder saw. Repeated over seeds, each with its own draw of labelled songs.
"""

from collections.abc import Callable, Sequence

import mir_eval
import numpy as np
import torch
from jaxtyping import Float, Float32
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from myna.report import Score, ScoreTable
from myna.songs import INSTRUMENTS, Song

QUESTIONS = ("key", "style", "instruments", "tempo")
METRICS = {"key": "weighted score", "style": "accuracy", "instruments": "macro ROC-AUC", "tempo": "R² of log"}
STRENGTHS = np.logspace(-1, 5, 13)


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
        chance={
            "key": _chance_of_key(songs),
            "style": _most_common([s.style for s in songs]),
            "instruments": 0.5,
            "tempo": 0.0,
        },
    )


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


def mel_statistics(mel: Float32[np.ndarray, "frame band"]) -> Float32[np.ndarray, " value"]:
    """Return mean and standard deviation over time of each band in decibels: what is heard without any learning."""
    decibel = 10 * np.log10(np.maximum(mel, 1e-8))
    return np.concatenate([decibel.mean(axis=0), decibel.std(axis=0)])


def chroma(samples: Float32[np.ndarray, " samples"], *, rate_hz: int = 16_000) -> Float32[np.ndarray, "12"]:
    """Return the share of each pitch class, C first, in the magnitudes from 65 to 2000 Hz: the classic key feature."""
    n_fft = 8192  # 2 Hz a bin: semitones part from 40 Hz up
    padded = torch.from_numpy(np.pad(samples, (0, max(0, n_fft - len(samples)))))
    frames = padded.unfold(0, n_fft, n_fft // 2) * torch.hann_window(n_fft)
    magnitude = torch.fft.rfft(frames).abs().sqrt().mean(dim=0).numpy()
    hz = np.arange(len(magnitude)) * rate_hz / n_fft
    heard = (hz >= 65) & (hz <= 2000)
    pitch_class = np.round(69 + 12 * np.log2(hz[heard] / 440)).astype(int) % 12
    shares = np.bincount(pitch_class, magnitude[heard], minlength=12) / np.bincount(pitch_class, minlength=12)
    return (shares / max(shares.sum(), 1e-12)).astype(np.float32)
