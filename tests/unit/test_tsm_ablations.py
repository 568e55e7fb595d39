"""Short trainings of TSM's variants: what differs, and that measured rows are complete."""

import warnings

from emlab.bench import Report
from emlab.chapters.tsm.figures import traces
from emlab.chapters.tsm.recorded import ABLATIONS, TRACED, ablation_table

VARIANTS = ABLATIONS.settings["variants"]


def test_variants_differ_from_the_default_in_what_they_say():
    default = VARIANTS["tsm"]
    assert VARIANTS["dsm"] == {**default, "label": "DSM", "targets": "none"}
    assert VARIANTS["weight_0.3"]["guidance"] == {**default["guidance"], "weight": 0.3}
    assert VARIANTS["scalar"]["objective"] == {**default["objective"], "ringwise": False}
    assert VARIANTS["literal"]["guidance"]["variant"] == "literal"
    assert VARIANTS["oracle"]["targets"] == "true"
    assert len({repr(variant) for variant in VARIANTS.values()}) == len(VARIANTS)


def test_measured_rows_are_of_all_variants(tmp_path):
    rows = ABLATIONS.values["rows"]
    assert rows.keys() == {"raw", *VARIANTS}
    assert all(-1 < one < 1 for row in rows.values() for kind in row for one in row[kind])
    assert {name: len(row["seen"]) for name, row in rows.items() if len(row["seen"]) > 1} == {
        "dsm": 3,
        "tsm": 3,
        "oracle": 3,
    }
    report = Report("02_tsm", tmp_path, "smoke", 0)
    text = ablation_table(report)
    assert all(variant["label"] in text for variant in VARIANTS.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        traces({name: ABLATIONS.values["traces"][name] for name in TRACED})
        traces({})


def test_similarity_is_recorded_above_chance(tmp_path):
    report = Report("02_tsm", tmp_path, "smoke", 0)
    ablation_table(report)
    values = report.metrics()["values"]
    trace = ABLATIONS.values["traces"]["encoder_at_once"]
    first, last = (trace["similarity"][end] - trace["null"][end] for end in (0, -1))
    change = values["ablation.similarity.at_once_change"]["value"]
    assert abs(change - (last - first)) < 1e-9
    annealed = ABLATIONS.values["traces"]["encoder"]
    assert annealed["guesses"][0] == 0  # nothing stands out yet: counted from 0
    grown = values["ablation.similarity.annealed_change"]["value"]
    assert abs(grown - (annealed["similarity"][-1] - annealed["null"][-1])) < 1e-9
    gains = values["ablation.gain.oracle_over_dsm"]
    assert gains["low"] <= gains["value"] <= gains["high"]


def test_an_oracle_and_a_guided_variant_are_trained_and_judged():
    bank = {**VARIANTS["tsm"]["bank"], "directions": 6, "angles": 4, "rank": 16}
    some = {name: {**VARIANTS[name], "bank": bank} for name in ("oracle", "tsm")}
    training = {**ABLATIONS.settings["training"], "steps": 2, "batch_size": 2}
    small = {"micrographs": 1, "size": 128, "crop": 32, "training": training, "variants": some}
    small["seeds"] = {"tsm": 2}
    found = ABLATIONS.measure({**ABLATIONS.settings, **small})
    assert found["rows"].keys() == {"raw", *some}
    assert all(0 < one < 1 for row in found["rows"].values() for one in row["seen"])
    assert len(found["rows"]["tsm"]["seen"]) == 2
    assert "oracle" not in found["traces"]
