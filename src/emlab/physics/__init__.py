"""What the instrument does to a specimen: operators with adjoints, and noise."""

from emlab.physics.kernels import defocus_kernel, delta_kernel, gaussian_kernel
from emlab.physics.mtd import Measurement, MTDOperator, simulate_measurement
from emlab.physics.operators import (
    Axial,
    Blur,
    Compose,
    Downsample,
    Identity,
    LinearOperator,
    Mask,
    operator_norm,
)
from emlab.physics.rotations import Rotations

__all__ = [
    "Axial",
    "Blur",
    "Compose",
    "Downsample",
    "Identity",
    "LinearOperator",
    "MTDOperator",
    "Mask",
    "Measurement",
    "Rotations",
    "defocus_kernel",
    "delta_kernel",
    "gaussian_kernel",
    "operator_norm",
    "simulate_measurement",
]
