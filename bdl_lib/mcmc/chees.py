r"""ChEES-HMC: many chains that agree on one trajectory length, one step size and one mass matrix.

All chains make the same number of leapfrog steps, so that nothing is masked and nobody waits. What is learnt is learnt
from all of them together, which takes few steps, and which a short warm-up therefore can afford:

- the mass matrix: the pooled covariance, dense or diagonal;
- the step size: by dual averaging on a mean of the acceptance rates that listens to the worst chains;
- the trajectory length: by ascent on the change that a trajectory makes in the distance from the centre.

Chapter: book/04-mcmc.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.evidence import Kernel, LogProb
from bdl_lib.mcmc._checks import check_at_least, check_between, check_positive
from bdl_lib.mcmc.adaptation import (
    dual_averaging_start,
    dual_averaging_step,
    place_in_window,
    pooled_inverse_mass_matrix,
    reasonable_step_size,
)
from bdl_lib.mcmc.density import differentiable, initial_value_and_grad
from bdl_lib.mcmc.hmc import HmcState, gaussian_momentum, transition
from bdl_lib.mcmc.run import Draws, collect, show
from bdl_lib.mcmc.trajectory_length import (
    MAX_LEAPFROG_STEPS,
    QUARTER_TURN,
    LengthSearch,
    chees_gradient,
    jittered_steps,
    length_step,
    longest_std,
)

__all__ = ["CheesState", "chees", "sample_chees"]

# Leapfrog steps at most, and an acceptance rate below which all rates count alike. Early in warm-up the mass matrix is
# a guess, and long trajectories are time lost; but the last chain must arrive, and the steps be short enough for it.
EARLY, LATE = (16, 1e-4), (MAX_LEAPFROG_STEPS, 0.03)


class CheesState(NamedTuple):
    """The state of HMC, and how many steps were made, which says how long the next trajectory is.

    Book: sec-chees
    """

    position: Float[Tensor, "chains dim"]
    log_prob: Float[Tensor, " chains"]  # nats
    grad: Float[Tensor, "chains dim"]
    count: int


def chees(
    log_prob: LogProb,
    *,
    step_size: float,
    trajectory_length: float,
    inverse_mass_matrix: Float[Tensor, " dim"] | Float[Tensor, "dim dim"] | None = None,
    jitter: float = 0.3,
) -> Kernel:
    r"""Hamiltonian Monte Carlo with trajectories of varied length, the same for all chains.

    .. math:: t_n = T \big(1 + j (2 u_n - 1)\big), \qquad L_n = \lceil t_n / \varepsilon \rceil, \qquad
              \varepsilon_n = t_n / L_n

    with the Halton sequence :math:`u_n = \tfrac12, \tfrac14, \tfrac34, \dots` A trajectory that always came back to
    where it started would never mix; varied lengths do not.

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant; see :func:`differentiable`.
        step_size: ε > 0, in units of time; no step is longer.
        trajectory_length: T > 0, the mean length, in units of time. For a unit Gaussian π/2 is best.
        inverse_mass_matrix: M⁻¹, as for :func:`hmc`.
        jitter: j, from 0 to 1. After a quarter turn, t = π/2, a unit Gaussian has forgotten its position; lengths from
            0 to 2T, as j = 1 gives, remember more, and an effective draw costs about three times as many gradients.

    Returns:
        A kernel. Its state counts the steps, so that a run that is taken up again goes on with the right length.

    Raises:
        ValueError: if ``step_size`` or ``trajectory_length`` is not positive and finite, ``jitter`` is not from 0 to 1
            or the matrix not positive definite; from ``init``, if the start is not finite.

    Source: Hoffman, Radul and Sountsov (2021), An adaptive-MCMC scheme for setting trajectory lengths in Hamiltonian
        Monte Carlo, AISTATS.
    Book: sec-chees
    """
    check_positive("step_size", step_size)
    check_positive("trajectory_length", trajectory_length)
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter must be from 0 to 1, got {jitter}")
    density, metric = differentiable(log_prob), gaussian_momentum(inverse_mass_matrix)

    def init(position):
        return CheesState(position, *initial_value_and_grad(density, position), 0)

    @torch.no_grad()
    def step(state, generator):
        plan = jittered_steps(state.count, step_size, trajectory_length, jitter, MAX_LEAPFROG_STEPS)
        after, info, _ = transition(density, metric, HmcState(*state[:3]), generator, *plan)
        return CheesState(*after, state.count + 1), info

    return Kernel(init, step)


def sample_chees(
    log_prob: LogProb,
    initial_position: Float[Tensor, "chains dim"],
    *,
    num_warmup: int,
    num_samples: int,
    generator: torch.Generator,
    progress: bool = False,
    target_acceptance_rate: float = 0.8,
    mass_matrix: str = "auto",
    jitter: float = 0.3,
) -> Draws:
    r"""Draw with ChEES-HMC: the sampler to try first, with some hundred chains.

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant; see :func:`differentiable`.
        initial_position: where the chains start, at least two; with fewer than about 100 of them the trajectory length
            is learnt less well, and 256 cost hardly more.
        num_warmup: steps to learn from, not kept; 100 to 500 for most posteriors. The host waits for the device twice
            in each of them.
        num_samples: draws to keep of each chain, at least 1.
        generator: the source of randomness, on the device of the position.
        progress: whether to show a bar.
        target_acceptance_rate: what the harmonic mean of the acceptance rates shall be, between 0 and 1.
        mass_matrix: "diagonal", "dense" or "auto"; see :func:`pooled_inverse_mass_matrix`.
        jitter: of the trajectory length, from 0 to 1.

    Returns:
        :class:`Draws`, with ``settings`` for :func:`chees`.

    Raises:
        ValueError: if there are fewer than two chains, a number is out of its range, the start is not finite (which
            chains) or ``log_prob`` does not give one number a chain.

    Source: Hoffman, Radul and Sountsov (2021), as for :func:`chees`.
    Book: sec-chees
    """
    check_at_least("num_warmup", num_warmup, 1)
    check_at_least("num_samples", num_samples, 1)
    check_at_least("the number of chains in initial_position", len(initial_position), 2)
    check_between("target_acceptance_rate", target_acceptance_rate, 0, 1)
    density = differentiable(log_prob)
    state = HmcState(initial_position, *initial_value_and_grad(density, initial_position))
    learnt = (target_acceptance_rate, mass_matrix, jitter)
    state, settings = _warm_up(density, state, num_warmup, generator, *learnt, progress)
    kernel = chees(log_prob, **settings)
    draws = collect(kernel, CheesState(*state, 0), num_samples=num_samples, generator=generator, progress=progress)
    return draws._replace(settings=settings)


@torch.no_grad()
def _warm_up(density, state, num_warmup, generator, target_acceptance_rate, mass_matrix, jitter, progress):
    """The state after warm-up, and the settings that it found."""
    inverse_mass_matrix, longest, kept, search = torch.ones_like(state.position[0]), math.inf, [], None
    for i in show(range(num_warmup), progress):
        if search is None:  # a new mass matrix, and so new units of time
            metric = gaussian_momentum(inverse_mass_matrix)
            search = dual_averaging_start(_first_step_size(density, metric, state, generator))
            length = LengthSearch(math.log(QUARTER_TURN), 0.0, 0)
        max_steps, least_rate = EARLY if i < 0.4 * num_warmup else LATE
        step_size = math.exp(search.log_step_size)
        plan = jittered_steps(i, step_size, math.exp(length.log_length), jitter, max_steps)
        after, info, end = transition(density, metric, state, generator, *plan)
        ascent = chees_gradient(metric, state.position, end, info.acceptance_rate, math.prod(plan)).item()
        length = length_step(length, ascent, step_size, 2 * QUARTER_TURN * longest)
        search = dual_averaging_step(search, _harmonic_mean(info.acceptance_rate, least_rate), target_acceptance_rate)
        state = after
        is_kept, is_end = place_in_window(i, num_warmup)
        kept += [state.position] if is_kept else []
        if is_end:
            inverse_mass_matrix = pooled_inverse_mass_matrix(torch.stack(kept), mass_matrix=mass_matrix)
            longest = longest_std(torch.cat(kept), inverse_mass_matrix)
            kept, search = [], None
    step_size = math.exp(search.log_step_size_mean)
    return state, {
        "step_size": step_size,
        "trajectory_length": max(step_size, math.exp(length.log_length_mean)),
        "inverse_mass_matrix": inverse_mass_matrix,
        "jitter": jitter,
    }


def _first_step_size(density, metric, state, generator):
    def move(state, generator, step_size):
        return transition(density, metric, state, generator, step_size, 1)[:2]

    return reasonable_step_size(move, state, generator)


def _harmonic_mean(acceptance_rate, least):
    """A mean that listens to the chains that are rejected."""
    return 1 / acceptance_rate.clamp(min=least).reciprocal().mean().item()
