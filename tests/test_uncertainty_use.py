"""What uncertainty is for: conformal sets, refusal, which labels to buy, and the network for scenes.

Exactness is tested in float64. Coverage is tested against its exact law: the coverage of a split-conformal set is a
Beta(k, n + 1 - k) variable, whatever the scores, and the count of m new points covered is beta-binomial. Tests that
draw at random are seeded; each bound is at least four standard deviations from what right code gives, unless it is
the 1e-6 quantile of an exact distribution.
"""

import itertools
import math

import pytest
import torch
from scipy import stats

from bdl_lib import dropout, networks, scores, uncertainty
from bdl_lib.uncertainty import ConformalQuantile, acquisition

inf, nan = math.inf, math.nan
f64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tensor(values):
    return torch.tensor(values, dtype=f64)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed), dtype=f64)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=f64)


def class_prob(*shape, seed=0, sharpness=2.0):
    """Probabilities over dimension 1."""
    return (sharpness * randn(*shape, seed=seed)).softmax(1)


def draw_labels(prob, seed=0):
    """Labels that follow these probabilities [n, classes]: those of a model that is right."""
    return torch.multinomial(prob, 1, generator=seeded(seed))[:, 0]


def close(actual, expected, *, rtol=1e-10, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=rtol, atol=atol, equal_nan=True)


# ---- The conformal quantile


@pytest.mark.parametrize(
    ("n", "level", "rank"),
    [(9, 0.9, 9), (10, 0.9, 10), (19, 0.9, 18), (99, 0.95, 95), (100, 0.95, 96), (8, 0.9, None), (1, 0.5, 1)],
)
def test_conformal_quantile_is_an_order_statistic(n, level, rank):
    score = torch.randperm(n, generator=seeded()).to(f64)  # the k-th smallest is k - 1
    found = uncertainty.conformal_quantile(score, level)
    assert found.value == (inf if rank is None else rank - 1)
    assert (found.level, found.num_calibration) == (level, n)


def test_rank_is_not_spoilt_by_rounding():
    """(n + 1) · level is whole, but computed a little above it: one rank too many would promise more than was asked."""
    assert 100 * 0.07 > 7
    assert uncertainty.conformal_quantile(torch.arange(99, dtype=f64), 0.07).value == 6


SPLITS, CALIBRATION, NEW, LEVEL = 200, 40, 60, 0.9


def heavy_tailed(seed):
    """Predictions that are wrong in mean and noise: means, standard deviations, observations, [splits, points]."""
    x, noise = rand(SPLITS, CALIBRATION + NEW, seed=seed), randn(SPLITS, CALIBRATION + NEW, seed=seed + 1)
    noise = noise / rand(*x.shape, seed=seed + 2).clamp(min=0.01).sqrt()
    return 0.8 * x, 0.2 + 0.5 * x, torch.sin(6 * x) + (0.1 + x) * noise


def inside(interval, targets):
    return (targets >= interval.low) & (targets <= interval.high)


def residuals(loc, std, y, old, new, **_):
    quantile = uncertainty.conformal_quantile(uncertainty.residual_score(loc[old], y[old]), LEVEL)
    return inside(uncertainty.residual_interval(loc[new], quantile), y[new])


def scaled_residuals(loc, std, y, old, new, **_):
    score = uncertainty.residual_score(loc[old], y[old], scale=std[old])
    quantile = uncertainty.conformal_quantile(score, LEVEL)
    return inside(uncertainty.residual_interval(loc[new], quantile, scale=std[new]), y[new])


def quantiles(loc, std, y, old, new, **_):
    low, high = loc - std, loc + 2 * std
    quantile = uncertainty.conformal_quantile(uncertainty.quantile_score(low[old], high[old], y[old]), LEVEL)
    return inside(uncertainty.quantile_interval(low[new], high[new], quantile), y[new])


def thresholds(prob, labels, old, new, **_):
    quantile = uncertainty.conformal_quantile(uncertainty.threshold_score(prob[old], labels[old]), LEVEL)
    return uncertainty.threshold_set(prob[new], quantile).gather(1, labels[new, None])[:, 0]


def cumulative(prob, labels, old, new, seed):
    generator = seeded(seed)
    score = uncertainty.cumulative_score(prob[old], labels[old], generator=generator)
    quantile = uncertainty.conformal_quantile(score, LEVEL)
    return uncertainty.cumulative_set(prob[new], quantile, generator=generator).gather(1, labels[new, None])[:, 0]


