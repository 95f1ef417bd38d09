r"""From the prior to the posterior in small steps: annealed importance sampling, sequential Monte Carlo, and
thermodynamic integration, which all walk the same path.

The path is :math:`p_t(\theta) \propto p(\theta)\, p(x \mid \theta)^t`: the prior at temperature t = 0, the posterior at
t = 1. All particles are moved as one batch.

Chapter: book/03-evidence.ipynb
"""

from math import inf, log, nan
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.evidence.densities import draw, log_density
from bdl_lib.evidence.moves import LogProb, Move, gaussian_move
from bdl_lib.evidence.results import (
    LogEvidence,
    Particles,
    Watch,
    check_some_weight,
    from_log_weights,
    log_mean,
)

__all__ = [
    "annealed_importance_sampling",
    "conditional_ess",
    "next_temperature",
    "sequential_monte_carlo",
    "thermodynamic_integration",
]

_NUM_BISECTIONS = 60


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
    settings = _Settings(num_particles, None, target_cess, move, max_moves, max_correlation, progress)
    path = _anneal(prior, log_likelihood, settings, generator)
    counts = {"num_evaluations": path.watched.num_evaluations, "num_excluded": path.watched.num_excluded}
    result = from_log_weights("log_likelihood", path.particles.log_weights, **counts)
    return result._replace(particles=path.particles)


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
        The estimate; its ``particles`` are draws from the posterior, equally weighted. A NaN likelihood counts as
        impossible and is reported. The host waits for the device once a temperature and once a move.

    Raises:
        ValueError: if a setting is out of range, the prior is not proper, or the likelihood is zero or NaN at every
            draw from it, infinite at one, or of the wrong shape.

    Source: Del Moral, Doucet and Jasra (2006), doi:10.1111/j.1467-9868.2006.00553.x; adaptive temperatures: Zhou,
        Johansen and Aston (2016), doi:10.1080/10618600.2015.1060885.
    Book: sec-smc
    """
    settings = _Settings(num_particles, num_groups, target_cess, move, max_moves, max_correlation, progress)
    path = _anneal(prior, log_likelihood, settings, generator)
    value, std_error = log_mean(path.group_log_evidence)
    return _of_groups(value, std_error, path)


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

    Raises:
        ValueError: as :func:`sequential_monte_carlo`; also if the likelihood is zero or NaN at a draw from the prior,
            since then the curve starts at −∞.

    Source: Friel and Pettitt (2008), doi:10.1111/j.1467-9868.2007.00650.x; the correction: Friel, Hurn and Wyse (2014),
        doi:10.1007/s11222-013-9397-1.
    Book: sec-thermodynamic
    """
    settings = _Settings(num_particles, num_groups, target_cess, move, max_moves, max_correlation, progress)
    path = _anneal(prior, log_likelihood, settings, generator)
    if not path.mean_log_likelihood.isfinite().all():
        raise ValueError("log_likelihood must be finite at every draw from the prior, is -inf or NaN at some")
    step = torch.cat([path.particles.temperature.new_zeros(1), path.particles.temperature]).diff()[:, None]
    mean, var = path.mean_log_likelihood, path.var_log_likelihood
    areas = (step * (mean[1:] + mean[:-1]) / 2 - step.square() / 12 * var.diff(dim=0)).sum(0)
    return _of_groups(areas.mean(), areas.std() / len(areas) ** 0.5, path)


