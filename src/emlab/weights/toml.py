"""Write TOML; the standard library only reads it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from emlab.errors import InputError


def dump_toml(table: Mapping[str, Any]) -> str:
    """Return ``table`` as TOML text: plain values first, then sub-tables.

    Raises
    ------
    InputError
        A value is not text, a finite number, a boolean, a list of those or a table.
    """
    return "\n".join(_lines(table, ())).lstrip("\n") + "\n"


def _lines(table: Mapping[str, Any], place: tuple[str, ...]) -> list[str]:
    lines = [f"\n[{'.'.join(map(_key, place))}]"] if place else []
    tables = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    for key, value in table.items():
        if key not in tables:
            lines.append(f"{_key(key)} = {_value(value, '.'.join((*place, key)))}")
    for key, value in tables.items():
        lines.extend(_lines(value, (*place, key)))
    return lines


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any, place: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(float(value))
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item, place) for item in value) + "]"
    raise InputError(
        f"a card cannot hold {place} = {value!r}; use text, finite numbers, lists, tables"
    )
