"""How the samplers refuse what they cannot run: in one wording, before they compute.

Chapter: book/04-mcmc.ipynb
"""

import math

from torch import Tensor, as_tensor

__all__ = ["check_at_least", "check_between", "check_position", "check_positive", "check_start"]


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise ``ValueError`` unless a whole number is large enough."""
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_between(name: str, value: float, low: float, high: float) -> None:
    """Raise ``ValueError`` unless a number is strictly between the two."""
    if not low < value < high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")


def check_positive(name: str, value: float | Tensor) -> None:
    """Raise ``ValueError`` unless a number, or every number of a tensor, is positive and finite."""
    values = as_tensor(value)
    is_positive = (values > 0) & (values < math.inf)
    if not is_positive.all():
        raise ValueError(f"{name} must be positive and finite, got {values[~is_positive].flatten()[0].item()}")


def check_position(position: Tensor) -> None:
    """Raise ``ValueError`` unless this is a batch of finite starting points; say which chains are not."""
    if position.ndim != 2 or 0 in position.shape:
        raise ValueError(f"position must be [chains >= 1, dim >= 1], got shape {list(position.shape)}")
    if not position.is_floating_point():
        raise ValueError(f"position must be floating-point, got {position.dtype}")
    _check_finite("position", position)


def check_start(position: Tensor, log_prob: Tensor, grad: Tensor | None = None) -> None:
    """Raise ``ValueError`` unless every chain can go on from where it starts; say which chains cannot."""
    if log_prob.shape != position.shape[:1]:
        raise ValueError(f"log_prob must return shape [{len(position)}], one a chain, got {list(log_prob.shape)}")
    _check_finite("log_prob", log_prob[:, None])
    if grad is not None and grad.shape != position.shape:
        raise ValueError(f"the gradient of log_prob must be {list(position.shape)}, got shape {list(grad.shape)}")
    if grad is not None:
        _check_finite("the gradient of log_prob", grad)


def _check_finite(name, values):
    is_finite = values.isfinite().all(1)
    if not is_finite.all():
        raise ValueError(f"{name} must be finite at the start, is not in chains {_list(~is_finite)}")


def _list(is_bad):
    return is_bad.nonzero().flatten().tolist()
