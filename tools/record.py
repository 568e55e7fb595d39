"""``python -m tools.record [CHAPTER [NAME ...]]``: measure what chapters show as recorded.

What a method reads of it is written into settings of the method, too: `MEASURED`.

Without names: only what is stale or was never measured; with ``--list`` nothing is measured.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import emlab.chapters
from emlab.recorded import Recording
from emlab.runtime import atomic_path, choose_threads

# Settings of methods that chapters measured: the values of these recordings.
MEASURED = {"methods/flowdps_measured": ("03_flowdps", ("misfit", "spread", "warning"))}


def recordings() -> Iterator[Recording]:
    """Yield every recording that a module of a chapter defines, by chapter and name."""
    found: dict[tuple[str, str], Recording] = {}
    for module in pkgutil.walk_packages(emlab.chapters.__path__, "emlab.chapters."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Recording):
                found[value.chapter, value.name] = value
    yield from (found[key] for key in sorted(found))


def settings_file(place: str) -> Path:
    """Where settings of `MEASURED` lie in the package."""
    return Path(emlab.chapters.__file__).parents[1] / f"{place}.toml"


def measured(place: str) -> str:
    """Settings that a method reads, as TOML: a table for each recording, with its values."""
    chapter, names = MEASURED[place]
    text = f"# Written by `python -m tools.record {chapter}`: what it measured for the method.\n"
    for recording in recordings():
        if recording.chapter == chapter and recording.name in names:
            lines = (f"{key} = {_inline(value)}\n" for key, value in recording.values.items())
            text += f"\n[{recording.name}]\n" + "".join(lines)
    return text


def _inline(value: Any) -> str:
    """A value of TOML on one line: numbers, texts and lists look as in JSON."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_inline(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if all that was asked for was measured or is up to date, 1 if some is stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chapter", nargs="?", default="", help="slug or its start")
    parser.add_argument("names", nargs="*", help="recordings; default: those that are stale")
    parser.add_argument("--list", action="store_true", help="say what is stale, measure nothing")
    options = parser.parse_args(arguments)
    chosen = [r for r in recordings() if r.chapter.startswith(options.chapter)]
    chosen = [r for r in chosen if not options.names or r.name in options.names]
    if options.names and len(chosen) != len(options.names):
        print(f"no such recording; there are: {', '.join(r.name for r in recordings())}")
        return 2
    choose_threads()
    stale = [r for r in chosen if options.names or not r.path.is_file() or r.stale]
    for recording in stale:
        print(f"{recording.chapter} {recording.name}: stale or asked for", flush=True)
        if not options.list:
            print(f"  {recording.record()}", flush=True)
            for place, (chapter, names) in MEASURED.items():
                if recording.chapter == chapter and recording.name in names:
                    with atomic_path(settings_file(place)) as temporary:
                        temporary.write_text(measured(place), encoding="utf-8")
    print(f"{len(chosen)} recordings, {len(stale)} {'stale' if options.list else 'measured'}")
    return 1 if options.list and stale else 0


if __name__ == "__main__":
    sys.exit(main())
