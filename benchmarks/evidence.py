"""Log evidence side by side with PyMC's SMC and dynesty, on targets with exact answers.

    python benchmarks/evidence.py            # tens of minutes; writes its section of benchmarks/RESULTS.md
    python benchmarks/evidence.py --quick    # a few minutes; prints only
    python benchmarks/evidence.py --targets "modes, 2-d" --only dynesty    # a part of it; prints only

The claim: at equal error, at most a fifth of either peer's time, from a warm process.

A peer runs as its documentation has it: PyMC with 2,000 draws, threshold 0.5 and its default kernel (IMH; its random
walk, MH, was slower in two trial runs); its densities compiled by Numba, the fastest of its back ends
here, and compiled before the clock starts. dynesty with 500 live points, bounds and steps chosen by itself, on a
likelihood compiled by Numba. The project has two contestants: sequential Monte Carlo (SMC), which needs to know
nothing; and importance sampling with the Gaussian of Laplace's method as the proposal, the search for the mode included
in its time, where the posterior has one mode. Where that Gaussian is the posterior, importance sampling is exact. Then
the number of our particles is set so that the root-mean-square (rms) error matches that of the peer, or is smaller
where even the fewest particles are better; at most 32,768. After that both run in turn, round after round, in one
process with one thread, in float64; time is processor time. dynesty is left out where one of its runs takes minutes (50
dimensions).
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from shared.report import table, write_section

from bdl_lib import bayes, evidence

NUM_ROUNDS = 10
MOST_PARTICLES = 32_768
FEWEST_SAMPLES = 64
MIN_GROUPS = 16  # of particles, what our method has by default
SHIFT, SHIFT_STD = 2.0, 0.5
CENTRES, WIDTH, SHARES = np.array([[1.5, 1.5], [-1.5, -1.0]]), 0.2, np.array([0.8, 0.2])


class Target(NamedTuple):
    """A likelihood, with the standard normal prior over its parameters."""

    dim: int
    exact: float  # log evidence, nats
    log_likelihood: Callable  # torch: [particles, dim] -> [particles]
    observe: Callable  # PyMC: adds the observation to the model, given the parameters
    log_likelihood_of_one: Callable  # NumPy, one parameter vector -> number; Numba compiles it


# ---- targets ---------------------------------------------------------------------------------------------------------


def linear(dim: int) -> Target:
    """Regression on 100 rows, noise of standard deviation 1."""
    rng = np.random.default_rng(dim)
    features = rng.standard_normal((100, dim))
    y = features @ rng.standard_normal(dim) + rng.standard_normal(100)
    rows, goals = torch.as_tensor(features), torch.as_tensor(y)
    exact = bayes.linear_log_evidence(
        bayes.gaussian_prior(dim, prior_std=1.0, dtype=torch.float64), rows, goals, noise_std=1.0
    )
    constant = 50 * math.log(2 * math.pi)

    def log_likelihood(position):
        return -0.5 * (goals - position @ rows.mT).square().sum(1) - constant

    def observe(pm, theta):
        pm.Normal("y", features @ theta, 1.0, observed=y)

    def one(theta):
        misfit = y - features @ theta
        return -0.5 * (misfit @ misfit) - constant

    return Target(dim, float(exact), log_likelihood, observe, one)


def shifted(dim: int) -> Target:
    """One observation of every parameter, two prior standard deviations out."""
    var = SHIFT_STD**2
    constant = 0.5 * dim * math.log(2 * math.pi * var)
    exact = -0.5 * dim * (SHIFT**2 / (1 + var) + math.log(2 * math.pi * (1 + var)))

    def log_likelihood(position):
        return -0.5 / var * (position - SHIFT).square().sum(1) - constant

    def observe(pm, theta):
        pm.Normal("y", theta, SHIFT_STD, observed=np.full(dim, SHIFT))

    def one(theta):
        return -0.5 / var * ((theta - SHIFT) ** 2).sum() - constant

    return Target(dim, exact, log_likelihood, observe, one)


def modes() -> Target:
    """Two narrow Gaussians far apart, of unequal mass."""
    centres, log_shares = torch.as_tensor(CENTRES), torch.as_tensor(np.log(SHARES / (2 * np.pi * WIDTH**2)))
    scales = SHARES / (2 * np.pi * WIDTH**2)
    var = 1 + WIDTH**2
    exact = np.log((SHARES / (2 * np.pi * var) * np.exp(-0.5 / var * (CENTRES**2).sum(1))).sum())

    def log_likelihood(position):
        distances = (position[:, None] - centres).square().sum(-1)
        return (log_shares - 0.5 / WIDTH**2 * distances).logsumexp(1)

    def observe(pm, theta):
        distances = ((theta[None] - CENTRES) ** 2).sum(1)
        pm.Potential("y", pm.math.logsumexp(np.log(scales) - 0.5 / WIDTH**2 * distances))

    def one(theta):
        first = np.log(scales[0]) - 0.5 / WIDTH**2 * ((theta - CENTRES[0]) ** 2).sum()
        second = np.log(scales[1]) - 0.5 / WIDTH**2 * ((theta - CENTRES[1]) ** 2).sum()
        return np.logaddexp(first, second)

    return Target(2, float(exact), log_likelihood, observe, one)


def logistic() -> Target:
    """Fifty labels, slope and intercept; the evidence by the trapezium rule, exact to many digits here."""
    rng = np.random.default_rng(1)
    inputs = np.stack([rng.standard_normal(50), np.ones(50)], axis=1)
    labels = (rng.random(50) < 1 / (1 + np.exp(-inputs @ np.array([1.5, -0.5])))).astype(float)
    signed = inputs * (2 * labels - 1)[:, None]
    rows = torch.as_tensor(signed)

    def log_likelihood(position):
        return torch.nn.functional.logsigmoid(position @ rows.mT).sum(1)

    def observe(pm, theta):
        pm.Bernoulli("y", logit_p=inputs @ theta, observed=labels)

    def one(theta):
        return -np.log1p(np.exp(-(signed @ theta))).sum()

    axis = torch.linspace(-7, 7, 561, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_joint = log_likelihood(grid) - 0.5 * grid.square().sum(1) - math.log(2 * math.pi)
    exact = float(log_joint.logsumexp(0) + 2 * math.log(axis[1] - axis[0]))
    return Target(2, exact, log_likelihood, observe, one)


TARGETS = {
    "linear regression, 2 features": lambda: linear(2),
    "linear regression, 10 features": lambda: linear(10),
    "linear regression, 50 features": lambda: linear(50),
    "shifted Gaussian, 2-d": lambda: shifted(2),
    "shifted Gaussian, 10-d": lambda: shifted(10),
    "shifted Gaussian, 50-d": lambda: shifted(50),
    "modes, 2-d": modes,
    "logistic regression, 2-d": logistic,
}


# ---- contestants: each gives a function of a seed that returns an estimate in nats -----------------------------------


def standard_normal(dim: int) -> torch.distributions.MultivariateNormal:
    """The prior."""
    like = {"dtype": torch.float64}
    return torch.distributions.MultivariateNormal(torch.zeros(dim, **like), torch.eye(dim, **like))


def with_smc(target: Target, num_particles: int) -> Callable[[int], float]:
    """bdl_lib, with its defaults but for the number of particles."""
    prior = standard_normal(target.dim)

    def run(seed):
        settings = {"num_particles": num_particles, "generator": torch.Generator().manual_seed(seed)}
        return float(evidence.sequential_monte_carlo(prior, target.log_likelihood, **settings).value)

    return run


def with_importance(target: Target, num_samples: int) -> Callable[[int], float]:
    """bdl_lib: climb to the mode, take the Gaussian there as the proposal."""
    prior = standard_normal(target.dim)

    def log_joint(position):
        return prior.log_prob(position) + target.log_likelihood(position)

    def run(seed):
        mode = evidence.find_mode(log_joint, prior.mean)
        prec = evidence.negative_hessian(log_joint, mode)
        proposal = torch.distributions.MultivariateNormal(mode, precision_matrix=prec)
        settings = {"num_samples": num_samples, "generator": torch.Generator().manual_seed(seed)}
        return float(evidence.importance_sampling(log_joint, proposal, **settings).value)

    return run


def with_pymc(target: Target, kernel: str) -> Callable[[int], float]:
    """PyMC's loop over its own kernel, built and compiled once: ``pm.sample_smc`` would compile at every call."""
    import pymc as pm
    from pymc.smc import kernels

    with pm.Model() as model:
        theta = pm.Normal("theta", 0.0, 1.0, shape=target.dim)
        target.observe(pm, theta)
        smc = getattr(kernels, kernel)(draws=2000, model=model, random_seed=0, compile_kwargs={"mode": "NUMBA"})

    def run(seed):
        smc.start, smc.rng = None, np.random.default_rng(seed)
        smc._reset_state()
        smc._initialize_kernel()
        smc.setup_kernel()
        while smc.beta < 1:
            smc.update_beta_and_weights()
            smc.step()
        return float(smc.log_marginal_likelihood)

    return run


