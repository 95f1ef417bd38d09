"""bdl_lib.evidence against closed forms, quadrature by SciPy, finite differences, and formulas written out in NumPy.

Exactness is tested in float64. Where a test draws at random, it is seeded; a test of a right estimator fails by bad
luck with a probability of at most 0.01, and most of them of far less. The full table of coverage, in up to 100
dimensions and over 100 seeds, is benchmarks/evidence_coverage.py.
"""

import functools
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import arviz
import numpy as np
import oracles
import pytest
import torch
from scipy import special, stats
from torch.distributions import Beta, Independent, MultivariateNormal, Normal, StudentT, Uniform

from bdl_lib import bayes, evidence, mcmc, networks
from bdl_lib.evidence import UnreliableEvidence

inf, nan = math.inf, math.nan
f64 = torch.float64
finite_k = pytest.mark.filterwarnings("error::bdl_lib.evidence.UnreliableEvidence")
any_k = pytest.mark.filterwarnings("ignore::bdl_lib.evidence.UnreliableEvidence")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=f64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed), dtype=f64)


def tensor(values, dtype=f64):
    return torch.tensor(values, dtype=dtype)


def close(actual, expected, *, rtol=1e-10, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=rtol, atol=atol)


def standard_normal(dim, dtype=f64):
    return MultivariateNormal(torch.zeros(dim, dtype=dtype), torch.eye(dim, dtype=dtype))


# ---- Targets whose evidence is known, with exact and independent draws from their posteriors


class Target(NamedTuple):
    prior: Any
    log_likelihood: Callable
    exact: float  # log evidence in nats
    draw: Callable  # number, seed -> [number, dim]

    def log_joint(self, position):
        return evidence.log_density(self.prior, position) + self.log_likelihood(position)


@functools.cache
def beta_bernoulli():
    """Seven of twenty flips."""

    def log_likelihood(position):
        prob = position[:, 0].clamp(0, 1)
        return torch.xlogy(7, prob) + torch.xlogy(13, 1 - prob)

    def draw(number, seed):
        return tensor(stats.beta.rvs(9.0, 16.0, size=(number, 1), random_state=seed))

    exact = oracles.beta_bernoulli_flip_by_flip(2.0, 3.0, [1] * 7 + [0] * 13)
    return Target(Independent(Beta(tensor([2.0]), tensor([3.0])), 1), log_likelihood, exact, draw)


@functools.cache
def linear(dim):
    """Regression on 30 rows with correlated features."""
    features = randn(30, dim, seed=dim) @ (torch.eye(dim, dtype=f64) + 0.5 / dim**0.5)
    goals = features @ randn(dim, seed=1) + 0.7 * randn(30, seed=2)
    rows, y = features.numpy(), goals.numpy()
    mean, cov, *_, exact = oracles.linear_in_function_space(np.zeros(dim), np.eye(dim), rows, y, 0.7, rows)

    def log_likelihood(position):
        squares = (goals - position @ features.mT).square().sum(1)
        return -squares / (2 * 0.49) - 15 * math.log(2 * math.pi * 0.49)

    def draw(number, seed):
        return tensor(mean) + randn(number, dim, seed=seed) @ torch.linalg.cholesky(tensor(cov)).mT

    return Target(standard_normal(dim), log_likelihood, exact, draw)


@functools.cache
def shifted(dim, shift=2.0, noise_std=0.5):
    """One observation of every coordinate."""
    var = noise_std**2

    def log_likelihood(position):
        return -0.5 * (position - shift).square().sum(1) / var - 0.5 * dim * math.log(2 * math.pi * var)

    def draw(number, seed):
        return shift / (1 + var) + (var / (1 + var)) ** 0.5 * randn(number, dim, seed=seed)

    exact = oracles.shifted_gaussian_log_evidence(dim, shift, noise_std)
    return Target(standard_normal(dim), log_likelihood, exact, draw)


@functools.cache
def modes():
    """Two narrow modes far apart, one with about a quarter of the mass of the other."""
    shares, centres, width = [0.8, 0.2], [[1.5, 1.5], [-1.5, -1.0]], 0.2
    exact = oracles.two_modes_log_evidence(shares, centres, width)
    centres_, var = tensor(centres), width**2

    def log_likelihood(position):
        squares = (position[:, None] - centres_).square().sum(-1)
        return (tensor(shares).log() - math.log(2 * math.pi * var) - 0.5 * squares / var).logsumexp(1)

    def draw(number, seed):
        mass = [s * math.exp(-0.5 * (a * a + b * b) / (1 + var)) for s, (a, b) in zip(shares, centres, strict=True)]
        which = (rand(number, seed=seed + 1000) > mass[0] / sum(mass)).long()
        return centres_[which] / (1 + var) + (var / (1 + var)) ** 0.5 * randn(number, 2, seed=seed)

    return Target(standard_normal(2), log_likelihood, exact, draw)


@functools.cache
def logistic():
    """Twenty labels, slope and intercept."""
    features = torch.stack([randn(20, seed=3), torch.ones(20, dtype=f64)], 1)
    labels = (features @ tensor([1.5, -0.5])).sigmoid() > rand(20, seed=4)
    signed = features * (2.0 * labels - 1)[:, None]

    def log_likelihood(position):
        return torch.nn.functional.logsigmoid(position @ signed.mT).sum(1)

    def draw(number, seed):
        """Draws from the prior, kept with a probability proportional to the likelihood."""
        proposals = randn(40 * number, 2, seed=seed)
        values, highest = log_likelihood(proposals), -11.9
        accept = rand(40 * number, seed=seed + 1000).log() < values - highest
        assert values.max() < highest
        assert accept.sum() >= number
        return proposals[accept][:number]

    exact = oracles.logistic_log_evidence(features.numpy(), labels.numpy(), 1.0)
    return Target(standard_normal(2), log_likelihood, exact, draw)


TARGETS = {
    "Beta-Bernoulli": beta_bernoulli,
    "linear, 2": lambda: linear(2),
    "linear, 10": lambda: linear(10),
    "shifted, 2": lambda: shifted(2),
    "shifted, 5": lambda: shifted(5),
    "modes": modes,
    "logistic": logistic,
}


def smc(target, seed=0, **settings):
    settings = {"num_particles": 1024, **settings}
    return evidence.sequential_monte_carlo(target.prior, target.log_likelihood, generator=seeded(seed), **settings)


def ais(target, seed=0, **settings):
    settings = {"num_particles": 1024, "target_cess": 0.97, **settings}
    return evidence.annealed_importance_sampling(
        target.prior, target.log_likelihood, generator=seeded(seed), **settings
    )


def thermodynamic(target, seed=0, **settings):
    settings = {"num_particles": 1024, **settings}
    return evidence.thermodynamic_integration(target.prior, target.log_likelihood, generator=seeded(seed), **settings)


def bridge(target, seed=0, num_draws=4000, **settings):
    draws = target.draw(num_draws, 10_000 + seed)  # another seed than the generator's: independent numbers
    return evidence.bridge_sampling(target.log_joint, draws.unflatten(0, (4, -1)), generator=seeded(seed), **settings)


