"""TSM's method: standardising, guides from a bank, denoising any size, training on own data."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawing import generator

from emlab.data.potentials import barrel
from emlab.errors import InputError
from emlab.methods.tsm import Config, denoise, resize, to_working_size
from emlab.methods.tsm_guidance import guide, standardise
from emlab.metrics.bands import band_correlations
from emlab.physics.micrograph import MicrographConfig, simulate_micrograph
from emlab.priors.score_matching import Guidance, ScoreMatching
from emlab.priors.target_bank import TargetBank
from emlab.recipes.tsm import BankConfig, GuidedLoss, make_matchers
from emlab.recipes.tsm_own import Optics, load_trained, read_reference, train_on
from emlab.solvers.one_step import IterationConfig

PIXEL = 5.26
CONFIG = MicrographConfig(
    size=192, pixel_size_angstrom=PIXEL, particles=12, contaminants=0, distance_angstrom=180,
    defocus_angstrom=15000.0, contrast=0.3, dose_per_angstrom2=30.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def volume():
    return barrel(32, PIXEL)


@pytest.fixture(scope="module")
def micrograph(volume):
    return simulate_micrograph(CONFIG, volume, generator(3))


@pytest.fixture(scope="module")
def matcher(volume):
    bank = TargetBank.from_volume(volume, PIXEL, 20.0, directions=24, angles=12)
    return make_matchers(bank, CONFIG, BankConfig(rank=64))(None)


class Shrink:
    """A prior whose posterior mean is a third of the image."""

    def denoise(self, x, sigma):
        return x / 3

    def score(self, x, sigma):
        return (self.denoise(x, sigma) - x) / torch.as_tensor(sigma)[..., None, None] ** 2


def test_standardised_noise_has_unit_variance(micrograph):
    found = standardise(micrograph.noisy, PIXEL)
    shot = micrograph.noise_free_sources["shot"].std().item()
    assert found.sigma == pytest.approx(shot, rel=0.2)  # ice scatters, too
    torch.testing.assert_close(found.restore(found.image), micrograph.noisy, atol=0.01, rtol=1e-5)


def test_guides_find_particles_and_say_what_they_are(micrograph, matcher):
    standard = standardise(micrograph.noisy, PIXEL)
    found = guide(standard.image, matcher, generator())
    sure = found.coordinates[found.similarity.numpy() > found.null]
    inner = micrograph.coordinates[
        ((micrograph.coordinates > 24) & (micrograph.coordinates < 168)).all(1)
    ]
    away = np.linalg.norm(inner[:, None] - sure[None], axis=2)
    assert (away.min(1) < 5).mean() > 0.7
    clean = (micrograph.clean - standard.background) / standard.sigma
    inside = found.confidence > 0.2
    assert inside.any()
    guess, raw = (
        torch.corrcoef(torch.stack([image[inside], clean[inside]]))[0, 1]
        for image in (found.guess, standard.image)
    )
    assert guess > raw
    assert guess > 0.6
    assert found.amplitude > 0


def test_noise_alone_guides_nobody(matcher):
    empty = torch.randn(192, 192, generator=generator(5))
    found = guide(empty, matcher, generator())
    assert found.confidence.mean() < 0.02


def test_the_bank_is_asked_when_it_is_due_and_targets_that_are_given_stay(matcher):
    flat = [torch.zeros(192, 192)]
    asked = GuidedLoss(
        flat, ScoreMatching(), 64, Guidance(), bank=BankConfig(), matchers=[lambda _: matcher]
    )
    asked.begin_step(0, 10, torch.nn.Identity())
    assert not asked.trace
    asked.begin_step(1, 10, torch.nn.Identity())
    assert [entry["guesses"] for entry in asked.trace] == [0]
    given = GuidedLoss(flat, ScoreMatching(), 64, Guidance(), asked.guides)
    given.begin_step(1, 10, torch.nn.Identity())
    assert given.guides is asked.guides
    assert not given.trace


@pytest.mark.parametrize("shape", [(192, 192), (97, 150), (64, 64)])
def test_any_size_is_denoised_in_its_own_grey_levels(micrograph, shape):
    image = micrograph.noisy[: shape[0], : shape[1]].numpy()
    found = denoise(image, PIXEL, Shrink(), Config(tile=64, halo=8), sigma=15.0)
    assert found.image.shape == shape
    standard = standardise(image, PIXEL, 15.0)
    np.testing.assert_allclose(found.image, standard.restore(standard.image / 3), atol=0.02)
    assert found.noise_sigma == 15.0


def test_finer_pixels_are_made_coarser_and_the_result_is_of_the_given_size(micrograph):
    fine = resize(micrograph.noisy.numpy(), (384, 384))
    coarse, working = to_working_size(fine, 1.3)
    assert coarse.shape == (190, 190)
    assert working == pytest.approx(2.63, rel=0.01)
    found = denoise(fine, 1.3, Shrink(), sigma=20.0)
    assert found.image.shape == fine.shape
    assert found.image.mean() == pytest.approx(fine.mean(), rel=1e-3)


def test_resizing_there_and_back_keeps_a_smooth_image():
    rows = np.arange(60)[:, None] / 60
    image = (np.cos(2 * np.pi * 3 * rows) + np.sin(2 * np.pi * 2 * rows.T)).astype(np.float32)
    np.testing.assert_allclose(resize(resize(image, (90, 72)), (60, 60)), image, atol=1e-4)


def test_progress_counts_all_tiles(micrograph):
    seen = []
    settings = Config(tile=64, halo=8, iteration=IterationConfig(steps=2))
    denoise(micrograph.noisy, PIXEL, Shrink(), settings, progress=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] >= 2 * 16


def test_bands_judge_pattern_not_scale(micrograph):
    exact = band_correlations(5 * micrograph.particles - 3, micrograph)
    assert all(value == pytest.approx(1, abs=1e-3) for value in exact.values())
    noisy = band_correlations(micrograph.noisy, micrograph)
    assert noisy["mean"] < 0.95
    negative = band_correlations(-micrograph.particles, micrograph)
    assert negative["mean"] == pytest.approx(-1, abs=1e-3)
    empty = simulate_micrograph(replace(CONFIG, particles=0), barrel(32, PIXEL), generator())
    with pytest.raises(InputError, match="no particles"):
        band_correlations(empty.noisy, empty)


def test_own_micrographs_train_and_come_back(tmp_path, micrograph, volume):
    own = [micrograph.noisy.numpy()]
    plain = train_on(own, PIXEL, profile="smoke", steps=2, progress=False)
    assert plain.told == []
    file = plain.save(tmp_path / "mine.safetensors")
    prior = load_trained(file)
    assert denoise(own[0], PIXEL, prior).image.shape == own[0].shape
    with pytest.raises(InputError, match="defocus"):
        train_on(own, PIXEL, reference=volume, profile="smoke", steps=2, progress=False)
    with pytest.raises(InputError, match="at least one"):
        train_on([], PIXEL)


def test_a_reference_that_explains_nothing_stops_the_training_at_once(micrograph, volume):
    optics = [Optics(CONFIG.defocus_angstrom)]
    short = {"optics": optics, "profile": "smoke", "steps": 2, "progress": False}
    found = train_on([micrograph.noisy.numpy()], PIXEL, reference=volume, **short)
    assert "guides" in found.told[0]
    noise = np.random.default_rng(0).normal(size=(192, 192)).astype(np.float32)
    with pytest.raises(InputError, match="looks more like the reference"):
        train_on([noise], PIXEL, reference=volume, **short)


def test_other_weights_are_no_score_of_ours(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not written by"):
        load_trained(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no file"):
        load_trained(tmp_path / "absent.safetensors")


def test_reference_maps_are_rescaled_and_said_so(tmp_path):
    from emlab.io import write_image

    path = write_image(tmp_path / "map.mrc", barrel(48, 3.5).numpy(), 3.5)
    found, told = read_reference(path, 5.26)
    assert found.shape == (64, 64, 64)
    assert "rescaled" in told
    expected = barrel(64, 5.26)
    pair = torch.stack([found.flatten(), expected.flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.95
    flat = write_image(tmp_path / "flat.mrc", np.ones((8, 8, 8), np.float32), 3.0)
    with pytest.raises(InputError, match="empty"):
        read_reference(flat, 5.26)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Config(tile=32),
        lambda: Config(halo=128),
        lambda: Config(memory_mb=0),
        lambda: denoise(np.zeros((3, 64, 64), np.float32), 1.0, Shrink()),
        lambda: denoise(np.full((64, 64), np.nan, np.float32), 3.0, Shrink()),
        lambda: denoise(np.zeros((64, 64), np.float32), 0.0, Shrink()),
        lambda: denoise(np.zeros((64, 64), np.float32), 3.0, Shrink()),
        lambda: BankConfig(features="colour"),
    ],
)
def test_refused(wrong):
    with pytest.raises(InputError):
        wrong()


def test_optics_are_kept_in_the_lens():
    lens = Optics(9000.0, 200.0).config(3.0)
    assert (lens.defocus_angstrom, lens.voltage_kv, lens.pixel_size_angstrom) == (9000, 200, 3.0)
