"""Restoration without training: the peers that a learned prior has to beat.

Images are float arrays ``(H, W)`` with grey levels in about [0, 1] (volumes ``(D, H, W)``); a noise
level is a standard deviation in those grey levels. What comes back is float32 of the same range.
Nothing here looks at clean data: settings are arguments, chosen elsewhere on validation images.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

import numpy as np
import scipy
import skimage
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from emlab.errors import InputError
from emlab.physics.operators import ShapedOperator
from emlab.solvers.contract import conjugate_gradients

Image = NDArray[np.float32]
BM3D_PROFILES = {"np": "BM3DProfile", "high": "BM3DProfileHigh", "vn": "BM3DProfileVN"}
BM4D_PROFILES = {"np": "BM4DProfile", "refilter": "BM4DProfileRefilter"}


def bm3d(image: ArrayLike, sigma: float | NDArray, profile: str = "np") -> Image:
    """Block matching and collaborative filtering (Dabov et al. 2007; Mäkinen et al. 2020).

    Parameters
    ----------
    sigma : float or ndarray
        Standard deviation of white noise, or the power spectrum ``(H, W)`` of coloured noise:
        ``E|fft2(noise)|^2``, mean over frequencies ``H * W`` times the variance.
    profile : str
        ``"np"`` (the default settings), ``"high"`` or ``"vn"`` (very noisy) of the bm3d package.

    Raises
    ------
    InputError
        The package is not installed, or an unknown profile.
    """
    package, profiles = _optional("bm3d"), _optional("bm3d.profiles")
    if profile not in BM3D_PROFILES:
        raise InputError(f"unknown BM3D profile {profile!r}; use {', '.join(BM3D_PROFILES)}")
    settings = getattr(profiles, BM3D_PROFILES[profile])()
    settings.num_threads = 1  # with more, rounding depends on which thread comes first
    noisy, level = _image(image), np.asarray(sigma, dtype=float)
    if level.ndim and level.shape != noisy.shape:
        raise InputError(f"a power spectrum needs the shape of the image, {noisy.shape}")
    with _numpy_with_trapz():
        restored = package.bm3d(noisy, level if level.ndim else float(level), settings)
    return np.asarray(restored, "f4")


def bm4d(volume: ArrayLike, sigma: float, profile: str = "np") -> Image:
    """BM3D's successor for volumes ``(D, H, W)`` and white noise (Maggioni et al. 2013).

    Takes about a minute per 100 000 voxels and core. Arguments and errors are those of `bm3d`;
    the profiles are ``"np"`` and ``"refilter"``, which runs its second stage twice.
    """
    package, profiles = _optional("bm4d"), _optional("bm4d.profiles")
    if profile not in BM4D_PROFILES:
        raise InputError(f"unknown BM4D profile {profile!r}; use {', '.join(BM4D_PROFILES)}")
    settings = getattr(profiles, BM4D_PROFILES[profile])()
    settings.num_threads = 1
    with _numpy_with_trapz():
        return np.asarray(package.bm4d(_image(volume, 3), float(sigma), settings), "f4")


def nlm(
    image: ArrayLike, sigma: float, strength: float = 0.8, patch: int = 5, distance: int = 9
) -> Image:
    """Non-local means (Buades et al. 2005): averages over similar patches nearby.

    Parameters
    ----------
    image : array_like
        ``(H, W)`` or ``(D, H, W)``.
    strength : float
        Decay of the weights in units of `sigma`.
    patch, distance : int
        Side of the patches that are compared, and how far away they are looked for, in pixels.
    """
    noisy = _image(image, 2, 3)
    restored = skimage.restoration.denoise_nl_means(
        noisy, patch, distance, strength * sigma, fast_mode=True, sigma=sigma
    )
    return np.asarray(restored, "f4")


def tv(image: ArrayLike, weight: float) -> Image:
    """Total-variation denoising (Rudin, Osher and Fatemi 1992, by Chambolle 2004).

    Parameters
    ----------
    weight : float
        Weight of the total variation: more is smoother.
    """
    return np.asarray(
        skimage.restoration.denoise_tv_chambolle(_image(image), weight, 1e-7, 500), "f4"
    )


def wavelet(
    image: ArrayLike,
    sigma: float,
    name: str = "db2",
    strength: float = 1.0,
    levels: int = 3,
    shifts: int = 4,
) -> Image:
    """Wavelet soft thresholding at BayesShrink's levels (Chang et al. 2000), shifts averaged.

    Parameters
    ----------
    name : str
        Wavelet, a name of PyWavelets.
    strength : float
        Multiplies the noise level that the thresholds are computed for.
    levels : int
        Times that the image is halved.
    shifts : int
        The image is denoised at ``shifts**2`` cyclic shifts and averaged (Coifman and Donoho 1995).

    Raises
    ------
    InputError
        PyWavelets is not installed.
    """
    _optional("pywt")
    noisy = _image(image)
    total = np.zeros_like(noisy)
    for row in range(shifts):
        for column in range(shifts):
            moved = np.roll(noisy, (row, column), (0, 1))
            with warnings.catch_warnings():  # PyWavelets: many levels feel the border
                warnings.simplefilter("ignore", UserWarning)
                smooth = skimage.restoration.denoise_wavelet(
                    moved, strength * sigma, name, wavelet_levels=levels, rescale_sigma=False
                )
            total += np.roll(smooth, (-row, -column), (0, 1))
    return np.asarray(total / shifts**2, "f4")


def gaussian(image: ArrayLike, width: float) -> Image:
    """Gaussian smoothing of an image or a volume; `width` is the kernel's standard deviation."""
    noisy = _image(image, 2, 3)
    return np.asarray(scipy.ndimage.gaussian_filter(noisy, width, mode="reflect"), "f4")


