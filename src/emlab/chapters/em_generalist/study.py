"""The chapter's tables: measurements, what each method does with them, how answers are scored.

Images and noisy volumes are scored one by one. A block of thick slices is scored in its xz and yz
sections, column by column: columns of full depth play the part of crops when intervals are drawn.
Neighbouring columns are not quite independent. The real pair is scored in tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emlab import metrics
from emlab.bench import Report
from emlab.bench.study import Column, Study, each
from emlab.bench.tissue import PIXEL_NM, RealPair, Specimen, own_noise
from emlab.errors import InputError
from emlab.methods import generalist
from emlab.methods.estimate import TimedPrior
from emlab.metrics.structure import slice_correlation
from emlab.physics.noise_estimation import NoiseSpectrum, estimate_noise_spectrum
from emlab.priors import Prior
from emlab.recipes.generalist_supervised import Restorer
from emlab.recipes.generalist_tasks import GREY_RANGE, REAL_PAIR, STRANGE_BLUR, VOLUMES, Task
from emlab.settings import read_settings, tuned
from emlab.solvers import classical
from emlab.solvers.plug_and_play import PlugAndPlayConfig, RestoreConfig
from emlab.solvers.sampling import DPSConfig

Grey = NDArray[np.float32]
Settings = Mapping[str, Any]
PEERS = "chapters/em_generalist/peers"  # the settings that tools/tune_peers.py chose
LABELS = {
    "input": "measurement on the fine grid",
    "gaussian": "Gaussian smoothing",
    "tv": "total variation",
    "wavelet": "wavelet shrinkage",
    "nlm": "non-local means",
    "linear": "linear MMSE",
    "bm3d": "BM3D",
    "bm4d": "BM4D",
    "bm3d_coloured": "BM3D, coloured noise",
    "wiener": "Wiener",
    "richardson_lucy": "Richardson-Lucy",
    "bm3d_lucy": "BM3D, then Richardson-Lucy",
    "cubic": "cubic interpolation",
    "quintic": "quintic interpolation",
    "supervised": "supervised U-Net",
    "flow": "flow as published",
    "dps": "DPS as published",
    "planes": "ours, plane by plane",
    "stacks": "ours, neighbours along z",
    "ours": "ours",
    "ours_blind": "ours, kernel unknown",
    "white": "ours, told white noise",
    "untrained": "ours, untrained network",
    "constant": "one grey level",
}
METRICS = ("psnr", "ssim", "frc_nm")
PUBLISHED = {"flow": "paper", "dps": "paper_dps"}  # rows by the configuration that they run
COLUMN = (24, 32)  # y and x sides of the columns that a block is cut into
TILE = 96  # side of the tiles of the real pair


# --- cases


@dataclass(frozen=True)
class Known:
    """What a peer is told of the instrument."""

    task: Task
    sigma: float  #: noise level in units of the grey range
    spectrum: NoiseSpectrum | None = None  #: of coloured noise, in units of the grey range squared

    @classmethod
    def of_real(cls, noisy: Grey) -> Known:
        """What a noisy image, grey levels 0..255, tells about its own noise."""
        spectrum = estimate_noise_spectrum(np.asarray(noisy, np.float32) / GREY_RANGE)
        return cls(REAL_PAIR, spectrum.sigma, spectrum)

    @property
    def kernel(self) -> Grey:
        """The blur of a deblurring task."""
        return self.task.kernel.numpy()


@dataclass(frozen=True)
class Case:
    """One measurement in grey levels: what every method gets, and the truth, for oracles only."""

    task: Task
    truth: Grey
    measurement: Grey
    seed: int

    @classmethod
    def of(cls, task: Task, truth: Grey, seed: int) -> Case:
        """Measure an image or a volume."""
        generator = torch.Generator().manual_seed(seed)
        return cls(task, truth, task.measure(torch.from_numpy(truth), generator).numpy(), seed)

    @cached_property
    def known(self) -> Known:
        """What the peers are told: everything but the specimen; of a real image nothing."""
        real = self.task is REAL_PAIR
        return Known.of_real(self.measurement) if real else Known(self.task, self.task.noise)

    @cached_property
    def lost(self) -> float:
        """Mean square error that the noise of the truth itself leaves to any method."""
        return self.task.lost(own_noise() if self.task is not REAL_PAIR else 0, self.truth.shape)

    def generator(self) -> torch.Generator:
        """A fresh generator: every method sees the same random numbers."""
        return torch.Generator().manual_seed(self.seed)


# --- the classical peers


def _bm3d(y: Grey, known: Known, s: Settings) -> Grey:
    return classical.bm3d(y, s["scale"] * known.sigma, s["profile"])


def _bm3d_coloured(y: Grey, known: Known, s: Settings) -> Grey:
    assert known.spectrum is not None
    half = known.spectrum(y.shape).numpy()
    whole = np.empty(y.shape)
    whole[:, : half.shape[1]] = half
    mirrored = np.arange(1, (y.shape[1] + 1) // 2)
    whole[:, -mirrored] = half[-np.arange(y.shape[0])][:, mirrored]
    return classical.bm3d(y, s["scale"] ** 2 * y.size * whole, s["profile"])


def _bm3d_lucy(y: Grey, known: Known, s: Settings) -> Grey:
    return classical.richardson_lucy(_bm3d(y, known, s), known.kernel, s["iterations"])


def _interpolate(y: Grey, known: Known, order: int) -> Grey:
    task = known.task
    fine = classical.cubic_axial if task.kind == "isotropic" else classical.cubic_upsample
    return fine(y, task.factor, task.mode, order)


def _linear(y: Grey, known: Known, s: Settings) -> Grey:
    operator, shape = known.task.operator(), known.task.finer(y.shape)
    return classical.linear_mmse(y, operator, shape, known.sigma, s["spectrum"])


_PEERS: dict[str, Callable[[Grey, Known, Settings], Grey]] = {
    "gaussian": lambda y, _, s: classical.gaussian(y, s["width"]),
    "tv": lambda y, known, s: classical.tv(y, s["weight"] * known.sigma),
    "wavelet": lambda y, known, s: classical.wavelet(y, known.sigma, **s),
    "nlm": lambda y, known, s: classical.nlm(y, known.sigma, **s),
    "linear": _linear,
    "bm3d": _bm3d,
    "bm4d": lambda y, known, s: classical.bm4d(y, s["scale"] * known.sigma),
    "bm3d_coloured": _bm3d_coloured,
    "wiener": lambda y, known, s: classical.wiener_deconvolve(y, known.kernel, **s),
    "richardson_lucy": lambda y, known, s: classical.richardson_lucy(y, known.kernel, **s),
    "bm3d_lucy": _bm3d_lucy,
    "cubic": lambda y, known, _: _interpolate(y, known, 3),
    "quintic": lambda y, known, _: _interpolate(y, known, 5),
}


def run_peer(name: str, measurement: NDArray, known: Known, settings: Settings) -> Grey:
    """Run a peer on grey levels 0..255 ``(H, W)`` or ``(D, H, W)``."""
    unit = (measurement / GREY_RANGE).astype(np.float32)
    return _PEERS[name](unit, known, settings) * np.float32(GREY_RANGE)


# --- the rows of a table


Method = Callable[[Case], Any]  # an image, an estimate, or an estimate and its kernel
Rows = Callable[[Task], dict[str, Method]]


def classical_rows(task: Task, peers: Iterable[str] | None = None) -> dict[str, Method]:
    """The identity and the tuned classical peers: those named, or all."""
    settings = tuned("em_generalist", "deblur" if task is STRANGE_BLUR else task.name)
    found = {name: partial(_peer, name, settings[name]) for name in peers or settings}
    return {"input": _on_fine_grid, **found}


def rows(
    config: generalist.Config,
    prior: Prior,
    supervised: Restorer | None = None,
    extra: Mapping[str, Method] | None = None,
) -> Rows:
    """All peers, the supervised network if there is one, a constant, ours, and further rows."""

    def of(task: Task) -> dict[str, Method]:
        methods = classical_rows(task)
        if supervised is not None:
            methods["supervised"] = lambda case: supervised.restore(
                case.task, torch.from_numpy(case.measurement)
            ).numpy()
        methods["constant"] = lambda case: np.full_like(case.truth, case.measurement.mean())
        return {**methods, "ours": ours_row(config, prior), **(extra or {})}

    return of


def published_rows(prior: Prior, steps: int | None = None) -> dict[str, Method]:
    """The paper's two samplers on the same prior, with their own number of steps or another."""
    configs = {name: generalist.load_config(config) for name, config in PUBLISHED.items()}
    return {
        name: ours_row(hurried(config, steps) if steps else config, prior)
        for name, config in configs.items()
    }


