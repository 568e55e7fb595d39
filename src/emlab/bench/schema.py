"""Read metrics.json and expected files strictly: schema, no NaN, no name twice."""

from __future__ import annotations

import json
import math
import os
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from emlab.errors import InputError
from emlab.runtime import import_jsonschema


def load_metrics(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a checked metrics.json.

    Raises
    ------
    InputError
        The file is missing, is not JSON, holds a NaN or a name twice, or breaks the schema.
    """
    return _load(Path(path), "metrics")


def load_expected(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a checked file of bounds; raises `InputError` like `load_metrics`."""
    return _load(Path(path), "expected")


def validate(content: Any, kind: str, where: str) -> None:
    """Check parsed JSON against the packaged schema of ``"metrics"`` or ``"expected"``.

    Parameters
    ----------
    where
        What to call the content in the message.

    Raises
    ------
    InputError
        The first breach of the schema, or a number that is not finite.
    """
    jsonschema = import_jsonschema()
    problem = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(_schema(kind)).iter_errors(content)
    )
    if problem is not None:
        place = " at " + "/".join(map(str, problem.absolute_path)) if problem.absolute_path else ""
        raise InputError(f"{where}{place}: {problem.message}")
    _refuse_infinite(content, where, "")


@cache
def _schema(kind: str) -> dict[str, Any]:
    text = resources.files("emlab.bench").joinpath(f"{kind}.schema.json").read_text("utf-8")
    return json.loads(text)


def _load(path: Path, kind: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"cannot read {path} ({problem}); give a {kind} file") from problem
    try:
        content = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except ValueError as problem:
        raise InputError(f"{path} is not valid JSON: {problem}") from problem
    validate(content, kind, str(path))
    return content


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{', '.join(twice)} appears twice in one object")
    return content


def _no_constant(name: str) -> float:
    raise ValueError(
        f"{name} is not a number that can be compared; record why it is missing instead"
    )


def _refuse_infinite(content: Any, where: str, place: str) -> None:
    if isinstance(content, float) and not math.isfinite(content):
        raise InputError(f"{where} at {place}: {content} is not a finite number")
    children = dict(enumerate(content)) if isinstance(content, list) else content
    if isinstance(children, dict):
        for key, child in children.items():
            _refuse_infinite(child, where, f"{place}/{key}" if place else str(key))
