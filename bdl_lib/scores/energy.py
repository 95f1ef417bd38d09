r"""The energy score: the CRPS of a vector.

Chapter: book/06-mcmc-versus-vi.ipynb
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.scores._checks import check_forecasts
from bdl_lib.scores.results import Score, average

__all__ = ["energy_score"]

MAX_PAIRS = 2**22  # distances held at once: 32 MiB in double precision


def energy_score(draws: Float[Tensor, "draws points dim"], targets: Float[Tensor, "points dim"]) -> Score:
    r"""How far a predictive distribution lies from the vector that came: the fair version, unbiased for few draws.

    .. math:: s = \frac 1m \sum_j \|x_j - y\| - \frac{1}{2 m (m - 1)} \sum_{j, k} \|x_j - x_k\|

    In one dimension it is :func:`crps_draws`. It sees correlations between the coordinates, though only faintly, and
    coordinates in large units drown the others: bring them to one scale first.

    Args:
        draws: x, predictive draws, noise included, [draws, points, dim], at least two.
        targets: y, what was observed, [points, dim].

    Returns:
        A :class:`Score` in the unit of the targets. The work grows with draws², the memory does not.

    Raises:
        ValueError: if there are fewer than two draws, the shapes do not fit, or something is not finite.

    Source: Gneiting and Raftery (2007), doi:10.1198/016214506000001437.
    Book: sec-proper-scores
    """
    check_forecasts(draws, targets, "points, dim")
    m = len(draws)
    to_target = torch.linalg.vector_norm(draws - targets, dim=-1).mean(0)
    return average(to_target - _sum_of_distances(draws.transpose(0, 1)) / (2 * m * (m - 1)))


def _sum_of_distances(draws: Float[Tensor, "points draws dim"]) -> Float[Tensor, " points"]:
    """All distances between the draws of each point, both ways, summed in blocks of at most ``MAX_PAIRS``."""
    m = draws.shape[1]
    points_at_once, rows_at_once = max(1, MAX_PAIRS // m**2), max(1, MAX_PAIRS // m)
    return torch.cat(
        [
            sum(pairwise_distance(rows, block).sum((1, 2)) for rows in block.split(rows_at_once, dim=1))
            for block in draws.split(points_at_once)
        ]
    )


def pairwise_distance(first: Float[Tensor, "*b n dim"], second: Float[Tensor, "*b m dim"]) -> Float[Tensor, "*b n m"]:
    """Euclidean distances from differences; the faster way, by a matrix product, loses half of the digits."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
