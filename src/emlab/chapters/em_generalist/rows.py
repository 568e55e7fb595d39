"""The rows of the chapter's table: what each method does with a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emlab.chapters.em_generalist import peers as generalist_peers
from emlab.chapters.em_generalist.peers import Known, run_peer, tuned
from emlab.methods import generalist
from emlab.priors import Prior
from emlab.recipes.generalist_supervised import Restorer
from emlab.recipes.generalist_tasks import GREY_RANGE, REAL_PAIR, Task

Image = NDArray[np.float32]
LABELS = {
    "input": "measurement on the fine grid",
    **generalist_peers.LABELS,
    "supervised": "supervised U-Net",
    "ours": "ours",
    "paper": "paper's settings",
    "ours_blind": "ours, kernel unknown",
    "white": "ours, told white noise",
    "untrained": "ours, untrained network",
    "constant": "one grey level",
}


@dataclass(frozen=True)
class Case:
    """One measurement: what every method gets (and the truth, which only oracles may look at)."""

    task: Task
    known: Known
    truth: Image
    measurement: Image
    seed: int

    def generator(self) -> torch.Generator:
        """A fresh generator: every method sees the same random numbers."""
        return torch.Generator().manual_seed(self.seed)


Method = Callable[[Case], "Image | generalist.Found"]


def standard_methods(
    task: Task, supervised: Restorer | None = None, peers: Iterable[str] | None = None
) -> dict[str, Method]:
    """The identity, the tuned classical peers and, if given, the supervised network."""
    rows: dict[str, Method] = {"input": _rough}
    settings = tuned(task.name)
    for name in settings if peers is None else peers:
        rows[name] = partial(_peer_row, name, settings[name])
    if supervised is not None and task is not REAL_PAIR:
        rows["supervised"] = partial(_supervised_row, supervised)
    return rows


def ours_row(
    config: generalist.Config, prior: Prior | None = None, samples: int | None = None
) -> Method:
    """Our method; it is told the noise level of simulated measurements, as the peers are."""
    return partial(_ours, config, prior, samples)


def _rough(case: Case) -> Image:
    if case.task.kind == "isotropic":
        return np.repeat(case.measurement, case.task.factor, axis=0)
    fine = np.repeat(case.measurement, case.task.factor, axis=0)
    return np.repeat(fine, case.task.factor, axis=1)


def _peer_row(name: str, settings: Mapping, case: Case) -> Image:
    return run_peer(name, case.measurement, case.known, settings)


def _supervised_row(restorer: Restorer, case: Case) -> Image:
    return restorer.restore(case.task, torch.from_numpy(case.measurement)).numpy()


def _ours(
    config: generalist.Config, prior: Prior | None, samples: int | None, case: Case
) -> generalist.Found:
    task, generator = case.task, case.generator()
    told: dict[str, Any] = {"prior": prior, "samples": samples}
    if task is REAL_PAIR:
        return generalist.denoise(case.measurement, config, generator, coloured=True, **told)
    told["noise_sigma"] = task.noise * GREY_RANGE
    if task.kind == "denoise":
        return generalist.denoise(case.measurement, config, generator, **told)
    if task.kind == "deblur":
        kernel = task.kernel.numpy()
        return generalist.deblur(case.measurement, kernel, config, generator, **told)
    solve = generalist.upsample if task.kind == "upsample" else generalist.isotropic
    return solve(case.measurement, task.factor, config, generator, **told)
