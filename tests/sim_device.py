r"""A simulated accelerator: a torch device called ``sim`` that computes on the processor.

Importing this file registers the device for the whole process. ``torch.zeros(3, device="sim")`` is then a tensor that
reports ``sim:0`` and is as strict as a CUDA tensor about the company it keeps::

    x = torch.randn(100, generator=torch.Generator("sim").manual_seed(0), device="sim")
    x + torch.ones(100)  # RuntimeError: Expected all tensors to be on the same device
    with sim_device.count() as counts:
        x.sum().item()
    counts  # Counts(host_syncs=1, copies_to_host=0, kernel_launches=1)

What it shows, exactly and without noise:

- a tensor on the wrong device: made on the CPU by mistake, or brought back to it; a generator on the wrong device;
- how often the host waits for the device (``host_syncs``): ``item``, ``tolist``, a Python branch on a tensor; a copy
  between host and device (the one to the device is free when ``non_blocking``); results whose shape depends on values
  (``nonzero``, boolean-mask indexing, ``unique``); the error checks of ``linalg`` (``cholesky``, not ``cholesky_ex``);
- how many tensors come back to the host whole (``copies_to_host``), as in ``x.cpu()``;
- how many operations are sent to the device (``kernel_launches``); views, allocations and transfers are not counted.

What it cannot show:

- speed, memory, the rounding of a real device, or operations that a real device lacks (MPS has no float64);
- kernels inside an operation: each operation that torch dispatches counts one, a real device may need several;
- misuse of streams or of non-blocking copies; autocast, ``torch.compile``, ``torch.utils.checkpoint`` (an error in a
  saved-tensor hook ends the process), sparse and quantised tensors.

Two liberties: its generator gives the CPU's stream, so that a test can compare random results number by number (CUDA
and MPS have their own streams), and a factory without a generator draws from the CPU's global one.

How it works: `SimTensor` holds a CPU tensor; ``__torch_dispatch__`` unwraps, runs the operation on the CPU and wraps
the result. Torch builds every factory function on the few kernels registered under "Factories" below.
"""

import contextlib
import dataclasses
import functools
import weakref
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

__all__ = ["DEVICE", "Counts", "GeneratorCheck", "SimTensor", "count"]

_setup_privateuseone_for_python_backend("sim")
DEVICE = torch.device("sim", 0)
aten = torch.ops.aten


# ---- Counting


@dataclasses.dataclass
class Counts:
    """What the device saw inside a ``with count()`` block."""

    host_syncs: int = 0
    copies_to_host: int = 0
    kernel_launches: int = 0


_open_counts: list[Counts] = []


@contextlib.contextmanager
def count():
    """Count host synchronisations and kernel launches inside the block. Blocks can be nested."""
    _open_counts.append(counts := Counts())
    try:
        yield counts
    finally:
        _open_counts[:] = [other for other in _open_counts if other is not counts]


def _record(**seen: int) -> None:
    for counts in _open_counts:
        for name, number in seen.items():
            setattr(counts, name, getattr(counts, name) + number)


def _record_transfer(*, to: torch.device, non_blocking: bool) -> None:
    to_host = to.type != "sim"
    _record(host_syncs=int(to_host or not non_blocking), copies_to_host=int(to_host))


# ---- What is known of an operation before it runs

INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
LINALG_ERROR_CHECKS = {aten._linalg_check_errors, aten._linalg_eigh, aten._linalg_svd, aten.linalg_eig}
WAITING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}  # item, nonzero, unique, ...
CPU_SCALAR_ALLOWED = INDEXING | {aten.fill_, aten.index_fill, aten.index_fill_, aten.masked_fill, aten.masked_fill_}
NO_KERNEL = {
    aten._has_compatible_shallow_copy_type,
    aten._local_scalar_dense,
    aten._unsafe_view,
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.lift_fresh,
    aten.new_empty,
    aten.new_empty_strided,
    aten.resize_,
    aten.set_,
}


