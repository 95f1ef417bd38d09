"""bdl_lib.networks against loops in NumPy, SciPy's distributions, finite differences, quadrature and brute force.

Exactness is tested in float64. Where a test draws at random, it is seeded and states its false-alarm rate.
"""

import functools
import itertools
import math

import numpy as np
import oracles
import pytest
import sim_device
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize, stats
from torch import nn
from torch.nn.utils import parameters_to_vector

from bdl_lib import bayes, data, networks

inf, nan = math.inf, math.nan
quick = settings(max_examples=25, deadline=None)
f64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=f64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def tensor(values, dtype=f64):
    return torch.tensor(values, dtype=dtype)


def close(actual, expected, *, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=atol)


# ---- Networks

ACTIVATIONS = {
    "relu": (torch.relu, nn.ReLU, lambda z: np.maximum(z, 0)),
    "tanh": (torch.tanh, nn.Tanh, np.tanh),
    "softplus": (nn.functional.softplus, nn.Softplus, lambda z: np.logaddexp(0, z)),
}
SIZES = [[2, 5, 4, 3], [1, 3, 1], [3, 2], [2, 1, 1, 2]]


def sequential(sizes, activation, bias=True):
    """The nn.Sequential of the same layers, in double precision, with weights from a seed."""
    layers = [(nn.Linear(*pair, bias=bias), activation()) for pair in itertools.pairwise(sizes)]
    module = nn.Sequential(*list(itertools.chain(*layers))[:-1]).double()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=100 + i))
    return module


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_both_paths_compute_what_a_loop_over_units_does(sizes, name, bias):
    activation, module, plain = ACTIVATIONS[name]
    fast = networks.mlp(sizes, activation=activation, bias=bias)
    general = networks.from_module(sequential(sizes, module, bias))
    weights, inputs = randn(7, fast.dim), randn(6, sizes[0], seed=1)
    expected = np.stack([oracles.mlp_outputs(w, inputs.numpy(), sizes, plain, bias) for w in weights.numpy()])
    close(fast.apply(weights, inputs), expected)
    close(general.apply(weights, inputs), expected)
    assert list(fast.weight_shapes.values()) == list(general.weight_shapes.values())
    assert list(fast.weight_slices.values()) == list(general.weight_slices.values())


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_chunks_change_nothing_but_the_order_of_work(name, chunk_size):
    activation, module, _ = ACTIVATIONS[name]
    whole, chunked = (networks.mlp([2, 5, 4, 3], activation=activation, chunk_size=c) for c in (7, chunk_size))
    general = networks.from_module(sequential([2, 5, 4, 3], module), chunk_size=chunk_size)
    weights, inputs = randn(7, whole.dim), randn(6, 2, seed=1)
    for network in (chunked, general):
        close(network.apply(weights, inputs), whole.apply(weights, inputs))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_pullback_is_autograds(name, bias):
    activation, module, _ = ACTIVATIONS[name]
    fast = networks.mlp([2, 5, 4, 3], activation=activation, bias=bias)
    general = networks.from_module(sequential([2, 5, 4, 3], module, bias))
    weights, inputs, upstream = randn(7, fast.dim), randn(6, 2, seed=1), randn(7, 6, 3, seed=2)
    leaf = weights.clone().requires_grad_()
    (expected,) = torch.autograd.grad(general.apply(leaf, inputs), leaf, upstream)
    (through_apply,) = torch.autograd.grad(fast.apply(leaf, inputs), leaf, upstream)
    close(through_apply, expected)
    for network in (fast, general):
        outputs, pullback = network.vjp(weights, inputs)
        assert not outputs.requires_grad
        close(outputs, fast.apply(weights, inputs))
        close(pullback(upstream), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_gradient_that_later_chapters_need(name):
    network = networks.mlp([2, 3, 2], activation=ACTIVATIONS[name][0])
    general = networks.from_module(sequential([2, 3, 2], ACTIVATIONS[name][1]))
    weights, inputs = randn(network.dim), randn(4, 2, seed=1)

    def one(net, x=inputs):
        return lambda w: net.apply(w[None], x)[0].square().sum()

    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):  # reverse and forward, and one in other
        close(transform(one(network))(weights), transform(one(general))(weights))
    close(torch.func.vmap(one(network))(weights[None]), one(general)(weights)[None])
    leaf = inputs.clone().requires_grad_()
    (saliency,) = torch.autograd.grad(one(network, leaf)(weights), leaf)
    close(saliency, torch.func.grad(lambda x: one(general, x)(weights))(inputs))


def test_from_module_takes_convolutions_buffers_and_tied_weights_and_changes_none():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3)
            self.drop, self.first, self.last = nn.Dropout(0.5), nn.Linear(8, 8), nn.Linear(8, 8)
            self.last.weight = self.first.weight

        def forward(self, x):
            hidden = self.drop(self.conv(self.norm(x)).relu().flatten(1))
            return self.last(self.first(hidden).tanh())

    module = Net().double()
    module.norm.running_mean.fill_(0.3)
    network = networks.from_module(module)
    inputs, own = randn(5, 1, 4, 4), parameters_to_vector(module.parameters()).detach()
    assert network.dim == len(own) == 2 + 20 + 64 + 16
    weights = torch.stack([own, 2 * own])
    outputs = network.apply(weights, inputs)
    assert module.training
    close(module.norm.running_mean, [0.3])
    module.eval()
    close(outputs[0], module(inputs).detach())
    nn.utils.vector_to_parameters(weights[1], module.parameters())
    close(outputs[1], module(inputs).detach())


def test_names_say_where_each_weight_lives():
    network = networks.mlp([2, 3, 1])
    assert list(network.weight_shapes) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert network.dim == 6 + 3 + 3 + 1
    weights = torch.arange(26.0).view(2, 13)
    named = networks.unflatten_weights(network, weights)
    close(named["0.weight"][1], [[13, 14], [15, 16], [17, 18]])
    close(weights[:, network.weight_slices["0.bias"]], [[6, 7, 8], [19, 20, 21]])
    close(networks.flatten_weights(network, named), weights)
    close(networks.flatten_weights(network, dict(reversed(named.items()))), weights)
    module = sequential([2, 3, 1], nn.Tanh)
    own = parameters_to_vector(module.parameters()).detach()
    assert list(networks.from_module(module).weight_shapes) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for name, value in networks.unflatten_weights(networks.from_module(module), own).items():
        close(value, module.get_parameter(name).detach(), rtol=0, atol=0)


