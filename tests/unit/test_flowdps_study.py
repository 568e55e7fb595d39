"""The study of chapter 03: its numbers are what they are called, on a prior that is known."""

import json
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from emlab import chapters
from emlab.bench import Report
from emlab.bench.claims import claims_table
from emlab.chapters.flowdps import cases as cases_of, experiments as lab, study as rows
from emlab.chapters.flowdps.study import finer_by, misfit, plain, run_study, score
from emlab.data.phase_maps import PIXEL_ANGSTROM, held_out_direction, project, specimen_volume
from emlab.methods import flowdps
from emlab.physics import Poisson
from emlab.priors import networks
from emlab.priors.pose_posterior import PoseConfig
from emlab.settings import PROFILES
from emlab.solvers.denoiser_spread import WienerSpread, power_spectrum
from emlab.solvers.guided_phase import filtered


class Stationary:
    """Gaussian images with the power of barrels: posterior and spread are known."""

    def __init__(self, power):
        self.power = WienerSpread(power).power

    def denoise(self, x, sigma):
        return filtered(x, self.power / (self.power + sigma**2))

    def score(self, x, sigma):
        return (self.denoise(x, sigma) - x) / sigma**2


@pytest.fixture(scope="module")
def cases():
    pytest.importorskip("torch_fourier_slice")
    return cases_of.make_cases("barrel", 6, 3)


@pytest.fixture(scope="module")
def sampling():
    pytest.importorskip("torch_fourier_slice")
    power = power_spectrum(cases_of.library("barrel"))
    return rows.Sampling(Stationary(power), WienerSpread(power), "known")


CONFIG = replace(rows.hurried("ours", 5, 5, 6), prior="none")


@pytest.fixture(scope="module")
def table(cases, sampling):
    drawn = np.zeros((1, 64, 64), np.float32)
    methods = {"picture": rows.reference_rows(drawn)["picture"]}
    methods |= rows.classical_rows(("wiener", "sparse"))
    methods |= {"ours": rows.sampled_row(sampling, CONFIG, 0)}
    return run_study(cases, methods, {"sparse": 3})


def test_doses_are_given_in_turn_and_counts_follow_them(cases):
    assert cases.dose.tolist() == [30, 45, 60] * 2
    edge = cases.counts[:, :8].mean((1, 2))
    torch.testing.assert_close(edge.double(), cases.dose * 2.63**2, rtol=0.03, atol=0)
    again = cases_of.make_cases("barrel", 6, 3)
    assert torch.equal(again.counts, cases.counts)
    part = cases[2:4]
    assert len(part) == 2
    assert torch.equal(part.instrument().A(part.truth), cases.instrument().A(cases.truth)[2:4])


def test_a_chosen_defocus_keeps_the_astigmatism(cases):
    moved = cases_of.make_cases("barrel", 6, 3, defocus_angstrom=20000.0).optics
    mean = (moved.defocus_u_angstrom + moved.defocus_v_angstrom) / 2
    np.testing.assert_allclose(mean, 20000)
    before = cases.optics.defocus_u_angstrom - cases.optics.defocus_v_angstrom
    np.testing.assert_allclose(moved.defocus_u_angstrom - moved.defocus_v_angstrom, before)


def test_hidden_coefficients_are_those_that_wiener_gets_wrong(cases, table):
    hidden = cases.near_zeros()
    assert 0.03 < hidden.mean() < 0.4
    assert not hidden[:, :3, :3].any()
    spectra = np.fft.rfft2(table.answers["wiener"].image)
    truth = np.fft.rfft2(cases.truth.numpy())
    follows, power = (spectra * truth.conj()).real, np.abs(truth) ** 2
    kept = [follows[where].sum() / power[where].sum() for where in (hidden, ~hidden)]
    assert kept[0] < 0.5 * kept[1]


def test_the_truth_scores_perfectly_and_misfit_is_one(cases):
    found = score(cases, plain(cases.truth + 0.3))
    assert found["rmse"].max() < 1e-6
    assert found["contrast"] == pytest.approx(np.ones(6), abs=1e-5)
    assert rows.rings(found).correlation().min() > 0.999
    whole, coarse = misfit(cases, cases.truth.numpy()[None])
    assert whole == pytest.approx(np.ones(6), abs=0.05)
    assert coarse == pytest.approx(np.ones(6), abs=0.6)
    assert "covered" not in found