@pytest.mark.parametrize("method", [residuals, scaled_residuals, quantiles, thresholds, cumulative])
def test_coverage_follows_its_exact_law_over_200_splits(method):
    """The number of new points covered is beta-binomial, whatever the model. Its place in that law is uniform."""
    old, new = slice(0, CALIBRATION), slice(CALIBRATION, None)
    loc, std, y = heavy_tailed(seed=10)
    prob = class_prob(SPLITS * (CALIBRATION + NEW), 5, seed=20)
    wrong_prob = (prob**0.5 / (prob**0.5).sum(1, keepdim=True)).view(SPLITS, -1, 5)  # a model that is too unsure
    labels = draw_labels(prob, seed=21).view(SPLITS, -1)
    rows = [
        dict(loc=loc[i], std=std[i], y=y[i], prob=wrong_prob[i], labels=labels[i], old=old, new=new, seed=i)
        for i in range(SPLITS)
    ]
    names = method.__code__.co_varnames[: method.__code__.co_argcount]
    covered = torch.stack([method(**{name: row[name] for name in names}).sum() for row in rows]).numpy()
    k = math.ceil((CALIBRATION + 1) * LEVEL)
    law = stats.betabinom(NEW, k, CALIBRATION + 1 - k)
    place = law.cdf(covered - 1) + rand(SPLITS, seed=30).numpy() * law.pmf(covered)
    assert stats.kstest(place, "uniform").pvalue > 1e-4
    assert abs(covered.mean() - law.mean()) < 4 * law.std() / SPLITS**0.5
    share = covered.sum() / (SPLITS * NEW)
    assert LEVEL - 4 * law.std() / SPLITS**0.5 / NEW < share


def test_coverage_law_is_that_of_an_order_statistic():
    law = uncertainty.coverage_law(40, 0.9, dtype=f64)
    close(law.mean, 37 / 41)
    coverage = rand(2000, 40).sort(1).values[:, 36]  # of the 37th of 40 uniform scores
    assert stats.kstest(coverage.numpy(), stats.beta(37, 4).cdf, method="asymp").pvalue > 1e-4
    close(law.log_prob(coverage[:5]), stats.beta(37, 4).logpdf(coverage[:5].numpy()))


# ---- Intervals and sets by hand


def quantile_of(value):
    return ConformalQuantile(tensor(value), 0.9, 10)


def test_intervals_by_hand():
    loc, y = tensor([0.0, 1.0]), tensor([2.0, 0.5])
    close(uncertainty.residual_score(loc, y), tensor([2.0, 0.5]))
    close(uncertainty.residual_score(loc, y, scale=tensor([4.0, 0.25])), tensor([0.5, 2.0]))
    interval = uncertainty.residual_interval(loc, quantile_of(1.5), scale=tensor([2.0, 1.0]))
    close(interval.low, tensor([-3.0, -0.5]))
    close(interval.high, tensor([3.0, 2.5]))
    assert interval.level == 0.9
    close(uncertainty.quantile_score(loc, loc + 1, y), tensor([1.0, 0.5]))
    close(uncertainty.quantile_score(loc, loc + 1, tensor([0.25, 1.5])), tensor([-0.25, -0.5]))


def test_quantile_interval_that_would_be_empty_is_its_middle():
    low, high = tensor([0.0, 0.0]), tensor([1.0, 4.0])
    interval = uncertainty.quantile_interval(low, high, quantile_of(-1.0))
    close(interval.low, tensor([0.5, 1.0]))
    close(interval.high, tensor([0.5, 3.0]))
    assert scores.interval_coverage(interval, tensor([0.5, 2.0])).mean == 1


def test_an_infinite_quantile_covers_everything():
    prob = class_prob(3, 4)
    assert uncertainty.threshold_set(prob, quantile_of(inf)).all()
    assert uncertainty.cumulative_set(prob, quantile_of(inf)).all()
    interval = uncertainty.residual_interval(tensor([0.0]), quantile_of(inf))
    assert (interval.low, interval.high) == (-inf, inf)


def test_sets_by_hand():
    prob, labels = tensor([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25]]), torch.tensor([2, 0])
    close(uncertainty.threshold_score(prob, labels), tensor([0.7, 0.5]))
    close(uncertainty.cumulative_score(prob, labels), tensor([0.6, 0.0]))
    assert uncertainty.threshold_set(prob, quantile_of(0.7)).tolist() == [[False, True, True], [True, False, False]]
    assert uncertainty.threshold_set(prob, quantile_of(0.3)).sum() == 0
    assert uncertainty.cumulative_set(prob, quantile_of(0.55)).tolist() == [[False, True, False], [True, True, False]]
    assert uncertainty.cumulative_set(prob, quantile_of(0.0)).sum(1).tolist() == [1, 1]  # never empty without draws


def test_random_cumulative_scores_fill_the_gap_that_the_true_class_leaves():
    prob, labels = class_prob(4000, 3), torch.zeros(4000, dtype=torch.long)
    before = uncertainty.cumulative_score(prob, labels)
    u = (uncertainty.cumulative_score(prob, labels, generator=seeded()) - before) / prob[:, 0]
    assert stats.kstest(u.numpy(), "uniform", method="asymp").pvalue > 1e-4


