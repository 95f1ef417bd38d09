"""The project's own samplers, float32: as a user calls them, with autograd or with a gradient in closed form.

The closed forms of logistic regression and of the network are the library's (``networks.log_posterior``), the others
are written below, in terms of the same density. Everything else is the default of the entry point.
"""

import functools
import os
from types import SimpleNamespace

import torch

from bdl_lib import mcmc
from shared import targets

torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
OPS = SimpleNamespace(exp=torch.exp, tanh=torch.tanh, softplus=torch.nn.functional.softplus)
SAMPLERS = {  # the entry point, and the kernel that goes on with what its warm-up found
    "ChEES": ("sample_chees", "chees"),
    "NUTS": ("sample_nuts", "nuts"),
    "MEADS": ("sample_meads", "generalized_hmc"),
    "microcanonical": ("sample_microcanonical", "microcanonical"),
}


def log_prob_of(name, data):
    """The target of many positions."""
    arrays = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in data.items()}
    return functools.partial(targets.LOG_PROBS[name], OPS, arrays)


class ClosedForm:
    """A density with its gradient, which is all that the samplers look for."""

    def __init__(self, log_prob, grad):
        self.log_prob, self.grad = log_prob, grad

    def __call__(self, x):
        return self.log_prob(x)

    def value_and_grad(self, x):
        """Both."""
        return self.log_prob(x), self.grad(x)


def closed_form_of(name, data):
    """The target with its gradient."""
    if name in ("logistic", "network"):
        return _log_posterior(name, data)
    arrays = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in data.items()}
    if name == "gaussian":
        arrays["prec"] = arrays["whitening"] @ arrays["whitening"].mT
    return ClosedForm(log_prob_of(name, data), functools.partial(GRADIENTS[name], arrays))


def _log_posterior(name, data):
    from bdl_lib import networks

    sizes, likelihood = [30, 1], networks.bernoulli_likelihood()
    if name == "network":
        sizes, likelihood = [1, targets.HIDDEN, 1], networks.gaussian_likelihood(targets.NOISE_STD)
    network = networks.mlp(sizes, activation=torch.tanh)
    inputs = torch.as_tensor(data["inputs"], dtype=torch.float32).reshape(-1, sizes[0])
    goals = torch.as_tensor(data["labels"] if name == "logistic" else data["targets"].astype("float32"))
    prior = networks.gaussian_prior(network, prior_std=1.0)
    return networks.log_posterior(network, prior, likelihood, inputs, goals)


def _gaussian_grad(data, x):
    return -(x @ data["prec"])


def _log_scale_grad(log_scale):
    return 1 - 2 * torch.sigmoid(2 * log_scale - targets.np.log(25.0))


def _schools_centred_grad(data, x):
    deviation = x[:, 2:] - x[:, :1]
    pull = deviation * torch.exp(-2 * x[:, 1:2])
    effects = (data["effect"] - x[:, 2:]) / data["std"] ** 2 - pull
    loc = pull.sum(1, keepdim=True) - x[:, :1] / 25
    log_scale = (deviation * pull).sum(1, keepdim=True) - 8 + _log_scale_grad(x[:, 1:2])
    return torch.cat([loc, log_scale, effects], dim=1)


def _schools_non_centred_grad(data, x):
    scale = torch.exp(x[:, 1:2])
    offset = scale * x[:, 2:]
    pull = (data["effect"] - x[:, :1] - offset) / data["std"] ** 2
    loc = pull.sum(1, keepdim=True) - x[:, :1] / 25
    log_scale = (pull * offset).sum(1, keepdim=True) + _log_scale_grad(x[:, 1:2])
    return torch.cat([loc, log_scale, scale * pull - x[:, 2:]], dim=1)


def _banana_grad(data, x):
    first, second = x.unbind(1)
    residual = second - 0.03 * (first**2 - 100)
    return torch.stack([(0.06 * residual - 0.01) * first, -residual], dim=1)


def _funnel_grad(data, x):
    pull = x[:, 1:] * torch.exp(-x[:, :1])
    first = 0.5 * (x[:, 1:] * pull).sum(1, keepdim=True) - 4.5 - x[:, :1] / 9
    return torch.cat([first, -pull], dim=1)


def _regression_grad(data, x):
    misfit = data["targets"] - x[:, :4] @ data["features"]
    scaled = misfit * torch.exp(-2 * x[:, 4:])
    last = (misfit * scaled).sum(1, keepdim=True) - 50 - x[:, 4:]
    return torch.cat([scaled @ data["features"].mT - x[:, :4] / 100, last], dim=1)


GRADIENTS = {
    "gaussian": _gaussian_grad,
    "schools_centred": _schools_centred_grad,
    "schools_non_centred": _schools_non_centred_grad,
    "banana": _banana_grad,
    "funnel": _funnel_grad,
    "regression": _regression_grad,
}


def density(name, data, points):
    """The target at points, in closed form, after a check of its gradient against autograd's."""
    points = torch.as_tensor(points, dtype=torch.float32)
    value, grad = closed_form_of(name, data).value_and_grad(points)
    leaf = points.clone().requires_grad_()
    log_prob = log_prob_of(name, data)
    (expected,) = torch.autograd.grad(log_prob(leaf).sum(), leaf)
    torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    difference = value - log_prob(points)  # a constant, since the library's prior is normalised
    torch.testing.assert_close(difference, difference.mean().expand_as(difference), rtol=1e-3, atol=1e-2)
    return value


def prepare(job, data):
    """Nothing to compile."""
    sampler, _, form = job["sampler"].partition(", ")
    log_prob = (closed_form_of if form == "closed form" else log_prob_of)(job["target"], data)
    sample, kernel = (getattr(mcmc, name) for name in SAMPLERS[sampler])

    def run(seed, clock):
        generator = torch.Generator().manual_seed(seed)
        positions = torch.as_tensor(targets.start(job["target"], seed, job["num_chains"]))
        begin = clock()
        first = sample(log_prob, positions, num_warmup=job["num_warmup"], num_samples=1, generator=generator)
        middle = clock()
        num_samples = job["num_samples"]
        draws = mcmc.resume(kernel(log_prob, **first.settings), first, num_samples=num_samples, generator=generator)
        return draws.position.numpy(), middle - begin, clock() - middle

    return run
