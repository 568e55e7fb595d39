"""How good an estimate is, and how sure we are of that number."""

from emlab.metrics.alignment import relative_error
from emlab.metrics.fourier import Curve, fourier_ring_correlation, fourier_shell_correlation
from emlab.metrics.image import psnr, ssim
from emlab.metrics.intervals import Interval, mean_interval, paired_difference

__all__ = [
    "Curve",
    "Interval",
    "fourier_ring_correlation",
    "fourier_shell_correlation",
    "mean_interval",
    "paired_difference",
    "psnr",
    "relative_error",
    "ssim",
]
