"""The Sphinx side of the book: what `_config.yml` cannot say.

- Chapters are executed again when the library or the pinned versions change, not only when their own text does.
- Explorable figures are drawn as players (`BDL_EXPLORE=page`), and the pages load the player's script and style.
- API pages: members stand under the file that they come from, in the order of the file; the closing lines of a
  docstring (`Source: …`, `Book: sec-x`, `Chapter: book/NN-topic.ipynb`) become fields with links; types stand beside
  the arguments; a record's field says what the comment beside it says.
- Faults that a stock page of sphinx-book-theme 1.2 has are mended (`MENDS`; `bdl.css` and `bdl.js` in `book/_static`),
  and what no page loads is left out of the site.
"""

import hashlib
import html
import inspect
import io
import os
import re
import shutil
import sys
import tokenize
import typing
from pathlib import Path, PurePosixPath

from docutils import nodes
from sphinx import addnodes
from sphinx.ext.autodoc import ModuleDocumenter
from sphinx.jinja2glue import BuiltinTemplateLoader

ROOT = Path(__file__).resolve().parent.parent


# --- When to execute again -------------------------------------------------------------------------------------------


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
            shutil.rmtree(stale)
    config.nb_execution_cache_path = str(cache)
    config.bdl_sphinx_hash = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


# --- API pages -------------------------------------------------------------------------------------------------------

CLOSING_LINE = re.compile(r"(Source|Book|Chapter): (.+)")
IDENTIFIER = re.compile(r"\b(doi|arXiv):(\S*\w)")
STAR = re.compile(r"(?<=[\[ ])\*(?=\w+[\],])")  # in a shape, [*batch, n], it does not begin emphasis
LONE_LETTER = re.compile(r"(?<=\w: )(?=[A-Za-z]\.$)")  # "x: f." does not begin a list at f
RESOLVER = {"doi": "https://doi.org/", "arXiv": "https://arxiv.org/abs/"}


class ModuleInReadingOrder(ModuleDocumenter):
    """A module's members in the order of its files; those of a folder under the docstring of their file."""

    def filter_members(self, members, want_all):
        """Constants and names of types have no docstring; those in `__all__` belong on the page all the same."""
        public = [each for each in members if each.__name__ in (self.__all__ or [])]
        plain = [each for each in public if each.__name__.isupper() or typing.get_origin(each.object)]
        return super().filter_members(members, want_all) + [(each.__name__, each.object, True) for each in plain]

    def sort_members(self, documenters, order):
        overview = inspect.getdoc(self.object) or ""
        placed = sorted((_place(documenter, overview), at) for at, (documenter, _) in enumerate(documenters))
        ordered, last_file = [], self.modname
        for (_, file, _), at in placed:
            if file != last_file and file.startswith(f"{self.modname}."):
                ordered.append((_FileHeading(self, file), False))
            ordered.append(documenters[at])
            last_file = file
        return ordered


def _place(documenter, overview):
    """Where the folder's overview names the member's file (late if it does not), that file, and the line in it."""
    documenter.parse_name()
    documenter.import_object()
    member = documenter.object
    if inspect.isroutine(member) or inspect.isclass(member):
        file, line = member.__module__, inspect.getsourcelines(member)[1]
    else:
        file, line, _ = _assignment(documenter.modname, documenter.objpath[-1])
    return overview.find(file.rpartition(".")[2]) % sys.maxsize, file, line


class _FileHeading:
    """Stands among the members of a module and writes the docstring of the file that the next ones come from."""

    def __init__(self, documenter, module_name):
        self.documenter, self.module_name = documenter, module_name

    def generate(self, **settings):
        title, _, text = inspect.getdoc(sys.modules[self.module_name]).partition("\n")
        body = [line for line in text.splitlines() if not CLOSING_LINE.fullmatch(line)]
        anchor = [f".. py:module:: {self.module_name}", *self._options(), ""]
        anchor += [f".. py:currentmodule:: {self.documenter.modname}"]
        for line in ["", *anchor, "", f".. rubric:: {title.rstrip('.')}", *body, ""]:
            self.documenter.add_line(line, f"docstring of {self.module_name}")

    def _options(self):
        """A file may be named after its function; then the name leads to the function."""
        is_function = self.module_name.rpartition(".")[2] in (self.documenter.__all__ or [])
        return ["   :no-index:"] if is_function else []


def mark_text_as_text(app, what, name, obj, options, lines):
    """Escape what a reader takes for text and docutils or napoleon for more."""
    for at, line in enumerate(lines):
        pieces = re.split(r"(``.*?``)", line)  # every second one is code
        pieces[::2] = [STAR.sub(r"\\*", piece) for piece in pieces[::2]]
        lines[at] = LONE_LETTER.sub(r"\\", "".join(pieces))
    starts = [0] if what in ("attribute", "property") else []
    starts += [at + 1 for at, line in enumerate(lines[:-1]) if line == "Returns:"]
    for at in starts:  # "Log odds: the same shape" is no type with a description
        lines[at] = re.sub(r"(?=\S)", ": ", lines[at], count=1)


