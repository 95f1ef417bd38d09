r"""What the passes of a network have in common, computed once.

Up to its first stochastic layers, a network gives the same values in every pass. :func:`share` cuts a model in two:
*below*, which runs once over the n inputs, and *above*, which runs over the T n rows of all passes. The cut follows the
flow of values (``torch.fx``), so that residual connections around a stochastic layer are right: what crosses the cut
beside the layer is repeated for every pass, what only feeds a stochastic layer is not, since that layer makes T of one.

Chapter: book/07-dropout.ipynb
"""

import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from bdl_lib.dropout.layers import StochasticLayer

__all__ = ["SharedModel", "share"]

_Node = fx.Node
_IN_PLACE = {getattr(operator, name) for name in dir(operator) if name.startswith("i") and hasattr(operator, name[1:])}


class SharedModel(NamedTuple):
    """A model in two parts: ``above(below(inputs), num_passes)`` are the outputs of all passes, [T * n, *out].

    Book: sec-passes
    """

    below: Callable[[Tensor], tuple[Tensor, ...]]  # [n, *features] -> the values that cross the cut, each [n, ...]
    above: Callable[[tuple[Tensor, ...], int], Tensor]
    is_cut: bool  # False: nothing is shared, below gives the inputs as they are


def share(model: nn.Module, inputs: Tensor) -> SharedModel:
    r"""Cut a model between what all passes share and what they do not.

    Where the flow of values cannot be read (control flow that depends on values), where something other than one tensor
    with an example a row would cross the cut, where something below it is written in place, or where the two parts do
    not give what the model gives, nothing is shared: right, and slower.

    Args:
        model: has stochastic layers.
        inputs: a few inputs, to see what crosses the cut and what comes out.

    Returns:
        A :class:`SharedModel`. Its parts look up the model's weights when they run, and draw nothing by themselves.

    Raises:
        ValueError: if no stochastic layer has a part in the outputs.

    Book: sec-passes
    """
    graph = trace(model)
    random = _random_nodes(model, graph) if graph else set()
    if graph is None or _writes_below(model, graph, random):
        return _unshared(model)
    if next(iter(reversed(graph.nodes))) not in random:
        raise ValueError("model must have a stochastic layer that its outputs depend on, got none on the way to them")
    cut = _cut(model, graph, random)
    values = cut.below(inputs.clone())
    fits = all(isinstance(value, Tensor) and value.shape[:1] == inputs.shape[:1] for value in values)
    return cut if fits and _agree(cut.above(values, 1), model(inputs.clone())) else _unshared(model)


def _agree(found, expected) -> bool:
    """Whether the model was read right: without masks, its two parts give what it gives as a whole."""
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return False
    return found.shape == expected.shape and torch.allclose(found, expected, equal_nan=True)


def trace(model: nn.Module) -> fx.Graph | None:
    """The flow of values between the modules that matter; None where it cannot be read."""
    holders = {m for m in model.modules() if any(isinstance(x, StochasticLayer) for x in m.modules() if x is not m)}

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m, module_qualified_name):
            return m not in holders

    if model not in holders:  # a stochastic layer by itself, which would be entered
        return None
    try:
        return Tracer().trace(model)
    except Exception:  # whatever a model's own code raises when its inputs are only stand-ins
        return None


def _descendants(graph: fx.Graph, is_source: Callable[[_Node], bool]) -> set[_Node]:
    found = set()
    for node in graph.nodes:
        if is_source(node) or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _is_random(model: nn.Module, node: _Node) -> bool:
    if node.op != "call_module":
        return False
    module = model.get_submodule(node.target)
    return isinstance(module, StochasticLayer) and module.is_random


def _random_nodes(model: nn.Module, graph: fx.Graph) -> set[_Node]:
    return _descendants(graph, lambda node: _is_random(model, node))


def _writes_below(model: nn.Module, graph: fx.Graph, random: set[_Node]) -> bool:
    """Whether something that all passes share is written in place once the passes have parted."""
    have_parted = False
    for node in graph.nodes:
        have_parted |= node in random
        if have_parted and _writes(model, node) and not set(node.all_input_nodes[:1]) <= random:
            return True
    return False


def _writes(model: nn.Module, node: _Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(node.target), "inplace", False))
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    name = getattr(node.target, "__name__", "")
    is_named = name.endswith("_") and not name.endswith("__")
    return node.op == "call_function" and (
        node.target in _IN_PLACE or is_named or bool(node.kwargs.get("inplace")) or "out" in node.kwargs
    )


def _cut(model: nn.Module, graph: fx.Graph, random: set[_Node]) -> SharedModel:
    from_inputs = _descendants(graph, lambda node: node.op == "placeholder")
    shared = [node for node in graph.nodes if node in from_inputs and node not in random]
    crossing = [node for node in shared if not random.isdisjoint(node.users)]
    only_feeds = [all(_is_random(model, user) for user in node.users if user in random) for node in crossing]

    below_graph, above_graph = fx.Graph(), fx.Graph()
    copies = _copy_nodes(graph, below_graph, {}, {node for node in graph.nodes if node not in random})
    below_graph.output(tuple(copies[node] for node in crossing))
    entries = {node: above_graph.placeholder(f"crossing_{i}") for i, node in enumerate(crossing)}
    _copy_nodes(graph, above_graph, entries, random | _constants(graph, random, from_inputs))
    run_below, run_above = (fx.Interpreter(model, graph=each).run for each in (below_graph, above_graph))

    def above(values, num_passes):
        pairs = zip(values, only_feeds, strict=True)
        return run_above(*(value if feeds else _repeat(value, num_passes) for value, feeds in pairs))

    return SharedModel(run_below, above, is_cut=True)


def _constants(graph: fx.Graph, random: set[_Node], from_inputs: set[_Node]) -> set[_Node]:
    """Weights that nodes above the cut use themselves, and what is computed from weights alone."""
    found = set()
    for node in reversed(graph.nodes):
        if node not in from_inputs and not (random | found).isdisjoint(node.users):
            found.add(node)
    return found


def _copy_nodes(graph: fx.Graph, target: fx.Graph, copies: dict[_Node, _Node], wanted: set[_Node]) -> dict:
    for node in graph.nodes:
        if node in wanted:
            copies[node] = target.node_copy(node, copies.__getitem__)
    return copies


def _unshared(model: nn.Module) -> SharedModel:
    return SharedModel(lambda x: (x,), lambda values, num_passes: model(_repeat(values[0], num_passes)), is_cut=False)


def _repeat(value: Tensor, num_passes: int) -> Tensor:
    """[n, ...] -> [T * n, ...], always a copy, so that a layer that writes in place spoils nothing."""
    return value.repeat(num_passes, *[1] * (value.ndim - 1))
