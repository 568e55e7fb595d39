"""Name, version and address of this project: from pyproject.toml into every file that repeats them.

``python -m tools.release`` rewrites the copies; a test fails when one differs.
"""

from __future__ import annotations

import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME: str = PROJECT["name"]  # of the distribution; the package and the command are called emlab
VERSION: str = PROJECT["version"]
TAG = f"v{VERSION}"
REPOSITORY: str = PROJECT["urls"]["Repository"]
PLACE = REPOSITORY.removeprefix("https://github.com/")
BRANCH = "main"  # the default one, which first cells fall back to


@dataclass(frozen=True)
class Copy:
    """Where something of the project is repeated.

    Attributes
    ----------
    files
        Pattern of paths below the repository.
    found
        Regular expression of the whole copy.
    text
        What has to stand there.
    required
        Whether every file has to hold it.
    """

    files: str
    found: str
    text: str
    required: bool = True


def _first_cells(files: str) -> list[Copy]:
    return [
        Copy(files, r"[\w-]+(?=(\[[\w,]+\])? @ git\+)", NAME),
        Copy(files, r"(?<= @ git\+)https://[^\s\"\\]+", REPOSITORY),
        Copy(files, r"(?<=\{book\}@)[\w.]+", TAG),
        Copy(files, r"(?<=Release )v[\d.]*\d", TAG),
        Copy(files, r"(?<=installs release )[\d.]*\d", VERSION, required=False),
    ]


COPIES = [
    Copy("CITATION.cff", r"(?m)^version: .*$", f"version: {VERSION}"),
    Copy("CITATION.cff", r"(?m)^repository-code: .*$", f'repository-code: "{REPOSITORY}"'),
    Copy("book/_config.yml", r"(?m)^  url: .*$", f"  url: {REPOSITORY}"),
    Copy("book/_config.yml", r"(?m)^  branch: .*$", f"  branch: {BRANCH}"),
    Copy("README.md", r"(?<=google\.com/github/)[^)]+?(?=/notebooks/)", f"{PLACE}/blob/{BRANCH}"),
    Copy("README.md", r"(?<=mybinder\.org/v2/gh/)[^)?]+", f"{PLACE}/{BRANCH}"),
    *_first_cells("notebooks/[0-9][0-9]_*.ipynb"),
    *_first_cells("tools/template/chapter.md"),
    Copy("src/**/*.py", r"(?<=')emlab[\w-]*(?=\[[\w,]+\]')", NAME, required=False),
    Copy("book/*.md", r"(?<=`)emlab[\w-]*(?=\[[\w,]+\]`)", NAME, required=False),
    Copy("src/emlab/__init__.py", r'(?<=DISTRIBUTION = ")[\w-]+', NAME),
]


def renewed(root: Path = ROOT) -> dict[Path, str]:
    """Return the files whose copies differ, with the text that they should have.

    Raises
    ------
    ValueError
        A file lacks a copy that it has to hold.
    """
    texts: dict[Path, str] = {}
    for copy in COPIES:
        files = sorted(root.glob(copy.files))
        for file in files:
            text = texts.get(file) or file.read_text(encoding="utf-8")
            texts[file], count = re.subn(copy.found, lambda _, new=copy.text: new, text)
            if copy.required and not count:
                raise ValueError(f"{file.relative_to(root)} holds nothing like {copy.found}")
        if not files:
            raise ValueError(f"no file is called {copy.files}")
    return {f: text for f, text in texts.items() if text != f.read_text(encoding="utf-8")}


def main() -> int:
    """Rewrite the copies and name the files."""
    for file, text in renewed().items():
        file.write_text(text, encoding="utf-8")
        print(file.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
