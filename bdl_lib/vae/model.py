r"""The variational autoencoder: a prior over latents, a decoder that makes images of them, an encoder that goes back.

Chapter: book/10-vae.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bdl_lib.vae._checks import check_at_least, check_condition, check_image_shape, check_latent_dim, check_latents
from bdl_lib.vae.likelihoods import PixelLikelihood, bernoulli
from bdl_lib.vae.networks import conv_decoder, conv_encoder, mlp_decoder, mlp_encoder

__all__ = ["LatentGaussian", "Vae", "conv_vae", "mlp_vae"]

_INITIAL_LOG_VAR = -3.0  # of pixels in [0, 1] around their means: a standard deviation of 0.22


class LatentGaussian(NamedTuple):
    r"""The encoder's answer for each image: a Gaussian with diagonal covariance.

    .. math:: q_\phi(z \mid x) = \prod_d N\big(z_d;\, \mu_d(x),\, \sigma_d^2(x)\big)

    Book: sec-vae-encoder
    """

    loc: Float[Tensor, "n latent_dim"]  # μ
    log_var: Float[Tensor, "n latent_dim"]  # log σ²: its half is log σ

    @property
    def std(self) -> Float[Tensor, "n latent_dim"]:
        """Standard deviation σ."""
        return (0.5 * self.log_var).exp()

    def rsample(self, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples n latent_dim"]:
        """Draws for each image, as a differentiable function of loc and log_var."""
        check_at_least("num_samples", num_samples, 1)
        like = {"dtype": self.loc.dtype, "device": self.loc.device}
        return self.loc + self.std * torch.randn(num_samples, *self.loc.shape, generator=generator, **like)

    def log_prob(self, latents: Float[Tensor, "*samples n latent_dim"]) -> Float[Tensor, "*samples n"]:
        """Log density in nats, summed over the latent's dimensions."""
        squares = (latents - self.loc).square() * (-self.log_var).exp()
        return -0.5 * (math.log(2 * math.pi) + self.log_var + squares).sum(-1)


