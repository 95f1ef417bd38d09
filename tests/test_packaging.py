"""What a reader installs: the package and its requirements, Colab, the pinned versions, the papers that go with it."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import bdl_lib
from tools.set_repository import text_files

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
RUNTIME = PROJECT["dependencies"]
EXTRAS = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
COLAB_PYTHON = "3.13"


def pins(text):
    """A constraints file as {name: version}; `3.10.*` counts as 3.10."""
    lines = [line.split("#")[0].split(";")[0].strip() for line in text.splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): Version(version.removesuffix(".*")) for name, version in pairs}


COLAB = pins((ROOT / "tests" / "colab.txt").read_text("utf-8"))


# ---- Colab: the set-up cell must not move what is there --------------------------------------------------------------


def upper_bounds(requirements):
    """Requirements that could make pip take an older version than the one that is there."""
    return [line for line in requirements if {bound.operator for bound in Requirement(line).specifier} != {">="}]


def moved_on_colab(requirements, requires=requires):
    """Requirements, ours and those of what we bring along, that Colab's own versions do not meet."""
    moved, queue, seen = [], [("bdl-lib", line) for line in requirements], set()
    for owner, line in queue:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": "", "python_version": COLAB_PYTHON}):
            continue
        if name in COLAB:
            moved += [f"{owner} wants {line}"] * (not requirement.specifier.contains(COLAB[name]))
        elif name not in seen:
            seen.add(name)
            queue += [(name, further) for further in requires(name) or []]
    return moved


def test_runtime_requirements_have_lower_bounds_only():
    assert upper_bounds(RUNTIME) == []
    for bound in ("numpy<3", "numpy==2.1", "numpy~=2.1", "numpy>=1.26,<3", "numpy", "numpy!=2.0"):
        assert upper_bounds([bound]) == [bound]


def test_colab_has_what_we_need():
    assert {"ipykernel", "ipython", "ipywidgets", "matplotlib", "numpy", "torch"} <= set(COLAB)
    assert moved_on_colab(RUNTIME) == []
    assert SpecifierSet(PROJECT["requires-python"]).contains(COLAB_PYTHON)


def test_a_move_on_colab_is_noticed():
    assert moved_on_colab(["ipywidgets>=8"]) == ["bdl-lib wants ipywidgets>=8"]
    below = {"a": ["b>=1"], "b": ["numpy>=2.2", "torch<2; extra == 'gpu'", "torch<2; python_version < '3.12'"]}
    assert moved_on_colab(["a>=1"], lambda name: below[name]) == ["b wants numpy>=2.2"]


# ---- constraints.txt and environment.yml -----------------------------------------------------------------------------


def unpinned(requirements, pinned):
    """Requirements without a pin, or with one that they do not allow."""
    found = []
    for line in requirements:
        requirement = Requirement(line)
        pin = pinned.get(canonicalize_name(requirement.name))
        if pin is None or not requirement.specifier.contains(pin, prereleases=True):
            found.append(f"{line}: {pin}")
    return found


def test_constraints_pin_every_requirement():
    constraints = pins((ROOT / "constraints.txt").read_text("utf-8"))
    assert unpinned([*RUNTIME, *EXTRAS], constraints) == []
    assert unpinned(["a>=2", "b", "C_d==1.*"], pins("a==1.0\nc-d==1.5  # x\n")) == ["a>=2: 1.0", "b: None"]


def test_environment_installs_the_book():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    python, pip, below = environment["dependencies"]
    assert Requirement(python).specifier.contains("3.11")
    assert Requirement(python).specifier.contains(COLAB_PYTHON)
    assert not Requirement(python).specifier.contains("3.10")
    assert (pip, below) == ("pip", {"pip": ["-e .[book]"]})
    assert "book" in PROJECT["optional-dependencies"]


# ---- the package -----------------------------------------------------------------------------------------------------


def missing_from_wheel(wheel, files):
    """Files of the library that the wheel lacks, and folders at its top that do not belong there."""
    names = zipfile.ZipFile(wheel).namelist()
    strangers = {name.split("/")[0] for name in names} - {"bdl_lib", f"bdl_lib-{bdl_lib.__version__}.dist-info"}
    return sorted(set(files) - set(names)) + sorted(strangers)


