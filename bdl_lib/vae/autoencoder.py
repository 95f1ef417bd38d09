r"""Autoencoders: through a bottleneck and back, trained on how much is lost.

Chapter: book/09-autoencoders.ipynb
"""

import copy
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bdl_lib.dropout._training import show
from bdl_lib.vae._checks import (
    check_at_least,
    check_finite,
    check_image_shape,
    check_latent_dim,
    check_latents,
    check_positive,
)
from bdl_lib.vae.networks import conv_decoder, conv_encoder, mlp_decoder, mlp_encoder
from bdl_lib.vi import FailedFit

__all__ = [
    "Autoencoder",
    "AutoencoderFit",
    "conv_autoencoder",
    "fit_autoencoder",
    "linear_autoencoder",
    "mlp_autoencoder",
    "reconstruction_error",
]


class Autoencoder(nn.Module):
    r"""An encoder into a code of few numbers, and a decoder back.

    .. math:: z = f_\phi(x), \qquad \hat x = g_\theta(z)

    Args:
        encoder: images [n, height, width] to codes [n, latent_dim].
        decoder: codes [n, latent_dim] to one plane of pixels, [n, 1, height, width].
        latent_dim: length of the code, at least 1.
        image_shape: height and width.
        is_squashed: True sends the plane through the logistic function, so that pixels are from 0 to 1.

    Raises:
        ValueError: if ``latent_dim`` is below 1, or a later call gets images or codes of another shape.

    Source: Hinton and Salakhutdinov (2006), Reducing the Dimensionality of Data with Neural Networks,
        doi:10.1126/science.1127647.
    Book: sec-bottleneck
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_dim: int,
        image_shape: tuple[int, int] = (28, 28),
        is_squashed: bool = True,
    ):
        check_latent_dim(latent_dim)
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.latent_dim, self.image_shape, self.is_squashed = latent_dim, tuple(image_shape), is_squashed

    def encode(self, images: Float[Tensor, "n height width"]) -> Float[Tensor, "n latent_dim"]:
        """The code of each image."""
        check_image_shape(images, self.image_shape)
        return self.encoder(images)

    def decode(self, latents: Float[Tensor, "*samples n latent_dim"]) -> Float[Tensor, "*samples n height width"]:
        """The image of each code; further axes may come first."""
        check_latents(latents, self.latent_dim)
        pixels = self.decoder(latents.flatten(0, -2))[:, 0]
        pixels = pixels.sigmoid() if self.is_squashed else pixels
        return pixels.unflatten(0, latents.shape[:-1])

    def forward(self, images: Float[Tensor, "n height width"]) -> Float[Tensor, "n height width"]:
        """What the decoder makes of each image's code."""
        return self.decode(self.encode(images))


class AutoencoderFit(NamedTuple):
    """A trained autoencoder, and how its loss fell: squared errors, summed over pixels, mean over images.

    Book: sec-bottleneck
    """

    model: Autoencoder  # a copy, in evaluation mode
    loss_history: Float[Tensor, " epochs"]  # on the training images, as they passed
    validation_history: Float[Tensor, " epochs"] | None  # after the epoch, on the validation images if there are any