WALKS = (smc, ais, thermodynamic)


def prior_sampling(target, seed=0, num_samples=4000):
    return evidence.prior_sampling(target.prior, target.log_likelihood, num_samples=num_samples, generator=seeded(seed))


def importance(target, seed=0, num_samples=4000, proposal=None):
    """With a Student t of 5 degrees of freedom, fitted to the posterior, as the proposal."""
    if proposal is None:
        draws = target.draw(400, 99)
        proposal = Independent(StudentT(tensor(5.0), draws.mean(0), 1.2 * draws.std(0)), 1)
    return evidence.importance_sampling(target.log_joint, proposal, num_samples=num_samples, generator=seeded(seed))


# ---- Against the exact evidence: a few seeds here, a hundred in benchmarks/evidence_coverage.py


def errors(estimate, target, num_seeds, **settings):
    """Errors and reported standard errors, in nats, over seeds."""
    results = [estimate(target, seed, **settings) for seed in range(num_seeds)]
    return (
        torch.stack([result.value for result in results]) - target.exact,
        torch.stack([result.std_error for result in results]),
    )


@finite_k
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(("estimate", "most"), [(smc, 0.1), (ais, 0.2), (bridge, 0.1)])
def test_exact_evidence(estimate, most, name):
    """rms error within the promise; errors within what is reported; no bias beyond the scatter of three runs."""
    error, std_error = errors(estimate, TARGETS[name](), 3)
    assert error.square().mean().sqrt() < most
    assert (error / std_error).abs().max() < 4.5
    assert error.mean().abs() < 4 * (std_error.square().mean() / 3).sqrt()


@pytest.mark.parametrize("dim", [2, 10, 50, 100])
def test_bridge_in_many_dimensions(dim):
    error, std_error = errors(bridge, shifted(dim), 3)
    assert error.abs().max() < 0.1
    assert (error / std_error).abs().max() < 4.5


@finite_k
@pytest.mark.parametrize(
    ("estimate", "name"),
    [
        *((thermodynamic, name) for name in ("Beta-Bernoulli", "linear, 2", "shifted, 5", "modes", "logistic")),
        *((importance, name) for name in ("linear, 2", "shifted, 2", "logistic")),
        *((prior_sampling, name) for name in ("Beta-Bernoulli", "logistic")),
    ],
)
def test_exact_evidence_by_the_other_estimators(estimate, name):
    error, std_error = errors(estimate, TARGETS[name](), 3)
    assert error.square().mean().sqrt() < 0.15
    assert (error / std_error).abs().max() < 4.5
    assert error.mean().abs() < 4 * (std_error.square().mean() / 3).sqrt()


@any_k
@pytest.mark.parametrize(
    ("estimate", "num_seeds", "settings"),
    [
        (smc, 30, {"num_particles": 256, "target_cess": 0.7}),
        (thermodynamic, 30, {"num_particles": 256, "target_cess": 0.8}),
        (ais, 30, {"num_particles": 128, "target_cess": 0.9}),
        (bridge, 60, {"num_draws": 400}),
        (importance, 40, {"num_samples": 200}),
        (prior_sampling, 40, {"num_samples": 1000}),
    ],
)
def test_standard_errors_cover(estimate, num_seeds, settings):
    """Of z = error / std_error at least nine in ten within 3, as if normal within 2, and of mean square near 1."""
    error, std_error = errors(estimate, logistic(), num_seeds, **settings)
    z = error / std_error
    assert (z.abs() < 3).double().mean() >= 0.9
    assert 0.7 < z.square().mean().sqrt() < 1.45


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_standard_error_of_the_bridge_counts_autocorrelation(correlation):
    """Chains θ' = r θ + √(1 - r²) ε leave the posterior as it is, and forget it slowly."""
    target = shifted(2)
    loc, scale = 2.0 / 1.25, 0.2**0.5
    z = []
    for seed in range(40):
        noise = randn(4, 1000, 2, seed=seed)
        white = [noise[:, 0]]
        for fresh in noise[:, 1:].unbind(1):
            white.append(correlation * white[-1] + (1 - correlation**2) ** 0.5 * fresh)
        result = evidence.bridge_sampling(
            target.log_joint, loc + scale * torch.stack(white, 1), generator=seeded(seed), num_proposals=20_000
        )
        z.append((result.value - target.exact) / result.std_error)
    z = torch.stack(z)
    assert (z.abs() < 3).double().mean() >= 0.9
    assert 0.65 < z.square().mean().sqrt() < 1.5


# ---- Averages of weights


def test_weights_become_value_error_and_effective_size_as_in_the_formulas():
    target, num_samples = logistic(), 500
    proposal = Independent(StudentT(tensor(5.0), torch.zeros(2, dtype=f64), tensor([1.0, 0.8])), 1)
    result = importance(target, num_samples=num_samples, proposal=proposal)
    position = evidence.draw(proposal, num_samples, generator=seeded())
    log_q = stats.t.logpdf(position.numpy(), 5, 0.0, [1.0, 0.8]).sum(1)
    log_p = stats.norm.logpdf(position.numpy()).sum(1) + target.log_likelihood(position).numpy()
    weights = np.exp(log_p - log_q)
    close(result.value, np.log(weights.mean()))
    close(result.std_error, weights.std(ddof=1) / math.sqrt(num_samples) / weights.mean())
    close(result.ess, weights.sum() ** 2 / (weights**2).sum())
    close(result.std_error, ((1 / result.ess - 1 / num_samples) * num_samples / (num_samples - 1)).sqrt())
    assert result.pareto_k == pytest.approx(float(arviz.psislw(np.log(weights))[1]))
    assert (result.num_evaluations, result.num_excluded) == (num_samples, 0)


def test_prior_sampling_is_the_mean_likelihood():
    target = logistic()
    result = prior_sampling(target, num_samples=300)
    likelihood = target.log_likelihood(evidence.draw(target.prior, 300, generator=seeded())).exp()
    close(result.value, likelihood.mean().log())


def test_importance_sampling_from_the_posterior_has_no_error():
    target = shifted(3)
    posterior = MultivariateNormal(torch.full((3,), 1.6, dtype=f64), 0.2 * torch.eye(3, dtype=f64))
    result = importance(target, proposal=posterior, num_samples=100)
    close(result.value, target.exact)
    close(result.ess, 100.0)
    assert result.std_error < 1e-12


@pytest.mark.parametrize(("scale", "is_reliable"), [(0.3, False), (1.3, True)])
def test_pareto_k_tells_light_tails_from_heavy_ones(scale, is_reliable):
    """A normal target of variance 1 in 4 dimensions; below a variance of ½ the weights have no variance."""
    proposal = MultivariateNormal(torch.zeros(4, dtype=f64), scale**2 * torch.eye(4, dtype=f64))
    run = functools.partial(
        evidence.importance_sampling, standard_normal(4).log_prob, proposal, num_samples=2000, generator=seeded()
    )
    if is_reliable:
        result = run()
        assert result.pareto_k < 0.5
        assert abs(result.value) < 4 * result.std_error
    else:
        with pytest.warns(UnreliableEvidence, match=r"Pareto-k of the weights is \d\.\d\d, above 0\.7: a few draws"):
            result = run()
        assert result.pareto_k > 0.7


