"""Checks of the exercises of chapter 4.

Chapter: book/04-mcmc.ipynb
"""

import math

import torch

from bdl_lib.check.verdict import compare

__all__ = ["exercise_4_3", "exercise_4_5"]


def exercise_4_3(function):
    """Look at a reader's ``log_ratio(log_prob_new, log_prob_old, new, old)``."""
    cases = []
    for log_prob_new, log_prob_old, new, old in [
        (-1.0, -1.0, 2.0, 1.0),
        (-3.0, -1.0, 0.5, 4.0),
        (0.5, -2.0, 1.5, 1.5),
    ]:
        arguments = dict(log_prob_new=log_prob_new, log_prob_old=log_prob_old, new=new, old=old)
        cases.append((arguments, log_prob_new - log_prob_old + math.log(new / old)))
    return compare("4.3", function, cases)


def exercise_4_5(function):
    """Look at a reader's ``gibbs_sweep(theta, correlation, noise)``."""
    cases = []
    for theta, correlation, noise in [
        ([1.0, 2.0], 0.0, [0.3, -0.4]),
        ([1.0, 2.0], 0.8, [0.0, 0.0]),
        ([-1.0, 0.5], -0.6, [1.0, 2.0]),
    ]:
        # (θ1, θ2) is linear in what goes in: the second draw is centred at ρ times the first
        matrix = torch.tensor([[0.0, correlation], [0.0, correlation**2]], dtype=torch.float64)
        spread = math.sqrt(1 - correlation**2) * torch.tensor([[1.0, 0.0], [correlation, 1.0]], dtype=torch.float64)
        theta, noise = torch.tensor(theta, dtype=torch.float64), torch.tensor(noise, dtype=torch.float64)
        arguments = dict(theta=theta, correlation=correlation, noise=noise)
        cases.append((arguments, matrix @ theta + spread @ noise))
    return compare("4.5", function, cases)
