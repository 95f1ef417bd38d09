r"""What a network's outputs say about a target: :math:`\log p(y_i \mid f(\theta, x_i))`, and its mean and variance.

Outputs come as [samples, n, k], targets as [n]; every density here is normalised in the target, every log in nats.

Chapter: book/02-networks.ipynb
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Likelihood",
    "bernoulli_likelihood",
    "categorical_likelihood",
    "gaussian_likelihood",
    "heteroscedastic_likelihood",
]


class Likelihood(NamedTuple):
    """How outputs become a distribution over targets. What a likelihood does not have is None.

    Book: sec-log-posterior
    """

    log_prob: Callable[[Tensor, Tensor], Tensor]  # outputs [samples, n, k], targets [n] -> [samples, n], nats
    log_prob_and_score: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # and its gradient in the outputs
    moments: Callable[[Tensor], tuple[Tensor, Tensor]] | None  # outputs -> mean and variance of y, each [samples, n]
    class_prob: Callable[[Tensor], Tensor] | None  # outputs -> [samples, n, classes], rows sum to 1
    check_targets: Callable[[Tensor], None]  # raises ValueError for targets that cannot be
    num_outputs: int  # k, what the network must supply
    description: str


def gaussian_likelihood(noise_std: float) -> Likelihood:
    r"""Real targets with the same noise everywhere.

    .. math:: y_i \sim N(f(\theta, x_i), \sigma^2)

    Args:
        noise_std: σ > 0, in the units of the targets (not a variance).

    Returns:
        A :class:`Likelihood` for networks with one output, the mean.

    Raises:
        ValueError: if ``noise_std`` is not positive and finite.

    Book: sec-log-posterior
    """
    if not 0 < noise_std < math.inf:
        raise ValueError(f"noise_std must be positive and finite, got {noise_std}")

    log_scale = math.log(noise_std) + 0.5 * math.log(2 * math.pi)

    def log_prob(outputs, targets):
        return -0.5 * ((targets - outputs[..., 0]) / noise_std).square() - log_scale

    def log_prob_and_score(outputs, targets):
        standardised = (targets - outputs[..., 0]) / noise_std
        return -0.5 * standardised.square() - log_scale, (standardised / noise_std)[..., None]

    def moments(outputs):
        mean = outputs[..., 0]
        return mean, torch.full_like(mean, noise_std**2)

    return Likelihood(log_prob, log_prob_and_score, moments, None, _check_real, 1, f"gaussian, noise_std={noise_std}")


def heteroscedastic_likelihood() -> Likelihood:
    r"""Real targets whose noise the network predicts as well.

    .. math:: y_i \sim N(\mu_i, e^{s_i}), \qquad (\mu_i, s_i) = f(\theta, x_i)

    The second output is the log of the *variance*, :math:`s = \log\sigma^2`: any real number is a valid one.

    Returns:
        A :class:`Likelihood` for networks with two outputs, mean and log variance.

    Source: Nix and Weigend (1994), doi:10.1109/ICNN.1994.374138.
    Book: sec-log-posterior
    """

    def log_prob(outputs, targets):
        mean, log_var = outputs.unbind(-1)
        return -0.5 * ((targets - mean).square() * torch.exp(-log_var) + log_var + math.log(2 * math.pi))

    def log_prob_and_score(outputs, targets):
        mean, log_var = outputs.unbind(-1)
        mean_score = (targets - mean) * torch.exp(-log_var)
        square = mean_score * (targets - mean)
        score = torch.stack([mean_score, 0.5 * (square - 1)], dim=-1)
        return -0.5 * (square + log_var + math.log(2 * math.pi)), score

    def moments(outputs):
        mean, log_var = outputs.unbind(-1)
        return mean, log_var.exp()

    return Likelihood(log_prob, log_prob_and_score, moments, None, _check_real, 2, "heteroscedastic gaussian")


def bernoulli_likelihood(*, allow_empty_class: bool = False) -> Likelihood:
    r"""Two classes, 0 and 1.

    .. math:: p(y_i = 1) = \frac{1}{1 + e^{-z_i}}, \qquad z_i = f(\theta, x_i)

    Args:
        allow_empty_class: False refuses targets that are all alike, which is more often a mistake than a wish.

    Returns:
        A :class:`Likelihood` for networks with one output, the logit z. Its probabilities and its variance p(1 - p)
        reach 0 and 1 without harm; its log probability is finite wherever z is.

    Raises:
        ValueError: from ``check_targets``, if a target is neither 0 nor 1, or a class is empty.

    Book: sec-log-posterior
    """

    def log_prob(outputs, targets):
        logit = outputs[..., 0]
        return F.logsigmoid(torch.where(targets == 1, logit, -logit))  # log p and log(1 - p), without the subtraction

    def log_prob_and_score(outputs, targets):
        sign = torch.where(targets == 1, 1, -1).to(outputs)
        logit = outputs[..., 0] * sign
        return F.logsigmoid(logit), (sign * torch.sigmoid(-logit))[..., None]

    def moments(outputs):
        logit = outputs[..., 0]
        return logit.sigmoid(), logit.sigmoid() * (-logit).sigmoid()

    def class_prob(outputs):
        return torch.cat([-outputs, outputs], dim=-1).sigmoid()

    def check_targets(targets):
        _check_labels(targets, 2, allow_empty_class)

    return Likelihood(log_prob, log_prob_and_score, moments, class_prob, check_targets, 1, "bernoulli")


def categorical_likelihood(num_classes: int, *, allow_empty_class: bool = False) -> Likelihood:
    r"""One of C classes.

    .. math:: p(y_i = c) = \operatorname{softmax}(f(\theta, x_i))_c = \frac{e^{f_c}}{\sum_{c'} e^{f_{c'}}}

    Args:
        num_classes: C, at least 2.
        allow_empty_class: False refuses targets in which a class never occurs, which is more often a mistake than a
            wish.

    Returns:
        A :class:`Likelihood` for networks with C outputs, the logits.

    Raises:
        ValueError: if ``num_classes`` is below 2; from ``check_targets``, if a target is no label or a class is empty.

    Book: sec-log-posterior
    """
    if not num_classes >= 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}")

    def log_prob(outputs, targets):
        index = targets.long().expand(*outputs.shape[:-2], 1, -1)
        return outputs.mT.log_softmax(-2).gather(-2, index).squeeze(-2)  # classes first, as an MLP lays them in memory

    def log_prob_and_score(outputs, targets):
        index = targets.long().expand(*outputs.shape[:-2], 1, -1)
        log_class_prob = outputs.mT.log_softmax(-2)
        log_prob = log_class_prob.gather(-2, index)
        score = log_class_prob.exp_().neg_()  # one-hot minus softmax
        return log_prob.squeeze(-2), score.scatter_add_(-2, index, torch.ones_like(log_prob)).mT

    def class_prob(outputs):
        return outputs.softmax(-1)

    def check_targets(targets):
        _check_labels(targets, num_classes, allow_empty_class)

    return Likelihood(
        log_prob,
        log_prob_and_score,
        None,
        class_prob,
        check_targets,
        num_classes,
        f"categorical, {num_classes} classes",
    )


def _check_real(targets):
    if not targets.is_floating_point() or not targets.isfinite().all():
        raise ValueError(f"targets must be finite floating-point numbers, got {_show(targets)}")


def _check_labels(labels, num_classes, allow_empty_class):
    if not ((labels >= 0) & (labels < num_classes) & (labels == labels.long())).all():
        raise ValueError(f"targets must be whole labels from 0 to {num_classes - 1}, got {_show(labels)}")
    present = torch.bincount(labels.long(), minlength=num_classes) > 0
    if not allow_empty_class and not present.all():
        empty = (~present).nonzero().flatten().tolist()
        raise ValueError(f"targets must include every class, got none of {empty}; allow_empty_class=True if meant")


def _show(values):
    return f"{values.dtype} values {values.unique()[:8].tolist()}"
