"""``emlab mtd``: recover an image from a field of rotated copies; simulate such fields."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tomli_w
import torch
from torch import Tensor
from typer import Option

from emlab import weights
from emlab.app.commands import job
from emlab.app.commands.job import Job, Seeded, note
from emlab.app.commands.options import Seed, argument, command, group, option
from emlab.data.digits import load_digits
from emlab.errors import InputError
from emlab.io import WRITABLE, read_image, write_image
from emlab.io.tags import PixelSize
from emlab.methods.mtd import (
    Config,
    check_density,
    draw_starts,
    estimate_noise_level,
    load_config,
    recover as run,
)
from emlab.physics.mtd import simulate_measurement
from emlab.priors.base import Prior
from emlab.priors.gaussian import GaussianPrior, gaussian_prior
from emlab.priors.networks import MLPScore, load_prior
from emlab.runtime import Stopwatch, atomic_path, choose_device, make_generator
from emlab.settings import read_settings

app = group(
    "Multi-target detection: one image, many rotated copies of it at unknown places in one "
    "noisy field; recover the image without finding the copies.\n\n"
    "**Try it:** `emlab mtd simulate field.mrc --digit 3 --snr 1`, then "
    "`emlab mtd recover field.mrc digit.tif --size 28`"
)
IMAGE_SIZES = {"mnist": 28, "gaussian": 5}  # by the data of a recipe
DEFAULT_CONFIGS = {
    "none": "no_prior",
    "gaussian": "ours_gaussian",
    "mtd_gaussian_mlp": "paper_gaussian",
}
DIGIT_ENERGY = (0.02, 0.25)  # mean square of one MNIST image in [0, 1]
DENSITIES = (0.02, 0.5)  # copies cover at least and at most this fraction of a plausible field
Rotations = Annotated[int, Option(min=1, help="K: copies are turned by multiples of 360/K.")]


@command(app, "recover")
class Recover(Seeded):
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
    crop: bool = option(False, "Cut the sides of the field to multiples of the size.")
    subtract_background: bool = option(False, "Subtract the median of the field first.")

    def open(self) -> None:
        """Refuse what cannot work, then read the field, the settings and the prior."""
        if self.snr is not None and self.sigma is not None:
            raise InputError("give --snr or --sigma, not both")
        job.check_positive(snr=self.snr, sigma=self.sigma, memory_mb=self.memory_mb)
        job.check_outputs(self.out, inputs=[self.field], endings=WRITABLE)
        self.name = self.prior or ("mtd_mnist_epsilon" if self.size == 28 else "none")
        self.settings = self._settings(settings_for(self.name, self.size, self.config))
        if self.place.type == "mps":  # no double precision, in which likelihoods are summed
            if self.device != "auto":
                raise InputError(
                    "mps has no double precision, which the likelihood needs; use cpu or cuda"
                )
            self.place = choose_device("cpu")
        source = read_image(self.field)
        self.spacing = job.in_plane(source.pixel_size_angstrom)
        self.pixels = self._whole_patches(source.pixels)
        self.on_cpu = find_prior(self.name, self.settings)
        self.given = self.sigma
        if self.snr is not None:
            self.given = sigma_from_snr(self.pixels, self.snr, self.density)
        self.level = estimate_noise_level(self.pixels) if self.given is None else self.given
        for sentence in concerns(self.pixels, self.level, self.name):
            note(sentence)

    def run(self) -> dict[str, str]:
        """Draw starts, iterate, and write the most likely image."""
        settings, generator = self.settings, make_generator(self.seed)
        with Stopwatch() as watch, job.bar("iterations") as progress:
            if self.on_cpu is None:
                drawn = random_starts(self.pixels, self.level, settings, generator, self.density)
            else:
                drawn = draw_starts(settings, generator, self.on_cpu)
            pixels, drawn = self.pixels.to(self.place), drawn.to(self.place)
            prior = find_prior(self.name, settings, self.place)
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
            sigma = result.noise_sigma
            empty = sigma * torch.randn(pixels.shape, generator=generator).to(self.place)
            blank = run(empty, settings, generator, prior, sigma, drawn, self.density)
        origin = "from --snr" if self.snr else "estimated" if self.sigma is None else "given"
        copies = result.occupancy * self.pixels.numel() / (2 * self.size - 1) ** 2
        return {
            "field": f"{self.pixels.shape[0]} x {self.pixels.shape[1]} pixels"
            f"{job.unit(self.spacing)}",
            "prior": f"{self.name}, {len(result.candidates)} of {len(drawn)} starts, "
            f"{len(result.trace) - 1} iterations",
            "sigma": f"{result.noise_sigma:.5g} ({origin})",
            "log-likelihood": f"{result.log_likelihood:.2f}, "
            f"{result.log_likelihood_gain:.1f} more than without copies",
            "on pure noise": f"{blank.log_likelihood_gain:.1f} more, from white noise of the same "
            "size; trust an image that gained clearly more",
            "occupancy": f"{result.occupancy:.3f} of the patches, about {copies:.0f} copies",
            "seconds": f"{watch.seconds:.1f}",
            "written": job.write_output(self.out, result.image.cpu().numpy(), self.spacing),
        }

    def _settings(self, config: Config) -> Config:
        """What the user asked for in place of a config's own values."""
        em = config.em
        if self.iterations is not None:
            em = replace(em, iterations=self.iterations)
        starts = self.starts or config.starts
        kept = self.kept or (starts if config.kept == config.starts else min(config.kept, starts))
        asked: dict[str, Any] = {"rotations": self.rotations, "memory_mb": self.memory_mb, "em": em}
        return replace(config, starts=starts, kept=kept, **asked)

    def _whole_patches(self, pixels: np.ndarray) -> torch.Tensor:
        """Return the field as a tensor ``(N, N')`` of whole patches; say what was done to it."""
        path, size = self.field, self.size
        rows, columns = pixels.shape[-2:]
        if pixels.size != rows * columns:
            raise InputError(
                f"{path} has shape {pixels.shape}; give one image, not a stack or volume"
            )
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
        source, self.origin = read_image(self.image), self.image.name
        self.hidden, self.spacing = source.pixels, source.pixel_size_angstrom
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


