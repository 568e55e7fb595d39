"""Short trainings of TSM's variants: what differs, and that measured rows are complete."""

import warnings
from dataclasses import replace

import pytest

from emlab.bench import Report
from emlab.chapters.tsm.ablations import (
    Bench,
    ablate,
    figure_traces,
    markdown,
    measured,
    record,
    variants,
)
from emlab.recipes.tsm import frames


def test_variants_differ_from_the_default_in_what_they_say():
    found = variants()
    assert found["dsm"].guidance is None
    assert found["weight_0.3"].guidance == replace(found["tsm"].guidance, weight=0.3)
    assert found["temperature_0.5"].bank == replace(found["tsm"].bank, temperature=0.5)
    assert found["literal"].guidance.variant == "literal"
    assert found["oracle"].oracle
    assert len({repr(variant) for variant in found.values()}) == len(found)


def test_measured_rows_are_of_variants_that_exist():
    found = measured()
    assert {"raw", "dsm", "tsm"} <= set(found["rows"]) <= {"raw", *variants()}
    assert all(-1 < row[k] < 1 for row in found["rows"].values() for k in ("seen", "unseen"))
    text = markdown(found)
    assert all(row["label"] in text for row in found["rows"].values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure_traces(found)
        figure_traces({**found, "traces": {}})


def test_similarity_is_recorded_above_chance(tmp_path):
    trace = {"step": [1, 2], "similarity": [0.6, 0.9], "null": [0.4, 0.85], "guesses": [9, 3]}
    found = {"rows": {}, "traces": {"encoder": trace}}
    report = Report("02_tsm", tmp_path, "smoke", 0)
    record(found, report)
    values = report.metrics()["values"]
    assert values["ablation.similarity.annealed_change"]["value"] == pytest.approx(-0.15)
    assert values["ablation.guesses.annealed_last"]["value"] == 3


def test_an_oracle_is_trained_and_judged():
    shown = frames("validation", 1, 128)
    bench = Bench(shown, {"seen": shown}, steps=2, batch=2, crop=32)
    numbers, trace = ablate(variants()["oracle"], bench)
    assert 0 < numbers["seen"] < 1
    assert trace == []
