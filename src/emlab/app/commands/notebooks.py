"""``emlab notebooks``: list the chapters that the package ships, and copy them to work in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emlab import chapters
from emlab.app.commands.options import group
from emlab.bench import format_table

app = group(
    "List the chapters that the package ships; copy them to a folder of yours.\n\n"
    "**Example:** `emlab notebooks copy chapters`, then `jupyter lab chapters`"
)


@app.command("list")
def list_notebooks() -> None:
    """Show the chapters and how long they take in the cpu profile.

    **Example:** `emlab notebooks list`
    """
    rows = [
        (p.stem, chapters.title(p), chapters.duration(p.stem, "cpu")) for p in chapters.shipped()
    ]
    typer.echo(format_table(("chapter", "title", "time (cpu)"), rows))


@app.command()
def copy(
    folder: Annotated[Path, typer.Argument(help="Where to; it is made if need be.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="CHAPTER", help="Slugs or starts of slugs; none for all."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite chapters that differ from the shipped ones.")
    ] = False,
) -> None:
    """Copy chapters to a folder; files that you have changed are kept unless you say --force.

    **Example:** `emlab notebooks copy chapters 00 04`
    """
    written = chapters.copy(folder, names or [], force)
    for path in written:
        typer.echo(str(path))
    if not written:
        typer.echo(f"nothing to do: {folder} has these chapters already")
