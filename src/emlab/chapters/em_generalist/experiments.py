"""The restorations of the EM Generalist chapter: what is asked, with how much computing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor

from emlab import data, metrics, weights
from emlab.bench.tissue import RealPair
from emlab.chapters.em_generalist.audit import Uncertainty
from emlab.chapters.em_generalist.peers import Known, run_peer, tuned
from emlab.chapters.em_generalist.rows import Case, Method, ours_row, standard_methods
from emlab.chapters.em_generalist.scores import match_grey_levels
from emlab.chapters.em_generalist.study import Table
from emlab.data.phantoms import neuropil
from emlab.errors import DataUnavailableError
from emlab.methods import generalist
from emlab.methods.generalist_config import Config, load_config
from emlab.models import untrained
from emlab.priors import Prior
from emlab.priors.networks import FlowPrior, wrap
from emlab.recipes.generalist_supervised import Restorer
from emlab.recipes.generalist_tasks import GREY_RANGE, Defocus, Task
from emlab.runtime import make_generator
from emlab.settings import read_profile, read_settings
from emlab.solvers.blind import BlindConfig
from emlab.solvers.plug_and_play import RestoreConfig

Grey = NDArray[np.float32]
_SHIPPED = {
    "crops": "test crops a task",
    "steps": "noise levels of a posterior sample",
    "draws": "images drawn from the prior alone",
    "many_samples": "samples beside the single evaluation",
    "defocus_crops": "crops a degree of defocus",
    "blind_steps": "steps of the search for a kernel",
    "block": "voxels (z, y, x) of the volume",
    "field": "pixels along a side of the large field",
    "calibration_crops": "crops behind a coverage",
    "calibration_crop": "pixels along a side of those",
    "calibration_probes": "random signs behind a spread of denoising",
    "pair": "pixels along a side of the real pair",
    "planes": "planes for the scores without truth",
}
_RECORDED = {
    "ablation_steps": "steps in the step-size ablation",
    "ablation_crops": "crops in the ablations",
    "ablation_crop": "pixels along a side of those",
    "alphas": "values of alpha",
    "flow_steps": "numbers of steps of the flow sampler",
    "interval_crops": "crops behind a coverage of samples",
    "interval_crop": "pixels along a side of those",
    "interval_samples": "samples behind a spread",
}


def settings(profile: str) -> dict[str, Any]:
    """How much the chapter computes: ``[PROFILE]`` of ``chapter.toml``."""
    return read_profile("chapters/em_generalist/chapter", profile)


def shortcuts(profile: str) -> list[str]:
    """One sentence for everything that is smaller than in the ``paper`` profile."""
    recorded = read_settings("chapters/em_generalist/chapter")["recorded"]
    here = settings(profile) | recorded["ablations"] | recorded["intervals"]
    full = settings("paper") | recorded["full_scale"]
    return [
        f"{text}: {here[key]} {place}, {full[key]} at full scale"
        for texts, place in ((_SHIPPED, "here"), (_RECORDED, "as recorded"))
        for key, text in texts.items()
        if here[key] != full[key]
    ]


def hurried(config: Config, steps: int, samples: int) -> Config:
    """The configuration with another number of steps of every sample, and of samples."""
    solvers = {
        task: replace(solver, steps=steps) if isinstance(solver, RestoreConfig) else solver
        for task, solver in config.solvers.items()
    }
    return replace(config, solvers=solvers, samples=samples)


class OnDevice:
    """A prior that answers on its own device and returns to that of the question."""

    def __init__(self, prior: FlowPrior, device: torch.device | str) -> None:
        self.prior, self.device = prior, device

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Posterior mean; see `Prior.denoise`."""
        return self.prior.denoise(x.to(self.device), sigma).to(x.device)

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Gradient of the log density of the noisy images."""
        return self.prior.score(x.to(self.device), sigma).to(x.device)

    def velocity(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Velocity; see `FlowPrior.velocity`."""
        return self.prior.velocity(x.to(self.device), t).to(x.device)


def untrained_prior(config: Config, seed: int) -> Prior:
    """The configuration's network before training."""
    card = weights.card(config.prior)
    return wrap(untrained(card.model, seed), card.objective)


def rows(
    config: Config,
    prior: Prior,
    supervised: Restorer | None = None,
    extra: Mapping[str, Method] | None = None,
    peers: Iterable[str] | None = None,
) -> Callable[[Task], dict[str, Method]]:
    """What `run_study` asks for: the peers, the supervised network, ours, and further rows."""

    def of(task: Task) -> dict[str, Method]:
        standard = standard_methods(task, supervised, peers)
        return {**standard, "constant": _constant, "ours": ours_row(config, prior), **(extra or {})}

    return of


def _constant(case: Case) -> Grey:
    return np.full_like(case.truth, case.measurement.mean())


# --- one evaluation against many samples


def approach_of_samples(
    truth: Grey, noise: float, drawing: Config, prior: Prior, count: int, seed: int
) -> tuple[float, NDArray[np.float64]]:
    """PSNR in dB of one evaluation, and of the mean of 1, 2, ... `count` posterior samples.

    Parameters
    ----------
    truth : ndarray
        ``(H, W)``, grey levels 0..255.
    noise : float
        Of the measurement, in units of the grey range.
    drawing : Config
        How samples are drawn.
    """
    generator = make_generator(seed)
    sigma = noise * GREY_RANGE
    noisy = truth + sigma * torch.randn(truth.shape, generator=generator).numpy()
    ours = load_config("ours")
    once = generalist.denoise(noisy, ours, generator, noise_sigma=sigma, prior=prior)
    drawn = generalist.denoise(
        noisy, drawing, generator, noise_sigma=sigma, prior=prior, samples=count
    ).samples
    means = np.cumsum(drawn, axis=0) / np.arange(1, count + 1)[:, None, None]
    curve = np.array([metrics.psnr(mean, truth, GREY_RANGE) for mean in means])
    return metrics.psnr(once.image, truth, GREY_RANGE), curve


