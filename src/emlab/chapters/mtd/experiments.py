"""The smaller experiments of the multi-target detection chapter."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from emlab import metrics
from emlab.chapters.mtd.study import targets
from emlab.methods.mtd import Config, Recovery, recover
from emlab.physics.mtd import cut_patches, simulate_measurement
from emlab.physics.rotations import Rotations
from emlab.priors.base import Prior
from emlab.priors.gaussian import gaussian_prior
from emlab.runtime import Stopwatch
from emlab.solvers.expectation_step import ExpectationStep

SCHEDULES = {
    "constant 1": (1.0, "constant"),
    "constant 0.5": (0.5, "constant"),
    "linear to 1": (1.0, "linear"),
}


def compare_schedules(
    prior: Prior, start: Tensor, count: int, iterations: int, seed: int, workers: int = 1
) -> dict[str, np.ndarray]:
    """Errors ``(count,)`` of the paper's settings under three schedules of the prior's weight.

    Validation digits at SNR 0.5, the same field for every schedule.
    """
    paper = Config.named("paper_mnist")

    def error(job: tuple[int, Tensor, tuple[float, str]]) -> float:
        number, truth, (weight, schedule) = job
        generator = torch.Generator().manual_seed(1_000_003 * seed + number)
        measurement = simulate_measurement(truth, 0.5, generator)
        em = replace(paper.em, prior_weight=weight, prior_schedule=schedule, iterations=iterations)
        config, sigma = replace(paper, em=em), measurement.sigma
        with torch.no_grad():
            found = recover(measurement.field, config, generator, prior, sigma, start[None])
        return metrics.relative_error(found.image.numpy(), truth.numpy())

    truths = targets("mnist", count, "validation")
    with ThreadPoolExecutor(workers) as pool:
        return {
            name: np.array(list(pool.map(error, [(i, t, setting) for i, t in enumerate(truths)])))
            for name, setting in SCHEDULES.items()
        }


def violate_separation(densities: tuple[float, ...], count: int, seed: int) -> dict[float, float]:
    """Mean error by density when copies may touch: ours, Gaussian images, SNR 5, N = 110."""
    config, prior = Config.named("ours_gaussian"), gaussian_prior()
    means = {}
    for density in densities:
        errors = []
        for number, truth in enumerate(targets("gaussian", count)):
            generator = torch.Generator().manual_seed(1_000_003 * seed + number)
            measurement = simulate_measurement(
                truth, 5.0, generator, field_size=110, density=density, separation=5
            )
            result = recover(measurement.field, config, generator, prior, measurement.sigma)
            errors.append(metrics.relative_error(result.image.numpy(), truth.numpy()))
        means[density] = float(np.mean(errors))
    return means


def measure_growth(factors: list[int]) -> dict[int, float]:
    """Seconds of one E-step (L = 28, four rotations) on fields of 308 times each factor.

    The least of three where a field is small and other programs are soon felt.
    """
    rotations = Rotations(4, 28)
    seconds = {}
    for factor in factors:
        generator = torch.Generator().manual_seed(factor)
        field = torch.randn(308 * factor, 308 * factor, generator=generator)
        image = torch.rand(1, 28, 28, generator=generator)
        estep = ExpectationStep(cut_patches(field, 28), rotations, sigma=1.0)
        times = []
        for _ in range(3 if factor < 4 else 1):
            with Stopwatch() as watch:
                estep(image)
            times.append(watch.seconds)
        seconds[factor] = min(times)
    return seconds


def growth_exponent(seconds: dict[int, float]) -> float:
    """Power of the field's area with which seconds grow, from the smallest to the largest field."""
    small, large = min(seconds), max(seconds)
    return float(np.log(seconds[large] / seconds[small]) / (2 * np.log(large / small)))


def recover_from_noise(
    config: Config, prior: Prior, starts: Tensor, sigma: float, seed: int
) -> Recovery:
    """What our settings return for a field that holds nothing but white noise."""
    generator = torch.Generator().manual_seed(seed)
    field = sigma * torch.randn(11 * config.size, 11 * config.size, generator=generator)
    return recover(field, config, generator, prior, sigma=sigma, starts=starts)
