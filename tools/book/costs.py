"""What work at scale costs, computed from the throughputs that `make bench-publish` measured."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from tools.book.markdown import table

# NVIDIA's data sheets: dense bfloat16, without sparsity. Quoted, not measured.
CARDS = {"A100": 312e12, "H100 SXM": 989e12}
USED = (0.1, 0.4)  # share of that peak which convolutions of this width are assumed to reach
CARD_COUNTS = (1, 64)
CORES = 64
MICROGRAPHS, SIDES, PIXEL_ANGSTROM = 10_000, (4092, 5760), 1.05
NETWORK_ANGSTROM = 2.63
VOXELS = 10**12
AXIAL_FACTOR = 4
MISSING = "Not measured: run `make bench-publish`."


def benchmark(root: Path) -> str:
    """Return the table of `make bench` and where it was measured."""
    content = _read(root)
    if content is None:
        return MISSING
    rows = []
    for row in content["rows"].values():
        ratio, bound = row.get("ratio"), row.get("bound", "")
        shown = "not measured" if ratio is None else f"{ratio:.3g}"
        limit = bound.replace("<=", "at most").replace(">=", "at least")
        rows.append([row["what"], shown, limit, row.get("note", "")])
    where = content["environment"]
    load, cores = content["load_at_start"], where["cores"]
    shared = "was shared with other jobs" if load > cores / 2 else "had nothing else to do"
    told = (
        f"Measured {where['utc'][:10]} on one thread of {where['cpu']} ({cores} cores), torch "
        f"{where['torch']}, commit `{where['commit'][:12]}`; the machine {shared} (load {load:g} "
        f"at the start). Times are of the processor, not of the clock, where they can be."
    )
    return f"{told}\n\n{table(['ratio', 'here', 'bound', 'note'], rows)}"


def work(root: Path) -> str:
    """Return cost of 1 TB of volume and of 10 000 micrographs, on cores and on cards."""
    content = _read(root)
    facts = (content or {}).get("facts", {})
    if not {"generalist_flow_rate", "tsm_tsm_rate"} <= set(facts):
        return MISSING
    from emlab.methods.generalist import load_config
    from emlab.methods.tsm import Config

    ours, cryo = load_config("ours"), Config()
    repeated = (ours.tile / (ours.tile - ours.overlap)) ** 2
    padded = (cryo.tile / (cryo.tile - cryo.halo)) ** 2
    steps = ours.solvers["isotropic"].steps  # type: ignore[union-attr]
    seen = SIDES[0] * SIDES[1] * (PIXEL_ANGSTROM / NETWORK_ANGSTROM) ** 2
    jobs = [
        (
            f"{MICROGRAPHS} micrographs of {SIDES[0]} × {SIDES[1]} pixels of {PIXEL_ANGSTROM} Å, "
            f"`tsm denoise`",
            "tsm_tsm_rate",
            MICROGRAPHS * seen * padded,
            4 * 2 * MICROGRAPHS * SIDES[0] * SIDES[1],
        ),
        ("1 TB of volume (8 bit), `generalist denoise`", "generalist_flow_rate", VOXELS * repeated,
         5 * VOXELS),
        (
            f"1 TB of volume (8 bit), `generalist isotropic --factor {AXIAL_FACTOR}`",
            "generalist_flow_rate",
            VOXELS * AXIAL_FACTOR * steps * repeated,
            VOXELS * (1 + 4 * AXIAL_FACTOR),
        ),
    ]  # fmt: skip
    measured, cards = [], []
    for name, key, pixels, read_and_written in jobs:
        rate, operations = facts[key]["megapixels_per_second"], facts[key]["operations_per_pixel"]
        core = pixels / rate / 1e6
        measured.append([name, f"{pixels:.2g}", f"{rate:.3g}", _time(core), _time(core / CORES)])
        for card, peak in CARDS.items():
            best, worst = (pixels * operations / (peak * share) for share in reversed(USED))
            spans = [f"{_time(best / n)} to {_time(worst / n)}" for n in CARD_COUNTS]
            feed = read_and_written / best / 1e9
            cards.append([name, card, f"{pixels * operations:.2g}", *spans, f"{feed:.2g} GB/s"])
    header = ["work", "pixels through the network", "megapixels a second, one core", "one core"]
    counts = [f"{n} card{'s' if n > 1 else ''} (extrapolated)" for n in CARD_COUNTS]
    return "\n\n".join(
        [
            "## Measured: cores",
            table([*header, f"{CORES} cores"], measured),
            "## Extrapolated: graphics cards",
            f"No card was at hand. The operations of the networks are counted, the peaks "
            f"({', '.join(f'{name} {peak / 1e12:g}' for name, peak in CARDS.items())} Tflop/s in "
            f"bfloat16) are those of NVIDIA's data sheets, and it is *assumed* that "
            f"{USED[0]:.0%} to {USED[1]:.0%} of them are reached.",
            table(["work", "card", "operations", *counts, "to be read and written by one"], cards),
        ]
    )


def _read(root: Path) -> dict[str, Any] | None:
    file = root / "book" / "bench.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _time(seconds: float) -> str:
    """Two figures, in the unit that a reader would choose."""
    units = (("years", 365.25 * 86400), ("days", 86400.0), ("h", 3600.0), ("min", 60.0))
    for unit, length in units:
        if seconds >= 2 * length:
            return f"{float(f'{seconds / length:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} s"
