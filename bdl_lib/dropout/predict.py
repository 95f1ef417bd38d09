r"""Predictions from T stochastic passes, as running averages: any number of passes in bounded memory, with their error.

Chapter: book/07-dropout.ipynb
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bdl_lib.dropout._checks import check_at_least
from bdl_lib.dropout.passes import iterate_passes
from bdl_lib.mcmc._checks import check_positive
from bdl_lib.networks import EntropySplit

__all__ = [
    "McClasses",
    "McLogLikelihood",
    "McRegression",
    "RunningMean",
    "log_likelihood",
    "predict_classes",
    "predict_regression",
]

_NUM_FIRST = 30  # passes before the first look at the error: fewer often agree by chance


class RunningMean(NamedTuple):
    """The mean of values that come in blocks, and how uncertain it is; start from ``RunningMean()``.

    Source: Chan, Golub and LeVeque (1982), doi:10.1007/978-3-642-51461-6_3, after Welford (1962),
        doi:10.1080/00401706.1962.10490022.
    Book: sec-how-many-passes
    """

    count: int = 0  # T, of values
    mean: Float[Tensor, "*shape"] | float = 0.0
    sum_of_squares: Float[Tensor, "*shape"] | float = 0.0  # of the deviations from the mean

    def update(self, values: Float[Tensor, "t *shape"]) -> "RunningMean":
        """The running mean after t more values."""
        variance, mean = torch.var_mean(values, 0, correction=0)
        return self.merge(RunningMean(len(values), mean, len(values) * variance))

    def merge(self, other: "RunningMean") -> "RunningMean":
        """The running mean of the values of both."""
        count, difference = self.count + other.count, other.mean - self.mean
        between = difference**2 * (self.count * other.count / count)
        mean = self.mean + difference * (other.count / count)
        return RunningMean(count, mean, self.sum_of_squares + other.sum_of_squares + between)

    @property
    def mixture_var(self) -> Float[Tensor, "*shape"]:
        """The mean squared deviation, in the units of the values squared: it divides by T."""
        return self.sum_of_squares / self.count

    @property
    def mcse(self) -> Float[Tensor, "*shape"]:
        """The standard error of the mean, if the values are independent; NaN for a single one."""
        return (self.sum_of_squares / (self.count * (self.count - 1))) ** 0.5

    def count_for(self, tolerance: float) -> int:
        """How many values would bring the largest standard error down to ``tolerance``; waits for the device."""
        largest = float(self.mcse.nan_to_num(nan=math.inf).max())
        needed = self.count * (largest / tolerance) ** 2
        return math.ceil(needed) if needed < 2**53 else 2**53


class McClasses(NamedTuple):
    """Class probabilities averaged over T passes, their error, and the split of their entropy.

    Book: sec-dropout-recipe
    """

    prob: Float[Tensor, "n classes *places"]
    prob_mcse: Float[Tensor, "n classes *places"]  # Monte Carlo standard error; NaN for a single pass
    entropy: EntropySplit  # [n, *places], nats
    num_passes: int  # T
    is_converged: bool  # whether every prob_mcse is within the tolerance; True if none was asked for


class McRegression(NamedTuple):
    """Mean and variance of a regression from T passes, the variance in its two parts.

    Book: sec-dropout-recipe
    """

    mean: Float[Tensor, "n *out"]
    mean_mcse: Float[Tensor, "n *out"]  # Monte Carlo standard error; NaN for a single pass
    parameter_var: Float[Tensor, "n *out"]  # of the passes
    noise_var: Float[Tensor, "n *out"]  # 1 / τ
    num_passes: int  # T
    is_converged: bool  # whether every mean_mcse is within the tolerance; True if none was asked for

    @property
    def std(self) -> Float[Tensor, "n *out"]:
        """Standard deviation of the prediction, noise included, in the units of the targets."""
        return (self.parameter_var + self.noise_var).sqrt()


class McLogLikelihood(NamedTuple):
    """Log predictive density of each target, from T passes.

    Book: sec-dropout-recipe
    """

    value: Float[Tensor, " n"]  # nats
    mcse: Float[Tensor, " n"]  # Monte Carlo standard error; NaN for a single pass
    num_passes: int  # T


def predict_classes(
    model: nn.Module,
    inputs: Float[Tensor, "n *features"],
    *,
    num_passes: int = 100,
    tolerance: float | None = None,
    generator: torch.Generator,
    is_shared: bool = False,
    memory_bytes: int = 2**28,
) -> McClasses:
    r"""Class probabilities by Monte Carlo dropout: the average of the softmax over stochastic passes.

    .. math:: p(c \mid x, \mathcal{D}) \approx \frac1T \sum_{t=1}^T
              \operatorname{softmax}\big(f_{\hat\theta_t}(x)\big)_c, \qquad \hat\theta_t \sim q(\theta)

    The passes come in chunks and are forgotten once they are in the running averages. With ``tolerance``, 30 passes
    tell how many are needed, and these are run; then the error is looked at again, until it is small enough or
    ``num_passes`` are used up.

    Args:
        model: gives logits, [n, classes] or [n, classes, *places], and has a stochastic layer.
        inputs: x, finite.
        num_passes: T, at least 1; with ``tolerance``, at most how many.
        tolerance: > 0, a probability: the largest standard error of ``prob`` that is good enough. Not given: exactly
            ``num_passes`` passes.
        generator: draws the masks.
        is_shared: whether all inputs of a pass share its masks, as if one network had been drawn for them.
        memory_bytes: how much the passes may take at a time, beside a few tensors of the size of the result.

    Returns:
        :class:`McClasses`. ``entropy.total`` is that of the average, and too small, on average by about half the sum
        over the classes of ``prob_mcse`` squared over ``prob``; so is ``entropy.mutual_information``. Of a single pass,
        the latter is zero: one pass cannot tell.

    Raises:
        ValueError: if ``num_passes`` is below 1, ``tolerance`` is not positive, the model gives fewer than two classes,
            or the passes cannot be run (see :func:`bdl_lib.dropout.iterate_passes`).

    Source: Gal and Ghahramani (2016), arXiv:1506.02142; for the entropies, Houlsby et al. (2011), arXiv:1112.5745.
    Book: sec-dropout-recipe
    """
    _check_counts(num_passes, tolerance)
    settings = {"generator": generator, "is_shared": is_shared, "memory_bytes": memory_bytes}
    prob, expected = RunningMean(), RunningMean()
    while prob.count < (goal := _goal(prob, num_passes, tolerance)):
        for logits in iterate_passes(model, inputs, num_passes=goal - prob.count, **settings):
            prob, expected = _with_classes(prob, expected, logits)
    total = torch.special.entr(prob.mean).sum(1)
    entropy = EntropySplit(total, expected.mean, (total - expected.mean).clamp(min=0))
    return McClasses(prob.mean, prob.mcse, entropy, prob.count, _is_within(prob, tolerance))


def predict_regression(
    model: nn.Module,
    inputs: Float[Tensor, "n *features"],
    *,
    noise_prec: float,
    num_passes: int = 100,
    tolerance: float | None = None,
    generator: torch.Generator,
    is_shared: bool = False,
    memory_bytes: int = 2**28,
) -> McRegression:
    r"""Predictive mean and variance by Monte Carlo dropout.

    .. math:: \operatorname{E}[y] \approx \frac1T \sum_t f_t(x), \qquad \operatorname{Var}[y] \approx
              \underbrace{\tau^{-1}}_{\text{noise}} + \underbrace{\frac1T \sum_t f_t(x)^2 -
              \Big(\frac1T \sum_t f_t(x)\Big)^2}_{\text{parameters}}

    It is the variance of the mixture of T Gaussians, so it divides by T; on average, it is too small by 1 / T of the
    part for the parameters.

    Args:
        model: gives f, [n], [n, 1] or [n, out], in the units of the targets; the last axis goes, if it has length 1.
        inputs: x, finite.
        noise_prec: τ > 0, one over the variance of the noise, in one over the units of the targets squared; see
            :func:`bdl_lib.dropout.noise_prec_of`.
        num_passes: T, at least 1; with ``tolerance``, at most how many.
        tolerance: > 0, in the units of the targets: the largest standard error of ``mean`` that is good enough. Not
            given: exactly ``num_passes`` passes.
        generator: draws the masks.
        is_shared: whether all inputs of a pass share its masks, as if one function had been drawn.
        memory_bytes: how much the passes may take at a time, beside a few tensors of the size of the result.

    Returns:
        :class:`McRegression`: mean in the units of the targets, variances in those units squared.

    Raises:
        ValueError: if ``noise_prec`` or ``tolerance`` is not positive, ``num_passes`` is below 1, or the passes cannot
            be run (see :func:`bdl_lib.dropout.iterate_passes`).

    Source: Gal and Ghahramani (2016), arXiv:1506.02142, section 4.
    Book: sec-dropout-recipe
    """
    check_positive("noise_prec", noise_prec)
    _check_counts(num_passes, tolerance)
    settings = {"generator": generator, "is_shared": is_shared, "memory_bytes": memory_bytes}
    found = RunningMean()
    while found.count < (goal := _goal(found, num_passes, tolerance)):
        for outputs in iterate_passes(model, inputs, num_passes=goal - found.count, **settings):
            found = found.update(_without_last_one(outputs))
    noise_var = torch.full_like(found.mean, 1 / noise_prec)
    is_converged = _is_within(found, tolerance)
    return McRegression(found.mean, found.mcse, found.mixture_var, noise_var, found.count, is_converged)


def log_likelihood(
    model: nn.Module,
    inputs: Float[Tensor, "n *features"],
    targets: Float[Tensor, "n *out"],
    *,
    noise_prec: float,
    num_passes: int = 100,
    generator: torch.Generator,
    is_shared: bool = False,
    memory_bytes: int = 2**28,
) -> McLogLikelihood:
    r"""Log predictive density of regression targets by Monte Carlo dropout.

    .. math:: \log p(y \mid x, \mathcal{D}) \approx \log \frac1T \sum_{t=1}^T N\big(y; f_t(x), \tau^{-1} I\big)

    The mean of the densities is unbiased, its logarithm is not: on average it is too small, by about half of
    ``mcse`` squared, which falls like 1 / T. That is the price of few passes where they disagree by more than the
    noise; there, the error itself is an estimate that rests on the few passes nearest to the target, and too small.

    Args:
        model: gives f, [n], [n, 1] or [n, out], in the units of the targets.
        inputs: x, finite.
        targets: y, finite, one a row of ``inputs``: [n] or [n, 1], or [n, out].
        noise_prec: τ > 0, one over the variance of the noise, in one over the units of the targets squared.
        num_passes: T, at least 1.
        generator: draws the masks.
        is_shared: whether all inputs of a pass share its masks.
        memory_bytes: how much the passes may take at a time, beside a few tensors of the size of the result.

    Returns:
        :class:`McLogLikelihood`, in nats: a density in one over the units of the targets. Several outputs are
        independent given the weights: their log densities are added within a pass.

    Raises:
        ValueError: if ``targets`` are not finite or do not fit the outputs, ``noise_prec`` is not positive,
            ``num_passes`` is below 1, or the passes cannot be run (see :func:`bdl_lib.dropout.iterate_passes`).

    Source: Gal and Ghahramani (2016), arXiv:1506.02142, eq. 8.
    Book: sec-dropout-recipe
    """
    check_positive("noise_prec", noise_prec)
    _check_counts(num_passes)
    if targets.shape[:1] != inputs.shape[:1] or not targets.isfinite().all():
        rule = f"targets must be finite, one for each of the {len(inputs)} inputs"
        raise ValueError(f"{rule}, got shape {list(targets.shape)}, {int((~targets.isfinite()).sum())} not finite")
    settings = {"generator": generator, "is_shared": is_shared, "memory_bytes": memory_bytes}
    targets = _without_last_one(targets[None])[0]
    sums = inputs.new_full((2, len(inputs)), -math.inf)  # log of the sums of the densities and of their squares
    for outputs in iterate_passes(model, inputs, num_passes=num_passes, **settings):
        sums = sums.logaddexp(_log_sums(_without_last_one(outputs), targets, noise_prec))
    relative_square = (sums[1] - 2 * sums[0] + math.log(num_passes)).exp()  # mean square over squared mean, at least 1
    relative_var = (relative_square - 1).clamp(min=0) / (num_passes - 1 or math.nan)
    return McLogLikelihood(sums[0] - math.log(num_passes), relative_var.sqrt(), num_passes)


def _check_counts(num_passes: int, tolerance: float | None = None) -> None:
    check_at_least("num_passes", num_passes, 1)
    if tolerance is not None:
        check_positive("tolerance", tolerance)


def _goal(running: RunningMean, num_passes: int, tolerance: float | None) -> int:
    """How many passes to have run before the next look at the error."""
    if tolerance is None:
        return num_passes
    return min(num_passes, running.count_for(tolerance) if running.count else _NUM_FIRST)


def _with_classes(prob: RunningMean, expected: RunningMean, logits: Tensor) -> tuple[RunningMean, RunningMean]:
    """The running means of probabilities and of entropies, after some more passes."""
    if logits.ndim < 3 or logits.shape[2] < 2:
        raise ValueError(f"model must give [n, classes >= 2, *places], got shape {list(logits.shape[1:])}")
    found = logits.softmax(2)
    return prob.update(found), expected.update(torch.special.entr(found).sum(2))


def _log_sums(outputs: Tensor, targets: Tensor, noise_prec: float) -> Tensor:
    """Logarithms of the sums over passes of the targets' densities and of their squares, [2, n]."""
    if outputs.shape[1:] != targets.shape:
        raise ValueError(f"targets must be {list(outputs.shape[1:])}, as the outputs, got {list(targets.shape)}")
    error = (outputs - targets).flatten(2) if outputs.ndim > 2 else (outputs - targets)[..., None]
    constant = 0.5 * error.shape[2] * math.log(noise_prec / (2 * math.pi))
    log_prob = constant - 0.5 * noise_prec * error.square().sum(2)
    return torch.stack([log_prob.logsumexp(0), (2 * log_prob).logsumexp(0)])


def _is_within(found: RunningMean, tolerance: float | None) -> bool:
    return tolerance is None or bool((found.mcse <= tolerance).all())


def _without_last_one(outputs: Tensor) -> Tensor:
    """[t, n, 1] as [t, n]."""
    return outputs.squeeze(2) if outputs.ndim == 3 and outputs.shape[2] == 1 else outputs
