r"""Stochastic ascent of a bound by Adam, for any family, until it no longer rises.

Chapter: book/05-vi.ipynb
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bdl_lib.vi.elbo import Elbo
from bdl_lib.vi.families import Family

__all__ = ["Ascent", "ascend"]

_WINDOW = 100  # steps between two looks at whether the bound still rises
_PATIENCE = 2  # windows without a rise, after which the learning rate falls
_NUM_COOLINGS = 3  # times that the learning rate falls
_COOLING = 4.0


class Ascent(NamedTuple):
    """Where an ascent ended.

    Book: sec-fit
    """

    family: Family  # mean of the parameters over the last window of steps
    history: Float[Tensor, " steps"]  # nats
    is_converged: bool
    bad: (
        tuple[int, str] | None
    )  # step and parameter of the first gradient that was not finite, or "" if the bound was not: there it stopped


def ascend(
    bound: Callable[[Family], Elbo],
    family: Family,
    *,
    num_steps: int,
    lr: float,
    has_run_away: Callable[[Family], bool] = lambda family: False,
    progress: bool = False,
) -> Ascent:
    r"""Raise a bound by Adam, lowering the learning rate whenever the bound stops rising.

    Every 100 steps, the mean bound of these steps is held against the best such mean before. If it is not higher by
    more than the standard error of the difference, twice in a row, the learning rate is divided by 4; the fourth time,
    the ascent has converged. The result is the mean of the parameters over the last 100 steps.

    Args:
        bound: what to raise, as a function of a family.
        family: where to start; its floating-point tensors are the parameters.
        num_steps: at most how many steps, at least 1.
        lr: the first learning rate, positive.
        has_run_away: whether to give up on a family, asked every 100 steps.
        progress: True shows a bar.

    Returns:
        An :class:`Ascent`. The host waits for the device once a window.

    Source: Kingma and Ba (2015), arXiv:1412.6980; the rule is a plain form of that of Welandawe, Andersen, Vehtari and
        Huggins (2024), arXiv:2203.15945.
    Book: sec-fit
    """
    from tqdm import tqdm

    leaves = [tensor.detach().clone().requires_grad_() for tensor in family]
    optimizer = torch.optim.Adam(leaves, lr=lr)
    windows, best, num_stalls, num_coolings = [], None, 0, 0
    with tqdm(total=num_steps, disable=not progress, desc="fit") as bar:
        while num_coolings <= _NUM_COOLINGS and (num_done := sum(map(len, windows))) < num_steps:
            window = _climb(bound, type(family), leaves, optimizer, min(_WINDOW, num_steps - num_done))
            if window.is_bad.any():
                step, parameter = _first_bad(family, window.is_bad)
                history = torch.cat([*windows, window.bounds[:step]])
                return Ascent(family, history, False, (num_done + step, parameter))
            family = window.mean
            windows.append(window.bounds)
            bar.update(len(window.bounds))
            if has_run_away(family):
                break
            if best is None or _is_higher(window.bounds, best):
                best, num_stalls = window.bounds, 0
                continue
            num_stalls += 1
            if num_stalls == _PATIENCE:
                num_stalls, num_coolings = 0, num_coolings + 1
                optimizer.param_groups[0]["lr"] /= _COOLING
    return Ascent(family, torch.cat(windows), num_coolings > _NUM_COOLINGS, None)


class _Window(NamedTuple):
    bounds: Float[Tensor, " steps"]
    is_bad: Bool[Tensor, "steps parameters_and_bound"]
    mean: Family


def _climb(bound, family_type, leaves, optimizer, num_steps):
    """Adam's steps of one window, which nothing of the host waits for."""
    bounds, is_bad, total = [], [], [torch.zeros_like(leaf) for leaf in leaves]
    for _ in range(num_steps):
        value = bound(family_type(*leaves)).value
        grads = torch.autograd.grad(-value, leaves, allow_unused=True, materialize_grads=True)
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad
        optimizer.step()
        bounds.append(value.detach())
        is_bad.append(~torch.cat([*(grad.flatten() for grad in grads), value.detach()[None]]).isfinite())
        torch._foreach_add_(total, [leaf.detach() for leaf in leaves])
    mean = family_type(*[part / num_steps for part in total])
    return _Window(torch.stack(bounds), torch.stack(is_bad), mean)


def _first_bad(family, is_bad):
    """Step and name of the first parameter whose gradient is not finite; no name if it is the bound alone."""
    step, place = divmod(int(is_bad.flatten().int().argmax()), is_bad.shape[1])
    for name, tensor in zip(family._fields, family, strict=True):
        if place < tensor.numel():
            index = [int(i) for i in torch.unravel_index(torch.tensor(place), tensor.shape)]
            return step, f"{name}{index}"
        place -= tensor.numel()
    return step, ""


def _is_higher(bounds, best):
    """Whether the mean of one window is above that of another by more than its standard error."""
    error = (bounds.var() / len(bounds) + best.var() / len(best)).sqrt()
    return bool(bounds.mean() - best.mean() > error)
