"""What the commands of ``emlab cellpose3`` do with a file, plane by plane."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from emlab import weights
from emlab.commands.restoring import bar, check_output, in_plane, note, unit, write_output
from emlab.errors import InputError
from emlab.io import read_array, write_image
from emlab.io.tags import PixelSize
from emlab.methods.cellpose3 import SEGMENTER, load_restorer, load_segmenter, resize, restore
from emlab.methods.cellpose3 import segment as find_objects
from emlab.methods.cellpose3_diameter import estimate_diameter
from emlab.runtime import Stopwatch, choose_device, choose_threads
from emlab.solvers.block_journal import Journal, keep_arrays, kept_arrays
from emlab.solvers.block_layout import BlockAxis

SMALLEST = 16
MASKS = (".tif", ".tiff", ".png", ".npy")
MOST_LABELS = 65535


@dataclass
class Job:
    """One call of a command: what the user asked for."""

    task: str
    source: Path
    out: Path | None
    masks: Path | None
    restorer: str | None
    diameter: float | None
    channel: int | None
    stack: bool
    resume: bool
    device: str
    factor: int = 1

    def run(self) -> None:
        """Refuse what cannot work, then restore and segment plane by plane."""
        if self.diameter is not None and not (self.diameter > 0 and math.isfinite(self.diameter)):
            raise InputError(f"--diameter must be a positive number of pixels, got {self.diameter}")
        if self.restorer is not None:
            weights.card(self.restorer)
        planes, size = read_planes(self.source, self.channel, stack=self.stack)
        self._check_outputs(many=planes.ndim == 3)
        images = planes.reshape(-1, *planes.shape[-2:])
        choose_threads()
        self.place: torch.device = choose_device(self.device)
        with Stopwatch() as watch:
            found = self._all(images)
        self._write(found, planes.shape, size, watch.seconds)

    def _all(self, images: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Results of every plane; those of a stack are kept until the run ends."""
        restorer = None if self.restorer is None else load_restorer(self.restorer, self.place)
        segmenter = load_segmenter(device=self.place)
        if len(images) == 1:
            return [self._one(images[0], restorer, segmenter)]
        target = self.out or self.masks
        assert target is not None
        folder = target.with_name(f".{target.stem}.partial")
        if folder.exists() and not self.resume:
            raise InputError(
                f"{folder} is left of an interrupted run; add --resume to go on with it, or "
                "delete it"
            )
        axes = [BlockAxis(len(images), 1, 0, 0, 1), *(BlockAxis(1, 1, 0, 0, 1) for _ in "yx")]
        journal = Journal(folder, self._facts(images.shape), axes, lasting=True)
        with journal.opened(fresh=False), bar("images") as progress:
            for number in range(journal.written, len(images)):
                keep_arrays(
                    folder / f"{number}.npz", self._one(images[number], restorer, segmenter)
                )
                journal.close_block((number, 0, 0))
                progress(number + 1, len(images))
            found = [kept_arrays(folder / f"{number}.npz") for number in range(len(images))]
        shutil.rmtree(folder)
        return found

    def _one(self, image: np.ndarray, restorer: Any, segmenter: Any) -> dict[str, np.ndarray]:
        """Restored image and labels of one plane, and the diameter that was used."""
        diameter = self.diameter
        if diameter is None:
            diameter = estimate_diameter(image, segmenter, restorer)
        height, width = image.shape
        if restorer is not None and self.factor > 1:
            fine = (height * self.factor, width * self.factor)
            image = resize(torch.from_numpy(image), fine).numpy()
        found: dict[str, np.ndarray] = {"diameter": np.array(diameter)}
        if restorer is not None:
            image = restore(image, restorer, diameter * self.factor).image
            found["image"] = image
        if self.masks is not None:
            plain = restorer is None
            seen = find_objects(
                image, segmenter, diameter * self.factor, rescale_intensity=plain
            ).labels
            middle = self.factor // 2
            found["labels"] = seen[middle :: self.factor, middle :: self.factor]
        return found

    def _write(
        self,
        found: list[dict[str, np.ndarray]],
        shape: tuple[int, ...],
        size: PixelSize,
        seconds: float,
    ) -> None:
        diameters = np.array([float(one["diameter"]) for one in found])
        origin = "estimated" if self.diameter is None else "given"
        told = f"{diameters.min():.1f}"
        if diameters.max() > diameters.min():
            told += f" to {diameters.max():.1f}"
        rows = {
            "input": " x ".join(map(str, shape)) + " pixels" + unit(size),
            "network": self.restorer or SEGMENTER,
            "diameter": f"{told} pixels ({origin})",
        }
        if self.masks is not None:
            labels = np.stack([one["labels"] for one in found])
            most = int(labels.max())
            if most > MOST_LABELS and self.masks.suffix.lower() != ".npy":
                raise InputError(
                    f"{most} objects do not fit into {self.masks}; write the masks as .npy"
                )
            whole = labels if most > MOST_LABELS else labels.astype(np.uint16)
            objects = sum(len(np.unique(one[one > 0])) for one in labels)
            write_image(self.masks, whole.reshape(shape), size)
            rows["objects"] = f"{objects}, written to {self.masks}"
        if self.out is not None:
            images = np.stack([one["image"] for one in found])
            finer = in_plane(size) if len(shape) == 2 else size
            finer = _divided(finer, self.factor, len(shape))
            result = images.reshape(*shape[:-2], *images.shape[-2:])
            rows["written"] = write_output(self.out, result, finer)
            note(
                "grey levels of the result are those of a clean image stretched from 0 to 1; "
                "measure brightness on the input"
            )
        rows["seconds"] = f"{seconds:.1f}"
        for key, text in rows.items():
            typer.echo(f"{key:<16}{text}")

    def _check_outputs(self, *, many: bool) -> None:
        if self.out is not None:
            check_output(self.out, self.source, volume=many)
        if self.masks is None:
            return
        known = [suffix for suffix in MASKS if not (many and suffix == ".png")]
        if self.masks.suffix.lower() not in known:
            raise InputError(f"{self.masks}: masks are written as {', '.join(known)}")
        check_output(self.masks, self.source, volume=many)
        if self.out is not None and self.masks.resolve() == self.out.resolve():
            raise InputError(f"{self.masks} would hold both results; give --masks another name")

    def _facts(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """All that the result depends on."""
        file = self.source.stat()
        names = [name for name in (self.restorer, SEGMENTER) if name is not None]
        return {
            "input": f"{self.source.name}, {file.st_size} bytes, changed {file.st_mtime_ns}",
            "images": list(shape),
            "task": f"{self.task} {self.factor}",
            "diameter": self.diameter,
            "channel": self.channel,
            "masks": self.masks is not None,
            "weights": [weights.card(name).sha256 for name in names],
        }


def read_planes(path: Path, channel: int | None, *, stack: bool) -> tuple[np.ndarray, PixelSize]:
    """Return one grey image ``(H, W)`` or, of a stack, ``(n, H, W)``, float32, and the pixel size.

    Raises
    ------
    InputError
        A file that cannot be read; colour without a channel; a volume without ``--stack``; images
        that are empty, constant, too small or not finite.
    """
    pixels, size = read_array(path)
    while pixels.ndim > 2 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.dtype.kind not in "buif":
        raise InputError(f"{path} holds {pixels.dtype} values; give real-valued pixels")
    colour = pixels.ndim > 2 and pixels.shape[-1] in (3, 4) and pixels.shape[-3] > 4
    wanted = 2 + stack + (channel is not None)
    if pixels.ndim > 2 and wanted != pixels.ndim:
        raise InputError(_advice(path, pixels.shape, colour=colour))
    if pixels.ndim == 2 and (stack or channel is not None):
        raise InputError(f"{path} is one grey image; leave out --stack and --channel")
    if channel is not None:
        axis = pixels.ndim - 1 if colour else pixels.ndim - 3
        if channel > pixels.shape[axis]:
            raise InputError(f"{path} has {pixels.shape[axis]} channels; there is no {channel}")
        pixels = np.take(pixels, channel - 1, axis)
    planes = np.array(pixels, np.float32, order="C")
    if min(planes.shape, default=0) < 1 or min(planes.shape[-2:]) < SMALLEST:
        raise InputError(
            f"{path} has shape {planes.shape}; give images of {SMALLEST} x {SMALLEST} pixels or "
            "more"
        )
    if not np.isfinite(planes).all():
        raise InputError(
            f"{path} has pixels that are NaN or infinite; replace them (for example by the median "
            "of their neighbours) and save the file again"
        )
    flat = planes.reshape(-1, planes.shape[-2] * planes.shape[-1])
    constant = np.flatnonzero(flat.min(1) == flat.max(1))
    if len(constant):
        which = "" if planes.ndim == 2 else f", image {constant[0] + 1}"
        raise InputError(f"{path}{which} is constant, nothing can be found in it; check it")
    return planes, in_plane(size) if planes.ndim == 2 else size


def _advice(path: Path, shape: tuple[int, ...], *, colour: bool) -> str:
    if colour and len(shape) == 3:
        return f"{path} is in colour, shape {shape}; say which channel with --channel 1, 2 or 3"
    if len(shape) == 3:
        return (
            f"{path} has shape {shape}, and volumes are not restored as such; give --stack for "
            "many images, or --channel for one channel of a single image"
        )
    return (
        f"{path} has shape {shape}; give one image (H, W), with --channel one of several channels, "
        "with --stack many images, with both a stack of channels"
    )


def _divided(size: PixelSize, factor: int, dimensions: int) -> PixelSize:
    """Pixel size of a result that is finer in its plane."""
    if size is None or factor == 1:
        return size
    if not isinstance(size, tuple):
        return size / factor
    *first, y, x = size
    return (*first, y / factor, x / factor) if dimensions == 3 else (y / factor, x / factor)
