"""Particles of the FlowDPS chapter, seen as real ones were, and what no network makes of them.

The particles are phase maps that nothing was trained on. Settings of classical retrieval were
chosen on validation poses (`PEERS`); views of the known structure say what there is to be had.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import pad

from emlab.bench import Report
from emlab.data.metadata import Metadata, Particles
from emlab.data.particles import draw_metadata
from emlab.data.phase_maps import (
    FIELD,
    PIXEL_ANGSTROM,
    PhaseMaps,
    held_out_direction,
    phase_maps,
    poses,
    project,
    specimen_volume,
)
from emlab.errors import DataUnavailableError
from emlab.methods.flowdps_observation import lens
from emlab.physics import ComplexCTF, ExitWave, Poisson
from emlab.priors.pose_posterior import PoseConfig, Reference
from emlab.recorded import Recording
from emlab.runtime import make_generator
from emlab.settings import read_settings
from emlab.solvers.denoiser_spread import power_spectrum
from emlab.solvers.guided_phase import filtered
from emlab.solvers.phase_projections import ProjectionsConfig, alternate
from emlab.solvers.phase_retrieval import (
    phase_flip,
    sparse_fresnel,
    transport_of_intensity,
    wiener,
)

WINDOW = 96
MARGIN = (WINDOW - FIELD) // 2
SMALL_CTF = 0.3  # modulus below which a coefficient counts as near a zero, the envelope apart
ENVELOPE = 60.0  # B factor in square angstrom: what source, drift and detector take of the wave
SHELL = "shell"  # a phantom of another particle: a hollow sphere
SHELL_ANGSTROM, SHELL_RADIANS = (42.0, 62.0), 0.0023  # inner and outer radius; phase per angstrom
SPECIMENS = {"t20s": "pdb_6bdf", "beta_galactosidase": "pdb_5a1a", "apoferritin": "pdb_4v1w"}
CLASSICAL = {
    "phase_flip": "phase flip",
    "wiener": "Wiener",
    "gerchberg_saxton": "Gerchberg-Saxton",
    "hio": "hybrid input-output",
    "rrr": "relaxed reflections",
    "sparse": "sparse Fresnel",
    "transport": "transport, 3 images",
}
SEED = 11  # of the two further images that transport asks for
SUPPORT_RADIUS = 30  # pixels; the particle's longest half-axis is 29
TRAINED_SPECIMEN, TRAINED_POSES = "t20s", 20_000  # of the shipped prior, see its card
POSES = PoseConfig(low_pass_angstrom=4 * PIXEL_ANGSTROM, directions=191, angles=90)
STARTS, ROUNDS, DAMPING = 3, 8, 0.01  # poses that are refined, in how many steps, how careful
OFF = np.array([0.25, 0.25, 0.25, 0.05, 0.05])  # degrees and pixels, of derivatives


@dataclass(frozen=True)
class Cases:
    """n particles: what every method gets, and the truth. A slice of them is some of them.

    The truth is ``(n, 64, 64)`` in radians, counts are ``(n, 96, 96)`` electrons, doses ``(n,)``
    electrons per square angstrom; rotations ``(n, 3, 3)`` and shifts ``(n, 2)`` are the truth's.
    Optics are those of real particles; pixel size and poses in them are not those of the truth.
    """

    specimen: str
    truth: Tensor
    optics: Metadata
    dose: Tensor
    counts: Tensor
    rotations: NDArray[np.float64]
    shifts_angstrom: NDArray[np.float64]
    b_factor_angstrom2: float = ENVELOPE
    split: str = "test"

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, rows: slice) -> Cases:
        names = ("truth", "dose", "counts", "rotations", "shifts_angstrom")
        chosen = {name: getattr(self, name)[rows] for name in names}
        return replace(self, optics=self.optics.subset(rows), **chosen)

    def instrument(
        self, field: int = FIELD, window: int = WINDOW, *, envelope: bool = True
    ) -> ExitWave:
        """The microscope that saw them, for a specimen of another field or window if asked."""
        ctf = lens(self.optics, self.b_factor_angstrom2 * envelope)
        return ExitWave(ctf, self.dose, field, window, padded=2 * field)

    @property
    def directions(self) -> NDArray[Any]:
        """Which held-out direction each is seen from, ``(n,)``; each its own if all share one.

        Intervals draw whole directions: eight independent views, however many particles.
        """
        found = held_out_direction(self.rotations, self.split)
        return found if len(np.unique(found)) > 1 else np.arange(len(found))

    def near_zeros(self) -> NDArray[np.bool_]:
        """Coefficients of `rfft2` ``(n, 64, 33)`` that the lens hides.

        Those of a contrast transfer below .3, beyond its first maximum.
        """
        ctf = lens(self.optics)
        frequency = ctf.grid((FIELD, FIELD))[0]
        defocus = (self.optics.defocus_u_angstrom + self.optics.defocus_v_angstrom) / 2
        peak = torch.from_numpy((2 * ctf.wavelength_angstrom * defocus) ** -0.5)
        hidden = ctf.weak_phase((FIELD, FIELD)).abs() < SMALL_CTF
        return (hidden & (frequency > peak[:, None, None]))[..., : FIELD // 2 + 1].numpy()

    def extracted(self) -> Particles:
        """Particles as a user has them: mean 0, deviation 1, the protein dark."""
        images = self.counts.numpy()
        images = (images - images.mean((1, 2), keepdims=True)) / images.std((1, 2), keepdims=True)
        table = {item.name: getattr(self.optics, item.name) for item in fields(Metadata)}
        table |= {"pixel_size_angstrom": PIXEL_ANGSTROM, "shifts_angstrom": None}
        return Particles(images=images.astype(np.float32), **table)

    def told(self) -> dict[str, list[float]]:
        """What tells whether particles are those of a recording: contrast and defocus of each."""
        contrast = self.truth.std((1, 2)).tolist()
        return {"contrast": contrast, "defocus": self.optics.defocus_u_angstrom.tolist()}

    def begin_with(self, recorded: Mapping[str, list[float]]) -> bool:
        """Whether the first of the particles are those of a recording, see `told`."""
        few = self[: len(recorded["defocus"])].told()
        return all(
            len(few[name]) == len(kept) and np.allclose(few[name], kept, rtol=1e-3)
            for name, kept in recorded.items()
        )


def make_cases(
    specimen: str,
    n: int,
    seed: int,
    doses: Sequence[float] = (30.0, 45.0, 60.0),
    *,
    split: str = "test",
    defocus_angstrom: float | None = None,
    b_factor_angstrom2: float = ENVELOPE,
) -> Cases:
    """Simulate particles.

    Parameters
    ----------
    doses : sequence of float
        Electrons per square angstrom, given to the particles in turn.
    split : str
        ``"test"``: poses that nobody tuned or trained with; ``"validation"`` for tuning.
    defocus_angstrom : float, optional
        Mean defocus of all particles instead of that of real ones; the astigmatism is kept.
    """
    maps, optics = _maps(specimen, n, seed, split), draw_metadata(n, seed)
    if defocus_angstrom is not None:
        half = (optics.defocus_u_angstrom - optics.defocus_v_angstrom) / 2
        optics = replace(
            optics,
            defocus_u_angstrom=defocus_angstrom + half,
            defocus_v_angstrom=defocus_angstrom - half,
        )
    dose = torch.tensor([doses[i % len(doses)] for i in range(n)], dtype=torch.float64)
    instrument = ExitWave(lens(optics, b_factor_angstrom2), dose, FIELD, WINDOW, padded=2 * FIELD)
    counts = Poisson().sample(instrument.A(maps.phases), make_generator(1009 * seed + 1))
    return Cases(
        specimen, maps.phases, optics, dose, counts, maps.rotations, maps.shifts_angstrom,
        b_factor_angstrom2, split,
    )  # fmt: skip


def _maps(specimen: str, n: int, seed: int, split: str) -> PhaseMaps:
    """Phase maps of a specimen, or of a hollow sphere: each the same but for its place."""
    if specimen != SHELL:
        return phase_maps(specimen, n, seed, split)
    shifts = np.random.default_rng([seed, 2]).normal(0, PIXEL_ANGSTROM, (n, 2))
    axis = PIXEL_ANGSTROM * (np.arange(FIELD) - FIELD // 2)
    squared = (axis[:, None] - shifts[:, 1, None, None]) ** 2
    squared = squared + (axis - shifts[:, 0, None, None]) ** 2
    inner, outer = (2 * np.sqrt(np.maximum(r**2 - squared, 0)) for r in SHELL_ANGSTROM)
    phases = torch.from_numpy(SHELL_RADIANS * (outer - inner)).float()
    return PhaseMaps(phases, poses(n, seed, split), shifts)


def available(names: Sequence[str]) -> list[str]:
    """Those specimens whose model is to be had."""
    found = []
    for name in names:
        try:
            _maps(name, 2, 0, "test")
        except DataUnavailableError:
            continue
        found.append(name)
    return found


def chapter_specimen() -> str:
    """The proteasome, or the simulated barrel where its model is not to be had."""
    return (available(["t20s"]) or ["barrel"])[0]


def optics_source() -> str:
    """Where defocus and astigmatism of simulated particles come from."""
    return draw_metadata(2, 0).source.rpartition("/")[2]


def record_specimens(
    report: Report, own: str, others: Sequence[str], wanted: Sequence[str]
) -> None:
    """Say in a report which particles are simulated, from what, and what stands in for what."""
    for name in dict.fromkeys((own, *others)):
        if name in SPECIMENS:
            how = f"projections of the atomic model {SPECIMENS[name]}, counts of its exit wave"
            report.simulated(f"phase maps of {name}", how)
        elif name == SHELL:
            report.simulated("phase maps of a shell", "hollow sphere of 42 to 62 angstrom")
        else:
            how = "seven-fold barrel of four rings of Gaussian blobs, published dimensions"
            stands_in = SPECIMENS["t20s"] if name == own else ""
            report.simulated(f"phase maps of a {name}", how, stands_in_for=stands_in)
    for name in SPECIMENS:
        if name != "t20s" and name in wanted and name not in others:
            report.absent(SPECIMENS[name], f"{name} is left out as another protein")
    if (source := optics_source()).startswith("simulated"):
        report.simulated("defocus and astigmatism", source, stands_in_for="t20s_metadata")


# --- classical retrieval


def library(specimen: str, n: int = 128) -> Tensor:
    """Training maps ``(n, 64, 64)`` in radians: what classical peers may know of the specimen."""
    return phase_maps(specimen, n, 7, "train").phases


def classical(name: str, cases: Cases, settings: Mapping[str, Any]) -> Tensor:
    """Phases ``(n, 64, 64)`` in radians by one of `CLASSICAL`.

    `width` of a Gaussian in pixels smooths, `scale` multiplies what the method returns.
    """
    kept = {k: v for k, v in settings.items() if k not in ("width", "scale", "validation_rmse")}
    found = _RUN[name](cases, **kept)
    width, scale = settings.get("width", 0.0), settings.get("scale", 1.0)
    side = found.shape[-1]
    if width:
        rows, columns = torch.fft.fftfreq(side), torch.fft.rfftfreq(side)
        squared = rows[:, None].square() + columns.square()
        found = filtered(found, (-2 * (torch.pi * width) ** 2 * squared).exp())
    start = (side - FIELD) // 2
    return scale * found[..., start : start + FIELD, start : start + FIELD]


@cache
def _power(specimen: str) -> Tensor:
    """Power of training maps in a window ``(96, 49)``, as Wiener's filter wants it."""
    return power_spectrum(pad(library(specimen), [MARGIN] * 4))


