"""What the instrument does to a specimen: operators with adjoints, and noise."""

from emlab.physics.mtd import Measurement, MTDOperator, simulate_measurement
from emlab.physics.rotations import Rotations

__all__ = ["MTDOperator", "Measurement", "Rotations", "simulate_measurement"]
