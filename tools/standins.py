"""``python -m tools.standins _build/runs/cpu``: refuse numbers that come from stand-ins.

What is published has to be measured on the real data.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def stand_ins(runs: Path) -> list[str]:
    """Return a line for each data set that a run below a folder replaced by another.

    Raises
    ------
    FileNotFoundError
        The folder holds no run.
    """
    files = sorted(runs.glob("*/metrics.json"))
    if not files:
        raise FileNotFoundError(f"{runs} holds no run; say `make book` first")
    return [
        f"{file.parent.name}: {entry['name']} stands in for {entry['stands_in_for']}"
        for file in files
        for entry in json.loads(file.read_text(encoding="utf-8"))["data"]
        if entry["stand_in"] and entry["source"] != "absent"  # left out: it gave no number
    ]


def main(arguments: list[str] | None = None) -> int:
    """Name the stand-ins; returns 1 if there are any, 2 if nothing was run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of the runs of one profile")
    try:
        found = stand_ins(parser.parse_args(arguments).runs)
    except FileNotFoundError as problem:
        print(problem, file=sys.stderr)
        return 2
    print("\n".join(found) or "all numbers come from real data, or from data simulated on purpose")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