def _wiener(cases: Cases, power: float) -> Tensor:
    instrument = cases.instrument(WINDOW, WINDOW)
    return wiener(cases.counts, instrument, power * _power(cases.specimen))


def _projections(cases: Cases, **settings: Any) -> Tensor:
    axis = torch.arange(FIELD) - FIELD // 2
    support = torch.hypot(axis[:, None].float(), axis.float()) <= SUPPORT_RADIUS
    config = ProjectionsConfig(**settings)
    return alternate(cases.counts, cases.instrument(envelope=False), config, support)


def _transport(cases: Cases, step_angstrom: float, regularisation: float) -> Tensor:
    """Three images of a third of the dose each, a step of defocus apart, around zero."""
    ctf, flat = lens(cases.optics, cases.b_factor_angstrom2), torch.ones(len(cases))
    instruments = []
    for defocus in (-step_angstrom * flat, 0 * flat, step_angstrom * flat):
        there = replace(ctf, defocus_u_angstrom=defocus, defocus_v_angstrom=defocus)
        instruments.append(ExitWave(there, cases.dose / 3, WINDOW, WINDOW))
    truth, generator = pad(cases.truth, [MARGIN] * 4), make_generator(SEED)
    counts = [Poisson().sample(each.A(truth), generator) for each in instruments]
    return transport_of_intensity(counts, instruments, regularisation)


