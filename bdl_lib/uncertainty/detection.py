r"""Does the uncertainty know what the network has never seen? Scores of unfamiliarity, and how well one detects.

Chapter: book/08-uncertainty.ipynb
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bdl_lib.uncertainty._checks import check_class_prob, check_finite, check_logits, check_same_shape

__all__ = [
    "Detection",
    "Estimate",
    "compare_detectors",
    "detection",
    "free_energy",
    "lack_of_confidence",
    "predictive_entropy",
]


class Estimate(NamedTuple):
    """A number from a sample, and its standard error.

    Book: sec-unfamiliar
    """

    value: Float[Tensor, ""]
    std_error: Float[Tensor, ""]


class Detection(NamedTuple):
    """How well a score tells unfamiliar points from familiar ones; or the differences between two scores.

    Book: sec-unfamiliar
    """

    auroc: Estimate  # probability that an unfamiliar point scores higher than a familiar one; ½ is chance
    aupr: Estimate  # precision averaged over recall, the unfamiliar to be found; share_unfamiliar is chance
    fpr95: Estimate  # share of the unfamiliar that passes where 95 % of the familiar do; 0.95 is chance
    share_unfamiliar: Float[Tensor, ""]


def lack_of_confidence(prob: Float[Tensor, "n classes *pixels"]) -> Float[Tensor, "n *pixels"]:
    r"""One minus the largest class probability.

    .. math:: u = 1 - \max_c p_c

    Args:
        prob: p, the classes in dimension 1, where it sums to 1.

    Returns:
        u, from 0 to 1 - 1 / classes, higher where the input is less familiar.

    Raises:
        ValueError: if ``prob`` is no distribution over the classes.

    Source: Hendrycks and Gimpel (2017), arXiv:1610.02136.
    Book: sec-unfamiliar
    """
    check_class_prob(prob)
    return 1 - prob.max(1).values


def predictive_entropy(prob: Float[Tensor, "n classes *pixels"]) -> Float[Tensor, "n *pixels"]:
    r"""The entropy of class probabilities.

    .. math:: H = -\sum_c p_c \log p_c

    Args:
        prob: p, the classes in dimension 1, where it sums to 1; 0 log 0 is 0.

    Returns:
        H in nats, from 0 to log(classes).

    Raises:
        ValueError: if ``prob`` is no distribution over the classes.

    Book: sec-unfamiliar
    """
    check_class_prob(prob)
    return torch.special.entr(prob).sum(1)


def free_energy(
    logits: Float[Tensor, "n classes *pixels"], *, softmax_temperature: float = 1.0
) -> Float[Tensor, "n *pixels"]:
    r"""Minus the log of the sum that softmax divides by: it knows how large the logits are, which softmax forgets.

    .. math:: E = -T \log \sum_c e^{z_c / T}

    Args:
        logits: z, the classes in dimension 1.
        softmax_temperature: T > 0.

    Returns:
        E in nats, any real number, higher where the input is less familiar.

    Raises:
        ValueError: if ``logits`` are not finite or ``softmax_temperature`` is not positive.

    Source: Liu, Wang, Owens and Li (2020), arXiv:2010.03759.
    Book: sec-unfamiliar
    """
    check_logits(logits)
    if not 0 < softmax_temperature < float("inf"):
        raise ValueError(f"softmax_temperature must be positive and finite, got {softmax_temperature}")
    return -softmax_temperature * (logits / softmax_temperature).logsumexp(1)


def detection(
    uncertainty: Float[Tensor, "*points"],
    is_unfamiliar: Bool[Tensor, "*points"],
    *,
    group: Int[Tensor, "*points"] | None = None,
) -> Detection:
    r"""How well a score finds the unfamiliar: AUROC, AUPR and FPR95, with standard errors.

    .. math:: \text{AUROC} = \Pr(u > u') + \tfrac12 \Pr(u = u'), \qquad
              \text{AUPR} = \sum_k (R_k - R_{k-1})\, P_k, \qquad
              \text{FPR95} = \Pr(u \le t_{95})

    with u an unfamiliar and u' a familiar point, precision :math:`P_k` and recall :math:`R_k` of calling unfamiliar the
    points above the k-th highest score, and :math:`t_{95}` the score that 95 % of the familiar do not exceed. The
    standard errors are infinitesimal jackknives: by how much would the value move if one point weighed a little more?
    For the AUROC this is DeLong's. They take the share of unfamiliar points as given, and are zero where the two kinds
    do not overlap, which says little.

    Args:
        uncertainty: u, one a point or pixel, finite, higher for what should be unfamiliar; only its order matters.
        is_unfamiliar: what the score is to find; at least two points of either kind.
        group: a number for each point that says with which others it may be correlated, such as the image that a pixel
            is in; at least two groups. None says that all points are independent.

    Returns:
        A :class:`Detection` of probabilities.

    Raises:
        ValueError: if the shapes differ, a score is not finite, there are fewer than two points of one kind, or fewer
            than two groups.

    Source: DeLong, DeLong and Clarke-Pearson (1988), doi:10.2307/2531595; Jaeckel (1972), The Infinitesimal Jackknife,
        Bell Laboratories; for FPR95, Liang, Li and Srikant (2018), arXiv:1706.02690.
    Book: sec-unfamiliar
    """
    _check(uncertainty, is_unfamiliar, group)
    found = _values_and_influences(uncertainty, is_unfamiliar)
    return _with_errors(found, is_unfamiliar, group)


def compare_detectors(
    first: Float[Tensor, "*points"],
    second: Float[Tensor, "*points"],
    is_unfamiliar: Bool[Tensor, "*points"],
    *,
    group: Int[Tensor, "*points"] | None = None,
) -> Detection:
    r"""How much better one score detects than another on the same points, with the errors of the differences.

    .. math:: \Delta = \text{AUROC}_1 - \text{AUROC}_2

    Points that are hard for both move both values alike, so the error of a difference is mostly below what the two
    errors suggest.

    Args:
        first: one score, as in :func:`detection`.
        second: another, for the same points in the same order.
        is_unfamiliar: what the scores are to find.
        group: with which other points each may be correlated, as in :func:`detection`.

    Returns:
        A :class:`Detection` of differences, first minus second: a positive ``auroc`` and ``aupr`` and a negative
        ``fpr95`` speak for the first.

    Raises:
        ValueError: as :func:`detection`.

    Source: DeLong, DeLong and Clarke-Pearson (1988), doi:10.2307/2531595.
    Book: sec-unfamiliar
    """
    _check(first, is_unfamiliar, group)
    _check(second, is_unfamiliar, group)
    pairs = zip(*(_values_and_influences(score, is_unfamiliar) for score in (first, second)), strict=True)
    difference = [(one[0] - other[0], one[1] - other[1]) for one, other in pairs]
    return _with_errors(difference, is_unfamiliar, group)


def _check(uncertainty, is_unfamiliar, group):
    check_same_shape(uncertainty=uncertainty, is_unfamiliar=is_unfamiliar)
    check_finite(uncertainty=uncertainty)
    num_unfamiliar = int(is_unfamiliar.sum())
    if not 2 <= num_unfamiliar <= is_unfamiliar.numel() - 2:
        counts = f"{num_unfamiliar} of {is_unfamiliar.numel()}"
        raise ValueError(f"is_unfamiliar must be true of at least two points and false of two, got {counts}")
    if group is not None:
        check_same_shape(uncertainty=uncertainty, group=group)
        if not (group != group.flatten()[0]).any():
            raise ValueError("group must name at least two groups, got one")


def _values_and_influences(uncertainty, is_unfamiliar):
    """AUROC, AUPR and FPR95, each with its derivative in the weight of each point."""
    uncertainty, is_unfamiliar = uncertainty.flatten(), is_unfamiliar.flatten()
    _, place = torch.unique(-uncertainty, return_inverse=True)  # 0 is the highest score
    kind, num_kinds = 2 * place + is_unfamiliar, 2 * (int(place.max()) + 1)  # equal scores count together
    share = is_unfamiliar.to(uncertainty).mean()

    def auroc(weight):
        return _auroc(*weight.new_zeros(num_kinds).index_add(0, kind, weight).reshape(-1, 2).T)

    def aupr(weight):
        return _aupr(*weight.new_zeros(num_kinds).index_add(0, kind, weight).reshape(-1, 2).T, share)

    weight = torch.ones_like(uncertainty)
    by_weight = [(statistic(weight), torch.func.grad(statistic)(weight)) for statistic in (auroc, aupr)]
    return [*by_weight, _fpr95(uncertainty, is_unfamiliar)]


def _auroc(familiar, unfamiliar):
    """From the weights at every score, the highest first."""
    below = familiar.sum() - familiar.cumsum(0) + 0.5 * familiar
    return (unfamiliar * below).sum() / (unfamiliar.sum() * familiar.sum())


def _aupr(familiar, unfamiliar, share):
    recall, false_alarms = unfamiliar.cumsum(0) / unfamiliar.sum(), familiar.cumsum(0) / familiar.sum()
    precision = share * recall / (share * recall + (1 - share) * false_alarms)
    return (unfamiliar * precision).sum() / unfamiliar.sum()


def _fpr95(uncertainty, is_unfamiliar):
    """The influence of a familiar point is by way of the threshold: how many unfamiliar ones lie near it."""
    familiar = uncertainty[~is_unfamiliar].sort().values
    unfamiliar = uncertainty[is_unfamiliar].sort().values
    m, n = len(familiar), len(unfamiliar)
    rank = -(-95 * m // 100)
    threshold = familiar[rank - 1]
    reach = max(1, round((0.95 * 0.05 * m) ** 0.5))  # the standard error of the rank
    low, high = max(rank - reach, 1), min(rank + reach, m)
    near = torch.stack([familiar[low - 1], threshold, familiar[high - 1]])
    before, value, after = torch.searchsorted(unfamiliar, near, right=True).to(uncertainty) / n
    slope = (after - before) * m / (high - low)
    passes = (uncertainty <= threshold).to(uncertainty)
    return value, torch.where(is_unfamiliar, (passes - value) / n, slope * (rank / m - passes) / m)


def _with_errors(values_and_influences, is_unfamiliar, group):
    is_unfamiliar = is_unfamiliar.flatten()
    if group is not None:
        _, group = torch.unique(group.flatten(), return_inverse=True)
    estimates = [Estimate(value, _std_error(each, is_unfamiliar, group)) for value, each in values_and_influences]
    return Detection(*estimates, is_unfamiliar.to(estimates[0].value).mean())


def _std_error(influence, is_unfamiliar, group):
    if group is not None:
        num_groups = int(group.max()) + 1
        sums = influence.new_zeros(num_groups).index_add(0, group, influence)
        return (sums.square().sum() * num_groups / (num_groups - 1)).sqrt()
    unfamiliar = is_unfamiliar.to(influence)
    size = torch.where(is_unfamiliar, unfamiliar.sum(), (1 - unfamiliar).sum())
    return (influence.square() * size / (size - 1)).sum().sqrt()