def volume_rows(config: generalist.Config, prior: Prior) -> Rows:
    """All peers that see depth; ours on each plane alone, with neighbours, and along all axes."""
    return lambda task: {
        **classical_rows(task),
        "planes": ours_row(config, TimedPrior(prior)),  # is asked for planes as any other prior
        "stacks": ours_row(config, prior),
        "ours": ours_row(config, prior, cubic=True),
    }


def ours_row(
    config: generalist.Config, prior: Prior, samples: int | None = None, **more: bool
) -> Method:
    """Our method; it is told the noise level of simulated measurements, as the peers are."""
    return partial(_ours, config, {"prior": prior, "samples": samples, **more})


def _on_fine_grid(case: Case) -> Grey:
    fine = np.repeat(case.measurement, case.task.factor, axis=0)
    return fine if case.task.kind == "isotropic" else np.repeat(fine, case.task.factor, axis=1)


def _peer(name: str, settings: Settings, case: Case) -> Grey:
    return run_peer(name, case.measurement, case.known, settings)


def _ours(config: generalist.Config, options: Settings, case: Case) -> generalist.Found:
    task, generator, told = case.task, case.generator(), dict(options)
    if task is REAL_PAIR:
        return generalist.denoise(case.measurement, config, generator, coloured=True, **told)
    told["noise_sigma"] = task.noise * GREY_RANGE
    if task.noise > 0.3:  # the contrast of one crop cannot be read any more: that of training
        told["scale"] = generalist.GreyScale(GREY_RANGE / 2, GREY_RANGE / 2)
    if task.kind == "denoise":
        return generalist.denoise(case.measurement, config, generator, **told)
    if task.kind == "deblur":
        kernel = task.kernel.numpy()
        return generalist.deblur(case.measurement, kernel, config, generator, **told)
    solve = generalist.upsample if task.kind == "upsample" else generalist.isotropic
    return solve(case.measurement, task.factor, config, generator, sampling=task.mode, **told)


