"""Who takes part in a comparison on a reader's own image: emlab's methods, peers, and the choice.

Settings of peers were chosen on validation images of chapters 01 and 02 (`peers` of `em_generalist`
and `tsm`), those of the noise level that is nearest; the Gaussian's width comes from the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from emlab.app.own_image.asked import Entrant, Grey, Progress, Question, Ready
from emlab.chapters.em_generalist.study import Known, run_peer
from emlab.chapters.tsm.cases import topaz_denoise, wiener
from emlab.errors import InputError
from emlab.external import topaz
from emlab.methods import cellpose3, generalist, tsm
from emlab.methods.generalist import load_config
from emlab.metrics.fourier import half_spectrum_multiplicity, radial_frequency
from emlab.physics.degradations import normalise
from emlab.physics.noise_estimation import NoiseSpectrum
from emlab.recipes.generalist_tasks import DEBLUR_NOISE, GREY_RANGE, NO_BLUR, Task
from emlab.settings import tuned
from emlab.solvers import classical
from emlab.solvers.blind_spot import BlindSpotConfig, denoise_blind_spot

# Methods of the book that restore something else, and why they cannot take part.
ABSENT = {
    "FlowDPS": "it retrieves the phase of single extracted particles: emlab flowdps retrieve",
    "Multi-target detection": "it recovers one image from a field of many copies: emlab mtd "
    "recover",
    "Supervised U-Net": "it knows the noise levels and the blur that it was trained on, and no "
    "others; chapter 01 measures it there",
}
_WIDTHS = np.geomspace(0.4, 8, 40)  # of a Gaussian, pixels
_PIXEL = "give --pixel-size-angstrom: the file does not tell how large its pixels are"


def stein_width(image: Grey, noise: NoiseSpectrum) -> float:
    r"""Width of the Gaussian whose result is nearest the clean image, without knowing that image.

    Stein's unbiased estimate of the squared error of a linear filter G (Stein 1981),

    .. math:: \|y - Gy\|^2 + 2 \sum_f N(f)\,G(f) - \sum_f N(f),

    for noise of any spectrum N; the least of forty widths from .4 to 8 pixels.
    """
    power = noise(image.shape).double().numpy()
    frequency = radial_frequency(image.shape)
    multiplicity = half_spectrum_multiplicity(image.shape[1]) / image.size
    risks = []
    for width in _WIDTHS:
        gain = np.exp(-2 * (np.pi * width * frequency) ** 2)
        lost = np.mean((image - classical.gaussian(image, width)) ** 2, dtype=np.float64)
        risks.append(lost + 2 * float((power * gain * multiplicity).sum()))
    return float(_WIDTHS[int(np.argmin(risks))])


def of(specimens: str, known: str) -> Callable[[Question], str]:
    """For a method that is unsuited to other specimens than these."""

    def unsuited(question: Question) -> str:
        if question.specimen in specimens.split():
            return ""
        return f"{known}, and this counts as {question.specimen}"

    return unsuited


def _needs_white(question: Question) -> str:
    if not question.noise.coloured:
        return ""
    share = max(question.noise.correlation, key=abs)
    return (
        "it takes the noise of neighbouring pixels for independent, and here they correlate by "
        f"{share:.2f}"
    )


def _installed(module: str, shown: str) -> Callable[[Question], str]:
    told = f"{shown} is not installed; pip install 'emlab-book[peers]'"
    return lambda question: "" if find_spec(module) else told


def _flow(question: Question) -> Ready:
    config, drawing = load_config("ours"), load_config("samples")
    noise, method = question.noise, getattr(generalist, question.task)
    told: dict[str, Any] = {
        "prior": generalist.load(config.prior, question.device),
        "device": question.device,
        "scale": generalist.GreyScale.of(question.pixels, noise.sigma),
        "noise_sigma": noise.sigma,
    }
    if question.task == "upsample":
        told["factor"] = question.factor
        told["noise_sigma"] = noise.sigma if noise.origin == "given" else 0.0
    elif noise.coloured:
        told |= {"spectrum": noise.spectrum, "noise_sigma": None}
    if question.task == "denoise":
        told["coloured"] = noise.coloured
    elif question.kernel is not None:
        told["kernel"] = question.kernel

    def restore(
        image: Grey, config: generalist.Config, random: torch.Generator, seen: Progress | None
    ) -> generalist.Found:
        return method(image, config=config, generator=random, progress=seen, **told)

    def spread(image: Grey, random: torch.Generator, seen: Progress | None) -> Grey:
        found = restore(image, drawing, random, seen).spread
        assert found is not None
        return found

    key = "denoise_coloured" if noise.coloured else question.task
    kind = type(config.solvers[key]).__name__.removesuffix("Config")
    notes = [f"solver {kind}, tiles of {config.tile} pixels that share {config.overlap}"]
    if question.task == "upsample" and noise.origin != "given":
        notes.append("the image counts as free of noise; give --noise if it is not")
    notes.append(f"spread over {drawing.samples} samples")
    return Ready(lambda y, random, seen: restore(y, config, random, seen).image, spread, notes)


def _score(name: str, question: Question) -> Ready:
    size = question.pixel_size_angstrom
    assert size is not None
    network = tsm.load_denoiser(name, question.device)
    sign = np.float32(-1 if question.inverted else 1)

    def run(image: Grey, random: torch.Generator, seen: Progress | None) -> Grey:
        found = tsm.denoise(sign * image, size, network, device=question.device, progress=seen)
        return sign * found.image

    working = tsm.to_working_size(question.pixels, size)[1]
    notes = ["one step of Tweedie; it estimates white noise by itself"]
    if abs(working / size - 1) > 0.01:
        notes.append(
            f"denoised at {working:.3g} angstrom a pixel: what is finer than {2 * working:.3g} "
            "angstrom is gone"
        )
    if question.noise.coloured:
        notes.append("the noise is coloured, which it does not know")
    return Ready(run, None, notes)


def _cells(question: Question) -> Ready:
    restorer = cellpose3.load_restorer(f"cellpose3_{question.task}", question.device)
    diameter = question.diameter
    notes = [f"objects of {diameter:.3g} pixels (given)"] if diameter else []
    if diameter is None:
        segmenter = cellpose3.load_segmenter(device=question.device)
        diameter = cellpose3.estimate_diameter(question.pixels, segmenter, restorer)
        notes.append(f"objects of {diameter:.3g} pixels (estimated; --diameter says it)")
    whole = diameter * question.factor

    def bare(image: Grey) -> Grey:
        """In units of the given image's own range, percentiles 1 and 99."""
        height, width = (side * question.factor for side in image.shape)
        fine = cellpose3.resize(torch.from_numpy(image), (height, width)).numpy()
        return cellpose3.restore(fine, restorer, whole).image

    # The network's grey levels are those of a clean image; a straight line brings them back.
    seen_before = bare(question.pixels)
    line = np.polyfit(
        question.operator.A(torch.from_numpy(seen_before)).numpy().ravel(),
        normalise(torch.from_numpy(question.pixels)).numpy().ravel(),
        1,
    )
    notes.append("its grey levels are its own; a straight line brings them to those of the image")

    def run(image: Grey, random: torch.Generator, seen: Progress | None) -> Grey:
        low, high = np.quantile(image, [0.01, 0.99])
        return ((line[0] * bare(image) + line[1]) * (high - low) + low).astype(np.float32)

    return Ready(run, None, notes)