def test_weights_of_shape_zero_are_weights_too():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.scale * x

    network = networks.from_module(Scale())
    assert network.dim == 1
    close(network.apply(torch.tensor([[3.0], [4.0]]), torch.ones(2, 1))[:, :, 0], [[3, 3], [4, 4]])
    assert networks.flatten_weights(network, {"scale": torch.ones(5)}).shape == (5, 1)


def test_apply_leaves_its_arguments_alone():
    for activation in (torch.relu, torch.tanh):
        network = networks.mlp([2, 3, 3, 1], activation=activation)
        weights, inputs = randn(5, network.dim), randn(4, 2, seed=1)
        before = weights.clone(), inputs.clone()
        _, pullback = network.vjp(weights, inputs)
        first = pullback(torch.ones(5, 4, 1, dtype=f64))
        close(pullback(torch.ones(5, 4, 1, dtype=f64)), first, rtol=0, atol=0)  # a second time: nothing was used up
        network.apply(weights, inputs)
        close(weights, before[0], rtol=0, atol=0)
        close(inputs, before[1], rtol=0, atol=0)


# ---- Far from the data


def test_far_field_slope_is_the_slope_far_out():
    network = networks.mlp([2, 6, 5, 3])
    weights, directions = randn(4, network.dim), randn(5, 2, seed=1)
    near, far = (network.apply(weights, t * directions) for t in (1e7, 2e7))
    close(networks.far_field_slope(network, weights, directions), (far - near) / 1e7, rtol=1e-6, atol=1e-6)


def test_far_field_slope_refuses_what_has_none():
    network = networks.mlp([2, 6, 3], activation=torch.tanh)
    with pytest.raises(ValueError, match="network must scale with its input"):
        networks.far_field_slope(network, randn(4, network.dim), randn(5, 2))


# ---- Priors and likelihoods

KINDS = {
    "gaussian": (lambda: networks.gaussian_likelihood(0.3), 1),
    "heteroscedastic": (networks.heteroscedastic_likelihood, 2),
    "bernoulli": (networks.bernoulli_likelihood, 1),
    "categorical": (lambda: networks.categorical_likelihood(3), 3),
}


def problem(kind, num_rows=8, activation=torch.tanh, seed=3):
    """A small network, its log posterior under the kind of likelihood, and a few weight samples."""
    make, num_outputs = KINDS[kind]
    network = networks.mlp([2, 4, num_outputs], activation=activation)
    prior = networks.gaussian_prior(network, prior_std={"0": 1.5, "1.weight": 0.7, "1.bias": 2.0}, dtype=f64)
    inputs, targets = randn(num_rows, 2, seed=seed), randn(num_rows, seed=seed + 1)
    if num_outputs != 2 and kind != "gaussian":
        targets = torch.arange(num_rows) % max(2, num_outputs)
    return networks.log_posterior(network, prior, make(), inputs, targets), prior.sample(5, generator=seeded(9))


