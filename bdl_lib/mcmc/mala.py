"""The Metropolis-adjusted Langevin algorithm: a proposal that leans uphill.

Chapter: book/04-mcmc.ipynb
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.evidence import Kernel, LogProb
from bdl_lib.mcmc._checks import check_at_least
from bdl_lib.mcmc.adaptation import warm_up
from bdl_lib.mcmc.density import differentiable
from bdl_lib.mcmc.hmc import gaussian_momentum, hmc, transition
from bdl_lib.mcmc.run import Draws, collect

__all__ = ["mala", "sample_mala"]


def mala(
    log_prob: LogProb,
    *,
    step_size: float,
    inverse_mass_matrix: Float[Tensor, " dim"] | Float[Tensor, "dim dim"] | None = None,
) -> Kernel:
    r"""A Langevin step as a proposal, with its Metropolis adjustment.

    .. math:: \theta' = \theta + \tfrac{\varepsilon^2}{2} M^{-1} \nabla \log \pi(\theta) + \varepsilon \xi, \quad
              \xi \sim N(0, M^{-1})

    That is Hamiltonian Monte Carlo with one leapfrog step, and so it is computed: the ratio of the two proposal
    densities in the acceptance rule is the change in kinetic energy.

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant; see :func:`differentiable`.
        step_size: ε > 0, the standard deviation of the noise in units of M^(-1/2) (not ε²).
        inverse_mass_matrix: M⁻¹, as for :func:`hmc`.

    Returns:
        A kernel that costs one gradient and one density a step, for all chains together.

    Raises:
        ValueError: if ``step_size`` is not positive and finite or the matrix not positive definite; from ``init``, if
            the start is not finite.

    Source: Roberts and Tweedie (1996), doi:10.2307/3318418.
    Book: sec-hmc
    """
    return hmc(log_prob, step_size=step_size, num_leapfrog_steps=1, inverse_mass_matrix=inverse_mass_matrix)


def sample_mala(
    log_prob: LogProb,
    initial_position: Float[Tensor, "chains dim"],
    *,
    num_warmup: int,
    num_samples: int,
    generator: torch.Generator,
    progress: bool = False,
    target_acceptance_rate: float = 0.574,
    mass_matrix: str = "diagonal",
) -> Draws:
    r"""Draw with MALA, its step size and mass matrix learnt in warm-up.

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant; see :func:`differentiable`.
        initial_position: where the chains start.
        num_warmup: steps to learn from, not kept, at least 1.
        num_samples: draws to keep of each chain, at least 1.
        generator: the source of randomness, on the device of the position.
        progress: whether to show a bar.
        target_acceptance_rate: between 0 and 1; 0.574 is best in high dimension (Roberts and Rosenthal 1998).
        mass_matrix: "diagonal", "dense" or "auto"; see :func:`pooled_inverse_mass_matrix`.

    Returns:
        :class:`Draws`, with ``settings`` for :func:`mala`.

    Raises:
        ValueError: if a number is out of its range, the start is not finite (which chains) or ``log_prob`` does not
            give one number a chain.

    Source: Roberts and Rosenthal (1998), doi:10.1111/1467-9868.00123.
    Book: sec-hmc
    """
    check_at_least("num_samples", num_samples, 1)
    density = differentiable(log_prob)

    def make_move(inverse_mass_matrix):
        metric = gaussian_momentum(inverse_mass_matrix)
        return lambda state, generator, step_size: transition(density, metric, state, generator, step_size, 1)[:2]

    state, step_size, inverse_mass_matrix = warm_up(
        make_move,
        mala(log_prob, step_size=1.0).init(initial_position),
        num_warmup=num_warmup,
        generator=generator,
        target_acceptance_rate=target_acceptance_rate,
        mass_matrix=mass_matrix,
        progress=progress,
    )
    settings = {"step_size": step_size, "inverse_mass_matrix": inverse_mass_matrix}
    kernel = mala(log_prob, **settings)
    draws = collect(kernel, state, num_samples=num_samples, generator=generator, progress=progress)
    return draws._replace(settings=settings)
