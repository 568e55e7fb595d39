"""``emlab generalist``: denoise, deblur, upsample, make volumes isotropic, with one prior."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emlab.errors import InputError

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    help="One prior of electron micrographs of tissue, every restoration task.\n\n"
    "**Try it:** `emlab generalist denoise noisy.tif clean.tif`, "
    "`emlab generalist isotropic sections.mrc isotropic.mrc --factor 4`\n\n"
    "Files: tif, mrc, png, npy and (volumes) zarr. Results are float32 in the grey levels of the "
    "input, with the pixel size of the result in the header. What the prior was trained on, and "
    "where not to use it: `emlab weights card generalist_flow`. A restored image is an estimate; "
    "look at --spread before you count anything in it.",
)
In = Annotated[Path, typer.Argument(metavar="IN", help="tif, mrc, png, npy or zarr.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="tif, mrc, png, npy or zarr.")]
Noise = Annotated[
    float | None,
    typer.Option(
        help="Standard deviation of the noise in grey levels of the input.",
        show_default="estimated",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Draw so many from the posterior and write their mean.",
        show_default="one estimate, nothing drawn",
    ),
]
Spread = Annotated[
    Path | None,
    typer.Option(
        metavar="OUT2", help="Also write the standard deviation over samples; draws 4 unless told."
    ),
]
PriorName = Annotated[
    str | None,
    typer.Option(help="A name of `emlab weights list`.", show_default="of the config"),
]
ConfigName = Annotated[str, typer.Option(help="ours, samples, paper or paper_dps.")]
Tile = Annotated[
    int | None,
    typer.Option(
        min=16,
        help="Side in pixels of what the network sees at once.",
        show_default="of the config",
    ),
]
Memory = Annotated[
    float, typer.Option(help="Working memory in MB; larger volumes go block by block.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run over blocks.")
]
Workers = Annotated[int, typer.Option(min=1, help="Blocks at once, in threads of this process.")]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Restore blocks on the workers of a Dask scheduler, each with --memory; all see the "
        "same files.",
        show_default="no cluster",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]


@app.command()
def denoise(
    source: In,
    out: Out,
    noise: Noise = None,
    coloured: Annotated[
        bool, typer.Option("--coloured", help="Neighbouring pixels share noise: estimate how.")
    ] = False,
    samples: Samples = None,
    spread: Spread = None,
    prior: PriorName = None,
    config: ConfigName = "ours",
    tile: Tile = None,
    memory: Memory = 2048,
    resume: Resume = False,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Remove noise from an image, or from every plane of a stack or volume.

    **Example:** `emlab generalist denoise noisy.mrc clean.mrc --coloured`

    White noise takes one evaluation of the network: the posterior mean. --coloured is for noise
    that neighbouring pixels share, as in most scanning microscopes, and takes a few more. Stacks
    that need more than --memory are read and written block by block.
    """
    from emlab.commands.generalist_job import Job

    if coloured and noise is not None:
        raise InputError("give --noise or --coloured: the spectrum is estimated with its strength")
    common = source, out, spread, noise, prior, config, tile, samples, seed, device
    job = Job(*common, memory, resume, workers, scheduler)
    job.open("denoise_coloured" if coloured else "denoise", (2, 3))
    if job.exceeds_memory():
        job.run_blocks()
    else:
        job.run(coloured=coloured)


@app.command()
def deblur(
    source: In,
    out: Out,
    kernel: Annotated[
        str | None,
        typer.Option(
            help="Blur: a Gaussian sigma in pixels (2) or nm (20nm), disc:R, or an image file."
        ),
    ] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="Find the kernel too; it is written beside OUT.")
    ] = False,
    noise: Noise = None,
    samples: Samples = None,
    spread: Spread = None,
    prior: PriorName = None,
    config: ConfigName = "ours",
    tile: Tile = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Undo the blur of one image, by a kernel that is known or found with the image.

    **Example:** `emlab generalist deblur soft.tif sharp.tif --kernel 2`

    **A defocused lens:** `--kernel disc:3`. **Unknown:** `--blind`, which also writes
    `sharp.kernel.tif`; compare it with what you know of the instrument.
    """
    from emlab.commands.generalist_job import Job
    from emlab.commands.restoring import parse_kernel

    if (kernel is None) == (not blind):
        raise InputError("say what blurred the image: either --kernel KERNEL or --blind")
    if blind and (samples is not None or spread is not None):
        raise InputError("--blind draws no samples; leave out --samples and --spread")
    job = Job(source, out, spread, noise, prior, config, tile, samples, seed, device)
    job.open("deblur", (2,))
    if kernel is None:
        job.run_blind()
    else:
        blur = parse_kernel(kernel, job.input.pixel_size_angstrom, source)
        job.run(kernel=blur.numpy())


@app.command()
def upsample(
    source: In,
    out: Out,
    factor: Annotated[float, typer.Option(help="How many times finer, a whole number.")] = 2,
    noise: Noise = None,
    samples: Samples = None,
    spread: Spread = None,
    prior: PriorName = None,
    config: ConfigName = "ours",
    tile: Tile = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Make one image finer; its pixels are taken as averages of the fine ones.

    **Example:** `emlab generalist upsample coarse.tif fine.tif --factor 3 --spread doubt.tif`

    The pixel size in the header is divided by the factor. Detail that the coarse pixels do not
    hold is drawn from the prior: the spread shows where.
    """
    from emlab.commands.generalist_job import Job, whole_factor

    whole = whole_factor(factor)
    job = Job(source, out, spread, noise, prior, config, tile, samples, seed, device)
    job.open("upsample", (2,))
    job.run(lateral=whole, factor=whole)


@app.command()
def isotropic(
    source: In,
    out: Out,
    factor: Annotated[
        float | None,
        typer.Option(
            help="Thickness of a slice in pixels of rows and columns, a whole number.",
            show_default="from the pixel size",
        ),
    ] = None,
    axial: Annotated[
        str, typer.Option(help="A slice is the `average` of its planes, or one: `decimate`.")
    ] = "average",
    noise: Noise = None,
    samples: Samples = None,
    spread: Spread = None,
    prior: PriorName = None,
    config: ConfigName = "ours",
    tile: Tile = None,
    memory: Memory = 2048,
    resume: Resume = False,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Make a volume (D, H, W) as fine along axis 0 as along the others: (D * factor, H, W).

    **Example:** `emlab generalist isotropic sections.mrc fine.zarr --factor 4 --memory 4000`

    Volumes that need more than --memory are restored in overlapping blocks that share one noise
    field, without seams. Such a run can be interrupted; --resume goes on where it stopped.
    """
    from emlab.commands.generalist_job import Job, whole_factor

    if axial not in ("average", "decimate"):
        raise InputError(f"--axial is average or decimate, not {axial!r}")
    given = None if factor is None else whole_factor(factor)
    common = source, out, spread, noise, prior, config, tile, samples, seed, device
    job = Job(*common, memory, resume, workers, scheduler)
    job.open("isotropic", (3,))
    whole = job.factor_from_pixel_size() if given is None else given
    job.check_isotropic(whole)
    if job.exceeds_memory(whole):
        job.run_blocks(whole, axial)
    else:
        job.run(depth=whole, factor=whole, axial=axial)