_SAMPLERS = RestoreConfig | PlugAndPlayConfig | DPSConfig


def hurried(config: generalist.Config, steps: int, samples: int = 1) -> generalist.Config:
    """The configuration with another number of steps of every sample, and of samples."""
    solvers = {
        task: replace(solver, steps=steps) if isinstance(solver, _SAMPLERS) else solver
        for task, solver in config.solvers.items()
    }
    return replace(config, solvers=solvers, samples=samples)


# --- scores


def match_grey_levels(image: NDArray, reference: NDArray) -> Grey:
    """Gain and offset by least squares: the image in the grey levels of the reference."""
    x, y = image.astype(np.float64), reference.astype(np.float64)
    variance = x.var()
    gain = ((x - x.mean()) * (y - y.mean())).mean() / variance if variance > 0 else 0.0
    return (gain * (x - x.mean()) + y.mean()).astype(np.float32)


def image_of(answer: Any) -> Grey:
    """The image of what a `Method` returned."""
    answer = answer[0] if isinstance(answer, tuple) else answer
    return answer.image if isinstance(answer, generalist.Estimate) else np.asarray(answer, "f4")


def score(cases: Sequence[Case], answers: Sequence[Any]) -> dict[str, NDArray]:
    """All metrics ``(cases, places)``: a crop is one place, a volume or a real image has several.

    ``removed`` is the share that a method takes away of the mean square error that the measurement
    on the fine grid has above `Case.lost`. ``mse`` in grey levels squared, ``psnr`` in dB over the
    range 255, ``ssim``, and ``frc_nm``, the period where the Fourier correlation falls below .5 (of
    a whole volume: one place). Axial tasks also have ``psnr_xz``, ``psnr_yz``, ``ssim_xz`` and
    ``ssim_yz``, of which ``psnr`` and ``ssim`` are the means, and ``slice_correlation``, of
    neighbouring planes over that of the truth's. The real pair's scans differ in brightness and
    contrast: its answers get the gain and offset that fit them best.
    """
    found = [_score(case, image_of(answer)) for case, answer in zip(cases, answers, strict=True)]
    return {name: np.array([one[name] for one in found]) for name in found[0]}


