"""The variational autoencoder's parts, bound, training and weights, against closed forms and quadrature."""

import copy
import importlib
import itertools
import math

import numpy as np
import oracles
import pytest
import sim_device
import torch
from scipy import stats
from torch import nn
from torch.distributions import Bernoulli, ContinuousBernoulli, Normal, kl_divergence
from torch.nn import functional as F

from bdl_lib import dropout, vae
from bdl_lib.dropout._memory import PeakMemory
from bdl_lib.vi import FailedFit

fit_module = importlib.import_module("bdl_lib.vae.fit")  # the name of its function hides it
double = {"dtype": torch.float64}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=generator(seed), **double)


def rand(*shape, seed=1):
    return torch.rand(*shape, generator=generator(seed), **double)


def tiny(likelihood=None, *, latent_dim=2, condition_dim=0, seed=0, hidden=(8,)):
    """A model of 3×4 pixels in double precision, with weights of the size of trained ones."""
    settings = {"image_shape": (3, 4), "hidden": hidden, "likelihood": likelihood, "condition_dim": condition_dim}
    return vae.mlp_vae(latent_dim, **settings, generator=generator(seed), **double)


def binary(n=6, seed=3):
    return (rand(n, 3, 4, seed=seed) < 0.4).double()


def near(found, exact, std_error, bound=4.5):
    """Within so many standard errors, everywhere."""
    assert ((found - exact).abs() < bound * std_error + 1e-12).all(), (found, exact, std_error)


# ---- Likelihoods

GREY = [0.0, 1e-9, 0.2, 0.5, 0.9, 1.0]
LOGITS = [
    -300.0,
    -40.0,
    -21.0,
    -3.0,
    -0.5,
    -0.11,
    -0.09,
    -1e-3,
    -1e-9,
    0.0,
    1e-9,
    1e-3,
    0.09,
    0.11,
    0.5,
    3.0,
    21.0,
    40.0,
    300.0,
]


def each_pixel(likelihood, params, pixels):
    """log p of every pixel under every row of parameters, as images of one pixel: [rows, pixels]."""
    outputs = torch.tensor(params, **double).reshape(-1, 1, likelihood.num_params, 1, 1)
    images = torch.tensor(pixels, **double).reshape(-1, 1, 1)
    return likelihood.log_prob(outputs, images)


def test_bernoulli_is_that_of_torch():
    found = each_pixel(vae.bernoulli(), LOGITS, [0.0, 1.0, 0.3])
    logits = torch.tensor(LOGITS, **double)[:, None]
    expected = Bernoulli(logits=logits, validate_args=False).log_prob(torch.tensor([0.0, 1.0, 0.3], **double))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_continuous_bernoulli_is_that_of_torch_and_integrates_to_one():
    likelihood = vae.continuous_bernoulli()
    moderate = [x for x in LOGITS if 1e-2 < abs(x) < 20]  # where torch's cut around ½ is left behind
    found = each_pixel(likelihood, moderate, GREY)
    theirs = ContinuousBernoulli(logits=torch.tensor(moderate, **double)[:, None], lims=(0.4999, 0.5001))
    torch.testing.assert_close(found, theirs.log_prob(torch.tensor(GREY, **double)), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        likelihood.mean(torch.tensor(moderate, **double).reshape(-1, 1, 1, 1)).flatten(), theirs.mean.flatten()
    )
    for logit in LOGITS:  # also where torch's series and its limits lose digits
        log_mass = oracles.log_quad(lambda x, at=logit: each_pixel(likelihood, [at], [x]).item(), 0.0, 1.0)
        assert abs(log_mass) < 1e-9, logit


def test_continuous_bernoulli_is_smooth_where_its_formulas_meet():
    logits = torch.tensor([x for x in LOGITS if abs(x) < 40], **double, requires_grad=True)
    outputs, likelihood = logits.reshape(-1, 1, 1, 1), vae.continuous_bernoulli()
    (slope,) = torch.autograd.grad(likelihood.log_prob(outputs, torch.zeros(len(logits), 1, 1, **double)).sum(), logits)
    # The slope of log p(x) in the logit is x − E[x], for any density of this form.
    torch.testing.assert_close(-slope, likelihood.mean(outputs).flatten().detach(), rtol=1e-9, atol=1e-9)
    single = torch.tensor(LOGITS).reshape(-1, 1, 1, 1).requires_grad_()
    value = likelihood.log_prob(single, torch.full((len(LOGITS), 1, 1), 0.7))
    assert torch.autograd.grad(value.sum(), single)[0].isfinite().all()


def test_gaussian_is_that_of_torch_with_a_floor():
    params = [(0.2, -3.0), (1.4, 0.5), (0.5, -50.0)]
    found = each_pixel(vae.gaussian(min_std=0.02), params, [-1.0, 0.5, 2.0])
    loc, std = torch.tensor([0.2, 1.4, 0.5], **double), torch.tensor([math.exp(-1.5), math.exp(0.25), 0.02], **double)
    torch.testing.assert_close(found, Normal(loc[:, None], std[:, None]).log_prob(torch.tensor([-1.0, 0.5, 2.0])))


def logistic_pmf(loc, log_scale, num_levels):
    """By differences of SciPy's distribution function, or of what is left of it where that is smaller."""
    edges = np.array([-np.inf, *(np.arange(num_levels - 1) + 0.5) / (num_levels - 1), np.inf])
    law = stats.logistic(loc, math.exp(log_scale))
    return torch.from_numpy(np.where(edges[:-1] < loc, np.diff(law.cdf(edges)), -np.diff(law.sf(edges))))


@pytest.mark.parametrize("num_levels", [2, 5, 256])
def test_discretised_logistic_is_a_difference_of_distribution_functions(num_levels):
    likelihood, params = vae.discretised_logistic(num_levels), [(0.3, -2.0), (0.99, -5.0), (-0.4, 0.5), (2.0, -1.0)]
    levels = torch.linspace(0, 1, num_levels, **double)
    found = each_pixel(likelihood, params, levels.tolist()).exp()
    expected = torch.stack([logistic_pmf(*each, num_levels) for each in params])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-14)
    torch.testing.assert_close(found.sum(1), torch.ones(len(params), **double))
    mean = likelihood.mean(torch.tensor(params, **double).reshape(-1, 2, 1, 1)).flatten()
    torch.testing.assert_close(mean, found @ levels)


