"""``emlab cellpose3``: restore images of cells so that they can be segmented, and segment them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from emlab import weights
from emlab.app.commands import job
from emlab.app.commands.job import Job, check_outputs
from emlab.app.commands.options import Device, Resume, argument, command, group, option
from emlab.errors import InputError
from emlab.io import read_array, write_image
from emlab.io.tags import PixelSize
from emlab.methods.cellpose3 import (
    SEGMENTER,
    estimate_diameter,
    load_restorer,
    load_segmenter,
    resize,
    restore,
    segment as find_objects,
)
from emlab.runtime import Stopwatch

SMALLEST = 16
MASKS = (".tif", ".tiff", ".png", ".npy")
MOST_LABELS = 65535
app = group(
    "Restore images of cells for segmentation, and segment them.\n\n"
    "**Try it:** `emlab cellpose3 denoise noisy.tif clean.tif --masks objects.tif`\n\n"
    "The shipped networks know fluorescent nuclei, bright on dark (`emlab weights card "
    "cellpose3_denoise`); `--oneclick` takes one that saw membranes and bacteria too. A restored "
    "image is for *finding* objects: measure their brightness on the image that you recorded."
)


@dataclass(kw_only=True)
class Planes(Job):
    """What all commands ask for; an image is done plane by plane."""

    source: Path = argument("tif, png, mrc or npy.", metavar="IN")
    diameter: float | None = option(None, "Of the objects, in pixels of IN.", shown="estimated")
    channel: int | None = option(
        None, "Which channel of a colour or multi-channel image; 1 is the first.", min=1
    )
    stack: bool = option(False, "IN holds many images: restore each by itself.")
    resume: Resume = False
    device: Device = "auto"

    out: Path | None = field(default=None, init=False)
    masks: Path | None = field(default=None, init=False)
    restorer: str | None = field(default=None, init=False)
    factor: int = field(default=1, init=False)
    usual: ClassVar[str | None] = None  # name of the weights that restore, if any do

    def open(self) -> None:
        """Refuse what cannot work, and read the planes."""
        job.check_positive(diameter=self.diameter)
        self.network = self.restorer or self.usual
        if self.network is not None:
            weights.card(self.network)
        self.planes, self.size = read_planes(self.source, self.channel, stack=self.stack)
        many, inputs = self.planes.ndim == 3, [self.source]
        check_outputs(self.masks, inputs=inputs, volume=many, what="masks", endings=MASKS)
        check_outputs(self.out, self.masks, inputs=inputs, volume=many)

    def run(self) -> dict[str, str]:
        """Restore and segment plane by plane; results of a stack are kept until the run ends."""
        watch = Stopwatch()
        images = self.planes.reshape(-1, *self.planes.shape[-2:])
        restorer = None if self.network is None else load_restorer(self.network, self.place)
        segmenter = load_segmenter(device=self.place)
        if len(images) == 1:
            return self._write([self._one(images[0], restorer, segmenter)], watch)
        target = self.out or self.masks
        assert target is not None
        used = [name for name in (self.network, SEGMENTER) if name is not None]
        facts = {
            "input": job.identity(self.source),
            "images": list(self.planes.shape),
            "task": f"{type(self).__name__} {self.factor}",
            "masks": self.masks is not None,
            "weights": [weights.card(name).sha256 for name in used],
        }
        with self.pieces(target, facts, len(images)) as pieces:
            with job.bar("images") as progress:
                for number in pieces.todo:
                    pieces.keep(number, self._one(images[number], restorer, segmenter))
                    progress(number + 1, len(images))
            return self._write(pieces.kept(), watch)

    def _one(self, image: np.ndarray, restorer: Any, segmenter: Any) -> dict[str, np.ndarray]:
        """Restored image and labels of one plane, and the diameter that was used."""
        diameter = self.diameter or estimate_diameter(image, segmenter, restorer)
        found: dict[str, np.ndarray] = {"diameter": np.array(diameter)}
        whole = diameter * self.factor
        if restorer is not None:
            if self.factor > 1:
                height, width = (side * self.factor for side in image.shape)
                image = resize(torch.from_numpy(image), (height, width)).numpy()
            found["image"] = image = restore(image, restorer, whole).image
        if self.masks is not None:
            seen = find_objects(image, segmenter, whole, rescale_intensity=restorer is None)
            middle = slice(self.factor // 2, None, self.factor)
            found["labels"] = seen.labels[middle, middle]
        return found

    def _write(self, found: list[dict[str, np.ndarray]], watch: Stopwatch) -> dict[str, str]:
        shape = self.planes.shape
        diameters = sorted(float(one["diameter"]) for one in found)
        told = " to ".join(f"{end:.1f}" for end in dict.fromkeys((diameters[0], diameters[-1])))
        rows = {
            "input": " x ".join(map(str, shape)) + " pixels" + job.unit(self.size),
            "network": self.network or SEGMENTER,
            "diameter": f"{told} pixels ({'given' if self.diameter else 'estimated'})",
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
            write_image(self.masks, whole.reshape(shape), self.size)
            rows["objects"] = f"{objects}, written to {self.masks}"
        if self.out is not None:
            images = np.stack([one["image"] for one in found])
            result = images.reshape(*shape[:-2], *images.shape[-2:])
            size = job.finer(self.size, self.factor)
            rows["written"] = job.write_output(self.out, result, size)
            job.note(
                "grey levels of the result are those of a clean image stretched from 0 to 1; "
                "measure brightness on the input"
            )
        return {**rows, "seconds": f"{watch.seconds:.1f}"}


@dataclass(kw_only=True)
class Restoring(Planes):
    """What the commands ask for that restore."""

    source: Path = argument("tif, png, mrc or npy.", metavar="IN")
    out: Path = argument("tif, mrc, npy (float32) or png.", metavar="OUT")
    masks: Path | None = option(
        None, "Also write the objects, as labels of the size of IN.", metavar="OUT2"
    )
    restorer: str | None = option(None, "A name of `emlab weights list`.", shown="of the task")


@command(app, "denoise")
class Denoise(Restoring):
    """Remove noise, so that objects can be found.

    **Example:** `emlab cellpose3 denoise noisy.tif clean.tif --diameter 25 --masks objects.tif`
    """

    oneclick: bool = option(False, "The network of all domains, not that of nuclei.")

    usual = "cellpose3_denoise"

    def open(self) -> None:
        """Also choose the network of all domains if it is asked for."""
        self.restorer = self.restorer or ("cellpose3_oneclick" if self.oneclick else None)
        super().open()


@command(app, "deblur")
class Deblur(Restoring):
    """Undo blur, and noise with it, so that objects can be found.

    **Example:** `emlab cellpose3 deblur soft.tif sharp.tif --diameter 25`
    """

    usual = "cellpose3_deblur_strong"


@command(app, "upsample")
class Upsample(Restoring):
    """Write a finer image of coarse pixels; masks stay in the pixels of IN.

    **Example:** `emlab cellpose3 upsample coarse.tif fine.tif --factor 3 --diameter 6`
    """

    factor: int = option(2, "OUT has so many more pixels.", min=1, max=16)

    usual = "cellpose3_upsample_strong"


@command(app, "segment")
class Segment(Planes):
    """Find objects without restoring anything first.

    **Example:** `emlab cellpose3 segment nuclei.tif objects.tif`
    """

    source: Path = argument("tif, png, mrc or npy.", metavar="IN")
    masks: Path = argument("tif, png or npy of labels.", metavar="MASKS")


def read_planes(path: Path, channel: int | None, *, stack: bool) -> tuple[np.ndarray, PixelSize]:
    """Return one grey image ``(H, W)`` or, of a stack, ``(n, H, W)``, float32, and the pixel size.

    Refused: colour without a channel, a volume without ``--stack``, images that are empty,
    constant, too small or not finite.
    """
    pixels, size = read_array(path)
    while pixels.ndim > 2 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.dtype.kind not in "buif":
        raise InputError(f"{path} holds {pixels.dtype} values; give real-valued pixels")
    shape = pixels.shape
    colour = pixels.ndim > 2 and shape[-1] in (3, 4) and shape[-3] > 4
    if pixels.ndim > 2 and pixels.ndim != 2 + stack + (channel is not None):
        advice = (
            "give one image (H, W), with --channel one of several channels, with --stack many "
            "images, with both a stack of channels"
        )
        if pixels.ndim == 3 and colour:
            advice = "it is in colour: say which channel with --channel 1, 2 or 3"
        elif pixels.ndim == 3:
            advice = (
                "volumes are not restored as such; give --stack for many images, or --channel for "
                "one channel of a single image"
            )
        raise InputError(f"{path} has shape {shape}; {advice}")
    if pixels.ndim == 2 and (stack or channel is not None):
        raise InputError(f"{path} is one grey image; leave out --stack and --channel")
    if channel is not None:
        axis = pixels.ndim - 1 if colour else pixels.ndim - 3
        if channel > shape[axis]:
            raise InputError(f"{path} has {shape[axis]} channels; there is no {channel}")
        pixels = np.take(pixels, channel - 1, axis)
    planes = np.array(pixels, np.float32, order="C")
    if min(planes.shape, default=0) < 1 or min(planes.shape[-2:]) < SMALLEST:
        least = f"{SMALLEST} x {SMALLEST} pixels or more"
        raise InputError(f"{path} has shape {planes.shape}; give images of {least}")
    for number, plane in enumerate(planes.reshape(-1, *planes.shape[-2:])):
        where = f"{path}" if planes.ndim == 2 else f"{path}, image {number + 1},"
        job.check_pixels(plane, where)
    return planes, job.in_plane(size) if planes.ndim == 2 else size
