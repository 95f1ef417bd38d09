"""Deep ensembles, SWAG and last-layer Laplace, against the same written out in plain PyTorch and NumPy.

An ensemble against members trained one at a time, SWAG against its iterates and against the stationary distribution of
gradient descent on a quadratic, Laplace against Bayesian linear regression, explicit Jacobians and quadrature.
Exactness is tested in float64; what is drawn is seeded, and judged by its Monte Carlo error.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bdl_lib import bayes, dropout, networks
from bdl_lib.vi import FailedFit

f64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=f64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def close(actual, expected, *, rtol=1e-9, atol=1e-11):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def fill(model, seed=0):
    """The same module with weights that do not depend on PyTorch's global generator."""
    generator = seeded(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=f64) / 2
    return model.double()


def mlp(*sizes, seed=0):
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.Tanh())]
    return fill(nn.Sequential(*layers[:-1]), seed)


def classes(n=40, num_features=3, num_classes=3, seed=0):
    """Inputs, and labels that follow them with some noise; every class occurs."""
    x = randn(n, num_features, seed=seed)
    score = x @ randn(num_features, num_classes, seed=seed + 1) + 0.7 * randn(n, num_classes, seed=seed + 2)
    labels = score.argmax(1)
    assert set(labels.tolist()) == set(range(num_classes))
    return x, labels


def regression(n=40, num_features=3, seed=0):
    x = randn(n, num_features, seed=seed)
    return x, x[:, 0].sin() + 0.5 * x[:, 1] + 0.3 * randn(n, seed=seed + 1)


# ---- Deep ensembles


def uniform_start(layer, fan_in, generator):
    """PyTorch's default for linear and convolutional layers: weight and bias uniform up to 1 / sqrt(fan-in)."""
    for parameter in (layer.weight, layer.bias):
        parameter.data.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)


