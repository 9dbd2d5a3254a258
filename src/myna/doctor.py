"""What this machine can do: versions, devices, codecs, and a speed check of about three seconds."""

import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import av
import numpy as np
import torch

from myna.device import cores, pick_device, pick_precision
from myna.embedder import Myna
from myna.mel import MelSpectrogram
from myna.model import ModelConfig, MynaModel

PACKAGES = ("myna-music", "torch", "av", "soxr", "numpy", "pyarrow", "safetensors")
EXTRAS = {
    "scikit-learn": "demo, evaluate",
    "scipy": "evaluate",
    "mir_eval": "demo, evaluate",
    "openTSNE": "demo",
    "transformers": "hf",
    "tensorboard": "tensorboard",
    "onnxruntime": "onnx",
}
CODECS = {
    "MP3": "mp3float",
    "FLAC": "flac",
    "Vorbis": "vorbis",
    "Opus": "opus",
    "AAC": "aac",
    "ALAC": "alac",
    "WMA": "wmav2",
    "WAV": "pcm_s16le",
    "AIFF": "pcm_s16be",
}


def examine() -> dict[str, str]:
    """Return everything worth knowing when something does not work, or is slow."""
    device = pick_device()
    return {
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"{cores()} cores, {torch.get_num_threads()} threads",
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "extras": ", ".join(f"{name} {_version(name)} [{extra}]" for name, extra in EXTRAS.items()),
        "decoders": ", ".join(
            f"{name} {'yes' if codec in av.codecs_available else 'NO'}" for name, codec in CODECS.items()
        ),
        "device": _device(device),
        "precision": f"{pick_precision('auto', device)} (auto)",
        **_speeds(device),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    free, total = torch.cuda.mem_get_info()
    return f"{torch.cuda.get_device_name()}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"


def _speeds(device: torch.device) -> dict[str, str]:
    a, b = torch.randn(4096, 384, device=device), torch.randn(384, 1536, device=device)
    operations, minute = 2 * 4096 * 384 * 1536, torch.randn(1, 60 * 16_000)
    low_a, low_b, transform = a.bfloat16(), b.bfloat16(), MelSpectrogram()
    myna = Myna(MynaModel(ModelConfig()))
    windows = np.zeros((myna.batch, myna.window_samples), np.float32)
    with torch.inference_mode():
        rates = [operations / _seconds(lambda x=x, y=y: x @ y, device) / 1e9 for x, y in ((a, b), (low_a, low_b))]
        mel = 60 / _seconds(lambda: transform(minute), torch.device("cpu"))
    embed = myna.batch / _seconds(lambda: myna.embed_windows(windows), device)
    return {
        "products": f"{rates[0]:,.0f} GFLOP/s in float32, {rates[1]:,.0f} in bfloat16",
        "mel": f"{mel:,.0f}x real time on one process",
        "embedding": f"{embed:,.1f} windows/s with ViT-S: {embed * myna.window_samples / myna.rate_hz:,.0f}x real time",
    }


def _seconds(work: Callable[[], object], device: torch.device, *, budget_s: float = 0.7) -> float:
    """Return the median time of a piece of work, repeated for a moment."""
    work()
    times: list[float] = []
    while sum(times) < budget_s and len(times) < 200:
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))
