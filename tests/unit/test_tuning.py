"""The search of peers' settings: every combination, the best one, the first of equal ones."""

import tomllib

from tools.tuning import grid, tune, write


def test_a_grid_holds_every_combination_in_order():
    assert grid(a=(1, 2), b="xy") == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"},
    ]  # fmt: skip
    assert grid() == [{}]


def test_the_best_settings_are_kept_and_the_first_of_equal_ones(capsys):
    grids = {"parabola": grid(x=(-2, -1, 0.5, 2)), "flat": grid(x=(3, 4))}
    found = tune(grids, lambda peer, s: -(s["x"] ** 2) if peer == "parabola" else 1.0, "score", 2)
    assert found == {"parabola": {"x": 0.5, "score": -0.25}, "flat": {"x": 3, "score": 1.0}}
    assert capsys.readouterr().out.splitlines()[0].startswith("parabola {'x': 0.5}")
    assert tune({"flat": grid(x=(3,))}, lambda *_: 1.0) == {"flat": {"x": 3}}


def test_the_file_keeps_its_head(tmp_path):
    write(tmp_path / "peers.toml", "# By a search.\n", {"peers": {"a": {"x": 1}}})
    text = (tmp_path / "peers.toml").read_text()
    assert text.startswith("# By a search.\n")
    assert tomllib.loads(text) == {"peers": {"a": {"x": 1}}}
