"""The densities that the samplers are judged on, written once for every array library.

``LOG_PROBS[name](ops, data, x)`` takes positions ``[..., dim]`` and gives ``[...]``, in nats, up to a constant. ``ops``
is the array library's own ``exp``, ``softplus``, ...; ``data`` its own arrays. ``make_data`` needs bdl_lib and
scikit-learn, everything else only NumPy: a cold process that reads the data from a file imports nothing in vain.
"""

import numpy as np

DIMS = {
    "gaussian": 100,
    "logistic": 31,
    "schools_centred": 10,
    "schools_non_centred": 10,
    "banana": 2,
    "funnel": 10,
    "network": 31,
    "regression": 5,
}
TITLES = {
    "gaussian": "correlated Gaussian, 100-d, condition number 10⁴",
    "logistic": "logistic regression, breast cancer, 31-d",
    "schools_centred": "eight schools, centred, 10-d",
    "schools_non_centred": "eight schools, non-centred, 10-d",
    "banana": "banana, 2-d",
    "funnel": "funnel, 10-d",
    "network": "network 1-10-1 on the sine, 31-d, judged by its predictions",
    "regression": "cubic regression with unknown noise, 5-d, strongly correlated",
}
HIDDEN = 10
NOISE_STD = 0.1  # of the sine data


def gaussian(ops, data, x):
    """N(0, Q Λ Qᵀ), the eigenvalues Λ evenly spaced on a log scale."""
    return -0.5 * ((x @ data["whitening"]) ** 2).sum(-1)


def logistic(ops, data, x):
    """Standard normal weights and intercept; ``signed`` are the inputs with a one, times ±1 for the class."""
    return -ops.softplus(-(x @ data["signed"])).sum(-1) - 0.5 * (x**2).sum(-1)


def _schools_prior(ops, loc, log_scale):
    """loc ~ N(0, 5), scale ~ half-Cauchy(5), with the Jacobian of the log."""
    return -0.5 * (loc / 5) ** 2 - ops.softplus(2 * log_scale - np.log(25.0)) + log_scale


def schools_centred(ops, data, x):
    """x = (loc, log scale, the eight effects)."""
    loc, log_scale, effects = x[..., 0], x[..., 1], x[..., 2:]
    spread = ((effects - x[..., :1]) * ops.exp(-x[..., 1:2])) ** 2
    misfit = ((data["effect"] - effects) / data["std"]) ** 2
    return _schools_prior(ops, loc, log_scale) - 0.5 * (spread + misfit).sum(-1) - 8 * log_scale


def schools_non_centred(ops, data, x):
    """x = (loc, log scale, the eight standardised effects)."""
    effects = x[..., :1] + ops.exp(x[..., 1:2]) * x[..., 2:]
    misfit = ((data["effect"] - effects) / data["std"]) ** 2
    return _schools_prior(ops, x[..., 0], x[..., 1]) - 0.5 * (x[..., 2:] ** 2 + misfit).sum(-1)


def banana(ops, data, x):
    """x₁ ~ N(0, 10²), x₂ | x₁ ~ N(0.03 (x₁² - 100), 1): Haario, Saksman and Tamminen (1999)."""
    return -0.5 * (x[..., 0] / 10) ** 2 - 0.5 * (x[..., 1] - 0.03 * (x[..., 0] ** 2 - 100)) ** 2


def funnel(ops, data, x):
    """x₁ ~ N(0, 3²), the nine others given it N(0, exp x₁): Neal (2003)."""
    return -0.5 * (x[..., 0] / 3) ** 2 - 0.5 * (x[..., 1:] ** 2 * ops.exp(-x[..., :1])).sum(-1) - 4.5 * x[..., 0]


def predictions(ops, inputs, x):
    """Outputs [..., n] of an MLP 1-10-1 with tanh: weights laid out as ``bdl_lib.networks.mlp`` does."""
    weight, bias, out = x[..., None, :HIDDEN], x[..., None, HIDDEN : 2 * HIDDEN], x[..., None, 2 * HIDDEN : -1]
    return (out * ops.tanh(inputs[:, None] * weight + bias)).sum(-1) + x[..., -1:]


def network(ops, data, x):
    """Standard normal weights, known noise."""
    misfit = (data["targets"] - predictions(ops, data["inputs"], x)) / NOISE_STD
    return -0.5 * (misfit**2).sum(-1) - 0.5 * (x**2).sum(-1)


def regression(ops, data, x):
    """A cubic in x on [0, 1], coefficients N(0, 10²), log of the noise's standard deviation N(0, 1)."""
    log_noise_std = x[..., 4]
    misfit = ((data["targets"] - x[..., :4] @ data["features"]) * ops.exp(-x[..., 4:5])) ** 2
    prior = -0.5 * ((x[..., :4] / 10) ** 2).sum(-1) - 0.5 * log_noise_std**2
    return prior - 0.5 * misfit.sum(-1) - 50 * log_noise_std


LOG_PROBS = {
    f.__name__: f
    for f in (gaussian, logistic, schools_centred, schools_non_centred, banana, funnel, network, regression)
}


def judged(name, data, draws):
    """What must have converged: the parameters; of the network, whose weights may swap places, its predictions."""
    if name != "network":
        return draws
    grid = np.linspace(-1.2, 1.2, 13)
    return np.stack([predictions(np, grid, chain.astype(float)) for chain in draws])


def exact_moments(name, data):
    """Mean and second moment of every judged number, where they are known; NaN where one is not used."""
    if name == "gaussian":
        return np.zeros(100), np.diag(data["cov"])
    if name == "banana":
        return np.zeros(2), np.array([100.0, 1 + 2 * (0.03 * 100) ** 2])
    if name == "funnel":
        return np.zeros(10), np.array([9.0, *[np.nan] * 9])  # squares of the others: no error bar holds, tails too long
    return None


def start(name, seed, num_chains):
    """Where every library starts: uniform on [-2, 2], as Stan does."""
    return np.random.default_rng(seed).uniform(-2, 2, (num_chains, DIMS[name])).astype(np.float32)


def make_data(name):
    """The arrays of one target."""
    rng = np.random.default_rng(0)
    if name == "gaussian":
        variances = np.logspace(-2, 2, 100)
        rotation = np.linalg.qr(rng.standard_normal((100, 100)))[0]
        return {"whitening": rotation / np.sqrt(variances), "cov": (rotation * variances) @ rotation.T}
    if name.startswith("schools"):
        return {"effect": np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), "std": np.array([15.0, 10, 16, 11, 9, 11, 10, 18])}
    if name == "regression":
        x = rng.uniform(0, 1, 50)
        features = np.stack([x**0, x, x**2, x**3])
        return {"features": features, "targets": np.array([1.0, -2, 0.5, 3]) @ features + 0.3 * rng.standard_normal(50)}
    if name in ("logistic", "network"):
        return _data_of_the_book(name)
    return {}


def _data_of_the_book(name):
    import torch

    from bdl_lib import data

    generator = torch.Generator().manual_seed(0)
    if name == "network":
        sine = data.sine_with_gap(40, noise_std=NOISE_STD, generator=generator, dtype=torch.float64)
        return {"inputs": sine.inputs[:, 0].numpy(), "targets": sine.targets.numpy()}
    table = data.breast_cancer(generator=generator, dtype=torch.float64).train
    inputs, labels = table.inputs.numpy(), table.labels.numpy()
    signed = np.column_stack([inputs, np.ones(len(inputs))]) * (2 * labels - 1)[:, None]
    return {"signed": signed.T.copy(), "inputs": inputs, "labels": labels}
