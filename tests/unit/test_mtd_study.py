"""The study of multi-target detection: every method on the same fields, numbers that belong."""

from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from emlab.chapters.mtd import recorded as mtd_recorded, study as mtd_study
from emlab.chapters.mtd.experiments import detect_align_average
from emlab.chapters.mtd.figures import error_table
from emlab.chapters.mtd.recorded import (
    ABLATION,
    ROWS,
    _join,
    ablation_rows,
    recorded_rows,
    recorded_study,
    sample_calibration,
    study_with_recorded,
    untrained_study,
)
from emlab.chapters.mtd.study import (
    COLUMNS,
    LABELS,
    StudySettings,
    known_pose_oracle,
    run_study,
    standard_methods,
    targets,
)
from emlab.data.digits import load_digits
from emlab.errors import InputError
from emlab.methods.mtd import load_config
from emlab.metrics import relative_error
from emlab.physics.mtd import simulate_measurement
from emlab.priors.gaussian import gaussian_prior
from emlab.settings import PROFILES

REPORT = Mock(recorded=lambda recording: recording.name, value=lambda _, value, **more: value)


@pytest.fixture(scope="module")
def study():
    """Every row of the table on the smoke profile's fields, and what each row was given."""
    given = {}

    def watched(name, method):
        def run(task):
            given.setdefault(name, []).append(task)
            return method(task)

        return run

    methods = {name: watched(name, m) for name, m in standard_methods("gaussian").items()}
    return run_study("gaussian", StudySettings.of("gaussian", "smoke"), methods), given


def test_every_method_gets_the_same_fields_and_random_numbers(study):
    _, given = study
    first = given["zero"]
    assert set(given) == set(standard_methods("gaussian"))
    for tasks in given.values():
        for task, other in zip(tasks, first, strict=True):
            assert torch.equal(task.measurement.field, other.measurement.field)
            assert torch.equal(
                torch.rand(3, generator=task.generator()),
                torch.rand(3, generator=other.generator()),
            )


def test_the_study_ranks_the_answers_as_they_deserve(study):
    result, _ = study
    (only,) = result.studies.values()
    error_of = {name: scores["error"] for name, scores in only.scores.items()}
    assert set(error_of) <= set(LABELS)
    assert np.all(error_of["zero"] == 1)
    assert (error_of["oracle"] < error_of["prior_mean"]).all()
    assert (error_of["ours"] < error_of["paper_prior"]).all()
    assert (error_of["paper_prior"] < error_of["paper_no_prior"]).all()
    assert (error_of["brightest_patch"] > 1).all()
    for scores in only.scores.values():
        assert (scores["error_shift"] <= scores["error"] + 1e-6).all()


def test_the_studys_numbers_belong_to_its_images(study):
    result, _ = study
    (snr,) = result.snrs
    only = result.studies[snr]
    first = [task.draw == 0 for task in only.cases]
    for name in ("ours", "brightest_patch"):
        again = [
            relative_error(*p) for p in zip(result.images(name, snr), result.truths, strict=True)
        ]
        assert only.scores[name]["error"][first] == pytest.approx(again)
    assert only.interval("zero", "error").mean == pytest.approx(1)
    mean = only.gain("oracle", "prior_mean", "error").mean
    difference = only.scores["prior_mean"]["error"] - only.scores["oracle"]["error"]
    assert mean == pytest.approx(difference.mean())
    assert "| oracle: known poses, denoised | " in error_table(result)
    row = next(line for line in error_table(result).splitlines() if "oracle" in line)
    leads, brackets = (only.interval("oracle", name).mean for name in ("error_shift", "error"))
    assert row.endswith(
        f" | {COLUMNS[1].text(only.interval('oracle', 'error_shift'))} ({brackets:.3f}) |"
    )
    assert f"{leads:.3f}" in row


def test_fields_differ_between_targets_draws_and_snrs_and_repeat_with_the_seed():
    def fields(seed):
        seen = []

        def keep(task):
            seen.append(task.measurement.field)
            return task.truth

        run_study("gaussian", StudySettings(2, 2, (1.0, 5.0)), {"oracle": keep}, seed=seed)
        return seen

    first, again, other = fields(0), fields(0), fields(1)
    assert len(first) == 8
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    everything = first + other
    signs = {tuple((field > field.median()).flatten().tolist()) for field in everything}
    assert len(signs) == len(everything)


def test_several_workers_return_what_one_returns():
    methods = {"oracle": lambda task: known_pose_oracle(task, gaussian_prior())}
    settings = StudySettings(3, 2, (1.0,))
    one, three = (run_study("gaussian", settings, methods, workers=w) for w in (1, 3))
    errors = [each.studies[1.0].scores["oracle"]["error"] for each in (one, three)]
    np.testing.assert_array_equal(*errors)


def test_gaussian_targets_are_drawn_from_the_prior():
    images = targets("gaussian", 500)
    residual = images - gaussian_prior().mean
    assert residual.mean().abs() < 0.05
    assert residual.std().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(images[:10], targets("gaussian", 500)[:10])


def test_detect_align_average_nears_known_poses_where_copies_are_seen_and_fails_in_noise():
    digit = targets("mnist", 1, "validation")[0]
    for snr, fails in ((10.0, False), (0.01, True)):
        measurement = simulate_measurement(digit, snr, torch.Generator().manual_seed(1))
        average = detect_align_average(measurement).numpy()
        left = (snr * len(measurement.operator.turns)) ** -0.5  # of averaging at known places
        error = relative_error(average, digit.numpy(), 8)
        assert (error > 1) == fails
        assert fails or error < 1.2 * left