def wiener_deconvolve(
    image: ArrayLike, kernel: ArrayLike, balance: float, power: float = 2.0
) -> Image:
    r"""Wiener deconvolution with a power-law spectrum of the specimen.

    .. math:: \hat X(f) = \frac{\bar K(f)\,Y(f)}{|K(f)|^2 + \lambda\,|2f|^p}

    which is the linear minimum-mean-square estimate when the noise is white and the specimen's
    power falls as :math:`|f|^{-p}`. The image is continued by mirror images of itself: for a
    symmetric kernel that is what a blur with reflecting borders did to it.

    Parameters
    ----------
    kernel : array
        ``(k, k)``, k odd, sum 1.
    balance : float
        Noise power over specimen power at the highest frequency along an axis, positive.
    power : float
        Decay p of the specimen's power spectrum.
    """
    blurred, kernel = _image(image), _kernel(kernel)
    if balance <= 0:
        raise InputError(f"balance must be positive, got {balance}")
    height, width = blurred.shape
    mirrored = np.pad(blurred, ((0, height), (0, width)), mode="symmetric")
    frequency = np.hypot(
        np.fft.fftfreq(mirrored.shape[0])[:, None], np.fft.rfftfreq(mirrored.shape[1])
    )
    transfer = np.fft.rfft2(_centred(kernel, mirrored.shape))
    spectrum = np.fft.rfft2(mirrored) * transfer.conj()
    spectrum /= np.abs(transfer) ** 2 + balance * (2 * frequency) ** power
    return np.asarray(np.fft.irfft2(spectrum, mirrored.shape)[:height, :width], "f4")


