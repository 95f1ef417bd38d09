"""A posterior on a grid: cut the range of one or two parameters into equal cells and add up.

Exact as the cells shrink, whatever the model. It stops at two parameters, since the number of cells is a power of their
number. Everything is in log space, so a density may be as small as it likes.

Chapter: book/01-bayes.ipynb
"""

from collections.abc import Callable
from math import inf, isfinite, prod
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ._checks import require

__all__ = ["GridPosterior", "grid_expectation", "grid_marginal", "grid_posterior", "midpoints"]


class GridPosterior(NamedTuple):
    """A density on a grid of one or two axes, each given by the centres of its cells.

    Book: sec-grid
    """

    axes: tuple[Float[Tensor, " cells"], ...]
    log_prob: Float[
        Tensor, "*batch_and_cells"
    ]  # log density in nats, per unit of the axes: [..., cells] or [..., m, n]
    log_evidence: Float[Tensor, "*batch"]  # nats

    @property
    def points(self) -> Float[Tensor, "*cells dim"]:
        """Centre of every cell: [cells, 1] or [m, n, 2]."""
        return torch.stack(torch.meshgrid(*self.axes, indexing="ij"), -1)

    @property
    def cell_prob(self) -> Float[Tensor, "*batch_and_cells"]:
        """Probability in every cell, in the shape of ``log_prob``; it sums to one."""
        return (self.log_prob + _log_cell_size(self.axes)).exp()


def midpoints(
    low: float,
    high: float,
    num_points: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, " num_points"]:
    r"""Centres of equal cells that fill an interval, :math:`x_i = \ell + (i + \tfrac12)(h - \ell) / n`.

    Args:
        low: left end ℓ of the interval; no centre lies on it, so a density may be infinite there.
        high: right end h > ℓ.
        num_points: n ≥ 2 cells.
        dtype: of the result; the default dtype if not given.
        device: of the result; the default device if not given.

    Returns:
        The centres, in increasing order and in the units of the interval.

    Raises:
        ValueError: if the ends are not finite and increasing, or if there are fewer than two cells.

    Source: Press et al. (2007), Numerical Recipes, section 4.1 (the midpoint rule).
    Book: sec-grid
    """
    if not (low < high and isfinite(low) and isfinite(high)):
        raise ValueError(f"low and high must be finite, low below high, got {low} and {high}")
    if not num_points >= 2:
        raise ValueError(f"num_points must be at least 2, got {num_points}")
    width = (high - low) / num_points
    return low + width * (torch.arange(num_points, dtype=dtype, device=device) + 0.5)


def grid_posterior(
    log_joint: Callable[[Float[Tensor, "points dim"]], Float[Tensor, "*batch points"]], *axes: Float[Tensor, " _"]
) -> GridPosterior:
    r"""Posterior density and evidence of any model with one or two parameters, by the midpoint rule.

    With cells of size Δ centred at :math:`\theta_i`,

    .. math:: \log p(x) \approx \log \sum_i p(x, \theta_i)\, \Delta, \qquad
              \log p(\theta_i \mid x) = \log p(x, \theta_i) - \log p(x)

    Args:
        log_joint: log p(x | θ) + log p(θ) in nats at every row of [points, dim], −∞ where impossible. Called once. It
            may return leading batch axes, [..., points]: one posterior each.
        axes: centres of equal cells, increasing, one axis a parameter (``midpoints`` makes them).

    Returns:
        Log density in nats on the grid ([..., cells] or [..., m, n]) and log evidence in nats. What lies outside the
        grid counts as impossible.

    Raises:
        ValueError: if there are not one or two axes, if an axis is not evenly spaced and increasing, or if
            ``log_joint`` returns another shape, NaN, +∞, or −∞ everywhere.

    Source: Gelman et al. (2013), Bayesian Data Analysis, section 10.1.
    Book: sec-grid
    """
    if len(axes) not in (1, 2):
        raise ValueError(f"axes must be one or two, got {len(axes)}")
    for i, axis in enumerate(axes):
        _check_axis(f"axes[{i}]", axis)
    log_density = log_joint(torch.cartesian_prod(*axes).reshape(-1, len(axes)))
    _check_log_joint(log_density, num_points=prod(map(len, axes)))
    log_evidence = log_density.logsumexp(-1, keepdim=True) + _log_cell_size(axes)
    log_prob = (log_density - log_evidence).unflatten(-1, tuple(map(len, axes)))
    return GridPosterior(axes, log_prob, log_evidence.squeeze(-1))