_RUN: dict[str, Callable[..., Tensor]] = {
    "phase_flip": lambda cases: phase_flip(cases.counts, cases.instrument(WINDOW, WINDOW)),
    "wiener": _wiener,
    "gerchberg_saxton": lambda cases, **told: _projections(cases, rule="gerchberg_saxton", **told),
    "hio": lambda cases, **told: _projections(cases, rule="hio", **told),
    "rrr": lambda cases, **told: _projections(cases, rule="rrr", **told),
    "sparse": lambda cases, **told: sparse_fresnel(cases.counts, cases.instrument(), **told),
    "transport": _transport,
}


def _tune(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by peer, overall scale included, and the error in radians that they reached."""
    poses, seed = settings["poses"], settings["seed"]
    cases = make_cases(settings["specimen"], poses, seed, split="validation")
    truth, table = cases.truth - cases.truth.mean((1, 2), keepdim=True), {}
    for name, choices in settings["choices"].items():
        tried = []
        for values in product(*choices.values()):
            choice = dict(zip(choices, values, strict=True))
            found = classical(name, cases, choice)
            found = found - found.mean((1, 2), keepdim=True)
            scale = round(float((found * truth).sum() / found.square().sum()), 3)
            error = float((scale * found - truth).square().mean((1, 2)).sqrt().mean())
            tried.append({**choice, "scale": scale, "validation_rmse": round(error, 5)})
        table[name] = min(tried, key=lambda choice: choice["validation_rmse"])
    return table


_SETTINGS = read_settings("chapters/flowdps/chapter")["recorded"]["peers"]
PEERS = Recording("03_flowdps", "peers", _tune, _SETTINGS)


# --- views of the known structure


def nearest_view(cases: Cases) -> Tensor:
    """The training view closest in angle, turned and shifted to the truth's place.

    Only an oracle knows the pose; no training map is closer to the truth than about this.
    """
    third, trained = cases.rotations[:, :, 2], poses(TRAINED_POSES, 0, "train")[:, :, 2]
    trained = np.concatenate([turn.apply(trained) for turn in Rotation.create_group("D7")])
    nearest = trained[np.abs(third @ trained.T).argmax(1)]
    nearest = nearest * np.sign((nearest * third).sum(1, keepdims=True))  # or seen from behind
    axis = np.cross(third, nearest)
    sine = np.linalg.norm(axis, axis=1, keepdims=True)
    rotations = Rotation.from_rotvec(axis * np.arcsin(sine) / sine).as_matrix() @ cases.rotations
    volume, shifts = specimen_volume(cases.specimen), cases.shifts_angstrom
    return project(volume, rotations, PIXEL_ANGSTROM, 300.0, shifts)


def posed_view(cases: Cases) -> Tensor:
    """Projections of the known structure at the poses that make the counts most probable.

    Told are structure, lens and dose, nothing of the pose. 191 directions (the particle's symmetry
    makes 14 of each: neighbours are 4 degrees apart), 90 turns, and shifts by Fourier transforms
    are tried, see `emlab.priors.pose_posterior`. From the best of them Gauss-Newton steps climb the
    likelihood of the counts in three angles and two shifts.

    Returns
    -------
    Tensor
        ``(n, 64, 64)`` in radians.
    """
    (turns, shifts), likelihood = _likeliest(cases), Poisson()
    instrument, volume = cases.instrument(), specimen_volume(cases.specimen)
    shape = shifts.shape[:2]
    score, best = torch.full(shape, -torch.inf), torch.zeros(*shape, FIELD, FIELD)
    beside = np.concatenate([np.zeros((1, 5)), np.diag(OFF)])[:, None, None] + np.zeros((*shape, 5))
    for _ in range(ROUNDS):
        around, moved = _moved(turns, shifts, beside)
        flat = around.reshape(-1, 3, 3), PIXEL_ANGSTROM, 300.0, moved.reshape(-1, 2)
        views = project(volume, *flat).reshape(6, *shape, FIELD, FIELD)
        here, *others = instrument.A(views)
        found = likelihood.log_likelihood(here, cases.counts)
        best = torch.where((found > score)[..., None, None], views[0], best)
        score = torch.maximum(found, score)
        slopes = torch.stack([(o - here) / d for o, d in zip(others, OFF, strict=True)], 2)
        weighed = slopes * likelihood.curvature(here)[:, :, None]
        bend = torch.einsum("knayx,knbyx->knab", slopes, weighed).double()
        pull = torch.einsum("knayx,knyx->kna", slopes, likelihood.gradient(here, cases.counts))
        bend += DAMPING * torch.diag_embed(bend.diagonal(dim1=-2, dim2=-1))
        step = torch.linalg.solve(bend, pull.double())
        turns, shifts = _moved(turns, shifts, step.numpy())
    return best[score.argmax(0), torch.arange(len(cases))]


def _moved(turns: NDArray, shifts: NDArray, changes: NDArray) -> tuple[NDArray, NDArray]:
    """Poses turned by changes ``(..., 5)`` of three angles in degrees and shifted by two pixels."""
    about = Rotation.from_rotvec(changes[..., :3].reshape(-1, 3), degrees=True).as_matrix()
    turned = turns @ about.reshape(*changes.shape[:-1], 3, 3)
    return turned, shifts + PIXEL_ANGSTROM * changes[..., 3:]


def _likeliest(cases: Cases) -> tuple[NDArray, NDArray]:
    """The best poses of the grid: rotations ``(3, n, 3, 3)`` and shifts ``(3, n, 2)``."""
    reference, empty = _reference(cases.specimen), cases.instrument().counts
    middle, turns, shifts = np.array([[WINDOW // 2] * 2]), [], []
    for i, image in enumerate(cases.counts / empty.float() - 1):
        ctf = lens(cases.optics.subset(slice(i, i + 1)), cases.b_factor_angstrom2)

        def transfer(shape: tuple[int, int], ctf: ComplexCTF = ctf) -> Tensor:
            return 2 * ctf.weak_phase(shape)[0, :, : shape[1] // 2 + 1].float()

        search = reference.under(image, transfer)
        level = search.log_ratio(search.fields(middle), 1.0)[0]
        best = level.amax((1, 2)).topk(STARTS).indices
        place = np.unravel_index(level[best].flatten(1).argmax(1).numpy(), level.shape[1:])
        turns.append(reference.turns[best].double().numpy())
        coarse = np.stack(place[::-1], 1) - level.shape[1] // 2
        shifts.append(2 * PIXEL_ANGSTROM * coarse)
    return np.stack(turns, 1), np.stack(shifts, 1)


@lru_cache(1)
def _reference(specimen: str) -> Reference:
    return Reference(specimen_volume(specimen), PIXEL_ANGSTROM, POSES)
