"""Dropout as approximate inference, and the other cheap posteriors over a network's weights.

One file an idea: ``layers`` drop at random, with masks that come from the call; ``convert`` makes them of PyTorch's
own; ``passes`` runs many passes as one batch, and ``sharing`` computes once what they have in common; ``masks`` fixes
masks, and enumerates them.

Chapter: book/07-dropout.ipynb
"""

from bdl_lib.dropout.concrete import ConcreteDropout, concrete_regulariser
from bdl_lib.dropout.convert import convert, dropconnect
from bdl_lib.dropout.ensemble import Ensemble, fit_ensemble, predict_ensemble
from bdl_lib.dropout.fit import DropoutFit, fit
from bdl_lib.dropout.laplace import LastLayerLaplace, last_layer_laplace
from bdl_lib.dropout.laplace_predict import (
    OutputMoments,
    draw_last_layer,
    last_layer_moments,
    predict_last_layer_classes,
    predict_last_layer_regression,
    probit_class_prob,
)
from bdl_lib.dropout.layers import (
    ChannelDropout,
    DropConnect,
    Dropout,
    StochasticLayer,
    drawing,
    stochastic_layers,
)
from bdl_lib.dropout.masks import AllMasks, all_masks, apply_masks, draw_masks
from bdl_lib.dropout.objective import DropoutKl, dropout_kl, length_scale_of, noise_prec_of, weight_decay_of
from bdl_lib.dropout.passes import draw_passes, iterate_passes
from bdl_lib.dropout.predict import (
    McClasses,
    McLogLikelihood,
    McRegression,
    RunningMean,
    log_likelihood,
    predict_classes,
    predict_regression,
)
from bdl_lib.dropout.sharing import SharedModel, share
from bdl_lib.dropout.swag import Swag, fit_swag, predict_swag, sample_swag

__all__ = [
    "AllMasks",
    "ChannelDropout",
    "ConcreteDropout",
    "DropConnect",
    "Dropout",
    "DropoutFit",
    "DropoutKl",
    "Ensemble",
    "LastLayerLaplace",
    "McClasses",
    "McLogLikelihood",
    "McRegression",
    "OutputMoments",
    "RunningMean",
    "SharedModel",
    "StochasticLayer",
    "Swag",
    "all_masks",
    "apply_masks",
    "concrete_regulariser",
    "convert",
    "draw_last_layer",
    "draw_masks",
    "draw_passes",
    "drawing",
    "dropconnect",
    "dropout_kl",
    "fit",
    "fit_ensemble",
    "fit_swag",
    "iterate_passes",
    "last_layer_laplace",
    "last_layer_moments",
    "length_scale_of",
    "log_likelihood",
    "noise_prec_of",
    "predict_classes",
    "predict_ensemble",
    "predict_last_layer_classes",
    "predict_last_layer_regression",
    "predict_regression",
    "predict_swag",
    "probit_class_prob",
    "sample_swag",
    "share",
    "stochastic_layers",
    "weight_decay_of",
]