def test_pareto_k_of_pareto_weights():
    """Weights u^(-k) have a Pareto tail of shape k."""
    for k in (0.2, 0.5, 1.0):
        found = evidence.pareto_k(-k * rand(20_000).log())
        assert found == pytest.approx(k, abs=0.1)
        assert evidence.pareto_k(-k * rand(20_000).log() + 700.0) == pytest.approx(found)  # up to a constant
    assert evidence.pareto_k(torch.full((10,), -3.0, dtype=f64)) == -inf
    assert evidence.pareto_k(-3 + 1e-12 * rand(100)) == -inf  # equal but for rounding
    with pytest.raises(ValueError, match="log_weights must have at least 5 finite entries, got 4"):
        evidence.pareto_k(tensor([0.0, 1.0, 2.0, 3.0, -inf]))


def test_prior_sampling_fails_in_many_dimensions_and_says_so():
    with pytest.warns(UnreliableEvidence, match="Pareto-k"):
        result = prior_sampling(shifted(30))
    assert result.value < shifted(30).exact - 5


NAMELESS = """
import warnings, torch
from bdl_lib import evidence
warnings.simplefilter("error", evidence.UnreliableEvidence)
names = {"evidence": evidence, "draws": torch.linspace(-3, 3, 200)[:, None]}
exec("evidence.harmonic_mean(lambda x: -50 * x[:, 0].square(), draws)", names)
"""


def test_a_caller_without_a_name_is_warned_too():
    """In a process of its own: here, the checks of shapes stand between the library and its caller."""
    done = subprocess.run([sys.executable, "-c", NAMELESS], capture_output=True, text=True)
    assert "UnreliableEvidence: Pareto-k" in done.stderr


@any_k
def test_harmonic_mean_formula():
    draws = logistic().draw(200, 0)
    result = evidence.harmonic_mean(logistic().log_likelihood, draws)
    inverse = (-logistic().log_likelihood(draws)).exp()
    close(result.value, -inverse.mean().log())
    close(result.std_error, inverse.std() / inverse.mean() / 200**0.5)
    assert result.num_evaluations == 200


def test_harmonic_mean_fails_visibly():
    """Too large by nats, in every one of ten runs, and by many of the standard errors that it reports."""
    target = shifted(10)
    for seed in range(10):
        with pytest.warns(UnreliableEvidence, match="Pareto-k"):
            result = evidence.harmonic_mean(target.log_likelihood, target.draw(2000, seed))
        assert result.value > target.exact + 3
        assert result.value > target.exact + 4 * result.std_error
        assert bridge(target, seed, 2000).value == pytest.approx(target.exact, abs=0.1)


# ---- Bridge sampling


def test_bridge_is_the_fixed_point_of_the_optimal_bridge():
    """From the same draws and proposals, Meng and Wong's iteration in NumPy gives the same number."""
    target, num_proposals = logistic(), 700
    draws = target.draw(1200, 5).unflatten(0, (3, -1))
    result = evidence.bridge_sampling(target.log_joint, draws, generator=seeded(6), num_proposals=num_proposals)
    fitted_to, kept = draws[:, :200].flatten(0, 1).numpy(), draws[:, 200:].flatten(0, 1).numpy()
    gaussian = stats.multivariate_normal(fitted_to.mean(0), np.cov(fitted_to.T))
    torch_gaussian = MultivariateNormal(tensor(gaussian.mean), tensor(gaussian.cov))
    there = evidence.draw(torch_gaussian, num_proposals, generator=seeded(6)).numpy()
    here_ratio = target.log_joint(tensor(kept)).numpy() - gaussian.logpdf(kept)
    there_ratio = target.log_joint(tensor(there)).numpy() - gaussian.logpdf(there)
    num_effective = float(arviz.ess(here_ratio.reshape(3, 200), method="mean"))
    expected = oracles.optimal_bridge(here_ratio, there_ratio, num_effective)
    close(result.value, expected, rtol=1e-9)

    share = num_effective / (num_effective + num_proposals)
    in_posterior = 1 / (share + (1 - share) * np.exp(expected - there_ratio))
    in_gaussian = 1 / (share * np.exp(here_ratio - expected) + 1 - share)
    num_effective_terms = float(arviz.ess(in_gaussian.reshape(3, 200), method="mean"))
    var = in_posterior.var(ddof=1) / in_posterior.mean() ** 2 / num_proposals
    var += in_gaussian.var(ddof=1) / in_gaussian.mean() ** 2 / num_effective_terms
    close(result.std_error, var**0.5, rtol=1e-6)
    assert result.num_evaluations == 600 + num_proposals


def test_bridge_does_not_need_the_density_at_its_true_height():
    """A factor on the joint density is a factor on the evidence, however large."""
    target = logistic()
    draws = target.draw(800, 0)[None]
    values = [
        evidence.bridge_sampling(lambda x, h=h: target.log_joint(x) + h, draws, generator=seeded(1)).value - h
        for h in (0.0, 5000.0, -5000.0)
    ]
    close(torch.stack(values), values[0], rtol=0, atol=1e-9)


# ---- Temperatures


def test_conditional_ess_formula():
    log_likelihoods, log_weights = 3 * randn(50), randn(50, seed=1)
    log_weights = log_weights - log_weights.logsumexp(0)
    for step in (0.0, 0.1, 1.0, 30.0):
        found = evidence.conditional_ess(step, log_likelihoods, log_weights)
        close(found, oracles.conditional_ess(step, log_likelihoods.numpy(), log_weights.numpy()))
    close(evidence.conditional_ess(0.0, log_likelihoods, log_weights), 1.0)
    equal = torch.full((50,), -math.log(50), dtype=f64)
    close(evidence.conditional_ess(1e4, log_likelihoods, equal), 1 / 50, rtol=1e-9)  # one particle carries all
    close(evidence.conditional_ess(tensor(0.3), log_likelihoods - 1e4, equal), oracles.conditional_ess(
        0.3, log_likelihoods.numpy(), np.zeros(50)
    ))  # fmt: skip


@pytest.mark.parametrize("temperature", [0.0, 0.25])
def test_next_temperature_hits_its_target(temperature):
    """Half of the particles at 0, half at -100: the ratio u of their factors solves (1 + u)² = 2 c (1 + u²)."""
    log_likelihoods, equal = tensor([0.0, -100.0] * 4), torch.zeros(8, dtype=f64)
    c = 0.9
    u = (1 - math.sqrt(1 - (2 * c - 1) ** 2)) / (2 * c - 1)
    found, cess = evidence.next_temperature(temperature, log_likelihoods, equal, target_cess=c)
    assert found == pytest.approx(temperature - math.log(u) / 100, abs=1e-12)
    close(cess, c, rtol=1e-9)
    weights = tensor([0.0, 2.0] * 4)  # unequal before the step: up to a constant
    found, cess = evidence.next_temperature(temperature, log_likelihoods, weights + 7.0, target_cess=c)
    close(cess, c, rtol=1e-9)
    step = found - temperature
    close(cess, oracles.conditional_ess(step, log_likelihoods.numpy(), weights.numpy()), rtol=1e-9)


