r"""Principal components: the best linear bottleneck, exactly, and a linear autoencoder that is trained to find it.

Chapter: book/09-autoencoders.ipynb
"""

import copy
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bdl_lib.vae._checks import check_at_least, check_finite
from bdl_lib.vae.autoencoder import Autoencoder, AutoencoderFit, check_finite_images

__all__ = ["PrincipalComponents", "fit_linear_autoencoder", "principal_angles", "principal_components"]


class PrincipalComponents(NamedTuple):
    r"""The directions in which images vary most, largest variance first.

    .. math:: z = Q^\top (x - \bar x), \qquad \hat x = \bar x + Q z

    Book: sec-linear-autoencoder
    """

    mean: Float[Tensor, "height width"]  # x̄
    components: Float[Tensor, "num_components height width"]  # the columns of Q: orthogonal, of length 1
    variances: Float[Tensor, " num_components"]  # λ: mean squares of the codes, squared units of a pixel
    left_over: Float[Tensor, ""]  # sum of all other variances: the mean squared error of the best reconstructions

    def encode(self, images: Float[Tensor, "n height width"]) -> Float[Tensor, "n num_components"]:
        """The code of each image."""
        return (images - self.mean).flatten(1) @ self.components.flatten(1).T

    def decode(self, latents: Float[Tensor, "n num_components"]) -> Float[Tensor, "n height width"]:
        """The image of each code."""
        return self.mean + torch.einsum("nk,khw->nhw", latents, self.components)


def principal_components(images: Float[Tensor, "n height width"], num_components: int) -> PrincipalComponents:
    r"""Principal component analysis of images, by the singular values of the centred data.

    .. math:: \frac1n \sum_i (x_i - \bar x)(x_i - \bar x)^\top = Q \Lambda Q^\top,
              \qquad \lambda_1 \ge \lambda_2 \ge \dots

    Args:
        images: x, finite.
        num_components: how many to keep: at least 1, at most the number of pixels and of images.

    Returns:
        The :class:`PrincipalComponents`. Each component's sign is arbitrary.

    Raises:
        ValueError: if ``num_components`` is out of range, or an image is not finite.

    Source: Pearson (1901), doi:10.1080/14786440109462720; Eckart and Young (1936), doi:10.1007/BF02288367.
    Book: sec-linear-autoencoder
    """
    check_at_least("num_components", num_components, 1)
    flat = images.flatten(1)
    if num_components > min(flat.shape):
        raise ValueError(f"num_components must be at most {min(flat.shape)}, got {num_components}")
    check_finite(images)
    mean = flat.mean(0)
    _, singular, rows = torch.linalg.svd(flat - mean, full_matrices=False)
    variances = singular.square() / len(flat)
    components = rows[:num_components].unflatten(1, images.shape[1:])
    kept, rest = variances[:num_components], variances[num_components:]
    return PrincipalComponents(mean.view(images.shape[1:]), components, kept, rest.sum())


def principal_angles(
    first: Float[Tensor, "dim num_first"], second: Float[Tensor, "dim num_second"]
) -> Float[Tensor, " num_angles"]:
    r"""The angles between two subspaces: 0 where they share a direction, a right angle where they have nothing alike.

    With orthonormal bases :math:`U_1, U_2`, the cosines are the singular values of :math:`U_1^\top U_2`. A small angle
    is lost in its cosine, which is 1 within rounding; so angles below 45° come from their sines, the singular values of
    :math:`(I - U_1 U_1^\top)\, U_2`.

    Args:
        first: a basis of the one subspace, in columns that are linearly independent; not necessarily orthogonal.
        second: a basis of the other.

    Returns:
        As many angles as the smaller subspace has dimensions, in radians, largest first.

    Raises:
        ValueError: if the columns of a basis depend on each other.

    Source: Björck and Golub (1973), doi:10.1090/S0025-5718-1973-0348991-3.
    Book: sec-linear-autoencoder
    """
    for name, basis in {"first": first, "second": second}.items():
        if torch.linalg.matrix_rank(basis) != basis.shape[1]:
            raise ValueError(f"{name} must have linearly independent columns, got {basis.shape[1]} that are not")
    large, small = (torch.linalg.qr(basis).Q for basis in sorted((first, second), key=lambda b: -b.shape[1]))
    cosines = torch.linalg.svdvals(large.T @ small).flip(0).clamp(max=1)
    sines = torch.linalg.svdvals(small - large @ (large.T @ small)).clamp(max=1)
    return torch.where(cosines < math.sqrt(0.5), cosines.acos(), sines.asin())


