"""FlowDPS on particles: units, gain, resampling, refusals, on a prior known in closed form."""

from dataclasses import fields, replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from drawing import generator

from emlab.data.metadata import Metadata, Particles
from emlab.data.particles import fourier_resize
from emlab.errors import InputError
from emlab.methods import flowdps as method, flowdps_config
from emlab.methods.flowdps import load_config, prepare, retrieve
from emlab.methods.flowdps_config import Config
from emlab.methods.flowdps_observation import (
    PIXEL_ANGSTROM,
    find_contrast,
    observe,
    observe_counts,
)
from emlab.metrics import coverage
from emlab.physics import ComplexCTF, ExitWave, Poisson
from emlab.solvers.denoiser_spread import MeasuredSpread, WienerSpread
from emlab.solvers.flowdps import FlowDPSConfig
from emlab.solvers.guided_phase import GuidedPhaseConfig

N, DOSE = 2, 40.0
WINDOW = 72
CONFIG = Config(
    prior="none",
    sampler=GuidedPhaseConfig(steps=6, sigma_max=1.0, sigma_min=0.005, iterations=3),
    samples=6,
    batch=4,
    window=WINDOW,
    fit_steps=6,
)


class Blob:
    """One particle with smooth variations: a Gaussian prior whose every answer is known."""

    def __init__(self, std=0.03, length=4.0, strength=1.0):
        axis = torch.arange(64) - 32.0
        radius = torch.hypot(axis[:, None], axis)
        waves = 0.1 + 0.1 * torch.cos(0.9 * axis)[:, None] * torch.cos(0.7 * axis)
        self.mean = strength * waves * torch.sigmoid((22 - radius) / 2)
        rows, columns = torch.fft.fftfreq(64), torch.fft.rfftfreq(64)
        power = (-2 * (torch.pi * length) ** 2 * (rows[:, None] ** 2 + columns**2)).exp() + 1e-4
        self.power = power * std**2 / torch.fft.irfft2(power, s=[64, 64])[0, 0]

    def denoise(self, x, sigma):
        gain = self.power / (self.power + sigma**2)
        return self.mean + torch.fft.irfft2(torch.fft.rfft2(x - self.mean) * gain, s=[64, 64])

    def score(self, x, sigma):
        return (self.denoise(x, sigma) - x) / sigma**2

    def draw(self, n, seed=0):
        white = torch.randn(n, 64, 64, generator=torch.Generator().manual_seed(seed))
        waves = torch.fft.rfft2(white) * self.power.sqrt()
        return self.mean + torch.fft.irfft2(waves, s=[64, 64])


def optics(n=N, **changes):
    values = {
        "pixel_size_angstrom": PIXEL_ANGSTROM,
        "voltage_kv": 300.0,
        "cs_mm": 2.7,
        "amplitude_contrast": 0.1,
        "defocus_u_angstrom": np.linspace(12000.0, 20000.0, n),
        "defocus_v_angstrom": np.linspace(11800.0, 19800.0, n),
        "astigmatism_deg": np.full(n, 30.0),
        "phase_shift_deg": np.zeros(n),
        "optics_group": np.ones(n, np.int64),
        "images_at": tuple(("stack.mrcs", i) for i in range(n)),
        "source": "stack.star",
    }
    return Metadata(**values | changes)


def particles(images, **changes):
    table = optics(len(images), **changes)
    values = {item.name: getattr(table, item.name) for item in fields(Metadata)}
    return Particles(images=np.asarray(images, np.float32), **values)


@pytest.fixture(scope="module")
def prior():
    return Blob()


@pytest.fixture(scope="module")
def truth(prior):
    return prior.draw(N, 1)


@pytest.fixture(scope="module")
def counts(truth):
    rows = optics()
    ctf = ComplexCTF(
        300, PIXEL_ANGSTROM, torch.from_numpy(rows.defocus_u_angstrom),
        torch.from_numpy(rows.defocus_v_angstrom), torch.from_numpy(rows.astigmatism_deg),
        2.7, 0.1,
    )  # fmt: skip
    return Poisson().sample(ExitWave(ctf, DOSE, 64, WINDOW).A(truth), generator(2))


@pytest.fixture(scope="module")
def normalised(counts):
    """As RELION leaves them: matter bright, background 0 +- 1."""
    noise = (DOSE * PIXEL_ANGSTROM**2) ** 0.5
    return ((noise**2 - counts) / noise).numpy()


def run(images, prior, rows=None, config=CONFIG, seed=0, **options):
    spread = WienerSpread(prior.power)
    return retrieve(images, rows, config, generator(seed), prior=prior, spread=spread, **options)


