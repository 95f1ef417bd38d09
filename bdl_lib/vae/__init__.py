"""Autoencoders and variational autoencoders, and what there is beyond their bound.

One file an idea: ``networks`` has encoders and decoders, ``autoencoder`` and ``principal_components`` what they make
without a prior. ``likelihoods`` are the densities of a pixel, ``model`` puts prior, decoder and encoder together,
``elbo`` is the bound, term by term, ``fit`` raises it, ``generate`` draws images, ``ppca`` is the linear case, solved.
Beyond the bound: ``importance``, ``annealing`` and ``quadrature`` for log p(x), ``gaps`` and ``diagnostics`` for what
the bound hides, ``imputation`` for missing pixels, ``bayesian_decoder`` for uncertain weights.

Chapter: book/10-vae.ipynb
"""

from bdl_lib.vae.annealing import annealed_log_evidence, image_log_likelihood, latent_prior
from bdl_lib.vae.autoencoder import (
    Autoencoder,
    AutoencoderFit,
    conv_autoencoder,
    fit_autoencoder,
    linear_autoencoder,
    mlp_autoencoder,
    reconstruction_error,
)
from bdl_lib.vae.bayesian_decoder import DecoderPasses, decode_passes, decoder_log_evidence, stochastic_decoder
from bdl_lib.vae.diagnostics import ActiveUnits, MutualInformation, active_units, mutual_information
from bdl_lib.vae.elbo import ElboTerms, elbo, gaussian_kl
from bdl_lib.vae.fit import VaeFit, VaeHistory, fit
from bdl_lib.vae.gaps import Gaps, inference_gaps
from bdl_lib.vae.generate import interpolate, latent_grid, reconstruct, sample_posterior, sample_prior, traverse
from bdl_lib.vae.importance import ImageEvidence, importance_weighted_bound, log_evidence
from bdl_lib.vae.imputation import Imputations, impute
from bdl_lib.vae.likelihoods import (
    PixelLikelihood,
    bernoulli,
    continuous_bernoulli,
    discretised_logistic,
    gaussian,
)
from bdl_lib.vae.model import LatentGaussian, Vae, conv_vae, mlp_vae
from bdl_lib.vae.networks import Decoder, Encoder, conv_decoder, conv_encoder, mlp_decoder, mlp_encoder
from bdl_lib.vae.ppca import Ppca, probabilistic_pca
from bdl_lib.vae.principal_components import (
    PrincipalComponents,
    fit_linear_autoencoder,
    principal_angles,
    principal_components,
)
from bdl_lib.vae.quadrature import exact_log_evidence

__all__ = [
    "ActiveUnits",
    "Autoencoder",
    "AutoencoderFit",
    "Decoder",
    "DecoderPasses",
    "ElboTerms",
    "Encoder",
    "Gaps",
    "ImageEvidence",
    "Imputations",
    "LatentGaussian",
    "MutualInformation",
    "PixelLikelihood",
    "Ppca",
    "PrincipalComponents",
    "Vae",
    "VaeFit",
    "VaeHistory",
    "active_units",
    "annealed_log_evidence",
    "bernoulli",
    "continuous_bernoulli",
    "conv_autoencoder",
    "conv_decoder",
    "conv_encoder",
    "conv_vae",
    "decode_passes",
    "decoder_log_evidence",
    "discretised_logistic",
    "elbo",
    "exact_log_evidence",
    "fit",
    "fit_autoencoder",
    "fit_linear_autoencoder",
    "gaussian",
    "gaussian_kl",
    "image_log_likelihood",
    "importance_weighted_bound",
    "impute",
    "inference_gaps",
    "interpolate",
    "latent_grid",
    "latent_prior",
    "linear_autoencoder",
    "log_evidence",
    "mlp_autoencoder",
    "mlp_decoder",
    "mlp_encoder",
    "mlp_vae",
    "mutual_information",
    "principal_angles",
    "principal_components",
    "probabilistic_pca",
    "reconstruct",
    "reconstruction_error",
    "sample_posterior",
    "sample_prior",
    "stochastic_decoder",
    "traverse",
]
