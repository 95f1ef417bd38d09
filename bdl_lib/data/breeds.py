r"""Three breeds of dog to learn, and three animals that the learner has never seen.

Nobody measured these animals: they are drawn so that they fill the published ranges below. Each range [low, high] of a
sex becomes a normal distribution with its mean in the middle and two standard deviations to either end, so that about
95 % of the animals lie in the range of each column; height and weight of a sex correlate with 0.6, which is an
assumption, not a published number. Half of the animals are male.

======================  =================  ==================  =======================================================
animal                  height, cm         weight, kg          published by
======================  =================  ==================  =======================================================
bulldog                 31–40              m 22.7–25,          weight: from the American Kennel Club's standard (50 lb,
                                           f 18.1–23           40 lb) to The Kennel Club's, FCI-Standard No. 149 (25 kg,
                                                               23 kg). The standards name no height; 31–40 cm (12–16
                                                               in) is what descriptions of the breed give.
German shepherd         m 60–65, f 55–60   m 30–40, f 22–32    FCI-Standard No. 166
chihuahua               15–23              1.5–3               weight: FCI-Standard No. 218, ideal weight. It names no
                                                               height; 15–23 cm (6–9 in) is what descriptions give.
Great Dane              m 76.2–81.3,       m 63.5–79.4,        American Kennel Club: 30–32 in and 140–175 lb, 28–30 in
                        f 71.1–76.2        f 49.9–63.5         and 110–140 lb
cat                     23–25              4–5                 Wikipedia, "Cat", section "Size"
horse                   142–163            380–550             Wikipedia, "Horse", section "Size and measurement", light
                                                               riding horses
======================  =================  ==================  =======================================================

Height is at the withers, the highest point of the shoulders.

Chapter: book/02-networks.ipynb
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bdl_lib.data.records import Classification

__all__ = ["dog_breeds", "unseen_animals"]

_CORRELATION = 0.6


class _Ranges(NamedTuple):
    """Published ranges of height (cm) and weight (kg), male and female."""

    male: tuple[tuple[float, float], tuple[float, float]]
    female: tuple[tuple[float, float], tuple[float, float]]


_BREEDS = {
    "bulldog": _Ranges(male=((31, 40), (22.7, 25)), female=((31, 40), (18.1, 23))),
    "German shepherd": _Ranges(male=((60, 65), (30, 40)), female=((55, 60), (22, 32))),
    "chihuahua": _Ranges(male=((15, 23), (1.5, 3)), female=((15, 23), (1.5, 3))),
}
_UNSEEN = {
    "Great Dane": _Ranges(male=((76.2, 81.3), (63.5, 79.4)), female=((71.1, 76.2), (49.9, 63.5))),
    "cat": _Ranges(male=((23, 25), (4, 5)), female=((23, 25), (4, 5))),
    "horse": _Ranges(male=((142, 163), (380, 550)), female=((142, 163), (380, 550))),
}


def dog_breeds(
    num_per_breed: int = 100, *, generator: torch.Generator, dtype: torch.dtype | None = None
) -> Classification:
    r"""Height and weight of bulldogs, German shepherds and chihuahuas, drawn from published ranges.

    Args:
        num_per_breed: animals a breed, at least 1.
        generator: the only source of randomness; its device is the data's device.
        dtype: of the inputs; PyTorch's default dtype if not given.

    Returns:
        A :class:`Classification` with inputs [3 num_per_breed, 2], height in cm and weight in kg, breed after breed.

    Raises:
        ValueError: if ``num_per_breed`` is below 1.

    Source: the ranges, and how they become distributions: see the module, :mod:`bdl_lib.data.breeds`.
    Book: sec-breeds
    """
    if not num_per_breed >= 1:
        raise ValueError(f"num_per_breed must be at least 1, got {num_per_breed}")
    return _animals(_BREEDS, num_per_breed, "FCI, Kennel Club and AKC breed standards", generator, dtype)


def unseen_animals(
    num_per_kind: int = 100, *, generator: torch.Generator, dtype: torch.dtype | None = None
) -> Classification:
    r"""Height and weight of Great Danes, cats and horses: the questions that no dog-breed classifier was trained for.

    Args:
        num_per_kind: animals a kind, at least 1.
        generator: the only source of randomness; its device is the data's device.
        dtype: of the inputs; PyTorch's default dtype if not given.

    Returns:
        A :class:`Classification` with inputs [3 num_per_kind, 2], height in cm and weight in kg. Its labels index its
        own class names, which are not those of :func:`dog_breeds`.

    Raises:
        ValueError: if ``num_per_kind`` is below 1.

    Source: the ranges, and how they become distributions: see the module, :mod:`bdl_lib.data.breeds`.
    Book: sec-breeds
    """
    if not num_per_kind >= 1:
        raise ValueError(f"num_per_kind must be at least 1, got {num_per_kind}")
    return _animals(_UNSEEN, num_per_kind, "AKC and Wikipedia", generator, dtype)


def _animals(kinds, num_per_kind, source, generator, dtype):
    inputs = torch.cat([_draw(ranges, num_per_kind, generator, dtype) for ranges in kinds.values()])
    labels = torch.arange(len(kinds), device=generator.device).repeat_interleave(num_per_kind)
    card = f"{len(inputs)} rows; height (cm), weight (kg); simulated here from the ranges of {source}; public domain"
    return Classification(inputs, labels, tuple(kinds), ("height (cm)", "weight (kg)"), card)


def _draw(ranges: _Ranges, num: int, generator: torch.Generator, dtype: torch.dtype | None) -> Tensor:
    like = {"generator": generator, "dtype": dtype, "device": generator.device}
    is_male = torch.rand(num, 1, **like) < 0.5
    normal = torch.randn(num, 2, **like)
    weight = _CORRELATION * normal[:, 0] + (1 - _CORRELATION**2) ** 0.5 * normal[:, 1]
    normal = torch.stack([normal[:, 0], weight], dim=1)
    male, female = (torch.tensor(sex, dtype=normal.dtype, device=normal.device) for sex in ranges)  # [column, low/high]
    middle, width = (
        torch.where(is_male, f(male), f(female)) for f in (lambda r: r.mean(1), lambda r: r[:, 1] - r[:, 0])
    )
    return middle + width / 4 * normal
