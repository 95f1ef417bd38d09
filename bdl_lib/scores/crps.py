r"""The continuous ranked probability score: how far a predictive distribution lies from the number that came.

Chapter: book/06-mcmc-versus-vi.ipynb
"""

from math import pi

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.scores._checks import check_forecasts
from bdl_lib.scores.densities import as_std
from bdl_lib.scores.results import Score, average

__all__ = ["crps_draws", "crps_gaussian"]


def crps_gaussian(
    loc: Float[Tensor, " points"],
    std: Float[Tensor, " points"] | Float[Tensor, ""] | float,
    targets: Float[Tensor, " points"],
) -> Score:
    r"""The CRPS of a Gaussian forecast, in closed form.

    .. math:: s = \int \big( F(u) - [u \ge y] \big)^2 du
              = \sigma \Big( z \big( 2 \Phi(z) - 1 \big) + 2 \varphi(z) - \frac{1}{\sqrt\pi} \Big),
              \qquad z = \frac{y - \mu}{\sigma}

    Args:
        loc: μ, the mean of each forecast.
        std: σ, its standard deviation, noise included, in the unit of the targets, positive: one a point, or one
            number.
        targets: y, what was observed.

    Returns:
        A :class:`Score` in the unit of the targets. As σ goes to 0, the score becomes :math:`|y - \mu|`.

    Raises:
        ValueError: if the shapes differ, ``std`` is not positive, or something is not finite.

    Source: Gneiting and Raftery (2007), doi:10.1198/016214506000001437.
    Book: sec-proper-scores
    """
    std = as_std(loc, std, targets)
    error = targets - loc
    z = error / std
    density = (-0.5 * z.square()).exp() / (2 * pi) ** 0.5
    return average(error * torch.erf(z / 2**0.5) + std * (2 * density - pi**-0.5))


def crps_draws(draws: Float[Tensor, "draws points"], targets: Float[Tensor, " points"]) -> Score:
    r"""The CRPS of a forecast known by its draws: the fair version, unbiased for however few draws.

    .. math:: s = \frac 1m \sum_j |x_j - y| - \frac{1}{2 m (m - 1)} \sum_{j, k} |x_j - x_k|,
              \qquad \sum_{j, k} |x_j - x_k| = 2 \sum_j (2 j - m - 1)\, x_{(j)}

    On average over the draws, this is :math:`E|X - y| - \frac12 E|X - X'|`, the score of the distribution that they
    come from; with :math:`m^2` below the fraction line, it would punish a method for giving few draws. A sort of each
    column, in :math:`O(m \log m)`, replaces the double sum.

    Args:
        draws: x, predictive draws of each observation, noise included, [draws, points], at least two.
        targets: y, what was observed, [points].

    Returns:
        A :class:`Score` in the unit of the targets. The score of a single point may be negative.

    Raises:
        ValueError: if there are fewer than two draws, the shapes do not fit, or something is not finite.

    Source: Gneiting and Raftery (2007), doi:10.1198/016214506000001437; Ferro, Richardson and Weigel
        (2008), doi:10.1002/met.45, for the fair version.
    Book: sec-proper-scores
    """
    check_forecasts(draws, targets, "points")
    m = len(draws)
    error = (draws - targets).sort(0).values
    weight = 2 * torch.arange(1, m + 1, dtype=draws.dtype, device=draws.device) - m - 1
    half_spread = weight @ error / (m * (m - 1))
    return average(error.abs().mean(0) - half_spread)
