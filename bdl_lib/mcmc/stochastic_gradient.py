r"""Samplers for data too many to read at every step: the gradient comes from a minibatch, and nothing is ever rejected.

Both discretise a motion whose stationary density is π, and skip the Metropolis test, which would need all the data.
What they pay is a bias, of the order of the step size; what each minibatch adds to the noise is a second one. On a
Gaussian posterior both are known in closed form.

Chapter: book/04-mcmc.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.evidence import Kernel, LogProb
from bdl_lib.mcmc._checks import check_at_least, check_position, check_positive
from bdl_lib.mcmc.density import differentiable
from bdl_lib.mcmc.run import Draws, collect, show
from bdl_lib.networks import draw_rows

__all__ = ["SghmcState", "SgldState", "StochasticInfo", "sample_sghmc", "sample_sgld", "sghmc", "sgld"]


class SgldState(NamedTuple):
    """Where the chains are.

    Book: sec-sgld
    """

    position: Float[Tensor, "chains dim"]


class SghmcState(NamedTuple):
    """Where the chains are, and how far the next step will carry them.

    Book: sec-sgld
    """

    position: Float[Tensor, "chains dim"]
    velocity: Float[Tensor, "chains dim"]  # in units of the position a step


class StochasticInfo(NamedTuple):
    """What there is to see without the density.

    Book: sec-sgld
    """

    is_divergent: Bool[Tensor, " chains"]  # a step of the draw was not finite, and was not made


def sgld(log_prob: LogProb, *, step_size: float, batch_size: int | None = None, num_steps: int = 1) -> Kernel:
    r"""Stochastic-gradient Langevin dynamics, with a constant step.

    .. math:: \theta' = \theta + \tfrac{\varepsilon}{2} \hat g(\theta) + \sqrt\varepsilon\, \xi, \quad \xi \sim N(0, I)

    with ĝ the gradient of the log posterior on a minibatch, whose expectation is the full one. Where the posterior is
    normal with precision Λ, along an eigenvector of Λ the chain has the variance

    .. math:: \frac{1}{\lambda} \cdot \frac{1 + \varepsilon V / 4}{1 - \varepsilon \lambda / 4}

    with λ the eigenvalue and V the variance of ĝ about the full gradient: too wide, by the step and by the minibatch.
    From :math:`\varepsilon \lambda = 4` on it explodes.

    Args:
        log_prob: ``log_prob(position, rows)``, [chains, dim] to [chains], and best with ``grad(position, rows)``, as a
            :class:`~bdl_lib.networks.LogPosterior` has; the number of rows is the length of its ``targets``.
        step_size: ε > 0, in squared units of the position.
        batch_size: rows of one minibatch, drawn without replacement, the same for all chains; all rows, if not given.
        num_steps: steps a draw, at least 1: the states between are not kept.

    Returns:
        A kernel that costs one minibatch gradient a step. A step to where the position is not finite is not made.

    Raises:
        ValueError: if a setting is out of range, ``log_prob`` has no ``targets`` to draw a minibatch from, or, from
            ``init``, if the position is not [chains, dim] or not finite.

    Source: Welling and Teh (2011), Bayesian Learning via Stochastic Gradient Langevin Dynamics, ICML.
    Book: sec-sgld
    """
    check_positive("step_size", step_size)
    gradient = _minibatch_gradient(log_prob, batch_size)

    def one_step(state, generator):
        position = state.position + 0.5 * step_size * gradient(state.position, generator)
        return SgldState(position + math.sqrt(step_size) * _noise(position, generator))

    return _kernel(lambda position: SgldState(position), one_step, num_steps)


def sghmc(
    log_prob: LogProb,
    *,
    step_size: float,
    friction: float,
    batch_size: int | None = None,
    num_steps: int = 1,
) -> Kernel:
    r"""Stochastic-gradient HMC: minibatch gradients push a velocity, friction and noise keep it warm.

    .. math:: \theta' = \theta + v, \qquad
              v' = (1 - \alpha)\, v + \eta\, \hat g(\theta') + \sqrt{2 \alpha \eta}\, \xi, \quad \xi \sim N(0, I)

    The friction α is there for the minibatch: without it, the noise of ĝ would heat the chain without end. On a normal
    posterior, along an eigenvector of the precision with eigenvalue λ and with V the variance of ĝ about the full
    gradient, the chain has the variance

    .. math:: \frac{1}{\lambda} \cdot \frac{1 + \eta V / (2 \alpha)}{1 - \eta \lambda / (4 - 2 \alpha)}

    With α = 1 it is :func:`sgld` with ε = 2η.

    Args:
        log_prob: as for :func:`sgld`.
        step_size: η > 0, in squared units of the position: the square of the step of a leapfrog.
        friction: α, above 0 and at most 1: the share of the velocity that is lost a step.
        batch_size: rows of one minibatch, drawn without replacement, the same for all chains; all rows, if not given.
        num_steps: steps a draw, at least 1: the states between are not kept.

    Returns:
        A kernel that costs one minibatch gradient a step, and starts at rest. A step to where the position or the
        velocity is not finite is not made; the chain is stopped instead.

    Raises:
        ValueError: as :func:`sgld`, or if ``friction`` is not above 0 and at most 1.

    Source: Chen, Fox and Guestrin (2014), arXiv:1402.4102, with their estimate of the minibatch's noise set to zero.
    Book: sec-sgld
    """
    check_positive("step_size", step_size)
    if not 0 < friction <= 1:
        raise ValueError(f"friction must be above 0 and at most 1, got {friction}")
    gradient = _minibatch_gradient(log_prob, batch_size)

    def one_step(state, generator):
        position = state.position + state.velocity
        push = step_size * gradient(position, generator)
        push = push + math.sqrt(2 * friction * step_size) * _noise(position, generator)
        return SghmcState(position, (1 - friction) * state.velocity + push)

    return _kernel(lambda position: SghmcState(position, torch.zeros_like(position)), one_step, num_steps)


def sample_sgld(
    log_prob: LogProb,
    initial_position: Float[Tensor, "chains dim"],
    *,
    num_warmup: int,
    num_samples: int,
    generator: torch.Generator,
    progress: bool = False,
    step_size: float,
    batch_size: int | None = None,
    num_steps: int = 1,
) -> Draws:
    r"""Run :func:`sgld`. Nothing is tuned: there is no acceptance rate to tune by.

    Args:
        log_prob: as for :func:`sgld`.
        initial_position: one start a chain.
        num_warmup: draws to throw away, at least 0.
        num_samples: draws to keep of each chain, at least 1.
        generator: on the device of the position.
        progress: whether to show a bar.
        step_size: ε > 0, in squared units of the position.
        batch_size: rows of one minibatch; all rows, if not given.
        num_steps: steps a draw, at least 1.

    Returns:
        A :class:`Draws`; its ``settings`` are the arguments of :func:`sgld`.

    Raises:
        ValueError: as :func:`sgld`, or if ``num_warmup`` or ``num_samples`` is too small.

    Source: Welling and Teh (2011), Bayesian Learning via Stochastic Gradient Langevin Dynamics, ICML.
    Book: sec-sgld
    """
    settings = {"step_size": step_size, "batch_size": batch_size, "num_steps": num_steps}
    kernel = sgld(log_prob, **settings)
    draws = _run(kernel, initial_position, num_warmup, num_samples, generator, progress)
    return draws._replace(settings=settings)


def sample_sghmc(
    log_prob: LogProb,
    initial_position: Float[Tensor, "chains dim"],
    *,
    num_warmup: int,
    num_samples: int,
    generator: torch.Generator,
    progress: bool = False,
    step_size: float,
    friction: float,
    batch_size: int | None = None,
    num_steps: int = 1,
) -> Draws:
    r"""Run :func:`sghmc`. Nothing is tuned: there is no acceptance rate to tune by.

    Args:
        log_prob: as for :func:`sgld`.
        initial_position: one start a chain.
        num_warmup: draws to throw away, at least 0.
        num_samples: draws to keep of each chain, at least 1.
        generator: on the device of the position.
        progress: whether to show a bar.
        step_size: η > 0, in squared units of the position.
        friction: α, above 0 and at most 1.
        batch_size: rows of one minibatch; all rows, if not given.
        num_steps: steps a draw, at least 1.

    Returns:
        A :class:`Draws`; its ``settings`` are the arguments of :func:`sghmc`.

    Raises:
        ValueError: as :func:`sghmc`, or if ``num_warmup`` or ``num_samples`` is too small.

    Source: Chen, Fox and Guestrin (2014), arXiv:1402.4102.
    Book: sec-sgld
    """
    settings = {"step_size": step_size, "friction": friction, "batch_size": batch_size, "num_steps": num_steps}
    kernel = sghmc(log_prob, **settings)
    draws = _run(kernel, initial_position, num_warmup, num_samples, generator, progress)
    return draws._replace(settings=settings)


def _run(kernel, initial_position, num_warmup, num_samples, generator, progress):
    check_at_least("num_warmup", num_warmup, 0)
    check_at_least("num_samples", num_samples, 1)
    state = kernel.init(initial_position)
    for _ in show(range(num_warmup), progress):
        state, _ = kernel.step(state, generator)
    return collect(kernel, state, num_samples=num_samples, generator=generator, progress=progress)


def _minibatch_gradient(log_prob, batch_size):
    """The gradient as a function of position and generator, which draws the rows."""
    if batch_size is None:
        grad = differentiable(log_prob).grad
        return lambda position, generator: grad(position)
    if not hasattr(log_prob, "targets"):
        raise ValueError(f"log_prob must have targets, one a row, to draw a minibatch of {batch_size}, got {log_prob}")
    num_rows = len(log_prob.targets)
    if not 1 <= batch_size <= num_rows:
        raise ValueError(f"batch_size must be from 1 to the number of rows, {num_rows}, got {batch_size}")

    def gradient(position, generator):
        rows = draw_rows(num_rows, batch_size, generator=generator)
        if hasattr(log_prob, "grad"):
            return log_prob.grad(position, rows)
        return differentiable(lambda weights: log_prob(weights, rows)).grad(position)

    return gradient


def _noise(like, generator):
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _kernel(start, one_step, num_steps):
    check_at_least("num_steps", num_steps, 1)

    def init(position):
        check_position(position)
        return start(position)

    @torch.no_grad()
    def step(state, generator):
        is_divergent = torch.zeros_like(state.position[:, 0], dtype=torch.bool)
        for _ in range(num_steps):
            proposal = one_step(state, generator)
            is_finite = torch.stack([value.isfinite().all(1) for value in proposal]).all(0)
            held = start(state.position)  # at rest, if there is a velocity
            choices = [torch.where(is_finite[:, None], new, old) for new, old in zip(proposal, held, strict=True)]
            state, is_divergent = type(state)(*choices), is_divergent | ~is_finite
        return state, StochasticInfo(is_divergent)

    return Kernel(init, step)
