"""Arguments and options that several commands share, and how a job becomes a command."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, dataclass, field, fields
from inspect import Parameter, Signature, get_annotations
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

T = TypeVar("T", bound=Any)  # a dataclass whose objects are called
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")]
Profile = Annotated[str, typer.Option(help="smoke, cpu, gpu or paper.")]
PriorName = Annotated[
    str | None, typer.Option(help="A name of `emlab weights list`.", show_default="of the config")
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


def group(text: str | None = None) -> typer.Typer:
    """Return a typer application, of one command or with a text that explains several."""
    return typer.Typer(
        help=text,
        no_args_is_help=text is not None,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="markdown",
    )


def argument(text: str, metavar: str | None = None, default: Any = ...) -> Any:
    """Declare a field of a job that is an argument of its command."""
    return _field(default, typer.Argument(default, help=text, metavar=metavar))


def option(default: Any, text: str, *names: str, shown: str | bool = True, **rules: Any) -> Any:
    """Declare a field of a job that is an option of its command.

    With an ellipsis as default it must be given. It is named as the field unless there are names,
    and a switch has no ``--no-``; ``shown`` is what the help says of the default, if not its value;
    rules are those of `typer.Option`.
    """
    return _field(default, typer.Option(default, *names, help=text, show_default=shown, **rules))


def _field(default: Any, kind: Any) -> Any:
    return field(default=MISSING if default is ... else default, metadata={"typer": kind})


def command(app: typer.Typer, word: str, **settings: Any) -> Callable[[T], T]:
    """Make a class a dataclass and a command of its fields; its docstring is the help.

    What a class declares itself stands before what it inherits.
    """

    def add(declared: T) -> T:
        job: Any = dataclass(kw_only=True)(declared)
        hints = get_type_hints(job, include_extras=True)
        known = {each.name: each for each in fields(job) if each.init}
        order = dict.fromkeys(name for kind in job.__mro__ for name in get_annotations(kind))
        parameters = []
        for name in [name for name in order if name in known]:
            given = copy(known[name].metadata.get("typer", known[name].default))
            if known[name].default is False and not getattr(given, "param_decls", True):
                given.param_decls = (f"--{name.replace('_', '-')}",)
            default = Parameter.empty if given is MISSING else given
            parameters.append(
                Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
            )

        def call(**options: Any) -> None:
            job(**options)()

        call.__doc__ = job.__doc__
        call.__annotations__ = {name: hints[name] for name in known}
        call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        app.command(word, **settings)(call)
        return job

    return add
