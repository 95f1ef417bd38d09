"""bdl_lib.uncertainty against SciPy, scikit-learn and NumPy, closed forms, quadrature, loops and repetition.

Exactness is tested in float64. Where a test draws at random, it is seeded. Standard errors are tested by repetition, as
in test_scores.py: estimates miss the truth by one standard error in root mean square.
"""

import math
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special, stats
from sklearn import calibration as sklearn_calibration
from sklearn import metrics
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    multiclass_calibration_error,
)

from bdl_lib import networks, scores, uncertainty
from bdl_lib.uncertainty import LogitScaling

inf, nan = math.inf, math.nan
f64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=f64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def rand(*shape, seed=0, dtype=f64):
    return torch.rand(shape, generator=seeded(seed), dtype=dtype)


def tensor(values, dtype=f64):
    return torch.tensor(values, dtype=dtype)


def close(actual, expected, *, rtol=1e-10, atol=1e-12):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual.detach(), expected.expand_as(actual), rtol=rtol, atol=atol, equal_nan=True)


def check_mean(values, truth, *, z=4.0):
    """The mean of independent values is the truth, to within their own error."""
    values = torch.as_tensor(values, dtype=f64)
    assert abs(values.mean() - truth) < z * values.std() / len(values) ** 0.5


def check_errors(estimates, truth, *, rms=(0.85, 1.2)):
    """Estimates [value, standard error] from independent repetitions, where the bias is far below the error."""
    value, std_error = torch.tensor([[float(x) for x in pair] for pair in estimates], dtype=f64).T
    z = (value - truth) / std_error
    assert rms[0] < z.square().mean().sqrt() < rms[1]


# ---- Losses: regression


def test_gaussian_nll_is_scipys():
    loc, log_var, targets = randn(6, 4, 5), 2 * randn(6, 4, 5, seed=1), 3 * randn(6, 4, 5, seed=2)
    expected = -stats.norm.logpdf(targets.numpy(), loc.numpy(), np.exp(0.5 * log_var.numpy()))
    close(uncertainty.gaussian_nll(loc, log_var, targets), expected)


def test_laplace_nll_is_scipys():
    loc, log_var, targets = randn(6, 4, 5), 2 * randn(6, 4, 5, seed=1), 3 * randn(6, 4, 5, seed=2)
    scale = np.exp(0.5 * log_var.numpy()) / 2**0.5  # the variance of a Laplace distribution is 2 scale²
    close(uncertainty.laplace_nll(loc, log_var, targets), -stats.laplace.logpdf(targets.numpy(), loc.numpy(), scale))


@pytest.mark.parametrize("loss", [uncertainty.gaussian_nll, uncertainty.laplace_nll])
@pytest.mark.parametrize(("loc", "log_var"), [(0.3, -2.0), (-1.0, 0.0), (5.0, 3.0)])
def test_regression_losses_are_densities_with_the_variance_they_say(loss, loc, log_var):
    def density(y):
        return loss(tensor(loc), tensor(log_var), tensor(y)).neg().exp().item()

    for power, expected in ((0, 1.0), (1, 0.0), (2, math.exp(log_var))):
        reach = 20 * math.exp(log_var / 2)
        sides = (loc - reach, loc), (loc, loc + reach)
        found = sum(
            integrate.quad(lambda y, k=power: (y - loc) ** k * density(y), *side, limit=200)[0] for side in sides
        )
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "best"), [(uncertainty.gaussian_nll, 1.0), (uncertainty.laplace_nll, 2.0)], ids=["gaussian", "laplace"]
)
def test_attenuation_finds_the_size_of_the_error(loss, best):
    """For one error r, the best variance is r² under the Gaussian, and 2 r² under the Laplace: scale |r|."""
    errors = tensor([0.01, -0.5, 3.0])
    log_var = (best * errors.square()).log().requires_grad_()
    loss(torch.zeros(3, dtype=f64), log_var, errors).sum().backward()
    close(log_var.grad, torch.zeros(3))


def test_a_noisy_point_pulls_less():
    loc = torch.zeros(2, dtype=f64, requires_grad=True)
    for loss, ratio in ((uncertainty.gaussian_nll, math.exp(3.0)), (uncertainty.laplace_nll, math.exp(1.5))):
        (pull,) = torch.autograd.grad(loss(loc, tensor([0.0, 3.0]), tensor([2.0, 2.0])).sum(), loc)
        close(pull[0] / pull[1], ratio)


# ---- Losses: classification


