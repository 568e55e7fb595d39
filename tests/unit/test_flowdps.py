"""Samplers on a scalar Gaussian: what fixed steps do to the error bars, and what mends them."""

from dataclasses import dataclass, replace

import pytest
import torch
from drawing import draw, generator
from torch import Tensor

from emlab.errors import InputError
from emlab.physics.counting import GaussianCounts, Poisson
from emlab.physics.ctf import ComplexCTF
from emlab.physics.exit_wave import ExitWave
from emlab.priors.base import ScaledPrior
from emlab.solvers.denoiser_spread import WienerSpread
from emlab.solvers.flowdps import FlowDPSConfig, flowdps
from emlab.solvers.guided_phase import GuidedPhaseConfig, guided_phase

SIDE = 48


@dataclass
class Direct:
    """The image itself is measured."""

    counts: Tensor
    expected: Tensor

    def A(self, image):
        return image

    def A_adjoint(self, measurement):
        return measurement

    def linearised(self, image):
        return Direct(self.counts, image)

    def sensitivity(self):
        return torch.ones(SIDE, SIDE // 2 + 1)


class WhitePrior:
    """Pixels that are independent and standard normal: many scalars at once."""

    def denoise(self, x, sigma):
        return x / (1 + sigma**2)

    def score(self, x, sigma):
        return -x / (1 + sigma**2)


def scalar(method, snr, samples=20):
    """Gain over the exact one, variance over the exact one, and coverage, of N(0, 1) in noise."""
    sigma = snr**-0.5
    truth = draw(SIDE, SIDE)
    measurement = truth + sigma * draw(SIDE, SIDE, seed=1)
    instrument = Direct(torch.ones(()), torch.zeros(()))
    found = method(
        WhitePrior(), instrument, measurement, GaussianCounts(sigma**2), generator=generator(2),
        samples=samples,
    )  # fmt: skip
    assert found.evaluations == 28 * samples
    exact = 1 / (1 + sigma**2)
    gain = (found.mean * measurement).sum() / measurement.square().sum()
    variance = found.images.var(0).mean()
    half = 1.645 * variance.sqrt()
    covered = ((truth - gain * measurement).abs() < half).double().mean()
    return gain.item() / exact, variance.item() / (1 - exact), covered.item()


def published(*args, **options):
    return flowdps(*args[:4], FlowDPSConfig(step_size=5.0), **options)


def squared(*args, **options):
    config = FlowDPSConfig(step_size=0.1075, squared_norm=True)
    return flowdps(*args[:4], config, **options)


def corrected(*args, **options):
    spread = WienerSpread(torch.ones(SIDE, SIDE // 2 + 1))
    return flowdps(*args[:4], FlowDPSConfig(corrected=True), spread=spread, **options)


def guided(*args, **options):
    config = GuidedPhaseConfig(sigma_max=20.0, sigma_min=0.02)
    spread = WienerSpread(torch.ones(SIDE, SIDE // 2 + 1))
    return guided_phase(*args[:4], config, spread=spread, **options)


def test_a_fixed_step_follows_noise_too_far_and_a_clean_measurement_not_far_enough():
    noisy, even, clean = (scalar(published, snr) for snr in (0.1, 1.0, 10))
    assert noisy[0] > 2.5
    assert even[0] == pytest.approx(1.09, rel=0.05)
    assert clean[0] < 0.8
    assert noisy[1] < 0.65
    assert clean[1] > 2
    assert noisy[2] < 0.75
    assert even[2] < 0.82


@pytest.mark.parametrize(
    ("snr", "reference"),
    [(0.1, (8.8, 0.16, 0.19)), (1.0, (1.6, 0.29, 0.55)), (10, (0.88, 1.6, 0.95))],
)
def test_steps_of_the_squared_norm_have_the_miscalibration_of_the_reference(snr, reference):
    gain, variance, covered = scalar(squared, snr)
    assert gain == pytest.approx(reference[0], rel=0.03)
    assert variance == pytest.approx(reference[1], rel=0.1)
    assert covered == pytest.approx(reference[2], abs=0.02)


@pytest.mark.parametrize("snr", [0.1, 1.0, 10])
def test_guided_sampler_is_exact_at_every_noise_with_28_evaluations(snr):
    gain, variance, covered = scalar(guided, snr)
    assert gain == pytest.approx(1, abs=0.03)
    assert variance == pytest.approx(1, abs=0.05)
    assert covered == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(("snr", "known"), [(0.1, 0.85), (1.0, 0.83), (10, 0.78)])
def test_corrected_form_has_gain_one_and_spreads_a_little_too_little(snr, known):
    gain, variance, covered = scalar(corrected, snr)
    assert gain == pytest.approx(1, abs=0.03)
    assert 0.55 < variance < 1.02
    assert covered == pytest.approx(known, abs=0.03)


@pytest.mark.parametrize("squared_norm", [False, True])
def test_published_steps_are_the_formulas(squared_norm):
    """Three steps down the norm of the residual, the blend, and the mix of old and new noise."""
    lens = ComplexCTF(300, 2.63, torch.tensor([9000.0, 20000.0]))
    instrument = ExitWave(lens, 40.0, 8)
    counts = 40 * 2.63**2
    measurement = Poisson().sample(instrument.A(0.1 * draw(2, 8, 8)), generator(4))
    config = FlowDPSConfig(3, time_shift=1.0, step_size=0.3, squared_norm=squared_norm)
    found = flowdps(
        WhitePrior(), instrument, measurement, Poisson(), config, generator(5), samples=2,
    )  # fmt: skip
    draws = generator(5)

    def normal():
        return torch.randn(2, 2, 8, 8, generator=draws, dtype=torch.float64)

    x = normal()
    for t, following in ((1 / 1001, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.0)):
        sigma = (1 - t) / t
        velocity = (x / t / (1 + sigma**2) - x) / (1 - t)
        clean, rest = x + (1 - t) * velocity, x - t * velocity
        moved = clean
        for _ in range(3):
            moved = moved.detach().requires_grad_()
            norm = ((measurement - instrument.A(moved)) / counts).flatten(2).norm(dim=2)
            loss = (norm**2 if squared_norm else norm).sum()
            moved = moved - 0.3 * torch.autograd.grad(loss, moved)[0]
        blend = t * clean + (1 - t) * moved.detach()
        noise = following**0.5 * rest + (1 - following) ** 0.5 * normal()
        x = following * blend + (1 - following) * noise
    torch.testing.assert_close(found.images, x)
    assert len(found.trace) == 3


@pytest.mark.parametrize("corrected", [False, True])
def test_images_of_another_scale_are_the_same_images_scaled(corrected):
    """As a step is for images of spread 1: one of 2 sees a residual twice as steep."""
    config = FlowDPSConfig(steps=6, step_size=2.0, corrected=corrected)
    measurement, answers = draw(SIDE, SIDE), []
    for scale in (1.0, 2.0):
        changed = replace(config, scale=scale, step_size=config.step_size / scale)
        answers.append(
            flowdps(
                ScaledPrior(WhitePrior(), scale, 0.0), Direct(torch.ones(()), torch.zeros(())),
                scale * measurement, GaussianCounts(0.5 * scale**2), changed, generator(),
                samples=2, spread=WienerSpread(torch.full((SIDE, SIDE // 2 + 1), scale**2)),
            ).images
        )  # fmt: skip
    torch.testing.assert_close(answers[1], 2 * answers[0])


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="steps"):
        FlowDPSConfig(steps=1)
    with pytest.raises(InputError, match="time_shift"):
        FlowDPSConfig(time_shift=0.0)
    with pytest.raises(InputError, match="scale"):
        FlowDPSConfig(scale=0.0)
    with pytest.raises(InputError, match="spread"):
        flowdps(
            WhitePrior(), Direct(torch.ones(()), torch.zeros(())), torch.ones(4, 4), Poisson(),
            FlowDPSConfig(corrected=True), generator(),
        )  # fmt: skip
