"""The commands of ``emlab`` for the reference pages, from their own declarations."""

from __future__ import annotations

import inspect
import re
from typing import Any

from typer.main import get_command

from emlab.app.cli import COMMANDS, HOMES, application
from tools.book.markdown import table

PREFIX = "emlab.app.commands."
OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)")


def is_command(module: str) -> bool:
    """Whether a module holds a command, or groups of commands."""
    return bool(_words(module))


def described(module: str) -> str:
    """Return what a module's commands do, with a table of arguments for each sub-command."""
    parts = []
    for word in _words(module):
        group = get_command(application(word))
        if not hasattr(group, "commands"):
            parts += [f"#### `emlab {word}`"] * (len(_words(module)) > 1)
            parts.append(_command(f"emlab {word}", group))
            continue
        parts.append(_text(group.help or COMMANDS[word]))
        for name, command in group.commands.items():
            parts += [f"#### `emlab {word} {name}`", _command(f"emlab {word} {name}", command)]
    return "\n\n".join(parts)


def _words(module: str) -> list[str]:
    """The commands that a module holds."""
    return [word for word in COMMANDS if PREFIX + HOMES.get(word, word) == module]


def _command(call: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = " ".join([call, *map(_metavar, arguments)])
    rows = [
        [
            ", ".join(f"`{text}`" for text in ([_metavar(p)] if p in arguments else p.opts)),
            _text(p.help or ""),
            _default(p),
        ]
        for p in command.params
        if p.name != "help" and not getattr(p, "hidden", False)
    ]
    parts = [f"```text\n{words}\n```", _text(command.help or "")]
    return "\n\n".join([*parts, table(["argument", "what it is", "default"], rows)])


def _metavar(argument: Any) -> str:
    name = (argument.metavar or argument.name).upper()
    return f"{name}..." if argument.nargs == -1 else name


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return shown
    value = parameter.default
    if callable(value) or value in (None, False, (), ""):
        return ""
    return f"`{value}`"


def _text(help_text: str) -> str:
    """Return help as Markdown; options in running text become code, for two hyphens make a dash."""
    pieces = inspect.cleandoc(help_text.replace("\b", "")).split("`")
    pieces[::2] = [OPTION.sub(r"`\1`", piece).replace("[", "\\[") for piece in pieces[::2]]
    return "`".join(pieces)
