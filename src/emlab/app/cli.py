"""The command line ``emlab``: commands are imported when they are called, not before.

Exit status: 0 fine, 1 a chapter failed, 2 wrong usage or input, 3 data or weights unavailable or
corrupt, 4 a number regressed, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from emlab.errors import EmlabError

TERMINATED = 143


# One line each; the typer app is in emlab.app.commands, in the module of that name or in `HOMES`.
COMMANDS = {
    "run": "Run chapters headless and check their numbers.",
    "report": "Show the numbers of a run; compare them with their bounds.",
    "notebooks": "List the chapters; copy them to a folder of yours.",
    "data": "List, fetch and verify data sets.",
    "weights": "List, verify and describe the trained networks.",
    "train": "Train a network from its recipe.",
    "compare": "Your own image: every method that fits, in one report.",
    "generalist": "Denoise, deblur, upsample, make volumes isotropic, with one prior.",
    "flowdps": "Retrieve the phase of single particles, with their spread.",
    "cellpose3": "Restore images of cells for segmentation, and segment them.",
    "tsm": "Train and denoise: micrographs of single particles, for picking.",
    "mtd": "Multi-target detection: recover an image from a field of copies.",
}
HOMES = dict.fromkeys(("run", "report", "notebooks"), "book")
HOMES |= dict.fromkeys(("data", "weights", "train"), "stores")


def application(word: str) -> typer.Typer:
    """Import the module of a command, and return its typer application."""
    home = HOMES.get(word, word)
    module = import_module(f"emlab.app.commands.{home}")
    return module.app if home == word else getattr(module, f"{word}_app")


class LazyGroup(TyperGroup):
    """A group whose members are placeholders with a one-line help until one of them is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Import the module of the command that is called, and only that one."""
        name, placeholder, rest = super().resolve_command(ctx, args)
        if name not in COMMANDS:
            return name, placeholder, rest
        command = get_command(application(name))
        command.help = command.help or COMMANDS[name]
        return name, command, rest


app = typer.Typer(
    name="emlab",
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: emlab run 00 --profile cpu, then copy the chapters and open them in "
    "JupyterLab: emlab notebooks copy chapters. "
    "Every command has its own --help.",
)


def _placeholder() -> None: ...


for _name, _summary in COMMANDS.items():
    app.command(_name, help=_summary)(_placeholder)


def _print_version(wanted: bool) -> None:
    if wanted:
        import emlab

        typer.echo(f"emlab {emlab.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Learned restoration in electron microscopy: a prior, a model of the microscope, a solver."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status and prints errors as one line on stderr."""
    words = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in words[: _first_command(words)]
    try:
        with _terminating_cleanly():
            app(words, prog_name="emlab")
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else int(bool(finished.code))
    except EmlabError as problem:
        if debug:
            raise
        print(f"emlab: error: {problem}", file=sys.stderr)
        return problem.exit_code
    return 0


def _first_command(words: list[str]) -> int:
    return next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))


@contextmanager
def _terminating_cleanly() -> Iterator[None]:
    """Leave through the finally clauses on SIGTERM: child processes are ended and files removed."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    earlier = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
