"""bdl_lib.vi, judging: Pareto-smoothed importance sampling and calibration over simulations, against exact answers.

Exactness is tested in float64. Where a test draws at random, it is seeded; a test of a right function fails by bad luck
with a probability of at most 0.01, and most of them of far less.
"""

import functools
import math
import types
import warnings

import arviz
import numpy as np
import oracles
import pytest
import torch
from scipy import special, stats
from torch.distributions import Independent, MultivariateNormal, Normal

from bdl_lib import evidence
from bdl_lib.vi import calibration, psis
from bdl_lib.vi.families import MeanFieldGaussian, full_rank_gaussian, mean_field_gaussian

inf, nan = math.inf, math.nan
f64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=f64)


def tensor(values):
    return torch.tensor(values, dtype=f64)


def close(actual, expected, *, rtol=1e-10, atol=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=atol)


# ---- Pareto-smoothed importance sampling

MEAN, COV = tensor([1.0, -0.5]), tensor([[1.0, 0.5], [0.5, 0.8]])
LOG_EVIDENCE = -37.5


def gaussian_log_prob(position):
    return MultivariateNormal(MEAN, COV, validate_args=False).log_prob(position) + LOG_EVIDENCE


def smooth(log_prob=gaussian_log_prob, family=None, **settings):
    """Of a shifted, somewhat wide fit, unless told otherwise."""
    family = family or mean_field_gaussian(tensor([0.7, 0.0]), std=tensor([1.1, 1.2]))
    return psis.pareto_smoothed(log_prob, family, **{"num_samples": 4000, "generator": seeded()} | settings)


def test_smoothed_draws_have_the_posteriors_evidence_mean_and_covariance():
    found = smooth()
    log_evidence, weights = found.log_evidence, found.log_weights.exp()
    assert 0.001 < log_evidence.std_error < 0.02
    assert abs(log_evidence.value - LOG_EVIDENCE) < 4.5 * log_evidence.std_error
    assert found.pareto_k < 0.5
    assert found.position.shape == (4000, 2)
    close(weights.sum(), 1.0)
    close(found.ess, 1 / weights.square().sum())
    assert 1000 < found.ess < 4000
    for estimate, exact, values in (
        (found.mean, MEAN, found.position),
        (found.covariance, COV, torch.einsum("si,sj->sij", found.position - MEAN, found.position - MEAN)),
    ):
        shift = (values - exact).reshape(4000, -1)
        error = (weights[:, None] * shift).square().sum(0).sqrt()
        assert ((estimate - exact).flatten() / error).abs().max() < 4.5


def psislw(log_weights):
    """ArviZ's, of 0.2x or 1.x."""
    if hasattr(arviz, "psislw"):
        return arviz.psislw(log_weights)
    from arviz_stats.base import array_stats

    return array_stats.psislw(log_weights)


@pytest.mark.parametrize("seed", range(4))
def test_k_and_weights_are_arvizs(seed):
    """For weights with a heavy tail, where smoothing changes much, the largest of them by more or less."""
    family = mean_field_gaussian(tensor([0.5, -0.3]), std=0.8)
    found = smooth(family=family, num_samples=1000, generator=seeded(seed))
    raw = gaussian_log_prob(found.position) - family.log_prob(found.position)
    smoothed, k = psislw(raw.numpy().copy())
    assert found.pareto_k == pytest.approx(float(k))
    assert 0.2 < found.pareto_k < 0.7
    close(found.log_weights, smoothed)
    assert (found.log_weights - raw.log_softmax(0)).abs().max() > 0.01
    # what is not smoothed keeps its raw value, so that the mean of the weights is that of the raw ones but for the tail
    unnormalised = found.log_weights + found.log_evidence.value + math.log(1000)
    small = raw < raw.quantile(0.8)
    close(unnormalised[small], raw[small], rtol=1e-9)
    assert unnormalised.max() <= raw.max() + 1e-9


def test_error_is_that_of_many_repetitions():
    found = [smooth(num_samples=500, generator=seeded(seed)).log_evidence for seed in range(100)]
    z = torch.stack([(one.value - LOG_EVIDENCE) / one.std_error for one in found])
    assert 0.8 < z.square().mean().sqrt() < 1.25
    assert abs(z.mean()) < 0.4


def test_the_draws_are_importance_samplings():
    family = mean_field_gaussian(tensor([0.7, 0.0]), std=1.2)
    with_smoothing = smooth(family=family)
    without = evidence.importance_sampling(gaussian_log_prob, family, num_samples=4000, generator=seeded())
    assert with_smoothing.pareto_k == pytest.approx(without.pareto_k)
    assert with_smoothing.log_evidence.num_evaluations == without.num_evaluations == 4000
    close(with_smoothing.log_evidence.value, without.value, atol=0.01)


