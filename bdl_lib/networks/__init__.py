"""Networks as functions of flat weights, their log posterior, one fit or many predictions, and what to decide.

``mlp`` or ``from_module`` gives a :class:`Network`; with ``gaussian_prior``, a likelihood and data, ``log_posterior``
turns it into a batched ``log_prob`` for ``fit_map`` and for the samplers of later chapters; ``predict_regression``,
``predict_classes`` and ``decide`` take the weight samples from there.

Chapter: book/02-networks.ipynb
"""

from bdl_lib.networks.decisions import REFUSE, Decision, RiskCoverage, decide, expected_loss, risk_coverage
from bdl_lib.networks.fit import MapFit, fit_map
from bdl_lib.networks.functional import Network, flatten_weights, from_module, mlp, unflatten_weights
from bdl_lib.networks.likelihoods import (
    Likelihood,
    bernoulli_likelihood,
    categorical_likelihood,
    gaussian_likelihood,
    heteroscedastic_likelihood,
)
from bdl_lib.networks.posterior import GaussianPrior, LogPosterior, draw_rows, gaussian_prior, log_posterior
from bdl_lib.networks.predict import (
    ClassPredictive,
    EntropySplit,
    RegressionPredictive,
    entropy_split,
    far_field_slope,
    predict_classes,
    predict_regression,
    variance_split,
)

__all__ = [
    "REFUSE",
    "ClassPredictive",
    "Decision",
    "EntropySplit",
    "GaussianPrior",
    "Likelihood",
    "LogPosterior",
    "MapFit",
    "Network",
    "RegressionPredictive",
    "RiskCoverage",
    "bernoulli_likelihood",
    "categorical_likelihood",
    "decide",
    "draw_rows",
    "entropy_split",
    "expected_loss",
    "far_field_slope",
    "fit_map",
    "flatten_weights",
    "from_module",
    "gaussian_likelihood",
    "gaussian_prior",
    "heteroscedastic_likelihood",
    "log_posterior",
    "mlp",
    "predict_classes",
    "predict_regression",
    "risk_coverage",
    "unflatten_weights",
    "variance_split",
]