def centred(images):
    return images - images.mean((-2, -1), keepdims=True)


# Retrieving


def test_electrons_give_phases_within_their_spread(counts, truth, prior):
    found = run(counts, prior, optics(), dose_per_angstrom2=DOSE)
    assert found.image.shape == found.spread.shape == (N, 64, 64)
    assert found.samples.shape == (6, N, 64, 64)
    assert np.abs(found.image.mean((1, 2))).max() < 1e-6
    error = found.image - centred(truth).numpy()
    assert error.std() < 0.6 * (truth - prior.mean).std()
    doubt = np.sqrt(np.square(found.spread).mean() * (1 + 1 / 6))  # of a mean of six
    assert error.std() == pytest.approx(doubt, rel=0.2)
    inside = coverage(torch.from_numpy(centred(found.samples)), centred(truth), interval="normal")
    assert 0.8 < inside < 0.97
    assert found.chi2 == pytest.approx(np.ones(N), abs=6 * (2 / WINDOW**2) ** 0.5)
    assert found.dose_per_angstrom2 == pytest.approx(DOSE)
    assert (found.gain == 1).all()
    assert (found.offset == 0).all()
    assert found.cost.evaluations == 6 * 6 * N
    assert 0 < found.cost.network_seconds < found.cost.seconds
    assert found.pixels == WINDOW**2


def test_the_same_seed_gives_the_same_phases_and_another_does_not(counts, prior):
    first, again, other = (
        run(counts[:1], prior, optics(1), seed=seed, samples=1, dose_per_angstrom2=DOSE).image
        for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-3)


@pytest.mark.parametrize("start", [20.0, 80.0])
def test_gain_and_offset_of_normalised_particles_are_fitted(normalised, truth, prior, start):
    config = replace(CONFIG, dose_per_angstrom2=start, samples=2)
    values = 5 * normalised + 12
    found = run(particles(values), prior, config=config, crop=True)
    assert found.dose_per_angstrom2 == pytest.approx(DOSE, rel=0.25)
    electrons = found.dose_per_angstrom2 * found.pixel_size_angstrom**2
    assert found.gain * electrons**0.5 == pytest.approx(-5, rel=0.12)  # noise of the background
    assert found.gain * electrons + found.offset == pytest.approx(12, abs=1.2)  # empty ice
    assert (found.image - centred(truth).numpy()).std() < 0.8 * (truth - prior.mean).std()
    assert any("bright" in note for note in found.notes)


def test_grey_levels_and_sign_of_the_file_do_not_matter(normalised, prior):
    plain, turned = (
        run(particles(images[:1]), prior, crop=True, samples=1)
        for images in (normalised, 300 - 7 * normalised)
    )
    np.testing.assert_allclose(turned.image, plain.image, atol=2e-3)
    assert turned.gain == pytest.approx(-7 * plain.gain, rel=1e-2)


def test_another_specimen_shows_in_chi2(counts, truth, prior):
    right = run(counts, prior, optics(), samples=2, dose_per_angstrom2=DOSE)
    wrong = run(counts, Blob(0.01, 6.0, 0.5), optics(), samples=2, dose_per_angstrom2=DOSE)
    assert wrong.chi2.min() > right.chi2.max() + 0.1


def test_a_wrong_defocus_shows_in_chi2(counts, prior):
    far = optics(defocus_u_angstrom=np.full(N, 60000.0), defocus_v_angstrom=np.full(N, 60000.0))
    right = run(counts, prior, optics(), samples=2, dose_per_angstrom2=DOSE)
    wrong = run(counts, prior, far, samples=2, dose_per_angstrom2=DOSE)
    assert wrong.chi2.min() > right.chi2.max() + 0.05


@pytest.mark.parametrize("corrected", [False, True])
def test_flowdps_itself_draws_in_radians(counts, truth, prior, corrected):
    sampler = FlowDPSConfig(steps=10, corrected=corrected, scale=0.0771)
    config = replace(CONFIG, sampler=sampler, samples=3)
    found = run(counts, prior, optics(), config, dose_per_angstrom2=DOSE)
    agreement = np.corrcoef(found.image.flatten(), truth.flatten())[0, 1]
    assert agreement > (0.9 if corrected else 0.8)
    assert found.image.std() == pytest.approx(truth.std(), rel=0.5)


# Units


