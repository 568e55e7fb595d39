"""``emlab compare``: every method that fits on one image of your own, in one report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)


@app.command(no_args_is_help=True)
def compare(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="mrc, mrcs, tif, ome.tif, png, npy or zarr.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The report, .html.")],
    task: Annotated[str, typer.Option(help="denoise, deblur or upsample.")] = "denoise",
    pixel_size_angstrom: Annotated[
        float | None,
        typer.Option(help="Counts more than the header.", show_default="from the header"),
    ] = None,
    half: Annotated[
        Path | None,
        typer.Option(
            metavar="OTHER", help="Another recording of the same field; both are averaged."
        ),
    ] = None,
    frames: Annotated[
        bool, typer.Option("--frames", help="IMAGE is a stack of aligned frames of one field.")
    ] = False,
    plane: Annotated[
        int | None,
        typer.Option(min=0, help="Of a volume, counted from 0.", show_default="the middle one"),
    ] = None,
    window: Annotated[int, typer.Option(min=64, help="Side in pixels of what is compared.")] = 512,
    centre: Annotated[
        str | None,
        typer.Option(metavar="Y,X", help="Of the window, in pixels.", show_default="the middle"),
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(help="Blur to undo: a Gaussian sigma in pixels (2) or nm (20nm), disc:R."),
    ] = None,
    factor: Annotated[int, typer.Option(min=2, max=8, help="Of upsampling.")] = 2,
    noise: Annotated[
        float | None,
        typer.Option(help="Standard deviation of white noise.", show_default="estimated"),
    ] = None,
    coloured: Annotated[
        bool | None,
        typer.Option(
            "--coloured/--white", help="What the noise counts as.", show_default="estimated"
        ),
    ] = None,
    specimen: Annotated[
        str | None,
        typer.Option(help="tissue, particles, cells or unknown.", show_default="by the pixel size"),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only these, also where they do not fit."),
    ] = None,
    diameter: Annotated[
        float | None, typer.Option(help="Of cells in pixels.", show_default="estimated")
    ] = None,
    invert: Annotated[bool, typer.Option("--invert", help="Particles are bright.")] = False,
    spread: Annotated[
        int, typer.Option(min=0, help="Side of the crop whose posterior is sampled; 0: none.")
    ] = 128,
    save: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write the restored images here.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
) -> None:
    """Restore one image by every method that fits, and write what each did into one report.

    **Example:** `emlab compare noisy.tif -o report.html`

    **More:** `emlab compare soft.mrc -o report.html --task deblur --kernel 2 --save restored/`

    The report is one HTML file with its pictures inside; the numbers stand beside it as JSON. It
    has the noise (level, white or coloured), what each method took away, its resolution, what it
    makes of pure noise, its spread where it samples, time and memory. With --half or --frames also
    the Fourier ring correlation of two halves and the error that is left.
    """
    from emlab.commands.compare_job import Job

    Job(
        image, out, task, pixel_size_angstrom, half, frames, plane, window, centre, kernel, factor,
        noise, coloured, specimen, methods, diameter, invert, spread, save, resume, seed, device,
    ).run()  # fmt: skip
