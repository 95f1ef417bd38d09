"""One call of every public function of every chapter module, on any device: the rows that test_devices.py walks.

A row is ``"module.function": lambda t: call``, its name that of the function in the chapter's module ("bayes.update",
not "bayes.discrete.update"). ``t`` makes every tensor of the call, on the device and in the precision of the run:

    t([1.0, 2.0])          a tensor; numbers with a point get the precision of the run, whole numbers stay whole
    t.like                 dict(dtype=..., device=...), for what takes the two as arguments
    t.generator            a generator on the device, seeded afresh for each run: one a row

A row returns what the function returns: tensors, distributions, modules, nested in tuples, lists and dicts. A function
that returns a function proves nothing until that is called: let the row call it. Smallest inputs that reach every
branch that makes a tensor; a batch where the function takes one. No row computes in the CPU's name: no ``.cpu()``.

To add a module, add its rows under a heading of its own, with one line in ``EXAMPLES`` at the end. A missing row, and a
row without a function, fail.
"""

import functools
import tempfile

import torch
from torch import nn
from torch.distributions import Beta, Gamma, Normal

from bdl_lib import bayes, dropout, evidence, mcmc, networks, scores, uncertainty, vae, vi
from bdl_lib.mcmc.hmc import hmc


class TensorMaker:
    """Makes the tensors of one run of one row."""

    def __init__(self, device: torch.device | str, dtype: torch.dtype):
        self.like = dict(device=torch.device(device), dtype=dtype)
        self.is_random = False  # whether the row asked for a generator

    def __call__(self, data) -> torch.Tensor:
        on_cpu = torch.tensor(data)
        return on_cpu.to(self.like["device"], self.like["dtype"] if on_cpu.is_floating_point() else on_cpu.dtype)

    @functools.cached_property
    def generator(self) -> torch.Generator:
        self.is_random = True
        return torch.Generator(self.like["device"]).manual_seed(0)


# ---- bayes


def _weights(t):
    return bayes.GaussianWeights(t([0.5, -1.0]), t([[2.0, 0.3], [0.3, 1.0]]))


def _regression(t):
    """Features and targets of three observations."""
    return t([[1.0, -1.0], [1.0, 0.0], [1.0, 2.0]]), t([0.1, 0.4, 1.2])


def _grid(t):
    axes = t([0.5, 1.5, 2.5]), t([-1.0, 0.0, 1.0, 2.0])
    return bayes.grid_posterior(lambda points: -points.square().sum(-1), *axes)


BAYES = {
    "bayes.update": lambda t: bayes.update(t([0.2, 0.8]), t([[0.9, 0.1], [0.5, 0.0]])),
    "bayes.update_log": lambda t: bayes.update_log(t([-1.0, -2.0]), t([[-0.1, -3.0], [0.2, -700.0]])),
    "bayes.update_sequence": lambda t: bayes.update_sequence(t([0.2, 0.8]), t([[0.9, 0.1], [0.5, 0.4]])),
    "bayes.log_odds": lambda t: bayes.log_odds(t([0.0, 0.1, 1.0])),
    "bayes.update_log_odds": lambda t: bayes.update_log_odds(t([0.0, -2.0]), 0.9, t([0.1, 0.2])),
    "bayes.beta_bernoulli": lambda t: bayes.beta_bernoulli(Beta(t([1.0, 2.0]), t([1.0, 0.5])), t([3, 0]), 4),
    "bayes.gamma_poisson": lambda t: bayes.gamma_poisson(Gamma(t(2.0), t(1.0)), t([[0, 3, 1], [2, 2, 5]])),
    "bayes.normal_known_std": lambda t: bayes.normal_known_std(Normal(t(0.0), t(2.0)), t([[1.0, 2.0, 0.5]]), 0.3),
    "bayes.normal_unknown_std": lambda t: bayes.normal_unknown_std(
        bayes.NormalGamma(0.0, t(1.0), 2.0, t([1.0, 3.0])), t([[1.0, 2.0, 0.5], [0.0, 0.1, -0.2]])
    ),
    "bayes.normal_gamma_mean": lambda t: bayes.normal_gamma_mean(
        bayes.NormalGamma(t(0.0), t(1.0), t([2.0, 3.0]), t(1.0))
    ),
    "bayes.midpoints": lambda t: bayes.midpoints(0.0, 1.0, 5, **t.like),
    "bayes.grid_posterior": lambda t: (_grid(t), _grid(t).points, _grid(t).cell_prob),
    "bayes.grid_expectation": lambda t: bayes.grid_expectation(_grid(t), _grid(t).points),
    "bayes.grid_marginal": lambda t: (bayes.grid_marginal(_grid(t), 0), bayes.grid_marginal(_grid(t), 1)),
    "bayes.gaussian_prior": lambda t: (
        bayes.gaussian_prior(3, prior_std=2, **t.like),
        bayes.gaussian_prior(2, prior_std=t([0.5, 1.0])),
    ),
    "bayes.linear_posterior": lambda t: (
        bayes.linear_posterior(_weights(t), *_regression(t), noise_std=0.5),
        bayes.linear_posterior(
            bayes.gaussian_prior(2, prior_std=float("inf"), **t.like), *_regression(t), noise_std=t([0.5, 1.0])
        ),
    ),
    "bayes.linear_predictive": lambda t: bayes.linear_predictive(_weights(t), _regression(t)[0], noise_std=0.5),
    "bayes.linear_log_evidence": lambda t: bayes.linear_log_evidence(_weights(t), *_regression(t), noise_std=0.5),
    "bayes.sample_weights": lambda t: bayes.sample_weights(_weights(t), 4, generator=t.generator),
    "bayes.logistic_posterior": lambda t: [
        (log_prob(w), log_prob(w, t([1, 0])), *log_prob.value_and_grad(w), log_prob.grad(w, t([2])), log_prob.prior)
        for w in [t([[0.5, -0.5], [1.0, 0.0]])]
        for std in (2.0, t([1.0, 2.0]))
        for log_prob in [bayes.logistic_posterior(_regression(t)[0], t([0, 1, 1]), prior_std=std)]
    ],
    "bayes.polynomial_features": lambda t: bayes.polynomial_features(t([[0.0, 0.5], [1.0, 2.0]]), 3),
    "bayes.radial_features": lambda t: bayes.radial_features(t([0.0, 0.5]), t([0.0, 1.0, 2.0]), width=0.5),
}

# ---- networks


def _network(outputs=3):
    return networks.mlp([2, 4, outputs], activation=torch.tanh)


def _start(t, outputs=3):
    """Two weight vectors, drawn on the device."""
    return networks.gaussian_prior(_network(outputs), prior_std=1.0, **t.like).sample(2, generator=t.generator)


def _asked(t):
    return t([[0.0, 1.0], [-1.0, 0.5], [2.0, -1.0]])


def _log_posterior(t, outputs=3):
    """Log posterior with the likelihood that has so many outputs."""
    likelihood, targets = {
        1: (networks.gaussian_likelihood(0.5), t([0.1, -0.4, 1.0])),
        2: (networks.heteroscedastic_likelihood(), t([0.1, -0.4, 1.0])),
        3: (networks.categorical_likelihood(3), t([0, 2, 1])),
    }[outputs]
    prior = networks.gaussian_prior(_network(outputs), prior_std={"0": 1.0, "1": 0.5}, **t.like)
    return networks.log_posterior(_network(outputs), prior, likelihood, _asked(t), targets)


def _likelihood_parts(likelihood, outputs, targets):
    """What a likelihood's functions make of some outputs."""
    likelihood.check_targets(targets)
    parts = [likelihood.log_prob(outputs, targets), *likelihood.log_prob_and_score(outputs, targets)]
    parts += likelihood.moments(outputs) if likelihood.moments else []
    return parts + ([likelihood.class_prob(outputs)] if likelihood.class_prob else [])


def _network_parts(network, weights, inputs):
    outputs, pullback = network.vjp(weights, inputs)
    return network.apply(weights, inputs), outputs, pullback(outputs)


