"""A reader's own image: what is asked, what the image tells about itself, and one method's answer.

Every method gets the same window and the same knowledge of noise, blur and pixel size. Beside the
window it restores two fields of pure noise of the same level and spectrum, and the two halves of
the recording where there are any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from emlab.errors import EmlabError, InputError
from emlab.methods.generalist import TISSUE_MEAN, TISSUE_STD, GreyScale
from emlab.physics.noise import ColouredGaussianNoise
from emlab.physics.noise_estimation import (
    NoiseSpectrum,
    estimate_noise_sigma,
    estimate_noise_spectrum,
)
from emlab.physics.operators import Blur, Downsample, Identity, ShapedOperator
from emlab.runtime import MemoryWatch, Stopwatch, make_generator

Grey = NDArray[np.float32]
Progress = Callable[[int, int], None]
TASKS = ("denoise", "deblur", "upsample")
SPECIMENS = ("tissue", "particles", "cells", "unknown")
SMALLEST = 64  # pixels a side, below which noise cannot be estimated
COLOURED_FROM = 0.1  # correlation of neighbouring pixels
AUDIT_SIDE = 256  # of the fields of pure noise, at most
# Pixel sizes in angstrom up to which an image is taken for particles, and for tissue.
_PARTICLES_TO, _TISSUE_TO = 7.0, 400.0


@dataclass(frozen=True)
class FoundNoise:
    """Noise of an image, in its grey levels.

    The spectrum is flat if it counts as white; ``coloured`` tells whether methods are told the
    spectrum, ``correlation`` is that of neighbouring pixels in y and x, as estimated, and
    ``origin`` says how the noise is known.
    """

    sigma: float
    spectrum: NoiseSpectrum
    coloured: bool
    correlation: tuple[float, float]
    origin: str


def find_noise(
    pixels: Grey, task: str, given: float | None = None, coloured: bool | None = None
) -> FoundNoise:
    """Estimate level and spectrum, and decide whether the noise counts as white.

    The pixels are ``(H, W)``, 64 a side or more; a level that is given is that of white noise.
    Unless ``coloured`` says it, noise counts as coloured if neighbours correlate by .1 or more and
    the task is denoising. (A blurred or coarse image is smooth itself, so its noise counts as
    white.)
    """
    _check_side(pixels)
    estimate = estimate_noise_spectrum(pixels)
    correlation = estimate.correlation
    decided = coloured
    if decided is None:
        decided = given is None and task == "denoise" and max(map(abs, correlation)) > COLOURED_FROM
    if decided:
        return FoundNoise(estimate.sigma, estimate, True, correlation, "estimated")
    sigma = estimate_noise_sigma(pixels) if given is None else given
    if not (sigma > 0 and math.isfinite(sigma)):
        raise InputError(f"the noise must be a positive number of grey levels, got {sigma:g}")
    flat = NoiseSpectrum(torch.full_like(estimate.power, sigma**2))
    return FoundNoise(sigma, flat, False, correlation, "estimated" if given is None else "given")


def _check_side(pixels: Grey) -> None:
    if min(pixels.shape) < SMALLEST:
        raise InputError(
            f"the window is {pixels.shape[0]} x {pixels.shape[1]} pixels; give {SMALLEST} x "
            f"{SMALLEST} or more, noise is not told from structure in less"
        )


@dataclass(frozen=True)
class Question:
    """What all methods are asked about a window ``(H, W)`` of an image, in grey levels of the file.

    ``task`` is one of `TASKS`, ``specimen`` one of `SPECIMENS`; ``kernel`` ``(k, k)`` is of
    deblurring, ``factor`` of upsampling, ``diameter`` of cells in pixels; ``inverted``: particles
    are brighter than the ice around them; ``halves`` are two recordings of the window with
    independent noise.
    """

    task: str
    pixels: Grey
    noise: FoundNoise
    pixel_size_angstrom: float | None = None
    kernel: Grey | None = None
    factor: int = 1
    specimen: str = "unknown"
    diameter: float | None = None
    inverted: bool = False
    halves: tuple[Grey, Grey] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        if self.task not in TASKS or self.specimen not in SPECIMENS:
            raise InputError(
                f"choose the task from {', '.join(TASKS)} and the specimen from "
                f"{', '.join(SPECIMENS)}, not {self.task} and {self.specimen}"
            )
        _check_side(self.pixels)
        if (self.task == "deblur") != (self.kernel is not None):
            raise InputError("deblurring, and only that, needs the kernel of the blur")

    @cached_property
    def operator(self) -> ShapedOperator:
        """What the instrument did to the image that is asked for."""
        if self.kernel is not None:
            return Blur(torch.from_numpy(self.kernel))
        return Downsample(self.factor) if self.task == "upsample" else Identity()

    @cached_property
    def contrast(self) -> float:
        """Standard deviation of the window without its noise; at least a tenth of it all."""
        variance = float(self.pixels.var(dtype=np.float64))
        return math.sqrt(max(variance - self.noise.sigma**2, 0.01 * variance))

    def measured(self, image: Grey) -> Grey:
        """What the instrument makes of an image on the grid of the results."""
        return self.operator.A(torch.from_numpy(np.ascontiguousarray(image))).numpy()

    def on_fine_grid(self, pixels: Grey) -> Grey:
        """Pixels of the window, repeated to the grid of the results."""
        return pixels.repeat(self.factor, 0).repeat(self.factor, 1)

    @property
    def pixel_nm(self) -> float:
        """Pixel size in nm; 1 where it is unknown, so that lengths are in pixels."""
        return 1.0 if self.pixel_size_angstrom is None else self.pixel_size_angstrom / 10

    @property
    def length_unit(self) -> str:
        """Of lengths in the report."""
        return "pixels" if self.pixel_size_angstrom is None else "nm"

    @property
    def fine_pixel_size_angstrom(self) -> float | None:
        """Pixel size of the results."""
        return self.pixel_size_angstrom and self.pixel_size_angstrom / self.factor

    @cached_property
    def unit_scale(self) -> GreyScale:
        """Grey levels to about [0, 1] with the contrast of tissue, for the classical methods."""
        scale = 2 * self.contrast / TISSUE_STD
        middle = (1 + TISSUE_MEAN) / 2
        return GreyScale(float(self.pixels.mean(dtype=np.float64)) - middle * scale, scale)

    def of_halves(self) -> list[Question]:
        """The same question about each half, whose noise is stronger than that of their mean."""
        task, told = self.task, self.noise
        given = math.sqrt(2) * told.sigma if told.origin == "given" else None
        noises = [find_noise(half, task, given, told.coloured) for half in self.halves or ()]
        pairs = zip(self.halves or (), noises, strict=True)
        return [replace(self, pixels=half, noise=noise, halves=None) for half, noise in pairs]

    def blank(self, number: int, seed: int) -> Grey:
        """A field without any structure: the window's mean with noise of its level and spectrum."""
        side = [min(length, AUDIT_SIDE) for length in self.pixels.shape]
        noise = ColouredGaussianNoise(self.noise.spectrum)
        level = torch.full(side, float(self.pixels.mean(dtype=np.float64)))
        return noise.sample(level, make_generator(seed + 7919 * (number + 1))).numpy()


