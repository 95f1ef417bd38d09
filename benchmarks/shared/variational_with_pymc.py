"""PyMC: ADVI and full-rank ADVI in float64, with adagrad_window (its default) or Adam.

A cold fit is ``pm.fit``. That compiles anew at every call, so a warm fit puts the state back and calls the step that
the first one compiled. PyTensor keeps compiled C code on disk: a cold process finds there what an earlier one left.
(With score=False, which would spare recording the loss, PyMC 5.28 diverges on these targets, so its default stays.)
"""

from types import SimpleNamespace

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from shared import variational_targets as targets

OPS = SimpleNamespace(exp=pt.exp, tanh=pt.tanh, softplus=pt.softplus)
INFERENCES = {"mean-field": pm.ADVI, "full-rank": pm.FullRankADVI}
OPTIMIZERS = {"adam": pm.adam, "adagrad_window": pm.adagrad_window}


def model_of(name, data):
    """The target as a PyMC model over one flat vector."""
    with pm.Model() as model:
        x = pm.Flat("x", shape=targets.DIMS[name])
        arrays = {key: pt.as_tensor(value) for key, value in data.items()}
        pm.Potential("log_prob", targets.LOG_PROBS[name](OPS, arrays, x))
    return model


def density(name, data, points):
    """The target at points."""
    log_prob = model_of(name, data).compile_logp()
    return [log_prob({"x": point.astype(float)}) for point in points]


def prepare(job, data):
    """A fit: the first by pm.fit, later ones with the step that it compiled."""
    lr, kept = pytensor.shared(np.asarray(job["lr"]), "lr"), {}
    start = {"x": np.zeros(targets.DIMS[job["target"]])}

    def keep(step):
        """Remember the compiled step and the state that it starts from; None stands for a random number generator."""
        kept["step"], variables = step, [v for v in step.get_shared() if v is not lr]
        kept["state"] = [(v, copy_of(v.get_value())) for v in variables]
        return step

    def first(job, callback):
        optimizer = OPTIMIZERS[job["optimizer"]](learning_rate=lr)
        settings = {"obj_n_mc": job["particles"], "obj_optimizer": optimizer, "progressbar": False}
        with model_of(job["target"], data):
            inference = INFERENCES[job["family"]](start=start, random_seed=job["seed"])
            compile_step = inference.objective.step_function
            inference.objective.step_function = lambda **kwargs: keep(compile_step(**kwargs))
            return pm.fit(job["steps"], method=inference, callbacks=[callback] if callback else [], **settings)

    def again(job, callback):
        for variable, value in kept["state"]:
            variable.set_value(np.random.default_rng(job["seed"]) if value is None else value)
        for i in range(job["steps"]):
            kept["step"]()
            if callback:
                callback(None, None, i + 1)

    def run(job):
        lr.set_value(job["lr"])
        callback = None if job["decay"] == 1 else falling(lr, job)
        if kept:
            again(job, callback)
        else:
            kept["approx"] = first(job, callback)
        return *gaussian_of(kept["approx"]), {}

    return run


def falling(lr, job):
    """A callback that lets the learning rate fall by a factor over the run, in 50 steps."""
    period = max(1, job["steps"] // 50)

    def callback(approx, losses, i):
        if i % period == 0:
            lr.set_value(job["lr"] * job["decay"] ** (i / job["steps"]))

    return callback


def copy_of(value):
    """Of an array; None for a generator."""
    return None if isinstance(value, np.random.Generator) else np.array(value)


def gaussian_of(approx):
    """Mean and scale from PyMC's parameters, in which what must be positive is a softplus."""
    params = {p.name: p.get_value() for p in approx.params}
    if "rho" in params:
        return params["mu"], np.logaddexp(0, params["rho"])
    dim = len(params["mu"])
    tril = np.zeros((dim, dim))
    tril[np.tril_indices(dim)] = params["L_tril"]
    np.fill_diagonal(tril, np.logaddexp(0, tril.diagonal()))
    return params["mu"], tril
