"""``make book``: run the chapters, stage, build if anything changed, say where to open it."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tools.book.runs import Runs
from tools.book.stage import stage

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "_build"
HTML = BUILD / "html"
MARK = BUILD / "book.sha256"
LOG = BUILD / "book.log"
DOCTREES = BUILD / ".doctrees"
LAYOUT = BUILD / "layout.sha256"


def main() -> int:
    """Return 0 if all chapters passed and the book was built; the book is built in any case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="cpu", help="smoke, cpu, gpu or paper")
    parser.add_argument("--no-run", action="store_true", help="build from the runs there are")
    options = parser.parse_args()
    out = BUILD / "runs" / options.profile
    code = 0 if options.no_run else _run_chapters(options.profile, out)
    digest = hashlib.sha256(stage(Runs(ROOT, options.profile, out), BUILD / "stage").encode())
    for file in sorted((ROOT / "src").rglob("*.py")):  # the reference pages are made from them
        digest.update(file.read_bytes())
    digest.update((ROOT / "constraints.txt").read_bytes())
    built = _build(digest.hexdigest())
    return code or built


def _run_chapters(profile: str, out: Path) -> int:
    emlab = str(Path(sys.executable).with_name("emlab"))
    command = [emlab, "run", "--all", "--profile", profile, "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def _build(digest: str) -> int:
    index = HTML / "index.html"
    if index.is_file() and MARK.is_file() and MARK.read_text() == digest:
        print(f"The book is up to date. Open {index.as_uri()}")
        return 0
    print("Building the book ...", flush=True)
    shutil.rmtree(HTML, ignore_errors=True)
    MARK.unlink(missing_ok=True)
    _forget_what_moved(BUILD / "stage")
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [str(jupyter_book), "build", str(BUILD / "stage"), "--path-output", str(ROOT)]
    with LOG.open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [*command, "--warningiserror", "--keep-going", "--quiet"],
            cwd=ROOT,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        text = LOG.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if "WARNING" in line or "ERROR" in line]
        print("\n".join(lines or text.splitlines()[-30:]), file=sys.stderr)
        print(f"The book was not built; all of it: {LOG}", file=sys.stderr)
        return done.returncode
    MARK.write_text(digest)
    print(f"The book is built. Open {index.as_uri()}")
    return 0


def _forget_what_moved(staged: Path) -> None:
    """Drop Sphinx's memory of pages if a page came or went, or a name may be on another one now."""
    digest = hashlib.sha256()
    for file in sorted(path for path in staged.rglob("*") if path.suffix in (".md", ".ipynb")):
        digest.update(f"{file.relative_to(staged)}\0".encode())
        digest.update(file.read_bytes() if file.parent.name == "api" else b"")
    if not LAYOUT.is_file() or LAYOUT.read_text() != digest.hexdigest():
        shutil.rmtree(DOCTREES, ignore_errors=True)
    LAYOUT.write_text(digest.hexdigest())


if __name__ == "__main__":
    sys.exit(main())
