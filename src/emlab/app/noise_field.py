"""Noise that belongs to the specimen's coordinates, not to the block that asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from emlab.errors import InputError

# Side of the cells that are drawn at once, by number of axes: about 4096 values each.
CELLS = {1: 4096, 2: 64, 3: 16}


class NoiseField:
    """Endless white Gaussian noise, one independent field for every step of a sampler.

    Two blocks that overlap see the same noise where they overlap, whatever their shapes and
    whichever is computed first, so a sampler that is run block by block draws one sample and not a
    patchwork. The values come from a counter-based generator (Philox, Salmon et al. 2011, "Parallel
    random numbers: as easy as 1, 2, 3"): its key is (seed, stream and step), its counter starts at
    the coordinates of a cell, and so any place can be drawn without the places before it.

    Parameters
    ----------
    seed : int
        From 0 to 2**63 - 1.
    stream : int
        Number of the sample, from 0 to 2**31 - 1; different streams are independent.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        if not 0 <= seed < 2**63 or not 0 <= stream < 2**31:
            raise InputError(
                f"a noise field needs a seed from 0 to 2**63 - 1 and a stream from 0 to 2**31 - 1, "
                f"got {seed} and {stream}"
            )
        self.seed, self.stream = int(seed), int(stream)

    def at(
        self,
        step: int,
        origin: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return the noise of a step in a box.

        Parameters
        ----------
        step : int
            From 0 to 2**32 - 1.
        origin : sequence of int
            Global coordinates of the first pixel, one to three axes; may be negative.
        device : torch.device or str
            Where the result goes; its values are the same on every device.

        Returns
        -------
        Tensor
            `shape`, float32, N(0, 1), independent from pixel to pixel.
        """
        axes = len(shape)
        if axes not in CELLS or len(origin) != axes:
            raise InputError(
                f"noise needs an origin and a shape of 1 to 3 axes, got {tuple(origin)} and "
                f"{tuple(shape)}"
            )
        if not 0 <= step < 2**32:
            raise InputError(f"the step of a noise field must be from 0 to 2**32 - 1, got {step}")
        side = CELLS[axes]
        first = [start // side for start in origin]
        last = [-(-(start + size) // side) for start, size in zip(origin, shape, strict=True)]
        bits = np.random.Philox(key=[self.seed, step + (self.stream << 32)])
        state = bits.state
        random = np.random.Generator(bits)
        noise = np.empty(tuple(shape), np.float32)
        cell = np.empty((side,) * axes, np.float32)
        for place in product(*(range(a, b) for a, b in zip(first, last, strict=True))):
            state["state"]["counter"][:] = [0, *(c % 2**64 for c in place), *[0] * (3 - axes)]
            bits.state = state
            random.standard_normal(dtype=np.float32, out=cell)
            inside, outside = [], []
            for c, start, size in zip(place, origin, shape, strict=True):
                low, high = max(c * side, start), min((c + 1) * side, start + size)
                inside.append(slice(low - c * side, high - c * side))
                outside.append(slice(low - start, high - start))
            noise[tuple(outside)] = cell[tuple(inside)]
        return torch.from_numpy(noise).to(device)
