"""NumPyro: SVI with AutoNormal or AutoMultivariateNormal, Trace_ELBO and Adam, float32, one flat latent vector.

``svi.run`` is compiled whole: called bare, it compiles anew at every run. A search compiles once for all learning rates
and numbers of steps.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from numpyro.infer.initialization import init_to_value

from shared import variational_targets as targets

OPS = SimpleNamespace(exp=jnp.exp, tanh=jnp.tanh, softplus=jax.nn.softplus)
GUIDES = {"mean-field": AutoNormal, "full-rank": AutoMultivariateNormal}


def density(name, data, points):
    """The target at points."""
    arrays = {key: jnp.asarray(value, dtype=jnp.float32) for key, value in data.items()}
    return jax.jit(lambda x: targets.LOG_PROBS[name](OPS, arrays, x))(jnp.asarray(points, dtype=jnp.float32))


def svi_of(job, data, lr, num_steps):
    """Model, guide, optimizer and loss."""
    dim = targets.DIMS[job["target"]]
    arrays = {key: jnp.asarray(value, dtype=jnp.float32) for key, value in data.items()}

    def model():
        x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (dim,)))
        numpyro.factor("log_prob", targets.LOG_PROBS[job["target"]](OPS, arrays, x))

    start = init_to_value(values={"x": jnp.zeros(dim)})
    guide = GUIDES[job["family"]](model, init_loc_fn=start, init_scale=job["init_scale"])
    decay = job["decay"]
    step_size = lr if decay == 1 else lambda i: lr * decay ** (i / num_steps)
    return SVI(model, guide, numpyro.optim.Adam(step_size), Trace_ELBO(num_particles=job["particles"]))


def prepare(job, data):
    """A compiled fit; the first call compiles."""

    @jax.jit
    def fit(key):
        svi = svi_of(job, data, job["lr"], job["steps"])
        return svi.run(key, job["steps"], progress_bar=False).params

    @jax.jit
    def search(key, lr, steps):
        svi = svi_of(job, data, lr, steps)
        state = jax.lax.fori_loop(0, steps, lambda _, state: svi.update(state)[0], svi.init(key))
        return svi.get_params(state)

    def run(job):
        key = jax.random.key(job["seed"])
        params = search(key, job["lr"], job["steps"]) if job["is_search"] else fit(key)
        return *gaussian_of(jax.device_get(params)), {}

    return run


def gaussian_of(params):
    """Mean and scale: a vector of standard deviations or a triangle."""
    if "auto_scale_tril" in params:
        return params["auto_loc"], params["auto_scale_tril"]
    return params["x_auto_loc"], params["x_auto_scale"]
