"""The trained competitor: what it is shown, what it starts from, that it trains and is judged."""

import numpy as np
import pytest
import torch
from torch import nn

from emlab.data.particles import draw_metadata
from emlab.errors import InputError
from emlab.methods.flowdps_config import PhaseScale
from emlab.models import build
from emlab.physics import Poisson
from emlab.recipes import recipes
from emlab.recipes.flowdps import Degradation, Restorer, load_restorer, paired_loss

SCALE = PhaseScale(0.02, 0.08)
DEGRADATION = Degradation(dose=(40.0, 50.0), window=64)
OPTICS = draw_metadata(20, 0)


def network():
    """Untrained, so that it returns zeros."""
    return build({"kind": "unet", "channels": 2, "widths": [8, 8], "embedding": 16})


def phases(n=3):
    y, x = np.indices((64, 64)) - 32
    one = 0.3 * np.exp(-(x**2 + 4 * y**2) / 400) * (1 + 0.5 * np.cos(x / 2))
    return torch.from_numpy(one.astype(np.float32)).repeat(n, 1, 1)


def seen(clean, seed=0):
    generator = torch.Generator().manual_seed(seed)
    instrument = DEGRADATION.instrument(OPTICS, len(clean), generator)
    return instrument, Poisson().sample(instrument.A(clean), generator)


def test_instrument_has_the_optics_of_the_rows_and_a_dose_within_the_range():
    instrument = DEGRADATION.instrument(OPTICS, 6, torch.Generator().manual_seed(1))
    assert set(instrument.ctf.defocus_u_angstrom.tolist()) <= set(OPTICS.defocus_u_angstrom)
    dose = instrument.counts.flatten() / instrument.ctf.pixel_size_angstrom**2
    assert ((dose >= 40) & (dose <= 50)).all()
    assert len(dose.unique()) == 6


def test_linear_estimate_has_the_sign_and_the_size_of_the_phase():
    clean = phases()
    instrument, counts = seen(clean)
    linear = Restorer(network(), SCALE).linear(instrument, counts)
    centred, truth = (a - a.mean((1, 2), keepdim=True) for a in (linear, clean))
    slope = (centred * truth).sum() / truth.square().sum()
    assert 0.2 < slope < 1.2
    assert (centred - truth).square().mean() < 0.9 * truth.square().mean()


def test_untrained_answer_is_the_linear_estimate_and_the_loss_its_error():
    clean = SCALE.to_prior(phases())
    restorer = Restorer(network(), SCALE)
    instrument, counts = seen(phases())
    linear = restorer.linear(instrument, counts)
    assert torch.equal(restorer.restore(instrument, counts), linear)
    generator = torch.Generator().manual_seed(0)
    loss = paired_loss(restorer.network, clean, generator, DEGRADATION, OPTICS, SCALE)
    assert loss.item() == pytest.approx(((linear - phases()) / 0.08).square().mean().item())


def test_network_sees_the_estimate_and_the_counts_in_the_middle_of_the_window():
    given = []

    class Spy(nn.Module):
        def forward(self, both, condition):
            given.append((both, condition))
            return torch.zeros_like(both)

    instrument = Degradation(window=80).instrument(OPTICS, 1, torch.Generator().manual_seed(2))
    counts = instrument.A(phases(1))
    counts[0, 8, 8] = 2 * instrument.counts[0, 0, 0]
    Restorer(Spy(), SCALE).restore(instrument, counts)
    both, condition = given[0]
    assert both.shape == (1, 2, 64, 64)
    assert both[0, 1, 0, 0] == pytest.approx(instrument.counts.item() ** 0.5, rel=1e-4)
    assert condition.item() == pytest.approx(np.log(instrument.counts.item()) / 4, rel=1e-5)


def test_recipe_trains_and_says_what_the_network_adds(tmp_path, monkeypatch):
    monkeypatch.setenv("EMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EMLAB_WEIGHTS", str(tmp_path / "weights"))
    card = recipes()["flowdps_supervised"]("smoke", "cpu", tmp_path / "weights", False)
    assert card.evaluation["phase_rmse"] > 0
    assert 0 < card.evaluation["phase_rmse_linear"] < 0.1
    assert load_restorer().scale.std > 0
    with pytest.raises(InputError, match="the dose above 0"):
        Degradation(dose=(0.0, 1.0))
