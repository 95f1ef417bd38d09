r"""How much of the latent a model uses: active units, and the information that a latent holds about its image.

Chapter: book/11-beyond-the-elbo.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bdl_lib.vae._checks import check_at_least
from bdl_lib.vae.elbo import check_images, gaussian_kl
from bdl_lib.vae.importance import encode_all
from bdl_lib.vae.model import LatentGaussian, Vae

__all__ = ["ActiveUnits", "MutualInformation", "active_units", "mutual_information"]


class ActiveUnits(NamedTuple):
    """Which dimensions of the latent answer to the image.

    Book: sec-collapse
    """

    variance: Float[Tensor, " latent_dim"]  # of the encoder's mean, over images; the prior's variance is 1
    is_active: Bool[Tensor, " latent_dim"]

    @property
    def num_active(self) -> Int[Tensor, ""]:
        """How many do."""
        return self.is_active.sum()


class MutualInformation(NamedTuple):
    """What the latent knows about which image it came from, in nats, and what the divergence pays beside.

    Book: sec-collapse
    """

    value: Float[Tensor, ""]  # I(image; z), at most log n
    std_error: Float[Tensor, ""]  # Monte Carlo standard error of the value, for these images
    mean_kl: Float[Tensor, ""]  # of q(z | x) from the prior, averaged over images: value + aggregate_kl
    aggregate_kl: Float[Tensor, ""]  # of the average of all q(z | x) from the prior
    upper_bound: float  # log n


@torch.no_grad()
def active_units(
    model: Vae,
    images: Float[Tensor, "n height width"],
    *,
    threshold: float = 0.01,
    condition: Float[Tensor, "n condition_dim"] | None = None,
) -> ActiveUnits:
    r"""Which latent dimensions differ between images: the others have collapsed to the prior.

    .. math:: A_d = \operatorname{Var}_x\big(\mathrm{E}_{q_\phi(z \mid x)}[z_d]\big) > \text{threshold}

    Args:
        model: a :class:`bdl_lib.vae.Vae`.
        images: x, at least 2, with pixels that the likelihood allows.
        threshold: positive, in units of the prior's variance.
        condition: one row an image, if the model takes one.

    Returns:
        :class:`bdl_lib.vae.ActiveUnits`.

    Raises:
        ValueError: if ``threshold`` is not positive, there are fewer than 2 images, or they do not fit the model.

    Source: Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, arXiv:1509.00519.
    Book: sec-collapse
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be positive, got {threshold}")
    _check_images(model, images, condition)
    variance = encode_all(model, images, condition).loc.var(0)
    return ActiveUnits(variance, variance > threshold)


@torch.no_grad()
def mutual_information(
    model: Vae,
    images: Float[Tensor, "n height width"],
    *,
    num_samples: int = 8,
    generator: torch.Generator,
    condition: Float[Tensor, "n condition_dim"] | None = None,
    memory_bytes: int = 2**28,
) -> MutualInformation:
    r"""How much the latent tells about its image, and how far all latents together are from the prior.

    .. math:: \underbrace{\frac1n \sum_i \mathrm{KL}\big(q(z \mid x_i) \,\|\, p(z)\big)}_{\text{mean KL}} =
              \underbrace{\frac1n \sum_i \mathrm{E}_{q(z \mid x_i)}\Big[\log \frac{q(z \mid x_i)}{q(z)}\Big]}_{
              \text{value}} + \underbrace{\mathrm{KL}\big(q(z) \,\|\, p(z)\big)}_{\text{aggregate KL}}, \qquad
              q(z) = \frac1n \sum_j q(z \mid x_j)

    The value is the information between the latent and *which of these n images* it belongs to, estimated without bias
    from draws of every q(z | x_i); the mixture q(z) is computed in full, with the image itself in it. It is at most
    log n, whatever the encoder does. As an estimate for all images there could be, it is too small on average, and
    says no more than "at least log n" where it comes near that bound: take more images then.

    Args:
        model: a :class:`bdl_lib.vae.Vae`.
        images: x, at least 2, with pixels that the likelihood allows. The cost grows as their number squared.
        num_samples: draws of z for each image, at least 2.
        generator: draws them.
        condition: one row an image, if the model takes one.
        memory_bytes: how much the comparisons of draws with images may take at a time.

    Returns:
        :class:`bdl_lib.vae.MutualInformation`, in nats. ``mean_kl`` is in closed form, ``aggregate_kl`` the difference.

    Raises:
        ValueError: if a number is out of its range, there are fewer than 2 images, or they do not fit the model.

    Source: Hoffman and Johnson (2016), ELBO surgery: yet another way to carve up the variational evidence lower bound,
        NIPS workshop on Advances in Approximate Bayesian Inference.
    Book: sec-collapse
    """
    check_at_least("num_samples", num_samples, 2)
    check_at_least("memory_bytes", memory_bytes, 1)
    _check_images(model, images, condition)
    q = encode_all(model, images, condition)
    latents = q.rsample(num_samples, generator=generator)
    log_mixture = _log_mixture(q, latents.flatten(0, 1), memory_bytes).unflatten(0, latents.shape[:2])
    information = q.log_prob(latents) - log_mixture
    std_error = (information.var(0).mean() / information.numel()).sqrt()
    value, mean_kl = information.mean(), gaussian_kl(*q).sum(-1).mean()
    return MutualInformation(value, std_error, mean_kl, mean_kl - value, math.log(len(images)))


def _log_mixture(q: LatentGaussian, latents: Float[Tensor, "m latent_dim"], memory_bytes: int) -> Float[Tensor, " m"]:
    """Log density of the average of all Gaussians, some latents at a time."""
    size = max(1, memory_bytes // (4 * q.loc.nbytes))
    num = len(q.loc)
    parts = [q.log_prob(part[:, None].expand(-1, num, -1)).logsumexp(1) for part in latents.split(size)]
    return torch.cat(parts) - math.log(num)


def _check_images(model: Vae, images: Tensor, condition: Tensor | None) -> None:
    check_images(model, images, condition, None)
    if not len(images) >= 2:
        raise ValueError(f"images must be at least 2, got {len(images)}")
