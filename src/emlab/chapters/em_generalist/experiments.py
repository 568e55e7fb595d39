"""The experiments of chapter 01: what prior and solver do on fields, noise and strange images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor

from emlab import data, metrics, weights
from emlab.bench.tissue import PIXEL_NM, RealPair
from emlab.chapters.em_generalist.study import Grey, match_grey_levels
from emlab.data.phantoms import neuropil
from emlab.errors import DataUnavailableError, InputError
from emlab.methods import generalist
from emlab.methods.generalist import Config, GreyScale
from emlab.models import build
from emlab.physics.noise_estimation import noise_correlation
from emlab.physics.operators import Downsample
from emlab.priors import Prior
from emlab.priors.base import FromDenoiser
from emlab.priors.diffusion import DDPMSchedule, DDPMView, flow_time
from emlab.recipes.generalist_tasks import GREY_RANGE
from emlab.runtime import make_generator, peak_memory_mb
from emlab.solvers.classical import cubic_upsample
from emlab.solvers.one_step import one_step_spread
from emlab.solvers.tiling import tile_positions

NORMAL_90 = 1.6448536
EDGE = 8  # pixels at the edge of a field that are compared with nothing


# --- the prior by itself


class Meeting(NamedTuple):
    """Where a noise level lies on two paths."""

    sigma: float
    flow_time: float
    ddpm_step: int
    gap: float  #: the largest difference of answers on both


def where_paths_meet(
    prior: FromDenoiser, clean: Tensor, steps: Sequence[int], generator: torch.Generator
) -> list[Meeting]:
    """Ask for clean images ``(n, H, W)`` on the DDPM path and on the flow's, at the same noise.

    Images are in the prior's units, steps those of the DDPM schedule.
    """
    view, meetings = DDPMView(prior, DDPMSchedule()), []
    for step in steps:
        sigma = view.schedule.sigma[step].item()
        share = view.schedule.alpha_bar[step].item()
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        on_ddpm = math.sqrt(share) * clean + math.sqrt(1 - share) * noise
        time = float(flow_time(sigma))
        on_flow = time * clean + (1 - time) * noise
        from_ddpm = view.clean(on_ddpm, step, view.epsilon(on_ddpm, step))
        from_flow = on_flow + (1 - time) * prior.velocity(on_flow, time)
        meetings.append(Meeting(sigma, time, step, (from_ddpm - from_flow).abs().max().item()))
    return meetings


def approach_of_samples(
    truth: Grey, noise: float, drawing: Config, prior: Prior, count: int, seed: int
) -> tuple[float, NDArray[np.float64]]:
    """PSNR in dB of one evaluation, and of the mean of 1, 2, ... `count` posterior samples.

    Grey levels are 0..255, the noise is in units of their range.
    """
    generator, sigma = make_generator(seed), noise * GREY_RANGE
    noisy = truth + sigma * torch.randn(truth.shape, generator=generator).numpy()
    told: dict[str, Any] = {"noise_sigma": sigma, "prior": prior}
    once = generalist.denoise(noisy, generalist.load_config("ours"), generator, **told)
    drawn = generalist.denoise(noisy, drawing, generator, samples=count, **told).samples
    means = np.cumsum(drawn, axis=0) / np.arange(1, count + 1)[:, None, None]
    curve = np.array([metrics.psnr(mean, truth, GREY_RANGE) for mean in means])
    return metrics.psnr(once.image, truth, GREY_RANGE), curve


class Training(NamedTuple):
    """One training run, from the card of its weights."""

    parameters: int
    steps: NDArray[np.float64]  #: ``(n,)``, at which it was judged on validation patches
    #: PSNR in dB of one denoising by noise level in the prior's units, ``(n,)`` each
    scores: dict[str, NDArray[np.float64]]
    hours: float
    device: str

    @classmethod
    def of(cls, name: str) -> Training:
        """Read the card of a checkpoint."""
        card, key = weights.card(name), "denoising_psnr_at_"
        history = {name: np.array(values) for name, values in card.raw["history"].items()}
        scores = {k.removeprefix(key): v for k, v in history.items() if k.startswith(key)}
        size = sum(p.numel() for p in build(card.model).parameters())
        return cls(size, history["step"], scores, card.seconds / 3600, card.device)

    def last_doubling(self, level: str) -> float:
        """What the second half of the steps added, in dB."""
        half = np.interp(math.log(self.steps[-1] / 2), np.log(self.steps), self.scores[level])
        return float(self.scores[level][-1] - half)

    def __str__(self) -> str:
        size = f"{self.parameters / 1e6:.1f} million parameters, {self.steps[-1]:.0f} steps"
        return f"{size}, {self.hours:.1f} hours on {self.device}"


def kernel_error(found: NDArray, true: NDArray) -> float:
    """Half the sum of absolute differences of two kernels of odd side: 0 the same, 1 disjoint."""
    side = max(found.shape[0], true.shape[0])
    first, second = (np.pad(k, (side - k.shape[0]) // 2) for k in (found, true))
    return float(np.abs(first - second).sum() / 2)


# --- large and real images


def large_field(size: int) -> tuple[Grey, data.Dataset | None]:
    """The corner of the large noisy field ``(size, size)``, or of a noisy phantom and None."""
    try:
        dataset = data.load("brain_sem_fullfield")
    except DataUnavailableError:
        noise = np.random.default_rng(0).normal(0, 0.15 * GREY_RANGE, (size, size))
        return (neuropil((size, size), 5) + noise).astype(np.float32), None
    return dataset["noisy"][:size, :size].astype(np.float32), dataset


def simulated_pair(size: int, sigma: float = 0.06) -> RealPair:
    """A phantom and the same with coloured noise, for readers without the real pair."""
    clean = neuropil((size, size), 6)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=clean.shape), 0.7)
    noisy = clean + sigma * GREY_RANGE * noise / noise.std()
    return RealPair(noisy.astype(np.float32), clean, None)


class Stitched(NamedTuple):
    """A large field ``(H, W)`` restored in blended tiles, and in tiles side by side.

    A seam index is the step across a border over that of the same field restored in tiles that
    lie elsewhere, relative to all other places: 1 is like anywhere else.
    """

    blended: Grey
    pasted: Grey
    seams: NDArray[np.float64]  #: index of every border
    pasted_seams: NDArray[np.float64]
    chance: NDArray[np.float64]  #: index of every place of the blended field without a border
    tile: int  #: side of a tile: where the first four pasted ones meet
    megabytes: float  #: by how much the peak memory of the process grew while blending


def stitch(field: Grey, config: Config, prior: Prior, seed: int) -> Stitched:
    """Denoise a field larger than a tile in overlapping tiles, twice, and in others."""
    before = peak_memory_mb()
    blended = generalist.denoise(field, config, make_generator(seed), prior=prior)
    growth = peak_memory_mb() - before
    sigma, tile = blended.noise_sigma, config.tile
    scale, pasted = GreyScale.of(field, sigma), np.empty_like(field)
    shift = (tile - config.overlap) // 2 + 1
    wider = np.pad(field, ((shift, 0), (shift, 0)), mode="reflect")
    told: dict[str, Any] = {"prior": prior, "noise_sigma": sigma, "scale": scale}
    moved = generalist.denoise(wider, config, make_generator(seed), **told).image[shift:, shift:]
    for row in range(0, field.shape[0], tile):
        for column in range(0, field.shape[1], tile):
            place = slice(row, row + tile), slice(column, column + tile)
            answer = prior.denoise(scale.to_units(field[place], "cpu"), sigma / scale.scale)
            pasted[place] = scale.to_grey(answer)
    others = [_borders(side + shift, config, shift) for side in field.shape]
    own = [_borders(side, config) for side in field.shape]
    free = [
        set(range(EDGE, n - EDGE)).difference(at) for n, at in zip(field.shape, own, strict=True)
    ]
    cuts = [range(tile, side, tile) for side in field.shape]

    def indices(image: Grey, places: Sequence[Any]) -> NDArray[np.float64]:
        found = []
        for axis in (0, 1):
            at = sorted(set(places[axis]).difference(others[axis]))
            steps = [np.abs(np.diff(one, axis=axis)).mean(1 - axis) for one in (image, moved)]
            ratio = steps[0] / steps[1]
            found.append(ratio[np.array(at) - 1] / np.median(ratio))
        return np.concatenate(found)

    image = blended.image
    seams, pasted_seams, chance = indices(image, own), indices(pasted, cuts), indices(image, free)
    return Stitched(image, pasted, seams, pasted_seams, chance, tile, growth)


def _borders(side: int, config: Config, shift: int = 0) -> list[int]:
    starts = tile_positions(side, config.tile, config.overlap)
    places = {place - shift for start in starts for place in (start, start + config.tile)}
    return sorted(place for place in places if 0 < place < side - shift)


def psnr_inside(image: NDArray, truth: Grey, registered: metrics.Registered) -> float:
    """PSNR in dB after matching grey levels, where a registered image has pixels."""
    inside = ndimage.binary_erosion(registered.valid, iterations=4)
    matched = match_grey_levels(image[inside], truth[inside])
    return metrics.psnr(matched, truth[inside], GREY_RANGE)


def noise_of(noisy: Grey, clean: Grey) -> tuple[float, float]:
    """Standard deviation in grey levels, and correlation of neighbours, mean of y and x."""
    residual = (noisy - clean)[8:-8, 8:-8]
    return float(residual.std()), float(np.mean(noise_correlation(residual)))


def half_a_pixel(image: Grey) -> Grey:
    """An image moved by half a pixel along both axes with cubic splines, as registration does."""
    return ndimage.shift(image, 0.5, order=3, mode="nearest")


# --- uncertainty


class Calibration(NamedTuple):
    """Share of pixels inside 90 % intervals, and error of the pixels of similar spread."""

    coverage: float
    curve: metrics.Reliability

    @classmethod
    def of(cls, mean: Grey, spread: Grey, truth: Grey, reach: float = NORMAL_90) -> Calibration:
        """Of intervals whose half width is `reach` standard deviations."""
        inside = np.abs(truth - mean) <= reach * spread
        return cls(float(inside.mean()), metrics.error_against_spread(mean, spread, truth, 8))


def denoising_uncertainty(
    truth: Grey, noise_sigma: float, prior: Prior, probes: int, seed: int
) -> tuple[Grey, Grey]:
    """Posterior mean and spread of crops ``(n, H, W)`` under white noise, all in grey levels.

    From one evaluation and its derivative, whose diagonal is estimated by so many `probes` of
    random signs; what is left of their own noise is averaged out over 5 x 5 pixels.
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
    return mean, np.sqrt(variance) * np.float32(scale.scale)


