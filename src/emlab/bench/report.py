"""Collect the numbers of one run of a chapter and write them to metrics.json."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, SupportsFloat

from emlab.bench.bounds import bounds_of, compare
from emlab.bench.schema import load_expected, validate
from emlab.bench.tables import format_metrics, html_metrics
from emlab.errors import InputError
from emlab.recorded import Recording
from emlab.runtime import (
    Stopwatch,
    atomic_path,
    choose_device,
    environment_stamp,
    peak_memory_mb,
)
from emlab.settings import PROFILES

MEASURED = ("seconds", "peak_memory_mb")
EXPECTED_VARIABLE = "EMLAB_EXPECTED"  # the folder of bounds, where a runner was told another
_SLUG = re.compile(r"[a-z0-9][a-z0-9_-]*")
_NAME = re.compile(r"[a-z0-9_+-]+(\.[a-z0-9_+-]+)*")


class Report:
    """The numbers of one run of one chapter, with the data and the shortcuts behind them.

    Seconds run from construction to `save`; peak memory is that of the process. The last line of a
    cell may be the report itself: notebooks show one line (how many numbers, how many in bounds,
    where they are) and a table that unfolds.

    Parameters
    ----------
    slug
        Name of the chapter, such as ``"04_mtd"``.
    out_dir
        Folder of the runs; numbers go to ``out_dir/slug/metrics.json``.
    device
        The device that the chapter used, as a name or a torch.device; ``"auto"`` is resolved.

    Raises
    ------
    InputError
        The slug or the profile is not one, or the device does not exist.
    """

    def __init__(
        self,
        slug: str,
        out_dir: str | os.PathLike[str],
        profile: str,
        seed: int,
        device: object = "cpu",
    ) -> None:
        if not _SLUG.fullmatch(slug):
            raise InputError(f"slug {slug!r}: use small letters, digits, _ and -, such as 04_mtd")
        if profile not in PROFILES:
            raise InputError(f"unknown profile {profile!r}; use one of {', '.join(PROFILES)}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed must be a whole number of at least 0, not {seed!r}")
        self.slug, self.profile, self.seed = slug, profile, seed
        self.device = str(choose_device("auto") if device == "auto" else device)
        self.path = Path(out_dir).expanduser() / slug / "metrics.json"
        self._values: dict[str, dict[str, Any]] = {}
        self._data: list[dict[str, Any]] = []
        self._recorded: list[dict[str, Any]] = []
        self._shortcuts: list[str] = []
        self._watch = Stopwatch()

    def value(
        self,
        name: str,
        value: SupportsFloat,
        low: SupportsFloat | None = None,
        high: SupportsFloat | None = None,
        unit: str = "",
        note: str = "",
        n: int | None = None,
    ) -> float:
        """Record one number and return it.

        Parameters
        ----------
        name
            Small letters, digits, ``_ + -``, with dots between the parts:
            ``"mnist.snr_1.error.ours"``.
        value, low, high
            The number and the ends of its interval; finite, with low <= value <= high.
        note
            A remark: what the interval is, what was averaged.
        n
            Number of independent measurements behind the value.

        Raises
        ------
        InputError
            A name that is malformed, reserved or already recorded; a number that is not finite; an
            interval that does not hold the value.
        """
        if not _NAME.fullmatch(name):
            raise InputError(f"metric name {name!r}: use small letters, digits, _ + - and dots")
        if name in MEASURED:
            raise InputError(f"{name!r} is measured by the report itself; use another name")
        if name in self._values:
            raise InputError(f"{name!r} is already recorded; give every number its own name")
        number = _finite(name, value)
        ends = [None if end is None else _finite(f"interval of {name}", end) for end in (low, high)]
        if (ends[0] is not None and ends[0] > number) or (ends[1] is not None and ends[1] < number):
            raise InputError(f"{name}: the interval {ends} does not hold the value {number}")
        if n is not None and n < 1:
            raise InputError(f"{name}: n counts measurements, so it is at least 1, not {n}")
        entry = {"value": number, "low": ends[0], "high": ends[1], "n": n}
        self._values[name] = entry | {"unit": unit, "note": note}
        return number

    def data(self, item: Any, wanted: str = "", note: str = "") -> None:
        """Record a data set that the chapter used.

        Parameters
        ----------
        item
            An `emlab.data.Dataset`, or `emlab.data.Digits`.
        wanted
            Name of the data set that the chapter is about. Anything else is marked as a stand-in:
            bounds that name the wanted set are replaced by those of its stand-in.
        """
        if hasattr(item, "record"):
            name, source, sha256 = item.record.name, item.source, item.record.pixel_sha256
        elif hasattr(item, "images") and isinstance(getattr(item, "source", None), str):
            name, source, sha256 = item.source, "split", _hash(item.images)
        else:
            raise InputError(f"data() takes a Dataset or Digits of emlab.data, not {type(item)}")
        missed = "" if name.split(" ")[0] == wanted else wanted
        self._add_data(name, source, sha256, missed, note)

    def simulated(self, name: str, note: str, stands_in_for: str = "") -> None:
        """Record simulated data: how they were made, and the real data set they replace, if any."""
        if not note:
            raise InputError(f"say how {name!r} was simulated")
        self._add_data(name, "simulated", "", stands_in_for, note)

    def absent(self, name: str, note: str) -> None:
        """Record a data set or program that is not here, and what the chapter leaves out for it."""
        self._add_data(f"no {name}", "absent", "", name, note)

    def recorded(self, recording: Recording) -> str:
        """Record that numbers come from an earlier measurement; returns a sentence that says so."""
        if (entry := recording.entry()) not in self._recorded:
            self._recorded.append(entry)
        return str(recording)

    def shortcut(self, text: str) -> str:
        """Record what this profile does less of, beside the full-scale value, and return it."""
        text = text.strip()
        if not text:
            raise InputError(
                "a shortcut is a sentence, such as '200 steps here, 1000 in the paper'"
            )
        if text not in self._shortcuts:
            self._shortcuts.append(text)
        return text

    def metrics(self) -> dict[str, Any]:
        """Return the content of metrics.json as it would be saved now."""
        return {
            "schema": 1,
            "slug": self.slug,
            "profile": self.profile,
            "seed": self.seed,
            "device": self.device,
            "seconds": round(self._watch.seconds, 3),
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "peak_gpu_memory_mb": _peak_gpu_memory_mb(self.device),
            "values": self._values,
            "data": self._data,
            "recorded": self._recorded,
            "shortcuts": self._shortcuts,
            "environment": environment_stamp(),
        }

    def save(self) -> Path:
        """Write metrics.json, whole or not at all, and return its path.

        Raises
        ------
        InputError
            No number was recorded, or the folder cannot be written to.
        """
        if not self._values:
            raise InputError(
                f"{self.slug} recorded no number; call report.value(...) before save()"
            )
        metrics = self.metrics()
        validate(metrics, "metrics", f"report of {self.slug}")
        with atomic_path(self.path) as temporary:
            text = json.dumps(metrics, indent=1, allow_nan=False, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")
        return self.path

    def __str__(self) -> str:
        return format_metrics(self.metrics())

    def _repr_html_(self) -> str:
        return html_metrics(self.metrics(), self.path, self._judged())

    def _judged(self) -> str:
        """Return how many numbers are in bounds, where the bounds are at hand."""
        metrics = self.metrics()
        limits = next((file for file in self._bounds_files() if file.is_file()), None)
        if limits is None:
            return "no bounds at hand to compare them with"
        expected = load_expected(limits)
        outcomes: dict[str, bool] = {}
        for outcome in compare(metrics, expected):
            outcomes[outcome.name] = outcomes.get(outcome.name, True) and outcome.ok
        judged = bounds_of(metrics, expected)
        good = sum(outcomes[name] for name in judged)
        left = len(expected["bounds"]) - len(judged)
        return f"{good} of {len(judged)} with bounds are in bounds" + (
            f", {left} are not judged because data stood in" if left else ""
        )

    def _bounds_files(self) -> Iterator[Path]:
        named = os.environ.get(EXPECTED_VARIABLE)
        places = [Path(named)] if named else [p / "tests/expected" for p in Path.cwd().parents]
        return (place / self.profile / f"{self.slug}.json" for place in places)

    def _add_data(self, name: str, source: str, sha256: str, stands_in_for: str, note: str) -> None:
        entry: dict[str, Any] = {"name": name, "source": source, "sha256": sha256, "note": note}
        entry |= {"simulated": source == "simulated", "stand_in": bool(stands_in_for)}
        entry |= {"stands_in_for": stands_in_for}
        if entry not in self._data:
            self._data.append(entry)


def _finite(name: str, value: SupportsFloat) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as problem:
        raise InputError(f"{name}: {value!r} is not a number") from problem
    if not math.isfinite(number):
        raise InputError(f"{name} is {number}; a report holds finite numbers only")
    return number


def _hash(images: Any) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()


def _peak_gpu_memory_mb(device: str) -> float | None:
    torch = sys.modules.get("torch")
    if not device.startswith("cuda") or torch is None:
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
