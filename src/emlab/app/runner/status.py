"""How the chapters did: one record each, a table, and status.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from emlab.bench import format_table
from emlab.runtime import REFERENCE_PROBE_SECONDS, atomic_path

FAILED, REGRESSED = 1, 4


@dataclass(frozen=True)
class ChapterResult:
    """What became of one chapter.

    Attributes
    ----------
    status
        ``"passed"``; ``"failed"`` (an error, a time-out, no numbers); ``"regressed"`` (it ran, but
        a number broke its bound); ``"not run"`` (there was no time left).
    seconds
        Time from start to end, kernel included; of the earlier run if it was not repeated.
    peak_memory_mb
        What the chapter's report measured; None if there is none.
    checked
        How many comparisons with expected numbers were made.
    problems
        Lines for a reader, the first one says it all.
    fresh
        False if nothing had changed and the earlier run was kept.
    notebook
        The executed notebook; of a failed chapter, the notebook with the error in it.
    """

    slug: str
    profile: str
    status: str
    seconds: float
    peak_memory_mb: float | None = None
    checked: int = 0
    problems: list[str] = field(default_factory=list)
    fresh: bool = True
    notebook: str = ""

    @property
    def passed(self) -> bool:
        """Whether the chapter ran and all its numbers hold."""
        return self.status == "passed"


def format_status(results: Sequence[ChapterResult]) -> str:
    """Return a table of chapters, followed by the problems of those that did not pass."""
    rows = [
        [
            item.slug,
            item.status if item.fresh else f"{item.status} (unchanged)",
            round(item.seconds, 1),
            None if item.peak_memory_mb is None else round(item.peak_memory_mb),
            item.checked,
        ]
        for item in results
    ]
    lines = [format_table(["chapter", "result", "seconds", "peak MB", "numbers checked"], rows)]
    for item in results:
        if not item.passed:
            lines += ["", f"{item.slug} {item.status}:", *(f"  {line}" for line in item.problems)]
            lines += [f"  see {item.notebook}"] if item.notebook else []
    return "\n".join(lines)


def exit_code(results: Sequence[ChapterResult]) -> int:
    """Return 0 if all that ran passed, 1 if a chapter failed, 4 if a number regressed."""
    if any(item.status == "failed" for item in results):
        return FAILED
    return REGRESSED if any(item.status == "regressed" for item in results) else 0


def write_status(out_dir: Path, results: Sequence[ChapterResult], probe: float) -> Path:
    """Write status.json; chapters of the same profile that were not run now keep their entry.

    ``probe_seconds`` is what `emlab.runtime.probe_machine` measured, ``times_reference`` how much
    slower than the reference machine that is.
    """
    path = out_dir / "status.json"
    entries = {
        slug: entry
        for slug, entry in _old_chapters(path).items()
        if isinstance(entry, dict) and entry.get("profile") == results[0].profile
    }
    entries |= {item.slug: asdict(item) for item in results}
    content = {
        "schema": 1,
        "profile": results[0].profile,
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "probe_seconds": round(probe, 4),
        "times_reference": round(probe / REFERENCE_PROBE_SECONDS, 3),
        "chapters": dict(sorted(entries.items())),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def _old_chapters(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["chapters"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
