"""bdl_lib.dropout: running predictions, the objective behind dropout, training, and concrete dropout.

Exactness is tested in float64, against sums over all masks, quadrature and closed forms. What draws at random is
seeded; z-scores are against the Monte Carlo error that the function itself gives, and the bounds on their size are at
least four standard deviations of the statistic away from what a right error gives.
"""

import copy
import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special, stats
from torch import nn

from bdl_lib import dropout, vi
from bdl_lib.dropout import fit as fit_dropout
from bdl_lib.dropout import predict
from bdl_lib.dropout._memory import PeakMemory
from bdl_lib.dropout.predict import RunningMean

inf, nan = math.inf, math.nan
f64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=f64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def close(actual, expected, *, rtol=1e-10, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=rtol, atol=atol, equal_nan=True)


def linear(weights, bias=None):
    """A linear layer [fan_in] or [out, fan_in] with these weights, in float64."""
    weights = torch.as_tensor(weights, dtype=f64)
    weights = weights[None] if weights.ndim == 1 else weights
    layer = nn.Linear(*weights.shape[::-1], bias=bias is not None, dtype=f64)
    with torch.no_grad():
        layer.weight.copy_(weights)
        if bias is not None:
            layer.bias.copy_(torch.as_tensor(bias, dtype=f64))
    return layer


def masks(num_units, rate):
    """All masks, scaled, and their probabilities."""
    kept = torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_units)), dtype=f64)
    prob = (torch.tensor(1 - rate, dtype=f64) ** kept * torch.tensor(rate, dtype=f64) ** (1 - kept)).prod(1)
    return kept / (1 - rate), prob


RATE, NOISE_PREC = 0.4, 4.0
WEIGHTS = torch.tensor([0.8, -0.5, 0.3, 1.1], dtype=f64)


def linear_model(rate=RATE):
    """Dropout on four inputs, then a sum: its predictive has a closed form."""
    return nn.Sequential(dropout.Dropout(rate), linear(WEIGHTS))


def rms(z):
    return z.square().mean().sqrt()


# ---- Running means


@pytest.mark.parametrize("sizes", [[7], [1, 1, 5], [3, 4], [1] * 7], ids=str)
def test_running_mean_is_the_mean(sizes):
    values = randn(7, 3, 2) + 1e6
    found = RunningMean()
    for block in values.split(sizes):
        found = found.update(block)
    assert found.count == 7
    numpy = values.numpy()
    close(found.mean, numpy.mean(0), rtol=1e-14)
    close(found.mixture_var, numpy.var(0), rtol=1e-8)
    close(found.mcse, stats.sem(numpy, axis=0), rtol=1e-8)


def test_running_means_merge():
    values = randn(9, 2)
    parts = [RunningMean().update(values[:2]), RunningMean().update(values[2:])]
    merged = parts[0].merge(parts[1])
    close(merged.mean, values.mean(0))
    close(merged.mcse, values.std(0) / 3)
    close(merged.merge(RunningMean()).mcse, merged.mcse)


def test_one_value_has_no_error():
    assert RunningMean().update(randn(1, 3)).mcse.isnan().all()


@pytest.mark.parametrize("tolerance", [0.5, 0.01, 1e-30])
def test_count_for_tolerance(tolerance):
    found = RunningMean().update(randn(20, 3))
    expected = found.count * (found.mcse.max().item() / tolerance) ** 2
    assert found.count_for(tolerance) == pytest.approx(min(expected, 2**53), abs=1, rel=1e-12)


# ---- Regression


def test_regression_is_the_closed_form():
    inputs = randn(300, 4)
    settings = {"noise_prec": NOISE_PREC, "num_passes": 500, "generator": seeded()}
    found = dropout.predict_regression(linear_model(), inputs, **settings)
    terms = inputs * WEIGHTS
    var = RATE / (1 - RATE) * terms.square().sum(1)
    assert found.mean.shape == (300,)
    assert found.num_passes == 500
    assert found.is_converged
    z = (found.mean - terms.sum(1)) / found.mean_mcse
    assert 0.83 < rms(z) < 1.17
    assert z.abs().max() < 4.5
    close(found.mean_mcse, (var / 500).sqrt(), rtol=0.25)
    ratio = found.parameter_var / var  # standard deviation of each about sqrt(kurtosis / 500), at most 0.06
    assert abs(ratio.mean() - 499 / 500) < 4 * ratio.std() / 300**0.5
    close(found.noise_var, 0.25)
    close(found.std, (found.parameter_var + 0.25).sqrt())


def test_variance_is_that_of_the_mixture():
    """It divides by T: two passes, both seen."""
    outputs = [torch.tensor([[[1.0], [4.0]], [[3.0], [4.0]]], dtype=f64)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "iterate_passes", lambda *_, **__: iter(outputs))
        found = dropout.predict_regression(nn.Identity(), randn(2, 1), noise_prec=1.0, num_passes=2, generator=seeded())
    close(found.mean, [2.0, 4.0])
    close(found.parameter_var, [1.0, 0.0])
    close(found.mean_mcse, [1.0, 0.0])