def guess_specimen(pixel_size_angstrom: float | None) -> str:
    """What an image probably shows: particles to 7 angstrom a pixel, tissue to 400, then cells."""
    if pixel_size_angstrom is None:
        return "unknown"
    if pixel_size_angstrom <= _PARTICLES_TO:
        return "particles"
    return "tissue" if pixel_size_angstrom <= _TISSUE_TO else "cells"


Runner = Callable[[Grey, torch.Generator, Progress | None], Grey]


@dataclass(frozen=True)
class Ready:
    """A method with its weights loaded.

    ``run`` restores an image, ``spread`` gives the posterior's standard deviation of a crop, if the
    method draws samples; the generator decides all that is random. ``notes`` are settings and
    shortcuts for the reader; ``outside``: it works in a process whose memory is not seen.
    """

    run: Runner
    spread: Runner | None = None
    notes: list[str] = field(default_factory=list)
    outside: bool = False


@dataclass(frozen=True)
class Entrant:
    """A method that may take part.

    ``name`` is for options and files, ``label`` for readers; ``kind`` is learned (shipped weights),
    classical or self-taught (from this image alone). ``prepare`` loads what it needs; ``weights``
    are names of `emlab weights list`. ``impossible`` tells why it cannot take part, ``unsuited``
    why it should not unless it is asked for by name; empty if it can and should.
    """

    name: str
    label: str
    kind: str
    about: str
    prepare: Callable[[Question], Ready]
    tasks: tuple[str, ...] = TASKS
    weights: tuple[str, ...] = ()
    impossible: Callable[[Question], str] = lambda question: ""
    unsuited: Callable[[Question], str] = lambda question: ""


