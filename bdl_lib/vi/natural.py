r"""Natural gradients for Gaussian families: Newton's method on the bound, with the curvature averaged over q.

For a Gaussian q with mean m and covariance Σ, the bound's gradients are averages of the model's own derivatives
(theorems of Bonnet and Price). Set to zero, they say what the best Gaussian is:

.. math:: E_q[\nabla \log p(\theta)] = 0, \qquad \Sigma^{-1} = -E_q[\nabla^2 \log p(\theta)]

(for independent Gaussians, of the diagonal). A step estimates both averages from gradients alone, and moves there.

Chapter: book/05-vi.ipynb
"""

from math import e, log, pi
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.mcmc import Density
from bdl_lib.vi._checks import check_at_least
from bdl_lib.vi.families import FullRankGaussian, MeanFieldGaussian, standard_noise

__all__ = ["NaturalStep", "Survey", "matched_noise", "natural_step", "survey"]

Gaussian = FullRankGaussian | MeanFieldGaussian

_MAX_FACTOR = 4.0  # of a variance in one step, up or down
_MAX_MOVE = 2.0  # of the mean in one step, in standard deviations a coordinate (root mean square)
_MIN_CURVATURE = 0.05  # of a direction in which the mean moves: flatter ones are too noisy to trust


class Survey(NamedTuple):
    r"""What gradients at draws from q say about the density there, in the coordinates of the noise ε.

    Book: sec-fit
    """

    elbo: Float[Tensor, ""]  # nats
    slope: Float[Tensor, " dim"]  # a, which is zero for the best Gaussian
    curvature: Float[Tensor, "dim dim"]  # B, which is the identity for the best full-rank Gaussian
    noise: Float[Tensor, "samples dim"]  # ε
    is_finite: Bool[Tensor, " dim"]  # of which parameters all gradients were


class NaturalStep(NamedTuple):
    r"""Where a step leads.

    Book: sec-fit
    """

    family: Gaussian
    noise: Float[Tensor, "samples dim"]  # ε, turned so that each draw is the old one, moved and stretched
    kl: Float[Tensor, ""]  # nats; from here to where a full step would lead: how far there is to go


def survey(density: Density, family: Gaussian, noise: Float[Tensor, "samples dim"]) -> Survey:
    r"""The bound with its natural gradient, from one evaluation of the density's gradient at all draws.

    With :math:`\theta_i = m + L\epsilon_i` and :math:`g_i = \nabla \log p(\theta_i)`, Stein's identity gives

    .. math:: a = \frac1N \sum_i L^\top g_i \to L^\top E_q[\nabla \log p], \qquad
              B = -\frac1N \sum_i L^\top g_i\, \epsilon_i^\top \to -L^\top E_q[\nabla^2 \log p]\, L

    Args:
        density: from :func:`bdl_lib.mcmc.differentiable`.
        family: q.
        noise: ε, from :func:`matched_noise`, with which a Gaussian density gives a and B without error.

    Returns:
        A :class:`Survey`.

    Source: Opper and Archambeau (2009), doi:10.1162/neco.2008.08-07-592.
    Book: sec-fit
    """
    is_full = isinstance(family, FullRankGaussian)
    scale = family.scale_tril.tril() if is_full else family.std
    log_prob, grad = density.value_and_grad(family.loc + (noise @ scale.mT if is_full else noise * scale))
    white = grad @ scale if is_full else grad * scale
    curvature = -(white.mT @ noise) / len(noise)
    log_volume = (scale.diagonal().abs() if is_full else scale).log().sum()
    entropy = log_volume + 0.5 * family.dim * log(2 * pi * e)
    return Survey(
        log_prob.mean() + entropy, white.mean(0), 0.5 * (curvature + curvature.mT), noise, grad.isfinite().all(0)
    )


def natural_step(family: Gaussian, there: Survey, *, step_size: float = 1.0) -> NaturalStep:
    r"""Move towards the best Gaussian: all the way, or a share of it.

    .. math:: \Sigma^{-1} \leftarrow L^{-\top} \big(I + \rho (B - I)\big) L^{-1}, \qquad
              m \leftarrow m + \rho\, L B^{-1} a

    For independent Gaussians, B is replaced by its diagonal in the first of the two. No variance changes by more than a
    factor of 4 in a step, and the mean moves by two standard deviations at most.

    Args:
        family: q.
        there: its :func:`survey`.
        step_size: ρ in (0, 1]; 1 goes all the way.

    Returns:
        A :class:`NaturalStep`; its ``kl`` is the Kullback–Leibler divergence between the two Gaussians up to third
        order.

    Raises:
        ValueError: if ``step_size`` is not in (0, 1].

    Source: Khan and Rue (2023), The Bayesian Learning Rule, JMLR 24(281), section 4.
    Book: sec-fit
    """
    if not 0 < step_size <= 1:
        raise ValueError(f"step_size must be in (0, 1], got {step_size}")
    curvature, vectors = torch.linalg.eigh(there.curvature)
    move = vectors @ ((vectors.mT @ there.slope) / curvature.abs().clamp(min=_MIN_CURVATURE))
    move = move * (_MAX_MOVE * family.dim**0.5 / move.norm()).clamp(max=1)
    is_full = isinstance(family, FullRankGaussian)
    scale = family.scale_tril.tril() if is_full else family.std
    loc = family.loc + step_size * (scale @ move if is_full else scale * move)
    prec = (curvature if is_full else there.curvature.diagonal()).clamp(1 / _MAX_FACTOR, _MAX_FACTOR)
    kl = 0.5 * (prec - 1 - prec.log()).sum() + 0.5 * (there.slope @ move).abs()
    shrink = (1 + step_size * (prec - 1)).rsqrt()
    if not is_full:
        return NaturalStep(MeanFieldGaussian(loc, family.log_std + shrink.log()), there.noise, kl)
    stretched = scale @ (vectors * shrink) @ vectors.mT
    turned, upper = torch.linalg.qr(stretched.mT)
    return NaturalStep(FullRankGaussian(loc, upper.mT), there.noise @ turned, kl)


def matched_noise(like: Float[Tensor, " dim"], num_samples: int, generator: torch.Generator) -> Float[Tensor, "n dim"]:
    r"""Standard normal draws, shifted and turned so that their mean is 0 and their covariance I, to the last digit.

    Args:
        like: gives the dimension, the dtype and the device.
        num_samples: more than dim + 1.
        generator: the only source of randomness.

    Returns:
        The draws. Averages over them of quadratic functions are exact; of others, nearly unbiased.

    Raises:
        ValueError: if ``num_samples`` is not more than dim + 1.

    Source: moment matching, as in Glasserman (2003), Monte Carlo Methods in Financial Engineering, section 4.5.
    Book: sec-fit
    """
    check_at_least("num_samples", num_samples, len(like) + 2)
    noise = standard_noise(like, num_samples, len(like), generator)
    noise = noise - noise.mean(0)
    cholesky = torch.linalg.cholesky(noise.mT @ noise / num_samples)
    return torch.linalg.solve_triangular(cholesky, noise.mT, upper=False).mT
