"""Images side by side, with one grey range, scale bars and enlarged insets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from emlab.errors import InputError
from emlab.viz.arrays import Limits, Panel, grey_ranges, length_text, make_panels, nice_length
from emlab.viz.style import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[int, int, int, int]
PAGE_WIDTH_INCHES = 7.5
INSET_SHARE = 0.42


def show_images(
    images: Mapping[str, Any],
    limits: Limits = "shared",
    pixel_size_angstrom: Any = None,
    scale_bar_angstrom: float | None = None,
    insets: Box | Mapping[str, Box] | None = None,
    columns: int | None = None,
    title: str = "",
) -> Figure:
    """Show labelled images in a grid.

    The grey range is stated once below the figure, or below each panel when panels differ. A scale
    bar appears where the pixel size is known.

    Parameters
    ----------
    images
        Label to image: array or tensor (H, W), or an `emlab.io.Image`.
    limits
        ``"shared"``: one grey range for all (comparable quantities); ``"each"``: one per panel;
        ``(low, high)``: these values are black and white; the best choice beside strong noise,
        which stretches a shared range.
    pixel_size_angstrom
        For images that do not bring their own: a number or (row, column).
    scale_bar_angstrom
        Length of the scale bar; default: a round number, at most a third of the width.
    insets
        Box (row, column, height, width) in pixels to enlarge in the lower right corner of every
        panel, or label to box.
    columns
        Panels per row; default: as many as there are images, at most 4.

    Returns
    -------
    Figure
        Not registered with pyplot; pass it to `emlab.viz.show`.

    Raises
    ------
    InputError
        Unusable images, limits, insets or scale bar.
    """
    from matplotlib.figure import Figure

    panels = make_panels(images, pixel_size_angstrom)
    ranges = grey_ranges(panels, limits)
    boxes = _boxes(panels, insets)
    if columns is not None and columns < 1:
        raise InputError(f"columns must be at least 1, not {columns}")
    columns = min(columns or 4, len(panels))
    rows = -(-len(panels) // columns)
    width = min(PAGE_WIDTH_INCHES, 2.6 * columns)
    tallest = max(panel.pixels.shape[0] / panel.pixels.shape[1] for panel in panels)
    height = rows * (width / columns * tallest + 0.32) + (0.3 if title else 0) + 0.25
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel, grey in zip(axes, panels, ranges, strict=False):
        axis.imshow(panel.pixels, cmap="gray", vmin=grey[0], vmax=grey[1], interpolation="nearest")
        axis.set_title(panel.label, fontsize=9, loc="left")
        axis.set_axis_off()
        if limits == "each":
            axis.text(0, -0.03, _range_text(grey), transform=axis.transAxes, va="top", fontsize=7)
        if panel.label in boxes:
            _draw_inset(axis, panel, boxes[panel.label], grey)
        _draw_scale_bar(axis, panel, scale_bar_angstrom)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if limits != "each":
        figure.supxlabel(_range_text(ranges[0]), fontsize=7, x=0.01, ha="left")
    if title:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def _range_text(grey: tuple[float, float]) -> str:
    return f"grey range {grey[0]:.3g} to {grey[1]:.3g}"


def _boxes(panels: list[Panel], insets: Box | Mapping[str, Box] | None) -> dict[str, Box]:
    if insets is None:
        return {}
    labels = [panel.label for panel in panels]
    boxes = dict(insets) if isinstance(insets, Mapping) else dict.fromkeys(labels, insets)
    for label, box in boxes.items():
        if label not in labels:
            raise InputError(f"inset for {label!r}, but the panels are {', '.join(labels)}")
        height, width = panels[labels.index(label)].pixels.shape
        try:
            row, column, rows, columns = map(int, box)
        except (TypeError, ValueError) as problem:
            raise InputError(f"inset {box!r}: give (row, column, height, width)") from problem
        fits = rows > 0 and columns > 0 and row >= 0 and column >= 0
        if not (fits and row + rows <= height and column + columns <= width):
            raise InputError(f"inset {box!r} does not lie inside {label!r} of {height} x {width}")
    return boxes


def _draw_inset(axis: Axes, panel: Panel, box: Box, grey: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    row, column, rows, columns = box
    colour = COLOURS["orange"]
    frame = Rectangle((column - 0.5, row - 0.5), columns, rows, fill=False, ec=colour, lw=1)
    axis.add_patch(frame)
    height, width = panel.pixels.shape
    scale = INSET_SHARE / max(rows / height, columns / width)
    share = (columns / width * scale, rows / height * scale)
    inset = axis.inset_axes((1 - share[0], 0, *share))
    patch = panel.pixels[row : row + rows, column : column + columns]
    inset.imshow(patch, cmap="gray", vmin=grey[0], vmax=grey[1], interpolation="nearest")
    inset.set(xticks=[], yticks=[])
    for spine in inset.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.2)


def _draw_scale_bar(axis: Axes, panel: Panel, length_angstrom: float | None) -> None:
    if panel.pixel_size is None:
        if length_angstrom is not None:
            raise InputError(f"a scale bar on {panel.label!r} needs pixel_size_angstrom")
        return
    from matplotlib.patheffects import withStroke

    height, width = panel.pixels.shape
    extent = width * panel.pixel_size[1]
    length = nice_length(extent) if length_angstrom is None else float(length_angstrom)
    if not 0 < length <= extent:
        raise InputError(f"a scale bar of {length:g} angstrom does not fit {extent:g} angstrom")
    left, row = 0.04 * width - 0.5, 0.95 * height - 0.5
    outline = [withStroke(linewidth=3.6, foreground="black")]
    ends = (left, left + length / panel.pixel_size[1])
    axis.plot(ends, (row, row), "w-", lw=2.4, solid_capstyle="butt", path_effects=outline)
    axis.annotate(
        length_text(length),
        (left, row),
        (0, 3),
        textcoords="offset points",
        color="white",
        fontsize=7.5,
        path_effects=[withStroke(linewidth=1.6, foreground="black")],
    )
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
