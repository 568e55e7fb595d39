"""What the samplers' settings do: step size, weight of the data, number of steps, path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emlab import metrics
from emlab.errors import InputError
from emlab.methods.generalist import GreyScale
from emlab.methods.generalist_config import Solver
from emlab.metrics.fourier import apodisation, radial_frequency
from emlab.physics import GaussianNoise
from emlab.priors import Prior
from emlab.priors.diffusion import DDPMSchedule, DDPMView, flow_time
from emlab.recipes.generalist_tasks import GREY_RANGE, Task
from emlab.runtime import Stopwatch, make_generator
from emlab.solvers import ONE_ESTIMATE, solver_of

Grey = NDArray[np.float32]
FINE = 0.2  # periods a pixel: above, there is detail and noise


@dataclass(frozen=True)
class Bench:
    """Crops of one task, all sampled as one batch, in the prior's units.

    Attributes
    ----------
    task : Task
    truth : ndarray
        ``(n, H, W)``, grey levels 0..255.
    measured : Tensor
        ``(n, h, w)`` in the prior's units.
    scale : GreyScale
        One for all crops.
    seed : int
        Of every sampler that runs here.
    """

    task: Task
    truth: Grey
    measured: Tensor
    scale: GreyScale
    seed: int

    @classmethod
    def of(cls, task: Task, truth: Grey, seed: int, device: torch.device | str = "cpu") -> Bench:
        """Measure crops ``(n, H, W)``."""
        if truth.ndim != 3:
            raise InputError(f"the bench takes crops (n, H, W), got shape {truth.shape}")
        measured = task.measure(torch.from_numpy(truth), make_generator(seed)).numpy()
        scale = GreyScale.of(measured, task.noise * GREY_RANGE)
        return cls(task, truth, scale.to_units(measured, device), scale, seed)

    @property
    def noise(self) -> float:
        """Standard deviation of the noise in the prior's units, at least a hundredth of tissue."""
        return max(self.task.noise * GREY_RANGE / self.scale.scale, 0.003)

    def run(self, solver: Solver, prior: Prior) -> Run:
        """One sample of every crop, timed."""
        shape, count = tuple(self.truth.shape[1:]), len(self.truth)
        operator, generator = self.task.operator(), make_generator(self.seed)
        with Stopwatch() as watch:
            one = isinstance(solver, ONE_ESTIMATE)  # all crops as one image then
            found = solver_of(solver)(
                prior, operator, self.measured, GaussianNoise(self.noise), solver, generator,
                shape=None if one else shape, samples=1 if one else count,
                start=self.task.back_to_grid(self.measured),
            )  # fmt: skip
        images = self.scale.to_grey(found.images[0] if one else found.images)
        steps = found.evaluations // (1 if one else count)
        return Run.of(images, self.truth, watch.seconds, steps)


@dataclass(frozen=True)
class Run:
    """What a sampler made of a bench, and what it took.

    Attributes
    ----------
    images : ndarray
        ``(n, H, W)``, grey levels 0..255; of a recorded run the first.
    psnr : ndarray
        Of each crop in dB; an image that ran away counts as 0 dB.
    fine_power : float
        Power of fine detail over that of the truth: below 1 oversmoothed, above 1 noise.
    seconds : float
        For all crops.
    steps : int
    """

    images: Grey
    psnr: NDArray[np.float64]
    fine_power: float
    seconds: float
    steps: int

    @classmethod
    def of(cls, images: Grey, truth: Grey, seconds: float, steps: int) -> Run:
        """Score images ``(n, H, W)``."""
        psnr = [
            max(metrics.psnr(image, clean, GREY_RANGE), 0.0) if np.isfinite(image).all() else 0.0
            for image, clean in zip(images, truth, strict=True)
        ]
        return cls(images, np.array(psnr), fine_power(images) / fine_power(truth), seconds, steps)


def fine_power(images: Grey) -> float:
    """Power above 0.2 periods a pixel of images ``(n, H, W)`` under a Hann window."""
    window = apodisation(images.shape[-2:])
    centred = images - images.mean((-2, -1), keepdims=True)
    power = np.abs(np.fft.rfft2(centred * window)) ** 2
    return float(power[..., radial_frequency(images.shape[-2:]) > FINE].mean())


@dataclass(frozen=True)
class Meeting:
    """Where one noise level lies on two paths, and what one network answers on both."""

    sigma: float
    flow_time: float
    ddpm_step: int
    gap: float


def where_paths_meet(
    prior: Prior, clean: Tensor, steps: Sequence[int], generator: torch.Generator
) -> list[Meeting]:
    """Ask a network for the clean image on the DDPM path and on the flow's, at the same noise.

    The gap is the largest difference of the two answers in the prior's units.

    Parameters
    ----------
    clean : Tensor
        ``(n, H, W)`` in the prior's units.
    steps : sequence of int
        Steps of the DDPM schedule.
    """
    view = DDPMView(prior, DDPMSchedule())
    meetings = []
    for step in steps:
        sigma = view.schedule.sigma[step].item()
        share = view.schedule.alpha_bar[step].item()
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        on_ddpm = math.sqrt(share) * clean + math.sqrt(1 - share) * noise
        time = float(flow_time(sigma))
        on_flow = time * clean + (1 - time) * noise
        from_ddpm = view.clean(on_ddpm, step, view.epsilon(on_ddpm, step))
        velocity = getattr(prior, "velocity", None)
        if velocity is None:
            raise InputError(f"a {type(prior).__name__} has no velocity; pass a flow prior")
        from_flow = on_flow + (1 - time) * velocity(on_flow, time)
        gap = (from_ddpm - from_flow).abs().max().item()
        meetings.append(Meeting(sigma, time, step, gap))
    return meetings
