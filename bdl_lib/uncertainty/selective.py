r"""Selective prediction: answer where the model is sure, leave the rest to someone else, and know what that buys.

The curve itself, risk against coverage, is :func:`bdl_lib.networks.risk_coverage`. Here is the area under it with its
error, and a threshold that keeps its promise on new data.

Chapter: book/08-uncertainty.ipynb
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bdl_lib.uncertainty._checks import check_at_least, check_finite, check_level, check_same_shape
from bdl_lib.uncertainty.conformal import conformal_quantile

__all__ = [
    "SelectiveRisk",
    "SelectiveThreshold",
    "area_under_risk_coverage",
    "risk_upper_bound",
    "threshold_for_coverage",
    "threshold_for_risk",
]


class SelectiveRisk(NamedTuple):
    """The area under a risk–coverage curve, and what to compare it with. Lower is better.

    Book: sec-selective
    """

    area: Float[Tensor, ""]  # risk averaged over all coverages, in the unit of the loss
    std_error: Float[Tensor, ""]  # of area, over independent cases
    best: Float[Tensor, ""]  # the area if the largest losses were refused first: area - best is the excess
    random: Float[Tensor, ""]  # the area if the cases were refused at random: the mean loss


class SelectiveThreshold(NamedTuple):
    """Where to stop answering: cases of at least this confidence are answered.

    Book: sec-selective
    """

    threshold: Float[Tensor, ""]  # infinite if no case may be answered
    coverage: Float[Tensor, ""]  # share of the cases seen that is answered
    risk: Float[Tensor, ""]  # share of those that is wrong; NaN if there are none
    risk_bound: Float[Tensor, ""]  # what the share on new cases does not exceed, at the confidence asked for


def area_under_risk_coverage(confidence: Float[Tensor, " n"], loss: Float[Tensor, " n"]) -> SelectiveRisk:
    r"""The risk averaged over all coverages (AURC), with its standard error.

    .. math:: A = \frac1n \sum_{k=1}^n r_k, \qquad r_k = \frac1k \sum_{i=1}^k \ell_{(i)}, \qquad
              \text{SE}^2 = \frac{1}{n^2} \sum_{j=1}^n \Big( r_j - A + \sum_{k \ge j} \frac{\ell_{(j)} - r_k}{k} \Big)^2

    with the losses in the order of falling confidence. In the brackets is what case j moves: the place where it stands,
    and the risk at every coverage that includes it. Cases of equal confidence count as if in random order.

    Args:
        confidence: higher where the answer is surer, finite; only its order matters. Minus any uncertainty will do.
        loss: what each answer cost, finite; 0 and 1 for right and wrong.

    Returns:
        A :class:`SelectiveRisk`, in the unit of the loss.

    Raises:
        ValueError: if there are fewer than two cases, the two differ in length, or something is not finite.

    Source: Geifman, Uziel and El-Yaniv (2019), arXiv:1805.08206 (the excess over the best order); Zhou et al. (2025),
        arXiv:2410.15361 (the area as a weighted mean of the losses). The standard error is the delta method's.
    Book: sec-selective
    """
    check_at_least("the number of cases", len(loss), 2)
    check_same_shape(confidence=confidence, loss=loss)
    check_finite(confidence=confidence, loss=loss)
    _, group, size = torch.unique(-confidence, return_inverse=True, return_counts=True)  # the surest group is 0
    rank = torch.arange(1, len(loss) + 1, dtype=loss.dtype, device=loss.device)
    place = torch.repeat_interleave(size)  # group at each rank

    def over_group(values, index):
        return values.new_zeros(len(size)).index_add(0, index, values) / size

    risk = over_group(loss, group)[place].cumsum(0) / rank
    weight, offset = _from_here_on(1 / rank), risk - _from_here_on(risk / rank)
    share = loss * over_group(weight, place)[group]  # a case's part of the area, times n
    area = share.mean()
    influence = share + over_group(offset, place)[group] - area
    best = (loss.sort().values * weight).mean()
    return SelectiveRisk(area, influence.square().sum().sqrt() / len(loss), best, loss.mean())


def risk_upper_bound(
    num_wrong: Int[Tensor, "*sets"], num_cases: Int[Tensor, "*sets"], level: float, *, dtype: torch.dtype | None = None
) -> Float[Tensor, "*sets"]:
    r"""How large the probability of an error may still be, after k errors in m independent cases.

    .. math:: \bar p = \max\Big\{ p : \sum_{i=0}^k \binom mi p^i (1 - p)^{m - i} \ge 1 - \text{level} \Big\}

    The end of the one-sided Clopper–Pearson interval: any larger probability would give so few errors with probability
    below 1 - level.

    Args:
        num_wrong: k, from 0 to m.
        num_cases: m, at least 0; after none, the bound is 1.
        level: probability, before the cases are seen, that the bound will hold; between 0 and 1.
        dtype: of the bound, PyTorch's default dtype if not given.

    Returns:
        The bound, a probability.

    Raises:
        ValueError: if a count or ``level`` is out of range, or the shapes differ.

    Source: Clopper and Pearson (1934), doi:10.1093/biomet/26.4.404.
    Book: sec-selective
    """
    check_level("level", level)
    check_same_shape(num_wrong=num_wrong, num_cases=num_cases)
    if not ((num_wrong >= 0) & (num_wrong <= num_cases)).all():
        raise ValueError(f"num_wrong must be from 0 to num_cases, got {num_wrong} of {num_cases}")
    dtype = dtype or torch.get_default_dtype()
    k, m = num_wrong[..., None].to(dtype), num_cases[..., None].to(dtype)
    i = torch.arange(int(num_wrong.max()) + 1, dtype=dtype, device=k.device)
    log_ways = (m + 1).lgamma() - (i + 1).lgamma() - (m - i).clamp(min=0).add(1).lgamma()
    log_ways = torch.where(i <= k, log_ways, -torch.inf)
    low, high = torch.zeros_like(m[..., 0]), torch.ones_like(m[..., 0])
    for _ in range(50):
        p = ((low + high) / 2)[..., None]
        tail = (log_ways + torch.special.xlogy(i, p) + torch.special.xlog1py((m - i).clamp(min=0), -p)).logsumexp(-1)
        is_below = tail.exp() >= 1 - level
        low, high = torch.where(is_below, p[..., 0], low), torch.where(is_below, high, p[..., 0])
    return high


def threshold_for_risk(
    confidence: Float[Tensor, " n"],
    is_wrong: Bool[Tensor, " n"],
    *,
    target_risk: float,
    level: float = 0.95,
    num_candidates: int = 20,
) -> SelectiveThreshold:
    r"""Answer as many cases as a promised error rate allows.

    Candidates answer the j surest of every M parts of the cases, j from 1 to M. Of those whose upper bound on the risk
    is at most the target, the one that answers most is taken:

    .. math:: \hat t = \min\big\{ t_j : \bar p(k_j, m_j) \le r^* \big\}, \qquad
              P\big( \text{risk of new cases with confidence} > \hat t \text{ is} \le r^* \big) \ge \text{level}

    Each bound (:func:`risk_upper_bound`) is taken at the level 1 - (1 - level) / M, so that all hold at once and
    choosing among them is allowed. The threshold at which the observed risk equals the target, in contrast, is exceeded
    on new data about half the time.

    Args:
        confidence: of cases that were not used to fit the model, higher where the answer is surer, finite.
        is_wrong: whether the answer was wrong.
        target_risk: r*, the largest share of wrong answers among those given, between 0 and 1.
        level: probability, over the cases seen, that the promise is kept.
        num_candidates: M, at least 1 and at most n.

    Returns:
        A :class:`SelectiveThreshold`: answer where the confidence is above it. If no candidate can promise the target,
        the threshold is infinite and nothing is answered.

    Raises:
        ValueError: if there is no case, the shapes differ, something is not finite, or a number is out of range.

    Source: Geifman and El-Yaniv (2017), Selective Classification for Deep Neural Networks, arXiv:1705.08500, which
        searches by bisection where this asks a fixed list.
    Book: sec-selective
    """
    check_level("target_risk", target_risk)
    check_level("level", level)
    check_same_shape(confidence=confidence, is_wrong=is_wrong)
    check_finite(confidence=confidence)
    n = len(confidence)
    if not 1 <= num_candidates <= n:
        raise ValueError(f"num_candidates must be from 1 to the number of cases, {n}, got {num_candidates}")
    refused = torch.arange(num_candidates, device=confidence.device) * n // num_candidates  # 0: all are answered
    lowest = confidence.new_full((1,), -torch.inf)
    thresholds = torch.cat([lowest, confidence.sort().values])[refused]
    is_answered = confidence > thresholds[:, None]
    num_cases, num_wrong = is_answered.sum(1), (is_answered & is_wrong).sum(1)
    bound = risk_upper_bound(num_wrong, num_cases, 1 - (1 - level) / num_candidates, dtype=confidence.dtype)
    is_allowed = bound <= target_risk
    m, k = num_cases.to(bound), num_wrong.to(bound)
    best = is_allowed.to(torch.uint8).argmax()[None]  # the first: thresholds rise
    found = (x.index_select(0, best)[0] for x in (thresholds, m / n, k / m, bound))
    nothing = (torch.inf, 0.0, torch.nan, torch.nan)
    return SelectiveThreshold(*(torch.where(is_allowed.any(), x, none) for x, none in zip(found, nothing, strict=True)))


def threshold_for_coverage(confidence: Float[Tensor, " n"], coverage: float) -> Float[Tensor, ""]:
    r"""The threshold above which a new case lies with at least the given probability.

    The conformal quantile of minus the confidence: a share ``coverage`` of the cases seen, and a little more for the
    case to come.

    Args:
        confidence: of cases seen, finite.
        coverage: probability of answering, between 0 and 1.

    Returns:
        The threshold: answer where the confidence is above it. Minus infinity if there are fewer than
        coverage / (1 - coverage) cases.

    Raises:
        ValueError: if there is no case, something is not finite, or ``coverage`` is out of range.

    Book: sec-selective
    """
    check_level("coverage", coverage)
    lowest = -conformal_quantile(-confidence, coverage).value
    return torch.nextafter(lowest, lowest.new_full((), -torch.inf))  # so that "above" includes it


def _from_here_on(values: Tensor) -> Tensor:
    """The sum from each position to the end."""
    return values.flip(0).cumsum(0).flip(0)
