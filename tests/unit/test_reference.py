"""The reference pages: nothing public is missing, and what is missing is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from emlab.app.cli import COMMANDS, HOMES
from tools import public
from tools.book import api, commands

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "emlab"
    (folder / "deep").mkdir(parents=True)
    (folder / "__init__.py").write_text('"""Top."""\n')
    (folder / "deep" / "__init__.py").write_text('"""Deep."""\nLIMIT = 3\n_HIDDEN = 4\n')
    (folder / "deep" / "_private.py").write_text("def f(): pass\n")
    text = '"""Plain."""\nclass A:\n    """A."""\n    def told(self):\n        """T."""\n'
    (folder / "deep" / "plain.py").write_text(
        text + "    def silent(self): pass\n    def _own(self): pass\ndef quiet(): pass\n"
    )
    return folder


def test_public_modules_are_those_without_an_underscore(package: Path) -> None:
    assert public.modules(package) == ["emlab.deep", "emlab.deep.plain"]


def test_names_without_a_docstring_are_listed(package: Path) -> None:
    silent = ["emlab.deep.plain.A.silent", "emlab.deep.plain.quiet"]
    assert public.undocumented(package) == silent


def test_constants_are_shown_with_their_values(package: Path) -> None:
    assert public.constants("emlab.deep", package) == [("LIMIT", "3")]


def test_longest_prefix_takes_a_module() -> None:
    places = api.assignment(ROOT)
    assert places["emlab.io.volumes"] == "io"
    assert places["emlab.recipes.tsm"] == "recipes.tsm"
    assert places["emlab.recipes.lesson"] == "recipes"


def test_a_module_without_a_page_fails_the_build(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "book" / "api", tmp_path / "book" / "api")
    (tmp_path / "book" / "api" / "metrics.md").unlink()
    with pytest.raises(ValueError, match=r"emlab\.metrics\.fourier"):
        api.reference(tmp_path, ["io"])


@pytest.mark.parametrize("word", COMMANDS)
def test_every_command_is_described_with_its_arguments(word: str) -> None:
    module = commands.PREFIX + HOMES.get(word, word)
    text = commands.described(module)
    assert commands.is_command(module)
    assert f"emlab {word}" in text
    assert "| argument | what it is | default |" in text


def test_options_in_running_text_are_code() -> None:
    text = commands.described(commands.PREFIX + "generalist")
    assert "look at `--spread` before" in text
    assert "``--" not in text
