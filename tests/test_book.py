"""The static rules of the book. They apply to every chapter there is; nothing here names one.

A rule is a function of a chapter that returns a list of problems. Every rule is shown to notice a fault: `GOOD`, at the
end, is a small chapter that keeps all of them, and `FAULTS` says what to change in it so that one is broken.
"""

import ast
import contextlib
import io
import itertools
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import NamedTuple

import matplotlib
import nbformat
import pytest
import torch
import yaml
from pybtex.database import parse_string

import bdl_lib
from tools import refresh_notebooks, set_repository

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
PATHS = sorted(BOOK.glob("[0-9][0-9]-*.ipynb"))
PAGES = sorted(path for path in BOOK.rglob("*.md") if "_static" not in path.parts)

FACTS = ["By the end you can", "Needs", "Library file", "Runs in"]
CLOSING = ["Where it breaks", "Summary", "Exercises", "Further reading"]
MAX_LINES, MAX_MEDIAN_LINES, MIN_ALT = 15, 5, 40
BANNED = r"\b(?:clearly|obviously|simply|it can be shown)\b|(?:^|[.?] )Note that\b"
OUTSIDE_PATH = r"""(?:^|[\s"'`(=])(?:/(?:home|tmp|srv|root|usr|opt|mnt|content|Users)/|~/|[A-Za-z]:\\)"""
NETWORK = r"https?://|\b(?:urlopen|urlretrieve|requests|socket|wget|curl|fetch_\w+|\w*download\w*)\b"
CODE_DIRECTIVES = {"math", "code", "code-block", "code-cell", "eval-rst", "mermaid"}


# ---- a chapter, taken apart ------------------------------------------------------------------------------------------


class Chapter(NamedTuple):
    name: str  # 04-mcmc
    cells: list

    @property
    def number(self):
        return int(self.name[:2])

    @property
    def topic(self):
        return self.name[3:]

    @property
    def code(self):
        return [cell for cell in self.cells if cell.cell_type == "code"]

    @property
    def text(self):
        return "\n\n".join(cell.source for cell in self.cells if cell.cell_type == "markdown")


def read(path):
    return Chapter(path.stem, nbformat.read(path, as_version=4).cells)


def tags(cell):
    return set(cell.metadata.get("tags", []))


def figure(cell):
    return cell.metadata.get("mystnb", {}).get("figure", {})


def without_code(text):
    """Text without code, maths and directive options; the body of every other directive stays."""
    kept, fences = [], []  # open fences, innermost last: (marker, holds code)
    for line in text.splitlines():
        fence = re.match(r"\s*(`{3,}|~{3,}|:{3,})\s*(?:\{([\w:-]+)\})?(.*)", line)
        in_code = bool(fences) and fences[-1][1]
        if fence and fences and fence[1].startswith(fences[-1][0]) and not (fence[2] or fence[3].strip()):
            fences.pop()
        elif fence and not in_code:
            fences.append((fence[1], fence[2] is None or fence[2] in CODE_DIRECTIVES))
            kept.append(fence[3] if fence[2] and not fences[-1][1] else "")
        elif not in_code and not (fences and re.match(r"\s*:[\w-]+:", line)):
            kept.append(line)
    maths = r"(?s)\$\$.*?\$\$|\\begin\{(\w+\*?)\}.*?\\end\{\1\}"
    return re.sub(r"(`+).+?\1|(?<!\\)\$[^$]+?(?<!\\)\$", " ", re.sub(maths, " ", "\n".join(kept)))


class Heading(NamedTuple):
    level: int
    title: str
    label: str


def headings(chapter):
    found = re.findall(r"(?m)^(?:\(([\w-]+)\)=\n)?(#+) (.+)$", without_code(chapter.text))
    return [Heading(len(marks), title.strip(), label) for label, marks, title in found]


def section(chapter, title):
    """The text and the code cells from the heading `## title` to the next one."""
    text, code, here = [], [], ""
    for cell in chapter.cells:
        if cell.cell_type == "code":
            code += [cell] * (here == title)
            continue
        for i, part in enumerate(re.split(r"(?m)^## (.+)$", cell.source)):
            here = part.strip() if i % 2 else here
            text += [part] * (here == title and not i % 2)
    return "\n\n".join(text), code


class Gate(NamedTuple):
    """An exercise or a solution: what stands between its start and its end."""

    kind: str
    argument: str
    options: dict
    text: str
    code: list


