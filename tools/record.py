"""``python -m tools.record [CHAPTER [NAME ...]]``: measure what chapters show as recorded.

Without names: only what is stale or was never measured; with ``--list`` nothing is measured.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Iterator

import emlab.chapters
from emlab.recorded import Recording
from emlab.runtime import choose_threads


def recordings() -> Iterator[Recording]:
    """Yield every recording that a module of a chapter defines, by chapter and name."""
    found: dict[tuple[str, str], Recording] = {}
    for module in pkgutil.walk_packages(emlab.chapters.__path__, "emlab.chapters."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Recording):
                found[value.chapter, value.name] = value
    yield from (found[key] for key in sorted(found))


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
    print(f"{len(chosen)} recordings, {len(stale)} {'stale' if options.list else 'measured'}")
    return 1 if options.list and stale else 0


if __name__ == "__main__":
    sys.exit(main())
