"""bdl_lib.vi against closed forms, quadrature, torch.distributions and finite differences.

Exactness is tested in float64. Where a test draws at random, it is seeded, and what it allows comes from the Monte
Carlo error: a right library fails a test by bad luck with a probability below 0.001.
"""

import functools
import itertools
import math

import oracles
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from bdl_lib import bayes, evidence, mcmc, vi

inf, nan = math.inf, math.nan
f64 = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=f64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def close(actual, expected, *, rtol=1e-9, atol=1e-11):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=atol)


def mean_is(values, expected, *, limit=4.5):
    """Whether the mean over the first axis is what it should be, within Monte Carlo error."""
    error = values.std(0) / len(values) ** 0.5
    z = (values.mean(0) - expected) / error.clamp(min=1e-300)
    assert z.abs().max() < limit, f"{z.abs().max():.1f} standard errors away"


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


# ---- Targets


def gaussian(dim=5, seed=0, spread=10.0):
    """A Gaussian posterior that is not normalised, with its mean, precision and log evidence."""
    axes, _ = torch.linalg.qr(randn(dim, dim, seed=seed))
    prec = (axes * torch.logspace(0, math.log10(spread), dim, dtype=f64)) @ axes.mT
    mean, log_evidence = 3 * randn(dim, seed=seed + 1), -1.5
    constant = log_evidence - 0.5 * dim * math.log(2 * math.pi) + 0.5 * torch.logdet(prec)

    def log_prob(x):
        return constant - 0.5 * ((x - mean) @ prec * (x - mean)).sum(-1)

    return log_prob, mean, prec, log_evidence


def banana(x):
    """Log evidence 0."""
    first, second = Normal(0.0, 2.0), Normal(0.5 * x[:, 0] ** 2, 0.5)
    return first.log_prob(x[:, 0]) + second.log_prob(x[:, 1])


def logistic():
    inputs = torch.cat([torch.ones(60, 1, dtype=f64), randn(60, 3, seed=5)], 1)
    labels = (randn(60, seed=6) < inputs @ torch.tensor([0.3, 1.5, -1.0, 0.5], dtype=f64)).long()
    return bayes.logistic_posterior(inputs, labels, prior_std=2.0)


def without_gradient(log_prob):
    return lambda x: log_prob(x.detach())


# ---- Families

LOC = torch.tensor([0.5, -1.0, 2.0], dtype=f64)
FAMILIES = {
    "mean field": vi.MeanFieldGaussian(LOC, torch.tensor([0.1, -0.5, 0.3], dtype=f64)),
    "low rank": vi.LowRankGaussian(LOC, randn(3, 2, seed=2), torch.tensor([0.1, -0.5, 0.3], dtype=f64)),
    "full rank": vi.FullRankGaussian(LOC, randn(3, 3, seed=3)),
    "mixture": vi.GaussianMixture(randn(2, seed=4), 2 * randn(2, 3, seed=5), 0.3 * randn(2, 3, seed=6)),
    "flow": vi.real_nvp(LOC, std=0.7, num_layers=6, hidden=8, generator=seeded(7)),
}
FAMILIES["flow"] = FAMILIES["flow"]._replace(
    out_weight=0.4 * randn(*FAMILIES["flow"].out_weight.shape, seed=8), out_bias=0.3 * randn(6, 6, seed=9)
)
TWINS = {
    "mean field": lambda q: Independent(Normal(q.loc, q.log_std.exp()), 1),
    "low rank": lambda q: MultivariateNormal(q.loc, q.factor @ q.factor.mT + torch.diag((2 * q.log_std).exp())),
    "full rank": lambda q: MultivariateNormal(q.loc, q.scale_tril.tril() @ q.scale_tril.tril().mT),
    "mixture": lambda q: MixtureSameFamily(
        Categorical(logits=q.logits), Independent(Normal(q.loc, q.log_std.exp()), 1)
    ),
}
each_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.mark.parametrize("name", TWINS)
def test_density_is_that_of_torch(name):
    x = 2 * randn(50, 3, seed=11)
    close(FAMILIES[name].log_prob(x), TWINS[name](FAMILIES[name]).log_prob(x))


@pytest.mark.parametrize("name", TWINS)
def test_mean_and_covariance(name):
    family = FAMILIES[name]
    x = family.sample(40_000, generator=seeded(1))
    mean_is(x, family.mean)
    away = x - family.mean
    mean_is(away[:, :, None] * away[:, None], family.covariance)


@pytest.mark.parametrize("name", TWINS)
def test_draws_have_the_density(name):
    """The mean of w = r(x) / q(x) over draws of q is 1 for any density r that is narrower."""
    family = FAMILIES[name]
    x = family.sample(40_000, generator=seeded(2))
    assert x.shape == (40_000, family.dim)
    assert not x.requires_grad
    for shift in (0.0, 0.4):
        other = MultivariateNormal(x.mean(0) + shift * (x[0] - x.mean(0)), 0.3 * torch.cov(x.mT))
        mean_is((other.log_prob(x) - family.log_prob(x)).exp(), 1.0)


