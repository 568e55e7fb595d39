"""``emlab generalist``: denoise, deblur, upsample, make volumes isotropic, with one prior."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import inf, prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from emlab import weights
from emlab.app.commands import job
from emlab.app.commands.job import Seeded, bar, count, finer, note, read_input, write_output
from emlab.app.commands.options import (
    PriorName,
    Resume,
    Scheduler,
    Workers,
    argument,
    command,
    group,
    option,
)
from emlab.app.tasks import check_crew, hire
from emlab.app.volumes import Restorer, megabytes, restore_volume, survey
from emlab.errors import InputError
from emlab.io.volumes import Volume, create_volume
from emlab.methods import generalist
from emlab.methods.generalist import Config, load, load_config
from emlab.priors import Prior
from emlab.runtime import make_generator
from emlab.solvers import ONE_ESTIMATE

# Side of the patches that the networks were trained on; smaller images are padded to it.
PATCH = 64
app = group(
    "One prior of electron micrographs of tissue, every restoration task.\n\n"
    "**Try it:** `emlab generalist denoise noisy.tif clean.tif`, "
    "`emlab generalist isotropic sections.mrc isotropic.mrc --factor 4`\n\n"
    "Files: tif, mrc, png, npy and (volumes) zarr. Results are float32 in the grey levels of the "
    "input, with the pixel size of the result in the header. What the prior was trained on, and "
    "where not to use it: `emlab weights card generalist_depth`. A restored image is an estimate; "
    "look at --spread before you count anything in it."
)


@dataclass(kw_only=True)
class Restoring(Seeded):
    """What all tasks ask for, and do."""

    source: Path = argument("tif, mrc, png, npy or zarr.", metavar="IN")
    out: Path = argument("tif, mrc, png, npy or zarr.", metavar="OUT")
    noise: float | None = option(
        None, "Standard deviation of the noise in grey levels of the input.", shown="estimated"
    )
    samples: int | None = option(
        None,
        "Draw so many from the posterior and write their mean.",
        min=1,
        shown="one estimate, nothing drawn",
    )
    spread: Path | None = option(
        None, "Also write the standard deviation over samples; draws 4 unless told.", metavar="OUT2"
    )
    prior: PriorName = None
    config: str = option("ours", "ours, samples, paper or paper_dps.")
    tile: int | None = option(
        None, "Side in pixels of what the network sees at once.", min=16, shown="of the config"
    )

    task: ClassVar[str]
    dimensions: ClassVar[tuple[int, ...]] = (2,)
    lateral = depth = 1  # how many times finer the result is

    @property
    def solved(self) -> str:
        """Name of the task's solver in a config."""
        return self.task

    def options(self) -> dict[str, Any]:
        """What only this task tells the method."""
        return {}

    def open(self) -> None:
        """Refuse what cannot work, then load the settings, the prior and the input."""
        self.settings: Config = load_config(self.config)
        if self.noise is not None and not 0 <= self.noise < inf:
            raise InputError(f"--noise must be 0 or more, got {self.noise}")
        if self.samples is not None or self.spread is not None:
            self._draw_samples()
        self.settings = replace(self.settings, prior=self.prior or self.settings.prior)
        if self.tile is not None:
            overlap = min(self.settings.overlap, self.tile // 4)
            self.settings = replace(self.settings, tile=self.tile, overlap=overlap)
        self.input = read_input(self.source, self.dimensions, self.task)
        volume = len(self.input.shape) == 3
        job.check_outputs(self.out, self.spread, inputs=[self.source], volume=volume)
        size = finer(self.input.pixel_size_angstrom, self.lateral)
        self.pixel_angstrom = size[-1] if isinstance(size, tuple) else size
        self.loaded: Prior = load(self.settings.prior, self.place, self.pixel_angstrom)

    def _draw_samples(self) -> None:
        """Take a sampler where the config gives one estimate."""
        if isinstance(self.settings.solvers[self.solved], ONE_ESTIMATE):
            sampling = load_config("samples")
            solvers = {**self.settings.solvers, self.solved: sampling.solvers[self.solved]}
            self.settings = replace(self.settings, solvers=solvers, samples=sampling.samples)
        if self.samples is not None:
            self.settings = replace(self.settings, samples=self.samples)
        if self.spread is not None and self.settings.samples < 2:
            raise InputError("--spread is over samples; give --samples 2 or more")

    def run(self) -> dict[str, str]:
        """Restore what fits into memory, and write it."""
        padded, corner = self.padded()
        with bar(self.solved) as progress:
            result = getattr(generalist, self.task)(
                padded,
                config=self.settings,
                generator=make_generator(self.seed),
                noise_sigma=self.noise,
                samples=self.settings.samples,
                prior=self.loaded,
                device=self.place,
                progress=progress,
                **self.options(),
            )
        return self.written(result, corner)

    def padded(self) -> tuple[np.ndarray, tuple[int, int]]:
        """The pixels, mirrored up to a patch, and how many rows and columns come before them."""
        pixels = self.input.load()
        missing = [max(0, PATCH - side) for side in pixels.shape[-2:]]
        if not any(missing):
            return pixels, (0, 0)
        if self.noise_origin == "estimated":  # not from mirrored pixels
            raise InputError(
                f"{self.source} is too small to estimate its noise, less than {PATCH} pixels a "
                f"side; give --noise"
            )
        before = missing[0] // 2, missing[1] // 2
        ends = [(first, whole - first) for first, whole in zip(before, missing, strict=True)]
        rows, columns = pixels.shape[-2:]
        note(f"{rows} x {columns} pixels are less than a patch; mirrored at the edges to {PATCH}")
        return np.pad(pixels, [(0, 0)] * (pixels.ndim - 2) + ends, mode="symmetric"), before

    @property
    def noise_origin(self) -> str:
        """How the noise is known."""
        if self.noise is not None:
            return "given"
        return "assumed" if self.task == "upsample" else "estimated"

    def drawn(self) -> str:
        """How the result came about, in words."""
        if isinstance(self.settings.solvers[self.solved], ONE_ESTIMATE):
            return "one estimate"
        return f"mean of {count(self.settings.samples, 'sample')}"

    def written(self, result: generalist.Found, corner: tuple[int, int]) -> dict[str, str]:
        """Write what lies inside the padding; returns what to tell."""
        height, width = (side * self.lateral for side in self.input.shape[-2:])
        top, left = (start * self.lateral for start in corner)
        inside = (..., slice(top, top + height), slice(left, left + width))
        size = finer(self.input.pixel_size_angstrom, self.lateral, self.depth)
        share = result.cost.network_seconds / max(result.cost.seconds, 1e-9)
        rows = {
            "input": str(self.input),
            "task": self.solved.replace("_", ", "),
            "prior": f"{self.settings.prior}, {self.drawn()}, "
            f"{count(result.cost.evaluations, 'evaluation')} of the whole image",
            "noise sigma": f"{result.noise_sigma:.5g} ({self.noise_origin})",
            "seconds": f"{result.cost.seconds:.1f}, {share:.0%} of it in the network",
            "written": write_output(self.out, result.image[inside], size),
        }
        if self.spread is not None and result.spread is not None:
            rows["spread"] = write_output(self.spread, result.spread[inside], size)
        for sentence in result.notes:
            note(sentence)
        return rows


@dataclass(kw_only=True)
class RestoringVolumes(Restoring):
    """What tasks ask for that take volumes larger than memory."""

    memory: float = option(2048, "Working memory in MB; larger volumes go block by block.")
    resume: Resume = False
    workers: Workers = 1
    scheduler: Scheduler = None

    def open(self) -> None:
        """Also refuse what cannot be shared among workers."""
        check_crew(self.workers, self.scheduler)
        job.check_positive(memory=self.memory)
        super().open()

    def run(self) -> dict[str, str]:
        """Restore at once, or a volume that needs more memory block by block."""
        volume = self.input.volume
        needed = megabytes(prod(self.input.shape) * self.depth, self.settings.samples)
        shared = self.workers > 1 or self.scheduler is not None
        if volume is not None and (needed > self.memory or shared):
            return self.in_blocks(volume)
        if shared:
            raise InputError("--workers and --scheduler are for volumes; leave them out for images")
        if self.resume:
            raise InputError("--resume is for volumes that need more than --memory; leave it out")
        return super().run()

    def in_blocks(self, volume: Volume) -> dict[str, str]:
        """Restore block by block; what is done stays if the run is interrupted."""
        size = finer(self.input.pixel_size_angstrom, depth=self.depth)
        depth, height, width = self.input.shape
        sigma, coloured = self.noise, self.solved == "denoise_coloured"
        shared = survey(volume, noise_sigma=sigma, coloured=coloured, memory_mb=self.memory / 4)
        with ExitStack() as stack:
            targets = []
            for path in filter(None, (self.out, self.spread)):
                shape = depth * self.depth, height, width
                target = create_volume(path, shape, "float32", size, resume=True)
                if target.resumed:
                    self.gone_on_with(target.partial)
                targets.append(stack.enter_context(target))
            crew = stack.enter_context(hire(self.workers, self.scheduler))
            restorer = Restorer(
                self.settings,
                shared,
                self.options(),
                self.settings.samples,
                with_spread=len(targets) > 1,
                seed=self.seed,
                prior=self.loaded if crew is None else None,
                device=str(self.place) if crew is None else self.device,
                pixel_angstrom=self.pixel_angstrom,
            )
            done = restore_volume(
                volume,
                targets,
                restorer,
                memory_mb=self.memory / (1 if self.scheduler else self.workers),
                settings={"weights": weights.card(self.settings.prior).sha256},
                progress=stack.enter_context(bar("blocks")),
                crew=crew,
            )
        rows = {
            "input": str(self.input),
            "prior": f"{self.settings.prior}, {self.drawn()}",
            "noise sigma": f"{shared.noise_sigma:.5g} ({self.noise_origin})",
            "blocks": f"{done.blocks}, {done.computed} of them now",
            "seconds": f"{done.seconds:.1f}",
            "written": f"{self.out}{job.unit(size)}",
        }
        return rows if self.spread is None else {**rows, "spread": str(self.spread)}


@command(app, "denoise")
class Denoise(RestoringVolumes):
    """Remove noise from an image, or from a volume, each plane together with its neighbours.

    **Example:** `emlab generalist denoise noisy.mrc clean.mrc --coloured`

    White noise takes one evaluation of the network: the posterior mean. --coloured is for noise
    that neighbouring pixels share, as in most scanning microscopes, and takes a few more. Stacks
    that need more than --memory are read and written block by block.
    """

    coloured: bool = option(False, "Neighbouring pixels share noise: estimate how.")
    cubic: bool = option(False, "Voxels are cubes: look along all three axes, for thrice the work.")

    task = "denoise"
    dimensions = (2, 3)

    @property
    def solved(self) -> str:
        """Of white or coloured noise."""
        return "denoise_coloured" if self.coloured else "denoise"

    def open(self) -> None:
        """Also refuse a level beside an estimated spectrum."""
        if self.coloured and self.noise is not None:
            raise InputError(
                "give --noise or --coloured: the spectrum is estimated with its strength"
            )
        super().open()
        if self.cubic and len(self.input.shape) != 3:
            raise InputError("--cubic is for volumes; leave it out for an image")

    def options(self) -> dict[str, Any]:
        """Whether noise is coloured, and voxels are cubes."""
        return {"coloured": self.coloured, "cubic": self.cubic}


@command(app, "deblur")
class Deblur(Restoring):
    """Undo the blur of one image, by a kernel that is known or found with the image.

    **Example:** `emlab generalist deblur soft.tif sharp.tif --kernel 2`

    **A defocused lens:** `--kernel disc:3`. **Unknown:** `--blind`, which also writes
    `sharp.kernel.tif`; compare it with what you know of the instrument.
    """

    kernel: str | None = option(
        None, "Blur: a Gaussian sigma in pixels (2) or nm (20nm), disc:R, or an image file."
    )
    blind: bool = option(False, "Find the kernel too; it is written beside OUT.")

    task = "deblur"

    def open(self) -> None:
        """Also read the kernel, or see where a found one can be written."""
        if (self.kernel is None) == (not self.blind):
            raise InputError("say what blurred the image: either --kernel KERNEL or --blind")
        if self.blind and (self.samples is not None or self.spread is not None):
            raise InputError("--blind draws no samples; leave out --samples and --spread")
        super().open()
        self.found = self.out.with_name(f"{self.out.stem}.kernel.tif")
        if self.kernel is None:
            job.check_outputs(self.found, inputs=[self.source])
        else:
            size = self.input.pixel_size_angstrom
            self.blur = job.parse_kernel(self.kernel, size, self.source)

    def options(self) -> dict[str, Any]:
        """The blur."""
        return {"kernel": self.blur}

    def run(self) -> dict[str, str]:
        """Undo the known blur, or find it and write both."""
        if self.kernel is not None:
            return super().run()
        padded, corner = self.padded()
        result, kernel = generalist.deblur_blind(
            padded,
            self.settings,
            make_generator(self.seed),
            noise_sigma=self.noise,
            prior=self.loaded,
            device=self.place,
        )
        rows = self.written(result, corner)
        rows["kernel"] = write_output(self.found, kernel, self.input.pixel_size_angstrom)
        return rows


@command(app, "upsample")
class Upsample(Restoring):
    """Make one image finer; its pixels are averages of the fine ones, or a sparse scan of them.

    **Example:** `emlab generalist upsample coarse.tif fine.tif --factor 3 --spread doubt.tif`

    The pixel size in the header is divided by the factor. Detail that the coarse pixels do not
    hold is drawn from the prior: the spread shows where.
    """

    factor: float = option(2, "How many times finer, a whole number.")
    sampling: str = option(
        "average", "A pixel is the `average` of fine ones, or one of them: `decimate`."
    )

    task = "upsample"

    def open(self) -> None:
        """Also check factor and sampling."""
        check_sampling(self.sampling)
        self.lateral = whole_factor(self.factor)
        super().open()

    def options(self) -> dict[str, Any]:
        """The factor, and what a pixel is."""
        return {"factor": self.lateral, "sampling": self.sampling}


@command(app, "isotropic")
class Isotropic(RestoringVolumes):
    """Make a volume (D, H, W) as fine along axis 0 as along the others: (D * factor, H, W).

    **Example:** `emlab generalist isotropic sections.mrc fine.zarr --factor 4 --memory 4000`

    Volumes that need more than --memory are restored in overlapping blocks that share one noise
    field, without seams. Such a run can be interrupted; --resume goes on where it stopped.
    """

    factor: float | None = option(
        None,
        "Thickness of a slice in pixels of rows and columns, a whole number.",
        shown="from the pixel size",
    )
    sampling: str = option("average", "A slice is the `average` of its planes, or one: `decimate`.")

    task = "isotropic"
    dimensions = (3,)

    def open(self) -> None:
        """Also find the factor, and say how the result's voxels differ from cubes."""
        check_sampling(self.sampling)
        given = None if self.factor is None else whole_factor(self.factor)
        super().open()
        self.depth = self._factor_from_pixel_size() if given is None else given
        size = self.input.pixel_size_angstrom
        if size is None:
            note(f"{self.source} does not tell its pixel size; the result will not either")
        elif not isinstance(size, tuple):
            note(
                f"the header tells one pixel size; slices are taken as {self.depth} times as thick"
            )
        elif len(size) == 3 and abs(size[0] / self.depth / size[2] - 1) > 0.05:
            result = job.unit(finer(size, depth=self.depth))
            note(f"with factor {self.depth} the voxels will be no cubes{result}")

    def options(self) -> dict[str, Any]:
        """The factor, and what a slice is."""
        return {"factor": self.depth, "sampling": self.sampling}

    def _factor_from_pixel_size(self) -> int:
        """Thickness of a slice in pixels, from the header."""
        size = self.input.pixel_size_angstrom
        if not isinstance(size, tuple) or len(size) != 3:
            raise InputError(f"{self.source} does not tell how thick a slice is; give --factor")
        ratio = size[0] / size[2]
        if round(ratio) < 2 or abs(ratio - round(ratio)) > 0.02 * ratio:
            raise InputError(
                f"a slice of {self.source} is {ratio:.4g} pixels thick, no whole number from 2; "
                f"resample it, or give --factor"
            )
        return whole_factor(round(ratio))


def check_sampling(sampling: str) -> None:
    """Refuse what is neither way of sampling."""
    if sampling not in ("average", "decimate"):
        raise InputError(f"--sampling is average or decimate, not {sampling!r}")


def whole_factor(value: float) -> int:
    """Return a factor that upsampling takes; anything else is an `InputError`."""
    if not 2 <= value <= 64 or value != int(value):
        raise InputError(f"--factor must be a whole number from 2 to 64, got {value:g}")
    return int(value)
