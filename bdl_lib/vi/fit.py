r"""Fit a family to a posterior: raise the bound until it no longer rises, and say how far it got.

Chapter: book/05-vi.ipynb
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bdl_lib.evidence import LogProb
from bdl_lib.mcmc import differentiable
from bdl_lib.vi._checks import check_at_least, check_positive
from bdl_lib.vi.ascent import ascend
from bdl_lib.vi.elbo import Elbo, checked, reparameterised_elbo, sticking_the_landing_elbo
from bdl_lib.vi.families import Family, FullRankGaussian, MeanFieldGaussian
from bdl_lib.vi.flow import RealNvp
from bdl_lib.vi.natural import matched_noise, natural_step, survey
from bdl_lib.vi.results import FailedFit, Fit, judged

__all__ = ["fit"]

_MAX_NATURAL_DIM = 512  # above, a step's dim² numbers and dim³ operations cost more than they save
_MAX_GROWTH = 1e8  # of a standard deviation, where a fit has run away
_MIN_STEP_SIZE = 1e-3
_MIN_AVERAGED = 3  # full steps
_MANY_STEPS = 1000  # after which a fit should have arrived, or never will
_GROWN = 10.0  # of a standard deviation, from where on a bound that rises as if log p were flat is suspicious
_FLAT, _STILL = 0.5, 0.2  # rise of the bound, in nats a unit of a log width: far from a summit, near one
_RISE_TO_THE_BEST = (reparameterised_elbo, sticking_the_landing_elbo)  # their summit is known by its gradients
_NUM_LOOKS = 1024  # draws that say how wide a family is


def fit(
    log_prob: LogProb,
    family: Family,
    *,
    generator: torch.Generator,
    num_steps: int = 10_000,
    num_mc_samples: int | None = None,
    lr: float | None = None,
    tolerance: float = 0.01,
    elbo: Callable[..., Elbo] = sticking_the_landing_elbo,
    optimizer: str = "auto",
    progress: bool = False,
) -> Fit:
    r"""The member of a family with the highest bound: :math:`\arg\min_\lambda \mathrm{KL}(q_\lambda \,\|\, p)`.

    Two ways up. **Natural gradients**, for Gaussians with independent coordinates or full covariance: first Newton
    steps on one fixed set of draws, each taken only if it raises the bound, until they stand still; then full steps
    with fresh draws, averaged. Converged: the mean length of a full step, in nats of Kullback–Leibler divergence,
    divided by how many are averaged, is below ``tolerance``. **Adam**, for all else: :func:`bdl_lib.vi.ascend` says how
    it goes and when it has converged.

    Args:
        log_prob: log p(x, θ) in nats for rows of [n, dim], differentiable. A ``value_and_grad`` of it is used.
        family: where to start, with its scale about as large as the region where the posterior may lie.
        generator: the only source of randomness.
        num_steps: at most how many steps, at least 1. Each evaluates the density at all draws of a step at once.
        num_mc_samples: draws a step, at least 1, for natural gradients more than dim + 1. Not given, 16 for Adam (64
            for a flow), and the larger of 256 and 8 dim for natural gradients.
        lr: Adam's first learning rate, positive. Not given, 0.05, and 0.01 for a flow.
        tolerance: of natural gradients, in nats, positive.
        elbo: which estimate of the bound Adam follows.
        optimizer: "natural", "adam", or "auto": natural gradients for the two Gaussian families up to 512 dimensions
            if ``elbo`` is not given, Adam otherwise.
        progress: True shows a bar.

    Returns:
        A :class:`Fit`. Natural gradients make the host wait for the device every step, Adam every 100 steps.

    Raises:
        ValueError: if an argument is out of range, ``optimizer`` does not suit the family, or ``log_prob`` does not
            take its draws.
        FailedFit: if a gradient is not finite, or the bound rises without limit because the density cannot be
            normalised: a standard deviation has changed by a factor of 10⁸, Adam's steps have become small while the
            bound still rises with a width, or the density rises in one direction wherever the family has draws. The
            best family so far is in it.

    Source: natural gradients: Khan and Rue (2023), JMLR 24(281); fixed draws: Burroni, Domke and Sheldon (2024),
        arXiv:2304.06803.
    Book: sec-fit
    """
    check_at_least("num_steps", num_steps, 1)
    check_positive("lr", 1.0 if lr is None else lr)
    check_positive("tolerance", tolerance)
    if num_mc_samples is not None:
        check_at_least("num_mc_samples", num_mc_samples, 1)
    is_gaussian = isinstance(family, FullRankGaussian | MeanFieldGaussian)
    if optimizer not in ("auto", "natural", "adam"):
        raise ValueError(f"optimizer must be 'auto', 'natural' or 'adam', got {optimizer!r}")
    if optimizer == "natural" and not is_gaussian:
        raise ValueError(f"optimizer must be 'adam' for a {type(family).__name__}, got 'natural'")
    with torch.no_grad():
        checked(log_prob, family.rsample(2, generator=generator))
    settings = dict(num_steps=num_steps, generator=generator, progress=progress)
    suits = is_gaussian and family.dim <= _MAX_NATURAL_DIM and elbo is sticking_the_landing_elbo
    if optimizer == "natural" or (optimizer == "auto" and suits):
        num_mc_samples = num_mc_samples or max(256, 8 * family.dim)
        return _fit_natural(log_prob, family, num_mc_samples=num_mc_samples, tolerance=tolerance, **settings)
    usual_lr, usual_num = (0.01, 64) if isinstance(family, RealNvp) else (0.05, 16)
    settings |= dict(num_mc_samples=num_mc_samples or usual_num, lr=lr or usual_lr)
    return _fit_adam(log_prob, family, elbo=elbo, **settings)


def _fit_adam(log_prob, family, *, num_mc_samples, lr, elbo, num_steps, generator, progress):
    def bound(family):
        return elbo(log_prob, family, num_samples=num_mc_samples, generator=generator)

    has_run_away = _watch(family, generator)
    end = ascend(bound, family, num_steps=num_steps, lr=lr, has_run_away=has_run_away, progress=progress)
    result = judged(log_prob, end.family, end.history, end.is_converged, generator)
    if end.bad is not None:
        raise not_finite(result, *end.bad)
    if has_run_away(end.family):
        raise _run_away(result)
    if elbo not in _RISE_TO_THE_BEST:
        return result
    result = _check_summit(log_prob, family, result, generator)
    return _check_both_sides(log_prob, family, result, generator)


def _fit_natural(log_prob, family, *, num_mc_samples, tolerance, num_steps, generator, progress):
    from tqdm import tqdm

    density, has_run_away = differentiable(log_prob), _watch(family, generator)
    noise = matched_noise(family.loc, num_mc_samples, generator)
    with tqdm(total=num_steps, disable=not progress, desc="fit") as bar:
        path = _Path(family, [], False, None)
        path = _climb(density, path, noise, num_steps, tolerance / 100, has_run_away, bar)
        if path.bad is None and not has_run_away(path.family):
            draw = functools.partial(matched_noise, family.loc, num_mc_samples, generator)
            path = _average(density, path, draw, num_steps, tolerance, bar)
    history = torch.stack(path.elbos) if path.elbos else family.loc.new_empty(0)
    result = judged(log_prob, path.family, history, path.is_converged, generator)
    if path.bad is not None:
        raise not_finite(result, *path.bad)
    if has_run_away(path.family):
        raise _run_away(result)
    return _check_both_sides(log_prob, family, result, generator)


class _Path(NamedTuple):
    """How far natural gradients came."""

    family: Family
    elbos: list[Tensor]  # nats, one a step
    is_converged: bool
    bad: tuple[int, str] | None  # step and parameter of a gradient that is not finite and cannot be avoided


def _climb(density, path, noise, num_steps, min_kl, has_run_away, bar):
    """Newton steps on fixed draws, halved while they do not raise the bound, until the next one is short."""
    family, elbos, step_size = path.family, [], 1.0
    here = there = survey(density, family, noise)
    if not _is_sound(here):
        return path._replace(bad=(0, _name(here)))
    while len(elbos) < num_steps and step_size > _MIN_STEP_SIZE and not has_run_away(family):
        step = natural_step(family, here, step_size=step_size)
        if step.kl < min_kl:
            break
        there = survey(density, step.family, step.noise)
        is_better = _is_sound(there) and bool(there.elbo > here.elbo)
        step_size = min(1.0, 2 * step_size) if is_better else step_size / 2
        family, here = (step.family, there) if is_better else (family, here)
        elbos.append(here.elbo)
        bar.update()
    is_stuck = step_size <= _MIN_STEP_SIZE and not _is_sound(there)
    return _Path(family, elbos, False, (len(elbos), _name(there)) if is_stuck else None)


def _average(density, path, draw_noise, num_steps, tolerance, bar):
    """Full steps with fresh draws, each weighted so that the family is the mean of where they lead."""
    family, elbos, kls = path.family, [*path.elbos], []
    while len(elbos) < num_steps:
        here = survey(density, family, draw_noise())
        if not _is_sound(here):
            return _Path(family, elbos, False, (len(elbos), _name(here)))
        step = natural_step(family, here, step_size=1 / (len(kls) + 2))
        family = step.family
        kls.append(float(step.kl))
        elbos.append(here.elbo)
        bar.update()
        if len(kls) >= _MIN_AVERAGED and sum(kls) / len(kls) ** 2 < tolerance:
            return _Path(family, elbos, True, None)
    return _Path(family, elbos, False, None)


def _check_summit(log_prob, start, result, generator):
    r"""Whether the bound is stationary under a stretch and a shift of each coordinate, as for the best of a family.

    For :math:`\theta_j \to m_j + (1 + \epsilon)(\theta_j - m_j)`, the bound's derivative at ε = 0 is
    :math:`1 + E_q[(\theta_j - m_j)\, \partial_j \log p]`: zero at a summit, 1 where log p is flat.
    """
    position, grad = _look(log_prob, result.family, generator)
    away, std = position - position.mean(0), position.std(0)
    rise = 1 + (away * grad).mean(0)
    has_grown = std > _GROWN * _std(start, generator)
    if bool(((rise > _FLAT) & (has_grown | result.is_converged)).any()):
        message = f"the ELBO still rises with the width of parameter {int(rise.argmax())}, where steps have become too "
        message += "small to follow: log_prob cannot be normalised, or the start was too narrow; the best family so far"
        failed = result._replace(is_converged=False)
        raise FailedFit(f"{message} is in .fit", fit=failed, step=len(result.elbo_history))
    pulls = torch.cat([1 + away * grad, std * grad], 1)
    limit = _STILL + 4 * pulls.std(0) / len(pulls) ** 0.5
    return result._replace(is_converged=result.is_converged and bool((pulls.mean(0).abs() < limit).all()))


def _check_both_sides(log_prob, start, result, generator):
    """A summit has slopes on both sides: refuse a fit over which the density rises in one direction everywhere.

    Three directions are tried: where the fit has gone, and the mean slope, plain and in units of the widths.
    """
    if not (result.is_converged or len(result.elbo_history) >= _MANY_STEPS):
        return result
    position, grad = _look(log_prob, result.family, generator)
    with torch.no_grad():
        before = start.rsample(_NUM_LOOKS, generator=generator).mean(0)
    asked, slope = grad[_NUM_LOOKS // 2 :], grad[: _NUM_LOOKS // 2].mean(0)
    directions = torch.stack([position.mean(0) - before, slope, position.var(0) * slope], 1)
    slopes = asked @ directions
    if bool(((slopes >= 0).all(0) & (slopes > 0).any(0)).any()):
        message = "the ELBO rises without bound: log_prob rises in one direction wherever the family has draws. Can it "
        message += "be normalised? The best family so far is in .fit"
        failed = result._replace(is_converged=False)
        raise FailedFit(message, fit=failed, step=len(result.elbo_history))
    return result


def _look(log_prob, family, generator):
    """Draws, and the density's gradient there."""
    with torch.no_grad():
        position = family.rsample(_NUM_LOOKS, generator=generator)
    _, grad = differentiable(log_prob).value_and_grad(position)
    return position, grad


