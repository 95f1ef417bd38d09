r"""Bayesian logistic regression: the smallest posterior that has no closed form, with a gradient that has one.

With the targets as signs, :math:`s_i = 2 y_i - 1`, one sigmoid serves both classes:

.. math:: p(y_i \mid \theta) = \sigma(s_i \phi_i^\top \theta), \qquad \sigma(z) = \frac{1}{1 + e^{-z}}

Chapter: book/04-mcmc.ipynb
"""

from math import inf, log, pi
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.nn import functional as F

from ._checks import require

__all__ = ["LogisticPosterior", "WeightPrior", "logistic_posterior"]


class WeightPrior(NamedTuple):
    r"""Independent weights around zero, :math:`\theta_j \sim N(0, s^2)`.

    Book: sec-chees
    """

    std: Float[Tensor, " d"]

    def log_prob(self, weights: Float[Tensor, "samples d"]) -> Float[Tensor, " samples"]:
        """Log density of each weight vector, normalised, in nats."""
        constant = self.std.log().sum() + 0.5 * len(self.std) * log(2 * pi)
        return weights.square() @ (-0.5 / self.std.square()) - constant

    def sample(self, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples d"]:
        """Draws from the prior, in the dtype and on the device of ``std``."""
        like = {"generator": generator, "dtype": self.std.dtype, "device": self.std.device}
        return self.std * torch.randn(num_samples, len(self.std), **like)


class LogisticPosterior(NamedTuple):
    """A log posterior, called as ``log_prob(weights)``: [samples, d] to [samples], nats, up to log p(y).

    With ``rows``, the numbers of m of the n observations, the likelihood is estimated from these alone, n/m times
    their sum: right in the mean, and what stochastic-gradient samplers take.

    Book: sec-chees
    """

    prior: WeightPrior
    negated: Float[Tensor, "n d"]  # -s φ, one row an observation: the log odds against what was observed

    def __call__(
        self, weights: Float[Tensor, "samples d"], rows: Int[Tensor, " m"] | None = None
    ) -> Float[Tensor, " samples"]:
        """Log prior plus log likelihood."""
        return self.log_prior(weights) + self.log_likelihood(weights, rows)

    def log_prior(self, weights: Float[Tensor, "samples d"]) -> Float[Tensor, " samples"]:
        """Log density of the prior, normalised, in nats."""
        return self.prior.log_prob(weights)

    def log_likelihood(
        self, weights: Float[Tensor, "samples d"], rows: Int[Tensor, " m"] | None = None
    ) -> Float[Tensor, " samples"]:
        """Log probability of the targets, in nats."""
        negated, factor = self._data(rows)
        return -factor * F.softplus(weights @ negated.mT).sum(-1)

    def value_and_grad(
        self, weights: Float[Tensor, "samples d"], rows: Int[Tensor, " m"] | None = None
    ) -> tuple[Float[Tensor, " samples"], Float[Tensor, "samples d"]]:
        """The log posterior and its gradient in the weights."""
        negated, factor = self._data(rows)
        log_odds = weights.detach() @ negated.mT
        value = self.log_prior(weights.detach()) - factor * F.softplus(log_odds).sum(-1)
        return value, self._grad(weights.detach(), log_odds, negated, factor)

    def grad(
        self, weights: Float[Tensor, "samples d"], rows: Int[Tensor, " m"] | None = None
    ) -> Float[Tensor, "samples d"]:
        """The gradient alone, for the steps of a trajectory that need no value."""
        negated, factor = self._data(rows)
        return self._grad(weights.detach(), weights.detach() @ negated.mT, negated, factor)

    def _grad(self, weights, log_odds, negated, factor):
        # In place: each observation pulls with the probability of its opposite.
        return torch.addmm(weights / -self.prior.std.square(), log_odds.sigmoid_(), negated, alpha=-factor)

    def _data(self, rows):
        if rows is None:
            return self.negated, 1.0
        return self.negated[rows], len(self.negated) / len(rows)


def logistic_posterior(
    features: Float[Tensor, "n d"], targets: Num[Tensor, " n"], *, prior_std: float | Float[Tensor, " d"]
) -> LogisticPosterior:
    r"""The log posterior of logistic regression, for any sampler that takes a ``log_prob``.

    .. math:: \log p(\theta \mid y) = -\sum_j \frac{\theta_j^2}{2 s_j^2} - \sum_i \log(1 + e^{-s_i \phi_i^\top \theta})
              + \text{const}, \qquad
              \nabla = -\frac{\theta}{s^2} + \sum_i \sigma(-s_i \phi_i^\top \theta) \, s_i \phi_i

    Args:
        features: φ, one row an observation, at least one; a column of ones makes an intercept.
        targets: y, 0 or 1, one a row.
        prior_std: s > 0, standard deviation of the weights: of all, or of each.

    Returns:
        A :class:`LogisticPosterior`: call it as ``log_prob(weights)`` or, on a minibatch, ``log_prob(weights, rows)``;
        ``log_prior``, ``log_likelihood``, ``value_and_grad`` and ``grad`` go with it.

    Raises:
        ValueError: if the shapes do not match, a feature is not finite, a target is neither 0 nor 1, or ``prior_std``
            is not positive and finite.

    Source: Bishop (2006), Pattern Recognition and Machine Learning, section 4.3.2.
    Book: sec-chees
    """
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be [n >= 1, d >= 1], got shape {tuple(features.shape)}")
    if targets.shape != features.shape[:1]:
        raise ValueError(f"targets must be [{len(features)}], one a row of features, got shape {tuple(targets.shape)}")
    require(features.isfinite(), "features must be finite", features)
    require((targets == 0) | (targets == 1), "targets must be 0 or 1", targets)
    std = torch.as_tensor(prior_std, dtype=features.dtype, device=features.device)
    require((std > 0) & (std < inf), "prior_std must be positive and finite", std)
    if std.ndim and std.shape != features.shape[1:]:
        raise ValueError(f"prior_std must be one number or [{features.shape[1]}], got shape {tuple(std.shape)}")
    signs = 1 - 2 * targets.to(features)
    return LogisticPosterior(WeightPrior(std.expand(features.shape[1]).clone()), signs[:, None] * features)
