"""What the commands of ``emlab generalist`` do with a file, once their options are read."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from emlab import weights
from emlab.commands.restoring import (
    PATCH,
    Input,
    bar,
    check_output,
    note,
    pad_to_patch,
    read_input,
    unit,
    write_output,
)
from emlab.errors import InputError
from emlab.io.tags import PixelSize, simplify
from emlab.io.volumes import create_volume
from emlab.methods import generalist
from emlab.methods.estimate import TimedPrior
from emlab.methods.generalist import (
    Config,
    OneStepConfig,
    deblur_blind,
    load,
    load_config,
)
from emlab.methods.generalist_volumes import megabytes, restore_volume, survey
from emlab.priors import Prior
from emlab.runtime import choose_device, choose_threads, make_generator
from emlab.solvers import ONE_ESTIMATE
from emlab.solvers.tiling import TiledPrior
from emlab.tasks import check_crew, hire


def whole_factor(value: float) -> int:
    """Return a factor that upsampling takes; anything else is an `InputError`."""
    if not isfinite(value) or value != int(value) or not 2 <= value <= 64:
        raise InputError(f"--factor must be a whole number from 2 to 64, got {value:g}")
    return int(value)


@dataclass
class Job:
    """One call of a command: what the user asked for, then what was read."""

    source: Path
    out: Path
    spread: Path | None
    noise: float | None
    prior_name: str | None
    config_name: str
    tile: int | None
    samples: int | None
    seed: int
    device: str
    memory: float = 2048.0
    resume: bool = False
    workers: int = 1
    scheduler: str | None = None

    def open(self, task: str, dimensions: tuple[int, ...]) -> None:
        """Refuse what cannot work, then load the settings, the prior and the input."""
        self.task = task
        check_crew(self.workers, self.scheduler)
        self.config: Config = load_config(self.config_name)
        if self.noise is not None and not (self.noise >= 0 and isfinite(self.noise)):
            raise InputError(f"--noise must be 0 or more, got {self.noise}")
        if self.samples is not None or self.spread is not None:
            self._draw_samples()
        if self.prior_name is not None:
            self.config = replace(self.config, prior=self.prior_name)
        if self.tile is not None:
            overlap = min(self.config.overlap, self.tile // 4)
            self.config = replace(self.config, tile=self.tile, overlap=overlap)
        self.input: Input = read_input(self.source, dimensions, task.partition("_")[0])
        for path in (self.out, self.spread):
            if path is not None:
                check_output(path, self.source, volume=len(self.input.shape) == 3)
        if self.spread is not None and self.spread.resolve() == self.out.resolve():
            raise InputError(f"{self.spread} would hold both results; give --spread another name")
        choose_threads()
        self.place: torch.device = choose_device(self.device)
        self.generator: torch.Generator = make_generator(self.seed)
        self.prior: Prior = load(self.config, self.place)

    def _draw_samples(self) -> None:
        """Take a sampler where the config gives one estimate."""
        if isinstance(self.config.solvers[self.task], ONE_ESTIMATE):
            sampling = load_config("samples")
            solvers = {**self.config.solvers, self.task: sampling.solvers[self.task]}
            self.config = replace(self.config, solvers=solvers, samples=sampling.samples)
        if self.samples is not None:
            self.config = replace(self.config, samples=self.samples)
        if self.spread is not None and self.config.samples < 2:
            raise InputError("--spread is over samples; give --samples 2 or more")

    def factor_from_pixel_size(self) -> int:
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

    def check_isotropic(self, factor: int) -> None:
        """Say how the result's voxels differ from cubes."""
        size = self.input.pixel_size_angstrom
        if size is None:
            note(f"{self.source} does not tell its pixel size; the result will not either")
        elif not isinstance(size, tuple):
            note(f"the header tells one pixel size; slices are taken as {factor} times as thick")
        elif len(size) == 3 and abs(size[0] / factor / size[2] - 1) > 0.05:
            result = self.result_size(depth=factor)
            note(f"with factor {factor} the voxels will be no cubes{unit(result)}")

    def result_size(self, lateral: int = 1, depth: int = 1) -> PixelSize:
        """Pixel size of the result: as in the header, finer by the factors."""
        size = self.input.pixel_size_angstrom
        if not isinstance(size, tuple):
            return None if size is None else size / lateral
        *first, y, x = size
        return simplify([*(z / depth for z in first), y / lateral, x / lateral])

    def exceeds_memory(self, factor: int = 1) -> bool:
        """Whether to go block by block."""
        if not (self.memory > 0 and isfinite(self.memory)):
            raise InputError(f"--memory must be positive, got {self.memory:g}")
        needed = megabytes(prod(self.input.shape) * factor, self.config.samples)
        shared = self.workers > 1 or self.scheduler is not None
        if self.input.volume is not None and (needed > self.memory or shared):
            return True
        if shared:
            raise InputError("--workers and --scheduler are for volumes; leave them out for images")
        if self.resume:
            raise InputError("--resume is for volumes that need more than --memory; leave it out")
        return False

    def run(self, lateral: int = 1, depth: int = 1, **options: Any) -> None:
        """Restore what fits into memory, and write it; the factors are those of the result."""
        padded, corner = self._padded()
        with bar(self.task) as progress:
            prior = self.prior
            if isinstance(self.config.solvers[self.task], OneStepConfig):
                prior = TimedPrior(prior, progress, self._tiles(padded.shape))
            result = getattr(generalist, self.task.partition("_")[0])(
                padded,
                config=self.config,
                generator=self.generator,
                noise_sigma=self.noise,
                samples=self.config.samples,
                prior=prior,
                device=self.place,
                progress=progress,
                **options,
            )
        self._write(result, corner, lateral, depth)

    def run_blind(self) -> None:
        """Restore an image and find the kernel, and write both."""
        found = self.out.with_name(f"{self.out.stem}.kernel.tif")
        check_output(found, self.source, volume=False)
        padded, corner = self._padded()
        result, kernel = deblur_blind(
            padded,
            self.config,
            self.generator,
            noise_sigma=self.noise,
            prior=self.prior,
            device=self.place,
        )
        self._write(result, corner)
        size = self.result_size()
        typer.echo(f"{'kernel':<16}{write_output(found, kernel, size)}")

    def run_blocks(self, factor: int = 1, axial: str = "average") -> None:
        """Restore a volume block by block; what is done stays if the run is interrupted."""
        volume = self.input.volume
        if volume is None:
            raise InputError(f"{self.source} cannot be read block by block; allow more --memory")
        size = self.result_size(depth=factor)
        depth, height, width = self.input.shape
        shape = depth * factor, height, width
        shared = survey(
            volume,
            noise_sigma=self.noise,
            coloured=self.task == "denoise_coloured",
            memory_mb=self.memory / 4,
        )
        with ExitStack() as stack:
            targets = []
            for path in (self.out, self.spread):
                if path is None:
                    continue
                target = create_volume(path, shape, "float32", size, resume=True)
                if target.resumed and not self.resume:
                    raise InputError(
                        f"{target.partial} is left of an interrupted run; add --resume to go on "
                        f"with it, or delete it"
                    )
                targets.append(stack.enter_context(target))
            crew = stack.enter_context(hire(self.workers, self.scheduler))
            with bar("blocks") as progress:
                done = restore_volume(
                    volume,
                    targets[0],
                    self.config,
                    shared,
                    factor=factor,
                    axial=axial,
                    samples=self.config.samples,
                    spread=targets[1] if len(targets) > 1 else None,
                    seed=self.seed,
                    memory_mb=self.memory / (1 if self.scheduler else self.workers),
                    prior=self.prior if crew is None else None,
                    device=self.place if crew is None else self.device,
                    settings={"weights": weights.card(self.config.prior).sha256},
                    progress=progress,
                    crew=crew,
                )
        rows = {
            "input": str(self.input),
            "prior": f"{self.config.prior}, {self._drawn()}",
            "noise sigma": f"{shared.noise_sigma:.5g} ({self._noise_origin()})",
            "blocks": f"{done.blocks}, {done.computed} of them now",
            "seconds": f"{done.seconds:.1f}",
            "written": f"{self.out}{unit(size)}",
        }
        if self.spread is not None:
            rows["spread"] = str(self.spread)
        _table(rows)

    def _estimates_noise(self) -> bool:
        return self.noise is None and self.task != "upsample"

    def _noise_origin(self) -> str:
        if self.noise is not None:
            return "given"
        return "estimated" if self._estimates_noise() else "assumed"

    def _drawn(self) -> str:
        """How the result came about, in words."""
        solver = self.config.solvers[self.task]
        if isinstance(solver, ONE_ESTIMATE):
            return "one estimate"
        return f"mean of {count(self.config.samples, 'sample')}"

    def _tiles(self, shape: tuple[int, ...]) -> int:
        """Tiles of all planes."""
        tiled = TiledPrior(self.prior, self.config.tile, self.config.overlap)
        return prod(shape[:-2]) * tiled.tiles(*shape[-2:])

    def _padded(self) -> tuple[np.ndarray, tuple[int, int]]:
        """The pixels, mirrored up to a patch; noise is not estimated from mirrored ones."""
        pixels = self.input.load()
        if self._estimates_noise() and min(pixels.shape[-2:]) < PATCH:
            raise InputError(
                f"{self.source} is too small to estimate its noise, less than {PATCH} pixels a "
                f"side; give --noise"
            )
        return pad_to_patch(pixels)

    def _write(
        self,
        result: generalist.Found,
        corner: tuple[int, int],
        lateral: int = 1,
        depth: int = 1,
    ) -> None:
        height, width = (side * lateral for side in self.input.shape[-2:])
        top, left = (start * lateral for start in corner)
        inside = (..., slice(top, top + height), slice(left, left + width))
        size = self.result_size(lateral, depth)
        share = result.cost.network_seconds / max(result.cost.seconds, 1e-9)
        rows = {
            "input": str(self.input),
            "task": self.task.replace("_", ", "),
            "prior": f"{self.config.prior}, {self._drawn()}, "
            f"{count(result.cost.evaluations, 'evaluation')} of the whole image",
            "noise sigma": f"{result.noise_sigma:.5g} ({self._noise_origin()})",
            "seconds": f"{result.cost.seconds:.1f}, {share:.0%} of it in the network",
            "written": write_output(self.out, result.image[inside], size),
        }
        if self.spread is not None and result.spread is not None:
            rows["spread"] = write_output(self.spread, result.spread[inside], size)
        for sentence in result.notes:
            note(sentence)
        _table(rows)


def count(number: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _table(rows: dict[str, str]) -> None:
    for key, text in rows.items():
        typer.echo(f"{key:<16}{text}")
