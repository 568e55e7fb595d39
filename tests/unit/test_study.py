"""A study by itself: cases are numbers, methods guess them, scores are known by hand."""

import numpy as np
import pytest

from emlab.bench import Report
from emlab.bench.study import Column, Study, each, pipe_table, signed, spanned
from emlab.errors import InputError
from emlab.metrics import Interval, mean_interval, paired_difference

CASES = [1.0, 2.0, 4.0, 8.0]
COLUMNS = (
    Column("error", "error", better="lower", unit="px"),
    Column("worst", of=lambda scores, name, targets: Interval(*3 * (scores["error"].max(),))),
)
METHODS = {"ours": each(lambda case: case + 0.5), "zero": each(lambda case: 0.0)}


def score(cases, answers):
    return {"error": np.abs(np.subtract(answers, cases))}


@pytest.fixture
def study():
    return Study(CASES, COLUMNS, {"zero": "nothing", "ours": "ours"}).run(METHODS, score)


@pytest.fixture
def report(tmp_path, monkeypatch):
    made = Report("99_test", tmp_path, "smoke", 0)
    monkeypatch.setattr(made, "recorded", lambda recording: f"Recorded: {recording}.")
    return made


def test_numbers_are_means_over_cases_with_bootstrap_intervals(study):
    np.testing.assert_array_equal(study.scores["zero"]["error"], CASES)
    assert study.interval("zero", "error") == mean_interval(np.array(CASES))
    assert study.interval("zero", "worst") == (8, 8, 8)
    assert study.methods == ["zero", "ours"]
    assert study.seconds.keys() == {"ours", "zero"}


def test_gains_are_paired_and_positive_where_the_first_is_better(study):
    difference = paired_difference(np.array(CASES), np.full(4, 0.5))
    assert study.gain("ours", "zero", "error") == pytest.approx(difference)
    assert study.gain("zero", "ours", "error").mean == pytest.approx(-difference.mean)


def test_cases_of_one_target_are_drawn_together():
    labels = {"zero": "nothing"}
    study = Study(CASES, COLUMNS, labels, np.array([0, 0, 1, 1])).run(METHODS, score)
    expected = mean_interval(np.array(CASES).reshape(2, 2))
    assert study.interval("zero", "error") == pytest.approx(expected)
    alone = Study(CASES, COLUMNS, labels, np.zeros(4)).run(METHODS, score)
    assert alone.interval("zero", "error") == (3.75, 3.75, 3.75)


def test_places_of_a_single_case_play_the_part_of_cases(tmp_path):
    def places(cases, answers):
        return {"error": np.abs(np.subtract.outer(answers, CASES))}

    study = Study([0.0], COLUMNS, {}).run({"a": each(float), "b": each(lambda case: 1.0)}, places)
    assert study.interval("a", "error") == mean_interval(np.array(CASES))
    assert study.gain("b", "a", "error").mean == pytest.approx(1)
    report = Report("99_test", tmp_path, "smoke", 0)
    study.record(report)
    assert report.metrics()["values"]["error.a"]["n"] == len(CASES)


def test_a_method_may_see_the_first_cases_only(study):
    study = Study(CASES, COLUMNS, {}).run(METHODS, score, first={"zero": 2})
    assert study.seen("zero") == 2
    assert study.gain("ours", "zero", "error").mean == pytest.approx(1)


def test_scores_of_other_cases_are_refused():
    with pytest.raises(InputError, match="ours was scored on other cases than the 4"):
        Study(CASES, COLUMNS, {}).run(METHODS, lambda cases, answers: {"error": [1.0]})


def test_tables_mark_what_is_recorded_compare_and_say_where_it_is_from(study, report):
    study.join_recorded("an old run", {"old": {"error": [1.0] * 4}}, report)
    lines = study.markdown(versus="zero", extra={"seen": lambda name: str(study.seen(name))})
    head, _, zero, ours, old, _, said = lines.splitlines()
    assert head == "| method | error | over nothing | seen |"
    assert zero == f"| nothing | {COLUMNS[0].text(study.interval('zero', 'error'))} |  | 4 |"
    assert ours.startswith("| ours | 0.500 | +3.250 [")
    assert old.startswith("| old † | 1.000 |")
    assert said == "† Recorded: an old run."
    assert study.recorded == {"old": None}


def test_a_recorded_row_is_compared_with_what_ran_again(report):
    study = Study(CASES, COLUMNS, {}).run(METHODS, score, first={"zero": 2})
    study.join_recorded("an old run", {"zero": {"error": [1.0, 2.5, 4.0, 8.0]}}, report, "near")
    assert study.seen("zero") == 4
    assert study.recorded == {"zero": 0.5}
    told = report.metrics()["values"]["recorded.apart.near.zero"]
    assert (told["value"], told["unit"], told["n"]) == (0.5, "px", 2)
    both = pipe_table(["method"], [["zero †"]], [study, study])
    assert both.endswith("\n\n† Recorded: an old run. What ran again is 0.5 apart at most.")


def test_records_have_prefix_column_and_method(study, report):
    study.join_recorded("an old run", {"old": {"error": [1.0] * 4}}, report)
    study.record(report, "near.snr_1")
    study.record_gains(report, "ours", "zero", "near.snr_1")
    values = report.metrics()["values"]
    assert values["near.snr_1.error.zero"]["value"] == 3.75
    assert values["near.snr_1.error.zero"]["unit"] == "px"
    assert values["near.snr_1.error.zero"]["n"] == 4
    assert values["near.snr_1.worst.zero"]["value"] == 8
    assert values["near.snr_1.error.old"]["note"].endswith("recorded")
    assert values["near.snr_1.gain_error.ours_over_zero"]["value"] == 3.25


def test_threads_return_what_one_returns():
    assert each(lambda case: 2 * case, workers=3)(CASES) == [2, 4, 8, 16]


def test_signs_and_tables():
    assert signed(Interval(0.5, -0.25, 1.0), 2) == "+0.50 [-0.25, +1.00]"
    assert signed(Interval(-1, -1, -1)) == "-1.000"
    assert spanned(Interval(-0.5, -1.0, 0.25), "+.2f") == "-0.50 [-1.00, +0.25]"
    assert pipe_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
