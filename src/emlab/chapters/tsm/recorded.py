"""Numbers of chapter 02 that take longer than a chapter may: a picker, RELION, slow peers."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emlab.bench import Report
from emlab.chapters.tsm.cases import Image, central, other_set, score_method, untrained_prior
from emlab.chapters.tsm.peers import (
    LABELS,
    Denoised,
    Method,
    classical,
    each,
    noise2void,
    topaz_denoise,
    tuned,
)
from emlab.chapters.tsm.reconstruction import Reconstruction, extract, reconstruct
from emlab.chapters.tsm.study import Table, run_study
from emlab.data.micrographs import apoferritin_micrograph
from emlab.external import topaz
from emlab.external.picking import DIAMETER_ANGSTROM, HIT, Picks, pick_all
from emlab.external.topaz import Picked
from emlab.methods.tsm import load_denoiser
from emlab.metrics.bands import band_correlations
from emlab.metrics.fourier import Curve
from emlab.physics.micrograph import Micrograph
from emlab.recipes.tsm import frames, volume
from emlab.recorded import Recording
from emlab.settings import read_measured, read_profile

_SAME = 1e-3  # the same micrograph on another machine
_KEPT = ("micrographs", "size", "empty", "sets", "set_names", "maps", "frames")
_SEED = 7
_TUNED = tuned()


def _methods(settings: Mapping[str, Any], pixel_size_angstrom: float | None = None) -> Any:
    chosen = classical(["raw"], settings["peers"])
    chosen["topaz"] = partial(topaz_denoise, threads=1)
    for name in ("dsm", "tsm"):
        extra = () if pixel_size_angstrom is None else (pixel_size_angstrom,)
        chosen[name] = score_method(load_denoiser(name), *extra)
    return chosen


def _judge(
    noisy: Sequence[NDArray[np.float32]],
    methods: Mapping[str, Method],
    pixel: float,
    diameter: float,
    truths: Sequence[Micrograph] = (),
) -> dict[str, Any]:
    """Picks, processor seconds a megapixel and, with a truth, bands: numbers by method."""
    made = {name: method(noisy) for name, method in methods.items()}
    picked, _ = pick_all({name: each.images for name, each in made.items()}, pixel, diameter)
    size = sum(image.size for image in noisy)
    return {
        name: {
            "picks": [np.c_[p.coordinates, p.scores].tolist() for p in picked[name]],
            "cost": 1e6 * each.cpu_seconds / size,
            "bands": [
                list(band_correlations(image, truth).values())
                for image, truth in zip(each.images, truths, strict=False)
            ],
        }
        for name, each in made.items()
    }


def _measure_slow_peers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """BM3D and Noise2Void on the micrographs of the table, and the middle of the first."""
    count, size = settings["micrographs"], settings["size"]
    test = [frame.micrograph for frame in frames("test", count, size)]
    chosen = classical(["bm3d"], settings["peers"])
    steps, seed = settings["noise2void_steps"], settings["seed"]
    chosen["noise2void"] = each(partial(noise2void, steps=steps, seed=seed))
    noisy = [micrograph.noisy.numpy() for micrograph in test]
    made = {name: method(noisy) for name, method in chosen.items()}
    again: dict[str, Method] = {name: partial(_made, each) for name, each in made.items()}
    rows = _judge(noisy, again, test[0].pixel_size_angstrom, DIAMETER_ANGSTROM, test)
    windows = {name: central(each.images[0], test[0]) for name, each in made.items()}
    return {name: {**row, "window": _packed(windows[name])} for name, row in rows.items()}


def _made(answer: Denoised, _: Sequence[Image]) -> Denoised:
    return answer


def _measure_picker(settings: Mapping[str, Any]) -> dict[str, Any]:
    count, size, seed = settings["micrographs"], settings["size"], settings["seed"]
    test = [frame.micrograph for frame in frames("test", count, size)]
    pixel = test[0].pixel_size_angstrom
    few = _methods(settings)
    every = classical(["gaussian", "wiener"], settings["peers"]) | few
    every["untrained"] = score_method(untrained_prior(seed))

    def judge(micrographs: list[Micrograph], chosen: Mapping[str, Method], known: bool) -> Any:
        noisy = [micrograph.noisy.numpy() for micrograph in micrographs]
        return _judge(noisy, chosen, pixel, DIAMETER_ANGSTROM, micrographs if known else ())

    ice = [frame.micrograph for frame in frames("test", settings["empty"], size, particles=0)]
    found = {"test": judge(test, every, True), "ice": judge(ice, few, False)}
    for name in settings["set_names"]:
        found[name] = judge(other_set(name, settings["sets"], size, seed), few, True)
    places = {"truth": [micrograph.coordinates for micrograph in test]}
    for name in settings["maps"]:
        level = settings["thresholds"][name]
        rows = [np.array(row) for row in found["test"][name]["picks"]]
        places[name] = [row[row[:, 2] >= level, :2] for row in rows]
    truth, maps = volume("t20s")[0].numpy(), {}
    for name, at in places.items():
        particles = extract(test, at, HIT * DIAMETER_ANGSTROM / pixel, seed=_SEED)
        made = reconstruct(particles, truth)
        maps[name] = {
            "halves": _plain(made.halves_curve),
            "truth": _plain(made.truth_curve),
            "counts": [made.particles, made.right],
            "program": made.program,
            "seconds": made.seconds,
        }
    return {"tables": found, "maps": maps}


def _measure_apoferritin(settings: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for frame in settings["frames"]:
        seen = apoferritin_micrograph(frame)
        assert seen.diameter_angstrom is not None
        pixel = seen.pixel_size_angstrom
        chosen = _methods(settings, pixel)
        found[frame] = _judge([seen.pixels], chosen, pixel, seen.diameter_angstrom)
    return found


def _packed(image: Image) -> dict[str, Any]:
    """A square image in 256 grey levels."""
    low, high = float(image.min()), float(image.max())
    grey = (255 * (image - low) / (high - low)).round().astype(np.uint8)
    pixels = b64encode(zlib.compress(grey.tobytes(), 9)).decode()
    return {"range": [low, high], "pixels": pixels}


def _unpacked(kept: Mapping[str, Any]) -> Image:
    low, high = kept["range"]
    grey = np.frombuffer(zlib.decompress(b64decode(kept["pixels"])), np.uint8)
    side = round(grey.size**0.5)
    return (low + (high - low) / 255 * grey.reshape(side, side)).astype(np.float32)


def _plain(curve: Curve) -> dict[str, Any]:
    return {
        "frequency": curve.frequency.tolist(),
        "correlation": curve.correlation.tolist(),
        "counts": curve.counts.tolist(),
        "pixel_size_nm": curve.pixel_size_nm,
    }


def _curve(row: Mapping[str, Any]) -> Curve:
    frequency, correlation, counts = (
        np.array(row[part]) for part in ("frequency", "correlation", "counts")
    )
    return Curve(frequency, correlation, counts, row["pixel_size_nm"])


def _settings() -> dict[str, Any]:
    study = read_profile("chapters/tsm/chapter", "cpu")
    return {key: study[key] for key in _KEPT} | {**_TUNED, "seed": 0}


PICKER = Recording("02_tsm", "picker", _measure_picker, _settings(), ("tsm_dsm", "tsm_tsm"))
SLOW_PEERS = Recording(
    "02_tsm",
    "slow_peers",
    _measure_slow_peers,
    {
        **{key: _settings()[key] for key in ("micrographs", "size", "peers", "seed")},
        "noise2void_steps": read_profile("chapters/tsm/chapter", "cpu")["noise2void_steps"],
    },
)
APOFERRITIN = Recording(
    "02_tsm", "apoferritin", _measure_apoferritin, _settings(), ("tsm_dsm", "tsm_tsm")
)


def picks_of(row: Mapping[str, Any]) -> list[Picked]:
    """Picks of a recorded method, one a micrograph."""
    tables = [np.array(picks, float).reshape(-1, 3) for picks in row["picks"]]
    return [Picked(table[:, :2], table[:, 2]) for table in tables]


def picks_by(name: str) -> dict[str, list[Picked]]:
    """Recorded picks of one set of simulated micrographs, by method."""
    return {key: picks_of(row) for key, row in PICKER.values["tables"][name].items()}


def apoferritin(frame: str) -> dict[str, list[Picked]]:
    """Recorded picks of a frame of EMPIAR-10146, by method."""
    return {name: picks_of(row) for name, row in APOFERRITIN.values[frame].items()}


def join(table: Table, rows: Mapping[str, Any]) -> bool:
    """Give a table the recorded picks, costs and slow peers, if of the same micrographs.

    Returns
    -------
    bool
        Whether they are: as many, and the raw ones correlate with the truth as recorded.
    """
    live, kept = table.bands["raw"], np.array(rows["raw"]["bands"], float)
    if live.shape != kept.shape or np.abs(live - kept).max() > _SAME:
        return False
    truth = [micrograph.coordinates for micrograph in table.micrographs]
    radius = HIT * DIAMETER_ANGSTROM / table.micrographs[0].pixel_size_angstrom
    for name, row in rows.items():
        if len(table.bands.get(name, ())) < len(kept):
            table.bands[name] = np.array(row["bands"], float)
            table.told.add(name)
        if "window" in row:
            table.windows[name] = _unpacked(row["window"])
        table.costs[name] = row["cost"]
        table.picks[name] = Picks(picks_of(row), truth, radius)
    table.bands = {name: table.bands[name] for name in LABELS if name in table.bands}
    return True


def join_maps(table: Table, maps: Mapping[str, Any]) -> None:
    """Give a table the recorded maps."""
    for name, row in maps.items():
        halves, truth = _curve(row["halves"]), _curve(row["truth"])
        right = (row["counts"][0], row["counts"][1])
        table.maps[name] = Reconstruction(
            None, halves, truth, *right, row["program"], row["seconds"]
        )


def pick_again(table: Table, threads: int = 1) -> float:
    """Largest difference of TSM's picks in the first micrograph, live less recorded, as a share."""
    image = table.denoised["tsm"].images[:1]
    pixel = table.micrographs[0].pixel_size_angstrom
    found, _ = pick_all({"tsm": image}, pixel, DIAMETER_ANGSTROM, threads=threads)
    now = Picks(found["tsm"], table.picks["tsm"].truth[:1], table.picks["tsm"].radius)
    first, second = now.at(table.threshold("tsm")), table.counts("tsm").part(np.array([0]))
    return abs(first.f1() - second.f1())


