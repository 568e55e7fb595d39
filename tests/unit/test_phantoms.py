"""Simulated neuropil looks like tissue in the numbers that restoration depends on."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from emlab import data
from emlab.data.phantoms import neuropil
from emlab.errors import InputError
from emlab.physics.operators import Axial


@pytest.fixture(scope="module")
def volume():
    return neuropil((64, 72, 80), seed=1)


def power_above(image, frequency):
    """Share of the variance above a frequency in periods a pixel, both axes together."""
    window = np.outer(*(np.hanning(side) for side in image.shape))
    power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2
    radius = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, image.shape), indexing="ij"))
    return power[radius > frequency].sum() / power.sum()


def test_phantom_is_float_grey_levels_of_the_shape_asked_for(volume):
    assert volume.shape == (64, 72, 80)
    assert volume.dtype == np.float32
    assert np.isfinite(volume).all()
    assert volume.min() >= 0
    assert volume.max() <= 255
    assert neuropil((96, 70)).shape == (96, 70)
    assert neuropil((1, 1)).shape == (1, 1)


def test_the_seed_decides():
    first = neuropil((48, 48), 5)
    assert np.array_equal(first, neuropil((48, 48), 5))
    assert np.abs(first - neuropil((48, 48), 6)).mean() > 5


def test_all_three_axes_look_alike(volume):
    steps = [np.abs(np.diff(volume, axis=axis)).mean() for axis in range(3)]
    assert max(steps) < 1.12 * min(steps)


def test_neighbouring_slices_follow_one_another(volume):
    pairs = pairwise(volume)
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs]
    assert min(correlations) > 0.8
    assert np.corrcoef(volume[0].ravel(), volume[40].ravel())[0, 1] < 0.3


def test_membranes_are_thin_dark_and_everywhere(volume):
    dark = volume < 110
    assert 0.08 < dark.mean() < 0.4
    for block in dark.reshape(2, 32, 2, 36, 2, 40).transpose(0, 2, 4, 1, 3, 5).reshape(8, -1):
        assert block.mean() > 0.02
    assert np.median(volume) > volume.mean()


def test_phantom_is_smooth_at_the_scale_of_a_pixel_but_no_blur():
    image = neuropil((192, 192), 2)
    assert power_above(image, 0.35) < 2e-3
    assert 0.02 < power_above(image, 0.1) < 0.3


def test_coarse_sections_lose_something(volume):
    """Otherwise restoring the depth of the phantom would teach nothing."""
    coarse = Axial(8).A(torch.from_numpy(volume)).numpy().repeat(8, axis=0)
    assert np.sqrt(np.mean((coarse - volume) ** 2)) > 0.3 * volume.std()


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5), (0, 8)])
def test_impossible_shapes_are_refused(shape):
    with pytest.raises(InputError, match="phantom"):
        neuropil(shape)


def test_grey_levels_and_detail_are_near_those_of_real_tissue(mirror):
    real = data.load("flyem_validation_train")["volume"][165, :192, :192].astype(np.float32)
    image = neuropil((192, 192), 2)
    assert abs(image.mean() - real.mean()) < 25
    assert 0.7 < image.std() / real.std() < 1.5
    steps = np.abs(np.diff(image, axis=0)).mean() / np.abs(np.diff(real, axis=0)).mean()
    assert 0.5 < steps < 1.6
