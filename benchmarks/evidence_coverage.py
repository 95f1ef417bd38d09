"""Estimates of the evidence against exact answers, seed after seed: how far off, and whether the errors reported hold.

    python benchmarks/evidence_coverage.py            # 45 minutes; writes its section of benchmarks/RESULTS.md
    python benchmarks/evidence_coverage.py --quick    # a minute; prints only
    python benchmarks/evidence_coverage.py --targets modes --only SMC --seeds 10    # a part of it; prints only

The claims: sequential Monte Carlo (SMC) and bridge sampling are within 0.1 nats of the exact log evidence, annealed
importance sampling (AIS) within 0.2, and at least 95 of 100 runs within three of the standard errors that they report.

The table gives the root mean square of the errors and the largest one. Where a method has settings other than its
defaults, the table says which. Bridge sampling gets independent draws from the exact posterior as four chains, and on
the Gaussian posteriors also chains of autocorrelation 0.9 that leave it as it is. In 50 and 100 dimensions a run of SMC
or AIS takes from 6 seconds to two minutes, so that there are fewer of most.
"""

import argparse
import functools
import math
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from shared.report import table, write_section
from torch import Tensor
from torch.distributions import Beta, Distribution, Independent, MultivariateNormal

from bdl_lib import evidence

LIKE = {"dtype": torch.float64}
WITHIN = {"SMC": 0.1, "AIS": 0.2, "bridge": 0.1, "bridge, chains": 0.1}  # nats
NUM_CHAINS = 4
AUTOCORRELATION = 0.9


class Target(NamedTuple):
    """A model with its exact log evidence in nats, and independent draws from its posterior."""

    prior: Distribution
    log_likelihood: Callable[[Tensor], Tensor]
    exact: float
    draw: Callable[[int, torch.Generator], Tensor]  # how many -> [how many, dim]
    posterior: MultivariateNormal | None = None  # where it is Gaussian

    @property
    def dim(self) -> int:
        """Number of parameters."""
        return self.prior.event_shape[0]

    def log_joint(self, position: Tensor) -> Tensor:
        """Log of prior times likelihood."""
        return evidence.log_density(self.prior, position) + self.log_likelihood(position)


# ---- targets ---------------------------------------------------------------------------------------------------------


def standard_normal(dim: int) -> MultivariateNormal:
    """The prior of all but one of the targets."""
    return MultivariateNormal(torch.zeros(dim, **LIKE), torch.eye(dim, **LIKE))


def beta_bernoulli() -> Target:
    """Fourteen of forty flips, prior Beta(2, 3)."""
    a, b, heads, tails = 2.0, 3.0, 14, 26

    def log_likelihood(position):
        prob = position[:, 0].clamp(0, 1)
        return torch.xlogy(heads, prob) + torch.xlogy(tails, 1 - prob)

    def log_beta(a, b):
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    def draw(num_draws, generator):
        return evidence.draw(over_rows(a + heads, b + tails), num_draws, generator=generator)

    def over_rows(a, b):
        return Independent(Beta(torch.tensor([a], **LIKE), torch.tensor([b], **LIKE)), 1)

    return Target(over_rows(a, b), log_likelihood, log_beta(a + heads, b + tails) - log_beta(a, b), draw)


def gaussian(features: Tensor, goals: Tensor, noise_std: float) -> Target:
    """Regression on features; the targets are jointly normal beforehand, which gives the evidence."""
    (num_rows, dim), var = features.shape, noise_std**2
    constant = 0.5 * num_rows * math.log(2 * math.pi * var)
    cov = features @ features.mT + var * torch.eye(num_rows, **LIKE)
    exact = MultivariateNormal(torch.zeros(num_rows, **LIKE), cov).log_prob(goals).item()
    prec = features.mT @ features / var + torch.eye(dim, **LIKE)
    loc = torch.linalg.solve(prec, features.mT @ goals / var)
    posterior = MultivariateNormal(loc, precision_matrix=prec)

    def log_likelihood(position):
        return -0.5 / var * (goals - position @ features.mT).square().sum(1) - constant

    def draw(num_draws, generator):
        return evidence.draw(posterior, num_draws, generator=generator)

    return Target(standard_normal(dim), log_likelihood, exact, draw, posterior)


def linear(dim: int) -> Target:
    """Regression on 100 rows; the function has variance 1, the noise a standard deviation of 0.5."""
    generator = torch.Generator().manual_seed(dim)
    features = torch.randn(100, dim, generator=generator, **LIKE) / dim**0.5
    goals = features @ torch.randn(dim, generator=generator, **LIKE)
    return gaussian(features, goals + 0.5 * torch.randn(100, generator=generator, **LIKE), 0.5)


