"""Numbers that the paper reports (arXiv 2502.12511), as printed, times 100: to be shown beside ours."""

from dataclasses import dataclass

PAPER = "arXiv 2502.12511"
# Of Table 1: MagnaTagATune (ROC-AUC and average precision), GTZAN, GiantSteps key, EmoMusic (arousal, valence).
BENCHMARKS = ("MTT AUC", "MTT AP", "GTZAN", "GiantSteps", "Emo A", "Emo V")
AVERAGE = "average"  # over the four data sets; one with two scores counts by their mean


@dataclass(frozen=True)
class Quoted:
    """A row of Table 1. `recipe` is ours for it, if we have one."""

    name: str
    parameters: float
    scores: dict[str, float]
    recipe: str | None = None


def _row(name: str, parameters: float, *scores: float, recipe: str | None = None) -> Quoted:
    return Quoted(name, parameters, dict(zip((*BENCHMARKS, AVERAGE), scores, strict=True)), recipe)


TABLE_1 = (
    _row("MULE", 62e6, 91.2, 40.1, 75.5, 64.9, 73.1, 60.7, 68.2),
    _row("MERT-95M", 95e6, 91.0, 39.3, 78.6, 63.5, 76.4, 60.0, 68.9),
    _row("MERT-330M", 330e6, 91.3, 40.2, 79.3, 65.6, 74.7, 61.2, 69.7),
    _row("Jukebox", 5e9, 91.5, 41.4, 79.7, 66.7, 72.1, 61.7, 69.9),
    _row("MusiCNN", 7e6, 90.6, 38.3, 79.0, 12.8, 70.3, 46.6, 53.7),
    _row("CLMR", 3e6, 89.4, 36.1, 68.6, 14.9, 67.8, 45.8, 50.8),
    _row("MERT-95M-public", 95e6, 90.7, 38.4, 72.8, 67.3, 72.5, 59.7, 67.7),
    _row("MAE", 32e6, 88.9, 35.6, 75.5, 53.6, 69.7, 50.2, 62.8, recipe="mae"),
    _row("Myna-Base", 22e6, 90.8, 39.5, 78.3, 63.5, 73.5, 55.8, 67.9, recipe="base"),
    _row("Myna-Vertical", 22e6, 90.1, 37.4, 75.9, 68.6, 66.5, 45.9, 66.1, recipe="vertical"),
    _row("Myna-Hybrid", 22e6, 91.0, 39.8, 77.9, 68.0, 70.8, 55.2, 68.6, recipe="hybrid"),
)
# Table 2: Myna-Base, batch size to average.
TABLE_2 = {256: 65.0, 512: 65.7, 1024: 65.9, 2048: 67.0, 4096: 67.9}
BY_RECIPE = {row.recipe: row for row in TABLE_1 if row.recipe}
