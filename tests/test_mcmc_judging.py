"""bdl_lib.mcmc, second half: transforms, diagnostics, calibration, tempering, minibatches, MEADS and microcanonical.

Exactness is tested in float64. Where a test draws at random, it is seeded; a test of a right sampler fails by bad luck
with a probability of at most 0.01, and most of them of far less.
"""

import functools
import math
import re
import sys

import arviz
import numpy as np
import pytest
import sim_device
import torch
from scipy import stats
from torch.distributions import Dirichlet, constraints

from bdl_lib import mcmc, networks
from bdl_lib.mcmc.hmc import gaussian_momentum, hmc

inf, nan = math.inf, math.nan
f64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=f64)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed), dtype=f64)


def tensor(values):
    return torch.tensor(values, dtype=f64)


def close(actual, expected, *, rtol=1e-10, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=rtol, atol=atol)


def last_draws(kernel, start, *, num_steps, seed=0):
    """Where independent chains are after some steps: one independent draw each."""
    return mcmc.collect(kernel, kernel.init(start), num_samples=num_steps, generator=seeded(seed)).position[:, -1]


def check_moments(draws, mean, var):
    """Means and variances of every parameter within 4.5 Monte Carlo errors, by chains: they are independent."""
    for values, exact in ((draws, mean), ((draws - tensor(mean)).square(), var)):
        by_chain = values.mean(1)
        error = by_chain.std(0) / len(by_chain) ** 0.5
        z = (by_chain.mean(0) - tensor(exact)) / error
        assert z.abs().max() < 4.5, z


def normal_log_prob(std):
    std = tensor(std)
    return lambda position: -0.5 * (position / std).square().sum(-1)


def skewed_log_prob(position):
    """Independent log-gammas, of shape 2: far from normal, with known everything."""
    return (2 * position - position.exp()).sum(-1)


SKEWED_MEAN, SKEWED_VAR = 1 - np.euler_gamma, math.pi**2 / 6 - 1  # digamma and trigamma of 2


def skewed_draws(*shape, seed=0):
    """Exact ones: a Gamma(2) variable is the sum of two exponential ones."""
    return (-rand(2, *shape, seed=seed).log().sum(0)).log()


def nan_above_one(position):
    """A standard normal whose density cannot be computed on the right."""
    value = -0.5 * position.square().sum(-1)
    return torch.where(position[:, 0] > 1, nan, value)


# ---- Transforms

CONSTRAINTS = {
    "real": (constraints.real, 2, 2),
    "positive": (constraints.positive, 3, 3),
    "interval": (constraints.interval(-1.0, 2.0), 2, 2),
    "greater than": (constraints.greater_than(3.0), 1, 1),
    "less than": (constraints.less_than(3.0), 1, 1),
    "simplex": (constraints.simplex, 4, 3),
    "ordered": (mcmc.ORDERED, 3, 3),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_jacobian_is_autograds_and_the_way_back_is_exact(name):
    constraint, size, dim = CONSTRAINTS[name]
    bijection = mcmc.constrain({"x": (constraint, size)})
    assert (bijection.dim, bijection.constrained_dim) == (dim, size)
    unconstrained = randn(5, dim)
    constrained = bijection.forward(unconstrained)
    assert constraint.check(constrained).all()
    close(bijection.inverse(constrained), unconstrained)
    jacobian = torch.stack([torch.func.jacrev(bijection.forward)(u)[:dim] for u in unconstrained])
    close(bijection.log_abs_det(unconstrained), jacobian.det().abs().log())


def test_parameters_lie_side_by_side():
    bijection = mcmc.constrain({name: (constraint, size) for name, (constraint, size, _) in CONSTRAINTS.items()})
    unconstrained = randn(2, 3, bijection.dim)
    constrained = bijection.forward(unconstrained)
    assert constrained.shape == (2, 3, bijection.constrained_dim)
    assert bijection.log_abs_det(unconstrained).shape == (2, 3)
    close(bijection.inverse(constrained), unconstrained)
    total, start = 0, 0
    for name, (constraint, size, dim) in CONSTRAINTS.items():
        alone, part = mcmc.constrain({name: (constraint, size)}), unconstrained[..., start : start + dim]
        close(constrained[..., bijection.slices[name]], alone.forward(part))
        total, start = total + alone.log_abs_det(part), start + dim
    close(bijection.log_abs_det(unconstrained), total)


DENSITIES = {  # constraint and size, log density, exact distribution of the first entry
    "gamma": (constraints.positive, 1, lambda x: (2 * x.log() - 3 * x).sum(-1), stats.gamma(3, scale=1 / 3).cdf),
    "beta": (
        constraints.unit_interval,
        1,
        lambda x: (0.5 * x.log() + 2 * (-x).log1p()).sum(-1),
        stats.beta(1.5, 3).cdf,
    ),
    "dirichlet": (
        constraints.simplex,
        3,
        lambda x: Dirichlet(tensor([2.0, 1.0, 3.0]), validate_args=False).log_prob(x),
        stats.beta(2, 4).cdf,
    ),
    "ordered": (mcmc.ORDERED, 2, lambda x: -0.5 * x.square().sum(-1), lambda x: 1 - stats.norm.sf(x) ** 2),
}


@pytest.mark.parametrize("with_jacobian", [True, False])
@pytest.mark.parametrize("name", DENSITIES)
def test_draws_mapped_back_have_the_density_asked_for(name, with_jacobian):
    constraint, size, log_prob, cdf = DENSITIES[name]
    bijection = mcmc.constrain({"x": (constraint, size)})
    target = mcmc.unconstrained_log_prob(log_prob, bijection)
    if not with_jacobian:
        target = lambda position: log_prob(bijection.forward(position))  # noqa: E731
    kernel = hmc(target, step_size=0.4, num_leapfrog_steps=4)
    draws = bijection.forward(last_draws(kernel, 0.1 * randn(2000, bijection.dim), num_steps=40))
    p_value = stats.kstest(draws[:, 0].numpy(), cdf).pvalue
    assert p_value > 0.01 if with_jacobian else p_value < 1e-6


def test_transforms_keep_precision_and_device(device):
    bijection = mcmc.constrain({"w": (constraints.simplex, 3), "o": (mcmc.ORDERED, 2)})
    position = torch.zeros(2, 4, dtype=torch.float32, device=device)
    for value in (bijection.forward(position), bijection.log_abs_det(position)):
        assert (value.dtype, value.device.type) == (torch.float32, device.type)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "parameters must name at least one"),
        ({"a": (constraints.positive, 0)}, r"parameters\['a'\] must have at least 1 entries, got 0"),
        ({"a": (constraints.simplex, 1)}, r"parameters\['a'\] must have at least 2 entries, got 1"),
        ({"a": (constraints.boolean, 1)}, "must have a constraint with a bijection"),
        ({"a": (constraints.corr_cholesky, 2)}, "must be numbers or a vector"),
    ],
)
def test_constrain_refuses(parameters, message):
    with pytest.raises(ValueError, match=message):
        mcmc.constrain(parameters)


