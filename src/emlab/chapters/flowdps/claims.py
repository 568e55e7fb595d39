"""FlowDPS's claims and the chapter's targets, beside what a run measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emlab.bench import Target
from emlab.chapters.em_generalist.claims import fill

Values = Mapping[str, Mapping[str, Any]]

# Row, what the paper says (quoted), what is shown of this run: {name} is a recorded number.
_ROWS = (
    (
        "F1: one noisy image suffices; more contrast and structure than the iterative baseline "
        "(pictures only)",
        "phase error of ours {rmse.ours} rad, of the iterative sparse baseline {rmse.sparse}, of "
        "Wiener {rmse.wiener}; ratio {rmse_ratio.over_sparse} and {rmse_ratio.over_wiener}; FRC "
        ".5 at {finer_than.sparse} and {finer_than.wiener} times the frequency",
    ),
    (
        "F2: averaging 10 samples removes occasional invented features",
        "invented power, of the truth's: one sample {averaging.invented.single}, the mean "
        "{averaging.invented.averaged}; what all samples share {averaging.invented.shared}; near "
        "zeros of the lens {averaging_zeros.invented.single}, {averaging_zeros.invented.averaged} "
        "and {averaging_zeros.invented.shared}",
    ),
    (
        "F3: flow posterior sampling works in a nonlinear, noise-dominated problem",
        "90 % intervals of FlowDPS as published cover {coverage.paper.all} at {rmse.paper} rad, "
        "of the guided sampler {coverage.ours.all} at {rmse.ours} rad; at dose 20 and 80 "
        "{dose_sweep.rmse.ours.at_20} and {dose_sweep.rmse.ours.at_80} rad",
    ),
)


TARGETS = (
    Target("phase error over Wiener's", "rmse_ratio.over_wiener", most=0.6),
    Target(
        "phase error over the best classical peer's", "rmse_ratio.over_best_classical", most=0.8
    ),
    Target("phase error over the supervised network's", "rmse_ratio.over_supervised", most=1.05),
    Target("frequency at FRC .5 over the finest classical", "finer.over_finest_classical", 1.2),
    Target("the same near zeros of the lens", "finer.near_zeros", 1.2),
    *(
        Target(f"90 % intervals cover, dose {dose}", f"coverage.ours.dose_{dose}", 0.85, 0.95)
        for dose in (30, 45, 60)
    ),
    Target("AUC of another protein by coarse chi^2", "stranger.auc.worst", 0.95),
)


def claims(values: Values) -> str:
    """Markdown table: what the paper reports, and the numbers of a metrics.json beside it."""
    lines = ["| the paper reports | measured here |", "|---|---|"]
    return "\n".join(lines + [f"| {claim} | {fill(here, values)} |" for claim, here in _ROWS])
