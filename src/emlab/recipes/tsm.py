"""Simulated micrographs, and how score denoisers learn from them: alone or with targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from emlab.checks import check_fields
from emlab.data.phase_maps import PIXEL_ANGSTROM, specimen_volume
from emlab.errors import DataUnavailableError, InputError
from emlab.methods.tsm_guidance import Explained, Guides, explain, guide, standardise
from emlab.metrics.bands import band_correlations
from emlab.models.unet import UNet
from emlab.physics.micrograph import (
    Micrograph,
    MicrographConfig,
    config_transfer,
    simulate_micrograph,
)
from emlab.priors.networks import ScorePrior
from emlab.priors.pose_posterior import Lens, Reference
from emlab.priors.score_matching import Guidance, ScoreMatching
from emlab.priors.target_bank import Features, Matcher, TargetBank
from emlab.recipes.lesson import Lesson, settings_of
from emlab.solvers.tiling import TiledPrior

PROTEINS = {
    "train": ("apoferritin_6z6u", "beta_galactosidase"),
    "seen": ("apoferritin_6z6u", "beta_galactosidase"),
    "validation": ("barrel",),
    "test": ("t20s",),
    "session": ("t20s",),
}
DEFOCI_ANGSTROM = {
    "train": (7000.0, 28000.0),
    "seen": (16000.0, 26000.0),
    "validation": (12000.0, 22000.0),
    "test": (16000.0, 26000.0),
    "session": (16000.0, 26000.0),
}
STAND_IN = "barrel"
_EMPTY = (2, 5)  # of eight micrographs of the training
_SEEDS = {"train": 100, "validation": 200, "test": 300, "seen": 400, "session": 500}


@dataclass(frozen=True)
class Frame:
    """A simulated micrograph and the name of the particle that is really in it."""

    specimen: str
    micrograph: Micrograph


def frames(
    split: str, count: int = 8, size: int = 1024, particles: int | None = None
) -> list[Frame]:
    """Micrographs of a split: proteins in turn, defocus rising, doses of 36 to 54 e/A^2.

    Every fourth micrograph has a carbon edge, every other an ice crystal, and two of eight of
    ``train`` no particle. Proteins are `PROTEINS`, defoci `DEFOCI_ANGSTROM`: ``seen`` has the
    proteins of ``train`` at the defoci of ``test``, and ``session`` is other micrographs of the
    kind of ``test``. The barrel of ``validation`` is no real protein; it stands in where an atomic
    model is not on this machine, and `Frame.specimen` says so. `particles` are expected in a field
    of 1024 x 1024 pixels; 110 by default, 0 for the control.

    An `InputError` for an unknown split, or no micrograph.
    """
    if split not in PROTEINS or count < 1:
        raise InputError(f"micrographs are of {', '.join(PROTEINS)}, at least one")
    return [_frame(split, number, count, size, particles) for number in range(count)]


def volume(specimen: str) -> tuple[Tensor, str]:
    """Potential ``(64, 64, 64)`` and the name of what it really is."""
    try:
        return specimen_volume(specimen), specimen
    except DataUnavailableError:
        return specimen_volume(STAND_IN), STAND_IN


@lru_cache(maxsize=64)
def _frame(split: str, number: int, count: int, size: int, particles: int | None) -> Frame:
    names, (low, high) = PROTEINS[split], DEFOCI_ANGSTROM[split]
    potential, name = volume(names[number % len(names)])
    share = (number + 0.5) / count
    wanted = 110 if particles is None else particles
    if split == "train" and number % 8 in _EMPTY:
        wanted = 0
    config = MicrographConfig(
        size=size,
        pixel_size_angstrom=PIXEL_ANGSTROM,
        dose_per_angstrom2=36 + 18 * ((5 * number) % 8) / 7,
        defocus_angstrom=low + (high - low) * share,
        astigmatism_deg=40.0 * number,
        particles=round(wanted * (size / 1024) ** 2),
        carbon=0.12 if number % 4 == 3 else 0.0,
        contaminants=number % 2,
    )
    generator = torch.Generator().manual_seed(_SEEDS[split] + number)
    return Frame(name, simulate_micrograph(config, potential, generator))


@dataclass(frozen=True)
class Material:
    """What a network sees.

    It is trained on so many micrographs of a side and measured with `validation` others; crops
    of side `crop` are drawn from `crops` places.
    """

    micrographs: int = 24
    size: int = 768
    validation: int = 2
    crop: int = 96
    crops: int = 50_000

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.micrographs, self.validation, self.crops) < 1 or self.crop < 16:
            raise InputError("training needs micrographs, crops and validation, crops from 16")
        if self.crop > self.size:
            raise InputError(f"crops of {self.crop} do not fit into {self.size} pixels")


@dataclass(frozen=True)
class BankConfig:
    """How the target bank is made and asked.

    Attributes
    ----------
    low_pass_angstrom : float
        Resolution of the reference.
    temperature, rank
        tau, and dimensions that the projector keeps.
    features : str
        ``"pixels"`` or ``"encoder"``, the deepest features of the network's own encoder.
    refresh : tuple of float
        Shares of the training at which the guesses are made anew (with pixels: once).
    """

    low_pass_angstrom: float = 8.0
    directions: int = 200
    angles: int = 24
    temperature: float = 0.03
    rank: int = 128
    features: str = "pixels"
    refresh: tuple[float, ...] = (0.1,)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.features not in ("pixels", "encoder"):
            raise InputError(f"features are pixels or encoder, not {self.features!r}")

    @classmethod
    def read(cls, table: dict[str, Any]) -> BankConfig:
        """From a recipe's table."""
        settings = dict(table)
        if "refresh" in settings:
            settings["refresh"] = tuple(settings["refresh"])
        return cls(**settings)

    def project(self, reference: Tensor, pixel_size_angstrom: float = PIXEL_ANGSTROM) -> TargetBank:
        """Targets of a reference ``(n, n, n)``, as fine as pixels allow."""
        finest = max(self.low_pass_angstrom, 2.2 * pixel_size_angstrom)
        return TargetBank.from_volume(
            reference, pixel_size_angstrom, finest, self.directions, self.angles
        )


