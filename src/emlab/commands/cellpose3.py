"""``emlab cellpose3``: restore images of cells so that they can be segmented, and segment them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    help="Restore images of cells for segmentation, and segment them.\n\n"
    "**Try it:** `emlab cellpose3 denoise noisy.tif clean.tif --masks objects.tif`\n\n"
    "The shipped networks know fluorescent nuclei, bright on dark (`emlab weights card "
    "cellpose3_denoise`); `--oneclick` takes one that saw membranes and bacteria too. A restored "
    "image is for *finding* objects: measure their brightness on the image that you recorded.",
)
In = Annotated[Path, typer.Argument(metavar="IN", help="tif, png, mrc or npy.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="tif, mrc, npy (float32) or png.")]
Diameter = Annotated[
    float | None,
    typer.Option(help="Of the objects, in pixels of IN.", show_default="estimated"),
]
MasksOut = Annotated[
    Path | None,
    typer.Option(metavar="OUT2", help="Also write the objects, as labels of the size of IN."),
]
Channel = Annotated[
    int | None,
    typer.Option(min=1, help="Which channel of a colour or multi-channel image; 1 is the first."),
]
Stack = Annotated[
    bool, typer.Option("--stack", help="IN holds many images: restore each by itself.")
]
OneClick = Annotated[
    bool, typer.Option("--oneclick", help="The network of all domains, not that of nuclei.")
]
RestorerName = Annotated[
    str | None,
    typer.Option(help="A name of `emlab weights list`.", show_default="of the task"),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run over a stack.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]


@app.callback()
def _group() -> None: ...


@app.command()
def denoise(
    source: In,
    out: Out,
    diameter: Diameter = None,
    masks: MasksOut = None,
    channel: Channel = None,
    stack: Stack = False,
    oneclick: OneClick = False,
    restorer: RestorerName = None,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Remove noise, so that objects can be found.

    **Example:** `emlab cellpose3 denoise noisy.tif clean.tif --diameter 25 --masks objects.tif`
    """
    from emlab.commands.cellpose3_job import Job

    name = restorer or ("cellpose3_oneclick" if oneclick else "cellpose3_denoise")
    Job("denoise", source, out, masks, name, diameter, channel, stack, resume, device).run()


@app.command()
def deblur(
    source: In,
    out: Out,
    diameter: Diameter = None,
    masks: MasksOut = None,
    channel: Channel = None,
    stack: Stack = False,
    restorer: RestorerName = None,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Undo blur, and noise with it, so that objects can be found.

    **Example:** `emlab cellpose3 deblur soft.tif sharp.tif --diameter 25`
    """
    from emlab.commands.cellpose3_job import Job

    name = restorer or "cellpose3_deblur_strong"
    Job("deblur", source, out, masks, name, diameter, channel, stack, resume, device).run()


@app.command()
def upsample(
    source: In,
    out: Out,
    factor: Annotated[int, typer.Option(min=1, max=16, help="OUT has so many more pixels.")] = 2,
    diameter: Diameter = None,
    masks: MasksOut = None,
    channel: Channel = None,
    stack: Stack = False,
    restorer: RestorerName = None,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Write a finer image of coarse pixels; masks stay in the pixels of IN.

    **Example:** `emlab cellpose3 upsample coarse.tif fine.tif --factor 3 --diameter 6`
    """
    from emlab.commands.cellpose3_job import Job

    name = restorer or "cellpose3_upsample_strong"
    job = Job("upsample", source, out, masks, name, diameter, channel, stack, resume, device)
    job.factor = factor
    job.run()


@app.command()
def segment(
    source: In,
    masks: Annotated[Path, typer.Argument(metavar="MASKS", help="tif, png or npy of labels.")],
    diameter: Diameter = None,
    channel: Channel = None,
    stack: Stack = False,
    resume: Resume = False,
    device: Device = "auto",
) -> None:
    """Find objects without restoring anything first.

    **Example:** `emlab cellpose3 segment nuclei.tif objects.tif`
    """
    from emlab.commands.cellpose3_job import Job

    Job("segment", source, None, masks, None, diameter, channel, stack, resume, device).run()
