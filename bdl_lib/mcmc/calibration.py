r"""Simulation-based calibration: does a sampler draw from the posterior that it claims to draw from?

Draw parameters from the prior, data from the parameters, and posterior draws from the data. If all is right, the
parameters are one more draw from their own posterior, and their rank among the others is uniform.

Chapter: book/04-mcmc.ipynb
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Calibration", "calibrate"]


class Calibration(NamedTuple):
    """Ranks of the true values among posterior draws, and how far from uniform they are.

    Book: sec-sbc
    """

    ranks: Int[Tensor, "simulations quantities"]  # from 0 to num_draws: how many draws lie below the truth
    num_draws: int  # of one posterior
    counts: Int[Tensor, "bins quantities"]  # the histogram of the ranks, in bins of equal width
    p_values: Float[Tensor, " quantities"]  # chi-square test of uniform counts, one a quantity

    @property
    def p_value(self) -> Float[Tensor, ""]:
        """One p-value for all quantities together, by Bonferroni: the smallest, times how many there are."""
        return (self.p_values.min() * len(self.p_values)).clamp(max=1)

    @property
    def expected_count(self) -> float:
        """The height of every bar of the histogram, if the ranks are uniform."""
        return len(self.ranks) / len(self.counts)


def calibrate(
    prior_draws: Float[Tensor, "simulations dim"],
    simulate: Callable[[Tensor, torch.Generator], Any],
    sample: Callable[[Any, torch.Generator], Tensor],
    *,
    generator: torch.Generator,
    quantities: Callable[[Tensor, Any], Tensor] | None = None,
    num_bins: int = 20,
    one_by_one: bool = False,
) -> Calibration:
    r"""Ranks of prior draws among the posterior draws from data that they generated.

    .. math:: \tilde\theta \sim p(\theta), \quad \tilde y \sim p(y \mid \tilde\theta), \quad
              \theta_1, \dots, \theta_L \sim p(\theta \mid \tilde y)
              \quad\Longrightarrow\quad \#\{l : f(\theta_l) < f(\tilde\theta)\} \sim U\{0, \dots, L\}

    A hump in the histogram says that the draws are too wide, a valley (∪) that they are too narrow or autocorrelated, a
    slope that they are shifted. Thin draws of a chain first: the ranks are uniform only for independent ones.

    Args:
        prior_draws: true parameters, one row a simulation.
        simulate: ``simulate(prior_draws, generator)`` gives data, one a row; any object, indexed by simulation if
            ``one_by_one``.
        sample: ``sample(data, generator)`` gives posterior draws [simulations, draws, dim], all simulations as one
            batch of chains. With ``one_by_one``, it gets the data of one and gives [draws, dim].
        generator: goes to both functions, and breaks ties.
        quantities: f, ``quantities(position, data)`` maps [simulations, draws, dim] to [simulations, draws, k]: what to
            rank. The parameters themselves, if not given. Add the log likelihood: it sees a sampler that ignores the
            data, which the parameters alone cannot.
        num_bins: of the histogram, from 2 to draws + 1. Bins are of equal width if it divides draws + 1, and nearly so
            otherwise, which the test takes into account. Each should expect 5 ranks or more.
        one_by_one: True calls ``sample`` once a simulation.

    Returns:
        A :class:`Calibration`; ``calibration.p_value`` below 0.01 says that the sampler, the model or the simulator is
        wrong (or that one of a hundred right ones had bad luck).

    Raises:
        ValueError: if ``prior_draws`` is empty, ``num_bins`` is out of range, a draw is not finite, or the draws have
            not one row a simulation.

    Source: Talts et al. (2018), arXiv:1804.06788; Modrák et al. (2025), doi:10.1214/23-BA1404, for the quantities.
    Book: sec-sbc
    """
    if len(prior_draws) < 1:
        raise ValueError(f"prior_draws must have at least one row, got {len(prior_draws)}")
    data = simulate(prior_draws, generator)
    if one_by_one:
        position = torch.stack([sample(data[i], generator) for i in range(len(prior_draws))])
    else:
        position = sample(data, generator)
    if position.ndim != 3 or position.shape[::2] != prior_draws.shape:
        simulations, dim = prior_draws.shape
        raise ValueError(f"sample must give shape [{simulations}, draws, {dim}], got {list(position.shape)}")
    num_draws = position.shape[1]
    if not 2 <= num_bins <= num_draws + 1:
        raise ValueError(f"num_bins must be from 2 to draws + 1 = {num_draws + 1}, got {num_bins}")
    with_truth = torch.cat([prior_draws[:, None], position], 1)
    values = with_truth if quantities is None else quantities(with_truth, data)
    if not values.isfinite().all():
        bad = (~values.isfinite()).any(2).any(1).nonzero().flatten().tolist()
        raise ValueError(f"draws must be finite, are not in simulations {bad}")
    ranks = _ranks(values, generator)
    counts, ranks_in_bin = _histogram(ranks, num_draws, num_bins)
    expected = ranks_in_bin.to(values) * (len(ranks) / (num_draws + 1))
    return Calibration(ranks, num_draws, counts, _chi_square_p_value(counts, expected))


def _ranks(values, generator):
    """How many of the others lie below the first; ties with it fall below with a common random share."""
    truth, draws = values[:, :1], values[:, 1:]
    num_ties = (draws == truth).sum(1)
    share = torch.rand(num_ties.shape, generator=generator, dtype=values.dtype, device=values.device)
    return (draws < truth).sum(1) + (share * (num_ties + 1)).floor().long().clamp(max=num_ties)


def _histogram(ranks, num_draws, num_bins):
    """Simulations in each bin [bins, quantities], and how many of the possible ranks it holds [bins, 1]."""
    bin_of_rank = torch.arange(num_draws + 1, device=ranks.device) * num_bins // (num_draws + 1)
    bins = torch.arange(num_bins, device=ranks.device)[:, None]
    ranks_in_bin = (bin_of_rank == bins).sum(1, keepdim=True)
    return (bin_of_rank[ranks] == bins[:, None]).sum(1), ranks_in_bin


def _chi_square_p_value(counts, expected):
    statistic = ((counts - expected).square() / expected).sum(0)
    half_degrees_of_freedom = torch.full_like(statistic, (len(counts) - 1) / 2)
    return torch.special.gammaincc(half_degrees_of_freedom, statistic / 2)
