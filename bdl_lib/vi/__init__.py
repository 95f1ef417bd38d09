"""Variational inference: the posterior found by optimisation, within a family of densities.

One file an idea: ``families``, ``mixture``, ``flow`` and ``laplace`` say what q can be, ``elbo`` what is raised,
``fit`` how (``natural`` and ``ascent`` are its two ways), ``forward_kl`` what the other direction gives; ``layers`` and
``backprop`` fit networks; ``psis`` and ``calibration`` tell when a fit is wrong.

Chapter: book/05-vi.ipynb
"""

from bdl_lib.vi.ascent import Ascent, ascend
from bdl_lib.vi.backprop import BackpropFit, BayesianMlp, bayesian_mlp, fit_backprop, kl_to_prior
from bdl_lib.vi.calibration import FitCalibration, calibrate_fit
from bdl_lib.vi.elbo import (
    Elbo,
    importance_weighted_elbo,
    reparameterised_elbo,
    score_function_elbo,
    sticking_the_landing_elbo,
)
from bdl_lib.vi.families import (
    Family,
    FullRankGaussian,
    LowRankGaussian,
    MeanFieldGaussian,
    full_rank_gaussian,
    low_rank_gaussian,
    mean_field_gaussian,
)
from bdl_lib.vi.fit import fit
from bdl_lib.vi.flow import RealNvp, real_nvp
from bdl_lib.vi.forward_kl import fit_forward_kl, fit_to_draws
from bdl_lib.vi.laplace import laplace_family
from bdl_lib.vi.layers import (
    BayesianLinear,
    LayerForward,
    bayesian_linear,
    flipout,
    local_reparameterisation,
    shared_weights,
)
from bdl_lib.vi.mixture import GaussianMixture, gaussian_mixture
from bdl_lib.vi.natural import NaturalStep, Survey, matched_noise, natural_step, survey
from bdl_lib.vi.psis import Smoothed, pareto_smoothed
from bdl_lib.vi.results import FailedFit, Fit

__all__ = [
    "Ascent",
    "BackpropFit",
    "BayesianLinear",
    "BayesianMlp",
    "Elbo",
    "FailedFit",
    "Family",
    "Fit",
    "FitCalibration",
    "FullRankGaussian",
    "GaussianMixture",
    "LayerForward",
    "LowRankGaussian",
    "MeanFieldGaussian",
    "NaturalStep",
    "RealNvp",
    "Smoothed",
    "Survey",
    "ascend",
    "bayesian_linear",
    "bayesian_mlp",
    "calibrate_fit",
    "fit",
    "fit_backprop",
    "fit_forward_kl",
    "fit_to_draws",
    "flipout",
    "full_rank_gaussian",
    "gaussian_mixture",
    "importance_weighted_elbo",
    "kl_to_prior",
    "laplace_family",
    "local_reparameterisation",
    "low_rank_gaussian",
    "matched_noise",
    "mean_field_gaussian",
    "natural_step",
    "pareto_smoothed",
    "real_nvp",
    "reparameterised_elbo",
    "score_function_elbo",
    "shared_weights",
    "sticking_the_landing_elbo",
    "survey",
]