def test_next_temperature_ends_at_one_and_sets_impossible_particles_apart():
    equal = torch.zeros(4, dtype=f64)
    found, cess = evidence.next_temperature(0.9, tensor([0.0, -0.1, 0.1, 0.2]), equal, target_cess=0.9)
    assert found == 1.0
    close(cess, oracles.conditional_ess(0.1, [0.0, -0.1, 0.1, 0.2], np.zeros(4)))
    with_impossible = evidence.next_temperature(0.0, tensor([0.0, -50.0, -inf, -inf]), equal, target_cess=0.8)
    without = evidence.next_temperature(0.0, tensor([0.0, -50.0]), equal[:2], target_cess=0.8)
    assert with_impossible[0] == pytest.approx(without[0])
    with pytest.raises(
        ValueError, match=r"log_likelihood must differ less between particles .* spreads over 1\.0e\+30"
    ):
        evidence.next_temperature(0.5, tensor([0.0, -1e30]), equal[:2], target_cess=0.9)


# ---- The walk


@pytest.mark.parametrize("estimate", [smc, ais])
def test_the_path_is_recorded(estimate):
    particles = estimate(linear(2), target_cess=0.9).particles
    temperature, cess = particles.temperature, particles.cess
    assert temperature[-1] == 1
    assert temperature[0] > 0
    assert (temperature.diff() > 0).all()
    close(cess[:-1], 0.9, rtol=1e-6)
    assert 0.9 <= cess[-1] <= 1
    assert ((particles.num_moves >= 1) & (particles.num_moves <= 50)).all()
    assert ((particles.acceptance_rate > 0) & (particles.acceptance_rate <= 1)).all()
    assert (particles.correlation < (0.1 if estimate is smc else 0.5)).all()


def lazy(log_prob, position):
    return mcmc.metropolis(log_prob, proposal_std=0.01)


@pytest.mark.parametrize("estimate", [evidence.sequential_monte_carlo, evidence.thermodynamic_integration])
def test_particles_that_do_not_spread_are_warned_of_in_the_callers_name(estimate):
    target = linear(2)
    settings = {"num_particles": 256, "generator": seeded(), "move": lazy, "max_moves": 3}
    message = r"after 3 moves particles still correlate by (0\.9\d|1\.00) "
    with pytest.warns(UnreliableEvidence, match=message) as caught:
        result = estimate(target.prior, target.log_likelihood, **settings)
    assert result.particles.correlation.max() > 0.9
    assert "bdl_lib" not in caught[0].filename


def test_weights_of_annealing_are_right_without_spreading_and_need_no_such_warning(recwarn):
    result = ais(shifted(2, shift=0.3, noise_std=2.0), move=lazy, max_moves=1)
    assert result.particles.correlation.max() > 0.9
    assert not [warning for warning in recwarn if "correlate" in str(warning.message)]


def test_smc_leaves_equal_weights_and_ais_the_weights_that_it_averages():
    assert (smc(linear(2)).particles.log_weights == 0).all()
    result = ais(linear(2))
    log_weights = result.particles.log_weights
    close(result.value, log_weights.logsumexp(0) - math.log(1024))
    relative = (log_weights - result.value).exp()
    close(result.std_error, relative.std() / 1024**0.5)
    close(result.ess, 1024**2 / relative.square().sum())


@pytest.mark.parametrize("name", ["linear, 2", "modes"])
@pytest.mark.parametrize("estimate", WALKS)
def test_particles_are_draws_from_the_posterior(estimate, name):
    """Weighted means and second moments, against those of exact draws."""
    target = TARGETS[name]()
    particles = estimate(target, num_particles=1024).particles
    weights, exact = particles.log_weights.softmax(0)[:, None], target.draw(100_000, 7)
    for power in (1, 2):
        found = (weights * particles.position**power).sum(0)
        std_error = (exact**power).std(0) * weights.square().sum().sqrt()
        assert ((found - (exact**power).mean(0)).abs() < 5 * std_error).all()


@pytest.mark.parametrize("estimate", WALKS)
def test_every_evaluation_is_counted(estimate):
    asked = []

    def counted(position):
        asked.append(len(position))
        return logistic().log_likelihood(position)

    result = estimate(logistic()._replace(log_likelihood=counted), num_particles=64)
    assert result.num_evaluations == sum(asked)


@any_k
@pytest.mark.parametrize("estimate", WALKS)
def test_moves_of_chapter_four_fit(estimate):
    """Hamiltonian Monte Carlo as the move; chains of chapter 4 have the form that is asked for."""

    def move(log_prob, position):
        return mcmc.hmc(log_prob, step_size=0.3, num_leapfrog_steps=4)

    result = estimate(logistic(), move=move, num_particles=512)
    assert abs(result.value - logistic().exact) < 4.5 * result.std_error


def test_thermodynamic_integration_is_the_corrected_trapezium_rule():
    """With few temperatures the correction counts: without it, or with the other sign, the area is far off."""
    target = shifted(2)
    result = thermodynamic(target, target_cess=0.4, num_particles=8192, max_correlation=0.2)
    t = torch.cat([torch.zeros(1, dtype=f64), result.particles.temperature])
    prec = 1 + 4 * t  # of a coordinate at a temperature
    loc, var = 8 * t / prec, 1 / prec
    mean = 2 * (-2 * (var + (loc - 2) ** 2) - 0.5 * math.log(2 * math.pi * 0.25))
    var_log_likelihood = 2 * 4 * (2 * var**2 + 4 * var * (loc - 2) ** 2)
    step = t.diff()
    trapezium = (step * (mean[1:] + mean[:-1]) / 2).sum()
    correction = (step.square() / 12 * var_log_likelihood.diff()).sum()
    assert correction.abs() > 10 * result.std_error
    assert abs(result.value - (trapezium - correction)) < 4 * result.std_error


# ---- Moves


def moved(move, log_prob, position, num_steps, seed=0):
    kernel, generator = move(log_prob, position), seeded(seed)
    state = kernel.init(position)
    for _ in range(num_steps):
        state, info = kernel.step(state, generator)
    return state, info


def test_gaussian_move_leaves_its_density_as_it_is():
    """Exact draws from a skewed density, moved: still exact draws, by their moments and Kolmogorov–Smirnov."""

    def log_prob(position):  # logarithms of Gamma(2) variables
        return (2 * position - position.exp()).sum(1)

    start = tensor(np.log(stats.gamma.rvs(2.0, size=(20_000, 2), random_state=0)))
    state, info = moved(evidence.gaussian_move, log_prob, start, 5)
    assert (state.position != start).any(1).double().mean() > 0.8
    for column in state.position.T:
        assert stats.kstest(np.exp(column.numpy()), stats.gamma(2.0).cdf).pvalue > 0.001
    assert 0.5 < info.acceptance_rate.mean() < 1


