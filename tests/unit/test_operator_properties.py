r"""Operators of random sizes and settings: linear, with exact transposes, of the shape they say."""

from __future__ import annotations

import torch
from hypothesis import given, settings, strategies as st

from emlab.physics.mtd import Rotations
from emlab.physics.operators import (
    Axial,
    Blur,
    Compose,
    Downsample,
    Identity,
    Mask,
    Scaled,
    ShapedOperator,
    defocus_kernel,
    gaussian_kernel,
)

Case = tuple[ShapedOperator, tuple[int, ...]]
SEEDS = st.integers(0, 2**31)
SIDES = st.integers(1, 12)


def normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@st.composite
def blurs(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(["gaussian", "disc", "free"]))
    if kind == "free":
        side = 2 * draw(st.integers(0, 4)) + 1
        kernel = normal((side, side), draw(SEEDS)).abs()
        kernel = kernel / kernel.sum()
    else:
        make = gaussian_kernel if kind == "gaussian" else defocus_kernel
        kernel = make(draw(st.floats(0.1, 3))).double()
    return Blur(kernel), (draw(SIDES), draw(SIDES))


@st.composite
def samplings(draw: st.DrawFn) -> Case:
    factor, mode = draw(st.integers(1, 4)), draw(st.sampled_from(["average", "decimate"]))
    thickness = draw(st.none() | st.floats(0.3, 9))
    sides = [draw(SIDES), draw(SIDES), draw(SIDES)]
    if draw(st.booleans()):
        sides[0] *= factor
        return Axial(factor, mode, thickness), tuple(sides)
    axes = draw(st.sampled_from([(-2, -1), (-1,), (-3, -1), (-3, -2, -1)]))
    for axis in axes:
        sides[axis] *= factor
    return Downsample(factor, axes, mode, thickness), tuple(sides)


@st.composite
def masks(draw: st.DrawFn) -> Case:
    shape = tuple(draw(st.lists(SIDES, min_size=2, max_size=3)))
    seen = tuple(draw(st.sampled_from([1, side])) for side in shape)
    return Mask(normal(seen, draw(SEEDS)) > 0), shape


@st.composite
def operators(draw: st.DrawFn) -> Case:
    operator, shape = draw(st.one_of(blurs(), samplings(), masks()))
    how = draw(st.sampled_from(["alone", "scaled", "composed"]))
    if how == "scaled":
        operator = Scaled(operator, draw(st.floats(-3, 3)))
    elif how == "composed":
        kernel = gaussian_kernel(draw(st.floats(0.3, 2))).double()
        operator = Compose(operator, Blur(kernel), Identity())
    return operator, shape


@given(case=operators(), leading=st.lists(st.integers(1, 2), max_size=2), seed=SEEDS)
@settings(max_examples=150)
def test_operators_are_linear_and_have_exact_transposes(
    case: Case, leading: list[int], seed: int
) -> None:
    operator, inner = case
    shape = (*leading, *inner)
    x, other = normal(shape, seed), normal(shape, seed + 1)
    measured = operator.A(x)
    assert measured.shape == operator.measured_shape(shape)
    y = normal(tuple(measured.shape), seed + 2)
    back = operator.A_adjoint(y)
    assert back.shape == x.shape
    scale = 1 + float(x.norm() * y.norm())
    assert abs(float((measured * y).sum() - (x * back).sum())) < 1e-10 * scale
    combined = operator.A(2.5 * x - 3 * other)
    assert torch.allclose(combined, 2.5 * measured - 3 * operator.A(other), atol=1e-10)


@given(size=st.integers(2, 9), count=st.sampled_from([1, 2, 3, 4, 6]), seed=SEEDS)
@settings(max_examples=20)
def test_rotations_have_exact_transposes(size: int, count: int, seed: int) -> None:
    rotations = Rotations(count, size, dtype=torch.float64)
    x, y = normal((size, size), seed), normal((count, size, size), seed + 1)
    gap = (rotations.A(x) * y).sum() - (x * rotations.A_adjoint(y)).sum()
    assert abs(float(gap)) < 1e-10 * (1 + float(x.norm() * y.norm()))
