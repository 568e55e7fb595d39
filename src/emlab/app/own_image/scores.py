"""Numbers about a restored image whose truth nobody knows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import peak_local_max

from emlab import metrics
from emlab.app.own_image.asked import Answer, Grey, Question
from emlab.bench.study import Column
from emlab.errors import InputError
from emlab.metrics.fourier import Curve
from emlab.physics.noise_estimation import noise_correlation

Numbers = dict[str, float | None]
BLOB_WIDTHS = (2.0, 4.0)  # standard deviations in pixels at which objects are looked for
OBJECT_PERCENTILE = 97.0  # of the filter's answers on the restored image
AREA = 1e4  # pixels for which objects are counted
FRC_THRESHOLD = 1 / 7
_EDGE = 8


COLUMNS = tuple(
    Column(name, head, unit=unit, note=note)
    for name, head, unit, note in (
        (
            "residual", "removed", "of the noise",
            "Standard deviation of what was taken away, image minus result, over that of the "
            "noise. Near 1 is right for strong noise; well above 1, structure went with it.",
        ),
        (
            "residual_correlation", "its correlation", "neighbours",
            "Correlation of neighbouring pixels in what was taken away. It should be that of the "
            "noise itself, the first row; larger means that structure was removed.",
        ),
        (
            "resolution", "resolution", "period",
            "Decorrelation analysis: where the spectrum ends, not whether it is true. Invented "
            "detail has a good one.",
        ),
        (
            "frc", "FRC 1/7", "period",
            "Where the two halves, each restored alone, stop agreeing. A prior that both share "
            "raises the agreement, so read it beside the error left.",
        ),
        (
            "error", "error left", "of the noise",
            "Error of one restored half against the other, raw half, the raw half's own noise "
            "taken off, over the error of a raw half: 1 is no gain, 0 is perfect. No prior can "
            "flatter it.",
        ),
        (
            "blank_contrast", "contrast from noise", "of the result",
            "Pure noise of the same level and spectrum was restored: the contrast left in it over "
            "that of the restored image. 0 is right.",
        ),
        (
            "blank_objects", "objects from noise", "per 10 000 pixels",
            "Spots in restored pure noise as strong as the strongest 3 % of the restored image. 0 "
            "is right.",
        ),
        (
            "blank_agreement", "same from other noise", "correlation",
            "Two fields of pure noise restored alike: what they share is a pattern of the method. "
            "0 is right; a strong blur comes to 0.1 by chance.",
        ),
        (
            "spread", "spread", "of the noise",
            "Mean posterior standard deviation over samples in the middle of the window.",
        ),
        ("seconds", "time", "s", "Of the window alone, without loading weights."),
        (
            "megabytes", "memory", "MB",
            "By how much the process grew at most while restoring the window, read every 20 ms; "
            "memory that an earlier method left is used again and not seen.",
        ),
    )
)  # fmt: skip


def score(answer: Answer, question: Question) -> Numbers:
    """All numbers of an answer; None where there is none.

    Lengths are in nm, in pixels of the input if their size is unknown.
    """
    if answer.image is None:
        return {}
    noise, image = question.noise, answer.image
    pixel = question.pixel_nm / question.factor
    residual = question.pixels - question.measured(image)
    numbers: Numbers = {
        "residual": float(residual.std() / noise.sigma),
        "residual_correlation": _neighbours(residual),
        "resolution": _finite(metrics.decorrelation_resolution(image, pixel)),
        "contrast": float(image.std()),
        "objects": objects(image, image),
        "seconds": _finite(answer.seconds),
        "megabytes": _finite(answer.megabytes),
    }
    if len(answer.blanks) == 2:
        first, second = (blank[_EDGE:-_EDGE, _EDGE:-_EDGE] for blank in answer.blanks)
        numbers |= {
            "blank_contrast": float(first.std() / max(float(image.std()), 1e-30)),
            "blank_objects": objects(first, image),
            "blank_correlation": _neighbours(first),
            "blank_agreement": _agreement(first, second),
            "blank_chance": _chance(first, second),
        }
    if (curve := halves_curve(answer, question)) is not None:
        numbers["frc"] = _finite(curve.resolution_nm(FRC_THRESHOLD))
        numbers["error"] = error_left(answer, question)
    if answer.spread is not None:
        numbers["spread"] = float(answer.spread.mean() / noise.sigma)
    return numbers


def untouched(question: Question) -> Answer:
    """The measurement as it is: what all methods are compared with."""
    fine = question.on_fine_grid
    blanks = tuple(fine(question.blank(number, 0)) for number in (0, 1))
    return Answer(fine(question.pixels), blanks, tuple(map(fine, question.halves or ())))


def score_untouched(question: Question) -> Numbers:
    """The row of the image itself; nothing was removed, so correlation is that of the noise.

    Its resolution is that of its own grid: repeated pixels have a spectrum of their own.
    """
    sharpness = metrics.decorrelation_resolution(question.pixels, question.pixel_nm)
    return score(untouched(question), question) | {
        "resolution": _finite(sharpness),
        "residual": 0.0,
        "residual_correlation": float(np.mean(question.noise.correlation)),
    }


def halves_curve(answer: Answer, question: Question) -> Curve | None:
    """Fourier ring correlation of the two restored halves, if there are any."""
    if len(answer.halves) != 2:
        return None
    first, second = answer.halves
    if first.std() == 0 or second.std() == 0:
        return None
    return metrics.fourier_ring_correlation(first, second, question.pixel_nm / question.factor)


def error_left(answer: Answer, question: Question) -> float:
    r"""Error of a restored half over that of a raw one, without the truth.

    Noise of the halves is independent, so with restored half r and raw halves y

    .. math:: E\|A r_1 - y_2\|^2 = \|A r_1 - x\|^2 + \sigma^2, \qquad
              E\|y_1 - y_2\|^2 = 2\sigma^2 .

    It is the root of the mean of both directions; 0 where the estimate is negative.
    """
    assert question.halves is not None
    raw = question.halves
    power = float(np.mean((raw[0] - raw[1]) ** 2, dtype=np.float64)) / 2
    if power == 0:
        raise InputError("the two halves are the same image; give two recordings of one field")
    errors = [
        float(np.mean((question.measured(restored) - other) ** 2, dtype=np.float64)) - power
        for restored, other in zip(answer.halves, reversed(raw), strict=True)
    ]
    return math.sqrt(max(0.0, float(np.mean(errors))) / power)


def objects(image: Grey, reference: Grey) -> float:
    """Dark and bright spots of an image per 10 000 pixels, two widths together.

    A spot counts where the scale-normalised Laplacian of Gaussian is stronger than at 97 of 100
    pixels of the reference.
    """
    found = 0
    for width in BLOB_WIDTHS:
        threshold = np.percentile(_spots(reference, width), OBJECT_PERCENTILE)
        if threshold <= 0:
            continue
        strength = _spots(image, width)
        found += len(peak_local_max(strength, int(width), threshold, exclude_border=int(width)))
    return found * AREA / image.size


def remarks(numbers: Numbers, question: Question) -> list[str]:
    """What the numbers of a method warn of, in sentences; the limits are stated in them."""
    found = {key: math.nan if number is None else number for key, number in numbers.items()}
    keys = ("residual", "residual_correlation", "error")
    removed, likeness, error = (found.get(key, math.nan) for key in keys)
    keys = ("blank_contrast", "blank_agreement", "blank_chance")
    drawn, shared, chance = (found.get(key, math.nan) for key in keys)
    if question.task != "denoise":
        removed = likeness = math.nan
    noise = float(np.mean(question.noise.correlation))
    warnings = {
        "It took away more than the noise (over 1.15): structure went with it.": removed > 1.15,
        "It took away less than half of the noise: the rest is still there.": removed < 0.5,
        "What it took away is smoother than the noise (by over 0.1): structure is in it.": (
            likeness > noise + 0.1
        ),
        "From pure noise it draws over a quarter of the contrast of its result: do not trust faint "
        "texture.": drawn > 0.25,
        "It draws the same pattern from different noise (correlation over 0.1, and over three "
        "times that of chance).": abs(shared) > max(0.1, 3 * chance),
        "By the other half its error is larger than that of the raw image.": error > 1,
    }
    return [sentence for sentence, holds in warnings.items() if holds]


def _spots(image: Grey, width: float) -> NDArray[np.float64]:
    return np.abs(width**2 * ndimage.gaussian_laplace(image.astype(np.float64), width))


def _neighbours(residual: Grey) -> float | None:
    try:
        return float(np.mean(noise_correlation(residual)))
    except InputError:  # constant
        return None


def _agreement(first: Grey, second: Grey) -> float:
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def _chance(first: Grey, second: Grey) -> float:
    """Standard deviation of the correlation of two independent fields with such spectra."""
    powers = [np.abs(np.fft.fft2(field - field.mean())) ** 2 for field in (first, second)]
    total = float(powers[0].sum() * powers[1].sum())
    return math.sqrt(float((powers[0] * powers[1]).sum()) / total) if total > 0 else 0.0


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
