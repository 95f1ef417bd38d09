"""An explorable figure with a kernel behind it: ipywidgets, each frame drawn when it is asked for."""

import base64
import html
from collections.abc import Callable

from bdl_lib.widgets.controls import Control

__all__ = ["make"]

STYLE = "max-width: 100%; height: auto; background: #fff; border-radius: 8px; padding: 8px; box-sizing: border-box"


def make(controls: dict[str, Control], picture: Callable[[tuple[int, ...]], tuple[bytes, str]], *, size):
    """A box of native widgets that works in ipywidgets 7.7 and 8.

    Args:
        controls: one or two, by name.
        picture: from the controls' positions to a PNG and its alternative text; asked once a position.
        size: width and height in the page's pixels.

    Returns:
        The widget. An error of ``picture`` is shown in the figure's place.
    """
    import ipywidgets

    width, height = size
    fields = [_field(ipywidgets, each) for each in controls.values()]
    view = ipywidgets.HTML()
    drawn = {}

    def show(_=None):
        position = tuple(field.index for field in fields)
        try:
            if position not in drawn:
                data, alt = picture(position)
                source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
                box = f'width="{width}" height="{height}" style="{STYLE}"'
                drawn[position] = f'<img {box} alt="{html.escape(alt)}" src="{source}">'
            view.value = drawn[position]
        except Exception as error:  # there is no cell to show it in
            view.value = f'<pre role="alert">{html.escape(str(error))}</pre>'

    for field in fields:
        field.observe(show, names="index")
    show()
    return ipywidgets.VBox([*fields, view])


def _field(ipywidgets, control):
    kind = ipywidgets.SelectionSlider if control.is_numeric else ipywidgets.Dropdown
    return kind(
        options=list(zip(control.texts, control.values, strict=True)),
        index=control.default,
        description=control.label,
        style={"description_width": "initial"},
        layout={"width": "min(100%, 32rem)"},
    )