def linear_mmse(
    measurement: ArrayLike,
    operator: ShapedOperator,
    shape: tuple[int, ...],
    sigma: float,
    spectrum: Sequence[float],
) -> Image:
    r"""The best *linear* restoration of stationary images of known spectrum, for any operator.

    .. math:: \hat x = \mu + S A^\top (A S A^\top + \sigma^2)^{-1} (y - A\mu) ,

    S diagonal in the cosine transform (reflecting borders), solved by conjugate gradients. For
    images that are truly Gaussian no restoration has a smaller mean square error.

    Parameters
    ----------
    shape : tuple of int
        Of what is restored, ``(H, W)`` or ``(D, H, W)``.
    sigma : float
        Of white noise; without noise a thousandth of the grey range is assumed.
    spectrum : sequence of float
        Polynomial in the logarithm of the frequency (in periods a pixel), highest power first, of
        the logarithm of the power spectral density, as `fit_spectrum` finds it.
    """
    y = torch.from_numpy(_image(measurement, 2, 3))
    noise = max(sigma, 1e-3) ** 2

    def density(sides: Sequence[int]) -> NDArray[np.float64]:
        steps = [fine / side for fine, side in zip(shape, sides, strict=True)]
        return np.exp(np.polyval(spectrum, np.log(_radius(sides, steps))))

    def filtered(x: Tensor, gains: NDArray[np.float64]) -> Tensor:
        coefficients = gains * scipy.fft.dctn(x.numpy(), norm="ortho")
        return torch.from_numpy(scipy.fft.idctn(coefficients, norm="ortho"))

    prior = density(shape)
    # Coarse pixels have about the spectrum of the fine ones at the frequencies that they can tell.
    about = 1 / (density(y.shape) + noise) if y.shape != shape else np.ones(shape)

    def explained(x: Tensor) -> Tensor:
        return (operator.A(filtered(operator.A_adjoint(x[0]), prior)) + noise * x[0])[None]

    flat = operator.A(torch.ones(shape, dtype=y.dtype))
    mean = (flat * y).sum() / flat.square().sum()
    dual = conjugate_gradients(
        explained, (y - mean * flat)[None], 500, 1e-10,
        precondition=lambda residual: filtered(residual[0], about)[None],
    )[0]  # fmt: skip
    return np.asarray(mean + filtered(operator.A_adjoint(dual), prior), "f4")


def fit_spectrum(images: ArrayLike, order: int = 4) -> list[float]:
    """The `spectrum` of `linear_mmse` of clean images ``(n, H, W)`` or volumes ``(n, D, H, W)``."""
    clean = np.asarray(images, dtype=np.float64)
    axes = tuple(range(1, clean.ndim))
    clean = clean - clean.mean(axes, keepdims=True)
    power = np.square(scipy.fft.dctn(clean, axes=axes, norm="ortho")).mean(0).ravel()
    radius = np.log(_radius(clean.shape[1:]).ravel())
    edges = np.linspace(radius[1:].min(), radius.max(), 25)
    place = np.digitize(radius[1:], edges)
    bins = [place == n for n in np.unique(place)]
    centre = [radius[1:][one].mean() for one in bins]
    height = [np.log(power[1:][one].mean()) for one in bins]
    return np.polyfit(centre, height, order).tolist()


def _radius(shape: Sequence[int], steps: Sequence[float] = ()) -> NDArray[np.float64]:
    """Frequency of each coefficient of the cosine transform, in periods a pixel; never zero.

    The image's own pixels are `steps` pixels long, or one.
    """
    steps = steps or [1.0] * len(shape)
    own = [np.arange(side) / (2 * side * step) for side, step in zip(shape, steps, strict=True)]
    radius = np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*own, indexing="ij")))
    radius.flat[0] = radius.flat[1:].min()
    return radius


def richardson_lucy(image: ArrayLike, kernel: ArrayLike, iterations: int) -> Image:
    """Richardson-Lucy deconvolution (Richardson 1972, Lucy 1974), started from the image.

    Stopping early is its only regularisation. Negative grey levels are raised to a hundredth.

    Parameters
    ----------
    kernel : array
        ``(k, k)``, k odd, not negative, sum 1.
    iterations : int
        At least 1.
    """
    blurred, kernel = np.maximum(_image(image), 1e-2), _kernel(kernel)
    if iterations < 1 or kernel.min() < 0:
        raise InputError("Richardson-Lucy needs iterations >= 1 and a kernel that is not negative")
    estimate = blurred.copy()
    for _ in range(iterations):
        ratio = blurred / np.maximum(scipy.ndimage.convolve(estimate, kernel, mode="reflect"), 1e-6)
        estimate *= scipy.ndimage.correlate(ratio, kernel, mode="reflect")
    return np.asarray(estimate, "f4")