@pytest.mark.parametrize("kind", KINDS)
def test_log_posterior_is_scipys_log_prior_plus_log_likelihoods(kind):
    log_prob, weights = problem(kind)
    inputs, targets = log_prob.inputs.numpy(), log_prob.targets.numpy()
    k = log_prob.likelihood.num_outputs
    std = np.concatenate([np.full(2 * 4 + 4, 1.5), np.full(4 * k, 0.7), np.full(k, 2.0)])
    prior = stats.norm.logpdf(weights.numpy(), 0, std).sum(1)
    outputs = [oracles.mlp_outputs(w, inputs, [2, 4, k], np.tanh) for w in weights.numpy()]
    likelihood = np.array([oracles.log_likelihoods(kind, f, targets, 0.3).sum() for f in outputs])
    close(log_prob.log_prior(weights), prior)
    close(log_prob.log_likelihood(weights), likelihood)
    close(log_prob(weights), prior + likelihood)


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh, nn.functional.softplus])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [None, torch.tensor([5, 1, 2])], ids=["all rows", "minibatch"])
def test_gradient_against_finite_differences(kind, activation, rows):
    log_prob, weights = problem(kind, activation=activation)
    weights = 0.5 * weights  # where second derivatives are moderate, so that differences are accurate
    value, grad = log_prob.value_and_grad(weights, rows)
    close(value, log_prob(weights, rows))
    close(log_prob.grad(weights, rows), grad, rtol=0, atol=0)
    step = 1e-6 * torch.eye(weights.shape[1], dtype=f64)
    for w, g in zip(weights, grad, strict=True):
        differences = (log_prob(w + step, rows) - log_prob(w - step, rows)) / 2e-6
        close(g, differences, rtol=1e-6, atol=1e-6)
    leaf = weights.clone().requires_grad_()
    close(grad, torch.autograd.grad(log_prob(leaf, rows).sum(), leaf)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_minibatches_average_to_the_full_sum(kind):
    log_prob, weights = problem(kind, num_rows=6)
    batches = [torch.tensor(rows) for rows in itertools.combinations(range(6), 2)]
    mean = sum(log_prob.log_likelihood(weights, rows) for rows in batches) / len(batches)
    close(mean, log_prob.log_likelihood(weights))
    close(log_prob(weights, torch.arange(6)), log_prob(weights))


def test_general_network_has_the_same_posterior():
    log_prob, weights = problem("categorical")
    other = log_prob._replace(network=networks.from_module(sequential([2, 4, 3], nn.Tanh)))
    for a, b in zip(log_prob.value_and_grad(weights), other.value_and_grad(weights), strict=True):
        close(a, b)


def test_log_posterior_of_a_linear_network_is_bayesian_linear_regression():
    network = networks.mlp([2, 1], bias=False)
    inputs, targets = randn(9, 2), randn(9, seed=1)
    log_prob = networks.log_posterior(
        network,
        networks.gaussian_prior(network, prior_std=1.3, dtype=f64),
        networks.gaussian_likelihood(0.4),
        inputs,
        targets,
    )
    prior = bayes.gaussian_prior(2, prior_std=1.3, dtype=f64)
    posterior = bayes.linear_posterior(prior, inputs, targets, noise_std=0.4)
    evidence = bayes.linear_log_evidence(prior, inputs, targets, noise_std=0.4)
    weights = randn(6, 2, seed=2)
    exact = torch.distributions.MultivariateNormal(posterior.loc, precision_matrix=posterior.prec).log_prob(weights)
    close(log_prob(weights) - evidence, exact, rtol=1e-9)  # so the constant is the evidence, to the last digit


def test_log_posterior_is_what_a_grid_posterior_takes():
    network = networks.mlp([1, 1, 1], bias=False, activation=torch.tanh)
    prior = networks.gaussian_prior(network, prior_std=1.0, dtype=f64)
    inputs, targets = tensor([[-1.0], [0.5], [1.0]]), tensor([-0.5, 0.4, 0.6])
    log_prob = networks.log_posterior(network, prior, networks.gaussian_likelihood(0.3), inputs, targets)
    axis = bayes.midpoints(-6.0, 6.0, 200, dtype=f64)
    grid = bayes.grid_posterior(log_prob, axis, axis)

    def log_density(first, second):
        outputs = second[..., None] * np.tanh(first[..., None] * inputs[:, 0].numpy())
        fit = stats.norm.logpdf(targets.numpy(), outputs, 0.3).sum(-1)
        return stats.norm.logpdf(first) + stats.norm.logpdf(second) + fit

    close(grid.log_evidence, oracles.log_gauss_legendre(log_density, -6, 6), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_extreme_outputs_have_finite_log_probabilities(kind, size):
    log_prob, _ = problem(kind)
    k = log_prob.likelihood.num_outputs
    outputs = size * torch.sign(randn(4, 8, k))
    if kind == "heteroscedastic":
        outputs = outputs.clamp(-30, 30)  # e^10000 is infinite, and so is its log probability
    value, score = log_prob.likelihood.log_prob_and_score(outputs, log_prob.targets)
    assert value.isfinite().all()
    assert score.isfinite().all()
    close(value, log_prob.likelihood.log_prob(outputs, log_prob.targets))
    if kind in ("bernoulli", "categorical"):
        assert value.min() <= -size * 0.99  # a confident wrong answer costs what it should


def test_prior_scales_go_where_they_are_named():
    network = networks.mlp([2, 3, 1])
    prior = networks.gaussian_prior(network, prior_std={"0": 2.0, "0.bias": 5.0, "1.weight": 3.0, "1.bias": 4.0})
    close(prior.std, [2.0] * 6 + [5.0] * 3 + [3.0] * 3 + [4.0])
    close(networks.gaussian_prior(network, prior_std=2).std, [2.0] * 13)


def test_prior_samples_have_the_prior_s_spread():
    prior = networks.gaussian_prior(networks.mlp([1, 1]), prior_std={"0.weight": 0.5, "0.bias": 3.0}, dtype=f64)
    draws = prior.sample(20_000, generator=seeded())
    for column, std in zip(draws.T, (0.5, 3.0), strict=True):  # Kolmogorov–Smirnov: false alarms 1 in 1,000 each
        assert stats.kstest(column.numpy(), stats.norm(0, std).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(draws.T.numpy())[0, 1]) < 0.03
    close(draws, prior.sample(20_000, generator=seeded()))


def test_draw_rows_is_uniform_without_replacement():
    generator = seeded()
    batches = [tuple(sorted(networks.draw_rows(5, 2, generator=generator).tolist())) for _ in range(5_000)]
    counts = [batches.count(pair) for pair in itertools.combinations(range(5), 2)]
    assert sum(counts) == 5_000
    assert stats.chisquare(counts).pvalue > 1e-3  # false alarms: 1 in 1,000


# ---- MAP


def linear_problem():
    network = networks.mlp([2, 1])
    prior = networks.gaussian_prior(network, prior_std=1.0, dtype=f64)
    inputs, targets = randn(20, 2), randn(20, seed=1)
    return networks.log_posterior(network, prior, networks.gaussian_likelihood(0.5), inputs, targets)


def test_map_of_a_linear_network_is_the_posterior_mean():
    log_prob = linear_problem()
    fit = networks.fit_map(log_prob, randn(3, 3), lr=0.05, num_steps=4000, min_improvement=1e-10)
    features = torch.cat([log_prob.inputs, torch.ones(20, 1, dtype=f64)], dim=1)
    exact = bayes.linear_posterior(
        bayes.gaussian_prior(3, prior_std=1.0, dtype=f64), features, log_prob.targets, noise_std=0.5
    )
    assert fit.is_converged
    close(fit.weights, exact.loc.expand(3, 3), rtol=0, atol=1e-5)
    close(fit.log_prob, log_prob(fit.weights))
    close(fit.best_weights, fit.weights[fit.log_prob.argmax()])


def test_map_of_logistic_regression_is_scipys():
    network = networks.mlp([2, 1])
    prior = networks.gaussian_prior(network, prior_std=2.0, dtype=f64)
    inputs = randn(30, 2)
    labels = (inputs[:, 0] + randn(30, seed=1) > 0).long()
    log_prob = networks.log_posterior(network, prior, networks.bernoulli_likelihood(), inputs, labels)

    def loss(w):
        logits = inputs.numpy() @ w[:2] + w[2]
        return np.logaddexp(0, np.where(labels == 1, -logits, logits)).sum() + 0.5 * (w**2).sum() / 4

    exact = optimize.minimize(loss, np.zeros(3), options={"gtol": 1e-8}).x
    fit = networks.fit_map(log_prob, torch.zeros(1, 3, dtype=f64), lr=0.05, num_steps=4000, min_improvement=1e-9)
    close(fit.weights[0], exact, rtol=0, atol=1e-4)


def test_every_start_climbs_alone():
    log_prob, weights = problem("categorical")
    together = networks.fit_map(log_prob, weights, num_steps=50, patience=10, min_improvement=0)
    for start, end in zip(weights, together.weights, strict=True):
        close(networks.fit_map(log_prob, start[None], num_steps=50, patience=10, min_improvement=0).weights[0], end)
    assert together.history.shape == (50, 5)
    close(together.history[0], log_prob(weights))
    assert (together.log_prob > log_prob(weights)).all()


def test_early_stop_follows_its_rule():
    log_prob = linear_problem()
    fit = networks.fit_map(log_prob, randn(2, 3), lr=0.05, num_steps=10_000, patience=50, min_improvement=0.1)
    steps = len(fit.history)
    assert fit.is_converged
    assert steps % 50 == 0
    means = fit.history.view(-1, 50, 2).mean(1)
    gains = means.diff(dim=0).amax(1)
    assert (gains[:-1] > 0.1).all()
    assert gains[-1] <= 0.1
    longer = networks.fit_map(log_prob, randn(2, 3), lr=0.05, num_steps=steps, patience=50, min_improvement=0.0)
    close(longer.weights, fit.weights)
    assert len(networks.fit_map(log_prob, randn(2, 3), num_steps=7).history) == 7


def test_map_of_minibatches_comes_near():
    log_prob = linear_problem()
    exact = networks.fit_map(log_prob, randn(1, 3), lr=0.05, min_improvement=1e-9).log_prob
    fit = networks.fit_map(
        log_prob, randn(1, 3), lr=0.02, num_steps=300, batch_size=10, generator=seeded(), patience=1000
    )
    assert (exact - fit.log_prob).item() < 1.0  # unscaled batches end 2 nats lower, at half the weight of the data


def test_divergence_is_reported_not_hidden():
    starts = torch.stack([randn(3), torch.full((3,), 1e308, dtype=f64)])  # the second overflows: NaN from the beginning
    fit = networks.fit_map(linear_problem(), starts, lr=0.2, num_steps=200, patience=20, min_improvement=1.0)
    assert not fit.is_converged
    assert len(fit.history) == 200
    assert fit.log_prob.isnan().tolist() == [False, True]
    assert torch.equal(fit.best_weights, fit.weights[0])
    alone = networks.fit_map(linear_problem(), starts[:1], lr=0.2, num_steps=200, patience=20, min_improvement=1.0)
    assert alone.is_converged  # so it was the second that kept the first waiting


class Killed(Exception):
    pass


def killed_after(log_prob, num_calls):
    """The same log posterior, which stops the process, as it were, at a call of ``value_and_grad``."""

    class Mortal(type(log_prob)):
        calls = 0

        def value_and_grad(self, weights, rows=None):
            type(self).calls += 1
            if type(self).calls > num_calls:
                raise Killed
            return super().value_and_grad(weights, rows)

    return Mortal(*log_prob)


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("kill_at", [5, 20, 57, 83])
def test_an_interrupted_fit_ends_at_the_same_bits(tmp_path, batch_size, kill_at):
    log_prob, weights = problem("categorical")
    settings = {"num_steps": 90, "patience": 20, "min_improvement": 0.0, "batch_size": batch_size, "lr": 0.05}
    generators = [seeded(5) for _ in range(3)]
    whole = networks.fit_map(log_prob, weights, generator=generators[0], **settings)
    path = tmp_path / "fit.pt"
    with pytest.raises(Killed):
        networks.fit_map(killed_after(log_prob, kill_at), weights, generator=generators[1], checkpoint=path, **settings)
    assert path.exists() == (kill_at >= 20)
    resumed = networks.fit_map(log_prob, weights, generator=seeded(5), checkpoint=path, **settings)
    assert torch.equal(resumed.weights, whole.weights)
    assert torch.equal(resumed.history, whole.history)
    assert resumed.is_converged == whole.is_converged
    generators[2].manual_seed(77)  # after a restart the caller's generator may be anywhere
    again = networks.fit_map(log_prob, weights, generator=generators[2], checkpoint=path, **settings)
    assert torch.equal(again.weights, whole.weights)
    if batch_size:
        assert torch.equal(generators[2].get_state(), generators[0].get_state())
    assert [p.name for p in tmp_path.iterdir()] == ["fit.pt"]


def test_a_fit_can_be_prolonged(tmp_path):
    log_prob, weights = problem("gaussian")
    settings = {"patience": 20, "min_improvement": 0.0, "lr": 0.05}
    whole = networks.fit_map(log_prob, weights, num_steps=100, **settings)
    networks.fit_map(log_prob, weights, num_steps=33, checkpoint=tmp_path / "fit.pt", **settings)
    resumed = networks.fit_map(log_prob, weights, num_steps=100, checkpoint=tmp_path / "fit.pt", **settings)
    assert torch.equal(resumed.weights, whole.weights)
    assert torch.equal(resumed.history, whole.history)
    with pytest.raises(ValueError, match="num_steps must be at least the checkpoint's 100, got 50"):
        networks.fit_map(log_prob, weights, num_steps=50, checkpoint=tmp_path / "fit.pt", **settings)


def shift_one_target(log_prob):
    return log_prob._replace(targets=log_prob.targets + 1e-9 * torch.eye(8, dtype=f64)[3])


OTHER_PROBLEMS = {
    "one target moved by a billionth": (shift_one_target, {}),
    "one input": (lambda p: p._replace(inputs=p.inputs.roll(1, 1)), {}),
    "prior": (lambda p: p._replace(prior=networks.GaussianPrior(p.prior.std * 1.01)), {}),
    "noise": (lambda p: p._replace(likelihood=networks.gaussian_likelihood(0.31)), {}),
    "activation": (lambda p: p._replace(network=networks.mlp([2, 4, 1], activation=torch.relu)), {}),
    "a nameless activation": (lambda p: p._replace(network=networks.mlp([2, 4, 1], activation=lambda z: z.sin())), {}),
    "learning rate": (lambda p: p, {"lr": 0.02}),
    "patience": (lambda p: p, {"patience": 11}),
    "batch size": (lambda p: p, {"batch_size": 3, "generator": torch.Generator()}),
    "start": (lambda p: p, {"initial_weights": randn(5, 17, seed=4)}),
}


@pytest.mark.parametrize("name", OTHER_PROBLEMS)
def test_a_checkpoint_of_another_problem_is_refused(tmp_path, name):
    log_prob, weights = problem("gaussian")
    if name == "a nameless activation":
        log_prob = log_prob._replace(network=networks.mlp([2, 4, 1], activation=lambda z: z.tanh()))
    arguments = {"initial_weights": weights, "num_steps": 20, "patience": 10, "checkpoint": tmp_path / "fit.pt"}
    networks.fit_map(log_prob, **arguments)
    networks.fit_map(log_prob, **arguments)
    change, other = OTHER_PROBLEMS[name]
    with pytest.raises(ValueError, match=r"checkpoint must be of this data.*fit\.pt is of another problem"):
        networks.fit_map(change(log_prob), **{**arguments, **other})


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b"", lambda b: b"none"])
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    log_prob, weights = problem("gaussian")
    path = tmp_path / "fit.pt"
    networks.fit_map(log_prob, weights, num_steps=20, checkpoint=path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"checkpoint must be a whole file written by fit_map.*fit\.pt is not"):
        networks.fit_map(log_prob, weights, num_steps=20, checkpoint=path)