def test_the_pose_of_a_known_structure_is_found_without_being_told(monkeypatch):
    few = PoseConfig(low_pass_angstrom=4 * PIXEL_ANGSTROM, directions=60, angles=45)
    monkeypatch.setattr(cases_of, "POSES", few)
    case = cases_of.make_cases("barrel", 1, 5, (60.0,))
    turns, shifts = cases_of._likeliest(case)
    begun = project(specimen_volume("barrel"), turns[:1, 0], PIXEL_ANGSTROM, 300.0, shifts[0])
    found = rows.posed_row(case).image
    error, before = ((a - case.truth.numpy()).std() for a in (found, begun.numpy()))
    assert error < 0.1 * case.truth.std()
    assert error < 0.5 * before
    cases_of._reference.cache_clear()


def test_directions_are_the_groups_of_particles():
    many = cases_of.make_cases("barrel", 24, 3)
    assert 4 <= len(set(many.directions)) <= 8
    first = many.rotations[many.directions == many.directions[0]]
    assert len(first) >= 1
    assert held_out_direction(first, "test").tolist() == [many.directions[0]] * len(first)


def test_posterior_of_a_known_prior_is_calibrated_and_best(table):
    assert rows.coverage(table, "ours").low > 0.8
    assert rows.ratio(table, "ours", "wiener").mean < 1.4  # a mean of six samples is no exact one
    assert table.gain("ours", "picture", "rmse").low > 0.4 * table.interval("picture", "rmse").mean
    assert table.gain("ours", "wiener", "crps").mean > 0
    assert finer_by(table, "ours", "ours").mean == 1


def test_a_method_may_see_fewer_particles(table):
    assert table.seen("sparse") == 3
    ours, sparse = (table.scores[name]["rmse"] for name in ("ours", "sparse"))
    found = rows.ratio(table, "ours", "sparse").mean
    assert found == pytest.approx(ours[:3].mean() / sparse.mean())


def test_the_table_is_recorded_and_shown(table, tmp_path):
    report = Report("03_flowdps", tmp_path, "smoke", 0)
    rows.record(table, report)
    values = report.metrics()["values"]
    for name in (
        "rmse.ours",
        "gain_michelson.ours_over_strongest",
        "coverage.ours.dose_30",
        "rmse_ratio.ours_over_best_classical",
    ):
        assert name in values
    assert values["coverage.ours.all"]["value"] == rows.coverage(table, "ours").mean
    text = rows.table(table)
    assert text.count("\n") == 1 + len(table.scores)
    assert "ours: guided sampler" in text
    assert "{" not in claims_table(chapters.claims("03_flowdps"), values)


@pytest.mark.parametrize("name", [name for name in cases_of.CLASSICAL if name != "transport"])
def test_every_peer_of_one_image_beats_the_picture(name, cases, table):
    settings = dict(cases_of.PEERS.values[name])
    settings["iterations"] = min(settings.get("iterations", 0), 10) or None
    settings = {key: value for key, value in settings.items() if value is not None}
    few = cases[:2]
    found = score(few, plain(cases_of.classical(name, few, settings)))
    assert found["rmse"].mean() < 0.95 * table.scores["picture"]["rmse"][:2].mean()


def test_transport_needs_its_three_images_and_many_electrons(cases):
    bright = replace(cases[:2], dose=torch.full((2,), 1e6, dtype=torch.float64))
    settings = {"step_angstrom": 2000.0, "regularisation": 1e-6}
    found = score(bright, plain(cases_of.classical("transport", bright, settings)))
    assert rows.rings(found).correlation()[1:6].mean() > 0.9


def test_answers_lie_between_truth_and_training_view(cases, tmp_path):
    truth, view = cases.truth.numpy(), cases_of.nearest_view(cases).numpy()
    assert np.corrcoef(view.ravel(), truth.ravel())[0, 1] > 0.95
    answers = {"wiener": lambda _: plain(truth + 0.1), "ours": lambda _: plain(view)}
    report = Report("03_flowdps", tmp_path, "smoke", 0)
    found = lab.memory(report, run_study(cases, answers))
    assert found["wiener"] == pytest.approx((0, 0, 0), abs=1e-5)
    for name in ("ours", "ours_over_wiener"):
        assert found[name] == pytest.approx((1, 1, 1), abs=1e-5)
    assert report.metrics()["values"]["memory.leaning.ours"]["value"] == pytest.approx(1)


def test_averaging_removes_what_differs_and_keeps_what_is_shared(cases):
    truth = cases.truth.numpy()
    generator = np.random.default_rng(0)
    alone = 0.05 * generator.normal(size=(8, *truth.shape)).astype(np.float32)
    common = 0.05 * generator.normal(size=truth.shape).astype(np.float32)
    differing = lab.averaging(truth, truth + alone)
    ratio = differing.invented[7].mean() / differing.invented[0].mean()
    assert ratio == pytest.approx(1 / 8, rel=0.1)
    assert abs(differing.shared.mean()) < 0.1 * differing.invented[0].mean()
    shared = lab.averaging(truth, truth + alone + common)
    power = (common**2).sum() / ((truth - truth.mean((1, 2), keepdims=True)) ** 2).sum()
    assert shared.shared.mean() == pytest.approx(power, rel=0.15)
    half = lab.averaging(truth, np.stack([truth / 2, truth / 2]), cases.near_zeros())
    assert half.invented == pytest.approx(np.zeros((2, 6)), abs=1e-9)


