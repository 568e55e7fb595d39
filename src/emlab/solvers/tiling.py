"""Tiles of a large image, blended inside every step of a sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product

import torch
from torch import Tensor

from emlab.errors import InputError
from emlab.priors.base import Prior


def tile_positions(length: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles start along an axis so that they cover it and overlap enough.

    Parameters
    ----------
    length : int
        Size of the axis, at least 1.
    tile : int
        Size of a tile; an axis no longer than that has one tile, at 0.
    overlap : int
        Pixels that neighbours share at least, from 0 to ``tile - 1``. The tiles are spread evenly
        over the axis, so they usually share a little more.
    """
    if length < 1 or not 0 <= overlap < tile:
        raise InputError(
            f"tiles of {tile} with overlap {overlap} cannot cover {length} pixels; the overlap "
            f"must be at least 0 and smaller than the tile"
        )
    if length <= tile:
        return [0]
    last = -(-(length - tile) // (tile - overlap))
    return [i * (length - tile) // last for i in range(last + 1)]


def blend_weights(positions: Sequence[int], tile: int) -> Tensor:
    r"""Return the weight of each tile at each of its pixels; at every pixel they sum to one.

    A tile rises as :math:`\sin^2` over the pixels that all neighbours share, so that no step is
    left where one tile takes over from the next.

    Parameters
    ----------
    positions : sequence of int
        Starts of the tiles, rising, from 0, without gaps.
    tile : int
        Size of a tile.

    Returns
    -------
    Tensor
        ``(len(positions), tile)`` float32 in [0, 1].
    """
    starts = torch.as_tensor(positions)
    widest = int(starts.diff().max()) if len(starts) > 1 else tile
    ramp = min(tile - widest, tile // 2)
    window = torch.ones(tile, dtype=torch.float64)
    if ramp:
        rise = torch.sin((torch.arange(ramp) + 0.5) * (torch.pi / 2 / ramp)).double().square()
        window[:ramp] = rise
        window[tile - ramp :] = rise.flip(0)
    places = starts[:, None] + torch.arange(tile)
    total = torch.zeros(int(starts[-1]) + tile, dtype=torch.float64)
    total.index_add_(0, places.flatten(), window.repeat(len(starts)))
    return (window / total[places]).float()


class TiledPrior:
    """A prior of small patches, made a prior of images of any size.

    Every answer (posterior mean, score) is that of overlapping tiles, blended with weights that sum
    to one. A sampler that asks this prior at every step thereby moves *one* image with *one* noise,
    and the tiles agree where they overlap (Bar-Tal et al. 2023, "MultiDiffusion", equation 5, with
    smooth weights). An image smaller than a tile is padded by reflection on both sides and the
    answer cropped. Memory beyond the image, its answer and one padded copy is that of ``batch``
    tiles in the network.

    Parameters
    ----------
    prior : Prior
        Answers ``(n, tile, tile)``.
    tile : int
        Side of a tile in pixels.
    overlap : int
        Pixels that neighbouring tiles share at least, smaller than the tile.
    batch : int
        Tiles given to the prior at once.
    smallest : int, optional
        Shorter axes are padded to this; the tile by default. Networks that take any size lose less
        time with a smaller value, and axes from `smallest` to `tile` are then one shorter tile.
    dimensions : int
        2; or 3 for a prior of volumes, which is given all planes of a tile together.
    """

    def __init__(
        self,
        prior: Prior,
        tile: int = 128,
        overlap: int = 16,
        batch: int = 16,
        smallest: int | None = None,
        dimensions: int = 2,
    ) -> None:
        smallest = tile if smallest is None else smallest
        if batch < 1 or not 1 <= smallest <= tile or not 0 <= overlap < tile:
            raise InputError(
                f"tiles need a batch of at least 1, 0 <= overlap < tile and 1 <= smallest <= tile, "
                f"got batch {batch}, overlap {overlap}, tile {tile}, smallest {smallest}"
            )
        self.prior, self.tile, self.overlap = prior, tile, overlap
        self.batch, self.smallest, self.dimensions = batch, smallest, dimensions

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean of images ``(..., H, W)`` of any size; see `Prior.denoise`."""
        return self._blend(self.prior.denoise, x, sigma)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Gradient of the log density of the noisy images ``(..., H, W)`` of any size."""
        return self._blend(self.prior.score, x, sigma)

    def tiles(self, height: int, width: int) -> int:
        """Return how many tiles, that is network evaluations, one image takes."""
        return len(self._axis(height)[1]) * len(self._axis(width)[1])

    def _axis(self, length: int) -> tuple[int, list[int], int]:
        """Tile, positions and padded length of an axis."""
        padded = max(length, self.smallest)
        tile = min(self.tile, padded)
        return tile, tile_positions(padded, tile, min(self.overlap, tile - 1)), padded

    def _blend(
        self, answer: Callable[[Tensor, Tensor], Tensor], x: Tensor, level: float | Tensor
    ) -> Tensor:
        if x.ndim < self.dimensions or x.numel() == 0:
            raise InputError(f"tiles are cut from images (..., H, W), got shape {tuple(x.shape)}")
        height, width = x.shape[-2:]
        (high, rows, tall), (wide, columns, broad) = self._axis(height), self._axis(width)
        items = x.reshape(-1, *x.shape[-self.dimensions :])
        images = reflect_pad(reflect_pad(items, tall, -2), broad, -1)
        levels = torch.as_tensor(level, dtype=x.dtype, device=x.device)
        levels = levels.expand(x.shape[:-2]).reshape(images.shape[:-2])
        blended = torch.zeros_like(images)
        weights = _weights(rows, columns, high, wide, x)
        places = product(range(len(images)), rows, columns)
        for chunk in _chunks(places, self.batch):
            patches = torch.stack([images[n, ..., y : y + high, c : c + wide] for n, y, c in chunk])
            answers = answer(patches, levels[[n for n, _, _ in chunk]])
            for (n, y, c), patch in zip(chunk, answers, strict=True):
                blended[n, ..., y : y + high, c : c + wide] += weights(y, c) * patch
        top, left = (tall - height) // 2, (broad - width) // 2
        return blended[..., top : top + height, left : left + width].reshape(x.shape)


@torch.no_grad()
def apply_tiled(
    network: Callable[[Tensor], Tensor], image: Tensor, tile: int = 512, overlap: int = 96
) -> Tensor:
    """Answers ``(outputs, H, W)`` of a network for an image ``(H, W)``, blended over tiles.

    Parameters
    ----------
    network : callable
        Maps ``(1, h, w)`` to ``(1, outputs, h, w)``; sees an image no larger than a tile whole.
    tile, overlap : int
        Side of a tile and pixels that neighbours share at least.
    """
    if image.ndim != 2 or image.numel() == 0:
        raise InputError(f"tiles are cut from an image (H, W), got shape {tuple(image.shape)}")
    high, wide = (min(tile, length) for length in image.shape)
    rows = tile_positions(image.shape[0], high, min(overlap, high - 1))
    columns = tile_positions(image.shape[1], wide, min(overlap, wide - 1))
    weights, blended = _weights(rows, columns, high, wide, image), torch.zeros(())
    for y, x in product(rows, columns):
        answer = network(image[None, y : y + high, x : x + wide])[0]
        if blended.ndim == 0:
            blended = answer.new_zeros(len(answer), *image.shape)
        blended[:, y : y + high, x : x + wide] += weights(y, x) * answer
    return blended


def _weights(
    rows: list[int], columns: list[int], high: int, wide: int, like: Tensor
) -> Callable[[int, int], Tensor]:
    """The weights of a tile by its place."""
    vertical = dict(zip(rows, blend_weights(rows, high).to(like), strict=True))
    horizontal = dict(zip(columns, blend_weights(columns, wide).to(like), strict=True))
    return lambda y, x: vertical[y][:, None] * horizontal[x]


def reflect_pad(x: Tensor, length: int, axis: int) -> Tensor:
    """Return `x` reflected at both ends of an axis up to `length`, however short the axis is."""
    size = x.shape[axis]
    if length <= size:
        return x
    period = max(2 * (size - 1), 1)
    place = (torch.arange(length, device=x.device) - (length - size) // 2) % period
    return x.index_select(axis, torch.minimum(place, period - place) if size > 1 else place * 0)


def _chunks(
    places: Iterator[tuple[int, int, int]], size: int
) -> Iterator[list[tuple[int, int, int]]]:
    while chunk := list(islice(places, size)):
        yield chunk
