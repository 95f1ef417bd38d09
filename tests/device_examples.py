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

import torch
from torch.distributions import Beta, Gamma, Normal

from bdl_lib import bayes


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
    "bayes.polynomial_features": lambda t: bayes.polynomial_features(t([[0.0, 0.5], [1.0, 2.0]]), 3),
    "bayes.radial_features": lambda t: bayes.radial_features(t([0.0, 0.5]), t([0.0, 1.0, 2.0]), width=0.5),
}

# ---- all of them

EXAMPLES = {**BAYES}
