"""Phase retrieval without a network, with settings chosen on validation poses (`PEERS`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from emlab.chapters.flowdps.cases import WINDOW, Cases, lens, make_cases
from emlab.data.metadata import Metadata
from emlab.data.phase_maps import FIELD, phase_maps
from emlab.physics import ExitWave, Poisson
from emlab.recorded import Recording
from emlab.runtime import make_generator
from emlab.solvers.denoiser_spread import power_spectrum
from emlab.solvers.guided_phase import filtered
from emlab.solvers.phase_projections import ProjectionsConfig, alternate
from emlab.solvers.phase_retrieval import (
    nearest_projection,
    phase_flip,
    sparse_fresnel,
    transport_of_intensity,
    wiener,
)

Settings = Mapping[str, Any]
LABELS = {
    "phase_flip": "phase flip",
    "wiener": "Wiener",
    "gerchberg_saxton": "Gerchberg-Saxton",
    "hio": "hybrid input-output",
    "rrr": "relaxed reflections",
    "sparse": "sparse Fresnel",
    "transport": "transport, 3 images",
    "nearest_map": "nearest training map",
}
SEED = 11  # of the two further images that transport asks for
SUPPORT_RADIUS = 30  # pixels; the particle's longest half-axis is 29
MARGIN = (WINDOW - FIELD) // 2


def library(specimen: str, n: int) -> Tensor:
    """Training maps ``(n, 64, 64)`` in radians: what classical peers may know of the specimen."""
    return phase_maps(specimen, n, 7, "train").phases


@cache
def specimen_power(specimen: str, n: int = 128) -> Tensor:
    """Power of training maps in a window ``(96, 49)``, as Wiener's filter wants it."""
    return power_spectrum(pad(library(specimen, n), [MARGIN] * 4))


def run_peer(name: str, cases: Cases, settings: Settings) -> Tensor:
    """Phases ``(n, 64, 64)`` in radians by one of `LABELS`."""
    kept = {k: v for k, v in settings.items() if k not in ("width", "scale", "validation_rmse")}
    found = _PEERS[name](cases, **kept)
    width, scale = settings.get("width", 0.0), settings.get("scale", 1.0)
    side = found.shape[-1]
    if width:
        rows, columns = torch.fft.fftfreq(side), torch.fft.rfftfreq(side)
        squared = rows[:, None].square() + columns.square()
        found = filtered(found, (-2 * (torch.pi * width) ** 2 * squared).exp())
    start = (side - FIELD) // 2
    return scale * found[..., start : start + FIELD, start : start + FIELD]


def _wide(cases: Cases) -> ExitWave:
    return cases.instrument(WINDOW, WINDOW)


def _wiener(cases: Cases, power: float) -> Tensor:
    return wiener(cases.counts, _wide(cases), power * specimen_power(cases.specimen))


def _projections(rule: str, cases: Cases, **settings: Any) -> Tensor:
    axis = torch.arange(FIELD) - FIELD // 2
    support = torch.hypot(axis[:, None].float(), axis.float()) <= SUPPORT_RADIUS
    config = ProjectionsConfig(rule=rule, **settings)  # type: ignore[arg-type]
    return alternate(cases.counts, cases.instrument(envelope=False), config, support)


def _sparse(cases: Cases, weight: float, iterations: int) -> Tensor:
    return sparse_fresnel(cases.counts, cases.instrument(), weight, iterations=iterations)


def _transport(cases: Cases, step_angstrom: float, regularisation: float) -> Tensor:
    """Three images of a third of the dose each, a step of defocus apart, around zero."""
    instruments = [
        ExitWave(
            lens(_at(cases.optics, defocus), cases.b_factor_angstrom2),
            cases.dose / 3,
            WINDOW,
            WINDOW,
        )
        for defocus in (-step_angstrom, 0.0, step_angstrom)
    ]
    truth, generator = pad(cases.truth, [MARGIN] * 4), make_generator(SEED)
    counts = [Poisson().sample(each.A(truth), generator) for each in instruments]
    return transport_of_intensity(counts, instruments, regularisation)


