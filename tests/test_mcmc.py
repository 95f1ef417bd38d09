"""bdl_lib.mcmc, first half: densities, kernels, what warm-up learns, the one loop, and draws that are stored.

Exactness is tested in float64. Where a test draws at random, it is seeded; a test of a right sampler fails by bad luck
with a probability of at most 0.01, and most of them of far less.
"""

import functools
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sim_device
import torch
from scipy import special, stats

from bdl_lib import bayes, mcmc, networks
from bdl_lib.mcmc.hmc import integrate
from bdl_lib.mcmc.trajectory_length import chees_gradient, jittered_steps

inf, nan = math.inf, math.nan
f64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=f64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def tensor(values):
    return torch.tensor(values, dtype=f64)


def close(actual, expected, *, rtol=1e-10, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=rtol, atol=atol)


# ---- Densities


def log_gammas(position):
    """Logarithms of Gamma(2) variables, independent: a skewed density, curved everywhere."""
    return (2 * position - position.exp()).sum(-1)


class ClosedForm:
    """The same with its gradient, which counts how often it is asked for what."""

    def __init__(self):
        self.asked = []

    def __call__(self, position):
        self.asked.append("value")
        return log_gammas(position)

    def value_and_grad(self, position):
        self.asked.append("value and gradient")
        return log_gammas(position), 2 - position.exp()

    def grad(self, position):
        self.asked.append("gradient")
        return 2 - position.exp()


def test_autograd_and_closed_form_agree_and_the_closed_form_is_used():
    position, closed_form = randn(5, 3), ClosedForm()
    by_autograd, by_hand = mcmc.differentiable(log_gammas), mcmc.differentiable(closed_form)
    for density in (by_autograd, by_hand):
        value, grad = density.value_and_grad(position)
        close(value, log_gammas(position))
        close(grad, 2 - position.exp())
        close(density.grad(position), grad)
        assert not value.requires_grad
    assert closed_form.asked == ["value and gradient", "gradient"]


@pytest.mark.parametrize("method", ["value_and_grad", "grad"])
def test_one_of_the_two_closed_forms_is_enough(method):
    class Partial:
        def __call__(self, position):
            return log_gammas(position)

    setattr(Partial, method, getattr(ClosedForm(), method))
    density = mcmc.differentiable(Partial())
    close(density.grad(randn(4, 2)), 2 - randn(4, 2).exp())
    close(density.value_and_grad(randn(4, 2))[1], 2 - randn(4, 2).exp())


# ---- The leapfrog integrator

DENSE = tensor([[2.0, 0.6, 0.1], [0.6, 1.0, -0.2], [0.1, -0.2, 0.5]])
MATRICES = {"identity": None, "diagonal": tensor([0.5, 1.0, 2.0]), "dense": DENSE}


@pytest.mark.parametrize("name", MATRICES)
def test_leapfrog_is_the_textbooks(name):
    position, momentum, step_size = randn(4, 3), randn(4, 3, seed=1), 0.1
    found = mcmc.leapfrog(
        log_gammas, position, momentum, step_size=step_size, num_leapfrog_steps=7, inverse_mass_matrix=MATRICES[name]
    )
    matrix = {"identity": torch.eye(3, dtype=f64), "diagonal": tensor([0.5, 1.0, 2.0]).diag(), "dense": DENSE}[name]
    for _ in range(7):
        momentum = momentum + 0.5 * step_size * (2 - position.exp())
        position = position + step_size * momentum @ matrix
        momentum = momentum + 0.5 * step_size * (2 - position.exp())
    close(found.position, position)
    close(found.momentum, momentum)
    close(found.log_prob, log_gammas(position))
    close(found.grad, 2 - position.exp())


@pytest.mark.parametrize("name", MATRICES)
def test_leapfrog_is_reversible_and_leaves_its_arguments_alone(name):
    position, momentum = randn(20, 3), randn(20, 3, seed=1)
    follow = functools.partial(
        mcmc.leapfrog, log_gammas, step_size=0.2, num_leapfrog_steps=20, inverse_mass_matrix=MATRICES[name]
    )
    there = follow(position, momentum)
    assert (there.position - position).abs().max() > 0.5
    back = follow(there.position, -there.momentum)
    close(back.position, position, rtol=0, atol=1e-10)
    close(-back.momentum, momentum, rtol=0, atol=1e-10)
    close(position, randn(20, 3), rtol=0, atol=0)
    close(momentum, randn(20, 3, seed=1), rtol=0, atol=0)


@pytest.mark.parametrize("name", MATRICES)
def test_leapfrog_preserves_volume(name):
    metric, density = mcmc.gaussian_momentum(MATRICES[name]), mcmc.differentiable(ClosedForm())

    def follow(phase):
        position, momentum = phase[None, :3], phase[None, 3:]
        start = mcmc.PhasePoint(position, momentum, *density.value_and_grad(position))
        end = integrate(density, metric, start, 0.3, 10)
        return torch.cat([end.position, end.momentum], 1)[0]

    for phase in randn(3, 6):
        jacobian = torch.func.jacrev(follow)(phase)
        assert (jacobian - torch.eye(6)).abs().max() > 0.5
        close(torch.linalg.det(jacobian), 1.0, rtol=0, atol=1e-10)


