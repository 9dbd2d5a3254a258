"""Pre-training as one would write it from the paper at first: right, ordinary PyTorch, and what ours is held against.

One pickle a clip; crops by `random`; masks by one randperm a sample; all patches embedded, then 90 % of them dropped;
the whole square of similarities, with autograd; Adam as it comes. The network itself is shared with ours, weights too,
so that only the way differs.
"""

import copy
import pickle
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from myna.model import MynaModel, scale
from myna.patch import Grid
from myna.store import Store


def write_pickles(store: Store, folder: Path) -> list[Path]:
    """Write each track of a store, as it reads, to a pickle of its own: (band, frame) float32."""
    folder.mkdir()
    paths = [folder / f"{track:06d}.pkl" for track in range(len(store))]
    for track, path in enumerate(paths):
        path.write_bytes(pickle.dumps(np.ascontiguousarray(store.mel(track).T)))
    return paths


class PickledClips(Dataset):
    """Two random crops of a clip: (view, band, frame)."""

    def __init__(self, paths: list[Path], *, crop_frames: int) -> None:
        self.paths, self.crop_frames = paths, crop_frames

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        with open(self.paths[number], "rb") as file:
            mel = torch.from_numpy(pickle.load(file))
        starts = [random.randint(0, mel.shape[1] - self.crop_frames) for _ in range(2)]
        return torch.stack([mel[:, start : start + self.crop_frames] for start in starts])


def masks(views: int, *, tokens: int, visible: int) -> Tensor:
    """Draw which tokens stay, one sample after another: (view, visible)."""
    return torch.stack([torch.randperm(tokens)[:visible] for _ in range(views)])


def patches(crops: Tensor, grid: Grid) -> Tensor:
    """Cut crops (view, band, frame) into all their patches: (view, token, value)."""
    crops = crops[..., : grid.frames]
    tiles = crops.unfold(1, grid.patch.bands, grid.patch.bands).unfold(2, grid.patch.frames, grid.patch.frames)
    return tiles.transpose(-1, -2).flatten(3).flatten(1, 2)


def loss(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """Return equation 1 of the paper, from the full square of similarities."""
    z = F.normalize(torch.cat([first, second]), dim=1)
    similarity = z @ z.T / temperature
    batch, row = len(first), torch.arange(len(z))
    other = (row + batch) % len(z)
    positive = similarity[row, other]
    excluded = torch.eye(len(z), dtype=torch.bool)
    excluded[row, other] = True
    negatives = similarity.masked_fill(excluded, -torch.inf)
    return (negatives.logsumexp(1) - positive).mean()


class PlainStep(nn.Module):
    """Crops and masks become a gradient; `network` is a copy of the model that it is given."""

    def __init__(self, model: MynaModel, *, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = copy.deepcopy(model), temperature
        self.grids = model.config.grids()

    def project(self, kind: str, crops: Tensor, tokens: Tensor) -> Tensor:
        """Embed every patch, then keep the visible ones: (view, dim)."""
        net = self.network
        x = net.tokenizers[kind](scale(patches(crops, self.grids[kind]), net.config.amplitude))
        x = x + net.get_buffer(f"positions_{kind}")
        x = x.gather(1, tokens[..., None].expand(-1, -1, x.shape[2]))
        return net.projector(net.encoder(x).mean(dim=1))

    def forward(self, crops: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        """Add the gradient of one batch and return its loss; crops are (batch, view, band, frame), tokens by kind."""
        crops = crops.transpose(0, 1).flatten(0, 1)
        values = [loss(*self.project(kind, crops, kept).chunk(2), self.temperature) for kind, kept in tokens.items()]
        value = sum(values) / len(values)
        value.backward()
        return value.detach()
