"""EM Generalist's claims, beside what a run measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = Mapping[str, Mapping[str, Any]]

# Row, what the paper says (quoted), what is shown of this run: {name} is a recorded number.
_ROWS = (
    (
        "G1: step size 15 best; 1 and 3 oversmooth, 50 leaves noise",
        "gamma 1 / 3 / 15 / 50: {dps.psnr.gamma_1} / {dps.psnr.gamma_3} / {dps.psnr.gamma_15} / "
        "{dps.psnr.gamma_50} dB, fine detail {dps.fine_power.gamma_1} / "
        "{dps.fine_power.gamma_3} / {dps.fine_power.gamma_15} / {dps.fine_power.gamma_50} of "
        "the truth's",
    ),
    (
        "G2: super-resolution declines gracefully; 4x: 26 dB, SSIM .75, FRC < 35 nm at 4 nm pixels",
        "2x / 3x / 4x: {upsample_2.psnr.ours} / {upsample_3.psnr.ours} / {upsample_4.psnr.ours} "
        "dB; 4x SSIM {upsample_4.ssim.ours}, FRC {upsample_4.frc_nm.ours} nm at 10 nm pixels",
    ),
    (
        "G3: severe defocus: up to 29 dB, SSIM .72, FRC < 30 nm at 4 nm pixels",
        "severe: {defocus_severe.psnr.ours} dB, SSIM {defocus_severe.ssim.ours}, FRC "
        "{defocus_severe.frc_nm.ours} nm; blind {defocus_severe.psnr.ours_blind} dB",
    ),
    (
        "G4: 6x axial: better PSNR, SSIM, FRC than interpolation and a supervised baseline",
        "over cubic {isotropic_6.gain_psnr.over_cubic} dB, over a supervised network "
        "{isotropic_6.gain_psnr.over_supervised} dB",
    ),
    (
        "G5: 10x axial keeps boundaries of cells and mitochondria",
        "agreement with neuron labels: ours {isotropic_10.boundary.ours}, cubic "
        "{isotropic_10.boundary.cubic}, true volume {boundary.truth}",
    ),
    (
        "G6: small round objects stay round and consistent across slices",
        "4x: roundness {isotropic_4.blobs.roundness.ours} of the truth's (cubic "
        "{isotropic_4.blobs.roundness.cubic}), correlation of neighbouring slices "
        "{isotropic_4.slice_correlation.ours}",
    ),
    (
        "G7: 4x axial: number and place of vesicles match",
        "found {isotropic_4.blobs.count_ratio.ours} of the number; recall "
        "{isotropic_4.blobs.recall.ours}, precision {isotropic_4.blobs.precision.ours}; cubic "
        "{isotropic_4.blobs.recall.cubic} and {isotropic_4.blobs.precision.cubic}",
    ),
    (
        "G8: register the restored image, never the raw one",
        "half a pixel leaves {registration.noise_kept} of the noise; neighbours correlate "
        "{registration.correlation_moved} instead of {registration.correlation}",
    ),
    (
        "G9: blended patches leave no seams",
        "worst border {field.seam.worst} from 1; tiles side by side {field.seam.mean_pasted}",
    ),
    (
        "G10: flow 26.7 times faster than diffusion, same quality",
        "{race.speedup} times, {race.psnr_gain} dB",
    ),
    (
        "G11: about 100 steps and alpha .3 suffice",
        "alpha 0 / .3 / 1: {alpha.psnr.alpha_0} / {alpha.psnr.alpha_0.3} / "
        "{alpha.psnr.alpha_1} dB; 10 / 100 / 300 steps: {flow_steps.psnr.steps_10} / "
        "{flow_steps.psnr.steps_100} / {flow_steps.psnr.steps_300} dB",
    ),
    (
        "G12: scores without truth follow quality",
        "rank correlation with PSNR: decorrelation {no_truth.decorrelation_nm.all} (blur alone "
        "{no_truth.decorrelation_nm.blur}), NIQE {no_truth.naturalness.all} "
        "({no_truth.naturalness.blur})",
    ),
    (
        "G13: one prior beats unsupervised peers and rivals supervised ones on every task",
        "over BM3D at noise .25 {denoise_25.gain_psnr.over_bm3d} dB, over Wiener "
        "{deblur.gain_psnr.over_wiener} dB, over cubic at 4x {upsample_4.gain_psnr.over_cubic} "
        "dB; over the supervised network {denoise_25.gain_psnr.over_supervised}, "
        "{deblur.gain_psnr.over_supervised} and {upsample_4.gain_psnr.over_supervised} dB",
    ),
)


class _Numbers(dict):
    """Recorded numbers as text; one that a profile does not measure is a dash."""

    def __init__(self, values: Values) -> None:
        super().__init__({name: _text(value) for name, value in values.items()})

    def fill(self, text: str) -> str:
        """Replace every ``{name}``."""
        pieces = text.split("{")
        filled = [pieces[0]]
        for piece in pieces[1:]:
            name, _, rest = piece.partition("}")
            filled.append(self.get(name, "-") + rest)
        return "".join(filled)


def claims(values: Values) -> str:
    """Markdown table: what the paper reports, and the numbers of a metrics.json beside it."""
    numbers = _Numbers(values)
    lines = ["| the paper reports (quoted) | measured here |", "|---|---|"]
    return "\n".join(lines + [f"| {claim} | {numbers.fill(here)} |" for claim, here in _ROWS])


def _text(value: Mapping[str, Any]) -> str:
    if value["low"] is None or value["low"] == value["high"]:
        return f"{value['value']:.3g}"
    return f"{value['value']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"
