"""The study of multi-target detection: every method on the same fields, numbers that belong."""

import numpy as np
import pytest
import torch

from emlab.errors import InputError
from emlab.methods.mtd_priors import gaussian_prior
from emlab.methods.mtd_study import (
    LABELS,
    Study,
    StudySettings,
    known_pose_oracle,
    run_study,
    standard_methods,
    targets,
)
from emlab.methods.settings import PROFILES
from emlab.metrics import relative_error


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
    told = []
    result = run_study(
        "gaussian", StudySettings.of("gaussian", "smoke"), methods, progress=told.append
    )
    return result, given, told


def test_every_method_gets_the_same_fields_and_random_numbers(study):
    _, given, _ = study
    first = given["zero"]
    assert len(given) == len(LABELS) - 1  # all but the untrained network
    for tasks in given.values():
        for task, other in zip(tasks, first, strict=True):
            assert torch.equal(task.measurement.field, other.measurement.field)
            assert torch.equal(
                torch.rand(3, generator=task.generator()),
                torch.rand(3, generator=other.generator()),
            )


def test_the_study_ranks_the_answers_as_they_deserve(study):
    result, _, told = study
    (snr,) = result.snrs
    error_of = {name: result.errors[name][snr][..., 0] for name in result.errors}
    assert set(error_of) <= set(LABELS)
    assert np.all(error_of["zero"] == 1)
    assert (error_of["oracle"] < error_of["prior_mean"]).all()
    assert (error_of["ours"] < error_of["paper_prior"]).all()
    assert (error_of["paper_prior"] < error_of["paper_no_prior"]).all()
    assert (error_of["brightest_patch"] > 1).all()
    assert len(told) == len(error_of)
    for errors in result.errors.values():
        assert (errors[snr][..., 1] <= errors[snr][..., 0] + 1e-6).all()


def test_the_studys_numbers_belong_to_its_images(study):
    result, _, _ = study
    (snr,) = result.snrs
    for name in ("ours", "brightest_patch"):
        for target, image in enumerate(result.images[name][snr][:, 0]):
            again = relative_error(image, result.truths[target])
            assert result.errors[name][snr][target, 0, 0] == pytest.approx(again)
    assert result.interval("zero", snr).mean == pytest.approx(1)
    mean = result.gain("oracle", "prior_mean", snr).mean
    difference = result.errors["prior_mean"][snr] - result.errors["oracle"][snr]
    assert mean == pytest.approx(difference[..., 0].mean())
    assert "| oracle: known poses, denoised | " in result.table()


def test_traces_are_those_of_the_methods_that_iterate(study):
    result, _, _ = study
    (snr,) = result.snrs
    assert len(result.traces["paper_no_prior"][snr]) == 101
    assert (np.diff(result.traces["paper_no_prior"][snr]) > 0).all()
    assert set(result.traces["ours"]) == {snr}
    assert result.traces["zero"] == {}


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
    assert isinstance(one, Study)
    np.testing.assert_array_equal(one.errors["oracle"][1.0], three.errors["oracle"][1.0])


def test_gaussian_targets_are_drawn_from_the_prior():
    images = targets("gaussian", 500)
    residual = images - gaussian_prior().mean
    assert residual.mean().abs() < 0.05
    assert residual.std().item() == pytest.approx(1, abs=0.03)
    assert torch.equal(images[:10], targets("gaussian", 500)[:10])


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
