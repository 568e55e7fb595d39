"""``emlab mtd``: recover an image from a field of rotated copies; simulate such fields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emlab.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from emlab.io.tags import PixelSize
    from emlab.methods.mtd import Config

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    help="Multi-target detection: one image, many rotated copies of it at unknown places in one "
    "noisy field; recover the image without finding the copies.\n\n"
    "**Try it:** `emlab mtd simulate field.mrc --digit 3 --snr 1`, then "
    "`emlab mtd recover field.mrc digit.tif --size 28`",
)
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")]
Rotations = Annotated[int, typer.Option(min=1, help="K: copies are turned by multiples of 360/K.")]


@app.command()
def recover(
    field: Annotated[Path, typer.Argument(help="Field to read: mrc, tif, png or npy; one image.")],
    out: Annotated[Path, typer.Argument(help="Image to write: mrc, tif, npy or png.")],
    size: Annotated[int, typer.Option(min=2, help="L: side of the hidden image in pixels.")],
    snr: Annotated[
        float | None, typer.Option(help="Mean square of the image over that of the noise.")
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(help="Standard deviation of the noise.", show_default="estimated"),
    ] = None,
    density: Annotated[
        float, typer.Option(help="Fraction of the field that copies cover; a guess will do.")
    ] = 0.1,
    rotations: Rotations = 4,
    prior: Annotated[
        str | None,
        typer.Option(
            help="none, gaussian or a name of `emlab weights list`.",
            show_default="mtd_mnist_epsilon if the size is 28, else none",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="{paper,ours}_{gaussian,mnist} or no_prior.", show_default="suits the prior"
        ),
    ] = None,
    starts: Annotated[int | None, typer.Option(min=1, help="Random starts to draw.")] = None,
    kept: Annotated[
        int | None, typer.Option(min=1, help="Starts to iterate, the most likely ones.")
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    memory_mb: Annotated[float, typer.Option(help="Working memory of one iteration.")] = 16.0,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    crop: Annotated[
        bool, typer.Option("--crop", help="Cut the sides of the field to multiples of the size.")
    ] = False,
    subtract_background: Annotated[
        bool, typer.Option("--subtract-background", help="Subtract the median of the field first.")
    ] = False,
) -> None:
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
    from emlab.io import read_image, write_image
    from emlab.methods import mtd_field
    from emlab.methods.mtd import draw_starts, estimate_noise_level
    from emlab.methods.mtd import recover as run
    from emlab.runtime import Stopwatch, choose_threads, make_generator

    _check_before_work(field, out, snr, sigma, memory_mb)
    name = prior or ("mtd_mnist_epsilon" if size == 28 else "none")
    settings = _override(
        mtd_field.settings_for(name, size, config),
        rotations=rotations,
        starts=starts,
        kept=kept,
        iterations=iterations,
        memory_mb=memory_mb,
    )
    place, generator = _device(device), make_generator(seed)
    choose_threads()
    source = read_image(field)
    pixels = _prepare(source.pixels, size, field, crop, subtract_background)
    on_cpu = mtd_field.find_prior(name, settings)
    if snr is not None:
        sigma = mtd_field.sigma_from_snr(pixels, snr, density)
    level = estimate_noise_level(pixels) if sigma is None else sigma
    for sentence in mtd_field.concerns(pixels, level, name):
        typer.echo(f"note: {sentence}", err=True)
    with Stopwatch() as watch, _progress(settings.em.iterations) as progress:
        if on_cpu is None:
            drawn = mtd_field.random_starts(pixels, level, settings, generator, density)
        else:
            drawn = draw_starts(settings, generator, on_cpu)
        result = run(
            pixels.to(place),
            settings,
            generator,
            mtd_field.find_prior(name, settings, place),
            sigma=sigma,
            starts=drawn,
            progress=progress,
        )
    recovered = result.image.cpu().numpy()
    spacing = _in_plane(source.pixel_size_angstrom)
    stretched = out.suffix.lower() == ".png"
    write_image(out, _stretch(recovered) if stretched else recovered, spacing)
    origin = "estimated" if sigma is None else "given" if snr is None else "from --snr"
    copies = result.occupancy * pixels.numel() / (2 * size - 1) ** 2
    unit = "" if spacing is None else f", pixel size {spacing} angstrom"
    note = " stretched to 0..65535 for PNG" if stretched else ""
    rows = {
        "field": f"{pixels.shape[0]} x {pixels.shape[1]} pixels{unit}",
        "prior": f"{name}, {len(result.candidates)} of {len(drawn)} starts, "
        f"{len(result.trace) - 1} iterations",
        "sigma": f"{result.noise_sigma:.5g} ({origin})",
        "log-likelihood": f"{result.log_likelihood:.2f}, "
        f"{result.log_likelihood_gain:.1f} more than without copies",
        "occupancy": f"{result.occupancy:.3f} of the patches, about {copies:.0f} copies",
        "seconds": f"{watch.seconds:.1f}",
        "written": f"{out}, grey levels {recovered.min():.4g} to {recovered.max():.4g}{note}",
    }
    for key, text in rows.items():
        typer.echo(f"{key:<16}{text}")


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Field to write: mrc, tif or npy.")],
    image: Annotated[Path | None, typer.Option(help="Image to hide, square.")] = None,
    digit: Annotated[int | None, typer.Option(min=0, max=9, help="Hide this MNIST digit.")] = None,
    snr: Annotated[float, typer.Option(help="Mean square of the image over the noise's.")] = 1.0,
    density: Annotated[float, typer.Option(help="Fraction of the field that copies cover.")] = 0.1,
    rotations: Rotations = 4,
    field_size: Annotated[
        int | None, typer.Option(help="Side of the field.", show_default="11 images")
    ] = None,
    separation: Annotated[
        int | None,
        typer.Option(
            min=0, help="Least distance of two corners.", show_default="2 images, no patch sees two"
        ),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Make a field to play with; what was hidden where is written beside it.

    **Example:** `emlab mtd simulate field.mrc --digit 3 --snr 0.5` also writes
    `field.simulated.toml` (sigma, positions, rotations) and `field.truth.npy` (the image).
    """
    import numpy as np

    from emlab.io import write_image
    from emlab.physics.mtd import simulate_measurement
    from emlab.runtime import atomic_path, make_generator
    from emlab.weights.toml import dump_toml

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
        temporary.write_text(dump_toml(facts), encoding="utf-8")
    side = measurement.field.shape[0]
    typer.echo(
        f"simulated: {facts['copies']} copies of {source} in {side} x {side} pixels, "
        f"sigma {measurement.sigma:.5g}, written to {out}"
    )
    typer.echo(f"recover it: emlab mtd recover {out} OUT.tif --size {len(truth)} --snr {snr:g}")


