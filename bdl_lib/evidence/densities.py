"""How the estimators draw from a distribution and evaluate a density, in one way, with one wording for what is wrong.

A distribution is anything with ``log_prob(position)`` and ``sample``: a ``torch.distributions`` object over vectors, or
one whose ``sample`` takes ``generator`` (:class:`bdl_lib.networks.GaussianPrior`).

Chapter: book/03-evidence.ipynb
"""

import inspect
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode

__all__ = ["draw", "log_density"]

_RANDOM = {
    "_sample_dirichlet", "_standard_gamma", "bernoulli", "bernoulli_", "binomial", "cauchy_", "exponential_",
    "geometric_", "log_normal_", "multinomial", "normal", "normal_", "poisson", "rand", "rand_like", "randn",
    "randn_like", "random_", "uniform_",
}  # fmt: skip
_HINT = "wrap independent coordinates in torch.distributions.Independent(..., 1)"


class _WithGenerator(TorchFunctionMode):
    """Inside this context PyTorch's random functions draw from one generator: ``torch.distributions`` takes none."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.generator = generator

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in _RANDOM:
            kwargs = {**(kwargs or {}), "generator": self.generator}
        return function(*args, **(kwargs or {}))


def draw(distribution, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples dim"]:
    r"""Independent draws from a distribution over vectors, from one generator and no global state.

    Args:
        distribution: a ``torch.distributions`` object over vectors, or anything whose ``sample(num_samples,
            generator=...)`` returns [num_samples, dim].
        num_samples: how many, at least 1.
        generator: the only source of randomness.

    Returns:
        One draw a row, without gradients.

    Raises:
        ValueError: if ``num_samples`` is below 1, or the draws are not finite vectors.

    Book: sec-prior-sampling
    """
    if not num_samples >= 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if not (hasattr(distribution, "sample") and hasattr(distribution, "log_prob")):
        raise ValueError(f"a proper distribution must have sample and log_prob, got {distribution!r}")
    with torch.no_grad():
        if "generator" in inspect.signature(distribution.sample).parameters:
            position = distribution.sample(num_samples, generator=generator)
        else:
            with _WithGenerator(generator):
                position = distribution.sample((num_samples,))
    if position.ndim != 2:
        raise ValueError(f"draws must be vectors, [num_samples, dim], got shape {list(position.shape)}; {_HINT}")
    if not position.isfinite().all():
        raise ValueError(f"a proper distribution must have finite draws, got {position[~position.isfinite()][0]}")
    return position


def log_density(distribution, position: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
    """Log density of a distribution; −∞ outside its support, which ``torch.distributions`` refuses to say.

    Args:
        distribution: a ``torch.distributions`` object over vectors, or anything with ``log_prob``.
        position: one point a row.

    Returns:
        Log density at each row, in nats.

    Raises:
        ValueError: if the distribution is one over numbers, not over vectors.

    Book: sec-prior-sampling
    """
    if not isinstance(distribution, Distribution):
        return distribution.log_prob(position)
    is_inside = distribution.support.check(position)
    if is_inside.shape != position.shape[:1]:
        raise ValueError(f"log_prob must return one number a row, got shape {list(is_inside.shape)}; {_HINT}")
    if is_inside.all():
        return distribution.log_prob(position)
    values = position.new_full(position.shape[:1], -inf)
    values[is_inside] = distribution.log_prob(position[is_inside])
    return values
