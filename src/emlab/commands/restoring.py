"""What commands that restore images share: reading, refusing early, padding, kernels, writing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer
from tqdm import tqdm

from emlab.errors import InputError
from emlab.io import WRITABLE, read_image, write_image
from emlab.io.tags import PixelSize
from emlab.io.volumes import Volume, create_volume, open_volume

if TYPE_CHECKING:
    import torch

# Side of the patches that the networks were trained on; smaller images are padded to it.
PATCH = 64


@dataclass(frozen=True)
class Input:
    """An image in memory, or a volume that is still on the disk.

    Attributes
    ----------
    path : Path
        Where it is from.
    shape : tuple of int
        Without leading axes of length 1: ``(H, W)`` or ``(D, H, W)``.
    pixel_size_angstrom : PixelSize
        As the file says.
    volume : Volume or None
        To be read box by box.
    """

    path: Path
    shape: tuple[int, ...]
    pixel_size_angstrom: PixelSize
    pixels: np.ndarray | None = None
    volume: Volume | None = None

    def load(self) -> np.ndarray:
        """All pixels, float32, finite and not all the same."""
        pixels = self.pixels
        if pixels is None and self.volume is not None:
            pixels = np.asarray(self.volume[:], dtype=np.float32)
        if pixels is None:
            raise InputError(f"{self.path} holds no pixels")
        bad = pixels.size - int(np.isfinite(pixels).sum())
        if bad:
            raise InputError(
                f"{self.path} has {bad} pixels that are NaN or infinite; replace them (for "
                f"example by the median of their neighbours) and save the file again"
            )
        if pixels.min() == pixels.max():
            raise InputError(f"{self.path} is constant, {pixels.min():g} everywhere; check it")
        return pixels

    def __str__(self) -> str:
        return " x ".join(map(str, self.shape)) + " pixels" + unit(self.pixel_size_angstrom)


def read_input(path: Path, dimensions: tuple[int, ...], task: str) -> Input:
    """Open what a task takes; volumes are not read yet.

    Raises
    ------
    InputError
        A file that cannot be read, or an image of other dimensions.
    """
    try:
        volume = open_volume(path)
    except InputError:
        if path.is_dir() or path.suffix.lower() == ".zarr":
            raise
        image = read_image(path)
        shape = image.pixels.shape
        while len(shape) > 2 and shape[0] == 1:
            shape = shape[1:]
        found = Input(path, shape, image.pixel_size_angstrom, image.pixels.reshape(shape))
    else:
        found = Input(path, volume.shape, volume.pixel_size_angstrom, volume=volume)
        if volume.shape[0] == 1 and 2 in dimensions:
            pixels, shape = np.asarray(volume[0], dtype=np.float32), volume.shape[1:]
            size = in_plane(volume.pixel_size_angstrom)
            found = Input(path, shape, size, pixels)
    if len(found.shape) not in dimensions:
        wanted = " or ".join(
            {2: "one image (H, W)", 3: "a volume (D, H, W)"}[n] for n in dimensions
        )
        raise InputError(f"{path} has shape {found.shape}; {task} takes {wanted}")
    return found


def check_output(out: Path, source: Path, *, volume: bool) -> None:
    """Refuse now what could not be written after minutes of work."""
    from importlib.util import find_spec

    suffix = out.suffix.lower()
    known = [suffix for suffix in (*WRITABLE, ".zarr") if not (volume and suffix == ".png")]
    if suffix not in known:
        kind = "a volume" if volume else "an image"
        raise InputError(f"{out}: cannot write {kind} as {suffix!r}; use {', '.join(known)}")
    if suffix == ".zarr" and find_spec("zarr") is None:
        raise InputError("zarr is not installed; pip install 'emlab-book[volumes]'")
    if (out.is_dir() and suffix != ".zarr") or (out.parent.exists() and not out.parent.is_dir()):
        raise InputError(f"cannot write {out}: give a file name in a folder")
    if out.resolve() == source.resolve():
        raise InputError(f"{out} is the input itself; give the result another name")


def write_output(out: Path, pixels: np.ndarray, size: PixelSize) -> str:
    """Write float32 pixels in their grey levels (PNG: stretched); returns what to tell."""
    told = f"{out}, grey levels {pixels.min():.4g} to {pixels.max():.4g}{unit(size)}"
    if out.suffix.lower() == ".zarr":
        with create_volume(out, pixels.shape, "float32", size) as target:
            target[:] = pixels
        return told
    if out.suffix.lower() != ".png":
        write_image(out, pixels, size)
        return told
    low, high = pixels.min(), pixels.max()
    write_image(out, (pixels - low) / max(high - low, 1e-12), size)
    return f"{told}, stretched to 0..65535 for PNG"


def pad_to_patch(pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Mirror images ``(..., H, W)`` smaller than a patch at their ends; says so.

    Returns
    -------
    tuple
        The padded pixels, and how many rows and columns were put before the first.
    """
    missing = [max(0, PATCH - side) for side in pixels.shape[-2:]]
    if not any(missing):
        return pixels, (0, 0)
    before = missing[0] // 2, missing[1] // 2
    widths = [(0, 0)] * (pixels.ndim - 2) + [
        (first, all_of_it - first) for first, all_of_it in zip(before, missing, strict=True)
    ]
    rows, columns = pixels.shape[-2:]
    note(f"{rows} x {columns} pixels are less than a patch; mirrored at the edges to {PATCH}")
    return np.pad(pixels, widths, mode="symmetric"), before


