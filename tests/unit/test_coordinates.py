"""Coordinates survive every format, and each format means the same place."""

import numpy as np
import pytest

from emlab import data
from emlab.data.coordinates import Coordinates, read_coordinates, write_coordinates
from emlab.errors import InputError

FOUND = Coordinates(
    np.array([[10.5, 200.0], [30.25, 4.0]]),
    np.array([0.5, -2.0]),
    ("raw/a, 1.mrc", "raw/b.mrc"),
    12.0,
)


@pytest.mark.parametrize("suffix", [".star", ".box", ".csv"])
def test_places_and_scores_come_back(suffix, tmp_path):
    if suffix == ".star":
        pytest.importorskip("gemmi")
    names = ("raw/a.mrc", "raw/b.mrc")
    given = Coordinates(FOUND.places, FOUND.scores, names, 12.0)
    again = read_coordinates(write_coordinates(tmp_path / f"picks{suffix}", given))
    np.testing.assert_allclose(again.places, FOUND.places)
    np.testing.assert_allclose(again.scores, FOUND.scores)
    assert again.micrographs == (() if suffix == ".box" else names)
    assert again.diameter == (12 if suffix == ".box" else None)


def test_names_with_commas_survive_csv(tmp_path):
    again = read_coordinates(write_coordinates(tmp_path / "picks.csv", FOUND))
    assert again.micrographs == FOUND.micrographs
    assert again.of("elsewhere/b.tif").places.tolist() == [[30.25, 4.0]]


def test_a_box_is_given_by_its_corner(tmp_path):
    (tmp_path / "a.box").write_text("100\t40\t20\t20\t.7\n")
    assert read_coordinates(tmp_path / "a.box").places.tolist() == [[50, 110]]
    with pytest.raises(InputError, match="size of the boxes"):
        write_coordinates(tmp_path / "b.box", Coordinates(FOUND.places))


def test_tables_of_cryoppp_and_topaz(tmp_path):
    (tmp_path / "a.csv").write_text("X-Coordinate,Y-Coordinate,Diameter\n3,4,108\n5,6,108\n")
    found = read_coordinates(tmp_path / "a.csv")
    assert found.places.tolist() == [[4, 3], [6, 5]]
    assert found.diameter == 108
    (tmp_path / "b.txt").write_text("image_name\tx_coord\ty_coord\tscore\nm\t3\t4\t1.5\n")
    found = read_coordinates(tmp_path / "b.txt")
    assert (found.micrographs, found.scores.tolist()) == (("m",), [1.5])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "left,right\n1,2\n", "one x and one y"),
        ("a.csv", "x,y\n1\n", "shorter"),
        ("a.csv", "x,y\n1,two\n", "no table"),
        ("a.csv", "x,y\n1,nan\n", "finite"),
        ("a.box", "1 2 3\n", "width"),
        ("a.pdf", "", "read from"),
        ("a.star", "data_\nloop_\n_rlnMicrographName\na\n", "rlnCoordinateX"),
    ],
)
def test_other_tables_are_refused(name, text, message, tmp_path):
    if name.endswith(".star"):
        pytest.importorskip("gemmi")
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_coordinates(tmp_path / name)


@pytest.mark.real_data
def test_boxes_of_beta_galactosidase_are_centred_where_the_hand_picks_are(mirror):
    """The boxes count rows from below: the JPEG beside them was turned upside down."""
    from emlab.metrics import picking

    files = data.paths("betagal_10017")
    hand, boxes = (
        next(read_coordinates(path) for name, path in files.items() if name.endswith(ending))
        for ending in ("cryoppp_picks.csv", "crYOLO.box")
    )
    assert hand.diameter == 108
    upright = boxes.places * (-1, 1) + (4096, 0)
    found = picking.match(upright, hand.places, 40)
    assert found.hits > 600
    assert np.median(found.distances[np.isfinite(found.distances)]) < 8
