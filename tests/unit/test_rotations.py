"""Rotations of an image: the right way round, with their exact transpose."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from emlab.errors import InputError
from emlab.physics.mtd import Rotations

COUNTS = (1, 2, 3, 4, 8)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def blob(size, row, column, width):
    """A smooth round spot, brightest at (row, column)."""
    steps = torch.arange(size, dtype=torch.float64)
    distance = (steps[:, None] - row).square() + (steps - column).square()
    return (-distance / (2 * width**2)).exp()


@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("count", COUNTS)
def test_the_adjoint_is_the_transpose(count, size):
    rotations = Rotations(count, size, torch.float64)
    image, stack = draw(2, size, size, seed=1), draw(2, count, size, size, seed=2)
    forward = (rotations.A(image) * stack).sum()
    backward = (image * rotations.A_adjoint(stack)).sum()
    torch.testing.assert_close(forward, backward, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", COUNTS)
def test_a_stack_holds_every_rotation_in_turn(count):
    rotations = Rotations(count, 5, torch.float64)
    image = draw(3, 5, 5)
    stack = rotations.A(image)
    assert stack.shape == (3, count, 5, 5)
    for k in range(count):
        assert torch.equal(stack[:, k], rotations.rotate(image, k))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_quarter_turns_move_pixels_without_changing_them(count):
    image = draw(4, 4)
    expected = [np.rot90(image.numpy(), 4 * k // count) for k in range(count)]
    assert np.array_equal(Rotations(count, 4, torch.float64).A(image).numpy(), expected)


def test_a_quarter_turn_is_counter_clockwise():
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert Rotations(4, 2).rotate(image, 1).tolist() == [[2.0, 4.0], [1.0, 3.0]]


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("count", [3, 5, 8])
def test_other_angles_interpolate_bilinearly_about_the_centre(count, size):
    image = draw(size, size)
    rotations = Rotations(count, size, torch.float64)
    for k in range(count):
        # grid-constant: zeros continue the pixel grid; scipy turns counter-clockwise on screen
        expected = ndimage.rotate(
            image.numpy(), 360 * k / count, order=1, reshape=False, mode="grid-constant"
        )
        np.testing.assert_allclose(rotations.rotate(image, k).numpy(), expected, atol=1e-10)


def test_an_eighth_of_a_turn_leaves_a_round_disc_alone():
    disc = blob(21, 10, 10, 3.0)
    stack = Rotations(8, 21, torch.float64).A(disc)
    errors = (stack - disc).flatten(1).norm(dim=1) / disc.norm()
    assert errors[::2].max() == 0
    assert 0 < errors.max() < 0.03


def test_an_eighth_of_a_turn_carries_a_spot_to_where_it_belongs():
    radius, centre = 6.0, 10.0
    stack = Rotations(8, 21, torch.float64).A(blob(21, centre, centre + radius, 2.0))
    for k in range(8):
        angle = 2 * math.pi * k / 8
        there = blob(21, centre - radius * math.sin(angle), centre + radius * math.cos(angle), 2.0)
        assert (stack[k] - there).norm() < 0.07 * there.norm(), k


def test_rotations_of_single_precision_images_are_single_precision():
    assert Rotations(8, 5).A(torch.ones(5, 5)).dtype == torch.float32


@pytest.mark.parametrize(("count", "size"), [(0, 5), (-1, 5), (4, 0)])
def test_no_rotation_or_no_pixel_is_refused(count, size):
    with pytest.raises(InputError, match="count >= 1 and size >= 1"):
        Rotations(count, size)