def test_the_fit_lands_on_the_truth_if_the_phases_are_known(normalised, truth):
    config = replace(CONFIG, dose_per_angstrom2=30.0)
    seen = observe(particles(normalised), config, "bright")
    before = seen.gain[:, None, None] * seen.counts + seen.offset[:, None, None]
    for _ in range(4):
        seen = seen.refitted(seen.instrument().A(truth)[None])
    assert seen.dose_per_angstrom2.numpy() == pytest.approx(DOSE, rel=0.15)
    ice = seen.gain * seen.electrons + seen.offset
    assert ice.numpy() == pytest.approx(0, abs=0.15)
    back = seen.gain[:, None, None] * seen.counts + seen.offset[:, None, None]
    torch.testing.assert_close(back, before, atol=1e-3, rtol=1e-3)
    residual = (seen.counts - seen.instrument().A(truth)).var((1, 2)) / seen.electrons
    assert residual.numpy() == pytest.approx(1, abs=0.08)


def test_finer_pixels_and_known_shifts_lead_to_the_same_counts(normalised):
    config = replace(CONFIG, window=64)
    moved = np.array([[3.0, -2.0]] * N)
    side = 2 * WINDOW
    fine = fourier_resize(normalised, side, moved)
    shifted = particles(
        fine, pixel_size_angstrom=PIXEL_ANGSTROM / 2, shifts_angstrom=moved * PIXEL_ANGSTROM
    )
    plain = observe(particles(normalised), config, "bright")
    found = observe(shifted, config, "bright")
    assert found.pixel_size_angstrom == pytest.approx(PIXEL_ANGSTROM)
    assert found.counts.shape == (N, 64, 64)
    agreement = np.corrcoef(found.counts.flatten(), plain.counts.flatten())[0, 1]
    assert agreement > 0.98


@pytest.mark.parametrize("defocus", [12000.0, 40000.0])
def test_no_wave_comes_round_into_the_window(truth, defocus):
    far = {"defocus_u_angstrom": np.full(N, defocus), "defocus_v_angstrom": np.full(N, defocus)}
    seen = observe_counts(torch.ones(N, WINDOW, WINDOW), optics(**far), DOSE)
    found = seen.instrument()
    wide = ExitWave(found.ctf, DOSE, 64, WINDOW, 512)
    noise = wide.A(truth).mean().sqrt()
    assert found.padded <= 144
    assert (found.A(truth) - wide.A(truth)).abs().max() < 0.06 * noise


def test_electrons_in_finer_pixels_are_counted_together():
    fine = np.full((1, 128, 128), 9.0, np.float32) + np.eye(128, dtype=np.float32)
    seen = observe(particles(fine, pixel_size_angstrom=PIXEL_ANGSTROM / 2), CONFIG, "dark", 5.0)
    assert seen.counts.mean().item() == pytest.approx(36, rel=0.01)
    assert seen.electrons.item() == pytest.approx(5 * PIXEL_ANGSTROM**2)
    assert seen.counted


@pytest.mark.parametrize(("sign", "expected"), [(1, "bright"), (-1, "dark")])
def test_contrast_is_found_and_admitted_unknown_in_noise(normalised, sign, expected):
    assert find_contrast(particles(sign * normalised))[0] == expected
    noise = np.random.default_rng(0).normal(size=(3, 64, 64))
    found, sentence = find_contrast(particles(noise))
    assert found == "bright"
    assert "do not tell" in sentence


# Refusals


@pytest.mark.parametrize(
    ("changes", "options", "match"),
    [
        ({}, {}, r"a box of 189 A is larger than the 168 A of the prior.*crop"),
        ({"pixel_size_angstrom": 3.5}, {"crop": True}, "coarser than the prior's 2.63 A; extract"),
        ({}, {"crop": True, "contrast": "grey"}, "contrast is one of auto, bright, dark"),
        ({}, {"crop": True, "dose_per_angstrom2": -1.0}, "dose must be a positive"),
        ({}, {"crop": True, "dose_per_angstrom2": [1.0] * N}, "one dose; give one number"),
        ({}, {"crop": True, "optics": optics()}, "particles bring their optics"),
    ],
)
def test_particles_that_cannot_be_restored(normalised, changes, options, match):
    rows = options.pop("optics", None)
    with pytest.raises(InputError, match=match):
        prepare(particles(normalised, **changes), rows, CONFIG, **options)


def test_constant_images_and_small_boxes_are_told(normalised):
    images = normalised.copy()
    images[1] = 4.0
    with pytest.raises(InputError, match=r"image 2 of stack.star is constant; remove it"):
        prepare(particles(images), None, CONFIG, crop=True)
    notes = prepare(particles(normalised[:, 18:54, 18:54]), None, CONFIG)[2]
    assert any("extract larger ones" in note for note in notes)