def test_too_narrow_in_ten_dimensions_is_told_to_the_caller():
    narrow = mean_field_gaussian(torch.zeros(10, dtype=f64), std=0.5)
    with pytest.warns(evidence.UnreliableEvidence, match=r"Pareto-k of the weights is \d\.\d\d, above 0\.7") as caught:
        found = smooth(lambda x: -0.5 * x.square().sum(-1), narrow)
    assert found.pareto_k > 0.7
    assert "bdl_lib" not in caught[0].filename
    wide = mean_field_gaussian(torch.zeros(10, dtype=f64), std=1.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert smooth(lambda x: -0.5 * x.square().sum(-1), wide).pareto_k < 0.7


def test_the_exact_posterior_needs_no_weights():
    family = full_rank_gaussian(MEAN)._replace(scale_tril=torch.linalg.cholesky(COV))
    found = smooth(family=family, num_samples=50)
    assert found.pareto_k == -inf
    close(found.log_weights, torch.full((50,), -math.log(50), dtype=f64), atol=1e-9)
    close(found.log_evidence.value, LOG_EVIDENCE)
    close(found.ess, 50.0)


def test_nan_and_impossible_draws_count_as_nothing():
    """A standard normal cut at 1, by NaN on one axis and by minus infinity on the other."""

    def cut(position):
        value = Normal(0.0, 1.0).log_prob(position).sum(-1)
        value = torch.where(position[:, 0] > 1, nan, value)
        return torch.where(position[:, 1] > 1, -inf, value)

    found = smooth(cut, mean_field_gaussian(torch.zeros(2, dtype=f64), std=1.1))
    is_nan, is_impossible = (found.position > 1).unbind(1)
    is_nan &= ~is_impossible
    assert found.log_evidence.num_excluded == is_nan.sum() > 100
    assert (found.log_weights[is_nan | is_impossible] == -inf).all()
    close(found.log_weights.exp().sum(), 1.0)
    exact = 2 * special.log_ndtr(1.0)
    assert abs(found.log_evidence.value - exact) < 4.5 * found.log_evidence.std_error
    assert found.log_evidence.std_error < 0.02
    assert found.mean.isfinite().all()


@pytest.mark.parametrize("num_samples", [4, 20])
def test_a_tail_too_short_to_judge_is_no_good_tail(num_samples):
    with pytest.warns(evidence.UnreliableEvidence, match="Pareto-k of the weights is inf"):
        found = smooth(num_samples=num_samples)
    assert found.pareto_k == inf
    raw = gaussian_log_prob(found.position)
    raw -= mean_field_gaussian(tensor([0.7, 0.0]), std=tensor([1.1, 1.2])).log_prob(found.position)
    close(found.log_weights, raw.log_softmax(0))
    assert smooth(num_samples=30).pareto_k < inf


def test_torch_distributions_and_single_precision_are_welcome():
    family = Independent(Normal(torch.zeros(2), 1.5 * torch.ones(2)), 1)
    found = smooth(lambda x: -0.5 * x.square().sum(-1), family)
    assert {found.position.dtype, found.log_weights.dtype, found.log_evidence.value.dtype} == {torch.float32}
    assert abs(found.log_evidence.value - math.log(2 * math.pi)) < 4.5 * found.log_evidence.std_error


def test_no_gradient_comes_out():
    loc = torch.zeros(2, dtype=f64, requires_grad=True)
    found = smooth(family=MeanFieldGaussian(loc, torch.full_like(loc, 0.2)))
    assert not any(part.requires_grad for part in (found.position, found.log_weights, found.log_evidence.value))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_samples": 1}, "num_samples must be at least 2, got 1"),
        (
            {"log_prob": lambda x: torch.full(x.shape[:1], -inf, dtype=f64)},
            "log_prob must be finite at one of the 4000",
        ),
        ({"log_prob": lambda x: torch.full(x.shape[:1], nan, dtype=f64)}, "log_prob must be finite at one of the 4000"),
        ({"log_prob": lambda x: torch.where(x[:, 0] > 3, inf, 0.0)}, "at \\+inf at none|and \\+inf at none"),
        ({"log_prob": lambda x: x}, r"log_prob must return one number a row, \[4000\], got shape \[4000, 2\]"),
        ({"family": 3.0}, "a proper distribution must have sample and log_prob"),
    ],
)
def test_smoothing_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        smooth(**changed)


