"""Numbers that a chapter records, and the bounds that they have to keep.

A chapter ends like this::

    report = Report("04_mtd", OUT_DIR, PROFILE, SEED, DEVICE)
    report.data(digits, wanted="mnist_t10k")        # says so when it got something else
    report.simulated("gaussian fields", "5x5 targets drawn from the known covariance")
    report.shortcut("10 targets and 2 draws here, 50 targets in the paper")
    report.value("mnist.snr_1.error.ours", 0.42, low=0.39, high=0.45, n=20, unit="relative")
    report.value("mnist.snr_1.error.trivial_zero", 1.0)
    report.save()                                   # OUT_DIR/04_mtd/metrics.json

and ``tests/expected/<profile>/04_mtd.json`` says what is acceptable, why, and which trivial answers
must *not* be acceptable; `check` compares the two. See `emlab.report.checking` for that file.
"""

from emlab.report.checking import Outcome, check, compare
from emlab.report.record import PROFILES, Report
from emlab.report.schema import load_expected, load_metrics
from emlab.report.tables import format_metrics, format_outcomes, format_table
from emlab.report.targets import Target, format_targets, targets_met

__all__ = [
    "PROFILES",
    "Outcome",
    "Report",
    "Target",
    "check",
    "compare",
    "format_metrics",
    "format_outcomes",
    "format_table",
    "format_targets",
    "load_expected",
    "load_metrics",
    "targets_met",
]
