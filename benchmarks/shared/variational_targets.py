"""The densities that variational fits are judged on, normalised as a user would write them: log p(x, data) in nats.

``LOG_PROBS[name](ops, data, x)`` takes positions ``[..., dim]`` and gives ``[...]``; see ``shared.targets`` for what
``ops`` and ``data`` are. Three are that module's, with the constants that samplers do without, so that the evidence
lower bound (ELBO) has a meaning and "within 0.5 %" too.
"""

import math

import numpy as np

from shared import targets

TITLES = {
    "regression": "linear regression, 5-d, features correlated 0.9",
    "regression_100": "linear regression, 100-d, condition number 10³",
    "logistic": "logistic regression, breast cancer, 31-d",
    "schools": "eight schools, non-centred, 10-d",
    "banana": "banana, 2-d",
}
DIMS = {"regression": 5, "regression_100": 100, "logistic": 31, "schools": 10, "banana": 2}
LOG_2PI = math.log(2 * math.pi)
BANANA_CONSTANT = -LOG_2PI - math.log(10)


def regression(ops, data, x):
    """Weights N(0, 1), noise N(0, 1); ``features`` are [dim, rows]."""
    misfit = data["targets"] - x @ data["features"]
    return -0.5 * (misfit**2).sum(-1) - 0.5 * (x**2).sum(-1) + data["constant"]


def logistic(ops, data, x):
    """Weights and intercept N(0, 1)."""
    return targets.logistic(ops, data, x) + data["constant"]


def schools(ops, data, x):
    """Mean N(0, 5), scale half-Cauchy(5), the eight effects standardised."""
    return targets.schools_non_centred(ops, data, x) + data["constant"]


def banana(ops, data, x):
    """Normalised: its log evidence is zero."""
    return targets.banana(ops, data, x) + BANANA_CONSTANT


LOG_PROBS = {
    "regression": regression,
    "regression_100": regression,
    "logistic": logistic,
    "schools": schools,
    "banana": banana,
}


def make_data(name):
    """The arrays of one target."""
    if name.startswith("regression"):
        return _regression_data(name)
    if name == "logistic":
        return {**targets.make_data("logistic"), "constant": np.array(-15.5 * LOG_2PI)}
    if name == "schools":
        data = targets.make_data("schools_non_centred")
        prior = -0.5 * LOG_2PI - math.log(5) + math.log(2 / (5 * math.pi))  # of the mean, of the scale
        return {**data, "constant": np.array(prior - 8 * LOG_2PI - np.log(data["std"]).sum())}
    return {}


def _regression_data(name):
    rng = np.random.default_rng(0)
    dim, rows = DIMS[name], {"regression": 50, "regression_100": 200}[name]
    if name == "regression":
        root = np.linalg.cholesky(0.9 + 0.1 * np.eye(dim))
        features = root @ rng.standard_normal((dim, rows))
    else:  # eigenvalues of the precision from 1 + 1 to 1 + 2000, evenly spaced on a log scale
        left, right = (np.linalg.qr(rng.standard_normal((n, dim)))[0] for n in (dim, rows))
        features = (left * np.sqrt(np.logspace(0, np.log10(2000), dim))) @ right.T
    outcome = rng.standard_normal(dim) @ features + rng.standard_normal(rows)
    return {"features": features, "targets": outcome, "constant": np.array(-0.5 * (dim + rows) * LOG_2PI)}


def exact_optimum(name, family, data):
    """Mean and covariance of the best Gaussian of a family, where the target is Gaussian; None elsewhere."""
    if not name.startswith("regression"):
        return None
    prec = data["features"] @ data["features"].T + np.eye(DIMS[name])
    mean = np.linalg.solve(prec, data["features"] @ data["targets"])
    return mean, np.diag(1 / np.diag(prec)) if family == "mean-field" else np.linalg.inv(prec)