@dataclass(frozen=True)
class Answer:
    """What a method made of a question.

    ``image`` is on the fine grid of upsampling, None if the method refused, for the reason
    ``problem``; ``blanks`` are two fields of pure noise and ``halves`` the two halves (if any),
    restored; ``spread`` is of the crop in the middle, in grey levels; ``seconds`` are of the window
    alone, without loading, ``megabytes`` by how much memory grew at most, NaN if not seen.
    """

    image: Grey | None = None
    blanks: tuple[Grey, ...] = ()
    halves: tuple[Grey, ...] = ()
    spread: Grey | None = None
    seconds: float = math.nan
    megabytes: float = math.nan
    notes: list[str] = field(default_factory=list)
    problem: str = ""

    def arrays(self) -> dict[str, NDArray]:
        """As named arrays, to be kept on the disk."""
        images = {"image": self.image, "spread": self.spread}
        pairs = {"blanks": self.blanks, "halves": self.halves}
        images |= {name: np.stack(pair) for name, pair in pairs.items() if pair}
        return {
            "facts": np.array([self.seconds, self.megabytes]),
            "notes": np.array([self.problem, *self.notes], dtype=np.str_),
            **{name: image for name, image in images.items() if image is not None},
        }

    @classmethod
    def of(cls, kept: dict[str, NDArray]) -> Answer:
        """From `arrays`."""
        problem, *notes = (str(text) for text in kept["notes"])
        blanks, halves = (tuple(kept.get(name, ())) for name in ("blanks", "halves"))
        seconds, megabytes = (float(number) for number in kept["facts"])
        image, spread = kept.get("image"), kept.get("spread")
        return cls(image, blanks, halves, spread, seconds, megabytes, notes, problem)


def answer(
    entrant: Entrant,
    question: Question,
    seed: int = 0,
    *,
    spread_side: int = 0,
    progress: Callable[[str], Progress] | None = None,
) -> Answer:
    """Let one method restore the window, its halves and pure noise.

    The posterior's spread is drawn of the crop of ``spread_side`` pixels in the middle, if any;
    ``progress`` gives a callback ``(done, total)`` for a step named in words. A method that refuses
    the image has its reason in `Answer.problem`; others go on.
    """
    follow = progress or (lambda _: lambda done, total: None)
    try:
        ready = entrant.prepare(question)
        with MemoryWatch(question.device) as memory, Stopwatch() as watch:
            image = ready.run(question.pixels, make_generator(seed), follow(entrant.label))
        blanks = tuple(
            ready.run(question.blank(number, seed), make_generator(seed), follow("  on pure noise"))
            for number in (0, 1)
        )
        halves = tuple(
            entrant.prepare(half).run(half.pixels, make_generator(seed), follow("  on the halves"))
            for half in question.of_halves()
        )
        spread = None
        if ready.spread is not None and spread_side:
            crop = middle(question.pixels, spread_side)
            spread = ready.spread(crop, make_generator(seed), follow("  spread"))
    except EmlabError as problem:
        return Answer(problem=str(problem))
    megabytes = math.nan if ready.outside else memory.megabytes
    return Answer(image, blanks, halves, spread, watch.seconds, megabytes, ready.notes)


def middle(pixels: Grey, side: int) -> Grey:
    """The square in the middle, or what there is of it."""
    rows, columns = (max(0, length - side) // 2 for length in pixels.shape)
    return pixels[rows : rows + side, columns : columns + side]