@dataclass
class GuidedLoss:
    """Score matching on crops of standardised micrographs `fields`, guided by targets.

    Attributes
    ----------
    guides : list of Explained or Guides
        Targets, one a micrograph: posterior means over poses, or what the banks said last.
    matchers : sequence of callable
        As published, a bank a micrograph: ``matcher(features)`` with features of
        `TargetBank.matcher`. It is asked for `guides` when `bank` says.
    trace : list of dict
        One entry a refresh: step, mean similarity and confidence, guesses, null similarity.
    """

    fields: list[Tensor]
    objective: ScoreMatching
    crop: int
    guidance: Guidance | None = None
    guides: Sequence[Explained | Guides] = ()
    bank: BankConfig = field(default_factory=BankConfig)
    matchers: list[Callable[[Features | None], Matcher]] = field(default_factory=list)
    trace: list[dict[str, float]] = field(default_factory=list)
    step: int = 0
    steps: int = 1

    def begin_step(self, step: int, steps: int, model: nn.Module) -> None:
        """Make the guesses anew when their time has come."""
        self.step, self.steps = step, steps
        if not self.matchers:
            return
        due = [round(share * self.steps) for share in self.bank.refresh]
        if step in due or (not self.guides and step > min(due, default=0)):
            self.refresh(model)

    def refresh(self, model: nn.Module) -> None:
        """Ask the banks about every micrograph, with the encoder as it is now."""
        if self.guides and self.bank.features == "pixels":
            return
        features = encoder_features(model) if self.bank.features == "encoder" else None
        said = []
        for number, (image, make) in enumerate(zip(self.fields, self.matchers, strict=True)):
            generator = torch.Generator().manual_seed(number)
            matcher = make(features)
            said.append(guide(image, matcher, generator))
        self.guides = said
        sure = torch.cat([g.similarity[g.similarity > g.null] for g in said])
        inside = torch.cat([g.confidence[g.confidence > 0.01] for g in said])
        self.trace.append(
            {
                "step": float(self.step),
                "guesses": float(len(sure)),
                "similarity": sure.mean().item() if len(sure) else 0.0,
                "null": sum(g.null for g in said) / len(said),
                "confidence": inside.mean().item() if len(inside) else 0.0,
            }
        )

    def __call__(self, model: nn.Module, places: Tensor, generator: torch.Generator) -> Tensor:
        """Loss at places ``(n, 3)``: micrograph, row and column of the crops' corners."""
        device = next(model.parameters()).device
        turns = int(torch.randint(4, (), generator=generator))
        flip = bool(torch.rand((), generator=generator) < 0.5)

        def cut(maps: list[Tensor]) -> Tensor:
            crops = torch.stack(
                [maps[k][y : y + self.crop, x : x + self.crop] for k, y, x in places.tolist()]
            )
            crops = torch.rot90(crops, turns, (1, 2))
            return (crops.flip(-1) if flip else crops).to(device)

        guided = self.guidance is not None and bool(self.guides)
        return self.objective(
            model,
            cut(self.fields),
            generator,
            guess=cut([g.guess for g in self.guides]) if guided else None,
            confidence=cut([g.confidence for g in self.guides]) if guided else None,
            guidance=self.guidance,
            progress=self.step / self.steps,
        )


