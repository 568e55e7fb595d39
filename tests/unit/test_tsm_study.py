"""The study of chapter 02: what it calls a pick, a map and a control is one."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch

from emlab.bench import Report
from emlab.chapters.tsm import cases, study
from emlab.chapters.tsm.figures import many_table, record_memory
from emlab.chapters.tsm.recorded import APOFERRITIN, MANY, PICKER, SLOW_PEERS, join, join_maps
from emlab.data.potentials import barrel as simulated_barrel
from emlab.errors import InputError
from emlab.external import relion, topaz
from emlab.external.picking import Picks, bin_to, f1_gain, matched_rotations, pick_all
from emlab.external.process import Finished
from emlab.external.topaz import Picked
from emlab.physics.micrograph import MicrographConfig, simulate_micrograph


@pytest.fixture(scope="module")
def barrel():
    pytest.importorskip("torch_fourier_slice")
    return simulated_barrel(32, 5.26)


@pytest.fixture(scope="module")
def micrographs(barrel):
    config = MicrographConfig(
        size=128, pixel_size_angstrom=5.26, particles=8, contaminants=0, defocus_angstrom=15000.0
    )
    return [
        simulate_micrograph(config, barrel, torch.Generator().manual_seed(seed)) for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def table(micrographs):
    methods = cases.classical(["raw", "gaussian", "wiener"])
    methods["tsm"] = cases.each(lambda image: image)
    found = study.run_study(micrographs, methods, {"raw": 0.0}, first={"wiener": 1})
    truth = [micrograph.coordinates for micrograph in micrographs]
    for name, kept in (("raw", 0.5), ("tsm", 0.9)):
        picked = []
        for places in truth:
            hits = places[: max(1, round(kept * len(places)))]
            wrong = np.array([[5.0, 120.0]])
            picked.append(Picked(np.concatenate([hits + 2, wrong]), np.r_[np.ones(len(hits)), 0.5]))
        found.picks[name] = Picks(picked, truth, 14.0)
    return found


def test_the_table_knows_who_is_better(table):
    assert table.gain("tsm", "raw", "recovery").mean == 0
    assert table.gain("gaussian", "raw", "recovery").mean != 0
    assert table.seen("wiener") == 1
    gain = table.picking_gain("tsm", "raw")
    assert gain.mean > 0.1
    assert table.picking_gain("tsm", "raw", "recall").mean > gain.mean
    assert "skipped" not in table.markdown_picks()
    assert table.markdown_recovery().count("\n") == 5


def test_without_topaz_picks_are_skipped_and_said_so(micrographs, monkeypatch):
    monkeypatch.setattr(topaz, "find", lambda: None)
    found = study.run_study(micrographs, cases.classical(["raw"]), {"raw": 0.0})
    found.pick()
    assert "not installed" in found.markdown_picks()
    assert "skipped" in found.markdown_maps()


def test_answers_of_another_shape_are_refused(micrographs):
    methods = {"raw": cases.each(lambda image: image[:-1])}
    with pytest.raises(InputError, match="shapes"):
        study.run_study(micrographs, methods, {"raw": 0.0})


def test_all_methods_go_through_one_run_of_the_picker_and_back_to_full_pixels(monkeypatch):
    seen = []

    def fake(images, radius, **_):
        seen.append((len(images), images[0].shape, radius))
        darkest = [np.argwhere(image == image.min()) for image in images]
        return [Picked(d.astype(float), np.ones(len(d))) for d in darkest], Finished("", 1, 2.0, 3)

    monkeypatch.setattr(topaz, "pick", fake)
    image = np.ones((60, 90), np.float32)
    image[30:33, 60:63] = 0
    found, seconds = pick_all({"raw": [image], "tsm": [image, image]}, 2.63, 150.0)
    assert seen == [(3, (20, 30), 6)]
    assert [len(every) for every in found.values()] == [1, 2]
    assert found["tsm"][1].coordinates.tolist() == [[31, 61]]
    assert seconds == 2
    assert bin_to(image, 7).shape == (8, 12)


def test_gain_of_a_method_over_itself_is_nothing(table):
    raw = table.picks["raw"]
    assert f1_gain(raw.at(0.0), raw.at(0.0)) == (0, 0, 0)
    assert f1_gain(raw.at(0.0), raw.at(2.0)).mean > 0


def test_recorded_picks_join_a_table_of_the_same_micrographs_only(table):
    def row(method, shift=0.0):
        bands = (np.array(study.by_row(table.scores[method])) + shift).tolist()
        picks = [[[*place, 1.0] for place in m.coordinates] for m in table.cases]
        return {"bands": bands, "cost": 3.0, "picks": picks}

    def fresh():
        found = study.Table(table.cases, thresholds={"raw": 0.0})
        found.answers |= table.answers
        found.scores |= table.scores
        return found

    report = Mock(recorded=lambda one: f"from {one}", value=lambda _, value, **more: value)
    other = fresh()
    assert not join(other, [("here", {"raw": row("raw", 0.1)})], report)
    assert not other.picks
    mine = fresh()
    shown = row("gaussian") | {"window": SLOW_PEERS.values["bm3d"]["window"]}
    kept = [("here", {"raw": row("raw"), "wiener": shown}), ("there", {"topaz": row("gaussian")})]
    assert join(mine, kept, report)
    assert mine.said == ["from here", "from there"]
    assert {name: image.shape for name, image in mine.windows.items()} == {"wiener": (220, 220)}
    assert mine.counts("raw").f1() > 0.9
    assert mine.recorded.keys() == {"topaz", "wiener"}
    assert mine.seen("wiener") == 2
    assert mine.cost("topaz") == 3
    assert mine.markdown_recovery().count("† |") == 2
    assert mine.markdown_picks().endswith("\n\n† from here\n\n† from there")


def test_recordings_of_the_chapter_are_of_as_many_micrographs_as_it_shows():
    rows = PICKER.values["tables"]["test"]
    assert {len(row["picks"]) for row in rows.values()} == {8}
    assert {"raw", "topaz", "dsm", "tsm"} <= rows.keys()
    assert {len(row["picks"]) for row in SLOW_PEERS.values.values()} == {8}
    assert set(APOFERRITIN.values) == {"average", "noisy"}
    table = study.Table([], thresholds={"raw": 0.0})
    join_maps(table, PICKER.values["maps"])
    assert table.maps["truth"].true_resolution_angstrom < 40
    assert "RELION" in table.markdown_maps()


def test_a_pick_on_no_particle_gets_a_pose_of_chance():
    truth = np.array([[10.0, 10.0], [50.0, 50.0]])
    poses = np.stack([np.eye(3), -np.eye(3)])
    turned, centres, right = matched_rotations(np.array([[51.0, 49], [90, 90]]), truth, poses, 5, 0)
    assert right.tolist() == [True, False]
    assert centres.tolist() == [[50, 50], [90, 90]]
    np.testing.assert_array_equal(turned[0], -np.eye(3))
    np.testing.assert_allclose(turned[1] @ turned[1].T, np.eye(3), atol=1e-9)


def test_particles_are_cut_from_raw_bright_and_with_their_poses(micrographs):
    off = np.array([1.3, -0.4])
    places = [m.coordinates + off for m in micrographs]
    found = study.extract(micrographs, places, 10.0, box=32)
    assert found.right.all()
    around = found.images.copy()
    around[:, 7:25, 7:25] = np.nan
    assert found.images[:, 9:23, 9:23].mean() > np.nanmean(around) + 0.1
    assert len(found.half(0).images) + len(found.half(1).images) == len(found.images)
    first = found.metadata.shifts_angstrom[0] / 5.26
    fits = next(
        p for p, q in zip(places[0], micrographs[0].coordinates, strict=True)
        if ((np.round(p) - 16 >= 0) & (np.round(p) + 16 <= 128)).all()
    )  # fmt: skip
    np.testing.assert_allclose(np.round(fits)[::-1] + first, (fits - off)[::-1], atol=1e-6)
    with pytest.raises(InputError, match="smaller box"):
        study.extract(micrographs, [np.zeros((1, 2))] * 2, 10.0)


def test_right_picks_make_a_finer_map_than_wrong_ones(micrographs, barrel):
    if relion.find() is None:
        pytest.skip(relion.MISSING)
    radius = 5.0
    right = study.extract(micrographs, [m.coordinates for m in micrographs], radius, box=32)
    moved = [(m.coordinates + 15).clip(16, 111) for m in micrographs]
    wrong = study.extract(micrographs, moved, radius, box=32)
    maps = [study.reconstruct(each, barrel.numpy()) for each in (right, wrong)]
    assert maps[0].program.startswith("RELION")
    assert maps[0].truth_curve.correlation[:6].mean() > 0.6
    assert maps[1].truth_curve.correlation[:6].mean() < 0.4


def test_noise2void_and_bm3d_clean():
    pytest.importorskip("bm3d")
    y, x = np.indices((64, 64))
    clean = np.where((y // 16 + x // 16) % 2, 1.0, -1.0)
    noisy = (clean + np.random.default_rng(0).normal(size=clean.shape)).astype(np.float32)
    found = {"noise2void": cases.noise2void(noisy, 60, 0), "bm3d": cases.block_matching(noisy, 1)}
    before = np.corrcoef(noisy.ravel(), clean.ravel())[0, 1]
    for image in found.values():
        assert np.corrcoef(image.ravel(), clean.ravel())[0, 1] > before + 0.05


def test_wiener_keeps_what_is_above_the_noise():
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(128, 128)).astype(np.float32)
    y = np.indices(noise.shape)[0]
    wave = (2 * np.sin(2 * np.pi * y / 32)).astype(np.float32)
    found = cases.wiener(noise + wave, 1.5)
    assert found.std() == pytest.approx(wave.std(), rel=0.1)
    assert cases.wiener(noise, 1.5).std() < 0.2
    with pytest.raises(InputError, match="strength"):
        cases.wiener(noise, 0)


def test_empty_micrographs_and_their_picks(table, barrel, monkeypatch):
    empty = simulate_micrograph(
        MicrographConfig(size=128, pixel_size_angstrom=5.26, particles=0),
        barrel,
        torch.Generator().manual_seed(5),
    )
    three = Picked(np.zeros((3, 2)), np.array([1.0, 0.2, -3.0]))
    monkeypatch.setattr(topaz, "find", lambda: "here")
    monkeypatch.setattr(cases, "pick_all", lambda images, *_, **__: (
        {name: [three] * len(every) for name, every in images.items()}, 0.0))  # fmt: skip
    found = cases.no_particles([empty], cases.classical(["raw"]), table.thresholds)
    assert found.scores["raw"]["picks"].tolist() == [2]
    assert "2.0" in found.markdown()


def test_particles_resemble_themselves_and_noise_nothing(micrographs, barrel, monkeypatch):
    monkeypatch.setattr(cases, "volume", lambda name: (barrel, name))
    noisy = [m.noisy.numpy() for m in micrographs[:1]]
    clean = [m.clean.numpy() for m in micrographs[:1]]
    noise = [np.random.default_rng(0).normal(size=(128, 128)).astype(np.float32)]
    images = {"raw": noisy, "tsm": clean, "dsm": noise}
    found = cases.resemblance(micrographs[:1], images, "barrel", windows=3)
    tsm, raw, dsm = (found.interval(name, "cosine").mean for name in ("tsm", "raw", "dsm"))
    assert tsm > 0.6
    assert tsm > raw > dsm
    assert found.gain("tsm", "dsm", "cosine").mean > 0.2


def test_the_report_holds_what_the_bounds_ask_for(table, micrographs, barrel, tmp_path):
    report = Report("02_tsm", tmp_path, "smoke", 0)
    table.record_all(report)
    table.record_set(report, "near focus")
    values = report.metrics()["values"]
    for name in ("recovery.tsm", "picking.gain_f1.tsm_over_raw", "recovery_80_40.raw"):
        assert name in values
    assert values["picking.recall.raw"]["low"] <= values["picking.recall.raw"]["value"]
    assert values["set.near_focus.f1.tsm"]["value"] == values["picking.f1.tsm"]["value"]
    assert values["picking.f1.tsm"]["value"] == table.picks["tsm"].at(0.0).f1()


def test_memory_is_shown_as_recorded(tmp_path):
    report = Report("02_tsm", tmp_path, "smoke", 0)
    assert "GB in" in record_memory(report)
    assert 0 < report.metrics()["values"]["memory.over_topaz"]["value"] < 1
    assert [one["name"] for one in report.metrics()["recorded"]] == ["memory"]


def test_many_micrographs_are_judged_at_one_threshold_and_at_one_recall(tmp_path):
    report = Report("02_tsm", tmp_path, "smoke", 0)
    text, values = many_table(report), report.metrics()["values"]
    assert text.count("\n") == 1 + len(MANY.values)
    settings = MANY.settings
    for row in MANY.values.values():
        assert len(row["threshold"][0]) == len(row["recall"][0]) == settings["micrographs"] >= 30
        assert len(row["ice"]) == settings["empty"]
        assert row["threshold"][2] == row["recall"][2]  # the same particles
    hits, picks, truths = (sum(one) for one in MANY.values["tsm"]["threshold"])
    assert values["many.f1.tsm"]["value"] == pytest.approx(2 * hits / (picks + truths))
    recalls = [sum(row["recall"][0]) for row in MANY.values.values()]
    assert min(recalls) >= recalls[list(MANY.values).index("raw")] * 0.999
    gain = values["many.gain_f1.tsm_over_raw"]
    assert gain["low"] <= gain["value"] <= gain["high"]
