r"""The probability of what happened: the log score, and the Brier score for classes.

Chapter: book/06-mcmc-versus-vi.ipynb
"""

from math import inf, log, pi

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bdl_lib.scores._checks import check_finite, check_labels
from bdl_lib.scores.results import Score, average

__all__ = ["brier_score", "log_score_classes", "log_score_gaussian", "log_score_mixture"]


def log_score_gaussian(
    loc: Float[Tensor, " points"],
    std: Float[Tensor, " points"] | Float[Tensor, ""] | float,
    targets: Float[Tensor, " points"],
) -> Score:
    r"""Minus the log density of what was observed, under a Gaussian forecast.

    .. math:: s_i = \frac{(y_i - \mu_i)^2}{2 \sigma_i^2} + \log \sigma_i + \frac12 \log 2\pi

    Args:
        loc: μ, the mean of each forecast.
        std: σ, its standard deviation, noise included, in the unit of the targets, positive: one a point, or one
            number.
        targets: y, what was observed.

    Returns:
        A :class:`Score` in nats. It changes with the unit of the targets: compare only methods on the same data.

    Raises:
        ValueError: if the shapes differ, ``std`` is not positive, or something is not finite.

    Source: Gneiting and Raftery (2007), doi:10.1198/016214506000001437.
    Book: sec-proper-scores
    """
    std = as_std(loc, std, targets)
    return average(0.5 * ((targets - loc) / std).square() + std.log() + 0.5 * log(2 * pi))


def log_score_mixture(log_prob: Float[Tensor, "draws points"]) -> Score:
    r"""Minus the log of the predictive density, an equal mixture of what each posterior draw predicts.

    .. math:: s_i = -\log \frac 1S \sum_{s=1}^S p(y_i \mid x_i, \theta_s)

    With few draws the score is too high on average, by about the variance of the densities over :math:`2 S` times
    their squared mean: give every method the same number of draws.

    Args:
        log_prob: :math:`\log p(y_i \mid x_i, \theta_s)` in nats, one row a posterior draw, one column a data point. −∞
            is a draw that calls the observation impossible.

    Returns:
        A :class:`Score` in nats; infinite where every draw says impossible. ``std_error`` is over the points, and does
        not contain the Monte Carlo error of the draws.

    Raises:
        ValueError: if ``log_prob`` is not [draws, points], is empty, or has a NaN or +∞.

    Source: Gneiting and Raftery (2007), doi:10.1198/016214506000001437.
    Book: sec-proper-scores
    """
    if log_prob.ndim != 2 or log_prob.numel() == 0:
        raise ValueError(f"log_prob must have shape [draws, points] and not be empty, got {list(log_prob.shape)}")
    if not (log_prob < inf).all():
        raise ValueError(f"log_prob must be below +inf, got {log_prob[~(log_prob < inf)][0].item()}")
    return average(log(len(log_prob)) - log_prob.logsumexp(0))


def log_score_classes(
    prob: Float[Tensor, " points"] | Float[Tensor, "points classes"],
    labels: Int[Tensor, " points"] | Bool[Tensor, " points"],
) -> Score:
    r"""Minus the log of the probability that was given to the class that came.

    .. math:: s_i = -\log p(c = y_i \mid x_i)

    Args:
        prob: probabilities of the classes, rows that sum to 1; or, for two classes, that of label 1, [points].
        labels: y, from 0 to classes - 1; or True and False.

    Returns:
        A :class:`Score` in nats; infinite where the class that came had probability 0.

    Raises:
        ValueError: if a probability or a label is out of range, a row does not sum to 1, or the shapes do not fit.

    Source: Gneiting and Raftery (2007), doi:10.1198/016214506000001437.
    Book: sec-proper-scores
    """
    check_labels(prob, labels)
    if prob.ndim == 1:
        return average(-torch.where(labels == 1, prob.log(), (-prob).log1p()))
    return average(-prob.gather(1, labels.long()[:, None]).squeeze(1).log())


def brier_score(
    prob: Float[Tensor, " points"] | Float[Tensor, "points classes"],
    labels: Int[Tensor, " points"] | Bool[Tensor, " points"],
) -> Score:
    r"""The squared distance between the forecast probabilities and what came, a one and zeros.

    .. math:: s_i = \sum_c \big( p(c \mid x_i) - [c = y_i] \big)^2 \in [0, 2],
              \qquad\text{for two classes, of label 1 alone: } s_i = (p_i - y_i)^2 \in [0, 1]

    Args:
        prob: probabilities of the classes, rows that sum to 1; or, for two classes, that of label 1, [points].
        labels: y, from 0 to classes - 1; or True and False.

    Returns:
        A :class:`Score` without unit. Two classes given as [points, 2] score twice what [points] scores.

    Raises:
        ValueError: if a probability or a label is out of range, a row does not sum to 1, or the shapes do not fit.

    Source: Brier (1950), doi:10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2.
    Book: sec-proper-scores
    """
    check_labels(prob, labels)
    if prob.ndim == 1:
        return average((prob - labels.to(prob)).square())
    return average((prob - torch.nn.functional.one_hot(labels.long(), prob.shape[1])).square().sum(1))


def as_std(loc: Tensor, std: Tensor | float, targets: Tensor) -> Tensor:
    """Return a standard deviation a point; raise ``ValueError`` unless this is a Gaussian forecast of each target."""
    std = torch.as_tensor(std, dtype=loc.dtype, device=loc.device)
    if targets.ndim != 1 or loc.shape != targets.shape or std.shape not in ((), targets.shape):
        shapes = f"{list(loc.shape)}, {list(std.shape)} and {list(targets.shape)}"
        raise ValueError(f"loc, std and targets must have shape [points], got {shapes}")
    check_finite(loc=loc, std=std, targets=targets)
    if not (std > 0).all():
        raise ValueError(f"std must be positive, got {std[~(std > 0)].flatten()[0].item()}")
    return std.expand_as(targets)
