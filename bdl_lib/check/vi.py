"""Checks of the exercises of chapter 5.

Chapter: book/05-vi.ipynb
"""

import torch

from bdl_lib.check.verdict import compare

__all__ = ["exercise_5_3", "exercise_5_5"]


def exercise_5_3(function):
    """Look at a reader's ``mean_field_stds(prec)``."""
    cases = []
    for rows in (
        [[4.0, 0.0], [0.0, 0.25]],
        [[2.0, -1.5], [-1.5, 2.0]],
        [[3.0, 1.0, 0.5], [1.0, 2.0, 0.0], [0.5, 0.0, 1.0]],
    ):
        prec = torch.tensor(rows, dtype=torch.float64)
        # a marginal variance is a ratio of determinants (Cramer's rule); a conditional one needs the diagonal alone
        others = [[i for i in range(len(rows)) if i != j] for j in range(len(rows))]
        minors = torch.stack([torch.linalg.det(prec[keep][:, keep]) for keep in others])
        reverse = torch.tensor([rows[j][j] ** -0.5 for j in range(len(rows))], dtype=torch.float64)
        cases.append((dict(prec=prec), (reverse, (minors / torch.linalg.det(prec)).sqrt())))
    return compare("5.3", function, cases)


def exercise_5_5(function):
    """Look at a reader's ``sweep(loc, mean, prec)``."""
    cases = []
    for loc, mean, rows in [
        ([3.0, -1.0], [1.0, 2.0], [[2.0, 0.0], [0.0, 5.0]]),
        ([1.0, 1.0], [0.0, 0.0], [[1.0, -0.9], [-0.9, 1.0]]),
        ([0.5, -2.0, 1.0], [1.0, 0.0, -1.0], [[3.0, 1.0, 0.5], [1.0, 2.0, -0.4], [0.5, -0.4, 1.0]]),
    ]:
        loc, mean, prec = (torch.tensor(part, dtype=torch.float64) for part in (loc, mean, rows))
        # a sweep is Gauss-Seidel: with the diagonal and what is below it on the left, (D + L) new = -U old
        left = prec.tril()
        away = torch.linalg.solve_triangular(left, -((prec - left) @ (loc - mean))[:, None], upper=False)[:, 0]
        cases.append((dict(loc=loc, mean=mean, prec=prec), mean + away))
    return compare("5.5", function, cases)
