"""Explorable figures: what is in the output, what is refused, and the player in a real browser.

The figures here are filled with one colour, which says which values they were drawn for; what a test reads off the
page is decoded from its pictures, not from the code that chose them.
"""

import base64
import functools
import http.server
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from bdl_lib import widgets
from bdl_lib.widgets import frames

mpl.use("Agg")
ROOT = Path(__file__).parent.parent
VIEW = "application/vnd.jupyter.widget-view+json"
RED, GREEN = [0, 60, 120, 180, 240], [10, 90, 170, 250]


def paint(red, green=0):
    """A coloured field."""
    plt.gcf().add_artist(plt.Rectangle((0, 0), 1, 1, color=(red / 255, green / 255, 0)))
    plt.gcf().text(0.5, 0.5, f"{red} {green}", color="white")


def plot(power):
    """A curve with its band."""
    x = np.linspace(-1, 1, 100)
    ax = plt.gca()
    ax.plot(x, x**power, label="mean")
    ax.fill_between(x, x**power - 0.2, x**power + 0.2, alpha=0.3, label="mean ± 2 std")
    ax.set(xlabel="input", ylabel="target", ylim=(-1.3, 1.3))
    ax.legend(loc="lower right")


def noise(seed):
    """A photograph, in a way: smooth in places, of many colours."""
    x = np.linspace(0, 4, 300)
    light = np.sin(x[:, None] * [1, 1.3, 1.7] + seed)[:, None] * np.cos(x[:, None] * [1, 0.7, 1.1])[None]
    plt.gcf().figimage((light + 1) / 2, resize=True)


@pytest.fixture(autouse=True)
def as_in_plain_python(monkeypatch):
    monkeypatch.delenv("BDL_EXPLORE", raising=False)
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert not left, "the test left figures open"


def explore(draw=paint, *, figsize=(2, 1), **controls):
    return widgets.explore(draw, figsize=figsize, **(controls or {"red": RED}))


def bundle(explorable):
    return explorable._repr_mimebundle_()[0]


class Pictures(HTMLParser):
    """The images of a piece of HTML, in order: (in the template?, alt, src)."""

    def __init__(self, text):
        super().__init__()
        self.found, self.tags, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside |= tag == "template"
        if tag == "img":
            self.found.append((self.inside, dict(attributes)["alt"], dict(attributes)["src"]))

    def handle_endtag(self, tag):
        self.inside &= tag != "template"


def colour(uri):
    """Red and green of a picture's corner, and its size."""
    kind, data = uri.removeprefix("data:").split(",", 1)
    if kind == "image/svg+xml":
        fill = re.search(r"fill: #(\w\w)(\w\w)(\w\w)", urllib.parse.unquote(data).split("patch_2")[1])
        return tuple(int(level, 16) for level in fill.groups()[:2])
    image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    return image.getpixel((3, 3))[:2]


# What is in the output


def test_plain_python_gets_all_three_renderings():
    data, metadata = explore()._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/html", "image/png", VIEW}
    assert metadata["image/png"] == {"width": 192, "height": 96, "alt": "A coloured field, at red = 0"}
    assert Image.open(io.BytesIO(data["image/png"])).size == (288, 144)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("page", {"text/html"}), ("standalone", {"text/html"}), ("live", {VIEW}), ("still", set())],
)
def test_the_environment_chooses_the_rendering(monkeypatch, asked, expected):
    monkeypatch.setenv("BDL_EXPLORE", asked)
    data = bundle(explore())
    assert set(data) == {"text/plain", "image/png"} | expected
    has_code = bool(re.search(r"<script|<style", data.get("text/html", "")))
    assert has_code == (asked == "standalone")


def test_unknown_rendering_is_refused(monkeypatch):
    monkeypatch.setenv("BDL_EXPLORE", "gif")
    with pytest.raises(ValueError, match=r"BDL_EXPLORE must be one of \['live', 'page', 'standalone', 'still'\].*gif"):
        explore()


