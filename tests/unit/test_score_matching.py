"""Score matching: the formulas against the derivation, and the minimiser of a Gaussian case."""

import math

import pytest
import torch
from drawing import generator
from torch import nn

from emlab.errors import InputError
from emlab.priors.networks import ScorePrior, wrap
from emlab.priors.score_matching import (
    Guidance,
    ScoreMatching,
    centred_target,
    dsm_target,
    literal_target,
)

DATA = 0.6


def noisy_pair(v, n=200_000):
    """Clean images of one pixel and what the microscope and the auxiliary noise make of them."""
    clean = DATA * torch.randn(n, 1, 1, generator=generator())
    return clean, clean + v * torch.randn(n, 1, 1, generator=generator(1))


class Affine(nn.Module):
    """F that is a multiple of its input: enough for Gaussian images of one pixel."""

    def __init__(self, slope=0.0):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x, condition):
        return self.slope * x


def unit_target(wrapped, clean, x, v):
    """What the network has to return for the wrap to answer `clean`."""
    wide = v[:, None, None]
    return (clean - wrapped.skip(wide) * x) / wrapped.output(wide)


@pytest.mark.parametrize("v", [1.02, 1.4, 5.0])
def test_input_and_target_of_the_network_have_unit_variance(v):
    clean, x = noisy_pair(v)
    wrapped = ScoreMatching(DATA)
    level = torch.full((len(x),), v)
    assert (x / wrapped.radius(torch.tensor(v))).var().item() == pytest.approx(1, abs=0.02)
    target = unit_target(wrapped, clean, x, level)
    assert target.var().item() == pytest.approx(1, abs=0.02)
    # and it is uncorrelated with the input: the skip is the best linear answer
    assert (target * x).mean().item() == pytest.approx(0, abs=0.02 * v)


def test_unit_target_is_what_the_network_must_return():
    clean, x = noisy_pair(1.3, 50)
    level = torch.full((len(x),), 1.3)
    wrapped = ScoreMatching(DATA)
    target = unit_target(wrapped, clean, x, level)
    model = lambda _, condition: target[:, None]  # noqa: E731
    torch.testing.assert_close(wrapped.denoise(model, x, level), clean)
    printed = (DATA**2 + 1.3**2) * clean - DATA**2 * x
    printed = printed / (DATA * 1.3 * math.sqrt(DATA**2 + 1.3**2))
    torch.testing.assert_close(target, printed)


@pytest.mark.parametrize("sigma_a", [0.25, 1.0])
def test_target_of_dsm_is_the_clean_image_with_independent_noise(sigma_a):
    n = 400_000
    noise, u = torch.randn(2, n, 1, 1, generator=generator())
    level = torch.full((n,), sigma_a)
    of_input, of_target = noise + sigma_a * u, dsm_target(noise, u, level)
    assert (of_input * of_target).mean().item() == pytest.approx(0, abs=0.02 / sigma_a)
    assert of_target.var().item() == pytest.approx(1 + 1 / sigma_a**2, rel=0.02)


def test_residual_form_is_a_weighted_regression_on_that_target():
    _, x = noisy_pair(1.0, 64)
    objective = ScoreMatching(DATA, 0.5, 1.0, 1.0)
    model = Affine(0.3)
    found = objective(model, x, generator(7))
    twin = generator(7)
    sigma_a = objective.draw(64, 0.0, twin)
    u = torch.randn(x.shape, generator=twin)
    v = (1 + sigma_a**2).sqrt()
    mixed = x + sigma_a[:, None, None] * u
    denoised = objective.denoise(model, mixed, v)
    score = (denoised - mixed) / v[:, None, None] ** 2
    residual = (sigma_a[:, None, None] * score + u).square().mean()
    torch.testing.assert_close(found, residual)


def minimiser(objective, x, **options):
    """Slope of F that a loss is smallest at: the loss is a parabola in it."""
    with torch.no_grad():
        losses = [
            float(objective(Affine(slope), x, generator(3), **options))
            for slope in (-1.0, 0.0, 1.0)
        ]
    return (losses[0] - losses[2]) / (2 * (losses[0] - 2 * losses[1] + losses[2]))


def test_dsm_of_noisy_images_finds_the_posterior_mean():
    """The data are Gaussian, so with the right sigma_data F = 0 is the answer, else it is not."""
    _, x = noisy_pair(1.0)
    assert minimiser(ScoreMatching(DATA, 1.0, 1.0, 1.0), x) == pytest.approx(0, abs=0.02)
    wrong = ScoreMatching(0.3, 1.0, 1.0, 1.0)
    slope = minimiser(wrong, x)
    v2 = 2.0
    skip = 0.3**2 / (0.3**2 + v2)
    gain = skip + slope * 0.3 * math.sqrt(v2) / (0.3**2 + v2)
    assert gain == pytest.approx(DATA**2 / (DATA**2 + v2), abs=0.01)


