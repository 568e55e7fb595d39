"""Target bank: views, lens, cosines, confidence; where and what a noisy particle is."""

import math

import pytest
import torch
from drawing import generator

from emlab.data.potentials import barrel
from emlab.errors import InputError
from emlab.priors.target_bank import TargetBank, coarsen, low_pass, shift

PIXEL = 5.3


def flat_lens(shape):
    return torch.full((shape[0], shape[1] // 2 + 1), -1.0)


@pytest.fixture(scope="module")
def bank():
    return TargetBank.from_volume(barrel(32, PIXEL), PIXEL, 20.0, directions=24, angles=12)


@pytest.fixture(scope="module")
def matcher(bank):
    return bank.matcher(flat_lens, temperature=0.03, rank=64)


def test_number_and_size(bank):
    assert len(bank) == 288
    assert bank.views(torch.arange(5)).shape == (5, 32, 32)
    assert 55 < bank.radius_angstrom() < 90


def test_in_plane_angles_turn_the_view(bank):
    first, quarter, half = bank.views(torch.tensor([0, 3, 6]))
    inner = slice(4, -3)  # pixel 16 of 32 is the centre: the flipped image is one pixel off
    torch.testing.assert_close(
        half[inner, inner], first.flip(0, 1).roll((1, 1), (0, 1))[inner, inner], atol=1e-3, rtol=0
    )
    turned = torch.rot90(first, 1, (0, 1)).roll(1, 0), torch.rot90(first, -1, (0, 1)).roll(1, 1)
    errors = [float((quarter - t)[inner, inner].abs().max()) for t in turned]
    assert min(errors) < 1e-3 < max(errors)


def test_the_lens_is_applied(bank):
    numbers = torch.tensor([0, 7])
    torch.testing.assert_close(
        bank.through(flat_lens, numbers), -bank.views(numbers), atol=1e-5, rtol=0
    )


def test_a_target_finds_itself(bank, matcher):
    numbers = torch.tensor([5, 100, 201])
    match = matcher(bank.through(flat_lens, numbers))
    assert (match.similarity > 0.99).all()
    # the barrel's symmetry gives views that are the same: the guess counts, not the number
    seen = bank.through(flat_lens, numbers) * matcher.disc
    for guess, truth in zip(match.guess, seen, strict=True):
        assert torch.corrcoef(torch.stack([guess.flatten(), truth.flatten()]))[0, 1] > 0.98
    assert (match.shifts.abs() < 0.6).all()


def test_a_shifted_target_is_found_where_it_is(bank, matcher):
    moved = shift(bank.through(flat_lens, torch.tensor([5, 100])), torch.tensor([[3.0, -4.0]] * 2))
    match = matcher(moved)
    torch.testing.assert_close(match.shifts, torch.tensor([[3.0, -4.0]] * 2), atol=0.8, rtol=0)
    pair = torch.stack([match.guess[0].flatten(), moved[0].flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.95


def test_confidence_tells_particles_from_noise(bank, matcher):
    views = bank.through(flat_lens, torch.arange(0, 288, 24))
    noise = views.std() * torch.randn(12, 32, 32, generator=generator())
    seen, empty = matcher(views + 2 * noise), matcher(2 * noise)
    assert seen.similarity.min() > empty.similarity.max()
    assert seen.confidence.mean() > empty.confidence.mean() + 0.1
    assert ((seen.confidence >= 0) & (seen.confidence <= 1)).all()


def test_at_a_high_temperature_all_targets_are_alike(bank):
    """The paper's tau is not stated; .5 gives no target more than a few times its share."""
    views = bank.through(flat_lens, torch.tensor([17]))
    hot = bank.matcher(flat_lens, temperature=0.5, rank=64)
    weights = torch.softmax(hot.cosines(views) / 0.5, 1)
    assert weights.max() < 10 / len(bank)
    assert hot(views).confidence < 0.2 < bank.matcher(flat_lens, rank=64)(views).confidence


def test_confidence_is_one_minus_the_entropy(bank, matcher):
    patch = bank.through(flat_lens, torch.tensor([17]))
    weights = torch.softmax(matcher.cosines(shift(patch, -matcher.align(patch))) / 0.03, 1)
    entropy = -(weights * weights.log()).sum()
    expected = 1 - entropy / math.log(288)
    torch.testing.assert_close(matcher(patch).confidence[0], expected, atol=1e-4, rtol=0)


def test_features_of_an_encoder_can_be_compared_instead(bank):
    torch.manual_seed(0)
    kernel = torch.randn(4, 1, 3, 3)
    features = lambda p: torch.nn.functional.conv2d(p[:, None], kernel, stride=2).relu()  # noqa: E731
    matcher = bank.matcher(flat_lens, rank=64, features=features)
    match = matcher(bank.through(flat_lens, torch.tensor([5, 100])))
    assert (match.similarity > 0.98).all()


def test_low_pass_keeps_what_is_coarse_only():
    rows = torch.arange(32) * PIXEL
    coarse, fine = (
        torch.cos(2 * math.pi * rows * cycles / (32 * PIXEL)).expand(32, 32, 32)
        for cycles in (4, 12)
    )
    torch.testing.assert_close(low_pass(coarse, PIXEL, 20.0), coarse, atol=1e-4, rtol=0)
    assert low_pass(fine, PIXEL, 20.0).abs().max() < 1e-3


def test_coarsen_keeps_smooth_images():
    rows = torch.arange(32)
    wave = torch.cos(2 * math.pi * rows[:, None] * 3 / 32 + 2 * math.pi * rows * 2 / 32)
    torch.testing.assert_close(coarsen(wave[None])[0], wave[::2, ::2], atol=1e-5, rtol=0)


def test_empty_banks_are_refused():
    for wrong in (torch.zeros(0, 16, 16), torch.zeros(3, 16, 16), torch.ones(3, 18, 18)):
        with pytest.raises(InputError):
            TargetBank(wrong, 4, PIXEL)
    with pytest.raises(InputError, match="direction"):
        TargetBank.from_volume(barrel(16, 10.6), 10.6, 30.0, directions=0)
    with pytest.raises(InputError, match="temperature"):
        TargetBank(torch.ones(1, 16, 16), 4, PIXEL).matcher(flat_lens, temperature=0)