def spell_out_docstring(app, what, name, obj, options, lines):
    """Make the closing lines of a docstring fields with links; take a record's field from the comment beside it."""
    if what == "attribute" and lines and lines[0].startswith("Alias for field number"):
        lines[:] = [_field_comment(name)]
    if what == "data":
        lines[:] = [_comment(_assignment(*name.rsplit(".", 1))[2])]
    start = next((at for at, line in enumerate(lines) if CLOSING_LINE.fullmatch(line)), len(lines))
    closing = []
    for line in lines[start:]:
        if CLOSING_LINE.fullmatch(line):
            closing.append(line)
        elif line.strip():
            closing[-1] += f" {line.strip()}"
    lines[start:] = ["", *(_closing_field(app, line) for line in closing), ""]


def set_types_beside_arguments(app, domain, objtype, contentnode):
    """Give each documented argument and result its annotation, as code; Sphinx's own way breaks jaxtyping's apart."""
    signature = contentnode.parent[0]
    name = f"{signature.get('module')}.{signature.get('fullname')}"
    annotations = app.env.temp_data.get("annotations", {}).get(name, {})
    for fields in [node for node in contentnode if isinstance(node, nodes.field_list)]:
        for field in list(fields):
            kind, _, argument = field[0].astext().partition(" ")
            if kind in ("return", "returns") and "return" in annotations and len(field[1]):
                field[1][0].insert(0, [*_annotation_nodes(annotations.pop("return")), nodes.Text(" – ")])
            elif kind == "param" and (name := argument.replace("\\", "").lstrip("*")) in annotations:
                text = nodes.paragraph("", "", *_annotation_nodes(annotations[name]))
                heading = nodes.field_name("", f"type {argument}")
                fields.insert(fields.index(field) + 1, nodes.field("", heading, nodes.field_body("", text)))


def _annotation_nodes(annotation):
    """An annotation as code, the library's own records in it as links, names of others without their module."""
    for at, piece in enumerate(re.split(r"~?\b(bdl_lib[\w.]+)", annotation)):
        if at % 2:
            target = {"refdomain": "py", "reftype": "class", "reftarget": piece}
            yield addnodes.pending_xref("", nodes.literal("", piece.rpartition(".")[2]), **target)
        elif piece:
            yield nodes.literal("", re.sub(r"~?\b\w+\.(?=\w)", "", piece).replace("'", '"'))


def _closing_field(app, line):
    kind, text = CLOSING_LINE.fullmatch(line).groups()
    if kind == "Book":
        return f":In the book: :ref:`{text}`"
    if kind == "Chapter":
        document = str(PurePosixPath(text).with_suffix(""))
        return f":In the book: :doc:`/{document}`" if document in app.env.found_docs else ""
    return ":Source: " + IDENTIFIER.sub(lambda found: f"`{found[0]} <{RESOLVER[found[1]]}{found[2]}>`__", text)


def _field_comment(name):
    """The comment beside the field of a NamedTuple."""
    record_name, _, field = name.rpartition(".")
    module_name, _, class_name = record_name.rpartition(".")
    source = inspect.getsource(getattr(sys.modules[module_name], class_name))
    declaration = re.search(rf"^\s+{field}\s*:.*$", source, re.MULTILINE)
    return _comment(declaration[0]) if declaration else ""


def _assignment(package, name):
    """The module that assigns a constant of a package, the number of the line, and the line."""
    for module_name in [package, *sorted(each for each in sys.modules if each.startswith(f"{package}."))]:
        for number, line in enumerate(inspect.getsource(sys.modules[module_name]).splitlines(), 1):
            if re.match(rf"([\w, ]+, )?{name}\b[\w, ]*(: [^=]+)?=", line):
                return module_name, number, line
    return package, 0, ""


