"""Choose the settings of phase retrieval's peers on validation poses and write them down.

``python -m tools.tune_phase_peers`` takes some minutes on one core and needs the data mirror.
"""

from __future__ import annotations

from pathlib import Path

from emlab.methods import flowdps_peers
from emlab.runtime import atomic_path
from emlab.weights.toml import dump_toml

TARGET = Path(flowdps_peers.__file__).parent / "profiles" / "flowdps_peers.toml"
HEAD = """\
# Settings of the classical peers of FlowDPS: the best of the grids in methods/flowdps_peers.py on
# 24 validation poses, dose 30 to 60, defocus of real particles. By tools/tune_phase_peers.py.

"""


def main() -> None:
    """Run the search."""
    table = {"peers": flowdps_peers.tune(progress=print)}
    with atomic_path(TARGET) as path:
        path.write_text(HEAD + dump_toml(table), encoding="utf-8")


if __name__ == "__main__":
    main()
