"""The trained competitor: one U-Net taught on pairs, the part that EMDiffuse plays in the paper.

It sees every degradation of the table in training. A task that is not in the table (another
blur, another noise) it has never seen: that is what a prior with an operator does not need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emlab import data, models
from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.recipes.generalist import (
    TISSUE,
    TRAINING_PLANES,
    TRAINING_SECTIONS,
    UNIT_RANGE,
    VALIDATION_PLANES,
)
from emlab.recipes.generalist_tasks import TASKS, Task
from emlab.recipes.lesson import Lesson, one_of_eight

NAME = "generalist_supervised"


@dataclass(frozen=True)
class Restorer:
    """A residual network that takes a degraded image, on the fine grid, and the task's number.

    With :math:`u` the measurement brought to the fine grid and :math:`s_k` the typical error of
    :math:`u` in task k, the restored image is :math:`u + s_k f(u, k)`.
    """

    #: f; takes ``(n, 1, H, W)`` and a scalar per image, ``(k + 1/2) / K`` of K tasks
    network: nn.Module
    scales: Sequence[float]  #: :math:`s_k` in units of the grey range, one per task of `TASKS`

    def __post_init__(self) -> None:
        if len(self.scales) != len(TASKS) or min(self.scales) <= 0:
            raise InputError(f"the supervised network needs {len(TASKS)} positive scales")

    def correction(self, rough: Tensor, number: Tensor) -> Tensor:
        """f for images ``(n, H, W)`` in [-1, 1] and task numbers ``(n,)``."""
        condition = (number.to(rough) + 0.5) / len(TASKS)
        return self.network(rough[:, None], condition)[:, 0]

    def restore(self, which: Task, measurement: Tensor, grey_range: float = 255.0) -> Tensor:
        """Restore images ``(..., h, w)`` or, for an axial task, volumes ``(d, H, W)``.

        A volume is restored in all its xz and all its yz sections, and the two are averaged.

        Parameters
        ----------
        which : Task
            One of `TASKS`.
        grey_range : float
            Width of the grey levels, which begin at 0.

        Raises
        ------
        InputError
            A task that the network was not trained for.
        """
        if TASKS.get(which.name) != which:
            raise InputError(
                f"the supervised network was not trained for {which.label!r}; it knows "
                f"{', '.join(TASKS)}"
            )
        unit = measurement * (UNIT_RANGE / grey_range) - UNIT_RANGE / 2
        if which.kind != "isotropic":
            fine = self._sections(which, unit)
        else:
            of_axes = [self._sections(which, unit.movedim(axis, 0)) for axis in (1, 2)]
            fine = (of_axes[0].movedim(0, 1) + of_axes[1].movedim(0, 2)) / 2
        return (fine + UNIT_RANGE / 2) * (grey_range / UNIT_RANGE)

    def _sections(self, which: Task, unit: Tensor) -> Tensor:
        rough = which.back_to_grid(unit)
        flat = rough.reshape(-1, *rough.shape[-2:])
        number = list(TASKS).index(which.name)
        with torch.no_grad():
            parts = [
                self.correction(part, torch.full((len(part),), number, device=flat.device))
                for part in flat.split(16)
            ]
        return rough + self.scales[number] * UNIT_RANGE * torch.cat(parts).reshape(rough.shape)


def load_restorer(device: torch.device | str = "cpu") -> Restorer:
    """The trained network."""
    network, card = models.load(NAME, device)
    return Restorer(network, tuple(card.objective["scales"]))


def paired_loss(
    model: nn.Module, clean: Tensor, generator: torch.Generator, scales: Sequence[float]
) -> Tensor:
    r"""Squared error in units of each task's typical one; every image of the batch is degraded.

    .. math:: E\,\| f(u, k) - (x - u) / s_k \|^2 .

    Parameters
    ----------
    clean : Tensor
        ``(n, H, W)`` in about [-1, 1]; H and W divide by every factor of the table (60 does).
    """
    restorer = Restorer(model, scales)
    number = torch.randint(len(TASKS), (len(clean),), generator=generator)
    rough, scale = torch.empty_like(clean), torch.tensor(scales)[number] * UNIT_RANGE
    with torch.autocast(clean.device.type, enabled=False):  # pairs are made in full precision
        for k, which in enumerate(TASKS.values()):
            if (chosen := number == k).any():
                measured = which.measure_section(clean[chosen], generator, UNIT_RANGE)
                rough[chosen] = which.back_to_grid(measured)
    wanted = (clean - rough) / scale.to(clean)[:, None, None]
    return (restorer.correction(rough, number.to(clean.device)) - wanted).square().mean()


@dataclass(frozen=True)
class Material:
    """How many square patches of which size a network sees, drawn once."""

    patch: int = 64  #: side in pixels
    patches: int = 40_000  #: for training, nine tenths of them from the isotropic volume
    validation: int = 96

    def __post_init__(self) -> None:
        check_fields(self)
        if self.patch < 16 or self.patches < 10 or self.validation < 1:
            raise InputError("training material needs patch >= 16, patches >= 10, validation >= 1")


def training_patches(material: Material) -> NDArray[np.uint8]:
    """Patches ``(n, patch, patch)`` u8 of all three axes of the volume and of the sections."""
    generator = np.random.default_rng(0)
    volume = data.load("flyem_validation_train").arrays["volume"][TRAINING_PLANES]
    sections = data.load("isbi2012").arrays["volume"][TRAINING_SECTIONS]
    of_sections = material.patches // 10
    count = material.patches - of_sections
    isotropic = [
        _cut(np.moveaxis(volume, axis, 0), material.patch, (count + 2 - axis) // 3, generator)
        for axis in range(3)
    ]
    return np.concatenate([*isotropic, _cut(sections, material.patch, of_sections, generator)])


def validation_patches(material: Material) -> NDArray[np.uint8]:
    """Patches ``(n, patch, patch)`` u8 from planes of the volume that training does not touch."""
    volume = data.load("flyem_validation_train").arrays["volume"][VALIDATION_PLANES]
    return _cut(volume, material.patch, material.validation, np.random.default_rng(1))


def jitter(batch: Tensor, generator: torch.Generator) -> Tensor:
    """One of the eight flips and turns, and for each image a contrast and a brightness.

    u8 patches in, float32 in about [-1, 1] out: ``gain * x + offset`` with a gain of .7 to 1.3 and
    an offset of -.2 to .2.
    """
    images = one_of_eight(batch.float() / 127.5 - 1, generator)
    gain, offset = torch.rand(2, len(images), 1, 1, generator=generator)
    return (0.7 + 0.6 * gain) * images + 0.4 * offset - 0.2


def prepare(recipe: dict, table: dict) -> Lesson:
    """The supervised network on clean patches of the tissue that the prior is trained on."""
    material, scales = Material(**table), recipe["objective"]["scales"]
    clean = torch.from_numpy(validation_patches(material)).float() / 127.5 - 1

    def evaluate(model: nn.Module, device: torch.device) -> dict[str, float]:
        return _psnr_by_task(Restorer(model, scales), clean.to(device))

    images, loss = training_patches(material), partial(paired_loss, scales=scales)
    return Lesson(torch.from_numpy(images), loss, evaluate, *TISSUE, jitter, half=True)


def _psnr_by_task(restorer: Restorer, clean: Tensor) -> dict[str, float]:
    """PSNR in dB by task, axial tasks in sections whose second axis is coarse."""
    generator, numbers = torch.Generator().manual_seed(0), {}
    for k, which in enumerate(TASKS.values()):
        rough = which.back_to_grid(which.measure_section(clean, generator, UNIT_RANGE))
        number = torch.full((len(rough),), k, device=clean.device)
        fine = rough + restorer.scales[k] * UNIT_RANGE * restorer.correction(rough, number)
        error = (fine - clean).square().mean((1, 2))
        numbers[f"psnr_{which.name}"] = (10 * torch.log10(UNIT_RANGE**2 / error)).mean().item()
    return numbers


def _cut(
    stack: NDArray[np.uint8], patch: int, count: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    planes, height, width = stack.shape
    if min(height, width) < patch:
        raise InputError(f"patches of {patch} do not fit into planes of {height} x {width}")
    z = generator.integers(planes, size=count)
    y = generator.integers(height - patch + 1, size=count)
    x = generator.integers(width - patch + 1, size=count)
    window = np.lib.stride_tricks.sliding_window_view(stack, (patch, patch), axis=(1, 2))
    return window[z, y, x]
