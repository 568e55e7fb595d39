"""Which methods and fields chapter 06 compares, and where all must agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from emlab import chapters, data
from emlab.bench import Report
from emlab.bench.study import pipe_table
from emlab.chapters.tsm import cases as tsm_cases
from emlab.chapters.tsm.cases import Image, Method, RealStudy
from emlab.data.phase_maps import PIXEL_ANGSTROM
from emlab.external.topaz import Picked
from emlab.methods import generalist, tsm
from emlab.methods.cellpose3 import load_restorer, untrained_restorer
from emlab.models.residual_unet import ResidualUNet
from emlab.physics.counting import GaussianCounts
from emlab.physics.micrograph import Micrograph, MicrographConfig, simulate_micrograph
from emlab.physics.noise import GaussianNoise
from emlab.physics.operators import Identity
from emlab.priors import GaussianPrior
from emlab.priors.base import Prior
from emlab.recipes.particles import RESTORER, SQUARES, restore
from emlab.recipes.tsm import frames, volume
from emlab.runtime import make_generator
from emlab.settings import read_settings, tuned
from emlab.solvers.denoiser_spread import WienerSpread
from emlab.solvers.guided_phase import GuidedPhaseConfig, guided_phase
from emlab.solvers.one_step import DiffuseBackConfig, diffuse_back, tweedie

SLUG = "06_compare"


def thresholds() -> dict[str, float]:
    """Scores that a pick of Topaz needs, by method, all from validation micrographs."""
    return {**tsm_cases.THRESHOLDS, **read_settings("chapters/compare/peers")["thresholds"]}


def methods(
    profile: str, device: torch.device | str, seed: int, pixel_size_angstrom: float = PIXEL_ANGSTROM
) -> dict[str, Method]:
    """Every row of the chapter's table in a profile."""
    chosen = tsm_cases.classical(chapters.settings(SLUG, profile)["classical"])
    chosen["generalist"] = generalist_method(device, seed, pixel_size_angstrom)
    chosen["tsm"] = tsm_cases.score_method(tsm.load_denoiser("tsm", device), pixel_size_angstrom)
    restorers = {"squares": load_restorer(SQUARES, device)}
    restorers["cellpose3"] = load_restorer(RESTORER, device)
    restorers["untrained_restorer"] = untrained_restorer(RESTORER, seed)
    made = {name: restorer_method(one, pixel_size_angstrom) for name, one in restorers.items()}
    return chosen | made


def restorer_method(restorer: ResidualUNet, pixel_size_angstrom: float = PIXEL_ANGSTROM) -> Method:
    """A trained restorer."""
    restored = partial(restore, restorer=restorer, pixel_size_angstrom=pixel_size_angstrom)
    return tsm_cases.each(restored)


def generalist_method(
    device: torch.device | str,
    seed: int,
    pixel_size_angstrom: float = PIXEL_ANGSTROM,
    prior: Prior | None = None,
    working_angstrom: float | None = None,
) -> Method:
    """EM Generalist, one step under white noise, at a pixel size of its own.

    The default is that of the largest correlation on validation micrographs.
    """
    config = generalist.load_config()
    loaded = generalist.load(config.prior, device) if prior is None else prior
    seen = working_angstrom or tuned("compare")["generalist"]["working_angstrom"]

    def clean(image: Image) -> Image:
        sides = [max(64, 2 * round(side * pixel_size_angstrom / seen / 2)) for side in image.shape]
        small = tsm.resize(image, (sides[0], sides[1]))
        found = generalist.denoise(small, config, make_generator(seed), prior=loaded, device=device)
        return tsm.resize(found.image, image.shape)

    return tsm_cases.each(clean)


