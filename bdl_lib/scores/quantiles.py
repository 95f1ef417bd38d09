r"""Errors of single parameters: by how much quantiles differ, and with what uncertainty.

Chapter: book/06-mcmc-versus-vi.ipynb
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.scores._checks import check_two_samples
from bdl_lib.scores._order import order_statistic
from bdl_lib.scores.results import batch_means_variance

__all__ = ["QuantileError", "quantile_error"]


class QuantileError(NamedTuple):
    """By how much the quantiles of each parameter differ, in standard deviations of the reference.

    Book: sec-distances
    """

    error: Float[Tensor, "quantiles dim"]  # positive: too high
    std_error: Float[Tensor, "quantiles dim"]  # Monte Carlo standard error, of both sets of draws
    probs: Float[Tensor, " quantiles"]

    @property
    def rms(self) -> Float[Tensor, " dim"]:
        """One number a parameter: the root mean square of its errors, Monte Carlo noise included."""
        return self.error.square().mean(0).sqrt()


def quantile_error(
    draws: Float[Tensor, "n dim"],
    reference: Float[Tensor, "m dim"],
    *,
    probs: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
) -> QuantileError:
    r"""The difference of quantiles, one parameter at a time.

    .. math:: e_{pj} = \frac{Q_j(p) - Q_j^\text{ref}(p)}{s_j^\text{ref}}

    At the median it says how far the centre is off; the outer quantiles say whether the width is right: errors of
    opposite sign on the two sides are a posterior that is too narrow or too wide.

    The standard error of a quantile is read off the draws: with :math:`\epsilon` the standard error of the share of
    draws below Q(p), it is half of :math:`Q(p + \epsilon) - Q(p - \epsilon)`.

    Args:
        draws: from the approximation, [draws, dim]: independent, or of chains put one after the other, whose memory is
            accounted for in ``std_error`` as far as √n draws.
        reference: from the posterior itself, [draws, dim]; the two may differ in number, at least four each.
        probs: p, which quantiles, between 0 and 1.

    Returns:
        A :class:`QuantileError`. The error of :math:`s^\text{ref}` is not in it: it is a small share of e.

    Raises:
        ValueError: if the shapes do not fit, there are too few draws, one is not finite, a parameter of the reference
            does not vary, or one of ``probs`` is out of range.

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), arXiv:1903.08008, for errors of quantiles.
    Book: sec-distances
    """
    check_two_samples(draws, reference)
    if len(probs) == 0 or not all(0 < p < 1 for p in probs):
        raise ValueError(f"probs must be one or more numbers between 0 and 1, got {probs}")
    scale = reference.std(0)
    if not (scale > 0).all():
        constant = (~(scale > 0)).nonzero().flatten().tolist()
        raise ValueError(f"reference must vary in every parameter, got constants in {constant}")
    quantiles, variance = _quantiles(draws, probs)
    true_quantiles, true_variance = _quantiles(reference, probs)
    error, std_error = (quantiles - true_quantiles) / scale, (variance + true_variance).sqrt() / scale
    return QuantileError(error, std_error, draws.new_tensor([*probs]))


def _quantiles(draws, probs):
    """Quantiles of each column, and the variances of those."""
    ordered = draws.sort(0).values
    quantiles, variances = [], []
    for p in probs:
        at = torch.full_like(ordered[:1], p)
        quantile = order_statistic(ordered, at * (len(draws) - 1))
        step = batch_means_variance((draws <= quantile).to(draws)).sqrt()
        ends = torch.cat([at - step, at + step]).clamp(0, 1) * (len(draws) - 1)
        low, high = order_statistic(ordered, ends)
        quantiles.append(quantile[0])
        variances.append(((high - low) / 2).square())
    return torch.stack(quantiles), torch.stack(variances)
