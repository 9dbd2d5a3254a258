"""Embedding on the CPU against its floor, the matrix products alone, and against the plain way.

    .venv/bin/python benchmarks/bench_embed.py --out benchmarks/results/embed-<machine>-<month>.json

The floor multiplies matrices of the encoder's shapes and does nothing else: no norms, no softmax, no GELU, no mel.
The plain way is eager, float32, all windows and both patch kinds in one batch, with nnAudio's form of the spectrogram
left out. Goal: no slower than the floor plus 15 %.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

import machine
from myna import recipe
from myna.embedder import Myna
from myna.model import ModelConfig, MynaModel
from myna.patch import PATCHES


def products(config: ModelConfig, *, tokens: int, windows: int, kind: str) -> Callable[[], None]:
    """Return a function that does one batch's matrix products of one patch kind."""
    rows, inner = windows * tokens, config.heads * config.head_dim
    shapes = [(config.dim, 3 * inner), (inner, config.dim), (config.dim, config.mlp_dim), (config.mlp_dim, config.dim)]
    # every layer has weights of its own, as in the encoder: they do not stay in the cache from one to the next
    layers = [(torch.randn(rows, a), torch.randn(b, a)) for _ in range(config.depth) for a, b in shapes]
    first = (torch.randn(rows, PATCHES[kind].values), torch.randn(config.dim, PATCHES[kind].values))
    query = torch.randn(windows * config.heads, tokens, config.head_dim)
    scores = torch.randn(windows * config.heads, tokens, tokens)

    def run() -> None:
        F.linear(*first)
        for x, weight in layers:
            F.linear(x, weight)
        for _ in range(config.depth):
            torch.bmm(query, query.transpose(1, 2))
            torch.bmm(scores, query)

    return run


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--recipe", default="hybrid")
    arguments.add_argument("--windows", type=int, default=32)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--out")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    config = recipe.get(options.recipe).model
    model = MynaModel(config)
    samples = np.random.default_rng(0).standard_normal((options.windows, config.segment_samples), np.float32) * 0.1
    ours = {p: Myna(model, device="cpu", precision=p) for p in ("fp32", "bf16")}
    plain = Myna(model, device="cpu", precision="fp32", batch=options.windows)
    mel = plain._mel(torch.from_numpy(samples))
    batch = ours["fp32"].batch
    floors = [products(config, tokens=grid.tokens, windows=batch, kind=kind) for kind, grid in config.grids().items()]

    def embed(model: Myna) -> Callable[[], None]:
        return lambda: [model.embed_windows(samples[i : i + batch]) for i in range(0, len(samples), batch)]

    def floor() -> None:
        for _ in range(0, len(samples), batch):
            for run in floors:
                run()

    def all_at_once() -> None:
        with torch.inference_mode():
            model.encode(mel)

    with torch.inference_mode():
        seconds = machine.side_by_side(
            {
                "floor: products alone": floor,
                "ours, fp32": embed(ours["fp32"]),
                "ours, bf16": embed(ours["bf16"]),
                "spectrograms alone": lambda: [ours["fp32"]._mel(torch.from_numpy(s[None])) for s in samples],
                "plain: all at once, no mel": all_at_once,
            },
            rounds=options.rounds,
        )
    base, audio_s = seconds["floor: products alone"], len(samples) * config.segment_samples / 16_000
    flops = sum(config.flops(kind, tokens=grid.tokens) for kind, grid in config.grids().items()) * len(samples)
    rows = [("what", "s", "against the floor", "GFLOP/s", "x real time")]
    rows += [
        (name, f"{s:.3f}", f"{s / base:.2f}", f"{flops / s / 1e9:.0f}", f"{audio_s / s:.0f}")
        for name, s in seconds.items()
    ]
    print(machine.table(rows))
    machine.write({**machine.describe(), "options": vars(options), "batch": batch, "seconds": seconds}, options.out)


if __name__ == "__main__":
    main()
