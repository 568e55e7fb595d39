"""Run chapters as Colab would: its torch and NumPy, all else by the first cell: ``make colab``.

The release that the first cell asks for may not be published yet, or be older than this tree: git
is told to take it from a copy of this tree with that tag. Everything else is fetched as on Colab.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from packaging.requirements import Requirement

from tools.environments import ROOT, copy_tree, make_environment, plain_environment
from tools.release import NAME, REPOSITORY, TAG

# What Colab has before the first cell, as far as a chapter may count on it.
SHIPPED = ("torch", "numpy", "matplotlib", "ipywidgets", "ipykernel", "pip", "setuptools")
KEPT = ("torch", "numpy")


def closure(names: Iterable[str]) -> set[str]:
    """Return distributions and all that they need, as installed beside this interpreter."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        needed = map(Requirement, importlib.metadata.requires(name) or [])
        waiting += [r.name for r in needed if not r.marker or r.marker.evaluate({"extra": ""})]
    return found


def link(names: Iterable[str], folder: Path) -> Path:
    """Make a folder of links to what distributions installed: packages, modules, metadata."""
    folder.mkdir(parents=True)
    for name in names:
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}
        for top in tops:
            if not top.endswith(".pth") and not (folder / top).is_symlink():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


def published_copy(folder: Path, tag: str = TAG) -> dict[str, str]:
    """Copy this tree into a repository that has the release's tag, or another one.

    Returns
    -------
    dict
        Variables under which git takes the published repository from there.
    """
    copy_tree(folder)
    who = ["-c", "user.name=emlab", "-c", "user.email=emlab", "-c", "core.compression=0"]
    for words in (
        ["init", "-q"],
        ["add", "-A", "-f"],
        [*who, "commit", "-q", "-m", "this tree"],
        ["tag", tag],
    ):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{folder.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": REPOSITORY,
    }


class Colab:
    """A folder in which every chapter gets an environment of its own.

    Parameters
    ----------
    folder
        Must be empty.
    tag
        The tag that the published repository has.
    offline
        Let environments see everything that this interpreter sees, except emlab, and forbid pip
        the network: tells less, but needs none.
    """

    def __init__(self, folder: Path, offline: bool = False, tag: str = TAG) -> None:
        self.folder, self.offline = folder, offline
        self.variables = published_copy(folder / "repository", tag)
        names = {d.name for d in importlib.metadata.distributions()} - {NAME}
        self.seen = link(names if offline else closure(SHIPPED), folder / "shipped")
        if offline:
            self.variables |= {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}

    def environment(self, slug: str) -> Path:
        """Make the environment of a chapter and a kernel in it; returns its interpreter."""
        python = make_environment(self.folder / slug / "environment", self.seen)
        kernel = self.folder / slug / "kernels" / "colab"
        kernel.mkdir(parents=True)
        command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        specification = {"argv": command, "display_name": "Colab", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(specification), encoding="utf-8")
        return python

    def run(self, notebook: Path, cells: int | None = None) -> nbformat.NotebookNode:
        """Execute a chapter in smoke, or its first cells; returns it with its outputs.

        Raises
        ------
        RuntimeError
            A cell fails, torch or NumPy was replaced, or a number is out of its bounds.
        """
        slug = notebook.stem
        python = self.environment(slug)
        work = self.folder / slug / "content"
        work.mkdir()
        content = nbformat.read(notebook, as_version=4)
        content.cells = content.cells[:cells]
        for cell in content.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = f'{cell.source}\nPROFILE = "smoke"\nOUT_DIR = "runs"'
        os.environ["JUPYTER_PATH"] = str(self.folder / slug)
        client = NotebookClient(
            content, timeout=None, kernel_name="colab", resources={"metadata": {"path": str(work)}}
        )
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        variables = plain_environment(PATH=path, **self.variables)
        try:
            client.execute(env=variables)
        except CellExecutionError as problem:
            raise RuntimeError(f"{slug}: {problem}") from None
        self._check_kept(python, slug)
        expected = ROOT / "tests" / "expected" / "smoke" / notebook.with_suffix(".json").name
        if cells is None:
            metrics = work / "runs" / slug / "metrics.json"
            emlab = [str(python.with_name("emlab")), "report", "check", "--quiet"]
            _say(subprocess.run([*emlab, metrics, expected], env=variables, capture_output=True))
        return content

    def _check_kept(self, python: Path, slug: str) -> None:
        code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
        command = [str(python), "-c", code, *KEPT]
        done = subprocess.run(
            command, env=plain_environment(), capture_output=True, text=True, check=True
        )
        before = [importlib.metadata.version(name) for name in KEPT]
        if done.stdout.split() != before:
            raise RuntimeError(
                f"{slug}: its first cell replaced {KEPT} {before} by {done.stdout.split()}"
            )


def _say(done: subprocess.CompletedProcess[bytes]) -> None:
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).decode(errors="replace"))


def main() -> int:
    """Run the chapters; returns how many failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chapters", nargs="*", help="slugs or starts of slugs; none for all")
    parser.add_argument("--offline", action="store_true", help="see all packages, fetch none")
    options = parser.parse_args()
    wanted = tuple(options.chapters) or ("",)
    notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    failed = 0
    folder = Path(tempfile.mkdtemp(prefix="emlab-colab-"))
    try:
        colab = Colab(folder, options.offline)
        for notebook in (path for path in notebooks if path.stem.startswith(wanted)):
            try:
                colab.run(notebook)
                print(f"{notebook.stem}: passed", flush=True)
            except RuntimeError as problem:
                failed += 1
                print(f"{notebook.stem}: FAILED\n{problem}", file=sys.stderr, flush=True)
            shutil.rmtree(folder / notebook.stem)
    finally:
        shutil.rmtree(folder)
    return failed


if __name__ == "__main__":
    sys.exit(main())
