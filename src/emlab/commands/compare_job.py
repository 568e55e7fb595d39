"""What ``emlab compare`` does with a file, once its options are read."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from emlab import weights
from emlab.commands.output import table
from emlab.commands.restoring import (
    Input,
    bar,
    check_output,
    in_plane,
    note,
    parse_kernel,
    read_input,
    unit,
    write_output,
)
from emlab.errors import InputError
from emlab.io import WRITABLE
from emlab.methods.own_image import (
    SMALLEST,
    TASKS,
    Answer,
    Entrant,
    Grey,
    Progress,
    Question,
    answer,
    find_noise,
    guess_specimen,
)
from emlab.methods.own_image_choice import choose
from emlab.methods.own_image_page import Comparison, as_json, page
from emlab.runtime import atomic_path, choose_device, choose_threads
from emlab.solvers.block_journal import Journal, keep_arrays, kept_arrays
from emlab.solvers.block_layout import BlockAxis

FEWEST_FRAMES = 2


@dataclass
class Job:
    """One call of the command: what the user asked for."""

    image: Path
    out: Path
    task: str
    pixel_size_angstrom: float | None
    half: Path | None
    frames: bool
    plane: int | None
    window: int
    centre: str | None
    kernel: str | None
    factor: int
    noise: float | None
    coloured: bool | None
    specimen: str | None
    methods: str | None
    diameter: float | None
    invert: bool
    spread: int
    save: Path | None
    resume: bool
    seed: int
    device: str

    def run(self) -> None:
        """Refuse what cannot work, compare, and write report, numbers and images."""
        self._check_options()
        choose_threads()
        question, facts = self._read()
        wanted = [name.strip() for name in (self.methods or "").split(",") if name.strip()]
        entrants, left_out = choose(question, wanted)
        targets = self._targets(entrants)
        with ExitStack() as journals:
            answers = self._answers(entrants, question, journals)
            settings = {"seed": self.seed, "device": str(question.device)}
            compared = Comparison(
                self.image.name, question, facts, entrants, answers, left_out, self.spread, settings
            )
            if not compared.pairs():
                shutil.rmtree(self._folder)
                reasons = "; ".join(f"{k}: {v}" for k, v in compared.refusals().items())
                raise InputError(f"no method could restore {self.image} ({reasons})")
            numbers = compared.numbers()
            self._save(compared, targets)
            with atomic_path(self.out) as path:
                path.write_text(page(compared, numbers), encoding="utf-8")
            with atomic_path(self.out.with_suffix(".json")) as path:
                text = json.dumps(as_json(compared, numbers), indent=1, allow_nan=False)
                path.write_text(text + "\n", encoding="utf-8")
        shutil.rmtree(self._folder)
        self._tell(compared, numbers)

    # --- before the work

    def _check_options(self) -> None:
        if self.out.suffix.lower() not in (".html", ".htm") or self.out.is_dir():
            raise InputError(f"{self.out}: the report is an .html file; name it so with -o")
        if self.out.parent.exists() and not self.out.parent.is_dir():
            raise InputError(f"cannot write {self.out}: {self.out.parent} is no folder")
        if self.task not in TASKS:
            raise InputError(f"unknown task {self.task!r}; choose from {', '.join(TASKS)}")
        if (self.kernel is not None) != (self.task == "deblur"):
            raise InputError("--task deblur needs --kernel, such as 2 or 20nm; other tasks do not")
        if self.half is not None and self.frames:
            raise InputError("give --half or --frames: the frames make the two halves themselves")
        if self.coloured and self.noise is not None:
            raise InputError("give --noise or --coloured: the spectrum is estimated with its level")
        for name, value in (
            ("--noise", self.noise),
            ("--pixel-size-angstrom", self.pixel_size_angstrom),
            ("--diameter", self.diameter),
        ):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"{name} must be a positive number, got {value:g}")
        if 0 < self.spread < SMALLEST:
            raise InputError(f"--spread is 0 or at least {SMALLEST} pixels, got {self.spread}")
        if self._folder.exists() and not self.resume:
            raise InputError(
                f"{self._folder} is left of an interrupted run; add --resume to go on with it, or "
                "delete it"
            )

    @property
    def _folder(self) -> Path:
        return self.out.with_name(f".{self.out.stem}.partial")

    def _read(self) -> tuple[Question, dict[str, str]]:
        source = read_input(self.image, (2, 3), "comparing")
        shape = source.shape[-2:]
        box, where = self._box(shape)
        facts = {"file": f"{self.image.name}, {source}"}
        halves: tuple[Grey, Grey] | None = None
        if self.frames:
            pixels, halves = self._sum_frames(source, box)
            facts["frames"] = f"mean of {source.shape[0]}; halves are the even and the odd ones"
        else:
            pixels, which = self._plane(source, box)
            if which:
                facts["plane"] = which
        if self.half is not None:
            other = read_input(self.half, (2, 3), "comparing")
            if other.shape[-2:] != shape:
                raise InputError(
                    f"{self.half} has {other.shape[-2:]} pixels and {self.image} {shape}; the "
                    "halves must show the same field"
                )
            second = self._plane(other, box)[0]
            halves = pixels, second
            pixels = ((pixels + second) / 2).astype(np.float32)
            facts["halves"] = f"{self.image.name} and {self.half.name}, averaged"
        if halves is not None and np.array_equal(*halves):
            raise InputError("the two halves are the same image; give two recordings of one field")
        _check_pixels(self.image, pixels)
        size = self._pixel_size(source)
        specimen = self.specimen or guess_specimen(size)
        found = find_noise(pixels, self.task, self.noise, self.coloured)
        kernel = None
        if self.kernel is not None:
            kernel = parse_kernel(self.kernel, size, self.image).numpy().astype(np.float32)
        question = Question(
            self.task,
            pixels,
            found,
            size,
            kernel,
            self.factor if self.task == "upsample" else 1,
            specimen,
            self.diameter,
            self.invert,
            halves,
            choose_device(self.device),
        )
        facts["window"] = where
        facts["pixel size"] = "unknown, so lengths are in pixels; give --pixel-size-angstrom"
        if size:
            given = "given" if self.pixel_size_angstrom else "from the header"
            facts["pixel size"] = f"{size:.6g} angstrom ({given})"
        origin = "given" if self.specimen else "by the pixel size; --specimen says otherwise"
        facts["counts as"] = f"{specimen} ({origin})"
        if self.kernel is not None:
            facts["blur"] = f"--kernel {self.kernel}"
        if question.factor > 1:
            facts["factor"] = str(question.factor)
        return question, facts

    def _box(self, shape: Sequence[int]) -> tuple[tuple[slice, slice], str]:
        """The window, and where it is in words."""
        sides = [min(self.window, length) for length in shape]
        middles = [length // 2 for length in shape]
        if self.centre is not None:
            try:
                middles = [round(float(word)) for word in self.centre.split(",")]
            except ValueError:
                middles = []
            if len(middles) != 2 or not all(
                0 <= m < n for m, n in zip(middles, shape, strict=True)
            ):
                raise InputError(
                    f"--centre {self.centre} is no place in {shape[0]} x {shape[1]} pixels; give "
                    "row,column, such as 400,650"
                )
        starts = [
            min(max(0, place - side // 2), length - side)
            for place, side, length in zip(middles, sides, shape, strict=True)
        ]
        rows, columns = (slice(s, s + side) for s, side in zip(starts, sides, strict=True))
        if tuple(sides) == tuple(shape):
            return (rows, columns), f"all of its {shape[0]} x {shape[1]} pixels"
        words = (
            f"only {sides[0]} x {sides[1]} of its {shape[0]} x {shape[1]} pixels, from row "
            f"{starts[0]} and column {starts[1]} (--window and --centre choose others)"
        )
        return (rows, columns), words

    def _plane(self, source: Input, box: tuple[slice, slice]) -> tuple[Grey, str]:
        if len(source.shape) == 2:
            if self.plane not in (None, 0):
                raise InputError(f"{source.path} is one image; leave out --plane")
            return np.ascontiguousarray(source.load()[box]), ""
        depth = source.shape[0]
        number = depth // 2 if self.plane is None else self.plane
        if number >= depth:
            raise InputError(f"{source.path} has planes 0 to {depth - 1}; there is no {number}")
        said = "" if self.plane is not None else " (the middle one; --plane chooses)"
        return _frame(source, number, box), f"{number} of 0 to {depth - 1}{said}"

    def _sum_frames(
        self, source: Input, box: tuple[slice, slice]
    ) -> tuple[Grey, tuple[Grey, Grey]]:
        """Mean of all frames, and of the even and odd ones, read one at a time."""
        if len(source.shape) != 3 or source.shape[0] < FEWEST_FRAMES:
            raise InputError(f"{self.image} has no frames; leave out --frames")
        if self.plane is not None:
            raise InputError("--frames takes all planes; leave out --plane")
        sums: list[Any] = [0.0, 0.0]
        for number in range(source.shape[0]):
            sums[number % 2] = sums[number % 2] + _frame(source, number, box).astype(np.float64)
        odd = source.shape[0] // 2
        means = sums[0] / (source.shape[0] - odd), sums[1] / odd, sum(sums) / source.shape[0]
        first, second, whole = (mean.astype(np.float32) for mean in means)
        return whole, (first, second)

    def _pixel_size(self, source: Input) -> float | None:
        if self.pixel_size_angstrom is not None:
            return self.pixel_size_angstrom
        size = in_plane(source.pixel_size_angstrom)
        if isinstance(size, tuple):
            raise InputError(
                f"{self.image} has pixels of {size[0]:g} x {size[1]:g} angstrom; resample it to "
                "square ones, or give --pixel-size-angstrom"
            )
        return size

    def _targets(self, entrants: Sequence[Entrant]) -> list[Path]:
        """Where restored images go, refused before the work."""
        if self.save is None:
            return []
        suffix = self.image.suffix.lower()
        if suffix not in (*WRITABLE, ".zarr"):
            suffix = ".tif"
        stem = self.image.stem.removesuffix(".ome")
        targets = [self.save / f"{stem}_{entrant.name}{suffix}" for entrant in entrants]
        for target in targets:
            check_output(target, self.image, volume=False)
        return targets

    # --- the work

    def _answers(
        self, entrants: Sequence[Entrant], question: Question, journals: ExitStack
    ) -> list[Answer]:
        """Everybody's answer; each is kept until the report is written."""
        ones = (BlockAxis(1, 1, 0, 0, 1) for _ in "yx")
        axes = [BlockAxis(len(entrants), 1, 0, 0, 1), *ones]
        journal = Journal(self._folder, self._facts(entrants, question), axes, lasting=True)
        journals.enter_context(journal.opened(fresh=False))
        files = [self._folder / f"{number}.npz" for number in range(len(entrants))]
        note(f"methods: {', '.join(e.label for e in entrants)}; this can be minutes")
        if journal.written:
            note(f"going on with method {journal.written + 1} of {len(entrants)}")
        for number in range(journal.written, len(entrants)):
            entrant = entrants[number]
            with ExitStack() as bars:

                def follow(what: str, bars: ExitStack = bars) -> Progress:
                    bars.close()
                    return bars.enter_context(bar(what))

                try:
                    found = answer(
                        entrant, question, self.seed, spread_side=self.spread, progress=follow
                    )
                except KeyboardInterrupt:
                    note(f"interrupted in {entrant.label}; the same command with --resume goes on")
                    raise
            keep_arrays(files[number], found.arrays())
            journal.close_block((number, 0, 0))
            told = f"{found.seconds:.1f} s" if found.image is not None else found.problem
            typer.echo(f"{number + 1}/{len(entrants)} {entrant.label}: {told}", err=True)
        return [Answer.of(kept_arrays(file)) for file in files]

    def _facts(self, entrants: Sequence[Entrant], question: Question) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        seen = [question.pixels, *(question.halves or ())]
        return {
            "image": hashlib.sha256(b"".join(p.tobytes() for p in seen)).hexdigest(),
            "task": question.task,
            "methods": [entrant.name for entrant in entrants],
            "pixel size": question.pixel_size_angstrom,
            "specimen": question.specimen,
            "noise": [question.noise.sigma, question.noise.coloured],
            "kernel": self.kernel,
            "factor": question.factor,
            "diameter": self.diameter,
            "invert": self.invert,
            "spread": self.spread,
            "seed": self.seed,
            "weights": [weights.card(n).sha256 for entrant in entrants for n in entrant.weights],
        }

    # --- after it

    def _save(self, compared: Comparison, targets: Sequence[Path]) -> None:
        size = compared.question.fine_pixel_size_angstrom
        for target, found in zip(targets, compared.answers, strict=False):
            if found.image is not None:
                write_output(target, found.image, size)

    def _tell(self, compared: Comparison, numbers: dict[str, dict[str, float | None]]) -> None:
        question = compared.question
        noise, kind = question.noise, "coloured" if question.noise.coloured else "white"
        length = "nm" if question.pixel_size_angstrom else "px"
        header = ["method", "removed", f"resolution/{length}", "from noise", "s", "MB"]
        keys: tuple[str, ...] = ("residual", "resolution", "blank_contrast", "seconds", "megabytes")
        if question.halves is not None:
            header.append("error left")
            keys = (*keys, "error")
        rows = [
            [entrant.label, *(_cell(numbers[entrant.name].get(key)) for key in keys)]
            for entrant, _ in compared.pairs()
        ]
        for name, text in compared.facts.items():
            typer.echo(f"{name:<16}{text}")
        typer.echo(f"{'noise':<16}{noise.sigma:.5g} grey levels ({noise.origin}), {kind}\n")
        typer.echo(table(header, rows) + "\n")
        for label, reason in compared.refusals().items():
            typer.echo(f"left out: {label}, {reason}")
        if self.save is not None:
            npy = self.image.suffix.lower() == ".npy"
            kept = ", .npy holds no pixel size" if npy else unit(question.fine_pixel_size_angstrom)
            typer.echo(f"{'images':<16}{self.save}{kept}")
        typer.echo(f"{'report':<16}{self.out}, numbers in {self.out.with_suffix('.json').name}")


def _frame(source: Input, number: int, box: tuple[slice, slice]) -> Grey:
    if source.volume is not None:
        found = source.volume[(number, *box)]
    else:
        assert source.pixels is not None
        found = source.pixels[(number, *box)]
    return np.array(found, dtype=np.float32, order="C")


def _check_pixels(path: Path, pixels: Grey) -> None:
    bad = pixels.size - int(np.isfinite(pixels).sum())
    if bad:
        raise InputError(
            f"{path} has {bad} pixels in the window that are NaN or infinite; replace them (for "
            "example by the median of their neighbours) and save the file again"
        )
    if min(pixels.shape) < SMALLEST:
        raise InputError(
            f"{path} is {pixels.shape[0]} x {pixels.shape[1]} pixels; give {SMALLEST} x {SMALLEST} "
            "or more, noise is not told from structure in less"
        )
    if pixels.min() == pixels.max():
        raise InputError(
            f"the window of {path} is constant, {pixels.min():g} everywhere; choose another place "
            "with --centre"
        )


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