# --- inventions


class Invention(NamedTuple):
    """What the method makes of an image that holds nothing, in grey levels."""

    noise: Grey  #: the input: white noise ``(H, W)``
    refusal: str  #: what the method says when it is told the truth about the noise
    told_right: Grey  #: the prior's answer to that noise, on the grey scale of tissue
    told_wrong: Grey  #: ``(2, H, W)``, samples when the noise is said to be weaker than it is


def invent(
    size: int, sigma: float, share: float, drawing: Config, prior: Prior, seed: int
) -> Invention:
    """Restore white noise, honestly told and told that there is only a `share` of its `sigma`."""
    generator = make_generator(seed)
    white = torch.randn(size, size, generator=generator).numpy()
    noise = (127.5 + sigma * (white - white.mean()) / white.std()).astype(np.float32)
    told: dict[str, Any] = {"prior": prior, "samples": 2}
    try:
        generalist.denoise(noise, drawing, generator, noise_sigma=sigma, prior=prior)
        refusal = "nothing: it went ahead"
    except InputError as problem:
        refusal = str(problem)
    scale = GreyScale(127.5, GREY_RANGE / 2)
    with torch.no_grad():
        right = scale.to_grey(prior.denoise(scale.to_units(noise, "cpu"), sigma / scale.scale))
    wrong = generalist.denoise(noise, drawing, generator, noise_sigma=share * sigma, **told)
    return Invention(noise, refusal, right, wrong.samples)


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
    crop = at_most(dataset["micrograph"].astype(np.float32), size)
    low, high = np.percentile(crop, [1, 99])
    return ((crop - low) / (high - low) * 255).astype(np.float32), dataset


