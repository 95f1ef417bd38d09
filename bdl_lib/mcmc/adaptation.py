r"""What warm-up learns: the step size, by dual averaging, and the mass matrix, pooled over all chains.

Warm-up looks at one or two numbers a step, and the host waits for the device that often: it has to know the step size
and the number of steps of the next trajectory anyway. The arithmetic on them is Python's. After warm-up nothing waits.

Chapter: book/04-mcmc.ipynb
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.mcmc._checks import check_at_least, check_between, check_positive
from bdl_lib.mcmc.run import show

__all__ = ["DualAveraging", "dual_averaging_start", "dual_averaging_step", "pooled_inverse_mass_matrix"]

WINDOW_ENDS = (0.05, 0.1, 0.2, 0.4, 0.8)  # of warm-up: each window is as long as all before it
GAMMA = 0.1  # of dual averaging: how strongly the step size is held near its centre
MAX_KEPT = 64  # states of a window that the mass matrix is learnt from

Move = Callable[[Any, torch.Generator, float], tuple[Any, Any]]  # state, generator, step size -> state, info


class DualAveraging(NamedTuple):
    """Where the search for a step size is; step sizes as logarithms, in units of log time.

    Book: sec-dual-averaging
    """

    log_step_size: float  # for the next step
    log_step_size_mean: float  # the result: a weighted mean of the path
    centre: float  # what the search is drawn to
    error_mean: float  # of target minus acceptance rate
    count: int


def dual_averaging_start(step_size: float) -> DualAveraging:
    r"""Begin a search at a step size; it is drawn, ever more weakly, towards twice that: large steps are cheap to try.

    Args:
        step_size: ε > 0, in units of time.

    Returns:
        The search before its first step.

    Raises:
        ValueError: if ``step_size`` is not positive and finite.

    Source: Hoffman and Gelman (2014), section 3.2, arXiv:1111.4246.
    Book: sec-dual-averaging
    """
    check_positive("step_size", step_size)
    return DualAveraging(math.log(step_size), math.log(step_size), math.log(2 * step_size), 0.0, 0)


def dual_averaging_step(search: DualAveraging, acceptance_rate: float, target_acceptance_rate: float) -> DualAveraging:
    r"""Move the step size so that the acceptance rate comes to its target.

    .. math:: \bar h_t = \Big(1 - \frac{1}{t + t_0}\Big) \bar h_{t-1} + \frac{a^* - a_t}{t + t_0}, \quad
              \log \varepsilon_{t+1} = \mu - \frac{\sqrt t}{\gamma} \bar h_t, \quad
              \log \bar\varepsilon_t = t^{-\kappa} \log \varepsilon_{t+1} + (1 - t^{-\kappa}) \log \bar\varepsilon_{t-1}

    Args:
        search: before the step.
        acceptance_rate: a, from 0 to 1, as the last step had it.
        target_acceptance_rate: a*, between 0 and 1.

    Returns:
        The search after the step, with γ = 0.1, t₀ = 10 and κ = 0.75. (The paper has γ = 0.05, for one chain. The mean
        over many chains has less noise; there 0.05 makes the step size swing, and what it settles on is too small.)

    Source: Hoffman and Gelman (2014), algorithm 5, arXiv:1111.4246.
    Book: sec-dual-averaging
    """
    count = search.count + 1
    weight = 1 / (count + 10)
    error_mean = (1 - weight) * search.error_mean + weight * (target_acceptance_rate - acceptance_rate)
    log_step_size = search.centre - math.sqrt(count) / GAMMA * error_mean
    mean = search.log_step_size_mean + count**-0.75 * (log_step_size - search.log_step_size_mean)
    return DualAveraging(log_step_size, mean, search.centre, error_mean, count)


def pooled_inverse_mass_matrix(
    draws: Float[Tensor, "draws chains dim"], *, mass_matrix: str = "auto"
) -> Float[Tensor, " dim"] | Float[Tensor, "dim dim"]:
    r"""The covariance of the draws of all chains, or its diagonal: with it as M⁻¹, the target is near a unit Gaussian.

    Args:
        draws: in the units of the position.
        mass_matrix: "diagonal"; "dense"; or "auto", which takes the dense one where it pays: the longest direction of
            the correlations is more than 1.5 times as long as the shortest.

    Returns:
        Variances [dim] or covariances [dim, dim], in squared units of the position. A direction without variance
        counts as one of variance 1. The covariances need ten draws a dimension, and a Cholesky factor; without these
        it is the variances.

    Raises:
        ValueError: if ``mass_matrix`` is none of the three.

    Book: sec-chees
    """
    if mass_matrix not in ("auto", "diagonal", "dense"):
        raise ValueError(f"mass_matrix must be 'auto', 'diagonal' or 'dense', got {mass_matrix!r}")
    rows = draws.flatten(0, 1)
    rows = rows - rows.mean(0)
    variance = rows.square().mean(0)
    variance = torch.where((variance > 0) & variance.isfinite(), variance, 1.0)
    if mass_matrix == "diagonal" or len(rows) < 10 * rows.shape[1]:
        return variance
    rows = rows * variance.rsqrt()
    correlation = rows.mT @ rows / len(rows)
    shortest, longest = torch.linalg.eigvalsh(correlation)[[0, -1]].clamp(min=torch.finfo(rows.dtype).eps).sqrt()
    if mass_matrix == "auto" and longest < 1.5 * shortest:
        return variance
    covariance = correlation * variance.sqrt() * variance.sqrt()[:, None]
    return variance if torch.linalg.cholesky_ex(covariance).info else covariance


@torch.no_grad()
def warm_up(
    make_move: Callable[[Tensor], Move],
    state: Any,
    *,
    num_warmup: int,
    generator: torch.Generator,
    target_acceptance_rate: float,
    mass_matrix: str = "diagonal",
    progress: bool = False,
) -> tuple[Any, float, Tensor]:
    """Learn a step size and a mass matrix for any sampler that has them.

    ``make_move(inverse_mass_matrix)`` gives what moves the chains; returned are their state, the step size and the
    inverse mass matrix that is best known.
    """
    check_at_least("num_warmup", num_warmup, 1)
    check_between("target_acceptance_rate", target_acceptance_rate, 0, 1)
    inverse_mass_matrix, kept, search = torch.ones_like(state.position[0]), [], None
    for i in show(range(num_warmup), progress):
        if search is None:
            move = make_move(inverse_mass_matrix)
            search = dual_averaging_start(reasonable_step_size(move, state, generator))
        state, info = move(state, generator, math.exp(search.log_step_size))
        search = dual_averaging_step(search, info.acceptance_rate.mean().item(), target_acceptance_rate)
        is_kept, is_end = place_in_window(i, num_warmup)
        kept += [state.position] if is_kept else []
        if is_end:
            inverse_mass_matrix = pooled_inverse_mass_matrix(torch.stack(kept), mass_matrix=mass_matrix)
            kept, search = [], None
    return state, math.exp(search.log_step_size_mean), inverse_mass_matrix


def window_ends(num_warmup: int) -> list[int]:
    """After how many steps of warm-up the mass matrix is learnt anew; what follows the last is for the step size."""
    return sorted({math.ceil(share * num_warmup) for share in WINDOW_ENDS} - {num_warmup})


def place_in_window(step: int, num_warmup: int) -> tuple[bool, bool]:
    """Whether a step of warm-up counts for the mass matrix, and whether that is learnt anew after it.

    The first half of a window does not count: with the old mass matrix the chains may not have arrived.
    """
    ends = window_ends(num_warmup)
    start = max((end for end in ends if end <= step), default=0)
    end = min((end for end in ends if end > step), default=None)
    if end is None:
        return False, False
    middle = (start + end) // 2
    stride = math.ceil((end - middle) / MAX_KEPT)
    return step >= middle and (end - 1 - step) % stride == 0, step == end - 1


def reasonable_step_size(move: Move, state: Any, generator: torch.Generator) -> float:
    """A step size to begin with: doubled or halved from 1 until it crosses an acceptance rate of 0.8."""
    rises, step_size = None, 1.0
    for _ in range(100):
        was_rising, rises = rises, move(state, generator, step_size)[1].acceptance_rate.mean().item() > 0.8
        if was_rising is not None and rises != was_rising:
            break
        step_size *= 2.0 if rises else 0.5
    return step_size