def train_alone(model, x, y, loss, orders, *, batch_size, lr, weight_decay):
    """A plain loop with PyTorch's Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=2 * weight_decay)
    num_steps, step, history = len(orders) * math.ceil(len(x) / batch_size), 0, []
    model.train()
    for order in orders:
        history.append(0.0)
        for rows in order.split(batch_size):
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / num_steps)) / 2
            value = loss(model(x[rows]), y[rows])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            history[-1] += value.item() * len(rows) / len(x)
            step += 1
    return model.eval(), history


SETTINGS = {"batch_size": 12, "lr": 0.02, "weight_decay": 0.01}  # 40 rows: the last minibatch is smaller


def orders_of(generator, num_epochs, num_members, n):
    return torch.stack([torch.rand(num_members, n, generator=generator).argsort(1) for _ in range(num_epochs)], 1)


def test_a_member_is_what_it_were_alone():
    x, labels = classes()
    model = mlp(3, 5, 3)
    found = dropout.fit_ensemble(
        model, x, labels, F.cross_entropy, num_members=3, num_epochs=6, generator=seeded(7), **SETTINGS
    )
    generator, alone = seeded(7), [mlp(3, 5, 3) for _ in range(3)]
    for one in alone:
        uniform_start(one[0], 3, generator)
        uniform_start(one[2], 5, generator)
    for index, (one, orders) in enumerate(zip(alone, orders_of(generator, 6, 3, 40), strict=True)):
        one, history = train_alone(one, x, labels, F.cross_entropy, orders, **SETTINGS)
        close(found.loss_history[:, index], history, rtol=1e-7)
        for name, parameter in one.named_parameters():
            close(found.parameters[name][index], parameter.detach(), rtol=1e-7, atol=1e-9)
        close(dropout.predict_ensemble(found, x)[index], one(x).detach(), rtol=1e-7, atol=1e-9)
        close(found.member(index)(x).detach(), one(x).detach(), rtol=1e-7, atol=1e-9)


def test_batch_norm_of_a_member_sees_its_own_minibatches_alone():
    def make():
        return fill(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)))

    x, y = randn(20, 1, 4, 4), randn(20, 1, seed=1)
    settings = {"batch_size": 8, "lr": 0.01, "weight_decay": 0.0}
    found = dropout.fit_ensemble(make(), x, y, F.mse_loss, num_members=2, num_epochs=3, generator=seeded(1), **settings)
    generator, alone = seeded(1), [make() for _ in range(2)]
    for one in alone:
        uniform_start(one[0], 9, generator)
        one[1].reset_parameters()
        uniform_start(one[4], 8, generator)
    for index, (one, orders) in enumerate(zip(alone, orders_of(generator, 3, 2, 20), strict=True)):
        one, _ = train_alone(one, x, y, F.mse_loss, orders, **settings)
        for name, buffer in one.named_buffers():
            close(found.buffers[name][index], buffer, rtol=1e-7, atol=1e-9)
        close(dropout.predict_ensemble(found, x)[index], one(x).detach(), rtol=1e-7, atol=1e-9)
        close(found.member(index)(x).detach(), one(x).detach(), rtol=1e-7, atol=1e-9)


def test_members_start_apart_and_as_wide_as_pytorch_starts_them():
    x, y = regression()
    settings = {"num_members": 400, "num_epochs": 1, "lr": 1e-12, "generator": seeded()}
    found = dropout.fit_ensemble(mlp(3, 4, 1), x, y[:, None], F.mse_loss, **settings)
    for name, fan_in in {"0.weight": 3, "0.bias": 3, "2.weight": 4, "2.bias": 4}.items():
        scaled = found.parameters[name].flatten() * math.sqrt(fan_in)  # uniform on [-1, 1]: the square has mean 1/3
        assert scaled.abs().max() <= 1
        assert abs(scaled.square().mean() - 1 / 3) < 4 * math.sqrt(4 / 45 / len(scaled))
        assert abs(scaled.mean()) < 4 * math.sqrt(1 / 3 / len(scaled))
    assert len(found.parameters["0.weight"].unique()) == 400 * 12


def test_an_ensemble_depends_on_its_generator_alone_and_leaves_the_model():
    x, labels = classes()
    model = mlp(3, 5, 3)
    before, state = {name: p.clone() for name, p in model.state_dict().items()}, torch.get_rng_state()

    def run(seed):
        return dropout.fit_ensemble(model, x, labels, F.cross_entropy, num_epochs=2, generator=seeded(seed))

    first, second, other = run(0), run(0), run(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert torch.equal(first.loss_history, second.loss_history)
    assert not torch.equal(first.loss_history, other.loss_history)
    assert first.num_members == 5
    assert not first.model.training


def test_frozen_parts_stay():
    x, labels = classes()
    model = mlp(3, 5, 3)
    model[0].requires_grad_(False)
    found = dropout.fit_ensemble(model, x, labels, F.cross_entropy, num_members=2, num_epochs=2, generator=seeded())
    for name, parameter in model[0].named_parameters():
        close(found.parameters[f"0.{name}"], parameter.expand(2, *parameter.shape), rtol=0, atol=0)
    assert (found.parameters["2.weight"] != model[2].weight).all()


class Shift(nn.Module):
    """A parameter that nothing draws."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3, dtype=f64))

    def forward(self, x):
        return x + self.shift


def test_a_layer_of_ones_own_needs_reset_parameters():
    x, labels = classes()
    model = nn.Sequential(mlp(3, 5, 3), Shift())
    settings = {"num_epochs": 1, "num_members": 2, "generator": seeded()}
    with pytest.raises(ValueError, match=r"model must have reset_parameters\(\).*1.shift"):
        dropout.fit_ensemble(model, x, labels, F.cross_entropy, **settings)
    model[1].reset_parameters = lambda: nn.init.normal_(model[1].shift)
    model[1].shift.requires_grad_(False)
    dropout.fit_ensemble(model, x, labels, F.cross_entropy, **settings)


