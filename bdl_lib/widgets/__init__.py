"""Interactive figures that work with a kernel, without one, and on paper.

``explore(draw, num_flips=[1, 10, 100])`` shows one figure that the reader can move. What it becomes depends on who
is looking:

========== =============================================== ========================================================
rendering  in the output                                   when
========== =============================================== ========================================================
live       widget view + PNG; frames drawn on demand       somebody sits at the kernel (JupyterLab, Colab, VS Code)
page       HTML without any script + PNG                   the book's build, whose pages load the player themselves
standalone HTML with the player inlined + PNG              a notebook run by a program (nbconvert, nbclient, nbval)
still      PNG                                             IPython in a terminal; asked for, to save time
========== =============================================== ========================================================

Whether somebody sits there, the kernel knows: a program that runs a notebook says that it cannot answer ``input()``.
The environment variable ``BDL_EXPLORE`` overrules it with the name of a rendering. In plain Python, where nobody
chooses, the object holds the widget, the standalone HTML and the PNG. Only *live* makes widgets, so a notebook run by a
program stores no widget state, and the pages made from it load nothing from elsewhere. Why the script is not part of
the page's HTML: see ``bdl_lib.widgets.page``.
"""

import os
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from bdl_lib.widgets import frames, live, page
from bdl_lib.widgets.controls import Control, bind, control, phrase

__all__ = ["Control", "Explorable", "control", "explore"]

RENDERINGS = {
    "live": {"widget"},
    "page": {"markup"},
    "standalone": {"markup", "player"},
    "still": set(),
}


class Explorable(NamedTuple):
    """An explorable figure, ready to be displayed; a rendering that was not made is None."""

    png: bytes  # the default frame
    alt: str
    size: tuple[int, int]  # in the page's pixels
    html: str | None
    widget: Any  # ipywidgets.VBox | None

    def __repr__(self) -> str:
        return f"Explorable({self.alt!r})"

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = {"text/plain": f"[{self.alt}]", "image/png": self.png}
        if self.html is not None:
            data["text/html"] = self.html
        if self.widget is not None:
            view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
            data["application/vnd.jupyter.widget-view+json"] = view
        width, height = self.size
        return data, {"image/png": {"width": width, "height": height, "alt": self.alt}}


def explore(
    draw: Callable[..., Any],
    *,
    alt: str | Callable[..., str] | None = None,
    name: str | None = None,
    figsize: tuple[float, float] | None = None,
    **controls: Any,
) -> Explorable:
    r"""An interactive figure over one or two finite lists of values.

    Args:
        draw: ``draw(**values)`` draws on the current matplotlib figure, a fresh one each time. The same values must
            give the same picture, so a random generator is made inside it. With fixed axis limits the picture keeps
            still while it changes.
        alt: what the picture shows, for a reader who does not see it; the values are added to it. A function of the
            values says it frame by frame, and is then used as it is. By default the first line of ``draw``'s docstring.
        name: the id of the player on a page, to link to it.
        figsize: width and height in inches; by default matplotlib's setting.
        **controls: for each argument of ``draw``, a list of values or a ``control``. At most 60 combinations.

    Returns:
        An object that displays itself as the last expression of a cell.

    Raises:
        ValueError: if there are no controls or more than two, ``draw`` does not take them, a control is wrong (see
            ``control``), there are more than 60 frames or 600 kB of them, ``draw`` draws nothing, or two pictures for
            the same values, or the frames differ in size.
        RuntimeError: if ``draw`` raises; it names the frame and the values.
    """
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[A-Za-z][\w-]*", name)):
        raise ValueError(f"name must be an id (letters, digits, - and _, a letter first), got {name!r}")
    if figsize is not None and not (len(figsize) == 2 and all(0 < side < 100 for side in figsize)):
        raise ValueError(f"figsize must be width and height in inches, above 0 and below 100, got {figsize}")
    wanted = _wanted()
    drawing = frames.Drawing(draw, bind(draw, controls), figsize, _settings())
    frames.check_count(drawing)
    start = frames.default_position(drawing)
    first = frames.render(drawing, start, with_svg="markup" in wanted)
    size = tuple(round(side * 96 / frames.PIXELS_PER_INCH) for side in first.image.size)  # 96 of a page's pixels: 1 in
    still = frames.png(first), _alt(alt, drawing, start)

    def picture(position):
        return (
            still if position == start else (frames.png(frames.render(drawing, position)), _alt(alt, drawing, position))
        )

    text = _player(drawing, first, alt, size, name, wanted) if "markup" in wanted else None
    widget = live.make(drawing.controls, picture, size=size) if "widget" in wanted else None
    return Explorable(*still, size, text, widget)


def _player(drawing, first, alt, size, name, wanted):
    uris = frames.data_uris(drawing, first, progress=_is_attended())
    alts = [_alt(alt, drawing, position) for position in frames.all_positions(drawing)]
    text = page.markup(drawing.controls, uris, alts, size=size, name=name)
    return text + page.inlined() if "player" in wanted else text


def _alt(alt, drawing, position):
    if callable(alt):
        values = zip(drawing.controls.items(), position, strict=True)
        text = alt(**{name: each.values[here] for (name, each), here in values})
    else:
        what = _said_by(drawing.draw) if alt is None else " ".join(alt.split())
        text = what and f"{what.rstrip('. ')}, at {phrase(drawing.controls, position)}"
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"alt must say what the picture shows, got {text!r}")
    return text


def _said_by(draw):
    lines = (draw.__doc__ or "").strip().splitlines()
    return lines[0] if lines else "Interactive figure"


def _wanted():
    asked = os.environ.get("BDL_EXPLORE", "")
    if asked:
        if asked not in RENDERINGS:
            raise ValueError(f"BDL_EXPLORE must be one of {sorted(RENDERINGS)}, got {asked!r}")
        return RENDERINGS[asked]
    shell = _shell()
    if shell is None:
        return RENDERINGS["live"] | RENDERINGS["standalone"]
    if not hasattr(shell, "kernel"):
        return RENDERINGS["still"]
    return RENDERINGS["live" if _is_attended() else "standalone"]


def _shell():
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _is_attended():
    if "google.colab" in sys.modules:
        return True
    kernel = getattr(_shell(), "kernel", None)
    if kernel is None:
        return True
    request = kernel.get_parent("shell") if hasattr(kernel, "get_parent") else {}
    return bool(request.get("content", {}).get("allow_stdin", True))


def _settings():
    import matplotlib as mpl

    return {key: value for key, value in mpl.rcParams.copy().items() if not key.startswith("backend")}
