"""How the files of this folder take an argument, or refuse it: in one wording, before they compute.

Chapter: book/01-bayes.ipynb
"""

import torch
from torch import Tensor

__all__ = ["as_float", "check_broadcast", "require"]


def require(is_valid: Tensor, rule: str, value: Tensor) -> None:
    """Raise ``ValueError("<rule>, got <first offending value>")`` unless ``is_valid`` holds everywhere.

    Write the condition so that NaN fails it: ``value > 0``, not ``~(value <= 0)``.
    """
    if not is_valid.all():
        raise ValueError(f"{rule}, got {value.expand_as(is_valid)[~is_valid][0].item()}")


def check_broadcast(**batch_shapes: tuple[int, ...]) -> None:
    """Raise ``ValueError``, naming them all, unless the batch shapes of these arguments broadcast."""
    try:
        torch.broadcast_shapes(*batch_shapes.values())
    except RuntimeError:
        named = ", ".join(f"{name} {tuple(shape)}" for name, shape in batch_shapes.items())
        raise ValueError(f"batch shapes must broadcast, got {named}") from None


def as_float(value: float | Tensor, like: Tensor) -> Tensor:
    """Return a number, or a tensor of whole numbers, in the dtype of ``like``. A tensor stays on its own device."""
    if not isinstance(value, Tensor):
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)
    return value if value.is_floating_point() else value.to(like.dtype)
