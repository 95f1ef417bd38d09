"""The repository's address: one setting, one tool that rewrites it everywhere, and a search for what it missed."""

import importlib.util
import json
import shutil
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from tools import set_repository
from tools.set_repository import ROOT, Repository, colab_cell, parse, read_setting, stragglers

# Addresses are put together here, so that the tool, when it rewrites this file, finds nothing in it.
OLD = Repository("github.com", "old" + ".owner", "old" + "-course", "main")
NEW = Repository("github.com", "new-owner", "new" + "-course", "release")
OTHER_HOST = Repository("code.example.org", "team", "course", "main")
OLD_PAGES, NEW_PAGES = f"https://{OLD.owner}.github.io/{OLD.name}/", f"https://{NEW.owner}.github.io/{NEW.name}/"

SPELLINGS = {  # what must be rewritten -> to what
    OLD.url: NEW.url,
    f"see {OLD.url}.": f"see {NEW.url}.",
    f"git clone {OLD.url}.git": f"git clone {NEW.url}.git",
    f"git@github.com:{OLD.slug}.git": f"git@github.com:{NEW.slug}.git",
    f"git+{OLD.url}@main": f"git+{NEW.url}@release",
    f"{OLD.url}/blob/main/book/index.md": f"{NEW.url}/blob/release/book/index.md",
    f"{OLD.url}/tree/mainline": f"{NEW.url}/tree/mainline",
    f"https://colab.research.google.com/github/{OLD.slug}/blob/main/a": f"https://colab.research.google.com/github/{NEW.slug}/blob/release/a",
    f"https://img.shields.io/github/license/{OLD.slug}": f"https://img.shields.io/github/license/{NEW.slug}",
    OLD_PAGES: NEW_PAGES,
}
LEFT_ALONE = [f"{OLD.url}-2", f"{OLD.url}.old", OLD.name, "main", "branch: main"]


@pytest.fixture
def tree(tmp_path):
    """A small repository with the address in every kind of file that has it."""
    notebook = {"cells": [{"source": [colab_cell(OLD)]}], "spaced": [1, 2], "é": "ü"}
    files = {
        "_config.yml": f"repository:\n  # the address\n  url: {OLD.url}\n  branch: main\nother:\n  branch: main\n",
        "README.md": "\n".join([*SPELLINGS, *LEFT_ALONE]),
        "book/01-a.ipynb": json.dumps(notebook, indent=1, ensure_ascii=False) + "\n\n",
        ".github/workflows/book.yml": "on: {push: {branches: [main]}}\r\n",
        ".gitignore": "_build\n",
        "_build/page.html": OLD.url,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "image.png").write_bytes(b"\xff\xfe" + OLD.url.encode())
    (tmp_path / "run").write_text(f"# {OLD.url}\n")
    (tmp_path / "run").chmod(0o755)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def test_every_spelling_is_rewritten_and_nothing_else(tree):
    assert read_setting(tree) == OLD
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file() and ".git" not in path.parts}
    changed = set_repository.set_repository(NEW, tree)
    assert {path.relative_to(tree).as_posix() for path in changed} == {
        "_config.yml", "README.md", "book/01-a.ipynb", ".github/workflows/book.yml", "run",
    }  # fmt: skip
    assert (tree / "README.md").read_text() == "\n".join([*SPELLINGS.values(), *LEFT_ALONE])
    assert (tree / "_config.yml").read_text().endswith(f"url: {NEW.url}\n  branch: release\nother:\n  branch: main\n")
    assert (tree / ".github/workflows/book.yml").read_bytes() == b"on: {push: {branches: [release]}}\r\n"
    assert (tree / "book/01-a.ipynb").read_text() == before[tree / "book/01-a.ipynb"].decode().replace(
        f"{OLD.url}@main", f"{NEW.url}@release"
    )
    assert json.loads((tree / "book/01-a.ipynb").read_text())["cells"][0]["source"] == [colab_cell(NEW)]
    assert (tree / "run").stat().st_mode & 0o111
    assert (tree / "image.png").read_bytes() == before[tree / "image.png"]
    assert (tree / "_build/page.html").read_bytes() == before[tree / "_build/page.html"]
    assert not list(tree.rglob("*.partial"))
    assert set_repository.set_repository(NEW, tree) == []


def test_a_longer_name_is_another_account():
    text = f"https://github.com/an{OLD.slug}"
    assert set_repository.rewrite(text, OLD, NEW) == text


def test_another_host(tree):
    set_repository.set_repository(OTHER_HOST, tree)
    readme = (tree / "README.md").read_text()
    assert f"git clone {OTHER_HOST.url}.git" in readme
    assert f"git@{OTHER_HOST.host}:{OTHER_HOST.slug}.git" in readme
    assert read_setting(tree) == OTHER_HOST


@pytest.mark.parametrize(
    "line",
    [
        "https://github.com/{other}/{name}",
        "git+https://github.com/{other}/{name}@main",
        "git@github.com:{other}/{name}.git",
        "https://colab.research.google.com/github/{other}/{name}/blob/main/x.ipynb",
        "https://raw.githubusercontent.com/{other}/{name}/main/x",
        "https://{other}.github.io/{name}/",
        "https://github.com/{other}/{course}",
    ],
)
def test_a_straggler_is_found(tree, line):
    assert stragglers(tree) == []
    text = line.format(other="someone" + "-else", name=OLD.name, course=set_repository.COURSE)
    (tree / "late.md").write_text(f"Two lines.\n{text}\n")
    (found,) = stragglers(tree)
    assert found.startswith("late.md:2: ")


