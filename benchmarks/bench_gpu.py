"""Pre-training on one GPU: rates, attention at 5 tokens, the step against plain forms, its stages, batches that fit.

    python benchmarks/bench_gpu.py --out benchmarks/results/gpu-<name>-<month>.json      # under 10 minutes

Needs what training needs and no more: no audio library. `--device cpu --batch 64` shows that it runs at all.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import machine
from myna import recipe
from myna.contrast import contrastive
from myna.device import peak_flops
from myna.loss import LossConfig
from myna.model import MynaModel
from myna.patch import PATCHES
from myna.run import Settings
from myna.step import Step
from myna.store import Store
from myna.train import Trainer
from myna.view import VIEWS, DeviceRows, HostRows, Loader
from myna.vit import ATTENTION
from synthetic import synthetic_store


def seconds(work: Callable[[], object], device: torch.device, *, rounds: int = 12) -> float:
    """Return the median time of a piece of work, the device's queue included; infinite if it does not fit."""
    try:
        for _ in range(3):
            work()
        times = []
        for _ in range(rounds):
            wait(device)
            begin = time.perf_counter()
            work()
            wait(device)
            times.append(time.perf_counter() - begin)
        return float(np.median(times))
    except torch.OutOfMemoryError:
        return math.inf


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def products(settings: Settings, batch: int, device: torch.device) -> dict[str, float]:
    """Return TFLOP/s of the encoder's four products at the batch's number of tokens, bf16."""
    model, rows, found = settings.model, batch * VIEWS * 5, {}
    inner = model.heads * model.head_dim
    shapes = {"qkv": (model.dim, 3 * inner), "out": (inner, model.dim)}
    shapes |= {"up": (model.dim, model.mlp_dim), "down": (model.mlp_dim, model.dim)}
    for name, (a, b) in shapes.items():
        x = torch.randn(rows, a, device=device, dtype=torch.bfloat16)
        w = torch.randn(b, a, device=device, dtype=torch.bfloat16)
        found[name] = 2 * rows * a * b / seconds(lambda x=x, w=w: F.linear(x, w), device) / 1e12
    return found


def attention(settings: Settings, batch: int, device: torch.device, *, compiled: bool) -> dict[str, float]:
    """Return milliseconds of one layer's attention at 5 tokens, forward and backward, of each form."""
    shape = (batch * VIEWS, 5, 3, settings.model.heads, settings.model.head_dim)
    qkv = torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
    found = {}
    for name, form in ATTENTION.items():
        forms = {name: form} | ({f"{name}, compiled": torch.compile(form, dynamic=False)} if compiled else {})
        for told, attend in forms.items():
            run = lambda attend=attend: attend(*qkv.permute(2, 0, 3, 1, 4)).sum().backward()  # noqa: E731
            found[told] = 1e3 * seconds(run, device)
    return found