def softmax_of_two(difference, std):
    """E softmax of a Gaussian difference of two logits, by quadrature: the probability of the first."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(201)
    return (weights * special.expit(difference + std * nodes)).sum() / math.sqrt(2 * math.pi)


def test_sampled_logits_average_probabilities_not_logs():
    """For a label that the logits call improbable, the mean of the logs would be 1.4 nats off."""
    logits, log_var = tensor([[-1.5, 1.5], [0.5, 0.0]]), tensor([[2.0, 1.0], [0.0, -1.0]])
    exact = [softmax_of_two(float(z[0] - z[1]), math.sqrt(s.exp().sum())) for z, s in zip(logits, log_var, strict=True)]
    options = {"num_samples": 200_000, "generator": seeded()}
    prob = uncertainty.sampled_logit_prob(logits, log_var, **options)
    close(prob.sum(1), torch.ones(2))
    close(prob[:, 0], exact, rtol=0, atol=4 * 0.5 / 200_000**0.5)
    loss = uncertainty.sampled_logit_nll(logits, log_var, torch.zeros(2, dtype=torch.long), **options)
    close(loss, -np.log(exact), rtol=0, atol=4 * 0.5 / 200_000**0.5 / min(exact))


@pytest.mark.parametrize("pixels", [(), (3,), (4, 3)], ids=str)
def test_sampled_logit_loss_and_probability_agree(pixels):
    logits, log_var = 3 * randn(5, 4, *pixels), randn(5, 4, *pixels, seed=1)
    labels = torch.randint(4, (5, *pixels), generator=seeded(2))
    prob = uncertainty.sampled_logit_prob(logits, log_var, num_samples=7, generator=seeded(3))
    loss = uncertainty.sampled_logit_nll(logits, log_var, labels, num_samples=7, generator=seeded(3))
    close(loss, -prob.gather(1, labels[:, None]).squeeze(1).log())
    no_noise = uncertainty.sampled_logit_nll(logits, log_var - inf, labels, num_samples=3, generator=seeded())
    close(no_noise, torch.nn.functional.cross_entropy(logits, labels, reduction="none"))


def test_sampled_logit_loss_of_hopeless_labels_is_finite():
    """Probabilities of e^-1000 underflow even in double precision."""
    logits = tensor([[0.0, 1000.0]]).requires_grad_()
    log_var = torch.zeros(1, 2, dtype=f64, requires_grad=True)
    loss = uncertainty.sampled_logit_nll(logits, log_var, tensor([0], torch.long), num_samples=5, generator=seeded())
    difference = torch.tensor([[-1.0, 1.0]], dtype=f64) @ torch.randn(5, 1, 2, generator=seeded(), dtype=f64)[:, 0].T
    close(loss, 1000 + math.log(5) - (-difference).logsumexp(1))
    loss.sum().backward()
    close(logits.grad, [[-1.0, 1.0]])
    assert log_var.grad.isfinite().all()


def test_sampled_logit_gradients():
    labels = tensor([2, 0], torch.long)

    def loss(logits, log_var):
        return uncertainty.sampled_logit_nll(logits, log_var, labels, num_samples=4, generator=seeded(5))

    assert torch.autograd.gradcheck(loss, (randn(2, 3).requires_grad_(), randn(2, 3, seed=1).requires_grad_()))


# ---- Decomposition


@pytest.mark.parametrize("pixels", [(), (3, 2)], ids=["vectors", "images"])
def test_decomposition_of_classes_is_numpys(pixels):
    prob = (2 * randn(6, 5, 4, *pixels)).softmax(2)
    found = uncertainty.decompose_classes(prob)
    p, mean = prob.numpy(), prob.numpy().mean(0)
    close(found.prob, mean)
    close(found.entropy.total, stats.entropy(mean, axis=1))
    close(found.entropy.aleatoric, stats.entropy(p, axis=2).mean(0))
    divergence = special.rel_entr(p, mean[None]).sum(2).mean(0)  # mutual information, without a difference
    close(found.entropy.epistemic, divergence)
    close(found.variance.total, (mean * (1 - mean)).sum(1))
    close(found.variance.aleatoric, (p * (1 - p)).sum(2).mean(0))
    close(found.variance.epistemic, p.var(0).sum(1))


def test_decompositions_are_those_of_the_networks():
    prob, means, variances = (2 * randn(6, 5, 4)).softmax(2), randn(6, 5), rand(6, 5, seed=1)
    split, found = networks.entropy_split(prob), uncertainty.decompose_classes(prob).entropy
    for one, other in zip(found, (split.total, split.expected, split.mutual_information), strict=True):
        close(one, other)
    expected = networks.variance_split(means, variances)
    found = uncertainty.decompose_regression(zip(means, variances, strict=True))
    close(found.mean, expected.mean)
    close(found.variance.aleatoric, expected.noise_var)
    close(found.variance.epistemic, expected.parameter_var)
    close(found.variance.total, expected.std.square())


@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_identities_at_probabilities_of_zero_and_one(dtype):
    """Draws sure of themselves: all uncertainty is disagreement. Draws that agree: none is. And 0 log 0 is 0."""
    votes = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 2, 0], [0, 0, 1]])  # of four draws for three points
    found = uncertainty.decompose_classes(torch.nn.functional.one_hot(votes, 3).to(dtype))
    shares = np.array([[1, 0, 0], [0.5, 0.25, 0.25], [0.75, 0.25, 0]])
    for parts, total in ((found.entropy, stats.entropy(shares, axis=1)), (found.variance, 1 - (shares**2).sum(1))):
        assert (parts.aleatoric == 0).all()
        close(parts.total, total, rtol=0, atol=1e-6)
        close(parts.epistemic, total, rtol=0, atol=1e-6)
    agree = uncertainty.decompose_classes(tensor([[[0.5, 0.5, 0.0]]], dtype).expand(7, 1, 3))
    for parts, total in ((agree.entropy, math.log(2)), (agree.variance, 0.5)):
        close(parts.aleatoric, total, rtol=0, atol=1e-6)
        close(parts.epistemic, 0.0, atol=1e-6)


def test_identities_in_single_precision():
    """A hundred draws, from flat to exactly 0 and 1, beside double precision and sums that are not streamed."""
    size = torch.tensor([0.1, 3.0, 30.0, 300.0]).repeat_interleave(50)[:, None]
    prob = (size * randn(100, 200, 8, dtype=torch.float32)).softmax(2)
    assert (prob == 0).any()
    assert (prob == 1).any()
    found, exact = uncertainty.decompose_classes(prob), uncertainty.decompose_classes(prob.double())
    for parts, exact_parts in zip(found[1:], exact[1:], strict=True):
        close(parts.total, parts.aleatoric + parts.epistemic, rtol=0, atol=1e-6)
        for part, exact_part in zip(parts, exact_parts, strict=True):
            close(part.double(), exact_part, rtol=0, atol=1e-6)
        assert all((part >= 0).all() for part in parts)


def test_streamed_draws_give_the_same_and_stay_as_they_are():
    prob = randn(5, 3, 4).softmax(2)
    first = uncertainty.add_class_draw(None, prob[0])
    before = [values.clone() for values in first[1:]]
    both = uncertainty.add_class_draw(first, prob[1])
    assert all(torch.equal(old, new) for old, new in zip(before, first[1:], strict=True))
    assert (first.num_draws, both.num_draws) == (1, 2)
    for draw in prob[2:]:
        both = uncertainty.add_class_draw(both, draw)
    whole = uncertainty.decompose_classes(prob)
    for found in (uncertainty.decompose_classes(both), uncertainty.decompose_classes(prob.flip(0))):
        for one, other in zip(
            [found.prob, *found.entropy, *found.variance], [whole.prob, *whole[1], *whole[2]], strict=True
        ):
            close(one, other)


def test_decomposition_of_regression_far_from_zero():
    """Means of a million that differ by one: the mean of squares less the square of the mean loses the digits."""
    means, variances = 1e6 + randn(50, 4, 3), rand(50, 4, 3, seed=1)
    found = uncertainty.decompose_regression(zip(means.float(), variances.float(), strict=True))
    close(found.variance.epistemic.double(), means.float().double().var(0, correction=0), rtol=5e-2)
    found = uncertainty.decompose_regression(zip(means, variances, strict=True))
    close(found.mean, means.numpy().mean(0))
    close(found.variance.aleatoric, variances.numpy().mean(0))
    close(found.variance.epistemic, means.numpy().var(0), rtol=1e-8)


def test_total_variance_is_that_of_the_mixture():
    means, variances = randn(3, 1), 0.1 + rand(3, 1, seed=1)
    y = np.linspace(-12, 12, 20_001)
    density = stats.norm.pdf(y, means.numpy(), variances.numpy() ** 0.5).mean(0)
    centre = integrate.trapezoid(y * density, y)
    found = uncertainty.decompose_regression(zip(means, variances, strict=True))
    close(found.mean, centre, rtol=1e-8)
    close(found.variance.total, integrate.trapezoid((y - centre) ** 2 * density, y), rtol=1e-8)


def test_few_draws_see_a_share_of_the_epistemic_variance():
    """Of two draws on average one half, as the docstring says, and of five four fifths."""
    prob = randn(5, 20_000, 3).softmax(2)
    exact = randn(200_000, 3, seed=1).softmax(1).var(0).sum()
    for num_draws in (2, 5):
        found = uncertainty.decompose_classes(prob[:num_draws]).variance.epistemic
        check_mean(found, exact * (num_draws - 1) / num_draws)


def test_draws_are_not_kept():
    alive = []

    def draws():
        for seed in range(20):
            prob = randn(2, 3, 4, 4, seed=seed).softmax(1)
            alive.append(weakref.ref(prob))
            assert sum(ref() is not None for ref in alive) <= 3  # this one, the one before, and the first
            yield prob

    uncertainty.decompose_classes(draws())
    assert len(alive) == 20


MEMORY = """
import torch
from bdl_lib import uncertainty
torch.set_num_threads(1)
draws = (torch.full((64, 8, 64, 64), 0.125) for _ in range(3))
parts = uncertainty.decompose_classes(draws)
assert parts.entropy.epistemic.shape == (64, 64, 64)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; what getrusage says includes the parent")
def test_images_of_the_full_size_need_little_memory():
    """64 images of 64 x 64 pixels and 8 classes; three draws show the peak, since no more are kept of a hundred.

    Without streaming, the hundred draws alone would take 0.84 GB, and with their logs more than twice as much.
    """
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 1e9


