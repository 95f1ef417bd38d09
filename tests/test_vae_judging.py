"""bdl_lib.vae, judging and using a model: evidence, gaps, diagnostics, images, imputation, stochastic decoders.

Two models have exact answers. Images of 3 x 3 binary pixels with two latents: there are 512 of them, and a sum over the
plane gives the probability of each. And linear decoders with Gaussian pixels: everything is Gaussian. Where a test
draws at random, it is seeded; a test of a right function fails by bad luck with a probability of at most 0.01.
"""

import itertools
import math

import numpy as np
import oracles
import pytest
import torch
from scipy import optimize, stats
from torch import nn
from torch.distributions import MultivariateNormal

from bdl_lib import dropout, evidence, vae
from bdl_lib.vae import annealing, importance, imputation

f64 = torch.float64
nan = math.nan


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=f64)


def tensor(values):
    return torch.tensor(values, dtype=f64)


def close(actual, expected, *, rtol=1e-9, atol=1e-9):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=atol)


def fixed(model, scale, seed):
    """Weights from a seed, in double precision."""
    model = model.double().eval()
    for i, parameter in enumerate(model.parameters()):
        with torch.no_grad():
            parameter.copy_(scale * randn(*parameter.shape, seed=1000 * seed + i))
    return model


# ---- Binary images, 3 x 3

SHAPE = (3, 3)
ALL_IMAGES = tensor(list(itertools.product([0.0, 1.0], repeat=9))).view(512, *SHAPE)
SOME = torch.arange(0, 512, 13)  # 40 of them
X = ALL_IMAGES[:3]
CELLS = (torch.arange(90, dtype=f64) - 44.5) * 0.15
PLANE = torch.cartesian_prod(CELLS, CELLS)
LOG_WEIGHTS = tensor(stats.norm.logpdf(PLANE).sum(1)) + 2 * math.log(0.15)


def binary_model(condition_dim=0, encoder_scale=0.4):
    """A smooth decoder whose two latents matter; the encoder was never trained."""
    head = nn.Sequential(nn.Linear(2 + condition_dim, 6), nn.Tanh(), nn.Linear(6, 9))
    decoder = fixed(vae.Decoder(head, nn.Unflatten(1, (1, *SHAPE)), condition_dim), 1.1, seed=1)
    encoder = fixed(vae.Encoder(nn.Flatten(), nn.Linear(9 + condition_dim, 4), condition_dim), encoder_scale, seed=2)
    shape = {"latent_dim": 2, "image_shape": SHAPE, "condition_dim": condition_dim}
    return vae.Vae(encoder, decoder, vae.bernoulli(), **shape).eval()


def log_prob_in_cells(model, images, condition=None):
    """log p(x | z) in the middle of every cell, [cells, n]."""
    inputs = PLANE if condition is None else torch.cat([PLANE, condition.expand(len(PLANE), -1)], 1)
    with torch.no_grad():
        prob = model.decoder.head(inputs).sigmoid()
    pixels = images.flatten(1).T
    return prob.log() @ pixels + (-prob).log1p() @ (1 - pixels)


def by_cells(model, images, condition=None):
    """log p(x)."""
    return (log_prob_in_cells(model, images, condition) + LOG_WEIGHTS[:, None]).logsumexp(0)


# ---- Linear decoders, Gaussian pixels


def linear_model(latent_dim=2, image_shape=(2, 4), seed=3):
    settings = {"image_shape": image_shape, "hidden": (), "likelihood": vae.gaussian(), "dtype": f64}
    model = fixed(vae.mlp_vae(latent_dim, generator=seeded(), **settings), 0.5, seed)
    with torch.no_grad():
        model.decoder.log_var.fill_(2 * math.log(0.6))
    return model


def parts(model):
    """Loadings W, offset b, noise variance."""
    head = model.decoder.head[0]
    return head.weight.detach(), head.bias.detach(), model.decoder.log_var.detach().exp()


def linear_log_evidence(model, images):
    loadings, offset, noise_var = parts(model)
    cov = loadings @ loadings.T + noise_var * torch.eye(len(loadings), dtype=f64)
    return MultivariateNormal(offset, cov).log_prob(images.flatten(1))


def linear_posterior(model, images, temperature=1.0):
    """Means [n, latent_dim], and the precision matrix that all images share."""
    loadings, offset, noise_var = parts(model)
    prec = torch.eye(loadings.shape[1], dtype=f64) + temperature * loadings.T @ loadings / noise_var
    residual = temperature * (images.flatten(1) - offset) @ loadings / noise_var
    return torch.linalg.solve(prec, residual.T).T, prec


def latents_behind(model, images):
    """The latents whose means these images are."""
    loadings, offset, _ = parts(model)
    return (images.flatten(-2) - offset) @ torch.linalg.pinv(loadings).T


def z_scores(found, exact):
    return (found.value - exact) / found.std_error


def check_z(z, largest=4.5, rms=1.4):
    assert z.abs().max() < largest
    assert z.square().mean().sqrt() < rms


# ---- Exact evidence


@pytest.mark.filterwarnings("ignore::bdl_lib.evidence.UnreliableEvidence")
def test_probabilities_of_all_images_add_to_one_and_are_those_of_a_plain_sum():
    model = binary_model()
    found = vae.exact_log_evidence(model, ALL_IMAGES, num_points=51)
    close(found.exp().sum(), 1.0, rtol=1e-6)
    close(found[SOME], by_cells(model, ALL_IMAGES[SOME]), atol=1e-4)
    close(vae.exact_log_evidence(model, ALL_IMAGES[:4]), by_cells(model, ALL_IMAGES[:4]), atol=1e-7)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_exact_evidence_of_a_linear_decoder(latent_dim):
    model, images = linear_model(latent_dim), randn(5, 2, 4, seed=4)
    close(vae.exact_log_evidence(model, images), linear_log_evidence(model, images))


