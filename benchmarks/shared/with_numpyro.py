"""NumPyro: NUTS with its documented defaults (acceptance 0.8, depth 10), chain_method="vectorized", float32."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from numpyro.infer import MCMC, NUTS

from shared import targets

OPS = SimpleNamespace(exp=jnp.exp, tanh=jnp.tanh, softplus=jax.nn.softplus)


def log_prob_of(name, data):
    """The target of one position or of many."""
    arrays = {key: jnp.asarray(value, dtype=jnp.float32) for key, value in data.items()}
    return functools.partial(targets.LOG_PROBS[name], OPS, arrays)


def density(name, data, points):
    """The target at points."""
    return jax.jit(log_prob_of(name, data))(jnp.asarray(points, dtype=jnp.float32))


def prepare(job, data):
    """Both halves of a run as compiled functions: called bare, MCMC compiles anew at every run, which takes seconds."""
    log_prob = log_prob_of(job["target"], data)
    kernel = NUTS(potential_fn=lambda x: -log_prob(x), dense_mass=job["sampler"] == "NUTS, dense")
    sizes = {name: job[name] for name in ("num_warmup", "num_samples", "num_chains")}

    @jax.jit
    def warm_up(key, positions):
        mcmc = MCMC(kernel, **sizes, chain_method="vectorized", progress_bar=False)
        mcmc.warmup(key, init_params=positions)
        return mcmc.post_warmup_state

    @jax.jit
    def sample(state):
        mcmc = MCMC(kernel, **sizes, chain_method="vectorized", progress_bar=False)
        mcmc.post_warmup_state = state
        mcmc.run(state.rng_key)
        return mcmc.get_samples(group_by_chain=True)

    def run(seed, clock):
        positions = jnp.asarray(targets.start(job["target"], seed, job["num_chains"]))
        begin = clock()
        state = jax.block_until_ready(warm_up(jax.random.key(seed), positions))
        middle = clock()
        draws = jax.block_until_ready(sample(state))
        return draws, middle - begin, clock() - middle

    return run