class Traits(NamedTuple):
    """The part of an operation's conduct that does not depend on its arguments."""

    waits: bool  # the host needs the result
    is_free: bool  # no kernel
    takes_cpu_scalar: bool  # a CPU tensor of zero dimensions may join
    written: frozenset[int | str]  # positions and names of the arguments that are written to


@functools.cache
def _traits(func) -> Traits:
    packet, arguments = func.overloadpacket, enumerate(func._schema.arguments)
    written = [key for i, a in arguments if a.alias_info is not None and a.alias_info.is_write for key in (i, a.name)]
    return Traits(
        waits=packet in LINALG_ERROR_CHECKS or not WAITING_TAGS.isdisjoint(func.tags),
        is_free=packet in NO_KERNEL or func.is_view,
        takes_cpu_scalar=(
            torch.Tag.pointwise in func.tags or packet in CPU_SCALAR_ALLOWED or packet.__name__.startswith("_foreach")
        ),
        written=frozenset(written),
    )


def _waits(func, args, kwargs) -> bool:
    """Whether CUDA makes the host wait in this operation (transfers apart)."""
    packet = func.overloadpacket
    if packet in INDEXING:
        indices = [index for index in args[1] if index is not None]
        # CUDA turns `x[mask] = number` into masked_fill, which does not wait. A number comes here as a tensor, so that
        # `x[mask] = tensor_of_one_number`, which waits there, passes here too.
        is_fill = packet is not aten.index and len(indices) == 1 and args[2].numel() == 1
        return any((_is_mask(index) and not is_fill) or not _on_sim(index) for index in indices)
    if packet is aten.repeat_interleave:
        return kwargs.get("output_size") is None
    return _traits(func).waits or kwargs.get("check_errors", False)


def _is_mask(index) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


# ---- Which devices may meet


def _check_devices(func, args, kwargs) -> None:
    """Raise where CUDA would: a CPU tensor may join as an index, or as a scalar of a pointwise operation."""
    packet, traits = func.overloadpacket, _traits(func)
    if packet in {aten.copy_, aten._foreach_copy_}:
        return
    named_arguments = [*enumerate(args), *kwargs.items()]
    if packet in INDEXING:
        del named_arguments[1]
    for name, argument in named_arguments:
        for tensor in _tensors(argument):
            if _on_sim(tensor) or (tensor.dim() == 0 and traits.takes_cpu_scalar and name not in traits.written):
                continue
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{DEVICE} and {tensor.device}! ({func}, argument {name}, shape {list(tensor.shape)})"
            )


def _check_generator(generator, *, device: str) -> None:
    if generator is None:
        return
    home = "sim" if generator._cdata in _sim_generators else generator.device.type
    if home != device:
        raise RuntimeError(f"Expected a '{device}' device type for generator but found '{home}'")


# ---- The tensor


def _on_sim(x) -> bool:
    return isinstance(x, SimTensor)


