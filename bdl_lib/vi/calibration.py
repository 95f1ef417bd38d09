r"""Variational simulation-based calibration: over many data sets, do the truths lie as often below as above the fit?

Simulation-based calibration (chapter 4) asks for exact posteriors, which a variational fit never gives. This asks for
less: that the fits are not shifted to one side. It tests the symmetry of the truths' places in the fits.

Chapter: book/05-vi.ipynb
"""

from collections.abc import Callable
from math import pi
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bdl_lib.vi._checks import check_at_least

__all__ = ["FitCalibration", "calibrate_fit"]


class FitCalibration(NamedTuple):
    """Where the true values lie in the fits: symmetric about ½ if the fits are not shifted, uniform if they are exact.

    Book: sec-vsbc
    """

    probabilities: Float[Tensor, "simulations quantities"]  # share of the fit below the truth, from 0 to 1
    asymmetry: Float[Tensor, " quantities"]  # the largest distance between the distributions of p and of 1 - p
    p_values: Float[Tensor, " quantities"]  # of that distance, if p is symmetric: small for a shifted fit
    counts: Int[Tensor, "bins quantities"]  # the histogram of p, in bins of equal width
    uniformity_p_values: Float[Tensor, " quantities"]  # chi-square test of equal counts: small for any wrong fit

    @property
    def p_value(self) -> Float[Tensor, ""]:
        """One p-value of symmetry for all quantities, by Bonferroni: the smallest, times how many there are."""
        return (self.p_values.min() * len(self.p_values)).clamp(max=1)

    @property
    def expected_count(self) -> float:
        """The height of every bar of the histogram, if the fits are exact."""
        return len(self.probabilities) / len(self.counts)


def calibrate_fit(
    prior_draws: Float[Tensor, "simulations dim"],
    simulate: Callable[[Tensor, torch.Generator], Any],
    fit: Callable[[Any, torch.Generator], Any],
    *,
    generator: torch.Generator,
    num_draws: int = 1000,
    quantities: Callable[[Tensor, Any], Tensor] | None = None,
    num_bins: int = 20,
    progress: bool = False,
) -> FitCalibration:
    r"""Places of prior draws in the fits to data that they generated, and whether those are symmetric.

    .. math:: \tilde\theta_j \sim p(\theta), \quad \tilde y_j \sim p(y \mid \tilde\theta_j), \quad
              q_j \approx p(\theta \mid \tilde y_j) \quad\Longrightarrow\quad
              p_{ij} = Q_j(\theta_i < \tilde\theta_{ij})

    For exact posteriors, p is uniform. For a fit of the right place and the wrong width, it need only be symmetric
    about ½; that is tested by the largest distance between the distributions of p and of 1 - p,

    .. math:: D = \max_t \big| \hat F(t) - (1 - \hat F(1 - t)) \big|.

    Under symmetry, N D is the largest distance from zero of a fair random walk of N steps, and the p-value is that
    walk's, exact for any N. (The usual p-value of a two-sample Kolmogorov–Smirnov test is for independent samples; of a
    sample and its mirror image it says 5 % where it is 11 %, and 1 % where it is 4 %.)

    Which way the fits are shifted is seen in the histogram: with most p near 1, the truths lie above the fits, which
    are too low. **A limit**: symmetric fits that are too narrow (p piles up at both ends) or too wide (in the middle)
    pass this test; ``uniformity_p_values`` and the histogram tell them. Also, a shift that is up as often as down
    passes both.

    Args:
        prior_draws: true parameters, one row a simulation. A hundred or more.
        simulate: ``simulate(prior_draws, generator)`` gives data, indexed by simulation.
        fit: ``fit(data[j], generator)`` gives a family, such as ``vi.fit(...).family``: anything with
            ``sample(num_samples, generator=...)``.
        generator: goes to both functions, draws from the families, and breaks ties.
        num_draws: how many draws of a family estimate p, at least 1.
        quantities: f, ``quantities(position, data[j])`` maps [draws, dim] to [draws, k]: what to compare in place of
            the parameters themselves.
        num_bins: of the histogram, at least 2. Each should expect 5 simulations or more.
        progress: True shows a bar.

    Returns:
        A :class:`FitCalibration`. Places are (rank + u) / (num_draws + 1) with u uniform, so that for exact posteriors
        they are exactly uniform, without ties.

    Raises:
        ValueError: if ``prior_draws`` is empty, ``num_draws`` or ``num_bins`` is out of range, or the draws of a family
            are of the wrong shape or not finite.

    Source: Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?, arXiv:1802.02538, section 3; the test's
        distribution: Butler (1969), A Test for Symmetry Using the Sample Distribution Function,
        doi:10.1214/aoms/1177697302.
    Book: sec-vsbc
    """
    check_at_least("the number of prior_draws", len(prior_draws), 1)
    check_at_least("num_draws", num_draws, 1)
    check_at_least("num_bins", num_bins, 2)
    data = simulate(prior_draws, generator)
    places = []
    for j, truth in enumerate(_show(prior_draws, progress)):
        draws = fit(data[j], generator).sample(num_draws, generator=generator).detach()
        if draws.shape != (num_draws, len(truth)):
            rule = f"fit must give a family over {len(truth)} parameters"
            raise ValueError(f"{rule}, got draws of shape {list(draws.shape)} in simulation {j}")
        with_truth = torch.cat([truth[None], draws])
        values = with_truth if quantities is None else quantities(with_truth, data[j])
        if not values.isfinite().all():
            raise ValueError(f"draws must be finite, are not in simulation {j}")
        places.append(_place(values, generator))
    probabilities = torch.stack(places)
    asymmetry, p_values = _symmetry_test(probabilities)
    counts = _histogram(probabilities, num_bins)
    return FitCalibration(probabilities, asymmetry, p_values, counts, _chi_square_p_value(counts, probabilities))


