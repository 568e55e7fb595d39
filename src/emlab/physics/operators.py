r"""What the instrument does to the specimen before the noise: linear operators with adjoints.

Each class maps ``(..., H, W)``, or ``(..., D, H, W)``, to its measurement by `A` and back by the
exact transpose `A_adjoint`: :math:`\langle Ax, y\rangle = \langle x, A^\top y\rangle`. Numbers
keep their dtype, their device and their gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from types import EllipsisType
from typing import Literal, Protocol

import scipy
import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError


def gaussian_kernel(sigma_px: float, size: int | None = None) -> Tensor:
    """Gaussian sampled at the pixel centres, float32.

    Parameters
    ----------
    sigma_px : float
        Standard deviation in pixels; 0 gives the delta.
    size : int, optional
        Odd side; four standard deviations to each side by default.

    Raises
    ------
    InputError
        Negative or infinite sigma, or a size that is not odd and positive.
    """
    if not 0 <= sigma_px < math.inf:
        raise InputError(f"the sigma of a blur must be 0 or more pixels, got {sigma_px}")
    side = 2 * math.ceil(4 * sigma_px) + 1 if size is None else size
    if side < 1 or side % 2 == 0:
        raise InputError(f"a kernel has an odd number of pixels a side, got {side}")
    offsets = torch.arange(side, dtype=torch.float64) - side // 2
    profile = (-0.5 * (offsets / sigma_px).square()).exp() if sigma_px else (offsets == 0).double()
    kernel = torch.outer(profile, profile)
    return (kernel / kernel.sum()).float()


def defocus_kernel(radius_px: float) -> Tensor:
    """Disc of confusion of an out-of-focus lens: each pixel weighs its area inside the circle.

    Parameters
    ----------
    radius_px : float
        Radius in pixels, not necessarily whole; 0 gives the delta.

    Returns
    -------
    Tensor
        float32, the smallest odd square that holds the disc.

    Raises
    ------
    InputError
        Negative or infinite radius.
    """
    if not 0 <= radius_px < math.inf:
        raise InputError(f"the radius of a defocus must be 0 or more pixels, got {radius_px}")
    if radius_px == 0:
        return torch.ones(1, 1)
    reach, fine = max(math.ceil(radius_px - 0.5), 0), 128
    pixels = torch.arange(-reach, reach + 1, dtype=torch.float64)
    # Exact down each of many thin columns, midpoint rule across them.
    columns = pixels[:, None] + (torch.arange(fine, dtype=torch.float64) + 0.5) / fine - 0.5
    half = (radius_px**2 - columns.square()).clamp(min=0).sqrt()[..., None]
    inside = torch.minimum(half, pixels + 0.5) - torch.maximum(-half, pixels - 0.5)
    area = inside.clamp(min=0).mean(1)
    area = area + area.T
    return (area / area.sum()).float()


Sampling = Literal["average", "decimate"]
Shape = tuple[int, ...]


class LinearOperator(Protocol):
    """What a solver needs of the instrument."""

    def A(self, image: Tensor) -> Tensor:
        """Return what the instrument makes of an image, before noise."""

    def A_adjoint(self, measurement: Tensor) -> Tensor:
        """Carry a measurement back to the space of images."""


class ShapedOperator(LinearOperator, Protocol):
    """An operator that also knows the shape of its measurement."""

    def measured_shape(self, shape: Shape) -> Shape:
        """Return the shape that the measurement of an image of this shape has."""


class _SameShape:
    def measured_shape(self, shape: Shape) -> Shape:
        """Return the shape itself."""
        return tuple(shape)


class Identity(_SameShape):
    """Denoising: the image itself is measured."""

    def A(self, image: Tensor) -> Tensor:
        """Return the image."""
        return image

    def A_adjoint(self, measurement: Tensor) -> Tensor:
        """Return the measurement."""
        return measurement


class Blur(_SameShape):
    r"""Convolution with a kernel; a point becomes the kernel, :math:`A\delta = k`.

    The kernel ``(k, k)``, k odd, is non-negative with sum 1, and may require gradients. The image
    goes on as in a mirror at the outer edge of its last pixel (``d c b a | a b c d``). The norm is
    1 for kernels that are symmetric in each axis, and below 2 for any other.
    """

    def __init__(self, kernel: Tensor) -> None:
        if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
            raise InputError(f"a kernel must be square and odd, got shape {tuple(kernel.shape)}")
        values = kernel.detach()
        if not torch.isfinite(values).all() or values.min() < 0:
            raise InputError("the kernel has negative or non-finite values; clip them at zero")
        if abs(float(values.double().sum()) - 1) > 1e-3:
            raise InputError(f"the kernel sums to {float(values.sum()):.4g}; divide it by its sum")
        self.kernel = kernel

    def A(self, image: Tensor) -> Tensor:
        """Return the blurred image ``(..., H, W)``."""
        height, width = image.shape[-2:]
        k = self.kernel.shape[0]
        extended = image
        for axis in (-2, -1):
            extended = extend(extended, axis, k // 2, k // 2)
        sides = self._sides(height, width)
        spectrum = torch.fft.rfft2(extended, s=sides) * self._transfer(image, sides)
        full = torch.fft.irfft2(spectrum, s=sides)
        return full[..., k - 1 : k - 1 + height, k - 1 : k - 1 + width]

    def A_adjoint(self, measurement: Tensor) -> Tensor:
        """Correlate with the kernel; what lies outside is folded back."""
        height, width = measurement.shape[-2:]
        k = self.kernel.shape[0]
        sides = self._sides(height, width)
        placed = torch.nn.functional.pad(measurement, (k - 1, 0, k - 1, 0))
        spectrum = torch.fft.rfft2(placed, s=sides) * self._transfer(measurement, sides).conj()
        full = torch.fft.irfft2(spectrum, s=sides)[..., : height + k - 1, : width + k - 1]
        for axis in (-2, -1):
            full = fold(full, axis, k // 2, k // 2)
        return full

    def _sides(self, height: int, width: int) -> list[int]:
        k = self.kernel.shape[0]
        return [scipy.fft.next_fast_len(side + k - 1, real=True) for side in (height, width)]

    def _transfer(self, like: Tensor, sides: list[int]) -> Tensor:
        return torch.fft.rfft2(self.kernel.to(like), s=sides)


@dataclass(frozen=True)
class Downsample:
    r"""Fewer samples along some axes, each a weighted mean of the pixels near it.

    Fine pixel i reaches from i - 1/2 to i + 1/2. Sample j is the mean over a box of width
    `thickness` around ``centre(j)``; where the box leaves the image, the image is mirrored.

    Attributes
    ----------
    factor : int
        Fine pixels per sample.
    axes : tuple of int
        Negative axis numbers.
    mode : str
        ``average``: boxes around the middle of each group of `factor` pixels,
        ``centre(j) = j factor + (factor - 1) / 2``, as wide as the group unless told otherwise
        (detector binning, sections that touch). ``decimate``: boxes around one pixel of each
        group, ``centre(j) = j factor + (factor - 1) // 2``, one pixel wide unless told otherwise
        (thin optical sections with gaps).
    thickness : float, optional
        Width of the box in fine pixels, also wider than `factor` (a beam that sees deeper than
        one slice) or not whole.

    Raises
    ------
    InputError
        Bad settings, or, when applied, a side that the factor does not divide.
    """

    factor: int
    axes: tuple[int, ...] = (-2, -1)
    mode: Sampling = "average"
    thickness: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.factor < 1:
            raise InputError(f"the factor must be a whole number from 1, got {self.factor}")
        if not self.axes or not set(self.axes) <= {-3, -2, -1}:
            raise InputError(f"axes are counted from the end, -1, -2 or -3; got {self.axes}")
        if self.thickness is not None and not 0 < self.thickness < math.inf:
            raise InputError(f"the thickness must be positive fine pixels, got {self.thickness}")

    @property
    def first_centre(self) -> float:
        """Place of sample 0 in fine pixels; sample j lies `factor` j further."""
        return (self.factor - 1) / 2 if self.mode == "average" else (self.factor - 1) // 2

    def A(self, image: Tensor) -> Tensor:
        """Return the samples; a side that is no multiple of the factor is an `InputError`."""
        self.measured_shape(tuple(image.shape))
        for axis in self.axes:
            image = self._along(image, axis)
        return image

    def A_adjoint(self, measurement: Tensor) -> Tensor:
        """Spread every sample over the pixels that it averaged."""
        _check_axes(tuple(measurement.shape), self.axes)
        for axis in reversed(self.axes):
            measurement = self._along_adjoint(measurement, axis)
        return measurement

    def measured_shape(self, shape: Shape) -> Shape:
        """Return the shape with sides over the factor; `InputError` if they are no multiples."""
        _check_axes(shape, self.axes)
        sides = list(shape)
        for axis in self.axes:
            if sides[axis] % self.factor:
                whole = sides[axis] - sides[axis] % self.factor
                raise InputError(
                    f"the factor {self.factor} does not divide the side {sides[axis]} of "
                    f"{tuple(shape)}; crop that side to {whole}"
                )
            sides[axis] //= self.factor
        return tuple(sides)

    def box(self) -> tuple[int, list[float]]:
        """First fine pixel that sample 0 sees (may be negative), and the weights from there."""
        default = self.factor if self.mode == "average" else 1
        width = default if self.thickness is None else self.thickness
        low, high = self.first_centre - width / 2, self.first_centre + width / 2
        first, last = math.floor(low + 0.5), math.ceil(high - 0.5)
        overlaps = [min(high, i + 0.5) - max(low, i - 0.5) for i in range(first, last + 1)]
        return first, [overlap / width for overlap in overlaps]

    def _margins(self, count: int) -> tuple[int, int, int]:
        """Pixels to add before and after `count` samples, and where sample 0 then starts."""
        first, weights = self.box()
        low = max(0, -first)
        high = max(0, first + len(weights) - self.factor)
        return low, high, first + low

    def _along(self, image: Tensor, axis: int) -> Tensor:
        count = image.shape[axis] // self.factor
        low, high, start = self._margins(count)
        extended = extend(image, axis, low, high)
        terms = (
            weight * extended[_every(axis, start + k, count, self.factor)]
            for k, weight in enumerate(self.box()[1])
        )
        return reduce(torch.add, terms)

    def _along_adjoint(self, measurement: Tensor, axis: int) -> Tensor:
        count = measurement.shape[axis]
        low, high, start = self._margins(count)
        sides = list(measurement.shape)
        sides[axis] = low + count * self.factor + high
        extended = measurement.new_zeros(sides)
        for k, weight in enumerate(self.box()[1]):
            extended[_every(axis, start + k, count, self.factor)] += weight * measurement
        return fold(extended, axis, low, high)


class Axial(Downsample):
    """Sampling along z (axis -3): sections of a given thickness; see `Downsample`."""

    def __init__(
        self, factor: int, mode: Sampling = "average", thickness: float | None = None
    ) -> None:
        super().__init__(factor, (-3,), mode, thickness)


class Mask:
    """Some pixels or slices are missing: they are measured as zero.

    Booleans, or zeros and ones; broadcast against the image, for example ``(D, 1, 1)`` for missing
    slices.
    """

    def __init__(self, mask: Tensor) -> None:
        if not ((mask == 0) | (mask == 1)).all():
            raise InputError("a mask holds zeros (missing) and ones (measured) only")
        self.mask = mask

    def A(self, image: Tensor) -> Tensor:
        """Return the image with zeros where nothing was measured."""
        self.measured_shape(tuple(image.shape))
        return image * self.mask.to(image)

    def A_adjoint(self, measurement: Tensor) -> Tensor:
        """Return the same of a measurement."""
        return self.A(measurement)

    def measured_shape(self, shape: Shape) -> Shape:
        """Return the shape itself; `InputError` if the mask does not fit it."""
        fits = self.mask.ndim <= len(shape) and all(
            side in (1, wanted)
            for side, wanted in zip(self.mask.shape[::-1], shape[::-1], strict=False)
        )
        if not fits:
            raise InputError(
                f"the mask {tuple(self.mask.shape)} does not fit the image {tuple(shape)}"
            )
        return tuple(shape)


class Compose:
    """One operator after another, the last one first: ``Compose(f, g).A(x) = f.A(g.A(x))``."""

    def __init__(self, *operators: ShapedOperator) -> None:
        if not operators:
            raise InputError("a composition needs at least one operator; use Identity() for none")
        self.operators = operators

    def A(self, image: Tensor) -> Tensor:
        """Apply the last operator first."""
        for operator in reversed(self.operators):
            image = operator.A(image)
        return image

    def A_adjoint(self, measurement: Tensor) -> Tensor:
        """Apply the adjoint of the first operator first."""
        for operator in self.operators:
            measurement = operator.A_adjoint(measurement)
        return measurement

    def measured_shape(self, shape: Shape) -> Shape:
        """Return the shape after all of them."""
        for operator in reversed(self.operators):
            shape = operator.measured_shape(shape)
        return shape


class Scaled:
    """A linear operator times a number."""

    def __init__(self, operator: ShapedOperator, factor: float) -> None:
        self.operator, self.factor = operator, factor

    def A(self, x: Tensor) -> Tensor:
        """Return the number times what the operator makes of x."""
        return self.factor * self.operator.A(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """Return the number times what its adjoint makes of y."""
        return self.factor * self.operator.A_adjoint(y)

    def measured_shape(self, shape: Shape) -> Shape:
        """Return the operator's."""
        return self.operator.measured_shape(shape)


