"""``emlab mtd``: recover an image from a field of rotated copies; simulate such fields."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tomli_w
import torch
import typer
from typer import Argument, Option

from emlab.commands.job import (
    Job,
    bar,
    check_outputs,
    check_positive,
    in_plane,
    note,
    unit,
    write_output,
)
from emlab.commands.options import Device, Profile, Seed, command, group
from emlab.data.digits import load_digits
from emlab.errors import InputError
from emlab.io import WRITABLE, read_image, write_image
from emlab.io.tags import PixelSize
from emlab.methods import mtd_field
from emlab.methods.mtd import Config, draw_starts, estimate_noise_level
from emlab.methods.mtd import recover as run
from emlab.methods.mtd_study import StudySettings, run_study, standard_methods
from emlab.physics.mtd import simulate_measurement
from emlab.runtime import Stopwatch, atomic_path, choose_device, choose_threads, make_generator

app = group(
    "Multi-target detection: one image, many rotated copies of it at unknown places in one "
    "noisy field; recover the image without finding the copies.\n\n"
    "**Try it:** `emlab mtd simulate field.mrc --digit 3 --snr 1`, then "
    "`emlab mtd recover field.mrc digit.tif --size 28`"
)
Rotations = Annotated[int, Option(min=1, help="K: copies are turned by multiples of 360/K.")]


@command(app, "recover")
@dataclass(kw_only=True)
class Recover(Job):
    """Recover the image whose rotated copies are scattered over your own field.

    **Digits, with the shipped prior:** `emlab mtd recover field.mrc digit.mrc --size 28 --snr 0.5`

    **Anything else:** `emlab mtd recover field.tif image.tif --size 20 --prior none --starts 16`

    The field must have a background of zero and white noise; copies should be at least a size
    apart. Its pixel size is passed on to the image. Without --sigma or --snr the noise is
    estimated. With --snr it is sigma^2 = mean(field^2) / (1 + density * snr).

    Without a prior the image is known up to a shift and a rotation by 360/K, and below an SNR of
    about 1 it fits the noise: use fewer --iterations there. A prior pulls everything towards what
    it was trained on; `emlab weights card NAME` says what that is.
    """

    field: Annotated[Path, Argument(help="Field to read: mrc, tif, png or npy; one image.")]
    out: Annotated[Path, Argument(help="Image to write: mrc, tif, npy or png.")]
    size: Annotated[int, Option(min=2, help="L: side of the hidden image in pixels.")]
    snr: Annotated[
        float | None, Option(help="Mean square of the image over that of the noise.")
    ] = None
    sigma: Annotated[
        float | None, Option(help="Standard deviation of the noise.", show_default="estimated")
    ] = None
    density: Annotated[
        float, Option(help="Fraction of the field that copies cover; a guess will do.")
    ] = 0.1
    rotations: Rotations = 4
    prior: Annotated[
        str | None,
        Option(
            help="none, gaussian or a name of `emlab weights list`.",
            show_default="mtd_mnist_epsilon if the size is 28, else none",
        ),
    ] = None
    config: Annotated[
        str | None,
        Option(help="{paper,ours}_{gaussian,mnist} or no_prior.", show_default="suits the prior"),
    ] = None
    starts: Annotated[int | None, Option(min=1, help="Random starts to draw.")] = None
    kept: Annotated[int | None, Option(min=1, help="Starts to iterate, the most likely ones.")] = (
        None
    )
    iterations: Annotated[int | None, Option(min=1, help="At most so many.")] = None
    memory_mb: Annotated[float, Option(help="Working memory of one iteration.")] = 16.0
    seed: Seed = 0
    device: Device = "auto"
    crop: Annotated[
        bool, Option("--crop", help="Cut the sides of the field to multiples of the size.")
    ] = False
    subtract_background: Annotated[
        bool, Option("--subtract-background", help="Subtract the median of the field first.")
    ] = False

    def open(self) -> None:
        """Refuse what cannot work, then read the field, the settings and the prior."""
        if self.snr is not None and self.sigma is not None:
            raise InputError("give --snr or --sigma, not both")
        check_positive(snr=self.snr, sigma=self.sigma, memory_mb=self.memory_mb)
        check_outputs(self.out, inputs=[self.field], endings=WRITABLE)
        self.name = self.prior or ("mtd_mnist_epsilon" if self.size == 28 else "none")
        self.settings = self._settings(mtd_field.settings_for(self.name, self.size, self.config))
        if self.place.type == "mps":  # no double precision, in which likelihoods are summed
            if self.device != "auto":
                raise InputError(
                    "mps has no double precision, which the likelihood needs; use cpu or cuda"
                )
            self.place = choose_device("cpu")
        source = read_image(self.field)
        self.spacing = in_plane(source.pixel_size_angstrom)
        self.pixels = self._whole_patches(source.pixels)
        self.on_cpu = mtd_field.find_prior(self.name, self.settings)
        self.given = self.sigma
        if self.snr is not None:
            self.given = mtd_field.sigma_from_snr(self.pixels, self.snr, self.density)
        self.level = estimate_noise_level(self.pixels) if self.given is None else self.given
        for sentence in mtd_field.concerns(self.pixels, self.level, self.name):
            note(sentence)

    def run(self) -> dict[str, str]:
        """Draw starts, iterate, and write the most likely image."""
        settings, generator = self.settings, make_generator(self.seed)
        with Stopwatch() as watch, bar("iterations") as progress:
            if self.on_cpu is None:
                drawn = mtd_field.random_starts(
                    self.pixels, self.level, settings, generator, self.density
                )
            else:
                drawn = draw_starts(settings, generator, self.on_cpu)
            result = run(
                self.pixels.to(self.place),
                settings,
                generator,
                mtd_field.find_prior(self.name, settings, self.place),
                sigma=self.given,
                starts=drawn,
                progress=lambda done, likely: progress(
                    done + 1, settings.em.iterations, log_likelihood=f"{likely.max().item():.1f}"
                ),
            )
        origin = "from --snr" if self.snr else "estimated" if self.sigma is None else "given"
        copies = result.occupancy * self.pixels.numel() / (2 * self.size - 1) ** 2
        return {
            "field": f"{self.pixels.shape[0]} x {self.pixels.shape[1]} pixels{unit(self.spacing)}",
            "prior": f"{self.name}, {len(result.candidates)} of {len(drawn)} starts, "
            f"{len(result.trace) - 1} iterations",
            "sigma": f"{result.sigma:.5g} ({origin})",
            "log-likelihood": f"{result.log_likelihood:.2f}, "
            f"{result.log_likelihood_gain:.1f} more than without copies",
            "occupancy": f"{result.occupancy:.3f} of the patches, about {copies:.0f} copies",
            "seconds": f"{watch.seconds:.1f}",
            "written": write_output(self.out, result.image.cpu().numpy(), self.spacing),
        }

    def _settings(self, config: Config) -> Config:
        """What the user asked for in place of a config's own values."""
        em = config.em
        if self.iterations is not None:
            em = replace(em, iterations=self.iterations)
        starts = self.starts or config.starts
        kept = self.kept or (starts if config.kept == config.starts else min(config.kept, starts))
        return replace(
            config,
            rotations=self.rotations,
            starts=starts,
            kept=kept,
            memory_mb=self.memory_mb,
            em=em,
        )

    def _whole_patches(self, pixels: np.ndarray) -> torch.Tensor:
        """Return the field as a tensor ``(N, N')`` of whole patches; say what was done to it."""
        path, size = self.field, self.size
        if pixels.size != pixels.shape[-2] * pixels.shape[-1]:
            raise InputError(
                f"{path} has shape {pixels.shape}; give one image, not a stack or volume"
            )
        rows, columns = pixels.shape[-2:]
        if min(rows, columns) < size:
            raise InputError(
                f"{path} has {rows} x {columns} pixels, fewer than one patch of {size}"
            )
        whole = rows - rows % size, columns - columns % size
        if whole != (rows, columns) and not self.crop:
            raise InputError(
                f"the sides of {path}, {rows} x {columns} pixels, are no multiples of {size}; "
                f"add --crop to use its first {whole[0]} x {whole[1]} pixels"
            )
        field = torch.from_numpy(pixels.reshape(rows, columns)[: whole[0], : whole[1]].copy())
        if whole != (rows, columns):
            note(f"cropped from {rows} x {columns} pixels")
        if self.subtract_background:
            background = field.median()
            note(f"subtracted the median {background.item():.5g}")
            field -= background
        return field


