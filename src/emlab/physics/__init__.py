"""What the instrument does to a specimen: operators with adjoints, and noise."""

from emlab.physics.counting import Poisson
from emlab.physics.ctf import ComplexCTF
from emlab.physics.exit_wave import ExitWave
from emlab.physics.noise import GaussianNoise

__all__ = ["ComplexCTF", "ExitWave", "GaussianNoise", "Poisson"]