def operator_norm(
    operator: LinearOperator,
    shape: Shape,
    *,
    iterations: int = 30,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    r"""Largest singular value :math:`\|A\|` on images of a shape, by power iteration (from below).

    A gradient step :math:`A^\top(Ax - y)` needs a factor below :math:`2/\|A\|^2`; averaging
    `factor` pixels along one axis, for example, has the norm :math:`factor^{-1/2}`.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
    value = 0.0
    for _ in range(iterations):
        x = operator.A_adjoint(operator.A(x / x.norm()))
        value = float(x.norm())
        if value == 0:
            break
    return math.sqrt(value)


def extend(image: Tensor, axis: int, low: int, high: int) -> Tensor:
    """Add `low` pixels before and `high` after an axis, any number, as a mirror would."""
    if low == high == 0:
        return image
    return image.index_select(axis, _sources(image, image.shape[axis], low, high))


def fold(extended: Tensor, axis: int, low: int, high: int) -> Tensor:
    """Transpose of `extend`: what was added returns to the pixels that it was copied from."""
    if low == high == 0:
        return extended
    length = extended.shape[axis] - low - high
    sources = _sources(extended, length, low, high)
    image = extended.narrow(axis, low, length).clone()
    image.index_add_(axis, sources[:low], extended.narrow(axis, 0, low))
    return image.index_add_(axis, sources[low + length :], extended.narrow(axis, -high, high))


def _sources(like: Tensor, length: int, low: int, high: int) -> Tensor:
    """Pixel from which each pixel of the extended axis is copied."""
    places = torch.arange(-low, length + high, device=like.device) % (2 * length)
    return torch.where(places < length, places, 2 * length - 1 - places)


def _every(axis: int, start: int, count: int, step: int) -> tuple[slice | EllipsisType, ...]:
    """Index of `count` pixels along a negative axis, `step` apart from `start`."""
    taken = slice(start, start + (count - 1) * step + 1, step)
    return (..., taken, *[slice(None)] * (-axis - 1))


def _check_axes(shape: Shape, axes: tuple[int, ...]) -> None:
    if len(shape) < -min(axes):
        raise InputError(f"axis {min(axes)} needs a volume (..., D, H, W), got {tuple(shape)}")
