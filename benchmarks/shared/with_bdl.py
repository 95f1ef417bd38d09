"""The project's own samplers, float32: as a user calls them, with autograd or with a gradient in closed form.

The closed form of logistic regression is the library's (``networks.log_posterior``), the others are written below by
hand, as somebody would who wants speed; a job of densities checks them against autograd. Everything else is the default
of the entry point.
"""

import functools
import math
from types import SimpleNamespace

import torch

from bdl_lib import mcmc
from shared import targets

torch.set_num_threads(1)
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

    def __init__(self, log_prob, gradient):
        self.log_prob, self.gradient = log_prob, gradient

    def __call__(self, x):
        return self.log_prob(x)

    def grad(self, x):
        """For the steps in between."""
        return self.gradient(x)[0]

    def value_and_grad(self, x):
        """For the end of a trajectory: ``value`` goes on from what the gradient has computed already."""
        grad, value = self.gradient(x)
        return value(), grad


def closed_form_of(name, data):
    """The target with its gradient."""
    if name == "logistic":
        return _logistic_regression(data)
    arrays = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in data.items()}
    log_prob = log_prob_of(name, data)
    if name in CONSTANTS:
        arrays |= CONSTANTS[name](**arrays)
    return ClosedForm(log_prob, functools.partial(GRADIENTS[name], arrays))


def _logistic_regression(data):
    from bdl_lib import networks

    network = networks.mlp([30, 1], activation=torch.tanh)
    prior, likelihood = networks.gaussian_prior(network, prior_std=1.0), networks.bernoulli_likelihood()
    inputs, labels = torch.as_tensor(data["inputs"], dtype=torch.float32), torch.as_tensor(data["labels"])
    return networks.log_posterior(network, prior, likelihood, inputs, labels)


# Each gives the gradient, and a function for the value, of which only the missing part is computed.


def _gaussian(data, x):
    grad = x @ data["minus_prec"]
    return grad, lambda: 0.5 * (x * grad).sum(1)


def _schools_prior(loc, log_scale):
    return -0.02 * loc.square() - torch.nn.functional.softplus(2 * (log_scale - LOG_5)) + log_scale


def _schools_centred(data, x):
    loc, log_scale, effects, grad = x[:, :1], x[:, 1:2], x[:, 2:], torch.empty_like(x)
    deviation = effects - loc
    pull = deviation * torch.exp(-2 * log_scale)
    spread = (deviation * pull).sum(1, keepdim=True)
    torch.sub(pull.sum(1, keepdim=True), loc, alpha=0.04, out=grad[:, :1])
    torch.sub(spread - 8, torch.tanh(log_scale - LOG_5), out=grad[:, 1:2])
    misfit = torch.addcmul(data["weighted"], effects, data["prec"], value=-1)
    torch.sub(misfit, pull, out=grad[:, 2:])

    def value():
        prior = _schools_prior(loc[:, 0], log_scale[:, 0]) - 8 * log_scale[:, 0]
        return prior - 0.5 * (spread[:, 0] + misfit.square() @ data["var"])

    return grad, value


def _schools_non_centred(data, x):
    loc, log_scale, effects, grad = x[:, :1], x[:, 1:2], x[:, 2:], torch.empty_like(x)
    scale = torch.exp(log_scale)
    offset = scale * effects
    misfit = torch.addcmul(data["weighted"], offset + loc, data["prec"], value=-1)
    torch.sub(misfit.sum(1, keepdim=True), loc, alpha=0.04, out=grad[:, :1])
    torch.sub((misfit * offset).sum(1, keepdim=True), torch.tanh(log_scale - LOG_5), out=grad[:, 1:2])
    torch.sub(misfit * scale, effects, out=grad[:, 2:])

    def value():
        prior = _schools_prior(loc[:, 0], log_scale[:, 0])
        return prior - 0.5 * (effects.square().sum(1) + misfit.square() @ data["var"])

    return grad, value


def _banana(data, x):
    (first, second), grad = x.unbind(1), torch.empty_like(x)
    residual = torch.addcmul(second + 3, first, first, value=-0.03)
    torch.mul((0.06 * residual).sub_(0.01), first, out=grad[:, 0])
    torch.neg(residual, out=grad[:, 1])
    return grad, lambda: -0.005 * first.square() - 0.5 * residual.square()


def _funnel(data, x):
    first, others, grad = x[:, :1], x[:, 1:], torch.empty_like(x)
    torch.mul(others, -torch.exp(-first), out=grad[:, 1:])
    spread = (others * grad[:, 1:]).sum(1, keepdim=True)
    torch.sub(-4.5 - 0.5 * spread, first, alpha=1 / 9, out=grad[:, :1])
    return grad, lambda: (0.5 * spread - first.square() / 18 - 4.5 * first)[:, 0]


def _network(data, x):
    """With tanh z = 2 s - 1, s [chains, hidden, rows] the logistic function of 2 z: on a CPU six times as fast."""
    weight, bias, out = (x[:, i * targets.HIDDEN : (i + 1) * targets.HIDDEN, None] for i in range(3))
    s = (weight * data["twice"]).add_(2 * bias).sigmoid_()
    misfit = torch.baddbmm(data["targets"] - x[:, None, -1:] + out.sum(1, keepdim=True), out.mT, s, alpha=-2)
    pull, slope = 2 * misfit / targets.NOISE_STD**2, torch.addcmul(s, s, s, value=-1)
    half_sum, twice_out = 0.5 * pull.sum(2), 2 * out[..., 0]
    of_weight, of_bias, of_out = slope @ (pull * data["inputs"]).mT, slope @ pull.mT, s @ pull.mT
    first, second = of_weight[..., 0] * twice_out, of_bias[..., 0] * twice_out
    grad = torch.cat([first, second, of_out[..., 0] - half_sum, half_sum], dim=1)
    grad -= x
    return grad, lambda: -0.25 * (misfit * pull).sum((1, 2)) - 0.5 * x.square().sum(1)


def _regression(data, x):
    coefficients, log_noise_std, grad = x[:, :4], x[:, 4:], torch.empty_like(x)
    misfit = torch.addmm(data["targets"], coefficients, data["features"], alpha=-1)
    scaled = misfit * torch.exp(-2 * log_noise_std)
    size = (misfit * scaled).sum(1, keepdim=True)
    torch.sub(size - 50, log_noise_std, out=grad[:, 4:])
    grad[:, :4] = torch.addmm(coefficients, scaled, data["features"].mT, beta=-0.01)

    def value():
        prior = -0.005 * coefficients.square().sum(1) - 0.5 * log_noise_std[:, 0].square()
        return prior - 0.5 * size[:, 0] - 50 * log_noise_std[:, 0]

    return grad, value


def _precisions(effect, std):
    return {"prec": std**-2, "weighted": effect * std**-2, "var": std**2}


LOG_5 = math.log(5)
CONSTANTS = {
    "gaussian": lambda whitening, cov: {"minus_prec": -(whitening @ whitening.mT)},
    "schools_centred": _precisions,
    "schools_non_centred": _precisions,
    "network": lambda inputs, targets: {"twice": 2 * inputs},
}
GRADIENTS = {
    "gaussian": _gaussian,
    "schools_centred": _schools_centred,
    "schools_non_centred": _schools_non_centred,
    "banana": _banana,
    "funnel": _funnel,
    "network": _network,
    "regression": _regression,
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
