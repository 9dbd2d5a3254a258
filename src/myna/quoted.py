"""Table 1 of the paper (arXiv 2502.12511), to stand beside what is measured here: quoted, not measured."""

from types import MappingProxyType

# column → (task, metric of that task)
COLUMNS = MappingProxyType(
    {
        "MTT AUC": ("magnatagatune", "roc_auc"),
        "MTT AP": ("magnatagatune", "average_precision"),
        "GTZAN": ("gtzan", "accuracy"),
        "GiantSteps": ("giantsteps", "weighted_score"),
        "Emo A": ("emomusic", "r2_arousal"),
        "Emo V": ("emomusic", "r2_valence"),
    }
)
AVERAGE = "average"

# model → the numbers of those columns, then the average as printed; all times 100
TABLE_1 = MappingProxyType(
    {
        "MULE 62M": (91.2, 40.1, 75.5, 64.9, 73.1, 60.7, 68.2),
        "MERT-95M": (91.0, 39.3, 78.6, 63.5, 76.4, 60.0, 68.9),
        "MERT-330M": (91.3, 40.2, 79.3, 65.6, 74.7, 61.2, 69.7),
        "Jukebox 5B": (91.5, 41.4, 79.7, 66.7, 72.1, 61.7, 69.9),
        "MusiCNN 7M": (90.6, 38.3, 79.0, 12.8, 70.3, 46.6, 53.7),
        "CLMR 3M": (89.4, 36.1, 68.6, 14.9, 67.8, 45.8, 50.8),
        "MERT-95M-public": (90.7, 38.4, 72.8, 67.3, 72.5, 59.7, 67.7),
        "MAE 32M": (88.9, 35.6, 75.5, 53.6, 69.7, 50.2, 62.8),
        "Myna-Base 22M": (90.8, 39.5, 78.3, 63.5, 73.5, 55.8, 67.9),
        "Myna-Vertical 22M": (90.1, 37.4, 75.9, 68.6, 66.5, 45.9, 66.1),
        "Myna-Hybrid 22M": (91.0, 39.8, 77.9, 68.0, 70.8, 55.2, 68.6),
    }
)


def average(auc: float, ap: float, gtzan: float, giantsteps: float, arousal: float, valence: float) -> float:
    """Return the last column: the mean over the four benchmarks, the two numbers of one taken together first."""
    return ((auc + ap) / 2 + gtzan + giantsteps + (arousal + valence) / 2) / 4
