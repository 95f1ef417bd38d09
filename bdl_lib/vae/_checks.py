"""How the autoencoders refuse what they cannot run: in one wording, before they compute.

Chapter: book/10-vae.ipynb
"""

from torch import Tensor

from bdl_lib.dropout._checks import check_at_least
from bdl_lib.mcmc._checks import check_positive

__all__ = [
    "check_at_least",
    "check_condition",
    "check_finite",
    "check_image_shape",
    "check_latent_dim",
    "check_latents",
    "check_observed",
    "check_positive",
    "check_shape",
    "check_sizes",
    "check_unit_interval",
]


def check_latent_dim(latent_dim: int) -> None:
    """Raise ``ValueError`` unless the latent has at least one dimension."""
    check_at_least("latent_dim", latent_dim, 1)


def check_sizes(name: str, sizes) -> None:
    """Raise ``ValueError`` unless these are whole numbers of at least 1; none is allowed."""
    if any(isinstance(size, bool) or not isinstance(size, int) or not size >= 1 for size in sizes):
        raise ValueError(f"{name} must be whole numbers of at least 1, got {tuple(sizes)}")


def check_shape(image_shape) -> None:
    """Raise ``ValueError`` unless this is the height and the width of an image."""
    if len(image_shape) != 2:
        raise ValueError(f"image_shape must be (height, width), got {tuple(image_shape)}")
    check_sizes("image_shape", image_shape)


def check_image_shape(images: Tensor, image_shape: tuple[int, int], name: str = "images") -> None:
    """Raise ``ValueError`` unless these are images of the size that the model is made for, at least one."""
    if images.ndim != 3 or tuple(images.shape[1:]) != tuple(image_shape) or len(images) < 1:
        raise ValueError(f"{name} must be [n >= 1, {image_shape[0]}, {image_shape[1]}], got {list(images.shape)}")


def check_latents(latents: Tensor, latent_dim: int) -> None:
    """Raise ``ValueError`` unless the last axis is that of the latent."""
    if latents.ndim < 2 or latents.shape[-1] != latent_dim:
        raise ValueError(f"latents must be [..., n, {latent_dim}], got {list(latents.shape)}")


def check_condition(condition: Tensor | None, num: int, condition_dim: int, name: str = "condition") -> None:
    """Raise ``ValueError`` unless there is a row for each example, or none where the model takes none."""
    expected = [num, condition_dim] if condition_dim else None
    found = None if condition is None else list(condition.shape)
    if found != expected:
        raise ValueError(f"{name} must be {expected or 'None: the model takes none'}, got {found}")


def check_observed(is_observed: Tensor | None, images: Tensor) -> None:
    """Raise ``ValueError`` unless there is a truth value for each pixel."""
    if is_observed is not None and is_observed.shape != images.shape:
        raise ValueError(f"is_observed must be {list(images.shape)}, as the images, got {list(is_observed.shape)}")


def check_finite(images: Tensor, name: str = "images") -> None:
    """Raise ``ValueError`` unless all pixels are finite."""
    if not images.isfinite().all():
        raise ValueError(f"{name} must be finite, got {int((~images.isfinite()).sum())} non-finite values")


def check_unit_interval(images: Tensor, name: str = "images") -> None:
    """Raise ``ValueError`` unless all pixels are from 0 to 1."""
    is_good = (images >= 0) & (images <= 1)
    if not is_good.all():
        raise ValueError(f"{name} must be in [0, 1], got {images[~is_good][0].item():.4g}")
