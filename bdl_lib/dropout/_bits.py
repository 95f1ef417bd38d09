"""Random masks from random bits: each draw of 64 bits decides up to eight units.

Chapter: book/07-dropout.ipynb
"""

import torch
from torch import Tensor

__all__ = ["bernoulli_mask", "lane_bits"]

_LANES = {8: torch.int8, 16: torch.int16, 32: torch.int32}
_TOLERANCE = 1e-4  # relative, of the rate and of one minus the rate: no run of fewer than 10^8 masks could see it


def lane_bits(rate: float) -> int:
    """The fewest bits, 8, 16 or 32, whose whole multiples of 2^-bits come close enough to the rate (0 < rate < 1)."""
    for bits in _LANES:
        if abs(round(rate * 2**bits) / 2**bits - rate) <= _TOLERANCE * min(rate, 1 - rate):
            return bits
    return max(_LANES)


def bernoulli_mask(rate: float, shape: tuple[int, ...], *, like: Tensor, generator: torch.Generator) -> Tensor:
    """Zeros with probability ``rate``, and 1 / (1 - rate) elsewhere: independent, and of mean one.

    The rate is rounded to a whole multiple of 2^-bits (see :func:`lane_bits`), in the probability and in the scale.
    A random integer is drawn per 64 bits and read as several short ones, because drawing is what costs.
    """
    bits = lane_bits(rate)
    num_dropped = min(max(round(rate * 2**bits), 1), 2**bits - 1)  # of the 2^bits values of a lane
    mask = torch.empty(shape, dtype=like.dtype, device=like.device)
    per_word = 64 // bits
    words = torch.empty(-(-mask.numel() // per_word), dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=generator)
    lanes = words.view(_LANES[bits])[: mask.numel()].view(shape)
    is_kept = lanes.ge_(num_dropped - 2 ** (bits - 1))  # in place, as zeros and ones
    return mask.copy_(is_kept).mul_(2**bits / (2**bits - num_dropped))
