"""How the files of this folder refuse what they cannot score: in one wording, before they compute.

Chapter: book/06-mcmc-versus-vi.ipynb
"""

from torch import Tensor

__all__ = [
    "check_at_least",
    "check_binary",
    "check_draws",
    "check_finite",
    "check_forecasts",
    "check_labels",
    "check_two_samples",
]

_ROUNDING = 1e-4  # by how much the probabilities of a row may miss a sum of 1


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise ``ValueError`` unless a whole number is large enough."""
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_finite(**tensors: Tensor) -> None:
    """Raise ``ValueError``, naming the first, unless these tensors are floating-point, not empty and finite."""
    for name, values in tensors.items():
        if not values.is_floating_point() or values.numel() == 0:
            rule = f"{name} must be floating-point and not empty"
            raise ValueError(f"{rule}, got {values.dtype} of shape {list(values.shape)}")
        if not values.isfinite().all():
            raise ValueError(f"{name} must be finite, got {values[~values.isfinite()][0].item()}")


def check_draws(draws: Tensor, *, least: int) -> None:
    """Raise ``ValueError`` unless these are enough finite draws, [draws, points]."""
    if draws.ndim != 2:
        raise ValueError(f"draws must have shape [draws, points], got {list(draws.shape)}")
    check_at_least("the number of draws", len(draws), least)
    check_finite(draws=draws)


def check_forecasts(draws: Tensor, targets: Tensor, shape: str) -> None:
    """Raise ``ValueError`` unless these are two or more finite draws of each target, of a shape like "points, dim"."""
    if targets.ndim != 1 + shape.count(",") or draws.shape[1:] != targets.shape:
        rule = f"draws must have shape [draws, {shape}] and targets [{shape}]"
        raise ValueError(f"{rule}, got {list(draws.shape)} and {list(targets.shape)}")
    check_at_least("the number of draws", len(draws), 2)
    check_finite(draws=draws, targets=targets)


def check_labels(prob: Tensor, labels: Tensor) -> None:
    """Raise ``ValueError`` unless these are probabilities, [points] of label 1 or [points, classes], with labels."""
    if prob.ndim not in (1, 2) or labels.shape != prob.shape[:1]:
        rule = "prob must have shape [points] or [points, classes], labels [points]"
        raise ValueError(f"{rule}, got {list(prob.shape)} and {list(labels.shape)}")
    check_finite(prob=prob)
    if not ((prob >= 0) & (prob <= 1)).all():
        raise ValueError(f"prob must be from 0 to 1, got {prob[~((prob >= 0) & (prob <= 1))][0].item()}")
    if prob.ndim == 2 and not ((prob.sum(1) - 1).abs() <= _ROUNDING).all():
        wrong = prob.sum(1)[~((prob.sum(1) - 1).abs() <= _ROUNDING)]
        raise ValueError(f"prob must have rows that sum to 1, got a sum of {wrong[0].item()}")
    if labels.is_floating_point():
        raise ValueError(f"labels must be whole numbers or True and False, got {labels.dtype}")
    num_classes = prob.shape[1] if prob.ndim == 2 else 2
    is_valid = (labels >= 0) & (labels < num_classes)
    if not is_valid.all():
        raise ValueError(f"labels must be from 0 to {num_classes - 1}, got {labels[~is_valid][0].item()}")


def check_binary(prob: Tensor, labels: Tensor) -> None:
    """Raise ``ValueError`` unless these are probabilities [points] of an event, and whether it happened."""
    if prob.ndim != 1:
        raise ValueError(f"prob must have shape [points], one probability a point, got {list(prob.shape)}")
    check_labels(prob, labels)


def check_two_samples(draws: Tensor, reference: Tensor) -> None:
    """Raise ``ValueError`` unless these are two sets of at least four draws of the same parameters."""
    if draws.ndim != 2 or reference.ndim != 2 or draws.shape[1] != reference.shape[1]:
        rule = "draws and reference must have shapes [n, dim] and [m, dim]"
        raise ValueError(f"{rule}, got {list(draws.shape)} and {list(reference.shape)}")
    for name, sample in (("draws", draws), ("reference", reference)):
        check_at_least(f"the number of {name}", len(sample), 4)
    check_finite(draws=draws, reference=reference)
