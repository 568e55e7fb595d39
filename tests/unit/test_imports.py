"""Importing emlab is quick: what takes long to import waits until it is called."""

import subprocess
import sys

from tools import layers

METHODS = ("generalist", "tsm", "flowdps", "mtd", "cellpose3")
# What takes a tenth of a second or more each. scipy and skimage themselves load their parts when
# they are used; torch is what the priors are made of, and is counted apart by `make bench`.
HEAVY = ("scipy.", "skimage.", "matplotlib", "PIL", "mrcfile", "tifffile", "jsonschema", "zarr")
HEAVY += ("h5py", "dask", "distributed", "gemmi", "bm3d", "pywt", "pandas", "IPython")
LIGHT = ("scipy.version", "scipy.__config__")
SCRIPT = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    import_module(name)
print(*sys.modules, sep="\\n")
"""


def loaded(*modules: str) -> set[str]:
    """Modules of a fresh interpreter after these were imported."""
    command = [sys.executable, "-c", SCRIPT, *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_and_its_command_line_leave_torch_and_numpy_alone() -> None:
    found = loaded("emlab", "emlab.app.cli", "emlab.errors", "emlab.runtime")
    assert "emlab.runtime" in found
    assert {"torch", "numpy", "scipy", "skimage"} & found == set()


def test_layers_and_methods_load_no_heavy_library() -> None:
    modules = [f"emlab.{unit}" for unit in layers.HEIGHT]
    found = loaded(*modules, *(f"emlab.methods.{name}" for name in METHODS))
    assert set(modules) <= found
    heavy = [
        name
        for name in sorted(found)
        if name.startswith(HEAVY) and not name.startswith(("scipy._", "skimage._", *LIGHT))
    ]
    assert heavy == []
