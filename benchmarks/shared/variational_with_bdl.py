"""The project's own fit, float32, with its defaults, from zero means and unit standard deviations.

The gradient of logistic regression is ``bayes.logistic_posterior``'s closed form; the others come from autograd.
"""

import functools
from types import SimpleNamespace

import torch

from bdl_lib import vi
from shared import variational_targets as targets

torch.set_num_threads(1)
OPS = SimpleNamespace(exp=torch.exp, tanh=torch.tanh, softplus=torch.nn.functional.softplus)
STARTS = {"mean-field": vi.mean_field_gaussian, "full-rank": vi.full_rank_gaussian}


def log_prob_of(name, data):
    """The target of many positions."""
    arrays = {key: torch.as_tensor(value, dtype=torch.float32) for key, value in data.items()}
    if name == "logistic":
        from bdl_lib import bayes

        inputs, labels = arrays["inputs"], arrays["labels"]
        features = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
        return bayes.logistic_posterior(features, labels, prior_std=1.0)
    return functools.partial(targets.LOG_PROBS[name], OPS, arrays)


def density(name, data, points):
    """The target at points."""
    return log_prob_of(name, data)(torch.as_tensor(points, dtype=torch.float32))


def prepare(job, data):
    """A fit; nothing to compile."""
    log_prob = log_prob_of(job["target"], data)

    def run(job):
        generator = torch.Generator().manual_seed(job["seed"])
        start = STARTS[job["family"]](torch.zeros(targets.DIMS[job["target"]]))
        fit = vi.fit(log_prob, start, generator=generator)
        family, note = fit.family, {"steps": len(fit.elbo_history), "is_converged": bool(fit.is_converged)}
        scale = family.std if job["family"] == "mean-field" else family.scale_tril.tril()
        return family.loc.detach(), scale.detach(), note

    return run
