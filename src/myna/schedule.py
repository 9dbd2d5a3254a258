"""MARBLE's probe: one multi-layer perceptron, epochs, a learning rate that falls when valid no longer rises.

Its settings differ from JukeMIR's in nearly everything: no standardisation, no dropout on the input, no L2, one
configuration instead of a grid. Two faults of MARBLE's own scripts are not repeated: scores are those of the whole
split (not a mean over batches), and the weights kept are those of the best epoch (not of the last).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from myna.cohort import Evaluate, Inputs, Trained, TrainingRows
from myna.grid import ProbeConfig

FACTOR, WAIT = 0.5, 5  # the learning rate is halved after more than five epochs without a better score


@dataclass(frozen=True)
class Schedule:
    """How long a task is trained: `epochs` at most, an end after `patience` of them without a better score."""

    epochs: int = 100
    patience: int = 20
    batch: int = 64
    learning_rate: float = 1e-3

    @property
    def config(self) -> ProbeConfig:
        """Return the one probe that MARBLE trains."""
        return ProbeConfig(
            standardise=False,
            hidden=(512,),
            batch=self.batch,
            learning_rate=self.learning_rate,
            dropout=0.0,
            hidden_dropout=0.2,
            l2=0.0,
        )


SCHEDULES = {
    "gtzan": Schedule(learning_rate=5e-3),
    "giantsteps": Schedule(epochs=50),
    "magnatagatune": Schedule(epochs=50, patience=10, batch=128),
}


def schedule(task: str) -> Schedule:
    """Return a task's schedule; tasks that MARBLE does not know take that of EmoMusic."""
    return SCHEDULES.get(task, Schedule())


def train_marble(rows: TrainingRows, plan: Schedule, evaluate: Evaluate, *, seed: int) -> Trained:
    """Train the probe; `best_step` and `stop_step` of the answer count epochs."""
    inputs, targets = rows.inputs[False], rows.targets
    config, device = plan.config, targets.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        (hidden,), (_, rate) = config.hidden, config.rates
        model = nn.Sequential(
            nn.Linear(inputs.shape[1], hidden), nn.ReLU(), nn.Dropout(rate), nn.Linear(hidden, targets.shape[1])
        ).to(device)
        loss = {"multi": nn.BCEWithLogitsLoss(), "regression": nn.MSELoss()}.get(rows.answer, nn.CrossEntropyLoss())
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=FACTOR, patience=WAIT)

        def predict(x: Inputs) -> Float32[Tensor, "1 row output"]:
            with torch.no_grad():
                return model.eval()(x[False])[None]

        best, best_epoch, kept = -torch.inf, 0, [p.detach().clone() for p in model.parameters()]
        for epoch in range(1, plan.epochs + 1):
            model.train()
            for batch in torch.randperm(len(rows)).to(device).split(config.batch):
                optimizer.zero_grad()
                loss(model(inputs[batch]), targets[batch]).backward()
                optimizer.step()
            score = float(evaluate(predict, [config])[0])
            plateau.step(score)
            if score > best:
                best, best_epoch, kept = score, epoch, [p.detach().clone() for p in model.parameters()]
            if epoch - best_epoch >= plan.patience:
                break
    return Trained(tuple(kept), best, best_epoch, epoch)
