"""Cost of the E-step of multi-target detection against the Fourier transforms that it needs.

One E-step (`emlab.solvers.ExpectationStep`) of D patches and K rotations needs D x K inverse and
D x K forward real transforms of 2L x 2L. Both are timed in one process on one thread, in turn,
repeat by repeat, so that a busy machine slows both. The transforms run in one batch and in batches
that fit the processor's cache, as the E-step's do; the ratio takes the faster of the two, medians
over repeats ("fastest": the shortest times instead).

Peak memory is the growth of the resident memory (Linux) of a fresh process by two E-steps, patches
and their spectra not counted.

Run: python benchmarks/mtd_estep.py [--quick] [--json OUT]. Exit status 4 if the ratio at the
paper's size (L = 28, N = 308, K = 4, float32) exceeds 4.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.fft import irfft2, rfft2

from emlab.physics.mtd import Rotations, cut_patches
from emlab.runtime import Stopwatch, choose_threads, environment_stamp
from emlab.solvers.expectation_maximization import ExpectationStep

BOUND = 4.0
REGRESSED = 4
RESET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Case:
    """One size of problem."""

    size: int
    field: int
    dtype: str = "float32"
    rotations: int = 4
    memory_mb: float = 8.0

    def expectation(self) -> tuple[ExpectationStep, torch.Tensor]:
        """The E-step of a field of noise, and an image to run it with."""
        dtype = getattr(torch, self.dtype)
        generator = torch.Generator().manual_seed(0)
        field = torch.randn(self.field, self.field, generator=generator, dtype=dtype)
        image = torch.rand(1, self.size, self.size, generator=generator, dtype=dtype)
        patches = cut_patches(field, self.size)
        turns = Rotations(self.rotations, self.size, dtype)
        return ExpectationStep(patches, turns, 1.0, memory_mb=self.memory_mb), image


@dataclass(frozen=True)
class Row:
    """What was measured for a case; times in milliseconds, memory in MB (2**20 bytes).

    ``peak_mb`` is None where the system does not tell it.
    """

    case: Case
    estep_ms: float
    transforms_ms: float
    chunked_ms: float
    ratio: float
    ratio_of_fastest: float
    per_second: float
    peak_mb: float | None
    spectra_mb: float


PAPER = Case(28, 308)
CASES = (
    PAPER,
    Case(28, 308, "float64"),
    Case(28, 924),
    Case(28, 3080),
    Case(28, 3080, memory_mb=64.0),
    Case(5, 55),
    Case(5, 55, "float64"),
)
QUICK = (PAPER, Case(28, 924), Case(5, 55))


def measure(case: Case, seconds: float) -> Row:
    """Time E-step and transforms in turn for about so many seconds, at least three times each."""
    expectation, image = case.expectation()
    chunk = expectation._chunk_size(case.rotations, image.element_size())
    shape = (case.rotations, 2 * case.size, 2 * case.size)
    grid = shape[1:]
    count = expectation.count
    spectra = torch.randn(min(count, 2000), *shape[:2], case.size + 1, dtype=expectation.box.dtype)
    scale = count / len(spectra)  # the largest field: transforms of a part, scaled up

    def transforms(batch: int) -> None:
        for part in spectra.split(batch):
            rfft2(irfft2(part, grid))

    tasks: list[Callable[[], object]] = [
        lambda: expectation(image),
        lambda: transforms(len(spectra)),
        lambda: transforms(chunk),
    ]
    times: list[list[float]] = [[], [], []]
    for task in tasks:
        task()
    with Stopwatch() as total:
        while len(times[0]) < 3 or total.seconds < seconds:
            for task, record in zip(tasks, times, strict=True):
                with Stopwatch() as watch:
                    task()
                record.append(watch.seconds)
    for record in times[1:]:
        record[:] = [value * scale for value in record]
    estep, whole, chunked = (1e3 * statistics.median(record) for record in times)
    return Row(
        case=case,
        estep_ms=estep,
        transforms_ms=whole,
        chunked_ms=chunked,
        ratio=estep / min(whole, chunked),
        ratio_of_fastest=min(times[0]) / min(*times[1], *times[2]),
        per_second=1e3 / estep,
        peak_mb=peak_in_fresh_process(case),
        spectra_mb=expectation.spectra.nbytes / 2**20,
    )


def peak_in_fresh_process(case: Case) -> float | None:
    """Growth of the resident memory by two E-steps, beyond patches and spectra, in MB."""
    if not RESET_PEAK.exists():
        return None
    command = [sys.executable, __file__, "--peak", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_peak(case: Case) -> None:
    """In the fresh process: warm up the libraries on two patches a side, then measure."""
    small, image = Case(case.size, 2 * case.size, case.dtype, case.rotations).expectation()
    small(image)
    expectation, image = case.expectation()
    RESET_PEAK.write_text("5")
    before = resident_peak_mb()
    expectation(image)
    expectation(image)
    print(resident_peak_mb() - before)


def resident_peak_mb() -> float:
    """Largest resident memory of this process since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def table(rows: list[Row]) -> str:
    """Aligned columns, a line a case."""
    head = ("L", "N", "dtype", "memory_mb", "E-step ms", "FFTs ms", "in chunks", "ratio")
    lines = [(*head, "fastest", "steps/s", "peak MB", "spectra MB")]
    for row in rows:
        case = row.case
        name = (str(case.size), str(case.field), case.dtype, f"{case.memory_mb:g}")
        times = (f"{row.estep_ms:.2f}", f"{row.transforms_ms:.2f}", f"{row.chunked_ms:.2f}")
        ratios = (f"{row.ratio:.2f}", f"{row.ratio_of_fastest:.2f}", f"{row.per_second:.1f}")
        peak = "?" if row.peak_mb is None else f"{row.peak_mb:.1f}"
        lines.append((*name, *times, *ratios, peak, f"{row.spectra_mb:.1f}"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def growth(rows: list[Row]) -> list[str]:
    """Seconds by area, against the paper's field, as sentences."""
    fields = [row for row in rows if (row.case.size, row.case.dtype) == (28, "float32")]
    fields = [row for row in fields if row.case.memory_mb == PAPER.memory_mb]
    return [
        f"N x {row.case.field / 308:g}: area x {(row.case.field / 308) ** 2:.0f}, "
        f"time x {row.estep_ms / fields[0].estep_ms:.1f}"
        for row in fields[1:]
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and compare the ratio with its bound."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three cases, a few seconds")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers here")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    choose_threads(1)
    torch.set_grad_enabled(False)
    if options.peak:
        print_peak(Case(**json.loads(options.peak)))
        return 0
    seconds = 0.5 if options.quick else 5.0
    rows = [measure(case, seconds) for case in (QUICK if options.quick else CASES)]
    print(table(rows))
    print("\n".join(growth(rows)))
    kept = rows[0].ratio <= BOUND
    verdict = "kept" if kept else "BROKEN"
    print(f"bound: E-step at most {BOUND:g} x its transforms: {rows[0].ratio:.2f}, {verdict}")
    if options.json:
        stamp = environment_stamp()
        content = {"bound": BOUND, "rows": [asdict(row) for row in rows], "environment": stamp}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if kept else REGRESSED


if __name__ == "__main__":
    sys.exit(main())
