r"""Adaptive conformal inference: coverage over time where the data drift, and no two points could be swapped.

Chapter: book/08-uncertainty.ipynb
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.uncertainty._checks import check_finite, check_level

__all__ = ["AdaptiveConformal", "adaptive_conformal"]


class AdaptiveConformal(NamedTuple):
    """What was allowed at each time, and what came.

    Book: sec-conformal-drift
    """

    quantile: Float[Tensor, " times"]  # largest allowed score, known before it came; ±infinite for all or nothing
    miscoverage: Float[Tensor, " times"]  # the level α_t that was asked for; may leave 0 to 1
    is_covered: Bool[Tensor, " times"]  # whether the score that came was allowed
    error_bound: float  # by how much the share covered can miss the level, whatever the data did


def adaptive_conformal(
    score: Float[Tensor, " times"], level: float, *, window: int, step_size: float = 0.01
) -> AdaptiveConformal:
    r"""Ask for more after each miss, and for a little less after each hit.

    At each time the quantile of the last ``window`` scores is taken at a level that is not fixed:

    .. math:: \hat q_t = \text{quantile}_{1 - \alpha_t}(s_{t-w}, \dots, s_{t-1}), \qquad
              \alpha_{t+1} = \alpha_t + \gamma\, \big(\alpha - 1[s_t > \hat q_t]\big), \qquad \alpha_1 = \alpha

    with :math:`\hat q_t = \infty` once :math:`\alpha_t \le 0`, or too small for the window, and
    :math:`\hat q_t = -\infty` once :math:`\alpha_t \ge 1`. So α can leave the range from 0 to 1 by at most one step,
    and the steps must cancel:

    .. math:: \Big| \frac 1T \sum_{t=1}^T 1[s_t > \hat q_t] - \alpha \Big| \le
              \frac{\max(\alpha, 1 - \alpha) + \gamma}{\gamma T}

    for every sequence, even one made by an adversary. This is less than it sounds: a promise for the average over time,
    which could also be kept by covering everything nine times and nothing the tenth. It is the window that makes the
    intervals sensible.

    Args:
        score: s, one number a time, in their order, higher where the prediction was worse. The first ``window`` are
            only looked at.
        level: share of the times that is to be covered, between 0 and 1; 1 - α.
        window: w, how many past scores to compare with, at least 1 and fewer than there are scores.
        step_size: γ > 0. Large ones follow a drift faster, and make the quantile restless.

    Returns:
        An :class:`AdaptiveConformal` of the T times after the first window.

    Raises:
        ValueError: if a number is out of range, or a score is not finite.

    Source: Gibbs and Candès (2021), Adaptive Conformal Inference Under Distribution Shift, arXiv:2106.00170,
        equation 2 and proposition 4.1.
    Book: sec-conformal-drift
    """
    _check(score, level, window, step_size)
    past = score.unfold(0, window, 1)[:-1].sort(1).values  # [times, window]
    ends = past.new_full((len(past), 1), torch.inf)
    past = torch.cat([-ends, past, ends], dim=1)  # so that ranks 0 and window + 1 are nothing and everything
    alpha, steps = score.new_tensor(1 - level), []
    for ordered, new in zip(past, score[window:], strict=True):
        rank = ((window + 1) * (1 - alpha)).sub(1e-5).ceil().clamp(0, window + 1).long()
        quantile = ordered[rank[None]][0]
        steps.append((quantile, alpha, new <= quantile))
        alpha = alpha + step_size * ((1 - level) - (new > quantile).to(alpha))
    bound = (max(level, 1 - level) + step_size) / (step_size * len(past))
    return AdaptiveConformal(*(torch.stack(column) for column in zip(*steps, strict=True)), bound)


def _check(score, level, window, step_size):
    check_level("level", level)
    if not 0 < step_size < torch.inf:
        raise ValueError(f"step_size must be positive and finite, got {step_size}")
    if score.ndim != 1:
        raise ValueError(f"score must have shape [times], got {list(score.shape)}")
    check_finite(score=score)
    if not 1 <= window < len(score):
        raise ValueError(f"window must be from 1 to one less than the {len(score)} scores, got {window}")