def test_energy_error_is_of_second_order():
    position, momentum = randn(50, 3), randn(50, 3, seed=1)

    def error(step_size):
        end = mcmc.leapfrog(
            log_gammas, position, momentum, step_size=step_size, num_leapfrog_steps=round(1 / step_size)
        )
        energy = 0.5 * momentum.square().sum(1) - log_gammas(position)
        return (0.5 * end.momentum.square().sum(1) - end.log_prob - energy).abs().mean().item()

    slope = math.log(error(0.02) / error(0.01)) / math.log(2)
    assert abs(slope - 2) < 0.01


@pytest.mark.parametrize("name", MATRICES)
def test_momenta_have_the_mass_matrix_as_covariance(name):
    metric = mcmc.gaussian_momentum(MATRICES[name])
    momentum, energy = metric.draw(randn(100_000, 3), seeded())
    matrix = {"identity": torch.eye(3, dtype=f64), "diagonal": tensor([0.5, 1.0, 2.0]).diag(), "dense": DENSE}[name]
    close(momentum.mT @ momentum / 100_000, torch.linalg.inv(matrix), rtol=0, atol=0.06)  # 6 standard errors
    close(energy, 0.5 * (momentum * metric.velocity(momentum)).sum(1))
    whitened = metric.whiten(torch.linalg.cholesky(matrix).mT)  # of columns C to the identity, as rows
    close(whitened, torch.eye(3, dtype=f64))


@pytest.mark.parametrize("name", MATRICES)
def test_a_trajectory_waits_for_nothing_and_costs_two_operations_a_step(name, device):
    if device.type != "sim":
        pytest.skip("only the simulated device counts")
    matrix = None if MATRICES[name] is None else MATRICES[name].to(device)

    class Counted:
        def __call__(self, position):
            return -0.5 * position.square().sum(1)

        def value_and_grad(self, position):
            return self(position), -position

        def grad(self, position):
            return -position  # one operation

    def launches(num_steps):
        kernel = mcmc.hmc(Counted(), step_size=0.1, num_leapfrog_steps=num_steps, inverse_mass_matrix=matrix)
        state, generator = kernel.init(torch.ones(4, 3, dtype=f64, device=device)), torch.Generator(device)
        with sim_device.count() as counts:
            kernel.step(state, generator)
        assert (counts.host_syncs, counts.copies_to_host) == (0, 0)
        return counts.kernel_launches

    assert launches(21) - launches(1) == 20 * (1 + 2)


def test_the_density_is_evaluated_at_the_ends_of_trajectories_only():
    log_prob = ClosedForm()
    kernel = mcmc.hmc(log_prob, step_size=0.1, num_leapfrog_steps=5)
    state = kernel.init(randn(4, 3))
    assert log_prob.asked == ["value and gradient"]
    log_prob.asked.clear()
    mcmc.collect(kernel, state, num_samples=3, generator=seeded())
    assert log_prob.asked == (["gradient"] * 4 + ["value and gradient"]) * 3


def test_sampling_waits_for_nothing(device):
    if device.type != "sim":
        pytest.skip("only the simulated device counts")
    kernel = mcmc.chees(log_gammas, step_size=0.3, trajectory_length=1.5, inverse_mass_matrix=torch.ones(3).to(device))
    state, generator = kernel.init(torch.zeros(4, 3, device=device)), torch.Generator(device)
    with sim_device.count() as counts:
        mcmc.collect(kernel, state, num_samples=10, generator=generator)
    assert (counts.host_syncs, counts.copies_to_host) == (0, 0)


# ---- Kernels: from exact draws, a step leads to exact draws


def no_decision(log_prob, *, step_size, num_leapfrog_steps):
    """A planted fault: the end of every trajectory is taken."""

    def step(state, generator):
        momentum = torch.randn(state.position.shape, generator=generator, dtype=state.position.dtype)
        end = mcmc.leapfrog(
            log_prob, state.position, momentum, step_size=step_size, num_leapfrog_steps=num_leapfrog_steps
        )
        accepted = torch.ones(len(momentum))
        return mcmc.HmcState(end.position, end.log_prob, end.grad), mcmc.MetropolisInfo(accepted, accepted > 0, end[2])

    return mcmc.hmc(log_prob, step_size=1.0, num_leapfrog_steps=1)._replace(step=step)


SPREAD = tensor([[0.7, 0.2], [0.2, 0.5]])
KERNELS = {
    "metropolis": lambda f: mcmc.metropolis(f, proposal_std=1.0),
    "metropolis, two widths": lambda f: mcmc.metropolis(f, proposal_std=tensor([0.5, 2.0])),
    "mala": lambda f: mcmc.mala(f, step_size=1.2),
    "mala, dense": lambda f: mcmc.mala(f, step_size=1.2, inverse_mass_matrix=SPREAD),
    "hmc": lambda f: mcmc.hmc(f, step_size=0.9, num_leapfrog_steps=3),
    "hmc, diagonal": lambda f: mcmc.hmc(f, step_size=1.2, num_leapfrog_steps=3, inverse_mass_matrix=SPREAD[0]),
    "hmc, dense": lambda f: mcmc.hmc(f, step_size=1.2, num_leapfrog_steps=3, inverse_mass_matrix=SPREAD),
    "chees": lambda f: mcmc.chees(f, step_size=1.2, trajectory_length=2.0, inverse_mass_matrix=SPREAD, jitter=1.0),
    "nuts": lambda f: mcmc.nuts(f, step_size=0.8),
    "nuts, short": lambda f: mcmc.nuts(f, step_size=0.3, max_tree_depth=2),
    "nuts, dense": lambda f: mcmc.nuts(f, step_size=0.8, inverse_mass_matrix=SPREAD),
}


