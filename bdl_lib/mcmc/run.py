"""One loop for every sampler, the record of its draws, and how a run is stored and taken up again.

Chapter: book/04-mcmc.ipynb
"""

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from bdl_lib.evidence import Kernel
from bdl_lib.evidence._arviz import import_arviz
from bdl_lib.mcmc._checks import check_at_least

__all__ = ["Draws", "collect", "load_draws", "resume", "save_draws"]

_DAMAGES = (RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError, AttributeError, pickle.UnpicklingError)


class Draws(NamedTuple):
    """What a sampler gives: the draws, what was seen on the way, and what it takes to go on.

    ``info`` holds for each draw what its kernel reports, such as ``acceptance_rate``, ``is_divergent``,
    ``num_leapfrog_steps``, ``log_prob`` and ``energy`` (in nats); ``settings`` are the arguments of that kernel, as
    warm-up found them: ``mcmc.hmc(log_prob, **draws.settings)`` is the kernel once more.

    Book: sec-draws
    """

    position: Float[Tensor, "chains draws dim"]
    info: dict[str, Tensor]  # each [chains, draws]
    state: Any  # of the kernel, after the last draw
    settings: dict[str, Any]
    generator_state: UInt8[Tensor, " bytes"]  # after the last draw

    def to_arviz(self):
        """The draws as ArviZ wants them: ``position`` in the posterior, the info in the sample statistics.

        An ``InferenceData`` of ArviZ 0.x, or a ``DataTree`` of ArviZ 1.x.
        """
        arviz = import_arviz()
        names = {"is_divergent": "diverging", "num_leapfrog_steps": "n_steps", "log_prob": "lp"}
        groups = {
            "posterior": {"position": self.position.cpu().numpy()},
            "sample_stats": {names.get(name, name): value.cpu().numpy() for name, value in self.info.items()},
        }
        is_first_generation = int(arviz.__version__.split(".")[0]) < 1
        return arviz.from_dict(**groups) if is_first_generation else arviz.from_dict(groups)


def collect(
    kernel: Kernel, state: Any, *, num_samples: int, generator: torch.Generator, progress: bool = False
) -> Draws:
    r"""Run a kernel and keep every state: the one loop of this module.

    The draws go into one tensor that is allocated before the first step. Nothing in the loop waits for the device.

    Args:
        kernel: moves all chains at once.
        state: where the chains are, from ``kernel.init(position)`` or from an earlier run.
        num_samples: how many draws to keep of each chain, at least 1; every step gives one.
        generator: the source of randomness, on the device of the position; it is moved on.
        progress: whether to show a bar.

    Returns:
        A :class:`Draws` with ``position`` of shape [chains, num_samples, dim] and without ``settings``. In ``info`` is
        every field of the kernel's info: a tensor [chains], or one number that all chains share.

    Raises:
        ValueError: if ``num_samples`` is below 1.

    Book: sec-draws
    """
    check_at_least("num_samples", num_samples, 1)
    num_chains, dim = state.position.shape
    # Draws first, so that a step writes into one piece of memory; [chains, draws, dim] is a view of it.
    position, columns = state.position.new_empty(num_samples, num_chains, dim), {}
    for i, row in enumerate(show(position.unbind(), progress)):
        state, info = kernel.step(state, generator)
        row.copy_(state.position)
        for name, value in info._asdict().items():
            if i == 0:
                columns[name] = _column(value, num_samples, state.position)
            columns[name][i] = value
    by_chain = {name: column.mT for name, column in columns.items()}
    return Draws(position.transpose(0, 1), by_chain, state, {}, generator.get_state())


def resume(
    kernel: Kernel, draws: Draws, *, num_samples: int, generator: torch.Generator, progress: bool = False
) -> Draws:
    r"""Go on where a run stopped: the draws that it would have made next.

    Args:
        kernel: as it was in the first run, say ``mcmc.hmc(log_prob, **draws.settings)``.
        draws: the end of the first run, from the sampler or from :func:`load_draws`.
        num_samples: how many more draws of each chain, at least 1.
        generator: on the device of the draws; it is set to where the first run left its own.
        progress: whether to show a bar.

    Returns:
        The new draws alone. On the same machine they equal, bit by bit, those of a run that never stopped.

    Raises:
        ValueError: if ``num_samples`` is below 1.

    Book: sec-draws
    """
    generator.set_state(draws.generator_state)
    more = collect(kernel, draws.state, num_samples=num_samples, generator=generator, progress=progress)
    return more._replace(settings=draws.settings)


def save_draws(draws: Draws, path: str | os.PathLike) -> None:
    r"""Store draws in a file, whole or not at all: a file beside it is written first, then renamed.

    Args:
        draws: what to store, the state and the settings included.
        path: of the file; one that exists is replaced.

    Book: sec-draws
    """
    path = Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", delete=False) as file:
        try:
            torch.save(draws._asdict(), file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def load_draws(path: str | os.PathLike, *, device: torch.device | str | None = None) -> Draws:
    r"""Read draws from a file of :func:`save_draws`. Only tensors, numbers and records of this module are read.

    Args:
        path: of the file.
        device: where the tensors go; where they were, if not given.

    Returns:
        The :class:`Draws`, ready for :func:`resume`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or not one of :func:`save_draws`.

    Book: sec-draws
    """
    from bdl_lib import mcmc

    records = [found for found in vars(mcmc).values() if isinstance(found, type) and hasattr(found, "_fields")]
    try:
        with torch.serialization.safe_globals(records):
            fields = torch.load(path, weights_only=True, map_location=device)
        return Draws(**fields | {"generator_state": fields["generator_state"].cpu()})
    except FileNotFoundError:
        raise
    except _DAMAGES as error:
        raise ValueError(f"path must be a whole file written by save_draws, {path} is not: {error}") from error


def show(steps, progress: bool):
    """The steps of a loop, with a progress bar around them if wanted."""
    if not progress:
        return steps
    from tqdm.auto import tqdm

    return tqdm(steps)


def _column(value, num_samples, position):
    """Memory for one field of the info, [draws, chains]."""
    if not isinstance(value, Tensor):
        dtype = position.dtype if isinstance(value, float) else torch.as_tensor(value).dtype
        return torch.empty(num_samples, len(position), dtype=dtype, device=position.device)
    return value.new_empty(num_samples, len(position))
