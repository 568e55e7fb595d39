"""Which solver a configuration belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emlab.errors import InputError
from emlab.solvers.contract import Solver
from emlab.solvers.dps import DPSConfig, dps
from emlab.solvers.flowdps import FlowDPSConfig, flowdps
from emlab.solvers.guided_phase import GuidedPhaseConfig, guided_phase
from emlab.solvers.half_quadratic import HalfQuadraticConfig, half_quadratic
from emlab.solvers.one_step import DiffuseBackConfig, OneStepConfig, diffuse_back, one_step
from emlab.solvers.plug_and_play import (
    PlugAndPlayConfig,
    RestoreConfig,
    plug_and_play_flow,
    restore,
)
from emlab.solvers.sampling import PosteriorConfig, sample_posterior
from emlab.solvers.tweedie import IterationConfig, iterate

SOLVERS: Mapping[type, Solver] = {
    OneStepConfig: one_step,
    DiffuseBackConfig: diffuse_back,
    HalfQuadraticConfig: half_quadratic,
    RestoreConfig: restore,
    PlugAndPlayConfig: plug_and_play_flow,
    DPSConfig: dps,
    PosteriorConfig: sample_posterior,
    GuidedPhaseConfig: guided_phase,
    FlowDPSConfig: flowdps,
    IterationConfig: iterate,
}
# Solvers that return one estimate and draw no samples.
ONE_ESTIMATE = (OneStepConfig, HalfQuadraticConfig, IterationConfig)


def solver_of(config: Any) -> Solver:
    """The solver of a configuration; an `InputError` for anything else."""
    if type(config) not in SOLVERS:
        known = ", ".join(kind.__name__ for kind in SOLVERS)
        raise InputError(f"{type(config).__name__} is no solver's configuration; take {known}")
    return SOLVERS[type(config)]
