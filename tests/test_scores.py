"""bdl_lib.scores against SciPy, scikit-learn, NumPy and ArviZ, closed forms, quadrature, and sums over all pairs.

Exactness is tested in float64. Where a test draws at random, it is seeded. Standard errors are tested by repetition:
``check_errors`` asks that estimates miss the truth by one standard error in root mean square, and by less than two in
about 95 % of the repetitions. Bounds are at least four standard deviations of these statistics away from what a right
standard error gives.
"""

import math
import warnings

import arviz
import numpy as np
import oracles
import pytest
import torch
from scipy import spatial, special, stats
from sklearn import metrics

from bdl_lib import scores
from bdl_lib.scores import Interval, Score, energy, mmd, wasserstein
from bdl_lib.scores.results import batch_means_variance

inf, nan = math.inf, math.nan
f64 = torch.float64


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
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=rtol, atol=atol, equal_nan=True)


def check_errors(estimates, truth, *, rms=(0.85, 1.2), least_coverage=0.9):
    """Estimates [value, standard error] of one truth, from independent repetitions."""
    value, std_error = torch.tensor([[float(x) for x in pair] for pair in estimates], dtype=f64).T
    z = (value - truth) / std_error
    assert rms[0] < z.square().mean().sqrt() < rms[1]
    assert (z.abs() < 2).double().mean() > least_coverage


def check_mean(values, truth, *, z=4.0):
    """The mean of independent values is the truth, to within their own error."""
    values = torch.as_tensor(values, dtype=f64)
    assert abs(values.mean() - truth) < z * values.std() / len(values) ** 0.5


def autoregressive(n, dim, *, correlation=0.8, seed=0):
    """A chain with standard normal marginals, whose mean has (1 + c) / (1 - c) times the variance of free draws."""
    noise, rows = randn(n, dim, seed=seed), []
    for i in range(n):
        rows.append(correlation * rows[-1] + (1 - correlation**2) ** 0.5 * noise[i] if i else noise[0])
    return torch.stack(rows)


# ---- Averages


def test_average_is_scipys():
    values = randn(30)
    score = scores.average(values)
    close(score.mean, values.numpy().mean())
    close(score.std_error, stats.sem(values.numpy()))
    assert score.values is values


def test_average_of_one_point_has_no_error_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = scores.average(tensor([2.0]))
    assert score.mean == 2
    assert score.std_error.isnan()


def test_average_with_an_infinite_value():
    score = scores.average(tensor([2.0, inf]))
    assert score.mean == inf
    assert score.std_error.isnan()


def test_paired_difference_is_the_paired_t_test():
    hard = 10 * randn(40)  # what both methods share
    first, second = hard + 0.1 * randn(40, seed=1), hard + 0.2 + 0.1 * randn(40, seed=2)
    difference = scores.paired_difference(scores.average(first), scores.average(second))
    close(difference.mean / difference.std_error, stats.ttest_rel(first.numpy(), second.numpy()).statistic)
    assert difference.mean < -4 * difference.std_error
    assert scores.average(first).std_error > 20 * difference.std_error


def test_batch_means_of_free_draws_and_of_a_chain():
    """The variance of the mean is 1 / n, and 9 / n for a correlation of 0.8."""
    free = torch.stack([batch_means_variance(randn(900, 20, seed=seed)) for seed in range(5)])
    assert abs(free.mean() * 900 - 1) < 0.1
    chain = torch.stack([batch_means_variance(autoregressive(900, 20, seed=seed)) for seed in range(5)])
    assert 6.5 < chain.mean() * 900 < 9  # 9 less what 30 draws do not see: about 1.3
    values = randn(11)
    batches = [values[:4], values[4:8], values[8:]]  # i * 3 // 11
    expected = sum(len(b) * (b.mean() - values.mean()) ** 2 for b in batches) / (2 * 11)
    close(batch_means_variance(values), expected)


# ---- Log scores


def test_log_score_gaussian_is_scipys():
    loc, targets, std = randn(20), 3 * randn(20, seed=1), 0.1 + rand(20, seed=2)
    score = scores.log_score_gaussian(loc, std, targets)
    close(score.values, -stats.norm.logpdf(targets.numpy(), loc.numpy(), std.numpy()))
    close(score.mean, score.values.mean())
    assert isinstance(score, Score)
    one_std = scores.log_score_gaussian(loc, 0.5, targets)
    close(one_std.values, -stats.norm.logpdf(targets.numpy(), loc.numpy(), 0.5))
    close(scores.log_score_gaussian(loc, tensor(0.5), targets).values, one_std.values)


def test_log_score_mixture_averages_densities_not_their_logs():
    loc, targets = randn(7, 5), randn(5, seed=1)
    density = stats.norm.pdf(targets.numpy(), loc.numpy(), 0.3)
    score = scores.log_score_mixture(tensor(np.log(density)))
    close(score.values, -np.log(density.mean(0)))


