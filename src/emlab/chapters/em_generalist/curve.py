"""How far training got, and what more of it would give: from the cards of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emlab import weights
from emlab.errors import InputError
from emlab.models import build

_SCORE = "denoising_psnr_at_"


@dataclass(frozen=True)
class Training:
    """One training run.

    Attributes
    ----------
    parameters : int
        Of the network.
    steps : ndarray
        ``(n,)``, at which it was judged on validation patches.
    scores : dict
        PSNR in dB of one denoising by noise level in the prior's units, ``(n,)`` each.
    hours : float
    device : str
    """

    parameters: int
    steps: NDArray[np.float64]
    scores: dict[str, NDArray[np.float64]]
    hours: float
    device: str

    @classmethod
    def of(cls, name: str) -> Training:
        """Read the card of a checkpoint; one without a history is an `InputError`."""
        card = weights.card(name)
        history = card.raw.get("history", {})
        if len(history.get("step", ())) < 2:
            raise InputError(f"the card of {name} has no history; train it again")
        return cls(
            sum(p.numel() for p in build(card.model).parameters()),
            np.array(history["step"]),
            {
                key.removeprefix(_SCORE): np.array(values)
                for key, values in history.items()
                if key.startswith(_SCORE)
            },
            card.seconds / 3600,
            card.device,
        )

    def last_doubling(self, level: str) -> float:
        """What the second half of the steps added, in dB."""
        last = math.log(self.steps[-1] / 2)
        half = np.interp(last, np.log(self.steps), self.scores[level])
        return float(self.scores[level][-1] - half)

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:.1f} million parameters, {self.steps[-1]:.0f} steps, "
            f"{self.hours:.1f} hours on {self.device}"
        )
