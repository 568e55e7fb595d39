"""The recipe of the phase-map prior: trains, leaves a full card, judges on views held out."""

import pytest
import torch

from emlab.data.phase_maps import phase_maps
from emlab.errors import InputError
from emlab.methods.flowdps_config import PhaseScale, phase_scale
from emlab.priors import load_prior
from emlab.recipes import flowdps as flowdps_priors, recipes
from emlab.recipes.flowdps import Material, turn
from emlab.settings import PROFILES, read_profile


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.setenv("EMLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EMLAB_WEIGHTS", str(tmp_path / "weights"))
    return recipes()["flowdps_flow"]("smoke", "cpu", tmp_path / "weights", False)


def test_card_and_prior(trained):
    assert trained.recipe == "emlab train flowdps_flow --profile smoke"
    assert "2.63 A at 300 kV" in trained.data
    assert "within 3 degrees" in trained.split
    numbers = [trained.evaluation[f"denoising_psnr_at_{s:g}"] for s in (0.25, 0.5, 1, 2)]
    assert numbers == sorted(numbers, reverse=True)
    prior = load_prior("flowdps_flow")
    answer = prior.denoise(torch.randn(2, 64, 64, generator=torch.manual_seed(0)), 1.0)
    assert answer.isfinite().all()

    lesson = flowdps_priors.prepare(*_tables())
    assert lesson.images.dtype == torch.float16
    assert torch.equal(lesson.images.float(), phase_maps("barrel", 24, 0, "train").phases)


def _tables():
    table = read_profile("recipes/flowdps", "smoke")["training"]["flowdps_flow"]["material"]
    return {"objective": {"kind": "flow", "mean": 0.0, "std": 1.0}}, table


def test_every_profile_has_the_recipe():
    for profile in PROFILES:
        table = read_profile("recipes/flowdps", profile)["training"]["flowdps_flow"]
        Material(**table["material"])
        assert table["model"]["attention"]
    with pytest.raises(InputError, match="at least one"):
        Material(maps=0)


def test_scale_is_undone():
    scale = phase_scale()
    phase = torch.tensor([0.0, 0.3])
    assert torch.allclose(scale.to_radians(scale.to_prior(phase)), phase)
    assert scale.to_prior(torch.tensor(scale.mean + scale.std)).item() == pytest.approx(1, rel=1e-5)
    with pytest.raises(InputError, match="std > 0"):
        PhaseScale(0.0, 0.0)


def test_augmentation_is_one_of_the_eight_flips_and_turns():
    image = torch.arange(16.0).reshape(1, 4, 4)
    known = {
        tuple(torch.rot90(flipped, k, (1, 2)).flatten().tolist())
        for flipped in (image, image.flip(-1))
        for k in range(4)
    }
    generator = torch.Generator().manual_seed(0)
    found = {
        tuple(turn(image.half(), generator, PhaseScale(0.0, 1.0)).flatten().tolist())
        for _ in range(100)
    }
    assert found == known
