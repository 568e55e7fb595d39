"""``emlab train``: train a network from its committed recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from emlab.app.commands.options import Device, Profile, argument, command, group, option
from emlab.errors import InputError

app = group()


@command(app, "train")
@dataclass(kw_only=True)
class Train:
    """Train a network from its recipe.

    Example: emlab train NAME --profile cpu --out runs/train/NAME

    To use the result in place of the shipped weights, set EMLAB_WEIGHTS to its folder.
    """

    name: str | None = argument("Recipe; see --list.", default=None)
    show: bool = option(False, "List the recipes and stop.", "--list")
    profile: Profile = "cpu"
    device: Device = "auto"
    out: Path | None = option(None, "Folder for checkpoints and weights.", shown="runs/train/NAME")
    resume: bool = option(False, "Go on from the last checkpoint.")

    def __call__(self) -> None:
        """Train, and print what the card says."""
        from emlab import weights
        from emlab.bench import PROFILES
        from emlab.recipes import recipes
        from emlab.runtime import choose_device, choose_threads

        known = recipes()
        if self.show:
            shipped = weights.names()
            for recipe in sorted(known):
                typer.echo(recipe + ("  (weights present)" if recipe in shipped else ""))
            return
        name, profile = self.name, self.profile
        if name not in known:
            problem = "say what to train" if name is None else f"no recipe is called {name!r}"
            raise InputError(f"{problem}; there are: {', '.join(sorted(known))}")
        if profile not in PROFILES:
            raise InputError(f"unknown profile {profile!r}; use one of {', '.join(PROFILES)}")
        choose_device(self.device)
        choose_threads()
        folder = self.out or Path("runs", "train", name)
        card = known[name](profile=profile, device=self.device, out=folder, resume=self.resume)
        if card is not None:
            typer.echo(
                f"{card.name}: {card.steps} steps in {card.seconds:.0f} s, written to {folder}"
            )
            for metric, value in card.evaluation.items():
                typer.echo(f"  {metric} = {value}")
