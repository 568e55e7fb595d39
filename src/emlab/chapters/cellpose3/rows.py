"""The rows of the Cellpose3 chapter's tables: how a case becomes labels, here or recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from emlab import chapters
from emlab.bench import Report
from emlab.bench.study import Study, each
from emlab.chapters.cellpose3 import cases as cases_of, study as study_of
from emlab.chapters.cellpose3.cases import Case, Image, Labeller, Labels
from emlab.chapters.cellpose3.study import Answer, Method
from emlab.data.cells import Cell
from emlab.methods import cellpose3
from emlab.models.residual_unet import ResidualUNet
from emlab.physics.degradations import normalise
from emlab.recorded import Recording
from emlab.runtime import Stopwatch
from emlab.settings import read_settings, tuned
from emlab.solvers import classical
from emlab.solvers.blind_spot import BlindSpotConfig, denoise_blind_spot

# Rows of a task by the weights that they need.
RESTORERS = {
    "denoise": {
        "reconstruction": "cellpose3_denoise_reconstruction",
        "perceptual": "cellpose3_denoise_perceptual",
        "segmentation": "cellpose3_denoise_segmentation",
        "oneclick": "cellpose3_oneclick",
        "combined": "cellpose3_all_tasks",
        "ours": "cellpose3_denoise",
    }
}
for _task in ("deblur", "upsample"):
    RESTORERS[_task] = {
        "reconstruction": f"cellpose3_{_task}_reconstruction",
        "combined": "cellpose3_all_tasks",
        "range": f"cellpose3_{_task}",
        "ours": f"cellpose3_{_task}_strong",
    }
RESTORERS["hard"] = RESTORERS["denoise"]
NOISY_SEGMENTER = "cellpose3_noisy_segmenter"
SLUG = "05_cellpose3"
BLIND_SPOT = ("noise2void", "noise2self")
CHECKED = 2  # images on which recorded rows are run again


def labels_of(image: Image, segmenter: ResidualUNet, *, restored: bool = False) -> Labels:
    """Segment an image at working size; what a restorer made keeps its grey levels."""
    return cellpose3.segment(image, segmenter, rescale_intensity=not restored).labels


def reference_rows(task: str, segmenter: ResidualUNet, seed: int) -> dict[str, Method]:
    """The ceiling, the identity, a constant, and a restorer that was never trained."""
    network = cellpose3.untrained_restorer(RESTORERS[task]["ours"], seed)
    return {
        "clean": lambda case: _seen(case.clean, segmenter),
        "degraded": lambda case: _seen(case.degraded, segmenter),
        "constant": lambda case: Answer(np.zeros_like(case.degraded), np.zeros_like(case.labels)),
        "untrained": _restored(network, segmenter),
    }


def peer_rows(task: str, names: Iterable[str], segmenter: ResidualUNet) -> dict[str, Method]:
    """Peers that learn from no clean image, as `tools/tune_cells` set them."""

    def row(name: str) -> Method:
        settings = {} if name in BLIND_SPOT else tuned("cellpose3", task)[name]
        return lambda case: _seen(PEERS[name](case, **settings), segmenter)

    return {name: row(name) for name in names}


def trained_rows(
    task: str,
    segmenter: ResidualUNet,
    names: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Method]:
    """The restorers of a task, and the segmenter retrained on noise; of these only `names`."""
    rows: dict[str, Method] = {}
    if task in ("denoise", "hard"):
        retrained = cellpose3.load_segmenter(NOISY_SEGMENTER, device)
        rows["noisy_segmenter"] = lambda case: _seen(case.degraded, retrained)
    for row, name in RESTORERS[task].items():
        rows[row] = _restored(cellpose3.load_restorer(name, device), segmenter)
    return {row: method for row, method in rows.items() if names is None or row in names}


def _restored(restorer: ResidualUNet, segmenter: ResidualUNet) -> Method:

    def row(case: Case) -> Answer:
        image = cellpose3.restore(case.degraded, restorer).image
        return Answer(image, labels_of(image, segmenter, restored=True))

    return row


def _seen(image: Image, segmenter: ResidualUNet) -> Answer:
    return Answer(image, labels_of(image, segmenter))


# --- peers


def _bm3d(case: Case, strength: float) -> Image:
    """Of the counts' square roots (Anscombe 1948), whose noise has a standard deviation of 1."""
    root = 2 * np.sqrt(case.counts + 0.375)
    smooth = classical.bm3d(root, strength)
    return normalise(torch.from_numpy(np.maximum(smooth / 2, 0) ** 2 - 0.375)).numpy()