def test_other_files_are_no_checkpoints(tmp_path):
    log_prob, weights = problem("gaussian")
    torch.save({"weights": weights}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="checkpoint must be a whole file written by fit_map"):
        networks.fit_map(log_prob, weights, num_steps=20, checkpoint=tmp_path / "other.pt")


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    log_prob, weights = problem("gaussian")
    path = tmp_path / "fit.pt"
    networks.fit_map(log_prob, weights, num_steps=20, checkpoint=path)
    before = path.read_bytes()

    def full(state, file):
        file.write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        networks.fit_map(log_prob, weights, num_steps=40, checkpoint=path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["fit.pt"]


def test_the_host_waits_once_in_patience_steps():
    network = networks.mlp([2, 4, 3])
    prior = networks.gaussian_prior(network, prior_std=1.0, device="sim")
    inputs, labels = randn(6, 2, dtype=torch.float32).to("sim"), (torch.arange(6) % 3).to("sim")
    log_prob = networks.log_posterior(network, prior, networks.categorical_likelihood(3), inputs, labels)
    weights = prior.sample(2, generator=torch.Generator("sim"))
    waits = []
    for num_steps in (50, 100):
        with sim_device.count() as counts:
            networks.fit_map(log_prob, weights, num_steps=num_steps, patience=25, min_improvement=0.0)
        waits.append(counts.host_syncs)
    assert waits[1] - waits[0] == 2


def test_progress_shows_only_when_asked(capsys):
    log_prob, weights = problem("gaussian")
    networks.fit_map(log_prob, weights, num_steps=20)
    assert capsys.readouterr() == ("", "")
    networks.fit_map(log_prob, weights, num_steps=20, progress=True)
    assert "20/20" in capsys.readouterr().err


# ---- Predictions and the two kinds of not knowing


@pytest.mark.parametrize("kind", ["gaussian", "heteroscedastic"])
def test_predictive_moments_are_the_mixtures(kind):
    log_prob, weights = problem(kind)
    weights, inputs = 0.5 * weights, randn(3, 2, seed=8)
    result = networks.predict_regression(log_prob.network, log_prob.likelihood, weights, inputs)
    outputs = log_prob.network.apply(weights, inputs)
    for i in range(3):
        densities = [
            functools.partial(lambda y, f: np.exp(oracles.log_likelihoods(kind, f, y, 0.3)), f=f[None])
            for f in outputs[:, i].numpy()
        ]
        mean, var = oracles.mixture_moments(densities, -60, 60)
        close(result.mean[i], mean, rtol=1e-7)
        close(result.parameter_var[i] + result.noise_var[i], var, rtol=1e-7)
        close(result.std[i], var**0.5, rtol=1e-7)
    close(result.parameter_var, np.var(outputs[..., 0].numpy(), axis=0))


def test_predictive_moments_of_labels_are_those_of_a_coin():
    log_prob, weights = problem("bernoulli")
    inputs = 30 * randn(40, 2, seed=8)
    result = networks.predict_regression(log_prob.network, log_prob.likelihood, weights, inputs)
    prob = networks.predict_classes(log_prob.network, log_prob.likelihood, weights, inputs).prob[:, 1]
    close(result.mean, prob)
    close(result.parameter_var + result.noise_var, prob * (1 - prob))


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_class_probabilities_are_the_averages(kind):
    log_prob, weights = problem(kind)
    inputs = randn(3, 2, seed=8)
    result = networks.predict_classes(log_prob.network, log_prob.likelihood, weights, inputs)
    num_classes = max(2, log_prob.likelihood.num_outputs)
    outputs = log_prob.network.apply(weights, inputs).numpy()
    for label in range(num_classes):
        targets = np.full(3, label)
        expected = np.mean([np.exp(oracles.log_likelihoods(kind, f, targets)) for f in outputs], axis=0)
        close(result.prob[:, label], expected)
    close(result.prob.sum(1), torch.ones(3))


PROBS = {
    "certain and agreed": [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]],
    "certain, and of different minds": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "uncertain and agreed": [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]],
    "everything at once": [[1.0, 0.0, 0.0], [0.2, 0.3, 0.5], [0.0, 0.5, 0.5], [1e-300, 1.0, 0.0]],
    "smaller than any normal number": [[5e-324, 1.0, 0.0], [0.0, 1.0, 0.0]],
    "one sample": [[0.2, 0.3, 0.5]],
}