def test_exact_evidence_with_a_condition_for_each_image():
    model, condition = binary_model(condition_dim=2), randn(3, 2, seed=5)
    found = vae.exact_log_evidence(model, ALL_IMAGES[40:43], condition=condition)
    for i in range(3):
        close(found[i], by_cells(model, ALL_IMAGES[40 + i : 41 + i], condition[i])[0], atol=1e-6)


@pytest.mark.filterwarnings("ignore::bdl_lib.evidence.UnreliableEvidence")
@pytest.mark.parametrize(("settings", "message"), [({"num_points": 5}, "num_points"), ({"half_width": 0.5}, "edge")])
def test_a_grid_too_coarse_or_too_small_warns(settings, message):
    with pytest.warns(evidence.UnreliableEvidence, match=message):
        vae.exact_log_evidence(binary_model(), ALL_IMAGES[:3], **settings)


# ---- Annealing


def test_annealing_agrees_with_quadrature_within_its_errors():
    model, images = binary_model(), ALL_IMAGES[SOME]
    found = vae.annealed_log_evidence(model, images, num_temperatures=40, num_chains=32, generator=seeded())
    assert found.std_error.max() < 0.5
    check_z(z_scores(found, by_cells(model, images)))
    assert ((found.ess > 5) & (found.ess <= 32)).all()


def test_weights_average_to_the_evidence_with_few_temperatures_and_long_steps(monkeypatch):
    """A step that is not reversible, or not accepted by the right rule, shows here as a bias."""
    monkeypatch.setattr(annealing, "_TARGET_ACCEPTANCE_RATE", 0.3)
    model, images = linear_model(latent_dim=3), 0.8 * randn(4, 2, 4, seed=6)
    found = vae.annealed_log_evidence(model, images, num_temperatures=12, num_chains=4000, generator=seeded())
    assert 0.01 < found.std_error.max() < 0.1
    check_z(z_scores(found, linear_log_evidence(model, images)), rms=2.0)


def test_annealing_of_one_image_agrees_with_the_evidence_module():
    model, image = binary_model(), ALL_IMAGES[77]
    ours = vae.annealed_log_evidence(model, image[None], num_chains=64, num_temperatures=50, generator=seeded())
    arguments = vae.latent_prior(model), vae.image_log_likelihood(model, image)
    theirs = evidence.annealed_importance_sampling(*arguments, num_particles=256, target_cess=0.95, generator=seeded())
    error = (ours.std_error[0].square() + theirs.std_error.square()).sqrt()
    assert error < 0.15
    assert abs(ours.value[0] - theirs.value) < 3.5 * error
    assert abs(theirs.value - by_cells(model, image[None])[0]) < 3.5 * theirs.std_error


def test_an_hmc_step_leaves_exact_draws_exact():
    model, images, temperature, num = linear_model(latent_dim=2), randn(2, 2, 4, seed=7), 0.4, 5000
    mean, prec = linear_posterior(model, images, temperature)
    factor = torch.linalg.cholesky(torch.linalg.inv(prec))
    latents = mean + randn(num, 2, 2, seed=8) @ factor.T
    density = annealing._density(model, images, None, None)
    chains, generator = annealing._Chains(latents, randn(num, 2, 2, seed=9), *density(latents)), seeded()
    for _ in range(5):
        chains, rate = annealing._move(density, chains, temperature, tensor([[0.9], [0.5]]), generator)
    assert ((rate.mean(0) > 0.3) & (rate.mean(0) < 0.99)).all()
    close(chains.log_likelihood, density(chains.latents)[0])
    close(chains.grad, density(chains.latents)[1])
    white = (chains.latents - mean) @ torch.linalg.inv(factor).T
    for values in (white, chains.momentum):
        for image, dim in itertools.product(range(2), range(2)):
            assert stats.kstest(values[:, image, dim].numpy(), "norm").pvalue > 1e-4
    together = torch.cat([white, chains.momentum], -1)
    for image in range(2):
        correlation = torch.corrcoef(together[:, image].T) - torch.eye(4, dtype=f64)
        assert correlation.abs().max() < 4.5 / math.sqrt(num)


def test_the_counted_chains_do_not_move_the_step_size(monkeypatch):
    model, images, steps = binary_model(), ALL_IMAGES[:2], []
    move = annealing._move

    def watched(density, chains, temperature, step_size, generator):
        steps.append(step_size)
        return move(density, chains, temperature, step_size, generator)

    monkeypatch.setattr(annealing, "_move", watched)
    start = randn(10, 2, 2, seed=10)
    for shift in (0.0, 5.0):
        other = torch.cat([start[:4], start[4:] + shift])
        annealing._anneal(annealing._density(model, images, None, None), other, [0.0, 0.1, 0.5, 1.0], seeded())
    assert len(steps) == 4
    assert not torch.equal(steps[0], steps[1])
    close(steps[1], steps[3], rtol=0, atol=0)