def test_outputs_keep_their_shape():
    model = nn.Sequential(dropout.Dropout(0.3), linear(randn(3, 4)))
    found = dropout.predict_regression(model, randn(5, 4), noise_prec=1.0, num_passes=3, generator=seeded())
    assert {part.shape for part in found[:4]} == {(5, 3)}


# ---- Log likelihood


def exact_log_likelihood(inputs, targets, rate=RATE, noise_prec=NOISE_PREC):
    scaled, prob = masks(4, rate)
    f = (inputs[:, None] * scaled * WEIGHTS).sum(-1)  # [n, masks]
    log_prob = stats.norm(f, noise_prec**-0.5).logpdf(targets[:, None])
    return torch.logsumexp(torch.as_tensor(log_prob) + prob.log(), 1)


def test_log_likelihood_is_the_sum_over_all_masks():
    """Values, errors and bias, on inputs with masks of their own: for each of ten inputs, 400 repetitions."""
    inputs, targets = randn(10, 4), randn(10, seed=1)
    repeated = inputs.repeat(400, 1), targets.repeat(400)
    settings = {"noise_prec": NOISE_PREC, "num_passes": 50, "generator": seeded()}
    found = dropout.log_likelihood(linear_model(), *repeated, **settings)
    exact = exact_log_likelihood(inputs, targets)
    error, mcse = (found.value - exact.repeat(400)).view(400, 10), found.mcse.view(400, 10)
    close(mcse.square().mean(0).sqrt(), error.std(0), rtol=0.25)  # a standard deviation of 400 is known to 4 %
    bias = -mcse.square().mean() / 2
    std_error = error.std() / 4000**0.5
    assert (error.mean() - bias).abs() < 4 * std_error
    assert error.mean() < -4 * std_error, "the bias should be seen, or this test shows nothing"


def test_log_likelihood_of_several_outputs_adds_within_a_pass():
    """Two copies of one output: squares add, and so do the constants."""
    model = nn.Sequential(dropout.Dropout(RATE), linear(torch.stack([WEIGHTS, WEIGHTS])))
    inputs, targets = randn(6, 4), randn(6, seed=1)
    settings = {"num_passes": 50, "generator": seeded()}
    found = dropout.log_likelihood(model, inputs, targets[:, None].repeat(1, 2), noise_prec=1.0, **settings)
    settings = {"num_passes": 50, "generator": seeded()}
    twice_as_sure = dropout.log_likelihood(linear_model(), inputs, targets[:, None], noise_prec=2.0, **settings)
    close(found.value, twice_as_sure.value - 0.5 * math.log(2 * math.pi) - 0.5 * math.log(2))


def test_log_likelihood_far_away_is_finite():
    settings = {"noise_prec": 1e4, "num_passes": 10, "generator": seeded()}
    found = dropout.log_likelihood(linear_model(), randn(3, 4), torch.full((3,), 1e3, dtype=f64), **settings)
    assert found.value.isfinite().all()
    assert (found.value < -1e9).all()
    assert found.mcse.isfinite().all()


# ---- Classes


def class_model():
    return nn.Sequential(dropout.Dropout(RATE), linear(3 * randn(3, 4), randn(3, seed=1)))


def enumerated_prob(inputs):
    scaled, prob = masks(4, RATE)
    layer = class_model()[1]
    return layer(inputs[:, None] * scaled).softmax(-1), prob  # [n, masks, classes]


def test_classes_are_the_sum_over_all_masks():
    inputs = randn(300, 4)
    found = dropout.predict_classes(class_model(), inputs, num_passes=400, generator=seeded())
    each, weight = enumerated_prob(inputs)
    exact = torch.einsum("nmc,m->nc", each, weight)
    z = (found.prob - exact) / found.prob_mcse
    assert 0.85 < rms(z[:, 0]) < 1.2
    assert z.abs().max() < 5
    expected = torch.einsum("nmc,m->n", torch.special.entr(each), weight)
    total = torch.special.entr(exact).sum(1)
    close(found.entropy.expected, expected, atol=0.12, rtol=0)
    assert abs((found.entropy.expected - expected).mean()) < 0.01
    assert abs((found.entropy.total - total).mean()) < 0.01
    close(found.entropy.mutual_information, found.entropy.total - found.entropy.expected)


def test_entropies_agree_with_those_of_the_passes():
    """The streaming split against ``networks.entropy_split``, which sees all passes at once."""
    from bdl_lib import networks

    inputs = randn(20, 4)
    settings = {"num_passes": 50, "generator": seeded()}
    found = dropout.predict_classes(class_model(), inputs, **settings)
    outputs = dropout.draw_passes(class_model(), inputs, num_passes=50, generator=seeded())
    for part, expected in zip(found.entropy, networks.entropy_split(outputs.softmax(-1)), strict=True):
        close(part, expected)
    close(found.prob_mcse, outputs.softmax(-1).std(0) / 50**0.5)


