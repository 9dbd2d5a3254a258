"""This process among others: which rows of the global batch are its own, and how the ranks add up.

One process is a world of size 1, in which nothing is sent. `torchrun` starts several; each draws and embeds its own
rows, sees everybody's projections in the loss, and ends a step with the gradient of the whole batch.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout, _world
from torch.distributed.rendezvous import rendezvous

from myna.errors import ConfigError, RunError

PATIENCE_S = 600.0  # how long a rank waits for the others before it takes them for lost, unless MYNA_PATIENCE_S says
CONNECTING, ATTEMPTS = timedelta(seconds=4), 20


@dataclass(frozen=True)
class World:
    """`size` processes of which this is number `rank`."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and speaks to the user."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """Return this rank's rows of the global batch."""
        if batch % self.size:
            raise ConfigError(f"A batch of {batch} cannot be shared evenly by {self.size} ranks: take a multiple.")
        each = batch // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def gather(self, mine: Shaped[Tensor, "view local dim"]) -> Shaped[Tensor, "view batch dim"]:
        """Return every rank's rows, in the order of the global batch."""
        if self.size == 1:
            return mine
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine.contiguous())
        return torch.cat(rows, dim=1)

    def sum_mine(self, whole: Float[Tensor, "view batch dim"]) -> Float[Tensor, "view local dim"]:
        """Add up what all ranks have for every row, and return this rank's rows of the sum."""
        if self.size == 1:
            return whole
        each = whole.unflatten(1, (self.size, -1)).transpose(0, 1).contiguous()  # (rank, view, local, dim)
        if dist.get_backend() != "nccl":  # gloo has no reduce-scatter
            dist.all_reduce(each)
            return each[self.rank]
        mine = torch.empty_like(each[0])
        dist.reduce_scatter_tensor(mine, each)
        return mine

    def sum(self, value: Tensor) -> Tensor:
        """Add up a tensor over the ranks."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def first(self, number: int, device: torch.device) -> int:
        """Return what rank 0 says: for choices that depend on a clock, free memory or a signal."""
        return self._agreed(number if self.is_main else 0, device)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Say whether it is so on any rank."""
        return self._agreed(int(flag), device) > 0

    def _agreed(self, number: int, device: torch.device) -> int:
        return int(self.sum(torch.tensor(number, device=device)).item()) if self.size > 1 else number

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


SOLO = World()


def launched() -> bool:
    """Say whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def restarts() -> int:
    """Return how often `torchrun` has started this job anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def local_device(device: torch.device) -> torch.device:
    """Give each rank of a machine a GPU of its own."""
    if device.type != "cuda" or device.index is not None or not launched():
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


@contextmanager
def join(device: torch.device) -> Iterator[World]:
    """Join the other ranks if there are any. A rank that is lost becomes a RunError on those that are left."""
    if not launched():
        yield SOLO
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    patience = timedelta(seconds=float(os.environ.get("MYNA_PATIENCE_S", PATIENCE_S)))
    with _mortal(), _lost_is_an_error():
        _connect("nccl" if device.type == "cuda" else "gloo", patience)
    try:
        with _lost_is_an_error():
            yield World(dist.get_rank(), dist.get_world_size())
            # DistributedDataParallel keeps gloo's threads alive for longer than its group. One that still drops the
            # last sum's tensors while Python ends aborts the process; a barrier has no tensor of Python's, and gives
            # them time.
            dist.barrier()
    finally:
        dist.destroy_process_group()


@contextmanager
def _lost_is_an_error() -> Iterator[None]:
    """Make a RunError of a broken connection to another rank."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        raise RunError(
            "Another rank stopped answering, so this job ends. The last checkpoint stands: start the same command "
            "again with --resume."
        ) from error


def _connect(backend: str, patience: timedelta) -> None:
    """Connect the ranks as soon as all of them have started.

    On a crowded machine gloo now and then does not connect two ranks that are there, and waits five times its timeout
    before it says so. So it gets a short one, and the ranks tell each other by their store whether to try again.
    """
    store, rank, size = next(rendezvous("env://", timeout=patience))
    for attempt in range(ATTEMPTS):
        tried = dist.PrefixStore(f"attempt {attempt}", store)
        _answers(tried, "here", True, rank, size)
        failure = None
        try:
            dist.init_process_group(backend, store=tried, rank=rank, world_size=size, timeout=CONNECTING)
        except RuntimeError as error:
            failure = error
        if all(_answers(tried, "connected", failure is None, rank, size)):
            _set_pg_timeout(patience)
            return
        if failure is None:
            dist.destroy_process_group()
        _world.group_count = 0  # which names the group: those that failed have counted it, and the others no longer
    raise RunError(f"The {size} ranks could not be connected in {ATTEMPTS} attempts: start the same command again.")


def _answers(store: dist.Store, question: str, answer: bool, rank: int, size: int) -> list[bool]:
    """Answer a question, and return what every rank answers; waits for the last of them."""
    store.set(f"{question} {rank}", str(answer))
    return [store.get(f"{question} {other}") == b"True" for other in range(size)]


@contextmanager
def _mortal() -> Iterator[None]:
    """Let SIGTERM end the process at once.

    A handler of Python's cannot run while the ranks are being connected, and when one fails to connect, torchrun would
    wait 30 s for the others to end before it kills them and starts all of them again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def is_lost_rank(error: RuntimeError) -> bool:
    """Tell a broken connection between ranks from other failures."""
    text = str(error).lower()
    signs = ("connection closed", "connection reset", "connection refused", "broken pipe", "timed out", "nccl", "gloo")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)