def _ready(function: Callable[[Grey], Grey], *notes: str) -> Ready:
    return Ready(lambda image, random, seen: function(image), None, list(notes))


def _gaussian(question: Question) -> Ready:
    width = stein_width(question.pixels, question.noise.spectrum)
    return _ready(
        lambda image: classical.gaussian(image, width),
        f"width {width:.2f} pixels, the least error by Stein's estimate",
    )


def _wiener(question: Question) -> Ready:
    spectrum = question.noise.spectrum

    def run(image: Grey) -> Grey:
        return wiener(image, 1.0, spectrum(image.shape).numpy())

    return _ready(run, "the image's own spectrum against that of its noise")


def _peer(name: str, question: Question) -> Ready:
    """A peer of chapter 01 in about [0, 1], with its settings of the nearest task there."""
    unit, coloured = question.unit_scale, question.noise.coloured
    level = question.noise.sigma / unit.scale  # .15 is as strong as the image's own contrast
    nearest = "denoise_10" if level < 0.16 else "denoise_25"  # of the grey range
    where = f"noise of .{nearest.rpartition('_')[2]} of the grey range, the nearest of chapter 01"
    if question.kernel is not None:
        nearest, where = "deblur", "the deblurring of chapter 01"
    elif coloured:
        nearest, where = "real_pair", "the coloured noise of chapter 01"
    settings: dict[str, Any] = {}
    if question.task != "upsample":
        name = "bm3d_coloured" if coloured and name == "bm3d" else name
        settings = tuned("em_generalist", nearest)[name]
    if "balance" in settings:
        settings["balance"] *= (level / DEBLUR_NOISE) ** 2
        where += ", the balance times the ratio of noise powers"
    blur = NO_BLUR if question.kernel is None else torch.from_numpy(question.kernel)
    known = Known(
        Task("own", "own image", question.task, factor=question.factor, kernel=blur),
        level,
        question.noise.spectrum.scaled(1 / unit.scale),
    )

    def run(image: Grey) -> Grey:
        shown = (image - unit.zero) / unit.scale * GREY_RANGE
        found = run_peer(name, shown, known, settings) / GREY_RANGE
        return (found * unit.scale + unit.zero).astype(np.float32)

    words = ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in settings.items()
    )
    return _ready(run, *([f"settings of {where}: {words}"] if settings else []))


