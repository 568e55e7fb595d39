"""The tasks of the chapter: what is done to a clean image, and the obvious way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from emlab.errors import InputError
from emlab.physics.operators import (
    Axial,
    Blur,
    Downsample,
    Identity,
    Sampling,
    ShapedOperator,
    defocus_kernel,
    gaussian_kernel,
)
from emlab.solvers.classical import spline_matrix

GREY_RANGE = 255.0
DEBLUR_NOISE = 0.02
DEFOCUS_RADII = {"slight": 1.5, "moderate": 2.5, "severe": 4.0}
NO_BLUR = torch.ones(1, 1)


@dataclass(frozen=True)
class Task:
    """One degradation."""

    name: str  #: key of tables and of metrics.json
    label: str  #: for readers
    #: denoise, deblur, upsample (both axes of an image) or isotropic (axis 0 of a volume)
    kind: str
    noise: float = 0.0  #: standard deviation of white noise in units of the grey range
    factor: int = 1  #: fine pixels per coarse one
    kernel: Tensor = field(default=NO_BLUR, compare=False, repr=False)  #: of the blur, (k, k)
    mode: Sampling = "average"  #: a coarse pixel is the average of fine ones, or one: "decimate"

    def operator(self) -> ShapedOperator:
        """What the instrument does to a whole image ``(H, W)`` or volume ``(D, H, W)``."""
        if self.kind == "deblur":
            return Blur(self.kernel)
        if self.kind == "upsample":
            return Downsample(self.factor, mode=self.mode)
        return Axial(self.factor, self.mode) if self.kind == "isotropic" else Identity()

    def section_operator(self) -> ShapedOperator:
        """The same on images ``(..., H, W)``: an axial task seen in a section, z along H."""
        return Downsample(self.factor, (-2,)) if self.kind == "isotropic" else self.operator()

    def finer(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the image or volume that a measurement of this shape is restored to."""
        if self.kind == "isotropic":
            return shape[0] * self.factor, *shape[1:]
        return tuple(side * self.factor for side in shape)

    def lost(self, own: float, shape: tuple[int, ...]) -> float:
        r"""Mean square error that is left to a genie who knows the tissue, in grey levels squared.

        A truth ``(H, W)`` or ``(D, H, W)`` has white noise of its own, of standard deviation o. The
        genie must tell it from the measurement: along each right singular vector of A, of singular
        value :math:`\sqrt\lambda`, measured with noise s, there remains
        :math:`o^2 s^2 / (\lambda o^2 + s^2)`, and all of it where :math:`\lambda = 0`.
        """
        added, power = (self.noise * GREY_RANGE) ** 2, np.ones(1)
        if self.kind == "deblur":
            power = np.abs(np.fft.fft2(self.kernel.numpy(), shape[-2:])) ** 2
        cells = self.factor ** {"isotropic": 1, "upsample": 2}.get(self.kind, 0)
        power = power / (cells if self.mode == "average" else 1)
        seen = own**2 * added / (power * own**2 + added) if added else np.zeros(1)
        return float(seen.mean() / cells + own**2 * (1 - 1 / cells)) if own else 0.0

    def measure(
        self, clean: Tensor, generator: torch.Generator, grey_range: float = GREY_RANGE
    ) -> Tensor:
        """Degrade images or, for an axial task, volumes ``(D, H, W)``; nothing is clipped."""
        return self._with_noise(self.operator().A(clean), generator, grey_range)

    def measure_section(
        self, clean: Tensor, generator: torch.Generator, grey_range: float = GREY_RANGE
    ) -> Tensor:
        """Degrade images ``(..., H, W)``, see `section_operator`."""
        return self._with_noise(self.section_operator().A(clean), generator, grey_range)

    def back_to_grid(self, measurement: Tensor) -> Tensor:
        """The measurement ``(..., H, W)`` on the fine grid: cubic splines, or as it is."""
        if self.factor == 1:
            return measurement
        rows = _matrix(measurement.shape[-2], self.factor, self.mode).to(measurement)
        fine = rows @ measurement
        if self.kind == "isotropic":
            return fine
        columns = _matrix(measurement.shape[-1], self.factor, self.mode)
        return fine @ columns.to(measurement).T

    def _with_noise(self, image: Tensor, generator: torch.Generator, grey_range: float) -> Tensor:
        if self.noise == 0:
            return image
        noise = torch.randn(image.shape, generator=generator, device=generator.device)
        return image + self.noise * grey_range * noise.to(image)


def defocus_tasks(radii: Mapping[str, float] = DEFOCUS_RADII) -> list[Task]:
    """One task a degree of blur ``{"slight": 1.5, ...}``, by a disc out of focus, noise .02."""
    return [
        Task(
            f"defocus_{name}",
            f"{name} defocus, {radius:g} px",
            "deblur",
            DEBLUR_NOISE,
            kernel=defocus_kernel(radius),
        )
        for name, radius in radii.items()
    ]


_ALL = (
    Task("denoise_10", "white noise .1", "denoise", noise=0.1),
    Task("denoise_25", "white noise .25", "denoise", noise=0.25),
    Task("deblur", "blur 2 px, noise .02", "deblur", DEBLUR_NOISE, kernel=gaussian_kernel(2.0)),
    *(Task(f"upsample_{f}", f"{f}x super-resolution", "upsample", factor=f) for f in (2, 3, 4)),
    *(Task(f"isotropic_{f}", f"{f}x isotropic", "isotropic", factor=f) for f in (4, 6, 10)),
)
TASKS = {task.name: task for task in _ALL}
# Whole volumes, for priors that see depth.
VOLUMES = (
    Task("volume_10", "volume, white noise .1", "denoise", noise=0.1),
    Task("volume_25", "volume, white noise .25", "denoise", noise=0.25),
)
# Where little is measured and much is left open; no network was ever trained on these.
OPEN = (
    Task("denoise_50", "white noise .5", "denoise", noise=0.5),
    Task("denoise_100", "white noise 1", "denoise", noise=1.0),
    Task("upsample_8", "8x super-resolution", "upsample", factor=8),
    Task("sparse_scan", "one pixel in four scanned", "upsample", factor=2, mode="decimate"),
)
MISSING = Task("missing_slices", "every other slice lost", "isotropic", factor=2, mode="decimate")
STRANGE_BLUR = replace(TASKS["deblur"], name="blind_gaussian", label="Gaussian, 2 px: no disc")
REAL_PAIR = Task("real_pair", "real SEM pair", "denoise")  # its noise is its own


def task(name: str) -> Task:
    """Return a task by its name.

    Raises
    ------
    InputError
        Unknown name; the message lists them.
    """
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}")
    return TASKS[name]


@lru_cache(maxsize=64)
def _matrix(count: int, factor: int, mode: str) -> Tensor:
    return torch.from_numpy(spline_matrix(count, factor, mode).astype(np.float32))