@app.command()
def simulate(
    out: Annotated[Path, Argument(help="Field to write: mrc, tif or npy.")],
    image: Annotated[Path | None, Option(help="Image to hide, square.")] = None,
    digit: Annotated[int | None, Option(min=0, max=9, help="Hide this MNIST digit.")] = None,
    snr: Annotated[float, Option(help="Mean square of the image over the noise's.")] = 1.0,
    density: Annotated[float, Option(help="Fraction of the field that copies cover.")] = 0.1,
    rotations: Rotations = 4,
    field_size: Annotated[
        int | None, Option(help="Side of the field.", show_default="11 images")
    ] = None,
    separation: Annotated[
        int | None,
        Option(
            min=0, help="Least distance of two corners.", show_default="2 images, no patch sees two"
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Make a field to play with; what was hidden where is written beside it.

    **Example:** `emlab mtd simulate field.mrc --digit 3 --snr 0.5` also writes
    `field.simulated.toml` (sigma, positions, rotations) and `field.truth.npy` (the image).
    """
    if (image is None) == (digit is None):
        raise InputError("say what to hide: either --image FILE or --digit 0..9")
    truth, spacing, source = _image_to_hide(image, digit)
    measurement = simulate_measurement(
        truth,
        snr,
        make_generator(seed),
        field_size=field_size,
        density=density,
        rotations=rotations,
        separation=separation,
    )
    facts = {
        "simulated": True,
        "image": source,
        "snr": snr,
        "sigma": measurement.sigma,
        "density": density,
        "seed": seed,
        "copies": len(measurement.operator.turns),
        "rotations": rotations,
        "positions": measurement.operator.positions.tolist(),
        "turns": measurement.operator.turns.tolist(),
    }
    write_image(out, measurement.field.numpy(), spacing)
    write_image(out.with_suffix(".truth.npy"), np.asarray(truth))
    with atomic_path(out.with_suffix(".simulated.toml")) as temporary:
        temporary.write_text(tomli_w.dumps(facts), encoding="utf-8")
    side = measurement.field.shape[0]
    typer.echo(
        f"simulated: {facts['copies']} copies of {source} in {side} x {side} pixels, "
        f"sigma {measurement.sigma:.5g}, written to {out}"
    )
    typer.echo(f"recover it: emlab mtd recover {out} OUT.tif --size {len(truth)} --snr {snr:g}")


@app.command()
def evaluate(
    kind: Annotated[str, Argument(help="gaussian or mnist.")],
    profile: Profile = "smoke",
    seed: Seed = 0,
) -> None:
    """Measure every method of the chapter on simulated fields: errors with 95 % intervals.

    **Example:** `emlab mtd evaluate gaussian --profile cpu`
    """
    if kind not in mtd_field.IMAGE_SIZES:
        raise InputError(f"unknown kind of image {kind!r}; choose gaussian or mnist")
    settings = StudySettings.of(kind, profile)
    choose_threads()
    methods = standard_methods(kind, seed)
    study = run_study(
        kind, settings, methods, seed=seed, progress=lambda line: typer.echo(line, err=True)
    )
    typer.echo(study.table())


def _image_to_hide(image: Path | None, digit: int | None) -> tuple[torch.Tensor, PixelSize, str]:
    """Return the image, its pixel size and where it comes from."""
    if image is not None:
        source = read_image(image)
        if source.pixels.ndim != 2 or source.pixels.shape[0] != source.pixels.shape[1]:
            raise InputError(f"{image} has shape {source.pixels.shape}; give one square image")
        if not source.pixels.any():
            raise InputError(f"{image} is zero everywhere; there is nothing to hide")
        return torch.from_numpy(source.pixels), source.pixel_size_angstrom, image.name
    digits = load_digits("test")
    first = int((digits.labels == digit).argmax())
    return torch.from_numpy(digits.images[first]), None, f"digit {digit} of {digits.source}"