def test_log_score_mixture_at_the_extremes():
    log_prob = tensor([[-1e4, -inf, -inf, 2.0], [-1e4 - 1, 0.0, -inf, 2.0]])
    expected = [1e4 - math.log((1 + math.exp(-1)) / 2), math.log(2), inf, -2.0]
    close(scores.log_score_mixture(log_prob).values, tensor(expected))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_scores_of_classes_are_sklearns(num_classes):
    prob = randn(30, num_classes).softmax(1)
    labels = torch.randint(num_classes, (30,), generator=seeded())
    score = scores.log_score_classes(prob, labels)
    close(score.mean, metrics.log_loss(labels.numpy(), prob.numpy(), labels=range(num_classes)))
    one_hot = np.eye(num_classes)[labels.numpy()]
    close(scores.brier_score(prob, labels).values, ((prob.numpy() - one_hot) ** 2).sum(1))


@pytest.mark.parametrize("dtype", [torch.long, torch.bool])
def test_scores_of_an_event_are_sklearns(dtype):
    prob, labels = rand(30), (rand(30, seed=1) < 0.5).to(dtype)
    expected = labels.numpy().astype(int)
    close(scores.log_score_classes(prob, labels).mean, metrics.log_loss(expected, prob.numpy()))
    brier = scores.brier_score(prob, labels)
    close(brier.mean, metrics.brier_score_loss(expected, prob.numpy()))
    close(scores.brier_score(torch.stack([1 - prob, prob], 1), labels).values, 2 * brier.values)


def test_scores_of_classes_at_the_extremes():
    prob, labels = tensor([0.0, 1.0, 0.0, 1.0, 1e-300, 1e-20]), tensor([0, 1, 1, 0, 1, 0], torch.long)
    close(
        scores.log_score_classes(prob, labels).values,
        tensor([0.0, 0.0, inf, inf, 300 * math.log(10), 1e-20]),
        atol=1e-30,
    )
    close(scores.brier_score(prob, labels).values, tensor([0.0, 0, 1, 1, 1, 0]))
    close(scores.log_score_classes(tensor([[1.0, 0.0]]), tensor([1], torch.long)).values, tensor([inf]))


# ---- CRPS


@pytest.mark.parametrize(("loc", "std", "target"), [(0.3, 0.7, 0.1), (-1.0, 2.0, 3.0), (0.0, 1.0, -4.0)])
def test_crps_gaussian_is_its_integral(loc, std, target):
    def cdf(u):
        return stats.norm.cdf(u, loc, std)

    expected = oracles.crps_by_quadrature(cdf, target, loc - 12 * std, loc + 12 * std)
    close(scores.crps_gaussian(tensor([loc]), std, tensor([target])).mean, expected, rtol=1e-8)


@pytest.mark.parametrize("dtype", [f64, torch.float32])
def test_crps_gaussian_at_the_extremes(dtype):
    """Far away, it is the distance less std / √π; for a tiny std, the distance; at the mean, std (√2 - 1) / √π."""
    loc = torch.zeros(4, dtype=dtype)
    std, targets = tensor([1.0, 1e-12, 1e-30, 2.0], dtype), tensor([-1e6, 3.0, -2.0, 0.0], dtype)
    expected = [1e6 - math.pi**-0.5, 3.0, 2.0, 2 * (2**0.5 - 1) / math.pi**0.5]
    close(scores.crps_gaussian(loc, std, targets).values, tensor(expected, dtype), rtol=1e-6)


def test_crps_draws_is_scipys_energy_distance_made_fair():
    """∫(F - G)² is half the square of SciPy's distance, which counts each draw as its own neighbour."""
    draws, targets = randn(9, 6), 2 * randn(6, seed=1)
    for x, y, value in zip(draws.T.numpy(), targets.numpy(), scores.crps_draws(draws, targets).values, strict=True):
        pairs = np.abs(x[:, None] - x).sum()
        close(value, stats.energy_distance(x, [y]) ** 2 / 2 - pairs / (2 * 9**2 * 8), rtol=1e-9)


def test_crps_draws_is_unbiased_from_three_draws():
    score = scores.crps_draws(0.5 + 2 * randn(3, 20_000), torch.full((20_000,), 1.5, dtype=f64))
    exact = scores.crps_gaussian(tensor([0.5]), 2.0, tensor([1.5])).mean
    check_mean(score.values, exact)


def test_crps_draws_far_from_zero_in_single_precision():
    draws, targets = randn(50, 4), randn(4, seed=1)
    near = scores.crps_draws(draws, targets)
    far = scores.crps_draws((1024 + draws).float(), (1024 + targets).float())
    close(far.values.double(), near.values, rtol=0, atol=3e-4)  # draws are rounded to 1e-4


# ---- Energy score


