"""A comparison on an image whose truth is known here: what its numbers say without that truth."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from emlab.app.own_image.asked import (
    Answer,
    Entrant,
    Question,
    Ready,
    answer,
    find_noise,
    guess_specimen,
    middle,
)
from emlab.app.own_image.entrants import choose, peers, stein_width
from emlab.app.own_image.page import Comparison, as_json, page
from emlab.app.own_image.scores import error_left, remarks, score, score_untouched
from emlab.errors import InputError
from emlab.physics.operators import gaussian_kernel
from emlab.solvers import classical

SIDE = 96
SIGMA = 12.0


def specimen(seed=0, side=SIDE):
    """Smooth structure with a contrast of 30 grey levels around 100."""
    random = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(random.standard_normal((side, side)), 5, mode="wrap")
    return (100 + 30 * image / image.std()).astype(np.float32)


def noisy(seed=1, sigma=SIGMA, smooth=0.0):
    random = np.random.default_rng(seed)
    noise = random.standard_normal((SIDE, SIDE))
    if smooth:
        noise = ndimage.gaussian_filter(noise, smooth, mode="wrap")
    return (specimen() + sigma * noise / noise.std()).astype(np.float32)


def question(**options):
    pixels = options.pop("pixels", noisy())
    task = options.pop("task", "denoise")
    return Question(task, pixels, find_noise(pixels, task), **options)


def entrant(function, **fields):
    ready = Ready(lambda image, random, seen: function(image))
    return Entrant("mine", "Mine", "classical", "A test.", lambda q: ready, **fields)


def peer(name):
    return next(found for found in peers() if found.name == name)


# What the image tells about itself


def test_white_noise_is_called_white_and_coloured_noise_coloured():
    white, coloured = find_noise(noisy(), "denoise"), find_noise(noisy(smooth=0.7), "denoise")
    assert not white.coloured
    assert white.sigma == pytest.approx(SIGMA, rel=0.06)
    assert coloured.coloured
    assert coloured.sigma == pytest.approx(SIGMA, rel=0.1)
    assert np.mean(coloured.correlation) > 0.4
    given = find_noise(noisy(), "denoise", given=3.0)
    assert (given.sigma, given.origin) == (3.0, "given")
    assert not find_noise(noisy(smooth=0.7), "deblur").coloured


def test_blank_fields_have_the_noise_of_the_image_and_nothing_else():
    asked = question(pixels=noisy(smooth=0.7))
    first, second = asked.blank(0, 0), asked.blank(1, 0)
    assert first.std() == pytest.approx(asked.noise.sigma, rel=0.05)
    neighbours = np.corrcoef(first[:, 1:].ravel(), first[:, :-1].ravel())[0, 1]
    assert neighbours == pytest.approx(asked.noise.correlation[1], abs=0.05)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05
    np.testing.assert_array_equal(first, asked.blank(0, 0))


def test_the_pixel_size_says_what_an_image_probably_shows():
    sizes = (None, 0.85, 40, 100, 3250)
    guesses = ["unknown", "particles", "tissue", "tissue", "cells"]
    assert [guess_specimen(size) for size in sizes] == guesses


def test_questions_that_cannot_be_asked_are_refused():
    with pytest.raises(InputError, match="64 x 64 or more"):
        Question("denoise", noisy()[:32], find_noise(noisy(), "denoise"))
    with pytest.raises(InputError, match="needs the kernel"):
        question(task="deblur")
    with pytest.raises(InputError, match="choose the task"):
        question(task="colourise")


# Numbers without truth


def test_error_left_is_the_true_error():
    halves = noisy(2), noisy(3)
    asked = question(halves=halves)
    for width in (0.5, 2.0, 6.0):
        restored = tuple(classical.gaussian(half, width) for half in halves)
        true = np.sqrt(np.mean([(r - specimen()) ** 2 for r in restored])) / SIGMA
        assert error_left(Answer(halves=restored), asked) == pytest.approx(true, abs=0.06)
    assert error_left(Answer(halves=halves), asked) == pytest.approx(1.0, abs=0.02)
    with pytest.raises(InputError, match="same image"):
        error_left(Answer(halves=halves), replace(asked, halves=(noisy(2), noisy(2))))


def test_halves_are_restored_with_their_own_noise():
    """Noise of the mean of two recordings is weaker than that of each."""
    halves = noisy(2), noisy(3)
    asked = question(pixels=(halves[0] + halves[1]) / 2, halves=halves)
    assert asked.noise.sigma == pytest.approx(SIGMA / np.sqrt(2), rel=0.08)
    assert [half.noise.sigma for half in asked.of_halves()] == pytest.approx([SIGMA] * 2, rel=0.08)
    given = replace(asked, noise=find_noise(asked.pixels, "denoise", given=10.0))
    assert given.of_halves()[0].noise.sigma == pytest.approx(10 * np.sqrt(2))
    restored = answer(peer("gaussian"), asked)
    np.testing.assert_array_equal(
        restored.halves[1], answer(peer("gaussian"), asked.of_halves()[1]).image
    )


@pytest.mark.parametrize("smooth", [0.0, 0.7])
def test_steins_width_is_nearly_the_best_one(smooth):
    pixels = noisy(smooth=smooth)
    chosen = stein_width(pixels, find_noise(pixels, "denoise").spectrum)

    def error(width):
        return np.mean((classical.gaussian(pixels, width) - specimen()) ** 2)

    best = min(error(width) for width in np.geomspace(0.4, 8, 40))
    assert error(chosen) < 1.1 * best
    assert error(chosen) < 0.5 * SIGMA**2


def test_a_method_that_draws_from_noise_is_caught_and_a_plain_one_is_not():
    """The liar sharpens what a blur leaves of anything, noise too, and adds its own pattern."""
    asked = question()
    pattern = 15 * np.random.default_rng(9).standard_normal((SIDE, SIDE)).astype(np.float32)

    def lie(image):
        fine = ndimage.gaussian_filter(image, 1.5)
        return (fine + 4 * (fine - ndimage.gaussian_filter(image, 4)) + pattern).astype("f4")

    liar = score(answer(entrant(lie), asked), asked)
    plain = score(answer(entrant(lambda image: classical.gaussian(image, 3.0)), asked), asked)
    assert liar["blank_contrast"] > 0.25 > 5 * plain["blank_contrast"]
    assert liar["blank_agreement"] > 0.3
    assert abs(plain["blank_agreement"]) < 3 * plain["blank_chance"] < liar["blank_agreement"]
    told = " ".join(remarks(liar, asked))
    assert "From pure noise" in told
    assert "same pattern from different noise" in told
    assert not [sentence for sentence in remarks(plain, asked) if "draws" in sentence]


def test_objects_from_noise_are_none_for_a_blur_and_many_for_the_noise_itself():
    asked = question(pixels=noisy(sigma=40.0))
    plain = score(answer(entrant(lambda image: classical.gaussian(image, 4.0)), asked), asked)
    assert score_untouched(asked)["blank_objects"] > 10
    assert plain["blank_objects"] < 2


def test_removed_structure_is_noticed():
    asked = question()
    flat = entrant(lambda image: np.full_like(image, 100) + 1e-3 * image)
    right = entrant(lambda image: specimen())
    worst, best = (score(answer(each, asked), asked) for each in (flat, right))
    assert worst["residual"] > 2
    assert best["residual"] == pytest.approx(1, abs=0.06)
    assert abs(best["residual_correlation"]) < 0.05
    assert len(remarks(worst, asked)) >= 2
    assert not [sentence for sentence in remarks(best, asked) if "took away" in sentence]


def test_deblurring_and_upsampling_are_judged_through_their_operator():
    truth = torch.from_numpy(specimen())
    kernel = gaussian_kernel(1.5)
    blurred = question(task="deblur", pixels=noisy(sigma=2.0), kernel=kernel.numpy())
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    recorded = blurred.operator.A(truth) + 2 * noise
    asked = question(task="deblur", pixels=recorded.numpy(), kernel=kernel.numpy())
    assert score(answer(entrant(lambda image: truth.numpy()), asked), asked)[
        "residual"
    ] == pytest.approx(2 / asked.noise.sigma, rel=0.1)
    coarse = question(task="upsample", factor=2, pixel_size_angstrom=50.0)
    fine = answer(peer("cubic"), coarse)
    assert fine.image.shape == (2 * SIDE, 2 * SIDE)
    numbers = score(fine, coarse)
    assert numbers["residual"] < 0.6
    assert score_untouched(coarse)["resolution"] >= 5.0  # two coarse pixels of 5 nm at best


# Who takes part


def test_methods_for_white_noise_are_left_out_of_coloured_noise():
    white, _ = choose(question(pixel_size_angstrom=100.0, specimen="tissue"))
    coloured, why = choose(question(pixels=noisy(smooth=0.7), specimen="tissue"))
    assert {"generalist", "gaussian", "nlm", "noise2void"} <= {one.name for one in white}
    assert {"generalist", "gaussian", "bm3d"} <= {one.name for one in coloured}
    assert not {"nlm", "noise2void", "tsm"} & {one.name for one in coloured}
    assert "correlate by" in why["Non-local means"]
    assert "FlowDPS" in why


def test_specimen_and_pixel_size_choose_the_learned_methods():
    def learned(**options):
        return [one.name for one in choose(question(**options))[0] if one.kind == "learned"]

    assert learned(specimen="tissue") == ["generalist"]
    assert learned(specimen="particles", pixel_size_angstrom=1.3)[:2] == ["tsm", "dsm"]
    assert learned(specimen="cells") == ["cellpose3"]
    _, why = choose(question(specimen="particles"))
    assert "--pixel-size-angstrom" in why["TSM"]
    kernel = gaussian_kernel(2.0).numpy()
    found, why = choose(question(task="deblur", kernel=kernel, specimen="tissue"))
    names = {one.name for one in found}
    assert {"generalist", "wiener_deconvolution", "richardson_lucy"} <= names
    assert "gaussian" not in names
    assert why["TSM"] == "it knows no task but denoise"


def test_methods_asked_for_by_name_run_where_they_do_not_fit_and_say_so():
    asked = question(specimen="cells")
    (only,), _ = choose(asked, ["generalist"])
    assert "asked for by name" in only.prepare(asked).notes[0]
    with pytest.raises(InputError, match="unknown method 'magic'; choose from generalist"):
        choose(asked, ["magic"])
    with pytest.raises(InputError, match="no method is left"):
        choose(asked, ["cubic"])


@pytest.mark.parametrize("name", ["gaussian", "wiener", "nlm"])
def test_classical_methods_denoise(name):
    found = answer(peer(name), question())
    assert found.problem == ""
    assert np.mean((found.image - specimen()) ** 2) < 0.5 * SIGMA**2
    assert found.blanks[0].std() < 0.6 * SIGMA


@pytest.mark.parametrize("name", ["wiener_deconvolution", "richardson_lucy"])
def test_classical_methods_deblur(name):
    kernel = gaussian_kernel(2.0)
    sharp = torch.from_numpy(specimen())
    made = question(task="deblur", kernel=kernel.numpy()).operator.A(sharp).numpy()
    pixels = made + np.random.default_rng(0).standard_normal(made.shape).astype("f4")
    asked = question(task="deblur", pixels=pixels, kernel=kernel.numpy())
    found = answer(peer(name), asked)
    assert np.mean((found.image - specimen()) ** 2) < np.mean((pixels - specimen()) ** 2)


def test_a_method_that_refuses_does_not_stop_the_others():
    def refuse(image):
        raise InputError("too dark")

    found = answer(entrant(refuse), question())
    assert found.image is None
    assert found.problem == "too dark"
    again = Answer.of(found.arrays())
    assert again.problem == "too dark"
    assert again.image is None


def test_answers_come_back_from_the_disk_as_they_were():
    halves = noisy(2), noisy(3)
    found = answer(peer("gaussian"), question(halves=halves))
    again = Answer.of(found.arrays())
    assert again.notes == found.notes
    for kept, made in zip((again.image, *again.halves), (found.image, *found.halves), strict=True):
        np.testing.assert_array_equal(kept, made)
    assert again.seconds == found.seconds
    assert middle(again.image, 50).shape == (50, 50)


# The report


def test_the_report_is_one_file_that_asks_for_nothing():
    asked = question(halves=(noisy(2), noisy(3)), pixel_size_angstrom=100.0)
    members = [peer("gaussian"), entrant(lambda image: 1 / 0)]
    refused = Answer(problem="it is <too> dark")
    compared = Comparison(
        "cells & <b>.tif", asked, {"file": "x"}, members, [answer(members[0], asked), refused],
        {"TSM": "no pixel size"}, settings={"seed": 0},
    )  # fmt: skip
    text = page(compared)
    assert "cells &amp; &lt;b&gt;.tif" in text
    assert "it is &lt;too&gt; dark" in text
    assert set(re.findall(r'(?:src|href)="([^"#][^":,]{0,10})', text)) == {"data"}
    assert "default-src 'none'" in text
    pictures = re.findall(r"<img [^>]*>", text)
    assert len(pictures) >= 7
    assert all(re.search(r'alt="[^"]{10,}"', picture) for picture in pictures)
    assert text.count('class="emlab-curtain"') == 1
    written = as_json(compared)
    assert written["length_unit"] == "nm"
    assert written["methods"][1]["problem"] == "it is <too> dark"
    assert written["methods"][0]["numbers"]["error"] < 1
    assert written["noise"]["sigma"] == pytest.approx(SIGMA, rel=0.06)
