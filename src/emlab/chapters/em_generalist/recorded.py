"""What chapter 01 shows as recorded: slow rows of its tables, the ablations, sampled intervals."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emlab import metrics
from emlab.bench import Report
from emlab.bench.tissue import crops, real_pair
from emlab.chapters.em_generalist.ablations import Bench, Run
from emlab.chapters.em_generalist.experiments import (
    BlindRow,
    blind_search,
    defocus_rows,
    hurried,
    kernel_error,
    sampled_uncertainty,
)
from emlab.chapters.em_generalist.rows import Case, Method, standard_methods
from emlab.chapters.em_generalist.scores import score
from emlab.chapters.em_generalist.study import Kept, KeptRow, Table, run_real_pair, run_study
from emlab.errors import InputError
from emlab.methods.generalist import load
from emlab.methods.generalist_config import load_config
from emlab.recipes.generalist_tasks import REAL_PAIR, STRANGE_BLUR, Task, defocus_tasks, task
from emlab.recorded import Recording
from emlab.runtime import choose_threads
from emlab.settings import read_settings
from emlab.solvers.plug_and_play import PlugAndPlayConfig
from emlab.solvers.sampling import DPSConfig

Grey = NDArray[np.float32]
SHOWN = 128  # pixels along a side of a kept picture: its upper left corner


def _measure_rows(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of each slow row in each task, what tells its cases apart, and the kernels found."""
    tissue, seed = crops("test", settings["crops"], settings["crop"]), settings["seed"]
    pair, config = real_pair(settings["pair"]), load_config("ours")
    if tissue.dataset is None or pair is None:
        raise InputError("rows are recorded on the real data; set EMLAB_MIRROR, or `make data`")
    blind = BlindRow(config, load(config), blind_search(settings["blind_steps"]))
    few = type(tissue)(tissue.grey[: settings["defocus_crops"]], tissue.wanted, tissue.dataset)

    def slow(which: Task) -> dict[str, Method]:
        blurred = which is STRANGE_BLUR or which.name.startswith("defocus")
        methods = defocus_rows(blind)(which) if blurred else standard_methods(which)
        return {name: methods[name] for name in settings["rows"][which.name]}

    blurs = [*defocus_tasks(settings["defocus"]), STRANGE_BLUR]
    others = [
        task(name) for name in settings["rows"] if name in ("denoise_10", "denoise_25", "deblur")
    ]
    tables = [
        run_study(others, slow, tissue, seed=seed),
        run_study(blurs, slow, few, seed=seed),
        run_real_pair(pair, slow(REAL_PAIR), seed=seed),
    ]
    found: dict[str, Any] = {}
    for table in tables:
        for name, rows in table.values.items():
            kept = {
                row: {
                    "values": {metric: values.tolist() for metric, values in scores.items()},
                    "seconds": table.seconds[name][row],
                    "image": _packed(table.images[name][row]),
                }
                for row, scores in rows.items()
            }
            found[name] = {"power": _power(table.cases[name]), "rows": kept}
    for blur in blurs:
        kernels, true = blind.kernels[blur.name], blur.kernel.numpy()
        found[blur.name]["kernel"] = kernels[0].round(4).tolist()
        found[blur.name]["errors"] = [kernel_error(kernel, true) for kernel in kernels]
    return found


