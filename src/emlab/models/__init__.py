"""Networks only: tensors in, tensors out. What they predict is the business of `emlab.priors`."""

from emlab.errors import InputError
from emlab.models.mlp import MLP
from emlab.models.residual_unet import ResidualUNet
from emlab.models.unet import UNet

_NETWORKS = {"mlp": MLP, "residual_unet": ResidualUNet, "unet": UNet}


def build(specification: dict) -> MLP | ResidualUNet | UNet:
    """Build a network from the ``[model]`` table of a weights card or a training recipe.

    Parameters
    ----------
    specification : dict
        ``{"kind": "unet" | "residual_unet" | "mlp", ...}``; the other keys are the class's
        arguments.

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


__all__ = ["MLP", "ResidualUNet", "UNet", "build"]
