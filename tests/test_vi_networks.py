"""bdl_lib.vi, networks: layers of Gaussian weights, and Bayes by Backprop, against closed forms.

Exactness is tested in float64. Where a test draws at random, it is seeded; averages are within 4.5 Monte Carlo errors
of the exact value, which a right function misses about once in 150,000 numbers.
"""

import functools
import math

import numpy as np
import oracles
import pytest
import sim_device
import torch
from scipy import stats
from torch.distributions import Normal, kl_divergence

from bdl_lib import bayes, networks
from bdl_lib.vi import backprop, elbo, layers
from bdl_lib.vi.results import FailedFit

inf, nan = math.inf, math.nan
f64 = torch.float64
FORWARDS = {name: getattr(layers, name) for name in ("shared_weights", "local_reparameterisation", "flipout")}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=f64)


def tensor(values):
    return torch.tensor(values, dtype=f64)


def close(actual, expected, *, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=atol)


def check_mean(values, exact, limit=4.5):
    """The mean over the first axis, of independent rows, within a number of standard errors."""
    error = values.std(0) / len(values) ** 0.5
    z = (values.mean(0) - torch.tensor(np.asarray(exact), dtype=values.dtype)) / error.clamp(min=1e-12)
    assert z.abs().max() < limit, z


# ---- One layer

INPUTS = tensor([[1.0, -0.5, 0.3], [0.8, 0.4, -1.0], [-0.6, 0.9, 1.2], [1.5, 0.2, 0.1]])