def _map(change, tree):
    """Apply ``change`` to the tensors of an argument list, which torch nests in lists and tuples only."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    return type(tree)(_map(change, x) for x in tree) if type(tree) in (list, tuple) else tree


def _tensors(tree) -> list[torch.Tensor]:
    found = []
    _map(found.append, tree)
    return found


def _unwrap(tree):
    return _map(lambda x: x._on_cpu if _on_sim(x) else x, tree)


def _wrap(func, result, inputs):
    """Wrap what an operation returned. What it wrote to keeps its wrapper, as torch expects."""
    wrapper_of = {id(x._on_cpu): x for x in inputs}
    if _traits(func).written:
        for x in inputs:  # it may have been resized or transposed in place
            if x.shape != x._on_cpu.shape or x.stride() != x._on_cpu.stride():
                torch.Tensor.data.__set__(x, SimTensor(x._on_cpu))
    return _map(lambda x: wrapper_of[id(x)] if id(x) in wrapper_of else SimTensor(x), result)


class SimTensor(torch.Tensor):
    """A tensor that reports ``sim:0``; its numbers lie in the CPU tensor ``_on_cpu``."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_cpu):
        layout = dict(strides=on_cpu.stride(), storage_offset=on_cpu.storage_offset(), dtype=on_cpu.dtype)
        self = torch.Tensor._make_wrapper_subclass(cls, on_cpu.shape, **layout, device=DEVICE)
        self._on_cpu = on_cpu
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        _check_devices(func, args, kwargs)
        _check_generator(kwargs.get("generator"), device="sim")
        is_copy = func.overloadpacket is aten.copy_
        source = args[1].device if is_copy else DEVICE
        target = args[0].device if is_copy else kwargs.get("device") or DEVICE
        stays = target.type == "sim"
        if source.type != target.type and (is_copy or func.overloadpacket is aten._to_copy):
            _record_transfer(to=target, non_blocking=kwargs.get("non_blocking", len(args) > 2 and args[2]))
        else:
            is_launch = stays and not _traits(func).is_free
            _record(host_syncs=int(_waits(func, args, kwargs)), kernel_launches=int(is_launch))

        if stays and "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        result = func(*_unwrap(args), **{name: _unwrap(value) for name, value in kwargs.items()})
        inputs = [x for x in _tensors([*args, *kwargs.values()]) if _on_sim(x)]
        return _wrap(func, result, inputs) if stays else result

    def __repr__(self):
        return f"{self._on_cpu!r}.to('sim')"

    def __format__(self, spec):
        return format(self.item(), spec) if self.dim() == 0 else str(self)

    def __reduce_ex__(self, protocol):
        rebuild = torch._utils._rebuild_device_tensor_from_cpu_tensor
        return rebuild, (self.cpu(), self.dtype, str(DEVICE), self.requires_grad)

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *, force=False):
        if not force:
            raise TypeError("can't convert sim:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return self.detach().cpu().numpy()

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, new):
        torch.Tensor.data.__set__(self, new)
        self._on_cpu = new._on_cpu


# ---- Factories: torch builds zeros, randn, arange, tensor, to, ... on these

_library = torch.library.Library("aten", "IMPL")


def _without_device(factory):
    def on_sim(*args, device=None, pin_memory=None, **kwargs):
        return SimTensor(factory(*args, **kwargs))

    return on_sim


for _op in [aten.empty.memory_format, aten.empty_strided.default, aten.tril_indices.default, aten.triu_indices.default]:
    _library.impl(_op, _without_device(_op), "PrivateUse1")
_library.impl(aten._efficientzerotensor.default, _without_device(aten.zeros.default), "PrivateUse1")  # for forward mode


def _copy_from(source, target, non_blocking=False):
    """Copy between devices where torch skips ``__torch_dispatch__``: ``torch.tensor(..., device="sim")``."""
    _record_transfer(to=target.device, non_blocking=non_blocking)
    _unwrap(target).copy_(_unwrap(source))
    return target


_library.impl("_copy_from", _copy_from, "PrivateUse1")


# ---- Generators: torch's hooks for a device written in Python have none, so `torch.Generator` learns the device here

_TorchGenerator = torch.Generator
_sim_generators = weakref.WeakValueDictionary()  # by address: an operation sees a generator without its Python class


class _GeneratorType(type(_TorchGenerator)):
    def __instancecheck__(cls, instance):
        return isinstance(instance, _TorchGenerator)


class Generator(_TorchGenerator, metaclass=_GeneratorType):
    """``torch.Generator`` that also takes ``device="sim"``, where it gives the CPU's stream."""

    def __new__(cls, device="cpu"):
        if torch.device(device).type != "sim":
            return _TorchGenerator(device)
        self = super().__new__(cls, "cpu")
        _sim_generators[self._cdata] = self
        return self

    @property
    def device(self):
        return DEVICE

    def clone_state(self):
        return Generator(DEVICE).set_state(self.get_state())


torch.Generator = Generator


class GeneratorCheck(TorchDispatchMode):
    """In this context a generator of the device raises on the CPU, where torch would take it for one of its own."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None:
            is_on_sim = (kwargs.get("device") or torch.device("cpu")).type == "sim"
            if not is_on_sim and not any(_on_sim(x) for x in _tensors(args)):
                _check_generator(kwargs["generator"], device="cpu")
        return func(*args, **kwargs)
