"""``emlab flowdps``: retrieve the phase of single particles, with samples and their spread."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    help="The phase that a particle gave the electrons, from one image of it.\n\n"
    "**Try it:** `emlab flowdps retrieve particles.star phases.mrcs --spread doubt.mrcs`\n\n"
    "The shipped prior knows one protein, the 20S proteasome; every other particle is pulled "
    "towards it (`emlab weights card flowdps_flow`). Look at chi2_low in the table beside the "
    "result: it is about 1 where prior and metadata explain an image.",
)


@app.callback()
def _group() -> None: ...


@app.command()
def retrieve(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="RELION .star, cryoSPARC .cs, or a stack .mrcs, .mrc with options."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Stack of phases: .mrcs or .mrc.")],
    pixel_size: Annotated[
        float | None, typer.Option(help="Angstrom.", show_default="of the file")
    ] = None,
    voltage_kv: Annotated[
        float | None, typer.Option(help="For example 300.", show_default="of the file")
    ] = None,
    cs_mm: Annotated[
        float | None,
        typer.Option(help="Spherical aberration in mm, 2.7.", show_default="of the file"),
    ] = None,
    amplitude_contrast: Annotated[
        float | None, typer.Option(help="As a share, 0.1.", show_default="of the file")
    ] = None,
    defocus: Annotated[
        float | None,
        typer.Option(
            help="Angstrom (1.5 um is 15000), underfocus positive; one for all particles.",
            show_default="of the file",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Draws of each particle.", show_default="of the config"),
    ] = None,
    spread: Annotated[
        Path | None,
        typer.Option(metavar="OUT2", help="Also write the standard deviation over the samples."),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(help="A name of `emlab weights list`.", show_default="of the config"),
    ] = None,
    config: Annotated[
        str, typer.Option(help="ours (calibrated), paper (as published) or corrected.")
    ] = "ours",
    contrast: Annotated[
        str, typer.Option(help="How matter looks in normalised images: bright, dark or auto.")
    ] = "auto",
    dose: Annotated[
        float | None,
        typer.Option(
            help="Pixels count electrons, of so many per square angstrom.",
            show_default="normalised, fitted",
        ),
    ] = None,
    b_factor: Annotated[
        float,
        typer.Option(min=0, help="Envelope of the lens in square angstrom, for example 60."),
    ] = 0.0,
    crop: Annotated[
        bool, typer.Option("--crop", help="Restore the middle of boxes larger than the field.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
) -> None:
    """Write the phase of each particle in radians, 64 x 64 pixels of about 2.63 A.

    **RELION, cryoSPARC:** `emlab flowdps retrieve particles.star phases.mrcs --crop`

    **A bare stack:** `emlab flowdps retrieve stack.mrcs phases.mrcs --pixel-size 1.3
    --voltage-kv 300 --cs-mm 2.7 --amplitude-contrast 0.1 --defocus 15000`

    Particles are moved to the middle where the file knows their shifts, and resampled. Beside OUT
    stand a STAR file and a table (.csv) with chi^2, its coarse part (which tells another particle),
    the fitted dose, gain and offset of each.
    Phases have no contrast transfer left: use them without correction for it. A killed run leaves
    what it finished; --resume goes on there.
    """
    from emlab.commands.flowdps_job import Job

    known = {
        "pixel_size_angstrom": pixel_size,
        "voltage_kv": voltage_kv,
        "cs_mm": cs_mm,
        "amplitude_contrast": amplitude_contrast,
        "defocus_angstrom": defocus,
    }
    job = Job(
        source, out, spread, samples, prior, config, contrast, dose, b_factor, crop, seed, device
    )
    job.open({name: value for name, value in known.items() if value is not None})
    job.run(resume)
