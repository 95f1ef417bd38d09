r"""What every estimator of the evidence returns, and how weights become an estimate with an error.

Chapter: book/03-evidence.ipynb
"""

import sys
import warnings
from math import inf, log, nan
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.evidence._arviz import import_arviz
from bdl_lib.evidence.moves import LogProb

__all__ = ["LogEvidence", "Particles", "UnreliableEvidence", "pareto_k"]

_EQUAL = 1e-6  # nats: weights as even as that have no tail to look at, only rounding
MAX_PARETO_K = 0.7  # Vehtari et al. (2024): above it, no reasonable number of draws makes the average reliable


class UnreliableEvidence(UserWarning):
    """The estimate shows signs that it is wrong, and its standard error with it.

    Book: sec-importance
    """


class Particles(NamedTuple):
    """Where annealing ended, and how it went: one entry a temperature in the last five fields.

    Book: sec-annealing
    """

    position: Float[Tensor, "particles dim"]  # draws from the posterior, with weights
    log_weights: Float[Tensor, " particles"]  # nats; all zero where the particles were resampled
    temperature: Float[Tensor, " steps"]  # the exponents of the likelihood, ending in 1
    cess: Float[Tensor, " steps"]  # conditional effective sample size of each step, as a share of the particles
    num_moves: Float[Tensor, " steps"]
    acceptance_rate: Float[Tensor, " steps"]  # of the last move; NaN if the move does not say
    correlation: Float[Tensor, " steps"]  # of positions before and after all moves, rms over the coordinates


class LogEvidence(NamedTuple):
    """An estimate of log p(x), with all that speaks for or against it.

    Book: sec-prior-sampling
    """

    value: Float[Tensor, ""]  # nats
    std_error: Float[Tensor, ""]  # Monte Carlo standard error, nats; NaN for a method that draws nothing
    num_evaluations: int  # of the density
    num_excluded: int  # points where the density was NaN: they count as impossible
    ess: Float[Tensor, ""] | None = None  # effective sample size of the weights, of methods that have weights
    pareto_k: float | None = None  # shape of the weights' tail; above 0.7 neither value nor std_error can be trusted
    particles: Particles | None = None  # of annealing


def pareto_k(log_weights: Float[Tensor, " samples"]) -> float:
    r"""How heavy the tail of importance weights is: the shape k of a generalised Pareto distribution, by ArviZ.

    The weights have a finite mean if k < 1 and a finite variance if k < ½; up to about 0.7 their average is still of
    use.

    Args:
        log_weights: in nats, up to a constant; −∞ is left out. At least 5 finite ones.

    Returns:
        k; −∞ for weights that are all equal, to within a millionth. The weights go to the host, where ArviZ computes.

    Raises:
        ValueError: if there are fewer than 5 finite weights.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling, JMLR 25(72).
    Book: sec-importance
    """
    finite = log_weights.detach()[log_weights > -inf].cpu().double()
    if not len(finite) >= 5:
        raise ValueError(f"log_weights must have at least 5 finite entries, got {len(finite)}")
    return smoothed_tail(finite)[1]


def smoothed_tail(log_weights: Float[Tensor, " samples"]) -> tuple[Float[Tensor, " samples"], float]:
    """The weights with their largest ones smoothed, and Pareto-k, by ArviZ on the host: at least 5, all finite.

    Up to the tail the weights stay as they are: ArviZ's normalisation is undone.
    """
    if log_weights.max() - log_weights.min() < _EQUAL:
        return log_weights, -inf
    arviz = import_arviz()
    if hasattr(arviz, "psislw"):
        psislw = arviz.psislw
    else:  # ArviZ 1
        from arviz_stats.base import array_stats

        psislw = array_stats.psislw
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a large k is told by the caller
        smoothed, k = psislw(log_weights.cpu().double().numpy())
    smoothed = torch.as_tensor(smoothed).to(log_weights)
    lowest = log_weights.argmin()  # never in the tail
    return smoothed + (log_weights[lowest] - smoothed[lowest]), float(k)


def from_log_weights(
    name: str, log_weights: Float[Tensor, " samples"], *, num_evaluations: int, num_excluded: int
) -> LogEvidence:
    """Average weights: the estimate, its error by the delta method, ESS and Pareto-k, with a warning if k is large."""
    check_some_weight(name, log_weights)
    value, std_error = log_mean(log_weights)
    log_normalised = log_weights - log_weights.logsumexp(0)
    ess = (-(2 * log_normalised).logsumexp(0)).exp()
    k = pareto_k(log_weights) if (log_weights > -inf).sum() >= 5 else inf
    if not k <= MAX_PARETO_K:
        warn_unreliable(f"Pareto-k of the weights is {k:.2f}, above {MAX_PARETO_K}: a few draws carry the estimate")
    return LogEvidence(value, std_error, num_evaluations, num_excluded, ess, k)


def log_mean(log_weights: Float[Tensor, " n"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    r"""Log of the mean of independent weights, and its standard error std(w) / (√n mean(w)), both in nats."""
    value = log_weights.logsumexp(0) - log(len(log_weights))
    relative = (log_weights - value).exp()
    return value, relative.std() / len(relative) ** 0.5 if len(relative) > 1 else value.new_tensor(nan)


def check_some_weight(name: str, log_weights: Tensor) -> None:
    """Raise ``ValueError`` unless some weight is positive and none infinite."""
    largest = log_weights.max()
    if not -inf < largest < inf:
        rule = f"{name} must be finite at one of the {len(log_weights)} draws at least, and +inf at none"
        raise ValueError(f"{rule}, got a largest value of {largest.item()}")


def warn_unreliable(message: str) -> None:
    """Warn in the name of whoever called the library."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("bdl_lib."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UnreliableEvidence, stacklevel=level)


class Watch:
    """A log density that counts: how often it was asked, and where it said NaN, which it passes on as −∞."""

    def __init__(self, name: str, log_prob: LogProb):
        self.name, self.log_prob = name, log_prob
        self.num_evaluations, self._num_nan = 0, 0

    def __call__(self, position: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
        values = self.log_prob(position)
        if values.shape != position.shape[:1]:
            rule = f"{self.name} must return one number a row, [{len(position)}]"
            raise ValueError(f"{rule}, got shape {list(values.shape)}")
        is_nan = values.isnan()
        self.num_evaluations += len(position)
        self._num_nan = self._num_nan + is_nan.sum()
        return torch.where(is_nan, -inf, values)

    @property
    def num_excluded(self) -> int:
        """How many points were NaN so far."""
        return int(self._num_nan)