# --- a field of the user's own: its noise and grey levels, and settings that suit a prior


def sigma_from_snr(field: Tensor, snr: float, density: float) -> float:
    r"""Noise level of a field whose signal-to-noise ratio is known.

    With :math:`\mathrm{SNR} = \|F\|^2/(L^2\sigma^2)` and copies that cover a fraction
    :math:`\rho` of the field ``(N, N')``, its mean square is
    :math:`\sigma^2(1 + \rho\,\mathrm{SNR})`. A density wrong by 0.1 makes an error of 5 % in sigma
    at SNR 1, and less below.
    """
    check_density(density)
    return math.sqrt(field.square().mean().item() / (1 + density * snr))


def random_starts(
    field: Tensor,
    sigma: float,
    config: Config,
    generator: torch.Generator,
    density: float,
) -> Tensor:
    """White noise ``(config.starts, L, L)`` with the mean and energy that one copy should have.

    Both follow from those of the field, its noise and the density; the energy is at least that of
    an SNR of 0.05, because in faint fields the difference is uncertain.
    """
    check_density(density)
    energy = max((field.square().mean().item() - sigma**2) / density, 0.05 * sigma**2)
    largest = 0.9 * math.sqrt(energy)
    mean = min(max(field.mean().item() / density, -largest), largest)
    shape = (config.starts, config.size, config.size)
    return mean + math.sqrt(energy - mean**2) * torch.randn(shape, generator=generator)


def settings_for(prior_name: str, size: int, config_name: str | None = None) -> Config:
    """Settings for images of `size` pixels: a named config, or the one that suits the prior."""
    trained = IMAGE_SIZES.get(_trained_on(prior_name))
    if trained is not None and trained != size:
        raise InputError(
            f"the prior {prior_name} knows images of {trained} x {trained} pixels only; "
            f"use --size {trained}, or --prior none"
        )
    config = load_config(config_name or DEFAULT_CONFIGS.get(prior_name, "ours_mnist"))
    if size == config.size:
        return config
    centre = (size / 2, size / 2) if config.centre else None
    return replace(config, size=size, centre=centre, upright="")


def find_prior(name: str, config: Config, device: torch.device | str = "cpu") -> Prior | None:
    """The prior of a name: ``"none"``, ``"gaussian"`` (exact) or a name of `emlab weights list`."""
    if name == "none":
        return None
    if name == "gaussian":
        exact = gaussian_prior()
        return GaussianPrior(exact.mean.to(device), 1.0)
    if name not in weights.names():
        known = ", ".join(["none", "gaussian", *weights.names()])
        raise InputError(f"unknown prior {name!r}; choose one of {known}")
    prior = load_prior(name, device)
    if isinstance(prior, MLPScore) and config.start != "uniform":
        raise InputError(f"{name} knows no noise levels; use it with --config paper_gaussian")
    return prior


def concerns(field: Tensor, sigma: float, prior_name: str) -> list[str]:
    """What looks wrong with a field, one sentence each: background, noise level, grey levels."""
    found = []
    median, square = field.median().item(), field.square().mean().item()
    if abs(median) > 0.2 * sigma:
        found.append(
            f"the median of the field is {median:.4g}, but the method takes the background as 0; "
            "if that is a background, add --subtract-background"
        )
    if sigma > 1.1 * math.sqrt(square):
        found.append(f"sigma {sigma:.4g} exceeds the field's root mean square {square**0.5:.4g}")
    if _trained_on(prior_name) == "mnist":
        excess, uncertain = square - sigma**2, 0.05 * sigma**2
        low, high = (d * e for d, e in zip(DENSITIES, DIGIT_ENERGY, strict=True))
        if excess - uncertain > high or excess + uncertain < low:
            found.append(
                f"{prior_name} knows digits with grey levels 0 to 1, but the copies in this field "
                "seem much brighter or fainter; divide it by their brightest grey level first, "
                "or use --prior none"
            )
    return found


def _trained_on(prior_name: str) -> str:
    recipe = read_settings("recipes/mtd")["recipes"].get(prior_name, {})
    return "gaussian" if prior_name == "gaussian" else recipe.get("data", "")