def plain_step(model: MynaModel, views: dict[str, Any], *, autocast: bool) -> None:
    """Take a step in the ordinary way: embed all 48 patches, then keep 5; a full square of similarities; eager."""
    for kind, view in views.items():
        device, batch = view.patches.device, view.patches.shape[1]
        crops = torch.rand(VIEWS * batch, 48, PATCHES[kind].values, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            x, _ = model._tokens(kind, crops, None, None)
            x = x.gather(1, view.tokens.flatten(0, 1)[..., None].expand(-1, -1, x.shape[2]))
            z = model.projector(model.encoder(x).mean(1)).float()
        z = F.normalize(z, dim=1)
        s = z @ z.T / 0.1
        own = torch.eye(len(z), dtype=torch.bool, device=device)
        positive = own.roll(batch, 1)
        loss = (s.masked_fill(own | positive, -torch.inf).logsumexp(1) - s[positive]).mean()
        (loss / len(views)).backward()


def steps(store: Store, settings: Settings, device: torch.device, modes: list[str]) -> dict[str, float]:
    """Return seconds a step: plain forms, and ours eager and in every mode of the compiler."""
    batch = settings.train.batch
    loader = Loader(
        store, settings.view, settings.model.grids(), batch=batch, seed=0, rows=DeviceRows(store.files, device)
    )
    views, found = loader(0, device), {}
    forms: dict[str, Callable[[], object]] = {}
    model = MynaModel(settings.model).to(device)
    forms["plain, fp32"] = lambda: plain_step(model, views, autocast=False)
    forms["plain, autocast"] = lambda: plain_step(model, views, autocast=True)
    for how in ATTENTION:
        for mode in modes:
            ours = MynaModel(settings.model).to(device)
            ours.encoder.attend_by(how)
            step = Step(ours, LossConfig(), precision="bf16", together=True, compile=mode)
            optimizer = torch.optim.Adam(ours.parameters(), fused=True)

            def run(step: Step = step, optimizer: torch.optim.Adam = optimizer) -> None:
                optimizer.zero_grad()
                step(views)
                optimizer.step()

            forms[f"ours, {how}, compile {mode}"] = run
    for name, form in forms.items():
        found[name] = seconds(form, device)
        model.zero_grad(set_to_none=True)
        print(f"  {name:<40}{1e3 * found[name]:10.2f} ms {batch / found[name]:12,.0f} clips/s", flush=True)
    z = torch.randn(VIEWS, batch, settings.model.projector_dim, device=device, requires_grad=True)
    found["loss alone"] = seconds(lambda: contrastive(*z)[0].backward(), device)
    found["data alone, device"] = seconds(lambda: loader(1, device), device)
    host = Loader(
        store, settings.view, settings.model.grids(), batch=batch, seed=0, rows=HostRows(store.files, threads=4)
    )
    found["data alone, host"] = seconds(lambda: host(1, device), device)
    return found


def whole_loop(store: Store, settings: Settings, device: torch.device, folder: Path) -> dict[str, float]:
    """Run the trainer itself, from store to log, and return its last row."""
    rows: list[dict[str, float]] = []
    Trainer(store, folder, settings, device=device).train(on_log=rows.append)
    return rows[-1]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--recipe", default="base")
    arguments.add_argument("--batch", type=int, default=4096)
    arguments.add_argument("--batches", type=int, nargs="*", default=[256, 1024, 4096, 16384, 32768, 65536])
    arguments.add_argument("--modes", nargs="*", default=["off", "default", "reduce-overhead"])
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--out")
    options = arguments.parse_args()
    device = torch.device(options.device)
    base = recipe.override(recipe.get(options.recipe), {"batch": options.batch, "precision": "bf16"})
    result: dict[str, Any] = {**machine.describe(options.device), "options": vars(options)}
    with tempfile.TemporaryDirectory() as folder:
        store = synthetic_store(Path(folder) / "store", max(options.batch, *options.batches, 1024))
        result["products_tflops"] = products(base, options.batch, device)
        result["attention_ms"] = attention(base, options.batch, device, compiled="default" in options.modes)
        for name in ("products_tflops", "attention_ms"):
            print(name, {key: round(value, 3) for key, value in result[name].items()}, flush=True)
        result["step_s"] = steps(store, base, device, options.modes)
        per_clip = 6 * sum(base.model.flops(kind, tokens=5) for kind in base.model.patches)
        curve = []
        for batch in options.batches:
            sized = recipe.override(base, {"batch": batch, "steps": options.steps, "log_every": options.steps // 2})
            row = whole_loop(store, sized, device, Path(folder) / f"run-{batch}")
            peak = peak_flops(device, "bf16")
            share = row["clips_per_s"] * per_clip / peak if peak else math.nan
            curve.append({"batch": batch, "clips_per_s": row["clips_per_s"], "share_of_peak": share})
        result["curve"] = curve
    rows = [("step", "ms", "clips/s")]
    rows += [(name, f"{1e3 * s:.2f}", f"{options.batch / s:,.0f}") for name, s in result["step_s"].items()]
    print(machine.table(rows))
    rows = [("whole loop, batch", "clips/s", "share of peak", "411 M clips take")]
    rows += [
        (
            str(c["batch"]),
            f"{c['clips_per_s']:,.0f}",
            f"{c['share_of_peak']:.1%}",
            f"{411e6 / c['clips_per_s'] / 60:.0f} min",
        )
        for c in curve
    ]
    print(machine.table(rows))
    machine.write(result, options.out)


if __name__ == "__main__":
    main()
