"""What work at scale costs, computed from the throughputs that `make bench-publish` measured."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.book.markdown import table

# NVIDIA's data sheets: dense bfloat16, without sparsity. Quoted, not measured.
CARDS = {"A100": 312e12, "H100 SXM": 989e12}
USED = (0.1, 0.4)  # share of that peak which convolutions of this width are assumed to reach
FED = 2e9  # bytes a second that are assumed to be read and written for one card
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
        shown = "not measured" if ratio is None else figures(ratio, 3)
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
    if not {"generalist_depth_rate", "tsm_tsm_rate"} <= set(facts):
        return MISSING
    from emlab.methods.generalist import load_config
    from emlab.methods.tsm import Config

    ours, cryo = load_config("ours"), Config()
    repeated = (ours.tile / (ours.tile - ours.overlap)) ** 2
    padded = (cryo.tile / (cryo.tile - cryo.halo)) ** 2
    steps = ours.solvers["isotropic"].steps  # type: ignore[union-attr]
    area = SIDES[0] * SIDES[1]
    seen = area * (PIXEL_ANGSTROM / NETWORK_ANGSTROM) ** 2
    jobs = (
        Job(
            f"{figures(MICROGRAPHS)} micrographs of {SIDES[0]} × {SIDES[1]} pixels of "
            f"{PIXEL_ANGSTROM} Å, `tsm denoise`",
            facts["tsm_tsm_rate"],
            pixels=MICROGRAPHS * seen * padded,
            moved=MICROGRAPHS * area * 2 * 4,
        ),
        Job(
            "1 TB of volume (8 bit), `generalist denoise`",
            facts["generalist_depth_rate"],
            pixels=VOXELS * repeated,
            moved=VOXELS * (1 + 4),
        ),
        Job(
            f"1 TB of volume (8 bit), `generalist isotropic --factor {AXIAL_FACTOR}`",
            facts["generalist_depth_rate"],
            pixels=VOXELS * AXIAL_FACTOR * steps * repeated,
            moved=VOXELS * (1 + 4 * AXIAL_FACTOR),
        ),
    )
    cards = [job.on_card(card, peak) for job in jobs for card, peak in CARDS.items()]
    counts = [f"{n} card{'s' if n > 1 else ''}" for n in CARD_COUNTS]
    header = ["work", "gigapixels through the network", "megapixels a second", "one core"]
    peaks = ", ".join(f"{name} {peak / 1e12:g}" for name, peak in CARDS.items())
    return "\n\n".join(
        [
            "## Measured: one core",
            f"The last column divides by {CORES}: blocks and micrographs do not wait for each "
            f"other.",
            table(
                [*header, f"{CORES} cores"],
                [job.on_cores() for job in jobs],
            ),
            "## Extrapolated: graphics cards",
            f"No card was at hand. The operations of the networks are counted, the peaks "
            f"({peaks} Tflop/s in bfloat16) are those of NVIDIA's data sheets, and it is "
            f"*assumed* that {USED[0]:.0%} to {USED[1]:.0%} of them are reached and that files are "
            f"read and written at {FED / 1e9:g} GB/s a card; the slower of the two decides.",
            table(["work", "card", "Pflop", *counts, "what decides"], cards),
        ]
    )


@dataclass(frozen=True)
class Job:
    """Work at scale: what goes through a network of measured rate, what over a disc in bytes."""

    name: str
    rate: Mapping[str, float]
    pixels: float
    moved: float

    def on_cores(self) -> list[str]:
        speed = self.rate["megapixels_per_second"]
        seconds = self.pixels / speed / 1e6
        shown = [figures(self.pixels / 1e9), figures(speed)]
        return [self.name, *shown, duration(seconds), duration(seconds / CORES)]

    def on_card(self, card: str, peak: float) -> list[str]:
        operations = self.pixels * self.rate["operations_per_pixel"]
        fed = self.moved / FED
        best, worst = (operations / (peak * share) for share in reversed(USED))
        spans = [_span(max(best, fed) / n, max(worst, fed) / n) for n in CARD_COUNTS]
        decides = "files" if fed > worst else "the network" if fed < best else "either"
        return [self.name, card, figures(operations / 1e15), *spans, decides]


def _span(low: float, high: float) -> str:
    return duration(low) if low == high else f"{duration(low)} to {duration(high)}"


def _read(root: Path) -> dict[str, Any] | None:
    file = root / "book" / "bench.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def figures(value: float, count: int = 2) -> str:
    """Return a number rounded to that many figures, written without an exponent."""
    return f"{float(f'{value:.{count}g}'):,.10g}".replace(",", " ")


def duration(seconds: float) -> str:
    """Return two figures in the unit that a reader would choose."""
    units = (("years", 365.25 * 86400), ("days", 86400.0), ("h", 3600.0), ("min", 60.0))
    for unit, length in units:
        if seconds >= 2 * length:
            return f"{figures(seconds / length)} {unit}"
    return f"{figures(seconds)} s"
