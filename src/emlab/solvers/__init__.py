"""Solvers combine a prior with a model of the microscope; each has its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emlab.errors import InputError
from emlab.solvers import flowdps, guided_phase, one_step, plug_and_play, sampling
from emlab.solvers.contract import Samples, Solver
from emlab.solvers.expectation_maximization import (
    EMConfig,
    EMResult,
    ExpectationStep,
    Statistics,
    approximate_em,
    sample_images,
)
from emlab.solvers.sampling import PosteriorConfig, sample_posterior, sample_prior

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
    "sample_images",
    "sample_posterior",
    "sample_prior",
    "solver_of",
]

SOLVERS: Mapping[type, Solver] = {
    one_step.OneStepConfig: one_step.one_step,
    one_step.DiffuseBackConfig: one_step.diffuse_back,
    one_step.IterationConfig: one_step.iterate,
    plug_and_play.HalfQuadraticConfig: plug_and_play.half_quadratic,
    plug_and_play.RestoreConfig: plug_and_play.restore,
    plug_and_play.PlugAndPlayConfig: plug_and_play.plug_and_play_flow,
    sampling.DPSConfig: sampling.dps,
    PosteriorConfig: sample_posterior,
    guided_phase.GuidedPhaseConfig: guided_phase.guided_phase,
    flowdps.FlowDPSConfig: flowdps.flowdps,
}
# Solvers that return one estimate and draw no samples.
ONE_ESTIMATE = (
    one_step.OneStepConfig,
    one_step.IterationConfig,
    plug_and_play.HalfQuadraticConfig,
)


def solver_of(config: Any) -> Solver:
    """The solver of a configuration; an `InputError` for anything else."""
    if type(config) not in SOLVERS:
        known = ", ".join(kind.__name__ for kind in SOLVERS)
        raise InputError(f"{type(config).__name__} is no solver's configuration; take {known}")
    return SOLVERS[type(config)]
