r"""Predictions of many models, or of many draws of one, as one prediction with two kinds of uncertainty.

Draws come one by one and are not kept: what is remembered has the size of one prediction, however many there are. A
draw of class probabilities is [n, classes, ...], the classes in dimension 1 as convolutional networks and
``torch.nn.functional.cross_entropy`` have them: [n, classes] for vectors, [n, classes, height, width] for images.

Chapter: book/08-uncertainty.ipynb
"""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.uncertainty._checks import check_class_prob, check_finite, check_same_shape

__all__ = [
    "ClassDraws",
    "ClassUncertainty",
    "RegressionDraws",
    "RegressionUncertainty",
    "UncertaintyParts",
    "add_class_draw",
    "add_regression_draw",
    "decompose_classes",
    "decompose_regression",
]


class UncertaintyParts(NamedTuple):
    """The uncertainty of a prediction and the two parts that it is the sum of.

    Book: sec-two-parts
    """

    total: Float[Tensor, "n *pixels"]
    aleatoric: Float[Tensor, "n *pixels"]  # noise of the data: what each draw is unsure of by itself
    epistemic: Float[Tensor, "n *pixels"]  # ignorance of the model: what the draws disagree about


class ClassDraws(NamedTuple):
    """What is remembered of predicted class probabilities, whatever their number.

    Book: sec-streaming
    """

    num_draws: int
    prob: Float[Tensor, "n classes *pixels"]  # mean over the draws
    entropy: Float[Tensor, "n *pixels"]  # mean of the draws' own entropies, nats
    variance: Float[Tensor, "n *pixels"]  # mean of the draws' own variances, summed over the classes
    scatter: Float[Tensor, "n *pixels"]  # squared deviations from the mean, summed over draws and classes


class RegressionDraws(NamedTuple):
    """What is remembered of predicted means and variances, whatever their number.

    Book: sec-streaming
    """

    num_draws: int
    mean: Float[Tensor, "n *pixels"]  # mean of the draws' means
    noise_var: Float[Tensor, "n *pixels"]  # mean of their variances
    scatter: Float[Tensor, "n *pixels"]  # squared deviations of their means, summed over the draws


class ClassUncertainty(NamedTuple):
    """A prediction of classes, with its uncertainty in two forms.

    Book: sec-two-parts
    """

    prob: Float[Tensor, "n classes *pixels"]
    entropy: UncertaintyParts  # nats; the epistemic part is the mutual information of label and model
    variance: UncertaintyParts  # variances of the classes' indicators, summed: from 0 to 1 - 1 / classes


class RegressionUncertainty(NamedTuple):
    """A prediction of real numbers, with its uncertainty.

    Book: sec-two-parts
    """

    mean: Float[Tensor, "n *pixels"]
    variance: UncertaintyParts  # in the units of the targets squared


def add_class_draw(draws: ClassDraws | None, prob: Float[Tensor, "n classes *pixels"]) -> ClassDraws:
    r"""Remember one more draw of class probabilities.

    .. math:: \bar p \leftarrow \bar p + \frac{p_s - \bar p}{s}, \qquad
              M \leftarrow M + \frac{s - 1}{s} \sum_c (p_{sc} - \bar p_c)^2

    with :math:`\bar p` the mean before the draw: Welford's way to a variance, without the difference of two large sums.

    Args:
        draws: what is remembered of the draws before; None at the first.
        prob: :math:`p_s`, the probabilities under this draw, summing to 1 over dimension 1; exactly 0 and 1 are
            welcome. On an accelerator, each call waits for their check.

    Returns:
        A new :class:`ClassDraws`, of the size of one draw; the one given stays as it was.

    Raises:
        ValueError: if ``prob`` is no distribution over the classes, or has not the shape of the draws before.

    Source: Welford (1962), doi:10.1080/00401706.1962.10490022.
    Book: sec-streaming
    """
    check_class_prob(prob)
    entropy, variance = torch.special.entr(prob).sum(1), (prob * (1 - prob)).sum(1)
    if draws is None:
        return ClassDraws(1, prob, entropy, variance, torch.zeros_like(entropy))
    check_same_shape(prob=prob, **{"the draws before": draws.prob})
    count, deviation = draws.num_draws + 1, prob - draws.prob
    scatter = draws.scatter + deviation.square().sum(1) * (draws.num_draws / count)
    return ClassDraws(
        count,
        draws.prob.lerp(prob, 1 / count),
        draws.entropy + (entropy - draws.entropy) / count,
        draws.variance + (variance - draws.variance) / count,
        scatter,
    )


