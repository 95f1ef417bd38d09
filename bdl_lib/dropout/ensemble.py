r"""Deep ensembles: several networks that differ in where they started, trained side by side in one batch.

Chapter: book/07-dropout.ipynb
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.overrides import TorchFunctionMode

from bdl_lib.dropout._checks import check_at_least, check_inputs
from bdl_lib.dropout._training import check_data, check_mean_loss, check_model, check_settings, show
from bdl_lib.vi import FailedFit

__all__ = ["Ensemble", "fit_ensemble", "predict_ensemble"]

_RANDOM = {
    "kaiming_normal_", "kaiming_uniform_", "normal", "normal_", "rand", "rand_like", "randn", "randn_like",
    "trunc_normal_", "uniform_", "xavier_normal_", "xavier_uniform_",
}  # fmt: skip


class Ensemble(NamedTuple):
    """Networks of one architecture, each with weights of its own, and how their losses fell.

    Book: sec-cheap-posteriors
    """

    model: nn.Module  # the architecture, in evaluation mode; its own weights mean nothing
    parameters: dict[str, Tensor]  # for each name [members, *shape]
    buffers: dict[str, Tensor]  # the same, such as the averages of batch norm
    loss_history: Float[Tensor, "epochs members"]  # mean over the epoch's minibatches, without decay

    @property
    def num_members(self) -> int:
        """How many networks there are."""
        return len(next(iter(self.parameters.values())))

    def member(self, index: int) -> nn.Module:
        """One of the networks, as a module of its own, in evaluation mode."""
        state = {name: stacked[index] for name, stacked in (self.parameters | self.buffers).items()}
        model = copy.deepcopy(self.model)
        model.load_state_dict(state, strict=False)  # buffers that are never saved are not in its state
        return model


def fit_ensemble(
    model: nn.Module,
    inputs: Shaped[Tensor, "n *features"],
    targets: Shaped[Tensor, "n *out"],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    num_members: int = 5,
    num_epochs: int = 100,
    batch_size: int = 128,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    generator: torch.Generator,
    progress: bool = False,
) -> Ensemble:
    r"""Train several networks at once by Adam, each from its own start and with its own order of the data.

    .. math:: \theta_m \approx \arg\min_\theta \; \frac1N \sum_{i=1}^N \ell(f(\theta, x_i), y_i)
              + \lambda \lVert \theta \rVert^2 \quad\text{from a random start}, \qquad m = 1, \dots, M

    Every member sees all rows. The parameters of all members are stacked and ``torch.func.vmap`` runs a minibatch of
    each at once; to a member it is as if it were trained alone. That pays for small networks, whose time is mostly
    overhead; on a CPU, those with hundreds of units a layer train no faster than one after the other. As in
    :func:`bdl_lib.dropout.fit`, the step size falls from ``lr`` to zero along half a cosine, and the decay is part of
    the objective.

    Args:
        model: the architecture; it stays as it is. Every module with a parameter that requires a gradient is drawn anew
            for each member, by its ``reset_parameters``, as PyTorch does when it makes the module; frozen ones keep
            their weights. Batch norm learns as usual; dropout of this library is off. ``torch.func.vmap`` must be able
            to run it: recurrent layers, for example, it cannot.
        inputs: x, one example a row, finite.
        targets: y, one a row.
        loss: (outputs, targets) of a minibatch to its **mean** loss. To learn the noise as well, as in the source, let
            the network give two outputs and ``loss`` be the mean negative log likelihood.
        num_members: M, at least 1; five are usual.
        num_epochs: how often to go through the data, at least 1.
        batch_size: at least 1; all rows, if there are fewer. An epoch's last minibatch may be smaller.
        lr: Adam's first step size, positive.
        weight_decay: λ ≥ 0, on every trained parameter. In PyTorch's optimisers the same decay is called 2 λ.
        generator: draws the starts and the minibatches; on the device of the model and the data.
        progress: True shows a bar.

    Returns:
        An :class:`Ensemble`. The host waits for the device once an epoch.

    Raises:
        ValueError: if a setting is out of range, the data do not fit each other, ``loss`` gives not one number, the
            model has a trained parameter that no ``reset_parameters`` draws, or dropout of PyTorch.
        FailedFit: if a member's loss or parameter is not finite after an epoch. It names the epoch and the members, and
            its ``fit`` is an :class:`Ensemble` from before it.

    Source: Lakshminarayanan, Pritzel and Blundell (2017), Simple and Scalable Predictive Uncertainty Estimation using
        Deep Ensembles, arXiv:1612.01474; its adversarial training is left out.
    Book: sec-cheap-posteriors
    """
    check_at_least("num_members", num_members, 1)
    check_settings(num_epochs, batch_size, lr, weight_decay)
    check_data(inputs, targets)
    check_model(model)
    starts = [_drawn_anew(model, generator).train() for _ in range(num_members)]
    parameters, buffers = stack_module_state(starts)
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr, weight_decay=2 * weight_decay)
    template, history = starts[0], []
    member_losses = vmap(lambda p, b, x, y: loss(functional_call(template, (p, b), (x,)), y))
    num_steps, step = num_epochs * math.ceil(len(inputs) / batch_size), 0
    for epoch in show(range(num_epochs), "fit_ensemble", progress):
        before, mean = (_copied(parameters), _copied(buffers)), 0.0
        keys = torch.rand(num_members, len(inputs), generator=generator, device=inputs.device)
        for rows in keys.argsort(1).split(batch_size, 1):  # of every member a minibatch
            optimizer.param_groups[0]["lr"] = 0.5 * lr * (1 + math.cos(math.pi * step / num_steps))
            values = member_losses(parameters, buffers, inputs[rows], targets[rows])
            check_mean_loss(values, (num_members,))
            optimizer.zero_grad()
            values.sum().backward()  # each term moves its own member alone
            optimizer.step()
            mean, step = mean + rows.shape[1] / len(inputs) * values.detach(), step + 1
        bad = _is_bad(mean, trained)
        if bad.any():
            raise _failure(epoch, bad, _record(model, *before, history))
        history.append(mean)
    return _record(model, _copied(parameters), _copied(buffers), history)


def predict_ensemble(ensemble: Ensemble, inputs: Float[Tensor, "n *features"]) -> Float[Tensor, "members n *out"]:
    r"""What every member says: its outputs, all members at once.

    .. math:: p(y \mid x, \mathcal{D}) \approx \frac1M \sum_{m=1}^M p(y \mid f(\theta_m, x))

    Args:
        ensemble: from :func:`fit_ensemble`.
        inputs: x, finite.

    Returns:
        :math:`f(\theta_m, x_i)`, in the units of the outputs; to be averaged as probabilities or densities, not as
        logits.

    Raises:
        ValueError: if there are no inputs, or they are not finite.

    Source: Lakshminarayanan, Pritzel and Blundell (2017), arXiv:1612.01474, section 2.4.
    Book: sec-cheap-posteriors
    """
    check_inputs(inputs)

    def one(parameters, buffers):
        return functional_call(ensemble.model, (parameters, buffers), (inputs,))

    with torch.no_grad():
        return vmap(one)(ensemble.parameters, ensemble.buffers)


class _DrawingFrom(TorchFunctionMode):
    """Within, what PyTorch draws for the start of a layer comes from one generator."""

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.generator = generator

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in _RANDOM:
            kwargs = {**(kwargs or {}), "generator": self.generator}
        return function(*args, **(kwargs or {}))


def _drawn_anew(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with fresh weights wherever one of them is to be trained."""
    model = copy.deepcopy(model)
    drawn = set()
    with _DrawingFrom(generator):
        for module in model.modules():
            reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
            if reset and any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                reset()
                drawn |= {id(parameter) for parameter in module.parameters(recurse=False)}
    left = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in drawn]
    if left:
        raise ValueError(
            f"model must have reset_parameters() where it has parameters to be trained, has none for {left}"
        )
    return model


def _copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def _record(model: nn.Module, parameters: dict, buffers: dict, history: list[Tensor]) -> Ensemble:
    first = next(iter(parameters.values()))
    losses = torch.stack(history) if history else first.new_empty(0, len(first))
    return Ensemble(copy.deepcopy(model).eval(), parameters, buffers, losses)


def _is_bad(mean: Tensor, parameters: list[Tensor]) -> Tensor:
    """Of each member, whether its loss or a parameter is not finite."""
    sums = torch.stack([mean, *(parameter.detach().flatten(1).sum(1) for parameter in parameters)])
    return ~sums.isfinite().all(0)


def _failure(epoch: int, is_bad: Tensor, before: Ensemble) -> FailedFit:
    members = is_bad.nonzero().flatten().tolist()
    message = (
        f"a loss or parameter is not finite after epoch {epoch}, in members {members}. Try a smaller lr; .fit has "
    )
    return FailedFit(message + "what was before it", fit=before, step=epoch)
