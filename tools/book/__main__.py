"""``make book``: run the chapters, stage, build if anything changed, say where to open it."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from emlab import data
from emlab.app.cli import main as emlab
from emlab.chapters import chapter_data, shipped
from emlab.data.download import Policy, byte_bar
from emlab.errors import EmlabError
from tools.book.runs import Runs
from tools.book.stage import stage

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "_build"
HTML = BUILD / "html"
LOG = BUILD / "book.log"
WORK = BUILD / "work"  # Sphinx builds here and keeps the pages that it has read
MADE, DOCTREES, OLD = WORK / "_build" / "html", WORK / "_build" / ".doctrees", WORK / "old"
LAYOUT = BUILD / "layout.sha256"
MARK = ".book.sha256"  # beside the pages: what they were made from
QUICKLY = Policy(timeout_seconds=10, attempts=2)  # a book without data is better than none
INTERRUPTED = (130, 143)  # what emlab returns after Ctrl-C and SIGTERM


def main() -> int:
    """Return 0 if all chapters passed and the book was built; the book is built in any case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="cpu", help="smoke, cpu, gpu or paper")
    parser.add_argument("--no-run", action="store_true", help="build from the runs there are")
    parser.add_argument("--jobs", help="chapters side by side")
    parser.add_argument("--minutes", help="leave out chapters that do not end in this time")
    options = parser.parse_args()
    out = BUILD / "runs" / options.profile
    limits = {"--jobs": options.jobs, "--minutes": options.minutes}
    code = 0 if options.no_run else _run_chapters(options.profile, out, limits)
    if code in INTERRUPTED:
        return code
    with _alone() as held:
        digest = hashlib.sha256(stage(Runs(ROOT, options.profile, out), BUILD / "stage").encode())
        for file in sorted((ROOT / "src").rglob("*.py")):  # the reference pages are made from them
            digest.update(file.read_bytes())
        digest.update((ROOT / "constraints.txt").read_bytes())
        built = _build(digest.hexdigest(), held)
    return code or built


def fetch_missing() -> None:
    """Fetch what chapters lack, and say so in a line or two; stand-ins serve for what fails."""
    wanted = {name for path in shipped() for name in chapter_data(path.stem)}
    missing = sorted(name for name in wanted if not data.available(name))
    if not missing:
        return
    size = sum(data.records()[name].size for name in missing) / 1e6
    print(f"Fetching {len(missing)} data sets of the chapters, {size:.0f} MB ...", flush=True)
    failed: list[str] = []
    with byte_bar() as bar:
        for number, name in enumerate(missing):
            if number >= 3 and len(failed) == number:  # no network, or one that swallows requests
                failed = missing
                break
            try:
                data.fetch(name, bar.update, QUICKLY)
            except EmlabError:
                failed.append(name)
    if failed:
        print(
            f"{len(failed)} of them cannot be had now ({', '.join(failed)}); `make data` says why. "
            "Chapters use stand-ins for them, and say so.",
            flush=True,
        )


def _run_chapters(profile: str, out: Path, limits: dict[str, str | None]) -> int:
    """Run in this process: a runner of its own would outlive it when it is killed."""
    fetch_missing()
    places = ["--notebooks", str(ROOT / "notebooks"), "--out", str(out)]
    given = [word for name, value in limits.items() if value for word in (name, value)]
    return emlab(["run", "--all", "--profile", profile, *places, *given])


@contextmanager
def _alone() -> Iterator[list[int]]:
    """Wait until no other build goes on; yields what processes of this one inherit, to hold it."""
    BUILD.mkdir(exist_ok=True)
    place = BUILD / "book.lock"
    if fcntl is None:
        with FileLock(place):
            yield []
        return
    with place.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another build has not ended yet; waiting for it ...", flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield [stream.fileno()]


def _build(digest: str, held: list[int]) -> int:
    """Build aside, then exchange the book: a build that fails or is killed leaves the one before.

    Such a build is not built upon either: Sphinx warns of a page only when it reads it.
    """
    index, unfinished = HTML / "index.html", WORK / "unfinished"
    if index.is_file() and (HTML / MARK).is_file() and (HTML / MARK).read_text() == digest:
        print(f"The book is up to date. Open {index.as_uri()}")
        return 0
    print("Building the book ...", flush=True)
    if unfinished.exists():
        shutil.rmtree(WORK)
    WORK.mkdir(exist_ok=True)
    unfinished.touch()
    _forget_what_moved(BUILD / "stage")
    program = shutil.which("jupyter-book", path=Path(sys.executable).parent) or "jupyter-book"
    command = [program, "build", str(BUILD / "stage"), "--path-output", str(WORK)]
    with LOG.open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [*command, "--warningiserror", "--keep-going", "--quiet"],
            cwd=ROOT,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
            pass_fds=held,
        )
    if done.returncode:
        text = LOG.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if "WARNING" in line or "ERROR" in line]
        print("\n".join(lines or text.splitlines()[-30:]), file=sys.stderr)
        before = f"; {HTML} is the book before" if index.is_file() else ""
        print(f"The book was not built; all of it: {LOG}{before}", file=sys.stderr)
        return done.returncode
    (MADE / MARK).write_text(digest)
    if HTML.exists():
        HTML.rename(OLD)
    MADE.rename(HTML)
    shutil.rmtree(OLD, ignore_errors=True)
    unfinished.unlink()
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
    try:
        status = main()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        status = INTERRUPTED[0]
    sys.exit(status)