def shifted(dim: int) -> Target:
    """One observation of every coordinate, two prior standard deviations out; as regression, on the unit matrix."""
    target = gaussian(torch.eye(dim, **LIKE), torch.full((dim,), 2.0, **LIKE), 0.5)
    constant = 0.5 * dim * math.log(2 * math.pi * 0.25)
    return target._replace(log_likelihood=lambda position: -2.0 * (position - 2.0).square().sum(1) - constant)


def modes() -> Target:
    """Two narrow Gaussians far apart, of unequal mass."""
    shares, width = torch.tensor([0.8, 0.2], **LIKE), 0.2
    centres, var = torch.tensor([[1.5, 1.5], [-1.5, -1.0]], **LIKE), 1 + width**2
    log_mass = shares.log() - math.log(2 * math.pi * var) - 0.5 / var * centres.square().sum(1)

    def log_likelihood(position):
        distances = (position[:, None] - centres).square().sum(-1)
        return (shares.log() - math.log(2 * math.pi * width**2) - 0.5 / width**2 * distances).logsumexp(1)

    def draw(num_draws, generator):
        which = log_mass.softmax(0).multinomial(num_draws, replacement=True, generator=generator)
        return centres[which] / var + width / var**0.5 * torch.randn(num_draws, 2, generator=generator, **LIKE)

    return Target(standard_normal(2), log_likelihood, log_mass.logsumexp(0).item(), draw)


def logistic() -> Target:
    """Forty labels, slope and intercept; the evidence by the trapezium rule, exact to many digits here."""
    generator = torch.Generator().manual_seed(1)
    features = torch.stack([torch.randn(40, generator=generator, **LIKE), torch.ones(40, **LIKE)], 1)
    labels = torch.rand(40, generator=generator, **LIKE) < (features @ torch.tensor([1.5, -0.5], **LIKE)).sigmoid()
    signed = features * (2 * labels - 1)[:, None]

    def log_likelihood(position):
        return torch.nn.functional.logsigmoid(position @ signed.mT).sum(1)

    axis = torch.linspace(-7, 7, 561, **LIKE)
    grid = torch.cartesian_prod(axis, axis)
    log_joint = log_likelihood(grid) - 0.5 * grid.square().sum(1) - math.log(2 * math.pi)
    highest = log_likelihood(grid).max()  # of the values on a fine grid; a little more, to be above all others
    exact = log_joint.logsumexp(0) + 2 * math.log(axis[1] - axis[0])

    def draw(num_draws, generator):
        """Draws from the prior, each kept with a probability proportional to its likelihood."""
        proposals = torch.randn(150 * num_draws, 2, generator=generator, **LIKE)
        height = log_likelihood(proposals) - highest - 0.01
        kept = proposals[torch.rand(len(height), generator=generator, **LIKE).log() < height][:num_draws]
        if len(kept) < num_draws:
            raise RuntimeError(f"{len(kept)} of {num_draws} draws kept: propose more")
        return kept

    return Target(standard_normal(2), log_likelihood, exact.item(), draw)


# ---- methods: each a function of target, seed and settings -----------------------------------------------------------


def anneal(estimate: Callable, target: Target, seed: int, **settings) -> evidence.LogEvidence:
    """Either of the two that start from the prior."""
    generator = torch.Generator().manual_seed(seed)
    return estimate(target.prior, target.log_likelihood, generator=generator, **settings)


def bridge(target: Target, seed: int, *, num_draws: int) -> evidence.LogEvidence:
    """From independent draws."""
    generator = torch.Generator().manual_seed(seed)
    draws = target.draw(num_draws, generator).unflatten(0, (NUM_CHAINS, -1))
    return evidence.bridge_sampling(target.log_joint, draws, generator=generator)


def bridge_chains(target: Target, seed: int, *, num_draws: int) -> evidence.LogEvidence:
    """From chains θ' = m + r (θ - m) + √(1 - r²) L ε, which leave the Gaussian posterior as it is."""
    generator = torch.Generator().manual_seed(seed)
    loc, keep = target.posterior.loc, AUTOCORRELATION
    noise = target.draw(num_draws, generator).unflatten(0, (NUM_CHAINS, -1)) - loc
    chain = [noise[:, 0]]
    for fresh in noise[:, 1:].unbind(1):
        chain.append(keep * chain[-1] + (1 - keep**2) ** 0.5 * fresh)
    return evidence.bridge_sampling(target.log_joint, loc + torch.stack(chain, 1), generator=generator)


METHODS = {
    "SMC": functools.partial(anneal, evidence.sequential_monte_carlo),
    "AIS": functools.partial(anneal, evidence.annealed_importance_sampling),
    "bridge": bridge,
    "bridge, chains": bridge_chains,
}

