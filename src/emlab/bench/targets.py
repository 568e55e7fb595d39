"""What was asked for beside what a run reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emlab.bench.study import pipe_table

Values = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Target:
    """One number that was asked for.

    Attributes
    ----------
    label : str
        For readers.
    name : str
        The recorded number.
    least, most : float
        What was asked; an end that was not is infinite.
    aim : float, optional
        What was hoped for.
    unit : str
    minus : str
        A recorded number that is subtracted first.
    """

    label: str
    name: str
    least: float = -math.inf
    most: float = math.inf
    aim: float | None = None
    unit: str = ""
    minus: str = ""

    def reached(self, values: Values) -> float | None:
        """The number of a run, or None where it was not measured."""
        names = [self.name, self.minus] if self.minus else [self.name]
        if any(name not in values for name in names):
            return None
        first, *rest = (float(values[name]["value"]) for name in names)
        return first - sum(rest)

    def shortfall(self, values: Values) -> float | None:
        """By how much a run misses what was asked; 0 where it does not."""
        found = self.reached(values)
        return None if found is None else max(self.least - found, found - self.most, 0.0)


def format_targets(targets: Sequence[Target], values: Values) -> str:
    """Markdown table: asked, hoped for, reached and missing, from the values of a metrics.json."""
    rows = []
    for target in targets:
        found, missing = target.reached(values), target.shortfall(values)
        cells = [
            f"{target.label} [{target.unit}]" if target.unit else target.label,
            _asked(target),
            "" if target.aim is None else f"{target.aim:g}",
            "-" if found is None else f"{found:.3g}",
            "-" if missing is None else f"{missing:.2g}" if missing else "",
        ]
        rows.append(cells)
    return pipe_table(["target", "asked", "aim", "reached", "short by"], rows)


def targets_met(targets: Sequence[Target], values: Values) -> tuple[int, int]:
    """How many targets a run reached, and how many it measured."""
    missing = [target.shortfall(values) for target in targets]
    measured = [one for one in missing if one is not None]
    return measured.count(0.0), len(measured)


def _asked(target: Target) -> str:
    if math.isinf(target.least):
        return f"at most {target.most:g}"
    if math.isinf(target.most):
        return f"at least {target.least:g}" if target.least else "above 0"
    return f"{target.least:g} to {target.most:g}"