def test_classes_are_the_second_axis():
    model = nn.Sequential(dropout.ChannelDropout(0.5), nn.Conv2d(2, 3, 1, dtype=f64))
    found = dropout.predict_classes(model, randn(4, 2, 5, 6), num_passes=3, generator=seeded())
    assert found.prob.shape == (4, 3, 5, 6)
    assert found.entropy.total.shape == (4, 5, 6)
    close(found.prob.sum(1), torch.ones(4, 5, 6))


def test_passes_go_on_until_the_error_is_small():
    inputs = randn(50, 4)
    settings = {"num_passes": 100_000, "tolerance": 0.01}
    found = dropout.predict_classes(class_model(), inputs, generator=seeded(), **settings)
    each, weight = enumerated_prob(inputs)
    second = torch.einsum("nmc,m->nc", each.square(), weight)
    exact = torch.einsum("nmc,m->nc", each, weight)
    needed = (second - exact.square()).max() / 0.01**2
    assert found.is_converged
    assert found.prob_mcse.max() <= 0.01
    assert 0.8 * needed < found.num_passes < 1.5 * needed  # the pilot's largest variance is a maximum of estimates


def test_passes_end_where_they_must():
    settings = {"num_passes": 80, "tolerance": 1e-4, "generator": seeded()}
    found = dropout.predict_classes(class_model(), randn(50, 4), **settings)
    assert found.num_passes == 80
    assert not found.is_converged
    found = dropout.predict_regression(linear_model(), randn(5, 4), noise_prec=1.0, **settings)
    assert found.num_passes == 80
    assert not found.is_converged
    settings["tolerance"] = 100.0
    assert dropout.predict_regression(linear_model(), randn(5, 4), noise_prec=1.0, **settings).num_passes == 30


@pytest.mark.parametrize("what", ["classes", "regression", "likelihood"])
def test_memory_stays_within_its_bound(what):
    """The outputs of a thousand passes take 960 kB; the bound is 262 kB, beside a few tensors of the results' size."""
    inputs, targets = randn(40, 4), randn(40, 3)
    settings = {"num_passes": 1000, "generator": seeded(), "memory_bytes": 2**18}
    with PeakMemory() as memory:
        if what == "classes":
            dropout.predict_classes(class_model(), inputs, **settings)
        elif what == "regression":
            dropout.predict_regression(class_model(), inputs, noise_prec=1.0, **settings)
        else:
            dropout.log_likelihood(class_model(), inputs, targets, noise_prec=1.0, **settings)
    assert 2**16 < memory.peak_bytes < 2**18 + 6 * targets.nbytes  # and not idle: passes may take a quarter of it


# ---- The objective


def random_weights(seed):
    """[units, K], and the same as an inverted layer stores it."""
    kept = randn(5, 3, seed=seed)
    return kept, (1 - RATE) * kept


@pytest.mark.parametrize("is_inverted", [True, False])
def test_decay_is_the_part_of_the_divergence_that_moves(is_inverted):
    """N τ λ ‖V‖² and the divergence differ by a constant; the half squared error times N τ is minus log likelihood."""
    length_scale, num_data = 0.7, 50
    settings = {"length_scale": length_scale, "rate": RATE, "num_data": num_data, "noise_prec": NOISE_PREC}
    decay = dropout.weight_decay_of(**settings, is_inverted=is_inverted)
    for seed in (1, 2):
        kept, stored = random_weights(seed)
        exact = dropout.dropout_kl(kept, component_std=1e-3, rate=RATE, length_scale=length_scale).value.sum()
        penalty = num_data * NOISE_PREC * decay * (stored if is_inverted else kept).square().sum()
        if seed == 1:
            constant = exact - penalty
    close(exact - penalty, constant)


@pytest.mark.parametrize("is_inverted", [True, False])
def test_decay_is_half_the_expected_square_of_the_weights(is_inverted):
    """λ N τ ‖V‖² = ½ l² E‖W‖², by enumeration of the masks of this library or of the paper."""
    scaled, prob = masks(4, RATE)
    scaled = scaled if is_inverted else scaled * (1 - RATE)
    expected = 0.5 * 1.5**2 * ((scaled * WEIGHTS).square().sum(1) * prob).sum()
    settings = {"length_scale": 1.5, "rate": RATE, "num_data": 20, "noise_prec": 3.0, "is_inverted": is_inverted}
    close(dropout.weight_decay_of(**settings) * 20 * 3.0 * WEIGHTS.square().sum(), expected)


@pytest.mark.parametrize("is_inverted", [True, False])
def test_relation_goes_both_ways(is_inverted):
    rates = torch.tensor([0.0, 0.1, 0.9], dtype=f64)
    common = {"rate": rates, "num_data": 123, "is_inverted": is_inverted}
    decay = dropout.weight_decay_of(length_scale=0.3, noise_prec=7.0, **common)
    close(dropout.noise_prec_of(length_scale=0.3, weight_decay=decay, **common), 7.0)
    close(dropout.length_scale_of(weight_decay=decay, noise_prec=7.0, **common), 0.3)