@each_family
def test_same_generator_same_draws_and_none_of_the_global_state(name):
    state = torch.get_rng_state()
    first, second = (FAMILIES[name].sample(5, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, FAMILIES[name].sample(5, generator=seeded(4)))


@each_family
def test_rsample_is_differentiable(name):
    """The gradient of a mean over draws against a difference quotient with the same noise."""
    family = FAMILIES[name]
    leaves = [tensor.clone().requires_grad_() for tensor in family]

    def mean(tensors):
        return type(family)(*tensors).rsample(50, generator=seeded(5)).sin().mean()

    grads = torch.autograd.grad(mean(leaves), leaves, allow_unused=True)
    for i, (tensor, grad) in enumerate(zip(family, grads, strict=True)):
        if grad is None:
            assert name == "mixture"
            assert i == 0
            continue
        direction = randn(*tensor.shape, seed=12)
        step = 1e-6 * direction
        ends = [mean([*family[:i], tensor + sign * step, *family[i + 1 :]]) for sign in (1, -1)]
        close((grad * direction).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-8)


def test_stratified_draws_of_a_mixture_are_weighted_right():
    family = FAMILIES["mixture"]
    x, weights = family.rsample_stratified(20_001, generator=seeded(6))
    assert len(x) == 20_002
    close(weights.mean(), 1.0)
    mean_is(weights[:, None] * x.sin(), family.sample(200_000, generator=seeded(7)).sin().mean(0), limit=6)


def test_a_flow_starts_at_a_gaussian():
    flow = vi.real_nvp(LOC, std=0.7, generator=seeded())
    close(flow.log_prob(randn(9, 3)), Independent(Normal(LOC, 0.7), 1).log_prob(randn(9, 3)))


def test_every_coordinate_of_a_flow_meets_every_other():
    for dim in (2, 3, 7):
        flow = vi.real_nvp(torch.zeros(dim, dtype=f64), num_layers=6, hidden=8, generator=seeded(1))
        flow = flow._replace(out_weight=randn(*flow.out_weight.shape, seed=2))
        x = randn(dim, seed=3)
        hessian = torch.func.hessian(lambda point, flow=flow: flow.log_prob(point[None])[0])(x)
        assert (hessian.abs() > 1e-9).all(), dim


def test_density_of_a_flow_is_the_change_of_variables():
    """Against the determinant of the Jacobian of the whole map, by autograd."""
    flow = FAMILIES["flow"]
    noise = torch.randn(4, 3, generator=seeded(8), dtype=f64)
    x = flow.rsample(4, generator=seeded(8))

    def forward(noise):
        y = noise[None]
        for layer in range(len(flow.in_weight)):
            log_scale, shift = flow._coupling(layer, y)
            y = y * log_scale.exp() + shift
        return (flow.loc + flow.log_std.exp() * y)[0]

    for row in range(4):
        close(forward(noise[row]), x[row])
        jacobian = torch.func.jacrev(forward)(noise[row])
        expected = Normal(0.0, 1.0).log_prob(noise[row]).sum() - torch.linalg.slogdet(jacobian).logabsdet
        close(flow.log_prob(x[row][None])[0], expected)


def test_the_sign_of_a_column_and_what_is_above_the_diagonal_do_not_count():
    scale = randn(3, 3, seed=3)
    turned = scale.tril() * torch.tensor([1.0, -1.0, 1.0], dtype=f64) + torch.ones(3, 3, dtype=f64).triu(1)
    first, second = vi.FullRankGaussian(LOC, scale), vi.FullRankGaussian(LOC, turned)
    close(first.log_prob(randn(5, 3)), second.log_prob(randn(5, 3)))
    close(first.covariance, second.covariance)


def test_families_start_where_they_are_told():
    std = torch.tensor([0.5, 1.0, 2.0], dtype=f64)
    for family in (vi.mean_field_gaussian(LOC, std=std), vi.full_rank_gaussian(LOC, std=std)):
        close(family.covariance, std.square().diag())
        assert torch.equal(family.loc, LOC)
        assert family.loc is not LOC
    low = vi.low_rank_gaussian(torch.zeros(400, dtype=f64), rank=2, std=0.5, generator=seeded())
    close(low.log_std.exp(), torch.full((400,), 0.5, dtype=f64))
    assert 0.8 < low.factor.std() / 0.05 < 1.2
    mixture = vi.gaussian_mixture(randn(3, 2), std=0.5)
    close(mixture.weights, torch.full((3,), 1 / 3, dtype=f64))
    close(mixture.log_std.exp(), torch.full((3, 2), 0.5, dtype=f64))


BAD_STARTS = {
    "loc must be a floating-point vector": lambda: vi.mean_field_gaussian(torch.zeros(2, 2)),
    "loc must be finite, got nan": lambda: vi.full_rank_gaussian(torch.tensor([0.0, nan])),
    "std must be positive and finite, got 0": lambda: vi.mean_field_gaussian(LOC, std=0.0),
    "std must be positive and finite, got nan": lambda: vi.gaussian_mixture(randn(2, 2), std=nan),
    "rank must be at least 1, got 0": lambda: vi.low_rank_gaussian(LOC, rank=0, generator=seeded()),
    "rank must be at most dim = 3, got 4": lambda: vi.low_rank_gaussian(LOC, rank=4, generator=seeded()),
    "dim must be at least 2, got 1": lambda: vi.real_nvp(LOC[:1], generator=seeded()),
    "num_layers must be at least 2, got 1": lambda: vi.real_nvp(LOC, num_layers=1, generator=seeded()),
    "hidden must be at least 1, got 0": lambda: vi.real_nvp(LOC, hidden=0, generator=seeded()),
    r"loc must be \[k >= 1, dim >= 1\], got shape \[0, 2\]": lambda: vi.gaussian_mixture(torch.zeros(0, 2)),
    "num_samples must be at least 1, got 0": lambda: FAMILIES["mean field"].rsample(0, generator=seeded()),
    "num_samples must be at least 1, got -1": lambda: FAMILIES["mixture"].rsample(-1, generator=seeded()),
}


@pytest.mark.parametrize("message", BAD_STARTS)
def test_bad_starts_are_refused(message):
    with pytest.raises(ValueError, match=message):
        BAD_STARTS[message]()


# ---- Laplace


def test_laplace_of_a_gaussian_is_the_gaussian():
    log_prob, mean, prec, log_evidence = gaussian()
    family = vi.laplace_family(log_prob, mean)
    close(family.covariance, torch.linalg.inv(prec))
    assert torch.equal(family.scale_tril, family.scale_tril.tril())
    assert (family.scale_tril.diagonal() > 0).all()
    bound = vi.reparameterised_elbo(log_prob, family, num_samples=10, generator=seeded())
    close(bound.terms, torch.full((10,), log_evidence, dtype=f64))
    close(vi.laplace_family(log_prob, mean, is_diagonal=True).std, prec.diagonal().rsqrt())


@pytest.mark.parametrize("is_diagonal", [False, True])
def test_laplace_needs_a_summit(is_diagonal):
    with pytest.raises(ValueError, match="mode must be a summit"):
        vi.laplace_family(lambda x: x[:, 0] ** 2 - x[:, 1] ** 2, torch.zeros(2, dtype=f64), is_diagonal=is_diagonal)


# ---- The bound

ESTIMATES = {
    "reparameterised": vi.reparameterised_elbo,
    "sticking the landing": vi.sticking_the_landing_elbo,
    "score function": vi.score_function_elbo,
    "score function, plain": functools.partial(vi.score_function_elbo, control_variate=False),
    "importance weighted": functools.partial(vi.importance_weighted_elbo, num_importance=1),
}
each_estimate = pytest.mark.parametrize("estimate", ESTIMATES.values(), ids=ESTIMATES)


def exact_elbo(family):
    """Of the five-dimensional Gaussian, for a Gaussian family: log evidence minus KL by torch."""
    _, mean, prec, log_evidence = gaussian()
    return log_evidence - torch.distributions.kl_divergence(
        MultivariateNormal(family.mean, family.covariance), MultivariateNormal(mean, precision_matrix=prec)
    )


def gaussian_families():
    near = gaussian()[1] + 0.3
    return [
        vi.mean_field_gaussian(near, std=0.5),
        vi.low_rank_gaussian(near, rank=2, std=0.5, generator=seeded(2)),
        vi.FullRankGaussian(near, 0.4 * torch.eye(5, dtype=f64) + 0.1 * randn(5, 5, seed=3).tril(-1)),
    ]


@each_estimate
@pytest.mark.parametrize("index", range(3))
def test_elbo_is_log_evidence_minus_kl(estimate, index):
    family = gaussian_families()[index]
    bound = estimate(gaussian()[0], family, num_samples=20_000, generator=seeded(4))
    mean_is(bound.terms, exact_elbo(family))
    close(bound.value, bound.terms.mean())
    close(bound.std_error, bound.terms.std() / 20_000**0.5)


@each_estimate
@pytest.mark.parametrize("index", range(3))
def test_gradient_is_that_of_the_bound(estimate, index):
    family = gaussian_families()[index]
    leaves = [tensor.clone().requires_grad_() for tensor in family]
    exact = torch.autograd.grad(exact_elbo(type(family)(*leaves)), leaves)
    generator, found = seeded(5), []
    for _ in range(400):
        bound = estimate(gaussian()[0], type(family)(*leaves), num_samples=50, generator=generator)
        found.append(flat(torch.autograd.grad(bound.value, leaves)))
    is_used = flat(exact) != 0  # a triangle of L is not
    mean_is(torch.stack(found)[:, is_used], flat(exact)[is_used])


def test_control_variate_leaves_each_draw_out_of_its_own_mean():
    """With two draws, the mean of both would halve the gradient."""
    family = gaussian_families()[0]
    leaves = [tensor.clone().requires_grad_() for tensor in family]
    exact = torch.autograd.grad(exact_elbo(vi.MeanFieldGaussian(*leaves)), leaves)
    generator, found = seeded(8), []
    for _ in range(2000):
        bound = vi.score_function_elbo(gaussian()[0], vi.MeanFieldGaussian(*leaves), num_samples=2, generator=generator)
        found.append(flat(torch.autograd.grad(bound.value, leaves)))
    mean_is(torch.stack(found), flat(exact))
    assert (torch.stack(found).std(0) / 2000**0.5).min() < 0.1 * flat(exact).abs().max()


@pytest.mark.parametrize("estimate", [vi.reparameterised_elbo, vi.sticking_the_landing_elbo, vi.score_function_elbo])
def test_gradient_of_a_mixture_reaches_its_shares(estimate):
    """In one dimension, against a difference quotient of the bound by quadrature."""
    family = vi.GaussianMixture(*(torch.tensor(v, dtype=f64) for v in ([0.3, -0.2], [[-1.0], [1.5]], [[0.2], [-0.3]])))

    def log_prob(x):
        return -0.5 * (x[:, 0] - 0.5) ** 2 - 0.1 * x[:, 0] ** 4

    grid = torch.linspace(-12, 12, 20_001, dtype=f64)[:, None]

    def exact(tensors):
        q = vi.GaussianMixture(*tensors)
        log_q = q.log_prob(grid)
        return (log_q.exp() * (log_prob(grid) - log_q)).sum() * (grid[1] - grid[0])[0]

    leaves = [tensor.clone().requires_grad_() for tensor in family]
    expected = flat(torch.autograd.grad(exact(leaves), leaves))
    generator, found = seeded(6), []
    for _ in range(600):
        bound = estimate(log_prob, vi.GaussianMixture(*leaves), num_samples=40, generator=generator)
        found.append(flat(torch.autograd.grad(bound.value, leaves)))
    mean_is(torch.stack(found), expected)


def test_sticking_the_landing_has_no_noise_where_q_is_the_posterior():
    log_prob, mean, prec, log_evidence = gaussian()
    leaves = [mean.clone().requires_grad_(), torch.linalg.cholesky(torch.linalg.inv(prec)).requires_grad_()]
    family = vi.FullRankGaussian(*leaves)
    bound = vi.sticking_the_landing_elbo(log_prob, family, num_samples=7, generator=seeded())
    close(bound.terms, torch.full((7,), log_evidence, dtype=f64))
    assert flat(torch.autograd.grad(bound.value, leaves)).abs().max() < 1e-10
    noisy = vi.reparameterised_elbo(log_prob, family, num_samples=7, generator=seeded())
    assert flat(torch.autograd.grad(noisy.value, leaves)).abs().max() > 0.1


def gradient_variance(estimate, num_draws=300):
    family, generator, found = gaussian_families()[0], seeded(7), []
    leaves = [tensor.clone().requires_grad_() for tensor in family]
    for _ in range(num_draws):
        bound = estimate(gaussian()[0], vi.MeanFieldGaussian(*leaves), num_samples=10, generator=generator)
        found.append(flat(torch.autograd.grad(bound.value, leaves)))
    return torch.stack(found).var(0).sum()


def test_control_variate_takes_noise_away_and_reparameterising_more():
    plain = gradient_variance(ESTIMATES["score function, plain"])
    controlled = gradient_variance(vi.score_function_elbo)
    reparameterised = gradient_variance(vi.reparameterised_elbo)
    assert plain > 1.5 * controlled > 3 * reparameterised


def test_score_function_needs_no_gradient_of_the_model():
    log_prob = gaussian()[0]
    leaves = [tensor.clone().requires_grad_() for tensor in gaussian_families()[0]]
    family = vi.MeanFieldGaussian(*leaves)
    bounds = [vi.score_function_elbo(f, family, num_samples=50, generator=seeded()) for f in (
        log_prob, without_gradient(log_prob))]  # fmt: skip
    first, second = (flat(torch.autograd.grad(bound.value, leaves)) for bound in bounds)
    close(first, second)


def test_closed_form_gradients_are_used_and_right():
    log_prob = logistic()
    leaves = [torch.zeros(4, dtype=f64, requires_grad=True), torch.full((4,), -1.0, dtype=f64, requires_grad=True)]
    family = vi.MeanFieldGaussian(*leaves)
    bounds = [vi.sticking_the_landing_elbo(f, family, num_samples=20, generator=seeded()) for f in (
        log_prob, lambda x: log_prob(x))]  # fmt: skip
    first, second = (flat(torch.autograd.grad(bound.value, leaves)) for bound in bounds)
    close(first, second)
    calls = []

    class Counted:
        def __call__(self, x):
            raise RuntimeError

        def value_and_grad(self, x):
            calls.append(x)
            return log_prob.value_and_grad(x)

    vi.sticking_the_landing_elbo(Counted(), family, num_samples=20, generator=seeded())
    assert len(calls) == 1


def test_importance_weighted_bound_rises_with_k_to_the_evidence():
    log_prob, *_, log_evidence = gaussian()
    family = gaussian_families()[2]
    bounds = [
        vi.importance_weighted_elbo(log_prob, family, num_importance=k, num_samples=40_000 // k, generator=seeded(k))
        for k in (1, 10, 100, 1000)
    ]
    for lower, upper in itertools.pairwise(bounds):
        assert upper.value - lower.value > -3 * (lower.std_error**2 + upper.std_error**2).sqrt()
    assert bounds[2].value - bounds[0].value > 10 * bounds[0].std_error
    assert bounds[-1].value < log_evidence + 3 * bounds[-1].std_error


def test_importance_weighted_bound_of_two_draws_by_hand():
    """In one dimension, K = 2: the double integral of log((w1 + w2) / 2)."""
    family = vi.mean_field_gaussian(torch.tensor([0.3], dtype=f64), std=1.5)

    def log_prob(x):
        return -0.5 * x[:, 0] ** 2

    nodes, weights = (torch.tensor(v) for v in oracles.gauss_hermite(80))
    log_w = log_prob(x := (0.3 + 1.5 * nodes)[:, None]) - family.log_prob(x)
    exact = (weights[:, None] * weights * torch.logaddexp(log_w[:, None], log_w)).sum() - math.log(2)
    bound = vi.importance_weighted_elbo(log_prob, family, num_importance=2, num_samples=40_000, generator=seeded())
    mean_is(bound.terms, exact)


def test_importance_weighted_gradient_of_a_mixture_is_refused_and_its_value_is_not():
    family = FAMILIES["mixture"]
    settings = {"num_importance": 5, "num_samples": 3, "generator": seeded()}
    assert vi.importance_weighted_elbo(lambda x: -x.square().sum(1), family, **settings).value.isfinite()
    wanted = family._replace(logits=family.logits.clone().requires_grad_())
    with pytest.raises(ValueError, match="differentiable in all its parameters"):
        vi.importance_weighted_elbo(lambda x: -x.square().sum(1), wanted, **settings)


@each_estimate
def test_bounds_refuse_what_does_not_fit(estimate):
    family = FAMILIES["mean field"]
    with pytest.raises(ValueError, match="num_samples must be at least"):
        estimate(gaussian()[0], family, num_samples=0, generator=seeded())
    with pytest.raises(ValueError, match="log_prob must take positions of the family's dimension, 3"):
        estimate(gaussian()[0], family, num_samples=4, generator=seeded())
    with pytest.raises(ValueError, match=r"one number a row, \[4\], got shape \[4, 3\]"):
        estimate(lambda x: x, family, num_samples=4, generator=seeded())


def test_more_refusals_of_the_bounds():
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        vi.score_function_elbo(gaussian()[0], gaussian_families()[0], num_samples=1, generator=seeded())
    with pytest.raises(ValueError, match="num_importance must be at least 1, got 0"):
        vi.importance_weighted_elbo(
            gaussian()[0], gaussian_families()[0], num_importance=0, num_samples=1, generator=seeded()
        )


# ---- Natural gradients


def test_matched_noise_has_exact_moments_and_is_random():
    noise = vi.matched_noise(LOC, 40, seeded())
    close(noise.mean(0), torch.zeros(3, dtype=f64))
    close(noise.mT @ noise / 40, torch.eye(3, dtype=f64))
    assert not torch.equal(noise, vi.matched_noise(LOC, 40, seeded(1)))
    many = vi.matched_noise(LOC, 20_000, seeded(2))
    mean_is(many**4, 3.0)
    mean_is(many[:, :1] * many[:, 1:] ** 2, 0.0)
    with pytest.raises(ValueError, match="num_samples must be at least 5, got 4"):
        vi.matched_noise(LOC, 4, seeded())


@pytest.mark.parametrize("index", [0, 2])
def test_survey_of_a_gaussian_is_exact(index):
    log_prob, mean, prec, _ = gaussian()
    family = gaussian_families()[index]
    found = vi.survey(mcmc.differentiable(log_prob), family, vi.matched_noise(family.loc, 20, seeded()))
    scale = torch.linalg.cholesky(family.covariance) if index else family.std.diag()
    scale = family.scale_tril.tril() if index else scale
    close(found.elbo, exact_elbo(family))
    close(found.slope, scale.mT @ prec @ (mean - family.loc))
    close(found.curvature, scale.mT @ prec @ scale)
    assert found.is_finite.all()


def test_one_full_step_reaches_a_gaussian_that_is_near():
    log_prob, mean, prec, _ = gaussian()
    start = vi.FullRankGaussian(mean + 0.1, 1.4 * torch.linalg.cholesky(torch.linalg.inv(prec)))
    there = vi.survey(mcmc.differentiable(log_prob), start, vi.matched_noise(mean, 20, seeded()))
    step = vi.natural_step(start, there)
    close(step.family.loc, mean)
    close(step.family.covariance, torch.linalg.inv(prec))
    assert torch.equal(step.family.scale_tril, step.family.scale_tril.tril())
    half = vi.natural_step(start, there, step_size=0.5).family
    close(half.loc, mean + 0.05)
    close(torch.linalg.inv(half.covariance), 0.5 * (prec + torch.linalg.inv(start.covariance)))


def test_the_kl_of_a_step_is_that_between_the_two_gaussians():
    log_prob, mean, prec, _ = gaussian()
    start = vi.FullRankGaussian(mean + 0.01, 1.02 * torch.linalg.cholesky(torch.linalg.inv(prec)))
    step = vi.natural_step(start, vi.survey(mcmc.differentiable(log_prob), start, vi.matched_noise(mean, 20, seeded())))
    exact = torch.distributions.kl_divergence(
        MultivariateNormal(start.loc, start.covariance), MultivariateNormal(mean, precision_matrix=prec)
    )
    close(step.kl, exact, rtol=0.05)


def test_a_step_turns_the_noise_with_the_draws():
    """The draws of after are those of before, moved and stretched by a symmetric map."""
    log_prob, mean, _, _ = gaussian()
    start = gaussian_families()[2]
    there = vi.survey(mcmc.differentiable(log_prob), start, vi.matched_noise(mean, 20, seeded()))
    step = vi.natural_step(start, there)
    close(step.noise.mT @ step.noise / 20, torch.eye(5, dtype=f64))
    after = step.noise @ step.family.scale_tril.mT
    stretch = torch.linalg.lstsq(there.noise, after @ torch.linalg.inv(start.scale_tril.tril()).mT).solution
    close(stretch, stretch.mT)
    close(after, there.noise @ stretch @ start.scale_tril.tril().mT)


def test_steps_are_bounded():
    """Of a far and narrow density: the mean by two standard deviations, the variances by a factor of 4."""
    start = vi.full_rank_gaussian(torch.zeros(3, dtype=f64))
    for prec in (1e6, 1e-6):
        density = mcmc.differentiable(lambda x, prec=prec: -0.5 * prec * (x - 100).square().sum(1))
        there = vi.survey(density, start, vi.matched_noise(start.loc, 20, seeded()))
        family = vi.natural_step(start, there).family
        close(family.covariance, torch.eye(3, dtype=f64) * (0.25 if prec > 1 else 4.0))
        assert family.loc.norm() < 2 * 3**0.5 + 1e-9
    with pytest.raises(ValueError, match=r"step_size must be in \(0, 1\], got 0"):
        vi.natural_step(start, there, step_size=0.0)


# ---- Fits

each_gaussian = pytest.mark.parametrize(
    ("optimizer", "dim", "spread"),
    [("auto", 1, 1.0), ("auto", 5, 10.0), ("auto", 5, 1e4), ("auto", 50, 100.0), ("adam", 1, 1.0), ("adam", 5, 10.0)],
)


@each_gaussian
def test_full_rank_recovers_a_gaussian(optimizer, dim, spread):
    """The promise: mean and covariance within 1 %, the bound within 0.01 nats of the evidence."""
    log_prob, mean, prec, log_evidence = gaussian(dim, spread=spread)
    start = vi.full_rank_gaussian(torch.zeros(dim, dtype=f64))
    fit = vi.fit(log_prob, start, generator=seeded(), optimizer=optimizer)
    covariance = torch.linalg.inv(prec)
    assert fit.is_converged
    assert (fit.family.loc - mean).norm() < 0.01 * mean.norm()
    assert (fit.family.covariance - covariance).norm() < 0.01 * covariance.norm()
    assert abs(fit.elbo - log_evidence) < 0.01
    assert fit.elbo_std_error < 0.01


@each_gaussian
def test_mean_field_reaches_its_closed_form(optimizer, dim, spread):
    log_prob, mean, prec, log_evidence = gaussian(dim, spread=spread)
    start = vi.mean_field_gaussian(torch.zeros(dim, dtype=f64))
    fit = vi.fit(log_prob, start, generator=seeded(), optimizer=optimizer)
    tolerance = 0.01 if optimizer == "auto" else 0.05
    assert fit.is_converged
    assert ((fit.family.std.square() * prec.diagonal()) - 1).abs().max() < tolerance
    assert (fit.family.loc - mean).norm() < tolerance * mean.norm()
    best = log_evidence - 0.5 * (prec.diagonal().log().sum() - torch.logdet(prec))
    assert abs(fit.elbo - best) < 4.5 * fit.elbo_std_error + 0.01


def test_natural_gradients_find_what_adam_finds():
    """Of a posterior that is no Gaussian; the bound of the best Gaussian by quadrature-free long ascent."""
    log_prob = logistic()
    for start in (vi.mean_field_gaussian, vi.full_rank_gaussian):
        fits = [
            vi.fit(log_prob, start(torch.zeros(4, dtype=f64)), generator=seeded(1), optimizer=optimizer)
            for optimizer in ("natural", "adam")
        ]
        first, second = (fit.family for fit in fits)
        assert all(fit.is_converged for fit in fits)
        kl = torch.distributions.kl_divergence(
            *(MultivariateNormal(family.mean, family.covariance) for family in (first, second))
        )
        assert kl < 0.02


def test_stationary_equations_hold_at_the_natural_optimum():
    log_prob = logistic()
    fit = vi.fit(log_prob, vi.full_rank_gaussian(torch.zeros(4, dtype=f64)), generator=seeded(), tolerance=0.001)
    x = fit.family.sample(20_000, generator=seeded(2))
    slope = log_prob.grad(x)
    hessian = torch.func.vmap(torch.func.hessian(lambda point: log_prob(point[None])[0]))(x)
    std = fit.family.covariance.diagonal().sqrt()
    assert (slope.mean(0) * std).abs().max() < 0.05
    close(-hessian.mean(0), torch.linalg.inv(fit.family.covariance), rtol=0.05, atol=0.05 / std.square().min())


def test_richer_families_reach_higher_on_the_banana():
    """Whose log evidence is 0; a flow comes within 0.06 nats, what Gaussians cannot."""
    zeros = torch.zeros(2, dtype=f64)
    starts = [
        vi.mean_field_gaussian(zeros),
        vi.full_rank_gaussian(zeros),
        vi.gaussian_mixture(torch.tensor([[-2.0, 2.0], [0.0, 0.0], [2.0, 2.0]], dtype=f64), std=0.5),
        vi.real_nvp(zeros.float(), hidden=16, generator=seeded(3)),
    ]
    fits = [vi.fit(banana, start, generator=seeded(4), num_steps=700) for start in starts]
    assert fits[0].elbo < fits[2].elbo - 0.1 < fits[3].elbo - 0.2
    assert fits[1].elbo < fits[2].elbo - 0.1
    assert -0.08 < fits[3].elbo < 4 * fits[3].elbo_std_error
    assert all(fit.elbo < 0.02 for fit in fits)


def test_low_rank_reaches_a_gaussian_of_its_kind():
    factor, log_std = randn(6, 2, seed=4), -0.5 + 0.2 * randn(6, seed=5)
    target = vi.LowRankGaussian(randn(6, seed=6), factor, log_std)
    start = vi.low_rank_gaussian(torch.zeros(6, dtype=f64), rank=2, generator=seeded())
    fit = vi.fit(target.log_prob, start, generator=seeded(1))
    assert fit.is_converged
    assert abs(fit.elbo) < 0.01
    close(fit.family.covariance, target.covariance, rtol=0, atol=0.03 * target.covariance.norm().item())


def test_a_fit_is_the_same_again_and_leaves_its_start_alone():
    start = vi.mean_field_gaussian(torch.zeros(4, dtype=f64))
    before = [tensor.clone() for tensor in start]
    for optimizer in ("natural", "adam"):
        first, second = (
            vi.fit(logistic(), start, generator=seeded(5), num_steps=150, optimizer=optimizer) for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first.family, second.family, strict=True))
        assert torch.equal(first.elbo_history, second.elbo_history)
        assert not any(tensor.requires_grad for tensor in first.family)
    assert all(torch.equal(a, b) for a, b in zip(start, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_dtype_follows_the_family(dtype):
    log_prob, *_ = gaussian(3)
    for start in (vi.full_rank_gaussian, vi.mean_field_gaussian, lambda loc: vi.real_nvp(loc, generator=seeded())):
        fit = vi.fit(
            lambda x: log_prob(x.double()).to(dtype),
            start(torch.zeros(3, dtype=dtype)),
            generator=seeded(),
            num_steps=30,
        )
        assert {tensor.dtype for tensor in (*fit.family, fit.elbo, fit.elbo_history)} == {dtype}


def test_the_history_rises_to_the_bound_and_num_steps_is_kept():
    log_prob = logistic()
    start = vi.full_rank_gaussian(torch.zeros(4, dtype=f64))
    fit = vi.fit(log_prob, start, generator=seeded())
    assert (fit.elbo_history[1:5] >= fit.elbo_history[:4]).all()
    assert len(fit.elbo_history) < 100
    assert abs(fit.elbo_history[-1] - fit.elbo) < 0.2
    for optimizer, num_steps in (("natural", 3), ("natural", 1), ("adam", 130)):
        cut = vi.fit(log_prob, start, generator=seeded(), num_steps=num_steps, optimizer=optimizer)
        assert len(cut.elbo_history) == num_steps
        assert not cut.is_converged


def test_newton_steps_are_taken_only_if_they_raise_the_bound():
    """On the banana, full steps overshoot."""
    start = vi.full_rank_gaussian(torch.zeros(2, dtype=f64), std=3.0)
    fit = vi.fit(banana, start, generator=seeded(3), num_steps=15, tolerance=1e-12)
    assert (fit.elbo_history.diff() >= 0).all()
    assert fit.elbo_history[-1] > fit.elbo_history[0] + 0.5


def test_averaging_takes_the_noise_of_the_draws_away():
    """Two fits from few draws are as near to each other as their tolerance says."""
    start = vi.mean_field_gaussian(torch.zeros(2, dtype=f64))
    settings = {"num_mc_samples": 32, "tolerance": 0.003}
    first, second = (vi.fit(banana, start, generator=seeded(seed), **settings) for seed in (4, 5))
    assert first.is_converged
    assert second.is_converged
    loose = vi.fit(banana, start, generator=seeded(4), **settings | {"tolerance": 0.1})
    assert len(loose.elbo_history) < len(first.elbo_history) - 10
    gaussians = [MultivariateNormal(fit.family.mean, fit.family.covariance) for fit in (first, second)]
    assert torch.distributions.kl_divergence(*gaussians) < 0.02


def test_the_standard_error_of_the_bound_is_right():
    """Over 200 repetitions the bound scatters as it says: a mean-field fit of a correlated Gaussian."""
    log_prob, _, prec, log_evidence = gaussian()
    best = log_evidence - 0.5 * (prec.diagonal().log().sum() - torch.logdet(prec))
    start = vi.mean_field_gaussian(gaussian()[1], std=prec.diagonal().rsqrt())
    fits = [vi.fit(log_prob, start, generator=seeded(seed), num_steps=1) for seed in range(200)]
    z = torch.stack([(fit.elbo - best) / fit.elbo_std_error for fit in fits])
    assert abs(z.mean()) < 0.3
    assert 0.8 < z.std() < 1.2


def test_optimizer_follows_the_estimate():
    start = vi.mean_field_gaussian(torch.zeros(4, dtype=f64))
    by_score = vi.fit(
        logistic(), start, generator=seeded(), num_steps=120, num_mc_samples=8, elbo=vi.score_function_elbo
    )
    assert len(by_score.elbo_history) == 120  # Adam's: natural gradients would be done
    weighted = functools.partial(vi.importance_weighted_elbo, num_importance=4)
    tight = vi.fit(logistic(), start, generator=seeded(), num_steps=300, elbo=weighted)
    assert tight.elbo_history[-50:].mean() > tight.elbo


# ---- Fits that fail


def improper(x):
    """Flat in the second coordinate."""
    return -0.5 * x[:, 0] ** 2


@pytest.mark.parametrize("start", [vi.mean_field_gaussian, vi.full_rank_gaussian])
@pytest.mark.parametrize("log_prob", [improper, lambda x: x.sum(1), lambda x: 0.1 * x[:, 0] ** 2 - x[:, 1] ** 2])
@pytest.mark.parametrize("optimizer", ["natural", "adam"])
def test_a_bound_without_a_limit_is_told(start, log_prob, optimizer):
    with pytest.raises(vi.FailedFit, match=r"the ELBO (rises without bound|still rises with the width)") as failure:
        vi.fit(log_prob, start(torch.zeros(2, dtype=f64)), generator=seeded(), num_steps=1500, optimizer=optimizer)
    fit = failure.value.fit
    assert not fit.is_converged
    assert len(fit.elbo_history) == failure.value.step > 0
    assert all(tensor.isfinite().all() for tensor in fit.family)
    assert fit.family.covariance.diagonal().max() > 10


@pytest.mark.parametrize(
    "start",
    [lambda loc: vi.real_nvp(loc, num_layers=2, generator=seeded()), lambda loc: vi.gaussian_mixture(loc[None])],
)
def test_a_bound_without_a_limit_is_told_of_other_families(start):
    with pytest.raises(vi.FailedFit, match=r"the ELBO (rises without bound|still rises)"):
        vi.fit(improper, start(torch.zeros(2, dtype=f64)), generator=seeded(), num_steps=900)


SEPARABLE = torch.tensor([[1.0, 0.3], [2.0, -0.5], [0.5, 0.4], [1.5, 1.0]], dtype=f64)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("start", [vi.mean_field_gaussian, vi.full_rank_gaussian])
@pytest.mark.parametrize("optimizer", ["natural", "adam"])
def test_a_density_that_is_improper_on_one_side_is_told(dim, start, optimizer):
    """Logistic regression with a flat prior, of classes that a line separates: the weights may grow for ever."""

    def log_prob(x):
        return torch.nn.functional.logsigmoid(x @ SEPARABLE[:, :dim].mT).sum(1)

    with pytest.raises(vi.FailedFit, match=r"the ELBO (still )?rises"):
        vi.fit(log_prob, start(torch.zeros(dim, dtype=f64)), generator=seeded(), optimizer=optimizer, num_steps=1500)
    proper = vi.fit(
        lambda x: log_prob(x) - 0.02 * x.square().sum(1), start(torch.zeros(dim, dtype=f64)), generator=seeded()
    )
    assert proper.is_converged


def test_a_density_that_is_nowhere_finite_stops_the_fit_at_once():
    for optimizer in ("natural", "adam"):
        with pytest.raises(vi.FailedFit, match=r"the gradient of loc\[0\] is not finite at step 0") as failure:
            vi.fit(
                lambda x: x.sqrt().sum(1), vi.mean_field_gaussian(torch.zeros(2, dtype=f64)), generator=seeded(),
                optimizer=optimizer,
            )  # fmt: skip
        assert failure.value.step == 0
        assert failure.value.parameter == "loc[0]"
        close(failure.value.fit.family.loc, torch.zeros(2, dtype=f64))
        close(failure.value.fit.family.std, torch.ones(2, dtype=f64))


def cliff(x):
    """Rises to the left, where at -5 in the second coordinate it ceases to be a number."""
    return -x[:, 1] - 0.5 * x[:, 0] ** 2 + 0 * (x[:, 1] + 5).sqrt()


def test_nan_on_the_way_names_step_and_parameter_and_keeps_the_best():
    start = vi.mean_field_gaussian(torch.zeros(2, dtype=f64), std=0.1)
    with pytest.raises(vi.FailedFit, match=r"the gradient of loc\[1\] is not finite at step \d+") as failure:
        vi.fit(cliff, start, generator=seeded(), optimizer="adam", lr=0.02)
    failed = failure.value
    assert failed.parameter == "loc[1]"
    assert failed.step > 100
    assert len(failed.fit.elbo_history) == failed.step
    assert failed.fit.elbo_history.isfinite().all()
    assert failed.fit.family.loc[1] < -0.1
    assert all(tensor.isfinite().all() for tensor in failed.fit.family)


def test_newton_steps_stay_on_this_side_of_a_cliff():
    """Steps into NaN are halved, so that a density with an edge far from its mass is fitted."""

    def log_prob(x):
        return Normal(0.0, 0.1).log_prob(x).sum(1) + 0 * (x + 1.0).sqrt().sum(1)

    start = vi.mean_field_gaussian(torch.full((2,), 0.5, dtype=f64), std=0.2)
    fit = vi.fit(log_prob, start, generator=seeded())
    close(fit.family.std, torch.full((2,), 0.1, dtype=f64), rtol=0.01)


def test_a_nan_bound_without_a_nan_gradient_is_seen():
    def log_prob(x):
        return torch.where(x[:, 0] > 2.5, nan, -0.5 * x.square().sum(1).detach()) + 0 * x.sum(1)

    for optimizer in ("natural", "adam"):
        with pytest.raises(vi.FailedFit, match=r"^log_prob is not finite at step \d+;") as failure:
            vi.fit(log_prob, vi.mean_field_gaussian(torch.zeros(2, dtype=f64)), generator=seeded(), optimizer=optimizer)
        assert failure.value.parameter == ""


BAD_FITS = {
    "num_steps must be at least 1, got 0": dict(num_steps=0),
    "num_mc_samples must be at least 1, got 0": dict(num_mc_samples=0),
    "num_samples must be at least 7, got 6": dict(num_mc_samples=6),
    "lr must be positive and finite, got 0": dict(lr=0.0),
    "lr must be positive and finite, got nan": dict(lr=nan),
    "tolerance must be positive and finite, got -1": dict(tolerance=-1.0),
    "optimizer must be 'auto', 'natural' or 'adam', got 'sgd'": dict(optimizer="sgd"),
    "optimizer must be 'adam' for a LowRankGaussian, got 'natural'": dict(
        optimizer="natural",
        family=vi.low_rank_gaussian(torch.zeros(5, dtype=f64), rank=1, generator=seeded()),
    ),
    "log_prob must take positions of the family's dimension, 3": dict(
        family=vi.mean_field_gaussian(torch.zeros(3, dtype=f64))
    ),
    r"one number a row, \[2\], got shape \[2, 5\]": dict(log_prob=lambda x: x),
    "log_prob must depend on the position": dict(log_prob=without_gradient(gaussian()[0])),
}


@pytest.mark.parametrize("message", BAD_FITS)
def test_bad_fits_are_refused(message):
    settings = dict(log_prob=gaussian()[0], family=vi.mean_field_gaussian(torch.zeros(5, dtype=f64)))
    settings |= dict(generator=seeded()) | BAD_FITS[message]
    with pytest.raises(ValueError, match=message):
        vi.fit(settings.pop("log_prob"), settings.pop("family"), **settings)


def test_progress_shows_a_bar_and_nothing_else_is_printed(capsys):
    start = vi.mean_field_gaussian(torch.zeros(4, dtype=f64))
    vi.fit(logistic(), start, generator=seeded())
    assert capsys.readouterr() == ("", "")
    vi.fit(logistic(), start, generator=seeded(), progress=True)
    vi.fit(logistic(), start, generator=seeded(), num_steps=10, optimizer="adam", progress=True)
    assert capsys.readouterr().err.count("fit:") >= 2


# ---- Adam's ascent


def bound_of(terms):
    return vi.Elbo(terms.mean(), terms.detach())


def test_ascent_stops_when_the_bound_stands_still():
    family = vi.mean_field_gaussian(torch.zeros(2, dtype=f64))
    end = vi.ascend(lambda q: bound_of(-(q.loc - 1).square()), family, num_steps=5000, lr=0.1)
    assert end.is_converged
    assert end.bad is None
    assert 900 <= len(end.history) < 3000
    close(end.family.loc, torch.ones(2, dtype=f64), rtol=1e-3)
    cut = vi.ascend(lambda q: bound_of(-(q.loc - 1).square()), family, num_steps=250, lr=0.1)
    assert not cut.is_converged
    assert len(cut.history) == 250


def test_ascent_gives_up_when_asked_to():
    family = vi.mean_field_gaussian(torch.zeros(2, dtype=f64))
    end = vi.ascend(
        lambda q: bound_of(q.loc), family, num_steps=5000, lr=1.0, has_run_away=lambda q: bool(q.loc.max() > 200)
    )
    assert len(end.history) in (200, 300, 400)
    assert not end.is_converged


def test_ascent_result_is_the_mean_of_the_last_hundred_steps():
    family = vi.mean_field_gaussian(torch.zeros(1, dtype=f64))
    end = vi.ascend(lambda q: bound_of(q.loc), family, num_steps=200, lr=0.5)
    close(end.family.loc, torch.tensor([0.5 * (101 + 200) / 2], dtype=f64), rtol=1e-4)


# ---- The other direction


def two_modes(x):
    weights = torch.tensor([0.3, 0.7], dtype=x.dtype).log()
    return torch.logsumexp(weights + Normal(torch.tensor([-3.0, 2.0]), 0.7).log_prob(x), 1)


def test_forward_kl_matches_moments_where_reverse_kl_seeks_a_mode():
    start = vi.mean_field_gaussian(torch.zeros(1, dtype=f64), std=4.0)
    mean, var = 0.3 * -3 + 0.7 * 2, 0.49 + 0.3 * 0.7 * 25
    forward = vi.fit_forward_kl(two_modes, start, generator=seeded(), num_mc_samples=512)
    assert forward.is_converged
    assert abs(forward.family.loc[0] - mean) < 0.05
    assert abs(forward.family.std[0] ** 2 / var - 1) < 0.03
    cross_entropy = 0.5 * math.log(2 * math.pi * var) + 0.5
    assert abs(forward.elbo_history[-200:].mean() + cross_entropy) < 0.05
    reverse = vi.fit(two_modes, vi.mean_field_gaussian(torch.tensor([1.0], dtype=f64)), generator=seeded())
    assert abs(reverse.family.loc[0] - 2) < 0.05
    assert abs(reverse.family.std[0] - 0.7) < 0.05
    assert reverse.elbo > forward.elbo
    close(reverse.elbo, math.log(0.7), rtol=0.05)


def test_forward_kl_needs_no_gradient_and_refuses_what_fails():
    start = vi.mean_field_gaussian(torch.zeros(1, dtype=f64), std=4.0)
    found = vi.fit_forward_kl(without_gradient(two_modes), start, generator=seeded(), num_steps=200)
    assert found.family.loc[0] > 0.2
    assert len(found.elbo_history) == 200
    for message, settings in {
        "num_steps must be at least 1": dict(num_steps=0),
        "num_mc_samples must be at least 2": dict(num_mc_samples=1),
        "lr must be positive": dict(lr=-1.0),
    }.items():
        with pytest.raises(ValueError, match=message):
            vi.fit_forward_kl(two_modes, start, generator=seeded(), **settings)
    with pytest.raises(ValueError, match="one number a row"):
        vi.fit_forward_kl(lambda x: x, start, generator=seeded())
    with pytest.raises(vi.FailedFit, match="not finite at step 0"):
        vi.fit_forward_kl(lambda x: nan * x[:, 0], start, generator=seeded())


def test_fit_to_draws_is_the_moments_for_gaussians_and_likelihood_for_others():
    draws = torch.cat([randn(600, 2), randn(600, 2, seed=1) * 0.3 + 4])
    zeros = torch.zeros(2, dtype=f64)
    full = vi.fit_to_draws(draws, vi.full_rank_gaussian(zeros))
    close(full.covariance, torch.cov(draws.mT, correction=0))
    diagonal = vi.fit_to_draws(draws, vi.mean_field_gaussian(zeros))
    close(diagonal.std.square(), draws.var(0, correction=0))
    close(diagonal.loc, draws.mean(0))
    start = vi.gaussian_mixture(torch.tensor([[-1.0, -1.0], [5.0, 5.0]], dtype=f64))
    mixture = vi.fit_to_draws(draws, start, generator=seeded(), lr=0.05)
    close(mixture.weights, torch.full((2,), 0.5, dtype=f64), atol=0.03, rtol=0)
    close(mixture.log_std.exp().mean(1), torch.tensor([1.0, 0.3], dtype=f64), rtol=0.1)
    assert mixture.log_prob(draws).mean() > full.log_prob(draws).mean() + 0.3


BAD_DRAWS = {
    "draws must be finite, with 2 columns, got shape": lambda family: vi.fit_to_draws(randn(9, 3), family),
    "draws must be finite": lambda family: vi.fit_to_draws(torch.full((9, 2), nan, dtype=f64), family),
    "the number of draws must be at least 4, got 3": lambda family: vi.fit_to_draws(randn(3, 2), family),
    "generator must be given for a GaussianMixture, got None": lambda family: vi.fit_to_draws(
        randn(9, 2), vi.gaussian_mixture(randn(2, 2))
    ),
    "batch_size must be at least 1": lambda family: vi.fit_to_draws(randn(9, 2), family, batch_size=0),
    "num_steps must be at least 1": lambda family: vi.fit_to_draws(randn(9, 2), family, num_steps=0),
    "lr must be positive": lambda family: vi.fit_to_draws(randn(9, 2), family, lr=inf),
}


@pytest.mark.parametrize("message", BAD_DRAWS)
def test_bad_draws_are_refused(message):
    with pytest.raises(ValueError, match=message):
        BAD_DRAWS[message](vi.full_rank_gaussian(torch.zeros(2, dtype=f64)))


# ---- With the rest of the library


def test_a_fit_is_a_proposal_for_importance_sampling():
    log_prob, *_, log_evidence = gaussian()
    fit = vi.fit(log_prob, vi.full_rank_gaussian(torch.zeros(5, dtype=f64)), generator=seeded())
    for family in (fit.family, fit.family._replace(scale_tril=1.3 * fit.family.scale_tril)):
        estimate = evidence.importance_sampling(log_prob, family, num_samples=4000, generator=seeded(1))
        assert abs(estimate.value - log_evidence) < 4 * estimate.std_error + 1e-6


def test_elbo_of_a_regression_is_its_evidence_minus_the_kl():
    """Log p(x) = ELBO + KL, with the evidence and the posterior of bdl_lib.bayes, to the last digits."""
    features, targets = randn(12, 3, seed=7), randn(12, seed=8)
    prior = bayes.gaussian_prior(3, prior_std=1.5, dtype=f64)
    posterior = bayes.linear_posterior(prior, features, targets, noise_std=0.6)
    log_evidence = bayes.linear_log_evidence(prior, features, targets, noise_std=0.6)

    def log_joint(weights):
        zero, noise_std = torch.tensor([0.0, 0.6], dtype=f64)
        log_prior = Normal(zero, 1.5 * torch.ones_like(zero)).log_prob(weights).sum(1)
        return log_prior + Normal(weights @ features.mT, noise_std).log_prob(targets).sum(1)

    family = vi.FullRankGaussian(posterior.loc + 0.1, 0.8 * torch.linalg.cholesky(torch.linalg.inv(posterior.prec)))
    survey = vi.survey(mcmc.differentiable(log_joint), family, vi.matched_noise(family.loc, 50, seeded()))
    kl = torch.distributions.kl_divergence(
        MultivariateNormal(family.mean, family.covariance),
        MultivariateNormal(posterior.loc, torch.linalg.inv(posterior.prec)),
    )
    close(survey.elbo + kl, log_evidence)