def test_discretised_logistic_loses_no_digits_far_away():
    found = each_pixel(vae.discretised_logistic(), [(0.0, -5.0)], [128 / 255, 1.0])
    scale, x = math.exp(-5.0), 128 / 255
    # Far above loc, F(x + h) − F(x − h) = e^{−(x − h) / s} (1 − e^{−2h / s}), to within e^{-70} of itself.
    expected = -(x - 0.5 / 255) / scale + math.log(-math.expm1(-1 / 255 / scale))
    assert found[0, 0].item() == pytest.approx(expected, rel=1e-12)
    assert found[0, 1].item() == pytest.approx(-(1 - 0.5 / 255) / scale, rel=1e-12)


LIKELIHOODS = {
    "bernoulli": vae.bernoulli(),
    "continuous_bernoulli": vae.continuous_bernoulli(),
    "gaussian": vae.gaussian(),
    "gaussian, a scale a pixel": vae.gaussian(has_shared_scale=False),
    "discretised_logistic": vae.discretised_logistic(16),
}


@pytest.fixture(params=LIKELIHOODS.values(), ids=LIKELIHOODS)
def likelihood(request):
    return request.param


def planes(likelihood, *shape):
    """Outputs of a decoder: logits, or means inside [0, 1] with a log variance or a log scale."""
    outputs = randn(*shape, likelihood.num_params, 2, 3)
    if likelihood.num_params == 2:
        outputs = torch.stack([outputs[..., 0, :, :].sigmoid(), 0.3 * outputs[..., 1, :, :] - 1.5], -3)
    return outputs


def test_samples_have_the_mean_and_are_allowed(likelihood):
    outputs, num = planes(likelihood, 4), 4000
    draws = likelihood.sample(outputs.expand(num, *outputs.shape), generator=generator())
    likelihood.check_images(draws[0])
    near(draws.mean(0), likelihood.mean(outputs), draws.std(0) / math.sqrt(num))


def test_samples_have_the_density(likelihood):
    """E_p[p'(x) / p(x)] = 1 for another density p' of the same kind: sees more of the samples than their mean."""
    outputs, num = planes(likelihood, 1)[..., :1, :1], 20_000
    other = outputs + 0.2
    draws = likelihood.sample(outputs.expand(num, *outputs.shape), generator=generator())[:, 0]
    ratio = (likelihood.log_prob(other, draws) - likelihood.log_prob(outputs, draws)).exp()
    near(ratio.mean(), 1.0, ratio.std() / math.sqrt(num))


def test_log_prob_sums_over_seen_pixels_and_takes_axes_of_samples(likelihood):
    outputs = planes(likelihood, 5, 3, 4)
    images = likelihood.sample(outputs[0, 0], generator=generator(4))
    is_observed = rand(*images.shape, seed=6) < 0.5
    found = likelihood.log_prob(outputs, images), likelihood.log_prob(outputs, images, is_observed)
    pixels = torch.stack(
        [
            likelihood.log_prob(outputs[..., i : i + 1, j : j + 1], images[..., i : i + 1, j : j + 1])
            for i, j in itertools.product(range(2), range(3))
        ],
        -1,
    )
    assert found[0].shape == (5, 3, 4)
    torch.testing.assert_close(found[0], pixels.sum(-1))
    torch.testing.assert_close(found[1], (pixels * is_observed.flatten(1)).sum(-1))