def empty_fields(count: int, size: int, seed: int) -> dict[str, list[Micrograph]]:
    """Ice without particles, as in chapter 02, and counts of an even beam through nothing."""
    ice = [frame.micrograph for frame in frames("test", count, size, particles=0)]
    potential, _ = volume("t20s")
    beam = MicrographConfig(
        size=size, pixel_size_angstrom=PIXEL_ANGSTROM, particles=0, contaminants=0,
        background=0.0, ice_phase=0.0, gradient=0.0,
    )  # fmt: skip
    noise = [
        simulate_micrograph(beam, potential, make_generator(seed + 70 + n)) for n in range(count)
    ]
    return {"ice": ice, "noise": noise}


def field_at(
    dose_per_angstrom2: float, defocus_um: float, seed: int, size: int = 256
) -> Micrograph:
    """A field of proteasomes at any dose and defocus: the same particles for the same seed."""
    config = MicrographConfig(
        size=size, pixel_size_angstrom=PIXEL_ANGSTROM, dose_per_angstrom2=dose_per_angstrom2,
        defocus_angstrom=1e4 * defocus_um, particles=round(110 * (size / 1024) ** 2),
        contaminants=0,
    )  # fmt: skip
    return simulate_micrograph(config, volume("t20s")[0], make_generator(seed + 90))


def study_apoferritin(
    chosen: Mapping[str, Method],
    report: Report,
    wanted: bool = True,
    threads: int = 1,
    kept: Mapping[str, list[Picked]] | None = None,
) -> RealStudy | None:
    """EMPIAR-10146, the average of its frames, judged and recorded as ``apoferritin.*``.

    None where it is not on this machine, or not wanted; ``kept`` are recorded picks by method.
    """
    if not wanted and data.available("apoferritin_10146"):
        return None
    seen = tsm_cases.real_apoferritin("average", 0, report)
    if seen is None:
        return None
    study = tsm_cases.study_real(seen, chosen, thresholds(), threads, kept)
    study.record(report, "apoferritin")
    return study


def record_statements(report: Report) -> None:
    """Record how many statements of other chapters were confirmed and contradicted here."""
    values = report.metrics()["values"]
    statements = chapters.claims(SLUG, "statement")
    found = [{one.outcome(values) for one in said.conditions} for said in statements]
    measured = [outcomes for outcomes in found if "not measured" not in outcomes]
    counts = {
        "confirmed": measured.count({"met"}),
        "contradicted": sum("not met" in outcomes for outcomes in measured),
    }
    counts["undecided"] = len(measured) - sum(counts.values())
    for name, count in counts.items():
        report.value(f"statements.{name}", count, n=len(found))


_SIDE, _LENGTH, _NOISE = 16, 2.0, 1.0  # of the Gaussian images, in pixels
SOLVERS = {
    "tsm": "TSM: one step along the score",
    "generalist": "EM Generalist: mean of samples, diffused back",
    "flowdps": "FlowDPS: mean of samples, guided",
    "mtd": "MTD: gradient steps of a maximisation, one copy at a known place",
    "cellpose3": "Cellpose3's restorer with squared error: a filter fitted to pairs",
    "nothing": "the measurement itself",
}


@dataclass(frozen=True)
class Agreement:
    """Answers to one measurement ``(16, 16)`` by method, and the exact one."""

    truth: Tensor
    measurement: Tensor
    exact: Tensor
    deviation: float  #: of the posterior, root mean square over pixels
    answers: dict[str, Tensor]

    def distance(self, method: str) -> float:
        """From the exact answer, root mean square, in posterior standard deviations."""
        return float((self.answers[method] - self.exact).square().mean().sqrt()) / self.deviation

    def record(self, report: Report) -> None:
        """Record ``agreement.METHOD``."""
        for name in self.answers:
            report.value(f"agreement.{name}", self.distance(name), note="posterior deviations")

    def markdown(self) -> str:
        """A row a method."""
        rows = [[SOLVERS[name], f"{self.distance(name):.4f}"] for name in self.answers]
        return pipe_table(["solver", "distance from the exact posterior mean"], rows)