NETWORKS = {
    "networks.mlp": lambda t: [
        _network_parts(networks.mlp([2, 4, 3], **settings), t([[0.1] * dim, [-0.3] * dim]), _asked(t))
        for dim, settings in [
            (27, {"activation": torch.tanh}),
            (27, {"activation": torch.relu, "chunk_size": 1}),
            (20, {"activation": torch.sin, "bias": False}),
        ]
    ],
    "networks.from_module": lambda t: _network_parts(
        networks.from_module(torch.nn.utils.skip_init(torch.nn.Linear, 2, 3)), t([[0.5] * 9, [-1.0] * 9]), _asked(t)
    ),
    "networks.unflatten_weights": lambda t: networks.unflatten_weights(_network(), t([[0.5] * 27])),
    "networks.flatten_weights": lambda t: networks.flatten_weights(
        _network(), networks.unflatten_weights(_network(), t([[0.5] * 27]))
    ),
    "networks.far_field_slope": lambda t: networks.far_field_slope(
        networks.mlp([2, 4, 3]), t([[0.5] * 27, [-0.2] * 27]), _asked(t)
    ),
    "networks.gaussian_likelihood": lambda t: _likelihood_parts(
        networks.gaussian_likelihood(0.5), t([[[0.1], [0.2]]]), t([0.0, 1.0])
    ),
    "networks.heteroscedastic_likelihood": lambda t: _likelihood_parts(
        networks.heteroscedastic_likelihood(), t([[[0.1, -1.0], [0.2, 3.0]]]), t([0.0, 1.0])
    ),
    "networks.bernoulli_likelihood": lambda t: _likelihood_parts(
        networks.bernoulli_likelihood(), t([[[0.1], [-9.0]]]), t([1, 0])
    ),
    "networks.categorical_likelihood": lambda t: _likelihood_parts(
        networks.categorical_likelihood(2), t([[[0.1, 1.0], [-9.0, 0.0]]]), t([1, 0])
    ),
    "networks.gaussian_prior": lambda t: (
        networks.gaussian_prior(_network(), prior_std={"0": 1.0, "1": 0.5}, **t.like),
        networks.gaussian_prior(_network(), prior_std=2.0, **t.like).log_prob(_start(t)),
    ),
    "networks.log_posterior": lambda t: [
        (_log_posterior(t, k)(weights), _log_posterior(t, k).value_and_grad(weights, t([2, 0])))
        for k in (1, 2, 3)
        for weights in [_start(t, k)]
    ],
    "networks.draw_rows": lambda t: networks.draw_rows(5, 3, generator=t.generator),
    "networks.fit_map": lambda t: (
        networks.fit_map(_log_posterior(t), _start(t), num_steps=4, patience=2),
        networks.fit_map(_log_posterior(t), _start(t), num_steps=2, batch_size=2, generator=t.generator).best_weights,
    ),
    "networks.predict_regression": lambda t: [
        (result, result.std)
        for k in (1, 2)
        for result in [
            networks.predict_regression(_network(k), _log_posterior(t, k).likelihood, _start(t, k), _asked(t))
        ]
    ],
    "networks.predict_classes": lambda t: networks.predict_classes(
        _network(), networks.categorical_likelihood(3), _start(t), _asked(t)
    ),
    "networks.variance_split": lambda t: networks.variance_split(t([[0.0, 1.0], [2.0, 1.0]]), t([[1.0, 2.0]] * 2)),
    "networks.entropy_split": lambda t: networks.entropy_split(t([[[1.0, 0.0]], [[0.25, 0.75]]])),
    "networks.expected_loss": lambda t: networks.expected_loss(t([[0.25, 0.75]]), t([[0.0, 1.0], [5.0, 0.0]])),
    "networks.decide": lambda t: (
        networks.decide(t([[0.25, 0.75]]), t([[0.0, 1.0], [5.0, 0.0]])),
        networks.decide(t([[0.25, 0.75], [1.0, 0.0]]), t([[0.0, 1.0], [5.0, 0.0]]), refuse_cost=0.5),
    ),
    "networks.risk_coverage": lambda t: (
        networks.risk_coverage(t([0.5, 0.9, 0.5]), t([1.0, 0.0, 0.0])),
        networks.risk_coverage(t([0.5, 0.9, 0.5]), t([1.0, 0.0, 0.0])).area,
    ),
}

# ---- evidence


def _standard_normal(t):
    return torch.distributions.MultivariateNormal(t([0.0, 0.0]), t([[1.0, 0.0], [0.0, 1.0]]))


def _closer(position):
    """A likelihood: observations of both coordinates, at 1."""
    return -2 * (position - 1).square().sum(-1)


def _closer_half(position):
    """The same, NaN in a corner: particles that are excluded and counted."""
    return torch.where((position < -0.5).all(-1), float("nan"), _closer(position))


def _joint(position):
    return _closer(position) - 0.5 * position.square().sum(-1)


def _walk(t, estimate, log_likelihood=_closer, **settings):
    settings = {"num_particles": 64, "generator": t.generator, "target_cess": 0.7, "max_moves": 2, **settings}
    return estimate(_standard_normal(t), log_likelihood, **settings)


def _moved(t, position):
    kernel = evidence.gaussian_move(_joint, position)
    state = kernel.init(position)
    return state, kernel.step(state, t.generator)


def _prior(t):
    return networks.gaussian_prior(_network(), prior_std=1.0, **t.like)


def _beta(t):
    return torch.distributions.Independent(Beta(t([0.5, 2.0]), t([3.0, 1.0])), 1)


EVIDENCE = {
    "evidence.grid_cost": lambda t: t([*map(float, evidence.grid_cost(10, 3, seconds_per_evaluation=1e-6))]),
    "evidence.grid_quadrature": lambda t: evidence.grid_quadrature(_joint, t([-4.0] * 2), t([5.0] * 2), num_points=30),
    "evidence.draw": lambda t: (
        evidence.draw(_standard_normal(t), 3, generator=t.generator),
        evidence.draw(_prior(t), 2, generator=t.generator),
        evidence.draw(torch.distributions.Independent(Normal(t([0.0]), t([2.0])), 1), 3, generator=t.generator),
    ),
    "evidence.log_density": lambda t: [
        evidence.log_density(_beta(t), t([[0.5, 0.5], [0.5, 1.5]])),
        evidence.log_density(_standard_normal(t), t([[0.5, 0.5]])),
    ],
    "evidence.prior_sampling": lambda t: [
        evidence.prior_sampling(_standard_normal(t), likelihood, num_samples=64, generator=t.generator)
        for likelihood in (_closer, _closer_half)
    ],
    "evidence.importance_sampling": lambda t: evidence.importance_sampling(
        _joint, _standard_normal(t), num_samples=64, generator=t.generator
    ),
    "evidence.harmonic_mean": lambda t: evidence.harmonic_mean(
        _closer, torch.randn(64, 2, generator=t.generator, **t.like)
    ),
    "evidence.pareto_k": lambda t: t(evidence.pareto_k(torch.randn(64, generator=t.generator, **t.like))),
    "evidence.find_mode": lambda t: evidence.find_mode(_joint, t([0.0, 3.0])),
    "evidence.laplace": lambda t: [
        evidence.laplace(_joint, t([0.8, 0.8]), is_diagonal=is_diagonal) for is_diagonal in (False, True)
    ],
    "evidence.negative_hessian": lambda t: [
        evidence.negative_hessian(_log_density, t([0.5, 1.0]), is_diagonal=is_diagonal) for is_diagonal in (False, True)
    ],
    "evidence.gaussian_move": lambda t: _moved(t, torch.randn(8, 2, generator=t.generator, **t.like)),
    "evidence.conditional_ess": lambda t: [
        evidence.conditional_ess(step, t([0.0, -1.0, 2.0]), t([-0.5, -1.5, -1.7])) for step in (0.5, t(0.5))
    ],
    "evidence.next_temperature": lambda t: [
        (found, t(temperature))
        for log_likelihood in ([0.0, -9.0, 2.0], [0.0, -0.1, -float("inf")])
        for temperature, found in [
            evidence.next_temperature(0.1, t(log_likelihood), t([0.0, 0.5, 0.1]), target_cess=0.8)
        ]
    ],
    "evidence.annealed_importance_sampling": lambda t: _walk(t, evidence.annealed_importance_sampling, _closer_half),
    "evidence.sequential_monte_carlo": lambda t: (
        _walk(t, evidence.sequential_monte_carlo, num_groups=4),
        _walk(t, evidence.sequential_monte_carlo, _closer_half, num_groups=4),
    ),
    "evidence.thermodynamic_integration": lambda t: _walk(t, evidence.thermodynamic_integration, num_groups=4),
    "evidence.bridge_sampling": lambda t: evidence.bridge_sampling(
        _joint, 0.8 + 0.45 * torch.randn(2, 20, 2, generator=t.generator, **t.like), generator=t.generator
    ),
}

# ---- mcmc: kernels and how they run


def _log_density(position):
    """Log-gammas, as a function of the position alone: autograd finds the gradient."""
    return (2 * position - position.exp()).sum(-1)


def _gradients(t, log_prob, position):
    density = mcmc.differentiable(log_prob)
    return density.log_prob(position), density.value_and_grad(position), density.grad(position)


def _metric_parts(t, inverse_mass_matrix):
    metric, x = mcmc.gaussian_momentum(inverse_mass_matrix), t([[0.5, 1.0]])
    return metric.draw(x, t.generator), metric.drift_(x.clone(), x, 0.1), metric.velocity(x), metric.whiten(x)


def _kernel_parts(t, kernel):
    state = kernel.init(t([[0.1, -0.2], [0.4, 0.3], [-1.0, 0.5]]))
    return state, kernel.step(state, t.generator)


def _sampled(t, name, **settings):
    """A short run of an entry point, taken up again by its kernel."""
    start, run = torch.randn(6, 3, generator=t.generator, **t.like), {"num_samples": 3, "generator": t.generator}
    draws = getattr(mcmc, f"sample_{name}")(_log_density, start, num_warmup=12, **run, **settings)
    more = mcmc.resume(getattr(mcmc, name)(_log_density, **draws.settings), draws, **run)
    return draws.position, draws.info, draws.settings, more.position, more.info


def _stored(t):
    """To a file and back. A file is on the host, so that storing tensors copies them: here are none on the device."""
    with tempfile.TemporaryDirectory() as folder:
        mcmc.save_draws(mcmc.Draws(None, {}, None, {"step_size": 0.1}, torch.zeros(2).byte()), f"{folder}/draws.pt")
        return t(mcmc.load_draws(f"{folder}/draws.pt").settings["step_size"])


