r"""From a network that was trained with PyTorch's own dropout to one whose masks come from the call.

Chapter: book/07-dropout.ipynb
"""

import copy

from torch import nn

from bdl_lib.dropout._checks import check_rate, check_replaced
from bdl_lib.dropout.layers import ChannelDropout, DropConnect, Dropout, stochastic_layers

__all__ = ["convert", "dropconnect"]

_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def convert(model: nn.Module) -> nn.Module:
    r"""A copy of a network, in evaluation mode, with its dropout modules made ready for stochastic passes.

    ``nn.Dropout`` becomes :class:`Dropout`, ``nn.Dropout1d``, ``2d`` and ``3d`` become :class:`ChannelDropout`, of the
    same rates. Called as it is, the copy predicts what the original predicts in evaluation mode. A call of
    ``F.dropout`` in the model's own code cannot be seen here: it is refused when a pass comes to it.

    Args:
        model: holds at least one dropout module with 0 < p < 1. Stays as it is.

    Returns:
        The copy.

    Raises:
        ValueError: if nothing in the model drops anything, or something does that no mask can replace: alpha dropout,
            or the dropout inside attention and recurrent layers. The message says where, and what to do.

    Source: Gal and Ghahramani (2016), Dropout as a Bayesian Approximation, arXiv:1506.02142.
    Book: sec-convert
    """
    converted = _replaced(model, _mask_layer)
    check_replaced(converted, stochastic_layers(converted))
    return converted


def dropconnect(model: nn.Module, rate: float) -> nn.Module:
    r"""A copy of a network, in evaluation mode, that drops weights: every ``nn.Linear`` becomes a :class:`DropConnect`.

    Args:
        model: holds at least one ``nn.Linear``. Stays as it is.
        rate: the probability of dropping a weight, 0 < rate < 1.

    Returns:
        The copy, with copies of the model's weights.

    Raises:
        ValueError: if ``rate`` is outside its range, the model has no linear layer, or it holds PyTorch's own dropout.

    Source: Mobiny, Yuan, Moulik, Garg, Wu and Van Nguyen (2021), DropConnect is effective in modeling uncertainty of
        Bayesian deep networks, arXiv:1906.04569.
    Book: sec-convert
    """
    if check_rate(rate) == 0:
        raise ValueError(f"rate must be above 0, got {rate}")
    converted = _replaced(model, lambda module: _drop_weights(module, rate))
    if not any(isinstance(module, DropConnect) for module in converted.modules()):
        raise ValueError(f"model must have a linear layer (nn.Linear), got none in {type(model).__name__}")
    check_replaced(converted, stochastic_layers(converted))
    return converted


def _replaced(model: nn.Module, replacement) -> nn.Module:
    """A copy in evaluation mode; a module that occurs in several places is replaced by one that does."""
    model = copy.deepcopy(model).eval()
    new = {module: replacement(module) for module in model.modules()}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and new[child] is not child:
                parent._modules[name] = new[child].eval()
    return new[model].eval()


def _mask_layer(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.Dropout) and module.p > 0:
        return Dropout(module.p)
    if isinstance(module, _CHANNELS) and module.p > 0:
        return ChannelDropout(module.p)
    return module


def _drop_weights(module: nn.Module, rate: float) -> nn.Module:
    if type(module) is not nn.Linear:  # not its heirs: attention has one whose weights it reads by itself
        return module
    layer = DropConnect(module.in_features, module.out_features, rate, bias=module.bias is not None, device="meta")
    layer.weight, layer.bias = module.weight, module.bias
    return layer