def _score(case: Case, estimate: Grey) -> dict[str, list[float]]:
    truth, measured, axial = case.truth, _on_fine_grid(case), case.task.kind == "isotropic"
    if estimate.shape != truth.shape:
        raise InputError(f"an answer has the shape {estimate.shape}, the truth {truth.shape}")
    sides = COLUMN if axial else truth.shape[-2:]
    if case.task is REAL_PAIR:
        estimate, sides = match_grey_levels(estimate, truth), (TILE, TILE)
    parts = list(zip(*(_pieces(one, sides) for one in (estimate, truth, measured)), strict=True))
    curve = (
        metrics.fourier_shell_correlation if truth.ndim == 3 else metrics.fourier_ring_correlation
    )
    whole = [(estimate, truth)] if axial else [(a, b) for a, b, _ in parts]
    scores = {
        "frc_nm": [_resolution(curve, a, b) for a, b in whole],
        "mse": [_mse(a, b) for a, b, _ in parts],
        "removed": [_removed(a, b, c, case.lost) for a, b, c in parts],
    }
    if not axial:
        scores["psnr"] = [metrics.psnr(a, b, GREY_RANGE) for a, b, _ in parts]
        return scores | {"ssim": [_in_sections(metrics.ssim, a, b) for a, b, _ in parts]}
    for name, measure in (("psnr", metrics.psnr), ("ssim", metrics.ssim)):
        both = [[_in_sections(measure, a, b, axis) for a, b, _ in parts] for axis in (1, 2)]
        scores |= {f"{name}_xz": both[0], f"{name}_yz": both[1]}
        scores[name] = [(xz + yz) / 2 for xz, yz in zip(*both, strict=True)]
    return scores | {"slice_correlation": [slice_correlation(estimate) / slice_correlation(truth)]}


def _pieces(image: NDArray, sides: tuple[int, ...]) -> list[NDArray]:
    """Pieces of an image, or of a volume in its full depth, side by side; what is left is cut."""
    height, width = (min(pair) for pair in zip(sides, image.shape[-2:], strict=True))
    return [
        image[..., y : y + height, x : x + width]
        for y in range(0, image.shape[-2] - height + 1, height)
        for x in range(0, image.shape[-1] - width + 1, width)
    ]


def _in_sections(measure: Any, estimate: Grey, truth: Grey, axis: int = 0) -> float:
    """Mean over the sections across an axis; an image is one section."""
    stacks = (one.reshape(-1, *one.shape[-2:]) for one in (estimate, truth))
    pairs = zip(*(np.moveaxis(stack, axis, 0) for stack in stacks), strict=True)
    return float(np.mean([measure(a, b, GREY_RANGE) for a, b in pairs]))