def _show(prior_draws: Tensor, progress: bool):
    if not progress:
        return prior_draws
    from tqdm.auto import tqdm

    return tqdm(prior_draws, desc="calibrate_fit")


def _place(values: Tensor, generator: torch.Generator) -> Tensor:
    """Share of the draws below the truth, which is the first row; ties fall below with a common random share."""
    truth, draws = values[0], values[1:]
    share = torch.rand(truth.shape, generator=generator, dtype=values.dtype, device=values.device)
    below, ties = (draws < truth).sum(0), (draws == truth).sum(0)
    return (below + share * (ties + 1)) / (len(draws) + 1)


def _symmetry_test(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """D and its p-value, for each column. From the outside in, each p is a step of the walk: up above ½, down below."""
    shift = probabilities - 0.5
    order = shift.abs().argsort(0, descending=True)
    furthest = shift.gather(0, order).sign().cumsum(0).abs().amax(0)
    return furthest / len(shift), _walk_p_value(furthest, len(shift))


def _walk_p_value(furthest: Tensor, num_steps: int) -> Tensor:
    r"""Probability that a fair walk of n steps of ±1 gets m or further from zero.

    Between walls at ±m, the walk is a sum of standing waves: it stays inside with probability
    :math:`\frac1m \sum_{k \text{ odd} < 2m} (-1)^{(k-1)/2} \cot\frac{\pi k}{4m} \cos^n \frac{\pi k}{2m}`.
    """
    k = torch.arange(1, 2 * num_steps, 2, dtype=furthest.dtype, device=furthest.device)[:, None]
    m = furthest.clamp(min=1)  # at zero distance the probability is 1, as it is at m = 1
    half_angle = pi * k / (4 * m)
    sine, cosine = half_angle.sin(), half_angle.cos()
    # |cos 2a|ⁿ by its logarithm: in single precision, the power would multiply the rounding of the cosine by n
    decay = (num_steps * (-2 * torch.minimum(sine.square(), cosine.square())).log1p()).exp()
    sign = (1 - (k - 1) % 4) * torch.where(k < m, 1, (-1) ** num_steps)
    return (1 - torch.where(k < 2 * m, sign * decay * cosine / sine, 0).sum(0) / m).clamp(0, 1)


def _histogram(probabilities: Tensor, num_bins: int) -> Tensor:
    bins = torch.arange(num_bins, device=probabilities.device)[:, None, None]
    return ((probabilities * num_bins).long().clamp(max=num_bins - 1) == bins).sum(1)


def _chi_square_p_value(counts: Tensor, like: Tensor) -> Tensor:
    expected = len(like) / len(counts)
    statistic = ((counts - expected).square() / expected).sum(0).to(like.dtype)
    return torch.special.gammaincc(torch.full_like(statistic, (len(counts) - 1) / 2), statistic / 2)
