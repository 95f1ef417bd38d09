r"""When to believe a chain: R-hat, effective sample size, divergences, stuck chains and energy, in one call.

R-hat, effective sample sizes and their standard error are ArviZ's. Nested R-hat and BFMI are short enough to be read.

Chapter: book/04-mcmc.ipynb
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.evidence._arviz import import_arviz
from bdl_lib.mcmc.run import Draws

__all__ = ["Diagnosis", "bfmi", "diagnose", "nested_rhat"]

MAX_RHAT, MIN_ESS = 1.01, 400  # Vehtari et al. (2021)
MIN_BFMI = 0.3  # ArviZ's advice, which it calls provisional


class Diagnosis(NamedTuple):
    """What the draws say about themselves, one number a parameter unless said otherwise.

    Book: sec-believe
    """

    rhat: Float[Tensor, " dim"]  # rank-normalised, split; 1 is perfect
    ess_bulk: Float[Tensor, " dim"]  # effective draws for the middle of the distribution
    ess_tail: Float[Tensor, " dim"]  # the same for its 5 % and 95 % quantiles, the lower of the two
    mcse_mean: Float[Tensor, " dim"]  # Monte Carlo standard error of the mean, in the units of the parameter
    num_divergent: int  # trajectories that left the level of energy, over all chains
    stuck_chains: list[int]  # chains that did not move in the second half
    bfmi: Float[Tensor, " chains"] | None  # one a chain, of samplers with an energy
    nested_rhat: Float[Tensor, " dim"] | None  # if asked for, by num_superchains

    @property
    def verdict(self) -> list[str]:
        """What is wrong, in plain words, the number first; empty if nothing is."""
        wrong = []
        chosen = "rhat" if self.nested_rhat is None else "nested_rhat"
        if bad := _where(~(getattr(self, chosen) <= MAX_RHAT)):
            wrong.append(f"{chosen} is not below {MAX_RHAT} for parameters {bad}: the chains disagree")
        for name, value in {"ess_bulk": self.ess_bulk, "ess_tail": self.ess_tail}.items():
            if bad := _where(~(value >= MIN_ESS)):
                wrong.append(f"{name} is below {MIN_ESS} for parameters {bad}: draw more")
        if self.num_divergent > 0:
            wrong.append(f"{self.num_divergent} divergent trajectories: a smaller step size, or other parameters")
        if self.stuck_chains:
            wrong.append(f"chains {self.stuck_chains} are stuck")
        if self.bfmi is not None and (bad := _where(~(self.bfmi >= MIN_BFMI))):
            wrong.append(f"bfmi is below {MIN_BFMI} in chains {bad}: the energy is explored slowly")
        return wrong


def diagnose(draws: Draws, *, num_superchains: int | None = None) -> Diagnosis:
    r"""Everything that is known about when to distrust draws, with a verdict.

    The verdict can only be bad or not bad: chains that all miss the same mode agree with each other.

    Args:
        draws: at least 4 draws a chain. With one chain, R-hat is NaN, and the verdict says so.
        num_superchains: how many groups of equally many chains there are, each started at one point, next to each
            other; at least 2. Given it, :func:`nested_rhat` replaces R-hat in the verdict: many chains of few draws
            need that.

    Returns:
        A :class:`Diagnosis`; ``diagnosis.verdict`` lists what is wrong. The draws go to the host, once: ArviZ computes
        there, parameter by parameter. Of a network, judge the predictions: its weights may swap places.

    Raises:
        ValueError: if there are fewer than 4 draws, or ``num_superchains`` does not fit the number of chains.

    Source: Vehtari et al. (2021), Rank-Normalization, Folding, and Localization, doi:10.1214/20-BA1221.
    Book: sec-believe
    """
    position = draws.position
    if not position.shape[1] >= 4:
        raise ValueError(f"draws must have at least 4 draws a chain, got {position.shape[1]}")
    nested = None if num_superchains is None else nested_rhat(position, num_superchains=num_superchains)
    energy, is_divergent = draws.info.get("energy"), draws.info.get("is_divergent")
    second_half = position[:, position.shape[1] // 2 :]
    return Diagnosis(
        *_through_arviz(position),
        num_divergent=0 if is_divergent is None else int(is_divergent.sum()),
        stuck_chains=_where((second_half == second_half[:, :1]).all(2).all(1)),
        bfmi=None if energy is None else bfmi(energy),
        nested_rhat=nested,
    )


def nested_rhat(position: Float[Tensor, "chains draws dim"], *, num_superchains: int) -> Float[Tensor, " dim"]:
    r"""R-hat for many short chains: do groups of chains, each from one starting point, agree?

    .. math:: \hat R_\nu = \sqrt{1 + \frac{B}{W}}, \qquad
              B = \mathrm{var}_k \, \bar\theta_{k}, \qquad
              W = \operatorname*{mean}_k \Big( \mathrm{var}_m \, \bar\theta_{km} + \operatorname*{mean}_m s^2_{km} \Big)

    with k a superchain, m a chain in it, bars for means over draws (and chains), s² the variance within a chain, all
    variances unbiased. A group averages its chains' noise away and keeps what they remember of their common start: so
    one draw a chain is enough, where R-hat must wait until every chain alone has a good mean.

    Args:
        position: chains that started at one point lie next to each other.
        num_superchains: K, at least 2; it divides the number of chains.

    Returns:
        One number a parameter, at least 1.

    Raises:
        ValueError: if ``num_superchains`` is below 2 or does not divide the number of chains, or if there is one chain
            a group and one draw a chain, which leaves W without a variance.

    Source: Margossian et al. (2025), Nested R-hat, doi:10.1214/24-BA1453.
    Book: sec-believe
    """
    num_chains, num_draws = position.shape[:2]
    if not (num_superchains >= 2 and num_chains % num_superchains == 0):
        raise ValueError(f"num_superchains must be at least 2 and divide {num_chains} chains, got {num_superchains}")
    if num_draws == 1 and num_superchains == num_chains:
        raise ValueError(f"num_superchains must be below the number of chains when draws are 1, got {num_superchains}")
    chains = position.unflatten(0, (num_superchains, -1))
    chain_mean = chains.mean(2)
    between_superchains = chain_mean.mean(1).var(0)
    between_chains = chain_mean.var(1) if chains.shape[1] > 1 else torch.zeros_like(chain_mean[:, 0])
    within_chains = chains.var(2).mean(1) if num_draws > 1 else torch.zeros_like(between_chains)
    return (1 + between_superchains / (between_chains + within_chains).mean(0)).sqrt()


def bfmi(energy: Float[Tensor, "chains draws"]) -> Float[Tensor, " chains"]:
    r"""Bayesian fraction of missing information: how much of the energy's spread one new momentum can change.

    .. math:: \mathrm{BFMI} = \frac{\sum_n (E_n - E_{n-1})^2}{\sum_n (E_n - \bar E)^2}

    Independent energies would give 2. Near 0, the energy does a random walk: the tails are reached slowly, as in a
    funnel.

    Args:
        energy: -log p(θ) plus the kinetic energy of every draw, in nats.

    Returns:
        One number a chain; NaN where the energy never changes.

    Source: Betancourt (2016), Diagnosing Suboptimal Cotangent Disintegrations, arXiv:1604.00695.
    Book: sec-believe
    """
    centred = energy - energy.mean(1, keepdim=True)
    return energy.diff(dim=1).square().sum(1) / centred.square().sum(1)


def _through_arviz(position):
    """R-hat, bulk and tail ESS and MCSE of every parameter: [chains, draws] arrays, which every ArviZ reads alike."""
    arviz = import_arviz()
    functions = (
        arviz.rhat,
        lambda x: arviz.ess(x, method="bulk"),
        lambda x: arviz.ess(x, method="tail", prob=(0.05, 0.95)),  # 1.x has no default for arrays
        lambda x: arviz.mcse(x, method="mean"),
    )
    parameters = position.detach().cpu().double().unbind(-1)
    values = [[float(function(x.numpy())) for x in parameters] for function in functions]
    return torch.tensor(values, dtype=position.dtype, device=position.device).unbind(0)


def _where(is_bad):
    return is_bad.nonzero().flatten().tolist()
