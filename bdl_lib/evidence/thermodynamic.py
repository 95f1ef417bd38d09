r"""Thermodynamic integration: log evidence as the area under the mean log likelihood.

Chapter: book/03-evidence.ipynb
"""

import torch

from bdl_lib.evidence.moves import LogProb, Move, gaussian_move
from bdl_lib.evidence.results import LogEvidence
from bdl_lib.evidence.tempering import PathSettings, from_groups, walk

__all__ = ["thermodynamic_integration"]


def thermodynamic_integration(
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
    r"""The area under the mean log likelihood, from prior to posterior.

    .. math:: \log p(x) = \int_0^1 E_{p_t}[\log p(x \mid \theta)]\, dt \approx \sum_k \Delta_k
              \frac{m_{k-1} + m_k}{2} - \frac{\Delta_k^2}{12} (v_k - v_{k-1}), \qquad \Delta_k = t_k - t_{k-1}

    with m and v the mean and the variance of the log likelihood over the particles at a temperature. The second term
    is the first correction of the trapezium rule: the slope of the curve is the variance.

    Args:
        prior: proper, over vectors: a ``torch.distributions`` object, or anything with ``log_prob`` and
            ``sample(num_samples, generator=...)``.
        log_likelihood: log p(x | θ) in nats at every row of [particles, dim]; finite at every draw from the prior.
        num_particles: as in :func:`sequential_monte_carlo`, which supplies the particles at each temperature.
        generator: the only source of randomness.
        num_groups: as there.
        target_cess: as there; it sets how fine the rule is.
        move: as there.
        max_moves: as there.
        max_correlation: as there.
        progress: True shows a bar.

    Returns:
        The estimate; ``std_error`` is the scatter over groups, and does not know the error of the rule.
        Warns as :func:`sequential_monte_carlo` does.

    Raises:
        ValueError: as :func:`sequential_monte_carlo`; also if the likelihood is zero or NaN at a draw from the prior,
            since then the curve starts at −∞.

    Source: Friel and Pettitt (2008), doi:10.1111/j.1467-9868.2007.00650.x; the correction: Friel, Hurn and Wyse (2014),
        doi:10.1007/s11222-013-9397-1.
    Book: sec-thermodynamic
    """
    settings = PathSettings(num_particles, num_groups, target_cess, move, max_moves, max_correlation, progress)
    path = walk(prior, log_likelihood, settings, generator)
    if not path.mean_log_likelihood.isfinite().all():
        raise ValueError("log_likelihood must be finite at every draw from the prior, is -inf or NaN at some")
    step = torch.cat([path.particles.temperature.new_zeros(1), path.particles.temperature]).diff()[:, None]
    mean, var = path.mean_log_likelihood, path.var_log_likelihood
    areas = (step * (mean[1:] + mean[:-1]) / 2 - step.square() / 12 * var.diff(dim=0)).sum(0)
    return from_groups(areas.mean(), areas.std() / len(areas) ** 0.5, path)
