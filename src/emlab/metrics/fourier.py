"""Up to which frequency two images agree: Fourier ring and Fourier shell correlation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from emlab.errors import InputError
from emlab.metrics.image import Image, as_array, as_pair, check_positive


@dataclass(frozen=True)
class Curve:
    """Correlation of two images, ring by ring.

    Attributes
    ----------
    frequency : ndarray
        ``(rings,)`` in 1/nm; ring 0 (the mean) is left out, the last ring is at or just below the
        Nyquist frequency.
    correlation : ndarray
        ``(rings,)`` in [-1, 1].
    counts : ndarray
        ``(rings,)`` Fourier coefficients in each ring, both halves of the spectrum.
    """

    frequency: np.ndarray
    correlation: np.ndarray
    counts: np.ndarray
    pixel_size_nm: float

    def resolution_nm(self, threshold: float = 0.5) -> float:
        """Period in nm at which the correlation first falls below a threshold.

        Read between two rings on the straight line. Two pixels (the Nyquist limit, an upper bound
        of the resolution) if the curve stays above, infinity if it begins below.

        Parameters
        ----------
        threshold : float
            Inside (0, 1); .5 and 1/7 are customary.

        Raises
        ------
        InputError
            A threshold outside (0, 1).
        """
        if not 0 < threshold < 1:
            raise InputError(f"the threshold must lie between 0 and 1, got {threshold}")
        below = np.flatnonzero(self.correlation < threshold)
        if not below.size:
            return 2 * self.pixel_size_nm
        ring = int(below[0])
        if ring == 0:
            return math.inf
        above, under = self.correlation[ring - 1 : ring + 1]
        left, right = self.frequency[ring - 1 : ring + 1]
        return float(1 / (left + (right - left) * (above - threshold) / (above - under)))


def fourier_ring_correlation(
    first: Image, second: Image, pixel_size_nm: float = 1.0, window: str = "hann"
) -> Curve:
    r"""Fourier ring correlation (Saxton and Baumeister, 1982).

    .. math:: \mathrm{FRC}(r) = \frac{\mathrm{Re}\sum_{k \in r} F_1(k) \overline{F_2(k)}}
              {\sqrt{\sum_{k \in r} |F_1(k)|^2 \sum_{k \in r} |F_2(k)|^2}}

    Each image has its mean removed and is apodised, because the jump between opposite borders of
    an image correlates with that of the other image at every frequency.

    Parameters
    ----------
    first, second : ndarray or Tensor
        ``(..., H, W)``, any value range; the sums run over all images of a stack, whose rings are
        as wide as one frequency step of the shorter side.
    window : {"hann", "tukey", "none"}
        Apodisation along each axis. Tukey rises over a quarter of each side.

    Raises
    ------
    InputError
        Different shapes, sides below 4 pixels, an unknown window, an image without contrast,
        values that are not finite, or a pixel size that is not positive.
    """
    return _correlate(first, second, 2, pixel_size_nm, window)


def fourier_shell_correlation(
    first: Image, second: Image, pixel_size_nm: float = 1.0, window: str = "hann"
) -> Curve:
    """Fourier shell correlation of volumes ``(..., D, H, W)`` with cubic voxels.

    Otherwise as `fourier_ring_correlation` (Harauz and van Heel, 1986).
    """
    return _correlate(first, second, 3, pixel_size_nm, window)


def apodisation(shape: tuple[int, ...], window: str = "hann", reach: int = 0) -> np.ndarray:
    """Window of an image, the product of one per axis, in [0, 1]: ``hann`` or ``none``.

    Hann's rises to the middle of a side; with `reach` over so many pixels, at most an eighth.
    """
    if window not in ("hann", "none"):
        raise InputError(f"choose the window hann or none instead of {window!r}")
    product = np.ones(())
    for size in shape:
        distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
        width = min(reach, size // 8) if reach else size / 2
        rise = np.sin(np.pi / 2 * np.minimum(distance / width, 1)) ** 2
        product = product[..., None] * (rise if window == "hann" else np.ones(size))
    return product


def radial_frequency(shape: tuple[int, ...]) -> np.ndarray:
    """Distance from zero of each frequency of ``rfftn``, in cycles per pixel."""
    axes = [*map(np.fft.fftfreq, shape[:-1]), np.fft.rfftfreq(shape[-1])]
    squared = sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True))
    return np.sqrt(squared)


def half_spectrum_multiplicity(size: int) -> np.ndarray:
    """How often each coefficient along the last axis of ``rfftn`` stands in ``fftn``: 1 or 2."""
    multiplicity = np.full(size // 2 + 1, 2.0)
    multiplicity[0] = 1
    if size % 2 == 0:
        multiplicity[-1] = 1
    return multiplicity


def _correlate(first: Image, second: Image, axes: int, pixel_size_nm: float, window: str) -> Curve:
    check_positive(pixel_size_nm, "the pixel size in nm")
    pair = as_pair(first, second, axes)
    shape = pair[0].shape[-axes:]
    if min(shape) < 4:
        raise InputError(f"a Fourier correlation needs sides of at least 4 pixels, got {shape}")
    last = tuple(range(-axes, 0))
    weights = apodisation(shape, window)
    rings = np.rint(radial_frequency(shape) * min(shape)).astype(np.intp)
    multiplicity = half_spectrum_multiplicity(shape[-1])
    kept = np.arange(1, min(shape) // 2 + 1)

    def total(values: np.ndarray) -> np.ndarray:
        summed = values.reshape(-1, *values.shape[-axes:]).sum(axis=0) * multiplicity
        return np.bincount(rings.ravel(), summed.ravel())[kept]

    spectra = []
    for image in pair:
        centred = image - image.mean(axis=last, keepdims=True)
        if np.ptp(centred) == 0:
            raise InputError("a constant image has no Fourier correlation: pass one with contrast")
        spectra.append(np.fft.rfftn(centred * weights, axes=last))
    cross = total((spectra[0] * spectra[1].conj()).real)
    powers = total(np.abs(spectra[0]) ** 2) * total(np.abs(spectra[1]) ** 2)
    correlation = np.where(powers > 0, cross / np.sqrt(np.where(powers > 0, powers, 1)), 0.0)
    counts = total(np.ones(spectra[0].shape))
    return Curve(kept / (min(shape) * pixel_size_nm), correlation, counts, float(pixel_size_nm))


RADII = 50  # radii at which a decorrelation curve of the first pass is read
FINE_RADII = 200  # radii of the second pass
FILTERS = 10  # high-pass filters of each of the two passes
WEAKEST = 0.14  # smallest exponent of a high-pass filter, about proportional to the radius squared
PROMINENCE = 5e-4  # how far a curve falls behind a maximum that counts
SMALLEST_RADIUS = 0.05  # of the Nyquist frequency: maxima below come from uneven illumination
EDGE = 20  # pixels over which the border is apodised
BINS = 2000  # radial bins into which the spectrum is summed once


def decorrelation_resolution(image: Image, pixel_size_nm: float) -> float:
    r"""Resolution by decorrelation analysis (Descloux, Grussmayer and Radenovic, 2019).

    Correlates the spectrum :math:`I` with itself normalised, :math:`I_n = I / |I|`, inside a
    circle of radius :math:`r` (in units of the Nyquist frequency, their equation 1):

    .. math:: d(r) = \frac{\sum_{|k| < r} \mathrm{Re}(I \bar I_n)}
              {\sqrt{\sum |I|^2} \sqrt{\sum_{|k| < r} |I_n|^2}}
              = \frac{\sum_{|k| < r} |I|}{\sqrt{\sum |I|^2} \sqrt{\#\{|k| < r\}}}

    Once the circle holds all frequencies with signal the curve falls, so its maximum marks how
    far the signal reaches. This is repeated with the image high-passed by
    :math:`1 - \exp(-2 g^2 k^2)`: ten :math:`g` from twice the reciprocal of the first maximum to
    .14, then ten between the best and its neighbour on a finer grid of radii around it. The
    highest maximum of the second pass, :math:`r_{max}`, is the cutoff; the resolution is two
    pixels divided by it. As published: 50 radii in the first pass, borders of 20 pixels apodised
    by a cosine (an eighth of the side where that is less). The second pass has 200 radii instead
    of 50 and alone decides, so that the result is not a multiple of the coarse step.

    It measures where the spectrum ends, not whether what it holds is true: an image invented
    sharply has a good resolution, and so has noise that is correlated between pixels. Within 20
    frequency steps of zero the apodisation makes it too fine, by 10 % for a cutoff at 13 steps.

    Parameters
    ----------
    image : ndarray or Tensor
        ``(H, W)``, any value range, sides of 32 pixels or more.

    Returns
    -------
    float
        Period in nm; infinity if no curve has a maximum.

    Raises
    ------
    InputError
        Not an image of that size, a constant one, values that are not finite, or a pixel size that
        is not positive.
    """
    check_positive(pixel_size_nm, "the pixel size in nm")
    pixels = as_array(image, 2, 2)
    if min(pixels.shape) < 32:
        raise InputError(f"decorrelation analysis needs sides of 32 pixels, got {pixels.shape}")
    if np.ptp(pixels) == 0:
        raise InputError("a constant image has no resolution: pass one with contrast")
    cutoff = _cutoff(_radial_sums(pixels))
    return 2 * pixel_size_nm / cutoff if cutoff else math.inf


@dataclass(frozen=True)
class _Spectrum:
    """Sums over thin rings; a filter that depends on the radius alone is applied to the sums."""

    radius: np.ndarray
    magnitude: np.ndarray
    power: np.ndarray
    count: np.ndarray
    longest_side: int

    def curve(self, radii: np.ndarray, exponent: float) -> np.ndarray:
        """Decorrelation at some radii after a high-pass filter; an infinite exponent is none."""
        gain = 1 - np.exp(-2 * (exponent * self.radius) ** 2)
        ends = np.linspace(0, 1, BINS + 1)[1:]
        inside = np.interp(radii, ends, np.cumsum(gain * self.magnitude))
        count = np.interp(radii, ends, np.cumsum(self.count))
        norm = np.sqrt(np.sum(gain**2 * self.power) * count)
        return np.divide(inside, norm, out=np.zeros_like(radii), where=norm > 0)


def _radial_sums(pixels: np.ndarray) -> _Spectrum:
    weights = apodisation(pixels.shape, reach=EDGE)
    magnitude = np.abs(np.fft.rfft2((pixels - pixels.mean()) * weights))
    radius = 2 * radial_frequency(pixels.shape)
    multiplicity = np.broadcast_to(half_spectrum_multiplicity(pixels.shape[-1]), radius.shape)
    used = (radius > 0) & (radius < 1)
    place = (radius[used] * BINS).astype(np.intp)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, (values * multiplicity)[used], BINS)

    return _Spectrum(
        (np.arange(BINS) + 0.5) / BINS,
        total(magnitude),
        total(magnitude**2),
        total(np.ones_like(magnitude)),
        max(pixels.shape),
    )


def _cutoff(spectrum: _Spectrum) -> float:
    """Highest maximum of all curves in units of the Nyquist frequency, 0 if there is none."""
    radii = np.linspace(0, 1, RADII)
    first = _maximum(radii, spectrum.curve(radii, math.inf))
    strongest = 2 / first if first else spectrum.longest_side / 2
    exponents = np.geomspace(strongest, WEAKEST, FILTERS)
    exponents = np.concatenate([[spectrum.longest_side / 4], exponents])
    coarse = [_maximum(radii, spectrum.curve(radii, exponent)) for exponent in exponents]
    best = max(index for index, found in enumerate(coarse) if found == max(coarse))
    start = min(best, len(exponents) - 2)
    step = radii[1]
    fine = np.linspace(max(coarse[best] - step, 0), min(coarse[best] + 0.4, 1), FINE_RADII)
    between = np.geomspace(exponents[start], exponents[start + 1], FILTERS)
    refined = [_maximum(fine, spectrum.curve(fine, exponent)) for exponent in between]
    found = max(refined) or max(first, *coarse)
    return found if found >= SMALLEST_RADIUS else 0.0


def _maximum(radii: np.ndarray, curve: np.ndarray) -> float:
    """Radius of the highest maximum behind which the curve falls, 0 if there is none."""
    for end in range(len(curve), 1, -1):
        top = int(np.argmax(curve[:end]))
        if top == 0:
            return 0.0
        if curve[top] - curve[top:end].min() >= PROMINENCE:
            return float(radii[top])
    return 0.0