def test_an_ensemble_that_runs_away_says_which_members():
    x, y = regression()
    x = x.clone()
    x[3] = 1e200
    with pytest.raises(FailedFit, match=r"not finite after epoch 0, in members \[0, 1\]") as failure:
        dropout.fit_ensemble(mlp(3, 1), x, y[:, None], F.mse_loss, num_members=2, generator=seeded())
    assert failure.value.step == 0
    assert failure.value.fit.parameters["0.weight"].isfinite().all()
    assert failure.value.fit.loss_history.shape == (0, 2)


# ---- SWAG


def test_swag_moments_are_those_of_the_iterates():
    """Least squares, whose gradient is written out."""
    x, y = regression()
    weights = randn(3, seed=5).numpy()
    model = nn.Linear(3, 1, bias=False).double()
    model.weight.data = torch.as_tensor(weights)[None].clone()
    settings = {"num_epochs": 9, "batch_size": 12, "lr": 0.05, "momentum": 0.8, "weight_decay": 0.02, "rank": 4}
    found = dropout.fit_swag(model, x, y[:, None], F.mse_loss, generator=seeded(3), **settings)
    generator, velocity, iterates = seeded(3), np.zeros(3), []
    for _ in range(9):
        for rows in torch.randperm(40, generator=generator).split(12):
            a, b = x[rows].numpy(), y[rows].numpy()
            gradient = 2 * a.T @ (a @ weights - b) / len(rows) + 2 * 0.02 * weights
            velocity = 0.8 * velocity + gradient
            weights = weights - 0.05 * velocity
        iterates.append(weights)
    iterates = np.stack(iterates)
    close(found.loc, iterates.mean(0))
    close(found.var, iterates.var(0))
    running = np.stack([iterates[: t + 1].mean(0) for t in range(9)])
    close(found.deviations, (iterates - running)[-4:])
    close(found.model.weight.detach()[0], found.loc)
    assert found.loss_history.shape == (9,)


def test_swag_has_the_width_of_stationary_gradient_descent():
    """θ ← θ - η (θ - y) over three rows in random order: after an epoch θ ← ρ θ + Σ a_j y_π(j), of known variance."""
    y, lr, num_epochs = torch.tensor([[-1.0], [0.5], [2.0]], dtype=f64), 0.4, 300
    model = nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(float(y.mean()))
    found = dropout.fit_swag(
        model, torch.ones_like(y), y, lambda f, y: 0.5 * F.mse_loss(f, y), num_epochs=num_epochs, batch_size=1, lr=lr,
        momentum=0.0, generator=seeded(),
    )  # fmt: skip
    a = lr * (1 - lr) ** torch.arange(3, dtype=f64)
    innovation_var = y.var() * (a.square().sum() - a.sum() ** 2 / 3)  # of a weighted sum over a random permutation
    rho = (1 - lr) ** 3
    expected = innovation_var / (1 - rho**2)
    std_error = expected * math.sqrt(2 / num_epochs * (1 + rho**2) / (1 - rho**2))
    assert abs(found.var[0] - expected) < 4 * std_error
    assert abs(found.loc[0] - y.mean()) < 4 * math.sqrt(expected / num_epochs * (1 + rho) / (1 - rho))


def test_draws_of_swag_have_its_mean_and_covariance():
    deviations, var, loc = randn(3, 4), randn(4, seed=1).square(), randn(4, seed=2)
    swag = dropout.Swag(nn.Linear(3, 1).double(), loc, var, deviations, loc[:1])
    n = 200_000
    draws = dropout.sample_swag(swag, n, generator=seeded(3)).numpy()
    cov = np.diag(var.numpy()) / 2 + deviations.numpy().T @ deviations.numpy() / (2 * (3 - 1))
    std = np.sqrt(np.diag(cov))
    assert (np.abs(draws.mean(0) - loc.numpy()) < 4.5 * std / math.sqrt(n)).all()
    std_error = np.sqrt((np.outer(std**2, std**2) + cov**2) / n)
    assert (np.abs(np.cov(draws.T) - cov) < 4.5 * std_error).all()


