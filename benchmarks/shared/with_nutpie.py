"""nutpie: NUTS in Rust on a density compiled by Numba through PyMC, float64, with its defaults (gradient-based metric).

It starts from its own points, jittered around the origin. "low rank" is the metric it offers for correlations. The
share of the time that warm-up took is its share of the leapfrog steps.
"""

from types import SimpleNamespace

import nutpie
import pymc as pm
import pytensor.tensor as pt

from shared import targets

OPS = SimpleNamespace(exp=pt.exp, tanh=pt.tanh, softplus=pt.softplus)


def model_of(name, data):
    """The target as a PyMC model over one flat vector."""
    with pm.Model() as model:
        position = pm.Flat("position", shape=targets.DIMS[name])
        arrays = {key: pt.as_tensor(value) for key, value in data.items()}
        pm.Potential("log_prob", targets.LOG_PROBS[name](OPS, arrays, position))
    return model


def density(name, data, points):
    """The target at points."""
    log_prob = model_of(name, data).compile_logp()
    return [log_prob({"position": point.astype(float)}) for point in points]


def prepare(job, data):
    """The model is compiled here."""
    compiled = nutpie.compile_pymc_model(model_of(job["target"], data))
    settings = {
        "tune": job["num_warmup"],
        "draws": job["num_samples"],
        "chains": job["num_chains"],
        "cores": 1,
        "progress_bar": False,
        "low_rank_modified_mass_matrix": job["sampler"] == "NUTS, low rank",
    }

    def run(seed, clock):
        begin = clock()
        trace = nutpie.sample(compiled, seed=seed, **settings)
        seconds = clock() - begin
        steps, warmup_steps = (float(group.n_steps.sum()) for group in (trace.sample_stats, trace.warmup_sample_stats))
        share = steps / (steps + warmup_steps)
        return trace.posterior.position.to_numpy(), seconds * (1 - share), seconds * share

    return run