@pytest.mark.parametrize(
    ("likelihood", "pixel", "match"),
    [
        (vae.bernoulli(), 1.01, r"images must be in \[0, 1\], got 1.01"),
        (vae.bernoulli(), -0.01, r"images must be in \[0, 1\], got -0.01"),
        (vae.bernoulli(), math.nan, r"images must be in \[0, 1\], got nan"),
        (vae.continuous_bernoulli(), 1.5, r"images must be in \[0, 1\], got 1.5"),
        (vae.gaussian(), math.inf, "images must be finite, got 1 non-finite values"),
        (vae.discretised_logistic(), 0.123, "images must be whole multiples of 1 / 255, got 0.123"),
        (vae.discretised_logistic(2), 2.0, r"images must be in \[0, 1\], got 2"),
    ],
)
def test_impossible_pixels_are_refused_wherever_images_come_in(likelihood, pixel, match):
    model, images = tiny(likelihood), torch.zeros(2, 3, 4, **double)
    images[1, 2, 3] = pixel
    for call in (
        lambda: likelihood.check_images(images),
        lambda: vae.elbo(model, images, generator=generator()),
        lambda: vae.importance_weighted_bound(model, images, num_samples=2, generator=generator()),
        lambda: vae.log_evidence(model, images, num_samples=2, generator=generator()),
        lambda: vae.fit(model, images, generator=generator()),
        lambda: vae.fit(model, torch.zeros(2, 3, 4, **double), validation_images=images, generator=generator()),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_likelihoods_refuse_bad_settings():
    with pytest.raises(ValueError, match="min_std must be positive"):
        vae.gaussian(min_std=0.0)
    with pytest.raises(ValueError, match="num_levels must be at least 2, got 1"):
        vae.discretised_logistic(1)


# ---- Networks and models


@pytest.mark.parametrize("condition_dim", [0, 3])
@pytest.mark.parametrize("make", [vae.mlp_vae, vae.conv_vae])
def test_shapes_of_any_size_of_image(make, condition_dim, likelihood):
    model = make(5, image_shape=(8, 12), likelihood=likelihood, condition_dim=condition_dim, generator=generator())
    condition = torch.randn(4, 3, generator=generator()) if condition_dim else None
    q = model.encode(torch.rand(4, 8, 12, generator=generator()), condition)
    assert q.loc.shape == q.log_var.shape == (4, 5)
    latents = torch.stack([q.rsample(6, generator=generator(i)) for i in range(2)])
    outputs = model.decode(latents, condition)
    assert outputs.shape == (2, 6, 4, likelihood.num_params, 8, 12)
    one_by_one = [
        model.decode(latents[1, 2, i : i + 1], condition if condition is None else condition[i : i + 1])
        for i in range(4)
    ]
    torch.testing.assert_close(outputs[1, 2], torch.cat(one_by_one))


def test_condition_matters_to_both_networks():
    model, images = tiny(condition_dim=3), binary()
    first, second = (F.one_hot(torch.full((6,), i), 3).double() for i in (0, 1))
    assert (model.encode(images, first).loc - model.encode(images, second).loc).abs().min() > 1e-6
    latents = randn(6, 2)
    assert (model.decode(latents, first) - model.decode(latents, second)).abs().max() > 1e-3


def test_convolutions_halve_and_double():
    encoder = vae.conv_encoder(7, channels=(4, 6), hidden=(5,), generator=generator())
    decoder = vae.conv_decoder(7, channels=(4, 6), hidden=(5,), generator=generator())
    small = encoder.features[:-1](torch.rand(2, 28, 28, generator=generator()))
    assert small.shape == (2, 6, 7, 7)
    sizes = [
        layer(torch.zeros(2, layer.in_channels, 7, 7)).shape[-1] for layer in decoder.pixels if hasattr(layer, "stride")
    ]
    assert sizes == [14, 14]
    assert encoder(torch.zeros(2, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize("make", [vae.mlp_vae, vae.conv_vae])
def test_initial_weights_come_from_the_generator_and_keep_the_size_of_what_passes(make):
    first, second, other = (make(16, generator=generator(seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["decoder.head.0.weight"], other["decoder.head.0.weight"])
    outputs = make(16, generator=generator()).decode(torch.randn(500, 16, generator=generator(5)))
    assert 0.3 < outputs.std().item() < 3.0


def test_a_shared_scale_is_one_number():
    model = tiny(vae.gaussian())
    outputs = model.decode(randn(5, 2))
    assert outputs[:, 1].unique().numel() == 1
    assert model.decoder.log_var.shape == ()
    outputs[:, 1].sum().backward()
    assert model.decoder.log_var.grad.item() == 5 * 12


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: vae.mlp_vae(0, generator=generator()), "latent_dim must be at least 1, got 0"),
        (lambda: vae.conv_vae(-1, generator=generator()), "latent_dim must be at least 1, got -1"),
        (lambda: vae.mlp_decoder(0, generator=generator()), "latent_dim must be at least 1, got 0"),
        (lambda: vae.conv_decoder(math.nan, generator=generator()), "latent_dim must be at least 1, got nan"),
        (lambda: vae.mlp_encoder(0, generator=generator()), "num_outputs must be at least 1, got 0"),
        (lambda: vae.conv_encoder(0, generator=generator()), "num_outputs must be at least 1, got 0"),
        (lambda: vae.mlp_decoder(2, num_params=0, generator=generator()), "num_params must be at least 1, got 0"),
        (lambda: vae.mlp_vae(2, hidden=(5, 0), generator=generator()), r"hidden must be whole numbers .* got \(5, 0\)"),
        (lambda: vae.mlp_vae(2, image_shape=(28, 0), generator=generator()), "image_shape must be whole numbers"),
        (lambda: vae.conv_vae(2, image_shape=(28, 30), generator=generator()), "divisible by 2 for each .4 in all."),
        (lambda: vae.conv_vae(2, channels=(), generator=generator()), "channels must be at least one"),
        (lambda: vae.mlp_vae(2, condition_dim=-1, generator=generator()), "condition_dim must be at least 0, got -1"),
        (lambda: vae.Vae(nn.Identity(), nn.Identity(), vae.bernoulli(), latent_dim=0), "latent_dim must be at least 1"),
        (lambda: tiny().encode(torch.zeros(2, 4, 3, **double)), r"images must be \[n >= 1, 3, 4\], got \[2, 4, 3\]"),
        (lambda: tiny().encode(torch.zeros(0, 3, 4, **double)), r"images must be \[n >= 1, 3, 4\], got \[0, 3, 4\]"),
        (lambda: tiny().decode(torch.zeros(2, 3, **double)), r"latents must be \[..., n, 2\], got \[2, 3\]"),
        (lambda: tiny().encode(binary(), torch.zeros(6, 1, **double)), "condition must be None: the model takes none"),
        (lambda: tiny(condition_dim=3).encode(binary()), r"condition must be \[6, 3\], got None"),
        (lambda: tiny(condition_dim=3).decode(randn(4, 2)), r"condition must be \[4, 3\], got None"),
        (lambda: tiny().encoder(binary(), torch.zeros(6, 1, **double)), "condition must be None"),
        (lambda: tiny(condition_dim=1).decoder(randn(4, 2)), r"condition must be \[4, 1\], got None"),
        (lambda: tiny().encode(binary()).rsample(0, generator=generator()), "num_samples must be at least 1, got 0"),
    ],
)
def test_models_refuse_what_does_not_fit(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_latent_gaussian_is_that_of_torch():
    q = vae.LatentGaussian(randn(4, 3), randn(4, 3, seed=2))
    theirs = Normal(q.loc, (0.5 * q.log_var).exp())
    latents = randn(7, 4, 3, seed=3)
    torch.testing.assert_close(q.log_prob(latents), theirs.log_prob(latents).sum(-1))
    draws = q.rsample(20_000, generator=generator())
    near(draws.mean(0), q.loc, theirs.scale / math.sqrt(20_000))
    near(draws.var(0), theirs.variance, theirs.variance * math.sqrt(2 / 20_000))


# ---- The bound


def kl_agrees_with_torch(kl):
    """The closed form of KL(q ‖ p) of a latent of three dimensions against torch's, for a few shapes of q."""
    loc, log_var = 2 * randn(6, 3), 2 * randn(6, 3, seed=2)
    theirs = kl_divergence(Normal(loc, (0.5 * log_var).exp()), Normal(0.0, 1.0)).sum(-1)
    return torch.allclose(kl(loc, log_var), theirs, rtol=1e-9)


def test_gaussian_kl_is_that_of_torch_summed_over_dimensions():
    assert kl_agrees_with_torch(lambda loc, log_var: vae.gaussian_kl(loc, log_var).sum(-1))


WRONG_KLS = {
    "a mean where a sum belongs": lambda loc, log_var: vae.gaussian_kl(loc, log_var).mean(-1),
    "log_var with the other sign": lambda loc, log_var: vae.gaussian_kl(loc, -log_var).sum(-1),
    "no half": lambda loc, log_var: 2 * vae.gaussian_kl(loc, log_var).sum(-1),
    "a standard deviation for a variance": lambda loc, log_var: vae.gaussian_kl(loc, 0.5 * log_var).sum(-1),
    "divided by the pixels": lambda loc, log_var: vae.gaussian_kl(loc, log_var).sum(-1) / 784,
}


@pytest.mark.parametrize("wrong", WRONG_KLS.values(), ids=WRONG_KLS)
def test_that_test_catches_the_common_mistakes(wrong):
    assert not kl_agrees_with_torch(wrong)


def quadrature(model, images, condition=None, is_observed=None):
    """log p(x) and KL(q ‖ posterior) on a grid of the latent plane: in nats, for each image."""
    axis = torch.linspace(-7, 7, 141, **double)
    latents = torch.cartesian_prod(axis, axis)
    q = model.encode(images if is_observed is None else images * is_observed, condition)
    expanded = latents[:, None].expand(-1, len(images), 2)
    log_joint = model.likelihood.log_prob(model.decode(expanded, condition), images, is_observed)
    log_joint = log_joint + Normal(0.0, 1.0).log_prob(expanded).sum(-1)
    log_cell = 2 * math.log(axis[1] - axis[0])
    log_evidence = log_joint.logsumexp(0) + log_cell
    log_q = q.log_prob(expanded)
    kl = (log_q.exp() * (log_q - log_joint + log_evidence)).sum(0) * math.exp(log_cell)
    return log_evidence.detach(), kl.detach()


@pytest.fixture(scope="module")
def trained():
    """A small model after some training, so that q is neither the prior nor the posterior; with its exact log p(x)."""
    images = binary(200, seed=8)
    model = vae.fit(tiny(), images, num_epochs=30, lr=5e-3, generator=generator(2)).model
    return model, images[:5], *quadrature(model, images[:5])


def elbo_closes_the_gap(model, images, exact, kl, **settings):
    """Whether bound + KL(q ‖ posterior) = log p(x) for every image: the bound by draws, the rest by quadrature."""
    bounds = [vae.elbo(model, images, num_samples=2000, generator=generator(i), **settings) for i in range(10)]
    values = torch.stack([bound.value.detach() for bound in bounds])
    std_error = values.std(0) / math.sqrt(10)
    return ((values.mean(0) + kl - exact).abs() < 5 * std_error + 1e-6).all().item()


@pytest.mark.parametrize("is_kl_sampled", [False, True])
def test_bound_and_gap_make_the_evidence(trained, is_kl_sampled):
    assert (trained[3] > 1e-4).all()
    assert elbo_closes_the_gap(*trained, is_kl_sampled=is_kl_sampled)


def test_bound_and_gap_make_the_evidence_within_a_thousandth_of_a_nat(trained):
    """By quadrature alone: E_q[log p(x | z)] on the grid, and the closed-form divergence."""
    model, images, exact, kl = trained
    axis = torch.linspace(-7, 7, 141, **double)
    latents = torch.cartesian_prod(axis, axis)[:, None].expand(-1, len(images), 2)
    q = model.encode(images)
    weights = q.log_prob(latents).exp() * (axis[1] - axis[0]) ** 2
    reconstruction = (weights * model.likelihood.log_prob(model.decode(latents), images)).sum(0)
    bound = vae.ElboTerms(reconstruction, vae.gaussian_kl(*q).sum(-1)).value
    torch.testing.assert_close((bound + kl).detach(), exact, rtol=0, atol=1e-3)


WRONG_ELBOS = {
    "pixels averaged": lambda terms: terms._replace(reconstruction=terms.reconstruction / 12),
    "divergence averaged over dimensions": lambda terms: terms._replace(kl=terms.kl / 2),
    "no half in the divergence": lambda terms: terms._replace(kl=terms.kl * 2),
    "divergence added": lambda terms: terms._replace(kl=-terms.kl),
}


@pytest.mark.parametrize("wrong", WRONG_ELBOS.values(), ids=WRONG_ELBOS)
def test_the_test_of_the_gap_catches_wrong_bounds(trained, wrong, monkeypatch):
    right = vae.elbo
    monkeypatch.setattr(vae, "elbo", lambda *args, **settings: wrong(right(*args, **settings)))
    assert not elbo_closes_the_gap(*trained)


def test_the_test_of_the_gap_catches_the_other_sign_of_log_var(trained, monkeypatch):
    monkeypatch.setattr(vae.LatentGaussian, "std", property(lambda q: (-0.5 * q.log_var).exp()))
    assert not elbo_closes_the_gap(*trained)


def test_bound_with_condition_and_missing_pixels_makes_the_evidence():
    model, images = tiny(condition_dim=3, seed=4), binary(4)
    condition, is_observed = randn(4, 3, seed=5), rand(4, 3, 4, seed=6) < 0.6
    settings = {"condition": condition, "is_observed": is_observed}
    exact, kl = quadrature(model, images, **settings)
    assert elbo_closes_the_gap(model, images, exact, kl, **settings)
    evidence = vae.log_evidence(model, images, num_samples=4000, generator=generator(), **settings)
    near(evidence.value, exact, evidence.std_error)
    hidden = images.where(is_observed, math.nan)
    again = vae.elbo(model, hidden, generator=generator(), **settings)
    assert torch.equal(again.value, vae.elbo(model, images, generator=generator(), **settings).value)
    again.value.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_gradient_of_the_bound_is_that_of_its_expectation(trained):
    """In the encoder's outputs, against the quadrature's derivative: the draws pass their gradients on."""
    model, images = copy.deepcopy(trained[0]), trained[1]
    bias = model.encoder.head[-1].bias
    (found,) = torch.autograd.grad(vae.elbo(model, images, num_samples=40_000, generator=generator()).value.sum(), bias)
    axis = torch.linspace(-7, 7, 141, **double)
    latents = torch.cartesian_prod(axis, axis)[:, None].expand(-1, len(images), 2)
    q = model.encode(images)
    weights = q.log_prob(latents).exp() * (axis[1] - axis[0]) ** 2
    reconstruction = (weights * model.likelihood.log_prob(model.decode(latents), images).detach()).sum(0)
    (exact,) = torch.autograd.grad((reconstruction - vae.gaussian_kl(*q).sum(-1)).sum(), bias)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.05)
    assert exact.abs().max() > 0.3


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"images": torch.zeros(2, 4, 4, **double)}, r"images must be \[n >= 1, 3, 4\], got \[2, 4, 4\]"),
        ({"condition": torch.zeros(6, 1, **double)}, "condition must be None: the model takes none"),
        ({"is_observed": torch.ones(5, 3, 4, dtype=torch.bool)}, r"is_observed must be \[6, 3, 4\]"),
    ],
)
def test_bounds_refuse_what_does_not_fit(settings, match):
    settings = {"images": binary(), "num_samples": 3, "generator": generator()} | settings
    for bound in (vae.elbo, vae.importance_weighted_bound, vae.log_evidence):
        with pytest.raises(ValueError, match=match.replace("at least 1", "at least [12]")):
            bound(tiny(), **settings)