def test_the_same_name_on_github_is_a_straggler_of_another_host(tree):
    set_repository.set_repository(OTHER_HOST, tree)
    (tree / "late.md").write_text(f"https://github.com/{OTHER_HOST.slug}")
    assert stragglers(tree) == [f"late.md:1: github.com/{OTHER_HOST.slug}"]


@pytest.mark.parametrize(
    "address", ["https://github.com/a-b/c.d", " https://github.com/a-b/c.d/ ", "https://github.com/a-b/c.d.git"]
)
def test_an_address_is_tidied(address):
    assert parse(address) == Repository("github.com", "a-b", "c.d", "main")
    assert parse(address).url == "https://github.com/a-b/c.d"


@pytest.mark.parametrize(
    ("address", "branch", "message"),
    [
        ("", "main", "must look like"),
        ("github.com/a/b", "main", "must look like"),
        ("http://github.com/a/b", "main", "must look like"),
        ("https://github.com/a", "main", "must look like"),
        ("https://github.com/a/b/c", "main", "must look like"),
        ("https://github/a/b", "main", "must look like"),
        ("https://user:secret@github.com/a/b", "main", "must look like"),
        ("https://github.com/a/b?c", "main", "must look like"),
        ("https://github.com/a/b\nc", "main", "must look like"),
        ("https://github.com/a.b/c", "main", "letters, digits and single hyphens"),
        ("https://github.com/a--b/c", "main", "letters, digits and single hyphens"),
        ("https://github.com/a/b", "", "plain name"),
        ("https://github.com/a/b", "my branch", "plain name"),
        ("https://github.com/a/b", "a/", "plain name"),
    ],
)
def test_a_bad_address_is_refused(address, branch, message):
    with pytest.raises(ValueError, match=message):
        parse(address, branch)


def test_a_missing_setting_is_said(tmp_path):
    (tmp_path / "_config.yml").write_text("title: x\n")
    with pytest.raises(ValueError, match=r"_config\.yml must have"):
        read_setting(tmp_path)


def test_command_line(tree, capsys):
    def say(*arguments):
        return set_repository.main(arguments, tree), capsys.readouterr().out

    assert say() == (0, f"{OLD.url}, branch main (the placeholder)\n")
    code, hint = say("--hint")
    assert code == 0
    assert hint.count("\n") == 1
    assert "python tools/set_repository.py https://" in hint
    assert say("--check") == (0, "")

    code, told = say(NEW.url + "/", "--branch", "release")
    assert code == 0
    assert "changed README.md" in told
    assert say() == (0, f"{NEW.url}, branch release\n")
    assert say("--hint") == (0, "")

    (tree / "late.md").write_text(f"https://github.com/someone/{NEW.name}")
    assert say("--check") == (1, f"late.md:1: github.com/someone/{NEW.name}\n")
    assert "must look like" in set_repository.main(["nonsense"], tree)
    assert "--branch needs the URL" in set_repository.main(["--branch", "main"], tree)
    assert read_setting(tree) == NEW  # refused input changed nothing


def test_outside_git_the_tool_says_so(tree):
    shutil.rmtree(tree / ".git")
    assert "git must be there" in set_repository.main(["--check"], tree)


@pytest.mark.parametrize(("on_colab", "is_there"), [(False, False), (False, True), (True, True), (True, False)])
def test_the_set_up_cell_installs_on_colab_alone_and_only_once(monkeypatch, on_colab, is_there):
    commands = []
    shell = SimpleNamespace(run_line_magic=lambda name, line: commands.append(f"{name} {line}"))
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    if on_colab:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if is_there else None)
    exec(TransformerManager().transform_cell(colab_cell(NEW)), {"get_ipython": lambda: shell})
    # Without --upgrade, pip leaves what meets the requirements as it is.
    install = f'pip install --quiet "bdl-lib @ git+{NEW.url}@release"'
    assert commands == [install] * (on_colab and not is_there)


# ---- the real tree ---------------------------------------------------------------------------------------------------


def test_the_address_is_the_same_everywhere():
    assert stragglers(ROOT) == []


def test_the_placeholder_is_nobodys_account():
    setting = read_setting(ROOT)
    assert setting.is_placeholder or parse(setting.url, setting.branch) == setting
    with pytest.raises(ValueError, match="single hyphens"):
        parse(OLD.url)


def test_a_fork_can_set_its_address(tmp_path):
    for path, text in set_repository.text_files(ROOT):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(text.encode())
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    old = read_setting(tmp_path)
    new = Repository("github.com", "new-owner", "renamed" + "-course", "release")
    set_repository.set_repository(new, tmp_path)

    assert read_setting(tmp_path) == new
    assert stragglers(tmp_path) == []
    left = [path for path, text in set_repository.text_files(tmp_path) if old.slug in text]
    assert left == []
    chapters = sorted(tmp_path.glob("book/[0-9][0-9]-*.ipynb"))
    assert chapters
    for path in chapters:
        was, now = (json.loads((root / "book" / path.name).read_text("utf-8"))["cells"] for root in (ROOT, tmp_path))
        assert "".join(now[1]["source"]) == colab_cell(new)
        assert was[:1] + was[2:] == now[:1] + now[2:]
    for name in ("CITATION.cff", "pyproject.toml", "README.md"):
        assert new.url in (tmp_path / name).read_text("utf-8"), name
    assert set_repository.set_repository(new, tmp_path) == []
