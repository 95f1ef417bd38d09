r"""A normalizing flow: Gaussian noise, bent by invertible layers into shapes that no Gaussian takes.

Chapter: book/05-vi.ipynb
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.vi._checks import check_at_least, check_loc, check_positive
from bdl_lib.vi.families import standard_noise

__all__ = ["RealNvp", "real_nvp"]

_MAX_LOG_SCALE = 2.0  # of one layer: keeps exp() in bounds, as in the paper's tanh


class RealNvp(NamedTuple):
    r"""Real-valued non-volume-preserving flow: each layer shifts and scales half of the coordinates by the others.

    .. math:: y_B = y_B \odot e^{s(y_A)} + t(y_A), \qquad \theta = m + e^{l} \odot y, \qquad y \sim N(0, I)
              \text{ before the first layer}

    The layers' Jacobians are triangular, so :math:`\log q(\theta) = \log N(y_0; 0, I) - \sum s - \sum l`. The functions
    s and t are networks with one hidden layer of tanh units; A and B change places from layer to layer.

    Book: sec-flows
    """

    loc: Float[Tensor, " dim"]  # m
    log_std: Float[Tensor, " dim"]  # l
    in_weight: Float[Tensor, "layers hidden dim"]
    in_bias: Float[Tensor, "layers hidden"]
    out_weight: Float[Tensor, "layers twice_dim hidden"]  # s above t
    out_bias: Float[Tensor, "layers twice_dim"]

    @property
    def dim(self) -> int:
        """How many numbers a draw has."""
        return len(self.loc)

    def rsample(self, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples dim"]:
        """Draws, differentiable in the parameters."""
        y = standard_noise(self.loc, num_samples, self.dim, generator)
        for layer in range(len(self.in_weight)):
            log_scale, shift = self._coupling(layer, y)
            y = y * log_scale.exp() + shift
        return self.loc + self.log_std.exp() * y

    def sample(self, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples dim"]:
        """Draws without gradients."""
        with torch.no_grad():
            return self.rsample(num_samples, generator=generator)

    def log_prob(self, position: Float[Tensor, "n dim"]) -> Float[Tensor, " n"]:
        """Log density at each row, in nats: the layers undone, last first."""
        y = (position - self.loc) * (-self.log_std).exp()
        log_volume = self.log_std.sum()
        for layer in reversed(range(len(self.in_weight))):
            log_scale, shift = self._coupling(layer, y)
            y = (y - shift) * (-log_scale).exp()
            log_volume = log_volume + log_scale.sum(-1)
        return -0.5 * (y.square() + torch.log(y.new_tensor(2 * torch.pi))).sum(-1) - log_volume

    def _coupling(self, layer, y):
        """Log scale and shift [n, dim] of one layer: zero for the coordinates A, which it reads and leaves."""
        is_moved = _is_moved(self.dim, layer, y.device)
        hidden = torch.tanh(torch.where(is_moved, 0, y) @ self.in_weight[layer].mT + self.in_bias[layer])
        raw, shift = (hidden @ self.out_weight[layer].mT + self.out_bias[layer]).chunk(2, -1)
        log_scale = _MAX_LOG_SCALE * torch.tanh(raw / _MAX_LOG_SCALE)
        return torch.where(is_moved, log_scale, 0), torch.where(is_moved, shift, 0)


def real_nvp(
    loc: Float[Tensor, " dim"], *, std: float = 1.0, num_layers: int = 6, hidden: int = 32, generator: torch.Generator
) -> RealNvp:
    r"""Where a fit of a flow starts: at a Gaussian, since the last weights of every layer are zero.

    Args:
        loc: its mean, finite, at least 2 numbers.
        std: > 0, its standard deviation.
        num_layers: at least 2, so that every coordinate is moved.
        hidden: units of the network in each layer, at least 1.
        generator: draws the first weights.

    Returns:
        The family, in the dtype and on the device of ``loc``.

    Raises:
        ValueError: if ``loc`` is not a finite vector of 2 or more, or another argument is out of range.

    Source: Dinh, Sohl-Dickstein and Bengio (2017), arXiv:1605.08803, section 3.
    Book: sec-flows
    """
    check_loc(loc)
    check_at_least("dim", len(loc), 2)
    check_positive("std", std)
    check_at_least("num_layers", num_layers, 2)
    check_at_least("hidden", hidden, 1)
    dim = len(loc)
    in_weight = standard_noise(loc, num_layers * hidden, dim, generator).unflatten(0, (num_layers, hidden))
    return RealNvp(
        loc.detach().clone(),
        torch.full_like(loc, std).log(),
        in_weight / dim**0.5,
        loc.new_zeros(num_layers, hidden),
        loc.new_zeros(num_layers, 2 * dim, hidden),
        loc.new_zeros(num_layers, 2 * dim),
    )


def _is_moved(dim, layer, device):
    """Which coordinates a layer moves: the even ones, then the odd ones."""
    return torch.arange(dim, device=device) % 2 == layer % 2
