r"""The state of a training as one file: whole or absent, and only for the run that it came from.

Chapter: book/10-vae.ipynb
"""

import copy
import hashlib
import os
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bdl_lib.vae.model import Vae

__all__ = ["Progress", "fingerprint", "resume", "save"]

_PARTS = ("architecture", "images", "settings")
_DAMAGES = (RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError, AttributeError, pickle.UnpicklingError)


class Progress(NamedTuple):
    """How far a training is.

    Book: sec-vae-training
    """

    seed: int  # of the validation's noise
    rows: tuple[Tensor, ...]  # reconstruction, divergence, bound and validation bound of each epoch
    best_epoch: int  # −1 before the first
    best_bound: float  # of the validation images
    best_state: dict | None  # the weights of the best epoch; None where the last ones count

    @classmethod
    def start(cls, generator: torch.Generator) -> "Progress":
        """Before the first epoch."""
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        return cls(int(seed), (), -1, -float("inf"), None)

    def add(self, row: Tensor, model: nn.Module, keeps_best: bool) -> "Progress":
        """One epoch further."""
        rows, bound = (*self.rows, row), row[3].item()
        if not keeps_best or not bound > self.best_bound:
            return self._replace(rows=rows)
        return Progress(self.seed, rows, len(rows) - 1, bound, copy.deepcopy(model.state_dict()))


def fingerprint(model: Vae, data: list[Tensor | None], settings: list) -> dict[str, str]:
    """What a file must agree with, part by part: architecture, images, settings."""
    shapes = {name: (str(value.dtype), list(value.shape)) for name, value in model.state_dict().items()}
    likelihood = model.likelihood.name, model.likelihood.has_shared_scale, model.likelihood.settings
    architecture = _digest(model, model.latent_dim, model.condition_dim, shapes, likelihood)
    return dict(zip(_PARTS, (architecture, _digest(*data), _digest(*settings)), strict=True))


def save(path, problem: dict, model: nn.Module, optimizer, generator: torch.Generator, done: Progress) -> None:
    """Write the state, first under another name: the file has all of the new one or all of the old one."""
    state = {"problem": problem, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"generator": generator.get_state(), "progress": done._asdict()}
    state["digest"] = _digest(*tree_leaves(state))
    unfinished = Path(f"{path}.{os.getpid()}.tmp")
    try:
        torch.save(state, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def resume(path, problem: dict, model: nn.Module, optimizer, generator, num_epochs: int) -> Progress | None:
    """Bring model, optimiser and generator to where the file was written; None if there is no file."""
    if not Path(path).exists():
        return None
    saved = _load(path)
    for part in _PARTS:
        if saved["problem"].get(part) != problem[part]:
            raise ValueError(f"checkpoint_path must be a file of the same {part}, {path} is of other {part}")
    done = Progress(**saved["progress"])
    if len(done.rows) > num_epochs:
        raise ValueError(f"num_epochs must be at least the checkpoint's {len(done.rows)}, got {num_epochs}")
    device = next(model.parameters()).device
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    generator.set_state(saved["generator"])
    return done._replace(rows=tuple(row.to(device) for row in done.rows))


def _load(path) -> dict:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved.pop("digest") != _digest(*tree_leaves(saved)):
            raise ValueError("its content has changed since it was written")
    except _DAMAGES as error:
        raise ValueError(f"checkpoint_path must be a whole file written by fit, {path} is not: {error}") from error
    return saved


def _digest(*values) -> str:
    """SHA-256 of text, numbers and the exact content of tensors."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(str((value.dtype, list(value.shape)) if isinstance(value, Tensor) else value).encode() + b";")
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