# ---- Calibration over simulations: a normal mean of each of two parameters, whose posterior is N(y/2, 1/2)


def simulate_normal(prior_draws, generator):
    return prior_draws + torch.randn(prior_draws.shape, generator=generator, dtype=prior_draws.dtype)


def normal_fit(data, generator, shift=0.0, width=1.0):
    loc = data / 2
    return MeanFieldGaussian(loc + shift * 0.5**0.5, torch.full_like(loc, width * 0.5**0.5).log())


def calibrate_normal(fit=normal_fit, num_simulations=400, seed=1, **settings):
    prior_draws = randn(num_simulations, 2, seed=100 + seed)
    settings = {"num_draws": 100} | settings
    return calibration.calibrate_fit(prior_draws, simulate_normal, fit, generator=seeded(seed), **settings)


@functools.cache
def calibrated(shift, width):
    return calibrate_normal(functools.partial(normal_fit, shift=shift, width=width))


def test_exact_posteriors_are_symmetric_and_uniform():
    found = calibrated(0.0, 1.0)
    assert found.p_value > 0.01
    assert found.uniformity_p_values.min() > 0.01
    assert found.probabilities.shape == (400, 2)
    assert ((found.probabilities > 0) & (found.probabilities < 1)).all()
    assert found.counts.shape == (20, 2)
    assert found.expected_count == 20
    for i in range(2):
        assert stats.kstest(found.probabilities[:, i].numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("shift", [0.4, -0.4])
def test_shifted_fits_are_asymmetric(shift):
    found = calibrated(shift, 1.0)
    assert (found.p_values < 1e-6).all()
    low, high = found.counts[:10].sum(0), found.counts[10:].sum(0)
    assert (low > high).all() if shift > 0 else (low < high).all()  # fits too high: truths lie below them


def test_one_shifted_parameter_among_others_is_named():
    found = calibrate_normal(lambda data, generator: normal_fit(data, generator, shift=tensor([0.0, 0.4])))
    assert found.p_values[0] > 0.01
    assert found.p_values[1] < 1e-6
    close(found.p_value, 2 * found.p_values[1])


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_fits_of_the_wrong_width_are_symmetric_but_not_uniform(width):
    found = calibrated(0.0, width)
    assert found.p_value > 0.01
    assert (found.uniformity_p_values < 1e-6).all()
    ends, middle = found.counts[[0, 1, -2, -1]].sum(0), found.counts[8:12].sum(0)
    assert (ends > 2 * middle).all() if width < 1 else (ends < middle / 2).all()


def test_places_are_the_fits_distribution_function():
    """Against the closed form, simulation by simulation: data, fit and truth belong together."""
    met = []

    def fit(data, generator):
        met.append(data)
        return normal_fit(data, generator, shift=0.2, width=0.7)

    prior_draws = randn(100, 2, seed=3)
    found = calibration.calibrate_fit(prior_draws, simulate_normal, fit, generator=seeded(), num_draws=2000)
    loc, std = torch.stack(met) / 2 + 0.2 * 0.5**0.5, 0.7 * 0.5**0.5
    exact = Normal(loc, std).cdf(prior_draws)
    error = (exact * (1 - exact) / 2000).sqrt() + 1e-3
    assert ((found.probabilities - exact) / error).abs().max() < 4.5


@pytest.mark.parametrize(("shift", "width"), [(0.0, 1.0), (0.3, 1.0), (0.0, 0.5), (0.05, 0.8)])
def test_statistics_are_scipys_and_the_walks(shift, width):
    found = calibrated(shift, width)
    for i in range(2):
        places = found.probabilities[:, i].numpy()
        distance = stats.ks_2samp(places, 1 - places).statistic
        assert found.asymmetry[i].item() == pytest.approx(distance)
        exact = oracles.walk_reaches(round(distance * 400), 400)
        assert found.p_values[i].item() == pytest.approx(exact, abs=1e-12)
        counts = np.histogram(places, bins=20, range=(0, 1))[0]
        assert found.counts[:, i].tolist() == counts.tolist()
        assert found.uniformity_p_values[i].item() == pytest.approx(stats.chisquare(counts).pvalue)


@pytest.mark.parametrize("num_simulations", [1, 2, 3, 10, 101])
def test_symmetry_test_is_exact_for_few_simulations_too(num_simulations):
    for seed in range(5):
        found = calibrate_normal(num_simulations=num_simulations, seed=seed, num_draws=5)
        for distance, p_value in zip(found.asymmetry.tolist(), found.p_values.tolist(), strict=True):
            exact = oracles.walk_reaches(round(distance * num_simulations), num_simulations)
            assert p_value == pytest.approx(exact, abs=1e-12)


def test_the_two_sample_p_value_would_be_too_small():
    """What the docstring says: 5 % where it is 11 %, 1 % where it is 4 %. Signs of 400 places, many times over."""
    signs = 2 * torch.randint(2, (10_000, 400), generator=seeded()) - 1
    distance = signs.cumsum(1).abs().amax(1).double().numpy() / 400
    p_values = special.kolmogorov(distance * 200**0.5)
    assert np.mean(p_values < 0.05) == pytest.approx(0.11, abs=0.013)
    assert np.mean(p_values < 0.01) == pytest.approx(0.04, abs=0.008)
    right = np.array([oracles.walk_reaches(m, 400) for m in range(1, 60)])
    own = right[np.minimum(np.round(distance * 400).astype(int), 59) - 1]
    assert np.mean(own < 0.05) == pytest.approx(0.05, abs=0.009)


def test_ties_fall_to_both_sides():
    """A parameter with five values, and its exact posterior given one flip."""
    values = torch.linspace(0.1, 0.9, 5, dtype=f64)

    class Discrete:
        def __init__(self, weights):
            self.weights = weights

        def sample(self, num_samples, *, generator):
            return values[torch.multinomial(self.weights, num_samples, replacement=True, generator=generator)][:, None]

    def simulate(prior_draws, generator):
        return (torch.rand(prior_draws.shape, generator=generator, dtype=f64) < prior_draws).to(f64)

    def fit(data, generator):
        return Discrete(data * values + (1 - data) * (1 - values))

    prior_draws = values[torch.randint(5, (600, 1), generator=seeded(1))]
    found = calibration.calibrate_fit(prior_draws, simulate, fit, generator=seeded(), num_draws=50)
    assert found.p_value > 0.01
    assert found.uniformity_p_values.min() > 0.01
    assert found.probabilities.unique().numel() == 600


def test_quantities_of_parameters_and_data():
    """The log likelihood sees fits that ignore the data, which the parameters alone do not."""

    def prior_again(data, generator):
        return MeanFieldGaussian(torch.zeros_like(data), torch.zeros_like(data))

    def with_likelihood(position, data):
        return torch.cat([position, -0.5 * (data - position).square().sum(-1, keepdim=True)], -1)

    found = calibrate_normal(prior_again, quantities=with_likelihood)
    assert (found.p_values[:2] > 0.01).all()
    assert found.p_values[2] < 1e-6
    assert (calibrate_normal(quantities=with_likelihood).uniformity_p_values > 0.01).all()


def test_a_fit_may_use_gradients_and_the_same_seed_gives_the_same():
    def fit(data, generator):
        loc = torch.zeros_like(data, requires_grad=True)
        (grad,) = torch.autograd.grad((-0.5 * loc.square() - 0.5 * (data - loc).square()).sum(), loc)
        family = MeanFieldGaussian(loc + grad / 2, torch.full_like(data, 0.5**0.5).log())  # one Newton step
        return types.SimpleNamespace(sample=family.rsample)

    def by_numpy(position, data):  # which refuses what requires gradients
        return torch.from_numpy(position.numpy().copy())

    first, again = (calibrate_normal(fit, num_simulations=50, quantities=by_numpy) for _ in range(2))
    assert torch.equal(first.probabilities, again.probabilities)
    assert torch.equal(first.probabilities, calibrate_normal(num_simulations=50).probabilities)
    assert not first.probabilities.requires_grad


def test_a_bar_is_shown_if_wanted(capfd):
    calibrate_normal(num_simulations=3)
    assert capfd.readouterr() == ("", "")
    calibrate_normal(num_simulations=3, progress=True)
    assert "3/3" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_simulations": 0}, "the number of prior_draws must be at least 1, got 0"),
        ({"num_draws": 0}, "num_draws must be at least 1, got 0"),
        ({"num_bins": 1}, "num_bins must be at least 2, got 1"),
        (
            {"fit": lambda data, generator: normal_fit(data[:1], generator)},
            r"fit must give a family over 2 parameters, got draws of shape \[100, 1\] in simulation 0",
        ),
        (
            {"fit": lambda data, generator: normal_fit(data, generator, width=inf)},
            "draws must be finite, are not in simulation 0",
        ),
    ],
)
def test_calibration_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        calibrate_normal(**changed)
