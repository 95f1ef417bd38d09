"""Checks of the exercises of chapters 9, 10 and 11.

Chapter: book/09-autoencoders.ipynb
"""

import math

import torch
from torch.distributions import Normal, kl_divergence

from bdl_lib.check.verdict import compare

__all__ = ["exercise_9_3", "exercise_9_5", "exercise_10_3", "exercise_10_5", "exercise_11_3", "exercise_11_5"]


def exercise_9_3(function):
    """Look at a reader's ``stamp_row(values, kernel, stride)``."""
    cases = []
    for values, kernel, stride in [
        ([1.0, -2.0, 0.5], [1.0, 2.0, 3.0], 2),
        ([1.0, 2.0], [0.5, -1.0, 2.0, 4.0], 1),
        ([3.0, 1.0, 1.0, -1.0], [2.0, 5.0], 3),
    ]:
        values, kernel = torch.tensor(values, dtype=torch.float64), torch.tensor(kernel, dtype=torch.float64)
        # the matrix of the convolution, a row for each place of the kernel; then its transpose
        length = (len(values) - 1) * stride + len(kernel)
        matrix = torch.zeros(len(values), length, dtype=torch.float64)
        for place, row in enumerate(matrix):
            row[place * stride : place * stride + len(kernel)] = kernel
        cases.append((dict(values=values, kernel=kernel, stride=stride), values @ matrix))
    return compare("9.3", function, cases)


def exercise_9_5(function):
    """Look at a reader's ``fill_in(pixels, is_missing, mean, components)``."""
    cases = []
    for pixels, is_missing, mean, rows in [
        ([1.0, 9.0, 2.0], [False, True, False], [0.0, 0.0, 0.0], [[1.0, 1.0, 1.0]]),
        ([1.0, 0.5, -2.0, 7.0], [False, False, False, True], [0.5, 0.0, 1.0, -1.0], [[1, 2, 0, 1], [0, 1, 1, -1]]),
        ([1.0, 2.0, 3.0, 4.0], [False, False, False, False], [0.0, 0.0, 0.0, 0.0], [[1.0, 0.0, 0.0, 1.0]]),
    ]:
        pixels, mean, rows = (torch.tensor(v, dtype=torch.float64) for v in (pixels, mean, rows))
        is_missing = torch.tensor(is_missing)
        components = torch.linalg.qr(rows.T).Q.T
        # reconstruct what is filled in, and fill in what is reconstructed, until nothing changes
        filled = torch.where(is_missing, mean, pixels)
        for _ in range(2000):
            rebuilt = mean + (filled - mean) @ components.T @ components
            filled = torch.where(is_missing, rebuilt, pixels)
        cases.append((dict(pixels=pixels, is_missing=is_missing, mean=mean, components=components), filled))
    return compare("9.5", function, cases)


def exercise_10_3(function):
    """Look at a reader's ``kl_to_prior(loc, log_var, prior_loc, prior_log_var)``."""
    cases = []
    for loc, log_var, prior_loc, prior_log_var in [
        ([[0.5, -1.0], [2.0, 0.0]], [[0.0, -3.0], [1.0, -0.5]], [0.0, 0.0], [0.0, 0.0]),
        ([[0.5, -1.0, 3.0], [2.0, 0.0, 0.0]], [[0.0, -3.0, 0.2], [1.0, -0.5, 0.0]], [1.0, -2.0, 0.0], [-1.0, 2.0, 0.5]),
        ([[1.0], [-1.0], [0.3]], [[-2.0], [-2.0], [-2.0]], [0.3], [-2.0]),
    ]:
        names = ("loc", "log_var", "prior_loc", "prior_log_var")
        parts = [torch.tensor(v, dtype=torch.float64) for v in (loc, log_var, prior_loc, prior_log_var)]
        q, prior = (Normal(m, (0.5 * s).exp()) for m, s in (parts[:2], parts[2:]))
        cases.append((dict(zip(names, parts, strict=True)), kl_divergence(q, prior).sum(-1)))
    return compare("10.3", function, cases)