def test_energy_score_is_the_sum_over_all_pairs():
    draws, targets = randn(7, 5, 3), randn(5, 3, seed=1)
    expected = [oracles.fair_energy_score(draws[:, i].numpy(), targets[i].numpy()) for i in range(5)]
    close(scores.energy_score(draws, targets).values, tensor(expected))


def test_energy_score_in_one_dimension_is_the_crps():
    draws, targets = randn(40, 6, 1), randn(6, 1, seed=1)
    close(scores.energy_score(draws, targets).values, scores.crps_draws(draws[..., 0], targets[:, 0]).values)


def test_energy_score_is_unbiased_from_two_draws():
    targets = torch.zeros(20_000, 3, dtype=f64)
    targets[:, 1] = 2.0
    score = scores.energy_score(1.3 * randn(2, 20_000, 3), targets)
    check_mean(score.values, oracles.gaussian_energy_score(1.3, 2.0, 3))


@pytest.mark.parametrize("max_pairs", [1, 12, 30, 147, 10**6])
def test_blocks_of_pairs_give_the_same_sums(max_pairs, monkeypatch):
    """One row of seven at once, one, four, three points of 49 pairs, all; and what is held stays below the bound."""
    draws, targets, seen = randn(7, 5, 3), randn(5, 3, seed=1), []
    whole = scores.energy_score(draws, targets).values, scores.squared_mmd(draws[:, 0], draws[:, 1], width=1.0).value

    def watched(first, second):
        distance = torch.cdist(first, second)
        seen.append(distance.numel())
        return distance

    for module in (energy, mmd):
        monkeypatch.setattr(module, "MAX_PAIRS", max_pairs)
        monkeypatch.setattr(module, "pairwise_distance", watched)
    close(scores.energy_score(draws, targets).values, whole[0])
    close(scores.squared_mmd(draws[:, 0], draws[:, 1], width=1.0).value, whole[1])
    assert max(seen) <= max(max_pairs, 7)


def test_distances_far_from_zero_keep_their_digits():
    """A matrix product would find |x - y|² as a difference of numbers a million times as large."""
    draws, targets = randn(60, 2, 3, dtype=torch.float32), randn(2, 3, seed=1, dtype=torch.float32)
    draws, targets = (draws * 1024).round() / 1024, (targets * 1024).round() / 1024  # shifted without rounding
    near, far = scores.energy_score(draws, targets), scores.energy_score(draws + 1024, targets + 1024)
    close(far.values, near.values, rtol=1e-5)


# ---- Proper: nobody gains by announcing what they do not believe


FORECASTS = {"shifted": (0.3, 1.0), "too narrow": (0.0, 0.6), "too wide": (0.0, 1.6)}


@pytest.mark.parametrize("wrong", FORECASTS)
def test_the_true_forecast_scores_best(wrong):
    n, (loc, std) = 4_000, FORECASTS[wrong]
    targets, noise = randn(n, 2), randn(40, n, 2, seed=1)

    def all_scores(loc, std):
        draws, centre = loc + std * noise, torch.full((n,), loc, dtype=f64)
        return [
            scores.log_score_gaussian(centre, std, targets[:, 0]),
            scores.crps_gaussian(centre, std, targets[:, 0]),
            scores.crps_draws(draws[..., 0], targets[:, 0]),
            scores.energy_score(draws, targets),
            scores.interval_score(scores.central_interval(draws[..., 0], 0.8), targets[:, 0]),
        ]

    for right, other in zip(all_scores(0.0, 1.0), all_scores(loc, std), strict=True):
        difference = scores.paired_difference(other, right)
        assert difference.mean > 4 * difference.std_error


# ---- Intervals


def test_central_interval_is_numpys():
    draws = randn(30, 4)
    for level in (0.5, 0.8, 0.93):
        interval = scores.central_interval(draws, level)
        ends = [(1 - level) / 2, (1 + level) / 2]
        low, high = np.quantile(draws.numpy(), ends, axis=0, method="weibull")
        close(interval.low, low)
        close(interval.high, high)
        assert interval.level == level


@pytest.mark.parametrize(("num_draws", "level"), [(19, 0.9), (39, 0.9), (39, 0.95), (3, 0.5), (199, 0.5)])
def test_central_interval_holds_the_truth_as_often_as_it_says(num_draws, level):
    """Of m + 1 numbers, leave out each in turn: exactly the share ``level`` lies in the interval of the others."""
    numbers = randn(num_draws + 1)
    others = torch.stack([numbers[torch.arange(num_draws + 1) != i] for i in range(num_draws + 1)], 1)
    coverage = scores.interval_coverage(scores.central_interval(others, level), numbers)
    close(coverage.mean, level)


def test_coverage_and_its_error():
    interval = Interval(tensor([0.0, 0.0, 0.0, 1.0]), tensor([1.0, 1.0, 1.0, 2.0]), 0.5)
    coverage = scores.interval_coverage(interval, tensor([0.0, 1.0, 1.1, 0.5]))  # ends count as inside
    close(coverage.values, tensor([1.0, 1.0, 0.0, 0.0]))
    close(coverage.mean, 0.5)
    close(coverage.std_error, stats.beta(3, 3).std())
    everything = scores.interval_coverage(interval, tensor([0.5, 0.5, 0.5, 1.5]))
    close(everything.std_error, stats.beta(5, 1).std())