def test_gaussian_move_is_never_refused_by_a_gaussian_of_the_particles_moments():
    """Both halves with exactly the same moments, and the density a normal of these."""
    half = randn(200, 3) @ randn(3, 3, seed=1)
    position, cov = torch.cat([half, half]), half.mT.cov()
    normal = MultivariateNormal(half.mean(0), cov)
    _, info = moved(evidence.gaussian_move, normal.log_prob, position, 3)
    close(info.acceptance_rate, 1.0, rtol=1e-9)


def test_gaussian_move_of_one_half_looks_only_at_the_other():
    """Shift the first half: what it proposes from a given place stays, what the second half proposes changes."""
    log_prob, position = standard_normal(3).log_prob, randn(40, 3)
    other = torch.cat([2 * position[:20] + 1, position[20:]])
    white = [evidence.gaussian_move(log_prob, x).init(position).white for x in (position, other)]
    close(white[0][0], white[1][0])
    assert (white[0][1] - white[1][1]).abs().max() > 0.1
    loc, cov = position[20:].mean(0), position[20:].mT.cov()
    close(torch.linalg.cholesky(cov) @ white[0][0].mT + loc[:, None], position[:20].mT)


def test_gaussian_move_is_unbiased_in_many_dimensions():
    """Few particles in 20 dimensions: exact draws stay exact, in their mean square, only if no half shapes itself."""
    dim, squares = 20, []
    for seed in range(60):
        state, _ = moved(evidence.gaussian_move, standard_normal(dim).log_prob, randn(60, dim, seed=seed), 6, seed)
        squares.append(state.position.square().mean())
    squares = torch.stack(squares)
    assert abs(squares.mean() - 1) < 4 * squares.std() / 60**0.5


def test_step_size_of_one_half_follows_the_acceptance_of_the_other():
    """Half of the particles at home, the other half with a density that refuses: the first half's step shrinks."""
    position = randn(80, 2)

    def log_prob(position):
        return torch.cat([-0.5 * position[:40].square().sum(1), -5000 * position[40:].square().sum(1)])

    state, info = moved(evidence.gaussian_move, log_prob, position, 3)
    rates = info.acceptance_rate.view(2, -1).mean(1)
    assert rates[0] > 0.5 > 0.35 > rates[1]
    assert state.step_size[0] < 1
    assert state.step_size[1] == 1


# ---- Laplace


@pytest.mark.parametrize("dim", [1, 2, 20, 50])
def test_laplace_is_exact_for_linear_models(dim):
    target = linear(dim)
    mode = evidence.find_mode(target.log_joint, torch.zeros(dim, dtype=f64))
    result = evidence.laplace(target.log_joint, mode)
    close(result.value, target.exact, rtol=1e-8)
    assert result.std_error.isnan()
    assert result.num_evaluations == 1


@pytest.mark.parametrize("dim", [1, 5, 70])
def test_diagonal_laplace_is_exact_without_correlations(dim):
    """Seventy columns are more than are computed at once."""
    target = shifted(dim)
    mode = torch.full((dim,), 1.6, dtype=f64)
    close(evidence.laplace(target.log_joint, mode, is_diagonal=True).value, target.exact)
    close(evidence.laplace(target.log_joint, mode).value, target.exact)


def test_diagonal_laplace_overlooks_correlations_by_the_ratio_of_two_determinants():
    target = linear(5)
    mode = evidence.find_mode(target.log_joint, torch.zeros(5, dtype=f64))
    full, diagonal = (evidence.laplace(target.log_joint, mode, is_diagonal=d).value for d in (False, True))
    prec = np.linalg.inv(np.cov(target.draw(200_000, 0).numpy().T))
    gap = 0.5 * (np.log(np.diag(prec)).sum() - np.linalg.slogdet(prec)[1])
    assert gap > 0.05
    assert float(full - diagonal) == pytest.approx(gap, abs=0.02)


def test_laplace_of_beta_bernoulli_is_stirlings_formula():
    """Prior Beta(2, 3), 7 of 20: mode 8 / 23, curvature 8 / m² + 15 / (1 - m)²."""
    m = 8 / 23
    result = evidence.laplace(beta_bernoulli().log_joint, tensor([m]))
    height = 8 * math.log(m) + 15 * math.log(1 - m) + math.log(12)
    close(result.value, height + 0.5 * math.log(2 * math.pi) - 0.5 * math.log(8 / m**2 + 15 / (1 - m) ** 2))
    assert abs(result.value - beta_bernoulli().exact) < 0.05


@pytest.mark.parametrize("is_diagonal", [False, True])
def test_hessian_is_that_of_finite_differences(is_diagonal):
    position = tensor([0.3, -1.2])

    def at(x):
        return logistic().log_joint(tensor(x)[None]).item()

    found = evidence.negative_hessian(logistic().log_joint, position, is_diagonal=is_diagonal)
    expected = -oracles.finite_difference_hessian(at, position.numpy())
    close(found, np.diag(expected).copy() if is_diagonal else expected, rtol=1e-5)


def test_hessian_of_a_network_is_that_of_finite_differences():
    network = networks.mlp([2, 3, 1], activation=torch.tanh)
    prior = networks.gaussian_prior(network, prior_std=1.0, dtype=f64)
    log_prob = networks.log_posterior(
        network, prior, networks.bernoulli_likelihood(), randn(8, 2, seed=1), torch.tensor([0, 1] * 4)
    )
    weights = randn(13)
    found = evidence.negative_hessian(log_prob, weights)
    expected = -oracles.finite_difference_hessian(lambda w: log_prob(tensor(w)[None]).item(), weights.numpy())
    close(found, expected, rtol=1e-4, atol=1e-4)
    close(evidence.negative_hessian(log_prob, weights, is_diagonal=True), found.diagonal())


def test_find_mode_finds_the_posterior_mean_of_a_linear_model_and_leaves_the_start_alone():
    target, start = linear(5), torch.zeros(5, dtype=f64)
    features = randn(30, 5, seed=5) @ (torch.eye(5, dtype=f64) + 0.5 / 5**0.5)
    goals = features @ randn(5, seed=1) + 0.7 * randn(30, seed=2)
    mean = oracles.linear_in_function_space(
        np.zeros(5), np.eye(5), features.numpy(), goals.numpy(), 0.7, features.numpy()
    )[0]
    close(evidence.find_mode(target.log_joint, start), mean, rtol=1e-6)
    assert (start == 0).all()
    assert not start.requires_grad


def test_laplace_says_where_a_point_is_no_summit():
    target = linear(2)
    mode = evidence.find_mode(target.log_joint, torch.zeros(2, dtype=f64))
    with pytest.warns(UnreliableEvidence, match=r"mode is not a summit: a Newton step would still gain \d+\.?\d* nats"):
        evidence.laplace(target.log_joint, mode + 0.5)
    with pytest.raises(ValueError, match=r"mode must be a summit, .* got \[0\.0, 0\.0\]"):
        evidence.laplace(lambda x: x[:, 0] ** 2 - x[:, 1] ** 2, torch.zeros(2, dtype=f64))


# ---- Grids