def add_regression_draw(
    draws: RegressionDraws | None, mean: Float[Tensor, "n *pixels"], var: Float[Tensor, "n *pixels"]
) -> RegressionDraws:
    r"""Remember one more draw of predicted means and noise variances.

    .. math:: \bar\mu \leftarrow \bar\mu + \frac{\mu_s - \bar\mu}{s}, \qquad
              M \leftarrow M + \frac{s - 1}{s} (\mu_s - \bar\mu)^2

    Args:
        draws: what is remembered of the draws before; None at the first.
        mean: :math:`\mu_s`, what this draw predicts, finite.
        var: :math:`\sigma_s^2`, the variance of the noise that it predicts, not negative: a variance, so the
            exponential of a network's log variance. On an accelerator, each call waits for the check of both.

    Returns:
        A new :class:`RegressionDraws`, of the size of one draw; the one given stays as it was.

    Raises:
        ValueError: if a variance is negative, something is not finite, or the shapes differ.

    Source: Welford (1962), doi:10.1080/00401706.1962.10490022.
    Book: sec-streaming
    """
    check_same_shape(mean=mean, var=var)
    check_finite(mean=mean, var=var)
    if not (var >= 0).all():
        raise ValueError(f"var must not be negative, got {var.min().item()}")
    if draws is None:
        return RegressionDraws(1, mean, var, torch.zeros_like(mean))
    check_same_shape(mean=mean, **{"the draws before": draws.mean})
    count, deviation = draws.num_draws + 1, mean - draws.mean
    scatter = draws.scatter + deviation.square() * (draws.num_draws / count)
    noise_var = draws.noise_var + (var - draws.noise_var) / count
    return RegressionDraws(count, draws.mean + deviation / count, noise_var, scatter)


def decompose_classes(draws: ClassDraws | Iterable[Float[Tensor, "n classes *pixels"]]) -> ClassUncertainty:
    r"""Average class probabilities over S draws, and split their uncertainty, as entropy and as variance.

    .. math:: \underbrace{H[\bar p]}_{\text{total}} = \underbrace{\frac1S \sum_s H[p_s]}_{\text{aleatoric}} +
              \underbrace{\operatorname{I}[y; \theta]}_{\text{epistemic}}, \qquad
              \underbrace{\sum_c \bar p_c (1 - \bar p_c)}_{\text{total}} =
              \underbrace{\frac1S \sum_{s,c} p_{sc} (1 - p_{sc})}_{\text{aleatoric}} +
              \underbrace{\frac1S \sum_{s,c} (p_{sc} - \bar p_c)^2}_{\text{epistemic}}

    The variance form is the trace of the covariance of the label's indicator, split by the law of total variance. Both
    epistemic parts belong to this mixture of S draws: on average they are below those of infinitely many, the second by
    a factor (S - 1) / S.

    Args:
        draws: what :func:`add_class_draw` remembered; or the draws themselves, a tensor [draws, n, classes, ...] or
            anything that yields [n, classes, ...] one by one, so that they need not exist at once.

    Returns:
        A :class:`ClassUncertainty`. The mutual information is the difference of the other two entropies, and zero where
        rounding would make it negative.

    Raises:
        ValueError: if there is no draw, or one is not as :func:`add_class_draw` asks.

    Source: Houlsby et al. (2011), arXiv:1112.5745; Depeweg et al. (2018), arXiv:1710.07283; Kwon, Won, Kim and Paik
        (2020), doi:10.1016/j.csda.2019.106816.
    Book: sec-two-parts
    """
    if not isinstance(draws, ClassDraws):
        draws = _all_of(reduce(add_class_draw, draws, None))
    prob, total = draws.prob, torch.special.entr(draws.prob).sum(1)
    entropy = UncertaintyParts(total, draws.entropy, (total - draws.entropy).clamp(min=0))
    variance = UncertaintyParts((prob * (1 - prob)).sum(1), draws.variance, draws.scatter / draws.num_draws)
    return ClassUncertainty(prob, entropy, variance)


def decompose_regression(
    draws: RegressionDraws | Iterable[tuple[Float[Tensor, "n *pixels"], Float[Tensor, "n *pixels"]]],
) -> RegressionUncertainty:
    r"""Average S predictions with their own noise, and split the variance of the mixture.

    .. math:: \underbrace{\operatorname{Var}[y]}_{\text{total}} =
              \underbrace{\frac1S \sum_s \sigma_s^2}_{\text{aleatoric}} +
              \underbrace{\frac1S \sum_s (\mu_s - \bar\mu)^2}_{\text{epistemic}}

    The second part divides by S: it belongs to this mixture, and is on average (S - 1) / S of what infinitely many
    draws would give.

    Args:
        draws: what :func:`add_regression_draw` remembered; or pairs of mean and variance, one a draw, each
            [n, ...]: ``zip(means, variances)`` for tensors [draws, n, ...].

    Returns:
        A :class:`RegressionUncertainty`: the mean in the units of the targets, variances in those units squared.

    Raises:
        ValueError: if there is no draw, or one is not as :func:`add_regression_draw` asks.

    Source: Depeweg et al. (2018), arXiv:1710.07283; Kendall and Gal (2017), arXiv:1703.04977.
    Book: sec-two-parts
    """
    if not isinstance(draws, RegressionDraws):
        draws = _all_of(reduce(lambda before, draw: add_regression_draw(before, *draw), draws, None))
    epistemic = draws.scatter / draws.num_draws
    return RegressionUncertainty(draws.mean, UncertaintyParts(draws.noise_var + epistemic, draws.noise_var, epistemic))


def _all_of(draws):
    if draws is None:
        raise ValueError("draws must have at least one draw, got none")
    return draws
