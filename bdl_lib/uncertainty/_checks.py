"""How the files of this folder refuse what they cannot use: in one wording, before they compute.

Chapter: book/08-uncertainty.ipynb
"""

from torch import Tensor

from bdl_lib.scores._checks import check_at_least, check_finite

__all__ = [
    "check_at_least",
    "check_class_prob",
    "check_finite",
    "check_labels",
    "check_level",
    "check_logits",
    "check_same_shape",
]

_ROUNDING = 1e-4  # by how much the probabilities of a point may miss a sum of 1, as in the scores


def check_level(name: str, value: float) -> None:
    """Raise ``ValueError`` unless a probability is neither 0 nor 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ``ValueError`` unless these tensors have one shape."""
    shapes = {name: list(values.shape) for name, values in tensors.items()}
    if any(shape != next(iter(shapes.values())) for shape in shapes.values()):
        names = " and ".join([", ".join([*shapes][:-1]), [*shapes][-1]])
        raise ValueError(f"{names} must have the same shape, got {[*shapes.values()]}")


def check_logits(logits: Tensor) -> None:
    """Raise ``ValueError`` unless these are finite numbers of two or more classes, [n, classes, ...]."""
    _check_classes("logits", logits)
    check_finite(logits=logits)


def check_class_prob(prob: Tensor, name: str = "prob") -> None:
    """Raise ``ValueError`` unless these are probabilities, [n, classes, ...], that sum to 1 over the classes."""
    _check_classes(name, prob)
    if not prob.is_floating_point() or prob.numel() == 0 or not prob.min() >= 0:
        check_finite(**{name: prob})
        raise ValueError(f"{name} must not be negative, got {prob.min().item()}")
    is_whole = (prob.sum(1) - 1).abs() <= _ROUNDING
    if not is_whole.all():
        wrong = prob.sum(1)[~is_whole][0].item()
        raise ValueError(f"{name} must sum to 1 over the classes, its dimension 1, got a sum of {wrong}")


def check_labels(labels: Tensor, per_class: Tensor) -> None:
    """Raise ``ValueError`` unless there is one class for each point of probabilities or logits [n, classes, ...]."""
    shape = [per_class.shape[0], *per_class.shape[2:]]
    if list(labels.shape) != shape:
        raise ValueError(f"labels must have shape {shape}, one a point, got {list(labels.shape)}")
    if labels.is_floating_point():
        raise ValueError(f"labels must be whole numbers, got {labels.dtype}")
    is_valid = (labels >= 0) & (labels < per_class.shape[1])
    if not is_valid.all():
        raise ValueError(f"labels must be from 0 to {per_class.shape[1] - 1}, got {labels[~is_valid][0].item()}")


def _check_classes(name, values):
    if values.ndim < 2 or values.shape[1] < 2:
        raise ValueError(f"{name} must have shape [n, classes, ...] with 2 classes or more, got {list(values.shape)}")