def grid_expectation(grid: GridPosterior, values: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""Average of a function under a posterior on a grid, :math:`E[f(\theta) \mid x] = \sum_i p_i f(\theta_i)`.

    Args:
        grid: the posterior; :math:`p_i` is the probability of cell i.
        values: f at every cell, in the shape of the grid ([cells] or [m, n]), with any axes after it. So
            ``grid_expectation(grid, grid.points)`` is the posterior mean.

    Returns:
        The average, in the units of f: the batch axes of the grid, then the extra axes of ``values``.

    Raises:
        ValueError: if ``values`` does not start with the grid's shape or is not finite.

    Source: Gelman et al. (2013), Bayesian Data Analysis, section 10.1.
    Book: sec-grid
    """
    cells = tuple(map(len, grid.axes))
    if values.shape[: len(cells)] != cells:
        raise ValueError(f"values must start with the grid's shape {cells}, got shape {tuple(values.shape)}")
    require(values.isfinite(), "values must be finite", values)
    return torch.tensordot(grid.cell_prob, values.to(grid.log_prob.dtype), dims=len(cells))


def grid_marginal(grid: GridPosterior, axis: int) -> GridPosterior:
    r"""Posterior of one parameter, the other added up.

    .. math:: p(\theta_1 \mid x) = \sum_j p(\theta_1, \theta_{2j} \mid x)\, \Delta_2

    Args:
        grid: the posterior.
        axis: which parameter to keep, 0 or 1.

    Returns:
        A posterior on that axis alone, with the same evidence.

    Raises:
        ValueError: if the grid has no such axis.

    Source: Gelman et al. (2013), Bayesian Data Analysis, section 3.1.
    Book: sec-grid
    """
    if axis not in range(len(grid.axes)):
        raise ValueError(f"axis must be one of {list(range(len(grid.axes)))}, got {axis}")
    if len(grid.axes) == 1:
        return grid
    kept, other = grid.axes[axis], grid.axes[1 - axis]
    log_prob = grid.log_prob.logsumexp(-1 if axis == 0 else -2) + _log_cell_size((other,))
    return GridPosterior((kept,), log_prob, grid.log_evidence)


def _log_cell_size(axes: tuple[Tensor, ...]) -> Tensor:
    """Log length, or log area, of one cell."""
    return sum(((axis[-1] - axis[0]) / (len(axis) - 1)).log() for axis in axes)


def _check_axis(name: str, axis: Tensor) -> None:
    if axis.ndim != 1 or len(axis) < 2:
        raise ValueError(f"{name} must be one-dimensional with at least 2 points, got shape {tuple(axis.shape)}")
    steps = axis.diff()
    width = (axis[-1] - axis[0]) / (len(axis) - 1)
    rounding = 4 * torch.finfo(axis.dtype).eps * axis.abs().max()
    is_even = (steps > 0) & ((steps - width).abs() <= 1e-4 * width + rounding)
    require(is_even, f"{name} must be evenly spaced and increasing", steps)


def _check_log_joint(log_density: Tensor, *, num_points: int) -> None:
    if log_density.shape[-1:] != (num_points,):
        raise ValueError(f"log_joint must return [..., {num_points}], got shape {tuple(log_density.shape)}")
    num_bad = (~(log_density < inf)).sum().item()
    if num_bad:
        raise ValueError(
            f"log_joint must be finite or -inf, is NaN or +inf at {num_bad} of {log_density.numel()} points"
        )
    largest = log_density.amax(-1)
    require(largest > -inf, "log_joint must be finite somewhere on the grid", largest)