def test_annealing_with_missing_pixels_and_a_condition():
    """The evidence of the seen pixels is the sum over what the others could be."""
    model, condition = binary_model(condition_dim=1), tensor([[0.7], [-1.0]])
    is_observed = torch.ones(2, *SHAPE, dtype=torch.bool)
    is_observed[:, 0] = False
    images = ALL_IMAGES[[100, 307]]
    settings = {"condition": condition, "is_observed": is_observed, "num_chains": 200, "num_temperatures": 20}
    found = vae.annealed_log_evidence(model, images.where(is_observed, nan), generator=seeded(), **settings)
    for i in range(2):
        same = (ALL_IMAGES[:, 1:] - images[i, 1:]).abs().sum((1, 2)) == 0
        exact = by_cells(model, ALL_IMAGES[same], condition[i]).logsumexp(0)
        assert abs(found.value[i] - exact) < 4 * found.std_error[i] < 0.5


def test_blocks_of_images_change_the_draws_only():
    model, images = binary_model(), ALL_IMAGES[SOME]
    settings = {"num_temperatures": 15, "num_chains": 100, "generator": seeded()}
    found = vae.annealed_log_evidence(model, images, memory_bytes=2**20, **settings)
    check_z(z_scores(found, by_cells(model, images)))
    with pytest.raises(ValueError, match=r"memory_bytes must be at least \d+ for the chains of one image, got 100"):
        vae.annealed_log_evidence(model, images, memory_bytes=100, **settings)


def test_an_impossible_likelihood_has_no_weight():
    log_weights = tensor([[0.0, -math.inf], [-math.inf, math.log(3)], [math.log(2), -math.inf]])
    found = importance.evidence_of(*importance.log_sums(log_weights), len(log_weights))
    close(found.value, [0.0, 0.0], atol=1e-12)
    close(found.ess, [9 / 5, 1.0])
    for i in range(2):
        close(found.std_error[i], log_weights[:, i].exp().std() / math.sqrt(3))
    likelihood = vae.bernoulli()._replace(log_prob=lambda outputs, images, seen=None: outputs.sum((-3, -2, -1)).sqrt())
    model = binary_model()
    model.likelihood = likelihood
    value, _ = annealing._density(model, ALL_IMAGES[:1], None, None)(randn(50, 1, 2))
    assert (value == -math.inf).any()
    assert not value.isnan().any()


def test_likelihood_and_prior_serve_other_estimators():
    model, image, condition = binary_model(condition_dim=2), ALL_IMAGES[300], tensor([0.3, -0.8])
    prior, log_likelihood = vae.latent_prior(model), vae.image_log_likelihood(model, image, condition)
    box = tensor([-6.0, -6.0]), tensor([6.0, 6.0])
    found = evidence.grid_quadrature(lambda z: prior.log_prob(z) + log_likelihood(z), *box, num_points=60)
    close(found.value, by_cells(model, image[None], condition)[0], atol=1e-6)
    assert not log_likelihood(randn(3, 2)).requires_grad
    latents = randn(3, 2).requires_grad_()
    (grad,) = torch.autograd.grad(log_likelihood(latents).sum(), latents)
    step = tensor([[1e-6, 0.0]])
    with torch.no_grad():
        slope = (log_likelihood(latents + step) - log_likelihood(latents - step)) / 2e-6
    close(grad[:, 0], slope, atol=1e-6)
    close(prior.log_prob(tensor([[1.0, 2.0]])), [stats.multivariate_normal(np.zeros(2)).logpdf([1.0, 2.0])])


# ---- Gaps


def test_gaps_of_a_linear_decoder_are_those_of_gaussians():
    model, images = linear_model(latent_dim=3), randn(6, 2, 4, seed=11)
    exact, (mean, prec) = linear_log_evidence(model, images), linear_posterior(model, images)
    cov = torch.linalg.inv(prec)
    best_var = 1 / prec.diagonal()
    approximation = oracles.gaussian_kl(np.zeros(3), best_var.diag().numpy(), np.zeros(3), cov.numpy())
    with torch.no_grad():
        q = model.encode(images)
    total = [
        oracles.gaussian_kl(q.loc[i].numpy(), q.log_var[i].exp().diag().numpy(), mean[i].numpy(), cov.numpy())
        for i in range(6)
    ]
    found = vae.inference_gaps(model, images, num_samples=2000, num_steps=200, generator=seeded())
    close(found.best.loc, mean, atol=0.02)
    close(found.best.log_var, best_var.log().expand(6, 3), atol=0.05)
    check_z((found.approximation - approximation) / found.approximation_std_error, rms=1.6)
    check_z((found.amortisation - (tensor(total) - approximation)) / found.amortisation_std_error, rms=1.6)
    check_z(z_scores(found.log_evidence, exact), rms=1.6)
    assert found.approximation_std_error.max() < 0.05


