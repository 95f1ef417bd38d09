r"""Layers that drop units, channels or weights at random, where the call decides whether and with which masks.

A layer holds a rate and no randomness. Called as any module, it is the deterministic network, in training mode and in
evaluation mode alike: the masks are scaled so that their mean is one, and nothing remains to be scaled. Masks come from
outside: from :func:`drawing`, for one stochastic pass, and from the functions of ``passes`` and ``masks``, for many.

Chapter: book/07-dropout.ipynb
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bdl_lib.dropout._bits import bernoulli_mask
from bdl_lib.dropout._checks import FunctionalDropout, check_rate, check_replaced

__all__ = ["ChannelDropout", "DropConnect", "Dropout", "StochasticLayer", "drawing", "stochastic_layers"]

MaskSource = Callable[["StochasticLayer", Tensor], Tensor]  # (layer, its inputs) -> its outputs


@runtime_checkable
class StochasticLayer(Protocol):
    """What a module must have to be given masks. ``forward`` hands over to ``mask_source`` where there is one.

    ``stacked`` are the inputs with the passes in front, [1 or T, n, *features]: 1 where all passes still have the same.

    Book: sec-dropout-layers
    """

    mask_source: MaskSource | None  # None: the deterministic network
    is_random: bool  # False where the rate is 0
    shares_mask: bool  # True: one mask a pass, whatever the number of inputs

    def mask_shape(self, stacked: Tensor) -> tuple[int, ...]:
        """Shape of the mask of one input."""

    def draw_mask(self, shape: tuple[int, ...], *, like: Tensor, generator: torch.Generator) -> Tensor:
        """Masks of this shape, [T, n or 1, *mask_shape], of mean one, with the dtype and on the device of ``like``."""

    def with_mask(self, stacked: Tensor, mask: Tensor) -> Tensor:
        """The outputs of all passes, [T, n, *out]. Where no gradient is recorded, the mask may be written over."""


class Dropout(nn.Module):
    r"""Drop every unit of every example with the same probability, independently.

    .. math:: y_i = \frac{z_i}{1 - p}\, x_i, \qquad z_i \sim \operatorname{Bernoulli}(1 - p)

    Args:
        rate: p, the probability of dropping a unit, 0 <= p < 1. Masks are drawn at the nearest multiple of 2^-8, 2^-16
            or 2^-32, the coarsest within one part in 10,000.

    Raises:
        ValueError: if ``rate`` is outside its range.

    Source: Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov (2014), Dropout: A Simple Way to Prevent Neural
        Networks from Overfitting, JMLR 15, 1929-1958.
    Book: sec-dropout-layers
    """

    mask_source: MaskSource | None = None
    shares_mask = False

    def __init__(self, rate: float):
        super().__init__()
        self.rate = check_rate(rate)

    @property
    def is_random(self) -> bool:
        """Whether it ever drops anything."""
        return self.rate > 0

    def forward(self, inputs: Float[Tensor, "n *features"]) -> Float[Tensor, "m *features"]:
        """The inputs as they are, or with masks where the call brings some."""
        return inputs if self.mask_source is None else self.mask_source(self, inputs)

    def mask_shape(self, stacked: Tensor) -> tuple[int, ...]:
        """One number a unit."""
        return tuple(stacked.shape[2:])

    def draw_mask(self, shape: tuple[int, ...], *, like: Tensor, generator: torch.Generator) -> Tensor:
        """Masks of this shape."""
        return bernoulli_mask(self.rate, shape, like=like, generator=generator)

    def with_mask(self, stacked: Tensor, mask: Tensor) -> Tensor:
        """The inputs, masked: in the mask's own memory where it is not needed any more."""
        is_large_enough = mask.shape[1:] == stacked.shape[1:] and mask.dtype == stacked.dtype
        return torch.mul(stacked, mask, out=mask if is_large_enough and not torch.is_grad_enabled() else None)

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate}"


class ChannelDropout(Dropout):
    r"""Drop whole channels, so that the neighbours of a pixel do not tell what it was.

    .. math:: y_{cij} = \frac{z_c}{1 - p}\, x_{cij}, \qquad z_c \sim \operatorname{Bernoulli}(1 - p)

    Args:
        rate: p, the probability of dropping a channel, 0 <= p < 1, rounded as in :class:`Dropout`. The inputs have
            their channels in the second dimension, [n, channels, *places].

    Raises:
        ValueError: if ``rate`` is outside its range.

    Source: Tompson, Goroshin, Jain, LeCun and Bregler (2015), Efficient Object Localization Using Convolutional
        Networks, arXiv:1411.4280.
    Book: sec-dropout-layers
    """

    def mask_shape(self, stacked: Tensor) -> tuple[int, ...]:
        """One number a channel."""
        return (stacked.shape[2], *[1] * (stacked.ndim - 3))