def p_of_step(kernel, num_chains=20_000, num_steps=3):
    """The least p-value of Kolmogorov-Smirnov tests: that chains from exact draws stay exact draws."""
    generator = np.random.default_rng(0)
    state = kernel.init(torch.tensor(np.log(generator.gamma(2.0, size=(num_chains, 2)))))
    position = mcmc.collect(kernel, state, num_samples=num_steps, generator=seeded()).position[:, -1]
    assert (position != state.position).any(1).float().mean() > 0.5  # they did move
    tests = [stats.kstest(np.exp(column.numpy()), stats.gamma(2.0).cdf).pvalue for column in position.T]
    # and the two of them are independent still: the sum of two Gamma(2) is Gamma(4)
    tests += [stats.kstest(np.exp(position.numpy()).sum(1), stats.gamma(4.0).cdf).pvalue]
    return min(tests)


@pytest.mark.parametrize("name", KERNELS)
def test_exact_draws_stay_exact_draws(name):
    assert p_of_step(KERNELS[name](log_gammas)) > 0.001


def test_a_kernel_that_never_rejects_is_caught():
    assert p_of_step(no_decision(log_gammas, step_size=0.9, num_leapfrog_steps=3)) < 1e-6


def test_mala_is_a_langevin_proposal_with_the_metropolis_hastings_ratio():
    position, step_size = randn(500, 2), 1.1
    kernel = mcmc.mala(log_gammas, step_size=step_size, inverse_mass_matrix=SPREAD)
    _, info = kernel.step(kernel.init(position), seeded(3))
    noise = torch.randn(500, 2, generator=seeded(3), dtype=f64) @ torch.linalg.inv(torch.linalg.cholesky(SPREAD))

    def mean(x):
        return x + 0.5 * step_size**2 * (2 - x.exp()) @ SPREAD

    def log_density(x, given):
        return torch.distributions.MultivariateNormal(mean(given), step_size**2 * SPREAD).log_prob(x)

    there = mean(position) + step_size * noise @ SPREAD
    log_ratio = log_gammas(there) + log_density(position, there) - log_gammas(position) - log_density(there, position)
    close(info.acceptance_rate, log_ratio.clamp(max=0).exp(), atol=1e-10)
    assert 0.2 < info.acceptance_rate.mean() < 0.9


def test_infos_say_what_happened():
    for kernel in (KERNELS["hmc"](log_gammas), KERNELS["nuts"](log_gammas), KERNELS["metropolis"](log_gammas)):
        state = kernel.init(randn(200, 2))
        after, info = kernel.step(state, seeded())
        moved = (after.position != state.position).any(1)
        close(info.log_prob, log_gammas(after.position))
        close(after.log_prob, info.log_prob)
        assert ((info.acceptance_rate >= 0) & (info.acceptance_rate <= 1)).all()
        if hasattr(info, "is_accepted"):
            assert torch.equal(moved, info.is_accepted)
            assert abs(info.is_accepted.double().mean() - info.acceptance_rate.mean()) < 0.1
        if hasattr(info, "energy"):
            assert (info.energy + after.log_prob >= 0).all()  # the kinetic energy
            close(after.grad, 2 - after.position.exp())


def test_nuts_stops_before_it_comes_round():
    kernel = mcmc.nuts(lambda x: -0.5 * x.square().sum(1), step_size=0.1)
    state = kernel.init(randn(500, 10))
    _, info = kernel.step(state, seeded())
    # a Gaussian's trajectories are ellipses, gone round in 2π, about 63 steps; its ends are far apart before half of it
    assert 10 < info.num_leapfrog_steps.median() < 32
    assert info.num_leapfrog_steps.max() <= 63
    assert (info.num_leapfrog_steps <= 2**info.tree_depth - 1).all()
    assert (info.num_leapfrog_steps >= 2 ** (info.tree_depth - 1)).all()
    assert info.acceptance_rate.min() > 0.95


# ---- Ten targets with known answers


def normal(mean, cov):
    """Log density of a Gaussian, and its exact moments."""
    mean, cov = tensor(mean), tensor(cov)
    prec = torch.linalg.inv(cov)
    return (lambda x: -0.5 * ((x - mean) @ prec * (x - mean)).sum(1)), mean, cov.diagonal()


def ill_conditioned():
    rotation = torch.linalg.qr(randn(20, 20)).Q
    return normal([0.0] * 20, (rotation @ torch.logspace(-2, 2, 20, dtype=f64).diag() @ rotation.mT).tolist())


def student():
    return (lambda x: -0.5 * 11 * torch.log1p(x.square() / 10).sum(1)), [0.0] * 3, [10 / 8] * 3


