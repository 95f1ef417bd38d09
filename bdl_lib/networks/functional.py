r"""A network as a function of one flat weight vector, for many weight vectors at once.

Inference treats all weights of a network as one point :math:`\theta \in \mathbb{R}^d`. Here a network is a function
:math:`f(\theta, x)` that takes a stack of such points, ``[samples, dim]``, and returns a stack of outputs,
``[samples, n, k]``. Plain multilayer perceptrons (:func:`mlp`) run as batched matrix products; any other
``nn.Module`` (:func:`from_module`) runs through ``torch.func``.

Chapter: book/02-networks.ipynb
"""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

__all__ = ["Network", "flatten_weights", "from_module", "mlp", "unflatten_weights"]

_CACHE_BYTES = 2**21  # one layer's activations of one chunk of samples, on a CPU
_MEMORY_BYTES = 2**29  # the same on an accelerator, which wants few large launches


Pullback = Callable[[Tensor], Tensor]  # gradient in the outputs [samples, n, k] -> in the weights [samples, dim]


class Network(NamedTuple):
    """A network without weights: ``apply(weights, inputs)`` is pure, and differentiable in both.

    ``vjp`` is for samplers and optimisers, which want nothing but the gradient in the weights: there an MLP with ReLU
    or tanh goes backwards by hand, without autograd, which is faster (``benchmarks/networks.py`` says by how much).

    ``weight_slices[name]`` is where a weight lives in the vector, ``weight_shapes[name]`` its shape there:
    ``weights[:, network.weight_slices["0.bias"]]`` are the biases of the first layer, one row a sample.

    Book: sec-flat-weights
    """

    apply: Callable[[Tensor, Tensor], Tensor]  # [samples, dim], [n, *features] -> [samples, n, k]
    vjp: Callable[[Tensor, Tensor], tuple[Tensor, Pullback]]  # the same outputs, and the way back to the weights
    weight_slices: dict[str, slice]
    weight_shapes: dict[str, torch.Size]
    description: str  # one line, such as "mlp 2-50-50-3, relu"

    @property
    def dim(self) -> int:
        """How many weights there are: the length of a flat vector."""
        return sum(shape.numel() for shape in self.weight_shapes.values())


def mlp(
    layer_sizes: Sequence[int],
    *,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    bias: bool = True,
    chunk_size: int | None = None,
) -> Network:
    r"""A multilayer perceptron, evaluated for all weight samples by batched matrix products.

    .. math:: h_0 = x, \qquad h_l = a(W_l h_{l-1} + b_l), \qquad f = W_L h_{L-1} + b_L

    Weights are named ``"0.weight", "0.bias", "1.weight", …`` and lie in the vector in that order, matrices row by row
    as [out, in]: the order of ``parameters_to_vector`` for an ``nn.Sequential`` of the same layers.

    Args:
        layer_sizes: inputs, hidden widths, outputs: at least two numbers, each at least 1. ``[2, 50, 50, 3]`` has two
            hidden layers.
        activation: a, applied element by element between layers and not after the last. ``torch.relu`` and
            ``torch.tanh`` take a faster route to the same numbers.
        bias: False leaves out every b.
        chunk_size: how many weight samples share one product, at least 1. Not given, as many as keep a layer's
            activations in the processor's cache: all at once is slower there, not faster.

    Returns:
        A :class:`Network` whose ``apply`` maps weights [samples, dim] and inputs [n, features] to outputs
        [samples, n, k], with features the first and k the last of ``layer_sizes``.

    Raises:
        ValueError: if ``layer_sizes`` or ``chunk_size`` is out of range; from ``apply``, if ``weights`` or ``inputs``
            has the wrong shape.

    Book: sec-flat-weights
    """
    sizes = tuple(layer_sizes)
    if len(sizes) < 2 or not all(size >= 1 for size in sizes):
        raise ValueError(f"layer_sizes must be at least two numbers, each at least 1, got {list(sizes)}")
    _check_chunk_size(chunk_size)
    shapes = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        shapes[f"{layer}.weight"] = torch.Size((fan_out, fan_in))
        shapes |= {f"{layer}.bias": torch.Size((fan_out,))} if bias else {}
    name = getattr(activation, "__name__", repr(activation))
    description = f"mlp {'-'.join(map(str, sizes))}, {name}{'' if bias else ', no bias'}"

    def apply(weights, inputs):
        _check_mlp(weights, inputs, network, sizes[0])
        chunks = weights.split(chunk_size or _chunk_size(inputs, max(sizes)))
        outputs = [_forward(chunk, inputs.mT, shapes, activation)[-1] for chunk in chunks]
        return (torch.cat(outputs) if len(outputs) > 1 else outputs[0]).mT

    def vjp(weights, inputs):
        if activation not in (torch.relu, torch.tanh):
            return _autograd_vjp(apply, weights, inputs)
        _check_mlp(weights, inputs, network, sizes[0])
        with torch.no_grad():
            layers = _forward(weights, inputs.mT, shapes, activation)
        return layers[-1].mT, lambda grad: _backward(grad.mT, weights, layers, shapes, activation)

    network = Network(apply, vjp, _slices(shapes), shapes, description)
    return network


