"""Conjugate pairs: prior and posterior of one family, so that learning is arithmetic on a few parameters.

Distributions come in and go out as ``torch.distributions`` objects. Their batch shape broadcasts with the leading axes
of the data. To go on learning, give the posterior as the next prior. The log evidence of a million observations is a
large number: in float32 it is good to about one nat, in float64 to the ninth decimal.

Chapter: book/01-bayes.ipynb
"""

from math import inf, log, pi
from typing import NamedTuple

import torch
from jaxtyping import Float, Real
from torch import Tensor
from torch.distributions import Bernoulli, Beta, Distribution, Gamma, NegativeBinomial, Normal, StudentT

from ._checks import as_float, check_broadcast, require

__all__ = [
    "Conjugate",
    "NormalGamma",
    "beta_bernoulli",
    "gamma_poisson",
    "normal_gamma_mean",
    "normal_known_std",
    "normal_unknown_std",
]


class NormalGamma(NamedTuple):
    r"""Belief about a normal's mean μ and precision λ = 1/σ² together.

    .. math:: \lambda \sim \mathrm{Gamma}(\text{concentration}, \text{rate}), \qquad
              \mu \mid \lambda \sim N\!\left(\text{loc}, \frac{1}{\mathrm{prec\_scale} \cdot \lambda}\right)

    Read ``prec_scale`` as the number of observations that the belief about μ is worth.

    Source: Bishop (2006), Pattern Recognition and Machine Learning, equation 2.154.
    Book: sec-other-conjugates
    """

    loc: float | Float[Tensor, "*batch"]
    prec_scale: float | Float[Tensor, "*batch"]
    concentration: float | Float[Tensor, "*batch"]
    rate: float | Float[Tensor, "*batch"]


class Conjugate(NamedTuple):
    """What the data did: the belief after them, the next observation, and how probable they were.

    Book: sec-coin
    """

    posterior: Distribution | NormalGamma
    predictive: Distribution  # of one more observation
    log_evidence: Float[Tensor, "*batch"]  # nats


def beta_bernoulli(
    prior: Beta, num_successes: float | Real[Tensor, "*#batch"], num_trials: float | Real[Tensor, "*#batch"]
) -> Conjugate:
    r"""Belief about a coin's probability of success θ after some flips.

    .. math:: \theta \mid x \sim \mathrm{Beta}(a + s,\; b + n - s), \qquad p(x) = \frac{B(a + s, b + n - s)}{B(a, b)}

    Args:
        prior: Beta(concentration1 = a, concentration0 = b); a counts with the successes, b with the failures.
        num_successes: s, a whole number from 0 to n.
        num_trials: n, a whole number. None at all (0) gives the prior back.

    Returns:
        Posterior Beta, predictive Bernoulli of the next flip, and log p(x) in nats of the flips in the order in which
        they came. The number of successes alone is more probable, by the binomial coefficient.

    Raises:
        ValueError: if a count is not a whole number, is out of range or NaN, or if the shapes do not broadcast.

    Source: Bayes (1763), doi:10.1098/rstl.1763.0053; Gelman et al. (2013), Bayesian Data Analysis, section 2.4.
    Book: sec-coin
    """
    successes = as_float(num_successes, prior.concentration1)
    trials = as_float(num_trials, prior.concentration1)
    check_broadcast(prior=prior.batch_shape, num_successes=successes.shape, num_trials=trials.shape)
    _check_counts("num_trials", trials)
    _check_counts("num_successes", successes)
    require(successes <= trials, "num_successes must be at most num_trials", successes)

    posterior = Beta(prior.concentration1 + successes, prior.concentration0 + (trials - successes))
    log_evidence = _log_beta(posterior) - _log_beta(prior)
    return Conjugate(posterior, Bernoulli(probs=posterior.mean), log_evidence)


