r"""Training with dropout: masks and minibatches from one generator, and a weight decay that is part of the objective.

Chapter: book/07-dropout.ipynb
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from bdl_lib.dropout._checks import FunctionalDropout
from bdl_lib.dropout._training import check_data, check_mean_loss, check_model, check_settings, show
from bdl_lib.dropout.layers import Draw, giving_masks, stochastic_layers
from bdl_lib.vi import FailedFit

__all__ = ["DropoutFit", "fit"]


class DropoutFit(NamedTuple):
    """A trained network, and how its objective fell.

    Book: sec-dropout-recipe
    """

    model: nn.Module  # a copy, in evaluation mode
    loss_history: Float[Tensor, " epochs"]  # mean over the epoch's minibatches, without decay and regulariser


def fit(
    model: nn.Module,
    inputs: Shaped[Tensor, "n *features"],
    targets: Shaped[Tensor, "n *out"],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    num_epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    regulariser: Callable[[nn.Module], Tensor] | None = None,
    generator: torch.Generator,
    progress: bool = False,
) -> DropoutFit:
    r"""Train a copy of a network by Adam, with dropout: what minimises the objective of variational dropout.

    .. math:: \min_\theta \; \frac1N \sum_{i=1}^N \mathrm{E}_{z} \big[ \ell(f(\theta, z, x_i), y_i) \big]
              + \lambda \lVert \theta \rVert^2 + r(\theta)

    Each minibatch is one stochastic pass: every example has masks z of its own. Every epoch goes once through all rows,
    in a new order. The step size falls from ``lr`` to zero along half a cosine. The decay is part of the objective, so
    its gradient :math:`2 \lambda \theta` goes through Adam like the rest (L2, not the decoupled decay of AdamW): only
    so is λ the one of :func:`bdl_lib.dropout.weight_decay_of`.

    Args:
        model: where to start; it stays as it is. Dropout of this library, or none; batch norm learns as usual.
        inputs: x, one example a row, finite.
        targets: y, one a row.
        loss: (outputs, targets) of a minibatch to its **mean** loss, such as ``nn.functional.cross_entropy``; for half
            the squared error, ``lambda f, y: 0.5 * (f - y).square().mean()`` with f and y of one shape.
        num_epochs: how often to go through the data, at least 1.
        batch_size: at least 1; all rows, if there are fewer. An epoch's last minibatch may be smaller.
        lr: Adam's first step size, positive.
        weight_decay: λ ≥ 0, on weights and biases (and every parameter that is not a single number, as the rate of
            concrete dropout is). In PyTorch's optimisers the same decay is called 2 λ.
        regulariser: r, a function of the model to a number: for other priors than one λ, or for concrete dropout.
        generator: draws the masks and the minibatches; on the device of the data.
        progress: True shows a bar.

    Returns:
        A :class:`DropoutFit`. The host waits for the device once an epoch.

    Raises:
        ValueError: if a setting is out of range, the data do not fit each other, ``loss`` gives not one number, or the
            model has dropout of PyTorch, which takes no generator, or no parameter to train.
        FailedFit: if the objective or a parameter is not finite after an epoch. It names the epoch, and its ``fit`` is
            a :class:`DropoutFit` from before it.

    Source: Gal and Ghahramani (2016), arXiv:1506.02142, eq. 1; Kingma and Ba (2015), Adam, arXiv:1412.6980; on the two
        kinds of decay, Loshchilov and Hutter (2019), arXiv:1711.05101.
    Book: sec-dropout-recipe
    """
    check_settings(num_epochs, batch_size, lr, weight_decay)
    check_data(inputs, targets)
    check_model(model)
    model = copy.deepcopy(model).train()
    optimizer = _adam(model, lr, weight_decay)
    num_steps, step, history = num_epochs * math.ceil(len(inputs) / batch_size), 0, []
    with giving_masks(stochastic_layers(model), Draw(generator)):
        for epoch in show(range(num_epochs), "fit", progress):
            before, mean = copy.deepcopy(model.state_dict()), 0.0
            for rows in torch.randperm(len(inputs), generator=generator, device=inputs.device).split(batch_size):
                _set_lr(optimizer, 0.5 * lr * (1 + math.cos(math.pi * step / num_steps)))
                with FunctionalDropout():
                    outputs = model(inputs[rows])
                value = loss(outputs, targets[rows])
                check_mean_loss(value, ())
                optimizer.zero_grad()
                (value if regulariser is None else value + regulariser(model)).backward()
                optimizer.step()
                mean, step = mean + len(rows) / len(inputs) * value.detach(), step + 1
            _check_finite(epoch, mean, model, before, history)
            history.append(mean)
    optimizer.zero_grad()
    return DropoutFit(model.eval(), torch.stack(history))


def _adam(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Adam:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed, others = ([p for p in parameters if (p.ndim > 0) == is_decayed] for is_decayed in (True, False))
    groups = [{"params": decayed, "weight_decay": 2 * weight_decay}, {"params": others}]
    return torch.optim.Adam(groups, lr=lr, fused=True)


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _check_finite(epoch: int, mean: Tensor, model: nn.Module, before: dict, history: list[Tensor]) -> None:
    """Raise :class:`FailedFit` unless the loss and all parameters are finite; waits for the device once."""
    if torch.stack([mean, *(parameter.detach().sum() for parameter in model.parameters())]).isfinite().all():
        return
    bad = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    model.load_state_dict(before)
    found = DropoutFit(model.eval(), torch.stack(history) if history else mean.new_empty(0))
    names = ", ".join(bad)
    what = f"the loss of epoch {epoch} is {mean.item():.4g}; parameters that are not finite: {names or 'none yet'}"
    raise FailedFit(f"{what}. Try a smaller lr; .fit has what was before it", fit=found, step=epoch, parameter=names)
