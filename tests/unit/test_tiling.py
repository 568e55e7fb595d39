"""Tiles of large images: any size, no seams, one noise whatever the partition."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from emlab.app.volumes import NoiseField
from emlab.errors import InputError
from emlab.models import UNet
from emlab.priors import FlowPrior, GaussianPrior
from emlab.solvers.tiling import TiledPrior, blend_weights, reflect_pad, tile_positions

SIZES = [(16, 16), (40, 40), (37, 51), (5, 90), (16, 17), (1, 1), (2, 33)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Pointwise:
    """White Gaussian images of variance 1, of any size; remembers what it was given."""

    def __init__(self):
        self.shapes = []

    def denoise(self, x, sigma):
        self.shapes.append(tuple(x.shape))
        return x / (1 + torch.as_tensor(sigma).square()[..., None, None])

    def score(self, x, sigma):
        return -x / (1 + torch.as_tensor(sigma).square()[..., None, None])


# Positions and weights


@pytest.mark.parametrize("overlap", [0, 1, 5, 15])
def test_tiles_cover_every_length_and_overlap_enough(overlap):
    for length in range(1, 120):
        starts = tile_positions(length, 16, overlap)
        assert starts[0] == 0
        assert max(starts[-1] + 16, length) == max(16, length)
        assert all(0 < b - a <= 16 - overlap for a, b in pairwise(starts))
        fewest = max(1, -(-(length - overlap) // (16 - overlap)))
        assert len(starts) == fewest


@pytest.mark.parametrize("overlap", [0, 1, 5, 8, 13])
def test_weights_sum_to_one_and_change_slowly(overlap):
    for length in (16, 17, 40, 57, 100):
        starts = tile_positions(length, 16, overlap)
        weights = blend_weights(starts, 16)
        assert weights.dtype == torch.float32
        assert weights.min() >= 0
        total = torch.zeros(length)
        lines = torch.zeros(len(starts), length)
        for line, start, weight in zip(lines, starts, weights, strict=True):
            total[start : start + 16] += weight
            line[start : start + 16] = weight
        torch.testing.assert_close(total, torch.ones(length))
        if 2 < overlap <= 8:
            assert lines.diff(dim=1).abs().max() < np.pi / 2 / overlap * 1.05


@pytest.mark.parametrize("arguments", [(10, 8, 8), (10, 8, -1), (0, 8, 2)])
def test_impossible_tiles_are_refused(arguments):
    with pytest.raises(InputError, match="smaller than the tile"):
        tile_positions(*arguments)


@pytest.mark.parametrize(("size", "length"), [(5, 8), (5, 5), (3, 20), (2, 9), (1, 4), (8, 5)])
def test_padding_reflects_as_often_as_needed(size, length):
    x = normal(2, size)
    padded = reflect_pad(x, length, -1)
    extra = max(0, length - size)
    expected = np.pad(x.numpy(), [(0, 0), (extra // 2, extra - extra // 2)], mode="reflect")
    np.testing.assert_array_equal(padded.numpy(), expected)


# The prior


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_tiled_pointwise_prior_equals_the_prior_itself(size, batch):
    prior = Pointwise()
    tiled = TiledPrior(prior, tile=16, overlap=5, batch=batch)
    x = normal(2, 3, *size)
    levels = torch.tensor([[0.1, 0.5, 1.0], [2.0, 0.3, 0.7]])
    for level in (0.4, levels):
        torch.testing.assert_close(tiled.denoise(x, level), prior.denoise(x, level))
        torch.testing.assert_close(tiled.score(x, level), prior.score(x, level))
    torch.testing.assert_close(tiled.denoise(x[0, 0], 0.4), prior.denoise(x[0, 0], 0.4))
    assert tiled.denoise(x, 0.4).dtype == torch.float32


def test_the_prior_sees_tiles_only_and_never_more_than_a_batch():
    prior = Pointwise()
    tiled = TiledPrior(prior, tile=16, overlap=4, batch=6)
    tiled.denoise(normal(2, 70, 40), 0.5)
    assert all(shape[1:] == (16, 16) and shape[0] <= 6 for shape in prior.shapes)
    assert sum(shape[0] for shape in prior.shapes) == 2 * tiled.tiles(70, 40)
    assert tiled.tiles(70, 40) == 6 * 3


@pytest.mark.parametrize(
    ("smallest", "seen"), [(None, (16, 16)), (8, (8, 11)), (16, (16, 16)), (1, (5, 11))]
)
def test_small_images_are_padded_to_the_smallest_size(smallest, seen):
    prior = Pointwise()
    TiledPrior(prior, tile=16, overlap=4, smallest=smallest).denoise(normal(5, 11), 0.5)
    assert prior.shapes == [(1, *seen)]


def test_network_with_tiles_larger_than_its_reach_is_tiled_without_a_trace():
    """A network of small reach: inside the overlap both tiles say nearly what the whole says."""
    torch.manual_seed(0)
    kernel = torch.ones(1, 1, 3, 3) / 9

    class Local(Pointwise):
        def denoise(self, x, sigma):
            padded = functional.pad(x[:, None], (1, 1, 1, 1), mode="reflect")
            return functional.conv2d(padded, kernel)[:, 0]

    x = normal(1, 72, 96)
    error = (TiledPrior(Local(), 24, 8).denoise(x, 1.0) - Local().denoise(x, 1.0)).abs()
    hard = (TiledPrior(Local(), 24, 0).denoise(x, 1.0) - Local().denoise(x, 1.0)).abs()
    assert error.max() < 0.05
    assert hard.max() > 0.2


def test_unet_of_any_odd_size_and_gradients_through_the_tiles():
    torch.manual_seed(0)
    network = UNet(widths=(8, 16), embedding=16)
    torch.nn.init.normal_(list(network.parameters())[-2], std=0.1)
    tiled = TiledPrior(FlowPrior(network), tile=16, overlap=4, batch=5)
    x = normal(1, 21, 35).requires_grad_(True)
    out = tiled.denoise(x, 0.5)
    assert out.shape == x.shape
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    step = 1e-2 * normal(1, 21, 35, seed=1)
    with torch.no_grad():
        ahead, behind = (tiled.denoise(x + s * step, 0.5).square().sum() for s in (1, -1))
    torch.testing.assert_close((ahead - behind) / 2, (gradient * step).sum(), rtol=2e-2, atol=1e-3)


def correlated(size, count, length, seed):
    """Periodic Gaussian images of variance 1 and correlation exp(-r^2 / 2 length^2)."""
    frequency = torch.fft.fftfreq(size)[:, None] ** 2 + torch.fft.rfftfreq(size) ** 2
    power = 2 * np.pi * length**2 * torch.exp(-2 * np.pi**2 * length**2 * frequency)
    white = torch.fft.rfft2(normal(count, size, size, seed=seed))
    return torch.fft.irfft2(white * power.sqrt()), power


def seam_ratio(image, reference, starts):
    """Mean gradient across the ends of tiles over that elsewhere, against the reference's."""
    ends = sorted({*starts[1:], *(start + 24 for start in starts[:-1])})

    def index(x):
        steps = x.diff(dim=-1).abs().mean((0, 1))
        at = torch.zeros(len(steps), dtype=torch.bool)
        at[torch.tensor(ends) - 1] = True
        return steps[at].mean() / steps[~at].mean()

    return float(index(image) / index(reference))


