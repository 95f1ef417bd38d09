r"""Many stochastic passes over the same inputs, as one batch, with all that they share computed once.

A pass through a network with dropout is a draw of its output. A loop over T passes repeats what lies below the first
dropout T times and pays the overhead of every layer T times. Here the passes are rows of one batch, in chunks that fit
the memory that they may take, and on a CPU the cache.

Chapter: book/07-dropout.ipynb
"""

import math
from collections.abc import Iterator
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
from bdl_lib.dropout._memory import PeakMemory
from bdl_lib.dropout.layers import Draw, StochasticLayer, giving_masks, stochastic_layers
from bdl_lib.dropout.sharing import SharedModel, share

__all__ = ["draw_passes", "iterate_passes"]

_CACHE_BYTES = (
    2**23
)  # what a chunk of passes holds at once, on a CPU; ever the same, so that a seed gives the same draws


def draw_passes(
    model: nn.Module,
    inputs: Shaped[Tensor, "n *features"],
    *,
    num_passes: int,
    generator: torch.Generator,
    is_shared: bool = False,
    memory_bytes: int = 2**28,
) -> Float[Tensor, "passes n *out"]:
    r"""The outputs of T stochastic passes: T independent draws of the network's output for every input.

    .. math:: f_{tn} = f(x_n;\, z_{tn}), \qquad z_{tn} \sim q(z), \quad t = 1, \dots, T

    What no mask reaches is computed once (see ``sharing``); the rest runs in chunks of rows. Batch normalisation uses
    its running statistics. The model treats every example by itself, its first axis is that of the examples
    throughout, and it returns one tensor. No gradients are recorded.

    The same seed gives the same draws for the same model, inputs and arguments, ``memory_bytes`` included: how the
    random numbers fall to the passes depends on the chunks.

    Args:
        model: has at least one layer of ``layers`` with a rate above 0, in training or evaluation mode.
        inputs: x, finite, at least one.
        num_passes: T, at least 1.
        generator: draws the masks; on the device of the model.
        is_shared: True gives all inputs of a pass the same masks, so that a pass is one function of the input.
            DropConnect always does.
        memory_bytes: how much the passes may take at a time, beside the inputs and the result.

    Returns:
        The outputs.

    Raises:
        ValueError: if an argument is out of its range; if the model has no stochastic layer, PyTorch's own dropout, or
            batch normalisation without running statistics; if its layers do not keep to one example a row; or if
            ``memory_bytes`` is too little for one pass over one input.

    Source: Gal and Ghahramani (2016), Dropout as a Bayesian Approximation, arXiv:1506.02142.
    Book: sec-passes
    """
    plan = _plan(model, inputs, num_passes, is_shared, memory_bytes)
    return _run(plan, inputs, num_passes, generator)


