"""``emlab run``: execute chapters headless and check their numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from emlab.commands.options import Device, Seed, group
from emlab.errors import InputError

app = group()


@app.command()
def run(
    chapters: Annotated[
        list[str] | None,
        typer.Argument(help="Slugs (04_mtd), starts of slugs (04) or paths of notebooks."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Run all chapters.")] = False,
    profile: Annotated[
        str, typer.Option(help="smoke (seconds), cpu (minutes), gpu (trains), paper (full scale).")
    ] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the runs.", show_default="runs/PROFILE")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="Set another parameter."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Run even if nothing has changed.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds after which a chapter counts as failed.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads; default EMLAB_THREADS or the cores, at most 4."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Chapters side by side; default: one for every two cores, at most 4."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0, help="Leave out chapters that do not end in this time; changed ones go first."
        ),
    ] = None,
    notebooks: Annotated[
        Path | None, typer.Option(help="Folder of the chapters.", show_default="notebooks/")
    ] = None,
    expected: Annotated[
        Path | None, typer.Option(help="Folder of the bounds.", show_default="tests/expected/")
    ] = None,
) -> None:
    """Run chapters headless and check their numbers.

    Example: emlab run 04_mtd --profile cpu --out runs/cpu

    OUT/SLUG receives the executed notebook, metrics.json and run.log, OUT/status.json a summary.

    Exit status: 0 all good, 1 a chapter failed, 2 wrong usage, 4 a number regressed.
    """
    from emlab.runner import exit_code, format_status, run_all

    if bool(chapters) == everything:
        raise InputError("name the chapters to run, such as `emlab run 04_mtd`, or say --all")
    results = run_all(
        profile=profile,
        out_dir=out or Path("runs", profile),
        only=chapters or [],
        notebooks=notebooks,
        seed=seed,
        device=device,
        parameters=dict(_parse_parameter(text) for text in parameter or []),
        force=force,
        timeout=timeout,
        threads=threads,
        jobs=jobs,
        minutes=minutes,
        expected_dir=expected,
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