# ---- Calibration


def forecast(n, slope, seed):
    """Announced probabilities, and what happened with ½ + slope (p - ½): slope 1 is calibrated."""
    prob = rand(n, seed=seed)
    return prob, rand(n, seed=seed + 10**6) < 0.5 + slope * (prob - 0.5)


@pytest.mark.parametrize("pixels", [(), (4, 3)], ids=["vectors", "images"])
def test_top_label_and_its_ece_by_hand(pixels):
    prob, labels = (2 * randn(40, 3, *pixels)).softmax(1), torch.randint(3, (40, *pixels), generator=seeded(1))
    found = uncertainty.top_label(prob, labels)
    rows, truth = prob.movedim(1, -1).reshape(-1, 3).numpy(), labels.flatten().numpy()
    close(found.confidence, rows.max(1))
    assert found.is_right.double().mean() == pytest.approx(metrics.accuracy_score(truth, rows.argmax(1)))
    right, ece = rows.argmax(1) == truth, 0.0
    for low in np.arange(10) / 10:
        inside = (rows.max(1) > low) & (rows.max(1) <= low + 0.1)
        if inside.any():
            ece += inside.mean() * abs(rows.max(1)[inside].mean() - right[inside].mean())
    close(scores.calibration_error(*found, num_bins=10, bins="equal_width").ece, ece)


