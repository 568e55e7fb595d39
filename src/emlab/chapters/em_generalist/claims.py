"""EM Generalist's claims, beside what a run measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        "{alpha.psnr.alpha_1} dB; 10 / 30 / 100 steps: {flow_steps.psnr.steps_10} / "
        "{flow_steps.psnr.steps_30} / {flow_steps.psnr.steps_100} dB",
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

# Row, a condition of the scorecard, what is said where it is not met.
_DEPARTURES = (
    (
        "G1",
        "dps.psnr.gamma_15 > dps.psnr.gamma_50",
        "the step size is in units of the image: another stretch of grey levels moves the best one",
    ),
    (
        "G4",
        "isotropic_6.gain_psnr.over_supervised > 0",
        "at 6x the supervised network, trained on just this degradation, is "
        "{isotropic_6.gain_psnr.over_supervised} dB from ours, counted for ours",
    ),
    (
        "G5",
        "isotropic_10.boundary.ours > 0.75",
        "at 10x boundaries agree with the labels at {isotropic_10.boundary.ours}, with cubic "
        "splines at {isotropic_10.boundary.cubic}, in the truth at {boundary.truth}",
    ),
    (
        "G6",
        "isotropic_4.slice_correlation.ours < 1.02",
        "restored slices correlate {isotropic_4.slice_correlation.ours} times as much as the "
        "truth's (cubic {isotropic_4.slice_correlation.cubic}): the truth has noise of its own, "
        "different in each slice, and no restoration brings it back",
    ),
    (
        "G7",
        "isotropic_4.blobs.recall.ours > 0.8",
        "at 4x {isotropic_4.blobs.recall.ours} of the vesicles are found again: those of about "
        "one slice's thickness are averaged away",
    ),
    (
        "G9",
        "field.seam.worst < 0.02",
        "the worst of all borders is {field.seam.worst} from 1; at borders the index scatters "
        "{field.seam.over_chance} times as much as elsewhere",
    ),
    (
        "G10",
        "race.psnr_gain > -0.3",
        "the published flow sampler is faster and {race.psnr_gain} dB from the diffusion sampler",
    ),
    (
        "G11",
        "alpha.below_best < 0.3",
        "alpha .3 is {alpha.below_best} dB below the best alpha of the sweep",
    ),
    (
        "G11",
        "flow_steps.below_best < 0.3",
        "100 steps are {flow_steps.below_best} dB below the best number of the sweep",
    ),
    (
        "G12",
        "no_truth.naturalness.all > 0.7",
        "NIQE orders causes of damage differently from PSNR: {no_truth.naturalness.all}",
    ),
    (
        "G12",
        "no_truth.decorrelation_nm.all > 0.7",
        "decorrelation takes noise for detail: {no_truth.decorrelation_nm.all}",
    ),
    (
        "G13",
        "real_pair.gain_psnr.over_bm3d:low > 0",
        "on the real pair, tissue that was never seen, ours is {real_pair.gain_psnr.over_bm3d} dB "
        "from BM3D",
    ),
    (
        "G13",
        "denoise_25.gain_psnr.over_supervised > -0.3",
        "at noise .25 ours is {denoise_25.gain_psnr.over_supervised} dB from the supervised "
        "network",
    ),
    (
        "G13",
        "deblur.gain_psnr.over_supervised > -0.3",
        "on the blur ours is {deblur.gain_psnr.over_supervised} dB from the supervised network",
    ),
    (
        "G13",
        "upsample_4.gain_psnr.over_supervised > -0.3",
        "at 4x ours is {upsample_4.gain_psnr.over_supervised} dB from the supervised network",
    ),
)


def departures(
    values: Values, conditions: Sequence[tuple[str, str, str]] = _DEPARTURES
) -> list[str]:
    """A sentence for every condition of a claim that a metrics.json's values do not meet.

    Parameters
    ----------
    conditions : sequence of (row, condition, sentence)
        ``"name > number or name"``; {name} in a sentence is a recorded number.
    """
    return [
        f"{row}: {fill(sentence, values)}."
        for row, condition, sentence in conditions
        if _met(condition, values) is False
    ]


def _met(condition: str, values: Values) -> bool | None:
    name, sign, limit = condition.split()
    left, right = (_number(token, values) for token in (name, limit))
    if left is None or right is None:
        return None
    return left > right if sign == ">" else left < right


def _number(token: str, values: Values) -> float | None:
    name, _, end = token.partition(":")
    if name in values:
        return values[name][end or "value"]
    return float(token) if token.lstrip("-").replace(".", "", 1).isdigit() else None


def claims(values: Values) -> str:
    """Markdown table: what the paper reports, and the numbers of a metrics.json beside it."""
    lines = ["| the paper reports (quoted) | measured here |", "|---|---|"]
    return "\n".join(lines + [f"| {claim} | {fill(here, values)} |" for claim, here in _ROWS])


def fill(text: str, values: Values) -> str:
    """Put recorded numbers in place of every ``{name}``; one that was not measured is a dash."""
    first, *pieces = text.split("{")
    filled = [first]
    for piece in pieces:
        name, _, rest = piece.partition("}")
        filled.append((_text(values[name]) if name in values else "-") + rest)
    return "".join(filled)


def _text(value: Mapping[str, Any]) -> str:
    if value["low"] is None or value["low"] == value["high"]:
        return f"{value['value']:.3g}"
    return f"{value['value']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"
