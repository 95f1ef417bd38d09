"""What the trainings of the ensemble and of SWAG share: how they refuse, and how they show where they are.

Chapter: book/07-dropout.ipynb
"""

import math
from collections.abc import Iterable

from torch import Tensor, nn

from bdl_lib.dropout._checks import check_at_least, check_inputs, unconverted
from bdl_lib.mcmc._checks import check_positive

__all__ = ["check_data", "check_mean_loss", "check_model", "check_settings", "show"]


def check_settings(num_epochs: int, batch_size: int, lr: float, weight_decay: float) -> None:
    """Raise ``ValueError`` unless one can train with these."""
    check_at_least("num_epochs", num_epochs, 1)
    check_at_least("batch_size", batch_size, 1)
    check_positive("lr", lr)
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be finite and not negative, got {weight_decay}")


def check_data(inputs: Tensor, targets: Tensor) -> None:
    """Raise ``ValueError`` unless there are finite inputs, each with a finite target."""
    check_inputs(inputs)
    if targets.shape[:1] != inputs.shape[:1]:
        raise ValueError(f"targets must be one for each of the {len(inputs)} inputs, got shape {list(targets.shape)}")
    if not targets.isfinite().all():
        raise ValueError(f"targets must be finite, got {int((~targets.isfinite()).sum())} non-finite values")


def check_model(model: nn.Module) -> None:
    """Raise ``ValueError`` unless the model learns, and draws nothing from PyTorch's global generator."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model must have a parameter that requires a gradient, has none")
    if theirs := unconverted(model):
        raise ValueError(f"model must have no dropout of PyTorch, which takes no generator, got it in {list(theirs)}")


def check_mean_loss(values: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless the loss of a minibatch is a number for each member."""
    if values.shape != shape:
        got = list(values.shape[len(shape) :])
        raise ValueError(f"loss must give one number, the mean over the minibatch, got shape {got}")


def show(epochs: Iterable[int], description: str, progress: bool) -> Iterable[int]:
    """The same, with a bar if wanted."""
    if not progress:
        return epochs
    from tqdm.auto import tqdm

    return tqdm(epochs, desc=description)