def linear_autoencoder(
    latent_dim: int,
    *,
    image_shape: tuple[int, int] = (28, 28),
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> Autoencoder:
    r"""An autoencoder of two linear layers, with nothing between them.

    .. math:: z = E x + a, \qquad \hat x = D z + b

    Args:
        latent_dim: length of the code, at least 1.
        image_shape: height and width.
        generator: draws the initial weights; the model is on its device.
        dtype: of the weights, PyTorch's default dtype if not given.

    Returns:
        An :class:`Autoencoder`; its pixels are not squashed.

    Raises:
        ValueError: if a size is below 1.

    Source: Bourlard and Kamp (1988), doi:10.1007/BF00332918; Baldi and Hornik (1989),
        doi:10.1016/0893-6080(89)90014-2.
    Book: sec-linear-autoencoder
    """
    check_latent_dim(latent_dim)
    shared = {"image_shape": image_shape, "hidden": (), "generator": generator, "dtype": dtype}
    encoder, decoder = mlp_encoder(latent_dim, **shared), mlp_decoder(latent_dim, **shared)
    return Autoencoder(encoder, decoder, latent_dim, image_shape, is_squashed=False)


def mlp_autoencoder(
    latent_dim: int,
    *,
    image_shape: tuple[int, int] = (28, 28),
    hidden: tuple[int, ...] = (256,),
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> Autoencoder:
    r"""An autoencoder of two perceptrons, the decoder with the encoder's hidden layers in reverse order.

    Args:
        latent_dim: length of the code, at least 1.
        image_shape: height and width.
        hidden: widths of the encoder's hidden layers, from the pixels on.
        generator: draws the initial weights; the model is on its device.
        dtype: of the weights, PyTorch's default dtype if not given.

    Returns:
        An :class:`Autoencoder` with pixels from 0 to 1.

    Raises:
        ValueError: if a size is below 1.

    Book: sec-bottleneck
    """
    check_latent_dim(latent_dim)
    shared = {"image_shape": image_shape, "generator": generator, "dtype": dtype}
    encoder = mlp_encoder(latent_dim, hidden=hidden, **shared)
    decoder = mlp_decoder(latent_dim, hidden=tuple(reversed(hidden)), **shared)
    return Autoencoder(encoder, decoder, latent_dim, image_shape)


def conv_autoencoder(
    latent_dim: int,
    *,
    image_shape: tuple[int, int] = (28, 28),
    channels: tuple[int, ...] = (16, 32),
    hidden: tuple[int, ...] = (),
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> Autoencoder:
    r"""An autoencoder that goes down by convolutions and up by transposed ones.

    Args:
        latent_dim: length of the code, at least 1.
        image_shape: height and width, both divisible by 2 to the number of convolutions.
        channels: of each convolution's output, at least one; the decoder goes through them backwards.
        hidden: widths of the dense layers between the last convolution and the code, and in reverse behind it.
        generator: draws the initial weights; the model is on its device.
        dtype: of the weights, PyTorch's default dtype if not given.

    Returns:
        An :class:`Autoencoder` with pixels from 0 to 1.

    Raises:
        ValueError: if a size is below 1, or the image cannot be halved so often.

    Book: sec-convolutions
    """
    check_latent_dim(latent_dim)
    shared = {"image_shape": image_shape, "channels": channels, "generator": generator, "dtype": dtype}
    encoder = conv_encoder(latent_dim, hidden=hidden, **shared)
    decoder = conv_decoder(latent_dim, hidden=tuple(reversed(hidden)), **shared)
    return Autoencoder(encoder, decoder, latent_dim, image_shape)


def reconstruction_error(
    images: Float[Tensor, "n height width"], reconstructions: Float[Tensor, "n height width"]
) -> Float[Tensor, " n"]:
    r"""What is lost of each image: the squared error, summed over its pixels.

    .. math:: \lVert x - \hat x \rVert^2 = \sum_j (x_j - \hat x_j)^2

    Args:
        images: x.
        reconstructions: :math:`\hat x`, in the same order.

    Returns:
        A number for each image, in squared units of a pixel.

    Raises:
        ValueError: if the two differ in shape.

    Book: sec-bottleneck
    """
    if images.shape != reconstructions.shape:
        got = f"{list(images.shape)} and {list(reconstructions.shape)}"
        raise ValueError(f"images and reconstructions must have one shape, got {got}")
    return (images - reconstructions).square().sum((-2, -1))


def fit_autoencoder(
    model: Autoencoder,
    images: Float[Tensor, "n height width"],
    *,
    validation_images: Float[Tensor, "validation height width"] | None = None,
    num_epochs: int = 10,
    batch_size: int = 50,
    lr: float = 4e-3,
    generator: torch.Generator,
    progress: bool = False,
) -> AutoencoderFit:
    r"""Train a copy of an autoencoder by Adam on minibatches.

    .. math:: \min_{\theta, \phi} \; \frac1N \sum_{i=1}^N \lVert x_i - g_\theta(f_\phi(x_i)) \rVert^2

    Every epoch goes once through all images, in a new order. The step size falls from ``lr`` to zero along half a
    cosine.

    Args:
        model: where to start; it stays as it is.
        images: x, finite.
        validation_images: others, whose error is noted after each epoch.
        num_epochs: how often to go through the images, at least 1.
        batch_size: at least 1; all images, if there are fewer. An epoch's last minibatch may be smaller.
        lr: Adam's first step size, positive.
        generator: draws the minibatches; on the device of the images.
        progress: True shows a bar.

    Returns:
        An :class:`AutoencoderFit`. The host waits for the device once an epoch.

    Raises:
        ValueError: if a setting is out of range, or the images do not fit the model or are not finite.
        FailedFit: if the loss or a weight is not finite after an epoch. It names the epoch, and its ``fit`` is an
            :class:`AutoencoderFit` from before it.

    Source: Kingma and Ba (2015), Adam, arXiv:1412.6980.
    Book: sec-bottleneck
    """
    check_at_least("num_epochs", num_epochs, 1)
    check_at_least("batch_size", batch_size, 1)
    check_positive("lr", lr)
    check_finite_images(model, images)
    if validation_images is not None:
        check_finite_images(model, validation_images, "validation_images")
    model, history = copy.deepcopy(model).train(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    num_steps, step = num_epochs * math.ceil(len(images) / batch_size), 0
    for epoch in show(range(num_epochs), "fit_autoencoder", progress):
        before, total = copy.deepcopy(model.state_dict()), images.new_zeros(())
        for rows in torch.randperm(len(images), generator=generator, device=images.device).split(batch_size):
            optimizer.param_groups[0]["lr"] = 0.5 * lr * (1 + math.cos(math.pi * step / num_steps))
            batch = images[rows]
            errors = reconstruction_error(batch, model(batch))
            optimizer.zero_grad()
            errors.mean().backward()
            optimizer.step()
            total, step = total + errors.detach().sum(), step + 1
        row = torch.stack([total / len(images), _mean_error(model, validation_images, total)])
        _check_finite(epoch, row, model, before, history, validation_images is not None)
        history.append(row)
    optimizer.zero_grad()
    return _record(model, history, validation_images is not None)


def check_finite_images(model: Autoencoder, images: Tensor, name: str = "images") -> None:
    """Raise ``ValueError`` unless these are finite images of the size that the model is made for."""
    check_image_shape(images, model.image_shape, name)
    check_finite(images, name)


@torch.no_grad()
def _mean_error(model: Autoencoder, images: Tensor | None, like: Tensor) -> Tensor:
    """The error on other images, 500 at a time; nothing if there are none."""
    if images is None:
        return torch.zeros_like(like)
    return torch.cat([reconstruction_error(part, model(part)) for part in images.split(500)]).mean()


def _record(model: Autoencoder, history: list[Tensor], has_validation: bool) -> AutoencoderFit:
    loss, validation = torch.stack(history, 1) if history else next(model.parameters()).new_empty(2, 0).detach()
    return AutoencoderFit(model.eval(), loss, validation if has_validation else None)


def _check_finite(epoch, row, model, before, history, has_validation) -> None:
    """Raise :class:`FailedFit` unless the loss and all parameters are finite; waits for the device once."""
    if torch.stack([row[0], *(parameter.detach().sum() for parameter in model.parameters())]).isfinite().all():
        return
    bad = ", ".join(name for name, parameter in model.named_parameters() if not parameter.isfinite().all())
    model.load_state_dict(before)
    what = f"the loss of epoch {epoch} is {row[0].item():.4g}; weights that are not finite: {bad or 'none yet'}"
    fit = _record(model, history, has_validation)
    raise FailedFit(f"{what}. Try a smaller lr; .fit has what was before it", fit=fit, step=epoch, parameter=bad)
