"""The rows of the chapter's table: what each method makes of a stack of particles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emlab import weights
from emlab.chapters.flowdps import peers as flowdps_peers
from emlab.chapters.flowdps.bound import refine_poses
from emlab.chapters.flowdps.cases import Cases
from emlab.chapters.flowdps.peers import MARGIN, library, run_peer, tuned
from emlab.chapters.flowdps.scores import Scores, score
from emlab.data.phase_maps import PIXEL_ANGSTROM, poses, project, specimen_volume
from emlab.errors import InputError
from emlab.methods import flowdps
from emlab.methods.estimate import TimedPrior
from emlab.methods.flowdps_config import Config, phase_scale
from emlab.models import untrained
from emlab.priors import Prior
from emlab.priors.base import ScaledPrior
from emlab.priors.networks import wrap
from emlab.recipes.flowdps_supervised import Restorer
from emlab.runtime import Stopwatch, make_generator
from emlab.solvers import sample_prior
from emlab.solvers.denoiser_spread import Spread
from emlab.solvers.guided_phase import GuidedPhaseConfig

LABELS = {
    "picture": "the picture taken for the phase",
    "nothing": "no phase at all",
    **flowdps_peers.LABELS,
    "mean_map": "mean of the training maps",
    "prior_draw": "draw of the prior",
    "nearest_view": "nearest training view, told the pose",
    "supervised": "supervised U-Net",
    "untrained": "ours, untrained network",
    "paper": "FlowDPS as published",
    "corrected": "FlowDPS, corrected",
    "refined": "structure known, pose refined",
    "unpaired": "ours, ten independent samples",
    "ours": "ours: guided sampler",
}
TRAINED_SPECIMEN, TRAINED_POSES = "t20s", 20_000  # of the shipped prior, see its card


@dataclass(frozen=True)
class Answer:
    """Phases of n particles.

    Attributes
    ----------
    phases : ndarray
        ``(n, 64, 64)`` radians.
    samples : ndarray or None
        ``(s, n, 64, 64)`` of a method that draws some.
    independent : int
        How many of them, the first ones, are independent of each other.
    evaluations : int
        Of the network.
    seconds, network_seconds : float
    """

    phases: NDArray[np.float32]
    samples: NDArray[np.float32] | None = None
    evaluations: int = 0
    seconds: float = 0.0
    network_seconds: float = 0.0
    independent: int = 0


Method = Callable[[Cases], Answer]


def judged(method: Method, cases: Cases) -> tuple[Answer, Scores]:
    """What a method makes of particles, and how good it is.

    Raises
    ------
    InputError
        An answer of another shape than the truth's.
    """
    with torch.no_grad():
        answer = method(cases)
    if answer.phases.shape != tuple(cases.truth.shape):
        raise InputError(f"a method returned {answer.phases.shape}, not {cases.truth.shape}")
    return answer, score(cases, answer.phases, answer.samples, answer.independent)


@dataclass(frozen=True)
class Sampling:
    """A prior with its spread, ready to be used with several settings.

    Attributes
    ----------
    prior : Prior
        In radians.
    spread : Spread
    origin : str
        How the spread was measured.
    device : str
        Where the network is.
    """

    prior: Prior
    spread: Spread
    origin: str
    device: torch.device | str = "cpu"

    @classmethod
    def load(cls, config: Config, device: torch.device | str = "cpu") -> Sampling:
        """The prior of a configuration."""
        return cls(*flowdps.load(config, device), device)

    def retrieve(
        self, cases: Cases, config: Config, seed: int, samples: int | None = None
    ) -> Answer:
        """Posterior samples of simulated particles, `config.batch` at a time, and their mean."""
        generator, timed, drawn = make_generator(seed), TimedPrior(self.prior), []
        count, evaluations = config.samples if samples is None else samples, 0
        with Stopwatch() as watch, torch.no_grad():
            for start in range(0, len(cases), config.batch):
                seen = cases.part(slice(start, start + config.batch)).seen()
                found = flowdps.sample(
                    config.sampler, timed, self.spread, seen, generator, count, self.device
                )
                drawn.append(found.images.cpu())
                evaluations += found.evaluations
        images = torch.cat(drawn, 1).numpy()
        return Answer(
            images.mean(0), images, evaluations, watch.seconds, timed.seconds,
            config.independent(count),
        )  # fmt: skip

    def draw(self, n: int, steps: int, seed: int) -> NDArray[np.float32]:
        """Phase maps ``(n, 64, 64)`` in radians of the prior alone."""
        scale = phase_scale()
        inner = ScaledPrior(self.prior, 1 / scale.std, -scale.mean / scale.std)
        drawn = sample_prior(
            inner, (n, 64, 64), make_generator(seed), steps=steps, sigma_max=40.0,
            device=self.device,
        )  # fmt: skip
        return scale.to_radians(drawn).cpu().numpy()


def hurried(name: str, steps: int, samples: int, batch: int) -> Config:
    """A shipped configuration with other numbers of steps, samples and particles at a time."""
    config = flowdps.load_config(name)
    sampler = replace(config.sampler, steps=steps)
    return replace(config, sampler=sampler, samples=samples, batch=batch)


def sampled_row(sampling: Sampling, config: Config, seed: int) -> Method:
    """A sampler: the answer is the mean of its samples."""
    return partial(_sampled, sampling, config, seed)


def classical_rows(names: Iterable[str] | None = None) -> dict[str, Method]:
    """The tuned peers."""
    table = tuned()
    chosen = table if names is None else names
    return {name: partial(_peer, name, table[name]) for name in chosen}


def reference_rows(specimen: str, drawn: NDArray[np.float32]) -> dict[str, Method]:
    """Answers that are no retrieval: trivial ones, draws of the prior alone, and an oracle.

    The oracle needs the specimen that the prior was trained on.
    """
    oracle = {"nearest_view": nearest_view} if specimen == TRAINED_SPECIMEN else {}
    return {
        "picture": _picture,
        "nothing": lambda cases: Answer(torch.zeros_like(cases.truth).numpy()),
        "mean_map": _mean_map,
        "prior_draw": partial(_prior_draw, drawn),
        **oracle,
    }


def slow_rows(
    sampling: Sampling, steps: Mapping[str, int], samples: int, batch: int, seed: int
) -> dict[str, Method]:
    """FlowDPS as published and corrected, and ours without pairs, in so many steps each."""
    configs = {name: hurried(name, steps[name], samples, batch) for name in ("paper", "corrected")}
    configs["unpaired"] = unpaired(hurried("ours", steps["unpaired"], samples, batch))
    return {name: sampled_row(sampling, config, seed) for name, config in configs.items()}


def unpaired(config: Config) -> Config:
    """The same with independent samples instead of opposite pairs."""
    assert isinstance(config.sampler, GuidedPhaseConfig)
    return replace(config, sampler=replace(config.sampler, antithetic=False))


def supervised_row(restorer: Restorer) -> Method:
    """The trained competitor."""
    return partial(_supervised, restorer)


def untrained_row(config: Config, spread: Spread, seed: int) -> Method:
    """Ours with the configuration's network before training: random weights, the same size."""
    card = weights.card(config.prior)
    network = untrained(card.model, seed)
    scale = phase_scale()
    prior = ScaledPrior(wrap(network, card.objective), scale.std, scale.mean)

    return sampled_row(Sampling(prior, spread, "of the trained prior"), config, seed)


