"""Networks only: tensors in, tensors out. What they predict is the business of `emlab.priors`."""

import torch

from emlab.errors import InputError
from emlab.models.mlp import MLP
from emlab.models.residual_unet import ResidualUNet
from emlab.models.turns import TurnsNet
from emlab.models.unet import UNet

_NETWORKS = {"mlp": MLP, "residual_unet": ResidualUNet, "turns": TurnsNet, "unet": UNet}


def build(specification: dict) -> MLP | ResidualUNet | TurnsNet | UNet:
    """Build a network from the ``[model]`` table of a weights card or a training recipe.

    ``{"kind": "unet" | "residual_unet" | "mlp" | "turns", ...}`` and the arguments of the class.
    What does not exist or has an impossible value is an `InputError`.
    """
    arguments = dict(specification)
    kind = arguments.pop("kind", None)
    if kind not in _NETWORKS:
        raise InputError(f"unknown network kind {kind!r}; choose one of {sorted(_NETWORKS)}")
    try:
        return _NETWORKS[kind](**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"network {kind!r} cannot be built: {error}") from error


def untrained(specification: dict, seed: int = 0) -> MLP | ResidualUNet | TurnsNet | UNet:
    """A network before its training, the baseline that training has to beat.

    Layers that start at zero are drawn, too: a network that returns nothing at all would be easier
    to beat than one that returns noise of its own.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = build(specification)
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                torch.nn.init.kaiming_uniform_(parameter)
    return network


__all__ = ["MLP", "ResidualUNet", "TurnsNet", "UNet", "build", "untrained"]
