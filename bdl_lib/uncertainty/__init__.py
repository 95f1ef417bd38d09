"""Which uncertainty, and is it right: noise that a network predicts, what its draws disagree about, and judging both.

One file an idea: ``losses``, ``decomposition``; ``calibration``, ``recalibration``, ``detection``; and to act on it,
``conformal`` (``_sets``, ``_pixels``, ``_adaptive``), ``selective``, ``acquisition``. Everything takes numbers, never a
model; only ``scene_network`` makes one. Classes are in dimension 1, [n, classes] for vectors and
[n, classes, height, width] for images.

Chapter: book/08-uncertainty.ipynb
"""

from bdl_lib.uncertainty.acquisition import BatchBald, bald, batch_bald, random_batch, top_batch
from bdl_lib.uncertainty.calibration import ReliabilityDiagram, TopLabel, corrected_ece, reliability_diagram, top_label
from bdl_lib.uncertainty.conformal import (
    ConformalQuantile,
    conformal_quantile,
    coverage_law,
    quantile_interval,
    quantile_score,
    residual_interval,
    residual_score,
)
from bdl_lib.uncertainty.conformal_adaptive import AdaptiveConformal, adaptive_conformal
from bdl_lib.uncertainty.conformal_pixels import image_score, pixel_quantile
from bdl_lib.uncertainty.conformal_sets import cumulative_score, cumulative_set, threshold_score, threshold_set
from bdl_lib.uncertainty.decomposition import (
    ClassDraws,
    ClassUncertainty,
    RegressionDraws,
    RegressionUncertainty,
    UncertaintyParts,
    add_class_draw,
    add_regression_draw,
    decompose_classes,
    decompose_regression,
)
from bdl_lib.uncertainty.detection import (
    Detection,
    Estimate,
    compare_detectors,
    detection,
    free_energy,
    lack_of_confidence,
    predictive_entropy,
)
from bdl_lib.uncertainty.losses import gaussian_nll, laplace_nll, sampled_logit_nll, sampled_logit_prob
from bdl_lib.uncertainty.recalibration import LogitScaling, fit_temperature, fit_vector_scaling, scale_logits
from bdl_lib.uncertainty.scene_network import scene_loss, scene_network
from bdl_lib.uncertainty.selective import (
    SelectiveRisk,
    SelectiveThreshold,
    area_under_risk_coverage,
    risk_upper_bound,
    threshold_for_coverage,
    threshold_for_risk,
)

__all__ = [
    "AdaptiveConformal",
    "BatchBald",
    "ClassDraws",
    "ClassUncertainty",
    "ConformalQuantile",
    "Detection",
    "Estimate",
    "LogitScaling",
    "RegressionDraws",
    "RegressionUncertainty",
    "ReliabilityDiagram",
    "SelectiveRisk",
    "SelectiveThreshold",
    "TopLabel",
    "UncertaintyParts",
    "adaptive_conformal",
    "add_class_draw",
    "add_regression_draw",
    "area_under_risk_coverage",
    "bald",
    "batch_bald",
    "compare_detectors",
    "conformal_quantile",
    "corrected_ece",
    "coverage_law",
    "cumulative_score",
    "cumulative_set",
    "decompose_classes",
    "decompose_regression",
    "detection",
    "fit_temperature",
    "fit_vector_scaling",
    "free_energy",
    "gaussian_nll",
    "image_score",
    "lack_of_confidence",
    "laplace_nll",
    "pixel_quantile",
    "predictive_entropy",
    "quantile_interval",
    "quantile_score",
    "random_batch",
    "reliability_diagram",
    "residual_interval",
    "residual_score",
    "risk_upper_bound",
    "sampled_logit_nll",
    "sampled_logit_prob",
    "scale_logits",
    "scene_loss",
    "scene_network",
    "threshold_for_coverage",
    "threshold_for_risk",
    "threshold_score",
    "threshold_set",
    "top_batch",
    "top_label",
]
