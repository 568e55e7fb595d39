"""The smaller experiments of the multi-target detection chapter."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.fft import irfft2, rfft2
from torch.nn.functional import pad

from emlab.chapters.mtd.study import Method, Task
from emlab.methods.mtd import Config, Recovery, align_to_prior, load_config, recover
from emlab.physics.mtd import Measurement, Rotations, cut_patches
from emlab.priors.base import Prior
from emlab.runtime import Stopwatch
from emlab.solvers.expectation_maximization import ExpectationStep


def detect_align_average(measurement: Measurement, rounds: int = 8) -> Tensor:
    """The classical way: pick copies without a template, align them to each other, average.

    It is told how many copies there are. Picks are the brightest places, an image apart, of the
    field smoothed by a quarter of the image's size (the best of five detectors on validation
    digits). Every pick is once the first reference; each round turns and shifts all picks to where
    they correlate best with the reference and averages them. Of the averages ``(L, L)`` the one
    with the most energy is returned: copies that are aligned add up, others cancel.
    """
    operator = measurement.operator
    size = operator.rotations.size
    margin = size // 4
    picks = _pick(measurement.field.cpu(), size, len(operator.turns), margin)
    turned = Rotations(operator.rotations.count, picks.shape[-1]).A(picks)
    spectra = rfft2(turned).conj()
    averages = []
    for reference in picks:
        states: list[int] = []
        for _ in range(rounds):
            before, states = states, _align(spectra, reference, margin)
            if states == before:  # and so it would stay
                break
            reference = _average(turned, states)
        averages.append(reference[margin:-margin, margin:-margin])
    return max(averages, key=lambda image: float(image.square().sum()))


def classical_rows(prior: Prior) -> dict[str, Method]:
    """`detect_align_average` as rows of the study: as it is, and denoised as the oracle is."""

    averages: dict[int, Tensor] = {}

    def average(task: Task) -> Tensor:
        if task.seed not in averages:
            averages[task.seed] = detect_align_average(task.measurement).to(task.truth)
        return averages[task.seed]

    def denoised(task: Task) -> Tensor:
        ours = load_config("ours_mnist")
        assert ours.centre is not None
        upright = align_to_prior(
            average(task), prior, ours.centre, task.generator(), upright=ours.upright
        )
        copies = len(task.measurement.operator.turns)
        return prior.denoise(upright, task.measurement.sigma / copies**0.5)

    return {"detect_align_average": average, "detect_align_denoise": denoised}


def _align(spectra: Tensor, reference: Tensor, margin: int) -> list[int]:
    """Turn and shift of each pick at which it is most like the reference ``(W, W)``."""
    window = len(reference)
    likeness = irfft2(rfft2(reference) * spectra, (window, window))
    likeness[..., margin + 1 : -margin, :] = -torch.inf  # cyclic shifts beyond the margin
    likeness[..., :, margin + 1 : -margin] = -torch.inf
    return likeness.flatten(1).argmax(1).tolist()


def _average(turned: Tensor, states: list[int]) -> Tensor:
    """Mean of picks ``(p, K, W, W)``, each turned and shifted as told."""
    window, placed = turned.shape[-1], []
    for pick, state in zip(turned, states, strict=True):
        turn, place = divmod(state, window**2)
        placed.append(pick[turn].roll(divmod(place, window), (0, 1)))
    return torch.stack(placed).mean(0)


def _pick(field: Tensor, size: int, count: int, margin: int) -> Tensor:
    """The `count` brightest places, an image apart: ``(count, L + 2 margin, L + 2 margin)``."""
    smooth = torch.from_numpy(gaussian_filter(field.numpy(), size / 4, mode="constant"))
    score = smooth[size // 2 : 1 - (size + 1) // 2, size // 2 : 1 - (size + 1) // 2].clone()
    padded, window = pad(field, (margin,) * 4), size + 2 * margin
    crops = []
    for _ in range(count):
        row, column = divmod(int(score.argmax()), score.shape[1])
        crops.append(padded[row : row + window, column : column + window])
        score[max(0, row - size) : row + size, max(0, column - size) : column + size] = -torch.inf
    return torch.stack(crops)


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
