"""Truth and answers become numbers: by scikit-learn and mir_eval, and, for early stopping, for many models at once.

What is reported comes from the two libraries (`measure`). `Primary` gives the same number for each of many models in
a few array operations; the tests hold the two to 1e-9 of each other, ties included.
"""

import functools

import mir_eval
import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from sklearn.metrics import accuracy_score, average_precision_score, r2_score, roc_auc_score
from torch import Tensor

from myna.errors import ProbeError
from myna.key import KEYS
from myna.task.base import Answer

# the metric that stops the training and chooses among probes
PRIMARY: dict[Answer, str] = {
    "single": "accuracy",
    "multi": "roc_auc",
    "regression": "r2",
    "key": "weighted_score",
}
# how the clips of a song become one answer; where several are equally good on valid, the first is taken
STRATEGIES = ("vote", "max", "gmean", "mean")


def measure(
    answer: Answer,
    outputs: tuple[str, ...],
    truth: Shaped[np.ndarray, "item *output"],
    found: Shaped[np.ndarray, "item *output"],
) -> dict[str, float]:
    """Score answers with every metric of their kind, the primary one first.

    `found` holds a class for each item (single, key), a probability for each item and tag (multi), or a value for
    each item and output (regression). Of keys, `truth` is what is played and `found` what was heard: an answer a fifth
    above scores 0.5, one a fifth below nothing. Check the truth with `check_truth` first.
    """
    if answer == "single":
        return {"accuracy": float(accuracy_score(truth, found))}
    if answer == "key":
        names = [(KEYS[played], KEYS[heard]) for played, heard in zip(truth, found, strict=True)]
        score = float(np.mean([mir_eval.key.weighted_score(played, heard) for played, heard in names]))
        return {"weighted_score": score, "accuracy": float(accuracy_score(truth, found))}
    if answer == "multi":
        return {
            "roc_auc": float(roc_auc_score(truth, found, average="macro")),
            "average_precision": float(average_precision_score(truth, found, average="macro")),
        }
    each = np.atleast_1d(r2_score(truth, found, multioutput="raw_values"))
    return {"r2": float(each.mean())} | {f"r2_{name}": float(r2) for name, r2 in zip(outputs, each, strict=True)}


def check_truth(answer: Answer, outputs: tuple[str, ...], truth: Shaped[np.ndarray, "item *output"], part: str) -> None:
    """Refuse labels with which a metric is undefined: scikit-learn would warn and leave a hole in the mean."""
    if answer == "multi":
        for what, count in (("with", truth.sum(axis=0)), ("without", (1 - truth).sum(axis=0))):
            empty = [name for name, items in zip(outputs, count, strict=True) if items == 0]
            if empty:
                raise ProbeError(
                    f"The {part} split has no item {what} the tag {', '.join(empty)}: its ROC-AUC is undefined. "
                    "Leave the tag out, or split otherwise."
                )
    if answer == "regression":
        flat = [name for name, values in zip(outputs, truth.T, strict=True) if np.ptp(values) == 0]
        if flat:
            raise ProbeError(
                f"All labels of {', '.join(flat)} are equal in the {part} split: their R2 is undefined. "
                "Leave the output out, or split otherwise."
            )


@functools.cache
def key_scores() -> Float64[Tensor, "24 24"]:
    """Return mir_eval's weighted score for every pair of keys: row the key that is played, column the answer."""
    return torch.tensor(
        [[mir_eval.key.weighted_score(played, heard) for heard in KEYS] for played in KEYS], dtype=torch.float64
    )


def roc_auc(
    truth: Shaped[Tensor, "item output"], found: Float[Tensor, "model item output"]
) -> Float64[Tensor, "model output"]:
    """Return the area under the ROC curve of each output of each model, exactly: ties count one half.

    The area is the share of (positive, negative) pairs in the right order. Sorted scores tell for each positive how
    many items lie below; pairs among the positives are then taken off. Only the positives are looked up, which are
    few in tagging, and the counts are integers.
    """
    columns = found.transpose(1, 2).contiguous()
    # NumPy sorts with vector instructions, ten times as fast as PyTorch on a CPU
    on_cpu = found.device.type == "cpu"
    order = torch.from_numpy(np.sort(columns.numpy(), axis=-1)) if on_cpu else columns.sort(dim=-1).values
    tied = (order[..., 1:] == order[..., :-1]).any(dim=-1).any(dim=0)
    areas = torch.empty(columns.shape[:2], dtype=torch.float64, device=found.device)
    items = len(truth)
    for output, ties in enumerate(tied.tolist()):
        positives = truth[:, output].nonzero()[:, 0]
        scores, sorted_scores = columns[:, output, positives].contiguous(), order[:, output].contiguous()
        above = torch.searchsorted(sorted_scores, scores, right=True)
        below = torch.searchsorted(sorted_scores, scores) if ties else above - 1
        count = len(positives)
        # twice the number of pairs won, a tie being one half
        pairs = (below + above).sum(dim=-1) - count**2
        areas[:, output] = pairs.double() / (2 * count * (items - count))
    return areas


