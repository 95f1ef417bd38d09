"""Checks of the exercises of chapter 2.

Chapter: book/02-networks.ipynb
"""

import torch

from bdl_lib.check.verdict import compare

__all__ = ["exercise_2_3", "exercise_2_5"]


def exercise_2_3(function):
    """Look at a reader's ``should_refuse(prob, refuse_cost)``."""
    cases = [(0.9, 0.2), (0.9, 0.05), (0.3, 0.2), (0.3, 0.4), (0.5, 0.6), (0.01, 0.02)]
    return compare("2.3", function, [(dict(prob=p, refuse_cost=r), float(min(p, 1 - p) > r)) for p, r in cases])


def exercise_2_5(function):
    """Look at a reader's ``split(prob)``."""
    cases = []
    for rows in (
        [[1.0, 0.0], [0.0, 1.0]],
        [[0.5, 0.5], [0.5, 0.5]],
        [[0.7, 0.2, 0.1], [0.1, 0.0, 0.9], [0.3, 0.3, 0.4]],
    ):
        prob = torch.tensor(rows, dtype=torch.float64)
        mean = prob.mean(0)
        total = torch.special.entr(mean).sum()
        expected = torch.special.entr(prob).sum(-1).mean()
        cases.append((dict(prob=prob), (total, expected, torch.special.xlogy(prob, prob / mean).sum(-1).mean())))
    return compare("2.5", function, cases)
