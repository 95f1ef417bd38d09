r"""Probabilistic PCA: the variational autoencoder whose decoder is linear and whose noise is Gaussian, solved exactly.

Chapter: book/10-vae.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.vae._checks import check_latent_dim

__all__ = ["Ppca", "probabilistic_pca"]


class Ppca(NamedTuple):
    r"""A Gaussian density of vectors, whose covariance is a few directions and equal noise in all.

    .. math:: x = W z + \mu + \varepsilon, \quad z \sim N(0, I), \quad \varepsilon \sim N(0, \sigma^2 I)
              \qquad\Longrightarrow\qquad x \sim N(\mu,\, W W^\top + \sigma^2 I)

    Book: sec-ppca
    """

    loc: Float[Tensor, " dim"]  # μ
    loadings: Float[Tensor, "dim latent_dim"]  # W, its columns orthogonal, the longest first
    noise_var: Float[Tensor, ""]  # σ²
    log_likelihood: Float[Tensor, " n"]  # of the vectors that it was fitted to, nats each

    def log_prob(self, vectors: Float[Tensor, "m dim"]) -> Float[Tensor, " m"]:
        """Log density of any vectors, in nats, by a matrix of the size of the latent."""
        return _log_prob(self.loc, self.loadings, self.noise_var, vectors)


def probabilistic_pca(vectors: Float[Tensor, "n dim"], latent_dim: int) -> Ppca:
    r"""The maximum likelihood of probabilistic PCA, in closed form.

    .. math:: \sigma^2 = \frac{1}{D - L} \sum_{j > L} \lambda_j, \qquad W = U_L (\Lambda_L - \sigma^2 I)^{1/2}

    with the eigenvalues :math:`\lambda_1 \ge \dots \ge \lambda_D` of the sample covariance, and the first L
    eigenvectors as the columns of :math:`U_L`. The columns of W are orthogonal, so the posterior of z has a diagonal
    covariance, and an encoder with a diagonal Gaussian can be exact.

    Args:
        vectors: x, one a row: images as ``images.flatten(1)``.
        latent_dim: L, from 1 to D − 1.

    Returns:
        A :class:`Ppca`. No other model of this form gives the data a higher likelihood.

    Raises:
        ValueError: if ``latent_dim`` is out of range, the vectors are not finite, or nothing is left for the noise:
            :math:`\sigma^2` would be 0.

    Source: Tipping and Bishop (1999), Probabilistic Principal Component Analysis, doi:10.1111/1467-9868.00196.
    Book: sec-ppca
    """
    _check(vectors, latent_dim)
    loc = vectors.mean(0)
    _, singular, directions = torch.linalg.svd(vectors - loc, full_matrices=False)
    eigenvalues = singular.square() / len(vectors)
    noise_var = eigenvalues[latent_dim:].sum() / (vectors.shape[1] - latent_dim)
    if not noise_var > eigenvalues[0] * torch.finfo(vectors.dtype).eps ** 2:
        rule = "vectors must vary in more than latent_dim directions, or the noise would be 0"
        raise ValueError(f"{rule}, got latent_dim {latent_dim} and noise {noise_var.item():.3g}")
    lengths = (eigenvalues[:latent_dim] - noise_var).clamp(min=0).sqrt()
    loadings = directions[:latent_dim].mT * lengths
    return Ppca(loc, loadings, noise_var, _log_prob(loc, loadings, noise_var, vectors))


def _log_prob(loc: Tensor, loadings: Tensor, noise_var: Tensor, vectors: Tensor) -> Tensor:
    """By the inverse and the determinant of a matrix [latent_dim, latent_dim] (Woodbury)."""
    dim, latent_dim = loadings.shape
    inner = loadings.mT @ loadings + noise_var * torch.eye(latent_dim, dtype=loc.dtype, device=loc.device)
    factor = torch.linalg.cholesky_ex(inner).L
    residuals = vectors - loc
    explained = torch.linalg.solve_triangular(factor, (residuals @ loadings).mT, upper=False).square().sum(0)
    log_det = (dim - latent_dim) * noise_var.log() + 2 * factor.diagonal().log().sum()
    distance = (residuals.square().sum(1) - explained) / noise_var
    return -0.5 * (dim * math.log(2 * math.pi) + log_det + distance)


def _check(vectors: Tensor, latent_dim: int) -> None:
    check_latent_dim(latent_dim)
    if vectors.ndim != 2 or len(vectors) < 2 or not vectors.isfinite().all():
        raise ValueError(f"vectors must be finite, [n >= 2, dim], got shape {list(vectors.shape)}, or not finite")
    if not latent_dim < min(vectors.shape):
        raise ValueError(f"latent_dim must be below {min(vectors.shape)}, got {latent_dim}")
