"""Choose the settings of the classical peers on validation images and write them down.

``python -m tools.tune_peers`` takes about half an hour on one core and needs the data mirror; with
names of tasks, or ``TASK.PEER``, it repeats these and leaves the rest as it is.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from emlab import data, metrics
from emlab.bench.tissue import block, blocks, crops, real_pair
from emlab.chapters.em_generalist import study
from emlab.chapters.em_generalist.study import Grey, Known, run_peer
from emlab.errors import InputError
from emlab.physics.noise import ColouredGaussianNoise
from emlab.recipes.generalist import TRAINING_PLANES
from emlab.recipes.generalist_tasks import (
    GREY_RANGE,
    MISSING,
    OPEN,
    REAL_PAIR,
    TASKS,
    VOLUMES,
    Task,
    defocus_tasks,
)
from emlab.settings import read_settings
from emlab.solvers import classical
from tools.tuning import Grids, Settings, grid, tune, write

TARGET = Path(study.__file__).with_name("peers.toml")
HEAD = """\
# Settings of the classical peers by task, the best of the grids in tools/tune_peers.py on 12
# validation crops (isotropic tasks: one validation block; volumes: two). A spectrum is that of
# training tissue.
"""
_WIDTHS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4, 3.0, 4.0, 5.0, 7.0)
TUNED = {
    task.name: task
    for task in (*TASKS.values(), *VOLUMES, *OPEN, MISSING, *defocus_tasks(), REAL_PAIR)
}
_INTERPOLATION: Grids = {"cubic": [{}], "quintic": [{}], "linear": [{}]}
GRIDS: dict[str, Grids] = {
    "denoise": {
        "gaussian": grid(width=_WIDTHS),
        "tv": grid(weight=(0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.6, 1.8)),
        "wavelet": grid(
            name=("haar", "db2", "sym4"), strength=(0.9, 1.0, 1.1, 1.2), levels=(2, 3, 4)
        ),
        "nlm": grid(strength=(0.4, 0.5, 0.6, 0.7, 0.8, 1.0), patch=(3, 5, 7, 9)),
        "bm3d": grid(scale=(0.95, 1.0, 1.05, 1.1, 1.15), profile=("np",))
        + grid(scale=(1.0, 1.1), profile=("high", "vn")),
        "linear": [{}],
    },
    "volume": {
        "gaussian": grid(width=_WIDTHS),
        "nlm": grid(strength=(0.4, 0.6, 0.8), patch=(3, 5), distance=(5,)),
        "bm4d": grid(scale=(1.0, 1.1)),
        "linear": [{}],
    },
    "deblur": {
        "wiener": grid(balance=(0.5, 1.0, 2.0, 3.0, 5.0, 8.0), power=(2.0, 2.5, 3.0, 3.5, 4.0)),
        "richardson_lucy": grid(iterations=(5, 8, 10, 12, 15, 20)),
        "bm3d_lucy": grid(scale=(0.9, 1.0, 1.1), profile=("np",), iterations=(10, 20, 30)),
        "linear": [{}],
    },
    "defocus": {
        "wiener": grid(balance=(1, 2, 3, 5, 8, 13, 20), power=(3, 3.5, 4, 4.5, 5)),
        "richardson_lucy": grid(iterations=(1, 2, 3, 4, 5, 8, 10, 12, 15, 20, 30)),
    },
    "upsample": _INTERPOLATION,
    "isotropic": _INTERPOLATION,
    REAL_PAIR.name: {
        "gaussian": grid(width=_WIDTHS),
        "bm3d": grid(scale=(1.2, 1.4, 1.6, 1.8, 2.0), profile=("np",)),
        "bm3d_coloured": grid(scale=(0.7, 0.8, 0.9, 1.0), profile=("np",)),
    },
}


def main() -> None:
    """Run the search, or a part of it."""
    peers = read_settings(study.PEERS)["peers"]
    for chosen in sys.argv[1:] or TUNED:
        name, _, peer = chosen.partition(".")
        peers[name] = (peers[name] if peer else {}) | search(name, peer)
        write(TARGET, HEAD, {"peers": peers})


def search(name: str, peer: str = "", count: int = 12) -> dict[str, Settings]:
    """The best settings of a task's peers (or one) on validation crops, and the PSNR in dB."""
    truths, measurements, known = _validation(name, count)
    pairs = list(zip(measurements, truths, strict=True))

    def quality(which: str, settings: Settings) -> float:
        images = [run_peer(which, measured, known, settings) for measured, _ in pairs]
        scores = [metrics.psnr(i, t, GREY_RANGE) for i, (_, t) in zip(images, pairs, strict=True)]
        return float(np.mean(scores))

    print(name)
    grids = _grids(TUNED[name])
    if "linear" in grids:
        grids = {**grids, "linear": [{"spectrum": _spectrum(truths[0].ndim)}]}
    chosen = {peer: grids[peer]} if peer else grids
    return tune(chosen, quality, "validation_psnr")


