"""Recipes of the digits: each trains, leaves weights with a full card, never sees a test digit."""

import math

import pytest
import torch

from emlab import weights
from emlab.data.digits import load_digits
from emlab.data.registry import hash_images
from emlab.errors import InputError
from emlab.priors import load_prior
from emlab.recipes import lesson as recipe, mtd as mtd_priors
from emlab.settings import PROFILES, read_profile

RECIPES = recipe.named("mtd", mtd_priors.prepare)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights of every recipe, made in the smoke profile."""
    out = tmp_path_factory.mktemp("weights")
    for train_one in RECIPES.values():
        assert train_one(profile="smoke", device="cpu", out=out).sha256
    return out


@pytest.fixture
def trained(folder, monkeypatch):
    monkeypatch.setenv("EMLAB_WEIGHTS", str(folder))
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_card_says_how_the_weights_were_made(trained, name):
    card = weights.card(name)
    settings = read_profile("recipes/mtd", "smoke")["training"][name]
    assert card.recipe == f"emlab train {name} --profile smoke"
    assert card.steps == settings["steps"]
    assert card.model == settings["model"]
    assert card.data
    assert card.limits
    assert card.commit
    assert card.raw["precision"] == "float32", "as settings say"
    assert "validation" in card.split
    assert "test digits never seen" in card.split or name == "mtd_gaussian_mlp"
    assert card.evaluation.keys() > {"loss"}
    assert all(0 <= v < 1e3 for k, v in card.evaluation.items() if k != "loss")


def test_turned_digits_keep_the_place_that_digits_have():
    digits = torch.from_numpy(load_digits("validation").images[:40])
    steps = torch.arange(28.0)
    turns = torch.arange(40) % 4
    moved = mtd_priors.turned(digits, turns)
    for axes in ((1, 2), (2, 1)):
        middle = moved.sum(axes[0]) @ steps / moved.sum((1, 2))
        assert (middle - 14).abs().max() < 1
    assert torch.equal(moved[turns == 0], digits[turns == 0])
    assert torch.equal(moved[2], digits[2].rot90(2).roll((1, 1), (0, 1)))


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"mtd_mnist_turns"}))
def test_weights_become_a_prior(trained, name):
    prior = load_prior(name)
    if name == "mtd_gaussian_mlp":
        images = mtd_priors.gaussian_prior().sample(3, torch.Generator().manual_seed(0))
        answer = prior.score(images)
    else:
        images = torch.from_numpy(load_digits("validation").images[:3])
        answer = prior.denoise(images, torch.tensor([0.1, 1.0, 5.0]))
    assert answer.shape == images.shape
    assert answer.isfinite().all()


def test_the_loss_of_turns_is_that_of_the_true_turn_and_of_no_other():
    table = {"data": "mnist", "objective": {"kind": "turns", "noise": 0.0}}
    lesson = mtd_priors.prepare(table, {})
    digit = lesson.images[:1]
    views = torch.cat([mtd_priors.turned(digit, torch.tensor([k])) for k in range(4)])

    def knows(images):  # compares with the four views of this digit
        return -1e3 * torch.cdist(images.flatten(1), views.flatten(1))

    generator = torch.Generator().manual_seed(0)
    assert lesson.loss(knows, digit.repeat(20, 1, 1), generator) < 1e-6
    assert lesson.loss(lambda x: -knows(x), digit.repeat(20, 1, 1), generator) > 1


def test_same_seed_same_weights(trained, tmp_path):
    name = "mtd_gaussian_mlp"
    again = RECIPES[name](profile="smoke", device="cpu", out=tmp_path)
    assert again.sha256 == weights.card(name).sha256


def test_every_profile_has_settings_for_every_recipe():
    for profile in PROFILES:
        assert read_profile("recipes/mtd", profile)["training"].keys() == RECIPES.keys()
    with pytest.raises(InputError, match="unknown profile"):
        RECIPES["mtd_gaussian_mlp"](profile="huge")


def test_training_digits_are_none_of_the_others(monkeypatch):
    drawn = {}

    def spy(model, loss, images, config, **arguments):
        drawn["images"] = images
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "train", spy)
    with pytest.raises(KeyboardInterrupt):
        RECIPES["mtd_mnist_epsilon"](profile="smoke", device="cpu")
    training = set(hash_images((drawn["images"] * 255).round().to(torch.uint8).numpy()))
    assert len(training) > 3000
    for split in ("validation", "test", "held_out"):
        others = set(hash_images((load_digits(split).images * 255).round().astype("uint8")))
        assert len(others) >= 200
        assert not training & others


def test_the_psnr_of_what_is_left_noisy_is_that_of_the_noise():
    clean = torch.zeros(96, 32, 32)
    stacks, alike = clean[:, None].expand(-1, 3, -1, -1), {"levels": (0.1, 0.5), "unit": 2.0}
    found = recipe.denoising_psnr(lambda noisy, sigma: noisy, clean, peak=2.0, **alike)
    assert found["denoising_psnr_at_0.1"] == pytest.approx(20, abs=0.1)
    assert found["denoising_psnr_at_0.5"] == pytest.approx(6.02, abs=0.1)
    middle = recipe.denoising_psnr(
        lambda noisy, sigma: noisy.mean(1), stacks, peak=1.0, truth=clean, **alike
    )
    assert middle["denoising_psnr_at_0.5"] == pytest.approx(10 * math.log10(3), abs=0.1)
