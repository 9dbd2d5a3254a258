"""A name becomes a model: a folder, a file of the original release, or a repository of the Hugging Face Hub; and back.

The network is used here alone, and only for a Hub id (user/name) that is no path of this machine, or to push. Of a
repository only weights and their config are fetched, never code.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from myna.checkpoint import CONFIG_FILE, FORMAT, MODEL_FILE, Checkpoint, checkpoints, open_checkpoint, save_model
from myna.errors import CheckpointError, first_line
from myna.mae import build_model
from myna.model import ModelConfig, MynaModel
from myna.patch import Kind
from myna.release import FINAL_NORM, open_release
from myna.vit import parameter_count

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FORMS = (
    "a run folder, a model folder, a weights file of the original release (.pth, .bin or .safetensors), or a Hugging "
    "Face Hub id such as user/name"
)
CARD_FILE = "README.md"
LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
# the base of the HTTP client's own errors, whichever client this version of huggingface_hub is built on
_CLIENT_ERROR = HfHubHTTPError.__bases__[0]


def open_model(source: str | Path, *, patches: Kind | None = None, revision: str | None = None) -> Checkpoint:
    """Open whatever a model may be given as: see `FORMS`.

    A path of this machine comes first; only a string can be a Hub id, and only if no folder here has its first part as
    a name, so that a mistyped path is not asked for over the network. `revision` is a branch, tag or commit of the Hub.
    `patches` says which kind a release file with one kind has, if its name does not; other models are opened whole.
    """
    path = Path(source)
    if path.is_file():
        return open_release(path, patches=patches)
    if path.is_dir():
        return _open_folder(path, path.name, patches)
    if not isinstance(source, str) or not HUB_ID.fullmatch(source) or path.parent.is_dir():
        raise CheckpointError(f"There is no model at {source}: {FORMS} was wanted.")
    folder = fetch(source, revision=revision)
    found = _open_folder(folder, path.name, patches)
    return replace(found, about={**found.about, "hub": f"{source}@{folder.name}"})


def _open_folder(folder: Path, name: str, patches: Kind | None) -> Checkpoint:
    """Open a folder of ours, or else the release's weights in it."""
    files = [folder / file for file in weight_files(name) if (folder / file).is_file()]
    if not files or _is_ours(folder):
        return open_checkpoint(folder)
    return open_release(files[0], patches=patches, name=name)


def _is_ours(folder: Path) -> bool:
    """Look whether a folder is a myna model's, of any version: by its config, or else by the names of its weights.

    Others write a config.json too, and ours may be missing or damaged.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if isinstance(config, Mapping):
        return config.get("format") == FORMAT
    with suppress(OSError, SafetensorError), safe_open(folder / MODEL_FILE, "pt") as weights:
        if FINAL_NORM in weights.keys():  # noqa: SIM118 (it is no dict)
            return True
    return bool(checkpoints(folder))


def weight_files(name: str) -> tuple[str, ...]:
    """Return the names under which a repository may hold weights, in the order in which they are looked for."""
    return (MODEL_FILE, "pytorch_model.bin", f"{name}.pth")


def fetch(repo: str, *, revision: str | None = None) -> Path:
    """Fetch config and weights of a Hub repository; return the folder of the cache that holds them.

    Without a connection the cache serves what it has. Raises CheckpointError if there is no such repository or
    revision, if it has no weights that can be read, or if the Hub cannot be reached.
    """
    files, out_of_reach = weight_files(repo.rpartition("/")[2]), False
    with _plainly(repo, revision):
        for file in (CONFIG_FILE, *files):
            try:
                place = Path(hf_hub_download(repo, file, revision=revision, local_files_only=out_of_reach))
            except LocalEntryNotFoundError:
                out_of_reach = True  # ask the cache alone for the rest
            except EntryNotFoundError:
                continue
            else:
                if file != CONFIG_FILE:
                    return place.parent
                revision = place.parent.name  # weights of the same commit, even if somebody pushes in between
    if out_of_reach:
        raise CheckpointError(
            f"There is no model at {repo}: it is no path here, the Hugging Face Hub cannot be reached, and its cache "
            "on this machine does not have it: check the connection, or name a folder or file."
        )
    raise CheckpointError(f"The Hub repository {repo} has no weights that myna reads: {', '.join(files)}.")


@contextmanager
def _plainly(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the Hub's errors into one sentence."""
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"The Hub repository {repo} asks for consent: give it on its page, then log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no model at {repo}: it is no path here, and the Hub has no such repository, or a private one: "
            f"check the name, or log in with `hf auth login`. {FORMS[0].upper()}{FORMS[1:]} was wanted."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"The Hub repository {repo} has no revision {revision!r}.") from error
    except HFValidationError as error:
        raise CheckpointError(f"{repo} cannot be the name of a Hub repository: {first_line(error)}.") from error
    except (_CLIENT_ERROR, OSError) as error:
        raise CheckpointError(
            f"The Hugging Face Hub could not serve {repo} ({type(error).__name__}: {first_line(error)}): check the "
            "connection, and that you may do this there (`hf auth whoami`)."
        ) from error


