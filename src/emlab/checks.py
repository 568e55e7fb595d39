"""Settings have values of the kind that their annotations promise; one sentence says which not."""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from emlab.errors import InputError

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    NoneType: "none",
}


def check_fields(settings: Any) -> None:
    """Refuse values of the wrong kind in a dataclass of settings; called first in __post_init__.

    Whole numbers are never booleans or floats, numbers are finite, text and choices are text,
    lists may stand for tuples, and settings inside settings are of their class. What is left to
    the caller is whether a value makes sense.

    Raises
    ------
    InputError
        Names the setting, what it takes and what was given.
    """
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if not _fits(value, kind):
            raise InputError(
                f"{type(settings).__name__}: {name} must be {_words(kind)}, got "
                f"{reprlib.repr(value).splitlines()[0]}"
            )


def _fits(value: Any, kind: Any) -> bool:
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inside)
    if origin is tuple:
        return _fits_tuple(value, inside)
    if origin is not None:
        return not isinstance(origin, type) or isinstance(value, origin)
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    if kind is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if kind is float:
        return _is_finite_number(value)
    return not isinstance(kind, type) or isinstance(value, kind)


def _fits_tuple(value: Any, inside: tuple[Any, ...]) -> bool:
    if not isinstance(value, tuple | list):
        return False
    kinds = (inside[0],) * len(value) if inside[1:] == (...,) else inside
    return len(value) == len(kinds) and all(map(_fits, value, kinds))


def _is_finite_number(value: Any) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number above the largest float
        return False


def _words(kind: Any) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in inside)
    if origin is Literal:
        return " or ".join(map(repr, inside))
    if origin is tuple:
        count = "several" if inside[1:] == (...,) else str(len(inside))
        return f"{count} times {_words(inside[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return "a table"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))