def test_relation_of_the_paper():
    """τ = (1 - p) l² / 2 N λ, in numbers; a float for floats."""
    settings = {"length_scale": 2.0, "rate": 0.25, "num_data": 10, "weight_decay": 0.03, "is_inverted": False}
    found = dropout.noise_prec_of(**settings)
    assert isinstance(found, float)
    assert found == pytest.approx(0.75 * 4 / (2 * 10 * 0.03))


@pytest.mark.parametrize(
    ("mean", "component_std", "rate", "length_scale"),
    [(1.0, 0.3, 0.4, 0.7), (0.0, 0.3, 0.4, 0.7), (0.5, 0.01, 0.1, 0.7), (5.0, 0.2, 0.5, 2.0), (0.3, 0.3, 0.0, 1.0)],
)
def test_divergence_is_the_integral(mean, component_std, rate, length_scale):
    prior, off, on = (stats.norm(*p) for p in [(0, 1 / length_scale), (0, component_std), (mean, component_std)])

    def integrand(w):
        q = (1 - rate) * on.pdf(w) + rate * off.pdf(w)
        return q * (math.log(q) - prior.logpdf(w)) if q > 0 else 0.0

    ends = -12 * component_std, mean + 12 * component_std
    exact, _ = integrate.quad(integrand, *ends, points=[0, mean, mean / 2], limit=500, epsabs=1e-12)
    weights = torch.tensor([mean], dtype=f64)
    found = dropout.dropout_kl(weights, component_std=component_std, rate=rate, length_scale=length_scale)
    close(found.value, exact, rtol=1e-9)
    entropy = stats.bernoulli(rate).entropy()
    assert -1e-12 < found.value - found.approximation < entropy + 1e-12
    if mean == 0:
        close(found.value - found.approximation, entropy)


def test_divergence_in_two_dimensions():
    """Only the line through m matters: the plane agrees."""
    mean, std, rate, length_scale = torch.tensor([0.5, -0.4], dtype=f64), 0.25, 0.3, 1.2
    axis = torch.linspace(-3.5, 3.5, 701, dtype=f64)
    grid = torch.cartesian_prod(axis, axis)

    def log_normal(center, scale):
        return -0.5 * ((grid - center) / scale).square().sum(1) - math.log(2 * math.pi * scale**2)

    log_q = torch.logaddexp(math.log(1 - rate) + log_normal(mean, std), math.log(rate) + log_normal(0.0, std))
    exact = (log_q.exp() * (log_q - log_normal(0.0, 1 / length_scale))).sum() * (axis[1] - axis[0]) ** 2
    close(dropout.dropout_kl(mean, component_std=std, rate=rate, length_scale=length_scale).value, exact, rtol=1e-8)


# ---- Training


def half_square(outputs, targets):
    return 0.5 * (outputs[:, 0] - targets).square().mean()


def regression(num_data=200, seed=0):
    inputs = randn(num_data, 4, seed=seed)
    return inputs, inputs @ WEIGHTS + 0.3 * randn(num_data, seed=seed + 100)


def ridge(inputs, targets, rate, decay):
    """Where the gradient of the expected objective vanishes: dropout adds to the diagonal."""
    gram = inputs.T @ inputs / len(inputs)
    noise = torch.diag(rate / (1 - rate) * gram.diagonal() + 2 * decay)
    return torch.linalg.solve(gram + noise, inputs.T @ targets / len(inputs))


@pytest.mark.parametrize("batch_size", [1000, 64])
def test_fit_without_dropout_is_ridge_regression(batch_size):
    inputs, targets = regression()
    start = linear(torch.zeros(4))
    settings = {
        "num_epochs": 300 if batch_size == 1000 else 100,
        "batch_size": batch_size,
        "lr": 0.1,
        "weight_decay": 0.1,
        "generator": seeded(),
    }
    found = fit_dropout(start, inputs, targets, half_square, **settings)
    close(found.model.weight[0], ridge(inputs, targets, 0.0, 0.1), rtol=0, atol=1e-4 if batch_size == 1000 else 0.02)
    assert (start.weight == 0).all()
    assert start.weight.grad is None
    if batch_size == 1000:
        close(found.loss_history[0], half_square(torch.zeros(200, 1), targets))
        close(found.loss_history[-1], half_square(found.model(inputs), targets), rtol=1e-4)


def test_history_is_the_mean_over_all_data():
    """Whatever the size of the last minibatch; without the decay."""
    inputs, targets = regression()
    settings = {"num_epochs": 2, "batch_size": 64, "lr": 1e-12, "weight_decay": 0.1, "generator": seeded()}
    found = fit_dropout(linear(WEIGHTS), inputs, targets, half_square, **settings)
    close(found.loss_history, half_square((inputs @ WEIGHTS)[:, None], targets), rtol=1e-9)


