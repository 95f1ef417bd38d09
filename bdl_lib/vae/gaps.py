r"""What the bound loses, and where: to the Gaussian family, and to the encoder that has to guess at once.

Chapter: book/11-beyond-the-elbo.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.vae._checks import check_at_least, check_positive
from bdl_lib.vae.elbo import check_images, log_prior
from bdl_lib.vae.importance import ImageEvidence, pick, slices
from bdl_lib.vae.model import LatentGaussian, Vae

__all__ = ["Gaps", "inference_gaps"]

_BETAS = 0.9, 0.9  # of Adam: an encoder may start far off, with gradients that soon mean nothing
_NUM_PAIRS = 4  # of draws ε and -ε, in each step of the ascent
_CPU_ROWS, _ROWS = 512, 2**14  # images times draws at a time: as many as a CPU's cache holds, or a GPU likes


class Gaps(NamedTuple):
    """The bound of each image, and the two parts of what it loses, in nats.

    Book: sec-vae-gaps
    """

    approximation: Float[Tensor, " n"]  # log p(x) − bound of the best Gaussian
    amortisation: Float[Tensor, " n"]  # bound of the best Gaussian − bound of the encoder's
    approximation_std_error: Float[Tensor, " n"]
    amortisation_std_error: Float[Tensor, " n"]
    log_evidence: ImageEvidence  # log p(x), by importance sampling from both Gaussians
    best_elbo: Float[Tensor, " n"]
    encoder_elbo: Float[Tensor, " n"]
    best: LatentGaussian  # of each image


def inference_gaps(
    model: Vae,
    images: Float[Tensor, "n height width"],
    *,
    generator: torch.Generator,
    num_steps: int = 200,
    lr: float = 0.1,
    num_samples: int = 1000,
    condition: Float[Tensor, "n condition_dim"] | None = None,
) -> Gaps:
    r"""The gap between evidence and bound, taken apart.

    .. math:: \log p_\theta(x) - \mathcal{L}[q_\phi] =
              \underbrace{\log p_\theta(x) - \mathcal{L}[q^*]}_{\text{approximation}} +
              \underbrace{\mathcal{L}[q^*] - \mathcal{L}[q_\phi]}_{\text{amortisation}}, \qquad
              q^* = \arg\max_{q = N(\mu, \operatorname{diag} \sigma^2)} \mathcal{L}[q]

    The best Gaussian of each image is found by Adam, all images as one batch, from the encoder's answer. Each step has
    fresh draws, in pairs ε and −ε, and a learning rate that falls to zero: kept draws would be fitted instead of the
    posterior. The gradient goes through the draws alone, without the derivative of log q in its parameters, whose mean
    is zero and whose noise is not. Then both Gaussians are judged with the same noise, new to both, so that it cancels
    from the amortisation gap. On the same draws, log p(x) is by importance sampling from the equal mixture of the two:
    the best Gaussian alone can be too narrow.

    Where Adam has not arrived, the amortisation gap comes out too small and the approximation gap too large. Where
    both Gaussians miss a part of the posterior, log p(x) and the approximation gap come out too small, and nothing here
    says so but perhaps a small effective number: :func:`bdl_lib.vae.annealed_log_evidence` is an independent check.

    Args:
        model: a :class:`bdl_lib.vae.Vae`.
        images: x, with pixels that the likelihood allows.
        generator: draws the noise.
        num_steps: of Adam, at least 1.
        lr: its learning rate at the start, positive.
        num_samples: draws that judge, for each image and each of the two Gaussians, at least 2.
        condition: one row an image, if the model takes one.

    Returns:
        :class:`bdl_lib.vae.Gaps`, in nats, with Monte Carlo standard errors.

    Raises:
        ValueError: if a number is out of its range, or images or condition do not fit the model.

    Source: Cremer, Li and Duvenaud (2018), Inference Suboptimality in Variational Autoencoders, arXiv:1801.03558; the
        gradient, Roeder, Wu and Duvenaud (2017), Sticking the Landing, arXiv:1703.09194; the mixture, Veach and Guibas
        (1995), doi:10.1145/218380.218498.
    Book: sec-vae-gaps
    """
    check_at_least("num_steps", num_steps, 1)
    check_positive("lr", lr)
    check_at_least("num_samples", num_samples, 2)
    check_images(model, images, condition, None)
    parts = []
    for rows in slices(len(images), _num_rows(images) // (2 * _NUM_PAIRS)):
        data = images[rows], pick(condition, rows)
        with torch.no_grad():
            q = model.encode(*data)
        best = _best_gaussian(model, *data, q, num_steps, lr, generator)
        parts.append(_judge(model, *data, q, best, num_samples, generator))
    return _joined(parts)


def _best_gaussian(
    model: Vae,
    images: Tensor,
    condition: Tensor | None,
    start: LatentGaussian,
    num_steps: int,
    lr: float,
    generator: torch.Generator,
) -> LatentGaussian:
    """Ascend the bound of every image by itself; the model stays as it is."""
    q = LatentGaussian(*(each.clone().requires_grad_() for each in start))
    optimizer = torch.optim.Adam(q, lr=lr, betas=_BETAS, foreach=True)
    with torch.enable_grad():
        for step in range(num_steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / num_steps)
            loss = -_bound(model, images, condition, q, generator).sum()
            q.loc.grad, q.log_var.grad = torch.autograd.grad(loss, q)
            optimizer.step()
    return LatentGaussian(*(each.detach() for each in q))


def _bound(model, images, condition, q: LatentGaussian, generator: torch.Generator) -> Float[Tensor, " n"]:
    """The bound of q, from pairs of opposite draws; its gradient goes through the draws alone."""
    noise = _noise(_NUM_PAIRS, q, generator)
    latents = q.loc + q.std * torch.cat([noise, -noise])
    held = LatentGaussian(q.loc.detach(), q.log_var.detach())
    return (_log_joint(model, images, condition, latents) - held.log_prob(latents)).mean(0)


@torch.no_grad()
def _judge(model, images, condition, q, best, num_samples: int, generator: torch.Generator) -> Gaps:
    """Both Gaussians on the same noise."""
    both = [q, best]
    chunks = [
        _log_weights(model, images, condition, both, _noise(chunk.stop - chunk.start, q, generator))
        for chunk in slices(num_samples, _num_rows(images) // len(images))
    ]
    log_w, log_mixture_w = (torch.cat(each, 1) for each in zip(*chunks, strict=True))  # [2, num_samples, n]
    value = log_mixture_w.flatten(0, 1).logsumexp(0) - math.log(2 * num_samples)
    relative = (log_mixture_w - value).exp()
    ess = 2 * num_samples / relative.square().mean((0, 1))
    encoder_elbo, best_elbo = log_w.mean(1)
    return Gaps(
        value - best_elbo,
        best_elbo - encoder_elbo,
        _std_error(relative.mean(0) - log_w[1]),  # the delta method, for a difference of two averages
        _std_error(log_w[1] - log_w[0]),
        ImageEvidence(value, _std_error(relative.mean(0)), ess),
        best_elbo,
        encoder_elbo,
        best,
    )


def _log_weights(
    model, images, condition, both: list[LatentGaussian], noise: Float[Tensor, "num_samples n latent_dim"]
) -> tuple[Float[Tensor, "2 num_samples n"], Float[Tensor, "2 num_samples n"]]:
    """log w of the draws that the noise makes of two Gaussians: over the one that they are from, and over both."""
    latents = torch.stack([q.loc + q.std * noise for q in both])
    log_joint = torch.stack([_log_joint(model, images, condition, each) for each in latents])
    log_q = torch.stack([q.log_prob(latents) for q in both])  # [2 densities, 2 sets of draws, ...]
    own = torch.stack([log_q[0, 0], log_q[1, 1]])
    return log_joint - own, log_joint - (log_q.logsumexp(0) - math.log(2))


def _log_joint(model, images, condition, latents: Tensor) -> Float[Tensor, "num_samples n"]:
    return model.likelihood.log_prob(model.decode(latents, condition), images) + log_prior(latents)


def _noise(num: int, q: LatentGaussian, generator: torch.Generator) -> Float[Tensor, "num n latent_dim"]:
    return torch.randn(num, *q.loc.shape, generator=generator, dtype=q.loc.dtype, device=q.loc.device)


def _std_error(values: Float[Tensor, "num_samples n"]) -> Float[Tensor, " n"]:
    return values.std(0) / math.sqrt(len(values))


def _num_rows(images: Tensor) -> int:
    return _CPU_ROWS if images.device.type == "cpu" else _ROWS


def _joined(parts: list[Gaps]) -> Gaps:
    """Blocks of images as one record."""

    def join(values):
        if isinstance(values[0], Tensor):
            return torch.cat(values)
        return type(values[0])(*(join(each) for each in zip(*values, strict=True)))

    return join(parts)
