"""``emlab tsm``: train, denoise and judge denoisers of cryo-electron micrographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    help="Denoise cryo-electron micrographs, for looking and picking.\n\n"
    "**Try it:** `emlab tsm denoise raw.mrc clean.mrc`, "
    "`emlab tsm train raw/*.mrc mine.safetensors --reference map.mrc --defocus 15000`\n\n"
    "Headers are kept, extended ones too. A denoised micrograph shows where particles are; "
    "*extract them from the raw one*. What the shipped networks were trained on: `emlab weights "
    "card tsm_tsm`.",
)
PixelSize = Annotated[
    float | None,
    typer.Option(help="Angstrom; counts more than the headers.", show_default="from the header"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]


@app.callback()
def _group() -> None: ...


@app.command()
def denoise(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN... OUT",
            help="mrc or tif files, folders, or a micrographs.star; last the result: a file for "
            "one micrograph, else a folder.",
        ),
    ],
    model: Annotated[
        str, typer.Option(help="tsm, dsm, a name of `emlab weights list` or a safetensors file.")
    ] = "tsm",
    pixel_size: PixelSize = None,
    noise: Annotated[
        float | None,
        typer.Option(help="Standard deviation in grey levels.", show_default="estimated"),
    ] = None,
    invert: Annotated[
        bool, typer.Option("--invert", help="Protein is bright in IN; it stays bright in OUT.")
    ] = False,
    memory: Annotated[float, typer.Option(help="Working memory of the network in MB.")] = 800,
    workers: Annotated[
        int, typer.Option(min=1, help="Micrographs at once, in threads of this process.")
    ] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Denoise on the workers of a Dask scheduler, which see the same files.",
            show_default="no cluster",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out what is already in OUT.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Denoise micrographs: one file, whole folders, or those that a STAR file lists.

    **Example:** `emlab tsm denoise MotionCorr/ denoised/ --workers 4 --resume`

    Folders are searched for mrc and tif, and their structure is kept in OUT; with a STAR file
    OUT also gets the STAR file, so that a project can point to OUT instead.
    """
    from emlab.commands.tsm_job import DenoiseJob

    job = DenoiseJob(
        files, model, pixel_size, noise, invert, memory, workers, scheduler, resume, device
    )
    job.open()
    job.run()


@app.command()
def train(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="MICROGRAPHS... OUT",
            help="Raw micrographs, folders or a micrographs.star; last the .safetensors to write.",
        ),
    ],
    reference: Annotated[
        Path | None,
        typer.Option(help="MRC map or PDB/mmCIF model that guides; without it plain DSM."),
    ] = None,
    defocus: Annotated[
        float | None,
        typer.Option(
            help="Angstrom, underfocus positive, of all micrographs.",
            show_default="from the STAR file",
        ),
    ] = None,
    voltage: Annotated[float, typer.Option(help="kV; a STAR file counts more.")] = 300,
    pixel_size: PixelSize = None,
    voxel_size: Annotated[
        float | None,
        typer.Option(help="Of the map, angstrom.", show_default="from its header"),
    ] = None,
    invert: Annotated[bool, typer.Option("--invert", help="Protein is bright.")] = False,
    profile: Annotated[str, typer.Option(help="smoke, cpu, gpu or paper: how long.")] = "cpu",
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of the profile's.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint beside OUT.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
) -> None:
    """Train a denoiser on your own micrographs, and write it as one file.

    **Example:** `emlab tsm train raw/ mine.safetensors --reference 6z6u.pdb --defocus 12000`

    Then `emlab tsm denoise raw/ denoised/ --model mine.safetensors`. A reference pulls the result
    towards itself: look at `emlab tsm denoise` of a micrograph without particles, too.
    """
    from emlab.commands.tsm_job import TrainJob

    job = TrainJob(
        files, reference, defocus, voltage, pixel_size, voxel_size, invert, profile, steps,
        resume, seed, device,
    )  # fmt: skip
    job.open()
    job.run()


@app.command("pick-eval")
def pick_eval(
    picks: Annotated[
        Path,
        typer.Argument(
            metavar="PICKS",
            help="STAR, BOX, CSV or a table of Topaz, or a folder of them; or micrographs, which "
            "Topaz then picks from.",
        ),
    ],
    truth: Annotated[
        Path, typer.Argument(metavar="TRUTH", help="True places: a file or a folder of them.")
    ],
    diameter: Annotated[
        float | None, typer.Option(help="Of the particle in angstrom; a hit is within half of it.")
    ] = None,
    pixel_size: PixelSize = None,
    radius: Annotated[
        float | None, typer.Option(help="Largest distance of a hit in pixels instead.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Lowest score of a pick.", show_default="all picks count")
    ] = None,
    curve: Annotated[
        Path | None, typer.Option(help="Write precision and recall over thresholds (.csv).")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the picks as .star or .csv.", show_default="no")
    ] = None,
    invert: Annotated[bool, typer.Option("--invert", help="Protein is bright.")] = False,
) -> None:
    """Compare picks with true places: precision, recall and F1, one pick a particle.

    **Example:** `emlab tsm pick-eval denoised/ truth.star --diameter 150 --threshold 1.2`

    Choose the threshold on other micrographs than those it is judged by. Rows are counted from
    above; boxes of programs that count from below must be turned first.
    """
    from emlab.commands.tsm_picking import PickEvaluation

    job = PickEvaluation(picks, truth, diameter, pixel_size, radius, threshold, curve, save, invert)
    job.open()
    job.run()
