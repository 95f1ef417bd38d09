r"""Pareto-smoothed importance sampling: what a fit is worth as a proposal, and draws reweighted to the posterior.

Chapter: book/05-vi.ipynb
"""

from math import inf
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.evidence import LogEvidence, LogProb, draw, log_density
from bdl_lib.evidence.results import MAX_PARETO_K, Watch, check_some_weight, log_mean, smoothed_tail, warn_unreliable
from bdl_lib.vi._checks import check_num_samples

__all__ = ["Smoothed", "pareto_smoothed"]


class Smoothed(NamedTuple):
    """Draws of a family with smoothed weights: together they stand for the posterior, as far as ``pareto_k`` allows.

    Book: sec-psis
    """

    position: Float[Tensor, "samples dim"]
    log_weights: Float[Tensor, " samples"]  # smoothed and normalised: the weights sum to 1; −∞ where impossible
    log_evidence: LogEvidence  # of the smoothed weights, in nats, with its error and the number of excluded draws

    @property
    def pareto_k(self) -> float:
        """Shape of the raw weights' tail: above 0.7, trust nothing here."""
        return self.log_evidence.pareto_k

    @property
    def ess(self) -> Float[Tensor, ""]:
        """How many independent draws from the posterior are worth as much for a mean, from 1 to samples."""
        return self.log_evidence.ess

    @property
    def mean(self) -> Float[Tensor, " dim"]:
        """Estimate of the posterior mean."""
        return self.log_weights.exp() @ self.position

    @property
    def covariance(self) -> Float[Tensor, "dim dim"]:
        """Estimate of the posterior covariance."""
        shift = self.position - self.mean
        return (self.log_weights.exp()[:, None] * shift).mT @ shift


def pareto_smoothed(log_prob: LogProb, family, *, num_samples: int = 4000, generator: torch.Generator) -> Smoothed:
    r"""Weigh draws from a fit by what they should have been worth, with the largest weights smoothed.

    .. math:: r_i = \frac{p(x, \theta_i)}{q(\theta_i)}, \qquad \theta_i \sim q

    A generalised Pareto distribution is fitted to the largest ratios r, and they are replaced by its quantiles; none
    becomes larger than the largest was. Its shape k judges the fit q: up to 0.7 the reweighted draws can be used, and
    the smaller k, the nearer q is to the posterior; above 0.7 q misses a part of the posterior that matters. With a
    small k q can still be off: only what its draws reach is judged. In many dimensions k is large even for a fit whose
    marginals are good.

    Args:
        log_prob: log p(x, θ) in nats at every row of [samples, dim]; −∞ where impossible.
        family: q, wherever the posterior density is positive: a family of this module, a ``torch.distributions``
            object over vectors, or anything with ``log_prob`` and ``sample(num_samples, generator=...)``.
        num_samples: how many draws, at least 2. Of fewer than about 25 the tail is too short to judge: k is infinite.
        generator: the only source of randomness.

    Returns:
        A :class:`Smoothed`, without gradients. Pareto-k above 0.7 gives an
        :class:`bdl_lib.evidence.UnreliableEvidence` warning. NaN counts as impossible and is reported in
        ``log_evidence.num_excluded``. The weights go to the host, where ArviZ smooths them.

    Raises:
        ValueError: if ``num_samples`` is below 2, or the density is zero or NaN at every draw, infinite at one, or of
            the wrong shape.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling, JMLR 25(72); as a
        judge of variational fits: Yao, Vehtari, Simpson and Gelman (2018), arXiv:1802.02538.
    Book: sec-psis
    """
    check_num_samples(num_samples, least=2)
    watched = Watch("log_prob", log_prob)
    with torch.no_grad():
        position = draw(family, num_samples, generator=generator)
        log_ratios = watched(position) - log_density(family, position)
    check_some_weight("log_prob", log_ratios)
    log_weights, k = log_ratios.clone(), inf
    is_possible = log_ratios > -inf
    if is_possible.sum() >= 5:
        log_weights[is_possible], k = smoothed_tail(log_ratios[is_possible])
    if not k <= MAX_PARETO_K:
        warn_unreliable(f"Pareto-k of the weights is {k:.2f}, above {MAX_PARETO_K}: a few draws stand for all the rest")
    normalised = log_weights.log_softmax(0)
    ess = (-(2 * normalised).logsumexp(0)).exp()
    evidence = LogEvidence(*log_mean(log_weights), num_samples, watched.num_excluded, ess, k)
    return Smoothed(position, normalised, evidence)
