"""Restoring through the method's own functions, without the command line."""

from dataclasses import replace

import numpy as np
import torch

from emlab import metrics
from emlab.data.phantoms import neuropil
from emlab.methods import generalist
from emlab.methods.estimate import TimedPrior
from emlab.physics.operators import Downsample
from emlab.priors import GaussianPrior
from emlab.runtime import make_generator
from emlab.solvers.classical import cubic_upsample


def coarse_and_fine(factor, side=96):
    fine = neuropil((side, side), 3)
    return Downsample(factor).A(torch.from_numpy(fine)).numpy(), fine


def test_upsampling_does_not_take_aliased_detail_for_noise():
    coarse, fine = coarse_and_fine(4, 128)
    restored = generalist.upsample(coarse, 4, generalist.load_config("ours"), make_generator(0))
    assert restored.noise_sigma == 0
    assert "free of noise" in restored.notes[0]
    gain = metrics.psnr(restored.image, fine, 255) - metrics.psnr(
        cubic_upsample(coarse, 4), fine, 255
    )
    assert gain > 0.3


class Believer:
    """Believes in every image that it is shown."""

    def denoise(self, x, sigma):
        return x


def test_published_sampler_reaches_averages_over_blocks():
    """With a prior that changes nothing, the last step leaves what the measurement says."""
    coarse, _ = coarse_and_fine(4)
    config = generalist.load_config("paper")
    last = replace(config.solvers["upsample"], steps=400)
    config = replace(config, solvers={**config.solvers, "upsample": last})
    found = generalist.upsample(coarse, 4, config, make_generator(0), prior=Believer(), samples=1)
    again = Downsample(4).A(torch.from_numpy(found.image)).numpy()
    assert np.abs(again - coarse).mean() < 0.05 * coarse.std()


def test_a_timed_prior_answers_each_image_at_its_own_level_and_counts_them():
    prior, seen = GaussianPrior(torch.zeros(4, 4), 0.5), []
    timed = TimedPrior(prior, lambda *at: seen.append(at), 6)
    x, levels = torch.ones(3, 4, 4), torch.tensor([0.1, 0.5, 2.0])
    torch.testing.assert_close(
        timed.score(x, levels),
        torch.stack([prior.score(image, level) for image, level in zip(x, levels, strict=True)]),
    )
    timed.denoise(x, levels)
    assert seen == [(3, 6), (6, 6)]
    assert timed.cost(2).evaluations == 2