def with_dynesty(target: Target) -> Callable[[int], float]:
    """Static nested sampling, made for the evidence."""
    import dynesty
    import numba
    from scipy.special import ndtri

    log_likelihood = numba.njit(target.log_likelihood_of_one)

    def run(seed):
        settings = {"nlive": 500, "rstate": np.random.default_rng(seed)}
        sampler = dynesty.NestedSampler(log_likelihood, ndtri, target.dim, **settings)
        sampler.run_nested(print_progress=False)
        return float(sampler.results.logz[-1])

    return run


PEERS = {
    "PyMC": lambda target: with_pymc(target, "IMH"),
    "dynesty": with_dynesty,
}


OURS = {"SMC": with_smc, "importance": with_importance}


# ---- the comparison --------------------------------------------------------------------------------------------------


def rms_error(run: Callable[[int], float], exact: float, seeds: range) -> float:
    """Root-mean-square error over seeds, in nats."""
    return math.sqrt(np.mean([(run(seed) - exact) ** 2 for seed in seeds]))


def matching_size(method: str, target: Target, goal: float, num_rounds: int) -> int:
    """Our number of particles for an rms error within a fifth of the goal; the fewest if they are better still."""
    per_group = math.ceil(2 * (target.dim + 2) / MIN_GROUPS)
    fewest = MIN_GROUPS * max(2, per_group) if method == "SMC" else FEWEST_SAMPLES
    size, tried = max(fewest, 1024), {}
    while size not in tried and len(tried) < 4:
        tried[size] = rms_error(OURS[method](target, size), target.exact, range(1000, 1000 + num_rounds))
        if 0.85 < tried[size] / goal < 1.15:
            return size
        wanted = MIN_GROUPS * round(size * (tried[size] / goal) ** 2 / MIN_GROUPS)
        size = min(max(fewest, wanted), MOST_PARTICLES)
    return size


