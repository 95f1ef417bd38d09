"""Bayesian linear regression in features: exact posterior, predictive and evidence.

The model is y = φ(x)·θ + ε with ε ~ N(0, noise_std²). A belief about the weights θ is a mean and a precision matrix:
data add to the precision, and a flat prior is precision zero. No matrix is inverted: its Cholesky factor is enough.

Chapter: book/01-bayes.ipynb
"""

from math import inf, pi
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ._checks import as_float, check_broadcast, require

__all__ = [
    "GaussianWeights",
    "LinearPredictive",
    "gaussian_prior",
    "linear_log_evidence",
    "linear_posterior",
    "linear_predictive",
    "polynomial_features",
    "radial_features",
    "sample_weights",
]


class GaussianWeights(NamedTuple):
    """A Gaussian belief about the weights, N(loc, prec⁻¹). The batch axes of the two broadcast.

    Book: sec-linear-regression
    """

    loc: Float[Tensor, "*batch d"]
    prec: Float[Tensor, "*batch d d"]  # inverse of the covariance


class LinearPredictive(NamedTuple):
    """A Gaussian belief about new targets, its two sources of variance apart.

    Book: sec-predictive-band
    """

    mean: Float[Tensor, "*batch n"]
    parameter_var: Float[Tensor, "*batch n"]  # shrinks with data
    noise_var: Float[Tensor, "*batch n"]  # does not

    @property
    def std(self) -> Float[Tensor, "*batch n"]:
        """Standard deviation of a new target: both parts together, in data units."""
        return (self.parameter_var + self.noise_var).sqrt()


