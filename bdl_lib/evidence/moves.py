r"""A move is a random step that leaves a density as it is: the form that all of them have, and the one used here.

Annealing (``annealing``) spreads its particles with moves; chapter 4 makes whole samplers of them.

Chapter: book/03-evidence.ipynb
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["GaussianMoveInfo", "GaussianMoveState", "Kernel", "LogProb", "Move", "gaussian_move"]

_SMALLEST_PART = 0.05  # of the step that a particle may take
_TARGET_ACCEPTANCE_RATE = 0.4

LogProb = Callable[[Tensor], Tensor]  # [chains, dim] -> [chains], nats, up to a constant


class Kernel(NamedTuple):
    """A move: ``init`` makes a state from positions, ``step`` moves every row once.

    The state is what the next step needs, with the positions as its field ``position``; the info is what a reader
    wants to see of one step.

    Book: sec-annealing
    """

    init: Callable[[Tensor], Any]  # [chains, dim] -> state
    step: Callable[[Any, torch.Generator], tuple[Any, Any]]  # state, generator -> state, info


Move = Callable[[LogProb, Tensor], Kernel]  # density, where the particles are [particles, dim] -> kernel


class GaussianMoveState(NamedTuple):
    """Where the particles are, and the density there.

    Book: sec-annealing
    """

    position: Float[Tensor, "particles dim"]
    log_ratio: Float[Tensor, " particles"]  # log π(θ) - log N(θ | m, C), nats, up to a constant
    white: Float[Tensor, "2 half dim"]  # L⁻¹(θ - m)
    step_size: Float[Tensor, "2 1 1"]  # s, of each half


class GaussianMoveInfo(NamedTuple):
    """What one step did.

    Book: sec-annealing
    """

    acceptance_rate: Float[Tensor, " particles"]


def gaussian_move(log_prob: LogProb, position: Float[Tensor, "particles dim"]) -> Kernel:
    r"""A Metropolis move that would never be refused if the density were the Gaussian with the particles' moments.

    With m and C the mean and covariance of the particles in the other half of the rows, C = L Lᵀ, a particle proposes

    .. math:: \theta' = m + \sqrt{1 - s^2}\, (\theta - m) + s L \varepsilon, \qquad \varepsilon \sim N(0, I)

    and goes there with probability :math:`\min\{1, r(\theta') / r(\theta)\}`, where r(θ) = π(θ) / N(θ | m, C).

    The step s starts at 1, where a proposal forgets the particle's place, and follows the acceptance rate of the other
    half; a particle takes it whole or, every second time, up to 20 times smaller. Moments and acceptance come from the
    *other* half, the first for the second and the reverse: a particle that takes part in shaping its own proposal is
    no longer drawn from π after the move, which in 50 dimensions puts the evidence wrong by a nat.

    Args:
        log_prob: log π in nats, up to a constant. A NaN density is a rejection.
        position: where the particles are, finite, an even number of them.

    Returns:
        A kernel that costs one evaluation of the density a step.

    Raises:
        ValueError: if ``position`` is not finite, or has an odd number of rows or fewer than 2 (dim + 2).

    Source: Cotter, Roberts, Stuart and White (2013), doi:10.1214/13-STS421 (the proposal, for a Gaussian prior in
        place of the fitted Gaussian).
    Book: sec-annealing
    """
    num_particles, dim = position.shape
    if not (num_particles % 2 == 0 and num_particles >= 2 * (dim + 2) and position.isfinite().all()):
        rule = f"position must be finite, with an even number of rows, at least {2 * (dim + 2)} for {dim} columns"
        raise ValueError(f"{rule}, got shape {list(position.shape)}")
    loc, cholesky = _moments_of_the_other_half(position)

    def init(position):
        shift = (position.unflatten(0, (2, -1)) - loc).mT
        white = torch.linalg.solve_triangular(cholesky, shift, upper=False).mT
        log_ratio = log_prob(position) - _log_standard_normal(white)
        return GaussianMoveState(position, log_ratio, white, torch.ones_like(loc[..., :1]))

    def step(state, generator):
        like = dict(generator=generator, dtype=loc.dtype, device=loc.device)
        shrinkage = (2 * torch.rand(*state.white.shape[:2], 1, **like) - 1).clamp(min=0)  # zero every second time
        step_size = state.step_size * _SMALLEST_PART**shrinkage
        white = (1 - step_size.square()).sqrt() * state.white + step_size * torch.randn(state.white.shape, **like)
        position = (loc + white @ cholesky.mT).flatten(0, 1)
        log_ratio = log_prob(position) - _log_standard_normal(white)
        acceptance_rate = (log_ratio - state.log_ratio).clamp(max=0).exp().nan_to_num(nan=0.0)
        is_accepted = torch.rand(acceptance_rate.shape, **like) < acceptance_rate
        moved = GaussianMoveState(
            torch.where(is_accepted[:, None], position, state.position),
            torch.where(is_accepted, log_ratio, state.log_ratio),
            torch.where(is_accepted.view(2, -1, 1), white, state.white),
            _adapt(state.step_size, acceptance_rate),
        )
        return moved, GaussianMoveInfo(acceptance_rate)

    return Kernel(init, step)


def _adapt(step_size: Tensor, acceptance_rate: Tensor) -> Tensor:
    """Up where the other half accepted often, down where it did not, and never above 1."""
    rate_of_other_half = acceptance_rate.view(2, -1).mean(1).flip(0).view(2, 1, 1)
    return (step_size * (2 * (rate_of_other_half - _TARGET_ACCEPTANCE_RATE)).exp()).clamp(max=1)


def _log_standard_normal(white: Tensor) -> Tensor:
    """Log density of N(0, I), up to a constant, for [2, half, dim]; one number a particle."""
    return -0.5 * white.square().sum(-1).flatten()


def _moments_of_the_other_half(position: Tensor) -> tuple[Tensor, Tensor]:
    """For each half of the rows, mean [2, 1, dim] and Cholesky factor of the covariance [2, dim, dim] of the other."""
    halves = position.unflatten(0, (2, -1)).flip(0)
    loc = halves.mean(1, keepdim=True)
    cov = (halves - loc).mT @ (halves - loc) / (halves.shape[1] - 1)
    tiny = 10 * cov.shape[-1] * torch.finfo(cov.dtype).eps  # the factor exists even where the particles lie in a plane
    return loc, torch.linalg.cholesky(cov + tiny * torch.diag_embed(cov.diagonal(dim1=-2, dim2=-1)))