def banana():
    def log_prob(x):
        return -0.5 * x[:, 0].square() - 0.5 * (x[:, 1] - 0.5 * (x[:, 0].square() - 1)).square()

    return log_prob, [0.0, 0.0], [1.0, 1.5]


def by_quadrature(log_prob, low, high, dim):
    """Means and variances on a fine grid."""
    axis = torch.linspace(low, high, 401, dtype=f64)
    grid = torch.cartesian_prod(*[axis] * dim).view(-1, dim)
    weight = log_prob(grid).softmax(0)
    mean = weight @ grid
    return mean.tolist(), (weight @ (grid - mean).square()).tolist()


def logistic_data(num_rows=30):
    features = torch.cat([randn(num_rows, 1), torch.ones(num_rows, 1, dtype=f64)], 1)
    return features, (torch.rand(num_rows, generator=seeded(1)) < features[:, 0].sigmoid()).long()


def logistic():
    log_prob = bayes.logistic_posterior(*logistic_data(), prior_std=2.0)
    return log_prob, *by_quadrature(log_prob, -4, 6, 2)


def funnel_non_centred():
    return (lambda x: -0.5 * x.square().sum(1)), [0.0] * 3, [1.0, math.exp(0.5), math.exp(0.5)]


def widen(x):
    """From the standardised to the funnel's own: the scale of all others is exp(x₁ / 2)."""
    return torch.cat([x[..., :1], x[..., 1:] * (x[..., :1] / 2).exp()], -1)


def beta_of_log_odds(x):
    """Beta(2, 5) in log odds: a log p + b log(1 - p), the Jacobian included."""
    return 2 * torch.nn.functional.logsigmoid(x).sum(1) + 5 * torch.nn.functional.logsigmoid(-x).sum(1)


def beta():
    exact = stats.beta(2, 5)
    return beta_of_log_odds, [exact.mean()] * 2, [exact.var()] * 2


def mixture():
    def log_prob(x):
        both = torch.stack([-0.5 * (x + 1).square().sum(1), 0.7 - 0.5 * (x - 1).square().sum(1)])
        return both.logsumexp(0)

    return log_prob, *by_quadrature(log_prob, -7, 7, 1)


def linear_regression():
    network, inputs, targets = networks.mlp([3, 1], bias=False), randn(12, 3), randn(12, seed=1)
    prior = networks.gaussian_prior(network, prior_std=1.3, dtype=f64)
    log_prob = networks.log_posterior(network, prior, networks.gaussian_likelihood(0.4), inputs, targets)
    exact = bayes.linear_posterior(bayes.gaussian_prior(3, prior_std=1.3, dtype=f64), inputs, targets, noise_std=0.4)
    return log_prob, exact.loc, torch.linalg.inv(exact.prec).diagonal()


def skewed():
    return log_gammas, [float(special.digamma(2))] * 3, [float(special.polygamma(1, 2))] * 3


TARGETS = {
    "correlated Gaussian": (lambda: normal([1.0, -2.0], [[2.0, 1.2], [1.2, 0.8]]), 2, None),
    "ill-conditioned Gaussian": (ill_conditioned, 20, None),
    "Student t": (student, 3, None),
    "banana": (banana, 2, None),
    "logistic regression": (logistic, 2, None),
    "funnel, non-centred": (funnel_non_centred, 3, widen),
    "Beta through its log odds": (beta, 2, torch.sigmoid),
    "mixture of two": (mixture, 1, None),
    "linear regression": (linear_regression, 3, None),
    "log-gammas": (skewed, 3, None),
}


def worst_z(draws, mean, var):
    """Distance of means and variances from the truth, in standard errors; the chains are independent."""
    mean, var = (torch.as_tensor(x, dtype=f64) for x in (mean, var))
    errors = torch.cat([draws - mean, (draws - mean).square() - var], -1).mean(1)  # [chains, 2 dim]
    return (errors.mean(0) / (errors.std(0) / len(errors) ** 0.5)).abs().max().item()


def run_target(sampler, name, *, num_chains=200, num_warmup=120, num_samples=100, **settings):
    make, dim, transform = TARGETS[name]
    log_prob, mean, var = make()
    draws = sampler(
        log_prob,
        randn(num_chains, dim, seed=5),
        num_warmup=num_warmup,
        num_samples=num_samples,
        generator=seeded(2),
        **settings,
    )
    position = transform(draws.position) if transform else draws.position
    return worst_z(position, mean, var)


@pytest.mark.parametrize("name", TARGETS)
def test_moments_by_chees(name):
    assert run_target(mcmc.sample_chees, name) < 4


@pytest.mark.parametrize("name", ["banana", "log-gammas", "linear regression", "correlated Gaussian"])
def test_moments_by_nuts(name):
    assert run_target(mcmc.sample_nuts, name, num_chains=100, num_warmup=50, num_samples=50) < 4


@pytest.mark.parametrize("name", ["Student t", "log-gammas", "linear regression"])
@pytest.mark.parametrize("sampler", [mcmc.sample_metropolis, mcmc.sample_mala, mcmc.sample_hmc])
def test_moments_by_the_others(name, sampler):
    assert run_target(sampler, name, num_warmup=150, num_samples=300) < 4


