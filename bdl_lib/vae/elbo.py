r"""The evidence lower bound of an image, term by term.

Chapter: book/10-vae.ipynb
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.vae._checks import check_at_least, check_condition, check_image_shape, check_observed
from bdl_lib.vae.likelihoods import seen
from bdl_lib.vae.model import LatentGaussian, Vae

__all__ = ["ElboTerms", "elbo", "gaussian_kl"]


class ElboTerms(NamedTuple):
    """The bound's two terms for each image, in nats; the bound is their difference.

    Book: sec-vae-loss
    """

    reconstruction: Float[Tensor, " n"]  # E_q[log p(x | z)], summed over pixels
    kl: Float[Tensor, " n"]  # KL(q(z | x) ‖ p(z)), summed over the latent's dimensions

    @property
    def value(self) -> Float[Tensor, " n"]:
        """The bound: reconstruction − kl."""
        return self.reconstruction - self.kl


def gaussian_kl(
    loc: Float[Tensor, "*batch latent_dim"], log_var: Float[Tensor, "*batch latent_dim"]
) -> Float[Tensor, "*batch latent_dim"]:
    r"""The divergence of a Gaussian from the standard one, for each dimension.

    .. math:: \mathrm{KL}\big(N(\mu, \sigma^2) \,\|\, N(0, 1)\big) = \tfrac12 \big(\mu^2 + \sigma^2 - 1
              - \log \sigma^2\big)

    Args:
        loc: μ.
        log_var: log σ².

    Returns:
        Nats, none negative. The divergence of the whole latent is the **sum** over its dimensions.

    Source: Kingma and Welling (2014), arXiv:1312.6114, appendix B.
    Book: sec-gaussian-kl
    """
    return 0.5 * (loc.square() + log_var.exp() - 1 - log_var)


def elbo(
    model: Vae,
    images: Float[Tensor, "n height width"],
    *,
    num_samples: int = 1,
    generator: torch.Generator,
    condition: Float[Tensor, "n condition_dim"] | None = None,
    is_kl_sampled: bool = False,
    is_observed: Bool[Tensor, "n height width"] | None = None,
) -> ElboTerms:
    r"""A lower bound on the log density of each image, with gradients in the model's parameters.

    .. math:: \log p_\theta(x) \ge \mathrm{E}_{q_\phi(z \mid x)}\big[\log p_\theta(x \mid z)\big]
              - \mathrm{KL}\big(q_\phi(z \mid x) \,\|\, p(z)\big)

    The expectation is an average over draws :math:`z = \mu + \sigma \odot \varepsilon`, through which gradients flow.

    Args:
        model: a :class:`bdl_lib.vae.Vae`.
        images: x, with pixels that the likelihood allows.
        num_samples: draws of z for each image, at least 1.
        generator: draws ε.
        condition: one row an image, if the model takes one.
        is_kl_sampled: True averages log q(z | x) − log p(z) over the same draws, instead of the closed form: the same
            in expectation.
        is_observed: True where a pixel was seen. The bound is then on the density of the seen pixels; the encoder sees
            zeros elsewhere.

    Returns:
        :class:`ElboTerms`, in nats an image.

    Raises:
        ValueError: if the images have another shape or impossible pixels, ``num_samples`` is below 1, or the condition
            does not fit the model.

    Source: Kingma and Welling (2014), arXiv:1312.6114.
    Book: sec-vae-loss
    """
    check_images(model, images, condition, is_observed)
    check_at_least("num_samples", num_samples, 1)
    q = model.encode(seen(images, is_observed), condition)
    latents = q.rsample(num_samples, generator=generator)
    reconstruction = model.likelihood.log_prob(model.decode(latents, condition), images, is_observed).mean(0)
    kl = (q.log_prob(latents) - log_prior(latents)).mean(0) if is_kl_sampled else gaussian_kl(*q).sum(-1)
    return ElboTerms(reconstruction, kl)


def check_images(
    model: Vae, images: Tensor, condition: Tensor | None, is_observed: Tensor | None, name: str = "images"
) -> None:
    """Raise ``ValueError`` unless the model can be asked about these images."""
    check_image_shape(images, model.image_shape, name)
    check_condition(condition, len(images), model.condition_dim)
    check_observed(is_observed, images)
    model.likelihood.check_images(seen(images, is_observed), name)


def check_image(model: Vae, image: Tensor, condition: Tensor | None) -> None:
    """Raise ``ValueError`` unless the model can be asked about this one image."""
    if tuple(image.shape) != model.image_shape:
        raise ValueError(f"image must be {list(model.image_shape)}, got {list(image.shape)}")
    check_images(model, image[None], None if condition is None else condition[None], None, "image")


def log_prior(latents: Tensor) -> Tensor:
    """Log density of the standard Gaussian, summed over the last axis, in nats."""
    zeros = torch.zeros_like(latents[0])
    return LatentGaussian(zeros, zeros).log_prob(latents)
