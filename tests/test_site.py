"""The built book, as a reader gets it: every page, in a real browser, light and dark, wide and narrow.

The pages are found, not listed: a chapter to come is tested without an edit here. Of the pages of source code, which
have one template, the browser opens the longest. Needs `_build/html` (or the folder that `BDL_SITE` names) and an
installed Chromium; on a machine that lacks one the tests are skipped, in CI they fail.
"""

import functools
import importlib
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import site_pages
import site_server
import yaml

pytestmark = pytest.mark.site
ROOT = Path(__file__).parent.parent
SITE = Path(os.environ.get("BDL_SITE", ROOT / "_build" / "html")).resolve()
FIRST_PAGE = "book/index.html"  # stands in for the pages of a site that is not there
PAGES = site_pages.find_pages(SITE) or [FIRST_PAGE]
CHAPTERS = [page for page in PAGES if re.fullmatch(r"book/\d\d-[\w-]+\.html", page)] or [FIRST_PAGE]
API_PAGES = [page for page in PAGES if re.fullmatch(r"book/api/(?!index)\w+\.html", page)] or [FIRST_PAGE]
SOURCES = [page for page in PAGES if page.startswith("_modules/")]  # pages of source code, all from one template
SIZES = {page: (SITE / page).stat().st_size for page in SOURCES}
IN_BROWSER = [page for page in PAGES if page not in SIZES] + sorted(SIZES, key=SIZES.get)[-6:]  # the longest sources
MODES = ["light", "dark"]
MEGABYTE = 10**6

every_page = pytest.mark.parametrize("page", PAGES)
every_page_in_browser = pytest.mark.parametrize("page", IN_BROWSER)
every_chapter = pytest.mark.parametrize("page", CHAPTERS)
every_mode = pytest.mark.parametrize("mode", MODES)


def missing(what):
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@pytest.fixture(scope="module", autouse=True)
def built_site():
    if not (SITE / FIRST_PAGE).exists():
        missing(f"{SITE} holds no built book: run 'make book' first")


@functools.cache
def read(page):
    return site_pages.read_page(SITE / page)


# ---- Without a browser


@every_page
def test_page_has_language_title_and_an_orderly_outline(page):
    found = read(page)
    assert found.lang == "en"
    assert found.title.removeprefix("—").strip()
    levels = [level for level, _ in found.headings]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(text for _, text in found.headings)
    skipped = [
        text for (above, _), (level, text) in zip(found.headings, found.headings[1:], strict=False) if level > above + 1
    ]
    assert not skipped


@every_page
def test_links_lead_somewhere(page):
    found = read(page)
    dead = [link for link in found.links if link.startswith("/") or is_dead(page, link)]
    assert not dead


def is_dead(page, link):
    meant = site_pages.resolve(page, link)
    if meant is None:
        return False
    file, anchor = meant
    if not (SITE / file).is_file():
        return True
    return bool(anchor) and file.endswith(".html") and anchor not in read(file).ids


@every_page
def test_images_say_what_they_show(page):
    a_file_name = re.compile(r"\S*(/|\.(png|svg|jpe?g|webp|gif))\S*|image|figure", re.IGNORECASE)
    silent = [source for alt, source in read(page).images if not (alt or "").strip() or a_file_name.fullmatch(alt)]
    assert not silent


@every_page
def test_page_is_small_enough(page):
    images = {site_pages.resolve(page, source) for _, source in read(page).images} - {None}
    size = sum((SITE / file).stat().st_size for file in [page, *(image for image, _ in images)])
    assert size < 2.5 * MEGABYTE


def test_site_without_its_figures_is_small_enough():
    size = 0
    for path in SITE.rglob("*"):
        if path.is_file() and path.relative_to(SITE).parts[0] != "_images":
            size += path.stat().st_size
        if path.suffix == ".html":
            frames = re.findall(rb'"data:image/[^"]*"', path.read_bytes())
            size -= sum(map(len, frames))
    assert size < 12 * MEGABYTE


def test_the_root_leads_to_the_first_page():
    root = read("index.html")
    assert root.lang == "en"
    assert root.title
    assert FIRST_PAGE in root.links
    assert f'content="0; url={FIRST_PAGE}"' in (SITE / "index.html").read_text(encoding="utf-8")


