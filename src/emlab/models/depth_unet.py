"""A U-Net that sees the planes above and below: several planes in, the middle one out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from emlab.errors import InputError
from emlab.models.unet import Downsample, ScalarEmbedding, Stage, pad_to_multiple


class DepthUNet(nn.Module):
    """Residual U-Net of a short stack, told its noise, its pixel size and which planes are there.

    The whole network works on blocks of ``patch x patch`` pixels folded into channels. Planes
    are channels of the first convolution only: seeing depth costs next to nothing.

    Parameters
    ----------
    planes : int
        Planes of a stack, odd; the middle one comes out.
    widths : sequence of int
        Channels at each resolution; every further entry halves the image. Multiples of 8.
    blocks : int
        Residual blocks per resolution and direction.
    middle : int
        Residual blocks at the coarsest resolution, after those of `blocks`.
    embedding : int
        Length of the embedding of what the network is told.
    patch : int
        Side of the blocks of pixels that become channels.

    Notes
    -----
    The last convolution starts at zero, so an untrained network returns zeros. Any image size is
    accepted, see `UNet`.
    """

    def __init__(
        self,
        planes: int = 5,
        widths: Sequence[int] = (64, 96, 128),
        blocks: int = 1,
        middle: int = 2,
        embedding: int = 128,
        patch: int = 2,
    ) -> None:
        super().__init__()
        if planes < 1 or planes % 2 == 0:
            raise InputError(f"planes must be odd, got {planes}")
        if not widths or any(width < 8 or width % 8 for width in widths):
            raise InputError(f"widths must be multiples of 8, got {list(widths)}")
        if min(blocks, middle, patch) < 1:
            raise InputError("blocks, middle and patch must be at least 1")
        self.planes, self.patch = planes, patch
        self.multiple = patch * 2 ** (len(widths) - 1)
        self.of_noise, self.of_pixel = ScalarEmbedding(embedding), ScalarEmbedding(embedding)
        self.of_flags = nn.Linear(planes + 1, embedding)
        self.enter = nn.Conv2d(planes * patch**2, widths[0], 3, padding=1)

        def stages(width: int, next_width: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(
                Stage(next_width if n else width, next_width, embedding, 0.0, attend=False)
                for n in range(count)
            )

        pairs = list(pairwise(widths))
        self.down = nn.ModuleList([stages(widths[0], widths[0], blocks)])
        self.down.extend(stages(fine, coarse, blocks) for fine, coarse in pairs)
        self.halve = nn.ModuleList(Downsample(fine) for fine, _ in pairs)
        self.middle = stages(widths[-1], widths[-1], middle)
        self.up = nn.ModuleList(
            stages(coarse + fine, fine, blocks) for fine, coarse in reversed(pairs)
        )
        last = nn.Conv2d(widths[0], patch**2, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.leave = nn.Sequential(nn.GroupNorm(8, widths[0]), nn.SiLU(), last)

    def forward(self, stack: Tensor, noise: Tensor, pixel: Tensor, present: Tensor) -> Tensor:
        """Map stacks ``(n, planes, H, W)`` to images ``(n, H, W)``.

        Parameters
        ----------
        noise, pixel : Tensor
            ``(n,)``, numbers that say how noisy and how fine the stacks are; a pixel size that
            is not known is NaN.
        present : Tensor
            ``(n, planes)``, true where there is a plane; what stands elsewhere is not looked at.
        """
        height, width = stack.shape[-2:]
        known = ~pixel.isnan()
        flags = torch.cat([present, known[:, None]], dim=1).to(stack.dtype)
        told = self.of_noise(noise) + self.of_flags(flags)
        told = told + known[:, None] * self.of_pixel(pixel.nan_to_num())
        seen = torch.where(present[..., None, None], stack, 0.0)
        x = self.enter(functional.pixel_unshuffle(pad_to_multiple(seen, self.multiple), self.patch))
        skips: list[Tensor] = []
        for level, stages in enumerate(self.down):
            if level:
                skips.append(x)
                x = self.halve[level - 1](x, told)
            for stage in stages:  # type: ignore[attr-defined]
                x = stage(x, told)
        for stage in self.middle:
            x = stage(x, told)
        for stages in self.up:
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = torch.cat([x, skips.pop()], dim=1)
            for stage in stages:  # type: ignore[attr-defined]
                x = stage(x, told)
        return functional.pixel_shuffle(self.leave(x), self.patch)[:, 0, :height, :width]
