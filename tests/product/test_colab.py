"""The first cell of a chapter where emlab is missing: the tagged release, torch and NumPy kept."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from emlab.chapters import shipped
from tools.colab import KEPT, SHIPPED, Colab, closure
from tools.release import NAME, TAG, VERSION


def first_cell(colab: Colab) -> str:
    """What the first code of the first chapter prints."""
    run = colab.run(shipped()[0], cells=3)  # title, explanation, first code
    (output,) = (cell.outputs for cell in run.cells if cell.cell_type == "code")
    return "".join(item.text for item in output if item.output_type == "stream")


def test_the_first_cell_installs_the_release_and_keeps_torch(tmp_path: Path) -> None:
    said = first_cell(Colab(tmp_path, offline=True))
    assert "default branch" not in said
    kept = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in KEPT)
    assert f"emlab {VERSION}, {kept}" in said
    assert 'DEVICE = "auto" picks ' in said
    assert 'PROFILE = "cpu" takes ' in said
    content = tmp_path / shipped()[0].stem / "content"
    assert (content / "kept.txt").read_text().splitlines() == [
        f"{name}=={importlib.metadata.version(name)}" for name in KEPT
    ]


def test_the_first_cell_takes_the_default_branch_where_the_release_is_missing(
    tmp_path: Path,
) -> None:
    said = first_cell(Colab(tmp_path, offline=True, tag="v0.0.1"))
    assert f"Release {TAG} was not installed: trying the default branch." in said
    assert f"emlab {VERSION}, torch " in said


def test_what_colab_ships_does_not_hide_what_a_chapter_needs() -> None:
    """Only the first cell may bring these."""
    assert closure(SHIPPED) & {NAME, "scipy", "scikit-image", "mlxtend", "mrcfile", "bm3d"} == set()