def _blind_spot(question: Question) -> Ready:
    config = BlindSpotConfig()

    def run(image: Grey, random: torch.Generator, seen: Progress | None) -> Grey:
        found = denoise_blind_spot(
            torch.from_numpy(np.ascontiguousarray(image)),
            config,
            random,
            device=question.device,
            progress=seen,
        )
        return found.numpy()

    return Ready(run, None, [f"trained anew for each image, {config.steps} steps, in its seconds"])


def _topaz(question: Question) -> Ready:
    sign = np.float32(-1 if question.inverted else 1)

    def run(image: Grey, random: torch.Generator, seen: Progress | None) -> Grey:
        return sign * topaz_denoise([sign * image]).images[0]

    return Ready(run, None, ["a program of its own, with its start in its seconds"], outside=True)


def learned(task: str) -> list[Entrant]:
    """Methods with shipped weights that restore single images, with the weights of a task."""
    near = of("particles", "its score knows single particles in ice near 2.6 angstrom a pixel")

    def scoring(name: str, label: str, about: str) -> Entrant:
        return Entrant(
            name, label, "learned", about, partial(_score, name), ("denoise",), (tsm.NAMES[name],),
            impossible=lambda question: "" if question.pixel_size_angstrom else _PIXEL,
            unsuited=near,
        )  # fmt: skip

    return [
        Entrant(
            "generalist",
            "EM Generalist",
            "learned",
            "One diffusion prior of tissue, for every task; posterior mean or maximum.",
            _flow,
            weights=("generalist_depth",),
            unsuited=of("tissue unknown", "its prior knows tissue at 4 to 30 nm a pixel"),
        ),
        scoring("tsm", "TSM", "Score network guided by target structures, one Tweedie step."),
        scoring("dsm", "DSM", "The same network trained by denoising alone, without targets."),
        Entrant(
            "cellpose3",
            "Cellpose3-style restorer",
            "learned",
            "A network taught to make a segmenter of cells succeed.",
            _cells,
            weights=(f"cellpose3_{task}",),
            unsuited=of("cells", "its networks learned nuclei and cells in light microscopy"),
        ),
    ]