def test_errors_are_as_large_as_they_claim():
    log_prob, *_ = normal([0.0] * 50, torch.eye(50).tolist())
    draws = mcmc.sample_chees(log_prob, randn(200, 50), num_warmup=60, num_samples=40, generator=seeded())
    errors = torch.cat([draws.position, draws.position.square() - 1], -1).mean(1)
    z = errors.mean(0) / (errors.std(0) / 200**0.5)
    assert 0.78 < z.square().mean().sqrt() < 1.22  # 100 of them: a 0.999 interval for an rms of 1


def test_a_dropped_jacobian_is_caught(monkeypatch):
    def without(x):
        return torch.nn.functional.logsigmoid(x).sum(1) + 4 * torch.nn.functional.logsigmoid(-x).sum(1)

    monkeypatch.setitem(TARGETS, "wrong", (lambda: (without, *beta()[1:]), 2, torch.sigmoid))
    assert run_target(mcmc.sample_chees, "wrong") > 10


def test_a_sampler_that_never_rejects_is_caught():
    def sampler(log_prob, position, *, num_warmup, num_samples, generator):
        kernel = no_decision(log_prob, step_size=1.2, num_leapfrog_steps=3)
        state = mcmc.collect(kernel, kernel.init(position), num_samples=num_warmup, generator=generator).state
        return mcmc.collect(kernel, state, num_samples=num_samples, generator=generator)

    assert run_target(sampler, "funnel, non-centred") > 10


# ---- What warm-up learns


def test_dual_averaging_is_the_papers():
    search, errors = mcmc.dual_averaging_start(0.5), []
    log_mean = math.log(0.5)
    for t, rate in enumerate([0.1, 0.9, 0.75, 0.3], start=1):
        search = mcmc.dual_averaging_step(search, rate, 0.8)
        errors.append(0.8 - rate)
        # the mean of algorithm 5, written out: (t0 + t) h_t = sum of the errors, as t0 zero errors came before
        expected = math.log(1.0) - math.sqrt(t) / 0.1 * sum(errors) / (t + 10)
        log_mean = t**-0.75 * expected + (1 - t**-0.75) * log_mean
        assert search.log_step_size == pytest.approx(expected, rel=1e-12)
        assert search.log_step_size_mean == pytest.approx(log_mean, rel=1e-12)


@pytest.mark.parametrize(
    ("sampler", "target"), [("metropolis", 0.234), ("mala", 0.574), ("mala", 0.8), ("hmc", 0.7), ("nuts", 0.8)]
)
def test_acceptance_comes_to_its_target(sampler, target):
    settings = {"num_leapfrog_steps": 2} if sampler == "hmc" else {}
    draws = getattr(mcmc, f"sample_{sampler}")(
        log_gammas,
        randn(100, 5),
        num_warmup=40 if sampler == "nuts" else 200,
        num_samples=30,
        generator=seeded(),
        target_acceptance_rate=target,
        **settings,
    )
    assert abs(draws.info["acceptance_rate"].mean() - target) < 0.06


def test_pooled_mass_matrix_is_the_covariance_where_that_pays():
    correlated = randn(100, 20, 3) @ torch.linalg.cholesky(DENSE).mT
    covariance = tensor(np.cov(correlated.flatten(0, 1).numpy().T, bias=True))
    close(mcmc.pooled_inverse_mass_matrix(correlated), covariance)
    close(mcmc.pooled_inverse_mass_matrix(correlated, mass_matrix="diagonal"), covariance.diagonal())
    alone = randn(100, 20, 3) * tensor([0.1, 1.0, 100.0])
    close(mcmc.pooled_inverse_mass_matrix(alone), alone.flatten(0, 1).var(0, correction=0))
    assert mcmc.pooled_inverse_mass_matrix(alone, mass_matrix="dense").shape == (3, 3)
    few = randn(2, 14, 3) @ torch.linalg.cholesky(DENSE).mT
    assert mcmc.pooled_inverse_mass_matrix(few, mass_matrix="dense").shape == (3,)


def test_directions_without_variance_count_as_unit():
    draws = torch.cat([randn(10, 20, 2), torch.ones(10, 20, 1, dtype=f64)], -1)
    assert mcmc.pooled_inverse_mass_matrix(draws, mass_matrix="dense")[..., -1].flatten()[-1] == 1
    same = mcmc.pooled_inverse_mass_matrix(torch.stack([draws[..., 0]] * 3, -1), mass_matrix="dense")
    assert same.ndim == 1 or torch.linalg.cholesky_ex(same).info == 0


def test_halton_is_scipys():
    expected = stats.qmc.Halton(1, scramble=False).random(200)[1:, 0]
    assert [mcmc.halton(i) for i in range(1, 200)] == pytest.approx(list(expected), abs=1e-15)


def test_plans_have_the_mean_length_and_no_longer_step():
    plans = [jittered_steps(i, 0.4, 1.5, 0.3, 1000) for i in range(4095)]
    lengths = np.array([step * num for step, num in plans])
    assert lengths.mean() == pytest.approx(1.5, abs=1e-3)
    assert lengths.min() == pytest.approx(1.05, abs=1e-3)
    assert lengths.max() == pytest.approx(1.95, abs=1e-3)
    assert max(step for step, _ in plans) <= 0.4
    assert jittered_steps(0, 0.001, 100.0, 0.0, 16) == (0.001, 16)


