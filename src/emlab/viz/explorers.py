"""A figure with sliders: the picture first, the sliders only where a kernel answers to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from emlab.errors import InputError
from emlab.viz.style import Picture, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Set to "off" where nobody is there to move a slider: `emlab run` does.
SWITCH = "EMLAB_WIDGETS"


def explore(
    draw: Callable[..., Figure],
    choices: Mapping[str, Sequence[Any]],
    alt: str,
    start: Sequence[Any],
) -> None:
    """Display a figure, and sliders that draw it again with other settings.

    The figure of `start` is displayed first, as `emlab.viz.show` would; it is all there is without
    ipywidgets, without a notebook's kernel, and in chapters run headless. Elsewhere sliders follow
    below it, and moving one replaces the figure. A setting is drawn once and kept.

    Parameters
    ----------
    draw
        Takes one value of every slider, in their order; returns a matplotlib figure.
    choices
        Name of a slider to its values, from left to right.
    alt
        Description of the figure; the settings are added to it.

    Raises
    ------
    InputError
        No slider, a slider with fewer than two values, or a start that is none of them.
    """
    import torch
    from IPython.display import display

    if not choices or min(map(len, choices.values())) < 2:
        raise InputError("an explorer takes at least one slider, each with two values or more")
    if len(start) != len(choices) or any(
        value not in values for value, values in zip(start, choices.values(), strict=True)
    ):
        raise InputError(f"start={start!r}: give one of its values for each of {list(choices)}")
    drawn: dict[tuple[Any, ...], Picture] = {}
    gradients = torch.is_grad_enabled()  # a thread of its own may answer to the sliders

    def picture(settings: tuple[Any, ...]) -> Picture:
        if settings not in drawn:
            told = ", ".join(
                f"{name} {value}" for name, value in zip(choices, settings, strict=True)
            )
            with torch.set_grad_enabled(gradients):
                drawn[settings] = show(draw(*settings), f"{alt} Shown: {told}.")
        return drawn[settings]

    handle = display(picture(tuple(start)), display_id=True)
    if handle is not None and is_live():
        display(_sliders(choices, start, lambda *settings: handle.update(picture(settings))))


def is_live() -> bool:
    """Return whether sliders can answer: ipywidgets, a notebook's kernel, not switched off."""
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    wanted = os.environ.get(SWITCH, "") != "off"
    return wanted and kernel is not None and find_spec("ipywidgets") is not None


def _sliders(
    choices: Mapping[str, Sequence[Any]], start: Sequence[Any], redraw: Callable[..., object]
) -> Any:
    import ipywidgets

    sliders = [
        ipywidgets.SelectionSlider(
            options=[(f"{value}", value) for value in values],
            value=value,
            description=name,
            style={"description_width": "12em"},
            layout={"width": "32em", "max_width": "100%"},
        )
        for (name, values), value in zip(choices.items(), start, strict=True)
    ]
    said = ipywidgets.HTML()

    def moved(_: object) -> None:
        try:
            redraw(*(slider.value for slider in sliders))
            said.value = ""
        except Exception as problem:  # a reader sees it; else only the log of the server would
            said.value = f"This was not drawn: {problem}"

    for slider in sliders:
        slider.observe(moved, names="value")
    return ipywidgets.VBox([*sliders, said])
