"""Operators and kernels: exact adjoints, closed forms, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from drawing import generator
from scipy import ndimage

from emlab.errors import InputError
from emlab.physics.operators import (
    Axial,
    Blur,
    Compose,
    Downsample,
    Identity,
    LinearOperator,
    Mask,
    defocus_kernel,
    extend,
    fold,
    gaussian_kernel,
    operator_norm,
)
from emlab.solvers import sampling


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def lopsided(size=5):
    kernel = torch.rand(size, size, generator=generator(7), dtype=torch.float64)
    return kernel / kernel.sum()


def half_mask(*shape):
    return torch.rand(shape, generator=generator(8)) > 0.5


IMAGE, VOLUME = (2, 12, 18), (2, 12, 6, 18)
OPERATORS = {
    "identity": (Identity(), IMAGE),
    "blur": (Blur(lopsided()), IMAGE),
    "blur wider than the image": (Blur(lopsided(41)), IMAGE),
    "gaussian": (Blur(gaussian_kernel(2.0)), IMAGE),
    "defocus": (Blur(defocus_kernel(3.3)), VOLUME),
    "average": (Downsample(3), IMAGE),
    "decimate": (Downsample(3, mode="decimate"), IMAGE),
    "average one axis": (Downsample(2, axes=(-1,)), VOLUME),
    "average three axes": (Downsample(6, axes=(-3, -2, -1)), VOLUME),
    "thin": (Downsample(6, thickness=1.7), IMAGE),
    "thick": (Downsample(2, mode="decimate", thickness=6.4), IMAGE),
    "thicker than the image": (Downsample(3, thickness=60.5), IMAGE),
    "axial": (Axial(4), VOLUME),
    "axial decimate": (Axial(4, "decimate"), VOLUME),
    "axial thick": (Axial(4, thickness=9.0), VOLUME),
    "axial thin": (Axial(4, "decimate", 2.5), VOLUME),
    "mask": (Mask(half_mask(12, 18)), IMAGE),
    "missing slices": (Mask(half_mask(12, 1, 1)), VOLUME),
    "blur, then average": (Compose(Downsample(2), Blur(lopsided())), IMAGE),
    "average, then blur": (Compose(Blur(lopsided()), Downsample(3)), IMAGE),
    "three": (Compose(Mask(half_mask(3, 1, 1)), Axial(4, thickness=6.0), Blur(lopsided())), VOLUME),
}
CASES = pytest.mark.parametrize(("operator", "shape"), OPERATORS.values(), ids=OPERATORS)


# Every operator


@CASES
def test_adjoint_is_exact(operator, shape):
    x, y = normal(*shape), normal(*operator.measured_shape(shape), seed=1)
    measured, returned = operator.A(x), operator.A_adjoint(y)
    assert measured.shape == y.shape
    assert returned.shape == x.shape
    scale = float(measured.norm() * y.norm())
    assert float((measured * y).sum()) == pytest.approx(
        float((x * returned).sum()), abs=1e-12 * scale
    )


@CASES
def test_adjoint_is_the_gradient_of_the_measurement(operator, shape):
    """Autograd agrees entry by entry, so that solvers may differentiate through an operator."""
    x = normal(*shape).requires_grad_(True)
    y = normal(*operator.measured_shape(shape), seed=1)
    gradient = torch.autograd.grad((operator.A(x) * y).sum(), x)[0]
    assert torch.allclose(gradient, operator.A_adjoint(y), atol=1e-12)
    y = y.requires_grad_(True)
    back = torch.autograd.grad((operator.A_adjoint(y) * x.detach()).sum(), y)[0]
    assert torch.allclose(back, operator.A(x.detach()), atol=1e-12)


@CASES
def test_operators_are_linear_keep_the_dtype_and_treat_images_alone(operator, shape):
    x, other = normal(*shape), normal(*shape, seed=2)
    assert torch.allclose(
        operator.A(2 * x - other), 2 * operator.A(x) - operator.A(other), atol=1e-12
    )
    assert torch.allclose(operator.A(x)[1], operator.A(x[1]), atol=1e-12)
    measured = operator.A(x.float())
    assert measured.dtype == torch.float32
    assert operator.A_adjoint(measured).dtype == torch.float32
    assert torch.allclose(measured.double(), operator.A(x), atol=1e-5)


@CASES
def test_input_is_left_as_it_was(operator, shape):
    x = normal(*shape)
    y = operator.A(x).clone()
    kept_x, kept_y = x.clone(), y.clone()
    operator.A(x)
    operator.A_adjoint(y)
    assert torch.equal(x, kept_x)
    assert torch.equal(y, kept_y)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (2, 0), (0, 3), (4, 4), (23, 17)])
def test_folding_is_the_transpose_of_extending(low, high):
    identity = torch.eye(5, dtype=torch.float64)
    extending = extend(identity, -1, low, high)
    other = torch.eye(5 + low + high, dtype=torch.float64)
    assert torch.equal(extending.T, fold(other, -1, low, high))


def test_extending_mirrors():
    row = torch.tensor([1.0, 2.0, 3.0])
    assert extend(row, -1, 2, 4).tolist() == [2, 1, 1, 2, 3, 3, 2, 1, 1]


def test_samplers_take_the_same_protocol():
    assert sampling.LinearOperator is LinearOperator


# Blur


@pytest.mark.parametrize("size", [1, 3, 7, 15])
def test_blur_is_convolution_as_scipy_does_it(size):
    x, kernel = normal(10, 13), lopsided(size)
    expected = ndimage.convolve(x.numpy(), kernel.numpy(), mode="reflect")
    np.testing.assert_allclose(Blur(kernel).A(x), expected, atol=1e-12)


def test_a_point_becomes_the_kernel_and_not_its_mirror_image():
    point = torch.zeros(11, 11, dtype=torch.float64)
    point[5, 5] = 1
    blurred = Blur(lopsided()).A(point)
    assert torch.allclose(blurred[3:8, 3:8], lopsided(), atol=1e-14)


def test_blur_keeps_a_constant_and_the_delta_keeps_everything():
    assert torch.allclose(Blur(lopsided()).A(torch.full((9, 9), 3.0)), torch.tensor(3.0))
    x = normal(9, 8)
    assert torch.allclose(Blur(gaussian_kernel(0, 5)).A(x), x, atol=1e-14)


def test_blur_damps_a_cosine_as_its_transfer_function_says():
    phase = 2 * math.pi * 5 * (torch.arange(64, dtype=torch.float64) + 0.5) / 128
    cosine = phase.cos().expand(64, 64)  # a mode of the mirrored boundary
    measured = Blur(gaussian_kernel(2.0)).A(cosine)
    expected = math.exp(-0.5 * (2.0 * 2 * math.pi * 5 / 128) ** 2)
    assert torch.allclose(measured, expected * cosine, atol=1e-4)


def test_blur_is_differentiable_in_its_kernel():
    kernel = lopsided(3).requires_grad_(True)
    x, y = normal(6, 7), normal(6, 7, seed=1)
    gradient = torch.autograd.grad((Blur(kernel).A(x) * y).sum(), kernel)[0]
    step = 1e-6
    for row, column in [(0, 0), (1, 2), (2, 1)]:
        moved = lopsided(3)
        moved[row, column] += step
        change = ((Blur(moved).A(x) - Blur(lopsided(3)).A(x)) * y).sum() / step
        assert float(change) == pytest.approx(float(gradient[row, column]), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (torch.ones(3), "square and odd"),
        (torch.ones(3, 5) / 15, "square and odd"),
        (torch.ones(4, 4) / 16, "square and odd"),
        (torch.ones(3, 3), "divide it by its sum"),
        (torch.tensor([[-1.0, 0, 0], [0, 2, 0], [0, 0, 0]]), "clip them"),
        (torch.full((3, 3), math.nan), "non-finite"),
    ],
)
def test_bad_kernels_are_refused(kernel, message):
    with pytest.raises(InputError, match=message):
        Blur(kernel)


# Sampling


def test_average_is_the_mean_of_each_group():
    x = normal(4, 6)
    assert torch.allclose(Downsample(2).A(x), x.reshape(2, 2, 3, 2).mean((1, 3)))
    assert torch.allclose(Downsample(2, thickness=2.0).A(x), Downsample(2).A(x))
    volume = normal(8, 3, 3)
    assert torch.allclose(Axial(4).A(volume), volume.reshape(2, 4, 3, 3).mean(1))


@pytest.mark.parametrize(("factor", "first"), [(1, 0), (2, 0), (3, 1), (4, 1), (6, 2)])
def test_decimation_takes_one_pixel_of_each_group(factor, first):
    x = normal(12, 12)
    assert torch.equal(Downsample(factor, mode="decimate").A(x), x[first::factor, first::factor])


@pytest.mark.parametrize("mode", ["average", "decimate"])
@pytest.mark.parametrize("thickness", [None, 0.4, 1.0, 2.5, 3.0, 4.0, 7.3])
@pytest.mark.parametrize("factor", [3, 4])
def test_a_ramp_is_measured_at_the_centres_of_the_samples(factor, mode, thickness):
    """Any symmetric box leaves a linear ramp as it is: samples show where their centres lie."""
    operator = Downsample(factor, (-1,), mode, thickness)
    ramp = torch.arange(48, dtype=torch.float64)
    centres = operator.first_centre + factor * torch.arange(48 // factor)
    inner = slice(2, -2)
    assert torch.allclose(operator.A(ramp)[inner], centres.double()[inner])


@pytest.mark.parametrize(
    ("operator", "first", "weights"),
    [
        (Axial(4), 0, [0.25, 0.25, 0.25, 0.25]),
        (Axial(4, thickness=2.0), 1, [0.5, 0.5]),
        (Axial(4, thickness=3.0), 0, [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
        (Axial(4, thickness=6.0), -1, [1 / 6] * 6),
        (Axial(3, thickness=1.0), 1, [1.0]),
        (Axial(3, "decimate", 2.0), 0, [0.25, 0.5, 0.25]),
        (Axial(4, "decimate"), 1, [1.0]),
        (Axial(2, thickness=0.5), 0, [0.5, 0.5]),
    ],
)
def test_weights_of_a_section_are_overlaps_with_its_box(operator, first, weights):
    assert operator.box()[0] == first
    assert operator.box()[1] == pytest.approx(weights)


def test_a_thick_section_sees_its_neighbours_and_a_mirror_at_the_end():
    column = torch.arange(8, dtype=torch.float64).square()[:, None, None]
    measured = Axial(4, thickness=6.0).A(column).flatten()
    mirrored = torch.tensor([0.0, 0, 1, 4, 9, 16, 25, 36, 49, 49], dtype=torch.float64)
    assert measured.tolist() == pytest.approx([5.0, mirrored[4:].mean().item()])


@pytest.mark.parametrize("thickness", [0.7, 3.0, 5.5, 40.0])
def test_sampling_keeps_a_constant(thickness):
    ones = torch.ones(12, 5, 5, dtype=torch.float64)
    measured = Axial(3, thickness=thickness).A(ones)
    assert torch.allclose(measured, torch.ones(4, 5, 5, dtype=torch.float64))


def test_a_factor_that_does_not_divide_says_where_to_crop():
    with pytest.raises(InputError, match=r"does not divide the side 10 .* crop that side to 9"):
        Downsample(3).A(torch.zeros(9, 10))
    with pytest.raises(InputError, match="crop that side to 8"):
        Axial(4).measured_shape((9, 12, 12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 0}, "whole number"),
        ({"factor": 1.5}, "whole number"),
        ({"factor": 2, "axes": (0,)}, "counted from the end"),
        ({"factor": 2, "axes": ()}, "counted from the end"),
        ({"factor": 2, "mode": "mean"}, "'average' or 'decimate'"),
        ({"factor": 2, "thickness": 0.0}, "positive"),
    ],
)
def test_bad_sampling_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Downsample(**arguments)


def test_axial_sampling_of_an_image_is_refused():
    with pytest.raises(InputError, match="needs a volume"):
        Axial(2).A(torch.zeros(8, 8))
    with pytest.raises(InputError, match="needs a volume"):
        Axial(2).A_adjoint(torch.zeros(8, 8))


# Masks and compositions


def test_mask_is_a_projection():
    mask = Mask(half_mask(5, 1, 1))
    x = normal(5, 4, 4)
    assert torch.equal(mask.A(mask.A(x)), mask.A(x))
    missing = ~half_mask(5, 1, 1).flatten()
    assert missing.any()
    assert not missing.all()
    assert torch.equal(mask.A(x)[~missing], x[~missing])
    assert float(mask.A(x)[missing].abs().max()) == 0


def test_bad_masks_are_refused():
    with pytest.raises(InputError, match="zeros"):
        Mask(torch.full((3, 3), 0.5))
    with pytest.raises(InputError, match="does not fit"):
        Mask(torch.ones(3, 3)).A(torch.zeros(4, 4))
    with pytest.raises(InputError, match="does not fit"):
        Mask(torch.ones(2, 3, 3)).A(torch.zeros(3, 3))


def test_compositions_apply_the_last_one_first():
    x = normal(12, 12)
    blur, coarse = Blur(lopsided()), Downsample(3)
    chain = Compose(coarse, blur)
    assert torch.equal(chain.A(x), coarse.A(blur.A(x)))
    assert not torch.allclose(chain.A(x), blur.A(coarse.A(x)))
    assert chain.measured_shape((2, 12, 12)) == (2, 4, 4)
    assert Compose(Downsample(2), Downsample(3)).measured_shape((12, 12)) == (2, 2)
    with pytest.raises(InputError, match="at least one"):
        Compose()


# Norms


@pytest.mark.parametrize(
    ("operator", "shape", "expected"),
    [
        (Identity(), (8, 8), 1.0),
        (Blur(gaussian_kernel(1.0)), (12, 12), 1.0),
        (Blur(defocus_kernel(2.0)), (12, 12), 1.0),
        (Downsample(3), (12, 12), 1 / 3),
        (Downsample(3, mode="decimate"), (12, 12), 1.0),
        (Axial(4), (8, 4, 4), 0.5),
        (Mask(torch.zeros(4, 4)), (4, 4), 0.0),
    ],
)
def test_norms_in_closed_form(operator, shape, expected):
    assert operator_norm(operator, shape, iterations=100) == pytest.approx(expected, abs=2e-3)


def test_norm_is_the_largest_singular_value():
    kernel = torch.zeros(3, 3, dtype=torch.float64)
    kernel[0, 0], kernel[1, 1] = 0.7, 0.3
    blur = Blur(kernel)
    matrix = blur.A(torch.eye(36, dtype=torch.float64).reshape(36, 6, 6)).reshape(36, 36)
    largest = float(torch.linalg.matrix_norm(matrix, 2))
    assert operator_norm(blur, (6, 6), iterations=300) == pytest.approx(largest, rel=1e-3)
    assert 1.01 < largest < 2


# Kernels


@pytest.mark.parametrize(
    "kernel",
    [gaussian_kernel(0, 5), gaussian_kernel(0.4), gaussian_kernel(3.0), defocus_kernel(0.3)]
    + [defocus_kernel(radius) for radius in (0.5, 1.0, 2.5, 7.9)],
)
def test_kernels_are_what_blur_takes(kernel):
    Blur(kernel)
    assert kernel.dtype == torch.float32
    assert float(kernel.double().sum()) == pytest.approx(1, abs=1e-6)
    for turned in (kernel.T, kernel.flip(0), kernel.flip(1)):
        assert torch.allclose(kernel, turned, atol=1e-7)


def spread(kernel):
    """Variance along y."""
    offsets = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    return float((kernel.double().sum(1) * offsets.square()).sum())


@pytest.mark.parametrize("sigma", [0.8, 1.5, 2.0, 5.0])
def test_gaussian_has_its_variance(sigma):
    kernel = gaussian_kernel(sigma)
    assert spread(kernel) == pytest.approx(sigma**2, rel=2e-3)
    assert float(kernel[len(kernel) // 2, -1]) < 1e-3 * float(kernel.max())


@pytest.mark.parametrize("radius", [0.3, 0.7, 1.0, 2.0, 3.4, 6.0])
def test_disc_weighs_the_area_of_the_circle_in_each_column(radius):
    kernel = defocus_kernel(radius)
    edges = np.arange(len(kernel) + 1) - len(kernel) / 2
    inside = np.clip(edges, -radius, radius)
    area = inside * np.sqrt(radius**2 - inside**2) + radius**2 * np.arcsin(inside / radius)
    expected = np.diff(area) / (math.pi * radius**2)
    np.testing.assert_allclose(kernel.double().sum(0), expected, atol=1e-4)
    assert expected.sum() == pytest.approx(1)
    assert radius <= len(kernel) / 2 < radius + 1


def test_no_blur_is_the_delta():
    assert gaussian_kernel(0, 3).flatten().tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert defocus_kernel(0).tolist() == [[1.0]]
    assert gaussian_kernel(1.0, 9).shape == (9, 9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: gaussian_kernel(0, 4),
        lambda: gaussian_kernel(0, -1),
        lambda: gaussian_kernel(-1.0),
        lambda: gaussian_kernel(math.nan),
        lambda: gaussian_kernel(1.0, 6),
        lambda: defocus_kernel(-0.1),
        lambda: defocus_kernel(math.inf),
    ],
)
def test_impossible_kernels_are_refused(make):
    with pytest.raises(InputError):
        make()
