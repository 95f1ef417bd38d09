"""What a check says of a reader's answer."""

from typing import NamedTuple

import torch

__all__ = ["Verdict", "compare"]


class Verdict(NamedTuple):
    """Whether an answer passed, and what it gave and should have given. Shown, never raised: a notebook runs on."""

    passed: bool
    message: str

    def __repr__(self):
        return f"{'✓' if self.passed else '✗'} {self.message}"


def compare(exercise, function, cases, *, atol=1e-6):
    """Call a reader's function on cases with known answers, and stop at the first that differs.

    Args:
        exercise: the exercise's number, such as ``"1.3"``.
        function: the reader's function.
        cases: pairs of keyword arguments and the expected result, a tensor or a tuple of tensors.
        atol: the largest accepted difference.

    Returns:
        The verdict. A function that raises or returns nothing has not passed; the message says how it was called.
    """
    for arguments, expected in cases:
        call = f"{function.__name__}({', '.join(f'{name}={_plain(value)}' for name, value in arguments.items())})"
        try:
            got = function(**arguments)
        except Exception as error:  # a reader's own code may raise anything; the verdict says what
            return Verdict(False, f"Exercise {exercise}: {call} raised {type(error).__name__}: {error}")
        if got is None:
            return Verdict(False, f"Exercise {exercise}: not solved yet; {call} returned None")
        try:
            torch.testing.assert_close(_as_tensors(got), _as_tensors(expected), atol=atol, rtol=0, check_dtype=False)
        except (AssertionError, ValueError, TypeError, RuntimeError):
            return Verdict(False, f"Exercise {exercise}: {call} returned {_plain(got)}, expected {_plain(expected)}")
    return Verdict(True, f"Exercise {exercise}: right in all {len(cases)} cases")


def _as_tensors(result):
    if isinstance(result, tuple):
        return [torch.as_tensor(part, dtype=torch.float64) for part in result]
    return [torch.as_tensor(result, dtype=torch.float64)]


def _plain(value):
    if isinstance(value, tuple):
        return "(" + ", ".join(_plain(part) for part in value) + ")"
    value = value.tolist() if hasattr(value, "tolist") else value
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