def _matrix(t):
    return t([[1.0, 0.3], [0.3, 0.5]])


MCMC_KERNELS = {
    "mcmc.differentiable": lambda t: (
        _gradients(t, _log_density, t([[0.5, 1.0]])),
        _gradients(t, _log_posterior(t), _start(t)),
    ),
    "mcmc.gaussian_momentum": lambda t: [_metric_parts(t, matrix) for matrix in (None, t([0.5, 2.0]), _matrix(t))],
    "mcmc.leapfrog": lambda t: [
        mcmc.leapfrog(
            _log_density,
            t([[0.5, 1.0]]),
            t([[1.0, -1.0]]),
            step_size=0.1,
            num_leapfrog_steps=3,
            inverse_mass_matrix=matrix,
        )
        for matrix in (None, t([0.5, 2.0]), _matrix(t))
    ],
    "mcmc.metropolis": lambda t: (
        _kernel_parts(t, mcmc.metropolis(_log_density, proposal_std=t([0.5, 1.0]))),
        _kernel_parts(t, mcmc.metropolis(_log_density, proposal_std=0.5)),
    ),
    "mcmc.mala": lambda t: _kernel_parts(t, mcmc.mala(_log_density, step_size=0.5)),
    "mcmc.hmc": lambda t: _kernel_parts(
        t, mcmc.hmc(_log_density, step_size=0.5, num_leapfrog_steps=2, inverse_mass_matrix=t([0.5, 2.0]))
    ),
    "mcmc.nuts": lambda t: _kernel_parts(t, mcmc.nuts(_log_density, step_size=0.3, inverse_mass_matrix=_matrix(t))),
    "mcmc.chees": lambda t: _kernel_parts(
        t, mcmc.chees(_log_density, step_size=0.5, trajectory_length=1.5, inverse_mass_matrix=_matrix(t))
    ),
    "mcmc.sample_metropolis": lambda t: _sampled(t, "metropolis"),
    "mcmc.sample_mala": lambda t: _sampled(t, "mala", mass_matrix="dense"),
    "mcmc.sample_hmc": lambda t: _sampled(t, "hmc", num_leapfrog_steps=2),
    "mcmc.sample_nuts": lambda t: _sampled(t, "nuts", max_tree_depth=3),
    "mcmc.sample_chees": lambda t: _sampled(t, "chees", mass_matrix="dense"),
    "mcmc.collect": lambda t: mcmc.collect(
        mcmc.metropolis(_log_density, proposal_std=1.0),
        mcmc.MetropolisState(t([[0.5, 1.0]]), t([0.0])),
        num_samples=2,
        generator=t.generator,
    )[:3],
    "mcmc.resume": lambda t: _sampled(t, "mala"),
    "mcmc.save_draws": _stored,
    "mcmc.load_draws": _stored,
    "mcmc.dual_averaging_start": lambda t: t(mcmc.dual_averaging_start(0.5)[:4]),
    "mcmc.dual_averaging_step": lambda t: t(mcmc.dual_averaging_step(mcmc.dual_averaging_start(0.5), 0.9, 0.8)[:4]),
    "mcmc.halton": lambda t: t(mcmc.halton(3)),
    "mcmc.pooled_inverse_mass_matrix": lambda t: [
        mcmc.pooled_inverse_mass_matrix(torch.randn(20, 3, 2, generator=t.generator, **t.like), mass_matrix=kind)
        for kind in ("auto", "diagonal", "dense")
    ],
}

# ---- mcmc: judging, transforms, big data, separated modes


def _skewed(position):
    """Independent log-gammas: a smooth density with curved everything."""
    return (2 * position - position.exp()).sum(-1)


def _chains(t):
    """Eight starting points."""
    return 0.3 * torch.randn(8, 2, generator=t.generator, **t.like)


def _seen(draws):
    """The tensors of a run that belong on the device."""
    return draws.position, draws.info, draws.state, draws.settings


def _two_steps(t, kernel):
    return mcmc.collect(kernel, kernel.init(_chains(t)), num_samples=2, generator=t.generator).position


def _run(t, sample, log_prob=_skewed, start=None, **settings):
    start = _chains(t) if start is None else start
    return _seen(sample(log_prob, start, num_samples=2, generator=t.generator, **settings))


def _local(log_prob):
    return hmc(log_prob, step_size=0.3, num_leapfrog_steps=2)


def _bijection():
    constraints = torch.distributions.constraints
    kinds = [
        (constraints.positive, 1),
        (constraints.interval(-1.0, 2.0), 1),
        (constraints.simplex, 3),
        (mcmc.ORDERED, 2),
    ]
    return mcmc.constrain({str(i): kind for i, kind in enumerate(kinds)})


def _through_bijection(t):
    bijection, free = _bijection(), t([[0.1, -0.5, 1.0, 0.3, -1.0, 0.2]])
    constrained = bijection.forward(free)
    return constrained, bijection.inverse(constrained), bijection.log_abs_det(free)


def _calibration(t):
    def simulate(parameters, generator):
        return parameters + torch.randn(parameters.shape, generator=generator, **t.like)

    def sample(data, generator):
        return data[:, None] / 2 + torch.randn(len(data), 9, 2, generator=generator, **t.like)

    found = mcmc.calibrate(_chains(t), simulate, sample, generator=t.generator, num_bins=3)
    return found, found.p_value


MCMC_JUDGING = {
    "mcmc.constrain": _through_bijection,
    "mcmc.unconstrained_log_prob": lambda t: mcmc.unconstrained_log_prob(lambda x: x.sum(-1), _bijection())(
        t([[0.1, -0.5, 1.0, 0.3, -1.0, 0.2]])
    ),
    "mcmc.diagnose": lambda t: mcmc.diagnose(
        mcmc.Draws(t([[[0.1], [0.5], [0.2], [0.9]]] * 2), {"energy": t([[1.0, 2.0, 0.5, 0.7]] * 2)}, None, {}, None)
    ),
    "mcmc.nested_rhat": lambda t: (
        mcmc.nested_rhat(t([[[0.1], [0.5]], [[0.2], [0.7]], [[1.0], [0.1]], [[0.0], [0.3]]]), num_superchains=2),
        mcmc.nested_rhat(t([[[0.1]], [[0.2]], [[1.0]], [[0.0]]]), num_superchains=2),
    ),
    "mcmc.bfmi": lambda t: mcmc.bfmi(t([[1.0, 2.0, 0.5], [0.1, 0.3, 0.2]])),
    "mcmc.calibrate": _calibration,
    "mcmc.largest_eigenvalue": lambda t: mcmc.largest_eigenvalue(t([[[1.0, 2.0], [0.5, 0.1], [0.3, 0.3]]])),
    "mcmc.generalized_hmc": lambda t: (
        _two_steps(t, mcmc.generalized_hmc(_skewed, step_size=0.3, damping=1.0)),
        _two_steps(
            t, mcmc.generalized_hmc(_skewed, step_size=0.3, damping=1.0, inverse_mass_matrix=t([1.0, 2.0]), num_steps=2)
        ),
    ),
    "mcmc.sample_meads": lambda t: _run(t, mcmc.sample_meads, num_warmup=4, num_steps=2),
    "mcmc.microcanonical": lambda t: [
        _two_steps(
            t,
            mcmc.microcanonical(_skewed, step_size=0.5, trajectory_length=1.0, inverse_mass_matrix=inverse_mass_matrix),
        )
        for inverse_mass_matrix in (None, t([1.0, 2.0]), t([[1.0, 0.5], [0.5, 2.0]]))
    ],
    "mcmc.microcanonical_leapfrog": lambda t: mcmc.microcanonical_leapfrog(
        _skewed, t([[0.1, 0.3]]), t([[0.6, 0.8]]), step_size=0.5, num_leapfrog_steps=2
    ),
    "mcmc.sample_microcanonical": lambda t: (
        _run(t, mcmc.sample_microcanonical, num_warmup=10),
        _run(t, mcmc.sample_microcanonical, num_warmup=20, mass_matrix="dense"),
    ),
    "mcmc.parallel_tempering": lambda t: _two_steps(
        t, mcmc.parallel_tempering(_skewed, inverse_temperatures=t([1.0, 0.5, 0.2]), local=_local)
    ),
    "mcmc.sample_parallel_tempering": lambda t: _run(
        t, mcmc.sample_parallel_tempering, num_warmup=40, local=_local, min_inverse_temperature=0.5, num_temperatures=3
    ),
    "mcmc.adapt_ladder": lambda t: mcmc.adapt_ladder(t([1.0, 0.5, 0.2]), t([0.9, 0.4])),
    "mcmc.sgld": lambda t: _two_steps(t, mcmc.sgld(_skewed, step_size=0.1)),
    "mcmc.sghmc": lambda t: _two_steps(t, mcmc.sghmc(_skewed, step_size=0.1, friction=0.2, num_steps=2)),
    "mcmc.sample_sgld": lambda t: _run(
        t, mcmc.sample_sgld, _log_posterior(t), _start(t), num_warmup=1, step_size=1e-3, batch_size=2
    ),
    "mcmc.sample_sghmc": lambda t: _run(
        t, mcmc.sample_sghmc, _log_posterior(t), _start(t), num_warmup=1, step_size=1e-3, friction=0.1, batch_size=2
    ),
}

