"""The book is built aside: whatever happens to a build, the pages there are stay as they are."""

from __future__ import annotations

import fcntl
import shutil
import sys
from pathlib import Path

import pytest
from killing import kill_at, run, start

ROOT = Path(__file__).resolve().parents[2]
BUILD = [sys.executable, "-m", "tools.book", "--no-run", "--profile", "smoke"]
NAMES = ("intro", *(f"page{number}" for number in range(4)))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A book of five pages, built in its first edition, with the tools of this one."""
    for name, left_out in (("tools", "__pycache__"), ("book", "*.md")):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns(left_out))
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    chapters = "".join(f"      - file: book/{name}\n" for name in NAMES[1:])
    parts = f"parts:\n  - caption: All\n    chapters:\n{chapters}"
    (tmp_path / "_toc.yml").write_text(f"format: jb-book\nroot: book/intro\n{parts}")
    write(tmp_path, "first edition")
    done = run(BUILD, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert editions(tmp_path / "_build" / "html") == ["first"] * len(NAMES)
    return tmp_path


def write(folder: Path, text: str, names: tuple[str, ...] = NAMES) -> None:
    for name in names:
        (folder / "book" / f"{name}.md").write_text(f"# Page {name}\n\n{text}\n")


def editions(folder: Path) -> list[str]:
    """Which edition each page of a folder is of, in the order of their names."""
    found = []
    for page in sorted((folder / "book").glob("*.html")):
        text = page.read_text()
        found += [word for word in ("first", "second") if f"{word} edition" in text]
    return found


def test_a_killed_build_leaves_the_book_before(book: Path) -> None:
    """What it had started is waited for, and nothing of it is built upon."""
    pages = {path.relative_to(book) for path in (book / "_build" / "html").rglob("*")}
    write(book, "second edition")
    build = book / "_build"
    kill_at(
        start(BUILD, cwd=book),
        lambda: any("second" in editions(page.parents[1]) for page in build.rglob("page0.html")),
    )
    with (build / "book.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert editions(build / "html") == ["first"] * len(NAMES)
    again = run(BUILD, cwd=book)
    assert again.returncode == 0, again.stdout + again.stderr
    assert editions(build / "html") == ["second"] * len(NAMES)
    assert {path.relative_to(book) for path in (build / "html").rglob("*")} == pages
    assert "up to date" in run(BUILD, cwd=book).stdout


def test_a_build_that_fails_leaves_the_book_before_and_fails_again(book: Path) -> None:
    """With a fault that Sphinx tells of when it reads a page, and one that it tells of later."""
    write(book, "second edition [gone](nowhere.md)\n\n```{nothing}\n```", ("page1",))
    for _ in range(2):
        failed = run(BUILD, cwd=book)
        assert failed.returncode == 1, failed.stdout
        assert "nowhere.md" in failed.stderr
        assert "Unknown directive type: 'nothing'" in failed.stderr
        assert "The book was not built" in failed.stderr
        assert editions(book / "_build" / "html") == ["first"] * len(NAMES)
    write(book, "second edition", ("page1",))
    mended = run(BUILD, cwd=book)
    assert mended.returncode == 0, mended.stderr
    assert editions(book / "_build" / "html") == ["first", "first", "second", "first", "first"]
