r"""Conformal sets of classes, for points and for pixels: the classes that a new observation may well have.

Scores go through :func:`~bdl_lib.uncertainty.conformal_quantile`, or for pixels through
:func:`~bdl_lib.uncertainty.pixel_quantile`, and come back as a threshold for the sets.

Chapter: book/08-uncertainty.ipynb
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bdl_lib.uncertainty._checks import check_class_prob, check_labels
from bdl_lib.uncertainty.conformal import ConformalQuantile

__all__ = ["cumulative_score", "cumulative_set", "threshold_score", "threshold_set"]


def threshold_score(
    prob: Float[Tensor, "n classes *pixels"], labels: Int[Tensor, "n *pixels"]
) -> Float[Tensor, "n *pixels"]:
    r"""How improbable the true class was called: :math:`s_i = 1 - p_i(y_i)`.

    Args:
        prob: p, the classes in dimension 1, where it sums to 1; it need not be calibrated.
        labels: y, true classes.

    Returns:
        The scores, from 0 to 1.

    Raises:
        ValueError: if ``prob`` is no distribution over the classes, a label is no class, or the shapes do not fit.

    Source: Sadinle, Lei and Wasserman (2019), arXiv:1609.00451.
    Book: sec-conformal
    """
    check_class_prob(prob)
    check_labels(labels, prob)
    return 1 - prob.gather(1, labels[:, None].long())[:, 0]


def threshold_set(
    prob: Float[Tensor, "n classes *pixels"], quantile: ConformalQuantile
) -> Bool[Tensor, "n classes *pixels"]:
    r"""All classes with at least a certain probability: :math:`\{c : 1 - p(c) \le \hat q\}`.

    If the probabilities are right, no other sets of the same coverage are smaller on average. They may be empty: then
    no class is probable enough, and the point is unlike what the model has seen, or the level is low.

    Args:
        prob: p, for new points, the classes in dimension 1.
        quantile: of the threshold scores of the calibration points.

    Returns:
        Whether each class is in the set.

    Raises:
        ValueError: if ``prob`` is no distribution over the classes.

    Source: Sadinle, Lei and Wasserman (2019), arXiv:1609.00451.
    Book: sec-conformal
    """
    check_class_prob(prob)
    return 1 - prob <= quantile.value


def cumulative_score(
    prob: Float[Tensor, "n classes *pixels"],
    labels: Int[Tensor, "n *pixels"],
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n *pixels"]:
    r"""How much probability was given to classes called more probable than the true one (adaptive prediction sets).

    .. math:: s_i = \sum_{c \text{ before } y_i} p_i(c) + u_i\, p_i(y_i), \qquad u_i \sim U(0, 1)

    with the classes in the order of falling probability. Sets from this score take classes in that order until their
    sum reaches the quantile, so that they grow where the model is unsure and shrink where it is sure.

    Args:
        prob: p, the classes in dimension 1, where it sums to 1.
        labels: y, true classes.
        generator: draws u, which makes the coverage exact. Without one u is 0: no set is then empty, and where the most
            probable class is right more often than the level asks, coverage is above it.

    Returns:
        The scores, from 0 to 1.

    Raises:
        ValueError: if ``prob`` is no distribution over the classes, a label is no class, or the shapes do not fit.

    Source: Romano, Sesia and Candès (2020), Classification with Valid and Adaptive Coverage, arXiv:2006.02544.
    Book: sec-conformal
    """
    check_class_prob(prob)
    check_labels(labels, prob)
    return _cumulative_scores(prob, generator).gather(1, labels[:, None].long())[:, 0]


def cumulative_set(
    prob: Float[Tensor, "n classes *pixels"],
    quantile: ConformalQuantile,
    *,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "n classes *pixels"]:
    r"""The most probable classes, as many as it takes for their probabilities to sum to the quantile.

    Args:
        prob: p, for new points, the classes in dimension 1.
        quantile: of the cumulative scores of the calibration points.
        generator: one if the scores had one, and none if they had none. With one, the last class is left out at random,
            and sets may be empty.

    Returns:
        Whether each class is in the set.

    Raises:
        ValueError: if ``prob`` is no distribution over the classes.

    Source: Romano, Sesia and Candès (2020), arXiv:2006.02544.
    Book: sec-conformal
    """
    check_class_prob(prob)
    return _cumulative_scores(prob, generator) <= quantile.value


def _cumulative_scores(prob, generator):
    """The score that each class would have if it were the true one."""
    ordered, order = prob.sort(dim=1, descending=True, stable=True)
    score = ordered.cumsum(1) - ordered
    if generator is not None:
        u = torch.rand(prob[:, :1].shape, generator=generator, dtype=prob.dtype, device=prob.device)
        score = score + u * ordered
    return torch.empty_like(prob).scatter_(1, order, score)