def gaussian_prior(
    num_features: int,
    *,
    prior_std: float | Float[Tensor, "*batch"],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> GaussianWeights:
    r"""Independent weights around zero, :math:`\theta \sim N(0, \mathrm{prior\_std}^2 I)`.

    Args:
        num_features: d ≥ 1.
        prior_std: standard deviation of every weight, positive, in data units per unit of the feature; infinite for a
            flat prior. A tensor gives a batch of priors.
        dtype: of the result; that of ``prior_std`` if not given.
        device: of the result; that of ``prior_std`` if not given.

    Returns:
        ``loc`` of shape [..., d] and ``prec`` of shape [..., d, d].

    Raises:
        ValueError: if there is no feature, or if ``prior_std`` is not positive.

    Source: Bishop (2006), Pattern Recognition and Machine Learning, equation 3.52.
    Book: sec-linear-regression
    """
    if not num_features >= 1:
        raise ValueError(f"num_features must be at least 1, got {num_features}")
    prior_std = as_float(prior_std, torch.empty((), dtype=dtype, device=device)).to(dtype=dtype, device=device)
    require(prior_std > 0, "prior_std must be positive", prior_std)
    prior_prec = prior_std.square().reciprocal()[..., None].expand(*prior_std.shape, num_features)
    return GaussianWeights(torch.zeros_like(prior_prec), torch.diag_embed(prior_prec))


def linear_posterior(
    prior: GaussianWeights,
    features: Float[Tensor, "*#batch n d"],
    targets: Float[Tensor, "*#batch n"],
    *,
    noise_std: float | Float[Tensor, "*#batch"],
) -> GaussianWeights:
    r"""Belief about the weights after seeing n targets.

    .. math:: S_n^{-1} = S_0^{-1} + \frac{\Phi^\top \Phi}{\sigma^2}, \qquad
              m_n = m_0 + S_n \frac{\Phi^\top (y - \Phi m_0)}{\sigma^2}

    Args:
        prior: belief before, N(m₀, S₀), held as its precision S₀⁻¹; zero precision is a flat prior.
        features: Φ, one row an observation, at least one.
        targets: y in data units.
        noise_std: σ > 0, standard deviation of the noise on one target, in data units.

    Returns:
        Belief after, N(m_n, S_n). Give it as the next prior to go on learning: in pieces or at once is the same.

    Raises:
        ValueError: if the shapes do not match, if there is no observation, if an entry is not finite, if ``noise_std``
            is not positive, or if the data do not determine the weights and the prior does not help.

    Source: Bishop (2006), Pattern Recognition and Machine Learning, equations 3.50 and 3.51.
    Book: sec-linear-regression
    """
    noise_var = _check_regression("prior", prior, features, noise_std, targets)
    _check_determined(prior.prec.detach(), features.detach())
    prec = prior.prec + features.mT @ features / noise_var[..., None, None]
    surprise = _matvec(features.mT, targets - _matvec(features, prior.loc)) / noise_var[..., None]
    shift = torch.cholesky_solve(surprise.unsqueeze(-1), _cholesky("prior.prec plus that of the data", prec))
    return GaussianWeights(prior.loc + shift.squeeze(-1), prec)


def linear_predictive(
    weights: GaussianWeights, features: Float[Tensor, "*#batch n d"], *, noise_std: float | Float[Tensor, "*#batch"]
) -> LinearPredictive:
    r"""Belief about the targets at new inputs.

    .. math:: y \mid \phi \sim N\big(\phi^\top m_n,\; \underbrace{\phi^\top S_n \phi}_{\text{parameters}}
              + \underbrace{\sigma^2}_{\text{noise}}\big)

    Args:
        weights: belief about the weights, prior or posterior.
        features: φ, one row a new input.
        noise_std: σ > 0, standard deviation of the noise on one target, in data units.

    Returns:
        Mean in data units, and the two variances in data units squared, each of shape [..., n]. ``std`` joins them.

    Raises:
        ValueError: if the shapes do not match, if a feature is not finite, if ``noise_std`` is not positive, or if the
            belief is flat in some direction.

    Source: Bishop (2006), Pattern Recognition and Machine Learning, equations 3.58 and 3.59.
    Book: sec-predictive-band
    """
    noise_var = _check_regression("weights", weights, features, noise_std)
    cholesky = _cholesky("weights.prec", weights.prec)
    mean = _matvec(features, weights.loc)
    # φᵀ (L Lᵀ)⁻¹ φ is the squared length of L⁻¹ φ.
    parameter_var = torch.linalg.solve_triangular(cholesky, features.mT, upper=False).square().sum(-2)
    return LinearPredictive(*torch.broadcast_tensors(mean, parameter_var, noise_var[..., None]))


def linear_log_evidence(
    prior: GaussianWeights,
    features: Float[Tensor, "*#batch n d"],
    targets: Float[Tensor, "*#batch n"],
    *,
    noise_std: float | Float[Tensor, "*#batch"],
) -> Float[Tensor, "*#batch"]:
    r"""Log density of the targets with the weights averaged out: how well these features explain them.

    .. math:: \log p(y) = \tfrac12 \log \frac{|S_0^{-1}|}{|S_n^{-1}|} - \tfrac n2 \log 2 \pi \sigma^2
              - \tfrac12 \Big( \tfrac{1}{\sigma^2} \lVert y - \Phi m_n \rVert^2
              + (m_n - m_0)^\top S_0^{-1} (m_n - m_0) \Big)

    Args:
        prior: belief about the weights before, with a positive definite precision.
        features: Φ, one row an observation, at least one.
        targets: y in data units.
        noise_std: σ > 0, standard deviation of the noise on one target, in data units.

    Returns:
        log p(y) in nats, of shape [...]. Matrices are no larger than features by features, whatever n.

    Raises:
        ValueError: as ``linear_posterior``; also if the prior is flat in some direction, since a prior that does not
            integrate to one has no evidence.

    Source: Bishop (2006), Pattern Recognition and Machine Learning, section 3.5.1.
    Book: sec-degree
    """
    posterior = linear_posterior(prior, features, targets, noise_std=noise_std)
    noise_var = as_float(noise_std, features).square()
    log_det_ratio = _log_det("prior.prec", prior.prec) - _log_det("posterior.prec", posterior.prec)
    residual, shift = targets - _matvec(features, posterior.loc), posterior.loc - prior.loc
    misfit = residual.square().sum(-1) / noise_var + (shift * _matvec(prior.prec, shift)).sum(-1)
    return 0.5 * (log_det_ratio - targets.shape[-1] * (2 * pi * noise_var).log() - misfit)


def sample_weights(
    weights: GaussianWeights, num_samples: int, *, generator: torch.Generator
) -> Float[Tensor, "num_samples *batch d"]:
    r"""Draw weights, :math:`\theta = m + L^{-\top} \varepsilon` with :math:`L L^\top` the precision and ε ~ N(0, I).

    Args:
        weights: belief to draw from.
        num_samples: how many draws, at least 1.
        generator: source of randomness, on the device of the weights.

    Returns:
        Independent draws, along the first axis.

    Raises:
        ValueError: if ``num_samples`` is below 1, or if the belief is flat in some direction.

    Source: Rue and Held (2005), Gaussian Markov Random Fields, section 2.3.
    Book: sec-linear-regression
    """
    if not num_samples >= 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    _check_weights("weights", weights)
    cholesky = _cholesky("weights.prec", weights.prec)
    shape = (*torch.broadcast_shapes(weights.loc.shape, cholesky.shape[:-1]), num_samples)
    noise = torch.randn(shape, generator=generator, dtype=cholesky.dtype, device=cholesky.device)
    return weights.loc + torch.linalg.solve_triangular(cholesky.mT, noise, upper=True).movedim(-1, 0)


def polynomial_features(x: Float[Tensor, "*batch n"], degree: int) -> Float[Tensor, "*batch n {degree}+1"]:
    r"""Powers of the input, :math:`\phi(x) = (1, x, x^2, \dots, x^{\text{degree}})`.

    Args:
        x: inputs; best scaled to about [-1, 1], or high powers explode.
        degree: highest power, at least 0.

    Returns:
        One row an input, the constant first.

    Raises:
        ValueError: if ``x`` has no axis, or if ``degree`` is negative.

    Source: Bishop (2006), Pattern Recognition and Machine Learning, section 1.1.
    Book: sec-linear-regression
    """
    if not degree >= 0:
        raise ValueError(f"degree must be at least 0, got {degree}")
    _check_inputs(x)
    return x.unsqueeze(-1) ** torch.arange(degree + 1, device=x.device)


def radial_features(
    x: Float[Tensor, "*batch n"], centres: Float[Tensor, " k"], *, width: float | Float[Tensor, ""]
) -> Float[Tensor, "*batch n k"]:
    r"""Gaussian bumps, :math:`\phi_j(x) = \exp\!\big(-\tfrac12 (x - c_j)^2 / \text{width}^2\big)`.

    Args:
        x: inputs.
        centres: where the bumps are, in the units of x.
        width: standard deviation of a bump, positive, in the units of x.

    Returns:
        One row an input, one column a bump, each in (0, 1]. No constant: far from every centre all are zero.

    Raises:
        ValueError: if ``x`` has no axis, if ``centres`` is not a list of numbers, or if ``width`` is not positive.

    Source: Bishop (2006), Pattern Recognition and Machine Learning, equation 3.4.
    Book: sec-linear-regression
    """
    width = as_float(width, x)
    require((width > 0) & (width < inf), "width must be positive and finite", width)
    _check_inputs(x)
    if centres.ndim != 1 or len(centres) == 0:
        raise ValueError(f"centres must be [k >= 1], got shape {tuple(centres.shape)}")
    return (-0.5 * ((x.unsqueeze(-1) - centres) / width).square()).exp()


def _matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _cholesky(name: str, prec: Tensor) -> Tensor:
    cholesky, info = torch.linalg.cholesky_ex(prec)
    if (info > 0).any():
        raise ValueError(f"{name} must be positive definite to the precision of {prec.dtype}, got a flat direction")
    return cholesky


def _log_det(name: str, prec: Tensor) -> Tensor:
    return 2 * _cholesky(name, prec).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _check_weights(name: str, weights: GaussianWeights) -> None:
    loc, prec = weights
    num_features = loc.shape[-1] if loc.ndim else 0
    if num_features == 0 or prec.shape[-2:] != (num_features, num_features):
        shapes = f"{tuple(loc.shape)} and {tuple(prec.shape)}"
        raise ValueError(f"{name}.loc and {name}.prec must be [..., d] and [..., d, d] with d >= 1, got {shapes}")
    require(loc.isfinite(), f"{name}.loc must be finite", loc)
    require(prec.isfinite(), f"{name}.prec must be finite", prec)


def _check_regression(
    name: str, weights: GaussianWeights, features: Tensor, noise_std: float | Tensor, targets: Tensor | None = None
) -> Tensor:
    """Check one belief, named ``name``, with the data that it meets; return the variance of the noise."""
    _check_weights(name, weights)
    num_features = weights.loc.shape[-1]
    if features.ndim < 2 or features.shape[-2] == 0 or features.shape[-1] != num_features:
        raise ValueError(f"features must be [..., n >= 1, {num_features}], got shape {tuple(features.shape)}")
    if features.dtype != weights.loc.dtype:
        raise ValueError(f"features must have the dtype of {name}, {weights.loc.dtype}, got {features.dtype}")
    require(features.isfinite(), "features must be finite", features)
    noise_std = as_float(noise_std, features)
    require((noise_std > 0) & (noise_std < inf), "noise_std must be positive and finite", noise_std)
    batches = {f"{name}.loc": weights.loc.shape[:-1], f"{name}.prec": weights.prec.shape[:-2]}
    batches |= {"features": features.shape[:-2], "noise_std": noise_std.shape}
    if targets is not None:
        _check_targets(targets, features)
        batches["targets"] = targets.shape[:-1]
    check_broadcast(**batches)
    return noise_std.square()


def _check_targets(targets: Tensor, features: Tensor) -> None:
    num_rows = features.shape[-2]
    if targets.shape[-1:] != (num_rows,):
        raise ValueError(f"targets must be [..., {num_rows}], one a row of features, got shape {tuple(targets.shape)}")
    if targets.dtype != features.dtype:
        raise ValueError(f"targets must have the dtype of features, {features.dtype}, got {targets.dtype}")
    require(targets.isfinite(), "targets must be finite", targets)


def _check_determined(prior_prec: Tensor, features: Tensor) -> None:
    """Check that where the prior is flat, the features see every direction of the weights."""
    is_flat = torch.linalg.cholesky_ex(prior_prec).info > 0
    if not is_flat.any():
        return
    eps = torch.finfo(prior_prec.dtype).eps
    lowest = torch.linalg.eigvalsh(prior_prec)[..., 0]
    require(lowest >= -eps * prior_prec.abs().amax((-2, -1)), "prior.prec must have no negative eigenvalue", lowest)

    # Columns get length one, so that unlike units are no defect. The posterior precision squares the singular values:
    # one below the root of the rounding error here is lost there.
    batch = torch.broadcast_shapes(prior_prec.shape[:-2], features.shape[:-2])
    rows = torch.cat([features.expand(*batch, -1, -1), prior_prec.expand(*batch, -1, -1)], -2)
    rows = rows / rows.norm(dim=-2, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    num_features = rows.shape[-1]
    rank = torch.where(is_flat, torch.linalg.matrix_rank(rows, rtol=eps**0.5), num_features).amin()
    if rank < num_features:
        rule = "features must have full column rank when the prior is flat"
        raise ValueError(f"{rule}, got rank {rank.item()} of {num_features}")


def _check_inputs(x: Tensor) -> None:
    if x.ndim == 0:
        raise ValueError("x must be [..., n], got a single number")