# ---- vi


def _families(t):
    """One of each."""
    loc = t([0.3, -0.2])
    return [
        vi.mean_field_gaussian(loc, std=t([0.5, 1.5])),
        vi.low_rank_gaussian(loc, rank=1, generator=t.generator),
        vi.FullRankGaussian(loc, t([[0.5, 0.0], [0.3, -0.8]])),
        vi.gaussian_mixture(t([[0.0, 1.0], [1.0, 0.0]]), std=0.7),
        vi.real_nvp(loc, num_layers=3, hidden=4, generator=t.generator),
    ]


def _bounds(t, estimate, **settings):
    """Value, terms and gradients, for every family."""
    found = []
    for family in _families(t):
        leaves = [tensor.requires_grad_() for tensor in family]
        bound = estimate(_joint, type(family)(*leaves), num_samples=8, generator=t.generator, **settings)
        grads = torch.autograd.grad(bound.value, leaves, allow_unused=True)
        found.append((bound, bound.std_error, [grad for grad in grads if grad is not None]))
    return found


def _weighted_bounds(t):
    settings = {"num_importance": 3, "num_samples": 4, "generator": t.generator}
    return [vi.importance_weighted_elbo(_joint, family, **settings) for family in _families(t)]


def _natural_steps(t):
    gaussians = vi.full_rank_gaussian(t([0.3, -0.2])), vi.mean_field_gaussian(t([0.3, -0.2]))
    surveys = [
        vi.survey(mcmc.differentiable(_joint), family, vi.matched_noise(family.loc, 16, t.generator))
        for family in gaussians
    ]
    return surveys, [vi.natural_step(*pair, step_size=0.5) for pair in zip(gaussians, surveys, strict=True)]


def _fits(t):
    short = {"num_steps": 120, "generator": t.generator}
    gaussian, flow = vi.full_rank_gaussian(t([0.3, -0.2])), vi.real_nvp(t([0.3, -0.2]), hidden=4, generator=t.generator)
    return [
        vi.fit(_joint, vi.mean_field_gaussian(t([0.3, -0.2])), generator=t.generator),
        vi.fit(_joint, gaussian, generator=t.generator),
        vi.fit(_joint, flow, num_mc_samples=4, **short),
        vi.fit(_joint, gaussian, optimizer="adam", elbo=vi.score_function_elbo, **short),
    ]


def _failed_fit(t):
    try:
        vi.fit(lambda position: position.sqrt().sum(-1), vi.mean_field_gaussian(t([0.3, -0.2])), generator=t.generator)
    except vi.FailedFit as failed:
        return failed.fit.family


def _forward_fits(t):
    return vi.fit_forward_kl(_joint, vi.mean_field_gaussian(t([0.3, -0.2])), num_steps=5, generator=t.generator)


def _fits_to_draws(t):
    draws = torch.randn(20, 2, generator=t.generator, **t.like)
    return [vi.fit_to_draws(draws, family, generator=t.generator, num_steps=5) for family in _families(t)]


def _ascent(t):
    def bound(family):
        return vi.Elbo(-family.loc.square().sum(), -family.loc.detach().square())

    return vi.ascend(bound, vi.mean_field_gaussian(t([0.3, -0.2])), num_steps=5, lr=0.1)[:2]


VI = {
    "vi.mean_field_gaussian": lambda t: [(q.mean, q.covariance, q.log_prob(t([[0.0, 1.0]]))) for q in _families(t)[:1]],
    "vi.low_rank_gaussian": lambda t: [
        (q.sample(3, generator=t.generator), q.covariance, q.log_prob(t([[0.0, 1.0]]))) for q in _families(t)[1:2]
    ],
    "vi.full_rank_gaussian": lambda t: [
        (q.sample(3, generator=t.generator), q.covariance, q.log_prob(t([[0.0, 1.0]])))
        for q in (vi.full_rank_gaussian(t([0.3, -0.2]), std=2.0), _families(t)[2])
    ],
    "vi.gaussian_mixture": lambda t: [
        (q.sample(3, generator=t.generator), q.mean, q.covariance, q.log_prob(t([[0.0, 1.0]])))
        for q in _families(t)[3:4]
    ],
    "vi.real_nvp": lambda t: [
        (q.sample(3, generator=t.generator), q.log_prob(t([[0.0, 1.0]]))) for q in _families(t)[4:]
    ],
    "vi.laplace_family": lambda t: [
        vi.laplace_family(_joint, t([0.8, 0.8]), is_diagonal=is_diagonal) for is_diagonal in (False, True)
    ],
    "vi.reparameterised_elbo": lambda t: _bounds(t, vi.reparameterised_elbo),
    "vi.sticking_the_landing_elbo": lambda t: _bounds(t, vi.sticking_the_landing_elbo),
    "vi.score_function_elbo": lambda t: _bounds(t, vi.score_function_elbo),
    "vi.importance_weighted_elbo": _weighted_bounds,
    "vi.matched_noise": lambda t: vi.matched_noise(t([0.0, 0.0]), 8, t.generator),
    "vi.survey": lambda t: _natural_steps(t)[0],
    "vi.natural_step": lambda t: _natural_steps(t)[1],
    "vi.ascend": _ascent,
    "vi.fit": _fits,
    "vi.FailedFit": _failed_fit,
    "vi.fit_forward_kl": _forward_fits,
    "vi.fit_to_draws": _fits_to_draws,
}


# ---- vi: networks, and judges of a fit


def _bayesian_layer(t):
    return vi.BayesianLinear(
        t([[0.5, -1.0], [0.2, 0.3], [0.0, 1.0]]), t([[-1.0, -2.0]] * 3), t([0.1, 0.2, -0.3]), t([-1.0] * 3)
    )


def _bayesian_model(t):
    """Two inputs, three hidden units, one output; half of its noise is from the layer above."""
    top = vi.BayesianLinear(t([[0.5, -1.0, 0.3]]), t([[-1.0, -2.0, -1.5]]), t([0.1]), t([-1.0]))
    return vi.BayesianMlp((_bayesian_layer(t), top), torch.tanh)


def _fit_backprop(t):
    """Every way to draw, two minibatches of unequal size."""
    inputs, targets = t([[0.0, 1.0], [-1.0, 0.5], [2.0, -1.0]]), t([0.1, -0.4, 0.9])
    how = {"num_epochs": 2, "batch_size": 2, "generator": t.generator}
    forwards = (vi.local_reparameterisation, vi.flipout, vi.shared_weights)
    likelihood = networks.gaussian_likelihood(0.5)
    return [
        (fit.model.layers, fit.model.family, fit.elbo_history)
        for forward in forwards
        for fit in [
            vi.fit_backprop(
                _bayesian_model(t), inputs, targets, likelihood, prior_std=1.0, layer_forward=forward, **how
            )
        ]
    ]


def _failed_backprop(t):
    likelihood = networks.gaussian_likelihood(0.5)
    broken = likelihood._replace(log_prob=lambda outputs, targets: float("nan") * likelihood.log_prob(outputs, targets))
    how = {"prior_std": 1.0, "num_epochs": 2, "batch_size": 2, "generator": t.generator}
    try:
        vi.fit_backprop(_bayesian_model(t), t([[0.0, 1.0], [-1.0, 0.5]]), t([0.1, -0.4]), broken, **how)
    except vi.FailedFit as failed:
        return failed.fit.model.layers, failed.fit.elbo_history


def _calibrate_fit(t):
    def simulate(prior_draws, generator):
        return prior_draws + torch.randn(prior_draws.shape, generator=generator, **t.like)

    def quantities(position, data):
        return torch.cat([position, (position - data).square().sum(-1, keepdim=True)], -1)

    found = vi.calibrate_fit(
        t([[0.5, 1.0], [-1.0, 0.2], [0.3, 0.0]]),
        simulate,
        lambda data, generator: vi.mean_field_gaussian(data / 2, std=0.7),
        generator=t.generator,
        num_draws=20,
        quantities=quantities,
    )
    return found, found.p_value


def _pareto_smoothed(t):
    """Enough draws for a tail, and a density that is NaN here and impossible there."""

    def log_prob(position):
        value = -0.5 * position.square().sum(-1)
        value = torch.where(position[:, 0] > 1.5, float("nan"), value)
        return torch.where(position[:, 1] > 1.5, float("-inf"), value)

    family = vi.mean_field_gaussian(t([0.2, -0.1]), std=1.2)
    found = vi.pareto_smoothed(log_prob, family, num_samples=200, generator=t.generator)
    return found, found.mean, found.covariance, found.ess