@pytest.mark.parametrize("kind", ["gaussian", "mnist"])
def test_the_ablation_changes_one_thing_after_the_other(kind, monkeypatch):
    monkeypatch.setattr(mtd_study, "recover", lambda field, *rest: rest)
    task = mtd_study.draw_tasks(kind, StudySettings(1, 1, (1.0,)), 1.0)[0]
    rows = ablation_rows(kind, gaussian_prior(), 0)
    used = {name: row(task) for name, row in rows.items()}
    paper, ours = load_config(f"paper_{kind}"), load_config(f"ours_{kind}")
    for name, (config, _, prior, sigma, _) in used.items():
        assert replace(config, em=paper.em) == paper
        assert sigma == task.measurement.sigma
        assert (prior is not None) == name.endswith("prior")
        assert config.em.m_step == (ours.em.m_step if prior else "closed_form")
        assert config.em.learn_occupancy == (not name.startswith("closed_form"))
    assert used["annealed_prior"][0].em.prior_schedule == "linear"
    hard = [name for name, given in used.items() if given[0].em.assignment == "hard"]
    assert hard == ["hard_prior"]


def test_a_recorded_study_is_shown_as_it_stands():
    fields = recorded_study(REPORT, ABLATION, "mnist")
    of = ABLATION.settings["studies"]["mnist"]
    assert fields.snrs == of["snrs"]
    assert set(fields.studies[fields.snrs[0]].methods) == set(of["rows"])
    kept = ABLATION.values["studies"]["mnist"]["rows"]["ours"]["errors"][f"{fields.snrs[0]:g}"]
    shown = fields.studies[fields.snrs[0]].interval("ours", "error_shift").mean
    assert shown == pytest.approx(np.array(kept)[..., 1].mean())
    table = error_table(fields)
    assert table.count("† |") == len(of["rows"])
    assert table.endswith("\n\n† ablation")


def test_the_spread_of_recorded_samples_is_compared_with_their_error():
    (_, error, spread), ratio = sample_calibration("gaussian", "1")
    assert ratio.mean == pytest.approx(error / spread)
    assert ratio.low < ratio.mean < ratio.high


def test_unknown_kinds_of_image_are_refused():
    with pytest.raises(InputError, match="unknown kind of image 'cats'"):
        targets("cats", 1)


@pytest.mark.parametrize("kind", ["gaussian", "mnist"])
@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_says_how_large_the_study_is(profile, kind):
    settings = StudySettings.of(kind, profile)
    assert settings.targets >= 2
    assert settings.draws >= 1
    assert all(snr > 0 for snr in settings.snrs)


# --- recorded rows


def test_recorded_rows_join_the_fields_that_they_were_measured_on():
    size = StudySettings(10, 1, (1.0,))
    methods = standard_methods("gaussian")
    names = ("prior_mean", "paper_no_prior", "paper_prior")
    chosen = {name: methods[name] for name in names}
    study = study_with_recorded(REPORT, "gaussian", size, chosen)
    live = run_study("gaussian", size, {"paper_prior": methods["paper_prior"]})
    assert set(study.studies[1.0].recorded) == {"paper_no_prior", "paper_prior"}
    assert study.studies[1.0].recorded["paper_prior"] == pytest.approx(0, abs=0.01)
    kept, here = (each.studies[1.0].scores["paper_prior"]["error"] for each in (study, live))
    np.testing.assert_allclose(kept, here, rtol=0.01)
    assert error_table(study).count("† |") == 2
    only = study.studies[1.0]
    difference = kept - only.scores["prior_mean"]["error"]
    gain = only.gain("prior_mean", "paper_prior", "error")
    assert gain.mean == pytest.approx(difference.mean())


@pytest.mark.parametrize(
    ("size", "seed"),
    [
        (StudySettings(10, 1, (1.0,)), 1),
        (StudySettings(11, 1, (1.0,)), 0),
        (StudySettings(9, 1, (1.0,)), 0),  # other targets: they are drawn together
        (StudySettings(10, 3, (1.0,)), 0),
        (StudySettings(10, 1, (2.0,)), 0),
    ],
)
def test_recorded_rows_are_not_shown_for_other_fields(size, seed):
    assert recorded_rows("gaussian", size, seed) == {}


def test_digits_that_stand_in_have_recorded_rows_of_their_own(monkeypatch):
    size, split = StudySettings(2, 1, (1.0,)), {"test": "held_out"}
    monkeypatch.setattr(mtd_study, "load_digits", lambda name: load_digits(split.get(name, name)))
    rows = recorded_rows("mnist", size)
    told = ROWS.settings["studies"]
    assert set(rows) == {*told["mnist"]["rows"], *told["untrained"]["rows"]}
    kept = ROWS.values["studies"]["mnist_stand_in"]["rows"]["paper_prior"]["errors"]["1"]
    assert rows["paper_prior"]["errors"]["1"] == kept
    study = untrained_study(REPORT, size, 8)
    assert study.studies[1.0].recorded == {"ours_untrained": None}
    _join(study, {"paper_prior": rows["paper_prior"]}, REPORT, "mnist")
    picture = study.images("paper_prior", 1.0)[0]
    truth = targets("mnist", 1, "held_out")[0].numpy()
    assert relative_error(picture, truth) == pytest.approx(kept[0][0][0], rel=0.1)


def test_other_fields_run_an_untrained_network_here(monkeypatch):
    monkeypatch.setattr(mtd_recorded, "recorded_rows", lambda *_: {})
    study = untrained_study(REPORT, StudySettings(1, 1, (1.0,)), 3)
    assert study.studies[1.0].recorded == {}
    assert study.studies[1.0].scores["ours_untrained"]["error"].shape == (1,)
