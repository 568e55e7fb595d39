"""One call of a command: open the input, check early, run, tell what was done."""

from __future__ import annotations

import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from importlib import util
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from tqdm import tqdm

from emlab.app.commands.options import Device, Seed
from emlab.app.journal import Journal, Pieces
from emlab.errors import InputError
from emlab.io import WRITABLE, read_image, write_image
from emlab.io.images import check_finite
from emlab.io.tags import PixelSize, simplify
from emlab.io.volumes import Volume, create_volume, open_volume
from emlab.runtime import choose_device, choose_threads

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True)
class Job(ABC):
    """One call of a command; its fields are what the user asked for.

    `open` reads the input and refuses with one clear error what cannot work; `run` works, writes
    each result under a temporary name first, and returns what is told, a row for each thing.
    """

    device: str = field(default="auto", init=False)
    resume: bool = field(default=False, init=False)

    @abstractmethod
    def open(self) -> None:
        """Refuse what cannot work, and read what is needed."""

    @abstractmethod
    def run(self) -> Mapping[str, str]:
        """Work and write; return what to tell."""

    def __call__(self) -> None:
        """Open, run and tell; a device that is not here is refused first."""
        choose_threads()
        self.place: torch.device = choose_device(self.device)
        self.open()
        self.tell(self.run())

    def tell(self, rows: Mapping[str, str]) -> None:
        """Print a row for each thing."""
        for key, text in rows.items():
            typer.echo(f"{key:<16}{text}")

    def partial(self, target: Path) -> Path:
        """Folder beside a target that an interrupted run leaves; refused without --resume."""
        folder = target.with_name(f".{target.stem}.partial")
        if folder.exists():
            self.gone_on_with(folder)
        return folder

    def gone_on_with(self, left: Path) -> None:
        """Refuse what an interrupted run left, unless it is to be gone on with."""
        if not self.resume:
            raise InputError(
                f"{left} is left of an interrupted run; add --resume to go on with it, or delete it"
            )

    @contextmanager
    def pieces(self, target: Path, facts: Mapping[str, Any], count: int) -> Iterator[Pieces]:
        """Yield what is kept, piece by piece, until all of the target is written.

        The facts and what the user asked for are all that the result depends on: a run with others
        is not gone on with.
        """
        names = {each.name for each in fields(self) if each.init} - {"device", "resume"}
        asked = {name: getattr(self, name) for name in sorted(names)}
        asked = {name: one for name, one in asked.items() if not isinstance(one, Path)}
        journal = Journal(self.partial(target), {**asked, **facts}, [range(count)])
        try:
            with journal.opened(fresh=False):
                yield Pieces(journal)
        except KeyboardInterrupt:
            note("interrupted; the same command with --resume goes on")
            raise
        shutil.rmtree(journal.folder)


@dataclass(kw_only=True)
class Seeded(Job):
    """A job that draws random numbers, on a device of the user's choice."""

    seed: Seed = 0
    device: Device = "auto"


@dataclass(frozen=True)
class Input:
    """An image in memory, or a volume still on the disk; without leading axes of length 1."""

    path: Path
    pixels: np.ndarray | Volume
    pixel_size_angstrom: PixelSize

    @property
    def shape(self) -> tuple[int, ...]:
        """``(H, W)`` or ``(D, H, W)``."""
        return self.pixels.shape

    @property
    def volume(self) -> Volume | None:
        """What is to be read box by box, if it is."""
        return None if isinstance(self.pixels, np.ndarray) else self.pixels

    def part(self, box: tuple[Any, ...]) -> np.ndarray:
        """A copy of some pixels, float32."""
        return np.array(self.pixels[box], dtype=np.float32, order="C")

    def load(self) -> np.ndarray:
        """All pixels, float32, finite and not all the same."""
        pixels = np.asarray(self.pixels[:], dtype=np.float32)
        check_pixels(pixels, f"{self.path}")
        return pixels

    def __str__(self) -> str:
        return " x ".join(map(str, self.shape)) + " pixels" + unit(self.pixel_size_angstrom)


