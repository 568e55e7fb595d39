"""Measurements that take longer than a chapter may: made once by a tool, kept, marked and guarded.

A module of a chapter says what is measured::

    SCHEDULES = Recording(
        "04_mtd", "schedules", measure=_measure_schedules,
        settings={"targets": 20, "iterations": 60}, weights=("mtd_mnist_vp",),
    )

``python -m tools.record 04_mtd schedules`` runs it and writes
``recorded/04_mtd/schedules.json``; the chapter shows ``SCHEDULES.values`` and tells the report,
``report.recorded(SCHEDULES)``. What was measured carries a fingerprint of the code that measured
it, of its settings and of its weights. When one of them changes, the recording is *stale*: the unit
tests fail, and so do the bounds of a chapter that shows it.
"""

from __future__ import annotations

import json
import linecache
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emlab.errors import InputError
from emlab.recorded.code import code_hash, fingerprint
from emlab.runtime import Stopwatch, atomic_path, environment_stamp

FOLDER = Path(__file__).parent

__all__ = ["Recording", "fingerprint", "pack", "unpack"]


@dataclass(frozen=True)
class Recording:
    """One measurement that is made by a tool and shown by a chapter.

    Attributes
    ----------
    chapter, name
        Slug of the chapter, and a name that is unique in it.
    measure
        ``measure(settings)`` returns what JSON can hold, or arrays: tables of numbers by name. A
        function at the top of a module; all it needs beside code and weights comes from `settings`.
    settings
        What JSON can hold: sizes, seeds, names of data sets.
    weights
        Names of the shipped networks that it runs.
    """

    chapter: str
    name: str
    measure: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where the numbers are kept."""
        return FOLDER / self.chapter / f"{self.name}.json"

    @property
    def again(self) -> str:
        """The command that measures again."""
        return f"python -m tools.record {self.chapter} {self.name}"

    @cached_property
    def _content(self) -> Mapping[str, Any]:
        if not self.path.is_file():
            raise InputError(f"{self.chapter} {self.name} was never recorded; run `{self.again}`")
        return json.loads(self.path.read_text(encoding="utf-8"))

    @property
    def values(self) -> Mapping[str, Any]:
        """What `measure` returned; an `InputError` where it was never run."""
        return self._content["values"]

    @property
    def stale(self) -> bool:
        """Whether code, settings or weights have changed since."""
        if self._content["fingerprint"] == fingerprint(self):
            return False
        # What Python remembers of sources can be wrong in a long-lived kernel: read them again.
        linecache.clearcache()
        code_hash.cache_clear()
        return self._content["fingerprint"] != fingerprint(self)

    def entry(self) -> dict[str, Any]:
        """Return what metrics.json says of the recording."""
        kept = {key: self._content[key] for key in ("date", "machine", "fingerprint")}
        return {"name": self.name, **kept, "stale": self.stale, "again": self.again}

    def __str__(self) -> str:
        entry = self.entry()
        state = "STALE: what measured it has changed since" if entry["stale"] else "fingerprint"
        return (
            f"Recorded {entry['date']} in {self._content['seconds']:.0f} s on {entry['machine']}, "
            f"not run here ({state} {entry['fingerprint'][:8]}; again: `{self.again}`)."
        )

    def record(self) -> Path:
        """Measure, and keep the numbers with their circumstances; returns the file.

        Raises
        ------
        InputError
            The measurement returned something that JSON cannot hold.
        """
        before = fingerprint(self)
        with Stopwatch() as watch:
            values = self.measure(self.settings)
        stamp = environment_stamp()
        content = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{stamp['gpu'] or stamp['cpu']}, {stamp['threads']} threads",
            "seconds": round(watch.seconds, 1),
            "commit": stamp["commit"],
            "fingerprint": before,
            "settings": self.settings,
            "weights": list(self.weights),
            "values": _rounded(values),
        }
        try:
            text = json.dumps(content, allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError) as problem:
            raise InputError(
                f"{self.name} measured something that JSON cannot hold ({problem}); return plain "
                f"finite numbers, text, lists and tables"
            ) from problem
        with atomic_path(self.path) as temporary:
            temporary.write_text(text.replace('], "', '],\n"') + "\n", encoding="utf-8")
        self.__dict__.pop("_content", None)
        return self.path


def pack(image: NDArray[np.floating]) -> str:
    """An image as text, its values rounded to whole numbers 0 to 255."""
    grey = np.asarray(image).clip(0, 255).round().astype(np.uint8)
    return b64encode(zlib.compress(grey.tobytes(), 9)).decode()


def unpack(text: str, *shape: int) -> NDArray[np.float32]:
    """The image that `pack` wrote."""
    return np.frombuffer(zlib.decompress(b64decode(text)), np.uint8).reshape(shape).astype("f4")


def _rounded(values: Any) -> Any:
    """Return numbers with six significant digits: more are noise, and a diff is read by people."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, Mapping):
        return {str(key): _rounded(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_rounded(value) for value in values]
    return float(f"{values:.6g}") if isinstance(values, float) else values
