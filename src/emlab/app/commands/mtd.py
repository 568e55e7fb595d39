"""``emlab mtd``: recover an image from a field of rotated copies; simulate such fields."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tomli_w
import torch
from typer import Option

from emlab.app.commands.job import (
    Job,
    bar,
    check_outputs,
    check_positive,
    in_plane,
    note,
    unit,
    write_output,
)
from emlab.app.commands.options import Device, Seed, argument, command, group, option
from emlab.data.digits import load_digits
from emlab.errors import InputError
from emlab.io import WRITABLE, read_image, write_image
from emlab.io.tags import PixelSize
from emlab.methods import mtd_field
from emlab.methods.mtd import Config, draw_starts, estimate_noise_level, recover as run
from emlab.physics.mtd import simulate_measurement
from emlab.runtime import Stopwatch, atomic_path, choose_device, make_generator

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
    estimated. With --snr it is sigma^2 = mean(field^2) / (1 + density * snr). The density also says
    how many patches are empty when starts are compared.

    Without a prior the image is known up to a shift and a rotation by 360/K, and below an SNR of
    about 1 it fits the noise: use fewer --iterations there. A prior pulls everything towards what
    it was trained on; `emlab weights card NAME` says what that is.
    """

    field: Path = argument("Field to read: mrc, tif, png or npy; one image.")
    out: Path = argument("Image to write: mrc, tif, npy or png.")
    size: int = option(..., "L: side of the hidden image in pixels.", min=2)
    snr: float | None = option(None, "Mean square of the image over that of the noise.")
    sigma: float | None = option(None, "Standard deviation of the noise.", shown="estimated")
    density: float = option(0.1, "Fraction of the field that copies cover; a guess will do.")
    rotations: Rotations = 4
    prior: str | None = option(
        None,
        "none, gaussian or a name of `emlab weights list`.",
        shown="mtd_mnist_epsilon if the size is 28, else none",
    )
    config: str | None = option(
        None, "{paper,ours}_{gaussian,mnist} or no_prior.", shown="suits the prior"
    )
    starts: int | None = option(None, "Random starts to draw.", min=1)
    kept: int | None = option(None, "Starts to iterate, the most likely ones.", min=1)
    iterations: int | None = option(None, "At most so many.", min=1)
    memory_mb: float = option(16.0, "Working memory of one iteration.")
    seed: Seed = 0
    device: Device = "auto"
    crop: bool = option(False, "Cut the sides of the field to multiples of the size.")
    subtract_background: bool = option(False, "Subtract the median of the field first.")

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
            pixels, drawn = self.pixels.to(self.place), drawn.to(self.place)
            prior = mtd_field.find_prior(self.name, settings, self.place)
            result = run(
                pixels,
                settings,
                generator,
                prior,
                sigma=self.given,
                starts=drawn,
                density=self.density,
                progress=lambda done, likely: progress(
                    done + 1, settings.em.iterations, log_likelihood=f"{likely.max().item():.1f}"
                ),
            )
            noise = mtd_field.noise_gain(
                pixels.shape, result.noise_sigma, settings, generator, prior, drawn, self.density
            )
        origin = "from --snr" if self.snr else "estimated" if self.sigma is None else "given"
        copies = result.occupancy * self.pixels.numel() / (2 * self.size - 1) ** 2
        return {
            "field": f"{self.pixels.shape[0]} x {self.pixels.shape[1]} pixels{unit(self.spacing)}",
            "prior": f"{self.name}, {len(result.candidates)} of {len(drawn)} starts, "
            f"{len(result.trace) - 1} iterations",
            "sigma": f"{result.noise_sigma:.5g} ({origin})",
            "log-likelihood": f"{result.log_likelihood:.2f}, "
            f"{result.log_likelihood_gain:.1f} more than without copies",
            "on pure noise": f"{noise:.1f} more, from white noise of the same size; trust an image "
            "that gained clearly more",
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


@command(app, "simulate")
@dataclass(kw_only=True)
class Simulate(Job):
    """Make a field to play with; what was hidden where is written beside it.

    **Example:** `emlab mtd simulate field.mrc --digit 3 --snr 0.5` also writes
    `field.simulated.toml` (sigma, positions, rotations) and `field.truth.npy` (the image).
    """

    out: Path = argument("Field to write: mrc, tif or npy.")
    image: Path | None = option(None, "Image to hide, square.")
    digit: int | None = option(None, "Hide this MNIST digit.", min=0, max=9)
    snr: float = option(1.0, "Mean square of the image over the noise's.")
    density: float = option(0.1, "Fraction of the field that copies cover.")
    rotations: Rotations = 4
    field_size: int | None = option(None, "Side of the field.", shown="11 images")
    separation: int | None = option(
        None, "Least distance of two corners.", min=0, shown="2 images, no patch sees two"
    )
    seed: Seed = 0

    def open(self) -> None:
        """Read the image to hide."""
        if (self.image is None) == (self.digit is None):
            raise InputError("say what to hide: either --image FILE or --digit 0..9")
        self.spacing: PixelSize = None
        if self.image is None:
            digits = load_digits("test")
            self.hidden = digits.images[int((digits.labels == self.digit).argmax())]
            self.origin = f"digit {self.digit} of {digits.source}"
            return
        source = read_image(self.image)
        self.hidden, self.spacing = source.pixels, source.pixel_size_angstrom
        self.origin = self.image.name
        if self.hidden.ndim != 2 or self.hidden.shape[0] != self.hidden.shape[1]:
            raise InputError(f"{self.image} has shape {self.hidden.shape}; give one square image")
        if not self.hidden.any():
            raise InputError(f"{self.image} is zero everywhere; there is nothing to hide")

    def run(self) -> dict[str, str]:
        """Scatter copies, and write the field, the image and the places."""
        measurement = simulate_measurement(
            torch.from_numpy(self.hidden),
            self.snr,
            make_generator(self.seed),
            field_size=self.field_size,
            density=self.density,
            rotations=self.rotations,
            separation=self.separation,
        )
        facts = {
            "simulated": True,
            "image": self.origin,
            "snr": self.snr,
            "sigma": measurement.sigma,
            "density": self.density,
            "seed": self.seed,
            "copies": len(measurement.operator.turns),
            "rotations": self.rotations,
            "positions": measurement.operator.positions.tolist(),
            "turns": measurement.operator.turns.tolist(),
        }
        write_image(self.out, measurement.field.numpy(), self.spacing)
        write_image(self.out.with_suffix(".truth.npy"), self.hidden)
        with atomic_path(self.out.with_suffix(".simulated.toml")) as temporary:
            temporary.write_text(tomli_w.dumps(facts), encoding="utf-8")
        side = measurement.field.shape[0]
        return {
            "simulated": f"{facts['copies']} copies of {self.origin} in {side} x {side} pixels, "
            f"sigma {measurement.sigma:.5g}, written to {self.out}",
            "recover it": f"emlab mtd recover {self.out} OUT.tif --size {len(self.hidden)} "
            f"--snr {self.snr:g}",
        }