def _watch(family, generator):
    """Whether another family has left all bounds, as with a density without a finite integral: a function."""
    start = _std(family, generator)

    def has_run_away(family):
        growth = _std(family, generator) / start
        return not bool(((growth > 1 / _MAX_GROWTH) & (growth < _MAX_GROWTH)).all())

    return has_run_away


def _std(family, generator):
    if isinstance(family, FullRankGaussian):
        return family.scale_tril.tril().norm(dim=1)
    if isinstance(family, MeanFieldGaussian):
        return family.std
    with torch.no_grad():
        return family.rsample(_NUM_LOOKS, generator=generator).std(0)


def _is_sound(there):
    return bool(there.is_finite.all() & there.elbo.isfinite())


def _name(there):
    return "" if there.is_finite.all() else f"loc[{int(there.is_finite.int().argmin())}]"


def not_finite(result, step, parameter):
    what = f"the gradient of {parameter}" if parameter else "log_prob"
    return FailedFit(
        f"{what} is not finite at step {step}; the best family so far is in .fit",
        fit=result,
        step=step,
        parameter=parameter,
    )


def _run_away(result):
    step = len(result.elbo_history)
    message = f"the ELBO rises without bound: after {step} steps a standard deviation has changed by a factor of more"
    message += f" than {_MAX_GROWTH:g}. Can log_prob be normalised? The best family so far is in .fit"
    return FailedFit(message, fit=result, step=step)