def _richardson_lucy(case: Case, smoothing: float, iterations: int) -> Image:
    """With the true width of the blur, started from the image, which is made positive first."""
    measured = ndimage.gaussian_filter(case.degraded, smoothing) if smoothing else case.degraded
    measured = np.maximum(measured - measured.min(), 1e-3)
    estimate = measured.copy()
    for _ in range(iterations):
        predicted = ndimage.gaussian_filter(estimate, case.blur_sigma, mode="reflect")
        ratio = measured / np.maximum(predicted, 1e-6)
        estimate = estimate * ndimage.gaussian_filter(ratio, case.blur_sigma, mode="reflect")
    return np.asarray(estimate, np.float32)


def _cubic(case: Case, width: float) -> Image:
    fine = case.interpolated()
    return classical.gaussian(fine, width) if width else fine


def _blind_spot(kind: Any, case: Case) -> Image:
    noisy = torch.from_numpy(case.degraded)
    return denoise_blind_spot(noisy, BlindSpotConfig(kind=kind), case.generator()).numpy()


# Of a case without clean images; they are told the strength of noise and blur.
PEERS: Mapping[str, Callable[..., Image]] = {
    **{kind: partial(_blind_spot, kind) for kind in BLIND_SPOT},
    "gaussian": lambda case, width: classical.gaussian(case.degraded, width),
    "bm3d": _bm3d,
    "richardson_lucy": _richardson_lucy,
    "cubic": _cubic,
}


# --- what is recorded: how far each image is spoilt, rows that take long, and speeds