def from_module(module: nn.Module, *, chunk_size: int | None = None) -> Network:
    r"""Any ``nn.Module`` as a function of its flat parameters, through ``torch.func``: slower, and general.

    The module is copied in evaluation mode, so dropout is off and batch normalisation uses its running averages;
    buffers stay as they are. Weights carry the names and the order of ``module.named_parameters()``, so
    ``parameters_to_vector(module.parameters())`` is the vector of the module's own weights.

    Args:
        module: takes inputs [n, *features], returns outputs [n, k]. Its own weights are not used.
        chunk_size: how many weight samples ``vmap`` takes at once, at least 1; all, if not given.

    Returns:
        A :class:`Network`.

    Raises:
        ValueError: if ``module`` has no parameters or ``chunk_size`` is below 1; from ``apply``, if ``weights`` has the
            wrong shape.

    Book: sec-flat-weights
    """
    _check_chunk_size(chunk_size)
    module = copy.deepcopy(module).eval()
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    if not shapes:
        raise ValueError(f"module must have parameters, got {module}")

    def apply(weights, inputs):
        _check_weights(weights, network)

        def one(sample):
            return functional_call(module, unflatten_weights(network, sample), (inputs,))

        return vmap(one, chunk_size=chunk_size)(weights)

    def vjp(weights, inputs):
        return _autograd_vjp(apply, weights, inputs)

    network = Network(apply, vjp, _slices(shapes), shapes, f"module {module}")
    return network


def unflatten_weights(network: Network, weights: Float[Tensor, "*batch dim"]) -> dict[str, Tensor]:
    r"""The flat vector taken apart: each weight by its name and in its shape.

    Args:
        network: says what lies where.
        weights: one flat vector, or a batch of any shape.

    Returns:
        For each name a view [*batch, *shape] into ``weights``.

    Raises:
        ValueError: if the last axis of ``weights`` is not ``network.dim`` long.

    Book: sec-flat-weights
    """
    if weights.shape[-1:] != (network.dim,):
        raise ValueError(f"weights must have a last axis of length {network.dim}, got shape {list(weights.shape)}")
    return {
        name: weights[..., where].reshape((*weights.shape[:-1], *network.weight_shapes[name]))
        for name, where in network.weight_slices.items()
    }


def flatten_weights(network: Network, named_weights: Mapping[str, Tensor]) -> Float[Tensor, "*batch dim"]:
    r"""The inverse of :func:`unflatten_weights`: named weights laid end to end in the network's order.

    Args:
        network: says what lies where.
        named_weights: for each of the network's names a tensor [*batch, *shape], the batch axes alike.

    Returns:
        One flat vector for each member of the batch.

    Raises:
        ValueError: if a name is missing or unknown, or a shape is not the network's.

    Book: sec-flat-weights
    """
    if named_weights.keys() != network.weight_shapes.keys():
        raise ValueError(f"named_weights must be {list(network.weight_shapes)}, got {list(named_weights)}")
    flat = []
    for name, shape in network.weight_shapes.items():
        value = named_weights[name]
        batch = value.ndim - len(shape)
        if batch < 0 or value.shape[batch:] != shape:
            raise ValueError(f"named_weights[{name!r}] must end in shape {list(shape)}, got {list(value.shape)}")
        flat.append(value.reshape(*value.shape[:batch], -1))
    return torch.cat(flat, dim=-1)


