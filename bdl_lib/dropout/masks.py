r"""Fixed masks: a draw of the network as one function of its input, and all the functions that there are.

A dictionary holds the masks of every stochastic layer, ``[T, *shape]`` for masks of that shape, by the layer's name in
the model. A layer that a pass goes through again has a mask for each time: ``"drop"``, ``"drop:2"``, …

Chapter: book/07-dropout.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from bdl_lib.dropout._checks import (
    FunctionalDropout,
    check_at_least,
    check_inputs,
    check_norms,
    check_replaced,
    check_tensor,
)
from bdl_lib.dropout.layers import StochasticLayer, giving_masks, stack_passes, stochastic_layers
from bdl_lib.dropout.sharing import share

__all__ = ["AllMasks", "all_masks", "apply_masks", "draw_masks"]

_MAX_UNITS = 20


class AllMasks(NamedTuple):
    """Every mask of a model, and how probable it is.

    Book: sec-all-masks
    """

    masks: dict[str, Float[Tensor, "masks *shape"]]  # 2^units of them
    log_prob: Float[Tensor, " masks"]  # in nats; the probabilities sum to 1


class _Place(NamedTuple):
    """Where a pass meets a stochastic layer."""

    layer: StochasticLayer
    mask_shape: tuple[int, ...]
    like: Tensor  # of the dtype and on the device of the mask


def draw_masks(
    model: nn.Module, inputs: Shaped[Tensor, "n *features"], *, num_draws: int, generator: torch.Generator
) -> dict[str, Float[Tensor, "draws *shape"]]:
    r"""Masks to keep: each draw makes one function of the network, the same for whatever inputs it is given.

    .. math:: z_t \sim q(z), \qquad f_t(x) = f(x;\, z_t), \quad t = 1, \dots, T

    Args:
        model: as for :func:`draw_passes`.
        inputs: some inputs, of which only the shape and the dtype matter.
        num_draws: T, at least 1.
        generator: draws the masks; on the device of the model.

    Returns:
        The masks of each layer, of mean one; for :func:`apply_masks`.

    Raises:
        ValueError: if ``num_draws`` is below 1, or for a model or inputs that :func:`draw_passes` refuses.

    Book: sec-function-draws
    """
    check_at_least("num_draws", num_draws, 1)
    return {
        name: layer.draw_mask((num_draws, *shape), like=like, generator=generator)
        for name, (layer, shape, like) in _places(model, inputs).items()
    }


def all_masks(model: nn.Module, inputs: Shaped[Tensor, "n *features"]) -> AllMasks:
    r"""Every mask that the layers of a small network can draw, with its probability.

    .. math:: q(z) = \prod_i (1 - p_i)^{z_i}\, p_i^{1 - z_i}, \qquad z \in \{0, 1\}^{\text{units}}

    Sums over them are expectations without Monte Carlo error: weight the outputs of :func:`apply_masks` by
    ``log_prob.exp()``. The masks are those of passes that share them among their inputs.

    Args:
        model: as for :func:`draw_passes`, with at most 20 units (or channels, or weights) that may be dropped.
        inputs: some inputs, of which only the shape and the dtype matter.

    Returns:
        An :class:`AllMasks`: 2^units masks.

    Raises:
        ValueError: if there are more than 20 units, or for a model or inputs that :func:`draw_passes` refuses.

    Book: sec-all-masks
    """
    places = _places(model, inputs)
    sizes = [math.prod(place.mask_shape) for place in places.values()]
    if not sum(sizes) <= _MAX_UNITS:
        raise ValueError(f"model must have at most {_MAX_UNITS} units to drop, got {sum(sizes)}")
    like = next(iter(places.values())).like
    units = torch.arange(sum(sizes), device=like.device)
    is_kept = (torch.arange(2 ** sum(sizes), device=like.device)[:, None] >> units & 1).bool()
    masks, log_prob = {}, 0
    for (name, place), kept in zip(places.items(), is_kept.split(sizes, dim=1), strict=True):
        rate = torch.as_tensor(place.layer.rate, dtype=like.dtype, device=like.device)
        masks[name] = (kept / (1 - rate)).reshape(-1, *place.mask_shape)
        log_prob = log_prob + torch.where(kept, (-rate).log1p(), rate.log()).sum(1)
    return AllMasks(masks, log_prob)


def apply_masks(
    model: nn.Module, inputs: Shaped[Tensor, "n *features"], masks: dict[str, Float[Tensor, "draws *shape"]]
) -> Float[Tensor, "draws n *out"]:
    r"""The outputs under given masks, all draws as one batch: T functions of the input.

    Args:
        model: the model whose masks they are.
        inputs: x, finite, at least one.
        masks: from :func:`draw_masks` or :func:`all_masks`, the same number T in every layer.

    Returns:
        The outputs, differentiable in the weights, the inputs and the masks. T n rows are held at a time.

    Raises:
        ValueError: if ``masks`` are not those of the model, or for a model or inputs that :func:`draw_passes` refuses.

    Book: sec-function-draws
    """
    num_draws = _check_masks(masks, _places(model, inputs))
    layers, seen = stochastic_layers(model), {}
    names = {layer: name for name, layer in layers.items()}

    def source(layer, layer_inputs):
        stacked = stack_passes(layer_inputs, num_draws, len(inputs))
        mask = masks[_next_name(names[layer], seen)].unsqueeze(1).clone()  # the layer may write over it
        return layer.with_mask(stacked, mask).flatten(0, 1)

    with FunctionalDropout():
        with torch.no_grad():
            shared = share(model, inputs[:1].repeat(2, *[1] * (inputs.ndim - 1)))
        with giving_masks(layers, source):
            return shared.above(shared.below(inputs), num_draws).unflatten(0, (num_draws, len(inputs)))


def _next_name(name: str, seen: dict[str, int]) -> str:
    seen[name] = seen.get(name, 0) + 1
    name_or_model = name or "model"
    return name_or_model if seen[name] == 1 else f"{name_or_model}:{seen[name]}"


def _places(model: nn.Module, inputs: Tensor) -> dict[str, _Place]:
    """One pass over one input, to see where it meets a stochastic layer."""
    check_inputs(inputs)
    layers = check_replaced(model, stochastic_layers(model))
    check_norms(model)
    names, seen, places = {layer: name for name, layer in layers.items()}, {}, {}

    def source(layer, layer_inputs):
        stacked = stack_passes(layer_inputs, 1, 1)
        place = _Place(layer, layer.mask_shape(stacked), stacked.new_empty(0))
        places[_next_name(names[layer], seen)] = place
        return layer.with_mask(stacked, stacked.new_ones(1, 1, *place.mask_shape)).flatten(0, 1)

    with torch.no_grad(), FunctionalDropout(), giving_masks(layers, source):
        check_tensor(model(inputs[:1].clone()))
    if not places:
        raise ValueError("model must pass through a stochastic layer with a rate above 0, got an output that met none")
    return places


def _check_masks(masks: dict[str, Tensor], places: dict[str, _Place]) -> int:
    if masks.keys() != places.keys():
        raise ValueError(f"masks must be those of the model, {sorted(places)}, got {sorted(masks)}")
    num_draws = len(next(iter(masks.values())))
    check_at_least("the number of masks", num_draws, 1)
    for name, place in places.items():
        if masks[name].shape != (num_draws, *place.mask_shape):
            expected = [num_draws, *place.mask_shape]
            raise ValueError(f"masks['{name}'] must have shape {expected}, got {list(masks[name].shape)}")
    return num_draws