def test_wheel_holds_the_library_and_nothing_else(tmp_path):
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "bdl_lib"],
        capture_output=True,
        check=True,
    )
    library = [name for name in tracked.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    source = tmp_path / "source"  # a build leaves its traces where it runs
    for name in ["pyproject.toml", "README.md", "LICENSE", *library]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")

    assert missing_from_wheel(wheel, library) == []
    for suffix in (".mplstyle", ".npz", ".js", ".css"):  # one of each kind of data that the library reads
        assert any(name.endswith(suffix) for name in library), suffix
    assert missing_from_wheel(wheel, ["bdl_lib/new.json"]) == ["bdl_lib/new.json"]
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tests/x.py", "")
    assert missing_from_wheel(wheel, []) == ["tests"]


# ---- the papers ------------------------------------------------------------------------------------------------------


def test_one_version_and_one_date():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == bdl_lib.__version__
    heading = re.search(rf"(?m)^## \W*{re.escape(bdl_lib.__version__)}\b.*", (ROOT / "CHANGELOG.md").read_text("utf-8"))
    assert heading, "CHANGELOG.md has no section for this version"
    released = re.findall(r"\d{4}-\d\d-\d\d", heading[0])  # none while it says "unreleased"
    assert released == [citation[key] for key in ("date-released",) if key in citation]


def test_citation_names_no_invented_person():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert [set(author) for author in citation["authors"]] == [{"name"}]
    assert {"cff-version", "message", "title", "type", "license", "repository-code"} <= set(citation)


def test_licences():
    code, prose = ((ROOT / name).read_text("utf-8") for name in ("LICENSE", "LICENSE-text"))
    assert code.startswith("MIT License")
    assert PROJECT["license"] == "MIT"
    assert "CC-BY-4.0" in prose
    for number in range(1, 9):  # the legal code has eight sections
        assert f"\nSection {number} -- " in prose


# ---- the workflows ---------------------------------------------------------------------------------------------------

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def workflow_problems(text):
    """What would stop a workflow before it starts, as far as can be told without running it."""
    workflow = yaml.load(text, yaml.BaseLoader)  # keeps `on` and 3.10 as they are written
    problems = [f"no {key}" for key in ("name", "on", "permissions", "jobs") if key not in workflow]
    for name, job in workflow.get("jobs", {}).items():
        problems += [f"{name}: no time limit"] * ("timeout-minutes" not in job and "environment" not in job)
        for step in job["steps"]:
            action = step.get("uses", "@v")
            problems += [f"{name}: {action} needs a version"] * ("@v" not in action)
            pythons = [str(step.get("with", {}).get("python-version", "3.11"))]
            if "matrix" in pythons[0]:
                pythons = job["strategy"]["matrix"]["python"]
            allowed = SpecifierSet(PROJECT["requires-python"])
            problems += [f"{name}: Python {python}" for python in pythons if not allowed.contains(python)]
            files = re.findall(r"(?<![\w.<>/-])(?:\.ci|tests|tools)/[\w./-]+", step.get("run", ""))
            problems += [f"{name}: {path} is not there" for path in files if not (ROOT / path).exists()]
    return problems


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow(path):
    assert workflow_problems(path.read_text("utf-8")) == []


def test_workflow_faults_are_noticed():
    assert {path.stem for path in WORKFLOWS} == {"tests", "book", "weekly"}
    good = (ROOT / ".github/workflows/tests.yml").read_text("utf-8")
    for old, new in {
        "permissions:": "allowed:",
        "timeout-minutes: 45": "",
        "checkout@v7": "checkout",
        '"3.11", "3.13"': '"3.9", "3.13"',
        "run: .ci/run": "run: .ci/walk",
    }.items():
        assert old in good
        assert workflow_problems(good.replace(old, new)) != [], new


def test_no_package_index_but_pytorchs_own():
    """A mirror's address would tie the course to one place."""
    index = re.compile(r"(?:--(?:extra-)?index-url|INDEX_URL|find-links|trusted-host)\W+(\S+)")
    allowed = "https://download.pytorch.org/whl/cpu"
    named = {m[1] for path, text in text_files(ROOT) if path != Path(__file__) for m in index.finditer(text)}
    assert named <= {allowed}
    assert index.findall("PIP_INDEX_URL: https://mirror/simple") == ["https://mirror/simple"]
