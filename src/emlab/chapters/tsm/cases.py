"""What chapter 02 computes beside its table: how much of it, other sets, real micrographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emlab import data, weights
from emlab.bench import Report
from emlab.chapters.tsm.peers import (
    LABELS,
    Denoised,
    Method,
    classical,
    each,
    noise2void,
    topaz_denoise,
)
from emlab.chapters.tsm.study import Table
from emlab.data.micrographs import (
    RealMicrograph,
    apoferritin_micrograph,
    betagal_micrograph,
    k2_micrograph,
)
from emlab.data.phase_maps import PIXEL_ANGSTROM
from emlab.errors import DataUnavailableError
from emlab.external import topaz
from emlab.external.picking import HIT, Picks, pick_all
from emlab.external.topaz import Picked
from emlab.methods import tsm
from emlab.metrics.fourier import radial_frequency
from emlab.metrics.picking import chance
from emlab.models import untrained
from emlab.physics.micrograph import Micrograph, MicrographConfig, simulate_micrograph
from emlab.priors.base import Prior
from emlab.priors.networks import wrap
from emlab.recipes.tsm import PROTEINS, BankConfig, volume
from emlab.settings import only_first, read_profile, read_settings, smaller

Image = NDArray[np.float32]
_TOLD = {
    "micrographs": "simulated test micrographs",
    "size": "pixels a side",
    "empty": "micrographs without particles",
    "sets": "micrographs of each other set",
    "known": "micrographs of the bank's proteins",
    "noise2void_steps": "steps of Noise2Void",
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


def settings(profile: str) -> dict[str, Any]:
    """A profile's table of ``chapter.toml``."""
    return read_profile("chapters/tsm/chapter", profile)


def shortcuts(profile: str) -> list[str]:
    """One sentence for everything that is smaller than in the ``paper`` profile."""
    here, full = settings(profile), settings("paper")
    return smaller(_TOLD, here, full) + only_first(LABELS, here, full)


def bank_settings() -> BankConfig:
    """The target bank that the shipped TSM was trained with."""
    return BankConfig.read(read_settings("recipes/tsm")["recipes"]["tsm_tsm"]["bank"])


def score_method(denoiser: Prior, pixel_size_angstrom: float = PIXEL_ANGSTROM) -> Method:
    """One Tweedie step with a score."""
    return each(lambda image: tsm.denoise(image, pixel_size_angstrom, denoiser).image)


def untrained_prior(seed: int) -> Prior:
    """The network of TSM before its training."""
    card = weights.card("tsm_tsm")
    return wrap(untrained(card.model, seed).eval(), card.objective)


def methods(
    profile: str, scores: Mapping[str, Prior], threads: int, seed: int
) -> dict[str, Method]:
    """Rows of the chapter's table that a profile runs; Topaz-Denoise where it is installed."""
    chosen = classical(["raw", "gaussian", "wiener", "bm3d"])
    here = settings(profile)
    steps = here["noise2void_steps"]
    chosen["noise2void"] = each(partial(noise2void, steps=steps, seed=seed))
    if topaz.find() is not None:
        chosen["topaz"] = partial(topaz_denoise, threads=threads)
    chosen |= {name: score_method(score) for name, score in scores.items()}
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


@dataclass(frozen=True)
class RealStudy:
    """A real micrograph with hand picks, and picks from each method's image of it.

    Attributes
    ----------
    micrograph : RealMicrograph
    denoised : dict
        By method.
    picks : dict
        By method; empty without Topaz.
    thresholds : dict
        Those of the simulated validation micrographs.
    """

    micrograph: RealMicrograph
    denoised: dict[str, Denoised]
    picks: dict[str, Picks]
    thresholds: Mapping[str, float]

    def f1(self, method: str) -> float:
        """At the method's threshold."""
        level = self.thresholds.get(method, self.thresholds["raw"])
        return self.picks[method].at(level).f1()

    def best_f1(self, method: str) -> float:
        """Of all thresholds: what the picker could have reached."""
        return float(self.picks[method].curve().f1.max())

    def chance(self) -> float:
        """F1 of places drawn blindly, as many as there are hand picks."""
        places = self.micrograph.coordinates
        assert places is not None
        return chance([places], [self.micrograph.pixels.shape], self.picks["raw"].radius).f1()

    def record(self, report: Report, key: str) -> None:
        """Record ``KEY.f1.METHOD``, ``KEY.best_f1.METHOD`` and ``KEY.f1.chance``."""
        if self.picks:
            report.value(f"{key}.f1.chance", self.chance(), note="places at random", n=1)
        for name, picks in self.picks.items():
            report.value(f"{key}.f1.{name}", self.f1(name), n=1)
            report.value(f"{key}.best_f1.{name}", self.best_f1(name), n=1)
            report.value(f"{key}.average_precision.{name}", picks.curve().average_precision, n=1)

    def markdown(self) -> str:
        """A row a method."""
        if not self.picks:
            return "*skipped: Topaz is not installed*"
        lines = ["| picked from | F1 | F1 at the best threshold | average precision |"]
        lines.append("|---|---|---|---|")
        for name, picks in self.picks.items():
            lines.append(
                f"| {LABELS[name]} | {self.f1(name):.3f} | {self.best_f1(name):.3f} "
                f"| {picks.curve().average_precision:.3f} |"
            )
        lines.append(f"| places at random | {self.chance():.3f} | | |")
        return "\n".join(lines)


