r"""Which points to have labelled next: those whose labels the model's draws disagree about, and not the same one twice.

Chapter: book/08-uncertainty.ipynb
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bdl_lib.uncertainty._checks import check_at_least, check_class_prob, check_finite
from bdl_lib.uncertainty.decomposition import decompose_classes

__all__ = ["BatchBald", "bald", "batch_bald", "random_batch", "top_batch"]

_BLOCK = 2**23  # numbers at once


class BatchBald(NamedTuple):
    """A batch of points, in the order in which they were chosen.

    Book: sec-active-learning
    """

    index: Int[Tensor, " batch"]
    information: Float[Tensor, " batch"]  # nats that the labels of the first, first two, ... tell about the model


def bald(prob: Float[Tensor, "draws n classes"]) -> Float[Tensor, " n"]:
    r"""What the label of each point would tell about the model (Bayesian active learning by disagreement).

    .. math:: I[y; \theta] = H\Big[ \frac1S \sum_s p_s \Big] - \frac1S \sum_s H[p_s]

    High where every draw is sure of something else. Where all draws agree that it is a toss-up, a label would be noise,
    and this is zero though the predictive entropy is as high as can be.

    Args:
        prob: :math:`p_s`, the probabilities of the classes under each of S draws of the model. They must be draws of
            functions: for MC dropout, the same mask for all points of a draw.

    Returns:
        The mutual information in nats: the epistemic part of :func:`~bdl_lib.uncertainty.decompose_classes`.

    Raises:
        ValueError: if there is no draw, or ``prob`` is no distribution over the classes.

    Source: Houlsby, Huszár, Ghahramani and Lengyel (2011), arXiv:1112.5745; Gal, Islam and Ghahramani (2017),
        arXiv:1703.02910.
    Book: sec-active-learning
    """
    _check_draws(prob)
    return decompose_classes(prob).entropy.epistemic


def batch_bald(
    prob: Float[Tensor, "draws n classes"],
    batch_size: int,
    *,
    num_configurations: int = 10_000,
    generator: torch.Generator,
) -> BatchBald:
    r"""A batch whose labels together tell the most about the model, chosen greedily.

    The best points by :func:`bald` are often copies of each other: knowing the label of one, those of the rest are
    known. So the batch is judged as a whole, and each next point by what it adds to the points b already chosen:

    .. math:: I[y_1, \dots, y_B; \theta] = \sum_{b=0}^{B-1} I[y_{b+1}; \theta \mid y_1, \dots, y_b], \qquad
              I[y; \theta \mid y_{1:b}] = E_{y_{1:b}} H\Big[ \sum_s r_s(y_{1:b})\, p_s \Big] - \frac1S \sum_s H[p_s]

    with :math:`r_s \propto \prod_j p_s(y_j)` the weight that the answers :math:`y_{1:b}` would give to draw s. While
    the possible answers are few enough, the expectation is a sum over all of them; then it is an average over answers
    drawn from the model. The information is submodular, so the greedy batch has at least 1 - 1/e of the best one's.

    Args:
        prob: :math:`p_s`, as in :func:`bald`. With S draws, no batch can tell more than log S: information close to
            that says that there are too few draws.
        batch_size: B, from 1 to n.
        num_configurations: how many answers to the chosen points to consider, at least one a draw, rounded up to a
            multiple of S when they are drawn. Up to this number they are enumerated, and the result is exact.
        generator: draws answers, once they are too many.

    Returns:
        A :class:`BatchBald`, in nats. From drawn answers, ``information`` has a Monte Carlo error.

    Raises:
        ValueError: if a number is out of range, or ``prob`` is not as in :func:`bald`.

    Source: Kirsch, van Amersfoort and Gal (2019), arXiv:1906.08158, equations 8 to 12 and algorithm 1.
    Book: sec-active-learning
    """
    _check_draws(prob)
    _check_batch(batch_size, prob.shape[1])
    check_at_least("num_configurations", num_configurations, len(prob))
    own_entropy = torch.special.entr(prob).sum(-1).mean(0)
    chosen, gains = torch.zeros(0, dtype=torch.long, device=prob.device), []
    for _ in range(batch_size):
        draw_weight, config_prob = _configurations(prob[:, chosen], num_configurations, generator)
        gain = _expected_entropy(prob, draw_weight, config_prob) - own_entropy
        gains.append(gain.index_fill(0, chosen, -torch.inf).max(0))
        chosen = torch.cat([chosen, gains[-1].indices[None]])
    return BatchBald(chosen, torch.stack([gain.values for gain in gains]).cumsum(0))


def top_batch(score: Float[Tensor, " n"], batch_size: int) -> Int[Tensor, " batch"]:
    r"""The points of highest score, the highest first: of :func:`bald`, say, or of the predictive entropy.

    Args:
        score: one number a point, finite.
        batch_size: from 1 to n.

    Returns:
        Their indices.

    Raises:
        ValueError: if ``score`` is no vector of finite numbers, or ``batch_size`` is out of range.

    Book: sec-active-learning
    """
    check_finite(score=score)
    _check_batch(batch_size, len(score))
    return score.topk(batch_size).indices


def random_batch(num_points: int, batch_size: int, *, generator: torch.Generator) -> Int[Tensor, " batch"]:
    r"""Different points at random: what any rule of acquisition has to beat.

    Args:
        num_points: n, at least 1.
        batch_size: from 1 to n.
        generator: draws the points; its device is theirs.

    Returns:
        Their indices.

    Raises:
        ValueError: if a number is out of range.

    Book: sec-active-learning
    """
    check_at_least("num_points", num_points, 1)
    _check_batch(batch_size, num_points)
    return torch.randperm(num_points, generator=generator, device=generator.device)[:batch_size]


def _configurations(prob, num_configurations, generator):
    """Answers to the chosen points [draws, chosen, classes]: the draws' weights after each, and its probability."""
    num_draws, num_chosen, num_classes = prob.shape
    log_prob = prob.log()
    if num_classes**num_chosen <= num_configurations:
        joint = prob.new_zeros(num_draws, 1)  # log p_s of each configuration
        for j in range(num_chosen):
            joint = (joint[:, :, None] + log_prob[:, j, None]).flatten(1)
        config_prob = joint.exp().mean(0)
    else:
        num_each = -(-num_configurations // num_draws)
        index = torch.multinomial(prob.flatten(0, 1), num_each, replacement=True, generator=generator)
        answers = index.view(num_draws, num_chosen, num_each).movedim(1, 0).flatten(1)  # [chosen, draws · each]
        joint = sum(log_prob[:, j][:, answers[j]] for j in range(num_chosen))
        config_prob = torch.full_like(joint[0], 1 / joint.shape[1])
    return torch.where(config_prob > 0, joint, 0).softmax(0), config_prob


def _expected_entropy(prob, draw_weight, config_prob):
    """The entropy of each point's label, expected over the answers to those chosen: [n]."""
    num_classes = prob.shape[-1]
    size = max(1, _BLOCK // (draw_weight.shape[1] * num_classes))
    blocks = prob.split(size, dim=1)
    mixed = (draw_weight.mT @ block.flatten(1) for block in blocks)  # [configurations, block · classes]
    return torch.cat([(config_prob @ torch.special.entr(x)).view(-1, num_classes).sum(1) for x in mixed])


def _check_draws(prob):
    if prob.ndim != 3 or len(prob) < 1:
        raise ValueError(f"prob must have shape [draws >= 1, n, classes], got {list(prob.shape)}")
    check_class_prob(prob.flatten(0, 1))


def _check_batch(batch_size, num_points):
    if not 1 <= batch_size <= num_points:
        raise ValueError(f"batch_size must be from 1 to the number of points, {num_points}, got {batch_size}")
