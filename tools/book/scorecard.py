"""The scorecard: what papers report, beside what the chapters measured, with a verdict by rule."""

from __future__ import annotations

import operator
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.book.markdown import number

_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_CONDITION = re.compile(r"(\S+)\s+(<=|>=|<|>)\s+(\S+)")


@dataclass(frozen=True)
class Row:
    """One claim.

    Attributes
    ----------
    id
        Row of the list of claims, such as ``"M1"``.
    chapter
        Slug of the chapter that tests it.
    claim
        What the paper reports; quoted, not measured here.
    here
        How it is tested here, and at which scale.
    conditions
        What has to be true of the chapter's numbers: ``"a < b"``, with names of metrics, an end of
        a metric's interval (``name:low``, ``name:high``) or plain numbers.
    why
        Why what is measured differs from what is reported; ``{name}`` is a recorded number.
    figure
        Cell of the chapter that shows it.
    untestable
        Why the claim cannot be tested here, where nothing was measured; empty where it can.
    """

    id: str
    chapter: str
    claim: str
    here: str
    conditions: tuple[str, ...]
    why: str = ""
    figure: str = ""
    untestable: str = ""


def read(path: Path, notes: Path | None = None) -> list[Row]:
    """Read the rows of a scorecard file, and what a file of notes says of them.

    A condition that is not ``a < b`` is a ValueError.
    """
    rows = tomllib.loads(path.read_text(encoding="utf-8"))["row"]
    said = tomllib.loads(notes.read_text(encoding="utf-8")) if notes else {}
    parsed = [
        Row(**{**row, "conditions": tuple(row["conditions"]), **said.get(row["id"], {})})
        for row in rows
    ]
    for row in parsed:
        for condition in row.conditions:
            _split(condition)
    return parsed


def verdict(row: Row, values: Mapping[str, Mapping[str, Any]]) -> str:
    """Return holds, holds in part, does not hold, cannot be tested here or not measured.

    Parameters
    ----------
    row
        The claim.
    values
        Table ``values`` of the chapter's metrics.json.
    """
    results = [_holds(condition, values) for condition in row.conditions]
    if not results or any(result is None for result in results):
        return "cannot be tested here" if row.untestable else "not measured"
    if all(results):
        return "holds"
    return "holds in part" if any(results) else "does not hold"


def explain(row: Row, values: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return for every condition what was asked, what was measured, and whether it is met."""
    marks = {True: "met", False: "not met", None: "not measured"}
    return [
        (condition, _measured(condition, values), marks[_holds(condition, values)])
        for condition in row.conditions
    ]


def _measured(condition: str, values: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the recorded numbers of a condition with intervals and units, such as ``1.2 dB``."""
    left, _, right = _split(condition)
    names = [token.partition(":")[0] for token in (left, right)]
    entries = [values.get(name) for name in names if not _is_number(name)]
    return " and ".join(with_unit(entry) if entry else "?" for entry in entries)


def with_unit(entry: Mapping[str, Any]) -> str:
    """Return a recorded number with its interval and its unit."""
    return f"{number(entry)} {entry.get('unit') or ''}".strip()


def _holds(condition: str, values: Mapping[str, Mapping[str, Any]]) -> bool | None:
    left, symbol, right = _split(condition)
    a, b = _number(left, values), _number(right, values)
    return None if a is None or b is None else bool(_COMPARE[symbol](a, b))


def _number(token: str, values: Mapping[str, Mapping[str, Any]]) -> float | None:
    if _is_number(token):
        return float(token)
    name, _, end = token.partition(":")
    return values.get(name, {}).get(end or "value")


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def _split(condition: str) -> tuple[str, str, str]:
    match = _CONDITION.fullmatch(condition.strip())
    if not match:
        raise ValueError(f"{condition!r} is not a comparison such as 'a < b'")
    return match[1], match[2], match[3]
