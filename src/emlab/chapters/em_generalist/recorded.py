"""What chapter 01 shows as recorded: slow rows of its tables, the ablations, sampled intervals."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from emlab import chapters, metrics
from emlab.bench import Report
from emlab.bench.study import Study, each
from emlab.bench.tissue import PIXEL_NM, block, blocks, crops, real_pair
from emlab.chapters.em_generalist import study as study_of
from emlab.chapters.em_generalist.experiments import Calibration, kernel_error
from emlab.chapters.em_generalist.study import PUBLISHED, Case, Grey, Method, Rows, Runner, Studies
from emlab.errors import InputError
from emlab.methods import generalist
from emlab.methods.generalist import GreyScale, Solver, load, load_config
from emlab.metrics.fourier import apodisation, radial_frequency
from emlab.physics import GaussianNoise
from emlab.priors import Prior
from emlab.recipes import generalist_tasks as tasks_of
from emlab.recipes.generalist_tasks import GREY_RANGE, REAL_PAIR, Task, task
from emlab.recorded import pack, unpack
from emlab.runtime import choose_threads
from emlab.settings import read_settings
from emlab.solvers import ONE_ESTIMATE, solver_of
from emlab.solvers.blind import BlindConfig
from emlab.solvers.plug_and_play import PlugAndPlayConfig, RestoreConfig
from emlab.solvers.sampling import DPSConfig

SHOWN = 128  # pixels along a side of a kept picture: its upper left corner
FINE = 0.2  # periods a pixel: above, there is detail and noise
SLOWEST = {*PUBLISHED, "bm4d"}  # rows that are left out where they are not recorded
SLOW = {*SLOWEST, "ours_blind"}  # rows of which nothing is run again
PIXEL_ANGSTROM = 10 * PIXEL_NM


class Run(NamedTuple):
    """What a sampler made of crops, and what it took."""

    images: Grey  #: ``(n, H, W)``, grey levels 0..255; of a recorded run the first
    psnr: NDArray[np.float64]  #: of each crop in dB; an image that ran away counts as 0 dB
    fine_power: float  #: of fine detail over the truth's: below 1 oversmoothed, above 1 noise
    seconds: float  #: of the processor, for all crops
    steps: int

    @classmethod
    def of(cls, images: Grey, truth: Grey, seconds: float, steps: int) -> Run:
        """Score images ``(n, H, W)``."""
        psnr = [
            max(metrics.psnr(image, clean, GREY_RANGE), 0.0) if np.isfinite(image).all() else 0.0
            for image, clean in zip(images, truth, strict=True)
        ]
        return cls(images, np.array(psnr), fine_power(images) / fine_power(truth), seconds, steps)


def fine_power(images: Grey) -> float:
    """Power above 0.2 periods a pixel of images ``(n, H, W)`` under a Hann window."""
    window = apodisation(images.shape[-2:])
    centred = images - images.mean((-2, -1), keepdims=True)
    power = np.abs(np.fft.rfft2(centred * window)) ** 2
    return float(power[..., radial_frequency(images.shape[-2:]) > FINE].mean())


def run_batch(case: Case, solver: Solver, prior: Prior) -> Run:
    """One sample of each of the crops ``(n, H, W)`` of a case, timed by the processor's clock."""
    shape, count = tuple(case.truth.shape[1:]), len(case.truth)
    sigma = case.task.noise * GREY_RANGE
    scale = GreyScale.of(case.measurement, sigma)
    units = scale.to_units(case.measurement, "cpu")
    noise = GaussianNoise(max(sigma / scale.scale, 0.003))
    one = isinstance(solver, ONE_ESTIMATE)  # all crops as one image then
    before = time.process_time()
    found = solver_of(solver)(
        prior, case.task.operator(), units, noise, solver, case.generator(),
        shape=None if one else shape, samples=1 if one else count,
        start=case.task.back_to_grid(units),
    )  # fmt: skip
    seconds = time.process_time() - before
    images = scale.to_grey(found.images[0] if one else found.images)
    return Run.of(images, case.truth, seconds, found.evaluations // (1 if one else count))


def defocus_rows(config: generalist.Config, prior: Prior, steps: int) -> Rows:
    """Wiener and Richardson-Lucy, tuned for the blur; ours, told the kernel or not.

    A kernel of up to 17 pixels is searched in so many steps; the search's own restoration is cut
    short, ours follows.
    """
    blind = BlindConfig(steps=steps, size=17, restoration=RestoreConfig(steps=2))

    def find(case: Case) -> tuple[generalist.Found, Grey]:
        told: dict[str, Any] = {"prior": prior, "noise_sigma": case.task.noise * GREY_RANGE}
        image = case.measurement
        kernel = generalist.deblur_blind(image, config, case.generator(), blind=blind, **told)[1]
        return generalist.deblur(image, kernel, config, case.generator(), **told), kernel

    return lambda task: {
        **study_of.classical_rows(task, ("wiener", "richardson_lucy")),
        "ours": study_of.ours_row(config, prior),
        "ours_blind": find,
    }


def _measure_rows(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of each slow row in each task, what tells its cases apart, and the kernels found."""
    tissue, seed = crops("test", settings["crops"], settings["crop"]), settings["seed"]
    pair, config = real_pair(settings["pair"]), load_config("ours")
    prior = load(config.prior, pixel_angstrom=PIXEL_ANGSTROM)
    if tissue.dataset is None or pair is None:
        raise InputError("rows are recorded on the real data; set EMLAB_MIRROR, or `make data`")
    few = replace(tissue, grey=tissue.grey[: settings["defocus_crops"]])
    blind = defocus_rows(config, prior, settings["blind_steps"])
    blurs = [*tasks_of.defocus_tasks(settings["defocus"]), tasks_of.STRANGE_BLUR]

    def slow(which: Task) -> dict[str, Method]:
        asked = load(config.prior) if which is REAL_PAIR else prior  # its pixel size is not known
        methods = (
            blind(which)
            if which in blurs
            else study_of.classical_rows(which) | study_of.published_rows(asked)
        )
        return {name: methods[name] for name in settings["rows"][which.name]}

    def run(study: Study, methods: Mapping[str, Method]) -> Study:
        print(study.cases[0].task.label, *methods, flush=True)
        solved, first = {n: each(m) for n, m in methods.items()}, {"dps": settings["dps_crops"]}
        return study.run(solved, study_of.score, first=first, progress=print)

    several = blocks("test", settings["volumes"], tuple(settings["volume"]))
    specimens = dict.fromkeys(tasks_of.VOLUMES, several) | dict.fromkeys(blurs, few)
    cube, studies = block("test", tuple(settings["block"])), Studies()
    for which in (*tasks_of.TASKS.values(), *tasks_of.VOLUMES, *tasks_of.OPEN, *blurs):
        if which.name in settings["rows"]:
            usual = cube if which.kind == "isotropic" else tissue
            seen = specimens.get(which, usual)
            studies |= study_of.run_studies([which], slow, seen, seed=seed, kept=run)
    studies |= study_of.run_real_pair(pair, slow, seed=seed, kept=run)
    found: dict[str, Any] = {}
    for name, study in studies.items():
        kept = {
            row: {
                "values": {metric: values.ravel().tolist() for metric, values in scores.items()},
                "seconds": study.seconds[row],
                "cases": study.seen(row),
                "image": _packed(study_of.image_of(study.answers[row][0])),
            }
            for row, scores in study.scores.items()
        }
        found[name] = {"power": _power(study.cases), "rows": kept}
    for blur in blurs:
        _, first, errors = kernels(studies[blur.name])
        found[blur.name] |= {"kernel": first.round(4).tolist(), "errors": errors}
    return found


def _measure_ablations(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Step sizes, exponents and steps of the paper's samplers, and their race against ours."""
    side, seed = settings["ablation_crop"], settings["seed"]
    tissue = crops("test", settings["crops"], settings["crop"]).grey
    small = tissue[: settings["ablation_crops"], :side, :side]
    config = load_config("ours")
    prior, steps = load(config.prior, pixel_angstrom=PIXEL_ANGSTROM), settings["flow"]
    noisy, blurred = (Case.of(task(name), small, seed) for name in ("denoise_10", "deblur"))
    solvers: dict[str, dict[Any, Any]] = {
        "step_size": {g: DPSConfig(settings["ablation_steps"], g) for g in settings["step_sizes"]},
        "alpha": {alpha: PlugAndPlayConfig(steps, alpha) for alpha in settings["alphas"]},
        "flow_steps": {count: PlugAndPlayConfig(count, 0.3) for count in settings["flow_steps"]},
        "race": {
            "flow": PlugAndPlayConfig(steps, 0.3),
            "ours": config.solvers["deblur"],
            "dps": DPSConfig(settings["dps_steps"], 15.0),
        },
    }
    kept: dict[str, Any] = {name: {} for name in solvers}
    threads = choose_threads()
    choose_threads(1)  # a race of several threads is lost to whatever else the machine does
    for name, table in solvers.items():
        for value, solver in table.items():
            run = run_batch(noisy if name == "step_size" else blurred, solver, prior)
            plain = {"images": _packed(run.images[0]), "psnr": run.psnr.tolist()}
            key = f"{value:g}" if isinstance(value, float) else str(value)
            kept[name][key] = run._asdict() | plain
    choose_threads(threads)
    return {"runs": kept, "measured": _packed(noisy.measurement[0]), "truth": _packed(small[0])}


def _measure_intervals(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Coverage of 90 % intervals of posterior samples, and error against spread."""
    side, count, seed = (settings[k] for k in ("interval_crop", "interval_samples", "seed"))
    tissue = crops("test", settings["crops"], settings["crop"]).grey
    few = tissue[: settings["interval_crops"], :side, :side]
    config = study_of.hurried(load_config("samples"), settings["interval_steps"], count)
    prior = load(config.prior, pixel_angstrom=PIXEL_ANGSTROM)
    method, found = study_of.ours_row(config, prior, count), {}
    reach = float(stats.t.ppf(0.95, count - 1))
    for name in settings["tasks"]:
        cases = [Case.of(task(name), crop, seed + number) for number, crop in enumerate(few)]
        drawn = [method(case) for case in cases]
        mean = np.stack([one.image for one in drawn])
        spread = np.stack([one.samples.std(0, ddof=1) for one in drawn]) * (1 + 1 / count) ** 0.5
        one = Calibration.of(mean, spread, few, reach)
        curve = {key: values.tolist() for key, values in vars(one.curve).items()}
        found[name] = {"coverage": one.coverage, "curve": curve}
    return found


_recording = partial(chapters.recording, "01_em_generalist")
_GIVEN = read_settings("methods/generalist") | {"seed": 0, "crops": 12, "crop": 96}
_PRIOR, _TUNED = load_config("ours").prior, read_settings(study_of.PEERS)["peers"]
ROWS = _recording("rows", _measure_rows, _PRIOR, **_GIVEN, tuned=_TUNED)
ABLATIONS = _recording("ablations", _measure_ablations, _PRIOR, **_GIVEN)
INTERVALS = _recording("intervals", _measure_intervals, _PRIOR, **_GIVEN)


def shortcuts() -> list[str]:
    """What is recorded with less than full scale, a sentence each."""
    table = chapters.table("01_em_generalist")["recorded"]
    here, full = table["ablations"] | table["intervals"], table["full_scale"]
    return [
        f"{text}: {here[key]} as recorded, {full[key]} at full scale"
        for key, text in table["told"].items()
    ]


def rows(report: Report, hurry: bool = False) -> Runner:
    """What runs methods, but shows recorded rows that were measured on the very cases of a task.

    Of the fast ones among these, crops by a classical peer, the first case is run again. The
    slowest run only in a `hurry`, on little or with few steps; else they are left out where they
    are not recorded.
    """

    def run(study: Study, methods: Mapping[str, Method]) -> Study:
        cases, name = study.cases, study.cases[0].task.name
        kept, power = ROWS.values.get(name, {"power": (), "rows": {}}), _power(cases)
        same = len(power) == len(kept["power"]) and np.allclose(power, kept["power"], rtol=1e-5)
        before = {n: row for n, row in kept["rows"].items() if same and n in methods}
        quick = (n for n in before if n not in SLOW and len(cases) > 1 and cases[0].truth.ndim == 2)
        again = dict.fromkeys(quick, 1)
        left = set(before) - set(again) | (set() if hurry else SLOWEST)
        here = {n: each(m) for n, m in methods.items() if n not in left}
        study.run(here, study_of.score, first=again)
        scores = {
            n: {k: np.reshape(v, (row["cases"], -1)) for k, v in row["values"].items()}
            for n, row in before.items()
        }
        for n, row in before.items():
            study.seconds[n] = row["seconds"]
            study.answers.setdefault(n, [_unpacked(row["image"])])
        return study.join_recorded(ROWS, scores, report, name) if before else study

    return run


def kernels(study: Study) -> tuple[NDArray, NDArray, list[float]]:
    """The true kernel, the first that was found and the errors of all: live or recorded."""
    true = study.cases[0].task.kernel.numpy()
    if "ours_blind" in study.recorded:
        kept = ROWS.values[study.cases[0].task.name]
        return true, np.array(kept["kernel"]), kept["errors"]
    found = [kernel for _, kernel in study.answers["ours_blind"]]
    return true, found[0], [kernel_error(kernel, true) for kernel in found]


def ablation(name: str) -> dict[Any, Run]:
    """Runs of an ablation by the value of its setting, or of the race by the sampler."""
    found: dict[Any, Run] = {}
    for value, kept in ABLATIONS.values["runs"][name].items():
        arrays = {"images": _unpacked(kept["images"])[None], "psnr": np.array(kept["psnr"])}
        found[value if name == "race" else float(value)] = Run(**kept | arrays)
    return found


def below_best(name: str, value: float) -> float:
    """How far one value of an ablation's setting is below the best of them, in dB."""
    scores = {setting: run.psnr.mean() for setting, run in ablation(name).items()}
    return float(max(scores.values()) - scores[value])


def ablation_images(name: str, label: str) -> dict[str, Grey]:
    """A row of `chapters.em_generalist.figures.grid`: measured, restored with each value, truth."""
    shown = {f"{label} {value:g}": run.images[0] for value, run in ablation(name).items()}
    measured, truth = (_unpacked(ABLATIONS.values[key]) for key in ("measured", "truth"))
    return {"measured": measured, **shown, "truth": truth}


def intervals() -> dict[str, Calibration]:
    """Coverage and reliability of posterior samples, by task."""
    found = {}
    for name, kept in INTERVALS.values.items():
        curve = {key: np.array(values) for key, values in kept["curve"].items()}
        found[name] = Calibration(kept["coverage"], metrics.Reliability(**curve))
    return found


def _power(cases: Sequence[Case]) -> list[float]:
    return [float(np.square(case.measurement, dtype=np.float64).mean()) for case in cases]


def _packed(image: Grey) -> dict[str, Any]:
    shown = image[..., :SHOWN, :SHOWN]
    return {"shape": list(shown.shape), "pixels": pack(shown)}


def _unpacked(kept: Mapping[str, Any]) -> Grey:
    return unpack(kept["pixels"], *kept["shape"])
