"""Short trainings of TSM's variants: what differs, and that measured rows are complete."""

import warnings

import pytest

from emlab.bench import Report
from emlab.chapters.tsm.figures import (
    TRACED,
    ablation_table,
    learning_curves,
    long_table,
    session_curves,
    traces,
)
from emlab.chapters.tsm.recorded import ABLATIONS, LONG, SESSION
from emlab.recipes.tsm import PROTEINS, frames

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
    one = {"bank": bank, "micrographs": 1}
    some = {name: {**VARIANTS[name], **one, "seeds": k} for name, k in (("oracle", 1), ("tsm", 2))}
    some["poses"] = {**some["oracle"], "targets": "poses"}
    training = {**ABLATIONS.settings["training"], "steps": 2, "batch_size": 2}
    small = {
        "size": 128,
        "judged_size": 128,
        "crop": 32,
        "training": training,
        "variants": some,
        "judges": 1,
    }
    found = ABLATIONS.measure({**ABLATIONS.settings, **small})
    assert found["rows"].keys() == {"raw", *some}
    assert all(0 < one < 1 for row in found["rows"].values() for one in row["seen"])
    assert len(found["rows"]["tsm"]["seen"]) == 2
    assert "oracle" not in found["traces"]


def test_learning_curves_have_all_seeds_and_compare_equal_numbers_of_micrographs(tmp_path):
    report = Report("02_tsm", tmp_path, "smoke", 0)
    curves = session_curves(report)
    assert list(curves["dsm"]) == list(curves["tsm"]) == [1, 2, 4, 8]
    assert {len(row) for name in ("dsm", "tsm", "wrong") for row in curves[name].values()} == {3}
    values, rows = report.metrics()["values"], SESSION.values["rows"]
    gain = values["session.gain.tsm_over_dsm.at_4"]
    pairs = zip(rows["tsm_4"]["test"], rows["dsm_4"]["test"], strict=True)
    differences = [with_bank - without for with_bank, without in pairs]
    assert abs(gain["value"] - sum(differences) / 3) < 1e-9
    assert (gain["low"], gain["high"]) == (min(differences), max(differences))
    wrong = values["session.gain.wrong_over_dsm.at_1"]["value"]
    means = [values[f"session.{name}.at_1"]["value"] for name in ("wrong", "dsm")]
    assert wrong == pytest.approx(means[0] - means[1])
    axes = learning_curves(curves).axes[0]
    assert len(axes.get_legend_handles_labels()[1]) == len(curves)


def test_a_session_is_the_protein_of_the_test_and_none_of_its_micrographs():
    settings = SESSION.settings
    assert PROTEINS[settings["shown"]] == PROTEINS[settings["judged"]["test"]]
    shown, judged = (frames(split, 1, 96)[0].micrograph for split in ("session", "test"))
    assert shown.defocus_angstrom == judged.defocus_angstrom
    assert not shown.noisy.equal(judged.noisy)
    assert settings["variants"]["wrong_1"]["targets"] not in PROTEINS["session"]


def test_longer_trainings_are_paired_by_seed(tmp_path):
    report = Report("02_tsm", tmp_path, "smoke", 0)
    text, values, rows = long_table(report), report.metrics()["values"], LONG.values["rows"]
    assert all(variant["label"] in text for variant in LONG.settings["variants"].values())
    assert {len(rows[name]["test"]) for name in ("dsm", "poses", "true")} == {3}
    pairs = zip(rows["true"]["test"], rows["dsm"]["test"], strict=True)
    differences = [told - alone for told, alone in pairs]
    gain = values["long.gain.true_over_dsm"]
    assert (gain["low"], gain["high"]) == (min(differences), max(differences))
    (peer,) = rows["wiener"]["test"]
    over = values["long.gain.dsm_over_wiener"]["value"]
    assert over == pytest.approx(sum(rows["dsm"]["test"]) / 3 - peer)
