"""Solvers combine a prior with a model of the microscope."""

from emlab.solvers.contract import Samples, Solver
from emlab.solvers.expectation_maximization import EMConfig, EMResult, approximate_em
from emlab.solvers.expectation_step import ExpectationStep, Statistics
from emlab.solvers.sampling import PosteriorConfig, sample_posterior, sample_prior
from emlab.solvers.table import ONE_ESTIMATE, SOLVERS, solver_of

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
