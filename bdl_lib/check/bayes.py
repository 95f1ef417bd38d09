"""Checks of the exercises of chapter 1.

Chapter: book/01-bayes.ipynb
"""

from bdl_lib.check.verdict import compare

__all__ = ["exercise_1_3", "exercise_1_5"]


def exercise_1_3(function):
    """Look at a reader's ``two_positives(base_rate, sensitivity, false_positive_rate, copy_prob)``."""
    cases = []
    for base_rate, sensitivity, false_positive_rate, copy_prob in [
        (0.01, 0.9, 0.09, 0.0),
        (0.01, 0.9, 0.09, 1.0),
        (0.01, 0.9, 0.09, 0.5),
        (0.2, 0.7, 0.3, 0.25),
    ]:
        if_ill = sensitivity * (copy_prob + (1 - copy_prob) * sensitivity)
        if_well = false_positive_rate * (copy_prob + (1 - copy_prob) * false_positive_rate)
        expected = base_rate * if_ill / (base_rate * if_ill + (1 - base_rate) * if_well)
        arguments = dict(
            base_rate=base_rate, sensitivity=sensitivity, false_positive_rate=false_positive_rate, copy_prob=copy_prob
        )
        cases.append((arguments, expected))
    return compare("1.3", function, cases)


def exercise_1_5(function):
    """Look at a reader's ``update_normal(mean, var, observation, noise_var)``."""
    cases = []
    for mean, var, observation, noise_var in [(0.0, 1.0, 2.0, 1.0), (1.0, 4.0, -1.0, 0.5), (-3.0, 0.1, 5.0, 10.0)]:
        gain = var / (var + noise_var)
        expected = (mean + gain * (observation - mean), (1 - gain) * var)
        arguments = dict(mean=mean, var=var, observation=observation, noise_var=noise_var)
        cases.append((arguments, expected))
    return compare("1.5", function, cases)