@app.command()
def evaluate(
    kind: Annotated[str, typer.Argument(help="gaussian or mnist.")],
    profile: Annotated[str, typer.Option(help="smoke, cpu, gpu or paper.")] = "smoke",
    seed: Seed = 0,
) -> None:
    """Measure every method of the chapter on simulated fields: errors with 95 % intervals.

    **Example:** `emlab mtd evaluate gaussian --profile cpu`
    """
    from emlab.methods.mtd_field import IMAGE_SIZES
    from emlab.methods.mtd_study import StudySettings, run_study, standard_methods
    from emlab.runtime import choose_threads

    if kind not in IMAGE_SIZES:
        raise InputError(f"unknown kind of image {kind!r}; choose gaussian or mnist")
    settings = StudySettings.of(kind, profile)
    choose_threads()
    methods = standard_methods(kind, seed)
    study = run_study(
        kind, settings, methods, seed=seed, progress=lambda line: typer.echo(line, err=True)
    )
    typer.echo(study.table())


def _check_before_work(
    field: Path, out: Path, snr: float | None, sigma: float | None, memory_mb: float
) -> None:
    """Refuse now what could not be written or computed after minutes of work."""
    from math import isfinite

    from emlab.io import WRITABLE

    if snr is not None and sigma is not None:
        raise InputError("give --snr or --sigma, not both")
    for option, value in (("--snr", snr), ("--sigma", sigma), ("--memory-mb", memory_mb)):
        if value is not None and not (value > 0 and isfinite(value)):
            raise InputError(f"{option} must be positive, got {value}")
    if out.suffix.lower() not in WRITABLE:
        raise InputError(f"{out}: cannot write this type of image; use {', '.join(WRITABLE)}")
    if out.is_dir() or (out.parent.exists() and not out.parent.is_dir()):
        raise InputError(f"cannot write {out}: give a file name in a folder")
    if out.resolve() == field.resolve():
        raise InputError(f"{out} is the field itself; give the image another name")


