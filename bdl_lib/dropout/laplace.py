r"""Laplace's approximation of the last layer alone: Bayesian regression in learned features.

All below the last linear layer is taken as known. What remains is linear in its weights, and its posterior is Gaussian
exactly (Gaussian noise) or has one summit (classes).

Chapter: book/07-dropout.ipynb
"""

import copy
from typing import NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn import functional as F

from bdl_lib.dropout._checks import check_inputs
from bdl_lib.mcmc._checks import check_positive
from bdl_lib.networks import Likelihood

__all__ = ["LastLayerLaplace", "last_layer_laplace"]

_MAX_STEPS = 100
_TOLERANCE = 1e-6  # nats: what Newton's next step still promises
_PREC_TOLERANCE = 1e-4  # relative change of the prior precision


class LastLayerLaplace(NamedTuple):
    r"""A Gaussian over the weights of the last layer, flat: row by row of [outputs, features], the bias last in a row.

    Book: sec-cheap-posteriors
    """

    body: nn.Module  # all below the last layer, in evaluation mode
    loc: Float[Tensor, "outputs features"]  # features include the constant 1, if the layer has a bias
    scale: Float[Tensor, "dim dim"]  # a root of the covariance: scale @ scale.T
    prior_prec: Float[Tensor, ""]  # one over the variance of every weight before the data
    log_evidence: Float[Tensor, ""]  # nats, Laplace's estimate; exact for Gaussian noise at the summit
    likelihood: Likelihood
    is_converged: bool  # whether summit and prior precision were found

    def features(self, inputs: Float[Tensor, "n *features"]) -> Float[Tensor, "n features"]:
        """What the last layer sees, with a 1 for its bias."""
        check_inputs(inputs)
        with torch.no_grad():
            features = self.body(inputs)
        return _with_ones(features, features.shape[1] < self.loc.shape[1])


def last_layer_laplace(
    model: nn.Module,
    inputs: Float[Tensor, "n *features"],
    targets: Num[Tensor, " n"],
    likelihood: Likelihood,
    *,
    prior_prec: float | None = None,
    is_refitted: bool = True,
) -> LastLayerLaplace:
    r"""The posterior of a trained network's last linear layer, all below held fixed.

    .. math:: q(W) = N(\hat W, H^{-1}), \qquad H = \sum_{i=1}^n \Lambda_i \otimes \phi_i \phi_i^\top + \delta I, \qquad
              \Lambda_i = -\nabla_f^2 \log p(y_i \mid f) \big|_{f = \hat W \phi_i}

    :math:`\phi_i` are the features below the layer, and a 1 for its bias; δ is the prior precision. H is the
    generalised Gauss–Newton matrix, and here the Hessian as well, since the outputs are linear in W. Gaussian noise has
    Λ = 1 / σ², which is Bayesian linear regression; a softmax has :math:`\Lambda = \operatorname{diag}(p) - p p^\top`,
    and H links all classes. If δ is not given, it maximises Laplace's evidence

    .. math:: \log p(y) \approx \log p(y \mid \hat W) + \log N(\hat W; 0, \delta^{-1} I) + \tfrac{d}{2} \log 2\pi
              - \tfrac12 \log |H|

    by turns with Newton's steps on W: each time at the point where :math:`\delta \lVert \hat W \rVert^2` equals the
    number of weights that the data determine, :math:`\sum_j \lambda_j / (\lambda_j + \delta)`, λ being the eigenvalues
    of H without the prior.

    Args:
        model: a trained network that ends in an ``nn.Linear``; it stays as it is. Evaluation mode is used, and dropout
            of this library is off.
        inputs: x, those that it was trained on, finite.
        targets: y, real or labels, one a row.
        likelihood: p(y | f): Gaussian, Bernoulli or categorical, from :mod:`bdl_lib.networks`.
        prior_prec: δ > 0. Not given, from the evidence; where that has no maximum (weights of zero fit best), δ ends
            far above every λ.
        is_refitted: True moves W to the summit of its posterior, where Laplace's approximation belongs. False leaves it
            where training did, and so the network's own prediction as it was, as is often done.

    Returns:
        A :class:`LastLayerLaplace`. It takes the eigenvectors of a matrix with outputs times features rows, a few times
        for classes, and the host waits for the device at each.

    Raises:
        ValueError: if the data do not fit each other, the model or the likelihood, ``prior_prec`` is not positive, or
            the model does not end in an ``nn.Linear``.

    Source: MacKay (1992), The Evidence Framework Applied to Classification Networks, doi:10.1162/neco.1992.4.5.720;
        Daxberger et al. (2021), Laplace Redux, arXiv:2106.14806.
    Book: sec-cheap-posteriors
    """
    _check_data(inputs, targets, likelihood)
    if prior_prec is not None:
        check_positive("prior_prec", prior_prec)
    body, features, loc = _split(model, inputs, likelihood)
    is_found = prior_prec is not None
    prec = loc.new_tensor(prior_prec if is_found else 1.0)
    here = _survey(features, targets, likelihood, loc)
    is_converged = False
    for _ in range(_MAX_STEPS):
        new_prec = prec if is_found else _best_prec(here.eigenvalues, loc, prec)
        loc, decrement = _newton_step(here, loc, new_prec, features, targets, likelihood) if is_refitted else (loc, 0.0)
        is_converged = bool((new_prec / prec).log().abs() < _PREC_TOLERANCE) and decrement < _tolerance(here)
        prec = new_prec
        here = _survey(features, targets, likelihood, loc) if is_refitted else here
        if is_converged:
            break
    scale = here.eigenvectors * (here.eigenvalues + prec).rsqrt()
    return LastLayerLaplace(body, loc, scale, prec, _log_evidence(here, loc, prec), likelihood, is_converged)