# ---- Importance weights


def test_evidence_agrees_with_quadrature_and_its_errors_are_right(trained):
    model, images, exact, _ = trained
    runs = [vae.log_evidence(model, images, num_samples=400, generator=generator(i)) for i in range(60)]
    value, std_error, ess = (torch.stack(part) for part in zip(*runs, strict=True))
    z = (value - exact) / std_error
    near(value.mean(0), exact, value.std(0) / math.sqrt(60) + std_error.mean(0).square())  # the bias is of that order
    assert 0.85 < z.square().mean().sqrt() < 1.15  # 300 values, not quite Gaussian
    assert ((ess > 1) & (ess <= 400)).all()


def test_evidence_and_its_effective_number_come_from_the_weights(trained):
    model, images, *_ = trained
    found = vae.log_evidence(model, images[:1], num_samples=50, generator=generator())
    q = model.encode(images[:1])
    latents = q.rsample(50, generator=generator())
    log_w = model.likelihood.log_prob(model.decode(latents), images[:1]) - q.log_prob(latents)
    w = (log_w + Normal(0.0, 1.0).log_prob(latents).sum(-1)).detach().exp()[:, 0]
    torch.testing.assert_close(found.value[0], w.mean().log())
    torch.testing.assert_close(found.ess[0], w.sum().square() / w.square().sum())
    torch.testing.assert_close(found.std_error[0], w.std() / w.mean() / math.sqrt(50))