def gates(chapter):
    """The exercises and solutions in order, and what is wrong with how they open and close."""
    found, problems, is_open = [], [], False
    pattern = r"(?ms)^(?P<fence>`{3,}|:{3,})\{(exercise|solution)-(start|end)\}[ \t]*([^\n]*)\n(.*?)^(?P=fence)[ \t]*$"
    for cell in chapter.cells:
        if cell.cell_type == "code":
            if is_open:
                found[-1].code.append(cell)
            continue
        parts = re.split(pattern, cell.source)  # text, then (fence, kind, edge, argument, options, text) for each gate
        for i in range(0, len(parts), 6):
            if i:
                kind, edge, argument, options = parts[i - 4], parts[i - 3], parts[i - 2], parts[i - 1]
                if (edge == "start") == is_open or (edge == "end" and found[-1].kind != kind):
                    problems.append(f"{kind}-{edge} {argument} out of place")
                is_open = edge == "start"
                if is_open:
                    found.append(Gate(kind, argument, dict(re.findall(r"(?m)^:([\w-]+): *(.*)$", options)), "", []))
            if is_open:
                found[-1] = found[-1]._replace(text=found[-1].text + parts[i])
    return found, problems + ["an exercise or solution is not closed"] * is_open


# ---- the rules -------------------------------------------------------------------------------------------------------


def opening(chapter):
    pattern = rf"(?s)\A\(ch-{chapter.topic}\)=\n# [^\n]+\n\n(?P<question>[^#]*?\?.*?)\n\n(?P<facts>- \*\*.*)\Z"
    found = re.match(pattern, chapter.cells[0].source)
    if chapter.cells[0].cell_type != "markdown" or not found:
        return [f"cell 1 must be: (ch-{chapter.topic})=, title, the question, the list of facts"]
    problems = []
    if re.findall(r"(?m)^- \*\*(.+?)\*\*", found["facts"]) != FACTS:
        problems.append(f"cell 1 must list {FACTS}")
    if not re.search(r"(?m)^- \*\*Library file\*\*.*\{py:mod\}`bdl_lib\.\w+`", found["facts"]):
        problems.append("cell 1 must name the library file as {py:mod}`bdl_lib.…`")
    if not re.search(r"(?m)^- \*\*Runs in\*\* about \d+ s", found["facts"]):
        problems.append("cell 1 must say: Runs in about N s")
    return problems


def colab_cell(chapter):
    cell = chapter.cells[1]
    is_right = cell.cell_type == "code" and cell.source == set_repository.colab_cell(set_repository.read_setting())
    problems = [] if is_right else ["cell 2 must be the Colab cell of tools/set_repository.py"]
    return problems + ["cell 2 must have the tag remove-cell"] * ("remove-cell" not in tags(cell))


def import_cell(chapter):
    source = chapter.cells[2].source if chapter.cells[2].cell_type == "code" else ""
    seeded = rf"^generator = torch\.Generator\(.*\)\.manual_seed\({chapter.number}\)$"
    wanted = {"import torch": r"^import torch$", "plots.use_style()": r"^plots\.use_style\(\)$", "the seed": seeded}
    return [f"cell 3 lacks {what}" for what, pattern in wanted.items() if not re.search(pattern, source, re.MULTILINE)]


def sections(chapter):
    found = headings(chapter)
    problems = ["one title, in cell 1"] * ([h.level for h in found].count(1) != 1)
    for h, after in itertools.pairwise(found):
        problems += [f"{after.title!r} skips a level"] * (after.level > h.level + 1)
    for h in found:
        if h.level == 2 and h.title not in CLOSING and not h.label.startswith("sec-"):
            problems.append(f"{h.title!r} must have (sec-…)= on the line above")
    return problems


def closing(chapter):
    titles = [h.title for h in headings(chapter) if h.level == 2]
    if titles[-4:] != CLOSING:
        return [f"the last four sections must be {CLOSING}"]
    summary, _ = section(chapter, "Summary")
    _, code = section(chapter, "Where it breaks")
    problems = ["the summary must have five bullets"] * (len(re.findall(r"(?m)^[-*] ", summary)) != 5)
    problems += ["the summary must have an equation"] * (not re.search(r"\$.*=.*\$|\{math\}|\\begin\{", summary))
    return problems + ["'Where it breaks' must show it, in a code cell"] * (not code)