def test_random_sets_hold_the_classes_whose_own_score_is_not_above_the_quantile():
    prob = class_prob(50, 4)
    found = uncertainty.cumulative_set(prob, quantile_of(0.8), generator=seeded(5))
    for label in range(4):
        labels = torch.full((50,), label)
        score = uncertainty.cumulative_score(prob, labels, generator=seeded(5))
        assert torch.equal(found[:, label], score <= 0.8)


def test_classes_of_pixels_are_in_dimension_1():
    prob = class_prob(2, 3, 4, 5)
    labels = torch.randint(3, (2, 4, 5), generator=seeded())
    rows, flat = prob.movedim(1, -1).reshape(-1, 3), labels.flatten()
    for score in (uncertainty.threshold_score, uncertainty.cumulative_score):
        close(score(prob, labels).flatten(), score(rows, flat))
    for make_set in (uncertainty.threshold_set, uncertainty.cumulative_set):
        expected = make_set(rows, quantile_of(0.6)).view(2, 4, 5, 3).movedim(-1, 1)
        assert torch.equal(make_set(prob, quantile_of(0.6)), expected)


def test_cumulative_sets_without_draws_cover_at_least_the_level():
    prob = class_prob(40_000, 6, sharpness=1.0)
    labels = draw_labels(prob)
    quantile = uncertainty.conformal_quantile(uncertainty.cumulative_score(prob[:20_000], labels[:20_000]), 0.8)
    sets = uncertainty.cumulative_set(prob[20_000:], quantile)
    share = sets.gather(1, labels[20_000:, None]).double().mean()
    assert share > 0.8 - 4 * (2 * 0.16 / 20_000) ** 0.5
    ordered = sets.gather(1, prob[20_000:].argsort(1, descending=True)).long()
    assert (ordered.diff(dim=1) <= 0).all()  # the most probable ones, and no others


# ---- Pixels


def smallest_threshold(score, level, is_valid):
    """Conformal risk control by its definition: try every score as the threshold, count by hand."""
    n = len(score)
    for q in sorted(score[is_valid].tolist()):
        losses = [1 - (s[v] <= q).double().mean() for s, v in zip(score, is_valid, strict=True)]
        if (sum(losses) + 1) / (n + 1) <= 1 - level + 1e-12:
            return q
    return inf


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.93])
def test_pixel_quantile_is_that_of_conformal_risk_control(level):
    difficulty = torch.linspace(0, 3, 12, dtype=f64)[:, None, None]  # the images with the fewest pixels are the worst
    score = (randn(12, 3, 4) + difficulty).round(decimals=1)
    is_valid = rand(12, 3, 4, seed=1) < 1.1 - difficulty / 3
    is_valid[:, 0, 0] = True
    found = uncertainty.pixel_quantile(score, level, is_valid=is_valid)
    close(found.value, smallest_threshold(score, level, is_valid))
    assert found.num_calibration == 12
    spoilt = torch.where(is_valid, score, nan)
    close(uncertainty.pixel_quantile(spoilt, level, is_valid=is_valid).value, found.value)


@pytest.mark.parametrize("dtype", [torch.float32, f64])
@pytest.mark.parametrize(("n", "level"), [(9, 0.9), (8, 0.9), (19, 0.95), (40, 0.9), (99, 0.07)])
def test_with_one_pixel_an_image_it_is_the_conformal_quantile(n, level, dtype):
    score = randn(n, seed=n).to(dtype)
    found = uncertainty.pixel_quantile(score[:, None], level)
    assert found == uncertainty.conformal_quantile(score, level)


def test_pixels_are_not_exchangeable_but_images_are():
    """Pixels of an image share most of their score. Pooling them covers less than the level; the two promises hold."""
    num_splits, n, level, share = 400, 6, 0.8, 0.75

    def error(prob, num):
        return (prob * (1 - prob) / num) ** 0.5

    score = randn(10 * num_splits, n + 1, 1) + 0.1 * randn(10 * num_splits, n + 1, 16, seed=1)
    pooled = score[:, :n].flatten(1).sort(1).values[:, math.ceil((16 * n + 1) * level) - 1]
    assert (score[:, n] <= pooled[:, None]).double().mean() < level - 4 * error(level, 10 * num_splits)
    mean, enough = [], []
    for old, new in zip(score[:num_splits, :n], score[:num_splits, n], strict=True):
        mean.append((new <= uncertainty.pixel_quantile(old, level).value).double().mean())
        images = uncertainty.conformal_quantile(uncertainty.image_score(old, share), level)
        enough.append((new <= images.value).double().mean() >= share)
    assert torch.stack(mean).mean() > level - 4 * error(level, num_splits)
    assert abs(torch.stack(enough).double().mean() - 6 / 7) < 4 * error(6 / 7, num_splits)  # the exact law


