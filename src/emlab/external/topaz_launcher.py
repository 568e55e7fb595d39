"""Start Topaz's command line in this process: ``python -P topaz_launcher.py extract ...``.

Topaz imports torchvision for what it does in training only, and finds its weights beside a module
as Python 3.12 does it; both are supplied here. This file is the whole program of a process of its
own; emlab never imports it.
"""

import importlib.resources
import importlib.util
import runpy
import sys
import types

_files = importlib.resources.files


def files(anchor):
    """``importlib.resources.files``, where a module that is no package means its package."""
    spec = importlib.util.find_spec(anchor) if isinstance(anchor, str) else None
    if spec is not None and spec.submodule_search_locations is None:
        anchor = anchor.rpartition(".")[0]
    return _files(anchor)


if __name__ == "__main__":
    if sys.version_info < (3, 12):
        importlib.resources.files = files
    if importlib.util.find_spec("torchvision") is None:
        names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
        for name in names:
            sys.modules[name] = types.ModuleType(name)
        sys.modules[names[-1]].rotate = None  # type: ignore[attr-defined]
    sys.argv[0] = "topaz"
    runpy.run_module("topaz.main", run_name="__main__")
