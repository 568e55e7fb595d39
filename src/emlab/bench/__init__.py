"""Comparisons that can be trusted: studies, claims with verdicts, bounds, reports.

A chapter ends like this::

    report = Report("04_mtd", OUT_DIR, PROFILE, SEED, DEVICE)
    report.data(digits, wanted="mnist_t10k")        # says so when it got something else
    report.simulated("gaussian fields", "5x5 targets drawn from the known covariance")
    report.shortcut("10 targets and 2 draws here, 50 targets in the paper")
    report.value("mnist.snr_1.error.ours", 0.42, low=0.39, high=0.45, n=20, unit="relative")
    report.value("mnist.snr_1.error.trivial_zero", 1.0)
    report.save()                                   # OUT_DIR/04_mtd/metrics.json

and ``tests/expected/<profile>/04_mtd.json`` says what is acceptable, why, and which trivial answers
must *not* be acceptable; `check` compares the two. See `emlab.bench.bounds` for that file.
"""

from emlab.bench.bounds import Outcome, check, compare
from emlab.bench.claims import (
    Claim,
    Target,
    claims_table,
    fill,
    format_targets,
    targets_met,
)
from emlab.bench.report import PROFILES, Report
from emlab.bench.schema import load_expected, load_metrics
from emlab.bench.tables import format_metrics, format_outcomes, format_table

__all__ = [
    "PROFILES",
    "Claim",
    "Outcome",
    "Report",
    "Target",
    "check",
    "claims_table",
    "compare",
    "fill",
    "format_metrics",
    "format_outcomes",
    "format_table",
    "format_targets",
    "load_expected",
    "load_metrics",
    "targets_met",
]