def parse_kernel(text: str, size: PixelSize, path: Path) -> torch.Tensor:
    """Return the blur kernel of ``2.5``, ``20nm``, ``disc:3``, ``disc:15nm`` or an image file."""
    from emlab.physics.kernels import defocus_kernel, gaussian_kernel

    found = re.fullmatch(r"(disc:)?([0-9.]+(?:e-?[0-9]+)?)(nm)?", text.strip().lower())
    if found is None:
        return _kernel_file(text)
    try:
        width = float(found[2])
    except ValueError:
        raise InputError(
            f"--kernel {text} is no width; give for example 2, 20nm or disc:3"
        ) from None
    if found[3]:
        lateral = in_plane(size)
        if lateral is None or isinstance(lateral, tuple):
            raise InputError(
                f"{path} does not tell one pixel size for rows and columns, so {text} is not "
                f"known in pixels; give --kernel in pixels"
            )
        width *= 10 / lateral
    if not 0 < width <= 64:
        raise InputError(f"--kernel {text} is {width:g} pixels; give a width from 0 to 64 pixels")
    return defocus_kernel(width) if found[1] else gaussian_kernel(width)


def _kernel_file(text: str) -> torch.Tensor:
    import torch

    if text.lower().startswith("disc:") or not Path(text).suffix:
        raise InputError(
            f"--kernel {text!r} is unknown; give a sigma in pixels (2) or nanometres (20nm), a "
            f"disc (disc:3) or an image file"
        )
    pixels = np.squeeze(read_image(text).pixels)
    if pixels.ndim != 2 or not all(side % 2 for side in pixels.shape) or len({*pixels.shape}) > 1:
        raise InputError(f"{text} has shape {pixels.shape}; a kernel is square with odd sides")
    if pixels.min() < 0 or pixels.sum() <= 0:
        raise InputError(f"{text} is no kernel: its pixels must be 0 or more and not all 0")
    return torch.from_numpy(pixels / pixels.sum())


def in_plane(size: PixelSize) -> PixelSize:
    """Return the pixel size of rows and columns: one number if they agree."""
    if not isinstance(size, tuple):
        return size
    y, x = size[-2:]
    return y if y == x else (y, x)


def unit(size: PixelSize) -> str:
    """Return the pixel size in words, with a comma before; nothing if unknown."""
    if size is None:
        return ""
    given = size if isinstance(size, tuple) else (size,)
    return f", pixel size {' x '.join(f'{value:.6g}' for value in given)} angstrom"


def note(sentence: str) -> None:
    """Say on stderr what the user should know."""
    typer.echo(f"note: {sentence}", err=True)


@contextmanager
def bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total) that moves a bar on a terminal and does nothing elsewhere."""
    with tqdm(desc=what, disable=None, leave=False) as shown:

        def show(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield show
