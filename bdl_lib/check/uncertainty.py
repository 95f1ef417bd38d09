"""Checks of the exercises of chapter 8.

Chapter: book/08-uncertainty.ipynb
"""

import torch

from bdl_lib.check.verdict import compare

__all__ = ["exercise_8_3", "exercise_8_5"]


def exercise_8_3(function):
    """Look at a reader's ``precision_nll(mean, log_prec, targets)``."""
    nan, cases = torch.nan, []
    for mean, log_prec, targets in [
        ([0.0, 1.0, -2.0], [0.0, 2.0, -1.0], [0.5, 1.0, 3.0]),
        ([0.0, 1.0, -2.0, 4.0], [0.0, 2.0, -1.0, 3.0], [nan, 0.5, nan, 4.5]),
        ([3.0], [-4.0], [-7.0]),
    ]:
        mean, log_prec, targets = (torch.tensor(v, dtype=torch.float64) for v in (mean, log_prec, targets))
        density = torch.distributions.Normal(mean, (-0.5 * log_prec).exp(), validate_args=False)
        arguments = dict(mean=mean, log_prec=log_prec, targets=targets)
        cases.append((arguments, -density.log_prob(targets).nanmean()))
    return compare("8.3", function, cases)


def exercise_8_5(function):
    """Look at a reader's ``widening(low, high, targets, level)``."""
    cases = []
    for low, high, targets, level in [
        ([0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 1.0, 1.0], [1.5, 1.0, -0.25, 0.5], 0.8),
        ([0.0] * 9, [1.0] * 9, [2.0, 0.5, -1.0, 4.0, 0.9, 1.2, 0.1, -0.3, 1.1], 0.5),
        ([0.0] * 9, [1.0] * 9, [0.4, 0.5, 0.6, 0.3, 0.9, 0.2, 0.1, 0.7, 0.8], 0.9),
        ([0.0, 0.0], [1.0, 1.0], [0.0, 3.0], 0.9),
    ]:
        low, high, targets = (torch.tensor(v, dtype=torch.float64) for v in (low, high, targets))
        # the least widening that covers level · (n + 1) of the points: each point asks for one of its own
        wanted = torch.stack([low - targets, targets - high]).amax(0)
        enough = [w for w in wanted if (wanted <= w).sum() >= level * (len(wanted) + 1) - 1e-9]
        expected = min(enough) if enough else torch.tensor(torch.inf, dtype=torch.float64)
        cases.append((dict(low=low, high=high, targets=targets, level=level), expected))
    return compare("8.5", function, cases)
