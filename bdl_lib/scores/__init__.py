"""How good a prediction or a posterior is: proper scores, intervals, calibration, distances, each with its error.

One file an idea: ``densities``, ``crps``, ``energy``, ``intervals``, ``calibration``, ``wasserstein``, ``mmd``,
``quantiles``; ``results`` says what they return. Forecasts come first, then what was observed; draws are in the first
dimension: [draws, points] for predictions, [draws, dim] for a posterior.

Chapter: book/06-mcmc-versus-vi.ipynb
"""

from bdl_lib.scores.calibration import CalibrationError, calibration_error
from bdl_lib.scores.crps import crps_draws, crps_gaussian
from bdl_lib.scores.densities import brier_score, log_score_classes, log_score_gaussian, log_score_mixture
from bdl_lib.scores.energy import energy_score
from bdl_lib.scores.intervals import (
    Interval,
    central_interval,
    interval_coverage,
    interval_score,
    interval_width,
    sharpness,
)
from bdl_lib.scores.mmd import median_distance, squared_mmd
from bdl_lib.scores.quantiles import QuantileError, quantile_error
from bdl_lib.scores.results import Distance, Score, average, paired_difference
from bdl_lib.scores.wasserstein import sliced_wasserstein

__all__ = [
    "CalibrationError",
    "Distance",
    "Interval",
    "QuantileError",
    "Score",
    "average",
    "brier_score",
    "calibration_error",
    "central_interval",
    "crps_draws",
    "crps_gaussian",
    "energy_score",
    "interval_coverage",
    "interval_score",
    "interval_width",
    "log_score_classes",
    "log_score_gaussian",
    "log_score_mixture",
    "median_distance",
    "paired_difference",
    "quantile_error",
    "sharpness",
    "sliced_wasserstein",
    "squared_mmd",
]
