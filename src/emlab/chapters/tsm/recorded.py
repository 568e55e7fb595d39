"""What chapter 02 shows as recorded: picks, maps, slow peers, memory, short trainings."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emlab.bench import Report
from emlab.bench.study import Study
from emlab.chapters.tsm.cases import (
    LABELS,
    SETS,
    SLUG,
    Denoised,
    Image,
    Method,
    central,
    classical,
    each,
    find_picks,
    guided,
    no_particles,
    noise2void,
    of_noisy,
    other_set,
    reference_of,
    score_method,
    study_real,
    topaz_denoise,
    trial,
)
from emlab.chapters.tsm.study import (
    BOX,
    PICKING,
    Reconstruction,
    Table,
    by_column,
    initial_map,
    picks_by,
    plain_picks,
    rows_of,
    run_study,
)
from emlab.data.micrographs import apoferritin_micrograph
from emlab.data.phase_maps import PIXEL_ANGSTROM
from emlab.external import topaz
from emlab.external.process import Finished, run_program
from emlab.io import write_image
from emlab.methods.tsm import load_denoiser
from emlab.methods.tsm_guidance import Explained, Guides, standardise
from emlab.metrics.bands import band_correlations
from emlab.metrics.fourier import Curve
from emlab.models import build
from emlab.physics.micrograph import Micrograph
from emlab.priors.networks import ScorePrior, untrained_prior
from emlab.priors.pose_posterior import PoseConfig, Reference
from emlab.priors.score_matching import Guidance, ScoreMatching
from emlab.recipes.tsm import BankConfig, Frame, GuidedLoss, frames, make_matchers, places, volume
from emlab.recipes.tsm_own import read_reference
from emlab.recorded import Recording, pack, unpack
from emlab.settings import read_settings
from emlab.training import TrainingConfig, train

_SAME = 5e-3  # the same micrograph on another machine, which rounds other electrons
Kept = Sequence[tuple[Recording, Mapping[str, Any]]]  # rows by method of each recording
_KEPT = ("micrographs", "size", "empty", "sets", "set_names", "maps", "frames")


def _methods(
    settings: Mapping[str, Any],
    pixel_size_angstrom: float = PIXEL_ANGSTROM,
    micrographs: Sequence[Micrograph] = (),
    protein: str = "t20s",
) -> dict[str, Method]:
    """Raw, Topaz-Denoise and the scores; of simulated micrographs also the guided one."""
    chosen = classical(["raw"], settings["peers"])
    chosen["topaz"] = partial(topaz_denoise, threads=1)
    for name in ("dsm", "tsm"):
        chosen[name] = score_method(load_denoiser(name), pixel_size_angstrom)
    if micrographs:
        chosen["guided"] = guided(load_denoiser("dsm"), reference_of(protein), micrographs)
    return chosen


def _test(settings: Mapping[str, Any]) -> list[Micrograph]:
    return [one.micrograph for one in frames("test", settings["micrographs"], settings["size"])]


def _judged(
    micrographs: list[Micrograph], methods: Mapping[str, Method], settings: Mapping[str, Any]
) -> Table:
    topaz.require()
    table = run_study(micrographs, methods, settings.get("thresholds", {}))
    table.pick()
    return table


def _measure_slow_peers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """BM3D and Noise2Void on the micrographs of the table, and the middle of the first."""
    chosen = classical(["bm3d"], settings["peers"])
    steps, seed = settings["noise2void_steps"], settings["seed"]
    chosen["noise2void"] = each(partial(noise2void, steps=steps, seed=seed))
    table = _judged(_test(settings), chosen, settings)
    first = {name: made.images[0] for name, made in table.answers.items()}
    return {
        name: {**row, "window": _packed(central(first[name], table.cases[0]))}
        for name, row in rows_of(table).items()
    }


def _measure_picker(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Picks of all sets of simulated micrographs, and maps at the picks of the first."""
    size, seed, test = settings["size"], settings["seed"], _test(settings)
    every = classical(["gaussian", "wiener"], settings["peers"])
    every |= _methods(settings, micrographs=test)
    every["untrained"] = score_method(untrained_prior("tsm_tsm", seed))
    table = _judged(test, every, settings)
    table.rebuild(settings["maps"], volume("t20s")[0].numpy())
    ice = [frame.micrograph for frame in frames("test", settings["empty"], size, particles=0)]
    few = _methods(settings, micrographs=ice)
    empty = {name: of_noisy(method, ice) for name, method in few.items()}
    found = {"test": rows_of(table), "ice": plain_picks(find_picks(empty, PIXEL_ANGSTROM))}
    for name in settings["set_names"]:
        micrographs = other_set(name, settings["sets"], size, seed)
        few = _methods(settings, micrographs=micrographs, protein=SETS[name][0])
        found[name] = rows_of(_judged(micrographs, few, settings))
    maps = {
        name: {
            "halves": _plain(made.halves_curve),
            "truth": _plain(made.truth_curve),
            "counts": [made.particles, made.right],
            "program": made.program,
            "seconds": made.seconds,
        }
        for name, made in table.maps.items()
    }
    return {"tables": found, "maps": maps}


