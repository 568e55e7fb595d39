"""What the guidance is worth: short trainings that differ in one thing each.

They take minutes each, so the chapter shows those that ``python -m tools.measure_tsm_ablations``
measured and wrote to ablations.toml.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from emlab.bench import Report
from emlab.bench.study import pipe_table
from emlab.data.phase_maps import PIXEL_ANGSTROM
from emlab.methods.tsm import Config, denoise
from emlab.methods.tsm_guidance import Guides, standardise
from emlab.metrics.bands import band_correlations
from emlab.models import build
from emlab.priors.networks import ScorePrior
from emlab.priors.score_matching import Guidance, ScoreMatching
from emlab.priors.target_bank import TargetBank
from emlab.recipes.tsm import BankConfig, Frame, GuidedLoss, frames, make_matchers, places, volume
from emlab.settings import read_settings
from emlab.training import TrainingConfig, train

MODEL = {"kind": "unet", "widths": [24, 40, 56], "patch": 2, "embedding": 64}
ENCODER = (0.1, 0.3, 0.5, 0.7, 0.9)
TRACED = {"encoder": "annealed", "encoder_at_once": "at_once"}


@dataclass(frozen=True)
class Variant:
    """One short training.

    Attributes
    ----------
    label : str
    guidance : Guidance or None
        None is denoising score matching.
    bank : BankConfig
    objective : ScoreMatching
    oracle : bool
        The true clean micrograph in place of the bank's guess: the most that targets can give.
    """

    label: str
    guidance: Guidance | None = None
    bank: BankConfig = field(default_factory=BankConfig)
    objective: ScoreMatching = field(default_factory=lambda: ScoreMatching(0.4, 0.6, 1.5, 1.0))
    oracle: bool = False


def variants() -> dict[str, Variant]:
    """The comparisons of the chapter by name."""
    recipe = read_settings("recipes/tsm")["recipes"]["tsm_tsm"]
    guidance, bank = Guidance(**recipe["guidance"]), BankConfig.read(recipe["bank"])
    dsm, tsm = Variant("DSM"), Variant("TSM (default)", guidance, bank)
    encoder = replace(bank, features="encoder", refresh=ENCODER)
    return {
        "dsm": dsm,
        "tsm": tsm,
        "weight_0.3": replace(
            tsm, label="target weight .3", guidance=replace(guidance, weight=0.3)
        ),
        "weight_0.7": replace(
            tsm, label="target weight .7", guidance=replace(guidance, weight=0.7)
        ),
        "all_confident": replace(
            tsm, label="no adaptive confidence", bank=replace(bank, weighted=False)
        ),
        "temperature_0.5": replace(
            tsm, label="temperature .5", bank=replace(bank, temperature=0.5)
        ),
        "temperature_0.01": replace(
            tsm, label="temperature .01", bank=replace(bank, temperature=0.01)
        ),
        "literal": replace(
            tsm, label="literal surrogate score", guidance=replace(guidance, variant="literal")
        ),
        "small_noise": replace(
            dsm, label="DSM, auxiliary noise .1 to .3", objective=ScoreMatching(0.4, 0.1, 0.3, 0.3)
        ),
        "encoder": replace(tsm, label="encoder features, annealed", bank=encoder),
        "encoder_at_once": replace(
            tsm,
            label="encoder features, full weight at once",
            bank=replace(encoder, refresh=(0.0, *ENCODER)),
            guidance=replace(guidance, start=0.0, full=0.0),
        ),
        "oracle": replace(tsm, label="true clean images as targets", oracle=True),
    }


@dataclass(frozen=True)
class Bench:
    """What the variants are trained and judged on.

    Attributes
    ----------
    shown : list of Frame
        Training micrographs.
    judged : dict
        By name: micrographs that were not trained on.
    steps, batch, crop : int
    """

    shown: list[Frame]
    judged: dict[str, list[Frame]]
    steps: int = 400
    batch: int = 8
    crop: int = 64

    @classmethod
    def make(cls, size: int = 512, count: int = 2, **options: int) -> Bench:
        """Two proteins, each also at other defoci, and a particle that no bank has."""
        judged = {"seen": frames("seen", 2, size), "unseen": frames("validation", 2, size)}
        return cls(frames("train", count, size), judged, **options)


def ablate(variant: Variant, bench: Bench, seed: int = 0) -> tuple[dict[str, float], list[dict]]:
    """Train a variant and judge it.

    Returns
    -------
    numbers : dict
        ``seen`` and ``unseen``: mean correlation with the clean particles.
    trace : list of dict
        What the bank said at each refresh, see `GuidedLoss`.
    """
    standard = [standardise(frame.micrograph.noisy, PIXEL_ANGSTROM) for frame in bench.shown]
    fields = [one.image for one in standard]
    loss = GuidedLoss(fields, variant.objective, bench.crop, variant.guidance, variant.bank)
    if variant.oracle:
        loss.guides = [
            Guides(
                (frame.micrograph.clean - one.background) / one.sigma,
                torch.ones_like(one.image),
                frame.micrograph.coordinates,
                torch.ones(len(frame.micrograph.coordinates)),
                0.0,
                1.0,
            )
            for frame, one in zip(bench.shown, standard, strict=True)
        ]
        loss.bank = replace(variant.bank, refresh=(2.0,))
    elif variant.guidance is not None:
        loss.matchers = [
            make_matchers(_bank(frame, variant.bank), frame.micrograph.config, variant.bank)
            for frame in bench.shown
        ]
    config = TrainingConfig(bench.steps, bench.batch, 2e-3, 30, 0.99, 0.3, seed=seed)
    torch.manual_seed(seed)
    corners = places([tuple(image.shape) for image in fields], bench.crop, 20_000, seed)
    result = train(build(MODEL), loss, corners, config, progress=False)
    network = build(MODEL)
    network.load_state_dict(result.weights)
    prior = ScorePrior(network, variant.objective)
    return {name: recovery(prior, judged) for name, judged in bench.judged.items()}, loss.trace


def recovery(prior: ScorePrior, judged: Sequence[Frame]) -> float:
    """Mean correlation with the clean particles over bands and micrographs."""
    found = [
        band_correlations(
            denoise(frame.micrograph.noisy, PIXEL_ANGSTROM, prior, Config()).image,
            frame.micrograph,
        )["mean"]
        for frame in judged
    ]
    return float(np.mean(found))


def _bank(frame: Frame, settings: BankConfig) -> TargetBank:
    return TargetBank.from_volume(
        volume(frame.specimen)[0],
        PIXEL_ANGSTROM,
        settings.low_pass_angstrom,
        settings.directions,
        settings.angles,
    )


def measured() -> dict[str, Any]:
    """What tools/measure_tsm_ablations.py wrote: ``date``, ``bench``, ``rows`` and ``traces``."""
    return read_settings("chapters/tsm/ablations")


def markdown(found: dict[str, Any]) -> str:
    """A row a variant: correlation on the bank's proteins and on another particle."""
    rows = [
        [row["label"], f"{row['seen']:.4f}", f"{row['unseen']:.4f}"]
        for row in found["rows"].values()
    ]
    return pipe_table(["trained with", "proteins of the bank", "a particle not in it"], rows)