def layer_of(num_outputs=2, seed=0):
    """A layer with three inputs whose means and standard deviations are all different."""
    shapes = {"weight": (num_outputs, 3), "bias": (num_outputs,)}
    parts = {f"{name}_loc": randn(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}
    parts |= {
        f"{name}_log_std": 0.4 * randn(*shape, seed=seed + 7 + i) for i, (name, shape) in enumerate(shapes.items())
    }
    return layers.BayesianLinear(**parts)


@functools.cache
def outputs_of(kind, num_calls=2000):
    """Outputs of many calls, [calls, examples, outputs]."""
    generator = seeded(1)
    return torch.stack([FORWARDS[kind](layer_of(), INPUTS, generator=generator) for _ in range(num_calls)])


def exact_moments(layer):
    """Mean [n, out] and variance [n, out] of the outputs."""
    mean = INPUTS @ layer.weight_loc.T + layer.bias_loc
    return mean, INPUTS**2 @ layer.weight_log_std.exp().T ** 2 + layer.bias_log_std.exp() ** 2


@pytest.mark.parametrize("kind", FORWARDS)
def test_every_output_is_the_gaussian_it_should_be(kind):
    mean, var = exact_moments(layer_of())
    outputs = outputs_of(kind)
    check_mean(outputs, mean)
    check_mean((outputs - mean).square(), var)
    for n in range(len(INPUTS)):
        for o in range(2):
            exact = stats.norm(mean[n, o].item(), var[n, o].sqrt().item())
            assert stats.kstest(outputs[:, n, o].numpy(), exact.cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", FORWARDS)
def test_what_examples_share(kind):
    """Covariance of every pair of outputs: between examples only for shared weights, never between two outputs."""
    layer = layer_of()
    mean, _ = exact_moments(layer)
    shift = outputs_of(kind) - mean
    weight_var, bias_var = layer.weight_log_std.exp() ** 2, layer.bias_log_std.exp() ** 2
    exact = torch.einsum("ni,mi,oi->nmo", INPUTS, INPUTS, weight_var) + bias_var
    if kind != "shared_weights":
        exact = exact * torch.eye(len(INPUTS), dtype=f64)[..., None]
    check_mean(
        torch.einsum("sno,smp->snmop", shift, shift), torch.einsum("nmo,op->nmop", exact, torch.eye(2, dtype=f64))
    )


@pytest.mark.parametrize("kind", FORWARDS)
def test_only_local_noise_is_independent(kind):
    """Squares tell independent from uncorrelated: flipout shares the size of the noise, and only its sign is free."""
    layer = layer_of()
    mean, var = exact_moments(layer)
    squares = (outputs_of(kind) - mean).square() - var
    c = torch.cat([INPUTS[:, None] * layer.weight_log_std.exp(), layer.bias_log_std.exp().expand(4, 2)[..., None]], 2)
    exact = {
        "shared_weights": 2 * torch.einsum("noi,moi->nmo", c, c).square(),
        "local_reparameterisation": torch.zeros(4, 4, 2, dtype=f64),
        "flipout": 2 * torch.einsum("noi,moi->nmo", c**2, c**2),
    }[kind]
    products = torch.einsum("sno,smo->snmo", squares, squares)
    for n in range(4):
        for m in range(n):
            check_mean(products[:, n, m], exact[n, m])


# ---- Gradients over a minibatch of a linear model, in closed form

STDS = tensor([0.5, 1.0, 0.7, 0.4])  # of three weights and the bias
ROWS = 20


def gradients(kind, copies, num_calls=150):
    """Gradients of Σ ½(y - target)² in log stds and means, [calls, rows, 4]: many outputs, each a replicate."""
    loc, targets = randn(4, seed=3), randn(len(INPUTS), seed=4)
    parts = [loc[:3].expand(ROWS, 3), STDS[:3].log().expand(ROWS, 3), loc[3].expand(ROWS), STDS[3].log().expand(ROWS)]
    layer = layers.BayesianLinear(*(part.clone().requires_grad_() for part in parts))
    generator, found = seeded(5), []
    for _ in range(num_calls):
        outputs = FORWARDS[kind](layer, INPUTS.repeat(copies, 1), generator=generator)
        loss = 0.5 * (outputs - targets.repeat(copies)[:, None]).square().sum()
        weight, weight_std, bias, bias_std = torch.autograd.grad(loss, layer)
        found.append([torch.cat([weight_std, bias_std[:, None]], 1), torch.cat([weight, bias[:, None]], 1)])
    log_std_grad, loc_grad = (torch.stack(grads) for grads in zip(*found, strict=True))
    return log_std_grad, loc_grad


def exact_gradients(kind, copies):
    """Mean and variance of both, from the oracles."""
    loc, targets = randn(4, seed=3), randn(len(INPUTS), seed=4)
    features = torch.cat([INPUTS, torch.ones(len(INPUTS), 1, dtype=f64)], 1).repeat(copies, 1)
    residuals = (features @ loc - targets.repeat(copies)).numpy()
    noise = oracles.noise_gradient_moments(kind, features * STDS, residuals)
    return noise, oracles.mean_gradient_moments(kind, features.numpy(), STDS.numpy(), residuals)


@pytest.mark.parametrize("copies", [1, 8])
@pytest.mark.parametrize("kind", FORWARDS)
def test_gradients_have_the_right_mean_and_the_stated_variance(kind, copies):
    for found, (mean, var) in zip(gradients(kind, copies), exact_gradients(kind, copies), strict=True):
        check_mean(found.mean(1), mean)  # rows of one call share flipout's signs: calls are independent
        check_mean((found - torch.as_tensor(mean)).square().mean(1), var)


def test_shared_weights_are_noisiest_and_local_noise_is_least():
    """Per example of a large minibatch: the variance of shared weights stays, and so does a part of flipout's."""
    noise, loc = ({k: exact_gradients(k, 64)[i][1] / 64**2 for k in FORWARDS} for i in (0, 1))
    assert (noise["shared_weights"] > noise["flipout"]).all()
    assert (noise["flipout"] > noise["local_reparameterisation"]).all()
    assert (loc["shared_weights"] > 5 * loc["flipout"]).all()
    small_noise, small_loc = ({k: exact_gradients(k, 1)[i][1] for k in FORWARDS} for i in (0, 1))
    np.testing.assert_allclose(loc["shared_weights"], small_loc["shared_weights"])
    np.testing.assert_allclose(64 * loc["flipout"], small_loc["flipout"])
    np.testing.assert_allclose(64 * noise["local_reparameterisation"], small_noise["local_reparameterisation"])
    assert (64 * noise["flipout"] > 10 * small_noise["flipout"]).all()


def test_layer_starts_random_and_narrow():
    layer = layers.bayesian_linear(300, 200, std=0.02, generator=seeded(), dtype=f64)
    assert [part.shape for part in layer] == [(200, 300), (200, 300), (200,), (200,)]
    assert stats.kstest(layer.weight_loc.flatten().numpy() * 300**0.5, "norm").pvalue > 0.01
    close(layer.weight_log_std.exp(), torch.full((200, 300), 0.02, dtype=f64))
    close(layer.bias_log_std.exp(), torch.full((200,), 0.02, dtype=f64))
    assert (layer.bias_loc == 0).all()
    assert layers.bayesian_linear(2, 1, generator=seeded()).weight_loc.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.bayesian_linear(0, 2, generator=seeded()), "fan_in must be at least 1, got 0"),
        (lambda: layers.bayesian_linear(2, 0, generator=seeded()), "fan_out must be at least 1, got 0"),
        (lambda: layers.bayesian_linear(2, 1, std=0.0, generator=seeded()), "std must be positive and finite, got 0.0"),
        (lambda: layers.bayesian_linear(2, 1, std=nan, generator=seeded()), "std must be positive and finite, got nan"),
    ],
)
def test_layer_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", FORWARDS)
@pytest.mark.parametrize("inputs", [randn(4, 2), randn(3), randn(4, 3).float()])
def test_forward_refuses_what_does_not_fit(kind, inputs):
    with pytest.raises(ValueError, match=r"inputs must be \[n, 3\], in the layer's torch.float64, got"):
        FORWARDS[kind](layer_of(), inputs, generator=seeded())


