"""``emlab run``: execute chapters headless and check their numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from emlab.app.commands.options import Device, Seed, argument, command, group, option
from emlab.errors import InputError

app = group()


@command(app, "run")
@dataclass(kw_only=True)
class Run:
    """Run chapters headless and check their numbers.

    Example: emlab run 04_mtd --profile cpu --out runs/cpu

    OUT/SLUG receives the executed notebook, metrics.json and run.log, OUT/status.json a summary.

    Exit status: 0 all good, 1 a chapter failed, 2 wrong usage, 4 a number regressed.
    """

    chapters: list[str] | None = argument(
        "Slugs (04_mtd), starts of slugs (04) or paths of notebooks.", default=None
    )
    everything: bool = option(False, "Run all chapters.", "--all")
    profile: str = option(
        "cpu", "smoke (seconds), cpu (minutes), gpu (trains), paper (full scale)."
    )
    out: Path | None = option(None, "Folder of the runs.", shown="runs/PROFILE")
    seed: Seed = 0
    device: Device = "auto"
    parameter: list[str] | None = option(
        None, "Set another parameter.", "--parameter", "-p", metavar="NAME=VALUE"
    )
    force: bool = option(False, "Run even if nothing has changed.")
    timeout: float | None = option(None, "Seconds after which a chapter counts as failed.", min=1)
    threads: int | None = option(
        None, "Threads; default EMLAB_THREADS or the cores, at most 4.", min=1
    )
    jobs: int | None = option(
        None, "Chapters side by side; default: one for every two cores, at most 4.", min=1
    )
    minutes: float | None = option(
        None, "Leave out chapters that do not end in this time; changed ones go first.", min=0
    )
    notebooks: Path | None = option(None, "Folder of the chapters.", shown="notebooks/")
    expected: Path | None = option(None, "Folder of the bounds.", shown="tests/expected/")

    def __call__(self) -> None:
        """Run, and end with the status of the worst chapter."""
        from emlab.app.runner import exit_code, format_status, run_all

        if bool(self.chapters) == self.everything:
            raise InputError("name the chapters to run, such as `emlab run 04_mtd`, or say --all")
        results = run_all(
            profile=self.profile,
            out_dir=self.out or Path("runs", self.profile),
            only=self.chapters or [],
            notebooks=self.notebooks,
            seed=self.seed,
            device=self.device,
            parameters=dict(_parse_parameter(text) for text in self.parameter or []),
            force=self.force,
            timeout=self.timeout,
            threads=self.threads,
            jobs=self.jobs,
            minutes=self.minutes,
            expected_dir=self.expected,
        )
        typer.echo(format_status(results))
        raise typer.Exit(exit_code(results))


def _parse_parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"--parameter {text}: write NAME=VALUE, such as -p TARGETS=5")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