def cell_length(chapter):
    cells = [cell for cell in chapter.code if "remove-cell" not in tags(cell)]
    lengths = [len(re.findall(r"(?m)^\s*[^#\s]", cell.source)) for cell in cells]
    problems = [
        f"{c.id} has {n} lines, more than {MAX_LINES}" for c, n in zip(cells, lengths, strict=True) if n > MAX_LINES
    ]
    return problems + [f"the median cell has more than {MAX_MEDIAN_LINES} lines"] * (median(lengths) > MAX_MEDIAN_LINES)


def calls(node, inside_functions):
    """What a piece of code calls, as `name` or `module.name`."""
    found, queue = set(), [node]
    for node in queue:
        if inside_functions or not isinstance(node, ast.FunctionDef | ast.Lambda):
            queue += ast.iter_child_nodes(node)
        if isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
    return found


def draws(called):
    return any(re.match(r"(?:plt|plots)\.(?!use_style)", name) for name in called)


def drawing_cells(chapter):
    """The cells that draw when they run, themselves or through a function of the chapter."""
    found, drawers = [], set()
    for cell in chapter.code:
        if "remove-cell" in tags(cell):
            continue
        tree = ast.parse(cell.source)
        drawers |= {f.name for f in tree.body if isinstance(f, ast.FunctionDef) and draws(calls(f, True))}
        called = calls(tree, False)
        if draws(called) or called & drawers or "mystnb" in cell.metadata:
            found.append(cell)
    return found


def alt_text(cell):
    return cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")


def figures(chapter):
    problems, names = [], []
    for cell in drawing_cells(chapter):
        name = figure(cell).get("name", "")
        names.append(name)
        problems += [f"{cell.id}: alt text of at least {MIN_ALT} characters"] * (len(alt_text(cell)) < MIN_ALT)
        problems += [f"{cell.id}: a name fig-…"] * (not re.fullmatch(r"fig-[a-z0-9-]+", name))
        problems += [f"{cell.id}: a caption"] * (not figure(cell).get("caption"))
        problems += [f"{cell.id}: the tag hide-input"] * ("hide-input" not in tags(cell))
    problems += [f"{name} twice" for name in set(names) if names.count(name) > 1]
    referred = re.findall(r"\{numref\}`(?:[^`<]*<)?([\w-]+)>?`", chapter.text)
    problems += [f"{name} is not referred to" for name in names if name not in referred]
    return problems + ["pictures come from code cells"] * bool(re.search(r"!\[|<img", without_code(chapter.text)))


def explorables(chapter):
    problems, figure_seen = [], False
    for cell in chapter.cells:
        if cell.cell_type == "markdown" and re.search(r"(?m)^## ", cell.source):
            figure_seen = False
        elif "widgets.explore(" in cell.source and not figure_seen:
            problems.append(f"{cell.id}: the static figure that it varies must stand before it, in its section")
        figure_seen |= bool(figure(cell))
    return problems


def checked_cells(chapter):
    problems = ["no checked number"] * (not any("nbval-check-output" in tags(cell) for cell in chapter.code))
    for cell in chapter.code:
        marks = tags(cell) & {"nbval-check-output", "keep_output"}
        calls = "check.close(" in cell.source
        if len(marks) == 1 or calls != bool(marks):
            problems.append(f"{cell.id}: check.close and the tags nbval-check-output, keep_output go together")
        elif marks and not cell.outputs:
            problems.append(f"{cell.id}: a checked cell must keep its output")
        if any(
            output.get("name") != "stdout" and "text/plain" not in output.get("data", {}) for output in cell.outputs
        ):
            problems.append(f"{cell.id}: a kept output must be plain text")
    return problems


def stored_state(chapter):
    problems = [
        f"{c.id}: keeps an output without being checked"
        for c in chapter.code
        if c.outputs and "keep_output" not in tags(c)
    ]
    counts = [cell.execution_count for cell in chapter.code]
    return problems + ["code cells must be stored as run once, in order"] * (counts != list(range(1, len(counts) + 1)))


def glue(chapter):
    set_names = [name for cell in chapter.code for name in re.findall(r"check\.glue\(\s*[\"']([^\"']+)", cell.source)]
    used = re.findall(r"\{glue(?::\w*)?\}`([^`:]+)", chapter.text)
    problems = [f"{name} is glued twice" for name in set(set_names) if set_names.count(name) > 1]
    problems += [f"{name} is glued and not used" for name in set(set_names) - set(used)]
    return problems + [f"{name} is used and not glued" for name in set(used) - set(set_names)]


