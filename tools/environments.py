"""Wheels of this tree, and environments that see the pinned packages but not this clone's emlab."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINNED = Path(sysconfig.get_paths()["purelib"])


def copy_tree(folder: Path) -> Path:
    """Copy what git knows of this tree, new files too, into a folder; builds leave no trace here.

    Parameters
    ----------
    folder
        Is created; links stay links.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return folder


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this tree without network; returns its path in the folder."""
    source = copy_tree(folder / "source")
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_environment(folder: Path, sees: Path = PINNED) -> Path:
    """Make a virtual environment without pip; returns its interpreter.

    Parameters
    ----------
    folder
        Where the environment goes.
    sees
        Folder of packages that can be imported in it, after its own. Links to editable installs in
        that folder are not followed, so this clone's emlab is out of sight.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    (packages / "seen.pth").write_text(f"{sees}\n")
    return folder / "bin" / "python"


def install(python: Path, *requirements: str) -> None:
    """Install into an environment, from files only and without dependencies."""
    pip("--python", str(python), "install", "--no-deps", "--no-index", *requirements)


def plain_environment(**variables: str) -> dict[str, str]:
    """Return this process's variables without those that point Python or Jupyter elsewhere."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "JUPYTER_PATH", "MPLBACKEND")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, **variables}


def pip(*arguments: str) -> None:
    """Run pip of this interpreter quietly; its output is the message if it fails."""
    command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments]
    done = subprocess.run(
        command, env=plain_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"pip {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
