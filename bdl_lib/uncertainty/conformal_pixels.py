r"""Conformal prediction for pixels, of which only whole images are exchangeable.

The pixels of one image share its light, its objects and its accidents. A hundred images of a thousand pixels are a
hundred independent pieces of evidence, not a hundred thousand, and a quantile over all pixels promises nothing. Two
promises do hold, both about a new image: for the share of its pixels that is covered on average
(:func:`pixel_quantile`), and for the probability that this share is large enough (:func:`image_score`).

Chapter: book/08-uncertainty.ipynb
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.uncertainty._checks import check_finite, check_level
from bdl_lib.uncertainty.conformal import ConformalQuantile

__all__ = ["image_score", "pixel_quantile"]

_ROUNDING = 10.0  # sums of shares may miss a whole number by this many units of rounding an image


def pixel_quantile(
    score: Float[Tensor, "n *pixels"], level: float, *, is_valid: Bool[Tensor, "n *pixels"] | None = None
) -> ConformalQuantile:
    r"""The threshold below which, on average over new images, at least the given share of the pixels will lie.

    The loss of image i is the share of its pixels that are not covered, :math:`L_i(q) = \frac{1}{P_i} \sum_p
    1[s_{ip} > q]`. It is at most 1 and falls with q, so that conformal risk control applies:

    .. math:: \hat q = \min\Big\{ q : \frac{1}{n + 1} \Big( \sum_{i=1}^n L_i(q) + 1 \Big) \le 1 - \text{level} \Big\},
              \qquad E[L_{n+1}(\hat q)] \le 1 - \text{level}

    The 1 stands for the image to come, taken at its worst. What is guaranteed is an expectation over calibration images
    and new image together: equally, that one pixel drawn at random in a new image is covered with probability
    ``level``. It is no promise for each image, nor for each place in it: pixels on edges are covered less often than
    ``level``, and those of a plain wall more often. With one pixel an image this is
    :func:`~bdl_lib.uncertainty.conformal_quantile`.

    Args:
        score: from any of the score functions, one a pixel; of images that were not used to fit the model.
        level: share covered, between 0 and 1.
        is_valid: pixels that count, if not all do, such as those with a label; at least one in each image.

    Returns:
        A :class:`~bdl_lib.uncertainty.ConformalQuantile`, whose ``num_calibration`` is the number of images; its value
        is infinite if there are fewer than level / (1 - level).

    Raises:
        ValueError: if there is no pixel, a score that counts is not finite, ``level`` is out of range, or an image has
            no valid pixel.

    Source: Angelopoulos, Bates, Fisch, Lei and Schuster (2024), Conformal Risk Control, arXiv:2208.02814, theorem 1.
    Book: sec-conformal-pixels
    """
    score, is_valid = _check_pixels(score, is_valid, level=level)
    n = len(score)
    weight = (is_valid / is_valid.sum(1, keepdim=True)).to(score).flatten()  # a pixel's share of its image
    ordered, order = torch.where(is_valid, score, -torch.inf).flatten().sort()  # those that do not count weigh nothing
    not_covered = (n - weight[order].cumsum(0)).clamp(min=0)  # sum of the losses at a threshold of each score
    tolerance = _ROUNDING * n * torch.finfo(score.dtype).eps
    is_enough = not_covered + 1 <= (1 - level) * (n + 1) + tolerance
    candidates = torch.where(is_enough & (ordered > -torch.inf), ordered, torch.inf)
    return ConformalQuantile(candidates.min(), level, n)


def image_score(
    score: Float[Tensor, "n *pixels"], share: float, *, is_valid: Bool[Tensor, "n *pixels"] | None = None
) -> Float[Tensor, " n"]:
    r"""For each image the threshold that would cover the given share of its pixels: one exchangeable score an image.

    .. math:: S_i = s_{i(m)}, \qquad m = \lceil \text{share} \cdot P_i \rceil

    with the P pixels' scores in rising order. The conformal quantile of these promises, for a new image, that with
    probability ``level`` at least ``share`` of its pixels are covered; with ``share=1``, that all are.

    Args:
        score: from any of the score functions, one a pixel.
        share: of an image's pixels, above 0 and at most 1.
        is_valid: pixels that count, if not all do; at least one in each image.

    Returns:
        One score an image, for :func:`~bdl_lib.uncertainty.conformal_quantile`.

    Raises:
        ValueError: if there is no pixel, a score that counts is not finite, ``share`` is out of range, or an image has
            no valid pixel.

    Book: sec-conformal-pixels
    """
    score, is_valid = _check_pixels(score, is_valid, share=share)
    ordered = torch.where(is_valid, score, torch.inf).sort(1).values
    rank = (is_valid.sum(1, keepdim=True) * share - 1e-4).ceil().clamp(min=1).long()
    return ordered.gather(1, rank - 1)[:, 0]


def _check_pixels(score, is_valid, *, level=0.5, share=1.0):
    """The two as matrices [images, pixels]."""
    check_level("level", level)
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    is_valid = torch.ones_like(score, dtype=torch.bool) if is_valid is None else is_valid
    if score.ndim < 1 or score.numel() == 0 or is_valid.shape != score.shape:
        shapes = f"{list(score.shape)} and {list(is_valid.shape)}"
        raise ValueError(f"score and is_valid must have the same shape [images, *pixels], not empty, got {shapes}")
    score, is_valid = score.reshape(len(score), -1), is_valid.reshape(len(score), -1)
    if not is_valid.any(1).all():
        raise ValueError(f"is_valid must have a pixel in each image, got none in {int((~is_valid.any(1)).sum())}")
    check_finite(score=score.where(is_valid, 0))
    return score, is_valid
