r"""What a sampler asks of a density: its logarithm, the gradient of that, or both at once.

A sampler takes any ``log_prob`` from [chains, dim] to [chains]. Where the callable has closed forms, as methods
``value_and_grad`` and ``grad``, those are used; otherwise autograd differentiates the whole batch at once. Chains do
not depend on one another, so the gradient of their sum holds the gradient of each.

Chapter: book/04-mcmc.ipynb
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bdl_lib.evidence import LogProb
from bdl_lib.mcmc._checks import check_position, check_start

__all__ = ["Density", "differentiable"]


class Density(NamedTuple):
    """A log density and its gradient, for all chains at once.

    Book: sec-hmc
    """

    log_prob: LogProb  # [chains, dim] -> [chains], nats
    value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]]  # -> [chains], [chains, dim]
    grad: Callable[[Tensor], Tensor]  # -> [chains, dim], where the value is not needed


def differentiable(log_prob: LogProb) -> Density:
    r"""A log density with its gradient, in closed form if the callable has one.

    .. math:: \nabla_{\theta_c} \sum_{c'} \log \pi(\theta_{c'}) = \nabla_{\theta_c} \log \pi(\theta_c)

    Args:
        log_prob: [chains, dim] to [chains], in nats, up to a constant. Its ``value_and_grad(position)`` and
            ``grad(position)`` are used if it has them, together or either of the two.

    Returns:
        A :class:`Density`; what it returns has no autograd history.

    Raises:
        ValueError: from the gradient, if autograd finds no way from the position to ``log_prob``.

    Book: sec-hmc
    """

    def value_and_grad(position):
        with torch.enable_grad():
            leaf = position.detach().requires_grad_()
            value = log_prob(leaf)
            if not value.requires_grad:
                raise ValueError("log_prob must depend on the position by way of autograd, or have a value_and_grad")
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), grad

    value_and_grad = getattr(log_prob, "value_and_grad", value_and_grad)
    return Density(log_prob, value_and_grad, getattr(log_prob, "grad", lambda position: value_and_grad(position)[1]))


def initial_value_and_grad(density: Density, position: Tensor) -> tuple[Tensor, Tensor]:
    """The density where the chains start, in nats, and its gradient; a ``ValueError`` if no chain can go on there."""
    check_position(position)
    with torch.no_grad():
        value, grad = density.value_and_grad(position)
    check_start(position, value, grad)
    return value, grad
