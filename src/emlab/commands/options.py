"""Arguments and options that several commands share, and how a job becomes a command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from inspect import Parameter, Signature, get_annotations
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from emlab.commands.job import Job

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
Invert = Annotated[bool, typer.Option("--invert", help="Particles are bright.")]
Profile = Annotated[str, typer.Option(help="smoke, cpu, gpu or paper.")]
PriorName = Annotated[
    str | None,
    typer.Option(help="A name of `emlab weights list`.", show_default="of the config"),
]
Workers = Annotated[
    int, typer.Option(min=1, help="Files or blocks at once, in threads of this process.")
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Work on the workers of a Dask scheduler, each with --memory; all see the same files.",
        show_default="no cluster",
    ),
]


def group(text: str | None = None, **settings: Any) -> typer.Typer:
    """Return a typer application, of one command or with a text that explains several."""
    names = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(
        help=text,
        no_args_is_help=text is not None,
        add_completion=False,
        context_settings=names,
        rich_markup_mode="markdown",
        **settings,
    )


def command(app: typer.Typer, word: str, **settings: Any) -> Callable[[type[Job]], type[Job]]:
    """Make a job a command: its fields are arguments and options, its docstring is the help.

    What a class declares itself stands before what it inherits.
    """

    def add(job: type[Job]) -> type[Job]:
        hints = get_type_hints(job, include_extras=True)
        known = {field.name: field.default for field in fields(job) if field.init}
        order = dict.fromkeys(name for kind in job.__mro__ for name in get_annotations(kind))
        parameters = [
            Parameter(
                name,
                Parameter.KEYWORD_ONLY,
                default=Parameter.empty if known[name] is MISSING else known[name],
                annotation=hints[name],
            )
            for name in order
            if name in known
        ]

        def call(**options: Any) -> None:
            job(**options)()

        call.__doc__ = job.__doc__
        call.__annotations__ = {name: hints[name] for name in known}
        call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        app.command(word, **settings)(call)
        return job

    return add
