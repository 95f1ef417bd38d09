r"""Microcanonical sampling: a direction instead of a momentum, and a Metropolis test that makes it exact.

The chain moves at constant speed; the gradient only turns it. What takes the place of kinetic energy is what the
turning did to the volume around the direction.

Chapter: book/04-mcmc.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.evidence import Kernel, LogProb
from bdl_lib.mcmc._checks import check_at_least, check_between, check_positive
from bdl_lib.mcmc.adaptation import (
    dual_averaging_start,
    dual_averaging_step,
    place_in_window,
    pooled_inverse_mass_matrix,
)
from bdl_lib.mcmc.density import differentiable, initial_value_and_grad
from bdl_lib.mcmc.hmc import DIVERGENCE_THRESHOLD, PhasePoint, gaussian_momentum
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

__all__ = [
    "MicrocanonicalEnd",
    "MicrocanonicalInfo",
    "MicrocanonicalState",
    "microcanonical",
    "microcanonical_leapfrog",
    "sample_microcanonical",
]

MAX_LEAPFROG_STEPS_EARLY = 10  # while the mass matrix is a guess
JITTER = 0.3  # lengths of trajectories vary by this share of their mean, up and down


class MicrocanonicalState(NamedTuple):
    """Where the chains are, the density there, and its gradient, with which the next trajectory starts.

    Book: sec-microcanonical
    """

    position: Float[Tensor, "chains dim"]
    log_prob: Float[Tensor, " chains"]  # nats
    grad: Float[Tensor, "chains dim"]
    num_trajectories: int  # so far; it sets the length of the next


class MicrocanonicalInfo(NamedTuple):
    """What a reader wants to see of one step.

    Book: sec-microcanonical
    """

    acceptance_rate: Float[Tensor, " chains"]  # the probability of the trajectory's end, 0 to 1
    is_accepted: Bool[Tensor, " chains"]
    is_divergent: Bool[Tensor, " chains"]  # energy error above 1000 nats, or not a number
    num_leapfrog_steps: int  # the same for all chains
    log_prob: Float[Tensor, " chains"]  # nats, after the step


class MicrocanonicalEnd(NamedTuple):
    """The end of a trajectory, and what it did to the energy on the way.

    Book: sec-microcanonical
    """

    position: Float[Tensor, "chains dim"]
    velocity: Float[Tensor, "chains dim"]  # of length 1 in whitened units
    log_prob: Float[Tensor, " chains"]  # nats
    grad: Float[Tensor, "chains dim"]
    energy_error: Float[Tensor, " chains"]  # ΔE in nats


def microcanonical(
    log_prob: LogProb,
    *,
    step_size: float,
    trajectory_length: float,
    inverse_mass_matrix: Float[Tensor, " dim"] | Float[Tensor, "dim dim"] | None = None,
) -> Kernel:
    r"""The Metropolis-adjusted microcanonical sampler.

    .. math:: \dot\theta = u, \qquad \dot u = \frac{1}{d - 1} (I - u u^\top) \nabla \log \pi(\theta), \qquad
              \lVert u \rVert = 1

    A new direction u is drawn uniformly for each trajectory, so that u is independent of θ in the long run, as a
    momentum would be. The end of :func:`microcanonical_leapfrog` is accepted with probability
    :math:`\min\{1, e^{-\Delta E}\}`. Lengths of trajectories vary evenly, by 30 % up and down, in a fixed sequence, the
    same for all chains: no chain waits for another. Steps are a little shorter than asked for, to end there.

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant; see :func:`differentiable`.
        step_size: ε > 0, the way of one leapfrog step. Lengths are in whitened units, in which ``inverse_mass_matrix``
            is the identity; a good step is a fraction of √dim.
        trajectory_length: the mean length of a trajectory, positive; a good one is some multiple of √dim.
        inverse_mass_matrix: best near the covariance of π: a vector for a diagonal matrix, a symmetric positive
            definite matrix for a dense one, or nothing for the identity.

    Returns:
        A kernel. A step costs one gradient a leapfrog step (at most 1000) and one density, for all chains together.
        Where the density or the energy is not a number, the chain stays where it was, and the step is divergent.

    Raises:
        ValueError: if a setting is not positive and finite or the matrix not positive definite; from ``init``, if the
            start is not finite or has fewer than 2 dimensions: in one there is nothing to turn.

    Source: Robnik, Cohn-Gordon and Seljak (2025), arXiv:2503.01707.
    Book: sec-microcanonical
    """
    check_positive("step_size", step_size)
    check_positive("trajectory_length", trajectory_length)
    density, metric = differentiable(log_prob), gaussian_momentum(inverse_mass_matrix)

    @torch.no_grad()
    def step(state, generator):
        plan = jittered_steps(state.num_trajectories, step_size, trajectory_length, JITTER, MAX_LEAPFROG_STEPS)
        return _transition(density, metric, state, generator, *plan)[:2]

    return Kernel(lambda position: _start(density, position), step)


def microcanonical_leapfrog(
    log_prob: LogProb,
    position: Float[Tensor, "chains dim"],
    velocity: Float[Tensor, "chains dim"],
    *,
    step_size: float,
    num_leapfrog_steps: int,
    inverse_mass_matrix: Float[Tensor, " dim"] | Float[Tensor, "dim dim"] | None = None,
) -> MicrocanonicalEnd:
    r"""Turn, move, turn: L steps of the microcanonical motion.

    With g the gradient, e = g/‖g‖ and δ = ε‖g‖/(d - 1), a turn of duration ε is solved exactly, and what it does to
    the area around u on the sphere is known, too:

    .. math:: u' = \frac{u + (\sinh \delta + e^\top u\, (\cosh \delta - 1))\, e}{\cosh \delta + e^\top u \sinh \delta},
              \qquad
              \left| \frac{\partial u'}{\partial u} \right|
              = \big( \cosh \delta + e^\top u \sinh \delta \big)^{-(d - 1)}

    Moves preserve volume. So the Metropolis ratio, Jacobian included, is :math:`e^{-\Delta E}` with

    .. math:: \Delta E = -\Delta \log \pi + (d - 1) \sum_\text{turns} \log(\cosh \delta + e^\top u \sinh \delta)

    which goes to 0 with the step size. The map is reversible: negate the velocity, integrate, and be back.

    All this holds in whitened units. With M⁻¹ = R Rᵀ, the velocity in the units of the position is v = R u and the
    whitened gradient is Rᵀg, but a turn needs no R: :math:`\lVert R^\top g \rVert^2 = g^\top M^{-1} g` and
    :math:`u^\top R^\top g = v^\top g`.

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant.
        position: θ at the start, of at least 2 dimensions.
        velocity: v at the start, with :math:`v^\top M v = 1`.
        step_size: ε, the way of one step, in whitened units.
        num_leapfrog_steps: L ≥ 1.
        inverse_mass_matrix: as for :func:`microcanonical`.

    Returns:
        The :class:`MicrocanonicalEnd`.

    Raises:
        ValueError: if ``num_leapfrog_steps`` is below 1, the matrix is not positive definite, or the start not finite
            or of one dimension.

    Source: Robnik et al. (2022), arXiv:2212.08549; ver Steeg and Galstyan (2021), arXiv:2111.02434, for the turn.
    Book: sec-microcanonical
    """
    check_at_least("num_leapfrog_steps", num_leapfrog_steps, 1)
    density, metric = differentiable(log_prob), gaussian_momentum(inverse_mass_matrix)
    with torch.no_grad():
        return _integrate(density, metric, _start(density, position), velocity, step_size, num_leapfrog_steps)


def sample_microcanonical(
    log_prob: LogProb,
    initial_position: Float[Tensor, "chains dim"],
    *,
    num_warmup: int,
    num_samples: int,
    generator: torch.Generator,
    progress: bool = False,
    target_acceptance_rate: float = 0.9,
    trajectory_length: float | None = None,
    mass_matrix: str = "auto",
) -> Draws:
    r"""The adjusted microcanonical sampler with step size, trajectory length and mass matrix learnt in warm-up.

    Dual averaging brings the mean acceptance rate of all chains to its target. At the end of every window of warm-up,
    the mass matrix is taken from its draws, and with it the mean length of a trajectory,
    :math:`\frac54 \sqrt{d \lambda_\text{max}}`, with λ the variance along the longest direction of the whitened draws:
    a little less than a quarter of a period there, since at speed 1 a period lasts about 2π√(dλ).

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant; see :func:`differentiable`.
        initial_position: one start a chain, of at least 2 dimensions.
        num_warmup: steps to learn from and throw away, at least 10.
        num_samples: draws to keep of each chain, at least 1.
        generator: on the device of the position.
        progress: whether to show a bar.
        target_acceptance_rate: from 0 to 1; higher than for HMC is best.
        trajectory_length: in whitened units; learnt, if not given.
        mass_matrix: "diagonal", "dense" or "auto", which chooses.

    Returns:
        A :class:`Draws`; its ``settings`` are the arguments of :func:`microcanonical`.

    Raises:
        ValueError: if a number is out of range, or the start is not finite or of one dimension.

    Source: Robnik, Cohn-Gordon and Seljak (2025), arXiv:2503.01707; the rule for the length is this library's.
    Book: sec-microcanonical
    """
    check_at_least("num_warmup", num_warmup, 10)
    check_at_least("num_samples", num_samples, 1)
    check_between("target_acceptance_rate", target_acceptance_rate, 0, 1)
    if trajectory_length is not None:
        check_positive("trajectory_length", trajectory_length)
    density = differentiable(log_prob)
    state = _start(density, initial_position)
    with torch.no_grad():
        state, settings = _warm_up(
            density, state, generator, num_warmup, target_acceptance_rate, trajectory_length, mass_matrix, progress
        )
    kernel = microcanonical(log_prob, **settings)
    draws = collect(kernel, state, num_samples=num_samples, generator=generator, progress=progress)
    return draws._replace(settings=settings)


def _warm_up(density, state, generator, num_warmup, target, fixed_length, mass_matrix, progress):
    """The state after warm-up, and the settings that it found."""
    unit = math.sqrt(state.position.shape[1])  # way of this motion in a unit of time of HMC
    inverse_mass_matrix, longest, kept, search = torch.ones_like(state.position[0]), math.inf, [], None
    for i in show(range(num_warmup), progress):
        if search is None:  # a new mass matrix, and so new units
            metric, search = gaussian_momentum(inverse_mass_matrix), dual_averaging_start(0.1 * unit)
            length = LengthSearch(math.log(fixed_length or QUARTER_TURN * unit), 0.0, 0)
        most_steps = MAX_LEAPFROG_STEPS_EARLY if i < 0.2 * num_warmup else MAX_LEAPFROG_STEPS
        step_size = math.exp(search.log_step_size)
        plan = jittered_steps(i, step_size, math.exp(length.log_length), JITTER, most_steps)
        after, info, end = _transition(density, metric, state, generator, *plan)
        if fixed_length is None:
            ascent = _ascent(metric, state, end, info.acceptance_rate, math.prod(plan))
            length = length_step(length, ascent, step_size, 2 * QUARTER_TURN * unit * longest)
        search = dual_averaging_step(search, info.acceptance_rate.mean().item(), target)
        state = after
        is_kept, is_end = place_in_window(i, num_warmup)
        kept += [state.position] if is_kept else []
        if is_end:
            inverse_mass_matrix = pooled_inverse_mass_matrix(torch.stack(kept), mass_matrix=mass_matrix)
            longest = longest_std(torch.cat(kept), inverse_mass_matrix)
            kept, search = [], None
    step_size = math.exp(search.log_step_size_mean)
    learnt = fixed_length or max(step_size, math.exp(length.log_length_mean))
    return state, {
        "step_size": step_size,
        "trajectory_length": learnt,
        "inverse_mass_matrix": inverse_mass_matrix,
    }


def _ascent(metric, state, end, acceptance_rate, length):
    """The gradient of the ChEES criterion in log length, all in whitened units."""
    whitened = PhasePoint(metric.whiten(end.position), metric.whiten(end.velocity), end.log_prob, end.grad)
    start = metric.whiten(state.position)
    return chees_gradient(gaussian_momentum(None), start, whitened, acceptance_rate, length).item()


def _start(density, position):
    log_prob, grad = initial_value_and_grad(density, position)
    if not position.shape[1] >= 2:
        raise ValueError(f"position must have at least 2 dimensions, got {position.shape[1]}")
    return MicrocanonicalState(position, log_prob, grad, 0)


def _transition(density, metric, state, generator, step_size, num_steps):
    momentum, kinetic_energy = metric.draw(state.position, generator)
    velocity = metric.velocity(momentum) * (2 * kinetic_energy).rsqrt()[:, None]
    end = _integrate(density, metric, state, velocity, step_size, num_steps)
    energy_error = end.energy_error.nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf)
    is_accepted = energy_error < torch.empty_like(energy_error).exponential_(generator=generator)
    position = torch.where(is_accepted[:, None], end.position, state.position)
    grad = torch.where(is_accepted[:, None], end.grad, state.grad)
    log_prob = torch.where(is_accepted, end.log_prob, state.log_prob)
    info = MicrocanonicalInfo(
        acceptance_rate=torch.exp(-energy_error.clamp(min=0)),
        is_accepted=is_accepted,
        is_divergent=energy_error > DIVERGENCE_THRESHOLD,
        num_leapfrog_steps=num_steps,
        log_prob=log_prob,
    )
    return MicrocanonicalState(position, log_prob, grad, state.num_trajectories + 1), info, end


def _integrate(density, metric, start, velocity, step_size, num_steps):
    """Two half turns that meet between two steps, at one point and with one gradient, are made as one."""
    velocity, gain = _turn(metric, velocity, start.grad, 0.5 * step_size)
    position = torch.add(start.position, velocity, alpha=step_size)  # scratch from here on
    for _ in range(num_steps - 1):
        velocity, more = _turn(metric, velocity, density.grad(position), step_size)
        gain += more
        position.add_(velocity, alpha=step_size)
    log_prob, grad = density.value_and_grad(position)
    velocity, more = _turn(metric, velocity, grad, 0.5 * step_size)
    return MicrocanonicalEnd(position, velocity, log_prob, grad, gain + more - (log_prob - start.log_prob))


def _turn(metric, velocity, grad, duration):
    """The velocity after a turn, and (d - 1) log(cosh δ + e·u sinh δ). With ζ = exp(-δ) nothing overflows."""
    pull = metric.velocity(grad)
    size = (grad * pull).sum(1, keepdim=True).sqrt().clamp(min=torch.finfo(grad.dtype).tiny)
    cosine = ((velocity * grad).sum(1, keepdim=True) / size).clamp(-1, 1)
    delta = size * (duration / (velocity.shape[1] - 1))
    zeta = torch.exp(-delta)
    growth = 1 + cosine + (1 - cosine) * zeta.square()  # 2 ζ (cosh δ + e·u sinh δ)
    pulled = (1 - zeta) * (1 + zeta + cosine * (1 - zeta)) / (growth * size)
    turned = torch.addcmul(velocity * (2 * zeta / growth), pull, pulled)
    return turned, ((velocity.shape[1] - 1) * (delta + torch.log(0.5 * growth)))[:, 0]
