"""What the chapters' checked numbers accept and refuse, and what travels from a cell into the prose."""

import math

import pytest
import torch

from bdl_lib import check

MINUS = "\N{MINUS SIGN}"


def glued(monkeypatch, value):
    """What the prose gets."""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **settings: shown.append((data, settings)))
    check.glue("name", value)
    [(data, settings)] = shown
    assert settings["metadata"]["scrapbook"]["name"] == "name"
    return data["application/papermill.record/text/plain"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("-3.5 ± 0.1", f"'{MINUS}3.5 ± 0.1'"),
        ("from -3 to -.5", f"'from {MINUS}3 to {MINUS}.5'"),
        ("1e-06", "'1e-06'"),
        ("784-256-10", "'784-256-10'"),
        ("mean-field", "'mean-field'"),
        (-2.5, "-2.5"),
        (torch.tensor(-2), "-2"),
    ],
)
def test_glue_writes_a_minus_sign_before_numbers_alone(monkeypatch, value, expected):
    assert glued(monkeypatch, value) == expected


def test_close_prints_the_expected_value(capsys):
    check.close("half", torch.tensor([0.51, 0.49]), 0.5, atol=0.02)
    assert capsys.readouterr().out.startswith("✓ half")


@pytest.mark.parametrize("value", [0.53, math.nan, math.inf])
def test_close_refuses_what_is_not_close(value):
    with pytest.raises(AssertionError, match="half"):
        check.close("half", torch.tensor([0.5, value]), 0.5, atol=0.02)
