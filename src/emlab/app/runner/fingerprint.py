"""Tell whether anything that a chapter's numbers depend on has changed since its last run."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from emlab import data
from emlab.app.runner.reach import PACKAGE, reached
from emlab.chapters import published

LIBRARIES = ("torch", "numpy", "scipy", "scikit-image", "matplotlib")


def fingerprint(notebook: Path, parameters: Mapping[str, Any]) -> str:
    """Return a hash of the notebook, the code it reaches, its weights, parameters and data.

    Data sets enter by name, and whether and where they are: their bytes are fixed by the registry,
    and checked when they are loaded.
    """
    state = {
        "code": code_hash(notebook),
        "weights": _hash_folder(Path(os.environ.get("EMLAB_WEIGHTS") or os.devnull)),
        "parameters": {name: parameters[name] for name in sorted(parameters)},
        "libraries": [platform.python_version(), *map(_version, LIBRARIES)],
        "mirror": os.environ.get("EMLAB_MIRROR", ""),
        "data": {name: data.available(name) for name in sorted(data.records())},
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def code_hash(notebook: Path) -> str:
    """Return a hash of a notebook and of all that it reaches in the package."""
    digest = hashlib.sha256(notebook.read_bytes())
    for file in reached(notebook):
        digest.update(f"{file.relative_to(PACKAGE).as_posix()}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def changed(notebook: Path, profile: str) -> bool:
    """Return whether a chapter differs from the one whose numbers were last published."""
    return code_hash(notebook) != published(notebook.stem, profile).get("code")


def _hash_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