# --- blur, known and blind


def find_kernel(case: Case, config: Config, prior: Prior, blind: BlindConfig) -> Grey:
    """The kernel that blind deblurring finds, told the noise level only."""
    return generalist.deblur_blind(
        case.measurement,
        config,
        case.generator(),
        blind=blind,
        prior=prior,
        noise_sigma=case.task.noise * GREY_RANGE,
    )[1]


def blind_search(steps: int) -> BlindConfig:
    """A search for kernels of up to 17 pixels; its own restoration is cut short, ours follows."""
    return BlindConfig(steps=steps, size=17, restoration=RestoreConfig(steps=2))


class BlindRow:
    """Ours without the kernel, as a row of a table.

    Attributes
    ----------
    kernels : dict
        What it found by task, one ``(k, k)`` a crop.
    """

    def __init__(self, config: Config, prior: Prior, blind: BlindConfig) -> None:
        self.config, self.prior, self.blind = config, prior, blind
        self.kernels: dict[str, list[Grey]] = {}

    def __call__(self, case: Case) -> generalist.Found:
        """Find the kernel, then restore as if it had been told."""
        kernel = find_kernel(case, self.config, self.prior, self.blind)
        self.kernels.setdefault(case.task.name, []).append(kernel)
        told = {"prior": self.prior, "noise_sigma": case.task.noise * GREY_RANGE}
        return generalist.deblur(case.measurement, kernel, self.config, case.generator(), **told)


def defocus_rows(blind: BlindRow) -> Callable[[Task], dict[str, Method]]:
    """Wiener and Richardson-Lucy, tuned for the blur; ours, told the kernel or not."""

    def of(task: Task) -> dict[str, Method]:
        tuned_for = tuned(task.name if isinstance(task, Defocus) else "deblur")

        def peer(name: str) -> Method:
            return lambda case: run_peer(name, case.measurement, case.known, tuned_for[name])

        methods: dict[str, Method] = {"input": lambda case: case.measurement}
        methods |= {name: peer(name) for name in ("wiener", "richardson_lucy")}
        return {**methods, "ours": ours_row(blind.config, blind.prior), "ours_blind": blind}

    return of


def kernel_error(found: NDArray, true: NDArray) -> float:
    """Half the sum of absolute differences of two kernels of odd side: 0 the same, 1 disjoint."""
    side = max(found.shape[0], true.shape[0])
    first, second = (np.pad(k, (side - k.shape[0]) // 2) for k in (found, true))
    return float(np.abs(first - second).sum() / 2)


# --- tables


def joined(*tables: Table) -> Table:
    """All tasks of several tables in one."""
    whole = Table()
    for table in tables:
        for field in fields(Table):
            getattr(whole, field.name).update(getattr(table, field.name))
    return whole


# --- large and real images


def large_field(size: int) -> tuple[Grey, data.Dataset | None]:
    """The corner of the large noisy field ``(size, size)``, or of a noisy phantom and None."""
    try:
        dataset = data.load("brain_sem_fullfield")
    except DataUnavailableError:
        noise = np.random.default_rng(0).normal(0, 0.15 * GREY_RANGE, (size, size))
        return (neuropil((size, size), 5) + noise).astype(np.float32), None
    return dataset["noisy"][:size, :size].astype(np.float32), dataset


def at_most(image: Grey, side: int) -> Grey:
    """The middle of an image, no larger than `side` pixels."""
    rows, columns = (max(0, (length - side) // 2) for length in image.shape)
    return image[rows:, columns:][:side, :side]


def simulated_pair(size: int, sigma: float = 0.06) -> RealPair:
    """A phantom and the same with coloured noise, for readers without the real pair."""
    clean = neuropil((size, size), 6)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=clean.shape), 0.7)
    noisy = clean + sigma * GREY_RANGE * noise / noise.std()
    return RealPair(noisy.astype(np.float32), clean, None)


def told_white(config: Config, prior: Prior) -> Method:
    """Our method on a real image, made to believe that its noise is white."""

    def restore(case: Case) -> generalist.Found:
        return generalist.denoise(case.measurement, config, case.generator(), prior=prior)

    return restore


def psnr_inside(image: NDArray, truth: Grey, registered: metrics.Registered) -> float:
    """PSNR in dB after matching grey levels, where a registered image has pixels."""
    inside = ndimage.binary_erosion(registered.valid, iterations=4)
    matched = match_grey_levels(image[inside], truth[inside])
    return metrics.psnr(matched, truth[inside], GREY_RANGE)


# --- uncertainty


def sampled_uncertainty(
    task: Task, truth: Grey, config: Config, prior: Prior, count: int, seed: int
) -> Uncertainty:
    """Mean and spread of `count` samples of each crop ``(n, H, W)``."""
    method, means, spreads = ours_row(config, prior, count), [], []
    for number, crop in enumerate(truth):
        generator = make_generator(seed + number)
        measured = task.measure(torch.from_numpy(crop), generator).numpy()
        found = method(Case(task, Known(task, task.noise), crop, measured, seed + number))
        assert isinstance(found, generalist.Estimate)
        means.append(found.image)
        spreads.append(found.samples.std(0, ddof=1) * (1 + 1 / count) ** 0.5)
    reach = float(stats.t.ppf(0.95, count - 1))
    return Uncertainty(np.stack(means), np.stack(spreads), truth, reach)
