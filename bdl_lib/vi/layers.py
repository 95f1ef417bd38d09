r"""A linear layer with Gaussian weights, and three ways to send a minibatch through it.

All three give every example the right distribution of outputs. They differ in what the examples share, and so in how
noisy the gradient of a sum over the minibatch is.

Chapter: book/05-vi.ipynb
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bdl_lib.vi._checks import check_at_least, check_positive

__all__ = ["BayesianLinear", "bayesian_linear", "flipout", "local_reparameterisation", "shared_weights"]


class BayesianLinear(NamedTuple):
    r"""Independent Gaussian weights: :math:`W_{oi} \sim N(M_{oi}, S_{oi}^2)` and :math:`b_o \sim N(m_o, s_o^2)`.

    Book: sec-backprop
    """

    weight_loc: Float[Tensor, "out in"]  # M
    weight_log_std: Float[Tensor, "out in"]  # log S
    bias_loc: Float[Tensor, " out"]  # m
    bias_log_std: Float[Tensor, " out"]  # log s


LayerForward = Callable[..., Tensor]  # (layer, inputs [n, in], *, generator) -> [n, out]


def bayesian_linear(
    fan_in: int,
    fan_out: int,
    *,
    std: float = 0.05,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> BayesianLinear:
    r"""Where the fit of a layer starts: random means, and one small standard deviation.

    The means of the weights are Gaussian with variance 1 / ``fan_in``, so that outputs are as large as inputs; those of
    the biases are zero.

    Args:
        fan_in: how many inputs, at least 1.
        fan_out: how many outputs, at least 1.
        std: S and s > 0 of every weight and bias. Small against the means, so that the noise does not hide the data
            from the first steps.
        generator: draws the means; on the device of the layer.
        dtype: of the layer, PyTorch's default dtype if not given.
        device: of the layer, PyTorch's default device if not given.

    Returns:
        A :class:`BayesianLinear`.

    Raises:
        ValueError: if a size is below 1 or ``std`` is not positive.

    Book: sec-backprop
    """
    check_at_least("fan_in", fan_in, 1)
    check_at_least("fan_out", fan_out, 1)
    check_positive("std", std)
    like = {"dtype": dtype, "device": device}
    loc = torch.randn(fan_out, fan_in, generator=generator, **like) / fan_in**0.5
    log_std = torch.full_like(loc, std).log()
    return BayesianLinear(loc, log_std, loc.new_zeros(fan_out), log_std[:, 0].clone())


def shared_weights(
    layer: BayesianLinear, inputs: Float[Tensor, "n in"], *, generator: torch.Generator
) -> Float[Tensor, "n out"]:
    r"""One draw of the weights for the whole minibatch.

    .. math:: y_n = (M + S \odot E)\, x_n + m + s \odot e, \qquad E_{oi}, e_o \sim N(0, 1)

    The same noise moves all examples: their gradients are correlated, and the variance of their mean does not fall to
    zero as the minibatch grows.

    Args:
        layer: the distribution of the weights.
        inputs: x, one example a row.
        generator: draws E and e.

    Returns:
        y, differentiable in the layer's four tensors and in the inputs.

    Raises:
        ValueError: if ``inputs`` does not fit the layer.

    Source: Blundell, Cornebise, Kavukcuoglu and Wierstra (2015), Weight Uncertainty in Neural Networks,
        arXiv:1505.05424.
    Book: sec-backprop
    """
    check_inputs(layer, inputs)
    weight, bias = _perturbations(layer, generator)
    return F.linear(inputs, layer.weight_loc + weight, layer.bias_loc + bias)


def local_reparameterisation(
    layer: BayesianLinear, inputs: Float[Tensor, "n in"], *, generator: torch.Generator
) -> Float[Tensor, "n out"]:
    r"""Draw the outputs instead of the weights: given its input, each output is Gaussian.

    .. math:: y_{no} = \sum_i M_{oi} x_{ni} + m_o + \sqrt{v_{no}}\, \varepsilon_{no}, \qquad
              v_{no} = \sum_i S_{oi}^2 x_{ni}^2 + s_o^2, \qquad \varepsilon_{no} \sim N(0, 1)

    Every example has noise of its own, as if it had seen weights of its own, and the variance of a mean gradient falls
    with the size of the minibatch. The outputs of one call are therefore no function of the inputs: to draw functions,
    draw weights.

    Args:
        layer: the distribution of the weights.
        inputs: x, one example a row.
        generator: draws ε.

    Returns:
        y, differentiable in the layer's four tensors and in the inputs.

    Raises:
        ValueError: if ``inputs`` does not fit the layer.

    Source: Kingma, Salimans and Welling (2015), Variational Dropout and the Local Reparameterization Trick,
        arXiv:1506.02557.
    Book: sec-backprop
    """
    check_inputs(layer, inputs)
    mean = F.linear(inputs, layer.weight_loc, layer.bias_loc)
    var = F.linear(inputs.square(), (2 * layer.weight_log_std).exp(), (2 * layer.bias_log_std).exp())
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + var.sqrt() * noise


def flipout(
    layer: BayesianLinear, inputs: Float[Tensor, "n in"], *, generator: torch.Generator
) -> Float[Tensor, "n out"]:
    r"""One perturbation of the weights for the whole minibatch, with signs that each example flips for itself.

    .. math:: y_n = M x_n + m + r_n \odot \big((S \odot E)\,(t_n \odot x_n) + s \odot e\big), \qquad
              r_{no}, t_{ni} \in \{-1, 1\}

    A symmetric perturbation with its signs flipped is as probable as before, so every example has the right
    distribution; the signs make the outputs of two examples uncorrelated, though not independent. What is even in the
    noise does not notice a sign: the part of the gradient in log S that comes from E² stays common to all examples.

    Args:
        layer: the distribution of the weights.
        inputs: x, one example a row.
        generator: draws E, e and the signs r, t.

    Returns:
        y, differentiable in the layer's four tensors and in the inputs.

    Raises:
        ValueError: if ``inputs`` does not fit the layer.

    Source: Wen, Vicol, Ba, Tran and Grosse (2018), Flipout, arXiv:1803.04386.
    Book: sec-backprop
    """
    check_inputs(layer, inputs)
    weight, bias = _perturbations(layer, generator)
    mean = F.linear(inputs, layer.weight_loc, layer.bias_loc)
    sign_in, sign_out = _signs(inputs, generator), _signs(mean, generator)
    return mean + sign_out * F.linear(sign_in * inputs, weight, bias)


def check_inputs(layer: BayesianLinear, inputs: Tensor) -> None:
    """Raise ``ValueError`` unless these are rows that the layer can take."""
    fan_in, dtype = layer.weight_loc.shape[1], layer.weight_loc.dtype
    if inputs.ndim != 2 or inputs.shape[1] != fan_in or inputs.dtype != dtype:
        got = f"{inputs.dtype} of shape {list(inputs.shape)}"
        raise ValueError(f"inputs must be [n, {fan_in}], in the layer's {dtype}, got {got}")


def _perturbations(layer, generator):
    """What a draw adds to the means of the weights and of the biases."""
    like = {"generator": generator, "dtype": layer.weight_loc.dtype, "device": layer.weight_loc.device}
    return tuple(s.exp() * torch.randn(s.shape, **like) for s in (layer.weight_log_std, layer.bias_log_std))


def _signs(like, generator):
    """-1 or 1, each with probability one half, in the shape of a tensor."""
    bits = torch.randint(2, like.shape, generator=generator, dtype=like.dtype, device=like.device)
    return 2 * bits - 1