def test_every_frame_is_the_one_of_its_values(monkeypatch):
    monkeypatch.setenv("BDL_EXPLORE", "page")
    made = explore(red=widgets.control(RED, default=120), green=widgets.control(GREEN, default=170))
    found = Pictures(made.html).found
    expected = [pair for pair in itertools.product(RED, GREEN) if pair != (120, 170)]
    assert [colour(uri) for inside, _, uri in found if inside] == expected
    assert [alt for inside, alt, _ in found if inside] == [
        f"A coloured field, at red = {red} and green = {green}" for red, green in expected
    ]
    (outside,) = [(alt, colour(uri)) for inside, alt, uri in found if not inside]
    assert outside == ("A coloured field, at red = 120 and green = 170", (120, 170))
    assert Image.open(io.BytesIO(made.png)).getpixel((3, 3)) == (120, 170, 0)


def test_the_page_loads_nothing_and_runs_nothing(monkeypatch):
    monkeypatch.setenv("BDL_EXPLORE", "page")
    made = explore(red=RED, green=GREEN)
    for tag, attributes in Pictures(made.html).tags:
        assert tag not in {"script", "style", "link", "iframe", "object"}
        assert not [key for key in attributes if key.startswith("on") or key in {"style", "href", "srcset"}]
        assert attributes.get("src", "data:").startswith("data:")


def test_texts_cannot_break_out_of_the_markup(monkeypatch):
    monkeypatch.setenv("BDL_EXPLORE", "page")
    nasty = "<img alt=x src=y>\"'&</template>"
    made = widgets.explore(
        lambda kind: paint(len(kind)),
        alt=nasty,
        figsize=(2, 1),
        kind=widgets.control(["a", nasty], label=nasty),
    )
    assert len(Pictures(made.html).found) == 2
    assert Pictures(made.html).found[0][1].startswith(nasty)


def curves(size):
    """Lines without any text, on a large sheet."""
    ax = plt.gca()
    ax.plot(np.sin(np.linspace(0, 9, 60)[:, None] + [0, size, 2 * size]))
    ax.axis("off")


@pytest.mark.parametrize(
    ("draw", "name", "expected"),
    [(plot, "power", "webp VP8L"), (noise, "seed", "webp VP8 "), (curves, "size", "svg")],
)
def test_the_smallest_format_is_taken(monkeypatch, draw, name, expected):
    monkeypatch.setenv("BDL_EXPLORE", "page")
    made = explore(draw, figsize=(5, 3), **{name: [1, 2]})
    uris = [uri for *_, uri in Pictures(made.html).found]
    if expected == "svg":
        assert {uri.split(",")[0] for uri in uris} == {"data:image/svg+xml"}
    else:  # lossless with few colours, or lossy, as the file itself says
        files = [base64.b64decode(uri.removeprefix("data:image/webp;base64,")) for uri in uris]
        assert {f"webp {file[12:16].decode()}" for file in files} == {expected}
    obvious = io.BytesIO()
    Image.open(io.BytesIO(made.png)).save(obvious, "WEBP", lossless=True)
    assert len(uris[0]) < len(obvious.getvalue()) * 4 / 3


def busy(power):
    plot(power)
    for phase in range(12):
        plt.plot(np.linspace(-1, 1, 50), np.sin(np.linspace(-3, 3, 50) + phase) / 2, linewidth=0.8, alpha=0.5)


@pytest.mark.parametrize(("draw", "most", "usual"), [(plot, 2, 1), (busy, 24, 14)])
def test_a_frame_looks_like_the_exact_picture(monkeypatch, draw, most, usual):
    monkeypatch.setenv("BDL_EXPLORE", "page")
    made = explore(draw, figsize=(6.5, 3.6), power=[1])
    *_, uri = Pictures(made.html).found[0]
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")
    exact = Image.open(io.BytesIO(made.png))
    assert image.size == exact.size == (936, 518)
    error = np.abs(np.asarray(image, dtype=int) - np.asarray(exact, dtype=int)).max(-1)  # levels of 0 to 255
    assert error.max() <= most
    assert np.quantile(error, 0.999) <= usual


def test_alt_text_is_the_docstring_or_said_frame_by_frame(monkeypatch):
    monkeypatch.setenv("BDL_EXPLORE", "page")
    assert explore().alt == "A coloured field, at red = 0"
    assert widgets.explore(paint, alt="Red,\n  plain.", red=RED).alt == "Red, plain, at red = 0"
    spoken = widgets.explore(paint, alt=lambda red: f"Redness {red}", red=RED, figsize=(2, 1))
    assert [alt for _, alt, _ in Pictures(spoken.html).found] == [f"Redness {red}" for red in RED]


