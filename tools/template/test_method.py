"""The template's claims about its method; replace them by yours."""

from __future__ import annotations

import numpy as np
import pytest

from emlab.errors import InputError
from emlab.methods import template_method as method


def stationary(power: np.ndarray, n: int, side: int, seed: int) -> np.ndarray:
    """Gaussian images whose power falls in rings as given."""
    white = np.random.default_rng(seed).standard_normal((n, side, side))
    shape = np.sqrt(power[method._rings((side, side), len(power))])
    return (100 + np.fft.ifft2(np.fft.fft2(white) * shape).real).astype(np.float32)


POWER = np.geomspace(900.0, 1.0, 24)


def test_the_spectrum_is_found() -> None:
    prior = method.train(stationary(POWER, 40, 64, 0))
    assert prior.mean == pytest.approx(100, abs=5)
    assert np.abs(np.log(prior.power / POWER)).mean() < 0.1


def test_the_error_is_that_of_the_closed_form() -> None:
    """Of a Gaussian image nothing has a smaller error than S sigma^2 / (S + sigma^2)."""
    images = stationary(POWER, 40, 64, 1)
    prior, sigma = method.SpectralPrior(100.0, POWER), 10.0
    noisy = images + sigma * np.random.default_rng(2).standard_normal(images.shape)
    errors = [method.restore(y, prior, sigma) - x for x, y in zip(images, noisy, strict=True)]
    ring = method._rings((64, 64), 24)
    expected = (POWER * sigma**2 / (POWER + sigma**2))[ring].mean()
    assert np.square(errors).mean() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("image", [np.zeros((2, 8, 8), "f4"), np.full((8, 8), np.nan, "f4")])
def test_what_is_no_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(InputError, match="one finite image"):
        method.restore(image, method.SpectralPrior(0.0, POWER), 1.0)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 rings"):
        method.Config(bins=1)
    with pytest.raises(InputError, match="positive standard deviation"):
        method.restore(np.zeros((8, 8), "f4"), method.SpectralPrior(0.0, POWER), 0.0)