def test_metrics_are_those_of_torchmetrics():
    draw = seeded()
    logits = 2 * torch.randn(2_000, 4, generator=draw)
    labels = torch.multinomial((0.5 * logits).softmax(1), 1, generator=draw)[:, 0]
    confidence, is_right = uncertainty.top_label(logits.softmax(1), labels)
    ours = scores.calibration_error(confidence, is_right, num_bins=15, bins="equal_width")
    theirs = multiclass_calibration_error(logits.softmax(1), labels, 4, n_bins=15)
    torch.testing.assert_close(ours.ece, theirs, atol=1e-6, rtol=0)
    found = uncertainty.detection(1 - confidence, ~is_right)
    for name, theirs in [("auroc", binary_auroc), ("aupr", binary_average_precision)]:
        expected = theirs(1 - confidence, (~is_right).long())
        torch.testing.assert_close(getattr(found, name).value, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("bins", "strategy"), [("equal_width", "uniform"), ("equal_count", "quantile")])
def test_reliability_diagram_is_sklearns(bins, strategy):
    prob, labels = forecast(400, 0.6, seed=1)
    found = uncertainty.reliability_diagram(prob, labels, num_bins=8, bins=bins)
    frequency, confidence = sklearn_calibration.calibration_curve(labels, prob, n_bins=8, strategy=strategy)
    close(found.frequency, frequency)
    close(found.confidence, confidence)
    assert found.count.sum() == 400
    assert found.level == 0.9


def quantile_of_count(prob, level):
    """The smallest number of events that is reached with this probability, by convolution one by one."""
    pmf = np.ones(1)
    for p in prob:
        pmf = np.convolve(pmf, [1 - p, p])
    return int(np.argmax(pmf.cumsum() >= level))


@pytest.mark.parametrize("bins", ["equal_width", "equal_count"])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_band_is_that_of_independent_events(bins, level):
    prob, labels = forecast(157, 1.0, seed=2)
    prob[:6] = tensor([0.0, 1.0, 0.0, 1.0, 0.5, 0.5])
    found = uncertainty.reliability_diagram(prob, labels, num_bins=7, bins=bins, level=level)
    start, ordered = 0, prob.sort().values.numpy()
    for size, low, high in zip(found.count, found.band_low, found.band_high, strict=True):
        members = ordered[start : start + int(size)]
        close(low, quantile_of_count(members, (1 - level) / 2) / len(members))
        close(high, quantile_of_count(members, (1 + level) / 2) / len(members))
        start += int(size)


def test_band_of_equal_probabilities_is_binomial():
    found = uncertainty.reliability_diagram(torch.full((300,), 0.3), torch.arange(300) < 90, num_bins=1)
    close(found.band_low[0], stats.binom.ppf(0.05, 300, 0.3) / 300, rtol=1e-6)
    close(found.band_high[0], stats.binom.ppf(0.95, 300, 0.3) / 300, rtol=1e-6)


def test_band_of_certainties_and_of_empty_bins():
    prob, labels = tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]), tensor([0, 0, 1, 1, 1, 1], torch.long)
    found = uncertainty.reliability_diagram(prob, labels, num_bins=3, bins="equal_width")
    close(found.band_low, tensor([0.0, nan, 1.0]))
    close(found.band_high, tensor([0.0, nan, 1.0]))


def test_band_holds_calibrated_forecasts_as_often_as_it_says_and_no_others():
    inside = []
    for seed in range(100):
        found = uncertainty.reliability_diagram(*forecast(300, 1.0, seed), num_bins=10, level=0.8)
        inside.append(((found.band_low <= found.frequency) & (found.frequency <= found.band_high)).double().mean())
    assert 0.8 < sum(inside) / 100 < 0.9  # a count is whole, so the band holds up to one of the 30 more
    wrong = uncertainty.reliability_diagram(*forecast(3000, 0.5, 0), num_bins=10, level=0.99)
    outside = (wrong.frequency < wrong.band_low) | (wrong.frequency > wrong.band_high)
    assert outside[[0, 1, 2, 7, 8, 9]].all()


@pytest.mark.parametrize("bins", ["equal_width", "equal_count"])
def test_corrected_ece_by_hand(bins):
    prob, labels = forecast(61, 0.3, seed=4)
    found = uncertainty.corrected_ece(prob, labels, num_bins=5, bins=bins)
    count = scores.calibration_error(prob, labels, num_bins=5, bins=bins).count.int().tolist()
    points, expected = sorted(zip(prob.tolist(), labels.tolist(), strict=True)), 0.0
    for size in count:
        members, points = [y - p for p, y in points[:size]], points[size:]
        for half, other in ((members[::2], members[1::2]), (members[1::2], members[::2])):
            expected += np.sign(sum(other)) * sum(half) / 61
    close(found.mean, expected)
    close(found.mean, found.values.mean())
    close(found.values.abs(), (labels.double() - prob).abs())


def test_corrected_ece_is_zero_for_the_calibrated_and_right_for_the_others():
    found = [uncertainty.corrected_ece(*forecast(200, 1.0, seed), num_bins=10) for seed in range(200)]
    check_mean([one.mean for one in found], 0.0)
    usual = [scores.calibration_error(*forecast(200, 1.0, seed), num_bins=10).ece for seed in range(50)]
    assert sum(usual) / 50 > 0.05
    check_errors([one[:2] for one in found], 0.0, rms=(1.0, 1.4))  # up to a quarter too small, as it says
    wrong = [uncertainty.corrected_ece(*forecast(2000, 0.0, seed), num_bins=10) for seed in range(100)]
    check_mean([one.mean for one in wrong], 0.25)  # of |½ - p|
    check_errors([one[:2] for one in wrong], 0.25)


def test_corrected_ece_is_not_above_the_error_on_average():
    """Where errors are as large as their noise, it is below; the usual ECE is above."""
    exact = 0.2 * 0.25
    found = [uncertainty.corrected_ece(*forecast(300, 0.8, seed), num_bins=10).mean for seed in range(200)]
    usual = [scores.calibration_error(*forecast(300, 0.8, seed), num_bins=10).ece for seed in range(50)]
    assert 0 < sum(found) / 200 < exact < sum(usual) / 50


