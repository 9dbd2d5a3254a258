"""(store, seed, step) becomes a batch: two views of each clip, their visible patches and nothing else.

The mask is drawn before anything is read, so a view costs the few patches that it keeps (section 3.2 and Algorithm 1
of the paper, in the other order). Nothing here depends on workers, ranks, or what was drawn before.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from myna import mask, noise
from myna.errors import StoreError
from myna.pair import VIEWS, Pair, starts
from myna.patch import Grid, Kind, patch_of, whole_frames
from myna.store import Store, expand

# What a random number is for: one stream each, so that no two draws share numbers.
_ORDER, _BATCHES, _CLIPS, _SLACK, _START, _MASK = range(6)
Place = Literal["auto", "device", "host"]
LONGEST_S = 1e6  # twelve days: no track is longer


class ViewConfig(BaseModel):
    """How clips are cut from tracks, and views from clips."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    clip_seconds: float = Field(
        10.0, ge=0, le=LONGEST_S, description="length of a training item, at least a segment; 0 takes whole tracks"
    )
    pair: Pair = Field("clip", description="a clip's two segments: clip (anywhere in it), near, or segment (the same)")
    pair_seconds: float = Field(3.0, ge=0, le=LONGEST_S, description="how far apart near segments begin at most")
    mask_ratio: float = Field(0.9, ge=0, lt=1, description="share of the tokens of a view that is dropped")
    mask_policy: mask.Policy = Field(
        "uniform", description="uniform, time, frequency, blocks, gaussian, or complement (with pair segment)"
    )
    mask_sigma: float = Field(0.2, gt=0, description="width of the gaussian policy, as a share of the segment's sides")

    @field_validator("mask_policy")
    @classmethod
    def _one_segment(cls, value: mask.Policy, info: Any) -> mask.Policy:
        if value == "complement" and info.data.get("pair") != "segment":
            raise ValueError("two views share no patch of one segment only: take pair segment")
        return value


