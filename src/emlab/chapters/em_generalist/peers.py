"""The classical peers with settings chosen on validation images, never on the test volume.

``python -m tools.tune_peers`` repeats the search and rewrites ``peers.toml``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emlab import metrics
from emlab.bench.tissue import block, crops, real_pair
from emlab.errors import InputError
from emlab.physics.noise import ColouredGaussianNoise
from emlab.physics.noise_estimation import NoiseSpectrum, estimate_noise_spectrum
from emlab.recipes.generalist_tasks import (
    GREY_RANGE,
    REAL_PAIR,
    TASKS,
    Defocus,
    Task,
    defocus_tasks,
)
from emlab.settings import read_settings
from emlab.solvers import classical

Image = NDArray[np.float32]
Settings = Mapping[str, Any]
LABELS = {
    "gaussian": "Gaussian smoothing",
    "tv": "total variation",
    "wavelet": "wavelet shrinkage",
    "nlm": "non-local means",
    "bm3d": "BM3D",
    "bm3d_coloured": "BM3D, coloured noise",
    "wiener": "Wiener",
    "richardson_lucy": "Richardson-Lucy",
    "bm3d_lucy": "BM3D, then Richardson-Lucy",
    "cubic": "cubic interpolation",
    "quintic": "quintic interpolation",
}


@dataclass(frozen=True)
class Known:
    """What a peer is told of the instrument.

    Attributes
    ----------
    task : Task or None
        None for a real image.
    sigma : float
        Noise level in units of the grey range.
    spectrum : NoiseSpectrum or None
        Power spectrum of coloured noise, in units of the grey range squared.
    """

    task: Task | None
    sigma: float
    spectrum: NoiseSpectrum | None = None

    @property
    def kernel(self) -> NDArray[np.float32]:
        """The blur."""
        if self.task is None or self.task.kind != "deblur":
            raise InputError("only a deblurring task has a kernel")
        return self.task.kernel.numpy()


Peer = Callable[[Image, Known, Settings], Image]


def _bm3d(y: Image, known: Known, s: Settings) -> Image:
    return classical.bm3d(y, s["scale"] * known.sigma, s["profile"])


def _bm3d_coloured(y: Image, known: Known, s: Settings) -> Image:
    if known.spectrum is None:
        raise InputError("BM3D for coloured noise needs the spectrum of the noise")
    half = known.spectrum(y.shape).numpy()
    whole = np.empty(y.shape)
    whole[:, : half.shape[1]] = half
    mirrored = np.arange(1, (y.shape[1] + 1) // 2)
    whole[:, -mirrored] = half[-np.arange(y.shape[0])][:, mirrored]
    return classical.bm3d(y, s["scale"] ** 2 * y.size * whole, s["profile"])


def _bm3d_lucy(y: Image, known: Known, s: Settings) -> Image:
    return classical.richardson_lucy(_bm3d(y, known, s), known.kernel, s["iterations"])


def _interpolate(y: Image, known: Known, order: int) -> Image:
    assert known.task is not None
    if known.task.kind == "isotropic":
        return classical.cubic_axial(y, known.task.factor, order=order)
    return classical.cubic_upsample(y, known.task.factor, order=order)


_PEERS: dict[str, Peer] = {
    "gaussian": lambda y, _, s: classical.gaussian(y, s["width"]),
    "tv": lambda y, known, s: classical.tv(y, s["weight"] * known.sigma),
    "wavelet": lambda y, known, s: classical.wavelet(y, known.sigma, **s),
    "nlm": lambda y, known, s: classical.nlm(y, known.sigma, **s),
    "bm3d": _bm3d,
    "bm3d_coloured": _bm3d_coloured,
    "wiener": lambda y, known, s: classical.wiener_deconvolve(y, known.kernel, **s),
    "richardson_lucy": lambda y, known, s: classical.richardson_lucy(y, known.kernel, **s),
    "bm3d_lucy": _bm3d_lucy,
    "cubic": lambda y, known, _: _interpolate(y, known, 3),
    "quintic": lambda y, known, _: _interpolate(y, known, 5),
}


def _grid(**choices: Iterable[Any]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


_WIDTHS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4)
TUNED = {**TASKS, **{task.name: task for task in defocus_tasks()}, REAL_PAIR.name: REAL_PAIR}
_INTERPOLATION: dict[str, list[dict[str, Any]]] = {"cubic": [{}], "quintic": [{}]}
GRIDS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "denoise": {
        "gaussian": _grid(width=_WIDTHS),
        "tv": _grid(weight=(0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.6, 1.8)),
        "wavelet": _grid(
            name=("haar", "db2", "sym4"), strength=(0.9, 1.0, 1.1, 1.2), levels=(2, 3, 4)
        ),
        "nlm": _grid(strength=(0.4, 0.5, 0.6, 0.7, 0.8, 1.0), patch=(3, 5, 7, 9)),
        "bm3d": _grid(scale=(0.95, 1.0, 1.05, 1.1, 1.15), profile=("np",))
        + _grid(scale=(1.0, 1.1), profile=("high", "vn")),
    },
    "deblur": {
        "wiener": _grid(balance=(0.5, 1.0, 2.0, 3.0, 5.0, 8.0), power=(2.0, 2.5, 3.0, 3.5, 4.0)),
        "richardson_lucy": _grid(iterations=(5, 8, 10, 12, 15, 20)),
        "bm3d_lucy": _grid(scale=(0.9, 1.0, 1.1), profile=("np",), iterations=(10, 20, 30)),
    },
    "defocus": {
        "wiener": _grid(balance=(1, 2, 3, 5, 8, 13, 20), power=(3, 3.5, 4, 4.5, 5)),
        "richardson_lucy": _grid(iterations=(1, 2, 3, 4, 5, 8, 10, 12, 15, 20, 30)),
    },
    "upsample": _INTERPOLATION,
    "isotropic": _INTERPOLATION,
    REAL_PAIR.name: {
        "gaussian": _grid(width=_WIDTHS),
        "bm3d": _grid(scale=(1.2, 1.4, 1.6, 1.8, 2.0), profile=("np",)),
        "bm3d_coloured": _grid(scale=(0.7, 0.8, 0.9, 1.0), profile=("np",)),
    },
}


def run_peer(name: str, measurement: NDArray, known: Known, settings: Settings) -> Image:
    """Run a peer on grey levels 0..255 ``(H, W)``, or ``(D, H, W)`` of an axial task."""
    unit = (measurement / GREY_RANGE).astype(np.float32)
    return _PEERS[name](unit, known, settings) * np.float32(GREY_RANGE)


def known_of(task: Task) -> Known:
    """What the peers are told in a task of the table: everything but the specimen."""
    return Known(task, task.noise)


def known_of_real(noisy: NDArray) -> Known:
    """What the noisy image, grey levels 0..255, tells about its own noise."""
    spectrum = estimate_noise_spectrum(np.asarray(noisy, np.float32) / GREY_RANGE)
    return Known(None, spectrum.sigma, spectrum)


def tuned(task: str) -> dict[str, dict[str, Any]]:
    """Settings by peer for a task (or ``"real_pair"``), as the search left them."""
    table = read_settings("chapters/em_generalist/peers")
    if task not in table:
        raise InputError(f"no peers are tuned for {task!r}; there are: {', '.join(table)}")
    return {
        peer: {key: value for key, value in entry.items() if key != "validation_psnr"}
        for peer, entry in table[task].items()
    }


def best_peer(task: str) -> str:
    """The peer with the highest PSNR on validation images."""
    table = read_settings("chapters/em_generalist/peers")[task]
    return max(table, key=lambda peer: table[peer]["validation_psnr"])


def tune(
    names: Iterable[str] = tuple(TUNED),
    count: int = 12,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Search every grid on validation crops: ``table[task][peer]`` with the PSNR reached in dB."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names:
        truths, measurements, known = _validation(name, count)
        table[name] = {}
        for peer, grid in _grids(TUNED[name]).items():
            scores = [
                np.mean(
                    [
                        metrics.psnr(run_peer(peer, y, known, settings), truth, GREY_RANGE)
                        for y, truth in zip(measurements, truths, strict=True)
                    ]
                )
                for settings in grid
            ]
            best = int(np.argmax(scores))
            table[name][peer] = {**grid[best], "validation_psnr": round(float(scores[best]), 3)}
            progress(f"{name}: {peer} {table[name][peer]}")
    return table


def _grids(task: Task) -> dict[str, list[dict[str, Any]]]:
    if task is REAL_PAIR:
        return GRIDS[task.name]
    return GRIDS["defocus" if isinstance(task, Defocus) else task.kind]


def _validation(name: str, count: int) -> tuple[list[Image], list[Image], Known]:
    """Clean images, their measurements, and what the peers may know."""
    generator = torch.Generator().manual_seed(11)
    if name == REAL_PAIR.name:
        return _validation_real(count, generator)
    task = TUNED[name]
    if task.kind == "isotropic":
        planes = 20 // task.factor * task.factor
        truths = [block("validation", (planes, 96, 96)).grey]
    else:
        truths = list(crops("validation", count).grey)
    measured = [task.measure(torch.from_numpy(truth), generator).numpy() for truth in truths]
    return truths, measured, known_of(task)


def _validation_real(
    count: int, generator: torch.Generator
) -> tuple[list[Image], list[Image], Known]:
    """Validation crops with the noise of the real image, scaled with the tissue's contrast."""
    pair = real_pair()
    if pair is None:
        raise InputError("tuning for the real pair needs brain_sem_pair; set EMLAB_MIRROR")
    own = known_of_real(pair.noisy)
    truths = list(crops("validation", count).grey)
    contrast = (np.var(pair.noisy) / GREY_RANGE**2 - own.sigma**2) ** 0.5
    ratio = float(np.mean([truth.std() for truth in truths]) / GREY_RANGE / contrast)
    assert own.spectrum is not None
    spectrum = own.spectrum.scaled(ratio)
    noise = ColouredGaussianNoise(spectrum.scaled(GREY_RANGE))
    measured = [noise.sample(torch.from_numpy(truth), generator).numpy() for truth in truths]
    return truths, measured, Known(None, spectrum.sigma, spectrum)
