"""How far a score would move with other test items of the same kind: intervals over resampled groups.

A group (a song with all its clips) is drawn whole. The thousand draws are never carried out: each is a vector of
how often a group occurs, and the metrics are formed from such counts, all draws at once.
"""

import numpy as np
from jaxtyping import Float, Float32, Shaped

from myna.metric import key_scores
from myna.task.base import Answer

LEVEL = 0.95


def intervals(
    answer: Answer,
    outputs: tuple[str, ...],
    truth: Shaped[np.ndarray, "item *output"],
    found: Shaped[np.ndarray, "item *output"],
    group: Shaped[np.ndarray, " item"],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the middle 95 % of each metric of `metric.measure` over `draws` resamples of the groups.

    `group` names or numbers the items' groups. A draw in which a metric is undefined (a rare tag did not occur) is
    left out for that metric; where that befalls more than half of them, or where there is one group only, both ends
    are NaN.
    """
    names, group = np.unique(group, return_inverse=True)
    groups = len(names)
    counts = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), draws).astype(np.float32)
    drawn = resampled(answer, outputs, truth, found, counts[:, group])
    ends = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    found_intervals = {}
    for name, values in drawn.items():
        defined = values[np.isfinite(values)]
        known = groups > 1 and 2 * len(defined) >= draws
        low, high = np.quantile(defined, ends) if known else (np.nan, np.nan)
        found_intervals[name] = (float(low), float(high))
    return found_intervals


def resampled(
    answer: Answer,
    outputs: tuple[str, ...],
    truth: Shaped[np.ndarray, "item *output"],
    found: Shaped[np.ndarray, "item *output"],
    weight: Float32[np.ndarray, "draw item"],
) -> dict[str, Float[np.ndarray, " draw"]]:
    """Return each metric of `metric.measure` with each item counted `weight` times; NaN where it is undefined."""
    if answer == "multi":
        both = np.array([_areas(truth[:, i], found[:, i], weight) for i in range(len(outputs))])
        area, precision = both.mean(axis=0)
        return {"roc_auc": area, "average_precision": precision}
    total = weight.sum(axis=1, dtype=np.float64)
    if answer == "regression":
        error = np.square(found - truth.astype(np.float64))
        wanted = truth - truth.mean(axis=0, dtype=np.float64)
        squares = weight @ np.square(wanted)
        spread = squares - np.square(weight @ wanted) / total[:, None]
        spread[spread <= 1e-9 * squares] = np.nan  # what rounding leaves of a spread of zero
        each = 1 - weight @ error / spread
        return {"r2": each.mean(axis=1)} | {f"r2_{name}": each[:, i] for i, name in enumerate(outputs)}
    right = weight @ (truth == found).astype(np.float64) / total
    if answer == "single":
        return {"accuracy": right}
    return {"weighted_score": weight @ key_scores().numpy()[truth, found] / total, "accuracy": right}


def _areas(
    truth: Shaped[np.ndarray, " item"], found: Float[np.ndarray, " item"], weight: Float32[np.ndarray, "draw item"]
) -> tuple[Float[np.ndarray, " draw"], Float[np.ndarray, " draw"]]:
    """Return ROC-AUC and average precision of one tag, from counts at the borders of equal scores, highest first."""
    order = np.argsort(-found, kind="stable")
    scores, positive = found[order], truth[order] > 0
    weight = weight[:, order]
    hits = weight[:, positive]
    start = np.searchsorted(-scores, -scores[positive], side="left")
    end = np.searchsorted(-scores, -scores[positive], side="right")
    # float32 counts are exact up to 2**24, far above the number of items
    items_to, hits_to = _counted(weight), _counted(hits)
    rank = np.concatenate([[0], np.cumsum(positive)])
    hits_start, hits_end = hits_to[:, rank[start]], hits_to[:, rank[end]]
    misses_start, misses_end = items_to[:, start] - hits_start, items_to[:, end] - hits_end
    hit, miss = hits_to[:, -1].astype(np.float64), items_to[:, -1] - hits_to[:, -1].astype(np.float64)
    below = miss[:, None] - (misses_start + misses_end) / 2
    hit[hit == 0], miss[miss == 0] = np.nan, np.nan
    area = (hits * below).sum(axis=1) / (hit * miss)
    precision = hits_end / np.maximum(items_to[:, end], 1)
    return area, (hits * precision.astype(np.float64)).sum(axis=1) / hit


def _counted(weight: Float32[np.ndarray, "draw item"]) -> Float32[np.ndarray, "draw border"]:
    return np.concatenate([np.zeros((len(weight), 1), np.float32), np.cumsum(weight, axis=1)], axis=1)
