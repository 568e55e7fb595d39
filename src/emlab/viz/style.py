"""Colours, typography, and figures that carry a description of what they show."""

from __future__ import annotations

import base64
import html
import io
import sys
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from emlab.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito (2008): distinct with any colour vision. Yellow comes last: it is faint on white.
COLOURS = MappingProxyType(
    {
        "blue": "#0072B2",
        "orange": "#E69F00",
        "green": "#009E73",
        "vermilion": "#D55E00",
        "purple": "#CC79A7",
        "sky": "#56B4E9",
        "black": "#000000",
        "yellow": "#F0E442",
    }
)
SCREEN_DPI = 96
FIGURE_DPI = 160


def use_style() -> None:
    """Set matplotlib's defaults: palette, sober axes, grey images without interpolation.

    Figures have an opaque white ground, so that they read the same on a light and a dark page.
    """
    import matplotlib as mpl
    from matplotlib.rcsetup import cycler

    mpl.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=list(COLOURS.values())),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.labelsize": 9,
            "figure.constrained_layout.use": True,
            "figure.dpi": FIGURE_DPI,
            "figure.facecolor": "white",
            "font.size": 9,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.6,
            "image.cmap": "gray",
            "image.interpolation": "nearest",
            "legend.fontsize": 8,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "savefig.facecolor": "white",
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
        }
    )


@dataclass(frozen=True)
class Picture:
    """A rendered figure with its description, for display in a notebook or a page."""

    png: bytes
    alt: str  #: what a reader who cannot see it has to know
    width: int  #: on screen, in CSS pixels

    def _repr_html_(self) -> str:
        return (
            f'<img src="{data_address(self.png)}" alt="{html.escape(self.alt)}" '
            f'width="{self.width}" style="max-width:100%;height:auto;background:#fff">'
        )

    def __repr__(self) -> str:
        return f"[figure: {self.alt}]"


@dataclass(frozen=True)
class Markup:
    """HTML for a notebook or a page, with its pictures inside: no file, no request."""

    data: str

    def _repr_html_(self) -> str:
        return self.data

    def __repr__(self) -> str:
        return f"[{len(self.data)} characters of HTML]"


def data_address(png: bytes) -> str:
    """Return the address of a picture that is its own content."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def show(figure: Figure, alt: str) -> Picture:
    """Render a figure once, close it, and return it with its description.

    Make it the last line of a cell, or hand it to IPython.display.display.

    Parameters
    ----------
    alt
        Description: what is compared, and what there is to see. At least ten characters.

    Raises
    ------
    InputError
        The description is missing or too short to be one.
    """
    alt = checked_alt(alt)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=FIGURE_DPI, facecolor="white")
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)
    return Picture(buffer.getvalue(), alt, round(figure.get_figwidth() * SCREEN_DPI))


def checked_alt(alt: str) -> str:
    """Return a description on one line, or say what is wrong with it."""
    text = " ".join(alt.split())
    if len(text) < 10:
        raise InputError(
            f"alt={alt!r} describes nothing; say what the picture shows, in a sentence"
        )
    return text