def r2(
    truth: Float[Tensor, "item output"], found: Float[Tensor, "model item output"]
) -> Float64[Tensor, "model output"]:
    """Return the coefficient of determination of each output of each model."""
    wanted = truth.double()
    error = (found.double() - wanted).square().sum(dim=1)
    return 1 - error / (wanted - wanted.mean(dim=0)).square().sum(dim=0)


def item_means(
    rows: Float[Tensor, "model row output"], item: Int64[Tensor, " row"], items: int
) -> Float[Tensor, "model item output"]:
    """Return the mean over each item's rows; every item must have one."""
    total = rows.new_zeros(len(rows), items, rows.shape[-1]).index_add_(1, item, rows.contiguous())
    return total / torch.bincount(item, minlength=items)[:, None]


def answers_of_songs(
    logits: Float[Tensor, "model clip key"], song: Int64[Tensor, " clip"], songs: int
) -> Int64[Tensor, "4 model song"]:
    """Join the clips of each song by each of `STRATEGIES`: the most frequent answer, the answer of the largest logit,
    of the mean logits, of the mean probabilities. Ties go to the first key.
    """
    votes = torch.nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits)
    joined = (
        item_means(votes, song, songs),
        logits[:, _clips_of(song, songs)].amax(dim=2),
        item_means(logits, song, songs),
        item_means(logits.softmax(dim=-1), song, songs),
    )
    return torch.stack([each.argmax(dim=-1) for each in joined])


def _clips_of(song: Int64[Tensor, " clip"], songs: int) -> Int64[Tensor, "song most"]:
    """Return each song's clips, its last one repeated up to the length of the longest list."""
    counts = torch.bincount(song, minlength=songs)
    place = torch.arange(int(counts.max()), device=song.device).minimum(counts[:, None] - 1)
    return song.argsort(stable=True)[(counts.cumsum(0) - counts)[:, None] + place]


class Primary:
    """The primary metric of one split for many models at once: logits (model, item, output) become scores (model,).

    Of keys, the score is that of the best of the four strategies, as in JukeMIR's early stopping; `song` says which
    song each item belongs to, from 0 on.
    """

    def __init__(
        self,
        answer: Answer,
        truth: Shaped[Tensor, "item *output"],
        song: Int64[Tensor, " item"] | None = None,
    ) -> None:
        self.answer, self.truth, self.song = answer, truth, song
        if answer == "key":
            assert song is not None
            self.songs = int(song.max()) + 1
            played = torch.zeros(self.songs, dtype=torch.int64, device=truth.device).index_copy_(0, song, truth)
            self.score_of = key_scores().to(truth.device)[played]

    def __call__(self, logits: Float[Tensor, "model item output"]) -> Float64[Tensor, " model"]:
        if self.answer == "single":
            return (logits.argmax(dim=-1) == self.truth).double().mean(dim=-1)
        if self.answer == "multi":
            # of the probabilities, as the reference: where they saturate there are ties
            return roc_auc(self.truth, logits.sigmoid()).mean(dim=-1)
        if self.answer == "regression":
            return r2(self.truth, logits).mean(dim=-1)
        return self.by_strategy(logits).amax(dim=0)

    def by_strategy(self, logits: Float[Tensor, "model clip key"]) -> Float64[Tensor, "4 model"]:
        """Return the weighted score of each strategy of each model (key only)."""
        assert self.song is not None
        answers = answers_of_songs(logits, self.song, self.songs)
        scores = self.score_of.expand(*answers.shape[:2], -1, -1)
        return scores.gather(-1, answers[..., None])[..., 0].mean(dim=-1)