class _Survey(NamedTuple):
    """The log likelihood around some weights of the last layer."""

    log_likelihood: Tensor  # nats, of all data
    gradient: Tensor  # in the flat weights
    eigenvalues: Tensor  # of minus the Hessian, at least 0
    eigenvectors: Tensor


def _split(model: nn.Module, inputs: Tensor, likelihood: Likelihood) -> tuple[nn.Module, Tensor, Tensor]:
    """All below the last linear layer, its outputs on the data with a 1 for the bias, and the layer's weights."""
    body = copy.deepcopy(model).eval()
    layers = {name: module for name, module in body.named_modules() if isinstance(module, nn.Linear)}
    name, layer = next(reversed(layers.items()), ("", None))
    if layer is None:
        raise ValueError("model must end in an nn.Linear, has none")
    with torch.no_grad():
        outputs = body(inputs)
        body = _without(body, name)
        features = body(inputs)
        is_last = features.shape == (len(inputs), layer.in_features) and _agree(layer(features), outputs)
    if not is_last:
        raise ValueError(f"model must end in an nn.Linear, on features [n, {layer.in_features}]; '{name}' is no end")
    if layer.out_features != likelihood.num_outputs:
        wanted = f"{likelihood.num_outputs} outputs for '{likelihood.description}'"
        raise ValueError(f"model must have {wanted}, got {layer.out_features}")
    if not features.isfinite().all():
        raise ValueError("the features of model must be finite")
    has_bias = layer.bias is not None
    loc = torch.cat([layer.weight, layer.bias[:, None]], 1) if has_bias else layer.weight
    return body, _with_ones(features, has_bias), loc.detach().clone()


def _agree(first: Tensor, second: Tensor) -> bool:
    error = (first - second).abs().max() if first.shape == second.shape else torch.inf
    return bool(error <= 1e-4 * second.abs().max())


def _without(model: nn.Module, name: str) -> nn.Module:
    if not name:
        return nn.Identity()
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model


def _with_ones(features: Tensor, has_bias: bool) -> Tensor:
    return F.pad(features, (0, 1), value=1.0) if has_bias else features


def _survey(features: Tensor, targets: Tensor, likelihood: Likelihood, loc: Tensor) -> _Survey:
    outputs = (features @ loc.mT).requires_grad_()
    with torch.enable_grad():
        total = likelihood.log_prob(outputs[None], targets).sum()
        (score,) = torch.autograd.grad(total, outputs, create_graph=True)
        # an output's score depends on its own row alone, so the sum over rows has all rows' curvatures as its gradient
        curvature = [-torch.autograd.grad(part.sum(), outputs, retain_graph=True)[0] for part in score.unbind(1)]
    columns = [(column[:, :, None] * features[:, None]).flatten(1).mT @ features for column in curvature]
    matrix = torch.cat(columns, 1)
    eigenvalues, eigenvectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    rounding = len(matrix) * torch.finfo(matrix.dtype).eps * eigenvalues[-1]
    eigenvalues = torch.where(eigenvalues > rounding, eigenvalues, 0)  # what the data do not see at all
    return _Survey(total.detach(), (score.detach().mT @ features).flatten(), eigenvalues, eigenvectors)


def _newton_step(here, loc, prec, features, targets, likelihood) -> tuple[Tensor, float]:
    """Newton's step towards the summit, halved until the log posterior does not fall; and what a full one promises."""
    gradient = here.gradient - prec * loc.flatten()
    step = here.eigenvectors @ ((here.eigenvectors.mT @ gradient) / (here.eigenvalues + prec))
    decrement = 0.5 * float(gradient @ step)

    def log_posterior(loc):
        outputs = (features @ loc.mT)[None]
        return likelihood.log_prob(outputs, targets).sum() - 0.5 * prec * loc.square().sum()

    before, step = log_posterior(loc), step.view_as(loc)
    slack = 1e-5 * decrement + 1e-2 * _tolerance(here)
    for _ in range(30):
        if bool(log_posterior(loc + step) >= before - slack):
            break
        step = step / 2
    return loc + step, decrement


def _tolerance(here: _Survey) -> float:
    """Nats that rounding leaves unknown."""
    return max(_TOLERANCE, 10 * torch.finfo(here.gradient.dtype).eps * abs(float(here.log_likelihood)))


def _best_prec(eigenvalues: Tensor, loc: Tensor, start: Tensor) -> Tensor:
    r"""The δ of largest evidence for given weights and curvature: Newton's method on log δ, where it is concave."""
    squares, highest = loc.square().sum(), 1e6 * eigenvalues.max()
    prec = start
    for _ in range(10):
        known = eigenvalues / (eigenvalues + prec)
        slope = known.sum() - prec * squares
        curvature = (known * prec / (eigenvalues + prec)).sum() + prec * squares
        prec = (prec * (slope / curvature).clamp(-2, 2).exp()).clamp(max=highest)
    return prec


def _log_evidence(here: _Survey, loc: Tensor, prec: Tensor) -> Tensor:
    log_det = (here.eigenvalues / prec).log1p().sum()  # of H over that of the prior's precision
    return here.log_likelihood - 0.5 * prec * loc.square().sum() - 0.5 * log_det


def _check_data(inputs: Tensor, targets: Tensor, likelihood: Likelihood) -> None:
    if likelihood.moments is not None and likelihood.num_outputs > 1:
        raise ValueError(f"likelihood must be Gaussian, Bernoulli or categorical, got '{likelihood.description}'")
    check_inputs(inputs)
    if targets.shape != inputs.shape[:1]:
        raise ValueError(f"targets must have shape [{len(inputs)}], one a row, got {list(targets.shape)}")
    likelihood.check_targets(targets)