@every_chapter
def test_chapter_opens_in_colab(page):
    repository = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]
    owner_and_name = urlsplit(repository["url"]).path.strip("/")
    notebook = page.removesuffix(".html") + ".ipynb"
    expected = f"https://colab.research.google.com/github/{owner_and_name}/blob/{repository['branch']}/{notebook}"
    assert expected in read(page).links
    assert (ROOT / notebook).exists()


@every_chapter
def test_chapter_and_its_library_page_name_each_other(page):
    module = re.search(r"Library file\s+bdl_lib\.(\w+)", read(page).text)
    assert module, "the chapter's head names no library file"
    library_page = f"book/api/{module[1]}.html"
    assert library_page in leads_to(page)
    assert page in leads_to(library_page)


def leads_to(page):
    meant = [site_pages.resolve(page, link) for link in read(page).article_links]
    return {file for file, _ in filter(None, meant)}


@pytest.mark.parametrize("page", API_PAGES)
def test_library_page_has_every_public_name(page):
    module = importlib.import_module(f"bdl_lib.{Path(page).stem}")
    names = [name for name in module.__all__ if callable(getattr(module, name))]
    assert names
    assert {f"{module.__name__}.{name}" for name in names} <= read(page).ids
    assert "Alias for field number" not in read(page).text


@every_chapter
def test_chapter_takes_as_long_as_it_says(page):
    """The budget holds for what the page states; the wall clock of this build may have been shared with others."""
    stated = re.search(r"Runs in about (\d+(?:\.\d+)?) s", read(page).text)
    assert stated, "the chapter's head does not say how long it runs"
    header, *rows = read("book/timings.html").rows
    at = header.index("Run Time (s)")
    seconds = {row[0]: row[at] for row in rows if len(row) == len(header)}
    recorded = float(seconds[page.removesuffix(".html")])
    assert float(stated[1]) <= 60
    assert recorded <= 3 * float(stated[1]) + 30


# ---- In the browser