def test_error_of_the_coverage_by_repetition():
    draws, targets = randn(19, 300 * 100), randn(300 * 100, seed=1)
    inside = scores.interval_coverage(scores.central_interval(draws, 0.9), targets).values.reshape(300, 100)
    everywhere = Interval(torch.full((100,), 0.5, dtype=f64), torch.full((100,), 1.5, dtype=f64), 0.9)
    check_errors([scores.interval_coverage(everywhere, row)[:2] for row in inside], 0.9)


def test_width_score_and_sharpness():
    interval = Interval(tensor([0.0, 0.0, 1.0]), tensor([1.0, 2.0, 4.0]), 0.8)
    width = scores.interval_width(interval)
    close(width.values, tensor([1.0, 2.0, 3.0]))
    close(width.std_error, 1 / 3**0.5)
    close(scores.interval_score(interval, tensor([0.5, -0.1, 4.3])).values, tensor([1.0, 2.0 + 1.0, 3.0 + 3.0]))
    draws = randn(6, 20)
    sharpness = scores.sharpness(draws)
    close(sharpness.values, draws.numpy().std(0, ddof=1))
    close(sharpness.std_error, stats.sem(draws.numpy().std(0, ddof=1)))


# ---- Calibration


def forecast(n, slope, seed):
    """Announced probabilities, and what happened with ½ + slope (p - ½): slope 1 is calibrated."""
    prob = rand(n, seed=seed)
    return prob, rand(n, seed=seed + 10**6) < 0.5 + slope * (prob - 0.5)


@pytest.mark.parametrize("n", [12, 300])
def test_calibration_error_is_the_sum_over_pairs(n):
    """Of twelve points in five bins, some bins have one point and some none."""
    prob, labels = forecast(n, 0.5, seed=3)
    found = scores.calibration_error(prob, labels, num_bins=5, bins="equal_width")
    edges = [0, 0.2, 0.4, 0.6, 0.8, 1.01]
    plain, bias, unbiased, ece = oracles.binned_calibration(prob.tolist(), labels.tolist(), edges)
    close(found.squared, unbiased)
    close(found.bin_bias, bias)
    close(found.squared + found.bin_bias, plain)
    close(found.ece, ece)
    which = np.digitize(prob.numpy(), edges) - 1
    close(found.count, np.bincount(which, minlength=5))
    with np.errstate(invalid="ignore"):
        close(found.confidence, np.bincount(which, prob.numpy(), 5) / np.bincount(which, minlength=5))
        close(found.frequency, np.bincount(which, labels.numpy(), 5) / np.bincount(which, minlength=5))