def conditional_ess(
    step: float | Float[Tensor, ""], log_likelihood: Float[Tensor, " n"], log_weights: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    r"""How evenly one more step would weight the particles, as a share of their number.

    .. math:: \frac{\big(\sum_i W_i u_i\big)^2}{\sum_i W_i u_i^2}, \qquad u_i = p(x \mid \theta_i)^{\Delta}

    Args:
        step: Δ ≥ 0, change of temperature.
        log_likelihood: log p(x | θ_i) in nats, finite.
        log_weights: log W_i, weights before the step, normalised.

    Returns:
        Between 0 and 1; 1 for Δ = 0.

    Source: Zhou, Johansen and Aston (2016), doi:10.1080/10618600.2015.1060885.
    Book: sec-annealing
    """
    log_first = (log_weights + step * log_likelihood).logsumexp(0)
    return (2 * log_first - (log_weights + 2 * step * log_likelihood).logsumexp(0)).exp()


def next_temperature(
    temperature: float, log_likelihood: Float[Tensor, " n"], log_weights: Float[Tensor, " n"], *, target_cess: float
) -> tuple[float, Float[Tensor, ""]]:
    r"""The temperature at which the conditional effective sample size falls to its target, by bisection.

    Args:
        temperature: now, from 0 to below 1.
        log_likelihood: in nats; particles at −∞ are set apart: no step, however small, would keep them.
        log_weights: before the step, in nats, up to a constant.
        target_cess: between 0 and 1.

    Returns:
        The next temperature, 1 if that is reached first, and the conditional effective sample size of that step.

    Raises:
        ValueError: if no step is small enough, which takes log likelihoods that differ by 10¹⁵ or more.

    Source: Zhou, Johansen and Aston (2016), doi:10.1080/10618600.2015.1060885.
    Book: sec-annealing
    """
    is_possible = log_likelihood > -inf
    log_likelihood = torch.where(is_possible, log_likelihood, 0.0)
    log_weights = torch.where(is_possible, log_weights, -inf)
    log_weights = log_weights - log_weights.logsumexp(0)
    low, high = log_likelihood.new_zeros(()), log_likelihood.new_full((), 1 - temperature)
    is_last = conditional_ess(high, log_likelihood, log_weights) >= target_cess
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        is_small_enough = conditional_ess(middle, log_likelihood, log_weights) >= target_cess
        low, high = torch.where(is_small_enough, middle, low), torch.where(is_small_enough, high, middle)
    low = torch.where(is_last, 1 - temperature, low)
    cess = conditional_ess(low, log_likelihood, log_weights)
    step = low.item()
    following = 1.0 if is_last else temperature + step
    if not following > temperature:
        spread = (log_likelihood.max() - log_likelihood.min()).item()
        raise ValueError(f"log_likelihood must differ less between particles to be annealed, spreads over {spread:.1e}")
    return following, cess


class _Settings(NamedTuple):
    num_particles: int
    num_groups: int | None  # None: no resampling
    target_cess: float
    move: Move
    max_moves: int
    max_correlation: float
    progress: bool


class _Path(NamedTuple):
    particles: Particles
    group_log_evidence: Float[Tensor, " groups"]
    mean_log_likelihood: Float[Tensor, "steps+1 groups"]
    var_log_likelihood: Float[Tensor, "steps+1 groups"]
    watched: Watch


def _anneal(prior, log_likelihood: LogProb, settings: _Settings, generator: torch.Generator) -> _Path:
    """Walk the path once, with resampling within groups or without."""
    _check(settings)
    from tqdm import tqdm

    watched = Watch("log_likelihood", log_likelihood)
    position = draw(prior, settings.num_particles, generator=generator)
    log_like = watched(position)
    check_some_weight("log_likelihood", log_like)
    num_groups = settings.num_groups or 1
    log_weights, group_log_evidence = torch.zeros_like(log_like), log_like.new_zeros(num_groups)
    temperature, steps, moments = 0.0, [], [_group_moments(log_like, num_groups)]
    with tqdm(total=1.0, disable=not settings.progress, desc="annealing", bar_format="{l_bar}{bar}| {elapsed}") as bar:
        while temperature < 1:
            before = temperature
            temperature, cess = next_temperature(before, log_like, log_weights, target_cess=settings.target_cess)
            log_weights = log_weights + (temperature - before) * log_like
            if settings.num_groups is not None:
                position, log_evidence = _resample(position, log_weights.view(num_groups, -1), generator)
                group_log_evidence, log_weights = group_log_evidence + log_evidence, torch.zeros_like(log_weights)
            tempered = _tempered(prior, watched, temperature)
            position, num_moves, acceptance_rate = _spread(tempered, position, settings, generator)
            log_like = watched(position)
            steps.append((log_like.new_tensor(temperature), cess, num_moves, acceptance_rate))
            moments.append(_group_moments(log_like, num_groups))
            bar.update(temperature - before)
    record = (torch.stack(column) for column in zip(*steps, strict=True))
    mean, var = (torch.stack(column) for column in zip(*moments, strict=True))
    return _Path(Particles(position, log_weights, *record), group_log_evidence, mean, var, watched)


def _resample(position: Tensor, log_weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Systematic resampling within each group, and log of each group's mean weight."""
    num_groups, size = log_weights.shape
    log_total = log_weights.logsumexp(1, keepdim=True)
    cumulative = (log_weights - log_total).exp().cumsum(1)
    like = dict(dtype=log_weights.dtype, device=log_weights.device)
    offset = torch.rand(num_groups, 1, generator=generator, **like)
    comb = (torch.arange(size, **like) + offset) / size
    parent = torch.searchsorted(cumulative, comb).clamp(max=size - 1)
    parent = parent + size * torch.arange(num_groups, device=position.device)[:, None]
    return position[parent.flatten()], log_total.squeeze(1) - log(size)


def _tempered(prior, log_likelihood: LogProb, temperature: float) -> LogProb:
    """Log density of one step of the path, up to a constant. Impossible is impossible at every temperature."""
    return lambda position: log_density(prior, position) + temperature * log_likelihood(position)


def _spread(log_prob: LogProb, start: Tensor, settings: _Settings, generator: torch.Generator):
    """Move all particles until they have forgotten where they were: positions, number of moves, acceptance rate."""
    kernel = settings.move(log_prob, start)
    state, num_moves, correlation = kernel.init(start), 0, inf
    while num_moves < settings.max_moves and correlation >= settings.max_correlation:
        state, info = kernel.step(state, generator)
        num_moves, correlation = num_moves + 1, _correlation(start, state.position)
    acceptance_rate = getattr(info, "acceptance_rate", start.new_tensor(nan)).mean()
    return state.position, start.new_tensor(num_moves), acceptance_rate


def _correlation(before: Tensor, after: Tensor) -> Tensor:
    """Root mean square, over the coordinates, of the correlation between two sets of positions."""
    before, after = before - before.mean(0), after - after.mean(0)
    scale = (before.square().sum(0) * after.square().sum(0)).sqrt()
    return ((before * after).sum(0) / scale).square().mean().sqrt()


def _group_moments(log_likelihood: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    groups = log_likelihood.view(num_groups, -1)
    return groups.mean(1), groups.var(1)


def _of_groups(value: Tensor, std_error: Tensor, path: _Path) -> LogEvidence:
    watched = path.watched
    return LogEvidence(value, std_error, watched.num_evaluations, watched.num_excluded, particles=path.particles)


def _check(settings: _Settings) -> None:
    num_particles, num_groups = settings.num_particles, settings.num_groups
    if not num_particles >= 4:
        raise ValueError(f"num_particles must be at least 4, got {num_particles}")
    if num_groups is not None and not (num_groups >= 2 and num_groups % 2 == 0 and num_particles % num_groups == 0):
        raise ValueError(f"num_groups must be even and divide {num_particles} particles, got {num_groups}")
    if num_groups is not None and not num_particles >= 2 * num_groups:
        raise ValueError(f"num_groups must leave at least 2 of {num_particles} particles a group, got {num_groups}")
    if not 0 < settings.target_cess < 1:
        raise ValueError(f"target_cess must be between 0 and 1, got {settings.target_cess}")
    if not settings.max_moves >= 1:
        raise ValueError(f"max_moves must be at least 1, got {settings.max_moves}")
    if not settings.max_correlation > 0:
        raise ValueError(f"max_correlation must be positive, got {settings.max_correlation}")