def gamma_poisson(prior: Gamma, counts: Real[Tensor, "*#batch n"]) -> Conjugate:
    r"""Belief about the rate λ of a Poisson count, such as events an hour, after n counts.

    .. math:: \lambda \mid x \sim \mathrm{Gamma}\Big(a + \sum_i x_i,\; b + n\Big), \qquad
              p(x) = \frac{\Gamma(a')}{\Gamma(a)} \frac{b^a}{b'^{a'}} \prod_i \frac{1}{x_i!}

    Args:
        prior: Gamma(concentration = a, rate = b), with mean a / b.
        counts: x, whole numbers, at least one of them.

    Returns:
        Posterior Gamma, predictive NegativeBinomial of the next count (total_count = a', logits = −log b'), and
        log p(x) in nats of the counts in the order in which they came.

    Raises:
        ValueError: if there are no counts, if one is negative, NaN or not whole, or if the shapes do not broadcast.

    Source: Gelman et al. (2013), Bayesian Data Analysis, section 2.6.
    Book: sec-other-conjugates
    """
    n = _check_data("counts", counts, prior=prior.batch_shape)
    _check_counts("counts", counts)
    counts = as_float(counts, prior.concentration)
    total = counts.sum(-1)
    posterior = Gamma(prior.concentration + total, prior.rate + torch.full_like(total, n))
    log_evidence = _log_normaliser(prior) - _log_normaliser(posterior) - (counts + 1).lgamma().sum(-1)
    return Conjugate(posterior, NegativeBinomial(posterior.concentration, logits=-posterior.rate.log()), log_evidence)


def normal_known_std(
    prior: Normal, observations: Float[Tensor, "*#batch n"], noise_std: float | Float[Tensor, "*#batch"]
) -> Conjugate:
    r"""Belief about the mean μ of normal observations whose standard deviation σ is known.

    .. math:: \mu \mid x \sim N(m', \tau'^2), \qquad \frac{1}{\tau'^2} = \frac{1}{\tau^2} + \frac{n}{\sigma^2}, \qquad
              m' = \tau'^2 \Big( \frac{m}{\tau^2} + \frac{n \bar x}{\sigma^2} \Big)

    Args:
        prior: Normal(loc = m, scale = τ), a standard deviation, in data units.
        observations: x in data units, at least one.
        noise_std: σ > 0 of one observation, in data units.

    Returns:
        Posterior Normal of μ, predictive Normal of the next observation (its variance is τ'² + σ²), and log p(x) in
        nats of the observations in the order in which they came.

    Raises:
        ValueError: if there are no observations, if one is not finite, if ``noise_std`` is not positive and finite, or
            if the shapes do not broadcast.

    Source: Gelman et al. (2013), Bayesian Data Analysis, section 2.5.
    Book: sec-other-conjugates
    """
    noise_std = as_float(noise_std, observations)
    n = _check_data("observations", observations, prior=prior.batch_shape, noise_std=noise_std.shape)
    _check_positive("noise_std", noise_std)
    mean, squares = _centred_sums(observations)
    noise_var, prior_var = noise_std.square(), prior.scale.square()

    # The variance of the sum of the observations is n times this: data noise and prior, weighed against each other.
    total_var = noise_var + n * prior_var
    shift = mean - prior.loc
    posterior = Normal(prior.loc + n * prior_var / total_var * shift, prior.scale * noise_std / total_var.sqrt())
    log_det = n * log(2 * pi) + (n - 1) * noise_var.log() + total_var.log()
    log_evidence = -0.5 * (log_det + squares / noise_var + n * shift.square() / total_var)
    return Conjugate(posterior, Normal(posterior.loc, torch.hypot(posterior.scale, noise_std)), log_evidence)


