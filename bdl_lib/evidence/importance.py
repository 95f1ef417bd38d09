r"""The evidence as an average over draws: from the prior, from a proposal; and the harmonic mean, as a warning.

Chapter: book/03-evidence.ipynb
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.evidence.densities import draw, log_density
from bdl_lib.evidence.moves import LogProb
from bdl_lib.evidence.results import LogEvidence, Watch, from_log_weights

__all__ = ["harmonic_mean", "importance_sampling", "prior_sampling"]


def prior_sampling(prior, log_likelihood: LogProb, *, num_samples: int, generator: torch.Generator) -> LogEvidence:
    r"""The likelihood averaged over draws from the prior: the definition of the evidence, taken at its word.

    .. math:: p(x) = E_{p(\theta)}[p(x \mid \theta)] \approx \frac1N \sum_{i=1}^N p(x \mid \theta_i), \qquad
              \theta_i \sim p(\theta)

    Args:
        prior: proper, over vectors: a ``torch.distributions`` object, or anything with ``log_prob`` and
            ``sample(num_samples, generator=...)``.
        log_likelihood: log p(x | θ) in nats at every row of [samples, dim]; −∞ where impossible.
        num_samples: N, at least 2.
        generator: the only source of randomness.

    Returns:
        The estimate, with effective sample size and Pareto-k of the weights p(x | θ_i). Pareto-k above 0.7 gives an
        :class:`UnreliableEvidence` warning. NaN counts as impossible and is reported.

    Raises:
        ValueError: if ``num_samples`` is below 2, the prior is not proper, or the likelihood is zero or NaN at every
            draw, infinite at one, or of the wrong shape.

    Source: Hammersley and Handscomb (1964), Monte Carlo Methods, section 5.2 (crude Monte Carlo).
    Book: sec-prior-sampling
    """
    _check_num_samples(num_samples)
    watched = Watch("log_likelihood", log_likelihood)
    log_weights = watched(draw(prior, num_samples, generator=generator))
    return _estimate("log_likelihood", log_weights, watched)


def importance_sampling(log_joint: LogProb, proposal, *, num_samples: int, generator: torch.Generator) -> LogEvidence:
    r"""The joint density averaged over draws from a proposal that resembles the posterior.

    .. math:: p(x) = \int \frac{p(x \mid \theta)\, p(\theta)}{q(\theta)}\, q(\theta)\, d\theta
              \approx \frac1N \sum_{i=1}^N w_i, \qquad w_i = \frac{p(x \mid \theta_i)\, p(\theta_i)}{q(\theta_i)},
              \qquad \theta_i \sim q

    Its effective sample size is :math:`(\sum_i w_i)^2 / \sum_i w_i^2`, and the standard error of the logarithm is
    :math:`\sqrt{1/\mathrm{ESS} - 1/N}`.

    Args:
        log_joint: log p(x | θ) + log p(θ) in nats at every row of [samples, dim].
        proposal: q, over vectors, wherever the joint density is positive: a ``torch.distributions`` object, or
            anything with ``log_prob`` and ``sample(num_samples, generator=...)``.
        num_samples: N, at least 2.
        generator: the only source of randomness.

    Returns:
        The estimate, with effective sample size and Pareto-k of the weights. A proposal with lighter tails than the
        posterior shows as Pareto-k above 0.7, and gives an :class:`UnreliableEvidence` warning.

    Raises:
        ValueError: if ``num_samples`` is below 2, the proposal is not proper, or the joint density is zero or NaN at
            every draw, infinite at one, or of the wrong shape.

    Source: Robert and Casella (2004), Monte Carlo Statistical Methods, section 3.3.
    Book: sec-importance
    """
    _check_num_samples(num_samples)
    watched = Watch("log_joint", log_joint)
    position = draw(proposal, num_samples, generator=generator)
    return _estimate("log_joint", watched(position) - log_density(proposal, position), watched)


def harmonic_mean(log_likelihood: LogProb, draws: Float[Tensor, "samples dim"]) -> LogEvidence:
    r"""The harmonic mean of the likelihood over posterior draws. **Do not use it**: it is here to be seen failing.

    .. math:: \frac{1}{p(x)} = E_{p(\theta \mid x)}\!\left[\frac{1}{p(x \mid \theta)}\right]
              \approx \frac1N \sum_{i=1}^N \frac{1}{p(x \mid \theta_i)}

    The identity holds, but the terms that matter are draws from where the likelihood is smallest, which a posterior
    sample almost never holds. The variance is infinite for most models, the estimate too large, and nothing in it says
    so: its standard error is as wrong as its value.

    Args:
        log_likelihood: log p(x | θ) in nats at every row of [samples, dim].
        draws: from the posterior, at least 2.

    Returns:
        The estimate, with Pareto-k of the inverse likelihoods.

    Raises:
        ValueError: if there are fewer than 2 draws, or the likelihood is zero, NaN or infinite at one of them.

    Source: Newton and Raftery (1994), doi:10.1111/j.2517-6161.1994.tb01956.x; the warning: Neal (1994), in the
        discussion of that paper.
    Book: sec-harmonic
    """
    _check_num_samples(len(draws))
    watched = Watch("log_likelihood", log_likelihood)
    log_likelihoods = watched(draws)
    if not log_likelihoods.isfinite().all():
        num_bad = int((~log_likelihoods.isfinite()).sum())
        raise ValueError(f"log_likelihood must be finite at every draw, is not at {num_bad} of {len(draws)}")
    inverse = _estimate("log_likelihood", -log_likelihoods, watched)
    return inverse._replace(value=-inverse.value)


def _estimate(name: str, log_weights: Tensor, watched: Watch) -> LogEvidence:
    counts = {"num_evaluations": watched.num_evaluations, "num_excluded": watched.num_excluded}
    return from_log_weights(name, log_weights, **counts)


def _check_num_samples(num_samples: int) -> None:
    if not num_samples >= 2:
        raise ValueError(f"num_samples must be at least 2, got {num_samples}")
