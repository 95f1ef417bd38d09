"""bdl_lib.bayes against exact arithmetic, quadrature, conditioned joint normals and finite differences.

Exactness is tested in float64. Where a test draws at random, it is seeded and states its false-alarm rate.
"""

import math
import re

import hypothesis.extra.numpy as hnp
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch.distributions import Bernoulli, Beta, Distribution, Gamma, Normal

from bdl_lib import bayes

inf, nan = math.inf, math.nan
quick = settings(max_examples=25, deadline=None)


def tensor(values, **kwargs):
    return torch.tensor(values, **{"dtype": torch.float64, **kwargs})


def close(actual, expected, *, rtol=1e-10, atol=1e-12):
    expected = torch.as_tensor(np.asarray(expected), dtype=actual.dtype)
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=rtol, atol=atol)


def leaves(result):
    """Every tensor of a result: of a record its fields, of a distribution its parameters."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, Distribution):
        names = ["probs"] if isinstance(result, Bernoulli) else sorted(set(result.arg_constraints) - {"probs"})
        return [getattr(result, name) for name in names]
    return [leaf for part in result for leaf in leaves(part)]


# ---- Every function at once: batch = loop, gradients, dtype. Each argument is drawn by a maker(batch, generator).


def draw(transform, *event):
    def make(batch, generator):
        return transform(torch.randn((*batch, *event), generator=generator, dtype=torch.float64))

    return make


def any_number(*event):
    return draw(lambda z: z, *event)


def positive(*event):
    return draw(torch.exp, *event)


def unit(*event):
    return draw(torch.sigmoid, *event)


def whole(*event):
    return draw(lambda z: (3 * z).abs().round(), *event)


def gaussian(loc, root):
    """A belief whose precision stays symmetric when one entry of its root moves, as finite differences do."""
    return bayes.GaussianWeights(loc, root @ root.mT + torch.eye(root.shape[-1], dtype=root.dtype))


CASES = {
    "update": (bayes.update, [positive(3), unit(3)]),
    "update_log": (bayes.update_log, [any_number(3), any_number(3)]),
    "update_sequence": (bayes.update_sequence, [positive(3), unit(4, 3)]),
    "log_odds": (bayes.log_odds, [unit()]),
    "update_log_odds": (bayes.update_log_odds, [any_number(), unit(), unit()]),
    "beta_bernoulli": (
        lambda a, b, s, f: bayes.beta_bernoulli(Beta(a, b), s, s + f),
        [positive(), positive(), whole(), whole()],
    ),
    "gamma_poisson": (lambda a, b, x: bayes.gamma_poisson(Gamma(a, b), x), [positive(), positive(), whole(5)]),
    "normal_known_std": (
        lambda m, t, x, s: bayes.normal_known_std(Normal(m, t), x, s),
        [any_number(), positive(), any_number(5), positive()],
    ),
    "normal_unknown_std": (
        lambda m, k, a, b, x: bayes.normal_unknown_std(bayes.NormalGamma(m, k, a, b), x),
        [any_number(), positive(), positive(), positive(), any_number(5)],
    ),
    "normal_gamma_mean": (
        lambda m, k, a, b: bayes.normal_gamma_mean(bayes.NormalGamma(m, k, a, b)),
        [any_number(), positive(), positive(), positive()],
    ),
    "gaussian_prior": (lambda s: bayes.gaussian_prior(3, prior_std=s), [positive()]),
    "linear_posterior": (
        lambda m, r, x, y, s: bayes.linear_posterior(gaussian(m, r), x, y, noise_std=s),
        [any_number(3), any_number(3, 3), any_number(5, 3), any_number(5), positive()],
    ),
    "linear_predictive": (
        lambda m, r, x, s: bayes.linear_predictive(gaussian(m, r), x, noise_std=s),
        [any_number(3), any_number(3, 3), any_number(5, 3), positive()],
    ),
    "linear_log_evidence": (
        lambda m, r, x, y, s: bayes.linear_log_evidence(gaussian(m, r), x, y, noise_std=s),
        [any_number(3), any_number(3, 3), any_number(5, 3), any_number(5), positive()],
    ),
    "polynomial_features": (lambda x: bayes.polynomial_features(x, 3), [any_number(4)]),
    "radial_features": (
        lambda x: bayes.radial_features(x, torch.linspace(-1, 1, 3, dtype=x.dtype), width=0.5),
        [any_number(4)],
    ),
    "grid_1d": (
        lambda m: bayes.grid_posterior(
            lambda theta: -0.5 * (theta[:, 0] - m.unsqueeze(-1)) ** 2, bayes.midpoints(-3, 3, 20, dtype=m.dtype)
        )[1:],
        [any_number()],
    ),
    "grid_2d": (
        lambda m: bayes.grid_expectation(
            grid := bayes.grid_posterior(
                lambda theta: -((theta - m.unsqueeze(-2)) ** 2).sum(-1),
                bayes.midpoints(-3, 3, 5, dtype=m.dtype),
                bayes.midpoints(-2, 2, 4, dtype=m.dtype),
            ),
            grid.points,
        ),
        [any_number(2)],
    ),
}


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_a_batch_is_a_loop(name, data):
    """Batch shapes that broadcast, different for each argument: every entry is what a call without a batch gives."""
    function, makers = CASES[name]
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=len(makers), max_dims=2, max_side=3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    arguments = [maker(shape, generator) for maker, shape in zip(makers, shapes.input_shapes, strict=True)]
    in_one_call = leaves(function(*arguments))

    batch = shapes.result_shape
    ndim_events = [argument.ndim - len(shape) for argument, shape in zip(arguments, shapes.input_shapes, strict=True)]
    expanded = [
        argument.expand((*batch, *argument.shape[argument.ndim - ndim :]))
        for argument, ndim in zip(arguments, ndim_events, strict=True)
    ]
    for index in np.ndindex(batch):
        one_by_one = leaves(function(*(argument[index] for argument in expanded)))
        for whole_batch, one in zip(in_one_call, one_by_one, strict=True):
            torch.testing.assert_close(whole_batch.expand((*batch, *one.shape))[index], one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_gradients_agree_with_finite_differences(name):
    function, makers = CASES[name]
    generator = torch.Generator().manual_seed(1)
    arguments = [maker((2,), generator) for maker in makers]
    for argument in arguments:
        is_count = bool((argument == argument.round()).all())
        argument.requires_grad_(not is_count)
    assert torch.autograd.gradcheck(
        lambda *args: tuple(x for x in leaves(function(*args)) if x.requires_grad), arguments
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_dtype_follows_the_inputs_and_inputs_stay_untouched(name, dtype):
    function, makers = CASES[name]
    generator = torch.Generator().manual_seed(2)
    arguments = [maker((2,), generator) for maker in makers]
    before = [argument.to(dtype, copy=True) for argument in arguments]
    given_now = [argument.clone() for argument in before]
    results = leaves(function(*given_now))
    assert {result.dtype for result in results} == {dtype}
    assert all(torch.equal(a, b) for a, b in zip(before, given_now, strict=True))
    for result, exact in zip(results, leaves(function(*arguments)), strict=True):
        torch.testing.assert_close(result.double(), exact, rtol=2e-4, atol=2e-4)


# ---- Discrete

probabilities = st.one_of(st.just(0.0), st.floats(1e-300, 1.0))
weights = st.one_of(st.just(0.0), st.floats(1e-300, 1e300))


@st.composite
def beliefs_and_evidence(draw):
    """A prior, and likelihoods of some steps, such that the first hypothesis is always possible."""
    num_hypotheses, num_steps = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    prior = [draw(st.floats(1e-300, 1e300)), *(draw(weights) for _ in range(num_hypotheses - 1))]
    steps = [
        [draw(st.floats(1e-300, 1.0)), *(draw(probabilities) for _ in range(num_hypotheses - 1))]
        for _ in range(num_steps)
    ]
    return prior, steps


@given(beliefs_and_evidence())
@quick
def test_update_agrees_with_exact_fractions(case):
    prior, steps = case
    prob, log_evidence = oracles.discrete_posterior(prior, steps[:1])
    after = bayes.update(tensor(prior), tensor(steps[0]))
    close(after.prob, prob)
    close(after.log_evidence, log_evidence)


@given(beliefs_and_evidence())
@quick
def test_sequence_agrees_with_exact_fractions_after_every_step(case):
    prior, steps = case
    after = bayes.update_sequence(tensor(prior), tensor(steps))
    for t in range(len(steps)):
        prob, log_evidence = oracles.discrete_posterior(prior, steps[: t + 1])
        close(after.prob[t], prob)
        close(after.log_evidence[t], log_evidence)
    close(after.prob.sum(-1), 1)


@given(beliefs_and_evidence(), st.randoms(use_true_random=False))
@quick
def test_the_order_of_the_evidence_does_not_matter(case, random):
    prior, steps = case
    shuffled = random.sample(steps, len(steps))
    one, other = (bayes.update_sequence(tensor(prior), tensor(order)) for order in (steps, shuffled))
    close(one.prob[-1], other.prob[-1])
    close(one.log_evidence[-1], other.log_evidence[-1])


@given(beliefs_and_evidence())
@quick
def test_the_log_twin_agrees(case):
    prior, (first, *_) = case
    plain = bayes.update(tensor(prior), tensor(first))
    in_logs = bayes.update_log(tensor(prior).log(), tensor(first).log())
    close(in_logs.log_prob.exp(), plain.prob)
    close(in_logs.log_evidence, plain.log_evidence)


@given(beliefs_and_evidence(), st.floats(-1e3, 1e3))
@quick
def test_log_priors_are_up_to_a_constant_and_log_likelihoods_are_not(case, shift):
    prior, (first, *_) = case
    log_prior, log_likelihood = tensor(prior).log(), tensor(first).log()
    base = bayes.update_log(log_prior, log_likelihood)
    close(bayes.update_log(log_prior + shift, log_likelihood).log_evidence, base.log_evidence, atol=1e-9)
    close(bayes.update_log(log_prior, log_likelihood + shift).log_evidence, base.log_evidence + shift, atol=1e-9)


@given(st.floats(1e-300, 1 - 1e-9), st.floats(1e-300, 1), st.floats(1e-300, 1))
@quick
def test_odds_say_what_probabilities_say(prior, if_true, if_false):
    prior_log_odds = bayes.log_odds(tensor(prior))
    after = bayes.update_log_odds(prior_log_odds, if_true, tensor(if_false))
    prob, _ = oracles.discrete_posterior([prior, 1 - prior], [[if_true, if_false]])
    close(torch.sigmoid(after), prob[0])
    close(torch.sigmoid(prior_log_odds), prior)


def test_odds_at_certainty():
    close(bayes.log_odds(tensor([0.0, 0.5, 1.0])), [-inf, 0, inf])
    certain = bayes.update_log_odds(
        tensor([inf, -inf, 0.0, 0.0]), tensor([0.5, 0.5, 0.0, 0.5]), tensor([0.9, 0.9, 0.5, 0.0])
    )
    close(certain, [inf, -inf, -inf, inf])


def test_nothing_underflows_where_the_product_of_the_probabilities_does():
    """4,000 flips and two coins, 1e300 apart in the prior. Half-way the products of the likelihoods are near 1e-602."""
    flips = tensor([[0.25, 0.5]] * 2000 + [[0.5, 0.25]] * 2000)
    after = bayes.update_sequence(tensor([1.0, 1e-300]), flips)
    close(after.prob[1999], [math.exp(-2000 * math.log(2) + 300 * math.log(10)), 1], atol=0, rtol=1e-9)
    close(after.prob[-1], [1, 1e-300], atol=0, rtol=1e-8)  # sums of logs near 4,000 round
    close(after.log_evidence[-1], 2000 * math.log(0.125))


@pytest.mark.parametrize("function", ["update", "update_sequence"])
def test_gradients_are_exact_where_a_prior_or_a_likelihood_is_zero(function):
    """Against the quotient p·l / Σ p·l itself, which has no logs in it."""
    prior = tensor([0.0, 0.3, 0.5, 0.2], requires_grad=True)
    steps = tensor([[0.4, 0.0, 0.3, 0.9], [0.2, 0.5, 0.7, 0.0]], requires_grad=True)
    used = steps[:1] if function == "update" else steps
    after = bayes.update(prior, used[0]) if function == "update" else bayes.update_sequence(prior, used)
    joint = prior / prior.sum() * used.cumprod(-2) if function == "update_sequence" else prior / prior.sum() * used[0]
    plain = joint / joint.sum(-1, keepdim=True), joint.sum(-1).log()
    slope = torch.randn(plain[0].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def gradients(prob, log_evidence):
        return torch.autograd.grad((slope * prob).sum() + log_evidence.sum(), [prior, steps])

    for ours, theirs in zip(gradients(*after), gradients(*plain), strict=True):
        close(ours, theirs)


def test_log_gradients_are_finite_where_a_hypothesis_is_ruled_out():
    log_prior = tensor([-inf, 0.0, 1.0], requires_grad=True)
    log_likelihood = tensor([0.0, -inf, 2.0], requires_grad=True)
    after = bayes.update_log(log_prior, log_likelihood)
    gradients = torch.autograd.grad(after.log_prob.exp().sum() + after.log_evidence, [log_prior, log_likelihood])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_million_pieces_of_evidence():
    heads = torch.rand(1_000_000, generator=torch.Generator().manual_seed(4)) < 0.6
    coins = tensor([0.5, 0.6, 0.7])
    likelihoods = torch.where(heads[:, None], coins, 1 - coins)
    after = bayes.update_sequence(torch.ones(3, dtype=torch.float64), likelihoods)
    log_joint = heads.sum() * coins.log() + (~heads).sum() * (1 - coins).log() - math.log(3)
    close(after.log_evidence[-1], log_joint.logsumexp(0), rtol=1e-11)
    close(after.prob[-1], [0, 1, 0])


# ---- Conjugate pairs

moderate = st.floats(0.05, 50)


@given(moderate, moderate, st.lists(st.integers(0, 1), max_size=12))
@quick
def test_coin_flip_by_flip_and_by_quadrature(a, b, flips):
    result = bayes.beta_bernoulli(Beta(tensor(a), tensor(b)), sum(flips), len(flips))
    close(result.log_evidence, oracles.beta_bernoulli_flip_by_flip(a, b, flips), atol=1e-10)
    posterior = stats.beta(a + sum(flips), b + len(flips) - sum(flips))
    close(result.posterior.mean, posterior.mean())
    close(result.posterior.variance, posterior.var())
    close(result.predictive.probs, posterior.mean())


@pytest.mark.parametrize(("a", "b", "s", "n"), [(2, 3, 7, 10), (1, 1, 0, 5), (1.5, 30, 9, 9)])
def test_coin_evidence_is_the_integral_over_theta(a, b, s, n):
    def log_joint(theta):
        return stats.beta.logpdf(theta, a, b) + s * np.log(theta) + (n - s) * np.log1p(-theta)

    result = bayes.beta_bernoulli(Beta(tensor(a), tensor(b)), s, n)
    close(result.log_evidence, oracles.log_quad(log_joint, 0, 1), rtol=1e-8)


def test_coin_evidence_is_of_the_ordered_flips():
    """Over all 2^n orders the probabilities sum to one; that of the count alone has the binomial coefficient more."""
    n = 9
    prior = Beta(tensor(1.3), tensor(0.4))
    log_evidence = bayes.beta_bernoulli(prior, torch.arange(n + 1), n).log_evidence
    orders = tensor([math.comb(n, s) for s in range(n + 1)])
    close((orders * log_evidence.exp()).sum(), 1)
    close(log_evidence + orders.log(), stats.betabinom.logpmf(range(n + 1), n, 1.3, 0.4))


@given(moderate, moderate, st.lists(st.integers(0, 30), min_size=1, max_size=6))
@quick
def test_counts_count_by_count(concentration, rate, counts):
    result = bayes.gamma_poisson(Gamma(tensor(concentration), tensor(rate)), torch.tensor(counts))
    expected = oracles.gamma_poisson_count_by_count(concentration, rate, counts)
    close(result.log_evidence, expected, atol=1e-10)
    posterior = stats.gamma(concentration + sum(counts), scale=1 / (rate + len(counts)))
    close(result.posterior.mean, posterior.mean())
    close(result.posterior.variance, posterior.var())


def test_counts_predictive_is_the_average_poisson():
    result = bayes.gamma_poisson(Gamma(tensor(2.0), tensor(0.7)), torch.tensor([3, 0, 4]))
    for count in range(12):

        def log_joint(rate, count=count):
            return stats.gamma.logpdf(rate, 9, scale=1 / 3.7) + stats.poisson.logpmf(count, rate)

        expected = oracles.log_quad(log_joint, 0, 40)
        close(result.predictive.log_prob(tensor(float(count))), expected, rtol=1e-8)


observations = st.lists(st.floats(-20, 20), min_size=1, max_size=8)


@given(st.floats(-5, 5), moderate, moderate, observations)
@quick
def test_known_std_is_a_conditioned_joint_normal(loc, prior_std, noise_std, values):
    result = bayes.normal_known_std(Normal(tensor(loc), tensor(prior_std)), tensor(values), noise_std)
    posterior_loc, posterior_std, log_evidence = oracles.normal_known_std(loc, prior_std, np.array(values), noise_std)
    close(result.posterior.loc, posterior_loc, rtol=1e-7, atol=1e-7)
    close(result.posterior.scale, posterior_std, rtol=1e-5)  # the oracle subtracts nearly equal numbers
    close(result.log_evidence, log_evidence, rtol=1e-6, atol=1e-6)
    close(result.predictive.loc, result.posterior.loc)
    close(result.predictive.variance, posterior_std**2 + noise_std**2, rtol=1e-7)


@given(st.floats(-5, 5), moderate, moderate, moderate, observations)
@quick
def test_unknown_std_is_a_multivariate_student_t(loc, prec_scale, concentration, rate, values):
    prior = bayes.NormalGamma(loc, prec_scale, concentration, rate)
    result = bayes.normal_unknown_std(prior, tensor(values))
    expected = oracles.normal_unknown_std_log_evidence(*prior, np.array(values))
    close(result.log_evidence, expected, rtol=1e-7, atol=1e-7)
    one_more = oracles.normal_unknown_std_log_evidence(*prior, np.array([*values, 1.5]))
    close(result.predictive.log_prob(tensor(1.5)), one_more - expected, rtol=1e-6, atol=1e-6)


def test_unknown_std_posterior_is_prior_times_likelihood():
    """The density that the record stands for: its ratio to prior × likelihood is one constant, the evidence."""
    values = np.array([0.3, -1.2, 2.0, 0.8])

    def log_density(belief, mean, prec):
        loc, prec_scale, concentration, rate = map(float, belief)
        log_prec = stats.gamma.logpdf(prec, concentration, scale=1 / rate)
        return log_prec + stats.norm.logpdf(mean, loc, (prec_scale * prec) ** -0.5)

    prior = bayes.NormalGamma(0.5, 0.7, 1.4, 2.0)
    result = bayes.normal_unknown_std(prior, tensor(values))
    for mean, prec in [(0.0, 1.0), (1.0, 0.2), (-2.0, 3.0)]:
        log_joint = log_density(prior, mean, prec) + stats.norm.logpdf(values, mean, prec**-0.5).sum()
        close(result.log_evidence, log_joint - log_density(result.posterior, mean, prec))


def test_the_mean_alone_is_the_precision_averaged_out():
    belief = bayes.NormalGamma(0.5, 0.7, 1.4, 2.0)
    for mean in (-3.0, 0.5, 1.7):

        def log_joint(prec, mean=mean):
            log_prec = stats.gamma.logpdf(prec, 1.4, scale=1 / 2.0)
            return log_prec + stats.norm.logpdf(mean, 0.5, (0.7 * prec) ** -0.5)

        close(bayes.normal_gamma_mean(belief).log_prob(tensor(mean)), oracles.log_quad(log_joint, 0, 40), rtol=1e-6)


@given(st.data())
@quick
def test_learning_in_two_parts_is_learning_at_once(data):
    values = data.draw(st.lists(st.integers(0, 9), min_size=2, max_size=9))
    cut = data.draw(st.integers(1, len(values) - 1))
    flips = [value % 2 for value in values]
    learn = {
        "coin": (lambda prior, x: bayes.beta_bernoulli(prior, x.sum(), len(x)), Beta(tensor(1.5), tensor(2.0)), flips),
        "count": (bayes.gamma_poisson, Gamma(tensor(1.5), tensor(2.0)), values),
        "known": (lambda prior, x: bayes.normal_known_std(prior, x, 0.8), Normal(tensor(1.5), tensor(2.0)), values),
        "unknown": (bayes.normal_unknown_std, bayes.NormalGamma(1.5, 2.0, 3.0, 0.5), values),
    }
    for update, prior, numbers in learn.values():
        at_once = update(prior, tensor(numbers))
        first = update(prior, tensor(numbers[:cut]))
        second = update(first.posterior, tensor(numbers[cut:]))
        for one, other in zip(leaves(at_once.posterior), leaves(second.posterior), strict=True):
            close(one, other)
        close(at_once.log_evidence, first.log_evidence + second.log_evidence)


def test_a_million_observations_far_from_zero():
    """Mean 1e6, std 1: squares of 1e12, of which Σx² − n·mean² would keep four digits."""
    generator = torch.Generator().manual_seed(5)
    values = 1e6 + torch.randn(1_000_000, generator=generator, dtype=torch.float64)
    centred = values.numpy().astype(np.longdouble) - 1_000_000
    mean, squares, n = centred.mean(), ((centred - centred.mean()) ** 2).sum(), len(centred)

    known = bayes.normal_known_std(Normal(tensor(1e6), tensor(10.0)), values, 1.0)
    close(known.posterior.loc - 1e6, float(mean * n * 100 / (n * 100 + 1)), atol=1e-9)
    expected = -0.5 * (n * np.log(2 * np.pi) + np.log1p(n * 100) + squares + n * mean**2 / (1 + n * 100))
    close(known.log_evidence, float(expected), rtol=1e-11)

    unknown = bayes.normal_unknown_std(bayes.NormalGamma(1e6, 0.01, 2.0, 2.0), values)
    rate = 2 + 0.5 * (squares + 0.01 * n / (n + 0.01) * mean**2)
    close(unknown.posterior.rate, float(rate), rtol=1e-11)


def test_a_million_flips():
    result = bayes.beta_bernoulli(Beta(tensor(1.0), tensor(2.0)), 600_000, 1_000_000)
    close(result.log_evidence, special.betaln(600_001, 400_002) - special.betaln(1, 2), rtol=1e-12)
    close(result.posterior.mean, 600_001 / 1_000_003)


def test_a_million_counts():
    counts = torch.poisson(
        torch.full((1_000_000,), 3.0, dtype=torch.float64), generator=torch.Generator().manual_seed(6)
    )
    prior = Gamma(tensor(2.0), tensor(1.0))
    at_once = bayes.gamma_poisson(prior, counts)
    first = bayes.gamma_poisson(prior, counts[:1000])
    second = bayes.gamma_poisson(first.posterior, counts[1000:])
    close(at_once.log_evidence, first.log_evidence + second.log_evidence, rtol=1e-11)
    close(at_once.posterior.mean, (counts.sum() + 2) / 1_000_001)


def test_scalar_prior_of_a_whole_batch_and_no_flips_at_all():
    nothing = bayes.beta_bernoulli(Beta(tensor(2.0), tensor(3.0)), torch.zeros(4), 0)
    close(nothing.posterior.mean, [0.4] * 4)
    close(nothing.log_evidence, [0.0] * 4)


# ---- Grid


def test_midpoints_are_centres_of_equal_cells():
    axis = bayes.midpoints(-1, 3, 8, dtype=torch.float64)
    close(axis, np.arange(-0.75, 3, 0.5))
    assert bayes.midpoints(0, 1, 3).dtype == torch.get_default_dtype()


@pytest.mark.parametrize(("a", "b", "s", "n"), [(2, 3, 7, 10), (1, 1, 0, 5), (30, 30, 400, 600)])
def test_grid_agrees_with_the_coin_in_closed_form(a, b, s, n):
    prior = Beta(tensor(a), tensor(b))
    exact = bayes.beta_bernoulli(prior, s, n)
    axis = bayes.midpoints(0, 1, 4000, dtype=torch.float64)

    def log_joint(theta):
        theta = theta[:, 0]
        return prior.log_prob(theta) + s * theta.log() + (n - s) * (1 - theta).log()

    grid = bayes.grid_posterior(log_joint, axis)
    close(grid.log_evidence, exact.log_evidence, atol=2e-6)
    close(grid.log_prob.exp(), exact.posterior.log_prob(axis).exp(), atol=1e-4)
    close(grid.cell_prob.sum(), 1)
    close(bayes.grid_expectation(grid, axis), exact.posterior.mean, atol=1e-6)
    variance = bayes.grid_expectation(grid, (axis - exact.posterior.mean) ** 2)
    close(variance, exact.posterior.variance, atol=1e-6)
    assert bayes.grid_marginal(grid, 0) is grid


def test_grid_agrees_with_normal_gamma_in_two_dimensions():
    """Axes of unlike length and range, so that a swapped axis or a forgotten cell width shows."""
    prior = bayes.NormalGamma(0.5, 0.7, 3.0, 2.0)
    values = tensor([0.3, -1.2, 2.0, 0.8])
    exact = bayes.normal_unknown_std(prior, values)

    def log_joint(theta):
        mean, prec = theta.unbind(-1)
        log_prior = Gamma(*tensor([3.0, 2.0])).log_prob(prec) + Normal(0.5, (0.7 * prec).rsqrt()).log_prob(mean)
        return log_prior + Normal(mean, prec.rsqrt()).log_prob(values[:, None]).sum(0)

    axes = bayes.midpoints(-6, 7, 700, dtype=torch.float64), bayes.midpoints(0, 9, 300, dtype=torch.float64)
    grid = bayes.grid_posterior(log_joint, *axes)
    close(grid.log_evidence, exact.log_evidence, atol=1e-4)
    close(grid.cell_prob.sum(), 1)
    expected = tensor([exact.posterior.loc, exact.posterior.concentration / exact.posterior.rate])
    close(bayes.grid_expectation(grid, grid.points), expected, atol=1e-3)

    mean = bayes.grid_marginal(grid, 0)
    close(mean.log_prob.exp(), bayes.normal_gamma_mean(exact.posterior).log_prob(axes[0]).exp(), atol=1e-4)
    prec = bayes.grid_marginal(grid, 1)
    density = Gamma(exact.posterior.concentration, exact.posterior.rate).log_prob(axes[1]).exp()
    close(prec.log_prob.exp(), density, atol=1e-4)
    close(mean.log_evidence, grid.log_evidence)
    close(prec.cell_prob.sum(), 1)


@given(st.floats(-1e5, 1e5))
@quick
def test_grid_shifts_with_the_log_joint_and_never_underflows(shift):
    axis = bayes.midpoints(-8, 8, 100, dtype=torch.float64)
    base, shifted = (bayes.grid_posterior(lambda theta, c=c: -0.5 * theta[:, 0] ** 2 + c, axis) for c in (0.0, shift))
    close(shifted.log_evidence, base.log_evidence + shift)
    close(shifted.log_prob, base.log_prob, atol=1e-9)
    close(base.log_evidence, 0.5 * math.log(2 * math.pi))


def test_grid_calls_the_density_once_on_all_points_and_allows_impossible_ones():
    calls = []

    def log_joint(theta):
        calls.append(tuple(theta.shape))
        return torch.where(theta[:, 0] > 0, 0.0, -inf).double()

    axes = [bayes.midpoints(-1, 1, n, dtype=torch.float64) for n in (6, 4)]
    grid = bayes.grid_posterior(log_joint, *axes)
    assert calls == [(24, 2)]
    close(grid.log_evidence, math.log(2))
    close(grid.cell_prob[:3], 0)
    close(bayes.grid_expectation(grid, grid.points), [0.5, 0])


# ---- Linear regression


@st.composite
def regressions(draw):
    num_points, num_features = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    root = generator.normal(size=(num_features, num_features))
    return dict(
        prior_loc=generator.normal(size=num_features),
        prior_cov=root @ root.T + 0.1 * np.eye(num_features),
        features=generator.normal(size=(num_points, num_features)),
        targets=3 * generator.normal(size=num_points),
        noise_std=draw(st.floats(0.1, 3)),
        new_features=generator.normal(size=(5, num_features)),
    )


@given(regressions())
@quick
def test_regression_in_weight_space_is_regression_in_function_space(case):
    weight_mean, weight_cov, mean, function_var, log_evidence = oracles.linear_in_function_space(**case)
    prior = bayes.GaussianWeights(tensor(case["prior_loc"]), tensor(np.linalg.inv(case["prior_cov"])))
    features, targets, noise_std = tensor(case["features"]), tensor(case["targets"]), case["noise_std"]
    posterior = bayes.linear_posterior(prior, features, targets, noise_std=noise_std)
    close(posterior.loc, weight_mean, rtol=1e-6, atol=1e-8)
    close(posterior.prec.inverse(), weight_cov, rtol=1e-6, atol=1e-8)
    predictive = bayes.linear_predictive(posterior, tensor(case["new_features"]), noise_std=noise_std)
    close(predictive.mean, mean, rtol=1e-6, atol=1e-8)
    close(predictive.parameter_var, function_var, rtol=1e-6, atol=1e-8)
    close(predictive.noise_var, noise_std**2)
    close(predictive.std, (function_var + noise_std**2) ** 0.5, rtol=1e-6)
    evidence = bayes.linear_log_evidence(prior, features, targets, noise_std=noise_std)
    close(evidence, log_evidence, rtol=1e-6, atol=1e-6)


@given(regressions(), st.data())
@quick
def test_regression_piece_by_piece_is_regression_at_once(case, data):
    cut = data.draw(st.integers(1, len(case["targets"])))
    prior = bayes.GaussianWeights(tensor(case["prior_loc"]), tensor(np.linalg.inv(case["prior_cov"])))
    features, targets, noise = tensor(case["features"]), tensor(case["targets"]), dict(noise_std=case["noise_std"])
    at_once = bayes.linear_posterior(prior, features, targets, **noise)
    belief, log_evidence = prior, 0.0
    for part in range(0, len(targets), cut):
        x, y = features[part : part + cut], targets[part : part + cut]
        log_evidence = log_evidence + bayes.linear_log_evidence(belief, x, y, **noise)
        belief = bayes.linear_posterior(belief, x, y, **noise)
    close(belief.loc, at_once.loc, rtol=1e-8, atol=1e-8)
    close(belief.prec, at_once.prec)
    close(log_evidence, bayes.linear_log_evidence(prior, features, targets, **noise), rtol=1e-8, atol=1e-8)


def test_one_weight_by_quadrature():
    x, y, noise_std = np.array([0.5, -1.0, 2.0]), np.array([1.0, 0.3, 1.9]), 0.7

    def log_joint(w):
        return stats.norm.logpdf(w, 0, 1.5) + stats.norm.logpdf(y, w * x, noise_std).sum()

    prior = bayes.gaussian_prior(1, prior_std=1.5, dtype=torch.float64)
    evidence = bayes.linear_log_evidence(prior, tensor(x)[:, None], tensor(y), noise_std=noise_std)
    close(evidence, oracles.log_quad(log_joint, -12, 12), rtol=1e-9)


def test_a_flat_prior_is_least_squares():
    generator = np.random.default_rng(7)
    x, y = generator.normal(size=(20, 3)) * [1, 1e5, 1e-5], generator.normal(size=20)
    prior = bayes.gaussian_prior(3, prior_std=inf, dtype=torch.float64)
    posterior = bayes.linear_posterior(prior, tensor(x), tensor(y), noise_std=0.5)
    close(posterior.loc, np.linalg.lstsq(x, y)[0], rtol=1e-8)
    close(posterior.prec, x.T @ x / 0.25)


def test_a_prior_flat_in_one_direction_needs_data_only_there():
    prior = bayes.GaussianWeights(torch.zeros(2).double(), tensor([[0.0, 0.0], [0.0, 4.0]]))
    seen, unseen = tensor([[1.0, 0.0]]), tensor([[0.0, 1.0]])
    close(bayes.linear_posterior(prior, seen, tensor([3.0]), noise_std=1.0).loc, [3, 0])
    with pytest.raises(ValueError, match="full column rank when the prior is flat, got rank 1 of 2"):
        bayes.linear_posterior(prior, unseen, tensor([3.0]), noise_std=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_points", [3, 100, 10_000])
def test_dependent_columns_are_found_through_rounding(dtype, num_points):
    x = torch.randn(num_points, generator=torch.Generator().manual_seed(8), dtype=dtype)
    features = torch.stack([torch.ones_like(x), x, 2 * x + 1], -1)
    prior = bayes.gaussian_prior(3, prior_std=inf, dtype=dtype)
    with pytest.raises(ValueError, match="got rank 2 of 3"):
        bayes.linear_posterior(prior, features, x, noise_std=0.1)
    bayes.linear_posterior(bayes.gaussian_prior(3, prior_std=1.0, dtype=dtype), features, x, noise_std=0.1)


def test_a_million_points():
    """Against the sums in extended precision, which an n-by-n matrix could not even hold."""
    generator = torch.Generator().manual_seed(9)
    x = torch.rand(1_000_000, generator=generator, dtype=torch.float64) * 2 - 1
    y = 1 + 2 * x + 0.1 * torch.randn(len(x), generator=generator, dtype=torch.float64)
    prior = bayes.gaussian_prior(2, prior_std=1.0, dtype=torch.float64)
    features = bayes.polynomial_features(x, 1)
    posterior = bayes.linear_posterior(prior, features, y, noise_std=0.1)
    phi = features.numpy().astype(np.longdouble)
    gram, moment = (phi.T @ phi).astype(float), (phi.T @ y.numpy()).astype(float)
    close(posterior.loc, np.linalg.solve(gram + 0.01 * np.eye(2), moment), rtol=1e-9)
    _, log_det = np.linalg.slogdet(np.eye(2) + gram / 0.01)
    fit = (
        (y.numpy().astype(np.longdouble) ** 2).sum() - moment @ np.linalg.solve(gram + 0.01 * np.eye(2), moment)
    ) / 0.01
    expected = -0.5 * (log_det + len(x) * math.log(2 * math.pi * 0.01) + float(fit))
    close(bayes.linear_log_evidence(prior, features, y, noise_std=0.1), expected, rtol=1e-9)


def test_weight_draws_have_the_mean_and_covariance_of_the_belief():
    """100,000 draws; each of 5 z scores beyond 4.5 with probability 7e-6, so 4e-5 false alarms."""
    covariance = tensor([[2.0, -0.9], [-0.9, 0.5]])
    weights = bayes.GaussianWeights(tensor([1.0, -2.0]), covariance.inverse())
    draws = bayes.sample_weights(weights, 100_000, generator=torch.Generator().manual_seed(10))
    assert draws.shape == (100_000, 2)
    centred = draws - weights.loc
    products = torch.stack([*centred.unbind(-1), *(centred**2).unbind(-1), centred.prod(-1)], -1)
    expected = torch.stack([tensor(0), tensor(0), covariance[0, 0], covariance[1, 1], covariance[0, 1]])
    z = (products.mean(0) - expected) / (products.std(0) / len(draws) ** 0.5)
    assert z.abs().max() < 4.5


def test_weight_draws_depend_on_the_generator_alone_and_keep_the_batch():
    weights = bayes.GaussianWeights(torch.zeros(3, 2), torch.eye(2))
    one, same, other = (
        bayes.sample_weights(weights, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert one.shape == (4, 3, 2)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_features():
    x = tensor([[-2.0, 0.0, 3.0]])
    close(bayes.polynomial_features(x, 3), np.array([[[1, -2, 4, -8], [1, 0, 0, 0], [1, 3, 9, 27]]]))
    close(bayes.polynomial_features(x, 0), np.ones((1, 3, 1)))
    centres = tensor([0.0, 1.0])
    expected = stats.norm.pdf(x.numpy()[..., None], centres, 0.5) / stats.norm.pdf(0, 0, 0.5)
    close(bayes.radial_features(x, centres, width=0.5), expected)


def test_polynomial_gradient_at_zero():
    x = tensor([0.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(bayes.polynomial_features(x, 3).sum(), x)
    close(gradient, [1.0])


# ---- Bad input: what is called, and how the message starts

half = tensor([0.5, 0.5])
coin, rate, bell = Beta(1.0, 1.0), Gamma(1.0, 1.0), Normal(0.0, 1.0)
axis = torch.linspace(0, 1, 11)
grid = bayes.grid_posterior(lambda theta: theta[:, 0], axis)
two, flat = bayes.gaussian_prior(2, prior_std=1.0), bayes.gaussian_prior(2, prior_std=inf)
ones, line, y = torch.ones(3, 2), tensor([[1, 0], [1, 1], [1, 2]], dtype=torch.float32), torch.zeros(3)


def normal_gamma(**changed):
    return bayes.NormalGamma(**{"loc": 0.0, "prec_scale": 1.0, "concentration": 1.0, "rate": 1.0, **changed})


def regress(prior, features, targets, noise_std=1.0):
    return bayes.linear_posterior(prior, features, targets, noise_std=noise_std)


DISCRETE = [
    (lambda: bayes.update(tensor([0.5, -0.5]), half), "prior_prob must be finite and non-negative, got -0.5"),
    (lambda: bayes.update(tensor([0.5, nan]), half), "prior_prob must be finite and non-negative, got nan"),
    (lambda: bayes.update(tensor([0.5, inf]), half), "prior_prob must be finite and non-negative, got inf"),
    (lambda: bayes.update(0 * half, half), "prior_prob must be positive for at least one hypothesis, got 0.0"),
    (lambda: bayes.update(half, tensor([0.5, 1.5])), "likelihood must be in [0, 1], got 1.5"),
    (lambda: bayes.update(half, tensor([0.5, -0.1])), "likelihood must be in [0, 1], got -0.1"),
    (lambda: bayes.update(half, tensor([0.5, nan])), "likelihood must be in [0, 1], got nan"),
    (lambda: bayes.update(tensor([1, 0]), tensor([0, 1])), "likelihood must be positive for a hypothesis that is"),
    (lambda: bayes.update(half, tensor([1])), "prior_prob and likelihood must have the same number of hypotheses"),
    (lambda: bayes.update(half[:0], half[:0]), "prior_prob and likelihood must have the same number of hypotheses"),
    (lambda: bayes.update(half[0], half[0]), "prior_prob and likelihood must have the same number of hypotheses"),
    (lambda: bayes.update(half.expand(2, 2), half.expand(3, 2)), "batch shapes must broadcast, got prior_prob (2,)"),
    (lambda: bayes.update_log(tensor([0, nan]), half), "log_prior must be finite or -inf, got nan"),
    (lambda: bayes.update_log(tensor([0, inf]), half), "log_prior must be finite or -inf, got inf"),
    (lambda: bayes.update_log(half - inf, half), "log_prior must allow at least one hypothesis, got -inf"),
    (lambda: bayes.update_log(half, tensor([0, nan])), "log_likelihood must be finite or -inf, got nan"),
    (lambda: bayes.update_log(tensor([0, -inf]), tensor([-inf, 0])), "log_likelihood must allow a hypothesis that"),
    (lambda: bayes.update_log(half, tensor([0])), "log_prior and log_likelihood must have the same number"),
    (lambda: bayes.update_sequence(half, torch.empty(0, 2)), "likelihoods must be [..., steps >= 1, hypotheses], got"),
    (lambda: bayes.update_sequence(half, half), "likelihoods must be [..., steps >= 1, hypotheses], got shape (2,)"),
    (lambda: bayes.update_sequence(half, tensor([[1, 0], [0, 1]])), "likelihoods must be positive for a hypothesis"),
    (lambda: bayes.update_sequence(half, tensor([[0.5, 2]])), "likelihoods must be in [0, 1], got 2.0"),
    (lambda: bayes.log_odds(tensor([0.5, 1.1])), "prob must be in [0, 1], got 1.1"),
    (lambda: bayes.log_odds(tensor(nan)), "prob must be in [0, 1], got nan"),
    (lambda: bayes.update_log_odds(tensor(nan), 0.5, 0.5), "prior_log_odds must be a number, got nan"),
    (lambda: bayes.update_log_odds(tensor(0), 1.5, 0.5), "likelihood_if_true must be in [0, 1], got 1.5"),
    (lambda: bayes.update_log_odds(tensor(0), 0.5, nan), "likelihood_if_false must be in [0, 1], got nan"),
    (lambda: bayes.update_log_odds(tensor(0), 0.0, 0.0), "likelihood_if_true or likelihood_if_false must be positive"),
    (lambda: bayes.update_log_odds(tensor(inf), 0.0, 0.5), "likelihood_if_true or likelihood_if_false must be"),
    (lambda: bayes.update_log_odds(half, torch.ones(3), 0.5), "batch shapes must broadcast, got prior_log_odds (2,)"),
]

CONJUGATE = [
    (lambda: bayes.beta_bernoulli(coin, -1, 3), "num_successes must be finite and non-negative, got -1.0"),
    (lambda: bayes.beta_bernoulli(coin, 4, 3), "num_successes must be at most num_trials, got 4.0"),
    (lambda: bayes.beta_bernoulli(coin, 1.5, 3), "num_successes must be a whole number, got 1.5"),
    (lambda: bayes.beta_bernoulli(coin, 0, nan), "num_trials must be finite and non-negative, got nan"),
    (lambda: bayes.beta_bernoulli(coin, ones, y), "batch shapes must broadcast, got prior (), num_successes (3, 2)"),
    (lambda: bayes.gamma_poisson(rate, torch.tensor([1, -2])), "counts must be finite and non-negative, got -2"),
    (lambda: bayes.gamma_poisson(rate, tensor([1.5])), "counts must be a whole number, got 1.5"),
    (lambda: bayes.gamma_poisson(rate, tensor([nan])), "counts must be finite, got nan"),
    (lambda: bayes.gamma_poisson(rate, y[:0]), "counts must be [..., n >= 1], got shape (0,)"),
    (lambda: bayes.gamma_poisson(rate.expand([2]), ones), "batch shapes must broadcast, got counts (3,), prior (2,)"),
    (lambda: bayes.normal_known_std(bell, y, 0.0), "noise_std must be positive and finite, got 0.0"),
    (lambda: bayes.normal_known_std(bell, y, nan), "noise_std must be positive and finite, got nan"),
    (lambda: bayes.normal_known_std(bell, y + inf, 1.0), "observations must be finite, got inf"),
    (lambda: bayes.normal_known_std(bell, y[:0], 1.0), "observations must be [..., n >= 1], got shape (0,)"),
    (lambda: bayes.normal_known_std(bell, y[0], 1.0), "observations must be [..., n >= 1], got shape ()"),
    (lambda: bayes.normal_unknown_std(normal_gamma(rate=0.0), y), "prior.rate must be positive and finite, got 0.0"),
    (lambda: bayes.normal_unknown_std(normal_gamma(prec_scale=-1.0), y), "prior.prec_scale must be positive and"),
    (lambda: bayes.normal_unknown_std(normal_gamma(concentration=nan), y), "prior.concentration must be positive and"),
    (lambda: bayes.normal_unknown_std(normal_gamma(loc=nan), y), "prior.loc must be finite, got nan"),
    (lambda: bayes.normal_unknown_std(normal_gamma(), y * nan), "observations must be finite, got nan"),
    (lambda: bayes.normal_unknown_std(normal_gamma(loc=half), ones), "batch shapes must broadcast, got observations"),
    (lambda: bayes.normal_gamma_mean(normal_gamma(rate=-1.0)), "belief.rate must be positive and finite, got -1.0"),
]

GRID = [
    (lambda: bayes.midpoints(1, 0, 5), "low and high must be finite, low below high, got 1 and 0"),
    (lambda: bayes.midpoints(nan, 0, 5), "low and high must be finite, low below high, got nan and 0"),
    (lambda: bayes.midpoints(0, inf, 5), "low and high must be finite, low below high, got 0 and inf"),
    (lambda: bayes.midpoints(0, 1, 1), "num_points must be at least 2, got 1"),
    (lambda: bayes.grid_posterior(torch.sum), "axes must be one or two, got 0"),
    (lambda: bayes.grid_posterior(torch.sum, axis, axis, axis), "axes must be one or two, got 3"),
    (lambda: bayes.grid_posterior(torch.sum, axis, axis**2), "axes[1] must be evenly spaced and increasing, got"),
    (lambda: bayes.grid_posterior(torch.sum, -axis), "axes[0] must be evenly spaced and increasing, got -0.1"),
    (lambda: bayes.grid_posterior(torch.sum, axis * nan), "axes[0] must be evenly spaced and increasing, got nan"),
    (lambda: bayes.grid_posterior(torch.sum, axis[:1]), "axes[0] must be one-dimensional with at least 2 points, got"),
    (lambda: bayes.grid_posterior(torch.sum, axis), "log_joint must return [..., 11], got shape ()"),
    (lambda: bayes.grid_posterior(lambda t: (t[:, 0] - 0.15).log(), axis), "log_joint must be finite or -inf, is NaN"),
    (lambda: bayes.grid_posterior(lambda t: t[:, 0] - inf, axis), "log_joint must be finite somewhere on the grid"),
    (lambda: bayes.grid_expectation(grid, y), "values must start with the grid's shape (11,), got shape (3,)"),
    (lambda: bayes.grid_expectation(grid, axis.log()), "values must be finite, got -inf"),
    (lambda: bayes.grid_marginal(grid, 1), "axis must be one of [0], got 1"),
]

LINEAR = [
    (lambda: bayes.gaussian_prior(0, prior_std=1.0), "num_features must be at least 1, got 0"),
    (lambda: bayes.gaussian_prior(2, prior_std=0.0), "prior_std must be positive, got 0.0"),
    (lambda: bayes.gaussian_prior(2, prior_std=nan), "prior_std must be positive, got nan"),
    (lambda: regress(two, torch.ones(3, 3), y), "features must be [..., n >= 1, 2], got shape (3, 3)"),
    (lambda: regress(two, ones[:0], y[:0]), "features must be [..., n >= 1, 2], got shape (0, 2)"),
    (lambda: regress(two, ones * nan, y), "features must be finite, got nan"),
    (lambda: regress(two, ones.double(), y), "features must have the dtype of prior, torch.float32, got torch.float64"),
    (lambda: regress(two, ones, y.double()), "targets must have the dtype of features, torch.float32, got torch"),
    (lambda: regress(two, ones, y[:2]), "targets must be [..., 3], one a row of features, got shape (2,)"),
    (lambda: regress(two, ones, y[:, None]), "targets must be [..., 3], one a row of features, got shape (3, 1)"),
    (lambda: regress(two, ones, y + inf), "targets must be finite, got inf"),
    (lambda: regress(two, ones, y, 0.0), "noise_std must be positive and finite, got 0.0"),
    (lambda: regress(two, ones, y, nan), "noise_std must be positive and finite, got nan"),
    (lambda: regress(two, ones, y, inf), "noise_std must be positive and finite, got inf"),
    (lambda: regress(two, ones, y.expand(4, 3), torch.ones(2)), "batch shapes must broadcast, got prior.loc (), prior"),
    (lambda: regress(flat, ones, y), "features must have full column rank when the prior is flat, got rank 1 of 2"),
    (lambda: regress(flat, line[:1], y[:1]), "features must have full column rank when the prior is flat, got rank 1"),
    (lambda: regress(flat, 0 * ones, y), "features must have full column rank when the prior is flat, got rank 0 of 2"),
    (lambda: regress(two._replace(prec=-two.prec), line, y), "prior.prec must have no negative eigenvalue, got -1.0"),
    (lambda: regress(two._replace(loc=y), line, y), "prior.loc and prior.prec must be [..., d] and [..., d, d] with d"),
    (lambda: regress(two._replace(loc=two.loc * nan), line, y), "prior.loc must be finite, got nan"),
    (lambda: bayes.linear_log_evidence(flat, line, y, noise_std=1.0), "prior.prec must be positive definite"),
    (lambda: bayes.linear_predictive(flat, line, noise_std=1.0), "weights.prec must be positive definite"),
    (lambda: bayes.linear_predictive(two, line, noise_std=-1.0), "noise_std must be positive and finite, got -1.0"),
    (lambda: bayes.sample_weights(two, 0, generator=torch.Generator()), "num_samples must be at least 1, got 0"),
    (lambda: bayes.sample_weights(flat, 1, generator=torch.Generator()), "weights.prec must be positive definite"),
    (lambda: bayes.polynomial_features(y, -1), "degree must be at least 0, got -1"),
    (lambda: bayes.polynomial_features(y[0], 2), "x must be [..., n], got a single number"),
    (lambda: bayes.radial_features(y, axis, width=0.0), "width must be positive and finite, got 0.0"),
    (lambda: bayes.radial_features(y, axis, width=nan), "width must be positive and finite, got nan"),
    (lambda: bayes.radial_features(y, axis[:0], width=1.0), "centres must be [k >= 1], got shape (0,)"),
]

LOGISTIC = [
    (lambda: bayes.logistic_posterior(ones[0], y, prior_std=1.0), "features must be [n >= 1, d >= 1], got shape (2,)"),
    (lambda: bayes.logistic_posterior(ones[:0], y[:0], prior_std=1.0), "features must be [n >= 1, d >= 1], got shape"),
    (lambda: bayes.logistic_posterior(ones, y[:2] * 0, prior_std=1.0), "targets must be [3], one a row of features"),
    (lambda: bayes.logistic_posterior(ones * nan, 0 * y, prior_std=1.0), "features must be finite, got nan"),
    (lambda: bayes.logistic_posterior(ones, 0 * y - 1, prior_std=1.0), "targets must be 0 or 1, got -1.0"),
    (lambda: bayes.logistic_posterior(ones, 0 * y + nan, prior_std=1.0), "targets must be 0 or 1, got nan"),
    (lambda: bayes.logistic_posterior(ones, 0 * y, prior_std=0.0), "prior_std must be positive and finite, got 0.0"),
    (lambda: bayes.logistic_posterior(ones, 0 * y, prior_std=nan), "prior_std must be positive and finite, got nan"),
    (lambda: bayes.logistic_posterior(ones, 0 * y, prior_std=half[[0, 0, 0]]), "prior_std must be one number or [2]"),
]

BAD_INPUT = DISCRETE + CONJUGATE + GRID + LINEAR + LOGISTIC


@pytest.mark.parametrize(("call", "message"), BAD_INPUT, ids=[message for _, message in BAD_INPUT])
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()


def test_a_density_that_is_not_a_number_is_counted():
    with pytest.raises(ValueError, match=r"is NaN or \+inf at 2 of 11 points$"):
        bayes.grid_posterior(lambda theta: (theta[:, 0] - 0.15).log(), axis)


# ---- Logistic regression


def logistic(prior_std=1.5, num_rows=12):
    """A log posterior with the data it is made of, and a few weights to look at."""
    rng = np.random.default_rng(3)
    features, labels = tensor(rng.normal(size=(num_rows, 3))), torch.tensor(rng.integers(0, 2, num_rows))
    return (
        bayes.logistic_posterior(features, labels, prior_std=prior_std),
        features,
        labels,
        tensor(rng.normal(size=(5, 3))),
    )


@pytest.mark.parametrize("prior_std", [1.5, [0.5, 1.0, 2.0]])
def test_logistic_posterior_is_scipys_prior_plus_bernoulli(prior_std):
    log_prob, features, labels, weights = logistic(tensor(prior_std) if isinstance(prior_std, list) else prior_std)
    prior = stats.norm.logpdf(weights.numpy(), 0, prior_std).sum(1)
    prob = special.expit(weights.numpy() @ features.numpy().T)
    likelihood = stats.bernoulli.logpmf(labels.numpy(), prob).sum(1)
    close(log_prob.log_prior(weights), prior)
    close(log_prob.log_likelihood(weights), likelihood)
    close(log_prob(weights), prior + likelihood)


@pytest.mark.parametrize("rows", [None, torch.tensor([4, 0, 7])], ids=["all rows", "minibatch"])
def test_gradient_of_logistic_posterior_is_autograds(rows):
    log_prob, _, _, weights = logistic()
    before, leaf = weights.clone(), weights.clone().requires_grad_()
    (expected,) = torch.autograd.grad(log_prob(leaf, rows).sum(), leaf)
    value, grad = log_prob.value_and_grad(leaf, rows)
    assert not grad.requires_grad
    close(value, log_prob(weights, rows))
    close(grad, expected)
    close(log_prob.grad(weights, rows), expected)
    close(weights, before, rtol=0, atol=0)


def test_logistic_minibatches_average_to_the_full_sum():
    log_prob, _, _, weights = logistic(num_rows=6)
    batches = [torch.tensor([i, j]) for i in range(6) for j in range(i)]
    close(
        sum(log_prob.log_likelihood(weights, rows) for rows in batches) / len(batches), log_prob.log_likelihood(weights)
    )


def test_logistic_posterior_is_finite_at_extreme_weights():
    log_prob, _, _, weights = logistic()
    value, grad = log_prob.value_and_grad(1e4 * weights)
    assert value.isfinite().all()
    assert grad.isfinite().all()
    assert (
        not bayes.logistic_posterior(-torch.ones(2, 1), torch.ones(2), prior_std=1.0)(torch.zeros(1, 1)).isnan().any()
    )


def test_logistic_prior_draws_have_its_scale():
    prior = logistic(tensor([0.5, 1.0, 2.0]))[0].prior
    draws = prior.sample(40_000, generator=torch.Generator().manual_seed(0))
    close(draws.std(0) / prior.std, 1.0, rtol=0, atol=5 / 80_000**0.5)
    assert torch.equal(draws, prior.sample(40_000, generator=torch.Generator().manual_seed(0)))
