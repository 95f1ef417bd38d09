r"""Calibration: of all that was called 70 % probable, did 70 % happen? With the bias of the bins taken out.

Chapter: book/06-mcmc-versus-vi.ipynb
"""

from math import pi
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bdl_lib.scores._checks import check_binary

__all__ = ["CalibrationError", "calibration_error"]


class CalibrationError(NamedTuple):
    """How far frequencies lie from the probabilities that were announced, in all and bin by bin.

    Book: sec-calibration
    """

    squared: Float[Tensor, ""]  # mean squared error without the bias of the bins: below zero about as often as above,
    # if the forecasts are calibrated
    std_error: Float[Tensor, ""]  # of squared, over independent data points
    bin_bias: Float[Tensor, ""]  # what noise alone adds to the squared error of the bins, and was subtracted
    ece: Float[Tensor, ""]  # the usual expected calibration error, its bias left in
    ece_if_calibrated: Float[Tensor, ""]  # what it would be on average if nothing were wrong
    confidence: Float[Tensor, " bins"]  # mean probability announced; NaN where a bin is empty
    frequency: Float[Tensor, " bins"]  # share that happened
    count: Float[Tensor, " bins"]  # of data points

    @property
    def root(self) -> Float[Tensor, ""]:
        """The root mean squared calibration error, a probability; zero where the estimate of its square is negative."""
        return self.squared.clamp(min=0).sqrt()


def calibration_error(
    prob: Float[Tensor, " points"],
    labels: Int[Tensor, " points"] | Bool[Tensor, " points"],
    *,
    num_bins: int = 10,
    bins: Literal["equal_count", "equal_width"] = "equal_count",
) -> CalibrationError:
    r"""How far the frequency of an event lies from its announced probability, without the bias of the bins.

    In a bin of :math:`n_b` points, the residuals :math:`r_i = y_i - p_i` have an expectation :math:`\delta_b`, zero for
    a calibrated forecast. Their average :math:`\bar r_b` is not zero, since there are few of them:
    :math:`E[\bar r_b^2] = \delta_b^2 + \sigma_b^2 / n_b`. The second term is the bias, and is estimated and subtracted:

    .. math:: \widehat{\text{CE}^2} = \sum_b \frac{n_b}{n} \Big( \bar r_b^2 - \frac{s_b^2}{n_b} \Big), \qquad
              \text{ECE} = \sum_b \frac{n_b}{n} |\bar r_b|

    with :math:`s_b^2` the sample variance of the residuals. The standard error is that of

    .. math:: \text{Var} = \sum_b \frac{n_b^2}{n^2}
              \Big( \frac{4 \delta_b^2 \sigma_b^2}{n_b} + \frac{2 \sigma_b^4}{n_b (n_b - 1)} \Big)
              + \frac 1n \sum_b \frac{n_b}{n} \big( \delta_b^2 - \text{CE}^2 \big)^2 .

    The first term vanishes for a calibrated forecast, where the error shrinks like 1 / n and not like 1 / √n; there the
    standard error is up to a fifth too large. Errors of opposite sign inside one bin still cancel: the estimate is of
    the binned error, which is at most the true one.

    Args:
        prob: p, the probability given to an event, [points]. For several classes, the confidence
            ``prob.max(1).values``, the event being that the answer is right.
        labels: y, whether it happened, 0 and 1 or False and True.
        num_bins: from 1 to half the number of points.
        bins: "equal_count" puts the same number of points in each (points of equal probability stay together),
            "equal_width" divides 0 to 1 evenly.

    Returns:
        A :class:`CalibrationError`; probabilities, and their squares. A bin with a single point tells nothing about its
        own noise, and is left out of ``squared``, ``std_error`` and ``bin_bias``.

    Raises:
        ValueError: if ``prob`` or ``labels`` are out of range or differ in length, or ``num_bins`` or ``bins`` is not
            as above.

    Source: Bröcker (2012), doi:10.1007/s00382-011-1191-1; Kumar, Liang and Ma (2019), arXiv:1909.10155; for errors at
        two rates, Sun, Chaudhari, Barnett and Dobriban (2024), arXiv:2408.08998.
    Book: sec-calibration
    """
    check_binary(prob, labels)
    if bins not in ("equal_count", "equal_width"):
        raise ValueError(f"bins must be 'equal_count' or 'equal_width', got {bins!r}")
    if not 1 <= num_bins <= len(prob) / 2:
        raise ValueError(f"num_bins must be from 1 to half of {len(prob)} points, got {num_bins}")
    bin_of = _bins_of_equal_count(prob, num_bins) if bins == "equal_count" else _bins_of_equal_width(prob, num_bins)

    def total(values):
        return values.new_zeros(num_bins).index_add(0, bin_of, values)

    residual = labels.to(prob) - prob
    count, sums, squares = total(torch.ones_like(prob)), total(residual), total(residual.square())
    ece, expected_variance = sums.abs().sum() / len(prob), total(prob * (1 - prob))
    ece_if_calibrated = (2 / pi * expected_variance).sqrt().sum() / len(prob)
    squared, std_error, bin_bias = _without_bias(count, sums, squares)
    confidence = total(prob) / count
    return CalibrationError(
        squared, std_error, bin_bias, ece, ece_if_calibrated, confidence, confidence + sums / count, count
    )


def _bins_of_equal_count(prob, num_bins):
    """The number of the bin of each point; edges at every n / bins-th value, and ties on one side of them."""
    first = torch.arange(1, num_bins, device=prob.device) * len(prob) // num_bins
    return torch.searchsorted(prob.sort().values[first], prob, right=True)


def _bins_of_equal_width(prob, num_bins):
    return (prob * num_bins).long().clamp(max=num_bins - 1)


def _without_bias(count, sums, squares):
    """The unbiased squared error, its standard error, and the bias: sums over the bins with two points or more."""
    n = torch.where(count >= 2, count, 2.0)  # nothing to divide by zero where the share is zero anyway
    num_used = torch.where(count >= 2, count, 0.0).sum()
    share = torch.where(count >= 2, count, 0.0) / num_used
    variance = (squares - sums.square() / n) / (n - 1)
    delta_squared = (sums.square() - squares) / (n * (n - 1))  # mean of r_i r_j over pairs, i and j different
    squared = (share * delta_squared).sum()
    from_bias = (share.square() * 4 * delta_squared * variance / n).sum().clamp(min=0)
    from_noise = (share.square() * 2 * variance.square() / (n * (n - 1))).sum()
    between = (share * (delta_squared - squared).square()).sum() / num_used
    return squared, (from_bias + from_noise + between).sqrt(), (share * variance / n).sum()