def _forward(weights, columns, shapes, activation):
    """All layers [samples, units, n], from the inputs as columns: with the data last, the products are fastest."""
    layers = [columns]
    for matrix, bias in _matrices_and_biases(weights, shapes):
        if len(layers) == 1:  # every sample sees the same inputs: one ordinary product serves them all
            product = torch.addmm(bias.flatten(0, 1), matrix.flatten(0, 1), columns)
            layers.append(product.view(*matrix.shape[:2], -1))
        else:
            layers[-1] = _activate(layers[-1], activation)
            layers.append(torch.baddbmm(bias, matrix, layers[-1]))
    return layers


def _backward(grad, weights, layers, shapes, activation):
    """The gradient in the weights, from the one in the last layer and what ``_forward`` kept: back-propagation."""
    parts = []
    for layer, (matrix, _) in reversed([*enumerate(_matrices_and_biases(weights, shapes))]):
        below = layers[layer]
        product = grad.flatten(0, 1) @ below.mT if layer == 0 else torch.bmm(grad, below.mT)
        bias_grad = [grad.sum(-1)] if f"{layer}.bias" in shapes else []
        parts = [product.reshape(len(weights), -1), *bias_grad, *parts]
        if layer > 0:
            grad = torch.bmm(matrix.mT, grad)  # then times the slope of the activation, in one operation
            if activation is torch.relu:
                grad = torch.ops.aten.threshold_backward(grad, below, 0)
            else:
                grad = torch.ops.aten.tanh_backward(grad, below)
    return torch.cat(parts, dim=1)


def _matrices_and_biases(weights, shapes):
    """Of each layer the matrix [samples, out, in] and the bias [samples, out, 1], a zero where there is none."""
    # one split, not many slices: the gradient of each slice would be a zero-padded vector as long as the whole
    parts = dict(zip(shapes, weights.split([shape.numel() for shape in shapes.values()], dim=1), strict=True))
    zero = weights.new_zeros(1, 1)
    return [
        (parts[name].unflatten(1, shape), parts.get(name.replace("weight", "bias"), zero)[:, :, None])
        for name, shape in shapes.items()
        if name.endswith("weight")
    ]


def _activate(hidden, activation):
    """The activation, in place where no gradient is recorded."""
    in_place = not hidden.requires_grad
    if activation is torch.relu:
        return hidden.relu_() if in_place else hidden.relu()
    if activation is torch.tanh:  # tanh z = 2 sigmoid(2z) - 1, at a third of the time of torch.tanh on a CPU
        return hidden.mul_(2).sigmoid_().mul_(2).sub_(1) if in_place else 2 * torch.sigmoid(2 * hidden) - 1
    return activation(hidden)


def _autograd_vjp(apply, weights, inputs):
    with torch.enable_grad():
        leaf = weights.detach().requires_grad_()
        outputs = apply(leaf, inputs)
    return outputs.detach(), lambda grad: torch.autograd.grad(outputs, leaf, grad)[0]


def _slices(shapes):
    ends = list(itertools.accumulate(shape.numel() for shape in shapes.values()))
    return {name: slice(start, end) for name, start, end in zip(shapes, [0, *ends], ends, strict=False)}


def _chunk_size(inputs, width):
    budget = _CACHE_BYTES if inputs.device.type == "cpu" else _MEMORY_BYTES
    return max(1, budget // (max(1, len(inputs)) * width * inputs.element_size()))


def _check_chunk_size(chunk_size):
    if chunk_size is not None and not chunk_size >= 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")


def _check_mlp(weights, inputs, network, num_features):
    _check_weights(weights, network)
    if inputs.ndim != 2 or inputs.shape[1] != num_features:
        raise ValueError(f"inputs must have shape [n, {num_features}], got {list(inputs.shape)}")


def _check_weights(weights, network):
    if weights.ndim != 2 or weights.shape[1] != network.dim:
        raise ValueError(f"weights must have shape [samples, {network.dim}], got {list(weights.shape)}")
