"""What several commands print: plain tables and the outcome of checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer

from emlab.errors import EmlabError, InputError


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return left-aligned columns under a ruled header; the last column is not padded."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header) - 1)]
    rule = tuple("-" * width for width in (*widths, len(header[-1])))
    lines.insert(1, rule)
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[-1]])
        for line in lines
    )


def report_checks(names: Sequence[str], check: Callable[[str], str]) -> None:
    """Check each name and print the outcome; after all of them, raise if any failed.

    Parameters
    ----------
    check
        Returns what to print beside "ok", or raises.

    Raises
    ------
    EmlabError
        Of the type of the first failure. An `InputError` (an unknown name) is raised at once.
    """
    failed: dict[str, EmlabError] = {}
    for name in names:
        try:
            typer.echo(f"ok      {name} ({check(name)})")
        except InputError:
            raise
        except EmlabError as problem:
            failed[name] = problem
            typer.echo(f"FAILED  {problem}")
    if failed:
        kind = type(next(iter(failed.values())))
        raise kind(f"{len(failed)} of {len(names)} failed, see above: {', '.join(failed)}")
