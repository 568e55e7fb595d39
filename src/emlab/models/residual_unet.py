"""The residual U-Net of Cellpose: batch normalisation, added skips and a style vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from emlab.errors import InputError


@dataclass(frozen=True)
class Features:
    """What the encoder saw.

    Attributes
    ----------
    maps : list of Tensor
        ``(n, width, H / 2^k, W / 2^k)`` of each level k, after the residual sum and before pooling.
    style : Tensor
        ``(n, widths[-1])``, the mean of the deepest map over space, of length one.
    """

    maps: list[Tensor]
    style: Tensor


class ResidualUNet(nn.Module):
    """Residual U-Net with skips that are added and a style vector given to every decoder block.

    Four convolutions 3 x 3 a level and direction, each after batch normalisation and ReLU; maximum
    pooling down, nearest neighbours up (Stringer et al. 2021, Cellpose, figure 1d and methods).

    Parameters
    ----------
    widths : sequence of int
        Channels at each resolution; every further entry halves the image.
    outputs : int
        Output channels: 3 for a segmenter (flows in y and x, logit of "cell"), 1 for a restorer.
    style : bool
        Whether the decoder gets the style vector (otherwise zeros, and its layers idle).
    channels : int
        Channels that the first layer takes; those after the first are zeros. The segmenters that
        the authors of Cellpose released take two, for networks of ours it is one.

    Notes
    -----
    Any image size is accepted: the input is padded by its edge to the next multiple and the output
    cropped. There is no skip from input to output and no activation at the end.
    """

    def __init__(
        self, widths: Sequence[int], outputs: int, style: bool = True, channels: int = 1
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1 or outputs < 1 or channels < 1:
            raise InputError(
                f"a residual U-Net needs two widths or more, an output and a channel, got "
                f"{list(widths)}, {outputs} and {channels}"
            )
        self.channels = channels
        self.multiple = 2 ** (len(widths) - 1)
        self.with_style = style
        entering = [channels, *widths[:-1]]
        self.down = nn.ModuleList(Encode(a, b) for a, b in zip(entering, widths, strict=True))
        leaving = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            Decode(a, b, widths[-1]) for a, b in zip(leaving, widths, strict=True)
        )
        self.leave = _activated(widths[0], outputs, 1)
        for weight in self.parameters():
            if weight.ndim == 4:  # the fastest layout on processors
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(n, H, W)`` to ``(n, outputs, H, W)``."""
        height, width = images.shape[-2:]
        return self.decode(self._encode(images))[..., :height, :width]

    def decode(self, features: Features) -> Tensor:
        """Output ``(n, outputs, H, W)`` from what :meth:`features` returned."""
        style = features.style if self.with_style else torch.zeros_like(features.style)
        x = features.maps[-1]
        for level in range(len(self.up) - 1, -1, -1):
            if level < len(self.up) - 1:
                x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = self.up[level](x, features.maps[level], style)
        return self.leave(x)

    def features(self, images: Tensor) -> Features:
        """Encoder maps and style of images ``(n, H, W)``; sides divide by ``multiple``."""
        if images.shape[-2] % self.multiple or images.shape[-1] % self.multiple:
            raise InputError(f"encoder maps need sides that are multiples of {self.multiple}")
        return self._encode(images)

    def _encode(self, images: Tensor) -> Features:
        height, width = images.shape[-2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        x = functional.pad(images[:, None], padding, mode="replicate")
        if self.channels > 1:
            x = torch.cat([x, x.new_zeros(len(x), self.channels - 1, *x.shape[-2:])], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        maps: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            maps.append(x)
        mean = x.mean((2, 3))
        return Features(maps, mean / (mean.square().sum(1, keepdim=True).sqrt() + 1e-6))


class Encode(nn.Module):
    """Two residual units; the first one changes the number of channels."""

    def __init__(self, width: int, after: int) -> None:
        super().__init__()
        self.skip = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, after, 1))
        self.unit1 = nn.Sequential(_activated(width, after), _activated(after, after))
        self.unit2 = nn.Sequential(_activated(after, after), _activated(after, after))

    def forward(self, x: Tensor) -> Tensor:
        """Return maps ``(n, out, H, W)`` of maps ``(n, in, H, W)``."""
        x = self.skip(x) + self.unit1(x)
        return x + self.unit2(x)


class Decode(nn.Module):
    """Two residual units; the encoder's map and the style are added inside."""

    def __init__(self, width: int, next_width: int, style: int) -> None:
        super().__init__()
        self.skip = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, next_width, 1))
        self.enter = _activated(width, next_width)
        self.convolutions = nn.ModuleList(_activated(next_width, next_width) for _ in range(3))
        self.styles = nn.ModuleList(nn.Linear(style, next_width) for _ in range(3))

    def forward(self, x: Tensor, encoded: Tensor, style: Tensor) -> Tensor:
        """Return maps of the level below, those of the encoder and a style ``(n, style)``."""
        x = self.skip(x) + self._styled(0, self.enter(x) + encoded, style)
        return x + self._styled(2, self._styled(1, x, style), style)

    def _styled(self, k: int, x: Tensor, style: Tensor) -> Tensor:
        return self.convolutions[k](x + self.styles[k](style)[..., None, None])


def _activated(width: int, next_width: int, size: int = 3) -> nn.Sequential:
    """Batch normalisation, ReLU, convolution."""
    return nn.Sequential(
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, next_width, size, padding=size // 2),
    )
