"""Pages that are made from runs: landing page and scorecard take whatever chapters there are."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emlab import chapters
from emlab.chapters.cellpose3.figures import hues
from tools.book import landing, notebooks, pages, scores
from tools.book.runs import Runs

CURTAIN = '<style></style><div class="emlab-curtain"><img alt="x"></div>'


ROOT = Path(__file__).resolve().parents[2]
# One hue at a time, or even in lightness: ordered for every eye, and in grey.
SAFE_MAPS = {"gray", "magma", "viridis", "cividis", "Blues"}


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, format="PNG")
    return buffer.getvalue()


def cell(name: str, kind: str, source: str, html: str = "") -> dict:
    outputs = [{"output_type": "display_data", "data": {"text/html": html}}] if html else []
    return {"id": name, "cell_type": kind, "metadata": {}, "source": source, "outputs": outputs}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Two chapters of which one was run."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book").mkdir()
    toc = "parts:\n- chapters:\n  - file: notebooks/01_ran\n  - file: notebooks/02_new\n"
    (tmp_path / "_toc.yml").write_text(toc)
    first = cell("t", "markdown", "# One: a title\n\nIt works.\n\n" + "word " * 391)
    figure = '<img src="data:image/png;base64,AAAA" alt="Two [lines]">'
    cells = [first, cell("c", "code", "f()", CURTAIN), cell("fig", "code", "g()", figure)]
    new = {"cells": [cell("t", "markdown", "# Two\n\nNot yet.")]}
    folder = tmp_path / "out" / "01_ran"
    folder.mkdir(parents=True)
    (tmp_path / "notebooks" / "01_ran.ipynb").write_text(json.dumps({"cells": cells}))
    (tmp_path / "notebooks" / "02_new.ipynb").write_text(json.dumps(new))
    (folder / "01_ran.ipynb").write_text(json.dumps({"cells": cells}))
    entry = {"value": 1.5, "low": 1.25, "high": 1.75, "unit": "dB"}
    stamp = {"cpu": "Z80", "cores": 2, "utc": "2026-01-02T00:00:00"}
    metrics = {"profile": "cpu", "device": "cpu", "seconds": 120.0, "values": {"gain": entry}}
    (folder / "metrics.json").write_text(json.dumps({**metrics, "environment": stamp}))
    claim = '[[claim]]\nid = "{}"\npaper = "better"\nhere = "h"\nconditions = ["{}"]\n'
    ran = 'sentence = "gains {gain}"\n' + claim.format("A1", "gain:low > 1")
    ran += 'why = "{gain} of {lost}"\ncell = "fig"\n' + claim.format("A2", "absent > 1")
    tables = {"ran": ran + 'untestable = "No data."\n', "new": claim.format("B1", "gain > 1")}
    for room, text in {**tables, "elsewhere": claim.format("Z1", "gain > 1")}.items():
        (tmp_path / "chapters" / room).mkdir(parents=True)
        (tmp_path / "chapters" / room / "chapter.toml").write_text(text)
    monkeypatch.setattr(chapters, "FOLDER", tmp_path / "chapters")
    return Runs(tmp_path, "cpu", tmp_path / "out")


def test_time_is_summed_under_the_heading_above(runs: Runs) -> None:
    def ran(seconds: int) -> dict:
        began, ended = "2026-01-02T00:00:00.000000Z", f"2026-01-02T00:00:{seconds:02d}.500000Z"
        return {"execution": {"iopub.execute_input": began, "shell.execute_reply": ended}}

    cells = [cell("a", "markdown", "# One\n\n## Physics"), cell("b", "code", "f()")]
    cells += [cell("c", "code", "f()"), cell("d", "markdown", "text"), cell("e", "code", "f()")]
    cells += [cell("f", "markdown", "## Prior"), cell("g", "code", "f()"), cell("h", "code", "f()")]
    for position, seconds in ((1, 3), (2, 4), (4, 5), (6, 9)):
        cells[position]["metadata"] = ran(seconds)
    notebook = {"cells": cells}
    assert notebooks.section_seconds(notebook) == {"Physics": 13.5, "Prior": 9.5}
    assert notebooks.section_seconds(runs.notebook("01_ran")) == {}
    (runs.folder / "01_ran" / "01_ran.ipynb").write_text(json.dumps(notebook))
    entry = {"status": "passed", "seconds": 30.0, "peak_memory_mb": 9.0, "checked": 1}
    entry["problems"] = []
    content = {"utc": "now", "chapters": {"01_ran": entry}}
    content |= {"probe_seconds": 0.06, "times_reference": 2.0}
    (runs.folder / "status.json").write_text(json.dumps(content))
    page = pages.status(Runs(runs.root, runs.profile, runs.folder))
    assert "| [01_ran](../notebooks/01_ran) | Physics (14 s), Prior (10 s) |" in page
    assert "| [01_ran](../notebooks/01_ran) | passed | 30 | 15 | 9 | 1 |" in page
    assert "2.00 times what the reference machine takes" in page


def test_landing_page_shows_each_chapter_with_its_curtain_and_times(runs: Runs) -> None:
    first, second = landing.chapter_cards(runs).split("[Two]")
    assert 'class="emlab-curtain"' in first
    assert "2 minutes to read · ran in 2.0 min on 2 cores" in first
    assert "gains 1.5 [1.25, 1.75]" in first
    assert "emlab-curtain" not in second
    assert "1 minutes to read" not in second
    assert "1 minute to read" in second
    assert "ran in" not in second


def test_hero_is_a_curtain_where_the_chapter_has_one(runs: Runs) -> None:
    assert "emlab-curtain" in landing.hero(runs, "01_ran", "2")
    assert "hero.png" in landing.hero(runs, "02_new")
    assert "hero.png" in landing.hero(runs, "09_elsewhere")


def test_scorecard_has_a_verdict_reason_and_figure_for_each_claim_of_a_chapter(runs: Runs) -> None:
    page = scores.scores(runs)
    assert "(claim-Z1)=" not in page
    assert "on Z80, 2 cores (cpu), 2026-01-02, in 120 s" in page
    section = page[page.index("(claim-A1)=") : page.index("(claim-A2)=")]
    assert "| `gain:low > 1` | 1.5 [1.25, 1.75] dB | met |" in section
    assert "1.5 [1.25, 1.75] of –" in section
    assert "[Two lines](#cell-fig)" in section
    assert scores.anchors(runs) == {"01_ran": {"fig"}}
    assert "1 hold" in landing.tally(runs)
    assert "1 cannot be tested here" in landing.tally(runs)


def test_labels_stand_before_the_cells_that_pages_point_to(runs: Runs) -> None:
    cells = notebooks.labelled(runs.notebook("01_ran"), {"fig": "cell-fig"})["cells"]
    assert [cell["id"] for cell in cells] == ["t", "c", "cell-fig", "fig"]
    assert cells[2]["source"] == "(cell-fig)="


def test_thumbnails_keep_their_shape_and_never_grow() -> None:
    small = Image.open(io.BytesIO(landing.thumbnail(png(1440, 300))))
    assert small.size == (720, 150)
    assert Image.open(io.BytesIO(landing.thumbnail(png(40, 30)))).size == (40, 30)


def test_colour_maps_can_be_read_with_any_colour_vision() -> None:
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]
    texts = [file.read_text(encoding="utf-8") for file in files]
    named = {name for text in texts for name in re.findall(r'cmap=\\?"(\w+)\\?"', text)}
    assert named - SAFE_MAPS == set()
    assert [text for text in texts if "hsv_to_rgb" in text or 'cmap="jet' in text] == []


def test_directions_of_flows_differ_in_lightness_or_between_blue_and_yellow() -> None:
    """Seen without red and green cones told apart (Vienot et al. 1999), opposite flows differ."""
    angles = np.arange(8) * np.pi / 4
    colours = hues(np.stack([np.sin(angles), np.cos(angles)])[:, None])[0]
    seen = np.stack([colours @ [0.29, 0.71, 0.0], colours[:, 2]], -1)  # red and green in one
    opposite = np.linalg.norm(seen - np.roll(seen, 4, axis=0), axis=-1)
    assert opposite.min() > 0.2
