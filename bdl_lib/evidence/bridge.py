r"""Bridge sampling: the evidence from posterior draws that someone else has made.

Chapter: book/03-evidence.ipynb
"""

from math import log

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import MultivariateNormal

from bdl_lib.evidence._arviz import import_arviz
from bdl_lib.evidence.densities import draw
from bdl_lib.evidence.moves import LogProb
from bdl_lib.evidence.results import LogEvidence, Watch, check_some_weight

__all__ = ["bridge_sampling"]

_NUM_BISECTIONS = 60


def bridge_sampling(
    log_joint: LogProb,
    draws: Float[Tensor, "chains draws dim"],
    *,
    generator: torch.Generator,
    num_proposals: int | None = None,
) -> LogEvidence:
    r"""The evidence by comparing posterior draws with draws from a Gaussian fitted to them.

    For any function h, :math:`p(x) = E_g[\tilde p\, h] / E_{p(\theta \mid x)}[g\, h]`, with :math:`\tilde p` the joint
    density and g the Gaussian. The h of least variance weights the two kinds of draws as a classifier between them
    would, with :math:`\sigma(u) = 1 / (1 + e^{-u})` and :math:`l = \log \tilde p - \log g`:

    .. math:: \sum_{j=1}^{n_2} \sigma(l_j - c) = \frac{n_1}{N_1} \sum_{i=1}^{N_1} \sigma(c - l_i), \qquad
              \log p(x) = c - \log \frac{n_2}{n_1}

    where j counts Gaussian draws, i posterior draws, and n₁ is the effective number of the N₁ posterior draws. The
    left side falls with c and the right side rises, so bisection finds it. The Gaussian is fitted to the first half of
    every chain, the second half is compared.

    Args:
        log_joint: log p(x | θ) + log p(θ) in nats at every row of [n, dim].
        draws: from the posterior, in the order in which the chains made them. Independent draws may stand as one
            chain. At least 4 (dim + 2) in all, at least 8 a chain.
        generator: the only source of randomness.
        num_proposals: n₂, at least 2; as many as posterior draws are compared, if not given.

    Returns:
        The estimate, with the standard error of Frühwirth-Schnatter, which counts the autocorrelation of the chains.
        The draws' effective number is ArviZ's, and computed on the host.

    Raises:
        ValueError: if there are too few draws, a draw is not finite, or the joint density is zero or NaN at a draw, +∞
            anywhere, or of the wrong shape.

    Source: Meng and Wong (1996), Statistica Sinica 6, 831-860; Bennett (1976), doi:10.1016/0021-9991(76)90078-4;
        the error: Frühwirth-Schnatter (2004), doi:10.1111/j.1368-423X.2004.00125.x.
    Book: sec-bridge
    """
    _check(draws, num_proposals)
    half = draws.shape[1] // 2
    gaussian = _fit_gaussian(draws[:, :half].flatten(0, 1))
    kept = draws[:, half:].detach()
    watched = Watch("log_joint", log_joint)
    log_ratio = watched(kept.flatten(0, 1)) - gaussian.log_prob(kept.flatten(0, 1))
    if not log_ratio.isfinite().all():
        num_bad = int((~log_ratio.isfinite()).sum())
        raise ValueError(f"log_joint must be finite at every draw, is not at {num_bad} of {len(log_ratio)}")
    proposals = draw(gaussian, num_proposals or len(log_ratio), generator=generator)
    log_ratio_there = watched(proposals) - gaussian.log_prob(proposals)
    check_some_weight("log_joint", log_ratio_there)

    num_effective = _ess(log_ratio.view(kept.shape[:2]))
    balance = _balance(log_ratio, log_ratio_there, num_effective)
    value = balance - log(len(proposals) / num_effective)
    is_posterior = (log_ratio_there - balance).sigmoid()  # how much a Gaussian draw looks like one from the posterior
    is_gaussian = (balance - log_ratio).sigmoid()
    num_effective_terms = _ess(is_gaussian.view(kept.shape[:2]))
    var = _relative_var(is_posterior) / len(proposals) + _relative_var(is_gaussian) / num_effective_terms
    return LogEvidence(value, var.sqrt(), watched.num_evaluations, watched.num_excluded)


def _balance(log_ratio: Tensor, log_ratio_there: Tensor, num_effective: float) -> Tensor:
    """The c at which the two sums are equal."""
    everything = torch.cat([log_ratio, log_ratio_there[log_ratio_there.isfinite()]])
    margin = 50 + abs(log(len(log_ratio_there) / num_effective))  # beyond it one sum has vanished
    low, high = everything.min() - margin, everything.max() + margin
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        left = (log_ratio_there - middle).sigmoid().sum()
        right = num_effective * (middle - log_ratio).sigmoid().mean()
        low, high = torch.where(left > right, middle, low), torch.where(left > right, high, middle)
    return (low + high) / 2


def _relative_var(values: Tensor) -> Tensor:
    return values.var() / values.mean().square()


def _fit_gaussian(rows: Tensor) -> MultivariateNormal:
    cov = rows.mT.cov().reshape(rows.shape[1], -1)
    tiny = 10 * len(cov) * torch.finfo(cov.dtype).eps
    return MultivariateNormal(rows.mean(0), scale_tril=torch.linalg.cholesky(cov + tiny * cov.diagonal().diag()))


def _ess(values: Float[Tensor, "chains draws"]) -> float:
    """Effective number of draws for a mean; all of them, if the values do not vary."""
    if not values.std() > 0:
        return float(values.numel())
    return float(import_arviz().ess(values.detach().cpu().double().numpy(), method="mean"))


def _check(draws: Tensor, num_proposals: int | None) -> None:
    if draws.ndim != 3:
        raise ValueError(f"draws must be [chains, draws, dim], got shape {list(draws.shape)}")
    num_chains, num_draws, dim = draws.shape
    if not (num_draws >= 8 and num_chains * num_draws >= 4 * (dim + 2)):
        rule = f"draws must be at least 8 a chain and {4 * (dim + 2)} in all for {dim} parameters"
        raise ValueError(f"{rule}, got shape {list(draws.shape)}")
    if not draws.isfinite().all():
        raise ValueError(f"draws must be finite, got {draws[~draws.isfinite()][0].item()}")
    if num_proposals is not None and not num_proposals >= 2:
        raise ValueError(f"num_proposals must be at least 2, got {num_proposals}")
