"""Name, version and address stand in pyproject.toml; every copy of them agrees."""

import shutil

import pytest

import emlab
from tools import release


@pytest.fixture
def copies(tmp_path):
    """The files that hold copies, and nothing else."""
    for copy in release.COPIES:
        for file in release.ROOT.glob(copy.files):
            place = tmp_path / file.relative_to(release.ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    return tmp_path


def test_every_copy_agrees():
    """If this fails, say `python -m tools.release`."""
    assert release.renewed() == {}
    assert release.NAME == emlab.DISTRIBUTION
    assert emlab.__version__ == release.VERSION


def test_an_address_and_a_tag_are_changed_everywhere(copies, monkeypatch):
    moved = {
        release.REPOSITORY: "https://github.com/them/theirs",
        release.PLACE: "them/theirs",
        release.NAME: "theirs",
        release.TAG: "v1.2.3",
    }
    changed = []
    for copy in release.COPIES:
        text = copy.text
        for old, new in moved.items():
            text = text.replace(old, new)
        changed.append(release.Copy(copy.files, copy.found, text, copy.required))
    monkeypatch.setattr(release, "COPIES", changed)
    for file, text in release.renewed(copies).items():
        file.write_text(text, encoding="utf-8")
    for file in (path for path in copies.rglob("*") if path.is_file()):
        assert release.PLACE not in file.read_text(encoding="utf-8")
    chapter = next(copies.glob("notebooks/01_*.ipynb")).read_text(encoding="utf-8")
    assert "theirs[peers,volumes] @ git+https://github.com/them/theirs\\" in chapter
    assert "{book}@v1.2.3" in chapter
    assert "Release v1.2.3 was" in chapter
    assert release.renewed(copies) == {}


def test_a_lost_copy_is_noticed(copies):
    (copies / "CITATION.cff").write_text("cff-version: 1.2.0\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"CITATION\.cff holds nothing like"):
        release.renewed(copies)
