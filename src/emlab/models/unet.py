"""The U-Net that every image prior in emlab uses, sized by its arguments."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from emlab.errors import InputError


class UNet(nn.Module):
    """Residual U-Net conditioned on one scalar per image (a time or a log noise level).

    Parameters
    ----------
    channels : int
        Image channels, in and out.
    widths : sequence of int
        Channels at each resolution; every further entry halves the image. Multiples of 8.
    blocks : int
        Residual blocks per resolution and direction.
    attention : sequence of int
        Indices into `widths` of the resolutions that get self-attention.
    dropout : float
        Dropout probability inside the residual blocks, in [0, 1).
    embedding : int
        Length of the embedding of the scalar.
    patch : int
        Fold blocks of ``patch x patch`` pixels into channels first (and unfold them last): for 2
        the whole network works on half the width and height, at about a third of the cost.

    Notes
    -----
    The last convolution starts at zero, so an untrained network returns zeros. Any image size is
    accepted: the input is padded by reflection (images too small for that by their edge) to the
    next multiple and the output cropped.
    """

    def __init__(
        self,
        channels: int = 1,
        widths: Sequence[int] = (32, 64, 128),
        blocks: int = 1,
        attention: Sequence[int] = (),
        dropout: float = 0.0,
        embedding: int = 128,
        patch: int = 1,
    ) -> None:
        super().__init__()
        if patch < 1:
            raise InputError(f"patch must be at least 1, got {patch}")
        if not widths or any(width < 8 or width % 8 for width in widths):
            raise InputError(f"widths must be multiples of 8, got {list(widths)}")
        if not set(attention) <= set(range(len(widths))):
            raise InputError(f"attention must index into widths, got {list(attention)}")
        self.patch = patch
        self.multiple = patch * 2 ** (len(widths) - 1)
        channels *= patch**2
        self.embed = ScalarEmbedding(embedding)
        self.enter = nn.Conv2d(channels, widths[0], 3, padding=1)

        self.down = nn.ModuleList()
        skips = [widths[0]]
        width = widths[0]
        for level, next_width in enumerate(widths):
            if level:
                self.down.append(Downsample(width))
                skips.append(width)
            for _ in range(blocks):
                self.down.append(Stage(width, next_width, embedding, dropout, level in attention))
                width = next_width
                skips.append(width)

        self.middle = nn.ModuleList(
            Stage(width, width, embedding, dropout, attend) for attend in (bool(attention), False)
        )

        self.up = nn.ModuleList()
        for level, next_width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                joined = width + skips.pop()
                self.up.append(Stage(joined, next_width, embedding, dropout, level in attention))
                width = next_width
            if level:
                self.up.append(Upsample(width))

        last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.leave = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), last)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map images ``(n, channels, H, W)`` and scalars ``(n,)`` to ``(n, channels, H, W)``."""
        height, width = x.shape[-2:]
        embedding = self.embed(condition)
        skips = self.encode(x, condition)
        x = skips[-1]
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.up:
            if isinstance(layer, Stage):
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, embedding)
        return functional.pixel_shuffle(self.leave(x), self.patch)[..., :height, :width]

    def encode(self, x: Tensor, condition: Tensor) -> list[Tensor]:
        """What the encoder makes of images, from the finest to the deepest feature map."""
        x = pad_to_multiple(x, self.multiple)
        embedding = self.embed(condition)
        x = self.enter(functional.pixel_unshuffle(x, self.patch))
        skips = [x]
        for layer in self.down:
            x = layer(x, embedding)
            skips.append(x)
        return skips


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad images on the right and below; reflection needs an image larger than the padding."""
    height, width = x.shape[-2:]
    right, below = -width % multiple, -height % multiple
    x = functional.pad(x, (0, right, 0, 0), mode="reflect" if right < width else "replicate")
    return functional.pad(x, (0, 0, 0, below), mode="reflect" if below < height else "replicate")


class ScalarEmbedding(nn.Module):
    """Sines and cosines of a scalar at 16 octave-spaced frequencies, then two linear layers."""

    frequencies: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer(
            "frequencies", 2 * math.pi * torch.logspace(-2, 3, 16, base=2.0), persistent=False
        )
        self.layers = nn.Sequential(nn.Linear(32, size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, scalar: Tensor) -> Tensor:
        """Return an embedding ``(n, width)`` of numbers ``(n,)``."""
        phase = scalar[:, None] * self.frequencies
        return self.layers(torch.cat([phase.sin(), phase.cos()], dim=-1))


class Stage(nn.Module):
    """Residual block, scaled and shifted by the embedding, with optional self-attention after."""

    def __init__(
        self, width: int, next_width: int, embedding: int, dropout: float, attend: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, next_width, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * next_width)
        self.norm2 = nn.GroupNorm(8, next_width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(next_width, next_width, 3, padding=1)
        self.skip = nn.Identity() if width == next_width else nn.Conv2d(width, next_width, 1)
        self.attention = SelfAttention(next_width) if attend else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return ``(n, out, H, W)`` of ``(n, in, H, W)`` and an embedding ``(n, width)``."""
        hidden = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.modulate(functional.silu(embedding))[..., None, None].chunk(2, dim=1)
        hidden = self.norm2(hidden) * (1 + scale) + shift
        hidden = self.conv2(self.dropout(functional.silu(hidden)))
        return self.attention(self.skip(x) + hidden)


class SelfAttention(nn.Module):
    """Residual self-attention over all pixels, heads of 32 channels or a few more."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = next(n for n in range(max(1, width // 32), 0, -1) if width % n == 0)
        self.norm = nn.GroupNorm(8, width)
        self.to_qkv = nn.Conv2d(width, 3 * width, 1)
        self.leave = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps ``(n, width, H, W)``, every pixel informed by all others."""
        n, width, height, columns = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(n, 3, self.heads, -1, height * columns)
        query, key, value = qkv.transpose(-1, -2).unbind(1)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return x + self.leave(mixed.transpose(-1, -2).reshape(n, width, height, columns))


class Downsample(nn.Module):
    """Halve the image by a strided convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor, _embedding: Tensor) -> Tensor:
        """Return maps of half the side; the embedding is not used."""
        return self.conv(x)


class Upsample(nn.Module):
    """Double the image by nearest neighbours and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, _embedding: Tensor) -> Tensor:
        """Return maps of twice the side; the embedding is not used."""
        return self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))