# ---- Diagnostics


def as_draws(position, **info):
    return mcmc.Draws(position, info, None, {}, torch.Generator().get_state())


def good_draws():
    """Four chains of independent draws of two parameters, with an independent energy."""
    no = torch.zeros(4, 500, dtype=torch.bool)
    return as_draws(randn(4, 500, 2), is_divergent=no, energy=randn(4, 500, seed=1))


def test_nothing_is_wrong_with_independent_draws():
    found = mcmc.diagnose(good_draws())
    assert found.verdict == []
    assert (found.num_divergent, found.stuck_chains, found.nested_rhat) == (0, [], None)
    close(found.mcse_mean, 2000**-0.5, rtol=0.1)
    assert found.bfmi.shape == (4,)
    assert ((found.ess_tail > 1000) & (found.ess_bulk > 1000)).all()


def test_numbers_are_arvizs():
    draws = good_draws()
    found = mcmc.diagnose(draws)
    for i in range(2):
        x = draws.position[..., i].numpy()
        assert found.rhat[i].item() == pytest.approx(float(arviz.rhat(x)))
        assert found.ess_bulk[i].item() == pytest.approx(float(arviz.ess(x, method="bulk")))
        low, high = (float(arviz.ess(x, method="quantile", prob=p)) for p in (0.05, 0.95))
        assert found.ess_tail[i].item() == pytest.approx(min(low, high))
        assert found.mcse_mean[i].item() == pytest.approx(float(arviz.mcse(x, method="mean")))


def spoilt(what):
    draws = good_draws()
    position, info = draws.position.clone(), dict(draws.info)
    if what == "shifted":
        position[2, :, 1] += 1
    elif what == "slow":
        position = position.cumsum(1)
    elif what == "stuck":
        position[3, 200:] = position[3, 200]
    elif what == "not finite":
        position[0, 7, 0] = nan
    elif what == "divergent":
        info["is_divergent"] = torch.arange(2000).reshape(4, 500) < 3
    elif what == "energy":
        info["energy"] = info["energy"].cumsum(1)
    return draws._replace(position=position, info=info)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("shifted", r"rhat is not below 1.01 for parameters \[1\]"),
        ("slow", r"ess_bulk is below 400 for parameters \[0, 1\]"),
        ("stuck", r"chains \[3\] are stuck"),
        ("not finite", r"rhat is not below 1.01 for parameters \[0\]"),
        ("divergent", "3 divergent trajectories"),
        ("energy", r"bfmi is below 0.3 in chains \[0, 1, 2, 3\]"),
    ],
)
def test_verdict_names_what_is_wrong(what, message):
    verdict = mcmc.diagnose(spoilt(what)).verdict
    assert any(re.search(message, line) for line in verdict), verdict


def test_one_chain_is_not_believed():
    found = mcmc.diagnose(as_draws(randn(1, 1000, 1)))
    assert found.rhat.isnan().all()
    assert "rhat" in found.verdict[0]
    assert found.bfmi is None


def test_bfmi_is_arvizs_and_two_for_independent_energies():
    energy = randn(3, 400)
    close(mcmc.bfmi(energy), 399 / 400 * arviz.bfmi(energy.numpy()), rtol=5e-3)  # ArviZ divides both sums into means
    close(mcmc.bfmi(tensor([[0.0, 1.0, 0.0, 1.0]])), 3.0)
    close(mcmc.bfmi(randn(1, 100_000)), 2.0, rtol=0.05)


def test_nested_rhat_is_its_definition():
    position = randn(6, 5, 3) + torch.arange(6, dtype=f64)[:, None, None]
    expected = []
    for x in position.permute(2, 0, 1).numpy():
        groups = [x[:2], x[2:4], x[4:]]
        between = np.var([group.mean() for group in groups], ddof=1)
        within = [np.var(g.mean(1), ddof=1) + np.mean([np.var(chain, ddof=1) for chain in g]) for g in groups]
        expected.append(math.sqrt(1 + between / np.mean(within)))
    close(mcmc.nested_rhat(position, num_superchains=3), expected)


def test_nested_rhat_of_single_chains_is_rhat_but_for_one_over_n():
    position = randn(8, 50, 1)
    plain = float(arviz.rhat(position[..., 0].numpy(), method="identity"))
    close(mcmc.nested_rhat(position, num_superchains=8), math.sqrt(plain**2 + 1 / 50))


def test_nested_rhat_believes_many_short_chains_that_have_forgotten_their_start():
    mixed, starts = randn(2048, 1, 1), randn(16, 1, 1, seed=1)
    remembers = mixed + starts.repeat_interleave(128, 0)
    assert mcmc.nested_rhat(mixed, num_superchains=16) < 1.01 < 1.2 < mcmc.nested_rhat(remembers, num_superchains=16)
    many = as_draws(randn(512, 4, 1))
    assert mcmc.diagnose(many).rhat > 1.01  # four draws are too few for a single chain's mean
    assert mcmc.diagnose(many, num_superchains=8).verdict == []


def test_diagnostics_refuse():
    with pytest.raises(ValueError, match="draws must have at least 4 draws a chain, got 3"):
        mcmc.diagnose(as_draws(randn(2, 3, 1)))
    for number in (1, 3, 8):
        with pytest.raises(ValueError, match=f"num_superchains must be at least 2 and divide 4 chains, got {number}"):
            mcmc.nested_rhat(randn(4, 5, 1), num_superchains=number)
    with pytest.raises(ValueError, match="num_superchains must be below the number of chains when draws are 1, got 4"):
        mcmc.nested_rhat(randn(4, 1, 1), num_superchains=4)


# ---- Calibration, of samplers that are one line


def simulate_normal(prior_draws, generator):
    return prior_draws + torch.randn(prior_draws.shape, generator=generator, dtype=prior_draws.dtype)


def exact_posterior(data, generator, *, width=1.0, shift=0.0, num_draws=99):
    noise = torch.randn(len(data), num_draws, data.shape[1], generator=generator, dtype=data.dtype)
    return data[:, None] / 2 + shift + width * 0.5**0.5 * noise


def calibrate_normal(sample=exact_posterior, num_simulations=1000, seed=1, **settings):
    prior_draws = randn(num_simulations, 2, seed=100 + seed)
    return mcmc.calibrate(prior_draws, simulate_normal, sample, generator=seeded(seed), **settings)