BRIDGES = {"bridge": {"num_draws": 8000}, "bridge, chains": {"num_draws": 8000}}
MANY = {"bridge": {"num_draws": 8000}, "bridge, chains": {"num_draws": 40_000}}
FINE = {"target_cess": 0.95, "max_correlation": 0.3}
PLANE = {"SMC": {"num_particles": 4096}, "AIS": {"num_particles": 1024}, **BRIDGES}
TEN = {"SMC": {"num_particles": 4096}, "AIS": {"num_particles": 2048}, **BRIDGES}
FIFTY = {"SMC": {"num_particles": 8192, **FINE}, "AIS": {"num_particles": 8192}, **MANY}
HUNDRED = {"SMC": {"num_particles": 16384, **FINE}, "AIS": {"num_particles": 16384, "target_cess": 0.995}, **MANY}

TARGETS = {  # target, settings, numbers of runs other than 100
    "Beta-Bernoulli": (beta_bernoulli, PLANE, {}),
    "linear regression, 2 features": (lambda: linear(2), PLANE, {}),
    "shifted Gaussian, 2-d": (lambda: shifted(2), PLANE, {}),
    "logistic regression, 2-d": (logistic, PLANE, {}),
    "modes": (modes, PLANE, {}),
    "linear regression, 10 features": (lambda: linear(10), TEN, {}),
    "shifted Gaussian, 10-d": (lambda: shifted(10), TEN, {}),
    "linear regression, 50 features": (lambda: linear(50), FIFTY, {"AIS": 20}),
    "shifted Gaussian, 50-d": (lambda: shifted(50), FIFTY, {"SMC": 20, "AIS": 20}),
    "shifted Gaussian, 100-d": (lambda: shifted(100), HUNDRED, {"SMC": 5, "AIS": 5, "bridge, chains": 10}),
}


# ---- the table -------------------------------------------------------------------------------------------------------


def row(name: str, method: str, num_seeds: int | None) -> list[str]:
    """One target, one method, all seeds."""
    make, settings, num_runs = TARGETS[name]
    num_seeds = num_seeds or num_runs.get(method, 100)
    target, chosen, begin = make(), settings[method], time.process_time()
    results = [METHODS[method](target, seed, **chosen) for seed in range(num_seeds)]
    errors = torch.stack([result.value for result in results]) - target.exact
    inside = (errors.abs() < 3 * torch.stack([result.std_error for result in results])).sum().item()
    evaluations = sum(result.num_evaluations for result in results) / num_seeds
    size, *others = chosen.items()
    others = ", ".join(f"{key} {value}" for key, value in others)
    figures = [f"{errors.square().mean().sqrt():.3f}", f"{errors.abs().max():.3f}", f"{inside} of {num_seeds}"]
    seconds = (time.process_time() - begin) / num_seeds
    return [name, method, str(target.dim), f"{size[1]:,}", others, *figures, f"{evaluations:,.0f}", f"{seconds:.2f}"]


def report(names: list[str], methods: list[str], num_seeds: int | None) -> str:
    """The table, as Markdown."""
    header = ["target", "method", "dim", "N", "other settings", "rms error (nats)", "largest error", "within 3 SE"]
    rows = []
    for name in names:
        for method in methods:
            if method != "bridge, chains" or TARGETS[name][0]().posterior is not None:
                rows.append(row(name, method, num_seeds))
                print(*rows[-1], sep=" | ", flush=True)
    lead = (
        "Errors of log evidence against the exact answer, float64, one thread. N: particles, or posterior draws, of "
        "which bridge sampling compares half. Claims: SMC and bridge within 0.1 nats, AIS within 0.2, and at least 95 "
        "of 100 runs within 3 of the standard errors (SE) that they report. Seconds are processor time, means."
    )
    missed = [r for r in rows if float(r[6]) > WITHIN[r[1]]]
    found = f"Rows whose largest error is beyond the claim: {', '.join(f'{r[0]} ({r[1]})' for r in missed) or 'none'}."
    return "\n".join([lead, "", *table([*header, "evaluations", "seconds"], rows), "", found])


def main() -> None:
    """Print the table; write it if it is whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, help="runs of each row")
    parser.add_argument("--quick", action="store_true", help="5 runs, up to 10 dimensions; writes nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=evidence.UnreliableEvidence)  # the errors are in the table
    names = [n for n in arguments.targets if not (arguments.quick and TARGETS[n][1] in (FIFTY, HUNDRED))]
    seeds = 5 if arguments.quick else arguments.seeds
    text = report(names, arguments.only, seeds)
    print(text)
    if seeds is None and len(names) == len(TARGETS) and len(arguments.only) == len(METHODS):
        write_section("Errors of the log evidence", text)


if __name__ == "__main__":
    main()