def test_true_targets_lead_to_the_posterior_mean_too_and_with_less_noise():
    clean, x = noisy_pair(1.0)
    options = {"guess": clean, "confidence": torch.ones_like(x), "progress": 1.0}
    guidance = Guidance(1.0, 0.0, 0.0, sigma_r=0.0)
    objective = ScoreMatching(DATA, 1.0, 1.0, 1.0)
    assert minimiser(objective, x, guidance=guidance, **options) == pytest.approx(0, abs=0.02)
    with torch.no_grad():
        guided = objective(Affine(), x, generator(), guidance=guidance, **options)
        plain = objective(Affine(), x, generator())
    assert guided < 0.2 * plain


def test_centred_target_is_the_posterior_mean_about_the_guess():
    x, guess, v = torch.full((1, 1, 1), 3.0), torch.ones(1, 1, 1), torch.tensor([2.0])
    # normal about 1 with standard deviation .5, measured 3 with noise 2
    assert centred_target(x, guess, v, 0.5).item() == pytest.approx(1 + 2 * 0.25 / 4.25)
    assert centred_target(x, guess, v, 0.0).item() == 1


def test_literal_target_removes_the_template():
    guess = torch.tensor([[[0.0, 1.0, 0.0]]])
    x, v = 0.5 * guess, torch.tensor([1.0])
    removed = literal_target(x, guess, v, 1.0)
    assert removed[0, 0, 1] < 0 < centred_target(x, guess, v, 0.1)[0, 0, 1]


def test_guidance_waits_rises_and_stays():
    guidance = Guidance(0.8, 0.1, 0.3)
    assert guidance.at(0.0) == guidance.at(0.0999) == 0
    assert guidance.at(0.2) == pytest.approx(0.4)
    assert guidance.at(0.3) == guidance.at(1.0) == 0.8


def test_auxiliary_noise_is_annealed():
    objective = ScoreMatching(DATA, 0.5, 2.0, 1.0)
    first, last = (objective.draw(4000, at, generator()) for at in (0.0, 1.0))
    assert first.min() >= 0.5
    assert first.max() == pytest.approx(2.0, rel=0.01)
    assert last.max() == pytest.approx(1.0, rel=0.01)


def test_no_confidence_is_denoising_score_matching():
    clean, x = noisy_pair(1.0, 32)
    objective = ScoreMatching(DATA, 0.6, 1.0, 1.0)
    plain = objective(Affine(0.2), x, generator())
    options = {"guess": clean, "confidence": torch.zeros_like(x), "guidance": Guidance()}
    same = objective(Affine(0.2), x, generator(), progress=0.9, **options)
    torch.testing.assert_close(plain, same)
    early = objective(
        Affine(0.2), x, generator(), progress=0.0, **options | {"confidence": torch.ones_like(x)}
    )
    torch.testing.assert_close(early, objective(Affine(0.2), x, generator(), progress=0.0))


def test_prior_is_the_gaussian_one_and_scales():
    objective = {"kind": "score_matching", "sigma_data": DATA}
    prior = wrap(Affine(), objective)
    assert isinstance(prior, ScorePrior)
    x = torch.randn(2, 3, 8, 8, generator=generator())
    gain = DATA**2 / (DATA**2 + 1)
    torch.testing.assert_close(prior.denoise(x, 1.0), gain * x)
    torch.testing.assert_close(prior.score(x, 1.0), -x / (DATA**2 + 1))
    # a level below the trained ones: the image is scaled to where the network knows the noise
    torch.testing.assert_close(prior.denoise(0.5 * x, 0.5), 0.5 * gain * x)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ScoreMatching(sigma_min=0.0),
        lambda: ScoreMatching(sigma_start=0.5, sigma_end=1.0),
        lambda: ScoreMatching(0.0),
        lambda: Guidance(weight=1.5),
        lambda: Guidance(start=0.5, full=0.2),
        lambda: Guidance(variant="free"),
        lambda: wrap(Affine(), {"kind": "score_matching"}).denoise(torch.zeros(4, 4), 0.0),
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(InputError):
        wrong()


def test_the_ringwise_skip_is_wieners_filter_of_the_image_itself():
    """Signal in low frequencies only: it stays, and the noise of the others goes."""
    rows = torch.arange(64) / 64
    signal = 8 * torch.sin(2 * torch.pi * (3 * rows[:, None] + 2 * rows))
    x = signal + torch.randn(64, 64, generator=generator())
    prior = wrap(Affine(), {"kind": "score_matching", "ringwise": True})
    found = prior.denoise(x, 1.0)
    assert float((found - signal).square().mean()) < 0.15
    assert float((x - signal).square().mean()) > 0.9
    noise = torch.randn(3, 64, 64, generator=generator(1))
    assert float(prior.denoise(noise, 1.0).square().mean()) < 0.1
    rough = wrap(Affine(), {"kind": "score_matching"})
    assert float((rough.denoise(x, 1.0) - signal).square().mean()) > 1