def _measure_levels(settings: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Level of every test image, by task: half of what the segmenter found is lost there."""
    found = cases_of.chapter_cells("test", side=settings["side"])
    labeller = partial(labels_of, segmenter=cellpose3.load_segmenter())
    tasks, seed = settings["tasks"], settings["seed"]
    return {task: cases_of.tune_levels(found, task, labeller, seed) for task in tasks}


def _measure_rows(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of each task, method and image what tells the case, seconds, and `count_objects`."""
    nuclei = cases_of.chapter_cells("test", side=settings["side"])
    segmenter, kept = cellpose3.load_segmenter(), dict[str, Any]()
    for task, names in settings["rows"].items():
        own = "denoise" if task == "hard" else task
        some = nuclei if own == "denoise" else spread(nuclei, settings["task_images"])
        cases = cases_of.make_cases(some, own, LEVELS.values[own], settings["seed"])
        cases = [cases_of.harder(case) for case in cases] if task == "hard" else cases
        peers = [name for name in names if name in settings["peers"][task] or name in BLIND_SPOT]
        methods = reference_rows(task, segmenter, settings["seed"])
        methods |= peer_rows(task, peers, segmenter) | trained_rows(task, segmenter, names)
        kept[task] = {name: [_row(methods[name], case) for case in cases] for name in names}
    return kept


def _row(method: Method, case: Case) -> dict[str, Any]:
    with Stopwatch() as watch:
        labels = method(case).labels
    counts = study_of.count_objects(case.labels, labels)
    return {"case": _identity(case), "seconds": watch.seconds, "counts": counts}


def _identity(case: Case) -> list[Any]:
    """What tells a case from others; six digits are kept of a level."""
    return [case.name, case.seed, float(f"{case.level:.6g}"), *case.labels.shape]


def _measure_speeds(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Images a second of our restorer and cellpose's own, untrained, in turns, by their widths."""
    torch.set_num_threads(1)  # and one image at a time; tools/make_cellpose_oracle brings cellpose
    theirs, found = import_module("cellpose.resnet_torch").CPnet, {}
    image = torch.rand(1, settings["side"], settings["side"])
    for widths in settings["widths"]:
        ours = ResidualUNet(widths, 1).eval()
        other = theirs([1, *widths], nout=1, sz=3, max_pool=True, diam_mean=17.0).eval()
        runs = {"emlab": lambda ours=ours: ours(image), "cellpose": lambda n=other: n(image[None])}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        with torch.inference_mode():
            for _ in range(settings["turns"] + 2):
                for name, run in runs.items():
                    with Stopwatch() as watch:
                        run()
                    seconds[name].append(watch.seconds)
        rate = {name: 1 / float(np.median(values[2:])) for name, values in seconds.items()}
        found["_".join(map(str, widths))] = {
            **{f"{name}_images_per_second": value for name, value in rate.items()},
            "ratio": rate["emlab"] / rate["cellpose"],
            "emlab_parameters": sum(p.numel() for p in ours.parameters()),
            "cellpose_parameters": sum(p.numel() for p in other.parameters()),
        }
    return {"torch": torch.__version__, "widths": found}


_KEPT = {key: chapters.settings(SLUG, "cpu")[key] for key in ("side", "task_images")}
_KEPT |= {"seed": 0, "peers": read_settings("chapters/cellpose3/peers")["peers"]}


def _rows(name: str) -> Recording:
    rows = chapters.table(SLUG)["recorded"][name]
    used = {RESTORERS[task].get(row, "") for task, every in rows.items() for row in every}
    networks = (NOISY_SEGMENTER,) if "noisy_segmenter" in rows["hard"] else ()
    networks = (cellpose3.SEGMENTER, *networks, *sorted(used - {""}))
    return Recording(SLUG, name, _measure_rows, {**_KEPT, "rows": rows}, networks)


_TUNED = {"side": _KEPT["side"], "seed": 0, "tasks": ["denoise", "deblur", "upsample"]}
LEVELS = Recording(SLUG, "levels", _measure_levels, _TUNED, (cellpose3.SEGMENTER,))
ROWS, SLOW = _rows("rows"), _rows("slow")
SPEEDS = chapters.recording(SLUG, "speeds", _measure_speeds)


def spread(found: Sequence[Any], count: int) -> list[Any]:
    """So many, every second or third."""
    return list(found[:: max(1, len(found) // count)][:count])


def levels_of(
    found: Sequence[Cell], task: str, labeller: Labeller, seed: int, halvings: int = 4
) -> tuple[dict[str, float], str]:
    """Level of every image, recorded with the segmenter that is loaded or tuned now; and which."""
    own = LEVELS.values[task]
    if not LEVELS.stale and all(cell.name in own for cell in found):
        return {cell.name: own[cell.name] for cell in found}, "recorded"
    return cases_of.tune_levels(found, task, labeller, seed, halvings), "tuned now"


def recorded(
    task: str, name: str, cases: Sequence[Case]
) -> tuple[list[Mapping[str, Any]], Recording] | None:
    """Recorded rows of these very cases, spoilt alike by the same noise, or None."""
    for recording in (ROWS, SLOW):
        found = {row["case"][0]: row for row in recording.values.get(task, {}).get(name, ())}
        own = [found.get(case.name, {}) for case in cases]
        same = [row.get("case") for row in own] == [_identity(case) for case in cases]
        if own and same and not recording.stale:
            return own, recording
    return None


def run_study(
    report: Report,
    task: str,
    cases: Sequence[Case],
    methods: Mapping[str, Method],
    slow: Iterable[str] = (),
) -> Study:
    """Run every method on every case, with recorded rows where there are some of these very cases.

    Of each recorded row the first `CHECKED` images are run again, see `Study.join_recorded`. Rows
    that are `slow` are shown where they are recorded and never run.
    """
    table = Study(cases, study_of.COLUMNS, study_of.LABELS)
    kept = {n: found for n in (*methods, *slow) if (found := recorded(task, n, cases)) is not None}
    asked = {name: each(method) for name, method in methods.items()}
    table.run(asked, study_of.score, first=dict.fromkeys(kept, CHECKED))
    for name, (rows, recording) in kept.items():
        scores = {name: study_of.from_counts([row["counts"] for row in rows])}
        table.join_recorded(recording, scores, report, task)
        table.seconds[name] = float(np.mean([row["seconds"] for row in rows]))
    return table


def race(network: ResidualUNet, images: int, repeats: int = 3) -> float:
    """Images of 224 x 224 a second through a network, a batch at once, the best of some repeats."""
    device = next(network.parameters()).device
    batch = torch.rand(images, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    seconds = []
    for _ in range(repeats + 1):
        with Stopwatch() as watch, torch.no_grad():
            network(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        seconds.append(watch.seconds)
    return images / min(seconds[1:])
