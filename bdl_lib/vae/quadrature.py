r"""The log evidence of images by quadrature: exact to rounding, for a latent of one or two dimensions.

Chapter: book/11-beyond-the-elbo.ipynb
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.evidence.results import warn_unreliable
from bdl_lib.vae._checks import check_at_least, check_positive
from bdl_lib.vae.elbo import check_images, log_prior
from bdl_lib.vae.model import Vae

__all__ = ["exact_log_evidence"]

_NUM_VALUES = 2**22  # pixels of decoded points, for all images, at a time
_MAX_CHANGE = 0.01  # nats, from every second point to all of them: these err by less, a third of it at most
_MAX_EDGE_SHARE = 1e-3  # of a posterior, in the outermost points


def exact_log_evidence(
    model: Vae,
    images: Float[Tensor, "n height width"],
    *,
    num_points: int = 201,
    half_width: float = 6.0,
    condition: Float[Tensor, "n condition_dim"] | None = None,
) -> Float[Tensor, " n"]:
    r"""log p(x) of each image by the trapezium rule on a grid over the latent space.

    .. math:: \log p_\theta(x) \approx \log \sum_i p_\theta(x \mid z_i)\, p(z_i)\; h^D, \qquad
              z_i \in \{-b, -b + h, \dots, b\}^D

    For smooth densities that have died out at the ends, the rule's error falls faster than any power of h once h is
    below the posterior's standard deviation; the kinks of a decoder with ReLU leave an error of order h². The grid is
    decoded once for all images.

    Args:
        model: a :class:`bdl_lib.vae.Vae` with one or two latent dimensions.
        images: x, with pixels that the likelihood allows.
        num_points: along each axis, odd, at least 3.
        half_width: b, positive, in units of the prior's standard deviation.
        condition: one row an image, if the model takes one; then every image has a grid of its own.

    Returns:
        Nats. If every second point alone gives another value for an image, by more than 0.01 nats, or more than a
        thousandth of its posterior lies at the grid's edge, there is a :class:`bdl_lib.evidence.UnreliableEvidence`
        warning.

    Raises:
        ValueError: if a number is out of its range, the latent has more than 2 dimensions, or images or condition do
            not fit the model.

    Source: Trefethen and Weideman (2014), The Exponentially Convergent Trapezoidal Rule, doi:10.1137/130932132.
    Book: sec-log-evidence-images
    """
    _check(model, images, num_points, half_width, condition)
    axis = torch.linspace(-half_width, half_width, num_points, dtype=images.dtype, device=images.device)
    points = torch.cartesian_prod(*[axis] * model.latent_dim).view(-1, model.latent_dim)
    size = max(1, _NUM_VALUES // images.numel())
    with torch.no_grad():
        log_joint = torch.cat([_log_joint(model, part, images, condition) for part in points.split(size)])
    log_joint = log_joint.view(*[num_points] * model.latent_dim, len(images))
    log_cell = model.latent_dim * math.log(2 * half_width / (num_points - 1))
    value = _log_total(log_joint) + log_cell
    _warn(log_joint, value - log_cell)
    return value


def _log_joint(model: Vae, points: Tensor, images: Tensor, condition: Tensor | None) -> Float[Tensor, "num_points n"]:
    """log p(x | z) + log p(z) of every point and every image."""
    num_columns = 1 if condition is None else len(images)
    outputs = model.decode(points[:, None].expand(-1, num_columns, -1), condition)
    return model.likelihood.log_prob(outputs, images) + log_prior(points)[:, None]


def _log_total(log_joint: Tensor) -> Float[Tensor, " n"]:
    """Log of the sum over the grid."""
    return log_joint.flatten(0, -2).logsumexp(0)


def _warn(log_joint: Tensor, log_total: Tensor) -> None:
    """Say so where the grid is too coarse or too small."""
    dim = log_joint.ndim - 1
    coarse, inner = (log_joint[(part,) * dim] for part in (slice(None, None, 2), slice(1, -1)))
    change = (_log_total(coarse) + dim * math.log(2) - log_total).abs().max()
    edge_share = 1 - (_log_total(inner) - log_total).exp().min()
    if not change <= _MAX_CHANGE:
        warn_unreliable(f"every second point gives another value, by {change:.2g} nats: take more num_points")
    if not edge_share <= _MAX_EDGE_SHARE:
        warn_unreliable(f"{edge_share:.1%} of a posterior lies at the edge of the grid: take a larger half_width")


def _check(model, images, num_points, half_width, condition) -> None:
    check_at_least("num_points", num_points, 3)
    if num_points % 2 == 0:
        raise ValueError(f"num_points must be odd, got {num_points}")
    check_positive("half_width", half_width)
    if model.latent_dim > 2:
        raise ValueError(f"model must have at most 2 latent dimensions for a grid, got {model.latent_dim}")
    check_images(model, images, condition, None)
