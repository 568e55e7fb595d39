"""Find the notebook that a user means."""

from __future__ import annotations

import os
from pathlib import Path

from emlab.chapters import shipped
from emlab.errors import InputError

PathLike = str | os.PathLike[str]


def notebooks_folder(folder: PathLike | None = None) -> Path:
    """Return the chapters' folder: the one given, ./notebooks (here or above), or the package's.

    Raises
    ------
    InputError
        There is no such folder.
    """
    if folder is not None:
        if not Path(folder).is_dir():
            raise InputError(f"{folder} is not a folder; give the one that holds the notebooks")
        return Path(folder).resolve()
    here = Path.cwd()
    for place in (here, *here.parents):
        if any((place / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            return (place / "notebooks").resolve()
    for chapter in shipped():
        return chapter.parent
    raise InputError(
        "no notebooks/ folder here or above; make one with `emlab notebooks copy notebooks`"
    )


def chapters(folder: PathLike | None = None) -> list[Path]:
    """Return all chapters (``NN_name.ipynb``) in reading order."""
    return sorted(notebooks_folder(folder).glob("[0-9][0-9]_*.ipynb"))


def chapter_path(name: PathLike, folder: PathLike | None = None) -> Path:
    """Return the notebook for a path, a slug (``04_mtd``) or the start of one (``04``).

    Raises
    ------
    InputError
        No chapter, or more than one, fits; the message lists the chapters.
    """
    text = os.fspath(name)
    if text.endswith(".ipynb"):
        if not Path(text).is_file():
            raise InputError(f"there is no notebook {text}")
        return Path(text).resolve()
    known = chapters(folder)
    exact = [path for path in known if path.stem == text]
    fitting = exact or [path for path in known if text and path.stem.startswith(text)]
    if len(fitting) != 1:
        problem = "several chapters start with" if fitting else "no chapter is called"
        slugs = ", ".join(path.stem for path in known)
        raise InputError(f"{problem} {text!r}; there are: {slugs}")
    return fitting[0]
