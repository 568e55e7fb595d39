"""The training recipes of all methods by the names of the weights that they make."""

from collections.abc import Callable

from emlab.recipes import (
    cellpose3 as cellpose3_priors,
    flowdps as flowdps_priors,
    flowdps_supervised,
    generalist as generalist_priors,
    generalist_supervised,
    mtd as mtd_priors,
    particles as comparison_priors,
    tsm as tsm_priors,
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
