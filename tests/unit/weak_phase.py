"""The instrument of textbooks: linear in the phase, so that posteriors have a closed form."""

import torch

from emlab.physics.exit_wave import ExitWave, LinearisedExitWave


class WeakPhase(ExitWave):
    """The counts of `ExitWave` to first order, N (1 + 2 x * c); not bounded below by zero."""

    def A(self, image):
        return self.linearised(image).expected

    def linearised(self, image):
        at_nothing = LinearisedExitWave(self, torch.zeros_like(image))
        at_nothing.expected = at_nothing.expected + at_nothing.A(image)
        return at_nothing