def test_swag_predicts_with_its_draws():
    x, labels = classes()
    swag = dropout.fit_swag(mlp(3, 5, 3), x, labels, F.cross_entropy, num_epochs=4, generator=seeded())
    outputs = dropout.predict_swag(swag, x, num_samples=3, generator=seeded(1))
    weights, model = dropout.sample_swag(swag, 3, generator=seeded(1)), mlp(3, 5, 3)
    for output, sample in zip(outputs, weights, strict=True):
        nn.utils.vector_to_parameters(sample, model.parameters())
        close(output, model(x).detach())


def test_swag_leaves_batch_norm_and_the_model():
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = regression()
    swag = dropout.fit_swag(model, x, y[:, None], F.mse_loss, num_epochs=3, lr=1e-3, generator=seeded())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(swag.model[1].running_mean, before["1.running_mean"])
    assert swag.deviations.shape == (3, len(swag.loc))


def test_swag_that_runs_away_has_what_was_before():
    x, y = regression()
    with pytest.raises(FailedFit, match=r"epoch \d+ is .*Try a smaller lr") as failure:
        dropout.fit_swag(mlp(3, 1), x, y[:, None], F.mse_loss, num_epochs=500, lr=1e8, generator=seeded())
    assert failure.value.step == len(failure.value.fit.loss_history) > 0
    assert failure.value.fit.loc.isfinite().all()
    assert all(parameter.isfinite().all() for parameter in failure.value.fit.model.parameters())


# ---- Last-layer Laplace

GAUSSIAN = networks.gaussian_likelihood(0.4)


def ones_after(features):
    return torch.cat([features, torch.ones(len(features), 1, dtype=f64)], 1).detach()


def test_laplace_with_gaussian_noise_is_bayesian_linear_regression():
    x, y = regression()
    model, new = mlp(3, 4, 1), randn(7, 3, seed=9)
    found = dropout.last_layer_laplace(model, x, y, GAUSSIAN, prior_prec=0.7)
    features, new_features = ones_after(model[:2](x)), ones_after(model[:2](new))
    prior = bayes.gaussian_prior(5, prior_std=torch.tensor(0.7, dtype=f64).rsqrt())
    exact = bayes.linear_posterior(prior, features, y, noise_std=0.4)
    close(found.loc[0], exact.loc)
    close(found.scale @ found.scale.mT, exact.prec.inverse())
    close(found.log_evidence, bayes.linear_log_evidence(prior, features, y, noise_std=0.4))
    prediction, expected = (
        dropout.predict_last_layer_regression(found, new),
        bayes.linear_predictive(exact, new_features, noise_std=0.4),
    )
    for got, wanted in zip(prediction, expected, strict=True):
        close(got, wanted)
    assert found.is_converged


def test_the_prior_of_a_regression_has_the_largest_exact_evidence():
    x, y = regression()
    model = mlp(3, 6, 1)
    found = dropout.last_layer_laplace(model, x, y, GAUSSIAN)
    features = ones_after(model[:2](x))
    near = found.prior_prec * torch.tensor([0.98, 1.0, 1.02], dtype=f64)
    far = torch.logspace(-6, 6, 300, dtype=f64)
    below, here, above = bayes.linear_log_evidence(
        bayes.gaussian_prior(7, prior_std=near.rsqrt()), features, y, noise_std=0.4
    )
    assert here > below
    assert here > above
    others = bayes.linear_log_evidence(bayes.gaussian_prior(7, prior_std=far.rsqrt()), features, y, noise_std=0.4)
    assert others.max() <= here
    assert others.max() > here - 0.1


LIKELIHOODS = {
    "gaussian": (GAUSSIAN, lambda: regression()),
    "bernoulli": (networks.bernoulli_likelihood(), lambda: classes(num_classes=2, seed=4)),
    "categorical": (networks.categorical_likelihood(3), lambda: classes()),
}


