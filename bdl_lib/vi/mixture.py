r"""A mixture of Gaussians as a family: several hills, each with its share of the probability.

Chapter: book/05-vi.ipynb
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal

from bdl_lib.vi._checks import check_loc, check_num_samples, check_positive
from bdl_lib.vi.families import standard_noise

__all__ = ["GaussianMixture", "gaussian_mixture"]


class GaussianMixture(NamedTuple):
    r"""A weighted sum of Gaussians with diagonal covariance: :math:`q(\theta) = \sum_k \pi_k N(\theta; m_k, s_k^2)`.

    A draw chooses its component, and a choice has no gradient in :math:`\pi`. So the bounds use
    ``rsample_stratified``, which draws from every component and weights with its share.

    Book: sec-families
    """

    logits: Float[Tensor, " k"]  # log π up to a constant
    loc: Float[Tensor, "k dim"]
    log_std: Float[Tensor, "k dim"]

    @property
    def dim(self) -> int:
        """How many numbers a draw has."""
        return self.loc.shape[1]

    @property
    def weights(self) -> Float[Tensor, " k"]:
        """The share of each component, π."""
        return self.logits.softmax(0)

    @property
    def mean(self) -> Float[Tensor, " dim"]:
        """The mean of the mixture."""
        return self.weights @ self.loc

    @property
    def covariance(self) -> Float[Tensor, "dim dim"]:
        """The mean of the covariances plus the covariance of the means."""
        away = self.loc - self.mean
        within = torch.diag_embed(self.weights @ (2 * self.log_std).exp())
        return within + (self.weights[:, None] * away).mT @ away

    def rsample(self, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples dim"]:
        """Draws, differentiable in ``loc`` and ``log_std`` alone."""
        check_num_samples(num_samples)
        k = torch.multinomial(self.weights.detach(), num_samples, replacement=True, generator=generator)
        return self.loc[k] + self.log_std[k].exp() * standard_noise(self.loc, num_samples, self.dim, generator)

    def rsample_stratified(
        self, num_samples: int, *, generator: torch.Generator
    ) -> tuple[Float[Tensor, "draws dim"], Float[Tensor, " draws"]]:
        r"""Equally many draws of each component, at least ``num_samples`` in all, with weights :math:`K\pi_k`.

        The weighted mean of a function over them is an unbiased estimate of its mean under q, differentiable in all.
        """
        check_num_samples(num_samples)
        each = -(-num_samples // len(self.logits))
        noise = standard_noise(self.loc, each * len(self.logits), self.dim, generator).unflatten(0, (each, -1))
        position = self.loc + self.log_std.exp() * noise
        return position.flatten(0, 1), (len(self.logits) * self.weights).repeat(each)

    def sample(self, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples dim"]:
        """Draws without gradients."""
        with torch.no_grad():
            return self.rsample(num_samples, generator=generator)

    def log_prob(self, position: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
        """Log density at each row, in nats."""
        components = Normal(self.loc, self.log_std.exp(), validate_args=False)
        return (self.logits.log_softmax(0) + components.log_prob(position[:, None]).sum(-1)).logsumexp(-1)


def gaussian_mixture(loc: Float[Tensor, "k dim"], *, std: float = 1.0) -> GaussianMixture:
    r"""Where a fit of a mixture starts: equal shares, equal widths, at different places.

    Args:
        loc: one mean a row, finite. Components that start at one place stay together: spread them.
        std: > 0, of every component in every direction.

    Returns:
        The family, in the dtype and on the device of ``loc``.

    Raises:
        ValueError: if ``loc`` is not a finite matrix or ``std`` is not positive.

    Source: Jaakkola and Jordan (1998), in Learning in Graphical Models, edited by Jordan, Kluwer.
    Book: sec-families
    """
    if loc.ndim != 2 or 0 in loc.shape:
        raise ValueError(f"loc must be [k >= 1, dim >= 1], got shape {list(loc.shape)}")
    check_loc(loc.flatten())
    check_positive("std", std)
    return GaussianMixture(loc.new_zeros(len(loc)), loc.detach().clone(), torch.full_like(loc, std).log())
