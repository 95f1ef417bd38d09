r"""From probabilities to an action: the smallest expected loss, the option to refuse, and what refusing buys.

Chapter: book/02-networks.ipynb
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["REFUSE", "Decision", "RiskCoverage", "decide", "expected_loss", "risk_coverage"]

REFUSE = -1  # the action of not deciding


class Decision(NamedTuple):
    """What to do with each case, and what it is expected to cost.

    Book: sec-decisions
    """

    action: Int[Tensor, "*cases"]  # index into the rows of the cost matrix, or REFUSE
    expected_loss: Float[Tensor, "*cases"]  # in the units of the cost matrix


class RiskCoverage(NamedTuple):
    """Loss among the cases answered, as more and more of them are, the surest first.

    Book: sec-decisions
    """

    coverage: Float[Tensor, " n"]  # share of the cases that is answered: 1/n, 2/n, …, 1
    risk: Float[Tensor, " n"]  # mean loss of those

    @property
    def area(self) -> Float[Tensor, ""]:
        """The area under the curve (AURC): the risk averaged over all coverages; lower is better."""
        return self.risk.mean()


def expected_loss(
    prob: Float[Tensor, "*cases classes"], cost: Float[Tensor, "actions classes"]
) -> Float[Tensor, "*cases actions"]:
    r"""What each action costs on average, over what the truth may be.

    .. math:: L(a \mid x) = \sum_c \ell(a, c)\, p(c \mid x)

    Args:
        prob: p(c | x), each row a distribution over the classes.
        cost: ℓ(a, c), what action a costs when the truth is c: one row an action, one column a class, finite. There may
            be more or fewer actions than classes.

    Returns:
        The expected loss of every action in every case, in the units of ``cost``.

    Raises:
        ValueError: if a row of ``prob`` is no distribution, or ``cost`` is not finite or has not one column a class.

    Source: Berger (1985), Statistical Decision Theory and Bayesian Analysis, doi:10.1007/978-1-4757-4286-2.
    Book: sec-decisions
    """
    check_prob(prob)
    if cost.ndim != 2 or cost.shape[1] != prob.shape[-1] or not cost.isfinite().all():
        raise ValueError(f"cost must be finite, of shape [actions, {prob.shape[-1]}], got {cost}")
    return prob @ cost.to(prob).mT


def decide(
    prob: Float[Tensor, "*cases classes"],
    cost: Float[Tensor, "actions classes"],
    *,
    refuse_cost: float | None = None,
) -> Decision:
    r"""The action of smallest expected loss, or none where even that costs more than refusing.

    .. math:: a^*(x) = \arg\min_a L(a \mid x), \qquad \text{refuse where } \min_a L(a \mid x) > \ell_\text{refuse}

    With the 0–1 cost, L = 1 - p: the rule answers with the most probable class, and refuses where its probability is
    below 1 - ℓ_refuse.

    Args:
        prob: p(c | x), each row a distribution over the classes.
        cost: ℓ(a, c), as in :func:`expected_loss`.
        refuse_cost: what not deciding costs, whatever the truth, in the units of ``cost``; None takes away the option.

    Returns:
        A :class:`Decision`; ``action`` is :data:`REFUSE` where the case is refused.

    Raises:
        ValueError: as :func:`expected_loss`, or if ``refuse_cost`` is NaN.

    Source: Chow (1970), doi:10.1109/TIT.1970.1054406.
    Book: sec-decisions
    """
    if refuse_cost is not None and not refuse_cost == refuse_cost:
        raise ValueError(f"refuse_cost must be a number, got {refuse_cost}")
    loss, action = expected_loss(prob, cost).min(-1)
    if refuse_cost is None:
        return Decision(action, loss)
    return Decision(torch.where(loss > refuse_cost, REFUSE, action), loss.clamp(max=refuse_cost))


def risk_coverage(confidence: Float[Tensor, " n"], loss: Float[Tensor, " n"]) -> RiskCoverage:
    r"""The risk–coverage curve: mean loss on the k cases with the highest confidence, for every k.

    .. math:: r(k/n) = \frac1k \sum_{i=1}^k \ell_{(i)}, \qquad \text{AURC} = \frac1n \sum_{k=1}^n r(k/n)

    with the losses sorted by falling confidence. Cases of equal confidence count as if in random order (each with the
    mean loss of its group), so that the curve does not depend on how the data were sorted.

    Args:
        confidence: any score that is higher where the answer is surer, finite; only its order matters.
        loss: what the answer cost, finite; 0 and 1 for right and wrong.

    Returns:
        A :class:`RiskCoverage`, whose ``area`` is the AURC. A confidence that knows nothing gives a flat curve.

    Raises:
        ValueError: if the two differ in length, are empty or are not finite.

    Source: El-Yaniv and Wiener (2010), JMLR 11:1605–1641; Geifman, Uziel and El-Yaniv (2019), arXiv:1805.08206.
    Book: sec-decisions
    """
    for name, value in {"confidence": confidence, "loss": loss}.items():
        if value.ndim != 1 or value.shape != confidence.shape or len(value) < 1 or not value.isfinite().all():
            raise ValueError(f"{name} must be finite, one a case, got shape {list(value.shape)}: {value}")
    _, group, size = torch.unique(-confidence, return_inverse=True, return_counts=True)  # the surest group is 0
    mean_loss = torch.zeros_like(size, dtype=loss.dtype).index_add(0, group, loss) / size
    count = torch.arange(1, len(loss) + 1, dtype=loss.dtype, device=loss.device)
    return RiskCoverage(count / len(loss), mean_loss.repeat_interleave(size).cumsum(0) / count)


def check_prob(prob: Float[Tensor, "*cases classes"]) -> None:
    """Refuse, by a ValueError, what is not a distribution over the classes in every row, up to rounding."""
    tolerance = 100 * torch.finfo(prob.dtype).eps * prob.shape[-1]
    if not ((prob >= 0).all() and ((prob.sum(-1) - 1).abs() <= tolerance).all()):
        raise ValueError(f"prob must be non-negative with rows that sum to 1, got {prob}")
