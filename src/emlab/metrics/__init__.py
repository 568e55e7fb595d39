"""How good an estimate is, and how sure we are of that number."""

from emlab.metrics.calibration import Reliability, coverage, error_against_spread
from emlab.metrics.fourier import (
    Curve,
    decorrelation_resolution,
    fourier_ring_correlation,
    fourier_shell_correlation,
)
from emlab.metrics.image import psnr, relative_error, ssim
from emlab.metrics.intervals import Interval, mean_interval, paired_difference, wilson_interval
from emlab.metrics.naturalness import Naturalness
from emlab.metrics.registration import Registered, register

__all__ = [
    "Curve",
    "Interval",
    "Naturalness",
    "Registered",
    "Reliability",
    "coverage",
    "decorrelation_resolution",
    "error_against_spread",
    "fourier_ring_correlation",
    "fourier_shell_correlation",
    "mean_interval",
    "paired_difference",
    "psnr",
    "register",
    "relative_error",
    "ssim",
    "wilson_interval",
]
