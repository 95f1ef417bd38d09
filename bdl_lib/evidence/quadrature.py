r"""The integral on a grid, in any number of dimensions, with its price said beforehand.

Chapter: book/03-evidence.ipynb
"""

from math import inf, log, nan
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.evidence.moves import LogProb
from bdl_lib.evidence.results import LogEvidence, Watch, check_some_weight, warn_unreliable

__all__ = ["GridCost", "grid_cost", "grid_quadrature"]

_SECONDS_A_YEAR = 365.25 * 24 * 3600
_CHUNK_SIZE = 2**16  # points evaluated at once
_MAX_EDGE_SHARE = 1e-3


class GridCost(NamedTuple):
    """What a grid costs.

    Book: sec-grid-cost
    """

    num_evaluations: int  # exact, however large
    seconds: float  # infinite where a float cannot hold it

    @property
    def years(self) -> float:
        """The same in years."""
        return self.seconds / _SECONDS_A_YEAR


def grid_cost(num_points: int, dim: int, *, seconds_per_evaluation: float) -> GridCost:
    r"""What a grid would cost, :math:`n^d` evaluations, without computing it.

    Args:
        num_points: n ≥ 1, cells along each axis.
        dim: d ≥ 1, number of parameters.
        seconds_per_evaluation: time for one evaluation of the density, positive, as measured.

    Returns:
        Evaluations, seconds and years.

    Raises:
        ValueError: if an argument is out of range.

    Book: sec-grid-cost
    """
    for name, value in {"num_points": num_points, "dim": dim}.items():
        if not value >= 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 < seconds_per_evaluation < inf:
        raise ValueError(f"seconds_per_evaluation must be positive and finite, got {seconds_per_evaluation}")
    num_evaluations = num_points**dim
    log_seconds = dim * log(num_points) + log(seconds_per_evaluation)
    return GridCost(num_evaluations, num_evaluations * seconds_per_evaluation if log_seconds < 700 else inf)


def grid_quadrature(
    log_joint: LogProb,
    low: Float[Tensor, " dim"],
    high: Float[Tensor, " dim"],
    *,
    num_points: int,
    max_evaluations: int = 10**8,
    progress: bool = False,
) -> LogEvidence:
    r"""Log evidence by the midpoint rule on a box.

    .. math:: \log p(x) \approx \log \sum_i p(x \mid \theta_i)\, p(\theta_i)\; \prod_j \frac{b_j - a_j}{n}

    Args:
        log_joint: log p(x | θ) + log p(θ) in nats at every row of [points, dim]; −∞ where impossible.
        low: the box's lower corner a.
        high: its upper corner b, above ``low`` in every coordinate.
        num_points: n ≥ 2, cells along each axis.
        max_evaluations: a grid of more points than this is refused before it starts.
        progress: True shows a bar.

    Returns:
        The estimate; ``std_error`` is NaN, since nothing is random: the error is the rule's, and shrinks as n grows.
        Memory does not grow with the grid. More than a thousandth of the mass in the outermost cells gives an
        :class:`UnreliableEvidence` warning: the box may cut the posterior off.

    Raises:
        ValueError: if the box is not finite and of positive size, if the grid is larger than ``max_evaluations`` (the
            message says what it would cost), or if ``log_joint`` is −∞ or NaN everywhere, +∞ somewhere, or of the
            wrong shape.

    Source: Press et al. (2007), Numerical Recipes, sections 4.1 and 4.8.
    Book: sec-integral
    """
    num_total = _check_box(low, high, num_points, max_evaluations)
    watched, width = Watch("log_joint", log_joint), (high - low) / num_points
    chunk_sums, edge_sums = [], []
    for first in _steps(num_total, progress):
        cells = _cells(
            torch.arange(first, min(first + _CHUNK_SIZE, num_total), device=low.device), num_points, len(low)
        )
        log_mass = watched(low + width * (cells + 0.5))
        is_edge = ((cells == 0) | (cells == num_points - 1)).any(-1)
        chunk_sums.append(log_mass.logsumexp(0))
        edge_sums.append(torch.where(is_edge, log_mass, -inf).logsumexp(0))
    check_some_weight("log_joint", torch.stack(chunk_sums))
    log_total = torch.stack(chunk_sums).logsumexp(0)
    edge_share = (torch.stack(edge_sums).logsumexp(0) - log_total).exp()
    if not edge_share <= _MAX_EDGE_SHARE:
        warn_unreliable(f"{edge_share:.1%} of the mass lies in the outermost cells: the box may cut it off")
    value = log_total + width.log().sum()
    return LogEvidence(value, value.new_tensor(nan), watched.num_evaluations, watched.num_excluded)


def _cells(index: Tensor, num_points: int, dim: int) -> Tensor:
    """Cell numbers along each axis, [n, dim], of cells counted through: the digits of the index to base num_points."""
    place = num_points ** torch.arange(dim - 1, -1, -1, device=index.device)
    return index[:, None] // place % num_points


def _steps(num_total: int, progress: bool):
    from tqdm import tqdm

    return tqdm(range(0, num_total, _CHUNK_SIZE), disable=not progress, desc="grid", unit_scale=_CHUNK_SIZE)


def _check_box(low: Tensor, high: Tensor, num_points: int, max_evaluations: int) -> int:
    if low.ndim != 1 or low.shape != high.shape or len(low) < 1:
        raise ValueError(f"low and high must be [dim >= 1] both, got shapes {list(low.shape)} and {list(high.shape)}")
    if not (low.isfinite() & high.isfinite() & (low < high)).all():
        raise ValueError(f"low and high must be finite, low below high, got {low.tolist()} and {high.tolist()}")
    if not num_points >= 2:
        raise ValueError(f"num_points must be at least 2, got {num_points}")
    num_total = num_points ** len(low)
    if not num_total <= max_evaluations:
        cost = f"{num_points}^{len(low)} = {float(num_total) if num_total < 10**300 else inf:.1e} evaluations"
        raise ValueError(f"num_points must give at most max_evaluations = {max_evaluations:.1e}, got {cost}")
    return num_total
