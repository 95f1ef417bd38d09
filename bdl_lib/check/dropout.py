"""Checks of the exercises of chapter 7.

Chapter: book/07-dropout.ipynb
"""

import itertools
import math

import torch

from bdl_lib.check.verdict import compare

__all__ = ["exercise_7_3", "exercise_7_5"]


def exercise_7_3(function):
    """Look at a reader's ``dropout_weights(inputs, targets, rate, weight_decay)``."""
    cases = []
    for rows, targets, rate, weight_decay in [
        ([[1.0], [2.0], [-1.0]], [1.0, 3.0, -2.0], 0.5, 0.0),
        ([[1.0, 0.5], [0.0, 2.0], [-1.0, 1.0]], [1.0, 0.0, -1.0], 0.2, 0.1),
        ([[1.0, 1.1, 0.0], [2.0, 1.9, 1.0], [0.5, 0.4, -1.0], [1.0, 0.8, 2.0]], [1.0, 2.0, 0.3, 1.5], 0.3, 0.02),
    ]:
        inputs, targets = torch.tensor(rows, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)
        # least squares over all masks at once: the data under each mask, weighted by its probability, and the decay
        masks = list(itertools.product([0.0, 1.0], repeat=inputs.shape[1]))
        prob = [math.prod(1 - rate if on else rate for on in mask) for mask in masks]
        scale = [math.sqrt(share / len(inputs)) for share in prob]
        masked = [inputs * torch.tensor(mask, dtype=torch.float64) / (1 - rate) for mask in masks]
        decay = math.sqrt(2 * weight_decay) * torch.eye(inputs.shape[1], dtype=torch.float64)
        design = torch.cat([*(s * x for s, x in zip(scale, masked, strict=True)), decay])
        answers = torch.cat([*(s * targets for s in scale), decay.new_zeros(len(decay))])
        weights = torch.linalg.lstsq(design, answers[:, None], driver="gelsd").solution[:, 0]
        cases.append((dict(inputs=inputs, targets=targets, rate=rate, weight_decay=weight_decay), weights))
    return compare("7.3", function, cases)


def exercise_7_5(function):
    """Look at a reader's ``mc_log_likelihood(outputs, targets, noise_prec)``."""
    cases = []
    for outputs, targets, noise_prec in [
        ([[0.0], [1.0]], [0.5], 4.0),
        ([[0.0, 2.0], [0.3, -1.0], [-0.2, 0.5]], [0.1, 1.0], 1.0),
        ([[0.0, 1.0], [0.5, 1.0]], [50.0, 1.0], 1.0),  # every density of the first is 0 in floating point
    ]:
        # p(y) relative to the density of the nearest pass, so that a sum of ordinary numbers is left
        expected = []
        for n, target in enumerate(targets):
            squares = [0.5 * noise_prec * (target - row[n]) ** 2 for row in outputs]
            relative = sum(math.exp(min(squares) - square) for square in squares) / len(outputs)
            expected.append(math.log(relative) - min(squares) + 0.5 * math.log(noise_prec / (2 * math.pi)))
        tensors = {"outputs": outputs, "targets": targets}
        arguments = {name: torch.tensor(values, dtype=torch.float64) for name, values in tensors.items()}
        cases.append((arguments | {"noise_prec": noise_prec}, torch.tensor(expected, dtype=torch.float64)))
    return compare("7.5", function, cases)
