"""The study of the generalist: same measurements for all, numbers that belong to the images."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from emlab import metrics
from emlab.bench import Report
from emlab.bench.tissue import RealPair, Specimen, block, crops, own_noise, real_pair
from emlab.chapters.em_generalist.figures import rooms, table
from emlab.chapters.em_generalist.study import (
    LABELS,
    Case,
    Known,
    best_classical,
    classical_rows,
    image_of,
    match_grey_levels,
    ours_row,
    record,
    run_peer,
    run_real_pair,
    run_studies,
    score,
)
from emlab.data.phantoms import neuropil
from emlab.errors import InputError
from emlab.methods import generalist
from emlab.metrics.structure import slice_correlation
from emlab.recipes.generalist_tasks import (
    GREY_RANGE,
    MISSING,
    OPEN,
    STRANGE_BLUR,
    TASKS,
    VOLUMES,
    task,
)
from emlab.settings import tuned
from tools import tune_peers
from tools.tune_peers import GRIDS


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
    rows = classical_rows(which, peers=CHEAP[which.kind])
    rows["near"] = lambda case: case.truth + np.where(case.truth > 100, 1, -1)
    rows["constant"] = lambda case: np.full(case.truth.shape, case.truth.mean())
    return rows


@pytest.fixture(scope="module")
def studies():
    flat = [TASKS[name] for name in ("denoise_10", "deblur", "upsample_2")]
    thick = run_studies([TASKS["isotropic_4"]], cheap, volume())
    return run_studies(flat, cheap, specimen()) | thick


def test_every_row_has_every_metric_and_a_place_in_the_table(studies):
    for name, study in studies.items():
        isotropic = name.startswith("isotropic")
        assert set(study.scores) == {"input", *CHEAP[TASKS[name].kind], "near", "constant"}
        for method, scores in study.scores.items():
            assert {"psnr", "ssim", "frc_nm"} <= set(scores)
            assert scores["psnr"].shape == ((1, 2) if isotropic else (3, 1))
            assert scores["frc_nm"].shape == ((1, 1) if isotropic else (3, 1))
            assert np.isfinite(scores["frc_nm"]).all()
            shown = f"| {LABELS.get(method, method)} |" in table({name: study})
            assert shown == (method != "constant")


def test_several_tasks_share_a_table_with_half_their_intervals(studies):
    pair = {name: studies[name] for name in ("upsample_2", "isotropic_4")}
    head, _, first, *_ = table(pair).splitlines()
    assert head.startswith(
        "| method | 2x super-resolution: error removed | PSNR [dB] | SSIM | 4x i"
    )
    assert head.endswith("| PSNR [dB] | SSIM |")
    mean, low, high = pair["upsample_2"].interval("input", "psnr")
    half = (high - low) / 2
    cells = f"| {LABELS['input']} | 0% | {mean:.2f}\u00a0±\u00a0{half:.2f} | 0."
    assert first.startswith(cells)
    less = replace(pair["isotropic_4"], scores={"cubic": pair["isotropic_4"].scores["cubic"]})
    near = next(row for row in table(pair | {"isotropic_4": less}).splitlines() if "| near" in row)
    assert near.endswith("|  |  |  |")
    assert "SSIM" not in table({str(i): studies["deblur"] for i in range(3)})
    assert "seconds |" in table({"deblur": studies["deblur"]}).splitlines()[0]


def test_error_removed_counts_from_the_measurement_to_what_nobody_can_know():
    case = Case.of(task("upsample_2"), neuropil((48, 48), 2), 0)
    lost = case.lost
    assert lost == pytest.approx(own_noise() ** 2 * 3 / 4)
    error = np.sqrt(lost) * np.where(np.indices((48, 48)).sum(0) % 2, 1, -1)
    answers = [np.repeat(np.repeat(case.measurement, 2, 0), 2, 1), case.truth + error]
    removed = [score([case], [answer])["removed"].item() for answer in answers]
    assert removed == pytest.approx([0, 1], abs=1e-4)


def test_the_room_above_linear_mmse_is_shared_out(studies, tmp_path):
    study = studies["deblur"]
    room = replace(study, scores={**study.scores, "linear": study.scores["wiener"]})
    report = Report("01_em_generalist", tmp_path, "smoke", 0, "cpu")
    shown = rooms({"deblur": room}, report, ("near", "linear", "ours"))
    values = report.metrics()["values"]
    assert values["deblur.room.linear"]["value"] == 0
    left = [study.scores[name]["mse"] for name in ("wiener", "near")]
    share = (left[0] - left[1]).mean() / (left[0].mean() - study.cases[0].lost)
    assert values["deblur.room.near"]["value"] == pytest.approx(share)
    assert "deblur.room.ours" not in values
    assert "blur 2 px" in shown


def test_the_table_ranks_answers_as_they_deserve(studies):
    for study in studies.values():
        psnr = {method: study.interval(method, "psnr").mean for method in study.scores}
        peer = best_classical(study)
        assert psnr["near"] == pytest.approx(20 * np.log10(255), abs=0.02)
        assert psnr["constant"] < psnr["input"] < psnr[peer] < psnr["near"]
        gain = study.gain("near", peer, "psnr")
        assert gain.low > 0
        assert gain.mean == pytest.approx(psnr["near"] - psnr[peer])
        assert study.gain("near", "constant", "frc_nm").mean > 0  # shorter is better


def test_numbers_belong_to_the_images(studies):
    for name in ("denoise_10", "upsample_2"):
        for method, answers in studies[name].answers.items():
            again = metrics.psnr(image_of(answers[1]), studies[name].cases[1].truth, GREY_RANGE)
            assert studies[name].scores[method]["psnr"][1] == pytest.approx(again)


def test_columns_of_a_volume_are_scored_in_both_sections(studies):
    study = studies["isotropic_4"]
    case, estimate = study.cases[0], study.answers["cubic"][0]
    scores = {name: values[0] for name, values in study.scores["cubic"].items()}
    by_hand = [metrics.psnr(estimate[:, y], case.truth[:, y], GREY_RANGE) for y in range(24)]
    assert scores["psnr_xz"][0] == pytest.approx(np.mean(by_hand))
    by_hand = [
        metrics.psnr(estimate[:, 24:, x], case.truth[:, 24:, x], GREY_RANGE) for x in range(32)
    ]
    assert scores["psnr_yz"][1] == pytest.approx(np.mean(by_hand))
    np.testing.assert_allclose(scores["psnr"], (scores["psnr_xz"] + scores["psnr_yz"]) / 2)


def test_continuity_between_planes_is_that_of_the_truth(studies):
    names, study = ("near", "input", "constant"), studies["isotropic_4"]
    values = {m: study.interval(m, "slice_correlation").mean for m in names}
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
        run_studies([TASKS["denoise_25"], TASKS["denoise_10"]], watched, specimen(), seed=seed)
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
        return {**classical_rows(which, peers=peers), "ours": ours_row(config, Shrink(), 2)}

    flat = [TASKS[name] for name in ("denoise_10", "deblur", "upsample_3")]
    result = run_studies(flat, rows, specimen((2, 48, 48)))
    result |= run_studies([TASKS["isotropic_6"]], rows, volume())
    for study in result.values():
        for case, answer in zip(study.cases, study.answers["ours"], strict=True):
            assert answer.image.shape == case.truth.shape
            assert answer.cost.evaluations >= 1
            assert 0 < answer.cost.network_seconds <= answer.cost.seconds
            assert len(answer.samples) == 2
        assert study.seconds["ours"] > 0
    report = Report("01_em_generalist", "unused", "smoke", 0)
    record(result, report)
    values = report.metrics()["values"]
    assert values["isotropic_6.psnr.ours"]["n"] == 2
    assert values["isotropic_6.frc_nm.ours"]["n"] == 1
    assert values["deblur.psnr.ours"]["n"] == 2
    with pytest.raises(InputError, match="already recorded"):
        report.value("isotropic_6.psnr.ours", 1.0)
    with pytest.raises(InputError, match="already recorded"):
        report.value("deblur.gain_frc_nm.ours_over_wiener", 1.0)


def test_real_pair_is_scored_in_tiles_after_matching_grey_levels():
    clean = neuropil((128, 192), 7)
    noise = np.random.default_rng(0).normal(0, 10, clean.shape)
    pair = RealPair((0.5 * clean + 40 + noise).astype(np.float32), clean, None)

    def rows(which):
        methods = classical_rows(which, peers=("gaussian",))
        methods["other_levels"] = lambda case: 3 * case.truth - 70 + np.sign(case.truth - 150)
        return methods

    study = run_real_pair(pair, rows)["real_pair"]
    assert study.scores["input"]["psnr"].shape == (1, 2)
    psnr = {name: study.interval(name, "psnr").mean for name in study.scores}
    assert psnr["other_levels"] > 50
    assert psnr["input"] + 1 < psnr["gaussian"] < psnr["other_levels"]
    known = study.cases[0].known
    assert known.sigma * 255 == pytest.approx(10, rel=0.25)


def test_matching_grey_levels_keeps_what_matches_and_survives_a_constant():
    clean = neuropil((32, 32), 8)
    np.testing.assert_allclose(match_grey_levels(clean, clean), clean, atol=1e-3)
    np.testing.assert_allclose(match_grey_levels(-2 * clean + 7, clean), clean, atol=1e-2)
    np.testing.assert_allclose(match_grey_levels(clean * 0, clean), clean.mean(), atol=1e-3)


def test_answers_of_another_shape_and_unknown_tasks_are_refused():
    with pytest.raises(InputError, match="shape"):
        score([Case(TASKS["deblur"], np.zeros((9, 9)), np.zeros((9, 9)), 0)], [np.zeros((8, 8))])
    with pytest.raises(InputError, match="unknown task 'cats'"):
        task("cats")
    with pytest.raises(InputError, match="unknown split"):
        crops("train")


def test_every_peer_of_every_grid_is_tuned_and_settings_lie_on_the_grid():
    kinds = {one.name: one.kind for one in (*TASKS.values(), *OPEN, MISSING)}
    kinds |= {one.name: "volume" for one in VOLUMES} | {"real_pair": "real_pair"}
    for name, kind in kinds.items():
        settings = tuned("em_generalist", name)
        assert set(settings) == set(GRIDS[kind])
        for peer, values in settings.items():
            assert peer == "linear" or values in GRIDS[kind][peer]
            assert peer in LABELS
    with pytest.raises(InputError, match="no peers are tuned"):
        tuned("em_generalist", "cats")
    assert list(classical_rows(STRANGE_BLUR)) == list(classical_rows(TASKS["deblur"]))


def test_tuning_chooses_what_validation_likes_best(monkeypatch):
    monkeypatch.setattr(tune_peers, "crops", lambda split, count: specimen((2, 48, 48), 50))
    grids = {"denoise": {"gaussian": [{"width": w} for w in (0.3, 1.3, 5.0)]}}
    monkeypatch.setattr(tune_peers, "GRIDS", grids)
    found = tune_peers.search("denoise_10")["gaussian"]
    assert found["width"] == 1.3
    assert found["validation_psnr"] > 25


def test_peers_take_and_return_grey_levels():
    which = TASKS["denoise_10"]
    grey = specimen((1, 48, 48)).grey[0]
    measured = which.measure(torch.from_numpy(grey), torch.Generator().manual_seed(0)).numpy()
    known = Known(which, which.noise)
    restored = run_peer("gaussian", measured, known, {"width": 1.2})
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
