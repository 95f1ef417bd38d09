r"""Make probabilities right again without training: divide the logits by a temperature, or scale each class.

Both are convex in what is fitted, so Newton's method finds the one optimum.

Chapter: book/08-uncertainty.ipynb
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bdl_lib.uncertainty._checks import check_labels, check_logits

__all__ = ["LogitScaling", "fit_temperature", "fit_vector_scaling", "scale_logits"]


class LogitScaling(NamedTuple):
    """A change of logits that was fitted: z becomes scale * z + bias, class by class.

    Book: sec-recalibration
    """

    scale: Float[Tensor, " k"]  # one number for all classes (k = 1), or one a class
    bias: Float[Tensor, " k"]
    max_gradient: Float[Tensor, ""]  # largest derivative of the mean loss left at the end: zero up to rounding

    @property
    def softmax_temperature(self) -> Float[Tensor, " k"]:
        """What the logits are divided by, 1 / scale: above 1 where they were too confident."""
        return 1 / self.scale


def fit_temperature(logits: Float[Tensor, "n classes *pixels"], labels: Int[Tensor, "n *pixels"]) -> LogitScaling:
    r"""The temperature under which held-out labels are most probable.

    .. math:: T^* = \arg\min_T -\frac1n \sum_i \log \operatorname{softmax}(z_i / T)_{y_i}

    As a function of β = 1 / T the loss is convex, with slope :math:`\frac1n \sum_i (E_{p_i}[z] - z_{i y_i})` and
    curvature :math:`\frac1n \sum_i \operatorname{Var}_{p_i}[z]`. The most probable class stays what it was, so the
    accuracy does too.

    Args:
        logits: z, the classes in dimension 1, of data that the network was not trained on.
        labels: y, one class a point or pixel.

    Returns:
        A :class:`LogitScaling` with one ``scale``, β, and no bias. Its inverse is ``softmax_temperature``.

    Raises:
        ValueError: if the logits are empty or not finite, or ``labels`` are not of their shape or classes; and where no
            temperature is best: every label has the largest logit (T goes to zero), or the labels' logits are on
            average no larger than the others (T goes to infinity).

    Source: Guo, Pleiss, Sun and Weinberger (2017), arXiv:1706.04599.
    Book: sec-recalibration
    """
    rows, one_hot = _rows(logits, labels)
    advantage = (rows * one_hot).sum(1) - rows.mean(1)
    if not advantage.mean() > 0:
        raise ValueError(f"logits must favour the labels on average, got an advantage of {advantage.mean().item()}")
    if not ((rows * one_hot).sum(1) < rows.max(1).values).any():
        raise ValueError("labels must miss the largest logit at least once, or the best temperature is 0, got no miss")

    def objective(scale):
        log_prob = (scale * rows).log_softmax(1)
        prob = log_prob.exp()
        mean = (prob * rows).sum(1)
        gradient = (mean - (rows * one_hot).sum(1)).mean()
        curvature = (prob * (rows - mean[:, None]).square()).sum(1).mean()
        return -(log_prob * one_hot).sum(1).mean(), gradient.reshape(1), curvature.reshape(1, 1)

    scale, gradient = _newton(objective, rows.new_zeros(1))
    return LogitScaling(scale, torch.zeros_like(scale), gradient.abs().max())


def fit_vector_scaling(
    logits: Float[Tensor, "n classes *pixels"], labels: Int[Tensor, "n *pixels"], *, prior_prec: float = 1e-3
) -> LogitScaling:
    r"""A scale and a bias for every class, under which held-out labels are most probable.

    .. math:: \min_{a, b} \frac1n \Big( -\sum_i \log \operatorname{softmax}(a \odot z_i + b)_{y_i}
              + \frac{\lambda}{2} \big( \|a - 1\|^2 + \|b\|^2 \big) \Big)

    The second term is a Gaussian prior around no change. It is weak, and there is always one optimum: without it, none
    for a class that never occurs, and many since a constant added to b changes nothing. The most probable class may
    change.

    Args:
        logits: z, the classes in dimension 1, of data that the network was not trained on.
        labels: y, one class a point or pixel.
        prior_prec: λ > 0, the precision of the prior of each number: as much as λ observations weigh.

    Returns:
        A :class:`LogitScaling` with one ``scale`` and one ``bias`` a class.

    Raises:
        ValueError: if the logits are empty or not finite, ``labels`` are not of their shape or classes, or
            ``prior_prec`` is not positive and finite.

    Source: Guo, Pleiss, Sun and Weinberger (2017), arXiv:1706.04599.
    Book: sec-recalibration
    """
    if not 0 < prior_prec < float("inf"):
        raise ValueError(f"prior_prec must be positive and finite, got {prior_prec}")
    rows, one_hot = _rows(logits, labels)
    n, classes = rows.shape
    no_change = torch.cat([rows.new_ones(classes), rows.new_zeros(classes)])
    prior_hessian = prior_prec / n * torch.eye(2 * classes, dtype=rows.dtype, device=rows.device)

    def objective(params):
        log_prob = (params[:classes] * rows + params[classes:]).log_softmax(1)
        prob, change = log_prob.exp(), params - no_change
        loss = -(log_prob * one_hot).sum(1).mean() + 0.5 * prior_prec / n * change.square().sum()
        gradient = torch.cat([((prob - one_hot) * rows).mean(0), (prob - one_hot).mean(0)]) + prior_prec / n * change
        both = torch.cat([prob * rows, prob], 1)  # the derivatives of log Σ exp
        blocks = [[(prob * rows.square()).mean(0).diag(), (prob * rows).mean(0).diag()], [None, prob.mean(0).diag()]]
        diagonal = torch.cat([torch.cat(blocks[0], 1), torch.cat([blocks[0][1], blocks[1][1]], 1)])
        return loss, gradient, diagonal - both.mT @ both / n + prior_hessian

    params, gradient = _newton(objective, rows.new_zeros(2 * classes))
    return LogitScaling(params[:classes], params[classes:], gradient.abs().max())


def scale_logits(
    logits: Float[Tensor, "n classes *pixels"], scaling: LogitScaling
) -> Float[Tensor, "n classes *pixels"]:
    r"""Apply a fitted scaling to new logits.

    .. math:: z_{ic} \leftarrow a_c z_{ic} + b_c

    Args:
        logits: z, the classes in dimension 1.
        scaling: from :func:`fit_temperature` or :func:`fit_vector_scaling`.

    Returns:
        The logits whose ``softmax(1)`` is recalibrated.

    Raises:
        ValueError: if ``logits`` are not finite, or have other classes than the scaling.

    Book: sec-recalibration
    """
    check_logits(logits)
    if len(scaling.scale) not in (1, logits.shape[1]):
        raise ValueError(f"logits must have the {len(scaling.scale)} classes of the scaling, got {logits.shape[1]}")
    shape = (-1, *[1] * (logits.ndim - 2))
    return logits * scaling.scale.reshape(shape) + scaling.bias.reshape(shape)


def _rows(logits, labels):
    """Logits and one-hot labels as [points, classes], pixels as points."""
    check_logits(logits)
    check_labels(labels, logits)
    rows = logits.movedim(1, -1).flatten(0, -2)
    return rows, torch.nn.functional.one_hot(labels.flatten().long(), rows.shape[1]).to(rows)


def _newton(objective, point):
    """The minimum of a convex function, from a point's value, gradient and Hessian; and the gradient that is left."""
    eps = torch.finfo(point.dtype).eps
    value, gradient, hessian = objective(point)
    for _ in range(100):
        step = torch.linalg.solve(hessian, gradient)
        decrease = gradient @ step  # twice what a full step gains, were the function quadratic
        if not decrease > eps**1.5:
            break
        size, bound = 1.0, value + 10 * eps * (1 + value.abs())
        while (new := objective(point - size * step))[0] > bound - 1e-4 * size * decrease and size > eps:
            size /= 2
        point = point - size * step
        value, gradient, hessian = new
    return point, gradient
