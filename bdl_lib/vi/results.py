r"""What a fit returns, and how it fails: with the best family that it had.

Chapter: book/05-vi.ipynb
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bdl_lib.evidence import LogProb
from bdl_lib.vi.elbo import reparameterised_elbo
from bdl_lib.vi.families import Family

__all__ = ["FailedFit", "Fit"]

_NUM_JUDGING = 1024  # fresh draws that the final bound is averaged over


class Fit(NamedTuple):
    """A fitted family, with its bound.

    Book: sec-fit
    """

    family: Family
    elbo: Float[Tensor, ""]  # nats, from fresh draws
    elbo_std_error: Float[Tensor, ""]  # nats
    elbo_history: Float[Tensor, " steps"]  # nats, of each step's own draws
    is_converged: bool


class FailedFit(RuntimeError):
    """A fit that cannot go on. What it had reached is in ``fit``.

    Args:
        message: what happened.
        fit: a record: :class:`Fit` with the best family so far and the history up to there, its ``is_converged``
            False; of :func:`bdl_lib.vi.fit_backprop` a :class:`BackpropFit`, from before the epoch that failed.
        step: where, counted from 0; of :func:`bdl_lib.vi.fit_backprop`, the epoch.
        parameter: which one, such as "loc[3]" or "0.bias, 1.weight"; empty if the trouble is no parameter's.

    Book: sec-fit
    """

    def __init__(self, message: str, *, fit: tuple, step: int, parameter: str = ""):
        super().__init__(message)
        self.fit, self.step, self.parameter = fit, step, parameter


def judged(
    log_prob: LogProb, family: Family, history: Float[Tensor, " steps"], is_converged: bool, generator: torch.Generator
) -> Fit:
    """The record of a fit, with its bound estimated from fresh draws."""
    with torch.no_grad():
        bound = reparameterised_elbo(log_prob, family, num_samples=_NUM_JUDGING, generator=generator)
    return Fit(family, bound.value, bound.std_error, history, is_converged)
