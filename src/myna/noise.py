"""(seed, step, what, index) becomes random numbers: the same on every device, in any order, on any rank.

A counter-based generator (splitmix64: Steele, Lea, Flood 2014). There is no state to save, so a batch is a pure
function of its step, and a rank can draw its own rows without drawing the others'.
"""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """Read 64 bits as the two's complement integer that torch.int64 holds."""
    return value - (1 << 64) if value >> 63 else value


def _mix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def key(*parts: int) -> int:
    """Fold integers, such as (seed, step, stream), into one key of 64 bits."""
    folded = 0
    for part in parts:
        folded = _mix(folded ^ (part & _MASK))
    return folded


def _shift(value: Tensor, by: int) -> Tensor:
    """Shift right without dragging the sign along (torch has no unsigned 64-bit shift on every device)."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def bits(key: int, index: Tensor) -> Tensor:
    """Return 64 random bits for every index (int64), as int64."""
    value = index * _signed(_GOLDEN) + _signed((key + _GOLDEN) & _MASK)
    value = (value ^ _shift(value, 30)) * _signed(_MIX_1)
    value = (value ^ _shift(value, 27)) * _signed(_MIX_2)
    return value ^ _shift(value, 31)


def below(key: int, index: Tensor, bound: Tensor) -> Tensor:
    """Return an integer from 0 to bound - 1 for every index; `bound` (int64, 1 to 2**31) broadcasts.

    Takes the high 32 bits times the bound: off from uniform by less than bound / 2**32.
    """
    return (_shift(bits(key, index), 32) * bound) >> 32


def unit(key: int, index: Tensor) -> Tensor:
    """Return a float64 between 0 and 1, neither of them, for every index."""
    return (_shift(bits(key, index), 12).double() + 0.5) / (1 << 52)


def permutation(key: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the numbers 0 to count - 1 in random order (int64)."""
    return torch.argsort(bits(key, torch.arange(count, device=device)), stable=True)
