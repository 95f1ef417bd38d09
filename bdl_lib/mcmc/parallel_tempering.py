r"""Parallel tempering: copies of the chain at higher temperatures cross the valleys, and hand down what they find.

At the inverse temperature β the density is :math:`\pi^\beta`: the same modes, with shallow valleys between them. Copies
next to each other on a ladder of temperatures offer to trade places. The coldest one, at β = 1, samples π.

Chapter: book/04-mcmc.ipynb
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.evidence import Kernel, LogProb
from bdl_lib.mcmc._checks import check_at_least, check_position
from bdl_lib.mcmc.adaptation import window_ends
from bdl_lib.mcmc.density import Density, differentiable
from bdl_lib.mcmc.run import Draws, collect, show

__all__ = ["TemperingInfo", "TemperingState", "adapt_ladder", "parallel_tempering", "sample_parallel_tempering"]


class TemperingState(NamedTuple):
    """The chains at β = 1, and their copies at every temperature.

    Book: sec-modes
    """

    position: Float[Tensor, "chains dim"]  # at β = 1
    replicas: Any  # state of the local kernel: the copies, coldest first, [temperatures * chains] rows, scaled by √β
    num_rounds: int
    swap_rate_sum: Float[Tensor, " pairs"]  # over the rounds, of the probability that a pair trades

    @property
    def swap_rates(self) -> Float[Tensor, " pairs"]:
        """How often each pair of neighbours on the ladder trades places, coldest pair first; good are 0.2 to 0.8."""
        pairs = torch.arange(len(self.swap_rate_sum), device=self.swap_rate_sum.device)
        num_offers = (self.num_rounds + (pairs + 1) % 2) // 2  # even pairs in rounds 0, 2, ...; odd ones in 1, 3, ...
        return self.swap_rate_sum / num_offers


class TemperingInfo(NamedTuple):
    """What a reader wants to see of one round, of the copies at β = 1 unless said otherwise.

    Book: sec-modes
    """

    acceptance_rate: Float[Tensor, " chains"]  # of the local move
    swap_rate: Float[Tensor, " chains"]  # mean probability of the trades of this round, over the whole ladder
    is_swapped: Bool[Tensor, " chains"]  # has a new position from the copy above
    log_prob: Float[Tensor, " chains"]  # nats, after the round


def parallel_tempering(
    log_prob: LogProb, *, inverse_temperatures: Float[Tensor, " temperatures"], local: Callable[[LogProb], Kernel]
) -> Kernel:
    r"""Local moves at every temperature, then trades between neighbours on the ladder.

    .. math:: P(\text{trade } i, i + 1) = \min\Big\{1,
              \exp\big( (\beta_i - \beta_{i+1}) (\log \pi(\theta_{i+1}) - \log \pi(\theta_i)) \big) \Big\}

    All even pairs offer in one round, all odd pairs in the next: a position that was handed down goes on down, instead
    of the way back that a random choice of pairs would often take. All copies of all chains are one batch.

    A copy at β is wider by about :math:`1/\sqrt\beta`. So that one step size serves them all, the local kernel sees
    :math:`\sqrt\beta\, \theta`.

    Args:
        log_prob: log π for a batch of any number of rows, in nats, up to a constant.
        inverse_temperatures: β, from 1 downwards, positive, at least two.
        local: makes the kernel of the local move from a log density, as ``lambda log_prob: hmc(log_prob,
            step_size=0.5, num_leapfrog_steps=5)``. Its state must have ``position`` and ``log_prob`` (and, if it keeps
            the gradient, ``grad``), its info ``acceptance_rate``.

    Returns:
        A kernel. A round costs one local move of [temperatures * chains] rows; trades need no new density.

    Raises:
        ValueError: if ``inverse_temperatures`` does not fall from 1 to something positive, the local kernel's state has
            no ``log_prob``, or, from ``init``, if the start is not finite.

    Source: Geyer (1991), Markov Chain Monte Carlo Maximum Likelihood; Syed et al. (2022), doi:10.1111/rssb.12464.
    Book: sec-modes
    """
    _check_ladder(inverse_temperatures)
    num_temperatures, density = len(inverse_temperatures), differentiable(log_prob)

    @functools.cache
    def local_kernel(num_chains):
        return local(_Tempered(density, inverse_temperatures.repeat_interleave(num_chains)))

    def init(position):
        check_position(position)
        return _start(local_kernel(len(position)), inverse_temperatures, position.expand(num_temperatures, -1, -1))

    @torch.no_grad()
    def step(state, generator):
        num_chains = len(state.position)
        replicas, info = local_kernel(num_chains).step(state.replicas, generator)
        parity = state.num_rounds % 2
        replicas, rates, is_swapped = _trade(replicas, inverse_temperatures, num_chains, parity, generator)
        swap_rate_sum = state.swap_rate_sum.clone()
        swap_rate_sum[parity::2] += rates.mean(1)
        position, value = replicas.position[:num_chains], replicas.log_prob[:num_chains]
        rate = rates.mean(0) if len(rates) else torch.zeros_like(value)
        seen = TemperingInfo(info.acceptance_rate[:num_chains], rate, is_swapped[0], value)
        return TemperingState(position, replicas, state.num_rounds + 1, swap_rate_sum), seen

    return Kernel(init, step)


def sample_parallel_tempering(
    log_prob: LogProb,
    initial_position: Float[Tensor, "chains dim"],
    *,
    num_warmup: int,
    num_samples: int,
    generator: torch.Generator,
    progress: bool = False,
    local: Callable[[LogProb], Kernel],
    min_inverse_temperature: float,
    num_temperatures: int = 8,
) -> Draws:
    r"""Parallel tempering with a ladder that learns, in warm-up, to be equally hard to climb everywhere.

    It starts with temperatures in constant ratio; at the end of each window of warm-up, :func:`adapt_ladder` moves
    those between the two ends.

    Args:
        log_prob: log π for a batch of any number of rows, in nats, up to a constant.
        initial_position: one start a chain; all copies start there.
        num_warmup: rounds to learn from and throw away, at least 40.
        num_samples: draws to keep of each chain, at least 1.
        generator: on the device of the position.
        progress: whether to show a bar.
        local: makes the kernel of the local move from a log density; see :func:`parallel_tempering`.
        min_inverse_temperature: β of the hottest copy, between 0 and 1: so low that it crosses every valley, and not
            so low that it leaves the region where :math:`\pi^\beta` can be integrated.
        num_temperatures: at least 2. More are better as long as neighbours trade less than about half of the time.

    Returns:
        A :class:`Draws` at β = 1. ``draws.state.swap_rates`` are the rates of trade since warm-up; ``settings`` holds
        the ladder: ``parallel_tempering(log_prob, local=local, **draws.settings)`` is the kernel once more.

    Raises:
        ValueError: if a number is out of range, or the start is not finite.

    Source: Syed et al. (2022), Non-reversible parallel tempering, doi:10.1111/rssb.12464.
    Book: sec-modes
    """
    check_at_least("num_warmup", num_warmup, 40)
    check_at_least("num_samples", num_samples, 1)
    check_at_least("num_temperatures", num_temperatures, 2)
    if not 0 < min_inverse_temperature < 1:
        raise ValueError(f"min_inverse_temperature must be between 0 and 1, got {min_inverse_temperature}")
    like = {"dtype": initial_position.dtype, "device": initial_position.device}
    ladder = torch.linspace(0, math.log(min_inverse_temperature), num_temperatures, **like).exp()
    kernel = parallel_tempering(log_prob, inverse_temperatures=ladder, local=local)
    state, density = kernel.init(initial_position), differentiable(log_prob)
    for i in show(range(1, num_warmup + 1), progress):
        state, _ = kernel.step(state, generator)
        if i in window_ends(num_warmup) or i == num_warmup:
            position = _unscaled(state.replicas.position, ladder, len(initial_position))
            ladder = ladder if i == num_warmup else adapt_ladder(ladder, state.swap_rates)
            tempered = _Tempered(density, ladder.repeat_interleave(len(initial_position)))
            state = _start(local(tempered), ladder, position)
            kernel = parallel_tempering(log_prob, inverse_temperatures=ladder, local=local)
    draws = collect(kernel, state, num_samples=num_samples, generator=generator, progress=progress)
    return draws._replace(settings={"inverse_temperatures": ladder})


def adapt_ladder(
    inverse_temperatures: Float[Tensor, " temperatures"], swap_rates: Float[Tensor, " pairs"]
) -> Float[Tensor, " temperatures"]:
    r"""Move the temperatures so that all neighbours should reject equally often.

    .. math:: \Lambda(\beta_i) = \sum_{j < i} r_j, \qquad
              \Lambda(\beta^*_i) = \frac{i}{n - 1} \Lambda(\beta_{n-1})

    with r the rates of rejection. Λ, the *communication barrier*, measures how hard a stretch of the ladder is to
    climb, however many rungs are on it. Between the rungs, it is taken as linear in log β.

    Args:
        inverse_temperatures: β, from 1 downwards.
        swap_rates: 1 - r of each pair of neighbours, from 0 to 1, coldest first.

    Returns:
        A ladder of as many rungs, with the same ends.

    Raises:
        ValueError: if the ladder does not fall from 1, or there is not one rate a pair from 0 to 1.

    Source: Syed et al. (2022), Non-reversible parallel tempering, doi:10.1111/rssb.12464.
    Book: sec-modes
    """
    _check_ladder(inverse_temperatures)
    num_pairs = len(inverse_temperatures) - 1
    if swap_rates.shape != (num_pairs,) or not ((swap_rates >= 0) & (swap_rates <= 1)).all():
        raise ValueError(f"swap_rates must be {num_pairs} numbers from 0 to 1, got {swap_rates}")
    rejection = (1 - swap_rates).clamp(min=1e-3)  # so that Λ has an inverse
    barrier = torch.cat([torch.zeros_like(rejection[:1]), rejection.cumsum(0)])
    wanted = barrier[-1] * torch.linspace(0, 1, num_pairs + 1, dtype=barrier.dtype, device=barrier.device)[1:-1]
    above = torch.searchsorted(barrier, wanted).clamp(1, num_pairs)
    share = (wanted - barrier[above - 1]) / rejection[above - 1]
    log_beta = inverse_temperatures.log()
    between = torch.lerp(log_beta[above - 1], log_beta[above], share).exp()
    return torch.cat([inverse_temperatures[:1], between, inverse_temperatures[-1:]])


class _Tempered(NamedTuple):
    """The log density of y = √β θ at β: β log π(y / √β), each row with its own β."""

    density: Density
    inverse_temperature: Tensor

    def __call__(self, position):
        return self.inverse_temperature * self.density.log_prob(position / self._root)

    def value_and_grad(self, position):
        value, grad = self.density.value_and_grad(position / self._root)
        return self.inverse_temperature * value, self._root * grad

    def grad(self, position):
        return self._root * self.density.grad(position / self._root)

    @property
    def _root(self):
        return self.inverse_temperature.sqrt()[:, None]


def _start(kernel, ladder, position):
    """The state whose copies lie at these positions [temperatures, chains, dim]."""
    replicas = kernel.init((ladder.sqrt()[:, None, None] * position).flatten(0, 1))
    if not hasattr(replicas, "log_prob"):
        raise ValueError(f"local must make a kernel whose state has log_prob, has {list(replicas._fields)}")
    return TemperingState(position[0].clone(), replicas, 0, torch.zeros_like(ladder[1:]))


def _unscaled(position, ladder, num_chains):
    return position.unflatten(0, (len(ladder), num_chains)) / ladder.sqrt()[:, None, None]


def _trade(replicas, ladder, num_chains, parity, generator):
    """Offer every second pair, from ``parity`` on; rates are [pairs, chains]."""
    value = replicas.log_prob.unflatten(0, (-1, num_chains)) / ladder[:, None]
    cold, hot = slice(parity, len(ladder) - 1, 2), slice(parity + 1, len(ladder), 2)
    log_ratio = (ladder[cold] - ladder[hot])[:, None] * (value[hot] - value[cold])
    rates = log_ratio.clamp(max=0).exp()
    is_swapped = torch.rand(rates.shape, generator=generator, dtype=rates.dtype, device=rates.device) < rates
    move = torch.zeros_like(value, dtype=torch.long)
    move[cold] += is_swapped.long()
    move[hot] -= is_swapped.long()
    origin = torch.arange(len(ladder), device=ladder.device)[:, None] + move
    # What a state keeps of its density, and the power of β that it carries.
    moved = {"position": 0.5, "log_prob": 1.0, "grad": 0.5}
    new = {k: _moved(getattr(replicas, k), origin, ladder**power) for k, power in moved.items() if hasattr(replicas, k)}
    return replicas._replace(**new), rates, move == 1


def _moved(values, origin, factor):
    """Rows taken from another temperature, and scaled to this one."""
    by_temperature = values.unflatten(0, origin.shape)
    extra = (1,) * (by_temperature.ndim - 2)
    factor = factor.view(-1, 1, *extra)
    return (torch.take_along_dim(by_temperature / factor, origin.view(*origin.shape, *extra), 0) * factor).flatten(0, 1)


def _check_ladder(inverse_temperatures):
    ladder = inverse_temperatures
    if ladder.ndim != 1 or len(ladder) < 2 or not (ladder[0] == 1 and ladder[-1] > 0 and (ladder.diff() < 0).all()):
        raise ValueError(f"inverse_temperatures must fall from 1 to something positive, got {ladder}")