class Vae(nn.Module):
    r"""A generative model of images, with the encoder that infers its latents.

    .. math:: p(z) = N(0, I), \qquad p_\theta(x \mid z) = \prod_j p\big(x_j \mid f_\theta(z)_j\big), \qquad
              q_\phi(z \mid x) = N\big(\mu_\phi(x), \operatorname{diag} \sigma_\phi^2(x)\big)

    With a condition c, the decoder is :math:`p_\theta(x \mid z, c)` and the encoder :math:`q_\phi(z \mid x, c)`; the
    prior stays as it is.

    Args:
        encoder: images [n, height, width], and a condition or None, to [n, 2 latent_dim]: first μ, then log σ².
        decoder: latents [n, latent_dim], and a condition or None, to [n, num_params, height, width].
        likelihood: what the decoder's planes say about a pixel.
        latent_dim: at least 1.
        image_shape: height and width.
        condition_dim: how many numbers a condition has; 0 for none.

    Raises:
        ValueError: if ``latent_dim`` is below 1, or a later call gets images, latents or a condition of another shape.

    Source: Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114; Rezende, Mohamed and Wierstra
        (2014), arXiv:1401.4082; with a condition, Sohn, Lee and Yan (2015), Learning Structured Output Representation
        using Deep Conditional Generative Models.
    Book: sec-generative-model
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: PixelLikelihood,
        *,
        latent_dim: int,
        image_shape: tuple[int, int] = (28, 28),
        condition_dim: int = 0,
    ):
        check_latent_dim(latent_dim)
        super().__init__()
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood
        self.latent_dim, self.image_shape, self.condition_dim = latent_dim, tuple(image_shape), condition_dim

    def encode(
        self, images: Float[Tensor, "n height width"], condition: Float[Tensor, "n condition_dim"] | None = None
    ) -> LatentGaussian:
        """The Gaussian q(z | x) of each image."""
        check_image_shape(images, self.image_shape)
        check_condition(condition, len(images), self.condition_dim)
        outputs = self.encoder(images) if condition is None else self.encoder(images, condition)
        return LatentGaussian(*outputs.chunk(2, dim=-1))

    def decode(
        self,
        latents: Float[Tensor, "*samples n latent_dim"],
        condition: Float[Tensor, "n condition_dim"] | None = None,
    ) -> Float[Tensor, "*samples n num_params height width"]:
        """What the likelihood needs for each pixel; axes of samples share the condition."""
        check_latents(latents, self.latent_dim)
        check_condition(condition, latents.shape[-2], self.condition_dim)
        rows = latents.flatten(0, -2)
        if condition is None:
            outputs = self.decoder(rows)
        else:
            outputs = self.decoder(rows, condition.expand(*latents.shape[:-1], -1).flatten(0, -2))
        return outputs.unflatten(0, latents.shape[:-1])


def mlp_vae(
    latent_dim: int,
    *,
    image_shape: tuple[int, int] = (28, 28),
    hidden: tuple[int, ...] = (256, 256),
    likelihood: PixelLikelihood | None = None,
    condition_dim: int = 0,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> Vae:
    r"""A variational autoencoder of two perceptrons.

    Args:
        latent_dim: dimensions of z, at least 1.
        image_shape: height and width.
        hidden: widths of the encoder's hidden layers; the decoder has them backwards. () makes both linear.
        likelihood: of the pixels; :func:`bdl_lib.vae.bernoulli` if not given.
        condition_dim: how many numbers a condition has; 0 for none.
        generator: draws the initial weights; the model is on its device.
        dtype: of the weights, PyTorch's default dtype if not given.

    Returns:
        A :class:`Vae`.

    Raises:
        ValueError: if a size is below 1.

    Book: sec-vae-encoder
    """
    likelihood = likelihood or bernoulli()
    shared = {"image_shape": image_shape, "condition_dim": condition_dim, "generator": generator, "dtype": dtype}
    check_latent_dim(latent_dim)
    encoder = mlp_encoder(2 * latent_dim, hidden=hidden, **shared)
    decoder = mlp_decoder(latent_dim, hidden=hidden[::-1], **_planes(likelihood), **shared)
    return _vae(encoder, decoder, likelihood, latent_dim, image_shape, condition_dim)


def conv_vae(
    latent_dim: int,
    *,
    image_shape: tuple[int, int] = (28, 28),
    channels: tuple[int, ...] = (16, 32),
    hidden: tuple[int, ...] = (),
    likelihood: PixelLikelihood | None = None,
    condition_dim: int = 0,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> Vae:
    r"""A variational autoencoder of convolutions down and transposed convolutions up.

    Args:
        latent_dim: dimensions of z, at least 1.
        image_shape: height and width, both divisible by 2 to the number of convolutions.
        channels: of the encoder's convolutions; the decoder has them backwards.
        hidden: widths of the encoder's hidden layers after the convolutions; the decoder has them backwards.
        likelihood: of the pixels; :func:`bdl_lib.vae.bernoulli` if not given.
        condition_dim: how many numbers a condition has; 0 for none.
        generator: draws the initial weights; the model is on its device.
        dtype: of the weights, PyTorch's default dtype if not given.

    Returns:
        A :class:`Vae`.

    Raises:
        ValueError: if a size is below 1, or the image cannot be halved so often.

    Book: sec-vae-encoder
    """
    likelihood = likelihood or bernoulli()
    shared = {"image_shape": image_shape, "condition_dim": condition_dim, "generator": generator, "dtype": dtype}
    check_latent_dim(latent_dim)
    encoder = conv_encoder(2 * latent_dim, channels=channels, hidden=hidden, **shared)
    decoder = conv_decoder(latent_dim, channels=channels, hidden=hidden[::-1], **_planes(likelihood), **shared)
    return _vae(encoder, decoder, likelihood, latent_dim, image_shape, condition_dim)


def _planes(likelihood: PixelLikelihood) -> dict:
    """How many planes the decoder makes, and where a scale that all pixels share starts."""
    shares = likelihood.has_shared_scale
    return {"num_params": likelihood.num_params - shares, "initial_log_var": _INITIAL_LOG_VAR if shares else None}


def _vae(encoder, decoder, likelihood, latent_dim, image_shape, condition_dim) -> Vae:
    return Vae(
        encoder, decoder, likelihood, latent_dim=latent_dim, image_shape=image_shape, condition_dim=condition_dim
    )
