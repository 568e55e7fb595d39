"""From a recipe's table to a shipped checkpoint: the part that every method's training shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from emlab import weights
from emlab.models import build
from emlab.runtime import choose_device, environment_stamp
from emlab.settings import read_profile, read_settings
from emlab.training import Loss, TrainingConfig, train

Recipe = Callable[..., weights.Card | None]


@dataclass(frozen=True)
class Lesson:
    """What a network is trained on and how it is judged; see `emlab.training.train`."""

    images: Tensor  #: (n, ...)
    loss: Loss
    #: evaluate(model, device): named numbers, measured on validation data only
    evaluate: Callable[[nn.Module, torch.device], dict[str, float]]
    data: str  #: for the card: the source of the images
    split: str  #: and which part of it was used
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    initial: str = ""  #: name of the weights to start from; default: random ones
    half: bool = False  #: whether the weights are written in half precision


Prepare = Callable[[dict, dict], Lesson]


def settings_of(objective: Mapping[str, Any]) -> dict[str, Any]:
    """What an objective's class is made with: its table without the ``kind``."""
    return {key: value for key, value in objective.items() if key != "kind"}


def one_of_eight(images: Tensor, generator: torch.Generator) -> Tensor:
    """The same flip and turn, drawn from the eight, of all images ``(n, H, W)``."""
    turns, flip = torch.randint(4, (), generator=generator), torch.rand((), generator=generator)
    images = torch.rot90(images, int(turns), (1, 2))
    return images.flip(-1) if flip < 0.5 else images


def denoising_psnr(
    denoise: Callable[[Tensor, float], Tensor],
    images: Tensor,
    levels: Sequence[float],
    unit: float,
    peak: float,
    truth: Tensor | None = None,
) -> dict[str, float]:
    """PSNR in dB of `peak` after one evaluation ``denoise(noisy, sigma)``, at noise `levels`.

    Levels are in units of `unit` of the clean images ``(n, ...)``; what these are denoised to is
    `truth` ``(n, H, W)``, by default they themselves.
    """
    clean, generator = images if truth is None else truth, torch.Generator().manual_seed(0)
    numbers = {}
    for level in levels:
        sigma = unit * level
        noisy = images + sigma * torch.randn(images.shape, generator=generator).to(images.device)
        denoised = torch.cat([denoise(part, sigma) for part in noisy.split(64)])
        error = (denoised - clean).square().mean((1, 2))
        numbers[f"denoising_psnr_at_{level:g}"] = (10 * torch.log10(peak**2 / error)).mean().item()
    return numbers


def named(method: str, prepare: Prepare, *names: str) -> dict[str, Recipe]:
    """``recipe(profile, device, out, resume)`` for names in ``recipes/METHOD.toml``; default: all.

    Others of the same table may be prepared by another function. See `train_recipe`.
    """
    chosen = names or read_settings(f"recipes/{method}")["recipes"]
    return {name: partial(train_recipe, method, name, prepare) for name in chosen}


def train_recipe(
    method: str,
    name: str,
    prepare: Prepare,
    profile: str = "cpu",
    device: str = "auto",
    out: Path | None = None,
    resume: bool = False,
    section: str = "training",
    command: str = "",
) -> weights.Card | None:
    """Train ``[recipes.name]`` of ``recipes/METHOD.toml`` and write weights and card.

    Parameters
    ----------
    prepare : callable
        Makes the lesson from the recipe's table and the profile's, from which ``model`` and all
        that configures the training are taken out before. Without ``model`` it is that of the
        weights of this name that there are.
    out : Path, optional
        Folder of weights and checkpoint; default: the package's own.
    section : str
        Table of the profile that says how long.
    command : str
        What the card says that was run; default: the command of the recipe.

    Returns
    -------
    Card or None
        Under ``torchrun`` the first process writes and the others return None.
    """
    recipe = read_settings(f"recipes/{method}")["recipes"][name]
    settings = dict(read_profile(f"recipes/{method}", profile)[section][name])
    model_table = settings.pop("model", None) or dict(weights.card(name).model)
    material = settings.pop("material", {})
    config = TrainingConfig(**settings)
    chosen = choose_device(device)
    lesson = prepare(recipe, material)
    stamp = environment_stamp()
    torch.manual_seed(config.seed)

    folder = weights.PACKAGED if out is None else Path(out)
    checkpoint = (Path("checkpoints") if out is None else folder) / f"{name}.{profile}.checkpoint"
    network = build(model_table)
    if lesson.initial:
        network.load_state_dict(weights.load(lesson.initial)[0])
    result = train(
        network,
        lesson.loss,
        lesson.images,
        config,
        device=chosen,
        augment=lesson.augment,
        evaluate=lambda model: lesson.evaluate(model, chosen),
        checkpoint=checkpoint,
        resume=resume,
    )
    if result.rank > 0:
        return None
    fields = {
        "recipe": command or f"emlab train {name} --profile {profile}",
        "data": lesson.data,
        "split": lesson.split,
        "steps": config.steps,
        "seconds": round(result.seconds, 1),
        "precision": result.precision,
        "device": str(stamp.get("gpu") or stamp.get("cpu") or chosen),
        "seed": config.seed,
        "commit": stamp["commit"],
        "evaluation": {k: v for k, v in result.history[-1].items() if k not in ("step", "seconds")},
        "limits": recipe["limits"],
        "model": model_table,
        "objective": recipe["objective"],
        "history": {key: [entry[key] for entry in result.history] for key in result.history[0]},
    }
    tensors = result.weights
    if lesson.half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    return weights.save(name, tensors, fields, folder)
