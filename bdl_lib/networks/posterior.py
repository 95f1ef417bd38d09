r"""Prior, likelihood and data as one function of the weights: :math:`\log p(\theta \mid \mathcal{D})` up to a constant.

.. math:: \log p(\theta \mid \mathcal{D}) = \log p(\theta) + \sum_{i=1}^n \log p(y_i \mid f(\theta, x_i)) + \text{const}

Chapter: book/02-networks.ipynb
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from bdl_lib.networks.functional import Network
from bdl_lib.networks.likelihoods import Likelihood

__all__ = ["GaussianPrior", "LogPosterior", "draw_rows", "gaussian_prior", "log_posterior"]


class GaussianPrior(NamedTuple):
    r"""Independent zero-mean Gaussians over the weights, :math:`\theta_j \sim N(0, s_j^2)`.

    Book: sec-log-posterior
    """

    std: Float[Tensor, " dim"]

    def log_prob(self, weights: Float[Tensor, "samples dim"]) -> Float[Tensor, " samples"]:
        """Log density of each weight vector, normalised, in nats."""
        constant = self.std.log().sum() + 0.5 * len(self.std) * math.log(2 * math.pi)
        return weights.square() @ (-0.5 / self.std.square()) - constant

    def sample(self, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples dim"]:
        """Draws from the prior, in the dtype and on the device of ``std``."""
        like = {"generator": generator, "dtype": self.std.dtype, "device": self.std.device}
        return self.std * torch.randn(num_samples, len(self.std), **like)


def gaussian_prior(
    network: Network,
    *,
    prior_std: float | Mapping[str, float],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> GaussianPrior:
    r"""A Gaussian prior with one scale for all weights, or one for each layer.

    .. math:: \log p(\theta) = -\sum_j \left( \frac{\theta_j^2}{2 s_j^2} + \log s_j + \tfrac12 \log 2\pi \right)

    Args:
        network: whose weights.
        prior_std: s > 0, a standard deviation: a number, or a mapping in which every weight finds its full name
            ("0.weight") or else its layer ("0", for weight and bias alike).
        dtype: of the prior, PyTorch's default dtype if not given.
        device: of the prior, PyTorch's default device if not given.

    Returns:
        A :class:`GaussianPrior`, which has ``log_prob`` and ``sample``.

    Raises:
        ValueError: if a scale is not positive and finite, a weight has none, or a key names no weight.

    Book: sec-log-posterior
    """
    names = network.weight_shapes
    if not isinstance(prior_std, Mapping):
        prior_std = dict.fromkeys(names, prior_std)
    keys = {name: name if name in prior_std else name.rpartition(".")[0] for name in names}
    if not prior_std.keys() >= set(keys.values()) or not prior_std.keys() <= {*names, *keys.values()}:
        raise ValueError(f"prior_std must have a scale for each of {list(names)}, got keys {list(prior_std)}")
    for key, std in prior_std.items():
        if not 0 < std < math.inf:
            raise ValueError(f"prior_std must be positive and finite, got {std} for {key!r}")
    like = {"dtype": dtype, "device": device}
    return GaussianPrior(torch.cat([torch.full((names[n].numel(),), prior_std[keys[n]], **like) for n in names]))


class LogPosterior(NamedTuple):
    """A log posterior, called as ``log_prob(weights)``: [samples, dim] to [samples], nats, up to log p(data).

    Book: sec-log-posterior
    """

    network: Network
    prior: GaussianPrior
    likelihood: Likelihood
    inputs: Float[Tensor, "n *features"]
    targets: Num[Tensor, " n"]

    def __call__(
        self, weights: Float[Tensor, "samples dim"], rows: Int[Tensor, " m"] | None = None
    ) -> Float[Tensor, " samples"]:
        """Log prior plus log likelihood; with ``rows``, an unbiased estimate from those rows alone."""
        return self.log_prior(weights) + self.log_likelihood(weights, rows)

    def log_prior(self, weights: Float[Tensor, "samples dim"]) -> Float[Tensor, " samples"]:
        """Log density of the prior, normalised, in nats."""
        return self.prior.log_prob(weights)

    def log_likelihood(
        self, weights: Float[Tensor, "samples dim"], rows: Int[Tensor, " m"] | None = None
    ) -> Float[Tensor, " samples"]:
        """Sum over all n rows; or n/m times the sum over the m of ``rows``, whose expectation it is."""
        inputs, targets, factor = self._data(rows)
        return factor * self.likelihood.log_prob(self.network.apply(weights, inputs), targets).sum(-1)

    def value_and_grad(
        self, weights: Float[Tensor, "samples dim"], rows: Int[Tensor, " m"] | None = None
    ) -> tuple[Float[Tensor, " samples"], Float[Tensor, "samples dim"]]:
        """The log posterior and its gradient in the weights, in closed form where network and likelihood have one."""
        weights = weights.detach()
        inputs, targets, factor = self._data(rows)
        outputs, pullback = self.network.vjp(weights, inputs)
        log_likelihood, score = self.likelihood.log_prob_and_score(outputs, targets)
        value = self.log_prior(weights) + factor * log_likelihood.sum(-1)
        return value, factor * pullback(score) - weights / self.prior.std.square()

    def grad(
        self, weights: Float[Tensor, "samples dim"], rows: Int[Tensor, " m"] | None = None
    ) -> Float[Tensor, "samples dim"]:
        """The gradient alone, for the steps of a trajectory that need no value."""
        return self.value_and_grad(weights, rows)[1]

    def _data(self, rows):
        if rows is None:
            return self.inputs, self.targets, 1.0
        return self.inputs[rows], self.targets[rows], len(self.targets) / len(rows)


def log_posterior(
    network: Network,
    prior: GaussianPrior,
    likelihood: Likelihood,
    inputs: Float[Tensor, "n *features"],
    targets: Num[Tensor, " n"],
) -> LogPosterior:
    r"""The log posterior of a network's weights, ready for any optimiser or sampler that takes a ``log_prob``.

    .. math:: \log p(\theta \mid \mathcal{D}) = \log p(\theta) + \sum_{i=1}^n \log p(y_i \mid f(\theta, x_i))
              - \log p(\mathcal{D})

    with the last term left out: it has no θ in it. On a minibatch B of m rows the sum is estimated by
    :math:`\frac{n}{m} \sum_{i \in B}`, whose expectation over uniformly drawn rows is the full sum.

    Args:
        network: f.
        prior: p(θ), over as many weights as the network has.
        likelihood: p(y | f).
        inputs: x, finite.
        targets: y, one a row; floating point for the Gaussian likelihoods, labels for the others.

    Returns:
        A :class:`LogPosterior`: call it as ``log_prob(weights)`` or, on a minibatch, ``log_prob(weights, rows)``;
        ``log_prior``, ``log_likelihood`` and ``value_and_grad`` take the same arguments.

    Raises:
        ValueError: if inputs or targets are empty, not finite, of unequal length or of unequal precision, a label is
            out of range, a class is empty, the prior is for another number of weights or in another precision, or the
            network has not the outputs that the likelihood needs.

    Book: sec-log-posterior
    """
    if len(inputs) < 1 or not inputs.isfinite().all():
        raise ValueError(f"inputs must be finite and have at least one row, got {_describe(inputs)}")
    if targets.shape != inputs.shape[:1]:
        raise ValueError(f"targets must have shape [{len(inputs)}], one a row of inputs, got {list(targets.shape)}")
    likelihood.check_targets(targets)
    if prior.std.shape != (network.dim,) or prior.std.dtype != inputs.dtype:
        got = f"{list(prior.std.shape)}, {prior.std.dtype}"
        raise ValueError(f"prior must be over {network.dim} weights, in the inputs' {inputs.dtype}, got {got}")
    if likelihood.class_prob is None and targets.dtype != inputs.dtype:
        raise ValueError(f"targets must have the inputs' dtype, {inputs.dtype}, got {targets.dtype}")
    with torch.no_grad():
        outputs = network.apply(prior.std[None], inputs[:1])
    if outputs.shape != (1, 1, likelihood.num_outputs):
        expected = f"{likelihood.num_outputs} outputs for the likelihood '{likelihood.description}'"
        raise ValueError(f"network must have {expected}, gave shape {list(outputs.shape)}")
    return LogPosterior(network, prior, likelihood, inputs, targets)


def draw_rows(num_rows: int, batch_size: int, *, generator: torch.Generator) -> Int[Tensor, " batch_size"]:
    r"""The rows of one minibatch, drawn uniformly without replacement.

    Args:
        num_rows: n, how many there are.
        batch_size: m, from 1 to n.
        generator: the only source of randomness; its device is the result's device.

    Returns:
        m different row numbers from 0 to n - 1.

    Raises:
        ValueError: if ``batch_size`` is not from 1 to ``num_rows``.

    Book: sec-log-posterior
    """
    if not 1 <= batch_size <= num_rows:
        raise ValueError(f"batch_size must be from 1 to the number of rows, {num_rows}, got {batch_size}")
    return torch.randperm(num_rows, generator=generator, device=generator.device)[:batch_size]


def _describe(inputs):
    return f"shape {list(inputs.shape)} with {int((~inputs.isfinite()).sum())} non-finite values"
