"""``emlab run``, ``report`` and ``notebooks``: chapters are run, their numbers checked, copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from emlab.app.commands.options import Device, Seed, argument, command, group, option
from emlab.errors import InputError

run_app = group()
report_app = group("Show the numbers of a run; compare them with their bounds.")
notebooks_app = group(
    "List the chapters that the package ships; copy them to a folder of yours.\n\n"
    "**Example:** `emlab notebooks copy chapters`, then `jupyter lab chapters`"
)
REGRESSED = 4
Metrics = Annotated[Path, typer.Argument(help="metrics.json of a run.")]


@command(run_app, "run")
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
    out_dir: Path | None = option(None, "Folder of the runs.", "--out", shown="runs/PROFILE")
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
    expected_dir: Path | None = option(
        None, "Folder of the bounds.", "--expected", shown="tests/expected/"
    )

    def __call__(self) -> None:
        """Run, and end with the status of the worst chapter."""
        from emlab.app.runner import exit_code, format_status, run_all

        if bool(self.chapters) == self.everything:
            raise InputError("name the chapters to run, such as `emlab run 04_mtd`, or say --all")
        self.out_dir = self.out_dir or Path("runs", self.profile)
        asked = dict(vars(self), only=self.chapters or [])
        asked["parameters"] = dict(_parse_parameter(text) for text in self.parameter or [])
        for name in ("chapters", "everything", "parameter"):
            del asked[name]
        results = run_all(**asked)
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


@report_app.command()
def show(metrics: Metrics) -> None:
    """Print the numbers of a run, its data, its shortcuts and what it cost."""
    from emlab.bench import format_metrics, load_metrics

    typer.echo(format_metrics(load_metrics(metrics)))


@report_app.command()
def check(
    metrics: Metrics,
    expected: Annotated[Path, typer.Argument(help="Bounds: tests/expected/PROFILE/SLUG.json.")],
    quiet: Annotated[bool, typer.Option("--quiet", help="Print failures only.")] = False,
) -> None:
    """Compare the numbers of a run with their bounds; exit status 4 if one does not hold."""
    from emlab.bench import compare, format_outcomes

    outcomes = compare(metrics, expected)
    failures = [outcome for outcome in outcomes if not outcome.ok]
    if not quiet:
        typer.echo(format_outcomes(outcomes))
    for failure in failures:
        typer.echo(f"regressed: {failure}", err=True)
    raise typer.Exit(REGRESSED if failures else 0)


@notebooks_app.command("list")
def list_notebooks() -> None:
    """Show the chapters and how long they take in the cpu profile.

    **Example:** `emlab notebooks list`
    """
    from emlab.bench import format_table
    from emlab.chapters import duration, shipped, title

    rows = [(path.stem, title(path), duration(path.stem, "cpu")) for path in shipped()]
    typer.echo(format_table(("chapter", "title", "time (cpu)"), rows))


@notebooks_app.command()
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
    from emlab.chapters import copy as copy_chapters

    written = copy_chapters(folder, names or [], force)
    for path in written:
        typer.echo(str(path))
    if not written:
        typer.echo(f"nothing to do: {folder} has these chapters already")
