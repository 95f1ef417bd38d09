r"""Is it right as often as it says? Reliability diagrams that show what chance alone does, and an ECE without its bias.

Everything here takes the probability of an event and whether it happened, as :func:`bdl_lib.scores.calibration_error`
does; :func:`top_label` makes the two from class probabilities of vectors and images.

Chapter: book/08-uncertainty.ipynb
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bdl_lib.scores import Score, average, calibration_error
from bdl_lib.uncertainty._checks import check_class_prob, check_labels, check_level

__all__ = ["ReliabilityDiagram", "TopLabel", "corrected_ece", "reliability_diagram", "top_label"]


class TopLabel(NamedTuple):
    """The most probable class of every point or pixel, in one long vector.

    Book: sec-reliability
    """

    confidence: Float[Tensor, " points"]  # its probability
    is_right: Bool[Tensor, " points"]  # whether it is the label


class ReliabilityDiagram(NamedTuple):
    """What happened against what was announced, bin by bin, and the band in which chance alone would leave it.

    Book: sec-reliability
    """

    confidence: Float[Tensor, " bins"]  # mean probability announced; NaN, like all below, where a bin is empty
    frequency: Float[Tensor, " bins"]  # share that happened
    count: Float[Tensor, " bins"]  # of points
    band_low: Float[Tensor, " bins"]  # of the frequency, if every probability were right
    band_high: Float[Tensor, " bins"]
    level: float  # the probability, at least, that the frequency of one bin then lies from low to high


def top_label(prob: Float[Tensor, "n classes *pixels"], labels: Int[Tensor, "n *pixels"]) -> TopLabel:
    r"""The confidence in the most probable class, and whether it was right.

    .. math:: c_i = \max_k p_{ik}, \qquad r_i = [\arg\max_k p_{ik} = y_i]

    Args:
        prob: p, the classes in dimension 1, where it sums to 1.
        labels: y, one class a point or pixel.

    Returns:
        A :class:`TopLabel`, points and pixels in the order of ``labels.flatten()``: what calibration of classes is
        measured on, as in ``calibration_error(*top_label(prob, labels))``.

    Raises:
        ValueError: if ``prob`` is no distribution over the classes, or ``labels`` are not of its shape or classes.

    Source: Guo, Pleiss, Sun and Weinberger (2017), arXiv:1706.04599.
    Book: sec-reliability
    """
    check_class_prob(prob)
    check_labels(labels, prob)
    confidence, answer = prob.max(1)
    return TopLabel(confidence.flatten(), (answer == labels).flatten())


def reliability_diagram(
    prob: Float[Tensor, " points"],
    labels: Int[Tensor, " points"] | Bool[Tensor, " points"],
    *,
    num_bins: int = 10,
    bins: Literal["equal_count", "equal_width"] = "equal_count",
    level: float = 0.9,
) -> ReliabilityDiagram:
    r"""Frequencies against announced probabilities, with a consistency band in every bin.

    Were all probabilities right, the number of events in a bin would be a sum of independent draws, one for each
    :math:`p_i`; its distribution, the Poisson binomial, is the product of the polynomials

    .. math:: \sum_k \Pr(K_b = k)\, x^k = \prod_{i \in b} (1 - p_i + p_i x),

    and the band runs between its quantiles at (1 ± level) / 2, over :math:`n_b`. It is exact, given these forecasts;
    Bröcker and Smith draw new labels (and forecasts) instead. The bins are judged one by one: of ten right ones, one
    lies outside a band of 90 % in the mean. Neighbouring pixels of an image err together, and then the band is too
    narrow: thin them out first.

    Args:
        prob: p, the probability given to an event.
        labels: whether it happened, 0 and 1 or False and True, independent of each other.
        num_bins: from 1 to half the number of points.
        bins: "equal_count" or "equal_width", as in :func:`bdl_lib.scores.calibration_error`.
        level: of the band, between 0 and 1.

    Returns:
        A :class:`ReliabilityDiagram` of probabilities and frequencies.

    Raises:
        ValueError: as :func:`bdl_lib.scores.calibration_error`, or if ``level`` is not between 0 and 1.

    Source: Bröcker and Smith (2007), Increasing the Reliability of Reliability Diagrams, Weather and Forecasting
        22(3):651–661, doi:10.1175/WAF993.1.
    Book: sec-reliability
    """
    check_level("level", level)
    error = calibration_error(prob, labels, num_bins=num_bins, bins=bins)
    band = torch.full((2, num_bins), torch.nan, dtype=prob.dtype, device=prob.device)
    members, start = prob.sort().values, 0  # the bins are ranges of the sorted probabilities
    for i, size in enumerate(int(count) for count in error.count):
        if size:
            cdf = _distribution_of_sum(members[start : start + size]).cumsum(0)
            band[0, i] = (cdf < 0.5 * (1 - level)).sum().to(prob) / size
            band[1, i] = (cdf < 0.5 * (1 + level)).sum().to(prob) / size
        start += size
    return ReliabilityDiagram(error.confidence, error.frequency, error.count, band[0], band[1], level)


def corrected_ece(
    prob: Float[Tensor, " points"],
    labels: Int[Tensor, " points"] | Bool[Tensor, " points"],
    *,
    num_bins: int = 15,
    bins: Literal["equal_count", "equal_width"] = "equal_count",
) -> Score:
    r"""The expected calibration error, in which noise cannot pass for error.

    The usual :math:`\sum_b \frac{n_b}{n} |\bar r_b|` takes the noise of a bin as an error too, whatever its sign, so it
    is positive even if nothing is wrong. Here one half of a bin says in which direction the error goes, and the other
    half how far:

    .. math:: \widehat{\text{ECE}} = \frac1n \sum_i \operatorname{sign}\big(\bar r_{\text{other half of } b(i)}\big)\,
              r_i, \qquad r_i = y_i - p_i

    Its mean is exactly zero for calibrated forecasts, never above the binned error, and equal to it where the error of
    each bin stands clear of its noise; no estimator is unbiased everywhere, since \|δ\| has a corner at zero. One value
    may be negative.

    Args:
        prob: p, the probability given to an event; for several classes, the confidence of :func:`top_label`.
        labels: whether it happened, 0 and 1 or False and True.
        num_bins: from 1 to half the number of points.
        bins: "equal_width" for the usual ECE, "equal_count" for the adaptive one. The halves are every second point of
            a bin in the order of p.

    Returns:
        A :class:`bdl_lib.scores.Score`, a probability: mean, standard error and the term of each point. The standard
        error is up to a quarter too small where the forecasts are calibrated: there the signs are chance too.

    Raises:
        ValueError: as :func:`bdl_lib.scores.calibration_error`.

    Source: written for this book; for the bias, Kumar, Liang and Ma (2019), arXiv:1909.10155, and Roelofs et al.
        (2022), arXiv:2012.08668; for bins of equal count, Nixon et al. (2019), arXiv:1904.01685.
    Book: sec-reliability
    """
    count = calibration_error(prob, labels, num_bins=num_bins, bins=bins).count.long()
    order = prob.argsort(stable=True)
    residual = (labels.to(prob) - prob)[order]
    bin_of = torch.arange(num_bins, device=prob.device).repeat_interleave(count)
    place = torch.arange(len(prob), device=prob.device) - (count.cumsum(0) - count)[bin_of]
    half = 2 * bin_of + place % 2
    sums = residual.new_zeros(2 * num_bins).index_add(0, half, residual)
    terms = torch.empty_like(residual)
    terms[order] = sums[half + 1 - 2 * (half % 2)].sign() * residual
    return average(terms)


def _distribution_of_sum(prob):
    """Probabilities of 0, 1, ..., n events among n independent ones: a tree of products of polynomials."""
    factors = torch.stack([1 - prob, prob], 1)
    while len(factors) > 1:
        if len(factors) % 2:  # an event that never happens fills the last pair
            factors = torch.cat([factors, torch.zeros_like(factors[:1])])
            factors[-1, 0] = 1
        size = 2 * factors.shape[1] - 1
        spectrum = torch.fft.rfft(factors, n=size)
        factors = torch.fft.irfft(spectrum[0::2] * spectrum[1::2], n=size)
    return factors[0, : len(prob) + 1].clamp(min=0)
