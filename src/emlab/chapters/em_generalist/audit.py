"""What can go wrong: seams, intervals that lie, inventions, noise that registration changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from emlab import data, metrics
from emlab.errors import DataUnavailableError, InputError
from emlab.methods import generalist
from emlab.methods.generalist import Config, GreyScale
from emlab.physics.noise_estimation import noise_correlation
from emlab.physics.operators import Downsample
from emlab.priors import Prior
from emlab.recipes.generalist_tasks import GREY_RANGE
from emlab.runtime import make_generator, peak_memory_mb
from emlab.solvers.classical import cubic_upsample
from emlab.solvers.one_step import one_step_spread
from emlab.solvers.tiling import tile_positions

Grey = NDArray[np.float32]
NORMAL_90 = 1.6448536
EDGE = 8  # pixels at the edge of a field that are compared with nothing


# --- large fields


@dataclass(frozen=True)
class Stitched:
    """A large field restored in blended tiles, in others elsewhere, and in tiles side by side.

    Attributes
    ----------
    blended, shifted, pasted : ndarray
        ``(H, W)``.
    borders, shifted_borders, pasted_borders : tuple of list of int
        Where tiles begin or end, along y and along x.
    noise_sigma : float
        As estimated.
    megabytes : float
        By how much the peak memory of the process grew while blending.
    """

    blended: Grey
    shifted: Grey
    pasted: Grey
    borders: tuple[list[int], list[int]]
    shifted_borders: tuple[list[int], list[int]]
    pasted_borders: tuple[list[int], list[int]]
    noise_sigma: float
    megabytes: float

    def indices(self) -> NDArray[np.float64]:
        """Seam index of every border of the blended field, over that of the shifted one there."""
        return self._against_shifted(self.blended, self.borders)

    def pasted_indices(self) -> NDArray[np.float64]:
        """The same of tiles side by side."""
        return self._against_shifted(self.pasted, self.pasted_borders)

    def indices_elsewhere(self) -> NDArray[np.float64]:
        """The same of the blended field at places where neither has a border: what chance does."""
        places = [
            sorted(set(range(EDGE, side - EDGE)).difference(own, others))
            for side, own, others in zip(
                self.blended.shape, self.borders, self.shifted_borders, strict=True
            )
        ]
        return self._against_shifted(self.blended, (places[0], places[1]))

    def _against_shifted(
        self, image: Grey, borders: tuple[list[int], list[int]]
    ) -> NDArray[np.float64]:
        found = []
        for axis in (0, 1):
            places = [p for p in borders[axis] if p not in self.shifted_borders[axis]]
            steps = [
                np.abs(np.diff(each, axis=axis)).mean(1 - axis) for each in (image, self.shifted)
            ]
            ratio = steps[0] / steps[1]
            found.append(ratio[np.array(places) - 1] / np.median(ratio))
        return np.concatenate(found)


def stitch(field: Grey, config: Config, prior: Prior, seed: int) -> Stitched:
    """Denoise a field ``(H, W)`` with overlapping tiles, twice, and tile by tile.

    Raises
    ------
    InputError
        A field that is not larger than a tile.
    """
    if min(field.shape) <= config.tile:
        raise InputError(
            f"a field of {field.shape} is one tile of {config.tile}; pass a larger one"
        )
    before = peak_memory_mb()
    blended = generalist.denoise(field, config, make_generator(seed), prior=prior)
    growth = peak_memory_mb() - before
    scale, pasted = GreyScale.of(field, blended.noise_sigma), np.empty_like(blended.image)
    shift = (config.tile - config.overlap) // 2 + 1
    moved = generalist.denoise(
        np.pad(field, ((shift, 0), (shift, 0)), mode="reflect"),
        config,
        make_generator(seed),
        prior=prior,
        noise_sigma=blended.noise_sigma,
        scale=scale,
    ).image[shift:, shift:]
    for rows in _cuts(field.shape[0], config.tile):
        for columns in _cuts(field.shape[1], config.tile):
            tile = scale.to_units(field[rows, columns], "cpu")
            level = blended.noise_sigma / scale.scale
            pasted[rows, columns] = scale.to_grey(prior.denoise(tile, level))
    own = [_borders(side, config) for side in field.shape]
    shifted = [_borders(side + shift, config, shift) for side in field.shape]
    cuts = [[cut.start for cut in _cuts(side, config.tile)][1:] for side in field.shape]
    return Stitched(
        blended.image,
        moved,
        pasted,
        (own[0], own[1]),
        (shifted[0], shifted[1]),
        (cuts[0], cuts[1]),
        blended.noise_sigma,
        growth,
    )


def _borders(side: int, config: Config, shift: int = 0) -> list[int]:
    starts = tile_positions(side, config.tile, config.overlap)
    places = {place - shift for start in starts for place in (start, start + config.tile)}
    return sorted(place for place in places if 0 < place < side - shift)


def _cuts(side: int, tile: int) -> list[slice]:
    return [slice(start, start + tile) for start in range(0, side, tile)]


# --- uncertainty


@dataclass(frozen=True)
class Uncertainty:
    """Posterior mean and standard deviation of crops, beside the truth; grey levels.

    Attributes
    ----------
    reach : float
        Half width of a 90 % interval in standard deviations.
    """

    mean: Grey
    spread: Grey
    truth: Grey
    reach: float = NORMAL_90

    @property
    def coverage(self) -> float:
        """Share of pixels inside 90 % intervals."""
        return float((np.abs(self.truth - self.mean) <= self.reach * self.spread).mean())

    def reliability(self, bins: int = 8) -> metrics.Reliability:
        """Error of the pixels of similar spread."""
        return metrics.error_against_spread(self.mean, self.spread, self.truth, bins)


def denoising_uncertainty(
    truth: Grey, noise_sigma: float, prior: Prior, probes: int, seed: int
) -> Uncertainty:
    """Of crops ``(n, H, W)`` under white noise, from one evaluation and its derivative.

    Parameters
    ----------
    noise_sigma : float
        In grey levels.
    probes : int
        Random signs of the estimate of the derivative's diagonal. What is left of their own noise
        is averaged out over 5 x 5 pixels.
    """
    generator = make_generator(seed)
    noise = torch.randn(truth.shape, generator=generator).numpy()
    noisy = (truth + noise_sigma * noise).astype(np.float32)
    scale = GreyScale.of(noisy, noise_sigma)
    units, level = scale.to_units(noisy, "cpu"), noise_sigma / scale.scale
    with torch.no_grad():
        mean = scale.to_grey(prior.denoise(units, level))
    spread = one_step_spread(prior, units, level, generator, probes)
    variance = ndimage.uniform_filter(spread.square().numpy(), (1, 5, 5), mode="reflect")
    return Uncertainty(mean, np.sqrt(variance) * np.float32(scale.scale), truth)


# --- inventions


@dataclass(frozen=True)
class Invention:
    """What the method makes of an image that holds nothing.

    Attributes
    ----------
    noise : ndarray
        The input: white noise ``(H, W)``, grey levels.
    refusal : str
        What the method says when it is told the truth about the noise.
    told_right : ndarray
        The prior's answer to that noise, on the grey scale of tissue.
    told_wrong : ndarray
        ``(2, H, W)`` two samples when the noise is said to be weaker than it is.
    """

    noise: Grey
    refusal: str
    told_right: Grey
    told_wrong: Grey

    @property
    def contrast_told_right(self) -> float:
        """Standard deviation of the answer over that of tissue."""
        return float(self.told_right.std() / (GREY_RANGE * 0.15))

    @property
    def contrast_told_wrong(self) -> float:
        """Standard deviation of the first sample over that of the input."""
        return float(self.told_wrong[0].std() / self.noise.std())

    @property
    def agreement(self) -> float:
        """Correlation of the two samples: 1 is the same invention twice, 0 is none in common."""
        first, second = self.told_wrong.reshape(2, -1)
        return float(np.corrcoef(first, second)[0, 1])


def invent(
    size: int, sigma: float, share: float, drawing: Config, prior: Prior, seed: int
) -> Invention:
    """Restore white noise, honestly told and told that its noise is only `share` of what it is.

    Parameters
    ----------
    size : int
        Side in pixels.
    sigma : float
        Of the noise, in grey levels.
    drawing : Config
        How samples are drawn.
    """
    generator = make_generator(seed)
    white = torch.randn(size, size, generator=generator).numpy()
    noise = (127.5 + sigma * (white - white.mean()) / white.std()).astype(np.float32)
    try:
        generalist.denoise(noise, drawing, generator, noise_sigma=sigma, prior=prior)
        refusal = "nothing: it went ahead"
    except InputError as problem:
        refusal = str(problem)
    scale = GreyScale(127.5, GREY_RANGE / 2)
    with torch.no_grad():
        right = scale.to_grey(prior.denoise(scale.to_units(noise, "cpu"), sigma / scale.scale))
    liar: dict[str, Any] = {"noise_sigma": share * sigma, "prior": prior, "samples": 2}
    wrong = generalist.denoise(noise, drawing, generator, **liar).samples
    return Invention(noise, refusal, right, wrong)


def star(size: int, spokes: int = 18) -> Grey:
    """A Siemens star, grey levels 40..215: a test target that no tissue looks like."""
    y, x = np.indices((size, size)) - (size - 1) / 2
    wave = np.sin(spokes * np.arctan2(y, x))
    sharp = np.tanh(np.hypot(y, x) / spokes * 2 * wave)
    return (127.5 + 87.5 * sharp).astype(np.float32)


def cryo_crop(size: int) -> tuple[Grey, data.Dataset] | None:
    """The middle of a real cryo-electron micrograph on 0..255, with its data set, or None."""
    try:
        dataset = data.load("k2_micrograph")
    except DataUnavailableError:
        return None
    whole = dataset["micrograph"].astype(np.float32)
    first = [(side - size) // 2 for side in whole.shape]
    crop = whole[first[0] :, first[1] :][:size, :size]
    low, high = np.percentile(crop, [1, 99])
    return ((crop - low) / (high - low) * 255).astype(np.float32), dataset


@dataclass(frozen=True)
class Stranger:
    """An image that the prior was never shown, made coarse and fine again."""

    truth: Grey
    cubic: Grey
    ours: Grey

    def beyond(self, radius: float) -> tuple[float, float]:
        """Contrast over the truth's inside a radius in pixels, and correlation with the truth."""
        places = np.moveaxis(np.indices(self.truth.shape), 0, -1)
        middle = (np.array(self.truth.shape) - 1) / 2
        inside = np.linalg.norm(places - middle, axis=-1) < radius
        ours, truth = self.ours[inside], self.truth[inside]
        return float(ours.std() / truth.std()), float(np.corrcoef(ours, truth)[0, 1])

    @property
    def gain(self) -> float:
        """PSNR over cubic interpolation in dB."""
        ours, cubic = (metrics.psnr(a, self.truth, GREY_RANGE) for a in (self.ours, self.cubic))
        return ours - cubic


