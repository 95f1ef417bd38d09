r"""What dropout with weight decay optimises: the prior behind a decay, and the divergence that stands behind both.

Each weight has the prior :math:`N(0, l^{-2})`, with l the length scale. In the approximating distribution, a unit's
outgoing weights are a vector m with probability 1 - p and zero otherwise, smeared out by a little Gaussian noise.

Chapter: book/07-dropout.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.dropout._checks import check_at_least
from bdl_lib.mcmc._checks import check_positive

__all__ = ["DropoutKl", "dropout_kl", "length_scale_of", "noise_prec_of", "weight_decay_of"]

Value = float | Float[Tensor, "..."]

_FAR = 20.0  # in component standard deviations: two Gaussians this far apart share less than exp(-50) of their mass
_NUM_NODES = 2001


class DropoutKl(NamedTuple):
    """A divergence from the prior, and what is usually written for it.

    Book: sec-dropout-objective
    """

    value: Float[Tensor, "*units"]  # nats, by quadrature
    approximation: Float[Tensor, "*units"]  # nats; too small, by at most the entropy of the unit's switch


def weight_decay_of(
    *, length_scale: Value, rate: Value, num_data: int, noise_prec: Value = 1.0, is_inverted: bool = True
) -> Value:
    r"""The weight decay that stands for a Gaussian prior, behind a dropout layer.

    With :math:`\lambda \lVert V \rVert^2` added to the **mean** over the data of **half** the squared error,
    :math:`\tfrac{1}{2N} \sum_i (y_i - f(x_i))^2`, the sum is the negative evidence lower bound divided by
    :math:`N \tau`, up to a constant, if

    .. math:: \lambda = \frac{l^2}{2 N \tau (1 - p)} \quad\text{(inverted)}, \qquad
              \lambda = \frac{(1 - p)\, l^2}{2 N \tau} \quad\text{(as in the paper)}.

    The two belong to two ways of writing one network. The paper's weights M are those of a unit that is on; an inverted
    layer, such as PyTorch's and this library's, divides by 1 - p, so that its weights are :math:`V = (1 - p) M`. Either
    way, λ times the squared norm, times N τ, is :math:`\tfrac12 l^2\, \mathrm{E}_q \lVert W \rVert^2`. Other losses:

    - the mean squared error without the half: twice this λ;
    - the mean negative log likelihood in nats, of classes or of a Gaussian with its τ: this λ with ``noise_prec`` 1;
    - ``weight_decay`` of PyTorch's optimisers means :math:`\tfrac12 w \lVert V \rVert^2`: there, w is twice this λ.

    Args:
        length_scale: l > 0, one over the prior's standard deviation. Small: a wide prior, functions that vary fast.
        rate: p in [0, 1), of the dropout layer in front of these weights; 0 for weights and biases behind none.
        num_data: N, how many data points the loss averages over, at least 1.
        noise_prec: τ > 0, one over the variance of the noise, in one over the units of the targets squared.
        is_inverted: whether the mask of the layer takes the values 0 and 1 / (1 - p), as in this library, or 0 and 1.

    Returns:
        λ, of the broadcast shape of the arguments: a float, if all of them are. It is what
        :func:`bdl_lib.dropout.fit` calls ``weight_decay``.

    Raises:
        ValueError: if an argument is out of range.

    Source: Gal and Ghahramani (2016), arXiv:1506.02142, section 3 and eq. 1, 7, whose p is 1 - p here.
    Book: sec-dropout-objective
    """
    _check(rate, num_data, length_scale=length_scale, noise_prec=noise_prec)
    return length_scale**2 * _on_factor(rate, is_inverted) / (2 * num_data * noise_prec)


def noise_prec_of(
    *, length_scale: Value, rate: Value, num_data: int, weight_decay: Value, is_inverted: bool = True
) -> Value:
    r"""The noise precision for which a weight decay stands for a given prior: :func:`weight_decay_of` solved for τ.

    .. math:: \tau = \frac{l^2}{2 N \lambda (1 - p)} \quad\text{(inverted)}, \qquad
              \tau = \frac{(1 - p)\, l^2}{2 N \lambda} \quad\text{(as in the paper)}

    λ belongs to the mean of half the squared error. It fixes only the ratio of l² and τ: one of the two has to be
    known, or chosen by the likelihood of data that were held out.

    Args:
        length_scale: l > 0, one over the prior's standard deviation.
        rate: p in [0, 1), of the dropout layer in front of the weights.
        num_data: N, how many data points the loss averages over, at least 1.
        weight_decay: λ > 0.
        is_inverted: whether the mask of the layer takes the values 0 and 1 / (1 - p), as in this library, or 0 and 1.

    Returns:
        τ, in one over the units of the targets squared, of the broadcast shape of the arguments.

    Raises:
        ValueError: if an argument is out of range.

    Source: Gal and Ghahramani (2016), arXiv:1506.02142, eq. 7, whose p is 1 - p here.
    Book: sec-dropout-objective
    """
    _check(rate, num_data, length_scale=length_scale, weight_decay=weight_decay)
    return length_scale**2 * _on_factor(rate, is_inverted) / (2 * num_data * weight_decay)


def length_scale_of(
    *, weight_decay: Value, rate: Value, num_data: int, noise_prec: Value = 1.0, is_inverted: bool = True
) -> Value:
    r"""The prior that a network was trained under: :func:`weight_decay_of` solved for the length scale.

    .. math:: l = \sqrt{2 N \tau \lambda (1 - p)} \quad\text{(inverted)}, \qquad
              l = \sqrt{\frac{2 N \tau \lambda}{1 - p}} \quad\text{(as in the paper)}

    With the same λ everywhere, layers behind different rates have different priors.

    Args:
        weight_decay: λ > 0, added to the mean of half the squared error as :math:`\lambda \lVert V \rVert^2`.
        rate: p in [0, 1), of the dropout layer in front of the weights.
        num_data: N, how many data points the loss averages over, at least 1.
        noise_prec: τ > 0, in one over the units of the targets squared; 1 for a mean negative log likelihood.
        is_inverted: whether the mask of the layer takes the values 0 and 1 / (1 - p), as in this library, or 0 and 1.

    Returns:
        l, one over the prior's standard deviation, of the broadcast shape of the arguments.

    Raises:
        ValueError: if an argument is out of range.

    Source: Gal and Ghahramani (2016), arXiv:1506.02142, eq. 7, whose p is 1 - p here.
    Book: sec-dropout-objective
    """
    _check(rate, num_data, weight_decay=weight_decay, noise_prec=noise_prec)
    return (2 * num_data * noise_prec * weight_decay / _on_factor(rate, is_inverted)) ** 0.5


def dropout_kl(
    weights: Float[Tensor, "*units out"], *, component_std: float, rate: float, length_scale: float
) -> DropoutKl:
    r"""How far the weights behind a dropped unit are from their prior, exactly and as approximated.

    The K weights of a unit have the distribution

    .. math:: q(w) = (1 - p)\, N(w; m, \sigma^2 I) + p\, N(w; 0, \sigma^2 I), \qquad p(w) = N(w; 0, l^{-2} I).

    If the two components do not overlap, its divergence is the first line of

    .. math:: \mathrm{KL}(q \,\|\, p) &= \frac{1 - p}{2} l^2 \lVert m \rVert^2
              + \frac K2 \big(l^2 \sigma^2 - 1 - \log l^2 \sigma^2\big) - H(p) \\ &\quad + H(z \mid w)

    with :math:`H(p)` the entropy of the unit's switch z, off with probability p, and :math:`H(z \mid w)` the doubt
    about z that remains once w is seen: none if the components are far apart, all of :math:`H(p)` if m is zero. So the
    approximation is too small by at most log 2 a unit. Only the direction of m matters for the doubt, so that one
    integral over a line gives it for any K.

    As σ goes to 0 the divergence grows without bound: q puts all its mass where the prior has none. What remains for
    the optimiser is the difference between two m, which the bound's constant does not touch.

    Args:
        weights: m, the K weights of a unit when it is on, along the last axis. Of a ``layer`` behind this library's
            dropout, ``layer.weight.T / (1 - rate)``.
        component_std: σ > 0, in the units of the weights.
        rate: p in [0, 1), the probability that the unit is off.
        length_scale: l > 0, one over the prior's standard deviation.

    Returns:
        A :class:`DropoutKl`, in nats, one value a unit; differentiable in ``weights``.

    Raises:
        ValueError: if an argument is out of range or ``weights`` are not finite.

    Source: Gal and Ghahramani (2016), arXiv:1506.02142, appendix (arXiv:1506.02157, proposition 1), without H(p); Gal,
        Hron and Kendall (2017), arXiv:1705.07832, with it; Furuya et al. (2022), arXiv:2202.13059, on the error; Hron,
        Matthews and Ghahramani (2018), arXiv:1807.01969, on σ to 0.
    Book: sec-dropout-objective
    """
    _check(rate, 1, component_std=component_std, length_scale=length_scale)
    if weights.ndim < 1 or not weights.isfinite().all():
        raise ValueError(f"weights must be finite, [*units, K], got {weights}")
    relative_var = (length_scale * component_std) ** 2
    norm = torch.linalg.vector_norm(weights, dim=-1)
    switch = torch.special.entr(norm.new_tensor([rate, 1 - rate])).sum()
    noise = weights.shape[-1] / 2 * (relative_var - 1 - math.log(relative_var))
    approximation = (1 - rate) / 2 * (length_scale * norm).square() + noise - switch
    return DropoutKl(approximation + _doubt_about_switch(norm / component_std, rate), approximation)


def _doubt_about_switch(distance: Tensor, rate: float) -> Tensor:
    """H(z | w) by the trapezoid rule: exact to rounding, since the integrand is smooth and vanishes at both ends."""
    distance = distance.clamp(max=_FAR)[..., None]  # farther apart, nothing is left to add
    nodes = torch.linspace(-10, _FAR + 10, _NUM_NODES, dtype=distance.dtype, device=distance.device)
    density = ((1 - rate) * _normal(nodes - distance) + rate * _normal(nodes)) * (nodes[1] - nodes[0])
    log_odds = math.log((1 - rate) / rate) if rate > 0 else math.inf
    log_odds = log_odds + distance * (nodes - distance / 2)
    on, off = log_odds.sigmoid(), (-log_odds).sigmoid()
    return (density * (torch.special.entr(on) + torch.special.entr(off))).sum(-1)


def _normal(x: Tensor) -> Tensor:
    return (-0.5 * x.square()).exp() / math.sqrt(2 * math.pi)


def _on_factor(rate: Value, is_inverted: bool) -> Value:
    """E‖W‖² over the squared norm of the weights that are stored."""
    return 1 / (1 - rate) if is_inverted else 1 - rate


def _check(rate: Value, num_data: int, **positive: Value) -> None:
    check_at_least("num_data", num_data, 1)
    for name, value in positive.items():
        check_positive(name, value)
    rates = torch.as_tensor(rate)
    is_rate = (rates >= 0) & (rates < 1)
    if not is_rate.all():
        raise ValueError(f"rate must be in [0, 1), got {rates[~is_rate].flatten()[0].item()}")