def test_image_score_covers_just_enough():
    score, is_valid = randn(20, 5, 5), rand(20, 5, 5, seed=1) < 0.8
    for share in (0.1, 0.5, 0.96, 1.0):
        found = uncertainty.image_score(score, share, is_valid=is_valid)
        covered = (score <= found[:, None, None]) & is_valid
        is_enough = covered.flatten(1).sum(1) >= share * is_valid.flatten(1).sum(1) - 1e-9
        fewer = covered.flatten(1).sum(1) - 1 < share * is_valid.flatten(1).sum(1) - 1e-9
        assert is_enough.all()
        assert fewer.all()
    close(uncertainty.image_score(score, 1.0), score.flatten(1).max(1).values)


# ---- Drift


def adaptive_by_hand(score, level, window, step_size):
    """One time after the other, in Python numbers."""
    alpha, rows = 1 - level, []
    for t in range(window, len(score)):
        past = sorted(score[t - window : t])
        rank = math.ceil((window + 1) * (1 - alpha) - 1e-5)
        quantile = -inf if rank <= 0 else inf if rank > window else past[rank - 1]
        rows.append((quantile, alpha, score[t] <= quantile))
        alpha += step_size * (1 - level - (score[t] > quantile))
    return rows


@pytest.mark.parametrize(("level", "step_size"), [(0.9, 0.01), (0.6, 0.3), (0.95, 0.5)])
def test_adaptive_conformal_by_hand(level, step_size):
    score = randn(150).cumsum(0)
    found = uncertainty.adaptive_conformal(score, level, window=25, step_size=step_size)
    quantile, alpha, covered = zip(*adaptive_by_hand(score.tolist(), level, 25, step_size), strict=True)
    close(found.quantile, tensor(quantile))
    close(found.miscoverage, tensor(alpha))
    assert found.is_covered.tolist() == list(covered)


