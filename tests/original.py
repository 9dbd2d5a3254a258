"""The original release's network, built anew from what its files hold: same state-dict keys, nothing shared with ours.

Patches by einops, positions by a function of its own in float64, attention spelled out, everything band-major.
"""

import torch
from einops import rearrange
from nnAudio.features.mel import MelSpectrogram
from torch import Tensor, nn

SIZES = {"square": (16, 16), "vertical": (128, 2)}


def table(rows: int, columns: int, dim: int) -> Tensor:
    """[sin(x w), cos(x w), sin(y w), cos(y w)] for the token at row y, column x, row by row."""
    w = torch.tensor([10_000.0 ** (-k / (dim / 4 - 1)) for k in range(dim // 4)], dtype=torch.float64)
    of = [
        torch.cat([(x * w).sin(), (x * w).cos(), (y * w).sin(), (y * w).cos()])
        for y in range(rows)
        for x in range(columns)
    ]
    return torch.stack(of).float()


class Cut(nn.Module):
    def __init__(self, kind: str):
        super().__init__()
        self.bands, self.frames = SIZES[kind]

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, "n (y p) (x q) -> n (y x) (p q)", p=self.bands, q=self.frames)


def embedding(kind: str, dim: int) -> nn.Sequential:
    bands, frames = SIZES[kind]
    return nn.Sequential(Cut(kind), nn.LayerNorm(bands * frames), nn.Linear(bands * frames, dim), nn.LayerNorm(dim))


class Attend(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * 64 * heads, bias=False)
        self.to_out = nn.Linear(64 * heads, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(t, "n t (h d) -> n h t d", h=self.heads) for t in self.to_qkv(self.norm(x)).chunk(3, -1))
        weights = torch.softmax(torch.einsum("nhid,nhjd->nhij", q, k) / 8, dim=-1)  # 8 is the root of 64
        return self.to_out(rearrange(torch.einsum("nhij,nhjd->nhid", weights, v), "n h t d -> n t (h d)"))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Transformer(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(nn.ModuleList([Attend(dim, heads), Mlp(dim, hidden)]) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for attend, mlp in self.layers:
            x = x + attend(x)
            x = x + mlp(x)
        return self.norm(x)


class Original(nn.Module):
    """`kind` is square, vertical or hybrid. Weights are random, norms and biases too, so that none can be swapped."""

    def __init__(self, kind: str, *, dim=384, depth=2, heads=6, hidden=1536, outputs=50, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.kind, self.dim = kind, dim
        self.to_patch_embedding = embedding("square" if kind == "hybrid" else kind, dim)
        if kind == "hybrid":
            self.to_patch_embedding_b = embedding("vertical", dim)
        self.transformer = Transformer(dim, depth, heads, hidden)
        self.linear_head = nn.Linear(dim, outputs)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 1:
                    parameter += 0.2 * torch.randn_like(parameter)

    def _half(self, mel: Tensor, tokens: nn.Sequential) -> Tensor:
        cut = tokens[0]
        rows, columns = mel.shape[1] // cut.bands, mel.shape[2] // cut.frames
        return self.transformer(tokens(mel) + table(rows, columns, self.dim)).mean(dim=1)

    @torch.no_grad()
    def forward(self, mel: Tensor) -> Tensor:
        """Embed (batch, band, frame) power; a hybrid's two halves side by side, square first."""
        first = self._half(mel, self.to_patch_embedding)
        return torch.cat([first, self._half(mel, self.to_patch_embedding_b)], -1) if self.kind == "hybrid" else first

    def of_samples(self, samples: Tensor) -> Tensor:
        """Embed (batch, samples) at 16 kHz by nnAudio's spectrogram, floored to whole patches of the first kind."""
        mel = MelSpectrogram(sr=16_000, n_mels=128, verbose=False)(samples)
        width = self.to_patch_embedding[0].frames
        return self(mel[:, :, : mel.shape[2] // width * width])