def complete(table: Table, report: Report, wanted: bool, threads: int = 1) -> list[str]:
    """Give a table picks: the recorded ones if they are `wanted` and fit, else by Topaz, now.

    Returns
    -------
    list of str
        What was recorded, and how well a picker that is run now agrees; empty if nothing was.
    """
    if not (wanted and join(table, PICKER.values["tables"]["test"] | SLOW_PEERS.values)):
        table.pick(threads)
        return []
    said = [report.recorded(PICKER), report.recorded(SLOW_PEERS)]
    if topaz.find() is not None:
        gap = report.value("picking.live_difference", pick_again(table, threads), n=1)
        said.append(f"Topaz, run now on TSM's first micrograph: F1 differs by {gap:.3f}")
    return said


def study_sets(
    names: Sequence[str],
    chosen: Mapping[str, Method],
    thresholds: Mapping[str, float],
    count: int,
    size: int,
    seed: int,
    threads: int = 1,
    kept: bool = False,
) -> dict[str, Table]:
    """The table again on `chapters.tsm.cases.SETS`; with `kept` picks, those that were recorded."""
    found = {}
    for name in names:
        table = run_study(other_set(name, count, size, seed), chosen, thresholds)
        if not (kept and join(table, PICKER.values["tables"][name])):
            table.pick(threads)
        found[name] = table
    return found


def memory() -> dict[str, Any]:
    """What tools/measure_tsm_memory.py wrote: ``date``, ``machine``, ``side``, ``rows``."""
    return read_measured("chapters/tsm/memory")


def record_memory(found: dict[str, Any], report: Report) -> str:
    """Record ``memory.METHOD`` in megabytes and ``memory.over_topaz``; returns it in words."""
    rows = found["rows"]
    if not rows:
        return "largest memory: not measured; run python -m tools.measure_tsm_memory"
    for name, row in rows.items():
        report.value(f"memory.{name}", row["peak_memory_mb"], unit="MB", note=found["date"])
    ratio = rows["tsm"]["peak_memory_mb"] / rows["topaz"]["peak_memory_mb"]
    report.value("memory.over_topaz", ratio, note=f"{found['side']} pixels a side")
    told = ", ".join(
        f"{LABELS[name]} {row['peak_memory_mb'] / 1000:.2f} GB in {row['cpu_seconds']:.0f} CPU-s"
        for name, row in rows.items()
    )
    return f"{found['side']} x {found['side']} pixels, {found['date']}, {found['machine']}: {told}"
