"""Drawing an explorable figure: one clean picture a call, and all of them small enough for a page."""

import base64
import contextlib
import io
import itertools
import math
import re
import urllib.parse
from collections.abc import Callable
from typing import Any, NamedTuple

from bdl_lib.widgets.controls import Control, phrase

__all__ = [
    "MAX_BYTES",
    "MAX_FRAMES",
    "Drawing",
    "Frame",
    "all_positions",
    "check_count",
    "data_uris",
    "default_position",
    "png",
    "render",
]

MAX_FRAMES = 60
MAX_BYTES = 600_000  # of the embedded pictures together, as written in the page
PIXELS_PER_INCH = 144  # one and a half pixels for each of the page's: sharp enough, and half the bytes of two


class Drawing(NamedTuple):
    """What is drawn, and with which settings, so that a frame drawn later looks like one drawn now."""

    draw: Callable[..., Any]
    controls: dict[str, Control]
    figsize: tuple[float, float] | None
    rc: dict[str, Any]


class Frame(NamedTuple):
    """One picture: its pixels on white, and the same as SVG where that was asked for."""

    image: Any  # PIL.Image.Image
    svg: str | None


def all_positions(drawing: Drawing) -> list[tuple[int, ...]]:
    """Every combination of the controls' positions, the last control moving fastest."""
    return list(itertools.product(*(range(len(each.values)) for each in drawing.controls.values())))


def default_position(drawing: Drawing) -> tuple[int, ...]:
    """Where the controls stand at first."""
    return tuple(each.default for each in drawing.controls.values())


def check_count(drawing: Drawing) -> None:
    """Raises ValueError where there are more combinations than a page may hold."""
    counts = [len(each.values) for each in drawing.controls.values()]
    if math.prod(counts) > MAX_FRAMES:
        product = " × ".join(map(str, counts))
        total = f"{product} = {math.prod(counts)}" if len(counts) > 1 else product
        raise ValueError(f"explore draws at most {MAX_FRAMES} frames, got {total}: {_advice(drawing, MAX_FRAMES)}")


def _advice(drawing, max_frames):
    name, widest = max(drawing.controls.items(), key=lambda item: len(item[1].values))
    others = math.prod(len(each.values) for each in drawing.controls.values()) // len(widest.values)
    if max_frames < others:
        return f"thin out every control, or draw a smaller, simpler figure (room for {max_frames} frames)"
    return f"thin out {name!r} from {len(widest.values)} values to {max_frames // others}"


def render(drawing: Drawing, position: tuple[int, ...], *, with_svg: bool = False) -> Frame:
    """One frame, drawn in a figure of its own; no figure is left behind, whatever ``draw`` does.

    Raises:
        RuntimeError: if ``draw`` raises: which frame, which values, and the error as its cause.
        ValueError: if ``draw`` leaves the figure empty or closes it.
    """
    positions = all_positions(drawing)
    where = f"frame {positions.index(position) + 1} of {len(positions)} ({phrase(drawing.controls, position)})"
    values = {name: each.values[here] for (name, each), here in zip(drawing.controls.items(), position, strict=True)}
    with _fresh_figure(drawing) as figure:
        with _naming(where):
            drawing.draw(**values)
        _check_drawn(figure, where)
        with _naming(where):
            return Frame(_pixels(figure), _svg(figure) if with_svg else None)


@contextlib.contextmanager
def _naming(where):
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"draw failed at {where}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _fresh_figure(drawing):
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    before = plt.get_fignums()
    settings = drawing.rc | {"savefig.bbox": "standard", "svg.fonttype": "path", "svg.hashsalt": "bdl"}
    with mpl.rc_context(settings), plt.ioff():
        has_layout = settings["figure.constrained_layout.use"] or settings["figure.autolayout"]
        layout = None if has_layout else "constrained"
        try:
            yield plt.figure(figsize=drawing.figsize, dpi=PIXELS_PER_INCH, layout=layout)
        finally:
            for number in set(plt.get_fignums()) - set(before):
                plt.close(number)