def test_strangers_misfit_coarsely(cases, sampling, table, tmp_path):
    own = table.scores["ours"]
    odd = replace(cases, truth=cases.truth.roll(20, 2))
    counts = Poisson().sample(odd.instrument().A(odd.truth), torch.Generator().manual_seed(1))
    strange = run_study(replace(odd, counts=counts), {"ours": lambda _: table.answers["ours"]})
    found = lab.strangers(["barrel"], 4, sampling, CONFIG, 5) | {"odd": strange}
    report = Report("03_flowdps", tmp_path, "smoke", 0)
    lab.record_strangers(report, own, found)
    values = report.metrics()["values"]
    assert values["stranger.auc.odd"]["value"] > 0.95
    assert 0.1 < values["stranger.auc.barrel"]["value"] < 0.9
    assert values["stranger.auc.worst"]["value"] == values["stranger.auc.barrel"]["value"]


def test_nothing_becomes_less_than_a_particle(cases, sampling, tmp_path):
    report = Report("03_flowdps", tmp_path, "smoke", 0)
    found = lab.from_nothing(report, cases[:3], sampling, CONFIG, 1)
    assert found.numbers["contrast_of_mean"] < found.numbers["contrast"] < 0.9
    assert found.counts[1].std() == pytest.approx(np.sqrt(45 * 2.63**2), rel=0.05)


def test_the_race_counts_the_same_work(cases, sampling, tmp_path):
    quick = replace(CONFIG, sampler=replace(CONFIG.sampler, steps=2), samples=3)
    batched = sampling.retrieve(cases, quick, 0)
    report = Report("03_flowdps", tmp_path, "smoke", 0)
    found = lab.race(report, batched, cases[:1], sampling, quick, 0)
    assert found["particles_per_second"] == len(cases) / batched.cost.seconds
    assert found["speedup"] == found["particles_per_second"] / found["one_at_a_time"] > 0
    assert 0 < found["network_share"] < 1


def test_the_table_is_what_users_get(cases, sampling, table):
    """Ours is `flowdps.retrieve`, told dose and envelope, in the square of the simulation."""
    answer = table.answers["ours"]
    few = flowdps.retrieve(
        cases.counts[:2].numpy(), cases.optics.subset(slice(2)), CONFIG,
        torch.Generator().manual_seed(0), prior=sampling.prior, spread=sampling.spread,
        dose_per_angstrom2=[30.0, 45.0], b_factor_angstrom2=60.0,
    )  # fmt: skip
    assert answer.independent == few.independent == 3
    assert score(cases, answer)["chi2"] == pytest.approx(answer.chi2, rel=1e-4)
    assert few.chi2 == pytest.approx(answer.chi2[:2], abs=0.03)


def test_sweeps_change_the_instrument_only():
    settings = {"specimen": "barrel", "poses": 2, "seed": 3, "doses": [9.0], "defoci": [15000.0]}
    (_, dose, first), (_, defocus, second) = lab._instruments(settings)
    assert (dose, defocus) == (9.0, 15000.0)
    assert torch.equal(first.truth, second.truth)
    assert set(first.dose.tolist()) == {9.0}
    assert set(second.dose.tolist()) == {45.0}
    assert np.ptp(second.optics.defocus_u_angstrom + second.optics.defocus_v_angstrom) < 1


def test_a_recorded_sweep_has_its_intervals_over_directions():
    runs = {"10": {"ours": {"rmse": [1, 1, 3], "groups": [0, 0, 1], "covered": [[1], [1], [0]]}}}
    study = lab.sweep_studies(runs)[10.0]
    error, share = (study.interval("ours", column) for column in ("rmse", "covered"))
    assert error.mean == pytest.approx(5 / 3)
    assert (error.low, error.high) == pytest.approx((1, 3))
    assert share.mean == pytest.approx(2 / 3)


