"""How good an estimate is, and how sure we are of that number."""

from emlab.metrics.alignment import relative_error
from emlab.metrics.intervals import Interval, mean_interval, paired_difference

__all__ = ["Interval", "mean_interval", "paired_difference", "relative_error"]