def _at(optics: Metadata, defocus: float) -> Metadata:
    """Optics of another defocus; the checks for files of particles do not apply to it."""
    changed = replace(optics)
    for name in ("defocus_u_angstrom", "defocus_v_angstrom"):
        object.__setattr__(changed, name, np.full(len(optics), defocus))
    return changed


def _nearest(cases: Cases, maps: int) -> Tensor:
    tried = library(cases.specimen, maps)
    return nearest_projection(cases.counts, cases.instrument(), tried)[0]


_PEERS: dict[str, Callable[..., Tensor]] = {
    "phase_flip": lambda cases: phase_flip(cases.counts, _wide(cases)),
    "wiener": _wiener,
    "gerchberg_saxton": lambda cases, **told: _projections("gerchberg_saxton", cases, **told),
    "hio": lambda cases, **told: _projections("hio", cases, **told),
    "rrr": lambda cases, **told: _projections("rrr", cases, **told),
    "sparse": _sparse,
    "transport": _transport,
    "nearest_map": _nearest,
}


def _grid(**choices: Iterable[Any]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


_WIDTHS = (0.0, 0.6, 1.0, 1.6)
GRIDS: dict[str, list[dict[str, Any]]] = {
    "phase_flip": _grid(width=(0.0, 1.0, 2.0, 2.8, 3.5, 4.5, 5.5, 7.0)),
    "wiener": _grid(power=(0.7, 1.0, 1.4, 2.0, 3.0, 4.0, 6.0)),
    "gerchberg_saxton": _grid(iterations=(10, 60, 120, 240), width=_WIDTHS[:3]),
    "hio": _grid(iterations=(30, 60, 120), beta=(0.08, 0.15, 0.3), width=(0.6,)),
    "rrr": _grid(iterations=(30, 60, 120), beta=(0.08, 0.15, 0.3), width=(0.6,)),
    "sparse": _grid(weight=(10.0, 12.0, 15.0, 20.0), iterations=(160, 320)),
    "transport": _grid(
        step_angstrom=(20000.0, 40000.0, 80000.0),
        regularisation=(1e-6, 1e-5, 1e-4, 1e-3),
        width=(1.8, 2.6, 3.5, 4.5),
    ),
    "nearest_map": [{"maps": 128}],
}


def tuned() -> dict[str, dict[str, Any]]:
    """Settings by peer, as the search left them."""
    return {name: dict(settings) for name, settings in PEERS.values.items()}


def best_peer() -> str:
    """The peer of one image with the smallest error on validation poses."""
    table = tuned()
    single = [name for name in table if name != "transport"]
    return min(single, key=lambda name: table[name]["validation_rmse"])


def _tune(settings: Settings) -> dict[str, dict[str, Any]]:
    """Search every grid on validation poses, with the best overall scale.

    Returns settings by peer, with the error in radians (mean removed) that they reached.
    """
    cases = make_cases(
        settings["specimen"], settings["poses"], settings["seed"], split="validation"
    )
    table = {}
    for name, grid in GRIDS.items():
        tried = [_scaled(name, cases, choice) for choice in grid]
        table[name] = min(tried, key=lambda choice: choice["validation_rmse"])
    return table


def _scaled(name: str, cases: Cases, settings: Settings) -> dict[str, Any]:
    found, truth = (
        image - image.mean((-2, -1), keepdim=True)
        for image in (run_peer(name, cases, settings), cases.truth)
    )
    scale = round(float((found * truth).sum() / found.square().sum()), 3)
    error = (scale * found - truth).square().mean((1, 2)).sqrt().mean()
    return {**settings, "scale": scale, "validation_rmse": round(float(error), 5)}


PEERS = Recording("03_flowdps", "peers", _tune, {"specimen": "t20s", "poses": 24, "seed": 11})