def test_bins_of_equal_count():
    prob, labels = forecast(103, 1.0, seed=4)
    found = scores.calibration_error(prob, labels, num_bins=10)
    assert set(found.count.tolist()) <= {10.0, 11.0}
    ordered = prob.sort().values
    edges = [0.0, *(ordered[i * 103 // 10].item() for i in range(1, 10)), 1.01]
    close(found.squared, oracles.binned_calibration(prob.tolist(), labels.tolist(), edges)[2])


def test_equal_probabilities_stay_in_one_bin():
    """All probabilities ½, the labels sorted: perfectly calibrated, though each half would not be."""
    found = scores.calibration_error(torch.full((100,), 0.5, dtype=f64), torch.arange(100) >= 50, num_bins=4)
    assert found.count.max() == 100
    close(found.ece, 0.0)
    close(found.bin_bias, 0.25 / 99)
    close(found.squared, -0.25 / 99)
    assert found.root == 0
    assert found.confidence.isnan().sum() == 3


def test_probabilities_at_the_ends():
    prob, labels = tensor([0.0, 0.0, 1.0, 1.0]), tensor([0, 0, 1, 1], torch.long)
    found = scores.calibration_error(prob, labels, num_bins=2, bins="equal_width")
    close(found.count, tensor([2.0, 2.0]))
    close(torch.stack([found.squared, found.std_error, found.ece, found.ece_if_calibrated]), torch.zeros(4))
    upside_down = scores.calibration_error(prob, 1 - labels, num_bins=2, bins="equal_width")
    close(torch.stack([upside_down.squared, upside_down.ece, upside_down.root]), torch.ones(3))


@pytest.mark.parametrize("bins", ["equal_count", "equal_width"])
def test_calibrated_forecasts_have_no_error_though_the_usual_one_is_large(bins):
    found = [scores.calibration_error(*forecast(200, 1.0, seed), bins=bins) for seed in range(400)]
    check_mean([one.squared for one in found], 0.0)
    ece = torch.stack([one.ece for one in found])
    assert ece.mean() > 0.05
    assert ece.min() > 0.02
    expected = torch.stack([one.ece_if_calibrated for one in found]).mean()
    assert abs(ece.mean() / expected - 1) < 0.04
    assert abs(torch.stack([one.bin_bias for one in found]).mean() / (10 / 200 / 6) - 1) < 0.05  # E p (1 - p) is 1/6
    value, std_error = torch.stack([torch.stack(one[:2]) for one in found]).T
    assert 1.0 < std_error.square().mean().sqrt() / value.std() < 1.35  # up to a fifth too large
    assert (value.abs() < 2 * std_error).double().mean() > 0.95


def test_error_of_the_calibration_error_by_repetition():
    """A slope of 0.4: the residual is 0.6 (½ - p), its mean in bins 0.1 wide is that at their centres."""
    centres = torch.arange(0.05, 1, 0.1, dtype=f64)
    exact = (0.6 * (0.5 - centres)).square().mean()
    found = [
        scores.calibration_error(*forecast(400, 0.4, seed), bins="equal_width", num_bins=10) for seed in range(400)
    ]
    check_mean([one.squared for one in found], exact)
    check_errors([one[:2] for one in found], exact)
    close(found[0].root, found[0].squared ** 0.5)


def test_error_of_the_calibration_error_when_the_points_matter():
    """Half of the points are called certain and are right, half certain and wrong half of the time: the number of
    each, which is random, is part of the error."""

    def one(seed):
        is_easy = rand(60, seed=seed) < 0.5
        prob = torch.where(is_easy, 0.02, 0.98).double()
        return scores.calibration_error(prob, torch.zeros(60, dtype=torch.bool), num_bins=2, bins="equal_width")

    exact = 0.5 * (0.02**2 + 0.98**2)
    check_errors([one(seed)[:2] for seed in range(400)], exact)


# ---- Sliced Wasserstein


def sliced(draws, reference, seed=0, **settings):
    return scores.sliced_wasserstein(draws, reference, generator=seeded(seed), **settings)


def test_on_a_line_it_is_scipys():
    draws, reference = randn(31, 1), 0.5 + 2 * randn(17, 1, seed=1)
    expected = stats.wasserstein_distance(draws[:, 0].numpy(), reference[:, 0].numpy())
    close(sliced(draws, reference).value, expected)
    close(sliced(reference, draws).value, expected)


def test_it_is_the_mean_over_directions(monkeypatch):
    draws, reference = randn(30, 3), 0.3 + randn(20, 3, seed=1)
    directions = torch.randn(10, 3, generator=seeded(), dtype=f64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    expected = [stats.wasserstein_distance((draws @ u).numpy(), (reference @ u).numpy()) for u in directions]
    found = sliced(draws, reference, num_directions=10)
    close(found.value, np.mean(expected))
    monkeypatch.setattr(wasserstein, "_MAX_NUMBERS", 150)  # three directions at once
    for actual, whole in zip(sliced(draws, reference, num_directions=10), found, strict=True):
        close(actual, whole)


def test_shifted_and_stretched_gaussians():
    """A shift is seen under the mean of |cos|; a stretch s moves mass by (s - 1) E|z| in every direction."""
    n = 2_000
    quantiles = tensor(stats.norm.ppf((np.arange(n) + 0.5) / n))[:, None]
    close(sliced(quantiles, 3 * quantiles, num_directions=2).value, 2 * (2 / math.pi) ** 0.5, rtol=1e-3)
    draws = randn(100, 4)
    found = sliced(draws, draws + tensor([2.0, 0.0, 0.0, 0.0]), num_directions=10_000)
    close(found.value, 2 * oracles.mean_abs_coordinate(4), rtol=0.025)


def test_same_draws_have_no_distance():
    found = sliced(randn(20, 2), randn(20, 2))
    close(found.value, 0.0)
    assert found.floor > 0.05


def test_influence_is_the_integral_to_the_right():
    """Of the sign of F - G, step by step."""
    draws, reference = randn(8, 1), 0.5 + 2 * randn(5, 1, seed=1)
    pooled = torch.cat([draws, reference])
    _, influence = wasserstein._along_directions(pooled, torch.arange(13) < 8, torch.ones(1, 1, dtype=f64))
    steps = pooled[:, 0].sort().values.numpy()
    middles = (steps[1:] + steps[:-1]) / 2
    sign = np.sign([(draws.numpy() <= t).mean() - (reference.numpy() <= t).mean() for t in middles])
    expected = [(sign * np.diff(steps))[middles > x].sum() for x in pooled[:, 0].numpy()]
    close(influence, tensor(expected))


def test_its_error_by_repetition():
    exact = 1.5 * oracles.mean_abs_coordinate(3)
    shift = tensor([1.5, 0.0, 0.0])
    found = [
        sliced(randn(200, 3, seed=i), shift + randn(120, 3, seed=1000 + i), seed=i, num_directions=60)
        for i in range(150)
    ]
    # Directions nearly across the shift have a floor of their own: a bias of about half a standard error.
    value, std_error = torch.stack([torch.stack(one[:2]) for one in found]).T
    assert 0.8 < value.std() / std_error.square().mean().sqrt() < 1.25
    assert 0 < value.mean() - exact < 0.8 * std_error.mean()


def test_its_error_has_the_directions_in_it():
    """The same draws, far apart along one axis: only the directions vary."""
    draws = 0.01 * randn(100, 3)
    found = [sliced(draws, draws + tensor([9.0, 0, 0]), seed=i, num_directions=20) for i in range(200)]
    check_errors([one[:2] for one in found], 9 * oracles.mean_abs_coordinate(3))


def test_its_error_on_a_line_where_the_influence_is_not_the_draw_itself():
    """A stretch: draws count by how far out they are."""
    exact = (2 / math.pi) ** 0.5
    found = [sliced(randn(400, 1, seed=i), 2 * randn(300, 1, seed=1000 + i), num_directions=2) for i in range(250)]
    check_errors([one[:2] for one in found], exact, rms=(0.85, 1.25))


def test_its_error_knows_of_a_chain():
    """Taken for independent, the draws would be 1.8 standard errors off in root mean square."""
    chains, others = autoregressive(900, 150, correlation=0.7, seed=1), 3 + randn(900, 150, seed=2)
    found = [sliced(chains[:, i : i + 1], others[:, i : i + 1], num_directions=2) for i in range(150)]
    check_errors([one[:2] for one in found], 3.0, rms=(0.8, 1.4))


def test_the_floor_is_the_distance_of_equal_distributions():
    found = [sliced(randn(80, 2, seed=i), randn(50, 2, seed=1000 + i), seed=i, num_directions=20) for i in range(300)]
    check_mean([one.value - one.floor for one in found], 0.0)
    assert torch.stack([one.floor for one in found]).mean() > 0.1


# ---- MMD


def test_squared_mmd_is_the_mean_over_all_pairs():
    draws, reference = randn(9, 2), 0.5 + randn(6, 2, seed=1)
    expected = oracles.unbiased_squared_mmd(draws.numpy(), reference.numpy(), 0.8)
    close(scores.squared_mmd(draws, reference, width=0.8).value, expected)
    close(scores.squared_mmd(reference, draws, width=tensor(0.8)).value, expected)
    assert scores.squared_mmd(draws, reference, width=0.8).floor == 0


def test_its_width_is_the_median_distance():
    draws, reference = randn(8, 3), 2 + randn(6, 3, seed=1)  # 91 pairs
    median = scores.median_distance(draws, reference)
    close(median, np.median(spatial.distance.pdist(torch.cat([draws, reference]).numpy())))
    for actual, expected in zip(
        scores.squared_mmd(draws, reference), scores.squared_mmd(draws, reference, width=median), strict=True
    ):
        close(actual, expected)


def test_median_distance_of_many_draws_sees_both_sets():
    """Two far clusters, of 3,000 and 1,000: three pairs in eight are across, and the median is within."""
    draws, reference = randn(3_000, 1), 100 + randn(1_000, 1, seed=1)
    inside = 1 - 2 * 0.75 * 0.25
    expected = 2**0.5 * stats.norm.ppf(0.5 + 0.5 * (0.5 / inside))  # of |x - x'|, at 0.5 / inside
    assert abs(scores.median_distance(draws, reference) / expected - 1) < 0.1
    assert 90 < scores.median_distance(draws[:2_000], reference.repeat(2, 1)) < 110


def test_error_of_the_squared_mmd_by_repetition():
    loc, other_loc = np.zeros(2), np.array([0.8, 0.0])
    cov, other_cov = np.eye(2), np.array([[1.0, 0.5], [0.5, 1.5]])
    exact = oracles.squared_mmd_of_gaussians(loc, cov, other_loc, other_cov, 1.2)
    chol = torch.linalg.cholesky(tensor(other_cov))
    found = [
        scores.squared_mmd(randn(150, 2, seed=i), tensor(other_loc) + randn(100, 2, seed=1000 + i) @ chol.mT, width=1.2)
        for i in range(300)
    ]
    check_mean([one.value for one in found], exact)
    check_errors([one[:2] for one in found], exact)


def test_error_of_the_squared_mmd_knows_of_a_chain():
    """Taken for independent, the draws would be two standard errors off in root mean square."""
    chains, others = autoregressive(400, 100, correlation=0.8, seed=1), 1 + randn(400, 100, seed=2)
    exact = oracles.squared_mmd_of_gaussians(np.zeros(1), np.eye(1), np.ones(1), np.eye(1), 1.0)
    found = [scores.squared_mmd(chains[:, i : i + 1], others[:, i : i + 1], width=1.0) for i in range(100)]
    check_errors([one[:2] for one in found], exact, rms=(0.75, 1.5), least_coverage=0.85)


def test_squared_mmd_of_equal_distributions():
    found = [scores.squared_mmd(randn(100, 2, seed=i), randn(100, 2, seed=1000 + i), width=1.0) for i in range(300)]
    value, std_error = torch.stack([torch.stack(one[:2]) for one in found]).T
    check_mean(value, 0.0)
    assert 1.2 < std_error.square().mean().sqrt() / value.std() < 1.7  # √2, as the docstring says


# ---- Quantiles


def test_quantile_errors_are_numpys():
    draws, reference, probs = 1 + randn(40, 3), 2 * randn(33, 3, seed=1), (0.1, 0.5, 0.93)
    found = scores.quantile_error(draws, reference, probs=probs)
    expected = np.quantile(draws.numpy(), probs, axis=0) - np.quantile(reference.numpy(), probs, axis=0)
    expected = expected / reference.numpy().std(0, ddof=1)
    close(found.error, expected)
    close(found.rms, np.sqrt((expected**2).mean(0)))
    close(found.probs, tensor(probs))


def test_too_narrow_is_too_high_below_and_too_low_above():
    error = scores.quantile_error(0.5 * randn(2_000, 1), randn(2_000, 1, seed=1)).error[:, 0]
    assert error[0] > 0.5
    assert abs(error[2]) < 0.15
    assert error[4] < -0.5


def test_their_error_is_arviz_s():
    """For free draws and for a chain, averaged over twenty columns: batch means are noisy, one by one."""
    reference = 1e-3 * randn(10_000, 20, seed=9)
    for draws in (randn(2_500, 20), autoregressive(2_500, 20, correlation=0.6)):
        found = scores.quantile_error(draws, reference, probs=(0.1, 0.5))
        for p, std_error in zip((0.1, 0.5), found.std_error * reference.std(0), strict=True):
            by_arviz = [arviz.mcse(column, method="quantile", prob=p) for column in draws.T.numpy()]
            assert abs(std_error.mean() / np.mean(by_arviz) - 1) < 0.12


def test_their_error_by_repetition():
    exact = 0.5 * special.ndtri(0.9)  # quantile of N(0, 1.5²) less that of N(0, 1), in the std of the latter
    found = [
        scores.quantile_error(1.5 * randn(400, 1, seed=i), randn(250, 1, seed=1000 + i), probs=[0.9])
        for i in range(300)
    ]
    check_errors([(one.error, one.std_error) for one in found], exact, rms=(0.85, 1.25))


# ---- Bad input

points, labels, sample = tensor([0.1, 0.2, 0.3, 0.4]), tensor([0, 1, 1, 0], torch.long), randn(6, 2)
pairs = torch.stack([1 - points, points], 1)
interval = Interval(points, points + 1, 0.9)
BAD = {
    "empty average": (lambda: scores.average(tensor([])), "values must be a vector, not empty and without NaN"),
    "NaN in average": (lambda: scores.average(tensor([1.0, nan])), "values must be a vector"),
    "matrix averaged": (lambda: scores.average(pairs), "values must be a vector"),
    "other points": (
        lambda: scores.paired_difference(scores.average(points), scores.average(points[:2])),
        r"first and second must score the same points, got \[4\] and \[2\]",
    ),
    "zero std": (lambda: scores.log_score_gaussian(points, 0.0, points), "std must be positive, got 0.0"),
    "NaN std": (lambda: scores.crps_gaussian(points, nan, points), "std must be finite, got nan"),
    "infinite std": (lambda: scores.crps_gaussian(points, inf, points), "std must be finite, got inf"),
    "one negative std": (
        lambda: scores.crps_gaussian(points, tensor([1.0, 1.0, -2.0, 1.0]), points),
        "std must be positive, got -2.0",
    ),
    "loc of others": (
        lambda: scores.crps_gaussian(points[:2], 1.0, points),
        r"loc, std and targets must have shape \[points\], got \[2\], \[\] and \[4\]",
    ),
    "NaN target": (
        lambda: scores.log_score_gaussian(points, 1.0, points / tensor([1.0, 0.0, 1.0, 1.0])),
        "targets must be finite, got inf",
    ),
    "log_prob a vector": (lambda: scores.log_score_mixture(points), r"log_prob must have shape \[draws, points\]"),
    "log_prob NaN": (lambda: scores.log_score_mixture(pairs * nan), r"log_prob must be below \+inf, got nan"),
    "log_prob infinite": (lambda: scores.log_score_mixture(pairs * inf), r"log_prob must be below \+inf, got inf"),
    "prob above 1": (lambda: scores.brier_score(points * 3, labels), "prob must be from 0 to 1, got 1.2"),
    "negative prob": (lambda: scores.log_score_classes(-points, labels), "prob must be from 0 to 1, got -0.1"),
    "NaN prob": (lambda: scores.brier_score(points * nan, labels), "prob must be finite, got nan"),
    "rows not 1": (lambda: scores.brier_score(pairs * 0.9, labels), "rows that sum to 1, got a sum of 0.9"),
    "label too large": (lambda: scores.brier_score(pairs, labels + 1), "labels must be from 0 to 1, got 2"),
    "label negative": (lambda: scores.log_score_classes(points, labels - 1), "labels must be from 0 to 1, got -1"),
    "labels of others": (
        lambda: scores.log_score_classes(points, labels[:3]),
        r"prob must have shape \[points\] or \[points, classes\], labels \[points\], got \[4\] and \[3\]",
    ),
    "labels with a point": (lambda: scores.brier_score(points, points), "labels must be whole numbers"),
    "one draw": (lambda: scores.crps_draws(points[None], points), "the number of draws must be at least 2, got 1"),
    "draws of others": (
        lambda: scores.crps_draws(pairs, points),
        r"draws must have shape \[draws, points\] and targets \[points\], got \[4, 2\] and \[4\]",
    ),
    "NaN draw": (lambda: scores.crps_draws(torch.stack([points, points * nan]), points), "draws must be finite"),
    "energy of a vector": (
        lambda: scores.energy_score(pairs, points),
        r"\[draws, points, dim\] and targets \[points, dim\], got \[4, 2\] and \[4\]",
    ),
    "energy of one draw": (lambda: scores.energy_score(pairs[None], pairs), "draws must be at least 2, got 1"),
    "level 0": (lambda: scores.central_interval(pairs, 0.0), "level must be between 0 and 1, got 0.0"),
    "level 1": (lambda: scores.central_interval(pairs, 1.0), "level must be between 0 and 1, got 1.0"),
    "level NaN": (lambda: scores.central_interval(pairs, nan), "level must be between 0 and 1, got nan"),
    "too few draws": (
        lambda: scores.central_interval(randn(18, 2), 0.9),
        r"draws must be at least 2 / \(1 - level\) - 1 = 19, got 18",
    ),
    "draws a vector": (lambda: scores.central_interval(points, 0.5), r"draws must have shape \[draws, points\]"),
    "targets of others": (
        lambda: scores.interval_coverage(interval, points[:3]),
        r"low, high and targets must have the same shape \[points\], got \[\[4\], \[4\], \[3\]\]",
    ),
    "upside down": (
        lambda: scores.interval_width(Interval(points, points - 1, 0.5)),
        "low must not be above high, got 0.1",
    ),
    "a level of 2": (
        lambda: scores.interval_score(interval._replace(level=2.0), points),
        "level must be between 0 and 1, got 2.0",
    ),
    "NaN width": (lambda: scores.interval_width(Interval(points * nan, points, 0.5)), "low must be finite, got nan"),
    "sharpness of one": (lambda: scores.sharpness(points[None]), "the number of draws must be at least 2, got 1"),
    "calibration of classes": (lambda: scores.calibration_error(pairs, labels), "one probability a point"),
    "no bins": (lambda: scores.calibration_error(points, labels, num_bins=0), "num_bins must be from 1 to half of 4"),
    "too many bins": (lambda: scores.calibration_error(points, labels, num_bins=3), "points, got 3"),
    "other bins": (
        lambda: scores.calibration_error(points, labels, num_bins=1, bins="equal"),
        "bins must be 'equal_count' or 'equal_width', got 'equal'",
    ),
    "other dim": (
        lambda: scores.squared_mmd(sample, sample[:, :1]),
        r"draws and reference must have shapes \[n, dim\] and \[m, dim\], got \[6, 2\] and \[6, 1\]",
    ),
    "three draws": (lambda: sliced(sample[:3], sample), "the number of draws must be at least 4, got 3"),
    "three of the reference": (
        lambda: scores.quantile_error(sample, sample[:3]),
        "the number of reference must be at least 4, got 3",
    ),
    "infinite draw": (lambda: scores.median_distance(sample / 0.0, sample), "draws must be finite"),
    "NaN in the reference": (lambda: sliced(sample, sample * nan), "reference must be finite, got nan"),
    "one direction": (lambda: sliced(sample, sample, num_directions=1), "num_directions must be at least 2, got 1"),
    "width 0": (lambda: scores.squared_mmd(sample, sample, width=0.0), "width must be positive, got 0.0"),
    "width NaN": (lambda: scores.squared_mmd(sample, sample, width=nan), "width must be positive, got nan"),
    "all draws equal": (lambda: scores.squared_mmd(sample * 0, sample * 0), "width must be positive"),
    "no probs": (lambda: scores.quantile_error(sample, sample, probs=[]), "probs must be one or more numbers"),
    "prob of 1": (lambda: scores.quantile_error(sample, sample, probs=[0.5, 1.0]), "between 0 and 1"),
    "constant reference": (
        lambda: scores.quantile_error(sample, sample * tensor([1.0, 0.0])),
        r"reference must vary in every parameter, got constants in \[1\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
