"""Bayes' theorem: for a list of hypotheses, in closed form, on a grid, and for regression in features.

One file an idea: ``discrete``, ``conjugate``, ``grid``, ``linear``, ``logistic``. Everything is importable from here.

Chapter: book/01-bayes.ipynb
"""

from .conjugate import (
    Conjugate,
    NormalGamma,
    beta_bernoulli,
    gamma_poisson,
    normal_gamma_mean,
    normal_known_std,
    normal_unknown_std,
)
from .discrete import (
    DiscretePosterior,
    LogDiscretePosterior,
    log_odds,
    update,
    update_log,
    update_log_odds,
    update_sequence,
)
from .grid import GridPosterior, grid_expectation, grid_marginal, grid_posterior, midpoints
from .linear import (
    GaussianWeights,
    LinearPredictive,
    gaussian_prior,
    linear_log_evidence,
    linear_posterior,
    linear_predictive,
    polynomial_features,
    radial_features,
    sample_weights,
)
from .logistic import LogisticPosterior, WeightPrior, logistic_posterior

__all__ = [
    "Conjugate",
    "DiscretePosterior",
    "GaussianWeights",
    "GridPosterior",
    "LinearPredictive",
    "LogDiscretePosterior",
    "LogisticPosterior",
    "NormalGamma",
    "WeightPrior",
    "beta_bernoulli",
    "gamma_poisson",
    "gaussian_prior",
    "grid_expectation",
    "grid_marginal",
    "grid_posterior",
    "linear_log_evidence",
    "linear_posterior",
    "linear_predictive",
    "log_odds",
    "logistic_posterior",
    "midpoints",
    "normal_gamma_mean",
    "normal_known_std",
    "normal_unknown_std",
    "polynomial_features",
    "radial_features",
    "sample_weights",
    "update",
    "update_log",
    "update_log_odds",
    "update_sequence",
]
