"""Which prior and which solver EM Generalist uses for each task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.settings import read_settings
from emlab.solvers.one_step import DiffuseBackConfig, OneStepConfig
from emlab.solvers.plug_and_play import HalfQuadraticConfig, PlugAndPlayConfig, RestoreConfig
from emlab.solvers.sampling import DPSConfig

TASKS = ("denoise", "denoise_coloured", "deblur", "upsample", "isotropic")


Solver = (
    HalfQuadraticConfig
    | RestoreConfig
    | PlugAndPlayConfig
    | DPSConfig
    | OneStepConfig
    | DiffuseBackConfig
)
_SOLVERS: Mapping[str, type] = {
    "half_quadratic": HalfQuadraticConfig,
    "restore": RestoreConfig,
    "plug_and_play": PlugAndPlayConfig,
    "dps": DPSConfig,
    "one_step": OneStepConfig,
    "diffuse_back": DiffuseBackConfig,
}


@dataclass(frozen=True)
class Config:
    """Which prior, which solver for each task, and how large images are cut.

    Attributes
    ----------
    prior : str
        Name of the weights.
    solvers : dict of str to Solver
        A solver's settings for each of `TASKS`.
    samples : int
        Samples that are averaged unless the caller asks for another number.
    tile, overlap, batch : int
        Patches of large images, see `TiledPrior`.
    """

    prior: str
    solvers: Mapping[str, Solver]
    samples: int = 1
    tile: int = 128
    overlap: int = 32
    batch: int = 16

    def __post_init__(self) -> None:
        check_fields(self)
        if missing := [task for task in TASKS if task not in self.solvers]:
            raise InputError(f"no solver is set for {', '.join(missing)}")
        if self.samples < 1 or self.batch < 1 or not 0 <= self.overlap < self.tile:
            raise InputError("restoring needs samples, batch >= 1 and 0 <= overlap < tile")


def load_config(name: str = "ours") -> Config:
    """Return ``[configs.NAME]`` of the method's settings: ``ours``, ``samples``,
    ``paper`` or ``paper_dps``.

    Raises
    ------
    InputError
        Unknown name or settings.
    """
    tables = read_settings("methods/generalist")["configs"]
    if name not in tables:
        raise InputError(f"unknown configuration {name!r}; choose one of {', '.join(tables)}")
    table = dict(tables[name])
    solvers = {task: _solver(table.pop(task)) for task in TASKS if task in table}
    return Config(solvers=solvers, **table)


def _solver(table: Mapping[str, Any]) -> Solver:
    arguments = dict(table)
    kind = arguments.pop("solver", None)
    if kind not in _SOLVERS:
        raise InputError(f"unknown solver {kind!r}; choose one of {', '.join(_SOLVERS)}")
    return _SOLVERS[kind](**arguments)