@torch.no_grad()
def fit_linear_autoencoder(
    model: Autoencoder, images: Float[Tensor, "n height width"], *, num_sweeps: int = 100
) -> AutoencoderFit:
    r"""Train a copy of a linear autoencoder by alternating least squares.

    Each half of a sweep solves exactly what is left when the other half of the model is held: first the decoder that is
    best for the codes, then the encoder that is best for the decoder. With the covariance S of the images:

    .. math:: D \leftarrow S E^\top (E S E^\top)^{-1}, \qquad E \leftarrow (D^\top D)^{-1} D^\top

    The subspace that D spans is multiplied by S in each sweep, so this is subspace iteration: the error shrinks by
    about :math:`\lambda_{k+1} / \lambda_k` a sweep, with the variances λ of the principal components.

    Args:
        model: where to start, of :func:`bdl_lib.vae.linear_autoencoder`; it stays as it is.
        images: x, finite, more than the code has numbers. Use float64: the covariance is formed.
        num_sweeps: at least 1.

    Returns:
        An :class:`bdl_lib.vae.AutoencoderFit` with one entry of the history a sweep, without validation.

    Raises:
        ValueError: if ``num_sweeps`` is below 1, the model is not linear, or the images do not fit it.

    Source: Baldi and Hornik (1989), doi:10.1016/0893-6080(89)90014-2 (what it converges to).
    Book: sec-linear-autoencoder
    """
    check_at_least("num_sweeps", num_sweeps, 1)
    to_code, to_pixels = _linear_layers(model)
    check_finite_images(model, images)
    if len(images) <= model.latent_dim:
        raise ValueError(f"images must be more than latent_dim = {model.latent_dim}, got {len(images)}")
    mean = images.flatten(1).mean(0)
    centred = images.flatten(1) - mean
    covariance = centred.T @ centred / len(images)
    encoder, history = to_code.weight, []  # [latent_dim, pixels]
    for _ in range(num_sweeps):
        with_pixels = encoder @ covariance  # covariance of codes and pixels
        decoder = torch.linalg.solve(with_pixels @ encoder.T, with_pixels).T
        encoder = torch.linalg.pinv(decoder)
        history.append(_loss(covariance, encoder, decoder))
    model = copy.deepcopy(model)
    to_code, to_pixels = _linear_layers(model)
    for layer, weight, bias in [(to_code, encoder, -encoder @ mean), (to_pixels, decoder, mean)]:
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return AutoencoderFit(model.eval(), torch.stack(history), None)


def _loss(covariance: Tensor, encoder: Tensor, decoder: Tensor) -> Tensor:
    """Mean squared error of x̂ = x̄ + D E (x − x̄), from the covariance of x alone."""
    with_pixels = encoder @ covariance
    explained = ((decoder.T @ decoder) * (with_pixels @ encoder.T)).sum()
    return covariance.trace() - 2 * (with_pixels.T * decoder).sum() + explained


def _linear_layers(model: Autoencoder) -> tuple[nn.Linear, nn.Linear]:
    """The two layers of a linear autoencoder; ``ValueError`` if there is anything else."""
    found = [m for m in model.modules() if next(m.children(), None) is None and not isinstance(m, _RESHAPING)]
    if model.is_squashed or len(found) != 2 or not all(isinstance(layer, nn.Linear) for layer in found):
        raise ValueError("model must be linear, as linear_autoencoder makes it, has more than two linear layers")
    return found[0], found[1]


_RESHAPING = (nn.Flatten, nn.Unflatten)
