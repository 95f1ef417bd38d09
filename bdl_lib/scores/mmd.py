r"""The maximum mean discrepancy: are draws as close to the others as to their own?

Chapter: book/06-mcmc-versus-vi.ipynb
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.scores._checks import check_two_samples
from bdl_lib.scores.energy import MAX_PAIRS, pairwise_distance
from bdl_lib.scores.results import Distance, batch_means_variance

__all__ = ["median_distance", "squared_mmd"]

_MAX_FOR_MEDIAN = 1_000  # draws whose distances are sorted


def squared_mmd(
    draws: Float[Tensor, "n dim"], reference: Float[Tensor, "m dim"], *, width: float | Tensor | None = None
) -> Distance:
    r"""The squared maximum mean discrepancy with a Gaussian kernel: unbiased, and zero only for equal distributions.

    .. math:: \text{MMD}^2 = \underset{i \ne j}{\text{mean}}\; k(x_i, x_j)
              + \underset{i \ne j}{\text{mean}}\; k(y_i, y_j) - 2\, \underset{i, j}{\text{mean}}\; k(x_i, y_j), \qquad
              k(x, y) = \exp\Big( -\frac{\|x - y\|^2}{2 \ell^2} \Big)

    The standard error is that of the influence of each draw, :math:`2 (\text{mean}_j\, k(x_i, x_j) -
    \text{mean}_j\, k(x_i, y_j))`, and likewise for the reference. For two equal distributions it is too large, by about
    √2: there the estimate scatters around zero like 1 / n, and not like 1 / √n.

    Args:
        draws: x, from one distribution, [draws, dim]: independent, or of chains put one after the other, whose memory
            is accounted for in ``std_error`` as far as √n draws.
        reference: y, from the other, [draws, dim]; the two may differ in number, at least four each.
        width: ℓ of the kernel, positive. None takes :func:`median_distance`. To compare several methods with one
            reference, give all the same: the number depends on it.

    Returns:
        A :class:`Distance` without unit; ``value`` may be negative, and ``floor`` is zero. The work grows with
        draws², the memory does not.

    Raises:
        ValueError: if the shapes do not fit, there are too few draws, one is not finite, or the width is not positive
            (as it is if most draws are equal).

    Source: Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), JMLR 13:723–773; for the variance, Sutherland and
        Deka (2022), arXiv:1906.02104.
    Book: sec-distances
    """
    check_two_samples(draws, reference)
    width = median_distance(draws, reference) if width is None else width
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    n, m = len(draws), len(reference)
    within = (_kernel_sums(draws, draws, width)[0] - 1) / (n - 1)  # a draw is not its own neighbour: k(x, x) = 1
    within_reference = (_kernel_sums(reference, reference, width)[0] - 1) / (m - 1)
    across, back = _kernel_sums(draws, reference, width)
    across, back = across / m, back / n
    value = within.mean() + within_reference.mean() - 2 * across.mean()
    variance = batch_means_variance(2 * (within - across)) + batch_means_variance(2 * (within_reference - back))
    return Distance(value, variance.sqrt(), torch.zeros_like(value))


def median_distance(draws: Float[Tensor, "n dim"], reference: Float[Tensor, "m dim"]) -> Float[Tensor, ""]:
    r"""The median distance between two draws of both sets together: a usual width for :func:`squared_mmd`.

    Args:
        draws: from one distribution, [draws, dim], at least four.
        reference: from the other, [draws, dim], at least four. Beyond 1,000 draws in all, evenly spaced ones of both
            are taken.

    Returns:
        The distance, in the unit of the parameters.

    Raises:
        ValueError: if the shapes do not fit, there are too few draws, or one is not finite.

    Source: Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), JMLR 13:723–773.
    Book: sec-distances
    """
    check_two_samples(draws, reference)
    pooled = torch.cat([draws, reference])
    kept = min(len(pooled), _MAX_FOR_MEDIAN)
    pooled = pooled[torch.arange(kept, device=draws.device) * len(pooled) // kept]
    first, second = torch.triu_indices(kept, kept, 1, device=draws.device)
    return pairwise_distance(pooled, pooled)[first, second].median()


def _kernel_sums(first, second, width):
    """The kernel summed over the second set, for each draw of the first, and over the first, for each of the second."""
    over_second, over_first = [], torch.zeros_like(second[:, 0])
    for rows in first.split(max(1, MAX_PAIRS // len(second))):
        kernel = (-0.5 * (pairwise_distance(rows, second) / width).square()).exp()
        over_second.append(kernel.sum(1))
        over_first = over_first + kernel.sum(0)
    return torch.cat(over_second), over_first