def predictions(chapter):
    count = sum("**Predict first.**" in c.source for c in chapter.cells if c.cell_type == "markdown")
    return ["at least two cells must have **Predict first.**"] * (count < 2)


def exercises(chapter):
    found, problems = gates(chapter)
    tasks = [gate for gate in found if gate.kind == "exercise"]
    kinds = sorted(gate.argument.split(":")[0].replace("Prove", "Build") for gate in tasks)
    if kinds != ["Build", "Change", "Change", "Predict", "Predict"]:
        problems.append("five exercises: two Predict:, two Change:, one Build: or Prove:")
    for i, task in enumerate(tasks, 1):
        label = f"ex-{chapter.topic}-{i}"
        if task.options.get("label") != label:
            problems.append(f"exercise {i} must have the label {label}")
        if not re.match(r"\s*\*(?:Easy|Medium|Hard), \d+ minutes?\.\*", task.text):
            problems.append(f"{label} must begin with its difficulty and time, as in *Easy, 3 minutes.*")
        if task.argument.startswith("Build") and not task.code:
            problems.append(f"{label} must have a stub to fill in")
        solutions = [
            gate for gate in found[found.index(task) + 1 :] if (gate.kind, gate.argument) == ("solution", label)
        ]
        if [gate.options for gate in solutions] != [{"label": f"sol-{chapter.topic}-{i}", "class": "dropdown"}]:
            problems.append(
                f"{label} must be followed by one solution, labelled sol-{chapter.topic}-{i}, class dropdown"
            )
        problems += [f"the solution of {label} must have a code cell"] * any(not gate.code for gate in solutions)
    return problems + ["a solution without its exercise"] * (len(found) != 2 * len(tasks))


def verdict(imports, cell):
    """Run the import cell and one more, whose last line is a check, and return what the check says."""
    body = ast.parse(cell).body
    namespace, dtype = {}, torch.get_default_dtype()
    with matplotlib.rc_context(), contextlib.redirect_stdout(io.StringIO()):
        try:
            exec(compile(imports, "imports", "exec"), namespace)
            exec(compile(ast.Module(body[:-1], []), "cell", "exec"), namespace)
            return eval(compile(ast.Expression(body[-1].value), "check", "eval"), namespace)
        finally:
            torch.set_default_dtype(dtype)


def exercise_checks(chapter):
    problems, used = [], []
    for gate in gates(chapter)[0]:
        where = gate.options.get("label") or gate.argument
        for cell in gate.code:
            check = re.search(r"(?m)^check\.(exercise_\w+)\(\w+\)$", cell.source)
            if not check and gate.kind == "solution":
                continue  # a solution may have cells that show rather than define
            wanted = f"exercise_{chapter.number}_{where.rsplit('-', 1)[-1]}"
            if not check or check[1] != wanted or not cell.source.endswith(check[0]):
                problems.append(f"{where}: the cell must end in check.{wanted}(…)")
                continue
            functions = [node for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)]
            if not functions or not ast.get_docstring(functions[-1]):
                problems.append(f"{where}: the cell must define a function with a docstring")
            try:
                passed = verdict(chapter.cells[2].source, cell.source).passed
            except Exception as problem:
                problems.append(f"{where}: with the imports alone, the cell raises {problem!r}")
                continue
            used.append((gate.kind, check[1]))
            problems += [f"{where}: the stub passes its check"] * (gate.kind == "exercise" and passed)
            problems += [f"{where}: the solution fails its check"] * (gate.kind == "solution" and not passed)
    pairs = [name for kind, name in used if kind == "exercise"], [name for kind, name in used if kind == "solution"]
    return problems + ["every stub needs a solution with the same check"] * (sorted(pairs[0]) != sorted(pairs[1]))


def paths_and_network(chapter):
    problems = []
    for cell in chapter.cells:
        shown = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.get("outputs", [])]
        if re.search(OUTSIDE_PATH, "\n".join([cell.source, *shown]), re.MULTILINE):
            problems.append(f"{cell.id}: a path outside the repository")
        if cell.cell_type == "code" and "remove-cell" not in tags(cell) and re.search(NETWORK, cell.source):
            problems.append(f"{cell.id}: chapters use no network")
    return problems


