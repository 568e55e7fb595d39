"""Registration finds a shift that is known, and says which."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from emlab.errors import InputError
from emlab.metrics.registration import register

SIZE = 128


@pytest.fixture(scope="module")
def scene():
    """Blobs and lines larger than a pixel, with margins to cut shifted views from."""
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.normal(size=(SIZE + 64,) * 2), 2.5)
    image = np.where(image > 0, 1.0, 0.2) + 4 * image
    return 120 + 40 * ndimage.gaussian_filter(image, 1.2)


def view(scene, shift=(0.0, 0.0), noise=0.0, seed=0):
    """The middle of the scene, moved by a shift in pixels."""
    moved = ndimage.shift(scene, shift, order=5, mode="mirror")[32:-32, 32:-32]
    return moved + noise * np.random.default_rng(seed).normal(size=moved.shape)


def error(registered, fixed, inner=12):
    inside = registered.valid.copy()
    inside[:inner], inside[-inner:], inside[:, :inner], inside[:, -inner:] = (False,) * 4
    return np.sqrt(np.mean((registered.image - fixed)[inside] ** 2))


@pytest.mark.parametrize("shift", [(7, -4), (-2.5, 9.25)])
def test_a_known_shift_is_found_undone_and_reported(scene, shift):
    fixed, moving = view(scene), view(scene, shift)
    found = register(moving, fixed, flow=False)
    np.testing.assert_allclose(found.shift, np.negative(shift), atol=0.15)
    assert error(found, fixed) < 0.1 * np.sqrt(np.mean((moving - fixed) ** 2))
    assert not found.flow.any()


def test_what_came_from_outside_is_marked(scene):
    found = register(view(scene, (7, -4)), view(scene), flow=False)
    assert not found.valid[-6:].any()
    assert not found.valid[:, :3].any()
    assert found.valid[:-8, 5:].all()


def test_grey_levels_stay_those_of_the_moving_image_and_may_differ(scene):
    fixed, moving = view(scene), view(scene, (3, 2))
    found = register(torch.tensor(0.01 * moving), torch.tensor(fixed), flow=False)
    np.testing.assert_allclose(found.shift, (-3, -2), atol=0.15)
    assert error(found, 0.01 * fixed) < 0.02


def test_flow_undoes_a_smooth_distortion_that_a_shift_cannot(scene):
    """The lower half is drawn out by up to two pixels."""
    fixed = view(scene)
    down, right = np.indices(fixed.shape, dtype=float)
    drawn = 2 * np.sin(np.pi * down / SIZE) ** 2
    moving = ndimage.map_coordinates(fixed, [down, right - drawn], order=5, mode="mirror")
    rigid, elastic = (register(moving, fixed, flow=flow) for flow in (False, True))
    assert error(elastic, fixed) < 0.5 * error(rigid, fixed)
    total = elastic.shift[1] + elastic.flow[1]
    assert np.abs(total + drawn)[16:-16, 16:-16].mean() < 0.25


def test_images_already_in_place_stay(scene):
    """Independent weak noise on both: nothing moves by more than a fraction of a pixel."""
    found = register(view(scene, noise=2, seed=1), view(scene, noise=2, seed=2))
    assert np.abs(found.shift).max() < 0.1
    assert np.abs(found.flow[:, 12:-12, 12:-12]).mean() < 0.1


def test_the_same_images_give_the_same_answer(scene):
    first, second = (register(view(scene, (2, 1)), view(scene), flow=False) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    assert first.matches == second.matches >= 8


def test_images_of_different_places_are_refused_rather_than_forced(scene):
    other = np.random.default_rng(5).normal(size=(SIZE, SIZE))
    with pytest.raises(InputError, match="SIFT matches agree"):
        register(view(scene), other)


@pytest.mark.parametrize(
    ("moving", "fixed", "message"),
    [
        (np.eye(64), np.eye(65), "one shape"),
        (np.eye(63), np.eye(63), "64 pixels"),
        (np.ones((64, 64)), np.eye(64), "constant"),
        (np.full((64, 64), np.inf), np.eye(64), "infinity"),
        (np.ones((2, 64, 64)), np.ones((2, 64, 64)), "2 axes"),
    ],
)
def test_what_cannot_be_registered_is_refused(moving, fixed, message):
    with pytest.raises(InputError, match=message):
        register(moving, fixed)