def study_real(
    micrograph: RealMicrograph,
    chosen: Mapping[str, Method],
    thresholds: Mapping[str, float],
    threads: int = 1,
    kept: Mapping[str, list[Picked]] | None = None,
) -> RealStudy:
    """Denoise a real micrograph with every method and pick from it, or take `kept` picks."""
    denoised = {name: method([micrograph.pixels]) for name, method in chosen.items()}
    picks: dict[str, Picks] = {}
    diameter = micrograph.diameter_angstrom
    can = kept is not None or topaz.find() is not None
    if can and micrograph.coordinates is not None and diameter is not None:
        pixel = micrograph.pixel_size_angstrom
        found = kept
        if found is None:
            images = {name: each.images for name, each in denoised.items()}
            found, _ = pick_all(images, pixel, diameter, threads=threads)
        radius = HIT * diameter / pixel
        for name, picked in found.items():
            picks[name] = Picks(picked, [micrograph.coordinates], radius)
    return RealStudy(micrograph, denoised, picks, thresholds)


def cut(micrograph: RealMicrograph, side: int) -> RealMicrograph:
    """The upper left square of a real micrograph with its picks; all of it for side 0."""
    if not side:
        return micrograph
    places = micrograph.coordinates
    if places is not None:
        places = places[(places < side).all(1)]
    return RealMicrograph(
        micrograph.name,
        micrograph.pixels[:side, :side],
        micrograph.pixel_size_angstrom,
        places,
        micrograph.diameter_angstrom,
        micrograph.note,
    )


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


def record_set(report: Report, name: str, table: Table) -> None:
    """Record ``set.NAME.NUMBER.METHOD`` and the gain of TSM over each."""
    key = f"set.{name.replace(' ', '_').replace('-', '_')}"
    for method in table.bands:
        report.value(f"{key}.recovery.{method}", *table.recovery(method))
    for method, picks in table.picks.items():
        counts = picks.at(table.threshold(method))
        for number in ("precision", "recall", "f1"):
            report.value(f"{key}.{number}.{method}", getattr(counts, number)())


def real_k2(side: int, report: Report) -> RealMicrograph | None:
    """The K2 frame, or its corner, recorded as used; None where it is not on this machine."""
    if not at_hand("k2_micrograph", report):
        return None
    return cut(k2_micrograph(), side)


def study_apoferritin(
    frame: str,
    scores: Mapping[str, Prior],
    thresholds: Mapping[str, float],
    side: int,
    few: Sequence[str],
    report: Report,
    threads: int = 1,
    kept: Mapping[str, list[Picked]] | None = None,
) -> RealStudy | None:
    """EMPIAR-10146 with hand picks, judged and recorded; None where it is not on this machine.

    Parameters
    ----------
    frame : str
        ``"average"`` or ``"noisy"``, a single frame.
    side : int
        Of the corner that is used; 0 for all of it.
    few : sequence of str
        Methods that take part.
    kept : dict, optional
        Recorded picks by method: neither Topaz nor Topaz-Denoise is run then.
    """
    if not at_hand("apoferritin_10146", report):
        return None
    seen = cut(apoferritin_micrograph(frame), side)
    chosen = classical(["raw"])
    if kept is None and "topaz" in few and topaz.find() is not None:
        chosen["topaz"] = partial(topaz_denoise, threads=threads)
    pixel = seen.pixel_size_angstrom
    chosen |= {name: score_method(score, pixel) for name, score in scores.items()}
    study = study_real(seen, chosen, thresholds, threads, kept)
    study.record(report, f"apoferritin_{'frame' if frame == 'noisy' else frame}")
    return study