def test_recorded_rows_join_the_particles_that_they_were_measured_on(
    cases, table, monkeypatch, tmp_path
):
    scores = {key: values.tolist() for key, values in table.scores["ours"].items()}
    rows_kept = {"sparse": {"scores": json.loads(json.dumps(scores)), "seconds": 0.25}}
    kept = {"particles": cases.told(), "rows": rows_kept}
    monkeypatch.setattr(lab, "ROWS", Mock(values=kept))
    monkeypatch.setattr(lab, "FURTHER", Mock(values={**kept, "rows": {}}))
    report = Mock(recorded=lambda _: "Recorded.", value=Mock(side_effect=lambda _, v, **more: v))
    live = run_study(cases, {"ours": lambda _: table.answers["ours"]})
    live.scores["sparse"] = table.scores["sparse"]
    lab.join_rows(live, report)
    n = len(table.scores["sparse"]["rmse"])
    apart = np.abs(table.scores["sparse"]["rmse"] - table.scores["ours"]["rmse"][:n]).max()
    assert live.recorded == {"sparse": pytest.approx(apart)}
    assert report.value.call_args.args == ("recorded.apart.sparse", live.recorded["sparse"])
    assert rows.ratio(live, "ours", "sparse").mean == pytest.approx(1)
    assert live.interval("sparse", "frc_per_nm") == live.interval("ours", "frc_per_nm")
    assert rows.coverage(live, "sparse") == rows.coverage(live, "ours")
    assert "sparse Fresnel †" in rows.table(live)
    assert "†" not in rows.table(table)
    assert "| 0.25 |" in rows.misfit_table(live)
    other = run_study(cases[:3], {"ours": lambda _: plain(cases.truth[:3])})
    lab.join_rows(other, report)
    assert other.recorded == {}


def test_recorded_rows_are_not_shown_for_other_particles(cases):
    known = cases[:4].told()
    assert cases.begin_with(known)
    assert not cases[:3].begin_with(known)
    assert not cases[1:6].begin_with(known)
    assert not cases_of.make_cases("barrel", 6, 4).begin_with(known)


def test_a_hollow_sphere_is_a_stranger(cases):
    shell = cases_of.make_cases(cases_of.SHELL, 3, 0)
    middle, rim = shell.truth[:, 32, 32], shell.truth.amax((1, 2))
    assert (middle < 0.6 * rim).all()
    assert (shell.truth[:, 0] == 0).all()


def test_without_models_the_barrel_stands_in_and_says_so(monkeypatch, tmp_path):
    pytest.importorskip("torch_fourier_slice")
    for name in ("EMLAB_MIRROR", "EMLAB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("EMLAB_OFFLINE", "1")
    assert cases_of.chapter_specimen() == "barrel"
    assert cases_of.available(["apoferritin", cases_of.SHELL]) == [cases_of.SHELL]
    for own, expected in (("barrel", {"pdb_6bdf"}), ("t20s", set())):
        report = Report("03_flowdps", tmp_path, "smoke", 0)
        cases_of.record_specimens(report, own, [cases_of.SHELL], ["apoferritin"])
        missed = {item["stands_in_for"] for item in report.metrics()["data"] if item["stand_in"]}
        assert missed == expected | {"pdb_4v1w", "t20s_metadata"}


def test_every_profile_has_all_settings_and_says_what_it_does_less_of():
    keys = [set(chapters.settings("03_flowdps", profile)) for profile in PROFILES]
    assert all(found == keys[0] for found in keys)
    assert chapters.shortcuts("03_flowdps", "paper") == []
    assert "4 here, 1000 at full" in "\n".join(chapters.shortcuts("03_flowdps", "smoke"))


def test_an_untrained_network_has_the_size_of_the_card(monkeypatch, cases, sampling):
    card = SimpleNamespace(
        model={"kind": "unet", "widths": [8, 16], "embedding": 16},
        objective={"kind": "flow", "mean": 0.0, "std": 1.0},
    )
    monkeypatch.setattr(networks.weights, "card", lambda _: card)
    untrained = rows.untrained_row(CONFIG, sampling.spread, 0)
    table = run_study(cases[:2], {"untrained": untrained})
    assert table.interval("untrained", "rmse").mean > 0.01
    assert rows.network_cost(table, "untrained") == "0.0 M, 0 min, 25"
    card.model["widths"], card.seconds = [64, 96, 128], 600.0
    table.answers["ours"] = table.answers["untrained"]
    size, rest = rows.network_cost(table, "ours").split(" M, ")
    assert float(size) > 1
    assert rest == "10 min, 25"
    assert rows.network_cost(table, "wiener") == "-"


def test_real_stacks_go_from_file_to_phase(mirror, sampling, tmp_path):
    pytest.importorskip("gemmi")
    quick = replace(CONFIG, sampler=replace(CONFIG.sampler, steps=2), samples=2, fit_rounds=0)
    report = Report("03_flowdps", tmp_path, "smoke", 0)
    stacks = lab.real_particles(sampling, quick, 1, 0, report)
    assert [stack.name for stack in stacks] == list(lab.STACKS)
    assert all(stack.found.image.shape == (1, 64, 64) for stack in stacks)
