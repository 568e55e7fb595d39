"""Times in turn, what a fresh process says, and the row that they become.

Times are seconds of the processor on one thread, not of the clock: another job on the machine then
changes them little.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from emlab.runtime import Stopwatch

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    name : str
        For ``--only`` and for pages that use the number.
    what : str
        The ratio in words.
    ratio : float or None
        None where it could not be measured; `note` then says why.
    bound : str
        ``"<= 4"`` or ``">= 0.9"``; empty where there is none.
    note : str
        What stands behind the ratio.
    facts : dict of str to float
        Numbers with their units in their names.
    """

    name: str
    what: str
    ratio: float | None
    bound: str = ""
    note: str = ""
    facts: Mapping[str, float] | None = None

    @property
    def kept(self) -> bool | None:
        """Whether the bound holds; None without a bound or a ratio."""
        if not self.bound or self.ratio is None:
            return None
        relation, limit = self.bound.split()
        return self.ratio <= float(limit) if relation == "<=" else self.ratio >= float(limit)


def in_turn(tasks: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median processor seconds of tasks that take turns, so that all meet the same load.

    The first turn warms up and does not count; at least three others do.
    """
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    with Stopwatch() as total:
        turn = 0
        while turn < 4 or total.seconds < seconds:
            for name, task in tasks.items():
                before = time.process_time()
                task()
                if turn:
                    taken[name].append(time.process_time() - before)
            turn += 1
    return {name: statistics.median(found) for name, found in taken.items()}


def in_fresh_process(module: str, *arguments: str) -> dict[str, float]:
    """What ``python -m MODULE ARGUMENTS`` prints as JSON in its last line."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
