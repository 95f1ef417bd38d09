r"""Losses for networks that predict their own noise: in regression a log variance, in classification noisy logits.

Each is a negative log density in nats, one number a point or pixel, for the caller to average. The data are checked;
what the network says is not: where training diverges, the loss shows it.

Chapter: book/08-uncertainty.ipynb
"""

from math import log, pi

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bdl_lib.uncertainty._checks import check_at_least, check_finite, check_labels, check_same_shape

__all__ = ["gaussian_nll", "laplace_nll", "sampled_logit_nll", "sampled_logit_prob"]


def gaussian_nll(
    loc: Float[Tensor, "*points"], log_var: Float[Tensor, "*points"], targets: Float[Tensor, "*points"]
) -> Float[Tensor, "*points"]:
    r"""Minus the log density of a Gaussian whose mean and variance the network predicts at every point.

    .. math:: \ell = \tfrac12 e^{-s} (y - \mu)^2 + \tfrac12 s + \tfrac12 \log 2\pi, \qquad s = \log \sigma^2

    A large s makes the first term small, so a point that cannot be fitted costs less: the loss is attenuated. The
    second term is the price, and keeps s from growing everywhere.

    Args:
        loc: μ, in the units of the targets.
        log_var: s, the log of the variance in those units squared, any real number. Below about -170 in single
            precision, an error of zero gives NaN.
        targets: y, finite. On an accelerator, each call waits once for this check.

    Returns:
        ℓ in nats, one a point.

    Raises:
        ValueError: if the shapes differ, or a target is not finite.

    Source: Kendall and Gal (2017), arXiv:1703.04977; Nix and Weigend (1994), doi:10.1109/ICNN.1994.374138.
    Book: sec-learned-noise
    """
    check_same_shape(loc=loc, log_var=log_var, targets=targets)
    check_finite(targets=targets)
    return 0.5 * (((targets - loc) * (-0.5 * log_var).exp()).square() + log_var + log(2 * pi))


def laplace_nll(
    loc: Float[Tensor, "*points"], log_var: Float[Tensor, "*points"], targets: Float[Tensor, "*points"]
) -> Float[Tensor, "*points"]:
    r"""Minus the log density of a Laplace distribution whose mean and variance the network predicts at every point.

    .. math:: \ell = \frac{|y - \mu|}{b} + \log 2b = \sqrt2\, e^{-s/2} |y - \mu| + \tfrac12 s + \tfrac12 \log 2,
              \qquad s = \log 2b^2

    The variance of a Laplace distribution of scale b is 2b², so s is the log of the *variance* here too, and not of the
    scale: :math:`e^s` can be compared with the noise that :func:`gaussian_nll` finds. The error enters by its absolute
    value, which forgives single large ones; μ then follows the median of the targets.

    Args:
        loc: μ, in the units of the targets.
        log_var: s, the log of the variance in those units squared, any real number. Below about -170 in single
            precision, an error of zero gives NaN.
        targets: y, finite. On an accelerator, each call waits once for this check.

    Returns:
        ℓ in nats, one a point.

    Raises:
        ValueError: if the shapes differ, or a target is not finite.

    Source: Kendall and Gal (2017), arXiv:1703.04977.
    Book: sec-learned-noise
    """
    check_same_shape(loc=loc, log_var=log_var, targets=targets)
    check_finite(targets=targets)
    return 2**0.5 * (targets - loc).abs() * (-0.5 * log_var).exp() + 0.5 * (log_var + log(2))


def sampled_logit_nll(
    logits: Float[Tensor, "n classes *pixels"],
    log_var: Float[Tensor, "n classes *pixels"],
    labels: Int[Tensor, "n *pixels"],
    *,
    num_samples: int = 10,
    generator: torch.Generator,
) -> Float[Tensor, "n *pixels"]:
    r"""Minus the log probability of the label, when every logit has Gaussian noise of a predicted size.

    .. math:: \ell = -\log \frac1T \sum_{t=1}^T \operatorname{softmax}(f + \sigma \odot \varepsilon_t)_y, \qquad
              \varepsilon_t \sim N(0, I), \qquad \sigma = e^{s/2}

    The probabilities are averaged, not their logs; the sum is taken by log-sum-exp, so that no probability underflows.
    With few samples the loss is too high on average, by about the variance of the probability over 2T times its squared
    mean.

    Args:
        logits: f, the classes in dimension 1.
        log_var: s, the log of the variance of each logit's noise, any real number.
        labels: y, one class a point or pixel. On an accelerator, each call waits once for their check.
        num_samples: T, at least 1.
        generator: draws ε, on the device of the logits.

    Returns:
        ℓ in nats, one a point or pixel, differentiable in ``logits`` and ``log_var``.

    Raises:
        ValueError: if the shapes do not fit, a label is outside the classes, or ``num_samples`` is below 1.

    Source: Kendall and Gal (2017), arXiv:1703.04977.
    Book: sec-sampled-logits
    """
    _check(logits, log_var, num_samples)
    check_labels(labels, logits)
    sampled = _sampled_logits(logits, log_var, num_samples, generator)
    every = labels.long().expand(num_samples, *labels.shape).flatten(0, 1)
    log_prob = -F.cross_entropy(sampled.flatten(0, 1), every, reduction="none")
    return log(num_samples) - log_prob.unflatten(0, (num_samples, -1)).logsumexp(0)


def sampled_logit_prob(
    logits: Float[Tensor, "n classes *pixels"],
    log_var: Float[Tensor, "n classes *pixels"],
    *,
    num_samples: int = 10,
    generator: torch.Generator,
) -> Float[Tensor, "n classes *pixels"]:
    r"""Class probabilities under noisy logits: what a network trained by :func:`sampled_logit_nll` predicts.

    .. math:: p = \frac1T \sum_{t=1}^T \operatorname{softmax}(f + \sigma \odot \varepsilon_t), \qquad
              \varepsilon_t \sim N(0, I), \qquad \sigma = e^{s/2}

    The average is over the noise of the input and belongs to one draw of the weights: its entropy is aleatoric.

    Args:
        logits: f, the classes in dimension 1.
        log_var: s, the log of the variance of each logit's noise, any real number.
        num_samples: T, at least 1.
        generator: draws ε, on the device of the logits.

    Returns:
        p, which sums to 1 over dimension 1.

    Raises:
        ValueError: if the shapes do not fit or ``num_samples`` is below 1.

    Source: Kendall and Gal (2017), arXiv:1703.04977.
    Book: sec-sampled-logits
    """
    _check(logits, log_var, num_samples)
    return _sampled_logits(logits, log_var, num_samples, generator).softmax(2).mean(0)


def _check(logits, log_var, num_samples):
    check_same_shape(logits=logits, log_var=log_var)
    check_at_least("the number of dimensions of logits", logits.ndim, 2)
    check_at_least("num_samples", num_samples, 1)


def _sampled_logits(logits, log_var, num_samples, generator):
    """Noisy logits, [samples, n, classes, *pixels]."""
    shape = (num_samples, *logits.shape)
    noise = torch.randn(shape, generator=generator, dtype=logits.dtype, device=logits.device)
    return logits + (0.5 * log_var).exp() * noise
