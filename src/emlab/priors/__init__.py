"""Specimen priors: what an image looks like before any measurement."""

from emlab.priors.base import EquivariantPrior, Prior
from emlab.priors.gaussian import GaussianMixturePrior, GaussianPrior
from emlab.priors.networks import EpsilonPrior, FlowPrior, VPPrior, load_prior

__all__ = [
    "EpsilonPrior",
    "EquivariantPrior",
    "FlowPrior",
    "GaussianMixturePrior",
    "GaussianPrior",
    "Prior",
    "VPPrior",
    "load_prior",
]