def test_fit_with_dropout_is_the_ridge_of_its_noise():
    inputs, targets = regression()
    start = nn.Sequential(dropout.Dropout(RATE), linear(torch.zeros(4)))
    settings = {"num_epochs": 100, "batch_size": 50, "lr": 0.03, "weight_decay": 0.05, "generator": seeded()}
    found = fit_dropout(start, inputs, targets, half_square, **settings).model[1].weight[0]
    expected = ridge(inputs, targets, RATE, 0.05)
    close(found, expected, rtol=0, atol=0.02)
    assert (expected - ridge(inputs, targets, 0.0, 0.05)).abs().max() > 0.1, "or this test shows nothing"


def test_regulariser_is_part_of_the_objective():
    inputs, targets = regression()
    settings = {"num_epochs": 300, "batch_size": 1000, "lr": 0.1, "generator": seeded()}

    def decay(model):
        return 0.1 * model.weight.square().sum()

    found = fit_dropout(linear(torch.zeros(4)), inputs, targets, half_square, regulariser=decay, **settings)
    close(found.model.weight[0], ridge(inputs, targets, 0.0, 0.1), rtol=0, atol=1e-4)


def small_model(dtype=torch.float32):
    return nn.Sequential(nn.Linear(4, 16, dtype=dtype), nn.ReLU(), dropout.Dropout(0.3), nn.Linear(16, 1, dtype=dtype))