def test_the_three_parts_add_up_and_the_model_stays_as_it_was():
    model, images = binary_model(), ALL_IMAGES[SOME]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = vae.inference_gaps(model, images, num_samples=500, generator=seeded())
    close(found.encoder_elbo + found.amortisation + found.approximation, found.log_evidence.value)
    close(found.best_elbo + found.approximation, found.log_evidence.value)
    assert (found.amortisation > 0.05).all()
    check_z(z_scores(found.log_evidence, by_cells(model, images)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_best_gaussian_is_the_one_that_quadrature_and_another_optimiser_find():
    model, image = binary_model(), ALL_IMAGES[410:411]
    weights = LOG_WEIGHTS.exp()

    def negative_elbo(x):
        loc, std = x[:2], np.exp(0.5 * x[2:])
        with torch.no_grad():
            logits = model.decoder.head(tensor(loc) + tensor(std) * PLANE[::2])  # in every second cell
        log_prob = nn.functional.logsigmoid((2 * image.flatten() - 1) * logits).sum(1)
        reconstruction = (weights[::2] @ log_prob / weights[::2].sum()).item()
        return oracles.gaussian_kl(loc, np.diag(std**2), np.zeros(2), np.eye(2)) - reconstruction

    best = optimize.minimize(negative_elbo, np.zeros(4), method="BFGS")
    found = vae.inference_gaps(model, image, num_samples=8000, num_steps=400, generator=seeded())
    assert abs(found.best_elbo[0] + best.fun) < 0.04
    assert negative_elbo(torch.cat([found.best.loc[0], found.best.log_var[0]]).numpy()) - best.fun < 0.02
    exact = by_cells(model, image)[0]
    assert abs(found.approximation[0] - (exact + best.fun)) < 3.5 * found.approximation_std_error[0] + 0.02


def test_gaps_in_blocks_with_a_condition(monkeypatch):
    from bdl_lib.vae import gaps

    model, images, condition = binary_model(condition_dim=1), ALL_IMAGES[SOME], randn(40, 1, seed=12)
    monkeypatch.setattr(gaps, "_CPU_ROWS", 64)  # five blocks
    found = vae.inference_gaps(model, images, num_steps=30, num_samples=300, condition=condition, generator=seeded())
    exact = torch.cat([by_cells(model, images[i : i + 1], condition[i]) for i in range(40)])
    check_z(z_scores(found.log_evidence, exact), rms=1.5)
    assert found.best.loc.shape == (40, 2)


# ---- Active units and information


class Table(nn.Module):
    """An encoder for images of one row of pixels, which are its outputs."""

    def forward(self, images):
        return images.flatten(1)


def table_model(latent_dim):
    """A model whose images say the encoder's answer: first the means, then the log variances."""
    decoder = fixed(nn.Sequential(nn.Linear(latent_dim, 4 * latent_dim), nn.Unflatten(1, (2, 1, -1))), 1.0, seed=13)
    likelihood = vae.gaussian(has_shared_scale=False)
    return vae.Vae(Table(), decoder, likelihood, latent_dim=latent_dim, image_shape=(1, 2 * latent_dim))


def test_active_units_are_those_whose_means_vary():
    loc = randn(300, 3, seed=14) * tensor([1.0, 0.11, 0.08]) + tensor([0.0, 5.0, 5.0])
    images = torch.cat([loc, randn(300, 3, seed=15)], 1)[:, None]
    found = vae.active_units(table_model(3), images)
    close(found.variance, np.var(loc.numpy(), axis=0, ddof=1))
    assert found.is_active.tolist() == [True, True, False]
    assert found.num_active == 2
    assert vae.active_units(table_model(3), images, threshold=0.5).is_active.tolist() == [True, False, False]


def test_information_of_a_mixture_by_quadrature():
    loc, std = np.array([-1.0, 0.3, 1.8]), np.array([0.5, 0.9, 0.2])
    z = np.linspace(-12, 12, 20_001)
    densities = stats.norm.pdf(z[:, None], loc, std)
    mixture = densities.mean(1, keepdims=True)
    safe = np.where(densities > 0, densities, 1.0)
    exact = (densities * np.log(safe / mixture)).sum(0).mean() * (z[1] - z[0])
    aggregate = (mixture[:, 0] * np.log(mixture[:, 0] / stats.norm.pdf(z))).sum() * (z[1] - z[0])
    images = torch.stack([tensor(loc), 2 * tensor(std).log()], 1)[:, None]
    found = vae.mutual_information(table_model(1), images, num_samples=20_000, generator=seeded())
    assert found.std_error < 0.005
    assert abs(found.value - exact) < 3.5 * found.std_error
    assert abs(found.aggregate_kl - aggregate) < 3.5 * found.std_error
    kl = [oracles.gaussian_kl(loc[i : i + 1], std[i : i + 1, None] ** 2, np.zeros(1), np.eye(1)) for i in range(3)]
    close(found.mean_kl, np.mean(kl))
    close(found.value + found.aggregate_kl, found.mean_kl)


def test_information_at_its_bounds():
    far = torch.stack([100.0 * torch.arange(50, dtype=f64), torch.zeros(50, dtype=f64)], 1)[:, None]
    found = vae.mutual_information(table_model(1), far, generator=seeded())
    close(found.value, math.log(50))
    assert found.upper_bound == math.log(50)
    collapsed = vae.mutual_information(table_model(1), torch.zeros(50, 1, 2, dtype=f64), generator=seeded())
    close(collapsed.value, 0.0)
    close(collapsed.mean_kl, 0.0)


def test_information_has_the_error_that_it_says_and_needs_no_memory():
    images = randn(20, 1, 4, seed=16)
    settings = {"num_samples": 4, "memory_bytes": 3000}
    found = [vae.mutual_information(table_model(2), images, generator=seeded(i), **settings) for i in range(80)]
    values, errors = torch.stack([each.value for each in found]), torch.stack([each.std_error for each in found])
    assert 0.75 < values.std() / errors.mean() < 1.3
    whole = vae.mutual_information(table_model(2), images, num_samples=4, generator=seeded(3))
    close(whole.value, found[3].value)


# ---- Imputation

MISSING = (1, 4, 6)  # of nine pixels


def hole(num=1):
    is_missing = torch.zeros(9, dtype=torch.bool)
    is_missing[list(MISSING)] = True
    return is_missing.view(1, *SHAPE).repeat(num, 1, 1)


def fillings(image):
    """The eight images that it could be."""
    found = image.flatten().repeat(8, 1)
    found[:, list(MISSING)] = tensor(list(itertools.product([0.0, 1.0], repeat=3)))
    return found.view(8, *SHAPE)


def pattern_counts(draws):
    pixels = draws.flatten(-2)[..., list(MISSING)].reshape(-1, 3).long()
    return torch.bincount(pixels @ torch.tensor([4, 2, 1]), minlength=8).numpy()


def chi_square_pvalue(draws, model, image):
    log_prob = by_cells(model, fillings(image))
    expected = len(draws) * log_prob.softmax(0)
    return stats.chisquare(pattern_counts(draws), expected.numpy()).pvalue


IMAGE = ALL_IMAGES[346]


def test_imputations_have_the_exact_conditional_distribution():
    """The encoder was never trained; pseudo-Gibbs alone must be seen to go wrong with it."""
    model, num = binary_model(), 4000
    settings = {"num_steps": 60, "num_pseudo_steps": 5, "num_chains": num}
    found = vae.impute(model, IMAGE.where(~hole()[0], nan)[None], hole(), generator=seeded(), **settings)
    assert chi_square_pvalue(found.draws[:, 0], model, IMAGE) > 0.001
    assert 0.05 < found.acceptance_rate[0] < 0.95
    is_seen = ~hole()[0]
    assert torch.equal(found.draws[:, 0, is_seen], IMAGE[is_seen].expand(num, -1))
    assert torch.equal(found.mean[0, is_seen], IMAGE[is_seen])
    prob = by_cells(model, fillings(IMAGE)).softmax(0)
    exact = (prob[:, None, None] * fillings(IMAGE)).sum(0)
    close(found.mean[0], exact, rtol=0, atol=0.01)

    wrong = vae.impute(model, IMAGE[None], hole(), generator=seeded(), **settings | {"num_pseudo_steps": 60})
    assert chi_square_pvalue(wrong.draws[:, 0], model, IMAGE) < 1e-6
    assert wrong.acceptance_rate[0] == 1


def exact_chains(model, image, num, generator):
    """Draws from p(z, x_m | x_o): a cell of the plane, then pixels."""
    log_joint = log_prob_in_cells(model, fillings(image)).logsumexp(1) + LOG_WEIGHTS
    latents = PLANE[torch.multinomial(log_joint.softmax(0), num, replacement=True, generator=generator)]
    outputs = model.decode(latents)
    images = image.expand(num, *SHAPE)
    filled = torch.where(hole(num), model.likelihood.sample(outputs, generator=generator), images)
    return imputation._Chains(filled, latents, outputs)


@torch.no_grad()
def test_a_corrected_step_leaves_exact_draws_exact_and_the_other_does_not():
    model, generator, num = binary_model(), seeded(), 20_000
    for is_corrected in (True, False):
        chains = exact_chains(model, IMAGE, num, generator)
        mean, std = chains.latents.mean(0), chains.latents.std(0)
        for _ in range(10):
            chains, _ = imputation._step(model, chains, hole(num), None, is_corrected, generator)
        z = (chains.latents.mean(0) - mean) / (std * math.sqrt(2 / num))
        is_right = bool((z.abs() < 4.5).all()) and chi_square_pvalue(chains.images, model, IMAGE) > 0.001
        assert is_right == is_corrected
        close(chains.outputs, model.decode(chains.latents))


def test_imputation_of_many_images_with_conditions_fits_each():
    model, condition = binary_model(condition_dim=1), tensor([[0.5], [-0.5]])
    images = torch.stack([IMAGE, ALL_IMAGES[25]])
    settings = {"num_steps": 120, "num_pseudo_steps": 10, "num_chains": 1500, "condition": condition}
    found = vae.impute(model, images, hole(2), generator=seeded(), **settings)
    for i in range(2):
        prob = by_cells(model, fillings(images[i]), condition[i]).softmax(0)
        exact = (prob[:, None, None] * fillings(images[i])).sum(0)
        close(found.mean[i], exact, rtol=0, atol=0.03)
        assert stats.chisquare(pattern_counts(found.draws[:, i]), (1500 * prob).numpy()).pvalue > 0.001


def test_imputation_of_gaussian_pixels_is_gaussian_conditioning():
    model = linear_model(latent_dim=2)
    loadings, offset, noise_var = parts(model)
    cov = loadings @ loadings.T + noise_var * torch.eye(8, dtype=f64)
    image, is_missing = randn(8, seed=17), torch.arange(8) < 2
    seen, lost = ~is_missing, is_missing
    gain = cov[lost][:, seen] @ torch.linalg.inv(cov[seen][:, seen])
    mean = offset[lost] + gain @ (image - offset)[seen]
    var = (cov[lost][:, lost] - gain @ cov[seen][:, lost]).diagonal()
    settings = {"num_steps": 80, "num_chains": 2000, "generator": seeded()}
    found = vae.impute(model, image.view(1, 2, 4), is_missing.view(1, 2, 4), **settings)
    white = (found.draws.flatten(1)[:, lost] - mean) / var.sqrt()
    for dim in range(2):
        assert stats.kstest(white[:, dim].numpy(), "norm").pvalue > 0.001


# ---- Images from a model


def test_draws_from_the_prior_have_the_models_moments():
    model, num = linear_model(), 40_000
    loadings, offset, noise_var = parts(model)
    for is_sampled in (True, False):
        found = vae.sample_prior(model, num, generator=seeded(), is_sampled=is_sampled).flatten(1)
        cov = loadings @ loadings.T + is_sampled * noise_var * torch.eye(8, dtype=f64)
        close(found.mean(0), offset, atol=4.5 * cov.diagonal().max().sqrt().item() / math.sqrt(num))
        close(found.T.cov(), cov, rtol=0, atol=4.5 * 2 * cov.diagonal().max().item() / math.sqrt(num))
    assert torch.equal(found, vae.sample_prior(model, num, generator=seeded()).flatten(1))


def test_draws_from_the_posterior_have_the_encoders_moments():
    model, images, num = linear_model(), randn(3, 2, 4, seed=18), 20_000
    loadings, offset, noise_var = parts(model)
    with torch.no_grad():
        q = model.encode(images)
    for is_sampled in (True, False):
        found = vae.sample_posterior(model, images, num, generator=seeded(), is_sampled=is_sampled).flatten(2)
        var = q.log_var.exp() @ loadings.T.square() + is_sampled * noise_var
        z = (found.mean(0) - q.loc @ loadings.T - offset) / (var / num).sqrt()
        assert z.abs().max() < 4.5
        assert (found.var(0) / var - 1).abs().max() < 4.5 * math.sqrt(2 / num)


def test_reconstructions_come_from_the_mean_of_the_latent():
    model, images, condition = binary_model(condition_dim=2), ALL_IMAGES[:4], randn(4, 2, seed=19)
    with torch.no_grad():
        loc = model.encoder(images, condition)[:, :2]
        prob = model.decoder(loc, condition)[:, 0].sigmoid()
    close(vae.reconstruct(model, images, condition=condition), prob)
    drawn = vae.reconstruct(model, images, condition=condition, generator=seeded())
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    many = vae.reconstruct(
        model, images[:1].repeat(20_000, 1, 1), condition=condition[:1].repeat(20_000, 1), generator=seeded()
    )
    z = (many.mean(0) - prob[0]) / (prob[0] * (1 - prob[0]) / 20_000).sqrt()
    assert z.abs().max() < 4.5


def test_paths_between_images_are_lines_or_arcs():
    model, first, second = linear_model(latent_dim=3), randn(4, 2, 4, seed=20), randn(4, 2, 4, seed=21)
    with torch.no_grad():
        start, end = model.encode(first).loc, model.encode(second).loc
    line = vae.interpolate(model, first, second, num_steps=5)
    close(latents_behind(model, line), torch.stack([start + t * (end - start) for t in (0, 0.25, 0.5, 0.75, 1)]))
    arc = latents_behind(model, vae.interpolate(model, first, second, num_steps=5, is_spherical=True))
    close(arc[0], start)
    close(arc[-1], end)
    # On the unit sphere of the plane of the two, an arc turns by equal angles.
    basis = torch.stack([start, end], -1)
    coefficients = torch.linalg.lstsq(basis, arc.permute(1, 2, 0)).solution  # [n, 2, steps]
    unit = basis / basis.norm(dim=1, keepdim=True) @ coefficients
    close(unit.norm(dim=1), torch.ones(4, 5))
    cosines = (unit[..., 1:] * unit[..., :-1]).sum(1)
    close(cosines, cosines[:, :1].expand(-1, 4))
    same = vae.interpolate(model, first, first, num_steps=3, is_spherical=True)
    close(same, vae.reconstruct(model, first).expand(3, -1, -1, -1))


def test_a_traverse_changes_one_coordinate():
    model, image = linear_model(latent_dim=3), randn(2, 4, seed=22)
    with torch.no_grad():
        loc = model.encode(image[None]).loc[0]
    found = latents_behind(model, vae.traverse(model, image, 1, tensor([-2.0, 0.5])))
    close(found, [[loc[0], -2.0, loc[2]], [loc[0], 0.5, loc[2]]])


def test_a_latent_grid_is_a_map_in_steps_of_equal_probability():
    model = linear_model()
    found = latents_behind(model, vae.latent_grid(model, 4))
    cdf = stats.norm.cdf(found.numpy())
    steps = np.array([1, 3, 5, 7]) / 8
    np.testing.assert_allclose(cdf[..., 0], np.tile(steps, (4, 1)), rtol=1e-9)
    np.testing.assert_allclose(cdf[..., 1], np.tile(steps[::-1, None], (1, 4)), rtol=1e-9)


def test_conditions_reach_every_image():
    model, row = binary_model(condition_dim=2), tensor([1.0, -2.0])
    with torch.no_grad():
        loc = model.encode(IMAGE[None], row[None]).loc.repeat(2, 1)
        loc[:, 0] = tensor([0.0, 1.0])
        expected = model.decode(loc, row.expand(2, -1))[:, 0].sigmoid()
    close(vae.traverse(model, IMAGE, 0, tensor([0.0, 1.0]), condition=row), expected)
    with torch.no_grad():
        centre = model.decode(torch.zeros(1, 2, dtype=f64), row[None])[0, 0].sigmoid()
    close(vae.latent_grid(model, 3, condition=row)[1, 1], centre)
    rows = randn(3, 2, seed=23)
    ends = vae.interpolate(model, ALL_IMAGES[:3], ALL_IMAGES[3:6], num_steps=2, condition=rows)
    close(ends[1], vae.reconstruct(model, ALL_IMAGES[3:6], condition=rows))
    assert vae.sample_prior(model, 3, generator=seeded(), condition=rows).shape == (3, *SHAPE)
    assert vae.sample_posterior(model, ALL_IMAGES[:3], 2, generator=seeded(), condition=rows).shape == (2, 3, *SHAPE)


# ---- Stochastic decoders


def test_passes_are_those_of_all_masks():
    """Six hidden units: 64 masks, the moments of whose decoders are known."""
    model = vae.stochastic_decoder(binary_model(), 0.3)
    latents, num = randn(3, 2, seed=24), 20_000
    found = vae.decode_passes(model, latents, num_passes=num, generator=seeded())
    masks = tensor(list(itertools.product([0.0, 1.0], repeat=6)))
    prob = (masks * math.log(0.7) + (1 - masks) * math.log(0.3)).sum(1).exp()
    first, _, _, last = model.decoder.head
    with torch.no_grad():
        exact = last(first(latents).tanh() * masks[:, None] / 0.7).sigmoid().view(64, 3, *SHAPE)
    mean = torch.einsum("m,mnij->nij", prob, exact)
    std = torch.einsum("m,mnij->nij", prob, (exact - mean).square()).sqrt()
    assert ((found.mean - mean) / (std / math.sqrt(num))).abs().max() < 4.5
    close(found.std, std, rtol=0.05)
    close(found.mean, found.images.mean(0))


def test_a_pass_is_one_decoder_unless_told_otherwise():
    model = vae.stochastic_decoder(binary_model(condition_dim=1), 0.5)
    settings = {"num_passes": 30, "condition": tensor([[1.0], [1.0]]), "generator": seeded()}
    found = vae.decode_passes(model, tensor([[0.5, -0.5], [0.5, -0.5]]), **settings).images
    assert torch.equal(found[:, 0], found[:, 1])
    assert not torch.equal(found[0], found[1])
    found = vae.decode_passes(model, tensor([[0.5, -0.5], [0.5, -0.5]]), is_shared=False, **settings).images
    assert not torch.equal(found[:, 0], found[:, 1])


def test_a_stochastic_decoder_predicts_as_before_and_leaves_the_model():
    model = binary_model()
    copy, latents = vae.stochastic_decoder(model, 0.4), randn(5, 2, seed=25)
    assert torch.equal(copy.decode(latents), model.decode(latents))
    assert not dropout.stochastic_layers(model)
    assert [type(layer) for layer in dropout.stochastic_layers(copy).values()] == [dropout.Dropout]
    assert not dropout.stochastic_layers(copy.encoder)
    assert copy.decoder.head[0].weight is not model.decoder.head[0].weight


def test_convolutions_drop_channels():
    settings = {"image_shape": (8, 8), "channels": (3, 4), "hidden": (5,), "generator": seeded()}
    model = vae.stochastic_decoder(vae.conv_vae(2, **settings), 0.4)
    kinds = [type(layer).__name__ for layer in dropout.stochastic_layers(model).values()]
    assert kinds == ["Dropout", "Dropout", "ChannelDropout"]
    found = vae.decode_passes(model, torch.ones(2, 2), num_passes=3, generator=seeded())
    assert found.images.shape == (3, 2, 8, 8)
    assert (found.std > 0).any()


def test_evidence_under_many_decoders_is_that_of_each():
    """One hidden unit: two decoders, with the unit and without it."""
    head = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 9))
    decoder = fixed(vae.Decoder(head, nn.Unflatten(1, (1, *SHAPE))), 1.1, seed=26)
    encoder = fixed(vae.Encoder(nn.Flatten(), nn.Linear(9, 4)), 0.1, seed=27)
    plain = vae.Vae(encoder, decoder, vae.bernoulli(), latent_dim=2, image_shape=SHAPE).eval()
    exact = []
    for scale in (0.0, 1 / 0.6):
        changed = vae.stochastic_decoder(plain, 0.4)
        with torch.no_grad():
            changed.decoder.head[3].weight.mul_(scale)
        exact.append(by_cells(changed, X))
    settings = {"num_passes": 400, "num_samples": 2000, "generator": seeded()}
    found = vae.decoder_log_evidence(vae.stochastic_decoder(plain, 0.4), X, **settings)
    is_on = (found - exact[1]).abs().sum(1) < (found - exact[0]).abs().sum(1)
    assert abs(is_on.double().mean() - 0.6) < 4.5 * math.sqrt(0.24 / 400)
    for answer, passes in zip(exact, (found[~is_on], found[is_on]), strict=True):
        close(passes, answer.expand_as(passes), rtol=0, atol=0.15)
        close(passes, passes[:1].expand_as(passes))  # all passes have the same latents


