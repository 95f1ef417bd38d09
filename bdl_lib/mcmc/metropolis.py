"""Random-walk Metropolis: propose, then decide.

Chapter: book/04-mcmc.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.evidence import Kernel, LogProb
from bdl_lib.mcmc._checks import check_at_least, check_position, check_positive, check_start
from bdl_lib.mcmc.adaptation import warm_up
from bdl_lib.mcmc.run import Draws, collect

__all__ = ["MetropolisInfo", "MetropolisState", "metropolis", "sample_metropolis"]


class MetropolisState(NamedTuple):
    """Where the chains are, and the density there, so that a step evaluates it once.

    Book: sec-metropolis
    """

    position: Float[Tensor, "chains dim"]
    log_prob: Float[Tensor, " chains"]  # nats


class MetropolisInfo(NamedTuple):
    """What a reader wants to see of one step.

    Book: sec-metropolis
    """

    acceptance_rate: Float[Tensor, " chains"]  # the probability of the proposal, 0 to 1
    is_accepted: Bool[Tensor, " chains"]
    log_prob: Float[Tensor, " chains"]  # nats, after the step


def metropolis(log_prob: LogProb, *, proposal_std: float | Float[Tensor, " dim"]) -> Kernel:
    r"""Random-walk Metropolis with a Gaussian proposal.

    .. math:: \theta' = \theta + \sigma \varepsilon, \quad \varepsilon \sim N(0, I), \qquad
              P(\text{accept}) = \min\{1, \pi(\theta') / \pi(\theta)\}

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant.
        proposal_std: σ > 0, in the units of the position (not a variance): one for all directions, or one for each.

    Returns:
        A kernel that costs one density a step, for all chains together. A rejected chain stays exactly where it was;
        where the density is NaN or infinite, the proposal is rejected.

    Raises:
        ValueError: if ``proposal_std`` is not positive and finite; from ``init``, if the position is not [chains, dim]
            or not finite, or ``log_prob`` is not finite there or not one number a chain.

    Source: Metropolis et al. (1953), doi:10.1063/1.1699114.
    Book: sec-metropolis
    """
    check_positive("proposal_std", proposal_std)

    def init(position):
        check_position(position)
        with torch.no_grad():
            value = log_prob(position)
        check_start(position, value)
        return MetropolisState(position, value)

    @torch.no_grad()
    def step(state, generator):
        like = {"generator": generator, "dtype": state.position.dtype, "device": state.position.device}
        proposal = state.position + proposal_std * torch.randn(state.position.shape, **like)
        log_prob_there = log_prob(proposal)
        log_ratio = (log_prob_there - state.log_prob).nan_to_num(nan=-math.inf, posinf=-math.inf)
        acceptance_rate = log_ratio.clamp(max=0).exp()
        is_accepted = torch.rand(acceptance_rate.shape, **like) < acceptance_rate
        position = torch.where(is_accepted[:, None], proposal, state.position)
        value = torch.where(is_accepted, log_prob_there, state.log_prob)
        return MetropolisState(position, value), MetropolisInfo(acceptance_rate, is_accepted, value)

    return Kernel(init, step)


def sample_metropolis(
    log_prob: LogProb,
    initial_position: Float[Tensor, "chains dim"],
    *,
    num_warmup: int,
    num_samples: int,
    generator: torch.Generator,
    progress: bool = False,
    target_acceptance_rate: float = 0.234,
) -> Draws:
    r"""Draw with random-walk Metropolis, the width of the proposal learnt in warm-up, one for each direction.

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant; it needs no gradient.
        initial_position: where the chains start.
        num_warmup: steps to learn from, not kept, at least 1. The host waits for the device once in each of them.
        num_samples: draws to keep of each chain, at least 1.
        generator: the source of randomness, on the device of the position.
        progress: whether to show a bar.
        target_acceptance_rate: between 0 and 1; 0.234 is best in high dimension (Roberts, Gelman and Gilks 1997).

    Returns:
        :class:`Draws`, with ``settings`` for :func:`metropolis`.

    Raises:
        ValueError: if a number is out of its range, the start is not finite (which chains) or ``log_prob`` does not
            give one number a chain.

    Source: Roberts, Gelman and Gilks (1997), doi:10.1214/aoap/1034625254.
    Book: sec-metropolis
    """
    check_at_least("num_samples", num_samples, 1)

    def make_move(variance):
        return lambda state, generator, width: metropolis(log_prob, proposal_std=width * variance.sqrt()).step(
            state, generator
        )

    state, width, variance = warm_up(
        make_move,
        metropolis(log_prob, proposal_std=1.0).init(initial_position),
        num_warmup=num_warmup,
        generator=generator,
        target_acceptance_rate=target_acceptance_rate,
        progress=progress,
    )
    settings = {"proposal_std": width * variance.sqrt()}
    kernel = metropolis(log_prob, **settings)
    draws = collect(kernel, state, num_samples=num_samples, generator=generator, progress=progress)
    return draws._replace(settings=settings)