# ---- Recalibration


def overconfident(n, classes, temperature, *pixels, seed=0):
    """Logits that are the truth times a temperature, and labels from the truth."""
    logits = 2 * randn(n, classes, *pixels, seed=seed)
    noise = -(-rand(n, classes, *pixels, seed=seed + 1).log()).log()  # Gumbel: the largest sum is a draw
    return temperature * logits, (logits + noise).argmax(1)


def mean_loss(logits, labels):
    return torch.nn.functional.cross_entropy(logits, labels)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 1000.0])
def test_temperature_is_the_optimum(temperature):
    logits, labels = overconfident(400, 4, temperature)
    found = uncertainty.fit_temperature(logits, labels)
    assert found.max_gradient < 1e-12 * temperature
    scale = found.scale.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mean_loss(scale * logits, labels), scale)
    assert abs(gradient) < 1e-12 * temperature
    options = {"bounds": (1e-3 / temperature, 20 / temperature), "options": {"xatol": 1e-9 / temperature}}
    by_scipy = optimize.minimize_scalar(lambda x: mean_loss(x * logits, labels).item(), method="bounded", **options)
    close(found.scale[0], by_scipy.x, rtol=1e-6)
    close(found.softmax_temperature, 1 / found.scale)
    assert found.bias == 0


def test_temperature_is_recovered():
    """The standard deviation of the estimate is 1 / √(n curvature), here about 2 %."""
    found = [uncertainty.fit_temperature(*overconfident(2000, 4, 2.5, seed=2 * i)).scale for i in range(30)]
    check_mean([2.5 * scale for scale in found], 1.0)


def test_recalibration_of_images_is_that_of_their_pixels():
    logits, labels = overconfident(5, 3, 2.0, 6, 4)
    rows, row_labels = logits.movedim(1, -1).reshape(-1, 3), labels.flatten()
    for fit in (uncertainty.fit_temperature, uncertainty.fit_vector_scaling):
        found, expected = fit(logits, labels), fit(rows, row_labels)
        close(found.scale, expected.scale)
        close(found.bias, expected.bias)
        scaled = uncertainty.scale_logits(logits, found)
        close(scaled.movedim(1, -1).reshape(-1, 3), rows * expected.scale + expected.bias)


def test_temperature_keeps_the_answers_and_mends_the_calibration():
    logits, labels = overconfident(4000, 4, 3.0)
    scaled = uncertainty.scale_logits(logits, uncertainty.fit_temperature(logits, labels))
    assert torch.equal(scaled.argmax(1), logits.argmax(1))
    before, after = (uncertainty.corrected_ece(*uncertainty.top_label(z.softmax(1), labels)) for z in (logits, scaled))
    assert before.mean > 0.1
    assert abs(after.mean) < 4 * after.std_error


@pytest.mark.parametrize("prior_prec", [1e-3, 5.0])
@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_vector_scaling_is_the_optimum(prior_prec, factor):
    logits, labels = overconfident(300, 3, 2.0)
    logits = factor * (logits * tensor([1.0, 0.5, 2.0]) + tensor([1.0, 0.0, -2.0]))
    found = uncertainty.fit_vector_scaling(logits, labels, prior_prec=prior_prec)

    def objective(params):
        scale, bias = params[:3], params[3:]
        penalty = prior_prec / 2 * ((scale - 1).square().sum() + bias.square().sum())
        return mean_loss(scale * logits + bias, labels) + penalty / 300

    params = torch.cat([found.scale, found.bias]).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(params), params)
    assert gradient.abs().max() < 1e-10 * factor
    close(found.max_gradient, gradient.abs().max(), atol=1e-10 * factor)
    by_scipy = optimize.minimize(
        lambda x: objective(tensor(x)).item(), np.r_[np.full(3, 1 / factor), np.zeros(3)], method="BFGS"
    )
    assert objective(params).item() <= by_scipy.fun + 1e-12
    assert objective(params).item() >= by_scipy.fun - 1e-5


def test_vector_scaling_mends_what_a_temperature_cannot():
    logits, labels = overconfident(20_000, 3, 1.0)
    wrong = (logits - tensor([1.0, 0.0, -2.0])) / tensor([1.0, 0.5, 2.0])
    found = uncertainty.fit_vector_scaling(wrong, labels)
    close(found.scale, [1.0, 0.5, 2.0], rtol=0.1)
    close(found.bias - found.bias[1], [1.0, 0.0, -2.0], rtol=0, atol=0.15)
    mended = mean_loss(uncertainty.scale_logits(wrong, found), labels)
    by_temperature = mean_loss(uncertainty.scale_logits(wrong, uncertainty.fit_temperature(wrong, labels)), labels)
    assert abs(mended - mean_loss(logits, labels)) < 1e-3
    assert by_temperature > mended + 0.1


def test_vector_scaling_of_labels_that_are_all_right_or_leave_a_class_out():
    logits = 5 * torch.eye(3, dtype=f64).repeat(4, 1)
    for labels in (logits.argmax(1), torch.zeros(12, dtype=torch.long)):
        found = uncertainty.fit_vector_scaling(logits, labels)
        assert found.max_gradient < 1e-10
        assert found.scale.isfinite().all()
        assert (uncertainty.scale_logits(logits, found).argmax(1) == labels).all()


def test_recalibration_in_single_precision():
    logits, labels = overconfident(2000, 4, 2.5)
    for fit in (uncertainty.fit_temperature, uncertainty.fit_vector_scaling):
        close(fit(logits.float(), labels).scale.double(), fit(logits, labels).scale, rtol=1e-3)


