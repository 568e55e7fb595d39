"""The training recipes of all methods by the names of the weights that they make."""

from collections.abc import Callable

from emlab.methods import (
    cellpose3_priors,
    comparison_priors,
    flowdps_priors,
    flowdps_supervised,
    generalist_priors,
    generalist_supervised,
    mtd_priors,
    tsm_priors,
)
from emlab.weights import Card


def recipes() -> dict[str, Callable[..., Card | None]]:
    """Training recipes by the name of the weights that they make.

    Each is called as ``recipe(profile, device, out, resume)``: profile name, device, folder for
    weights, card and checkpoint (``None``: the package's own), whether to continue. Under
    ``torchrun`` only the first process gets a card.
    """
    return {
        **cellpose3_priors.recipes(),
        **comparison_priors.recipes(),
        **flowdps_priors.recipes(),
        **flowdps_supervised.recipes(),
        **generalist_priors.recipes(),
        **generalist_supervised.recipes(),
        **mtd_priors.recipes(),
        **tsm_priors.recipes(),
    }