@pytest.mark.parametrize("name", PROBS)
def test_entropy_split_against_its_definitions(name):
    split = networks.entropy_split(tensor(PROBS[name])[:, None])
    for part, expected in zip(split, oracles.entropies(PROBS[name]), strict=True):
        close(part, [expected])
    close(split.total, split.expected + split.mutual_information)


@quick
@given(hnp.arrays(float, st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(2, 5)), elements=st.floats(0, 1)))
def test_entropy_identity(raw):
    raw[..., 0] += raw.sum(-1) == 0
    prob = torch.as_tensor(raw / raw.sum(-1, keepdims=True))
    split = networks.entropy_split(prob)
    close(split.total, split.expected + split.mutual_information, atol=1e-9)
    assert (split.mutual_information >= 0).all()
    assert (split.total <= math.log(prob.shape[-1]) + 1e-12).all()


@quick
@given(hnp.arrays(float, st.tuples(st.just(2), st.integers(1, 6), st.integers(1, 4)), elements=st.floats(-5, 5)))
def test_variance_identity(raw):
    means, variances = torch.as_tensor(raw[0]), torch.as_tensor(raw[1]).square()
    split = networks.variance_split(means, variances)
    second_moment = (means.square() + variances).mean(0)
    close(split.parameter_var + split.noise_var, second_moment - split.mean.square(), atol=1e-9)


