r"""One setting of the weights: the maximum of the log posterior, by Adam, many starts at once.

Chapter: book/02-networks.ipynb
"""

import hashlib
import math
import os
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from bdl_lib.networks.posterior import LogPosterior, draw_rows

__all__ = ["MapFit", "fit_map"]


class MapFit(NamedTuple):
    """Where the climb ended, for every start.

    Book: sec-map
    """

    weights: Float[Tensor, "starts dim"]
    log_prob: Float[Tensor, " starts"]  # log posterior on all the data, nats, up to a constant
    history: Float[Tensor, "steps starts"]  # the objective before each step; an estimate, if by minibatch
    is_converged: bool  # stopped by the rule, not by running out of steps

    @property
    def best_weights(self) -> Float[Tensor, " dim"]:
        """The weights of the start that ended highest."""
        return self.weights[self.log_prob.nan_to_num(nan=-math.inf).argmax()]


def fit_map(
    log_prob: LogPosterior,
    initial_weights: Float[Tensor, "starts dim"],
    *,
    num_steps: int = 2000,
    lr: float = 0.01,
    batch_size: int | None = None,
    patience: int = 200,
    min_improvement: float = 1e-3,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = False,
) -> MapFit:
    r"""The maximum a posteriori weights: what training a network with weight decay finds.

    .. math:: \theta_\text{MAP} = \arg\max_\theta \; \log p(\theta) + \sum_i \log p(y_i \mid f(\theta, x_i))

    Every row of ``initial_weights`` climbs on its own, all in one batch: several starts cost little more than one, and
    give a deep ensemble. **Early stop**: after every ``patience`` steps, the mean objective over those steps is
    compared with the mean over the ``patience`` steps before; the fit ends when no start gained more than
    ``min_improvement`` nats. **Checkpoint**: after every ``patience`` steps the whole state (weights, Adam's moments,
    generator, history) goes to a file, first under another name and then moved into place, so that a fit that was
    killed goes on from there when called again with the same arguments, and ends at bit-identical weights; only
    ``num_steps`` may differ.

    Args:
        log_prob: from :func:`~bdl_lib.networks.log_posterior`.
        initial_weights: where to start, finite. Not all zero: hidden units that start alike stay alike.
        num_steps: at most how many steps of Adam, at least 1.
        lr: Adam's step size, positive, in the units of the weights.
        batch_size: rows a step, drawn without replacement; all rows, if not given.
        patience: steps between two looks at the stopping rule, at least 1.
        min_improvement: in nats, not negative; 0 stops only when nothing is gained.
        generator: draws the minibatches; needed only with ``batch_size``.
        checkpoint: a file to resume from if it is there, and to write.
        progress: True shows a bar.

    Returns:
        A :class:`MapFit`. The host waits for the device only once every ``patience`` steps.

    Raises:
        ValueError: if a setting is out of range, ``initial_weights`` has the wrong shape or is not finite,
            ``batch_size`` is given without a generator, or the checkpoint is damaged, belongs to another problem, or
            is already past ``num_steps``.

    Source: Kingma and Ba (2015), Adam, arXiv:1412.6980.
    Book: sec-map
    """
    _check(log_prob, initial_weights, num_steps, lr, patience, min_improvement)
    draw = _row_drawer(len(log_prob.targets), batch_size, generator)
    weights = initial_weights.detach().clone()
    optimizer = torch.optim.Adam([weights], lr=lr, maximize=True)
    history, step, is_converged = weights.new_empty(num_steps, len(weights)), 0, False
    if checkpoint is not None:
        problem = _problem(log_prob, initial_weights, [lr, batch_size, patience, min_improvement])
        if Path(checkpoint).exists():
            step, is_converged = _restore(_load(checkpoint, problem), weights, optimizer, history, generator)
    with tqdm(total=num_steps, initial=step, disable=not progress, desc="fit_map") as bar:
        while step < num_steps and not is_converged:
            first, step = step, min(num_steps, step - step % patience + patience)
            for now in range(first, step):
                history[now], weights.grad = log_prob.value_and_grad(weights, draw())
                optimizer.step()
            is_converged = _has_stalled(history[:step], patience, min_improvement)
            if checkpoint is not None:
                _save(checkpoint, problem, weights, optimizer, history[:step], is_converged, generator)
            bar.update(step - first)
    with torch.no_grad():
        return MapFit(weights, log_prob(weights), history[:step], is_converged)


