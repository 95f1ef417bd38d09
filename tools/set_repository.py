"""Set the address of this course's repository, everywhere it appears.

    python tools/set_repository.py                            say what it is, and whether it is still the placeholder
    python tools/set_repository.py URL [--branch main]        rewrite it in every file that git does not ignore
    python tools/set_repository.py --check                    list the places that name another address
    python tools/set_repository.py --hint                     one line on how to set it, while it is the placeholder

The setting itself is `repository:` in `_config.yml`. Needs Python and git, nothing else.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COURSE = "bayesian-deep-learning"  # what forks of this course are usually called

HINT = "Links and Colab buttons lead nowhere yet: python tools/set_repository.py https://github.com/OWNER/NAME"

COLAB_CELL = """\
# On Google Colab only: install the course's library. What Colab has already stays as it is.
import importlib.util
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("bdl_lib") is None:
    %pip install --quiet "bdl-lib @ git+{url}@{branch}\""""

NAME = r"[\w.-]*[\w-]"
END = r"(?![\w-]|\.(?!git\b)\w)"  # a name may be followed by `.git`, or by the full stop of a sentence


class Repository(NamedTuple):
    """Where the course lives: `https://{host}/{owner}/{name}`, and the branch that links point to."""

    host: str
    owner: str
    name: str
    branch: str

    @property
    def url(self):
        return f"https://{self.host}/{self.slug}"

    @property
    def slug(self):
        return f"{self.owner}/{self.name}"

    @property
    def is_placeholder(self):
        """A GitHub account cannot have a dot in its name, so an address with one is nobody's."""
        return self.host == "github.com" and "." in self.owner


def parse(url, branch="main"):
    """The repository at an address as typed or pasted; a closing slash or `.git` is dropped."""
    tidy = url.strip().rstrip("/").removesuffix(".git")
    found = re.fullmatch(rf"https://((?:[a-z0-9-]+\.)+[a-z]+)/({NAME})/({NAME})", tidy)
    if not found:
        raise ValueError(f"the address must look like https://github.com/OWNER/NAME, got {url!r}")
    if found[1] == "github.com" and not re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", found[2]):
        raise ValueError(f"an account on GitHub has letters, digits and single hyphens in its name, got {found[2]!r}")
    if not re.fullmatch(rf"{NAME}(/{NAME})*", branch):
        raise ValueError(f"the branch must be a plain name such as main, got {branch!r}")
    return Repository(*found.groups(), branch)


def read_setting(root=ROOT):
    """The repository that `_config.yml` names."""
    block = re.search(r"^repository:\n((?:[ #].*\n)+)", (root / "_config.yml").read_text("utf-8"), re.MULTILINE)
    entry = {key: re.search(rf"^ +{key}: *(\S+)", block[1] if block else "", re.MULTILINE) for key in ("url", "branch")}
    found = entry["url"] and re.fullmatch(r"https://([^/]+)/([^/]+)/([^/]+)", entry["url"][1])
    if not found or not entry["branch"]:
        raise ValueError("_config.yml must have `repository:` with `url: https://HOST/OWNER/NAME` and `branch:`")
    return Repository(*found.groups(), entry["branch"][1])


def colab_cell(repository):
    """The set-up cell of every chapter: does nothing outside Google Colab."""
    return COLAB_CELL.format(url=repository.url, branch=repository.branch)


def text_files(root=ROOT):
    """Every text file that git does not ignore, with its text."""
    command = ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError) as problem:
        raise ValueError(f"git must be there and list the files of {root}: {problem}") from problem
    for name in sorted(set(filter(None, listing.split("\0")))):
        path = root / name
        try:
            if path.is_file() and not path.is_symlink():
                yield path, path.read_bytes().decode()
        except UnicodeDecodeError:
            continue  # an image, a font, an archive


def rewrite(text, old, new):
    """The text with every spelling of the old address replaced by the new one; nothing else changes."""
    slug = re.escape(old.slug) + END
    text = re.sub(rf"(?<![\w.-]){re.escape(old.host)}([/:]){slug}", rf"{new.host}\1{new.slug}", text)
    # without the host: behind colab…/github/, raw.githubusercontent.com/ and the like
    text = re.sub(rf"(?<![\w.-]){slug}", new.slug, text)
    pages = re.escape(f"{old.owner}.github.io/{old.name}") + END
    text = re.sub(rf"(?<![\w.-]){pages}", f"{new.owner}.github.io/{new.name}", text)
    links = rf"({re.escape(new.slug)}(?:\.git)?(?:@|/(?:blob|edit|raw|tree)/)){re.escape(old.branch)}(?![\w-])"
    return re.sub(links, rf"\g<1>{new.branch}", text)


def rewrite_branch_setting(path, text, old, new):
    """The two places that name the branch without the address: the setting, and what the workflows listen to."""
    if path.name == "_config.yml":
        return re.sub(rf"(^repository:\n(?:[ #].*\n)*? +branch: *){re.escape(old)}\b", rf"\g<1>{new}", text, flags=re.M)
    if path.parent.name == "workflows":
        return re.sub(rf"(branches: \[){re.escape(old)}\]", rf"\g<1>{new}]", text)
    return text


def set_repository(new, root=ROOT):
    """Rewrite the address and the branch in every file, and return the files that changed."""
    old = read_setting(root)
    changed = {}
    for path, text in text_files(root):
        after = rewrite_branch_setting(path, rewrite(text, old, new), old.branch, new.branch)
        if after != text:
            changed[path] = after
    for path, text in changed.items():
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(text.encode())
        shutil.copymode(path, partial)
        partial.replace(path)
    return list(changed)


def stragglers(root=ROOT):
    """Lines that name this course at another address than the setting does, as `file:line: address`."""
    setting = read_setting(root)
    names = "|".join(map(re.escape, {setting.name, COURSE}))
    links = re.compile(rf"((?:[\w-]+\.)+[a-z]+)[/:](?:github/)?({NAME})/({names}){END}")
    pages = re.compile(rf"({NAME})\.github\.io/({names}){END}")
    found = []
    for path, text in text_files(root):
        if not re.search(names, text):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            wrong = [m[0] for m in pages.finditer(line) if f"{m[1]}/{m[2]}" != setting.slug]
            for m in links.finditer(line):
                if f"{m[2]}/{m[3]}" != setting.slug or m[1] == "github.com" != setting.host:
                    wrong.append(m[0])
            found += [f"{path.relative_to(root)}:{number}: {address}" for address in wrong]
    return found


def main(arguments=None, root=ROOT):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", metavar="URL")
    parser.add_argument("--branch", help="the branch that links point to (default: as it is)")
    parser.add_argument("--check", action="store_true", help="list the places that name another address")
    parser.add_argument("--hint", action="store_true", help="one line on how to set the address, if it is not set")
    options = parser.parse_args(arguments)
    try:
        setting = read_setting(root)
        if options.url:
            new = parse(options.url, options.branch or setting.branch)
            for path in set_repository(new, root):
                print(f"changed {path.relative_to(root)}")
            print(f"The course lives at {new.url}, branch {new.branch}.")
        elif options.branch:
            raise ValueError("--branch needs the URL beside it")
        elif options.hint:
            if setting.is_placeholder:
                print(HINT)
        elif not options.check:
            print(f"{setting.url}, branch {setting.branch}" + (" (the placeholder)" if setting.is_placeholder else ""))
        problems = stragglers(root) if options.check or options.url else []
    except ValueError as problem:
        return f"set_repository.py: {problem}"
    for line in problems:
        print(line)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
