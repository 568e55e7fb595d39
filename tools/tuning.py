"""What tools that choose the settings of peers share: a grid, the best of it, and the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import tomli_w

from emlab.runtime import atomic_path

Settings = dict[str, Any]
Grids = Mapping[str, Sequence[Settings]]


def grid(**choices: Iterable[Any]) -> list[Settings]:
    """Every combination of the choices of each setting."""
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


def tune(
    grids: Grids, quality: Callable[[str, Settings], float], told_as: str = "", digits: int = 3
) -> dict[str, Settings]:
    """The settings of each peer with the highest quality on validation data.

    Parameters
    ----------
    quality : callable
        ``quality(peer, settings)``; of equal ones the first is kept.
    told_as : str
        Key under which the quality reached is kept beside the settings; default: it is not.
    """
    best = {}
    for peer, settings in grids.items():
        reached = [quality(peer, one) for one in settings]
        top = max(range(len(reached)), key=reached.__getitem__)
        best[peer] = settings[top] | ({told_as: round(reached[top], digits)} if told_as else {})
        print(f"{peer} {settings[top]}: {reached[top]:.{digits}f}", flush=True)
    return best


def write(target: Path, head: str, table: Mapping[str, Any]) -> None:
    """Put a table into a TOML file below a comment, at once or not at all."""
    with atomic_path(target) as path:
        path.write_text(f"{head}\n{tomli_w.dumps(table)}", encoding="utf-8")
