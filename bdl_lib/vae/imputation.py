r"""Missing pixels, drawn given the pixels that were seen.

To *learn* from images with holes, see ``is_observed`` of :func:`bdl_lib.vae.fit`.

Chapter: book/11-beyond-the-elbo.ipynb
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.vae._checks import check_at_least
from bdl_lib.vae.elbo import check_images, log_prior
from bdl_lib.vae.model import Vae

__all__ = ["Imputations", "impute"]


class Imputations(NamedTuple):
    """Images with their holes filled in.

    Book: sec-imputation
    """

    draws: Float[Tensor, "chains n height width"]  # where each chain ended; seen pixels as they were
    mean: Float[Tensor, "n height width"]  # over chains and the second half of the steps, of E[x | z] where missing
    acceptance_rate: Float[Tensor, " n"]  # of the Metropolis steps; 1 if there were none


@torch.no_grad()
def impute(
    model: Vae,
    images: Float[Tensor, "n height width"],
    is_missing: Bool[Tensor, "n height width"],
    *,
    num_steps: int = 200,
    num_pseudo_steps: int = 20,
    num_chains: int = 4,
    generator: torch.Generator,
    condition: Float[Tensor, "n condition_dim"] | None = None,
) -> Imputations:
    r"""Draw the missing pixels of each image from their distribution given the others.

    A chain goes to and fro between latent and missing pixels:

    .. math:: \tilde z \sim q_\phi(z \mid x_o, x_m), \qquad x_m \sim p_\theta(x_m \mid z)

    With every :math:`\tilde z` taken, this is pseudo-Gibbs sampling, which ends in another distribution than
    :math:`p_\theta(x_m \mid x_o)`, since the encoder is not the posterior. Metropolis within Gibbs takes it with
    probability

    .. math:: \min\Big\{1,\; \frac{p_\theta(x_o, x_m \mid \tilde z)\, p(\tilde z)}{p_\theta(x_o, x_m \mid z)\, p(z)}
              \cdot \frac{q_\phi(z \mid x_o, x_m)}{q_\phi(\tilde z \mid x_o, x_m)}\Big\}

    and keeps z otherwise, which leaves :math:`p_\theta(z, x_m \mid x_o)` exactly as it is. Some steps of the first kind
    bring the chains near, the rest are of the second. Chains start from the prior.

    Args:
        model: a :class:`bdl_lib.vae.Vae`.
        images: x; what stands at missing pixels is ignored and may be NaN.
        is_missing: True where a pixel is missing.
        num_steps: in all, at least 1.
        num_pseudo_steps: how many of them, the first ones, take every proposal; from 0 to ``num_steps``.
        num_chains: for each image, at least 1.
        generator: draws latents and pixels.
        condition: one row an image, if the model takes one.

    Returns:
        :class:`bdl_lib.vae.Imputations`. A low acceptance rate says that the chains have moved little: take more steps.
        A chain can also be stuck in one part of the latent space: take several, and see whether they differ.

    Raises:
        ValueError: if a number is out of its range, the mask has another shape than the images, or seen pixels or
            condition do not fit the model.

    Source: Rezende, Mohamed and Wierstra (2014), arXiv:1401.4082 (pseudo-Gibbs); Mattei and Frellsen (2018), Leveraging
        the Exact Likelihood of Deep Latent Variable Models, arXiv:1802.04826 (Metropolis within Gibbs); how it can get
        stuck: Simkus and Gutmann (2023), Conditional Sampling of Variational Autoencoders via Iterated Approximate
        Ancestral Sampling, Transactions on Machine Learning Research.
    Book: sec-imputation
    """
    _check(model, images, is_missing, num_steps, num_pseudo_steps, num_chains, condition)
    holes, rows = is_missing.repeat(num_chains, 1, 1), images.repeat(num_chains, 1, 1)
    condition = None if condition is None else condition.repeat(num_chains, 1)
    chains = _start(model, rows, holes, condition, generator)
    total, rate = torch.zeros_like(images), images.new_zeros(len(images))
    for step in range(num_steps):
        is_corrected = step >= num_pseudo_steps
        chains, acceptance_rate = _step(model, chains, holes, condition, is_corrected, generator)
        if step >= num_steps // 2:
            total += model.likelihood.mean(chains.outputs).unflatten(0, (num_chains, -1)).mean(0)
        rate += acceptance_rate.unflatten(0, (num_chains, -1)).mean(0) if is_corrected else 0.0
    mean = torch.where(is_missing, total / (num_steps - num_steps // 2), images)
    num_corrected = num_steps - num_pseudo_steps
    rate = rate / num_corrected if num_corrected else torch.ones_like(rate)
    return Imputations(chains.images.unflatten(0, (num_chains, -1)), mean, rate)


class _Chains(NamedTuple):
    """One row a chain of an image."""

    images: Float[Tensor, "rows height width"]  # completed
    latents: Float[Tensor, "rows latent_dim"]
    outputs: Float[Tensor, "rows num_params height width"]  # the decoder's, of the latents


def _start(model: Vae, images: Tensor, is_missing: Tensor, condition: Tensor | None, generator) -> _Chains:
    """Latents from the prior, missing pixels from the decoder."""
    like = {"dtype": images.dtype, "device": images.device}
    latents = torch.randn(len(images), model.latent_dim, generator=generator, **like)
    outputs = model.decode(latents, condition)
    return _Chains(_fill(model, outputs, images, is_missing, generator), latents, outputs)


def _step(
    model: Vae, chains: _Chains, is_missing: Tensor, condition: Tensor | None, is_corrected: bool, generator
) -> tuple[_Chains, Float[Tensor, " rows"]]:
    """A new latent, perhaps, and new pixels given it; with which probability the latent was taken."""
    q = model.encode(chains.images, condition)
    latents = q.rsample(1, generator=generator)[0]
    outputs = model.decode(latents, condition)
    acceptance_rate = torch.ones_like(latents[:, 0])
    if is_corrected:
        log_w, log_w_there = (
            model.likelihood.log_prob(out, chains.images) + log_prior(z) - q.log_prob(z)
            for z, out in ((chains.latents, chains.outputs), (latents, outputs))
        )
        acceptance_rate = (log_w_there - log_w).clamp(max=0).exp().nan_to_num(nan=0.0)
        is_kept = torch.rand(acceptance_rate.shape, generator=generator, **_like(latents)) >= acceptance_rate
        latents = torch.where(is_kept[:, None], chains.latents, latents)
        outputs = torch.where(is_kept[:, None, None, None], chains.outputs, outputs)
    images = _fill(model, outputs, chains.images, is_missing, generator)
    return _Chains(images, latents, outputs), acceptance_rate


def _fill(model: Vae, outputs: Tensor, images: Tensor, is_missing: Tensor, generator: torch.Generator) -> Tensor:
    return torch.where(is_missing, model.likelihood.sample(outputs, generator=generator), images)


def _like(values: Tensor) -> dict:
    return {"dtype": values.dtype, "device": values.device}


def _check(model, images, is_missing, num_steps, num_pseudo_steps, num_chains, condition) -> None:
    check_at_least("num_steps", num_steps, 1)
    check_at_least("num_chains", num_chains, 1)
    if not 0 <= num_pseudo_steps <= num_steps:
        raise ValueError(f"num_pseudo_steps must be from 0 to num_steps = {num_steps}, got {num_pseudo_steps}")
    if is_missing.shape != images.shape:
        raise ValueError(f"is_missing must be {list(images.shape)}, as the images, got {list(is_missing.shape)}")
    check_images(model, images, condition, ~is_missing)