def cubic_upsample(image: ArrayLike, factor: int, mode: str = "average", order: int = 3) -> Image:
    """Interpolate ``(H, W)`` to ``(H * factor, W * factor)`` by splines.

    Parameters
    ----------
    mode : str
        Where a coarse pixel lies: ``"average"`` in the middle of the fine pixels it averages,
        ``"decimate"`` on pixel ``(factor - 1) // 2`` of them; see `emlab.physics.operators`.
    order : int
        Of the spline: 3 is cubic.
    """
    rows = _interpolate(_image(image), 0, factor, mode, order)
    return np.asarray(_interpolate(rows, 1, factor, mode, order), "f4")


def cubic_axial(volume: ArrayLike, factor: int, mode: str = "average", order: int = 3) -> Image:
    """Interpolate ``(D, H, W)`` to ``(D * factor, H, W)``; otherwise as `cubic_upsample`."""
    return np.asarray(_interpolate(_image(volume, 3), 0, factor, mode, order), "f4")


def spline_matrix(count: int, factor: int, mode: str = "average", order: int = 3) -> NDArray:
    """The interpolation of `count` samples as a matrix ``(count * factor, count)``."""
    if factor < 1 or mode not in ("average", "decimate"):
        raise InputError("interpolation needs factor >= 1 and mode 'average' or 'decimate'")
    first = (factor - 1) / 2 if mode == "average" else (factor - 1) // 2
    position = (np.arange(count * factor) - first) / factor
    # Column j is the spline through the j-th unit vector.
    places = np.meshgrid(position, np.arange(count), indexing="ij")
    return scipy.ndimage.map_coordinates(np.eye(count), places, order=order, mode="nearest")


def _interpolate(array: NDArray, axis: int, factor: int, mode: str, order: int) -> NDArray:
    matrix = spline_matrix(array.shape[axis], factor, mode, order)
    return np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)


def _centred(kernel: NDArray, shape: tuple[int, ...]) -> NDArray:
    """The kernel in an array of zeros, its middle at index (0, 0)."""
    canvas = np.zeros(shape)
    canvas[: kernel.shape[0], : kernel.shape[1]] = kernel
    return np.roll(canvas, (-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), (0, 1))


def _image(image: ArrayLike, *dimensions: int) -> NDArray[np.float64]:
    array = np.asarray(image, dtype=np.float64)
    if array.ndim not in (dimensions or (2,)) or 0 in array.shape:
        names = {2: "an image (H, W)", 3: "a volume (D, H, W)"}
        wanted = " or ".join(names[n] for n in dimensions or (2,))
        raise InputError(f"expected {wanted}, got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError("the image contains NaN or infinity; replace them first")
    return array


def _kernel(kernel: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(kernel, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] % 2 == 0 or array.shape[1] % 2 == 0:
        raise InputError(f"a kernel needs odd sides, (k, k), got shape {array.shape}")
    if not np.isclose(array.sum(), 1, atol=1e-4):
        raise InputError(f"a kernel must sum to 1, got {array.sum():g}; divide it by its sum")
    return array


@contextmanager
def _numpy_with_trapz() -> Iterator[None]:
    """bm4d 4.2.5 calls ``numpy.trapz`` for coloured noise; NumPy 2.4 has only the new name."""
    if hasattr(np, "trapz"):
        yield
        return
    setattr(np, "trapz", np.trapezoid)  # noqa: B010 - the stubs do not know it
    try:
        yield
    finally:
        delattr(np, "trapz")


def _optional(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError:
        name = {"pywt": "PyWavelets"}.get(module, module.partition(".")[0])
        raise InputError(f"{name} is not installed; pip install 'emlab-book[peers]'") from None