def _mse(estimate: Grey, truth: Grey) -> float:
    return float(np.square(estimate - truth).mean())


def _removed(estimate: Grey, truth: Grey, measured: Grey, lost: float) -> float:
    return 1 - (_mse(estimate, truth) - lost) / (_mse(measured, truth) - lost)


def _resolution(curve: Callable[..., metrics.Curve], estimate: NDArray, truth: NDArray) -> float:
    """Period in nm at .5; an image without any agreement gets its longest side."""
    longest = max(truth.shape) * PIXEL_NM
    if np.ptp(estimate) == 0:
        return longest
    found = curve(estimate, truth, PIXEL_NM).resolution_nm(0.5)
    return found if math.isfinite(found) else longest


# --- tables


Studies = dict[str, Study]  # by task
Runner = Callable[[Study, Mapping[str, Method]], Study]  # runs methods, or knows recorded rows


def run_here(study: Study, methods: Mapping[str, Method]) -> Study:
    """Run every method on every case of a study; returns the study."""
    return study.run({name: each(method) for name, method in methods.items()}, score)


def run_studies(
    tasks: Iterable[Task],
    methods: Rows,
    specimen: Specimen,
    *,
    seed: int = 0,
    kept: Runner = run_here,
) -> Studies:
    """Run every method on every measurement of crops, or of a block if tasks are isotropic."""
    studies = {}
    for task in tasks:
        truths = [specimen.grey] if task.kind == "isotropic" else specimen.grey
        seeds = [(seed * 1009 + i) * 1009 + sum(task.name.encode()) for i in range(len(truths))]
        cases = [Case.of(task, *one) for one in zip(truths, seeds, strict=True)]
        studies[task.name] = kept(Study(cases, _columns(task), LABELS), methods(task))
    return studies


def run_real_pair(
    pair: RealPair, methods: Rows, *, seed: int = 0, kept: Runner = run_here
) -> Studies:
    """The same of the real pair; each method has the noisy scan only, and is not told its noise."""
    case = Case(REAL_PAIR, pair.clean, pair.noisy, seed)
    return {REAL_PAIR.name: kept(Study([case], _columns(REAL_PAIR), LABELS), methods(REAL_PAIR))}


def _columns(task: Task) -> tuple[Column, ...]:
    curve = "FSC" if task.kind == "isotropic" or task in VOLUMES else "FRC"
    note = Column.note + "; pixel size unknown, taken as 10 nm" * (task is REAL_PAIR)
    sections = ("psnr_xz", "psnr_yz", "ssim_xz", "ssim_yz", "slice_correlation")
    return (
        Column("removed", "error removed", show="{mean:.0%} [{low:.0%}, {high:.0%}]"),
        Column("psnr", "PSNR [dB]", show="{mean:.2f} [{low:.2f}, {high:.2f}]", unit="dB"),
        Column("ssim", "SSIM", show="{mean:.3f}"),
        Column("frc_nm", f"{curve} .5 [nm]", "lower", "{mean:.1f}", "nm", note),
        *(Column(name, unit="dB" * name.startswith("psnr")) for name in sections),
    )


def best_classical(study: Study) -> str:
    """The classical peer that did best on validation images, of those that ran."""
    table = read_settings(PEERS)["peers"][study.cases[0].task.name]
    return max(set(table) & set(study.scores), key=lambda peer: table[peer]["validation_psnr"])


def record(studies: Studies, report: Report) -> None:
    """Record ``TASK.METRIC.METHOD``, and ``TASK.gain_METRIC.BETTER_over_METHOD``.

    Better is ours, over all others, or the paper's flow, over the peers.
    """
    for task, study in studies.items():
        study.record(report, task)
        own = {"ours": {"ours"}, "flow": {"ours", *PUBLISHED, "untrained", "constant"}}
        for better, without in own.items():
            for name in study.methods if better in study.scores else ():
                if name not in without:
                    study.record_gains(report, better, name, task, METRICS)