# ---- Detection


def mixture(n, shift, seed, share=0.4):
    is_unfamiliar = rand(n, seed=seed + 10**6) < share
    return randn(n, seed=seed) * (1 + 0.5 * is_unfamiliar) + shift * is_unfamiliar, is_unfamiliar


@pytest.mark.parametrize("step", [0.0, 0.3, 2.0], ids=["no ties", "ties", "mostly ties"])
@pytest.mark.parametrize("shift", [1.0, -0.5])
def test_detection_is_sklearns(step, shift):
    score, is_unfamiliar = mixture(237, shift, seed=1)
    score = (score / step).round() * step if step else score
    found = uncertainty.detection(score, is_unfamiliar)
    close(found.auroc.value, metrics.roc_auc_score(is_unfamiliar, score))
    close(found.aupr.value, metrics.average_precision_score(is_unfamiliar, score))
    fpr, tpr, _ = metrics.roc_curve(~is_unfamiliar, -score, drop_intermediate=False)
    close(found.fpr95.value, fpr[tpr >= 0.95].min())
    close(found.share_unfamiliar, is_unfamiliar.double().mean())


def test_error_of_the_auroc_is_delongs():
    score, is_unfamiliar = mixture(90, 1.0, seed=2)
    score = (2 * score).round()
    pairs = score[is_unfamiliar][:, None] - score[~is_unfamiliar]
    wins = (pairs > 0).double() + 0.5 * (pairs == 0).double()
    variance = wins.mean(1).var() / len(wins) + wins.mean(0).var() / wins.shape[1]
    close(uncertainty.detection(score, is_unfamiliar).auroc.std_error, variance.sqrt())


def test_errors_of_detection_by_repetition():
    """Truths: by quadrature for the AUROC, for the others the mean, whose bias is far below its error."""
    found = []
    for seed in range(200):
        is_unfamiliar = torch.arange(300) < 120
        score = randn(300, seed=seed) * (1 + 0.5 * is_unfamiliar) + 1.0 * is_unfamiliar
        found.append(uncertainty.detection(score, is_unfamiliar))
    truth = stats.norm.cdf(1.0 / math.hypot(1.0, 1.5))
    check_mean([one.auroc.value for one in found], truth)
    check_errors([one.auroc for one in found], truth)
    for name in ("aupr", "fpr95"):
        estimates = [getattr(one, name) for one in found]
        check_errors(estimates, sum(one.value for one in estimates) / 200)


def grouped(seed, num_groups=40, size=12):
    """Points that share the luck of their group, of both kinds in each; correlated far beyond chance."""
    group = torch.arange(num_groups).repeat_interleave(size)
    is_unfamiliar = torch.arange(num_groups * size) % size < size // 3
    luck = randn(num_groups, 2, seed=seed + 10**6)[group, is_unfamiliar.long()]
    return randn(num_groups * size, seed=seed) + 1.5 * luck + 1.5 * is_unfamiliar, is_unfamiliar, group


def scatter_and_claim(estimates):
    """How far estimates scatter, and what their standard errors say, in root mean square."""
    value, std_error = torch.tensor([[float(x) for x in one] for one in estimates], dtype=f64).T
    return value.std(), std_error.square().mean().sqrt()


def test_errors_of_points_in_groups_by_repetition():
    samples = [grouped(seed) for seed in range(100)]
    found = [uncertainty.detection(score, mask, group=7 * group) for score, mask, group in samples]
    free = [uncertainty.detection(score, mask) for score, mask, _ in samples[:40]]
    for name in ("auroc", "aupr", "fpr95"):
        scatter, claim = scatter_and_claim([getattr(one, name) for one in found])
        assert 0.8 < claim / scatter < 1.25
        scatter, claim = scatter_and_claim([getattr(one, name) for one in free])
        assert claim / scatter < 0.75, "independent points would do as well: the test tests nothing"


def test_groups_of_images_are_those_of_their_pixels():
    score, is_unfamiliar, group = grouped(0)
    flat = uncertainty.detection(score, is_unfamiliar, group=group)
    shaped = uncertainty.detection(
        *(x.reshape(40, 3, 4) for x in (score, is_unfamiliar)), group=group.reshape(40, 3, 4)
    )
    for one, other in zip(flat[:3], shaped[:3], strict=True):
        close(one.value, other.value)
        close(one.std_error, other.std_error)


def two_scores(seed):
    """Two scores that share most of their noise."""
    is_unfamiliar, shared = torch.arange(200) < 80, randn(200, seed=seed)
    first, second = (shared + noise * randn(200, seed=seed + 1000 * i) for i, noise in ((1, 0.3), (2, 0.6)))
    return first + 1.2 * is_unfamiliar, second + 1.2 * is_unfamiliar, is_unfamiliar


def test_comparison_of_detectors_by_repetition():
    found = [uncertainty.compare_detectors(*two_scores(seed)) for seed in range(150)]
    truth = stats.norm.cdf(1.2 / math.sqrt(2 * 1.09)) - stats.norm.cdf(1.2 / math.sqrt(2 * 1.36))
    check_mean([one.auroc.value for one in found], truth)
    check_errors([one.auroc for one in found], truth)
    check_errors([one.aupr for one in found], sum(one.aupr.value for one in found) / 150)


