"""Choose the settings of the classical peers on validation images and write them down.

``python -m tools.tune_peers`` takes about ten minutes on one core and needs the data mirror; with
names of tasks it repeats these and leaves the rest as it is.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import tomli_w

from emlab.chapters.em_generalist import peers as generalist_peers
from emlab.runtime import atomic_path

TARGET = Path(generalist_peers.__file__).with_name("peers.toml")
HEAD = """\
# Settings of the classical peers by task, the best of the grids in methods/generalist_peers.py on
# 12 validation crops (isotropic tasks: one validation block). Written by tools/tune_peers.py.

"""


def main() -> None:
    """Run the search, or a part of it."""
    names = sys.argv[1:] or generalist_peers.TUNED
    table = tomllib.loads(TARGET.read_text(encoding="utf-8")) if TARGET.exists() else {}
    table |= generalist_peers.tune(names, progress=print)
    with atomic_path(TARGET) as path:
        path.write_text(HEAD + tomli_w.dumps(table), encoding="utf-8")


if __name__ == "__main__":
    main()