# ---- The model


def model_of(sizes=(3, 4, 2), activation=torch.tanh, spread=1.0):
    """A model whose means and standard deviations are all different."""
    model = backprop.bayesian_mlp(sizes, activation=activation, std=0.1, generator=seeded(2), dtype=f64)
    changed = [
        layers.BayesianLinear(
            layer.weight_loc,
            layer.weight_log_std + 0.3 * spread * randn(*layer.weight_loc.shape, seed=10 + i),
            randn(*layer.bias_loc.shape, seed=20 + i),
            layer.bias_log_std + 0.3 * spread * randn(*layer.bias_loc.shape, seed=30 + i),
        )
        for i, layer in enumerate(model.layers)
    ]
    return model._replace(layers=tuple(changed))


@pytest.mark.parametrize("kind", FORWARDS)
@pytest.mark.parametrize("sizes", [(3, 1), (3, 4, 2), (3, 5, 4, 1)])
def test_without_noise_the_model_is_the_network_of_its_means(kind, sizes):
    model = model_of(sizes)
    certain = [layer._replace(weight_log_std=-inf * torch.ones_like(layer.weight_loc)) for layer in model.layers]
    certain = [layer._replace(bias_log_std=-inf * torch.ones_like(layer.bias_loc)) for layer in certain]
    outputs = model._replace(layers=tuple(certain)).forward(INPUTS, layer_forward=FORWARDS[kind], generator=seeded())
    close(outputs, networks.mlp(sizes, activation=torch.tanh).apply(model.family.loc[None], INPUTS)[0])


def test_the_family_lies_in_the_order_of_the_network():
    model = model_of()
    assert model.layer_sizes == [3, 4, 2]
    assert model.network.weight_slices == networks.mlp([3, 4, 2]).weight_slices
    for i, layer in enumerate(model.layers):
        for name in ("weight", "bias"):
            where = f"{i}.{name}"
            close(networks.unflatten_weights(model.network, model.family.loc)[where], getattr(layer, f"{name}_loc"))
            log_std = networks.unflatten_weights(model.network, model.family.log_std)[where]
            close(log_std, getattr(layer, f"{name}_log_std"))


