r"""What scores and distances return, and where their standard errors come from.

Chapter: book/06-mcmc-versus-vi.ipynb
"""

from math import isqrt, nan
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Distance", "Score", "average", "paired_difference"]


class Score(NamedTuple):
    """A score averaged over data points. Lower is better, unless the function that made it says otherwise.

    Book: sec-proper-scores
    """

    mean: Float[Tensor, ""]
    std_error: Float[Tensor, ""]  # of the mean, over independent data points; NaN for a single one
    values: Float[Tensor, " points"]  # the score of each point


class Distance(NamedTuple):
    """A distance between two distributions, estimated from draws of each.

    Book: sec-distances
    """

    value: Float[Tensor, ""]
    std_error: Float[Tensor, ""]  # Monte Carlo standard error
    floor: Float[Tensor, ""]  # what two sets of independent draws from one distribution would give on average


def average(values: Float[Tensor, " points"]) -> Score:
    r"""The mean of a score over data points, with its standard error.

    .. math:: \bar s = \frac 1n \sum_i s_i, \qquad
              \text{SE} = \sqrt{\frac{1}{n (n - 1)} \sum_i (s_i - \bar s)^2}

    Args:
        values: :math:`s_i`, the score of each data point, in any unit; the points independent of each other. Infinite
            ones (the log score of what was called impossible) give an infinite mean, and no standard error.

    Returns:
        A :class:`Score` in the unit of ``values``.

    Raises:
        ValueError: if ``values`` is empty, no vector, or has a NaN.

    Book: sec-proper-scores
    """
    if values.ndim != 1 or len(values) == 0 or values.isnan().any():
        raise ValueError(f"values must be a vector, not empty and without NaN, got {values}")
    std_error = values.std() / len(values) ** 0.5 if len(values) > 1 else values.new_full((), nan)
    return Score(values.mean(), std_error, values)


def paired_difference(first: Score, second: Score) -> Score:
    r"""How much higher one score is than another on the same data points, with the error of the difference.

    Some points are hard for every method. That part of the scatter cancels in :math:`s_i - s'_i`, so the error of the
    difference is mostly far below what the errors of the two suggest.

    Args:
        first: the score of one method.
        second: the score of another, on the same points in the same order.

    Returns:
        A :class:`Score` of the differences; a negative mean says that the first method is better.

    Raises:
        ValueError: if the two have not the same number of points, or both are infinite at one.

    Book: sec-comparison
    """
    if first.values.shape != second.values.shape:
        sizes = f"{list(first.values.shape)} and {list(second.values.shape)}"
        raise ValueError(f"first and second must score the same points, got {sizes}")
    return average(first.values - second.values)


def batch_means_variance(series: Float[Tensor, "n *rest"]) -> Float[Tensor, "*rest"]:
    r"""The variance of the mean of a series whose neighbours may be correlated, from the means of √n batches.

    A batch longer than the memory of the series has a mean that is independent of the next; the scatter of those means
    is then right, where that of single draws would be too small. Needs n ≥ 4.

    Source: Flegal and Jones (2010), arXiv:0811.1729.
    """
    n, num_batches = len(series), isqrt(len(series))
    batch = torch.arange(n, device=series.device) * num_batches // n
    size = torch.zeros(num_batches, dtype=series.dtype, device=series.device)
    size = size.index_add(0, batch, torch.ones_like(size[:1]).expand(n)).reshape(-1, *[1] * (series.ndim - 1))
    deviation = series - series.mean(0)
    sums = series.new_zeros(num_batches, *series.shape[1:]).index_add(0, batch, deviation)
    return (sums.square() / size).sum(0) / ((num_batches - 1) * n)
