r"""What a network predicts whose last layer has a Gaussian posterior: in closed form, and from draws.

Chapter: book/07-dropout.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.dropout._checks import check_at_least
from bdl_lib.dropout.laplace import LastLayerLaplace
from bdl_lib.networks import ClassPredictive, RegressionPredictive, entropy_split, variance_split

__all__ = [
    "OutputMoments",
    "draw_last_layer",
    "last_layer_moments",
    "predict_last_layer_classes",
    "predict_last_layer_regression",
    "probit_class_prob",
]

_CHUNK = 2**22  # numbers in the largest intermediate result


class OutputMoments(NamedTuple):
    """The Gaussian that a network's outputs have, if the last layer has one and the noise is left out.

    Book: sec-cheap-posteriors
    """

    mean: Float[Tensor, "n outputs"]
    cov: Float[Tensor, "n outputs outputs"]


def last_layer_moments(posterior: LastLayerLaplace, inputs: Float[Tensor, "n *features"]) -> OutputMoments:
    r"""Mean and covariance of the outputs at each input, in closed form.

    .. math:: f(x) \sim N\big(\hat W \phi,\; J H^{-1} J^\top\big), \qquad J = I \otimes \phi^\top

    Args:
        posterior: from :func:`last_layer_laplace`.
        inputs: x, finite.

    Returns:
        :class:`OutputMoments`, in the units of the outputs and in those squared, without noise.

    Raises:
        ValueError: if there are no inputs, or they are not finite.

    Source: Daxberger et al. (2021), Laplace Redux, arXiv:2106.14806, section 2.
    Book: sec-cheap-posteriors
    """
    features = posterior.features(inputs)
    scale = posterior.scale.unflatten(0, posterior.loc.shape)
    rows = max(1, _CHUNK // (len(posterior.loc) * len(posterior.scale)))
    roots = (torch.einsum("nd,kdr->nkr", chunk, scale) for chunk in features.split(rows))
    return OutputMoments(features @ posterior.loc.mT, torch.cat([root @ root.mT for root in roots]))


def draw_last_layer(
    posterior: LastLayerLaplace,
    inputs: Float[Tensor, "n *features"],
    *,
    num_samples: int = 100,
    generator: torch.Generator,
) -> Float[Tensor, "num_samples n outputs"]:
    r"""Outputs under weights drawn from the posterior, one consistent function a draw.

    .. math:: f_s(x) = W_s \phi(x), \qquad W_s \sim N(\hat W, H^{-1})

    Args:
        posterior: from :func:`last_layer_laplace`.
        inputs: x, finite.
        num_samples: how many draws, at least 1.
        generator: the only source of randomness, on the device of the weights.

    Returns:
        One function a row.

    Raises:
        ValueError: if ``num_samples`` is below 1, there are no inputs, or they are not finite.

    Source: Daxberger et al. (2021), Laplace Redux, arXiv:2106.14806, section 2.
    Book: sec-cheap-posteriors
    """
    check_at_least("num_samples", num_samples, 1)
    features, scale = posterior.features(inputs), posterior.scale
    noise = torch.randn(num_samples, len(scale), generator=generator, dtype=scale.dtype, device=scale.device)
    weights = posterior.loc + (noise @ scale.mT).unflatten(1, posterior.loc.shape)
    return features @ weights.mT


def predict_last_layer_regression(
    posterior: LastLayerLaplace, inputs: Float[Tensor, "n *features"]
) -> RegressionPredictive:
    r"""Predictive mean and variance of a regression, in closed form.

    .. math:: y \mid x \sim N\big(\hat W \phi,\; \underbrace{\phi^\top H^{-1} \phi}_{\text{parameters}} +
              \underbrace{\sigma^2}_{\text{noise}}\big)

    Args:
        posterior: from :func:`last_layer_laplace` with a Gaussian likelihood.
        inputs: x, finite.

    Returns:
        :class:`bdl_lib.networks.RegressionPredictive`, in the units of the targets and in those squared.

    Raises:
        ValueError: if the likelihood is not Gaussian, there are no inputs, or they are not finite.

    Source: Bishop (2006), Pattern Recognition and Machine Learning, equations 3.58 and 3.59.
    Book: sec-cheap-posteriors
    """
    if posterior.likelihood.class_prob is not None:
        raise ValueError(f"likelihood must be Gaussian, got '{posterior.likelihood.description}'")
    moments = last_layer_moments(posterior, inputs)
    mean, noise_var = posterior.likelihood.moments(moments.mean[None])
    return variance_split(mean, noise_var)._replace(parameter_var=moments.cov[:, 0, 0])


def predict_last_layer_classes(
    posterior: LastLayerLaplace,
    inputs: Float[Tensor, "n *features"],
    *,
    num_samples: int = 1000,
    generator: torch.Generator,
) -> ClassPredictive:
    r"""Class probabilities averaged over draws of the last layer, and the split of their entropy.

    .. math:: p(c \mid x, \mathcal{D}) \approx \frac1S \sum_{s=1}^S p(c \mid W_s \phi), \qquad
              W_s \sim N(\hat W, H^{-1})

    Args:
        posterior: from :func:`last_layer_laplace` with a Bernoulli or categorical likelihood.
        inputs: x, finite.
        num_samples: S, at least 1.
        generator: the only source of randomness.

    Returns:
        :class:`bdl_lib.networks.ClassPredictive`; of the Bernoulli likelihood, the classes are 0 and 1.

    Raises:
        ValueError: if the likelihood has no classes, ``num_samples`` is below 1, there are no inputs, or they are not
            finite.

    Source: Daxberger et al. (2021), Laplace Redux, arXiv:2106.14806, section 2.
    Book: sec-cheap-posteriors
    """
    _check_classes(posterior)
    draws = draw_last_layer(posterior, inputs, num_samples=num_samples, generator=generator)
    prob = posterior.likelihood.class_prob(draws)
    return ClassPredictive(prob.mean(0), entropy_split(prob))


def probit_class_prob(posterior: LastLayerLaplace, inputs: Float[Tensor, "n *features"]) -> Float[Tensor, "n classes"]:
    r"""Class probabilities without draws: each logit shrunk by its variance.

    .. math:: p(c \mid x, \mathcal{D}) \approx \operatorname{softmax}\Big(\frac{m_c}{\sqrt{1 + \tfrac{\pi}{8} v_c}}\Big)

    m and v are means and variances of the logits. For two classes and one logit, the sigmoid takes the softmax's place,
    and the error is below 0.02. For more, it is a rule of thumb: it leaves out the covariances, and so takes a shift
    that all logits share, which changes no probability, for doubt.

    Args:
        posterior: from :func:`last_layer_laplace` with a Bernoulli or categorical likelihood.
        inputs: x, finite.

    Returns:
        Rows that sum to 1.

    Raises:
        ValueError: if the likelihood has no classes, there are no inputs, or they are not finite.

    Source: MacKay (1992), doi:10.1162/neco.1992.4.5.720; for a softmax, Daxberger et al. (2021), arXiv:2106.14806.
    Book: sec-cheap-posteriors
    """
    _check_classes(posterior)
    mean, cov = last_layer_moments(posterior, inputs)
    shrunk = mean / (1 + math.pi / 8 * cov.diagonal(dim1=1, dim2=2)).sqrt()
    return posterior.likelihood.class_prob(shrunk[None])[0]


def _check_classes(posterior: LastLayerLaplace) -> None:
    if posterior.likelihood.class_prob is None:
        raise ValueError(f"likelihood must have classes, '{posterior.likelihood.description}' has not")
