"""Execute chapters in place, and store them in the one form that the repository keeps.

    python tools/refresh_notebooks.py [book/01-bayes.ipynb ...]       every chapter, if none is named
    python tools/refresh_notebooks.py --check [book/01-bayes.ipynb ...]    list those not in this form; runs nothing

The form: format 4.5, ids c01, c02, ..., cell metadata `tags` and `mystnb` alone, every code cell with its execution
count, outputs only in cells tagged `keep_output`, indent 1. A chapter with a failing cell is left as it was.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
CELL_METADATA = {"tags", "mystnb"}
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
TIMEOUT = 120  # seconds a cell


def normal_form(notebook):
    """A copy of the notebook as the repository keeps it; the counts say that the cells ran once, in order."""
    code_count = 0
    cells = []
    for number, cell in enumerate(notebook.cells, 1):
        kept = {key: cell[key] for key in ("cell_type", "attachments") if key in cell}
        kept |= {"id": f"c{number:02d}", "source": cell.source.strip("\n")}
        kept["metadata"] = {key: value for key, value in cell.metadata.items() if key in CELL_METADATA}
        if cell.cell_type == "code":
            code_count += 1
            is_kept = "keep_output" in cell.metadata.get("tags", [])
            kept["outputs"] = [_bare_output(output, code_count) for output in cell.outputs] if is_kept else []
            kept["execution_count"] = code_count
        cells.append(kept)
    return nbformat.from_dict({"nbformat": 4, "nbformat_minor": 5, "metadata": NOTEBOOK_METADATA, "cells": cells})


def _bare_output(output, count):
    bare = {key: value for key, value in output.items() if key != "transient"}
    if "metadata" in bare:
        bare["metadata"] = {}
    if "execution_count" in bare:
        bare["execution_count"] = count
    return bare


def to_text(notebook):
    """The file's text for a notebook."""
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT, indent=1).rstrip("\n") + "\n"


def is_normal(path):
    """Whether the file is, byte for byte, what this tool would write without executing it."""
    text = path.read_bytes().decode()
    return text == to_text(normal_form(nbformat.reads(text, as_version=4)))


def execute(notebook, folder):
    """Run every cell in a fresh kernel, in the chapter's own folder, as a reader would."""
    environment = os.environ | {"BDL_EXPLORE": "still"}  # the players' frames are not kept
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        resources=resources,
        coalesce_streams=True,
        record_timing=False,
    )
    client.execute(env=environment)


def refresh(path):
    """Execute one chapter and replace its file; where a cell fails, the file stays as it is."""
    notebook = normal_form(nbformat.read(path, as_version=4))
    try:
        execute(notebook, path.parent)
    except CellExecutionError as problem:
        failed = next(c.id for c in notebook.cells if any(o.output_type == "error" for o in c.get("outputs", [])))
        raise RuntimeError(f"cell {failed} failed, the file is as it was\n{problem}") from problem
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(to_text(normal_form(notebook)).encode())
    shutil.copymode(path, partial)
    partial.replace(path)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="chapters (default: all)")
    parser.add_argument("--check", action="store_true", help="list those not in the kept form; runs nothing")
    options = parser.parse_args(arguments)
    paths = options.paths or sorted((ROOT / "book").glob("[0-9][0-9]-*.ipynb"))
    problems = []
    for path in paths:
        try:
            if not options.check:
                refresh(path)
                print(f"{path}: refreshed")
            elif not is_normal(path):
                problems.append(f"{path}: not in the kept form, run tools/refresh_notebooks.py")
        except (RuntimeError, TimeoutError) as problem:  # a failing cell, a dead kernel, a cell that takes too long
            problems.append(f"{path}: {problem}")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
