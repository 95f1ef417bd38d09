r"""SWAG: a Gaussian over the weights, with the moments of what stochastic gradient descent does near a minimum.

Chapter: book/07-dropout.ipynb
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from bdl_lib import networks
from bdl_lib.dropout._checks import check_at_least, check_inputs
from bdl_lib.dropout._training import check_data, check_mean_loss, check_model, check_settings, show
from bdl_lib.vi import FailedFit

__all__ = ["Swag", "fit_swag", "predict_swag", "sample_swag"]


class Swag(NamedTuple):
    """A Gaussian over flat weights, in the order of ``model.named_parameters()``, and how the loss went.

    Book: sec-cheap-posteriors
    """

    model: nn.Module  # the architecture at the mean of the weights, in evaluation mode
    loc: Float[Tensor, " dim"]  # mean of the iterates
    var: Float[Tensor, " dim"]  # their variance, weight by weight
    deviations: Float[Tensor, "rank dim"]  # of the last iterates, each from the mean as it was then
    loss_history: Float[Tensor, " epochs"]  # mean over the epoch's minibatches, without decay


def fit_swag(
    model: nn.Module,
    inputs: Shaped[Tensor, "n *features"],
    targets: Shaped[Tensor, "n *out"],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    num_epochs: int = 50,
    batch_size: int = 32,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    rank: int = 20,
    generator: torch.Generator,
    progress: bool = False,
) -> Swag:
    r"""Go on training with a constant step size, and keep the moments of the weights at the end of every epoch.

    .. math:: \bar\theta_t = \frac1t \sum_{s=1}^t \theta_s, \qquad \Sigma_{\text{diag}} = \operatorname{diag}\Big(
              \frac1T \sum_{t=1}^T \theta_t^2 - \bar\theta_T^2\Big), \qquad D_t = \theta_t - \bar\theta_t

    How wide the Gaussian becomes depends on the step size and the size of the minibatches, as well as on the loss: it
    is the posterior's width only where these happen to fit.

    Args:
        model: a trained network, near a minimum; it stays as it is. It is in evaluation mode throughout: batch norm
            keeps its averages, so that they fit every draw, and dropout of this library is off.
        inputs: x, one example a row, finite.
        targets: y, one a row.
        loss: (outputs, targets) of a minibatch to its **mean** loss.
        num_epochs: T, how often to go through the data, at least 2; the weights at the end of each count.
        batch_size: at least 1; all rows, if there are fewer, and then nothing is random.
        lr: the constant step size, positive. Large enough to move, small enough to stay near the minimum.
        momentum: of the descent, in [0, 1).
        weight_decay: λ ≥ 0: :math:`\lambda \lVert \theta \rVert^2` is part of the objective. In PyTorch's optimisers
            the same decay is called 2 λ.
        rank: K, how many deviations to keep, at least 2; those of the last epochs.
        generator: draws the minibatches; on the device of the data.
        progress: True shows a bar.

    Returns:
        A :class:`Swag`, its ``deviations`` min(K, T) rows. The host waits for the device once an epoch.

    Raises:
        ValueError: if a setting is out of range, the data do not fit each other, ``loss`` gives not one number, or the
            model has nothing to train or dropout of PyTorch.
        FailedFit: if the loss or a weight is not finite after an epoch. It names the epoch, and its ``fit`` is the
            :class:`Swag` from before it.

    Source: Maddox, Garipov, Izmailov, Vetrov and Wilson (2019), A Simple Baseline for Bayesian Uncertainty in Deep
        Learning, arXiv:1902.02476, section 3 and algorithm 1.
    Book: sec-cheap-posteriors
    """
    check_settings(num_epochs, batch_size, lr, weight_decay)
    check_at_least("num_epochs", num_epochs, 2)
    check_at_least("rank", rank, 2)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
    check_data(inputs, targets)
    check_model(model)
    model = copy.deepcopy(model).eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=momentum, weight_decay=2 * weight_decay)
    moments, history = _Moments.start(_flat(model)), []
    for epoch in show(range(num_epochs), "fit_swag", progress):
        mean = 0.0
        for rows in torch.randperm(len(inputs), generator=generator, device=inputs.device).split(batch_size):
            value = loss(model(inputs[rows]), targets[rows])
            check_mean_loss(value, ())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            mean = mean + len(rows) / len(inputs) * value.detach()
        weights = _flat(model)
        if not torch.stack([mean, weights.sum()]).isfinite().all():
            raise _failure(epoch, mean, _record(model, moments, history))
        moments, history = moments.update(weights, rank), [*history, mean]
    optimizer.zero_grad()
    return _record(model, moments, history)


def sample_swag(swag: Swag, num_samples: int, *, generator: torch.Generator) -> Float[Tensor, "num_samples dim"]:
    r"""Draw weights from the Gaussian: half its covariance diagonal, half of low rank.

    .. math:: \theta \sim N\Big(\bar\theta,\; \tfrac12 \Sigma_{\text{diag}} + \frac{D^\top D}{2 (K - 1)}\Big), \qquad
              \theta = \bar\theta + \tfrac{1}{\sqrt 2} \Sigma_{\text{diag}}^{1/2} z_1
              + \frac{1}{\sqrt{2 (K - 1)}} D^\top z_2

    Args:
        swag: from :func:`fit_swag`; the K deviations are the rows of D.
        num_samples: how many draws, at least 1.
        generator: draws z₁ and z₂, on the device of the weights.

    Returns:
        Flat weights, one draw a row, in the order of ``networks.from_module(swag.model)``.

    Raises:
        ValueError: if ``num_samples`` is below 1.

    Source: Maddox et al. (2019), arXiv:1902.02476, equation 1.
    Book: sec-cheap-posteriors
    """
    check_at_least("num_samples", num_samples, 1)
    rank, dim = swag.deviations.shape
    noise = torch.randn(num_samples, dim + rank, generator=generator, dtype=swag.loc.dtype, device=swag.loc.device)
    diagonal, low_rank = noise.split([dim, rank], 1)
    return swag.loc + (swag.var / 2).sqrt() * diagonal + low_rank @ swag.deviations / math.sqrt(2 * (rank - 1))


def predict_swag(
    swag: Swag, inputs: Float[Tensor, "n *features"], *, num_samples: int = 30, generator: torch.Generator
) -> Float[Tensor, "num_samples n *out"]:
    r"""Outputs of the network under weights drawn from the Gaussian, one consistent function a draw.

    .. math:: p(y \mid x, \mathcal{D}) \approx \frac1S \sum_{s=1}^S p(y \mid f(\theta_s, x)), \qquad \theta_s \sim
              N(\bar\theta, \Sigma)

    Args:
        swag: from :func:`fit_swag`.
        inputs: x, finite.
        num_samples: S, at least 1.
        generator: draws the weights.

    Returns:
        :math:`f(\theta_s, x_i)`, to be averaged as probabilities or densities, not as logits.

    Raises:
        ValueError: if ``num_samples`` is below 1, there are no inputs, or they are not finite.

    Source: Maddox et al. (2019), arXiv:1902.02476, section 3.4.
    Book: sec-cheap-posteriors
    """
    check_inputs(inputs)
    weights = sample_swag(swag, num_samples, generator=generator)
    with torch.no_grad():
        return networks.from_module(swag.model).apply(weights, inputs)


class _Moments(NamedTuple):
    """Of the iterates so far, by Welford's update: no difference of large numbers, so no negative variance."""

    loc: Tensor
    sum_of_squares: Tensor  # of the distances from the mean
    deviations: Tensor
    count: int

    @classmethod
    def start(cls, weights: Tensor) -> "_Moments":
        return cls(weights, torch.zeros_like(weights), weights.new_empty(0, len(weights)), 0)

    def update(self, weights: Tensor, rank: int) -> "_Moments":
        loc = self.loc + (weights - self.loc) / (self.count + 1)
        sum_of_squares = self.sum_of_squares + (weights - self.loc) * (weights - loc)
        deviations = torch.cat([self.deviations, (weights - loc)[None]])[-rank:]
        return _Moments(loc, sum_of_squares, deviations, self.count + 1)


def _flat(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def _record(model: nn.Module, moments: _Moments, history: list[Tensor]) -> Swag:
    losses = torch.stack(history) if history else moments.loc.new_empty(0)
    model.load_state_dict(networks.unflatten_weights(networks.from_module(model), moments.loc), strict=False)
    var = moments.sum_of_squares / max(moments.count, 1)
    return Swag(model, moments.loc, var, moments.deviations, losses)


def _failure(epoch: int, mean: Tensor, before: Swag) -> FailedFit:
    what = f"the loss of epoch {epoch} is {mean.item():.4g}, or a weight is not finite after it"
    return FailedFit(f"{what}. Try a smaller lr; .fit has what was before it", fit=before, step=epoch)
