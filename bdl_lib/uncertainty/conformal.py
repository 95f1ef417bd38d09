r"""Split conformal prediction: from any prediction to intervals that hold the truth as often as they say.

A score says how badly a prediction misses an observation. The scores of n held-out observations give a quantile; a new
interval (or a set of classes, in ``conformal_sets``) is all the values whose score is not above it. The guarantee needs
neither a right model nor a large n, only that the new observation and the held-out ones could be swapped (are
exchangeable), and it holds on average over all of them: not for each kind of input, and not for inputs from elsewhere.

Chapter: book/08-uncertainty.ipynb
"""

from math import ceil
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Beta

from bdl_lib.scores import Interval
from bdl_lib.uncertainty._checks import check_at_least, check_finite, check_level, check_same_shape

__all__ = [
    "ConformalQuantile",
    "conformal_quantile",
    "coverage_law",
    "quantile_interval",
    "quantile_score",
    "residual_interval",
    "residual_score",
]

_ROUNDING = 1e-9  # (n + 1) · level may miss a whole number by this


class ConformalQuantile(NamedTuple):
    """The largest score that a new prediction is allowed, and what that promises.

    Book: sec-conformal
    """

    value: Float[Tensor, ""]  # in the unit of the scores; infinite if there were too few
    level: float  # probability that a new observation has a score no larger
    num_calibration: int  # of exchangeable units (points, or images) that it comes from


def conformal_quantile(score: Float[Tensor, " n"], level: float) -> ConformalQuantile:
    r"""The k-th smallest of n calibration scores, k a little above n · level.

    .. math:: \hat q = s_{(k)}, \qquad k = \lceil (n + 1) \cdot \text{level} \rceil, \qquad
              \text{level} \le P(s_{n+1} \le \hat q) \le \text{level} + \frac{1}{n + 1}

    A new score is equally likely to take each of the n + 1 ranks among the old ones and itself, so it is not above the
    k-th with probability k / (n + 1), or more where scores are equal. The upper bound holds for scores that never are.

    Args:
        score: one number for each calibration point, higher where the prediction was worse; of points that were not
            used to fit the model.
        level: probability inside, between 0 and 1; 1 - α.

    Returns:
        A :class:`ConformalQuantile`. Its value is infinite if n is below level / (1 - level): then no finite one can
        promise the level, and sets contain everything.

    Raises:
        ValueError: if there is no score, one is not finite, or ``level`` is out of range.

    Source: Vovk, Gammerman and Shafer (2005), doi:10.1007/b106715; Lei et al. (2018), arXiv:1604.04173, theorem 2.2.
    Book: sec-conformal
    """
    check_level("level", level)
    if score.ndim != 1:
        raise ValueError(f"score must have shape [n], one a calibration point, got {list(score.shape)}")
    check_finite(score=score)
    n, k = len(score), _rank(len(score), level)
    value = score.sort().values[k - 1] if k <= n else score.new_full((), torch.inf)
    return ConformalQuantile(value, level, n)


