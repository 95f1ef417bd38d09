r"""Tighter than the ELBO: averages of importance weights, for any number of samples in bounded memory.

Chapter: book/11-beyond-the-elbo.ipynb
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.dropout._memory import PeakMemory
from bdl_lib.vae._checks import check_at_least
from bdl_lib.vae.elbo import check_images
from bdl_lib.vae.likelihoods import seen
from bdl_lib.vae.model import LatentGaussian, Vae

__all__ = ["ImageEvidence", "importance_weighted_bound", "log_evidence"]

_CACHE_BYTES = 2**23  # what a chunk of samples holds at once, on a CPU


class ImageEvidence(NamedTuple):
    """An estimate of log p(x) for each image.

    Book: sec-log-evidence-images
    """

    value: Float[Tensor, " n"]  # nats
    std_error: Float[Tensor, " n"]  # Monte Carlo standard error, nats
    ess: Float[Tensor, " n"]  # effective number of samples, of those that were drawn


def importance_weighted_bound(
    model: Vae,
    images: Float[Tensor, "n height width"],
    *,
    num_samples: int,
    generator: torch.Generator,
    condition: Float[Tensor, "n condition_dim"] | None = None,
    is_observed: Bool[Tensor, "n height width"] | None = None,
    memory_bytes: int = 2**28,
) -> Float[Tensor, " n"]:
    r"""One draw of the K-sample bound for each image, without gradients.

    .. math:: \mathcal{L}_K(x) = \mathrm{E}\Big[\log \frac1K \sum_{k=1}^K w_k\Big] \le \log p_\theta(x), \qquad
              w_k = \frac{p_\theta(x \mid z_k)\, p(z_k)}{q_\phi(z_k \mid x)}, \qquad z_k \sim q_\phi(z \mid x)

    With K = 1 it is the ELBO, with the divergence sampled; it never falls as K grows. Its average over images is the
    estimate of the bound. :func:`bdl_lib.vae.fit` trains with it.

    Args:
        model: a :class:`bdl_lib.vae.Vae`.
        images: x, with pixels that the likelihood allows.
        num_samples: K, at least 1.
        generator: draws the latents.
        condition: one row an image, if the model takes one.
        is_observed: True where a pixel was seen, as in :func:`bdl_lib.vae.elbo`.
        memory_bytes: how much the samples may take at a time, beside the images and the result.

    Returns:
        :math:`\log \frac1K \sum_k w_k` of each image, nats.

    Raises:
        ValueError: as :func:`bdl_lib.vae.elbo`, or if ``memory_bytes`` is too little for one sample of one image.

    Source: Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv:1509.00519.
    Book: sec-iw-images
    """
    log_sum, _ = _streamed(model, images, num_samples, generator, condition, is_observed, memory_bytes)
    return log_sum - math.log(num_samples)


def log_evidence(
    model: Vae,
    images: Float[Tensor, "n height width"],
    *,
    num_samples: int = 5000,
    generator: torch.Generator,
    condition: Float[Tensor, "n condition_dim"] | None = None,
    is_observed: Bool[Tensor, "n height width"] | None = None,
    memory_bytes: int = 2**28,
) -> ImageEvidence:
    r"""The log evidence log p(x) of each image, by importance sampling from the encoder, with its error.

    .. math:: \log p_\theta(x) \approx \log \frac1K \sum_{k=1}^K w_k, \qquad
              \mathrm{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2}, \qquad
              \text{std error} \approx \sqrt{\frac{K / \mathrm{ESS} - 1}{K - 1}}

    The estimate is a lower bound on average, by about half the squared error. An effective number of a few samples
    says that the encoder misses where the posterior is: then the error is no better than the value.

    Args:
        model: a :class:`bdl_lib.vae.Vae`.
        images: x, with pixels that the likelihood allows.
        num_samples: K, at least 2.
        generator: draws the latents.
        condition: one row an image, if the model takes one.
        is_observed: True where a pixel was seen, as in :func:`bdl_lib.vae.elbo`.
        memory_bytes: how much the samples may take at a time, beside the images and the result. The draws depend on
            it: how the random numbers fall to the samples depends on the chunks.

    Returns:
        An :class:`ImageEvidence`.

    Raises:
        ValueError: as :func:`bdl_lib.vae.elbo`, if ``num_samples`` is below 2, or if ``memory_bytes`` is too little for
            one sample of one image.

    Source: Rezende, Mohamed and Wierstra (2014), arXiv:1401.4082; Burda, Grosse and Salakhutdinov (2016),
        arXiv:1509.00519.
    Book: sec-log-evidence-images
    """
    check_at_least("num_samples", num_samples, 2)
    sums = _streamed(model, images, num_samples, generator, condition, is_observed, memory_bytes)
    return evidence_of(*sums, num_samples)


def log_weights(
    model: Vae,
    images: Tensor,
    q: LatentGaussian,
    num_samples: int,
    generator: torch.Generator,
    condition: Tensor | None = None,
    is_observed: Tensor | None = None,
) -> tuple[Float[Tensor, "num_samples n"], Float[Tensor, "num_samples n"]]:
    r"""log w, and the part of it that is log p(x | z), for draws from q, in nats, with gradients."""
    noise = torch.randn(num_samples, *q.loc.shape, generator=generator, dtype=q.loc.dtype, device=q.loc.device)
    latents = q.loc + q.std * noise
    reconstruction = model.likelihood.log_prob(model.decode(latents, condition), images, is_observed)
    log_ratio = 0.5 * (noise.square() - latents.square() + q.log_var).sum(-1)  # log p(z) - log q(z | x)
    return reconstruction + log_ratio, reconstruction


def encode_all(
    model: Vae, images: Tensor, condition: Tensor | None = None, is_observed: Tensor | None = None
) -> LatentGaussian:
    """The encoder's answers, some images at a time."""
    parts = [
        model.encode(seen(images[rows], pick(is_observed, rows)), pick(condition, rows)) for rows in slices(len(images))
    ]
    return LatentGaussian(*(torch.cat(each) for each in zip(*parts, strict=True)))


