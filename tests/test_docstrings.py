"""Every public name explains itself, and the book section that it names exists."""

import ast
import importlib
import inspect
import json
import re
import textwrap
from pathlib import Path

import library
import pytest

BOOK = library.ROOT.parent / "book"
LABEL = re.compile(r"^\(((?:sec|ch)-[\w-]+)\)=\s*$", re.MULTILINE)
CHAPTER = re.compile(r"Chapter: (book/\d\d-[\w-]+\.ipynb)")


def labels_in(folder: Path) -> set[str]:
    """Labels that the chapters in a folder set in their text: ``(sec-coin)=`` on a line of its own."""
    labels = set()
    for path in folder.glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                labels |= set(LABEL.findall("".join(cell["source"])))
    return labels


def sections(docstring: str) -> dict[str, list[str]]:
    """Lines below each Google-style heading."""
    found, heading = {}, None
    for line in docstring.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Yields):", line):
            heading = found.setdefault(line[:-1], [])
        elif line and not line.startswith(" "):
            heading = None
        elif heading is not None:
            heading.append(line)
    return found


def documented_arguments(lines: list[str]) -> set[str]:
    """Names at the start of the entries of an Args section."""
    return {match[1] for line in lines if (match := re.match(r"    \*{0,2}(\w+)(?: \([^)]*\))?:", line))}


def refuses(function) -> bool:
    """Whether the body raises ``ValueError``, or calls something named ``check...`` or ``require...``."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None]
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [ast.unparse(node.func if isinstance(node, ast.Call) else node) for node in raised]
    return "ValueError" in names or any(re.match(r"_?(check|require)", ast.unparse(node)) for node in called)


def faults(found, labels: set[str]) -> list[str]:
    """What is wrong with the docstring of a public function or class of a chapter module."""
    docstring = inspect.getdoc(found) if found.__doc__ else None
    if not docstring:
        return ["no docstring"]
    wrong = []
    last = docstring.splitlines()[-1]
    if not (match := re.fullmatch(r"Book: ((?:sec|ch)-[\w-]+)", last)):
        wrong.append(f"last line is not 'Book: sec-...', but {last!r}")
    elif match[1] not in labels:
        wrong.append(f"no chapter has the label {match[1]}")
    return wrong if library.is_record(found) else wrong + call_faults(found, sections(docstring))


def call_faults(found, section: dict[str, list[str]]) -> list[str]:
    """What is missing about how to call a function, or how to make an object of a class."""
    wrong = []
    body = found.__init__ if inspect.isclass(found) else found
    arguments = {name for name in inspect.signature(body).parameters if name != "self"}
    missing = arguments - documented_arguments(section.get("Args", []))
    if missing:
        wrong.append(f"not in Args: {sorted(missing)}")
    if extra := documented_arguments(section.get("Args", [])) - arguments:
        wrong.append(f"in Args, but no argument: {sorted(extra)}")
    returns_nothing = inspect.isclass(found) or inspect.signature(body).return_annotation in (None, "None")
    if not returns_nothing and not section.get("Returns", section.get("Yields")):
        wrong.append("no Returns section")
    if refuses(body) and not section.get("Raises"):
        wrong.append("refuses input, but has no Raises section")
    return wrong


# ---- The library

PUBLIC = dict(library.public_objects(library.chapter_modules()))
SHARED = dict(library.public_objects([name for name in library.module_names() if name in library.SHARED]))


@pytest.fixture(scope="module")
def labels():
    return labels_in(BOOK)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_documented(name, labels):
    assert faults(PUBLIC[name], labels) == []


@pytest.mark.parametrize("name", SHARED)
def test_shared_name_has_a_docstring(name):
    assert SHARED[name].__doc__


@pytest.mark.parametrize("name", library.chapter_modules())
def test_module_names_its_chapter_and_what_it_offers(name):
    module = importlib.import_module(f"bdl_lib.{name}")
    chapter = CHAPTER.fullmatch(module.__doc__.rstrip().splitlines()[-1])
    assert chapter, "the module docstring must end in 'Chapter: book/NN-topic.ipynb'"
    assert (BOOK.parent / chapter[1]).exists(), f"no such chapter: {chapter[1]}"
    assert sorted(module.__all__) == sorted(set(module.__all__))


# ---- The rules themselves


def good(low, high, *, step_size=1.0):
    r"""Return something.

    Args:
        low: one end.
        high (float): the other.
        step_size: how far, positive:
            in nats.

    Returns:
        A number.

    Raises:
        ValueError: if ``step_size`` is not positive.

    Source: us (2026).
    Book: sec-good
    """
    if not step_size > 0:
        raise ValueError("step_size must be positive")


def changed(old, new):
    """The function ``good`` with another docstring."""
    assert old in good.__doc__

    def function(low, high, *, step_size=1.0):
        if not step_size > 0:
            raise ValueError("step_size must be positive")

    function.__doc__ = good.__doc__.replace(old, new)
    return function


def test_good_docstring_passes():
    assert faults(good, {"sec-good"}) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("    Book: sec-good\n", "", "last line"),
        ("Book: sec-good", "Book: sec-good, and more", "last line"),
        ("Book: sec-good", "Book: sec-other", "no chapter has the label sec-other"),
        ("low: one", "lowest: one", r"not in Args: \['low'\]"),
        ("        high (float): the other.\n", "", r"not in Args: \['high'\]"),
        ("step_size: how", "nothing: how", r"no argument: \['nothing'\]"),
        ("Returns:", "Gives:", "no Returns"),
        ("Raises:", "Beware:", "no Raises"),
        (good.__doc__, "", "no docstring"),
    ],
)
def test_bad_docstring_is_found(old, new, fault):
    assert re.search(fault, "; ".join(faults(changed(old, new), {"sec-good"})))


def test_labels_come_from_the_text_of_chapters(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["(ch-bayes)=\n", "# Bayes\n", "see (sec-not-here)= or {ref}`sec-no`\n"]},
        {"cell_type": "markdown", "source": "(sec-coin)=\n## A coin"},
        {"cell_type": "code", "source": ["(sec-code)=\n"]},
    ]
    (tmp_path / "01-bayes.ipynb").write_text(json.dumps({"cells": cells}))
    assert labels_in(tmp_path) == {"ch-bayes", "sec-coin"}
