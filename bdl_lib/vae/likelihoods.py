r"""Densities of pixels given what the decoder says: binary, grey in an interval, Gaussian, whole levels of grey.

Each knows how many numbers it needs for a pixel, the log density of an image, its mean, and how to draw one. Pixels are
independent given the latent, so the log density of an image is a **sum** over pixels, in nats an image.

Chapter: book/10-vae.ipynb
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bdl_lib.vae._checks import check_at_least, check_finite, check_positive, check_unit_interval

__all__ = ["PixelLikelihood", "bernoulli", "continuous_bernoulli", "discretised_logistic", "gaussian"]

_SMALL_LOGIT = 0.1  # below it, power series: their first missing term is under 1e-12
_MIN_LOG_SCALE = -7.0  # of a logistic: far narrower than a level of 256


class PixelLikelihood(NamedTuple):
    r"""What the model says about the pixels of an image, given the decoder's outputs [..., num_params, height, width].

    The axes of ``outputs`` before the planes are those of the images, or have axes of samples before them.

    Book: sec-pixel-likelihoods
    """

    name: str
    num_params: int  # planes that the likelihood needs
    log_prob: Callable[..., Tensor]  # (outputs, images, is_observed=None) -> nats an image, summed over pixels
    mean: Callable[[Tensor], Tensor]  # outputs -> [..., height, width]
    sample: Callable[..., Tensor]  # (outputs, *, generator) -> [..., height, width]
    check_images: Callable[..., None]  # (images, name="images"), raises ValueError for pixels that are impossible
    has_shared_scale: bool = False  # one learned log variance fills the last plane: it is the decoder's, not an output
    settings: tuple = ()  # what it was made with, by which a checkpoint knows it


def bernoulli() -> PixelLikelihood:
    r"""Pixels that are 0 or 1.

    .. math:: \log p(x \mid z) = \sum_j x_j \ell_j - \log(1 + e^{\ell_j}), \qquad
              \ell_j = \log \frac{\pi_j}{1 - \pi_j}

    The decoder's one plane is the logit ℓ. A grey pixel x in (0, 1) gives the average of the log probability over a
    pixel that is drawn to be 1 with probability x: no log density of grey pixels, as it does not integrate to one.

    Returns:
        A :class:`PixelLikelihood`; its mean is π.

    Source: Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114, appendix C.1.
    Book: sec-pixel-likelihoods
    """

    def log_prob(outputs, images, is_observed=None):
        logits = outputs[..., 0, :, :]
        return _product_sum(logits, seen(images, is_observed)) - _sum(_softplus(logits), is_observed)

    def sample(outputs, *, generator):
        return (_uniform(outputs, generator) < outputs[..., 0, :, :].sigmoid()).to(outputs.dtype)

    return PixelLikelihood(
        "bernoulli", 1, log_prob, lambda outputs: outputs[..., 0, :, :].sigmoid(), sample, check_unit_interval
    )


def continuous_bernoulli() -> PixelLikelihood:
    r"""Grey pixels in [0, 1]: the exponential of a straight line, with the constant that the Bernoulli lacks.

    .. math:: \log p(x \mid z) = \sum_j x_j \ell_j - \log(1 + e^{\ell_j}) + \log C(\ell_j), \qquad
              C(\ell) = \frac{\ell}{\tanh(\ell / 2)}

    The decoder's one plane is ℓ, the logit of λ. Near ℓ = 0 (λ = ½), where C is 0/0, it is computed as a power series.

    Returns:
        A :class:`PixelLikelihood`. Its mean, :math:`1 / (1 - e^{-\ell}) - 1 / \ell`, is not λ.

    Source: Loaiza-Ganem and Cunningham (2019), The continuous Bernoulli, arXiv:1907.06845.
    Book: sec-pixel-likelihoods
    """

    def log_prob(outputs, images, is_observed=None):
        logits = outputs[..., 0, :, :]
        log_normaliser = _log_normaliser(logits) - _softplus(logits)
        return _product_sum(logits, seen(images, is_observed)) + _sum(log_normaliser, is_observed)

    def mean(outputs):
        return _continuous_mean(outputs[..., 0, :, :])

    def sample(outputs, *, generator):
        logits = outputs[..., 0, :, :]
        slope = -logits.abs().clamp(min=1e-6)  # of the log density; falling, so that nothing overflows
        falling = (_uniform(outputs, generator) * slope.expm1()).log1p() / slope
        return torch.where(logits > 0, 1 - falling, falling)

    return PixelLikelihood("continuous_bernoulli", 1, log_prob, mean, sample, check_unit_interval)


def gaussian(*, has_shared_scale: bool = True, min_std: float = 0.01) -> PixelLikelihood:
    r"""Pixels with Gaussian noise whose scale is learned.

    .. math:: \log p(x \mid z) = -\frac12 \sum_j \Big( \log 2\pi + \log \sigma_j^2
              + \frac{(x_j - \mu_j)^2}{\sigma_j^2} \Big)

    The decoder's two planes are μ and :math:`\log \sigma^2`. A pixel that hardly changes has an unbounded density:
    with a scale for each pixel, training would make σ smaller for ever. So it has a floor.

    Args:
        has_shared_scale: True, one σ for all pixels and images, a parameter of the decoder; False, a σ for each pixel
            of each image, an output of the decoder.
        min_std: smallest σ, positive, in the units of the pixels.

    Returns:
        A :class:`PixelLikelihood`. Neither its mean μ nor its samples need be in [0, 1].

    Raises:
        ValueError: if ``min_std`` is not positive.

    Source: Kingma and Welling (2014), arXiv:1312.6114, appendix C.2; on the unbounded density, Mattei and Frellsen
        (2018), Leveraging the Exact Likelihood of Deep Latent Variable Models, arXiv:1802.04826.
    Book: sec-pixel-likelihoods
    """
    check_positive("min_std", min_std)
    floor = 2 * math.log(min_std)

    def log_prob(outputs, images, is_observed=None):
        loc, log_var = outputs[..., 0, :, :], outputs[..., 1, :, :].clamp(min=floor)
        squares = (seen(images, is_observed) - loc).square() * (-log_var).exp()
        return -0.5 * _sum(math.log(2 * math.pi) + log_var + squares, is_observed)

    def sample(outputs, *, generator):
        loc, log_var = outputs[..., 0, :, :], outputs[..., 1, :, :].clamp(min=floor)
        noise = torch.randn(loc.shape, generator=generator, dtype=loc.dtype, device=loc.device)
        return loc + (0.5 * log_var).exp() * noise

    def mean(outputs):
        return outputs[..., 0, :, :]

    return PixelLikelihood("gaussian", 2, log_prob, mean, sample, check_finite, has_shared_scale, (min_std,))


def discretised_logistic(num_levels: int = 256) -> PixelLikelihood:
    r"""Whole levels of grey: a logistic density, cut into one bin a level; the two outermost bins have no outer end.

    .. math:: P(x \mid z) = \prod_j \big[ F_j(x_j + h) - F_j(x_j - h) \big], \qquad
              F_j(t) = \frac{1}{1 + e^{-(t - \mu_j) / s_j}}, \qquad h = \frac{1}{2 (L - 1)}

    with :math:`F(-h) = 0` at the pixel 0 and :math:`F(1 + h) = 1` at the pixel 1. The difference is computed as
    :math:`F(a)\,(1 - F(b))\,(1 - e^{-2 h / s})`, which loses no digits however small it is. The decoder's two planes
    are μ and :math:`\log s`, cut off at −7 from below.

    Args:
        num_levels: L, at least 2: the pixels are 0, 1 / (L − 1), …, 1.

    Returns:
        A :class:`PixelLikelihood`, of probabilities and not densities: its log is never positive. Its mean is that of
        the levels, exactly.

    Raises:
        ValueError: if ``num_levels`` is below 2.

    Source: Salimans, Karpathy, Chen and Kingma (2017), PixelCNN++, arXiv:1701.05517; Kingma et al.
        (2016), Improved Variational Inference with Inverse Autoregressive Flow, arXiv:1606.04934.
    Book: sec-pixel-likelihoods
    """
    check_at_least("num_levels", num_levels, 2)
    half = 0.5 / (num_levels - 1)

    def planes(outputs):
        return outputs[..., 0, :, :], outputs[..., 1, :, :].clamp(min=_MIN_LOG_SCALE)

    def log_prob(outputs, images, is_observed=None):
        images, (loc, log_scale) = seen(images, is_observed), planes(outputs)
        inverse_scale = (-log_scale).exp()
        above = F.logsigmoid((images + half - loc) * inverse_scale)
        below = F.logsigmoid((loc - images + half) * inverse_scale)
        log_width = (-(-2 * half * inverse_scale).expm1()).log()
        is_lowest, is_highest = images < half, images > 1 - half
        terms = above.masked_fill(is_highest, 0.0) + below.masked_fill(is_lowest, 0.0)
        return _sum(terms + log_width.masked_fill(is_lowest | is_highest, 0.0), is_observed)

    def mean(outputs):
        loc, log_scale = planes(outputs)
        inverse_scale = (-log_scale).exp()
        steps = (((loc - (2 * k + 1) * half) * inverse_scale).sigmoid() for k in range(num_levels - 1))
        return sum(steps) / (num_levels - 1)  # each is the probability of passing one more level

    def sample(outputs, *, generator):
        loc, log_scale = planes(outputs)
        value = loc + log_scale.exp() * _uniform(outputs, generator).logit()
        return (value.clamp(0, 1) * (num_levels - 1)).round() / (num_levels - 1)

    def check_images(images, name="images"):
        check_unit_interval(images, name)
        levels = images * (num_levels - 1)
        is_good = (levels - levels.round()).abs() < 1e-3
        if not is_good.all():
            rule = f"{name} must be whole multiples of 1 / {num_levels - 1}"
            raise ValueError(f"{rule}, got {images[~is_good][0].item():.6g}")

    return PixelLikelihood("discretised_logistic", 2, log_prob, mean, sample, check_images, settings=(num_levels,))


def seen(images: Tensor, is_observed: Tensor | None) -> Tensor:
    """The images with zeros where nothing was seen, whatever they hold there."""
    return images if is_observed is None else images.where(is_observed, 0.0)


def _product_sum(logits: Tensor, images: Tensor) -> Tensor:
    """Over pixels, without a copy of the images for each sample."""
    return torch.einsum("...p,...p->...", logits.flatten(-2), images.flatten(-2))


def _sum(values: Tensor, is_observed: Tensor | None) -> Tensor:
    """Over the pixels that were seen."""
    return values.sum((-2, -1)) if is_observed is None else _product_sum(values, is_observed.to(values.dtype))


def _softplus(logits: Tensor) -> Tensor:
    """log(1 + exp(logits)), exact to rounding in double precision too."""
    return F.softplus(logits, threshold=40.0)


def _log_normaliser(logits: Tensor) -> Tensor:
    r"""log C = log(ℓ / tanh(ℓ / 2)), even in ℓ."""
    squares, is_small = logits.square(), logits.abs() < _SMALL_LOGIT
    series = math.log(2.0) + squares * (1 / 12 + squares * (-7 / 1440 + squares * (31 / 90720)))
    size = torch.where(is_small, 1.0, logits.abs())  # so that no gradient of the other branch is NaN
    return torch.where(is_small, series, size.log() - (size / 2).tanh().log())


def _continuous_mean(logits: Tensor) -> Tensor:
    is_small = logits.abs() < _SMALL_LOGIT
    series = 0.5 + logits * (1 / 12 + logits.square() * (-1 / 720 + logits.square() / 30240))
    size = torch.where(is_small, 1.0, logits)
    return torch.where(is_small, series, -1 / torch.expm1(-size) - 1 / size)


def _uniform(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """One number in [0, 1) for each pixel."""
    shape = (*outputs.shape[:-3], *outputs.shape[-2:])
    return torch.rand(shape, generator=generator, dtype=outputs.dtype, device=outputs.device)
