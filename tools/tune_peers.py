"""Choose the settings of the classical peers on validation images and write them down.

``python -m tools.tune_peers`` takes about ten minutes on one core and needs the data mirror; with
names of tasks it repeats these and leaves the rest as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from emlab import metrics
from emlab.bench.tissue import block, crops, real_pair
from emlab.chapters.em_generalist import study
from emlab.chapters.em_generalist.study import Grey, Known, run_peer
from emlab.errors import InputError
from emlab.physics.noise import ColouredGaussianNoise
from emlab.recipes.generalist_tasks import (
    GREY_RANGE,
    REAL_PAIR,
    TASKS,
    Defocus,
    Task,
    defocus_tasks,
)
from emlab.runtime import atomic_path
from emlab.settings import read_settings

TARGET = Path(study.__file__).with_name("peers.toml")
HEAD = """\
# Settings of the classical peers by task, the best of the grids in tools/tune_peers.py on 12
# validation crops (isotropic tasks: one validation block).

"""


def _grid(**choices: Iterable[Any]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


_WIDTHS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0, 2.2, 2.4)
TUNED = {task.name: task for task in (*TASKS.values(), *defocus_tasks(), REAL_PAIR)}
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


def main() -> None:
    """Run the search, or a part of it."""
    table = read_settings(study.PEERS) | tune(sys.argv[1:] or TUNED, progress=print)
    with atomic_path(TARGET) as path:
        path.write_text(HEAD + tomli_w.dumps(table), encoding="utf-8")


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


def _validation(name: str, count: int) -> tuple[list[Grey], list[Grey], Known]:
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
    return truths, measured, Known(None, spectrum.sigma, spectrum)


if __name__ == "__main__":
    main()
