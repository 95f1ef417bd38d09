r"""The path from the prior to the posterior.

Three estimators walk it: annealed importance sampling, sequential Monte Carlo and thermodynamic integration.
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
from bdl_lib.evidence.moves import LogProb, Move
from bdl_lib.evidence.results import LogEvidence, Particles, Watch, check_some_weight, warn_unreliable

__all__ = ["conditional_ess", "next_temperature"]

NUM_BISECTIONS = 60
STUCK_CORRELATION = 0.5  # above it, moves have not parted the copies that resampling made


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
    for _ in range(NUM_BISECTIONS):
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


class PathSettings(NamedTuple):
    """How the path is walked; the estimators' docstrings say what each means."""

    num_particles: int
    num_groups: int | None  # None: no resampling
    target_cess: float
    move: Move
    max_moves: int
    max_correlation: float
    progress: bool


class Path(NamedTuple):
    """What the walk leaves behind: the first row of each table of moments belongs to the prior."""

    particles: Particles
    group_log_evidence: Float[Tensor, " groups"]
    mean_log_likelihood: Float[Tensor, "steps+1 groups"]
    var_log_likelihood: Float[Tensor, "steps+1 groups"]
    watched: Watch


def walk(prior, log_likelihood: LogProb, settings: PathSettings, generator: torch.Generator) -> Path:
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
            position, *how = _spread(tempered, position, settings, generator)
            log_like = watched(position)
            steps.append((log_like.new_tensor(temperature), cess, *how))
            moments.append(_group_moments(log_like, num_groups))
            bar.update(temperature - before)
    record = (torch.stack(column) for column in zip(*steps, strict=True))
    mean, var = (torch.stack(column) for column in zip(*moments, strict=True))
    particles = Particles(position, log_weights, *record)
    if settings.num_groups is not None and (stuck := particles.correlation.max()) > STUCK_CORRELATION:
        moves = f"after {settings.max_moves} moves particles still correlate by {stuck:.2f} with where they were"
        warn_unreliable(f"{moves}: allow more of them, take more particles or another move")
    return Path(particles, group_log_evidence, mean, var, watched)


def from_groups(value: Tensor, std_error: Tensor, path: Path) -> LogEvidence:
    """A result whose standard error is the scatter of the groups."""
    watched = path.watched
    return LogEvidence(value, std_error, watched.num_evaluations, watched.num_excluded, particles=path.particles)


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


def _spread(log_prob: LogProb, start: Tensor, settings: PathSettings, generator: torch.Generator):
    """Move all particles until they have forgotten where they were: positions, and how it went."""
    kernel = settings.move(log_prob, start)
    state, num_moves, correlation = kernel.init(start), 0, inf
    while num_moves < settings.max_moves and correlation >= settings.max_correlation:
        state, info = kernel.step(state, generator)
        num_moves, correlation = num_moves + 1, _correlation(start, state.position)
    acceptance_rate = getattr(info, "acceptance_rate", start.new_tensor(nan)).mean()
    return state.position, start.new_tensor(num_moves), acceptance_rate, correlation


def _correlation(before: Tensor, after: Tensor) -> Tensor:
    """Root mean square, over the coordinates, of the correlation between two sets of positions."""
    before, after = before - before.mean(0), after - after.mean(0)
    scale = (before.square().sum(0) * after.square().sum(0)).sqrt()
    return ((before * after).sum(0) / scale).square().mean().sqrt()


def _group_moments(log_likelihood: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    groups = log_likelihood.view(num_groups, -1)
    return groups.mean(1), groups.var(1)


def _check(settings: PathSettings) -> None:
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
