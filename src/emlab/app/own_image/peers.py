"""Who takes part in a comparison on a reader's own image: peers without learned priors, and choice.

Settings were chosen on validation images of chapters 01 and 02 (`study` of `em_generalist`,
`peers` of `tsm`), those of the noise level that is nearest; the Gaussian's width comes from the
image itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emlab.app.own_image.asked import Entrant, Grey, Progress, Question, Ready
from emlab.app.own_image.learned import learned, never, of
from emlab.chapters.em_generalist.study import Known, run_peer, tuned
from emlab.chapters.tsm.peers import topaz_denoise, wiener
from emlab.errors import InputError
from emlab.external import topaz
from emlab.metrics.fourier import half_spectrum_multiplicity, radial_frequency
from emlab.physics.noise_estimation import NoiseSpectrum
from emlab.recipes.generalist_tasks import DEBLUR_NOISE, GREY_RANGE, Task
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
Plain = Callable[[Grey], Grey]


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


def _ready(function: Plain, *notes: str) -> Ready:
    return Ready(lambda image, random, seen: function(image), None, list(notes))


def _unit(question: Question, function: Callable[[NDArray], NDArray]) -> Plain:
    """Do something in about [0, 1], with the contrast of the tables' images."""
    scale = question.unit_scale
    return lambda image: (
        function((image - scale.zero) / scale.scale) * scale.scale + scale.zero
    ).astype(np.float32)


def _table(question: Question) -> tuple[str, Mapping[str, Mapping[str, Any]]]:
    """Tuned settings of the nearest noise: .1 and .25 of the grey range, .16 between them."""
    if question.noise.coloured:
        return "the coloured noise of chapter 01", tuned("real_pair")
    name = "denoise_10" if question.relative_noise < 0.16 else "denoise_25"
    level = name.rpartition("_")[2]
    return f"noise of .{level} of the grey range, the nearest of chapter 01", tuned(name)


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


def _tuned(peer: str, question: Question) -> Ready:
    where, table = _table(question)
    spectrum = question.noise.spectrum.scaled(1 / question.unit_scale.scale)
    known = Known(None, question.relative_noise, spectrum)
    name = "bm3d_coloured" if peer == "bm3d" and question.noise.coloured else peer

    def run(unit: NDArray) -> NDArray:
        return run_peer(name, unit * GREY_RANGE, known, table[name]) / GREY_RANGE

    settings = ", ".join(f"{key} {value}" for key, value in table[name].items())
    return _ready(_unit(question, run), f"settings of {where}: {settings}")


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


def _topaz_missing(question: Question) -> str:
    return "" if topaz.find() else "Topaz is not installed; make topaz"


def _wiener_deconvolution(question: Question) -> Ready:
    settings = tuned("deblur")["wiener"]
    balance = settings["balance"] * (question.relative_noise / DEBLUR_NOISE) ** 2

    def run(unit: NDArray) -> NDArray:
        return classical.wiener_deconvolve(unit, _kernel(question), balance, settings["power"])

    note = f"balance {balance:.3g}: that of chapter 01, times the ratio of noise powers"
    return _ready(_unit(question, run), note)


def _lucy(smooth_first: bool, question: Question) -> Ready:
    settings = tuned("deblur")["bm3d_lucy" if smooth_first else "richardson_lucy"]

    def run(unit: NDArray) -> NDArray:
        if smooth_first:
            level = settings["scale"] * question.relative_noise
            unit = classical.bm3d(unit, level, settings["profile"])
        return classical.richardson_lucy(unit, _kernel(question), settings["iterations"])

    return _ready(_unit(question, run), f"{settings['iterations']} iterations, as in chapter 01")


def _kernel(question: Question) -> Grey:
    assert question.kernel is not None
    return question.kernel


def _spline(peer: str, question: Question) -> Ready:
    factor = question.factor
    known = Known(Task("own", "own image", "upsample", factor=factor), question.relative_noise)
    return _ready(_unit(question, lambda unit: run_peer(peer, unit, known, {})))


def peers() -> list[Entrant]:
    """Classical methods, those that learn from the image alone, and Topaz."""
    bm3d, pywt = _installed("bm3d", "BM3D"), _installed("pywt", "PyWavelets")
    noise, blur, grid = ("denoise",), ("deblur",), ("upsample",)

    def classic(name: str, label: str, about: str, *rest: Any) -> Entrant:
        return Entrant(name, label, "classical", about, *rest)

    return [
        classic("gaussian", "Gaussian", "A blur.", never, never, _gaussian, noise),
        classic("wiener", "Wiener low-pass", "Best linear filter.", never, never, _wiener, noise),
        classic(
            "tv", "Total variation", "Few and sharp edges.",
            never, _needs_white, partial(_tuned, "tv"), noise,
        ),
        classic(
            "wavelet", "Wavelet shrinkage", "Small coefficients to zero.",
            pywt, _needs_white, partial(_tuned, "wavelet"), noise,
        ),
        classic(
            "nlm", "Non-local means", "Averages of similar patches.",
            never, _needs_white, partial(_tuned, "nlm"), noise,
        ),
        classic(
            "bm3d", "BM3D", "Similar patches filtered together.",
            bm3d, never, partial(_tuned, "bm3d"), noise,
        ),
        Entrant(
            "noise2void", "Noise2Void", "self-taught",
            "A small network that learns from this image to guess pixels that it does not see.",
            never, _needs_white, _blind_spot, noise,
        ),
        Entrant(
            "topaz", "Topaz-Denoise", "learned", "The pretrained U-Net of another group.",
            _topaz_missing, of("particles", "it knows micrographs of single particles"),
            _topaz, noise,
        ),
        classic(
            "wiener_deconvolution", "Wiener deconvolution", "Best linear inverse.",
            never, never, _wiener_deconvolution, blur,
        ),
        classic(
            "richardson_lucy", "Richardson-Lucy", "Multiplicative, stopped early.",
            never, never, partial(_lucy, False), blur,
        ),
        classic(
            "bm3d_lucy", "BM3D, then Richardson-Lucy", "Noise first, then the blur.",
            bm3d, never, partial(_lucy, True), blur,
        ),
        classic(
            "cubic", "Cubic interpolation", "Splines of order 3.",
            never, never, partial(_spline, "cubic"), grid,
        ),
        classic(
            "quintic", "Quintic interpolation", "Splines of order 5.",
            never, never, partial(_spline, "quintic"), grid,
        ),
    ]  # fmt: skip


def choose(question: Question, wanted: Sequence[str] = ()) -> tuple[list[Entrant], dict[str, str]]:
    """Methods that fit a question, and the reasons of those that do not, by label.

    Parameters
    ----------
    wanted : sequence of str
        Names of the only ones to take; these also take part where they are unsuited, and say so.

    Raises
    ------
    InputError
        An unknown name, or nobody is left.
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