def push(
    model: MynaModel,
    repo: str,
    *,
    card: str,
    about: dict[str, Any] | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Put a model's weights, config and card into a Hub repository, made if there is none; return its address."""
    if not HUB_ID.fullmatch(repo):
        raise CheckpointError(f"{repo!r} is no Hub id: user/name was wanted.")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        save_model(model, folder, about=about)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        with _plainly(repo):
            address = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Myna model")
    return str(address)


def card(
    name: str,
    config: ModelConfig,
    *,
    hash: str = "",
    about: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    results: Mapping[str, Mapping[str, float]] | None = None,
    data: str | None = None,
    licence: str | None = None,
) -> str:
    """Write the model card of a Hub repository: what the model is, what it learned from, how well, and its licence.

    `about` is what the model folder says of its origin, `metrics` a line of a run's metrics, `results` the
    scores of each task, `data` the training music in words. Nothing is claimed that was not given. Raises
    CheckpointError if `licence` is no licence id of the Hub, such as mit or cc-by-4.0.
    """
    if licence is not None and not LICENCE.fullmatch(licence):
        raise CheckpointError(f"{licence!r} is no licence id of the Hub: one such as mit or cc-by-4.0 was wanted.")
    head = ["library_name: myna", "pipeline_tag: feature-extraction"]
    head += [f"license: {licence}"] * (licence is not None)
    head += ["tags:", *(f"- {tag}" for tag in ("music", "audio", "self-supervised", "myna", "arxiv:2502.12511"))]
    parts = [
        "\n".join(["---", *head, "---"]),
        f"# {name}",
        "A model of music: windows of audio in, vectors out. Trained "
        + ("as a masked auto-encoder, for comparison with" if config.decoder_depth else "by")
        + " masking-based contrastive learning (Myna, [arXiv 2502.12511](https://arxiv.org/abs/2502.12511)).",
        f'```python\nfrom myna import Myna  # pip install myna-music\n\nmodel = Myna.from_pretrained("{name}")\n'
        f'vectors = model.encode(["a.mp3", "b.flac"])  # (2, {config.dim * len(config.patches)}) float32\n```',
        "## Model\n" + _table(_model_rows(config, hash)),
        "## Training\n" + _training(config, about or {}, metrics, data),
    ]
    if results:
        rows = {f"{task}, {metric}": f"{value:.4g}" for task, of in results.items() for metric, value in of.items()}
        parts.append("## Results\n" + _table(rows))
    parts.append(
        "## Licence\n"
        + (f"These weights: {licence}." if licence else "None was stated for these weights: ask whoever shares them.")
        + " The code of myna, which reads them, is under the MIT licence."
    )
    return "\n\n".join(parts) + "\n"


def read_results(path: Path) -> dict[str, dict[str, float]]:
    """Read scores for a card from a JSON file: {"task": {"metric": 0.78}}."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {task: {metric: float(value) for metric, value in of.items()} for task, of in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f'{path} cannot be read as results ({first_line(error)}): JSON such as {{"gtzan": {{"accuracy": 0.78}}}} '
            "was wanted."
        ) from error


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _model_rows(config: ModelConfig, hash: str) -> dict[str, str]:
    front, grids = config.front_end, config.grids()
    with torch.device("meta"):
        millions = parameter_count(build_model(config)) / 1e6
    rows = {
        "patches": ", ".join(
            f"{kind} ({g.patch.bands} bands x {g.patch.frames} frames, {g.tokens} tokens)" for kind, g in grids.items()
        ),
        "encoder": f"ViT, width {config.dim}, depth {config.depth}, {config.heads} heads, {millions:.1f} M parameters",
        "window": f"{config.segment_samples} samples at {front.rate_hz} Hz, mono",
        "front end": f"{front.bands} mel bands, FFT {front.n_fft}, hop {front.hop_samples}",
        "amplitude": config.amplitude,
        "vector": f"{config.dim * len(config.patches)} numbers",
    }
    return {**rows, "hash": hash} if hash else rows


def initial_weights(about: Mapping[str, Any]) -> str:
    """Say whose weights a training began from; nothing if they were drawn from its seed."""
    if not (found := about.get("init_from")):
        return ""
    release = f", which descends from {found['origin']} ({found.get('file', 'a file')})" if "origin" in found else ""
    return f"model {found['hash']}{release}"


def _training(
    config: ModelConfig, about: Mapping[str, Any], metrics: Mapping[str, float] | None, data: str | None
) -> str:
    """Tell what is known of a model's origin as a table, or that nothing is."""
    rows = {"data": data} if data else {}
    if origin := about.get("origin"):
        rows["origin"] = f"weights of {origin}, converted from {about.get('file', 'a file')}"
        if aside := about.get("left_aside"):
            rows["left aside"] = ", ".join(aside)
    if initial := initial_weights(about):
        rows["initial weights"] = initial
    if "store" in about:
        rows["content of the data"] = f"hash {about['store'][:16]}"
    if about.get("examples"):
        rows["length"] = f"{about['examples']:,} examples in {about.get('step', 0):,} steps"
    settings = about.get("settings", {})
    if settings:
        rows["recipe"] = settings["recipe"]
    for part in ("train", "view") if config.decoder_depth else ("train", "loss", "view"):
        wanted = ("batch", "learning_rate", "weight_decay", "seed", "precision", "loss", "temperature", "mask_ratio")
        rows |= {name.replace("_", " "): str(value) for name, value in settings.get(part, {}).items() if name in wanted}
    for metric, value in (metrics or {}).items():
        if metric.startswith(("loss", "top1", "explained")):
            rows[f"last {metric.replace('_', ' ').replace('top1', 'top-1 retrieval')}"] = f"{value:.4g}"
    return _table(rows) if rows else "What it was trained on was not stated."
