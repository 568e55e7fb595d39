"""What chapter 02 looks at, and who denoises it: filters, BM3D, Noise2Void, Topaz-Denoise, scores.

``python -m tools.tune_tsm_peers`` chooses the settings of filters, and every method's picking
threshold, on validation micrographs and writes ``peers.toml``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from emlab import chapters, data, weights
from emlab.bench import Report
from emlab.bench.study import Column, Study, pipe_table
from emlab.data.micrographs import (
    RealMicrograph,
    apoferritin_micrograph,
    betagal_micrograph,
    k2_micrograph,
)
from emlab.data.phase_maps import PIXEL_ANGSTROM
from emlab.errors import DataUnavailableError, InputError
from emlab.external import topaz
from emlab.external.picking import DIAMETER_ANGSTROM, HIT, Picks, pick_all
from emlab.external.topaz import Picked
from emlab.methods import tsm
from emlab.methods.tsm_guidance import Explained, explain, standardise
from emlab.metrics.fourier import radial_frequency
from emlab.metrics.picking import Counts, chance, count
from emlab.physics.micrograph import (
    Micrograph,
    MicrographConfig,
    simulate_micrograph,
)
from emlab.physics.noise_estimation import estimate_noise_sigma
from emlab.priors.base import Prior
from emlab.priors.networks import untrained_prior
from emlab.priors.pose_posterior import Reference
from emlab.priors.score_matching import ring_power
from emlab.priors.target_bank import TargetBank
from emlab.recipes.tsm import PROTEINS, lens_of, volume
from emlab.runtime import make_generator
from emlab.settings import read_settings, tuned
from emlab.solvers.blind_spot import BlindSpotConfig, denoise_blind_spot
from emlab.solvers.classical import bm3d

SLUG = "02_tsm"
THRESHOLDS = read_settings("chapters/tsm/peers")["thresholds"]  # scores that a pick needs
Image = NDArray[np.float32]
LABELS = {
    "raw": "raw",
    "gaussian": "Gaussian",
    "wiener": "Wiener low-pass",
    "bm3d": "BM3D",
    "noise2void": "Noise2Void",
    "topaz": "Topaz-Denoise",
    "untrained": "TSM, untrained network",
    "dsm": "DSM",
    "tsm": "TSM",
    "guided": "TSM, guided",
    "generalist": "EM Generalist",
    "squares": "restorer, squared error",
    "cellpose3": "Cellpose3-style restorer",
    "untrained_restorer": "restorer, untrained",
}
# Other proteins and defoci than the table's: name, specimen, angstrom.
SETS = {
    "near focus": ("t20s", 7000.0),
    "beta-galactosidase": ("beta_galactosidase", 21000.0),
}
# What the data registry calls the models.
MODELS = {
    "t20s": "pdb_6bdf",
    "apoferritin_6z6u": "pdb_6z6u",
    "beta_galactosidase": "pdb_5a1a",
}
NO_PICKER = "*skipped: Topaz is not installed*"
LOW_PASS_ANGSTROM, DIRECTIONS, ANGLES = 15.0, 40, 24  # of projections that windows may resemble
_FLOOR = 0.4  # cycles per pixel from which a micrograph is taken to be noise


@dataclass(frozen=True)
class Denoised:
    """Images ``(H, W)`` of n micrographs, in their grey levels, protein dark.

    ``cpu_seconds`` are of the method alone.
    """

    images: list[Image]
    cpu_seconds: float


Method = Callable[[Sequence[Image]], Denoised]


def each(function: Callable[[Image], Image]) -> Method:
    """A method that takes one micrograph at a time."""
    return partial(_each, function)


def gaussian(image: Image, width: float) -> Image:
    """Gaussian low-pass of a standard deviation in pixels."""
    return ndimage.gaussian_filter(image, width)


def wiener(image: Image, strength: float, noise_power: NDArray[np.floating] | None = None) -> Image:
    r"""Wiener low-pass with the micrograph's own spectrum.

    Noise is white at the level N of the finest frequencies, the filter
    :math:`\max(0, 1 - sN/P(k))` with P the power averaged over rings; s = 1 is Wiener's.

    Parameters
    ----------
    noise_power : ndarray, optional
        N at each frequency ``(H, W // 2 + 1)`` instead, where the noise is not white; its mean
        over all frequencies is the variance.

    Raises
    ------
    InputError
        A strength that is not positive.
    """
    if not strength > 0:
        raise InputError(f"the strength must be positive, got {strength}")
    spectrum = np.fft.rfft2(image - image.mean())
    frequency = radial_frequency(image.shape)
    ring = np.rint(frequency * min(image.shape)).astype(int)
    centred = torch.from_numpy(np.asarray(image - image.mean(), np.float32))
    mean_power = image.size * ring_power(centred[None])[0].numpy()
    noise: Any = float((np.abs(spectrum[frequency > _FLOOR]) ** 2).mean())
    if noise_power is not None:
        noise = noise_power * image.size
    smooth = ndimage.gaussian_filter1d(mean_power, 2.0)[ring]
    gain = np.maximum(0, 1 - strength * noise / np.maximum(smooth, 1e-30))
    return (np.fft.irfft2(spectrum * gain, s=image.shape) + image.mean()).astype("f4")


def block_matching(image: Image, factor: float) -> Image:
    """BM3D with the estimated noise times a factor."""
    return bm3d(image, factor * estimate_noise_sigma(image))


def noise2void(image: Image, steps: int, seed: int) -> Image:
    """A small blind-spot network, trained on this micrograph alone."""
    found = denoise_blind_spot(
        torch.from_numpy(image), BlindSpotConfig(steps=steps), make_generator(seed)
    )
    return found.numpy()


def topaz_denoise(images: Sequence[Image], threads: int = 1) -> Denoised:
    """Topaz-Denoise's pretrained U-Net, whose authors trained it on thousands of micrographs."""
    found, done = topaz.denoise(images, threads=threads)
    return Denoised(found, done.cpu_seconds)


def classical(names: Sequence[str], settings: Mapping[str, Any] | None = None) -> dict[str, Method]:
    """Raw, Gaussian, Wiener and BM3D with their tuned settings, those of `names`."""
    table = tuned("tsm") if settings is None else settings
    made: dict[str, Method] = {
        "raw": each(lambda image: image),
        "gaussian": each(partial(gaussian, **table.get("gaussian", {}))),
        "wiener": each(partial(wiener, **table.get("wiener", {}))),
        "bm3d": each(partial(block_matching, **table.get("bm3d", {}))),
    }
    return {name: made[name] for name in names}


def score_method(
    denoiser: Prior,
    pixel_size_angstrom: float = PIXEL_ANGSTROM,
    config: tsm.Config | None = None,
) -> Method:
    """One Tweedie step with a score."""
    return each(lambda image: tsm.denoise(image, pixel_size_angstrom, denoiser, config).image)


@lru_cache(maxsize=4)
def reference_of(protein: str, beyond_angstrom: float = 0.0) -> Reference:
    """A protein as a reference; with phases at random beyond a resolution; or ``"noise"``."""
    if protein == "noise":
        away = torch.linalg.vector_norm(torch.cartesian_prod(*[torch.arange(64.0) - 32] * 3), dim=1)
        ball = torch.sigmoid((24 - away) / 2).reshape(64, 64, 64)
        return Reference(
            torch.randn(64, 64, 64, generator=make_generator(5)) * ball, PIXEL_ANGSTROM
        )
    made = Reference(volume(protein)[0], PIXEL_ANGSTROM)
    return made.decoy(beyond_angstrom, make_generator(5)) if beyond_angstrom else made


def trial(micrograph: Micrograph, reference: Reference) -> Explained:
    """What a reference explains of a micrograph."""
    flat = standardise(micrograph.noisy, micrograph.pixel_size_angstrom)
    lens = lens_of(micrograph.config)
    return explain(flat.image, reference, lens, make_generator(0))


def guided(
    denoiser: Prior, reference: Reference | None, micrographs: Sequence[Micrograph]
) -> Method:
    """One Tweedie step, guided by a reference where it fits; for these micrographs only."""

    def denoise(images: Sequence[Image]) -> Denoised:
        start, made = time.process_time(), []
        for image, one in zip(images, micrographs, strict=False):
            lens = lens_of(one.config)
            pixel = one.pixel_size_angstrom
            answer = tsm.denoise(image, pixel, denoiser, reference=reference, lens=lens)
            made.append(answer.image)
        return Denoised(made, time.process_time() - start)

    return denoise


def methods(
    profile: str,
    scores: Mapping[str, Prior],
    micrographs: Sequence[Micrograph],
    threads: int,
    seed: int,
) -> dict[str, Method]:
    """Rows of the chapter's table that a profile runs; Topaz-Denoise where it is installed."""
    here = chapters.settings(SLUG, profile)
    chosen = classical(["raw", "gaussian", "wiener", "bm3d"])
    chosen["noise2void"] = each(partial(noise2void, steps=here["noise2void_steps"], seed=seed))
    if topaz.find() is not None:
        chosen["topaz"] = partial(topaz_denoise, threads=threads)
    chosen |= {name: score_method(score) for name, score in scores.items()}
    chosen["guided"] = guided(scores["dsm"], reference_of("t20s"), micrographs)
    chosen["untrained"] = score_method(untrained_prior("tsm_tsm", seed))
    return {name: method for name, method in chosen.items() if here["first"].get(name) != 0}


def other_set(name: str, count: int, size: int, seed: int) -> list[Micrograph]:
    """Micrographs of one of `SETS`."""
    specimen, defocus = SETS[name]
    potential, _ = volume(specimen)
    config = MicrographConfig(
        size=size,
        pixel_size_angstrom=PIXEL_ANGSTROM,
        defocus_angstrom=defocus,
        particles=round(110 * (size / 1024) ** 2),
        contaminants=1,
    )
    generators = [torch.Generator().manual_seed(seed + 50 + number) for number in range(count)]
    return [simulate_micrograph(config, potential, generator) for generator in generators]


def record_material(report: Report) -> None:
    """Say which particles the micrographs show, and which stand in for absent models."""
    for split, names in PROTEINS.items():
        for name in names:
            _, shown = volume(name)
            report.simulated(
                f"micrographs of {shown}",
                f"{split} split of emlab.recipes.tsm",
                stands_in_for="" if shown == name else MODELS[name],
            )


def at_hand(name: str, report: Report) -> bool:
    """Record a data set as used, or as absent; returns whether it is here."""
    try:
        report.data(data.load(name))
    except DataUnavailableError:
        report.absent(name, "what shows it is left out")
        return False
    return True


def cut(micrograph: RealMicrograph, side: int) -> RealMicrograph:
    """The upper left square of a real micrograph with its picks; all of it for side 0."""
    if not side:
        return micrograph
    places = micrograph.coordinates
    if places is not None:
        places = places[(places < side).all(1)]
    return replace(micrograph, pixels=micrograph.pixels[:side, :side], coordinates=places)


def real_k2(side: int, report: Report) -> RealMicrograph | None:
    """The K2 frame, or its corner, recorded as used; None where it is not on this machine."""
    return cut(k2_micrograph(), side) if at_hand("k2_micrograph", report) else None


def real_apoferritin(frame: str, side: int, report: Report) -> RealMicrograph | None:
    """EMPIAR-10146, ``"average"`` or ``"noisy"`` (a single frame), or its corner; None without."""
    found = at_hand("apoferritin_10146", report)
    return cut(apoferritin_micrograph(frame), side) if found else None


def real_betagal(report: Report) -> dict[str, Counts]:
    """Three programs' picks in EMPIAR-10017 against hand-checked ones; empty without the data."""
    if not at_hand("betagal_10017", report):
        return {}
    micrograph, programs = betagal_micrograph()
    hand, diameter = micrograph.coordinates, micrograph.diameter_angstrom
    assert hand is not None
    assert diameter is not None
    radius = HIT * diameter / micrograph.pixel_size_angstrom
    return {
        name.lower(): count([places], [np.zeros(len(places))], [hand], radius)
        for name, places in programs.items()
    }


def record_training(report: Report) -> str:
    """Record what the shipped networks' training took, from their cards; returns it in words."""
    said = []
    for name in ("tsm_tsm", "tsm_dsm"):
        card = weights.card(name)
        minutes = report.value(f"training.minutes.{name}", card.seconds / 60, unit="min")
        said.append(f"{name}: {card.steps} steps in {minutes:.0f} minutes, {card.device}")
    return "; ".join(said)


def find_picks(
    made: Mapping[str, Denoised],
    pixel_size_angstrom: float,
    threads: int = 1,
    diameter_angstrom: float = DIAMETER_ANGSTROM,
) -> dict[str, list[Picked]]:
    """Topaz's picks from methods' images; nothing without Topaz."""
    if topaz.find() is None or not made:
        return {}
    images = {name: one.images for name, one in made.items()}
    return pick_all(images, pixel_size_angstrom, diameter_angstrom, threads=threads)[0]


@dataclass(frozen=True)
class RealStudy:
    """A real micrograph, what methods made of it, and their picks (none without Topaz).

    ``thresholds`` are those of the simulated validation micrographs.
    """

    micrograph: RealMicrograph
    denoised: dict[str, Denoised]
    picks: dict[str, Picks]
    thresholds: Mapping[str, float]

    def numbers(self, method: str) -> dict[str, float]:
        """F1 at the method's threshold and at the best one, and average precision."""
        curve = self.picks[method].curve()
        level = self.thresholds.get(method, self.thresholds["raw"])
        return {
            "f1": self.picks[method].at(level).f1(),
            "best_f1": float(curve.f1.max()),
            "average_precision": curve.average_precision,
        }

    def chance(self) -> float:
        """F1 of places drawn blindly, as many as there are hand picks."""
        picks = self.picks["raw"]
        return chance(picks.truth, [self.micrograph.pixels.shape], picks.radius).f1()

    def record(self, report: Report, key: str) -> None:
        """Record ``KEY.NUMBER.METHOD`` for all `numbers`, and ``KEY.f1.chance``."""
        if self.picks:
            report.value(f"{key}.f1.chance", self.chance(), note="places at random", n=1)
        for name in self.picks:
            for number, value in self.numbers(name).items():
                report.value(f"{key}.{number}.{name}", value, n=1)

    def markdown(self) -> str:
        """A row a method."""
        if not self.picks:
            return NO_PICKER
        heads = ["picked from", "F1", "F1 at the best threshold", "average precision"]
        rows = [
            [LABELS[name], *(f"{value:.3f}" for value in self.numbers(name).values())]
            for name in self.picks
        ]
        return pipe_table(heads, [*rows, ["places at random", f"{self.chance():.3f}", "", ""]])


def study_real(
    micrograph: RealMicrograph,
    chosen: Mapping[str, Method],
    thresholds: Mapping[str, float],
    threads: int = 1,
    kept: Mapping[str, list[Picked]] | None = None,
) -> RealStudy:
    """Denoise a real micrograph with every method and pick from it, or take `kept` picks."""
    made = {name: method([micrograph.pixels]) for name, method in chosen.items()}
    picks: dict[str, Picks] = {}
    hand, diameter = micrograph.coordinates, micrograph.diameter_angstrom
    if hand is not None and diameter is not None:
        pixel = micrograph.pixel_size_angstrom
        found = find_picks(made, pixel, threads, diameter) if kept is None else kept
        radius = HIT * diameter / pixel
        picks = {name: Picks(list(one), [hand], radius) for name, one in found.items()}
    return RealStudy(micrograph, made, picks, thresholds)


def no_particles(
    micrographs: Sequence[Micrograph],
    methods: Mapping[str, Method],
    thresholds: Mapping[str, float],
    threads: int = 1,
    kept: Mapping[str, list[Picked]] | None = None,
) -> Study:
    """Denoise micrographs without particles and let the picker pick, or take `kept` picks.

    Scores are ``picks`` of each micrograph at the method's threshold; there are none without Topaz.
    """
    head = "picks in a micrograph without particles"
    column = Column("picks", head, show="{mean:.1f}", note="a micrograph")
    study = Study(list(micrographs), [column], LABELS)
    study.answers |= {name: of_noisy(method, micrographs) for name, method in methods.items()}
    pixel = micrographs[0].pixel_size_angstrom
    found = find_picks(study.answers, pixel, threads) if kept is None else kept
    for name, every in found.items():
        counts = [(one.scores >= thresholds.get(name, thresholds["raw"])).sum() for one in every]
        study.scores[name] = {"picks": np.array(counts, float)}
    return study


def resemblance(
    micrographs: Sequence[Micrograph],
    images: Mapping[str, Sequence[NDArray[np.float32]]],
    protein: str,
    windows: int = 12,
    seed: int = 0,
) -> Study:
    """How much particles (or, in empty micrographs, random places) look like a protein.

    Each window, at most so many a micrograph, is compared with projections along 40 directions, 24
    in-plane angles each, seen through the micrograph's lens, at the shift that fits best. The score
    is the largest ``cosine``; windows, the cases, are the same for all methods.
    """
    potential, _ = volume(protein)
    cases: list[NDArray[np.int64]] = []
    cosines: dict[str, list[float]] = {method: [] for method in images}
    for number, micrograph in enumerate(micrographs):
        bank = TargetBank.from_volume(
            potential, micrograph.pixel_size_angstrom, LOW_PASS_ANGSTROM, DIRECTIONS, ANGLES
        )
        matcher = bank.matcher(lens_of(micrograph.config))
        places = _windows(micrograph, bank.box, windows, seed + number)
        cases.extend(places)
        half = bank.box // 2
        for method, every in images.items():
            image = torch.from_numpy(np.ascontiguousarray(every[number]))
            patches = [image[y - half : y + half, x - half : x + half] for y, x in places]
            with torch.no_grad():
                cosines[method] += matcher(torch.stack(patches)).similarity.tolist()
    study = Study(cases, [Column("cosine", "cosine")], LABELS)
    study.scores |= {method: {"cosine": np.array(found)} for method, found in cosines.items()}
    return study


def of_noisy(method: Method, micrographs: Sequence[Micrograph]) -> Denoised:
    """What a method makes of simulated micrographs."""
    return method([micrograph.noisy.numpy() for micrograph in micrographs])


def _each(function: Callable[[Image], Image], images: Sequence[Image]) -> Denoised:
    start = time.process_time()
    found = [np.asarray(function(image), np.float32) for image in images]
    return Denoised(found, time.process_time() - start)


def _windows(micrograph: Micrograph, box: int, most: int, seed: int) -> NDArray[np.int64]:
    """Places of particles whose window fits, or random ones where there are none."""
    shape = np.array(micrograph.noisy.shape)
    inside = micrograph.coordinates.round().astype(int)
    fits = ((inside >= box // 2) & (inside <= shape - box // 2)).all(1)
    if fits.any():
        return inside[fits][:most]
    random = torch.rand(most, 2, generator=make_generator(seed)).numpy()
    return (box // 2 + random * (shape - box)).astype(int)


def central(image: Image, truth: Micrograph, side: int = 220) -> Image:
    """A window of a micrograph's image about the particle nearest to its middle."""
    middle = np.array(image.shape) / 2
    nearest = truth.coordinates[np.linalg.norm(truth.coordinates - middle, axis=1).argmin()]
    return square(image, nearest, min(side, *image.shape))


def square(image: Image, place: Sequence[float], side: int) -> Image:
    """A window of an image about a place, moved inside where it would leave it."""
    y, x = (
        int(np.clip(round(value) - side // 2, 0, length - side))
        for value, length in zip(place, image.shape, strict=True)
    )
    return image[y : y + side, x : x + side]
