"""How the networks of multi-target detection are trained, and how good they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from emlab.data.digits import load_digits
from emlab.priors.gaussian import gaussian_prior
from emlab.priors.networks import MLPScore, NetworkPrior, wrap
from emlab.priors.objectives import (
    EpsilonMatching,
    VPDenoisingScoreMatching,
    VPSchedule,
    implicit_score_matching,
)
from emlab.recipes.lesson import Lesson, settings_of
from emlab.training import Loss

VALIDATION_LEVELS = (0.1, 0.3, 1.0, 3.0)
_SPLITS = {
    "mnist": "train; validation digits apart, test digits never seen",
    "gaussian": "10 000 drawn images; 500 others for validation",
}


def prepare(recipe: dict, _material: dict) -> Lesson:
    """One prior, or the network that tells turns, on training digits (or Gaussian images).

    Numbers on the card are measured on 500 validation digits (or fresh Gaussian images), which no
    training step sees; test digits are not touched.
    """
    images, validation, source = _images(recipe["data"])
    objective = recipe["objective"]
    if objective["kind"] == "turns":
        return _turns_lesson(images, validation, source, objective["noise"])

    def evaluate(model: nn.Module, device: torch.device) -> dict[str, float]:
        return _evaluate(wrap(model, objective), validation.to(device))

    return Lesson(images, _loss(objective), evaluate, source, _SPLITS[recipe["data"]])


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Digits ``(n, L, L)`` by quarter turns ``(n,)``, shifted back to the centre that MNIST has.

    A turn about the middle of the pixels takes (L/2, L/2) a pixel away; margins are empty.
    """
    all_turns = [images]
    for turn, shift in ((1, (1, 0)), (2, (1, 1)), (3, (0, 1))):
        all_turns.append(images.rot90(turn, (1, 2)).roll(shift, (1, 2)))
    return torch.stack(all_turns)[turns, torch.arange(len(images), device=images.device)]


def _turns_lesson(images: Tensor, validation: Tensor, source: str, noise: float) -> Lesson:
    """Cross-entropy of the turn of turned digits, in noise of up to so many grey levels."""

    def loss(model: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        turns = torch.randint(4, (len(batch),), generator=generator)
        level = noise * torch.rand(len(batch), 1, 1, generator=generator)
        grain = level * torch.randn(batch.shape, generator=generator)
        turns, grain = turns.to(batch.device), grain.to(batch.device)
        return cross_entropy(model(turned(batch, turns) + grain), turns)

    def evaluate(model: nn.Module, device: torch.device) -> dict[str, float]:
        right = 0.0
        for turn in range(4):
            turns = torch.full((len(validation),), turn)
            told = model(turned(validation, turns).to(device)).argmax(1)
            right += (told == turn).float().mean().item() / 4
        return {"turns_told_rightly": right}

    return Lesson(images, loss, evaluate, source, _SPLITS["mnist"])


def _images(data: str) -> tuple[Tensor, Tensor, str]:
    if data == "gaussian":
        prior = gaussian_prior()
        images = prior.sample(10_000, torch.Generator().manual_seed(1))
        return images, prior.sample(500, torch.Generator().manual_seed(2)), "simulated Gaussian"
    digits, validation = load_digits("train"), load_digits("validation")
    return torch.from_numpy(digits.images), torch.from_numpy(validation.images), digits.source


def _loss(objective: dict) -> Loss:
    arguments = settings_of(objective)
    if objective["kind"] == "epsilon":
        return EpsilonMatching(**arguments)
    if objective["kind"] == "vp":
        return VPDenoisingScoreMatching(VPSchedule(**arguments))
    return implicit_score_matching


def _evaluate(prior: NetworkPrior, images: Tensor) -> dict[str, float]:
    """Relative error of denoised images by noise level, or of the score where it is known."""
    if isinstance(prior, MLPScore):
        exact = gaussian_prior(images.device).score(images, 0.0)
        error = prior.score(images) - exact
        return {"relative_score_error": (error.norm() / exact.norm()).item()}
    generator = torch.Generator().manual_seed(0)
    numbers = {}
    for sigma in VALIDATION_LEVELS:
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        error = prior.denoise(images + sigma * noise, sigma) - images
        relative = error.flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)
        numbers[f"denoising_error_at_{sigma:g}"] = relative.mean().item()
    return numbers
