"""Networks only: tensors in, tensors out. What they predict is the business of `emlab.priors`."""

import torch

from emlab import weights
from emlab.errors import InputError
from emlab.models.depth_unet import DepthUNet
from emlab.models.mlp import MLP
from emlab.models.residual_unet import ResidualUNet
from emlab.models.turns import TurnsNet
from emlab.models.unet import UNet

_NETWORKS = {
    "depth_unet": DepthUNet,
    "mlp": MLP,
    "residual_unet": ResidualUNet,
    "turns": TurnsNet,
    "unet": UNet,
}
Network = DepthUNet | MLP | ResidualUNet | TurnsNet | UNet


def build(specification: dict) -> Network:
    """Build a network from the ``[model]`` table of a weights card or a training recipe.

    Parameters
    ----------
    specification : dict
        ``{"kind": "unet" | "depth_unet" | "residual_unet" | "mlp" | "turns", ...}``; the other keys
        are those of the class.

    Raises
    ------
    InputError
        If the kind is unknown, or an argument does not exist or has an impossible value.
    """
    arguments = dict(specification)
    kind = arguments.pop("kind", None)
    if kind not in _NETWORKS:
        raise InputError(f"unknown network kind {kind!r}; choose one of {sorted(_NETWORKS)}")
    try:
        return _NETWORKS[kind](**arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"network {kind!r} cannot be built: {error}") from error


def load(name: str, device: torch.device | str = "cpu") -> tuple[Network, weights.Card]:
    """A network with its trained weights, frozen, and their card."""
    tensors, card = weights.load(name)
    network = build(card.model)
    network.load_state_dict(tensors)
    return network.to(device).eval().requires_grad_(False), card


def untrained(specification: dict, seed: int = 0) -> Network:
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


__all__ = ["MLP", "DepthUNet", "ResidualUNet", "TurnsNet", "UNet", "build", "load", "untrained"]
