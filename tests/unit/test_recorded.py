"""Recorded measurements: kept with their circumstances, and stale when what made them changes."""

import importlib.util
import json
import sys
import textwrap

import pytest

from emlab import recorded
from emlab.errors import InputError
from emlab.recorded import Recording
from emlab.recorded.code import code_hash
from emlab.settings import read_settings
from tools.record import MEASURED, main, measured, recordings, settings_file

CODE = '''
"""A module of a method."""
from emlab.metrics.intervals import mean_interval
FACTOR = 2
TABLE = {"twice": None}
def helper(x):
    """Docstring."""
    return FACTOR * x  # comment
class Row:
    weight = 3
    def score(self, x):
        return helper(x) + 1
def aside(x):
    return x
TABLE["twice"] = helper
def measure(settings):
    from emlab.physics.operators import gaussian_kernel
    return {"row": [Row().score(settings["x"])], "mean": mean_interval([1.0, 2.0]).mean}
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Make a module of emlab from text and return it."""
    made = []

    def build(text):
        name = f"emlab.methods.made_{len(made)}_{tmp_path.name.replace('-', '_')}"
        file = tmp_path / f"{len(made)}.py"
        file.write_text(textwrap.dedent(text))
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        made.append(module)
        return module

    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    return build


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("FACTOR * x", "FACTOR + x"),
        ("FACTOR = 2", "FACTOR = 3"),
        ("weight = 3", "weight = 4"),
        ("gaussian_kernel", "disc_kernel"),
        ('settings["x"]', 'settings["y"]'),
    ],
)
def test_what_changes_a_number_changes_the_hash(write, old, new):
    assert code_hash(write(CODE).measure) != code_hash(write(CODE.replace(old, new)).measure)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# comment", "# another one"),
        ('"""Docstring."""', '"""Other words."""'),
        ('"""A module of a method."""', ""),
        ("return x\n", "return -x\n"),
        ("helper(x) + 1", "helper(x)  +  1  # more"),
    ],
)
def test_words_layout_place_and_code_out_of_reach_do_not(write, old, new):
    changed = CODE.replace(old, new)
    assert changed != CODE
    assert code_hash(write(CODE).measure) == code_hash(write(changed).measure)


def test_functions_that_other_modules_of_emlab_call_are_reached(write, monkeypatch):
    from emlab.metrics import intervals

    before = code_hash(write(CODE).measure)

    def resampled(*arguments):
        return arguments

    resampled.__module__ = "emlab.metrics.intervals"
    monkeypatch.setattr(intervals, "resampled", resampled)
    assert code_hash(write(CODE).measure) != before


def test_the_place_of_a_checkout_is_no_part_of_the_code(write):
    reads = CODE.replace("FACTOR * x  # comment", "FACTOR * x + 0 * len(__file__)")
    assert code_hash(write(reads).measure) == code_hash(write(reads).measure)


def test_numbers_come_back_and_are_stale_when_settings_change(write):
    measure = write(CODE).measure
    made = Recording("04_mtd", "row", measure, {"x": 0.123456789})
    with pytest.raises(InputError, match=r"tools\.record 04_mtd row"):
        _ = made.values
    path = made.record()
    assert made.values["row"] == [1.24691]
    assert not made.stale
    assert json.loads(path.read_text())["settings"] == {"x": 0.123456789}
    assert set(made.entry()) == {"name", "date", "machine", "fingerprint", "stale", "again"}
    assert "not run here" in str(made)
    other = Recording("04_mtd", "row", measure, {"x": 1})
    assert other.stale
    assert "STALE" in str(other)


def test_weights_are_part_of_the_fingerprint(write):
    measure = write(CODE).measure
    Recording("04_mtd", "row", measure, {"x": 1}).record()
    assert Recording("04_mtd", "row", measure, {"x": 1}, ("mtd_mnist_vp",)).stale


def test_a_measurement_that_cannot_be_kept_is_one_clear_error(write):
    module = write(CODE + "def bad(settings):\n    return {'x': float('nan')}\n")
    with pytest.raises(InputError, match="JSON cannot hold"):
        Recording("04_mtd", "bad", module.bad).record()


def test_no_recording_of_the_book_is_stale():
    stale = [f"{r.chapter} {r.name}" for r in recordings() if not r.path.is_file() or r.stale]
    assert stale == [], "measure them again: python -m tools.record"


@pytest.mark.parametrize("place", MEASURED)
def test_settings_of_methods_hold_what_was_measured(place):
    chapter, names = MEASURED[place]
    told = {r.name: r.values for r in recordings() if r.chapter == chapter and r.name in names}
    assert read_settings(place) == told
    assert settings_file(place).read_text() == measured(place)


def test_every_kept_file_has_a_recording():
    kept = {path.relative_to(recorded.FOLDER) for path in recorded.FOLDER.glob("*/*.json")}
    assert kept == {r.path.relative_to(recorded.FOLDER) for r in recordings()}


def test_the_tool_says_what_there_is(capsys):
    assert main(["04_mtd", "absent"]) == 2
    assert "no such recording" in capsys.readouterr().out


def test_a_lambda_inside_a_table_is_part_of_the_fingerprint(write):
    text = """
    TABLE = {
        "twice": lambda x: 2 * x,
    }
    def measure(settings):
        return {"x": TABLE["twice"](settings["x"])}
    """
    first, second = (code_hash(write(t).measure) for t in (text, text.replace("2 * x", "3 * x")))
    assert first != second
