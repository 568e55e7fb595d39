"""``emlab tsm pick-eval``: numbers of files of any format, of one micrograph or of many."""

import numpy as np
import pytest

from emlab.app.cli import main
from emlab.app.commands import tsm_picking
from emlab.data.coordinates import Coordinates, read_coordinates, write_coordinates
from emlab.external import topaz
from emlab.io import write_image

TRUE = np.array([[10.0, 10.0], [40.0, 40.0], [70.0, 20.0]])
FOUND = Coordinates(np.array([[11.0, 10], [41, 40], [90, 90], [5, 60]]), np.array([3.0, 2, 1, -1]))


@pytest.fixture
def files(tmp_path):
    write_coordinates(tmp_path / "truth.csv", Coordinates(TRUE))
    write_coordinates(tmp_path / "picks.box", FOUND, box=20)
    return tmp_path


def call(*words):
    return main(["tsm", "pick-eval", *map(str, words)])


def test_two_files_are_compared(files, capsys):
    assert call(files / "picks.box", files / "truth.csv", "--radius", 5) == 0
    said = capsys.readouterr().out
    assert "precision 0.500, recall 0.667, F1 0.571" in said
    assert "best threshold  2 with F1 0.800" in said


def test_a_threshold_and_what_is_written(files, capsys):
    words = ["--diameter", 30, "--pixel-size", 3, "--threshold", 1.5]
    words += ["--curve", files / "curve.csv", "--save", files / "kept.csv"]
    assert call(files / "picks.box", files / "truth.csv", *words) == 0
    said = capsys.readouterr().out
    assert "precision 1.000, recall 0.667, F1 0.800" in said
    assert "within 5 pixels" in said
    assert (files / "curve.csv").read_text().startswith("threshold,precision,recall,f1\n3,1,")
    assert len(read_coordinates(files / "kept.csv")) == 4


def test_folders_are_paired_by_name(files, capsys):
    for name in ("a", "b"):
        write_coordinates(files / "t" / f"{name}.csv", Coordinates(TRUE))
    names = ("m/a.mrc",) * 4
    picks = Coordinates(FOUND.places, FOUND.scores, names)
    write_coordinates(files / "p" / "all.csv", picks)
    assert call(files / "p", files / "t", "--radius", 5) == 0
    said = capsys.readouterr().out
    assert "micro           precision 0.500, recall 0.333" in said
    assert "macro           precision 0.750, recall 0.333" in said


def test_micrographs_are_picked_by_topaz(files, capsys, monkeypatch):
    write_image(files / "m.mrc", np.random.default_rng(0).normal(size=(96, 96)), 4.0)
    monkeypatch.setattr(topaz, "require", lambda: None)
    monkeypatch.setattr(tsm_picking, "pick_all", lambda images, pixel, diameter: (
        {"picks": [topaz.Picked(FOUND.places, FOUND.scores)]}, 1.0))  # fmt: skip
    assert call(files / "m.mrc", files / "truth.csv", "--diameter", 40) == 0
    assert "within 5 pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["picks.box", "truth.csv"], "how near is a hit"),
        (["nothing.box", "truth.csv", "--radius", "5"], "no file"),
        (["picks.box", "truth.csv", "--radius", "5", "--save", "a.pdf"], ".star or .csv"),
        (["truth.csv", "truth.csv", "--radius", "5", "--threshold", "1"], "no scores"),
    ],
)
def test_what_cannot_be_judged_is_refused(files, words, message, capsys):
    paths = [str(files / word) if "." in word and "-" not in word else word for word in words]
    assert call(*paths) == 2
    assert message in capsys.readouterr().err


def test_picks_of_unknown_micrographs_are_refused(files, capsys):
    names = ("x", "x", "y", "y")
    write_coordinates(files / "p.csv", Coordinates(FOUND.places, FOUND.scores, names))
    assert call(files / "p.csv", files / "truth.csv", "--radius", 5) == 2
    assert "name both alike" in capsys.readouterr().err