VI_NETWORKS = {
    "vi.bayesian_linear": lambda t: vi.bayesian_linear(2, 3, generator=t.generator, **t.like),
    "vi.shared_weights": lambda t: vi.shared_weights(_bayesian_layer(t), t([[0.0, 1.0]] * 4), generator=t.generator),
    "vi.local_reparameterisation": lambda t: vi.local_reparameterisation(
        _bayesian_layer(t), t([[0.0, 1.0]] * 4), generator=t.generator
    ),
    "vi.flipout": lambda t: vi.flipout(_bayesian_layer(t), t([[0.0, 1.0]] * 4), generator=t.generator),
    "vi.bayesian_mlp": lambda t: vi.bayesian_mlp([2, 3, 1], generator=t.generator, **t.like).layers,
    "vi.kl_to_prior": lambda t: (
        vi.kl_to_prior(_bayesian_model(t), prior_std=0.5),
        vi.kl_to_prior(_bayesian_model(t), prior_std=t([0.5] * 13)),
    ),
    "vi.fit_backprop": lambda t: (_fit_backprop(t), _failed_backprop(t)),
}

VI_JUDGING = {
    "vi.pareto_smoothed": _pareto_smoothed,
    "vi.calibrate_fit": _calibrate_fit,
}

# ---- scores


def _forecast(t, *shape):
    """Draws of a forecast, from the device."""
    return torch.randn(*shape, generator=t.generator, **t.like)


def _observed(t):
    return t([0.5, -1.0, 2.0])


def _interval(t):
    return scores.Interval(_observed(t) - 1, _observed(t) + t([0.5, 1.0, 2.0]), 0.9)


def _two_samples(t):
    return _forecast(t, 12, 2), 0.5 + _forecast(t, 9, 2)


def _announced(t):
    return t([0.1, 0.3, 0.35, 0.6, 0.8, 0.9]), t([0, 1, 0, 1, 1, 1])


SCORES = {
    "scores.average": lambda t: (scores.average(_observed(t)), scores.average(_observed(t)[:1])),
    "scores.paired_difference": lambda t: scores.paired_difference(
        scores.average(_observed(t)), scores.average(t([0.0, 1.0, 1.0]))
    ),
    "scores.log_score_gaussian": lambda t: [
        scores.log_score_gaussian(_observed(t), std, t([0.0, -1.0, 3.0])) for std in (0.5, t(0.5), t([1.0, 0.5, 2.0]))
    ],
    "scores.log_score_mixture": lambda t: scores.log_score_mixture(t([[-1.0, -2.0], [-0.5, -float("inf")]])),
    "scores.log_score_classes": lambda t: [
        scores.log_score_classes(t(prob), labels)
        for prob in ([0.2, 0.9], [[0.8, 0.2], [0.1, 0.9]])
        for labels in (t([1, 0]), t([True, False]))
    ],
    "scores.brier_score": lambda t: [
        scores.brier_score(t(prob), labels)
        for prob in ([0.2, 0.9], [[0.8, 0.2], [0.1, 0.9]])
        for labels in (t([1, 0]), t([True, False]))
    ],
    "scores.crps_gaussian": lambda t: scores.crps_gaussian(_observed(t), 0.5, t([0.0, -1.0, 3.0])),
    "scores.crps_draws": lambda t: scores.crps_draws(_forecast(t, 5, 3), _observed(t)),
    "scores.energy_score": lambda t: scores.energy_score(
        _forecast(t, 5, 3, 2), t([[0.5, 1.0], [-1.0, 0.0], [2.0, 1.0]])
    ),
    "scores.central_interval": lambda t: scores.central_interval(_forecast(t, 12, 3), 0.8)[:2],
    "scores.interval_coverage": lambda t: scores.interval_coverage(_interval(t), _observed(t) + t([0.0, 3.0, 1.0])),
    "scores.interval_width": lambda t: scores.interval_width(_interval(t)),
    "scores.interval_score": lambda t: scores.interval_score(_interval(t), _observed(t) + t([0.0, 3.0, 1.0])),
    "scores.sharpness": lambda t: scores.sharpness(_forecast(t, 5, 3)),
    "scores.calibration_error": lambda t: [
        (found, found.root)
        for bins in ("equal_count", "equal_width")
        for found in [scores.calibration_error(*_announced(t), num_bins=3, bins=bins)]
    ],
    "scores.sliced_wasserstein": lambda t: scores.sliced_wasserstein(
        *_two_samples(t), num_directions=5, generator=t.generator
    ),
    "scores.squared_mmd": lambda t: [
        scores.squared_mmd(*samples, width=width) for samples in [_two_samples(t)] for width in (None, 0.5, t(0.5))
    ],
    "scores.median_distance": lambda t: scores.median_distance(*_two_samples(t)),
    "scores.quantile_error": lambda t: [
        (found, found.rms) for found in [scores.quantile_error(*_two_samples(t), probs=(0.1, 0.5))]
    ],
}

# ---- uncertainty


def _class_draws(t):
    """Two draws of probabilities, [2, 2, 3, 2, 1]: two images of three classes and 2 x 1 pixels."""
    one, other = [[[1.0], [0.0]], [[-1.0], [2.0]], [[0.0], [0.0]]], [[[0.5], [1.0]], [[0.0], [2.0]], [[3.0], [-3.0]]]
    return t([[one, other], [other, one]]).softmax(2)


def _logits(t):
    """Logits of five points with their labels, four of them right."""
    return t([[2.0, 0.0, 1.0], [0.5, 1.5, 0.0], [0.0, -1.0, 1.0], [1.0, 3.0, 0.0], [0.0, 0.5, 0.2]]), t([0, 1, 2, 1, 0])


def _suspects(t):
    """Scores, which of them are unfamiliar, and the image of each."""
    score = t([0.1, 0.9, 0.4, 0.4, 0.8, 0.3, 0.7, 0.2])
    return score, t([False, True, True, False, True, False, False, False]), t([4, 4, 7, 7, 2, 2, 2, 4])


UNCERTAINTY = {
    "uncertainty.gaussian_nll": lambda t: uncertainty.gaussian_nll(t([[0.0, 1.0]]), t([[-1.0, 2.0]]), t([[0.5, -3.0]])),
    "uncertainty.laplace_nll": lambda t: uncertainty.laplace_nll(t([[0.0, 1.0]]), t([[-1.0, 2.0]]), t([[0.5, -3.0]])),
    "uncertainty.sampled_logit_nll": lambda t: uncertainty.sampled_logit_nll(
        *[_class_draws(t)[0]] * 2, t([[[0], [2]], [[1], [1]]]), num_samples=3, generator=t.generator
    ),
    "uncertainty.sampled_logit_prob": lambda t: uncertainty.sampled_logit_prob(
        *[_class_draws(t)[0]] * 2, num_samples=3, generator=t.generator
    ),
    "uncertainty.add_class_draw": lambda t: uncertainty.add_class_draw(
        uncertainty.add_class_draw(None, _class_draws(t)[0]), _class_draws(t)[1]
    ),
    "uncertainty.add_regression_draw": lambda t: uncertainty.add_regression_draw(
        uncertainty.add_regression_draw(None, t([1.0, 2.0]), t([0.1, 0.0])), t([1.5, 2.0]), t([0.2, 0.3])
    ),
    "uncertainty.decompose_classes": lambda t: uncertainty.decompose_classes(_class_draws(t)),
    "uncertainty.decompose_regression": lambda t: uncertainty.decompose_regression(
        [(t([1.0, 2.0]), t([0.1, 0.0])), (t([1.5, 2.0]), t([0.2, 0.3]))]
    ),
    "uncertainty.top_label": lambda t: uncertainty.top_label(_logits(t)[0].softmax(1), _logits(t)[1]),
    "uncertainty.reliability_diagram": lambda t: [
        uncertainty.reliability_diagram(*_announced(t), num_bins=3, bins=bins)
        for bins in ("equal_count", "equal_width")
    ],
    "uncertainty.corrected_ece": lambda t: [
        uncertainty.corrected_ece(*_announced(t), num_bins=3, bins=bins) for bins in ("equal_count", "equal_width")
    ],
    "uncertainty.fit_temperature": lambda t: [
        (found, found.softmax_temperature) for found in [uncertainty.fit_temperature(*_logits(t))]
    ],
    "uncertainty.fit_vector_scaling": lambda t: uncertainty.fit_vector_scaling(*_logits(t), prior_prec=1.0),
    "uncertainty.scale_logits": lambda t: [
        uncertainty.scale_logits(_class_draws(t)[0], uncertainty.LogitScaling(t(scale), t(scale), t(0.0)))
        for scale in ([0.5], [0.5, 1.0, 2.0])
    ],
    "uncertainty.lack_of_confidence": lambda t: uncertainty.lack_of_confidence(_class_draws(t)[0]),
    "uncertainty.predictive_entropy": lambda t: uncertainty.predictive_entropy(_class_draws(t)[0]),
    "uncertainty.free_energy": lambda t: uncertainty.free_energy(_class_draws(t)[0], softmax_temperature=2.0),
    "uncertainty.detection": lambda t: [
        uncertainty.detection(*_suspects(t)[:2], group=group) for group in (None, _suspects(t)[2])
    ],
    "uncertainty.compare_detectors": lambda t: uncertainty.compare_detectors(
        _suspects(t)[0], -_suspects(t)[0], _suspects(t)[1], group=_suspects(t)[2]
    ),
}

# ---- dropout: the other cheap posteriors


def _filled_linear(t, fan_in, fan_out):
    layer = torch.nn.utils.skip_init(torch.nn.Linear, fan_in, fan_out, **t.like)
    for parameter in layer.parameters():
        size = parameter.numel()
        parameter.data = torch.linspace(-1, 1, size, **t.like).view_as(parameter).sin()
    return layer


