"""Noise2Void and Noise2Self: a network on one image guesses what it cannot see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emlab.errors import InputError
from emlab.solvers.blind_spot import (
    BlindSpotConfig,
    _answer,
    denoise_blind_spot,
    hide_grid,
    hide_random,
)

QUICK = {"steps": 40, "batch": 1, "crop": 32, "width": 8, "learning_rate": 5e-3}


def picture(side: int = 48) -> torch.Tensor:
    axis = torch.linspace(0, 3 * torch.pi, side)
    return 5 + axis.sin()[:, None] * axis.cos()


def noisy(seed: int = 0, sigma: float = 0.6) -> torch.Tensor:
    clean = picture()
    return clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["noise2void", "noise2self"])
def test_independent_noise_is_removed_without_a_clean_image(kind):
    config = BlindSpotConfig(kind=kind, **QUICK)
    found = denoise_blind_spot(noisy(), config, torch.Generator().manual_seed(1))
    before = (noisy() - picture()).square().mean()
    after = (found - picture()).square().mean()
    assert after < 0.3 * before


def test_values_follow_the_input():
    config = BlindSpotConfig(**(QUICK | {"steps": 5}))
    plain = denoise_blind_spot(noisy(), config, torch.Generator().manual_seed(1))
    scaled = denoise_blind_spot(100 * noisy() - 7, config, torch.Generator().manual_seed(1))
    torch.testing.assert_close(scaled, 100 * plain - 7, rtol=1e-3, atol=1e-2)


def test_the_seed_decides():
    config = BlindSpotConfig(**(QUICK | {"steps": 2}))
    found = [
        denoise_blind_spot(noisy(), config, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_noise2self_never_shows_a_pixel_to_itself():
    config = BlindSpotConfig(kind="noise2self", **QUICK)
    image = noisy()[:20, :21]  # an odd side is padded

    class Centre(torch.nn.Module):
        def forward(self, x):
            return x

    changed = image.clone()
    changed[9, 9] += 50
    answers = [_answer(Centre(), one, config) for one in (image, changed)]
    assert answers[0].shape == image.shape
    assert answers[0][9, 9] == answers[1][9, 9]
    assert answers[1][9, 10] > answers[0][9, 10] + 5


def test_hidden_pixels_come_from_the_neighbourhood_and_are_few():
    patches = torch.arange(2 * 40 * 40, dtype=torch.float32).reshape(2, 40, 40)
    seen, hidden = hide_random(patches, 0.05, 2, torch.Generator().manual_seed(0))
    assert torch.equal(seen[~hidden], patches[~hidden])
    assert 0.03 < hidden.float().mean() < 0.07
    inner = hidden.clone()
    inner[:, :2] = inner[:, -2:] = False
    inner[:, :, :2] = inner[:, :, -2:] = False
    apart = (seen - patches)[inner]
    rows = (apart / 40).round()
    assert rows.abs().max() == 2
    assert (apart - 40 * rows).abs().max() == 2
    assert (apart != 0).all()


def test_the_grid_hides_each_pixel_once():
    patches = torch.randn(1, 12, 12, generator=torch.Generator().manual_seed(0))
    counts = sum(hide_grid(patches, 4, position)[1].int() for position in range(16))
    assert (counts == 1).all()
    seen, hidden = hide_grid(patches, 4, 5)
    around = patches[0, 0:3, 0:3].clone()
    around[1, 1] = 0
    weights = torch.tensor([[0.5, 1, 0.5], [1, 0, 1], [0.5, 1, 0.5]]) / 6
    assert seen[0, 1, 1] == pytest.approx(float((around * weights).sum()), abs=1e-6)
    assert torch.equal(seen[~hidden], patches[~hidden])


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (torch.zeros(3, 32, 32), "one image"),
        (torch.zeros(8, 32), "at least 16 pixels"),
        (torch.ones(32, 32), "constant or not finite"),
        (torch.full((32, 32), np.nan), "constant or not finite"),
    ],
)
def test_images_that_teach_nothing_are_refused(image, match):
    with pytest.raises(InputError, match=match):
        denoise_blind_spot(image, BlindSpotConfig(), torch.Generator())


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "noise2noise"}, {"steps": 0}, {"crop": 33}, {"grid": 1}, {"share": 0.7}],
)
def test_settings_that_cannot_work(wrong):
    with pytest.raises(InputError):
        BlindSpotConfig(**wrong)
