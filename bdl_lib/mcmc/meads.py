r"""MEADS: many chains that keep their momentum, and read every setting off one another.

Hamiltonian Monte Carlo draws a new momentum for each trajectory and must be told how long that is. Generalized HMC
takes one leapfrog step at a time and renews the momentum a little before each. How much, the *damping*, takes the place
of the length. MEADS sets damping and step size from two largest eigenvalues, estimated over all chains.

Chapter: book/04-mcmc.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.evidence import Kernel, LogProb
from bdl_lib.mcmc._checks import check_at_least, check_positive
from bdl_lib.mcmc.density import differentiable, initial_value_and_grad
from bdl_lib.mcmc.hmc import DIVERGENCE_THRESHOLD
from bdl_lib.mcmc.run import Draws, collect, show

__all__ = ["GhmcInfo", "GhmcState", "generalized_hmc", "largest_eigenvalue", "sample_meads"]

NUM_FOLDS = 4
STEP_SIZE_MULTIPLIER = 0.5  # of the longest stable step, as in the paper


class GhmcState(NamedTuple):
    """Where the chains are and go, and how near each is to its next rejection.

    Book: sec-chees
    """

    position: Float[Tensor, "chains dim"]
    momentum: Float[Tensor, "chains dim"]  # of the whitened position: N(0, I) in the long run
    log_prob: Float[Tensor, " chains"]  # nats
    grad: Float[Tensor, "chains dim"]
    threshold: Float[Tensor, " chains"]  # uniform from -1 to 1 in the long run; its size decides on acceptance


class GhmcInfo(NamedTuple):
    """What a reader wants to see of one draw.

    Book: sec-chees
    """

    acceptance_rate: Float[Tensor, " chains"]  # mean over the leapfrog steps of the draw
    is_accepted: Bool[Tensor, " chains"]  # the last of them
    is_divergent: Bool[Tensor, " chains"]  # energy error above 1000 nats, or not a number, in any of them
    num_leapfrog_steps: int
    log_prob: Float[Tensor, " chains"]  # nats, after the draw


def generalized_hmc(
    log_prob: LogProb,
    *,
    step_size: float,
    damping: float,
    inverse_mass_matrix: Float[Tensor, " dim"] | None = None,
    num_steps: int = 10,
) -> Kernel:
    r"""HMC with trajectories of one leapfrog step and a momentum that persists.

    .. math:: p \leftarrow \sqrt{1 - \alpha}\, p + \sqrt\alpha\, \xi, \quad \xi \sim N(0, I), \quad
              \alpha = 1 - e^{-2 \varepsilon \gamma}, \qquad
              (\theta', p') = \text{leapfrog}(\theta, p), \qquad
              \text{accept if } |v| < e^{-\Delta H}

    A rejection reverses the momentum, and a walk that is reversed often gets nowhere. So the uniform number v is not
    drawn anew: it moves on by α/2 a step (around the interval from -1 to 1), and after an acceptance is multiplied by
    :math:`e^{\Delta H}`. That leaves it uniform, and bunches the rejections together.

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant; see :func:`differentiable`.
        step_size: ε > 0, in whitened units: 1 is one standard deviation where the mass matrix is right.
        damping: γ > 0, the rate a unit of time at which the momentum is renewed.
        inverse_mass_matrix: the variances of π along each direction, positive; ones, if not given.
        num_steps: leapfrog steps a draw, at least 1: the states between are not kept.

    Returns:
        A kernel. A draw costs ``num_steps`` densities with their gradients, for all chains together. Where the density
        or the energy is not a number, the chain stays where it was. ``init`` starts at rest, with v spread evenly.

    Raises:
        ValueError: if a setting is not positive and finite; from ``init``, if the start is not finite.

    Source: Horowitz (1991), doi:10.1016/0370-2693(91)90812-5; Neal (2020), arXiv:2001.11950, for v.
    Book: sec-chees
    """
    check_positive("step_size", step_size)
    check_positive("damping", damping)
    check_at_least("num_steps", num_steps, 1)
    if inverse_mass_matrix is not None:
        check_positive("inverse_mass_matrix", inverse_mass_matrix)
    density = differentiable(log_prob)
    scale = 1.0 if inverse_mass_matrix is None else inverse_mass_matrix.sqrt()
    alpha = -math.expm1(-2 * step_size * damping)

    @torch.no_grad()
    def step(state, generator):
        return _draw(density, state, generator, step_size * scale, alpha**0.5, num_steps)

    return Kernel(lambda position: _at_rest(density, position), step)


def sample_meads(
    log_prob: LogProb,
    initial_position: Float[Tensor, "chains dim"],
    *,
    num_warmup: int,
    num_samples: int,
    generator: torch.Generator,
    progress: bool = False,
    num_steps: int = 10,
) -> Draws:
    r"""Generalized HMC, tuned by its own many chains, without a single acceptance rate being looked at.

    .. math:: \varepsilon = \min\Big\{1, \frac{1}{2 \sqrt{\lambda_\text{max}(\text{gradients})}}\Big\}, \qquad
              \gamma = \max\Big\{ \frac{1}{\sqrt{\lambda_\text{max}(\text{positions})}}, \frac{1}{t \varepsilon} \Big\}

    both whitened by the standard deviations of the positions. The steepest direction bounds the step, the longest one
    says for how long a momentum should last, and t, the number of steps so far, damps more strongly at first. Chains
    sit in four folds, and each takes its scales and its step size from the fold before it, so that a fold does not
    chase its own tail. After warm-up the settings are frozen, at their means over its second half. (The paper never
    stops to adapt, and for that lets each fold sit out in turn; frozen settings leave π invariant without.)

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant; see :func:`differentiable`.
        initial_position: at least 8 chains, their number divisible by 4, not all at one point; 64 or more is better.
        num_warmup: draws to learn from and throw away, at least 2.
        num_samples: draws to keep of each chain, at least 1.
        generator: on the device of the position.
        progress: whether to show a bar.
        num_steps: leapfrog steps a draw, at least 1.

    Returns:
        A :class:`Draws`; its ``settings`` are the arguments of :func:`generalized_hmc`.

    Raises:
        ValueError: if there are too few chains, a number is out of range, or the start is not finite, does not vary in
            some direction, or has gradient zero everywhere.

    Source: Hoffman and Sountsov (2022), Tuning-Free Generalized Hamiltonian Monte Carlo, AISTATS, algorithm 3.
    Book: sec-chees
    """
    check_at_least("num_warmup", num_warmup, 2)
    check_at_least("num_samples", num_samples, 1)
    check_at_least("num_steps", num_steps, 1)
    num_chains = len(initial_position)
    if not (num_chains >= 2 * NUM_FOLDS and num_chains % NUM_FOLDS == 0):
        raise ValueError(
            f"initial_position must have 8, 12, 16, ... chains, since they learn from one another, got {num_chains}"
        )
    density = differentiable(log_prob)
    state = _at_rest(density, initial_position)
    _check_spread(state)
    with torch.no_grad():
        state, settings = _warm_up(density, state, generator, num_warmup, num_steps, progress)
    settings["num_steps"] = num_steps
    kernel = generalized_hmc(log_prob, **settings)
    draws = collect(kernel, state, num_samples=num_samples, generator=generator, progress=progress)
    return draws._replace(settings=settings)


def largest_eigenvalue(rows: Float[Tensor, "*batch n dim"]) -> Float[Tensor, "*batch"]:
    r"""An estimate of the largest eigenvalue of :math:`S = \frac1n \sum_i x_i x_i^\top` 's expectation, from few rows.

    .. math:: \hat\lambda_\text{max} = \frac{\operatorname{tr} S^2}{\operatorname{tr} S}
              = \frac{\sum_j \lambda_j^2}{\sum_j \lambda_j} \le \lambda_\text{max}(S)

    a mean of the eigenvalues in which the large ones count most. The largest eigenvalue of S itself is far too large
    when there are fewer rows than dimensions. No matrix of dim by dim is made.

    Args:
        rows: x, centred where the covariance is wanted.

    Returns:
        One number, in squared units of the rows.

    Source: Hoffman and Sountsov (2022), algorithm 2.
    Book: sec-chees
    """
    num_rows = rows.shape[-2]
    trace = rows.square().sum((-1, -2)) / num_rows
    trace_of_square = (rows @ rows.mT).square().sum((-1, -2)) / num_rows**2
    return trace_of_square / trace


def _at_rest(density, position):
    log_prob, grad = initial_value_and_grad(density, position)
    threshold = torch.linspace(-1, 1, len(position) + 2, dtype=position.dtype, device=position.device)[1:-1]
    return GhmcState(position, torch.zeros_like(position), log_prob, grad, threshold)


def _check_spread(state):
    std = state.position.unflatten(0, (NUM_FOLDS, -1)).std(1)
    if not (std > 0).all():
        raise ValueError("initial_position must vary in every direction within every quarter of the chains, does not")
    if not (state.grad != 0).any():
        raise ValueError("log_prob must have a gradient at the start, got zero in every chain")


def _warm_up(density, state, generator, num_warmup, num_steps, progress):
    """Adapt before every draw; the settings are means over the second half."""
    kept = []
    for i in show(range(num_warmup), progress):
        step_size, damping, scale = _settings_of_folds(state, 1 + i * num_steps)
        noise_share = (-torch.expm1(-2 * step_size * damping)).sqrt()
        by_chain = [x.repeat_interleave(len(state.position) // NUM_FOLDS, 0) for x in (step_size * scale, noise_share)]
        state, _ = _draw(density, state, generator, *by_chain, num_steps)
        if i >= num_warmup // 2:
            kept.append([step_size.log().mean(), damping.log().mean(), scale.square().mean(0)])
    log_step_size, log_damping, variance = (torch.stack(values).mean(0) for values in zip(*kept, strict=True))
    settings = {"step_size": log_step_size.exp().item(), "damping": log_damping.exp().item()}
    return state, settings | {"inverse_mass_matrix": variance}


def _settings_of_folds(state, num_steps_so_far):
    """Step size [folds, 1], damping [folds, 1] and scale [folds, dim] of each fold."""
    position, grad = (x.unflatten(0, (NUM_FOLDS, -1)) for x in (state.position, state.grad))
    centred = position - position.mean(1, keepdim=True)
    std = centred.square().mean(1, keepdim=True).sqrt()
    step_size = (STEP_SIZE_MULTIPLIER * largest_eigenvalue(grad * std).rsqrt()).clamp(max=1)
    step_size, scale = step_size.roll(1)[:, None], std[:, 0].roll(1, 0)
    damping = largest_eigenvalue(centred / std).rsqrt()[:, None]
    return step_size, torch.maximum(damping, 1 / (num_steps_so_far * step_size)), scale


def _draw(density, state, generator, step_size, noise_share, num_steps):
    """Some steps of generalized HMC; ``step_size`` is in the units of the position, one a direction."""
    acceptance_rate, is_divergent = 0.0, False
    for _ in range(num_steps):
        state, energy_error, is_accepted = _step(density, state, generator, step_size, noise_share)
        acceptance_rate = acceptance_rate + torch.exp(-energy_error.clamp(min=0))
        is_divergent = is_divergent | (energy_error > DIVERGENCE_THRESHOLD)
    return state, GhmcInfo(acceptance_rate / num_steps, is_accepted, is_divergent, num_steps, state.log_prob)


def _step(density, state, generator, step_size, noise_share):
    noise = torch.randn(state.position.shape, generator=generator, dtype=state.position.dtype, device=state.grad.device)
    momentum = (1 - noise_share**2) ** 0.5 * state.momentum + noise_share * noise
    threshold = (state.threshold + 1 + 0.5 * _column(noise_share) ** 2) % 2 - 1

    half_way = momentum + 0.5 * step_size * state.grad
    position = state.position + step_size * half_way
    log_prob, grad = density.value_and_grad(position)
    end = half_way + 0.5 * step_size * grad
    energy_error = 0.5 * (end.square().sum(1) - momentum.square().sum(1)) + state.log_prob - log_prob
    energy_error = energy_error.nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf)

    is_accepted = threshold.abs() < torch.exp(-energy_error)
    old = GhmcState(state.position, -momentum, state.log_prob, state.grad, threshold)
    new = GhmcState(position, end, log_prob, grad, threshold * torch.exp(energy_error))
    choices = (
        torch.where(is_accepted if x.ndim == 1 else is_accepted[:, None], x, y) for x, y in zip(new, old, strict=True)
    )
    return GhmcState(*choices), energy_error, is_accepted


def _column(noise_share):
    """One number a chain, or one for all, from what broadcasts against [chains, dim]."""
    return noise_share[:, 0] if isinstance(noise_share, Tensor) else noise_share
