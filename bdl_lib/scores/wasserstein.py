r"""The sliced Wasserstein distance: how far draws must be carried to become the others, seen from all sides.

Chapter: book/06-mcmc-versus-vi.ipynb
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.scores._checks import check_at_least, check_two_samples
from bdl_lib.scores.results import Distance, batch_means_variance

__all__ = ["sliced_wasserstein"]

_MAX_NUMBERS = 2**22  # projections held at once


def sliced_wasserstein(
    draws: Float[Tensor, "n dim"],
    reference: Float[Tensor, "m dim"],
    *,
    num_directions: int = 100,
    generator: torch.Generator,
) -> Distance:
    r"""The Wasserstein-1 distance between two sets of draws along random directions, averaged.

    .. math:: \text{SW} = E_u \int |F_u(t) - G_u(t)|\, dt, \qquad u \sim U(\text{sphere})

    with :math:`F_u` and :math:`G_u` the distribution functions of :math:`u^\top \theta` in the two sets. The integral
    is the mean distance that mass must travel along the line. The error has two parts: of the directions, their
    scatter; of the draws, that of their influence on the distance,

    .. math:: h(\theta) = E_u \int_{u^\top \theta}^\infty \operatorname{sign}\big( F_u(t) - G_u(t) \big)\, dt .

    The distance is never negative and so never zero, not even between two sets from one distribution: ``floor`` says
    what it would then be, by mixing the two sets and dividing them anew. Take a distance seriously where it is well
    above its floor.

    Args:
        draws: from one distribution, [draws, dim]: independent, or of chains put one after the other, whose memory is
            accounted for in ``std_error`` as far as √n draws, but not in ``floor``: thin chains that remember long.
        reference: from the other, [draws, dim]; the two may differ in number, at least four each.
        num_directions: how many u, at least 2.
        generator: draws the directions, and mixes the sets.

    Returns:
        A :class:`Distance` in the unit of the parameters. Where they have several, divide both sets by the standard
        deviations of the reference first. Where the distance is at its floor, ``std_error`` is only rough.

    Raises:
        ValueError: if the shapes do not fit, there are too few draws or directions, or a draw is not finite.

    Source: Bonneel, Rabin, Peyré and Pfister (2015), doi:10.1007/s10851-014-0506-3.
    Book: sec-distances
    """
    check_two_samples(draws, reference)
    check_at_least("num_directions", num_directions, 2)
    directions = torch.randn(
        num_directions, draws.shape[1], generator=generator, dtype=draws.dtype, device=draws.device
    )
    directions = directions / torch.linalg.vector_norm(directions, dim=1, keepdim=True)
    pooled, n = torch.cat([draws, reference]), len(draws)
    is_draw = torch.arange(len(pooled), device=draws.device) < n
    along, influence = _along_directions(pooled, is_draw, directions)
    variance = batch_means_variance(influence[:n]) + batch_means_variance(influence[n:])
    mixed = is_draw[torch.randperm(len(pooled), generator=generator, device=draws.device)]
    floor, _ = _along_directions(pooled, mixed, directions)
    return Distance(along.mean(), (variance + along.var() / num_directions).sqrt(), floor.mean())


def _along_directions(
    pooled: Float[Tensor, "both dim"], is_draw: Bool[Tensor, " both"], directions: Float[Tensor, "directions dim"]
) -> tuple[Float[Tensor, " directions"], Float[Tensor, " both"]]:
    """Distances along each direction, and what each draw contributes to their mean, up to a constant and a sign."""
    influence, distances = torch.zeros_like(pooled[:, 0]), []
    for block in directions.split(max(1, _MAX_NUMBERS // len(pooled))):
        distance, right_of = _along_lines(pooled @ block.mT, is_draw)
        distances.append(distance)
        influence = influence + right_of.sum(1) / len(directions)
    return torch.cat(distances), influence


def _along_lines(position, is_draw):
    """Integral of |F - G| on every line [both, lines], and the integral of its sign to the right of every point."""
    n, m = is_draw.sum(), (~is_draw).sum()
    ordered, order = position.sort(0)
    gap = ordered.diff(dim=0)
    num_below = is_draw[order].cumsum(0)[:-1]
    num_others = torch.arange(1, len(position), device=position.device)[:, None] - num_below
    difference = num_below * m - num_others * n  # n m (F - G), in whole numbers: zero where it is zero
    distance = (difference.abs().to(gap) * gap).sum(0) / (n * m)
    to_the_right = (difference.sign() * gap).flip(0).cumsum(0).flip(0)
    to_the_right = torch.cat([to_the_right, torch.zeros_like(ordered[:1])])
    return distance, torch.zeros_like(ordered).scatter(0, order, to_the_right)