def exercise_10_5(function):
    """Look at a reader's ``vae_loss(logits, images, loc, log_var)``."""
    cases = []
    for logits, images, loc, log_var in [
        ([[[0.5, -1.0]]], [[[1.0, 0.0]]], [[0.3]], [[-1.0]]),
        (
            [[[0.0, 2.0], [-3.0, 1.0]], [[1.0, -1.0], [0.5, 0.2]], [[4.0, -2.0], [0.0, 0.0]]],
            [[[1.0, 1.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [1.0, 1.0]]],
            [[0.0, 0.0], [1.0, -2.0], [0.5, 0.1]],
            [[0.0, 0.0], [-4.0, 1.0], [-0.5, -6.0]],
        ),
        ([[[800.0, -800.0]]], [[[0.0, 0.0]]], [[1.0, 2.0, 3.0]], [[-1.0, 0.0, 0.5]]),  # exp would overflow
    ]:
        # pixel by pixel: minus the log of 1 / (1 + exp(-t)), with t the logit, its sign turned for a white pixel
        losses = []
        for rows, truth, m, s in zip(logits, images, loc, log_var, strict=True):
            pairs = [p for pair in zip(rows, truth, strict=True) for p in zip(*pair, strict=True)]
            signed = [logit if x == 1 else -logit for logit, x in pairs]
            pixels = sum(max(-t, 0.0) + math.log1p(math.exp(-abs(t))) for t in signed)
            q = Normal(torch.tensor(m, dtype=torch.float64), (0.5 * torch.tensor(s, dtype=torch.float64)).exp())
            losses.append(pixels + kl_divergence(q, Normal(0.0, 1.0)).sum().item())
        named = dict(logits=logits, images=images, loc=loc, log_var=log_var)
        arguments = {name: torch.tensor(value, dtype=torch.float64) for name, value in named.items()}
        cases.append((arguments, torch.tensor(sum(losses) / len(losses), dtype=torch.float64)))
    return compare("10.5", function, cases)


def exercise_11_3(function):
    """Look at a reader's ``bound_with_holes(logits, image, log_ratio)``."""
    nan, cases = torch.nan, []
    for logits, image, log_ratio in [
        ([[0.5, -1.0, 2.0]], [1.0, 0.0, 1.0], [0.3]),
        ([[0.5, -1.0, 2.0], [1.5, 0.0, -2.0]], [nan, 0.0, 1.0], [-0.2, 1.0]),
        ([[800.0, -1.0], [900.0, 3.0], [850.0, 0.0]], [0.0, nan], [0.0, 2.0, -1.0]),  # every weight underflows
    ]:
        # each weight as a product of probabilities, relative to the largest
        log_w = []
        for row, ratio in zip(logits, log_ratio, strict=True):
            signs = [(1 - 2 * pixel) * logit for logit, pixel in zip(row, image, strict=True) if not math.isnan(pixel)]
            log_w.append(ratio - sum(max(a, 0.0) + math.log1p(math.exp(-abs(a))) for a in signs))
        mean = sum(math.exp(each - max(log_w)) for each in log_w) / len(log_w)
        arguments = dict(logits=logits, image=image, log_ratio=log_ratio)
        arguments = {name: torch.tensor(value, dtype=torch.float64) for name, value in arguments.items()}
        cases.append((arguments, torch.tensor(max(log_w) + math.log(mean), dtype=torch.float64)))
    return compare("11.3", function, cases)


def exercise_11_5(function):
    """Look at a reader's ``information(loc, log_var, latents)``."""
    cases = []
    for loc, log_var, latents in [
        ([[0.0], [3.0]], [[0.0], [0.0]], [[0.5], [2.0]]),
        ([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], [[-1.0, 0.5]] * 3, [[0.3, 1.0], [-2.0, 0.0], [1.0, 1.5]]),
        ([[0.0, 1.0], [-1.0, 2.0], [2.0, 0.5]], [[-2.0, 0.5], [0.3, -1.0], [0.0, 1.0]], [[0.1, 0], [-1, 2.2], [3, 1]]),
    ]:
        loc, log_var, latents = (torch.tensor(v, dtype=torch.float64) for v in (loc, log_var, latents))
        # q(z) as a mixture of torch.distributions, and each log q(z | x) by itself
        each = torch.distributions.Independent(torch.distributions.Normal(loc, log_var.exp().sqrt()), 1)
        equal = torch.distributions.Categorical(torch.ones(len(loc), dtype=torch.float64))
        average = torch.distributions.MixtureSameFamily(equal, each)
        expected = (each.log_prob(latents) - average.log_prob(latents)).mean()
        cases.append((dict(loc=loc, log_var=log_var, latents=latents), expected))
    return compare("11.5", function, cases)