def _cheap_net(t):
    """A network that ends in a linear layer, with three outputs, and data with a class each."""
    net = torch.nn.Sequential(_filled_linear(t, 2, 3), torch.nn.Tanh(), _filled_linear(t, 3, 3))
    inputs = t([[0.3, -1.0], [1.0, 0.2], [-0.5, 0.7], [0.9, 0.9]])
    return net, inputs, t([0, 1, 2, 1])


def _cheap_fit(t, fit, **settings):
    settings |= {"num_epochs": 2, "batch_size": 3, "generator": t.generator}
    return fit(*_cheap_net(t), torch.nn.functional.cross_entropy, **settings)


def _ensemble(t):
    return _cheap_fit(t, dropout.fit_ensemble, num_members=2)


def _swag(t):
    return _cheap_fit(t, dropout.fit_swag, rank=2)


def _last_layer(t, **settings):
    return dropout.last_layer_laplace(*_cheap_net(t), networks.categorical_likelihood(3), **settings)


def _last_layer_regression(t):
    net, inputs, _ = _cheap_net(t)
    net = torch.nn.Sequential(net, _filled_linear(t, 3, 1))
    return dropout.last_layer_laplace(net, inputs, t([0.1, 0.3, -1.0, 0.2]), networks.gaussian_likelihood(0.3))


CHEAP_POSTERIORS = {
    "dropout.fit_ensemble": lambda t: (_ensemble(t), _ensemble(t).member(1)),
    "dropout.predict_ensemble": lambda t: dropout.predict_ensemble(_ensemble(t), t([[0.1, 0.2]])),
    "dropout.fit_swag": _swag,
    "dropout.sample_swag": lambda t: dropout.sample_swag(_swag(t), 3, generator=t.generator),
    "dropout.predict_swag": lambda t: dropout.predict_swag(
        _swag(t), t([[0.1, 0.2]]), num_samples=3, generator=t.generator
    ),
    "dropout.last_layer_laplace": lambda t: [
        (found.body, found.loc, found.scale @ found.scale.mT, found.prior_prec, found.log_evidence)
        for found in (_last_layer(t, prior_prec=1.0), _last_layer(t), _last_layer_regression(t))
    ],
    "dropout.last_layer_moments": lambda t: dropout.last_layer_moments(_last_layer(t, prior_prec=1.0), t([[0.1, 0.2]])),
    "dropout.draw_last_layer": lambda t: dropout.draw_last_layer(
        _last_layer(t, prior_prec=1.0), t([[0.1, 0.2]]), num_samples=3, generator=t.generator
    ),
    "dropout.predict_last_layer_regression": lambda t: dropout.predict_last_layer_regression(
        _last_layer_regression(t), t([[0.1, 0.2]])
    ),
    "dropout.predict_last_layer_classes": lambda t: dropout.predict_last_layer_classes(
        _last_layer(t, prior_prec=1.0), t([[0.1, 0.2]]), num_samples=3, generator=t.generator
    ),
    "dropout.probit_class_prob": lambda t: dropout.probit_class_prob(_last_layer(t, prior_prec=1.0), t([[0.1, 0.2]])),
}

# ---- dropout: prediction, objective, training


def _dropping(t, num_outputs=1):
    """A stochastic layer in front of a linear one, and inputs for it."""
    model = nn.Sequential(dropout.Dropout(0.5), _linear(t, num_outputs))
    return model, t([[1.0, 2.0, -1.0], [0.5, 0.0, 1.0]])


def _linear(t, num_outputs):
    """The same weights on every device, without a random number."""
    linear = nn.utils.skip_init(nn.Linear, 3, num_outputs, **t.like)
    with torch.no_grad():
        linear.weight.copy_(torch.arange(3 * num_outputs, **t.like).view(num_outputs, 3) / 5)
        linear.bias.zero_()
    return linear


def _half_square(outputs, targets):
    return 0.5 * (outputs[:, 0] - targets).square().mean()


def _concrete(t):
    return dropout.ConcreteDropout(_linear(t, 2), 0.3)


def _smooth_and_exact(t, layer):
    """The layer by itself, with smooth masks, and with exact ones."""
    inputs = t([[1.0, 2.0, -1.0], [0.5, 0.0, 1.0]])
    with dropout.drawing(layer, generator=t.generator):
        smooth = layer(inputs)
        with torch.no_grad():
            return layer(inputs), smooth, layer(inputs), layer


DROPOUT_FITS = {
    "dropout.predict_classes": lambda t: [
        dropout.predict_classes(*_dropping(t, 3), num_passes=100, tolerance=tolerance, generator=t.generator)
        for tolerance in (None, 0.05)
    ],
    "dropout.predict_regression": lambda t: [
        (found, found.std)
        for found in [dropout.predict_regression(*_dropping(t), noise_prec=2.0, num_passes=9, generator=t.generator)]
    ],
    "dropout.log_likelihood": lambda t: dropout.log_likelihood(
        *_dropping(t), t([0.3, 1.0]), noise_prec=2.0, num_passes=9, generator=t.generator
    ),
    "dropout.weight_decay_of": lambda t: dropout.weight_decay_of(
        length_scale=t(0.5), rate=t([0.0, 0.5]), num_data=10, noise_prec=t(3.0)
    ),
    "dropout.noise_prec_of": lambda t: dropout.noise_prec_of(
        length_scale=0.5, rate=t([0.0, 0.5]), num_data=10, weight_decay=t(3.0), is_inverted=False
    ),
    "dropout.length_scale_of": lambda t: dropout.length_scale_of(weight_decay=0.1, rate=t([0.0, 0.5]), num_data=10),
    "dropout.dropout_kl": lambda t: [
        dropout.dropout_kl(t([[0.5, 1.0], [0.0, 0.1]]), component_std=0.2, rate=rate, length_scale=1.5)
        for rate in (0.0, 0.3)
    ],
    "dropout.fit": lambda t: dropout.fit(
        nn.Sequential(_dropping(t)[0][0], _concrete(t)),
        t([[1.0, 2.0, -1.0], [0.5, 0.0, 1.0], [0.0, 0.0, 1.0]]),
        t([0.3, 1.0, 0.0]),
        _half_square,
        num_epochs=2,
        batch_size=2,
        lr=0.1,
        weight_decay=0.1,
        regulariser=lambda model: dropout.concrete_regulariser(model, length_scale=0.5, num_data=3),
        generator=t.generator,
    ),
    "dropout.ConcreteDropout": lambda t: _smooth_and_exact(t, _concrete(t)),
    "dropout.concrete_regulariser": lambda t: dropout.concrete_regulariser(_concrete(t), length_scale=0.5, num_data=3),
}

# ---- uncertainty: to act on it


def _class_prob(t, *shape):
    """Probabilities over dimension 1."""
    return torch.randn(shape, generator=t.generator, **t.like).softmax(1)


def _conformal(t, value):
    return uncertainty.ConformalQuantile(t(value), 0.9, 10)


def _judged(t):
    """Confidences, two of them equal, and whether the answers were wrong."""
    return t([0.9, 0.2, 0.5, 0.5, 0.7, 0.1]), t([False, True, False, True, False, True])