def iterate_passes(
    model: nn.Module,
    inputs: Shaped[Tensor, "n *features"],
    *,
    num_passes: int,
    generator: torch.Generator,
    is_shared: bool = False,
    memory_bytes: int = 2**28,
) -> Iterator[Float[Tensor, "chunk n *out"]]:
    r"""The same passes as :func:`draw_passes`, a chunk at a time, for averages that need not keep them all.

    Args:
        model: as for :func:`draw_passes`.
        inputs: as there.
        num_passes: T, at least 1, over all chunks.
        generator: as there.
        is_shared: as there.
        memory_bytes: how much the passes may take at a time, the chunk and the one before it included, unless a single
            pass over all inputs has a larger result.

    Returns:
        Chunks of outputs, of T passes together. Everything is checked before the first is asked for.

    Raises:
        ValueError: as :func:`draw_passes`.

    Book: sec-passes
    """
    plan = _plan(model, inputs, num_passes, is_shared, memory_bytes)
    pass_bytes = len(inputs) * math.prod(plan.out_shape) * plan.dtype.itemsize
    sizes = _even_parts(num_passes, max(1, memory_bytes // 8 // max(1, pass_bytes)))
    return (_run(plan, inputs, size, generator) for size in sizes)


class _Plan(NamedTuple):
    """What to run, and on how many rows at a time."""

    shared: SharedModel
    layers: dict[str, StochasticLayer]
    is_shared: bool
    block_size: int  # inputs at a time
    chunk_size: int  # passes over them at a time
    out_shape: tuple[int, ...]
    dtype: torch.dtype


class _Costs(NamedTuple):
    """Bytes held at the peak."""

    below: int  # for each input, below the cut
    row: int  # for each pass over each input, above it
    one_pass: int  # for each pass, whatever the number of inputs


def _plan(model, inputs, num_passes, is_shared, memory_bytes) -> _Plan:
    check_at_least("num_passes", num_passes, 1)
    check_at_least("memory_bytes", memory_bytes, 1)
    check_inputs(inputs)
    layers = check_replaced(model, stochastic_layers(model))
    check_norms(model)
    with torch.no_grad(), FunctionalDropout():
        shared = share(model, _rows(inputs, 2))
        costs, outputs = _measure(shared, layers, inputs)
    block_size, chunk_size = _sizes(costs, len(inputs), num_passes, memory_bytes, inputs.device)
    return _Plan(shared, layers, is_shared, block_size, chunk_size, tuple(outputs.shape[1:]), outputs.dtype)


def _rows(inputs: Tensor, num_rows: int) -> Tensor:
    """Some rows like those of the inputs, that may be written to."""
    return inputs[:1].repeat(num_rows, *[1] * (inputs.ndim - 1))


def _measure(shared: SharedModel, layers: dict[str, StochasticLayer], inputs: Tensor) -> tuple[_Costs, Tensor]:
    below, above, outputs = _peaks(shared, layers, _rows(inputs, 2))
    if not any(layer.shares_mask for layer in layers.values()):
        return _Costs(-(-below // 2), -(-above // 2), 0), outputs
    more = _peaks(shared, layers, _rows(inputs, 10))[1]
    row = -(-(more - above) // 8)
    return _Costs(-(-below // 2), row, max(0, above - 2 * row)), outputs


def _peaks(shared: SharedModel, layers: dict[str, StochasticLayer], rows: Tensor) -> tuple[int, int, Tensor]:
    """Most bytes held below the cut, above it, and the outputs of one pass."""
    draw, calls = Draw(torch.Generator(rows.device), 1, len(rows)), []

    def counted(layer, inputs):
        calls.append(layer)
        return draw(layer, inputs)

    with PeakMemory() as below:
        values = shared.below(rows)
    with PeakMemory() as above, giving_masks(layers, counted):
        outputs = check_tensor(shared.above(values, 1))
    if not calls:
        raise ValueError("model must pass through a stochastic layer with a rate above 0, got an output that met none")
    if outputs.shape[:1] != rows.shape[:1]:
        raise ValueError(f"model must return [n, *out], got {list(outputs.shape)} for {len(rows)} inputs")
    return below.peak_bytes, above.peak_bytes, outputs


def _sizes(costs: _Costs, num_inputs: int, num_passes: int, memory_bytes: int, device: torch.device) -> tuple[int, int]:
    """How many inputs, and how many passes over them, to run at a time, within a quarter of the memory.

    The rest is for what :class:`PeakMemory` does not see: the scratch space of convolutions, what the allocator keeps
    of memory that was given back (seen: three times what was in use), and the results that :func:`iterate_passes` hands
    out.
    """
    least = max(costs.below, costs.row + costs.one_pass)
    budget = memory_bytes // 4
    if budget < least:
        raise ValueError(f"memory_bytes must be at least {4 * least} for one pass over one input, got {memory_bytes}")
    above = min(budget, _CACHE_BYTES) if device.type == "cpu" else budget
    row = max(1, costs.row)
    most = min(num_inputs, budget // max(1, costs.below), (above - costs.one_pass) // row)
    block_size = _even_parts(num_inputs, max(1, most))[0]
    chunk_size = above // (block_size * row + costs.one_pass)
    return block_size, _even_parts(num_passes, max(1, chunk_size))[0]


def _even_parts(total: int, largest: int) -> list[int]:
    """Sizes of the fewest parts of at most ``largest``, as equal as they can be; the first is the largest."""
    num_parts = -(-total // largest)
    return [total // num_parts + (i < total % num_parts) for i in range(num_parts)]


def _run(plan: _Plan, inputs: Tensor, num_passes: int, generator: torch.Generator) -> Tensor:
    """Block by block of the inputs, chunk by chunk of the passes."""
    outputs = torch.empty(num_passes, len(inputs), *plan.out_shape, dtype=plan.dtype, device=inputs.device)
    seed = _seed(plan, generator)
    blocks = zip(inputs.split(plan.block_size), outputs.split(plan.block_size, dim=1), strict=True)
    with torch.no_grad(), FunctionalDropout():
        for block, block_outputs in blocks:
            values = plan.shared.below(block)
            again = None if seed is None else torch.Generator(inputs.device).manual_seed(seed)
            for chunk in block_outputs.split(plan.chunk_size):
                draw = Draw(generator, len(chunk), len(block), plan.is_shared, again)
                with giving_masks(plan.layers, draw):
                    rows = plan.shared.above(values, len(chunk))
                chunk.copy_(rows.unflatten(0, chunk.shape[:2]))
    return outputs


def _seed(plan: _Plan, generator: torch.Generator) -> int | None:
    """Of the masks that all inputs share: drawn anew for every block of inputs, they must come out the same."""
    if not (plan.is_shared or any(layer.shares_mask for layer in plan.layers.values())):
        return None
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
