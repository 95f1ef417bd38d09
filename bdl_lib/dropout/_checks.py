"""How dropout refuses what it cannot run: in one wording, before it computes.

Chapter: book/07-dropout.ipynb
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

__all__ = [
    "FunctionalDropout",
    "check_at_least",
    "check_inputs",
    "check_norms",
    "check_off",
    "check_rate",
    "check_replaced",
    "check_tensor",
    "unconverted",
]

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_ALPHA_DROPOUTS = (nn.AlphaDropout, nn.FeatureAlphaDropout)
_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout)


def check_at_least(name: str, value, least: int) -> None:
    """Raise ``ValueError`` unless this is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_rate(rate) -> float:
    """The rate as a number; ``ValueError`` unless 0 <= rate < 1."""
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate}")
    return float(rate)


def check_inputs(inputs) -> None:
    """Raise ``ValueError`` unless there is an example, and all numbers are finite."""
    if inputs.ndim < 1 or len(inputs) < 1:
        raise ValueError(f"inputs must have at least one example along the first axis, got {list(inputs.shape)}")
    if not inputs.isfinite().all():
        raise ValueError(f"inputs must be finite, got {int((~inputs.isfinite()).sum())} non-finite values")


def check_norms(model: nn.Module) -> None:
    """Raise ``ValueError`` where batch normalisation would mix the examples and the passes of a batch."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"batch normalisation '{name}' must use its running statistics: call model.eval(), which does not "
                "switch the dropout of these layers off"
            )


def unconverted(model: nn.Module) -> dict[str, str]:
    """Name in the model to what to do, for each module that holds dropout of PyTorch's own."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, _DROPOUTS) and module.p > 0:
            found[name] = "dropout.convert(model) replaces it; with p = 0 it stays off"
        elif isinstance(module, _ALPHA_DROPOUTS) and module.p > 0:
            found[name] = "it shifts and scales what it drops, which no mask can: use dropout.Dropout, or set p = 0"
        elif isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0:
            found[name] = "its dropout is inside: set module.dropout = 0, and put a dropout.Dropout after it"
    return found


def check_replaced(model: nn.Module, layers: dict) -> dict:
    """The stochastic layers; ``ValueError`` if there is none, or dropout that no generator reaches beside them."""
    for name, advice in unconverted(model).items():
        kind = type(model.get_submodule(name)).__name__
        raise ValueError(f"model must hold no dropout of PyTorch's own, got {kind} at '{name}': {advice}")
    if not layers:
        raise ValueError(
            "model must have a stochastic layer with a rate above 0 (dropout.Dropout, …; dropout.convert makes them of "
            "nn.Dropout), got none: all its passes would be the same"
        )
    return layers


class FunctionalDropout(TorchFunctionMode):
    """Within, a call of PyTorch's functional dropout is an error: no conversion of modules can reach it.

    So is one that is off: a model that has it was meant to have it on. As a side effect, PyTorch's fused path of the
    transformer's layers, which would pass over the dropout inside them, is not taken.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _FUNCTIONS:
            check_off(func.__name__, args[1] if len(args) > 1 else kwargs.get("p", kwargs.get("train", 0.5)))
        elif func is F.scaled_dot_product_attention:
            check_off(func.__name__, args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))
        return func(*args, **kwargs)


def check_off(name: str, rate: float) -> None:
    """Raise ``ValueError`` unless a function's rate is 0."""
    if rate != 0:
        raise ValueError(
            f"model must not call torch.nn.functional.{name} itself, which takes no generator (rate {rate}): make it a "
            "dropout.Dropout that is part of the model"
        )


def check_tensor(outputs) -> Tensor:
    """The model's outputs; ``ValueError`` unless they are one tensor."""
    if not isinstance(outputs, Tensor):
        raise ValueError(f"model must return one tensor, [n, *out], got {type(outputs).__name__}")
    return outputs