def test_grid_is_scipys_integral():
    result = evidence.grid_quadrature(
        logistic().log_joint, tensor([-6.0, -7.0]), tensor([6.0, 6.5]), num_points=300
    )  # 90,000 points: more than are computed at once
    close(result.value, logistic().exact, rtol=0, atol=1e-6)
    assert result.num_evaluations == 300**2
    assert result.std_error.isnan()

    skewed = lambda x: 3 * x - x.exp()  # noqa: E731
    found = evidence.grid_quadrature(lambda x: skewed(x[:, 0]), tensor([-12.0]), tensor([5.0]), num_points=2000)
    close(found.value, oracles.log_quad(lambda x: 3 * x - np.exp(x), -12, 5), rtol=0, atol=1e-7)
    close(found.value, special.gammaln(3.0), rtol=0, atol=1e-7)


def test_grid_in_three_dimensions_with_unequal_sides():
    low, high = tensor([-1.0, 0.0, -10.0]), tensor([2.0, 0.5, -9.0])
    with pytest.warns(UnreliableEvidence, match="outermost cells"):
        result = evidence.grid_quadrature(lambda x: torch.zeros(len(x), dtype=f64), low, high, num_points=5)
    close(result.value, math.log(3.0 * 0.5 * 1.0))
    position = []
    with pytest.warns(UnreliableEvidence):
        evidence.grid_quadrature(lambda x: position.append(x) or x[:, 0], low, high, num_points=2)
    corners = {tuple(row) for row in torch.cat(position).tolist()}
    assert corners == {(x, y, z) for x in (-0.25, 1.25) for y in (0.125, 0.375) for z in (-9.75, -9.25)}


def test_midpoint_rule_is_of_second_order():
    def error(num_points):
        low, high = tensor([0.0]), tensor([1.0])
        with pytest.warns(UnreliableEvidence):
            found = evidence.grid_quadrature(lambda x: x[:, 0], low, high, num_points=num_points)
        return abs(found.value.exp().item() - (math.e - 1))

    assert math.log2(error(50) / error(100)) == pytest.approx(2, abs=0.01)


def test_grid_cost_is_exact_and_never_overflows():
    cost = evidence.grid_cost(100, 3, seconds_per_evaluation=1e-6)
    assert (cost.num_evaluations, cost.seconds) == (10**6, pytest.approx(1.0))
    assert evidence.grid_cost(10, 1, seconds_per_evaluation=31_557_600.0).years == pytest.approx(10.0)
    huge = evidence.grid_cost(100, 1000, seconds_per_evaluation=1e-6)
    assert huge.num_evaluations == 10**2000
    assert huge.seconds == huge.years == inf


def test_grid_warns_where_the_box_cuts_the_mass_off():
    with pytest.warns(UnreliableEvidence, match=r"\d+\.\d% of the mass lies in the outermost cells"):
        evidence.grid_quadrature(logistic().log_joint, tensor([0.0, -6.0]), tensor([6.0, 6.0]), num_points=60)


# ---- Draws and densities


def test_draw_takes_its_numbers_from_the_generator_alone():
    distributions = {
        "normal": standard_normal(3),
        "beta": Independent(Beta(tensor([0.5, 2.0]), tensor([3.0, 1.0])), 1),
        "Student t": Independent(StudentT(tensor([5.0]), tensor([0.0]), tensor([1.0])), 1),
        "uniform": Independent(Uniform(tensor([0.0, -1.0]), tensor([1.0, 2.0])), 1),
        "ours": networks.gaussian_prior(networks.mlp([1, 2, 1]), prior_std=1.0, dtype=f64),
    }
    state = torch.get_rng_state()
    for name, distribution in distributions.items():
        first, again, other = (evidence.draw(distribution, 5, generator=seeded(s)) for s in (1, 1, 2))
        assert torch.equal(first, again), name
        assert (first != other).all(), name
        assert first.shape[0] == 5
        assert first.dtype == f64
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_follow_their_distribution():
    draws = evidence.draw(Independent(Beta(tensor([2.0, 0.5]), tensor([3.0, 0.5])), 1), 5000, generator=seeded())
    for column, (a, b) in zip(draws.T, [(2.0, 3.0), (0.5, 0.5)], strict=True):
        assert stats.kstest(column.numpy(), stats.beta(a, b).cdf).pvalue > 0.001


def test_log_density_is_minus_infinity_outside_the_support():
    box = Independent(Uniform(tensor([0.0, 0.0]), tensor([1.0, 4.0])), 1)
    found = evidence.log_density(box, tensor([[0.5, 0.5], [0.5, 5.0], [-0.1, 1.0]]))
    close(found, [-math.log(4.0), -inf, -inf])
    with pytest.raises(
        ValueError, match=r"log_prob must return one number a row, got shape \[3, 2\]; wrap independent"
    ):
        evidence.log_density(Uniform(tensor([0.0, 0.0]), tensor([1.0, 4.0])), rand(3, 2))


# ---- NaN, zero and infinity


def nan_below(target, threshold):
    """The same likelihood, but NaN where the first coordinate is below the threshold."""

    def log_likelihood(position):
        return torch.where(position[:, 0] < threshold, nan, target.log_likelihood(position))

    return target._replace(log_likelihood=log_likelihood)


def half_evidence():
    """Log evidence of one coordinate, observed at 0.3 with noise 1, of which the half below 0.1 is impossible."""
    return oracles.log_quad(lambda x: stats.norm.logpdf(x) + stats.norm.logpdf(x, 0.3, 1.0), 0.1, 12.0)


@finite_k
@pytest.mark.parametrize("estimate", [smc, ais, prior_sampling])
def test_nan_is_counted_excluded_and_reported(estimate):
    result = estimate(nan_below(shifted(1, 0.3, 1.0), 0.1), 3)
    assert abs(result.value - half_evidence()) < 4.5 * result.std_error
    assert result.std_error < 0.08
    assert 0 < result.num_excluded < result.num_evaluations


def test_nan_is_counted_exactly():
    target = nan_below(whole := shifted(1, 0.3, 1.0), 0.1)
    result = prior_sampling(target, num_samples=1000)
    position = evidence.draw(target.prior, 1000, generator=seeded())
    is_bad = position[:, 0] < 0.1
    assert result.num_excluded == int(is_bad.sum())
    close(result.value, (whole.log_likelihood(position).exp() * ~is_bad).mean().log())
    grid = evidence.grid_quadrature(target.log_joint, tensor([-7.9]), tensor([8.1]), num_points=1600)
    assert grid.num_excluded == 800
    close(grid.value, half_evidence(), rtol=0, atol=1e-5)
    draws = target.draw(4000, 0)
    result = evidence.bridge_sampling(target.log_joint, draws[draws[:, 0] > 0.1][None, :1500], generator=seeded(1))
    assert result.num_excluded > 0
    assert abs(result.value - half_evidence()) < 4.5 * result.std_error


def test_thermodynamic_integration_refuses_an_impossible_start():
    with pytest.raises(ValueError, match="log_likelihood must be finite at every draw from the prior, is -inf or NaN"):
        thermodynamic(nan_below(shifted(1, 0.3, 1.0), 0.1))


NOWHERE = {
    "zero": (-inf, r"must be finite at one of the \d+ draws at least, and \+inf at none, got a largest value of -inf"),
    "NaN": (nan, "got a largest value of -inf"),
    "infinite": (inf, r"and \+inf at none, got a largest value of inf"),
}