def coverage_law(
    num_calibration: int, level: float, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Beta:
    r"""What the coverage may turn out to be: its distribution over calibration sets.

    .. math:: P(s_{n+1} \le \hat q \mid \hat q) \sim \text{Beta}(k, n + 1 - k), \qquad
              k = \lceil (n + 1) \cdot \text{level} \rceil

    ``level`` is promised on average. One calibration set has one coverage, more or less, for ever after. For
    independent scores without ties, this is its exact distribution, whatever that of the scores: the k-th smallest of n
    uniform numbers. Of m new points, the number covered is then beta-binomial.

    Args:
        num_calibration: n, at least level / (1 - level), so that the quantile is finite.
        level: as in :func:`conformal_quantile`.
        dtype: of the distribution's parameters, PyTorch's default dtype if not given.
        device: of the parameters, PyTorch's default device if not given.

    Returns:
        A Beta distribution with mean k / (n + 1).

    Raises:
        ValueError: if n is too small for the level, or ``level`` is out of range.

    Source: Vovk (2012), arXiv:1209.2673; Marques F. (2023), arXiv:2303.02770.
    Book: sec-conformal
    """
    check_level("level", level)
    check_at_least("num_calibration", num_calibration, 1)
    k = _rank(num_calibration, level)
    if k > num_calibration:
        rule = f"num_calibration must be at least level / (1 - level) = {level / (1 - level):.6g}"
        raise ValueError(f"{rule}, got {num_calibration}")
    above, below = torch.tensor([k, num_calibration + 1 - k], dtype=dtype or torch.get_default_dtype(), device=device)
    return Beta(above, below)


def residual_score(
    loc: Float[Tensor, "*points"],
    targets: Float[Tensor, "*points"],
    *,
    scale: Float[Tensor, "*#points"] | float = 1.0,
) -> Float[Tensor, "*points"]:
    r"""How far the observation lies from the prediction, in units of what the model expects.

    .. math:: s_i = \frac{|y_i - \mu_i|}{\sigma_i}

    Args:
        loc: μ, predictions.
        targets: y, observations in the same unit.
        scale: σ > 0, the predicted standard deviation, so that intervals are wide where the model says so; 1 for
            intervals of the same width everywhere.

    Returns:
        The scores: without unit, or in the unit of y if ``scale`` is 1.

    Raises:
        ValueError: if the shapes differ, something is not finite, or a scale is not positive.

    Source: Lei et al. (2018), arXiv:1604.04173, sections 2.2 and 5.2.
    Book: sec-conformal
    """
    _check_regression(scale, loc=loc, targets=targets)
    return (targets - loc).abs() / scale


def residual_interval(
    loc: Float[Tensor, "*points"], quantile: ConformalQuantile, *, scale: Float[Tensor, "*#points"] | float = 1.0
) -> Interval:
    r"""All values whose :func:`residual_score` is not above the quantile: :math:`\mu \pm \hat q \sigma`.

    Args:
        loc: μ, predictions for new points.
        quantile: of the residual scores of the calibration points.
        scale: σ > 0, from the same model that gave the calibration scores theirs.

    Returns:
        An :class:`bdl_lib.scores.Interval` in the unit of ``loc``.

    Raises:
        ValueError: if something is not finite, or a scale is not positive.

    Book: sec-conformal
    """
    _check_regression(scale, loc=loc)
    half_width = (quantile.value * scale).expand_as(loc)
    return Interval(loc - half_width, loc + half_width, quantile.level)


def quantile_score(
    low: Float[Tensor, "*points"], high: Float[Tensor, "*points"], targets: Float[Tensor, "*points"]
) -> Float[Tensor, "*points"]:
    r"""How far the observation lies outside a predicted interval; below zero, how deep inside.

    .. math:: s_i = \max(l_i - y_i,\; y_i - u_i)

    Args:
        low: l, the lower end: a predicted quantile, such as the 5 % one of predictive draws.
        high: u, the upper end.
        targets: y, observations.

    Returns:
        The scores, in the unit of the targets.

    Raises:
        ValueError: if the shapes differ or something is not finite.

    Source: Romano, Patterson and Candès (2019), Conformalized Quantile Regression, arXiv:1905.03222, equation 6.
    Book: sec-conformal
    """
    _check_regression(1.0, low=low, high=high, targets=targets)
    return torch.maximum(low - targets, targets - high)


def quantile_interval(
    low: Float[Tensor, "*points"], high: Float[Tensor, "*points"], quantile: ConformalQuantile
) -> Interval:
    r"""The predicted intervals, made wider or narrower by the same amount: :math:`[\,l - \hat q,\; u + \hat q\,]`.

    Args:
        low: l, the lower end, for new points.
        high: u, the upper end.
        quantile: of the quantile scores of the calibration points.

    Returns:
        An :class:`bdl_lib.scores.Interval`. One that would be empty (a quantile below zero can do that) is its middle
        instead, a single point, which cannot lower the coverage.

    Raises:
        ValueError: if the shapes differ or something is not finite.

    Source: Romano, Patterson and Candès (2019), arXiv:1905.03222.
    Book: sec-conformal
    """
    _check_regression(1.0, low=low, high=high)
    low, high, middle = low - quantile.value, high + quantile.value, (low + high) / 2
    is_empty = low > high
    return Interval(torch.where(is_empty, middle, low), torch.where(is_empty, middle, high), quantile.level)


def _rank(n, level):
    return ceil((n + 1) * level - _ROUNDING)


def _check_regression(scale, **tensors):
    if len(tensors) > 1:
        check_same_shape(**tensors)
    check_finite(**tensors)
    is_valid = (scale > 0) & scale.isfinite() if isinstance(scale, Tensor) else torch.tensor(0 < scale < torch.inf)
    if not is_valid.all():
        raise ValueError(f"scale must be positive and finite, got {scale}")