@pytest.fixture(scope="module")
def address(built_site):
    with site_server.serve(SITE) as served:
        yield served


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = site_server.find_browser() or missing("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=site_server.FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def open_page(browser):
    """A function that gives the one page with these settings of the browser; it is opened at its first use."""

    @functools.cache
    def opened(width=1300, **settings):
        return browser.new_context(viewport={"width": width, "height": 900}, **settings).new_page()

    return opened


@pytest.fixture(scope="module")
def visit(open_page, address):
    """A function that tells what a page did in a mode; each is visited once."""
    axe_module = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    axe = (Path(axe_module.__file__).parent / "axe.min.js").read_text(encoding="utf-8")

    @functools.cache
    def visited(page, mode):
        return site_server.visit(open_page(color_scheme=mode), address, page, axe)

    return visited


@every_mode
@every_page_in_browser
def test_page_loads_without_complaint(visit, page, mode):
    visited = visit(page, mode)
    assert not visited.errors
    assert not visited.requests


@every_mode
@every_page_in_browser
def test_axe_finds_nothing_serious(visit, page, mode):
    serious = [
        f"{violation['id']} ({violation['impact']}): {node['target']} {node['failureSummary']}"
        for violation in visit(page, mode).violations
        for node in violation["nodes"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert not serious, "\n".join(serious[:10])


@every_page_in_browser
def test_page_does_not_scroll_sideways(open_page, address, page):
    tab = open_page(color_scheme="light", width=400)
    tab.goto(address + page)
    tab.evaluate(site_server.SETTLE)
    tab.evaluate(site_server.UNFOLD)
    assert not tab.evaluate(site_server.OUT_OF_SIGHT)


@every_page_in_browser
def test_formulas_are_typeset(visit, page):
    visited = visit(page, "light")
    assert not visited.formulas
    assert visited.maths == read(page).has_maths


@every_page_in_browser
def test_equations_fit_their_column(open_page, address, page):
    tab = open_page(color_scheme="light")
    tab.goto(address + page)
    tab.evaluate(site_server.SETTLE)
    tab.evaluate(site_server.UNFOLD)
    assert not tab.evaluate(site_server.CUT_EQUATIONS)


@every_mode
def test_mode_follows_the_reader(open_page, address, mode):
    page = open_page(color_scheme=mode)
    page.goto(address + FIRST_PAGE)
    assert page.evaluate("document.documentElement.dataset.theme") == mode
    dark_ground = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((part) => part < 60)"
    )
    assert dark_ground == (mode == "dark")


def test_the_root_opens_the_first_page(open_page, address):
    page = open_page(color_scheme="light")
    page.goto(address)
    page.wait_for_url(address + FIRST_PAGE)


@every_chapter
def test_search_finds_the_chapter(open_page, address, page):
    others = {word for other in PAGES if other != page for word in read(other).words}
    own = {word for word in read(page).words if re.fullmatch("[a-z]{6,}", word)} - others
    assert own, "the chapter has no word of its own"
    tab = open_page(color_scheme="light")
    tab.goto(address + page)
    tab.keyboard.press("Control+k")
    tab.keyboard.type(max(own, key=lambda word: (len(word), word)))
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/search.html?q=*")
    tab.locator(f'#search-results a[href^="{page}"]').first.wait_for()  # results come in one by one


# ---- Explorable figures (markup: bdl_lib/widgets/page.py)

PLAYER = ".bdl-explore"
PICTURE = f"{PLAYER}-frame:visible"
CONTROL = "input, select"


def has_player(page):
    return (SITE / page).exists() and 'class="bdl-explore"' in (SITE / page).read_text(encoding="utf-8")


every_page_with_players = pytest.mark.parametrize("page", list(filter(has_player, PAGES)) or [FIRST_PAGE])


def shown(player):
    """The picture that a player shows, once it has been decoded: its address, its text and its width."""
    return player.locator(PICTURE).evaluate(
        "async (image) => (await image.decode(), [image.src, image.alt, image.naturalWidth])"
    )


@every_page_with_players
def test_every_control_changes_the_picture(open_page, address, page):
    tab = open_page(color_scheme="light")
    tab.goto(address + page)
    for player in tab.locator(PLAYER).all():
        controls = player.locator(CONTROL).all()
        assert controls
        controls[0].focus()
        for at, control in enumerate(controls):
            assert control.evaluate("(field) => field === document.activeElement"), (
                f"Tab does not reach control {at + 1}"
            )
            count = control.evaluate("(field) => field.options ? field.options.length : Number(field.max) + 1")
            tab.keyboard.press("Home")
            pictures = [shown(player)]
            for _ in range(count - 1):
                tab.keyboard.press("ArrowDown" if control.evaluate("(field) => !!field.options") else "ArrowRight")
                pictures.append(shown(player))
            assert len({source for source, _, _ in pictures}) == count
            assert len({alt for _, alt, _ in pictures}) == count
            assert all(width for _, _, width in pictures)
            tab.keyboard.press("Tab")


@every_page_with_players
def test_without_script_the_default_picture_is_there(open_page, address, page):
    tab = open_page(java_script_enabled=False)
    tab.goto(address + page)
    for player in tab.locator(PLAYER).all():
        assert player.locator(PICTURE).count() == 1
        assert shown(player)[2]
        assert not player.locator(f"{CONTROL}, button").locator("visible=true").count()


@every_page_with_players
def test_paper_shows_the_default_picture(open_page, address, page):
    tab = open_page(color_scheme="light", width=800)
    tab.goto(address + page)
    default = [shown(player)[0] for player in tab.locator(PLAYER).all()]
    for control in tab.locator(f"{PLAYER} input").all():
        control.press("ArrowRight")
    tab.emulate_media(media="print")
    assert [shown(player)[0] for player in tab.locator(PLAYER).all()] == default
    assert not tab.locator(f"{PLAYER} :is({CONTROL}):visible").count()
    tab.emulate_media(media="screen")


@every_chapter
def test_chapter_works_from_a_folder(open_page, page):
    """The book, unpacked on a machine without network, Python or server."""
    tab = open_page(color_scheme="light")
    with site_server.watch(tab, SITE.as_uri()) as (errors, requests):
        tab.goto((SITE / page).as_uri())
        tab.evaluate(site_server.SETTLE)
    assert not errors
    assert not requests
    assert tab.locator(f"{PLAYER}[data-ready]").count() == tab.locator(PLAYER).count()