def test_labels_and_formats():
    made = explore(
        lambda step_size, kind: paint(9),
        step_size=widgets.control([-0.25, 0.001, 1e-7], format=".1e"),
        kind=widgets.control([True, False], label="HMC steps", format=lambda value: "yes" if value else "no"),
    )
    assert made.alt == "Interactive figure, at step size = −2.5e-01 and HMC steps = yes".replace("e-", "e−")
    assert widgets.control([0.1 + 0.2, 2.0, 1e-9]).texts == ("0.3", "2", "1e−09")


def test_numpy_and_torch_values():
    torch = pytest.importorskip("torch")
    for values in (np.array([1, 2, 4]), torch.tensor([1, 2, 4]), range(1, 5), iter([1, 2])):
        made = widgets.control(values)
        assert made.is_numeric
        assert {type(value) for value in made.values} == {int}


def test_the_same_bytes_again_in_another_process():
    code = """
import hashlib, matplotlib
matplotlib.use("Agg")
from test_widgets import curves, plot, widgets
for draw, controls in [(curves, dict(size=[1, 2])), (plot, dict(power=[1, 2]))]:
    made = widgets.explore(draw, figsize=(5, 3), **controls)
    print(hashlib.sha256(made.html.encode() + made.png).hexdigest())
"""

    def run(seed):
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": path, "SOURCE_DATE_EPOCH": f"{int(seed) * 10**8}"}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        return done.stdout

    assert run("1") == run("2") != ""