def test_bound_rises_with_the_number_of_samples_from_the_elbo_to_the_evidence(trained):
    model, images, exact, kl = trained
    many = images[:1].expand(4000, 3, 4)
    draws = [
        vae.importance_weighted_bound(model, many, num_samples=k, generator=generator(k)) for k in (1, 2, 5, 20, 100)
    ]
    bounds, errors = [d.mean() for d in draws], [d.std() / math.sqrt(4000) for d in draws]
    near(bounds[0], exact[0] - kl[0], errors[0])
    assert all(a < b for a, b in itertools.pairwise(bounds))
    assert bounds[-1] < exact[0] + 4.5 * errors[-1]
    assert exact[0] - bounds[-1] < 0.1 * kl[0]


@pytest.mark.parametrize("memory_bytes", [5_000, 20_000, 200_000])
def test_chunks_add_up(trained, memory_bytes):
    """A few samples of one image at a time, or all samples of a few images."""
    model, images, exact, _ = trained
    settings = {"num_samples": 300, "memory_bytes": memory_bytes}
    found = vae.log_evidence(model, images, generator=generator(1), **settings)
    near(found.value, exact, found.std_error)
    assert not torch.equal(found.value, vae.log_evidence(model, images, generator=generator(2), **settings).value)
    constant = copy.deepcopy(model)  # q is the prior and the decoder deaf: all weights are the same
    for layer in (constant.encoder.head[-1], constant.decoder.head[0]):
        nn.init.zeros_(layer.weight)
    nn.init.zeros_(constant.encoder.head[-1].bias)
    exact = constant.likelihood.log_prob(constant.decode(torch.zeros(5, 2, **double)), images).detach()
    found = vae.log_evidence(constant, images, generator=generator(), **settings)
    torch.testing.assert_close(found.value, exact)
    torch.testing.assert_close(found.ess, torch.full((5,), 300.0, **double))
    assert (found.std_error < 1e-6).all()


@pytest.mark.parametrize("make", [vae.mlp_vae, vae.conv_vae])
def test_memory_is_bounded_whatever_the_number_of_samples(make):
    model, images = make(4, generator=generator()), torch.zeros(3, 28, 28)
    with PeakMemory() as memory:
        vae.log_evidence(model, images, num_samples=400, memory_bytes=2**21, generator=generator())
    assert memory.peak_bytes < 2**21 < 400 * 784 * 2 * 4  # the logits of all samples of one image, and their softplus


def test_evidence_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        vae.log_evidence(tiny(), binary(), num_samples=1, generator=generator())
    with pytest.raises(ValueError, match=r"memory_bytes must be at least \d+ for one sample, got 100"):
        vae.log_evidence(tiny(), binary(), memory_bytes=100, generator=generator())
    with pytest.raises(ValueError, match="memory_bytes must be at least 1, got 0"):
        vae.importance_weighted_bound(tiny(), binary(), num_samples=1, memory_bytes=0, generator=generator())


# ---- Probabilistic PCA


def linear_images(n=400, seed=5):
    """Images of 3×4 pixels: two directions of different length, and noise."""
    loadings = torch.tensor([0.6, 0.3], **double) * torch.linalg.qr(randn(12, 2, seed=seed)).Q * 12**0.5
    vectors = 0.4 + randn(n, 2, seed=seed + 1) @ loadings.T + 0.2 * randn(n, 12, seed=seed + 2)
    return vectors.reshape(n, 3, 4)


def test_probabilistic_pca_is_the_maximum_of_the_exact_likelihood():
    vectors = linear_images().flatten(1)
    found = vae.probabilistic_pca(vectors, 2)
    expected = oracles.ppca_log_likelihood(vectors.numpy(), 2)
    torch.testing.assert_close(found.log_likelihood, torch.from_numpy(expected))
    torch.testing.assert_close(found.log_prob(vectors), found.log_likelihood)
    for name, seed in itertools.product(("loc", "loadings", "noise_var"), range(3)):
        value = getattr(found, name)
        moved = found._replace(
            **{name: value * (1 + 0.02 * randn(max(1, value.numel()), seed=seed).reshape(value.shape))}
        )
        assert moved.log_prob(vectors).mean() < found.log_likelihood.mean()
    products = found.loadings.T @ found.loadings
    assert products[0, 1].abs() < 1e-10
    assert products[0, 0] > products[1, 1]


@pytest.mark.parametrize(
    ("vectors", "latent_dim", "match"),
    [
        (randn(5, 3), 0, "latent_dim must be at least 1, got 0"),
        (randn(5, 3), 3, "latent_dim must be below 3, got 3"),
        (randn(2, 9), 2, "latent_dim must be below 2, got 2"),
        (randn(5, 3) * math.nan, 1, "vectors must be finite"),
        (randn(5, 3, 2), 1, r"vectors must be finite, \[n >= 2, dim\], got shape \[5, 3, 2\]"),
        (randn(9, 1) * torch.ones(1, 4, **double), 2, "vectors must vary in more than latent_dim directions"),
    ],
)
def test_probabilistic_pca_refuses(vectors, latent_dim, match):
    with pytest.raises(ValueError, match=match):
        vae.probabilistic_pca(vectors, latent_dim)