def real_betagal(report: Report) -> dict[str, tuple[float, float, float]]:
    """Precision, recall and F1 of three programs' picks in EMPIAR-10017; empty without the data."""
    if not at_hand("betagal_10017", report):
        return {}
    micrograph, programs = betagal_micrograph()
    assert micrograph.coordinates is not None
    assert micrograph.diameter_angstrom is not None
    radius = HIT * micrograph.diameter_angstrom / micrograph.pixel_size_angstrom
    names = {name.lower(): places for name, places in programs.items()}
    return agreement(micrograph.coordinates, names, radius)


def record_training(report: Report) -> str:
    """Record what the shipped networks' training took, from their cards; returns it in words."""
    said = []
    for name in ("tsm_tsm", "tsm_dsm"):
        card = weights.card(name)
        minutes = report.value(f"training.minutes.{name}", card.seconds / 60, unit="min")
        said.append(f"{name}: {card.steps} steps in {minutes:.0f} minutes, {card.device}")
    return "; ".join(said)


def at_hand(name: str, report: Report) -> bool:
    """Record a data set as used, or as absent; returns whether it is here."""
    try:
        report.data(data.load(name))
    except DataUnavailableError:
        report.absent(name, "what shows it is left out")
        return False
    return True


def radial_power(
    image: Image, pixel_size_angstrom: float, bins: int = 60
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Power over rings, in units of that of the finest tenth of the frequencies.

    Returns
    -------
    frequency : ndarray
        ``(bins,)`` in 1/angstrom.
    power : ndarray
        ``(bins,)``.
    """
    centred = image - image.mean()
    window = np.outer(np.hanning(image.shape[0]), np.hanning(image.shape[1]))
    power = np.abs(np.fft.rfft2(centred * window)) ** 2
    frequency = radial_frequency(image.shape)
    number = np.minimum((frequency / 0.5 * bins).astype(int), bins)
    total = np.bincount(number.ravel(), power.ravel(), bins + 1)[:bins]
    members = np.bincount(number.ravel(), minlength=bins + 1)[:bins]
    mean = total / np.maximum(members.astype(np.float64), 1)
    floor = power[(frequency > 0.45) & (frequency <= 0.5)].mean()
    return (np.arange(bins) + 0.5) / (2 * bins) / pixel_size_angstrom, mean / floor


def coarse_excess(image: Image, pixel_size_angstrom: float) -> float:
    """Power between 100 and 25 angstrom over that of the finest frequencies: a kind of SNR."""
    frequency, power = radial_power(image, pixel_size_angstrom)
    kept = (frequency > 1 / 100) & (frequency < 1 / 25)
    return float(power[kept].mean())


def at_pixel(image: Image, pixel_size_angstrom: float) -> Image:
    """A real micrograph at the simulated ones' pixel size."""
    return tsm.to_working_size(image, pixel_size_angstrom)[0]


def agreement(
    hand: NDArray[np.float64], programs: Mapping[str, NDArray[np.float64]], radius: float
) -> dict[str, tuple[float, float, float]]:
    """Precision, recall and F1 of each program's picks against hand-checked ones."""
    from emlab.metrics.picking import count

    found = {}
    for name, places in programs.items():
        counts = count([places], [np.zeros(len(places))], [hand], radius)
        found[name] = (counts.precision(), counts.recall(), counts.f1())
    return found


def central(image: Image, truth: Micrograph, side: int = 220) -> Image:
    """A window of a micrograph's image about the particle nearest to its middle."""
    middle = np.array(image.shape) / 2
    nearest = truth.coordinates[np.linalg.norm(truth.coordinates - middle, axis=1).argmin()]
    return square(image, nearest, min(side, *image.shape))


def square(image: Image, place: Sequence[float], side: int) -> Image:
    """A window of an image about a place, moved inside where it would leave it."""
    corner = [
        int(np.clip(round(value) - side // 2, 0, length - side))
        for value, length in zip(place, image.shape, strict=True)
    ]
    return image[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
