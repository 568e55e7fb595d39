"""The training recipes of all methods by the names of the weights that they make."""

from emlab.recipes import (
    cellpose3,
    flowdps,
    generalist,
    generalist_supervised,
    mtd,
    particles,
    tsm,
)
from emlab.recipes.lesson import Recipe, named


def recipes() -> dict[str, Recipe]:
    """Training recipes by the name of the weights that they make.

    Each is called as ``recipe(profile, device, out, resume)``: profile name, device, folder for
    weights, card and checkpoint (``None``: the package's own), whether to continue. Under
    ``torchrun`` only the first process gets a card.
    """
    return {
        **named("cellpose3", cellpose3.prepare),
        **named("flowdps", flowdps.prepare, "flowdps_flow"),
        **named("flowdps", flowdps.prepare_supervised, flowdps.SUPERVISED),
        **named("generalist", generalist.prepare, generalist.NAME),
        **named("generalist_supervised", generalist_supervised.prepare),
        **named("mtd", mtd.prepare),
        **named("particles", particles.prepare),
        **named("tsm", tsm.prepare),
    }