def log_joint_of(model, x, y, likelihood, prior_prec, shape):
    """The log posterior of the last layer's flat weights up to a constant, through the whole model."""

    def log_joint(flat):
        weight = flat.view(shape)
        outputs = torch.func.functional_call(model, {"2.weight": weight[:, :-1], "2.bias": weight[:, -1]}, (x,))
        if likelihood.num_outputs == 3:
            log_prob = -F.cross_entropy(outputs, y, reduction="sum")
        elif likelihood is GAUSSIAN:
            log_prob = -0.5 * ((y - outputs[:, 0]) / 0.4).square().sum()
        else:
            log_prob = -F.binary_cross_entropy_with_logits(outputs[:, 0], y.to(f64), reduction="sum")
        return log_prob - 0.5 * prior_prec * flat.square().sum()

    return log_joint


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_laplace_sits_on_the_summit_and_has_its_curvature(name):
    likelihood, make = LIKELIHOODS[name]
    x, y = make()
    model = mlp(3, 4, likelihood.num_outputs)
    found = dropout.last_layer_laplace(model, x, y, likelihood, prior_prec=0.5)
    log_joint, flat = log_joint_of(model, x, y, likelihood, 0.5, found.loc.shape), found.loc.flatten()
    close(torch.autograd.functional.jacobian(log_joint, flat), torch.zeros_like(flat), atol=1e-5)
    precision = -torch.autograd.functional.hessian(log_joint, flat)
    close((found.scale @ found.scale.mT).inverse(), precision, rtol=1e-7, atol=1e-8)
    dim = len(flat)
    constant = -20 * math.log(2 * math.pi) - 40 * math.log(0.4) if name == "gaussian" else 0.0
    expected = log_joint(flat) + constant + dim / 2 * math.log(0.5) - precision.logdet() / 2
    close(found.log_evidence, expected, rtol=1e-8)


def test_the_curvature_is_the_one_of_gauss_and_newton():
    """Explicit Jacobians of every logit, and the softmax's covariance between them."""
    x, labels = classes()
    model = mlp(3, 4, 3)
    found = dropout.last_layer_laplace(
        model, x, labels, networks.categorical_likelihood(3), prior_prec=2.0, is_refitted=False
    )
    close(found.loc, torch.cat([model[2].weight, model[2].bias[:, None]], 1).detach(), rtol=0, atol=0)

    def outputs(flat):
        weight = flat.view(3, 5)
        return torch.func.functional_call(model, {"2.weight": weight[:, :4], "2.bias": weight[:, 4]}, (x,))

    jacobian = torch.autograd.functional.jacobian(outputs, found.loc.flatten()).numpy()  # [n, classes, dim]
    prob = model(x).softmax(1).detach().numpy()
    matrix = 2.0 * np.eye(15)
    for j, p in zip(jacobian, prob, strict=True):
        matrix += j.T @ (np.diag(p) - np.outer(p, p)) @ j
    close((found.scale @ found.scale.mT), np.linalg.inv(matrix))
    mean, cov = dropout.last_layer_moments(found, x)
    close(mean, model(x).detach())
    close(cov, np.einsum("nkd,de,nle->nkl", jacobian, np.linalg.inv(matrix), jacobian))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_prior_precision_balances_what_the_data_determine(name):
    """MacKay's condition, with the eigenvalues of the data's part from NumPy."""
    likelihood, make = LIKELIHOODS[name]
    x, y = make()
    found = dropout.last_layer_laplace(mlp(3, 4, likelihood.num_outputs), x, y, likelihood)
    assert found.is_converged
    prec = float(found.prior_prec)
    eigenvalues = np.linalg.eigvalsh(np.linalg.inv((found.scale @ found.scale.mT).numpy())) - prec
    known = (eigenvalues / (eigenvalues + prec)).sum()
    assert abs(prec * float(found.loc.square().sum()) / known - 1) < 1e-3
    assert 0 < known < found.loc.numel()


