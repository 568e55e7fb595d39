"""Solvers combine a prior with a model of the microscope."""

from emlab.solvers.expectation_maximization import EMConfig, EMResult, approximate_em
from emlab.solvers.expectation_step import ExpectationStep, Statistics
from emlab.solvers.sampling import sample_posterior, sample_prior

__all__ = [
    "EMConfig",
    "EMResult",
    "ExpectationStep",
    "Statistics",
    "approximate_em",
    "sample_posterior",
    "sample_prior",
]
