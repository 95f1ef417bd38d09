r"""Intervals: how often they hold the truth, and how wide they must be to do so.

Chapter: book/06-mcmc-versus-vi.ipynb
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from bdl_lib.scores._checks import check_draws, check_finite
from bdl_lib.scores._order import order_statistic
from bdl_lib.scores.results import Score, average

__all__ = ["Interval", "central_interval", "interval_coverage", "interval_score", "interval_width", "sharpness"]

_ROUNDING = 1e-9  # in positions among the draws


class Interval(NamedTuple):
    """An interval for each data point, and how often it should hold the truth.

    Book: sec-coverage
    """

    low: Float[Tensor, " points"]
    high: Float[Tensor, " points"]
    level: float  # probability, between 0 and 1


def central_interval(draws: Float[Tensor, "draws points"], level: float) -> Interval:
    r"""The interval that leaves out equal shares of the predictive distribution below and above.

    .. math:: \big[ x_{(k)},\; x_{(m + 1 - k)} \big], \qquad k = \frac{1 - \text{level}}{2} (m + 1)

    A new draw from the same distribution falls below :math:`x_{(k)}` with probability k / (m + 1), so that the interval
    of a right forecast holds the truth with probability ``level`` however few the draws are: exactly if k is whole, and
    closely between, where neighbours are joined by a line. The usual quantiles, at :math:`1 + p (m - 1)`, are too
    narrow by a factor :math:`(m - 1) / (m + 1)` in probability.

    Args:
        draws: x, predictive draws of each observation, noise included, [draws, points]; at least
            2 / (1 - level) - 1 of them, since the interval cannot reach beyond the outermost.
        level: the probability inside, between 0 and 1.

    Returns:
        An :class:`Interval` in the unit of the draws.

    Raises:
        ValueError: if ``level`` is out of range, there are too few draws for it, or a draw is not finite.

    Book: sec-coverage
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    check_draws(draws, least=1)
    m = len(draws)
    position = 0.5 * (1 - level) * (m + 1) - 1  # counted from 0
    if not position >= -_ROUNDING:
        raise ValueError(f"draws must be at least 2 / (1 - level) - 1 = {2 / (1 - level) - 1:.6g}, got {m}")
    ends = draws.new_tensor([max(position, 0.0), m - 1 - max(position, 0.0)])
    low, high = order_statistic(draws.sort(0).values, ends[:, None].expand(2, draws.shape[1]))
    return Interval(low, high, level)


def interval_coverage(interval: Interval, targets: Float[Tensor, " points"]) -> Score:
    r"""The share of the observations that lie in their intervals: neither high nor low is better, but ``level`` is.

    .. math:: \bar s = \frac kn, \qquad \text{SE}^2 = \frac{(k + 1)(n - k + 1)}{(n + 2)^2 (n + 3)}

    The standard error is the standard deviation of Beta(k + 1, n - k + 1), the posterior of the coverage after k hits
    of n. Unlike :math:`\sqrt{\bar s (1 - \bar s) / n}`, it is not zero when all are inside.

    Args:
        interval: from :func:`central_interval`, or made by hand.
        targets: y, what was observed; the ends count as inside.

    Returns:
        A :class:`Score` whose ``values`` are 1 inside and 0 outside.

    Raises:
        ValueError: if the interval is none, the shapes differ, or something is not finite.

    Source: Gneiting, Balabdaoui and Raftery (2007), doi:10.1111/j.1467-9868.2007.00587.x (coverage and width together).
    Book: sec-coverage
    """
    _check_interval(interval, targets)
    inside = ((targets >= interval.low) & (targets <= interval.high)).to(targets)
    n, hits = len(inside), inside.sum()
    variance = (hits + 1) * (n - hits + 1) / ((n + 2) ** 2 * (n + 3))
    return Score(inside.mean(), variance.sqrt(), inside)


def interval_width(interval: Interval) -> Score:
    r"""How wide the intervals are, :math:`s_i = u_i - l_i`. Of two methods with the right coverage, narrower is better.

    Args:
        interval: from :func:`central_interval`, or made by hand.

    Returns:
        A :class:`Score` in the unit of the targets.

    Raises:
        ValueError: if the interval is none, or not finite.

    Source: Gneiting, Balabdaoui and Raftery (2007), doi:10.1111/j.1467-9868.2007.00587.x.
    Book: sec-coverage
    """
    _check_interval(interval)
    return average(interval.high - interval.low)


def interval_score(interval: Interval, targets: Float[Tensor, " points"]) -> Score:
    r"""Width and misses in one number, which is lowest on average for the true quantiles.

    .. math:: s_i = (u_i - l_i) + \frac 2\alpha \max(l_i - y_i, 0) + \frac 2\alpha \max(y_i - u_i, 0),
              \qquad \alpha = 1 - \text{level}

    Args:
        interval: l and u, from :func:`central_interval`, or made by hand.
        targets: y, what was observed.

    Returns:
        A :class:`Score` in the unit of the targets.

    Raises:
        ValueError: if the interval is none, the shapes differ, or something is not finite.

    Source: Gneiting and Raftery (2007), doi:10.1198/016214506000001437.
    Book: sec-coverage
    """
    _check_interval(interval, targets)
    miss = (interval.low - targets).clamp(min=0) + (targets - interval.high).clamp(min=0)
    return average(interval.high - interval.low + 2 / (1 - interval.level) * miss)


def sharpness(draws: Float[Tensor, "draws points"]) -> Score:
    r"""How concentrated the forecasts are, whatever came: the standard deviation of each, averaged over the points.

    .. math:: s_i = \sqrt{\frac{1}{m - 1} \sum_j (x_{ji} - \bar x_i)^2}

    Sharpness is a virtue of forecasts that are calibrated, and of no others.

    Args:
        draws: x, predictive draws of each observation, noise included, [draws, points], at least two.

    Returns:
        A :class:`Score` in the unit of the draws; lower is sharper.

    Raises:
        ValueError: if there are fewer than two draws, or one is not finite.

    Source: Gneiting, Balabdaoui and Raftery (2007), doi:10.1111/j.1467-9868.2007.00587.x.
    Book: sec-coverage
    """
    check_draws(draws, least=2)
    return average(draws.std(0))


def _check_interval(interval: Interval, targets: Tensor | None = None) -> None:
    low, high, level = interval
    shapes = [list(values.shape) for values in (low, high, *(() if targets is None else (targets,)))]
    if low.ndim != 1 or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"low, high and targets must have the same shape [points], got {shapes}")
    check_finite(low=low, high=high, **({} if targets is None else {"targets": targets}))
    if not (low <= high).all():
        raise ValueError(f"low must not be above high, got {low[~(low <= high)][0].item()}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
