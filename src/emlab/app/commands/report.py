"""``emlab report``: show and check the numbers of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emlab.app.commands.options import group

app = group("Show the numbers of a run; compare them with their bounds.")
REGRESSED = 4

Metrics = Annotated[Path, typer.Argument(help="metrics.json of a run.")]


@app.command()
def show(metrics: Metrics) -> None:
    """Print the numbers of a run, its data, its shortcuts and what it cost."""
    from emlab.bench import format_metrics, load_metrics

    typer.echo(format_metrics(load_metrics(metrics)))


@app.command()
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