def linear_model(pca):
    """The variational autoencoder that is probabilistic PCA, with the exact posterior as its encoder."""
    model = tiny(vae.gaussian(), hidden=())
    inner = pca.loadings.T @ pca.loadings + pca.noise_var * torch.eye(2, **double)
    weight = torch.linalg.solve(inner, pca.loadings.T)
    log_var = (pca.noise_var / inner.diagonal()).log()
    state = {
        "encoder.head.0.weight": torch.cat([weight, torch.zeros(2, 12, **double)]),
        "encoder.head.0.bias": torch.cat([-weight @ pca.loc, log_var]),
        "decoder.head.0.weight": pca.loadings,
        "decoder.head.0.bias": pca.loc,
        "decoder.log_var": pca.noise_var.log(),
    }
    model.load_state_dict(state)
    return model


def test_linear_model_with_its_exact_posterior_is_probabilistic_pca():
    images = linear_images()
    pca = vae.probabilistic_pca(images.flatten(1), 2)
    model = linear_model(pca)
    evidence = vae.log_evidence(model, images[:20], num_samples=10, generator=generator())
    torch.testing.assert_close(evidence.value.detach(), pca.log_likelihood[:20])  # all weights are the same
    terms = vae.elbo(model, images, num_samples=500, generator=generator())
    assert abs((terms.value - pca.log_likelihood).mean().item()) < 0.005


def test_linear_model_is_trained_to_the_exact_likelihood():
    images, run = linear_images(), generator(3)
    pca = vae.probabilistic_pca(images.flatten(1), 2)
    many = images.repeat(5, 1, 1)  # five draws of z for each image and epoch: less noise in the gradients
    model = tiny(vae.gaussian(), hidden=())
    for lr, num_epochs in ((0.1, 30), (0.03, 40), (0.01, 40)):
        model = vae.fit(model, many, num_epochs=num_epochs, lr=lr, batch_size=500, generator=run).model
    with torch.no_grad():
        value = vae.elbo(model, images, num_samples=500, generator=generator()).value
    gap = (pca.log_likelihood - value).mean().item()
    assert -0.005 < gap < 0.05


# ---- Training