def encoder_features(model: nn.Module) -> Features:
    """psi: the deepest feature map of a U-Net's encoder for patches in units of the noise."""
    if not isinstance(model, UNet):
        raise InputError("features of the encoder need a U-Net")
    device = next(model.parameters()).device

    def features(patches: Tensor) -> Tensor:
        with torch.no_grad():
            level = torch.zeros(len(patches), device=device)
            return model.encode(patches[:, None].to(device), level)[-1].float().cpu()

    return features


def places(shapes: Sequence[tuple[int, ...]], crop: int, count: int, seed: int) -> Tensor:
    """Random corners of crops ``(count, 3)``: micrograph, row, column."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(shapes), (count,), generator=generator)
    room = torch.tensor([[side - crop + 1 for side in shape] for shape in shapes])[which]
    corner = (room * torch.rand(count, 2, generator=generator)).long()
    return torch.cat([which[:, None], corner], 1)


def lens_of(optics: MicrographConfig) -> Lens:
    """The lens of a micrograph, for any shape."""
    return lambda shape: config_transfer(replace(optics, size=shape))


def posterior_means(
    fields: Sequence[Tensor],
    reference: Reference,
    optics: Sequence[MicrographConfig],
    progress: bool = True,
) -> list[Explained]:
    """Targets of `GuidedLoss`: what the poses of a reference explain of micrographs.

    Parameters
    ----------
    fields, optics
        Images of `standardise`, and how each was taken.
    """
    bar = tqdm(fields, "targets", disable=not progress)
    return [
        explain(image, reference, lens_of(one), torch.Generator().manual_seed(0))
        for image, one in zip(bar, optics, strict=True)
    ]


def make_matchers(
    bank: TargetBank, optics: MicrographConfig, settings: BankConfig
) -> Callable[[Features | None], Matcher]:
    """What `GuidedLoss` takes for one micrograph: the bank behind its lens, features to come."""
    lens = lens_of(optics)

    def make(features: Features | None) -> Matcher:
        return bank.matcher(
            lens, temperature=settings.temperature, rank=settings.rank, features=features
        )

    return make


def prepare(recipe: dict, table: dict) -> Lesson:
    """A score denoiser on simulated micrographs.

    Numbers on the card come from another protein than those trained on. No clean image enters the
    training: `tsm_dsm` sees noisy micrographs, `tsm_tsm` also the reference volumes.
    """
    material = Material(**table)
    objective = ScoreMatching(**settings_of(recipe["objective"]))
    guidance = Guidance(**recipe["guidance"]) if "guidance" in recipe else None
    shown = frames("train", material.micrographs, material.size)
    fields = [standardise(f.micrograph.noisy, PIXEL_ANGSTROM).image for f in shown]
    bank = BankConfig.read(recipe.get("bank", {}))
    guided = shown if guidance is not None else []
    banks = {name: bank.project(volume(name)[0]) for name in {f.specimen for f in guided}}
    matchers = [make_matchers(banks[f.specimen], f.micrograph.config, bank) for f in guided]
    loss = GuidedLoss(fields, objective, material.crop, guidance, (), bank, matchers)
    held_out = frames("validation", material.validation, min(material.size, 512))

    def evaluate(model: nn.Module, device: torch.device) -> dict[str, float]:
        prior = TiledPrior(ScorePrior(model, objective), 192, 64, 4)
        scores = [
            band_correlations(_denoised(prior, f.micrograph.noisy), f.micrograph) for f in held_out
        ]
        numbers = {
            f"correlation_{name}": sum(score[name] for score in scores) / len(scores)
            for name in scores[0]
        }
        return numbers | {f"bank_{k}": v for k, v in (loss.trace or [{}])[-1].items()}

    return Lesson(
        places([tuple(f.shape) for f in fields], material.crop, material.crops, 0),
        loss,
        evaluate,
        f"simulated micrographs of {', '.join(sorted({f.specimen for f in shown}))}, "
        f"{material.size} x {material.size} pixels of {PIXEL_ANGSTROM:g} A at 300 kV",
        f"{material.micrographs} micrographs of .7 to 2.8 um defocus, a quarter of them without "
        "particles; validation on the simulated "
        "barrel at 1.2 to 2.2 um, which is in no training micrograph",
    )


def _denoised(prior: TiledPrior, noisy: Tensor) -> Tensor:
    standard = standardise(noisy, PIXEL_ANGSTROM)
    with torch.no_grad():
        return standard.restore(prior.denoise(standard.image, 1.0))
