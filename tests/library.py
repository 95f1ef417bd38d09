"""What there is in ``bdl_lib``, found by looking, so that a new module or function is tested from its first day."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import bdl_lib

ROOT = Path(bdl_lib.__file__).parent
CHAPTERS = ("bayes", "networks", "evidence", "mcmc", "vi", "scores", "dropout", "uncertainty", "vae", "parallel")
SHARED = ("check", "data", "plots", "widgets")


def module_names() -> list[str]:
    """Every module below ``bdl_lib``, without that prefix: "bayes", "bayes.discrete", ... Packages come first."""
    return [info.name.removeprefix("bdl_lib.") for info in pkgutil.walk_packages([str(ROOT)], "bdl_lib.")]


def chapter_modules() -> list[str]:
    """The modules that teach, without their private parts ("bayes._checks")."""
    return [name for name in module_names() if name.split(".")[0] not in SHARED and "._" not in f".{name}"]


def public_objects(names: list[str]) -> Iterator[tuple[str, object]]:
    """Functions and classes that these modules list in ``__all__``, each once, under its shortest name."""
    seen = set()
    for name in sorted(names, key=lambda name: name.count(".")):
        module = importlib.import_module(f"bdl_lib.{name}")
        for attribute in module.__all__:
            found = getattr(module, attribute)
            if (inspect.isfunction(found) or inspect.isclass(found)) and id(found) not in seen:
                seen.add(id(found))
                yield f"{name}.{attribute}", found


def is_record(found: object) -> bool:
    """Whether this is a class that only says what there is: a NamedTuple, a Protocol or a warning."""
    is_class, is_named_tuple = inspect.isclass(found), hasattr(found, "_fields")
    return is_class and (is_named_tuple or getattr(found, "_is_protocol", False) or issubclass(found, Warning))