def plain_python(chapter):
    problems = []
    for cell in chapter.code:
        if "remove-cell" not in tags(cell):
            with contextlib.suppress(SyntaxError):
                ast.parse(cell.source)
                continue
            problems.append(f"{cell.id}: not plain Python")
    return problems


def language(text):
    """Words and marks that the style of the book leaves out."""
    prose = re.sub(r"!\[|<!--.*?-->|\]\([^)]*\)|https?://\S+", " ", without_code(text), flags=re.DOTALL)
    problems = [f"banned: {m[0].strip()!r}" for m in re.finditer(BANNED, prose, re.IGNORECASE | re.MULTILINE)]
    return problems + [f"exclamation mark: {m[0]!r}" for m in re.finditer(r".{0,20}!", prose)]


def prose(chapter):
    captions = [text for cell in chapter.code for text in (figure(cell).get("caption", ""), alt_text(cell))]
    return language("\n\n".join([chapter.text, *captions]))


RULES = [opening, colab_cell, import_cell, sections, closing, cell_length, figures, explorables, checked_cells]
RULES += [stored_state, glue, predictions, exercises, exercise_checks, paths_and_network, plain_python, prose]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_chapter_keeps_the_rule(path, rule):
    assert rule(read(path)) == []


def test_there_are_chapters():
    assert PATHS


# ---- how chapters are stored -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_chapter_is_stored_in_the_kept_form(path):
    assert refresh_notebooks.is_normal(path), "run tools/refresh_notebooks.py"


def nbstripout(path):
    """What nbstripout makes of the file, when told to keep counts and ids."""
    command = [sys.executable, "-m", "nbstripout", "--keep-count", "--keep-id", "--textconv", path]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_nbstripout_finds_nothing_to_strip(path):
    assert nbstripout(path) == path.read_bytes()


def write(path, cells):
    path.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=cells)), "utf-8")
    return path


def test_refresh_stores_only_what_is_checked(tmp_path):
    new = nbformat.v4.new_code_cell
    cells = [
        new("import os\nprint(1)"),
        new("print(os.environ.get('BDL_EXPLORE'))\n2", metadata={"tags": ["keep_output"]}),
    ]
    path = write(tmp_path / "01-x.ipynb", cells)
    assert not refresh_notebooks.is_normal(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BDL_EXPLORE", "page")
        assert refresh_notebooks.main([str(path)]) == 0
    first, second = nbformat.read(path, as_version=4).cells
    assert (first.id, first.execution_count, first.outputs) == ("c01", 1, [])
    assert [o.get("text") or o.data["text/plain"] for o in second.outputs] == ["still\n", "2"]
    assert refresh_notebooks.is_normal(path)
    assert nbstripout(path) == path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b'"c02"', b'"c03"'))
    assert refresh_notebooks.main(["--check", str(path)]) == 1


def test_refresh_leaves_a_failing_chapter_as_it_was(tmp_path, capsys):
    path = write(tmp_path / "01-x.ipynb", [nbformat.v4.new_code_cell(source) for source in ("x = 1", "x / 0")])
    before = path.read_bytes()
    assert refresh_notebooks.main([str(path)]) == 1
    assert path.read_bytes() == before
    assert "cell c02 failed" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]


# ---- across chapters: each rule takes plain data, and is shown to notice a fault beside it ---------------------------


def contents(node):
    """The files that a table of contents names, in order."""
    here = [node[key] for key in ("root", "file") if key in node]
    below = [item for key in ("parts", "chapters", "sections") for item in node.get(key, [])]
    return here + [name for item in below for name in contents(item)]


def contents_problems(listed, existing):
    """Chapters and API pages are listed exactly if they exist; every listed page exists."""
    problems = [f"{name} is listed and not there" for name in listed if name not in existing]
    must = [name for name in existing if re.match(r"book/(\d\d-|api/)", name)]
    return problems + [f"{name} is not in _toc.yml" for name in must if name not in listed]