class Clips:
    """The training items of a store: every track cut into clips of `clip_seconds`, end to end; 0 takes whole tracks.

    A clip is at least as long as a crop, `crop_frames`.
    What a track has beyond whole clips is not lost: each epoch shifts the track's clips by a random part of it.
    """

    def __init__(
        self, store: Store, *, clip_seconds: float, crop_frames: int, device: torch.device | str = "cpu"
    ) -> None:
        self.frame_rate_hz = store.front_end.frame_rate_hz
        # 1e-9: a product must not fall below the whole number of frames that it means
        wanted = math.floor(clip_seconds * self.frame_rate_hz + 1e-9)
        usable = np.flatnonzero(store.frames >= crop_frames)
        if not len(usable):
            found = f"the longest has {store.frames.max()}" if len(store.frames) else "it has no tracks"
            raise StoreError(
                f"Every track in {store.path} is shorter than the {crop_frames} frames of one segment ({found}): "
                "prepare longer music, or take a shorter segment."
            )
        self.device = torch.device(device)
        frames = torch.from_numpy(store.frames[usable]).to(device)
        length = frames if clip_seconds == 0 else frames.clamp(max=max(wanted, crop_frames))
        count = frames // length
        self.tracks = len(usable)
        self.track = torch.arange(self.tracks, device=device).repeat_interleave(count)  # clip → track
        first = torch.cumsum(count, 0) - count
        self.number = (
            torch.arange(len(self.track), device=device) - first[self.track]
        )  # clip → 0, 1, ... inside its track
        self.frames = length  # track → frames of each of its clips
        self.slack = frames - count * length  # track → frames beyond whole clips
        self.row = torch.from_numpy(store.first_rows()[usable]).to(device)  # track → its first row in the store
        self.count = count

    def __len__(self) -> int:
        return len(self.track)

    def steps(self, batch: int) -> int:
        """Return the steps of an epoch: the most that can be filled without two clips of one track in a batch."""
        if self.tracks < batch:
            return len(self) // batch
        low, high = 1, len(self) // batch  # the largest s with sum over tracks of min(clips, s) >= s * batch
        while low < high:
            middle = (low + high + 1) // 2
            fits = int(self.count.clamp(max=middle).sum()) >= middle * batch
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def order(self, *, seed: int, epoch: int, batch: int) -> Int[Tensor, "step batch"]:
        """Return the clips of every step of an epoch. A batch holds no two clips of one track if it can.

        Tracks are put in random order, each with its clips side by side in random order, and then dealt out to the
        batches like cards: as no track gives more clips than there are batches, they all part. What is left out
        differs each epoch. Only with fewer tracks than a batch has clips do clips of one track meet.
        """
        steps = self.steps(batch)
        track_rank = noise.bits(noise.key(seed, epoch, _ORDER), torch.arange(self.tracks, device=self.device))
        clip_rank = noise.permutation(noise.key(seed, epoch, _CLIPS), len(self), self.device)
        by_track = clip_rank[torch.argsort(track_rank[self.track[clip_rank]], stable=True)]
        if self.tracks >= batch:  # no more of a track than there are batches: the others have their turn another time
            track = self.track[by_track]
            new = torch.ones_like(track, dtype=torch.bool)
            new[1:] = track[1:] != track[:-1]
            place = torch.arange(len(track), device=self.device)
            by_track = by_track[place - torch.where(new, place, 0).cummax(0).values < steps]
        dealt = by_track[: steps * batch].view(batch, steps).T
        return dealt[noise.permutation(noise.key(seed, epoch, _BATCHES), steps, self.device)]

    def span(self, clip: Int[Tensor, " batch"], *, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the first store row and the number of frames of each clip, as this epoch cuts them."""
        track = self.track[clip]
        shift = noise.below(noise.key(seed, epoch, _SLACK), track, self.slack[track] + 1)
        return self.row[track] + self.number[clip] * self.frames[track] + shift, self.frames[track]


@dataclass(frozen=True)
class Draw:
    """Where the views of a batch lie, before anything is read. All int64.

    `rows` (view, batch): the first store row of each crop. `tokens` (view, batch, visible): the tokens that stay,
    for each patch kind.
    """

    rows: Int[Tensor, "view batch"]
    tokens: dict[str, Int[Tensor, "view batch visible"]]


def draw(
    clips: Clips,
    clip: Int[Tensor, " batch"],
    grids: dict[Kind, Grid],
    *,
    seed: int,
    epoch: int,
    step: int,
    config: ViewConfig,
    first: int = 0,
) -> Draw:
    """Draw crops and masks for the clips of one step; `first` is the place of clip[0] in the global batch."""
    row, frames = clips.span(clip, seed=seed, epoch=epoch)
    place = first + torch.arange(len(clip), device=clip.device)
    view = (
        place * VIEWS + torch.arange(VIEWS, device=clip.device)[:, None]
    )  # (view, batch): one number for each view of the step
    crop_frames = max(grid.frames for grid in grids.values())
    start = starts(
        config.pair,
        noise.key(seed, step, _START),
        view,
        places=frames - crop_frames + 1,
        reach=int(config.pair_seconds * clips.frame_rate_hz),
    )
    tokens = {
        kind: mask.draw(
            config.mask_policy,
            noise.key(seed, step, _MASK + number),
            view,
            grid=grid,
            visible=mask.visible_count(grid.tokens, config.mask_ratio),
            sigma=config.mask_sigma,
        )
        for number, (kind, grid) in enumerate(grids.items())
    }
    return Draw(row + start, tokens)


class Rows(ABC):
    """The frames of a whole store as one tall table, rows x bands, wherever it is kept."""

    device: torch.device  # where indices are wanted and pieces come out

    @abstractmethod
    def take(self, block: Int[Tensor, "*index"], *, blocks: int) -> Shaped[Tensor, "*index band"]:
        """Read pieces of rows: row r, cut into `blocks` equal pieces, holds the pieces r * blocks and on."""


class HostRows(Rows):
    """The store's memory maps, one after another; only what is asked for is read from disk."""

    def __init__(self, files: Sequence[np.ndarray], *, threads: int = 1) -> None:
        self.files, self.threads, self.device = files, threads, torch.device("cpu")
        self.first = np.cumsum([0] + [len(file) for file in files])
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def take(self, block: Int[Tensor, "*index"], *, blocks: int) -> Shaped[Tensor, "*index band"]:
        index = block.numpy()
        width = self.files[0].shape[1] // blocks
        out = np.empty((*index.shape, width), self.files[0].dtype)
        if self.pool is None:
            self._read(index, out, blocks)
        else:  # NumPy lets go of the interpreter while it copies
            parts = np.array_split(np.arange(len(index)), self.threads)
            bounds = [(part[0], part[-1] + 1) for part in parts if len(part)]
            list(self.pool.map(lambda b: self._read(index[b[0] : b[1]], out[b[0] : b[1]], blocks), bounds))
        return torch.from_numpy(out)

    def _read(self, index: np.ndarray, out: np.ndarray, blocks: int) -> None:
        width = out.shape[-1]
        if len(self.files) == 1:
            np.take(self.files[0].reshape(-1, width), index, axis=0, out=out, mode="clip")
            return
        # every view lies inside one file, so looking at the first row of each is enough
        flat, rows = out.reshape(len(index), -1, width), index.reshape(len(index), -1)
        owner = np.searchsorted(self.first, rows[:, 0] // blocks, side="right") - 1
        for number in np.unique(owner):
            mine = np.flatnonzero(owner == number)
            pieces = self.files[number].reshape(-1, width)
            flat[mine] = np.take(pieces, rows[mine] - self.first[number] * blocks, axis=0)


class DeviceRows(Rows):
    """The whole store in the memory of a device: nothing is left to load."""

    def __init__(self, files: Sequence[np.ndarray], device: torch.device) -> None:
        self.device = device
        rows, kind = sum(len(file) for file in files), torch.from_numpy(np.empty(0, files[0].dtype)).dtype
        self.table = torch.empty((rows, files[0].shape[1]), dtype=kind, device=device)
        at, piece = 0, 1 << 20
        for file in files:
            for start in range(0, len(file), piece):
                part = torch.from_numpy(np.array(file[start : start + piece]))
                self.table[at : at + len(part)] = part
                at += len(part)

    def take(self, block: Int[Tensor, "*index"], *, blocks: int) -> Shaped[Tensor, "*index band"]:
        table = self.table.view(-1, self.table.shape[1] // blocks)
        return table.index_select(0, block.flatten()).view(*block.shape, -1)


def gather(
    rows: Rows, first: Int[Tensor, "*views"], tokens: Int[Tensor, "*views visible"], grid: Grid
) -> Shaped[Tensor, "*views visible value"]:
    """Read the visible patches of crops that begin at store rows `first`, companded as the store keeps them."""
    patch = grid.patch
    frame = first[..., None] + (tokens % grid.columns) * patch.frames  # (view ..., visible)
    piece = frame * grid.rows + tokens // grid.columns  # the first of each patch; the others follow a row apart
    index = piece[..., None] + torch.arange(patch.frames, device=first.device) * grid.rows
    pieces = rows.take(index.view(-1, *index.shape[-2:]), blocks=grid.rows)  # view, visible, frame, band
    return pieces.view(*tokens.shape, patch.values)


@dataclass(frozen=True)
class Views:
    """Two views of each of some clips, for one patch kind: power of the visible patches, and which tokens they are."""

    patches: Float[Tensor, "view batch visible value"]
    tokens: Int[Tensor, "view batch visible"]
    clips: Int[Tensor, " batch"]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, part: slice) -> "Views":
        """Return some of the clips; both views of a clip stay together, with the masks they have."""
        return type(self)(self.patches[:, part], self.tokens[:, part], self.clips[part])


class Loader:
    """Batches of views of a store, by step. `loader(step)` is pure: same store, seed, step, same views.

    `batch` is the global batch. A rank of several passes its own `slice_` of it.
    """

    def __init__(
        self,
        store: Store,
        config: ViewConfig,
        grids: dict[Kind, Grid],
        *,
        batch: int,
        seed: int,
        rows: Rows | None = None,
        slice_: slice = slice(None),
    ) -> None:
        self.rows = rows if rows is not None else HostRows(store.files)
        self.clips = Clips(
            store,
            clip_seconds=config.clip_seconds,
            crop_frames=max(grid.frames for grid in grids.values()),
            device=self.rows.device,
        )
        if len(self.clips) < batch:
            raise StoreError(
                f"A batch of {batch} was asked for, but {store.path} has only {len(self.clips)} clips in "
                f"{self.clips.tracks} tracks: add music, or take --batch {len(self.clips)} or less."
            )
        for grid in grids.values():  # now, and not in a thread at the first step
            mask.check(config.mask_policy, grid=grid, visible=mask.visible_count(grid.tokens, config.mask_ratio))
        self.steps_per_epoch = self.clips.steps(batch)
        self.config, self.grids, self.batch, self.seed = config, grids, batch, seed
        self.slice = slice(*slice_.indices(batch))
        self._orders: dict[int, Tensor] = {}  # epoch → the clips of its steps

    def clip_numbers(self, step: int) -> Int[Tensor, " batch"]:
        """Return which clips the whole batch of this step holds."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self.order(epoch)[place]

    def order(self, epoch: int) -> Int[Tensor, "step batch"]:
        """Return the clips of an epoch's steps. A million take a third of a second, so ask for it in good time."""
        if (found := self._orders.get(epoch)) is None:
            found = self.clips.order(seed=self.seed, epoch=epoch, batch=self.batch)
            near = {number: order for number, order in list(self._orders.items()) if abs(number - epoch) <= 1}
            self._orders = {**near, epoch: found}
        return found

    def draw(self, step: int) -> Draw:
        """Draw this rank's crops and masks of a step."""
        return draw(
            self.clips,
            self.clip_numbers(step)[self.slice],
            self.grids,
            seed=self.seed,
            epoch=step // self.steps_per_epoch,
            step=step,
            config=self.config,
            first=self.slice.start,
        )

    def __call__(self, step: int, device: torch.device | str = "cpu") -> dict[Kind, Views]:
        """Return the views of a step on `device`, one for each patch kind.

        From host memory to a GPU they travel companded, from pinned memory, without making the host wait.
        """
        drawn, target = self.draw(step), torch.device(device)
        clips, views = self._sent(self.clip_numbers(step)[self.slice], target), {}
        for kind, grid in self.grids.items():
            patches = self._sent(gather(self.rows, drawn.rows, drawn.tokens[kind], grid), target)
            views[kind] = Views(expand(patches), self._sent(drawn.tokens[kind], target), clips)
        return views

    def _sent(self, value: Tensor, target: torch.device) -> Tensor:
        travels = target.type == "cuda" and self.rows.device.type == "cpu"
        return value.pin_memory().to(target, non_blocking=True) if travels else value.to(target)


def place_rows(store: Store, place: Place, device: torch.device, *, threads: int) -> Rows:
    """Keep a store's frames on the device, or in host memory; `auto`: on a GPU if they take less than 60 % of it.

    Raises StoreError if there are none, or if they were asked onto a device that they do not fit.
    """
    if not len(store):
        raise StoreError(
            f"The store {store.path} has no tracks: see `myna errors {store.path}`, and prepare music that can be used."
        )
    size = sum(file.nbytes for file in store.files)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    if place == "host" or (place == "auto" and (device.type != "cuda" or size > 0.6 * free)):
        return HostRows(store.files, threads=threads)
    if device.type == "cuda" and size > free:
        raise StoreError(
            f"The store {store.path} takes {size / 1e9:.1f} GB and the device has {free / 1e9:.1f} GB free: take "
            "--store-on host."
        )
    return DeviceRows(store.files, device)


def grids_of(kinds: Sequence[Kind], *, bands: int, frames: int) -> dict[Kind, Grid]:
    """Lay each patch kind over a crop of at most `frames`: floored to whole patches of every kind."""
    crop = whole_frames(frames, kinds)
    return {kind: Grid.of(patch_of(kind), bands=bands, frames=crop) for kind in kinds}