def test_training_draws_the_masks():
    images = ALL_IMAGES[SOME].float()
    model = vae.mlp_vae(2, image_shape=SHAPE, hidden=(8,), generator=seeded())
    settings = {"num_epochs": 1, "batch_size": 40, "is_binarised": False}
    plain, dropped, again = (
        vae.fit(each, images, generator=seeded(1), **settings).history.reconstruction
        for each in (model, vae.stochastic_decoder(model, 0.5), vae.stochastic_decoder(model, 0.5))
    )
    assert not torch.equal(plain, dropped)
    assert torch.equal(dropped, again)


# ---- Bad input

BINARY, LINEAR = binary_model(), linear_model(latent_dim=3)
G = seeded()
BAD = {
    "num must be at least 1, got 0": lambda: vae.sample_prior(BINARY, 0, generator=G),
    r"condition must be None: the model takes none, got \[3, 1\]": lambda: vae.sample_prior(
        BINARY, 3, generator=G, condition=torch.ones(3, 1, dtype=f64)
    ),
    "num_samples must be at least 1, got 0": lambda: vae.sample_posterior(BINARY, X, 0, generator=G),
    r"images must be in \[0, 1\], got 2": lambda: vae.reconstruct(BINARY, 2 * ALL_IMAGES[-3:]),
    r"images must be \[n >= 1, 3, 3\], got \[3, 3\]": lambda: vae.reconstruct(BINARY, X[0]),
    "num_steps must be at least 2, got 1": lambda: vae.interpolate(BINARY, X, X, num_steps=1),
    "second must have as many images as first, 3, got 2": lambda: vae.interpolate(BINARY, X, X[:2]),
    "dim must be from 0 to 1, got 2": lambda: vae.traverse(BINARY, X[0], 2, tensor([0.0])),
    "values must be finite, got 1 non-finite": lambda: vae.traverse(BINARY, X[0], 0, tensor([nan])),
    "num_per_side must be at least 1, got 0": lambda: vae.latent_grid(BINARY, 0),
    "must have 2 latent dimensions to be shown on a map, got 3": lambda: vae.latent_grid(LINEAR, 3),
    r"^image must be \[3, 3\], got \[2, 4\]": lambda: vae.image_log_likelihood(BINARY, torch.ones(2, 4)),
    r"^image must be in \[0, 1\], got ": lambda: vae.traverse(BINARY, X[0] + 3, 0, torch.zeros(1, dtype=f64)),
    r"^first must be in \[0, 1\], got ": lambda: vae.interpolate(BINARY, X + 3, X),
    r"^second must be \[n >= 1, 3, 3\], got \[3, 2, 4\]": lambda: vae.interpolate(BINARY, X, torch.ones(3, 2, 4)),
    "num_chains must be at least 2, got 1": lambda: vae.annealed_log_evidence(BINARY, X, num_chains=1, generator=G),
    "num_temperatures must be at least 2, got 1": lambda: vae.annealed_log_evidence(
        BINARY, X, num_temperatures=1, generator=G
    ),
    "num_points must be at least 3, got 2": lambda: vae.exact_log_evidence(BINARY, X, num_points=2),
    "num_points must be odd, got 4": lambda: vae.exact_log_evidence(BINARY, X, num_points=4),
    "half_width must be positive and finite, got nan": lambda: vae.exact_log_evidence(BINARY, X, half_width=nan),
    "at most 2 latent dimensions for a grid, got 3": lambda: vae.exact_log_evidence(
        LINEAR, torch.zeros(1, 2, 4, dtype=f64)
    ),
    "num_steps must be at least 1, got 0": lambda: vae.inference_gaps(BINARY, X, num_steps=0, generator=G),
    "lr must be positive and finite, got nan": lambda: vae.inference_gaps(BINARY, X, lr=nan, generator=G),
    "num_samples must be at least 2, got 1": lambda: vae.inference_gaps(BINARY, X, num_samples=1, generator=G),
    "threshold must be positive, got nan": lambda: vae.active_units(BINARY, X, threshold=nan),
    "images must be at least 2, got 1": lambda: vae.active_units(BINARY, X[:1]),
    "(?#information)num_samples must be at least 2, got 1": lambda: vae.mutual_information(
        BINARY, X, num_samples=1, generator=G
    ),
    "(?#information)images must be at least 2, got 1": lambda: vae.mutual_information(BINARY, X[:1], generator=G),
    "memory_bytes must be at least 1, got 0": lambda: vae.mutual_information(BINARY, X, memory_bytes=0, generator=G),
    "(?#impute)num_steps must be at least 1, got 0": lambda: vae.impute(BINARY, X, hole(3), num_steps=0, generator=G),
    "num_pseudo_steps must be from 0 to num_steps = 200, got 201": lambda: vae.impute(
        BINARY, X, hole(3), num_pseudo_steps=201, generator=G
    ),
    "num_chains must be at least 1, got 0": lambda: vae.impute(BINARY, X, hole(3), num_chains=0, generator=G),
    r"is_missing must be \[3, 3, 3\], as the images, got \[2, 3, 3\]": lambda: vae.impute(
        BINARY, X, hole(2), generator=G
    ),
    r"(?#seen)images must be in \[0, 1\], got 3": lambda: vae.impute(BINARY, X + 3, hole(3), generator=G),
    "rate must be between 0 and 1, got nan": lambda: vae.stochastic_decoder(BINARY, nan),
    "hidden activation in an nn.Sequential of its decoder, got none": lambda: vae.stochastic_decoder(LINEAR, 0.5),
    "num_passes must be at least 2, got 1": lambda: vae.decode_passes(
        vae.stochastic_decoder(BINARY, 0.5), torch.zeros(1, 2, dtype=f64), num_passes=1, generator=G
    ),
    "model must have a stochastic layer": lambda: vae.decode_passes(
        BINARY, torch.zeros(1, 2, dtype=f64), num_passes=2, generator=G
    ),
    "(?#evidence)num_passes must be at least 2, got 1": lambda: vae.decoder_log_evidence(
        vae.stochastic_decoder(BINARY, 0.5), X, num_passes=1, generator=G
    ),
    "(?#evidence)num_samples must be at least 1, got 0": lambda: vae.decoder_log_evidence(
        vae.stochastic_decoder(BINARY, 0.5), X, num_passes=2, num_samples=0, generator=G
    ),
    r"(?#evidence)images must be in \[0, 1\], got 3": lambda: vae.decoder_log_evidence(
        vae.stochastic_decoder(BINARY, 0.5), X + 3, num_passes=2, generator=G
    ),
    r"latents must be \[..., n, 2\], got \[1, 3\]": lambda: vae.decode_passes(
        vae.stochastic_decoder(BINARY, 0.5), torch.zeros(1, 3, dtype=f64), num_passes=2, generator=G
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
