"""The data sets that the book stands on: seeded, typed, each with a one-line card of where it comes from.

Curves with a known truth (``line``, ``sine_with_gap``), dog breeds and animals that are none (``dog_breeds``,
``unseen_animals``), real tables (``breast_cancer``, ``diabetes``, ``wine``), grey images (``digits``, ``mnist``,
``fashion_mnist``) and scenes with the truth for every pixel (``scenes``).

Chapter: book/02-networks.ipynb
"""

from bdl_lib.data.breeds import dog_breeds, unseen_animals
from bdl_lib.data.composed_scenes import scenes
from bdl_lib.data.curves import line, line_mean, sine_mean, sine_with_gap
from bdl_lib.data.pictures import digits, fashion_mnist, images, mnist
from bdl_lib.data.records import (
    Classification,
    Images,
    ImageSplit,
    Regression,
    Scenes,
    Split,
    Standardiser,
    standardiser,
)
from bdl_lib.data.tables import breast_cancer, diabetes, wine

__all__ = [
    "Classification",
    "ImageSplit",
    "Images",
    "Regression",
    "Scenes",
    "Split",
    "Standardiser",
    "breast_cancer",
    "diabetes",
    "digits",
    "dog_breeds",
    "fashion_mnist",
    "images",
    "line",
    "line_mean",
    "mnist",
    "scenes",
    "sine_mean",
    "sine_with_gap",
    "standardiser",
    "unseen_animals",
    "wine",
]