def _measure_many(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Hits, picks and particles of each of many micrographs, and of some without particles.

    By method: at its ``threshold``; with as large a ``recall`` as raw ones have; in empty ``ice``.
    """
    chosen, seen = {}, {}
    for kind, particles in (("ice", 0), ("test", None)):
        count = settings["empty" if kind == "ice" else "micrographs"]
        every = frames("test", count, settings["size"], particles)
        seen[kind] = [one.micrograph for one in every]
        chosen[kind] = _methods(settings, micrographs=seen[kind])
        chosen[kind].pop("topaz")  # slow
    ice = no_particles(seen["ice"], chosen["ice"], settings["thresholds"])
    table = _judged(seen["test"], chosen["test"], settings)
    wanted, found = table.counts("raw").recall(), {}
    for name, picks in table.picks.items():
        curve = picks.curve()
        level = float(curve.thresholds[(curve.recall >= wanted).argmax()])
        counts = {"threshold": table.counts(name), "recall": picks.at(level)}
        found[name] = {kind: np.stack([*vars(one).values()]) for kind, one in counts.items()}
        found[name]["ice"] = ice.scores[name]["picks"]
    return found


def _measure_apoferritin(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Picks of whole frames of EMPIAR-10146."""
    found = {}
    for frame in settings["frames"]:
        seen = apoferritin_micrograph(frame)
        study = study_real(seen, _methods(settings, seen.pixel_size_angstrom), {})
        found[frame] = plain_picks({name: one.picked for name, one in study.picks.items()})
    return found


def _measure_trial(settings: Mapping[str, Any]) -> dict[str, Any]:
    """References on trial: by how much each beats its decoys, and what it does to micrographs.

    A row has, one a micrograph and those without particles last, the ``margin`` and whether the
    reference was ``used``; and ``recovery``, the mean correlation of the result.
    """
    test, size = _test(settings), settings["size"]
    ice = [one.micrograph for one in frames("test", settings["empty"], size, particles=0)]
    references = {
        "none": None,
        "right": reference_of("t20s"),
        "half wrong": reference_of("t20s", settings["beyond_angstrom"]),
        "wrong": reference_of("apoferritin_6z6u"),
        "noise": reference_of("noise"),
    }
    return {name: _on_trial(reference, test, ice) for name, reference in references.items()}


def _on_trial(
    reference: Reference | None, test: Sequence[Micrograph], ice: Sequence[Micrograph]
) -> dict[str, Any]:
    """A row of `_measure_trial`."""
    said = [] if reference is None else [trial(one, reference) for one in (*test, *ice)]
    images = of_noisy(guided(load_denoiser("dsm"), reference, test), test).images
    pairs = zip(images, test, strict=True)
    return {
        "margin": [one.margin for one in said],
        "used": [one.accepted for one in said],
        "recovery": [band_correlations(*pair)["mean"] for pair in pairs],
    }


def _measure_template(settings: Mapping[str, Any]) -> dict[str, Any]:
    """References that nobody gave: first maps of DSM's picks, on trial as in `_measure_trial`.

    The picks are of other micrographs than the trial's; RELION is told no pose. By seed, and of
    the first map its ``views`` along three axes; so many picks are ``right``.
    """
    topaz.require()
    count, size, test = settings["session"], settings["session_size"], _test(settings)
    ice = [one.micrograph for one in frames("test", settings["empty"], settings["size"], 0)]
    shown = [one.micrograph for one in frames("session", count, size)]
    table = run_study(shown, {"dsm": score_method(load_denoiser("dsm"))}, settings["thresholds"])
    table.pick()
    particles, rows = table.extract("dsm", BOX), {}
    views: list[dict[str, Any]] = []
    for seed in range(settings["seeds"]):
        made, voxel = initial_map(particles, tuple(settings["iterations"]), seed + 1)
        views = views or [_packed(made.sum(axis)) for axis in range(3)]
        with tempfile.TemporaryDirectory() as folder:
            file = write_image(Path(folder) / "map.mrc", made, voxel)
            told, _ = read_reference(file, PIXEL_ANGSTROM)
        low = PoseConfig(low_pass_angstrom=settings["low_pass_angstrom"])
        made_of = Reference(told, PIXEL_ANGSTROM, low)
        rows[f"from the data {seed + 1}"] = _on_trial(made_of, test, ice)
    return {"rows": rows, "views": views, "right": particles.right.mean()}


def _measure_memory(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Largest memory and processor time of programs that denoise one large micrograph.

    Each runs once, whole, in a process and on a thread of its own, from an MRC file to an MRC file;
    what Python and torch take by themselves is in the numbers.
    """
    one = frames("validation", 1, settings["tile"])[0].micrograph
    times = settings["side"] // settings["tile"]
    pixels = np.tile(one.noisy.numpy(), (times, times))
    found = {"tsm": _command(pixels, one.pixel_size_angstrom), "topaz": topaz.denoise([pixels])[1]}
    return {
        name: {
            "peak_memory_mb": round(done.peak_memory_mb),
            "cpu_seconds": round(done.cpu_seconds, 1),
        }
        for name, done in found.items()
    }


def _command(pixels: Image, pixel_size_angstrom: float) -> Finished:
    """What ``emlab tsm denoise`` takes."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_image(folder / "in.mrc", pixels, pixel_size_angstrom)
        call = "import sys; from emlab.app.cli import main; sys.exit(main(sys.argv[1:]))"
        words = [sys.executable, "-c", call, "tsm", "denoise", "in.mrc", "out.mrc"]
        return run_program([*words, "--device", "cpu"], folder, environment={"EMLAB_THREADS": "1"})


def _measure_trainings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Correlations after short trainings, one a seed, and what the bank said at each refresh.

    Variants see micrographs of the split ``shown`` and are judged on those of the splits
    ``judged``, by kind, as are the ``peers``, which need no training.
    """
    judged = {
        kind: [one.micrograph for one in frames(split, settings["judges"], settings["judged_size"])]
        for kind, split in settings["judged"].items()
    }
    rows: dict[str, dict[str, list[float]]] = {}
    traces = {}

    def judge_all(name: str, method: Method) -> None:
        row = rows.setdefault(name, {kind: [] for kind in judged})
        for kind, micrographs in judged.items():
            table = run_study(micrographs, {name: method}, {})
            row[kind].append(table.interval(name, "recovery").mean)

    for name, method in classical(settings["peers"]).items():
        judge_all(name, method)
    for name, variant in settings["variants"].items():
        shown = frames(settings["shown"], variant["micrographs"], settings["size"])
        guides = _targets(variant["targets"], shown)
        for seed in range(variant["seeds"]):
            prior, trace = _short_training(variant, shown, guides, settings, seed)
            judge_all(name, score_method(prior))
            if trace and seed == 0:
                traces[name] = {key: [entry[key] for entry in trace] for key in trace[0]}
    return {"rows": rows, "traces": traces}


def _targets(kind: str, shown: Sequence[Frame]) -> list[Explained | Guides]:
    """What is not asked of a bank: the ``true`` particles, or what the ``poses`` explain."""
    if kind == "poses":
        return [trial(frame.micrograph, reference_of(frame.specimen)) for frame in shown]
    guides: list[Explained | Guides] = []
    for seen in [frame.micrograph for frame in shown] if kind == "true" else []:
        guess, n = seen.particles / standardise(seen.noisy, PIXEL_ANGSTROM).sigma, seen.coordinates
        guides.append(Guides(guess, torch.ones_like(guess), n, torch.ones(len(n)), 0.0, 1.0))
    return guides


def _short_training(
    variant: Mapping[str, Any],
    shown: Sequence[Frame],
    guides: list[Explained | Guides],
    settings: Mapping[str, Any],
    seed: int,
) -> tuple[ScorePrior, list[dict[str, float]]]:
    """A trained variant, and the trace of its `GuidedLoss`."""
    objective, bank = ScoreMatching(**variant["objective"]), BankConfig.read(variant["bank"])
    targets = variant["targets"]
    standard = [standardise(frame.micrograph.noisy, PIXEL_ANGSTROM) for frame in shown]
    guidance = None if targets == "none" else Guidance(**variant["guidance"])
    fields = [one.image for one in standard]
    loss = GuidedLoss(fields, objective, settings["crop"], guidance, guides, bank)
    if targets != "none" and not guides:  # "bank": of what is in it, else of the protein named
        proteins = [frame.specimen if targets == "bank" else targets for frame in shown]
        loss.matchers = [
            make_matchers(bank.project(volume(protein)[0]), frame.micrograph.config, bank)
            for protein, frame in zip(proteins, shown, strict=True)
        ]
    torch.manual_seed(seed)
    corners = places([tuple(image.shape) for image in fields], loss.crop, 20_000, seed)
    config, network = TrainingConfig(**settings["training"], seed=seed), build(settings["model"])
    network.load_state_dict(train(network, loss, corners, config, progress=False).weights)
    return ScorePrior(network, objective), loss.trace


def _packed(image: Image) -> dict[str, Any]:
    """A square image in 256 grey levels."""
    low, high = float(image.min()), float(image.max())
    return {"range": [low, high], "pixels": pack(255 * (image - low) / (high - low))}


def unpacked(kept: Mapping[str, Any]) -> Image:
    """A square image that was recorded in 256 grey levels."""
    low, high = kept["range"]
    grey = unpack(kept["pixels"], -1)
    side = round(grey.size**0.5)
    return low + (high - low) / 255 * grey.reshape(side, side)


def _plain(curve: Curve) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in vars(curve).items()}


def _curve(row: Mapping[str, Any]) -> Curve:
    lists = {name: np.array(value) for name, value in row.items() if name != "pixel_size_nm"}
    return Curve(**lists, pixel_size_nm=row["pixel_size_nm"])


def _variants(table: Mapping[str, Any]) -> dict[str, Any]:
    """Each variant as TSM's recipe with what the table says instead."""
    recipe = read_settings("recipes/tsm")["recipes"]["tsm_tsm"]
    matching = {key: value for key, value in recipe["objective"].items() if key != "kind"}
    whole = {"objective": matching, "guidance": recipe["guidance"], "bank": recipe["bank"]}
    return {
        name: {"label": "", "targets": "bank", "micrographs": 2, "seeds": 1}
        | told
        | {part: {**settings, **told.get(part, {})} for part, settings in whole.items()}
        for name, told in table.items()
    }


_READ = read_settings("chapters/tsm/chapter")
_SETTINGS = {key: _READ["cpu"][key] for key in _KEPT} | {
    **read_settings("chapters/tsm/peers"),
    "seed": 0,
}
_BOTH = ("tsm_dsm", "tsm_tsm")
PICKER = Recording(SLUG, "picker", _measure_picker, _SETTINGS, _BOTH)
APOFERRITIN = Recording(SLUG, "apoferritin", _measure_apoferritin, _SETTINGS, _BOTH)
SLOW_PEERS = Recording(
    SLUG,
    "slow_peers",
    _measure_slow_peers,
    {key: _SETTINGS[key] for key in ("micrographs", "size", "peers", "seed")}
    | {"noise2void_steps": _READ["cpu"]["noise2void_steps"]},
)
MANY = Recording(
    SLUG,
    "many",
    _measure_many,
    _READ["recorded"]["many"] | {key: _SETTINGS[key] for key in ("peers", "thresholds")},
    _BOTH,
)
TRIAL = Recording(
    SLUG,
    "trial",
    _measure_trial,
    {key: _SETTINGS[key] for key in ("micrographs", "size", "empty")} | {"beyond_angstrom": 25.0},
    ("tsm_dsm",),
)
TEMPLATE = Recording(
    SLUG,
    "template",
    _measure_template,
    _READ["recorded"]["template"]
    | {key: _SETTINGS[key] for key in ("micrographs", "size", "empty", "thresholds")},
    ("tsm_dsm",),
)
MEMORY = Recording(SLUG, "memory", _measure_memory, _READ["recorded"]["memory"], ("tsm_tsm",))
ABLATIONS, SESSION, LONG = (
    Recording(
        SLUG,
        name,
        _measure_trainings,
        _READ["recorded"][name] | {"variants": _variants(_READ["recorded"][name]["variants"])},
    )
    for name in ("ablations", "session", "long")
)


def join(table: Table, kept: Kept, report: Report) -> bool:
    """Give a table the recorded picks, costs and slow peers, if of the same micrographs.

    Returns whether they are: as many, and the raw ones correlate with the truth as recorded.
    """
    rows = {name: row for _, part in kept for name, row in part.items()}
    for column, then in by_column(rows["raw"]["bands"]).items():
        live = table.scores["raw"][column]
        if live.shape != then.shape or np.abs(live - then).max() > _SAME:
            return False
    for recording, part in kept:
        seen = {name: table.seen(name) for name in table.scores}
        slow = {n: row["bands"] for n, row in part.items() if seen.get(n, 0) < len(row["bands"])}
        table.join_recorded(recording, {n: by_column(one) for n, one in slow.items()}, report)
    table.windows |= {n: unpacked(row["window"]) for n, row in rows.items() if "window" in row}
    table.costs |= {name: row["cost"] for name, row in rows.items()}
    table.take(picks_by(rows))
    return True


def join_maps(table: Table, maps: Mapping[str, Any]) -> None:
    """Give a table the recorded maps."""
    for name, row in maps.items():
        curves = _curve(row["halves"]), _curve(row["truth"])
        told = (*row["counts"], row["program"], row["seconds"])
        table.maps[name] = Reconstruction(None, *curves, *told)


def pick_again(
    table: Table, recording: Recording, report: Report, threads: int = 1
) -> float | None:
    """Pick TSM's first micrograph again, where Topaz is installed: how far off the recorded F1."""
    if topaz.find() is None:
        return None
    again = run_study(table.cases[:1], {}, table.thresholds)
    again.answers["tsm"] = Denoised(table.answers["tsm"].images[:1], 0.0)
    again.pick(threads)
    here, then = again.counts("tsm"), table.counts("tsm").part(np.array([0]))
    found = Study(again.cases, PICKING[2:3], LABELS, scores={"tsm": {"f1": np.array([here.f1()])}})
    found.join_recorded(recording, {"tsm": {"f1": np.array([then.f1()])}}, report, "picking")
    return found.recorded["tsm"]


def complete(table: Table, report: Report, wanted: bool, threads: int = 1) -> float | None:
    """Give a table picks: the recorded ones if they are `wanted` and fit, else by Topaz, now.

    Returns what `pick_again` does of recorded ones.
    """
    kept = [(PICKER, PICKER.values["tables"]["test"]), (SLOW_PEERS, SLOW_PEERS.values)]
    if wanted and join(table, kept, report):
        return pick_again(table, PICKER, report, threads)
    table.pick(threads)
    return None