def upsample_stranger(
    truth: Grey, factor: int, config: Config, prior: Prior, seed: int
) -> Stranger:
    """Average an image over `factor` pixels and bring it back, by cubic splines and by ours."""
    coarse = Downsample(factor).A(torch.from_numpy(truth)).numpy()
    ours = generalist.upsample(
        coarse, factor, config, make_generator(seed), prior=prior, noise_sigma=0.0
    )
    return Stranger(truth, cubic_upsample(coarse, factor), ours.image)


# --- registration


@dataclass(frozen=True)
class NoiseOfShift:
    """Noise of a raw image before and after it was moved by half a pixel.

    Attributes
    ----------
    sigma, moved_sigma : float
        Standard deviations in grey levels.
    correlation, moved_correlation : float
        Of neighbouring pixels, mean of y and x.
    """

    sigma: float
    moved_sigma: float
    correlation: float
    moved_correlation: float


def noise_after_shift(noisy: Grey, clean: Grey) -> NoiseOfShift:
    """Move a noisy image by half a pixel along both axes with cubic splines; look at its noise."""
    residuals = []
    for image, reference in ((noisy, clean), (_half(noisy), _half(clean))):
        residuals.append((image - reference)[8:-8, 8:-8])
    before, after = (float(np.mean(noise_correlation(r))) for r in residuals)
    return NoiseOfShift(float(residuals[0].std()), float(residuals[1].std()), before, after)


def _half(image: Grey) -> Grey:
    return ndimage.shift(image, 0.5, order=3, mode="nearest")