def record(found: dict[str, Any], report: Report) -> None:
    """Record ``ablation.NAME.seen`` and ``.unseen``, and what became of the similarity.

    ``ablation.similarity.NAME_change`` is how far the largest cosine of accepted patches, less what
    chance gives, moved from the first refresh to the last (0 where nothing was accepted).
    """
    for name, row in found["rows"].items():
        for kind in ("seen", "unseen"):
            report.value(f"ablation.{name}.{kind}", row[kind])
    for name, key in TRACED.items():
        if trace := found["traces"].get(name):
            above = [s - n if g else 0.0 for s, n, g in zip(
                trace["similarity"], trace["null"], trace["guesses"], strict=True
            )]  # fmt: skip
            report.value(f"ablation.similarity.{key}_change", above[-1] - above[0])
            report.value(f"ablation.guesses.{key}_last", trace["guesses"][-1])


def figure_traces(found: dict[str, Any]) -> Figure:
    """How alike accepted patches and targets are (the paper's Fig. 7), and how many there are."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for name in [name for name in TRACED if name in found["traces"]]:
        trace, label = found["traces"][name], found["rows"][name]["label"]
        step, guesses = np.array(trace["step"]), np.array(trace["guesses"])
        some = guesses > 0
        (line,) = axes[0].plot(step[some], np.array(trace["similarity"])[some], "o-", label=label)
        axes[0].plot(step, trace["null"], ":", color=line.get_color())
        axes[1].plot(step, guesses, "o-", color=line.get_color(), label=label)
    axes[0].plot([], [], ":", color="0.5", label="19 in 20 random places stay below")
    axes[0].set(xlabel="step", ylabel="largest cosine with a target")
    axes[1].set(xlabel="step", ylabel="accepted guesses", ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=7)
    return figure
