"""Every chapter passes in smoke with any of its data sets taken away, and with none of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emlab import data
from emlab.app.runner import run_chapter
from emlab.bench import load_metrics
from emlab.chapters import chapter_data, shipped

CASES = [(path.stem, name) for path in shipped() for name in (*chapter_data(path.stem), "")]
NOWHERE = "http://127.0.0.1:9"  # a proxy that refuses: nothing can be fetched


@pytest.fixture
def without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that leaves a mirror without one data set (or with none)."""
    real = os.environ.get("EMLAB_MIRROR", "")

    def take_away(name: str) -> None:
        mirror = tmp_path / "mirror"
        mirror.mkdir()
        kept = [r for r in data.records().values() if real and name not in ("", r.name)]
        gone = {file.path for file in data.records()[name].files} if name else set()
        for path in {file.path for record in kept for file in record.files} - gone:
            if (source := Path(real, path)).is_file():
                (mirror / path).parent.mkdir(parents=True, exist_ok=True)
                (mirror / path).symlink_to(source.resolve())
        monkeypatch.setenv("EMLAB_MIRROR", str(mirror))
        monkeypatch.setenv("EMLAB_CACHE", str(tmp_path / "cache"))
        for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(variable, NOWHERE)

    return take_away


@pytest.mark.parametrize(("slug", "name"), CASES, ids=["-".join(case) for case in CASES])
def test_a_chapter_keeps_the_bounds_of_its_stand_ins(slug, name, without, tmp_path):
    if name and not os.environ.get("EMLAB_MIRROR"):
        pytest.skip("no real data: EMLAB_MIRROR names no folder, nothing can be taken away")
    without(name)
    result = run_chapter(slug, "smoke", tmp_path / "runs", device="cpu")
    assert result.passed, "\n".join([result.status, *result.problems])
    assert result.checked > 0
    if name and not data.available(name):
        told = load_metrics(tmp_path / "runs" / slug / "metrics.json")["data"]
        assert name in {entry["stands_in_for"] for entry in told}, f"{name} is gone, nobody says so"
