"""``emlab weights``: list, describe, verify and locate trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emlab import weights
from emlab.app.commands.job import report_checks
from emlab.app.commands.options import group
from emlab.bench import format_table
from emlab.errors import InputError

app = group(
    "List, describe, verify and locate trained weights.\n\n"
    "Each checkpoint is a safetensors file with a card that says how it was made. The package "
    "ships some; a folder of your own, named by EMLAB_WEIGHTS, is looked up first.\n\n"
    "**Example:** `emlab weights list`, then `emlab weights card NAME`"
)
Name = Annotated[str, typer.Argument(help="A name as shown by `emlab weights list`.")]


@app.command("list")
def list_weights() -> None:
    """Show all checkpoints: size, training data and the recipe that makes them again.

    **Example:** `emlab weights list`
    """
    cards = [weights.card(name) for name in weights.names()]
    if not cards:
        typer.echo("no weights here; train some with `emlab train NAME` or set EMLAB_WEIGHTS")
        return
    rows = [(c.name, _megabytes(c.name), f"{c.data} ({c.split})", c.recipe) for c in cards]
    typer.echo(format_table(("name", "MB", "trained on", "recipe"), rows))


@app.command()
def card(name: Name) -> None:
    """Print a card: data, split, steps, seconds, device, seed, commit, evaluation and limits.

    **Example:** `emlab weights card NAME`
    """
    weights.card(name)  # refuses what is no card
    file = weights.path(name).parents[1] / "cards" / f"{name}.toml"
    typer.echo(f'name = "{name}"\n{file.read_text(encoding="utf-8")}'.rstrip())


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names as shown by `emlab weights list`.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All checkpoints.")] = False,
) -> None:
    """Check the files against the hashes on their cards; exit code 3 if any is wrong.

    **Example:** `emlab weights verify --all`
    """
    chosen = weights.names() if everything else names
    if not chosen and not everything:
        raise InputError("name at least one checkpoint, or use --all")

    def check(name: str) -> str:
        tensors, found = weights.load(name)
        return f"{len(tensors)} tensors, sha256 {found.sha256[:16]}"

    report_checks(chosen or [], check)


@app.command()
def path(name: Name) -> None:
    """Print where the safetensors file of a checkpoint is.

    **Example:** `emlab weights path NAME`
    """
    typer.echo(str(weights.path(name)))


def _megabytes(name: str) -> str:
    file = weights.path(name)
    return f"{file.stat().st_size / 1e6:.1f}" if file.is_file() else "missing"


@app.command("import-cellpose")
def import_cellpose(
    file: Annotated[Path, typer.Argument(help="As cellpose 3.1 keeps it in .cellpose/models.")],
    name: Annotated[str, typer.Argument(help="To load it by, for instance cellpose3_denoise.")],
    out: Annotated[Path, typer.Option(help="Folder of weights, for EMLAB_WEIGHTS.")],
) -> None:
    """Make weights of emlab from a network that the authors of Cellpose released.

    **Example:** `emlab weights import-cellpose denoise_nuclei cellpose3_denoise --out released`
    """
    from emlab.recipes.cellpose3_authors import import_released

    made = import_released(file, name, out)
    typer.echo(f"{made.name}: widths {made.model['widths']}; use it with EMLAB_WEIGHTS={out}")
