r"""Predictions from many weight samples, and how much of their doubt more data would remove.

Chapter: book/02-networks.ipynb
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.networks.decisions import check_prob
from bdl_lib.networks.functional import Network
from bdl_lib.networks.likelihoods import Likelihood

__all__ = [
    "ClassPredictive",
    "EntropySplit",
    "RegressionPredictive",
    "entropy_split",
    "far_field_slope",
    "predict_classes",
    "predict_regression",
    "variance_split",
]


class RegressionPredictive(NamedTuple):
    """Mean and variance of the predictive distribution, the variance in its two parts.

    Book: sec-many-weights
    """

    mean: Float[Tensor, " n"]
    parameter_var: Float[Tensor, " n"]  # what more data would remove
    noise_var: Float[Tensor, " n"]  # what it would not

    @property
    def std(self) -> Float[Tensor, " n"]:
        """Standard deviation of the prediction, noise included, in the units of the targets."""
        return (self.parameter_var + self.noise_var).sqrt()


class EntropySplit(NamedTuple):
    """The entropy of a predictive distribution in its two parts, all in nats.

    Book: sec-two-kinds
    """

    total: Float[Tensor, " n"]
    expected: Float[Tensor, " n"]  # mean entropy of the samples' own predictions: what more data would not remove
    mutual_information: Float[Tensor, " n"]  # between prediction and weights: what it would


class ClassPredictive(NamedTuple):
    """Class probabilities averaged over the weights, and the split of their entropy.

    Book: sec-many-weights
    """

    prob: Float[Tensor, "n classes"]
    entropy: EntropySplit


def predict_regression(
    network: Network,
    likelihood: Likelihood,
    weights: Float[Tensor, "samples dim"],
    inputs: Float[Tensor, "n *features"],
) -> RegressionPredictive:
    r"""Predictive mean and variance from samples of the weights.

    Each sample predicts a distribution with mean :math:`\mu_s(x)` and variance :math:`v_s(x)`; the prediction is their
    equal mixture, split by :func:`variance_split`.

    Args:
        network: f.
        likelihood: one with moments: Gaussian, heteroscedastic or Bernoulli.
        weights: samples from the posterior, at least one. From a single one, ``parameter_var`` is zero.
        inputs: x, finite.

    Returns:
        A :class:`RegressionPredictive`: mean in the units of the targets, variances in those units squared.

    Raises:
        ValueError: if ``likelihood`` has no moments, ``weights`` is empty, or ``inputs`` are not finite.

    Book: sec-many-weights
    """
    if likelihood.moments is None:
        raise ValueError(f"likelihood must have a mean and a variance, '{likelihood.description}' has not")
    with torch.no_grad():
        return variance_split(*likelihood.moments(_outputs(network, weights, inputs)))


def predict_classes(
    network: Network,
    likelihood: Likelihood,
    weights: Float[Tensor, "samples dim"],
    inputs: Float[Tensor, "n *features"],
) -> ClassPredictive:
    r"""Predictive class probabilities from samples of the weights.

    .. math:: p(c \mid x, \mathcal{D}) \approx \frac1S \sum_{s=1}^S p(c \mid f(\theta_s, x)), \quad \theta_s \sim
              p(\theta \mid \mathcal{D})

    Args:
        network: f.
        likelihood: one with classes: Bernoulli or categorical.
        weights: samples from the posterior, at least one.
        inputs: x, finite.

    Returns:
        A :class:`ClassPredictive`; for the Bernoulli likelihood, the classes are 0 and 1. The samples' own
        probabilities are ``likelihood.class_prob(network.apply(weights, inputs))``.

    Raises:
        ValueError: if ``likelihood`` has no classes, ``weights`` is empty, or ``inputs`` are not finite.

    Book: sec-many-weights
    """
    if likelihood.class_prob is None:
        raise ValueError(f"likelihood must have classes, '{likelihood.description}' has not")
    with torch.no_grad():
        prob = likelihood.class_prob(_outputs(network, weights, inputs))
        return ClassPredictive(prob.mean(0), entropy_split(prob))


def variance_split(means: Float[Tensor, "samples n"], variances: Float[Tensor, "samples n"]) -> RegressionPredictive:
    r"""The law of total variance, for an equal mixture of S predictions.

    .. math:: \operatorname{Var}[y] = \underbrace{\operatorname{Var}_\theta\big[\operatorname{E}[y \mid \theta]\big]}_
              {\text{parameters}} + \underbrace{\operatorname{E}_\theta\big[\operatorname{Var}[y \mid \theta]\big]}_
              {\text{noise}}

    The first part divides by S, not by S - 1: it belongs to this mixture, not to a population behind it.

    Args:
        means: E[y | θ_s].
        variances: Var[y | θ_s], not negative.

    Returns:
        A :class:`RegressionPredictive`.

    Raises:
        ValueError: if there is no sample, the shapes differ, or a variance is negative.

    Source: Depeweg et al. (2018), arXiv:1710.07283.
    Book: sec-two-kinds
    """
    if means.shape != variances.shape or len(means) < 1:
        raise ValueError(f"variances must have the shape of means, {list(means.shape)}, got {list(variances.shape)}")
    if not (variances >= 0).all():
        raise ValueError(f"variances must not be negative, got {variances.min()}")
    return RegressionPredictive(means.mean(0), means.var(0, correction=0), variances.mean(0))


def entropy_split(prob: Float[Tensor, "samples *n classes"]) -> EntropySplit:
    r"""The entropy of averaged class probabilities, as expected entropy plus mutual information.

    .. math:: \underbrace{H\Big[\frac1S \sum_s p_s\Big]}_{\text{total}} = \underbrace{\frac1S \sum_s H[p_s]}_
              {\text{expected}} + \underbrace{\frac1S \sum_s \operatorname{KL}\Big(p_s \Big\| \frac1S \sum_{s'} p_{s'}
              \Big)}_{\text{mutual information}}

    The three are computed apart, so that the identity can be checked; 0 log 0 is 0, so probabilities of exactly 0 and 1
    are welcome.

    Args:
        prob: the classes' probabilities under each sample, rows non-negative and summing to 1.

    Returns:
        An :class:`EntropySplit`, in nats.

    Raises:
        ValueError: if there is no sample or a row of ``prob`` is no distribution.

    Source: Houlsby et al. (2011), arXiv:1112.5745; Depeweg et al. (2018), arXiv:1710.07283.
    Book: sec-two-kinds
    """
    if prob.ndim < 2 or len(prob) < 1:
        raise ValueError(f"prob must have at least one sample along its first axis, got shape {list(prob.shape)}")
    check_prob(prob)
    mean = prob.mean(0)
    expected = torch.special.entr(prob).sum(-1).mean(0)
    not_zero = mean.clamp(min=torch.finfo(mean.dtype).tiny)  # of probabilities near 1e-320, the mean may be 0
    divergence = (torch.special.xlogy(prob, prob) - torch.special.xlogy(prob, not_zero)).sum(-1)
    return EntropySplit(torch.special.entr(mean).sum(-1), expected, divergence.mean(0).clamp(min=0))


def far_field_slope(
    network: Network, weights: Float[Tensor, "samples dim"], directions: Float[Tensor, "n features"]
) -> Float[Tensor, "samples n k"]:
    r"""How fast the outputs of a ReLU network grow along a ray, far from the origin.

    .. math:: \lim_{t \to \infty} \frac{f(\theta, t u)}{t} = f(\theta_{b=0}, u)

    Far out, the biases no longer matter, and without biases a ReLU network scales with its input. So every output is in
    the end a straight line along the ray, and softmax gives probability one to the class whose line is steepest, unless
    two are equally steep.

    Args:
        network: an MLP with ReLU (or another activation with a(cz) = c a(z) for c > 0).
        weights: one row a sample. What :attr:`Network.weight_slices` names "…bias" is taken as zero.
        directions: u, one a row, finite.

    Returns:
        The slope of every output along every ray, in units of output per length of u.

    Raises:
        ValueError: if ``directions`` are not finite, or the outputs do not scale with the input, so that the limit is
            not this one.

    Source: Hein, Andriushchenko and Bitterwolf (2019), arXiv:1812.05720.
    Book: sec-far-field
    """
    weights = weights.clone()
    for name, where in network.weight_slices.items():
        if name.rpartition(".")[-1] == "bias":
            weights[:, where] = 0
    with torch.no_grad():
        slope, doubled = (_outputs(network, weights, scale * directions) for scale in (1, 2))
    if not torch.allclose(doubled, 2 * slope, rtol=1e-3, atol=1e-5 * float(slope.abs().max())):
        raise ValueError(
            f"network must scale with its input once the biases are zero, '{network.description}' does not"
        )
    return slope


def _outputs(network, weights, inputs):
    if len(weights) < 1:
        raise ValueError("weights must have at least one sample, got none")
    if not inputs.isfinite().all():
        raise ValueError(f"inputs must be finite, got {int((~inputs.isfinite()).sum())} non-finite values")
    return network.apply(weights, inputs)