def test_gaussian_prior_of_tiles_leaves_no_seams_and_is_close_to_the_exact_answer():
    size, length, sigma = 120, 2.0, 0.7
    clean, power = correlated(size, 4, length, seed=2)
    noisy = clean + sigma * normal(*clean.shape, seed=3)
    exact = torch.fft.irfft2(torch.fft.rfft2(noisy) * power / (power + sigma**2))
    grid = torch.cartesian_prod(torch.arange(24.0), torch.arange(24.0))
    covariance = torch.exp(-torch.cdist(grid, grid).square() / (2 * length**2))
    prior = GaussianPrior(torch.zeros(24, 24), covariance)
    results = {}
    for overlap in (0, 10):
        result = TiledPrior(prior, tile=24, overlap=overlap).denoise(noisy, sigma)
        starts = tile_positions(size, 24, overlap)
        error = (result - exact)[:, 12:-12, 12:-12].square().mean().sqrt()
        results[overlap] = seam_ratio(result, exact, starts), float(error)
    assert results[10][0] == pytest.approx(1, abs=0.02)
    assert results[0][0] > 1.1
    assert results[10][1] < 0.05 < results[0][1]


@pytest.mark.parametrize(
    "settings",
    [{"tile": 8, "overlap": 8}, {"batch": 0}, {"overlap": -1}, {"smallest": 129}, {"smallest": 0}],
)
def test_settings_that_do_not_fit_are_refused(settings):
    with pytest.raises(InputError, match="tiles need"):
        TiledPrior(Pointwise(), **settings)


