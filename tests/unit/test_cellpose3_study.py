"""Cases, scores, audit and brightness of the Cellpose3 chapter, with a segmenter by threshold."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import ndimage

from emlab import chapters
from emlab.bench import Report, format_targets
from emlab.bench.claims import claims_table
from emlab.bench.study import Study, each
from emlab.chapters.cellpose3 import (
    cases as cases_of,
    figures as draw,
    rows,
    study,
)
from emlab.chapters.cellpose3.study import verdicts
from emlab.data import access, records
from emlab.data.cells import Cell, simulated_cells
from emlab.data.download import Policy
from emlab.errors import InputError
from emlab.methods import cellpose3
from emlab.metrics.segmentation import average_precision
from emlab.physics.degradations import degrade_fixed, normalise
from emlab.settings import PROFILES, tuned
from tools import tune_cells

DENOISE = 12.0


def label(image):
    """Segments what is bright after slight smoothing; stands in for the trained network."""
    smooth = ndimage.gaussian_filter(image, 1.0)
    labels = ndimage.label(smooth > 0.5)[0].astype(np.int32)
    small = np.bincount(labels.ravel()) < 20
    labels[small[labels]] = 0
    return labels


@pytest.fixture(scope="module")
def found():
    return [cases_of.at_working_size(cell) for cell in simulated_cells(4, 5, 96)]


@pytest.fixture(scope="module")
def cases(found):
    return cases_of.make_cases(found, "denoise", {cell.name: DENOISE for cell in found}, 0)


def _answer(image):
    return study.Answer(image, label(image))


METHODS = {
    "clean": lambda case: _answer(case.clean),
    "degraded": lambda case: _answer(case.degraded),
    "constant": lambda case: study.Answer(0 * case.degraded, 0 * case.labels),
    "gaussian": lambda case: _answer(rows.PEERS["gaussian"](case, width=1.5)),
    "ours": lambda case: study.Answer(case.clean, case.labels),
}


@pytest.fixture(scope="module")
def table(cases):
    return run(cases, METHODS)


def run(cases, methods):
    asked = {name: each(method) for name, method in methods.items()}
    return Study(cases, study.COLUMNS, study.LABELS).run(asked, study.score)


# Cases


def test_a_case_is_the_published_degradation_and_its_counts(cases):
    case = cases[0]
    generator = torch.Generator().manual_seed(case.seed)
    expected = degrade_fixed(torch.from_numpy(case.clean), "denoise", DENOISE, generator)
    np.testing.assert_array_equal(case.degraded, expected.numpy())
    np.testing.assert_allclose(normalise(torch.from_numpy(case.counts)), expected, atol=1e-6)
    assert case.counts.mean() == pytest.approx(DENOISE * case.clean.mean(), rel=0.05)
    assert len({one.seed for one in cases}) == 4
    with pytest.raises(InputError, match="only noisy images"):
        _ = replace(case, task="deblur").counts


def test_splines_put_pixels_at_their_places(cases):
    fine = replace(cases[0], task="upsample", level=3.0)
    bilinear = fine.degraded
    cubic = fine.interpolated()
    clean = cases[0].clean
    corr = [np.corrcoef(image.ravel(), clean.ravel())[0, 1] for image in (bilinear, cubic)]
    assert corr[1] > corr[0]  # the published interpolation moves the image by a pixel
    assert fine.blur_sigma == 1.5
    assert replace(fine, level=1.0).blur_sigma == 0


@pytest.mark.parametrize("worse", [0.5, 2.0])
def test_the_level_that_halves_is_found_by_stepping_out_and_bisecting(worse):
    sign = np.sign(np.log(worse))
    tried = []

    def quality(level):
        tried.append(level)
        return 1 / (1 + (level / 40.0) ** (2 * sign))

    level = cases_of.halving_level(quality, 0.5, 5.0, worse, 8)
    assert level == pytest.approx(40, rel=0.05)
    assert len(tried) < 13
    assert cases_of.halving_level(lambda _: 0.0, 0.0, 8.0, 0.5, 4) > 1000


def test_whole_levels_stay_whole():
    level = cases_of.halving_level(lambda k: 1 - k / 20, 0.55, 5.0, 2.0, 6, whole=True)
    assert level == 9
    assert cases_of.halving_level(lambda _: 1.0, 0.5, 5.0, 2.0, 6, whole=True) <= 30


def test_tuned_levels_halve_the_precision(found):
    levels = cases_of.tune_levels(found[:2], "denoise", label, 3, 4)
    for cell in found[:2]:
        clean = cases_of.precision(cell.labels, label(cell.image))
        case = cases_of.make_cases([cell], "denoise", levels, 8)[0]
        spoilt = cases_of.precision(cell.labels, label(case.degraded))
        assert 0.1 * clean < spoilt < 0.85 * clean


def test_the_busiest_window_is_taken_with_its_labels():
    labels = np.zeros((60, 80), np.int32)
    labels[40:50, 60:70] = 3
    place = cases_of.busiest(labels, 16)
    assert (labels[place] > 0).sum() == 100
    cell = cases_of.part(Cell(labels.astype("f4"), labels, "a", "b"), place)
    assert cell.image.shape == cell.labels.shape == (16, 16)
    assert cases_of.busiest(labels, 500) == (slice(0, 60), slice(0, 80))


# Scores


@pytest.mark.real_data
def test_nuclei_that_a_package_ships_come_before_simulated_ones(mirror, monkeypatch, tmp_path):
    """Only those that no network was trained on; without them, simulated nuclei."""
    monkeypatch.setenv("EMLAB_CACHE", str(tmp_path / "cache"))
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setattr(access, "Policy", lambda: Policy(attempts=1))
    for shipped in (["stardist_2d"], []):
        some = tmp_path / "_".join(["mirror", *shipped])
        some.mkdir()
        for file in (file for name in shipped for file in records()[name].files):
            (some / file.path).parent.mkdir(parents=True, exist_ok=True)
            (some / file.path).symlink_to(mirror / file.path)
        monkeypatch.setenv("EMLAB_MIRROR", str(some))
        found, report = cases_of.chapter_cells(), Report("05_cellpose3", tmp_path, "smoke", 0)
        cases_of.record_cells(report, found)
        report.value("number", 1.0)
        (entry,) = report.metrics()["data"]
        assert {cell.domain for cell in found} == {"stardist" if shipped else "simulated"}
        assert entry["name"] == ("stardist_2d" if shipped else "nuclei")
        assert entry["stands_in_for"] == "nuclei_test"


def test_counts_are_those_of_the_metric(cases):
    found = label(cases[1].degraded)
    counts = study.count_objects(cases[1].labels, found)
    matched = average_precision(cases[1].labels, found)
    scores = study.from_counts([counts])
    np.testing.assert_allclose(scores["ap"][0], matched.ap)
    assert scores["fp_rate"][0, 0] == matched.fp[0]
    assert scores["fn_rate"][0, 0] == matched.fn[0]


def test_objects_on_nothing_are_counted():
    truth = np.zeros((20, 20), np.int32)
    truth[2:8, 2:8] = 1
    labels = np.zeros_like(truth)
    labels[2:8, 2:8] = 1
    labels[12:18, 12:18] = 2  # on nothing
    labels[8:12, 2:8] = 3
    labels[7, 2:5] = 3  # three of its 27 pixels belong to the nucleus
    assert study.count_objects(truth, labels)[:3] == [3, 1, 1]


def test_gains_and_recovered_shares(table):
    assert table.interval("ours", "ap_50").mean == 1
    assert table.interval("constant", "ap_50").mean == 0
    assert table.interval("ours", "fn_rate").mean == 0
    assert table.interval("constant", "fn_rate").mean == 1
    assert table.gain("ours", "degraded", "ap_50").low > 0
    changed = study.changes(table)
    assert changed.interval("clean", "recovered").mean == pytest.approx(1)
    assert changed.interval("degraded", "recovered").mean == 0
    assert changed.interval("constant", "recovered").mean < 0
    assert changed.interval("ours", "worse_images").mean == 0
    assert changed.interval("constant", "worse_images").mean == 1
    assert changed.interval("ours", "more_fp").mean < 0


def test_the_table_is_recorded_and_shown(table, tmp_path):
    report = Report("05_cellpose3", tmp_path, "smoke", 0)
    study.record(table, report, "denoise")
    values = report.metrics()["values"]
    assert values["denoise.ap_50.ours"]["value"] == 1
    assert values["denoise.gain.ours_over_gaussian"]["low"] > 0
    assert "denoise.recovered.degraded" not in values
    assert study.markdown(table).count("\n") == 1 + len(METHODS)
    assert "{" not in claims_table(chapters.claims("05_cellpose3"), values)
    targets = format_targets(chapters.targets("05_cellpose3"), values)
    assert "denoise, of the lost AP" in targets


def test_the_summary_says_no_more_than_the_intervals():
    def gain(low, high):
        return {"value": (low + high) / 2, "low": low, "high": high}

    values = {
        "deblur.ap_50.ours": gain(0.6, 0.8),
        "deblur.recovered.ours": gain(0.6, 0.8),
        "deblur.gain.ours_over_gaussian": gain(0.1, 0.2),
        "deblur.gain.ours_over_richardson_lucy": gain(-0.01, 0.03),
        "deblur.gain.ours_over_range": gain(-0.05, -0.01),
        "deblur.gain.ours_over_constant": gain(0.5, 0.7),
    }
    assert verdicts(values) == (
        "- **Blur**: 0.7 [0.6, 0.8] of the lost AP comes back; ahead of *Gaussian*; not told apart "
        "from *Richardson-Lucy*; behind *as ours, in the paper's range*."
    )


def test_a_study_refuses_what_it_cannot_score(cases):
    nothing_lost = run(cases[:2], {"clean": METHODS["ours"], "degraded": METHODS["ours"]})
    with pytest.raises(InputError, match="nothing was lost"):
        study.changes(nothing_lost)
    with pytest.raises(InputError, match="labels have"):
        run(cases, {"odd": lambda case: study.Answer(case.clean, case.labels[:5])})


def test_recorded_rows_are_used_for_the_very_same_cases_only(cases, monkeypatch, tmp_path):
    kept = {"gaussian": [rows._row(METHODS["gaussian"], case) for case in cases]}
    kept["noise2void"] = kept["gaussian"]
    fake = SimpleNamespace(values={"denoise": kept}, name="rows", stale=False)
    monkeypatch.setattr(rows, "ROWS", fake)
    monkeypatch.setattr(rows, "SLOW", SimpleNamespace(values={}, name="slow", stale=False))
    report = Report("05_cellpose3", tmp_path, "smoke", 0)
    monkeypatch.setattr(report, "recorded", lambda recording: f"recorded: {recording.name}")
    slow = ("noise2void", "noise2self")
    table = rows.run_study(report, "denoise", cases, METHODS, slow)
    assert table.recorded == {"gaussian": 0, "noise2void": None}
    shown = study.markdown(table)
    assert "Gaussian † |" in shown
    assert shown.endswith("\n\n† recorded: rows What ran again is 0 apart at most.")
    assert table.methods[:2] == ["clean", "degraded"]
    assert len(table.answers["gaussian"]) == rows.CHECKED
    assert report.metrics()["values"]["recorded.apart.denoise.gaussian"]["value"] == 0
    for other in (replace(cases[0], level=3.0), replace(cases[0], seed=1)):
        assert rows.recorded("denoise", "gaussian", [other, *cases[1:]]) is None
    fake.stale = True
    assert rows.recorded("denoise", "gaussian", cases) is None


# Peers and rows


def test_peers_see_the_case_and_restore_it(cases):
    case = cases[0]
    error = [np.abs(case.degraded - case.clean).mean()]
    error.append(np.abs(rows.PEERS["gaussian"](case, width=1.0) - case.clean).mean())
    assert error[1] < error[0]
    blurred = replace(case, task="deblur", level=3.0)
    settings = {"smoothing": 0.0, "iterations": 10}
    sharper = rows.PEERS["richardson_lucy"](blurred, **settings)
    edges = [ndimage.gaussian_gradient_magnitude(i, 1.5).max() for i in (blurred.degraded, sharper)]
    assert edges[1] > 1.1 * edges[0]


def test_bm3d_works_on_square_roots_of_counts(cases):
    pytest.importorskip("bm3d")
    small = study.crop(cases[0], (slice(0, 48), slice(0, 48)))
    smooth = rows.PEERS["bm3d"](small, strength=1.0)
    assert np.abs(smooth - small.clean).mean() < 0.6 * np.abs(small.degraded - small.clean).mean()


def test_tuning_takes_the_best_of_a_grid(cases, monkeypatch):
    grids = {"denoise": {"gaussian": [{"width": w} for w in (1.0, 9.0, 30.0)]}}
    monkeypatch.setattr(tune_cells, "GRIDS", grids)
    best = tune_cells.search("denoise", cases[:2], label)["gaussian"]
    assert best["width"] == 1.0
    assert 0 < best["validation_ap_50"] <= 1


def test_every_task_has_tuned_peers_and_rows():
    for task, grid in tune_cells.GRIDS.items():
        assert set(tuned("cellpose3", task)) == set(grid) == set(rows.peer_rows(task, grid, None))
        assert "ours" in rows.RESTORERS[task]
    assert {name for task in rows.RESTORERS.values() for name in task} <= set(study.LABELS)


# Audit


def test_objects_in_noise_are_counted_for_an_area(cases):
    methods = {"degraded": METHODS["degraded"], "constant": METHODS["constant"]}
    found = study.from_noise(methods, [5.0, 20.0, 50.0], 64, 1)
    assert found.interval("constant", "objects").mean == 0
    expected = [len(np.unique(label(case.degraded))) - 1 for case in found.cases]
    assert found.interval("degraded", "objects").mean == pytest.approx(
        np.mean(expected) * 1e4 / 64**2
    )


def test_background_windows_hold_no_object(cases):
    case = cases[0]
    empty = replace(case, labels=case.labels.copy())
    empty.labels[:50, :60] = 0
    place = study.empty_window(empty.labels > 0, 30)
    assert not empty.labels[place].any()
    assert study.empty_window(np.ones((50, 50), bool), 10) is None
    assert study.empty_window(np.zeros((20, 20), bool), 30) is None
    window = study.crop(empty, place)
    assert window.degraded.shape == window.counts.shape == (30, 30)
    np.testing.assert_array_equal(window.counts, empty.counts[place])
    assert np.percentile(window.degraded, 99) == pytest.approx(1, abs=0.2)
    seen = study.from_background({"degraded": METHODS["degraded"]}, [empty, empty], 30)
    assert len(seen.cases) == 2


def test_brightness_of_raw_counts_is_right_and_that_of_a_stretched_image_is_not(cases, tmp_path):
    ours = [study.Answer(0.3 + 0.5 * case.clean, case.labels) for case in cases]
    same = [study.Answer(case.degraded, case.labels) for case in cases]
    found = study.measure_brightness(cases, {"degraded": same, "ours": ours})
    measured = {way: found.scores[way]["measured"] for way in found.methods}
    assert found.interval("raw", "slope").mean == pytest.approx(1, abs=0.06)
    assert abs(found.interval("raw", "bias_bright").mean) < 0.03
    np.testing.assert_allclose(measured["degraded"], measured["raw"], rtol=1e-3)
    assert found.interval("ours", "slope").mean == pytest.approx(0.5, abs=1e-3)
    bias = [found.interval("ours", f"bias_{part}").mean for part in ("dim", "bright")]
    assert bias[0] > bias[1]
    assert found.interval("ours", "error").mean > 2 * found.interval("raw", "error").mean
    report = Report("05_cellpose3", tmp_path, "smoke", 0)
    found.record(report, "brightness")
    assert "brightness.bias_dim.raw" in report.metrics()["values"]


# Figures


def test_outlines_tell_found_wrong_and_missed():
    truth = np.zeros((30, 30), np.int32)
    truth[2:10, 2:10], truth[2:10, 18:26] = 1, 2
    labels = np.zeros_like(truth)
    labels[2:10, 2:10], labels[20:28, 4:12] = 5, 7
    right, wrong, missed = draw.sorted_objects(labels, truth)
    assert (np.unique(right)[1], np.unique(wrong)[1], np.unique(missed)[1]) == (5, 7, 2)
    picture = draw.outlined(np.zeros((30, 30)), labels, truth)
    colours = {tuple(picture[y, x].round(2)) for y, x in ((2, 2), (20, 4), (2, 18), (15, 15))}
    assert len(colours) == 4


def test_every_figure_is_drawn(table, cases):
    noise = study.from_noise({"degraded": METHODS["degraded"]}, [5.0, 9.0], 48, 0)
    answers = {"ours": [table.answers["ours"][i] for i in range(4)]}
    bright = study.measure_brightness(cases, answers)
    flows = np.zeros((2, *cases[0].labels.shape), np.float32)
    seen = SimpleNamespace(flows=flows, cell_probability=flows[0], labels=cases[0].labels)
    figures = [
        draw.examples(table, 0, list(METHODS)),
        draw.curves({"a": table, "b": table}, ("clean", "degraded", "ours")),
        draw.changes(table, ("gaussian", "ours")),
        draw.rates({"a": table, "b": table}, ("degraded", "ours")),
        draw.level_histograms({"denoise": {"a": 3.0, "b": 9.0}, "deblur": {"a": 2, "b": 5}}),
        draw.domains({"nuclei": table, "plant": table}, ("clean", "ours")),
        draw.nothing(noise, ("degraded",)),
        draw.brightness(bright),
        draw.grid(draw.flow_pictures(cases[0], flows, seen), 5),
    ]
    assert all(isinstance(figure, Figure) for figure in figures)
    strip = draw.strip_picture(cases[0], cases[0].labels, 0.5)
    assert "level 12" in strip.alt


# Settings


def test_every_profile_has_all_settings_and_says_what_it_does_less_of():
    keys = [set(chapters.settings("05_cellpose3", profile)) for profile in PROFILES]
    assert all(found == keys[0] for found in keys)
    assert chapters.shortcuts("05_cellpose3", "paper") == []
    told = chapters.shortcuts("05_cellpose3", "smoke")
    assert any("5 here, 52 at full scale" in sentence for sentence in told)


def test_the_diameter_is_that_which_agrees_with_itself(found, monkeypatch):
    """Where the labeller finds objects at any size, the true size is what is left."""
    cell = found[0]
    large = ndimage.zoom(cell.image, 2, order=1)

    def by_size(image, segmenter, rescale_intensity):
        return SimpleNamespace(labels=label(image))

    monkeypatch.setattr(cellpose3, "segment", by_size)
    for image, true in ((cell.image, 17.0), (large, 34.0)):
        assert cellpose3.estimate_diameter(image, None) == pytest.approx(true, rel=0.25)
    assert cellpose3.estimate_diameter(np.zeros((40, 40)), None) == 17.0