def test_comparison_is_the_difference_with_a_smaller_error():
    first, second, is_unfamiliar = two_scores(0)
    found = uncertainty.compare_detectors(first, second, is_unfamiliar)
    one, other = (uncertainty.detection(score, is_unfamiliar) for score in (first, second))
    for name in ("auroc", "aupr", "fpr95"):
        close(getattr(found, name).value, getattr(one, name).value - getattr(other, name).value)
    assert found.auroc.std_error < 0.5 * math.hypot(one.auroc.std_error, other.auroc.std_error)
    same = uncertainty.compare_detectors(first, first, is_unfamiliar)
    close(torch.stack([*same.auroc, *same.aupr, *same.fpr95]), torch.zeros(6))


def test_a_perfect_and_an_opposite_detector():
    is_unfamiliar = torch.arange(10) < 4
    perfect = uncertainty.detection(is_unfamiliar.double(), is_unfamiliar)
    close(torch.stack([*perfect.auroc, *perfect.aupr, *perfect.fpr95]), tensor([1.0, 0, 1, 0, 0, 0]))
    opposite = uncertainty.detection(-is_unfamiliar.double(), is_unfamiliar)
    close(torch.stack([opposite.auroc.value, opposite.aupr.value, opposite.fpr95.value]), tensor([0.0, 0.4, 1.0]))
    knows_nothing = uncertainty.detection(torch.zeros(10, dtype=f64), is_unfamiliar)
    close(
        torch.stack([knows_nothing.auroc.value, knows_nothing.aupr.value, knows_nothing.fpr95.value]), [0.5, 0.4, 1.0]
    )


def test_only_the_order_of_the_scores_matters():
    score, is_unfamiliar = mixture(200, 1.0, seed=3)
    found, other = (uncertainty.detection(x, is_unfamiliar) for x in (score, score.exp()))
    for one, same in zip(found[:3], other[:3], strict=True):
        close(one.value, same.value)
        close(one.std_error, same.std_error)
    assert uncertainty.detection(score.float(), is_unfamiliar).auroc.value.dtype == torch.float32


@pytest.mark.parametrize("pixels", [(), (3, 2)], ids=["vectors", "images"])
def test_scores_of_unfamiliarity(pixels):
    logits = 3 * randn(5, 4, *pixels)
    prob = logits.softmax(1)
    close(uncertainty.lack_of_confidence(prob), 1 - prob.numpy().max(1))
    close(uncertainty.predictive_entropy(prob), stats.entropy(prob.numpy(), axis=1))
    for temperature in (1.0, 2.5):
        energy = uncertainty.free_energy(logits, softmax_temperature=temperature)
        close(energy, -temperature * special.logsumexp(logits.numpy() / temperature, axis=1))
        close(uncertainty.free_energy(logits + 7, softmax_temperature=temperature), energy - 7)
    sure = torch.nn.functional.one_hot(tensor([1, 0], torch.long), 3).double()
    assert (uncertainty.predictive_entropy(sure) == 0).all()
    assert (uncertainty.lack_of_confidence(sure) == 0).all()


# ---- Bad input

