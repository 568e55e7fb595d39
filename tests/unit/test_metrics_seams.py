"""A seam index is 1 where nothing was stitched and rises with the step at the borders."""

import numpy as np
import pytest
import torch

from emlab.errors import InputError
from emlab.metrics.seams import border_indices, seam_index

BORDERS = [64, 128, 192]


def field(seed=0, shape=(256, 256)):
    """Smooth periodic texture of unit variance, several pixels in scale."""
    white = np.random.default_rng(seed).normal(size=shape)
    radius = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij"))
    image = np.fft.ifft2(np.fft.fft2(white) * np.exp(-((radius / 0.12) ** 2))).real
    return image / image.std()


def stitched(image, step, axis):
    """Every second tile brighter by a step."""
    tiles = np.zeros(image.shape[axis])
    for start, stop in ((64, 128), (192, 256)):
        tiles[start:stop] = step
    return image + (tiles[:, None] if axis == 0 else tiles)


@pytest.mark.parametrize("axis", [0, 1])
def test_an_image_in_one_piece_has_no_seams(axis):
    indices = [seam_index(field(seed), BORDERS, axis) for seed in range(8)]
    assert np.mean(indices) == pytest.approx(1, abs=0.03)
    assert np.ptp(indices) < 0.3


@pytest.mark.parametrize("axis", [0, 1])
def test_a_step_between_tiles_shows_and_only_along_its_axis(axis):
    seen = [seam_index(stitched(field(), step, axis), BORDERS, axis) for step in (0, 0.3, 0.6, 1.2)]
    assert seen == sorted(seen)
    assert seen[1] > 1.1
    assert seen[3] > 3
    other = seam_index(stitched(field(), 1.2, axis), BORDERS, 1 - axis)
    assert other == pytest.approx(seam_index(field(), BORDERS, 1 - axis), abs=1e-12)


def test_the_index_is_the_ratio_of_mean_differences():
    ramp = np.tile(np.array([0.0, 1, 2, 5, 6, 7]), (4, 1))
    assert seam_index(ramp, [3], -1) == 3
    assert seam_index(10 * ramp + 4, [3], -1) == 3


def test_smoothed_borders_fall_below_one():
    image = field()
    for border in BORDERS:
        image[border - 2 : border + 2] = image[border - 2 : border + 2].mean(axis=0)
    assert seam_index(image, BORDERS, 0) == 0


def test_a_reference_removes_what_the_specimen_does_at_the_borders():
    """Two restorations of one field differ by little; a step of a tenth is then plain to see."""
    image = field(3)
    other = image + 0.01 * field(4)
    alone = border_indices(image, BORDERS, 1)
    against = border_indices(image, BORDERS, 1, reference=other)
    assert np.abs(alone - 1).max() > 0.03
    assert np.abs(against - 1).max() < 0.02
    step = border_indices(stitched(image, 0.2, 1), BORDERS, 1, reference=other)
    assert step.min() > 1.02


def test_all_borders_together_are_the_mean_of_each():
    image = stitched(field(), 0.5, 0)
    each = border_indices(image, BORDERS, 0)
    assert each.shape == (3,)
    assert seam_index(torch.tensor(image), BORDERS, 0) == pytest.approx(each.mean())


def test_volumes_are_cut_along_any_axis():
    volume = np.random.default_rng(0).normal(size=(12, 20, 20))
    volume[6:] += 3
    assert seam_index(volume, [6], 0) > 2
    assert seam_index(volume, [10], 1) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("image", "positions", "axis", "message"),
    [
        (field(), [], 0, "tile borders between 1 and 255"),
        (field(), [0], 0, "tile borders"),
        (field(), [256], 0, "tile borders"),
        (field(), [3], 2, "no axis 2"),
        (np.ones((8, 8)), [4], 0, "contrast"),
        (field()[:2], [1], 0, "contrast"),
    ],
)
def test_borders_must_lie_inside_an_image_with_contrast(image, positions, axis, message):
    with pytest.raises(InputError, match=message):
        seam_index(image, positions, axis)


def test_a_reference_has_the_shape_of_the_image():
    with pytest.raises(InputError, match="reference"):
        seam_index(field(), [4], 0, reference=field()[:8])
