r"""Annealed importance sampling: from the prior to the posterior in small steps, each particle weighted on its way.

Chapter: book/03-evidence.ipynb
"""

import torch

from bdl_lib.evidence.moves import LogProb, Move, gaussian_move
from bdl_lib.evidence.results import LogEvidence, from_log_weights
from bdl_lib.evidence.tempering import PathSettings, walk

__all__ = ["annealed_importance_sampling"]


def annealed_importance_sampling(
    prior,
    log_likelihood: LogProb,
    *,
    num_particles: int = 1024,
    generator: torch.Generator,
    target_cess: float = 0.99,
    move: Move = gaussian_move,
    max_moves: int = 10,
    max_correlation: float = 0.5,
    progress: bool = False,
) -> LogEvidence:
    r"""Importance sampling with the path as its proposal: every particle collects a weight on its way.

    .. math:: w_i = \prod_{k=1}^K p(x \mid \theta_{i,k-1})^{\,t_k - t_{k-1}}, \qquad
              p(x) \approx \frac1N \sum_i w_i

    with :math:`\theta_{i,0}` drawn from the prior and :math:`\theta_{i,k}` from a move that leaves
    :math:`p(\theta)\, p(x \mid \theta)^{t_k}` as it is. The weights average to the evidence however badly the moves
    mix; good moves and many temperatures keep their variance small.

    Args:
        prior: proper, over vectors: a ``torch.distributions`` object, or anything with ``log_prob`` and
            ``sample(num_samples, generator=...)``.
        log_likelihood: log p(x | θ) in nats at every row of [particles, dim].
        num_particles: N, even, at least 2 (dim + 2) for the default move.
        generator: the only source of randomness.
        target_cess: the next temperature is the one at which :func:`conditional_ess` is this share of the particles,
            between 0 and 1. Nearer 1: more and smaller steps.
        move: makes a :class:`Kernel` from a log density and the particles' positions; chapter 4 has others.
        max_moves: at most how many moves a temperature, at least 1.
        max_correlation: moving stops when the root mean square, over the coordinates, of the correlation between
            positions before and after is below this.
        progress: True shows a bar.

    Returns:
        The estimate; its ``particles`` are weighted draws from the posterior. Pareto-k of the weights above 0.7 gives
        an :class:`UnreliableEvidence` warning. A NaN likelihood counts as impossible and is reported. The host waits
        for the device once a temperature and once a move.

    Raises:
        ValueError: if a setting is out of range, the prior is not proper, or the likelihood is zero or NaN at every
            draw from it, infinite at one, or of the wrong shape.

    Source: Neal (2001), doi:10.1023/A:1008923215028; adaptive temperatures: Zhou, Johansen and Aston (2016),
        doi:10.1080/10618600.2015.1060885.
    Book: sec-annealing
    """
    settings = PathSettings(num_particles, None, target_cess, move, max_moves, max_correlation, progress)
    path = walk(prior, log_likelihood, settings, generator)
    counts = {"num_evaluations": path.watched.num_evaluations, "num_excluded": path.watched.num_excluded}
    result = from_log_weights("log_likelihood", path.particles.log_weights, **counts)
    return result._replace(particles=path.particles)