def test_a_prior_found_without_moving_the_weights():
    x, labels = classes()
    model = mlp(3, 4, 3)
    found = dropout.last_layer_laplace(model, x, labels, networks.categorical_likelihood(3), is_refitted=False)
    by_hand = [
        dropout.last_layer_laplace(
            model, x, labels, networks.categorical_likelihood(3), prior_prec=p, is_refitted=False
        )
        for p in (0.97 * float(found.prior_prec), float(found.prior_prec), 1.03 * float(found.prior_prec))
    ]
    assert by_hand[1].log_evidence > max(by_hand[0].log_evidence, by_hand[2].log_evidence)
    close(found.log_evidence, by_hand[1].log_evidence)


def test_draws_of_the_last_layer_have_its_moments():
    x, labels = classes()
    found = dropout.last_layer_laplace(mlp(3, 4, 3), x, labels, networks.categorical_likelihood(3), prior_prec=1.0)
    mean, cov = dropout.last_layer_moments(found, x[:5])
    n = 20_000
    draws = dropout.draw_last_layer(found, x[:5], num_samples=n, generator=seeded())
    std = cov.diagonal(dim1=1, dim2=2).sqrt()
    assert ((draws.mean(0) - mean).abs() < 4.5 * std / math.sqrt(n)).all()
    away = draws - mean
    got = torch.einsum("snk,snl->nkl", away, away) / n
    std_error = ((std[:, :, None] * std[:, None]).square() + cov.square()).sqrt() / math.sqrt(n)
    assert ((got - cov).abs() < 4.5 * std_error).all()


def test_two_classes_against_quadrature():
    x, labels = classes(num_classes=2, seed=4)
    found = dropout.last_layer_laplace(mlp(3, 4, 1), x, labels, networks.bernoulli_likelihood(), prior_prec=0.05)
    new = 3 * randn(50, 3, seed=8)
    mean, cov = (moment.flatten(1)[:, 0].numpy() for moment in dropout.last_layer_moments(found, new))
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    logits = mean[:, None] + np.sqrt(cov)[:, None] * nodes
    exact = (weights / weights.sum() / (1 + np.exp(-logits))).sum(1)
    assert np.ptp(np.sqrt(cov)) > 1  # little and much doubt
    prediction = dropout.predict_last_layer_classes(found, new, num_samples=4000, generator=seeded())
    assert np.abs(prediction.prob[:, 1].numpy() - exact).max() < 4.5 * 0.5 / math.sqrt(4000)
    probit = dropout.probit_class_prob(found, new)
    close(probit.sum(1), torch.ones(50, dtype=f64))
    assert np.abs(probit[:, 1].numpy() - exact).max() < 0.02
    plain = 1 / (1 + np.exp(-mean))
    assert np.abs(plain - exact).max() > 0.05  # without the doubt it would be wrong


def test_class_predictive_is_the_mean_over_draws():
    x, labels = classes()
    found = dropout.last_layer_laplace(mlp(3, 4, 3), x, labels, networks.categorical_likelihood(3))
    prediction = dropout.predict_last_layer_classes(found, x, num_samples=50, generator=seeded(2))
    prob = dropout.draw_last_layer(found, x, num_samples=50, generator=seeded(2)).softmax(2)
    close(prediction.prob, prob.mean(0))
    close(prediction.entropy.total, torch.special.entr(prob.mean(0)).sum(1))
    close(prediction.entropy.expected, torch.special.entr(prob).sum(2).mean(0))
    shrunk = dropout.probit_class_prob(found, x)
    mean, cov = dropout.last_layer_moments(found, x)
    close(shrunk, (mean / (1 + math.pi / 8 * cov.diagonal(dim1=1, dim2=2)).sqrt()).softmax(1))


