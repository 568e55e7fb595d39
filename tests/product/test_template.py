"""The template of CONTRIBUTING.md becomes a method that passes every check of the house."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.new_method import create

ROOT = Path(__file__).resolve().parents[2]
SLUG = "97_example"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, weights linked, with a method made from the template."""
    root = tmp_path_factory.mktemp("house")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        source, target = ROOT / name, root / name
        if not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".safetensors":
            target.symlink_to(source)
        else:
            target.write_bytes(source.read_bytes())
    create(SLUG, "An example", root)
    return root


def call(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    return subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_files_are_made_once(copy: Path) -> None:
    with pytest.raises(ValueError, match="already there"):
        create(SLUG, "An example", copy)
    with pytest.raises(ValueError, match="is no slug"):
        create("example", "An example", copy)


@pytest.mark.parametrize(
    "words",
    [
        ("ruff", "check"),
        ("ruff", "format", "--check"),
        ("python", "-m", "pytest", "-q", "tests/unit/test_example.py"),
        ("python", "-m", "pytest", "-q", "tests/notebooks", "-k", SLUG),
        ("python", "-m", "pytest", "-q", "tests/unit/test_house.py", "-k", "point_down"),
    ],
    ids=["ruff", "format", "unit", "chapter", "layers"],
)
def test_what_the_template_makes_passes(copy: Path, words: tuple[str, ...]) -> None:
    done = call(copy, *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_its_bounds_fail_the_identity(copy: Path) -> None:
    """The numbers of doing nothing do not pass as the method's."""
    file = copy / "tests" / "expected" / "smoke" / f"{SLUG}.json"
    must_fail = json.loads(file.read_text())["must_fail"]
    assert set(must_fail) == {"identity", "constant", "untrained"}
