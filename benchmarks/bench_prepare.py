"""How fast audio becomes a mel store on one core, by codec, and where the time goes; and our mel beside nnAudio's.

    python benchmarks/bench_prepare.py [--seconds 120] [--repeat 3] [--out results.json]

Everything is measured in CPU time of one thread, the best of several runs, on files in the page cache.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import soxr
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from myna.audio import BLOCK_S, RATE_HZ, AudioStream
from myna.mel import FrontEnd, MelSpectrogram, MelStream
from myna.part import Part, Writer
from myna.prepare import _ingested, _job
from myna.track import content_hash
from sounds import music, write_audio

CODECS = ["mp3", "flac", "ogg", "opus", "m4a", "alac", "wma", "wav", "aiff"]


def best_s(work, repeat):
    """Return the least CPU time of several runs."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def decode(path):
    """Only what FFmpeg does: every packet read and decoded, nothing taken out."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            packet.decode()


def resample(mono, rate_hz):
    stream = soxr.ResampleStream(rate_hz, RATE_HZ, 1, quality="HQ")
    step = BLOCK_S * rate_hz
    for start in range(0, len(mono), step):
        stream.resample_chunk(mono[start : start + step], last=start + step >= len(mono))


def transform(blocks, mel):
    stream = MelStream(transform=mel)
    return [stream.push(block) for block in blocks] + [stream.finish()]


def one_codec(name, folder, seconds, repeat):
    """Return seconds of CPU for each stage, and times real time of the whole."""
    rate_hz = 48_000 if name == "opus" else 44_100
    path = write_audio(folder / name, np.tile(music(20, rate_hz), (seconds // 20, 1)), rate_hz, format=name)
    mel, part = MelSpectrogram(), Part(folder / f"{name}.store", FrontEnd())
    part.begin([])
    writer, job = Writer(part, 0), _job(path)
    with AudioStream(path) as stream:
        blocks = list(stream)
    mono = np.random.default_rng(0).standard_normal(seconds * rate_hz).astype(np.float32)
    mels = transform(blocks, mel)

    def write():
        for frames in mels:
            writer.append(frames)
        writer.commit(job.row())

    stages = {
        "decode": best_s(lambda: decode(path), repeat),
        "resample": best_s(lambda: resample(mono, rate_hz), repeat),
        "mel": best_s(lambda: transform(blocks, mel), repeat),
        "write": best_s(write, repeat),
    }
    read_s = best_s(lambda: [None for _ in _blocks(path)], repeat)
    stages["join"] = max(0.0, read_s - stages["decode"] - stages["resample"])  # queue, mean of channels, hash
    whole_s = best_s(lambda: writer.commit(_ingested(job, writer, mel, 1)), repeat)
    hash_s = best_s(lambda: content_hash(path), repeat)
    return {
        "codec": name,
        "times_real_time": seconds / whole_s,
        "hash_only_times_real_time": seconds / hash_s,
        "ms_per_second_of_audio": {stage: 1000 * spent / seconds for stage, spent in stages.items()},
    }


def _blocks(path):
    with AudioStream(path) as stream:
        yield from stream


def mel_beside_nnaudio(repeat):
    """Return milliseconds for ten seconds of audio, each of the two in turn so that both see the same machine."""
    from nnAudio.features.mel import MelSpectrogram as NnAudioMel

    clip = torch.randn(1, 10 * RATE_HZ)
    rivals = {"ours": MelSpectrogram(), "nnAudio": NnAudioMel(sr=RATE_HZ, verbose=False)}
    spent = {name: [] for name in rivals}
    with torch.inference_mode():
        for _ in range(5 * repeat):
            for name, rival in rivals.items():
                spent[name].append(best_s(lambda rival=rival: rival(clip), 3))
    told = {f"{name}_ms": 1000 * min(times) for name, times in spent.items()}
    return told | {"ratio": told["nnAudio_ms"] / told["ours_ms"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=120, help="length of the test files")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    stages = ["decode", "join", "resample", "mel", "write"]
    print(
        f"{'codec':6} {'x real time':>12} {'hash only':>10}   ms of CPU a second of audio: "
        + " ".join(f"{stage:>9}" for stage in stages)
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in CODECS:
            rows.append(one_codec(name, Path(folder), given.seconds, given.repeat))
            spent = rows[-1]["ms_per_second_of_audio"]
            line = " ".join(f"{spent[stage]:9.3f}" for stage in stages)
            print(
                f"{name:6} {rows[-1]['times_real_time']:12.0f} {rows[-1]['hash_only_times_real_time']:10.0f}"
                f"{'':32}{line}"
            )
    mel = mel_beside_nnaudio(given.repeat)
    print(f"mel of 10 s: {mel['ours_ms']:.2f} ms, nnAudio {mel['nnAudio_ms']:.1f} ms, {mel['ratio']:.1f} times faster")
    if given.out:
        machine = {"cpu": _cpu(), "python": platform.python_version(), "torch": torch.__version__, "av": av.__version__}
        given.out.write_text(json.dumps({"machine": machine, "codecs": rows, "mel": mel}, indent=2) + "\n")


def _cpu():
    about = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in about.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