@pytest.mark.parametrize("kind", ["gaussian", "heteroscedastic"])
def test_entropy_identity_of_densities_on_a_fine_grid(kind):
    log_prob, weights = problem(kind)
    outputs = 0.3 * log_prob.network.apply(weights, randn(2, 2, seed=8))
    y = torch.linspace(-12, 12, 24_001, dtype=f64)
    outputs = outputs[:, :, None].expand(5, 2, len(y), -1)
    density = log_prob.likelihood.log_prob(outputs.flatten(1, 2), y.repeat(2)).exp().view(5, 2, -1)
    prob = density * 1e-3
    split = networks.entropy_split(prob / prob.sum(-1, keepdim=True))
    _, var = log_prob.likelihood.moments(outputs[:, :, 0])
    gaussian_entropy = 0.5 * (2 * math.pi * math.e * var).log()
    close(split.expected + math.log(1e-3), gaussian_entropy.mean(0), rtol=1e-6)
    close(split.total, split.expected + split.mutual_information)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
@pytest.mark.parametrize("size", [0.0, 1.0, 40.0, 1e5])
def test_identities_hold_up_to_certainty(kind, size):
    log_prob, _ = problem(kind)
    outputs = size * randn(6, 5, log_prob.likelihood.num_outputs)
    prob = log_prob.likelihood.class_prob(outputs)
    if size == 1e5:
        assert ((prob == 0) | (prob == 1)).double().mean() > 0.95
    split = networks.entropy_split(prob)
    close(split.total, split.expected + split.mutual_information)
    indicator = networks.variance_split(prob[..., 0], prob[..., 0] * (1 - prob[..., 0]))
    mean = prob[..., 0].mean(0)
    close(indicator.parameter_var + indicator.noise_var, mean * (1 - mean))


# ---- Decisions


@quick
@given(
    hnp.arrays(float, st.tuples(st.integers(1, 5), st.just(3)), elements=st.floats(0.01, 1)),
    hnp.arrays(float, st.tuples(st.integers(1, 4), st.just(3)), elements=st.floats(-2, 5)),
    st.one_of(st.none(), st.floats(-1, 3)),
)
def test_decide_finds_the_best_action(raw, cost, refuse_cost):
    prob = raw / raw.sum(1, keepdims=True)
    decision = networks.decide(torch.as_tensor(prob), torch.as_tensor(cost), refuse_cost=refuse_cost)
    losses = networks.expected_loss(torch.as_tensor(prob), torch.as_tensor(cost))
    close(losses, prob @ cost.T)
    for i, p in enumerate(prob):
        action, loss = oracles.best_action(p, cost, refuse_cost)
        close(decision.expected_loss[i], loss)
        taken = decision.action[i].item()
        assert taken == action or losses[i, taken].item() == pytest.approx(loss)  # two actions may be equally good


def test_the_0_1_cost_answers_with_the_most_probable_class_or_refuses():
    prob = tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.0, 0.0, 1.0]])
    cost = 1 - torch.eye(3, dtype=f64)
    assert networks.decide(prob, cost).action.tolist() == [0, 0, 2]
    decision = networks.decide(prob, cost, refuse_cost=0.5)
    assert decision.action.tolist() == [0, networks.REFUSE, 2]
    close(decision.expected_loss, [0.3, 0.5, 0.0])


def test_rows_of_the_cost_matrix_are_actions():
    prob, cost = tensor([[0.9, 0.1]]), tensor([[0.0, 100.0], [1.0, 0.0]])  # to say 0 when it is 1 costs 100
    close(networks.expected_loss(prob, cost), [[10.0, 0.9]])
    assert networks.decide(prob, cost).action.tolist() == [1]


@pytest.mark.parametrize(
    ("confidence", "loss"),
    [
        ([0.9, 0.8, 0.7, 0.6], [0.0, 0.0, 1.0, 1.0]),
        ([0.6, 0.9, 0.7, 0.8], [3.0, 0.0, 1.0, 0.5]),
        ([0.5, 0.9, 0.5, 0.9, 0.5], [1.0, 0.0, 0.0, 1.0, 0.0]),
        ([1.0, 1.0, 1.0], [0.0, 1.0, 5.0]),
        ([0.3], [2.0]),
    ],
)
def test_risk_coverage_against_all_orders(confidence, loss):
    curve = networks.risk_coverage(tensor(confidence), tensor(loss))
    expected = oracles.risk_coverage(confidence, loss)
    close(curve.risk, expected)
    close(curve.coverage, np.arange(1, len(loss) + 1) / len(loss))
    close(curve.area, expected.mean())


def test_risk_coverage_does_not_depend_on_the_order_of_the_data():
    confidence, loss = randn(200).mul(3).round(), randn(200, seed=1).square()
    order = torch.randperm(200, generator=seeded(2))
    close(networks.risk_coverage(confidence[order], loss[order]).risk, networks.risk_coverage(confidence, loss).risk)
    flat = networks.risk_coverage(torch.zeros(200, dtype=f64), loss).risk
    close(flat, loss.mean().expand(200))
    best = networks.risk_coverage(-loss, loss).area
    assert best < networks.risk_coverage(confidence, loss).area < networks.risk_coverage(loss, loss).area


# ---- A reader's first minutes


def test_the_dog_classifier_learns_and_is_sure_of_a_horse():
    generator = seeded(2)
    dogs = data.dog_breeds(60, generator=generator)
    scaling = data.standardiser(dogs.inputs)
    network = networks.mlp([2, 10, 3])
    prior = networks.gaussian_prior(network, prior_std=1.0)
    likelihood = networks.categorical_likelihood(3)
    log_prob = networks.log_posterior(network, prior, likelihood, scaling(dogs.inputs), dogs.labels)
    fit = networks.fit_map(log_prob, prior.sample(4, generator=generator), num_steps=250, lr=0.05)
    one = fit.best_weights[None]
    known = networks.predict_classes(network, likelihood, one, scaling(dogs.inputs))
    assert (known.prob.argmax(1) == dogs.labels).float().mean() > 0.98
    animals = data.unseen_animals(20, generator=generator)
    horses = animals.inputs[animals.labels == animals.class_names.index("horse")]
    answer = networks.predict_classes(network, likelihood, one, scaling(horses)).prob.amax(1)
    assert answer.min() > 0.99