def _grids(task: Task) -> Grids:
    if task is REAL_PAIR:
        return GRIDS[task.name]
    if task in VOLUMES:
        return GRIDS["volume"]
    return GRIDS["defocus" if task.name.startswith("defocus") else task.kind]


@lru_cache(maxsize=2)
def _spectrum(dimensions: int) -> list[float]:
    """Power spectrum of training tissue, see `classical.fit_spectrum`."""
    volume = data.load("flyem_validation_train").arrays["volume"][TRAINING_PLANES]
    shape, generator = (1, 96, 96) if dimensions == 2 else (32, 64, 64), np.random.default_rng(2)
    cuts = []
    for _ in range(64):
        corner = generator.integers(np.subtract(volume.shape, shape) + 1)
        cuts.append(volume[tuple(slice(c, c + n) for c, n in zip(corner, shape, strict=True))])
    tissue = np.stack(cuts) / GREY_RANGE
    found = classical.fit_spectrum(tissue[:, 0] if dimensions == 2 else tissue)
    return [round(value, 4) for value in found]


def _validation(name: str, count: int) -> tuple[list[Grey], list[Grey], Known]:
    """Clean images, their measurements, and what the peers may know."""
    generator = torch.Generator().manual_seed(11)
    if name == REAL_PAIR.name:
        return _validation_real(count, generator)
    task = TUNED[name]
    if task.kind == "isotropic":
        planes = 20 // task.factor * task.factor
        truths = [block("validation", (planes, 96, 96)).grey]
    elif task in VOLUMES:
        truths = list(blocks("validation", 2, (20, 64, 64)).grey)
    else:
        truths = list(crops("validation", count).grey)
    measured = [task.measure(torch.from_numpy(truth), generator).numpy() for truth in truths]
    return truths, measured, Known(task, task.noise)


def _validation_real(
    count: int, generator: torch.Generator
) -> tuple[list[Grey], list[Grey], Known]:
    """Validation crops with the noise of the real image, scaled with the tissue's contrast."""
    pair = real_pair()
    if pair is None:
        raise InputError("tuning for the real pair needs brain_sem_pair; set EMLAB_MIRROR")
    own = Known.of_real(pair.noisy)
    truths = list(crops("validation", count).grey)
    contrast = (np.var(pair.noisy) / GREY_RANGE**2 - own.sigma**2) ** 0.5
    ratio = float(np.mean([truth.std() for truth in truths]) / GREY_RANGE / contrast)
    assert own.spectrum is not None
    spectrum = own.spectrum.scaled(ratio)
    noise = ColouredGaussianNoise(spectrum.scaled(GREY_RANGE))
    measured = [noise.sample(torch.from_numpy(truth), generator).numpy() for truth in truths]
    return truths, measured, Known(REAL_PAIR, spectrum.sigma, spectrum)


if __name__ == "__main__":
    main()
