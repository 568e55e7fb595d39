"""The experiments of chapter 01: what they claim to measure is what they measure."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy import ndimage

from emlab import chapters, metrics
from emlab.bench.claims import claims_table
from emlab.bench.tissue import block, crops, neuron_labels
from emlab.chapters.em_generalist import experiments as lab, recorded, study
from emlab.chapters.em_generalist.figures import table
from emlab.data.phantoms import neuropil
from emlab.errors import InputError
from emlab.methods.generalist import load_config
from emlab.metrics import structure
from emlab.models import build
from emlab.priors import FlowPrior, networks
from emlab.priors.networks import untrained_prior
from emlab.recipes.generalist_tasks import defocus_tasks, task
from emlab.runtime import make_generator
from emlab.settings import PROFILES
from emlab.solvers.plug_and_play import PlugAndPlayConfig

SETTINGS = {profile: chapters.settings("01_em_generalist", profile) for profile in PROFILES}


class Smoother:
    """White Gaussian images of any size; if `local`, it believes in the mean of what it sees."""

    def __init__(self, local=False):
        self.local = local

    def denoise(self, x, sigma):
        level = torch.as_tensor(sigma)[..., None, None]
        if self.local:
            return (x + x.mean((-2, -1), keepdim=True)) / 2
        return x * 0.09 / (0.09 + level**2)

    def score(self, x, sigma):
        return (self.denoise(x, sigma) - x) / torch.as_tensor(sigma)[..., None, None] ** 2


@pytest.fixture(scope="module")
def tissue():
    return np.stack([neuropil((48, 48), seed) for seed in (1, 2)])


# --- settings


def test_every_profile_has_all_settings_and_sizes_that_divide():
    keys = [set(SETTINGS[profile]) for profile in PROFILES]
    assert all(found == keys[0] for found in keys)
    for profile in PROFILES:
        settings = SETTINGS[profile]
        assert settings["crop"] % 12 == 0
        assert settings["draw_side"] <= settings["crop"]
        assert [settings["block"][0] % factor for factor in settings["factors"]] == [0] * len(
            settings["factors"]
        )
        assert settings["field"] > settings["field_tile"]


def test_a_profile_says_what_it_does_less_of():
    assert chapters.shortcuts("01_em_generalist", "paper") == []
    said = "\n".join(chapters.shortcuts("01_em_generalist", "smoke"))
    here, full = (SETTINGS[profile]["crops"] for profile in ("smoke", "paper"))
    assert f"test crops a task: {here} here, {full} at full scale" in said
    sentences = recorded.shortcuts()
    assert "steps in the step-size ablation: 100 as recorded, 1000 at full scale" in sentences


def test_hurrying_changes_steps_and_samples_only():
    shipped = load_config("samples")
    hurried = study.hurried(shipped, 3, 2)
    assert hurried.samples == 2
    assert hurried.solvers["deblur"].steps == 3
    assert hurried.solvers["deblur"].trust == shipped.solvers["deblur"].trust
    ours = load_config("ours")
    assert study.hurried(ours, 3, 1).solvers == ours.solvers


def test_an_untrained_prior_has_the_network_of_the_card_and_no_knowledge(monkeypatch, tissue):
    card = SimpleNamespace(
        model={"kind": "unet", "widths": [8, 16], "embedding": 16},
        objective={"kind": "flow", "mean": 0.0, "std": 0.3},
    )
    monkeypatch.setattr(networks.weights, "card", lambda _: card)
    prior = untrained_prior(load_config("ours").prior, 0)
    clean = torch.from_numpy(tissue) / 127.5 - 1
    noisy = clean + 0.5 * torch.randn(clean.shape, generator=make_generator(0))
    answer = prior.denoise(noisy, 0.5)
    assert isinstance(prior, FlowPrior)
    assert (answer - clean).square().mean() > 0.05
    assert torch.equal(answer, untrained_prior(load_config("ours").prior, 0).denoise(noisy, 0.5))


# --- ablations


def test_a_batch_of_crops_is_scored_crop_by_crop(tissue):
    crops = study.Case.of(task("denoise_10"), tissue, 0)
    run = recorded.run_batch(crops, PlugAndPlayConfig(4, 0.3), Smoother())
    assert run.steps == 4
    assert run.images.shape == tissue.shape
    expected = [metrics.psnr(a, b, 255.0) for a, b in zip(run.images, tissue, strict=True)]
    np.testing.assert_allclose(run.psnr, expected)
    again = recorded.run_batch(crops, PlugAndPlayConfig(4, 0.3), Smoother())
    np.testing.assert_array_equal(run.images, again.images)


def test_fine_power_tells_smooth_from_noisy(tissue):
    noisy = tissue + np.random.default_rng(0).normal(0, 20, tissue.shape)
    smooth = ndimage.gaussian_filter(tissue, (0, 2, 2))
    ratio = [recorded.fine_power(x) / recorded.fine_power(tissue) for x in (smooth, noisy)]
    assert ratio[0] < 0.3 < 1.5 < ratio[1]


def test_an_image_that_ran_away_counts_as_nothing(tissue):
    broken = np.full_like(tissue, np.nan)
    assert recorded.Run.of(broken, tissue, 1.0, 1).psnr.tolist() == [0.0, 0.0]


def test_paths_meet_at_the_noise_level_of_both():
    torch.manual_seed(0)
    network = build({"kind": "unet", "widths": [8, 16], "embedding": 16})
    prior = FlowPrior(network)
    clean = torch.randn(1, 16, 16, generator=make_generator(0))
    meetings = lab.where_paths_meet(prior, clean, (100, 700), make_generator(1))
    for meeting in meetings:
        assert meeting.flow_time == pytest.approx(1 / (1 + meeting.sigma))
        assert meeting.gap < 1e-4 * (1 + meeting.sigma)


def test_recorded_runs_are_told_by_their_settings():
    sizes = recorded.ablation("step_size")
    assert list(sizes) == recorded.ABLATIONS.settings["step_sizes"]
    assert sizes[15.0].psnr.max() < 60
    assert recorded.below_best("step_size", 1.0) > 0
    row = recorded.ablation_images("step_size", "gamma")
    assert {image.shape for image in row.values()} == {(48, 48)}
    assert list(row)[1:3] == ["gamma 1", "gamma 3"]
    assert set(recorded.ablation("race")) == {"flow", "ours", "dps"}
    assert all(0.5 < one.coverage < 1 for one in recorded.intervals().values())


def test_a_recorded_row_belongs_to_its_very_cases(mirror):
    tissue = crops("test", 12, 96)
    wanted, quick = task("deblur"), lambda _: {"bm3d_lucy": lambda case: case.measurement}
    report = Mock(recorded=lambda recording: recording.name, value=lambda _, value, **more: value)
    rows = recorded.rows(report)
    kept = study.run_studies([wanted], quick, tissue, kept=rows)
    assert kept["deblur"].said == ["rows"]
    assert kept["deblur"].recorded["bm3d_lucy"] > 0.1, "another method ran again"
    assert table(kept).splitlines()[-1].startswith("† rows What ran again is ")
    assert list(kept["deblur"].recorded) == ["bm3d_lucy"]
    assert kept["deblur"].interval("bm3d_lucy", "psnr").low > 30
    assert "BM3D, then Richardson-Lucy †" in table(kept)
    for other in (crops("test", 3, 96), crops("test", 12, 48)):
        live = study.run_studies([wanted], quick, other, kept=rows)
        assert live["deblur"].recorded == {}


# --- structure


def test_boundaries_are_recognised_where_they_are_dark():
    labels = np.zeros((16, 16, 32), int)
    labels[:, :, 16:] = 1
    volume = 150 + np.random.default_rng(0).normal(0, 3, labels.shape).astype(np.float32)
    chance = structure.boundary_agreement(volume, labels)
    volume[:, :, 15:17] -= 60
    assert abs(chance - 0.5) < 0.1
    assert structure.boundary_agreement(volume, labels) > 0.99
    with pytest.raises(InputError, match="two neurons"):
        structure.boundary_agreement(volume, np.zeros_like(labels))


def blob_volume(places, stretch=1.0):
    z, y, x = np.indices((24, 40, 40))
    volume = np.full(z.shape, 160.0)
    for cz, cy, cx in places:
        squared = ((z - cz) / stretch) ** 2 + (y - cy) ** 2 + (x - cx) ** 2
        volume -= 60 * np.exp(-squared / (2 * 1.8**2))
    return volume.astype(np.float32)


PLACES = [(12, 10, 10), (12, 10, 28), (11, 28, 12), (13, 28, 30)]


def test_blobs_are_found_where_they_are():
    truth = blob_volume(PLACES)
    places, flattening = structure.find_spots(truth, structure.spot_threshold(truth))
    assert sorted(map(tuple, places.tolist())) == sorted(PLACES)
    np.testing.assert_allclose(flattening, 1, atol=0.05)


def test_blobs_that_moved_or_are_drawn_out_are_noticed():
    truth = blob_volume(PLACES)
    same = structure.compare_spots(truth, truth)
    assert (same.recall.mean, same.precision.mean, same.found) == (1, 1, same.true)
    assert same.roundness == pytest.approx(1)
    moved = structure.compare_spots(np.roll(truth, 6, axis=2), truth)
    assert moved.recall.mean == 0
    long = structure.compare_spots(blob_volume(PLACES, stretch=2), truth)
    assert long.roundness < 0.6
    none = structure.compare_spots(np.full_like(truth, 160), truth)
    assert (none.found, none.roundness) == (0, 0)


def test_a_point_belongs_to_one_pair_only():
    first = np.array([[0.0, 0], [1, 0]])
    assert structure.match_points(first, np.array([[0.9, 0]])) == [(1, 0)]
    assert structure.match_points(first, first + 0.1) == [(0, 0), (1, 1)]
    assert structure.match_points(first, first + 100) == []


def test_labels_belong_to_the_block(mirror):
    pytest.importorskip("h5py")
    shape = (20, 48, 48)
    labels = neuron_labels(shape)
    grey = block("test", shape).grey
    edge = structure.boundaries(labels)
    assert labels.shape == shape
    assert grey[edge].mean() < grey[~edge].mean() - 10


# --- audit


def test_seams_of_pasted_tiles_show_and_blended_ones_do_not():
    ramp = np.linspace(20, 220, 150)
    noise = np.random.default_rng(0).normal(0, 15, (150, 150))
    noisy = (np.add.outer(ramp, ramp) / 2 + noise).astype(np.float32)
    config = replace(load_config("ours"), tile=64, overlap=32)
    found = lab.stitch(noisy, config, Smoother(local=True), 0)
    assert found.pasted_seams.shape == (4,)
    assert found.pasted_seams.mean() > 1.2
    assert found.seams.mean() == pytest.approx(1, abs=0.05)
    assert found.chance.mean() == pytest.approx(1, abs=0.02)


def test_coverage_is_90_per_cent_of_honest_intervals():
    generator = np.random.default_rng(0)
    mean, spread = generator.normal(size=(2, 50, 50)), generator.uniform(1, 3, (2, 50, 50))
    truth = mean + spread * generator.normal(size=mean.shape)
    honest = lab.Calibration.of(mean, spread, truth)
    assert honest.coverage == pytest.approx(0.9, abs=0.02)
    assert lab.Calibration.of(mean, spread / 2, truth).coverage < 0.65
    assert honest.curve.ratio == pytest.approx(1, abs=0.05)


def test_uncertainty_of_a_linear_denoiser_is_known(tissue):
    _, spread = lab.denoising_uncertainty(tissue, 25.5, Smoother(), 4, 0)
    scale = np.median(spread)
    assert spread.std() < 0.2 * scale
    assert 0.3 * 25.5 < scale < 25.5


def test_nothing_is_refused_when_the_noise_is_told():
    config = study.hurried(load_config("samples"), 3, 2)
    found = lab.invent(48, 38.0, 0.9, config, Smoother(), 0)
    assert "nothing but noise" in found.refusal
    assert found.noise.std() == pytest.approx(38, rel=1e-3)
    assert found.told_right.std() < 0.15 * 255
    assert found.told_wrong.shape == (2, 48, 48)


def test_a_star_has_a_middle_that_cannot_be_seen():
    star = lab.star(64)
    assert 39 < star.min() < 60
    assert 195 < star.max() < 216
    assert lab.beyond(star, star, 10) == pytest.approx((1, 1))
    contrast, agreement = lab.beyond(ndimage.gaussian_filter(star, 4), star, 20)
    assert contrast < 0.6
    assert agreement < 0.9


def test_moving_a_noisy_image_weakens_and_correlates_its_noise(tissue):
    noise = np.random.default_rng(0).normal(0, 20, tissue[0].shape)
    pair = (tissue[0] + noise).astype(np.float32), tissue[0]
    sigma, correlation = lab.noise_of(*pair)
    moved_sigma, moved_correlation = lab.noise_of(*map(lab.half_a_pixel, pair))
    assert sigma == pytest.approx(20, rel=0.1)
    assert moved_sigma < 0.85 * sigma
    assert moved_correlation > correlation + 0.1


# --- scores without truth


def test_a_score_follows_psnr_or_does_not():
    def item(psnr, score, kind="blur"):
        return lab.Judged(kind, psnr, score, -score)

    judged = [item(30, 3), item(25, 4), item(20, 5), item(20, 0, "noise")]
    assert lab.follows(judged, "decorrelation_nm", ("blur",)) == pytest.approx(1)
    assert lab.follows(judged, "naturalness", ("blur",)) == pytest.approx(-1)
    assert lab.follows(judged, "decorrelation_nm") < 1
    with pytest.raises(InputError, match="three images"):
        lab.follows(judged, "naturalness", ("noise",))


def test_degradations_keep_the_shape_and_lose_quality(tissue):
    images = lab.degradations(tissue, 0)
    assert {stack.shape for stack in images.values()} == {tissue.shape}
    blur = [metrics.psnr(images["blur", f"blur {w} px"], tissue, 255.0) for w in ("0.7", "3")]
    assert blur[0] > blur[1] + 3


# --- bookkeeping


def test_kernels_are_compared_whatever_their_size():
    delta, wide = np.zeros((3, 3)), np.zeros((5, 5))
    delta[1, 1], wide[0, 0] = 1, 1
    assert lab.kernel_error(delta, np.pad(delta, 1)) == 0
    assert lab.kernel_error(delta, wide) == 1


def test_defocus_tasks_blur_by_their_disc():
    slight, severe = defocus_tasks({"slight": 1.5, "severe": 4.0})
    assert slight.kernel.shape == (3, 3)
    assert severe.kernel.shape == (9, 9)
    assert severe.name == "defocus_severe"
    assert severe.kernel.sum().item() == pytest.approx(1, abs=1e-6)


def test_claims_show_numbers_or_a_dash():
    values = {"race.speedup": {"value": 31.2, "low": None, "high": None}}
    text = claims_table(chapters.claims("01_em_generalist"), values)
    assert "31.2 times, – dB" in text
    assert text.count("\n| G") == 13
    assert "{" not in text