def nearest_view(cases: Cases) -> Answer:
    """The training view closest in angle, turned and shifted to the truth's place.

    Only an oracle knows the pose; no training map is closer to the truth than about this.
    """
    trained = _images(poses(TRAINED_POSES, 0, "train"))
    nearest = np.abs(_directions(cases.rotations) @ trained.T).argmax(1)
    rotations = np.stack(
        [_onto(*pair) for pair in zip(cases.rotations, trained[nearest], strict=True)]
    )
    volume = specimen_volume(cases.specimen)
    views = project(volume, rotations, PIXEL_ANGSTROM, 300.0, cases.shifts_angstrom)
    return Answer(views.numpy())


def refined_view(cases: Cases) -> Answer:
    """The volume itself, its pose and shift fitted to the counts from two degrees off.

    Not a retrieval either: it knows the structure, and about where to begin. What it leaves is
    what one noisy picture of a known particle cannot tell.
    """
    with Stopwatch() as watch:
        fitted = refine_poses(cases)
    return Answer(fitted.numpy(), seconds=watch.seconds)


def _directions(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    return rotations[:, :, 2]


def _images(rotations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Viewing directions under the seven-fold axis and a two-fold axis, ``(14 n, 3)``."""
    directions = _directions(rotations)
    turned = []
    for angle in 2 * np.pi * np.arange(7) / 7:
        cosine, sine = np.cos(angle), np.sin(angle)
        matrix = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        turned += [directions @ matrix.T, directions @ (np.diag([1, -1, -1]) @ matrix.T)]
    return np.concatenate(turned)


def _onto(rotation: NDArray[np.float64], direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation nearest to another one that looks along a direction, or against it."""
    axis = direction * np.sign(direction @ rotation[:, 2])
    first = rotation[:, 0] - (rotation[:, 0] @ axis) * axis
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(axis, first), axis], axis=1)


def _sampled(sampling: Sampling, config: Config, seed: int, cases: Cases) -> Answer:
    return sampling.retrieve(cases, config, seed)


def _peer(name: str, settings: dict[str, Any], cases: Cases) -> Answer:
    with Stopwatch() as watch:
        found = run_peer(name, cases, settings).numpy()
    return Answer(found, seconds=watch.seconds)


def _picture(cases: Cases) -> Answer:
    """Dark where there is matter, half of twice the phase."""
    contrast = cases.counts / cases.instrument().counts.to(cases.counts) - 1
    inner = slice(MARGIN, -MARGIN)
    return Answer((-contrast[:, inner, inner] / 2).numpy())


def _mean_map(cases: Cases) -> Answer:
    return Answer(library(cases.specimen, 128).mean(0).expand_as(cases.truth).numpy())


def _prior_draw(drawn: NDArray[np.float32], cases: Cases) -> Answer:
    samples = np.repeat(drawn[:, None], len(cases), axis=1)
    return Answer(drawn[np.arange(len(cases)) % len(drawn)], samples, independent=len(drawn))


def _supervised(restorer: Restorer, cases: Cases) -> Answer:
    with Stopwatch() as watch:
        parts = [
            restorer.restore(part.instrument(), part.counts)
            for part in (cases.part(slice(i, i + 8)) for i in range(0, len(cases), 8))
        ]
    return Answer(torch.cat(parts).float().numpy(), None, len(cases), watch.seconds)