def test_one_draw_of_shared_weights_is_one_function_of_the_family():
    """The same noise, weight by weight, gives the same outputs."""
    model = model_of()
    outputs = model.forward(INPUTS, layer_forward=layers.shared_weights, generator=seeded(8))
    generator = seeded(8)
    noise = torch.cat([torch.randn(size, generator=generator, dtype=f64) for size in (12, 4, 8, 2)])
    close(outputs, model.network.apply((model.family.loc + model.family.std * noise)[None], INPUTS)[0])


@pytest.mark.parametrize("kind", FORWARDS)
def test_model_and_family_predict_alike(kind):
    model = model_of(spread=2.0)
    functions = model.network.apply(model.family.sample(10_000, generator=seeded(1)), INPUTS)
    generator = seeded(2)
    outputs = torch.stack(
        [model.forward(INPUTS, layer_forward=FORWARDS[kind], generator=generator) for _ in range(1000)]
    )
    for power in (1, 2):
        drawn, sampled = functions**power, outputs**power
        error = (drawn.var(0) / len(drawn) + sampled.var(0) / len(sampled)).sqrt()
        assert ((drawn.mean(0) - sampled.mean(0)) / error).abs().max() < 4.5


def test_forward_flips_signs_unless_told_otherwise():
    model = model_of()
    close(
        model.forward(INPUTS, generator=seeded()),
        model.forward(INPUTS, layer_forward=layers.flipout, generator=seeded()),
    )


@pytest.mark.parametrize("prior_std", [0.7, 3, tensor(0.7), 0.5 + randn(26).abs()])
def test_divergence_is_the_sum_over_all_weights(prior_std):
    model = model_of()
    loc, log_std = model.family
    prior = Normal(torch.zeros(26, dtype=f64), torch.as_tensor(prior_std, dtype=f64).expand(26))
    exact = kl_divergence(Normal(loc, log_std.exp()), prior)
    found = backprop.kl_to_prior(model, prior_std=prior_std)
    close(found, exact.sum())
    assert abs(found - exact.mean()) > 1  # averaged, it would be no bound


def test_divergence_of_the_prior_from_itself_is_zero_and_differentiable():
    model = backprop.bayesian_mlp([2, 3], std=0.7, generator=seeded(), dtype=f64)
    prior = model._replace(layers=(model.layers[0]._replace(weight_loc=torch.zeros(3, 2, dtype=f64)),))
    close(backprop.kl_to_prior(prior, prior_std=0.7), 0.0)
    layer = layers.BayesianLinear(*(part.clone().requires_grad_() for part in model_of((2, 3)).layers[0]))
    backprop.kl_to_prior(prior._replace(layers=(layer,)), prior_std=0.5).backward()
    close(layer.weight_loc.grad, layer.weight_loc / 0.25)
    close(layer.bias_log_std.grad, (2 * layer.bias_log_std).exp() / 0.25 - 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: backprop.bayesian_mlp([3], generator=seeded()), r"layer_sizes must be at least two .* got \[3\]"),
        (lambda: backprop.bayesian_mlp([3, 0], generator=seeded()), r"layer_sizes must be .* got \[3, 0\]"),
        (
            lambda: backprop.bayesian_mlp([3, 1], std=-1.0, generator=seeded()),
            "std must be positive and finite, got -1",
        ),
        (lambda: backprop.kl_to_prior(model_of(), prior_std=0.0), "prior_std must be positive and finite, got 0.0"),
        (lambda: backprop.kl_to_prior(model_of(), prior_std=nan), "prior_std must be positive and finite, got nan"),
        (
            lambda: backprop.kl_to_prior(model_of(), prior_std=torch.ones(3, dtype=f64)),
            r"prior_std must be one number, or one for each of the 26 weights, got shape \[3\]",
        ),
    ],
)
def test_model_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- Training: linear regression, where the best independent Gaussians and the evidence are known

