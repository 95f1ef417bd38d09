"""What a data set is: typed records of tensors, each with a one-line card.

A card says, in this order: rows; columns and units; where the data come from; under which licence.

Chapter: book/02-networks.ipynb
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Classification", "ImageSplit", "Images", "Regression", "Scenes", "Split", "Standardiser", "standardiser"]


class Regression(NamedTuple):
    """Inputs with a real-valued target."""

    inputs: Float[Tensor, "n features"]
    targets: Float[Tensor, " n"]
    card: str


class Classification(NamedTuple):
    """Inputs with a class each: ``labels`` index ``class_names``."""

    inputs: Float[Tensor, "n features"]
    labels: Int[Tensor, " n"]
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    card: str


class Images(NamedTuple):
    """Grey images from 0 (black) to 1 (white) with a class each: ``labels`` index ``class_names``."""

    images: Float[Tensor, "n height width"]
    labels: Int[Tensor, " n"]
    class_names: tuple[str, ...]
    card: str


class ImageSplit(NamedTuple):
    """Images to learn from and images to be judged on."""

    train: Images
    test: Images


class Scenes(NamedTuple):
    """Images with a class and a depth for every pixel: ``labels`` index ``class_names``; -1 is an unseen object."""

    images: Float[Tensor, "n height width"]  # what the sensor saw, noise included
    labels: Int[Tensor, "n height width"]
    depth: Float[Tensor, "n height width"]  # true distance, metres
    measured_depth: Float[Tensor, "n height width"]  # what a depth sensor saw, noise included, metres
    is_unseen: Bool[Tensor, "n height width"]  # pixels of objects that belong to no class
    class_names: tuple[str, ...]
    card: str


class Standardiser(NamedTuple):
    """A change of units to mean 0 and standard deviation 1, column by column: call it, or call ``inverse``."""

    loc: Float[Tensor, " features"]
    scale: Float[Tensor, " features"]

    def __call__(self, values: Float[Tensor, "*n features"]) -> Float[Tensor, "*n features"]:
        """(values - loc) / scale."""
        return (values - self.loc) / self.scale

    def inverse(self, values: Float[Tensor, "*n features"]) -> Float[Tensor, "*n features"]:
        """Back to the units of the data: values * scale + loc."""
        return values * self.scale + self.loc


class Split(NamedTuple):
    """A table in two parts, with the change of units that was applied to both (computed on the first alone)."""

    train: Classification | Regression
    test: Classification | Regression
    feature_names: tuple[str, ...]
    input_scaling: Standardiser | None  # None: the units of the source
    target_scaling: Standardiser | None


def standardiser(inputs: Float[Tensor, "n features"]) -> Standardiser:
    r"""The change of units that gives every column of these data mean 0 and standard deviation 1.

    .. math:: z_{ij} = \frac{x_{ij} - m_j}{s_j}, \qquad m_j = \frac1n \sum_i x_{ij}, \qquad
              s_j^2 = \frac1n \sum_i (x_{ij} - m_j)^2

    Compute it on the training data and apply it to everything, so that nothing of the test data leaks.

    Args:
        inputs: the training data, finite, at least two rows. A column that never varies is only centred.

    Returns:
        A :class:`Standardiser`.

    Raises:
        ValueError: if ``inputs`` has fewer than two rows or is not finite.
    """
    if len(inputs) < 2 or not inputs.isfinite().all():
        raise ValueError(f"inputs must be finite, with at least two rows, got shape {list(inputs.shape)}: {inputs}")
    scale = inputs.std(0, correction=0)
    return Standardiser(inputs.mean(0), torch.where(scale > 0, scale, 1))
