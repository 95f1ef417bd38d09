r"""One input, one output, known truth: a line, and a sine with a gap where nothing was measured.

The truth (``line_mean``, ``sine_mean``) is a function beside each data set, so that a figure or a test can ask for it.

Chapter: book/01-bayes.ipynb
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.data.records import Regression

__all__ = ["line", "line_mean", "sine_mean", "sine_with_gap"]


def line_mean(inputs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""The true line behind :func:`line`: :math:`f(x) = 0.3 + 0.8x`, element by element.

    Args:
        inputs: x, any shape, any range.

    Returns:
        f(x), in the shape, dtype and device of ``inputs``.

    Book: sec-linear-regression
    """
    return 0.3 + 0.8 * inputs


def sine_mean(inputs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""The true curve behind :func:`sine_with_gap`: :math:`f(x) = \sin(\pi x)`, element by element.

    Args:
        inputs: x, any shape, any range.

    Returns:
        f(x) in [-1, 1], in the shape, dtype and device of ``inputs``.

    Book: sec-linear-regression
    """
    return torch.sin(math.pi * inputs)


def line(
    num_points: int, *, noise_std: float = 0.1, generator: torch.Generator, dtype: torch.dtype | None = None
) -> Regression:
    r"""Noisy points on a line.

    .. math:: x_i \sim U(-1, 1), \qquad y_i = 0.3 + 0.8 x_i + \sigma\varepsilon_i, \quad \varepsilon_i \sim N(0, 1)

    Args:
        num_points: n, at least 1.
        noise_std: σ ≥ 0, a standard deviation in the units of the targets.
        generator: the only source of randomness; its device is the data's device.
        dtype: of the result; PyTorch's default dtype if not given.

    Returns:
        A :class:`Regression` with inputs [n, 1] and targets [n].

    Raises:
        ValueError: if ``num_points`` is below 1, or ``noise_std`` negative or not finite.

    Book: sec-linear-regression
    """
    _check(num_points, noise_std)
    like = {"generator": generator, "dtype": dtype, "device": generator.device}
    inputs = 2 * torch.rand(num_points, 1, **like) - 1
    targets = line_mean(inputs[:, 0]) + noise_std * torch.randn(num_points, **like)
    return Regression(inputs, targets, _card(num_points, "line 0.3 + 0.8x", "x uniform on [-1, 1]", noise_std))


def sine_with_gap(
    num_points: int, *, noise_std: float = 0.1, generator: torch.Generator, dtype: torch.dtype | None = None
) -> Regression:
    r"""Noisy points on one period of a sine, none of them between -0.3 and 0.4.

    .. math:: x_i \sim U([-1, -0.3] \cup [0.4, 1]), \qquad
              y_i = \sin(\pi x_i) + \sigma\varepsilon_i, \quad \varepsilon_i \sim N(0, 1)

    The gap is where a model has to say what it would rather not guess.

    Args:
        num_points: n, at least 1.
        noise_std: σ ≥ 0, a standard deviation in the units of the targets.
        generator: the only source of randomness; its device is the data's device.
        dtype: of the result; PyTorch's default dtype if not given.

    Returns:
        A :class:`Regression` with inputs [n, 1] and targets [n].

    Raises:
        ValueError: if ``num_points`` is below 1, or ``noise_std`` negative or not finite.

    Book: sec-linear-regression
    """
    _check(num_points, noise_std)
    like = {"generator": generator, "dtype": dtype, "device": generator.device}
    inputs = 1.3 * torch.rand(num_points, 1, **like) - 1  # the two pieces, 0.7 and 0.6 long, laid end to end
    inputs = torch.where(inputs > -0.3, inputs + 0.7, inputs)  # then the second moved across the gap
    targets = sine_mean(inputs[:, 0]) + noise_std * torch.randn(num_points, **like)
    where = "x uniform on [-1, -0.3] and [0.4, 1]"
    return Regression(inputs, targets, _card(num_points, "sine sin(pi x)", where, noise_std))


def _check(num_points: int, noise_std: float) -> None:
    if not num_points >= 1:
        raise ValueError(f"num_points must be at least 1, got {num_points}")
    if not 0 <= noise_std < math.inf:
        raise ValueError(f"noise_std must be non-negative and finite, got {noise_std}")


def _card(num_points: int, curve: str, where: str, noise_std: float) -> str:
    return (
        f"{num_points} rows; x and y, no units; {curve}, {where}, noise std {noise_std}; simulated here; public domain"
    )
