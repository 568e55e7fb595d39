"""A slider through pictures that were drawn before: no kernel; a strip where scripts do not run."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from typing import Any

from emlab.errors import InputError
from emlab.viz.style import Picture, checked_alt

# One handler of the range input shows the picture of its number and hides the others; nothing has
# an id, so any number of strips share a page. Without scripts, and on paper, all of them stand in
# a row.
_STYLE = """
.emlab-strip{margin:0 0 1em;max-width:100%}
.emlab-strip .es-row{display:flex;flex-wrap:wrap;gap:8px}
.emlab-strip figure{margin:0!important;padding:0;flex:0 1 var(--width)}
.emlab-strip img{display:block;width:100%!important;max-width:none!important;height:auto;
 margin:0!important;background:#fff}
.emlab-strip figcaption{margin:2px 0 0;font:600 13px/1.5 system-ui,sans-serif;text-align:left}
.emlab-strip input{display:none}
@media screen and (scripting:enabled){
.emlab-strip{max-width:var(--width)}
.emlab-strip figure[data-off]{display:none}
.emlab-strip input{display:block;width:100%;margin:4px 0 0}
.emlab-strip input:focus-visible{outline:3px solid #0072B2;outline-offset:2px}
}
"""
_HANDLER = (
    "const f=this.closest('.emlab-strip').querySelectorAll('figure');"
    "f.forEach((g,i)=>g.toggleAttribute('data-off',i!=this.value));"
    "this.setAttribute('aria-valuetext',f[this.value].innerText)"
)


def strip(pictures: Mapping[str, Picture], alt: str, start: int = 0) -> Any:
    """Pictures behind a slider, or side by side where scripts do not run.

    Parameters
    ----------
    pictures
        Caption to picture (`emlab.viz.show`), at least two, in the order of the slider.
    alt
        What changes along the strip. At least ten characters.

    Returns
    -------
    IPython.display.HTML
        Self-contained: PNG inside, no file, no request.

    Raises
    ------
    InputError
        Fewer than two pictures, a start that is none of them, or no description.
    """
    from IPython.display import HTML

    text = html.escape(checked_alt(alt))
    if len(pictures) < 2 or not 0 <= start < len(pictures):
        raise InputError("a strip takes at least two pictures, and starts at one of them")
    names = [html.escape(name) for name in pictures]
    figures = [
        _figure(picture, name, shown=number == start)
        for number, (name, picture) in enumerate(zip(names, pictures.values(), strict=True))
    ]
    slider = (
        f'<input type="range" min="0" max="{len(pictures) - 1}" step="1" value="{start}" '
        f'autocomplete="off" aria-label="{names[0]} to {names[-1]}" '
        f'aria-valuetext="{names[start]}" oninput="{_HANDLER}">'
    )
    width = max(picture.width for picture in pictures.values())
    return HTML(
        f'<style>{_STYLE}</style><div class="emlab-strip" role="group" aria-label="{text}" '
        f'style="--width:{width}px"><div class="es-row">{"".join(figures)}</div>{slider}</div>'
    )


def _figure(picture: Picture, name: str, *, shown: bool) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f"<figure{'' if shown else ' data-off'}>"
        f'<img src="data:image/png;base64,{data}" alt="{name}: {html.escape(picture.alt)}">'
        f"<figcaption>{name}</figcaption></figure>"
    )