# ---- dtypes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_results_have_the_dtype_of_the_inputs(kind, dtype):
    log_prob, weights = problem(kind)
    targets = log_prob.targets.to(dtype) if log_prob.targets.is_floating_point() else log_prob.targets
    prior = networks.gaussian_prior(log_prob.network, prior_std=1.0, dtype=dtype)
    inputs, weights = log_prob.inputs.to(dtype), weights.to(dtype)
    log_prob = networks.log_posterior(log_prob.network, prior, log_prob.likelihood, inputs, targets)
    results = [log_prob(weights), *log_prob.value_and_grad(weights)]
    if log_prob.likelihood.moments:
        results += networks.predict_regression(log_prob.network, log_prob.likelihood, weights, inputs)
    if log_prob.likelihood.class_prob:
        results.append(networks.predict_classes(log_prob.network, log_prob.likelihood, weights, inputs).prob)
    assert {result.dtype for result in results} == {dtype}


# ---- Bad input

NET = networks.mlp([2, 4, 3])
PRIOR = networks.gaussian_prior(NET, prior_std=1.0, dtype=f64)
X, Y = randn(6, 2), torch.arange(6) % 3
CAT = networks.categorical_likelihood(3)


def posterior(**changes):
    parts = {"network": NET, "prior": PRIOR, "likelihood": CAT, "inputs": X, "targets": Y}
    return networks.log_posterior(**{**parts, **changes})


def fit(**changes):
    return networks.fit_map(posterior(), **{"initial_weights": randn(1, NET.dim), "num_steps": 2, **changes})


def gaussian(targets):
    net = networks.mlp([2, 1])
    prior = networks.gaussian_prior(net, prior_std=1.0, dtype=f64)
    return posterior(network=net, prior=prior, likelihood=networks.gaussian_likelihood(1.0), targets=targets)


