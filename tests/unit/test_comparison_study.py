"""Chapter 06: agreement, rings, halves, inventions and verdicts are what they are called."""

import json
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from emlab import chapters
from emlab.bench import Report
from emlab.bench.claims import claims_table
from emlab.chapters.compare import cases as chapter, study
from emlab.chapters.compare.cases import SOLVERS, agree
from emlab.chapters.compare.figures import (
    CHECKPOINTS,
    decision_table,
    inventions,
    rings,
    training_table,
    window,
)
from emlab.chapters.compare.study import halves, split
from emlab.chapters.tsm import cases as peers
from emlab.chapters.tsm.study import by_row
from emlab.data.potentials import barrel as simulated_barrel
from emlab.errors import InputError
from emlab.external import topaz
from emlab.external.topaz import Picked
from emlab.methods.cellpose3 import load_segmenter
from emlab.physics.micrograph import MicrographConfig, simulate_micrograph
from emlab.recipes.particles import SEGMENTER
from emlab.settings import PROFILES


@pytest.fixture(scope="module")
def micrographs():
    pytest.importorskip("torch_fourier_slice")
    config = MicrographConfig(size=192, particles=5, contaminants=0, defocus_angstrom=20000.0)
    volume = simulated_barrel(64, 2.63)
    return [
        simulate_micrograph(config, volume, torch.Generator().manual_seed(seed)) for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def segmenter():
    return load_segmenter(SEGMENTER)


@pytest.fixture(scope="module")
def judged(micrographs, segmenter):
    clean = iter([m.clean.numpy() for m in micrographs])
    methods = peers.classical(["raw", "gaussian"])
    methods["tsm"] = peers.each(lambda image: next(clean))
    methods["squares"] = peers.each(lambda image: image[::-1, ::-1].copy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topaz, "find", lambda: None)
        return study.judge(micrographs, methods, {"raw": 0.0}, segmenter, first={"squares": 1})


def test_all_solvers_give_the_posterior_mean_of_a_gaussian(tmp_path):
    found = agree(samples=60, pairs=400, seed=1)
    assert found.distance("nothing") > 1.5
    for name in ("generalist", "flowdps"):
        assert found.distance(name) < 0.25
    for name in ("tsm", "mtd", "cellpose3"):
        assert found.distance(name) < 0.08
    report = Report("06_compare", tmp_path, "smoke", 0)
    found.record(report)
    assert {f"agreement.{name}" for name in SOLVERS} == set(report.metrics()["values"])
    assert found.markdown().count("\n") == 1 + len(SOLVERS)


def test_a_radial_filter_changes_no_ring_and_the_truth_is_the_truth(judged):
    seen = {name: scores["rings"] for name, scores in judged.scores.items()}
    np.testing.assert_allclose(seen["gaussian"], seen["raw"], atol=0.03)
    np.testing.assert_allclose(seen["tsm"], 1, atol=1e-6)
    assert judged.gain("tsm", "raw", "frc").low > 0.2
    assert abs(judged.gain("gaussian", "raw", "frc").mean) < 0.01
    assert judged.winners()["Fourier ring correlation"] == "tsm"
    assert judged.resolution("tsm") == 0
    assert judged.resolution("raw") > 10


def test_the_segmenter_judges_and_pairs_are_of_what_both_saw(judged, tmp_path):
    assert judged.own["tsm"].at(-np.inf).f1() > 0.7
    assert judged.gains("tsm", "raw")["own_f1"].mean > 0.4
    assert judged.seen("squares") == 1
    one = judged.gain("squares", "raw", "correlation")
    assert one.low == one.mean < 0
    assert "| - |" in judged.markdown_all()
    report = Report("06_compare", tmp_path, "smoke", 0)
    judged.record_all(report)
    values = report.metrics()["values"]
    assert values["correlation.constant"]["value"] == values["frc.constant"]["value"] == 0
    assert values["own.f1.constant"]["value"] == 0
    assert values["gain_frc.squares_over_raw"]["n"] == 1
    assert values["gain_correlation.tsm_over_squares"]["value"] > 0
    assert "gain_f1.tsm_over_raw" not in values
    assert judged.markdown_gains().count("\n") == 1 + 3


def test_recorded_picks_join_the_very_same_micrographs_only(
    judged, micrographs, segmenter, monkeypatch
):
    places = [[[9.0, 9.0, 1.0]], [[5.0, 5.0, 1.0], [9.0, 9.0, -1.0]]]
    raw = peers.classical(["raw"])
    bands = by_row(judged.scores["raw"])
    row = {"cost": 2.0, "bands": bands, "picks": places}
    whole = row | {"rings": judged.scores["raw"]["rings"].tolist(), "own": [[], places[1]]}
    monkeypatch.setattr(topaz, "find", lambda: None)

    def again(**rows):
        told = {"kept": [("an old run", rows)], "report": Mock(recorded=lambda one: f"from {one}")}
        return study.judge(micrographs, raw, {"raw": 0.0}, segmenter, **told)

    joined = again(raw=row, bm3d=whole)
    assert list(joined.recorded) == ["bm3d"]
    assert [len(each.scores) for each in joined.own["bm3d"].picked] == [0, 2]
    assert "| BM3D † |" in joined.markdown_all()
    assert joined.markdown_all().endswith("\n\n† from an old run")
    ice = {"ice": {"raw": [3], "bm3d": [4]}}
    nothing = study.audit({"ice": micrographs[:1]}, raw, joined, segmenter, kept=ice)
    scores = nothing.studies["ice"].scores
    assert {name: one["topaz"].tolist() for name, one in scores.items()} == {"raw": [3]}
    other = row | {"bands": (np.array(bands) + 0.1).tolist()}
    assert not again(raw=other, bm3d=whole).picks


def test_what_is_made_of_nothing_is_counted_and_refusals_are_kept(
    judged, segmenter, monkeypatch, tmp_path
):
    monkeypatch.setattr(chapter, "volume", lambda name: (simulated_barrel(64, 2.63), name))
    fields = {"noise": chapter.empty_fields(1, 192, 0)["noise"]}
    assert len(fields["noise"][0].coordinates) == 0
    assert float(fields["noise"][0].clean.std()) < 0.02 * float(fields["noise"][0].noisy.std())

    def refuse(image):
        raise InputError("nothing but noise")

    methods = peers.classical(["raw"])
    methods["tsm"] = peers.each(refuse)
    three = Picked(np.zeros((3, 2)), np.array([1.0, 0.2, -3.0]))
    monkeypatch.setattr(study, "find_picks", lambda made, *_: {name: [three] for name in made})
    nothing = study.audit(fields, methods, judged, segmenter)
    assert nothing.studies["noise"].scores["raw"]["topaz"].tolist() == [2]
    assert nothing.refused == {"tsm": "nothing but noise"}
    assert 0.3 < nothing.studies["noise"].scores["raw"]["contrast"].mean() < 1.1
    report = Report("06_compare", tmp_path, "smoke", 0)
    nothing.record(report)
    values = report.metrics()["values"]
    assert values["nothing.topaz.noise.raw"]["value"] == 2
    assert "nothing.contrast_noise.raw" in values
    nothing.studies["ice"] = nothing.studies["noise"]
    assert nothing.markdown().count("refused") == 0
    assert inventions(nothing, ["raw"]).axes
    assert rings(judged, ["raw", "tsm"]).axes


def test_halves_share_the_specimen_and_not_the_noise():
    generator = np.random.default_rng(0)
    y, x = np.indices((800, 800))
    specimen = np.sin(2 * np.pi * y / 37) + np.sin(2 * np.pi * x / 53)
    noise = generator.normal(0, 4, specimen.shape)
    first, second = halves(noise.astype(np.float32))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.02
    first, second = halves(specimen.astype(np.float32))
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.99
    # What was invented, the same for both halves, is praised by the last column alone.
    invented = generator.normal(size=(520, 520)).astype(np.float32)
    methods = {
        "raw": peers.each(lambda image: image),
        "gaussian": peers.each(lambda image: peers.gaussian(image, 1.0)),
        "tsm": peers.each(lambda image: invented[: image.shape[0], : image.shape[1]]),
    }
    found = split((specimen + noise).astype(np.float32), 0.854, methods, 2)
    assert found.scores["tsm"]["itself"].min() > 0.999
    assert abs(found.scores["tsm"]["with_raw"].mean()) < 0.05
    assert abs(found.gain("gaussian", "raw", "with_raw").mean) < 0.01
    assert found.markdown_all().count("\n") == 4
    with pytest.raises(InputError, match=r"1\.3 A"):
        split(np.zeros((64, 64), np.float32), 2.0, methods)
    with pytest.raises(InputError, match="halves"):
        halves(np.zeros(4, np.float32))


def test_the_table_of_methods_links_every_chapter_and_that_of_training_reads_the_cards():
    chapter_six = Path(__file__).parents[2] / "notebooks" / "06_compare.ipynb"
    cells = json.loads(chapter_six.read_text(encoding="utf-8"))["cells"]
    (table,) = ["".join(c["source"]) for c in cells if "".join(c["source"]).startswith("| method")]
    links = [f"({path.stem}.ipynb)" for path in chapters.shipped()[1:-1]]
    assert [line for line in links if line not in table] == []
    assert all(line.count("|") == 5 for line in table.splitlines())
    assert len(CHECKPOINTS) == len(links) + 1
    cards = training_table()
    assert "particle_restorer" in cards
    assert "flyem" in cards


def value(number, low=None, high=None, n=None):
    return {"value": number, "low": low, "high": high, "n": n}


def test_statements_are_counted_by_what_became_of_their_conditions(tmp_path):
    report = Report("06_compare", tmp_path, "smoke", 0)
    for name in ("tsm", "generalist", "flowdps", "mtd", "cellpose3"):
        report.value(f"agreement.{name}", 0.1)
    report.value("own.f1.raw", 0.7, 0.6, 0.8, n=4)
    report.value("gain_own_f1.cellpose3_over_raw", 0.1, -0.1, 0.3, n=4)
    chapter.record_statements(report)
    found = report.metrics()["values"]
    counts = [found[f"statements.{word}"]["value"] for word in ("confirmed", "contradicted")]
    assert counts == [1, 1]


def test_tables_fill_in_numbers_and_dashes():
    assert "0.25" in decision_table({"gain_correlation.tsm_over_raw": value(0.25)})
    statements = chapters.claims("06_compare", "statement")
    assert claims_table(statements, {}).count("not measured") == len(statements)


def test_every_profile_says_what_is_smaller_than_in_the_paper():
    for profile in PROFILES:
        told = chapters.shortcuts(chapter.SLUG, profile, peers.LABELS)
        assert (told == []) == (profile == "paper")
    assert {"raw", "tsm", "generalist", "squares", "cellpose3"} <= set(chapter.thresholds())


def test_generalist_sees_the_chosen_pixel_size_and_returns_the_given_one():
    seen = []

    class Prior:
        def denoise(self, x, sigma):
            seen.append(tuple(x.shape[-2:]))
            return x

    image = np.random.default_rng(0).normal(100, 5, (160, 128)).astype(np.float32)
    image[40:80] += 20
    method = chapter.generalist_method("cpu", 0, prior=Prior(), working_angstrom=5.26)
    assert method([image]).images[0].shape == (160, 128)
    assert set(seen) == {(80, 64)}


def test_a_field_at_another_dose_has_the_same_particles(monkeypatch):
    monkeypatch.setattr(chapter, "volume", lambda name: (simulated_barrel(64, 2.63), name))
    few, many = (chapter.field_at(dose, 2.0, 0, size=96) for dose in (20.0, 80.0))
    np.testing.assert_array_equal(few.coordinates, many.coordinates)
    assert many.noisy.mean().item() == pytest.approx(4 * few.noisy.mean().item(), rel=0.02)


def test_the_window_is_about_a_particle(micrographs):
    shown = window({"raw": micrographs[0].noisy.numpy()}, micrographs[0], side=80)
    assert [image.shape for image in shown.values()] == [(80, 80), (80, 80)]
    assert list(shown) == ["raw", "clean"]