def agree(samples: int, pairs: int, seed: int) -> Agreement:
    """Give every solver the same Gaussian prior, the same white noise and the same measurement.

    So many `samples` are drawn by the samplers, whose means are compared, and so many `pairs` of
    clean and noisy images is the filter fitted to.
    """
    power = _power()
    prior, generator = stationary_prior(power), make_generator(seed)
    truth = prior.sample(1, generator)[0]
    noise = torch.randn(_SIDE, _SIDE, generator=generator, dtype=torch.float64)
    y = truth + _NOISE * noise
    variance = power * _NOISE**2 / (power + _NOISE**2)
    weight = torch.full_like(variance, 2.0)
    weight[:, 0] = weight[:, -1] = 1.0
    deviation = float((variance * weight).sum() / _SIDE**2) ** 0.5
    answers = {
        "tsm": tweedie(prior, y, _NOISE),
        "generalist": diffuse_back(
            prior, Identity(), y, GaussianNoise(_NOISE), DiffuseBackConfig(25, 0.01), generator,
            samples=samples,
        ).mean,
        "flowdps": guided_phase(
            prior, _Direct(), y, GaussianCounts(_NOISE**2),
            GuidedPhaseConfig(steps=12, sigma_max=20.0, sigma_min=0.02), generator,
            samples=samples, spread=WienerSpread(power),
        ).mean,
        "mtd": _ascend(prior, y),
        "cellpose3": _fitted(prior, y, pairs, generator),
        "nothing": y,
    }  # fmt: skip
    return Agreement(truth, y, prior.denoise(y, _NOISE), deviation, answers)


def stationary_prior(power: Tensor) -> GaussianPrior:
    """Gaussian images on the torus of a power spectrum ``(n, n // 2 + 1)``."""
    n = power.shape[0]
    kernel = torch.fft.irfft2(power, s=[n, n])
    places = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    apart = (places[:, None] - places) % n
    covariance = kernel[apart[..., 0], apart[..., 1]]
    return GaussianPrior(torch.zeros(n, n).double(), (covariance + covariance.T) / 2)


def _power() -> Tensor:
    """Unit variance, alike over `_LENGTH` pixels."""
    rows, columns = torch.fft.fftfreq(_SIDE).double(), torch.fft.rfftfreq(_SIDE).double()
    power = (-2 * (np.pi * _LENGTH) ** 2 * (rows[:, None] ** 2 + columns**2)).exp() + 1e-3
    return power / torch.fft.irfft2(power, s=[_SIDE, _SIDE])[0, 0]


class _Direct(Identity):
    """The instrument that shows the specimen as it is; its derivative is itself."""

    counts = expected = torch.tensor(0.0)

    def linearised(self, image: Tensor) -> _Direct:
        found = _Direct()
        found.expected = image
        return found

    def sensitivity(self) -> Tensor:
        return torch.full((_SIDE, _SIDE // 2 + 1), 1.0 / _NOISE**2, dtype=torch.float64)


def _ascend(prior: GaussianPrior, y: Tensor, steps: int = 4000, step: float = 2e-3) -> Tensor:
    """Along the gradient of likelihood and prior: their maximum is the posterior mean here."""
    x = torch.zeros_like(y)
    for _ in range(steps):
        x = x + step * ((y - x) / _NOISE**2 + prior.score(x, 0.05))
    return x


def _fitted(prior: GaussianPrior, y: Tensor, pairs: int, generator: torch.Generator) -> Tensor:
    """The linear filter of least squared error on pairs, one gain a frequency."""
    clean = prior.sample(pairs, generator)
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    wanted, given = torch.fft.rfft2(clean), torch.fft.rfft2(clean + _NOISE * noise)
    gain = (wanted * given.conj()).sum(0).real / given.abs().square().sum(0)
    return torch.fft.irfft2(gain * torch.fft.rfft2(y), s=y.shape)
