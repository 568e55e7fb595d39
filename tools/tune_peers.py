"""Choose the settings of the classical peers on validation images and write them down.

``python -m tools.tune_peers`` takes about ten minutes on one core and needs the data mirror.
"""

from __future__ import annotations

from pathlib import Path

from emlab.methods import generalist_peers
from emlab.runtime import atomic_path
from emlab.weights.toml import dump_toml

TARGET = Path(generalist_peers.__file__).parent / "profiles" / "generalist_peers.toml"
HEAD = """\
# Settings of the classical peers by task, the best of the grids in methods/generalist_peers.py on
# 12 validation crops (isotropic tasks: one validation block). Written by tools/tune_peers.py.

"""


def main() -> None:
    """Run the whole search."""
    table = generalist_peers.tune(progress=print)
    with atomic_path(TARGET) as path:
        path.write_text(HEAD + dump_toml(table), encoding="utf-8")


if __name__ == "__main__":
    main()
