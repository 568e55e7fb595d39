"""What the chapter set out to reach."""

from __future__ import annotations

import math

from emlab.bench import Target
from emlab.errors import InputError
from emlab.recipes.generalist_tasks import GREY_RANGE


def _finer(factor: int) -> list[Target]:
    task, label = f"upsample_{factor}", f"{factor}x super-resolution"
    return [
        Target(f"{label} over cubic", f"{task}.gain_psnr.over_cubic", 1.0, unit="dB"),
        Target(f"{label}, SSIM over cubic", f"{task}.gain_ssim.over_cubic", 0.0),
        Target(f"{label}, FRC over cubic", f"{task}.gain_frc_nm.over_cubic", 0.0, unit="nm"),
    ]


def _thicker(factor: int, least: float, aim: float) -> list[Target]:
    task, label = f"isotropic_{factor}", f"{factor}x isotropic"
    views = [
        Target(
            f"{label}, {view} over cubic",
            f"{task}.psnr_{view}.ours",
            least,
            aim=aim,
            unit="dB",
            minus=f"{task}.psnr_{view}.cubic",
        )
        for view in ("xz", "yz")
    ]
    return [
        *views,
        Target(f"{label}, SSIM over cubic", f"{task}.gain_ssim.over_cubic", 0.0),
        Target(f"{label}, FSC over cubic", f"{task}.gain_frc_nm.over_cubic", 0.0, unit="nm"),
        Target(
            f"{label}, neighbouring slices over the truth's",
            f"{task}.slice_correlation.ours",
            0.98,
            1.02,
        ),
    ]


TARGETS = (
    Target("noise .1 over BM3D", "denoise_10.gain_psnr.over_bm3d", 0.3, aim=0.7, unit="dB"),
    Target("noise .25 over BM3D", "denoise_25.gain_psnr.over_bm3d", 0.8, aim=1.5, unit="dB"),
    Target("blur over Richardson-Lucy", "deblur.gain_psnr.over_richardson_lucy", 1.0, unit="dB"),
    Target("blur over Wiener", "deblur.gain_psnr.over_wiener", 1.0, unit="dB"),
    Target("blur, FRC over Wiener", "deblur.gain_frc_nm.over_wiener", 0.0, unit="nm"),
    *(target for factor in (2, 3, 4) for target in _finer(factor)),
    *_thicker(4, 0.6, 1.0),
    *_thicker(6, 0.7, 1.2),
    *_thicker(10, 0.6, 1.0),
    Target("real pair over BM3D", "real_pair.gain_psnr.over_bm3d", 0.0, unit="dB"),
    Target("real pair, FRC over BM3D", "real_pair.gain_frc_nm.over_bm3d", 0.0, unit="nm"),
    Target("flow against DDPM, times faster", "race.speedup", 20.0),
    Target("flow over DDPM", "race.psnr_gain", -0.3, unit="dB"),
    Target("ours against DDPM, times faster", "race.speedup_ours", 20.0),
    Target("ours over DDPM", "race.psnr_gain_ours", -0.3, unit="dB"),
    Target("seam index of the worst border, from 1", "field.seam.worst", most=0.02),
    *(
        Target(f"90 % intervals cover, {label}", f"calibration.coverage.{name}", 0.85, 0.95)
        for name, label in (
            ("denoise_10", "noise .1"),
            ("denoise_25", "noise .25"),
            ("deblur", "blur"),
            ("upsample_4", "4x"),
        )
    ),
    Target("time inside the network, volume", "speed.network_share", 0.9),
)


def ceiling(sigma: float, factor: int = 1) -> float:
    """PSNR in dB that noise of the truth itself leaves to a perfect restoration.

    Parameters
    ----------
    sigma : float
        White noise of the truth in grey levels 0..255, above 0.
    factor : int
        Coarse pixels are averages over ``factor ** 2`` of the truth's, which keep that share of
        its noise's variance; the rest cannot be known. With 1 nothing of the noise is known.
    """
    if sigma <= 0 or factor < 1:
        raise InputError("the ceiling needs noise above 0 and a factor of 1 or more")
    lost = 1.0 if factor == 1 else 1 - 1 / factor**2
    return 20 * math.log10(GREY_RANGE / sigma) - 10 * math.log10(lost)