def test_wrong_input_is_one_clear_error():
    white = GaussianPrior(torch.zeros(8, 8), 1.0)
    for shape in [(5,), (0, 5)]:
        with pytest.raises(InputError, match="images"):
            TiledPrior(white, 8, 2).denoise(torch.zeros(shape), 0.5)


# The noise field


@pytest.mark.parametrize(
    "box", [((-70, -9), (90, 200)), ((-5, 3, -20), (40, 23, 37)), ((7,), (9000,))]
)
def test_noise_is_the_same_whatever_the_partition(box):
    origin, shape = box
    field = NoiseField(5)
    whole = field.at(3, origin, shape)
    assert whole.dtype == torch.float32
    pieces = torch.empty_like(whole)
    cuts = [[0, n // 3, n // 2 + 1, n] for n in shape]
    for parts in np.ndindex(*[3] * len(shape)):
        low = [cut[i] for cut, i in zip(cuts, parts, strict=True)]
        high = [cut[i + 1] for cut, i in zip(cuts, parts, strict=True)]
        start = [o + a for o, a in zip(origin, low, strict=True)]
        size = [b - a for a, b in zip(low, high, strict=True)]
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        pieces[box] = NoiseField(5).at(3, start, size)
    assert torch.equal(whole, pieces)


@pytest.mark.parametrize("shape", [(300, 400), (40, 60, 50)])
def test_noise_is_white_and_standard_normal(shape):
    noise = NoiseField(1).at(0, [-17] * len(shape), shape).double()
    n = noise.numel()
    assert abs(noise.mean()) < 4 / n**0.5
    assert noise.var() == pytest.approx(1, abs=4 * (2 / n) ** 0.5)
    assert noise.pow(4).mean() == pytest.approx(3, abs=4 * (96 / n) ** 0.5)
    assert noise.abs().max() < 6.5
    for axis in range(len(shape)):
        for lag in (1, 2, 16, 64 if axis == 1 and len(shape) == 2 else 3):
            product = noise.narrow(axis, 0, shape[axis] - lag) * noise.narrow(
                axis, lag, shape[axis] - lag
            )
            assert abs(product.mean()) < 4.5 / product.numel() ** 0.5
    power = torch.fft.rfftn(noise).abs().square() / n
    coarse = power[tuple(slice(s // 8) for s in power.shape)]
    assert coarse.mean() == pytest.approx(1, abs=5 / coarse.numel() ** 0.5)


def test_steps_streams_seeds_and_places_are_independent():
    shape = (64, 64)
    fields = [
        NoiseField(1).at(0, (0, 0), shape),
        NoiseField(1).at(1, (0, 0), shape),
        NoiseField(2).at(0, (0, 0), shape),
        NoiseField(1, stream=1).at(0, (0, 0), shape),
        NoiseField(1).at(0, (64, 0), shape),
        NoiseField(1).at(0, (0, 64), shape),
        NoiseField(1).at(0, (0, -64), shape),
    ]
    correlation = torch.corrcoef(torch.stack([field.flatten() for field in fields]))
    assert (correlation - torch.eye(len(fields))).abs().max() < 4.5 / 64


@pytest.mark.parametrize(
    "call",
    [
        lambda: NoiseField(-1),
        lambda: NoiseField(2**63),
        lambda: NoiseField(0, stream=-1),
        lambda: NoiseField(0).at(-1, (0, 0), (2, 2)),
        lambda: NoiseField(0).at(0, (0,), (2, 2)),
        lambda: NoiseField(0).at(0, (0,) * 4, (2,) * 4),
    ],
)
def test_noise_out_of_range_is_refused(call):
    with pytest.raises(InputError, match="noise"):
        call()