def test_importing_it_is_cheap():
    code = "import sys, bdl_lib.widgets; print([m for m in sys.modules if m in %r])"
    heavy = ("matplotlib", "ipywidgets", "IPython", "numpy", "PIL", "tqdm", "torch")
    done = subprocess.run([sys.executable, "-c", code % (heavy,)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Drawing


def test_frames_are_drawn_once_and_the_default_twice(monkeypatch):
    monkeypatch.setenv("BDL_EXPLORE", "page")
    calls = []
    explore(lambda red: (calls.append(red), paint(red)), red=widgets.control(RED, default=60))
    assert sorted(calls) == sorted([*RED, 60])  # the second is the check that it draws the same again


def test_a_live_kernel_draws_on_demand_and_remembers(monkeypatch):
    monkeypatch.setenv("BDL_EXPLORE", "live")
    calls = []
    made = explore(lambda red, kind: (calls.append((red, kind)), paint(red)), red=RED, kind=["a", "b"])
    slider, choice, view = made.widget.children
    assert calls == [(0, "a")]
    before = view.value
    slider.value = 180
    choice.value = "b"
    slider.value = 0
    choice.value = "a"
    assert view.value == before
    slider.index = 3
    assert calls == [(0, "a"), (180, "a"), (180, "b"), (0, "b")]
    alt, uri = re.search(r'alt="([^"]*)" src="([^"]*)"', view.value).groups()
    assert (alt, colour(uri)) == ("Interactive figure, at red = 180 and kind = a", (180, 0))


def test_a_live_error_is_shown_and_the_next_value_works(monkeypatch):
    monkeypatch.setenv("BDL_EXPLORE", "live")

    def fragile(red):
        paint(red * (60 // (red - 60) or 1) % 250)

    slider, view = explore(fragile, red=RED).widget.children
    slider.value = 60
    assert "draw failed at frame 2 of 5 (red = 60): ZeroDivisionError" in view.value
    assert "<img" not in view.value
    slider.value = 120
    assert "<img" in view.value


def test_settings_are_those_of_the_call(monkeypatch):
    monkeypatch.setenv("BDL_EXPLORE", "live")
    before = mpl.rcParams.copy()
    with mpl.rc_context({"figure.facecolor": "#204060", "savefig.bbox": "tight"}):
        made = explore(lambda red: plt.gcf().text(0.5, 0.5, "x"))
    slider, view = made.widget.children
    slider.value = 60  # drawn after the settings were put back
    uri = re.search(r'src="([^"]*)"', view.value)[1]
    assert colour(uri) == (0x20, 0x40)
    assert mpl.rcParams == before


def test_a_transparent_figure_gets_a_white_ground():
    def pixels(ground):
        with mpl.rc_context({"figure.facecolor": ground}):
            made = explore(lambda red: plt.gcf().text(0.3, 0.3, "text", fontsize=20))
        return np.asarray(Image.open(io.BytesIO(made.png)), dtype=int)

    assert np.abs(pixels("none") - pixels("white")).max() <= 2


@pytest.mark.parametrize("fails", [False, True])
def test_no_figure_leaks_and_the_current_one_stays_current(fails):
    mine = [plt.figure(), plt.figure()]
    plt.figure(mine[0].number)

    def draw(red):
        paint(red)
        plt.figure()
        if fails and red == 120:
            raise KeyError("no such thing")

    if fails:
        with pytest.raises(RuntimeError):
            explore(draw)
    else:
        explore(draw)
    assert plt.get_fignums() == [figure.number for figure in mine]
    assert plt.gcf() is mine[0]
    plt.close("all")


def test_progress_only_when_it_takes_long(capfd):
    explore(red=RED)
    assert capfd.readouterr().err == ""
    explore(lambda red: (time.sleep(0.35), paint(red)), red=[1, 2, 3, 4, 5, 6, 7, 8])
    assert "drawing frames" in capfd.readouterr().err


# What is refused


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ([], {}, "at least one value, got none"),
        ("abc", {}, "must be a list of values, got 'abc'"),
        (5, {}, "must be a list of values, got 5"),
        ({"a": 1}, {}, "must be a list of values"),
        ([1, 2, 1], {}, "values must differ from each other, got 1 twice"),
        ([1, float("nan")], {}, "must be finite, got nan"),
        ([1.0, float("inf")], {}, "must be finite, got inf"),
        ([1, "two"], {}, "all numbers, or all strings and booleans, got 'two'"),
        ([1, None], {}, "got None"),
        ([1, True], {}, "got True"),
        ([np.zeros(2)], {}, "must be numbers, strings or booleans"),
        ([1, 2], {"default": 3}, r"default must be one of \[1, 2\], got 3"),
        ([0.11, 0.12], {"format": ".1f"}, "texts of the values must differ from each other, got '0.1' twice"),
    ],
)
def test_bad_controls(values, settings, message):
    with pytest.raises(ValueError, match=message):
        widgets.control(values, **settings)
    if not settings:
        with pytest.raises(ValueError, match="control 'red': .*" + message):
            explore(red=values)


def two_sizes(red):
    plt.gcf().set_size_inches(2 + red / 240, 1)
    paint(red)


def own_figure(red):
    plt.subplots()[1].plot([0, 1])


def closing(red):
    paint(red)
    plt.close("all")


COUNTER = itertools.count()


@pytest.mark.parametrize(
    ("draw", "arguments", "message"),
    [
        (paint, {}, r"one or two controls, got 0"),
        (paint, dict(red=[1], green=[2], blue=[3]), r"one or two controls, got 3: \['red', 'green', 'blue'\]"),
        (paint, dict(blue=[1]), r"draw must take the controls \(blue\).*"),
        (paint, dict(green=[1]), r"draw must take the controls \(green\) and need nothing else: .*'red'"),
        ("paint", dict(red=[1]), "draw must be a function that draws, got 'paint'"),
        (paint, dict(red=[1], alt=" "), "alt must say what the picture shows, got ''"),
        (paint, dict(red=[1], alt=lambda red: None), "alt must say what the picture shows, got None"),
        (paint, dict(red=[1], name="a b"), "name must be an id .* got 'a b'"),
        (paint, dict(red=[1], name=["a"]), "name must be an id"),
        (paint, dict(red=[1], figsize=(3, float("nan"))), r"figsize must be .* got \(3, nan\)"),
        (paint, dict(red=[1], figsize=(0, 2)), "figsize must be"),
        (lambda red: None, dict(red=[1, 2]), r"left it empty at frame 1 of 2 \(red = 1\)$"),
        (own_figure, dict(red=[1]), r"left it empty .*: it made a figure of its own; plt.gcf\(\).subplots\(\)"),
        (closing, dict(red=[1]), "draw must leave the figure open"),
        (two_sizes, dict(red=RED), r"all frames must have one size, got \(288, 144\) and \(\d+, 144\) at red = 60"),
        (lambda red: paint(next(COUNTER)), dict(red=[1]), "the same picture for the same values, drew two for red = 1"),
    ],
)
def test_bad_use(draw, arguments, message):
    with pytest.raises(ValueError, match=message):
        widgets.explore(draw, **({"figsize": (2, 1)} | arguments))


def test_too_many_frames_are_refused_before_drawing_any():
    def never(red, green):
        raise AssertionError("drawn")

    with pytest.raises(ValueError, match=r"at most 60 frames, got 7 × 12 = 84: thin out 'green' from 12 values to 8"):
        explore(never, red=range(7), green=range(12))
    with pytest.raises(ValueError, match=r"at most 60 frames, got 61: thin out 'red' from 61 values to 60"):
        explore(lambda red: never(red, 0), red=range(61))
    assert explore(red=range(60))


def test_too_many_bytes_are_refused():
    def grain(seed, other):
        plt.gcf().figimage(np.random.default_rng(seed).random((400, 400, 3)), resize=True)

    message = r"at most 600 kB, got \d{3,4} kB \(10 frames of about \d+\.\d kB\): thin out 'seed' from 5 values to \d\b"
    with pytest.raises(ValueError, match=message):
        explore(grain, seed=range(5), other=range(2))


def test_an_error_of_draw_says_where():
    def draw(red, green):
        paint(red, green)
        if (red, green) == (60, 90):
            raise KeyError("gone")

    with pytest.raises(RuntimeError, match=r"frame 6 of 20 \(red = 60 and green = 90\): KeyError: 'gone'") as caught:
        explore(draw, red=RED, green=GREEN)
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_that_only_rendering_finds_says_where():
    with pytest.raises(RuntimeError, match=r"frame 1 of 5 \(red = 0\): ValueError"):
        explore(lambda red: plt.gcf().text(0.5, 0.5, r"$\nonsense{$"))


# Kernels without a reader


NOTEBOOK = """
import time
import matplotlib.pyplot as plt
from bdl_lib import widgets

def draw(power):
    time.sleep(0.4)
    plt.gca().plot([0, 1], [0, power])

widgets.explore(draw, power=[1, 2, 3, 4, 5, 6], alt="A line", figsize=(2, 1))
"""


def executed(source):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    return notebook


def test_a_program_that_runs_the_notebook_gets_the_player_and_no_widgets():
    notebook = executed(NOTEBOOK)
    (output,) = notebook.cells[0].outputs  # so no progress bar either, though it took longer than two seconds
    assert set(output.data) == {"text/plain", "text/html", "image/png"}
    assert output.metadata["image/png"]["alt"] == "A line, at power = 1"
    assert "<script>" in output.data["text/html"]
    assert "widgets" not in notebook.metadata


def test_nbval_does_not_wait(tmp_path, monkeypatch):
    import nbformat

    cell = nbformat.v4.new_code_cell(NOTEBOOK.replace("0.4", "0"), execution_count=1)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    monkeypatch.setenv("BDL_EXPLORE", "still")
    command = ["-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "1 passed" in done.stdout, done.stdout


# The player in a browser

STRICT = "default-src 'none'; img-src data:; script-src 'self'; style-src 'self'"
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Figures</title>
<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width, initial-scale=1">{head}</head>
<body><main><h1>Figures</h1>{body}</main></body></html>"""
LINKS = (
    '<link rel="stylesheet" href="site.css"><link rel="stylesheet" href="player.css"><script src="player.js"></script>'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    for name in ("player.js", "player.css"):
        shutil.copy(ROOT / "bdl_lib" / "player" / name, folder)
    dark = 'html[data-theme="dark"] { background: #121212; color: #ddd }'
    (folder / "site.css").write_text("body { font-family: sans-serif; margin: 1rem }" + dark)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BDL_EXPLORE", "page")
        wide = {"figsize": (6.5, 2)}
        body = (
            explore(red=widgets.control(RED, default=120), green=widgets.control(GREEN, default=90), **wide).html
            + widgets.explore(paint, name="one", red=widgets.control(RED, label="Level of red"), **wide).html
            + explore(lambda hue: paint(dict(low=20, high=200)[hue]), hue=["low", "high"], **wide).html
        )
        patch.setenv("BDL_EXPLORE", "standalone")
        alone = explore(red=RED, **wide).html + explore(red=RED, **wide).html
    (folder / "strict.html").write_text(PAGE.format(head=LINKS, body=body), encoding="utf-8")
    (folder / "bare.html").write_text(PAGE.format(head="", body=body), encoding="utf-8")
    (folder / "alone.html").write_text(PAGE.format(head="", body=alone), encoding="utf-8")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def end_headers(self):
            if self.path != "/alone.html":
                self.send_header("Content-Security-Policy", STRICT)
            super().end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("chromium-browser") or playwright.chromium.executable_path
        if not Path(path).exists():
            missing = pytest.fail if os.environ.get("CI") else pytest.skip
            missing("no Chromium on this machine (apt install chromium, or playwright install chromium)")
        browser = playwright.chromium.launch(executable_path=path, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, site):
    contexts, problems = [], []

    def open_page(name="strict.html", *, clock=False, **settings):
        context = browser.new_context(**({"viewport": {"width": 900, "height": 900}} | settings))
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((site, "data:")) else problems.append(r.url))
        if clock:
            page.clock.install(time=0)
        page.goto(site + name)
        if clock:
            page.clock.pause_at(3600)  # from here on time passes in run_for alone, however slow the machine
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


def player(page, number):
    return page.locator(".bdl-explore").nth(number)


def shown(root):
    """Alternative text and colour of the one picture in sight."""
    pictures = root.locator("img:visible")
    assert pictures.count() == 1
    assert pictures.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 0
    return pictures.get_attribute("alt"), colour(pictures.get_attribute("src"))


def until(condition):
    for _ in range(100):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("nothing happened for five seconds")


def at(red, green):
    return f"A coloured field, at red = {red} and green = {green}", (red, green)


def test_two_sliders_by_keyboard_alone(open_page):
    page = open_page()
    root = player(page, 0)
    assert shown(root) == at(120, 90)
    page.keyboard.press("Tab")
    for key, red in [("ArrowRight", 180), ("ArrowRight", 240), ("ArrowRight", 240), ("Home", 0), ("ArrowUp", 60)]:
        page.keyboard.press(key)
        assert shown(root) == at(red, 90)
    page.keyboard.press("Tab")
    for key, green in [("End", 250), ("ArrowLeft", 170)]:
        page.keyboard.press(key)
        assert shown(root) == at(60, green)
    assert [each.get_attribute("aria-valuetext") for each in root.get_by_role("slider").all()] == ["60", "170"]
    assert root.locator(".bdl-explore-value").all_inner_texts() == ["60", "170"]
    until(lambda: "red = 60 and green = 170" in root.locator(".bdl-explore-status").inner_text())


def test_sliders_are_found_by_their_labels(open_page):
    page = open_page()
    assert page.get_by_role("slider", name="Level of red", exact=True).count() == 1
    assert page.get_by_role("slider", name="Green", exact=True).count() == 1
    assert page.get_by_role("combobox", name="Hue", exact=True).count() == 1
    assert page.get_by_role("group", name="Interactive figure: Red, Green", exact=True).count() == 1
    assert page.locator("#one").count() == 1


@pytest.mark.parametrize("touch", [False, True])
def test_mouse_and_touch(open_page, touch):
    page = open_page(has_touch=touch)
    root = player(page, 0)
    slider = root.get_by_role("slider").first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    for share, red in [(0.99, 240), (0.01, 0), (0.75, 180)]:
        spot = box["x"] + share * box["width"], box["y"] + box["height"] / 2
        (page.touchscreen.tap if touch else page.mouse.click)(*spot)
        assert shown(root) == at(red, 90)


def test_a_drop_down_list(open_page):
    root = player(open_page(), 2)
    assert shown(root)[1] == (20, 0)
    root.get_by_role("combobox").select_option("high")
    assert shown(root) == ("Interactive figure, at hue = high", (200, 0))
    root.get_by_role("combobox").press("ArrowUp")
    assert shown(root)[1] == (20, 0)


def test_players_on_one_page_do_not_disturb_each_other(open_page):
    page = open_page()
    player(page, 1).get_by_role("slider").press("End")
    assert [shown(player(page, number))[1] for number in range(3)] == [(120, 90), (240, 0), (20, 0)]


def test_play_and_pause(open_page):
    page = open_page(clock=True)
    root = player(page, 1)
    button = root.get_by_role("button")
    page.clock.run_for(5000)
    assert shown(root)[1] == (0, 0)  # nothing plays by itself
    button.click()
    assert button.inner_text() == "Pause"
    page.clock.run_for(1450)
    assert shown(root)[1] == (120, 0)
    button.press("Space")
    page.clock.run_for(5000)
    assert (shown(root)[1], button.inner_text()) == ((120, 0), "Play")
    button.click()
    page.clock.run_for(5000)
    assert (shown(root)[1], button.inner_text()) == ((240, 0), "Play")  # it stops at the end
    assert "red = 240" in root.locator(".bdl-explore-status").inner_text()
    button.click()  # from the start again
    assert shown(root)[1] == (0, 0)
    page.clock.run_for(710)
    root.get_by_role("slider").press("End")  # moving the slider takes over
    page.clock.run_for(5000)
    assert (shown(root)[1], button.inner_text()) == ((240, 0), "Play")
    assert player(page, 0).get_by_role("button").count() == 0  # two controls: nothing to play


def test_no_motion_for_those_who_want_none(open_page):
    page = open_page(clock=True, reduced_motion="reduce")
    root = player(page, 1)
    assert root.get_by_role("button").count() == 0
    root.get_by_role("slider").press("ArrowRight")
    assert shown(root)[1] == (60, 0)
    page.emulate_media(reduced_motion="no-preference")
    root.get_by_role("button").click()
    page.clock.run_for(750)
    page.emulate_media(reduced_motion="reduce")
    until(lambda: root.get_by_role("button").count() == 0)
    page.clock.run_for(5000)
    assert shown(root)[1] == (120, 0)


@pytest.mark.parametrize(("name", "script"), [("strict.html", False), ("bare.html", True)])
def test_without_script_the_default_frame_is_a_picture(open_page, name, script):
    page = open_page(name, java_script_enabled=script)
    assert page.locator("main img").count() == 3
    for number, alt in enumerate(
        [at(120, 90)[0], "A coloured field, at level of red = 0", "Interactive figure, at hue = low"]
    ):
        assert player(page, number).locator("img:visible").get_attribute("alt") == alt
    assert page.locator("input:visible, select:visible, button:visible").count() == 0
    if not script:
        note = player(page, 0).locator("noscript p")
        assert note.inner_text() == "Shown for red = 120 and green = 90; the controls need JavaScript."


def test_paper_shows_the_default_frame(open_page):
    page = open_page()
    root = player(page, 0)
    root.get_by_role("slider").first.press("End")
    assert shown(root) == at(240, 90)
    page.emulate_media(media="print")
    assert shown(root) == at(120, 90)
    assert page.locator("input:visible, select:visible, button:visible").count() == 0
    page.emulate_media(media="screen")
    assert shown(root) == at(240, 90)


def test_the_player_inlined_works_alone_and_twice(open_page):
    page = open_page("alone.html", clock=True)
    player(page, 1).get_by_role("slider").press("End")
    player(page, 0).get_by_role("button").click()
    page.clock.run_for(750)  # one step: the second script does not start the first player again
    assert [shown(player(page, number))[1] for number in range(2)] == [(60, 0), (240, 0)]
    assert page.locator(".bdl-explore-value").all_inner_texts() == ["60", "240"]


@pytest.mark.parametrize("width", [320, 400, 900])
def test_it_fits_and_is_large_enough_to_hit(open_page, width):
    page = open_page(viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for control in page.locator("input, select, button").all():
        box = control.bounding_box()
        assert min(box["width"], box["height"]) >= 24
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_the_focus_can_be_seen(open_page):
    page = open_page()
    for _ in range(5):
        page.keyboard.press("Tab")
        style, width = page.evaluate(
            "(s => [s.outlineStyle, s.outlineWidth])(getComputedStyle(document.activeElement))"
        )
        assert (style, width) == ("solid", "2px")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 900])
def test_axe_finds_nothing_serious(open_page, theme, width):
    axe_module = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = open_page(viewport={"width": width, "height": 900})
    page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
    player(page, 1).get_by_role("slider").press("ArrowRight")
    report = axe_module.Axe().run(page).response
    assert len(report["passes"]) > 10
    bad = [each for each in report["violations"] if each["impact"] in {"serious", "critical"}]
    assert not bad, json.dumps(bad, indent=1)


def test_the_largest_allowed_count_is_the_one_promised():
    assert (frames.MAX_FRAMES, frames.MAX_BYTES) == (60, 600_000)