def at_most(image: Grey, side: int) -> Grey:
    """The middle of an image, no larger than `side` pixels."""
    rows, columns = (max(0, (length - side) // 2) for length in image.shape)
    return image[rows:, columns:][:side, :side]


def beyond(image: Grey, truth: Grey, radius: float) -> tuple[float, float]:
    """Contrast over the truth's inside a radius in pixels, and correlation with the truth."""
    places = np.moveaxis(np.indices(truth.shape), 0, -1)
    middle = (np.array(truth.shape) - 1) / 2
    inside = np.linalg.norm(places - middle, axis=-1) < radius
    ours, there = image[inside], truth[inside]
    return float(ours.std() / there.std()), float(np.corrcoef(ours, there)[0, 1])


# --- scores without truth


class Judged(NamedTuple):
    """Images of one kind of damage: their PSNR and the scores that do not need the truth."""

    kind: str
    psnr: float
    decorrelation_nm: float
    naturalness: float


def judge(
    images: Mapping[tuple[str, str], Grey], truth: Grey, model: metrics.Naturalness
) -> list[Judged]:
    """Score images ``{(kind, label): (n, H, W)}``."""
    return [
        Judged(kind, metrics.psnr(stack, truth, GREY_RANGE), _sharpness(stack), model.score(stack))
        for (kind, _), stack in images.items()
    ]


def _sharpness(stack: Grey) -> float:
    found = [metrics.decorrelation_resolution(image, PIXEL_NM) for image in stack]
    return float(np.mean(np.minimum(found, PIXEL_NM * min(stack.shape[1:]))))


def follows(judged: list[Judged], score: str, kinds: tuple[str, ...] = ()) -> float:
    """Minus the rank correlation of PSNR and a score that better images are to have less of."""
    chosen = [item for item in judged if not kinds or item.kind in kinds]
    if len(chosen) < 3:
        raise InputError("a rank correlation needs three images or more")
    values = [[getattr(item, name) for item in chosen] for name in (score, "psnr")]
    return -float(stats.spearmanr(*values).statistic)


def degradations(truth: Grey, seed: int) -> dict[tuple[str, str], Grey]:
    """Planes ``(n, H, W)`` blurred, made noisy and made coarse to several degrees."""
    generator = np.random.default_rng(seed)
    images = {("truth", "truth"): truth}
    for width in (0.7, 1.0, 1.5, 2.0, 3.0):
        blurred = ndimage.gaussian_filter(truth, (0, width, width))
        images["blur", f"blur {width:g} px"] = blurred
    for sigma in (0.02, 0.05, 0.1, 0.25):
        noise = generator.normal(0, sigma * GREY_RANGE, truth.shape)
        images["noise", f"noise {sigma:g}"] = (truth + noise).astype(np.float32)
    for factor in (2, 3, 4):
        side = truth.shape[-1] // factor * factor
        coarse = Downsample(factor).A(torch.from_numpy(truth[:, :side, :side])).numpy()
        fine = np.stack([cubic_upsample(plane, factor) for plane in coarse])
        rest = truth.shape[-1] - side
        images["coarse", f"cubic {factor}x"] = np.pad(fine, ((0, 0), (0, rest), (0, rest)), "edge")
    return images
