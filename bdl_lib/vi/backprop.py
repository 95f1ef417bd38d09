r"""Bayes by Backprop: a multilayer perceptron whose weights are independent Gaussians, trained by minibatches.

Chapter: book/05-vi.ipynb
"""

import itertools
from collections.abc import Callable, Sequence
from math import ceil, cos, pi
from typing import NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

from bdl_lib import networks
from bdl_lib.vi._checks import check_at_least, check_positive
from bdl_lib.vi.families import MeanFieldGaussian
from bdl_lib.vi.layers import BayesianLinear, LayerForward, bayesian_linear, flipout, local_reparameterisation
from bdl_lib.vi.results import FailedFit

__all__ = ["BackpropFit", "BayesianMlp", "bayesian_mlp", "fit_backprop", "kl_to_prior"]


class BayesianMlp(NamedTuple):
    """The distribution of a multilayer perceptron's weights, layer by layer.

    Book: sec-backprop
    """

    layers: tuple[BayesianLinear, ...]
    activation: Callable[[Tensor], Tensor]  # between layers, not after the last

    @property
    def layer_sizes(self) -> list[int]:
        """Inputs, hidden widths, outputs."""
        return [self.layers[0].weight_loc.shape[1], *(len(layer.bias_loc) for layer in self.layers)]

    @property
    def network(self) -> networks.Network:
        """The function of flat weights: with draws of ``family``, one consistent function a draw."""
        return networks.mlp(self.layer_sizes, activation=self.activation)

    @property
    def family(self) -> MeanFieldGaussian:
        """The same distribution over flat weights, in the order of :func:`bdl_lib.networks.mlp`."""
        locs = [loc.flatten() for layer in self.layers for loc in (layer.weight_loc, layer.bias_loc)]
        log_stds = [log.flatten() for layer in self.layers for log in (layer.weight_log_std, layer.bias_log_std)]
        return MeanFieldGaussian(torch.cat(locs), torch.cat(log_stds))

    def forward(
        self, inputs: Float[Tensor, "n in"], *, layer_forward: LayerForward = flipout, generator: torch.Generator
    ) -> Float[Tensor, "n out"]:
        """Outputs under random weights: one draw for each example, shared between them as ``layer_forward`` does."""
        hidden = layer_forward(self.layers[0], inputs, generator=generator)
        for layer in self.layers[1:]:
            hidden = layer_forward(layer, self.activation(hidden), generator=generator)
        return hidden


class BackpropFit(NamedTuple):
    """What training found, and how the bound rose.

    Book: sec-backprop
    """

    model: BayesianMlp
    elbo_history: Float[Tensor, " epochs"]  # nats, an estimate on all data while the weights moved on


