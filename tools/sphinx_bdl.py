"""The Sphinx side of the book: what `_config.yml` cannot say.

- Chapters are executed again when the library or the pinned versions change, not only when their own text does.
- Explorable figures are drawn as players (`BDL_EXPLORE=page`), and the pages load the player's script and style.
- API pages: `Book: sec-x` in a docstring becomes a link to that section.
- Faults that a stock page of sphinx-book-theme 1.2 has are mended.
"""

import hashlib
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOOK_LINE = re.compile(r"^Book: ((?:sec|ch)-[\w-]+)$")


def library_hash(root=ROOT):
    """A hash of all that can change a chapter's output besides the chapter itself."""
    files = [root / "constraints.txt", *sorted(p for p in (root / "bdl_lib").rglob("*") if p.is_file())]
    digest = hashlib.sha256()
    for path in files:
        if "__pycache__" not in path.parts and path.exists():
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def key_the_cache(app, config):
    """Give each state of the library an execution cache of its own; read every page again when it changes."""
    config.bdl_library_hash = library_hash()
    cache = Path(app.outdir).parent / ".jupyter_cache" / config.bdl_library_hash
    cache.parent.mkdir(parents=True, exist_ok=True)
    for stale in cache.parent.iterdir():
        if stale != cache and stale.is_dir():
            _remove_tree(stale)
    config.nb_execution_cache_path = str(cache)


def _remove_tree(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def link_book_line(app, what, name, obj, options, lines):
    """Turn the docstring line `Book: sec-x` into a link to the section of the chapter."""
    for i, line in enumerate(lines):
        if found := BOOK_LINE.match(line.strip()):
            lines[i] = f"In the book: :ref:`{found[1]}`"


def drop_thebe(app, pagename, templatename, context, doctree):
    """Pages have no live kernel: without this, sphinx-thebe declares its constants twice and names an outside host."""
    scripts = context.get("script_files", [])
    context["script_files"] = [
        s for s in scripts if "thebe" not in (str(s) + str(getattr(s, "attributes", ""))).lower()
    ]


def setup(app):
    os.environ["BDL_EXPLORE"] = "page"
    app.add_config_value("bdl_library_hash", "", "env")
    app.connect("config-inited", key_the_cache, priority=100)
    app.connect("autodoc-process-docstring", link_book_line)
    app.connect("html-page-context", drop_thebe, priority=900)
    player = ROOT / "bdl_lib" / "player"
    app.connect("config-inited", lambda app, config: config.html_static_path.append(str(player)), priority=100)
    app.add_js_file("player.js", loading_method="defer")
    app.add_css_file("player.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