def test_exact_draws_are_calibrated():
    found = calibrate_normal()
    assert found.p_value > 0.01
    assert found.ranks.shape == (1000, 2)
    assert (found.ranks.min() >= 0) & (found.ranks.max() <= 99)
    assert found.counts.shape == (20, 2)
    assert found.expected_count == 50
    assert (found.counts.sum(0) == 1000).all()
    for i in range(2):
        counts = np.bincount(found.ranks[:, i].numpy() // 5, minlength=20)
        assert found.counts[:, i].tolist() == counts.tolist()
        assert found.p_values[i].item() == pytest.approx(stats.chisquare(counts).pvalue)
    close(found.p_value, min(1.0, 2 * found.p_values.min().item()))


def test_p_values_are_uniform():
    p_values = [calibrate_normal(num_simulations=500, seed=seed).p_values[0].item() for seed in range(200)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_shapes_of_the_histogram_tell_what_is_wrong():
    narrow, wide = (calibrate_normal(functools.partial(exact_posterior, width=w)) for w in (0.7, 1.4))
    high = calibrate_normal(functools.partial(exact_posterior, shift=0.3))
    for found in (narrow, wide, high):
        assert found.p_value < 1e-6
    outer, inner = [0, 1, -2, -1], slice(8, 12)
    assert (narrow.counts[outer].sum(0) > narrow.counts[inner].sum(0)).all()
    assert (wide.counts[outer].sum(0) < wide.counts[inner].sum(0)).all()
    assert (high.counts[:10].sum(0) > high.counts[10:].sum(0)).all()


def test_the_likelihood_sees_a_sampler_that_ignores_the_data():
    def prior_again(data, generator):
        return torch.randn(len(data), 99, 2, generator=generator, dtype=data.dtype)

    def with_likelihood(position, data):
        return torch.cat([position, -0.5 * (data[:, None] - position).square().sum(-1, keepdim=True)], -1)

    assert calibrate_normal(prior_again).p_value > 0.01
    assert calibrate_normal(prior_again, quantities=with_likelihood).p_value < 1e-6
    assert calibrate_normal(quantities=with_likelihood).p_value > 0.01


def test_ties_are_broken_evenly():
    """A parameter with five values, and its exact posterior given one flip."""
    values, n = torch.linspace(0.1, 0.9, 5, dtype=f64), 1000

    def simulate(prior_draws, generator):
        return (torch.rand(prior_draws.shape, generator=generator, dtype=f64) < prior_draws).to(f64)

    def sample(data, generator):
        weights = data * values + (1 - data) * (1 - values)
        return values[torch.multinomial(weights, 39, replacement=True, generator=generator)][..., None]

    prior_draws = values[torch.randint(5, (n, 1), generator=seeded(1))]
    assert mcmc.calibrate(prior_draws, simulate, sample, generator=seeded()).p_value > 0.01


def test_one_by_one_is_the_same_test():
    found = calibrate_normal(
        lambda data, generator: exact_posterior(data[None], generator)[0], num_simulations=500, one_by_one=True
    )
    assert found.ranks.shape == (500, 2)
    assert found.p_value > 0.01


def test_unequal_bins_are_allowed_for():
    found = calibrate_normal(num_bins=7)  # of 100 ranks
    sizes = np.bincount(np.arange(100) * 7 // 100)
    expected = stats.chisquare(found.counts[:, 0].numpy(), 10 * sizes).pvalue
    assert found.p_values[0].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_simulations": 0}, "prior_draws must have at least one row, got 0"),
        ({"num_bins": 1}, r"num_bins must be from 2 to draws \+ 1 = 100, got 1"),
        ({"num_bins": 101}, r"num_bins must be from 2 to draws \+ 1 = 100, got 101"),
        ({"sample": lambda data, generator: data}, r"sample must give shape \[1000, draws, 2\], got \[1000, 2\]"),
        ({"sample": lambda data, generator: exact_posterior(data, generator) / 0}, "draws must be finite, are not in"),
    ],
)
def test_calibrate_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        calibrate_normal(**changed)


# ---- Calibration of every exact sampler, on a correlated normal model and on a skewed one

MIXING = tensor([[1.0, 0.6], [0.0, 1.0]])


class NormalModel:
    """Two standard normal parameters, each datum a noisy mixture of both."""

    @staticmethod
    def prior_draws(n):
        return randn(n, 2, seed=11)

    @staticmethod
    def simulate(parameters, generator):
        return parameters @ MIXING + 0.7 * torch.randn(parameters.shape, generator=generator, dtype=f64)

    @staticmethod
    def log_likelihood(position, data):
        return -0.5 * ((data - position @ MIXING) / 0.7).square().sum(-1)

    def log_prob(self, position, data):
        return self.log_likelihood(position, data) - 0.5 * position.square().sum(-1)


class PoissonModel:
    """Logs of two rates, each Gamma(2, 1), and a count for each."""

    @staticmethod
    def prior_draws(n):
        return skewed_draws(n, 2, seed=12)

    @staticmethod
    def simulate(parameters, generator):
        return torch.poisson(parameters.exp(), generator=generator)

    @staticmethod
    def log_likelihood(position, data):
        return (data * position - position.exp()).sum(-1)

    def log_prob(self, position, data):
        return self.log_likelihood(position, data) + skewed_log_prob(position)


class ConstrainedModel(PoissonModel):
    """The same, written for the rates themselves, which must be positive."""

    rates = mcmc.constrain({"rate": (constraints.positive, 2)})

    def log_prob(self, position, data):
        def of_rates(rate):
            return (rate.log() - rate + data * rate.log() - rate).sum(-1)

        return mcmc.unconstrained_log_prob(of_rates, self.rates)(position)


class WithoutJacobian(ConstrainedModel):
    """The same with its Jacobian dropped."""

    def log_prob(self, position, data):
        return super().log_prob(position, data) - self.rates.log_abs_det(position)


MODELS = {
    "normal": NormalModel(),
    "poisson": PoissonModel(),
    "constrained": ConstrainedModel(),
    "no jacobian": WithoutJacobian(),
}
EXACT = {  # arguments, and how many draws from one that is kept to the next
    "sample_metropolis": ({"num_warmup": 300}, 25),
    "sample_mala": ({"num_warmup": 200}, 10),
    "sample_hmc": ({"num_warmup": 100, "num_leapfrog_steps": 3}, 6),
    "sample_nuts": ({"num_warmup": 100}, 2),
    "sample_chees": ({"num_warmup": 100}, 3),
    "sample_meads": ({"num_warmup": 60, "num_steps": 6}, 5),
    "sample_microcanonical": ({"num_warmup": 100}, 4),
    "sample_parallel_tempering": (
        {
            "num_warmup": 60,
            "local": lambda log_prob: hmc(log_prob, step_size=0.4, num_leapfrog_steps=4),
            "min_inverse_temperature": 0.3,
            "num_temperatures": 3,
        },
        3,
    ),
}


def calibration_of(name, model, *, settings=None, thin=None, num_simulations=512, num_draws=31):
    """All simulations as one batch of chains, every chain with a posterior of its own."""
    model, (given, distance) = MODELS[model], EXACT.get(name, ({}, 1))
    settings, thin = given | (settings or {}), thin or distance

    def sample(data, generator):
        def log_prob(position):  # of as many rows as a sampler likes, chain by chain
            return model.log_prob(position, data.repeat(len(position) // len(data), 1))

        start = torch.randn(num_simulations, 2, generator=generator, dtype=f64)
        run = {"num_samples": num_draws * thin, "generator": generator}
        return getattr(mcmc, name)(log_prob, start, **run, **settings).position[:, thin - 1 :: thin]

    def quantities(position, data):
        return torch.cat([position, model.log_likelihood(position, data[:, None])[..., None]], -1)

    prior_draws = model.prior_draws(num_simulations)
    how = {"generator": seeded(1), "quantities": quantities, "num_bins": 16}
    return mcmc.calibrate(prior_draws, model.simulate, sample, **how)


@pytest.mark.parametrize("model", ["normal", "poisson"])
@pytest.mark.parametrize("name", EXACT)
def test_exact_sampler_is_calibrated(name, model):
    found = calibration_of(name, model)
    assert found.p_value > 0.01, found.p_values


def test_a_sampler_without_an_accept_step_is_not_calibrated():
    settings = {"num_warmup": 100, "step_size": 0.4}
    assert calibration_of("sample_sgld", "normal", settings=settings, thin=5).p_value < 1e-4


def test_a_dropped_jacobian_is_not_calibrated():
    right, wrong = (calibration_of("sample_microcanonical", model, thin=2) for model in ("constrained", "no jacobian"))
    assert right.p_value > 0.01
    assert wrong.p_value < 1e-6


def test_a_microcanonical_sampler_that_forgets_its_volumes_is_not_calibrated(monkeypatch):
    module = sys.modules["bdl_lib.mcmc.microcanonical"]
    turn = module._turn
    monkeypatch.setattr(module, "_turn", lambda *args: (turn(*args)[0], torch.zeros_like(args[1][:, 0])))
    settings = {"target_acceptance_rate": 0.6}
    assert calibration_of("sample_microcanonical", "normal", settings=settings).p_value < 1e-6


def test_meads_that_keeps_its_momentum_on_rejection_is_not_calibrated(monkeypatch):
    module = sys.modules["bdl_lib.mcmc.meads"]
    step = module._step

    def faulty(density, state, generator, step_size, noise_share):
        new, energy_error, is_accepted = step(density, state, generator, 8 * step_size, noise_share)
        return new._replace(momentum=torch.where(is_accepted[:, None], 1, -1) * new.momentum), energy_error, is_accepted

    monkeypatch.setattr(module, "_step", faulty)
    assert calibration_of("sample_meads", "poisson").p_value < 1e-4


def test_a_ladder_that_trades_blindly_is_not_calibrated(monkeypatch):
    module = sys.modules["bdl_lib.mcmc.parallel_tempering"]
    trade = module._trade

    def faulty(replicas, *args):
        flat = replicas._replace(log_prob=torch.zeros_like(replicas.log_prob))
        return trade(flat, *args)

    monkeypatch.setattr(module, "_trade", faulty)
    assert calibration_of("sample_parallel_tempering", "normal").p_value < 1e-6


# ---- Microcanonical


turn = functools.partial(sys.modules["bdl_lib.mcmc.microcanonical"]._turn, gaussian_momentum(None))


def unit(*shape, seed=0):
    noise = randn(*shape, seed=seed)
    return noise / noise.norm(dim=-1, keepdim=True)


def tangents(direction):
    """An orthonormal basis [dim, dim - 1] of the directions in which a unit vector can turn."""
    return torch.linalg.svd(direction[None])[2][1:].mT


@pytest.mark.parametrize("dim", [2, 3, 7])
def test_turn_does_to_areas_what_it_says(dim):
    for seed in range(5):
        u, grad = unit(1, dim, seed=seed), 3 * randn(1, dim, seed=50 + seed)
        turned, gain = turn(u, grad, 0.7)
        jacobian = torch.func.jacrev(lambda v, g=grad: turn(v[None], g, 0.7)[0][0])(u[0])
        on_sphere = tangents(turned[0]).mT @ jacobian @ tangents(u[0])
        close(gain[0], -on_sphere.det().abs().log())
        close(turned.norm(dim=1), 1.0)


def test_turn_solves_its_equation():
    """du/dt = (I - u uᵀ) g / (d - 1), against small Euler steps; two turns in a row are one."""
    u, grad = unit(4, 3), randn(4, 3, seed=1)
    euler, num_steps = u, 20_000
    for _ in range(num_steps):
        euler = euler + 0.9 / num_steps / 2 * (grad - (grad * euler).sum(1, keepdim=True) * euler)
    turned, gain = turn(u, grad, 0.9)
    close(turned, euler, atol=1e-4)
    first, first_gain = turn(u, grad, 0.5)
    second, second_gain = turn(first, grad, 0.4)
    close(second, turned)
    close(first_gain + second_gain, gain)


@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("metric", ["none", "diagonal", "dense"])
def test_microcanonical_motion_is_reversible(dim, metric):
    root = torch.eye(dim, dtype=f64) + 0.2 * randn(dim, dim)
    matrix = {"none": None, "diagonal": root.diagonal().square(), "dense": root @ root.mT}[metric]
    move = functools.partial(
        mcmc.microcanonical_leapfrog, skewed_log_prob, step_size=0.3, num_leapfrog_steps=15, inverse_mass_matrix=matrix
    )
    to_velocity = {"none": torch.eye(dim, dtype=f64), "diagonal": root.diagonal().abs().diag(), "dense": root}[metric]
    position, velocity = randn(6, dim, seed=2), unit(6, dim, seed=3) @ to_velocity.mT
    there = move(position, velocity)
    back = move(there.position, -there.velocity)
    close(back.position, position, atol=1e-10)
    close(back.velocity, -velocity, atol=1e-10)
    in_whitened_units = torch.linalg.solve(to_velocity, there.velocity.mT)
    close(in_whitened_units.norm(dim=0), 1.0)
    close(back.energy_error, -there.energy_error, atol=1e-10)
    assert (there.position - position).abs().min() > 1e-3


def test_microcanonical_energy_error_is_of_second_order():
    position, velocity = randn(20, 3), unit(20, 3, seed=1)
    errors = [
        mcmc.microcanonical_leapfrog(
            skewed_log_prob, position, velocity, step_size=1.0 / n, num_leapfrog_steps=n
        ).energy_error.abs()
        for n in (100, 200)
    ]
    slopes = (errors[0] / errors[1]).log2()
    close(slopes.median(), 2.0, atol=0.02)


@pytest.mark.parametrize("matrix", [None, tensor([0.5, 2.0]), tensor([[1.0, 0.5], [0.5, 1.0]])], ids=["1", "2", "3"])
def test_microcanonical_leaves_exact_draws_exact(matrix):
    kernel = mcmc.microcanonical(skewed_log_prob, step_size=1.2, trajectory_length=2.0, inverse_mass_matrix=matrix)
    end = last_draws(kernel, skewed_draws(4000, 2), num_steps=20)
    for i in range(2):
        assert stats.kstest(end[:, i].numpy(), stats.loggamma(2).cdf).pvalue > 0.005


@pytest.mark.parametrize("std", [[0.01, 1.0, 30.0], [1.0, 1.0]], ids=["scales", "round"])
def test_microcanonical_moments(std):
    start = randn(128, len(std), seed=5)
    draws = mcmc.sample_microcanonical(normal_log_prob(std), start, num_warmup=200, num_samples=100, generator=seeded())
    check_moments(draws.position, [0.0] * len(std), np.square(std))
    assert 0.8 < draws.info["acceptance_rate"].mean() < 0.97


def test_microcanonical_trajectories_vary_around_their_mean():
    kernel = mcmc.microcanonical(normal_log_prob([1.0, 1.0]), step_size=0.1, trajectory_length=1.0)
    draws = mcmc.collect(kernel, kernel.init(randn(2, 2)), num_samples=300, generator=seeded())
    steps = draws.info["num_leapfrog_steps"][0].double()
    assert (steps.min(), steps.max()) == (8, 13)
    close(steps.mean(), 10.5, atol=0.1)  # rounded up


# ---- MEADS


def test_largest_eigenvalue_is_its_definition():
    rows = randn(50, 4) * tensor([1.0, 2.0, 3.0, 10.0])
    eigenvalues = torch.linalg.eigvalsh(rows.mT @ rows / 50)
    close(mcmc.largest_eigenvalue(rows), eigenvalues.square().sum() / eigenvalues.sum())
    close(mcmc.largest_eigenvalue(rows.expand(3, 50, 4)), mcmc.largest_eigenvalue(rows))


@pytest.mark.parametrize("damping", [0.2, 3.0])
def test_generalized_hmc_leaves_position_momentum_and_threshold_as_they_are(damping):
    n = 4000
    variance = tensor([0.5, 2.0])
    kernel = mcmc.generalized_hmc(
        skewed_log_prob, step_size=0.9, damping=damping, inverse_mass_matrix=variance, num_steps=3
    )
    state = kernel.init(skewed_draws(n, 2))._replace(momentum=randn(n, 2, seed=1), threshold=2 * rand(n, seed=2) - 1)
    generator = seeded()
    rates = []
    for _ in range(5):
        state, info = kernel.step(state, generator)
        rates.append(info.acceptance_rate.mean())
    assert 0.6 < torch.stack(rates).mean() < 0.95  # enough rejections to see what they do
    samples = {stats.loggamma(2): state.position, stats.norm(): state.momentum, stats.uniform(-1, 2): state.threshold}
    for distribution, values in samples.items():
        for column in values.reshape(n, -1).mT:
            assert stats.kstest(column.numpy(), distribution.cdf).pvalue > 0.003


@pytest.mark.parametrize("std", [[0.01, 1.0, 30.0], [1.0]], ids=["scales", "one dimension"])
def test_meads_moments(std):
    start = randn(128, len(std), seed=5) * tensor(std) * 3 + tensor(std)
    draws = mcmc.sample_meads(normal_log_prob(std), start, num_warmup=200, num_samples=150, generator=seeded())
    check_moments(draws.position, [0.0] * len(std), np.square(std))
    assert draws.info["acceptance_rate"].mean() > 0.9
    close(draws.settings["inverse_mass_matrix"], np.square(std), rtol=0.2)


def test_meads_bunches_rejections():
    """With the slow uniform, a rejection is more often followed by another than with a fresh one."""
    kernel = mcmc.generalized_hmc(skewed_log_prob, step_size=0.7, damping=0.1, num_steps=1)
    draws = mcmc.collect(kernel, kernel.init(skewed_draws(500, 3)), num_samples=400, generator=seeded())
    rejected = (~draws.info["is_accepted"][:, 100:]).double()
    both = (rejected[:, 1:] * rejected[:, :-1]).mean()
    assert both > 1.5 * rejected.mean() ** 2


@pytest.mark.parametrize("chains", [1, 4, 10])
def test_meads_refuses_few_chains(chains):
    with pytest.raises(ValueError, match=f"initial_position must have 8, 12, 16, ... chains.*got {chains}"):
        mcmc.sample_meads(skewed_log_prob, randn(chains, 2), num_warmup=9, num_samples=9, generator=seeded())


def test_meads_refuses_a_start_in_one_point():
    with pytest.raises(ValueError, match="initial_position must vary in every direction"):
        mcmc.sample_meads(skewed_log_prob, torch.zeros(8, 2), num_warmup=9, num_samples=9, generator=seeded())


# ---- Parallel tempering


def two_modes(position):
    """A fifth of the mass at (5, 5) with standard deviation 0.5, the rest at (-5, -5) with 1."""
    narrow = math.log(0.2) - 2 * math.log(0.5) - 2 * (position - 5).square().sum(-1)
    wide = math.log(0.8) - 0.5 * (position + 5).square().sum(-1)
    return torch.logaddexp(narrow, wide)


def local_hmc(log_prob):
    return hmc(log_prob, step_size=0.4, num_leapfrog_steps=5)


@functools.cache
def tempered_draws():
    start = 5 + 0.3 * randn(32, 2)
    return mcmc.sample_parallel_tempering(
        two_modes,
        start,
        num_warmup=200,
        num_samples=300,
        generator=seeded(),
        local=local_hmc,
        min_inverse_temperature=0.01,
        num_temperatures=8,
    )


def test_separated_modes_get_their_masses():
    draws = tempered_draws()
    is_narrow = (draws.position.sum(-1, keepdim=True) > 0).to(f64)
    check_moments(is_narrow, [0.2], [0.16])
    for inside, std in ((is_narrow == 1, 0.5), (is_narrow == 0, 1.0)):
        points = draws.position[inside[..., 0]]
        close(points.std(0), std, rtol=0.1)


def test_without_tempering_the_other_mode_is_never_seen():
    kernel = local_hmc(two_modes)
    start = 5 + 0.3 * randn(32, 2)
    draws = mcmc.collect(kernel, kernel.init(start), num_samples=300, generator=seeded())
    assert (draws.position > 0).all()


def test_ladder_is_equally_hard_everywhere():
    draws = tempered_draws()
    ladder, rates = draws.settings["inverse_temperatures"], draws.state.swap_rates
    assert (ladder[0], ladder.shape) == (1, (8,))
    close(ladder[-1], 0.01)
    assert rates.max() - rates.min() < 0.06, rates
    close(draws.info["swap_rate"].mean(), rates.mean(), rtol=0.05)


def test_adapted_ladder_is_the_inverse_of_the_barrier():
    ladder = tensor([1.0, 0.5, 0.1])
    close(mcmc.adapt_ladder(ladder, tensor([0.4, 0.4])), ladder)
    # All of the barrier lies in the second pair: the middle rung goes half-way into it, in the logarithm.
    close(mcmc.adapt_ladder(ladder, tensor([1.0, 0.4])), [1.0, (0.5 * 0.1) ** 0.5, 0.1], rtol=2e-3)
    close(mcmc.adapt_ladder(ladder, tensor([0.1, 0.7])), [1.0, 0.5 ** (0.6 / 0.9), 0.1])


def test_tempered_kernel_needs_only_log_prob_and_leaves_exact_draws_exact():
    from bdl_lib.mcmc.metropolis import metropolis

    ladder, n = tensor([1.0, 0.5, 0.2]), 3000
    kernel = mcmc.parallel_tempering(
        normal_log_prob([1.0]), inverse_temperatures=ladder, local=lambda log_prob: metropolis(log_prob, proposal_std=1)
    )
    state = kernel.init(randn(n, 1))
    exact = randn(3 * n, 1, seed=1)  # in scaled units, every temperature is a unit normal
    state = state._replace(position=exact[:n], replicas=state.replicas._replace(position=exact))
    state = state._replace(replicas=state.replicas._replace(log_prob=-0.5 * exact[:, 0].square()))
    generator = seeded()
    for _ in range(6):
        state, info = kernel.step(state, generator)
    close(state.replicas.log_prob, -0.5 * state.replicas.position[:, 0].square())
    close(state.position, state.replicas.position[:n])
    close(info.log_prob, state.replicas.log_prob[:n])
    for values in state.replicas.position.reshape(3, n):
        assert stats.kstest(values.numpy(), "norm").pvalue > 0.003
    assert 0.3 < info.swap_rate.mean() < 1


def test_trades_follow_the_rule():
    """Exchange of two copies by hand: the state after a trade is the state that would have been computed there."""
    ladder = tensor([1.0, 0.3])
    still = lambda log_prob: hmc(log_prob, step_size=1e-12, num_leapfrog_steps=1)  # noqa: E731
    kernel = mcmc.parallel_tempering(skewed_log_prob, inverse_temperatures=ladder, local=still)
    n, start = 5000, tensor([[0.3, -1.0], [2.0, 1.0]])
    state = kernel.init(start[:1].expand(n, -1))
    points = start[:, None].expand(2, n, 2)
    tempered = sys.modules["bdl_lib.mcmc.parallel_tempering"]._Tempered(
        sys.modules["bdl_lib.mcmc.density"].differentiable(skewed_log_prob), ladder.repeat_interleave(n)
    )
    scaled = (ladder.sqrt()[:, None, None] * points).flatten(0, 1)
    value, grad = tempered.value_and_grad(scaled)
    state = state._replace(replicas=state.replicas._replace(position=scaled, log_prob=value, grad=grad))
    new, info = kernel.step(state, seeded())
    rate = math.exp(min(0.0, 0.7 * (skewed_log_prob(start[1:]) - skewed_log_prob(start[:1])).item()))
    assert 0.01 < rate < 0.99
    close(info.swap_rate, rate, rtol=1e-6)
    assert abs(info.is_swapped.double().mean() - rate) < 4.5 * (rate * (1 - rate) / n) ** 0.5
    expected = tempered.value_and_grad(new.replicas.position)
    close(new.replicas.log_prob, expected[0], rtol=1e-8)
    close(new.replicas.grad, expected[1], rtol=1e-8)
    close(new.position, torch.where(info.is_swapped[:, None], start[1], start[0]), rtol=1e-8)


# ---- Stochastic gradients, on a posterior that is exactly normal

NUM_ROWS, NOISE_STD = 40, 0.7


@functools.cache
def regression():
    """Linear regression through the origin: log posterior, its precision and mean, and the variance of ĝ."""
    inputs = randn(NUM_ROWS, 1, seed=3)
    targets = 1.5 * inputs[:, 0] + NOISE_STD * randn(NUM_ROWS, seed=4)
    network = networks.mlp([1, 1], bias=False)
    prior = networks.gaussian_prior(network, prior_std=2.0, dtype=f64)
    likelihood = networks.gaussian_likelihood(NOISE_STD)
    log_prob = networks.log_posterior(network, prior, likelihood, inputs, targets)
    slopes, pulls = inputs[:, 0].square() / NOISE_STD**2, inputs[:, 0] * targets / NOISE_STD**2
    prec = (slopes.sum() + 0.25).item()
    mean = pulls.sum().item() / prec

    def gradient_var(batch_size, variance):
        """Variance of n/m times a sum of m of n rows, taken without replacement, averaged over the weight."""
        factor = NUM_ROWS**2 / batch_size * (1 - batch_size / NUM_ROWS)
        return factor * ((pulls - slopes * mean).var() + slopes.var() * variance).item()

    return log_prob, prec, mean, gradient_var


def stationary_var(noise_factor, shrinkage, batch_size):
    """v = (1 + noise_factor V(v)) / (prec (1 - shrinkage)), with V linear in v."""
    _, prec, _, gradient_var = regression()
    constant = gradient_var(batch_size, 0.0)
    slope = gradient_var(batch_size, 1.0) - constant
    return (1 + noise_factor * constant) / (prec * (1 - shrinkage) - noise_factor * slope)


def check_var(draws, mean, expected):
    """Minibatches are common to all chains: the error comes from blocks of time."""
    squares = (draws.position - mean).square().mean((0, 2)).unflatten(0, (20, -1)).mean(1)
    z = (squares.mean() - expected) / (squares.std() / 20**0.5)
    assert abs(z) < 4, z
    return squares.mean().item()


@pytest.mark.parametrize("batch_size", [None, 8])
def test_sgld_pays_the_bias_that_its_formula_says(batch_size):
    log_prob, prec, mean, _ = regression()
    start = mean + prec**-0.5 * randn(100, 1)
    found = []
    for share in (0.8, 0.2):
        step_size = share / prec
        draws = mcmc.sample_sgld(
            log_prob,
            start,
            num_warmup=50,
            num_samples=800,
            generator=seeded(),
            step_size=step_size,
            batch_size=batch_size,
        )
        expected = stationary_var(step_size / 4, step_size * prec / 4, batch_size or NUM_ROWS)
        found.append(check_var(draws, mean, expected) * prec - 1)
    assert found[0] > 2 * found[1] > 0  # the bias shrinks with the step


@pytest.mark.parametrize("batch_size", [None, 8])
def test_sghmc_pays_the_bias_that_its_formula_says(batch_size):
    log_prob, prec, mean, _ = regression()
    start, friction = mean + prec**-0.5 * randn(100, 1), 0.5
    for share in (0.8, 0.2):
        step_size = share / prec
        draws = mcmc.sample_sghmc(
            log_prob,
            start,
            num_warmup=50,
            num_samples=800,
            generator=seeded(),
            step_size=step_size,
            friction=friction,
            batch_size=batch_size,
        )
        expected = stationary_var(
            step_size / (2 * friction), step_size * prec / (4 - 2 * friction), batch_size or NUM_ROWS
        )
        check_var(draws, mean, expected)


def test_variance_of_the_minibatch_gradient_is_what_the_formula_takes():
    log_prob, _, mean, gradient_var = regression()
    generator, weights = seeded(), tensor([[mean + 0.3]])
    rows = [networks.draw_rows(NUM_ROWS, 8, generator=generator) for _ in range(1000)]
    grads = torch.cat([log_prob.grad(weights, r) for r in rows])
    assert stats.ttest_1samp(grads[:, 0].numpy(), log_prob.grad(weights).item()).pvalue > 0.01
    close(grads.var(), gradient_var(8, 0.3**2) + cross_term(8, 0.3), rtol=0.18)  # 4 standard errors


def cross_term(batch_size, shift):
    """What ``gradient_var`` leaves out because it averages to zero over the weight."""
    log_prob, _, mean, _ = regression()
    inputs, targets = log_prob.inputs[:, 0], log_prob.targets
    slopes, pulls = inputs.square() / NOISE_STD**2, inputs * targets / NOISE_STD**2
    covariance = torch.cov(torch.stack([pulls - slopes * mean, slopes]))[0, 1].item()
    return -2 * shift * covariance * NUM_ROWS**2 / batch_size * (1 - batch_size / NUM_ROWS)


def test_sghmc_with_full_friction_is_sgld():
    log_prob, prec, mean, _ = regression()
    start = torch.full((5, 1), mean, dtype=f64)
    run = {"num_warmup": 0, "batch_size": 8}
    langevin = mcmc.sample_sgld(log_prob, start, **run, num_samples=9, generator=seeded(), step_size=0.4 / prec)
    hamiltonian = mcmc.sample_sghmc(
        log_prob, start, **run, num_samples=10, generator=seeded(), step_size=0.2 / prec, friction=1.0
    )
    close(hamiltonian.position[:, 1:], langevin.position)


def test_log_prob_without_grad_is_differentiated_on_the_minibatch():
    log_prob, prec, mean, _ = regression()

    class Plain:
        targets = log_prob.targets

        def __call__(self, weights, rows=None):
            return log_prob(weights, rows)

    start = torch.full((3, 1), mean, dtype=f64)
    run = {"num_warmup": 2, "num_samples": 5, "step_size": 0.3 / prec, "batch_size": 4, "num_steps": 2}
    plain, closed = (mcmc.sample_sgld(f, start, generator=seeded(), **run).position for f in (Plain(), log_prob))
    close(plain, closed)


def test_a_draw_of_many_steps_is_the_last_of_them():
    log_prob, prec, mean, _ = regression()
    start = torch.full((3, 1), mean, dtype=f64)
    run = {"num_warmup": 0, "step_size": 0.3 / prec, "friction": 0.2, "batch_size": 4}
    every = mcmc.sample_sghmc(log_prob, start, generator=seeded(), num_samples=12, **run).position
    third = mcmc.sample_sghmc(log_prob, start, generator=seeded(), num_samples=4, num_steps=3, **run).position
    close(third, every[:, 2::3])


# ---- What all of them must keep

KERNELS = {
    "microcanonical": lambda f: mcmc.microcanonical(f, step_size=0.5, trajectory_length=1.5),
    "generalized_hmc": lambda f: mcmc.generalized_hmc(f, step_size=0.4, damping=0.5, num_steps=2),
    "parallel_tempering": lambda f: mcmc.parallel_tempering(
        f,
        inverse_temperatures=torch.tensor([1.0, 0.4]),
        local=lambda g: hmc(g, step_size=0.4, num_leapfrog_steps=2),
    ),
    "sgld": lambda f: mcmc.sgld(f, step_size=0.1),
    "sghmc": lambda f: mcmc.sghmc(f, step_size=0.1, friction=0.3),
}


@pytest.mark.parametrize("name", KERNELS)
def test_steps_never_wait_for_the_device(name):
    if name == "parallel_tempering":
        kernel = mcmc.parallel_tempering(
            skewed_log_prob, inverse_temperatures=torch.tensor([1.0, 0.4], device="sim"), local=local_hmc
        )
    else:
        kernel = KERNELS[name](skewed_log_prob)
    state, generator = kernel.init(torch.zeros(8, 2, device="sim")), torch.Generator("sim").manual_seed(0)
    state, _ = kernel.step(state, generator)
    with sim_device.count() as counts:
        for _ in range(3):
            state, _ = kernel.step(state, generator)
    assert counts.host_syncs == 0


@pytest.mark.parametrize("name", ["microcanonical", "generalized_hmc", "parallel_tempering"])
def test_where_the_density_is_nan_nobody_goes(name):
    kernel = KERNELS[name](nan_above_one)
    start = 0.5 * randn(400, 2).clamp(max=1).float()
    draws = mcmc.collect(kernel, kernel.init(start), num_samples=60, generator=seeded())
    assert draws.position.isfinite().all()
    assert draws.position[..., 0].max() <= 1
    cut = stats.truncnorm(-inf, 1)
    assert abs(draws.position[:, 20:, 0].mean() - cut.mean()) < 0.03
    if "is_divergent" in draws.info:
        assert draws.info["is_divergent"].any()
        assert (draws.info["acceptance_rate"][draws.info["is_divergent"]] < 1).all()


@pytest.mark.parametrize("name", ["sgld", "sghmc"])
def test_a_step_that_is_not_finite_is_not_made(name):
    def log_prob(position):
        return torch.where(position[:, 0] > 1, nan, 1.0) * -0.5 * position.square().sum(-1)

    kernel = KERNELS[name](log_prob)
    draws = mcmc.collect(kernel, kernel.init(torch.zeros(50, 2)), num_samples=200, generator=seeded())
    assert draws.position.isfinite().all()
    assert draws.info["is_divergent"].any()
    assert not draws.info["is_divergent"].all()


@pytest.mark.parametrize("name", KERNELS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(name, tmp_path):
    kernel = KERNELS[name](skewed_log_prob)
    start = randn(8, 2).float()
    whole = mcmc.collect(kernel, kernel.init(start), num_samples=10, generator=seeded())
    first = mcmc.collect(kernel, kernel.init(start), num_samples=4, generator=seeded())
    second = mcmc.resume(kernel, first, num_samples=6, generator=torch.Generator())
    assert torch.equal(torch.cat([first.position, second.position], 1), whole.position)


@pytest.mark.parametrize("name", KERNELS)
def test_start_that_is_not_finite_is_refused(name):
    start = torch.zeros(4, 2)
    start[2, 1] = nan
    with pytest.raises(ValueError, match=r"position must be finite at the start, is not in chains \[2\]"):
        KERNELS[name](skewed_log_prob).init(start)


@pytest.mark.parametrize("name", KERNELS)
def test_inputs_stay_as_they_were(name):
    kernel, start = KERNELS[name](skewed_log_prob), randn(8, 2).float()
    kept, state = start.clone(), kernel.init(start)
    kernel.step(state, seeded())
    again = kernel.init(start)
    assert torch.equal(start, kept)
    assert torch.equal(state.position, again.position)


def call(name, **changed):
    """A call of an entry point with little to do, some argument changed."""
    given = {
        "initial_position": randn(8, 2),
        "num_warmup": 40,
        "num_samples": 2,
        "generator": seeded(),
    }
    given |= {
        "sample_parallel_tempering": {"local": local_hmc, "min_inverse_temperature": 0.5, "num_temperatures": 2},
        "sample_sgld": {"step_size": 0.1},
        "sample_sghmc": {"step_size": 0.1, "friction": 0.1},
    }.get(name, {})
    return getattr(mcmc, name)(skewed_log_prob, **given | changed)


BAD = [
    ("sample_meads", {"num_warmup": 1}, "num_warmup must be at least 2, got 1"),
    ("sample_meads", {"num_samples": 0}, "num_samples must be at least 1, got 0"),
    ("sample_meads", {"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ("sample_microcanonical", {"num_warmup": 9}, "num_warmup must be at least 10, got 9"),
    ("sample_microcanonical", {"num_samples": 0}, "num_samples must be at least 1, got 0"),
    ("sample_microcanonical", {"target_acceptance_rate": 1.0}, "target_acceptance_rate must be between 0 and 1"),
    ("sample_microcanonical", {"target_acceptance_rate": nan}, "target_acceptance_rate must be between 0 and 1"),
    ("sample_microcanonical", {"trajectory_length": nan}, "trajectory_length must be positive and finite, got nan"),
    ("sample_microcanonical", {"mass_matrix": "best"}, "mass_matrix must be 'auto', 'diagonal' or 'dense'"),
    ("sample_microcanonical", {"initial_position": randn(8, 1)}, "position must have at least 2 dimensions, got 1"),
    ("sample_parallel_tempering", {"num_warmup": 39}, "num_warmup must be at least 40, got 39"),
    ("sample_parallel_tempering", {"num_samples": 0}, "num_samples must be at least 1, got 0"),
    ("sample_parallel_tempering", {"num_temperatures": 1}, "num_temperatures must be at least 2, got 1"),
    ("sample_parallel_tempering", {"min_inverse_temperature": 1.0}, "min_inverse_temperature must be between 0 and 1"),
    ("sample_parallel_tempering", {"min_inverse_temperature": nan}, "min_inverse_temperature must be between 0 and 1"),
    ("sample_parallel_tempering", {"local": KERNELS["sgld"]}, "local must make a kernel whose state has log_prob"),
    ("sample_sgld", {"num_warmup": -1}, "num_warmup must be at least 0, got -1"),
    ("sample_sgld", {"num_samples": 0}, "num_samples must be at least 1, got 0"),
    ("sample_sgld", {"step_size": 0.0}, "step_size must be positive and finite, got 0.0"),
    ("sample_sgld", {"step_size": nan}, "step_size must be positive and finite, got nan"),
    ("sample_sgld", {"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ("sample_sgld", {"batch_size": 3}, "log_prob must have targets, one a row, to draw a minibatch of 3"),
    ("sample_sghmc", {"step_size": inf}, "step_size must be positive and finite, got inf"),
    ("sample_sghmc", {"friction": 0.0}, "friction must be above 0 and at most 1, got 0.0"),
    ("sample_sghmc", {"friction": nan}, "friction must be above 0 and at most 1, got nan"),
]


@pytest.mark.parametrize(("name", "changed", "message"), BAD)
def test_entry_point_refuses(name, changed, message):
    with pytest.raises(ValueError, match=message):
        call(name, **changed)


def test_kernels_refuse():
    log_prob = regression()[0]
    ladder = "inverse_temperatures must fall from 1 to something positive"
    cases = [
        (lambda: mcmc.microcanonical(log_prob, step_size=0.0, trajectory_length=1.0), "step_size must be positive"),
        (lambda: mcmc.microcanonical(log_prob, step_size=1.0, trajectory_length=-1.0), "trajectory_length must be pos"),
        (
            lambda: mcmc.microcanonical(
                log_prob, step_size=1.0, trajectory_length=1.0, inverse_mass_matrix=tensor([[1.0, 2.0], [2.0, 1.0]])
            ),
            "inverse_mass_matrix must be positive definite",
        ),
        (
            lambda: mcmc.microcanonical_leapfrog(
                skewed_log_prob, randn(2, 2), unit(2, 2), step_size=0.1, num_leapfrog_steps=0
            ),
            "num_leapfrog_steps must be at least 1, got 0",
        ),
        (lambda: mcmc.generalized_hmc(log_prob, step_size=nan, damping=1.0), "step_size must be positive"),
        (lambda: mcmc.generalized_hmc(log_prob, step_size=1.0, damping=0.0), "damping must be positive"),
        (lambda: mcmc.generalized_hmc(log_prob, step_size=1.0, damping=1.0, num_steps=0), "num_steps must be at least"),
        (
            lambda: mcmc.generalized_hmc(log_prob, step_size=1.0, damping=1.0, inverse_mass_matrix=tensor([1.0, -1.0])),
            "inverse_mass_matrix must be positive and finite, got -1.0",
        ),
        (lambda: mcmc.sgld(log_prob, step_size=0.1, batch_size=41), "batch_size must be from 1 to .*40, got 41"),
        *(
            (lambda b=b: mcmc.parallel_tempering(log_prob, inverse_temperatures=tensor(b), local=local_hmc), ladder)
            for b in ([1.0], [0.9, 0.5], [1.0, 0.0], [1.0, 1.0], [1.0, nan])
        ),
        (lambda: mcmc.adapt_ladder(tensor([1.0, 0.5]), tensor([0.5, 0.5])), "swap_rates must be 1 numbers from 0 to 1"),
        (lambda: mcmc.adapt_ladder(tensor([1.0, 0.5]), tensor([nan])), "swap_rates must be 1 numbers from 0 to 1"),
    ]
    for refused, message in cases:
        with pytest.raises(ValueError, match=message):
            refused()


def test_same_seed_same_draws():
    for name in ("sample_meads", "sample_microcanonical", "sample_parallel_tempering", "sample_sgld", "sample_sghmc"):
        first, second = (call(name, generator=seeded(3)).position for _ in range(2))
        assert torch.equal(first, second), name
