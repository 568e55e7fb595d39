"""The prior that sees depth: closed forms, planes and axes, what is missing, how it is trained."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from emlab import weights
from emlab.app.blocks import block_shape_for
from emlab.app.volumes import Restorer, Survey, restore_volume
from emlab.errors import InputError
from emlab.methods import generalist
from emlab.methods.generalist import GreyScale
from emlab.models import build, untrained
from emlab.priors import DepthPrior, EquivariantPrior, load_prior
from emlab.priors.depth import DepthMatching
from emlab.priors.networks import wrap
from emlab.recipes import generalist as recipe, recipes
from emlab.solvers.plug_and_play import across_axes
from emlab.solvers.tiling import TiledPrior

MATCHING = DepthMatching(mean=0.2, std=0.7)
MODEL = {"kind": "depth_unet", "widths": [8, 16], "embedding": 16}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


class GaussianDepth(nn.Module):
    """The exact answer for planes whose voxels are Gaussian, alike .8 from one to the next."""

    planes, likeness = 5, 0.8
    known: ClassVar[dict] = {}

    def forward(self, stack: Tensor, noise: Tensor, _pixel: Tensor, present: Tensor) -> Tensor:
        sigma, s = (4 * noise).exp(), MATCHING.std
        gains = [self.gain(*one) for one in zip(sigma.tolist(), present.tolist(), strict=True)]
        seen = torch.where(present[..., None, None], stack, 0.0)
        wanted = torch.einsum("nk,nkhw->nhw", torch.stack(gains), seen)
        square, sigma = (sigma**2 + s**2)[:, None, None], sigma[:, None, None]
        return (wanted - s**2 / square * stack[:, 2]) * square / (sigma * s)

    def gain(self, sigma: float, there: list[bool]) -> Tensor:
        key = (round(sigma, 6), *there)
        if key not in self.known:
            place = torch.arange(5)[torch.tensor(there)]
            covariance = MATCHING.std**2 * self.likeness ** (place[:, None] - place).abs()
            noisy = covariance + sigma**2 * torch.eye(len(place))
            weights = torch.zeros(5)
            weights[place] = torch.linalg.solve(noisy, covariance[:, place == 2])[:, 0]
            self.known[key] = weights
        return self.known[key]


def exact(**options):
    return DepthPrior(GaussianDepth(), MATCHING, **options)


def network_prior(**options):
    return DepthPrior(untrained(MODEL), MATCHING, **options)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 2.0])
def test_each_plane_is_denoised_with_the_neighbours_that_there_are(sigma):
    volumes = draw(2, 7, 4, 6)
    answer = exact().of_volumes(batch=3).denoise(volumes, sigma)
    s = MATCHING.std
    for z in range(7):
        near = list(range(max(0, z - 2), min(7, z + 3)))
        c = s**2 * 0.8 ** np.abs(np.subtract.outer(near, near))
        gain = c[near.index(z)] @ np.linalg.inv(c + sigma**2 * np.eye(len(near)))
        expected = 0.2 + np.einsum("k,nkhw->nhw", gain, volumes[:, near].numpy() - 0.2)
        np.testing.assert_allclose(answer[:, z].numpy(), expected, atol=2e-5)


def test_an_image_alone_is_a_volume_of_one_plane():
    images = draw(3, 2, 8, 12)
    for prior in (exact(), network_prior()):
        alone = prior.denoise(images, 0.3)
        one = prior.of_volumes().denoise(images[..., None, :, :], 0.3)
        torch.testing.assert_close(alone, one[..., 0, :, :])
        assert not torch.allclose(alone, prior.of_volumes().denoise(images, 0.3))
    r2 = 0.3**2 + MATCHING.std**2
    torch.testing.assert_close(
        exact().denoise(images, 0.3), 0.2 + MATCHING.std**2 / r2 * (images - 0.2)
    )


def test_levels_go_with_their_planes():
    volume, prior = draw(6, 8, 8), network_prior().of_volumes()
    levels = torch.linspace(0.1, 1.0, 6)
    together = prior.denoise(volume, levels)
    for z, level in enumerate(levels):
        torch.testing.assert_close(together[z], prior.denoise(volume, level)[z], atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="must be positive"):
        prior.denoise(volume, 0.0)
    with pytest.raises(InputError, match=r"a volume is \(..., D, H, W\)"):
        prior.denoise(volume[0], 0.1)


def test_every_axis_can_be_the_one_that_planes_are_stacked_along():
    volume = draw(2, 6, 8, 10)
    prior = network_prior().of_volumes()
    for axis, view in zip((-3, -2, -1), across_axes(prior), strict=True):
        stacked = prior.denoise(volume.movedim(axis, -3), 0.4)
        torch.testing.assert_close(view.denoise(volume, 0.4), stacked.movedim(-3, axis))
    turned = EquivariantPrior(prior, generator()).denoise(volume, 0.4)
    assert turned.shape == volume.shape


def test_cubic_voxels_get_the_mean_over_all_axes():
    volumes, prior = draw(2, 6, 8, 12), network_prior()
    along = prior.of_volumes()
    wanted = [along.denoise(volumes.movedim(a, -3), 0.3).movedim(-3, a) for a in (-3, -2, -1)]
    found = prior.of_volumes(cubic=True).denoise(volumes, 0.3)
    torch.testing.assert_close(found, sum(wanted) / 3)
    levels = torch.tensor([[0.2], [0.4]]).expand(2, 6)
    each = prior.of_volumes(cubic=True).denoise(volumes, levels)
    torch.testing.assert_close(each[1], prior.of_volumes(cubic=True).denoise(volumes[1], 0.4))
    with pytest.raises(InputError, match="one noise level"):
        prior.of_volumes(cubic=True).denoise(volumes, torch.linspace(0.1, 0.6, 6))


def test_the_flow_velocity_of_a_denoiser_is_what_it_asks_of_the_path():
    image, prior = draw(2, 8, 8), network_prior()
    for time in (0.2, 0.7):
        at = time * image + (1 - time) * draw(2, 8, 8, seed=1)
        end = at + (1 - time) * prior.velocity(at, time)
        torch.testing.assert_close(end, prior.denoise(at / time, (1 - time) / time))


@pytest.mark.parametrize(("size", "told"), [(100.0, 100.0), (2.0, None), (None, None)])
def test_a_pixel_size_is_told_where_it_was_trained(size, told):
    assert generalist.load("generalist_depth", pixel_angstrom=size).pixel_angstrom == told


def test_tiles_of_a_volume_equal_the_whole():
    volume, prior = draw(2, 6, 40, 37), exact().of_volumes()
    tiled = TiledPrior(prior, 16, 4, 2, dimensions=3)
    torch.testing.assert_close(tiled.denoise(volume, 0.4), prior.denoise(volume, 0.4))
    levels = torch.linspace(0.1, 1, 12).reshape(2, 6)
    torch.testing.assert_close(tiled.denoise(volume, levels), prior.denoise(volume, levels))
    with pytest.raises(InputError, match="got shape"):
        tiled.denoise(volume[0, 0], 0.4)


# --- the network


def test_the_network_looks_at_present_planes_only_and_takes_any_size():
    network = untrained(MODEL)
    stack, noise, pixel = draw(2, 5, 13, 9), torch.tensor([-0.3, 0.1]), torch.zeros(2)
    present = torch.tensor([[False, True, True, False, True]]).expand(2, -1)
    answer = network(stack, noise, pixel, present)
    assert answer.shape == (2, 13, 9)
    broken = torch.where(present[..., None, None], stack, torch.nan)
    torch.testing.assert_close(network(broken, noise, pixel, present), answer)
    for other in (
        network(stack, noise, pixel, torch.ones_like(present)),
        network(stack, noise + 0.1, pixel, present),
        network(stack, noise, pixel + 0.25, present),
        network(stack, noise, torch.full((2,), torch.nan), present),
    ):
        assert (other - answer).abs().max() > 1e-3
    assert not build(MODEL)(stack, noise, pixel, present).any()  # untouched, it adds nothing


def test_the_prior_can_be_told_the_pixel_size():
    prior, image = network_prior(), draw(16, 16)
    assert not torch.allclose(prior.told(50.0).denoise(image, 0.3), prior.denoise(image, 0.3))
    with pytest.raises(InputError, match="pixel size must be positive"):
        prior.told(0.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"planes": 4}, "odd"), ({"widths": [12]}, "multiples of 8"), ({"blocks": 0}, "at least 1")],
)
def test_impossible_networks_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        build({**MODEL, **change})


def test_levels_beyond_the_trained_range_keep_the_gaussian_answer():
    prior = network_prior()
    x = draw(16, 16)
    far = prior.denoise(1e4 * x, 1e4)
    assert far.isfinite().all()
    assert (far - MATCHING.mean).abs().max() < 20 * MATCHING.std


# --- the objective


class Seen(nn.Module):
    """Notes what it is given and adds nothing."""

    def forward(self, stack: Tensor, noise: Tensor, pixel: Tensor, present: Tensor) -> Tensor:
        self.noise, self.pixel, self.present = noise, pixel, present
        return torch.zeros_like(stack[:, 0])


def test_the_loss_of_the_linear_answer_is_one_at_every_level():
    clean = MATCHING.mean + MATCHING.std * draw(4000, 6, 4, 4)
    clean[:, -1] = 0.5
    seen = Seen()
    assert float(MATCHING(seen, clean, generator(1))) == pytest.approx(1, abs=0.02)
    sigma = (4 * seen.noise).exp()
    assert float(sigma.min()) >= MATCHING.sigma_min * 0.999
    assert float(sigma.max()) <= MATCHING.sigma_max * 1.001
    assert float(sigma.median()) == pytest.approx(MATCHING.sigma_median, rel=0.08)
    assert float(seen.pixel.isnan().float().mean()) == pytest.approx(MATCHING.nameless, abs=0.03)
    assert set(seen.pixel[~seen.pixel.isnan()].tolist()) == {0.125}
    assert seen.present[:, 2].all()
    count = seen.present.sum(1)
    assert float((count == 1).float().mean()) == pytest.approx(MATCHING.alone, abs=0.03)
    assert float((count == 5).float().mean()) == pytest.approx(5 / 6 - MATCHING.alone, abs=0.03)
    ends = seen.present[(count == 3) | (count == 4)]
    assert (ends.int().diff(dim=1).abs().sum(1) == 1).all()  # missing on one side only


def test_knowing_the_neighbours_lowers_the_loss():
    white = draw(400, 5, 4, 4)
    planes = [white[:, 0]]
    for fresh in white[:, 1:].unbind(1):
        planes.append(0.8 * planes[-1] + 0.6 * fresh)
    clean = torch.stack([*planes, torch.zeros_like(planes[0])], 1)
    clean[:, :5] = MATCHING.mean + MATCHING.std * clean[:, :5]
    alone = DepthMatching(mean=0.2, std=0.7, alone=1.0)
    together = DepthMatching(mean=0.2, std=0.7, alone=0.0)
    ideal = GaussianDepth()
    assert float(alone(ideal, clean, generator())) == pytest.approx(1, abs=0.05)
    assert float(together(ideal, clean, generator())) < 0.8


def test_objectives_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="sigma_median"):
        DepthMatching(sigma_median=9.0)
    with pytest.raises(InputError, match="alone"):
        DepthMatching(alone=1.5)
    with pytest.raises(InputError, match="does not make a prior"):
        wrap(nn.Identity(), {"kind": "depth"})


# --- stacks to train on


def test_resampling_keeps_a_ramp_and_cuts_whole_voxels_where_it_can():
    z, y, x = np.indices((40, 60, 60))
    for axis, ramp in enumerate((z, y, x)):
        for zoom, distance in ((0.5, 1.0), (1.3, 1.0), (0.8, 2.5)):
            cut = recipe.resampled(
                ramp.astype(np.uint8), (5, 16, 16), (1 / zoom,) * 3, np.random.default_rng(0),
                distance,
            )  # fmt: skip
            assert cut.shape == (5, 16, 16)
            step = (distance if axis == 0 else 1) / zoom
            np.testing.assert_allclose(np.diff(cut, axis=axis), step, atol=0.13)
    volume = np.random.default_rng(1).integers(256, size=(40, 60, 60)).astype(np.uint8)
    cut = recipe.resampled(volume, (5, 16, 16), (1.0,) * 3, np.random.default_rng(0))
    windows = np.lib.stride_tricks.sliding_window_view(volume, (5, 16, 16))
    assert (windows == cut).all((-3, -2, -1)).any()
    with pytest.raises(InputError, match="do not fit"):
        recipe.resampled(volume, (5, 16, 80), (1.0,) * 3, np.random.default_rng(0))


def test_stacks_are_varied_each_by_itself_and_keep_their_pixel_size():
    stack = torch.randint(256, (1, 6, 8, 8), generator=generator(), dtype=torch.uint8)
    stack[:, -1] = recipe.code(50.0)
    batch = stack.expand(64, -1, -1, -1)
    varied = recipe.vary(batch, generator())
    assert (varied[:, -1] == -1).all()  # 50 A is an octave below 100 A
    middle = varied[:, 2]
    standard = (middle - middle.mean((1, 2), keepdim=True)) / middle.std((1, 2), keepdim=True)
    assert len({tuple(one.flatten().mul(100).round().tolist()) for one in standard}) == 8
    below = varied[:, 1].mean((1, 2)) - varied[:, 3].mean((1, 2))
    assert (below > 0).any()
    assert (below < 0).any()
    assert 0.7 / 127.5 <= float(middle.std() / batch[:, 2].float().std()) <= 1.3 / 127.5


@dataclass
class Held:
    arrays: dict


def test_the_recipe_leaves_weights_that_restore(tmp_path, monkeypatch):
    volume = np.random.default_rng(0).integers(256, size=(180, 96, 96)).astype(np.uint8)
    opened = []

    def load(name):
        opened.append(name)
        return Held({"volume": volume})

    monkeypatch.setattr(recipe.data, "load", load)
    card = recipes()[recipe.NAME]("smoke", "cpu", tmp_path)
    assert set(opened) == {"flyem_validation_train", "isbi2012"}
    assert "denoising_psnr_at_0.25_alone" in card.evaluation
    assert card.model["kind"] == "depth_unet"
    monkeypatch.setenv("EMLAB_WEIGHTS", str(tmp_path))
    prior = load_prior(recipe.NAME)
    assert weights.card(recipe.NAME).sha256 == card.sha256
    restored = prior.of_volumes().denoise(draw(3, 16, 16), 0.2)
    assert restored.isfinite().all()


# --- in use


def restoring(**solvers):
    config = generalist.load_config()
    return type(config)(config.prior, config.solvers | solvers, tile=24, overlap=8, batch=4)


def test_a_volume_is_denoised_in_depth_and_an_image_alone():
    volume = 100 + 30 * draw(7, 40, 24).numpy()
    scale = GreyScale(100.0, 50.0)
    options = {"noise_sigma": 20.0, "scale": scale, "prior": exact()}
    deep = generalist.denoise(volume, restoring(), generator(), **options)
    units = scale.to_units(volume.astype(np.float32), "cpu")
    expected = scale.to_grey(exact().of_volumes().denoise(units, 0.4))
    np.testing.assert_allclose(deep.image, expected, atol=1e-3)
    flat = generalist.denoise(volume[3], restoring(), generator(), **options)
    np.testing.assert_allclose(flat.image, scale.to_grey(exact().denoise(units[3], 0.4)), atol=1e-3)
    assert np.abs(flat.image - deep.image[3]).max() > 1


class Target:
    """A volume in memory that remembers nothing."""

    resumed = False

    def __init__(self, shape, journal):
        self.values, self.journal = np.zeros(shape, np.float32), journal
        self.shape, self.dtype = shape, np.dtype(np.float32)

    def __setitem__(self, index, values):
        self.values[index] = values

    def flush(self):
        pass


def test_blocks_of_a_volume_see_across_their_faces(tmp_path):
    volume = (100 + 30 * draw(80, 60, 24)).numpy()
    target = Target(volume.shape, tmp_path / "journal")
    shared = Survey(GreyScale(100.0, 50.0), 20.0)
    memory = 5.0
    restorer = Restorer(restoring(), shared, prior=exact(), seed=1)
    report = restore_volume(volume, [target], restorer, memory_mb=memory)
    assert report.blocks > 1
    block = block_shape_for(memory, volume.shape, halo=(2, 16, 16), scale=(1, 1, 1), copies=16)
    assert block[0] < len(volume)
    whole = generalist.denoise(
        volume, restoring(), generator(),
        noise_sigma=20.0, scale=shared.scale, prior=exact(),
    )  # fmt: skip
    np.testing.assert_allclose(target.values, whole.image, atol=2e-3)


def test_pixel_sizes_are_whole_steps_of_an_octave():
    assert recipe.code(100.0) == 128
    assert recipe.code(400.0) - recipe.code(100.0) == 2 * recipe.STEPS_AN_OCTAVE
    assert math.isclose(recipe.SECTION_ANGSTROM, 40.0)