UNCERTAINTY_USE = {
    "uncertainty.conformal_quantile": lambda t: [
        uncertainty.conformal_quantile(t([0.3, 0.1, 2.0]), level) for level in (0.5, 0.9)
    ],
    "uncertainty.coverage_law": lambda t: uncertainty.coverage_law(20, 0.9, **t.like),
    "uncertainty.residual_score": lambda t: [
        uncertainty.residual_score(t([0.0, 1.0]), t([0.5, 3.0]), scale=scale) for scale in (2.0, t([0.5, 1.0]))
    ],
    "uncertainty.residual_interval": lambda t: [
        uncertainty.residual_interval(t([0.0, 1.0]), _conformal(t, 0.5), scale=scale)[:2]
        for scale in (2.0, t([0.5, 1.0]))
    ],
    "uncertainty.quantile_score": lambda t: uncertainty.quantile_score(t([0.0]), t([1.0]), t([3.0])),
    "uncertainty.quantile_interval": lambda t: uncertainty.quantile_interval(
        t([0.0, 0.0]), t([1.0, 4.0]), _conformal(t, -1.0)
    )[:2],
    "uncertainty.threshold_score": lambda t: uncertainty.threshold_score(_class_prob(t, 2, 3), t([2, 0])),
    "uncertainty.threshold_set": lambda t: uncertainty.threshold_set(_class_prob(t, 2, 3), _conformal(t, 0.7)),
    "uncertainty.cumulative_score": lambda t: [
        uncertainty.cumulative_score(_class_prob(t, 2, 3), t([2, 0]), generator=generator)
        for generator in (None, t.generator)
    ],
    "uncertainty.cumulative_set": lambda t: [
        uncertainty.cumulative_set(_class_prob(t, 2, 3), _conformal(t, 0.7), generator=generator)
        for generator in (None, t.generator)
    ],
    "uncertainty.pixel_quantile": lambda t: [
        uncertainty.pixel_quantile(t([[0.1, 0.2], [0.5, 0.3]]), 0.5, is_valid=is_valid)
        for is_valid in (None, t([[True, False], [True, True]]))
    ],
    "uncertainty.image_score": lambda t: [
        uncertainty.image_score(t([[0.1, 0.2], [0.5, 0.3]]), 0.5, is_valid=is_valid)
        for is_valid in (None, t([[True, False], [True, True]]))
    ],
    "uncertainty.adaptive_conformal": lambda t: uncertainty.adaptive_conformal(
        t([0.1, 0.5, 0.3, 2.0, 0.2, 4.0]), 0.6, window=2, step_size=0.3
    ),
    "uncertainty.area_under_risk_coverage": lambda t: uncertainty.area_under_risk_coverage(
        _judged(t)[0], t([0.0, 1.0, 0.2, 0.4, 0.1, 2.0])
    ),
    "uncertainty.risk_upper_bound": lambda t: uncertainty.risk_upper_bound(
        t([0, 2]), t([5, 9]), 0.9, dtype=t.like["dtype"]
    ),
    "uncertainty.threshold_for_risk": lambda t: [
        uncertainty.threshold_for_risk(*_judged(t), target_risk=risk, level=0.5, num_candidates=3)
        for risk in (0.8, 0.01)
    ],
    "uncertainty.threshold_for_coverage": lambda t: uncertainty.threshold_for_coverage(_judged(t)[0], 0.6),
    "uncertainty.bald": lambda t: uncertainty.bald(_class_prob(t, 6, 3).view(2, 3, 3)),
    "uncertainty.batch_bald": lambda t: uncertainty.batch_bald(
        _class_prob(t, 8, 3).view(2, 4, 3), 3, num_configurations=4, generator=t.generator
    ),
    "uncertainty.top_batch": lambda t: uncertainty.top_batch(t([0.1, 3.0, 2.0]), 2),
    "uncertainty.random_batch": lambda t: uncertainty.random_batch(5, 2, generator=t.generator),
    "uncertainty.scene_network": lambda t: [
        (network, network(torch.rand(2, 1, 16, 16, generator=t.generator, **t.like)))
        for network in [uncertainty.scene_network(3, width=8, generator=t.generator, dtype=t.like["dtype"])]
    ],
    "uncertainty.scene_loss": lambda t: uncertainty.scene_loss(
        torch.randn(1, 5, 1, 3, generator=t.generator, **t.like), t([[[0, -1, 2]]]), t([[[1.0, 2.0, 4.0]]])
    ),
}

# ---- dropout: layers, passes and masks


def _filled(t, layer, *settings):
    """A layer with the same weights on every device, without a random number."""
    layer = nn.utils.skip_init(layer, *settings, **t.like)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 0.3)
    return layer


def _stochastic(t):
    """A model with all three layers, 8 channels, weights and units to drop, and two inputs for it."""
    first = [_filled(t, nn.Conv2d, 1, 2, 2), dropout.ChannelDropout(0.5), nn.Flatten()]
    model = nn.Sequential(*first, _filled(t, dropout.DropConnect, 2, 2, 0.3), nn.ReLU(), dropout.Dropout(0.1))
    return model.eval(), t([[[[0.1, 1.0], [0.2, -0.5]]], [[[1.0, 0.0], [0.5, 0.5]]]])


def _inverted(t, layer, *shape):
    """The layer as it is, and with masks."""
    inputs = torch.ones(3, *shape, **t.like)
    with dropout.drawing(layer, generator=t.generator):
        drawn = layer(inputs)
    return layer(inputs), drawn


def _one_pass(t):
    model, inputs = _stochastic(t)
    with dropout.drawing(model, generator=t.generator):
        return model(inputs)


def _converted(t, convert, *settings):
    layers = [_filled(t, nn.Linear, 2, 2), *([] if settings else [nn.Dropout2d(0.5), nn.Dropout(0.1)])]
    model = convert(nn.Sequential(*layers), *settings)
    return model, model(t([[0.5, 1.0]]))


def _shared(t):
    model, inputs = _stochastic(t)
    shared = dropout.share(model, inputs)
    values = shared.below(inputs)
    with dropout.drawing(model, generator=t.generator):
        return values, shared.above(values, 1)


def _passes(t, draw):
    settings = [{}, {"is_shared": True}, {"memory_bytes": 1000}]
    return [draw(*_stochastic(t), num_passes=3, generator=t.generator, **each) for each in settings]


DROPOUT_PASSES = {
    "dropout.Dropout": lambda t: [_inverted(t, dropout.Dropout(rate), 4) for rate in (0.1, 0.5, 1e-9)],
    "dropout.ChannelDropout": lambda t: _inverted(t, dropout.ChannelDropout(0.5), 2, 2, 2),
    "dropout.DropConnect": lambda t: _inverted(t, _filled(t, dropout.DropConnect, 2, 2, 0.3), 2),
    "dropout.drawing": _one_pass,
    "dropout.stochastic_layers": lambda t: dropout.stochastic_layers(_stochastic(t)[0]),
    "dropout.convert": lambda t: _converted(t, dropout.convert),
    "dropout.dropconnect": lambda t: _converted(t, dropout.dropconnect, 0.2),
    "dropout.share": _shared,
    "dropout.draw_passes": lambda t: _passes(t, dropout.draw_passes),
    "dropout.iterate_passes": lambda t: [list(chunks) for chunks in _passes(t, dropout.iterate_passes)],
    "dropout.draw_masks": lambda t: dropout.draw_masks(*_stochastic(t), num_draws=3, generator=t.generator),
    "dropout.all_masks": lambda t: dropout.all_masks(*_stochastic(t)),
    "dropout.apply_masks": lambda t: dropout.apply_masks(*_stochastic(t), dropout.all_masks(*_stochastic(t)).masks),
}

# ---- vae


def _vae(t, likelihood=None, make=vae.mlp_vae, **sizes):
    shape = {"image_shape": (4, 4), "likelihood": likelihood, "generator": t.generator, "dtype": t.like["dtype"]}
    return make(2, **(shape | ({"hidden": (3,)} if make is vae.mlp_vae else {}) | sizes))


def _bits(t):
    """Three images of 4×4 pixels, black and white; which pixels were seen; two numbers for each image."""
    like = {"generator": t.generator, **t.like}
    images = torch.rand(3, 4, 4, **like).round()
    return images, {"is_observed": torch.rand(3, 4, 4, **like) < 0.5, "condition": torch.randn(3, 2, **like)}


def _both_ways(t, model, condition=None):
    q = model.encode(_bits(t)[0], condition)
    latents = q.rsample(2, generator=t.generator)
    return model, q, latents, q.log_prob(latents), model.decode(latents, condition)


def _built(t, make, *sizes, condition_dim=0, **more):
    settings = {"image_shape": (4, 4), "condition_dim": condition_dim, "generator": t.generator}
    return make(*sizes, **settings, **more, dtype=t.like["dtype"])


def _pixel_parts(t, likelihood):
    images, more = _bits(t)
    outputs = torch.randn(5, 3, likelihood.num_params, 4, 4, generator=t.generator, **t.like)
    likelihood.check_images(images)
    seen = likelihood.log_prob(outputs, images), likelihood.log_prob(outputs, images, more["is_observed"])
    return *seen, likelihood.mean(outputs), likelihood.sample(outputs, generator=t.generator)


def _weighted(t, estimate, **settings):
    images, more = _bits(t)
    model = _vae(t, condition_dim=2)
    return [
        estimate(_vae(t), images, generator=t.generator, **settings),
        estimate(model, images, generator=t.generator, **settings, **more),
    ]


def _vae_fits(t):
    images, more = _bits(t)
    settings = {"num_epochs": 2, "batch_size": 2, "generator": t.generator}
    others = {"validation_images": images, "validation_condition": more["condition"], "patience": 1}
    return [
        vae.fit(_vae(t), images, num_warmup_epochs=1, free_bits=0.1, **settings),
        vae.fit(_vae(t, condition_dim=2), images, num_importance_samples=2, **more, **others, **settings),
        vae.fit(_vae(t, vae.gaussian(), vae.conv_vae, channels=(2,)), images, beta=0.5, **settings),
    ]