def compare(name: str, peer: str, num_rounds: int) -> list[list[str]]:
    """Rows of the table: pilot runs of the peer, our sizes, then all in turn."""
    target = TARGETS[name]()
    theirs = PEERS[peer](target)
    theirs(0)  # compiles what is left to compile
    goal = rms_error(theirs, target.exact, range(500, 500 + num_rounds))
    methods = [method for method in OURS if method == "SMC" or not name.startswith("modes")]
    sizes = {method: matching_size(method, target, goal, num_rounds) for method in methods}
    contestants = {method: OURS[method](target, size) for method, size in sizes.items()} | {peer: theirs}
    seconds, errors = {}, {}
    for seed in range(num_rounds):
        for contestant, run in contestants.items():
            begin = time.process_time()
            value = run(seed)
            seconds.setdefault(contestant, []).append(time.process_time() - begin)
            errors.setdefault(contestant, []).append(value - target.exact)
    mean = {contestant: float(np.mean(values)) for contestant, values in seconds.items()}
    rms = {contestant: float(np.sqrt(np.mean(np.square(values)))) for contestant, values in errors.items()}
    rows = []
    for method, size in sizes.items():
        ratio = mean[peer] / mean[method]
        at_equal_error = ratio * (rms[peer] / rms[method]) ** 2
        figures = [f"{rms[peer]:.3f}", f"{rms[method]:.3f}", f"{mean[peer]:.3f}", f"{mean[method]:.4f}"]
        equal = f"{at_equal_error:.1f}" if at_equal_error < 1000 else "> 1,000"
        rows.append([name, peer, method, f"{size:,}", *figures, f"{ratio:.1f}", equal])
    return rows


def is_feasible(name: str, peer: str) -> bool:
    """dynesty takes minutes a run in 50 dimensions."""
    return peer != "dynesty" or not name.endswith(("50 features", "50-d"))


def report(names: list[str], peers: list[str], num_rounds: int) -> str:
    """The table, as Markdown."""
    header = ["target", "peer", "ours", "particles", "rms error, peer (nats)", "ours", "seconds, peer", "ours"]
    rows = []
    for name in names:
        for peer in peers:
            if is_feasible(name, peer):
                for row in compare(name, peer, num_rounds):
                    rows.append(row)
                    print(*row, sep=" | ", flush=True)
    lead = (
        f"Means over {num_rounds} interleaved rounds, one thread, float64, everything compiled beforehand. Peers with "
        "their default sizes (PyMC 2,000 draws, dynesty 500 live points); our number of particles set to the peer's "
        "root-mean-square error, if from 32 to 32,768 are enough for that. The last column corrects what difference in "
        "error is left, as if halving the error took four times the time. Importance sampling has the Gaussian of "
        "Laplace's method as its proposal, which on linear regression and the shifted Gaussian is the posterior itself."
    )
    return "\n".join([lead, "", *table([*header, "times as fast (claim: ≥ 5)", "at equal error"], rows)])


def main() -> None:
    """Print the table; write it if it is whole."""
    import threadpoolctl

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="TARGET")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), metavar="PEER", help="peers")
    parser.add_argument("--quick", action="store_true", help="few rounds; writes nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", evidence.UnreliableEvidence)  # the errors themselves are measured here
    warnings.filterwarnings("ignore", module="pytensor")  # that there is no BLAS to link to: Numba needs none
    with threadpoolctl.threadpool_limits(1):
        text = report(arguments.targets, arguments.only, 4 if arguments.quick else NUM_ROUNDS)
    print(text)
    if not arguments.quick and len(arguments.targets) == len(TARGETS) and len(arguments.only) == len(PEERS):
        write_section("Log evidence", text)


if __name__ == "__main__":
    main()
