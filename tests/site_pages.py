"""The built pages as text: what `tests/test_site.py` needs to know of them without a browser."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

HEADING = re.compile(r"h[1-6]")
LINKS = {("a", "href"), ("link", "href"), ("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src")}
CLOSED = {"main", "article", "title", "script", "style", "pre", "td", "th", *(f"h{level}" for level in range(1, 7))}


class Page(NamedTuple):
    """What one HTML file says; links and images in the order of the file."""

    lang: str | None
    title: str
    headings: list[tuple[int, str]]  # level and text
    ids: set[str]
    links: list[str]  # of every element that loads or leads somewhere
    article_links: list[str]
    images: list[tuple[str | None, str]]  # alternative text and address, inside main
    text: str  # of the article, code and tables included
    words: list[str]  # of the article's prose: no code, no headings
    rows: list[list[str]]  # of the article's tables
    has_maths: bool


def read_page(path: Path) -> Page:
    """Parse one built page."""
    parser = _Parser()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser.page()


def find_pages(site: Path) -> list[str]:
    """Every page of the site, as a path with slashes; the root only leads to the first page, and is none of them."""
    names = (path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    return sorted(name for name in names if name != "index.html" and not name.startswith("_static/"))


def resolve(page: str, link: str) -> tuple[str, str] | None:
    """The file in the site and the anchor that a link on a page means; None for a link to somewhere else."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    steps = page.split("/")[:-1]
    for step in unquote(parts.path).split("/") if parts.path else [page.split("/")[-1]]:
        if step == "..":
            if not steps:
                return "(above the site)", parts.fragment
            steps.pop()
        elif step not in ("", "."):
            steps.append(step)
    return "/".join(steps), unquote(parts.fragment)


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = dict.fromkeys(CLOSED, 0)
        self.lang, self.has_maths = None, False
        self.title, self.headings, self.ids = [], [], set()
        self.links, self.article_links, self.images = [], [], []
        self.text, self.prose, self.rows = [], [], []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag in self.open:
            self.open[tag] += 1
        if tag == "html":
            self.lang = named.get("lang")
        if HEADING.fullmatch(tag):
            self.headings.append((int(tag[1]), []))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append([])
        if tag == "img" and self.open["main"]:
            self.images.append((named.get("alt"), named.get("src", "")))
        self.ids.update(named[key] for key in ("id", "name") if named.get(key))
        self.has_maths |= "math" in (named.get("class") or "").split()
        for key, value in attributes:
            if (tag, key) in LINKS and value is not None:
                self.links.append(value)
                if tag == "a" and self.open["article"]:
                    self.article_links.append(value)

    def handle_endtag(self, tag):
        if self.open.get(tag):
            self.open[tag] -= 1

    def handle_data(self, data):
        if self.open["script"] or self.open["style"]:
            return
        is_heading = any(self.open[f"h{level}"] for level in range(1, 7))
        if self.open["title"]:
            self.title.append(data)
        if is_heading and self.headings:
            self.headings[-1][1].append(data)
        if (self.open["td"] or self.open["th"]) and self.rows:
            self.rows[-1][-1].append(data)
        if self.open["article"]:
            self.text.append(data)
            if not (is_heading or self.open["pre"]):
                self.prose.append(data)

    def page(self):
        return Page(
            self.lang,
            "".join(self.title).strip(),
            [(level, "".join(text).strip()) for level, text in self.headings],
            self.ids,
            self.links,
            self.article_links,
            self.images,
            " ".join("".join(self.text).split()),
            re.findall(r"[^\W\d_]+", " ".join(self.prose)),
            [["".join(cell).strip() for cell in row] for row in self.rows],
            self.has_maths,
        )
