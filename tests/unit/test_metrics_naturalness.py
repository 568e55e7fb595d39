"""NIQE is low for images like those it was fitted on and rises with every degradation."""

import math

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage, stats

from emlab.errors import InputError
from emlab.metrics import naturalness
from emlab.metrics.naturalness import Naturalness


def tissue(n, seed, size=128):
    """Stand-in for tissue, grey levels 0 to 255: cells with dark smooth borders and texture."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(n, size, size)), (0, 6, 6))
    borders = np.exp(-((noise / noise.std() / 0.25) ** 2))
    texture = ndimage.gaussian_filter(rng.normal(size=(n, size, size)), (0, 1.2, 1.2))
    return 150 - 70 * borders + 12 * texture / texture.std()


@pytest.fixture(scope="module")
def model():
    return Naturalness.fit(tissue(16, 0), patch=32)


def test_clean_images_that_were_not_fitted_score_low(model):
    clean = model.score(tissue(4, 1))
    assert clean < 1.5
    assert model.score(tissue(4, 2)) == pytest.approx(clean, abs=0.6)


def test_blur_and_noise_raise_the_score_the_more_the_stronger(model):
    images, noise = tissue(4, 1), np.random.default_rng(3).normal(size=(4, 128, 128))
    blurred = [model.score(ndimage.gaussian_filter(images, (0, s, s))) for s in (0, 0.6, 1.2, 2.4)]
    noisy = [model.score(images + sigma * noise) for sigma in (0, 6, 12, 24)]
    for scores in (blurred, noisy):
        assert scores == sorted(scores)
        assert scores[2] > 3 * scores[0]


def test_the_model_has_the_size_the_paper_says_and_the_distance_is_its_equation(model):
    assert model.mean.shape == (36,)
    assert model.covariance.shape == (36, 36)
    images = tissue(2, 5)
    features = np.concatenate([naturalness._features(x, 255, 32)[0] for x in images])
    difference = features.mean(axis=0) - model.mean
    pooled = (np.cov(features.T) + model.covariance) / 2
    distance = math.sqrt(difference @ np.linalg.solve(pooled, difference))
    assert model.score(images) == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize("shape", [0.8, 1.3, 2.0, 4.0])
def test_the_shape_of_a_generalised_gaussian_is_recovered(shape):
    rng = np.random.default_rng(0)
    values = stats.gennorm.rvs(shape, scale=1.7, size=(2, 200_000), random_state=rng)
    found, left, right = naturalness._asymmetric_gaussian(values)
    np.testing.assert_allclose(found, shape, rtol=0.03)
    np.testing.assert_allclose([left, right], 1.7, rtol=0.03)


def test_the_two_scales_of_an_asymmetric_gaussian_are_recovered():
    """The left side holds left / (left + right) of the values."""
    rng = np.random.default_rng(1)
    sides = np.where(rng.random(400_000) < 1 / 4, -1.0, 3.0)
    values = sides * np.abs(stats.gennorm.rvs(1.5, size=400_000, random_state=rng))
    shape, left, right = naturalness._asymmetric_gaussian(values[None])
    assert (shape[0], left[0], right[0]) == pytest.approx((1.5, 1, 3), rel=0.03)


def test_neighbours_are_multiplied_in_four_directions():
    """Vertical stripes: neighbours to the right differ in sign, those below are equal."""
    stripes = np.tile([1.0, -1.0], (1, 16, 8)) * np.random.default_rng(0).uniform(1, 2, (1, 16, 1))
    means = [naturalness._neighbours(stripes, step)[0, 1] for step in naturalness.NEIGHBOURS]
    assert [np.sign(mean) for mean in means] == [-1, 1, -1, -1]


def test_patches_keep_their_place():
    image = np.arange(64.0).reshape(8, 8)
    patches = naturalness._split(image, 4)
    np.testing.assert_array_equal(patches[1], image[:4, 4:])
    np.testing.assert_array_equal(patches[2], image[4:, :4])


def test_only_sharp_patches_enter_the_model():
    """Half of every image is out of focus; the model describes the other half."""
    images = tissue(20, 0)
    half = images.copy()
    half[:, 64:] = ndimage.gaussian_filter(images[:, 64:], (0, 5, 5))
    model = Naturalness.fit(half, patch=32)
    assert model.score(images[:, :64]) < 0.3 * model.score(half[:, 64:])


def test_the_range_of_grey_levels_is_taken_out(model):
    images = tissue(16, 0) / 255
    other = Naturalness.fit(torch.tensor(images), data_range=1, patch=32)
    np.testing.assert_allclose(other.mean, model.mean)
    assert other.score(images[0]) == pytest.approx(model.score(255 * images[0]), rel=1e-5)


def test_a_single_patch_and_a_border_that_fills_none_are_scored(model):
    image = tissue(1, 4)[0]
    assert model.score(image[:32, :32]) > 0
    assert model.score(image[:40, :63]) == model.score(image[:32, :32])


def test_real_tissue_scores_below_its_degradations(mirror):
    """Fitted on planes of the fly's brain, scored on one that is apart from them."""
    planes = tifffile.imread(mirror / "em" / "flyem_validation_z000_180.tif", key=range(0, 160, 20))
    other = tifffile.imread(mirror / "em" / "flyem_validation_z000_180.tif", key=175)
    model = Naturalness.fit(planes)
    noise = np.random.default_rng(0).normal(size=other.shape)
    clean = model.score(other)
    assert model.score(other + 25 * noise) > 3 * clean
    assert model.score(ndimage.gaussian_filter(other.astype(float), 2)) > 3 * clean


@pytest.mark.parametrize(
    ("images", "keywords", "message"),
    [
        (tissue(2, 0), {"patch": 32}, "more than 36 sharp patches"),
        (tissue(1, 0, 80), {}, "at least 96 x 96"),
        (tissue(1, 0), {"patch": 33}, "even patch"),
        (tissue(1, 0), {"data_range": 0}, "data_range"),
        (np.ones((128, 128)), {}, "constant"),
        (np.ones(128), {}, "2 or 3 axes"),
    ],
)
def test_what_cannot_be_fitted_is_refused(images, keywords, message):
    with pytest.raises(InputError, match=message):
        Naturalness.fit(images, **keywords)