def bayesian_mlp(
    layer_sizes: Sequence[int],
    *,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    std: float = 0.05,
    generator: torch.Generator,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> BayesianMlp:
    r"""Where Bayes by Backprop starts: each layer from :func:`bdl_lib.vi.bayesian_linear`.

    Args:
        layer_sizes: inputs, hidden widths, outputs: at least two numbers, each at least 1.
        activation: applied element by element between layers, and not after the last.
        std: > 0, standard deviation of every weight.
        generator: draws the means.
        dtype: of the weights, PyTorch's default dtype if not given.
        device: of the weights, PyTorch's default device if not given.

    Returns:
        A :class:`BayesianMlp`.

    Raises:
        ValueError: if ``layer_sizes`` is out of range or ``std`` is not positive.

    Book: sec-backprop
    """
    sizes = list(layer_sizes)
    if len(sizes) < 2 or not all(size >= 1 for size in sizes):
        raise ValueError(f"layer_sizes must be at least two numbers, each at least 1, got {sizes}")
    start = {"std": std, "generator": generator, "dtype": dtype, "device": device}
    return BayesianMlp(tuple(bayesian_linear(*pair, **start) for pair in itertools.pairwise(sizes)), activation)


def kl_to_prior(model: BayesianMlp, *, prior_std: float | Float[Tensor, "*weights"]) -> Float[Tensor, ""]:
    r"""How far the weights' distribution is from the prior :math:`N(0, \sigma_p^2)`: a sum over all weights.

    .. math:: \mathrm{KL}(q \,\|\, p) = \sum_j \left( \log \frac{\sigma_p}{s_j} + \frac{s_j^2 + m_j^2}{2 \sigma_p^2}
              - \frac12 \right)

    The sum, not the mean over weights: only with the sum is log likelihood minus KL a bound on the evidence.

    Args:
        model: q.
        prior_std: σ_p > 0, one for all weights or one a weight in the order of ``model.family``; a
            ``networks.gaussian_prior(...)`` has it as ``std``.

    Returns:
        The divergence in nats, differentiable in the weights' means and log standard deviations.

    Raises:
        ValueError: if ``prior_std`` is not positive and finite, or has not one entry a weight.

    Source: Blundell, Cornebise, Kavukcuoglu and Wierstra (2015), arXiv:1505.05424, whose prior is a mixture.
    Book: sec-backprop
    """
    return _kl(model.family, _check_prior_std(model, prior_std))


def fit_backprop(
    model: BayesianMlp,
    inputs: Float[Tensor, "n in"],
    targets: Num[Tensor, " n"],
    likelihood: networks.Likelihood,
    *,
    prior_std: float | Float[Tensor, "*weights"],
    num_epochs: int = 500,
    batch_size: int = 128,
    lr: float = 0.01,
    layer_forward: LayerForward = local_reparameterisation,
    generator: torch.Generator,
    progress: bool = False,
) -> BackpropFit:
    r"""Raise the evidence lower bound of a network's weights by Adam, minibatch by minibatch.

    .. math:: \text{ELBO} \approx \frac{n}{|B|} \sum_{i \in B} \log p(y_i \mid f(\theta_i, x_i))
              - \mathrm{KL}(q(\theta) \,\|\, p(\theta))

    Every epoch goes once through all rows, in a new order. The factor :math:`n / |B|` makes each minibatch's sum an
    unbiased estimate of the whole one; the divergence is exact and enters whole. The step size falls from ``lr`` to
    zero along half a cosine, so that the noise of the gradients is averaged out at the end.

    Args:
        model: where to start; it stays as it is.
        inputs: x, finite, in the model's dtype.
        targets: y, one a row.
        likelihood: p(y | f), from :mod:`bdl_lib.networks`.
        prior_std: σ_p > 0 of independent Gaussians around zero, one for all weights or one a weight.
        num_epochs: how often to go through the data, at least 1.
        batch_size: :math:`|B|`, at least 1; all rows, if there are fewer. An epoch's last minibatch may be smaller.
        lr: Adam's first step size, positive, in the units of the means and of the log standard deviations.
        layer_forward: how a layer draws: :func:`bdl_lib.vi.local_reparameterisation`, :func:`bdl_lib.vi.flipout` or
            :func:`bdl_lib.vi.shared_weights`; any of the three aims at the same bound.
        generator: the only source of randomness, on the device of the model.
        progress: True shows a bar.

    Returns:
        A :class:`BackpropFit`. For the bound at the end with its standard error, give ``fit.model.family`` and
        ``networks.log_posterior(...)`` to :func:`bdl_lib.vi.reparameterised_elbo`. The host waits for the device once
        an epoch.

    Raises:
        ValueError: if a setting is out of range, or model, data, likelihood and prior do not fit.
        FailedFit: if the bound or a weight is not finite after an epoch. It names the epoch, and holds the model
            from before it.

    Source: Blundell, Cornebise, Kavukcuoglu and Wierstra (2015), Weight Uncertainty in Neural Networks,
        arXiv:1505.05424.
    Book: sec-backprop
    """
    check_at_least("num_epochs", num_epochs, 1)
    check_at_least("batch_size", batch_size, 1)
    check_positive("lr", lr)
    prior_std = _check_data(model, inputs, targets, likelihood, prior_std)
    family = MeanFieldGaussian(*(tensor.detach().requires_grad_() for tensor in model.family))
    optimizer = torch.optim.Adam(family, lr=lr)
    num_steps = num_epochs * ceil(len(inputs) / batch_size)
    history, step = family.loc.new_empty(num_epochs), 0
    for epoch in _show(range(num_epochs), progress):
        before, elbo = _detached(family), 0.0
        for rows in torch.randperm(len(inputs), generator=generator, device=inputs.device).split(batch_size):
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + cos(pi * step / num_steps))
            outputs = _with_family(model, family).forward(
                inputs[rows], layer_forward=layer_forward, generator=generator
            )
            share = len(rows) / len(inputs)
            estimate = likelihood.log_prob(outputs[None], targets[rows]).sum() / share - _kl(family, prior_std)
            optimizer.zero_grad()
            (-estimate).backward()
            optimizer.step()
            elbo, step = elbo + share * estimate.detach(), step + 1
        history[epoch] = elbo
        _check_finite(epoch, elbo, family, BackpropFit(_with_family(model, before), history[:epoch].clone()))
    return BackpropFit(_with_family(model, _detached(family)), history)


