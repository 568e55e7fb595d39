"""Real tissue to measure on, or simulated tissue where there is none."""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from emlab import data
from emlab.bench import Report
from emlab.data.phantoms import neuropil
from emlab.errors import DataUnavailableError, InputError
from emlab.physics.noise_estimation import estimate_noise_sigma
from emlab.recipes.generalist import VALIDATION_PLANES

Grey = NDArray[np.float32]
PIXEL_NM = 10.0
BLOCK = (60, 96, 96)  # planes divide by 4, 6 and 10
_SETS = {"test": "flyem_sample2", "validation": "flyem_validation_train"}
_SEEDS = {"test": 0, "validation": 1}
# Corner of the test block in flyem_sample2, and of the validation block in its planes.
_CORNERS = {"test": (95, 77, 77), "validation": (0, 200, 200)}


@dataclass(frozen=True)
class Specimen:
    """Clean images of tissue.

    Attributes
    ----------
    grey : ndarray
        float32 in 0..255: crops ``(n, H, W)`` or a block ``(D, H, W)`` with cubic voxels.
    wanted : str
        Data set that the numbers are about.
    dataset : Dataset or None
        None for simulated tissue.
    """

    grey: Grey
    wanted: str
    dataset: data.Dataset | None

    def record(self, report: Report) -> None:
        """Tell a report what the numbers stand on."""
        if self.dataset is None:
            report.simulated(
                "neuropil phantom", "emlab.data.phantoms.neuropil", stands_in_for=self.wanted
            )
        else:
            report.data(self.dataset, wanted=self.wanted)


def crops(split: str = "test", count: int = 12, size: int = 96) -> Specimen:
    """Crops in as many planes spread over a volume: for results, or for choosing settings.

    Parameters
    ----------
    split : str
        ``"test"``: flyem_sample2, on which nothing is ever trained or tuned. ``"validation"``:
        planes 160 to 179 of flyem_validation_train, which no training patch touches.
    """
    volume, dataset = _volume(split)
    generator = np.random.default_rng(_SEEDS[split])
    if count < 1 or size < 16 or (volume is not None and size > min(volume.shape[1:])):
        raise InputError("crops need count >= 1 and a size from 16 pixels up to that of a plane")
    if volume is None:
        first = 1000 * (1 + _SEEDS[split])
        images = [neuropil((size, size), first + i) for i in range(count)]
        return Specimen(np.stack(images), _SETS[split], None)
    images = []
    for z in np.linspace(0, len(volume) - 1, count).round().astype(int):
        y, x = (int(generator.integers(side - size + 1)) for side in volume.shape[1:])
        images.append(volume[z, y : y + size, x : x + size])
    return Specimen(np.stack(images).astype(np.float32), _SETS[split], dataset)


def block(split: str = "test", shape: tuple[int, int, int] = BLOCK) -> Specimen:
    """A block of isotropic tissue; the validation volume has no more than 20 planes of it."""
    volume, dataset = _volume(split)
    if volume is None:
        return Specimen(neuropil(shape, 3000 + _SEEDS[split]), _SETS[split], None)
    corner = _CORNERS[split]
    if any(c + n > side for c, n, side in zip(corner, shape, volume.shape, strict=True)):
        raise InputError(f"a block of {shape} does not fit at {corner} into {volume.shape}")
    cut = volume[tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))]
    return Specimen(cut.astype(np.float32), _SETS[split], dataset)


def blocks(split: str, count: int, shape: tuple[int, int, int]) -> Specimen:
    """Blocks of isotropic tissue ``(count, D, H, W)`` all over a volume; see `crops`."""
    volume, dataset = _volume(split)
    if volume is None:
        grey = np.stack([neuropil(shape, 4000 + 10 * _SEEDS[split] + i) for i in range(count)])
        return Specimen(grey, _SETS[split], None)
    room = np.subtract(volume.shape, shape)
    if count < 1 or room.min() < 0:
        raise InputError(f"blocks of {shape} do not fit into a volume of {volume.shape}")
    generator = np.random.default_rng(_SEEDS[split])
    starts = generator.integers(room + 1, size=(count, 3))
    starts[:, 0] = np.linspace(0, room[0], count).round()
    grey = np.stack([volume[tuple(map(slice, at, at + shape))] for at in starts])
    return Specimen(grey.astype(np.float32), _SETS[split], dataset)


@lru_cache(maxsize=1)
def own_noise() -> float:
    """Noise of the truth itself, grey levels: as estimated from validation planes, if white."""
    planes = crops("validation", 4, 192).grey
    return float(np.mean([estimate_noise_sigma(plane) for plane in planes]))


def neuron_labels(shape: tuple[int, int, int]) -> NDArray | None:
    """Neuron of each voxel of the test block, or None where the labels cannot be had.

    Raises
    ------
    InputError
        h5py is not installed.
    """
    try:
        path = data.path("flyem_sample2_labels")
    except DataUnavailableError:
        return None
    try:
        h5py = import_module("h5py")
    except ImportError:
        raise InputError("h5py is not installed; pip install 'emlab-book[volumes]'") from None
    place = tuple(slice(c, c + n) for c, n in zip(_CORNERS["test"], shape, strict=True))
    with h5py.File(io.BytesIO(gzip.decompress(path.read_bytes()))) as file:
        pieces, body = file["stack"][place], file["transforms"][:]
    order = np.argsort(body[:, 0])
    return body[order, 1][np.searchsorted(body[order, 0], pieces)]


@dataclass(frozen=True)
class RealPair:
    """Two images of one place, ``(H, W)`` float32 in 0..255: a quick, noisy scan and a slow one."""

    noisy: Grey
    clean: Grey
    dataset: data.Dataset | None


def real_pair(size: int | None = None) -> RealPair | None:
    """The SEM pair of mouse brain (its middle `size` pixels), or None where it is not to be had."""
    try:
        dataset = data.load("brain_sem_pair")
    except DataUnavailableError:
        return None
    images = [dataset[key].astype(np.float32) for key in ("noisy", "clean")]
    if size is not None:
        first = [(side - size) // 2 for side in images[0].shape]
        if size < 16 or min(first) < 0:
            raise InputError(f"the pair has {images[0].shape} pixels; ask for 16 to that many")
        images = [image[first[0] :, first[1] :][:size, :size] for image in images]
    return RealPair(images[0], images[1], dataset)


def _volume(split: str) -> tuple[NDArray[np.uint8] | None, data.Dataset | None]:
    if split not in _SETS:
        raise InputError(f"unknown split {split!r}; choose 'test' or 'validation'")
    try:
        dataset = data.load(_SETS[split])
    except DataUnavailableError:
        return None, None
    volume = dataset["volume"]
    return (volume[VALIDATION_PLANES] if split == "validation" else volume), dataset
