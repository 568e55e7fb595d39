"""Specimen priors: what an image looks like before any measurement."""

from emlab.priors.base import EquivariantPrior, Prior
from emlab.priors.depth import DepthPrior
from emlab.priors.gaussian import GaussianMixturePrior, GaussianPrior
from emlab.priors.networks import EpsilonPrior, FlowPrior, VPPrior, load_prior

__all__ = [
    "DepthPrior",
    "EpsilonPrior",
    "EquivariantPrior",
    "FlowPrior",
    "GaussianMixturePrior",
    "GaussianPrior",
    "Prior",
    "VPPrior",
    "load_prior",
]
