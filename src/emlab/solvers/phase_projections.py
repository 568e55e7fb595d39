r"""Phase retrieval by projections between what the detector and what the specimen allow.

Both constraints are sets of waves behind the specimen, in the padded square:

* *detector*: carried through the lens, the wave has in the window the modulus
  :math:`\sqrt{y/N}` (beyond the window it keeps its own);
* *specimen*: :math:`e^{(i-\kappa)x}` with :math:`x \ge 0` inside a support, 1 outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.physics.exit_wave import ExitWave


@dataclass(frozen=True)
class ProjectionsConfig:
    r"""Settings of `alternate`.

    Attributes
    ----------
    rule : str
        ``gerchberg_saxton``: :math:`\psi \leftarrow P_S P_D\psi` (Gerchberg and Saxton 1972);
        ``hio``: the same in the support, beyond it :math:`\psi - \beta(P_D\psi - 1)` (Fienup 1982);
        ``rrr``: :math:`\psi + \beta(P_S(2P_D\psi - \psi) - P_D\psi)` (Elser 2018).
    iterations : int
        Each takes two passes through the lens.
    beta : float
        In (0, 2) for the last two.
    """

    rule: Literal["gerchberg_saxton", "hio", "rrr"] = "gerchberg_saxton"
    iterations: int = 50
    beta: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rule not in ("gerchberg_saxton", "hio", "rrr"):
            raise InputError(f"the rule is gerchberg_saxton, hio or rrr, not {self.rule!r}")
        if self.iterations < 1 or not 0 < self.beta < 2:
            raise InputError("projections need iterations >= 1 and beta between 0 and 2")


def alternate(
    measurement: Tensor,
    instrument: ExitWave,
    config: ProjectionsConfig,
    support: Tensor | None = None,
) -> Tensor:
    """Phases of counts by one of three rules.

    Parameters
    ----------
    measurement : Tensor
        Counts ``(..., window, window)``.
    instrument : ExitWave
        Without envelope: a wave that was damped cannot be carried back.
    support : Tensor, optional
        ``(field, field)`` booleans, where matter may be; the whole field by default.

    Returns
    -------
    Tensor
        ``(..., field, field)`` radians, not negative.
    """
    if instrument.ctf.b_factor_angstrom2:
        raise InputError("projections need a lens without envelope; set its B factor to zero")
    allowed = torch.ones(instrument.field, instrument.field, dtype=torch.bool)
    allowed = (allowed if support is None else support).to(measurement.device)
    detector, specimen = _detector(measurement, instrument), _specimen(instrument, allowed)
    side = instrument.padded
    beyond = side - instrument.field
    inside = torch.nn.functional.pad(allowed, (0, beyond, 0, beyond))
    wave = torch.ones((*measurement.shape[:-2], side, side), dtype=measurement.dtype) + 0j
    wave = wave.to(measurement.device)
    beta = config.beta
    for _ in range(config.iterations):
        seen = detector(wave)
        match config.rule:
            case "gerchberg_saxton":
                wave = specimen(seen)
            case "hio":
                wave = torch.where(inside, specimen(seen), wave - beta * (seen - 1))
            case "rrr":
                wave = wave + beta * (specimen(2 * seen - wave) - seen)
    return _phase(detector(wave), instrument.field, allowed)


def _detector(measurement: Tensor, instrument: ExitWave) -> Callable[[Tensor], Tensor]:
    transfer, counts = instrument.constants(measurement)
    modulus = (measurement / counts).clamp_min(0).sqrt()
    wider, narrower = instrument.window - instrument.field, instrument.field - instrument.window
    start = -(wider // 2) if wider > 0 else narrower // 2
    places = torch.arange(start, start + instrument.window) % instrument.padded
    rows, columns = places[:, None], places

    def project(wave: Tensor) -> Tensor:
        arrived = torch.fft.ifft2(torch.fft.fft2(wave) * transfer)
        part = arrived[..., rows, columns]
        arrived[..., rows, columns] = modulus * part / part.abs().clamp_min(1e-12)
        return torch.fft.ifft2(torch.fft.fft2(arrived) * transfer.conj())

    return project


def _specimen(instrument: ExitWave, support: Tensor) -> Callable[[Tensor], Tensor]:
    def project(wave: Tensor) -> Tensor:
        allowed = torch.ones_like(wave)
        phase = _phase(wave, instrument.field, support)
        allowed[..., : instrument.field, : instrument.field] = instrument.exit_wave(phase)
        return allowed

    return project


def _phase(wave: Tensor, field: int, support: Tensor) -> Tensor:
    return wave[..., :field, :field].angle().clamp_min(0) * support
