r"""Sequential Monte Carlo: annealed particles, resampled at every temperature.

Chapter: book/03-evidence.ipynb
"""

import torch

from bdl_lib.evidence.moves import LogProb, Move, gaussian_move
from bdl_lib.evidence.results import LogEvidence, log_mean
from bdl_lib.evidence.tempering import PathSettings, from_groups, walk

__all__ = ["sequential_monte_carlo"]


def sequential_monte_carlo(
    prior,
    log_likelihood: LogProb,
    *,
    num_particles: int = 2048,
    generator: torch.Generator,
    num_groups: int = 16,
    target_cess: float = 0.9,
    move: Move = gaussian_move,
    max_moves: int = 50,
    max_correlation: float = 0.1,
    progress: bool = False,
) -> LogEvidence:
    r"""Annealed particles that are resampled at every temperature: hopeless ones die, good ones multiply.

    .. math:: p(x) = \prod_{k=1}^K \frac{Z_{t_k}}{Z_{t_{k-1}}}, \qquad
              \frac{Z_{t_k}}{Z_{t_{k-1}}} \approx \frac1N \sum_i p(x \mid \theta_{i,k-1})^{\,t_k - t_{k-1}}

    The particles live in groups that never exchange any: temperatures and moves are chosen in common, but every group
    makes an estimate of its own. Their mean is the result, and their scatter its standard error, bad mixing included.

    Args:
        prior: proper, over vectors: a ``torch.distributions`` object, or anything with ``log_prob`` and
            ``sample(num_samples, generator=...)``.
        log_likelihood: log p(x | θ) in nats at every row of [particles, dim].
        num_particles: N, a multiple of ``num_groups``, at least 2 (dim + 2) for the default move.
        generator: the only source of randomness.
        num_groups: G, even, at least 2. The standard error has G - 1 degrees of freedom.
        target_cess: the next temperature is the one at which :func:`conditional_ess` is this share of the particles,
            between 0 and 1. Nearer 1: more and smaller steps.
        move: makes a :class:`Kernel` from a log density and the particles' positions; chapter 4 has others.
        max_moves: at most how many moves a temperature, at least 1.
        max_correlation: moving stops when the root mean square, over the coordinates, of the correlation between
            positions before and after is below this.
        progress: True shows a bar.

    Returns:
        The estimate; its ``particles`` are draws from the posterior, equally weighted. Particles that the moves leave
        near where they were give an :class:`UnreliableEvidence` warning. A NaN likelihood counts as impossible and is
        reported. The host waits for the device once a temperature and once a move.

    Raises:
        ValueError: if a setting is out of range, the prior is not proper, or the likelihood is zero or NaN at every
            draw from it, infinite at one, or of the wrong shape.

    Source: Del Moral, Doucet and Jasra (2006), doi:10.1111/j.1467-9868.2006.00553.x; adaptive temperatures: Zhou,
        Johansen and Aston (2016), doi:10.1080/10618600.2015.1060885.
    Book: sec-smc
    """
    settings = PathSettings(num_particles, num_groups, target_cess, move, max_moves, max_correlation, progress)
    path = walk(prior, log_likelihood, settings, generator)
    value, std_error = log_mean(path.group_log_evidence)
    return from_groups(value, std_error, path)
