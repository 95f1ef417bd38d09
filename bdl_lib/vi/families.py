r"""Gaussian families: the shapes that a posterior is fitted with, from one variance a parameter to a full covariance.

A family is a record of tensors, its parameters :math:`\lambda`, with two abilities: ``rsample`` turns standard noise
into draws that are differentiable in the parameters, and ``log_prob`` gives the density of any point.

Chapter: book/05-vi.ipynb
"""

from math import log, pi
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, Normal

from bdl_lib.vi._checks import check_at_least, check_loc, check_num_samples, check_positive

__all__ = [
    "Family",
    "FullRankGaussian",
    "LowRankGaussian",
    "MeanFieldGaussian",
    "full_rank_gaussian",
    "low_rank_gaussian",
    "mean_field_gaussian",
]


@runtime_checkable
class Family(Protocol):
    r"""What :func:`bdl_lib.vi.fit` asks of :math:`q_\lambda`: a named tuple whose floating-point tensors are λ.

    Book: sec-families
    """

    @property
    def dim(self) -> int:
        """How many numbers a draw has."""

    def rsample(self, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples dim"]:
        """Draws as a differentiable function of the parameters."""

    def log_prob(self, position: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
        """Log density at each row, normalised, in nats."""


class MeanFieldGaussian(NamedTuple):
    r"""Independent Gaussians, one a parameter: :math:`q(\theta) = \prod_j N(\theta_j; m_j, s_j^2)`.

    Book: sec-mean-field
    """

    loc: Float[Tensor, " dim"]  # m
    log_std: Float[Tensor, " dim"]  # log s

    @property
    def dim(self) -> int:
        """How many numbers a draw has."""
        return len(self.loc)

    @property
    def mean(self) -> Float[Tensor, " dim"]:
        """The mean of the density."""
        return self.loc

    @property
    def std(self) -> Float[Tensor, " dim"]:
        """Standard deviation of each parameter."""
        return self.log_std.exp()

    @property
    def covariance(self) -> Float[Tensor, "dim dim"]:
        """Covariance matrix, which is diagonal."""
        return torch.diag_embed(self.std.square())

    def rsample(self, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples dim"]:
        """Draws, differentiable in the parameters."""
        return self.loc + self.std * standard_noise(self.loc, num_samples, self.dim, generator)

    def sample(self, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples dim"]:
        """Draws without gradients."""
        return _detached(self, num_samples, generator)

    def log_prob(self, position: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
        """Log density at each row, in nats."""
        return Normal(self.loc, self.std, validate_args=False).log_prob(position).sum(-1)


class LowRankGaussian(NamedTuple):
    r"""A Gaussian with a few directions of correlation: :math:`\Sigma = F F^\top + \mathrm{diag}(s^2)`.

    Book: sec-families
    """

    loc: Float[Tensor, " dim"]
    factor: Float[Tensor, "dim rank"]  # F
    log_std: Float[Tensor, " dim"]  # log s, of what the factor leaves

    @property
    def dim(self) -> int:
        """How many numbers a draw has."""
        return len(self.loc)

    @property
    def mean(self) -> Float[Tensor, " dim"]:
        """The mean of the density."""
        return self.loc

    @property
    def covariance(self) -> Float[Tensor, "dim dim"]:
        """Covariance matrix."""
        return self.factor @ self.factor.mT + torch.diag_embed((2 * self.log_std).exp())

    def rsample(self, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples dim"]:
        """Draws, differentiable in the parameters."""
        rank = self.factor.shape[1]
        common, own = standard_noise(self.loc, num_samples, rank + self.dim, generator).split([rank, self.dim], 1)
        return self.loc + common @ self.factor.mT + self.log_std.exp() * own

    def sample(self, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples dim"]:
        """Draws without gradients."""
        return _detached(self, num_samples, generator)

    def log_prob(self, position: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
        """Log density at each row, in nats; the inverse costs rank², not dim²."""
        var = (2 * self.log_std).exp()
        return LowRankMultivariateNormal(self.loc, self.factor, var, validate_args=False).log_prob(position)


class FullRankGaussian(NamedTuple):
    r"""A Gaussian with any covariance: :math:`\Sigma = L L^\top`, with L lower triangular.

    Book: sec-families
    """

    loc: Float[Tensor, " dim"]
    scale_tril: Float[Tensor, "dim dim"]  # L; neither what stands above its diagonal counts, nor a column's sign

    @property
    def dim(self) -> int:
        """How many numbers a draw has."""
        return len(self.loc)

    @property
    def mean(self) -> Float[Tensor, " dim"]:
        """The mean of the density."""
        return self.loc

    @property
    def covariance(self) -> Float[Tensor, "dim dim"]:
        """Covariance matrix."""
        return self.scale_tril.tril() @ self.scale_tril.tril().mT

    def rsample(self, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples dim"]:
        """Draws, differentiable in the parameters."""
        return self.loc + standard_noise(self.loc, num_samples, self.dim, generator) @ self.scale_tril.tril().mT

    def sample(self, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples dim"]:
        """Draws without gradients."""
        return _detached(self, num_samples, generator)

    def log_prob(self, position: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
        """Log density at each row, in nats."""
        scale = self.scale_tril.tril()
        noise = torch.linalg.solve_triangular(scale, (position - self.loc).mT, upper=False)
        log_volume = scale.diagonal().abs().log().sum()
        return -0.5 * noise.square().sum(0) - log_volume - 0.5 * self.dim * log(2 * pi)


def mean_field_gaussian(loc: Float[Tensor, " dim"], *, std: float | Float[Tensor, " dim"] = 1.0) -> MeanFieldGaussian:
    r"""Where a fit of independent Gaussians starts.

    Args:
        loc: means, finite.
        std: s > 0, one for all or one a parameter.

    Returns:
        The family, in the dtype and on the device of ``loc``.

    Raises:
        ValueError: if ``loc`` is not a finite vector or ``std`` is not positive.

    Book: sec-mean-field
    """
    check_loc(loc)
    check_positive("std", std)
    return MeanFieldGaussian(loc.detach().clone(), torch.as_tensor(std).to(loc).log().expand(loc.shape).clone())


def low_rank_gaussian(
    loc: Float[Tensor, " dim"], *, rank: int, std: float = 1.0, generator: torch.Generator
) -> LowRankGaussian:
    r"""Where a fit of a low-rank Gaussian starts: nearly diagonal, with small random factors to grow from.

    Args:
        loc: means, finite.
        rank: how many directions of correlation, from 1 to dim.
        std: s > 0 of the diagonal part.
        generator: draws the factors, of standard deviation 0.1 ``std``: at zero their gradient would vanish.

    Returns:
        The family, in the dtype and on the device of ``loc``.

    Raises:
        ValueError: if ``loc`` is not a finite vector, ``rank`` is out of range or ``std`` is not positive.

    Source: Ong, Nott and Smith (2018), arXiv:1701.03208.
    Book: sec-families
    """
    check_loc(loc)
    check_at_least("rank", rank, 1)
    if not rank <= len(loc):
        raise ValueError(f"rank must be at most dim = {len(loc)}, got {rank}")
    check_positive("std", std)
    factor = 0.1 * std * standard_noise(loc, len(loc), rank, generator)
    return LowRankGaussian(loc.detach().clone(), factor, torch.full_like(loc, std).log())


def full_rank_gaussian(loc: Float[Tensor, " dim"], *, std: float | Float[Tensor, " dim"] = 1.0) -> FullRankGaussian:
    r"""Where a fit of a Gaussian with full covariance starts: without correlation.

    Args:
        loc: means, finite.
        std: > 0, one for all or one a parameter.

    Returns:
        The family, in the dtype and on the device of ``loc``.

    Raises:
        ValueError: if ``loc`` is not a finite vector or ``std`` is not positive.

    Book: sec-families
    """
    check_loc(loc)
    check_positive("std", std)
    return FullRankGaussian(loc.detach().clone(), torch.diag_embed(torch.as_tensor(std).to(loc).expand(loc.shape)))


def standard_noise(like: Tensor, num_samples: int, dim: int, generator: torch.Generator) -> Tensor:
    """Standard normal draws in the dtype and on the device of a tensor."""
    check_num_samples(num_samples)
    return torch.randn(num_samples, dim, generator=generator, dtype=like.dtype, device=like.device)


def _detached(family, num_samples: int, generator: torch.Generator) -> Tensor:
    with torch.no_grad():
        return family.rsample(num_samples, generator=generator)
