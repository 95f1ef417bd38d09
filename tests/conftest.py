"""What every test shares: the run-time check of types and shapes, and the devices.

Bad input must give the library's own ``ValueError``, though the check of shapes would notice it first. So a call that
breaks its annotations is made once more, unchecked: what stands is the ``ValueError``, or else the broken annotation.
"""

import contextlib
import functools
import inspect
import sys

import jaxtyping
import pytest
import sim_device
import torch

torch.set_num_threads(1)

# ---- Types and shapes: every function of bdl_lib is checked against its annotations (jaxtyping, beartype)

_jaxtyped = jaxtyping.jaxtyped


def _checked(function, typechecker):
    checked = _jaxtyped(function, typechecker=typechecker)
    if not inspect.isfunction(function):
        return checked

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return checked(*args, **kwargs)
        except jaxtyping.TypeCheckError:
            try:
                function(*args, **kwargs)
            except ValueError:
                raise
            except Exception:
                pass
            raise

    return call


if "bdl_lib" in sys.modules:
    raise RuntimeError("bdl_lib was imported before tests/conftest.py: its annotations would go unchecked")
jaxtyping.jaxtyped = lambda *, typechecker: functools.partial(_checked, typechecker=typechecker)
_accept_int_for_float = "beartype.BeartypeConf(is_pep484_tower=True)"
jaxtyping.install_import_hook("bdl_lib", f"beartype.beartype(conf={_accept_int_for_float})")

# ---- Devices

DEVICES = [
    sim_device.DEVICE,
    *([torch.device("cuda", 0)] if torch.cuda.is_available() else []),
    *([torch.device("mps", 0)] if torch.backends.mps.is_available() else []),
]


@pytest.fixture(params=DEVICES, ids=str)
def device(request):
    """Every accelerator there is: the simulated one always, CUDA and MPS where present."""
    with sim_device.GeneratorCheck() if request.param == sim_device.DEVICE else contextlib.nullcontext():
        yield request.param