def _check(log_prob, initial_weights, num_steps, lr, patience, min_improvement):
    dim = log_prob.network.dim
    if initial_weights.ndim != 2 or initial_weights.shape[1] != dim or len(initial_weights) < 1:
        raise ValueError(f"initial_weights must have shape [starts, {dim}], got {list(initial_weights.shape)}")
    if not initial_weights.isfinite().all():
        bad = (~initial_weights.isfinite()).any(1).nonzero().flatten().tolist()
        raise ValueError(f"initial_weights must be finite, are not in starts {bad}")
    for name, value in {"num_steps": num_steps, "patience": patience}.items():
        if not value >= 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    if not min_improvement >= 0:
        raise ValueError(f"min_improvement must not be negative, got {min_improvement}")


def _row_drawer(num_rows, batch_size, generator):
    if batch_size is None:
        return lambda: None  # all rows
    if generator is None:
        raise ValueError("generator must be given with batch_size, got None")
    draw_rows(
        num_rows, batch_size, generator=torch.Generator(generator.device)
    )  # a wrong size is refused before step 1
    return lambda: draw_rows(num_rows, batch_size, generator=generator)


def _has_stalled(history, patience, min_improvement):
    if len(history) % patience or len(history) < 2 * patience:
        return False
    before, after = history[-2 * patience : -patience].mean(0), history[-patience:].mean(0)
    return bool((after - before <= min_improvement).all())  # NaN has not stalled: it shows in the result


def _problem(log_prob, initial_weights, settings):
    """What a checkpoint must agree with: exactly, all that can be written down; nearly, the density at the start."""
    tensors = [log_prob.inputs, log_prob.targets, log_prob.prior.std, initial_weights]
    words = [log_prob.network.description, log_prob.likelihood.description, *settings]
    digest = hashlib.sha256("; ".join([*map(str, words), *(f"{t.dtype} {list(t.shape)}" for t in tensors)]).encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    with torch.no_grad():
        return {"digest": digest.hexdigest(), "initial_log_prob": log_prob(initial_weights).cpu()}


def _save(path, problem, weights, optimizer, history, is_converged, generator):
    state = {"problem": problem, "weights": weights, "optimizer": optimizer.state_dict(), "history": history.clone()}
    state |= {"is_converged": is_converged, "generator": None if generator is None else generator.get_state()}
    unfinished = Path(f"{path}.{os.getpid()}.tmp")
    try:
        torch.save(state, unfinished)
        os.replace(unfinished, path)  # all of the new state or all of the old one, never half of either
    finally:
        unfinished.unlink(missing_ok=True)


def _load(path, problem):
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        found = saved["problem"]
    except (RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"checkpoint must be a whole file written by fit_map, {path} is not: {error}") from error
    same = found["digest"] == problem["digest"]
    if not same or not torch.allclose(found["initial_log_prob"], problem["initial_log_prob"], rtol=1e-4):
        raise ValueError(f"checkpoint must be of this data, model, start and settings, {path} is of another problem")
    return saved


def _restore(saved, weights, optimizer, history, generator):
    step = len(saved["history"])
    if step > len(history):
        raise ValueError(f"num_steps must be at least the checkpoint's {step}, got {len(history)}")
    weights.copy_(saved["weights"])
    optimizer.load_state_dict(saved["optimizer"])
    history[:step] = saved["history"].to(history)
    if generator is not None:
        generator.set_state(saved["generator"])
    return step, saved["is_converged"]