@pytest.mark.parametrize("kind", NOWHERE)
@pytest.mark.parametrize("estimate", [smc, ais, thermodynamic, prior_sampling, importance])
def test_a_likelihood_that_is_nowhere_positive_or_somewhere_infinite_is_refused(estimate, kind):
    value, message = NOWHERE[kind]
    target = shifted(2)._replace(log_likelihood=lambda x: torch.full((len(x),), value, dtype=f64))
    name = "log_joint" if estimate is importance else "log_likelihood"
    with pytest.raises(ValueError, match=rf"^{name} .*{message}"):
        estimate(target, **({"num_particles": 64} if estimate in WALKS else {}))


def test_densities_that_are_not_finite_where_they_must_be():
    zero = lambda x: torch.full((len(x),), -inf, dtype=f64)  # noqa: E731
    corners = tensor([-1.0, -1.0]), tensor([1.0, 1.0])
    with pytest.raises(ValueError, match=r"^log_joint must be finite at one of the .* largest value of -inf"):
        evidence.grid_quadrature(zero, *corners, num_points=4)
    with pytest.raises(ValueError, match=r"^log_joint must be finite at every draw, is not at 50 of 50"):
        evidence.bridge_sampling(zero, randn(1, 100, 2), generator=seeded())
    with pytest.raises(ValueError, match=r"^log_likelihood must be finite at every draw, is not at 9 of 9"):
        evidence.harmonic_mean(zero, randn(9, 2))
    with pytest.raises(ValueError, match=r"^log_joint must be finite at mode, got -inf"):
        evidence.laplace(zero, tensor([0.0, 0.0]))
    with pytest.raises(ValueError, match=r"^log_joint must be finite at initial_position, got .*-inf"):
        evidence.find_mode(zero, tensor([0.0, 0.0]))


# ---- Bad input


class Flat:
    """An improper prior: a density that nobody can draw from."""

    def log_prob(self, position):
        return torch.zeros(len(position), dtype=f64)


class Infinite(Flat):
    def sample(self, num_samples, *, generator):
        return torch.full((num_samples, 2), inf, dtype=f64)


IMPROPER = {
    "no draws": (Flat(), "a proper distribution must have sample and log_prob, got <"),
    "infinite draws": (Infinite(), "a proper distribution must have finite draws, got inf"),
    "infinite variance": (
        Independent(Normal(tensor([0.0]), tensor([inf])), 1),
        "a proper distribution must have finite draws, got -?inf",
    ),
    "numbers, not vectors": (
        Normal(tensor(0.0), tensor(1.0)),
        r"draws must be vectors, \[num_samples, dim\], got shape \[64\]; wrap independent coordinates",
    ),
}


@pytest.mark.parametrize("kind", IMPROPER)
@pytest.mark.parametrize("estimate", [smc, ais, thermodynamic, prior_sampling, importance])
def test_improper_priors_and_proposals_are_refused(estimate, kind):
    prior, message = IMPROPER[kind]
    settings = {"num_particles": 64} if estimate in WALKS else {"num_samples": 64}
    settings |= {"proposal": prior} if estimate is importance else {}
    with pytest.raises(ValueError, match=message):
        estimate(shifted(2)._replace(prior=prior), **settings)


def test_bayes_improper_prior_is_refused():
    with pytest.raises(ValueError, match="a proper distribution must have sample and log_prob, got GaussianWeights"):
        smc(shifted(2)._replace(prior=bayes.gaussian_prior(2, prior_std=inf)))


