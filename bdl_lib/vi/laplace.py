r"""Laplace's approximation as a family: no optimisation of a bound, only the curvature at the mode.

Chapter: book/05-vi.ipynb
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.evidence import LogProb, negative_hessian
from bdl_lib.vi.families import FullRankGaussian, MeanFieldGaussian, full_rank_gaussian, mean_field_gaussian

__all__ = ["laplace_family"]


def laplace_family(
    log_prob: LogProb, mode: Float[Tensor, " dim"], *, is_diagonal: bool = False
) -> FullRankGaussian | MeanFieldGaussian:
    r"""The Gaussian with the posterior's mode and its curvature there.

    .. math:: q(\theta) = N(\theta; \hat\theta, H^{-1}), \qquad H = -\nabla^2 \log p(\theta \mid x)
              \big|_{\hat\theta}

    Args:
        log_prob: log density in nats for rows of [n, dim], up to a constant, twice differentiable.
        mode: :math:`\hat\theta`, from :func:`bdl_lib.evidence.find_mode`.
        is_diagonal: True keeps the diagonal of H alone, :math:`s_j^2 = 1 / H_{jj}`.

    Returns:
        A family, to draw from, or to start a fit at.

    Raises:
        ValueError: if H is not positive definite at ``mode``.

    Source: MacKay (2003), Information Theory, Inference, and Learning Algorithms, chapter 27.
    Book: sec-families
    """
    prec = negative_hessian(log_prob, mode, is_diagonal=is_diagonal)
    if is_diagonal:
        if not (prec > 0).all():
            raise ValueError(f"mode must be a summit, with positive curvature, got {mode.tolist()[:8]}")
        return mean_field_gaussian(mode, std=prec.rsqrt())
    # with the order of coordinates reversed, prec = U Uᵀ for an upper triangular U, so the covariance is L Lᵀ, L = U⁻ᵀ
    cholesky, info = torch.linalg.cholesky_ex(prec.flip(0, 1))
    if info != 0 or not cholesky.isfinite().all():
        raise ValueError(f"mode must be a summit, where the curvature is positive definite, got {mode.tolist()[:8]}")
    upper = cholesky.flip(0, 1)
    identity = torch.eye(len(mode), dtype=mode.dtype, device=mode.device)
    scale_tril = torch.linalg.solve_triangular(upper, identity, upper=True).mT
    return full_rank_gaussian(mode)._replace(scale_tril=scale_tril)
