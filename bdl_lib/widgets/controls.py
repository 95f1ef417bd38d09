"""What a reader can move: finite lists of values, each with a label and a text to show."""

import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["Control", "bind", "control", "phrase"]


class Control(NamedTuple):
    """One control of an explorable figure; made by ``control``."""

    values: tuple[Any, ...]
    texts: tuple[str, ...]  # what the reader sees of each value
    label: str | None  # None: taken from the argument's name
    default: int  # position of the value shown at first
    is_numeric: bool  # a slider; otherwise a drop-down list


def control(
    values: Iterable[Any],
    *,
    label: str | None = None,
    default: Any = None,
    format: str | Callable[[Any], str] | None = None,
) -> Control:
    r"""One control: the values that it steps through, and how they are written.

    Args:
        values: finite numbers (a slider), or strings or booleans (a drop-down list), each once. NumPy and torch
            scalars become Python numbers.
        label: what the reader sees beside the control; by default the argument's name, ``num_flips`` → "Num flips".
        default: the value shown at first, on paper and without JavaScript; by default the first one.
        format: how a value is written: a format such as ``".2f"``, or a function of the value. By default six
            significant digits for a float, the value itself otherwise.

    Returns:
        The control, to be given to ``explore``.

    Raises:
        ValueError: if there are no values, one is not finite, of another kind than the rest or there twice, two are
            written alike, or ``default`` is not among them.
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise ValueError(f"values must be a list of values, got {values!r}")
    values = tuple(_plain(value) for value in values)
    if not values:
        raise ValueError("values must hold at least one value, got none")
    is_numeric = _check_kinds(values)
    _check_unique("values", values)
    texts = tuple(_text(value, format) for value in values)
    _check_unique("the texts of the values", texts)
    if default is not None and default not in values:
        raise ValueError(f"default must be one of {list(values)}, got {default!r}")
    return Control(values, texts, label, 0 if default is None else values.index(default), is_numeric)


def _plain(value):
    try:
        return value.item() if hasattr(value, "item") else value
    except (RuntimeError, ValueError):
        raise ValueError(f"values must be numbers, strings or booleans, got {value!r}") from None


def _check_kinds(values):
    if all(isinstance(value, str | bool) for value in values):
        return False
    for value in values:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(
                f"values must be all numbers, or all strings and booleans, got {value!r} in {list(values)}"
            )
        if not math.isfinite(value):
            raise ValueError(f"values must be finite, got {value}")
    return True


def _check_unique(what, items):
    for position, item in enumerate(items):
        if item in items[:position]:
            raise ValueError(f"{what} must differ from each other, got {item!r} twice")


def _text(value, format):
    if callable(format):
        return str(format(value))
    if format is None:
        format = "g" if isinstance(value, float) else ""
    text = f"{value:{format}}"
    return text.replace("-", "−") if isinstance(value, numbers.Real) else text


def bind(draw: Callable[..., Any], controls: Mapping[str, Any]) -> dict[str, Control]:
    """The controls by argument name, labelled, after checking that ``draw`` takes exactly these."""
    if not callable(draw):
        raise ValueError(f"draw must be a function that draws, got {draw!r}")
    if not 1 <= len(controls) <= 2:
        raise ValueError(f"explore takes one or two controls, got {len(controls)}: {list(controls)}")
    try:
        inspect.signature(draw).bind(**controls)
    except TypeError as error:
        names = ", ".join(controls)
        raise ValueError(f"draw must take the controls ({names}) and need nothing else: {error}") from error
    return {name: _labelled(name, given) for name, given in controls.items()}


def _labelled(name, given):
    if not isinstance(given, Control):
        try:
            given = control(given)
        except ValueError as error:
            raise ValueError(f"control {name!r}: {error}") from error
    words = name.replace("_", " ")
    return given if given.label else given._replace(label=words[:1].upper() + words[1:])


def phrase(controls: Mapping[str, Control], position: tuple[int, ...]) -> str:
    """The values at a position in words: "number of flips = 10 and prior strength = 2"."""

    def in_sentence(label):
        is_word = len(label) < 2 or label[1].islower() or label[1] == " "
        return label[0].lower() + label[1:] if is_word else label

    return " and ".join(
        f"{in_sentence(each.label)} = {each.texts[here]}"
        for each, here in zip(controls.values(), position, strict=True)
    )
