"""One verdict engine: conditions with intervals, what is said of them, and the tables."""

import pytest

from emlab.bench.claims import Condition, claims_table, fill, filled, parse
from emlab.errors import InputError


def entry(value, low=None, high=None, **more):
    return {"value": value, "low": low, "high": high, **more}


VALUES = {
    "ours": entry(0.4),
    "paper": entry(0.8),
    "sure": entry(0.4, 0.3, 0.5),
    "likely": entry(0.1, -0.1, 0.3),
    "worse": entry(-0.4, -0.5, -0.3),
    "single": entry(0.4, 0.4, 0.4, n=1),
}


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["ours < paper", "sure:low > 0"], "holds"),
        (["ours < paper", "sure > 5"], "holds in part"),
        (["ours < paper", "likely:low > 0"], "holds in part"),
        (["likely:low > 0"], "not shown"),
        (["likely:high < 0"], "not shown"),
        (["single:low > 0"], "not shown"),
        (["likely > 0"], "holds"),
        (["ours:low < 1"], "holds"),
        (["worse:low > 0", "likely:low > 0"], "does not hold"),
        (["ours >= paper"], "does not hold"),
        (["ours < paper", "absent > 0"], "not measured"),
        ([], "not measured"),
    ],
)
def test_verdicts_follow_the_rules(conditions, expected):
    claim = parse({"id": "X1", "paper": "better", "conditions": conditions})
    assert claim.verdict(VALUES) == expected


def test_only_what_was_not_measured_can_be_untestable():
    claim = parse({"id": "X", "paper": "c", "conditions": ["gain > 1"], "untestable": "No data."})
    assert claim.verdict({}) == "cannot be tested here"
    assert claim.verdict({"gain": entry(2.0)}) == "holds"


def test_a_condition_that_is_no_comparison_is_refused():
    with pytest.raises(InputError, match="ours is better"):
        Condition.parse("ours is better")


def test_what_was_measured_stands_beside_a_condition_with_its_unit():
    values = {"gain": entry(1.5, 1.25, 1.75, unit="dB")}
    assert Condition.parse("gain:low > 1").measured(values) == "1.5 [1.25, 1.75] dB"
    assert Condition.parse("gain > absent").measured(values) == "1.5 [1.25, 1.75] dB and ?"


def test_sentences_show_numbers_or_say_that_there_are_none():
    values = {"a.b": entry(0.4212, 0.39, 0.45), "c": {"value": 2.0}}
    assert fill("error {a.b}, gain {c}", values) == "error 0.421 [0.39, 0.45], gain 2"
    assert fill("error {missing}", values) == "error –"
    assert filled("error {missing}", values) == ""
    assert filled("gain {c}", values) == "gain 2"


def test_the_table_says_what_is_not_met():
    unless = [["likely:low > 0", "only {likely}"], ["sure:low > 0", "never said"]]
    record = {"id": "M1", "paper": "helps", "measured": "{sure}", "unless": unless}
    record["conditions"] = ["sure:low > 0", "likely:low > 0"]
    lines = claims_table([parse(record)], VALUES).splitlines()
    assert lines[0] == "| the paper reports (quoted) | measured here | verdict |"
    expected = "**holds in part**: only 0.1 [-0.1, 0.3]"
    assert lines[2] == f"| M1: helps | 0.4 [0.3, 0.5] | {expected} |"
