r"""Small scenes with the truth for every pixel: what is there, how far away it is, and whether it was ever seen before.

Handwritten digits hang at different distances before a dark wall. A nearer one looks larger and brighter, and covers
what is behind it: three honest cues to depth. The camera adds noise to the grey values. The depth sensor adds noise
that grows with distance, and its standard deviation is known, so that a network which predicts its own noise can be
checked. Objects of kinds that no training scene contains (disc, square, cross, triangle) can be hung among the digits.

Chapter: book/08-uncertainty.ipynb
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bdl_lib.data.pictures import digits
from bdl_lib.data.records import Images, Scenes

__all__ = ["scenes"]

_WALL = 4.0  # metres
_NEAREST, _FARTHEST = 1.0, 3.0  # metres, of objects
_SIZE_AT_1_M = 0.75  # side of an object's square, as a share of the image's
_FOG = 0.35  # 1/m: brightness falls as exp(-fog · (depth - nearest))
_INK = 0.35  # where the object's own image is darker than this, one sees past it


def scenes(
    num_scenes: int,
    *,
    generator: torch.Generator,
    objects: Images | None = None,
    size: int = 48,
    num_objects: int = 4,
    unseen_prob: float = 0.0,
    noise_std: float = 0.1,
    depth_noise_std: float = 0.03,
    dtype: torch.dtype | None = None,
) -> Scenes:
    r"""Scenes composed from real digits, with class and depth of every pixel.

    Each object has a distance z, uniform between 1 and 3 m, a place, and a picture. It appears with a side of 0.75/z of
    the image's side and a brightness of exp(-0.35 (z - 1)); where two overlap, the nearer one is seen. The wall is at
    4 m, black, of class 0.

    .. math:: \text{image} = \text{truth} + \sigma\varepsilon, \qquad
              \text{measured depth} = z\,(1 + \sigma_z \varepsilon'), \qquad \varepsilon, \varepsilon' \sim N(0, 1)

    Args:
        num_scenes: n, at least 1.
        generator: the only source of randomness; its device is the scenes' device.
        objects: what to compose them from; the embedded training digits, if not given. Give the test digits for scenes
            to be judged on.
        size: side of the images in pixels, at least 16.
        num_objects: objects in each scene, at least 1. Some end up covered.
        unseen_prob: probability, for each object, that it is of a kind outside the classes; 0 for training scenes.
        noise_std: σ ≥ 0 of the camera, in units of the grey value.
        depth_noise_std: σ_z ≥ 0 of the depth sensor, as a share of the depth.
        dtype: of images and depths; PyTorch's default dtype if not given.

    Returns:
        A :class:`Scenes` with arrays [n, size, size]. Class 0 is the wall, class 1 + c the digit c; pixels of unseen
        objects have label -1 (for ``cross_entropy(ignore_index=-1)``) and are marked in ``is_unseen``.

    Raises:
        ValueError: if a number is out of range.
    """
    _check(num_scenes, size, num_objects, unseen_prob, noise_std, depth_noise_std)
    dtype = dtype or torch.get_default_dtype()
    objects = digits(dtype=dtype).train if objects is None else objects
    objects = objects._replace(images=objects.images.to(generator.device), labels=objects.labels.to(generator.device))
    like = {"generator": generator, "dtype": dtype, "device": generator.device}
    shape = num_scenes, num_objects
    depth = _NEAREST + (_FARTHEST - _NEAREST) * torch.rand(shape, **like)
    centre = 2 * torch.rand(*shape, 2, **like) - 1
    is_unseen = torch.rand(shape, **like) < unseen_prob
    picture, label = _choose(objects, is_unseen, generator)
    patches = _hang(picture.to(dtype), depth, centre, size)
    clean, labels, distance = _compose(patches, label, depth)
    images = clean + noise_std * torch.randn(clean.shape, **like)
    measured = distance * (1 + depth_noise_std * torch.randn(clean.shape, **like))
    source = objects.card.split("; ", 2)[2]  # a card's last parts: where from, under which licence
    card = f"{num_scenes} rows; {size}×{size} pixels: grey, class, depth (m); composed here of digits from {source}"
    return Scenes(images, labels, distance, measured, labels == -1, ("wall", *objects.class_names), card)


def _choose(objects: Images, is_unseen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each place a picture [n, objects, 28, 28] and a label: a digit, or an unseen shape of label -1."""
    like = {"generator": generator, "device": generator.device}
    shapes = _unseen_shapes(objects.images)
    row = torch.randint(len(objects.images), is_unseen.shape, **like)
    kind = torch.randint(len(shapes), is_unseen.shape, **like)
    picture = torch.where(is_unseen[..., None, None], shapes[kind], objects.images[row])
    return picture, torch.where(is_unseen, -1, objects.labels[row] + 1)


def _unseen_shapes(like: Tensor) -> Float[Tensor, "kinds 28 28"]:
    """Disc, square, cross and triangle, as large as a digit, on the grid of 28×28 pixels."""
    axis = torch.linspace(-1, 1, 28, dtype=like.dtype, device=like.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    radius = torch.hypot(x, y)
    disc, square = radius < 0.6, torch.maximum(x.abs(), y.abs()) < 0.5
    cross = ((x.abs() < 0.12) | (y.abs() < 0.12)) & (radius < 0.7)
    triangle = (y < 0.5) & (y > 2 * x.abs() - 0.7)
    return torch.stack([disc, square, cross, triangle]).to(like.dtype)


def _hang(picture: Tensor, depth: Tensor, centre: Tensor, size: int) -> Float[Tensor, "n objects size size"]:
    """Each picture drawn into an image of its own, at its place and in its apparent size."""
    side = _SIZE_AT_1_M / depth[..., None]
    centre = centre * (1 - side)  # so that the whole square is in the image
    scale = torch.diag_embed((1 / side).expand(*side.shape[:-1], 2))
    affine = torch.cat([scale, -(centre / side)[..., None]], dim=-1).flatten(0, 1)  # from the image to the picture
    grid = F.affine_grid(affine, [len(affine), 1, size, size], align_corners=False)
    hung = F.grid_sample(picture.flatten(0, 1)[:, None], grid, align_corners=False)
    return hung.view(*depth.shape, size, size)


def _compose(patches: Tensor, label: Tensor, depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Grey value, label and depth of what is seen in each pixel: the nearest object that has ink there, or the wall."""
    distance = torch.where(patches > _INK, depth[..., None, None], _WALL)
    seen_at, seen = distance.min(dim=1, keepdim=True)
    is_wall = (seen_at == _WALL)[:, 0]
    brightness = torch.exp(-_FOG * (depth - _NEAREST))[..., None, None]
    grey = torch.where(is_wall, 0, (patches * brightness).gather(1, seen)[:, 0])
    labels = torch.where(is_wall, 0, label[..., None, None].expand_as(patches).gather(1, seen)[:, 0])
    return grey, labels, seen_at[:, 0]


def _check(num_scenes, size, num_objects, unseen_prob, noise_std, depth_noise_std):
    for name, value, least in [("num_scenes", num_scenes, 1), ("size", size, 16), ("num_objects", num_objects, 1)]:
        if not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not 0 <= unseen_prob <= 1:
        raise ValueError(f"unseen_prob must be from 0 to 1, got {unseen_prob}")
    for name, value in [("noise_std", noise_std), ("depth_noise_std", depth_noise_std)]:
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be non-negative and finite, got {value}")