def _comment(line):
    """The comment at the end of a line of code, as text without markup."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(line.strip()).readline))
    except tokenize.TokenError:  # the line is only part of a statement
        return ""
    comments = [token.string.lstrip("#: ") for token in tokens if token.type == tokenize.COMMENT]
    return re.sub(r"([*|\\])", r"\\\1", "".join(comments))


# --- Mending the theme -----------------------------------------------------------------------------------------------

DARK = 'matchMedia("(prefers-color-scheme: dark)").matches'
MENDS = [  # (what the theme writes, what the page gets); tests/test_site.py finds out when one no longer fits
    # A page has no colours until a script has resolved "auto": never without JavaScript, late with it.
    (r'(<html [^>]*)data-theme="auto"', r'\1data-theme="light"'),
    (r'localStorage\.getItem\("theme"\) \|\| "auto"', f'localStorage.getItem("theme") || ({DARK} ? "dark" : "light")'),
    # The icons, once more, as 1.4 MB of script in front of every page: the web fonts have them too.
    (r"<!-- So that users can add custom icons -->\s*<script [^>]*fontawesome\.js[^>]*></script>", ""),
    # Settings of sphinx-thebe, which is not used (see drop_thebe).
    (r'<script type="text/x-thebe-config">.*?</script>\s*<script>kernelName = .*?</script>', ""),
    # A second h1, above the article, for print only; a title and a table of contents are on the paper without it.
    (r'<div id="jb-print-docs-body".*?(?=<div id="searchbox">)', ""),
    # Accessible names that leave out the visible text, or that are missing.
    (r'(<button class="btn search-button-field[^>]*?) aria-label="[^"]*"', r"\1"),
    (r'(<i class="theme-switch[^>]*?) title="[^"]*"', r'\1 aria-hidden="true"'),
    (r'<summary aria-label="Toggle hidden content">', "<summary>"),
    (r'<summary>(?=<span class="toctree-toggle")', '<summary aria-label="Pages of this part">'),
    # The sidebar's head is in no landmark.
    (r'<div id="pst-primary-sidebar"', r'\g<0> role="complementary" aria-label="Book"'),
    # A list whose children are no list items: the role is deprecated.
    (r'role="doc-biblioentry"', 'role="listitem"'),
    # Names, punctuation, operators and spaces of code, each in an element of its own: a fifth of the site's size.
    (r'<span class="[npow]">([^<]*)</span>', r"\1"),
]
UNUSED = ("**/*.map", "**/*.ttf", "**/*webpack-macros.html", "locales", "scripts/fontawesome.js*", "sphinx-thebe.*")
START_PAGE = """<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <meta http-equiv="refresh" content="0; url={target}">
    <link rel="canonical" href="{target}">
    <title>{title}</title>
  </head>
  <body>
    <main>
      <h1>{title}</h1>
      <p><a href="{target}">To the first page</a></p>
    </main>
  </body>
</html>
"""


class MendedPages(BuiltinTemplateLoader):
    """Sphinx's templates, with what is wrong in the theme's markup mended."""

    def render(self, template, context):
        page = super().render(template, context)
        for broken, mended in MENDS:
            page = re.sub(broken, mended, page, flags=re.DOTALL)
        return page


def drop_thebe(app, pagename, templatename, context, doctree):
    """Pages have no live kernel: without this, sphinx-thebe declares its constants twice and names an outside host."""
    for kind in ("script_files", "css_files"):
        context[kind] = [
            file
            for file in context.get(kind, [])
            if "thebe" not in f"{file} {getattr(file, 'filename', '')} {getattr(file, 'attributes', '')}".lower()
        ]


def plain_source_page(app, pagename, templatename, context, doctree):
    """The pages of source code are many: without the book's sidebar and scripts each is half as large."""
    return "source.html" if pagename.startswith("_modules/") else None


def forget_old_pages(app):
    """Drop pages of source code that viewcode would keep: older than this file, or of a module that is gone."""
    folder = Path(app.outdir) / "_modules"
    for page in folder.rglob("*.html"):
        module = ROOT / page.relative_to(folder).with_suffix("")
        is_there = module.with_suffix(".py").exists() or (module / "__init__.py").exists()
        if not is_there or page.stat().st_mtime < Path(__file__).stat().st_mtime:
            page.unlink()


def tidy_the_site(app, exception):
    """Leave out what no page loads or leads to, and give the site's root a page that leads to the first one."""
    if exception or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    for path in [path for pattern in UNUSED for path in static.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for page in ("_modules/index.html", "py-modindex.html"):
        (Path(app.outdir) / page).unlink(missing_ok=True)
    first_page = Path(app.config.root_doc)
    for page in (Path(app.outdir) / first_page.parent).rglob("*.html"):
        if page.relative_to(app.outdir).with_suffix("").as_posix() not in app.env.found_docs:
            page.unlink()  # of a chapter that was renamed or taken out
    target = app.builder.get_target_uri(app.config.root_doc)
    start_page = START_PAGE.format(target=target, title=html.escape(app.config.project))
    (Path(app.outdir) / "index.html").write_text(start_page, encoding="utf-8")


def setup(app):
    os.environ["BDL_EXPLORE"] = "page"
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: a second thread costs more than it gives
    app.add_config_value("bdl_library_hash", "", "env")
    app.add_config_value("bdl_sphinx_hash", "", "env")  # of this file
    app.connect("config-inited", key_the_cache, priority=100)

    app.add_autodocumenter(ModuleInReadingOrder, override=True)
    app.connect("autodoc-process-docstring", mark_text_as_text, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", spell_out_docstring, priority=600)  # after napoleon
    app.connect("object-description-transform", set_types_beside_arguments, priority=400)  # before autodoc's own

    app.connect("builder-inited", forget_old_pages)
    app.config.template_bridge = f"{__name__}.MendedPages"
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", plain_source_page)
    app.connect("build-finished", tidy_the_site, priority=900)
    app.add_js_file("bdl.js", loading_method="defer")

    player = ROOT / "bdl_lib" / "player"
    app.connect("config-inited", lambda app, config: config.html_static_path.append(str(player)), priority=100)
    app.add_js_file("player.js", loading_method="defer")
    app.add_css_file("player.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