def read_input(path: Path, dimensions: tuple[int, ...], task: str) -> Input:
    """Open what a task takes, volumes without reading them; refuse other dimensions."""
    pixels: np.ndarray | Volume
    try:
        pixels = open_volume(path)
        size = pixels.pixel_size_angstrom
        if pixels.shape[0] == 1 and 2 in dimensions:
            pixels, size = np.asarray(pixels[0], dtype=np.float32), in_plane(size)
    except InputError:
        if path.is_dir() or path.suffix.lower() == ".zarr":
            raise
        image = read_image(path)
        pixels, size = image.pixels, image.pixel_size_angstrom
        while len(pixels.shape) > 2 and pixels.shape[0] == 1:
            pixels = pixels[0]
    found = Input(path, pixels, size)
    if len(found.shape) not in dimensions:
        wanted = " or ".join(
            {2: "one image (H, W)", 3: "a volume (D, H, W)"}[n] for n in dimensions
        )
        raise InputError(f"{path} has shape {found.shape}; {task} takes {wanted}")
    return found


def check_pixels(pixels: np.ndarray, where: str) -> None:
    """Refuse pixels that are not finite, or all the same."""
    check_finite(pixels, where)
    if pixels.min() == pixels.max():
        raise InputError(f"{where} is constant, {pixels.min():g} everywhere; check it")


def check_positive(**options: float | None) -> None:
    """Refuse values that are not positive numbers; names are those of the options."""
    for name, value in options.items():
        if value is not None and not (value > 0 and isfinite(value)):
            raise InputError(f"--{name.replace('_', '-')} must be positive, got {value:g}")


def check_outputs(
    *outputs: Path | None,
    inputs: Sequence[Path],
    volume: bool = False,
    what: str = "",
    endings: Sequence[str] = (*WRITABLE, ".zarr"),
) -> None:
    """Refuse now what could not be written after minutes of work."""
    known = [suffix for suffix in endings if not (volume and suffix == ".png")]
    kind = what or ("a volume" if volume else "an image")
    taken, seen = {path.resolve() for path in inputs}, set()
    for out in outputs:
        if out is None:
            continue
        suffix = out.suffix.lower()
        if suffix not in known:
            raise InputError(f"{out}: cannot write {kind} as {suffix!r}; use {', '.join(known)}")
        if suffix == ".zarr" and util.find_spec("zarr") is None:
            raise InputError("zarr is not installed; pip install 'emlab-book[volumes]'")
        if (out.is_dir() and suffix != ".zarr") or (
            out.parent.exists() and not out.parent.is_dir()
        ):
            raise InputError(f"cannot write {out}: give a file name in a folder")
        if out.resolve() in taken:
            raise InputError(f"{out} is the input itself; give the result another name")
        if out.resolve() in seen:
            raise InputError(f"{out} would hold both results; give one another name")
        seen.add(out.resolve())


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


def parse_kernel(text: str, size: PixelSize, path: Path) -> np.ndarray:
    """Return the blur kernel of ``2.5``, ``20nm``, ``disc:3``, ``disc:15nm`` or an image file."""
    from emlab.physics.operators import defocus_kernel, gaussian_kernel

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
    return (defocus_kernel(width) if found[1] else gaussian_kernel(width)).numpy()


def _kernel_file(text: str) -> np.ndarray:
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
    return (pixels / pixels.sum()).astype(np.float32)


def identity(path: Path) -> str:
    """Name, size and time of a file, for an interrupted run to know its input again."""
    file = path.stat()
    return f"{path.name}, {file.st_size} bytes, changed {file.st_mtime_ns}"


def in_plane(size: PixelSize) -> PixelSize:
    """Return the pixel size of rows and columns: one number if they agree."""
    if not isinstance(size, tuple):
        return size
    y, x = size[-2:]
    return y if y == x else (y, x)


def finer(size: PixelSize, lateral: int = 1, depth: int = 1) -> PixelSize:
    """Return the pixel size of a result with so many more pixels along its axes."""
    if not isinstance(size, tuple):
        return None if size is None else size / lateral
    *first, y, x = size
    return simplify([*(z / depth for z in first), y / lateral, x / lateral])


def unit(size: PixelSize) -> str:
    """Return the pixel size in words, with a comma before; nothing if unknown."""
    if size is None:
        return ""
    given = size if isinstance(size, tuple) else (size,)
    return f", pixel size {' x '.join(f'{value:.6g}' for value in given)} angstrom"


def count(number: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def note(sentence: str) -> None:
    """Say on stderr what the user should know."""
    typer.echo(f"note: {sentence}", err=True)


@contextmanager
def bar(what: str) -> Iterator[Callable[..., None]]:
    """Yield a callback of done, total and facts: a bar on a terminal, nothing elsewhere."""
    with tqdm(desc=what, disable=None, leave=False) as shown:

        def show(done: int, total: int, **facts: str) -> None:
            shown.total = total
            shown.set_postfix(facts, refresh=False)
            shown.update(done - shown.n)

        yield show
