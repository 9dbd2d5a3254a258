"""Masking as the only augmentation, on pictures of handwritten digits (section 5.1 of the paper: other modalities).

An encoder learns from 1,000 of scikit-learn's digits, 8 x 8 pixels each, without their labels: two views of a digit are
the same picture under two masks. Then 100 of them get labels, and nearest neighbours and a linear classifier name the
797 digits that nobody has seen: from the encoder's vectors, from the same encoder's untrained, and from the pixels.

    pip install 'myna-music[demo]'
    python examples/digits.py                 # under two minutes on one core
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from myna.arrays import Arrays
from myna.loss import LossConfig
from myna.model import ModelConfig, MynaModel
from myna.run import Settings, TrainConfig
from myna.train import Trainer
from myna.view import ViewConfig

SIDE = 8
CLASSIFIERS = {"5 neighbours": KNeighborsClassifier(5, metric="cosine"), "linear": LogisticRegression(max_iter=2000)}


def settings(steps: int, seed: int) -> Settings:
    """A hybrid of columns and rows, three of each eight visible; an encoder of 0.1 M parameters."""
    shape = {"dim": 64, "depth": 2, "heads": 4, "head_dim": 16, "mlp_dim": 256, "projector_hidden": 64}
    return Settings(
        recipe="digits",
        model=ModelConfig.of_arrays(bands=SIDE, frames=SIDE, patches=("8x1", "1x8"), **shape),
        view=ViewConfig(clip_seconds=0, mask_ratio=0.7),
        loss=LossConfig(loss="ntxent", temperature=0.2),
        train=TrainConfig(batch=128, steps=steps, learning_rate=1e-3, seed=seed, precision="fp32", log_every=50),
    )


def vectors(model: MynaModel, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model.eval().encode(torch.from_numpy(images)).numpy()


def accuracies(features: np.ndarray, labels: np.ndarray, known: np.ndarray, asked: np.ndarray) -> dict[str, float]:
    """Learn the labels of the known digits, and return the share of the asked ones that is named rightly."""
    scores = {}
    for name, classifier in CLASSIFIERS.items():
        fitted = make_pipeline(StandardScaler(), classifier).fit(features[known], labels[known])
        scores[name] = fitted.score(features[asked], labels[asked])
    return scores


def main(steps: int, seeds: int) -> dict[str, dict[str, np.ndarray]]:
    """Train once a seed, and return the accuracies of each seed for each representation and classifier."""
    digits = load_digits()
    images = np.ascontiguousarray(
        digits.images.transpose(0, 2, 1)[:, :, ::-1], np.float32
    )  # columns, then rows upwards
    rows = []
    for seed in range(seeds):
        chosen = settings(steps, seed)
        seen, asked = train_test_split(
            np.arange(len(images)), train_size=1000, stratify=digits.target, random_state=seed
        )
        known, _ = train_test_split(seen, train_size=100, stratify=digits.target[seen], random_state=seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(Arrays(list(images[seen])), Path(folder) / "run", chosen, device="cpu")
            trainer.train()
        found = {
            "trained": vectors(trainer.model, images),
            "untrained": vectors(MynaModel(chosen.model, seed=seed), images),
            "pixels": images.reshape(len(images), -1),
        }
        rows.append({name: accuracies(features, digits.target, known, asked) for name, features in found.items()})
    scores = {name: {c: np.array([row[name][c] for row in rows]) for c in CLASSIFIERS} for name in rows[0]}
    for name, by_classifier in scores.items():
        told = [f"{c} {mean_and_interval(values)}" for c, values in by_classifier.items()]
        print(f"{name:<10} {',  '.join(told)}")
    gain = scores["trained"]["linear"] - scores["untrained"]["linear"]
    print(f"training adds {mean_and_interval(gain)} points to the linear classifier ({seeds} seeds, 95 % intervals)")
    return scores


def mean_and_interval(values: np.ndarray) -> str:
    """Write a mean with its 95 % interval over seeds, in percent."""
    mean = f"{100 * values.mean():5.1f}"
    return f"{mean} ± {196 * values.std(ddof=1) / np.sqrt(len(values)):.1f}" if len(values) > 1 else mean


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    torch.set_num_threads(1)
    main(**vars(parser.parse_args()))
