"""A model and what it is used for: embed, convert, push, export."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from myna.about import learned
from myna.checkpoint import Checkpoint, export_model
from myna.cli.base import Out, app, err, extra, some_failed
from myna.device import Precision
from myna.embedder import Myna
from myna.errors import ConfigError
from myna.hub import card, open_model, read_results
from myna.hub import push as push_model
from myna.library import embed_library
from myna.patch import Kind
from myna.progress import Bar
from myna.track import find_tracks


@app.command
def embed(
    paths: list[str],
    /,
    *,
    model: Annotated[str, Parameter(name=["--model", "-m"])],
    out: Out,
    patches: Kind | None = None,
    windows: bool = False,
    hop: float | None = None,
    window_samples: int | None = None,
    whole_track: bool = False,
    device: str | None = None,
    precision: Precision = "auto",
    batch: int | None = None,
    workers: int | None = None,
) -> int:
    """Turn music into vectors: one row a track in a Parquet file. Files that are unchanged are not embedded again.

    Parameters
    ----------
    paths
        Audio files, folders, or manifests.
    model
        A run folder, a model folder, a weights file of the original release, or a Hub id (user/name).
    out
        The Parquet file to make or to bring up to date.
    patches
        Of a hybrid, only this half; both side by side by default. Of a release file, the kind that it has.
    windows
        One row a window, with its start, instead of one a track.
    hop
        Seconds from one window to the next; by default a window's length.
    window_samples
        Length of a window at 16 kHz; by default the segment that the model was trained on.
    whole_track
        A track goes through in one pass; only one longer than a window (10 minutes unless given) is cut, evenly.
    device
        cuda, mps or cpu; the best there is by default.
    precision
        fp32, bf16, or auto: whichever is faster here.
    batch
        Windows embedded at once.
    workers
        Threads that decode.
    """
    tracks = find_tracks(paths)
    myna = Myna.from_pretrained(
        model,
        patches=patches,
        window_samples=window_samples,
        whole=whole_track,
        device=device,
        precision=precision,
        batch=batch,
    )
    with Bar("embed", "tracks") as bar:
        summary = embed_library(
            myna,
            tracks,
            out,
            windows=windows,
            hop_s=hop,
            workers=workers,
            on_track=lambda s: bar(
                s.new + s.reused + len(s.failed), s.tracks, f"{s.decoded_s / 3600:.1f} h, {len(s.failed)} failed"
            ),
        )
    err.print(
        f"{out}: {summary.tracks} tracks of {myna.dim} numbers; {summary.new} new, {summary.reused} as they were, "
        f"{summary.padded} shorter than a window, {len(summary.failed)} failed"
        + (f"; {summary.others} others were in it and stay" if summary.others else "")
    )
    return some_failed(len(summary.failed), out)


@app.command
def convert(source: str, /, *, out: Out, patches: Kind | None = None, revision: str | None = None) -> int:
    """Write a model folder from weights of the original release (or from anything else that holds a model).

    Parameters
    ----------
    source
        A .pth, .bin or .safetensors file, a Hub id (user/name), a run or a model folder.
    out
        The model folder to make.
    patches
        Which kind of patches a release file with one kind has; by default its name says.
    revision
        Branch, tag or commit of the Hub.
    """
    found = _whole(source, patches, revision)
    export_model(found.model(), out, about=found.about)
    for name in found.about.get("left_aside", []):
        err.print(f"Left aside, as vectors do not need it: {name}")
    err.print(f"{out} holds the {' and '.join(found.config.patches)} model of {source}. Look at it: myna info {out}")
    return 0


@app.command
def push(
    source: str,
    repo: str,
    /,
    *,
    licence: Annotated[str | None, Parameter(name=["--licence", "--license"])] = None,
    data: str | None = None,
    results: Path | None = None,
    patches: Kind | None = None,
    private: bool = False,
) -> int:
    """Put a model with its card into a repository of the Hugging Face Hub; log in first with `hf auth login`.

    Parameters
    ----------
    source
        A run folder, a model folder, or a weights file.
    repo
        The Hub id, user/name; made if there is none.
    licence
        The Hub's id of the licence that you give the weights, such as mit or cc-by-4.0.
    data
        The training music in words; for a run whose store is at hand, its hours and tracks by default.
    results
        A JSON file of scores for the card: {"task": {"metric": 0.78}}.
    patches
        Which kind of patches a release file with one kind has; by default its name says.
    private
        Make the repository private.
    """
    found = _whole(source, patches)
    told = {**learned(found), **({"data": data} if data else {})}
    scores = read_results(results) if results else None
    text = card(repo, found.config, hash=found.hash, about=found.about, results=scores, licence=licence, **told)
    print(push_model(found.model(), repo, card=text, about=found.about, private=private))
    return 0


@app.command
def export(
    source: str,
    /,
    *,
    out: Out,
    patches: Kind | None = None,
    window_samples: int | None = None,
) -> int:
    """Write a model as an ONNX file, and check it against PyTorch: mel power (batch, frame, band) in, vectors out.

    Parameters
    ----------
    source
        A run folder, a model folder, a weights file of the original release, or a Hub id (user/name).
    out
        The .onnx file to write.
    patches
        Of a hybrid, only this half. Of a release file, the kind that it has.
    window_samples
        Length of a window at 16 kHz; by default the segment that the model was trained on.
    """
    found = open_model(source, patches=patches)
    difference = extra("export", "onnx").export(
        found.model(), out, patches=patches, window_samples=window_samples, hash=found.hash
    )
    err.print(f"{out} is written; onnxruntime's vectors differ from PyTorch's by {difference:.0e} of their spread.")
    return 0


def _whole(source: str, patches: Kind | None, revision: str | None = None) -> Checkpoint:
    """Open a model that is to be written elsewhere, whole: a kind of patches that is named must be its only one."""
    found = open_model(source, patches=patches, revision=revision)
    if patches and found.config.patches != (patches,):
        raise ConfigError(
            f"{source} has {' and '.join(found.config.patches)} patches, and is kept whole: leave out --patches here, "
            "and choose a half with it when you use the model."
        )
    return found