NOISE_STD, PRIOR_STD = 1.0, 2.0


def regression():
    """200 rows of two correlated inputs: inputs, features with a constant, targets.

    The targets lie nearer to the line than the model's noise says, which keeps the noise of the gradients low.
    """
    inputs = randn(200, 2, seed=1) @ tensor([[1.0, 0.6], [0.0, 0.8]])
    targets = inputs @ tensor([1.0, -2.0]) + 0.3 + 0.1 * randn(200, seed=2)
    return inputs, torch.cat([inputs, torch.ones(200, 1, dtype=f64)], 1), targets


FITS = {  # how a layer draws, batch size, epochs, relative error of the standard deviations
    "local, one batch": ("local_reparameterisation", 1000, 300, 0.03),
    "local, batches of 80, 80 and 40": ("local_reparameterisation", 80, 120, 0.03),
    "flipout": ("flipout", 200, 400, 0.15),
    "shared weights": ("shared_weights", 200, 400, 0.15),
}


@functools.cache
def linear_fit(name):
    kind, batch_size, num_epochs, _ = FITS[name]
    inputs, _, targets = regression()
    model = backprop.bayesian_mlp([2, 1], generator=seeded(3), dtype=f64)
    how = {"num_epochs": num_epochs, "batch_size": batch_size, "lr": 0.05, "layer_forward": FORWARDS[kind]}
    likelihood = networks.gaussian_likelihood(NOISE_STD)
    return backprop.fit_backprop(model, inputs, targets, likelihood, prior_std=PRIOR_STD, **how, generator=seeded(4))


def exact_regression():
    """Posterior and log evidence, from chapter 1."""
    _, features, targets = regression()
    prior = bayes.gaussian_prior(3, prior_std=PRIOR_STD, dtype=f64)
    posterior = bayes.linear_posterior(prior, features, targets, noise_std=NOISE_STD)
    return posterior, bayes.linear_log_evidence(prior, features, targets, noise_std=NOISE_STD)


@pytest.mark.parametrize("name", FITS)
def test_training_finds_the_best_independent_gaussians(name):
    """Means of the posterior, to a fifth of a standard deviation; stds prec_jj^(-1/2): within Adam's noise."""
    posterior, _ = exact_regression()
    family = linear_fit(name).model.family
    best_std = posterior.prec.diagonal() ** -0.5
    assert ((family.loc - posterior.loc) / best_std).abs().max() < 0.2
    close(family.std, best_std, rtol=FITS[name][3])


@pytest.mark.parametrize("name", FITS)
def test_the_gap_to_the_evidence_is_the_divergence(name):
    posterior, log_evidence = exact_regression()
    _, features, targets = (part.numpy() for part in regression())
    loc, std = linear_fit(name).model.family.loc.numpy(), linear_fit(name).model.family.std.numpy()
    bound = oracles.linear_elbo(loc, std, features, targets, NOISE_STD, PRIOR_STD)
    gap = oracles.gaussian_kl(loc, np.diag(std**2), posterior.loc.numpy(), torch.linalg.inv(posterior.prec).numpy())
    assert gap > 0
    assert log_evidence.item() - bound == pytest.approx(gap, abs=1e-9)
    best_gap = 0.5 * (posterior.prec.diagonal().log().sum() - posterior.prec.logdet()).item()
    assert best_gap <= gap < best_gap + 0.1


