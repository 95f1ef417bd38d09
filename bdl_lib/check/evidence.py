"""Checks of the exercises of chapter 3.

Chapter: book/03-evidence.ipynb
"""

from math import inf, log, sqrt

import torch

from bdl_lib.check.verdict import compare

__all__ = ["exercise_3_3", "exercise_3_5"]


def exercise_3_3(function):
    """Look at a reader's ``draws_needed(width, dim, std_error)``."""
    cases = []
    for width, dim, std_error in [(1.0, 10, 0.1), (1.2, 1, 0.1), (1.2, 20, 0.05), (0.8, 5, 0.1), (0.7, 3, 0.1)]:
        ratio = width**2 / sqrt(2 * width**2 - 1) if 2 * width**2 > 1 else inf
        arguments = dict(width=width, dim=dim, std_error=std_error)
        cases.append((arguments, (ratio**dim - 1) / std_error**2))
    return compare("3.3", function, cases)


def exercise_3_5(function):
    """Look at a reader's ``stepping_stones(log_likelihood, temperatures)``."""
    cases = []
    for rows, temperatures in [
        ([[-3.0, -3.0, -3.0]], [0.0, 1.0]),
        ([[-5.0, -1.0], [-2.0, -3.0]], [0.0, 0.1, 1.0]),
        ([[-2010.0, -2000.0, -2005.0], [-2001.0, -2000.0, -2002.0]], [0.0, 0.25, 1.0]),
    ]:
        value, var = 0.0, 0.0
        for row, before, after in zip(rows, temperatures, temperatures[1:], strict=False):
            weights = torch.tensor([(after - before) * (entry - max(row)) for entry in row], dtype=torch.float64).exp()
            value += (after - before) * max(row) + log(weights.mean())
            var += (weights.var() / weights.mean().square() / len(row)).item()
        arguments = dict(
            log_likelihood=torch.tensor(rows, dtype=torch.float64),
            temperatures=torch.tensor(temperatures, dtype=torch.float64),
        )
        cases.append((arguments, (value, sqrt(var))))
    return compare("3.5", function, cases)