@pytest.mark.parametrize("length", [0.7, math.pi / 2, 2.2])
@pytest.mark.parametrize("is_dense", [False, True])
def test_chees_gradient_of_a_gaussian(length, is_dense):
    """The criterion is sin²t: its logarithm changes by 2t cot t."""
    matrix = DENSE if is_dense else tensor([0.5, 1.0, 2.0])
    covariance = matrix if is_dense else matrix.diag()
    position = randn(100_000, 3) @ torch.linalg.cholesky(covariance).mT
    prec = torch.linalg.inv(covariance)
    metric = mcmc.gaussian_momentum(matrix)
    momentum, _ = metric.draw(position, seeded(1))
    end = mcmc.leapfrog(
        lambda x: -0.5 * ((x @ prec) * x).sum(1),
        position,
        momentum,
        step_size=length / 40,
        num_leapfrog_steps=40,
        inverse_mass_matrix=matrix,
    )
    found = chees_gradient(metric, position, end, torch.ones(100_000, dtype=f64), length)
    assert found.item() == pytest.approx(2 * length / math.tan(length), abs=0.05)


@pytest.mark.parametrize("dim", [2, 20])
def test_chees_finds_a_quarter_turn_and_the_covariance(dim):
    rotation = torch.linalg.qr(randn(dim, dim)).Q
    cov = rotation @ torch.logspace(-1, 1, dim, dtype=f64).diag() @ rotation.mT
    log_prob = normal([0.0] * dim, cov.tolist())[0]
    draws = mcmc.sample_chees(log_prob, randn(500, dim), num_warmup=150, num_samples=1, generator=seeded())
    assert draws.settings["inverse_mass_matrix"].shape == (dim, dim)
    close(draws.settings["inverse_mass_matrix"], cov, rtol=0, atol=0.1 * cov.diagonal().max().item())
    assert draws.settings["trajectory_length"] == pytest.approx(math.pi / 2, rel=0.15)


def test_network_posterior_goes_straight_in():
    network = networks.mlp([1, 4, 1], activation=torch.tanh)
    prior = networks.gaussian_prior(network, prior_std=1.0, dtype=f64)
    log_prob = networks.log_posterior(network, prior, networks.gaussian_likelihood(0.3), randn(9, 1), randn(9, seed=1))
    start = prior.sample(16, generator=seeded())
    for sampler in (mcmc.sample_chees, mcmc.sample_nuts, mcmc.sample_metropolis):
        draws = sampler(log_prob, start, num_warmup=10, num_samples=5, generator=seeded())
        assert draws.position.shape == (16, 5, network.dim)
        close(draws.info["log_prob"], log_prob(draws.position.flatten(0, 1)).view(16, 5))


# ---- The loop, and draws that are stored

SAMPLERS = {name: getattr(mcmc, f"sample_{name}") for name in ("metropolis", "mala", "hmc", "nuts", "chees")}


