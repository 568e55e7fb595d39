"""Solvers combine a prior with a model of the microscope; each has its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emlab.errors import InputError
from emlab.solvers.contract import Samples, Solver
from emlab.solvers.expectation_maximization import (
    EMConfig,
    EMResult,
    ExpectationStep,
    Statistics,
    approximate_em,
)
from emlab.solvers.flowdps import FlowDPSConfig, flowdps
from emlab.solvers.guided_phase import GuidedPhaseConfig, guided_phase
from emlab.solvers.one_step import (
    DiffuseBackConfig,
    IterationConfig,
    OneStepConfig,
    diffuse_back,
    iterate,
    one_step,
)
from emlab.solvers.plug_and_play import (
    HalfQuadraticConfig,
    PlugAndPlayConfig,
    RestoreConfig,
    half_quadratic,
    plug_and_play_flow,
    restore,
)
from emlab.solvers.sampling import DPSConfig, PosteriorConfig, dps, sample_posterior, sample_prior

__all__ = [
    "ONE_ESTIMATE",
    "SOLVERS",
    "EMConfig",
    "EMResult",
    "ExpectationStep",
    "PosteriorConfig",
    "Samples",
    "Solver",
    "Statistics",
    "approximate_em",
    "sample_posterior",
    "sample_prior",
    "solver_of",
]

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
