"""The fingerprint of a measurement: the code that it can reach, its settings and its weights.

Code is what the measuring function reaches by the names it uses: functions, whole classes and plain
constants of emlab, without docstrings, comments, layout and imports, and whichever module they live
in. Moving or documenting code keeps a fingerprint; changing what it computes does not. Data sets
have hashes of their own, so how files are found and checked is not part of it; nor is how numbers
are drawn or written down.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import json
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from emlab import weights

if TYPE_CHECKING:
    from emlab.recorded import Recording

# Rooms whose code computes no number of a recording.
_ASIDE = {"errors", "runtime", "checks", "settings", "viz", "recorded", "app", "weights"}
# In emlab.data and emlab.bench.
_FILES = {"access", "build", "download", "registry", "report", "claims"}
_PLAIN = (bool, int, float, str, bytes, type(None))


def fingerprint(recording: Recording) -> str:
    """Return 64 hex digits for the code, settings and weights of a recording."""
    state = {
        "code": code_hash(recording.measure),
        "settings": recording.settings,
        "weights": {name: weights.card(name).sha256 for name in recording.weights},
    }
    return digest(state)


def digest(state: Any) -> str:
    """Return 64 hex digits for what JSON can hold, whatever the order of names in tables."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


@cache
def code_hash(function: Callable[..., Any]) -> str:
    """Return the hash of all code of emlab that a function can reach."""
    seen: dict[int, Any] = {}
    texts: set[str] = set()
    waiting: list[Any] = [function]
    while waiting:
        item = inspect.unwrap(waiting.pop())
        if id(item) in seen or not _computes(item):
            continue
        seen[id(item)] = item
        texts.add(_text(item))
        for name, value in _reached(item):
            if isinstance(value, FunctionType | type):
                waiting.append(value)
            elif isinstance(value, _PLAIN):
                texts.add(f"{name}={value!r}")
            else:
                waiting.extend(_members(value))
                texts.update(f"{name}={value!r}" for _ in [0] if _is_plain(value))
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()


def _computes(item: Any) -> bool:
    parts = (getattr(item, "__module__", None) or "").split(".")
    if parts[0] != "emlab" or not isinstance(item, FunctionType | type):
        return False
    return parts[1:2] != [] and parts[1] not in _ASIDE and not set(parts[2:]) & _FILES


def _reached(item: Any) -> Iterator[tuple[str, Any]]:
    """Yield what the names in a function or class stand for, of emlab and of plain constants."""
    functions = [item] if isinstance(item, FunctionType) else _methods(item)
    if isinstance(item, type):
        yield from ((base.__name__, base) for base in item.__bases__)
        yield from ((k, v) for k, v in vars(item).items() if isinstance(v, FunctionType))
    for function in functions:
        names = set(_names(function.__code__))
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        found = {**function.__globals__, **{n: c.cell_contents for n, c in cells}}
        for name in sorted(names & found.keys()):
            value = found[name]
            if name.startswith("__"):
                continue  # such as __file__, which is another in every checkout
            if isinstance(value, ModuleType):
                if value.__name__.startswith("emlab"):
                    yield from ((n, vars(value)[n]) for n in sorted(names & vars(value).keys()))
            else:
                yield name, value
        yield from _imported_inside(function, names)


def _imported_inside(function: FunctionType, names: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield what imports inside a function bring."""
    import importlib

    for node in ast.walk(_parsed(_source(function))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("emlab"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                value = getattr(module, alias.name, None)
                if isinstance(value, ModuleType):
                    yield from ((n, vars(value)[n]) for n in sorted(names & vars(value).keys()))
                elif value is not None:
                    yield alias.name, value


def _methods(kind: type) -> Iterator[FunctionType]:
    for value in vars(kind).values():
        inner = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        inner = getattr(inner, "func", inner)  # a cached property
        if isinstance(inner, FunctionType) and inner.__module__ == kind.__module__:
            yield inner


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _members(value: Any) -> list[Any]:
    """Return functions and classes inside a table or sequence, or the class of an object."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return [member for one in value for member in [one, *_members(one)]]
    return [] if isinstance(value, (FunctionType, type, *_PLAIN)) else [type(value)]


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, [*value.keys(), *value.values()]))
    return isinstance(value, _PLAIN) or (
        isinstance(value, list | tuple) and all(map(_is_plain, value))
    )


def _source(item: Any) -> str:
    if getattr(getattr(item, "__code__", None), "co_filename", "").startswith("<"):
        return "pass"  # made by a decorator, such as the __init__ of a dataclass
    try:
        return textwrap.dedent(inspect.getsource(item))
    except (OSError, TypeError, IndentationError):
        return "pass"


def _parsed(source: str) -> ast.AST:
    """Return a syntax tree; that of the lines around a lambda, which may be none, is empty."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module([], [])


def _text(item: Any) -> str:
    """Return a function or class as text without comments, docstrings, imports and layout."""
    source = _source(item)
    drop: set[int] = set()
    for node in ast.walk(_parsed(source)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            drop.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
        if isinstance(node, ast.Import | ast.ImportFrom):
            drop.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    comments = {
        token.start
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    kept = []
    for number, line in enumerate(source.splitlines(), 1):
        if number not in drop:
            cut = min((column for row, column in comments if row == number), default=len(line))
            kept.append("".join(line[:cut].split()))
    return "".join(kept).replace(",)", ")").replace(",]", "]").replace(",}", "}")
