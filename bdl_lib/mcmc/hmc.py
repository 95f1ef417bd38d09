r"""Hamiltonian Monte Carlo: give the position a momentum, follow the motion, keep the end or stay.

.. math:: H(\theta, p) = -\log \pi(\theta) + \tfrac12 p^\top M^{-1} p, \qquad
          \dot\theta = M^{-1} p, \qquad \dot p = \nabla \log \pi(\theta)

``leapfrog`` follows the motion, ``transition`` is one whole step; ``chees`` and ``mala`` use them too.

Chapter: book/04-mcmc.ipynb
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.evidence import Kernel, LogProb
from bdl_lib.mcmc._checks import check_at_least, check_positive
from bdl_lib.mcmc.adaptation import warm_up
from bdl_lib.mcmc.density import Density, differentiable, initial_value_and_grad
from bdl_lib.mcmc.run import Draws, collect

__all__ = ["HmcInfo", "HmcState", "Metric", "PhasePoint", "gaussian_momentum", "hmc", "leapfrog", "sample_hmc"]

DIVERGENCE_THRESHOLD = 1000.0  # nats of energy error


class HmcState(NamedTuple):
    """Where the chains are, the density there, and its gradient, with which the next trajectory starts.

    Book: sec-hmc
    """

    position: Float[Tensor, "chains dim"]
    log_prob: Float[Tensor, " chains"]  # nats
    grad: Float[Tensor, "chains dim"]


class HmcInfo(NamedTuple):
    """What a reader wants to see of one step.

    Book: sec-hmc
    """

    acceptance_rate: Float[Tensor, " chains"]  # the probability of the trajectory's end, 0 to 1
    is_accepted: Bool[Tensor, " chains"]
    is_divergent: Bool[Tensor, " chains"]  # energy error above 1000 nats, or not a number
    num_leapfrog_steps: int  # the same for all chains
    energy: Float[Tensor, " chains"]  # H after the step, nats
    log_prob: Float[Tensor, " chains"]  # nats, after the step


class PhasePoint(NamedTuple):
    """A position with a momentum, and the density there.

    Book: sec-hmc
    """

    position: Float[Tensor, "chains dim"]
    momentum: Float[Tensor, "chains dim"]
    log_prob: Float[Tensor, " chains"]  # nats
    grad: Float[Tensor, "chains dim"]


class Metric(NamedTuple):
    """What a mass matrix does: draws momenta, turns them into velocities, and weighs them.

    Book: sec-hmc
    """

    draw: Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]  # position -> momentum, its kinetic energy
    drift_: Callable[[Tensor, Tensor, float], Tensor]  # position += step_size M⁻¹ momentum, in place
    velocity: Callable[[Tensor], Tensor]  # M⁻¹ momentum
    whiten: Callable[[Tensor], Tensor]  # C⁻¹ position, of unit covariance if the position's is M⁻¹


def hmc(
    log_prob: LogProb,
    *,
    step_size: float,
    num_leapfrog_steps: int,
    inverse_mass_matrix: Float[Tensor, " dim"] | Float[Tensor, "dim dim"] | None = None,
) -> Kernel:
    r"""Hamiltonian Monte Carlo with trajectories of fixed length.

    .. math:: p \sim N(0, M), \qquad (\theta', p') = \text{leapfrog}^L(\theta, p), \qquad
              P(\text{accept}) = \min\{1, e^{H(\theta, p) - H(\theta', p')}\}

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant; see :func:`differentiable`.
        step_size: ε > 0, in units of time.
        num_leapfrog_steps: L ≥ 1, the same for all chains.
        inverse_mass_matrix: M⁻¹, best near the covariance of π: a vector for a diagonal matrix, a symmetric positive
            definite matrix for a dense one, or nothing for the identity.

    Returns:
        A kernel. A step costs L gradients and one density, for all chains together. Where the density or the energy
        is not a number, the chain stays where it was and the step is reported as divergent.

    Raises:
        ValueError: if ``step_size`` is not positive and finite, ``num_leapfrog_steps`` is below 1 or the matrix not
            positive definite; from ``init``, if the start is not finite.

    Source: Neal (2011), MCMC using Hamiltonian dynamics, arXiv:1206.1901.
    Book: sec-hmc
    """
    check_positive("step_size", step_size)
    check_at_least("num_leapfrog_steps", num_leapfrog_steps, 1)
    density, metric = differentiable(log_prob), gaussian_momentum(inverse_mass_matrix)

    @torch.no_grad()
    def step(state, generator):
        state, info, _ = transition(density, metric, state, generator, step_size, num_leapfrog_steps)
        return state, info

    return Kernel(lambda position: HmcState(position, *initial_value_and_grad(density, position)), step)


def sample_hmc(
    log_prob: LogProb,
    initial_position: Float[Tensor, "chains dim"],
    *,
    num_warmup: int,
    num_samples: int,
    generator: torch.Generator,
    progress: bool = False,
    num_leapfrog_steps: int = 10,
    target_acceptance_rate: float = 0.8,
    mass_matrix: str = "diagonal",
) -> Draws:
    r"""Draw with Hamiltonian Monte Carlo, its step size and mass matrix learnt in warm-up.

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant; see :func:`differentiable`.
        initial_position: where the chains start.
        num_warmup: steps to learn from, not kept, at least 1. The host waits for the device once in each of them.
        num_samples: draws to keep of each chain, at least 1.
        generator: the source of randomness, on the device of the position.
        progress: whether to show a bar.
        num_leapfrog_steps: L ≥ 1; :func:`sample_chees` learns it, here it stays.
        target_acceptance_rate: between 0 and 1.
        mass_matrix: "diagonal", "dense" or "auto"; see :func:`pooled_inverse_mass_matrix`.

    Returns:
        :class:`Draws`, with ``settings`` for :func:`hmc`.

    Raises:
        ValueError: if a number is out of its range, the start is not finite (which chains) or ``log_prob`` does not
            give one number a chain.

    Source: Neal (2011), MCMC using Hamiltonian dynamics, arXiv:1206.1901.
    Book: sec-hmc
    """
    check_at_least("num_samples", num_samples, 1)
    start = hmc(log_prob, step_size=1.0, num_leapfrog_steps=num_leapfrog_steps).init(initial_position)
    density = differentiable(log_prob)

    def make_move(inverse_mass_matrix):
        metric = gaussian_momentum(inverse_mass_matrix)
        return lambda state, generator, step_size: transition(
            density, metric, state, generator, step_size, num_leapfrog_steps
        )[:2]

    state, step_size, inverse_mass_matrix = warm_up(
        make_move,
        start,
        num_warmup=num_warmup,
        generator=generator,
        target_acceptance_rate=target_acceptance_rate,
        mass_matrix=mass_matrix,
        progress=progress,
    )
    settings = {
        "step_size": step_size,
        "num_leapfrog_steps": num_leapfrog_steps,
        "inverse_mass_matrix": inverse_mass_matrix,
    }
    kernel = hmc(log_prob, **settings)
    draws = collect(kernel, state, num_samples=num_samples, generator=generator, progress=progress)
    return draws._replace(settings=settings)


def leapfrog(
    log_prob: LogProb,
    position: Float[Tensor, "chains dim"],
    momentum: Float[Tensor, "chains dim"],
    *,
    step_size: float,
    num_leapfrog_steps: int,
    inverse_mass_matrix: Float[Tensor, " dim"] | Float[Tensor, "dim dim"] | None = None,
) -> PhasePoint:
    r"""Follow the motion for L steps of the leapfrog integrator.

    .. math:: p \leftarrow p + \tfrac{\varepsilon}{2} \nabla \log \pi(\theta), \qquad
              \theta \leftarrow \theta + \varepsilon M^{-1} p, \qquad
              p \leftarrow p + \tfrac{\varepsilon}{2} \nabla \log \pi(\theta)

    Two half kicks that meet between two steps are made as one. The map is reversible (negate the momentum, integrate,
    and be back) and preserves volume; its error in the energy is of second order in ε.

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant.
        position: θ at the start.
        momentum: p at the start.
        step_size: ε, in units of time; a negative one integrates backwards.
        num_leapfrog_steps: L ≥ 1.
        inverse_mass_matrix: M⁻¹, as for :func:`hmc`.

    Returns:
        The :class:`PhasePoint` at the end, with the log density there in nats, and its gradient.

    Raises:
        ValueError: if ``num_leapfrog_steps`` is below 1, the matrix is not positive definite or the start not finite.

    Source: Neal (2011), MCMC using Hamiltonian dynamics, section 2.3, arXiv:1206.1901.
    Book: sec-hmc
    """
    check_at_least("num_leapfrog_steps", num_leapfrog_steps, 1)
    density, metric = differentiable(log_prob), gaussian_momentum(inverse_mass_matrix)
    with torch.no_grad():
        start = PhasePoint(position, momentum, *initial_value_and_grad(density, position))
        return integrate(density, metric, start, step_size, num_leapfrog_steps)


def gaussian_momentum(inverse_mass_matrix: Float[Tensor, " dim"] | Float[Tensor, "dim dim"] | None = None) -> Metric:
    r"""Momenta with covariance M, from the inverse of that matrix.

    .. math:: p = C^{-\top} \varepsilon \sim N(0, M), \quad C C^\top = M^{-1}, \qquad
              \tfrac12 p^\top M^{-1} p = \tfrac12 \lVert \varepsilon \rVert^2

    Args:
        inverse_mass_matrix: M⁻¹: a vector for a diagonal matrix, a symmetric positive definite matrix for a dense one,
            nothing for the identity.

    Returns:
        A :class:`Metric`. With each of the three, a drift is one operation.

    Raises:
        ValueError: if the matrix is not positive definite, or of another shape.

    Book: sec-hmc
    """
    if inverse_mass_matrix is None:
        return Metric(_standard_normal, lambda x, p, e: x.add_(p, alpha=e), lambda p: p, lambda x: x)
    if inverse_mass_matrix.ndim == 1:
        check_positive("inverse_mass_matrix", inverse_mass_matrix)
        inverse_std = inverse_mass_matrix.rsqrt()

        def draw(position, generator):
            noise, kinetic_energy = _standard_normal(position, generator)
            return noise.mul_(inverse_std), kinetic_energy

        return Metric(
            draw,
            lambda x, p, e: x.addcmul_(p, inverse_mass_matrix, value=e),
            lambda p: p * inverse_mass_matrix,
            lambda x: x * inverse_std,
        )
    inverse_root = _inverse_root(inverse_mass_matrix)

    def draw_correlated(position, generator):
        noise, kinetic_energy = _standard_normal(position, generator)
        return noise @ inverse_root, kinetic_energy

    return Metric(
        draw_correlated,
        lambda x, p, e: x.addmm_(p, inverse_mass_matrix, alpha=e),
        lambda p: p @ inverse_mass_matrix,
        lambda x: x @ inverse_root.mT,
    )


def integrate(
    density: Density, metric: Metric, start: PhasePoint, step_size: float, num_leapfrog_steps: int
) -> PhasePoint:
    """The leapfrog steps themselves: beyond the gradient two operations a step, and no wait for the device."""
    momentum = torch.add(start.momentum, start.grad, alpha=0.5 * step_size)
    position = start.position.clone()  # scratch from here on, as the momentum is
    for _ in range(num_leapfrog_steps - 1):
        metric.drift_(position, momentum, step_size)
        momentum.add_(density.grad(position), alpha=step_size)
    metric.drift_(position, momentum, step_size)
    log_prob, grad = density.value_and_grad(position)
    momentum.add_(grad, alpha=0.5 * step_size)
    return PhasePoint(position, momentum, log_prob, grad)


def transition(
    density: Density, metric: Metric, state: HmcState, generator: torch.Generator, step_size: float, num_steps: int
) -> tuple[HmcState, HmcInfo, PhasePoint]:
    """One step of HMC: the state after it, its info, and the end of the trajectory, taken or not."""
    momentum, kinetic_energy = metric.draw(state.position, generator)
    energy = kinetic_energy - state.log_prob
    end = integrate(
        density, metric, PhasePoint(state.position, momentum, state.log_prob, state.grad), step_size, num_steps
    )
    energy_error = 0.5 * (end.momentum * metric.velocity(end.momentum)).sum(1) - end.log_prob - energy
    # What is not a number is no place to go to: an infinite error.
    energy_error.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=math.inf)
    is_accepted = energy_error < torch.empty_like(energy_error).exponential_(generator=generator)
    position, grad = (
        torch.where(is_accepted[:, None], new, old)
        for new, old in ((end.position, state.position), (end.grad, state.grad))
    )
    log_prob = torch.where(is_accepted, end.log_prob, state.log_prob)
    info = HmcInfo(
        acceptance_rate=torch.exp(-energy_error.clamp(min=0)),
        is_accepted=is_accepted,
        is_divergent=energy_error > DIVERGENCE_THRESHOLD,
        num_leapfrog_steps=num_steps,
        energy=torch.where(is_accepted, energy + energy_error, energy),
        log_prob=log_prob,
    )
    return HmcState(position, log_prob, grad), info, end


def _standard_normal(position, generator):
    noise = torch.randn(position.shape, generator=generator, dtype=position.dtype, device=position.device)
    return noise, 0.5 * noise.square().sum(1)


def _inverse_root(inverse_mass_matrix):
    """C⁻¹ of the Cholesky factor C of M⁻¹."""
    if inverse_mass_matrix.ndim != 2 or len(inverse_mass_matrix) != inverse_mass_matrix.shape[1]:
        raise ValueError(f"inverse_mass_matrix must be [dim] or [dim, dim], got {list(inverse_mass_matrix.shape)}")
    root, failed = torch.linalg.cholesky_ex(inverse_mass_matrix)
    if failed or not inverse_mass_matrix.isfinite().all():
        raise ValueError("inverse_mass_matrix must be positive definite, got a matrix without a Cholesky factor")
    identity = torch.eye(len(root), dtype=root.dtype, device=root.device)
    return torch.linalg.solve_triangular(root, identity, upper=False)