class DropConnect(nn.Linear):
    r"""A linear layer that drops weights instead of units, one mask a pass for all inputs.

    Its weights start as those of ``nn.Linear`` do, which draws them from PyTorch's own generator.

    .. math:: y_o = \sum_i \frac{z_{oi}}{1 - p}\, W_{oi}\, x_i + b_o, \qquad z_{oi} \sim \operatorname{Bernoulli}(1 - p)

    Args:
        in_features: how many inputs.
        out_features: how many outputs.
        rate: p, the probability of dropping a weight, 0 <= p < 1, rounded as in :class:`Dropout`. Biases stay.
        bias: False leaves out b.
        dtype: of the weights, PyTorch's default dtype if not given.
        device: of the weights, PyTorch's default device if not given.

    Raises:
        ValueError: if ``rate`` is outside its range.

    Source: Wan, Zeiler, Zhang, LeCun and Fergus (2013), Regularization of Neural Networks using DropConnect, ICML,
        PMLR 28(3), 1058-1066.
    Book: sec-dropout-layers
    """

    mask_source: MaskSource | None = None
    shares_mask = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rate: float,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        self.rate = check_rate(rate)
        super().__init__(in_features, out_features, bias=bias, dtype=dtype, device=device)

    @property
    def is_random(self) -> bool:
        """Whether it ever drops anything."""
        return self.rate > 0

    def forward(self, inputs: Float[Tensor, "n *places in"]) -> Float[Tensor, "m *places out"]:
        """The linear layer, or that of masked weights where the call brings masks."""
        return super().forward(inputs) if self.mask_source is None else self.mask_source(self, inputs)

    def mask_shape(self, stacked: Tensor) -> tuple[int, ...]:
        """One number a weight."""
        return (self.out_features, self.in_features)

    def draw_mask(self, shape: tuple[int, ...], *, like: Tensor, generator: torch.Generator) -> Tensor:
        """Masks of this shape."""
        return bernoulli_mask(self.rate, shape, like=like, generator=generator)

    def with_mask(self, stacked: Tensor, mask: Tensor) -> Tensor:
        """One product a pass."""
        weight = (self.weight * mask).squeeze(1)  # [T, out, in]
        rows = stacked.flatten(1, -2)  # [1 or T, n * places, in]
        if len(rows) == 1:
            outputs = F.linear(rows[0], weight.flatten(0, 1)).unflatten(1, weight.shape[:2]).transpose(0, 1)
        else:
            outputs = torch.bmm(rows, weight.mT)
        outputs = outputs if self.bias is None else outputs + self.bias
        return outputs.reshape(len(weight), *stacked.shape[1:-1], self.out_features)

    def extra_repr(self) -> str:
        """The sizes and the rate."""
        return f"{super().extra_repr()}, rate={self.rate}"


class Draw(NamedTuple):
    """Fresh masks at every call of a layer, for T passes over the same n inputs."""

    generator: torch.Generator
    num_passes: int = 1
    num_inputs: int | None = None  # None: as many as come
    is_shared: bool = False  # one mask a pass for all inputs
    shared_generator: torch.Generator | None = None  # draws the masks that inputs share; None: the same as the others

    def __call__(self, layer: StochasticLayer, inputs: Tensor) -> Tensor:
        stacked = stack_passes(inputs, self.num_passes, self.num_inputs)
        is_shared = self.is_shared or layer.shares_mask
        generator = self.shared_generator if is_shared and self.shared_generator is not None else self.generator
        shape = (self.num_passes, 1 if is_shared else stacked.shape[1], *layer.mask_shape(stacked))
        mask = layer.draw_mask(shape, like=stacked, generator=generator)
        return layer.with_mask(stacked, mask).flatten(0, 1)


def stack_passes(inputs: Tensor, num_passes: int, num_inputs: int | None) -> Tensor:
    """From [n or T * n, *features] to [1 or T, n, *features]."""
    num_inputs = len(inputs) if num_inputs is None else num_inputs
    if inputs.ndim < 2 or len(inputs) not in (num_inputs, num_passes * num_inputs):
        raise ValueError(
            "inputs of a stochastic layer must be [n, *features], with an example a row, "
            f"got {list(inputs.shape)} in a pass over {num_inputs} example(s)"
        )
    return inputs.unflatten(0, (-1, num_inputs))


def stochastic_layers(model: nn.Module) -> dict[str, StochasticLayer]:
    """The layers of a model that drop something at a rate above zero.

    Args:
        model: any module.

    Returns:
        Name in the model to layer, in the order of ``model.named_modules()``; that of ``model`` itself is "".

    Book: sec-dropout-layers
    """
    return {name: m for name, m in model.named_modules() if isinstance(m, StochasticLayer) and m.is_random}


@contextlib.contextmanager
def giving_masks(layers: dict[str, StochasticLayer], source: MaskSource) -> Iterator[None]:
    """Within, the layers get their masks from ``source``; afterwards, from where they got them before."""
    before = [(layer, layer.mask_source) for layer in layers.values()]
    try:
        for layer in layers.values():
            layer.mask_source = source
        yield
    finally:
        for layer, earlier in before:
            layer.mask_source = earlier


@contextlib.contextmanager
def drawing(model: nn.Module, *, generator: torch.Generator) -> Iterator[None]:
    r"""Within, a call of the model is one stochastic pass: fresh masks at each call.

    This is how a network with dropout is trained, and ``with drawing(model, generator=generator): model(inputs)`` is
    one draw of the network's output. Gradients flow as always. The model is left as it was found, after an error too.

    Args:
        model: a module with at least one of the layers of this file. Training mode and evaluation mode stay as they
            are, and mean nothing to these layers.
        generator: draws the masks; on the device of the model.

    Yields:
        Nothing: the model itself is changed within.

    Raises:
        ValueError: if the model has no layer with a rate above 0, or PyTorch's own dropout, which takes no generator.

    Book: sec-dropout-layers
    """
    layers = check_replaced(model, stochastic_layers(model))
    with giving_masks(layers, Draw(generator)), FunctionalDropout():
        yield
