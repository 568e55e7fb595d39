"""What the instrument does to a specimen: operators with adjoints, and noise."""

from emlab.physics.counting import GaussianCounts, Poisson
from emlab.physics.ctf import ComplexCTF
from emlab.physics.exit_wave import ExitWave
from emlab.physics.kernels import defocus_kernel, delta_kernel, gaussian_kernel
from emlab.physics.mtd import Measurement, MTDOperator, simulate_measurement
from emlab.physics.noise import (
    ColouredGaussianNoise,
    GaussianNoise,
    NoiseSpectrum,
    estimate_noise_sigma,
    estimate_noise_spectrum,
    noise_correlation,
)
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
    "ColouredGaussianNoise",
    "ComplexCTF",
    "Compose",
    "Downsample",
    "ExitWave",
    "GaussianCounts",
    "GaussianNoise",
    "Identity",
    "LinearOperator",
    "MTDOperator",
    "Mask",
    "Measurement",
    "NoiseSpectrum",
    "Poisson",
    "Rotations",
    "defocus_kernel",
    "delta_kernel",
    "estimate_noise_sigma",
    "estimate_noise_spectrum",
    "gaussian_kernel",
    "noise_correlation",
    "operator_norm",
    "simulate_measurement",
]