SEQUENCES = {
    "steady": randn(1500),
    "growing": randn(1500) * torch.linspace(1, 20, 1500, dtype=f64),
    "a jump": randn(1500) + 10.0 * (torch.arange(1500) > 700),
    "ever higher": torch.arange(1500, dtype=f64),
    "ever lower": -torch.arange(1500, dtype=f64),
    "waves": 5 * torch.sin(torch.arange(1500, dtype=f64) / 40) + randn(1500),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_adaptive_coverage_is_within_its_bound(name):
    found = uncertainty.adaptive_conformal(SEQUENCES[name], 0.9, window=100, step_size=0.05)
    assert found.error_bound == pytest.approx((0.9 + 0.05) / (0.05 * 1400))
    assert abs(found.is_covered.double().mean() - 0.9) <= found.error_bound
    assert found.miscoverage.min() >= -0.05
    assert found.miscoverage.max() <= 1.05


def test_a_fixed_quantile_does_not_survive_a_drift():
    score = SEQUENCES["growing"].abs()
    fixed = uncertainty.conformal_quantile(score[:100], 0.9)
    assert (score[100:] <= fixed.value).double().mean() < 0.5


# ---- Refusal


def judged(n, seed):
    """Confidences that are right: uniform, the answer wrong with probability 1 - confidence."""
    confidence = rand(n, seed=seed)
    return confidence, rand(n, seed=seed + 10_000) > confidence


@pytest.mark.parametrize("decimals", [1, 6])
def test_area_is_that_of_the_curve(decimals):
    confidence, loss = rand(200).round(decimals=decimals), randn(200, seed=1).square()
    found = uncertainty.area_under_risk_coverage(confidence, loss)
    close(found.area, networks.risk_coverage(confidence, loss).area)
    close(found.best, networks.risk_coverage(-loss, loss).area)
    close(found.random, networks.risk_coverage(torch.zeros_like(loss), loss).area)
    assert found.best < found.area


@pytest.mark.parametrize("decimals", [1, 6])
def test_error_of_the_area_by_repetition(decimals):
    """The area's errors, over 200 data sets of 400 cases, against the area of one of 200,000."""
    confidence, is_wrong = judged(200_000, seed=0)
    truth = uncertainty.area_under_risk_coverage(confidence.round(decimals=decimals), is_wrong.to(f64)).area
    z = []
    for seed in range(1, 201):
        confidence, is_wrong = judged(400, seed)
        found = uncertainty.area_under_risk_coverage(confidence.round(decimals=decimals), is_wrong.to(f64))
        z.append((found.area - truth) / found.std_error)
    z = torch.stack(z)
    assert 0.85 < z.square().mean().sqrt() < 1.2
    assert (z.abs() < 2).double().mean() > 0.9


def test_risk_upper_bound_is_clopper_and_pearsons():
    num_wrong = torch.tensor([0, 1, 5, 30, 99, 0, 7, 2, 0])
    num_cases = torch.tensor([1, 10, 50, 3000, 100, 100, 7, 1000, 0])
    for level in (0.5, 0.95, 0.9975):
        expected = stats.beta.ppf(level, num_wrong.numpy() + 1, (num_cases - num_wrong).numpy())
        expected = torch.as_tensor(expected).where(num_wrong < num_cases, 1.0)
        close(uncertainty.risk_upper_bound(num_wrong, num_cases, level, dtype=f64), expected, rtol=1e-9)
        single = uncertainty.risk_upper_bound(num_wrong, num_cases, level, dtype=torch.float32)
        close(single, expected, rtol=2e-3, atol=1e-6)


def test_threshold_for_risk_takes_the_largest_candidate_that_is_allowed():
    confidence, is_wrong = judged(500, seed=3)
    found = uncertainty.threshold_for_risk(confidence, is_wrong, target_risk=0.3, level=0.9, num_candidates=10)
    ordered, allowed = confidence.sort().values, []
    for j in range(10):
        threshold = ordered[50 * j - 1] if j else tensor(-inf)
        answered = confidence > threshold
        k, m = int(is_wrong[answered].sum()), int(answered.sum())
        bound = stats.beta.ppf(1 - 0.1 / 10, k + 1, m - k)
        if bound <= 0.3:
            allowed.append((threshold, m / 500, k / m, bound))
    for value, expected in zip(found, allowed[0], strict=True):
        close(value, expected, rtol=1e-9)


def test_threshold_for_risk_keeps_its_promise():
    """Of 120 thresholds at most 5 % may exceed the risk, which is (1 - t) / 2; picking the observed risk does often."""
    exceeded, naive = 0, 0
    for seed in range(120):
        confidence, is_wrong = judged(200, seed)
        found = uncertainty.threshold_for_risk(confidence, is_wrong, target_risk=0.3, num_candidates=10)
        exceeded += (1 - found.threshold) / 2 > 0.3 and found.coverage > 0
        curve = networks.risk_coverage(confidence, is_wrong.to(f64))
        last = (curve.risk <= 0.3).nonzero().max()
        naive += (1 - confidence.sort(descending=True).values[last]) / 2 > 0.3
    assert exceeded <= stats.binom(120, 0.05).ppf(1 - 1e-6)
    assert naive > 40


def test_nothing_is_answered_if_nothing_can_be_promised():
    confidence, is_wrong = judged(50, seed=0)
    found = uncertainty.threshold_for_risk(confidence, is_wrong, target_risk=1e-4)
    assert (found.threshold, found.coverage) == (inf, 0)
    assert found.risk.isnan()
    found = uncertainty.threshold_for_risk(confidence, torch.zeros_like(is_wrong), target_risk=0.5)
    assert (found.threshold, found.coverage, found.risk) == (-inf, 1, 0)


def test_threshold_for_coverage_answers_as_often_as_asked():
    shares = []
    for seed in range(300):
        confidence = randn(20, seed=seed)
        threshold = uncertainty.threshold_for_coverage(confidence[:19], 0.8)
        shares.append(confidence[19] > threshold)
    assert abs(torch.stack(shares).double().mean() - 0.8) < 4 * (0.16 / 300) ** 0.5
    threshold = uncertainty.threshold_for_coverage(tensor([3.0, 1.0, 2.0, 4.0]), 0.6)  # 3 of 4 and of 5
    assert (tensor([3.0, 1.0, 2.0, 4.0]) > threshold).tolist() == [True, False, True, True]
    assert uncertainty.threshold_for_coverage(tensor([1.0]), 0.9) == -inf


# ---- Which labels to buy


def entropy(p):
    return -sum(x * math.log(x) for x in p if x > 0)


def joint_information(prob, batch):
    """I[y_1..b; draw] by its definition: the entropy of the answers, enumerated, less that given the draw."""
    num_draws, _, num_classes = prob.shape
    rows, joint = prob.tolist(), []
    for answers in itertools.product(range(num_classes), repeat=len(batch)):
        joint.append(sum(math.prod(row[i][y] for i, y in zip(batch, answers, strict=True)) for row in rows) / num_draws)
    return entropy(joint) - sum(entropy(row[i]) for row in rows for i in batch) / num_draws


def greedy_by_enumeration(prob, batch_size):
    batch, information = [], []
    for _ in range(batch_size):
        left = [i for i in range(prob.shape[1]) if i not in batch]
        values = [joint_information(prob, [*batch, i]) for i in left]
        information.append(max(values))
        batch.append(left[values.index(max(values))])
    return batch, information


def draws_of_prob(num_draws, n, num_classes, *, seed=0, sharpness=2.0):
    return (sharpness * randn(num_draws, n, num_classes, seed=seed)).softmax(-1)


def test_bald_by_hand():
    agree, disagree = [0.5, 0.5], [[1.0, 0.0], [0.0, 1.0]]
    prob = torch.stack([tensor([agree, disagree[i], [0.9, 0.1]]) for i in range(2)])
    close(uncertainty.bald(prob), tensor([0.0, math.log(2), 0.0]))
    prob = draws_of_prob(7, 5, 3)
    close(uncertainty.bald(prob), tensor([joint_information(prob, [i]) for i in range(5)]))


@pytest.mark.parametrize(("shape", "batch_size"), [((5, 7, 2), 5), ((8, 6, 3), 4), ((1, 4, 3), 2)])
def test_batch_bald_is_greedy_on_the_enumerated_joint_entropy(shape, batch_size):
    prob = draws_of_prob(*shape)
    if shape[0] > 1:
        prob[0, 0], prob[1, 1] = tensor([1.0] + [0.0] * (shape[2] - 1)), tensor([0.0, 1.0] + [0.0] * (shape[2] - 2))
    found = uncertainty.batch_bald(prob, batch_size, generator=seeded())
    batch, information = greedy_by_enumeration(prob, batch_size)
    close(found.information, tensor(information), atol=1e-10)
    if shape[0] > 1:  # with one draw, all information is zero and any batch is as good
        assert found.index.tolist() == batch


def test_drawn_answers_have_the_expectation_of_enumerated_ones():
    """What a sixth label tells after five, from 243 answers and, unbiased, from 20 answers drawn 400 times."""
    prob = draws_of_prob(10, 12, 3, sharpness=1.5)
    exact = acquisition._expected_entropy(prob, *acquisition._configurations(prob[:, :5], 243, None))
    generator = seeded()
    drawn = [acquisition._configurations(prob[:, :5], 20, generator) for _ in range(400)]
    drawn = torch.stack([acquisition._expected_entropy(prob, *answers) for answers in drawn])
    z = (drawn.mean(0) - exact) / (drawn.std(0) / 20)
    assert z.abs().max() < 4
    assert drawn.std(0).max() > 0.01


def test_batch_bald_goes_on_with_drawn_answers():
    prob = draws_of_prob(10, 12, 3, sharpness=1.5)
    exact = uncertainty.batch_bald(prob, 6, generator=seeded())
    found = uncertainty.batch_bald(prob, 6, num_configurations=240, generator=seeded())  # drawn for the sixth
    assert found.index[:5].tolist() == exact.index[:5].tolist()
    close(found.information[:5], exact.information[:5])
    assert found.information[5] != exact.information[5]
    close(found.information[5], exact.information[5], rtol=0.05)


def test_batch_bald_does_not_choose_copies():
    """Three copies of the most informative point: BALD takes all of them, a batch takes one."""
    prob = draws_of_prob(20, 10, 3)
    best = int(uncertainty.bald(prob).argmax())
    prob = torch.cat([prob, prob[:, [best, best]]], dim=1)
    copies = {best, 10, 11}
    top = uncertainty.top_batch(uncertainty.bald(prob), 3)
    assert set(top.tolist()) == copies
    found = uncertainty.batch_bald(prob, 3, generator=seeded())
    assert len(copies & set(found.index.tolist())) == 1
    assert found.information[-1] > joint_information(prob, top.tolist()) + 0.1
    close(found.information[0], uncertainty.bald(prob).max())


def test_batch_bald_tells_no_more_than_which_draw_it_was():
    prob = torch.eye(4, dtype=f64)[torch.randint(4, (6, 9), generator=seeded())]  # sure draws
    found = uncertainty.batch_bald(prob, 9, num_configurations=50, generator=seeded())
    assert sorted(found.index.tolist()) == list(range(9))
    assert (found.information.diff() > -1e-9).all()
    close(found.information[-1], math.log(6), rtol=1e-6)


def test_top_and_random_batches():
    assert uncertainty.top_batch(tensor([0.1, 3.0, -1.0, 2.0]), 2).tolist() == [1, 3]
    drawn = torch.stack([uncertainty.random_batch(6, 2, generator=seeded(seed)) for seed in range(3000)])
    assert (drawn[:, 0] != drawn[:, 1]).all()
    count = torch.bincount(drawn.flatten(), minlength=6)
    assert stats.chisquare(count.numpy()).pvalue > 1e-4


# ---- The network for scenes


def small_network(seed=0, **settings):
    return uncertainty.scene_network(11, width=8, rate=0.2, generator=seeded(seed), **settings).eval()


def test_scene_network_is_fully_convolutional_and_its_weights_come_from_the_generator():
    before = torch.get_rng_state()
    network, same, other = small_network(), small_network(), small_network(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for size in (16, 48, 64):
        outputs = network(torch.rand(2, 1, size, size, generator=seeded()))
        assert outputs.shape == (2, 13, size, size)
        assert outputs.isfinite().all()
    images = torch.rand(3, 1, 16, 16, generator=seeded())
    assert torch.equal(network(images), same(images))
    assert not torch.allclose(network(images), other(images))


def test_a_pixel_sees_a_whole_object_and_every_image_is_by_itself():
    network, images = small_network(), torch.rand(2, 1, 48, 48, generator=seeded()).requires_grad_()
    (gradient,) = torch.autograd.grad(network(images)[0, :, 24, 24].sum(), images)
    seen = gradient[0, 0].abs().amax(1).nonzero()
    assert seen.min() <= 10
    assert seen.max() >= 37
    assert gradient[1].abs().max() == 0


def test_scene_network_draws():
    network, images = small_network(), torch.rand(2, 1, 16, 16, generator=seeded())
    draws = dropout.draw_passes(network, images, num_passes=6, generator=seeded())
    assert draws.shape == (6, 2, 13, 16, 16)
    assert draws.std(0).min() > 0


def test_scene_loss_is_the_log_likelihood_of_class_and_depth():
    outputs, depth = randn(2, 5, 4, 4), 1 + rand(2, 4, 4)
    labels = torch.randint(3, (2, 4, 4), generator=seeded())
    labels[0, 1, 2:] = -1
    class_part = -torch.distributions.Categorical(logits=outputs[:, :3].movedim(1, -1)).log_prob(labels.clamp(min=0))
    depth_part = -torch.distributions.Normal(outputs[:, 3], (outputs[:, 4] / 2).exp()).log_prob(depth)
    expected = class_part[labels >= 0].mean() + depth_part.mean()
    close(uncertainty.scene_loss(outputs, labels, depth), expected)
    assert uncertainty.scene_loss(outputs, torch.full_like(labels, -1), depth) == depth_part.mean()


# ---- Bad input


def bad_conformal():
    prob, labels, ones = class_prob(4, 3), torch.tensor([0, 1, 2, 0]), torch.ones(4, dtype=f64)
    quantile = quantile_of(0.5)
    unsummed = prob * 1.1
    yield lambda: uncertainty.conformal_quantile(ones[:0], 0.9), "score must be floating-point and not empty"
    yield lambda: uncertainty.conformal_quantile(ones * nan, 0.9), "score must be finite, got nan"
    yield lambda: uncertainty.conformal_quantile(ones[:, None], 0.9), r"score must have shape \[n\]"
    for level in (0.0, 1.0, nan):
        message = f"level must be between 0 and 1, got {level}"
        yield lambda level=level: uncertainty.conformal_quantile(ones, level), message
        yield lambda level=level: uncertainty.coverage_law(20, level), message
        yield lambda level=level: uncertainty.pixel_quantile(ones[:, None], level), message
        yield lambda level=level: uncertainty.adaptive_conformal(ones, level, window=2), message
    yield lambda: uncertainty.coverage_law(0, 0.5), "num_calibration must be at least 1, got 0"
    yield lambda: uncertainty.coverage_law(8, 0.9), r"num_calibration must be at least level / \(1 - level\) = 9, got 8"
    yield lambda: uncertainty.residual_score(ones, ones[:2]), "loc and targets must have the same shape"
    yield lambda: uncertainty.residual_score(ones, ones * inf), "targets must be finite, got inf"
    for scale in (0.0, -1.0, nan, inf):
        message = "scale must be positive and finite"
        yield lambda scale=scale: uncertainty.residual_score(ones, ones, scale=scale), message
        yield lambda scale=scale: uncertainty.residual_interval(ones, quantile, scale=scale * ones), message
    yield lambda: uncertainty.quantile_score(ones, ones * nan, ones), "high must be finite, got nan"
    yield lambda: uncertainty.quantile_interval(ones, ones[:1], quantile), "low and high must have the same shape"
    for score in (uncertainty.threshold_score, uncertainty.cumulative_score):
        yield lambda score=score: score(unsummed, labels), "prob must sum to 1"
        yield lambda score=score: score(prob, labels - 1), "labels must be from 0 to 2, got -1"
        yield lambda score=score: score(prob, labels[:2]), r"labels must have shape \[4\]"
        yield lambda score=score: score(prob[:0], labels[:0]), "prob must be floating-point and not empty"
    for make_set in (uncertainty.threshold_set, uncertainty.cumulative_set):
        yield lambda make_set=make_set: make_set(unsummed, quantile), "prob must sum to 1"
        yield lambda make_set=make_set: make_set(prob - 0.5, quantile), "prob must not be negative"
    nowhere = torch.zeros(4, 1, dtype=torch.bool)
    for function in (uncertainty.pixel_quantile, uncertainty.image_score):
        yield lambda f=function: f(ones[:0, None], 0.5), "must have the same shape"
        yield lambda f=function: f(ones[:, None], 0.5, is_valid=nowhere[:2]), "must have the same shape"
        yield lambda f=function: f(ones[:, None], 0.5, is_valid=nowhere), "a pixel in each image, got none in 4"
        yield lambda f=function: f(nan * ones[:, None], 0.5), "score must be finite"
    yield lambda: uncertainty.image_score(ones[:, None], 0.0), "share must be above 0 and at most 1, got 0.0"
    yield lambda: uncertainty.image_score(ones[:, None], nan), "share must be above 0 and at most 1, got nan"
    for step_size in (0.0, nan, inf):
        message = "step_size must be positive and finite"
        yield lambda g=step_size: uncertainty.adaptive_conformal(ones, 0.9, window=2, step_size=g), message
    for window in (0, 4):
        message = f"window must be from 1 to one less than the 4 scores, got {window}"
        yield lambda w=window: uncertainty.adaptive_conformal(ones, 0.9, window=w), message
    yield lambda: uncertainty.adaptive_conformal(ones * nan, 0.9, window=2), "score must be finite"
    yield lambda: uncertainty.adaptive_conformal(ones[None], 0.9, window=2), r"score must have shape \[times\]"


def bad_use():
    ones, count, wrong = torch.ones(4, dtype=f64), torch.tensor([1, 2]), torch.zeros(4, dtype=torch.bool)
    prob = draws_of_prob(3, 4, 2)
    area, for_risk = uncertainty.area_under_risk_coverage, uncertainty.threshold_for_risk
    yield lambda: area(ones[:1], ones[:1]), "the number of cases must be at least 2, got 1"
    yield lambda: area(ones, ones[:2]), "confidence and loss must have the same shape"
    yield lambda: area(ones * nan, ones), "confidence must be finite, got nan"
    yield lambda: area(ones, ones * inf), "loss must be finite, got inf"
    yield lambda: uncertainty.risk_upper_bound(count + 3, count, 0.9), "num_wrong must be from 0 to num_cases"
    yield lambda: uncertainty.risk_upper_bound(-count, count, 0.9), "num_wrong must be from 0 to num_cases"
    yield lambda: uncertainty.risk_upper_bound(count[:1], count, 0.9), "must have the same shape"
    yield lambda: uncertainty.risk_upper_bound(count, count, 1.0), "level must be between 0 and 1, got 1.0"
    yield lambda: for_risk(ones, wrong, target_risk=0.0), "target_risk must be between 0 and 1, got 0.0"
    yield lambda: for_risk(ones, wrong, target_risk=0.1, level=nan), "level must be between 0 and 1, got nan"
    yield lambda: for_risk(ones, wrong, target_risk=0.1), "num_candidates must be from 1 to the number of cases, 4"
    yield lambda: for_risk(ones, wrong[:2], target_risk=0.1), "must have the same shape"
    yield lambda: for_risk(ones * nan, wrong, target_risk=0.1, num_candidates=1), "confidence must be finite"
    yield lambda: uncertainty.threshold_for_coverage(ones, 0.0), "coverage must be between 0 and 1, got 0.0"
    yield lambda: uncertainty.threshold_for_coverage(ones[:0], 0.5), "not empty"
    for function in (uncertainty.bald, lambda p: uncertainty.batch_bald(p, 1, generator=seeded())):
        yield lambda f=function: f(prob[0]), r"prob must have shape \[draws >= 1, n, classes\]"
        yield lambda f=function: f(prob[:0]), r"prob must have shape \[draws >= 1, n, classes\]"
        yield lambda f=function: f(prob * 2), "prob must sum to 1"
        yield lambda f=function: f(prob * nan), "prob must be finite"
    for size in (0, 5):
        message = f"batch_size must be from 1 to the number of points, 4, got {size}"
        yield lambda b=size: uncertainty.batch_bald(prob, b, generator=seeded()), message
        yield lambda b=size: uncertainty.top_batch(ones, b), message
        yield lambda b=size: uncertainty.random_batch(4, b, generator=seeded()), message
    few = dict(num_configurations=2, generator=seeded())
    yield lambda: uncertainty.batch_bald(prob, 1, **few), "num_configurations must be at least 3, got 2"
    yield lambda: uncertainty.top_batch(ones * nan, 1), "score must be finite"
    yield lambda: uncertainty.random_batch(0, 1, generator=seeded()), "num_points must be at least 1, got 0"


def bad_scenes():
    outputs, depth, labels = randn(1, 5, 4, 4), rand(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    make, settings = uncertainty.scene_network, dict(width=8, rate=0.1, generator=seeded())
    yield lambda: make(1, **settings), "num_classes must be at least 2, got 1"
    yield lambda: make(3, **settings | {"width": 0}), "width must be at least 1, got 0"
    yield lambda: make(3, **settings | {"rate": 1.0}), "rate must be"
    yield lambda: make(3, **settings | {"rate": nan}), "rate must be"
    loss = uncertainty.scene_loss
    yield lambda: loss(outputs[:, :3], labels, depth), r"outputs must have shape \[n, classes \+ 2"
    yield lambda: loss(outputs, labels[:, :2], depth), "must have the same shape"
    yield lambda: loss(outputs, labels + 3, depth), "labels must be from -1 to 2, got 3"
    yield lambda: loss(outputs, labels - 2, depth), "labels must be from -1 to 2, got -2"
    yield lambda: loss(outputs, labels, depth * nan), "must be finite"


@pytest.mark.parametrize(("call", "message"), [*bad_conformal(), *bad_use(), *bad_scenes()])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