@pytest.mark.parametrize(
    ("images", "rows", "options", "match"),
    [
        (np.ones((2, 64, 64)), None, {"dose_per_angstrom2": 40.0}, "need optics and dose"),
        (np.ones((2, 64, 64)), optics(2), {}, "need optics and dose"),
        (np.ones((2, 64, 60)), optics(2), {"dose_per_angstrom2": 40.0}, r"square images"),
        (np.ones((3, 64, 64)), optics(2), {"dose_per_angstrom2": 40.0}, r"one row for each"),
        (np.full((2, 64, 64), np.nan), optics(2), {"dose_per_angstrom2": 40.0}, "NaN"),
        (np.ones((2, 64, 64)), optics(2), {"dose_per_angstrom2": 0.0}, "dose must be a positive"),
    ],
)
def test_counts_that_do_not_fit(images, rows, options, match):
    with pytest.raises(InputError, match=match):
        prepare(images, rows, CONFIG, **options)


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 0},
        {"batch": 0},
        {"window": 65},
        {"dose_per_angstrom2": 0.0},
        {"fit_rounds": -1},
        {"fit_steps": 1},
    ],
)
def test_configurations_are_checked_when_made(change):
    with pytest.raises(InputError):
        replace(CONFIG, **change)


def test_configurations_by_name():
    assert isinstance(load_config().sampler, GuidedPhaseConfig)
    for name, squared in (("paper", True), ("kim", False)):
        form = load_config(name).sampler
        assert isinstance(form, FlowDPSConfig)
        assert (form.steps, form.gradient_steps, form.corrected) == (28, 3, False)
        assert form.squared_norm is squared
        assert form.scale == flowdps_config.phase_scale().std
    assert load_config("corrected").sampler.corrected
    assert load_config().quick.steps == load_config().fit_steps
    with pytest.raises(InputError, match="unknown configuration 'best'; choose one of ours, paper"):
        load_config("best")


def test_no_samples_are_refused(counts, prior):
    with pytest.raises(InputError, match="samples must be at least 1"):
        run(counts, prior, optics(), samples=0, dose_per_angstrom2=DOSE)


# Spread


def test_the_spread_on_own_draws_is_that_of_the_closed_form(prior, monkeypatch):
    monkeypatch.setattr(flowdps_config, "STEPS", 24)
    found = flowdps_config.on_own_draws(prior)
    assert isinstance(found, MeasuredSpread)
    exact = WienerSpread(prior.power)
    inner = (slice(0, 8), slice(1, 8))
    for sigma in (0.02, 0.1, 0.5):
        ratio = (found(sigma)[inner] / exact(sigma)[inner]).mean().item()
        assert ratio == pytest.approx(1, abs=0.3)


def test_rings_of_a_spread_come_back(prior):
    found = flowdps_config.on_images(prior, prior.draw(4))
    again = flowdps_config._spread(flowdps_config.rings_of(found))
    torch.testing.assert_close(again.variances, found.variances, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("same", [True, False])
def test_the_table_counts_for_the_weights_that_it_was_measured_for(prior, monkeypatch, same):
    found = flowdps_config.on_images(prior, prior.draw(4))
    digest = {"some": "abc" if same else "xyz"}
    table = {"sha256": digest, "rings": {"some": flowdps_config.rings_of(found).tolist()}}
    settings = {**flowdps_config.read_settings("methods/flowdps"), "spread": table}
    monkeypatch.setattr(flowdps_config, "read_settings", lambda place: settings)
    monkeypatch.setattr(flowdps_config.weights, "card", lambda name: Mock(sha256="abc"))
    monkeypatch.setattr(flowdps_config, "cache_folder", lambda: Path("/nowhere"))
    monkeypatch.setattr(flowdps_config, "on_own_draws", Mock(side_effect=ZeroDivisionError))
    if same:
        again, origin = flowdps_config.spread_of("some", prior)
        assert origin == "measured on held-out views"
        torch.testing.assert_close(again(0.1), found(0.1), rtol=1e-4, atol=1e-9)
    else:
        with pytest.raises(ZeroDivisionError):
            flowdps_config.spread_of("some", prior)


def test_without_a_spread_the_prior_is_asked_about_its_own_draws(counts, prior, monkeypatch):
    asked = []
    monkeypatch.setattr(
        method, "on_own_draws", lambda *_: asked.append(1) or WienerSpread(prior.power)
    )
    retrieve(
        counts[:1], optics(1), CONFIG, generator(), samples=1, prior=prior, dose_per_angstrom2=DOSE
    )
    assert asked == [1]
