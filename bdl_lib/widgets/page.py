"""The player: an explorable figure on a page that has no kernel.

The markup holds only elements, texts and frames: no script, no style, no event handler. What makes it move is
``bdl_lib/player/player.js`` and ``player.css``, which the page loads once from its own site, so a page may forbid
inline code altogether (``default-src 'none'; img-src data:; script-src 'self'; style-src 'self'``). Without them,
and without JavaScript, the default frame is an ordinary picture with its alternative text and the controls stay
hidden. A page that nobody prepared (an exported notebook) gets both files inlined behind the markup instead: still
one self-contained piece with no outside request, for the price of needing inline code. Both ways in one output would
have logged a violation on every strict page, so the build says which one it wants.
"""

import html
import json
from importlib import resources

from bdl_lib.widgets.controls import Control, phrase

__all__ = ["inlined", "markup"]


def markup(controls: dict[str, Control], uris: list[str], alts: list[str], *, size, name: str | None) -> str:
    """The player's markup; the default frame is an image, the others wait in a template.

    Args:
        controls: one or two, by name.
        uris: the frames, the last control moving fastest.
        alts: their alternative texts.
        size: width and height in the page's pixels.
        name: the id of the player, if it has one.

    Returns:
        HTML that is the same, byte for byte, for the same arguments.
    """
    default = 0
    for each in controls.values():
        default = default * len(each.values) + each.default
    box = f'width="{size[0]}" height="{size[1]}"'
    frames = "".join(
        f'<img alt="{html.escape(alt)}" src="{uri}">'
        for at, (uri, alt) in enumerate(zip(uris, alts, strict=True))
        if at != default
    )
    labels = ", ".join(each.label for each in controls.values())
    shown = phrase(controls, tuple(each.default for each in controls.values()))
    play = '<button class="bdl-explore-play" type="button">Play</button>\n' if len(controls) == 1 else ""
    return (
        f'<div class="bdl-explore" role="group" aria-label="{html.escape(f"Interactive figure: {labels}")}"'
        + (f' id="{html.escape(name)}"' if name else "")
        + f'>\n<img class="bdl-explore-frame" {box} alt="{html.escape(alts[default])}" src="{uris[default]}">\n'
        + '<div class="bdl-explore-controls" hidden>\n'
        + "".join(_control(each) for each in controls.values())
        + f"{play}</div>\n"
        + '<p class="bdl-explore-status" aria-live="polite"></p>\n'
        + f"<noscript><p>Shown for {html.escape(shown)}; the controls need JavaScript.</p></noscript>\n"
        + f'<template data-default="{default}">{frames}</template>\n</div>\n'
    )


def _control(control):
    label = html.escape(control.label)
    if control.is_numeric:
        texts = html.escape(json.dumps(control.texts, ensure_ascii=False))
        text = html.escape(control.texts[control.default])
        field = (
            f'<span class="bdl-explore-value" aria-hidden="true">{text}</span>'
            f'<input type="range" min="0" max="{len(control.values) - 1}" step="1" value="{control.default}" '
            f'aria-valuetext="{text}" data-texts="{texts}" autocomplete="off">'
        )
    else:
        options = "".join(
            f"<option{' selected' if at == control.default else ''}>{html.escape(text)}</option>"
            for at, text in enumerate(control.texts)
        )
        field = f'<select autocomplete="off">{options}</select>'
    return f'<label class="bdl-explore-control"><span class="bdl-explore-label">{label}</span>{field}</label>\n'


def inlined() -> str:
    """The player's style and script, for a page that does not load them."""
    folder = resources.files("bdl_lib") / "player"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("player.css", "player.js"))
    return f"<style>\n{style}</style>\n<script>\n{script}</script>\n"
