r"""The No-U-Turn sampler: trajectories that stop of themselves, the reference for all others here.

A trajectory grows by doubling, forwards or backwards in time, until it turns back on itself; the next position is
drawn from all its points by weight. Written as a loop, for many chains at once: every chain makes the same leapfrog
steps, and one that has turned waits for the others. ``chees`` does not make them wait.

Chapter: book/04-mcmc.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bdl_lib.evidence import Kernel, LogProb
from bdl_lib.mcmc._checks import check_at_least, check_positive
from bdl_lib.mcmc.adaptation import warm_up
from bdl_lib.mcmc.density import Density, differentiable, initial_value_and_grad
from bdl_lib.mcmc.hmc import DIVERGENCE_THRESHOLD, HmcState, Metric, PhasePoint, gaussian_momentum
from bdl_lib.mcmc.run import Draws, collect

__all__ = ["NutsInfo", "nuts", "sample_nuts"]


class NutsInfo(NamedTuple):
    """What a reader wants to see of one step.

    Book: sec-nuts
    """

    acceptance_rate: Float[Tensor, " chains"]  # mean over the trajectory, 0 to 1
    is_divergent: Bool[Tensor, " chains"]  # energy error above 1000 nats, or not a number, somewhere on it
    num_leapfrog_steps: Int[Tensor, " chains"]  # that the chain made until its own end
    tree_depth: Int[Tensor, " chains"]  # how often its trajectory was doubled
    energy: Float[Tensor, " chains"]  # H after the step, nats
    log_prob: Float[Tensor, " chains"]  # nats, after the step


class Tree(NamedTuple):
    """A stretch of a trajectory: what was drawn from it, how much it weighs, and whether it must end."""

    proposal: PhasePoint
    log_weight: Tensor  # [chains], of all its points: log of the sum of exp(H at the start - H)
    momentum_sum: Tensor  # [chains, dim]
    acceptance_sum: Tensor  # [chains]
    num_points: Tensor  # [chains]
    is_turning: Tensor  # [chains]
    is_divergent: Tensor  # [chains]


def nuts(
    log_prob: LogProb,
    *,
    step_size: float,
    inverse_mass_matrix: Float[Tensor, " dim"] | Float[Tensor, "dim dim"] | None = None,
    max_tree_depth: int = 10,
) -> Kernel:
    r"""The No-U-Turn sampler with multinomial sampling along the trajectory.

    A point z weighs :math:`e^{-H(z)}`. A trajectory from z⁻ to z⁺ turns, and ends, when

    .. math:: \rho^\top M^{-1} p^- \le 0 \quad \text{or} \quad \rho^\top M^{-1} p^+ \le 0,
              \qquad \rho = \sum_z p_z

    for it or for one of the balanced halves, quarters, … that it was doubled from.

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant; see :func:`differentiable`.
        step_size: ε > 0, in units of time.
        inverse_mass_matrix: M⁻¹, as for :func:`hmc`.
        max_tree_depth: doublings at most, at least 1: a trajectory has up to 2^depth - 1 steps.

    Returns:
        A kernel. After each doubling, and a few times within a long one, the host asks whether any chain goes on.
        Until then all chains step together.

    Raises:
        ValueError: if ``step_size`` is not positive and finite, ``max_tree_depth`` is below 1 or the matrix not
            positive definite; from ``init``, if the start is not finite.

    Source: Hoffman and Gelman (2014), arXiv:1111.4246; Betancourt (2017), appendix A.4, arXiv:1701.02434; the loop of
        Phan, Pradhan and Jankowiak (2019), arXiv:1912.11554.
    Book: sec-nuts
    """
    check_positive("step_size", step_size)
    check_at_least("max_tree_depth", max_tree_depth, 1)
    density, metric = differentiable(log_prob), gaussian_momentum(inverse_mass_matrix)

    @torch.no_grad()
    def step(state, generator):
        return nuts_transition(density, metric, state, generator, step_size, max_tree_depth)

    return Kernel(lambda position: HmcState(position, *initial_value_and_grad(density, position)), step)


def sample_nuts(
    log_prob: LogProb,
    initial_position: Float[Tensor, "chains dim"],
    *,
    num_warmup: int,
    num_samples: int,
    generator: torch.Generator,
    progress: bool = False,
    target_acceptance_rate: float = 0.8,
    mass_matrix: str = "diagonal",
    max_tree_depth: int = 10,
) -> Draws:
    r"""Draw with the No-U-Turn sampler, its step size and mass matrix learnt in warm-up from all chains.

    Args:
        log_prob: log π for a batch of chains, in nats, up to a constant; see :func:`differentiable`.
        initial_position: where the chains start.
        num_warmup: steps to learn from, not kept, at least 1.
        num_samples: draws to keep of each chain, at least 1.
        generator: the source of randomness, on the device of the position.
        progress: whether to show a bar.
        target_acceptance_rate: between 0 and 1.
        mass_matrix: "diagonal", "dense" or "auto"; see :func:`pooled_inverse_mass_matrix`.
        max_tree_depth: doublings at most, at least 1.

    Returns:
        :class:`Draws`, with ``settings`` for :func:`nuts`.

    Raises:
        ValueError: if a number is out of its range, the start is not finite (which chains) or ``log_prob`` does not
            give one number a chain.

    Source: Hoffman and Gelman (2014), arXiv:1111.4246.
    Book: sec-nuts
    """
    check_at_least("num_samples", num_samples, 1)
    start = nuts(log_prob, step_size=1.0, max_tree_depth=max_tree_depth).init(initial_position)
    density = differentiable(log_prob)

    def make_move(inverse_mass_matrix):
        metric = gaussian_momentum(inverse_mass_matrix)
        return lambda state, generator, step_size: nuts_transition(
            density, metric, state, generator, step_size, max_tree_depth
        )

    state, step_size, inverse_mass_matrix = warm_up(
        make_move,
        start,
        num_warmup=num_warmup,
        generator=generator,
        target_acceptance_rate=target_acceptance_rate,
        mass_matrix=mass_matrix,
        progress=progress,
    )
    settings = {
        "step_size": step_size,
        "inverse_mass_matrix": inverse_mass_matrix,
        "max_tree_depth": max_tree_depth,
    }
    kernel = nuts(log_prob, **settings)
    draws = collect(kernel, state, num_samples=num_samples, generator=generator, progress=progress)
    return draws._replace(settings=settings)


def nuts_transition(
    density: Density,
    metric: Metric,
    state: HmcState,
    generator: torch.Generator,
    step_size: float,
    max_tree_depth: int,
) -> tuple[HmcState, NutsInfo]:
    """One step of NUTS: double the trajectory until it turns, and draw from it on the way."""
    momentum, kinetic_energy = metric.draw(state.position, generator)
    start = PhasePoint(state.position, momentum, state.log_prob, state.grad)
    start_energy = kinetic_energy - state.log_prob
    tree = _leaf(start, torch.zeros_like(start_energy), start_energy < math.inf)
    tree = tree._replace(acceptance_sum=torch.zeros_like(start_energy), num_points=torch.zeros_like(tree.num_points))
    ends, goes_on, depth = (start, start), torch.ones_like(tree.is_turning), torch.zeros_like(tree.num_points)
    for level in range(max_tree_depth):
        forwards = torch.rand(goes_on.shape, generator=generator, device=goes_on.device) < 0.5
        signed_step = step_size * (2.0 * forwards - 1.0).to(momentum.dtype)[:, None]
        grown, tip = _grow(density, metric, _where(forwards, ends[1], ends[0]), generator, signed_step, level,
                           start_energy, goes_on)  # fmt: skip
        is_kept = goes_on & ~grown.is_turning & ~grown.is_divergent
        # Later points are favoured: the new half is drawn from with its weight over that of the old half.
        is_drawn = is_kept & (_log_uniform(grown.log_weight, generator) < grown.log_weight - tree.log_weight)
        ends = _where(is_kept & ~forwards, tip, ends[0]), _where(is_kept & forwards, tip, ends[1])
        momentum_sum = torch.where(is_kept[:, None], tree.momentum_sum + grown.momentum_sum, tree.momentum_sum)
        depth += goes_on
        tree = Tree(
            proposal=_where(is_drawn, grown.proposal, tree.proposal),
            log_weight=torch.where(is_kept, torch.logaddexp(tree.log_weight, grown.log_weight), tree.log_weight),
            momentum_sum=momentum_sum,
            acceptance_sum=tree.acceptance_sum + grown.acceptance_sum,
            num_points=tree.num_points + grown.num_points,
            is_turning=is_turning(metric, ends[0].momentum, ends[1].momentum, momentum_sum),
            is_divergent=tree.is_divergent | grown.is_divergent,
        )
        goes_on = is_kept & ~tree.is_turning
        if not goes_on.any():
            break
    end = tree.proposal
    info = NutsInfo(
        acceptance_rate=tree.acceptance_sum / tree.num_points,
        is_divergent=tree.is_divergent,
        num_leapfrog_steps=tree.num_points,
        tree_depth=depth,
        energy=_energy(metric, end),
        log_prob=end.log_prob,
    )
    return HmcState(end.position, end.log_prob, end.grad), info


def _grow(density, metric, tip, generator, signed_step, level, start_energy, goes_on):
    """Go on from an end of the trajectory for 2^level steps: the new half as a tree, and its far end.

    Of a balanced subtree the first point is kept, with the sum of momenta up to it, until its last point is there;
    ``level`` slots are enough, and which slot is free is known from the number of the point alone.
    """
    tree, first_momenta, sums_before = None, {}, {}
    for i in range(2**level):
        tip = _one_step(density, metric, tip, signed_step)
        leaf = _leaf(tip, (_energy(metric, tip) - start_energy).nan_to_num(nan=math.inf, neginf=math.inf), goes_on)
        tree = leaf if tree is None else _join(tree, leaf, generator)
        slot = (i // 2).bit_count()
        if i % 2 == 0:
            first_momenta[slot], sums_before[slot] = tip.momentum, tree.momentum_sum - tip.momentum
            continue
        for j in range(slot, slot - _trailing_ones(i), -1):
            turns = is_turning(metric, first_momenta[j], tip.momentum, tree.momentum_sum - sums_before[j])
            tree = tree._replace(is_turning=tree.is_turning | turns)
        goes_on = goes_on & ~tree.is_turning & ~tree.is_divergent
        if (i & (i + 1)) == 0 and not goes_on.any():  # asked when the half has doubled, not at every step
            break
    return tree, tip


def _one_step(density, metric, point, signed_step):
    """One leapfrog step, forwards in some chains and backwards in others."""
    momentum = point.momentum + 0.5 * signed_step * point.grad
    position = point.position + signed_step * metric.velocity(momentum)
    log_prob, grad = density.value_and_grad(position)
    return PhasePoint(position, momentum + 0.5 * signed_step * grad, log_prob, grad)


def _leaf(point, energy_error, counts):
    """A tree of one point. In chains where it does not count, it weighs nothing."""
    nowhere = torch.full_like(energy_error, -math.inf)
    return Tree(
        proposal=point,
        log_weight=torch.where(counts, -energy_error, nowhere),
        momentum_sum=point.momentum,
        acceptance_sum=torch.where(counts, torch.exp(-energy_error.clamp(min=0)), 0.0),
        num_points=counts.long(),
        is_turning=torch.zeros_like(counts),
        is_divergent=counts & (energy_error > DIVERGENCE_THRESHOLD),
    )


def _join(tree, leaf, generator):
    """A tree with one point more; it is the one drawn with the probability of its weight in the whole."""
    log_weight = torch.logaddexp(tree.log_weight, leaf.log_weight)
    is_drawn = _log_uniform(log_weight, generator) < leaf.log_weight - log_weight
    return Tree(
        proposal=_where(is_drawn, leaf.proposal, tree.proposal),
        log_weight=log_weight,
        momentum_sum=tree.momentum_sum + leaf.momentum_sum,
        acceptance_sum=tree.acceptance_sum + leaf.acceptance_sum,
        num_points=tree.num_points + leaf.num_points,
        is_turning=tree.is_turning,
        is_divergent=tree.is_divergent | leaf.is_divergent,
    )


def is_turning(metric: Metric, first: Tensor, last: Tensor, momentum_sum: Tensor) -> Bool[Tensor, " chains"]:
    """Whether a stretch would come nearer its own other end at either end; a NaN turns."""
    velocity = metric.velocity(momentum_sum)
    return ~(((velocity * first).sum(1) > 0) & ((velocity * last).sum(1) > 0))


def _energy(metric, point):
    return 0.5 * (point.momentum * metric.velocity(point.momentum)).sum(1) - point.log_prob


def _where(condition, new, old):
    """The new point in some chains, the old one in the others."""
    pairs = zip(new, old, strict=True)
    return PhasePoint(*(torch.where(condition[:, None] if a.ndim == 2 else condition, a, b) for a, b in pairs))


def _log_uniform(like, generator):
    return -torch.empty_like(like).exponential_(generator=generator)


def _trailing_ones(number):
    return (number ^ (number + 1)).bit_length() - 1