def slices(num: int, size: int = 256) -> Iterator[slice]:
    """Parts of so many rows; the last may have fewer."""
    return (slice(first, min(num, first + size)) for first in range(0, num, size))


def pick(values: Tensor | None, rows) -> Tensor | None:
    """Some rows, of what may be absent."""
    return None if values is None else values[rows]


@torch.no_grad()
def _streamed(
    model, images, num_samples, generator, condition, is_observed, memory_bytes
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Log of the sum of w and of w² for each image: block by block of images, chunk by chunk of samples."""
    check_at_least("num_samples", num_samples, 1)
    check_at_least("memory_bytes", memory_bytes, 1)
    check_images(model, images, condition, is_observed)
    q = encode_all(model, images, condition, is_observed)
    block_size, chunk_size = _sizes(model, images, q, condition, is_observed, num_samples, memory_bytes)
    blocks = []
    for rows in slices(len(images), block_size):
        data = images[rows], LatentGaussian(q.loc[rows], q.log_var[rows])
        more = pick(condition, rows), pick(is_observed, rows)
        sums = [
            log_sums(log_weights(model, *data, chunk.stop - chunk.start, generator, *more)[0])
            for chunk in slices(num_samples, chunk_size)
        ]
        blocks.append(torch.stack(sums).logsumexp(0))
    log_sum, log_square_sum = torch.cat(blocks, 1)
    return log_sum, log_square_sum


def log_sums(log_w: Float[Tensor, "num_samples n"]) -> Float[Tensor, "2 n"]:
    """Log of the sum of w, and of w²."""
    return torch.stack([log_w.logsumexp(0), (2 * log_w).logsumexp(0)])


def evidence_of(log_sum: Float[Tensor, " n"], log_square_sum: Float[Tensor, " n"], num_samples: int) -> ImageEvidence:
    """Log of the mean weight, its error and the effective number, from the two sums over the weights."""
    ess = (2 * log_sum - log_square_sum).exp()
    std_error = ((num_samples / ess - 1).clamp(min=0) / (num_samples - 1)).sqrt()
    return ImageEvidence(log_sum - math.log(num_samples), std_error, ess)


def _sizes(model, images, q, condition, is_observed, num_samples, memory_bytes) -> tuple[int, int]:
    """How many images, and how many samples of each, to hold at a time."""
    first, probe = slice(0, 1), torch.Generator(images.device)
    q_first = LatentGaussian(q.loc[first], q.log_var[first])
    with PeakMemory() as peak:
        log_weights(model, images[first], q_first, 2, probe, pick(condition, first), pick(is_observed, first))
    num_rows = num_affordable(-(-peak.peak_bytes // 2), "one sample", memory_bytes, images.device)
    chunk_size = min(num_samples, num_rows)
    return max(1, num_rows // chunk_size), chunk_size


def num_affordable(item_bytes: int, item: str, memory_bytes: int, device: torch.device) -> int:
    """How many items fit a quarter of the memory, on a CPU also the cache; ``ValueError`` if there is none.

    The rest is for what :class:`PeakMemory` does not see: scratch space, and what the allocator keeps.
    """
    budget = memory_bytes // 4
    if budget < item_bytes:
        raise ValueError(f"memory_bytes must be at least {4 * item_bytes} for {item}, got {memory_bytes}")
    budget = min(budget, max(item_bytes, _CACHE_BYTES)) if device.type == "cpu" else budget
    return budget // item_bytes