def by_hand(model, images, num_epochs, batch_size, *, lr=0.01, beta=1.0, warmup=0, free_bits=0.0, k=1):
    """The same training by torch.distributions and a plain loop, from the same random numbers; history of bounds."""
    model, run = copy.deepcopy(model), generator(9)
    torch.randint(2**62, (), generator=run)  # the seed of the validation's noise
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    bounds, step, num_steps = [], 0, -(-len(images) // batch_size)
    for _ in range(num_epochs):
        bounds.append(0.0)
        for rows in torch.randperm(len(images), generator=run).split(batch_size):
            x = images[rows]
            if model.likelihood.name == "bernoulli":
                x = (torch.rand(x.shape, generator=run, **double) < x).double()
            loc, log_var = model.encoder(x).split(2, 1)
            q, prior = Normal(loc, log_var.exp().sqrt()), Normal(torch.zeros_like(loc), 1.0)
            z = loc + q.stddev * torch.randn(k, *loc.shape, generator=run, **double)
            log_p = model.likelihood.log_prob(model.decode(z), x)
            divergence = kl_divergence(q, prior)
            if k > 1:
                log_w = log_p + (prior.log_prob(z) - q.log_prob(z)).sum(-1)
                bound = log_w.exp().mean(0).log()
                loss = -bound.mean()
            else:
                bound = log_p[0] - divergence.sum(1)
                weight = beta * min(1.0, step / (warmup * num_steps)) if warmup else beta
                paid = sum(max(free_bits, one) for one in divergence.mean(0)) if free_bits else divergence.mean(0).sum()
                loss = -(log_p.mean() - weight * paid)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            bounds[-1] += bound.sum().item() / len(images)
    return model, bounds


@pytest.mark.parametrize(
    ("settings", "hand"),
    [
        ({}, {}),
        ({"beta": 0.3}, {"beta": 0.3}),
        ({"num_warmup_epochs": 2, "beta": 2.0}, {"warmup": 2, "beta": 2.0}),
        ({"free_bits": 0.4}, {"free_bits": 0.4}),
        ({"num_importance_samples": 5}, {"k": 5}),
    ],
)
@pytest.mark.parametrize("likelihood", [vae.bernoulli(), vae.gaussian()], ids=lambda likelihood: likelihood.name)
def test_training_is_the_plain_loop(likelihood, settings, hand):
    model, images = tiny(likelihood), rand(20, 3, 4, seed=8)
    before = copy.deepcopy(model.state_dict())
    run = generator(9)
    fit = vae.fit(model, images, num_epochs=3, batch_size=8, lr=0.01, generator=run, **settings)
    expected, bounds = by_hand(model, images, 3, 8, **hand)
    torch.testing.assert_close(dict(fit.model.state_dict()), dict(expected.state_dict()), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fit.history.bound, torch.tensor(bounds, **double))
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert fit.history.validation_bound.isnan().all()
    assert fit.best_epoch == 2
    assert not fit.model.training
    if "num_importance_samples" not in settings:
        torch.testing.assert_close(fit.history.reconstruction - fit.history.kl, fit.history.bound)


def test_free_bits_keep_a_latent_in_use_and_beta_decides_how_much_it_says():
    images = (rand(300, 3, 4, seed=8) < 0.5).double()  # noise: there is nothing to say
    settings = {"num_epochs": 40, "lr": 0.02, "generator": generator()}
    kl = {
        name: vae.fit(tiny(), images, **settings, **more).history.kl[-1].item()
        for name, more in {"none": {}, "free": {"free_bits": 0.5}, "small beta": {"beta": 0.01}}.items()
    }
    assert kl["none"] < 0.15
    assert 0.8 < kl["free"] < 1.5  # two dimensions, half a nat each
    assert kl["small beta"] > 2


def test_pixels_are_drawn_anew_and_only_for_a_bernoulli():
    images = torch.full((50, 3, 4), 0.5, **double)
    settings = {"num_epochs": 1, "batch_size": 50, "generator": generator()}
    bounds = [vae.fit(tiny(), images, is_binarised=is_on, **settings).history.bound.item() for is_on in (True, False)]
    assert bounds[0] != bounds[1]
    first, second = (fit_module.binarise(images.expand(1, 50, 3, 4)[0], generator(i)) for i in (1, 2))
    assert not torch.equal(first, second)
    grey = rand(3, 4).expand(4000, 3, 4)
    near(fit_module.binarise(grey, generator()).mean(0), grey[0], (grey[0] * (1 - grey[0]) / 4000).sqrt())


def test_validation_uses_the_same_noise_and_pixels_every_time():
    images, others = rand(40, 3, 4), rand(30, 3, 4, seed=2)
    for more in ({}, {"num_importance_samples": 3}):
        still = vae.fit(tiny(), images, validation_images=others, num_epochs=3, lr=1e-15, generator=generator(), **more)
        bounds = still.history.validation_bound
        torch.testing.assert_close(bounds, bounds[:1].expand(3), rtol=1e-9, atol=0)
    again = vae.fit(tiny(), images, num_epochs=3, lr=1e-15, generator=generator(), **more)
    torch.testing.assert_close(again.history.bound, still.history.bound)  # and none of the training's


def test_validation_bound_is_the_bound():
    images, others = binary(200, seed=8), binary(100, seed=9)
    fit = vae.fit(tiny(), images, validation_images=others, num_epochs=5, lr=0.01, generator=generator())
    values = torch.stack([vae.elbo(fit.model, others, generator=generator(i)).value.detach() for i in range(50)])
    per_run = values.mean(1)
    near(fit.history.validation_bound[-1], per_run.mean(), per_run.std())


def test_early_stop_returns_the_best_epoch():
    images, others = binary(20, seed=8), binary(200, seed=9)
    settings = {"validation_images": others, "lr": 0.02, "batch_size": 20}
    stopped = vae.fit(tiny(hidden=(32,)), images, num_epochs=300, patience=4, generator=generator(), **settings)
    bounds = stopped.history.validation_bound
    assert 5 < len(bounds) < 300
    assert stopped.best_epoch == bounds.argmax() == len(bounds) - 5
    best = vae.fit(tiny(hidden=(32,)), images, num_epochs=stopped.best_epoch + 1, generator=generator(), **settings)
    torch.testing.assert_close(dict(stopped.model.state_dict()), dict(best.model.state_dict()), rtol=0, atol=0)


def test_hidden_pixels_teach_nothing():
    images, is_observed = binary(30), rand(30, 3, 4, seed=4) < 0.6
    settings = {"is_observed": is_observed, "num_epochs": 3, "batch_size": 10}
    for model in (tiny(), tiny(vae.gaussian()), tiny(vae.discretised_logistic(2))):
        fits = [
            vae.fit(model, images.where(is_observed, value), generator=generator(), **settings)
            for value in (0.0, 7.0, math.nan)
        ]
        for other in fits[1:]:
            torch.testing.assert_close(dict(fits[0].model.state_dict()), dict(other.model.state_dict()))


def test_condition_is_learned():
    labels = torch.arange(60) % 2
    condition = F.one_hot(labels, 2).double()
    images = condition[:, :1, None].expand(60, 3, 4).contiguous()
    model = tiny(condition_dim=2)
    fit = vae.fit(
        model, images, condition=condition, validation_images=images[:9], validation_condition=condition[:9],
        num_epochs=60, lr=0.02, generator=generator(),
    )  # fmt: skip
    means = fit.model.likelihood.mean(fit.model.decode(torch.zeros(2, 2, **double), torch.eye(2, **double)))
    assert means[0].min() > 0.9
    assert means[1].max() < 0.1


def test_dropout_of_the_decoder_is_on_while_training():
    model = tiny()
    model.decoder.head.insert(2, dropout.Dropout(0.5))
    images, settings = binary(40), {"num_epochs": 2, "batch_size": 10}
    first, second = (vae.fit(model, images, generator=generator(1), **settings).model for _ in range(2))
    torch.testing.assert_close(dict(first.state_dict()), dict(second.state_dict()), rtol=0, atol=0)
    model.decoder.head[2].rate = 0.0
    without = vae.fit(model, images, generator=generator(1), **settings).model
    assert not torch.equal(without.decoder.head[0].weight, first.decoder.head[0].weight)


def test_a_fit_that_fails_hands_back_what_it_had():
    images = torch.cat([rand(30, 3, 4), torch.full((1, 3, 4), 1e200, **double)])
    model, settings = tiny(vae.gaussian()), {"batch_size": 31, "lr": 1e-3}
    with pytest.raises(FailedFit, match="the bound of epoch 0 is") as failure:
        vae.fit(model, images, num_epochs=3, generator=generator(), **settings)
    assert failure.value.step == 0
    assert failure.value.fit.best_epoch == -1
    assert failure.value.fit.history.bound.shape == (0,)
    torch.testing.assert_close(dict(failure.value.fit.model.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_a_fit_that_fails_late_hands_back_the_epoch_before(monkeypatch):
    calls, right = itertools.count(), fit_module.gaussian_kl
    monkeypatch.setattr(fit_module, "gaussian_kl", lambda *q: right(*q) * (math.nan if next(calls) == 5 else 1.0))
    settings = {"batch_size": 5, "lr": 1e-3}
    with pytest.raises(FailedFit, match=r"epoch 2 .* parameters that are not finite: encoder.head.0.weight") as failure:
        vae.fit(tiny(), binary(10), num_epochs=9, generator=generator(), **settings)
    monkeypatch.undo()
    before = vae.fit(tiny(), binary(10), num_epochs=2, generator=generator(), **settings)
    found = failure.value.fit
    assert (failure.value.step, found.best_epoch) == (2, 1)
    torch.testing.assert_close(dict(found.model.state_dict()), dict(before.model.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(found.history.bound, before.history.bound, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"beta": -0.1}, "beta must be finite and not negative, got -0.1"),
        ({"beta": math.nan}, "beta must be finite and not negative, got nan"),
        ({"free_bits": -1.0}, "free_bits must be finite and not negative, got -1.0"),
        ({"num_warmup_epochs": -1}, "num_warmup_epochs must be at least 0, got -1"),
        ({"num_importance_samples": 0}, "num_importance_samples must be at least 1, got 0"),
        ({"num_importance_samples": 2, "beta": 0.5}, "num_importance_samples must be 1 with beta"),
        ({"num_importance_samples": 2, "free_bits": 0.5}, "num_importance_samples must be 1 with beta"),
        ({"patience": 3}, "patience must be None without validation_images, got 3"),
        ({"patience": 0, "validation_images": binary()}, "patience must be at least 1, got 0"),
        ({"validation_images": torch.zeros(2, 4, 3, **double)}, r"^validation_images must be \[n >= 1, 3, 4\], got"),
        ({"validation_images": binary() + 2}, r"^validation_images must be in \[0, 1\], got"),
        (
            {"validation_images": binary(), "validation_condition": torch.ones(1, 2)},
            "^validation_condition must be None",
        ),
        ({"images": torch.zeros(2, 4, 3, **double)}, r"images must be \[n >= 1, 3, 4\], got \[2, 4, 3\]"),
        ({"condition": torch.zeros(6, 1, **double)}, "condition must be None"),
        ({"is_observed": torch.ones(6, 4, 3, dtype=torch.bool)}, r"is_observed must be \[6, 3, 4\]"),
        ({"model": tiny().requires_grad_(False)}, "model must have a parameter that requires a gradient"),
    ],
)
def test_training_refuses(settings, match):
    with pytest.raises(ValueError, match=match):
        vae.fit(**({"model": tiny(), "images": binary(), "generator": generator()} | settings))


def test_training_prints_only_its_bar(capsys):
    for progress in (False, True):
        vae.fit(tiny(), binary(), num_epochs=1, progress=progress, generator=generator())
        out, err = capsys.readouterr()
        assert (out, "fit" in err) == ("", progress)


def test_the_host_waits_once_an_epoch_and_not_in_a_step():
    """As often for twelve minibatches as for two, on an accelerator."""
    syncs = []
    for num in (4, 24):
        run = torch.Generator(sim_device.DEVICE).manual_seed(0)
        model = vae.mlp_vae(2, image_shape=(3, 4), hidden=(4,), generator=run)
        images = torch.rand(num, 3, 4, generator=run, device=sim_device.DEVICE)
        with sim_device.count() as counts:
            vae.fit(model, images, num_epochs=3, batch_size=2, num_warmup_epochs=2, free_bits=0.1, generator=run)
        syncs.append(counts.host_syncs)
    assert syncs[0] == syncs[1] <= 20


# ---- Checkpoints


def long_run(path=None, num_epochs=9, **settings):
    """A run that draws everything that can be drawn; with the model, the generator's place afterwards."""
    run = generator(4)
    model = tiny(hidden=(32,))
    settings = {"validation_images": binary(100, seed=9), "patience": 20, "lr": 0.03, "batch_size": 7} | settings
    images = settings.pop("images", rand(20, 3, 4, seed=8))
    fit = vae.fit(
        settings.pop("model", model), images, num_epochs=num_epochs, checkpoint_path=path, generator=run, **settings
    )
    return fit, run


@pytest.mark.parametrize("more", [{}, {"num_importance_samples": 3}, {"patience": None}, {"num_warmup_epochs": 6}])
def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path, more):
    path = tmp_path / "run.pt"
    whole, whole_run = long_run(**more)
    for num_epochs in (2, 5, 9):
        parts, run = long_run(path, num_epochs, **more)
    torch.testing.assert_close(dict(parts.model.state_dict()), dict(whole.model.state_dict()), rtol=0, atol=0)
    for found, expected in zip(parts.history, whole.history, strict=True):
        assert torch.equal(found, expected)
    assert parts.best_epoch == whole.best_epoch
    assert torch.equal(run.get_state(), whole_run.get_state())
    assert [each.name for each in tmp_path.iterdir()] == ["run.pt"]


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    path = tmp_path / "run.pt"
    first, _ = long_run(path, 400, patience=3)
    written = path.read_bytes()
    again, _ = long_run(path, 400, patience=3)
    assert len(first.history.bound) < 400
    assert again.best_epoch == first.best_epoch == len(first.history.bound) - 4
    torch.testing.assert_close(dict(again.model.state_dict()), dict(first.model.state_dict()), rtol=0, atol=0)
    assert path.read_bytes() == written


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"model": tiny(hidden=(31,))}, "architecture"),
        ({"model": tiny(hidden=(32,), latent_dim=3)}, "architecture"),
        ({"model": tiny(vae.continuous_bernoulli(), hidden=(32,))}, "architecture"),
        ({"images": rand(20, 3, 4, seed=9)}, "images"),
        ({"validation_images": binary(100, seed=8)}, "images"),
        ({"lr": 0.02}, "settings"),
        ({"beta": 0.5}, "settings"),
        ({"batch_size": 8}, "settings"),
        ({"num_importance_samples": 2}, "settings"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path, settings, part):
    path = tmp_path / "run.pt"
    long_run(path, 2)
    written = path.read_bytes()
    with pytest.raises(ValueError, match=f"checkpoint_path must be a file of the same {part}, .*run.pt is of other"):
        long_run(path, 3, **settings)
    assert path.read_bytes() == written


