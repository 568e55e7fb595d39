"""The field of many copies: placed as asked, with an exact adjoint, and cut into patches."""

import itertools

import numpy as np
import pytest
import torch
from drawing import draw, generator

from emlab.errors import InputError
from emlab.physics.mtd import MTDOperator, Rotations, cut_patches, simulate_measurement


def operator(count, size=5, field_size=20, copies=7, seed=3):
    """Copies anywhere, overlapping too."""
    source = generator(seed)
    positions = torch.randint(field_size - size + 1, (copies, 2), generator=source)
    turns = torch.randint(count, (copies,), generator=source)
    return MTDOperator(positions, turns, Rotations(count, size, torch.float64), field_size)


# --- operator


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_field_and_its_adjoint_agree(count, size):
    place = operator(count, size)
    image, field = draw(size, size, seed=1), draw(20, 20, seed=2)
    forward = (place.A(image) * field).sum()
    backward = (image * place.A_adjoint(field)).sum()
    torch.testing.assert_close(forward, backward, rtol=1e-12, atol=1e-12)


def test_the_field_is_the_sum_of_its_copies():
    place, image = operator(4), draw(5, 5)
    expected = np.zeros((20, 20))
    for (row, column), k in zip(place.positions.tolist(), place.turns.tolist(), strict=True):
        expected[row : row + 5, column : column + 5] += np.rot90(image.numpy(), k)
    np.testing.assert_allclose(place.A(image).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("corner", [(-1, 0), (0, 16), (16, 0)])
def test_a_copy_that_leaves_the_field_is_refused(corner):
    with pytest.raises(InputError, match="leaves the field"):
        MTDOperator(torch.tensor([corner]), torch.zeros(1).long(), Rotations(4, 5), 20)


def test_every_copy_needs_a_rotation():
    with pytest.raises(InputError, match="one rotation number each"):
        MTDOperator(torch.zeros(2, 2).long(), torch.zeros(3).long(), Rotations(4, 5), 20)


# --- simulated fields


@pytest.mark.parametrize("snr", [0.1, 1.0, 10.0])
def test_the_noise_has_the_stated_signal_to_noise_ratio(snr):
    image = 2 + draw(5, 5)
    measurement = simulate_measurement(image, snr, generator(), field_size=200)
    assert measurement.sigma**2 == pytest.approx(image.square().sum().item() / (25 * snr))
    noise = measurement.field - measurement.clean
    assert noise.std().item() == pytest.approx(measurement.sigma, rel=0.02)
    assert abs(noise.mean().item()) < 4 * measurement.sigma / 200


def test_the_clean_field_is_the_operator_applied_to_the_image():
    image = draw(5, 5)
    measurement = simulate_measurement(image, 1.0, generator())
    assert torch.equal(measurement.clean, measurement.operator.A(image))


@pytest.mark.parametrize(("density", "copies"), [(0.1, 12), (0.05, 6), (1e-6, 1)])
def test_copies_cover_the_stated_part_of_a_field_of_eleven_images(density, copies):
    measurement = simulate_measurement(draw(5, 5), 1.0, generator(), density=density)
    assert measurement.field.shape == (55, 55)
    assert len(measurement.operator.turns) == copies == max(1, round(density * 11**2))


@pytest.mark.parametrize(("separation", "gap"), [(None, 10), (5, 5), (7, 7)])
def test_copies_keep_their_separation(separation, gap):
    measurement = simulate_measurement(
        draw(5, 5), 1.0, generator(), field_size=110, density=0.12, separation=separation
    )
    corners = measurement.operator.positions.tolist()
    distances = [
        max(abs(a - c), abs(b - d)) for (a, b), (c, d) in itertools.combinations(corners, 2)
    ]
    assert len(corners) == 58
    assert gap <= min(distances) <= gap + 1


def test_no_patch_sees_two_copies_at_the_default_separation():
    measurement = simulate_measurement(torch.ones(5, 5), 1.0, generator(), field_size=110)
    place = measurement.operator
    for corner in itertools.product(range(5), repeat=2):
        seen = torch.zeros(21, 21)
        for row, column in place.positions.tolist():
            alone = torch.zeros(110, 110)
            alone[row : row + 5, column : column + 5] = 1
            shifted = alone[corner[0] : corner[0] + 105, corner[1] : corner[1] + 105]
            seen += cut_patches(shifted, 5).amax((1, 2)).reshape(21, 21)
        assert seen.max() == 1


def test_copies_overlap_only_when_asked():
    image = torch.ones(5, 5)
    apart = simulate_measurement(image, 1.0, generator(), density=0.3, separation=5)
    overlapping = simulate_measurement(image, 1.0, generator(), density=0.3, separation=0)
    assert apart.clean.max() == 1
    assert overlapping.clean.max() >= 2
    assert apart.clean.sum() == overlapping.clean.sum() == 25 * round(0.3 * 121)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_every_rotation_occurs(count):
    measurement = simulate_measurement(
        draw(5, 5), 1.0, generator(), field_size=220, rotations=count
    )
    assert set(measurement.operator.turns.tolist()) == set(range(count))
    assert measurement.operator.rotations.count == count


def test_copies_reach_every_corner_of_the_field():
    """Sampling is not confined: over many fields each end of the axis is used."""
    corners = torch.cat(
        [
            simulate_measurement(
                torch.ones(3, 3), 1.0, generator(seed), field_size=9, density=0.1
            ).operator.positions
            for seed in range(150)
        ]
    )
    for axis in range(2):
        assert corners[:, axis].unique().tolist() == list(range(7))


def test_the_same_seed_gives_the_same_field():
    fields = [simulate_measurement(draw(5, 5), 1.0, generator(s)).field for s in (4, 4, 5)]
    assert torch.equal(fields[0], fields[1])
    assert not torch.equal(fields[0], fields[2])


def test_a_field_without_room_is_refused():
    with pytest.raises(InputError, match="no room for 12 copies at a separation of 40"):
        simulate_measurement(draw(5, 5), 1.0, generator(), separation=40)


@pytest.mark.parametrize(
    ("image", "change", "message"),
    [
        (torch.ones(5, 4), {}, "square"),
        (torch.ones(5, 5), {"snr": 0.0}, "snr must be positive"),
        (torch.ones(5, 5), {"snr": float("nan")}, "snr must be positive"),
        (torch.ones(5, 5), {"density": 0.0}, "density"),
        (torch.ones(5, 5), {"density": 1.5}, "density"),
        (torch.ones(5, 5), {"field_size": 4}, "cannot hold"),
        (torch.ones(5, 5), {"rotations": 0}, "count >= 1"),
    ],
)
def test_fields_that_cannot_be_made_are_refused(image, change, message):
    arguments = {"snr": 1.0, **change}
    with pytest.raises(InputError, match=message):
        simulate_measurement(image, generator=generator(), **arguments)


# --- patches


def test_patches_tile_the_field_row_by_row():
    field = draw(8, 12)
    patches = cut_patches(field, 4)
    assert patches.shape == (6, 4, 4)
    for index, patch in enumerate(patches):
        row, column = 4 * (index // 3), 4 * (index % 3)
        assert torch.equal(patch, field[row : row + 4, column : column + 4])


@pytest.mark.parametrize(("size", "grids", "offsets"), [(4, 2, (0, 2)), (5, 3, (0, 1, 3))])
def test_more_grids_add_shifted_patches(size, grids, offsets):
    side = 3 * size
    field = draw(side, side)
    expected = [
        field[row : row + size, column : column + size]
        for first, second in itertools.product(offsets, repeat=2)
        for row in range(first, side - size + 1, size)
        for column in range(second, side - size + 1, size)
    ]
    assert torch.equal(cut_patches(field, size, grids), torch.stack(expected))


def test_as_many_grids_as_pixels_give_every_patch_there_is():
    field = draw(9, 9)
    every = {tuple(p.flatten().tolist()) for p in cut_patches(field, 3, 3)}
    assert len(every) == 7 * 7


@pytest.mark.parametrize(
    ("field", "size", "grids", "message"),
    [
        (torch.zeros(11, 10), 5, 1, r"does not divide into patches of 5; crop it.*\(10, 10\)"),
        (torch.zeros(10, 12), 5, 1, "does not divide"),
        (torch.zeros(4, 10), 5, 1, "smaller than one patch"),
        (torch.zeros(10, 10), 0, 1, "smaller than one patch"),
        (torch.zeros(2, 10, 10), 5, 1, "one image"),
        (torch.full((10, 10), float("nan")), 5, 1, "NaN or infinity"),
        (torch.full((10, 10), float("inf")), 5, 1, "NaN or infinity"),
        (torch.zeros(10, 10), 5, 0, "grids must be between 1 and 5"),
        (torch.zeros(10, 10), 5, 6, "grids must be between 1 and 5"),
    ],
)
def test_fields_that_cannot_be_cut_are_refused(field, size, grids, message):
    with pytest.raises(InputError, match=message):
        cut_patches(field, size, grids)