def normal_unknown_std(prior: NormalGamma, observations: Float[Tensor, "*#batch n"]) -> Conjugate:
    r"""Belief about mean μ and precision λ of normal observations, both unknown.

    With mean :math:`\bar x` and sum of squares :math:`S = \sum_i (x_i - \bar x)^2` of the observations,

    .. math:: \kappa' = \kappa + n, \quad m' = m + \frac{n (\bar x - m)}{\kappa'}, \quad a' = a + \frac n2, \quad
              b' = b + \frac S2 + \frac{\kappa n (\bar x - m)^2}{2 \kappa'}

    .. math:: p(x) = \frac{\Gamma(a')}{\Gamma(a)} \frac{b^a}{b'^{a'}} \sqrt{\frac{\kappa}{\kappa'}} (2 \pi)^{-n/2}

    Args:
        prior: NormalGamma(loc = m in data units, prec_scale = κ > 0, concentration = a > 0, rate = b > 0 in data units
            squared).
        observations: x in data units, at least one.

    Returns:
        Posterior NormalGamma, predictive StudentT of the next observation (df = 2a', heavier-tailed than a normal
        because σ is uncertain), and log p(x) in nats of the observations in the order in which they came.

    Raises:
        ValueError: if there are no observations, if one is not finite, if a parameter of the prior is out of range, or
            if the shapes do not broadcast.

    Source: Bishop (2006), Pattern Recognition and Machine Learning, section 2.3.6.
    Book: sec-other-conjugates
    """
    prior = NormalGamma(*(as_float(parameter, observations) for parameter in prior))
    n = _check_data("observations", observations, **{name: value.shape for name, value in prior._asdict().items()})
    _check_normal_gamma("prior", prior)
    mean, squares = _centred_sums(observations)

    shift, prec_scale = mean - prior.loc, prior.prec_scale + n
    rate = prior.rate + 0.5 * (squares + prior.prec_scale * n / prec_scale * shift.square())
    concentration = prior.concentration + 0.5 * n
    loc = prior.loc + n / prec_scale * shift
    posterior = NormalGamma(*torch.broadcast_tensors(loc, prec_scale, concentration, rate))
    predictive = StudentT(2 * concentration, loc, (rate * (prec_scale + 1) / (concentration * prec_scale)).sqrt())
    log_gamma_ratio = _log_normaliser(prior) - _log_normaliser(posterior)
    log_prec_ratio = 0.5 * (prior.prec_scale / prec_scale).log()
    return Conjugate(posterior, predictive, log_gamma_ratio + log_prec_ratio - 0.5 * n * log(2 * pi))


def normal_gamma_mean(belief: NormalGamma) -> StudentT:
    r"""Belief about the mean μ alone, the precision averaged out.

    .. math:: \mu \sim \mathrm{StudentT}\Big(2a,\; m,\; \sqrt{b / (a \kappa)}\Big)

    Args:
        belief: prior or posterior, NormalGamma(loc = m, prec_scale = κ, concentration = a, rate = b).

    Returns:
        StudentT(df, loc, scale) in data units; ``scale`` is not its standard deviation.

    Raises:
        ValueError: if a parameter is out of range.

    Source: Gelman et al. (2013), Bayesian Data Analysis, section 3.3.
    Book: sec-other-conjugates
    """
    belief = NormalGamma(*(as_float(parameter, torch.empty(())) for parameter in belief))
    _check_normal_gamma("belief", belief)
    scale = (belief.rate / (belief.concentration * belief.prec_scale)).sqrt()
    return StudentT(2 * belief.concentration, belief.loc, scale)


def _log_beta(belief: Beta) -> Tensor:
    """Log of the beta function, the normaliser of a Beta density."""
    a, b = belief.concentration1, belief.concentration0
    return a.lgamma() + b.lgamma() - (a + b).lgamma()


def _log_normaliser(belief: Gamma | NormalGamma) -> Tensor:
    """Log of what makes the Gamma density integrate to one: a log b − log Γ(a)."""
    return belief.concentration * belief.rate.log() - belief.concentration.lgamma()


def _centred_sums(observations: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and sum of squares about it: Σx² − n·mean² would lose every digit when the mean is large."""
    mean = observations.mean(-1, keepdim=True)
    return mean.squeeze(-1), (observations - mean).square().sum(-1)


def _check_data(name: str, data: Tensor, **batch_shapes: torch.Size) -> int:
    """Number of observations, along the last axis: at least one, all finite. The other axes broadcast with the rest."""
    if data.ndim == 0 or data.shape[-1] == 0:
        raise ValueError(f"{name} must be [..., n >= 1], got shape {tuple(data.shape)}")
    require(data.isfinite(), f"{name} must be finite", data)
    check_broadcast(**{name: data.shape[:-1]}, **batch_shapes)
    return data.shape[-1]


def _check_counts(name: str, counts: Tensor) -> None:
    require((counts >= 0) & (counts < inf), f"{name} must be finite and non-negative", counts)
    require(counts == counts.floor(), f"{name} must be a whole number", counts)


def _check_positive(name: str, value: Tensor) -> None:
    require((value > 0) & (value < inf), f"{name} must be positive and finite", value)


def _check_normal_gamma(name: str, belief: NormalGamma) -> None:
    require(belief.loc.isfinite(), f"{name}.loc must be finite", belief.loc)
    for parameter in ("prec_scale", "concentration", "rate"):
        _check_positive(f"{name}.{parameter}", getattr(belief, parameter))
