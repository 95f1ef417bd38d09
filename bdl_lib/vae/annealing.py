r"""The log evidence of images by annealing: chains that walk from the prior to the posterior, all images at once.

It does not use the encoder, so it can judge it. One image can be given to any estimator of :mod:`bdl_lib.evidence` as
:func:`bdl_lib.vae.latent_prior` and :func:`bdl_lib.vae.image_log_likelihood`.

Chapter: book/11-beyond-the-elbo.ipynb
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Independent, Normal

from bdl_lib.dropout._memory import PeakMemory
from bdl_lib.evidence import LogProb
from bdl_lib.vae._checks import check_at_least
from bdl_lib.vae.elbo import check_image, check_images
from bdl_lib.vae.importance import ImageEvidence, evidence_of, log_sums, num_affordable, pick, slices
from bdl_lib.vae.model import Vae

__all__ = ["annealed_log_evidence", "image_log_likelihood", "latent_prior"]

_NUM_PILOTS = 4  # chains of each image that choose the step size and are not counted
_POWER = 4  # of the temperatures: most of them near the prior, where the density changes fastest
_FRESH = 0.7  # share of the momentum, as a standard deviation, that is drawn anew before each step
_FIRST_STEP_SIZE = 0.5  # in units of the prior's standard deviation
_TARGET_ACCEPTANCE_RATE = 0.8
_ADAPTATION_RATE = 0.5

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]  # [chains, n, latent_dim] -> [chains, n], its gradient


def latent_prior(model: Vae) -> Independent:
    r"""The prior of the latents, p(z) = N(0, I), for the estimators of :mod:`bdl_lib.evidence`.

    Args:
        model: a :class:`bdl_lib.vae.Vae`.

    Returns:
        A distribution over vectors, with the dtype and on the device of the model.

    Book: sec-log-evidence-images
    """
    zeros = next(model.parameters()).detach().new_zeros(model.latent_dim)
    return Independent(Normal(zeros, zeros + 1), 1)


def image_log_likelihood(
    model: Vae, image: Float[Tensor, "height width"], condition: Float[Tensor, " condition_dim"] | None = None
) -> LogProb:
    r"""log p(x | z) of one image as a function of the latent, for the estimators of :mod:`bdl_lib.evidence`.

    Args:
        model: a :class:`bdl_lib.vae.Vae`.
        image: x, with pixels that the likelihood allows.
        condition: one row, if the model takes one.

    Returns:
        A function from latents [particles, latent_dim] to nats [particles]; gradients flow to latents that ask for
        them.

    Raises:
        ValueError: if image or condition do not fit the model.

    Book: sec-log-evidence-images
    """
    check_image(model, image, condition)

    def log_likelihood(latents):
        rows = None if condition is None else condition.expand(len(latents), -1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
            return model.likelihood.log_prob(model.decode(latents, rows), image)

    return log_likelihood


@torch.no_grad()
def annealed_log_evidence(
    model: Vae,
    images: Float[Tensor, "n height width"],
    *,
    num_chains: int = 16,
    num_temperatures: int = 400,
    generator: torch.Generator,
    condition: Float[Tensor, "n condition_dim"] | None = None,
    is_observed: Bool[Tensor, "n height width"] | None = None,
    memory_bytes: int = 2**28,
) -> ImageEvidence:
    r"""The log evidence log p(x) of each image, by annealed importance sampling from the prior.

    .. math:: \log p_\theta(x) \approx \log \frac1C \sum_{c=1}^C w_c, \qquad
              w_c = \prod_{k=1}^K p_\theta(x \mid z_{c,k-1})^{t_k - t_{k-1}}, \qquad t_k = (k / K)^4

    with :math:`z_{c,0} \sim N(0, I)`, and :math:`z_{c,k}` one step of Hamiltonian Monte Carlo later, which leaves
    :math:`p(z)\, p_\theta(x \mid z)^{t_k}` as it is: one leapfrog step, accepted or not, with a momentum that is kept
    in part.

    The weights average to p(x) exactly, however badly the chains mix; the logarithm of their average is a lower bound
    on average, by about half the squared error. This needs moves that do not look at the chains they move. So the step
    size of each image follows the acceptance rate of four more chains, the pilots, which are then thrown away: given
    the pilots, the moves of the counted chains are fixed beforehand. The temperatures are fixed, too.

    Args:
        model: a :class:`bdl_lib.vae.Vae`. Its encoder is not used.
        images: x, with pixels that the likelihood allows.
        num_chains: C, for each image, at least 2.
        num_temperatures: K, at least 2. Twice as many give about half the variance of log w.
        generator: draws the chains.
        condition: one row an image, if the model takes one.
        is_observed: True where a pixel was seen; the evidence is then that of the seen pixels.
        memory_bytes: how much the chains may take at a time. The draws depend on it.

    Returns:
        An :class:`bdl_lib.vae.ImageEvidence`; the effective number is of the C chains. Where the weights are so uneven
        that it is near 1, the error is no better than the value. A NaN likelihood counts as impossible.

    Raises:
        ValueError: if a number is out of its range, images or condition do not fit the model, or ``memory_bytes`` is
            too little for the chains of one image.

    Source: Neal (2001), doi:10.1023/A:1008923215028; for decoders, Wu, Burda, Salakhutdinov and Grosse (2017), On the
        Quantitative Analysis of Decoder-Based Generative Models, arXiv:1611.04273; the momentum, Sohl-Dickstein and
        Culpepper (2012), arXiv:1205.1925; the temperatures, Friel and Pettitt (2008),
        doi:10.1111/j.1467-9868.2007.00650.x.
    Book: sec-log-evidence-images
    """
    check_at_least("num_chains", num_chains, 2)
    check_at_least("num_temperatures", num_temperatures, 2)
    check_at_least("memory_bytes", memory_bytes, 1)
    check_images(model, images, condition, is_observed)
    temperatures = [(k / num_temperatures) ** _POWER for k in range(num_temperatures + 1)]
    shape, log_weights = (_NUM_PILOTS + num_chains, model.latent_dim), []
    size = _block_size(model, images, shape, memory_bytes, condition, is_observed)
    for rows in slices(len(images), size):
        density = _density(model, images[rows], pick(condition, rows), pick(is_observed, rows))
        start = torch.randn(shape[0], len(images[rows]), shape[1], generator=generator, **_like(images))
        log_weights.append(_anneal(density, start, temperatures, generator))
    return evidence_of(*log_sums(torch.cat(log_weights, 1)), num_chains)


class _Chains(NamedTuple):
    """Where the chains are, how they move, and the likelihood there."""

    latents: Float[Tensor, "chains n latent_dim"]
    momentum: Float[Tensor, "chains n latent_dim"]
    log_likelihood: Float[Tensor, "chains n"]  # nats
    grad: Float[Tensor, "chains n latent_dim"]  # of the log likelihood


def _anneal(
    density: ValueAndGrad,
    start: Float[Tensor, "chains n latent_dim"],
    temperatures: list[float],
    generator: torch.Generator,
) -> Float[Tensor, "counted n"]:
    """The log weights of the chains that count: all but the pilots."""
    chains = _Chains(start, _normal(start, generator), *density(start))
    log_weights = torch.zeros_like(chains.log_likelihood)
    log_step_size = start.new_full(start.shape[1:2], math.log(_FIRST_STEP_SIZE))
    for before, now in pairwise(temperatures):
        log_weights += (now - before) * chains.log_likelihood
        if now < 1:
            chains, acceptance_rate = _move(density, chains, now, log_step_size.exp()[:, None], generator)
            pilot_rate = acceptance_rate[:_NUM_PILOTS].mean(0)
            log_step_size += _ADAPTATION_RATE * (pilot_rate - _TARGET_ACCEPTANCE_RATE)
    return log_weights[_NUM_PILOTS:]


def _move(
    density: ValueAndGrad, chains: _Chains, temperature: float, step_size: Tensor, generator: torch.Generator
) -> tuple[_Chains, Float[Tensor, "chains n"]]:
    """One leapfrog step, accepted or not, and with which probability; a chain that stays turns round."""
    fresh = _normal(chains.latents, generator)
    momentum = math.sqrt(1 - _FRESH**2) * chains.momentum + _FRESH * fresh
    half_way = momentum + 0.5 * step_size * (temperature * chains.grad - chains.latents)
    latents = chains.latents + step_size * half_way
    log_likelihood, grad = density(latents)
    end = half_way + 0.5 * step_size * (temperature * grad - latents)
    squares = latents.square() - chains.latents.square() + end.square() - momentum.square()
    log_ratio = temperature * (log_likelihood - chains.log_likelihood) - 0.5 * squares.sum(-1)
    acceptance_rate = log_ratio.clamp(max=0).exp().nan_to_num(nan=0.0)
    uniform = torch.rand(log_ratio.shape, generator=generator, **_like(latents))
    is_accepted = uniform < acceptance_rate
    moved, stayed = _Chains(latents, end, log_likelihood, grad), chains._replace(momentum=-momentum)
    pairs = zip(moved, stayed, strict=True)
    chosen = (torch.where(is_accepted if new.ndim == 2 else is_accepted[..., None], new, old) for new, old in pairs)
    return _Chains(*chosen), acceptance_rate


def _density(model: Vae, images: Tensor, condition: Tensor | None, is_observed: Tensor | None) -> ValueAndGrad:
    """log p(x | z) of every chain of every image, and its gradient; NaN is impossible."""

    def value_and_grad(latents):
        with torch.enable_grad():
            leaf = latents.detach().requires_grad_()
            value = model.likelihood.log_prob(model.decode(leaf, condition), images, is_observed)
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        value = value.detach()
        return torch.where(value.isnan(), -math.inf, value), grad

    return value_and_grad


def _block_size(model, images, shape, memory_bytes, condition, is_observed) -> int:
    """How many images to anneal at a time: what the chains of one cost, within a quarter of the memory."""
    first = slice(0, 1)
    density = _density(model, images[first], pick(condition, first), pick(is_observed, first))
    with PeakMemory() as peak:
        density(images.new_zeros(shape[0], 1, shape[1]))
    return num_affordable(peak.peak_bytes, "the chains of one image", memory_bytes, images.device)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, **_like(like))


def _like(values: Tensor) -> dict:
    return {"dtype": values.dtype, "device": values.device}
