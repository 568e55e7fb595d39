"""A field of the reader's own: its noise and grey levels, and settings that suit a prior."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from emlab import weights
from emlab.errors import InputError
from emlab.methods.mtd import TYPICAL_DENSITY, Config, check_density, load_config, recover
from emlab.priors.base import Prior
from emlab.priors.gaussian import GaussianPrior, gaussian_prior
from emlab.priors.networks import MLPScore, load_prior
from emlab.settings import read_settings

IMAGE_SIZES = {"mnist": 28, "gaussian": 5}  # by the data of a recipe
DEFAULT_CONFIGS = {
    "none": "no_prior",
    "gaussian": "ours_gaussian",
    "mtd_gaussian_mlp": "paper_gaussian",
}
DIGIT_ENERGY = (0.02, 0.25)  # mean square of one MNIST image in [0, 1]
DENSITIES = (0.02, 0.5)  # copies cover at least and at most this fraction of a plausible field


def sigma_from_snr(field: Tensor, snr: float, density: float = TYPICAL_DENSITY) -> float:
    r"""Noise level of a field whose signal-to-noise ratio is known.

    With :math:`\mathrm{SNR} = \|F\|^2/(L^2\sigma^2)` and copies that cover a fraction
    :math:`\rho` of the field, its mean square is :math:`\sigma^2(1 + \rho\,\mathrm{SNR})`.

    Parameters
    ----------
    field : Tensor
        ``(N, N')``, background zero.
    snr : float
        Positive.
    density : float
        The fraction rho, in (0, 1]; a density wrong by 0.1 makes an error of 5 % in sigma at
        SNR 1, and less below.

    Raises
    ------
    InputError
        `snr` or `density` out of range.
    """
    if not (snr > 0 and math.isfinite(snr)):
        raise InputError(f"snr must be positive, got {snr}")
    check_density(density)
    return math.sqrt(field.square().mean().item() / (1 + density * snr))


def random_starts(
    field: Tensor,
    sigma: float,
    config: Config,
    generator: torch.Generator,
    density: float = TYPICAL_DENSITY,
) -> Tensor:
    """White noise ``(config.starts, L, L)`` with the mean and energy that one copy should have.

    Both follow from those of the field, its noise and the density; the energy is at least that of
    an SNR of 0.05, because in faint fields the difference is uncertain.
    """
    check_density(density)
    energy = max((field.square().mean().item() - sigma**2) / density, 0.05 * sigma**2)
    largest = 0.9 * math.sqrt(energy)
    mean = min(max(field.mean().item() / density, -largest), largest)
    shape = (config.starts, config.size, config.size)
    return mean + math.sqrt(energy - mean**2) * torch.randn(shape, generator=generator)


def noise_gain(
    shape: torch.Size,
    sigma: float,
    config: Config,
    generator: torch.Generator,
    prior: Prior | None,
    starts: Tensor,
    density: float = TYPICAL_DENSITY,
) -> float:
    """Log-likelihood gained on white noise of `shape`, in nats: the yardstick of a recovery's own.

    `sigma`, `config`, `prior` and `starts` as for the field that it is compared with.
    """
    noise = sigma * torch.randn(shape, generator=generator).to(starts.device)
    return recover(noise, config, generator, prior, sigma, starts, density).log_likelihood_gain


def settings_for(prior_name: str, size: int, config_name: str | None = None) -> Config:
    """Settings for images of `size` pixels: a named config, or the one that suits the prior.

    Raises
    ------
    InputError
        Unknown config, or a prior of images of another size.
    """
    trained = IMAGE_SIZES.get(_trained_on(prior_name))
    if trained is not None and trained != size:
        raise InputError(
            f"the prior {prior_name} knows images of {trained} x {trained} pixels only; "
            f"use --size {trained}, or --prior none"
        )
    config = load_config(config_name or DEFAULT_CONFIGS.get(prior_name, "ours_mnist"))
    if size == config.size:
        return config
    centre = (size / 2, size / 2) if config.centre else None
    return replace(config, size=size, centre=centre, upright="")


def find_prior(name: str, config: Config, device: torch.device | str = "cpu") -> Prior | None:
    """The prior of a name: ``"none"``, ``"gaussian"`` (exact) or a name of `emlab weights list`.

    Raises
    ------
    InputError
        Unknown name, or a prior that cannot do what `config` asks for.
    IntegrityError
        The weights file is truncated or altered.
    """
    if name == "none":
        return None
    if name == "gaussian":
        exact = gaussian_prior()
        return GaussianPrior(exact.mean.to(device), 1.0)
    if name not in weights.names():
        known = ", ".join(["none", "gaussian", *weights.names()])
        raise InputError(f"unknown prior {name!r}; choose one of {known}")
    prior = load_prior(name, device)
    if isinstance(prior, MLPScore) and config.start != "uniform":
        raise InputError(f"{name} knows no noise levels; use it with --config paper_gaussian")
    return prior


def concerns(field: Tensor, sigma: float, prior_name: str) -> list[str]:
    """What looks wrong with a field, one sentence each: background, noise level, grey levels."""
    found = []
    median, square = field.median().item(), field.square().mean().item()
    if abs(median) > 0.2 * sigma:
        found.append(
            f"the median of the field is {median:.4g}, but the method takes the background as 0; "
            "if that is a background, add --subtract-background"
        )
    if sigma > 1.1 * math.sqrt(square):
        found.append(f"sigma {sigma:.4g} exceeds the field's root mean square {square**0.5:.4g}")
    if _trained_on(prior_name) == "mnist":
        excess, uncertain = square - sigma**2, 0.05 * sigma**2
        low, high = (d * e for d, e in zip(DENSITIES, DIGIT_ENERGY, strict=True))
        if excess - uncertain > high or excess + uncertain < low:
            found.append(
                f"{prior_name} knows digits with grey levels 0 to 1, but the copies in this field "
                "seem much brighter or fainter; divide it by their brightest grey level first, "
                "or use --prior none"
            )
    return found


def _trained_on(prior_name: str) -> str:
    recipe = read_settings("recipes/mtd")["recipes"].get(prior_name, {})
    return "gaussian" if prior_name == "gaussian" else recipe.get("data", "")