def test_contents():
    listed = contents(yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8")))
    existing = [path.relative_to(ROOT).with_suffix("").as_posix() for path in [*PATHS, *PAGES]]
    assert contents_problems(listed, existing) == []
    assert listed.count("book/index") == 1
    assert contents({"root": "a", "parts": [{"chapters": [{"file": "b", "sections": [{"file": "c"}]}]}]}) == [
        "a",
        "b",
        "c",
    ]
    assert contents_problems(["book/01-a"], ["book/01-a", "book/02-b"]) == ["book/02-b is not in _toc.yml"]
    assert contents_problems(["book/01-a"], []) == ["book/01-a is listed and not there"]


def library_problems(modules, chapter_modules, tests, pages):
    """Each chapter has its module and its tests; modules and API pages match both ways."""
    problems = [f"bdl_lib.{name}, of a chapter, is not there" for name in chapter_modules if name not in modules]
    problems += [f"tests/test_{name}.py is not there" for name in chapter_modules if name not in tests]
    problems += [
        f"book/api/{name}.md must show bdl_lib.{name}" for name in modules if pages.get(name) != f"bdl_lib.{name}"
    ]
    return problems + [f"book/api/{name}.md shows no module" for name in pages if name not in modules]


def test_library():
    modules = [module.name for module in pkgutil.iter_modules(bdl_lib.__path__) if not module.name.startswith("_")]
    named = [re.search(r"\{py:mod\}`bdl_lib\.(\w+)`", read(path).text)[1] for path in PATHS]
    tests = [path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")]
    sources = {path.stem: path.read_text("utf-8") for path in (BOOK / "api").glob("*.md") if path.stem != "index"}
    pages = {name: "".join(re.findall(r"automodule:: (bdl_lib\.\w+)$", text, re.M)) for name, text in sources.items()}
    assert library_problems(modules, named, tests, pages) == []
    assert library_problems(["a"], ["a"], ["a"], {"a": "bdl_lib.a"}) == []
    assert len(library_problems([], ["a"], ["a"], {})) == 1
    assert len(library_problems(["a"], ["a"], [], {"a": "bdl_lib.a"})) == 1
    assert len(library_problems(["a"], [], [], {"a": "bdl_lib.b"})) == 1
    assert len(library_problems([], [], [], {"a": "bdl_lib.a"})) == 1


def test_every_exercise_check_is_used():
    from bdl_lib import check

    defined = {name for name in check.__all__ if name.startswith("exercise_")}
    used = {
        name for path in PATHS for c in read(path).code for name in re.findall(r"check\.(exercise_\w+)\(", c.source)
    }
    assert used == defined


def labels(text):
    """Every label that a page defines."""
    return re.findall(r"(?m)^\(([\w-]+)\)=$|^:(?:label|name): *([\w-]+)|\$\$ *\(([\w-]+)\)", text)


def repeated(texts):
    """Labels that are defined more than once in all of these texts."""
    found = ["".join(groups) for text in texts for groups in labels(text)]
    return sorted({label for label in found if found.count(label) > 1})


def test_labels_are_unique():
    names = [f"({figure(cell)['name']})=" for path in PATHS for cell in read(path).code if "name" in figure(cell)]
    assert repeated([*(read(path).text for path in PATHS), *(page.read_text("utf-8") for page in PAGES), *names]) == []
    assert repeated(["(sec-a)=\n$$x$$ (eq-b)", "(sec-a)=", ":label: eq-b"]) == ["eq-b", "sec-a"]


def citation_problems(texts, entries):
    """Citations and bibliography match both ways; every entry says where to find the work."""
    keys = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", "\n".join(texts))
    cited = {key.strip() for group in keys for key in group.split(",")}
    problems = [f"{key} is cited and not in references.bib" for key in cited - set(entries)]
    problems += [f"{key} is never cited" for key in set(entries) - cited]
    return problems + [
        f"{key} needs a doi, url or isbn" for key, e in entries.items() if not {"doi", "url", "isbn"} & set(e)
    ]


def test_citations():
    texts = [*(read(path).text for path in PATHS), *(page.read_text("utf-8") for page in PAGES)]
    bibliography = parse_string((BOOK / "references.bib").read_text("utf-8"), "bibtex")
    entries = {key: {field.lower() for field in entry.fields} for key, entry in bibliography.entries.items()}
    assert citation_problems(texts, entries) == []
    assert citation_problems(["{cite:t}`a, b`"], {"a": {"doi"}, "b": {"url"}}) == []
    assert citation_problems(["{cite}`a`"], {}) == ["a is cited and not in references.bib"]
    assert citation_problems([], {"a": {"doi"}}) == ["a is never cited"]
    assert citation_problems(["{cite}`a`"], {"a": {"title"}}) == ["a needs a doi, url or isbn"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_keeps_the_language(page):
    assert language(page.read_text("utf-8")) == []


# ---- each rule notices a fault ---------------------------------------------------------------------------------------


def task(number, title, stub="", solution="1 + 1"):
    """An exercise with its solution, in the notation of GOOD."""
    return f"""
=== text
```{{exercise-start}} {title}
:label: ex-coin-{number}
```
*Easy, 3 minutes.* What happens?
{stub and "=== code" + chr(10) + stub + chr(10) + "=== text"}
```{{exercise-end}}
```
=== text
```{{solution-start}} ex-coin-{number}
:label: sol-coin-{number}
:class: dropdown
```
This happens.
=== code
{solution}
=== text
```{{solution-end}}
```"""


DOUBLE = 'def double(x):\n    """Return 2x."""\n    return {}\n\n\ncheck.exercise_1_5(double)'
ALT = "A coin in the air, drawn as a circle above a line."
FIGURE = json.dumps({"mystnb": {"image": {"alt": ALT}, "figure": {"name": "fig-toss", "caption": "A toss."}}})
TASKS = ["Predict: a", "Predict: b", "Change: c", "Change: d"]
GOOD = f"""\
=== text
(ch-coin)=
# A coin

What does a coin know? Toss it.

- **By the end you can** toss a coin.
- **Needs** nothing.
- **Library file** {{py:mod}}`bdl_lib.bayes`.
- **Runs in** about 2 s.
=== code remove-cell
{set_repository.colab_cell(set_repository.read_setting())}
=== code
from types import SimpleNamespace as Fake

import torch

plots = Fake(use_style=lambda: None)
check = Fake(exercise_1_5=lambda function: Fake(passed=function(2) == 4))
plots.use_style()
generator = torch.Generator().manual_seed(1)
=== text
(sec-toss)=
## Toss

**Predict first.** Heads, $p!$ or `x!`? See {{numref}}`fig-toss` and {{glue:text}}`heads:.2f`.
=== code hide-input {FIGURE}
plots.coin()
=== code
check.glue("heads", 0.5)
=== code
widgets.explore(draw, heads=[0, 1])
=== code nbval-check-output keep_output
check.close("heads", 0.5, 0.5, atol=0.1)
=== output
heads 0.5
=== text
**Predict first.** And now?

## Where it breaks
=== code
0.1 + 0.2
=== text
## Summary

- one
- two
- three
- four
- five

$$1 + 1 = 2$$
=== text
## Exercises
{"".join(task(i, title) for i, title in enumerate(TASKS, 1))}
{task(5, "Build: e", DOUBLE.format("..."), DOUBLE.format("2 * x"))}
=== text
## Further reading

A book.
"""


def toy(text):
    """A chapter from the notation of GOOD: each cell is headed by === kind, tags, metadata."""
    cells = []
    for header, source in re.findall(r"(?ms)^=== ([^\n]*)\n(.*?)\n?(?=^===|\Z)", text):
        kind, words, metadata = re.match(r"(\w+)([^{]*)(.*)", header).groups()
        if kind == "output":
            cells[-1].outputs = [nbformat.v4.new_output("stream", name="stdout", text=source)]
            continue
        new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        cells.append(new(source, metadata={"tags": words.split(), **json.loads(metadata or "{}")}))
    return Chapter("01-coin", refresh_notebooks.normal_form(nbformat.v4.new_notebook(cells=cells)).cells)


FAULTS = [  # (the rule that must notice, what to replace, by what)
    (opening, "(ch-coin)=", "(ch-dice)="),
    (opening, "What does a coin know? Toss", "Toss"),
    (opening, "**Needs**", "**Requires**"),
    (opening, "{py:mod}`bdl_lib.bayes`", "bayes"),
    (opening, "about 2 s", "no time"),
    (colab_cell, "--quiet", "--upgrade"),
    (colab_cell, "remove-cell", "hide-input"),
    (import_cell, "plots.use_style()\n", ""),
    (import_cell, "manual_seed(1)", "manual_seed(2)"),
    (import_cell, "import torch\n", "from torch import *\n"),
    (sections, "(sec-toss)=\n", ""),
    (sections, "## Toss", "# Toss"),
    (sections, "\nA book.", "\n#### A book"),
    (closing, "## Summary", "## Conclusion"),
    (closing, "- five\n", ""),
    (closing, "$$1 + 1 = 2$$", "1 + 1 = 2"),
    (closing, "=== code\n0.1 + 0.2\n", ""),
    (cell_length, "0.1 + 0.2\n", "0.1 + 0.2\n" * 16),
    (cell_length, "=== code\n1 + 1\n", 2 * ("=== code\n" + "1 + 1\n" * 6)),
    (figures, ALT, "A coin."),
    (figures, '"image": {"alt"', '"image": {"text"'),
    (figures, '"name": "fig-toss"', '"name": "toss"'),
    (figures, "A toss.", ""),
    (figures, "code hide-input", "code"),
    (figures, "{numref}`fig-toss`", "the figure"),
    (figures, "0.1 + 0.2\n", "plt.plot([1])\n"),
    (figures, "0.1 + 0.2\n", "def draw():\n    plt.gca().plot([1])\n\n\ndraw()\n"),
    (figures, "=== text\n## Summary", f"=== code hide-input {FIGURE}\nplots.coin()\n=== text\n## Summary"),
    (figures, "A book.", "![](coin.png)"),
    (explorables, "0.1 + 0.2\n", "widgets.explore(draw)\n"),
    (checked_cells, "=== output\nheads 0.5\n", ""),
    (checked_cells, "nbval-check-output ", ""),
    (checked_cells, "=== code nbval-check-output keep_output", "=== code"),
    (checked_cells, "check.close(", "print("),
    (glue, 'check.glue("heads"', 'check.glue("tails"'),
    (glue, "{glue:text}`heads:.2f`", "0.50"),
    (glue, '=== code\ncheck.glue("heads", 0.5)\n', ""),
    (glue, 'check.glue("heads", 0.5)\n', 'check.glue("heads", 0.5)\ncheck.glue("heads", 0.6)\n'),
    (predictions, "**Predict first.** And now?", "And now?"),
    (exercises, "Predict: b", "Change: b"),
    (exercises, "ex-coin-3", "ex-coin-9"),
    (exercises, "*Easy, 3 minutes.*", "Easy."),
    (exercises, ":class: dropdown\n", ""),
    (exercises, "=== code\n1 + 1\n", ""),
    (exercises, "```{exercise-end}\n```\n", ""),
    (exercises, "```{solution-start} ex-coin-2", "```{solution-start} ex-coin-3"),
    (exercises, "=== code\n" + DOUBLE.format("..."), ""),
    (exercise_checks, "return ...", "return 2 * x"),
    (exercise_checks, "return 2 * x", "return 3 * x"),
    (exercise_checks, "return ...", "return heads"),
    (exercise_checks, '    """Return 2x."""\n', ""),
    (exercise_checks, "exercise_1_5(double)", "exercise_1_4(double)"),
    (exercise_checks, "return 2 * x\n\n\ncheck.exercise_1_5(double)", "return 2 * x"),
    (paths_and_network, "0.1 + 0.2", 'open("~/coin.csv")'),
    (paths_and_network, "heads 0.5\n", "heads 0.5\n/tmp/coin.csv\n"),
    (paths_and_network, "A book.", "A book in `/srv/book`."),
    (paths_and_network, "0.1 + 0.2", "urlopen(book)"),
    (paths_and_network, "0.1 + 0.2", 'load("https://example.org")'),
    (paths_and_network, "0.1 + 0.2", "fetch_openml(1)"),
    (paths_and_network, "0.1 + 0.2", "digits(download=True)"),
    (plain_python, "0.1 + 0.2", "%matplotlib widget"),
    (prose, "A book.", "Clearly, a book."),
    (prose, "A book.", "A book. It can be shown."),
    (prose, "A book.", "A book. Note that it has pages."),
    (prose, "A book.", "A book!"),
    (prose, "A book.", "```{note}\nSimply a book.\n```"),
    (prose, "A toss.", "Obviously a toss."),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_good_chapter_keeps_the_rule(rule):
    assert rule(toy(GOOD)) == []


@pytest.mark.parametrize(
    ("rule", "old", "new"), FAULTS, ids=[f"{rule.__name__}-{i}" for i, (rule, *_) in enumerate(FAULTS)]
)
def test_the_rule_notices_the_fault(rule, old, new):
    assert old in GOOD
    assert rule(toy(GOOD.replace(old, new))) != []


@pytest.mark.parametrize("fault", [{"execution_count": None}, {"execution_count": 9}, {"outputs": ["an output"]}])
def test_stored_state_notices_the_fault(fault):
    chapter = toy(GOOD)
    chapter.code[3].update(fault)
    assert stored_state(chapter) != []


def test_every_rule_has_a_fault():
    assert {rule for rule, *_ in FAULTS} | {stored_state} == set(RULES)
