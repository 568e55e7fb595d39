"""The wheel, installed where this clone cannot be seen: commands, chapters, weights, version."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from emlab.app.cli import COMMANDS
from tools import environments
from tools.release import VERSION

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = "00_start_here"
Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Call:
    """Run the installed ``emlab``, or a program of its environment, in an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = environments.build_wheel(folder)
    python = environments.make_environment(folder / "environment")
    environments.install(python, str(wheel))
    (folder / "work").mkdir()

    def run(*words: str, program: str = "emlab") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python.with_name(program)), *words],
            cwd=folder / "work",
            env=environments.plain_environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_installed_copy_is_the_one_that_is_tested(call: Call) -> None:
    done = call("-c", "import emlab; print(emlab.__file__)", program="python")
    assert "environment/lib" in done.stdout, done.stderr


def test_version_is_that_of_the_project(call: Call) -> None:
    assert call("--version").stdout.strip() == f"emlab {VERSION}"


def test_every_command_explains_itself(call: Call) -> None:
    for words in ([], *([name] for name in COMMANDS)):
        done = call(*words, "--help")
        assert done.returncode == 0, done.stderr
        assert f"Usage: {' '.join(['emlab', *words])}" in done.stdout


def test_weights_are_whole(call: Call) -> None:
    done = call("weights", "verify", "--all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") >= 10


def test_commands_of_the_readme_run(call: Call) -> None:
    """Those that need files of the reader, or run a chapter, are parsed up to the work itself."""
    blocks = re.findall(r"```(bash|text)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [(kind, line) for kind, block in blocks for line in block.splitlines()]
    commands = [(kind, shlex.split(line)) for kind, line in lines if line.startswith(".venv/bin/")]
    assert len(commands) >= 15
    for kind, (_, *words) in commands:
        parse_only = kind == "text" or words[0] in ("run", "report")
        done = call(*words, *(["--help"] if parse_only else []))
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_a_copied_chapter_runs_and_keeps_its_numbers(call: Call) -> None:
    copied = call("notebooks", "copy", "chapters").stdout.splitlines()
    shipped = [path.name for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
    assert [Path(line).name for line in copied] == shipped
    expected = str(ROOT / "tests" / "expected")
    options = ["--profile", "smoke", "--device", "cpu", "--out", "runs", "--expected", expected]
    done = call("run", f"chapters/{CHAPTER}.ipynb", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert call("run", CHAPTER[:2], "--notebooks", "nowhere").returncode == 2
    shown = call("report", "show", f"runs/{CHAPTER}/metrics.json")
    assert shown.returncode == 0, shown.stderr
