"""Checks of the exercises of chapter 6.

Chapter: book/06-mcmc-versus-vi.ipynb
"""

import torch

from bdl_lib.check.verdict import compare

__all__ = ["exercise_6_3", "exercise_6_5"]


def exercise_6_3(function):
    """Look at a reader's ``ranked_probability_score(prob, label)``."""
    cases = []
    for prob, label in [
        ([0.2, 0.5, 0.3], 2),
        ([0.2, 0.5, 0.3], 0),
        ([0.0, 1.0, 0.0, 0.0], 1),
        ([0.1, 0.2, 0.3, 0.4], 3),
    ]:
        # a forecast of a whole number by its draws: E|X - y| - E|X - X'| / 2, with steps of length one
        prob, place = torch.tensor(prob, dtype=torch.float64), torch.arange(len(prob))
        to_label = prob @ (place - label).abs().double()
        within = prob @ (place[:, None] - place).abs().double() @ prob
        cases.append((dict(prob=prob, label=label), to_label - 0.5 * within))
    return compare("6.3", function, cases)


def exercise_6_5(function):
    """Look at a reader's ``wasserstein(x, y)``."""
    cases = []
    for x, y in [
        ([0.0, 1.0], [3.0, 2.0]),
        ([0.0, 0.0, 3.0], [1.0, 2.0]),
        ([2.0, -1.0, 0.5], [0.0, 4.0, 1.0, 1.0, -2.0]),
    ]:
        x, y = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
        # with every draw repeated as often as the other set is long, sorted draws are partners
        same_length = x.repeat_interleave(len(y)).sort().values, y.repeat_interleave(len(x)).sort().values
        cases.append((dict(x=x, y=y), (same_length[0] - same_length[1]).abs().mean()))
    return compare("6.5", function, cases)