VAE = {
    "vae.Encoder": lambda t: _built(t, vae.mlp_encoder, 3, condition_dim=2)(_bits(t)[0], _bits(t)[1]["condition"]),
    "vae.Decoder": lambda t: _built(t, vae.mlp_decoder, 3, condition_dim=2)(
        torch.zeros(3, 3, **t.like), _bits(t)[1]["condition"]
    ),
    "vae.mlp_encoder": lambda t: _built(t, vae.mlp_encoder, 3)(_bits(t)[0]),
    "vae.conv_encoder": lambda t: _built(t, vae.conv_encoder, 3, channels=(2, 3))(_bits(t)[0]),
    "vae.mlp_decoder": lambda t: _built(t, vae.mlp_decoder, 2, initial_log_var=-1.0)(t([[0.5, 1.0]])),
    "vae.conv_decoder": lambda t: _built(t, vae.conv_decoder, 2, num_params=2, channels=(2, 3))(t([[0.5, 1.0]])),
    "vae.bernoulli": lambda t: _pixel_parts(t, vae.bernoulli()),
    "vae.continuous_bernoulli": lambda t: _pixel_parts(t, vae.continuous_bernoulli()),
    "vae.gaussian": lambda t: _pixel_parts(t, vae.gaussian()),
    "vae.discretised_logistic": lambda t: _pixel_parts(t, vae.discretised_logistic(4)),
    "vae.Vae": lambda t: _both_ways(t, _vae(t, condition_dim=2), _bits(t)[1]["condition"]),
    "vae.mlp_vae": lambda t: _both_ways(t, _vae(t, vae.gaussian())),
    "vae.conv_vae": lambda t: _both_ways(t, _vae(t, make=vae.conv_vae, channels=(2, 3))),
    "vae.gaussian_kl": lambda t: vae.gaussian_kl(t([[0.0, 1.0]]), t([[-1.0, 0.5]])),
    "vae.elbo": lambda t: [
        (terms, terms.value)
        for is_sampled in (False, True)
        for terms in _weighted(t, vae.elbo, num_samples=2, is_kl_sampled=is_sampled)
    ],
    "vae.importance_weighted_bound": lambda t: _weighted(t, vae.importance_weighted_bound, num_samples=3),
    "vae.log_evidence": lambda t: _weighted(t, vae.log_evidence, num_samples=50, memory_bytes=20_000),
    "vae.fit": _vae_fits,
    "vae.probabilistic_pca": lambda t: [
        (pca, pca.log_prob(t([[1.0, 0.0, 2.0]])))
        for pca in [vae.probabilistic_pca(t([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0], [2.0, 2.0, 0.1], [0.0, 0.3, -1.0]]), 1)]
    ],
}

# ---- vae: autoencoders


def _patterns(t):
    """Four images of 4×4 pixels, in [0, 1]."""
    return torch.rand(4, 4, 4, generator=t.generator, **t.like)


def _autoencoder(t, make, **sizes):
    return make(2, image_shape=(4, 4), generator=t.generator, dtype=t.like["dtype"], **sizes)


def _there_and_back(t, make, **sizes):
    model = _autoencoder(t, make, **sizes)
    return model, model(_patterns(t)), model.decode(t([[[0.5, -1.0]], [[0.0, 2.0]]]))


def _pca(t):
    images = _patterns(t)
    found = vae.principal_components(images, 2)
    return found.mean, found.variances, found.left_over, found.decode(found.encode(images))  # the signs are arbitrary


AUTOENCODERS = {
    "vae.Autoencoder": lambda t: _there_and_back(t, vae.mlp_autoencoder, hidden=(3,)),
    "vae.linear_autoencoder": lambda t: _there_and_back(t, vae.linear_autoencoder),
    "vae.mlp_autoencoder": lambda t: _there_and_back(t, vae.mlp_autoencoder, hidden=(3, 2)),
    "vae.conv_autoencoder": lambda t: _there_and_back(t, vae.conv_autoencoder, channels=(2, 3), hidden=(4,)),
    "vae.reconstruction_error": lambda t: vae.reconstruction_error(_patterns(t), _patterns(t)),
    "vae.fit_autoencoder": lambda t: [
        vae.fit_autoencoder(
            _autoencoder(t, vae.mlp_autoencoder, hidden=(3,)),
            _patterns(t),
            validation_images=others,
            num_epochs=2,
            batch_size=3,
            generator=t.generator,
        )
        for others in (None, _patterns(t))
    ],
    "vae.fit_linear_autoencoder": lambda t: vae.fit_linear_autoencoder(
        _autoencoder(t, vae.linear_autoencoder), _patterns(t), num_sweeps=2
    ),
    "vae.principal_components": _pca,
    "vae.principal_angles": lambda t: vae.principal_angles(
        t([[1.0, 0.0], [0.0, 1.0], [0.2, 0.1]]), t([[1.0], [1.0], [0.5]])
    ),
}

# ---- vae: judging and using a model


def _given(t):
    """A model with a condition, three images, and their conditions."""
    images, more = _bits(t)
    return _vae(t, condition_dim=2), images, more["condition"]


def _each_way(t, compute):
    """Without randomness in the pixels, and with it."""
    model, images, condition = _given(t)
    return [compute(model, images, condition, generator) for generator in (None, t.generator)]


def _one_image(t):
    model, images, condition = _given(t)
    log_likelihood, latents = vae.image_log_likelihood(model, images[0], condition[0]), t([[0.5, -1.0], [0.0, 0.0]])
    leaf = latents.clone().requires_grad_()
    return log_likelihood(latents), torch.autograd.grad(log_likelihood(leaf).sum(), leaf)


def _stochastic_vae(t):
    return vae.stochastic_decoder(_vae(t, condition_dim=2), 0.5)


VAE_JUDGING = {
    "vae.sample_prior": lambda t: [
        vae.sample_prior(_vae(t), 2, generator=t.generator, is_sampled=is_sampled) for is_sampled in (True, False)
    ],
    "vae.sample_posterior": lambda t: [
        vae.sample_posterior(model, images, 2, generator=t.generator, condition=condition, is_sampled=is_sampled)
        for model, images, condition in [_given(t)]
        for is_sampled in (True, False)
    ],
    "vae.reconstruct": lambda t: _each_way(
        t, lambda model, images, rows, generator: vae.reconstruct(model, images, condition=rows, generator=generator)
    ),
    "vae.interpolate": lambda t: [
        vae.interpolate(_vae(t), _bits(t)[0], _bits(t)[0], num_steps=3, is_spherical=is_spherical)
        for is_spherical in (True, False)
    ],
    "vae.traverse": lambda t: _each_way(
        t,
        lambda model, images, rows, generator: vae.traverse(
            model, images[0], 1, t([-1.0, 1.0]), condition=rows[0], generator=generator
        ),
    ),
    "vae.latent_grid": lambda t: _each_way(
        t, lambda model, images, rows, generator: vae.latent_grid(model, 3, condition=rows[0], generator=generator)
    ),
    "vae.latent_prior": lambda t: (vae.latent_prior(_vae(t)), vae.latent_prior(_vae(t)).log_prob(t([[0.5, 1.0]]))),
    "vae.image_log_likelihood": _one_image,
    "vae.annealed_log_evidence": lambda t: _weighted(
        t, vae.annealed_log_evidence, num_chains=3, num_temperatures=4, memory_bytes=2**17
    ),
    "vae.exact_log_evidence": lambda t: [
        vae.exact_log_evidence(_vae(t), _bits(t)[0], num_points=41),
        *(vae.exact_log_evidence(model, x, num_points=41, condition=rows) for model, x, rows in [_given(t)]),
    ],
    "vae.active_units": lambda t: vae.active_units(_vae(t), _bits(t)[0]),
    "vae.mutual_information": lambda t: vae.mutual_information(_vae(t), _bits(t)[0], generator=t.generator),
    "vae.inference_gaps": lambda t: [
        vae.inference_gaps(model, images, num_steps=2, num_samples=5, condition=condition, generator=t.generator)
        for model, images, condition in [_given(t)]
    ],
    "vae.impute": lambda t: [
        vae.impute(
            model,
            images,
            images > 0.5,
            num_steps=4,
            num_pseudo_steps=num_pseudo_steps,
            num_chains=2,
            condition=condition,
            generator=t.generator,
        )
        for model, images, condition in [_given(t)]
        for num_pseudo_steps in (2, 4)
    ],
    "vae.stochastic_decoder": _stochastic_vae,
    "vae.decode_passes": lambda t: [
        vae.decode_passes(
            _stochastic_vae(t),
            t([[0.5, -1.0], [2.0, 1.0]]),
            num_passes=3,
            is_shared=is_shared,
            condition=t([[1.0, 0.0], [0.0, 1.0]]),
            generator=t.generator,
        )
        for is_shared in (True, False)
    ],
    "vae.decoder_log_evidence": lambda t: vae.decoder_log_evidence(
        _stochastic_vae(t), *_given(t)[1:2], num_passes=2, num_samples=3, condition=_given(t)[2], generator=t.generator
    ),
}

# ---- all of them

EXAMPLES = {
    **BAYES,
    **NETWORKS,
    **EVIDENCE,
    **MCMC_KERNELS,
    **MCMC_JUDGING,
    **VI,
    **VI_NETWORKS,
    **VI_JUDGING,
    **SCORES,
    **DROPOUT_FITS,
    **DROPOUT_PASSES,
    **UNCERTAINTY,
    **CHEAP_POSTERIORS,
    **UNCERTAINTY_USE,
    **VAE,
    **AUTOENCODERS,
    **VAE_JUDGING,
}

# Functions that copy tensors to the host by design, and why; no others may.
_PARETO_K = "Pareto-k of the weights, once a call, is computed by ArviZ"
COPIES_TO_HOST = {
    "evidence.pareto_k": "computed by ArviZ",
    "evidence.prior_sampling": _PARETO_K,
    "evidence.importance_sampling": _PARETO_K,
    "evidence.harmonic_mean": _PARETO_K,
    "evidence.annealed_importance_sampling": _PARETO_K,
    "evidence.bridge_sampling": "the effective number of the draws, twice a call, is computed by ArviZ",
    "mcmc.diagnose": "R-hat, effective sample sizes and errors, once a call, are computed by ArviZ",
    "vi.pareto_smoothed": "the largest weights, once a call, are smoothed by ArviZ",
}