BAD = {
    "one layer": (lambda: networks.mlp([2]), "layer_sizes must be at least two numbers, each at least 1, got"),
    "an empty layer": (lambda: networks.mlp([2, 0, 1]), r"layer_sizes must .* got \[2, 0, 1\]"),
    "chunks of none": (lambda: networks.mlp([2, 1], chunk_size=0), "chunk_size must be at least 1, got 0"),
    "chunks of a module": (
        lambda: networks.from_module(nn.Linear(1, 1), chunk_size=-1),
        "chunk_size must be at least 1",
    ),
    "no weights": (lambda: networks.from_module(nn.ReLU()), "module must have parameters, got ReLU"),
    "too few weights": (lambda: NET.apply(randn(5, 26), X), r"weights must have shape \[samples, 27\], got \[5, 26\]"),
    "one weight vector": (lambda: NET.apply(randn(27), X), r"weights must have shape \[samples, 27\], got \[27\]"),
    "weights of a module": (
        lambda: networks.from_module(nn.Linear(1, 1)).apply(randn(5, 3), X),
        "weights must have shape",
    ),
    "weights going back": (lambda: NET.vjp(randn(5, 26), X), "weights must have shape"),
    "features": (lambda: NET.apply(randn(5, 27), randn(6, 3)), r"inputs must have shape \[n, 2\], got \[6, 3\]"),
    "a vector of inputs": (lambda: NET.apply(randn(5, 27), randn(2)), r"inputs must have shape \[n, 2\], got \[2\]"),
    "unflatten": (lambda: networks.unflatten_weights(NET, randn(26)), "weights must have a last axis of length 27"),
    "flatten a missing name": (lambda: networks.flatten_weights(NET, {}), "named_weights must be"),
    "flatten a wrong shape": (
        lambda: networks.flatten_weights(
            NET, {**networks.unflatten_weights(NET, randn(27)), "0.bias": torch.zeros(5, dtype=f64)}
        ),
        r"named_weights\['0.bias'\] must end in shape \[4\], got \[5\]",
    ),
    "negative prior scale": (
        lambda: networks.gaussian_prior(NET, prior_std=-1.0),
        "prior_std must be positive and finite, got -1.0",
    ),
    "zero prior scale": (
        lambda: networks.gaussian_prior(NET, prior_std={"0": 1.0, "1": 0.0}),
        "prior_std .* got 0.0 for '1'",
    ),
    "NaN prior scale": (lambda: networks.gaussian_prior(NET, prior_std=nan), "prior_std must be positive and finite"),
    "infinite prior scale": (
        lambda: networks.gaussian_prior(NET, prior_std=inf),
        "prior_std must be positive and finite",
    ),
    "a weight without a scale": (
        lambda: networks.gaussian_prior(NET, prior_std={"0": 1.0}),
        "prior_std must have a scale for each of",
    ),
    "a scale without a weight": (
        lambda: networks.gaussian_prior(NET, prior_std={"0": 1.0, "1": 1.0, "2": 1.0}),
        "prior_std must have",
    ),
    "noise": (lambda: networks.gaussian_likelihood(0.0), "noise_std must be positive and finite, got 0.0"),
    "NaN noise": (lambda: networks.gaussian_likelihood(nan), "noise_std must be positive and finite, got nan"),
    "one class": (lambda: networks.categorical_likelihood(1), "num_classes must be at least 2, got 1"),
    "label too large": (lambda: posterior(targets=Y + 1), r"targets must be whole labels from 0 to 2, got .*3"),
    "label negative": (lambda: posterior(targets=Y - 1), "targets must be whole labels from 0 to 2"),
    "label of a coin": (
        lambda: posterior(network=networks.mlp([2, 26]), likelihood=networks.bernoulli_likelihood()),
        "targets must be whole labels from 0 to 1",
    ),
    "a broken label": (lambda: posterior(targets=Y + 0.5), "targets must be whole labels from 0 to 2"),
    "NaN label": (lambda: posterior(targets=tensor([nan, 0, 1, 2, 0, 1])), "targets must be whole labels from 0 to 2"),
    "empty class": (lambda: posterior(targets=Y.clamp(max=1)), r"targets must include every class, got none of \[2\]"),
    "NaN target": (lambda: gaussian(tensor([nan, 0, 1, 2, 0, 1])), "targets must be finite floating-point numbers"),
    "whole-number targets": (lambda: gaussian(Y), "targets must be finite floating-point numbers"),
    "targets as a column": (lambda: gaussian(randn(6, 1)), r"targets must have shape \[6\].*got \[6, 1\]"),
    "too few targets": (
        lambda: posterior(targets=Y[:5]),
        r"targets must have shape \[6\], one a row of inputs, got \[5\]",
    ),
    "NaN feature": (lambda: posterior(inputs=X.where(X[2, 1] != X, nan)), "inputs must be finite.* 1 non-finite"),
    "infinite feature": (lambda: posterior(inputs=X.where(X[2, 1] != X, inf)), "inputs must be finite"),
    "no data": (lambda: posterior(inputs=X[:0], targets=Y[:0]), "inputs must be finite and have at least one row"),
    "prior of another network": (
        lambda: posterior(prior=networks.gaussian_prior(networks.mlp([2, 3]), prior_std=1.0)),
        r"prior must be over 27 weights, .* got \[9\]",
    ),
    "prior in another precision": (
        lambda: posterior(prior=networks.gaussian_prior(NET, prior_std=1.0)),
        r"prior must be over 27 weights, in the inputs' torch.float64, got \[27\], torch.float32",
    ),
    "targets in another precision": (
        lambda: gaussian(randn(6, dtype=torch.float32)),
        "targets must have the inputs' dtype, torch.float64, got torch.float32",
    ),
    "outputs of another likelihood": (
        lambda: posterior(likelihood=networks.heteroscedastic_likelihood(), targets=randn(6)),
        "network must have 2 outputs for the likelihood 'heteroscedastic gaussian'",
    ),
    "batch too large": (
        lambda: networks.draw_rows(5, 6, generator=seeded()),
        "batch_size must be from 1 to .* 5, got 6",
    ),
    "batch of none": (lambda: networks.draw_rows(5, 0, generator=seeded()), "batch_size must be from 1"),
    "start of another network": (
        lambda: fit(initial_weights=randn(1, 26)),
        r"initial_weights must have shape \[starts, 27\]",
    ),
    "no start": (lambda: fit(initial_weights=randn(0, 27)), "initial_weights must have shape"),
    "NaN start": (
        lambda: fit(initial_weights=torch.full((1, 27), nan, dtype=f64)),
        r"initial_weights must be finite.*\[0\]",
    ),
    "no steps": (lambda: fit(num_steps=0), "num_steps must be at least 1, got 0"),
    "no patience": (lambda: fit(patience=0), "patience must be at least 1, got 0"),
    "learning rate": (lambda: fit(lr=0.0), "lr must be positive and finite, got 0.0"),
    "NaN learning rate": (lambda: fit(lr=nan), "lr must be positive and finite, got nan"),
    "NaN improvement": (lambda: fit(min_improvement=nan), "min_improvement must not be negative, got nan"),
    "minibatches by no generator": (lambda: fit(batch_size=2), "generator must be given with batch_size"),
    "minibatch too large": (lambda: fit(batch_size=7, generator=seeded()), "batch_size must be from 1 to"),
    "no samples": (
        lambda: networks.predict_classes(NET, CAT, randn(0, 27), X),
        "weights must have at least one sample",
    ),
    "NaN question": (
        lambda: networks.predict_classes(NET, CAT, randn(2, 27), X * nan),
        "inputs must be finite, got 12",
    ),
    "moments of classes": (
        lambda: networks.predict_regression(NET, CAT, randn(2, 27), X),
        "likelihood must have a mean",
    ),
    "classes of numbers": (
        lambda: networks.predict_classes(NET, networks.gaussian_likelihood(1.0), randn(2, 27), X),
        "likelihood must have classes, 'gaussian, noise_std=1.0' has not",
    ),
    "NaN direction": (lambda: networks.far_field_slope(NET, randn(2, 27), X * nan), "inputs must be finite"),
    "shapes of moments": (
        lambda: networks.variance_split(randn(2, 3), randn(2, 4)),
        "variances must have the shape of means",
    ),
    "negative variance": (
        lambda: networks.variance_split(randn(2, 3), -torch.ones(2, 3)),
        "variances must not be negative, got -1",
    ),
    "NaN variance": (
        lambda: networks.variance_split(randn(2, 3), nan * torch.ones(2, 3)),
        "variances must not be negative",
    ),
    "not a distribution": (
        lambda: networks.entropy_split(torch.ones(2, 1, 2)),
        "prob must be non-negative with rows that sum to 1",
    ),
    "no predictions": (lambda: networks.entropy_split(torch.ones(0, 1, 1)), "prob must have at least one sample"),
    "negative probability": (
        lambda: networks.expected_loss(tensor([[1.5, -0.5]]), torch.eye(2)),
        "prob must be non-negative",
    ),
    "NaN probability": (lambda: networks.decide(tensor([[nan, 1.0]]), torch.eye(2)), "prob must be non-negative"),
    "cost of other classes": (
        lambda: networks.decide(tensor([[0.5, 0.5]]), torch.eye(3)),
        r"cost must be finite, of shape \[actions, 2\]",
    ),
    "NaN cost": (lambda: networks.decide(tensor([[0.5, 0.5]]), nan * torch.eye(2)), "cost must be finite"),
    "NaN cost of refusing": (
        lambda: networks.decide(tensor([[0.5, 0.5]]), torch.eye(2), refuse_cost=nan),
        "refuse_cost must be a number",
    ),
    "lengths": (lambda: networks.risk_coverage(randn(3), randn(4)), "loss must be finite, one a case"),
    "NaN confidence": (lambda: networks.risk_coverage(nan * randn(3), randn(3)), "confidence must be finite"),
    "no cases": (lambda: networks.risk_coverage(randn(0), randn(0)), "confidence must be finite, one a case"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_an_empty_class_can_be_meant():
    targets = Y.clamp(max=1)
    posterior(targets=targets, likelihood=networks.categorical_likelihood(3, allow_empty_class=True))
    net = networks.mlp([2, 1])
    prior = networks.gaussian_prior(net, prior_std=1.0, dtype=f64)
    for allowed in (True, False):
        likelihood = networks.bernoulli_likelihood(allow_empty_class=allowed)
        if allowed:
            posterior(network=net, prior=prior, likelihood=likelihood, targets=torch.ones(6))
        else:
            with pytest.raises(ValueError, match="targets must include every class"):
                posterior(network=net, prior=prior, likelihood=likelihood, targets=torch.ones(6))
