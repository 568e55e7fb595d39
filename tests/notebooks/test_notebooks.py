"""Every chapter is clean as committed, runs in the smoke profile, and keeps its numbers."""

import copy
import json
from pathlib import Path

import nbformat
import pytest
from hygiene import INSTALL, breaches

from emlab.app.runner import run_chapter
from emlab.bench import load_expected, load_metrics
from tools.new_method import SLUG

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXPECTED = ROOT / "tests" / "expected"
TIMEOUT_SECONDS = 900
OPENING = INSTALL.replace(SLUG, "00_x")
PARAMETERS = 'PROFILE = "cpu"\nSEED = 0\nDEVICE = "auto"\nOUT_DIR = "../runs/cpu"'

by_slug = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


@by_slug
def test_a_chapter_is_clean_as_committed(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(notebook)
    assert breaches(notebook, path.stem) == []


@by_slug
def test_a_chapter_runs_in_smoke_and_keeps_its_numbers(path, tmp_path):
    result = run_chapter(path, "smoke", tmp_path, device="cpu", timeout=TIMEOUT_SECONDS)
    assert result.passed, "\n".join([result.status, *result.problems])
    assert result.checked > 0, f"write tests/expected/smoke/{path.stem}.json"
    metrics = load_metrics(tmp_path / path.stem / "metrics.json")
    assert metrics["slug"] == path.stem
    assert metrics["data"], "a chapter records its data: report.data(...) or report.simulated(...)"
    assert metrics["shortcuts"], "the smoke profile takes shortcuts; record them"
    assert bare(tmp_path / path.stem / path.name) == []


def bare(executed):
    """Cells that end with a bare value, which a reader sees as Python prints it."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    return [
        cell["id"]
        for cell in cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "execute_result"
        and not {"text/html", "text/markdown"} & set(output["data"])
    ]


def test_bare_values_are_noticed(tmp_path):
    shown = [{"text/plain": "0.5"}, {"text/plain": "Study()", "text/markdown": "| a |"}]
    outputs = [nbformat.v4.new_output("execute_result", data=data) for data in shown]
    cells = [nbformat.v4.new_code_cell("1", outputs=[one]) for one in outputs]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "x.ipynb")
    assert bare(tmp_path / "x.ipynb") == [cells[0]["id"]]


@by_slug
def test_a_chapter_has_bounds_for_smoke_and_cpu(path):
    for profile in ("smoke", "cpu"):
        assert load_expected(EXPECTED / profile / f"{path.stem}.json")["bounds"]


def test_bounds_belong_to_chapters():
    slugs = {path.stem for path in CHAPTERS}
    assert slugs, "there is no chapter in notebooks/"
    assert {path.stem for path in EXPECTED.glob("*/*.json")} <= slugs


@pytest.fixture
def clean():
    """A notebook without a breach."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    report = 'report = Report("00_x", OUT_DIR, PROFILE, SEED)\nreport.save()'
    notebook.cells = [
        nbformat.v4.new_markdown_cell("# Title\n\nOne claim."),
        *(nbformat.v4.new_code_cell(text) for text in (OPENING, PARAMETERS, report)),
    ]
    notebook.cells[2].metadata["tags"] = ["parameters"]
    return json.loads(nbformat.writes(notebook))


def test_a_clean_notebook_passes_and_may_install_more(clean):
    assert breaches(clean, "00_x") == []
    more = OPENING.replace("-book @", "-book[peers,volumes] @").replace('txt "{', 'txt mlxtend "{')
    clean["cells"][1].update(source=more)
    assert more.count("mlxtend") == 2
    assert breaches(clean, "00_x") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: n["cells"][3].update(execution_count=1), "execution count"),
        (lambda n: n["cells"][3].update(outputs=[{"output_type": "stream"}]), "outputs"),
        (lambda n: n["cells"][3].update(source="x = 1\n" * 19), "19 lines"),
        (lambda n: n["cells"][3].update(source="report.save()"), "no code makes Report"),
        (lambda n: n["cells"][3].update(source='Report("00_x", OUT_DIR)'), "saves the report"),
        (lambda n: n["cells"][3].update(source='open("/work/a")'), "somebody's machine"),
        (lambda n: n["cells"][3].update(source='open("../shared/data/x")'), "mirror"),
        (lambda n: n["cells"][2].update(source="SEED = int('0')"), "more than literals"),
        (lambda n: n["cells"][2].update(source="SEED = 1"), "the parameters are"),
        (lambda n: n["cells"][2].update(metadata={}), "0 cells are tagged"),
        (lambda n: n["cells"][1].update(source="%pip install torch"), "installs torch"),
        (lambda n: n["cells"][1].update(source="import torch"), "first code cell"),
        (lambda n: n["cells"][1].update(source=OPENING.replace("@v", "@w")), "first code cell"),
        (lambda n: n["cells"][1].update(source=OPENING.replace("-c kept.txt", "")), "first code"),
        (lambda n: n["cells"][1].update(source=INSTALL), "first code cell"),
        (lambda n: n["cells"][0].update(source="Title"), "markdown title"),
        (lambda n: n["cells"][0].pop("id"), "no id"),
        (lambda n: n["metadata"].pop("kernelspec"), "python3"),
        (lambda n: n["metadata"].update(papermill={}), "metadata to remove: papermill"),
    ],
)
def test_each_breach_is_found(clean, change, message):
    notebook = copy.deepcopy(clean)
    change(notebook)
    assert message in "\n".join(breaches(notebook, "00_x"))
