"""The first cell of a chapter where emlab is missing: the tagged release, torch and NumPy kept."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from emlab.chapters import shipped
from tools.colab import KEPT, SHIPPED, Colab, closure


def test_the_first_cell_installs_the_release_and_keeps_torch(tmp_path: Path) -> None:
    colab = Colab(tmp_path, offline=True)
    run = colab.run(shipped()[0], cells=3)  # title, explanation, first code
    (output,) = (cell.outputs for cell in run.cells if cell.cell_type == "code")
    said = "".join(item.text for item in output if item.output_type == "stream")
    kept = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in KEPT)
    assert f"emlab 0.1.0, {kept}" in said
    assert 'DEVICE = "auto" picks ' in said
    assert 'PROFILE = "cpu" takes ' in said
    content = tmp_path / shipped()[0].stem / "content"
    assert (content / "kept.txt").read_text().splitlines() == [
        f"{name}=={importlib.metadata.version(name)}" for name in KEPT
    ]


def test_what_colab_ships_does_not_hide_what_a_chapter_needs() -> None:
    """Only the first cell may bring these."""
    assert (
        closure(SHIPPED) & {"emlab", "scipy", "scikit-image", "mlxtend", "mrcfile", "bm3d"} == set()
    )
