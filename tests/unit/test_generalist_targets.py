"""What was asked, what was reached, and why claims fail: generated from numbers, not from hope."""

import numpy as np
import pytest

from emlab import chapters
from emlab.bench import format_targets, targets_met
from emlab.chapters.em_generalist.experiments import Training, kernel_error
from emlab.chapters.em_generalist.figures import training
from emlab.chapters.em_generalist.recorded import defocus_rows
from emlab.recipes.generalist_tasks import OPEN, defocus_tasks, task
from emlab.settings import tuned

TARGETS, CLAIMS = chapters.targets("01_em_generalist"), chapters.claims("01_em_generalist")


def number(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def test_a_shortfall_is_what_is_missing_and_nothing_else():
    values = {
        "denoise_10.gain_psnr.ours_over_bm3d": number(0.2),
        "denoise_25.gain_psnr.ours_over_bm3d": number(0.9),
        "isotropic_4.psnr_xz.ours": number(31.0),
        "isotropic_4.psnr_xz.cubic": number(30.0),
        "isotropic_4.slice_correlation.ours": number(1.05),
    }
    by_name = {t.name: t for t in TARGETS}
    missing = {name: by_name[name].shortfall(values) for name in values if name in by_name}
    assert missing == {
        "denoise_10.gain_psnr.ours_over_bm3d": pytest.approx(0.2),
        "denoise_25.gain_psnr.ours_over_bm3d": 0,
        "isotropic_4.psnr_xz.ours": 0,
        "isotropic_4.slice_correlation.ours": pytest.approx(0.03),
    }
    assert by_name["isotropic_4.psnr_xz.ours"].reached(values) == pytest.approx(1)
    assert targets_met(TARGETS, values) == (2, 4)
    table = format_targets(TARGETS, values)
    assert "| noise .1 over BM3D [dB] | at least 0.4 |  | 0.2 | 0.2 |" in table
    assert "| flow against DDPM, times faster | at least 20 |  | - | - |" in table


def test_noise_of_the_truth_bounds_every_answer():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 5, (512, 512))
    coarse = noise.reshape(256, 2, 256, 2).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    shape = noise.shape
    assert task("upsample_2").lost(5, shape) == pytest.approx((noise - coarse).var(), rel=0.02)
    measured = noise + generator.normal(0, 25.5, shape)  # the genie has taken the tissue away
    best = measured * 25 / (25 + 25.5**2)
    assert task("denoise_10").lost(5, shape) == pytest.approx((best - noise).var(), rel=0.02)
    assert task("deblur").lost(5, shape) < 25
    assert task("isotropic_4").lost(5, shape) == pytest.approx(25 * 3 / 4)
    assert OPEN[3].lost(5, shape) == pytest.approx(25 * 3 / 4)  # a sparse scan keeps it all
    assert task("deblur").lost(0, shape) == 0


def test_departures_name_only_what_fails_and_are_conditions_of_their_claim():
    values = {
        "isotropic_10.boundary.flow": number(0.7),
        "isotropic_10.boundary.cubic": number(0.69),
        "race.psnr_gain": number(-0.1),
        "real_pair.gain_psnr.ours_over_bm3d": number(0.02, -0.1, 0.1),
    }
    said = {c.id: c.departures(values) for c in CLAIMS if c.departures(values)}
    assert list(said) == ["G5", "G13"]
    assert "0.7, with cubic splines at 0.69" in said["G5"][0]
    for claim in CLAIMS:
        assert {condition for condition, _ in claim.unless} <= set(claim.conditions)


def test_the_training_curve_is_that_of_the_card():
    run = Training.of("generalist_depth")
    assert run.parameters > 1e6
    assert all(len(scores) == len(run.steps) for scores in run.scores.values())
    level = next(iter(run.scores))
    steps = np.array([1.0, 2, 4, 8])
    line = Training(1, steps, {level: 3 * np.log2(steps)}, 1.0, "cpu")
    assert line.last_doubling(level) == pytest.approx(3)
    assert len(training(line).axes) == 1


def test_defocus_peers_are_tuned_for_their_own_blur():
    peers = [tuned("em_generalist", t.name) for t in defocus_tasks()]
    iterations = [one["richardson_lucy"]["iterations"] for one in peers]
    assert iterations == sorted(iterations)
    assert iterations[0] < iterations[-1]
    rows = defocus_rows(None, None, 2)
    assert list(rows(task("deblur"))) == list(rows(defocus_tasks()[0]))


def test_a_delta_is_far_from_a_wide_blur():
    nothing = [kernel_error(np.ones((1, 1)), t.kernel.numpy()) for t in defocus_tasks()]
    assert nothing == sorted(nothing)
    assert 0.5 < nothing[0] < nothing[-1] < 1