def test_any_body_and_a_layer_without_bias():
    x, y = randn(30, 1, 4, 4), randn(30, seed=1)
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    model = fill(nn.Sequential(body, nn.Sequential(nn.Linear(8, 1, bias=False)))).train()
    found = dropout.last_layer_laplace(model, x, y, GAUSSIAN, prior_prec=1.0)
    features = body.eval()(x).detach()
    exact = bayes.linear_posterior(bayes.gaussian_prior(8, prior_std=1.0, dtype=f64), features, y, noise_std=0.4)
    close(found.loc[0], exact.loc)
    close(found.features(x), features)
    bare = dropout.last_layer_laplace(nn.Linear(3, 1).double(), *regression(), GAUSSIAN, prior_prec=1.0)
    assert bare.features(randn(4, 3)).shape == (4, 4)


def test_single_precision_and_features_that_repeat():
    """Eight copies of one large feature: in this precision the matrix of the data has no factor."""
    x = 30 * randn(200, 1, dtype=torch.float32).expand(200, 8)
    y = x[:, 0] / 30 + 0.1 * randn(200, seed=1, dtype=torch.float32)
    found = dropout.last_layer_laplace(mlp(8, 1).float(), x, y, networks.gaussian_likelihood(0.1))
    prediction = dropout.predict_last_layer_regression(found, x)
    assert found.is_converged
    assert (prediction.parameter_var < 0.1**2).all()
    assert prediction.parameter_var.isfinite().all()
    assert (prediction.mean - x[:, 0] / 30).abs().max() < 0.1


def test_classes_that_a_plane_separates():
    """Without a prior the weights would grow without end; a wild start is no obstacle."""
    x = randn(60, 2)
    labels = (x[:, 0] > 0).long()
    model = nn.Linear(2, 2).double()
    model.weight.data = 50 * randn(2, 2, seed=3)
    found = dropout.last_layer_laplace(model, x, labels, networks.categorical_likelihood(2), prior_prec=0.1)
    assert found.is_converged
    assert found.loc.abs().max() < 20
    assert dropout.last_layer_laplace(model, x, labels, networks.categorical_likelihood(2)).log_evidence.isfinite()


def test_a_search_that_is_cut_short_says_so(monkeypatch):
    monkeypatch.setattr("bdl_lib.dropout.laplace._MAX_STEPS", 1)
    x, labels = classes()
    assert not dropout.last_layer_laplace(mlp(3, 4, 3), x, labels, networks.categorical_likelihood(3)).is_converged