def peers() -> list[Entrant]:
    """Methods without shipped weights, and Topaz."""
    bm3d, pywt = _installed("bm3d", "BM3D"), _installed("pywt", "PyWavelets")
    noise, blur, grid = ("denoise",), ("deblur",), ("upsample",)

    def peer(
        tasks: tuple[str, ...], name: str, label: str, about: str, ready: Any = "", **limits: Any
    ) -> Entrant:
        if isinstance(ready, str):
            ready = partial(_peer, ready or name)
        return Entrant(name, label, "classical", about, ready, tasks, **limits)

    white: dict[str, Any] = {"unsuited": _needs_white}
    return [
        peer(noise, "gaussian", "Gaussian", "A blur.", _gaussian),
        peer(noise, "wiener", "Wiener low-pass", "Best linear filter.", _wiener),
        peer(noise, "tv", "Total variation", "Few and sharp edges.", **white),
        peer(
            noise, "wavelet", "Wavelet shrinkage", "Small coefficients to zero.",
            impossible=pywt, **white,
        ),
        peer(noise, "nlm", "Non-local means", "Averages of similar patches.", **white),
        peer(noise, "bm3d", "BM3D", "Similar patches filtered together.", impossible=bm3d),
        Entrant(
            "noise2void", "Noise2Void", "self-taught",
            "A small network that learns from this image to guess pixels that it does not see.",
            _blind_spot, noise, **white,
        ),
        Entrant(
            "topaz", "Topaz-Denoise", "learned", "The pretrained U-Net of another group.",
            _topaz, noise,
            impossible=lambda _: "" if topaz.find() else "Topaz is not installed; make topaz",
            unsuited=of("particles", "it knows micrographs of single particles"),
        ),
        peer(
            blur, "wiener_deconvolution", "Wiener deconvolution", "Best linear inverse.", "wiener"
        ),
        peer(blur, "richardson_lucy", "Richardson-Lucy", "Multiplicative, stopped early."),
        peer(
            blur, "bm3d_lucy", "BM3D, then Richardson-Lucy", "Noise first, then the blur.",
            impossible=bm3d,
        ),
        peer(grid, "cubic", "Cubic interpolation", "Splines of order 3."),
        peer(grid, "quintic", "Quintic interpolation", "Splines of order 5."),
    ]  # fmt: skip


def choose(question: Question, wanted: Sequence[str] = ()) -> tuple[list[Entrant], dict[str, str]]:
    """Methods that fit a question, and the reasons of those that do not, by label.

    Only those that are wanted, if any are named; these also take part where they are unsuited, and
    say so. An unknown name is refused, and a choice of nobody.
    """
    every = [*learned(question.task), *peers()]
    known = {entrant.name: entrant for entrant in every}
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(f"unknown method {unknown[0]!r}; choose from {', '.join(known)}")
    chosen: list[Entrant] = []
    left_out: dict[str, str] = {}
    for entrant in every:
        if wanted and entrant.name not in wanted:
            continue
        if question.task not in entrant.tasks:
            if wanted or entrant.kind == "learned":
                left_out[entrant.label] = f"it knows no task but {', '.join(entrant.tasks)}"
            continue
        hindered, unsuited = entrant.impossible(question), entrant.unsuited(question)
        if hindered or (unsuited and not wanted):
            left_out[entrant.label] = hindered or f"{unsuited}; --methods {entrant.name} runs it"
        else:
            chosen.append(_warned(entrant, unsuited) if unsuited else entrant)
    if not chosen:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in left_out.items())
        raise InputError(f"no method is left for this image ({reasons})")
    return chosen, left_out if wanted else {**left_out, **ABSENT}


def _warned(entrant: Entrant, unsuited: str) -> Entrant:
    def prepare(question: Question) -> Ready:
        ready = entrant.prepare(question)
        return replace(ready, notes=[f"asked for by name, although {unsuited}", *ready.notes])

    return replace(entrant, prepare=prepare)
