"""BlackJAX: NUTS with window adaptation, ChEES and MEADS; whole runs compiled, chains by vmap, float32.

Settings are the documented ones: NUTS at 0.80 acceptance with a diagonal or a dense metric; ChEES with
Adam(0.05), first step size 0.1, and either no metric (its default) or the diagonal one that it offers; MEADS with four
folds and either its diagonal scale (default) or the low-rank metric at full rank. MEADS makes one leapfrog step an
iteration: ten of them count as one step of warm-up or one draw here.
"""

import functools
from types import SimpleNamespace

import blackjax
import jax
import jax.numpy as jnp
import optax
from blackjax.adaptation.base import get_filter_adapt_info_fn

from shared import targets

OPS = SimpleNamespace(exp=jnp.exp, tanh=jnp.tanh, softplus=jax.nn.softplus)
MEADS_STEPS = 10


def log_prob_of(name, data):
    """The target of one position or of many."""
    arrays = {key: jnp.asarray(value, dtype=jnp.float32) for key, value in data.items()}
    return functools.partial(targets.LOG_PROBS[name], OPS, arrays)


def density(name, data, points):
    """The target at points."""
    return jax.jit(log_prob_of(name, data))(jnp.asarray(points, dtype=jnp.float32))


def window(log_prob, job, is_diagonal):
    """NUTS: every chain adapts by itself."""
    no_info = get_filter_adapt_info_fn()
    adaptation = blackjax.window_adaptation(
        blackjax.nuts, log_prob, is_mass_matrix_diagonal=is_diagonal, adaptation_info_fn=no_info
    )

    def warm_up(key, positions):
        def one(key, position):
            (state, parameters), _ = adaptation.run(key, position, num_steps=job["num_warmup"])
            return state, {name: parameters[name] for name in ("step_size", "inverse_mass_matrix")}

        return jax.vmap(one)(jax.random.split(key, len(positions)), positions)

    def step(key, state, parameters):
        return blackjax.nuts(log_prob, **parameters).step(key, state)[0]

    return warm_up, lambda keys, states, parameters: jax.vmap(step)(keys, states, parameters), 1


def chees(log_prob, job, metric):
    """ChEES-HMC: all chains adapt together."""
    adaptation = blackjax.chees_adaptation(
        log_prob,
        job["num_chains"],
        mass_matrix_estimation=metric,
        adaptation_info_fn=get_filter_adapt_info_fn(),
    )
    functions = {}

    def warm_up(key, positions):
        (states, parameters), _ = adaptation.run(
            key, positions, 0.1, optax.adam(0.05), job["num_warmup"], max_sampling_steps=job["num_samples"]
        )
        functions.update({name: parameters.pop(name) for name in ("next_random_arg_fn", "integration_steps_fn")})
        return states, parameters

    def step(keys, states, parameters):
        kernel = blackjax.dynamic_hmc(log_prob, **parameters, **functions)
        return jax.vmap(lambda key, state: kernel.step(key, state)[0])(keys, states)

    return warm_up, step, 1


def meads(log_prob, job, rank):
    """MEADS: generalised HMC, all chains adapt together."""
    adaptation = blackjax.meads_adaptation(
        log_prob, job["num_chains"], low_rank_rank=rank, adaptation_info_fn=get_filter_adapt_info_fn()
    )

    def warm_up(key, positions):
        (states, parameters), _ = adaptation.run(key, positions, num_steps=MEADS_STEPS * job["num_warmup"])
        return states, parameters

    def step(keys, states, parameters):
        kernel = blackjax.ghmc(log_prob, **parameters)
        return jax.vmap(lambda key, state: kernel.step(key, state)[0])(keys, states)

    return warm_up, step, MEADS_STEPS


def parts(log_prob, job):
    """Warm-up, one step of all chains, and how many steps a draw."""
    match job["sampler"]:
        case "NUTS, diagonal":
            return window(log_prob, job, True)
        case "NUTS, dense":
            return window(log_prob, job, False)
        case "ChEES":
            return chees(log_prob, job, None)
        case "ChEES, diagonal":
            return chees(log_prob, job, "diagonal")
        case "MEADS":
            return meads(log_prob, job, None)
        case "MEADS, low rank":
            return meads(log_prob, job, targets.DIMS[job["target"]])


def prepare(job, data):
    """Compile nothing yet: the first run does."""
    warm_up, step, thinning = parts(log_prob_of(job["target"], data), job)
    num_chains, num_samples = job["num_chains"], job["num_samples"]

    @jax.jit
    def sample(key, states, parameters):
        def one_step(states, key):
            return step(jax.random.split(key, num_chains), states, parameters), None

        def one_draw(states, key):
            states, _ = jax.lax.scan(one_step, states, jax.random.split(key, thinning))
            return states, states.position

        return jax.lax.scan(one_draw, states, jax.random.split(key, num_samples))[1]

    compiled_warm_up = jax.jit(warm_up)

    def run(seed, clock):
        keys = jax.random.split(jax.random.key(seed))
        positions = jnp.asarray(targets.start(job["target"], seed, num_chains))
        begin = clock()
        states, parameters = jax.block_until_ready(compiled_warm_up(keys[0], positions))
        middle = clock()
        draws = jax.block_until_ready(sample(keys[1], states, parameters))
        return draws.swapaxes(0, 1), middle - begin, clock() - middle

    return run