def test_laplace_leaves_the_model():
    model = mlp(3, 4, 1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dropout.last_layer_laplace(model, *regression(), GAUSSIAN)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- Bad input

X, Y = regression()
TRAIN = {"num_epochs": 2, "generator": seeded()}
nan, inf = math.nan, math.inf


def _ensemble(model=None, inputs=X, targets=Y[:, None], loss=F.mse_loss, **settings):
    return dropout.fit_ensemble(model or mlp(3, 2, 1), inputs, targets, loss, **TRAIN | settings)


def _swag(model=None, inputs=X, targets=Y[:, None], loss=F.mse_loss, **settings):
    return dropout.fit_swag(model or mlp(3, 2, 1), inputs, targets, loss, **TRAIN | settings)


def _laplace(model=None, inputs=X, targets=Y, likelihood=GAUSSIAN, **settings):
    return dropout.last_layer_laplace(model or mlp(3, 2, 1), inputs, targets, likelihood, **settings)


def _fitted_classes():
    return _laplace(mlp(3, 2, 3), *classes(), networks.categorical_likelihood(3), prior_prec=1.0)


BAD_TRAINING = [
    ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
    ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"lr": 0.0}, "lr must be positive"),
    ({"lr": nan}, "lr must be positive"),
    ({"weight_decay": -0.1}, "weight_decay must be finite and not negative, got -0.1"),
    ({"weight_decay": nan}, "weight_decay must be finite"),
    ({"inputs": X[:0], "targets": Y[:0, None]}, "inputs must have at least one example"),
    ({"inputs": X / 0}, "inputs must be finite"),
    ({"targets": Y[:7, None]}, "targets must be one for each of the 40 inputs"),
    ({"targets": (Y * nan)[:, None]}, "targets must be finite, got 40"),
    ({"loss": lambda f, y: (f - y).square()}, "loss must give one number"),
    ({"model": nn.Sequential(nn.Linear(3, 1).double(), nn.Dropout(0.1))}, r"no dropout of PyTorch.*\['1'\]"),
    ({"model": nn.Linear(3, 1).double().requires_grad_(False)}, "model must have a parameter that requires a gradient"),
]
BAD = [
    *[(lambda s=settings: _ensemble(**s), message) for settings, message in BAD_TRAINING],
    *[(lambda s=settings: _swag(**s), message) for settings, message in BAD_TRAINING],
    (lambda: _ensemble(num_members=0), "num_members must be at least 1, got 0"),
    (lambda: dropout.predict_ensemble(_ensemble(), X * nan), "inputs must be finite"),
    (lambda: dropout.predict_ensemble(_ensemble(), X[:0]), "inputs must have at least one"),
    (lambda: _swag(num_epochs=1), "num_epochs must be at least 2, got 1"),
    (lambda: _swag(rank=1), "rank must be at least 2, got 1"),
    (lambda: _swag(momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
    (lambda: _swag(momentum=nan), r"momentum must be in \[0, 1\)"),
    (lambda: dropout.sample_swag(_swag(), 0, generator=seeded()), "num_samples must be at least 1"),
    (lambda: dropout.predict_swag(_swag(), X, num_samples=0, generator=seeded()), "num_samples must be at least 1"),
    (lambda: dropout.predict_swag(_swag(), X / 0, generator=seeded()), "inputs must be finite"),
    (lambda: _laplace(prior_prec=0.0), "prior_prec must be positive"),
    (lambda: _laplace(prior_prec=nan), "prior_prec must be positive"),
    (lambda: _laplace(inputs=X * nan), "inputs must be finite"),
    (lambda: _laplace(inputs=X[:0], targets=Y[:0]), "inputs must have at least one"),
    (lambda: _laplace(targets=Y[:5]), r"targets must have shape \[40\]"),
    (lambda: _laplace(targets=Y[:, None]), r"targets must have shape \[40\]"),
    (lambda: _laplace(targets=Y * nan), "targets must be finite"),
    (lambda: _laplace(likelihood=networks.heteroscedastic_likelihood()), "likelihood must be Gaussian, Bernoulli or"),
    (lambda: _laplace(mlp(3, 2, 2)), "model must have 1 outputs for 'gaussian.*got 2"),
    (lambda: _laplace(nn.Sequential(nn.Tanh())), "model must end in an nn.Linear, has none"),
    (lambda: _laplace(nn.Sequential(mlp(3, 2, 1), nn.Tanh())), "model must end in an nn.Linear, on features"),
    (lambda: _laplace(nn.Sequential(mlp(3, 3), nn.Softplus())), "model must end in an nn.Linear"),
    (lambda: dropout.last_layer_moments(_laplace(), X * nan), "inputs must be finite"),
    (lambda: dropout.draw_last_layer(_laplace(), X[:0], generator=seeded()), "inputs must have at least one"),
    (lambda: dropout.draw_last_layer(_laplace(), X, num_samples=0, generator=seeded()), "num_samples must be at least"),
    (lambda: dropout.predict_last_layer_regression(_fitted_classes(), X), "likelihood must be Gaussian, got 'categ"),
    (lambda: dropout.predict_last_layer_classes(_laplace(), X, generator=seeded()), "likelihood must have classes"),
    (lambda: dropout.probit_class_prob(_laplace(), X), "likelihood must have classes"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD, ids=[f"{i}: {message}" for i, (_, message) in enumerate(BAD)])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
