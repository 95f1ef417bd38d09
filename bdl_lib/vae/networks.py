r"""Encoders and decoders: perceptrons, and convolutions down to a code and transposed convolutions back up.

An encoder makes a vector of an image, a decoder makes planes of numbers of a latent vector, one plane for each
parameter of a pixel's density.

Chapter: book/09-autoencoders.ipynb
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bdl_lib.vae._checks import check_at_least, check_condition, check_latent_dim, check_shape, check_sizes

__all__ = ["Decoder", "Encoder", "conv_decoder", "conv_encoder", "mlp_decoder", "mlp_encoder"]

_KERNEL, _STRIDE, _PADDING = 4, 2, 1  # halve, or double, height and width exactly


class Encoder(nn.Module):
    r"""From images to vectors: ``features`` looks at the pixels, ``head`` also at the condition.

    Args:
        features: [n, height, width] to [n, num_features].
        head: [n, num_features + condition_dim] to [n, num_outputs].
        condition_dim: how many numbers a condition has; 0 for none.

    Book: sec-convolutions
    """

    def __init__(self, features: nn.Module, head: nn.Module, condition_dim: int = 0):
        super().__init__()
        self.features, self.head, self.condition_dim = features, head, condition_dim

    def forward(
        self, images: Float[Tensor, "n height width"], condition: Float[Tensor, "n condition_dim"] | None = None
    ) -> Float[Tensor, "n num_outputs"]:
        """A vector for each image."""
        check_condition(condition, len(images), self.condition_dim)
        return self.head(_with(self.features(images), condition))


class Decoder(nn.Module):
    r"""From latent vectors to planes of pixels: ``head`` looks at the latent and the condition, ``pixels`` draws.

    Args:
        head: [n, latent_dim + condition_dim] to [n, num_features].
        pixels: [n, num_features] to [n, planes, height, width].
        condition_dim: how many numbers a condition has; 0 for none.
        log_var: None, or one learned number that fills a last plane: the same log variance for all pixels.

    Book: sec-convolutions
    """

    def __init__(
        self, head: nn.Module, pixels: nn.Module, condition_dim: int = 0, log_var: Float[Tensor, ""] | None = None
    ):
        super().__init__()
        self.head, self.pixels, self.condition_dim = head, pixels, condition_dim
        self.log_var = None if log_var is None else nn.Parameter(log_var)

    def forward(
        self, latents: Float[Tensor, "n latent_dim"], condition: Float[Tensor, "n condition_dim"] | None = None
    ) -> Float[Tensor, "n num_params height width"]:
        """Planes of pixels for each latent vector."""
        check_condition(condition, len(latents), self.condition_dim)
        planes = self.pixels(self.head(_with(latents, condition)))
        if self.log_var is None:
            return planes
        return torch.cat([planes, self.log_var.expand(len(planes), 1, *planes.shape[2:])], 1)


def mlp_encoder(
    num_outputs: int,
    *,
    image_shape: tuple[int, int] = (28, 28),
    hidden: tuple[int, ...] = (256, 256),
    condition_dim: int = 0,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> Encoder:
    r"""A perceptron that looks at all pixels at once.

    Args:
        num_outputs: length of the vector that it makes of an image, at least 1.
        image_shape: height and width.
        hidden: widths of the hidden layers, from the pixels on, with ReLU between; () makes the encoder linear.
        condition_dim: how many numbers a condition has; 0 for none.
        generator: draws the initial weights; the network is on its device.
        dtype: of the weights, PyTorch's default dtype if not given.

    Returns:
        An :class:`Encoder`. Initial weights are Gaussian, scaled to keep the size of what passes, biases zero.

    Raises:
        ValueError: if a size is below 1.

    Source: He, Zhang, Ren and Sun (2015), Delving Deep into Rectifiers, arXiv:1502.01852 (initial weights).
    Book: sec-bottleneck
    """
    _check(num_outputs, image_shape, hidden, condition_dim)
    sizes = [math.prod(image_shape) + condition_dim, *hidden, num_outputs]
    return Encoder(nn.Flatten(), _mlp(sizes, generator, dtype), condition_dim)


def mlp_decoder(
    latent_dim: int,
    *,
    num_params: int = 1,
    image_shape: tuple[int, int] = (28, 28),
    hidden: tuple[int, ...] = (256, 256),
    condition_dim: int = 0,
    initial_log_var: float | None = None,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> Decoder:
    r"""A perceptron that makes all pixels at once.

    Args:
        latent_dim: length of the latent vector, at least 1.
        num_params: planes of pixels that the network makes, at least 1.
        image_shape: height and width.
        hidden: widths of the hidden layers, from the latent on; () makes the decoder linear.
        condition_dim: how many numbers a condition has; 0 for none.
        initial_log_var: if given, one learned log variance fills one more plane, and starts here.
        generator: draws the initial weights; the network is on its device.
        dtype: of the weights, PyTorch's default dtype if not given.

    Returns:
        A :class:`Decoder`.

    Raises:
        ValueError: if a size is below 1.

    Book: sec-bottleneck
    """
    check_latent_dim(latent_dim)
    _check(num_params, image_shape, hidden, condition_dim, "num_params")
    sizes = [latent_dim + condition_dim, *hidden, num_params * math.prod(image_shape)]
    pixels = nn.Unflatten(1, (num_params, *image_shape))
    return Decoder(_mlp(sizes, generator, dtype), pixels, condition_dim, _log_var(initial_log_var, generator, dtype))


def conv_encoder(
    num_outputs: int,
    *,
    image_shape: tuple[int, int] = (28, 28),
    channels: tuple[int, ...] = (16, 32),
    hidden: tuple[int, ...] = (),
    condition_dim: int = 0,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> Encoder:
    r"""Convolutions of stride 2, each of which halves height and width, then a perceptron.

    Args:
        num_outputs: length of the vector that it makes of an image, at least 1.
        image_shape: height and width, both divisible by 2 to the number of convolutions.
        channels: of each convolution's output, with 4×4 kernels and ReLU; at least one.
        hidden: widths of the hidden layers after the convolutions.
        condition_dim: how many numbers a condition has; it joins after the convolutions. 0 for none.
        generator: draws the initial weights; the network is on its device.
        dtype: of the weights, PyTorch's default dtype if not given.

    Returns:
        An :class:`Encoder`.

    Raises:
        ValueError: if a size is below 1, or the image cannot be halved so often.

    Book: sec-convolutions
    """
    _check(num_outputs, image_shape, hidden, condition_dim)
    small = _small_shape(image_shape, channels)
    layers = [nn.Unflatten(1, (1, image_shape[0]))]
    for fan_in, fan_out in pairwise([1, *channels]):
        layers += [_conv(nn.Conv2d, fan_in, fan_out, fan_in * _KERNEL**2, 2.0, generator, dtype), nn.ReLU()]
    sizes = [channels[-1] * math.prod(small) + condition_dim, *hidden, num_outputs]
    return Encoder(nn.Sequential(*layers, nn.Flatten()), _mlp(sizes, generator, dtype), condition_dim)


def conv_decoder(
    latent_dim: int,
    *,
    num_params: int = 1,
    image_shape: tuple[int, int] = (28, 28),
    channels: tuple[int, ...] = (16, 32),
    hidden: tuple[int, ...] = (),
    condition_dim: int = 0,
    initial_log_var: float | None = None,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
) -> Decoder:
    r"""A perceptron to small planes, then transposed convolutions of stride 2, each of which doubles height and width.

    The kernel's size is a multiple of the stride, so that every pixel is reached equally often: otherwise the output
    shows a chessboard.

    Args:
        latent_dim: length of the latent vector, at least 1.
        num_params: planes of pixels that the network makes, at least 1.
        image_shape: height and width, both divisible by 2 to the number of convolutions.
        channels: those of :func:`bdl_lib.vae.conv_encoder`, from the pixels on; they are gone through backwards.
        hidden: widths of the hidden layers between the latent and the small planes.
        condition_dim: how many numbers a condition has; 0 for none.
        initial_log_var: if given, one learned log variance fills one more plane, and starts here.
        generator: draws the initial weights; the network is on its device.
        dtype: of the weights, PyTorch's default dtype if not given.

    Returns:
        A :class:`Decoder`.

    Raises:
        ValueError: if a size is below 1, or the image cannot be halved so often.

    Source: Odena, Dumoulin and Olah (2016), Deconvolution and Checkerboard Artifacts, doi:10.23915/distill.00003.
    Book: sec-convolutions
    """
    check_latent_dim(latent_dim)
    _check(num_params, image_shape, hidden, condition_dim, "num_params")
    small = _small_shape(image_shape, channels)
    sizes = [latent_dim + condition_dim, *hidden, channels[-1] * math.prod(small)]
    layers = [nn.ReLU(), nn.Unflatten(1, (channels[-1], *small))]
    for fan_in, fan_out in pairwise([*reversed(channels), num_params]):
        fan = fan_in * (_KERNEL // _STRIDE) ** 2  # how many inputs meet in an output
        layers += [_conv(nn.ConvTranspose2d, fan_in, fan_out, fan, 2.0, generator, dtype), nn.ReLU()]
    head, log_var = _mlp(sizes, generator, dtype), _log_var(initial_log_var, generator, dtype)
    return Decoder(head, nn.Sequential(*layers[:-1]), condition_dim, log_var)


def _check(num_outputs, image_shape, hidden, condition_dim, name="num_outputs") -> None:
    check_at_least(name, num_outputs, 1)
    check_shape(image_shape)
    check_sizes("hidden", hidden)
    check_at_least("condition_dim", condition_dim, 0)


def _small_shape(image_shape: tuple[int, int], channels: tuple[int, ...]) -> tuple[int, int]:
    """Height and width after all convolutions."""
    check_sizes("channels", channels)
    factor = _STRIDE ** len(channels)
    if not channels or any(size % factor for size in image_shape):
        rule = f"channels must be at least one, and image_shape divisible by 2 for each ({factor} in all)"
        raise ValueError(f"{rule}, got {tuple(channels)} and {tuple(image_shape)}")
    return image_shape[0] // factor, image_shape[1] // factor


def _with(features: Tensor, condition: Tensor | None) -> Tensor:
    return features if condition is None else torch.cat([features, condition], 1)


def _mlp(sizes: list[int], generator: torch.Generator, dtype: torch.dtype | None) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers = []
    for fan_in, fan_out in pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out, device=generator.device, dtype=dtype)
        gain = 2.0 if len(layers) < 2 * (len(sizes) - 2) else 1.0
        layers += [_start(layer, fan_in, gain, generator), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _conv(kind, fan_in, fan_out, fan, gain, generator, dtype) -> nn.Module:
    shape = {"kernel_size": _KERNEL, "stride": _STRIDE, "padding": _PADDING}
    layer = nn.utils.skip_init(kind, fan_in, fan_out, **shape, device=generator.device, dtype=dtype)
    return _start(layer, fan, gain, generator)


def _start(layer: nn.Module, fan: int, gain: float, generator: torch.Generator) -> nn.Module:
    """Weights of variance gain / fan, zero biases."""
    nn.init.normal_(layer.weight, std=math.sqrt(gain / fan), generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _log_var(start: float | None, generator: torch.Generator, dtype: torch.dtype | None) -> Tensor | None:
    return None if start is None else torch.full((), start, device=generator.device, dtype=dtype)
