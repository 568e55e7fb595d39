"""The study of the generalist: same measurements for all, numbers that belong to the images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from emlab import metrics
from emlab.bench import Report
from emlab.bench.tissue import RealPair, Specimen, block, crops, real_pair
from emlab.chapters.em_generalist import peers as generalist_peers
from emlab.chapters.em_generalist.peers import GRIDS, best_peer, known_of, run_peer, tuned
from emlab.chapters.em_generalist.rows import LABELS, ours_row, standard_methods
from emlab.chapters.em_generalist.scores import match_grey_levels, score, slice_correlation
from emlab.chapters.em_generalist.study import run_real_pair, run_study
from emlab.data.phantoms import neuropil
from emlab.errors import InputError
from emlab.methods import generalist
from emlab.recipes.generalist_tasks import GREY_RANGE, REAL_PAIR, TASKS, task


def specimen(shape=(3, 48, 48), seed=1):
    images = np.stack([neuropil(shape[1:], seed + i) for i in range(shape[0])])
    return Specimen(images, "flyem_sample2", None)


def volume():
    return Specimen(neuropil((24, 48, 32), 4), "flyem_sample2", None)


CHEAP = {
    "denoise": ("gaussian", "tv"),
    "deblur": ("wiener", "richardson_lucy"),
    "upsample": ("cubic",),
    "isotropic": ("cubic",),
}


def cheap(which):
    """Quick peers, the truth itself but for one grey level, and a constant."""
    rows = standard_methods(which, peers=CHEAP[which.kind])
    rows["near"] = lambda case: case.truth + np.where(case.truth > 100, 1, -1)
    rows["constant"] = lambda case: np.full(case.truth.shape, case.truth.mean())
    return rows


@pytest.fixture(scope="module")
def table():
    tasks = [TASKS[name] for name in ("denoise_10", "deblur", "upsample_2", "isotropic_4")]
    told = []
    result = run_study(tasks, cheap, specimen(), volume(), progress=told.append)
    assert len(told) == sum(len(methods) for methods in result.values.values())
    return result


def test_every_row_has_every_metric_and_a_place_in_the_table(table):
    for name, methods in table.values.items():
        isotropic = name.startswith("isotropic")
        assert set(methods) == {"input", *CHEAP[TASKS[name].kind], "near", "constant"}
        for method, scores in methods.items():
            assert {"psnr", "ssim", "frc_nm"} <= set(scores)
            assert len(scores["psnr"]) == (2 if isotropic else 3)
            assert len(scores["frc_nm"]) == (1 if isotropic else 3)
            assert np.isfinite(scores["frc_nm"]).all()
            assert f"| {LABELS.get(method, method)} |" in table.markdown(name)


def test_the_table_ranks_answers_as_they_deserve(table):
    for name in table.values:
        psnr = {method: table.interval(name, method).mean for method in table.values[name]}
        peer = table.best_classical(name)
        assert psnr["near"] == pytest.approx(20 * np.log10(255), abs=0.02)
        assert psnr["constant"] < psnr["input"] < psnr[peer] < psnr["near"]
        gain = table.gain(name, "near", peer)
        assert gain.low > 0
        assert gain.mean == pytest.approx(psnr["near"] - psnr[peer])
        assert table.gain(name, "near", "constant", "frc_nm").mean > 0  # shorter is better


def test_numbers_belong_to_the_images(table):
    for name in ("denoise_10", "upsample_2"):
        for method, image in table.images[name].items():
            truth = table.cases[name][0].truth
            again = metrics.psnr(image, truth, GREY_RANGE)
            assert table.values[name][method]["psnr"][0] == pytest.approx(again)


def test_columns_of_a_volume_are_scored_in_both_sections(table):
    case, estimate = table.cases["isotropic_4"][0], table.images["isotropic_4"]["cubic"]
    scores = table.values["isotropic_4"]["cubic"]
    by_hand = [metrics.psnr(estimate[:, y], case.truth[:, y], GREY_RANGE) for y in range(24)]
    assert scores["psnr_xz"][0] == pytest.approx(np.mean(by_hand))
    by_hand = [
        metrics.psnr(estimate[:, 24:, x], case.truth[:, 24:, x], GREY_RANGE) for x in range(32)
    ]
    assert scores["psnr_yz"][1] == pytest.approx(np.mean(by_hand))
    np.testing.assert_allclose(scores["psnr"], (scores["psnr_xz"] + scores["psnr_yz"]) / 2)


def test_continuity_between_planes_is_that_of_the_truth(table):
    names = ("near", "input", "constant")
    values = {m: table.interval("isotropic_4", m, "slice_correlation").mean for m in names}
    assert values["near"] == pytest.approx(1, abs=0.005)
    assert abs(values["input"] - 1) > 0.02  # planes repeat, then jump
    assert values["constant"] == 0
    assert slice_correlation(np.stack([np.eye(5)] * 3)) == pytest.approx(1)
    independent = np.random.default_rng(0).random((9, 40, 40))
    assert abs(slice_correlation(independent)) < 0.05


def test_every_method_gets_the_same_measurements_and_random_numbers():
    seen = {}

    def watched(which):
        def keep(name, case):
            seen.setdefault(name, []).append(case)
            return case.truth + 1

        return {name: lambda case, name=name: keep(name, case) for name in "ab"}

    for seed in (0, 0, 1):
        run_study([TASKS["denoise_25"], TASKS["denoise_10"]], watched, specimen(), seed=seed)
    drawn = [case.measurement for case in seen["a"]]
    assert len(drawn) == 18
    for a, b in zip(seen["a"], seen["b"], strict=True):
        np.testing.assert_array_equal(a.measurement, b.measurement)
        assert torch.equal(
            torch.rand(2, generator=a.generator()), torch.rand(2, generator=b.generator())
        )
    for first, again, other in zip(drawn[:6], drawn[6:12], drawn[12:], strict=True):
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
    residual = [case.measurement - case.truth for case in seen["a"][:6]]
    assert np.std(residual[:3]) == pytest.approx(0.25 * 255, rel=0.03)
    assert np.std(residual[3:]) == pytest.approx(0.1 * 255, rel=0.03)
    assert np.abs(np.corrcoef([r.ravel() for r in residual]) - np.eye(6)).max() < 0.1


class Shrink:
    """A prior for which everything is nearly flat."""

    def denoise(self, x, sigma):
        return x / (1 + torch.as_tensor(sigma) ** 2)[..., None, None]

    def score(self, x, sigma):
        return (self.denoise(x, sigma) - x) / (torch.as_tensor(sigma) ** 2)[..., None, None]


def test_ours_is_run_on_every_kind_of_task_and_leaves_its_costs():
    config = generalist.load_config("samples")
    solvers = {
        name: replace(solver, steps=3) if hasattr(solver, "steps") else solver
        for name, solver in config.solvers.items()
    }
    config = replace(config, solvers=solvers)

    def rows(which):
        peers = CHEAP[which.kind][:1]
        return {**standard_methods(which, peers=peers), "ours": ours_row(config, Shrink(), 2)}

    names = ("denoise_10", "deblur", "upsample_3", "isotropic_6")
    result = run_study([TASKS[name] for name in names], rows, specimen((2, 48, 48)), volume())
    for name in names:
        assert result.images[name]["ours"].shape == result.cases[name][0].truth.shape
        assert result.evaluations[name]["ours"] >= 1
        assert 0 < result.network_share[name]["ours"] <= 1
        assert result.seconds[name]["ours"] > 0
    for name in names:
        assert result.samples[name]["ours"] == 2
        assert 0 <= result.interval(name, "ours", "coverage").mean <= 1
    report = Report("01_em_generalist", "unused", "smoke", 0)
    result.record(report)
    with pytest.raises(InputError, match="already recorded"):
        report.value("isotropic_6.psnr.ours", 1.0)
    with pytest.raises(InputError, match="already recorded"):
        report.value("deblur.gain_frc_nm.over_wiener", 1.0)


def test_real_pair_is_scored_in_tiles_after_matching_grey_levels():
    clean = neuropil((128, 192), 7)
    noise = np.random.default_rng(0).normal(0, 10, clean.shape)
    pair = RealPair((0.5 * clean + 40 + noise).astype(np.float32), clean, None)
    rows = standard_methods(REAL_PAIR, peers=("gaussian",))
    rows["other_levels"] = lambda case: 3 * case.truth - 70 + np.sign(case.truth - 150)
    result = run_real_pair(pair, rows)
    assert len(result.values["real_pair"]["input"]["psnr"]) == 2
    psnr = {name: result.interval("real_pair", name).mean for name in rows}
    assert psnr["other_levels"] > 50
    assert psnr["input"] + 1 < psnr["gaussian"] < psnr["other_levels"]
    known = result.cases["real_pair"][0].known
    assert known.sigma * 255 == pytest.approx(10, rel=0.25)


def test_matching_grey_levels_keeps_what_matches_and_survives_a_constant():
    clean = neuropil((32, 32), 8)
    np.testing.assert_allclose(match_grey_levels(clean, clean), clean, atol=1e-3)
    np.testing.assert_allclose(match_grey_levels(-2 * clean + 7, clean), clean, atol=1e-2)
    np.testing.assert_allclose(match_grey_levels(clean * 0, clean), clean.mean(), atol=1e-3)


def test_answers_of_another_shape_and_missing_specimens_are_refused():
    with pytest.raises(InputError, match="shape"):
        score(TASKS["deblur"], np.zeros((8, 8)), np.zeros((9, 9)))
    with pytest.raises(InputError, match="needs a volume"):
        run_study([TASKS["isotropic_4"]], cheap, specimen())
    with pytest.raises(InputError, match="unknown task 'cats'"):
        task("cats")
    with pytest.raises(InputError, match="unknown split"):
        crops("train")


def test_every_peer_of_every_grid_is_tuned_and_settings_lie_on_the_grid():
    for name in [*TASKS, "real_pair"]:
        kind = TASKS[name].kind if name in TASKS else name
        settings = tuned(name)
        assert set(settings) == set(GRIDS[kind])
        for peer, values in settings.items():
            assert values in GRIDS[kind][peer]
            assert peer in LABELS
        assert best_peer(name) in settings
    with pytest.raises(InputError, match="no peers are tuned"):
        tuned("cats")


def test_tuning_chooses_what_validation_likes_best(monkeypatch):
    monkeypatch.setattr(generalist_peers, "crops", lambda split, count: specimen((2, 48, 48), 50))
    grids = {"denoise": {"gaussian": [{"width": w} for w in (0.3, 1.3, 5.0)]}}
    monkeypatch.setattr(generalist_peers, "GRIDS", grids)
    found = generalist_peers.tune(["denoise_10"])["denoise_10"]["gaussian"]
    assert found["width"] == 1.3
    assert found["validation_psnr"] > 25


def test_peers_take_and_return_grey_levels():
    which = TASKS["denoise_10"]
    grey = specimen((1, 48, 48)).grey[0]
    measured = which.measure(torch.from_numpy(grey), torch.Generator().manual_seed(0)).numpy()
    restored = run_peer("gaussian", measured, known_of(which), {"width": 1.2})
    assert metrics.psnr(restored, grey, GREY_RANGE) > metrics.psnr(measured, grey, GREY_RANGE) + 6


def test_without_data_specimens_are_simulated_and_say_so(monkeypatch, tmp_path):
    monkeypatch.setenv("EMLAB_MIRROR", str(tmp_path))
    monkeypatch.setenv("EMLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("EMLAB_OFFLINE", "1")
    test, validation, cut = (
        crops("test", 2, 32),
        crops("validation", 2, 32),
        block("test", (8,) * 3),
    )
    assert test.dataset is None
    assert test.grey.shape == (2, 32, 32)
    assert (test.grey != validation.grey).any()
    assert cut.grey.shape == (8, 8, 8)
    report = Report("01_em_generalist", tmp_path, "smoke", 0)
    test.record(report)


def test_real_specimens_come_from_the_test_volume(mirror):
    test, cut = crops("test"), block("test")
    assert test.grey.shape == (12, 96, 96)
    assert cut.grey.shape == (60, 96, 96)
    assert test.dataset.record.name == "flyem_sample2"
    volume = test.dataset["volume"]
    np.testing.assert_array_equal(cut.grey, volume[95:155, 77:173, 77:173])
    assert crops("validation").dataset.record.name == "flyem_validation_train"
    pair = real_pair(128)
    assert pair.noisy.shape == pair.clean.shape == (128, 128)
    assert np.corrcoef(pair.noisy.ravel(), pair.clean.ravel())[0, 1] > 0.9
