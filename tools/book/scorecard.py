"""The scorecard: what papers report, beside what the chapters measured, with a verdict by rule."""

from __future__ import annotations

import operator
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """

    id: str
    chapter: str
    claim: str
    here: str
    conditions: tuple[str, ...]


def read(path: Path) -> list[Row]:
    """Read the rows of a scorecard file; a condition that is not ``a < b`` is a ValueError."""
    rows = tomllib.loads(path.read_text(encoding="utf-8"))["row"]
    parsed = [Row(**{**row, "conditions": tuple(row["conditions"])}) for row in rows]
    for row in parsed:
        for condition in row.conditions:
            _split(condition)
    return parsed


def verdict(row: Row, values: Mapping[str, Mapping[str, Any]]) -> str:
    """Return holds, holds in part, does not hold or not measured.

    Parameters
    ----------
    row
        The claim.
    values
        Table ``values`` of the chapter's metrics.json.
    """
    results = [_holds(condition, values) for condition in row.conditions]
    if not results or any(result is None for result in results):
        return "not measured"
    if all(results):
        return "holds"
    return "holds in part" if any(results) else "does not hold"


def explain(row: Row, values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return every condition with its numbers, such as ``0.42 < 0.78``, and whether it is met."""
    marks = {True: "met", False: "not met", None: "not measured"}
    return [
        f"`{condition}`: {_numbers(condition, values)} — {marks[_holds(condition, values)]}"
        for condition in row.conditions
    ]


def _numbers(condition: str, values: Mapping[str, Mapping[str, Any]]) -> str:
    left, symbol, right = _split(condition)
    found = [_number(token, values) for token in (left, right)]
    texts = ["?" if number is None else f"{number:.3g}" for number in found]
    return f"{texts[0]} {symbol} {texts[1]}"


def _holds(condition: str, values: Mapping[str, Mapping[str, Any]]) -> bool | None:
    left, symbol, right = _split(condition)
    a, b = _number(left, values), _number(right, values)
    return None if a is None or b is None else bool(_COMPARE[symbol](a, b))


def _number(token: str, values: Mapping[str, Mapping[str, Any]]) -> float | None:
    try:
        return float(token)
    except ValueError:
        name, _, end = token.partition(":")
        entry = values.get(name, {})
        return entry.get(end or "value")


def _split(condition: str) -> tuple[str, str, str]:
    match = _CONDITION.fullmatch(condition.strip())
    if not match:
        raise ValueError(f"{condition!r} is not a comparison such as 'a < b'")
    return match[1], match[2], match[3]
