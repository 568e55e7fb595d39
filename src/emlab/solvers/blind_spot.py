r"""Blind-spot denoising of one image: a small network learns to guess pixels that it cannot see.

Noise that is independent from pixel to pixel and of mean zero cannot be guessed from the
neighbours; the specimen can. A network f that never sees pixel j at its place and is trained on

.. math:: \sum_{j \in J} \big(f(x_{J^c})_j - x_j\big)^2

therefore learns :math:`E[\text{clean}_j \mid x_{J^c}]` from the noisy image alone.

* **Noise2Void** (Krull, Buchholz and Jug 2019, section 3.3): J is a few random pixels a patch, each
  replaced by another pixel of its neighbourhood; the answer is one pass over the whole image.
* **Noise2Self** (Batson and Royer 2019, section 3): J is a grid, replaced by a mean of neighbours,
  and the answer is put together from one pass a grid position, so that no pixel ever sees itself.

Both train on the very image that they denoise: seconds an image, no clean data, no other image.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from emlab.checks import check_fields
from emlab.errors import InputError
from emlab.solvers.contract import Progress, told

Kind = Literal["noise2void", "noise2self"]
MINIMUM = 16


@dataclass(frozen=True)
class BlindSpotConfig:
    """Settings of `denoise_blind_spot`.

    Attributes
    ----------
    kind : str
        ``noise2void`` or ``noise2self``.
    steps : int
        Of Adam, with a cosine that ends at zero.
    batch, crop : int
        Patches a step, and their side in pixels.
    width : int
        Channels of the first level of the network; the second has twice as many.
    share : float
        Of the pixels of a patch that are hidden, Noise2Void.
    radius : int
        Half the side of the neighbourhood that a replacement comes from, Noise2Void.
    grid : int
        Side of the grid's cell, Noise2Self: one pixel of ``grid**2`` is hidden.
    """

    kind: Kind = "noise2void"
    steps: int = 100
    batch: int = 4
    crop: int = 64
    learning_rate: float = 2e-3
    width: int = 12
    share: float = 0.02
    radius: int = 2
    grid: int = 4

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.steps, self.batch, self.width, self.radius) < 1 or self.grid < 2:
            raise InputError("blind spots need steps, batch, width, radius >= 1 and grid >= 2")
        if self.crop < MINIMUM or self.crop % 2:
            raise InputError(f"the crop is an even number of pixels from {MINIMUM}: {self.crop}")
        if not 0 < self.share < 0.5 or not self.learning_rate > 0:
            raise InputError("blind spots need a share inside (0, .5) and a learning rate above 0")


def denoise_blind_spot(
    image: Tensor,
    config: BlindSpotConfig,
    generator: torch.Generator,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Tensor:
    """Train a small network on one noisy image ``(H, W)`` and denoise this image with it.

    Any finite range, at least 16 pixels a side. The generator, on the CPU, decides the network's
    start, patches and hidden pixels.
    """
    if image.ndim != 2 or min(image.shape) < MINIMUM:
        raise InputError(
            f"give one image (H, W) of at least {MINIMUM} pixels a side, not {tuple(image.shape)}"
        )
    noisy = image.detach().to(device, torch.float32)
    mean, deviation = noisy.mean(), noisy.std()
    if not bool(torch.isfinite(deviation)) or float(deviation) == 0:
        raise InputError("the image is constant or not finite; there is nothing to learn from")
    noisy = (noisy - mean) / deviation
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        network = TwoLevels(config.width).to(device)
        _train(network, noisy, config, generator, progress)
    with torch.no_grad():
        answer = _answer(network.eval(), noisy, config)
    return (answer * deviation + mean).cpu()


class TwoLevels(nn.Module):
    """A U-Net of two levels without normalisation, ``(n, 1, H, W)`` in and out, H and W even."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = _convolutions(1, width, width)
        self.coarse = _convolutions(width, 2 * width, 2 * width)
        self.joined = _convolutions(3 * width, width, width)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Clean pixels in the units of the input."""
        fine = self.fine(x)
        coarse = self.coarse(functional.max_pool2d(fine, 2))
        coarse = functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return self.out(self.joined(torch.cat([fine, coarse], 1)))


def hide_random(
    patches: Tensor, share: float, radius: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noise2Void: replace random pixels by another one of their neighbourhood.

    Parameters
    ----------
    patches : Tensor
        ``(n, H, W)``.

    Returns
    -------
    tuple of Tensor
        Patches with hidden pixels, and where they are, ``(n, H, W)`` bool.
    """
    height, width = patches.shape[-2:]
    hidden = torch.rand(patches.shape, generator=generator) < share
    hidden[:, 0, 0] |= ~hidden.flatten(1).any(1)
    which, row, column = hidden.nonzero(as_tuple=True)
    side = 2 * radius + 1
    place = torch.randint(1, side**2, (len(which),), generator=generator)
    place = (place + side**2 // 2) % side**2  # all of the square but its middle
    other_row = _inside(row + place // side - radius, height)
    other_column = _inside(column + place % side - radius, width)
    seen = patches.clone()
    seen[which, row, column] = patches[which, other_row, other_column]
    return seen, hidden.to(patches.device)


def hide_grid(patches: Tensor, grid: int, position: int) -> tuple[Tensor, Tensor]:
    """Noise2Self: replace one pixel of every cell by the weighted mean of its eight neighbours.

    Parameters
    ----------
    patches : Tensor
        ``(n, H, W)``.
    position : int
        From 0 to ``grid**2 - 1``: which pixel of a cell.
    """
    hidden = torch.zeros(patches.shape[-2:], dtype=torch.bool, device=patches.device)
    hidden[position // grid :: grid, position % grid :: grid] = True
    kernel = patches.new_tensor([[0.5, 1.0, 0.5], [1.0, 0.0, 1.0], [0.5, 1.0, 0.5]]) / 6
    around = functional.pad(patches[:, None], (1, 1, 1, 1), mode="reflect")
    smooth = functional.conv2d(around, kernel[None, None])[:, 0]
    return torch.where(hidden, smooth, patches), hidden.expand_as(patches)


def _train(
    network: nn.Module,
    noisy: Tensor,
    config: BlindSpotConfig,
    generator: torch.Generator,
    progress: Progress | None,
) -> None:
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in told(range(config.steps), progress):
        patches = _patches(noisy, config, generator)
        if config.kind == "noise2void":
            seen, hidden = hide_random(patches, config.share, config.radius, generator)
        else:
            position = int(torch.randint(config.grid**2, (), generator=generator))
            seen, hidden = hide_grid(patches, config.grid, position)
        loss = (network(seen[:, None])[:, 0] - patches)[hidden].square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


def _answer(network: nn.Module, noisy: Tensor, config: BlindSpotConfig) -> Tensor:
    height, width = noisy.shape
    even = functional.pad(noisy[None, None], (0, width % 2, 0, height % 2), mode="reflect")[0]
    if config.kind == "noise2void":
        return network(even[None])[0, 0, :height, :width]
    answer = torch.zeros_like(even)
    for position in range(config.grid**2):
        seen, hidden = hide_grid(even, config.grid, position)
        answer = torch.where(hidden, network(seen[None])[0], answer)
    return answer[0, :height, :width]


def _patches(noisy: Tensor, config: BlindSpotConfig, generator: torch.Generator) -> Tensor:
    """Random squares, turned and mirrored at random; smaller where the image is."""
    side = min(config.crop, *(length // 2 * 2 for length in noisy.shape))
    rows, columns = (
        torch.randint(length - side + 1, (config.batch,), generator=generator).tolist()
        for length in noisy.shape
    )
    turns = torch.randint(8, (config.batch,), generator=generator).tolist()
    squares = []
    for row, column, turn in zip(rows, columns, turns, strict=True):
        square = noisy[row : row + side, column : column + side].rot90(turn % 4)
        squares.append(square.flip(0) if turn >= 4 else square)
    return torch.stack(squares)


def _convolutions(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


def _inside(index: Tensor, length: int) -> Tensor:
    """Reflect indices that left the axis by less than its length."""
    index = index.abs()
    return torch.where(index >= length, 2 * (length - 1) - index, index)