def _kl(family: MeanFieldGaussian, prior_std: Tensor) -> Tensor:
    relative = (family.log_std - prior_std.log()).exp()
    return (0.5 * (relative.square() + (family.loc / prior_std).square() - 1) - relative.log()).sum()


def _with_family(model: BayesianMlp, family: MeanFieldGaussian) -> BayesianMlp:
    """The inverse of ``model.family``: layers that are views of the flat vectors."""
    sizes = [tensor.numel() for layer in model.layers for tensor in (layer.weight_loc, layer.bias_loc)]
    locs, log_stds = family.loc.split(sizes), family.log_std.split(sizes)
    parts = zip(model.layers, locs[::2], log_stds[::2], locs[1::2], log_stds[1::2], strict=True)
    layers = [
        BayesianLinear(loc.view_as(old.weight_loc), log_std.view_as(old.weight_loc), bias_loc, bias_log_std)
        for old, loc, log_std, bias_loc, bias_log_std in parts
    ]
    return model._replace(layers=tuple(layers))


def _detached(family: MeanFieldGaussian) -> MeanFieldGaussian:
    return MeanFieldGaussian(*(tensor.detach().clone() for tensor in family))


def _show(epochs, progress: bool):
    if not progress:
        return epochs
    from tqdm.auto import tqdm

    return tqdm(epochs, desc="fit_backprop")


def _check_prior_std(model, prior_std) -> Tensor:
    check_positive("prior_std", prior_std)
    loc = model.family.loc.detach()
    prior_std = torch.as_tensor(prior_std, dtype=loc.dtype, device=loc.device)
    if prior_std.ndim and prior_std.shape != loc.shape:
        rule = f"prior_std must be one number, or one for each of the {len(loc)} weights"
        raise ValueError(f"{rule}, got shape {list(prior_std.shape)}")
    return prior_std.expand(loc.shape)


def _check_data(model, inputs, targets, likelihood, prior_std) -> Tensor:
    """Let the log posterior of the same network say what does not fit."""
    prior_std = _check_prior_std(model, prior_std)
    if inputs.ndim != 2 or inputs.shape[1] != model.layer_sizes[0] or inputs.dtype != prior_std.dtype:
        rule = f"inputs must be [n, {model.layer_sizes[0]}], in the model's {prior_std.dtype}"
        raise ValueError(f"{rule}, got {inputs.dtype} of shape {list(inputs.shape)}")
    networks.log_posterior(model.network, networks.GaussianPrior(prior_std), likelihood, inputs, targets)
    return prior_std


def _check_finite(epoch: int, elbo: Tensor, family: MeanFieldGaussian, fit: BackpropFit) -> None:
    """Raise :class:`FailedFit` unless the bound and all parameters are finite; waits for the device once."""
    if torch.stack([elbo, *(tensor.detach().sum() for tensor in family)]).isfinite().all():
        return
    is_bad = ~(family.loc.isfinite() & family.log_std.isfinite())
    bad = ", ".join(name for name, where in fit.model.network.weight_slices.items() if is_bad[where].any())
    what = f"the ELBO of epoch {epoch} is {elbo.item():.4g}; weights that are not finite: {bad or 'none yet'}"
    raise FailedFit(f"{what}. Try a smaller lr; .fit has what was before it", fit=fit, step=epoch, parameter=bad)
