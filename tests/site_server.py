"""The built site in a real browser: served as GitHub Pages serves a project, under a folder, over HTTP on loopback."""

import contextlib
import functools
import http.server
import shutil
import threading
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = "/name/"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# No sandbox: containers refuse it. No extras that would call home, or wait for it.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

SETTLE = """async () => {
    if (window.MathJax?.startup) await MathJax.startup.promise;
    await document.fonts.ready;
}"""
# The theme takes 300 ms to find out that something scrolls now, and longer while the page is at work.
UNFOLD = """async () => {
    const folds = document.querySelectorAll("article details:not([open]), article .toggle-button-hidden");
    for (const fold of folds) fold.localName === "details" ? (fold.open = true) : fold.click();
    const outOfReach = (code) => code.scrollWidth > code.clientWidth && code.tabIndex < 0;
    const isDone = () => ![...document.querySelectorAll("article pre")].some(outOfReach);
    const pause = () => new Promise((resolve) => setTimeout(resolve, 500));
    if (folds.length) await pause();
    for (let tries = 0; tries < 10 && !isDone(); tries++) await pause();
}"""
# Thousands of letters look alike to axe, and take it a minute: of coloured words in code one of a kind stays marked, of
# a formula its text for screen readers. All else stays.
THIN = """() => {
    const seen = new Set();
    const known = [...document.querySelectorAll("pre span, code span, dt span")].filter((word) => {
        const {color, fontSize} = getComputedStyle(word);
        const box = word.closest("code, dt, li, div");
        const key = [word.className, color, fontSize, box.localName, getComputedStyle(box).backgroundColor].join();
        return seen.has(key) || !seen.add(key);
    });
    for (const word of known) word.replaceWith(...word.childNodes);
    for (const maths of document.querySelectorAll("mjx-math")) maths.replaceChildren();
    for (const maths of document.querySelectorAll("mjx-assistive-mml")) maths.replaceChildren(maths.textContent);
}"""
# The rules that axe runs by default, and those that it calls experimental; not the level AAA.
AXE = """async () => {
    const wanted = (rule) => !rule.tags.includes("wcag2aaa") && !rule.tags.includes("deprecated");
    const rules = axe.getRules().map((rule) => [rule.ruleId, {enabled: wanted(rule)}]);
    const options = {resultTypes: ["violations"], rules: Object.fromEntries(rules), preload: false};
    return (await axe.run(document, options)).violations;
}"""


# A formula that MathJax left alone, refused, or set in red because it does not know a command; a backslash in its text.
MATHS = r"""() => {
    const troubles = [];
    for (const place of document.querySelectorAll("article .math")) {
        const bad = place.querySelector('mjx-merror, [style*="color: red"], mjx-mtext .mjx-c5C');
        if (bad || !place.querySelector("mjx-container") || place.textContent.includes("\\("))
            troubles.push(place.textContent.trim() || place.outerHTML.slice(0, 200));
    }
    return troubles;
}"""
# Equations that have to be scrolled to be read; bdl.js sets long ones smaller.
CUT_EQUATIONS = """() => {
    const equations = [...document.querySelectorAll("article mjx-container[display]")];
    return equations.filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent.trim().slice(0, 200));
}"""
# What a narrow window shows only when the whole page is moved, or, beyond its left edge, never.
OUT_OF_SIGHT = """() => {
    const {scrollWidth, clientWidth} = document.documentElement;
    const parts = [...document.querySelectorAll("article :is(mjx-container, img, table, pre)")];
    const cut = parts.filter((part) => part.getClientRects().length && part.getBoundingClientRect().left < 0);
    const wide = scrollWidth > clientWidth ? [`${scrollWidth} pixels of page in ${clientWidth} of window`] : [];
    return [...wide, ...cut.map((part) => part.outerHTML.slice(0, 200))];
}"""


class Visit(NamedTuple):
    """What one page did in the browser."""

    errors: list[str]  # console errors and uncaught exceptions
    requests: list[str]  # those that failed, or went to another host
    violations: list[dict[str, Any]]  # of accessibility rules, as axe reports them
    formulas: list[str]  # that were not set properly
    maths: bool  # whether there are formulas at all


def find_browser() -> str | None:
    """The path of an installed Chromium."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open: a page has thirty files

    def translate_path(self, path):
        inside = path.startswith(FOLDER)
        return super().translate_path("/" + path.removeprefix(FOLDER) if inside else "/outside-of-the-site")

    def end_headers(self):
        self.send_header("Cache-Control", "max-age=600")
        super().end_headers()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve(site: Path):
    """Serve a folder on loopback while the context lasts; gives the address of the site."""
    handler = functools.partial(_Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}{FOLDER}"
        server.shutdown()


@contextlib.contextmanager
def watch(page, allowed: str):
    """Collect a page's complaints: console errors, and requests that fail or leave the allowed address."""
    errors, requests = [], []

    def on_console(message):
        if message.type == "error":
            errors.append(f"{message.text} ({message.location.get('url', '')})")

    def on_request(request):
        if not request.url.startswith((allowed, "data:", "blob:")):
            requests.append(f"to another host: {request.url}")

    def on_response(response):
        if response.status >= 400:
            requests.append(f"status {response.status}: {response.url}")

    listeners = {
        "console": on_console,
        "pageerror": lambda error: errors.append(str(error)),
        "request": on_request,
        "requestfailed": lambda request: requests.append(f"failed: {request.url} ({request.failure})"),
        "response": on_response,
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    yield errors, requests
    for event, listener in listeners.items():
        page.remove_listener(event, listener)


def visit(page, address: str, name: str, axe: str) -> Visit:
    """Open a page, unfold all that is folded, look at the formulas, and let axe (its source) look at the rest."""
    with watch(page, address) as (errors, requests):
        page.goto(address + name)
        page.evaluate(SETTLE)
        page.evaluate(UNFOLD)
        maths = page.evaluate("document.querySelector('article mjx-container') !== null")
        formulas = page.evaluate(MATHS)
        page.evaluate(THIN)
        page.evaluate(axe)
        violations = page.evaluate(AXE)
    return Visit(errors, requests, violations, formulas, maths)