points, happened = tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([False, True, True, False])
prob, labels = tensor([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]]), tensor([1, 0, 1], torch.long)
logits, images = randn(3, 2), randn(3, 2, 4, 4)
halves = torch.arange(4) < 2
run = {"generator": seeded()}
BAD = {
    "log_var of others": (
        lambda: uncertainty.gaussian_nll(points, points[:3], points),
        r"loc, log_var and targets must have the same shape, got \[\[4\], \[3\], \[4\]\]",
    ),
    "one log_var": (lambda: uncertainty.laplace_nll(points, tensor(0.0), points), "must have the same shape"),
    "NaN target": (lambda: uncertainty.gaussian_nll(points, points, points * nan), "targets must be finite, got nan"),
    "infinite target": (lambda: uncertainty.laplace_nll(points, points, points / 0), "targets must be finite, got inf"),
    "no targets": (lambda: uncertainty.gaussian_nll(*[points[:0]] * 3), "targets must be floating-point and not empty"),
    "noise of other logits": (
        lambda: uncertainty.sampled_logit_prob(logits, logits[:, :1], **run),
        "logits and log_var must have the same shape",
    ),
    "no samples": (
        lambda: uncertainty.sampled_logit_nll(logits, logits, labels, num_samples=0, **run),
        "num_samples must be at least 1, got 0",
    ),
    "logits without classes": (
        lambda: uncertainty.sampled_logit_prob(points, points, **run),
        "the number of dimensions of logits must be at least 2, got 1",
    ),
    "label outside": (
        lambda: uncertainty.sampled_logit_nll(logits, logits, labels + 1, **run),
        "labels must be from 0 to 1, got 2",
    ),
    "label negative": (
        lambda: uncertainty.sampled_logit_nll(logits, logits, labels - 1, **run),
        "labels must be from 0 to 1, got -1",
    ),
    "labels without pixels": (
        lambda: uncertainty.sampled_logit_nll(images, images, labels, **run),
        r"labels must have shape \[3, 4, 4\], one a point, got \[3\]",
    ),
    "labels with a point": (lambda: uncertainty.top_label(prob, labels.double()), "labels must be whole numbers"),
    "prob not 1": (lambda: uncertainty.add_class_draw(None, 0.9 * prob), "prob must sum to 1 .* got a sum of 0.9"),
    "classes last": (
        lambda: uncertainty.decompose_classes(randn(5, 3, 4, 4, 2).softmax(-1)),
        "prob must sum to 1 over the classes, its dimension 1",
    ),
    "negative prob": (
        lambda: uncertainty.decompose_classes(tensor([[[1.5, -0.5]]])),
        "prob must not be negative, got -0.5",
    ),
    "NaN prob": (lambda: uncertainty.add_class_draw(None, prob * nan), "prob must be finite, got nan"),
    "infinite prob": (lambda: uncertainty.add_class_draw(None, prob + inf), "prob must sum to 1"),
    "whole prob": (lambda: uncertainty.add_class_draw(None, prob.round().long()), "prob must be floating-point"),
    "one class": (lambda: uncertainty.predictive_entropy(prob[:, :1]), r"2 classes or more, got \[3, 1\]"),
    "prob a vector": (lambda: uncertainty.lack_of_confidence(points), r"must have shape \[n, classes, ...\]"),
    "draw of others": (
        lambda: uncertainty.decompose_classes([prob, prob[:2]]),
        r"prob and the draws before must have the same shape, got \[\[2, 2\], \[3, 2\]\]",
    ),
    "no draws of classes": (lambda: uncertainty.decompose_classes(prob[:0, None]), "at least one draw, got none"),
    "no draws of numbers": (lambda: uncertainty.decompose_regression([]), "at least one draw, got none"),
    "negative variance": (
        lambda: uncertainty.decompose_regression([(points, -points)]),
        "var must not be negative, got -0.4",
    ),
    "NaN variance": (
        lambda: uncertainty.add_regression_draw(None, points, points * nan),
        "var must be finite, got nan",
    ),
    "NaN mean": (lambda: uncertainty.add_regression_draw(None, points * nan, points), "mean must be finite, got nan"),
    "variances of others": (
        lambda: uncertainty.add_regression_draw(None, points, points[:2]),
        "mean and var must have the same shape",
    ),
    "means of others": (
        lambda: uncertainty.decompose_regression([(points, points), (points[:2], points[:2])]),
        "mean and the draws before must have the same shape",
    ),
    "label of no class": (lambda: uncertainty.top_label(prob, labels + 1), "labels must be from 0 to 1, got 2"),
    "top of no distribution": (lambda: uncertainty.top_label(2 * prob, labels), "prob must sum to 1"),
    "level 1": (
        lambda: uncertainty.reliability_diagram(points, happened, num_bins=1, level=1.0),
        "level must be between 0 and 1, got 1.0",
    ),
    "level NaN": (
        lambda: uncertainty.reliability_diagram(points, happened, num_bins=1, level=nan),
        "level must be between 0 and 1, got nan",
    ),
    "no calibration set": (
        lambda: uncertainty.reliability_diagram(points[:0], happened[:0]),
        "prob must be floating-point and not empty",
    ),
    "too many bins": (
        lambda: uncertainty.reliability_diagram(points, happened),
        "num_bins must be from 1 to half of 4",
    ),
    "NaN forecast": (lambda: uncertainty.corrected_ece(points * nan, happened), "prob must be finite, got nan"),
    "other bins": (
        lambda: uncertainty.corrected_ece(points, happened, num_bins=1, bins="equal"),
        "bins must be 'equal_count' or 'equal_width'",
    ),
    "nothing to fit a temperature": (
        lambda: uncertainty.fit_temperature(logits[:0], labels[:0]),
        "logits must be floating-point and not empty",
    ),
    "nothing to fit scales": (lambda: uncertainty.fit_vector_scaling(logits[:0], labels[:0]), "logits must be"),
    "NaN logits": (lambda: uncertainty.fit_temperature(logits * nan, labels), "logits must be finite, got nan"),
    "label not among the logits": (lambda: uncertainty.fit_vector_scaling(logits, labels + 1), "labels must be from 0"),
    "all right": (
        lambda: uncertainty.fit_temperature(logits, logits.argmax(1)),
        "labels must miss the largest logit at least once, or the best temperature is 0",
    ),
    "all wrong": (
        lambda: uncertainty.fit_temperature(logits, logits.argmin(1)),
        "logits must favour the labels on average, got an advantage of -",
    ),
    "no prior": (
        lambda: uncertainty.fit_vector_scaling(logits, labels, prior_prec=0.0),
        "prior_prec must be positive and finite, got 0.0",
    ),
    "prior NaN": (
        lambda: uncertainty.fit_vector_scaling(logits, labels, prior_prec=nan),
        "prior_prec must be positive and finite, got nan",
    ),
    "scaling of other classes": (
        lambda: uncertainty.scale_logits(logits, LogitScaling(points, points, tensor(0.0))),
        "logits must have the 4 classes of the scaling, got 2",
    ),
    "temperature 0": (
        lambda: uncertainty.free_energy(logits, softmax_temperature=0.0),
        "softmax_temperature must be positive and finite, got 0.0",
    ),
    "NaN energy": (lambda: uncertainty.free_energy(logits * nan), "logits must be finite, got nan"),
    "mask of others": (
        lambda: uncertainty.detection(points, halves[:3]),
        "uncertainty and is_unfamiliar must have the same shape",
    ),
    "NaN score": (lambda: uncertainty.detection(points * nan, halves), "uncertainty must be finite, got nan"),
    "one unfamiliar": (
        lambda: uncertainty.detection(points, torch.arange(4) < 1),
        "is_unfamiliar must be true of at least two points and false of two, got 1 of 4",
    ),
    "none familiar": (
        lambda: uncertainty.compare_detectors(points, points, torch.arange(4) < 4),
        "is_unfamiliar must be true of at least two points and false of two, got 4 of 4",
    ),
    "one group": (
        lambda: uncertainty.detection(points, halves, group=torch.zeros(4, dtype=torch.long)),
        "group must name at least two groups, got one",
    ),
    "groups of others": (
        lambda: uncertainty.detection(points, halves, group=torch.arange(3)),
        "uncertainty and group must have the same shape",
    ),
    "second score NaN": (
        lambda: uncertainty.compare_detectors(points, points * nan, halves),
        "uncertainty must be finite, got nan",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
