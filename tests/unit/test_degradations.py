"""Degradations of Cellpose3: statistics, order and limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawing import generator

from emlab.errors import InputError
from emlab.physics.degradations import (
    TASKS,
    blur,
    decimate,
    degrade,
    degrade_fixed,
    normalise,
    shoot,
)


def test_blur_keeps_the_sum_and_spreads_by_its_variance() -> None:
    image = torch.zeros(61, 61)
    image[30, 30] = 1
    spread = blur(image, 3.0)
    place = torch.arange(61.0) - 30
    assert spread.sum().item() == pytest.approx(1, abs=1e-5)
    for axis in (0, 1):
        assert (spread.sum(axis) * place**2).sum().item() == pytest.approx(9, rel=0.02)


def test_blur_of_a_constant_and_of_nothing_change_nothing() -> None:
    torch.testing.assert_close(blur(torch.full((9, 30), 0.7), 5.0), torch.full((9, 30), 0.7))
    image = torch.rand(12, 12, generator=generator())
    assert torch.equal(blur(image, 0.0), image)


def test_decimation_keeps_every_nth_pixel_of_a_smooth_image() -> None:
    image = torch.rand(20, 20, generator=generator())
    assert torch.equal(decimate(image, 1), image)
    found = decimate(image, 20 // 4)
    assert found.shape == image.shape
    assert found.max() <= image[::5, ::5].max()
    assert found[0, 0] == image[0, 0]


def test_counts_have_the_mean_and_the_variance_of_poisson() -> None:
    image = torch.full((200, 200), 0.5)
    counts = shoot(image, 8.0, generator())
    assert counts.mean().item() == pytest.approx(4, rel=0.02)
    assert counts.var().item() == pytest.approx(4, rel=0.04)
    assert torch.equal(counts, counts.round())
    assert not shoot(torch.full((3, 3), -1.0), 8.0, generator()).any()


def test_normalisation_maps_the_percentiles() -> None:
    image = 5 + 3 * torch.rand(64, 70, generator=generator())
    found = normalise(image)
    assert np.percentile(found.numpy(), [1, 99]) == pytest.approx([0, 1], abs=1e-5)
    assert not normalise(torch.full((4, 4), 2.0)).any()


@pytest.mark.parametrize("task", list(TASKS))
def test_random_degradation_repeats_with_its_seed_and_is_normalised(task: str) -> None:
    images = torch.rand(6, 40, 40, generator=generator(3))
    first = degrade(images, task, generator(1))
    assert torch.equal(first, degrade(images, task, generator(1)))
    assert not torch.equal(first, degrade(images, task, generator(2)))
    for image in first:
        assert np.percentile(image.numpy(), [1, 99]) == pytest.approx([0, 1], abs=1e-4)


def test_one_in_five_images_for_denoising_stays_clean() -> None:
    image = torch.rand(16, 16, generator=generator(3))
    found = degrade(image.expand(400, 16, 16), "denoise", generator(7))
    clean = normalise(image)
    share = torch.isclose(found, clean, atol=1e-5).all(2).all(1).float().mean().item()
    assert share == pytest.approx(0.2, abs=0.06)


def test_smaller_levels_are_noisier_and_larger_ones_blurrier() -> None:
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    image = (torch.sin(x / 2) * torch.sin(y / 2)).clamp(min=0)
    clean = normalise(image)

    def error(task: str, level: float) -> float:
        return (degrade_fixed(image, task, level, generator(), 17.0) - clean).square().mean().item()

    assert error("denoise", 2) > error("denoise", 20) > error("denoise", 200)
    assert error("deblur", 8) > error("deblur", 2)
    assert error("upsample", 6) > error("upsample", 2)


def test_blur_scales_with_the_diameter() -> None:
    image = torch.zeros(60, 60)
    image[20:40, 20:40] = 1
    clean = normalise(image)
    small, large = (
        (degrade_fixed(image, "deblur", 4.0, generator(), diameter) - clean).square().mean().item()
        for diameter in (10.0, 60.0)
    )
    assert large > 2 * small


@pytest.mark.parametrize(
    ("task", "level", "message"),
    [
        ("sharpen", 1.0, "unknown degradation"),
        ("denoise", 0.0, "must be positive"),
        ("upsample", 2.5, "whole number"),
        ("deblur", -1.0, "must be positive"),
    ],
)
def test_impossible_degradations_are_refused(task: str, level: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        degrade_fixed(torch.rand(16, 16), task, level, generator())
