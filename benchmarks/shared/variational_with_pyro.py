"""Pyro: SVI with AutoNormal or AutoMultivariateNormal, Trace_ELBO (or JitTrace_ELBO) and Adam, float32.

Particles are vectorised. With a decaying learning rate the optimizer is ClippedAdam without clipping. A compiled loss
is kept from one fit to the next and the parameters put back, which spares compiling it again.
"""

from types import SimpleNamespace

import pyro
import torch
from pyro import distributions as dist
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value

from shared import variational_targets as targets

torch.set_num_threads(1)
pyro.enable_validation(False)
OPS = SimpleNamespace(exp=torch.exp, tanh=torch.tanh, softplus=torch.nn.functional.softplus)
GUIDES = {"mean-field": AutoNormal, "full-rank": AutoMultivariateNormal}


def density(name, data, points):
    """The target at points."""
    arrays = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in data.items()}
    return targets.LOG_PROBS[name](OPS, arrays, torch.as_tensor(points, dtype=torch.float32))


def optimizer_of(job):
    """Adam, with a learning rate that falls by a factor over the run."""
    if job["decay"] == 1:
        return pyro.optim.Adam({"lr": job["lr"]})
    rate = job["decay"] ** (1 / job["steps"])
    return pyro.optim.ClippedAdam({"lr": job["lr"], "lrd": rate, "clip_norm": float("inf")})


def prepare(job, data):
    """A fit."""
    dim = targets.DIMS[job["target"]]
    arrays = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in data.items()}
    prior = dist.ImproperUniform(torch.distributions.constraints.real_vector, (), (dim,))

    def model():
        x = pyro.sample("x", prior)
        pyro.factor("log_prob", targets.LOG_PROBS[job["target"]](OPS, arrays, x))

    start = init_to_value(values={"x": torch.zeros(dim)})
    guide = GUIDES[job["family"]](model, init_loc_fn=start, init_scale=job["init_scale"])
    loss = JitTrace_ELBO if job["jit"] else Trace_ELBO
    many = job["particles"] > 1
    elbo = loss(num_particles=job["particles"], vectorize_particles=many, max_plate_nesting=0)
    pyro.clear_param_store()
    guide()
    first = {name: value.detach().clone() for name, value in guide.named_parameters()}

    def run(job):
        pyro.set_rng_seed(job["seed"])
        with torch.no_grad():
            for name, value in guide.named_parameters():
                value.copy_(first[name])
        svi = SVI(model, guide, optimizer_of(job), loss=elbo)
        for _ in range(job["steps"]):
            svi.step()
        with torch.no_grad():
            if job["family"] == "mean-field":
                return guide.locs.x.numpy(), guide.scales.x.numpy(), {}
            return guide.loc.numpy(), (guide.scale[:, None] * guide.scale_tril).numpy(), {}

    return run
