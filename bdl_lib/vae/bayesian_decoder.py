r"""Uncertainty in the decoder's weights too: dropout in the decoder, and what its passes disagree on.

Chapter: book/11-beyond-the-elbo.ipynb
"""

import copy
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bdl_lib.dropout import ChannelDropout, Dropout, draw_passes
from bdl_lib.vae._checks import check_at_least, check_condition, check_latents
from bdl_lib.vae.elbo import check_images, log_prior
from bdl_lib.vae.importance import encode_all
from bdl_lib.vae.model import Vae

__all__ = ["DecoderPasses", "decode_passes", "decoder_log_evidence", "stochastic_decoder"]

_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Tanh)
_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


class DecoderPasses(NamedTuple):
    """What many decoders make of the same latents.

    Book: sec-bayesian-decoder
    """

    images: Float[Tensor, "num_passes n height width"]  # means of the pixels, of each pass
    mean: Float[Tensor, "n height width"]  # over passes
    std: Float[Tensor, "n height width"]  # over passes: what the decoders disagree on


def stochastic_decoder(model: Vae, rate: float) -> Vae:
    r"""A copy of a model with dropout after every hidden activation of its decoder.

    .. math:: p(x \mid z, \mathcal{D}) \approx \mathrm{E}_{q(w)}\big[p_w(x \mid z)\big]

    with q(w) the distribution over the decoder's weights that the masks make, as in chapter 7. Called as it is, the
    copy is deterministic, with masks at their mean; :func:`bdl_lib.vae.fit` draws masks in training, and
    :func:`bdl_lib.vae.decode_passes` and :func:`bdl_lib.vae.decoder_log_evidence` draw them for the spread. A model
    that was trained without dropout should be trained again: its spread shows how it breaks, not what it does not know.

    Args:
        model: a :class:`bdl_lib.vae.Vae` whose decoder has its activations in an ``nn.Sequential``, as those of this
            package have. Stays as it is.
        rate: the probability of dropping a unit, or after a convolution a channel, 0 < rate < 1.

    Returns:
        The copy, with copies of the weights.

    Raises:
        ValueError: if ``rate`` is outside its range, or there is no activation to put a layer after.

    Source: Gal and Ghahramani (2016), Dropout as a Bayesian Approximation, arXiv:1506.02142; uncertain decoders:
        Daxberger and Hernández-Lobato (2019), Bayesian Variational Autoencoders for Unsupervised Out-of-Distribution
        Detection, arXiv:1912.05651.
    Book: sec-bayesian-decoder
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must be between 0 and 1, got {rate}")
    model = copy.deepcopy(model)
    blocks = [module for module in model.decoder.modules() if isinstance(module, nn.Sequential)]
    num_layers = sum(_insert(block, rate) for block in blocks)
    if not num_layers:
        raise ValueError("model must have a hidden activation in an nn.Sequential of its decoder, got none")
    return model


def decode_passes(
    model: Vae,
    latents: Float[Tensor, "n latent_dim"],
    *,
    num_passes: int,
    generator: torch.Generator,
    is_shared: bool = True,
    condition: Float[Tensor, "n condition_dim"] | None = None,
    memory_bytes: int = 2**28,
) -> DecoderPasses:
    r"""The same latents through many decoders, and where these disagree.

    Args:
        model: from :func:`bdl_lib.vae.stochastic_decoder`.
        latents: z.
        num_passes: T, at least 2.
        generator: draws the masks.
        is_shared: True gives all latents of a pass the same masks, so that a pass is one decoder.
        condition: one row a latent, if the model takes one.
        memory_bytes: how much the passes may take at a time, as in :func:`bdl_lib.dropout.draw_passes`.

    Returns:
        :class:`bdl_lib.vae.DecoderPasses`. The spread is that of the pixels' means, without the noise of the pixels
        themselves.

    Raises:
        ValueError: if ``num_passes`` is below 2, the decoder has no dropout, or latents or condition do not fit.

    Source: Gal and Ghahramani (2016), arXiv:1506.02142.
    Book: sec-bayesian-decoder
    """
    check_at_least("num_passes", num_passes, 2)
    check_latents(latents, model.latent_dim)
    check_condition(condition, len(latents), model.condition_dim)
    inputs = latents if condition is None else torch.cat([latents, condition], 1)
    settings = {"num_passes": num_passes, "generator": generator, "is_shared": is_shared, "memory_bytes": memory_bytes}
    images = draw_passes(_PixelMeans(model), inputs, **settings)
    return DecoderPasses(images, images.mean(0), images.std(0))


@torch.no_grad()
def decoder_log_evidence(
    model: Vae,
    images: Float[Tensor, "n height width"],
    *,
    num_passes: int,
    num_samples: int = 200,
    generator: torch.Generator,
    condition: Float[Tensor, "n condition_dim"] | None = None,
    memory_bytes: int = 2**28,
) -> Float[Tensor, "num_passes n"]:
    r"""The log evidence of each image under each of many decoders, by importance sampling from the encoder.

    .. math:: \log p_{w_t}(x) \approx \log \frac1K \sum_{k=1}^K
              \frac{p_{w_t}(x \mid z_k)\, p(z_k)}{q_\phi(z_k \mid x)}, \qquad w_t \sim q(w), \qquad
              z_k \sim q_\phi(z \mid x)

    The log of the mean of exp over passes is the evidence with the decoder's weights averaged out. The spread over
    passes says how much the decoders disagree on an image. All passes have the same latents.

    Args:
        model: from :func:`bdl_lib.vae.stochastic_decoder`.
        images: x, with pixels that the likelihood allows.
        num_passes: T, at least 2.
        num_samples: K, at least 1.
        generator: draws the latents and the masks.
        condition: one row an image, if the model takes one.
        memory_bytes: how much the passes may take at a time, as in :func:`bdl_lib.dropout.draw_passes`.

    Returns:
        Nats. A lower bound on average, as :func:`bdl_lib.vae.importance_weighted_bound` is for one decoder.

    Raises:
        ValueError: if a number is out of its range, the decoder has no dropout, or images or condition do not fit.

    Source: Daxberger and Hernández-Lobato (2019), arXiv:1912.05651.
    Book: sec-bayesian-decoder
    """
    check_at_least("num_passes", num_passes, 2)
    check_at_least("num_samples", num_samples, 1)
    check_images(model, images, condition, None)
    q = encode_all(model, images, condition)
    latents = q.rsample(num_samples, generator=generator)
    log_ratio = log_prior(latents) - q.log_prob(latents)
    columns = [each.expand(num_samples, *each.shape) for each in (condition, images.flatten(1)) if each is not None]
    inputs = torch.cat([latents, *columns], -1).flatten(0, 1)
    settings = {"num_passes": num_passes, "generator": generator, "is_shared": True, "memory_bytes": memory_bytes}
    log_likelihood = draw_passes(_LogLikelihood(model), inputs, **settings).view(num_passes, *log_ratio.shape)
    return (log_likelihood + log_ratio).logsumexp(1) - math.log(num_samples)


class _LogLikelihood(nn.Module):
    """From latents, with condition and pixels beside them, to log p(x | z)."""

    def __init__(self, model: Vae):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        sizes = self.model.latent_dim, self.model.condition_dim, math.prod(self.model.image_shape)
        latents, condition, pixels = inputs.split(sizes, 1)
        outputs = self.model.decode(latents, condition if self.model.condition_dim else None)
        return self.model.likelihood.log_prob(outputs, pixels.unflatten(1, self.model.image_shape))[:, None]


class _PixelMeans(nn.Module):
    """From latents, with their condition beside them, to means of pixels."""

    def __init__(self, model: Vae):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        latents, condition = inputs.split([self.model.latent_dim, self.model.condition_dim], 1)
        outputs = self.model.decode(latents, condition if self.model.condition_dim else None)
        return self.model.likelihood.mean(outputs)


def _insert(block: nn.Sequential, rate: float) -> int:
    """Put a layer after every activation that is not the block's end; how many."""
    layers, num_layers = list(block), 0
    for i in reversed(range(len(layers) - 1)):
        if isinstance(layers[i], _ACTIVATIONS):
            is_planes = i > 0 and isinstance(layers[i - 1], _CONVOLUTIONS)
            block.insert(i + 1, ChannelDropout(rate) if is_planes else Dropout(rate))
            num_layers += 1
    return num_layers