@pytest.mark.parametrize("name", FITS)
def test_the_history_is_the_elbo(name):
    """Its last tenth, where the steps are small, against the closed form at the end."""
    fit, num_epochs = linear_fit(name), FITS[name][2]
    _, features, targets = (part.numpy() for part in regression())
    family = fit.model.family
    bound = oracles.linear_elbo(family.loc.numpy(), family.std.numpy(), features, targets, NOISE_STD, PRIOR_STD)
    assert fit.elbo_history.shape == (num_epochs,)
    check_mean(fit.elbo_history[-num_epochs // 10 :], bound)
    assert fit.elbo_history[:5].mean() < bound - 100


def test_the_family_goes_into_the_estimators_of_the_bound():
    fit = linear_fit("local, one batch")
    inputs, features, targets = regression()
    prior = networks.gaussian_prior(fit.model.network, prior_std=PRIOR_STD, dtype=f64)
    log_prob = networks.log_posterior(
        fit.model.network, prior, networks.gaussian_likelihood(NOISE_STD), inputs, targets
    )
    found = elbo.reparameterised_elbo(log_prob, fit.model.family, num_samples=4000, generator=seeded())
    loc, std = fit.model.family.loc.numpy(), fit.model.family.std.numpy()
    exact = oracles.linear_elbo(loc, std, features.numpy(), targets.numpy(), NOISE_STD, PRIOR_STD)
    assert abs(found.value - exact) < 4.5 * found.std_error


def test_priors_of_one_scale_a_weight():
    """A narrow prior on one weight holds it at zero; the others go where they go without it."""
    inputs, features, targets = regression()
    prior_std = tensor([0.02, 2.0, 2.0])
    model = backprop.bayesian_mlp([2, 1], generator=seeded(3), dtype=f64)
    likelihood = networks.gaussian_likelihood(NOISE_STD)
    how = {"num_epochs": 300, "batch_size": 200, "lr": 0.05, "generator": seeded(4)}
    family = backprop.fit_backprop(model, inputs, targets, likelihood, prior_std=prior_std, **how).model.family
    prec = torch.diag(prior_std**-2) + features.T @ features / NOISE_STD**2
    exact = torch.linalg.solve(prec, features.T @ targets / NOISE_STD**2)
    assert ((family.loc - exact) * prec.diagonal().sqrt()).abs().max() < 0.3
    close(family.std, prec.diagonal() ** -0.5, rtol=0.05)


# ---- Training: networks with hidden layers


def moons(n=120):
    """Three noisy arcs."""
    label = torch.arange(n) % 3
    angle = 2 * torch.rand(n, generator=seeded(), dtype=f64) + 2.1 * label
    radius = 1 + 0.1 * randn(n)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), label


@pytest.mark.parametrize("kind", FORWARDS)
def test_a_hidden_layer_learns_classes(kind):
    inputs, labels = moons()
    model = backprop.bayesian_mlp([2, 8, 3], activation=torch.tanh, generator=seeded(), dtype=f64)
    how = {"num_epochs": 60, "batch_size": 40, "lr": 0.05, "layer_forward": FORWARDS[kind], "generator": seeded(1)}
    likelihood = networks.categorical_likelihood(3)
    fit = backprop.fit_backprop(model, inputs, labels, likelihood, prior_std=1.0, **how)
    assert fit.elbo_history[-10:].mean() > -120 * math.log(3) + 30  # better than knowing nothing
    draws = fit.model.family.sample(200, generator=seeded(2))
    prob = networks.predict_classes(fit.model.network, likelihood, draws, inputs).prob
    assert (prob.argmax(1) == labels).double().mean() > 0.85


# ---- Training: the loop


def spying(likelihood, at_step=inf, value=nan):
    """A likelihood that notes its targets, and from some step on says something else."""
    seen = []

    def log_prob(outputs, targets):
        seen.append(targets.clone())
        found = likelihood.log_prob(outputs, targets)
        return found * value if len(seen) > at_step else found

    return likelihood._replace(log_prob=log_prob), seen


def short_fit(likelihood, *, num_rows=10, sizes=(2, 3, 1), seed=0, **settings):
    inputs, targets = randn(num_rows, 2, seed=5), torch.arange(num_rows, dtype=f64)
    model = backprop.bayesian_mlp(sizes, activation=torch.tanh, generator=seeded(6), dtype=f64)
    how = {"prior_std": 1.0, "num_epochs": 3, "batch_size": 4, "generator": seeded(seed)} | settings
    return backprop.fit_backprop(model, inputs, targets, likelihood, **how)


def test_an_epoch_sees_every_row_once_and_in_a_new_order():
    likelihood, seen = spying(networks.gaussian_likelihood(1.0))
    short_fit(likelihood)
    assert [len(batch) for batch in seen] == [4, 4, 2] * 3
    epochs = [torch.cat(seen[i : i + 3]) for i in (0, 3, 6)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_targets_stay_with_their_inputs():
    """Outputs of the identity: the row of the input that each target met."""
    inputs = torch.arange(10, dtype=f64)[:, None]
    layer = layers.BayesianLinear(*(tensor(v) for v in ([[1.0]], [[-50.0]], [0.0], [-50.0])))
    met, likelihood = [], networks.gaussian_likelihood(1.0)

    def log_prob(outputs, targets):
        met.append((outputs[0, :, 0].detach() - targets).abs().max())
        return likelihood.log_prob(outputs, targets)

    how = {"prior_std": 1.0, "num_epochs": 2, "batch_size": 3, "lr": 1e-9, "generator": seeded()}
    spied = likelihood._replace(log_prob=log_prob)
    backprop.fit_backprop(backprop.BayesianMlp((layer,), torch.relu), inputs, inputs[:, 0], spied, **how)
    assert max(met) < 1e-6


def test_an_epochs_elbo_is_over_all_its_rows():
    """Without noise and without steps: the log likelihood of all rows, minus the divergence once."""
    inputs, targets = randn(10, 2, seed=5), randn(10, seed=6)
    model = backprop.bayesian_mlp([2, 3, 1], std=1e-12, generator=seeded(), dtype=f64)
    likelihood = networks.gaussian_likelihood(1.0)
    how = {"prior_std": 1.0, "num_epochs": 2, "batch_size": 4, "lr": 1e-15, "generator": seeded()}
    history = backprop.fit_backprop(model, inputs, targets, likelihood, **how).elbo_history
    outputs = model.network.apply(model.family.loc[None], inputs)
    exact = likelihood.log_prob(outputs, targets).sum() - backprop.kl_to_prior(model, prior_std=1.0)
    close(history, exact.expand(2), rtol=1e-9)


def test_steps_shrink_along_half_a_cosine():
    """With a gradient that hardly changes, a step of Adam is as long as its step size."""
    seen = []

    def watched(layer, inputs, *, generator):
        seen.append(layer.bias_loc.detach().clone())
        return layers.local_reparameterisation(layer, inputs, generator=generator)

    settings = {"sizes": (2, 1), "num_epochs": 10, "batch_size": 5, "lr": 1e-3, "layer_forward": watched}
    fit = short_fit(networks.gaussian_likelihood(1.0)._replace(log_prob=lambda f, y: 1e5 * f[..., 0]), **settings)
    steps = torch.cat([*seen, fit.model.layers[0].bias_loc]).diff()
    close(steps, 1e-3 * 0.5 * (1 + torch.cos(math.pi * torch.arange(20, dtype=f64) / 20)), rtol=1e-3, atol=1e-9)


def test_training_repeats_and_leaves_the_start_alone():
    likelihood, model = networks.gaussian_likelihood(1.0), model_of((2, 3, 1))
    before = [part.clone() for part in model.family]
    run = functools.partial(backprop.fit_backprop, model, randn(6, 2), randn(6, seed=1), likelihood, prior_std=1.0)
    first, again, other = (run(num_epochs=3, batch_size=4, generator=seeded(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(*pair) for pair in zip(model.family, before, strict=True))
    assert torch.equal(first.model.family.loc, again.model.family.loc)
    assert torch.equal(first.elbo_history, again.elbo_history)
    assert not torch.equal(first.model.family.loc, other.model.family.loc)
    assert not torch.equal(first.model.family.loc, model.family.loc)
    assert not any(part.requires_grad for layer in first.model.layers for part in layer)
    assert first.model.activation is model.activation


@pytest.mark.parametrize("value", [nan, inf])
def test_a_bound_that_is_not_finite_stops_and_gives_back_what_there_was(value):
    right = short_fit(spying(networks.gaussian_likelihood(1.0))[0], num_epochs=3, lr=1e-9)
    likelihood, seen = spying(networks.gaussian_likelihood(1.0), at_step=7, value=value)  # in the middle of epoch 2
    with pytest.raises(FailedFit, match=r"the ELBO of epoch 2 is (nan|-inf); weights") as caught:
        short_fit(likelihood, num_epochs=50, lr=1e-9)
    assert len(seen) == 9
    failed = caught.value
    assert failed.step == 2
    assert failed.fit.elbo_history.shape == (2,)
    close(failed.fit.elbo_history, right.elbo_history[:2], rtol=1e-6)
    close(failed.fit.model.family.loc, right.model.family.loc, rtol=1e-6, atol=1e-7)


def test_a_gradient_that_is_not_finite_is_found_in_the_last_epoch():
    """The bound is fine, its slope infinite: only the weights show it, and the message names them."""

    def log_prob(outputs, targets):
        return (
            networks.gaussian_likelihood(1.0).log_prob(outputs, targets) + (outputs - outputs.detach())[..., 0].sqrt()
        )

    likelihood = networks.gaussian_likelihood(1.0)._replace(log_prob=log_prob)
    with pytest.raises(FailedFit, match=r"epoch 0 is -\d.*; weights that are not finite: 0.weight") as caught:
        short_fit(likelihood, num_epochs=1, batch_size=10)
    assert "1.bias" in caught.value.parameter
    assert caught.value.fit.elbo_history.shape == (0,)
    assert all(part.isfinite().all() for part in caught.value.fit.model.family)


def test_a_bar_is_shown_if_wanted(capfd):
    short_fit(networks.gaussian_likelihood(1.0))
    assert capfd.readouterr() == ("", "")
    short_fit(networks.gaussian_likelihood(1.0), progress=True)
    assert "3/3" in capfd.readouterr().err


def test_the_host_waits_once_an_epoch():
    def waits(num_epochs):
        generator = torch.Generator(sim_device.DEVICE).manual_seed(0)
        model = backprop.bayesian_mlp([2, 3, 1], generator=generator, device=sim_device.DEVICE)
        inputs = torch.ones(8, 2, device=sim_device.DEVICE)
        how = {"prior_std": 1.0, "num_epochs": num_epochs, "batch_size": 2, "generator": generator}
        with sim_device.count() as counts:
            backprop.fit_backprop(model, inputs, inputs[:, 0], networks.gaussian_likelihood(1.0), **how)
        return counts.host_syncs

    assert waits(5) - waits(2) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"lr": nan}, "lr must be positive and finite, got nan"),
        ({"prior_std": -1.0}, "prior_std must be positive and finite, got -1"),
        ({"prior_std": torch.ones(5, dtype=f64)}, r"prior_std must be one number, or one for each of the 13 weights"),
        ({"num_rows": 0}, "inputs must be finite and have at least one row"),
        ({"sizes": (3, 1)}, r"inputs must be \[n, 3\], in the model's torch.float64, got torch.float64 of shape"),
        ({"sizes": (2, 2)}, "network must have 1 outputs for the likelihood"),
        ({"likelihood": networks.bernoulli_likelihood()}, "targets must be whole labels"),
    ],
)
def test_training_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        short_fit(**{"likelihood": networks.gaussian_likelihood(1.0)} | changed)


def test_training_refuses_rows_that_do_not_match():
    likelihood, how = networks.gaussian_likelihood(1.0), {"prior_std": 1.0, "generator": seeded()}
    with pytest.raises(ValueError, match=r"targets must have shape \[5\], one a row of inputs, got \[4\]"):
        backprop.fit_backprop(model_of((2, 1)), randn(5, 2), randn(4), likelihood, **how)
    with pytest.raises(ValueError, match="inputs must be finite"):
        backprop.fit_backprop(model_of((2, 1)), nan * randn(5, 2), randn(5), likelihood, **how)
