"""The supervised competitor: pairs made by the table's own degradations, one network for all."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn

from emlab import weights
from emlab.data.phantoms import neuropil
from emlab.errors import InputError
from emlab.metrics import psnr
from emlab.physics.operators import gaussian_kernel
from emlab.recipes import generalist_supervised as supervised, recipes
from emlab.recipes.generalist_tasks import TASKS, Task
from emlab.settings import PROFILES, read_profile, read_settings
from emlab.solvers.classical import cubic_axial, cubic_upsample

RECIPE = read_settings(f"recipes/{supervised.NAME}")["recipes"][supervised.NAME]
SCALES = tuple(RECIPE["objective"]["scales"])


class Nothing(nn.Module):
    """Returns zeros and remembers the conditions."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, condition):
        self.seen += condition.tolist()
        return torch.zeros_like(x)


@lru_cache
def drawn():
    return torch.from_numpy(neuropil((180, 60), 2)).reshape(3, 60, 60) / 127.5 - 1


def patches(count=3):
    return drawn().repeat(-(-count // 3), 1, 1)[:count]


def test_measurements_return_to_the_grid_as_the_cubic_peer_does():
    grey = torch.from_numpy(neuropil((60, 12, 12), 3))
    for which in TASKS.values():
        clean = grey if which.kind == "isotropic" else grey[:4]
        measured = which.operator().A(clean)
        restored = supervised.Restorer(Nothing(), SCALES).restore(which, measured)
        assert restored.shape == clean.shape
        if which.kind == "isotropic":
            expected = cubic_axial(measured, which.factor)
        elif which.kind == "upsample":
            expected = np.stack([cubic_upsample(plane, which.factor) for plane in measured])
        else:
            expected = measured
        np.testing.assert_allclose(restored, expected, atol=2e-2)


def test_a_network_that_knows_nothing_has_unit_loss_in_every_task():
    generator = torch.Generator().manual_seed(0)
    clean = patches()
    errors = []
    for which in TASKS.values():
        rough = which.back_to_grid(which.measure_section(clean, generator, 2.0))
        errors.append((rough - clean).square().mean().sqrt().item() / 2)
    loss = supervised.paired_loss(Nothing(), patches(90), generator, errors)
    assert loss.item() == pytest.approx(1, rel=0.2)


def test_all_tasks_are_drawn_and_told_apart():
    network = Nothing()
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        supervised.paired_loss(network, patches(15), generator, SCALES)
    assert len({round(value, 4) for value in network.seen}) == len(TASKS)
    assert 0 < min(network.seen) < max(network.seen) < 1


def test_pairs_are_made_in_full_precision_also_under_autocast():
    def value():
        generator = torch.Generator().manual_seed(3)
        return supervised.paired_loss(Nothing(), patches(15), generator, SCALES).item()

    exact = value()
    with torch.autocast("cpu", torch.bfloat16):
        assert value() == pytest.approx(exact, rel=1e-5)


def test_loss_repeats_with_its_generator():
    values = [
        supervised.paired_loss(Nothing(), patches(), torch.Generator().manual_seed(s), SCALES)
        for s in (1, 1, 2)
    ]
    assert values[0] == values[1] != values[2]


class Oracle(nn.Module):
    """Knows the clean patches and what the task's rough image lacks."""

    def __init__(self, clean, scales):
        super().__init__()
        self.clean, self.scales = clean, torch.tensor(scales)

    def forward(self, x, condition):
        number = (condition * len(TASKS) - 0.5).round().long()
        return (self.clean[:, None] - x) / (2 * self.scales[number])[:, None, None, None]


def test_the_residual_is_scaled_in_training_as_in_use():
    clean = patches(1)
    oracle = Oracle(clean, SCALES)
    generator = torch.Generator().manual_seed(0)
    for seed in range(8):
        generator.manual_seed(seed)
        assert supervised.paired_loss(oracle, clean, generator, SCALES).item() < 1e-8
    grey = (clean[0] + 1) * 127.5
    for name in ("denoise_25", "upsample_3"):
        measured = TASKS[name].measure(grey, generator)
        restored = supervised.Restorer(oracle, SCALES).restore(TASKS[name], measured)
        assert psnr(restored, grey, 255) > 80


def test_scales_must_fit_the_tasks():
    with pytest.raises(InputError, match="9 positive scales"):
        supervised.Restorer(Nothing(), SCALES[1:])


def test_an_unknown_task_has_no_number():
    stranger = Task("blur_3", "blur 3 px", "deblur", kernel=gaussian_kernel(3.0))
    with pytest.raises(InputError, match="not trained for"):
        supervised.Restorer(Nothing(), SCALES).restore(stranger, torch.zeros(16, 16))


def test_every_profile_says_how_long_to_train():
    for profile in PROFILES:
        table = read_profile(f"recipes/{supervised.NAME}", profile)["training"][supervised.NAME]
        assert table["material"]["patch"] % 60 == 0  # divides by 2, 3, 4, 6 and 10
    assert supervised.NAME in recipes()


def test_the_recipe_leaves_weights_that_restore(tmp_path, monkeypatch):
    grey = ((drawn() + 1) * 127.5).round().to(torch.uint8).numpy()
    for name in ("training_patches", "validation_patches"):
        monkeypatch.setattr(supervised, name, lambda material: grey)
    card = recipes()[supervised.NAME]("smoke", "cpu", tmp_path)
    assert "validation on planes 160-179" in card.split
    assert {f"psnr_{name}" for name in TASKS} < set(card.evaluation)
    monkeypatch.setenv("EMLAB_WEIGHTS", str(tmp_path))
    restorer = supervised.load_restorer()
    grey = torch.from_numpy(neuropil((48, 48), 1))
    restored = restorer.restore(TASKS["denoise_10"], grey)
    assert restored.shape == grey.shape
    assert weights.card(supervised.NAME).sha256 == card.sha256
