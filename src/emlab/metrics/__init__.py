"""How good an estimate is, and how sure we are of that number."""

from emlab.metrics.alignment import relative_error
from emlab.metrics.calibration import Reliability, coverage, error_against_spread
from emlab.metrics.fourier import Curve, fourier_ring_correlation, fourier_shell_correlation
from emlab.metrics.image import psnr, ssim
from emlab.metrics.intervals import Interval, mean_interval, paired_difference, wilson_interval
from emlab.metrics.seams import border_indices, seam_index

__all__ = [
    "Curve",
    "Interval",
    "Reliability",
    "border_indices",
    "coverage",
    "error_against_spread",
    "fourier_ring_correlation",
    "fourier_shell_correlation",
    "mean_interval",
    "paired_difference",
    "psnr",
    "relative_error",
    "seam_index",
    "ssim",
    "wilson_interval",
]