def test_a_damaged_checkpoint_is_refused_and_kept(tmp_path):
    path = tmp_path / "run.pt"
    long_run(path, 2)
    whole = path.read_bytes()
    other = tmp_path / "other.pt"
    torch.save({"weights": torch.ones(2)}, other)
    weights = torch.load(path, weights_only=True)["model"]["decoder.head.0.weight"].numpy().tobytes()
    at = whole.index(weights) + len(weights) // 2
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for damaged in (whole[: len(whole) // 2], whole[:-1], b"", b"not a checkpoint", other.read_bytes(), flipped):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint_path must be a whole file written by fit, .*run.pt is not"):
            long_run(path, 3)
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="num_epochs must be at least the checkpoint's 2, got 1"):
        long_run(path, 1)
    assert path.read_bytes() == whole


def test_a_run_killed_while_writing_leaves_the_file_before(tmp_path, monkeypatch):
    path, right = tmp_path / "run.pt", torch.save
    long_run(path, 2)
    written = path.read_bytes()

    def half(state, target):
        right(state, target)
        target.write_bytes(target.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        long_run(path, 3)
    monkeypatch.undo()
    assert path.read_bytes() == written
    assert [each.name for each in tmp_path.iterdir()] == ["run.pt"]
    whole, _ = long_run(num_epochs=3)
    torch.testing.assert_close(dict(long_run(path, 3)[0].model.state_dict()), dict(whole.model.state_dict()))