corner = torch.zeros(2, dtype=f64)
BAD = {
    "num_samples, prior": (lambda: prior_sampling(logistic(), num_samples=1), "num_samples must be at least 2, got 1"),
    "num_samples, proposal": (lambda: importance(logistic(), num_samples=0), "num_samples must be at least 2, got 0"),
    "num_samples, draw": (
        lambda: evidence.draw(standard_normal(2), 0, generator=seeded()),
        "num_samples must be at least 1, got 0",
    ),
    "draws, harmonic": (
        lambda: evidence.harmonic_mean(logistic().log_likelihood, randn(1, 2)),
        "num_samples must be at least 2, got 1",
    ),
    "num_particles": (lambda: smc(logistic(), num_particles=2), "num_particles must be at least 4, got 2"),
    "num_particles, of the move": (
        lambda: ais(logistic(), num_particles=6),
        r"position must be finite, with an even number of rows, at least 8 for 2 columns, got shape \[6, 2\]",
    ),
    "num_particles, odd": (lambda: ais(logistic(), num_particles=65), r"even number of rows, .* got shape \[65, 2\]"),
    "num_groups, odd": (
        lambda: smc(logistic(), num_particles=60, num_groups=3),
        "num_groups must be even and divide 60 particles, got 3",
    ),
    "num_groups, not a divisor": (
        lambda: thermodynamic(logistic(), num_particles=100, num_groups=16),
        "num_groups must be even and divide 100 particles, got 16",
    ),
    "num_groups, zero": (lambda: smc(logistic(), num_groups=0), "num_groups must be even .* got 0"),
    "num_groups, too many": (
        lambda: smc(logistic(), num_particles=64, num_groups=64),
        "num_groups must leave at least 2 of 64 particles a group, got 64",
    ),
    "target_cess, 1": (lambda: smc(logistic(), target_cess=1.0), "target_cess must be between 0 and 1, got 1.0"),
    "target_cess, NaN": (lambda: ais(logistic(), target_cess=nan), "target_cess must be between 0 and 1, got nan"),
    "max_moves": (lambda: ais(logistic(), max_moves=0), "max_moves must be at least 1, got 0"),
    "max_correlation": (lambda: smc(logistic(), max_correlation=0.0), "max_correlation must be positive, got 0.0"),
    "draws, of the bridge": (
        lambda: evidence.bridge_sampling(logistic().log_joint, randn(20, 2), generator=seeded()),
        r"draws must be \[chains, draws, dim\], got shape \[20, 2\]",
    ),
    "draws, short chains": (
        lambda: evidence.bridge_sampling(logistic().log_joint, randn(50, 7, 2), generator=seeded()),
        r"draws must be at least 8 a chain and 16 in all for 2 parameters, got shape \[50, 7, 2\]",
    ),
    "draws, few": (
        lambda: evidence.bridge_sampling(shifted(10).log_joint, randn(1, 40, 10), generator=seeded()),
        r"draws must be at least 8 a chain and 48 in all for 10 parameters, got shape \[1, 40, 10\]",
    ),
    "draws, NaN": (
        lambda: evidence.bridge_sampling(logistic().log_joint, randn(2, 20, 2) * nan, generator=seeded()),
        "draws must be finite, got nan",
    ),
    "num_proposals": (lambda: bridge(logistic(), num_proposals=1), "num_proposals must be at least 2, got 1"),
    "max_steps": (lambda: evidence.find_mode(logistic().log_joint, corner, max_steps=0), "max_steps .* got 0"),
    "grid, low above high": (
        lambda: evidence.grid_quadrature(logistic().log_joint, corner, corner - 1, num_points=5),
        r"low and high must be finite, low below high, got \[0.0, 0.0\] and \[-1.0, -1.0\]",
    ),
    "grid, infinite": (
        lambda: evidence.grid_quadrature(logistic().log_joint, corner, corner + inf, num_points=5),
        r"low and high must be finite, .* got \[0.0, 0.0\] and \[inf, inf\]",
    ),
    "grid, NaN": (
        lambda: evidence.grid_quadrature(logistic().log_joint, corner * nan, corner, num_points=5),
        r"low and high must be finite, .* got \[nan, nan\]",
    ),
    "grid, shapes": (
        lambda: evidence.grid_quadrature(logistic().log_joint, corner, corner[:1] + 1, num_points=5),
        r"low and high must be \[dim >= 1\] both, got shapes \[2\] and \[1\]",
    ),
    "grid, num_points": (
        lambda: evidence.grid_quadrature(logistic().log_joint, corner, corner + 1, num_points=1),
        "num_points must be at least 2, got 1",
    ),
    "grid, too large": (
        lambda: evidence.grid_quadrature(shifted(20).log_joint, -torch.ones(20), torch.ones(20), num_points=100),
        r"num_points must give at most max_evaluations = 1.0e\+08, got 100\^20 = 1.0e\+40 evaluations",
    ),
    "grid, a little too large": (
        lambda: evidence.grid_quadrature(logistic().log_joint, corner, corner + 1, num_points=11, max_evaluations=120),
        r"num_points must give at most max_evaluations = 1.2e\+02, got 11\^2 = 1.2e\+02 evaluations",
    ),
    "grid, beyond floats": (
        lambda: evidence.grid_quadrature(shifted(2).log_joint, -torch.ones(400), torch.ones(400), num_points=100),
        r"got 100\^400 = inf evaluations",
    ),
    "cost, num_points": (lambda: evidence.grid_cost(0, 2, seconds_per_evaluation=1.0), "num_points .* got 0"),
    "cost, dim": (lambda: evidence.grid_cost(2, 0, seconds_per_evaluation=1.0), "dim must be at least 1, got 0"),
    "cost, seconds": (
        lambda: evidence.grid_cost(2, 2, seconds_per_evaluation=nan),
        "seconds_per_evaluation must be positive and finite, got nan",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name_rule_and_value(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


WRONG_SHAPE = {
    "prior_sampling": lambda f: prior_sampling(shifted(2)._replace(log_likelihood=f), num_samples=64),
    "smc": lambda f: smc(shifted(2)._replace(log_likelihood=f), num_particles=64),
    "ais": lambda f: ais(shifted(2)._replace(log_likelihood=f), num_particles=64),
    "importance": lambda f: evidence.importance_sampling(f, standard_normal(2), num_samples=64, generator=seeded()),
    "harmonic": lambda f: evidence.harmonic_mean(f, randn(64, 2)),
    "grid": lambda f: evidence.grid_quadrature(f, corner, corner + 1, num_points=8),
    "bridge": lambda f: evidence.bridge_sampling(f, randn(2, 64, 2), generator=seeded()),
}


@pytest.mark.parametrize("name", WRONG_SHAPE)
def test_densities_of_the_wrong_shape_are_refused(name):
    with pytest.raises(ValueError, match=r"^log_\w+ must return one number a row, \[64\], got shape \[64, 2\]"):
        WRONG_SHAPE[name](lambda position: -position.square())
    with pytest.raises(ValueError, match=r"^log_\w+ must return one number a row, \[64\], got shape \[\]"):
        WRONG_SHAPE[name](lambda position: -position.square().sum())


# ---- Reproducible, pure, in either precision

RANDOM = {"smc": smc, "ais": ais, "thermodynamic": thermodynamic, "bridge": bridge, "prior": prior_sampling,
          "importance": importance}  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_same_seed_same_answer_and_no_global_randomness(name):
    state = torch.get_rng_state()
    first, again, other = (RANDOM[name](logistic(), seed) for seed in (1, 1, 2))
    assert torch.equal(first.value, again.value)
    assert torch.equal(first.std_error, again.std_error)
    assert first.value != other.value
    assert torch.equal(torch.get_rng_state(), state)


@any_k
def test_inputs_are_left_alone():
    target, draws, mode = logistic(), logistic().draw(400, 0)[None], tensor([1.0, -0.5])
    low, high, position = corner - 6, corner + 6, randn(20, 2)
    inputs = [draws, mode, low, high, position]
    copies = [x.clone() for x in inputs]
    evidence.bridge_sampling(target.log_joint, draws, generator=seeded())
    evidence.harmonic_mean(target.log_likelihood, draws[0])
    evidence.grid_quadrature(target.log_joint, low, high, num_points=50)
    evidence.negative_hessian(target.log_joint, mode)
    evidence.find_mode(target.log_joint, mode)
    moved(evidence.gaussian_move, standard_normal(2).log_prob, position, 2)
    evidence.next_temperature(0.0, position[:, 0], position[:, 1], target_cess=0.9)
    assert all(torch.equal(x, copy) and not x.requires_grad for x, copy in zip(inputs, copies, strict=True))


@any_k
@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_both_precisions(dtype):
    """Everything in the precision of the inputs, and the evidence right in both."""
    prior, var = standard_normal(2, dtype), 0.25

    def log_likelihood(position):
        return -0.5 * (position - 2).square().sum(1) / var - math.log(2 * math.pi * var)

    def log_joint(position):
        return prior.log_prob(position) + log_likelihood(position)

    exact = oracles.shifted_gaussian_log_evidence(2, 2.0, 0.5)
    draws = (1.6 + 0.2**0.5 * randn(2000, 2, dtype=dtype))[None]
    proposal = MultivariateNormal(torch.full((2,), 1.6, dtype=dtype), 0.3 * torch.eye(2, dtype=dtype))
    zeros = torch.zeros(2, dtype=dtype)
    random = [
        evidence.sequential_monte_carlo(prior, log_likelihood, num_particles=1024, generator=seeded(1)),
        evidence.annealed_importance_sampling(prior, log_likelihood, num_particles=512, generator=seeded(2)),
        evidence.thermodynamic_integration(prior, log_likelihood, num_particles=1024, generator=seeded(3)),
        evidence.bridge_sampling(log_joint, draws, generator=seeded(4)),
        evidence.importance_sampling(log_joint, proposal, num_samples=1000, generator=seeded(5)),
        evidence.prior_sampling(prior, log_likelihood, num_samples=5000, generator=seeded(6)),
    ]
    mode = evidence.find_mode(log_joint, zeros)
    fixed = [
        evidence.laplace(log_joint, mode),
        evidence.laplace(log_joint, mode, is_diagonal=True),
        evidence.grid_quadrature(log_joint, zeros - 3, zeros + 6, num_points=100),
    ]
    for result in random:
        assert abs(result.value - exact) < 4.5 * result.std_error
    for result in fixed:
        close(result.value, exact, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-9)
    assert {result.value.dtype for result in random + fixed} == {dtype}
    assert {result.std_error.dtype for result in random + fixed} == {dtype}
    assert evidence.draw(prior, 3, generator=seeded()).dtype == dtype