def _check_drawn(figure, where):
    from matplotlib import pyplot as plt

    if not plt.fignum_exists(figure.number):
        raise ValueError(f"draw must leave the figure open, closed or showed it at {where}")
    if len(figure.get_children()) < 2:  # its background is one
        own = len(plt.get_fignums()) > 1 and plt.gcf() is not figure
        hint = ": it made a figure of its own; plt.gcf().subplots() draws on the current one" if own else ""
        raise ValueError(f"draw must draw on the current figure, left it empty at {where}{hint}")


def _pixels(figure):
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.array(canvas.buffer_rgba()))
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _svg(figure):
    file = io.StringIO()
    figure.savefig(file, format="svg")
    text = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", "", file.getvalue(), flags=re.S)
    return re.sub(r"\s*\n\s*", " ", re.sub(r">\s+<", "><", text)).strip()


def png(frame: Frame) -> bytes:
    """The picture as PNG, every colour kept: for paper and for a live kernel."""
    file = io.BytesIO()
    frame.image.save(file, "PNG", optimize=True, dpi=(PIXELS_PER_INCH, PIXELS_PER_INCH))
    return file.getvalue()


def _webp(image, **settings):
    file = io.BytesIO()
    image.save(file, "WEBP", method=3, **settings)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _as_drawing(frame):
    from PIL import Image

    # 256 colours hold a plot to within a few levels of each channel, at half the bytes or less. The better choice of
    # them takes seconds for a photograph, which is written as one anyway.
    colours = frame.image.getcolors(16_384)
    if colours is not None and len(colours) <= 256:
        return _webp(frame.image, lossless=True)
    method = Image.Quantize.MAXCOVERAGE if colours is not None else Image.Quantize.MEDIANCUT
    few = frame.image.quantize(256, method=method, dither=Image.Dither.NONE)
    return _webp(few.convert("RGB"), lossless=True)


def _as_photo(frame):
    return _webp(frame.image, quality=90)


def _as_vector(frame):
    return "data:image/svg+xml," + urllib.parse.quote(frame.svg, safe=" !$()*+,-./:;=?@[]_~")


def data_uris(drawing: Drawing, first: Frame, *, progress: bool) -> list[str]:
    """All frames as data URIs, in the order of ``all_positions``, in the one format that is smallest for them.

    Every frame is written in each format still in the race; one that is a quarter larger than the best so far
    drops out, so the costly SVG is mostly drawn once.

    Args:
        drawing: what to draw.
        first: the default frame, drawn already, with its SVG.
        progress: show a bar when it takes longer than two seconds.

    Raises:
        ValueError: if the frames are too large together, differ in size, or ``draw`` draws another picture the second
            time it gets the same values.
    """
    from tqdm import tqdm

    start = default_position(drawing)
    order = [start, *(each for each in all_positions(drawing) if each != start)]
    written = {encode: {} for encode in (_as_drawing, _as_photo, _as_vector)}
    for position in tqdm(order, "drawing frames", delay=2, leave=False, disable=not progress):
        frame = first if position == start else render(drawing, position, with_svg=_as_vector in written)
        if frame.image.size != first.image.size:
            where = phrase(drawing.controls, position)
            raise ValueError(f"all frames must have one size, got {first.image.size} and {frame.image.size} at {where}")
        for encode, uris in written.items():
            uris[position] = encode(frame)
        sizes = {encode: sum(map(len, uris.values())) for encode, uris in written.items()}
        written = {encode: uris for encode, uris in written.items() if sizes[encode] <= 1.25 * min(sizes.values())}
    best = min(written.values(), key=lambda uris: sum(map(len, uris.values())))
    _check_size(drawing, sum(map(len, best.values())))
    _check_repeats(drawing, first)
    return [best[position] for position in all_positions(drawing)]


def _check_size(drawing, num_bytes):
    if num_bytes > MAX_BYTES:
        count = len(all_positions(drawing))
        each = num_bytes / count
        raise ValueError(
            f"the frames of explore take at most {MAX_BYTES // 1000} kB, got {num_bytes / 1000:.0f} kB "
            f"({count} frames of about {each / 1000:.1f} kB): {_advice(drawing, int(MAX_BYTES // each))}"
        )


def _check_repeats(drawing, first):
    start = default_position(drawing)
    if render(drawing, start).image.tobytes() != first.image.tobytes():
        raise ValueError(
            f"draw must draw the same picture for the same values, drew two for {phrase(drawing.controls, start)}: "
            "make its random generator inside draw"
        )