def test_fit_depends_on_the_generator_alone():
    inputs, targets = (x.float() for x in regression(60))
    model = small_model()
    settings = {"num_epochs": 3, "batch_size": 20}
    state = torch.get_rng_state()
    first, again, other = (
        fit_dropout(model, inputs, targets, half_square, generator=seeded(seed), **settings) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    assert not torch.equal(first.loss_history, other.loss_history)
    assert not first.model.training
    assert first.loss_history.dtype == torch.float32
    assert all(p.grad is None for p in first.model.parameters())


def test_the_fitted_model_is_deterministic():
    inputs, targets = regression(60)
    found = fit_dropout(small_model(f64), inputs, targets, half_square, num_epochs=1, generator=seeded())
    assert torch.equal(found.model(inputs), found.model(inputs))


def test_batch_norm_learns_and_frozen_parameters_stay():
    inputs, targets = regression(60)
    model = nn.Sequential(nn.BatchNorm1d(4, dtype=f64), small_model(f64))
    model[1][0].requires_grad_(False)
    found = fit_dropout(model, inputs + 3, targets, half_square, num_epochs=5, weight_decay=0.1, generator=seeded())
    assert found.model[0].running_mean.min() > 0.5
    assert not model[0].running_mean.any()
    assert torch.equal(found.model[1][0].weight, model[1][0].weight)
    assert not torch.equal(found.model[1][3].weight, model[1][3].weight)


def test_a_loss_that_is_not_finite_stops():
    inputs, targets = regression(60)
    start = small_model(f64)
    before, calls = copy.deepcopy(start.state_dict()), []

    def breaks(outputs, targets):
        calls.append(1)
        return half_square(outputs, targets) * (1.0 if len(calls) <= 6 else inf)

    with pytest.raises(vi.FailedFit, match=r"epoch 2 is nan.*0\.weight") as caught:
        fit_dropout(start, inputs, targets, breaks, num_epochs=5, batch_size=20, generator=seeded())
    assert len(calls) == 9
    assert caught.value.step == 2
    found = caught.value.fit
    assert found.loss_history.shape == (2,)
    assert all(p.isfinite().all() for p in found.model.parameters())
    assert all(torch.equal(before[name], value) for name, value in start.state_dict().items())
    expected = fit_dropout(start, inputs, targets, half_square, num_epochs=5, batch_size=20, generator=seeded())
    close(found.loss_history, expected.loss_history[:2])


def test_bar(capsys):
    inputs, targets = regression(60)
    for progress in (False, True):
        fit_dropout(linear(WEIGHTS), inputs, targets, half_square, num_epochs=2, generator=seeded(), progress=progress)
        assert ("fit:" in capsys.readouterr().err) == progress


def test_the_host_waits_once_an_epoch(device):
    import sim_device

    if device != sim_device.DEVICE:
        pytest.skip("only the simulated device counts")
    inputs, targets = (x.float().to(device) for x in regression(80))
    model, waits = small_model().to(device), []
    for num_epochs, batch_size in [(1, 80), (1, 10), (3, 10)]:
        generator = torch.Generator(device).manual_seed(0)
        with sim_device.count() as counts:
            settings = {"num_epochs": num_epochs, "batch_size": batch_size, "generator": generator}
            fit_dropout(model, inputs, targets, half_square, **settings)
        waits.append(counts.host_syncs)
    assert waits[1] == waits[0]
    assert waits[2] == waits[0] + 2


# ---- Concrete dropout


def concrete(rate=RATE, weights=WEIGHTS, **settings):
    return dropout.ConcreteDropout(linear(weights), rate, **settings)


def test_concrete_dropout_is_its_layer_without_masks():
    layer, inputs = concrete(), randn(5, 4)
    close(layer.rate, RATE)
    for mode in (True, False):
        assert torch.equal(layer.train(mode)(inputs), layer.layer(inputs))


def test_exact_masks_drop_at_the_rate():
    mask = concrete().draw_mask((1, 20_000, 4), like=WEIGHTS, generator=seeded())
    assert mask.requires_grad, "smooth while gradients are recorded"
    with torch.no_grad():
        mask = concrete().draw_mask((1, 20_000, 4), like=WEIGHTS, generator=seeded())
    close(mask.unique(), [0.0, 1 / (1 - RATE)])
    assert abs((mask == 0).double().mean() - RATE) < 4 * (RATE * (1 - RATE) / 80_000) ** 0.5
    frozen = concrete().requires_grad_(False).draw_mask((1, 20_000, 4), like=WEIGHTS, generator=seeded())
    assert torch.equal(frozen, mask)


def test_smooth_masks_become_exact_ones():
    masks_of = [concrete(temperature=t).draw_mask((1, 999, 4), like=WEIGHTS, generator=seeded()) for t in (0.1, 1e-6)]
    with torch.no_grad():
        exact = concrete().draw_mask((1, 999, 4), like=WEIGHTS, generator=seeded())
    close(masks_of[1], exact, atol=1e-6)
    assert 0.7 < ((masks_of[0] - exact).abs() < 0.05).double().mean() < 1


def test_gradients_are_finite_differences():
    """Of the regulariser and of a smooth pass, in the weights and in the rate."""
    inputs = randn(5, 4)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.concrete = concrete(weights=randn(2, 4))

        def forward(self):
            with dropout.drawing(self, generator=seeded()):
                return self.concrete(inputs), dropout.concrete_regulariser(self, length_scale=0.7, num_data=3)

    def both(rate_logit, weight):
        values = {"concrete.rate_logit": rate_logit, "concrete.layer.weight": weight}
        return torch.func.functional_call(Both(), values, ())

    for rate in (0.01, 0.4, 0.95):
        logit = torch.tensor(rate, dtype=f64).logit().requires_grad_()
        assert torch.autograd.gradcheck(both, (logit, randn(2, 4, seed=3).requires_grad_()))


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_regulariser_is_the_divergence(rate):
    """Against ``dropout_kl`` at a small width, up to a constant that depends on neither rate nor weights."""
    constants = []
    for weights, p in [(randn(3, 4), rate), (2 * randn(3, 4, seed=1), 0.3)]:
        model = nn.Sequential(linear(randn(4, 4)), concrete(p, weights))
        found = dropout.concrete_regulariser(model, length_scale=0.7, num_data=50, noise_prec=3.0) * 50 * 3.0
        settings = {"component_std": 1e-4, "rate": p, "length_scale": 0.7}
        constants.append(found.detach() - dropout.dropout_kl(weights.T / (1 - p), **settings).value.sum())
    close(constants[0], constants[1])


def test_regulariser_adds_layers_and_counts_channels():
    conv = dropout.ConcreteDropout(nn.Conv2d(3, 5, 2, dtype=f64), 0.2)
    layers = [concrete(), conv]
    settings = {"length_scale": 0.7, "num_data": 50}
    each = [dropout.concrete_regulariser(layer, **settings) for layer in layers]
    close(dropout.concrete_regulariser(nn.ModuleList(layers), **settings), sum(each))
    entropy = stats.bernoulli(0.2).entropy()
    close(each[1], (0.7**2 / 1.6 * conv.layer.weight.square().sum() - 3 * entropy) / 50)


def test_convolutions_drop_channels():
    conv = dropout.ConcreteDropout(nn.Conv2d(3, 5, 2, bias=False, dtype=f64), 0.5)
    inputs = randn(1, 3, 4, 4)
    outputs = dropout.draw_passes(conv, inputs, num_passes=200, generator=seeded())
    kept = torch.tensor(list(itertools.product([0.0, 2.0], repeat=3)), dtype=f64)
    possible = conv(inputs * kept[:, :, None, None])
    distance = (outputs - possible).abs().amax((2, 3, 4))
    assert distance.min(1).values.max() < 1e-12
    counts = distance.argmin(1).bincount(minlength=8)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_predictive_of_concrete_dropout():
    """Exact masks: the variance is that of dropout, which smooth masks miss by a tenth."""
    inputs = randn(200, 4)
    found = dropout.predict_regression(concrete(), inputs, noise_prec=1.0, num_passes=400, generator=seeded())
    var = RATE / (1 - RATE) * (inputs * WEIGHTS).square().sum(1)
    ratio = found.parameter_var / var * 400 / 399
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 200**0.5


def test_decay_leaves_the_rate_alone():
    start = concrete()
    settings = {"num_epochs": 3, "lr": 0.1, "weight_decay": 1.0, "generator": seeded()}
    found = fit_dropout(start, *regression(20), lambda f, y: 0 * f.sum(), **settings).model
    assert torch.equal(found.rate_logit, start.rate_logit)
    assert (found.layer.weight.abs() < start.layer.weight.abs()).all()


def best_rate(inputs, targets, length_scale, temperature=0.1):
    """Of the whole objective of a linear model, smooth masks included, with the expectation by quadrature."""
    n, dim = inputs.shape
    gram, cross = (inputs.T @ inputs / n).numpy(), (inputs.T @ targets / n).numpy()
    logit_u = special.logit((np.arange(2_000) + 0.5) / 2_000)

    def objective(position):
        weights, logit = position[:-1], position[-1]
        kept = special.expit((logit_u - logit) / temperature) * (1 + math.exp(logit))
        mean, var = kept.mean(), kept.var()
        fit = mean**2 * weights @ gram @ weights - 2 * mean * cross @ weights + var * weights**2 @ gram.diagonal()
        prior = length_scale**2 / 2 * (1 + math.exp(logit)) * weights @ weights
        entropy = special.entr(special.expit([logit, -logit])).sum()
        return 0.5 * fit + (prior - dim * entropy) / n

    return special.expit(optimize.minimize(objective, np.append(np.zeros(dim), -1.0)).x[-1])


def test_learned_rate_is_the_best_one_and_falls_with_more_data():
    rates = []
    for num_data in (10, 30, 60):
        inputs = randn(num_data, 4)
        targets = inputs @ WEIGHTS * 0.4 + randn(num_data, seed=1)
        regulariser = functools.partial(dropout.concrete_regulariser, length_scale=0.5, num_data=num_data)
        settings = {"num_epochs": 100, "batch_size": 10**6, "lr": 0.1, "regulariser": regulariser}
        copies = 3200 // num_data  # so many masks a step: what remains is the objective itself
        data = inputs.repeat(copies, 1), targets.repeat(copies)
        found = fit_dropout(concrete(0.3, torch.zeros(4)), *data, half_square, generator=seeded(), **settings)
        rates.append(found.model.rate.item())
        assert rates[-1] == pytest.approx(best_rate(inputs, targets, 0.5), abs=0.02)
    assert rates[0] > rates[1] + 0.1
    assert rates[1] > rates[2] + 0.05


# ---- Bad input

INPUTS, TARGETS = torch.ones(6, 4, dtype=f64), torch.zeros(6, dtype=f64)
OBJECTIVE = {"length_scale": 1.0, "rate": 0.5, "num_data": 10}
KL = {"component_std": 0.1, "rate": 0.5, "length_scale": 1.0}


class FunctionallyDropping(nn.Linear):
    def forward(self, inputs):
        return super().forward(nn.functional.dropout(inputs))


def classes(model=None, **settings):
    return dropout.predict_classes(model or class_model(), INPUTS, **{"generator": seeded()} | settings)


def regress(**settings):
    return dropout.predict_regression(linear_model(), INPUTS, **{"noise_prec": 1.0, "generator": seeded()} | settings)


def likelihood(targets=TARGETS, **settings):
    settings = {"noise_prec": 1.0, "generator": seeded()} | settings
    return dropout.log_likelihood(linear_model(), INPUTS, targets, **settings)


def trained(model=None, inputs=INPUTS, targets=TARGETS, loss=half_square, **settings):
    return fit_dropout(model or linear_model(), inputs, targets, loss, **{"generator": seeded()} | settings)


BAD_INPUT = {
    "no pass": (lambda: classes(num_passes=0), "num_passes must be at least 1, got 0"),
    "NaN passes": (lambda: classes(num_passes=nan), "num_passes must be at least 1, got nan"),
    "tolerance 0": (lambda: classes(tolerance=0.0), "tolerance must be positive and finite, got 0"),
    "tolerance NaN": (lambda: regress(tolerance=nan), "tolerance must be positive and finite, got nan"),
    "one class": (
        lambda: classes(linear_model()),
        r"model must give \[n, classes >= 2, \*places\], got shape \[6, 1\]",
    ),
    "no class axis": (
        lambda: classes(nn.Sequential(dropout.Dropout(0.5), linear(WEIGHTS), nn.Flatten(0))),
        r"model must give \[n, classes >= 2, \*places\]",
    ),
    "no noise": (lambda: regress(noise_prec=inf), "noise_prec must be positive and finite, got inf"),
    "noise NaN": (lambda: likelihood(noise_prec=nan), "noise_prec must be positive and finite, got nan"),
    "no pass of regression": (lambda: regress(num_passes=0), "num_passes must be at least 1, got 0"),
    "no pass of likelihood": (lambda: likelihood(num_passes=0), "num_passes must be at least 1, got 0"),
    "too few targets": (lambda: likelihood(TARGETS[:5]), "targets must be finite, one for each of the 6 inputs"),
    "target NaN": (lambda: likelihood(TARGETS * nan), "targets must be finite, .* 6 not finite"),
    "targets of two outputs": (lambda: likelihood(torch.zeros(6, 2, dtype=f64)), r"targets must be \[6\], .*\[6, 2\]"),
    "rate 1": (lambda: dropout.weight_decay_of(**OBJECTIVE | {"rate": 1.0}), r"rate must be in \[0, 1\), got 1.0"),
    "rate NaN": (
        lambda: dropout.noise_prec_of(**OBJECTIVE | {"rate": nan}, weight_decay=1.0),
        r"rate must be in \[0, 1\), got nan",
    ),
    "one rate below 0": (
        lambda: dropout.length_scale_of(weight_decay=1.0, rate=torch.tensor([0.5, -0.5]), num_data=1),
        r"rate must be in \[0, 1\), got -0.5",
    ),
    "length scale 0": (
        lambda: dropout.weight_decay_of(**OBJECTIVE | {"length_scale": 0.0}),
        "length_scale must be positive and finite, got 0",
    ),
    "decay 0 has no noise": (
        lambda: dropout.noise_prec_of(**OBJECTIVE, weight_decay=0.0),
        "weight_decay must be positive and finite, got 0",
    ),
    "no data": (lambda: dropout.weight_decay_of(**OBJECTIVE | {"num_data": 0}), "num_data must be at least 1, got 0"),
    "noise precision below 0": (
        lambda: dropout.weight_decay_of(**OBJECTIVE, noise_prec=-1.0),
        "noise_prec must be positive and finite, got -1",
    ),
    "component std 0": (
        lambda: dropout.dropout_kl(INPUTS, **KL | {"component_std": 0.0}),
        "component_std must be positive and finite, got 0",
    ),
    "divergence at rate 1": (lambda: dropout.dropout_kl(INPUTS, **KL | {"rate": 1.0}), r"rate must be in \[0, 1\)"),
    "weights NaN": (lambda: dropout.dropout_kl(INPUTS * nan, **KL), "weights must be finite"),
    "no epoch": (lambda: trained(num_epochs=0), "num_epochs must be at least 1, got 0"),
    "no batch": (lambda: trained(batch_size=0), "batch_size must be at least 1, got 0"),
    "lr 0": (lambda: trained(lr=0.0), "lr must be positive and finite, got 0"),
    "decay below 0": (lambda: trained(weight_decay=-0.1), "weight_decay must be finite and not negative, got -0.1"),
    "decay NaN": (lambda: trained(weight_decay=nan), "weight_decay must be finite and not negative, got nan"),
    "fit to no data": (
        lambda: trained(inputs=INPUTS[:0], targets=TARGETS[:0]),
        "inputs must have at least one example",
    ),
    "fit to too few targets": (
        lambda: trained(targets=TARGETS[:5]),
        "targets must be one for each of the 6 inputs",
    ),
    "inputs infinite": (lambda: trained(inputs=INPUTS * inf), "inputs must be finite, got 24 non-finite values"),
    "targets NaN": (lambda: trained(targets=TARGETS * nan), "targets must be finite, got 6 non-finite values"),
    "a loss an example": (
        lambda: trained(loss=lambda f, y: f[:, 0] - y),
        r"loss must give one number.*got shape \[6\]",
    ),
    "PyTorch's dropout": (
        lambda: trained(nn.Sequential(nn.Dropout(0.1), linear(WEIGHTS))),
        "model must have no dropout of PyTorch, .*'0'",
    ),
    "a layer without inputs": (
        lambda: dropout.ConcreteDropout(nn.ReLU()),
        "layer must be nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d, got ReLU",
    ),
    "initial rate 0": (lambda: concrete(0.0), "initial_rate must be between 0 and 1, got 0.0"),
    "initial rate NaN": (lambda: concrete(nan), "initial_rate must be between 0 and 1, got nan"),
    "temperature 0": (lambda: concrete(temperature=0.0), "temperature must be positive and finite, got 0"),
    "nothing to regularise": (
        lambda: dropout.concrete_regulariser(linear_model(), length_scale=1.0, num_data=1),
        "model must have a ConcreteDropout layer",
    ),
    "regulariser without data": (
        lambda: dropout.concrete_regulariser(concrete(), length_scale=1.0, num_data=0),
        "num_data must be at least 1, got 0",
    ),
    "regulariser without prior": (
        lambda: dropout.concrete_regulariser(concrete(), length_scale=nan, num_data=1),
        "length_scale must be positive and finite, got nan",
    ),
    "regulariser without noise": (
        lambda: dropout.concrete_regulariser(concrete(), length_scale=1.0, num_data=1, noise_prec=0.0),
        "noise_prec must be positive and finite, got 0",
    ),
    "functional dropout": (
        lambda: trained(FunctionallyDropping(4, 1, dtype=f64)),
        "model must not call torch.nn.functional.dropout itself",
    ),
    "nothing to train": (
        lambda: trained(linear_model().requires_grad_(False)),
        "model must have a parameter that requires a gradient",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(case):
    call, message = BAD_INPUT[case]
    with pytest.raises(ValueError, match=message):
        call()
