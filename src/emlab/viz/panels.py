"""What figures begin with: axes of a size, and a picture without ticks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def panels(
    width: float, height: float, columns: int = 1, rows: int = 1, **more: Any
) -> tuple[Figure, Any]:
    """A figure of so many inches, not registered with pyplot, and its axes.

    These are ``(columns,)``, or ``(rows, columns)`` if there are several rows; `more` goes to
    matplotlib's ``subplots``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **more)
    return figure, axes if rows > 1 else axes[0]


def picture(
    axis: Axes, image: Any, title: str = "", limits: Any = (None, None), cmap: str = "gray"
) -> None:
    """Draw ``(H, W)`` or ``(H, W, 3)`` without ticks; limits are what is black and white."""
    low, high = limits
    axis.imshow(image, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=8)
    axis.grid(False)