def _measure_ablations(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Step sizes, exponents and steps of the paper's samplers, and their race against ours."""
    side, seed = settings["ablation_crop"], settings["seed"]
    tissue = crops("test", settings["crops"], settings["crop"]).grey
    small = tissue[: settings["ablation_crops"], :side, :side]
    config = load_config("ours")
    prior, steps = load(config), settings["flow"]
    noisy, blurred = (
        Bench.of(task("denoise_10"), small, seed),
        Bench.of(task("deblur"), small, seed),
    )
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
        bench = noisy if name == "step_size" else blurred
        for value, solver in table.items():
            run = bench.run(solver, prior)
            kept[name][f"{value:g}" if isinstance(value, float) else str(value)] = {
                "images": _packed(run.images[0]),
                "psnr": run.psnr.tolist(),
                "fine_power": run.fine_power,
                "seconds": run.seconds,
                "steps": run.steps,
            }
    choose_threads(threads)
    return {
        "runs": kept,
        "measured": _packed(noisy.scale.to_grey(noisy.measured[0])),
        "truth": _packed(small[0]),
    }


def _measure_intervals(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Coverage of 90 % intervals of posterior samples, and error against spread."""
    side, count, seed = (settings[k] for k in ("interval_crop", "interval_samples", "seed"))
    tissue = crops("test", settings["crops"], settings["crop"]).grey
    few = tissue[: settings["interval_crops"], :side, :side]
    config = hurried(load_config("samples"), settings["interval_steps"], count)
    prior, found = load(config), {}
    for name in settings["tasks"]:
        one = sampled_uncertainty(task(name), few, config, prior, count, seed)
        curve = {key: values.tolist() for key, values in vars(one.reliability()).items()}
        found[name] = {"coverage": one.coverage, "curve": curve}
    return found


_READ = {
    **read_settings("chapters/em_generalist/chapter"),
    **read_settings("methods/generalist"),
}
_GIVEN = {"configs": _READ["configs"], "seed": 0, "crops": 12, "crop": 96}
_NETWORK = ("generalist_flow",)
ROWS = Recording(
    "01_em_generalist",
    "rows",
    _measure_rows,
    {**_GIVEN, **_READ["recorded"]["rows"], "tuned": read_settings("chapters/em_generalist/peers")},
    _NETWORK,
)
ABLATIONS = Recording(
    "01_em_generalist",
    "ablations",
    _measure_ablations,
    {**_GIVEN, **_READ["recorded"]["ablations"]},
    _NETWORK,
)
INTERVALS = Recording(
    "01_em_generalist",
    "intervals",
    _measure_intervals,
    {**_GIVEN, **_READ["recorded"]["intervals"]},
    _NETWORK,
)


def rows(report: Report) -> Kept:
    """What finds recorded rows that were measured on the very cases of a task, and reports so."""

    def of(which: Task, cases: Sequence[Case]) -> dict[str, KeptRow]:
        kept = ROWS.values.get(which.name)
        if kept is None or len(cases) > len(kept["power"]):
            return {}
        if not np.allclose(_power(cases), kept["power"][: len(cases)], rtol=1e-5):
            return {}
        report.recorded(ROWS)
        return {
            name: KeptRow(
                {metric: np.array(values) for metric, values in row["values"].items()},
                _unpacked(row["image"]),
                row["seconds"],
            )
            for name, row in kept["rows"].items()
        }

    return of


def told(table: Table, report: Report) -> list[str]:
    """Restore the first case of each recorded row again; a sentence for each."""
    lines = []
    for name, methods in table.recorded.items():
        for method in methods:
            case, value = table.cases[name][0], f"recorded.apart.{name}.{method}"
            again = np.asarray(standard_methods(case.task)[method](case))
            apart = score(case.task, again, case.truth)["psnr"][0]
            apart -= table.values[name][method]["psnr"][0]
            report.value(value, apart, unit="dB", note="this run's first case over the recorded")
            lines.append(f"† {table.tasks[name].label}, first crop: {apart:+.3f} dB from recorded")
    return [*lines, f"† {ROWS}"] if lines else []


def kernels(blind: BlindRow, table: Table, which: Task) -> tuple[NDArray, NDArray, list[float]]:
    """The true kernel, the first that was found and the errors of all: live or recorded."""
    true = which.kernel.numpy()
    if "ours_blind" in table.recorded.get(which.name, ()):
        kept = ROWS.values[which.name]
        return true, np.array(kept["kernel"]), kept["errors"]
    found = blind.kernels[which.name]
    return true, found[0], [kernel_error(kernel, true) for kernel in found]


def ablation(name: str) -> dict[Any, Run]:
    """Runs of an ablation by the value of its setting, or of the race by the sampler."""
    return {
        value if name == "race" else float(value): Run(
            _unpacked(kept["images"])[None],
            np.array(kept["psnr"]),
            *(kept[key] for key in ("fine_power", "seconds", "steps")),
        )
        for value, kept in ABLATIONS.values["runs"][name].items()
    }


def below_best(name: str, value: float) -> float:
    """How far one value of an ablation's setting is below the best of them, in dB."""
    scores = {setting: run.psnr.mean() for setting, run in ablation(name).items()}
    return float(max(scores.values()) - scores[value])


def ablation_images(name: str, label: str) -> dict[str, Grey]:
    """A row of `chapters.em_generalist.figures.grid`: measured, restored with each value, truth."""
    shown = {f"{label} {value:g}": run.images[0] for value, run in ablation(name).items()}
    measured, truth = (_unpacked(ABLATIONS.values[key]) for key in ("measured", "truth"))
    return {"measured": measured, **shown, "truth": truth}


@dataclass(frozen=True)
class KeptIntervals:
    """What is left of an `Uncertainty`: its coverage, and its error against its spread."""

    coverage: float
    curve: metrics.Reliability

    def reliability(self) -> metrics.Reliability:
        """Error of the pixels of similar spread."""
        return self.curve


def intervals() -> dict[str, KeptIntervals]:
    """Coverage and reliability of posterior samples, by task."""
    return {
        name: KeptIntervals(
            kept["coverage"],
            metrics.Reliability(**{key: np.array(v) for key, v in kept["curve"].items()}),
        )
        for name, kept in INTERVALS.values.items()
    }


def _power(cases: Sequence[Case]) -> list[float]:
    return [float(np.square(case.measurement, dtype=np.float64).mean()) for case in cases]


def _packed(image: Grey) -> dict[str, Any]:
    grey = image[:SHOWN, :SHOWN].clip(0, 255).round().astype(np.uint8)
    packed = b64encode(zlib.compress(grey.tobytes(), 9)).decode()
    return {"shape": list(grey.shape), "pixels": packed}


def _unpacked(kept: Mapping[str, Any]) -> Grey:
    pixels = zlib.decompress(b64decode(kept["pixels"]))
    return np.frombuffer(pixels, np.uint8).reshape(kept["shape"]).astype(np.float32)
