r"""Images from a trained model: from the prior, from the posterior of an image, along paths through the latent space.

Each function gives the means of the pixels, or pixels drawn at random.

Chapter: book/10-vae.ipynb
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.vae._checks import check_at_least, check_condition
from bdl_lib.vae.elbo import check_image, check_images
from bdl_lib.vae.model import Vae

__all__ = ["interpolate", "latent_grid", "reconstruct", "sample_posterior", "sample_prior", "traverse"]

_PARALLEL = 1e-4  # sine of an angle: below it, the arc is the straight line to rounding


@torch.no_grad()
def sample_prior(
    model: Vae,
    num: int,
    *,
    generator: torch.Generator,
    condition: Float[Tensor, "n condition_dim"] | None = None,
    is_sampled: bool = False,
) -> Float[Tensor, "n height width"]:
    r"""New images: latents from the prior, decoded.

    .. math:: z \sim N(0, I), \qquad x \sim p_\theta(x \mid z) \quad \text{or} \quad
              x = \mathrm{E}_{p_\theta(x \mid z)}[x]

    Args:
        model: a :class:`bdl_lib.vae.Vae`.
        num: how many, at least 1.
        generator: draws the latents, and the pixels if these are drawn.
        condition: one row an image, if the model takes one.
        is_sampled: True draws the pixels too, which gives draws of the model; False shows their means.

    Returns:
        The images.

    Raises:
        ValueError: if ``num`` is below 1, or the condition does not fit the model.

    Book: sec-vae-generate
    """
    check_at_least("num", num, 1)
    check_condition(condition, num, model.condition_dim)
    latents = torch.randn(num, model.latent_dim, generator=generator, **_like(model))
    return _images(model, latents, condition, generator if is_sampled else None)


@torch.no_grad()
def sample_posterior(
    model: Vae,
    images: Float[Tensor, "n height width"],
    num_samples: int,
    *,
    generator: torch.Generator,
    condition: Float[Tensor, "n condition_dim"] | None = None,
    is_sampled: bool = False,
) -> Float[Tensor, "num_samples n height width"]:
    r"""What else each image could have been, to the encoder's knowledge: latents from q(z | x), decoded.

    Args:
        model: a :class:`bdl_lib.vae.Vae`.
        images: x, with pixels that the likelihood allows.
        num_samples: for each image, at least 1.
        generator: draws the latents, and the pixels if these are drawn.
        condition: one row an image, if the model takes one.
        is_sampled: True draws the pixels too; False shows their means.

    Returns:
        The images.

    Raises:
        ValueError: if ``num_samples`` is below 1, or images or condition do not fit the model.

    Book: sec-vae-generate
    """
    check_at_least("num_samples", num_samples, 1)
    check_images(model, images, condition, None)
    latents = model.encode(images, condition).rsample(num_samples, generator=generator)
    return _images(model, latents, condition, generator if is_sampled else None)


@torch.no_grad()
def reconstruct(
    model: Vae,
    images: Float[Tensor, "n height width"],
    *,
    condition: Float[Tensor, "n condition_dim"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n height width"]:
    r"""Each image by way of the mean of its latent.

    Args:
        model: a :class:`bdl_lib.vae.Vae`.
        images: x, with pixels that the likelihood allows.
        condition: one row an image, if the model takes one.
        generator: draws the pixels; without one, their means are shown.

    Returns:
        The images.

    Raises:
        ValueError: if images or condition do not fit the model.

    Book: sec-vae-generate
    """
    check_images(model, images, condition, None)
    return _images(model, model.encode(images, condition).loc, condition, generator)


@torch.no_grad()
def interpolate(
    model: Vae,
    first: Float[Tensor, "n height width"],
    second: Float[Tensor, "n height width"],
    *,
    num_steps: int = 8,
    is_spherical: bool = False,
    condition: Float[Tensor, "n condition_dim"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "num_steps n height width"]:
    r"""From one image to another, by way of the latents between the means of theirs.

    .. math:: z_t = (1 - t)\, z_0 + t\, z_1 \qquad \text{or} \qquad
              z_t = \frac{\sin((1 - t)\, \omega)}{\sin \omega}\, z_0 + \frac{\sin(t\, \omega)}{\sin \omega}\, z_1

    with ω the angle between the two. The straight line passes nearer to the origin than its ends lie; the arc keeps
    the length of vectors of equal length, which in many dimensions is where the prior has its mass. Where the two point
    the same way or opposite ways, the arc is the line.

    Args:
        model: a :class:`bdl_lib.vae.Vae`.
        first: where the paths start.
        second: where they end, as many.
        num_steps: images on each path, both ends included, at least 2.
        is_spherical: True takes the arc, False the straight line.
        condition: one row a path, if the model takes one.
        generator: draws the pixels; without one, their means are shown.

    Returns:
        The images, from the first to the second.

    Raises:
        ValueError: if ``num_steps`` is below 2, or images or condition do not fit the model or one another.

    Source: White (2016), Sampling Generative Networks, arXiv:1609.04468 (the arc).
    Book: sec-vae-generate
    """
    check_at_least("num_steps", num_steps, 2)
    check_images(model, first, condition, None, "first")
    check_images(model, second, condition, None, "second")
    if len(first) != len(second):
        raise ValueError(f"second must have as many images as first, {len(first)}, got {len(second)}")
    start, end = model.encode(first, condition).loc, model.encode(second, condition).loc
    fraction = torch.linspace(0, 1, num_steps, dtype=start.dtype, device=start.device)[:, None, None]
    weights = _arc_weights(start, end, fraction) if is_spherical else (1 - fraction, fraction)
    return _images(model, weights[0] * start + weights[1] * end, condition, generator)


@torch.no_grad()
def traverse(
    model: Vae,
    image: Float[Tensor, "height width"],
    dim: int,
    values: Float[Tensor, " num_values"],
    *,
    condition: Float[Tensor, " condition_dim"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "num_values height width"]:
    r"""One image with one latent coordinate set to other values, the others left at their means.

    Args:
        model: a :class:`bdl_lib.vae.Vae`.
        image: x, with pixels that the likelihood allows.
        dim: which coordinate, from 0 to latent_dim − 1.
        values: what it is set to, in units of the prior's standard deviation.
        condition: one row, if the model takes one.
        generator: draws the pixels; without one, their means are shown.

    Returns:
        An image for each value.

    Raises:
        ValueError: if ``dim`` is out of range, a value is not finite, or image or condition do not fit the model.

    Book: sec-vae-generate
    """
    check_image(model, image, condition)
    row = None if condition is None else condition[None]
    if not 0 <= dim < model.latent_dim:
        raise ValueError(f"dim must be from 0 to {model.latent_dim - 1}, got {dim}")
    if not values.isfinite().all():
        raise ValueError(f"values must be finite, got {int((~values.isfinite()).sum())} non-finite values")
    latents = model.encode(image[None], row).loc.repeat(len(values), 1)
    latents[:, dim] = values
    return _images(model, latents, _repeat(row, len(values)), generator)


@torch.no_grad()
def latent_grid(
    model: Vae,
    num_per_side: int = 15,
    *,
    condition: Float[Tensor, " condition_dim"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "num_per_side num_per_side height width"]:
    r"""What a two-dimensional latent space decodes to, everywhere, in steps of equal probability under the prior.

    .. math:: z_{ij} = \big(\Phi^{-1}(u_j),\, \Phi^{-1}(u_{m-1-i})\big), \qquad u_k = \frac{k + \frac12}{m}

    Args:
        model: a :class:`bdl_lib.vae.Vae` with two latent dimensions.
        num_per_side: m, at least 1.
        condition: one row, the same for all images, if the model takes one.
        generator: draws the pixels; without one, their means are shown.

    Returns:
        Images as on a map: the first coordinate grows along a row, the second from the bottom row to the top.

    Raises:
        ValueError: if ``num_per_side`` is below 1, the latent has another dimension than 2, or the condition does not
            fit the model.

    Source: Kingma and Welling (2014), arXiv:1312.6114 (the picture).
    Book: sec-vae-generate
    """
    check_at_least("num_per_side", num_per_side, 1)
    if model.latent_dim != 2:
        raise ValueError(f"model must have 2 latent dimensions to be shown on a map, got {model.latent_dim}")
    row = None if condition is None else condition[None]
    check_condition(row, 1, model.condition_dim)
    prob = (torch.arange(num_per_side, **_like(model)) + 0.5) / num_per_side
    axis = torch.special.ndtri(prob)
    second, first = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    latents = torch.stack([first, second], -1).flatten(0, 1)
    return _images(model, latents, _repeat(row, len(latents)), generator).unflatten(0, (num_per_side, num_per_side))


def _images(model: Vae, latents: Tensor, condition: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Means of the pixels, or draws."""
    outputs = model.decode(latents, condition)
    if generator is None:
        return model.likelihood.mean(outputs)
    return model.likelihood.sample(outputs, generator=generator)


def _arc_weights(start: Tensor, end: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the two ends along the arc between them, [num_steps, n, 1]."""
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=-1)[:, None].clamp(-1, 1)
    angle = cosine.acos()
    is_line = angle.sin() < _PARALLEL
    angle = torch.where(is_line, 1.0, angle)
    weights = ((1 - fraction) * angle).sin() / angle.sin(), (fraction * angle).sin() / angle.sin()
    return torch.where(is_line, 1 - fraction, weights[0]), torch.where(is_line, fraction, weights[1])


def _repeat(row: Tensor | None, num: int) -> Tensor | None:
    return None if row is None else row.expand(num, -1)


def _like(model: Vae) -> dict:
    """The dtype and the device of a model."""
    weight = next(model.parameters())
    return {"dtype": weight.dtype, "device": weight.device}
