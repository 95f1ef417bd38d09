"""Compare a number with its exact value, or carry it into the prose."""

import re

import torch

__all__ = ["close", "glue"]

MAX_SHOWN = 6  # entries of an array that a checked line spells out


def close(name, value, expected, *, atol):
    r"""Hold a number against the value that it should have, and say so in one line.

    Passes where :math:`|\text{value} - \text{expected}| \le \text{atol}` in every entry. The printed line shows the
    expected value, which does not depend on the processor, so that a stored copy of the line can be compared.

    Args:
        name: what the number is, in a few words.
        value: the number or tensor that the chapter computed.
        expected: the exact one, broadcastable to ``value``.
        atol: the largest absolute difference that is accepted; for a Monte Carlo estimate, a few standard errors.

    Raises:
        ValueError: if ``atol`` is not positive, or the two shapes do not match.
        AssertionError: if the number is further away than ``atol``, or not a number.
    """
    if not atol > 0:
        raise ValueError(f"atol must be positive, got {atol}")
    value, expected = _as_double(value), _as_double(expected)
    if expected.dim() and expected.shape != value.shape:
        raise ValueError(
            f"expected must be a number or have the shape of value, {list(value.shape)}, got {list(expected.shape)}"
        )
    error = (value - expected).abs().max().item()
    if not error <= atol:
        raise AssertionError(
            f"{name}: {_spell(value)} should be {_spell(expected)} within {atol:g}, is off by {error:.3g}"
        )
    print(f"✓ {name}: {_spell(expected)} within {atol:g}")


def _as_double(number):
    return torch.as_tensor(number).detach().cpu().to(torch.float64)


def _spell(tensor):
    if tensor.dim() == 0:
        return f"{tensor.item():.4g}"
    entries = [f"{entry:.4g}" for entry in tensor.flatten().tolist()]
    shown = ", ".join(entries[:MAX_SHOWN])
    return f"[{shown}]" if len(entries) <= MAX_SHOWN else f"[{shown}, … {len(entries)} entries]"


def glue(name, value):
    """Carry a number from this cell into the text, where ``{glue:text}`name:.2f``` prints it.

    In a string, a hyphen before a number becomes the minus sign that it stands for. Nothing is shown in the notebook;
    the value travels in the cell's output, as MyST-NB's own ``glue`` does it, without needing MyST-NB where the chapter
    runs.

    Args:
        name: the key that the text uses.
        value: a number, a tensor of one entry, or a string.
    """
    from IPython.display import display

    plain = value.item() if isinstance(value, torch.Tensor) else value
    if isinstance(plain, str):
        plain = re.sub(r"(?<![\w.)-])-(?=[\d.])", "−", plain)
    prefix = "application/papermill.record/"
    metadata = {"scrapbook": {"name": name, "mime_prefix": prefix}}
    display({f"{prefix}text/plain": repr(plain)}, raw=True, metadata=metadata)