def _override(
    config: Config,
    *,
    rotations: int,
    starts: int | None,
    kept: int | None,
    iterations: int | None,
    memory_mb: float,
) -> Config:
    """Put what the user asked for in place of a config's own values."""
    from dataclasses import replace

    em = config.em if iterations is None else replace(config.em, iterations=iterations)
    drawn = config.starts if starts is None else starts
    if kept is None:
        kept = drawn if config.kept == config.starts else min(config.kept, drawn)
    return replace(config, rotations=rotations, starts=drawn, kept=kept, memory_mb=memory_mb, em=em)


def _device(name: str) -> torch.device:
    """Return a device with double precision, in which likelihoods are summed."""
    from emlab.runtime import choose_device

    device = choose_device(name)
    if device.type != "mps":
        return device
    if name != "auto":
        raise InputError("mps has no double precision, which the likelihood needs; use cpu or cuda")
    return choose_device("cpu")


def _prepare(
    pixels: np.ndarray, size: int, path: Path, crop: bool, subtract_background: bool
) -> torch.Tensor:
    """Return the field as a tensor ``(N, N')`` of whole patches; say what was done to it."""
    import torch

    if pixels.size != pixels.shape[-2] * pixels.shape[-1]:
        raise InputError(f"{path} has shape {pixels.shape}; give one image, not a stack or volume")
    rows, columns = pixels.shape[-2:]
    if min(rows, columns) < size:
        raise InputError(f"{path} has {rows} x {columns} pixels, fewer than one patch of {size}")
    whole = rows - rows % size, columns - columns % size
    if whole != (rows, columns) and not crop:
        raise InputError(
            f"the sides of {path}, {rows} x {columns} pixels, are no multiples of {size}; "
            f"add --crop to use its first {whole[0]} x {whole[1]} pixels"
        )
    field = torch.from_numpy(pixels.reshape(rows, columns)[: whole[0], : whole[1]].copy())
    if whole != (rows, columns):
        typer.echo(f"note: cropped from {rows} x {columns} pixels", err=True)
    if subtract_background:
        background = field.median()
        typer.echo(f"note: subtracted the median {background.item():.5g}", err=True)
        field -= background
    return field


@contextmanager
def _progress(iterations: int) -> Iterator[Callable[[int, torch.Tensor], None]]:
    """Yield a callback that moves a bar on a terminal and does nothing elsewhere."""
    from tqdm import tqdm

    with tqdm(total=iterations, desc="iterations", disable=None, leave=False) as bar:

        def show(iteration: int, log_likelihood: torch.Tensor) -> None:
            bar.update(iteration + 1 - bar.n)
            bar.set_postfix(log_likelihood=f"{log_likelihood.max().item():.1f}", refresh=False)

        yield show


def _in_plane(spacing: PixelSize) -> PixelSize:
    """Return the pixel size of rows and columns, without that of a single section's z."""
    return spacing[-2:] if isinstance(spacing, tuple) else spacing


def _stretch(image: np.ndarray) -> np.ndarray:
    """Return grey levels stretched to 0..1."""
    low, high = image.min(), image.max()
    return (image - low) / max(high - low, 1e-12)


def _image_to_hide(image: Path | None, digit: int | None) -> tuple[torch.Tensor, PixelSize, str]:
    """Return the image, its pixel size and where it comes from."""
    import torch

    if image is not None:
        from emlab.io import read_image

        source = read_image(image)
        if source.pixels.ndim != 2 or source.pixels.shape[0] != source.pixels.shape[1]:
            raise InputError(f"{image} has shape {source.pixels.shape}; give one square image")
        if not source.pixels.any():
            raise InputError(f"{image} is zero everywhere; there is nothing to hide")
        return torch.from_numpy(source.pixels), source.pixel_size_angstrom, image.name
    from emlab.data.digits import load_digits

    digits = load_digits("test")
    first = int((digits.labels == digit).argmax())
    return torch.from_numpy(digits.images[first]), None, f"digit {digit} of {digits.source}"
