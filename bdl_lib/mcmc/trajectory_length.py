r"""How long a trajectory shall be: the ChEES criterion, the search that climbs it, and how lengths vary around it.

Chapter: book/04-mcmc.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.mcmc._checks import check_at_least
from bdl_lib.mcmc.hmc import Metric, PhasePoint, gaussian_momentum

__all__ = ["halton"]

MAX_LEAPFROG_STEPS = 1000  # of one trajectory
QUARTER_TURN = math.pi / 2  # after this time a unit Gaussian has forgotten its position


class LengthSearch(NamedTuple):
    """Where the search for a trajectory length is, in log time."""

    log_length: float
    log_length_mean: float
    count: int


def halton(index: int) -> float:
    r"""The Halton sequence of base 2: the digits of the index, mirrored at the point.

    Args:
        index: 1, 2, 3, 4, … in binary 1, 10, 11, 100, …

    Returns:
        0.1, 0.01, 0.11, 0.001, … in binary: ½, ¼, ¾, ⅛, … which fill (0, 1) evenly.

    Raises:
        ValueError: if ``index`` is below 1.

    Source: Halton (1960), doi:10.1007/BF01386213.
    Book: sec-chees
    """
    check_at_least("index", index, 1)
    digits = f"{index:b}"
    return int(digits[::-1], 2) / 2 ** len(digits)


def jittered_steps(
    count: int, step_size: float, trajectory_length: float, jitter: float, max_leapfrog_steps: int
) -> tuple[float, int]:
    """Step size and number of steps of one trajectory, the same for all chains and known to the host."""
    time = trajectory_length * (1 + jitter * (2 * halton(count + 1) - 1))
    num_steps = min(max(1, math.ceil(time / step_size)), max_leapfrog_steps)
    return min(time / num_steps, step_size), num_steps


def chees_gradient(
    metric: Metric, start: Tensor, end: PhasePoint, acceptance_rate: Tensor, time: float
) -> Float[Tensor, ""]:
    r"""How the criterion changes with the trajectory length t, :math:`\partial \log C / \partial \log t`.

    .. math:: C = E\big[(\lVert \theta' - \mu' \rVert^2 - \lVert \theta - \mu \rVert^2)^2\big]

    in whitened coordinates, where :math:`\partial_t \lVert \theta' - \mu' \rVert^2 = 2 (\theta' - \mu')^\top p'`.
    Chains count by their acceptance rates. The logarithm makes it a pure number, whatever the dimension, near
    2t cot t for a Gaussian: so plain ascent needs no scale, where Adam would take steps of a fixed length out of noise.
    """
    is_sound = (acceptance_rate > 0)[:, None]
    weight = acceptance_rate / acceptance_rate.sum()
    position, momentum = torch.where(is_sound, end.position, 0.0), torch.where(is_sound, end.momentum, 0.0)
    from_centre = position - weight @ position
    change = metric.whiten(from_centre).square().sum(1) - metric.whiten(start - start.mean(0)).square().sum(1)
    rate = 2 * (from_centre * momentum).sum(1)
    return 2 * time * (weight * change) @ rate / (weight @ change.square())


def length_step(search, ascent, low, high):
    """One step of ascent, ever shorter, within bounds; the mean forgets the first half of the path."""
    count = search.count + 1
    ascent = min(max(ascent, -1.0), 1.0) if math.isfinite(ascent) else 0.0
    log_length = search.log_length + 0.3 / (1 + count / 20) * ascent
    log_length = min(max(log_length, math.log(low)), max(math.log(high), math.log(low)))
    mean = search.log_length_mean + 2 / (count + 1) * (log_length - search.log_length_mean)
    return LengthSearch(log_length, mean, count)


def longest_std(draws, inverse_mass_matrix):
    """The largest standard deviation that draws [n, dim] have in any direction, in whitened coordinates."""
    whitened = gaussian_momentum(inverse_mass_matrix).whiten(draws - draws.mean(0))
    return torch.linalg.eigvalsh(whitened.mT @ whitened / len(whitened))[-1].clamp(min=0).sqrt().item()