def short_run(name, num_samples=6, **settings):
    return SAMPLERS[name](
        log_gammas, randn(8, 3), num_warmup=10, num_samples=num_samples, generator=seeded(7), **settings
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_same_seed_same_draws_in_one_go_or_resumed_through_a_file(name, tmp_path):
    whole, again, part = short_run(name, 9), short_run(name, 9), short_run(name, 4)
    assert torch.equal(whole.position, again.position)
    assert whole.position.shape == (8, 9, 3)
    assert all(column.shape == (8, 9) for column in whole.info.values())
    mcmc.save_draws(part, tmp_path / "part.pt")
    stored = mcmc.load_draws(tmp_path / "part.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["part.pt"]
    assert type(stored.state) is type(part.state)
    kernel = getattr(mcmc, name)(log_gammas, **stored.settings)
    for first in (part, stored):
        rest = mcmc.resume(kernel, first, num_samples=5, generator=torch.Generator())
        assert torch.equal(torch.cat([first.position, rest.position], 1), whole.position)
        for key, column in whole.info.items():
            assert torch.equal(torch.cat([first.info[key], rest.info[key]], 1), column)
        assert torch.equal(rest.generator_state, whole.generator_state)
        assert rest.settings.keys() == part.settings.keys()


def test_a_failed_save_leaves_the_old_file(tmp_path):
    draws = short_run("metropolis")
    mcmc.save_draws(draws, tmp_path / "draws.pt")
    with pytest.raises(Exception, match=r"pickle|Can't|cannot"):
        mcmc.save_draws(draws._replace(settings={"broken": lambda: 0}), tmp_path / "draws.pt")
    assert torch.equal(mcmc.load_draws(tmp_path / "draws.pt").position, draws.position)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_with_code_in_it_is_not_read(tmp_path):
    torch.save({"position": Path("x")}, tmp_path / "draws.pt")
    with pytest.raises(ValueError, match="Weights only load failed"):
        mcmc.load_draws(tmp_path / "draws.pt")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b"", lambda b: b"none"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "draws.pt"
    mcmc.save_draws(short_run("metropolis"), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"path must be a whole file written by save_draws, .*draws\.pt is not"):
        mcmc.load_draws(path)


def test_other_files_hold_no_draws(tmp_path):
    torch.save({"position": torch.ones(2)}, tmp_path / "draws.pt")
    with pytest.raises(ValueError, match="path must be a whole file written by save_draws"):
        mcmc.load_draws(tmp_path / "draws.pt")
    with pytest.raises(FileNotFoundError):
        mcmc.load_draws(tmp_path / "none.pt")


@pytest.mark.parametrize("name", SAMPLERS)
def test_inputs_stay_as_they_are_and_the_start_may_lie_anywhere_in_memory(name):
    start = randn(3, 8).mT
    before = start.clone()
    first = SAMPLERS[name](log_gammas, start, num_warmup=10, num_samples=3, generator=seeded())
    second = SAMPLERS[name](log_gammas, before.contiguous(), num_warmup=10, num_samples=3, generator=seeded())
    close(start, before, rtol=0, atol=0)
    close(first.position, second.position)


def test_draws_are_written_into_one_tensor():
    kernel = mcmc.metropolis(log_gammas, proposal_std=1.0)
    seen = []

    def step(state, generator):
        seen.append(state.position.clone())
        return kernel.step(state, generator)

    start = kernel.init(randn(5, 2))
    draws = mcmc.collect(kernel._replace(step=step), start, num_samples=4, generator=seeded())
    assert draws.position.untyped_storage().nbytes() == 5 * 4 * 2 * 8
    for i, position in enumerate(seen[1:]):
        close(draws.position[:, i], position, rtol=0, atol=0)
    close(draws.state.position, draws.position[:, -1], rtol=0, atol=0)


MEMORY = """
import torch
from bdl_lib import mcmc
kernel = mcmc.metropolis(lambda x: -0.5 * x.square().sum(1), proposal_std=0.2)
generator = torch.Generator().manual_seed(0)
draws = mcmc.collect(kernel, kernel.init(torch.zeros(1000, 100)), num_samples=1000, generator=generator)
assert draws.position.shape == (1000, 1000, 100)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; what getrusage says includes the parent")
def test_a_hundred_million_numbers_stay_under_a_gigabyte():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 1e9


def test_a_bar_is_shown_if_wanted(capfd):
    short_run("chees", progress=False)
    assert capfd.readouterr().err == ""
    short_run("chees", progress=True)
    assert "100%" in capfd.readouterr().err


def test_draws_go_to_arviz():
    arviz = pytest.importorskip("arviz")
    draws = short_run("chees", 8)
    data = draws.to_arviz()
    assert np.array_equal(np.asarray(data["posterior"]["position"]), draws.position.numpy())
    stored = data["sample_stats"]
    assert {"acceptance_rate", "diverging", "energy", "lp", "n_steps"} <= set(stored.data_vars)
    assert np.array_equal(np.asarray(stored["lp"]), draws.info["log_prob"].numpy())
    assert arviz.summary(data, kind="stats").shape[0] == 3


# ---- A density that is not a number in places


def half_missing(x):
    """A Gaussian that is NaN, with a gradient that is NaN, right of 1."""
    return torch.where(x[:, 0] > 1, nan, -0.5 * x.square().sum(1))


def infinite_somewhere(x):
    return torch.where(x[:, 0] > 1, inf, -0.5 * x.square().sum(1))


class NanGradient:
    """Finite values, but a gradient that is NaN right of 1."""

    def __call__(self, x):
        return -0.5 * x.square().sum(1)

    def value_and_grad(self, x):
        return self(x), torch.where(x[:, :1] > 1, nan, -x)


nan_gradient_somewhere = NanGradient()


@pytest.mark.parametrize(
    "log_prob", [half_missing, infinite_somewhere, nan_gradient_somewhere], ids=["NaN", "+inf", "NaN gradient"]
)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_density_that_is_no_number_in_places_rejects_and_reports(name, log_prob):
    start = randn(50, 2).clamp(max=0.9)
    draws = SAMPLERS[name](log_prob, start, num_warmup=30, num_samples=30, generator=seeded())
    assert draws.position.isfinite().all()
    assert draws.info["log_prob"].isfinite().all()
    if name == "metropolis" and log_prob is nan_gradient_somewhere:
        return  # it needs no gradient
    assert (draws.position[..., 0] <= 1).all()
    assert (draws.position[:, -1] != draws.position[:, 0]).any(1).float().mean() > 0.9  # nobody is stuck
    if name != "metropolis":
        assert draws.info["is_divergent"].any()


# ---- Bad input


def sample(name, log_prob=log_gammas, start=None, **settings):
    start = randn(4, 2) if start is None else start
    given = {"num_warmup": 5, "num_samples": 5, "generator": seeded()} | settings
    return SAMPLERS[name](log_prob, start, **given)


BAD_START = randn(4, 2)
BAD_START[1, 0] = nan
BAD_START[3, 1] = inf
STARTS = [
    (lambda n: sample(n, start=BAD_START), "position must be finite at the start, is not in chains [1, 3]"),
    (lambda n: sample(n, start=randn(4)), "position must be [chains >= 1, dim >= 1], got shape [4]"),
    (lambda n: sample(n, start=randn(4, 0)), "position must be [chains >= 1, dim >= 1], got shape [4, 0]"),
    (lambda n: sample(n, start=torch.ones(4, 2, dtype=torch.long)), "position must be floating-point, got torch.int64"),
    (lambda n: sample(n, lambda x: x), "log_prob must return shape [4], one a chain, got [4, 2]"),
    (lambda n: sample(n, lambda x: x.sum()), "log_prob must return shape [4], one a chain, got []"),
    (lambda n: sample(n, lambda x: x[:, 0].log()), "log_prob must be finite at the start, is not in chains ["),
    (lambda n: sample(n, num_samples=0), "num_samples must be at least 1, got 0"),
    (lambda n: sample(n, num_warmup=0), "num_warmup must be at least 1, got 0"),
    (lambda n: sample(n, target_acceptance_rate=1.0), "target_acceptance_rate must be between 0 and 1, got 1.0"),
    (lambda n: sample(n, target_acceptance_rate=nan), "target_acceptance_rate must be between 0 and 1, got nan"),
]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("call", "message"), STARTS, ids=[message for _, message in STARTS])
def test_a_bad_start_is_refused(name, call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call(name)


def f(x):
    return -x.square().sum(1)


def lonely(x):
    return torch.zeros(len(x), dtype=f64)


NOT_POSITIVE = "inverse_mass_matrix must be positive definite"
BAD_INPUT = [
    (lambda: mcmc.metropolis(f, proposal_std=0.0), "proposal_std must be positive and finite, got 0.0"),
    (lambda: mcmc.metropolis(f, proposal_std=tensor([1, nan])), "proposal_std must be positive and finite, got nan"),
    (lambda: mcmc.mala(f, step_size=-1.0), "step_size must be positive and finite, got -1.0"),
    (lambda: mcmc.hmc(f, step_size=0, num_leapfrog_steps=3), "step_size must be positive and finite, got 0"),
    (lambda: mcmc.hmc(f, step_size=nan, num_leapfrog_steps=3), "step_size must be positive and finite, got nan"),
    (lambda: mcmc.hmc(f, step_size=1.0, num_leapfrog_steps=0), "num_leapfrog_steps must be at least 1, got 0"),
    (lambda: mcmc.nuts(f, step_size=inf), "step_size must be positive and finite, got inf"),
    (lambda: mcmc.nuts(f, step_size=1.0, max_tree_depth=0), "max_tree_depth must be at least 1, got 0"),
    (lambda: mcmc.chees(f, step_size=0.0, trajectory_length=1.0), "step_size must be positive and finite, got 0.0"),
    (lambda: mcmc.chees(f, step_size=0.1, trajectory_length=nan), "trajectory_length must be positive and finite, got"),
    (lambda: mcmc.chees(f, step_size=0.1, trajectory_length=1, jitter=2), "jitter must be from 0 to 1, got 2"),
    (lambda: mcmc.gaussian_momentum(tensor([1.0, 0.0])), "inverse_mass_matrix must be positive and finite, got 0.0"),
    (lambda: mcmc.gaussian_momentum(-torch.eye(2)), NOT_POSITIVE),
    (lambda: mcmc.gaussian_momentum(torch.full((2, 2), nan)), NOT_POSITIVE),
    (lambda: mcmc.gaussian_momentum(torch.ones(2, 3)), "inverse_mass_matrix must be [dim] or [dim, dim], got [2, 3]"),
    (lambda: mcmc.leapfrog(f, randn(2, 2), randn(2, 2), step_size=1.0, num_leapfrog_steps=0), "num_leapfrog_steps mu"),
    (lambda: mcmc.dual_averaging_start(0.0), "step_size must be positive and finite, got 0.0"),
    (lambda: mcmc.pooled_inverse_mass_matrix(randn(3, 2, 2), mass_matrix="full"), "mass_matrix must be 'auto', 'dia"),
    (lambda: mcmc.halton(0), "index must be at least 1, got 0"),
    (lambda: sample("chees", start=randn(1, 2)), "the number of chains in initial_position must be at least 2, got 1"),
    (lambda: sample("chees", jitter=-0.1), "jitter must be from 0 to 1, got -0.1"),
    (lambda: sample("chees", mass_matrix="none"), "mass_matrix must be 'auto', 'diagonal' or 'dense', got 'none'"),
    (lambda: sample("hmc", num_leapfrog_steps=0), "num_leapfrog_steps must be at least 1, got 0"),
    (lambda: sample("hmc", lonely), "log_prob must depend on the position"),
]


@pytest.mark.parametrize(("call", "message"), BAD_INPUT, ids=[message for _, message in BAD_INPUT])
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()


def test_a_gradient_of_another_shape_is_refused():
    class Wrong(ClosedForm):
        def value_and_grad(self, position):
            return log_gammas(position), position[:, :1]

    with pytest.raises(ValueError, match=r"^the gradient of log_prob must be \[4, 2\], got shape \[4, 1\]"):
        mcmc.hmc(Wrong(), step_size=1.0, num_leapfrog_steps=1).init(randn(4, 2))
