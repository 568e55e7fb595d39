"""``emlab train``: train a network from its committed recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emlab.commands.options import Device, Profile, group
from emlab.errors import InputError

app = group()


@app.command()
def train(
    name: Annotated[str | None, typer.Argument(help="Recipe; see --list.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the recipes and stop.")] = False,
    profile: Profile = "cpu",
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints and weights.", show_default="runs/train/NAME"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
) -> None:
    """Train a network from its recipe.

    Example: emlab train NAME --profile cpu --out runs/train/NAME

    To use the result in place of the shipped weights, set EMLAB_WEIGHTS to its folder.
    """
    from emlab import weights
    from emlab.methods.recipes import recipes
    from emlab.report import PROFILES
    from emlab.runtime import choose_device, choose_threads

    known = recipes()
    if show:
        shipped = weights.names()
        for recipe in sorted(known):
            typer.echo(recipe + ("  (weights present)" if recipe in shipped else ""))
        return
    if name not in known:
        problem = "say what to train" if name is None else f"no recipe is called {name!r}"
        raise InputError(f"{problem}; there are: {', '.join(sorted(known))}")
    if profile not in PROFILES:
        raise InputError(f"unknown profile {profile!r}; use one of {', '.join(PROFILES)}")
    choose_device(device)
    choose_threads()
    folder = out or Path("runs", "train", name)
    card = known[name](profile=profile, device=device, out=folder, resume=resume)
    if card is not None:
        typer.echo(f"{card.name}: {card.steps} steps in {card.seconds:.0f} s, written to {folder}")
        for metric, value in card.evaluation.items():
            typer.echo(f"  {metric} = {value}")
